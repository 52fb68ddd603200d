//! Reads the kernel log for OOM kills and checks their number against the kernel's own count.
//!
//! Must never believe a line of user space, and never join a pid of the log to a process of another pid namespace.

use super::small::{read_until, text};
use super::{HostRoot, process};
use crate::clock;
use crate::probe::{Context, Probe, Remembered};
use muster_agent_core::judgement::{Judgement, Problem, Unknown};
use muster_agent_core::kmsg::report::{Belonging, oom_kill, unexplained_kills, unnamed_kills};
use muster_agent_core::kmsg::{Balance, Cursor, Joiner, LogClock, Outcome, Seen, Unnamed, Victim, parse_record};
use muster_agent_core::pid_file::ProcessReading;
use muster_agent_core::services::Services;
use muster_common::evidence::Evidence;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ProcessId, ServiceName};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, major, minor, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Device number of `/dev/kmsg`.
const KMSG_DEVICE: (u32, u32) = (1, 11);
/// A buffer smaller than the record is refused; the kernel's records are at most 8 KiB.
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// Records read in one run: more than any ring holds in practice; the rest follows in the next run.
const RECORDS_PER_RUN_MAX: u32 = 500_000;
/// `/proc/vmstat` has some two hundred short lines.
const VMSTAT_BYTES_MAX: u64 = 64 * 1024;
/// What the very first run of an agent still reports: older kills are history, not news.
const LOOK_BACK_FIRST: Duration = Duration::from_secs(10 * 60);
/// What a one-shot diagnosis reports.
const LOOK_BACK_ONE_SHOT: Duration = Duration::from_secs(24 * 60 * 60);
/// The inode of the initial pid namespace, a constant of the kernel.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// The way to the log without privileges.
const WAY_OUT: &str =
    "run as root; the daemon needs StandardInput=file:/dev/kmsg, as the shipped unit has it, or CAP_SYSLOG";

/// Watches the kernel log.
#[derive(Debug)]
pub struct OomProbe {
    subject: SubjectKey,
    root: HostRoot,
    log: Option<Arc<OwnedFd>>,
    state: State,
    /// True when the last life of the agent left a state, of this boot or of another.
    resumed: bool,
    /// Everything that was in the log at the last run has been read.
    caught_up: bool,
    initial_namespace: bool,
    /// When the first process started: in a container long after the boot, and what the kernel killed before was another's.
    begin_boottime_ms: u64,
    /// In a container the cgroup of all that is in it, where that can be told: other containers' kills are the host's.
    tree: Option<String>,
    /// Kills that are others'.
    elsewhere: u64,
}

/// What survives a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    boot: Option<BootId>,
    cursor: Cursor,
    joiner: Joiner,
    balance: Balance,
    lost_records: u64,
    forged_lines: u64,
    kills: u64,
    #[serde(default)]
    clock: LogClock,
}

/// What one pass over the log brought.
#[derive(Debug, Default)]
struct Pass {
    first_sequence: Option<u64>,
    records: u64,
    lost: u64,
    error: Option<String>,
    /// When it was over.
    read_boottime_ms: u64,
}

