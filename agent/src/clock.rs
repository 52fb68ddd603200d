//! The host's clocks and its boot id: the only place of the agent where they are read.

use crate::senses::HostRoot;
use muster_agent_core::clock::Now;
use muster_common::ids::BootId;
use muster_common::time::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Both clocks, now.
pub fn now() -> Now {
    let boot = clock_gettime(ClockId::Boottime);
    let wall = clock_gettime(ClockId::Realtime);
    Now { boottime_ms: u64::try_from(millis(boot)).unwrap_or(0), wall: Timestamp::from_unix_ms(millis(wall)) }
}

/// How long the host has been suspended since it booted: the kernel stamps its log without that time.
pub fn suspended_ms() -> u64 {
    let boot = millis(clock_gettime(ClockId::Boottime));
    u64::try_from(boot - millis(clock_gettime(ClockId::Monotonic))).unwrap_or(0)
}

/// The id of this boot; the nil id where the kernel does not tell (every start then counts as a reboot of its own).
pub fn boot_id(host: &HostRoot) -> BootId {
    let text = std::fs::read_to_string(host.path("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
    BootId(text.trim().parse().unwrap_or_default())
}

fn millis(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run_and_the_boot_has_an_id() {
        let (first, second) = (now(), now());
        assert!(first.boottime_ms > 0 && second.boottime_ms >= first.boottime_ms);
        assert!(first.wall > Timestamp::UNIX_EPOCH);
        let nowhere = HostRoot("/nonexistent".into());
        assert!(boot_id(&nowhere).0.is_nil());
    }
}
