//! Does anybody wait too long for a lock, or hold a lock file too long?
//!
//! One probe per lock file of the config, and one per service for every other file that its processes hold or wait
//! for. While nobody waits for anything, the second costs one shared read of the kernel's table.

use super::{Located, LockTable, people, read_table};
use crate::clock::boot_id;
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::locks::contention::{Holder, Limits, LockJudge, Queue, Reading};
use muster_agent_core::locks::cycle;
use muster_agent_core::locks::party::Party;
use muster_agent_core::locks::table::{Class, Contended, FileId, Lock, Mode, Table};
use muster_agent_core::services::Instance;
use muster_common::evidence::Value;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ProcessId, ServiceName};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// A wait shorter than this is what locks are for, unless the config says otherwise.
pub const MAX_WAIT_DEFAULT: Duration = Duration::from_secs(10);
/// Subject of the probe that looks at all files of a service.
const ALL_FILES: &str = "all files";
/// Looks at the table before a wait of a process with several threads is believed to have lasted.
const LOOKS_BEFORE_TOLD: u32 = 10;
/// Time between them.
const LOOK_PAUSE: Duration = Duration::from_millis(7);
/// Holders and paths that a walk did not find are not looked for again before this.
const MISS_KEPT_MS: u64 = 60_000;
/// Files remembered with their path or holder; beyond it all are looked up anew.
const FILES_MAX: usize = 64;
/// Waiters of one lock that are asked whether they are of the service.
const ASKED_MAX: usize = 16;
/// Readers of a lock file that are told apart.
const HOLDERS_SHOWN_MAX: usize = 8;
/// The inode of the initial pid namespace, a constant of the kernel.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
const NO_CAPABILITY: &str = "OFD locks have no pid, and not every process may be looked into: give the agent \
                             CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH";

/// What is looked at.
#[derive(Debug)]
enum Scope {
    /// One lock file.
    File(String),
    /// Whatever the service's processes lock, and these files; but not those, which have a probe of their own.
    Service { files: Vec<String>, except: Vec<String> },
}

/// The probe.
#[derive(Debug)]
pub struct LockProbe {
    subject: SubjectKey,
    table: Arc<LockTable>,
    scope: Scope,
    limits: Limits,
    judge: LockJudge,
    located: BTreeMap<String, Located>,
    /// What walks found: the process that holds a lock which the table does not name, and paths.
    holders: BTreeMap<(FileId, Class), Found<ProcessId>>,
    paths: BTreeMap<FileId, Found<String>>,
    own_namespace: bool,
}

#[derive(Debug)]
struct Found<T> {
    what: Option<T>,
    /// Everybody could be looked into.
    everybody: bool,
    at_boottime_ms: u64,
}

pub(crate) type Living = Vec<(ServiceName, Instance)>;

impl LockProbe {
    /// Watches one lock file.
    pub fn of_file(service: ServiceName, path: &str, limits: Limits, table: Arc<LockTable>) -> Self {
        Self::new(service, path, Scope::File(path.to_owned()), limits, table)
    }

    /// Watches whatever the processes of a service lock; `files` too, but not the files `except`.
    pub fn of_service(service: ServiceName, files: Vec<String>, except: Vec<String>, table: Arc<LockTable>) -> Self {
        let limits = Limits { max_wait: MAX_WAIT_DEFAULT, max_hold: None };
        Self::new(service, ALL_FILES, Scope::Service { files, except }, limits, table)
    }

    fn new(service: ServiceName, subject: &str, scope: Scope, limits: Limits, table: Arc<LockTable>) -> Self {
        let namespace = std::fs::read_link(table.root().path("/proc/self/ns/pid"));
        Self {
            subject: SubjectKey::new(service, ProbeKind::Lock, subject),
            own_namespace: namespace.is_ok_and(|link| link.as_os_str() != INITIAL_PID_NAMESPACE),
            table,
            scope,
            limits,
            judge: LockJudge::default(),
            located: BTreeMap::new(),
            holders: BTreeMap::new(),
            paths: BTreeMap::new(),
        }
    }

