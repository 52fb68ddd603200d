//! What was seen lately, kept as long as it may explain something else.

use super::rules::{Explained, explains, is_cause, is_effect};
use super::{
    CHECKED_AT_KEY, EXIT_STATUS_KEY, GROUP_KEY, HELD_KEY, HOLDER_SERVICE_KEY, OLD_PID_KEY, OLD_START_TICKS_KEY,
    PID_KEY, RESULT_KEY, RULE_KEY, SCOPE_KEY, SERVICES_KEY, SOURCE_PATH_KEY, START_TICKS_KEY, TOLD_BY_KEY,
    WAITER_SERVICES_KEY, text,
};
use crate::clock::Now;
use crate::executable::FIRST_SEEN_KEY;
use crate::judgement::{Judgement, Problem, Verdict};
use crate::process::exit::KILLED_BY_WHOM;
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::finding::{Finding, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::limits::clip;
use muster_common::reason::{Reason, ReasonKind};
use muster_common::severity::Severity;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Traces remembered of one service: the last rounds of a loop are enough to explain what is down now.
const TRACES_PER_SERVICE_MAX: usize = 24;
/// Of them such as join nothing else: they are told for a while, a few of each service are enough.
const LOOSE_PER_SERVICE_MAX: usize = 8;
/// Of all services together: a host with thousands of services saves a bounded row.
const TRACES_MAX: usize = 192;
/// Bytes kept of a summary: it becomes a clause of another sentence.
const SUMMARY_BYTES_MAX: usize = 300;
/// What is over for longer explains nothing any more.
const KEPT_AFTER: Duration = Duration::from_secs(3_600);
/// A watched service killed within this time makes a critical memory band graver.
const KILL_COUNTS_FOR_MEMORY: Duration = Duration::from_secs(600);
/// Causes of causes that are followed: the table has no longer chain.
const CHAIN_MAX: usize = 8;
/// Evidence that joins, or that a story tells.
const FACTS_KEPT: &[&str] = &[
    PID_KEY,
    START_TICKS_KEY,
    OLD_PID_KEY,
    OLD_START_TICKS_KEY,
    SOURCE_PATH_KEY,
    SERVICES_KEY,
    EXIT_STATUS_KEY,
    SCOPE_KEY,
    HOLDER_SERVICE_KEY,
    WAITER_SERVICES_KEY,
    RULE_KEY,
    GROUP_KEY,
    TOLD_BY_KEY,
    RESULT_KEY,
];

/// What was seen lately, per service, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recent {
    traces: BTreeMap<ServiceName, VecDeque<Trace>>,
    /// Databases that were well at the last look, and when the last check of them that passed was, `CLOCK_BOOTTIME`.
    /// A look without a new check (nothing changed, a writer was in the way) is no proof of the time after.
    #[serde(skip)]
    checked: BTreeMap<ServiceName, BTreeMap<String, Option<u64>>>,
}

/// One condition while it lasted, or one occurrence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// What.
    pub key: FindingKey,
    /// In words.
    pub summary: String,
    /// How bad.
    pub severity: Severity,
    /// How sure.
    pub grade: Grade,
    /// What of its evidence joins it to other things.
    pub facts: Evidence,
    /// When it began or was first seen, `CLOCK_BOOTTIME`.
    pub from_ms: u64,
    /// When it was over; `None` while it lasts.
    pub until_ms: Option<u64>,
}

impl Trace {
    /// From a finding of one moment.
    pub fn new(finding: &Finding, from_ms: u64) -> Self {
        let kept = finding.evidence.iter().filter(|(key, _)| FACTS_KEPT.contains(key));
        let facts = kept.fold(Evidence::new(), |facts, (key, value)| facts.with(key, value.clone()));
        let over = finding.key.reason.kind() == ReasonKind::Occurrence;
        Self {
            key: finding.key.clone(),
            summary: clip(&finding.summary, SUMMARY_BYTES_MAX),
            severity: finding.severity,
            grade: finding.grade,
            facts,
            from_ms,
            until_ms: over.then_some(from_ms),
        }
    }
}