impl OomProbe {
    /// Watches the kernel log of the host.
    pub fn new(root: HostRoot) -> Self {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Oom, "kernel log");
        let namespace = std::fs::read_link(root.path("/proc/self/ns/pid"));
        let initial_namespace = namespace.is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE);
        let state = State { boot: Some(clock::boot_id(&root)).filter(|boot| !boot.0.is_nil()), ..State::default() };
        let first = process::alive(&root, 1);
        let begin_boottime_ms = first.as_ref().map_or(0, |first| first.start_boottime_ms);
        let tree = first.and_then(|first| first.cgroup).filter(|_| !initial_namespace);
        let tree = tree.map(|tree| tree.trim_end_matches("/init.scope").to_owned()).filter(|tree| tree.len() > 1);
        let (log, resumed, caught_up, elsewhere) = (None, false, false, 0);
        Self { subject, root, log, state, resumed, caught_up, initial_namespace, begin_boottime_ms, tree, elsewhere }
    }

    /// Whether a cgroup is of another container, or of the host around this one.
    fn is_elsewhere(&self, cgroup: Option<&str>) -> bool {
        let Some((tree, cgroup)) = self.tree.as_deref().zip(cgroup) else { return false };
        !cgroup.strip_prefix(tree).is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }

    fn counted(&self) -> Option<u64> {
        let file = File::open(self.root.path("/proc/vmstat")).ok()?;
        // The rest of the list is nobody's question.
        let told = |read: &[u8]| oom_kills(&String::from_utf8_lossy(read)).is_some();
        oom_kills(&text(read_until(&file, VMSTAT_BYTES_MAX, told).ok()?))
    }

    /// Reads what is new. What is there at the first look may be old; what comes later is read as it comes.
    fn pass(&mut self, log: &OwnedFd) -> Pass {
        let mut pass = Pass::default();
        let mut buffer = vec![0u8; RECORD_BYTES_MAX];
        let (caught_up, suspended_ms) = (self.caught_up, clock::suspended_ms());
        for _ in 0..RECORDS_PER_RUN_MAX {
            let length = match read(log, buffer.as_mut_slice()) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(length) => length,
                // Overrun: the next read starts at the oldest record, and the jump of the sequence is the loss.
                Err(Errno::PIPE | Errno::INTR) => continue,
                Err(errno) => {
                    pass.error = Some(std::io::Error::from(errno).to_string());
                    break;
                }
            };
            let Some(line) = buffer.get(..length).and_then(parse_record) else { continue };
            let Some(sequence) = line.sequence else { continue };
            pass.first_sequence.get_or_insert(sequence);
            let Seen::New { lost } = self.state.cursor.see(sequence) else { continue };
            pass.lost = pass.lost.saturating_add(lost);
            pass.records += 1;
            if let Some(usec) = line.usec.filter(|_| caught_up) {
                self.state.clock.see(stamp_ms(usec, suspended_ms), clock::now().boottime_ms);
            }
            self.state.joiner.feed(&line);
        }
        self.caught_up = pass.error.is_none() && pass.records < u64::from(RECORDS_PER_RUN_MAX);
        pass.read_boottime_ms = clock::now().boottime_ms;
        self.state.lost_records = self.state.lost_records.saturating_add(pass.lost);
        pass
    }

    /// Kills the kernel counted without a line.
    fn unexplained(&mut self, first: bool, pass: &Pass, before: Option<u64>, lines: u64, one_shot: bool) -> u64 {
        let Some(counted) = before else { return 0 };
        if one_shot {
            // Only a log that still holds its first record tells of every kill since boot.
            let whole = pass.first_sequence == Some(0) && pass.lost == 0 && first;
            if whole {
                self.state.balance.start(0);
            }
            return self.state.balance.check(counted, lines, true);
        }
        if first && !self.state.balance.has_started() {
            // Read again, behind the log: what was killed meanwhile has its line in this pass.
            self.state.balance.start(self.counted().unwrap_or(counted));
            return 0;
        }
        self.state.balance.check(counted, lines, false)
    }

    fn report(&self, victim: &Victim, pass: &Pass, context: &Context) -> Problem {
        let observed = self.observed_boottime_ms(victim.usec, pass);
        let belonging = {
            let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
            self.belonging(victim, observed, &services)
        };
        let instance = belonging.as_ref().and_then(|belonging| belonging.instance.as_ref());
        let process = instance.map(|instance| instance.process).or_else(|| self.still_there(victim, observed));
        let mut problem = oom_kill(victim, process, belonging.as_ref());
        if !self.initial_namespace {
            let note =
                "the agent runs in another pid namespace: pids of the kernel log are not joined to its processes";
            problem.evidence = problem.evidence.text("pid_namespace", note);
        }
        problem.observed_boottime_ms = Some(observed);
        problem
    }

    fn belonging(&self, victim: &Victim, observed: u64, services: &Services) -> Option<Belonging> {
        // Pid 0 is nobody's: the cgroup alone decides then.
        let pid = if self.initial_namespace { victim.pid } else { 0 };
        let (service, instance, grade) = services.of_victim(pid, victim.cgroup.as_deref(), observed)?;
        Some(Belonging { service: service.clone(), instance: instance.cloned(), grade })
    }

    /// The victim's start time, while it is still dying or waits to be reaped.
    fn still_there(&self, victim: &Victim, observed: u64) -> Option<ProcessId> {
        if !self.initial_namespace {
            return None;
        }
        match process::read(&self.root, victim.pid) {
            ProcessReading::Alive(facts) | ProcessReading::Zombie(facts)
                if facts.comm == victim.comm && facts.start_boottime_ms <= observed =>
            {
                Some(facts.process)
            }
            _ => None,
        }
    }

    /// When the kernel wrote it. Its stamps leave out suspended time; all of that is taken as past, which is right for
    /// records since the last resume and late for older ones.
    fn observed_boottime_ms(&self, usec: Option<u64>, pass: &Pass) -> u64 {
        let written = usec.map(|usec| self.state.clock.written_boottime_ms(stamp_ms(usec, clock::suspended_ms())));
        written.map_or(pass.read_boottime_ms, |written| written.min(pass.read_boottime_ms))
    }

    fn judge(&mut self, outcome: &Outcome, since: Option<u64>, pass: &Pass, context: &Context) -> Judgement {
        let mut judgement = Judgement::default();
        let news = |usec| since.is_none_or(|since| self.observed_boottime_ms(usec, pass) >= since);
        let mut elsewhere = 0;
        for victim in outcome.victims.iter().filter(|victim| news(victim.usec)) {
            let problem = self.report(victim, pass, context);
            // A service that is watched here is nobody else's, wherever its cgroup is.
            if problem.service.is_none() && self.is_elsewhere(victim.cgroup.as_deref()) {
                elsewhere += 1;
            } else {
                judgement.occurrences.push(problem);
            }
        }
        let unnamed = outcome.unnamed.iter().filter(|unnamed| news(unnamed.usec));
        let (others, unnamed): (Vec<Unnamed>, Vec<Unnamed>) =
            unnamed.cloned().partition(|unnamed| self.is_elsewhere(Some(&unnamed.cgroup)));
        self.elsewhere = self.elsewhere.saturating_add(elsewhere).saturating_add(others.len() as u64);
        judgement.occurrences.extend(group_unnamed(&unnamed));
        judgement
    }
}

