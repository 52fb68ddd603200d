//! Sets of copies over days, as data: each day's files in, what is told out.

use super::*;
use muster_common::evidence::Value;
use muster_common::reason::Reason;
use muster_common::severity::Severity;

const DAY: u64 = 86_400;
/// 2026-11-01, so that nothing is before the epoch.
const START_S: u64 = 1_793_500_000;

fn now(day: u64) -> Now {
    let seconds = START_S + day * DAY + 3_600;
    Now { boottime_ms: (day + 1) * DAY * 1000, wall: Timestamp::from_unix_ms(i64::try_from(seconds * 1000).unwrap()) }
}

fn at(day: u64) -> Timestamp {
    Timestamp::from_unix_ms(i64::try_from((START_S + day * DAY) * 1000).unwrap())
}

fn rules(pattern: &str) -> Rules {
    Rules {
        pattern: pattern.to_owned(),
        fixed: !pattern.contains('*'),
        source: Some("/var/lib/hub.db".to_owned()),
        max_age: Some(Duration::from_secs(26 * 3600)),
        min_percent: 50,
        min_percent_over_time: 75,
        min_bytes: 0,
        keep: None,
    }
}

/// A copy made on a day; its inode is the day, so that a rename keeps it.
fn copy(path: &str, day: u64, size_bytes: u64) -> CopyFile {
    CopyFile { path: path.to_owned(), inode: day, size_bytes, modified: at(day), changed: at(day) }
}

fn database(rows: u64) -> Content {
    Content {
        kind: "SQLite database".to_owned(),
        checked: "quick_check".to_owned(),
        deep: true,
        page_count: Some(100),
        schema: Some(1),
        table_count: Some(1),
        row_count: Some(rows),
        tables: BTreeMap::from([("jobs".to_owned(), rows)]),
        ..Content::default()
    }
}

fn damaged() -> Content {
    Content { damage: Some("row 3 missing from index i".to_owned()), row_count: None, ..database(0) }
}

fn file_of(_size: u64) -> Content {
    Content { kind: "file".to_owned(), checked: "size".to_owned(), deep: true, ..Content::default() }
}

/// The world: a judge, and what is in each copy.
struct World {
    judge: BackupJudge,
    rules: Rules,
    contents: BTreeMap<(u64, u64), Content>,
    source: Source,
}

impl World {
    fn new(pattern: &str) -> Self {
        let source = Source::Bytes(1_000_000);
        Self { judge: BackupJudge::default(), rules: rules(pattern), contents: BTreeMap::new(), source }
    }

    fn holds(&mut self, file: &CopyFile, content: Content) {
        self.contents.insert((file.inode, file.size_bytes), content);
    }

