//! Watches the main process of a service, whoever noted it: its end at once by a pidfd, and what it uses while it lives.
//!
//! What changes slowly (limits, children, the room that its cgroup leaves), and what is dear to ask for (`status`), is read
//! once a minute, the rest every run.
//! An agent that was not there when a process ended cannot be told how: it says so.

use super::cgroup::MemoryCgroup;
use super::exit::ExitWatch;
use super::small::{read_piece_text, read_small_text};
use super::soon::Soon;
use super::unit::Units;
use super::{HostRoot, process};
use crate::clock::boot_id;
use crate::probe::{Context, Probe, Remembered};
use muster_agent_core::judgement::{Judgement, PROCESS_KEY, Verdict};
use muster_agent_core::memory;
use muster_agent_core::pid_file::ProcessReading;
use muster_agent_core::process::exit::Exit;
use muster_agent_core::process::proc_text::{self, Limits, Status};
use muster_agent_core::process::stopped::STOPPED_MIN;
use muster_agent_core::process::watch::{Blind, Children, Life, ProcessJudge, ProcessRules, Room, Usage, ZOMBIES_MAX};
use muster_agent_core::services::Instance;
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ProcessId, ServiceName};
use muster_common::reason::Reason;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// What changes slowly is read this often. Also how long a zombie must stay to be told.
const SLOW_MS: u64 = 60_000;
/// A supervisor reaps within a millisecond: a wait this long lets the first word about an end hold its code.
const REAPING_WAIT: Duration = Duration::from_millis(20);
/// Between the two looks of a one-shot diagnosis at a process that seems to be stopped: longer than a tracer holds it at
/// each of its calls.
const SECOND_LOOK: Duration = Duration::from_millis(100);
/// Descriptors counted one by one, where the kernel does not count: more is told as this many.
const DESCRIPTORS_MAX: usize = 65_536;
/// Threads whose children are looked at: in nearly all programs one thread forks.
const THREADS_MAX: usize = 128;
/// Children looked at: each costs a read of its `stat`.
const CHILDREN_MAX: usize = 2_048;
/// The longest text, `status`, has a few KiB; `children` of a thousand have as much.
const TEXT_BYTES_MAX: u64 = 64 * 1024;
/// From this kernel on the size of `/proc/PID/fd` is the number of descriptors.
const COUNTS_DESCRIPTORS: (u32, u32) = (6, 2);
/// From this kernel on a process can be watched by a descriptor of it.
const HAS_PIDFDS: (u32, u32) = (5, 3);
/// From this kernel on it tells a stranger how a process ended.
const TELLS_EXITS: (u32, u32) = (6, 15);
/// The way to the descriptors on an older one.
const WAY_OUT_FILES: &str = "give the agent CAP_DAC_READ_SEARCH, as the shipped unit does; Linux 6.2 needs nothing";
/// The way to the children.
const WAY_OUT_CHILDREN: &str = "needs a kernel with CONFIG_PROC_CHILDREN (Linux 4.2 or newer)";

/// Watches the main process of one service.
#[derive(Debug)]
pub struct ProcessWatch {
    subject: SubjectKey,
    root: HostRoot,
    rules: ProcessRules,
    unit: Option<(String, Units)>,
    judge: ProcessJudge,
    watched: Option<ExitWatch>,
    slow: Option<Slow>,
    soon: Soon,
    /// The process whose end was seen.
    ended: Option<ProcessId>,
    /// From when on the service did not answer, and when that was seen last.
    silent: Option<(u64, u64)>,
    /// It was seen to be stopped, and is looked at again before that is told.
    may_be_stopped: bool,
    /// Its version, where it can be read.
    kernel: Option<(u32, u32)>,
}

/// What is read once a minute.
#[derive(Debug)]
struct Slow {
    process: ProcessId,
    at_ms: u64,
    /// When `status` was read: sooner again where its process may be stopped.
    status_ms: u64,
    status: Status,
    limits: Limits,
    oom_score_adj: Option<i64>,
    room: Option<Room>,
}

