//! A service that may run once: whether it runs here, told to the fleet, and whether it runs twice here, told as wrong.
//!
//! That it runs is a `change` (`what = singleton`): nothing is wrong with it, no list shows it as a fault, and it is as
//! durable as a finding. It is told again from time to time, so that a coordinator which lost it learns it anew.
//!
//! What makes a second one: a process that the pid file named before and that lives on beside its successor is one for
//! certain; one of the same program with the same arguments, outside of the service's own cgroup and family, likely is.
//! The same program with other arguments may be a tool at work and is no second one.

use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use muster_common::evidence::{Evidence, Grade};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};

/// Down for less is a restart.
const STOPPED_AFTER_MS: u64 = 30_000;
/// Told again this often while it runs.
const RETELL_MS: u64 = 6 * 3_600_000;
/// A second one that lives for less may be the old one on its way out, or a check of the new one's config.
const LASTING_MS: u64 = 60_000;
/// Named in the evidence.
const NAMED_MAX: usize = 4;

/// A second one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Which process.
    pub process: ProcessId,
    /// When it started, `CLOCK_BOOTTIME`.
    pub start_boottime_ms: u64,
    /// How sure that it is one.
    pub grade: Grade,
    /// Why it is taken for one.
    pub why: String,
    /// Its cgroup.
    pub cgroup: Option<String>,
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// The main process and its start, if it lives.
    pub main: Option<(ProcessId, u64)>,
    /// When the last main process ended, where it did.
    pub ended_boottime_ms: Option<u64>,
    /// Others of the same kind.
    pub copies: Vec<Copy>,
    /// Why there may be more than were seen.
    pub unseen: Option<String>,
}

/// Tells when it runs and when it does not any more, and of a second one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SingletonJudge {
    /// What was told last.
    told: Option<Told>,
    /// Told as running, and nothing is known of it: since when, as after a reboot.
    #[serde(default)]
    unknown_since_ms: Option<u64>,
    /// What was told was of another boot.
    #[serde(default)]
    of_another_boot: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    running: bool,
    at_ms: u64,
}

impl SingletonJudge {
    /// One look at the service.
    pub fn judge(&mut self, service: &ServiceName, reading: &Reading, now: Now, one_shot: bool) -> Judgement {
        let mut seen = Evidence::new().flag("running", reading.main.is_some());
        if let Some((process, _)) = reading.main {
            seen = seen.count("pid", process.pid);
        }
        if let Some(why) = &reading.unseen {
            seen = seen.text("unseen", why);
        }
        let lasting = |copy: &&Copy| {
            one_shot || now.boottime_ms.saturating_sub(copy.start_boottime_ms.max(main_start(reading))) >= LASTING_MS
        };
        let copies: Vec<&Copy> = reading.copies.iter().filter(lasting).collect();
        let mut judgement = match duplicate(service, reading, &copies, now) {
            Some(problem) => Judgement::problem(problem.evidence(evidence(reading, &copies))),
            // Not wholly seen is no evidence of health.
            None if reading.unseen.is_some() => {
                Judgement::unknown(reading.unseen.clone().unwrap_or_default(), Some("give the agent CAP_SYS_PTRACE"))
            }
            None => Judgement::ok(seen),
        };
        if !one_shot {
            judgement.occurrences.extend(self.tell(service, reading, now));
        }
        judgement
    }

    fn tell(&mut self, service: &ServiceName, reading: &Reading, now: Now) -> Option<Problem> {
        let (running, at_ms) = self.state(reading, now)?;
        let again = self.told.is_some_and(|told| told.running == running);
        let due = self.told.is_none_or(|told| now.boottime_ms >= told.at_ms.saturating_add(RETELL_MS));
        // The fleet takes a reboot for its end: that it runs again is news.
        if again && !(running && (due || self.of_another_boot)) {
            return None;
        }
        let begins = !again || self.of_another_boot;
        self.told = Some(Told { running, at_ms: now.boottime_ms });
        self.of_another_boot = false;
        let (state, words) = if running { ("running", "runs here") } else { ("stopped", "does not run here any more") };
        let mut evidence = told(state).flag("told_again", again);
        if let Some((process, _)) = reading.main {
            evidence = evidence.count("pid", process.pid);
        }
        let mut problem = about(service, words).evidence(evidence);
        problem.observed_boottime_ms = Some(if begins { at_ms.min(now.boottime_ms) } else { now.boottime_ms });
        Some(problem)
    }

    /// Whether it runs, and since when; none while that is not known, or it may be a restart.
    fn state(&mut self, reading: &Reading, now: Now) -> Option<(bool, u64)> {
        let is_told = self.told.is_some_and(|told| told.running);
        let unknown = reading.main.is_none() && reading.ended_boottime_ms.is_none() && is_told;
        let since_ms = unknown.then(|| self.unknown_since_ms.unwrap_or(now.boottime_ms));
        self.unknown_since_ms = since_ms;
        // Where nothing is known of it any more, as after a reboot, it ran last at some time before.
        let gone_ms = reading.ended_boottime_ms.or(since_ms);
        match (reading.main, gone_ms) {
            (Some((_, start_ms)), _) => Some((true, start_ms)),
            (None, Some(gone_ms)) if now.boottime_ms >= gone_ms.saturating_add(STOPPED_AFTER_MS) => {
                Some((false, gone_ms))
            }
            _ => None,
        }
    }

