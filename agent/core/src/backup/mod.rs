//! The copies of one thing over time: are there any, is the newest fresh and whole, and was a good copy replaced by a
//! bad one?
//!
//! The trap is the backup that destroys: a job that copies an empty or damaged source over the last good copy, or
//! rotates until none is left. So every finished copy is remembered with what was found in it, also when it is gone,
//! and each new one is compared with the last good one before it. Only a new good copy clears.
//!
//! A copy is (inode, size, modification time): a rotation by rename keeps it, one by `cp -p` keeps size and time.

pub mod archive;
pub mod pattern;
mod shrinking;
mod told;

use crate::clock::Now;
use crate::judgement::{Judgement, Unknown};
use muster_common::evidence::{Evidence, Grade};
use muster_common::time::Timestamp;
use muster_common::units::human_bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Copies of one set that are looked at, the newest ones.
pub const COPIES_MAX: usize = 64;
/// Copies remembered, with those that are gone: what a new one is compared with.
const HISTORY_MAX: usize = 96;
/// A file that was changed this lately may still be written.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Clocks of file servers may be ahead this far.
const AHEAD_MAX: Duration = Duration::from_secs(300);
/// A file loses less when it is packed a little better.
const LOST_BYTES_MIN: u64 = 1024;
/// A handful of rows come and go.
const LOST_ROWS_MIN: u64 = 16;
/// So many copies in a row of the same new size are what somebody wants (a purge), not an accident. Empty ones never.
const ACCEPTED_AFTER: usize = 7;
/// Copies of which the rows of each table are remembered.
const TABLES_KEPT_FOR: usize = 4;
/// Tables whose row counts are kept for each copy.
pub const TABLES_MAX: usize = 16;

/// What must be true of the copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The pattern, for people.
    pub pattern: String,
    /// The pattern names one path: each backup overwrites the one before.
    pub fixed: bool,
    /// What they are copies of, for people.
    pub source: Option<String>,
    /// How old the newest good one may be.
    pub max_age: Option<Duration>,
    /// A copy with less than this share of the last good one (rows, or bytes) has shrunk.
    pub min_percent: u64,
    /// Less than this share of the largest good one, lost little by little, has shrunk as well.
    pub min_percent_over_time: u64,
    /// A copy smaller than this is none.
    pub min_bytes: u64,
    /// How many there should be.
    pub keep: Option<u32>,
}

/// One file that fits the pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFile {
    /// Where.
    pub path: String,
    /// Inode.
    pub inode: u64,
    /// Size.
    pub size_bytes: u64,
    /// Last change of its content; anybody can set it.
    pub modified: Timestamp,
    /// Last change of the inode (a rename counts); only the clock sets it.
    pub changed: Timestamp,
}

impl CopyFile {
    /// The same content, wherever it lies now.
    pub fn is_same_copy(&self, other: &Self) -> bool {
        self.size_bytes == other.size_bytes && self.modified == other.modified && self.inode == other.inode
    }
}

/// What a look into a copy found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Content {
    /// What it is: `SQLite database`, `gzip`, `file`.
    pub kind: String,
    /// What is wrong with it.
    pub damage: Option<String>,
    /// It is an archive in which nothing was packed.
    pub holds_nothing: bool,
    /// What was checked.
    pub checked: String,
    /// What was not, and why.
    pub not_checked: Option<String>,
    /// It could not be looked into now: neither good nor bad.
    pub unread: bool,
    /// It was looked at as deeply as it will be.
    pub deep: bool,
    /// Pages of a database, by its header.
    pub page_count: Option<u64>,
    /// Fingerprint of the names of its tables.
    pub schema: Option<u64>,
    /// Tables of a database; `None` where they were not counted.
    pub table_count: Option<u64>,
    /// Rows of all tables.
    pub row_count: Option<u64>,
    /// Rows of its largest tables.
    pub tables: BTreeMap<String, u64>,
}

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Not looked into yet, or still being written.
    #[default]
    Open,
    Good,
    Shrunk,
    Bad,
}

