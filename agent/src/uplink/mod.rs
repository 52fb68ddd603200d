//! The uplink: drives [`muster_agent_core::session::Session`] over one gRPC stream with mutual TLS.
//!
//! One task. It waits for nobody: the spool, the open set and the network answer in their own time, while heartbeats
//! go out at theirs. What is to be sent stands in an outbox that gives heartbeats to the transport before entries.
//!
//! Must never: act on a message of a coordinator before the session agreed; take an identity or an epoch without its
//! proof; hold a lock across an await.

pub mod answers;
mod driver;
mod link;
mod outbox;
mod wire;

pub(crate) use wire::subject_state;

use crate::freezes::Keeper;
use crate::run::asks::Asks;
use crate::senses::HostRoot;
use crate::spool::SpoolHandle;
use muster_agent_core::clock::Now;
use muster_agent_core::ledger::SubjectState;
use muster_agent_core::session::{End, Phase};
use muster_common::ids::{BootId, Epoch, FleetName};
use muster_common::tls::Credentials;
use muster_proto::v1;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A goodbye is a courtesy: the agent does not stay for it longer than this.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a hello tells about this host beside the spool's position.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// Version of this agent.
    pub agent_version: String,
    /// Name of the host; evidence, not identity.
    pub host_name: String,
    /// From the config.
    pub labels: BTreeMap<String, String>,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os_version: String,
    /// `uname -r`.
    pub kernel_version: String,
}

/// How the other end is known.
#[derive(Debug, Clone)]
pub enum Security {
    /// Mutual TLS; epochs need their proof.
    Mutual(Credentials),
    /// Plain text, and every epoch is believed: for tests within one host.
    Plain(FleetName),
}

/// What the uplink needs to know.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// `https://host:port`, in order of preference.
    pub endpoints: Vec<String>,
    /// Who we are and whom we trust.
    pub security: Security,
    /// For the hello.
    pub host: HostFacts,
    /// This boot.
    pub boot: BootId,
    /// The host's clocks: [`crate::clock::now`].
    pub clock: fn() -> Now,
    /// Who keeps the freezes of this host, if anybody does.
    pub freezes: Option<Keeper>,
    /// Who judges, if anybody does: for diagnoses.
    pub asks: Option<Asks>,
    /// Where second opinions are taken part in.
    pub second_opinion: SecondOpinion,
}

/// Second opinions: of this host about its neighbours, and of them about this one.
#[derive(Debug, Clone, Default)]
pub struct SecondOpinion {
    /// Neighbours are looked at.
    pub enabled: bool,
    /// The host whose listening ports are told; none are where it is not given.
    pub root: Option<HostRoot>,
}

/// What a heartbeat carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UplinkFacts {
    /// Digest of the open conditions as of `head_sequence`.
    pub open_digest: u64,
    /// The last entry that the digest knows.
    pub head_sequence: u64,
    /// MemAvailable.
    pub memory_available_bytes: u64,
}

/// The open set as of one entry: the answer to a resync.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OpenSnapshot {
    head_sequence: u64,
    subjects: Vec<v1::SubjectState>,
}

impl OpenSnapshot {
    /// Takes what a ledger knows; `head_sequence` is the last entry it wrote.
    pub fn new<'a>(head_sequence: u64, subjects: impl IntoIterator<Item = SubjectState<'a>>) -> Self {
        Self { head_sequence, subjects: subjects.into_iter().map(|state| wire::subject_state(&state)).collect() }
    }
}

/// Takes a snapshot. Called on a thread where waiting for a lock is allowed.
#[derive(Clone)]
pub struct SnapshotProvider(pub Arc<dyn Fn() -> OpenSnapshot + Send + Sync>);

impl fmt::Debug for SnapshotProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SnapshotProvider")
    }
}