impl Probe for OomProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let first = self.state.cursor.last().is_none();
        let log = match self.log.clone().map_or_else(|| open_log(&self.root), Ok) {
            Ok(log) => log,
            Err(unknown) => return Judgement { unknown: Some(unknown), ..Judgement::default() },
        };
        self.log = Some(Arc::clone(&log));
        // Asked before the log: every kill in this number has its line in the pass, or on its way.
        let counted = self.counted();
        let pass = self.pass(&log);
        let outcome = self.state.joiner.take(context.one_shot);
        let unexplained = self.unexplained(first, &pass, counted, outcome.kill_lines, context.one_shot);
        let since = if context.one_shot {
            Some(LOOK_BACK_ONE_SHOT)
        } else {
            (first && !self.resumed).then_some(LOOK_BACK_FIRST)
        };
        let since = since.map(|back| context.now.boottime_ms.saturating_sub(ms(back)));
        // A command that looks once says how many there were.
        let begin = Some(self.begin_boottime_ms).filter(|_| !context.one_shot);
        let since = since.max(begin);
        let mut judgement = self.judge(&outcome, since, &pass, context);
        if unexplained > 0 {
            judgement.occurrences.push(unexplained_kills(unexplained, self.state.lost_records));
        }
        self.state.forged_lines = self.state.forged_lines.saturating_add(outcome.forged_lines);
        self.state.kills = self.state.kills.saturating_add(outcome.kill_lines);
        judgement.seen = Evidence::new()
            .count("records_read", pass.records)
            .count("lost_records", self.state.lost_records)
            .count("user_space_lines_not_believed", self.state.forged_lines)
            .count("kill_lines", self.state.kills);
        if self.tree.is_some() {
            judgement.seen = judgement.seen.count("kills_of_others", self.elsewhere);
        }
        judgement.seen = match counted {
            Some(counted) => judgement.seen.count("vmstat_oom_kill", counted),
            None => judgement.seen.text("vmstat_oom_kill", "not told by this kernel (before 4.13)"),
        };
        if let Some(why) = pass.error {
            // A broken descriptor is opened anew in the next run.
            self.log = None;
            let why = format!("the kernel log cannot be read: {why}");
            judgement.unknown = Some(Unknown::new(why, Some(WAY_OUT)));
        }
        judgement
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        self.log.clone()
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of(&self.state)
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok(state) = saved.read::<State>() else { return };
        self.resumed = true;
        // Of another boot only this much is of use: the agent was here before, so all of this boot's log is news.
        if state.boot.is_some() && state.boot == self.state.boot {
            self.state = state;
        } else {
            self.state.balance.start(0);
        }
    }
}

