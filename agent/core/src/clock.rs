//! The agent's two clocks, as input.

use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One moment, as the host's clocks tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// `CLOCK_BOOTTIME` in milliseconds: monotonic, counts suspend; what ages and windows are measured by.
    pub boottime_ms: u64,
    /// `CLOCK_REALTIME`: evidence for people, never a basis for a decision.
    pub wall: Timestamp,
}

impl Now {
    /// Time since `earlier_boottime_ms`; zero if that is later.
    pub const fn since(&self, earlier_boottime_ms: u64) -> Duration {
        Duration::from_millis(self.boottime_ms.saturating_sub(earlier_boottime_ms))
    }
}
