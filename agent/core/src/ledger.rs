//! The open conditions of this host: turns judgements over time into finding events, with hysteresis.
//!
//! A condition opens after enough consecutive sightings and clears only by enough consecutive runs that saw evidence of
//! health; unknown does neither. A number that moves is no news. The ledger is saved and restored across restarts, so
//! that a restart neither re-opens what is known nor forgets it.
//!
//! Must never clear because something was not seen: absence is not recovery (law 6).

mod hysteresis;
mod loops;

use crate::clock::Now;
use crate::judgement::{Judgement, Problem, Unknown, Verdict};
use crate::news;
use hysteresis::{hides, runs_to_clear, sightings_to_open};
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{Finding, FindingEvent, ProbeKind, SubjectKey, open_digest};
use muster_common::ids::ServiceName;
use muster_common::limits::OPEN_FINDINGS_PER_AGENT_MAX;
use muster_common::reason::Reason;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

/// A probe that has answered nothing for this long is itself a finding.
pub const BLIND_AFTER_DEFAULT: Duration = Duration::from_secs(600);
/// Occurrences told per (subject, reason) in one window: a group kill of a hundred victims is still told one by one.
const OCCURRENCES_PER_WINDOW_MAX: u64 = 100;
/// The window of that bound.
const OCCURRENCE_WINDOW_MS: u64 = 60_000;
/// Updates told at once (an exit code that follows, a cause that is found) before the bound by runs sets in.
const UPDATE_TOKENS_MAX: u32 = 3;
/// One more update is allowed after this many runs: a minute at the usual five seconds.
const RUNS_PER_UPDATE_TOKEN: u32 = 12;
/// A change of mere numbers is told after this many runs: an hour at the usual five seconds.
const RUNS_BEFORE_NUMBERS: u32 = 720;

/// What the agent knows to be wrong, and the last verdict on each subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Saved", into = "Saved")]
pub struct Ledger {
    watched: BTreeMap<SubjectKey, Watched>,
    open_count: usize,
    suppressed_count: usize,
    suppressed_total: u64,
    /// That there are more conditions than are told is an open condition itself.
    limit_open: bool,
    blind_after: Duration,
}

/// One thing to tell, and when it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub event: FindingEvent,
    /// `CLOCK_BOOTTIME` of what happened: earlier than the run for an occurrence read from the kernel's log.
    pub observed_boottime_ms: u64,
}

/// One subject as a resync tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectState<'a> {
    /// Which.
    pub subject: &'a SubjectKey,
    /// The last verdict.
    pub verdict: Verdict,
    /// Open conditions; may stay open while the verdict is unknown.
    pub open: Vec<&'a Finding>,
}

/// All that is known about one subject, to be saved and restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    verdict: Verdict,
    unknown: Option<Unknown>,
    unknown_since_boottime_ms: Option<u64>,
    conditions: BTreeMap<Reason, Condition>,
    rates: BTreeMap<Reason, Rate>,
    /// Ends that were told one by one in the loop that is open now, see [`loops`].
    #[serde(default)]
    loop_ends_told: u32,
    /// The same of restarts.
    #[serde(default)]
    loop_restarts_told: u32,
}

/// A condition seen at least once and not yet cleared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Condition {
    /// As last told when open, as last seen before.
    finding: Finding,
    open: bool,
    suppressed: bool,
    sick_runs: u32,
    /// `CLOCK_BOOTTIME` of the first sighting.
    #[serde(default)]
    sick_since_ms: u64,
    /// `CLOCK_BOOTTIME` of the last life of a loop that it was told of while it stayed open.
    #[serde(default)]
    life_told_ms: u64,
    healthy_runs: u32,
    update_tokens: u32,
    runs_since_told: u32,
}

/// How many occurrences of one reason were told lately.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Rate {
    window_boottime_ms: u64,
    told: u64,
    suppressed: u64,
    /// The last one held back and when it happened; told when the window ends, so that the count is not lost.
    held: Option<(Finding, u64)>,
}

/// JSON has no maps with structured keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Saved {
    watched: Vec<(SubjectKey, Watched)>,
    suppressed_total: u64,
}

impl From<Saved> for Ledger {
    fn from(saved: Saved) -> Self {
        let mut ledger = Self { suppressed_total: saved.suppressed_total, ..Self::default() };
        ledger.watched = saved.watched.into_iter().collect();
        ledger.count();
        ledger
    }
}

impl From<Ledger> for Saved {
    fn from(ledger: Ledger) -> Self {
        Self { watched: ledger.watched.into_iter().collect(), suppressed_total: ledger.suppressed_total }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            watched: BTreeMap::new(),
            open_count: 0,
            suppressed_count: 0,
            suppressed_total: 0,
            limit_open: false,
            blind_after: BLIND_AFTER_DEFAULT,
        }
    }
}

