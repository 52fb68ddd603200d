//! A bundle: the part of a journal that something rests on, with the State before it, in one file that
//! `muster-coordinator replay` reads anywhere.
//!
//! A gzipped tar (decision 12) of `manifest.json`, `state.json` (State right before the first entry; absent where the
//! journal is whole), `journal/NNNNNN.ndjson` (entries as stored, one a line) and `end.json`. It is written and read as a
//! stream: nothing of it but one segment and State is ever in memory. The entries prove themselves by the journal's own
//! chain of hashes. It holds what agents and operators told: no secret, but names of hosts and services.

mod read;
mod write;

pub use read::{BundleError, Reader};
pub use write::{WriteError, Writer};

use muster_common::time::Timestamp;
use muster_coordinator_core::replay::Counts;
use serde::{Deserialize, Serialize};

/// Of the manifest; a reader refuses what is newer.
pub const FORMAT_VERSION: u32 = 1;
/// What a manifest says it is, so that an agent's bundle is not taken for one.
pub const KIND: &str = "muster-coordinator journal";
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const END: &str = "end.json";
/// Before the number of a segment.
const SEGMENT: &str = "journal/";
const SEGMENT_SUFFIX: &str = ".ndjson";

/// Bytes of State, as a follower takes them: about 50 KiB for each of 10 000 agents.
pub const STATE_BYTES_MAX: usize = crate::service::replication::SNAPSHOT_BYTES_MAX;
/// Bytes of a manifest or an end.
const NOTE_BYTES_MAX: usize = 256 << 10;
/// Bytes of entries that are gathered before a segment is written.
const SEGMENT_BYTES: usize = 4 << 20;
/// Bytes of one entry: a resync of the largest agent, as replication takes it.
const ENTRY_BYTES_MAX: usize = crate::service::replication::MESSAGE_BYTES_MAX;
/// Bytes of a segment: a full one and an entry that did not fit.
const SEGMENT_BYTES_MAX: usize = SEGMENT_BYTES + ENTRY_BYTES_MAX;
/// Entries of one bundle: all that a journal keeps, and room.
pub const ENTRIES_MAX: u64 = 4_000_000;
/// Bytes of all entries of one bundle, unpacked: what a journal keeps.
pub const ENTRY_BYTES_SUM_MAX: u64 = 4 << 30;

/// The first file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`KIND`].
    pub kind: String,
    /// Of this form.
    pub format_version: u32,
    /// Of the program that made it.
    pub coordinator_version: String,
    /// Who made it.
    pub coordinator: String,
    /// Of the fleet.
    pub fleet: String,
    /// Log time at which it was made.
    pub made: Timestamp,
    /// Of the program that made it; entries say under which version they were concluded.
    pub rules_version: u32,
    /// The incident it was made for, if any.
    #[serde(default)]
    pub incident: Option<String>,
    /// Index that State stands for; 0 when the journal is there from its first entry.
    pub state_index: u64,
    /// Bytes of State.
    pub state_bytes: u64,
    /// SHA-256 of it, hexadecimal.
    pub state_sha256: String,
    /// Value of the journal's chain of hashes before the first entry, hexadecimal.
    pub chain_before: String,
    /// First entry.
    pub first_index: u64,
    /// Last entry.
    pub last_index: u64,
    /// Log time of State.
    pub first_at: Timestamp,
    /// Log time of the last entry.
    pub last_at: Timestamp,
    /// The chain's value after the last entry: SHA-256 over all of them.
    pub chain_after: String,
    /// What is not in it, one sentence each.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// The last file: what could only be counted while it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    entries: u64,
    facts: u64,
    deadlines: u64,
    conclusions: u64,
}

impl From<Counts> for End {
    fn from(counts: Counts) -> Self {
        let Counts { facts, deadlines, conclusions } = counts;
        Self { entries: counts.entries(), facts, deadlines, conclusions }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