/// One copy, present or remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    file: CopyFile,
    content: Option<Content>,
    #[serde(default)]
    verdict: Verdict,
    /// How it has shrunk.
    #[serde(default)]
    loss: Option<Loss>,
    /// It is still there.
    present: bool,
    settled: bool,
    /// Size of the source when the copy was judged.
    #[serde(default)]
    source_bytes: Option<u64>,
    /// The time of the copy that it took the place of: it is the newer one, whatever time it was given
    /// (`rsync -a` and `cp -p` keep that of the source).
    #[serde(default)]
    follows: Option<Timestamp>,
}

impl Known {
    /// Its place among the others.
    fn place(&self, now: Now) -> Timestamp {
        let own = sort_time(&self.file, now);
        self.follows.map_or(own, |before| own.max(before + Duration::from_millis(1)))
    }
}

/// How a copy is less than the last good one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Loss {
    what: String,
    grade: Grade,
    /// Nothing is in it at all.
    empty: bool,
    before_path: String,
    before_bytes: u64,
    before_rows: Option<u64>,
    now_rows: Option<u64>,
    /// Tables that had rows and have none, or are gone.
    lost_tables: Vec<String>,
    /// Size of the source when the good copy was judged.
    source_before_bytes: Option<u64>,
}

/// What is at the source's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing.
    Missing,
    /// It cannot be seen.
    Hidden(String),
    /// A file, with its log.
    Bytes(u64),
}

/// One listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The files that fit, at most [`COPIES_MAX`] (the newest); or why there is no list, and the way out.
    pub files: Result<Vec<CopyFile>, (String, Option<&'static str>)>,
    /// Files that fit beyond the bound.
    pub beyond: u64,
    /// Files that fit and say by their name that they are unfinished.
    pub unfinished: u64,
    /// The outermost folder of the pattern that is not there.
    pub missing_folder: Option<String>,
    /// The source, where one is configured.
    pub source: Option<Source>,
}

/// Judges a set of copies over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupJudge {
    /// Oldest first.
    copies: Vec<Known>,
    /// Most copies ever seen at a time.
    kept_max: u32,
    #[serde(skip)]
    listed: Option<Listing>,
}

impl BackupJudge {
    /// Takes in a listing. Answers nothing yet: what is new is looked into first.
    pub fn note(&mut self, listing: Listing, now: Now) {
        if let Ok(files) = &listing.files {
            let before: Vec<CopyFile> =
                self.copies.iter().filter(|known| known.present).map(|k| k.file.clone()).collect();
            self.copies.iter_mut().for_each(|known| known.present = false);
            for file in files {
                let unchanged = before.iter().any(|old| old.path == file.path && old.is_same_copy(file));
                self.note_file(file, unchanged || is_old(file, now));
            }
            self.note_overwritten(&before, now);
            // What was never finished under this size is no copy.
            self.copies.retain(|known| known.present || known.verdict != Verdict::Open);
            self.copies.sort_by_key(|known| (known.place(now), known.file.path.clone()));
            while self.copies.len() > HISTORY_MAX {
                let oldest = self.copies.iter().position(|known| !known.present).unwrap_or(0);
                self.copies.remove(oldest);
            }
            self.forget_tables();
            let settled = self.copies.iter().filter(|known| known.present && known.settled).count();
            self.kept_max = self.kept_max.max(u32::try_from(settled).unwrap_or(u32::MAX));
        }
        self.listed = Some(listing);
    }

    /// Which new copies lie where another one lay that is gone now.
    fn note_overwritten(&mut self, before: &[CopyFile], now: Now) {
        let gone = |old: &&CopyFile| !self.copies.iter().any(|known| known.present && known.file.is_same_copy(old));
        let gone: Vec<(String, Timestamp)> = before
            .iter()
            .filter(gone)
            .filter_map(|old| self.copies.iter().find(|known| known.file.is_same_copy(old)))
            .map(|old| (old.file.path.clone(), old.place(now)))
            .collect();
        for known in self.copies.iter_mut().filter(|known| known.present && known.verdict == Verdict::Open) {
            let before = gone.iter().find(|(path, _)| *path == known.file.path).map(|(_, time)| *time);
            known.follows = before.max(known.follows);
        }
    }