impl Ledger {
    /// Sets how long a probe may stay unknown before that is a finding; not saved, as it comes from the config.
    pub const fn set_blind_after(&mut self, blind_after: Duration) {
        self.blind_after = blind_after;
    }

    /// The ledger that was saved subject by subject.
    pub fn restored(suppressed_total: u64, watched: impl IntoIterator<Item = (SubjectKey, Watched)>) -> Self {
        Saved { watched: watched.into_iter().collect(), suppressed_total }.into()
    }

    /// What is known about one subject.
    pub fn watched(&self, subject: &SubjectKey) -> Option<&Watched> {
        self.watched.get(subject)
    }

    /// The subjects about which a run on `subject` may change what is known.
    pub fn touched_by(subject: &SubjectKey) -> [SubjectKey; 3] {
        [subject.clone(), blind_subject(subject), limit_subject()]
    }

    /// Takes over what `other` knows about `subjects`: afterwards both know the same, if they differed in these alone.
    pub fn copy_from<'a>(&mut self, other: &Self, subjects: impl IntoIterator<Item = &'a SubjectKey>) {
        for subject in subjects {
            match other.watched.get(subject) {
                Some(watched) => drop(self.watched.insert(subject.clone(), watched.clone())),
                None => drop(self.watched.remove(subject)),
            }
        }
        self.open_count = other.open_count;
        self.suppressed_count = other.suppressed_count;
        self.suppressed_total = other.suppressed_total;
        self.limit_open = other.limit_open;
    }

    /// The host was rebooted since the ledger was saved: what is measured by the boot-time clock starts anew.
    pub fn rebooted(&mut self) {
        for watched in self.watched.values_mut() {
            watched.unknown_since_boottime_ms = watched.unknown_since_boottime_ms.map(|_| 0);
            watched.rates.values_mut().for_each(|rate| rate.window_boottime_ms = 0);
            for condition in watched.conditions.values_mut() {
                condition.life_told_ms = 0;
                condition.sick_since_ms = if condition.open { condition.sick_since_ms } else { 0 };
            }
        }
    }

    /// True when [`Ledger::observe`] would change nothing and tell nothing: all was well with the subject when it was last
    /// looked at, nothing is held back, and all is well. That is nearly every run, so it is found out first.
    pub fn is_no_news(&self, subject: &SubjectKey, judgement: &Judgement) -> bool {
        judgement.occurrences.is_empty()
            && judgement.verdict() == Verdict::Ok
            && !self.limit_open
            && self.open_count + 1 < OPEN_FINDINGS_PER_AGENT_MAX
            && self.watched.get(subject).is_some_and(Watched::is_well)
    }

    /// Takes in the outcome of one run and says what changed.
    pub fn observe(&mut self, now: Now, subject: &SubjectKey, judgement: &Judgement) -> Vec<Change> {
        let mut changes = self.observe_occurrences(now, subject, judgement);
        let mut events = Vec::new();
        self.observe_conditions(now, subject, judgement, &mut events);
        self.observe_blindness(now, subject, judgement, &mut events);
        self.observe_suppression(now, &mut events);
        changes.extend(events.into_iter().map(|event| Change { event, observed_boottime_ms: now.boottime_ms }));
        changes
    }

    /// Forgets subjects that are no longer watched, and tells that their conditions are over for that reason.
    pub fn retain(&mut self, watched: &BTreeSet<SubjectKey>) -> Vec<FindingEvent> {
        let keep: BTreeSet<SubjectKey> =
            watched.iter().cloned().chain(watched.iter().map(blind_subject)).chain([limit_subject()]).collect();
        let gone: Vec<SubjectKey> = self.watched.keys().filter(|key| !keep.contains(key)).cloned().collect();
        let mut events = Vec::new();
        for subject in gone {
            let Some(state) = self.watched.remove(&subject) else { continue };
            for condition in state.conditions.into_values().filter(|condition| condition.open) {
                events.push(FindingEvent::Cleared {
                    key: condition.finding.key,
                    summary: "no longer watched: the agent's configuration changed".to_owned(),
                    evidence: Evidence::new().flag("no_longer_watched", true),
                });
            }
        }
        self.count();
        events
    }

    /// Digest of the open conditions, as heartbeats carry it.
    pub fn open_digest(&self) -> u64 {
        open_digest(self.open().map(|finding| &finding.key))
    }

    /// The open conditions.
    pub fn open(&self) -> impl Iterator<Item = &Finding> {
        self.watched.values().flat_map(Watched::open)
    }

    /// The last verdict on every subject, with its open conditions: the answer to a resync.
    pub fn subjects(&self) -> impl Iterator<Item = SubjectState<'_>> {
        self.watched.iter().map(state)
    }

    /// The same of one service alone.
    pub fn of_service(&self, service: &ServiceName) -> impl Iterator<Item = SubjectState<'_>> {
        let first = ProbeKind::ALL.iter().min().map(|probe| SubjectKey::new(service.clone(), *probe, ""));
        let from = first.map_or(Bound::Unbounded, Bound::Included);
        let service = service.clone();
        self.watched.range((from, Bound::Unbounded)).take_while(move |(key, _)| key.service == service).map(state)
    }

    /// Subjects that could not be answered at the last look, and why.
    pub fn unknown(&self) -> impl Iterator<Item = (&SubjectKey, &Unknown)> {
        self.watched.iter().filter_map(|(subject, watched)| Some((subject, watched.unknown.as_ref()?)))
    }

    /// Conditions that were true and never told because too many were open, over the ledger's life.
    pub const fn suppressed_total(&self) -> u64 {
        self.suppressed_total
    }

    fn observe_occurrences(&mut self, now: Now, subject: &SubjectKey, judgement: &Judgement) -> Vec<Change> {
        let in_loop = self.loop_of(subject, judgement).is_some();
        let watched = self.watched.entry(subject.clone()).or_default();
        let mut passed: Vec<(Finding, u64)> = watched.rates.values_mut().filter_map(|rate| rate.roll(now)).collect();
        for occurrence in &judgement.occurrences {
            if in_loop && watched.counts_for_loop(occurrence.reason) {
                continue;
            }
            let rate = watched.rates.entry(occurrence.reason).or_default();
            let observed = occurrence.observed_boottime_ms.unwrap_or(now.boottime_ms).min(now.boottime_ms);
            passed.extend(rate.pass(now, occurrence.finding(subject), observed));
        }
        let change =
            |(finding, observed_boottime_ms)| Change { event: FindingEvent::Occurred(finding), observed_boottime_ms };
        passed.into_iter().map(change).collect()
    }

    fn observe_conditions(
        &mut self,
        now: Now,
        subject: &SubjectKey,
        judgement: &Judgement,
        events: &mut Vec<FindingEvent>,
    ) {
        let mut open_count = self.open_count;
        let in_loop = self.loop_of(subject, judgement);
        let watched = self.watched.entry(subject.clone()).or_default();
        if in_loop.is_none() {
            (watched.loop_ends_told, watched.loop_restarts_told) = (0, 0);
        }
        let suppressed_before = watched.suppressed();
        watched.verdict = judgement.verdict();
        for problem in &judgement.problems {
            let finding = problem.finding(subject);
            let condition =
                watched.conditions.entry(problem.reason).or_insert_with(|| Condition::first_seen(finding.clone(), now));
            condition.sick_runs = condition.sick_runs.saturating_add(1);
            condition.healthy_runs = 0;
            let is_of_loop = in_loop.is_some_and(|severity| loops::is_of_loop(&finding, severity));
            if condition.open {
                events.extend(condition.update(finding, is_of_loop.then_some(now)));
                continue;
            }
            condition.finding = finding;
            if condition.sick_runs < sightings_to_open(problem.reason)
                || (is_of_loop && condition.is_folded(watched.loop_ends_told, now))
            {
                continue;
            }
            // The last place is kept for the finding that says so.
            if open_count + 1 >= OPEN_FINDINGS_PER_AGENT_MAX {
                if !condition.suppressed {
                    self.suppressed_total = self.suppressed_total.saturating_add(1);
                }
                condition.suppressed = true;
                continue;
            }
            open_count += 1;
            watched.loop_ends_told += u32::from(is_of_loop);
            events.push(condition.opened());
        }
        // Unknown clears nothing; nor does an answer that hides the question.
        let answered = judgement.unknown.is_none();
        let hidden = |reason| judgement.problems.iter().any(|problem| hides(problem, reason));
        watched.conditions.retain(|reason, condition| {
            if judgement.problems.iter().any(|problem| problem.reason == *reason) {
                return true;
            }
            if !answered || hidden(*reason) {
                return true;
            }
            condition.sick_runs = 0;
            condition.healthy_runs = condition.healthy_runs.saturating_add(1);
            if !condition.open {
                return false;
            }
            if condition.healthy_runs < runs_to_clear(*reason) {
                return true;
            }
            open_count = open_count.saturating_sub(1);
            events.push(FindingEvent::Cleared {
                key: condition.finding.key.clone(),
                summary: cleared_summary(*reason, condition.healthy_runs, judgement),
                evidence: judgement.seen.clone(),
            });
            false
        });
        self.open_count = open_count;
        self.suppressed_count = (self.suppressed_count + watched.suppressed()).saturating_sub(suppressed_before);
    }

    fn observe_blindness(
        &mut self,
        now: Now,
        subject: &SubjectKey,
        judgement: &Judgement,
        events: &mut Vec<FindingEvent>,
    ) {
        if subject.probe == ProbeKind::Agent {
            return;
        }
        let blind_after = self.blind_after;
        let watched = self.watched.entry(subject.clone()).or_default();
        watched.unknown.clone_from(&judgement.unknown);
        let about = blind_subject(subject);
        let unknown = judgement.unknown.as_ref().filter(|_| judgement.verdict() == Verdict::Unknown);
        if unknown.is_some_and(|unknown| unknown.told_elsewhere) {
            // Neither raises nor clears: a service that is merely stopped blinds nobody.
            watched.unknown_since_boottime_ms = None;
            return;
        }
        let Some(unknown) = unknown else {
            watched.unknown_since_boottime_ms = None;
            if self.watched.contains_key(&about) {
                let sees = Judgement::ok(Evidence::new().text("answered", judgement.verdict().as_str()));
                self.observe_conditions(now, &about, &sees, events);
            }
            return;
        };
        let since = *watched.unknown_since_boottime_ms.get_or_insert(now.boottime_ms);
        let blind = now.since(since);
        if blind < blind_after {
            return;
        }
        let steps = unknown.way_out.iter().cloned();
        let problem = Problem::new(Reason::ProbeBlind, format!("cannot answer for {}: {}", subject.probe, unknown.why))
            .evidence(
                Evidence::new()
                    .text("blind_probe", subject.probe.as_str())
                    .text("blind_subject", &subject.subject)
                    .text("why", &unknown.why)
                    .duration("blind_ms", blind),
            )
            .next_steps(steps);
        self.observe_conditions(now, &about, &Judgement::problem(problem), events);
    }

    /// Tells, as one finding in the place kept for it, that there are more conditions than are told.
    fn observe_suppression(&mut self, now: Now, events: &mut Vec<FindingEvent>) {
        let about = limit_subject();
        let told = self.watched.contains_key(&about);
        if !told && self.open_count + 1 < OPEN_FINDINGS_PER_AGENT_MAX {
            return;
        }
        let suppressed = self.suppressed_count;
        let judgement = if suppressed > 0 {
            let summary = format!("more than {} conditions are true at once; the rest is not told", self.open_count);
            Judgement::problem(
                Problem::new(Reason::ProbeBlind, summary).evidence(
                    Evidence::new().count("findings_suppressed", u64::try_from(suppressed).unwrap_or(u64::MAX)),
                ),
            )
        } else if told {
            Judgement::ok(Evidence::new().count("findings_suppressed", 0u64))
        } else {
            return;
        };
        // One below the bound for a moment, so that this one finds its place.
        let lowered = self.open_count.min(1);
        self.open_count -= lowered;
        self.observe_conditions(now, &about, &judgement, events);
        self.open_count += lowered;
        self.limit_open = self.watched.get(&about).is_some_and(|limit| !limit.conditions.is_empty());
    }

    fn count(&mut self) {
        self.open_count = self.open().count();
        self.suppressed_count = self.watched.values().map(Watched::suppressed).sum();
        self.limit_open = self.watched.get(&limit_subject()).is_some_and(|limit| !limit.conditions.is_empty());
    }
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            verdict: Verdict::Unknown,
            unknown: None,
            unknown_since_boottime_ms: None,
            conditions: BTreeMap::new(),
            rates: BTreeMap::new(),
            loop_ends_told: 0,
            loop_restarts_told: 0,
        }
    }
}

