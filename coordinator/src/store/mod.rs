//! The journal on disk: entries in a hash chain, snapshots of State, and a few words of the coordinator's own.
//!
//! The store knows bytes and positions, never rules: it gives back what was appended, or says where it is damaged.
//! Invariant: an append is one durable transaction; after a failed one nothing may be published.

pub mod check;
pub mod packed;
pub mod past;
pub mod sqlite;

use self::packed::Packed;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Entry;
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::PathBuf;

/// SHA-256 over the previous entry's hash and this entry's body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct JournalHash(pub [u8; 32]);

impl JournalHash {
    /// Before the first entry.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of an entry with encoded `body` that follows `self`.
    pub fn then(self, body: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(body).finalize().into())
    }

    /// From the bytes of a row or message; anything but 32 bytes is no hash.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for JournalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JournalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JournalHash({self})")
    }
}

/// Where a journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Index of the last entry; 0 when empty.
    pub index: u64,
    /// Its hash.
    pub hash: JournalHash,
    /// Its log time.
    pub at: Timestamp,
}

/// One entry as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Position.
    pub index: u64,
    /// Hash of the chain up to and including this entry.
    pub hash: JournalHash,
    /// The [`Entry`] as JSON.
    pub body: Vec<u8>,
}

impl StoredEntry {
    /// The entry itself.
    pub fn decode(&self) -> Result<Entry, StoreError> {
        let entry: Entry = serde_json::from_slice(&self.body)
            .map_err(|error| StoreError::Damaged { index: self.index, what: format!("does not decode: {error}") })?;
        if entry.index == self.index {
            return Ok(entry);
        }
        Err(StoreError::Damaged { index: self.index, what: format!("calls itself entry {}", entry.index) })
    }
}

/// State as of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The entry it stands for.
    pub index: u64,
    /// Hash of the chain up to that entry.
    pub hash: JournalHash,
    /// Log time of that entry.
    pub at: Timestamp,
    /// State as JSON.
    pub body: Vec<u8>,
}

/// Why the store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A store URL of another kind.
    #[error("unknown store url {0:?}: use \"sqlite:/absolute/path/journal.db\"")]
    Url(String),
    /// Another process has it.
    #[error("{path} is in use by another coordinator: stop that one first, or give this one its own store")]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// A file that cannot be opened or locked.
    #[error("cannot open {path}: check that the folder exists and is writable by this user")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A snapshot that cannot be compressed.
    #[error("cannot pack a snapshot")]
    Pack(#[source] std::io::Error),
    /// SQLite said no.
    #[error("cannot {action} the journal")]
    Sqlite {
        /// While doing what.
        action: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Made by a newer version.
    #[error("the journal has schema version {found}, this binary knows {known}: use the version that wrote it")]
    Schema {
        /// What the file says.
        found: i64,
        /// What we know.
        known: i64,
    },
    /// The chain or an entry is broken.
    #[error("the journal is damaged at entry {index}: {what}; restore a backup, or promote the standby")]
    Damaged {
        /// Where.
        index: u64,
        /// How.
        what: String,
    },
    /// Entries that do not follow the head.
    #[error("entry {found} does not follow entry {head}: ask the primary for a snapshot")]
    NotNext {
        /// What was offered.
        found: u64,
        /// What we have.
        head: u64,
    },
    /// An entry that cannot be written down.
    #[error("cannot encode an entry")]
    Encode(#[from] serde_json::Error),
}

/// A journal that outlives the process. SQLite today; a shared PostgreSQL finds its room here.
pub trait JournalStore: Send {
    /// Where the journal ends.
    fn head(&self) -> Head;

    /// Makes `entries` durable in one transaction. They must follow the head.
    fn append(&mut self, entries: &[Entry]) -> Result<Head, StoreError> {
        self.append_with(entries, &[])
    }

    /// As [`JournalStore::append`], with words of the coordinator's own that change together with the entries.
    fn append_with(&mut self, entries: &[Entry], words: &[(&'static str, Vec<u8>)]) -> Result<Head, StoreError>;

    /// Makes entries from the primary durable in one transaction, after checking that they continue the chain.
    fn append_stored(&mut self, entries: &[StoredEntry]) -> Result<Head, StoreError>;

    /// At most `max` entries from `index` on, in order. Empty at the end, or when `index` is older than retention.
    fn entries_from(&self, index: u64, max: usize) -> Result<Vec<StoredEntry>, StoreError>;

    /// Index of the oldest entry kept; `head + 1` when none.
    fn oldest(&self) -> Result<u64, StoreError>;

    /// Where the snapshots stand that are kept and that the kept entries continue, oldest first: from each of them State
    /// can be rebuilt at any later time.
    fn snapshots(&self) -> Result<Vec<Head>, StoreError>;

    /// One of them.
    fn snapshot_of(&self, index: u64) -> Result<Option<Snapshot>, StoreError>;

    /// The same journal, for reading beside the loop: what is committed can be seen, nothing can be written.
    fn beside(&self) -> Result<Box<dyn JournalStore>, StoreError>;

    /// The chain's value just before the oldest kept entry, and that entry's index less one.
    fn base(&self) -> Result<(u64, JournalHash), StoreError>;

    /// Index of the last entry at or before `time`; none when every kept entry is later. Log time never goes back, so
    /// that a few looks are enough.
    fn last_index_at(&self, time: Timestamp) -> Result<Option<u64>, StoreError> {
        let (oldest, head) = (self.oldest()?, self.head().index);
        let (mut low, mut high) = (oldest, head.saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(stored) = self.entries_from(middle, 1)?.pop() else { break };
            if stored.decode()?.at <= time { low = middle + 1 } else { high = middle }
        }
        Ok((low > oldest).then(|| low - 1))
    }

    /// The newest snapshot.
    fn snapshot(&self) -> Result<Option<Snapshot>, StoreError>;

    /// Keeps `state` as the snapshot of `at`, and lets go of what retention no longer wants.
    fn put_snapshot(&mut self, at: Head, state: &Packed) -> Result<(), StoreError>;

    /// Throws away this journal and begins with a snapshot of the primary's.
    fn replace(&mut self, snapshot: &Snapshot) -> Result<(), StoreError>;

    /// A word of the coordinator's own.
    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps a word of the coordinator's own, durably.
    fn set_meta(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError>;
}

/// Meta key: `primary`, `standby` or `fenced`; what this coordinator was when it last knew.
pub const META_ROLE: &str = "role";
/// Meta key: the highest epoch ever heard, as an encoded `muster.v1.EpochProof`.
pub const META_HIGHEST_EPOCH: &str = "highest_epoch";
/// Meta key: this coordinator's own epoch, as an encoded `muster.v1.EpochProof`.
pub const META_OWN_EPOCH: &str = "own_epoch";
/// Meta key: the standbys that this coordinator has had as primary and not given up, as a JSON list of their names.
pub const META_FOLLOWERS: &str = "followers";

/// Opens the store of a config's `[store] url`.
pub fn open(url: &str) -> Result<Box<dyn JournalStore>, StoreError> {
    let path = sqlite::path_of(url)?;
    Ok(Box::new(sqlite::SqliteStore::open(&path)?))
}
