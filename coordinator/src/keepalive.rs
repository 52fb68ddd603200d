//! When a connection counts as dead: the kernel asks for a sign of life and ends those that give none.
//!
//! Who was silent for as long as makes an agent stale is asked. Heartbeats tell sooner who is alive; this closes what hosts
//! and networks that are gone leave behind, agents' and others' connections alike. For agents it is TCP's keepalive alone:
//! that of HTTP/2 has a timer for each connection, which wakes its task however lively the agent is, and a look at it
//! whenever anything moves. An agent that hangs while its kernel still answers keeps its connection: its silence is the
//! sweep's matter. Everybody else answers HTTP/2's pings as well: a standby that hangs must not count as one for ever.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// The kernel counts seconds, up to this many.
const KERNEL_SECONDS_MAX: u64 = 32_767;
/// Questions before the end: one that is lost on the way ends nothing.
const QUESTIONS: u32 = 5;

/// Of the transport, for all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    /// Silence before the first question.
    pub(crate) silence: Duration,
    /// From there to the end of the connection.
    pub(crate) patience: Duration,
}

impl Keepalive {
    /// For agents that beat every `heartbeat` and are stale after so many of them.
    pub(crate) fn of(heartbeat: Duration, stale_after: u32) -> Self {
        let (second, most) = (Duration::from_secs(1), Duration::from_secs(KERNEL_SECONDS_MAX));
        let stale = heartbeat * stale_after;
        Self { silence: stale.clamp(second, most), patience: (stale / 3).clamp(second, most) }
    }

    /// Tells the kernel. A connection inherits it from the socket that listens.
    pub(crate) fn guard(self, socket: impl AsFd) -> io::Result<()> {
        use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout};
        let (silence, interval) = (seconds(self.silence), seconds(self.patience / QUESTIONS));
        // What is sent and not acknowledged has as long; with it, questions end by time and not by number.
        let end_ms = u32::try_from((silence + self.patience).as_millis()).unwrap_or(u32::MAX);
        set_socket_keepalive(&socket, true)?;
        set_tcp_keepidle(&socket, silence)?;
        set_tcp_keepintvl(&socket, interval)?;
        set_tcp_user_timeout(&socket, end_ms)?;
        Ok(())
    }
}

/// Whole seconds, rounded up, at least one.
fn seconds(length: Duration) -> Duration {
    Duration::from_secs(length.as_secs() + u64::from(length.subsec_nanos() > 0)).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt::{socket_keepalive, tcp_keepidle, tcp_keepintvl, tcp_user_timeout};

    #[test]
    fn a_beating_agent_is_not_asked_and_a_dead_one_s_connection_ends() {
        for (heartbeat_ms, stale_after) in [(5_000, 3), (5_000, 2), (60_000, 3), (100, 2)] {
            let heartbeat = Duration::from_millis(heartbeat_ms);
            let keepalive = Keepalive::of(heartbeat, stale_after);
            let second = Duration::from_secs(1);
            assert!(keepalive.silence >= heartbeat * 2 && keepalive.patience >= second);
            assert!(keepalive.silence + keepalive.patience <= (heartbeat * stale_after).max(second) * 2);
        }
    }

    #[test]
    fn a_connection_has_what_its_listener_was_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Keepalive::of(Duration::from_millis(2_500), 3).guard(&listener).unwrap();
        let _agent = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(socket_keepalive(&accepted).unwrap());
        assert_eq!(tcp_keepidle(&accepted).unwrap(), Duration::from_secs(8), "7.5 s, rounded up");
        assert_eq!(tcp_keepintvl(&accepted).unwrap(), Duration::from_secs(1));
        assert_eq!(tcp_user_timeout(&accepted).unwrap(), 10_500);
    }

    #[test]
    fn the_longest_is_what_the_kernel_can_count() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Keepalive::of(Duration::from_secs(36_000), 20).guard(&listener).unwrap();
        assert_eq!(tcp_keepidle(&listener).unwrap(), Duration::from_secs(KERNEL_SECONDS_MAX));
    }
}
