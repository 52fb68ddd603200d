//! The spool: what was found is durable here before anything leaves the host.
//!
//! One SQLite file in the agent's own state folder. Entries form a hash chain under a spool id; they are kept until a
//! coordinator says that they are replicated, and a while longer, so that a coordinator that lost them can ask again.
//! The same file keeps the highest epoch ever heard (lower ones are refused) and the small states of the agent's parts.
//!
//! Must never: tell a position before it is durable; delete what is not replicated, except to stay within the bound,
//! and then without counting it; trust a damaged file (it is moved aside and kept).

mod file;
mod owner;

pub use owner::{SpoolHandle, SpoolOwner, own, spawn};

use file::Meta;
use muster_agent_core::clock::Now;
use muster_agent_core::session::{Entry, SpoolView, Written};
use muster_common::finding::FindingEvent;
use muster_common::ids::{BootId, Epoch, SpoolId};
use muster_common::limits::ENTRY_BODY_BYTES_MAX;
use muster_common::spool::{EntryHash, Position};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an entry takes beside its body: hashes, times and SQLite's own.
const ENTRY_OVERHEAD_BYTES: u64 = 160;
/// The smallest bound that still holds a few of the largest entries.
const MAX_BYTES_MIN: u64 = 1024 * 1024;
/// The largest bound of a spool in memory: the unit allows the whole agent 64 MiB.
const MEMORY_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Bytes of one state that a part of the agent keeps here.
pub const STATE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a proof of an epoch: `muster_common::epoch_proof` allows 17 KiB and a little framing.
pub const PROOF_BYTES_MAX: usize = 32 * 1024;

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// Bytes of all entries; beyond it the oldest are evicted, counted and told. At least 1 MiB is used.
    pub max_bytes: u64,
    /// Replicated entries are kept this long, counted from the acknowledgement.
    pub keep_acked: Duration,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self { max_bytes: 64 * 1024 * 1024, keep_acked: Duration::from_secs(3600) }
    }
}

/// Why the spool cannot do its part.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// SQLite says no: disk full, I/O error, damaged file.
    #[error("the spool {} cannot be used; check free space and permissions of its folder, and that no other agent runs on it", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The folder or a file in it cannot be handled.
    #[error("the spool {} cannot be opened or moved aside; check permissions of its folder", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An event whose encoding no coordinator would take.
    #[error("a finding has {0} bytes encoded, at most {ENTRY_BODY_BYTES_MAX} are allowed; shorten its evidence")]
    TooLarge(usize),
    /// A state that is no small one.
    #[error("the state {key:?} has {bytes} bytes, too many to keep")]
    StateTooLarge {
        /// Whose.
        key: String,
        /// How large.
        bytes: usize,
    },
    /// A lower epoch than the highest heard.
    #[error("epoch {refused} is lower than {highest}, which was heard before")]
    EpochLower {
        /// What was to be stored.
        refused: Epoch,
        /// What is stored.
        highest: Epoch,
    },
    /// The owner of the spool has gone.
    #[error("the spool is closed; the agent is stopping, or what owned it failed (see the log above)")]
    Closed,
}

/// A damaged file was found, and a new spool begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolLoss {
    /// Where the damaged file is now.
    pub moved_to: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// What to write: an event and when it happened (`CLOCK_BOOTTIME`, not later than now).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// What.
    pub event: FindingEvent,
    /// When.
    pub observed_boottime_ms: u64,
}

/// How a coordinator's position compares with the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The entry is ours.
    Same,
    /// The entry is no longer kept, or the coordinator knows no hash: nothing speaks against it.
    Unknown,
    /// This spool never wrote that entry, or wrote another: it was reverted.
    Different,
}

/// The spool, owned by one thread.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    connection: Connection,
    limits: SpoolLimits,
    boot: BootId,
    meta: Meta,
    bytes: u64,
    loss: Option<SpoolLoss>,
    /// SQLite found damage since the file was opened.
    damaged: Cell<bool>,
}

