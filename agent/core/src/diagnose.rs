//! Joins what is wrong with one service into a cause and its symptoms.
//!
//! Two uses: [`Causes`] remembers kills and adds the cause to a `process_down` finding, whichever was seen first;
//! [`headlines`] folds the symptoms of one round under their cause for people. A process is (pid, start time): the same
//! pid of another life never joins.

use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::finding::{Finding, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Evidence key of a process id, in the findings of every probe that names a process.
pub const PID_KEY: &str = "pid";
/// Evidence key of its start time in clock ticks after boot.
pub const START_TICKS_KEY: &str = "start_ticks";
/// Kills remembered: the last rounds of a storm are enough to explain what is down now.
const KILLS_MAX: usize = 64;
/// A watched service killed within this time makes a critical memory band graver.
const KILL_COUNTS_FOR_MEMORY: Duration = Duration::from_secs(600);

/// What was seen lately that explains other things.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Causes {
    kills: VecDeque<Kill>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kill {
    service: Option<ServiceName>,
    pid: u64,
    start_ticks: Option<u64>,
    boottime_ms: u64,
    summary: String,
}

impl Causes {
    /// Remembers what explains other things; gives the services for which a second look is now worth it.
    pub fn note(&mut self, now: Now, subject: &SubjectKey, judgement: &Judgement) -> Vec<ServiceName> {
        let mut services = Vec::new();
        for kill in judgement.occurrences.iter().filter(|occurrence| occurrence.reason == Reason::OomKill) {
            let Some(pid) = number(&kill.evidence, PID_KEY) else { continue };
            let service = kill.finding(subject).key.subject.service;
            let service = Some(service).filter(|service| !service.is_host());
            services.extend(service.clone());
            if self.kills.len() == KILLS_MAX {
                self.kills.pop_front();
            }
            self.kills.push_back(Kill {
                service,
                pid,
                start_ticks: number(&kill.evidence, START_TICKS_KEY),
                boottime_ms: kill.observed_boottime_ms.unwrap_or(now.boottime_ms),
                summary: kill.summary.clone(),
            });
        }
        services
    }

    /// The host was rebooted: every process and every kill of before is another life's.
    pub fn rebooted(&mut self) {
        self.kills.clear();
    }

    /// Adds causes to what a run found: `cause` and `cause_grade` in the evidence of a process that is gone, and the
    /// higher severity of a memory shortage that has already killed a watched service.
    pub fn explain(&self, now: Now, subject: &SubjectKey, judgement: &mut Judgement) {
        for problem in &mut judgement.problems {
            match problem.reason {
                Reason::ProcessDown | Reason::ProcessZombie => self.explain_exit(subject, problem),
                Reason::MemoryCritical => self.explain_memory(now, problem),
                _ => {}
            }
        }
    }

    fn explain_exit(&self, subject: &SubjectKey, problem: &mut Problem) {
        let Some(pid) = number(&problem.evidence, PID_KEY) else { return };
        let start = number(&problem.evidence, START_TICKS_KEY);
        let joined = self.kills.iter().rev().filter(|kill| kill.pid == pid).find_map(|kill| {
            let same_service = kill.service.as_ref() == Some(&subject.service);
            match (kill.start_ticks, start) {
                (Some(killed), Some(gone)) if killed == gone => Some((kill, Grade::Confirmed)),
                (Some(_), Some(_)) => None,
                _ => same_service.then_some((kill, Grade::Likely)),
            }
        });
        let Some((kill, grade)) = joined else { return };
        problem.evidence.insert("cause", Value::Text(Reason::OomKill.as_str().to_owned()));
        problem.evidence.insert("cause_grade", Value::Text(grade.as_str().to_owned()));
        problem.evidence.insert("cause_summary", Value::Text(kill.summary.clone()));
    }

    fn explain_memory(&self, now: Now, problem: &mut Problem) {
        let recent = |kill: &&Kill| kill.service.is_some() && now.since(kill.boottime_ms) <= KILL_COUNTS_FOR_MEMORY;
        let Some(kill) = self.kills.iter().rev().find(recent) else { return };
        if let Some(service) = &kill.service {
            problem.evidence.insert("oom_killed_service", Value::Text(service.to_string()));
        }
        problem.severity = Some(problem.severity.unwrap_or(Severity::Sev2).max(Severity::Sev2));
    }
}

/// One thing to tell about a service: the cause, with its symptoms folded under it. Indexes into the given findings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headline {
    /// What explains the rest.
    pub cause: usize,
    /// What it explains, and how sure that is.
    pub symptoms: Vec<(usize, Grade)>,
    /// The worst severity among them.
    pub severity: Severity,
}

