//! Runs SQLite's own checks on a connection that can change nothing, each within a bound.
//!
//! Invariant: no call into SQLite that reads the database runs outside [`bounded`]; a hostile file costs time up to
//! the bound, never a hang. Busy is never damage, and an unknown module or function is not damage either.

use muster_agent_core::sqlite::damage::{Damage, MESSAGES_MAX, Roots, SchemaEntry};
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// An interrupt that falls between two statements is lost, so it is repeated this often.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(2);
/// Longest row or blob that a check loads. Beyond it the table counts as not covered.
const ROW_BYTES_MAX: i32 = 64 << 20;
/// Page cache of a checking connection.
const CACHE_KIB: i32 = 1024;
/// Tables whose names are kept.
const TABLES_MAX: usize = 10_000;
/// `SQLITE_READONLY_ROLLBACK`.
const READONLY_ROLLBACK: i32 = 776;

/// How a database is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// `mode=ro`, with SQLite's locks.
    ReadOnly,
    /// `immutable=1`: no locks; whoever asks proves that nothing changed meanwhile.
    Immutable,
    /// A copy of our own, which SQLite may recover.
    OwnCopy,
}

/// Why a check ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("another process holds a lock")]
    Busy,
    #[error("a journal waits to be rolled back")]
    HotJournal,
    #[error("it took longer than its bound")]
    OutOfTime,
    #[error("SQLite cannot look at it without writing: {0}")]
    WouldWrite(String),
    #[error("SQLite cannot check it: {0}")]
    Cannot(String),
}

/// Which tables have been checked, over as many runs as it takes.
#[derive(Debug, Clone, Default)]
pub(super) struct Rotation {
    /// Checked in this round.
    pub(super) done: BTreeSet<String>,
    /// Found whole in this round or an earlier one: a busy host delays coverage and never takes it back.
    pub(super) covered: BTreeSet<String>,
    /// Did not fit in a run's bound in this round; the next round tries them again.
    pub(super) too_large: BTreeSet<String>,
    /// Cannot be checked (an unknown function in a constraint, a row beyond the bound), with SQLite's words.
    pub(super) uncheckable: Vec<(String, String)>,
    /// A file of this size did not fit as a whole in this bound, so the round goes table by table.
    pub(super) too_large_whole: Option<(u64, Duration)>,
}

/// What one pass found.
#[derive(Debug, Clone, Default)]
pub(super) struct Pass {
    /// What is damaged.
    pub(super) damage: Damage,
    /// Every page was covered by `quick_check`.
    pub(super) whole: bool,
    /// This round covered every table, though not the pages between them.
    pub(super) all_tables: bool,
    /// Every table was found whole, in this round or an earlier one.
    pub(super) covered_once: bool,
    /// Some tables wait for the next runs.
    pub(super) more: bool,
    /// Tables covered so far in this round.
    pub(super) tables_done: usize,
    /// All tables.
    pub(super) tables: usize,
    /// `integrity_check` ran to its end as well.
    pub(super) integrity: bool,
    /// What was left out and why; empty when nothing was.
    pub(super) not_covered: String,
    /// The file was provably left alone meanwhile: damage needs no second check.
    pub(super) proven: bool,
    /// Bytes missing at the end of the file, where it was left alone meanwhile.
    pub(super) missing_bytes: Option<u64>,
}

/// What a pass is asked to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    /// Size of the file, to decide whether to try the whole.
    pub(super) size_bytes: u64,
    /// `integrity_check` too.
    pub(super) integrity: bool,
    /// The whole pass ends after this.
    pub(super) bound: Duration,
}

/// Opens `path` and checks it.
pub(super) fn check(path: &Path, access: Access, task: Task, rotation: &mut Rotation) -> Result<Pass, Trouble> {
    let start = Instant::now();
    let connection = open(path, access)?;
    bounded(&connection, task.bound, |connection| {
        match harden(connection).and_then(|()| connection.execute_batch("BEGIN")) {
            Ok(()) => pass(connection, task, start + task.bound, rotation),
            Err(error) => match sort(&error) {
                Sorted::Damage(message) => Ok(Pass { damage: Damage::of_file(&message), ..Pass::default() }),
                Sorted::Trouble(trouble) => Err(trouble),
            },
        }
    })
}

/// Opens a connection that cannot write (unless it is our own copy). Reads nothing yet.
pub(super) fn open(path: &Path, access: Access) -> Result<Connection, Trouble> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => uri.push(char::from(*byte)),
            other => {
                let _never_fails = write!(uri, "%{other:02X}");
            }
        }
    }
    uri.push_str(match access {
        Access::ReadOnly => "?mode=ro&readonly_shm=1",
        Access::Immutable => "?mode=ro&immutable=1",
        Access::OwnCopy => "?mode=rw",
    });
    let write =
        if access == Access::OwnCopy { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    let connection = Connection::open_with_flags(uri, write | OpenFlags::SQLITE_OPEN_URI)
        .map_err(|error| Trouble::Cannot(error.to_string()))?;
    Ok(connection)
}

