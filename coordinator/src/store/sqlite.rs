//! The journal in one SQLite file: WAL, `synchronous=FULL`, one writer.
//!
//! A lock file beside it keeps a second coordinator out; readers such as `check-store` are welcome at any time.

use super::packed::{Packed, unpack};
use super::{Head, JournalHash, JournalStore, Snapshot, StoreError, StoredEntry};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Entry;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::fs::File;
use std::path::{Path, PathBuf};

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE journal (idx INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, hash BLOB NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE snapshot (idx INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, hash BLOB NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
";
/// Entries kept behind the head: weeks of a busy fleet at about 1 KiB each. Older ones go when a snapshot is taken.
const RETAINED_ENTRIES_MAX: u64 = 2_000_000;
/// Bytes of entries kept behind the head: an agent that tells as much as it can must not fill the disk. Older ones go when
/// a snapshot is taken.
const RETAINED_BYTES_MAX: u64 = 4 << 30;
/// Entries kept behind the head whatever their size: what a start from the older snapshot needs, and a standby that was
/// away for a moment.
const RETAINED_ENTRIES_MIN: u64 = 60_000;
/// Snapshots kept whatever their size: the newest, and the one before in case it does not decode.
const SNAPSHOTS_KEPT: usize = 2;
/// Snapshots kept at most, the newest ones: from each of them what was known at a time after it can be told.
const SNAPSHOTS_MAX: usize = 32;
/// Bytes of the snapshots kept; of a large fleet fewer are.
const SNAPSHOT_BYTES_MAX: u64 = 256 << 20;
/// WAL size at which SQLite checkpoints, in pages of 4 KiB.
const CHECKPOINT_PAGES: i64 = 2_000;
/// Bytes that the write-ahead log keeps on disk after a checkpoint: one that grew in a storm shrinks again.
const WAL_BYTES_KEPT: i64 = 16 << 20;
/// Meta key of the chain's value just before the oldest kept entry: index (8 bytes, big-endian) and hash.
const META_BASE: &str = "base";

/// The file of a `sqlite:PATH` URL.
pub fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    match url.strip_prefix("sqlite:") {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => Err(StoreError::Url(muster_common::limits::clip(url, 200))),
    }
}

fn failed(action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sqlite { action, source }
}

/// SQLite integers are signed; no journal reaches 2^63 entries.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// A journal in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    head: Head,
    /// Held for as long as the store lives; absent when opened for reading only.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens the journal for writing, creating it when there is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock_path = path.with_extension("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| StoreError::Open { path: lock_path.clone(), source })?;
        lock.try_lock().map_err(|_| StoreError::InUse { path: lock_path })?;
        let connection = Connection::open(path).map_err(failed("open"))?;
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES};
                 PRAGMA journal_size_limit={WAL_BYTES_KEPT};
                 PRAGMA foreign_keys=ON; PRAGMA busy_timeout=5000;"
            ))
            .map_err(failed("open"))?;
        if version_of(&connection)? == 0 {
            let create = format!("BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;");
            connection.execute_batch(&create).map_err(failed("create"))?;
        }
        Self::from_connection(connection, Some(lock))
    }

    /// Opens an existing journal for reading, also beside a running coordinator.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(failed("open"))?;
        Self::from_connection(connection, None)
    }

    fn from_connection(connection: Connection, lock: Option<File>) -> Result<Self, StoreError> {
        let found = version_of(&connection)?;
        if found != SCHEMA_VERSION {
            return Err(StoreError::Schema { found, known: SCHEMA_VERSION });
        }
        let mut store = Self { connection, head: Head::default(), _lock: lock };
        store.head = store.read_head()?;
        Ok(store)
    }

    fn read_head(&self) -> Result<Head, StoreError> {
        let last = "SELECT idx, hash, at_ms FROM journal UNION ALL SELECT idx, hash, at_ms FROM snapshot
                    ORDER BY idx DESC LIMIT 1";
        let row = self
            .connection
            .query_row(last, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?)))
            .optional()
            .map_err(failed("read"))?;
        let Some((index, hash, at_ms)) = row else { return Ok(Head::default()) };
        Ok(Head { index: from_sql(index), hash: hash_of(from_sql(index), &hash)?, at: Timestamp::from_unix_ms(at_ms) })
    }

    /// The entry up to which the journal is forgotten: all but the newest, by number and by size. The size is the file's,
    /// since adding up the entries' would read them all.
    fn keep_from(&self, base: u64, bytes_max: u64, entries_min: u64) -> Result<u64, StoreError> {
        let by_number = self.head.index.saturating_sub(RETAINED_ENTRIES_MAX);
        let used = "SELECT (p.page_count - f.freelist_count) * s.page_size
                    FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size s";
        let used: i64 = self.connection.query_row(used, [], |row| row.get(0)).map_err(failed("read"))?;
        let kept = self.head.index.saturating_sub(base).max(1);
        let excess = from_sql(used).saturating_sub(bytes_max);
        // Of entries of about one size, as many go as the excess is of the whole.
        let drop = u128::from(kept) * u128::from(excess) / u128::from(from_sql(used).max(1));
        let by_size = base.saturating_add(u64::try_from(drop).unwrap_or(u64::MAX));
        Ok(by_number.max(by_size.min(self.head.index.saturating_sub(entries_min))))
    }

    fn read_snapshot(&self, query: &str, index: i64) -> Result<Option<Snapshot>, StoreError> {
        let row = self
            .connection
            .query_row(query, [index], |row| {
                let (index, at_ms): (i64, i64) = (row.get(0)?, row.get(1)?);
                Ok((index, at_ms, row.get::<_, Vec<u8>>(2)?, row.get::<_, Vec<u8>>(3)?))
            })
            .optional()
            .map_err(failed("read"))?;
        let Some((index, at_ms, hash, body)) = row else { return Ok(None) };
        let index = from_sql(index);
        let body = unpack(index, body)?;
        Ok(Some(Snapshot { index, hash: hash_of(index, &hash)?, at: Timestamp::from_unix_ms(at_ms), body }))
    }

    /// SQLite's own check of the file; empty when it is sound.
    pub fn quick_check(&self) -> Result<Vec<String>, StoreError> {
        let mut statement = self.connection.prepare("PRAGMA quick_check(20)").map_err(failed("check"))?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(failed("check"))?;
        let lines: Vec<String> = rows.collect::<Result<_, _>>().map_err(failed("check"))?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// Copies a journal that is about to be replaced into a file beside it, named by its end: what only this
    /// coordinator knew is not lost, and a person may look at it with `check-store` or `sqlite3`.
    fn keep_aside(&self) -> Result<(), StoreError> {
        let Some(path) = self.connection.path().filter(|path| !path.is_empty()) else { return Ok(()) };
        if self.head.index == 0 {
            return Ok(());
        }
        let name = format!("replaced-{}-{:.8}.db", self.head.index, self.head.hash.to_string());
        let aside = Path::new(path).with_extension(name);
        if aside.exists() {
            return Ok(());
        }
        self.connection.execute("VACUUM INTO ?1", [aside.to_string_lossy()]).map_err(failed("copy"))?;
        tracing::warn!(kept = %aside.display(), index = self.head.index, "kept the old journal aside before it is replaced");
        Ok(())
    }

    fn insert(
        &mut self,
        rows: &[(StoredEntry, Timestamp)],
        words: &[(&'static str, Vec<u8>)],
    ) -> Result<Head, StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(failed("begin a write to"))?;
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO journal (idx, at_ms, hash, body) VALUES (?1, ?2, ?3, ?4)")
                .map_err(failed("write"))?;
            for (row, at) in rows {
                insert
                    .execute(params![to_sql(row.index), at.unix_ms(), row.hash.0.as_slice(), row.body.as_slice()])
                    .map_err(failed("write"))?;
            }
        }
        for (key, value) in words {
            put_meta(&transaction, key, value)?;
        }
        transaction.commit().map_err(failed("commit"))?;
        if let Some((row, at)) = rows.last() {
            self.head = Head { index: row.index, hash: row.hash, at: *at };
        }
        Ok(self.head)
    }
}

