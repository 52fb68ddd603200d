//! Is a SQLite database there, whole and free to use?
//!
//! Invariant: what is looked at is never changed, and that is held by the kernel: everything runs on a thread that
//! Landlock restricts (in `doctor` too), or on a mount that nobody can write through, or as a user who could not write
//! anyway. Otherwise the answer is unknown. SQLite opens a database only by the recipe of its state
//! ([`muster_agent_core::sqlite::state`]).

mod check;
mod copy;
mod files;
mod report;

use crate::probe::{Context, Lane, Probe};
use crate::sandbox::{self, SandboxError, SandboxState};
use check::{Access, Pass, Rotation, Task, Trouble};
use copy::{CopyError, Limits, Scratch};
use files::{Claim, Look, Obstacle};
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Problem, Unknown};
use muster_agent_core::sqlite::damage::Damage;
use muster_agent_core::sqlite::lock_watch::LockWatch;
use muster_agent_core::sqlite::state::{LockName, State, Token};
use muster_common::evidence::Evidence;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest hold of SQLite's SHARED lock in rollback mode: a writer without a busy time-out meets it at most this long.
const SHARED_HOLD_MAX: Duration = Duration::from_millis(20);
/// Tries to find the moment between two commits.
const TRIES: u32 = 5;
/// Wait between them.
const TRY_WAIT: Duration = Duration::from_millis(7);
/// `doctor` runs `integrity_check` in place up to this size.
const ONE_SHOT_INTEGRITY_BYTES_MAX: u64 = 64 << 20;
/// Longest pass over one database in `doctor`.
const ONE_SHOT_BOUND: Duration = Duration::from_secs(1);
/// A copy within a run, rather than on the thread of the deep check, is made up to this size.
const RUN_COPY_BYTES_MAX: u64 = 64 << 20;
/// A replaced file is shown at least this long, and until it passed a check.
const REPLACED_SHOWN: Duration = Duration::from_secs(15 * 60);
/// Wait before a deep check that failed is tried again.
const DEEP_RETRY: Duration = Duration::from_secs(10 * 60);
/// A clean check older than this no longer stands while newer ones cannot be made.
const CHECK_STANDS_MAX: Duration = Duration::from_secs(3600);

const NO_LANDLOCK: &str = "boot a kernel with Landlock (lsm=…,landlock), or hand the folder to the agent on a read-only \
                           mount (BindReadOnlyPaths= in a drop-in of its unit), or run the agent as a user who cannot \
                           write there";
const NO_SCRATCH: &str = "give the agent a state folder: this state of a database is checked on a private copy";

/// How one database is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteOptions {
    /// Least time between two full quick checks of a database that changes.
    pub quick_interval: Duration,
    /// Time between two deep checks (on a copy).
    pub deep_interval: Duration,
    /// The agent's own folder for copies. Without it there are no deep checks, except in `doctor`, which takes the
    /// system's folder for temporary files.
    pub scratch_dir: Option<PathBuf>,
    /// Larger databases are not copied.
    pub deep_bytes_max: u64,
    /// A deep check ends after this.
    pub deep_time_max: Duration,
    /// A quick check ends after this.
    pub quick_bound: Duration,
    /// A lock held this long without progress is a problem.
    pub lock_held_after: Duration,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            quick_interval: Duration::from_secs(300),
            deep_interval: Duration::from_secs(24 * 3600),
            scratch_dir: None,
            deep_bytes_max: 4 << 30,
            deep_time_max: Duration::from_secs(300),
            quick_bound: Duration::from_millis(250),
            lock_held_after: Duration::from_secs(10),
        }
    }
}

/// What is remembered across a restart of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    inode: Option<u64>,
    had_content: bool,
    replaced: Option<Replaced>,
    deep_boottime_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Replaced {
    old_inode: u64,
    since_boottime_ms: u64,
}

/// The last check that ended with an answer.
#[derive(Debug, Clone)]
struct Last {
    token: Token,
    boottime_ms: u64,
    more: bool,
    pass: Evidence,
}