impl ProcessWatch {
    /// Of a service with a pid file, a unit, or both; `unit` is asked how a process ended.
    pub fn new(service: ServiceName, root: HostRoot, rules: ProcessRules, unit: Option<(String, Units)>) -> Self {
        let release = std::fs::read_to_string(root.path("/proc/sys/kernel/osrelease")).unwrap_or_default();
        let subject = SubjectKey::new(service, ProbeKind::Process, "main process");
        let kernel = kernel_version(&release);
        let (judge, soon) = (ProcessJudge::default().of(subject.service.as_str()), Soon::default());
        let (watched, slow, ended, silent) = (None, None, None, None);
        Self { subject, root, rules, unit, judge, watched, slow, soon, ended, silent, may_be_stopped: false, kernel }
    }

    fn life(&mut self, instance: &Instance, start_ms: u64, context: &Context) -> Life {
        let process = instance.process;
        if self.watched.as_ref().map(ExitWatch::process) != Some(process) {
            self.watched = ExitWatch::open(&self.root, process);
        }
        if self.watched.is_none() {
            match process::read(&self.root, process.pid) {
                ProcessReading::Alive(facts) if facts.process == process => {}
                ProcessReading::Zombie(facts) if facts.process == process => return Life::Zombie(Exit::Pending),
                ProcessReading::Hidden(why) => return Life::Hidden(why),
                _ => return Life::Gone(self.told_by_unit(process, start_ms).unwrap_or_else(unwatched)),
            }
        }
        let usage = self.usage(instance, context);
        match &mut self.watched {
            // Asked last: what was read until now was of this process, if it still lives.
            Some(watched) if watched.has_ended() => {
                let exit = match watched.wait_for_reaping(REAPING_WAIT) {
                    Exit::Unknown(_) => None,
                    exit => Some(exit.clone()),
                };
                let (zombie, own) = (watched.is_zombie(), watched.exit().clone());
                let exit = exit.or_else(|| self.told_by_unit(process, start_ms)).unwrap_or(own);
                if zombie { Life::Zombie(exit) } else { Life::Gone(exit) }
            }
            _ => Life::Alive(Box::new(usage)),
        }
    }

    /// systemd reaped it and remembers how it ended, on kernels that do not.
    fn told_by_unit(&self, process: ProcessId, start_ms: u64) -> Option<Exit> {
        let (unit, units) = self.unit.as_ref()?;
        units.told(unit, process, start_ms)
    }

    fn usage(&mut self, instance: &Instance, context: &Context) -> Usage {
        let folder = self.root.path(format!("/proc/{}", instance.process.pid));
        let now_ms = context.now.boottime_ms;
        let fresh = |slow: &&Slow| slow.process == instance.process && now_ms.saturating_sub(slow.at_ms) < SLOW_MS;
        let mut children = None;
        // Of `status`, memory alone is news within a minute, and `statm` has it for a quarter of the work; but whether it
        // runs is asked as soon as the service is silent, and for as long as it does not.
        let silent = |since_ms: u64| self.silent.is_some_and(|(_, last_ms)| last_ms > since_ms);
        let doubted = |slow: &Slow| slow.status.halted().is_some() || silent(slow.status_ms);
        let known = self.slow.as_ref().filter(fresh);
        let usual = known.filter(|slow| !doubted(slow)).map(|slow| slow.status);
        let now = usual.and_then(|usual| usual.with_memory(&read(&folder.join("statm")).ok()?, procfs::page_size()));
        let is_slow_due = known.is_none();
        let status = now.unwrap_or_else(|| status(&folder, context.one_shot));
        if let Some(slow) = self.slow.as_mut().filter(|_| usual.is_none() && !is_slow_due) {
            (slow.status, slow.status_ms) = (status, now_ms);
        }
        if is_slow_due {
            let limits = read(&folder.join("limits")).map(|text| proc_text::limits(&text)).unwrap_or_default();
            self.slow = Some(Slow {
                process: instance.process,
                at_ms: now_ms,
                status_ms: now_ms,
                status,
                limits,
                oom_score_adj: read(&folder.join("oom_score_adj")).ok().and_then(|text| text.trim().parse().ok()),
                room: room(&self.root, instance, &status, &limits),
            });
            children = Some(look_at_children(&self.root, instance.process.pid));
        }
        let (limits, oom_score_adj, room) = self
            .slow
            .as_ref()
            .map_or_else(Default::default, |slow| (slow.limits, slow.oom_score_adj, slow.room.clone()));
        Usage { status, limits, open_files: self.open_files(&folder), children, oom_score_adj, room }
    }