    /// It is no longer watched as one of which there may be one: the fleet is told where it believes that it runs.
    pub fn unwatched(&self, service: &ServiceName) -> Option<Problem> {
        let words = "is no longer watched as such here: the agent's configuration changed";
        let is_told = self.told.is_some_and(|told| told.running);
        is_told.then(|| about(service, words).evidence(told("stopped").flag("no_longer_watched", true)))
    }
}

fn about(service: &ServiceName, words: &str) -> Problem {
    Problem::new(Reason::Change, format!("{service}, of which there may be one, {words}"))
}

fn told(state: &str) -> Evidence {
    Evidence::new().text("what", "singleton").text("new", state)
}

/// When the two began to run beside each other, as far as the main process goes.
fn main_start(reading: &Reading) -> u64 {
    reading.main.map_or(0, |(_, start_ms)| start_ms)
}

fn duplicate(service: &ServiceName, reading: &Reading, copies: &[&Copy], now: Now) -> Option<Problem> {
    let (main, _) = reading.main?;
    let surest = copies.iter().max_by_key(|copy| copy.grade).filter(|copy| copy.grade >= Grade::Likely)?;
    let (n, pid) = (copies.len() + 1, surest.process.pid);
    let since = human_duration(now.since(surest.start_boottime_ms.max(main_start(reading))));
    let summary = format!(
        "{service} may run once and runs {n} times here: pid {} and pid {pid} have run beside each other for {since}; {}",
        main.pid, surest.why
    );
    Some(Problem::new(Reason::DuplicateInstance, summary).grade(surest.grade).next_steps([
        format!("see both: ps -o pid,ppid,lstart,user,args -p {},{pid}", main.pid),
        format!("see which one its clients reach and which one writes: ss -tanp | grep -E 'pid=({}|{pid}),'", main.pid),
        format!("see who started them: systemctl status {} {pid}", main.pid),
    ]))
}

fn evidence(reading: &Reading, copies: &[&Copy]) -> Evidence {
    let count = u64::try_from(copies.len() + 1).unwrap_or(u64::MAX);
    let mut evidence = Evidence::new().count("instances", count);
    if let Some((main, _)) = reading.main {
        evidence = evidence.count("pid", main.pid).count("start_ticks", main.start_ticks);
    }
    for (index, copy) in copies.iter().take(NAMED_MAX).enumerate() {
        evidence = evidence
            .count(&format!("other_{index}_pid"), copy.process.pid)
            .text(&format!("other_{index}_why"), &copy.why)
            .text(&format!("other_{index}_grade"), copy.grade.as_str());
        if let Some(cgroup) = &copy.cgroup {
            evidence = evidence.text(&format!("other_{index}_cgroup"), cgroup);
        }
    }
    evidence
}