    /// Row counts are kept for the newest copies and the last good one: what new ones are compared with.
    fn forget_tables(&mut self) {
        let last_good = self.copies.iter().rposition(|known| known.verdict == Verdict::Good);
        let old = self.copies.len().saturating_sub(TABLES_KEPT_FOR);
        for (at, known) in self.copies.iter_mut().enumerate().take(old) {
            if let (true, Some(content)) = (Some(at) != last_good, &mut known.content) {
                content.tables.clear();
            }
        }
    }

    fn note_file(&mut self, file: &CopyFile, settled: bool) {
        let exact = self.copies.iter().position(|known| known.file.is_same_copy(file));
        let moved = || {
            // `cp -p` makes another inode of the same size and time.
            self.copies.iter().position(|known| {
                !known.present && known.file.size_bytes == file.size_bytes && known.file.modified == file.modified
            })
        };
        match exact.or_else(moved).and_then(|at| self.copies.get_mut(at)) {
            Some(known) => {
                known.file = file.clone();
                known.present = true;
                known.settled |= settled;
            }
            None => self.copies.push(Known {
                file: file.clone(),
                content: None,
                verdict: Verdict::Open,
                loss: None,
                present: true,
                settled,
                source_bytes: None,
                follows: None,
            }),
        }
    }

    /// The copies that should be looked into, newest first, and whether deeply: only the newest is, once; what each
    /// older one was when it was the newest is remembered.
    pub fn wants(&self) -> Vec<(CopyFile, bool)> {
        let settled = self.copies.iter().rev().filter(|known| known.present && known.settled);
        settled
            .enumerate()
            .filter(|(index, known)| known.content.as_ref().is_none_or(|content| *index == 0 && !content.deep))
            .map(|(index, known)| (known.file.clone(), index == 0))
            .collect()
    }

    /// Takes in what was found in a copy. What changed meanwhile is another copy, and is looked into again.
    pub fn learn(&mut self, file: &CopyFile, content: Content) {
        let found = self.copies.iter_mut().find(|known| known.file.is_same_copy(file));
        if let Some(known) = found {
            // A deeper look may find damage that the first did not; it takes back nothing.
            if known.verdict == Verdict::Good && content.damage.is_some() {
                known.verdict = Verdict::Open;
            }
            known.content = Some(content);
        }
    }

    /// Judges what is known now.
    pub fn judge(&mut self, rules: &Rules, now: Now, one_shot: bool) -> Judgement {
        let Some(listing) = self.listed.take() else {
            return Judgement::unknown("the copies were not listed", None);
        };
        if let Err((why, way_out)) = &listing.files {
            return Judgement::unknown(why.clone(), *way_out);
        }
        self.classify(rules, listing.source.as_ref());
        let seen = self.seen(&listing, now);
        let mut judgement = Judgement { seen, ..Judgement::default() };
        let present: Vec<&Known> = self.copies.iter().filter(|known| known.present && known.settled).collect();
        let Some(newest) = present.last() else {
            let written = self.copies.iter().any(|known| known.present) || listing.unfinished > 0;
            if written {
                let why = format!("no copy that fits {} is finished yet; one is being written", rules.pattern);
                judgement.unknown = Some(Unknown::new(why, None));
            }
            // A first copy that is being written ends nothing that is open, and opens nothing.
            if !written {
                judgement.problems.push(told::missing(rules, self.last_gone(), listing.missing_folder.as_deref()));
                // What was open stays open: copies that are gone are not copies that are well.
                let unknown = Unknown::new("there is no copy to look into", None);
                judgement.unknown = Some(unknown).filter(|_| !one_shot);
            }
            return judgement;
        };
        judgement.problems.extend(self.lost_since_last_good(rules, listing.source.as_ref(), now));
        judgement.problems.extend(self.stale(rules, now));
        judgement.problems.extend(self.too_few(rules, &present, one_shot));
        if newest.verdict == Verdict::Open {
            let path = told::shown(&newest.file.path);
            let unread = newest.content.as_ref().filter(|content| content.unread);
            let why = match unread.and_then(|content| content.not_checked.as_ref()) {
                Some(not_checked) => {
                    format!("the newest copy {path} was not looked into: {}", told::shown(not_checked))
                }
                None => format!("the newest copy {path} has not been looked into yet"),
            };
            judgement.unknown = Some(Unknown::new(why, None));
        }
        judgement
    }

