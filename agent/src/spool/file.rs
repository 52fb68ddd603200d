//! The spool's file: schema, opening with checks, moving a damaged one aside.

use super::{SpoolError, SpoolLoss, entry_bytes, signed, unsigned};
use muster_agent_core::clock::Now;
use muster_agent_core::session::{Entry, Written};
use muster_common::ids::{BootId, CoordinatorId, Epoch, SpoolId};
use muster_common::spool::EntryHash;
use muster_common::time::Timestamp;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params};
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// What each version of the file adds to the one before; the version is SQLite's `user_version`.
const SCHEMA: [&str; 1] = ["
    CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        spool_id BLOB NOT NULL,
        head INTEGER NOT NULL,
        head_hash BLOB NOT NULL,
        oldest INTEGER NOT NULL,
        stored INTEGER NOT NULL,
        replicated INTEGER NOT NULL,
        evicted INTEGER NOT NULL,
        boot_id BLOB
    ) STRICT;
    CREATE TABLE entries (
        sequence INTEGER PRIMARY KEY,
        previous_hash BLOB NOT NULL,
        hash BLOB NOT NULL,
        body BLOB NOT NULL,
        boot_id BLOB NOT NULL,
        boottime_ms INTEGER NOT NULL,
        wall_unix_ms INTEGER NOT NULL,
        replicated_boottime_ms INTEGER
    ) STRICT;
    CREATE TABLE epoch (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        number BLOB NOT NULL,
        coordinator TEXT NOT NULL,
        proof BLOB NOT NULL
    ) STRICT;
    CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
"];
/// `"MuSp"`: a SQLite file that is not a spool is not taken for one.
const APPLICATION_ID: i64 = 0x4d75_5370;
/// Damaged files kept for people to look at; older ones are removed.
const DAMAGED_KEPT_MAX: usize = 3;
/// Of the file and its companions.
const MODE: u32 = 0o600;
/// SQLite's cache: the spool is read in order and written at its end.
const CACHE_KIB: i64 = 128;

/// The one row about the spool itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) spool: SpoolId,
    pub(super) head: u64,
    pub(super) head_hash: EntryHash,
    pub(super) oldest: u64,
    pub(super) stored: u64,
    pub(super) replicated: u64,
    pub(super) evicted: u64,
    pub(super) boot: Option<BootId>,
}

impl Meta {
    /// Of an empty spool with a new id.
    pub(super) fn fresh() -> Self {
        Self {
            spool: SpoolId(Uuid::new_v4()),
            head: 0,
            head_hash: EntryHash::ZERO,
            oldest: 1,
            stored: 0,
            replicated: 0,
            evicted: 0,
            boot: None,
        }
    }

    pub(super) fn store(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        transaction
            .prepare_cached(
                "REPLACE INTO meta (id, spool_id, head, head_hash, oldest, stored, replicated, evicted, boot_id)
                 VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                self.spool.0.into_bytes(),
                signed(self.head),
                self.head_hash.0,
                signed(self.oldest),
                signed(self.stored),
                signed(self.replicated),
                signed(self.evicted),
                self.boot.map(|boot| boot.0.into_bytes()),
            ])?;
        Ok(())
    }

    fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let sql =
            "SELECT spool_id, head, head_hash, oldest, stored, replicated, evicted, boot_id FROM meta WHERE id = 1";
        connection.query_row(sql, [], |row| {
            Ok(Self {
                spool: SpoolId(Uuid::from_bytes(row.get(0)?)),
                head: unsigned(row.get(1)?),
                head_hash: EntryHash(row.get(2)?),
                oldest: unsigned(row.get(3)?),
                stored: unsigned(row.get(4)?),
                replicated: unsigned(row.get(5)?),
                evicted: unsigned(row.get(6)?),
                boot: row.get::<_, Option<[u8; 16]>>(7)?.map(|bytes| BootId(Uuid::from_bytes(bytes))),
            })
        })
    }
}

/// One entry from a row of `sequence, previous_hash, hash, body, boot_id, boottime_ms, wall_unix_ms`.
pub(super) fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        sequence: unsigned(row.get(0)?),
        previous_hash: EntryHash(row.get(1)?),
        hash: EntryHash(row.get(2)?),
        body: row.get(3)?,
        written: Written {
            boot: BootId(Uuid::from_bytes(row.get(4)?)),
            boottime_ms: unsigned(row.get(5)?),
            wall: Timestamp::from_unix_ms(row.get(6)?),
        },
    })
}