/// The probe of one database.
#[derive(Debug)]
pub struct SqliteProbe {
    subject: SubjectKey,
    path: PathBuf,
    options: SqliteOptions,
    watch: LockWatch,
    memory: Memory,
    rotation: Rotation,
    /// Damage that no complete pass has cleared.
    damage: Damage,
    /// Damage found in the present round of the rotation.
    round: Damage,
    missing_bytes: Option<u64>,
    last: Option<Last>,
    /// When everything was last covered, and found clean or not.
    complete_boottime_ms: Option<u64>,
    /// Why the present run got no new answer; empty when it did or did not try.
    attempt_note: String,
    deep: Option<JoinHandle<Result<Pass, CopyError>>>,
    deep_note: String,
    deep_tried_boottime_ms: Option<u64>,
}

impl SqliteProbe {
    /// Watches the database at `path` for `service`.
    pub fn new(service: ServiceName, path: PathBuf, options: SqliteOptions) -> Self {
        if let Some(scratch) = &options.scratch_dir {
            copy::sweep(scratch);
        }
        Self {
            subject: SubjectKey::new(service, ProbeKind::Sqlite, &path.display().to_string()),
            path,
            options,
            watch: LockWatch::default(),
            memory: Memory::default(),
            rotation: Rotation::default(),
            damage: Damage::default(),
            round: Damage::default(),
            missing_bytes: None,
            last: None,
            complete_boottime_ms: None,
            attempt_note: String::new(),
            deep: None,
            deep_note: String::new(),
            deep_tried_boottime_ms: None,
        }
    }

    fn examine(&mut self, context: &Context, ground: &Ground) -> Judgement {
        let now = context.now;
        self.attempt_note.clear();
        self.collect_deep(&now);
        let looked = self.path.canonicalize().map_err(|error| files::obstacle(&self.path, error));
        let looked = looked.and_then(|path| {
            let claim = Claim::take(&path)?;
            Ok((look_between_commits(&path, &claim)?, claim, path))
        });
        let (look, claim, path) = match looked {
            Ok(looked) => looked,
            Err(obstacle) => return self.obstructed(&obstacle),
        };
        let mut problems = self.identity(&look, &now);
        problems.extend(self.lock(&look, &now));
        let state = look.snapshot.state();
        let trouble = match state {
            State::Empty => self.empty(&now),
            State::NotADatabase => {
                problems.push(report::not_a_database(&self.path, &look));
                Some(unchecked("the file is not a database", None))
            }
            State::HotJournal => {
                let bytes = look.snapshot.journal.map_or(0, |journal| journal.size_bytes);
                problems.push(report::journal_hot(&self.path, bytes));
                Some(unchecked("a database with a hot journal is never opened", None))
            }
            State::Exclusive => self.stale_trouble(&now, "the database is locked exclusively", None),
            State::Changing => self.stale_trouble(&now, "the database is just being opened or closed", None),
            _ if !ground.allows(&path) => Some(unchecked(
                "SQLite could write here and the kernel would not hold it back, so it was not opened",
                Some(NO_LANDLOCK),
            )),
            _ => self.check(&path, &look, claim, context, ground),
        };
        self.judge(&look, problems, trouble, &now)
    }

