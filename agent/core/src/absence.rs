//! Whether a service runs at all whose pid file names nobody: what the other probes saw of it.
//!
//! Must never call a service down of which something was seen to run: its file may be that of a second start that failed.

use crate::diagnose::{PID_KEY, number, text};
use crate::judgement::{Judgement, Problem, Verdict};
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;

/// Evidence key of a stale pid file: another process of the service is known to run.
pub(crate) const SERVICE_RUNNING_KEY: &str = "service_running";
/// How such a finding says that no other is; untrue as soon as something answers for the service.
const NOT_RUNNING: &str = " is not running: ";
/// And how it tells the time of the file, which says nothing of an end then.
const ENDED_AFTER: &str = "it ended after ";
const WHEN_WRITTEN: &str = ", when the file was written";
const FILE_OF: &str = "the file was written at ";
/// What answers, or does not, is named up to so many.
const NAMED_MAX: usize = 3;

/// What a look at a subject says of whether its service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    /// Something of it does: who, where the look tells.
    Runs(Option<String>),
    /// Nothing that should answer does.
    Silent,
    /// Its process was seen to end: that says all of it, and what answered before does so no more.
    Ended,
}

/// What a look found, `None` where it says neither. `has_process` tells whether a unit that is well has a process at all: one
/// that others start when they need it is well without.
pub fn sign(
    probe: ProbeKind,
    verdict: Verdict,
    reasons: impl Iterator<Item = Reason>,
    has_process: bool,
    seen: Option<&Evidence>,
) -> Option<Sign> {
    let who = || {
        let seen = seen?;
        Some(format!("{} (pid {})", text(seen, "comm")?, number(seen, PID_KEY)?))
    };
    let mut found = None;
    for reason in reasons {
        match (probe, reason) {
            (_, Reason::ProcessDown | Reason::ProcessZombie) => return Some(Sign::Ended),
            _ if verdict != Verdict::Problem => {}
            (ProbeKind::Port, Reason::PortClosed) | (ProbeKind::Unit, Reason::UnitFailed | Reason::UnitInactive) => {
                found = Some(Sign::Silent);
            }
            // Somebody listens, well or not.
            (ProbeKind::Port, Reason::PortUnresponsive) => found = Some(Sign::Runs(who())),
            _ => {}
        }
    }
    match (probe, verdict) {
        (ProbeKind::Port | ProbeKind::Health, Verdict::Ok) => Some(Sign::Runs(who())),
        (ProbeKind::Unit, Verdict::Ok) if has_process => Some(Sign::Runs(who())),
        _ => found,
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
        format!("{ENDED_AFTER}{written}{WHEN_WRITTEN}")
    };
    format!("{who}{NOT_RUNNING}pid {pid} of {path} does not exist; {since}")
}

/// Tells with a pid file that names nobody what else was seen of its service: if nothing of it runs, it is down, which is
/// as grave as an end that was seen; if something does, the file is wrong, or a stranger has taken the service's place.
pub fn tell<'a>(judgement: &mut Judgement, signs: impl Iterator<Item = (&'a SubjectKey, Sign)>) {
    let (mut runs, mut gone, mut pid) = (Vec::new(), Vec::new(), None);
    for (subject, sign) in signs {
        let name = format!("{} {}", subject.probe, subject.subject);
        match sign {
            Sign::Runs(who) => {
                runs.push(who.as_ref().map_or_else(|| name.clone(), |who| format!("{name}: {who}")));
                pid = pid.or_else(|| Some(who?.rsplit_once("(pid ")?.1.trim_end_matches(')').to_owned()));
            }
            Sign::Silent => gone.push(name),
            Sign::Ended => return,
        }
    }
    for problem in judgement.problems.iter_mut().filter(|problem| names_nobody(problem)) {
        if !runs.is_empty() {
            let answers = names(&runs);
            let words = format!(" answers ({answers}), and its pid file is wrong: ");
            problem.summary = problem.summary.replace(NOT_RUNNING, &words);
            problem.summary = problem.summary.replace(ENDED_AFTER, FILE_OF).replace(WHEN_WRITTEN, "");
            problem.evidence.insert("answers", Value::Text(answers));
            problem.next_steps = who_answers(pid.as_deref());
        } else if !gone.is_empty() {
            problem.severity = Some(Severity::Sev2);
            problem.evidence.insert("silent", Value::Text(names(&gone)));
        }
    }
}

