//! The hash of a running program, against real processes: same build, new build, a large one, one that is gone.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::executable::{ExecutableProbe, glance};
use muster_agent::senses::{HostRoot, process};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::Value;
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

fn spl() -> ServiceName {
    ServiceName::new("spl").unwrap()
}

/// A copy of `sleep` that runs.
struct Sleeper(Child);

impl Sleeper {
    fn start(program: &Path) -> Self {
        let id_of = |child: &Child| std::fs::read_link(format!("/proc/{}/exe", child.id())).ok();
        let child = Command::new(program).arg("600").spawn().unwrap();
        // A spawn returns when the program stands behind the process.
        assert_eq!(id_of(&child).as_deref(), Some(program));
        Self(child)
    }

    fn id(&self) -> ProcessId {
        process::id(&HostRoot::default(), self.0.id()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Stage {
    services: Arc<Mutex<Services>>,
    probe: ExecutableProbe,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let probe = ExecutableProbe::new(spl(), HostRoot::default());
        Self { services: Arc::default(), probe, folder: tempfile::tempdir().unwrap() }
    }

    /// Another file under the same name, as a package manager leaves it.
    fn build(&self, more: &[u8]) -> PathBuf {
        let (new, path) = (self.folder.path().join("new"), self.folder.path().join("spl"));
        // Written by another process: one that a test beside this one forks meanwhile would have it open, and what
        // somebody writes cannot be executed.
        let end = self.folder.path().join("end");
        std::fs::write(&end, more).unwrap();
        let script = "cat /bin/sleep \"$1\" >\"$2\" && chmod 755 \"$2\"";
        let written = Command::new("sh").args(["-c", script, "sh"]).arg(&end).arg(&new).status().unwrap();
        assert!(written.success());
        std::fs::rename(&new, &path).unwrap();
        path.canonicalize().unwrap()
    }

    fn note(&self, process: ProcessId) {
        let instance = Instance {
            process,
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: clock::now().boottime_ms,
            ended_boottime_ms: None,
        };
        self.services.lock().unwrap().note(&spl(), instance);
    }

    fn run(&mut self) -> Judgement {
        let context = Context { now: clock::now(), services: Arc::clone(&self.services), one_shot: false };
        self.probe.run(&context)
    }

    fn rings(&self) -> bool {
        let Some(fd) = self.probe.wake() else { return false };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&*fd, PollFlags::IN)], Some(&now)) == Ok(1)
    }
}

fn sha256(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text<'a>(judgement: &'a Judgement, key: &str) -> Option<&'a str> {
    match judgement.occurrences.first()?.evidence.get(key)? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

#[test]
fn a_new_build_is_told_and_a_restart_of_the_same_is_not() {
    let mut stage = Stage::new();
    assert!(stage.run().occurrences.is_empty(), "no process is known yet");
    let program = stage.build(b"one");
    let old = sha256(&program);
    let first = Sleeper::start(&program);
    stage.note(first.id());
    let judgement = stage.run();
    assert_eq!((text(&judgement, "new"), text(&judgement, "old")), (Some(old.as_str()), None));
    drop(first);
    let second = Sleeper::start(&program);
    stage.note(second.id());
    // Whoever sees the restart first knows which program came back, before the probe has looked.
    glance(&HostRoot::default(), &stage.services, &spl(), second.id());
    let known = stage.services.lock().unwrap().executable(&spl(), second.id()).cloned();
    assert_eq!(known.map(|known| known.sha256), Some(Ok(old.clone())));
    assert!(stage.run().occurrences.is_empty());
    let known = stage.services.lock().unwrap().executable(&spl(), second.id()).cloned();
    assert_eq!(known.unwrap().sha256.as_deref(), Ok(old.as_str()), "the restart's hash is known all the same");
    // The file of the running program is replaced: what runs is the old one until it is restarted.
    let program = stage.build(b"two");
    let new = sha256(&program);
    assert!(stage.run().occurrences.is_empty());
    drop(second);
    let third = Sleeper::start(&program);
    stage.note(third.id());
    glance(&HostRoot::default(), &stage.services, &spl(), third.id());
    assert!(stage.services.lock().unwrap().executable(&spl(), third.id()).is_none(), "another program");
    let saved = stage.probe.save().unwrap();
    let mut restarted = ExecutableProbe::new(spl(), HostRoot::default());
    restarted.restore(saved);
    stage.probe = restarted;
    let judgement = stage.run();
    assert_eq!(judgement.occurrences[0].reason, Reason::Change);
    assert_eq!((text(&judgement, "new"), text(&judgement, "old")), (Some(new.as_str()), Some(old.as_str())));
    assert!(stage.run().occurrences.is_empty(), "once");
}

#[test]
fn a_large_program_is_read_piece_by_piece() {
    let mut stage = Stage::new();
    let program = stage.build(&vec![7u8; 20 << 20]);
    let sleeper = Sleeper::start(&program);
    stage.note(sleeper.id());
    let mut runs = 1;
    let mut judgement = stage.run();
    while judgement.occurrences.is_empty() {
        assert!(stage.rings(), "more is to be read");
        assert!(runs < 10, "{judgement:?}");
        judgement = stage.run();
        runs += 1;
    }
    assert!(runs >= 3 && !stage.rings());
    assert_eq!(text(&judgement, "new"), Some(sha256(&program).as_str()));
}

#[test]
fn a_process_that_is_gone_is_unknown_and_no_change() {
    let mut stage = Stage::new();
    let program = stage.build(b"");
    let sleeper = Sleeper::start(&program);
    stage.note(sleeper.id());
    drop(sleeper);
    let judgement = stage.run();
    assert!(judgement.occurrences.is_empty() && judgement.unknown.is_none(), "{judgement:?}");
    assert!(judgement.seen.get("executable_unknown").is_some(), "{judgement:?}");
}
