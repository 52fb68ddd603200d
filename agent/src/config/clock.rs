//! `[clock]`: how far the host's clock may be off.

use muster_common::config::Reader;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Below, the way of a message through the network is what is measured; above, certificates fail first.
const SKEWS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// Thresholds of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// How far it may be from the coordinator's.
    pub max_skew: Duration,
    /// Whether the kernel must say that something keeps it right. Without it that is told only of a host whose clock
    /// was kept right before.
    pub synchronised: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self { max_skew: Duration::from_secs(5), synchronised: false }
    }
}

/// The whole table.
pub(super) fn walk(reader: &Reader<'_>) -> Clock {
    let usual = Clock::default();
    Clock {
        max_skew: reader.duration("max_skew", SKEWS).unwrap_or(usual.max_skew),
        synchronised: reader.boolean("synchronised").unwrap_or(usual.synchronised),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::time::Duration;

    #[test]
    fn both_options_are_read() {
        let clock = Config::parse("a", "[clock]\nmax_skew = \"500ms\"\nsynchronised = true\n").unwrap().clock;
        assert!(clock.synchronised && clock.max_skew == Duration::from_millis(500));
        let told = Config::parse("a", "[clock]\nmax_skew = \"1ms\"\nsynchronized = true\n").unwrap_err().to_string();
        assert!(told.contains("did you mean \"synchronised\"?") && told.contains("100 ms"), "{told}");
    }
}
