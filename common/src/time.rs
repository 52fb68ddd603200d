//! Points in time as data. Nothing here reads a clock.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Milliseconds since the Unix epoch, UTC. In the coordinator it is log time, which never goes back; in an agent the
/// wall clock, which is evidence only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp {
    unix_ms: i64,
}

/// Year 9999 and year 1: beyond these nothing prints.
const UNIX_MS_MAX: i64 = 253_402_207_200_000;
const UNIX_MS_MIN: i64 = -62_135_596_800_000;

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const UNIX_EPOCH: Self = Self { unix_ms: 0 };

    /// From milliseconds since the Unix epoch; clamped to the years 1 to 9999.
    pub const fn from_unix_ms(unix_ms: i64) -> Self {
        let clamped = if unix_ms > UNIX_MS_MAX {
            UNIX_MS_MAX
        } else if unix_ms < UNIX_MS_MIN {
            UNIX_MS_MIN
        } else {
            unix_ms
        };
        Self { unix_ms: clamped }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_ms(self) -> i64 {
        self.unix_ms
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        let ms = i128::from(self.unix_ms) - i128::from(earlier.unix_ms);
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    /// The UTC day as `YYYYMMDD`, as in incident numbers.
    pub fn utc_day(self) -> u32 {
        let date = self.to_jiff().to_zoned(jiff::tz::TimeZone::UTC).date();
        let part = |value: i16| u32::from(value.unsigned_abs());
        part(date.year()) * 10_000 + part(date.month().into()) * 100 + part(date.day().into())
    }

    /// For people: `2026-11-21 01:44 UTC`.
    pub fn to_utc_minute(self) -> String {
        self.to_jiff().strftime("%Y-%m-%d %H:%M UTC").to_string()
    }

    /// For people, of what happens while they look: `01:44:05Z`. A sentence with it is as true an hour later.
    pub fn to_utc_clock(self) -> String {
        self.to_jiff().strftime("%H:%M:%SZ").to_string()
    }

    fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.unix_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_ms(self.unix_ms.saturating_add(ms))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_ms(self.unix_ms.saturating_sub(ms))
    }
}

/// RFC 3339 in UTC with milliseconds: `2026-11-21T03:04:05.678Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.to_jiff())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc3339_and_day() {
        let t = Timestamp::from_unix_ms(1_795_225_445_678);
        assert_eq!(t.to_string(), "2026-11-21T01:44:05.678Z");
        assert_eq!(t.utc_day(), 20_261_121);
        assert_eq!(t.to_utc_minute(), "2026-11-21 01:44 UTC");
        assert_eq!(t.to_utc_clock(), "01:44:05Z");
        assert_eq!(Timestamp::UNIX_EPOCH.to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn arithmetic_saturates() {
        let far = Timestamp::from_unix_ms(i64::MAX);
        assert_eq!(far + Duration::MAX, far);
        assert!(Timestamp::UNIX_EPOCH - Duration::MAX < Timestamp::UNIX_EPOCH);
        assert_eq!(Timestamp::UNIX_EPOCH.since(far), Duration::ZERO);
    }
}