impl Recent {
    /// Remembers what explains other things, is part of a story or has happened; gives the services for which a second look at their
    /// process is now worth it.
    pub fn note(&mut self, now: Now, subject: &SubjectKey, judgement: &Judgement) -> Vec<ServiceName> {
        self.note_health(subject, judgement);
        let mut services = Vec::new();
        for problem in judgement.problems.iter().chain(&judgement.occurrences) {
            let mut trace =
                Trace::new(&problem.finding(subject), problem.observed_boottime_ms.unwrap_or(now.boottime_ms));
            if let Some(Value::Millis(held_ms)) = problem.evidence.get(HELD_KEY) {
                trace.from_ms = trace.from_ms.saturating_sub(*held_ms);
            }
            // What lasts is told while it does; what happened is told from here alone.
            let happened = trace.until_ms.is_some();
            if is_no_change(problem) || (!happened && joins_nothing(&trace)) {
                continue;
            }
            if problem.reason == Reason::OomKill && !trace.key.subject.service.is_host() {
                services.push(trace.key.subject.service.clone());
            }
            self.keep(trace);
        }
        if judgement.unknown.is_none() {
            self.end(now, subject, judgement);
        }
        self.forget(now);
        services
    }

    /// The host was rebooted: every process and every kill of before is another life's.
    pub fn rebooted(&mut self) {
        *self = Self::default();
    }

    /// Adds to what a run found the cause that is known of it (`cause`, `cause_grade`, `cause_summary`), and the higher
    /// severity of a memory shortage that has already killed a watched service.
    pub fn explain(&self, now: Now, subject: &SubjectKey, judgement: &mut Judgement) {
        for problem in judgement.problems.iter_mut().chain(&mut judgement.occurrences) {
            if problem.reason == Reason::MemoryCritical {
                self.explain_memory(now, problem);
            }
            if problem.evidence.get("cause").is_some() || !is_effect(problem.reason) {
                continue;
            }
            let at_ms = problem.observed_boottime_ms.unwrap_or(now.boottime_ms);
            let mut effect = Trace::new(&problem.finding(subject), at_ms);
            // A condition began when it was first seen, not now.
            effect.from_ms = self.open(&effect.key).map_or(at_ms, |known| known.from_ms.min(at_ms));
            let Some((cause, explained)) = self.cause_of(&effect) else { continue };
            let grade = explained.grade.min(cause.grade);
            if cause.key.reason == Reason::OomKill && grade == Grade::Confirmed {
                // The kernel's own word leaves no doubt about who sent the signal.
                problem.summary = problem.summary.replace(KILLED_BY_WHOM, "by the kernel's OOM killer");
            }
            let evidence = &mut problem.evidence;
            evidence.insert("cause", Value::Text(cause.key.reason.as_str().to_owned()));
            evidence.insert("cause_grade", Value::Text(grade.as_str().to_owned()));
            evidence.insert("cause_summary", Value::Text(cause.summary.clone()));
        }
    }

    /// All that is remembered of one service, oldest first.
    pub fn of_service(&self, service: &ServiceName) -> impl DoubleEndedIterator<Item = &Trace> {
        self.traces.get(service).into_iter().flatten()
    }

    /// What happened lately, as findings with what is remembered of them.
    pub fn occurrences(&self) -> impl Iterator<Item = Finding> {
        let traces = self.traces.values().flatten();
        traces.filter(|trace| trace.key.reason.kind() == ReasonKind::Occurrence).map(|trace| {
            let finding = Finding::new(trace.key.clone(), &trace.summary);
            finding.severity(trace.severity).grade(trace.grade).evidence(trace.facts.clone())
        })
    }