impl Watched {
    /// The last run was well, as the one before that opened or cleared anything, and no occurrence waits to be told.
    fn is_well(&self) -> bool {
        self.verdict == Verdict::Ok
            && self.unknown_since_boottime_ms.is_none()
            && self.conditions.is_empty()
            && self.rates.is_empty()
    }

    fn suppressed(&self) -> usize {
        self.conditions.values().filter(|condition| condition.suppressed).count()
    }

    fn open(&self) -> impl Iterator<Item = &Finding> {
        self.conditions.values().filter(|condition| condition.open).map(|condition| &condition.finding)
    }
}

impl Condition {
    const fn first_seen(finding: Finding, now: Now) -> Self {
        Self {
            finding,
            open: false,
            suppressed: false,
            sick_runs: 0,
            sick_since_ms: now.boottime_ms,
            life_told_ms: 0,
            healthy_runs: 0,
            update_tokens: UPDATE_TOKENS_MAX,
            runs_since_told: 0,
        }
    }

    fn opened(&mut self) -> FindingEvent {
        self.open = true;
        self.suppressed = false;
        self.runs_since_told = 0;
        FindingEvent::Opened(self.finding.clone())
    }

    /// Tells what really changed: severity at once, words within the tokens, numbers rarely, the lives of a loop as well.
    fn update(&mut self, seen: Finding, of_loop: Option<Now>) -> Option<FindingEvent> {
        self.runs_since_told = self.runs_since_told.saturating_add(1);
        if self.runs_since_told.is_multiple_of(RUNS_PER_UPDATE_TOKEN) {
            self.update_tokens = (self.update_tokens + 1).min(UPDATE_TOKENS_MAX);
        }
        if seen == self.finding {
            return None;
        }
        let graver_or_milder = seen.severity != self.finding.severity;
        if of_loop.filter(|_| !graver_or_milder).is_some_and(|now| !self.is_next_life_told(now)) {
            return None;
        }
        let other_words = seen.grade != self.finding.grade || !news::same_words(&seen, &self.finding);
        if other_words && !graver_or_milder {
            self.update_tokens = self.update_tokens.checked_sub(1)?;
        }
        if !graver_or_milder && !other_words && self.runs_since_told < RUNS_BEFORE_NUMBERS {
            return None;
        }
        self.runs_since_told = 0;
        self.finding = seen;
        Some(FindingEvent::Updated(self.finding.clone()))
    }
}