impl Spool {
    /// Opens or creates the spool at `path`. A file that is damaged, in its pages or in its hash chain, is moved aside
    /// and a new spool begun; [`Spool::loss`] tells.
    pub fn open(path: &Path, limits: SpoolLimits, boot: BootId, now: Now) -> Result<Self, SpoolError> {
        let (connection, meta, bytes, loss) = file::open_or_replace(path, now)?;
        let limits = SpoolLimits { max_bytes: limits.max_bytes.max(MAX_BYTES_MIN), ..limits };
        let mut spool =
            Self { path: path.to_owned(), connection, limits, boot, meta, bytes, loss, damaged: Cell::new(false) };
        if spool.meta.boot != Some(boot) {
            spool.boot_changed()?;
        }
        Ok(spool)
    }

    /// A spool in memory, for an agent whose state folder cannot be used: what it tells is told, but not kept across a
    /// restart. The highest epoch is taken from the spool at `path`, if that can be read.
    pub fn open_in_memory(path: &Path, limits: SpoolLimits, boot: BootId) -> Result<Self, SpoolError> {
        let (connection, meta, bytes) = file::open_in_memory(path)?;
        let limits = SpoolLimits { max_bytes: limits.max_bytes.clamp(MAX_BYTES_MIN, MEMORY_BYTES_MAX), ..limits };
        let (path, damaged) = (path.to_owned(), Cell::new(false));
        let mut spool = Self { path, connection, limits, boot, meta, bytes, loss: None, damaged };
        spool.boot_changed()?;
        Ok(spool)
    }

    /// Begins anew when SQLite found damage while at work: as [`Spool::open`], with the damaged file moved aside.
    /// True when it did. What was in hand then failed, and its caller was told.
    pub fn heal(&mut self, now: Now) -> Result<bool, SpoolError> {
        if !self.damaged.get() {
            return Ok(false);
        }
        let nowhere = Connection::open_in_memory().map_err(|source| self.sqlite(source))?;
        drop(std::mem::replace(&mut self.connection, nowhere));
        *self = Self::open(&self.path.clone(), self.limits, self.boot, now)?;
        Ok(true)
    }

    /// The damaged file that was found when this spool was opened.
    pub fn loss(&self) -> Option<&SpoolLoss> {
        self.loss.as_ref()
    }

    /// Where the spool stands.
    pub fn view(&self) -> SpoolView {
        SpoolView {
            spool: self.meta.spool,
            head: self.meta.head,
            oldest: self.meta.oldest,
            evicted: self.meta.evicted,
            stored: self.meta.stored,
        }
    }

    /// The position of the last entry.
    pub fn position(&self) -> Position {
        Position { spool: self.meta.spool, sequence: self.meta.head, hash: self.meta.head_hash }
    }

    /// Appends events, and replaces states of the agent's parts (removes those without bytes), in one transaction:
    /// durable when this returns.
    pub fn append(&mut self, events: &[Append], states: &[(&str, &[u8])], now: Now) -> Result<Position, SpoolError> {
        let bodies: Vec<(Vec<u8>, Written)> = events
            .iter()
            .map(|append| Ok((encode(&append.event)?, self.written(append, now))))
            .collect::<Result<_, SpoolError>>()?;
        for (key, bytes) in states {
            check_state(key, bytes)?;
        }
        let (max_bytes, mut meta, mut bytes) = (self.limits.max_bytes, self.meta.clone(), self.bytes);
        self.transaction(|transaction| {
            for (body, written) in &bodies {
                bytes += insert(transaction, &mut meta, body, *written)?;
            }
            bytes -= evict(transaction, &mut meta, bytes, max_bytes)?;
            for (key, value) in states {
                put(transaction, key, value)?;
            }
            meta.store(transaction)
        })?;
        (self.meta, self.bytes) = (meta, bytes);
        Ok(self.position())
    }

    /// Entries with `after < sequence <= up_to`, oldest first: at most `entries_max`, and no more after `bytes_max`
    /// bytes of bodies (but at least one).
    pub fn read(&self, after: u64, up_to: u64, entries_max: usize, bytes_max: usize) -> Result<Vec<Entry>, SpoolError> {
        self.read_inner(after, up_to, entries_max, bytes_max).map_err(|source| self.sqlite(source))
    }

