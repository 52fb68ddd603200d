//! When a wait for a lock, or a hold of one, is too long.
//!
//! A wait counts from the first look that saw it, and starts again when it cannot be the same one: where a process has
//! one thread, the kernel's count of its sleeps tells; else another holder does. So a busy lock that moves is never
//! told, however often somebody is seen waiting for it.

use super::party::{Activity, Party, names, services};
use super::table::{Class, FileId, Mode};
use crate::clock::Now;
use crate::diagnose::{HOLDER_SERVICE_KEY, PID_KEY, START_TICKS_KEY, WAITER_SERVICES_KEY};
use crate::judgement::{Judgement, Problem};
use muster_common::evidence::{Evidence, Grade};
use muster_common::ids::ProcessId;
use muster_common::reason::Reason;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Waits and holds that are followed per subject; the first ones of a longer queue stand for the rest.
const FOLLOWED_MAX: usize = 64;
/// Processes named in a sentence; evidence names more.
const NAMED_IN_SUMMARY_MAX: usize = 2;
const NAMED_IN_EVIDENCE_MAX: usize = 8;
/// A ring of waiters is told when it was seen twice: this is less than the shortest interval of a probe.
const RING_AFTER: Duration = Duration::from_millis(500);

/// How long is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// To wait.
    pub max_wait: Duration,
    /// To hold; `None` for a lock that is meant to be held for ever.
    pub max_hold: Option<Duration>,
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// This process.
    Process(Party),
    /// This process took it and has ended; one that it started has inherited the open file.
    Ended(u32),
    /// Nobody that can be named, and why.
    Unknown(&'static str),
}

impl Holder {
    const fn party(&self) -> Option<&Party> {
        match self {
            Self::Process(party) => Some(party),
            Self::Ended(_) | Self::Unknown(_) => None,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Process(party) => party.name(),
            Self::Ended(pid) => format!("a process that inherited it from pid {pid}, which has ended,"),
            Self::Unknown(why) => format!("an unknown process ({why})"),
        }
    }
}

/// A lock and its waiters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// The file.
    pub file: FileId,
    /// Its path, where one is known.
    pub path: Option<String>,
    /// Kind of lock.
    pub class: Class,
    /// Shared or exclusive.
    pub mode: Mode,
    /// Who has it.
    pub holder: Holder,
    /// Who waits, as far as they have a pid.
    pub waiters: Vec<Party>,
    /// Waiters without one.
    pub unnamed_waiters: usize,
    /// The ring of processes, each waiting for the next, that one of these is in.
    pub ring: Vec<Party>,
}

impl Queue {
    fn place(&self) -> String {
        self.path.clone().unwrap_or_else(|| self.file.to_string())
    }

    fn waiters_count(&self) -> usize {
        self.waiters.len() + self.unnamed_waiters
    }
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// Locks of the subject; those without waiters too where the subject is a file.
    pub queues: Vec<Queue>,
    /// There were more locks than were read.
    pub cut: bool,
}

/// Remembers since when the same waits and holds are seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LockJudge {
    waits: Vec<Followed>,
    holds: Vec<Followed>,
    /// Files of which a wait was told: a wait half as long is still the same trouble.
    told: Vec<FileId>,
}

/// A process at a lock, and what must stay the same for it to be the same wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Followed {
    file: FileId,
    class: Class,
    process: Option<ProcessId>,
    sign: Sign,
    since_boottime_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Sign {
    Switches(u64),
    HolderPid(Option<u32>),
}

/// What is wrong with one queue, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Held,
    Waited,
    HolderStopped,
    Ring,
}

struct Case<'a> {
    queue: &'a Queue,
    trouble: Trouble,
    waited: Option<Duration>,
    held: Duration,
}

impl LockJudge {
    /// How long a wait has been seen; for who wants to look twice before it is judged.
    pub fn waited(&self, file: FileId, process: ProcessId, now: &Now) -> Duration {
        let is_it = |wait: &&Followed| wait.file == file && wait.process == Some(process);
        self.waits.iter().find(is_it).map_or(Duration::ZERO, |wait| now.since(wait.since_boottime_ms))
    }

