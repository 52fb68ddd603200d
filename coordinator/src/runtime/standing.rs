//! Role and epoch as the store remembers them. Whatever is announced was written down before.

use super::handle::{CoordinatorRole, Follower, RuntimeError, Standing};
use crate::store::{JournalStore, META_FOLLOWERS, META_HIGHEST_EPOCH, META_OWN_EPOCH, META_ROLE, StoreError};
use muster_common::epoch_proof::{EpochProof, sign};
use muster_common::ids::CoordinatorId;
use muster_common::tls::Credentials;
use muster_coordinator_core::failover::Reign;
use muster_proto::{convert, v1};
use prost::Message;
use std::collections::BTreeMap;

impl Standing {
    /// The role and the epochs to think with.
    pub fn reign(&self) -> Reign {
        Reign { role: self.role, own: self.epoch(), highest: self.highest_epoch() }
    }

    /// What the store remembers; at the very first start of a coordinator that follows nobody, epoch 1 is claimed.
    pub fn load(
        store: &mut dyn JournalStore,
        credentials: &Credentials,
        follows_somebody: bool,
    ) -> Result<Self, RuntimeError> {
        let id = CoordinatorId::new(credentials.identity().name.as_str())
            .map_err(|error| RuntimeError::State(format!("the certificate's name is no coordinator id: {error}")))?;
        let remembered = match store.meta(META_ROLE)? {
            Some(bytes) => Some(parse_role(&bytes)?),
            None => None,
        };
        let own = read_proof(store, META_OWN_EPOCH)?;
        let highest = read_proof(store, META_HIGHEST_EPOCH)?.or_else(|| own.clone());
        let epoch = |proof: &Option<EpochProof>| proof.as_ref().map(|proof| proof.epoch.clone());
        let reign = Reign::at_start(remembered, epoch(&own), epoch(&highest), follows_somebody);
        let fleet = credentials.fleet().clone();
        let mut standing = Self { id, fleet, role: reign.role, own, highest };
        if standing.role == CoordinatorRole::Primary && standing.own.is_none() {
            let next = reign.next_epoch(&standing.id);
            let next = next.ok_or_else(|| RuntimeError::State("the epoch numbers are used up".to_owned()))?;
            let proof = sign(credentials, &next).map_err(|error| RuntimeError::State(error.to_string()))?;
            standing.own = Some(proof.clone());
            standing.highest = Some(proof);
        }
        standing.save(store)?;
        Ok(standing)
    }

    /// Writes it down; the role last, so that a crash in between leaves the careful one.
    pub(super) fn save(&self, store: &mut dyn JournalStore) -> Result<(), StoreError> {
        self.words().iter().try_for_each(|(key, value)| store.set_meta(key, value))
    }

    /// What the store keeps of it.
    pub(super) fn words(&self) -> Vec<(&'static str, Vec<u8>)> {
        let proofs = [(META_HIGHEST_EPOCH, &self.highest), (META_OWN_EPOCH, &self.own)];
        let mut words: Vec<_> = proofs
            .into_iter()
            .filter_map(|(key, proof)| Some((key, convert::epoch_proof_to_wire(proof.as_ref()?).encode_to_vec())))
            .collect();
        words.push((META_ROLE, self.role.as_str().as_bytes().to_vec()));
        words
    }
}

/// The standbys of an earlier run of this primary. They may have nothing of what is stored here, until they say what
/// they have.
pub(super) fn followers(
    store: &dyn JournalStore,
    role: CoordinatorRole,
) -> Result<BTreeMap<CoordinatorId, Follower>, RuntimeError> {
    let kept = store.meta(META_FOLLOWERS)?.filter(|_| role == CoordinatorRole::Primary);
    let Some(bytes) = kept else { return Ok(BTreeMap::new()) };
    let names: Vec<CoordinatorId> = serde_json::from_slice(&bytes)
        .map_err(|error| RuntimeError::State(format!("the store's {META_FOLLOWERS} does not decode: {error}")))?;
    let last_heard = store.head().at;
    Ok(names.into_iter().map(|name| (name, Follower { index: 0, last_heard })).collect())
}

/// Writes down who the standbys are.
pub(super) fn keep_followers(store: &mut dyn JournalStore, names: &[CoordinatorId]) -> Result<(), RuntimeError> {
    let bytes = serde_json::to_vec(names).map_err(|error| RuntimeError::State(error.to_string()))?;
    Ok(store.set_meta(META_FOLLOWERS, &bytes)?)
}

fn parse_role(bytes: &[u8]) -> Result<CoordinatorRole, RuntimeError> {
    let text = String::from_utf8_lossy(bytes);
    text.parse().map_err(|error| RuntimeError::State(format!("the store remembers no role: {error}")))
}

fn read_proof(store: &dyn JournalStore, key: &str) -> Result<Option<EpochProof>, RuntimeError> {
    let Some(bytes) = store.meta(key)? else { return Ok(None) };
    let wire = v1::EpochProof::decode(bytes.as_slice())
        .map_err(|error| RuntimeError::State(format!("the store's {key} does not decode: {error}")))?;
    let proof = convert::epoch_proof(&wire);
    proof.map(Some).map_err(|error| RuntimeError::State(format!("the store's {key} is no epoch: {error}")))
}
