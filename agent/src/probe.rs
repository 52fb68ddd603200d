//! What every probe looks like to the runtime and to `doctor`.

use muster_agent_core::clock::Now;
use muster_agent_core::judgement::Judgement;
use muster_agent_core::services::Services;
use muster_common::finding::SubjectKey;
use muster_common::ids::ServiceName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a probe remembers across a restart of the agent: JSON as text, of which the parsed tree takes ten times the memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Remembered(Box<RawValue>);

impl Remembered {
    /// Of a state; `None` if it is none that JSON can hold.
    pub fn of(state: impl Serialize) -> Option<Self> {
        to_raw_value(&state).ok().map(Self)
    }

    /// The state again.
    ///
    /// # Errors
    /// When it is of another kind: of another version of the agent, or damaged.
    pub fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.0.get())
    }
}

/// Which thread a probe runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The kernel's own interfaces (procfs, sockets, the kernel log): microseconds, and no file system that could hang.
    Quick,
    /// Small files of strangers, which may lie on a file system that hangs.
    Files,
    /// SQLite: a thread under Landlock, with idle I/O priority.
    Database,
}

/// What a run may use besides the host itself.
#[derive(Debug, Clone)]
pub struct Context {
    /// The clocks at the start of the run.
    pub now: Now,
    /// The services' instances, noted and asked by probes. Held for microseconds only.
    pub services: Arc<Mutex<Services>>,
    /// True in `doctor`: there was no earlier run and there will be no later one, so judge at once.
    pub one_shot: bool,
}

impl Context {
    /// Whether a database of `service` is to be checked because of an end of it: see [`Services::ask_for_check`].
    pub fn asks_for_check(&self, service: &ServiceName, checked_boottime_ms: u64, interval: Duration) -> bool {
        let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.ask_for_check(service, checked_boottime_ms, interval, self.now)
    }
}

/// One question about one subject.
pub trait Probe: Send {
    /// What it is about.
    fn subject(&self) -> &SubjectKey;

    /// The thread it needs.
    fn lane(&self) -> Lane {
        Lane::Quick
    }

    /// Asks and judges. Blocks at most for its own bound; the runtime's deadline is the second net.
    fn run(&mut self, context: &Context) -> Judgement;

    /// In `doctor`, before the first run of any probe: starts what others do for it, so that all are waited for together
    /// and not one after the other.
    fn begin(&mut self) {}

    /// A descriptor that becomes readable when a run is worth it at once (a pidfd, the kernel log). Asked again after
    /// every run; `None` when there is nothing to wait for.
    fn wake(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// The next run is worth it this soon, if that is before its interval is over. Asked again after every run.
    fn again_in(&self) -> Option<Duration> {
        None
    }

    /// What it must remember across a restart of the agent (a cursor, an inode).
    fn save(&self) -> Option<Remembered> {
        None
    }

    /// Takes back what [`Probe::save`] gave; ignores what it does not understand.
    fn restore(&mut self, _saved: Remembered) {}
}