    /// Judges a look. `one_shot`: there is no later look, so only what is certain at once is a problem.
    pub fn judge(&mut self, reading: &Reading, limits: &Limits, now: &Now, one_shot: bool) -> Judgement {
        self.follow(reading, now);
        let mut cases: Vec<Case<'_>> = Vec::new();
        for queue in &reading.queues {
            let (waited, held) = (self.longest_wait(queue, now), self.held(queue, now));
            if let Some(trouble) = self.trouble(queue, waited, held, limits, one_shot) {
                cases.push(Case { queue, trouble, waited, held });
            }
        }
        self.told = cases.iter().filter(|case| case.trouble != Trouble::Held).map(|case| case.queue.file).collect();
        cases.sort_by_key(|case| std::cmp::Reverse((case.trouble, case.waited, case.held)));
        let seen = self.seen(reading, now, one_shot);
        match cases.split_first() {
            Some((worst, others)) => Judgement { seen, ..Judgement::problem(problem(worst, others, limits)) },
            None if reading.cut => {
                let why =
                    "the host has more file locks than the agent reads, and nothing was found among the first ones";
                Judgement {
                    seen,
                    ..Judgement::unknown(why, Some("find who holds so many: sort -k5 /proc/locks | uniq -c -f4"))
                }
            }
            None => Judgement::ok(seen),
        }
    }

    fn follow(&mut self, reading: &Reading, now: &Now) {
        let (mut waits, mut holds) = (Vec::new(), Vec::new());
        for queue in &reading.queues {
            let holder = queue.holder.party().map(|party| party.process);
            let at = |process, sign| Followed {
                file: queue.file,
                class: queue.class,
                process,
                sign,
                since_boottime_ms: now.boottime_ms,
            };
            let by_holder = Sign::HolderPid(holder.map(|process| process.pid));
            for waiter in &queue.waiters {
                let sign = waiter.switches.map_or(by_holder, Sign::Switches);
                waits.push(at(Some(waiter.process), sign).since(&self.waits));
            }
            if queue.unnamed_waiters > 0 {
                waits.push(at(None, by_holder).since(&self.waits));
            }
            holds.push(at(holder, by_holder).since(&self.holds));
        }
        waits.truncate(FOLLOWED_MAX);
        holds.truncate(FOLLOWED_MAX);
        (self.waits, self.holds) = (waits, holds);
    }

    fn longest_wait(&self, queue: &Queue, now: &Now) -> Option<Duration> {
        let of_queue = |wait: &&Followed| {
            let named = queue.waiters.iter().any(|waiter| Some(waiter.process) == wait.process);
            (wait.file, wait.class) == (queue.file, queue.class)
                && (named || (wait.process.is_none() && queue.unnamed_waiters > 0))
        };
        self.waits.iter().filter(of_queue).map(|wait| now.since(wait.since_boottime_ms)).max()
    }

    fn held(&self, queue: &Queue, now: &Now) -> Duration {
        let holder = queue.holder.party().map(|party| party.process);
        let is_it = |hold: &&Followed| (hold.file, hold.class, hold.process) == (queue.file, queue.class, holder);
        self.holds.iter().find(is_it).map_or(Duration::ZERO, |hold| now.since(hold.since_boottime_ms))
    }

    fn trouble(
        &self,
        queue: &Queue,
        waited: Option<Duration>,
        held: Duration,
        limits: &Limits,
        one_shot: bool,
    ) -> Option<Trouble> {
        let stopped = queue.holder.party().is_some_and(|party| party.activity == Activity::Stopped);
        if let Some(waited) = waited {
            // With one thread each, nobody is left who could end it.
            let sure = !queue.ring.is_empty() && queue.ring.iter().all(|party| party.switches.is_some());
            if sure && (one_shot || waited >= RING_AFTER) {
                return Some(Trouble::Ring);
            }
            if one_shot && stopped {
                return Some(Trouble::HolderStopped);
            }
            let enough = if self.told.contains(&queue.file) { limits.max_wait / 2 } else { limits.max_wait };
            if waited >= enough {
                return Some(if stopped { Trouble::HolderStopped } else { Trouble::Waited });
            }
        }
        (limits.max_hold.is_some_and(|max_hold| held > max_hold) && queue.class.is_lock()).then_some(Trouble::Held)
    }