impl SingletonJudge {
    /// The host was rebooted: what was told is told anew.
    pub fn rebooted(&mut self) {
        // That it ran before the boot is still what the fleet knows; the clock that said when is another.
        self.told = self.told.map(|told| Told { at_ms: 0, ..told });
        self.unknown_since_ms = None;
        self.of_another_boot = self.told.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Verdict;
    use muster_common::evidence::Value;
    use muster_common::time::Timestamp;

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::from_unix_ms(0) }
    }

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start_ticks: u64::from(pid) }
    }

    fn running(start_ms: u64) -> Reading {
        Reading { main: Some((process(1), start_ms)), ..Reading::default() }
    }

    fn copy(grade: Grade, start_boottime_ms: u64) -> Copy {
        let why = "the pid file named it before".to_owned();
        Copy { process: process(2), start_boottime_ms, grade, why, cgroup: None }
    }

    fn judge(judge: &mut SingletonJudge, reading: &Reading, now_ms: u64) -> Judgement {
        judge.judge(&ServiceName::new("spl").unwrap(), reading, at(now_ms), false)
    }

    fn told(judgement: &Judgement) -> Vec<(String, Option<u64>)> {
        let state = |problem: &Problem| match problem.evidence.get("new") {
            Some(Value::Text(state)) => state.clone(),
            other => panic!("{other:?}"),
        };
        judgement.occurrences.iter().map(|problem| (state(problem), problem.observed_boottime_ms)).collect()
    }

    #[test]
    fn it_is_told_that_it_runs_and_that_it_stopped_and_no_restart() {
        let mut of = SingletonJudge::default();
        assert!(told(&judge(&mut of, &Reading::default(), 1_000)).is_empty(), "nothing is known yet");
        assert_eq!(told(&judge(&mut of, &running(500), 2_000)), [("running".to_owned(), Some(500))]);
        assert!(told(&judge(&mut of, &running(500), 12_000)).is_empty());
        let down = Reading { ended_boottime_ms: Some(20_000), ..Reading::default() };
        assert!(told(&judge(&mut of, &down, 40_000)).is_empty(), "a restart");
        assert!(told(&judge(&mut of, &running(41_000), 42_000)).is_empty());
        let down = Reading { ended_boottime_ms: Some(50_000), ..Reading::default() };
        assert_eq!(told(&judge(&mut of, &down, 90_000)), [("stopped".to_owned(), Some(50_000))]);
        assert!(told(&judge(&mut of, &down, 90_000 + RETELL_MS)).is_empty());
        of = serde_json::from_str(&serde_json::to_string(&of).unwrap()).unwrap();
        let start = 100_000 + RETELL_MS;
        assert_eq!(told(&judge(&mut of, &running(start), start)), [("running".to_owned(), Some(start))]);
        let later = start + RETELL_MS;
        assert_eq!(told(&judge(&mut of, &running(start), later)), [("running".to_owned(), Some(later))]);
    }

    /// It ran until the host died: after the boot nothing is known of its process.
    #[test]
    fn after_a_reboot_it_is_told_that_it_does_not_run_or_runs_again() {
        let mut of = SingletonJudge::default();
        judge(&mut of, &running(500), 9_000_000);
        of.rebooted();
        let mut moved = of.clone();
        assert!(told(&judge(&mut moved, &Reading::default(), 20_000)).is_empty(), "it may start yet");
        moved = serde_json::from_str(&serde_json::to_string(&moved).unwrap()).unwrap();
        assert!(told(&judge(&mut moved, &Reading::default(), 49_999)).is_empty(), "just below");
        let judgement = judge(&mut moved, &Reading::default(), 50_000);
        assert_eq!(told(&judgement), [("stopped".to_owned(), Some(20_000))]);
        assert!(told(&judge(&mut moved, &Reading::default(), 90_000)).is_empty(), "once");
        assert_eq!(told(&judge(&mut moved, &running(95_000), 96_000)), [("running".to_owned(), Some(95_000))]);
        // The fleet forgot it with the reboot: it is not left in that for hours.
        assert!(told(&judge(&mut of, &Reading::default(), 20_000)).is_empty());
        assert_eq!(told(&judge(&mut of, &running(25_000), 26_000)), [("running".to_owned(), Some(25_000))]);
        assert!(told(&judge(&mut of, &running(25_000), 56_000)).is_empty(), "once");
    }

    #[test]
    fn what_is_no_longer_watched_as_such_is_told_as_stopped() {
        let mut of = SingletonJudge::default();
        let spl = ServiceName::new("spl").unwrap();
        assert_eq!(of.unwatched(&spl), None, "nobody believes that it runs");
        judge(&mut of, &running(500), 2_000);
        let problem = of.unwatched(&spl).unwrap();
        assert_eq!(problem.evidence.get("new"), Some(&Value::Text("stopped".into())), "{problem:?}");
        judge(&mut of, &Reading { ended_boottime_ms: Some(20_000), ..Reading::default() }, 60_000);
        assert_eq!(of.unwatched(&spl), None, "told already");
    }

    #[test]
    fn a_second_one_that_lasts_is_told_and_a_short_or_doubtful_one_is_not() {
        let mut of = SingletonJudge::default();
        let with = |copy: Copy| Reading { copies: vec![copy], ..running(0) };
        let young = judge(&mut of, &with(copy(Grade::Confirmed, 100_000)), 100_000 + LASTING_MS - 1);
        assert_eq!(young.verdict(), Verdict::Ok, "just below");
        let doubtful = judge(&mut of, &with(copy(Grade::Possible, 0)), 500_000);
        assert_eq!(doubtful.verdict(), Verdict::Ok, "{doubtful:?}");
        let judgement = judge(&mut of, &with(copy(Grade::Likely, 100_000)), 100_000 + LASTING_MS);
        let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
        assert_eq!((problem.reason, problem.grade), (Reason::DuplicateInstance, Grade::Likely));
        assert!(problem.summary.starts_with("spl may run once and runs 2 times here: pid 1 and pid 2"), "{problem:?}");
        // The successor is the younger one after a takeover of the pid file.
        let successor = Reading { main: Some((process(1), 200_000)), ..with(copy(Grade::Confirmed, 0)) };
        assert_eq!(judge(&mut of, &successor, 200_000 + LASTING_MS - 1).verdict(), Verdict::Ok);
        assert_eq!(judge(&mut of, &successor, 200_000 + LASTING_MS).verdict(), Verdict::Problem);
    }

    #[test]
    fn what_was_not_wholly_seen_neither_raises_nor_clears() {
        let reading = Reading { unseen: Some("3 processes are hidden".into()), ..running(0) };
        assert_eq!(judge(&mut SingletonJudge::default(), &reading, 500_000).verdict(), Verdict::Unknown);
    }
}