/// Where the uplink stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkStatus {
    /// Connected or not.
    pub phase: Phase,
    /// The coordinator in use or tried next.
    pub endpoint: String,
    /// The highest epoch ever heard.
    pub epoch: Option<Epoch>,
    /// `CLOCK_BOOTTIME` of the moment the stream began to carry entries.
    pub streaming_since_boottime_ms: Option<u64>,
    /// Why the last stream or try ended.
    pub last_end: Option<End>,
    /// What was said about it.
    pub last_message: String,
    /// Failed tries since the last stable stream.
    pub failed_tries: u32,
    /// Entries that no coordinator acknowledged yet.
    pub unacked_entries: u64,
    /// The coordinator's wall clock less our boot-time clock, as last heard.
    pub coordinator_less_boottime_ms: Option<i64>,
}

/// A way to the running uplink.
#[derive(Debug)]
pub struct UplinkHandle {
    facts: Arc<Mutex<UplinkFacts>>,
    status: watch::Receiver<UplinkStatus>,
    stop: watch::Sender<Option<Stop>>,
    security: watch::Sender<Security>,
    task: JoinHandle<()>,
}

/// Why the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The service manager stops the agent.
    Agent,
    /// The whole host stops.
    Host,
}

/// Sets the facts of the next heartbeats; cheap to clone, never waits.
#[derive(Debug, Clone, Default)]
pub struct FactsSetter(Arc<Mutex<UplinkFacts>>);

impl FactsSetter {
    /// Replaces all facts at once, so that digest and head belong together.
    pub fn set(&self, facts: UplinkFacts) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    /// Changes some of them.
    pub fn update(&self, change: impl FnOnce(&mut UplinkFacts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl UplinkHandle {
    /// For the thread that judges.
    pub fn facts(&self) -> FactsSetter {
        FactsSetter(Arc::clone(&self.facts))
    }

    /// Where it stands; tells of every change.
    pub fn status(&self) -> watch::Receiver<UplinkStatus> {
        self.status.clone()
    }

    /// Takes renewed credentials of the same identity: from the next connection on.
    pub fn renew(&self, security: Security) {
        self.security.send_replace(security);
    }

    /// Says goodbye and ends, within [`GOODBYE_TIMEOUT`] and a moment.
    pub async fn shutdown(self, stop: Stop) {
        self.stop.send_replace(Some(stop));
        let abort = self.task.abort_handle();
        if tokio::time::timeout(GOODBYE_TIMEOUT * 2, self.task).await.is_err() {
            abort.abort();
        }
    }
}

/// Starts the uplink on the current runtime. An append to the spool is all it takes to have something sent: the spool
/// tells the uplink itself.
pub fn spawn(config: UplinkConfig, spool: SpoolHandle, snapshot: SnapshotProvider) -> UplinkHandle {
    let facts = FactsSetter::default();
    facts.set(UplinkFacts { head_sequence: spool.view().head, ..UplinkFacts::default() });
    spawn_with_facts(config, spool, snapshot, facts)
}

/// As [`spawn`], for who has facts before there is an uplink: its first heartbeat carries them.
pub fn spawn_with_facts(
    config: UplinkConfig,
    spool: SpoolHandle,
    snapshot: SnapshotProvider,
    FactsSetter(facts): FactsSetter,
) -> UplinkHandle {
    let (publish, status) = watch::channel(UplinkStatus {
        phase: Phase::Idle,
        endpoint: config.endpoints.first().cloned().unwrap_or_default(),
        epoch: None,
        streaming_since_boottime_ms: None,
        last_end: None,
        last_message: String::new(),
        failed_tries: 0,
        unacked_entries: 0,
        coordinator_less_boottime_ms: None,
    });
    let (stop, stopping) = watch::channel(None);
    let (security, renewed) = watch::channel(config.security.clone());
    let driver = driver::run(config, spool, snapshot, Arc::clone(&facts), publish, stopping, renewed);
    UplinkHandle { facts, status, stop, security, task: tokio::spawn(driver) }
}
