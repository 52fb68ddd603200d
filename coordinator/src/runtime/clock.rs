//! Log time: anchored once, then driven by the boot-time clock, so that no step of the wall clock reaches the journal.

use muster_common::time::Timestamp;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Gives `now`. Never goes back, and counts time in which the machine was suspended.
#[derive(Debug, Clone, Copy)]
pub struct LogClock {
    anchor: Timestamp,
    anchored_at: Duration,
}

impl LogClock {
    /// Begins at the later of the last journaled time and the wall clock.
    pub fn anchored(last_journaled: Timestamp) -> Self {
        Self { anchor: last_journaled.max(wall_clock()), anchored_at: since_boot() }
    }

    /// Log time.
    pub fn now(&self) -> Timestamp {
        self.anchor + since_boot().saturating_sub(self.anchored_at)
    }
}

/// The wall clock, for anchoring and for measuring skew.
pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::UNIX_EPOCH + since
}

/// Time since boot, suspend included. Zero where the clock is missing, which no Linux since 2.6.39 is.
pub(super) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_before_what_was_journaled() {
        let far = wall_clock() + Duration::from_secs(86_400);
        let clock = LogClock::anchored(far);
        let first = clock.now();
        assert!(first >= far && clock.now() >= first);
        assert!(LogClock::anchored(Timestamp::UNIX_EPOCH).now() > Timestamp::from_unix_ms(1_600_000_000_000));
    }
}
