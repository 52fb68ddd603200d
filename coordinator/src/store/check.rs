//! Verifies a journal from end to end: SQLite's own check, the hash chain, every entry's decoding.

use super::{JournalStore, StoreError, sqlite::SqliteStore};

/// Entries read at once: bounds memory, not the check.
const CHECK_BATCH_ENTRIES: usize = 1_000;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Entries whose chain and decoding were verified.
    pub entries: u64,
    /// First entry kept.
    pub oldest: u64,
    /// Last entry.
    pub newest: u64,
    /// What is wrong, in order of position; empty when the journal is sound.
    pub problems: Vec<String>,
}

/// Checks the whole journal. Reads only.
pub fn check_store(store: &SqliteStore) -> Result<CheckReport, StoreError> {
    let mut report = CheckReport { oldest: store.oldest()?, newest: store.head().index, ..CheckReport::default() };
    report.problems.extend(store.quick_check()?.into_iter().map(|line| format!("sqlite: {line}")));
    let (mut index, mut hash) = store.base()?;
    loop {
        let entries = match store.entries_from(index + 1, CHECK_BATCH_ENTRIES) {
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
    Ok(report)
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