    /// Checks when a check is due. The claim is given back before a copy takes it again.
    fn check(&mut self, path: &Path, look: &Look, claim: Claim, context: &Context, ground: &Ground) -> Option<Unknown> {
        let now = &context.now;
        let token = look.snapshot.token();
        if !self.due(&token, context) {
            drop(claim);
            self.start_deep(path, now, context.one_shot);
            return self.incomplete();
        }
        let size_bytes = look.snapshot.database.size_bytes;
        let bound = if context.one_shot { ONE_SHOT_BOUND } else { self.options.quick_bound };
        let integrity = context.one_shot && size_bytes <= ONE_SHOT_INTEGRITY_BYTES_MAX;
        let task = Task { size_bytes, integrity, bound };
        let attempt = match look.snapshot.state() {
            State::LiveWal => {
                let pass = check::check(path, Access::ReadOnly, task, &mut self.rotation);
                drop(claim);
                pass.map_err(CopyError::from)
            }
            State::WalWithoutIndex => {
                drop(claim);
                self.on_a_copy(path, ground, integrity, bound)
            }
            State::RollbackLive => under_shared_lock(path, task, &mut self.rotation).map_err(CopyError::from),
            _ => lock_free(path, look, &claim, task, &mut self.rotation).map_err(CopyError::from),
        };
        match attempt {
            Ok(pass) => {
                self.missing_bytes = look.snapshot.missing_bytes();
                self.take_in(pass, token, now);
                self.start_deep(path, now, context.one_shot);
                self.incomplete()
            }
            Err(error @ CopyError::TooLarge(_)) => {
                self.start_deep(path, now, context.one_shot);
                self.stale_trouble(now, &error.to_string(), None)
            }
            Err(CopyError::Scratch(why)) => self.stale_trouble(now, &why, Some(NO_SCRATCH)),
            Err(error) => self.stale_trouble(now, &error.to_string(), None),
        }
    }

    fn on_a_copy(&self, path: &Path, ground: &Ground, integrity: bool, bound: Duration) -> Result<Pass, CopyError> {
        let Some(scratch) = &ground.scratch else {
            return Err(CopyError::Scratch("the -wal has no -shm and there is no folder for a copy".to_owned()));
        };
        let bytes_max = self.options.deep_bytes_max.min(RUN_COPY_BYTES_MAX);
        let limits = Limits { bytes_max, time_max: bound, integrity };
        copy::check_copy(path, scratch, limits)
    }

    /// Skips while nothing was committed since the last check.
    fn due(&self, token: &Token, context: &Context) -> bool {
        let Some(last) = &self.last else { return true };
        if context.one_shot || last.more {
            return true;
        }
        let age = context.now.since(last.boottime_ms);
        last.token != *token && (!self.damage.is_empty() || age >= self.options.quick_interval)
    }

    fn take_in(&mut self, pass: Pass, token: Token, now: &Now) {
        let covered = pass.whole || pass.all_tables;
        let mut said = Evidence::new().text("checked", coverage(&pass));
        if !pass.not_covered.is_empty() {
            said = said.text("not_covered", &pass.not_covered);
        }
        self.last = Some(Last { token, boottime_ms: now.boottime_ms, more: pass.more, pass: said });
        if pass.whole {
            self.round = Damage::default();
            self.damage = pass.damage;
        } else {
            self.round.merge(pass.damage);
            let round = if pass.more { self.round.clone() } else { std::mem::take(&mut self.round) };
            // Only a round that covered every table may clear what an earlier one found.
            if covered {
                self.damage = round;
            } else if !round.is_empty() {
                self.damage.merge(round);
            }
        }
        if covered {
            self.complete_boottime_ms = Some(now.boottime_ms);
        }
    }

    /// Unknown as long as not everything has been covered once since the start.
    fn incomplete(&self) -> Option<Unknown> {
        if self.complete_boottime_ms.is_some() || !self.damage.is_empty() {
            return None;
        }
        let left = self.last.as_ref().and_then(|last| last.pass.get("not_covered").map(ToString::to_string));
        let why =
            format!("not all of it has been checked yet: {}", left.unwrap_or_else(|| "no check has ended".into()));
        Some(unchecked(&why, self.options.scratch_dir.is_none().then_some(NO_SCRATCH)))
    }

    /// An attempt without an answer leaves an earlier answer standing for a while.
    fn stale_trouble(&mut self, now: &Now, why: &str, way_out: Option<&str>) -> Option<Unknown> {
        why.clone_into(&mut self.attempt_note);
        let fresh = self.complete_boottime_ms.is_some_and(|at| now.since(at) <= CHECK_STANDS_MAX);
        (!fresh).then(|| unchecked(why, way_out))
    }

