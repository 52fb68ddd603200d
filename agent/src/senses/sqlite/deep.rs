//! The deep check: `integrity_check` on a private copy, on a thread of its own, rarely.
//!
//! Must never block a run, and never more than one at a time: they share a disk.

use super::check::{Pass, Trouble};
use super::copy::{self, CopyError, Limits, Scratch};
use super::{Ground, SqliteProbe};
use crate::probe::Context;
use crate::sandbox::{self, SandboxError, SandboxState};
use muster_agent_core::clock::Now;
use muster_agent_core::sqlite::damage::Damage;
use muster_agent_core::sqlite::deep_clock::LastDeep;
use muster_agent_core::sqlite::state::Token;
use muster_common::units::human_duration;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wait before a deep check that failed is tried again.
const DEEP_RETRY: Duration = Duration::from_secs(10 * 60);
/// Copies that `doctor --deep` makes of a database that somebody writes to.
const DEEP_ATTEMPTS_MAX: u32 = 4;
/// Wait between two of them: most transactions are shorter.
const DEEP_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// A folder for the copies of one `doctor --deep`, gone with all it holds when it is dropped.
#[derive(Debug)]
pub struct DeepFolder(Scratch);

impl DeepFolder {
    /// A new one below `parent`, after what killed ones left there is gone.
    pub fn new(parent: &Path) -> Result<Self, String> {
        copy::sweep(parent);
        Scratch::new(parent).map(Self).map_err(|error| error.to_string())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl SqliteProbe {
    /// Starts a deep check on its own restricted thread when one is due.
    pub(super) fn start_deep(&mut self, path: &Path, token: &Token, now: &Now, one_shot: bool) {
        let Some(scratch) = self.options.scratch_dir.clone().filter(|_| !one_shot && self.deep.is_none()) else {
            return;
        };
        let old = |at: Option<u64>, age| at.is_none_or(|at| at > now.boottime_ms || now.since(at) >= age);
        // Damage that was found is looked for again once somebody changed the file.
        let repaired = self.memory.deep_damaged && self.deep_token.as_ref() != Some(token);
        let again = repaired || !self.deep_suspicion.is_empty();
        let due = again || self.last_deep.is_due(*now, self.options.deep_interval, self.draw());
        if !due || !old(self.deep_tried_boottime_ms, DEEP_RETRY) {
            return;
        }
        let turn = match DeepTurn::take(path, self.deep_hung_after()) {
            Ok(turn) => turn,
            Err(why) => {
                self.deep_note = why;
                return;
            }
        };
        self.deep_tried_boottime_ms = Some(now.boottime_ms);
        self.deep_token = Some(token.clone());
        let limits =
            Limits { bytes_max: self.options.deep_bytes_max, time_max: self.options.deep_time_max, integrity: true };
        let path = path.to_owned();
        let work = move |sandbox: Result<SandboxState, SandboxError>| {
            let _until_the_end = turn;
            if !Ground::new(sandbox, None).allows(&path) {
                return Err(CopyError::Scratch("the thread could not be restricted".to_owned()));
            }
            copy::check_copy(&path, &scratch, limits)
        };
        let writable = self.options.scratch_dir.iter().cloned().collect();
        match sandbox::spawn_database_thread("sqlite-deep", writable, work) {
            Ok(thread) => {
                "running".clone_into(&mut self.deep_note);
                self.deep = Some(thread);
            }
            Err(error) => self.deep_note = format!("no thread for it: {error}"),
        }
    }

    /// Another number on each host, for each boot and each database.
    fn draw(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.boot.0.as_bytes(), &self.path).hash(&mut hasher);
        hasher.finish()
    }

    /// A deep check ends itself before this, unless the kernel does not answer its reads.
    fn deep_hung_after(&self) -> Duration {
        self.options.deep_time_max.saturating_mul(2)
    }

    /// How long a deep check that should have ended long ago has been running.
    pub(super) fn deep_hangs_for(&self, now: &Now) -> Option<Duration> {
        let started = self.deep_tried_boottime_ms.filter(|_| self.deep.is_some())?;
        Some(now.since(started)).filter(|length| *length > self.deep_hung_after())
    }

    /// The deep check of `doctor --deep`: now, on the present thread, which is restricted. Signs of damage beside a writer
    /// are looked for on a second copy.
    pub(super) fn deep_now(&mut self, folder: &Path, bound: Duration, context: &Context, ground: &Ground) {
        // What is no file is the next look's to tell.
        let Ok(path) = self.path.canonicalize() else { return };
        if !ground.allows(&path) {
            return;
        }
        let start = Instant::now();
        for attempt in 1..=DEEP_ATTEMPTS_MAX {
            let time_max = bound.saturating_sub(start.elapsed());
            let outcome = copy::check_copy(&path, folder, Limits { bytes_max: u64::MAX, time_max, integrity: true });
            if let Err(CopyError::Changed | CopyError::Trouble(Trouble::Busy)) = outcome
                && attempt < DEEP_ATTEMPTS_MAX
            {
                std::thread::sleep(DEEP_AGAIN_AFTER);
                continue;
            }
            self.take_in_deep(Ok(outcome), &context.now);
            if self.deep_suspicion.is_empty() {
                return;
            }
        }
    }

    /// Takes in what a deep check that has ended found.
    pub(super) fn collect_deep(&mut self, now: &Now) {
        let Some(thread) = self.deep.take_if(|thread| thread.is_finished()) else { return };
        self.take_in_deep(thread.join(), now);
    }

    fn take_in_deep(&mut self, outcome: std::thread::Result<Result<Pass, CopyError>>, now: &Now) {
        match outcome {
            Ok(Ok(pass)) if !pass.damage.is_empty() => self.take_in_deep_damage(pass, now),
            Ok(Ok(pass)) if pass.whole => {
                if pass.integrity {
                    "integrity_check of a copy ran to its end".clone_into(&mut self.deep_note);
                    self.last_deep = LastDeep::at(*now);
                    self.memory.deep_damaged = false;
                    self.unconfirmed_count += u64::from(!self.deep_suspicion.is_empty());
                    (self.deep_damage, self.deep_suspicion) = Default::default();
                } else {
                    self.deep_note = format!("not finished: {}", pass.not_covered);
                }
                self.damage = Damage::default();
                self.complete_boottime_ms = Some(now.boottime_ms);
            }
            Ok(Ok(pass)) => self.deep_note = format!("not finished: {}", pass.not_covered),
            Ok(Err(error)) => self.deep_note = format!("not made: {error}"),
            Err(_panic) => "not made: it panicked".clone_into(&mut self.deep_note),
        }
    }

    fn take_in_deep_damage(&mut self, pass: Pass, now: &Now) {
        let known = [&self.damage, &self.deep_damage, &self.deep_suspicion];
        if pass.proven || known.iter().any(|known| pass.damage.overlaps(known)) {
            "a check of a copy found damage".clone_into(&mut self.deep_note);
            self.last_deep = LastDeep::at(*now);
            self.memory.deep_damaged = true;
            self.deep_damage = pass.damage;
            self.deep_suspicion = Damage::default();
        } else {
            "signs of damage in a copy; another copy is checked at once".clone_into(&mut self.deep_note);
            self.deep_suspicion.merge(pass.damage);
            self.deep_tried_boottime_ms = None;
        }
    }
}

/// One deep check at a time in this process: they share a disk. One that hangs loses its turn to the next.
#[derive(Debug)]
struct DeepTurn {
    ticket: u64,
}

/// Hung deep checks beside which another one still starts; each holds a thread that nobody can end.
const HUNG_MAX: u32 = 3;

static TURNS: Mutex<Turns> = Mutex::new(Turns { tickets: 0, running: None, hung: 0 });

#[derive(Debug)]
struct Turns {
    tickets: u64,
    running: Option<Running>,
    hung: u32,
}

#[derive(Debug)]
struct Running {
    ticket: u64,
    path: PathBuf,
    since: Instant,
}

impl Turns {
    /// A ticket, or why there is none.
    fn take(&mut self, path: &Path, hung_after: Duration, now: Instant) -> Result<u64, String> {
        if let Some(running) = &self.running {
            let length = now.saturating_duration_since(running.since);
            if length <= hung_after || self.hung >= HUNG_MAX {
                let (other, length) = (running.path.display(), human_duration(length));
                return Err(format!("waits: the one of {other} has been running for {length}"));
            }
            self.hung += 1;
        }
        self.tickets += 1;
        self.running = Some(Running { ticket: self.tickets, path: path.to_owned(), since: now });
        Ok(self.tickets)
    }

