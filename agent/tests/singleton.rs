//! A service that may run once, against real processes: alone, twice, with a tool of the same program, with children.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::singleton::SingletonProbe;
use muster_agent::senses::{HostRoot, process};
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::{Grade, Value};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn spl() -> ServiceName {
    ServiceName::new("spl").unwrap()
}

struct Program {
    folder: tempfile::TempDir,
    name: String,
}

impl Program {
    /// A program that no other test runs.
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_program("/bin/sleep", &folder.path().join(name));
        Self { folder, name: name.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    /// Gives it when its name and arguments are its own: the kernel lets the parent go on a moment before.
    fn start(&self, argument: &str) -> Running {
        let running = Running(Command::new(self.path()).arg(argument).spawn().unwrap());
        let arguments = format!("/proc/{}/cmdline", running.0.id());
        let own = format!("{}\0{argument}\0", self.path().display());
        let end = Instant::now() + Duration::from_secs(60);
        while std::fs::read_to_string(&arguments).unwrap() != own {
            assert!(Instant::now() < end, "{} does not begin", self.name);
            std::thread::yield_now();
        }
        running
    }
}

struct Running(Child);

impl Running {
    fn id(&self) -> ProcessId {
        process::id(&HostRoot::default(), self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Stage {
    services: Arc<Mutex<Services>>,
    probe: SingletonProbe,
}

impl Stage {
    fn new() -> Self {
        Self { services: Arc::default(), probe: SingletonProbe::new(spl(), HostRoot::default()) }
    }

    fn note(&self, process: ProcessId, ended_boottime_ms: Option<u64>) {
        let instance = Instance {
            process,
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: clock::now().boottime_ms,
            ended_boottime_ms,
        };
        self.services.lock().unwrap().note(&spl(), instance);
    }

    /// Two minutes from now: what runs has lasted then.
    fn run(&mut self) -> Judgement {
        let mut now = clock::now();
        now.boottime_ms += 120_000;
        let context = Context { now, services: Arc::clone(&self.services), one_shot: false };
        self.probe.run(&context)
    }
}

#[test]
fn the_same_program_with_the_same_arguments_is_a_second_one() {
    let program = Program::new("mstr-twice");
    let mut stage = Stage::new();
    let main = program.start("601");
    stage.note(main.id(), None);
    let alone = stage.run();
    assert_eq!(alone.verdict(), Verdict::Ok, "{alone:?}");
    assert_eq!(alone.occurrences[0].evidence.get("new"), Some(&Value::Text("running".into())));
    let tool = program.start("602");
    assert_eq!(stage.run().verdict(), Verdict::Ok, "a tool of the same program");
    let second = program.start("601");
    let judgement = stage.run();
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    assert_eq!((problem.reason, problem.grade), (Reason::DuplicateInstance, Grade::Likely));
    assert!(problem.summary.contains(&format!("pid {}", second.id().pid)), "{}", problem.summary);
    drop((second, tool));
    assert_eq!(stage.run().verdict(), Verdict::Ok);
}

#[test]
fn an_older_main_process_that_lives_on_is_a_second_one_for_certain() {
    let program = Program::new("mstr-older");
    let mut stage = Stage::new();
    let (old, new) = (program.start("601"), program.start("602"));
    stage.note(old.id(), Some(clock::now().boottime_ms));
    stage.note(new.id(), None);
    let judgement = stage.run();
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    assert_eq!(problem.grade, Grade::Confirmed, "{problem:?}");
    drop(old);
    assert_eq!(stage.run().verdict(), Verdict::Ok);
}

#[test]
fn children_are_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mstr-family");
    copy_program("/bin/bash", &program);
    let script = format!("{0} -c 'sleep 600; true' & {0} -c 'sleep 600; true' & wait", program.display());
    let mut child = Command::new(&program);
    std::os::unix::process::CommandExt::process_group(&mut child, 0);
    let family = Family(child.args(["-c", &script]).spawn().unwrap());
    let id = process::id(&HostRoot::default(), family.0.id()).unwrap();
    let mut stage = Stage::new();
    stage.note(id, None);
    // Both children are there when each has its own.
    let children = || std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", id.pid)).unwrap_or_default();
    for _ in 0..500 {
        if children().split_whitespace().count() == 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    if children().is_empty() {
        println!("skipped: this kernel does not list children");
        return;
    }
    let judgement = stage.run();
    assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
}

/// By another process: one that a test beside this one forks meanwhile would have the copy open for writing, and what
/// somebody writes cannot be executed.
fn copy_program(from: &str, to: &std::path::Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

struct Family(Child);

impl Drop for Family {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        self.0.wait().ok();
    }
}
