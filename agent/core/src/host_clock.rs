//! The host's wall clock: how far it is from the coordinator's, whether something keeps it right, and when it was set.
//!
//! What the agent itself measures by is the boot-time clock, which nobody sets; what suffers from a wrong wall clock is
//! said in each sentence, so that nobody fears for the rest.

use crate::clock::Now;
use crate::judgement::{Judgement, Problem, Unknown};
use muster_common::evidence::{Evidence, Value};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// A daemon that starts, or a network that comes back, needs this long.
const SETTLING: Duration = Duration::from_secs(600);
/// From here on certificates may be refused that are well.
const BREAKS_TLS: Duration = Duration::from_secs(3600);
/// A threshold that was crossed is left only below this share of it.
const BACK_PERCENT: u64 = 80;
/// Messages of which the fastest counts.
const HEARD_MAX: usize = 4;

/// What the kernel says of its own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Whether somebody keeps it right.
    pub synchronised: bool,
    /// How wrong it may be, by its own account.
    pub max_error: Duration,
}

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// `None` where the kernel may not be asked.
    pub kernel: Option<Kernel>,
    /// `systemd-timesyncd` left a sign that it has set the clock since the boot.
    pub timesyncd: bool,
    /// The coordinator's wall clock less this host's boot-time clock, in ms, where it was heard lately.
    pub coordinator_less_boottime_ms: Option<i64>,
}

/// What a coordinator's clock was told to be, over the messages of one stream.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    less_boottime_ms: VecDeque<i64>,
}

impl Heard {
    /// Another stream, maybe another coordinator: begins anew.
    pub fn forget(&mut self) {
        self.less_boottime_ms.clear();
    }

    /// A message that was sent at `wall_unix_ms` by the coordinator's clock arrived now.
    pub fn note(&mut self, wall_unix_ms: i64, boottime_ms: u64) {
        if self.less_boottime_ms.len() == HEARD_MAX {
            self.less_boottime_ms.pop_front();
        }
        self.less_boottime_ms.push_back(wall_unix_ms.saturating_sub(signed(boottime_ms)));
    }

    /// The coordinator's clock less our boot-time clock, by the message that was the least time on its way.
    pub fn less_boottime_ms(&self) -> Option<i64> {
        self.less_boottime_ms.iter().max().copied()
    }
}

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How far the clock may be from the coordinator's, and be set at once without a word.
    pub max_skew: Duration,
    /// The kernel must say that it is synchronised, also where it never was.
    pub synchronised: bool,
}

/// Judges the clock over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClockJudge {
    /// Wall clock less boot-time clock and boot-time clock at the last run, in ms.
    last: Option<(i64, u64)>,
    was_synchronised: bool,
    unsynchronised_since_boottime_ms: Option<u64>,
    skewed: bool,
}

impl ClockJudge {
    /// The host was rebooted since this was saved: the boot-time clock starts anew.
    pub fn rebooted(&mut self) {
        self.last = None;
        self.unsynchronised_since_boottime_ms = self.unsynchronised_since_boottime_ms.map(|_| 0);
    }

    /// One reading.
    pub fn judge(&mut self, reading: Reading, limits: Limits, now: Now) -> Judgement {
        let offset_ms = now.wall.unix_ms().saturating_sub(signed(now.boottime_ms));
        let skew_ms = reading.coordinator_less_boottime_ms.map(|theirs| offset_ms.saturating_sub(theirs));
        let lost_for = self.lost_for(reading.kernel, limits, now);
        let seen = seen(reading, skew_ms);
        let mut judgement = Judgement { seen: seen.clone(), ..Judgement::default() };
        judgement.occurrences.extend(self.jump(offset_ms, limits, now));
        let allowed = if self.skewed { limits.max_skew / 100 * as_u32(BACK_PERCENT) } else { limits.max_skew };
        let skew_ms = skew_ms.filter(|skew_ms| Duration::from_millis(skew_ms.unsigned_abs()) > allowed);
        // Without a word from a coordinator it is not known to be right again.
        self.skewed = skew_ms.is_some() || (self.skewed && reading.coordinator_less_boottime_ms.is_none());
        let summary = match (skew_ms, lost_for) {
            (Some(skew_ms), _) => skewed(skew_ms, reading.kernel, limits),
            (None, Some(lost_for)) => unsynchronised(lost_for, reading.kernel),
            (None, None) if self.skewed => {
                let why = "it was off, and no coordinator is heard to tell whether it still is";
                judgement.unknown = Some(Unknown::new(why, None));
                return judgement;
            }
            (None, None) => return judgement,
        };
        let mut problem = Problem::new(Reason::ClockSkew, summary).evidence(seen).next_steps([
            "see what keeps it right: timedatectl; chronyc tracking || timedatectl timesync-status",
            "is it this host alone? musterctl agents list shows the skew of each; if all differ, the coordinator's is wrong",
            "mend the synchronisation and let it slew; stepping the clock under a running database needs a reason",
        ]);
        if skew_ms.is_some_and(|skew_ms| Duration::from_millis(skew_ms.unsigned_abs()) >= BREAKS_TLS) {
            problem = problem.severity(Severity::Sev3);
        }
        if let Some(lost_for) = lost_for {
            problem.evidence = problem.evidence.duration("unsynchronised_for_ms", lost_for);
        }
        judgement.problems.push(problem);
        judgement
    }

