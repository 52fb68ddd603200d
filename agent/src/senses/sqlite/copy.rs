//! Private copies in the agent's own scratch folder: for a -wal without its index, and for the deep check.
//!
//! Invariant: a copy is always deleted, and is never made of a file that changed while it was copied.

use super::check::{self, Access, Pass, Rotation, Sorted, Task, Trouble};
use super::files::{self, Claim, Look, Obstacle};
use crate::senses::{HostRoot, process};
use muster_agent_core::sqlite::state::State;
use muster_common::ids::ProcessId;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pages per step of a backup: the time limit is looked at between steps.
const BACKUP_STEP_PAGES: i32 = 2048;
/// Bytes of a plain copy between two looks at the time limit.
const COPY_PART_BYTES: u64 = 8 << 20;
/// Room that must stay free beside the copy.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Names of scratch folders begin with this; pid and start time of their maker follow.
const PREFIX: &str = "muster-scratch-";

/// Why there is no copy, or no answer from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CopyError {
    #[error("it is larger than the limit of {0}")]
    TooLarge(String),
    #[error("the scratch folder has too little room")]
    NoRoom,
    #[error("the scratch folder cannot be used: {0}")]
    Scratch(String),
    #[error("the database changed while it was copied")]
    Changed,
    #[error("copying took too long")]
    OutOfTime,
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

/// Bounds of a copy and of the check on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes_max: u64,
    pub(super) time_max: Duration,
    pub(super) integrity: bool,
}

/// A folder of our own, gone with all it holds when it is dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A new one below `parent`, readable by nobody else.
    pub(super) fn new(parent: &Path) -> Result<Self, CopyError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let owner = process::id(&HostRoot::default(), std::process::id())
            .ok_or_else(|| CopyError::Scratch("/proc does not show this process".to_owned()))?;
        let path = parent.join(format!("{PREFIX}{}-{}-{number}", owner.pid, owner.start_ticks));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| match error.kind() {
            ErrorKind::NotFound => CopyError::Scratch(format!("{} does not exist", parent.display())),
            _ => CopyError::Scratch(error.to_string()),
        })?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the next start sweeps.
        let _swept_later = std::fs::remove_dir_all(&self.0);
    }
}

/// Deletes what a killed agent left below `parent`. What a living process made is left alone, this one's own copies
/// too: a reload makes new probes while a deep check of an old one still runs.
pub(super) fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(owner) else { continue };
        if process::id(&HostRoot::default(), owner.pid) != Some(owner) {
            let _left_for_the_next_start = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Who made the folder of this name. A pid alone comes back after a reboot.
fn owner(name: &str) -> Option<ProcessId> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, start_ticks, _number) = (parts.next()?, parts.next()?, parts.next()?);
    Some(ProcessId { pid: pid.parse().ok()?, start_ticks: start_ticks.parse().ok()? })
}

/// Copies the database at `path` into `scratch` and checks the copy.
pub(super) fn check_copy(path: &Path, scratch: &Path, limits: Limits) -> Result<Pass, CopyError> {
    let deadline = Instant::now() + limits.time_max;
    let scratch = Scratch::new(scratch)?;
    let copy = scratch.path().join("copy.db");
    let (access, proven) = {
        let claim = Claim::take(path)?;
        let look = files::look(path, &claim)?;
        let before = &look.snapshot;
        let size_bytes = before.database.size_bytes + before.wal.map_or(0, |wal| wal.size_bytes);
        room_for(size_bytes, &scratch, limits)?;
        match before.state() {
            State::LiveWal => {
                backup(path, &copy, deadline)?;
                (Access::Immutable, false)
            }
            State::AtRest | State::WalWithoutIndex => {
                plain(path, &copy, deadline)?;
                if before.wal.is_some() {
                    plain(&files::sibling(path, "-wal"), &files::sibling(&copy, "-wal"), deadline)?;
                }
                if !files::undisturbed(path, &claim, before) {
                    return Err(CopyError::Changed);
                }
                (Access::OwnCopy, look.proves())
            }
            State::HotJournal => return Err(Trouble::HotJournal.into()),
            _ => return Err(Trouble::Busy.into()),
        }
    };
    let bound = deadline.saturating_duration_since(Instant::now());
    let size_bytes = std::fs::metadata(&copy).map_or(0, |metadata| metadata.len());
    let task = Task { size_bytes, integrity: limits.integrity, bound };
    let pass = check::check(&copy, access, task, &mut Rotation::default())?;
    Ok(Pass { proven, ..pass })
}

/// A copy of a database and its log, for a reader: SQLite would have to make their index.
pub(super) fn with_log(
    path: &Path,
    look: &Look,
    claim: &Claim,
    scratch: &Path,
    limits: Limits,
) -> Result<(Scratch, PathBuf), CopyError> {
    let deadline = Instant::now() + limits.time_max;
    let scratch = Scratch::new(scratch)?;
    let copy = scratch.path().join("copy.db");
    let before = &look.snapshot;
    room_for(before.database.size_bytes + before.wal.map_or(0, |wal| wal.size_bytes), &scratch, limits)?;
    plain(path, &copy, deadline)?;
    plain(&files::sibling(path, "-wal"), &files::sibling(&copy, "-wal"), deadline)?;
    if files::undisturbed(path, claim, before) { Ok((scratch, copy)) } else { Err(CopyError::Changed) }
}

fn room_for(size_bytes: u64, scratch: &Scratch, limits: Limits) -> Result<(), CopyError> {
    if size_bytes > limits.bytes_max {
        return Err(CopyError::TooLarge(muster_common::units::human_bytes(limits.bytes_max)));
    }
    let room = rustix::fs::statvfs(scratch.path()).map_err(|error| CopyError::Scratch(error.to_string()))?;
    let free_bytes = room.f_bavail.saturating_mul(room.f_frsize);
    if free_bytes < size_bytes.saturating_add(FREE_BYTES_MIN) { Err(CopyError::NoRoom) } else { Ok(()) }
}