pub(super) fn load_epoch(connection: &Connection) -> rusqlite::Result<Option<(Epoch, Vec<u8>)>> {
    let row: Option<([u8; 8], String, Vec<u8>)> = connection
        .query_row("SELECT number, coordinator, proof FROM epoch WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    Ok(row.and_then(|(number, coordinator, proof)| {
        let coordinator = CoordinatorId::new(coordinator).ok()?;
        Some((Epoch { number: u64::from_be_bytes(number), coordinator }, proof))
    }))
}

pub(super) fn store_epoch(transaction: &Transaction<'_>, epoch: &Epoch, proof: &[u8]) -> rusqlite::Result<()> {
    transaction.execute(
        "REPLACE INTO epoch (id, number, coordinator, proof) VALUES (1, ?1, ?2, ?3)",
        params![epoch.number.to_be_bytes(), epoch.coordinator.as_str(), proof],
    )?;
    Ok(())
}

/// Why a file is not used.
enum Refused {
    /// The file is damaged or not a spool.
    Damaged(String),
    /// SQLite could not do its work; the file may be in order.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{ConstraintViolation, DatabaseCorrupt, NotADatabase, TypeMismatch, Unknown};
        match &error {
            rusqlite::Error::SqliteFailure(failure, _)
                if matches!(
                    failure.code,
                    DatabaseCorrupt | NotADatabase | ConstraintViolation | TypeMismatch | Unknown
                ) =>
            {
                Self::Damaged(error.to_string())
            }
            rusqlite::Error::SqliteFailure(..) => Self::Failed(error),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Whether an error in the midst of work means that the file cannot be trusted any more.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Opens the file, or moves it aside and begins a new one that remembers the epoch, if that can still be read.
pub(super) fn open_or_replace(path: &Path, now: Now) -> Result<(Connection, Meta, u64, Option<SpoolLoss>), SpoolError> {
    let failed = |source| SpoolError::Sqlite { path: path.to_owned(), source };
    let why = match open(path) {
        Ok((connection, meta, bytes)) => return Ok((connection, meta, bytes, None)),
        Err(Refused::Failed(source)) => return Err(failed(source)),
        Err(Refused::Damaged(why)) => why,
    };
    let epoch = Connection::open(path).ok().and_then(|old| load_epoch(&old).ok().flatten());
    let moved_to = move_aside(path, now)?;
    let (mut connection, meta, bytes) = open(path).map_err(|refused| match refused {
        Refused::Failed(source) => failed(source),
        Refused::Damaged(why) => SpoolError::File { path: path.to_owned(), source: std::io::Error::other(why) },
    })?;
    if let Some((epoch, proof)) = epoch {
        keep_epoch(&mut connection, &epoch, &proof).map_err(failed)?;
    }
    Ok((connection, meta, bytes, Some(SpoolLoss { moved_to, why })))
}

fn open(path: &Path) -> Result<(Connection, Meta, u64), Refused> {
    keep_private(path);
    prepare(Connection::open(path)?)
}

/// A spool that lives as long as this process: for a state folder that cannot be used. It knows the highest epoch of
/// `path`, if that can be read: a coordinator that was replaced is refused all the same.
pub(super) fn open_in_memory(path: &Path) -> Result<(Connection, Meta, u64), SpoolError> {
    let failed = |source| SpoolError::Sqlite { path: path.to_owned(), source };
    let opened = Connection::open_in_memory().map_err(failed)?;
    let (mut connection, meta, bytes) = prepare(opened).map_err(|refused| match refused {
        Refused::Failed(source) => failed(source),
        Refused::Damaged(why) => SpoolError::File { path: path.to_owned(), source: std::io::Error::other(why) },
    })?;
    if let Some((epoch, proof)) = epoch_of_unwritable(path) {
        keep_epoch(&mut connection, &epoch, &proof).map_err(failed)?;
    }
    Ok((connection, meta, bytes))
}

/// Immutable, since SQLite could not make the companions it wants on a read-only disk. The log is not read then; an
/// epoch never stays in it for long.
fn epoch_of_unwritable(path: &Path) -> Option<(Epoch, Vec<u8>)> {
    let escaped = path.to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let old = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags).ok()?;
    load_epoch(&old).ok().flatten()
}

fn keep_epoch(connection: &mut Connection, epoch: &Epoch, proof: &[u8]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    store_epoch(&transaction, epoch, proof)?;
    transaction.commit()
}

/// Settings, schema and checks of a connection that was just opened.
fn prepare(mut connection: Connection) -> Result<(Connection, Meta, u64), Refused> {
    connection.busy_timeout(Duration::from_secs(2))?;
    let version = check_version(&connection)?;
    // A second agent on the same folder must not number entries too.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "journal_size_limit", 4 * 1024 * 1024)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    migrate(&mut connection, version)?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Refused::Damaged(verdict));
    }
    let meta = Meta::load(&connection)?;
    let bytes = verify_chain(&connection, &meta)?;
    Ok((connection, meta, bytes))
}