    /// Notes that a coordinator has everything up to `stored`, and its standby up to `replicated`. What it never can
    /// have is ignored, as is an acknowledgement of another spool id or of less than was acknowledged before.
    pub fn ack(&mut self, spool: SpoolId, stored: u64, replicated: u64, now: Now) -> Result<(), SpoolError> {
        if spool != self.meta.spool {
            return Ok(());
        }
        let (keep_ms, boot_ms) =
            (u64::try_from(self.limits.keep_acked.as_millis()).unwrap_or(u64::MAX), now.boottime_ms);
        let (mut meta, mut bytes) = (self.meta.clone(), self.bytes);
        meta.stored = meta.stored.max(stored.min(meta.head));
        let replicated = replicated.min(meta.stored);
        self.transaction(|transaction| {
            if replicated > meta.replicated {
                transaction
                    .prepare_cached(
                        "UPDATE entries SET replicated_boottime_ms = ?1 WHERE sequence > ?2 AND sequence <= ?3",
                    )?
                    .execute(params![signed(boot_ms), signed(meta.replicated), signed(replicated)])?;
                meta.replicated = replicated;
            }
            let deadline_ms = boot_ms.checked_sub(keep_ms);
            if let Some(deadline_ms) = deadline_ms {
                bytes -= delete_replicated(transaction, &mut meta, deadline_ms)?;
            }
            meta.store(transaction)
        })?;
        (self.meta, self.bytes) = (meta, bytes);
        Ok(())
    }

    /// Compares a coordinator's position of this spool id with what is here.
    pub fn compare(&self, position: Position) -> Result<Comparison, SpoolError> {
        if position.spool != self.meta.spool || position.sequence == 0 {
            return Ok(Comparison::Unknown);
        }
        if position.sequence > self.meta.head {
            return Ok(Comparison::Different);
        }
        let ours = if position.sequence == self.meta.head {
            Some(self.meta.head_hash)
        } else {
            self.hash_of(position.sequence).map_err(|source| self.sqlite(source))?
        };
        Ok(match ours {
            _ if position.hash == EntryHash::ZERO => Comparison::Unknown,
            Some(hash) if hash == position.hash => Comparison::Same,
            Some(_) => Comparison::Different,
            None => Comparison::Unknown,
        })
    }

    /// Starts a new spool id. What is not replicated goes on under it, numbered from 1; the rest is in safe hands.
    pub fn restart(&mut self) -> Result<SpoolView, SpoolError> {
        let kept = self.read(self.meta.replicated, self.meta.head, usize::MAX, usize::MAX)?;
        let mut meta = Meta { boot: self.meta.boot, evicted: self.meta.evicted, ..Meta::fresh() };
        let mut bytes = 0;
        self.transaction(|transaction| {
            transaction.execute("DELETE FROM entries", [])?;
            for entry in &kept {
                bytes += insert(transaction, &mut meta, &entry.body, entry.written)?;
            }
            meta.store(transaction)
        })?;
        (self.meta, self.bytes) = (meta, bytes);
        Ok(self.view())
    }

    /// Goes on as `other`, with what is not replicated here behind what is there already. What the agent's parts kept
    /// there is older than what they know, and removed.
    pub fn move_to(&mut self, mut other: Self) -> Result<(), SpoolError> {
        let kept = self.read(self.meta.replicated, self.meta.head, usize::MAX, usize::MAX)?;
        let known = other.highest_epoch()?.map(|(epoch, _)| epoch);
        let higher = self.highest_epoch()?.filter(|(epoch, _)| known.is_none_or(|known| *epoch > known));
        let (max_bytes, mut meta, mut bytes) = (other.limits.max_bytes, other.meta.clone(), other.bytes);
        other.transaction(|transaction| {
            for entry in &kept {
                bytes += insert(transaction, &mut meta, &entry.body, entry.written)?;
            }
            bytes -= evict(transaction, &mut meta, bytes, max_bytes)?;
            transaction.execute("DELETE FROM state", [])?;
            if let Some((epoch, proof)) = &higher {
                file::store_epoch(transaction, epoch, proof)?;
            }
            meta.store(transaction)
        })?;
        (other.meta, other.bytes) = (meta, bytes);
        *self = other;
        Ok(())
    }

    /// The highest epoch ever heard, with its proof.
    pub fn highest_epoch(&self) -> Result<Option<(Epoch, Vec<u8>)>, SpoolError> {
        file::load_epoch(&self.connection).map_err(|source| self.sqlite(source))
    }