    /// For how long nothing has kept the clock right, where something did before, or must.
    fn lost_for(&mut self, kernel: Option<Kernel>, limits: Limits, now: Now) -> Option<Duration> {
        match kernel {
            None => None,
            Some(Kernel { synchronised: true, .. }) => {
                self.was_synchronised = true;
                self.unsynchronised_since_boottime_ms = None;
                None
            }
            Some(_) => {
                // A clock that was never right has not been so since the boot.
                let first = if self.was_synchronised { now.boottime_ms } else { 0 };
                let since = *self.unsynchronised_since_boottime_ms.get_or_insert(first);
                let expected = self.was_synchronised || limits.synchronised;
                Some(now.since(since)).filter(|lost_for| expected && *lost_for >= SETTLING)
            }
        }
    }

    /// The clock was set since the last run.
    fn jump(&mut self, offset_ms: i64, limits: Limits, now: Now) -> Option<Problem> {
        let (before_ms, at_ms) = self.last.replace((offset_ms, now.boottime_ms))?;
        let by_ms = offset_ms.saturating_sub(before_ms);
        let by = Duration::from_millis(by_ms.unsigned_abs());
        if by <= limits.max_skew {
            return None;
        }
        let direction = if by_ms > 0 { "forward" } else { "back" };
        let within = now.since(at_ms);
        let summary = format!(
            "the wall clock was set {direction} by {} (seen within {}); times in logs and dates of files before and after \
             do not compare, timers of the wall clock may have fired or wait",
            human_duration(by),
            human_duration(within)
        );
        let evidence = Evidence::new()
            .with("moved_by_signed_ms", Value::Integer(by_ms))
            .duration("seen_within_ms", within)
            .with("wall_after", Value::Time(now.wall));
        Some(Problem::new(Reason::ClockJumped, summary).evidence(evidence).next_steps([
            "see who set it: journalctl -b -u systemd-timesyncd -u chrony -u ntp; a virtual machine may have been resumed",
            "look at what runs by the wall clock: systemctl list-timers --all; cron jobs may have run twice or not",
        ]))
    }
}

fn skewed(skew_ms: i64, kernel: Option<Kernel>, limits: Limits) -> String {
    let skew = Duration::from_millis(skew_ms.unsigned_abs());
    let side = if skew_ms > 0 { "ahead of" } else { "behind" };
    let why = match kernel {
        Some(Kernel { synchronised: false, .. }) => "; nothing keeps it right",
        Some(_) => "; the kernel says it is kept right, so the coordinator's may be the wrong one",
        None => "",
    };
    let tls = if skew >= BREAKS_TLS {
        "certificates are judged by it and may be refused"
    } else {
        "certificates are judged by it"
    };
    format!(
        "this host's clock is {} {side} the coordinator's, more than {}{why}; {tls}, times in its logs and evidence are \
         off, windows and ages are not",
        human_duration(skew),
        human_duration(limits.max_skew)
    )
}

fn unsynchronised(lost_for: Duration, kernel: Option<Kernel>) -> String {
    let error = kernel.map(|kernel| human_duration(kernel.max_error)).unwrap_or_default();
    format!(
        "nothing has kept this host's clock right for {}: by the kernel's account it may be off by {error} or more, and \
         certificates, logs and evidence go by it",
        human_duration(lost_for)
    )
}