/// Findings name processes, paths and users: the owner alone reads them, whatever the umask is and whatever an earlier
/// umask was. SQLite gives a file's companions the mode of the file. What fails here fails in SQLite too, and is told.
fn keep_private(path: &Path) {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(MODE).open(path);
    if let Ok(file) = opened
        && file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o777 != MODE)
    {
        file.set_permissions(Permissions::from_mode(MODE)).ok();
        for companion in ["-wal", "-shm"] {
            std::fs::set_permissions(with_suffix(path, companion), Permissions::from_mode(MODE)).ok();
        }
    }
}

/// Looks before anything is written: the file may be somebody else's, or of a later agent.
fn check_version(connection: &Connection) -> Result<usize, Refused> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let known = usize::try_from(version).ok().filter(|version| *version <= SCHEMA.len());
    match known {
        None => Err(Refused::Damaged(format!("the file has version {version}, this agent knows {}", SCHEMA.len()))),
        Some(0) if objects == 0 => Ok(0),
        Some(version) if version > 0 && application == APPLICATION_ID => Ok(version),
        Some(_) => Err(Refused::Damaged("the file is a SQLite database, but not a spool".to_owned())),
    }
}

fn migrate(connection: &mut Connection, version: usize) -> Result<(), Refused> {
    if version == SCHEMA.len() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for statements in SCHEMA.iter().skip(version) {
        transaction.execute_batch(statements)?;
    }
    if version == 0 {
        Meta::fresh().store(&transaction)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", i64::try_from(SCHEMA.len()).unwrap_or(i64::MAX))?;
    transaction.commit()?;
    Ok(())
}

/// Follows the chain from the oldest entry to the head: SQLite has no checksums, so a flipped bit in a body is found
/// here or by nobody. Returns what the entries take.
fn verify_chain(connection: &Connection, meta: &Meta) -> Result<u64, Refused> {
    let mut statement = connection.prepare(
        "SELECT sequence, previous_hash, hash, body, boot_id, boottime_ms, wall_unix_ms FROM entries ORDER BY sequence",
    )?;
    let mut rows = statement.query([])?;
    let (mut bytes, mut next, mut previous) = (0, meta.oldest, None);
    while let Some(row) = rows.next()? {
        let entry = entry(row)?;
        let broken = entry.sequence != next
            || previous.is_some_and(|previous| previous != entry.previous_hash)
            || EntryHash::of(meta.spool, entry.sequence, entry.previous_hash, &entry.body) != entry.hash;
        if broken {
            return Err(Refused::Damaged(format!("the hash chain breaks at entry {next}")));
        }
        bytes += entry_bytes(entry.body.len());
        (next, previous) = (next + 1, Some(entry.hash));
    }
    if next != meta.head + 1 || previous.is_some_and(|previous| previous != meta.head_hash) {
        return Err(Refused::Damaged(format!("entries end at {}, not at the head {}", next - 1, meta.head)));
    }
    Ok(bytes)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Renames the file and its companions to `….damaged-UNIX_MS`.
fn move_aside(path: &Path, now: Now) -> Result<PathBuf, SpoolError> {
    let failed = |source| SpoolError::File { path: path.to_owned(), source };
    let moved_to = with_suffix(path, &format!(".damaged-{:015}", now.wall.unix_ms().max(0)));
    std::fs::rename(path, &moved_to).map_err(failed)?;
    for companion in ["-wal", "-shm"] {
        match std::fs::rename(with_suffix(path, companion), with_suffix(&moved_to, companion)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    forget_old_damaged(path);
    Ok(moved_to)
}

/// Best effort: a file that cannot be removed costs space, nothing else.
fn forget_old_damaged(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return };
    let prefix = format!("{name}.damaged-");
    let Ok(listing) = std::fs::read_dir(folder) else { return };
    let mut damaged: Vec<PathBuf> = listing
        .flatten()
        .map(|item| item.path())
        .filter(|item| {
            let name = item.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm")
        })
        .collect();
    damaged.sort();
    let surplus = damaged.len().saturating_sub(DAMAGED_KEPT_MAX);
    for old in damaged.into_iter().take(surplus) {
        for suffix in ["", "-wal", "-shm"] {
            std::fs::remove_file(with_suffix(&old, suffix)).ok();
        }
    }
}
