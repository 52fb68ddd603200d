//! Follows one log, a file or a part of the journal, and tells what its lines mean.
//!
//! Must never read more in one run than its bound: a log that is written faster than it is read falls behind, and that
//! is told.

mod file;
pub(crate) mod journal;
mod siblings;
#[cfg(test)]
mod tests;

use super::HostRoot;
use crate::clock::boot_id;
use crate::probe::{Context, Lane, Probe, Remembered};
use file::{FilePass, FileState, Follower};
use journal::{JournalFollower, JournalPass, JournalState, Match};
use muster_agent_core::judgement::{Judgement, Problem, Unknown};
use muster_agent_core::log::{Entry, Rule, RuleSet, Told, Windows, observed_boottime_ms, occurrence, user_space_kill};
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError};

/// Evidence of a line that does not tell when it was written: then its file was written last at the time that is told.
pub(crate) const UNDATED_KEY: &str = "undated";

/// What a one-shot diagnosis reports of a log.
const LOOK_BACK_MS: u64 = 24 * 3600 * 1000;

/// Rules that several logs share, compiled when the first line comes.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    set: OnceLock<Result<RuleSet, String>>,
}

impl Rules {
    /// Rules in the order in which they are asked.
    pub const fn new(rules: Vec<Rule>) -> Self {
        Self { rules, set: OnceLock::new() }
    }

    fn set(&self) -> Result<&RuleSet, &String> {
        self.set.get_or_init(|| RuleSet::new(self.rules.clone())).as_ref()
    }
}

/// Where lines come from.
#[derive(Debug)]
enum Input {
    File(Follower),
    Journal(JournalFollower),
}

/// Watches one log.
#[derive(Debug)]
pub struct LogProbe {
    subject: SubjectKey,
    root: HostRoot,
    /// For people: a path, or `journal:UNIT`.
    source: String,
    input: Input,
    rules: Arc<Rules>,
    as_text: bool,
    windows: Windows,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Counts {
    lines: u64,
    matched_lines: u64,
    cut_lines: u64,
    rotations: u64,
    lost_files: u64,
    skipped_bytes: u64,
}

/// What survives a restart.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// Windows are measured by the clock of this boot.
    #[serde(default)]
    boot: Option<BootId>,
    file: Option<FileState>,
    journal: Option<JournalState>,
    windows: Windows,
    counts: Counts,
}

impl LogProbe {
    /// Follows the file, or the files that fit the pattern, at `path` (absolute, as the host knows it).
    pub fn of_file(service: ServiceName, path: &Path, as_text: bool, rules: Arc<Rules>, root: &HostRoot) -> Self {
        let source = path.to_string_lossy().into_owned();
        Self::new(service, source, Input::File(Follower::new(root.path(path))), as_text, (rules, root))
    }

    /// Follows what a unit writes to the journal, and what systemd writes about it.
    pub fn of_unit(service: ServiceName, unit: &str, as_text: bool, rules: Arc<Rules>, root: &HostRoot) -> Self {
        let matches = vec![Match::written_by(unit), Match::about(unit)];
        let input = Input::Journal(JournalFollower::new(root.clone(), matches));
        Self::new(service, format!("journal:{unit}"), input, as_text, (rules, root))
    }

    /// Follows what the user-space OOM killers of the host write to the journal.
    pub fn of_killers(rules: Arc<Rules>, root: &HostRoot) -> Self {
        let mut units: Vec<&String> = rules.rules.iter().flat_map(|rule| &rule.from).collect();
        units.sort();
        units.dedup();
        let matches = units.into_iter().map(|unit| Match::written_by(unit)).collect();
        let input = Input::Journal(JournalFollower::new(root.clone(), matches));
        Self::new(ServiceName::host(), "journal of user-space OOM killers".to_owned(), input, true, (rules, root))
    }

