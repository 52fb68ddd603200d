//! Handing over from one coordinator to another: whom this one follows, what it has heard, how it stands at its start.
//!
//! Invariant: an epoch is believed only with its proof, and remembered on disk before anything is done because of it.

pub mod client;
mod follower;
pub mod peers;

use crate::config::FailoverConfig;
use crate::runtime::{CoordinatorRole, Handle, RuntimeError, Standing};
use crate::store::{JournalStore, META_HIGHEST_EPOCH, META_OWN_EPOCH};
use muster_common::chain::Chain;
use muster_common::epoch_proof::{self, EpochProof, ProofError};
use muster_common::time::Timestamp;
use muster_common::tls::Credentials;
use muster_proto::convert::{self, WireError};
use muster_proto::v1;
use prost::Message as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::Status;

/// What this coordinator knows of the one it follows. Not durable: after a restart it is learned anew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Following {
    /// A stream is open and its other end has proven its epoch.
    pub connected: bool,
    /// The primary's newest journal index, as last heard.
    pub primary_index: Option<u64>,
    /// Log time here when it was last heard.
    pub last_heard: Option<Timestamp>,
    /// Log time here when this journal last had everything the primary had.
    pub in_sync_at: Option<Timestamp>,
    /// What went wrong last, until it goes well.
    pub problem: Option<String>,
}

/// Whatever several services and tasks need to know about failover. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Failover {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handle: Handle,
    credentials: Credentials,
    config: FailoverConfig,
    following: Mutex<Following>,
    /// One promotion at a time.
    promotion: tokio::sync::Mutex<()>,
}

impl Failover {
    /// For the coordinator behind `handle`.
    pub fn new(handle: Handle, credentials: Credentials, config: FailoverConfig) -> Self {
        let promotion = tokio::sync::Mutex::new(());
        Self { shared: Arc::new(Shared { handle, credentials, config, following: Mutex::default(), promotion }) }
    }

    /// The way to the loop.
    pub fn handle(&self) -> &Handle {
        &self.shared.handle
    }

    /// Who we are.
    pub fn credentials(&self) -> &Credentials {
        &self.shared.credentials
    }

    /// `[failover]`.
    pub fn config(&self) -> &FailoverConfig {
        &self.shared.config
    }

    /// What is known of the followed primary.
    pub fn following(&self) -> Following {
        self.lock_following().clone()
    }

    /// Runs until the coordinator stops: follows while this is a standby, talks to the other coordinators while it
    /// reigns.
    pub async fn run(self) {
        let stop = self.handle().stopping();
        let both = async { tokio::join!(follower::run(&self), peers::run(&self)) };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = both => {}
        }
    }

    /// Hears an epoch that somebody passed on. Believed only with its proof; remembered when it is the highest; fences
    /// this coordinator when it reigns under a lower one.
    pub async fn hear(&self, proof: Option<&v1::EpochProof>, from: &str) -> Result<Standing, HearError> {
        let standing = self.handle().standing().borrow().clone();
        let Some(proof) = proof else { return Ok(standing) };
        let proof = convert::epoch_proof(proof)?;
        // Ten thousand agents pass on the epoch we know: a signature is checked only when it would change something.
        if standing.highest_epoch().is_some_and(|highest| highest >= proof.epoch) {
            return Ok(standing);
        }
        let credentials = self.credentials();
        epoch_proof::verify(&proof, credentials.roots(), credentials.fleet(), wall_unix_ms())?;
        let epoch = proof.epoch.clone();
        let heard = self.handle().hear_epoch(proof).await?;
        if heard.role == CoordinatorRole::Fenced && standing.role == CoordinatorRole::Primary {
            tracing::error!(%epoch, from, "a higher epoch reigns: this coordinator writes and pages no more");
        } else {
            tracing::info!(%epoch, from, "heard a higher epoch");
        }
        Ok(heard)
    }

    fn lock_following(&self) -> MutexGuard<'_, Following> {
        self.shared.following.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn promotion(&self) -> &tokio::sync::Mutex<()> {
        &self.shared.promotion
    }
}

/// Why an epoch that was passed on does not count.
#[derive(Debug, thiserror::Error)]
pub enum HearError {
    /// Malformed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Not proven.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// Ours to solve.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl From<HearError> for Status {
    fn from(error: HearError) -> Self {
        match error {
            HearError::Wire(error) => error.into(),
            HearError::Proof(error) => Self::invalid_argument(format!(
                "{error}: forget that epoch, or get this certificate from the fleet's own CA"
            )),
            HearError::Runtime(error) => Self::unavailable(Chain(&error).to_string()),
        }
    }
}

/// What a coordinator that does not reign answers to those who need one that does.
pub fn not_primary(standing: &Standing, config: &FailoverConfig) -> Status {
    let epoch = standing.highest_epoch();
    let primary = match (&epoch, standing.role, &config.follow) {
        (Some(epoch), CoordinatorRole::Standby, Some(endpoint)) => {
            format!("the primary is {:?} (epoch {}), followed at {endpoint}", epoch.coordinator.as_str(), epoch.number)
        }
        (Some(epoch), _, _) => format!("the primary is {:?} (epoch {})", epoch.coordinator.as_str(), epoch.number),
        (None, _, Some(endpoint)) => format!("it follows {endpoint}"),
        (None, _, None) => "it knows of no primary".to_owned(),
    };
    Status::failed_precondition(format!(
        "{:?} is {} and takes no part in this; {primary}: connect to that one",
        standing.id.as_str(),
        standing.role
    ))
}

/// How this coordinator stands at its start: the other coordinators are asked for a higher epoch first, so that an old
/// primary that was away finds out before it takes a single agent.
pub async fn stand_up(
    store: &mut dyn JournalStore,
    credentials: &Credentials,
    config: &FailoverConfig,
) -> Result<Standing, RuntimeError> {
    if let Some(heard) = peers::ask_all(config, credentials).await {
        remember(store, &heard)?;
    }
    Standing::load(store, credentials, config.follow.is_some())
}

/// Keeps an epoch that is above the highest the store remembers.
fn remember(store: &mut dyn JournalStore, heard: &EpochProof) -> Result<(), RuntimeError> {
    for key in [META_HIGHEST_EPOCH, META_OWN_EPOCH] {
        let Some(bytes) = store.meta(key)? else { continue };
        let known = v1::EpochProof::decode(bytes.as_slice()).ok().and_then(|wire| convert::epoch_proof(&wire).ok());
        let known = known.ok_or_else(|| {
            RuntimeError::State(format!(
                "the store's {key} is unreadable: restore a backup, or begin with an empty store"
            ))
        })?;
        if known.epoch >= heard.epoch {
            return Ok(());
        }
    }
    tracing::info!(epoch = %heard.epoch, "another coordinator told of a higher epoch before this one began");
    Ok(store.set_meta(META_HIGHEST_EPOCH, &convert::epoch_proof_to_wire(heard).encode_to_vec())?)
}

/// The wall clock, for the validity of certificates only.
fn wall_unix_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
