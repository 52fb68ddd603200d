//! How far the clock of the kernel's log is behind `CLOCK_BOOTTIME`. Nobody sets it: it drifts, by some milliseconds a day
//! or by many seconds in a month, and what lies between a kill and an exit is milliseconds.
//!
//! A record is written before it is read: each one bounds how far the log's clock is behind, and those that are read as
//! they come bound it well.

use serde::{Deserialize, Serialize};

/// The two clocks drift apart by at most one part in so many: NTP slews by one in 2,000, and crystals differ by less.
const DRIFT_SHARE: u64 = 1_000;

/// The smallest lag that was seen, with what may have been added to it since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogClock {
    lag: Option<Lag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lag {
    /// Below zero where the log's clock is ahead.
    ms: i64,
    at_boottime_ms: u64,
}

impl LogClock {
    /// Notes a record that was read as it came: its stamp, and when it was read.
    pub fn see(&mut self, stamp_ms: u64, read_boottime_ms: u64) {
        let (read, stamp) = (signed(read_boottime_ms), signed(stamp_ms));
        let ms = self.lag.map_or(i64::MAX, |lag| {
            lag.ms.saturating_add(signed(read_boottime_ms.saturating_sub(lag.at_boottime_ms) / DRIFT_SHARE))
        });
        self.lag = Some(Lag { ms: ms.min(read.saturating_sub(stamp)), at_boottime_ms: read_boottime_ms });
    }

    /// When a record was written, by `CLOCK_BOOTTIME`: its own stamp, where nothing was seen yet.
    pub fn written_boottime_ms(&self, stamp_ms: u64) -> u64 {
        let lag = self.lag.map_or(0, |lag| lag.ms);
        u64::try_from(signed(stamp_ms).saturating_add(lag)).unwrap_or(0)
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_that_was_read_soonest_tells_the_lag() {
        let mut clock = LogClock::default();
        assert_eq!(clock.written_boottime_ms(1_000), 1_000);
        // 37 ms behind; read 12, 1 and 300 ms after they were written.
        for (stamp, read) in [(1_000, 1_049), (1_010, 1_048), (1_020, 1_357)] {
            clock.see(stamp, read);
        }
        assert_eq!(clock.written_boottime_ms(1_020), 1_058);
    }

    #[test]
    fn a_clock_that_is_ahead_is_set_back() {
        let mut clock = LogClock::default();
        clock.see(9_000, 2_000);
        assert_eq!(clock.written_boottime_ms(9_500), 2_500);
        assert_eq!(clock.written_boottime_ms(1_000), 0);
    }

    #[test]
    fn a_lag_that_grows_is_followed_and_a_late_look_is_not_believed() {
        let mut clock = LogClock::default();
        clock.see(1_000, 1_002);
        // Ten seconds later at most 10 ms more.
        clock.see(11_000, 19_000);
        assert_eq!(clock.written_boottime_ms(11_000), 11_019);
        let mut drifts = LogClock::default();
        for second in 0..1_000u64 {
            drifts.see(second * 1_000, second * 1_000 + 1 + second / 2);
        }
        assert_eq!(drifts.written_boottime_ms(999_000), 999_500);
    }

    #[test]
    fn no_stamp_is_too_much() {
        let mut clock = LogClock::default();
        for (stamp, read) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            clock.see(stamp, read);
            clock.written_boottime_ms(u64::MAX);
        }
        assert_eq!(clock.written_boottime_ms(0), 0);
    }
}
