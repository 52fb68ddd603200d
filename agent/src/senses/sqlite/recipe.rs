//! How a state of a database is checked beside its users: when nobody writes, and when somebody does.
//!
//! Invariant: damage read without a lock counts only where no write can have gone unseen; everything else must be seen
//! again by another run before anybody is told.

use super::check::{self, Access, Pass, Rotation, Sorted, Task, Trouble};
use super::copy::{self, CopyError, Limits};
use super::files::{self, Claim, Look, Obstacle};
use muster_agent_core::sqlite::state::State;
use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;

/// Longest hold of SQLite's SHARED lock in rollback mode: a writer without a busy time-out meets it at most this long.
const SHARED_HOLD_MAX: Duration = Duration::from_millis(20);
/// Tries to find the moment between two commits.
const TRIES: u32 = 5;
/// Wait between them.
const TRY_WAIT: Duration = Duration::from_millis(7);

/// A commit is over in a moment: looks again a few times before it says that the database is locked, or none at all.
pub(super) fn look_between_commits(path: &Path, claim: &Claim) -> Result<Look, Obstacle> {
    for _ in 1..TRIES {
        let look = files::look(path, claim)?;
        if !matches!(look.snapshot.state(), State::Exclusive | State::Changing | State::NotADatabase) {
            return Ok(look);
        }
        std::thread::sleep(TRY_WAIT);
    }
    files::look(path, claim)
}

/// What reads a database beside the checks: prepared before anything is read, then run in one read transaction.
pub(super) trait Reader {
    type Answer;

    /// Takes away what it does not need.
    fn prepare(&self, _connection: &mut Connection) -> rusqlite::Result<()> {
        Ok(())
    }

    /// Sets what must be set on an open connection, after [`check::harden`] and before its transaction.
    fn harden(&self, _connection: &Connection) -> rusqlite::Result<()> {
        Ok(())
    }

    /// Reads. Is interrupted after its bound; may run more than once.
    fn read(&mut self, connection: &Connection) -> Result<Self::Answer, Trouble>;
}

/// Runs `reader` by the recipe of the database's state. Unlike damage an answer cannot be checked by asking again, so
/// it counts only where no write can have gone unseen, or under SQLite's own lock.
pub(super) fn read<R: Reader>(
    path: &Path,
    look: &Look,
    claim: &Claim,
    scratch: Option<&Path>,
    limits: Limits,
    reader: &mut R,
) -> Result<R::Answer, CopyError> {
    let bound = limits.time_max;
    match look.snapshot.state() {
        State::LiveWal => Ok(read_once(path, Access::ReadOnly, bound, reader)?),
        State::WalWithoutIndex => {
            let Some(scratch) = scratch else {
                return Err(CopyError::Scratch("the -wal has no -shm and there is no folder for a copy".to_owned()));
            };
            let (_folder, copy) = copy::with_log(path, look, claim, scratch, limits)?;
            Ok(read_once(&copy, Access::OwnCopy, bound, reader)?)
        }
        State::AtRest => {
            if look.proves() {
                let answer = read_once(path, Access::Immutable, bound, reader);
                if files::undisturbed(path, claim, &look.snapshot) {
                    return Ok(answer?);
                }
            }
            if look.snapshot.header.is_some_and(|header| header.is_wal()) {
                return Err(CopyError::Changed);
            }
            Ok(read_under_shared_lock(path, bound, reader)?)
        }
        State::RollbackLive => Ok(read_under_shared_lock(path, bound, reader)?),
        State::HotJournal => Err(Trouble::HotJournal.into()),
        _ => Err(Trouble::Busy.into()),
    }
}

/// As [`under_shared_lock`].
fn read_under_shared_lock<R: Reader>(path: &Path, bound: Duration, reader: &mut R) -> Result<R::Answer, Trouble> {
    let bound = SHARED_HOLD_MAX.min(bound);
    for _ in 1..TRIES {
        match read_once(path, Access::ReadOnly, bound, reader) {
            Err(Trouble::Busy | Trouble::HotJournal) => std::thread::sleep(TRY_WAIT),
            answer => return answer,
        }
    }
    read_once(path, Access::ReadOnly, bound, reader)
}

fn read_once<R: Reader>(path: &Path, access: Access, bound: Duration, reader: &mut R) -> Result<R::Answer, Trouble> {
    let mut connection = check::open(path, access)?;
    let prepared = reader.prepare(&mut connection);
    check::bounded(&connection, bound, |connection| {
        let hardened = prepared.and_then(|()| check::harden(connection)).and_then(|()| reader.harden(connection));
        let begun = hardened.and_then(|()| connection.execute_batch("BEGIN"));
        match begun {
            Ok(()) => reader.read(connection),
            Err(error) => Err(trouble(&error)),
        }
    })
}

/// An error of SQLite where damage is another probe's to tell.
pub(super) fn trouble(error: &rusqlite::Error) -> Trouble {
    match check::sort(error) {
        Sorted::Damage(message) => Trouble::Cannot(message),
        Sorted::Trouble(trouble) => trouble,
    }
}

/// Nobody writes: no lock is taken, and the answer counts only if nothing changed meanwhile.
pub(super) fn lock_free(
    path: &Path,
    look: &Look,
    claim: &Claim,
    task: Task,
    rotation: &mut Rotation,
) -> Result<Pass, Trouble> {
    let mut tried = rotation.clone();
    let pass = check::check(path, Access::Immutable, task, &mut tried);
    let undisturbed = files::undisturbed(path, claim, &look.snapshot);
    let rollback = look.snapshot.header.is_some_and(|header| !header.is_wal());
    // Pages that were written and rolled back within a tick of the file system's clock leave no trace.
    let doubtful = || pass.as_ref().is_ok_and(|pass| !pass.damage.is_empty()) && !look.proves();
    if rollback && (!undisturbed || doubtful()) {
        return under_shared_lock(path, task, rotation);
    }
    if !undisturbed {
        return Err(Trouble::Busy);
    }
    let pass = pass?;
    *rotation = tried;
    Ok(Pass { proven: look.proves(), missing_bytes: look.snapshot.missing_bytes(), ..pass })
}

/// Rollback mode with a writer at work: SQLite's own lock, for so short a time that no writer minds.
pub(super) fn under_shared_lock(path: &Path, task: Task, rotation: &mut Rotation) -> Result<Pass, Trouble> {
    let task = Task { bound: SHARED_HOLD_MAX.min(task.bound), ..task };
    for _ in 1..TRIES {
        match check::check(path, Access::ReadOnly, task, rotation) {
            Err(Trouble::Busy | Trouble::HotJournal) => std::thread::sleep(TRY_WAIT),
            answer => return answer,
        }
    }
    check::check(path, Access::ReadOnly, task, rotation)
}