    /// All services of which something is remembered.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.traces.keys()
    }

    /// The databases of a service that were well at the last look, and when the last check that passed was.
    pub fn checked(&self, service: &ServiceName) -> impl Iterator<Item = (&str, Option<u64>)> {
        self.checked.get(service).into_iter().flatten().map(|(path, at_ms)| (path.as_str(), *at_ms))
    }

    /// The surest cause of an effect; of several the nearest in time.
    pub(super) fn cause_of<'a>(&'a self, effect: &'a Trace) -> Option<(&'a Trace, Explained)> {
        self.causes_of(effect).max_by_key(|(cause, explained)| (!explained.background, explained.grade, cause.from_ms))
    }

    /// What is behind it all: the cause of the cause of the cause.
    pub(super) fn root_of<'a>(&'a self, effect: &'a Trace) -> &'a Trace {
        let mut root = effect;
        for _ in 0..CHAIN_MAX {
            let Some((cause, _)) = self.cause_of(root).filter(|(_, explained)| !explained.background) else { break };
            root = cause;
        }
        root
    }

    /// All that explains an effect.
    pub(super) fn causes_of<'a>(&'a self, effect: &'a Trace) -> impl Iterator<Item = (&'a Trace, Explained)> {
        let service = &effect.key.subject.service;
        let host = ServiceName::host();
        let of_host = (*service != host).then(|| self.traces.get(&host)).flatten();
        // A kill of an unknown service may still be of this process.
        let known = self.traces.get(service).into_iter().flatten().chain(of_host.into_iter().flatten());
        known.filter_map(|cause| Some((cause, explains(cause, effect)?)))
    }

    fn open(&self, key: &FindingKey) -> Option<&Trace> {
        self.of_service(&key.subject.service).find(|trace| trace.key == *key && trace.until_ms.is_none())
    }

    fn note_health(&mut self, subject: &SubjectKey, judgement: &Judgement) {
        if subject.probe != ProbeKind::Sqlite {
            return;
        }
        let databases = self.checked.entry(subject.service.clone()).or_default();
        if judgement.verdict() == Verdict::Ok {
            databases.insert(subject.subject.clone(), millis(&judgement.seen, CHECKED_AT_KEY));
        } else {
            databases.remove(&subject.subject);
        }
    }

    fn keep(&mut self, trace: Trace) {
        let list = self.traces.entry(trace.key.subject.service.clone()).or_default();
        let is_same = |known: &&mut Trace| match trace.until_ms {
            // A condition lasts: the first sight of it tells when it began.
            None => known.key == trace.key && known.until_ms.is_none(),
            Some(_) => known.key == trace.key && known.from_ms == trace.from_ms && known.facts == trace.facts,
        };
        if let Some(known) = list.iter_mut().find(is_same) {
            let from_ms = known.from_ms.min(trace.from_ms);
            *known = Trace { from_ms, ..trace };
            return;
        }
        let full = list.len() == TRACES_PER_SERVICE_MAX;
        // What explains nothing never crowds out what does.
        let loose = list.iter().filter(|known| joins_nothing(known)).count();
        if full || (joins_nothing(&trace) && loose == LOOSE_PER_SERVICE_MAX) {
            let mildest = |wanted: fn(&Trace) -> bool| {
                let wanted = list.iter().enumerate().filter(|(_, known)| wanted(known));
                wanted.min_by_key(|(_, known)| known.severity).map(|(at, _)| at)
            };
            // What is over goes before what lasts.
            let at = mildest(joins_nothing).or_else(|| mildest(|known| known.until_ms.is_some())).unwrap_or(0);
            list.remove(at);
        }
        list.push_back(trace);
    }

    /// What a run that answered did not find any more is over.
    fn end(&mut self, now: Now, subject: &SubjectKey, judgement: &Judgement) {
        let Some(list) = self.traces.get_mut(&subject.service) else { return };
        for trace in list.iter_mut().filter(|trace| trace.key.subject == *subject && trace.until_ms.is_none()) {
            if !judgement.problems.iter().any(|problem| problem.reason == trace.key.reason) {
                trace.until_ms = Some(now.boottime_ms);
            }
        }
    }

    fn forget(&mut self, now: Now) {
        let old = |trace: &Trace| trace.until_ms.is_some_and(|until| now.since(until) > KEPT_AFTER);
        for list in self.traces.values_mut() {
            list.retain(|trace| !old(trace));
        }
        self.traces.retain(|_, list| !list.is_empty());
        let mut count: usize = self.traces.values().map(VecDeque::len).sum();
        while count > TRACES_MAX {
            let loose = |list: &VecDeque<Trace>| list.iter().position(joins_nothing);
            let loose = self.traces.values_mut().filter_map(|list| Some((loose(list)?, list)));
            let age = |(at, list): &(usize, &mut VecDeque<Trace>)| list.get(*at).map(|trace| trace.from_ms);
            if let Some((at, list)) = loose.min_by_key(age) {
                list.remove(at);
                count -= 1;
                continue;
            }
            let oldest = self.traces.values_mut().filter(|list| !list.is_empty());
            let Some(list) = oldest.min_by_key(|list| list.front().map_or(u64::MAX, |trace| trace.from_ms)) else {
                break;
            };
            list.pop_front();
            count -= 1;
        }
    }

    fn explain_memory(&self, now: Now, problem: &mut Problem) {
        let kills = self.traces.values().flatten().filter(|trace| trace.key.reason == Reason::OomKill);
        let counts =
            |kill: &&Trace| !kill.key.subject.service.is_host() && now.since(kill.from_ms) <= KILL_COUNTS_FOR_MEMORY;
        let Some(kill) = kills.filter(counts).max_by_key(|kill| kill.from_ms) else { return };
        problem.evidence.insert("oom_killed_service", Value::Text(kill.key.subject.service.to_string()));
        problem.severity = Some(problem.severity.unwrap_or(Severity::Sev2).max(Severity::Sev2));
    }
}

