//! The verdict on the main process of a service: whether it lives, its open files against their limit, the trend of its
//! memory, children it does not reap.
//!
//! One cause, one finding: where the service has a pid file, that probe tells the end of the process, and this one only
//! stops measuring. The same pid with another start time is another process: every measure begins anew.

use super::exit::{self, Exit, ExitStatus, NO_SUCCESSOR, START_IT};
use super::growth::{Growth, GrowthRules, Trend};
use super::proc_text::{Limits, Status};
use super::stopped::Stop;
use crate::clock::Now;
use crate::judgement::{HAS_ENDED, Judgement, PROCESS_KEY, Problem};
use crate::services::Instance;
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::ids::ProcessId;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use muster_common::units::{human_bytes, human_duration};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Open files are few again this far below the threshold, in percent of the limit.
const FILES_BACK_PERCENT: u64 = 5;
/// With half of its files open and growing, a process that runs out within this time is told early.
const FILES_SOON: Duration = Duration::from_secs(3600);
/// What growth of open files is: over an hour, by as many as a handful of connections never are.
const FILES_GROWTH: GrowthRules = GrowthRules { window: Duration::from_secs(3600), by_at_least: 64, by_percent: 10 };
/// Zombies remembered from one look to the next; more are counted and not named.
pub const ZOMBIES_MAX: usize = 64;
/// Zombies named in the evidence.
const ZOMBIES_NAMED: usize = 5;

/// What is normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessRules {
    /// Open files from this part of the soft limit on are too many.
    pub open_files_percent: u64,
    /// What growth of memory is.
    pub memory_growth: GrowthRules,
    /// So many children left unreaped from one look to the next are too many.
    pub zombie_children: u64,
    /// Whether this probe tells the end of the process: where no pid file does.
    pub tells_end: bool,
}

/// Why something about a living process cannot be told, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blind {
    /// One sentence.
    pub why: String,
    /// What would help.
    pub way_out: &'static str,
}

/// The nearest bound on the memory of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Its name: `memory.max of /system.slice/spl.service`.
    pub name: String,
    /// The bound.
    pub limit_bytes: u64,
    /// What is left below it.
    pub left_bytes: u64,
}

/// A child that has ended and was not reaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zombie {
    /// Which.
    pub process: ProcessId,
    /// Its name.
    pub comm: String,
    /// When it was first seen as a zombie.
    pub seen_boottime_ms: u64,
}

/// One look at the children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Children {
    /// All of them.
    pub count: u64,
    /// The zombies, the first [`ZOMBIES_MAX`].
    pub zombies: Vec<(ProcessId, String)>,
    /// All zombies.
    pub zombie_count: u64,
    /// True when there were too many to look at all.
    pub cut: bool,
}

/// What a living process uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Its memory and threads.
    pub status: Status,
    /// Its limits.
    pub limits: Limits,
    /// Its open files.
    pub open_files: Result<u64, Blind>,
    /// Its children; `None` when it was not the time to look.
    pub children: Option<Result<Children, Blind>>,
    /// How gladly the kernel kills it, −1000 to 1000.
    pub oom_score_adj: Option<i64>,
    /// The nearest bound on its memory, where there is one.
    pub room: Option<Room>,
}

/// How the process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// It lives and uses this.
    Alive(Box<Usage>),
    /// It has ended and was not reaped.
    Zombie(Exit),
    /// It has ended.
    Gone(Exit),
    /// It lives, but procfs does not show it: why.
    Hidden(String),
}

/// Judges one process after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessJudge {
    /// Whose process it is: people know the service, not the interpreter that runs it.
    #[serde(skip)]
    service: String,
    process: Option<ProcessId>,
    memory: Trend,
    /// Not saved: an hour is soon seen again.
    #[serde(skip)]
    files: Trend,
    files_high: bool,
    zombies: Vec<Zombie>,
    zombie_count: u64,
    zombies_high: bool,
    ended_boottime_ms: Option<u64>,
    /// The same by the wall clock, for people: taken once, so that a clock that is set later changes no sentence.
    #[serde(default)]
    ended_at: Option<Timestamp>,
    exit: Option<Exit>,
    zombie_runs: u32,
    /// A stop that was seen at the last look.
    #[serde(default)]
    stop: Option<Stop>,
}

impl ProcessJudge {
    /// Of this service.
    #[must_use]
    pub fn of(self, service: &str) -> Self {
        Self { service: service.to_owned(), ..self }
    }

    /// The process that the last reading was about.
    pub const fn process(&self) -> Option<ProcessId> {
        self.process
    }

    /// The way this process ended, where that was told to an earlier run.
    pub const fn exit(&self) -> Option<&Exit> {
        self.exit.as_ref()
    }