    /// Each copy in the order of time, against the last good one before it.
    fn classify(&mut self, rules: &Rules, source: Option<&Source>) {
        for at in 0..self.copies.len() {
            let Some((earlier, rest)) = self.copies.split_at_mut_checked(at) else { return };
            let Some(known) = rest.first_mut() else { return };
            if known.verdict != Verdict::Open || !known.settled {
                continue;
            }
            let Some(content) = &known.content else { continue };
            let good = earlier.iter().rev().find(|earlier| earlier.verdict == Verdict::Good);
            let loss = good.and_then(|good| loss(rules, good, &known.file, content));
            known.source_bytes = match source {
                Some(Source::Bytes(bytes)) => Some(*bytes),
                _ => None,
            };
            (known.verdict, known.loss) = match loss {
                Some(loss) if !accepted(rules, earlier, &loss, known) => (Verdict::Shrunk, Some(loss)),
                _ if content.damage.is_some() || known.file.size_bytes < rules.min_bytes.max(1) => (Verdict::Bad, None),
                // Asked again as long as it is the newest.
                _ if content.unread => (Verdict::Open, None),
                _ => (Verdict::Good, None),
            };
        }
    }

    /// What was made since the last good copy and is not good.
    fn lost_since_last_good(&self, rules: &Rules, source: Option<&Source>, now: Now) -> Vec<crate::judgement::Problem> {
        let since = self.copies.iter().rev().take_while(|known| known.verdict != Verdict::Good);
        let since: Vec<&Known> = since.filter(|known| known.verdict != Verdict::Open).collect();
        let newest = |verdict| since.iter().find(|known| known.verdict == verdict).copied();
        let left = self.left(rules, now);
        let bad = newest(Verdict::Bad).map(|bad| told::corrupt(rules, bad, &left, now));
        let shrunk = newest(Verdict::Shrunk).and_then(|shrunk| {
            let loss = shrunk.loss.as_ref()?;
            Some(told::shrunk(rules, shrunk, loss, source, &left, now))
        });
        let little_by_little = || Some(told::shrinking(rules, &self.shrinking(rules)?, now));
        let shrunk = shrunk.or_else(little_by_little);
        bad.into_iter().chain(shrunk).collect()
    }

    /// The good copies that are left, newest first, and how long they last.
    fn left(&self, rules: &Rules, now: Now) -> Left {
        let present: Vec<&Known> = self.copies.iter().filter(|known| known.present && known.settled).collect();
        let good: Vec<LeftCopy> = present
            .iter()
            .rev()
            .filter(|known| known.verdict == Verdict::Good)
            .map(|known| LeftCopy {
                path: known.file.path.clone(),
                size_bytes: known.file.size_bytes,
                made: sort_time(&known.file, now),
            })
            .collect();
        let newer = present.iter().rev().take_while(|known| known.verdict != Verdict::Good).count();
        let kept = rules.keep.unwrap_or(self.kept_max).max(u32::try_from(present.len()).unwrap_or(u32::MAX));
        let rotations = kept.saturating_sub(u32::try_from(newer).unwrap_or(u32::MAX));
        let rotations = if good.is_empty() { 0 } else { rotations };
        let rhythm = self.rhythm(now);
        let last_made = present.last().map(|newest| sort_time(&newest.file, now));
        let gone_at = rhythm.zip(last_made).map(|(rhythm, made)| made + rhythm.saturating_mul(rotations.max(1)));
        Left { good, rotations, kept, rhythm, gone_at: gone_at.filter(|at| *at > now.wall) }
    }