    fn run(&mut self, day: u64, files: &[CopyFile]) -> Judgement {
        let listing = Listing {
            files: Ok(files.to_vec()),
            beyond: 0,
            unfinished: 0,
            missing_folder: None,
            source: Some(self.source.clone()),
        };
        self.judge.note(listing, now(day));
        for (file, _) in self.judge.wants() {
            let content = self.contents.get(&(file.inode, file.size_bytes)).cloned().unwrap_or_else(|| database(1000));
            self.judge.learn(&file, content);
        }
        // Every day the agent is restarted as well: nothing may be lost by that.
        let listed = self.judge.listed.clone();
        let saved = serde_json::to_string(&self.judge).unwrap();
        self.judge = serde_json::from_str(&saved).unwrap();
        self.judge.listed = listed;
        self.judge.judge(&self.rules, now(day), false)
    }
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

#[test]
fn a_fixed_name_that_is_overwritten_by_an_empty_file() {
    let mut world = World::new("/backup/hub.db");
    assert_eq!(reasons(&world.run(0, &[copy("/backup/hub.db", 0, 100_000)])), []);
    assert_eq!(reasons(&world.run(1, &[copy("/backup/hub.db", 1, 101_000)])), []);
    world.source = Source::Bytes(0);
    let empty = copy("/backup/hub.db", 2, 0);
    world.holds(&empty, file_of(0));
    let told = world.run(2, std::slice::from_ref(&empty));
    assert_eq!(reasons(&told), [Reason::BackupShrunk]);
    let problem = &told.problems[0];
    assert_eq!((problem.severity, problem.grade), (Some(Severity::Sev1), Grade::Confirmed));
    assert!(problem.summary.contains("overwrote a good one: it is empty"), "{}", problem.summary);
    assert!(problem.summary.contains("no good copy is left"), "{}", problem.summary);
    assert!(problem.summary.contains("/var/lib/hub.db is itself empty"), "{}", problem.summary);
    assert_eq!(problem.evidence.get("source_state"), Some(&Value::Text("empty".into())));
    assert_eq!(problem.evidence.get("source_path"), Some(&Value::Text("/var/lib/hub.db".into())));
    assert_eq!(problem.evidence.get("last_good_bytes"), Some(&Value::Bytes(101_000)));
    // Its absence is no recovery, and neither is a damaged successor.
    assert_eq!(reasons(&world.run(2, &[])), [Reason::BackupMissing]);
    let bad = copy("/backup/hub.db", 3, 100_500);
    world.holds(&bad, damaged());
    assert_eq!(reasons(&world.run(3, &[bad])), [Reason::BackupCorrupt, Reason::BackupShrunk]);
    assert_eq!(reasons(&world.run(4, &[copy("/backup/hub.db", 4, 99_000)])), []);
}

#[test]
fn a_bad_copy_with_the_time_of_an_old_source_is_still_the_newest() {
    let mut world = World::new("/backup/hub.db");
    assert_eq!(reasons(&world.run(5, &[copy("/backup/hub.db", 5, 100_000)])), []);
    // `rsync -a` of a source that somebody put back from before the last backup, empty.
    let mut old = copy("/backup/hub.db", 6, 0);
    old.modified = at(4);
    world.holds(&old, file_of(0));
    world.rules.max_age = None;
    let told = world.run(6, std::slice::from_ref(&old));
    assert_eq!(reasons(&told), [Reason::BackupShrunk], "{told:?}");
    assert!(told.problems[0].summary.contains("overwrote a good one: it is empty"), "{}", told.problems[0].summary);
    // And what follows it is newer again, whatever its time.
    let mut good = copy("/backup/hub.db", 7, 101_000);
    good.modified = at(3);
    assert_eq!(reasons(&world.run(7, std::slice::from_ref(&good))), []);
    assert_eq!(reasons(&world.run(8, &[good])), []);
}

#[test]
fn a_copy_that_cannot_be_read_is_neither_good_nor_bad() {
    let mut world = World::new("/backup/hub.*.bak");
    let (first, closed) = (copy("/backup/hub.1.bak", 1, 100_000), copy("/backup/hub.2.bak", 2, 100_100));
    assert_eq!(reasons(&world.run(1, std::slice::from_ref(&first))), []);
    let not_checked = Some("its content: the agent may not read it".to_owned());
    let unread = Content { kind: "file".to_owned(), not_checked, unread: true, ..Content::default() };
    world.holds(&closed, unread);
    let told = world.run(2, &[first.clone(), closed.clone()]);
    assert!(told.problems.is_empty(), "{told:?}");
    assert!(told.unknown.as_ref().is_some_and(|unknown| unknown.why.contains("may not read it")), "{told:?}");
    assert_eq!(told.seen.get("good_copies"), Some(&Value::Count(1)));
    world.holds(&closed, database(1000));
    let told = world.run(2, &[first.clone(), closed.clone()]);
    assert!(told.problems.is_empty() && told.unknown.is_none(), "{told:?}");
    // One that lost most of its size has shrunk, whoever may read it.
    let small = copy("/backup/hub.3.bak", 3, 2_000);
    world.holds(&small, Content { not_checked: Some("x".to_owned()), unread: true, ..Content::default() });
    assert_eq!(reasons(&world.run(3, &[first, closed, small])), [Reason::BackupShrunk]);
}

/// `.1` is the newest; the oldest of three is removed.
fn rotated(days: [u64; 3], sizes: [u64; 3]) -> Vec<CopyFile> {
    (0..3).map(|at| copy(&format!("/backup/hub.db.{}", at + 1), days[at], sizes[at])).collect()
}

#[test]
fn rotation_is_told_before_the_last_good_copy_is_gone() {
    let mut world = World::new("/backup/hub.db.*");
    assert_eq!(reasons(&world.run(3, &rotated([3, 2, 1], [100_000; 3]))), []);
    let empty = |day| copy("", day, 4096);
    for day in 4..7 {
        world.holds(&empty(day), Content { table_count: Some(0), row_count: Some(0), ..database(0) });
    }
    let first = world.run(4, &rotated([4, 3, 2], [4096, 100_000, 100_000]));
    assert_eq!(reasons(&first), [Reason::BackupShrunk]);
    let problem = &first.problems[0];
    assert!(problem.summary.contains("without any table"), "{}", problem.summary);
    // As moments: whoever reads it later reads the same.
    let left = format!("2 good copies are left, the newest /backup/hub.db.2 (97.6 KiB, of {});", at(3).to_utc_minute());
    assert!(problem.summary.contains(&left), "{}", problem.summary);
    let gone = format!("2 more backups remove the last one (at about {})", at(6).to_utc_minute());
    assert!(problem.summary.contains(&gone), "{}", problem.summary);
    assert_eq!(problem.evidence.get("last_good_gone_at"), Some(&Value::Time(at(6))));
    assert_eq!(problem.evidence.get("rotations_left"), Some(&Value::Count(2)));
    assert_eq!(problem.evidence.get("last_good_gone_in_ms"), Some(&Value::Millis(2 * DAY * 1000)));
    assert!(problem.summary.contains("the copying itself failed"), "{}", problem.summary);
    assert!(problem.next_steps[0].starts_with("stop the rotation now"));
    assert!(problem.next_steps[1].contains("cp -a --no-clobber /backup/hub.db.2 "), "{:?}", problem.next_steps);

    let second = world.run(5, &rotated([5, 4, 3], [4096, 4096, 100_000]));
    assert_eq!(second.problems[0].evidence.get("rotations_left"), Some(&Value::Count(1)));
    assert!(second.problems[0].summary.contains("the next backup removes the last one"));
    let third = world.run(6, &rotated([6, 5, 4], [4096; 3]));
    assert!(third.problems[0].summary.contains("no good copy is left"), "{}", third.problems[0].summary);
    let healed = world.run(7, &rotated([7, 6, 5], [100_000, 4096, 4096]));
    assert_eq!(reasons(&healed), []);
    assert_eq!(healed.seen.get("good_copies"), Some(&Value::Count(1)));
}

#[test]
fn timestamped_names_are_compared_in_the_order_of_time() {
    let mut world = World::new("/backup/hub.*.bak");
    let name = |day: u64| format!("/backup/hub.2026110{day}.bak");
    let mut files: Vec<CopyFile> = (1..4).map(|day| copy(&name(day), day, 100_000)).collect();
    assert_eq!(reasons(&world.run(3, &files)), []);
    let purged = copy(&name(4), 4, 100_000);
    world.holds(&purged, database(100));
    files.push(purged);
    let told = world.run(4, &files);
    assert_eq!(reasons(&told), [Reason::BackupShrunk]);
    let problem = &told.problems[0];
    assert_eq!(problem.grade, Grade::Likely, "a purge looks the same");
    assert!(problem.summary.contains("holds 100 rows where the last good copy held 1000"), "{}", problem.summary);
    assert!(problem.next_steps.iter().any(|step| step.contains("min_percent")));
}

#[test]
fn a_vacuum_is_no_loss_and_a_purge_is_accepted_in_the_end() {
    let mut world = World::new("/backup/hub.*.bak");
    let name = |day: u64| format!("/backup/hub.{day}.bak");
    assert_eq!(reasons(&world.run(1, &[copy(&name(1), 1, 100_000)])), []);
    assert_eq!(reasons(&world.run(2, &[copy(&name(2), 2, 20_000)])), [], "as many rows in fewer pages");
    for day in 3..9 {
        let small = copy(&name(day), day, 8_192);
        world.holds(&small, database(100));
        assert_eq!(reasons(&world.run(day, &[small])), [Reason::BackupShrunk], "{day}");
    }
    let small = copy(&name(9), 9, 8_192);
    world.holds(&small, database(100));
    assert_eq!(reasons(&world.run(9, &[small])), [], "the seventh of that size");
}

#[test]
fn without_rows_the_size_tells_with_less_certainty() {
    for (size, grade, severity) in [(40_000, Grade::Possible, Severity::Sev3), (2_000, Grade::Likely, Severity::Sev2)] {
        let mut world = World::new("/backup/hub.*.gz");
        let (before, after) = (copy("/backup/hub.1.gz", 1, 100_000), copy("/backup/hub.2.gz", 2, size));
        world.holds(&before, file_of(0));
        world.holds(&after, file_of(0));
        // Both at once: the first look has no history but what lies there.
        let told = world.run(2, &[before, after]);
        assert_eq!(reasons(&told), [Reason::BackupShrunk]);
        assert_eq!((told.problems[0].grade, told.problems[0].severity), (grade, Some(severity)));
    }
}

/// What is told of a day, if anything.
type Told = Option<(Reason, Option<Severity>)>;

/// One copy a day with so many rows, or bytes where `by_rows` is false; of each day the reasons and the severity.
fn days(amounts: &[u64], by_rows: bool) -> (World, Vec<Told>) {
    let mut world = World::new("/backup/hub.*.bak");
    let told = (1u64..).zip(amounts).map(|(day, amount)| {
        let size = if by_rows { 100_000 } else { *amount };
        let file = copy(&format!("/backup/hub.{day}.bak"), day, size);
        world.holds(&file, if by_rows { database(*amount) } else { file_of(size) });
        let judgement = world.run(day, &[file]);
        assert!(judgement.problems.len() < 2, "{judgement:?}");
        judgement.problems.first().map(|problem| (problem.reason, problem.severity))
    });
    let told = told.collect();
    (world, told)
}

#[test]
fn copies_that_shrink_little_by_little_are_told_until_they_keep_a_size() {
    for by_rows in [true, false] {
        let shrinking = [100, 95, 90, 85, 80, 75, 70].map(|percent| percent * 1_000);
        let (mut world, told) = days(&shrinking, by_rows);
        let slow = Some((Reason::BackupShrunk, Some(Severity::Sev4)));
        assert_eq!(told, [None, None, None, None, None, None, slow], "by rows: {by_rows}");
        // The same again and again is what somebody wants.
        let mut since = Vec::new();
        for day in 8..15 {
            let size = if by_rows { 60_000 } else { 70_000 };
            let file = copy(&format!("/backup/hub.{day}.bak"), day, size);
            world.holds(&file, if by_rows { database(70_000) } else { file_of(size) });
            let judgement = world.run(day, &[file]);
            if let Some(problem) = judgement.problems.first() {
                assert_eq!(problem.grade, Grade::Possible);
                let what = if by_rows { "70000 rows (70 %) of the 100000 rows" } else { "(70 %) of the " };
                assert!(problem.summary.contains(what), "{}", problem.summary);
                assert!(problem.evidence.get("largest").is_some(), "{problem:?}");
            }
            since.push(judgement.problems.len());
        }
        assert_eq!(since, [1, 1, 1, 1, 1, 0, 0], "by rows: {by_rows}");
    }
}

#[test]
fn what_is_meant_or_a_moment_is_no_slow_shrinking() {
    let flat = |amounts: &[u64]| days(&amounts.iter().map(|n| n * 1_000).collect::<Vec<_>>(), true).1;
    // A purge in one step; one a week while it grows; a VACUUM changes no rows; growth; a wobble.
    for amounts in [
        &[100, 60, 61, 62, 61, 60, 60, 60][..],
        &[100, 70, 75, 80, 85, 90, 95, 100, 70, 75, 80, 85][..],
        &[100, 100, 100, 100][..],
        &[10, 40, 70, 100, 130][..],
        &[100, 92, 104, 90, 101, 88, 99, 94, 103][..],
    ] {
        assert!(flat(amounts).iter().all(Option::is_none), "{amounts:?}: {:?}", flat(amounts));
    }
    // An old level is forgotten with its copies, and a switch turns it off.
    let slow = flat(&[100, 90, 80, 70]);
    assert!(slow.last().is_some_and(Option::is_some), "{slow:?}");
    let (mut world, _) = days(&[100_000, 90_000, 80_000, 70_000], true);
    world.rules.min_percent_over_time = 0;
    assert_eq!(reasons(&world.run(4, &[copy("/backup/hub.4.bak", 4, 100_000)])), []);
}

#[test]
fn what_is_being_written_is_neither_newest_nor_corrupt() {
    let mut world = World::new("/backup/hub.*.bak");
    let old = copy("/backup/hub.1.bak", 1, 100_000);
    world.run(1, std::slice::from_ref(&old));
    let mut writing = copy("/backup/hub.2.bak", 2, 500);
    writing.modified = now(2).wall;
    writing.changed = now(2).wall;
    world.holds(&writing, damaged());
    let files = [old.clone(), writing.clone()];
    let told = world.run(2, &files);
    assert_eq!(reasons(&told), [], "{told:?}");
    assert_eq!(told.seen.get("being_written"), Some(&Value::Count(1)));
    assert_eq!(told.seen.get("newest"), Some(&Value::Text("/backup/hub.1.bak".into())));
    // It stays as it is: that was all.
    assert_eq!(reasons(&world.run(2, &files)), [Reason::BackupCorrupt]);
}

#[test]
fn stale_missing_and_too_few() {
    let mut world = World::new("/backup/hub.*.bak");
    let none = world.run(0, &[]);
    assert_eq!(reasons(&none), [Reason::BackupMissing]);
    let first = copy("/backup/hub.1.bak", 1, 100_000);
    assert_eq!(reasons(&world.run(1, std::slice::from_ref(&first))), []);
    let stale = world.run(3, std::slice::from_ref(&first));
    assert_eq!(reasons(&stale), [Reason::BackupStale]);
    assert!(stale.problems[0].summary.contains(", is 2 d 1 h old (at most 26 h is allowed)"), "{stale:?}");
    // A time in the future was set by somebody: the age goes by the change of the inode.
    let mut ahead = copy("/backup/hub.2.bak", 9, 100_000);
    ahead.changed = at(2);
    let told = world.run(4, &[first.clone(), ahead]);
    assert_eq!(reasons(&told), [Reason::BackupStale], "{told:?}");
    assert!(told.seen.get("newest_time").is_some());
    world.rules.keep = Some(2);
    let fresh = copy("/backup/hub.3.bak", 4, 100_000);
    assert_eq!(reasons(&world.run(4, &[first, fresh.clone()])), []);
    assert_eq!(reasons(&world.run(4, &[fresh])), [Reason::BackupMissing]);
    let gone = world.run(4, &[]);
    assert!(gone.problems[0].summary.contains("the last good copy was /backup/hub.3.bak"), "{gone:?}");
}

#[test]
fn a_source_that_shrank_is_named_as_the_cause() {
    let mut world = World::new("/backup/hub.db");
    world.run(1, &[copy("/backup/hub.db", 1, 900_000)]);
    world.source = Source::Bytes(8_192);
    let small = copy("/backup/hub.db", 2, 8_192);
    world.holds(&small, database(3));
    let told = world.run(2, &[small]);
    assert_eq!(told.problems[0].evidence.get("source_state"), Some(&Value::Text("shrunk".into())), "{told:?}");
    assert_eq!(told.problems[0].evidence.get("source_before_bytes"), Some(&Value::Bytes(1_000_000)));
    assert!(told.problems[0].summary.contains("is itself smaller (8 KiB where it had 976 KiB)"), "{told:?}");
}

#[test]
fn a_folder_that_cannot_be_read_is_unknown() {
    let mut judge = BackupJudge::default();
    let files = Err(("/backup cannot be read".to_owned(), Some("let the agent in")));
    judge.note(Listing { files, beyond: 0, unfinished: 0, missing_folder: None, source: None }, now(1));
    let told = judge.judge(&rules("/backup/*"), now(1), true);
    assert!(told.problems.is_empty() && told.unknown.is_some());
}

#[test]
fn names_from_the_disk_cannot_break_a_sentence_or_a_command() {
    let mut world = World::new("/backup/*");
    let odd = "/backup/a\u{1b}[2J'b\nc";
    let bad = copy(odd, 2, 100_000);
    world.holds(&bad, damaged());
    let told = world.run(2, &[copy("/backup/it's good", 1, 100_000), bad]);
    let problem = &told.problems[0];
    assert!(!problem.summary.contains('\u{1b}') && !problem.summary.contains('\n'));
    assert!(problem.next_steps.iter().any(|step| step.contains(r"'/backup/it'\''s good'")), "{problem:?}");
}