    fn give_back(&mut self, ticket: u64) {
        if self.running.take_if(|running| running.ticket == ticket).is_none() {
            // It hung, lost its turn, and came back after all.
            self.hung = self.hung.saturating_sub(1);
        }
    }
}

impl DeepTurn {
    fn take(path: &Path, hung_after: Duration) -> Result<Self, String> {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        turns.take(path, hung_after, Instant::now()).map(|ticket| Self { ticket })
    }
}

impl Drop for DeepTurn {
    fn drop(&mut self) {
        TURNS.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_hangs_loses_its_turn_and_the_others_are_told_why_they_wait() {
        let mut turns = Turns { tickets: 0, running: None, hung: 0 };
        let bound = Duration::from_secs(600);
        let start = Instant::now();
        let hung = turns.take(Path::new("/srv/hung.db"), bound, start).unwrap();
        let why = turns.take(Path::new("/a.db"), bound, start + bound).unwrap_err();
        assert!(why.contains("/srv/hung.db") && why.contains("10 min"), "{why}");
        let next = turns.take(Path::new("/a.db"), bound, start + 2 * bound).unwrap();
        turns.give_back(hung);
        assert!(turns.take(Path::new("/b.db"), bound, start + 2 * bound).is_err(), "the turn is another's now");
        turns.give_back(next);
        assert_eq!((turns.running.is_none(), turns.hung), (true, 0));
    }

    #[test]
    fn the_number_of_hung_ones_is_bounded() {
        let mut turns = Turns { tickets: 0, running: None, hung: 0 };
        let (mut now, bound) = (Instant::now(), Duration::from_secs(1));
        for _ in 0..=HUNG_MAX {
            turns.take(Path::new("/a.db"), bound, now).unwrap();
            now += 2 * bound;
        }
        assert!(turns.take(Path::new("/a.db"), bound, now).is_err());
    }
}
