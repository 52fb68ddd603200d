//! A lock on a database that does not move: who holds it, what that process is doing, and who may be waiting.
//!
//! SQLite asks again and again instead of waiting in the kernel, so its waiters are in no table: whoever else has the
//! database open is told as a possible one. To find them takes a look at other processes that a thread under Landlock
//! may not take; so the restricted thread only notes that the lock is stuck.

use super::SqliteProbe;
use super::files::{self, Claim, Look};
use crate::probe::Context;
use crate::sandbox;
use crate::senses::HostRoot;
use crate::senses::locks::{self, Located, Openers};
use muster_agent_core::clock::Now;
use muster_agent_core::diagnose::{HOLDER_SERVICE_KEY, PID_KEY, START_TICKS_KEY, WAITER_SERVICES_KEY};
use muster_agent_core::judgement::Problem;
use muster_agent_core::locks::party::{Activity, Party, names, services};
use muster_agent_core::locks::sqlite_bytes::{Part, Role, roles};
use muster_agent_core::locks::table::Table;
use muster_agent_core::services::Instance;
use muster_agent_core::sqlite::lock_watch::Held;
use muster_agent_core::sqlite::state::LockName;
use muster_common::evidence::{Evidence, Grade};
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use muster_common::units::human_duration;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// Looks before a lock is believed to have been held all the time: one that is taken and given back again and again
/// without a commit shows no progress, but is free in one of them.
const LOOKS_BEFORE_TOLD: u32 = 10;
/// Time between them; no divisor of a round number, so as not to keep step with a loop that sleeps.
const LOOK_PAUSE: Duration = Duration::from_millis(7);
/// Possible waiters are looked for again after this.
const OPENERS_KEPT_MS: u64 = 60_000;
/// Possible waiters looked for, and named.
const OPENERS_MAX: usize = 64;
const NAMED_MAX: usize = 8;
/// Holders of locks on one database that are told apart.
const HOLDERS_MAX: usize = 32;

/// A lock that is stuck, as far as the restricted thread can tell.
#[derive(Debug, Clone)]
pub(super) struct Stuck {
    held: Held,
    /// Nothing was written under it: `locking_mode=EXCLUSIVE` looks the same.
    may_be_meant: bool,
}

/// Who had the database open at the last walk.
#[derive(Debug, Clone)]
pub(super) struct LastWalk {
    of: (LockName, Option<u32>),
    openers: Openers,
    at_boottime_ms: u64,
}

impl SqliteProbe {
    /// Notes a lock that has been held for too long without progress; in `doctor`, one whose holder is stopped.
    pub(super) fn note_lock(&mut self, path: &Path, look: &Look, claim: &Claim, now: &Now, one_shot: bool) {
        self.stuck = None;
        let Some(held) = self.memory.watch.sample(&look.snapshot, now) else { return };
        // In WAL mode an EXCLUSIVE lock without a -shm is `locking_mode=EXCLUSIVE`: a choice, not an accident.
        let exclusive = held.name == LockName::Exclusive;
        let wal = look.snapshot.header.is_some_and(|header| header.is_wal());
        if exclusive && wal && look.snapshot.shm.is_none() {
            return;
        }
        let stopped = || held.pid.is_some_and(|pid| activity(pid) == Some(Activity::Stopped));
        if held.held < self.options.lock_held_after && !(one_shot && stopped()) {
            return;
        }
        for _ in 0..LOOKS_BEFORE_TOLD {
            std::thread::sleep(LOOK_PAUSE);
            // What cannot be looked at has not been seen to move.
            let Ok(again) = files::look(path, claim) else { continue };
            let still = self.memory.watch.sample(&again.snapshot, now);
            if still.is_none_or(|still| (still.name, still.pid, still.held) != (held.name, held.pid, held.held)) {
                return;
            }
        }
        let may_be_meant = exclusive && look.snapshot.journal_header.is_none();
        self.stuck = Some(Stuck { held, may_be_meant });
    }

    /// Tells the lock that was noted. Looks around on a thread that may look at other processes.
    pub(super) fn stuck_lock(&mut self, context: &Context) -> Option<Problem> {
        let Stuck { held, may_be_meant } = self.stuck.take()?;
        let (living, now_ms) = (locks::living(context), context.now.boottime_ms);
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let of = (held.name, held.pid);
        let fresh = |walk: &LastWalk| walk.of == of && now_ms.saturating_sub(walk.at_boottime_ms) < OPENERS_KEPT_MS;
        let walk = self.last_walk.take().filter(fresh);
        let around = sandbox::unrestricted(move || Around::look(&path, held, &living, walk, now_ms));
        // Without such a thread the lock is told all the same.
        let Around { scene, walk, holder, possible } = around.unwrap_or_default();
        let hidden = walk.as_ref().map_or(0, |walk| walk.openers.hidden);
        self.last_walk = walk;
        let told = Told { path: &self.path, held, may_be_meant, holder, possible, hidden, scene };
        Some(told.problem())
    }
}