    fn new(
        service: ServiceName,
        source: String,
        input: Input,
        as_text: bool,
        (rules, root): (Arc<Rules>, &HostRoot),
    ) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Log, &source);
        let (windows, counts) = (Windows::default(), Counts::default());
        Self { subject, root: root.clone(), source, input, rules, as_text, windows, counts }
    }

    /// Reads what is new into the windows.
    fn read(&mut self, context: &Context) -> (Evidence, Option<Unknown>) {
        let Self { input, rules, windows, counts, subject, as_text, .. } = self;
        let now = context.now;
        let look_back_ms = i64::try_from(LOOK_BACK_MS).unwrap_or(i64::MAX);
        let oldest_unix_ms = if context.one_shot { now.wall.unix_ms() - look_back_ms } else { i64::MIN };
        let mut broken = None;
        let mut take = |line: &[u8], unix_ms: Option<i64>, until: Option<i64>, by: (Option<&str>, Option<u8>)| {
            let (unit, priority) = by;
            counts.lines = counts.lines.saturating_add(1);
            let set = match rules.set() {
                Ok(set) => set,
                Err(why) => {
                    broken = Some(format!("the rules for logs cannot be used: {why}"));
                    return;
                }
            };
            let text = String::from_utf8_lossy(line);
            let entry = match unix_ms {
                Some(_) => Entry::message(&text, unix_ms).with_priority(priority),
                None if *as_text => Entry::text(&text),
                None => Entry::parse(&text),
            };
            let Some(hit) = set.hit(&entry, subject.service.as_str(), unit) else { return };
            if entry.unix_ms.is_some_and(|written| written < oldest_unix_ms) {
                return;
            }
            let observed_ms = observed_boottime_ms(entry.unix_ms.or(until), now);
            counts.matched_lines = counts.matched_lines.saturating_add(1);
            let sample = hit.sample(&entry, observed_ms);
            let group = hit.group(&sample);
            windows.note(&hit.rule().name, &group, now, || sample);
        };
        let (seen, unreadable) = match input {
            Input::File(follower) => {
                let mut cut_lines = 0u64;
                let since = context.one_shot.then_some(oldest_unix_ms / 1000);
                let pass = follower.pass(now.boottime_ms, since, &mut |line, about| {
                    cut_lines += u64::from(about.cut);
                    // The daemon reads a line as it is written; what looks once reads what stood there for hours.
                    take(line, None, context.one_shot.then_some(about.until_unix_ms), (None, None));
                });
                counts.cut_lines = counts.cut_lines.saturating_add(cut_lines);
                counts.rotations = counts.rotations.saturating_add(pass.rotations);
                counts.lost_files = counts.lost_files.saturating_add(pass.lost_files);
                counts.skipped_bytes = counts.skipped_bytes.saturating_add(pass.skipped_bytes);
                (of_files(&pass, counts), pass.unreadable)
            }
            Input::Journal(follower) => {
                let pass = follower.pass(now.wall.unix_ms(), context.one_shot, &mut |line| {
                    take(line.message, Some(line.unix_ms), None, (line.unit.as_deref(), line.priority));
                });
                (of_journal(&pass), pass.unreadable)
            }
        };
        let seen = seen.count("lines", self.counts.lines).count("matched_lines", self.counts.matched_lines);
        let unreadable = unreadable.or_else(|| broken.map(|why| (why, None)));
        (seen, unreadable.map(|(why, way_out)| Unknown::new(why, way_out)))
    }

    fn tell(&self, told: &Told, context: &Context) -> Option<Problem> {
        let rule = self.rules.rules.iter().find(|rule| rule.name == told.rule)?;
        let mut problem = match &rule.killer {
            Some(killer) => {
                let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
                let source = match &self.input {
                    Input::File(_) => self.source.clone(),
                    Input::Journal(_) => format!("journal:{killer}"),
                };
                user_space_kill(rule, killer, &source, told, &services)
            }
            None => occurrence(rule, &self.source, told),
        };
        if context.one_shot && told.first.undated {
            problem.evidence.insert(UNDATED_KEY, Value::Flag(true));
        }
        Some(problem)
    }
}

impl Probe for LogProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let (seen, unknown) = self.read(context);
        let told = self.windows.take(context.now, context.one_shot);
        let occurrences = told.iter().filter_map(|told| self.tell(told, context)).collect();
        Judgement { problems: Vec::new(), unknown, occurrences, seen }
    }

    fn save(&self) -> Option<Remembered> {
        let (file, journal) = match &self.input {
            Input::File(follower) => (Some(follower.state().clone()), None),
            Input::Journal(follower) => (None, Some(follower.state().clone())),
        };
        let boot = Some(boot_id(&self.root));
        Remembered::of(Saved { boot, file, journal, windows: self.windows.clone(), counts: self.counts })
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok(saved) = saved.read::<Saved>() else { return };
        match (&mut self.input, saved.file, saved.journal) {
            (Input::File(follower), Some(state), _) => follower.restore(state),
            (Input::Journal(follower), _, Some(state)) => follower.restore(state),
            _ => return,
        }
        (self.windows, self.counts) = (saved.windows, saved.counts);
        if saved.boot.is_none_or(|boot| boot.0.is_nil() || boot != boot_id(&self.root)) {
            self.windows.rebooted();
            if let Input::File(follower) = &mut self.input {
                follower.rebooted();
            }
        }
    }
}

fn of_files(pass: &FilePass, counts: &Counts) -> Evidence {
    let mut seen = Evidence::new()
        .count("files", pass.files)
        .bytes("read_bytes", pass.bytes)
        .bytes("backlog_bytes", pass.backlog_bytes)
        .count("rotations", counts.rotations);
    for (key, count) in [
        ("cut_lines", counts.cut_lines),
        ("rotated_files_not_read_to_their_end", counts.lost_files),
        ("files_beyond_the_bound", pass.too_many_files),
    ] {
        if count > 0 {
            seen = seen.count(key, count);
        }
    }
    if counts.skipped_bytes > 0 {
        seen = seen.bytes("skipped_bytes", counts.skipped_bytes);
    }
    seen
}

fn of_journal(pass: &JournalPass) -> Evidence {
    let seen = Evidence::new().count("files", pass.files).count("read_entries", pass.entries);
    let seen = seen.count("backlog_entries", pass.backlog_entries);
    match pass.unreadable_fields {
        0 => seen,
        fields => seen.count("fields_not_unpacked", fields),
    }
}
