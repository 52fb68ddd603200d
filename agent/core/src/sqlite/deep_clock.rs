//! When a deep check of a database is due.
//!
//! Within a boot the boot-time clock tells. Across a reboot only the wall clock can: what came due while the host was down
//! runs soon after, and not at once, since then everything on the host starts, and hosts that share a disk start together.

use crate::clock::Now;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// After a boot the host has this long for itself,
const HOLD: Duration = Duration::from_secs(10 * 60);
/// and each check begins at some moment of so long a time after that.
const SPREAD: Duration = Duration::from_secs(20 * 60);

/// The last deep check that told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LastDeep {
    /// By the boot-time clock of this boot.
    boottime_ms: Option<u64>,
    /// By the wall clock.
    wall: Option<Timestamp>,
}

impl LastDeep {
    /// One has ended now.
    pub const fn at(now: Now) -> Self {
        Self { boottime_ms: Some(now.boottime_ms), wall: Some(now.wall) }
    }

    /// As earlier versions remembered it: not by the wall clock.
    pub const fn of_boot(boottime_ms: Option<u64>) -> Self {
        Self { boottime_ms, wall: None }
    }

    /// When, by the clock of this boot.
    pub const fn boottime_ms(&self) -> Option<u64> {
        self.boottime_ms
    }

    /// The host was rebooted since: the boot-time clock starts anew.
    pub const fn rebooted(&mut self) {
        self.boottime_ms = None;
    }

    /// How long ago; of an earlier boot as the wall clock has it, which may have been set since.
    pub fn age(&self, now: Now) -> Option<Duration> {
        let within_boot = self.boottime_ms.map(|at| now.since(at));
        within_boot.or_else(|| self.wall.map(|at| now.wall.since(at)))
    }

    /// Whether the next one is due, `interval` after the last. Of each `draw` another moment after a boot.
    pub fn is_due(&self, now: Now, interval: Duration, draw: u64) -> bool {
        if let Some(at) = self.boottime_ms {
            return at > now.boottime_ms || now.since(at) >= interval;
        }
        let Some(at) = self.wall else { return true };
        let up = now.since(0);
        let spread_ms = u64::try_from(SPREAD.as_millis()).unwrap_or(u64::MAX).max(1);
        // With a wall clock that was set back the interval counts from the boot.
        up >= HOLD + Duration::from_millis(draw % spread_ms) && (now.wall.since(at) >= interval || up >= interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const MINUTE: Duration = Duration::from_secs(60);

    /// So long after the boot, and by the wall clock so long after its beginning.
    fn now(up: Duration, wall: Duration) -> Now {
        Now { boottime_ms: u64::try_from(up.as_millis()).unwrap(), wall: Timestamp::UNIX_EPOCH + wall }
    }

    #[test]
    fn a_first_one_is_due_at_once_and_the_next_after_the_interval() {
        assert!(LastDeep::default().is_due(now(MINUTE, DAY), DAY, 0));
        let last = LastDeep::at(now(DAY, 9 * DAY));
        assert!(!last.is_due(now(2 * DAY - MINUTE, 20 * DAY), DAY, 0), "the wall clock has no say within a boot");
        assert!(last.is_due(now(2 * DAY, 9 * DAY), DAY, 0));
        assert!(last.is_due(now(MINUTE, 9 * DAY), DAY, 0), "a boot-time clock that went back");
        assert_eq!(last.age(now(DAY + MINUTE, DAY)), Some(MINUTE));
    }

    #[test]
    fn what_came_due_while_the_host_was_down_runs_soon_and_not_at_once() {
        let mut last = LastDeep::at(now(2 * MINUTE, 9 * DAY));
        last.rebooted();
        let after = |up: Duration, draw| last.is_due(now(up, 12 * DAY + up), DAY, draw);
        assert!(!after(3 * MINUTE, 0) && !after(HOLD - MINUTE, 0), "the host boots");
        assert!(after(HOLD, 0));
        let minutes = |draw: u64| (0..=60).find(|minutes| after(*minutes * MINUTE, draw)).unwrap();
        let firsts: Vec<u32> = [0, 400_000, 900_000, 1_199_999, u64::MAX].into_iter().map(minutes).collect();
        assert!(firsts.iter().all(|minutes| (10..=30).contains(minutes)), "{firsts:?}");
        assert!(firsts.windows(2).any(|pair| pair[0] != pair[1]), "{firsts:?}");
        assert_eq!(last.age(now(MINUTE, 12 * DAY)), Some(3 * DAY));
    }

    #[test]
    fn what_was_not_due_keeps_its_time_and_a_wrong_clock_cannot_hold_it_back() {
        let mut last = LastDeep::at(now(5 * DAY, 9 * DAY));
        last.rebooted();
        let at = |up: Duration, wall: Duration| last.is_due(now(up, wall), DAY, 0);
        assert!(!at(60 * MINUTE, 9 * DAY + 61 * MINUTE), "an hour after the last");
        assert!(!at(DAY - 2 * MINUTE, 10 * DAY - MINUTE));
        assert!(at(DAY - MINUTE, 10 * DAY), "a day after the last");
        assert!(!at(60 * MINUTE, MINUTE) && at(DAY, MINUTE), "1970 until somebody tells the time");
    }
}
