//! Is a SQLite database there, whole and free to use?
//!
//! Invariant: what is looked at is never changed, and that is held by the kernel: everything runs on a thread that
//! Landlock restricts (in `doctor` too), or on a mount that nobody can write through, or as a user who could not write
//! anyway. Otherwise the answer is unknown. SQLite opens a database only by the recipe of its state
//! ([`muster_agent_core::sqlite::state`]).

pub(super) mod at_rest;
mod check;
mod content;
mod copy;
mod deep;
mod files;
mod gone;
mod health;
mod health_report;
mod lock;
mod log;
mod options;
mod query;
mod recipe;
mod report;

use crate::clock::boot_id;
use crate::probe::{Context, Lane, Probe, Remembered};
use crate::sandbox::{self, SandboxError, SandboxState};
use crate::senses::HostRoot;
use check::{Access, Pass, Rotation, Task};
pub use content::CountedTable;
use copy::{CopyError, Limits, Scratch};
pub use deep::DeepFolder;
use files::{Claim, Look};
use health::Health;
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Problem, Unknown};
use muster_agent_core::sqlite::damage::Damage;
use muster_agent_core::sqlite::deep_clock::LastDeep;
use muster_agent_core::sqlite::lock_watch::LockWatch;
use muster_agent_core::sqlite::shrink::Extent;
use muster_agent_core::sqlite::state::{State, Token};
use muster_common::evidence::{Evidence, Grade};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use muster_common::reason::Reason;
use muster_common::units::human_duration;
pub use options::{NOT_DEEP, OneShot, SqliteOptions};
pub use query::{QueryOptions, QueryProbe, SQL_BYTES_MAX, mistake_in, subject_name};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

/// `doctor` runs `integrity_check` in place up to this size.
const ONE_SHOT_INTEGRITY_BYTES_MAX: u64 = 64 << 20;
/// A copy within a run, rather than on the thread of the deep check, is made up to this size.
const RUN_COPY_BYTES_MAX: u64 = 64 << 20;
/// `doctor` has no later run to confirm damage by: it looks again after this, when file times have moved on.
const ONE_SHOT_CONFIRM_WAIT: Duration = Duration::from_millis(60);
/// A replaced or shrunk file is shown at least this long, and until it passed a check.
const REPLACED_SHOWN: Duration = Duration::from_secs(15 * 60);
/// A clean check older than this no longer stands while newer ones cannot be made.
const CHECK_STANDS_MAX: Duration = Duration::from_secs(3600);

const NO_LANDLOCK: &str = "boot a kernel with Landlock (lsm=…,landlock), or hand the folder to the agent on a read-only \
                           mount (BindReadOnlyPaths= in a drop-in of its unit), or run the agent as a user who cannot \
                           write there";
const DEEP_AGAIN: &str = "run doctor --deep again when less writes to it; TMPDIR names another folder for the copy";
const NO_SCRATCH: &str = "give the agent a state folder: this state of a database is checked on a private copy (the daemon \
                          makes a folder for copies again within a minute when it was removed)";

