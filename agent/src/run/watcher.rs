//! Where the loop that judges sleeps: until a descriptor of a probe (a pidfd, the kernel log), a signal, a run that is
//! over or a question to the spool has something to say, or its time is up.
//!
//! A descriptor is waited for once, and again after its probe's run. One that fires again and again (a zombie's pidfd,
//! a storm of kernel lines) is given longer and longer pauses, so that it never makes a busy loop; one that was quiet
//! is answered at once.

use crate::bell::Bell;
use muster_common::finding::SubjectKey;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause after the first of several wakes: the kernel writes an OOM report line by line within milliseconds, and
/// the line that counts is the last.
const PAUSE_MIN: Duration = Duration::from_millis(4);
/// The longest pause; each is twice the one before. Kills that follow each other are told no later than this, and a
/// log that is flooded costs thirty looks a second.
const PAUSE_MAX: Duration = Duration::from_millis(32);
/// Quiet for so long, a descriptor is answered at once again.
const QUIET: Duration = Duration::from_millis(600);
/// Events taken from the kernel at once; what is left is taken in the next turn.
const EVENTS_MAX: usize = 64;
/// Waited for again after a failure that should not happen.
const ERROR_PAUSE: Duration = Duration::from_millis(500);

/// Events of the signals.
const SIGNALS: u64 = 0;
/// Events of bells: whoever rings is asked every turn anyway.
const BELLS: u64 = 1;
/// The first number of a subject.
const FIRST_SUBJECT: u64 = 2;

/// What somebody outside wants of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Stop in good order.
    Stop,
    /// Read the config again.
    Reload,
}

/// What woke the loop.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// Probes of which a run is worth it now.
    pub probes: Vec<SubjectKey>,
    /// What a signal asks for. A stop goes before a reload.
    pub wish: Option<Wish>,
}

/// The descriptors.
#[derive(Debug)]
pub struct Watcher {
    epoll: OwnedFd,
    signals: SignalFd,
    bells: Vec<Bell>,
    armed: BTreeMap<SubjectKey, Armed>,
    numbers: BTreeMap<u64, SubjectKey>,
    next_number: u64,
    /// Those that are waited for again later, and when.
    pausing: BTreeSet<(Instant, SubjectKey)>,
}

#[derive(Debug)]
struct Armed {
    number: u64,
    /// `None`: nothing to wait for.
    waited: Option<Waited>,
    fired: Option<Instant>,
    pause: Duration,
}

#[derive(Debug)]
struct Waited {
    /// As the probe gave it.
    fd: Arc<OwnedFd>,
    /// What the kernel was given in its place, where another subject waits for the very same descriptor.
    copy: Option<OwnedFd>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The kernel does not know it yet.
    New,
    /// The kernel waits for it.
    Waits,
    /// It has fired, and is not waited for until it is armed again.
    Fired,
}

/// Blocks the signals that the watcher reads, for this thread and all it starts: call it before there are others.
pub fn block_signals() -> nix::Result<()> {
    signals().thread_block()
}