/// A reflink where the file system can, else the bytes. The source is opened for reading only.
fn plain(from: &Path, to: &Path, deadline: Instant) -> Result<(), CopyError> {
    let mut source = files::open_regular(from)?;
    let mut target = new_file(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    loop {
        let part = std::io::copy(&mut (&mut source).take(COPY_PART_BYTES), &mut target);
        match part.map_err(|error| CopyError::Scratch(error.to_string()))? {
            0 => return Ok(()),
            _ if Instant::now() >= deadline => return Err(CopyError::OutOfTime),
            _ => {}
        }
    }
}

fn new_file(path: &Path) -> Result<File, CopyError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|error| CopyError::Scratch(error.to_string()))
}

/// One snapshot by SQLite's backup: the open read transaction keeps writers from restarting it.
fn backup(from: &Path, to: &Path, deadline: Instant) -> Result<(), CopyError> {
    drop(new_file(to)?);
    let source = check::open(from, Access::ReadOnly)?;
    let mut target = check::open(to, Access::OwnCopy)?;
    let bound = deadline.saturating_duration_since(Instant::now());
    check::bounded(&source, bound, |source| steps(source, &mut target, deadline))
}

fn steps(source: &Connection, target: &mut Connection, deadline: Instant) -> Result<(), CopyError> {
    let sorted = |error: rusqlite::Error| match check::sort(&error) {
        Sorted::Damage(message) => CopyError::Trouble(Trouble::Cannot(message)),
        Sorted::Trouble(trouble) => CopyError::Trouble(trouble),
    };
    check::harden(source).map_err(sorted)?;
    // A commit of the copy need not reach the disk.
    target.execute_batch("PRAGMA synchronous=OFF; PRAGMA journal_mode=OFF").map_err(sorted)?;
    source.execute_batch("BEGIN").map_err(sorted)?;
    source.query_row("SELECT count(*) FROM sqlite_schema", [], |_row| Ok(())).map_err(sorted)?;
    let backup = Backup::new(source, target).map_err(sorted)?;
    loop {
        match backup.step(BACKUP_STEP_PAGES).map_err(sorted)? {
            StepResult::Done => return Ok(()),
            StepResult::More if Instant::now() < deadline => {}
            StepResult::More => return Err(CopyError::OutOfTime),
            _ => return Err(CopyError::Trouble(Trouble::Busy)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(bytes_max: u64) -> Limits {
        Limits { bytes_max, time_max: Duration::from_secs(3600), integrity: true }
    }

    fn left_in_scratch(scratch: &Path) -> usize {
        std::fs::read_dir(scratch).unwrap().count()
    }

    #[test]
    fn a_log_counts_towards_the_limit_and_nothing_is_left_behind() {
        let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = folder.path().join("hub.db");
        let writer = Connection::open(folder.path().join("live.db")).unwrap();
        writer.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE jobs(body)").unwrap();
        writer.execute_batch("INSERT INTO jobs VALUES (randomblob(500000))").unwrap();
        for suffix in ["", "-wal"] {
            std::fs::copy(files::sibling(&folder.path().join("live.db"), suffix), files::sibling(&path, suffix))
                .unwrap();
        }
        let refused = check_copy(&path, scratch.path(), limits(400_000));
        assert!(matches!(refused, Err(CopyError::TooLarge(_))), "{refused:?}");
        let pass = check_copy(&path, scratch.path(), limits(4_000_000)).unwrap();
        assert!(pass.whole && pass.integrity && pass.damage.is_empty(), "{pass:?}");
        assert_eq!(left_in_scratch(scratch.path()), 0);
        let out_of_time = check_copy(&path, scratch.path(), Limits { time_max: Duration::ZERO, ..limits(4_000_000) });
        assert!(!out_of_time.is_ok_and(|pass| pass.whole && pass.integrity));
        assert_eq!(left_in_scratch(scratch.path()), 0);
    }

    #[test]
    fn a_plain_copy_is_the_same_whether_the_file_system_can_share_blocks_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let content: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
        std::fs::write(&from, &content).unwrap();
        plain(&from, &to, Instant::now() + Duration::from_secs(3600)).unwrap();
        assert!(std::fs::read(&to).unwrap() == content);
        assert!(plain(&from, &to, Instant::now() + Duration::from_secs(3600)).is_err(), "never over something");
    }

    #[test]
    fn a_sweep_takes_only_what_the_dead_left() {
        let parent = tempfile::tempdir().unwrap();
        let running = Scratch::new(parent.path()).unwrap();
        let again = Scratch::new(parent.path()).unwrap();
        assert_ne!(running.path(), again.path());
        let own = process::id(&HostRoot::default(), std::process::id()).unwrap();
        let before_the_reboot = parent.path().join(format!("{PREFIX}{}-{}-0", own.pid, own.start_ticks + 1));
        let dead = parent.path().join(format!("{PREFIX}{}-5-0", u32::MAX));
        let (foreign, odd) = (parent.path().join("keep-me"), parent.path().join(format!("{PREFIX}x")));
        for folder in [&before_the_reboot, &dead, &foreign, &odd] {
            std::fs::create_dir(folder).unwrap();
        }
        // A reload makes new probes, and they sweep.
        sweep(parent.path());
        assert!(running.path().is_dir() && again.path().is_dir() && foreign.is_dir() && odd.is_dir());
        assert!(!dead.exists() && !before_the_reboot.exists());
    }
}
