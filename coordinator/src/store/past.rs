//! What was known at a time in the past: the newest snapshot before it, and the entries up to it. Reads only, beside the
//! loop, with a bound and a deadline: the question is a person's, and the journal is long.

use super::{Head, JournalHash, JournalStore, StoreError};
use muster_common::time::Timestamp;
use muster_coordinator_core::apply;
use muster_coordinator_core::state::State;
use std::time::Instant;

/// Entries applied for one answer: some seconds of work. There is a snapshot every 20 000 entries, of the last ones.
const ENTRIES_MAX: u64 = 500_000;
/// Entries read at once.
const BATCH_ENTRIES: usize = 1_000;

/// Why the past is not told.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// Before the journal begins, or before the oldest snapshot of a journal whose beginning is forgotten.
    #[error("the journal does not reach back to that time: the oldest that can be told is {0}")]
    TooOld(Timestamp),
    /// Too much to do.
    #[error(
        "{0} entries lie between the nearest snapshot and that time, more than are looked through: ask about another time, or replay a bundle"
    )]
    TooFar(u64),
    /// Too slow.
    #[error(
        "going through the journal took too long: try again when the coordinator has less to do, or replay a bundle"
    )]
    TooSlow,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A snapshot of another version.
    #[error("the snapshot of entry {index} is unreadable")]
    Snapshot {
        /// Which.
        index: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A place from which State can be rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The entry it stands for; 0 before the first.
    pub at: Head,
    /// State as JSON; none before the first entry.
    pub state: Option<Vec<u8>>,
}

impl Beginning {
    /// State itself.
    pub fn decode(&self) -> Result<State, PastError> {
        let Some(body) = &self.state else { return Ok(State::genesis()) };
        serde_json::from_slice(body).map_err(|source| PastError::Snapshot { index: self.at.index, source })
    }
}

/// True when every entry from the first on is kept.
fn is_whole(store: &dyn JournalStore) -> Result<bool, StoreError> {
    Ok(store.base()?.0 == 0 && store.oldest()? == 1)
}

/// The last place at or before entry `index` that State can be rebuilt from.
pub fn beginning(store: &dyn JournalStore, index: u64) -> Result<Option<Beginning>, StoreError> {
    let newest = store.snapshots()?.into_iter().rfind(|snapshot| snapshot.index <= index);
    if let Some(at) = newest
        && let Some(snapshot) = store.snapshot_of(at.index)?
    {
        return Ok(Some(Beginning { at, state: Some(snapshot.body) }));
    }
    let genesis = Head { index: 0, hash: JournalHash::ZERO, at: Timestamp::UNIX_EPOCH };
    Ok(is_whole(store)?.then_some(Beginning { at: genesis, state: None }))
}

/// The oldest time about which anything can be told.
pub fn oldest_time(store: &dyn JournalStore) -> Result<Timestamp, StoreError> {
    if is_whole(store)?
        && let Some(first) = store.entries_from(1, 1)?.first()
    {
        return Ok(first.decode()?.at);
    }
    Ok(store.snapshots()?.first().map_or(store.head().at, |snapshot| snapshot.at))
}

/// State as it was at `time`, everything of that moment included. Ends at `deadline`.
pub fn state_at(store: &dyn JournalStore, time: Timestamp, deadline: Instant) -> Result<State, PastError> {
    let too_old = || oldest_time(store).map_err(PastError::Store).map(PastError::TooOld);
    let Some(index) = last_known(store, time)? else { return Err(too_old()?) };
    let Some(beginning) = beginning(store, index)? else { return Err(too_old()?) };
    let entries = index.saturating_sub(beginning.at.index);
    if entries > ENTRIES_MAX {
        return Err(PastError::TooFar(entries));
    }
    let mut state = beginning.decode()?;
    while state.head_index() < index {
        if Instant::now() >= deadline {
            return Err(PastError::TooSlow);
        }
        let left = usize::try_from(index - state.head_index()).unwrap_or(usize::MAX);
        let batch = store.entries_from(state.head_index() + 1, left.min(BATCH_ENTRIES))?;
        if batch.first().is_none_or(|first| first.index != state.head_index() + 1) {
            // Retention went on meanwhile.
            return Err(too_old()?);
        }
        for stored in batch {
            apply(&mut state, &stored.decode()?);
        }
    }
    Ok(state)
}

/// The last entry at or before `time`, or the snapshot that a journal begins with.
fn last_known(store: &dyn JournalStore, time: Timestamp) -> Result<Option<u64>, StoreError> {
    if let Some(index) = store.last_index_at(time)? {
        return Ok(Some(index));
    }
    let first = store.snapshots()?.into_iter().find(|snapshot| snapshot.at <= time);
    Ok(first.map(|snapshot| snapshot.index))
}
