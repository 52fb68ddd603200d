//! When a connection is pinged, and how long it may take to answer.
//!
//! Whoever is silent for longer than a heartbeat's interval: an agent that vanished without a word is noticed before it
//! counts as stale, and one that beats costs no pings, which would cost as much as its heartbeats.

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
        Self { interval: (heartbeat + heartbeat / 4).max(second), timeout: (heartbeat * stale_after / 4).max(second) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beating_agent_is_not_pinged_and_a_vanished_one_is_noticed_before_it_is_stale() {
        for (heartbeat_s, stale_after) in [(5, 3), (5, 2), (60, 3), (2, 10)] {
            let heartbeat = Duration::from_secs(heartbeat_s);
            let keepalive = Keepalive::of(heartbeat, stale_after);
            assert!(keepalive.interval > heartbeat);
            assert!(keepalive.interval + keepalive.timeout < heartbeat * stale_after, "{heartbeat:?} * {stale_after}");
        }
    }
}
