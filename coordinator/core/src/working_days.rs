//! Working days, in UTC: a day or more to answer in is counted on them alone, so that what can wait for the next working
//! day is not told again on a Sunday. Knows weekdays and no holidays.

use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

const DAY_MS: i64 = 86_400_000;
/// Shorter lengths run through: who is to answer within hours is on call.
const COUNTED_FROM: Duration = Duration::from_secs(86_400);

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weekday {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Weekday {
    /// All of them, from Monday on.
    pub const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];

    /// Which day it is at a time, in UTC.
    pub fn of(at: Timestamp) -> Self {
        // 1970 began on a Thursday.
        let since_monday = (at.unix_ms().div_euclid(DAY_MS) + 3).rem_euclid(7);
        usize::try_from(since_monday).ok().and_then(|day| Self::ALL.get(day)).copied().unwrap_or(Self::Mon)
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Mon => "mon",
            Self::Tue => "tue",
            Self::Wed => "wed",
            Self::Thu => "thu",
            Self::Fri => "fri",
            Self::Sat => "sat",
            Self::Sun => "sun",
        }
    }
}

impl FromStr for Weekday {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|day| day.as_str() == text);
        named.ok_or_else(|| "expected one of mon, tue, wed, thu, fri, sat, sun".to_owned())
    }
}

/// Monday to Friday.
pub fn usual() -> BTreeSet<Weekday> {
    Weekday::ALL.into_iter().take(5).collect()
}

/// Every day counts, as in journals that name no working days.
pub fn every_day() -> BTreeSet<Weekday> {
    Weekday::ALL.into()
}

/// `length` later; from a day on counted on working days alone, and never due at the very beginning of a free one. Where no
/// day is a working day all are.
pub fn later(at: Timestamp, length: Duration, working: &BTreeSet<Weekday>) -> Timestamp {
    if length < COUNTED_FROM || working.is_empty() || working.len() == Weekday::ALL.len() {
        return at + length;
    }
    let (mut at, mut left) = (at, length);
    loop {
        let midnight = Timestamp::from_unix_ms((at.unix_ms().div_euclid(DAY_MS) + 1).saturating_mul(DAY_MS));
        let room = midnight.since(at);
        // The end of time is no day of its own.
        if room.is_zero() {
            return at;
        }
        if working.contains(&Weekday::of(at)) {
            if left < room {
                return at + left;
            }
            left -= room;
        }
        at = midnight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 is a Saturday.
    fn day(day: u64, hours: u64) -> Timestamp {
        Timestamp::from_unix_ms(1_793_491_200_000) + Duration::from_secs(((day - 1) * 24 + hours) * 3600)
    }

    #[test]
    fn a_day_is_a_working_day_and_hours_are_hours() {
        assert_eq!(day(21, 0).to_utc_minute(), "2026-11-21 00:00 UTC");
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        for (from, length, expected) in [
            (day(18, 10), hours(24), day(19, 10)),
            (day(20, 18), hours(24), day(23, 18)),
            (day(21, 3), hours(24), day(24, 0)),
            (day(22, 23), hours(48), day(25, 0)),
            // To the very end of a Friday.
            (day(20, 0), hours(24), day(23, 0)),
            (day(20, 18), hours(72), day(25, 18)),
            (day(20, 18), hours(4), day(20, 22)),
            (day(20, 22), hours(23), day(21, 21)),
        ] {
            assert_eq!(later(from, length, &usual()), expected, "{from} {length:?}");
            assert_eq!(later(from, length, &every_day()), from + length);
            assert_eq!(later(from, length, &BTreeSet::new()), from + length);
        }
        let sunday = BTreeSet::from([Weekday::Sun]);
        assert_eq!(later(day(20, 18), hours(48), &sunday), day(20, 0) + hours(24 * 16), "two Sundays");
        let end = Timestamp::from_unix_ms(i64::MAX);
        assert!(later(end, hours(24 * 14), &sunday) <= end, "and it ends");
    }

    #[test]
    fn names_are_those_of_the_week() {
        for (place, day) in Weekday::ALL.into_iter().enumerate() {
            assert_eq!(day.as_str().parse(), Ok(day));
            assert_eq!(serde_json::to_string(&day).unwrap(), format!("\"{}\"", day.as_str()));
            assert_eq!(Weekday::of(Timestamp::from_unix_ms((place as i64 + 4) * DAY_MS)), day);
        }
        assert!("monday".parse::<Weekday>().unwrap_err().contains("mon, tue"));
    }
}