    fn judge_file(&mut self, path: &str, context: &Context) -> Judgement {
        let located = match self.locate(path) {
            Ok(()) => self.located.get(path).cloned().unwrap_or_default(),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.judge = LockJudge::default();
                let mut judgement = Judgement::default();
                judgement.seen.insert("exists", Value::Flag(false));
                return judgement;
            }
            Err(error) => {
                let way_out = "let the agent search the folders above it, or give it CAP_DAC_READ_SEARCH";
                let denied = matches!(error, Errno::ACCESS | Errno::PERM).then_some(way_out);
                return Judgement::unknown(format!("{path} could not be looked at: {error}"), denied);
            }
        };
        let interest = BTreeSet::from([located.inode()]);
        let table = match self.table.read(&self.subject.subject, interest, context.now.boottime_ms) {
            Ok(table) => table,
            Err(why) => return Judgement::unknown(why, None),
        };
        let mut queues = Vec::new();
        let living = living(context);
        let held: Vec<Lock> = table.on(|file| located.is(file)).copied().collect();
        for contended in contended_on(&table, |file| located.is(file)) {
            queues.extend(self.queue(&table, contended, Some(path), &living, context));
        }
        let waited_for = |lock: &&Lock| !queues.iter().any(|queue: &Queue| queue.class == lock.class);
        let locks = held.iter().filter(|lock| lock.class.is_lock());
        let first = locks.filter(waited_for).min_by_key(|lock| lock.mode != Mode::Write);
        if let Some(lock) = first.copied() {
            let alone = Contended { holder: lock, waiters: Vec::new() };
            queues.extend(self.queue(&table, &alone, Some(path), &living, context));
        }
        let mut judgement = self.settle(Reading { queues, cut: table.cut }, context);
        self.describe(&mut judgement, &held, &living);
        judgement
    }

    /// What else was seen at a lock file: how many hold it, leases, and what the kernel does not show.
    fn describe(&self, judgement: &mut Judgement, held: &[Lock], living: &Living) {
        let seen = &mut judgement.seen;
        let locks = held.iter().filter(|lock| lock.class.is_lock()).count();
        seen.insert("locks_count", Value::Count(locks as u64));
        if self.own_namespace && locks == 0 {
            let unknown = "unknown: the kernel hides the locks of processes outside of the agent's pid namespace";
            seen.insert("holder", Value::Text(unknown.to_owned()));
        }
        let leases = held.iter().filter(|lock| matches!(lock.class, Class::Lease | Class::Delegation));
        let leases: Vec<String> = leases
            .take(HOLDERS_SHOWN_MAX)
            .map(|lease| {
                let holder = lease.pid.and_then(|pid| self.table.party(pid, living));
                let holder = holder.map_or_else(|| "an unknown process".to_owned(), |party| party.name());
                let state = if lease.breaking { ", being taken back" } else { "" };
                format!("{} {} of {holder}{state}", lease.mode.as_str(), lease.class.as_str())
            })
            .collect();
        if !leases.is_empty() {
            seen.insert("leases", Value::Text(leases.join("; ")));
        }
    }

    fn judge_service(&mut self, files: &[String], except: &[String], context: &Context) -> Judgement {
        for path in files.iter().chain(except) {
            // One that is missing, or may not be looked at, is the pid file's finding or that of its own probe.
            if self.locate(path).is_err() {
                self.located.remove(path);
            }
        }
        let inodes = files.iter().filter_map(|path| self.located.get(path)).map(Located::inode).collect();
        let who = format!("{}/{}", self.subject.service, self.subject.subject);
        let table = match self.table.read(&who, inodes, context.now.boottime_ms) {
            Ok(table) => table,
            Err(why) => return Judgement::unknown(why, None),
        };
        let mut queues = Vec::new();
        if !table.contended.is_empty() {
            let living = living(context);
            for contended in &table.contended {
                let Some(file) = contended.holder.file else { continue };
                let path = |paths: &[String]| {
                    let is_it = |path: &&String| self.located.get(*path).is_some_and(|located| located.is(&file));
                    paths.iter().find(is_it).cloned()
                };
                let path_known = path(files);
                if path(except).is_some() || (path_known.is_none() && !self.concerns(contended, &living, context)) {
                    continue;
                }
                queues.extend(self.queue(&table, contended, path_known.as_deref(), &living, context));
            }
        }
        self.settle(Reading { queues, cut: table.cut }, context)
    }

    fn locate(&mut self, path: &str) -> Result<(), Errno> {
        let host_path = self.table.root().path(path);
        let located = Located::find(Path::new(&host_path), self.located.get(path))?;
        self.located.insert(path.to_owned(), located);
        Ok(())
    }

    /// Whether a process of the service holds the lock or waits for it.
    fn concerns(&mut self, contended: &Contended, living: &Living, context: &Context) -> bool {
        let is_ours = |party: &Party| party.service.as_ref() == Some(&self.subject.service);
        let pids = std::iter::once(&contended.holder).chain(&contended.waiters).filter_map(|lock| lock.pid);
        if pids.take(ASKED_MAX).filter_map(|pid| self.table.party(pid, living)).any(|party| is_ours(&party)) {
            return true;
        }
        // A lock without a pid can only be found at its holder.
        contended.holder.pid.is_none()
            && matches!(self.unnamed(&contended.holder, living, context), Holder::Process(party)
                if party.service.as_ref() == Some(&self.subject.service))
    }

    fn queue(
        &mut self,
        table: &Table,
        contended: &Contended,
        path: Option<&str>,
        living: &Living,
        context: &Context,
    ) -> Option<Queue> {
        let lock = contended.holder;
        let file = lock.file?;
        let holder = self.holder(&lock, living, context);
        let waiters: Vec<Party> = contended
            .waiters
            .iter()
            .filter_map(|waiter| self.table.party(waiter.pid?, living))
            .filter(|waiter| Some(waiter.process.pid) != lock.pid)
            .collect();
        let unnamed_waiters = contended.waiters.iter().filter(|waiter| waiter.pid.is_none()).count();
        let first = waiters.first().map(|waiter| waiter.process.pid);
        let ring = first.and_then(|pid| cycle::through(&table.contended, pid)).unwrap_or_default();
        let ring = ring.iter().filter_map(|pid| self.table.party(*pid, living)).collect();
        let holder_pid = if let Holder::Process(party) = &holder { Some(party.process.pid) } else { None };
        let path = match path {
            Some(path) => Some(path.to_owned()),
            None => self.path(file, &[first, holder_pid], context),
        };
        Some(Queue { file, path, class: lock.class, mode: lock.mode, holder, waiters, unnamed_waiters, ring })
    }

    fn holder(&mut self, lock: &Lock, living: &Living, context: &Context) -> Holder {
        let Some(pid) = lock.pid else { return self.unnamed(lock, living, context) };
        let party = self.table.party(pid, living);
        if lock.class != Class::Flock {
            return party.map_or(Holder::Unknown("it has just ended, or is hidden"), Holder::Process);
        }
        // A flock stays with the open file: who took it may have handed it to a child and ended, and its pid may be
        // another process's by now.
        match party {
            Some(party) if people::holds(self.table.root(), pid, lock) != Some(false) => Holder::Process(party),
            _ => match self.unnamed(lock, living, context) {
                Holder::Unknown(_) => Holder::Ended(pid),
                found => found,
            },
        }
    }

    /// Looks for who holds a lock through one of its descriptors, the service's processes first.
    fn unnamed(&mut self, lock: &Lock, living: &Living, context: &Context) -> Holder {
        let Some(file) = lock.file else { return Holder::Unknown("the kernel names no file") };
        if lock.class == Class::Posix {
            return Holder::Unknown("another host, or a process outside of the agent's pid namespace");
        }
        let root = self.table.root().clone();
        let key = (file, lock.class);
        let known = self.holders.get(&key);
        let missed = known.is_some_and(|known| {
            known.what.is_none() && context.now.boottime_ms.saturating_sub(known.at_boottime_ms) < MISS_KEPT_MS
        });
        let known = known.and_then(|known| known.what).filter(|known| {
            crate::senses::process::id(&root, known.pid) == Some(*known)
                && people::holds(&root, known.pid, lock) == Some(true)
        });
        let found = match known {
            Some(known) => Some(known),
            None if missed => None,
            None => {
                let own = living.iter().filter(|(service, _)| *service == self.subject.service);
                let first: Vec<u32> = own.map(|(_, instance)| instance.process.pid).collect();
                let (pid, everybody) = people::holder(&root, lock, &first);
                let what = pid.and_then(|pid| crate::senses::process::id(&root, pid));
                if self.holders.len() >= FILES_MAX {
                    self.holders.clear();
                }
                self.holders.insert(key, Found { what, everybody, at_boottime_ms: context.now.boottime_ms });
                what
            }
        };
        match found.and_then(|process| self.table.party(process.pid, living)) {
            Some(party) => Holder::Process(party),
            None if self.holders.get(&key).is_some_and(|found| !found.everybody) => Holder::Unknown(NO_CAPABILITY),
            None => Holder::Unknown("no process of this pid namespace has it"),
        }
    }

    /// The path of a file, from who has it open; asked for only when there is something to tell of it.
    fn path(&mut self, file: FileId, pids: &[Option<u32>], context: &Context) -> Option<String> {
        let now_ms = context.now.boottime_ms;
        let known = self.paths.get(&file);
        if let Some(known) = known.filter(|known| known.what.is_some() || now_ms < known.at_boottime_ms + MISS_KEPT_MS)
        {
            return known.what.clone();
        }
        let what = pids.iter().flatten().find_map(|pid| people::path_of(self.table.root(), *pid, file));
        if self.paths.len() >= FILES_MAX {
            self.paths.clear();
        }
        self.paths.insert(file, Found { what: what.clone(), everybody: true, at_boottime_ms: now_ms });
        what
    }

    /// Judges; but where a process with several threads seems to have waited too long, only after some more looks.
    fn settle(&mut self, mut reading: Reading, context: &Context) -> Judgement {
        let enough = self.limits.max_wait / 2;
        let doubtful = |judge: &LockJudge, queue: &Queue, waiter: &Party| {
            waiter.switches.is_none() && judge.waited(queue.file, waiter.process, &context.now) >= enough
        };
        let any =
            reading.queues.iter().any(|queue| queue.waiters.iter().any(|waiter| doubtful(&self.judge, queue, waiter)));
        if any {
            let files: BTreeSet<FileId> = reading.queues.iter().map(|queue| queue.file).collect();
            let lasting = self.lasting(&files);
            for queue in &mut reading.queues {
                let file = queue.file;
                let lasts = |pid: u32| lasting.iter().any(|(of, _, waiter)| (*of, *waiter) == (file, pid));
                queue.waiters.retain(|waiter| waiter.switches.is_some() || lasts(waiter.process.pid));
            }
            if matches!(self.scope, Scope::Service { .. }) {
                reading.queues.retain(|queue| !queue.waiters.is_empty() || queue.unnamed_waiters > 0);
            }
        }
        self.judge.judge(&reading, &self.limits, &context.now, context.one_shot)
    }

    /// The pairs of holder and waiter that stay the same over some looks: in a queue that moves they do not.
    fn lasting(&self, files: &BTreeSet<FileId>) -> BTreeSet<(FileId, Option<u32>, u32)> {
        let mut lasting: Option<BTreeSet<_>> = None;
        for _ in 0..LOOKS_BEFORE_TOLD {
            std::thread::sleep(LOOK_PAUSE);
            let Ok(table) = read_table(self.table.root(), &BTreeSet::new()) else { continue };
            let mut pairs = BTreeSet::new();
            for contended in contended_on(&table, |file| files.contains(file)) {
                let Some(file) = contended.holder.file else { continue };
                let waiters = contended.waiters.iter().filter_map(|waiter| waiter.pid);
                pairs.extend(waiters.map(|waiter| (file, contended.holder.pid, waiter)));
            }
            lasting = Some(lasting.map_or_else(|| pairs.clone(), |before| &before & &pairs));
        }
        lasting.unwrap_or_default()
    }
}