    /// The usual time between two copies.
    fn rhythm(&self, now: Now) -> Option<Duration> {
        const SHORT: Duration = Duration::from_secs(1);
        let times: Vec<Timestamp> =
            self.copies.iter().filter(|known| known.settled).map(|known| sort_time(&known.file, now)).collect();
        let gaps = times.windows(2).filter_map(|pair| Some(pair.get(1)?.since(*pair.first()?)));
        let mut gaps: Vec<Duration> = gaps.filter(|gap| *gap > SHORT).collect();
        gaps.sort();
        gaps.get(gaps.len() / 2).copied()
    }

    fn stale(&self, rules: &Rules, now: Now) -> Option<crate::judgement::Problem> {
        let max_age = rules.max_age?;
        // One that is not good has its own problem: the job runs, what it makes is the matter.
        let newest = self.copies.iter().rev().find(|known| known.present && known.settled);
        // While the newest is being written, the one before may be as old as it must be.
        let written = self.copies.iter().any(|known| known.present && !known.settled);
        let newest = newest?;
        let old = age(&newest.file, now);
        (old > max_age).then(|| told::stale(rules, newest, old, max_age, written))
    }

    fn too_few(&self, rules: &Rules, present: &[&Known], one_shot: bool) -> Option<crate::judgement::Problem> {
        let keep = rules.keep?;
        let there = u32::try_from(present.len()).unwrap_or(u32::MAX);
        // A set that is still growing was never complete; `doctor` cannot know.
        let was_complete = self.kept_max >= keep && !one_shot;
        (there < keep && was_complete).then(|| told::too_few(rules, there, keep))
    }

    fn last_gone(&self) -> Option<&Known> {
        self.copies.iter().rev().find(|known| !known.present && known.verdict == Verdict::Good)
    }

    fn seen(&self, listing: &Listing, now: Now) -> Evidence {
        let present: Vec<&Known> = self.copies.iter().filter(|known| known.present && known.settled).collect();
        let good = present.iter().filter(|known| known.verdict == Verdict::Good).count();
        let mut seen = Evidence::new().count("copies", present.len() as u64).count("good_copies", good as u64);
        if listing.beyond > 0 {
            seen = seen.count("older_copies_not_looked_at", listing.beyond);
        }
        let writing = self.copies.iter().filter(|known| known.present && !known.settled).count() as u64;
        if writing + listing.unfinished > 0 {
            seen = seen.count("being_written", writing + listing.unfinished);
        }
        if let Some(rhythm) = self.rhythm(now) {
            seen = seen.duration("usual_gap_ms", rhythm);
        }
        let Some(newest) = present.last() else { return seen };
        seen = seen
            .text("newest", told::shown(&newest.file.path))
            .bytes("newest_bytes", newest.file.size_bytes)
            .duration("newest_age_ms", age(&newest.file, now));
        if is_ahead(&newest.file, now) {
            seen = seen.text("newest_time", format!("{} is in the future", newest.file.modified));
        }
        if let Some(content) = &newest.content {
            seen = seen.text("kind", &content.kind).text("checked", &content.checked);
            if let Some(not_checked) = &content.not_checked {
                seen = seen.text("not_checked", not_checked);
            }
            if let Some(rows) = content.row_count {
                seen = seen.count("rows", rows);
            }
        }
        seen
    }
}

/// A good copy that is left.
struct LeftCopy {
    path: String,
    size_bytes: u64,
    made: Timestamp,
}

/// What is left when the newest copies are not good.
struct Left {
    /// Newest first.
    good: Vec<LeftCopy>,
    /// How many more backups until the last of them is gone.
    rotations: u32,
    kept: u32,
    rhythm: Option<Duration>,
    /// When that is to be expected, where the next backup is not late.
    gone_at: Option<Timestamp>,
}

