//! The ends of a service that keeps restarting: its loop is the finding, and each life is a number of it.
//!
//! Must never hide an end that lasts: what nobody starts again is told by itself, in a loop as well.

use super::{Condition, Ledger, Watched};
use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use muster_common::finding::{Finding, SubjectKey};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use std::time::Duration;

/// Ends that are told one by one while their loop is open, each with how it ended: the first of them tell most, the next
/// nine hundred of an hour fill spools and journals. Beyond it the loop counts them (`ends_in_loop`).
const ENDS_TOLD_MAX: u32 = 12;
/// What is down for longer than this is the loop's end, whatever comes later: nobody who starts it again is in sight. As
/// long as a loop waits before it says so itself.
const LASTS: Duration = Duration::from_secs(60);

impl Ledger {
    /// How grave the open loop of the subject's service is, where the question matters.
    pub(super) fn loop_of(&self, subject: &SubjectKey, judgement: &Judgement) -> Option<Severity> {
        let told = |watched: &Watched| watched.loop_ends_told > 0 || watched.loop_restarts_told > 0;
        let told_before = || self.watched.get(subject).is_some_and(told);
        let ends = |problem: &Problem| is_end(problem.reason) || problem.reason == Reason::ProcessRestarted;
        if !judgement.problems.iter().chain(&judgement.occurrences).any(ends) && !told_before() {
            return None;
        }
        let open = self.of_service(&subject.service).flat_map(|state| state.open);
        open.filter(|finding| finding.key.reason == Reason::RestartLoop).map(|finding| finding.severity).max()
    }
}

impl Watched {
    /// Whether a restart within a loop is told by the loop alone, after so many that were told one by one.
    pub(super) fn counts_for_loop(&mut self, reason: Reason) -> bool {
        if reason != Reason::ProcessRestarted {
            return false;
        }
        let is_told = self.loop_restarts_told < ENDS_TOLD_MAX;
        self.loop_restarts_told += u32::from(is_told);
        !is_told
    }
}

impl Condition {
    /// Whether such an end is told by the loop alone, after so many that were told one by one.
    pub(super) fn is_folded(&self, ends_told: u32, now: Now) -> bool {
        ends_told >= ENDS_TOLD_MAX && now.since(self.sick_since_ms) < LASTS
    }
}

impl Condition {
    /// Whether an end that stays open, since no life is seen well, may be told in the words of a newer life again.
    pub(super) fn is_next_life_told(&mut self, now: Now) -> bool {
        let is_due = now.since(self.life_told_ms) >= LASTS;
        if is_due {
            self.life_told_ms = now.boottime_ms;
        }
        is_due
    }
}

/// Whether it is one of the ends that a loop of `severity` is made of. What is graver speaks for itself.
pub(super) fn is_of_loop(finding: &Finding, severity: Severity) -> bool {
    is_end(finding.key.reason) && finding.severity <= severity
}