    /// One reading of `instance`, which started at `start_boottime_ms`.
    pub fn judge(
        &mut self,
        rules: &ProcessRules,
        instance: &Instance,
        start_boottime_ms: u64,
        life: &Life,
        now: Now,
        one_shot: bool,
    ) -> Judgement {
        if self.process != Some(instance.process) {
            let service = std::mem::take(&mut self.service);
            *self = Self { process: Some(instance.process), service, ..Self::default() };
        }
        let seen = identity(instance).duration("uptime_ms", now.since(start_boottime_ms));
        match life {
            Life::Alive(usage) => self.alive(rules, instance, start_boottime_ms, usage, seen, now, one_shot),
            Life::Hidden(why) => Judgement::unknown(
                format!("pid {} lives but cannot be seen: {why}", instance.process.pid),
                Some("give the agent CAP_SYS_PTRACE, or mount /proc without hidepid for its group"),
            ),
            Life::Zombie(exit) | Life::Gone(exit) => {
                let ended =
                    *self.ended_boottime_ms.get_or_insert(instance.ended_boottime_ms.unwrap_or(now.boottime_ms));
                self.ended_at.get_or_insert(now.wall - now.since(ended));
                if !matches!(self.exit, Some(Exit::Known { .. })) {
                    self.exit = Some(exit.clone());
                }
                let zombie = matches!(life, Life::Zombie(_));
                self.zombie_runs = if zombie { self.zombie_runs.saturating_add(1) } else { 0 };
                self.ended(
                    rules,
                    instance,
                    Duration::from_millis(ended.saturating_sub(start_boottime_ms)),
                    now,
                    one_shot,
                )
            }
        }
    }

    fn ended(&self, rules: &ProcessRules, instance: &Instance, lived: Duration, now: Now, one_shot: bool) -> Judgement {
        let unknown = Exit::Unknown("nobody told".to_owned());
        let exit = self.exit.as_ref().unwrap_or(&unknown);
        let down_for = now.since(self.ended_boottime_ms.unwrap_or(now.boottime_ms));
        let evidence =
            exit.evidence(identity(instance)).duration("lifetime_ms", lived).duration("down_for_ms", down_for);
        let status = exit.status();
        if !rules.tells_end || status.is_some_and(ExitStatus::is_orderly) {
            // A unit's program that ended in order was meant to, or asked to: whether it should run, its unit tells.
            let told_by = if rules.tells_end { "its unit" } else { "its pid file" };
            return Judgement::ok(evidence.text(PROCESS_KEY, HAS_ENDED).text("judged_by", told_by));
        }
        let pid = instance.process.pid;
        let at = self.ended_at.unwrap_or(now.wall).to_utc_clock();
        let how = status.map(|status| format!(" {}", status.words())).unwrap_or_default();
        let summary = format!(
            "{} ended at {at}{how}; it had run for {}{NO_SUCCESSOR}",
            exit::who(&self.service, &instance.comm, pid),
            human_duration(lived)
        );
        let mut judgement =
            Judgement::problem(Problem::new(Reason::ProcessDown, summary).evidence(evidence.clone()).next_steps([
                "see why it ended: journalctl -b -e and the service's own log".to_owned(),
                format!("{START_IT}; its new process clears this"),
            ]));
        if self.zombie_runs > u32::from(!one_shot) {
            let who = exit::who(&self.service, &instance.comm, pid);
            let summary = format!("{who} has ended, but its parent has not reaped it");
            judgement.problems.push(Problem::new(Reason::ProcessZombie, summary).evidence(evidence).next_steps([
                format!("find the parent: ps -o ppid= -p {pid}"),
                "restart the service, or the parent if it reaps nothing".to_owned(),
            ]));
        }
        judgement
    }

