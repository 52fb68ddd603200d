//! The process watch against real processes: ends, open files, zombies, and what a living one tells.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::process_watch::ProcessWatch;
use muster_agent::senses::{HostRoot, process};
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::process::growth::GrowthRules;
use muster_agent_core::process::watch::ProcessRules;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::Value;
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const RULES: ProcessRules = ProcessRules {
    open_files_percent: 90,
    memory_growth: GrowthRules { window: Duration::from_secs(6 * 3600), by_at_least: 64 << 20, by_percent: 10 },
    zombie_children: 3,
    tells_end: true,
};

struct Stage {
    services: Arc<Mutex<Services>>,
    probe: ProcessWatch,
    now: Now,
}

fn service() -> ServiceName {
    ServiceName::new("svc").unwrap()
}

impl Stage {
    fn new(rules: ProcessRules) -> Self {
        let probe = ProcessWatch::new(service(), HostRoot::default(), rules, None);
        Self { services: Arc::default(), probe, now: clock::now() }
    }

    fn note(&self, process: ProcessId) {
        let instance = Instance {
            process,
            comm: "sh".into(),
            exe: None,
            cgroup: Some("/".into()),
            first_seen_boottime_ms: self.now.boottime_ms,
            ended_boottime_ms: None,
        };
        self.services.lock().unwrap().note(&service(), instance);
    }

    /// One run, `later` after the one before.
    fn run(&mut self, later: Duration, one_shot: bool) -> Judgement {
        self.now.boottime_ms += u64::try_from(later.as_millis()).unwrap();
        let context = Context { now: self.now, services: Arc::clone(&self.services), one_shot };
        self.probe.run(&context)
    }
}

/// A shell that does `setup`, says so, waits for a line and does `what`.
struct Shell(Child);