    /// Makes an epoch durable; refuses one that is lower than the highest heard.
    pub fn store_epoch(&mut self, epoch: &Epoch, proof: &[u8]) -> Result<(), SpoolError> {
        if proof.len() > PROOF_BYTES_MAX {
            return Err(SpoolError::StateTooLarge { key: "epoch proof".to_owned(), bytes: proof.len() });
        }
        if let Some((highest, _)) = self.highest_epoch()?
            && *epoch < highest
        {
            return Err(SpoolError::EpochLower { refused: epoch.clone(), highest });
        }
        self.transaction(|transaction| file::store_epoch(transaction, epoch, proof))?;
        // It is durable already. Out of the log it can be read on a disk that cannot be written any more, too.
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).ok();
        Ok(())
    }

    /// What a part of the agent kept under `key`.
    pub fn get_state(&self, key: &str) -> Result<Option<Vec<u8>>, SpoolError> {
        self.connection
            .prepare_cached("SELECT value FROM state WHERE key = ?1")
            .and_then(|mut statement| statement.query_row([key], |row| row.get(0)).optional())
            .map_err(|source| self.sqlite(source))
    }

    /// All that is kept under keys that begin with `prefix`.
    pub fn get_states(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, SpoolError> {
        let get = || -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
            let mut statement =
                self.connection.prepare_cached("SELECT key, value FROM state WHERE instr(key, ?1) = 1")?;
            statement.query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        get().map_err(|source| self.sqlite(source))
    }

    /// Keeps `bytes` under `key`, durable when this returns; no bytes are nothing to keep.
    pub fn put_state(&mut self, key: &str, bytes: &[u8]) -> Result<(), SpoolError> {
        check_state(key, bytes)?;
        self.transaction(|transaction| put(transaction, key, bytes))
    }

    /// Boot-time clocks of another boot say nothing here: what is replicated is kept for the whole time again.
    fn boot_changed(&mut self) -> Result<(), SpoolError> {
        let mut meta = self.meta.clone();
        meta.boot = Some(self.boot);
        self.transaction(|transaction| {
            transaction.execute(
                "UPDATE entries SET replicated_boottime_ms = 0 WHERE replicated_boottime_ms IS NOT NULL",
                [],
            )?;
            meta.store(transaction)
        })?;
        self.meta = meta;
        Ok(())
    }

    fn written(&self, append: &Append, now: Now) -> Written {
        let boottime_ms = append.observed_boottime_ms.min(now.boottime_ms);
        Written { boot: self.boot, boottime_ms, wall: now.wall - now.since(boottime_ms) }
    }

    fn read_inner(&self, after: u64, up_to: u64, entries_max: usize, bytes_max: usize) -> rusqlite::Result<Vec<Entry>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT sequence, previous_hash, hash, body, boot_id, boottime_ms, wall_unix_ms FROM entries
             WHERE sequence > ?1 AND sequence <= ?2 ORDER BY sequence",
        )?;
        let mut rows = statement.query(params![signed(after), signed(up_to)])?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let entry = file::entry(row)?;
            bytes += entry.body.len();
            if entries.len() >= entries_max || (bytes > bytes_max && !entries.is_empty()) {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The hash of an entry that is kept, or of the last one that is not.
    fn hash_of(&self, sequence: u64) -> rusqlite::Result<Option<EntryHash>> {
        let find = |sql: &str, sequence: u64| {
            let row = |row: &rusqlite::Row<'_>| row.get(0).map(EntryHash);
            self.connection.prepare_cached(sql)?.query_row([signed(sequence)], row).optional()
        };
        match find("SELECT hash FROM entries WHERE sequence = ?1", sequence)? {
            Some(hash) => Ok(Some(hash)),
            None => find("SELECT previous_hash FROM entries WHERE sequence = ?1", sequence.saturating_add(1)),
        }
    }

    fn transaction(&mut self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<(), SpoolError> {
        let result = self.connection.transaction().and_then(|transaction| {
            work(&transaction)?;
            transaction.commit()
        });
        result.map_err(|source| self.sqlite(source))
    }

    fn sqlite(&self, source: rusqlite::Error) -> SpoolError {
        if file::is_damage(&source) {
            self.damaged.set(true);
        }
        SpoolError::Sqlite { path: self.path.clone(), source }
    }
}

/// Whether the spool takes an event of this size.
pub fn fits(event: &FindingEvent) -> bool {
    encode(event).is_ok()
}

fn encode(event: &FindingEvent) -> Result<Vec<u8>, SpoolError> {
    let body = muster_proto::convert::encode_finding_event(event);
    if body.len() > ENTRY_BODY_BYTES_MAX { Err(SpoolError::TooLarge(body.len())) } else { Ok(body) }
}

fn check_state(key: &str, bytes: &[u8]) -> Result<(), SpoolError> {
    if bytes.len() > STATE_BYTES_MAX {
        return Err(SpoolError::StateTooLarge { key: key.to_owned(), bytes: bytes.len() });
    }
    Ok(())
}

/// SQLite has no unsigned integers. Sequence numbers and milliseconds never reach the sign.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn put(transaction: &Transaction<'_>, key: &str, bytes: &[u8]) -> rusqlite::Result<()> {
    if bytes.is_empty() {
        transaction.prepare_cached("DELETE FROM state WHERE key = ?1")?.execute([key])?;
        return Ok(());
    }
    transaction
        .prepare_cached("INSERT INTO state (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
        .execute(params![key, bytes])?;
    Ok(())
}

/// Adds the next entry; its size is returned.
fn insert(transaction: &Transaction<'_>, meta: &mut Meta, body: &[u8], written: Written) -> rusqlite::Result<u64> {
    let (sequence, previous) = (meta.head + 1, meta.head_hash);
    let hash = EntryHash::of(meta.spool, sequence, previous, body);
    transaction
        .prepare_cached(
            "INSERT INTO entries (sequence, previous_hash, hash, body, boot_id, boottime_ms, wall_unix_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            signed(sequence),
            previous.0,
            hash.0,
            body,
            written.boot.0.into_bytes(),
            signed(written.boottime_ms),
            written.wall.unix_ms(),
        ])?;
    (meta.head, meta.head_hash) = (sequence, hash);
    Ok(entry_bytes(body.len()))
}