    #[expect(clippy::too_many_arguments, reason = "one run's whole input, taken apart by one caller")]
    fn alive(
        &mut self,
        rules: &ProcessRules,
        instance: &Instance,
        start_ms: u64,
        usage: &Usage,
        seen: Evidence,
        now: Now,
        one_shot: bool,
    ) -> Judgement {
        (self.ended_boottime_ms, self.ended_at, self.exit, self.zombie_runs) = (None, None, None, 0);
        let mut judgement = Judgement { seen: usage_evidence(usage, seen), ..Judgement::default() };
        match &usage.open_files {
            Ok(open) => judgement.problems.extend(self.files(rules, instance, start_ms, *open, usage, now)),
            Err(blind) => {
                judgement.seen.insert("open_files_unknown", Value::Text(format!("{}; {}", blind.why, blind.way_out)));
                // In the daemon this would keep what else is open here from clearing, for ever.
                if one_shot {
                    let Judgement { unknown, .. } = Judgement::unknown(blind.why.clone(), Some(blind.way_out));
                    judgement.unknown = unknown;
                }
            }
        }
        if let Some(own_bytes) = usage.status.own_bytes() {
            self.memory.read(&rules.memory_growth, start_ms, now.boottime_ms, own_bytes);
        }
        if one_shot {
            judgement
                .seen
                .insert("memory_trend", Value::Text("the daemon tells it after hours of readings".to_owned()));
        } else {
            judgement.seen = judgement.seen.duration("memory_trend_over_ms", self.memory.observed());
        }
        self.stop = Stop::seen(self.stop, &usage.status, now);
        if let Some(stop) = self.stop.filter(|stop| stop.lasts(now, one_shot)) {
            let evidence = usage_evidence(usage, identity(instance));
            judgement.problems.push(stop.problem(&self.service, instance, evidence, &usage.status));
        }
        if let Some(growth) = self.memory.growth() {
            judgement.problems.push(memory_growth(
                &self.service,
                instance,
                usage,
                growth,
                self.memory.recovered_from(),
            ));
        }
        match &usage.children {
            Some(Ok(children)) => self.look_at(rules, children, now, one_shot),
            Some(Err(blind)) => {
                let text = format!("{}; {}", blind.why, blind.way_out);
                judgement.seen.insert("zombie_children_unknown", Value::Text(text));
            }
            None => {}
        }
        judgement.seen = judgement.seen.count("zombie_children", self.zombie_count);
        if self.zombies_high {
            judgement.problems.push(self.unreaped(instance, now, one_shot));
        }
        judgement
    }

    fn files(
        &mut self,
        rules: &ProcessRules,
        instance: &Instance,
        start_ms: u64,
        open: u64,
        usage: &Usage,
        now: Now,
    ) -> Option<Problem> {
        self.files.read(&FILES_GROWTH, start_ms, now.boottime_ms, open);
        // No limit, nothing to run out of.
        let limit = usage.limits.open_files.filter(|limit| *limit > 0)?;
        let percent = open.saturating_mul(100) / limit;
        let full_in = self.files.growth().and_then(|growth| growth.time_to_use(limit.saturating_sub(open)));
        let soon = full_in.filter(|full_in| *full_in <= FILES_SOON && percent >= 50);
        let back = if self.files_high { FILES_BACK_PERCENT } else { 0 };
        self.files_high = percent >= rules.open_files_percent.saturating_sub(back) || soon.is_some();
        if !self.files_high {
            return None;
        }
        let pid = instance.process.pid;
        let who = exit::who(&self.service, &instance.comm, pid);
        let mut summary = format!("{who} has {open} of {limit} files open ({percent} %)");
        let mut evidence = usage_evidence(usage, identity(instance)).count("open_files_percent", percent);
        if let Some(growth) = self.files.growth() {
            summary = format!("{summary}, {} more every hour", growth.per_hour);
            evidence = evidence.count("open_files_per_hour", growth.per_hour);
        }
        if let Some(full_in) = full_in {
            summary = format!("{summary}: none is left in {}", human_duration(full_in));
            evidence = evidence.duration("full_in_ms", full_in);
        }
        Some(Problem::new(Reason::FdExhaustion, summary).evidence(evidence).next_steps([
            format!("see what is open: ls -l /proc/{pid}/fd | awk '{{print $NF}}' | sort | uniq -c | sort -rn | head"),
            format!("see what the sockets are: ss -tanp | grep pid={pid}, | awk '{{print $1}}' | sort | uniq -c"),
            "a leak needs a restart and a fix; raise LimitNOFILE= of its unit only if so many are expected".to_owned(),
        ]))
    }

    /// Who was a zombie in the last look and still is was not reaped in between.
    fn look_at(&mut self, rules: &ProcessRules, children: &Children, now: Now, one_shot: bool) {
        let known = std::mem::take(&mut self.zombies);
        let since = |process| known.iter().find(|zombie| zombie.process == process).map(|old| old.seen_boottime_ms);
        self.zombies = children
            .zombies
            .iter()
            .take(ZOMBIES_MAX)
            .map(|(process, comm)| Zombie {
                process: *process,
                comm: comm.clone(),
                seen_boottime_ms: since(*process).unwrap_or(now.boottime_ms),
            })
            .collect();
        self.zombie_count = children.zombie_count;
        let stayed = self.zombies.iter().filter(|zombie| one_shot || zombie.seen_boottime_ms < now.boottime_ms).count();
        // More than can be remembered: then the named ones stand for all.
        let stayed = if stayed == ZOMBIES_MAX { children.zombie_count } else { stayed as u64 };
        let enough = if self.zombies_high { rules.zombie_children.div_ceil(2) } else { rules.zombie_children };
        self.zombies_high = stayed >= enough.max(1);
    }