impl Shell {
    fn start(setup: &str, what: &str) -> Self {
        let script = format!("{setup}; echo ready; read go; {what}");
        let mut child = Command::new("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn id(&self) -> ProcessId {
        process::id(&HostRoot::default(), self.0.id()).unwrap()
    }

    fn go(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            self.0.wait().unwrap();
        }
    }
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

fn rings(probe: &ProcessWatch, bound_s: i64) -> bool {
    let Some(fd) = probe.wake() else { return false };
    let bound = Timespec { tv_sec: bound_s, tv_nsec: 0 };
    poll(&mut [PollFd::new(&*fd, PollFlags::IN)], Some(&bound)) == Ok(1)
}

#[test]
fn without_a_process_nothing_is_said_to_be_well() {
    let mut stage = Stage::new(RULES);
    for one_shot in [false, true] {
        let judgement = stage.run(Duration::ZERO, one_shot);
        let unknown = judgement.unknown.unwrap();
        assert_eq!(unknown.why, "no running process of the service is known");
        assert!(unknown.told_elsewhere, "its pid file or its unit tells why");
    }
    let shell = Shell::start("true", "true");
    stage.note(shell.id());
    assert_eq!(stage.run(Duration::ZERO, false).verdict(), Verdict::Ok);
}

#[test]
fn a_living_process_tells_what_it_uses() {
    let shell = Shell::start("exec 7</dev/null", "true");
    let mut stage = Stage::new(RULES);
    stage.note(shell.id());
    let judgement = stage.run(Duration::ZERO, true);
    assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
    let count = |key: &str| match judgement.seen.get(key) {
        Some(Value::Count(count) | Value::Bytes(count) | Value::Millis(count)) => *count,
        other => panic!("{key}: {other:?} in {:?}", judgement.seen),
    };
    let listed = std::fs::read_dir(format!("/proc/{}/fd", shell.id().pid)).unwrap().count() as u64;
    assert_eq!(count("open_files"), listed);
    assert!(count("rss_bytes") > 0 && count("threads") == 1);
    assert_eq!(count("pid"), u64::from(shell.id().pid));
    assert!(judgement.seen.get("oom_score_adj").is_some() && judgement.seen.get("memory_limit").is_some());
    assert!(judgement.seen.get("voluntary_switches").is_some());
    assert!(judgement.seen.get("uptime_ms").is_some() && judgement.seen.get("open_files_limit").is_some());
}

#[test]
fn ends_are_told_at_once_with_their_code_by_who_owns_them() {
    for (what, told) in [
        ("exit 3", Some("exit code 3")),
        ("kill -9 $$", Some("SIGKILL")),
        ("kill -11 $$", Some("SIGSEGV")),
        // In order: whether it should run is for its unit to judge.
        ("exit 0", None),
        ("kill -15 $$", None),
    ] {
        let mut shell = Shell::start("true", what);
        let mut stage = Stage::new(RULES);
        stage.note(shell.id());
        assert_eq!(stage.run(Duration::ZERO, false).verdict(), Verdict::Ok);
        assert!(!rings(&stage.probe, 0));
        shell.go();
        assert!(rings(&stage.probe, 60), "its end wakes");
        // A zombie is down already; its parent, this test, has not reaped it.
        let zombie = stage.run(Duration::ZERO, false);
        assert_eq!(reasons(&zombie), [Reason::ProcessDown], "{what}");
        assert_eq!(reasons(&stage.run(Duration::from_secs(10), false)), [Reason::ProcessDown, Reason::ProcessZombie]);
        let tells_exits = stage.probe.wake().is_some();
        shell.0.wait().unwrap();
        if !tells_exits {
            println!("skipped: this kernel does not tell a stranger how a process ended");
            return;
        }
        assert!(rings(&stage.probe, 60), "the reaping wakes");
        let gone = stage.run(Duration::ZERO, false);
        match told {
            Some(status) => {
                assert_eq!(reasons(&gone), [Reason::ProcessDown], "{what}");
                assert_eq!(gone.problems[0].evidence.get("exit_status"), Some(&Value::Text(status.into())), "{what}");
            }
            None => assert_eq!(gone.verdict(), Verdict::Ok, "{what}: {gone:?}"),
        }
        assert!(stage.probe.wake().is_none());
        // Where a pid file is, its probe tells; a restarted agent knows the end, and the code it was told.
        let mut resumed = Stage::new(RULES);
        resumed.note(process_of(&gone));
        resumed.probe.restore(stage.probe.save().unwrap());
        let again = resumed.run(Duration::ZERO, false);
        assert_eq!(reasons(&again), reasons(&gone), "{what}");
        let mut other = Stage::new(ProcessRules { tells_end: false, ..RULES });
        other.note(process_of(&gone));
        assert_eq!(other.run(Duration::ZERO, false).verdict(), Verdict::Ok);
    }
}

fn process_of(judgement: &Judgement) -> ProcessId {
    let evidence = judgement.problems.first().map_or(&judgement.seen, |problem| &problem.evidence);
    let count = |key| match evidence.get(key) {
        Some(Value::Count(count)) => *count,
        other => panic!("{key}: {other:?}"),
    };
    ProcessId { pid: u32::try_from(count("pid")).unwrap(), start_ticks: count("start_ticks") }
}

#[test]
fn an_end_while_the_agent_was_away_says_so() {
    let mut shell = Shell::start("true", "exit 5");
    let id = shell.id();
    shell.go();
    shell.0.wait().unwrap();
    let mut stage = Stage::new(RULES);
    stage.note(id);
    let judgement = stage.run(Duration::ZERO, false);
    assert_eq!(reasons(&judgement), [Reason::ProcessDown]);
    let why = judgement.problems[0].evidence.get("exit_unknown_why").unwrap().to_string();
    assert!(why.contains("restart of the agent"), "{why}");
}

#[test]
fn a_process_at_its_limit_of_open_files_is_told_and_one_that_closes_them_clears() {
    // Few enough are left that it does not matter how many the shell inherited.
    let open = "ulimit -Sn 128; for i in $(seq 10 125); do eval \"exec $i</dev/null\"; done";
    let close = "for i in $(seq 10 125); do eval \"exec $i<&-\"; done; mkfifo $0.x 2>/dev/null; kill -STOP $$";
    let mut shell = Shell::start(open, close);
    let mut stage = Stage::new(RULES);
    stage.note(shell.id());
    let judgement = stage.run(Duration::ZERO, false);
    assert_eq!(reasons(&judgement), [Reason::FdExhaustion], "{judgement:?}");
    let summary = &judgement.problems[0].summary;
    assert!(summary.contains(" of 128 files open (9"), "{summary}");
    shell.go();
    // Until the shell has stopped, all files closed.
    let stat = format!("/proc/{}/stat", shell.id().pid);
    let stopped = |_: &u32| std::fs::read_to_string(&stat).unwrap().contains(") T ");
    let pause = || std::thread::sleep(Duration::from_millis(20));
    assert!((0..3000).inspect(|_| pause()).any(|turn| stopped(&turn)), "the shell never closed its files");
    assert_eq!(stage.run(Duration::from_secs(10), false).verdict(), Verdict::Ok);
}

#[test]
fn children_that_are_not_reaped_are_told_after_a_minute() {
    // The shell becomes `sleep`, which knows nothing of the children it inherits.
    let folder = tempfile::tempdir().unwrap();
    // They outlive the shell: it would reap those that end before it becomes another program.
    let script = "for i in 1 2 3 4; do sleep 1 & done; exec sleep 600";
    let child =
        Command::new("bash").args(["-c", script]).current_dir(folder.path()).stdin(Stdio::null()).spawn().unwrap();
    let child = Shell(child);
    let path = format!("/proc/{}/task/{}/children", child.0.id(), child.0.id());
    if !std::path::Path::new(&path).exists() {
        println!("skipped: this kernel does not tell the children of a process");
        return;
    }
    let zombies = || {
        let children = std::fs::read_to_string(&path).unwrap();
        let is_zombie =
            |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        children.split_whitespace().filter(is_zombie).count()
    };
    let pause = || std::thread::sleep(Duration::from_millis(20));
    let comm = || std::fs::read_to_string(format!("/proc/{}/comm", child.0.id())).unwrap();
    assert!((0..3000).inspect(|_| pause()).any(|_| zombies() >= 3 && comm() == "sleep\n"), "no zombies came about");
    let mut stage = Stage::new(RULES);
    stage.note(child.id());
    assert_eq!(stage.run(Duration::ZERO, false).verdict(), Verdict::Ok, "they may still be reaped");
    assert_eq!(stage.run(Duration::from_secs(10), false).verdict(), Verdict::Ok, "not looked at again yet");
    let judgement = stage.run(Duration::from_secs(60), false);
    assert_eq!(reasons(&judgement), [Reason::ZombieChildren], "{judgement:?}");
    let evidence = &judgement.problems[0].evidence;
    assert!(matches!(evidence.get("zombie_children"), Some(Value::Count(3..=4))), "{evidence:?}");
    assert!(evidence.get("oldest_zombie_pid").is_some());
    // doctor looks once.
    let mut doctor = Stage::new(RULES);
    doctor.note(child.id());
    assert_eq!(reasons(&doctor.run(Duration::ZERO, true)), [Reason::ZombieChildren]);
}

const GROWS: &str = "MUSTER_TEST_GROWS";

/// Does nothing unless a parent told it to: takes a MiB of memory for each line of its input, and keeps it.
#[test]
fn child_that_grows() {
    if std::env::var_os(GROWS).is_none() {
        return;
    }
    let mut kept: Vec<Vec<u8>> = Vec::new();
    println!("\nready");
    for line in std::io::stdin().lines() {
        line.unwrap();
        // Not zeros: those the kernel gives only when they are written to.
        kept.push(vec![7; 1 << 20]);
        println!("\nhas {}", kept.len());
    }
}

/// Memory that is really taken, of a process with a real limit; only the clock of the readings is quicker.
#[test]
fn a_process_that_really_grows_is_told_with_its_slope_and_the_time_to_its_limit() {
    const STEP: Duration = Duration::from_secs(600);
    let grow = "ulimit -v 1000000; exec \"$0\" --exact child_that_grows --nocapture --test-threads=1";
    let mut command = Command::new("bash");
    command.args(["-c", grow]).arg(std::env::current_exe().unwrap()).env(GROWS, "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut lines = stdout.lines().map_while(Result::ok);
    let child = Shell(child);
    assert!(lines.any(|line| line == "ready"));
    let memory_growth = GrowthRules { by_at_least: 16 << 20, ..RULES.memory_growth };
    let mut stage = Stage::new(ProcessRules { memory_growth, ..RULES });
    stage.note(child.id());
    for _ in 0..60 {
        assert_eq!(reasons(&stage.run(STEP, false)), [], "it holds what it holds");
    }
    let mut told = None;
    for taken in 1..=60 {
        writeln!(stdin, "more").unwrap();
        assert!(lines.any(|line| line == format!("has {taken}")));
        told = stage.run(STEP, false).problems.pop().or(told);
    }
    let told = told.expect("its growth is told");
    assert_eq!(told.reason, Reason::MemoryGrowth);
    let number = |key: &str| match told.evidence.get(key) {
        Some(Value::Bytes(number) | Value::Millis(number)) => *number,
        other => panic!("{key}: {other:?} in {told:?}"),
    };
    // A MiB each ten minutes.
    let per_hour = number("growth_per_hour_bytes");
    assert!((5 << 20..=7 << 20).contains(&per_hour), "{told:?}");
    // What is left below the limit, by the kernel's own account, at that slope.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().pid)).unwrap();
    let size = muster_agent_core::process::proc_text::status(&status).virtual_bytes.unwrap();
    let left = (1_000_000 << 10) - size;
    let expected_ms = left / (per_hour / 3_600) * 1_000;
    assert_eq!(told.evidence.get("memory_limit"), Some(&Value::Text("its limit of address space".into())), "{told:?}");
    let full_ms = number("full_in_ms");
    assert!((expected_ms / 10 * 9..=expected_ms / 10 * 11).contains(&full_ms), "{full_ms} {expected_ms}: {told:?}");
    assert!(told.summary.contains("; at this rate it reaches its limit of address space"), "{}", told.summary);
    // It takes no more: that is told as over before a window is.
    let over = (0..60).any(|_| stage.run(STEP, false).verdict() == Verdict::Ok);
    assert!(over, "it holds what it holds again");
}

fn signal(shell: &Shell, name: &str, state: char) {
    let pid = shell.0.id();
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
    // Until the signal has arrived, for ten seconds at most.
    let is_there = |_: &u32| {
        std::thread::sleep(Duration::from_millis(10));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        muster_agent_core::process::proc_text::stat(&stat).unwrap().state == state
    };
    assert!((0..1_000).any(|look| is_there(&look)), "{name}");
}

#[test]
fn a_stopped_process_is_told_once_it_holds() {
    let five = Duration::from_secs(5);
    let shell = Shell::start("true", "true");
    let mut stage = Stage::new(RULES);
    stage.note(shell.id());
    assert_eq!(stage.run(Duration::ZERO, false).verdict(), Verdict::Ok);
    signal(&shell, "-STOP", 'T');
    // Nobody misses it, so that nobody looks before the minute is over.
    assert_eq!(reasons(&stage.run(five, false)), []);
    let silent_ms = stage.now.boottime_ms;
    stage.services.lock().unwrap().note_silent(&service(), silent_ms + 1);
    assert_eq!(
        (reasons(&stage.run(five, false)), stage.probe.again_in()),
        (vec![], Some(five)),
        "one look is a moment"
    );
    let judgement = stage.run(five, false);
    assert_eq!((reasons(&judgement), stage.probe.again_in()), (vec![Reason::ProcessStopped], None), "{judgement:?}");
    let stopped = &judgement.problems[0];
    assert_eq!(stopped.observed_boottime_ms, Some(silent_ms + 1));
    assert_eq!(stopped.evidence.get("process_state"), Some(&Value::Text("stopped (T)".into())));
    assert!(stopped.next_steps[1].contains(&format!("kill -CONT {}", shell.0.id())), "{stopped:?}");
    // A diagnosis that looks once; an agent that is started now, and sees it without being told.
    let mut doctor = Stage::new(RULES);
    doctor.note(shell.id());
    assert_eq!(reasons(&doctor.run(Duration::ZERO, true)), [Reason::ProcessStopped]);
    let mut later = Stage::new(RULES);
    later.note(shell.id());
    assert_eq!(reasons(&later.run(Duration::ZERO, false)), []);
    assert_eq!(reasons(&later.run(five, false)), [Reason::ProcessStopped]);
    signal(&shell, "-CONT", 'S');
    assert_eq!(stage.run(five, false).verdict(), Verdict::Ok);
    assert_eq!(stage.run(five, false).verdict(), Verdict::Ok);
}
