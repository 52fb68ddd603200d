//! How fast something runs out, from what was seen of it lately.
//!
//! The slope is the median over all pairs of samples (Theil and Sen): one large file that is written and deleted again
//! does not bend it. Two windows: ten minutes see a runaway log, a day sees a slow leak.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Samples kept per window: 190 pairs cost nothing.
const SAMPLES_MAX: usize = 20;
/// Fewer tell no direction.
const SAMPLES_MIN: usize = 6;
/// Least time between samples of the short and of the long window.
const SHORT_GAP_MS: u64 = 30_000;
const LONG_GAP_MS: u64 = 3_600_000;
/// Nobody acts today on what happens later than this.
const HORIZON: Duration = Duration::from_secs(30 * 86_400);

/// What was left, over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Trend {
    short: VecDeque<(u64, u64)>,
    long: VecDeque<(u64, u64)>,
}

/// It will be used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// How much goes in an hour.
    pub per_hour: u64,
    /// In how long nothing is left, if it goes on like this.
    pub left: Duration,
}

impl Trend {
    /// Takes in that `left` was left at `boottime_ms`.
    pub(super) fn add(&mut self, boottime_ms: u64, left: u64) {
        add(&mut self.short, boottime_ms, left, SHORT_GAP_MS);
        add(&mut self.long, boottime_ms, left, LONG_GAP_MS);
    }

    /// When nothing will be left of `left`; `None` where it does not shrink steadily, or will last for long.
    pub(super) fn outlook(&self, left: u64) -> Option<Outlook> {
        let per_hour = loss_per_hour(&self.short).or_else(|| loss_per_hour(&self.long))?;
        let left_ms = u128::from(left) * 3_600_000 / u128::from(per_hour.max(1));
        let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(u64::MAX));
        (left <= HORIZON).then_some(Outlook { per_hour, left })
    }
}

fn add(samples: &mut VecDeque<(u64, u64)>, boottime_ms: u64, left: u64, gap_ms: u64) {
    let last = samples.back().map(|(at_ms, _)| *at_ms);
    if last.is_some_and(|last| boottime_ms < last.saturating_add(gap_ms)) {
        return;
    }
    // After a long silence what was before tells nothing of now.
    if last.is_some_and(|last| boottime_ms > last.saturating_add(gap_ms.saturating_mul(10))) {
        samples.clear();
    }
    if samples.len() == SAMPLES_MAX {
        samples.pop_front();
    }
    samples.push_back((boottime_ms, left));
}

fn loss_per_hour(samples: &VecDeque<(u64, u64)>) -> Option<u64> {
    if samples.len() < SAMPLES_MIN {
        return None;
    }
    let mut losses: Vec<i128> = Vec::with_capacity(samples.len() * samples.len() / 2);
    for (index, (early_ms, early)) in samples.iter().enumerate() {
        for (late_ms, late) in samples.iter().skip(index + 1) {
            let passed_ms = i128::from(late_ms.saturating_sub(*early_ms)).max(1);
            losses.push((i128::from(*early) - i128::from(*late)) * 3_600_000 / passed_ms);
        }
    }
    losses.sort_unstable();
    // Three of four pairs must agree that it shrinks: a value that goes up and down has no end in sight.
    let at = |quarter: usize| losses.get(losses.len() * quarter / 4).copied().unwrap_or(0);
    if at(1) <= 0 { None } else { u64::try_from(at(2)).ok().filter(|loss| *loss > 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outlook(gap_ms: u64, values: impl IntoIterator<Item = u64>) -> Option<Outlook> {
        let mut trend = Trend::default();
        let mut last = 0;
        for (index, value) in (0u64..).zip(values) {
            trend.add(index * gap_ms, value);
            last = value;
        }
        trend.outlook(last)
    }

    #[test]
    fn a_steady_loss_has_an_end() {
        let found = outlook(30_000, (0..20).map(|step| 100_000 - step * 1_000)).unwrap();
        assert_eq!((found.per_hour, found.left), (120_000, Duration::from_secs(81 * 30)));
    }

    #[test]
    fn the_long_window_sees_what_the_short_one_cannot() {
        let hours = (0..24 * 120).map(|step| 100_000 - step / 120 * 1_000);
        let found = outlook(30_000, hours).unwrap();
        assert_eq!(found.per_hour, 1_000);
    }

    #[test]
    fn what_goes_up_and_down_or_is_new_has_none() {
        assert_eq!(outlook(30_000, [9, 8, 7, 6, 5]), None);
        assert_eq!(outlook(30_000, (0..20).map(|step| 1_000 + step % 2 * 500)), None);
        assert_eq!(outlook(30_000, (0..20).map(|step| 1_000 + step)), None);
        assert_eq!(outlook(30_000, (0..20).map(|_| 1_000)), None);
        let one_large_file = (0..20).map(|step| if (5..9).contains(&step) { 10 } else { 10_000 });
        assert_eq!(outlook(30_000, one_large_file), None);
    }

    #[test]
    fn a_silence_begins_anew() {
        let mut trend = Trend::default();
        (0..20).for_each(|step| trend.add(step * 30_000, 10_000 - step * 10));
        assert!(trend.outlook(5_000).is_some());
        trend.add(3_600_000, 5_000);
        assert_eq!(trend.outlook(5_000), None);
    }

    proptest! {
        #[test]
        fn never_panics(samples in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..40)) {
            let mut trend = Trend::default();
            for (at_ms, left) in samples {
                trend.add(at_ms, left);
                trend.outlook(left);
            }
        }
    }
}