/// The locks on a file that somebody waits for.
fn contended_on(table: &Table, is_it: impl Fn(&FileId) -> bool) -> impl Iterator<Item = &Contended> {
    table.contended.iter().filter(move |contended| contended.holder.file.as_ref().is_some_and(&is_it))
}

/// The main processes of all services, as far as they live.
pub(crate) fn living(context: &Context) -> Living {
    let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
    let newest = |name: &ServiceName| {
        let instance = services.newest(name).filter(|instance| instance.ended_boottime_ms.is_none())?;
        Some((name.clone(), instance.clone()))
    };
    services.names().filter_map(newest).collect()
}

impl Probe for LockProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    /// The files may lie on a file system that hangs.
    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        // Taken out for the run, so that the rest can be borrowed freely.
        let scope = std::mem::replace(&mut self.scope, Scope::File(String::new()));
        let judgement = match &scope {
            Scope::File(path) => self.judge_file(path, context),
            Scope::Service { files, except } => self.judge_service(files, except, context),
        };
        self.scope = scope;
        judgement
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(self.table.root()), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, judge)) = saved.read::<(BootId, LockJudge)>() else { return };
        // After a reboot every lock is another one.
        if !boot.0.is_nil() && boot == boot_id(self.table.root()) {
            self.judge = judge;
        }
    }
}