/// What is seen round a stuck lock.
#[derive(Debug, Default)]
struct Around {
    scene: Scene,
    walk: Option<LastWalk>,
    holder: Option<Party>,
    possible: Vec<Party>,
}

impl Around {
    fn look(path: &Path, held: Held, living: &[(ServiceName, Instance)], walk: Option<LastWalk>, now_ms: u64) -> Self {
        let root = HostRoot::default();
        let scene = Scene::of(&root, path, living);
        let walk = walk.unwrap_or_else(|| {
            let located = Located::find(path, None).ok();
            let openers = located.map(|located| locks::openers(&root, path, &located, OPENERS_MAX));
            let openers = openers.unwrap_or_default();
            LastWalk { of: (held.name, held.pid), openers, at_boottime_ms: now_ms }
        });
        let others = walk.openers.pids.iter().filter(|pid| Some(**pid) != held.pid);
        let possible = others.filter_map(|pid| locks::party(&root, living, *pid)).collect();
        let holder = held.pid.and_then(|pid| locks::party(&root, living, pid));
        Self { scene, walk: Some(walk), holder, possible }
    }
}

fn activity(pid: u32) -> Option<Activity> {
    locks::party(&HostRoot::default(), &[], pid).map(|party| party.activity)
}

/// Everybody at the locks of one database.
#[derive(Debug, Default)]
struct Scene {
    at_locks: BTreeMap<u32, (Option<Party>, BTreeSet<Role>)>,
    /// Waiters in the kernel: only a SQLite that is built to block has them.
    waiters: Vec<Party>,
}

impl Scene {
    fn of(root: &HostRoot, path: &Path, living: &[(ServiceName, Instance)]) -> Self {
        let shm = files::sibling(path, "-shm");
        let parts = [(path, Part::Database), (shm.as_path(), Part::WalIndex)];
        let located = parts.into_iter().filter_map(|(path, part)| Some((Located::find(path, None).ok()?, part)));
        let located: Vec<(Located, Part)> = located.collect();
        let inodes = located.iter().map(|(located, _)| located.inode()).collect();
        let table: Table = locks::read_table(root, &inodes).unwrap_or_default();
        let mut scene = Self::default();
        for (located, part) in &located {
            for lock in table.on(|file| located.is(file)) {
                let Some(pid) = lock.pid.filter(|pid| *pid != std::process::id()) else { continue };
                if scene.at_locks.len() >= HOLDERS_MAX && !scene.at_locks.contains_key(&pid) {
                    continue;
                }
                let entry = scene.at_locks.entry(pid);
                let (_, held) = entry.or_insert_with(|| (locks::party(root, living, pid), BTreeSet::new()));
                held.extend(roles(lock, *part));
            }
            let contended = table
                .contended
                .iter()
                .filter(|contended| contended.holder.file.as_ref().is_some_and(|file| located.is(file)));
            let waiters = contended.flat_map(|contended| &contended.waiters).filter_map(|waiter| waiter.pid);
            scene.waiters.extend(waiters.take(HOLDERS_MAX).filter_map(|pid| locks::party(root, living, pid)));
        }
        scene
    }

    fn roles_of(&self, pid: u32) -> String {
        let roles = self.at_locks.get(&pid).map(|(_, roles)| roles.iter().rev().map(ToString::to_string));
        roles.map(|roles| roles.collect::<Vec<_>>().join(", ")).unwrap_or_default()
    }

    /// Who keeps the holder from going on: the readers that a writer or a checkpointer waits for.
    fn in_the_way_of(&self, held: &Held) -> Vec<&Party> {
        let is_in_the_way = |role: &Role| match held.name {
            LockName::Pending => matches!(role, Role::Shared),
            LockName::WalCheckpoint | LockName::WalWrite => matches!(role, Role::Reader(_)),
            LockName::Reserved | LockName::Exclusive | LockName::WalRecover => false,
        };
        // A writer that does not move a log back waits for nobody.
        let waits = held.name == LockName::Pending
            || held
                .pid
                .and_then(|pid| self.at_locks.get(&pid))
                .is_some_and(|(_, roles)| roles.contains(&Role::Checkpointer));
        let others = self.at_locks.iter().filter(|(pid, _)| waits && Some(**pid) != held.pid);
        others
            .filter(|(_, (_, roles))| roles.iter().any(is_in_the_way))
            .filter_map(|(_, (party, _))| party.as_ref())
            .collect()
    }
}

/// Everything that is known of a stuck lock.
struct Told<'a> {
    path: &'a Path,
    held: Held,
    may_be_meant: bool,
    holder: Option<Party>,
    possible: Vec<Party>,
    hidden: usize,
    scene: Scene,
}