fn version_of(connection: &Connection) -> Result<i64, StoreError> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read"))
}

fn hash_of(index: u64, bytes: &[u8]) -> Result<JournalHash, StoreError> {
    JournalHash::from_slice(bytes)
        .ok_or_else(|| StoreError::Damaged { index, what: "its hash is not 32 bytes".to_owned() })
}

impl JournalStore for SqliteStore {
    fn head(&self) -> Head {
        self.head
    }

    fn append_with(&mut self, entries: &[Entry], words: &[(&'static str, Vec<u8>)]) -> Result<Head, StoreError> {
        let (mut index, mut hash) = (self.head.index, self.head.hash);
        let mut rows = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.index != index + 1 {
                return Err(StoreError::NotNext { found: entry.index, head: index });
            }
            let body = serde_json::to_vec(entry)?;
            (index, hash) = (entry.index, hash.then(&body));
            rows.push((StoredEntry { index, hash, body }, entry.at));
        }
        self.insert(&rows, words)
    }

    fn append_stored(&mut self, entries: &[StoredEntry]) -> Result<Head, StoreError> {
        let (mut index, mut hash) = (self.head.index, self.head.hash);
        let mut rows = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.index != index + 1 {
                return Err(StoreError::NotNext { found: entry.index, head: index });
            }
            let decoded = entry.decode()?;
            (index, hash) = (entry.index, hash.then(&entry.body));
            if hash != entry.hash {
                let what = "its hash does not continue the chain".to_owned();
                return Err(StoreError::Damaged { index, what });
            }
            rows.push((entry.clone(), decoded.at));
        }
        self.insert(&rows, &[])
    }