impl Rate {
    /// Begins a new window when the old one is over; gives what was held back in it.
    fn roll(&mut self, now: Now) -> Option<(Finding, u64)> {
        if now.since(self.window_boottime_ms) < Duration::from_millis(OCCURRENCE_WINDOW_MS) {
            return None;
        }
        self.window_boottime_ms = now.boottime_ms;
        self.told = 0;
        let (mut held, observed) = self.held.take()?;
        // The held one is told by itself, so it does not count as suppressed.
        let others = std::mem::take(&mut self.suppressed).saturating_sub(1);
        held.evidence.insert("suppressed_occurrences", Value::Count(others));
        self.told = 1;
        Some((held, observed))
    }

    fn pass(&mut self, now: Now, finding: Finding, observed_boottime_ms: u64) -> Option<(Finding, u64)> {
        if self.told == 0 {
            self.window_boottime_ms = now.boottime_ms;
        }
        if self.told < OCCURRENCES_PER_WINDOW_MAX {
            self.told += 1;
            return Some((finding, observed_boottime_ms));
        }
        self.suppressed = self.suppressed.saturating_add(1);
        self.held = Some((finding, observed_boottime_ms));
        None
    }
}

/// Whether the condition cannot outlive the process that it was seen of.
const fn of_a_process(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ProcessZombie
            | Reason::ProcessStopped
            | Reason::FdExhaustion
            | Reason::MemoryGrowth
            | Reason::MemoryPressure
            | Reason::ZombieChildren
    )
}

