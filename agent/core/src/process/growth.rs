//! Whether a number that a process uses (bytes, descriptors) grows without bound, how fast, and when a limit is reached.
//!
//! Growth is told from the *floor*: the lowest reading of each short bucket, and of each sixth of the window. Garbage
//! collection and load leave teeth above the floor and never lift it; a warm-up lifts it less and less; a one-off step
//! lifts it once. Only a floor that keeps rising in nearly every sixth, and still does in the last ones, is growth. A
//! level from which the process has come back by itself is no news when it is reached again.
//!
//! Must never say "grows" of less than a whole window of one process's life: a service that is restarted more often
//! than that has no trend.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// Buckets in a window: a few minutes each for a window of hours; small enough to save with every change.
const BUCKETS: usize = 72;
/// Parts in which the floor must rise.
const PARTS: usize = 6;
/// Of the window; readings of a younger process say nothing.
const WARM_UP_PART: u64 = 12;
/// A fall by this part of the peak is a recovery: the process gives back by itself.
const RECOVERY_PERCENT: u64 = 25;
/// Growth beyond a level that was recovered from counts from here on.
const BEYOND_RECOVERED_PERCENT: u64 = 110;
/// A recovery is remembered for a week and a day: weekly jobs are a habit too.
const RECOVERED_FOR_MS: u64 = 8 * 24 * 3_600_000;
const HOUR_MS: u64 = 3_600_000;

/// What counts as growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrowthRules {
    /// Over this time.
    pub window: Duration,
    /// By at least this much.
    pub by_at_least: u64,
    /// And by at least this part of where it began.
    pub by_percent: u64,
}

/// A growth that is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// How much more every hour: the median of the slopes between all readings of the window.
    pub per_hour: u64,
    /// The floor at the beginning of the window.
    pub from: u64,
    /// The floor now.
    pub to: u64,
    /// The time between.
    pub over_ms: u64,
}

impl Growth {
    /// When `left` is used up at this speed.
    pub fn time_to_use(&self, left: u64) -> Option<Duration> {
        let ms = u128::from(left).checked_mul(u128::from(HOUR_MS))?.checked_div(u128::from(self.per_hour))?;
        Some(Duration::from_millis(u64::try_from(ms).ok()?))
    }
}

/// The lowest reading of one bucket of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Floor {
    at_ms: u64,
    value: u64,
}

/// Readings of one process over time, and what follows from them. Bounded: at most one window of buckets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trend {
    floors: VecDeque<Floor>,
    /// Not saved: it would change with every reading.
    #[serde(skip)]
    open: Option<Floor>,
    peak: u64,
    /// A level that was reached and left by itself, and when.
    recovered: Option<Floor>,
    growth: Option<Growth>,
}

impl Trend {
    /// One reading at `at_ms` (boot-time clock) of a process that started at `start_ms`.
    pub fn read(&mut self, rules: &GrowthRules, start_ms: u64, at_ms: u64, value: u64) {
        let window_ms = u64::try_from(rules.window.as_millis()).unwrap_or(u64::MAX).max(BUCKETS as u64);
        if at_ms < start_ms.saturating_add(window_ms / WARM_UP_PART) {
            return;
        }
        let width_ms = window_ms / BUCKETS as u64;
        match &mut self.open {
            Some(open) if open.at_ms / width_ms == at_ms / width_ms => open.value = open.value.min(value),
            _ => {
                if let Some(full) = self.open.replace(Floor { at_ms, value }) {
                    self.close(rules, window_ms, full);
                }
            }
        }
    }

    /// The growth that is going on.
    pub const fn growth(&self) -> Option<&Growth> {
        self.growth.as_ref()
    }

    /// For how long there are readings.
    pub fn observed(&self) -> Duration {
        let first = self.floors.front().map_or(0, |floor| floor.at_ms);
        Duration::from_millis(self.floors.back().map_or(0, |floor| floor.at_ms).saturating_sub(first))
    }

    /// The level from which it came back by itself.
    pub fn recovered_from(&self) -> Option<u64> {
        self.recovered.map(|recovered| recovered.value)
    }

    fn close(&mut self, rules: &GrowthRules, window_ms: u64, full: Floor) {
        self.floors.push_back(full);
        let begin = full.at_ms.saturating_sub(window_ms);
        // The second bound is for a config that made the window, and so the buckets, shorter.
        while self.floors.front().is_some_and(|floor| floor.at_ms < begin) || self.floors.len() > 2 * BUCKETS {
            self.floors.pop_front();
        }
        // The floor of the last part, so that a tooth is no fall.
        let part = BUCKETS / PARTS;
        let level = self.floors.iter().rev().take(part).map(|floor| floor.value).min().unwrap_or(full.value);
        self.peak = self.peak.max(level);
        let fallen = self.peak - level;
        if fallen >= rules.by_at_least / 2 && fallen >= self.peak / 100 * RECOVERY_PERCENT {
            let value = self.recovered.map_or(self.peak, |recovered| recovered.value.max(self.peak));
            self.recovered = Some(Floor { at_ms: full.at_ms, value });
            self.peak = level;
        }
        self.recovered = self.recovered.filter(|old| full.at_ms.saturating_sub(old.at_ms) < RECOVERED_FOR_MS);
        self.growth = self.judge(rules, window_ms);
    }