    fn entries_from(&self, index: u64, max: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT idx, hash, body FROM journal WHERE idx >= ?1 ORDER BY idx LIMIT ?2")
            .map_err(failed("read"))?;
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![to_sql(index), limit], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, Vec<u8>>(2)?))
            })
            .map_err(failed("read"))?;
        let mut entries = Vec::new();
        for row in rows {
            let (found, hash, body) = row.map_err(failed("read"))?;
            let index = from_sql(found);
            entries.push(StoredEntry { index, hash: hash_of(index, &hash)?, body });
        }
        Ok(entries)
    }

    fn oldest(&self) -> Result<u64, StoreError> {
        let oldest: Option<i64> =
            self.connection.query_row("SELECT min(idx) FROM journal", [], |row| row.get(0)).map_err(failed("read"))?;
        Ok(oldest.map_or(self.head.index + 1, from_sql))
    }

    fn base(&self) -> Result<(u64, JournalHash), StoreError> {
        let Some(bytes) = self.meta(META_BASE)? else { return Ok((0, JournalHash::ZERO)) };
        let damaged = || StoreError::Damaged { index: 0, what: "the base of the chain is not readable".to_owned() };
        let (index, hash) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        Ok((u64::from_be_bytes(*index), JournalHash::from_slice(hash).ok_or_else(damaged)?))
    }

    fn beside(&self) -> Result<Box<dyn JournalStore>, StoreError> {
        let path = self.connection.path().unwrap_or_default();
        Ok(Box::new(Self::open_read_only(Path::new(path))?))
    }

    fn snapshots(&self) -> Result<Vec<Head>, StoreError> {
        // An entry right after it is kept, or none yet.
        let kept = "SELECT idx, hash, at_ms FROM snapshot WHERE idx + 1 >= ?1 ORDER BY idx";
        let oldest = self.oldest()?;
        let mut statement = self.connection.prepare_cached(kept).map_err(failed("read"))?;
        let rows = statement
            .query_map([to_sql(oldest)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?))
            })
            .map_err(failed("read"))?;
        let head = |(index, hash, at_ms): (i64, Vec<u8>, i64)| {
            let (index, at) = (from_sql(index), Timestamp::from_unix_ms(at_ms));
            Ok(Head { index, hash: hash_of(index, &hash)?, at })
        };
        rows.map(|row| row.map_err(failed("read")).and_then(head)).collect()
    }

    fn snapshot_of(&self, index: u64) -> Result<Option<Snapshot>, StoreError> {
        self.read_snapshot("SELECT idx, at_ms, hash, body FROM snapshot WHERE idx = ?1", to_sql(index))
    }

    fn snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        self.read_snapshot("SELECT idx, at_ms, hash, body FROM snapshot WHERE idx >= ?1 ORDER BY idx DESC LIMIT 1", 0)
    }

    fn put_snapshot(&mut self, at: Head, state: &Packed) -> Result<(), StoreError> {
        let (base, _) = self.base()?;
        let keep_from = self.keep_from(base, RETAINED_BYTES_MAX, RETAINED_ENTRIES_MIN)?;
        let transaction = self.connection.transaction().map_err(failed("begin a write to"))?;
        transaction
            .execute(
                "INSERT OR REPLACE INTO snapshot (idx, at_ms, hash, body) VALUES (?1, ?2, ?3, ?4)",
                params![to_sql(at.index), at.at.unix_ms(), at.hash.0.as_slice(), state.as_slice()],
            )
            .map_err(failed("write a snapshot to"))?;
        drop_snapshots(&transaction, keep_from, SNAPSHOT_BYTES_MAX)?;
        if keep_from > base {
            let hash: Vec<u8> = transaction
                .query_row("SELECT hash FROM journal WHERE idx = ?1", [to_sql(keep_from)], |row| row.get(0))
                .map_err(failed("prune"))?;
            let value = [keep_from.to_be_bytes().as_slice(), &hash].concat();
            put_meta(&transaction, META_BASE, &value)?;
            transaction.execute("DELETE FROM journal WHERE idx <= ?1", [to_sql(keep_from)]).map_err(failed("prune"))?;
        }
        transaction.commit().map_err(failed("commit"))
    }

    fn replace(&mut self, snapshot: &Snapshot) -> Result<(), StoreError> {
        self.keep_aside()?;
        let body = Packed::of(&snapshot.body).map_err(StoreError::Pack)?;
        let transaction = self.connection.transaction().map_err(failed("begin a write to"))?;
        transaction.execute_batch("DELETE FROM journal; DELETE FROM snapshot;").map_err(failed("replace"))?;
        transaction
            .execute(
                "INSERT INTO snapshot (idx, at_ms, hash, body) VALUES (?1, ?2, ?3, ?4)",
                params![to_sql(snapshot.index), snapshot.at.unix_ms(), snapshot.hash.0.as_slice(), body.as_slice()],
            )
            .map_err(failed("replace"))?;
        let base = [snapshot.index.to_be_bytes().as_slice(), &snapshot.hash.0].concat();
        put_meta(&transaction, META_BASE, &base)?;
        transaction.commit().map_err(failed("commit"))?;
        self.head = Head { index: snapshot.index, hash: snapshot.hash, at: snapshot.at };
        Ok(())
    }

    fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
            .optional()
            .map_err(failed("read"))
    }

    fn set_meta(&mut self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        put_meta(&self.connection, key, value)
    }
}

