//! Looks at a database and its siblings without SQLite: kind, size, first bytes, locks.
//!
//! Invariant: closing *any* descriptor of a file drops all POSIX locks this process holds on it, SQLite's too. So
//! whoever opens a database, its -wal or its -shm holds the [`Claim`] of its inode, here and while SQLite has it open.

use crate::senses::pid_file::what_stands_there;
use crate::senses::regular::{self, Found, is_remote};
use muster_agent_core::locks::sqlite_bytes::{
    PENDING_BYTE, RESERVED_BYTE, SHARED_BYTES, SHARED_FIRST, WAL_CHECKPOINT_BYTE, WAL_RECOVER_BYTE, WAL_WRITE_BYTE,
};
use muster_agent_core::sqlite::header::{
    HEADER_BYTES, Header, JOURNAL_HEADER_BYTES, JournalHeader, WAL_INDEX_HEADER_BYTES, WalIndex,
};
use muster_agent_core::sqlite::state::{FileFacts, LockFacts, Snapshot};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{FileType, OFlags};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a run waits for another probe of this process to be done with the same file.
const CLAIM_WAIT: Duration = Duration::from_millis(250);

/// Why a database could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Obstacle {
    #[error("it does not exist")]
    Missing,
    #[error("it is a {0}")]
    NotAFile(&'static str),
    #[error("the agent may not read {0}")]
    Denied(String),
    #[error("{0} cannot be read: {1}")]
    Failed(String, String),
    #[error("the file was exchanged while it was looked at")]
    Exchanged,
    #[error("another probe of this agent is reading it")]
    Claimed,
}

static CLAIMS: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());
static RELEASED: Condvar = Condvar::new();

/// The right to open one inode (and the -wal and -shm that belong to it) in this process.
#[derive(Debug)]
pub(super) struct Claim(u64, u64);

impl Claim {
    /// Waits a bounded time for it.
    pub(super) fn take(path: &Path) -> Result<Self, Obstacle> {
        Self::take_within(path, CLAIM_WAIT)
    }

    /// Waits at most `wait` for it.
    pub(super) fn take_within(path: &Path, wait: Duration) -> Result<Self, Obstacle> {
        let stat = rustix::fs::stat(path).map_err(|error| obstacle(path, error.into()))?;
        let key = (stat.st_dev, stat.st_ino);
        let claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut claims, waited) = RELEASED
            .wait_timeout_while(claims, wait, |claims| claims.contains(&key))
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(Obstacle::Claimed);
        }
        claims.insert(key);
        Ok(Self(key.0, key.1))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMS.lock().unwrap_or_else(PoisonError::into_inner).remove(&(self.0, self.1));
        RELEASED.notify_all();
    }
}

/// What was seen, with what only this look knows.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// The facts.
    pub(super) snapshot: Snapshot,
    /// The time of the look.
    wall_ns: i128,
    /// Other hosts may write the file, and the times seen here may be old.
    pub(super) remote: bool,
}

impl Look {
    /// True when an undisturbed check after this look is proof: no write could have gone unseen.
    pub(super) fn proves(&self) -> bool {
        !self.remote && self.snapshot.settled(self.wall_ns)
    }
}

/// The path with `suffix` appended to its name.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// Looks at the database at `path` (canonical). Needs its claim.
pub(super) fn look(path: &Path, claim: &Claim) -> Result<Look, Obstacle> {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall_ns = i128::try_from(wall.as_nanos()).unwrap_or(i128::MAX);
    // The journal is read before and after the locks: a writer holds RESERVED from before it creates the journal until
    // after it is gone, so the same journal twice with no lock in between is one that nobody is writing.
    let (_, journal_before) = journal(path)?;
    let file = open_regular(path)?;
    let database = facts(path, &file)?;
    if (database.device, database.inode) != (claim.0, claim.1) {
        return Err(Obstacle::Exchanged);
    }
    let header_bytes = first_bytes(path, &file, HEADER_BYTES)?;
    let wal = unopened(&sibling(path, "-wal"))?;
    let shm = optional(&sibling(path, "-shm"))?;
    let shm_path = sibling(path, "-shm");
    let wal_index = match &shm {
        Some((_, shm)) => WalIndex::parse(&first_bytes(&shm_path, shm, WAL_INDEX_HEADER_BYTES)?),
        None => None,
    };
    let locks = locks(&file, shm.as_ref().map(|(_, file)| file)).map_err(|error| failed(path, &error.into()))?;
    let (journal, journal_after) = journal(path)?;
    let snapshot = Snapshot {
        database,
        header: Header::parse(&header_bytes),
        header_bytes,
        journal,
        journal_header: journal_after.filter(|after| Some(*after) == journal_before),
        wal,
        shm: shm.as_ref().map(|(facts, _)| *facts),
        wal_index,
        locks,
    };
    Ok(Look { snapshot, wall_ns, remote: is_remote(&file) })
}

/// True when nothing was written since `before`. It takes two looks: one reads the file before the locks, so a commit
/// that ends between the two shows in neither.
pub(super) fn undisturbed(path: &Path, claim: &Claim, before: &Snapshot) -> bool {
    (0..2).all(|_| look(path, claim).is_ok_and(|later| before.undisturbed(&later.snapshot)))
}

/// Opens a regular file for reading, and nothing else: a FIFO is never opened, a lease never waited for.
pub(super) fn open_regular(path: &Path) -> Result<File, Obstacle> {
    match regular::open_regular(path, OFlags::NOFOLLOW) {
        Ok(Found::File(file, _)) => Ok(file),
        Ok(Found::Other(FileType::Symlink)) => Err(Obstacle::Exchanged),
        Ok(Found::Other(kind)) => Err(Obstacle::NotAFile(what_stands_there(kind))),
        Err(error) => Err(obstacle(path, error.into())),
    }
}