/// What is remembered across a restart of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    inode: Option<u64>,
    had_content: bool,
    replaced: Option<Replaced>,
    extent: Option<Extent>,
    shrunk: Option<Shrunk>,
    /// Of the last deep check; as versions before `last_deep` wrote and read it.
    deep_boottime_ms: Option<u64>,
    last_deep: Option<LastDeep>,
    /// The boot whose clock all times are by.
    boot: Option<BootId>,
    /// The last deep check found damage.
    deep_damaged: bool,
    /// Since when a lock has not moved.
    watch: LockWatch,
    health: health::Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Replaced {
    old_inode: u64,
    since_boottime_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Shrunk {
    before: Extent,
    grade: Grade,
    since_boottime_ms: u64,
}

/// The last check that ended with an answer.
#[derive(Debug, Clone)]
struct Last {
    token: Token,
    boottime_ms: u64,
    more: bool,
    covered: bool,
    pass: Evidence,
}

/// The probe of one database.
#[derive(Debug)]
pub struct SqliteProbe {
    subject: SubjectKey,
    path: PathBuf,
    options: SqliteOptions,
    /// A lock that the present run found stuck.
    stuck: Option<lock::Stuck>,
    last_walk: Option<lock::LastWalk>,
    health: Health,
    memory: Memory,
    last_deep: LastDeep,
    boot: BootId,
    rotation: Rotation,
    /// Damage that no complete pass has cleared.
    damage: Damage,
    /// Damage found in the present round of the rotation.
    round: Damage,
    /// Damage that only a deep check sees, or saw first: only a deep check clears it.
    deep_damage: Damage,
    /// Signs of damage beside somebody who may write: a second run must see them too.
    suspicion: Damage,
    /// The same, of a deep check.
    deep_suspicion: Damage,
    /// Signs that no second run has seen.
    unconfirmed_count: u64,
    missing_bytes: Option<u64>,
    last: Option<Last>,
    /// When everything was last covered, and found clean or not.
    complete_boottime_ms: Option<u64>,
    /// Why the present run got no new answer; empty when it did or did not try.
    attempt_note: String,
    deep: Option<JoinHandle<Result<Pass, CopyError>>>,
    deep_note: String,
    deep_tried_boottime_ms: Option<u64>,
    /// What was there when the last deep check began.
    deep_token: Option<Token>,
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
            stuck: None,
            last_walk: None,
            health: Health::default(),
            memory: Memory::default(),
            last_deep: LastDeep::default(),
            boot: boot_id(&HostRoot::default()),
            rotation: Rotation::default(),
            damage: Damage::default(),
            round: Damage::default(),
            deep_damage: Damage::default(),
            suspicion: Damage::default(),
            deep_suspicion: Damage::default(),
            unconfirmed_count: 0,
            missing_bytes: None,
            last: None,
            complete_boottime_ms: None,
            attempt_note: String::new(),
            deep: None,
            deep_note: String::new(),
            deep_tried_boottime_ms: None,
            deep_token: None,
        }
    }

    fn examine(&mut self, context: &Context, ground: &Ground) -> Judgement {
        let now = context.now;
        self.attempt_note.clear();
        self.collect_deep(&now);
        let looked = self.path.canonicalize().map_err(|error| files::obstacle(&self.path, error));
        let looked = looked.and_then(|path| {
            let claim = Claim::take(&path)?;
            Ok((recipe::look_between_commits(&path, &claim)?, claim, path))
        });
        let (look, claim, path) = match looked {
            Ok(looked) => looked,
            Err(obstacle) => return self.obstructed(&obstacle),
        };
        let mut problems = self.identity(&look, &now);
        self.note_lock(&path, &look, &claim, &now, context.one_shot);
        self.health.look_at_log(&path, &look, &claim, &self.options, context);
        let state = look.snapshot.state();
        let trouble = match state {
            State::Empty => {
                // Without a memory of it the config is the only witness of what was in there. The daemon has the memory,
                // and sees new databases before their first table.
                let unknown_before = context.one_shot && !self.memory.had_content;
                if unknown_before && !look.snapshot.locks.writing() {
                    problems.extend(report::lacks_tables(&self.path, &self.options.rows));
                }
                let unchecked = self.empty(&now);
                if unknown_before { Some(report::empty()) } else { unchecked }
            }
            State::NotADatabase => {
                problems.push(report::not_a_database(&self.path, &look));
                Some(Unknown::new("the file is not a database", None))
            }
            State::HotJournal => {
                let bytes = look.snapshot.journal.map_or(0, |journal| journal.size_bytes);
                problems.push(report::journal_hot(&self.path, bytes));
                Some(Unknown::new("a database with a hot journal is never opened", None))
            }
            State::Exclusive => {
                let (why, way_out) = report::exclusive(&look);
                self.stale_trouble(&now, &why, Some(&way_out))
            }
            State::Changing => {
                let (why, way_out) = report::changing(&look);
                self.stale_trouble(&now, &why, Some(&way_out))
            }
            _ if !ground.allows(&path) => Some(Unknown::new(
                "SQLite could write here and the kernel would not hold it back, so it was not opened",
                Some(NO_LANDLOCK),
            )),
            _ => {
                self.health.look_at_content(&path, &look, &claim, &self.options, (context, ground));
                self.check(&path, &look, claim, context, ground)
            }
        };
        let trouble = trouble.or_else(|| {
            let length = human_duration(self.deep_hangs_for(&now)?);
            let why = format!("its deep check has been running for {length}: the kernel does not answer its reads");
            Some(Unknown::new(&why, Some("look for a hung device: ps -eLo pid,stat,wchan:32,comm | grep ' D'")))
        });
        let mut judgement = self.judge(&look, problems, trouble, &now);
        self.health.tell(&self.path, &self.options, &mut judgement, context);
        judgement
    }

    /// Checks when a check is due. The claim is given back before a copy takes it again.
    fn check(&mut self, path: &Path, look: &Look, claim: Claim, context: &Context, ground: &Ground) -> Option<Unknown> {
        let now = &context.now;
        let token = look.snapshot.token();
        if !self.due(&token, context) {
            drop(claim);
            self.start_deep(path, &token, now, context.one_shot);
            return self.incomplete();
        }
        let size_bytes = look.snapshot.database.size_bytes;
        let bound = if context.one_shot { self.options.one_shot.bound() } else { self.options.quick_bound };
        let moment = self.options.one_shot == OneShot::Moment;
        let integrity = context.one_shot && moment && size_bytes <= ONE_SHOT_INTEGRITY_BYTES_MAX;
        let task = Task { size_bytes, integrity, bound };
        let rotation = self.rotation.clone();
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
            State::RollbackLive => recipe::under_shared_lock(path, task, &mut self.rotation).map_err(CopyError::from),
            _ => recipe::lock_free(path, look, &claim, task, &mut self.rotation).map_err(CopyError::from),
        };
        match attempt {
            Ok(pass) if self.suspicious(&pass) => {
                // The next run asks the same question again.
                self.rotation = rotation;
                self.suspicion.merge(pass.damage);
                self.incomplete()
            }
            Ok(pass) => {
                self.take_in(pass, token.clone(), now);
                self.start_deep(path, &token, now, context.one_shot);
                self.incomplete()
            }
            Err(CopyError::TooLarge(_)) if context.one_shot => self.incomplete(),
            Err(error @ CopyError::TooLarge(_)) => {
                self.start_deep(path, &token, now, context.one_shot);
                self.stale_trouble(now, &error.to_string(), None)
            }
            Err(CopyError::OutOfTime | CopyError::Trouble(check::Trouble::OutOfTime)) if context.one_shot => {
                "it takes longer than a glance".clone_into(&mut self.attempt_note);
                self.incomplete()
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

    /// Skips while nothing was committed since the last check, unless its service ended since.
    fn due(&self, token: &Token, context: &Context) -> bool {
        let Some(last) = &self.last else { return true };
        let interval = self.options.quick_interval;
        let ended = || context.asks_for_check(&self.subject.service, last.boottime_ms, interval);
        if context.one_shot || last.more || !self.suspicion.is_empty() || ended() {
            return true;
        }
        let age = context.now.since(last.boottime_ms);
        let (waits, changed) = (age < interval, last.token != *token);
        // What did not fit is tried again although nothing changed; a repair is looked at without waiting.
        (changed && !self.damage.is_empty()) || ((changed || !last.covered) && !waits)
    }

    /// Damage that may be the trace of a writer, and that no earlier run has seen.
    fn suspicious(&self, pass: &Pass) -> bool {
        let known = !self.damage.is_empty() || pass.damage.overlaps(&self.suspicion);
        !pass.damage.is_empty() && !pass.proven && !known
    }

    fn take_in(&mut self, pass: Pass, token: Token, now: &Now) {
        let covered = pass.whole || pass.all_tables;
        if pass.whole || !pass.more || !pass.damage.is_empty() {
            let vanished = pass.damage.is_empty() && !self.suspicion.is_empty();
            self.unconfirmed_count += u64::from(vanished);
            self.suspicion = Damage::default();
        }
        if pass.missing_bytes.is_some() || pass.damage.is_empty() {
            self.missing_bytes = pass.missing_bytes;
        }
        let mut said = Evidence::new().text("checked", coverage(&pass));
        if !pass.not_covered.is_empty() {
            said = said.text("not_covered", &pass.not_covered);
        }
        self.last = Some(Last { token, boottime_ms: now.boottime_ms, more: pass.more, covered, pass: said });
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
        if covered || pass.covered_once {
            self.complete_boottime_ms = Some(now.boottime_ms);
        }
    }

    /// Unknown as long as not everything has been covered once since the start.
    fn incomplete(&self) -> Option<Unknown> {
        if !self.damage.is_empty() || !self.deep_damage.is_empty() {
            return None;
        }
        let signs = self.suspicion.messages.first().or(self.deep_suspicion.messages.first());
        if let Some(sign) = signs {
            let why = format!("signs of damage that a second check has to confirm: {sign}");
            return Some(Unknown::new(&why, None));
        }
        if self.memory.deep_damaged {
            return Some(Unknown::new("a deep check found damage; the next one has not ended yet", None));
        }
        match &self.options.one_shot {
            OneShot::Glance(_) => return None,
            OneShot::Deep(..) if self.last_deep == LastDeep::default() && !self.deep_note.is_empty() => {
                let why = format!("its deep check was {}", self.deep_note);
                return Some(Unknown::new(&why, Some(DEEP_AGAIN)));
            }
            _ => {}
        }
        if self.complete_boottime_ms.is_some() {
            return None;
        }
        let left = self.last.as_ref().and_then(|last| last.pass.get("not_covered").map(ToString::to_string));
        let why =
            format!("not all of it has been checked yet: {}", left.unwrap_or_else(|| "no check has ended".into()));
        Some(Unknown::new(&why, self.options.scratch_dir.is_none().then_some(NO_SCRATCH)))
    }

    /// An attempt without an answer leaves an earlier answer standing for a while.
    fn stale_trouble(&mut self, now: &Now, why: &str, way_out: Option<&str>) -> Option<Unknown> {
        why.clone_into(&mut self.attempt_note);
        let fresh = self.complete_boottime_ms.is_some_and(|at| now.since(at) <= CHECK_STANDS_MAX);
        (!fresh).then(|| Unknown::new(why, way_out))
    }

    /// Zero bytes are a valid database, but with content before not one that has been checked: what is open stays open.
    fn empty(&mut self, now: &Now) -> Option<Unknown> {
        (self.damage, self.round, self.missing_bytes, self.last) = Default::default();
        (self.deep_damage, self.suspicion, self.deep_suspicion) = Default::default();
        self.memory.deep_damaged = false;
        self.complete_boottime_ms = (!self.memory.had_content).then_some(now.boottime_ms);
        self.memory.had_content.then(|| Unknown::new("there is no content left to check", None))
    }

    fn identity(&mut self, look: &Look, now: &Now) -> Vec<Problem> {
        let file = look.snapshot.database;
        let mut problems: Vec<Problem> = self.shrunk(look, now).into_iter().collect();
        if let Some(old_inode) = self.memory.inode.filter(|old| *old != file.inode) {
            self.memory.replaced = Some(Replaced { old_inode, since_boottime_ms: now.boottime_ms });
            self.health.another_file();
            self.last = None;
            self.complete_boottime_ms = None;
            self.rotation = Rotation::default();
            (self.suspicion, self.deep_suspicion, self.deep_damage) = Default::default();
            (self.memory.deep_damaged, self.last_deep) = Default::default();
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
        self.memory.had_content |= look.snapshot.header.is_some();
        problems
    }

    /// Lost most of its content since it was last seen, or all of it.
    fn shrunk(&mut self, look: &Look, now: &Now) -> Option<Problem> {
        let file = look.snapshot.database;
        if look.snapshot.state() == State::Empty {
            return self.memory.had_content.then(|| report::shrunk(&self.path, file.size_bytes, None));
        }
        if !look.snapshot.locks.writing()
            && let Some(header) = &look.snapshot.header
        {
            let same_file = self.memory.inode.is_none_or(|inode| inode == file.inode);
            let extent = Extent::new(file.size_bytes, header);
            let before = self.memory.extent.replace(extent).unwrap_or(extent);
            if let Some(grade) = before.lost(&extent, same_file) {
                self.memory.shrunk = Some(Shrunk { before, grade, since_boottime_ms: now.boottime_ms });
            }
        }
        let shrunk = self.memory.shrunk.as_mut()?;
        // After a reboot the clock starts again.
        shrunk.since_boottime_ms = shrunk.since_boottime_ms.min(now.boottime_ms);
        let restored = !shrunk.before.halved(file.size_bytes);
        let long_enough = now.since(shrunk.since_boottime_ms) >= REPLACED_SHOWN;
        if restored || (long_enough && self.complete_boottime_ms.is_some() && self.damage.is_empty()) {
            self.memory.shrunk = None;
            return None;
        }
        Some(report::much_smaller(&self.path, file.size_bytes, &shrunk.before, shrunk.grade))
    }

    fn judge(&self, look: &Look, mut problems: Vec<Problem>, unknown: Option<Unknown>, now: &Now) -> Judgement {
        let mut damage = self.damage.clone();
        damage.merge(self.deep_damage.clone());
        if !damage.is_empty() {
            problems.push(report::corrupt(&self.path, &damage, self.missing_bytes));
        }
        if self.missing_bytes.is_some() {
            problems.retain(|problem| problem.reason != Reason::SqliteShrunk);
            problems.push(report::shrunk(&self.path, look.snapshot.database.size_bytes, self.missing_bytes));
        }
        let mut seen = report::seen(look);
        if let Some(last) = &self.last {
            seen = report::checked(seen, &last.pass, last.boottime_ms, *now);
        }
        if let Some(age) = self.last_deep.age(*now) {
            seen = seen.duration("deep_check_age_ms", age);
        }
        if self.unconfirmed_count > 0 {
            seen = seen.count("unconfirmed_damage_count", self.unconfirmed_count);
        }
        if !self.attempt_note.is_empty() {
            seen = seen.text("no_new_check", &self.attempt_note);
        }
        if !self.deep_note.is_empty() {
            seen = seen.text("deep_check", &self.deep_note);
        } else if matches!(self.options.one_shot, OneShot::Glance(_)) {
            seen = seen.text("deep_check", NOT_DEEP);
        }
        Judgement { problems, unknown, seen, ..Judgement::default() }
    }
}

impl Probe for SqliteProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Database
    }

    /// Runs on a thread that is restricted before it opens anything, whatever thread calls.
    fn run(&mut self, context: &Context) -> Judgement {
        // In `doctor` there may be no state folder; a private one is made before the restriction and allowed by it.
        let deep = match &self.options.one_shot {
            OneShot::Deep(folder, bound) if context.one_shot => Some((folder.clone(), *bound)),
            _ => None,
        };
        let given = self.options.scratch_dir.clone().or_else(|| deep.as_ref().map(|(folder, _)| folder.clone()));
        let private = if given.is_none() && context.one_shot { Scratch::new(&std::env::temp_dir()).ok() } else { None };
        let scratch = given.or_else(|| private.as_ref().map(|own| own.path().to_owned()));
        let answer = on_restricted_thread(scratch, |ground| {
            if let Some((folder, bound)) = &deep {
                self.deep_now(folder, *bound, context, ground);
            }
            let judgement = self.examine(context, ground);
            if !context.one_shot || (self.suspicion.is_empty() && !self.health.is_pending()) {
                return judgement;
            }
            std::thread::sleep(ONE_SHOT_CONFIRM_WAIT);
            self.examine(context, ground)
        });
        let mut judgement = answer.unwrap_or_else(|why| Judgement::unknown(why, None));
        judgement.problems.extend(self.stuck_lock(context));
        self.tell_holders(context, &mut judgement);
        judgement
    }

    fn save(&self) -> Option<Remembered> {
        let (last_deep, boot) = (Some(self.last_deep), Some(self.boot));
        let deep_boottime_ms = self.last_deep.boottime_ms();
        let health = self.health.save();
        Remembered::of(Memory { health, last_deep, deep_boottime_ms, boot, ..self.memory.clone() })
    }

    fn restore(&mut self, saved: Remembered) {
        if let Ok(mut memory) = saved.read::<Memory>() {
            self.health.restore(std::mem::take(&mut memory.health));
            let of_boot = LastDeep::of_boot(memory.deep_boottime_ms.take());
            self.last_deep = memory.last_deep.take().unwrap_or(of_boot);
            if memory.boot.take().is_some_and(|boot| boot != self.boot) {
                self.last_deep.rebooted();
            }
            self.memory = memory;
        }
    }
}

/// Runs `work` where it is restricted before it begins.
fn on_restricted_thread<T: Send>(
    scratch: Option<PathBuf>,
    work: impl FnOnce(&Ground) -> T + Send,
) -> Result<T, String> {
    sandbox::restricted(scratch, |sandbox, scratch| work(&Ground::new(sandbox, scratch)))
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

fn coverage(pass: &Pass) -> String {
    match (pass.whole, pass.integrity) {
        (true, true) => "quick_check and integrity_check of the whole database".to_owned(),
        (true, false) => "quick_check of the whole database".to_owned(),
        _ => format!("quick_check of {} of {} tables", pass.tables_done, pass.tables),
    }
}

#[cfg(test)]
mod tests;