fn names(all: &[String]) -> String {
    let more = all.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ") + &more
}

/// To start a second instance of what answers is the mistake to keep people from.
fn who_answers(pid: Option<&str>) -> Vec<String> {
    let see = match pid {
        Some(pid) => format!("before anything is started, see whether pid {pid} is the service: ps -fp {pid}"),
        None => "before anything is started, see who answers: ss -lntpx, then ps -fp its pid".to_owned(),
    };
    vec![
        see,
        "if it is the service: restart it through its init system when that may be, which writes the file anew"
            .to_owned(),
        "if it is a stranger: the service is down; stop the stranger, then start the service".to_owned(),
    ]
}

fn names_nobody(problem: &Problem) -> bool {
    problem.reason == Reason::PidFileStale && problem.evidence.get(SERVICE_RUNNING_KEY) == Some(&Value::Flag(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::ids::ServiceName;

    /// What is told of a stale file beside `signs`, each a probe and what it found.
    fn told(signs: &[(ProbeKind, &str)]) -> Problem {
        let evidence = Evidence::new().flag(SERVICE_RUNNING_KEY, false);
        let words = words("spl", "/run/spl.pid", 7, Timestamp::UNIX_EPOCH, false);
        let stale = Problem::new(Reason::PidFileStale, words).evidence(evidence).next_steps(["start the service"]);
        let mut judgement = Judgement::problem(stale);
        let subject = |probe| SubjectKey::new(ServiceName::new("spl").unwrap(), probe, "x");
        let holder = Evidence::new().count(PID_KEY, 9u32).text("comm", "python3");
        let signs: Vec<(SubjectKey, Sign)> = signs
            .iter()
            .filter_map(|(probe, found)| {
                let (verdict, reason) = match *found {
                    "ok" => (Verdict::Ok, None),
                    // A unit that others start when they need it.
                    "ok, no process" => (Verdict::Ok, None),
                    "?" => (Verdict::Unknown, None),
                    reason => (Verdict::Problem, Some(reason.parse().unwrap())),
                };
                Some((subject(*probe), sign(*probe, verdict, reason.into_iter(), *found == "ok", Some(&holder))?))
            })
            .collect();
        tell(&mut judgement, signs.iter().map(|(subject, sign)| (subject, sign.clone())));
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
            (&[(Unit, "ok, no process")], None),
            // Its end was seen: who answered a moment ago does so no more.
            (&[(Port, "ok"), (ProbeKind::PidFile, "process_down")], None),
        ] {
            let problem = told(signs);
            assert_eq!(problem.severity, severity, "{signs:?}");
            assert!(problem.summary.starts_with("spl is not running: "), "{signs:?}: {}", problem.summary);
            assert_eq!(problem.next_steps, ["start the service"]);
        }
    }

    #[test]
    fn a_service_of_which_something_runs_is_not() {
        for signs in [
            &[(ProbeKind::Port, "ok")][..],
            &[(ProbeKind::Port, "port_closed"), (ProbeKind::Health, "ok")],
            &[(ProbeKind::Port, "port_unresponsive")],
            &[(ProbeKind::Unit, "ok")],
        ] {
            let problem = told(signs);
            assert_eq!(problem.severity, None, "{signs:?}");
            assert!(problem.summary.starts_with("spl answers ("), "{signs:?}: {}", problem.summary);
        }
        let problem = told(&[(ProbeKind::Port, "ok")]);
        assert_eq!(
            problem.summary,
            "spl answers (port x: python3 (pid 9)), and its pid file is wrong: pid 7 of /run/spl.pid does not exist; the file \
             was written at 1970-01-01 00:00 UTC"
        );
        // A second instance beside the first is the last thing that anybody wants.
        assert!(
            problem.next_steps[0].ends_with("see whether pid 9 is the service: ps -fp 9"),
            "{:?}",
            problem.next_steps
        );
        assert!(problem.next_steps.iter().all(|step| !step.starts_with("start ")), "{:?}", problem.next_steps);
    }
}
