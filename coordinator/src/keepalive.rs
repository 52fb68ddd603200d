//! When a connection is pinged, and how long it may take to answer.
//!
//! Who was silent for as long as makes an agent stale. Heartbeats tell sooner who is alive; this closes what the dead leave
//! behind, agents' and others' connections alike. Each look of its timer wakes the connection's task, and each ping costs
//! as much as a heartbeat, so neither comes while an agent beats.

use std::time::Duration;

/// Of the transport, for all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    /// Silence before a ping.
    pub(crate) interval: Duration,
    /// From the ping to the end of the connection.
    pub(crate) timeout: Duration,
}

impl Keepalive {
    /// For agents that beat every `heartbeat` and are stale after so many of them.
    pub(crate) fn of(heartbeat: Duration, stale_after: u32) -> Self {
        let second = Duration::from_secs(1);
        let stale = heartbeat * stale_after;
        Self { interval: stale.max(second), timeout: (stale / 3).max(second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beating_agent_is_not_pinged_and_a_dead_one_s_connection_ends() {
        for (heartbeat_ms, stale_after) in [(5_000, 3), (5_000, 2), (60_000, 3), (100, 2)] {
            let heartbeat = Duration::from_millis(heartbeat_ms);
            let keepalive = Keepalive::of(heartbeat, stale_after);
            let second = Duration::from_secs(1);
            assert!(keepalive.interval >= heartbeat * 2 && keepalive.timeout >= second);
            assert!(keepalive.interval + keepalive.timeout <= (heartbeat * stale_after).max(second) * 2);
        }
    }
}
