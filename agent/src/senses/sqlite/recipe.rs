//! How a state of a database is checked beside its users: when nobody writes, and when somebody does.
//!
//! Invariant: damage read without a lock counts only where no write can have gone unseen; everything else must be seen
//! again by another run before anybody is told.

use super::check::{self, Access, Pass, Rotation, Task, Trouble};
use super::files::{self, Claim, Look, Obstacle};
use muster_agent_core::sqlite::state::State;
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