/// Takes away what a hostile schema could use. Part of it reads the database: call it inside [`bounded`].
pub(super) fn harden(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::ZERO)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, ROW_BYTES_MAX)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    connection
        .execute_batch("PRAGMA query_only=1; PRAGMA temp_store=MEMORY; PRAGMA mmap_size=0; PRAGMA cell_size_check=1")?;
    connection.execute_batch(&format!("PRAGMA cache_size=-{CACHE_KIB}"))
}

/// Runs `work` and interrupts the connection, again and again, from `bound` on.
pub(super) fn bounded<T>(connection: &Connection, bound: Duration, work: impl FnOnce(&Connection) -> T) -> T {
    let handle = connection.get_interrupt_handle();
    let (done, waiting) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut wait = bound;
            while waiting.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                handle.interrupt();
                wait = INTERRUPT_AGAIN;
            }
        });
        let result = work(connection);
        drop(done);
        result
    })
}

/// What an error of SQLite means.
pub(super) enum Sorted {
    /// The database is damaged.
    Damage(String),
    /// Anything else.
    Trouble(Trouble),
}

/// Sorts an error: damage only where SQLite says so by its code.
pub(super) fn sort(error: &rusqlite::Error) -> Sorted {
    let message = error.to_string();
    let Some(code) = error.sqlite_error() else { return Sorted::Trouble(Trouble::Cannot(message)) };
    if code.extended_code == READONLY_ROLLBACK {
        return Sorted::Trouble(Trouble::HotJournal);
    }
    match code.code {
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Sorted::Damage(message),
        _ if code.extended_code == ffi::SQLITE_IOERR_CORRUPTFS => Sorted::Damage(message),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Sorted::Trouble(Trouble::Busy),
        ErrorCode::OperationInterrupted => Sorted::Trouble(Trouble::OutOfTime),
        ErrorCode::ReadOnly | ErrorCode::CannotOpen => Sorted::Trouble(Trouble::WouldWrite(message)),
        _ => Sorted::Trouble(Trouble::Cannot(message)),
    }
}

fn pass(connection: &Connection, task: Task, deadline: Instant, rotation: &mut Rotation) -> Result<Pass, Trouble> {
    let mut found = Pass::default();
    let may_fit = |(bytes, bound)| task.size_bytes < bytes / 2 || task.bound > bound;
    if rotation.too_large_whole.is_none_or(may_fit) {
        match run(connection, "quick_check", None, deadline) {
            Ok(rows) => {
                found.damage = Damage::read(rows.iter().map(String::as_str), &roots(connection));
                found.whole = true;
                *rotation = Rotation::default();
                if found.damage.is_empty() && task.integrity {
                    integrity(connection, deadline, &mut found)?;
                }
                return Ok(found);
            }
            Err(error) => match sort(&error) {
                Sorted::Damage(message) => found.damage = Damage::of_file(&message),
                Sorted::Trouble(Trouble::OutOfTime) => {
                    rotation.too_large_whole = Some((task.size_bytes, task.bound));
                    return by_out_of_time(found);
                }
                Sorted::Trouble(Trouble::Cannot(why)) => found.not_covered = why,
                Sorted::Trouble(other) => return Err(other),
            },
        }
    }
    match by_table(connection, deadline, rotation, &mut found) {
        Err(trouble) if found.damage.is_empty() => Err(trouble),
        // What was found before it counts.
        _ => Ok(found),
    }
}

/// The whole did not fit: said, and left to the rotation of the next runs.
fn by_out_of_time(mut found: Pass) -> Result<Pass, Trouble> {
    found.more = true;
    found.not_covered = "larger than one run's bound; its tables are checked one by one over the next runs".to_owned();
    Ok(found)
}

fn integrity(connection: &Connection, deadline: Instant, found: &mut Pass) -> Result<(), Trouble> {
    match run(connection, "integrity_check", None, deadline) {
        Ok(rows) => {
            found.damage = Damage::read(rows.iter().map(String::as_str), &roots(connection));
            found.integrity = true;
        }
        Err(error) => match sort(&error) {
            Sorted::Damage(message) => found.damage = Damage::of_file(&message),
            Sorted::Trouble(trouble) => found.not_covered = format!("integrity_check: {trouble}"),
        },
    }
    Ok(())
}

/// Goes on with the rotation until the bound.
fn by_table(
    connection: &Connection,
    deadline: Instant,
    rotation: &mut Rotation,
    found: &mut Pass,
) -> Result<(), Trouble> {
    let tables = match tables(connection) {
        Ok(tables) => tables,
        Err(error) => match sort(&error) {
            Sorted::Damage(message) => {
                found.damage.merge(Damage::of_file(&message));
                return Ok(());
            }
            Sorted::Trouble(trouble) => return Err(trouble),
        },
    };
    found.tables = tables.len();
    let mut first = true;
    for table in &tables {
        if rotation.done.contains(table) || rotation.too_large.contains(table) {
            continue;
        }
        match run(connection, "quick_check", Some(table), deadline) {
            Ok(rows) => {
                let damage = Damage::read(rows.iter().map(String::as_str), &roots(connection));
                note(rotation, table, damage, found);
            }
            Err(error) => match sort(&error) {
                Sorted::Damage(message) => note(rotation, table, Damage::of_table(table, &message), found),
                Sorted::Trouble(Trouble::OutOfTime) => {
                    // One that had the whole bound for itself is skipped, the others come first in the next run.
                    if first {
                        rotation.too_large.insert(table.clone());
                    }
                    break;
                }
                Sorted::Trouble(Trouble::Cannot(why)) => rotation.uncheckable.push((table.clone(), why)),
                Sorted::Trouble(other) => return Err(other),
            },
        }
        first = false;
        rotation.done.insert(table.clone());
        if Instant::now() >= deadline {
            break;
        }
    }
    finish_round(&tables, rotation, found);
    Ok(())
}

