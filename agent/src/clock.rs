//! The host's clocks and its boot id: the only place of the agent where they are read.

use crate::senses::HostRoot;
use muster_agent_core::clock::Now;
use muster_agent_core::host_clock::Kernel;
use muster_common::ids::BootId;
use muster_common::time::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::sync::OnceLock;
use std::time::Duration;

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
    /// Of the host that this process runs on: it has no other.
    static REAL: OnceLock<BootId> = OnceLock::new();
    if let Some(known) = REAL.get().filter(|_| host.is_real()) {
        return *known;
    }
    let boot = read_boot_id(host);
    if host.is_real() && !boot.0.is_nil() {
        REAL.set(boot).ok();
    }
    boot
}

fn read_boot_id(host: &HostRoot) -> BootId {
    let text = std::fs::read_to_string(host.path("/proc/sys/kernel/random/boot_id")).unwrap_or_default();
    BootId(text.trim().parse().unwrap_or_default())
}

/// What the kernel says of its wall clock; `None` where it may not be asked: a seccomp filter without `adjtimex`, as
/// `ProtectClock=yes` sets it.
#[expect(unsafe_code, reason = "no safe wrapper of a mere look by adjtimex exists in std, nix or rustix")]
pub fn kernel_clock() -> Option<Kernel> {
    // SAFETY: a struct of integers, for which zero is a value; `modes` of zero asks and changes nothing.
    let (state, timex) = unsafe {
        let mut timex: nix::libc::timex = std::mem::zeroed();
        (nix::libc::adjtimex(&raw mut timex), timex)
    };
    let max_error = Duration::from_micros(u64::try_from(timex.maxerror).unwrap_or(0));
    (state >= 0).then_some(Kernel { synchronised: timex.status & nix::libc::STA_UNSYNC == 0, max_error })
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