/// What each life of a loop leaves behind until the next one is seen.
const fn is_end(reason: Reason) -> bool {
    matches!(reason, Reason::ProcessDown | Reason::PidFileStale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::evidence::Evidence;
    use muster_common::finding::{FindingEvent, ProbeKind};
    use muster_common::ids::ServiceName;
    use muster_common::time::Timestamp;

    /// A service whose probes look every second.
    struct Host {
        ledger: Ledger,
        now_ms: u64,
        /// What was told of its ends.
        told: Vec<String>,
    }

    impl Host {
        fn new() -> Self {
            Self { ledger: Ledger::default(), now_ms: 0, told: Vec::new() }
        }

        fn look(&mut self, probe: ProbeKind, problem: Option<Problem>) {
            let subject = SubjectKey::new(ServiceName::new("spl").unwrap(), probe, "x");
            let judgement = problem.map_or_else(Judgement::default, Judgement::problem);
            let now = Now { boottime_ms: self.now_ms, wall: Timestamp::UNIX_EPOCH };
            let changes = self.ledger.observe(now, &subject, &judgement);
            // Every step survives a restart.
            self.ledger = serde_json::from_str(&serde_json::to_string(&self.ledger).unwrap()).unwrap();
            self.told.extend(changes.iter().filter(|_| probe == ProbeKind::PidFile).map(
                |change| match &change.event {
                    FindingEvent::Opened(finding) => format!("+{}", finding.key.reason),
                    FindingEvent::Cleared { key, .. } => format!("-{}", key.reason),
                    other => panic!("{other:?}"),
                },
            ));
        }

        fn in_loop(&mut self, severity: Option<Severity>) {
            let problem = |severity| Problem::new(Reason::RestartLoop, "loop").severity(severity);
            self.look(ProbeKind::Process, severity.map(problem));
        }

        fn ends(&mut self, severity: Severity, for_s: u64) {
            for _ in 0..for_s {
                self.now_ms += 1_000;
                self.look(ProbeKind::PidFile, Some(Problem::new(Reason::ProcessDown, "down").severity(severity)));
            }
        }

        fn lives(&mut self, for_s: u64) {
            for _ in 0..for_s {
                self.now_ms += 1_000;
                self.look(ProbeKind::PidFile, None);
            }
        }

        /// Rounds of a second down and three up; what was told in them.
        fn rounds(&mut self, rounds: usize, severity: Severity) -> usize {
            self.told.clear();
            for _ in 0..rounds {
                self.ends(severity, 1);
                self.lives(3);
            }
            self.told.len()
        }
    }

    #[test]
    fn of_a_loop_the_first_ends_are_told_and_then_the_one_that_lasts() {
        let mut host = Host::new();
        assert_eq!(host.rounds(20, Severity::Sev2), 40, "no loop is open");
        host.in_loop(Some(Severity::Sev2));
        // An hour of lives.
        assert_eq!(host.rounds(900, Severity::Sev2), 2 * ENDS_TOLD_MAX as usize);
        // Until a start is in sight no more.
        host.told.clear();
        host.ends(Severity::Sev2, LASTS.as_secs());
        assert_eq!(host.told, [""; 0]);
        host.ends(Severity::Sev2, 1);
        assert_eq!(host.told, ["+process_down"], "it is down for good");
        host.ends(Severity::Sev2, 100);
        host.lives(2);
        assert_eq!(host.told, ["+process_down", "-process_down"]);
        // The next loop counts anew.
        host.in_loop(None);
        host.in_loop(None);
        assert_eq!(host.rounds(2, Severity::Sev2), 4);
        host.in_loop(Some(Severity::Sev2));
        assert_eq!(host.rounds(20, Severity::Sev2), 2 * ENDS_TOLD_MAX as usize);
        // And its own end tells of what is down at that moment.
        host.told.clear();
        host.ends(Severity::Sev2, 1);
        host.in_loop(None);
        host.in_loop(None);
        host.ends(Severity::Sev2, 1);
        assert_eq!(host.told, ["+process_down"]);
    }

    #[test]
    fn what_is_graver_than_its_loop_is_told_each_time() {
        let mut host = Host::new();
        host.in_loop(Some(Severity::Sev3));
        assert_eq!(host.rounds(20, Severity::Sev2), 40);
    }

    /// Lives too short for two looks at each: its end stays open with the words of each life, and each life is told as
    /// a restart.
    #[test]
    fn lives_too_short_to_be_seen_well_are_the_loop_s_numbers_too() {
        let mut host = Host::new();
        host.in_loop(Some(Severity::Sev2));
        let subject = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::PidFile, "x");
        let (mut updates, mut restarts, mut last) = (0, 0, String::new());
        for life in 0..900_u32 {
            host.now_ms += 4_000;
            let process = Evidence::new().count("pid", life);
            let down = Problem::new(Reason::ProcessDown, format!("spl (pid {life}) ended")).evidence(process);
            let restarted = Problem::new(Reason::ProcessRestarted, format!("spl restarted as pid {life}"));
            let judgement = Judgement::problem(down).occurred(restarted);
            let now = Now { boottime_ms: host.now_ms, wall: Timestamp::UNIX_EPOCH };
            for change in host.ledger.observe(now, &subject, &judgement) {
                match change.event {
                    FindingEvent::Updated(finding) => (updates, last) = (updates + 1, finding.summary),
                    FindingEvent::Occurred(_) => restarts += 1,
                    FindingEvent::Opened(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(restarts, ENDS_TOLD_MAX);
        assert!((1..=60).contains(&updates), "{updates}");
        // Its last words are told, though late.
        let seen = "spl (pid 900) ended";
        for _ in 0..100 {
            let process = Evidence::new().count("pid", 900u32);
            let judgement = Judgement::problem(Problem::new(Reason::ProcessDown, seen).evidence(process));
            host.now_ms += 4_000;
            let now = Now { boottime_ms: host.now_ms, wall: Timestamp::UNIX_EPOCH };
            for change in host.ledger.observe(now, &subject, &judgement) {
                if let FindingEvent::Updated(finding) = change.event {
                    last = finding.summary;
                }
            }
        }
        assert_eq!(last, seen);
    }

    /// The boot-time clock starts anew: what was seen before it did not begin in the future.
    #[test]
    fn a_reboot_hides_no_end() {
        let mut host = Host::new();
        host.in_loop(Some(Severity::Sev2));
        host.rounds(20, Severity::Sev2);
        host.told.clear();
        host.ends(Severity::Sev2, 10);
        host.ledger.rebooted();
        host.now_ms = 0;
        host.ends(Severity::Sev2, LASTS.as_secs());
        assert_eq!(host.told, ["+process_down"]);
    }
}