    /// Zero bytes are a valid database, but not one that has been checked when there was content before: then what is
    /// open stays open.
    fn empty(&mut self, now: &Now) -> Option<Unknown> {
        (self.damage, self.round, self.missing_bytes, self.last) = Default::default();
        self.complete_boottime_ms = (!self.memory.had_content).then_some(now.boottime_ms);
        self.memory.had_content.then(|| unchecked("there is no content left to check", None))
    }

    fn obstructed(&self, obstacle: &Obstacle) -> Judgement {
        let problem = match obstacle {
            Obstacle::Missing => report::missing(&self.path),
            Obstacle::NotAFile(kind) => report::not_a_file(&self.path, kind),
            other => {
                let (why, way_out) = report::blind(other);
                return Judgement::unknown(why, way_out.as_deref());
            }
        };
        // What was open stays open: a file that is gone is not a file that is well.
        Judgement { unknown: Some(unchecked("there is no database to check", None)), ..Judgement::problem(problem) }
    }

    fn identity(&mut self, look: &Look, now: &Now) -> Vec<Problem> {
        let file = look.snapshot.database;
        let mut problems = Vec::new();
        if let Some(old_inode) = self.memory.inode.filter(|old| *old != file.inode) {
            self.memory.replaced = Some(Replaced { old_inode, since_boottime_ms: now.boottime_ms });
            self.last = None;
            self.complete_boottime_ms = None;
            self.rotation = Rotation::default();
        }
        self.memory.inode = Some(file.inode);
        if let Some(replaced) = &mut self.memory.replaced {
            // After a reboot the clock starts again.
            replaced.since_boottime_ms = replaced.since_boottime_ms.min(now.boottime_ms);
            let long_enough = now.since(replaced.since_boottime_ms) >= REPLACED_SHOWN;
            if long_enough && self.complete_boottime_ms.is_some() && self.damage.is_empty() {
                self.memory.replaced = None;
            } else {
                problems.push(report::replaced(&self.path, replaced.old_inode, file.inode));
            }
        }
        if look.snapshot.state() == State::Empty && self.memory.had_content {
            problems.push(report::shrunk(&self.path, file.size_bytes, None));
        }
        self.memory.had_content |= look.snapshot.header.is_some();
        problems
    }

    fn lock(&mut self, look: &Look, now: &Now) -> Option<Problem> {
        let held = self.watch.sample(&look.snapshot, now)?;
        // In WAL mode an EXCLUSIVE lock without a -shm is `locking_mode=EXCLUSIVE`: a choice, not an accident.
        let chosen = held.name == LockName::Exclusive
            && look.snapshot.shm.is_none()
            && look.snapshot.header.is_some_and(|header| header.is_wal());
        (held.held >= self.options.lock_held_after && !chosen)
            .then(|| report::lock_held(&self.path, &held, &files::holders(look)))
    }

    fn judge(&self, look: &Look, mut problems: Vec<Problem>, unknown: Option<Unknown>, now: &Now) -> Judgement {
        if !self.damage.is_empty() {
            problems.push(report::corrupt(&self.path, &self.damage, self.missing_bytes));
        }
        if self.missing_bytes.is_some() {
            problems.push(report::shrunk(&self.path, look.snapshot.database.size_bytes, self.missing_bytes));
        }
        let mut seen = report::seen(look);
        if let Some(last) = &self.last {
            for (key, value) in last.pass.iter() {
                seen.insert(key, value.clone());
            }
            seen = seen.duration("check_age_ms", now.since(last.boottime_ms));
        }
        if let Some(at) = self.memory.deep_boottime_ms {
            seen = seen.duration("deep_check_age_ms", now.since(at));
        }
        if !self.attempt_note.is_empty() {
            seen = seen.text("no_new_check", &self.attempt_note);
        }
        if !self.deep_note.is_empty() {
            seen = seen.text("deep_check", &self.deep_note);
        }
        Judgement { problems, unknown, seen, ..Judgement::default() }
    }