    /// systemd's word on the end, and the successor, come a moment later. A zombie that stays is looked at as usual.
    fn look_again(&mut self, instance: &Instance, life: &Life, judgement: &Judgement, context: &Context) {
        let down = matches!(life, Life::Gone(_) | Life::Zombie(_)).then_some(instance.process);
        let stays = judgement.problems.iter().any(|problem| problem.reason == Reason::ProcessZombie);
        let new = self.rules.tells_end && down.is_some() && down != self.ended;
        self.ended = down;
        self.soon.looked(context.now.boottime_ms, new, judgement.verdict() == Verdict::Ok);
        if stays {
            self.soon = Soon::default();
        }
    }

    /// A service that was silent before its process was seen to be stopped was silent because of that.
    fn note_stop(&mut self, life: &Life, judgement: &mut Judgement) {
        let told = judgement.problems.iter_mut().find(|problem| problem.reason == Reason::ProcessStopped);
        self.may_be_stopped = told.is_none() && matches!(life, Life::Alive(usage) if usage.status.halted().is_some());
        if let (Some(problem), Some((first_ms, _))) = (told, self.silent) {
            problem.observed_boottime_ms = Some(first_ms);
        }
    }

    fn say_what_the_kernel_lacks(&self, judgement: &mut Judgement) {
        let before = |version| self.kernel.is_some_and(|kernel| kernel < version);
        let mut say = |key, text: &str| judgement.seen.insert(key, Value::Text(text.to_owned()));
        // Distributions bring pidfds to older kernels: having one counts for more than the version.
        if self.watched.is_none() && before(HAS_PIDFDS) {
            say("exit_watch", "its end is seen at the next look, not at once: a pidfd needs Linux 5.3");
        }
        if before(TELLS_EXITS) {
            let text = if self.unit.is_some() {
                "how it ends is told by systemd; Linux 6.15 tells by itself"
            } else {
                "how it ends is told by nobody; name its `unit`, so that systemd tells, or run Linux 6.15"
            };
            say("exit_status_unknown", text);
        }
    }

    fn open_files(&self, folder: &Path) -> Result<u64, Blind> {
        let folder = folder.join("fd");
        let blind = |error: std::io::Error| Blind {
            why: format!("its open files cannot be counted: {error}"),
            way_out: WAY_OUT_FILES,
        };
        let counted = std::fs::metadata(&folder).map_err(blind)?.len();
        if counted > 0 || self.kernel.is_some_and(|version| version >= COUNTS_DESCRIPTORS) {
            return Ok(counted);
        }
        let entries = std::fs::read_dir(&folder).map_err(blind)?;
        Ok(entries.take(DESCRIPTORS_MAX).count() as u64)
    }
}

impl Probe for ProcessWatch {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let newest = {
            let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
            self.silent = services.silent(&self.subject.service);
            services.newest(&self.subject.service).cloned()
        };
        // A oneshot comes and goes.
        let oneshot =
            self.unit.as_ref().and_then(|(unit, units)| units.state(unit)).is_some_and(|unit| unit.is_oneshot());
        let Some(instance) = newest else {
            self.watched = None;
            let between_runs = Evidence::new().text(PROCESS_KEY, "none now: its unit is a oneshot");
            return if oneshot { Judgement::ok(between_runs) } else { Judgement::no_process() };
        };
        let hz = procfs::ticks_per_second().max(1);
        let start_ms = instance.process.start_ticks.saturating_mul(1000) / hz;
        let life = self.life(&instance, start_ms, context);
        let rules = ProcessRules { tells_end: self.rules.tells_end && !oneshot, ..self.rules };
        let mut judgement = self.judge.judge(&rules, &instance, start_ms, &life, context.now, context.one_shot);
        self.look_again(&instance, &life, &judgement, context);
        self.note_stop(&life, &mut judgement);
        if context.one_shot && matches!(life, Life::Alive(_)) {
            self.say_what_the_kernel_lacks(&mut judgement);
        }
        judgement
    }

    fn again_in(&self) -> Option<Duration> {
        self.soon.again_in().or_else(|| self.may_be_stopped.then_some(STOPPED_MIN))
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        self.watched.as_ref().and_then(ExitWatch::wake)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.root), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, judge)) = saved.read::<(BootId, ProcessJudge)>() else { return };
        // After a reboot every pid is another process.
        if !boot.0.is_nil() && boot == boot_id(&self.root) {
            self.judge = judge.of(self.subject.service.as_str());
        }
    }
}