/// Folds the findings of one round into headlines, worst first (then by service, reason and subject).
pub fn headlines(findings: &[Finding]) -> Vec<Headline> {
    // Every finding points at its nearest cause; following that to its root gives the headline it belongs to.
    let causes: Vec<Option<(usize, Grade)>> = findings.iter().map(|symptom| cause_of(findings, symptom)).collect();
    let root = |index: usize| {
        let (mut at, mut grade) = (index, Grade::Confirmed);
        // The relation has no cycles; the bound is for the day somebody adds one.
        for _ in 0..findings.len() {
            let Some((next, sure)) = causes.get(at).copied().flatten() else { break };
            (at, grade) = (next, grade.min(sure));
        }
        (at, grade)
    };
    let mut headlines: Vec<Headline> = Vec::new();
    for (index, finding) in findings.iter().enumerate().filter(|(index, _)| causes.get(*index) == Some(&None)) {
        let symptoms: Vec<(usize, Grade)> = (0..findings.len())
            .filter(|other| *other != index)
            .filter_map(|other| Some((other, root(other).1)).filter(|_| root(other).0 == index))
            .collect();
        let severities = symptoms.iter().filter_map(|(other, _)| findings.get(*other)).map(|other| other.severity);
        let severity = severities.fold(finding.severity, Severity::max);
        headlines.push(Headline { cause: index, symptoms, severity });
    }
    let order = |headline: &Headline| findings.get(headline.cause).map(|finding| finding.key.clone());
    headlines.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| order(a).cmp(&order(b))));
    headlines
}

fn cause_of(findings: &[Finding], symptom: &Finding) -> Option<(usize, Grade)> {
    let candidates = findings.iter().enumerate().filter(|(_, cause)| cause.key != symptom.key);
    candidates.filter_map(|(index, cause)| Some((index, explains(cause, symptom)?))).max_by_key(|(_, grade)| *grade)
}

/// Whether `cause` explains `symptom`, and how sure that is.
fn explains(cause: &Finding, symptom: &Finding) -> Option<Grade> {
    if cause.key.subject.service != symptom.key.subject.service {
        return None;
    }
    match (cause.key.reason, symptom.key.reason) {
        (Reason::OomKill, Reason::ProcessDown | Reason::ProcessZombie) => same_process(cause, symptom),
        (
            Reason::ProcessDown | Reason::ProcessZombie,
            Reason::PidFileStale | Reason::PidFileMissing | Reason::PortClosed | Reason::HealthCheckFailed,
        ) => Some(Grade::Likely),
        (Reason::ProcessDown | Reason::ProcessZombie, Reason::PortUnresponsive | Reason::SqliteJournalHot) => {
            Some(Grade::Possible)
        }
        (Reason::PidFileStale, Reason::PortClosed | Reason::HealthCheckFailed) => Some(Grade::Likely),
        _ => None,
    }
}

fn same_process(kill: &Finding, exit: &Finding) -> Option<Grade> {
    let pid = number(&kill.evidence, PID_KEY)?;
    if number(&exit.evidence, PID_KEY) != Some(pid) {
        return None;
    }
    match (number(&kill.evidence, START_TICKS_KEY), number(&exit.evidence, START_TICKS_KEY)) {
        (Some(killed), Some(gone)) => (killed == gone).then_some(Grade::Confirmed),
        _ => Some(Grade::Likely),
    }
}

