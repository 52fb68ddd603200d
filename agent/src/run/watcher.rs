//! One thread that sleeps in `poll` until a pidfd, the kernel log or a signal has something to say.
//!
//! A descriptor is waited for once and armed again after its probe's run; not sooner than a moment after it last fired,
//! so that one that stays readable (a zombie's pidfd) never makes a busy loop.

use muster_common::finding::SubjectKey;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pause between two wakes of one subject. Also batches a storm of kernel lines into few runs.
const REARM_PAUSE: Duration = Duration::from_millis(200);
/// Polled again after a failure that should not happen.
const ERROR_PAUSE: Duration = Duration::from_millis(500);

/// What the watcher tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Woken {
    /// A run of this probe is worth it now.
    Probe(SubjectKey),
    /// Stop in good order.
    Stop,
    /// Read the config again.
    Reload,
}

/// The handle of the thread.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: OwnedFd,
    armed: Mutex<BTreeMap<SubjectKey, Armed>>,
}

#[derive(Debug)]
struct Armed {
    /// `None` while it has fired and was not armed again.
    fd: Option<Arc<OwnedFd>>,
    not_before: Instant,
}

/// Blocks the signals that the watcher reads, for this thread and all it starts: call it before there are others.
pub fn block_signals() -> nix::Result<()> {
    signals().thread_block()
}

impl Watcher {
    /// Starts the thread.
    pub fn spawn<I: From<Woken> + Send + 'static>(results: Sender<I>) -> std::io::Result<Self> {
        let control = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { control, armed: Mutex::new(BTreeMap::new()) });
        let signal_fd = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("watcher".to_owned())
            .stack_size(256 << 10)
            .spawn(move || while watch_once(&theirs, &signal_fd, &results) {})?;
        Ok(Self { shared })
    }

    /// Waits for `fd` on behalf of `subject`; `None` waits for nothing.
    pub fn arm(&self, subject: &SubjectKey, fd: Option<Arc<OwnedFd>>) {
        {
            let mut armed = self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner);
            match (armed.get_mut(subject), fd) {
                (Some(known), fd) => {
                    let same = match (&known.fd, &fd) {
                        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                        (None, None) => true,
                        _ => false,
                    };
                    if same {
                        return;
                    }
                    known.fd = fd;
                }
                (None, Some(fd)) => {
                    armed.insert(subject.clone(), Armed { fd: Some(fd), not_before: Instant::now() });
                }
                (None, None) => return,
            }
        }
        self.nudge();
    }

    /// Forgets a subject.
    pub fn forget(&self, subject: &SubjectKey) {
        self.shared.armed.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
        self.nudge();
    }

    fn nudge(&self) {
        // Full means it is awake anyway.
        rustix::io::write(&self.shared.control, &1u64.to_ne_bytes()).ok();
    }
}

fn signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set
}

/// One sleep and what follows; false when nobody listens any more.
fn watch_once<I: From<Woken>>(shared: &Shared, signal_fd: &SignalFd, results: &Sender<I>) -> bool {
    let now = Instant::now();
    let mut pause: Option<Duration> = None;
    let waited: Vec<(SubjectKey, Arc<OwnedFd>)> = {
        let armed = shared.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waited = Vec::new();
        for (subject, entry) in armed.iter() {
            let Some(fd) = &entry.fd else { continue };
            match entry.not_before.checked_duration_since(now).filter(|left| !left.is_zero()) {
                Some(left) => pause = Some(pause.map_or(left, |pause| pause.min(left))),
                None => waited.push((subject.clone(), Arc::clone(fd))),
            }
        }
        waited
    };
    let mut fds =
        vec![PollFd::new(&shared.control, PollFlags::IN), PollFd::from_borrowed_fd(signal_fd.as_fd(), PollFlags::IN)];
    fds.extend(waited.iter().map(|(_, fd)| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
    let timeout = pause.and_then(|pause| Timespec::try_from(pause).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => {
            tracing::error!(%error, "cannot wait for events; probes still run at their intervals");
            std::thread::sleep(ERROR_PAUSE);
            return true;
        }
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    if ready.first() == Some(&true) {
        let mut count = [0u8; 8];
        rustix::io::read(&shared.control, &mut count).ok();
    }
    if ready.get(1) == Some(&true) && !read_signals(signal_fd, results) {
        return false;
    }
    for (_, (subject, fd)) in ready.iter().skip(2).zip(waited).filter(|(ready, _)| **ready) {
        let mut armed = shared.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) =
            armed.get_mut(&subject).filter(|entry| entry.fd.as_ref().is_some_and(|now| Arc::ptr_eq(now, &fd)))
        {
            entry.fd = None;
            entry.not_before = Instant::now() + REARM_PAUSE;
            drop(armed);
            if results.send(Woken::Probe(subject).into()).is_err() {
                return false;
            }
        }
    }
    true
}

fn read_signals<I: From<Woken>>(signal_fd: &SignalFd, results: &Sender<I>) -> bool {
    while let Ok(Some(info)) = signal_fd.read_signal() {
        let hangup = u32::try_from(Signal::SIGHUP as i32).is_ok_and(|hangup| info.ssi_signo == hangup);
        let woken = if hangup { Woken::Reload } else { Woken::Stop };
        if results.send(woken.into()).is_err() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::finding::ProbeKind;
    use muster_common::ids::ServiceName;
    use std::sync::mpsc::channel;

    #[test]
    fn a_readable_descriptor_wakes_its_probe_once_per_arming() {
        let (results, inbox) = channel::<Woken>();
        let watcher = Watcher::spawn(results).unwrap();
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::PidFile, "x");
        let fd = Arc::new(eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        for _ in 0..2 {
            watcher.arm(&subject, Some(Arc::clone(&fd)));
            // Still readable and not armed again: exactly one wake.
            assert_eq!(inbox.recv().unwrap(), Woken::Probe(subject.clone()));
            assert!(inbox.try_recv().is_err());
        }
        watcher.forget(&subject);
    }
}
