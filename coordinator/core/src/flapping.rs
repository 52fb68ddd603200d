//! Whether something changes between wrong and well too often for its recoveries to be believed: by the part of the last
//! looks at which it had changed, with two thresholds, so that the word itself does not flap.
//!
//! Damps, and swallows nothing: what flaps is paged without another hold and stays one incident until it is calm; its
//! recovery is told then.

use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Looks that count: twenty intervals lie between them.
pub const LOOKS: u32 = 21;

/// When something flaps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlapPolicy {
    /// From one look to the next.
    pub look: Duration,
    /// It begins to flap when at least this part of the looks saw a change, in percent ...
    pub high_percent: u32,
    /// ... and ends when no more than this part did.
    pub low_percent: u32,
}

impl Default for FlapPolicy {
    fn default() -> Self {
        Self { look: Duration::from_secs(30), high_percent: 30, low_percent: 10 }
    }
}

impl FlapPolicy {
    fn window(&self) -> Duration {
        self.look * (LOOKS - 1)
    }

    /// So many changes are that part of the looks.
    fn changes(percent: u32) -> usize {
        usize::try_from(percent.saturating_mul(LOOKS - 1) / 100).unwrap_or(usize::MAX)
    }
}

/// When a cause changed, newest last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flaps {
    changes: VecDeque<Timestamp>,
    flapping: bool,
}

impl Flaps {
    /// It changed.
    pub(crate) fn changed(&mut self, at: Timestamp, policy: &FlapPolicy) {
        self.flapping = self.is_flapping(at, policy);
        if self.changes.len() >= LOOKS as usize {
            self.changes.pop_front();
        }
        self.changes.push_back(at);
        self.flapping = self.is_flapping(at, policy);
    }

    /// Part of the last looks that saw a change, in percent.
    pub fn percent(&self, now: Timestamp, policy: &FlapPolicy) -> u32 {
        let inside = self.changes.iter().filter(|at| **at + policy.window() > now).count();
        u32::try_from(inside).unwrap_or(LOOKS).min(LOOKS - 1) * 100 / (LOOKS - 1)
    }

    /// Whether its recoveries are not believed now.
    pub fn is_flapping(&self, now: Timestamp, policy: &FlapPolicy) -> bool {
        let percent = self.percent(now, policy);
        percent >= policy.high_percent || (self.flapping && percent > policy.low_percent)
    }

    /// When it will be calm, if it changes no more; none when it is.
    pub(crate) fn calm_at(&self, now: Timestamp, policy: &FlapPolicy) -> Option<Timestamp> {
        if !self.is_flapping(now, policy) {
            return None;
        }
        // So many of the newest changes may still be inside; the one before them must be out.
        let before = self.changes.len().checked_sub(FlapPolicy::changes(policy.low_percent) + 1)?;
        self.changes.get(before).map(|at| *at + policy.window())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_000_000) + Duration::from_secs(seconds)
    }

    #[test]
    fn it_flaps_from_the_high_mark_to_the_low_one() {
        let policy = FlapPolicy::default();
        let mut flaps = Flaps::default();
        for second in 0..5 {
            flaps.changed(at(second), &policy);
        }
        assert_eq!((flaps.percent(at(5), &policy), flaps.is_flapping(at(5), &policy)), (25, false), "just below");
        flaps.changed(at(100), &policy);
        assert_eq!((flaps.percent(at(100), &policy), flaps.is_flapping(at(100), &policy)), (30, true));
        // Two changes of twenty looks are few enough: the change of second 4 is the third newest but one.
        assert_eq!(flaps.calm_at(at(100), &policy), Some(at(603)));
        assert!(flaps.is_flapping(at(602), &policy));
        assert!(!flaps.is_flapping(at(603), &policy));
        assert_eq!(flaps.calm_at(at(700), &policy), None);
    }

    #[test]
    fn slow_changes_never_flap_and_memory_is_bounded() {
        let policy = FlapPolicy::default();
        let mut flaps = Flaps::default();
        for change in 0..1000 {
            flaps.changed(at(change * 150), &policy);
            assert!(!flaps.is_flapping(at(change * 150), &policy));
        }
        assert_eq!(flaps.changes.len(), LOOKS as usize);
    }
}