fn number(evidence: &Evidence, key: &str) -> Option<u64> {
    match evidence.get(key)? {
        Value::Count(number) => Some(*number),
        Value::Integer(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::finding::{FindingKey, ProbeKind};
    use muster_common::time::Timestamp;

    fn process(pid: u64, start: Option<u64>) -> Evidence {
        let evidence = Evidence::new().count(PID_KEY, pid);
        match start {
            Some(start) => evidence.count(START_TICKS_KEY, start),
            None => evidence,
        }
    }

    fn finding(service: &str, reason: Reason, evidence: Evidence) -> Finding {
        let subject = SubjectKey::new(ServiceName::new(service).unwrap(), ProbeKind::PidFile, reason.as_str());
        Finding::new(FindingKey { subject, reason }, "x").evidence(evidence)
    }

    fn shown(findings: &[Finding]) -> Vec<String> {
        headlines(findings)
            .iter()
            .map(|headline| {
                let name = |index: usize| findings[index].key.reason.as_str();
                let symptoms: Vec<String> =
                    headline.symptoms.iter().map(|(index, grade)| format!("{} {grade}", name(*index))).collect();
                format!("{} {} [{}]", headline.severity, name(headline.cause), symptoms.join(", "))
            })
            .collect()
    }

    #[test]
    fn symptoms_fold_under_their_cause() {
        let findings = [
            finding("spl", Reason::PortClosed, Evidence::new()),
            finding("spl", Reason::ProcessDown, process(7, Some(1))),
            finding("spl", Reason::PidFileStale, process(7, Some(1))),
            finding("other", Reason::PortClosed, Evidence::new()),
        ];
        assert_eq!(
            shown(&findings),
            ["sev2 port_closed []", "sev2 process_down [port_closed likely, pid_file_stale likely]"]
        );
    }

    #[test]
    fn a_kill_is_the_cause_of_the_exit_of_the_same_process_only() {
        let kill = finding("spl", Reason::OomKill, process(7, Some(1)));
        let case = |start| [kill.clone(), finding("spl", Reason::ProcessDown, process(7, start))];
        assert_eq!(shown(&case(Some(1))), ["sev2 oom_kill [process_down confirmed]"]);
        assert_eq!(shown(&case(None)), ["sev2 oom_kill [process_down likely]"]);
        assert_eq!(shown(&case(Some(2))), ["sev2 process_down []", "sev3 oom_kill []"]);
        let mut deep = case(Some(1)).to_vec();
        deep.push(finding("spl", Reason::PortClosed, Evidence::new()));
        assert_eq!(shown(&deep), ["sev2 oom_kill [process_down confirmed, port_closed likely]"]);
    }

    #[test]
    fn causes_are_added_whichever_came_first() {
        let now = Now { boottime_ms: 50_000, wall: Timestamp::UNIX_EPOCH };
        let spl = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::PidFile, "/run/spl.pid");
        let host = SubjectKey::new(ServiceName::host(), ProbeKind::Oom, "kernel");
        let kill = |pid, start| {
            let mut problem = Problem::new(Reason::OomKill, "killed").evidence(process(pid, start));
            problem.service = Some(spl.service.clone());
            Judgement::default().occurred(problem)
        };
        let down = || Judgement::problem(Problem::new(Reason::ProcessDown, "gone").evidence(process(7, Some(1))));
        let cases =
            [(7, Some(1), Some("confirmed")), (7, None, Some("likely")), (7, Some(2), None), (8, Some(1), None)];
        for (pid, start, grade) in cases {
            let mut causes = Causes::default();
            let woken = causes.note(now, &host, &kill(pid, start));
            assert_eq!(woken.first(), Some(&spl.service));
            let mut judgement = down();
            causes.explain(now, &spl, &mut judgement);
            let found = judgement.problems[0].evidence.get("cause_grade").map(ToString::to_string);
            assert_eq!(found.as_deref(), grade, "{pid} {start:?}");
            let mut memory = Judgement::problem(Problem::new(Reason::MemoryCritical, "low"));
            causes.explain(now, &host, &mut memory);
            assert_eq!(memory.problems[0].severity, Some(Severity::Sev2));
        }
    }
}
