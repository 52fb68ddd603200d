//! The units of this host as everybody here may ask for them: the latest state of each configured one, and any property
//! of any unit.

use super::bus::{Conversation, PROPERTIES, SYSTEMD, UNIT, type_interface};
use super::decode::property;
use crate::clock::suspended_ms;
use crate::net::{Mailbox, NetHandle};
use muster_agent_core::process;
use muster_agent_core::unit::{Exit, Property, UnitState};
use muster_common::ids::ProcessId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zbus::Connection;

/// Pauses between attempts to reach the bus: systemd and the bus come back within a second of a restart.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A conversation that lasted for this long was no failed attempt.
const LASTED: Duration = Duration::from_secs(30);
/// Properties asked for at once.
const PROPERTIES_MAX: usize = 64;
/// The pid file's and systemd's start of one process differ by clock ticks and by the time the host was suspended.
const SAME_START_MS: u64 = 2_000;

/// What a unit's probe is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The state.
    State(Box<UnitState>),
    /// The whole bus cannot be reached: why.
    Unreachable(String),
    /// This unit cannot be read: why.
    Unreadable(String),
}

/// Why there are no properties.
#[derive(Debug, thiserror::Error)]
pub enum UnitsError {
    /// Not connected now.
    #[error("{0}")]
    Unreachable(String),
    /// The bus or systemd says no.
    #[error("systemd does not answer for {unit}: {source}")]
    Asked {
        /// Which unit.
        unit: String,
        /// Why.
        #[source]
        source: zbus::Error,
    },
}

/// A way to ask for units; cheap to clone. The conversation with systemd ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Units {
    shared: Arc<Shared>,
    _task: Arc<Option<Task>>,
}

#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Units {
    /// Follows `names` on the system bus from now on. No task where there is none.
    pub fn follow(net: &NetHandle, names: BTreeSet<String>, check_interval: Duration) -> io::Result<Self> {
        Self::follow_at(net, None, names, check_interval)
    }

    /// The same on another bus than the system's own.
    pub fn follow_at(
        net: &NetHandle,
        address: Option<String>,
        names: BTreeSet<String>,
        check_interval: Duration,
    ) -> io::Result<Self> {
        let entry = |name: String| io::Result::Ok((name, Entry { state: None, mailbox: Mailbox::new()? }));
        let units: BTreeMap<String, Entry> = names.into_iter().map(entry).collect::<io::Result<_>>()?;
        let is_empty = units.is_empty();
        let names = units.keys().cloned().collect();
        let link = Link { connection: None, why: "the system bus was not reached yet".to_owned() };
        let (link, link_mailbox) = (Mutex::new(link), Mailbox::new()?);
        let shared = Arc::new(Shared { names, units: Mutex::new(units), link, link_mailbox });
        let theirs = Arc::clone(&shared);
        let task = (!is_empty).then(|| Task(net.spawn(async move { talk(&theirs, address, check_interval).await })));
        Ok(Self { shared, _task: Arc::new(task) })
    }

    /// Where the states of one unit are left.
    pub fn mailbox(&self, unit: &str) -> Option<Arc<Mailbox<Told>>> {
        lock(&self.shared.units).get(unit).map(|entry| Arc::clone(&entry.mailbox))
    }

    /// The latest state of a configured unit, as far as it is known.
    pub fn state(&self, unit: &str) -> Option<UnitState> {
        lock(&self.shared.units).get(unit)?.state.clone()
    }

    /// How systemd says that a main process of `unit` ended. `start_boottime_ms` is the start in `/proc`.
    pub fn exit_of(&self, unit: &str, pid: u32, start_boottime_ms: u64, suspended_ms: u64) -> Option<Exit> {
        let units = lock(&self.shared.units);
        let lives = units.get(unit)?.state.as_ref()?.lives();
        let start_ms = |usec: u64| (usec / 1000).saturating_add(suspended_ms);
        let is_it = |usec: u64| start_ms(usec).abs_diff(start_boottime_ms) <= SAME_START_MS;
        lives.iter().rev().find(|life| life.pid == pid && is_it(life.start_usec))?.exit
    }

    /// The same as the probes of processes tell it, with what systemd made of it (`oom-kill`, `watchdog`).
    pub fn told(&self, unit: &str, process: ProcessId, start_boottime_ms: u64) -> Option<process::exit::Exit> {
        let status = self.exit_of(unit, process.pid, start_boottime_ms, suspended_ms())?.status()?;
        let result = self.state(unit).filter(|state| state.newest().is_some_and(|life| life.pid == process.pid));
        let result = result.map(|state| state.result).filter(|result| !matches!(result.as_str(), "" | "success"));
        let source = result.map_or_else(|| "systemd".to_owned(), |result| format!("systemd (result {result})"));
        Some(process::exit::Exit::Known { status, source })
    }

    /// Rings when the bus was reached or lost.
    pub fn link(&self) -> Arc<Mailbox<Result<(), String>>> {
        Arc::clone(&self.shared.link_mailbox)
    }

    /// How many units are followed.
    pub fn count(&self) -> usize {
        self.shared.names.len()
    }

    /// Why the bus cannot be asked now, if it cannot.
    pub fn unreachable(&self) -> Option<String> {
        let link = lock(&self.shared.link);
        link.connection.is_none().then(|| link.why.clone())
    }

    /// Any properties of any unit, of the unit's own type or of all units, as systemd has them now. What it does not
    /// have is not in the answer.
    pub async fn properties(&self, unit: &str, names: &[&str]) -> Result<BTreeMap<String, Property>, UnitsError> {
        let link = |shared: &Shared| {
            let link = lock(&shared.link);
            link.connection.clone().ok_or_else(|| UnitsError::Unreachable(link.why.clone()))
        };
        let connection = link(&self.shared)?;
        let asked = |source| UnitsError::Asked { unit: unit.to_owned(), source };
        let manager = format!("{SYSTEMD}.Manager");
        let path = "/org/freedesktop/systemd1";
        let found = connection.call_method(Some(SYSTEMD), path, Some(manager.as_str()), "LoadUnit", &(unit,)).await;
        let path: zbus::OwnedObjectPath = found.and_then(|found| found.body().deserialize()).map_err(asked)?;
        let mut properties = BTreeMap::new();
        let interfaces = [type_interface(unit), UNIT.to_owned()];
        for name in names.iter().take(PROPERTIES_MAX) {
            // systemd answers for each of them alone.
            for interface in &interfaces {
                let question = (interface.as_str(), *name);
                match connection.call_method(Some(SYSTEMD), &path, Some(PROPERTIES), "Get", &question).await {
                    Ok(found) => {
                        if let Ok(value) = found.body().deserialize::<zbus::Variant<'_>>() {
                            properties.insert((*name).to_owned(), property(&value));
                        }
                        break;
                    }
                    Err(error) if is_missing(&error) => {}
                    Err(error) => return Err(asked(error)),
                }
            }
        }
        Ok(properties)
    }
}