impl Watcher {
    /// Waits for signals, and for nothing else yet.
    pub fn new() -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        epoll::add(&epoll, signals.as_fd(), EventData::new_u64(SIGNALS), EventFlags::IN)?;
        Ok(Self {
            epoll,
            signals,
            bells: Vec::new(),
            armed: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next_number: FIRST_SUBJECT,
            pausing: BTreeSet::new(),
        })
    }

    /// Wakes whenever `bell` rings; silencing it is up to who looks for what it told of.
    pub fn listen(&mut self, bell: Bell) -> std::io::Result<()> {
        epoll::add(&self.epoll, &bell, EventData::new_u64(BELLS), EventFlags::IN)?;
        self.bells.push(bell);
        Ok(())
    }

    /// Waits for `fd` on behalf of `subject`; `None` waits for nothing.
    pub fn arm(&mut self, subject: &SubjectKey, fd: Option<Arc<OwnedFd>>) {
        let Some(fd) = fd else {
            if let Some(armed) = self.armed.get_mut(subject) {
                armed.drop_descriptor(&self.epoll);
            }
            return;
        };
        let armed = self.armed.entry(subject.clone()).or_insert_with(|| {
            let number = self.next_number;
            self.next_number += 1;
            self.numbers.insert(number, subject.clone());
            Armed { number, waited: None, fired: None, pause: PAUSE_MIN }
        });
        if !armed.waited.as_ref().is_some_and(|waited| Arc::ptr_eq(&waited.fd, &fd)) {
            armed.drop_descriptor(&self.epoll);
            armed.waited = Some(Waited { fd, copy: None, state: State::New });
        }
        let now = Instant::now();
        match armed.fired.map(|fired| fired + armed.pause).filter(|until| *until > now) {
            Some(until) => drop(self.pausing.insert((until, subject.clone()))),
            None => armed.wait(&self.epoll, subject),
        }
    }

    /// Forgets a subject.
    pub fn forget(&mut self, subject: &SubjectKey) {
        if let Some(mut armed) = self.armed.remove(subject) {
            armed.drop_descriptor(&self.epoll);
            self.numbers.remove(&armed.number);
        }
    }

    /// Sleeps until something happens, for `at_most`.
    pub fn wait(&mut self, at_most: Duration) -> Woken {
        self.end_pauses();
        let now = Instant::now();
        let first = self.pausing.first().map(|(until, _)| until.saturating_duration_since(now));
        // Rounded up: a sleep that ends before its time would be followed by one of no length.
        let pause = first.map_or(at_most, |first| first.min(at_most)) + Duration::from_micros(50);
        let timeout = Timespec::try_from(pause).ok();
        let mut events = [const { Event { flags: EventFlags::empty(), data: EventData::new_u64(0) } }; EVENTS_MAX];
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => {
                tracing::error!(%error, "cannot wait for events; probes still run at their intervals");
                std::thread::sleep(ERROR_PAUSE);
                0
            }
        };
        let mut woken = Woken::default();
        for event in events.iter().take(count) {
            // Copied: the kernel's structure is packed.
            let data = event.data;
            match data.u64() {
                SIGNALS => woken.wish = self.read_signals(),
                BELLS => {}
                number => woken.probes.extend(self.fired(number)),
            }
        }
        woken
    }

    fn end_pauses(&mut self) {
        let now = Instant::now();
        while let Some((until, subject)) = self.pausing.pop_first() {
            if until > now {
                self.pausing.insert((until, subject));
                return;
            }
            if let Some(armed) = self.armed.get_mut(&subject) {
                armed.wait(&self.epoll, &subject);
            }
        }
    }

    fn fired(&mut self, number: u64) -> Option<SubjectKey> {
        let subject = self.numbers.get(&number)?.clone();
        let armed = self.armed.get_mut(&subject)?;
        armed.waited.as_mut()?.state = State::Fired;
        let now = Instant::now();
        let quiet = armed.fired.is_none_or(|fired| now.duration_since(fired) > QUIET);
        armed.pause = if quiet { PAUSE_MIN } else { (armed.pause * 2).min(PAUSE_MAX) };
        armed.fired = Some(now);
        Some(subject)
    }

    fn read_signals(&mut self) -> Option<Wish> {
        let mut wish = None;
        while let Ok(Some(info)) = self.signals.read_signal() {
            let hangup = u32::try_from(Signal::SIGHUP as i32).is_ok_and(|hangup| info.ssi_signo == hangup);
            wish = if hangup { wish.or(Some(Wish::Reload)) } else { Some(Wish::Stop) };
        }
        wish
    }
}

impl Armed {
    /// Has the kernel wait for it, once.
    fn wait(&mut self, epoll: &OwnedFd, subject: &SubjectKey) {
        let number = self.number;
        let Some(waited) = self.waited.as_mut().filter(|waited| waited.state != State::Waits) else { return };
        match waited.wait(epoll, number) {
            Ok(()) => waited.state = State::Waits,
            Err(error) => tracing::debug!(%subject, %error, "cannot be waited for; it is looked at in its interval"),
        }
    }