    fn judge(&self, rules: &GrowthRules, window_ms: u64) -> Option<Growth> {
        let (first, last) = (self.floors.front()?, self.floors.back()?);
        let over_ms = last.at_ms.saturating_sub(first.at_ms);
        if over_ms < window_ms / 10 * 9 || self.floors.len() < BUCKETS / 2 {
            return None;
        }
        let levels = self.levels(first.at_ms, over_ms)?;
        let (from, to) = (*levels.first()?, *levels.last()?);
        let total = to.checked_sub(from)?;
        let steps: Vec<i128> = levels.windows(2).map(|pair| i128::from(pair[1]) - i128::from(pair[0])).collect();
        let still: i128 = steps.iter().rev().take(2).sum();
        let per_hour = self.slope_per_hour()?;
        let growth = Growth { per_hour, from, to, over_ms };
        if let Some(old) = &self.growth {
            // Once told it stays until it has nearly stopped: a quarter of the old speed over the last two parts.
            let two_parts_ms = over_ms / PARTS as u64 * 2;
            let quarter = u128::from(old.per_hour) * u128::from(two_parts_ms) / u128::from(HOUR_MS) / 4;
            return (still > 0 && still.unsigned_abs() >= quarter).then_some(growth);
        }
        let enough = total >= rules.by_at_least && total >= from / 100 * rules.by_percent;
        let beyond = self.recovered.is_none_or(|old| to > old.value / 100 * BEYOND_RECOVERED_PERCENT);
        (enough && beyond && rises_throughout(&steps, i128::from(total), still)).then_some(growth)
    }

    /// The floor of each part of the window; `None` when one has no reading.
    fn levels(&self, begin_ms: u64, over_ms: u64) -> Option<Vec<u64>> {
        let mut levels = [None::<u64>; PARTS];
        for floor in &self.floors {
            let part = (floor.at_ms - begin_ms).saturating_mul(PARTS as u64) / (over_ms + 1);
            let level = levels.get_mut(usize::try_from(part).ok()?)?;
            *level = Some(level.map_or(floor.value, |level| level.min(floor.value)));
        }
        levels.into_iter().collect()
    }

    /// Theil–Sen: the median of the slopes between all pairs; no outlier moves it.
    fn slope_per_hour(&self) -> Option<u64> {
        let mut slopes: Vec<i64> = Vec::with_capacity(self.floors.len() * self.floors.len() / 2);
        for (index, a) in self.floors.iter().enumerate() {
            for b in self.floors.iter().skip(index + 1).filter(|b| b.at_ms > a.at_ms) {
                let rise = i128::from(b.value) - i128::from(a.value);
                let slope = rise * i128::from(HOUR_MS) / i128::from(b.at_ms - a.at_ms);
                slopes.push(i64::try_from(slope).ok()?);
            }
        }
        let middle = slopes.len() / 2;
        if slopes.is_empty() {
            return None;
        }
        let (_, median, _) = slopes.select_nth_unstable(middle);
        u64::try_from(*median).ok().filter(|slope| *slope > 0)
    }
}