/// What `/proc/PID/status` says. Who looks once looks twice at a process that seems to be stopped.
fn status(folder: &Path, one_shot: bool) -> Status {
    let look = || read(&folder.join("status")).map(|text| proc_text::status(&text)).unwrap_or_default();
    let first = look();
    if !one_shot || first.halted().is_none() {
        return first;
    }
    std::thread::sleep(SECOND_LOOK);
    let second = look();
    let stays = first.halted() == second.halted() && first.switches() == second.switches();
    Status { state: second.state.filter(|_| stays), ..second }
}

fn unwatched() -> Exit {
    let why = "it ended while the agent did not watch it: a restart of the agent loses the codes of that time";
    Exit::Unknown(why.to_owned())
}

/// The nearest bound: a limit of its cgroup or of one above, its own address space, the host.
fn room(root: &HostRoot, instance: &Instance, status: &Status, limits: &Limits) -> Option<Room> {
    let host = read(&root.path("/proc/meminfo")).ok().and_then(|text| memory::parse(&text).ok());
    let host_bytes = host.map_or(u64::MAX, |host| host.total_bytes);
    let host = host.map(|host| Room {
        name: "the host's memory".to_owned(),
        limit_bytes: host.total_bytes,
        left_bytes: host.available_bytes,
    });
    let cgroup = instance.cgroup.as_ref().and_then(|cgroup| MemoryCgroup::find(root, cgroup).ok());
    let levels = cgroup.map(|cgroup| cgroup.limited(host_bytes)).unwrap_or_default();
    let cgroups = levels.iter().filter_map(|level| level.read()?.room());
    let space = limits.address_space_bytes.zip(status.virtual_bytes).map(|(limit, used)| Room {
        name: "its limit of address space".to_owned(),
        limit_bytes: limit,
        left_bytes: limit.saturating_sub(used),
    });
    cgroups.chain(host).chain(space).min_by_key(|room| room.left_bytes)
}

/// The children of all its threads, and which of them are zombies.
fn look_at_children(root: &HostRoot, pid: u32) -> Result<Children, Blind> {
    let blind = |why: String| Blind { why, way_out: WAY_OUT_CHILDREN };
    let tasks = std::fs::read_dir(root.path(format!("/proc/{pid}/task")))
        .map_err(|error| blind(format!("its threads cannot be listed: {error}")))?;
    let tasks: Vec<PathBuf> = tasks.take(THREADS_MAX).filter_map(|task| Some(task.ok()?.path())).collect();
    let mut pids: Vec<u32> = Vec::new();
    for task in &tasks {
        match read_small_text(task.join("children"), TEXT_BYTES_MAX) {
            Ok(text) => pids.extend(proc_text::children(&text).take(CHILDREN_MAX)),
            // A thread that has just ended is gone with its folder.
            Err(error) if error.kind() == ErrorKind::NotFound && task.exists() => {
                return Err(blind("this kernel does not tell the children of a process".to_owned()));
            }
            Err(_) => {}
        }
    }
    let mut children = Children {
        count: pids.len() as u64,
        zombies: Vec::new(),
        zombie_count: 0,
        cut: tasks.len() == THREADS_MAX || pids.len() > CHILDREN_MAX,
    };
    for child in pids.into_iter().take(CHILDREN_MAX) {
        let Some(stat) = read(&root.path(format!("/proc/{child}/stat"))).ok().and_then(|text| proc_text::stat(&text))
        else {
            continue;
        };
        if stat.state == 'Z' {
            children.zombie_count += 1;
            if children.zombies.len() < ZOMBIES_MAX {
                children.zombies.push((stat.process, stat.comm));
            }
        }
    }
    Ok(children)
}

/// `6.18.44-fc` is (6, 18).
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn read(path: &Path) -> std::io::Result<String> {
    read_piece_text(path, TEXT_BYTES_MAX)
}
