//! State as the journal gives it. What does not continue the chain is never applied.

use super::handle::RuntimeError;
use crate::store::{JournalHash, JournalStore, Snapshot, StoreError};
use muster_coordinator_core::state::State;

/// Entries read at once when the journal is replayed at the start.
const LOAD_BATCH_ENTRIES: usize = 2_000;

/// State as the journal gives it: the newest snapshot, then every entry after it.
pub(super) fn load(store: &dyn JournalStore) -> Result<State, RuntimeError> {
    let (mut state, mut hash) = match store.snapshot()? {
        Some(snapshot) => (decode_state(&snapshot)?, snapshot.hash),
        None => (State::genesis(), JournalHash::ZERO),
    };
    loop {
        let entries = store.entries_from(state.head_index() + 1, LOAD_BATCH_ENTRIES)?;
        if entries.is_empty() {
            return Ok(state);
        }
        for stored in entries {
            let damaged = |what: &str| StoreError::Damaged { index: stored.index, what: what.to_owned() };
            if stored.index != state.head_index() + 1 {
                return Err(damaged("entries before it are missing").into());
            }
            hash = hash.then(&stored.body);
            if hash != stored.hash {
                return Err(damaged("its hash does not continue the chain").into());
            }
            muster_coordinator_core::apply(&mut state, &stored.decode()?);
        }
    }
}

/// The State of a snapshot.
pub(super) fn decode_state(snapshot: &Snapshot) -> Result<State, RuntimeError> {
    let state: State = serde_json::from_slice(&snapshot.body).map_err(|error| {
        RuntimeError::State(format!("the snapshot of entry {} is unreadable: {error}", snapshot.index))
    })?;
    if state.head_index() == snapshot.index {
        return Ok(state);
    }
    Err(RuntimeError::State(format!("the snapshot of entry {} holds entry {}", snapshot.index, state.head_index())))
}