    /// Starts a deep check on its own restricted thread when one is due.
    fn start_deep(&mut self, path: &Path, now: &Now, one_shot: bool) {
        let Some(scratch) = self.options.scratch_dir.clone().filter(|_| !one_shot && self.deep.is_none()) else {
            return;
        };
        let old = |at: Option<u64>, age| at.is_none_or(|at| at > now.boottime_ms || now.since(at) >= age);
        if !old(self.memory.deep_boottime_ms, self.options.deep_interval)
            || !old(self.deep_tried_boottime_ms, DEEP_RETRY)
        {
            return;
        }
        let Some(turn) = DeepTurn::take() else { return };
        self.deep_tried_boottime_ms = Some(now.boottime_ms);
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

    fn collect_deep(&mut self, now: &Now) {
        let Some(thread) = self.deep.take_if(|thread| thread.is_finished()) else { return };
        match thread.join() {
            Ok(Ok(pass)) if pass.whole => {
                if pass.damage.is_empty() && !pass.integrity {
                    self.deep_note = format!("not finished: {}", pass.not_covered);
                } else {
                    "integrity_check of a copy ran to its end".clone_into(&mut self.deep_note);
                    self.memory.deep_boottime_ms = Some(now.boottime_ms);
                }
                self.damage = pass.damage;
                self.complete_boottime_ms = Some(now.boottime_ms);
            }
            Ok(Ok(pass)) => {
                self.deep_note = format!("not finished: {}", pass.not_covered);
                if !pass.damage.is_empty() {
                    self.damage.merge(pass.damage);
                }
            }
            Ok(Err(error)) => self.deep_note = format!("not made: {error}"),
            Err(_panic) => "not made: it panicked".clone_into(&mut self.deep_note),
        }
    }
}

impl Probe for SqliteProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Database
    }

    /// Runs on a thread of its own that is restricted before it opens anything, whatever thread calls.
    fn run(&mut self, context: &Context) -> Judgement {
        // In `doctor` there may be no state folder; a private one is made before the restriction and allowed by it.
        let private = if self.options.scratch_dir.is_none() && context.one_shot {
            Scratch::new(&std::env::temp_dir()).ok()
        } else {
            None
        };
        let scratch = self.options.scratch_dir.clone().or_else(|| private.as_ref().map(|own| own.path().to_owned()));
        std::thread::scope(|scope| {
            let work = || {
                let writable: Vec<PathBuf> = scratch.iter().cloned().collect();
                let ground = Ground::new(sandbox::restrict_thread(&writable), scratch.clone());
                self.examine(context, &ground)
            };
            let thread = std::thread::Builder::new().name("sqlite-probe".to_owned()).spawn_scoped(scope, work);
            match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(judgement)) => judgement,
                Ok(Err(_panic)) => Judgement::unknown("the check panicked; please report this", None),
                Err(error) => Judgement::unknown(format!("no thread for the check: {error}"), None),
            }
        })
    }

    fn save(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.memory).ok()
    }

    fn restore(&mut self, saved: serde_json::Value) {
        if let Ok(memory) = serde_json::from_value(saved) {
            self.memory = memory;
        }
    }
}

/// One deep check at a time in this process: they share a disk.
struct DeepTurn;

static DEEP_RUNNING: AtomicBool = AtomicBool::new(false);

impl DeepTurn {
    fn take() -> Option<Self> {
        (!DEEP_RUNNING.swap(true, Ordering::SeqCst)).then_some(Self)
    }
}

impl Drop for DeepTurn {
    fn drop(&mut self) {
        DEEP_RUNNING.store(false, Ordering::SeqCst);
    }
}

/// What the present thread may do.
struct Ground {
    sandbox: Option<SandboxState>,
    scratch: Option<PathBuf>,
}

impl Ground {
    fn new(sandbox: Result<SandboxState, SandboxError>, scratch: Option<PathBuf>) -> Self {
        Self { sandbox: sandbox.ok(), scratch }
    }

    /// May SQLite open the database at `path` here? Only where the kernel keeps it from writing.
    fn allows(&self, path: &Path) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.protects(path)) || !files::could_write(path)
    }
}

