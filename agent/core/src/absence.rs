//! Whether a service runs at all whose pid file names nobody: what the other probes saw of it.
//!
//! Must never call a service down of which something was seen to run: its file may be that of a second start that failed.

use crate::judgement::{Judgement, Problem, Verdict};
use muster_common::evidence::Value;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;

/// Evidence key of a stale pid file: another process of the service is known to run.
pub(crate) const SERVICE_RUNNING_KEY: &str = "service_running";
/// How such a finding says that no other is; untrue as soon as something answers for the service.
const NOT_RUNNING: &str = " is not running: ";
/// What answers, or does not, is named up to so many.
const NAMED_MAX: usize = 3;

/// What a look at a subject says: that something of its service runs (`true`), that nothing does, or neither.
pub fn sign(probe: ProbeKind, verdict: Verdict, mut reasons: impl Iterator<Item = Reason>) -> Option<bool> {
    match (probe, verdict) {
        (ProbeKind::Port | ProbeKind::Health | ProbeKind::Unit, Verdict::Ok) => Some(true),
        (ProbeKind::Port | ProbeKind::Unit, Verdict::Problem) => reasons.find_map(|reason| match reason {
            Reason::PortClosed | Reason::UnitFailed | Reason::UnitInactive => Some(false),
            // Somebody listens, well or not.
            Reason::PortUnresponsive => Some(true),
            _ => None,
        }),
        _ => None,
    }
}

/// Whether a judgement has a pid file in it that names nobody.
pub fn matters(judgement: &Judgement) -> bool {
    judgement.problems.iter().any(names_nobody)
}

/// That a service does not run, by a file that names nobody and was written at `modified`.
pub(crate) fn words(service: &str, path: &str, pid: u32, modified: Timestamp, before_boot: bool) -> String {
    let (who, written) = (if service.is_empty() { "the service" } else { service }, modified.to_utc_minute());
    let since = if before_boot {
        format!("by its date, {written}, the file is of before this boot")
    } else {
        format!("it ended after {written}, when the file was written")
    };
    format!("{who}{NOT_RUNNING}pid {pid} of {path} does not exist; {since}")
}

/// Tells with a pid file that names nobody what else was seen of its service: if nothing of it runs, it is down, which is
/// as grave as an end that was seen; if something does, the file alone is wrong.
pub fn tell<'a>(judgement: &mut Judgement, signs: impl Iterator<Item = (&'a SubjectKey, bool)>) {
    let (runs, gone): (Vec<_>, Vec<_>) = signs.partition(|(_, runs)| *runs);
    let names = |subjects: Vec<(&SubjectKey, bool)>| {
        let named =
            subjects.iter().take(NAMED_MAX).map(|(subject, _)| format!("{} {}", subject.probe, subject.subject));
        let more = subjects.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        named.collect::<Vec<_>>().join(", ") + &more
    };
    for problem in judgement.problems.iter_mut().filter(|problem| names_nobody(problem)) {
        let evidence = &mut problem.evidence;
        if !runs.is_empty() {
            let answers = names(runs.clone());
            problem.summary =
                problem.summary.replace(NOT_RUNNING, &format!(" answers ({answers}), and its pid file is wrong: "));
            evidence.insert("answers", Value::Text(answers));
        } else if !gone.is_empty() {
            problem.severity = Some(Severity::Sev2);
            evidence.insert("silent", Value::Text(names(gone.clone())));
        }
    }
}

fn names_nobody(problem: &Problem) -> bool {
    problem.reason == Reason::PidFileStale && problem.evidence.get(SERVICE_RUNNING_KEY) == Some(&Value::Flag(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::evidence::Evidence;
    use muster_common::ids::ServiceName;

    /// What is told of a stale file beside `signs`, each a probe and what it found.
    fn told(signs: &[(ProbeKind, &str)]) -> Problem {
        let evidence = Evidence::new().flag(SERVICE_RUNNING_KEY, false);
        let stale = Problem::new(Reason::PidFileStale, "spl is not running: pid 7 is gone").evidence(evidence);
        let mut judgement = Judgement::problem(stale);
        let subject = |probe| SubjectKey::new(ServiceName::new("spl").unwrap(), probe, "x");
        let signs: Vec<(SubjectKey, bool)> = signs
            .iter()
            .filter_map(|(probe, found)| {
                let (verdict, reason) = match *found {
                    "ok" => (Verdict::Ok, None),
                    "?" => (Verdict::Unknown, None),
                    reason => (Verdict::Problem, Some(reason.parse().unwrap())),
                };
                Some((subject(*probe), sign(*probe, verdict, reason.into_iter())?))
            })
            .collect();
        tell(&mut judgement, signs.iter().map(|(subject, runs)| (subject, *runs)));
        judgement.problems.remove(0)
    }

    #[test]
    fn a_service_of_which_nothing_runs_is_down() {
        use ProbeKind::{Health, Port, Sqlite, Unit};
        for (signs, severity) in [
            (&[(Port, "port_closed")][..], Some(Severity::Sev2)),
            (&[(Port, "port_closed"), (Unit, "unit_inactive"), (Health, "health_check_failed")], Some(Severity::Sev2)),
            (&[(Unit, "unit_failed"), (Port, "?")], Some(Severity::Sev2)),
            // Nobody was asked, or nobody knows: as grave as by default.
            (&[], None),
            (&[(Port, "?"), (Sqlite, "ok"), (Port, "port_conflict")], None),
        ] {
            let problem = told(signs);
            assert_eq!(problem.severity, severity, "{signs:?}");
            assert!(problem.summary.starts_with("spl is not running: "), "{signs:?}: {}", problem.summary);
        }
    }

    #[test]
    fn a_service_of_which_something_runs_is_not() {
        for signs in [
            &[(ProbeKind::Port, "ok")][..],
            &[(ProbeKind::Port, "port_closed"), (ProbeKind::Health, "ok")],
            &[(ProbeKind::Port, "port_unresponsive")],
        ] {
            let problem = told(signs);
            assert_eq!(problem.severity, None, "{signs:?}");
            assert!(problem.summary.starts_with("spl answers ("), "{signs:?}: {}", problem.summary);
        }
        let problem = told(&[(ProbeKind::Port, "ok")]);
        assert_eq!(problem.summary, "spl answers (port x), and its pid file is wrong: pid 7 is gone");
    }
}