fn millis(evidence: &Evidence, key: &str) -> Option<u64> {
    match evidence.get(key)? {
        Value::Millis(ms) => Some(*ms),
        _ => None,
    }
}

/// Neither explains anything nor is explained: a line of a log that tells of an error.
fn joins_nothing(trace: &Trace) -> bool {
    !is_cause(trace.key.reason) && !is_effect(trace.key.reason)
}

/// Told by the name of a change so that the fleet knows of it, though nothing of the service is known to have changed: a
/// build at the first look, and where a singleton runs, which is the service itself.
fn is_no_change(problem: &Problem) -> bool {
    let evidence = &problem.evidence;
    let first_look = evidence.get(FIRST_SEEN_KEY) == Some(&Value::Flag(true));
    problem.reason == Reason::Change && (first_look || text(evidence, "what") == Some("singleton"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;

    const BASE_MS: u64 = 1_000_000;

    fn at(ms: u64) -> Now {
        Now { boottime_ms: BASE_MS + ms, wall: Timestamp::UNIX_EPOCH }
    }

    fn subject(service: &str, probe: ProbeKind, subject: &str) -> SubjectKey {
        let service = if service == "host" { ServiceName::host() } else { ServiceName::new(service).unwrap() };
        SubjectKey::new(service, probe, subject)
    }

    fn process(pid: u64, start: Option<u64>) -> Evidence {
        let evidence = Evidence::new().count(PID_KEY, pid);
        match start {
            Some(start) => evidence.count(START_TICKS_KEY, start),
            None => evidence,
        }
    }

    fn kill(pid: u64, start: Option<u64>) -> Judgement {
        let mut problem = Problem::new(Reason::OomKill, "killed").evidence(process(pid, start));
        problem.service = Some(ServiceName::new("spl").unwrap());
        Judgement::default().occurred(problem)
    }

    fn cause(judgement: &Judgement) -> Option<String> {
        let problem = judgement.problems.first().or(judgement.occurrences.first())?;
        Some(format!("{} {}", problem.evidence.get("cause")?, problem.evidence.get("cause_grade")?))
    }

    #[test]
    fn a_kill_explains_the_end_of_the_same_process_only() {
        let (host, spl) =
            (subject("host", ProbeKind::Oom, "kernel"), subject("spl", ProbeKind::PidFile, "/run/spl.pid"));
        let cases = [
            (7, Some(1), Some("oom_kill confirmed")),
            (7, None, Some("oom_kill likely")),
            (7, Some(2), None),
            (8, Some(1), None),
        ];
        for (pid, start, expected) in cases {
            for kill_first in [true, false] {
                let mut recent = Recent::default();
                let mut down =
                    Judgement::problem(Problem::new(Reason::ProcessDown, "gone").evidence(process(7, Some(1))));
                if !kill_first {
                    recent.note(at(0), &spl, &down);
                }
                assert_eq!(recent.note(at(40), &host, &kill(pid, start)).first(), Some(&spl.service));
                recent.note(at(80), &spl, &down);
                recent.explain(at(80), &spl, &mut down);
                assert_eq!(cause(&down).as_deref(), expected, "{pid} {start:?} {kill_first}");
            }
            let mut recent = Recent::default();
            recent.note(at(0), &host, &kill(pid, start));
            let evidence =
                Evidence::new().count(OLD_PID_KEY, 7u64).count(OLD_START_TICKS_KEY, 1u64).count("new_pid", 9u64);
            let restarted = Problem::new(Reason::ProcessRestarted, "again").evidence(evidence);
            let mut restarted = Judgement::default().occurred(restarted);
            recent.explain(at(3_000), &spl, &mut restarted);
            assert_eq!(cause(&restarted).as_deref(), expected, "restarted {pid} {start:?}");
        }
    }

    #[test]
    fn a_memory_shortage_that_killed_a_watched_service_is_graver() {
        let (host, memory) = (subject("host", ProbeKind::Oom, "kernel"), subject("host", ProbeKind::Memory, "host"));
        let low = || Judgement::problem(Problem::new(Reason::MemoryCritical, "low"));
        for (age_ms, expected) in [(1_000, Some(Severity::Sev2)), (700_000, None)] {
            let mut recent = Recent::default();
            recent.note(at(0), &host, &kill(7, Some(1)));
            let mut judgement = low();
            recent.explain(at(age_ms), &memory, &mut judgement);
            assert_eq!(judgement.problems[0].severity, expected, "{age_ms}");
        }
    }

    #[test]
    fn a_first_look_and_a_singleton_at_work_explain_nothing() {
        let (program, spl) =
            (subject("spl", ProbeKind::Process, "executable"), subject("spl", ProbeKind::PidFile, "/run/spl.pid"));
        let build = || Evidence::new().text("what", "deploy").text("new", "4add");
        for (seen, explains) in [
            (build().flag(FIRST_SEEN_KEY, true), false),
            (Evidence::new().text("what", "singleton").text("new", "running"), false),
            (build().text("old", "3bcc"), true),
        ] {
            let mut recent = Recent::default();
            let change = Problem::new(Reason::Change, "spl runs build 4add").evidence(seen.clone());
            recent.note(at(0), &program, &Judgement::default().occurred(change));
            assert_eq!(recent.occurrences().count(), usize::from(explains), "{seen:?}");
            let mut down = Judgement::problem(Problem::new(Reason::ProcessDown, "gone").evidence(process(7, Some(1))));
            recent.note(at(53_000), &spl, &down);
            recent.explain(at(53_000), &spl, &mut down);
            assert_eq!(cause(&down).is_some(), explains, "{seen:?}");
            recent.tell(&crate::services::Services::default(), &spl, &mut down);
            let told = down.problems[0].evidence.get("diagnosis").map(ToString::to_string).unwrap_or_default();
            assert_eq!(told.contains("behind it"), explains, "{told}");
        }
    }

    #[test]
    fn what_was_over_long_before_explains_nothing() {
        let (unit, port) = (subject("spl", ProbeKind::Unit, "spl.service"), subject("spl", ProbeKind::Port, "tcp:1"));
        let failed = Judgement::problem(Problem::new(Reason::UnitFailed, "failed"));
        for (gap_ms, expected) in [(30_000, Some("unit_failed likely")), (90_000, None)] {
            let mut recent = Recent::default();
            recent.note(at(0), &unit, &failed);
            recent.note(at(1_000), &unit, &Judgement::default());
            let mut closed = Judgement::problem(Problem::new(Reason::PortClosed, "closed"));
            recent.explain(at(1_000 + gap_ms), &port, &mut closed);
            assert_eq!(cause(&closed).as_deref(), expected, "{gap_ms}");
        }
        // Unknown ends nothing.
        let mut recent = Recent::default();
        recent.note(at(0), &unit, &failed);
        recent.note(at(1_000), &unit, &Judgement::unknown("no bus", None));
        let mut closed = Judgement::problem(Problem::new(Reason::PortClosed, "closed"));
        recent.explain(at(600_000), &port, &mut closed);
        assert_eq!(cause(&closed).as_deref(), Some("unit_failed likely"));
    }

    #[test]
    fn files_and_file_systems_join_by_path() {
        let database = subject("spl", ProbeKind::Sqlite, "/var/lib/hub.db");
        let backup = subject("spl", ProbeKind::Backup, "/backup/hub.db.*");
        let mut recent = Recent::default();
        recent.note(at(0), &database, &Judgement::problem(Problem::new(Reason::SqliteShrunk, "shrunk")));
        let shrunk = |of: &str| {
            let evidence = Evidence::new().text(SOURCE_PATH_KEY, of);
            Judgement::problem(Problem::new(Reason::BackupShrunk, "small").evidence(evidence))
        };
        for (of, expected) in [("/var/lib/hub.db", Some("sqlite_shrunk likely")), ("/var/lib/other.db", None)] {
            let mut judgement = shrunk(of);
            recent.explain(at(60_000), &backup, &mut judgement);
            assert_eq!(cause(&judgement).as_deref(), expected, "{of}");
        }
        for (mount, expected) in
            [("/backup", Some("disk_space_low likely")), ("/back", None), ("/", Some("disk_space_low likely"))]
        {
            let mut recent = Recent::default();
            let full = Judgement::problem(Problem::new(Reason::DiskSpaceLow, "full"));
            recent.note(at(0), &subject("host", ProbeKind::Disk, mount), &full);
            let mut stale = Judgement::problem(Problem::new(Reason::BackupStale, "old"));
            recent.explain(at(1_000), &backup, &mut stale);
            assert_eq!(cause(&stale).as_deref(), expected, "{mount}");
        }
    }

    #[test]
    fn errors_that_explain_nothing_crowd_out_nothing() {
        let mut recent = Recent::default();
        let spl = subject("spl", ProbeKind::PidFile, "/run/spl.pid");
        recent.note(at(0), &subject("host", ProbeKind::Oom, "kernel"), &kill(7, Some(1)));
        recent.note(at(1), &spl, &Judgement::problem(Problem::new(Reason::ProcessDown, "gone")));
        for n in 0..100 {
            let log = subject("spl", ProbeKind::Log, "/var/log/spl.log");
            let busy = Problem::new(Reason::DatabaseBusy, format!("busy {n}"));
            recent.note(at(2 + n), &log, &Judgement::default().occurred(busy));
        }
        let kept: Vec<&str> = recent.of_service(&spl.service).map(|trace| trace.summary.as_str()).collect();
        let busy: Vec<String> = (92..100).map(|n| format!("busy {n}")).collect();
        assert_eq!(kept[..2], ["killed", "gone"]);
        assert_eq!(kept[2..], busy);
        // A condition is told while it lasts, by itself.
        let key = subject("spl", ProbeKind::Sqlite, "/hub.db");
        recent.note(at(200), &key, &Judgement::problem(Problem::new(Reason::SqliteForeignKeys, "refers")));
        assert_eq!(recent.of_service(&spl.service).count(), 10);
        // Nor of other services, and what lasts keeps nothing that is over for longer than it counts.
        for n in 0..TRACES_MAX as u64 {
            let log = subject(&format!("s{n}"), ProbeKind::Log, "/var/log/s.log");
            recent.note(at(300 + n), &log, &Judgement::default().occurred(Problem::new(Reason::DatabaseBusy, "busy")));
        }
        assert_eq!(recent.traces.values().map(VecDeque::len).sum::<usize>(), TRACES_MAX);
        let kept: Vec<&str> = recent.of_service(&spl.service).map(|trace| trace.summary.as_str()).collect();
        assert_eq!(kept, ["killed", "gone"]);
        recent.forget(Now { boottime_ms: BASE_MS + 10_000_000, wall: Timestamp::UNIX_EPOCH });
        assert_eq!(recent.of_service(&spl.service).count(), 1);
    }

    #[test]
    fn of_what_happened_the_mildest_goes_first() {
        let mut recent = Recent::default();
        let reports = subject("spl", ProbeKind::Report, "spl");
        let happened = |reason, summary: String| Judgement::default().occurred(Problem::new(reason, summary));
        recent.note(at(0), &reports, &happened(Reason::PermanentError, "failed for good".to_owned()));
        for n in 0..100 {
            recent.note(at(1 + n), &reports, &happened(Reason::Change, format!("change {n}")));
        }
        let kept: Vec<&str> = recent.of_service(&reports.service).map(|trace| trace.summary.as_str()).collect();
        assert_eq!((kept.len(), kept[0], kept[23]), (TRACES_PER_SERVICE_MAX, "failed for good", "change 99"));
    }

    /// The first as well: a look takes its time, and is noted when it is over.
    #[test]
    fn a_check_stays_at_its_time_however_long_looks_take() {
        let mut recent = Recent::default();
        let hub = subject("spl", ProbeKind::Sqlite, "/hub.db");
        for (noted_ms, check_ms) in [(1_000, 10), (6_000, 10), (11_000, 10), (16_000, 15_000)] {
            let well = Judgement::ok(Evidence::new().with(CHECKED_AT_KEY, Value::Millis(BASE_MS + check_ms)));
            recent.note(at(noted_ms), &hub, &well);
            let checked: Vec<_> = recent.checked(&hub.service).collect();
            assert_eq!(checked, [("/hub.db", Some(BASE_MS + check_ms))], "{noted_ms}");
        }
        recent.note(at(20_000), &hub, &Judgement::problem(Problem::new(Reason::SqliteCorrupt, "x")));
        assert_eq!(recent.checked(&hub.service).count(), 0);
    }

    #[test]
    fn memory_is_bounded_and_lasting_things_stay() {
        let mut recent = Recent::default();
        let spl = subject("spl", ProbeKind::PidFile, "/run/spl.pid");
        recent.note(at(0), &spl, &Judgement::problem(Problem::new(Reason::ProcessDown, "gone")));
        for n in 0..100 {
            let mut kill = kill(n, Some(n));
            kill.occurrences[0].observed_boottime_ms = Some(at(n).boottime_ms);
            recent.note(at(n), &subject("host", ProbeKind::Oom, "kernel"), &kill);
        }
        assert_eq!(recent.of_service(&spl.service).count(), TRACES_PER_SERVICE_MAX);
        assert!(recent.open(&FindingKey { subject: spl.clone(), reason: Reason::ProcessDown }).is_some());
        for n in 0..100u64 {
            let other = subject(&format!("s{n}"), ProbeKind::Port, "tcp:1");
            for reason in [Reason::PortClosed, Reason::PortConflict, Reason::PortUnresponsive] {
                recent.note(at(n), &other, &Judgement::problem(Problem::new(reason, "x")));
            }
        }
        assert_eq!(recent.traces.values().map(VecDeque::len).sum::<usize>(), TRACES_MAX);
        recent.note(at(0), &spl, &Judgement::default());
        recent.forget(Now { boottime_ms: BASE_MS + 10_000_000, wall: Timestamp::UNIX_EPOCH });
        assert_eq!(recent.of_service(&spl.service).count(), 0);
    }
}