fn seen(reading: Reading, skew_ms: Option<i64>) -> Evidence {
    let mut seen = Evidence::new();
    match reading.kernel {
        Some(kernel) => {
            seen = seen.flag("synchronised", kernel.synchronised).duration("max_error_ms", kernel.max_error)
        }
        None if reading.timesyncd => seen = seen.text("synchronised", "by systemd-timesyncd, since the boot"),
        None => seen = seen.text("synchronised", "the kernel may not be asked (ProtectClock=yes)"),
    }
    match skew_ms {
        Some(skew_ms) => seen.with("skew_signed_ms", Value::Integer(skew_ms)),
        None => seen.text("skew", "no coordinator was heard"),
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn as_u32(percent: u64) -> u32 {
    u32::try_from(percent).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Verdict;
    use muster_common::time::Timestamp;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { max_skew: Duration::from_secs(5), synchronised: false };
    const EPOCH_MS: i64 = 1_700_000_000_000;

    fn kernel(synchronised: bool) -> Option<Kernel> {
        Some(Kernel { synchronised, max_error: Duration::from_secs(16) })
    }

    /// A clock that is `wrong_ms` ahead, looked at each minute.
    fn at(minute: u64, wrong_ms: i64) -> Now {
        let boottime_ms = minute * 60_000;
        Now { boottime_ms, wall: Timestamp::from_unix_ms(EPOCH_MS + signed(boottime_ms) + wrong_ms) }
    }

    fn heard(kernel: Option<Kernel>) -> Reading {
        Reading { kernel, timesyncd: false, coordinator_less_boottime_ms: Some(EPOCH_MS) }
    }

    #[test]
    fn skew_is_told_from_the_threshold_on_and_with_its_side() {
        let mut judge = ClockJudge::default();
        for (wrong_ms, expected) in [
            (4_900, None),
            (5_100, Some("5.1 s ahead of the coordinator's, more than 5 s; the kernel says")),
            (4_500, Some("4.5 s ahead")),
            (3_900, None),
            (4_500, None),
            (-42_000, Some("42 s behind")),
        ] {
            let judgement = judge.judge(heard(kernel(true)), LIMITS, at(1, wrong_ms));
            let told = judgement.problems.first().map(|problem| problem.summary.as_str());
            assert_eq!(told.is_some(), expected.is_some(), "{wrong_ms} {told:?}");
            assert!(told.unwrap_or_default().contains(expected.unwrap_or_default()), "{told:?}");
        }
        let judgement = judge.judge(heard(kernel(false)), LIMITS, at(2, 7_200_000));
        assert!(
            judgement.problems[0].summary.contains("nothing keeps it right; certificates are judged by it and may")
        );
        assert_eq!(judgement.problems[0].severity, Some(Severity::Sev3));
    }

    #[test]
    fn silence_of_the_coordinator_clears_nothing() {
        let mut judge = ClockJudge::default();
        assert_eq!(judge.judge(heard(None), LIMITS, at(1, 9_000)).problems.len(), 1);
        let unheard = Reading::default();
        assert!(judge.judge(unheard, LIMITS, at(2, 9_000)).unknown.is_some());
        assert_eq!(judge.judge(heard(None), LIMITS, at(3, 0)).verdict(), Verdict::Ok);
        assert_eq!(judge.judge(unheard, LIMITS, at(4, 0)).verdict(), Verdict::Ok);
    }

    #[test]
    fn a_slow_message_does_not_make_skew() {
        let mut heard = Heard::default();
        assert_eq!(heard.less_boottime_ms(), None);
        [(1_000, 900), (2_000, 1_890), (3_000, 9_000), (4_000, 9_900), (5_000, 4_900)]
            .into_iter()
            .for_each(|(wall, boottime)| heard.note(wall, boottime));
        assert_eq!(heard.less_boottime_ms(), Some(110));
        heard.forget();
        assert_eq!(heard.less_boottime_ms(), None);
    }

    #[test]
    fn losing_synchronisation_is_told_and_never_having_had_it_only_when_asked() {
        let unheard = |kernel| Reading { kernel, ..Reading::default() };
        let mut judge = ClockJudge::default();
        assert!(judge.judge(unheard(kernel(false)), LIMITS, at(60, 0)).problems.is_empty());
        let wanted = Limits { synchronised: true, ..LIMITS };
        let judgement = ClockJudge::default().judge(unheard(kernel(false)), wanted, at(60, 0));
        assert!(judgement.problems[0].summary.contains("for 60 min"), "{judgement:?}");
        assert!(ClockJudge::default().judge(unheard(kernel(false)), wanted, at(5, 0)).problems.is_empty());
        judge.judge(unheard(kernel(true)), LIMITS, at(61, 0));
        assert!(judge.judge(unheard(kernel(false)), LIMITS, at(62, 0)).problems.is_empty());
        assert!(judge.judge(unheard(None), LIMITS, at(70, 0)).problems.is_empty());
        assert!(judge.judge(unheard(kernel(false)), LIMITS, at(73, 0)).problems[0].summary.contains("for 11 min"));
        assert!(judge.judge(unheard(kernel(true)), LIMITS, at(74, 0)).problems.is_empty());
    }

    #[test]
    fn a_clock_that_was_set_happened_once() {
        let mut judge = ClockJudge::default();
        let mut jumps = |minute, wrong_ms| {
            let judgement = judge.judge(Reading::default(), LIMITS, at(minute, wrong_ms));
            judgement.occurrences.iter().map(|jump| jump.summary.clone()).collect::<Vec<_>>()
        };
        assert_eq!(jumps(1, 0).len() + jumps(2, 3_000).len(), 0);
        assert!(jumps(3, 3_600_000)[0].starts_with("the wall clock was set forward by 59 min"));
        assert!(jumps(4, 3_600_000).is_empty());
        assert!(jumps(5, 0)[0].starts_with("the wall clock was set back by 60 min (seen within 60 s)"));
        judge.rebooted();
        assert!(judge.judge(Reading::default(), LIMITS, at(0, 900_000)).occurrences.is_empty());
    }

    proptest! {
        #[test]
        fn never_panics(times in proptest::collection::vec((any::<u64>(), any::<i64>(), any::<i64>()), 1..6)) {
            let mut judge = ClockJudge::default();
            for (boottime_ms, wall, theirs) in times {
                let reading = Reading { coordinator_less_boottime_ms: Some(theirs), ..Reading::default() };
                let wall = Timestamp::from_unix_ms(wall / 4);
                judge.judge(reading, LIMITS, Now { boottime_ms, wall });
            }
        }
    }
}