fn cleared_summary(reason: Reason, runs: u32, judgement: &Judgement) -> String {
    if of_a_process(reason) && judgement.sees_no_process() {
        return format!("{reason} is over: its process is gone");
    }
    let times = if runs == 1 { "once".to_owned() } else { format!("{runs} times in a row") };
    format!("{reason} is over: seen healthy {times}")
}

fn state<'a>((subject, watched): (&'a SubjectKey, &'a Watched)) -> SubjectState<'a> {
    SubjectState { subject, verdict: watched.verdict, open: watched.open().collect() }
}

fn blind_subject(subject: &SubjectKey) -> SubjectKey {
    let name = format!("{}:{}", subject.probe, subject.subject);
    SubjectKey::new(subject.service.clone(), ProbeKind::Agent, &name)
}

fn limit_subject() -> SubjectKey {
    SubjectKey::new(ServiceName::host(), ProbeKind::Agent, "findings")
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::severity::Severity;
    use muster_common::time::Timestamp;

    const STEP_MS: u64 = 5_000;

    fn now(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
    }

    fn subject(probe: ProbeKind, name: &str) -> SubjectKey {
        SubjectKey::new(ServiceName::new("spl").unwrap(), probe, name)
    }

    fn letter(change: &Change) -> String {
        let event = &change.event;
        let kind = match event {
            FindingEvent::Opened(_) => '+',
            FindingEvent::Updated(_) => '~',
            FindingEvent::Cleared { .. } => '-',
            FindingEvent::Occurred(_) => '!',
        };
        format!("{kind}{}", event.key().reason)
    }

    /// One word per run: `ok`, `?`, or reasons joined by `,` (with a trailing `?` when not wholly answered, and
    /// `reason=N` for a number in the evidence, `reason:text` for words in it).
    fn judge(word: &str) -> Judgement {
        let (word, partly) = match word.strip_suffix('?') {
            Some("") => return Judgement::unknown("no answer", Some("add a capability")),
            Some(rest) => (rest, true),
            None => (word, false),
        };
        let mut judgement = Judgement::default();
        if partly {
            judgement.unknown = Some(Unknown::new("half", None));
        }
        for part in word.split(',').filter(|part| *part != "ok") {
            let (part, number) = part.split_once('=').unwrap_or((part, "0"));
            let (part, text) = part.split_once(':').unwrap_or((part, "same"));
            let (part, severity) = part.split_once('@').unwrap_or((part, ""));
            let mut problem = Problem::new(part.parse().unwrap(), format!("seen {number}"))
                .evidence(Evidence::new().text("words", text).bytes("n_bytes", number.parse().unwrap()));
            problem.severity = severity.parse::<Severity>().ok();
            judgement.problems.push(problem);
        }
        judgement
    }

    #[test]
    fn scenarios() {
        let cases = [
            // name, runs, events per run
            ("hard evidence opens at once", "process_down", "+process_down"),
            ("a flap does not open", "port_closed ok port_closed ok", ". . . ."),
            ("two in a row open", "port_closed port_closed", ". +port_closed"),
            ("a successor that is not known yet is no stranger", "port_conflict ok ok", ". . ."),
            ("unknown does not count as sighting nor as health", "port_closed ? port_closed", ". . +port_closed"),
            ("clears by health, twice", "process_down ok ok ok", "+process_down . -process_down ."),
            ("unknown never clears", "process_down ? ? ? ok ? ok", "+process_down . . . . . -process_down"),
            ("a relapse starts the count again", "process_down ok process_down ok", "+process_down . . ."),
            ("a half answer clears nothing", "process_down ok? ok? ok?", "+process_down . . ."),
            (
                "one reason clears beside another",
                "sqlite_replaced sqlite_lock_held",
                "+sqlite_replaced +sqlite_lock_held,-sqlite_replaced",
            ),
            (
                "missing does not heal corrupt",
                "sqlite_corrupt sqlite_missing ok",
                "+sqlite_corrupt +sqlite_missing -sqlite_corrupt,-sqlite_missing",
            ),
            (
                "a removed pid file does not heal",
                "process_down pid_file_missing pid_file_missing ok ok",
                "+process_down . +pid_file_missing . -process_down,-pid_file_missing",
            ),
            ("numbers are no news", "process_down=1 process_down=2 process_down=3", "+process_down . ."),
            ("words are news", "process_down process_down:oom process_down:oom", "+process_down ~process_down ."),
            (
                "words are bounded",
                "process_down:a process_down:b process_down:c process_down:d process_down:e",
                "+process_down ~process_down ~process_down ~process_down .",
            ),
            ("severity is news", "process_down process_down@sev1 process_down@sev1", "+process_down ~process_down ."),
        ];
        for (name, runs, expected) in cases {
            let mut ledger = Ledger::default();
            let subject = subject(ProbeKind::PidFile, "x");
            let mut told = Vec::new();
            for (index, run) in (0u64..).zip(runs.split(' ')) {
                let mut words: Vec<String> =
                    ledger.observe(now(index * STEP_MS), &subject, &judge(run)).iter().map(letter).collect();
                words.sort();
                told.push(if words.is_empty() { ".".to_owned() } else { words.join(",") });
                // Every step survives a restart.
                ledger = serde_json::from_str(&serde_json::to_string(&ledger).unwrap()).unwrap();
                assert_eq!(ledger.open_count, ledger.open().count(), "{name}");
            }
            let expected: Vec<String> = expected
                .split(' ')
                .map(|words| {
                    let mut words: Vec<&str> = words.split(',').collect();
                    words.sort_unstable();
                    words.join(",")
                })
                .collect();
            assert_eq!(told, expected, "{name}");
        }
    }

    #[test]
    fn a_text_whose_age_moves_on_is_no_news() {
        let told = |text: &dyn Fn(u64) -> String| {
            let mut ledger = Ledger::default();
            let subject = subject(ProbeKind::Process, "x");
            let mut updates = 0;
            for run in 1..=600 {
                let evidence = Evidence::new().text("diagnosis", text(run));
                let problem = Problem::new(Reason::ProcessDown, "down").evidence(evidence);
                let judgement = Judgement { problems: vec![problem], ..Judgement::default() };
                let changes = ledger.observe(now(run * STEP_MS), &subject, &judgement);
                updates += changes.iter().filter(|change| letter(change).starts_with('~')).count();
            }
            updates
        };
        let age = |run: u64| muster_common::units::human_duration(Duration::from_secs(run * run));
        assert_eq!(told(&|run| format!("seen {} times in a row, for {}", run + 1, age(run))), 0);
        assert_eq!(told(&|run| format!("the last good copy ({}, {run} KiB) is {} old", age(run), age(run))), 0);
        // Neither a number without a unit nor another word is such a measure.
        assert_eq!(told(&|run| format!("process {} holds it", run / 100)), 6);
        assert_eq!(told(&|run| format!("{} s ago, {}", run, if run < 300 { "by hand" } else { "by a signal" })), 1);
    }

    #[test]
    fn a_probe_that_stays_blind_is_a_finding() {
        let mut ledger = Ledger::default();
        let subject = subject(ProbeKind::Port, "tcp:127.0.0.1:1");
        let mut told = Vec::new();
        for run in 0..=130 {
            for event in ledger.observe(now(run * STEP_MS), &subject, &judge("?")) {
                told.push((run, event.event));
            }
        }
        assert_eq!(told.len(), 1, "{told:?}");
        let (run, event) = &told[0];
        assert_eq!(*run, 120);
        let finding = event.finding().unwrap();
        assert_eq!(finding.key.to_string(), "spl/agent/port:tcp:127.0.0.1:1/probe_blind");
        assert_eq!(finding.next_steps, ["add a capability"]);
        let cleared = ledger.observe(now(131 * STEP_MS), &subject, &judge("ok"));
        assert_eq!(cleared.iter().map(letter).collect::<Vec<_>>(), ["-probe_blind"]);
    }

    #[test]
    fn what_another_probe_tells_blinds_nobody() {
        let (mut ledger, subject) = (Ledger::default(), subject(ProbeKind::Process, "main process"));
        let mut told = Vec::new();
        for run in 0..=130 {
            told.extend(ledger.observe(now(run * STEP_MS), &subject, &Judgement::no_process()));
        }
        assert_eq!(told, [], "stopped, and its pid file's probe says so");
        assert_eq!(ledger.subjects().map(|state| state.verdict).collect::<Vec<_>>(), [Verdict::Unknown]);
        // Its own blindness is counted from its own beginning, and ends by an answer alone.
        for run in 131..=251 {
            assert_eq!(told, [], "run {run}");
            told.extend(ledger.observe(now(run * STEP_MS), &subject, &judge("?")));
        }
        assert_eq!(told.iter().map(letter).collect::<Vec<_>>(), ["+probe_blind"]);
        assert_eq!(ledger.observe(now(252 * STEP_MS), &subject, &Judgement::no_process()), []);
        let cleared = ledger.observe(now(253 * STEP_MS), &subject, &judge("ok"));
        assert_eq!(cleared.iter().map(letter).collect::<Vec<_>>(), ["-probe_blind"]);
    }

    #[test]
    fn what_ended_with_its_process_is_not_said_to_be_healthy() {
        let summary = |judgement: Judgement| {
            let (mut ledger, subject) = (Ledger::default(), subject(ProbeKind::PidFile, "x"));
            let mut changes = Vec::new();
            for (run, word) in [(0, "process_zombie"), (1, "process_zombie,process_down")] {
                ledger.observe(now(run * STEP_MS), &subject, &judge(word));
            }
            for run in 2..4 {
                changes.extend(ledger.observe(now(run * STEP_MS), &subject, &judgement));
            }
            let zombie = |change: &Change| match &change.event {
                FindingEvent::Cleared { key, summary, .. } if key.reason == Reason::ProcessZombie => {
                    Some(summary.clone())
                }
                _ => None,
            };
            changes.iter().find_map(zombie).unwrap()
        };
        assert_eq!(summary(judge("process_down")), "process_zombie is over: its process is gone");
        let ended = Judgement::ok(Evidence::new().text("process", "has ended"));
        assert_eq!(summary(ended), "process_zombie is over: its process is gone");
        assert_eq!(summary(judge("ok")), "process_zombie is over: seen healthy 2 times in a row");
    }

    #[test]
    fn too_many_conditions_are_counted_and_told() {
        let mut ledger = Ledger::default();
        let names: Vec<SubjectKey> =
            (0..OPEN_FINDINGS_PER_AGENT_MAX + 9).map(|n| subject(ProbeKind::PidFile, &n.to_string())).collect();
        let mut last = Vec::new();
        for subject in &names {
            last.extend(ledger.observe(now(0), subject, &judge("process_down")));
        }
        assert_eq!(ledger.open().count(), OPEN_FINDINGS_PER_AGENT_MAX);
        assert_eq!(ledger.suppressed_total(), 10);
        assert!(last.iter().any(|event| event.event.key().subject == limit_subject()));
        // Room is used, and the finding about the bound goes when nothing is held back any more.
        let mut cleared = Vec::new();
        for _ in 0..3 {
            for subject in names.iter().take(20) {
                cleared.extend(ledger.observe(now(STEP_MS), subject, &judge("ok")));
            }
            for subject in names.iter().skip(20) {
                cleared.extend(ledger.observe(now(STEP_MS), subject, &judge("process_down")));
            }
        }
        assert!(cleared.iter().any(|event| letter(event) == "-probe_blind"));
        assert_eq!(ledger.open().count(), names.len() - 20);
    }

    #[test]
    fn occurrences_pass_within_a_rate_and_none_is_lost_from_the_count() {
        let mut ledger = Ledger::default();
        let subject = subject(ProbeKind::Oom, "kernel");
        let kill = || Judgement::default().occurred(Problem::new(Reason::OomKill, "killed"));
        let mut told = 0;
        for _ in 0..250 {
            told += ledger.observe(now(1_000), &subject, &kill()).len();
        }
        assert_eq!(told, 100);
        let later = ledger.observe(now(70_000), &subject, &judge("ok"));
        assert_eq!(later.len(), 1);
        let evidence = &later[0].event.finding().unwrap().evidence;
        assert_eq!(evidence.get("suppressed_occurrences"), Some(&Value::Count(149)));
        assert!(ledger.observe(now(140_000), &subject, &judge("ok")).is_empty());
    }

    #[test]
    fn what_is_no_longer_watched_is_told_and_forgotten() {
        let mut ledger = Ledger::default();
        let (a, b) = (subject(ProbeKind::PidFile, "a"), subject(ProbeKind::PidFile, "b"));
        ledger.observe(now(0), &a, &judge("process_down"));
        ledger.observe(now(0), &b, &judge("process_down"));
        let digest = ledger.open_digest();
        let events = ledger.retain(&BTreeSet::from([a.clone()]));
        assert_eq!(events.len(), 1);
        assert_ne!(ledger.open_digest(), digest);
        let states: Vec<_> = ledger.subjects().collect();
        assert_eq!(states.len(), 1);
        assert_eq!((states[0].subject, states[0].verdict, states[0].open.len()), (&a, Verdict::Problem, 1));
    }

    proptest::proptest! {
        /// What is passed over as no news would have changed nothing, and told nothing.
        #[test]
        fn no_news_is_no_news(runs in proptest::collection::vec((0usize..2, 0usize..7, 1u64..900_000), 1..80)) {
            let words = ["ok", "ok", "process_down", "port_closed", "port_closed?", "?", "!"];
            let subjects = [subject(ProbeKind::Process, "a"), subject(ProbeKind::Port, "b")];
            let (mut ledger, mut at_ms) = (Ledger::default(), 0);
            for (who, word, step_ms) in runs {
                at_ms += step_ms;
                let judgement = match words[word] {
                    "!" => Judgement::default().occurred(Problem::new(Reason::OomKill, "killed")),
                    word => judge(word),
                };
                let no_news = ledger.is_no_news(&subjects[who], &judgement);
                let before = ledger.clone();
                let changes = ledger.observe(now(at_ms), &subjects[who], &judgement);
                proptest::prop_assert!(!no_news || (changes.is_empty() && before == ledger));
                if words[word] == "?" {
                    ledger = serde_json::from_str(&serde_json::to_string(&ledger).unwrap()).unwrap();
                } else if step_ms % 50 == 0 {
                    ledger.retain(&BTreeSet::from([subjects[who].clone()]));
                }
            }
        }

        /// The digest always is that of the opens minus the clears; unknown never changes it.
        #[test]
        fn events_and_state_agree(words in proptest::collection::vec(0usize..5, 1..60)) {
            let choices = ["ok", "?", "process_down", "port_closed", "sqlite_corrupt?"];
            let mut ledger = Ledger::default();
            let subject = subject(ProbeKind::PidFile, "x");
            let mut open = BTreeSet::new();
            for (index, word) in (0u64..).zip(words) {
                let before = ledger.open_digest();
                for event in ledger.observe(now(index * 10), &subject, &judge(choices[word])) {
                    match event.event {
                        FindingEvent::Opened(finding) => proptest::prop_assert!(open.insert(finding.key)),
                        FindingEvent::Cleared { key, .. } => proptest::prop_assert!(open.remove(&key)),
                        _ => {}
                    }
                }
                if choices[word] == "?" {
                    proptest::prop_assert_eq!(before, ledger.open_digest());
                }
                proptest::prop_assert_eq!(open_digest(&open), ledger.open_digest());
            }
        }
    }
}