/// One problem per cgroup.
pub(super) fn group_unnamed(unnamed: &[Unnamed]) -> Vec<Problem> {
    let mut groups: Vec<(&Unnamed, u64)> = Vec::new();
    for kill in unnamed {
        match groups.iter_mut().find(|(known, _)| known.cgroup == kill.cgroup) {
            Some((_, kills)) => *kills += 1,
            None => groups.push((kill, 1)),
        }
    }
    groups.into_iter().map(|(kill, kills)| unnamed_kills(kill, kills)).collect()
}

/// The count in a piece of `/proc/vmstat`, once the piece holds the whole line.
fn oom_kills(vmstat: &str) -> Option<u64> {
    vmstat.split_inclusive('\n').find_map(|line| line.strip_prefix("oom_kill ")?.strip_suffix('\n')?.parse().ok())
}

/// The log's time of a record, with the time for which the host has slept.
const fn stamp_ms(usec: u64, suspended_ms: u64) -> u64 {
    (usec / 1000).saturating_add(suspended_ms)
}

fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the kernel's log tells this agent of kills. Asked rarely: it opens the log for the answer.
pub(super) fn log_is_open(root: &HostRoot) -> bool {
    open_log(root).is_ok()
}

/// The log handed over as standard input, else `/dev/kmsg` opened by the agent itself.
fn open_log(root: &HostRoot) -> Result<Arc<OwnedFd>, Unknown> {
    if root.is_real()
        && let Some(handed) = handed_over()
    {
        return Ok(Arc::new(handed));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let unknown = |why: String| Unknown::new(why, Some(WAY_OUT));
    let log = open(root.path("/dev/kmsg"), flags, Mode::empty())
        .map_err(|errno| unknown(format!("/dev/kmsg cannot be opened: {}", std::io::Error::from(errno))))?;
    if !is_kmsg(&log) {
        return Err(unknown("/dev/kmsg is not the kernel log's device".to_owned()));
    }
    Ok(Arc::new(log))
}

fn handed_over() -> Option<OwnedFd> {
    let stdin = std::io::stdin();
    let stdin = stdin.as_fd();
    if !is_kmsg(stdin) {
        return None;
    }
    let flags = fcntl_getfl(stdin).ok()?;
    if (flags & OFlags::RWMODE) == OFlags::WRONLY {
        return None;
    }
    fcntl_setfl(stdin, flags | OFlags::NONBLOCK).ok()?;
    // 3: above the standard three.
    fcntl_dupfd_cloexec(stdin, 3).ok()
}

pub(super) fn is_kmsg(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == KMSG_DEVICE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_agent_core::services::Instance;
    use std::fs::create_dir_all;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::Mutex;

    const WATCHED: &str = "/docker/other/svc.service";

    /// A host, or a container, whose first process started `begin_ticks` after the boot.
    fn probe(folder: &Path, namespace: &str, cgroup: &str, begin_ticks: u64) -> OomProbe {
        create_dir_all(folder.join("proc/self/ns")).unwrap();
        create_dir_all(folder.join("proc/1")).unwrap();
        symlink(namespace, folder.join("proc/self/ns/pid")).unwrap();
        std::fs::write(folder.join("proc/1/cgroup"), format!("0::{cgroup}\n")).unwrap();
        let stat = format!(
            "1 (init) S 0 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {begin_ticks} 1 1 18446744073709551615 1 1 0 0 0 0 0 0 0 \
             0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
        );
        std::fs::write(folder.join("proc/1/stat"), stat).unwrap();
        std::fs::write(folder.join("proc/1/status"), "Name:\tinit\n").unwrap();
        OomProbe::new(HostRoot(folder.to_path_buf()))
    }

    /// The pids that are told of, of kills in these cgroups, ten seconds after one another.
    fn told(probe: &mut OomProbe) -> Vec<String> {
        let mut joiner = Joiner::default();
        for (at, cgroup) in ["/docker/mine", "/docker/mine/a.scope", "/docker/other", WATCHED, "/"].iter().enumerate() {
            let (pid, sequence, usec) = (at + 1, at * 2, (at + 1) * 10_000_000);
            let summary = format!(
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={cgroup},\
                 task_memcg={cgroup},task=w,pid={pid},uid=0"
            );
            let killed = format!(
                "Memory cgroup out of memory: Killed process {pid} (w) total-vm:1kB, anon-rss:1kB, file-rss:0kB, \
                 shmem-rss:0kB, UID:0 pgtables:0kB oom_score_adj:0"
            );
            for (sequence, text) in [(sequence, summary), (sequence + 1, killed)] {
                joiner.feed(&parse_record(format!("6,{sequence},{usec},-;{text}\n").as_bytes()).unwrap());
            }
        }
        let outcome = joiner.take(true);
        assert_eq!(outcome.victims.len(), 5);
        let service = ServiceName::new("svc").unwrap();
        let mut services = Services::default();
        let instance = Instance {
            process: ProcessId { pid: 900, start_ticks: 1 },
            comm: "w".into(),
            exe: None,
            cgroup: Some(WATCHED.into()),
            first_seen_boottime_ms: 1,
            ended_boottime_ms: None,
        };
        services.note(&service, instance);
        let context = Context { now: clock::now(), services: Arc::new(Mutex::new(services)), one_shot: false };
        let pass = Pass { read_boottime_ms: 100_000, ..Pass::default() };
        let since = Some(probe.begin_boottime_ms);
        let judgement = probe.judge(&outcome, since, &pass, &context);
        let pid = |problem: &Problem| problem.evidence.get("pid").map(ToString::to_string);
        judgement.occurrences.iter().filter_map(pid).collect()
    }

    #[test]
    fn a_count_that_is_cut_is_no_count() {
        for (vmstat, expected) in [
            ("nr_free_pages 1\noom_kill 217\nx 1\n", Some(217)),
            ("oom_kill 217\n", Some(217)),
            ("nr_free_pages 1\noom_kill 21", None),
            ("drop_oom_kill 3\n", None),
            ("", None),
        ] {
            assert_eq!(oom_kills(vmstat), expected, "{vmstat:?}");
        }
    }

    #[test]
    fn in_a_container_the_kills_of_others_and_of_before_are_the_host_s() {
        let own = "pid:[4026532000]";
        for (namespace, cgroup, begin_ticks, expected, elsewhere) in [
            (INITIAL_PID_NAMESPACE, "/init.scope", 1, vec!["1", "2", "3", "4", "5"], 0),
            // An agent of the host that a container holds.
            (INITIAL_PID_NAMESPACE, "/docker/mine", 1, vec!["1", "2", "3", "4", "5"], 0),
            (own, "/docker/mine", 1, vec!["1", "2", "4"], 2),
            (own, "/docker/mine/init.scope", 1, vec!["1", "2", "4"], 2),
            // It is not told where it is: then nobody's kill is left out.
            (own, "/", 1, vec!["1", "2", "3", "4", "5"], 0),
            (own, "/docker/mine", 1_500, vec!["2", "4"], 2),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut probe = probe(folder.path(), namespace, cgroup, begin_ticks);
            assert_eq!(
                (told(&mut probe), probe.elsewhere),
                (expected.iter().map(|pid| pid.to_string()).collect(), elsewhere),
                "{namespace} {cgroup}"
            );
        }
    }
}