    fn seen(&self, reading: &Reading, now: &Now, one_shot: bool) -> Evidence {
        let waiters: usize = reading.queues.iter().map(Queue::waiters_count).sum();
        let mut seen = Evidence::new().count("waiters_count", waiters as u64);
        let Some(queue) = reading.queues.iter().max_by_key(|queue| queue.waiters_count()) else { return seen };
        seen = seen
            .text("lock", queue.class.as_str())
            .text("mode", queue.mode.as_str())
            .text("holder", queue.holder.name());
        if let Some(party) = queue.holder.party() {
            seen = seen
                .count(PID_KEY, party.process.pid)
                .count(START_TICKS_KEY, party.process.start_ticks)
                .text("holder_state", party.activity.as_str());
        }
        if one_shot && waiters > 0 {
            return seen.text("how_long", "one look cannot tell how long they have been waiting");
        }
        if !one_shot {
            seen = seen.duration("held_ms", self.held(queue, now));
        }
        match self.longest_wait(queue, now) {
            Some(waited) => seen.duration("waited_ms", waited),
            None => seen,
        }
    }
}

impl Followed {
    /// The same, since when it was first seen with the same sign.
    fn since(mut self, before: &[Self]) -> Self {
        let same = |old: &&Self| {
            (old.file, old.class, old.process, old.sign) == (self.file, self.class, self.process, self.sign)
        };
        if let Some(old) = before.iter().find(same) {
            self.since_boottime_ms = self.since_boottime_ms.min(old.since_boottime_ms);
        }
        self
    }
}

fn problem(worst: &Case<'_>, others: &[Case<'_>], limits: &Limits) -> Problem {
    let queue = worst.queue;
    let sure = match worst.trouble {
        Trouble::Ring | Trouble::HolderStopped => true,
        Trouble::Waited => queue.waiters.iter().any(|waiter| waiter.switches.is_some()),
        Trouble::Held => queue.holder.party().is_some(),
    };
    let grade = if sure { Grade::Confirmed } else { Grade::Likely };
    let mut evidence = evidence(worst);
    if !others.is_empty() {
        let places: Vec<String> = others.iter().take(NAMED_IN_EVIDENCE_MAX).map(|case| case.queue.place()).collect();
        evidence = evidence.text("other_files", places.join(", ")).count("other_files_count", others.len() as u64);
    }
    Problem::new(Reason::LockContention, summary(worst, limits))
        .grade(grade)
        .evidence(evidence)
        .next_steps(next_steps(worst))
}

fn summary(case: &Case<'_>, limits: &Limits) -> String {
    let queue = case.queue;
    let (class, place, holder) = (queue.class.as_str(), queue.place(), queue.holder.name());
    match case.trouble {
        Trouble::Ring => {
            let ring: Vec<String> = queue.ring.iter().map(Party::name).collect();
            let first = ring.first().cloned().unwrap_or_default();
            format!(
                "deadlock at {place}: {} waits for {first} again; none of them can go on by itself",
                ring.join(" waits for ")
            )
        }
        Trouble::Held => {
            let allowed = limits.max_hold.map(human_duration).unwrap_or_default();
            let held = human_duration(case.held);
            format!(
                "{holder} has held the {class} on {place} for at least {held}; {allowed} is the most it should be held"
            )
        }
        Trouble::Waited | Trouble::HolderStopped => {
            let who = match (queue.waiters.is_empty(), queue.waiters_count()) {
                (true, 1) => "a process that the kernel does not name has".to_owned(),
                (true, count) => format!("{count} processes that the kernel does not name have"),
                (false, 1) => format!("{} has", names(&queue.waiters, NAMED_IN_SUMMARY_MAX)),
                (false, _) => format!("{} have", names(&queue.waiters, NAMED_IN_SUMMARY_MAX)),
            };
            let long = case.waited.filter(|waited| !waited.is_zero());
            let long = long.map_or_else(
                || "been waiting".to_owned(),
                |waited| format!("been waiting for at least {}", human_duration(waited)),
            );
            let why = queue.holder.party().and_then(|party| party.activity.explains());
            let why = why.map(|why| format!(", and {why}")).unwrap_or_default();
            format!("{who} {long} for the {class} on {place}: {holder} holds it{why}")
        }
    }
}