/// True when this process could write the database or create files beside it, were it not restricted. A read-only mount
/// counts: the kernel refuses there.
pub(super) fn could_write(path: &Path) -> bool {
    let may = |path: &Path| {
        let access = rustix::fs::Access::WRITE_OK;
        rustix::fs::accessat(rustix::fs::CWD, path, access, rustix::fs::AtFlags::EACCESS).is_ok()
    };
    may(path) || path.parent().is_none_or(may) || may(&sibling(path, "-shm")) || may(&sibling(path, "-wal"))
}

fn journal(path: &Path) -> Result<(Option<FileFacts>, Option<JournalHeader>), Obstacle> {
    let path = sibling(path, "-journal");
    let Some((facts, file)) = optional(&path)? else { return Ok((None, None)) };
    let header = JournalHeader::parse(&first_bytes(&path, &file, JOURNAL_HEADER_BYTES)?);
    Ok((Some(facts), header))
}

fn optional(path: &Path) -> Result<Option<(FileFacts, File)>, Obstacle> {
    match open_regular(path) {
        Ok(file) => Ok(Some((facts(path, &file)?, file))),
        Err(Obstacle::Missing) => Ok(None),
        Err(other) => Err(other),
    }
}

/// The same of a file whose content SQLite alone asks for: it must be readable, and is not opened here.
fn unopened(path: &Path) -> Result<Option<FileFacts>, Obstacle> {
    use rustix::fs::{Access, AtFlags, CWD, accessat, lstat};
    let readable = |stat: rustix::fs::Stat| accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS).map(|()| stat);
    let is_file = |stat: &rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let stat = match lstat(path).and_then(|stat| if is_file(&stat) { readable(stat) } else { Ok(stat) }) {
        Ok(stat) => stat,
        Err(error) => {
            return match obstacle(path, error.into()) {
                Obstacle::Missing => Ok(None),
                other => Err(other),
            };
        }
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(regular::facts(&stat))),
        FileType::Symlink => Err(Obstacle::Exchanged),
        kind => Err(Obstacle::NotAFile(what_stands_there(kind))),
    }
}

pub(super) fn facts(path: &Path, file: &File) -> Result<FileFacts, Obstacle> {
    let stat = rustix::fs::fstat(file).map_err(|error| failed(path, &error.into()))?;
    Ok(regular::facts(&stat))
}

pub(super) fn first_bytes(path: &Path, file: &File, bytes_max: usize) -> Result<Vec<u8>, Obstacle> {
    let mut bytes = vec![0; bytes_max];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(path, &error)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Asks the kernel which of SQLite's bytes others hold. Takes no lock; works whatever device `/proc/locks` shows.
fn locks(database: &File, shm: Option<&File>) -> nix::Result<LockFacts> {
    let reserved = conflict(database, libc::F_WRLCK, RESERVED_BYTE, 1)?;
    // A reader takes a read lock on this byte for a moment: only a writer's counts.
    let pending = conflict(database, libc::F_RDLCK, PENDING_BYTE, 1)?;
    let range = conflict(database, libc::F_WRLCK, SHARED_FIRST, SHARED_BYTES)?;
    let slot = |byte: u64| match shm {
        Some(shm) => conflict(shm, libc::F_WRLCK, byte, 1),
        None => Ok(None),
    };
    let (wal_write, wal_checkpoint) = (slot(WAL_WRITE_BYTE)?, slot(WAL_CHECKPOINT_BYTE)?);
    let wal_recover = slot(WAL_RECOVER_BYTE)?;
    let holder = |found: Option<(bool, Option<u32>)>| found.map(|(_, pid)| pid);
    Ok(LockFacts {
        shared: holder(range.filter(|(write, _)| !write)),
        exclusive: holder(range.filter(|(write, _)| *write)),
        reserved: holder(reserved),
        pending: holder(pending),
        wal_write: holder(wal_write),
        wal_checkpoint: holder(wal_checkpoint),
        wal_recover: holder(wal_recover),
    })
}

/// The lock of another process that would keep us from taking one: is it a write lock, and whose.
pub(super) fn conflict(file: impl AsFd, kind: i32, start: u64, bytes: u64) -> nix::Result<Option<(bool, Option<u32>)>> {
    let narrow = |number: i32| libc::c_short::try_from(number).map_err(|_| nix::errno::Errno::EINVAL);
    let mut lock = libc::flock {
        l_type: narrow(kind)?,
        l_whence: narrow(libc::SEEK_SET)?,
        l_start: libc::off_t::try_from(start).map_err(|_| nix::errno::Errno::EINVAL)?,
        l_len: libc::off_t::try_from(bytes).map_err(|_| nix::errno::Errno::EINVAL)?,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let pid = u32::try_from(lock.l_pid).ok().filter(|pid| *pid > 0);
    Ok(Some((i32::from(lock.l_type) == libc::F_WRLCK, pid)))
}

/// Sorts an I/O error on `path`.
pub(super) fn obstacle(path: &Path, error: std::io::Error) -> Obstacle {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Obstacle::Missing,
        ErrorKind::PermissionDenied => Obstacle::Denied(path.display().to_string()),
        _ => failed(path, &error),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Obstacle {
    Obstacle::Failed(path.display().to_string(), error.to_string())
}