/// Lets go of snapshots that no kept entry continues, and of the oldest ones beyond the bounds.
fn drop_snapshots(connection: &Connection, keep_from: u64, bytes_max: u64) -> Result<(), StoreError> {
    let read = "SELECT idx, length(body) FROM snapshot ORDER BY idx DESC";
    let mut statement = connection.prepare_cached(read).map_err(failed("read"))?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
    let rows: Vec<(i64, i64)> = rows.and_then(|rows| rows.collect::<Result<_, _>>()).map_err(failed("read"))?;
    let mut bytes = 0_u64;
    for (place, (index, length)) in rows.into_iter().enumerate() {
        bytes = bytes.saturating_add(from_sql(length));
        let continued = from_sql(index) >= keep_from;
        if place >= SNAPSHOTS_KEPT && (place >= SNAPSHOTS_MAX || bytes > bytes_max || !continued) {
            connection
                .execute("DELETE FROM snapshot WHERE idx = ?1", [index])
                .map_err(failed("write a snapshot to"))?;
        }
    }
    Ok(())
}

fn put_meta(connection: &Connection, key: &str, value: &[u8]) -> Result<(), StoreError> {
    let put = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
    connection.execute(put, params![key, value]).map_err(failed("write"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::check::check_store;
    use super::*;
    use muster_coordinator_core::entry::{EntryBody, Fact};

    fn entry(index: u64) -> Entry {
        let at = Timestamp::from_unix_ms(1_000 * i64::try_from(index).unwrap());
        Entry { index, at, trace: index, body: EntryBody::Fact(Fact::Paused { gap_ms: index }) }
    }

    fn store_in(dir: &tempfile::TempDir) -> SqliteStore {
        SqliteStore::open(&dir.path().join("journal.db")).unwrap()
    }

    #[test]
    fn what_was_committed_is_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store_in(&dir);
        let head = store.append(&[entry(1), entry(2)]).unwrap();
        store.set_meta("role", b"primary").unwrap();
        // No clean close: the file is copied with its log while the store is open, as a crash would leave it.
        let crashed = tempfile::tempdir().unwrap();
        for name in ["journal.db", "journal.db-wal"] {
            std::fs::copy(dir.path().join(name), crashed.path().join(name)).unwrap();
        }
        let reopened = store_in(&crashed);
        assert_eq!(reopened.head(), head);
        assert_eq!(reopened.meta("role").unwrap().as_deref(), Some(b"primary".as_slice()));
        let entries = reopened.entries_from(1, 10).unwrap();
        assert_eq!(entries.iter().map(|stored| stored.decode().unwrap()).collect::<Vec<_>>(), [entry(1), entry(2)]);
        assert!(check_store(&reopened).unwrap().problems.is_empty());
    }

    #[test]
    fn a_failed_batch_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store_in(&dir);
        store.append(&[entry(1)]).unwrap();
        assert!(matches!(store.append(&[entry(2), entry(4)]), Err(StoreError::NotNext { found: 4, head: 2 })));
        assert_eq!(store.entries_from(1, 10).unwrap().len(), 1);
        assert_eq!(store.head().index, 1);
    }

    #[test]
    fn one_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store_in(&dir);
        store.append(&(1..=20).map(entry).collect::<Vec<_>>()).unwrap();
        let body: Vec<u8> =
            store.connection.query_row("SELECT body FROM journal WHERE idx = 7", [], |row| row.get(0)).unwrap();
        for position in 0..body.len() {
            let mut flipped = body.clone();
            flipped[position] ^= 1;
            store.connection.execute("UPDATE journal SET body = ?1 WHERE idx = 7", [&flipped]).unwrap();
            let report = check_store(&store).unwrap();
            assert!(
                report.problems.first().is_some_and(|problem| problem.contains("entry 7")),
                "{position}: {report:?}"
            );
        }
        store.connection.execute("UPDATE journal SET body = ?1 WHERE idx = 7", [&body]).unwrap();
        store.connection.execute("DELETE FROM journal WHERE idx = 9", []).unwrap();
        assert!(check_store(&store).unwrap().problems.first().is_some_and(|problem| problem.contains("9 is missing")));
    }

    #[test]
    fn the_journal_is_bounded_by_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store_in(&dir);
        store.append(&(1..=1_000).map(entry).collect::<Vec<_>>()).unwrap();
        let (base, _) = store.base().unwrap();
        assert_eq!(store.keep_from(base, u64::MAX, 0).unwrap(), 0);
        let half = store.keep_from(base, 64 << 10, 0).unwrap();
        assert!((1..1_000).contains(&half), "{half}");
        assert_eq!(store.keep_from(base, 0, 0).unwrap(), 1_000);
        assert_eq!(store.keep_from(base, 0, 300).unwrap(), 700);
        assert_eq!(store.keep_from(base, 0, 5_000).unwrap(), 0);
    }

    #[test]
    fn what_is_written_during_a_check_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store_in(&dir);
        store.append(&[entry(1), entry(2)]).unwrap();
        let reader = SqliteStore::open_read_only(&dir.path().join("journal.db")).unwrap();
        store.append(&[entry(3)]).unwrap();
        let report = check_store(&reader).unwrap();
        assert_eq!((report.entries, report.newest, report.problems), (2, 2, Vec::new()));
        assert!(report.replayed <= 2, "{}", report.replayed);
    }

    #[test]
    fn a_second_coordinator_is_kept_out_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store_in(&dir);
        store.append(&[entry(1)]).unwrap();
        let path = dir.path().join("journal.db");
        assert!(matches!(SqliteStore::open(&path), Err(StoreError::InUse { .. })));
        assert_eq!(SqliteStore::open_read_only(&path).unwrap().head().index, 1);
    }

    #[test]
    fn a_standby_takes_only_what_continues_its_chain() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut primary = store_in(&dir);
        primary.append(&[entry(1), entry(2), entry(3)]).unwrap();
        let stored = primary.entries_from(1, 10).unwrap();
        let mut standby = store_in(&other);
        standby.append_stored(&stored[..2]).unwrap();
        let mut forged = stored[2].clone();
        forged.hash = JournalHash::ZERO;
        assert!(matches!(standby.append_stored(&[forged]), Err(StoreError::Damaged { index: 3, .. })));
        assert_eq!(standby.append_stored(&stored[2..]).unwrap(), primary.head());

        let snapshot = Snapshot {
            index: 40,
            hash: JournalHash::ZERO.then(b"x"),
            at: Timestamp::from_unix_ms(7),
            body: b"{}".to_vec(),
        };
        standby.replace(&snapshot).unwrap();
        assert_eq!((standby.head().index, standby.oldest().unwrap()), (40, 41));
        standby.append(&[entry(41)]).unwrap();
        assert_eq!(standby.snapshot().unwrap(), Some(snapshot));
    }
}