impl Told<'_> {
    fn problem(&self) -> Problem {
        let grade = if self.may_be_meant { Grade::Likely } else { Grade::Confirmed };
        Problem::new(Reason::SqliteLockHeld, self.summary())
            .grade(grade)
            .evidence(self.evidence())
            .next_steps(self.next_steps())
    }

    fn summary(&self) -> String {
        let by = match (&self.holder, self.held.pid) {
            (Some(holder), _) => holder.name(),
            (None, Some(pid)) => format!("a process that cannot be looked into (pid {pid})"),
            (None, None) => "a process that is hidden from the agent".to_owned(),
        };
        let mut summary = format!("{by} holds the {} of {}", self.held.name.as_phrase(), self.path.display());
        if self.held.held.is_zero() {
            summary.push_str(" and makes no progress");
        } else {
            summary.push_str(&format!(" without progress for at least {}", human_duration(self.held.held)));
        }
        if let Some(why) = self.holder.as_ref().and_then(|holder| holder.activity.explains()) {
            summary.push_str(&format!("; it {why}"));
        }
        let in_the_way = self.scene.in_the_way_of(&self.held);
        if !in_the_way.is_empty() {
            summary.push_str(&format!("; it waits for {} to finish reading", names(in_the_way, 2)));
        }
        if !self.scene.waiters.is_empty() {
            summary.push_str(&format!("; {} wait for it", names(&self.scene.waiters, 2)));
        } else if !self.possible.is_empty() {
            summary.push_str(&format!("; {} may be waiting", names(&self.possible, 2)));
        }
        if self.may_be_meant {
            summary.push_str(". It may be meant: PRAGMA locking_mode=EXCLUSIVE looks the same");
        }
        summary
    }

    fn evidence(&self) -> Evidence {
        let mut evidence = Evidence::new()
            .text("path", self.path.display().to_string())
            .text("lock", self.held.name.as_str())
            .duration("held_ms", self.held.held);
        if let Some(pid) = self.held.pid {
            evidence = evidence.count("holder_pid", pid).text("holder_locks", self.scene.roles_of(pid));
        }
        if let Some(holder) = &self.holder {
            evidence = evidence
                .count(PID_KEY, holder.process.pid)
                .count(START_TICKS_KEY, holder.process.start_ticks)
                .text("holder_comm", &holder.comm)
                .text("holder_state", holder.activity.as_str());
            if let Some(service) = &holder.service {
                evidence = evidence.text(HOLDER_SERVICE_KEY, service.as_str());
            }
        }
        let others = self.scene.at_locks.iter().filter(|(pid, _)| Some(**pid) != self.held.pid);
        let others = others.take(NAMED_MAX).map(|(pid, (party, _))| {
            let comm = party.as_ref().map_or("?", |party| party.comm.as_str());
            format!("{comm} (pid {pid}: {})", self.scene.roles_of(*pid))
        });
        let others: Vec<String> = others.collect();
        if !others.is_empty() {
            evidence = evidence.text("other_holders", others.join(", "));
        }
        let in_the_way = self.scene.in_the_way_of(&self.held);
        if !in_the_way.is_empty() {
            evidence = evidence.text("waits_for", names(in_the_way, NAMED_MAX));
        }
        if !self.scene.waiters.is_empty() {
            evidence = evidence.text("waiters", names(&self.scene.waiters, NAMED_MAX));
        }
        if !self.possible.is_empty() {
            evidence = evidence.text("possible_waiters", names(&self.possible, NAMED_MAX));
        }
        if let Some(services) = services(self.scene.waiters.iter().chain(&self.possible), NAMED_MAX) {
            evidence = evidence.text(WAITER_SERVICES_KEY, services);
        }
        evidence = evidence.count("possible_waiters_count", self.possible.len() as u64);
        if self.hidden > 0 {
            evidence = evidence.count("processes_not_looked_into_count", self.hidden as u64);
        }
        evidence
    }

    fn next_steps(&self) -> Vec<String> {
        let pid = self.held.pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
        let mut steps =
            vec![format!("see what the holder does: ps -o pid,etime,stat,wchan:32,cmd -p {pid}; read its log")];
        if self.holder.as_ref().is_some_and(|holder| holder.activity == Activity::Stopped) {
            steps
                .push(format!("if nobody stopped it on purpose (a debugger, a freeze), continue it: kill -CONT {pid}"));
        }
        steps.push(
            "a transaction that was begun and never ended is the usual cause; so is PRAGMA locking_mode=EXCLUSIVE on \
             purpose"
                .to_owned(),
        );
        steps.push(
            "ending the holder rolls its transaction back; never delete -journal, -wal or -shm to free a lock"
                .to_owned(),
        );
        steps
    }
}