fn unchecked(why: &str, way_out: Option<&str>) -> Unknown {
    Unknown { why: why.to_owned(), way_out: way_out.map(str::to_owned) }
}

fn coverage(pass: &Pass) -> String {
    match (pass.whole, pass.integrity) {
        (true, true) => "quick_check and integrity_check of the whole database".to_owned(),
        (true, false) => "quick_check of the whole database".to_owned(),
        _ => format!("quick_check of {} of {} tables", pass.tables_done, pass.tables),
    }
}

/// A commit is over in a moment: looks again a few times before it says that the database is locked.
fn look_between_commits(path: &Path, claim: &Claim) -> Result<Look, Obstacle> {
    for _ in 1..TRIES {
        let look = files::look(path, claim)?;
        if !matches!(look.snapshot.state(), State::Exclusive | State::Changing) {
            return Ok(look);
        }
        std::thread::sleep(TRY_WAIT);
    }
    files::look(path, claim)
}

/// Nobody writes: no lock is taken, and the answer counts only if nothing changed meanwhile. Damage must be seen twice.
fn lock_free(path: &Path, look: &Look, claim: &Claim, task: Task, rotation: &mut Rotation) -> Result<Pass, Trouble> {
    let mut tried = rotation.clone();
    let pass = check::check(path, Access::Immutable, task, &mut tried)?;
    let undisturbed = || files::look(path, claim).is_ok_and(|later| look.snapshot.undisturbed(&later.snapshot));
    if !undisturbed() {
        let rollback = look.snapshot.header.is_some_and(|header| !header.is_wal());
        return if rollback { under_shared_lock(path, task, rotation) } else { Err(Trouble::Busy) };
    }
    if !pass.damage.is_empty() {
        let again = check::check(path, Access::Immutable, task, &mut rotation.clone())?;
        if again.damage.is_empty() || !undisturbed() {
            return Err(Trouble::Busy);
        }
    }
    *rotation = tried;
    Ok(pass)
}

/// Rollback mode with a writer at work: SQLite's own lock, for so short a time that no writer minds.
fn under_shared_lock(path: &Path, task: Task, rotation: &mut Rotation) -> Result<Pass, Trouble> {
    let task = Task { bound: SHARED_HOLD_MAX.min(task.bound), ..task };
    for _ in 1..TRIES {
        match check::check(path, Access::ReadOnly, task, rotation) {
            Err(Trouble::Busy | Trouble::HotJournal) => std::thread::sleep(TRY_WAIT),
            answer => return answer,
        }
    }
    check::check(path, Access::ReadOnly, task, rotation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_kernel_holding_it_back_sqlite_opens_nothing_it_could_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("hub.db");
        std::fs::write(&path, "").unwrap();
        let ground = |enforcement, writable: &[PathBuf]| Ground {
            sandbox: Some(SandboxState { enforcement, writable: writable.to_vec() }),
            scratch: None,
        };
        assert!(ground(sandbox::Enforcement::Full, &[]).allows(&path));
        assert!(ground(sandbox::Enforcement::Partial, &[]).allows(&path));
        assert!(!ground(sandbox::Enforcement::None, &[]).allows(&path));
        let around = [path.parent().unwrap().to_owned()];
        assert!(!ground(sandbox::Enforcement::Full, &around).allows(&path), "below our own scratch folder");
        assert!(!Ground { sandbox: None, scratch: None }.allows(&path));
    }

    #[test]
    fn what_is_saved_comes_back_and_nonsense_is_ignored() {
        let new = || SqliteProbe::new(ServiceName::host(), PathBuf::from("/x.db"), SqliteOptions::default());
        let mut probe = new();
        probe.memory.inode = Some(7);
        let mut next = new();
        next.restore(probe.save().unwrap());
        assert_eq!(next.memory, probe.memory);
        next.restore(serde_json::json!("nonsense"));
        assert_eq!(next.memory.inode, Some(7));
    }
}
