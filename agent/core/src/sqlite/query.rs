//! What a read-only SQL assertion says: a number within its bounds, or not, and since when.

use crate::clock::Now;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A number of SQL or of the config; never NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A whole one.
    Integer(i64),
    /// Any other.
    Real(f64),
}

impl Number {
    /// `None` for what is no number.
    pub fn real(value: f64) -> Option<Self> {
        let whole = value.fract() == 0.0 && value.abs() < WHOLE_MAX;
        #[expect(clippy::cast_possible_truncation, reason = "whole and within the range, by the line before")]
        let integer = value as i64;
        (!value.is_nan()).then_some(if whole { Self::Integer(integer) } else { Self::Real(value) })
    }

    fn as_f64(self) -> f64 {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "only where one of two numbers is no whole one")]
            Self::Integer(value) => value as f64,
            Self::Real(value) => value,
        }
    }

    fn below(self, other: Self) -> bool {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a < b,
            (a, b) => a.as_f64() < b.as_f64(),
        }
    }
}

/// Up to here a floating number holds every whole one.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

// There is no NaN among them.
impl Eq for Number {}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
        }
    }
}

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// At least.
    pub min: Option<Number>,
    /// At most.
    pub max: Option<Number>,
}

/// How a number breaks its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Below the least.
    TooLow(Number),
    /// Above the most.
    TooHigh(Number),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLow(min) => write!(f, "at least {min} expected"),
            Self::TooHigh(max) => write!(f, "at most {max} allowed"),
        }
    }
}

impl Bounds {
    /// The bound that `value` breaks.
    pub fn broken_by(&self, value: Number) -> Option<Broken> {
        let low = self.min.filter(|min| value.below(*min)).map(Broken::TooLow);
        low.or_else(|| self.max.filter(|max| max.below(value)).map(Broken::TooHigh))
    }
}

/// Since when an assertion is broken; saved across restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Since(Option<Moment>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Moment {
    boottime_ms: u64,
    wall: Timestamp,
}

impl Since {
    /// Notes an answer; tells since when it is broken and for how long at least.
    pub fn note(&mut self, broken: bool, now: &Now) -> Option<(Timestamp, Duration)> {
        if !broken {
            self.0 = None;
            return None;
        }
        let first = self.0.get_or_insert(Moment { boottime_ms: now.boottime_ms, wall: now.wall });
        // After a reboot the clock starts again.
        first.boottime_ms = first.boottime_ms.min(now.boottime_ms);
        Some((first.wall, now.since(first.boottime_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(min: Option<f64>, max: Option<f64>, value: Number, said: &str) {
        let bounds = Bounds { min: min.and_then(Number::real), max: max.and_then(Number::real) };
        let told = bounds.broken_by(value).map(|broken| broken.to_string());
        assert_eq!(told.unwrap_or_default(), said, "{value}");
    }

    #[test]
    fn bounds_are_allowed_themselves() {
        check(None, Some(0.0), Number::Integer(0), "");
        check(None, Some(0.0), Number::Integer(1), "at most 0 allowed");
        check(Some(1.0), None, Number::Integer(0), "at least 1 expected");
        check(Some(1.0), Some(2.5), Number::Real(2.6), "at most 2.5 allowed");
        check(Some(1.0), Some(2.5), Number::Real(2.5), "");
        check(None, Some(9.0e15), Number::Integer(i64::MAX), "at most 9000000000000000 allowed");
        assert_eq!(Number::real(f64::NAN), None);
        check(None, Some(1.0), Number::Real(f64::INFINITY), "at most 1 allowed");
    }

    #[test]
    fn since_when_outlives_a_restart_and_a_reboot() {
        let at = |boottime_ms| Now { boottime_ms, wall: Timestamp::from_unix_ms(1_000 + boottime_ms as i64) };
        let mut since = Since::default();
        assert_eq!(since.note(true, &at(500)).unwrap().1, Duration::ZERO);
        since = serde_json::from_value(serde_json::to_value(since).unwrap()).unwrap();
        assert_eq!(since.note(true, &at(2_500)), Some((Timestamp::from_unix_ms(1_500), Duration::from_secs(2))));
        assert_eq!(since.note(true, &at(100)).unwrap().1, Duration::ZERO, "after a reboot");
        assert_eq!(since.note(false, &at(200)), None);
        assert_eq!(since.note(true, &at(300)).unwrap().1, Duration::ZERO);
    }
}