    fn drop_descriptor(&mut self, epoll: &OwnedFd) {
        if let Some(waited) = self.waited.take().filter(|waited| waited.state != State::New) {
            // A copy goes with its closing as well; the probe's own may live on.
            epoll::delete(epoll, waited.known()).ok();
        }
    }
}

impl Waited {
    fn wait(&mut self, epoll: &OwnedFd, number: u64) -> rustix::io::Result<()> {
        let (data, flags) = (EventData::new_u64(number), EventFlags::IN | EventFlags::ONESHOT);
        if self.state == State::Fired {
            return epoll::modify(epoll, self.known(), data, flags);
        }
        match epoll::add(epoll, &self.fd, data, flags) {
            Err(Errno::EXIST) => {
                let copy = fcntl_dupfd_cloexec(&self.fd, 0)?;
                epoll::add(epoll, &copy, data, flags)?;
                self.copy = Some(copy);
                Ok(())
            }
            other => other,
        }
    }

    fn known(&self) -> BorrowedFd<'_> {
        self.copy.as_ref().map_or_else(|| self.fd.as_fd(), AsFd::as_fd)
    }
}

fn signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::finding::ProbeKind;
    use muster_common::ids::ServiceName;

    const LONG: Duration = Duration::from_secs(60);

    fn subject(name: &str) -> SubjectKey {
        SubjectKey::new(ServiceName::host(), ProbeKind::PidFile, name)
    }

    #[test]
    fn a_readable_descriptor_wakes_its_probe_once_per_arming_and_is_paused_when_it_stays_so() {
        let mut watcher = Watcher::new().unwrap();
        let (subject, bell) = (subject("x"), Bell::new().unwrap());
        bell.ring();
        // Of the pauses together, whoever else has the processor meanwhile: each begins where the one before ended or later.
        let begin = Instant::now();
        for round in 0..4 {
            watcher.arm(&subject, Some(bell.fd()));
            while watcher.wait(LONG).probes.is_empty() {}
            let least = PAUSE_MIN * ((1 << round) - 1);
            assert!(begin.elapsed() >= least, "round {round}");
            assert_eq!(watcher.wait(Duration::ZERO), Woken::default(), "not armed again");
        }
        watcher.arm(&subject, Some(bell.fd()));
        watcher.forget(&subject);
        assert_eq!(watcher.wait(PAUSE_MAX).probes, []);
    }

    #[test]
    fn one_descriptor_wakes_all_who_wait_for_it_and_another_takes_its_place() {
        let mut watcher = Watcher::new().unwrap();
        let (shared, other) = (Bell::new().unwrap(), Bell::new().unwrap());
        let (a, b) = (subject("a"), subject("b"));
        watcher.arm(&a, Some(shared.fd()));
        watcher.arm(&b, Some(shared.fd()));
        shared.ring();
        let mut woken = watcher.wait(LONG).probes;
        while woken.len() < 2 {
            woken.extend(watcher.wait(LONG).probes);
        }
        woken.sort();
        assert_eq!(woken, [a.clone(), b.clone()]);
        watcher.arm(&a, Some(other.fd()));
        watcher.arm(&b, None);
        other.ring();
        let woken = std::iter::repeat_with(|| watcher.wait(LONG).probes).find(|probes| !probes.is_empty());
        assert_eq!(woken, Some(vec![a]));
    }

    #[test]
    fn a_bell_ends_the_sleep() {
        let (mut watcher, bell) = (Watcher::new().unwrap(), Bell::new().unwrap());
        watcher.listen(bell.clone()).unwrap();
        let ringer = std::thread::spawn(move || bell.ring());
        assert_eq!(watcher.wait(LONG), Woken::default());
        ringer.join().unwrap();
    }
}