fn entry_bytes(body_bytes: usize) -> u64 {
    u64::try_from(body_bytes).unwrap_or(u64::MAX).saturating_add(ENTRY_OVERHEAD_BYTES)
}

/// Deletes the oldest entries until `bytes` are within `max_bytes`; the newest one stays. Acknowledged entries are
/// older than all others, so they go first; the others are counted. What was freed is returned.
fn evict(transaction: &Transaction<'_>, meta: &mut Meta, bytes: u64, max_bytes: u64) -> rusqlite::Result<u64> {
    let mut freed = 0;
    while bytes - freed > max_bytes && meta.oldest < meta.head {
        freed += delete_oldest(transaction, meta)?;
        if meta.oldest > meta.stored + 1 {
            meta.evicted += 1;
        }
    }
    Ok(freed)
}

/// Deletes entries that were replicated at `deadline_ms` or before. What was freed is returned.
fn delete_replicated(transaction: &Transaction<'_>, meta: &mut Meta, deadline_ms: u64) -> rusqlite::Result<u64> {
    let mut freed = 0;
    while meta.oldest <= meta.replicated {
        let at: Option<i64> = transaction
            .prepare_cached("SELECT replicated_boottime_ms FROM entries WHERE sequence = ?1")?
            .query_row([signed(meta.oldest)], |row| row.get(0))
            .optional()?
            .flatten();
        if at.is_some_and(|at| unsigned(at) > deadline_ms) {
            break;
        }
        freed += delete_oldest(transaction, meta)?;
    }
    Ok(freed)
}

fn delete_oldest(transaction: &Transaction<'_>, meta: &mut Meta) -> rusqlite::Result<u64> {
    let body_bytes: Option<i64> = transaction
        .prepare_cached("DELETE FROM entries WHERE sequence = ?1 RETURNING length(body)")?
        .query_row([signed(meta.oldest)], |row| row.get(0))
        .optional()?;
    meta.oldest += 1;
    Ok(body_bytes.map_or(0, |bytes| entry_bytes(usize::try_from(bytes).unwrap_or(0))))
}

#[cfg(test)]
mod tests;