/// When a copy was made, for its place among the others: a time in the future was set by somebody.
fn sort_time(file: &CopyFile, now: Now) -> Timestamp {
    if is_ahead(file, now) { file.changed } else { file.modified }
}

fn is_ahead(file: &CopyFile, now: Now) -> bool {
    file.modified > now.wall + AHEAD_MAX
}

fn age(file: &CopyFile, now: Now) -> Duration {
    now.wall.since(sort_time(file, now))
}

/// Nobody has written it for a while.
fn is_old(file: &CopyFile, now: Now) -> bool {
    now.wall.since(sort_time(file, now).max(file.changed)) >= SETTLED_AFTER
}

fn is_less(now: u64, before: u64, percent: u64) -> bool {
    u128::from(now) * 100 < u128::from(before) * u128::from(percent)
}

/// Whether a copy is much less than the last good one before it.
fn loss(rules: &Rules, good: &Known, file: &CopyFile, content: &Content) -> Option<Loss> {
    let before = good.content.as_ref()?;
    let less = |now: u64, before: u64| is_less(now, before, rules.min_percent);
    let found = |what: String, grade, empty| {
        let mut lost_tables: Vec<String> = Vec::new();
        if content.row_count.is_some() {
            let gone = before
                .tables
                .iter()
                .filter(|(name, rows)| **rows > 0 && content.tables.get(*name).is_none_or(|now| *now == 0));
            lost_tables = gone.map(|(name, rows)| format!("{name} ({rows} rows)")).collect();
        }
        Loss {
            what,
            grade,
            empty,
            before_path: good.file.path.clone(),
            before_bytes: good.file.size_bytes,
            before_rows: before.row_count,
            now_rows: content.row_count,
            lost_tables,
            source_before_bytes: good.source_bytes,
        }
    };
    let (size, size_before) = (file.size_bytes, good.file.size_bytes);
    if size == 0 {
        return (size_before > 0).then(|| found("is empty (0 bytes)".to_owned(), Grade::Confirmed, true));
    }
    if content.holds_nothing {
        let what = format!("holds nothing ({} of {})", content.kind, human_bytes(size));
        return Some(found(what, Grade::Confirmed, true));
    }
    if content.damage.is_some() {
        return None;
    }
    if content.table_count == Some(0) && before.table_count.is_some_and(|tables| tables > 0) {
        return Some(found("is a database without any table".to_owned(), Grade::Confirmed, true));
    }
    if let (Some(rows), Some(rows_before)) = (content.row_count, before.row_count) {
        // Rows tell more than bytes: a VACUUM makes the file smaller and loses none.
        let lost = less(rows, rows_before) && rows_before - rows >= LOST_ROWS_MIN;
        let what = || format!("holds {rows} rows where the last good copy held {rows_before}");
        return lost.then(|| found(what(), if rows == 0 { Grade::Confirmed } else { Grade::Likely }, rows == 0));
    }
    if less(size, size_before) && size_before - size >= LOST_BYTES_MIN {
        let grade = if size < size_before / 10 { Grade::Likely } else { Grade::Possible };
        let what = format!("has {} where the last good copy had {}", human_bytes(size), human_bytes(size_before));
        return Some(found(what, grade, false));
    }
    None
}

/// Whether the new size is meant: it has been the same for many copies in a row, all of them whole.
fn accepted(rules: &Rules, earlier: &[Known], loss: &Loss, known: &Known) -> bool {
    let alike = |other: &&Known| {
        let (small, large) = if other.file.size_bytes < known.file.size_bytes {
            (other.file.size_bytes, known.file.size_bytes)
        } else {
            (known.file.size_bytes, other.file.size_bytes)
        };
        let similar = u128::from(small) * 100 >= u128::from(large) * u128::from(rules.min_percent);
        similar && other.verdict == Verdict::Shrunk && other.loss.as_ref().is_some_and(|loss| !loss.empty)
    };
    !loss.empty && earlier.iter().rev().take_while(alike).count() + 1 >= ACCEPTED_AFTER
}

#[cfg(test)]
mod tests;
