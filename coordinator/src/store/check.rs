//! Verifies a journal from end to end: SQLite's own check, the hash chain, every entry's decoding.

use super::{JournalStore, StoreError, sqlite::SqliteStore};
use muster_coordinator_core::entry::{Entry, EntryBody, Fact};
use muster_coordinator_core::policy::RULES_VERSION;
use muster_coordinator_core::replay::verify;
use muster_coordinator_core::state::State;

/// Entries read at once: bounds memory, not the check.
const CHECK_BATCH_ENTRIES: usize = 1_000;

/// Entries replayed from the very beginning; a longer journal is replayed from its newest snapshot.
const REPLAY_ENTRIES_MAX: u64 = 200_000;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Entries whose chain and decoding were verified.
    pub entries: u64,
    /// First entry kept.
    pub oldest: u64,
    /// Last entry.
    pub newest: u64,
    /// Entries that were replayed; 0 where other rules wrote them.
    pub replayed: u64,
    /// Conclusions among them, each of which the rules reproduced byte for byte.
    pub conclusions: u64,
    /// What is wrong, in order of position; empty when the journal is sound.
    pub problems: Vec<String>,
}

/// Checks the journal as far as it went when this began: a coordinator may be writing to it. Reads only.
pub fn check_store(store: &SqliteStore) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport { oldest: store.oldest()?, newest: store.head().index, ..CheckReport::default() };
    report.problems.extend(store.quick_check()?.into_iter().map(|line| format!("sqlite: {line}")));
    let (mut index, mut hash) = store.base()?;
    loop {
        let left = usize::try_from(report.newest.saturating_sub(index)).unwrap_or(usize::MAX);
        let entries = match store.entries_from(index + 1, CHECK_BATCH_ENTRIES.min(left)) {
            Ok(entries) => entries,
            Err(error) => {
                report.problems.push(muster_common::chain::Chain(&error).to_string());
                return Ok(report);
            }
        };
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            if let Err(problem) = follows(index, hash, &entry) {
                report.problems.push(problem);
                return Ok(report);
            }
            (index, hash) = (entry.index, entry.hash);
            report.entries += 1;
        }
    }
    if let Some(snapshot) = store.snapshot()?
        && snapshot.index == index
        && snapshot.hash != hash
    {
        report.problems.push(format!("the snapshot of entry {index} carries another hash than the entry"));
    }
    if report.problems.is_empty() {
        replay(store, &mut report)?;
    }
    Ok(report)
}

/// Feeds the facts since the newest snapshot (or since the beginning, where that is kept) to the rules again. Only where
/// the rules are those that wrote the journal can they be expected to agree.
fn replay(store: &SqliteStore, report: &mut CheckReport) -> Result<(), StoreError> {
    let from_genesis = report.oldest == 1 && report.entries <= REPLAY_ENTRIES_MAX;
    let state = match store.snapshot()? {
        Some(snapshot) if !from_genesis => serde_json::from_slice(&snapshot.body)?,
        _ if from_genesis => State::genesis(),
        _ => return Ok(()),
    };
    let left = report.newest.saturating_sub(state.head_index()).min(REPLAY_ENTRIES_MAX);
    let stored = store.entries_from(state.head_index() + 1, usize::try_from(left).unwrap_or(usize::MAX))?;
    let entries: Vec<Entry> = stored.iter().map(super::StoredEntry::decode).collect::<Result<_, _>>()?;
    let other_rules = |entry: &Entry| matches!(&entry.body, EntryBody::Fact(Fact::PolicyLoaded { policy }) if policy.rules_version != RULES_VERSION);
    if state.policy().rules_version != RULES_VERSION || entries.iter().any(other_rules) {
        return Ok(());
    }
    match verify(state, &entries) {
        Ok(_) => {
            let conclusions = entries.iter().filter(|entry| matches!(entry.body, EntryBody::Conclusion(_))).count();
            report.replayed = u64::try_from(entries.len()).unwrap_or(u64::MAX);
            report.conclusions = u64::try_from(conclusions).unwrap_or(u64::MAX);
        }
        Err(divergence) => report.problems.push(format!(
            "entry {}: the rules of this version conclude something else than what is recorded",
            divergence.index
        )),
    }
    Ok(())
}

fn follows(index: u64, hash: super::JournalHash, entry: &super::StoredEntry) -> Result<(), String> {
    if entry.index != index + 1 {
        return Err(format!("entry {} is missing: {} follows {index}", index + 1, entry.index));
    }
    if hash.then(&entry.body) != entry.hash {
        return Err(format!("entry {}: the hash does not match its body and the entry before it", entry.index));
    }
    entry.decode().map(|_| ()).map_err(|error| error.to_string())
}