fn note(rotation: &mut Rotation, table: &str, damage: Damage, found: &mut Pass) {
    if damage.is_empty() {
        rotation.covered.insert(table.to_owned());
    } else {
        rotation.covered.remove(table);
    }
    found.damage.merge(damage);
}

fn finish_round(tables: &[String], rotation: &mut Rotation, found: &mut Pass) {
    found.tables_done =
        tables.iter().filter(|table| rotation.covered.contains(*table) || rotation.done.contains(*table)).count();
    let left = tables.iter().filter(|table| !rotation.done.contains(*table) && !rotation.too_large.contains(*table));
    let left = left.count();
    let mut not_covered = Vec::new();
    if left > 0 {
        not_covered.push(format!("{left} tables in later runs"));
    }
    for table in rotation.too_large.iter().filter(|table| !rotation.covered.contains(*table)).take(3) {
        not_covered.push(format!("table {table:?} did not fit in one run's bound and waits for the deep check"));
    }
    for (table, why) in rotation.uncheckable.iter().take(3) {
        not_covered.push(format!("table {table:?}: {why}"));
    }
    found.all_tables = left == 0 && rotation.too_large.is_empty() && rotation.uncheckable.is_empty();
    found.covered_once = tables.iter().all(|table| rotation.covered.contains(table));
    found.more = left > 0;
    if left == 0 {
        // A new round begins with the next run, and tries what did not fit again: the host may have been busy.
        let covered = if found.covered_once { BTreeSet::new() } else { std::mem::take(&mut rotation.covered) };
        *rotation = Rotation { covered, ..Rotation::default() };
    }
    found.not_covered = not_covered.join("; ");
}

/// The rows of a check. An interrupt leaves half-walked trees that read like damage: from the bound on nothing counts
/// but "ok".
fn run(connection: &Connection, pragma: &str, table: Option<&str>, deadline: Instant) -> rusqlite::Result<Vec<String>> {
    let mut rows = Vec::new();
    let mut note = |row: &rusqlite::Row<'_>| {
        let text = row.get_ref(0)?.as_bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        if let (Ok(text), true) = (text, rows.len() < MESSAGES_MAX) {
            rows.push(text);
        }
        Ok(())
    };
    let ended = match table {
        Some(table) => connection.pragma(None, pragma, table, &mut note),
        None => connection.pragma(None, pragma, i64::try_from(MESSAGES_MAX).unwrap_or(1), &mut note),
    };
    let clean = rows.iter().all(|row| row == "ok");
    if Instant::now() >= deadline && (ended.is_err() || !clean) {
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None));
    }
    match ended {
        // Rows that were given before SQLite gave up over damage name it better than the error does.
        Err(error) if rows.is_empty() || !matches!(sort(&error), Sorted::Damage(_)) => Err(error),
        _ => Ok(rows),
    }
}

fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' LIMIT ?1")?;
    let limit = i64::try_from(TABLES_MAX).unwrap_or(i64::MAX);
    let names = statement.query_map([limit], |row| row.get::<_, String>(0))?;
    let mut tables = names.collect::<rusqlite::Result<Vec<_>>>()?;
    tables.push("sqlite_schema".to_owned());
    tables.sort();
    tables.dedup();
    Ok(tables)
}

/// Root pages of tables and indexes, where the schema can be read.
fn roots(connection: &Connection) -> Roots {
    let read = || -> rusqlite::Result<Roots> {
        let mut statement = connection
            .prepare("SELECT rootpage, name, type, tbl_name FROM sqlite_schema WHERE rootpage > 0 LIMIT ?1")?;
        let limit = i64::try_from(TABLES_MAX).unwrap_or(i64::MAX);
        let rows = statement.query_map([limit], |row| {
            let root = row.get::<_, i64>(0)?;
            let entry =
                SchemaEntry { name: row.get(1)?, index: row.get::<_, String>(2)? == "index", table: row.get(3)? };
            Ok((u64::try_from(root).unwrap_or(0), entry))
        })?;
        // One unreadable row must not cost the names of the others.
        Ok(rows.filter_map(Result::ok).collect())
    };
    let mut roots = read().unwrap_or_default();
    let schema = SchemaEntry { name: "sqlite_schema".to_owned(), index: false, table: "sqlite_schema".to_owned() };
    roots.insert(1, schema);
    roots
}