/// That it has no such property: any other error tells nothing about it.
fn is_missing(error: &zbus::Error) -> bool {
    use zbus::fdo::Error::{UnknownInterface, UnknownProperty};
    matches!(error, zbus::Error::FDO(error) if matches!(**error, UnknownProperty(_) | UnknownInterface(_)))
}

/// What the conversation fills and the others read. Locks are held for microseconds only.
#[derive(Debug)]
pub(super) struct Shared {
    names: Vec<String>,
    units: Mutex<BTreeMap<String, Entry>>,
    link: Mutex<Link>,
    link_mailbox: Arc<Mailbox<Result<(), String>>>,
}

#[derive(Debug)]
struct Entry {
    state: Option<UnitState>,
    mailbox: Arc<Mailbox<Told>>,
}

#[derive(Debug)]
struct Link {
    connection: Option<Connection>,
    /// Why there is none.
    why: String,
}

impl Shared {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    pub(super) fn connected(&self, connection: &Connection) {
        lock(&self.link).connection = Some(connection.clone());
        self.link_mailbox.put(Ok(()));
    }

    fn lost(&self, why: &str) {
        let mut link = lock(&self.link);
        (link.connection, link.why) = (None, why.to_owned());
        drop(link);
        self.link_mailbox.put(Err(why.to_owned()));
        for entry in lock(&self.units).values() {
            entry.mailbox.put(Told::Unreachable(why.to_owned()));
        }
    }

    pub(super) fn put(&self, unit: &str, state: &UnitState) {
        let mut units = lock(&self.units);
        let Some(entry) = units.get_mut(unit) else { return };
        let mut state = state.clone();
        if let Some(earlier) = &entry.state {
            state.inherit(earlier);
        }
        entry.mailbox.put(Told::State(Box::new(state.clone())));
        entry.state = Some(state);
    }

    pub(super) fn put_unreadable(&self, unit: &str, why: &str) {
        if let Some(entry) = lock(&self.units).get(unit) {
            entry.mailbox.put(Told::Unreadable(why.to_owned()));
        }
    }
}

async fn talk(shared: &Shared, address: Option<String>, check_interval: Duration) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        let lost = Conversation::hold(shared, address.as_deref(), check_interval).await;
        tracing::debug!("no word from systemd: {lost}");
        shared.lost(&lost.to_string());
        if began.elapsed() >= LASTED {
            pause = PAUSE_MIN;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
