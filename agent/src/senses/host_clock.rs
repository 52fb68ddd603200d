//! Asks the kernel about its wall clock, compares it with the coordinator's as heard over the link, and is woken when
//! somebody sets it.

use super::HostRoot;
use crate::clock::{boot_id, kernel_clock};
use crate::local::LinkStatus;
use crate::probe::{Context, Probe, Remembered};
use muster_agent_core::host_clock::{ClockJudge, Limits, Reading};
use muster_agent_core::judgement::Judgement;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Left by `systemd-timesyncd` when it has set the clock.
const TIMESYNCD_SIGN: &str = "/run/systemd/timesync/synchronized";
/// Seconds of the wall clock that never come: the timer is there to be cancelled.
const NEVER_UNIX_S: i64 = 1 << 40;

/// Watches the clock.
#[derive(Debug)]
pub struct HostClockProbe {
    subject: SubjectKey,
    root: HostRoot,
    limits: Limits,
    link: LinkStatus,
    judge: ClockJudge,
    set: Option<Arc<OwnedFd>>,
}

impl HostClockProbe {
    /// Watches it; without a coordinator only against itself.
    pub fn new(limits: Limits, link: LinkStatus, root: HostRoot) -> Self {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Clock, "wall clock");
        // Without it a clock that is set is seen at the next run.
        let set = if root.is_real() { cancelled_when_set().ok().map(Arc::new) } else { None };
        Self { subject, root, limits, link, judge: ClockJudge::default(), set }
    }
}

impl Probe for HostClockProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        if let Some(set) = &self.set {
            // Tells ECANCELED when the clock was set, and falls silent.
            rustix::io::read(set, &mut [0u8; 8]).ok();
        }
        let is_real = self.root.is_real();
        let reading = Reading {
            kernel: kernel_clock().filter(|_| is_real),
            timesyncd: self.root.path(TIMESYNCD_SIGN).exists(),
            coordinator_less_boottime_ms: self
                .link
                .get()
                .and_then(|status| status.borrow().coordinator_less_boottime_ms),
        };
        self.judge.judge(reading, self.limits, context.now)
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        self.set.clone()
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.root), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, judge)) = saved.read::<(BootId, ClockJudge)>() else { return };
        self.judge = judge;
        if boot.0.is_nil() || boot != boot_id(&self.root) {
            self.judge.rebooted();
        }
    }
}

/// A timer that becomes readable when the wall clock is set.
fn cancelled_when_set() -> rustix::io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let never = Itimerspec { it_interval: once, it_value: Timespec { tv_sec: NEVER_UNIX_S, tv_nsec: 0 } };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
    Ok(timer)
}