fn evidence(case: &Case<'_>) -> Evidence {
    let queue = case.queue;
    let mut evidence = Evidence::new()
        .text("lock", queue.class.as_str())
        .text("mode", queue.mode.as_str())
        .text("path", queue.place())
        .count("inode", queue.file.inode)
        .text("device", format!("{}:{}", queue.file.major, queue.file.minor))
        .text("holder", queue.holder.name())
        .count("waiters_count", queue.waiters_count() as u64);
    // The first look knows no length of time.
    if !case.held.is_zero() {
        evidence = evidence.duration("held_ms", case.held);
    }
    if let Some(party) = queue.holder.party() {
        evidence = evidence
            .count(PID_KEY, party.process.pid)
            .count(START_TICKS_KEY, party.process.start_ticks)
            .text("holder_comm", &party.comm)
            .text("holder_state", party.activity.as_str());
        if let Some(service) = &party.service {
            evidence = evidence.text(HOLDER_SERVICE_KEY, service.as_str());
        }
    }
    if let Some(waited) = case.waited.filter(|waited| !waited.is_zero()) {
        evidence = evidence.duration("waited_ms", waited);
    }
    if let Some(first) = queue.waiters.first() {
        evidence = evidence
            .text("waiters", names(&queue.waiters, NAMED_IN_EVIDENCE_MAX))
            .count("waiter_pid", first.process.pid)
            .count("waiter_start_ticks", first.process.start_ticks);
    }
    if let Some(services) = services(&queue.waiters, NAMED_IN_EVIDENCE_MAX) {
        evidence = evidence.text(WAITER_SERVICES_KEY, services);
    }
    if !queue.ring.is_empty() {
        evidence = evidence.text("ring", names(&queue.ring, NAMED_IN_EVIDENCE_MAX));
    }
    evidence
}

fn next_steps(case: &Case<'_>) -> Vec<String> {
    let queue = case.queue;
    let inode = queue.file.inode;
    let mut steps = Vec::new();
    match &queue.holder {
        Holder::Process(party) => {
            let pid = party.process.pid;
            steps.push(format!("see what the holder does: ps -o pid,etime,stat,wchan:32,cmd -p {pid}"));
            if party.activity == Activity::Stopped {
                steps.push(format!(
                    "if nobody stopped it on purpose (a debugger, a freeze), continue it: kill -CONT {pid}"
                ));
            }
        }
        Holder::Ended(_) | Holder::Unknown(_) => steps.push(match &queue.path {
            Some(path) => format!("find who has the file open: fuser -v {path}"),
            None => format!("find who has the file open: find /proc/[0-9]*/fd -lname '*' -inum {inode}"),
        }),
    }
    steps.push(format!("see who holds and who waits now (-> waits): grep ':{inode} ' /proc/locks"));
    if case.trouble == Trouble::Ring {
        steps.push(
            "end one of them in good order; the others then go on. Let both take the locks in the same order"
                .to_owned(),
        );
    } else {
        steps.push("let the holder finish, or end it in good order; the lock is free as soon as it ends".to_owned());
    }
    steps.push(
        "do not delete the file to get past the lock: the next process would lock another one, and both would work"
            .to_owned(),
    );
    steps
}

#[cfg(test)]
mod tests;