    fn unreaped(&self, instance: &Instance, now: Now, one_shot: bool) -> Problem {
        let pid = instance.process.pid;
        let oldest = self.zombies.iter().min_by_key(|zombie| (zombie.seen_boottime_ms, zombie.process.start_ticks));
        let mut names: Vec<&str> = self.zombies.iter().map(|zombie| zombie.comm.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.truncate(ZOMBIES_NAMED);
        let names = names.join(", ");
        let summary = format!(
            "{} has {} children that ended and were not reaped: {names}",
            exit::who(&self.service, &instance.comm, pid),
            self.zombie_count
        );
        let mut evidence = identity(instance).count("zombie_children", self.zombie_count).text("zombie_names", &names);
        if let Some(oldest) = oldest {
            evidence = evidence
                .count("oldest_zombie_pid", oldest.process.pid)
                .duration("oldest_zombie_for_at_least_ms", now.since(oldest.seen_boottime_ms));
        }
        let grade = if one_shot { Grade::Likely } else { Grade::Confirmed };
        Problem::new(Reason::ZombieChildren, summary).evidence(evidence).grade(grade).next_steps([
            format!("see them: ps -o pid,stat,etime,comm --ppid {pid} | awk '$2 ~ /Z/'"),
            "they hold nothing but pids; a restart of the service removes them, a fix of its SIGCHLD handling keeps them \
             away (or start it under tini or systemd)"
                .to_owned(),
        ])
    }
}

fn memory_growth(
    service: &str,
    instance: &Instance,
    usage: &Usage,
    growth: &Growth,
    recovered: Option<u64>,
) -> Problem {
    let pid = instance.process.pid;
    let own = usage.status.own_bytes().unwrap_or(growth.to);
    let mut summary = format!(
        "{} holds {}, {} more every hour for {}",
        exit::who(service, &instance.comm, pid),
        human_bytes(own),
        human_bytes(growth.per_hour),
        human_duration(Duration::from_millis(growth.over_ms))
    );
    let mut evidence = usage_evidence(usage, identity(instance))
        .bytes("growth_per_hour_bytes", growth.per_hour)
        .bytes("floor_before_bytes", growth.from)
        .bytes("floor_now_bytes", growth.to)
        .duration("growth_over_ms", Duration::from_millis(growth.over_ms));
    if let Some(recovered) = recovered {
        evidence = evidence.bytes("came_back_from_bytes", recovered);
    }
    if let Some(room) = &usage.room
        && let Some(full_in) = growth.time_to_use(room.left_bytes)
    {
        summary = format!(
            "{summary}; at this rate it reaches {} ({}) in {}",
            room.name,
            human_bytes(room.limit_bytes),
            human_duration(full_in)
        );
        evidence = evidence.duration("full_in_ms", full_in);
    }
    Problem::new(Reason::MemoryGrowth, summary).evidence(evidence).next_steps([
        format!(
            "see where it is: grep -E 'Rss|Anon|Swap' /proc/{pid}/smaps_rollup; then a heap profile of the service"
        ),
        "compare with the load and with the last deploy: did it begin then?".to_owned(),
        "plan a restart before the limit is reached; it gives the memory back but does not mend the leak".to_owned(),
    ])
}

fn identity(instance: &Instance) -> Evidence {
    let mut evidence = Evidence::new()
        .count("pid", instance.process.pid)
        .count("start_ticks", instance.process.start_ticks)
        .text("comm", &instance.comm);
    if let Some(exe) = &instance.exe {
        evidence = evidence.text("exe", exe);
    }
    if let Some(cgroup) = &instance.cgroup {
        evidence = evidence.text("cgroup", cgroup);
    }
    evidence
}

fn usage_evidence(usage: &Usage, mut evidence: Evidence) -> Evidence {
    let Usage { status, limits, open_files, oom_score_adj, room, .. } = usage;
    for (key, bytes) in [
        ("rss_bytes", status.rss_bytes),
        ("anon_bytes", status.anon_bytes),
        ("swap_bytes", status.swap_bytes),
        ("address_space_limit_bytes", limits.address_space_bytes),
    ] {
        if let Some(bytes) = bytes {
            evidence = evidence.bytes(key, bytes);
        }
    }
    for (key, count) in [
        ("threads", status.threads),
        ("open_files", open_files.as_ref().ok().copied()),
        ("open_files_limit", limits.open_files),
        ("voluntary_switches", status.voluntary_switches),
        ("involuntary_switches", status.involuntary_switches),
    ] {
        if let Some(count) = count {
            evidence = evidence.count(key, count);
        }
    }
    if let Some(adjust) = oom_score_adj {
        evidence = evidence.with("oom_score_adj", Value::Integer(*adjust));
    }
    if let Some(room) = room {
        evidence = evidence.text("memory_limit", &room.name).bytes("memory_limit_bytes", room.limit_bytes);
    }
    evidence
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