/// Rising in nearly every part, in none by most of it, falling in none, and still rising at the end.
fn rises_throughout(steps: &[i128], total: i128, still: i128) -> bool {
    let rising = steps.iter().filter(|step| **step * 20 >= total).count();
    let falls = steps.iter().any(|step| *step * 10 < -total);
    let one_off = steps.iter().any(|step| *step * 2 > total);
    rising + 1 >= steps.len() && !falls && !one_off && still * 4 >= total
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MINUTE_MS: u64 = 60_000;
    const RULES: GrowthRules =
        GrowthRules { window: Duration::from_secs(6 * 3600), by_at_least: 64 * MIB, by_percent: 10 };

    /// Reads `mib` once a minute for `hours`, through a restart of the agent every ten hours; gives the hours in which
    /// growth was told.
    fn told(hours: u64, mib: impl Fn(f64) -> f64) -> Vec<u64> {
        let mut trend = Trend::default();
        let mut told: Vec<u64> = Vec::new();
        for minute in 0..hours * 60 {
            if minute % 600 == 599 {
                trend = serde_json::from_str(&serde_json::to_string(&trend).unwrap()).unwrap();
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's own small numbers")]
            let value = (mib(minute as f64 / 60.0) * MIB as f64) as u64;
            trend.read(&RULES, 0, minute * MINUTE_MS, value);
            if trend.growth().is_some() && told.last() != Some(&(minute / 60)) {
                told.push(minute / 60);
            }
        }
        assert!(trend.floors.len() <= BUCKETS + 1, "{}", trend.floors.len());
        told
    }

    /// A number between 0 and 1 that looks random and is always the same for the same hour.
    fn noise(hour: f64) -> f64 {
        let x = (hour * 12.9898).sin() * 43_758.547;
        x - x.floor()
    }

    #[test]
    fn what_grows_is_told_and_what_does_not_is_not() {
        let leak = |hour: f64| 300.0 + 40.0 * hour;
        let never: Vec<u64> = Vec::new();
        type Shape<'a> = Box<dyn Fn(f64) -> f64 + 'a>;
        let cases: Vec<(&str, Shape<'_>, bool)> = vec![
            ("a steady leak", Box::new(leak), true),
            ("a leak under noise", Box::new(|h| leak(h) + 80.0 * noise(h)), true),
            ("a leak under teeth of GC", Box::new(|h| leak(h) + 300.0 * (h * 4.0).fract()), true),
            ("a leak in hourly steps", Box::new(|h| 300.0 + 60.0 * h.floor()), true),
            (
                "a leak that pauses one hour in six",
                Box::new(|h| 300.0 + 40.0 * (h - (h / 6.0).floor() - ((h % 6.0) - 5.0).max(0.0))),
                true,
            ),
            ("flat", Box::new(|_| 300.0), false),
            ("flat under noise", Box::new(|h| 300.0 + 200.0 * noise(h)), false),
            ("a saw of an hour", Box::new(|h| 300.0 + 500.0 * h.fract()), false),
            ("a saw of two and a half hours", Box::new(|h| 300.0 + 500.0 * (h / 2.5).fract()), false),
            ("a saw of five hours", Box::new(|h| 300.0 + 500.0 * (h / 5.0).fract()), false),
            ("a one-off step", Box::new(|h| if h < 9.0 { 300.0 } else { 800.0 }), false),
            (
                "two steps",
                Box::new(|h| 300.0 + if h < 8.0 { 0.0 } else { 200.0 } + if h < 11.0 { 0.0 } else { 200.0 }),
                false,
            ),
            ("a warm-up", Box::new(|h| 1000.0 - 700.0 * (-h / 1.5).exp()), false),
            ("a slow warm-up", Box::new(|h| 1000.0 - 700.0 * (-h / 3.0).exp()), false),
            ("a peak at the start", Box::new(|h| if h < 0.2 { 4000.0 } else { 300.0 }), false),
            ("day and night", Box::new(|h| 600.0 + 200.0 * (h * std::f64::consts::TAU / 3.0).sin()), false),
            ("shrinking", Box::new(|h| 3000.0 - 40.0 * h), false),
            ("too slow to matter", Box::new(|h| 3000.0 + 5.0 * h), false),
            ("a burst of half an hour", Box::new(|h| if (9.0..9.5).contains(&h) { 4000.0 } else { 300.0 }), false),
        ];
        for (name, shape, grows) in cases {
            let told = told(30, shape);
            if grows {
                assert!(told.first().is_some_and(|hour| (5..=13).contains(hour)), "{name}: {told:?}");
                assert_eq!(told.last(), Some(&29), "{name}: it goes on");
                assert_eq!(told.len() as u64, 30 - told[0], "{name}: no flapping, {told:?}");
            } else {
                assert_eq!(told, never, "{name}");
            }
        }
    }

    #[test]
    fn a_habit_is_told_at_most_the_first_time() {
        // A saw longer than the window cannot be told from a leak until it has fallen once.
        let told = told(200, |hour| 300.0 + 900.0 * (hour / 24.0).fract());
        assert!(told.first().is_some_and(|hour| *hour < 24), "{told:?}");
        assert!(told.iter().all(|hour| *hour < 27), "{told:?}");
        // But beyond what it came back from it is news again.
        let told = self::told(80, |hour| if hour < 24.0 { 300.0 + 30.0 * hour } else { 300.0 + 60.0 * (hour - 24.0) });
        assert!(told.iter().any(|hour| *hour > 36), "{told:?}");
    }

    #[test]
    fn a_leak_that_stops_is_over_and_its_slope_is_right() {
        let mut trend = Trend::default();
        let mut shape = Vec::new();
        for minute in 0..24 * 60u64 {
            let value = (300 + (minute.min(600) * 60) / 60) * MIB;
            trend.read(&RULES, 0, minute * MINUTE_MS, value);
            if minute == 590 {
                let growth = trend.growth().unwrap();
                assert!(growth.per_hour.abs_diff(60 * MIB) < MIB, "{growth:?}");
                let left = growth.time_to_use(120 * MIB).unwrap();
                assert!(left.as_secs().abs_diff(7200) < 120, "{left:?}");
            }
            if minute % 60 == 0 {
                shape.push(trend.growth().is_some());
            }
        }
        let open: Vec<usize> = (0..24).filter(|hour| shape[*hour]).collect();
        assert_eq!((open.first(), open.last()), (Some(&6), Some(&12)), "{open:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_readings_are_taken(values in proptest::collection::vec((0u64..40_000_000, proptest::num::u64::ANY), 0..300)) {
            let mut trend = Trend::default();
            let mut at_ms = 0;
            for (step_ms, value) in values {
                at_ms += step_ms;
                trend.read(&RULES, 0, at_ms, value);
                proptest::prop_assert!(trend.floors.len() <= 2 * BUCKETS);
            }
        }
    }
}
