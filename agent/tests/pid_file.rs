//! The pid-file sense against real processes: every state a pid file can be in.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::probe::{Context, Probe, Remembered};
use muster_agent::senses::HostRoot;
use muster_agent::senses::pid_file::PidFileProbe;
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::services::Services;
use muster_common::evidence::Value;
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

struct Stage {
    folder: tempfile::TempDir,
    services: Arc<Mutex<Services>>,
    probe: PidFileProbe,
}

fn service() -> ServiceName {
    ServiceName::new("svc").unwrap()
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("svc.pid");
        let probe = PidFileProbe::new(service(), path.to_str().unwrap(), HostRoot::default(), None);
        Self { folder, services: Arc::default(), probe }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("svc.pid")
    }

    fn write(&self, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(), content).unwrap();
    }

    fn run(&mut self, one_shot: bool) -> Judgement {
        let context = Context { now: clock::now(), services: Arc::clone(&self.services), one_shot };
        self.probe.run(&context)
    }

    fn reasons(&mut self) -> Vec<Reason> {
        self.run(true).problems.iter().map(|problem| problem.reason).collect()
    }
}

/// A process that ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            self.0.wait().unwrap();
        }
    }
}

#[test]
fn a_running_process_is_ok_with_its_identity() {
    let sleeper = Sleeper::start();
    let mut stage = Stage::new();
    stage.write(format!("{}\n", sleeper.pid()));
    let judgement = stage.run(true);
    assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
    assert_eq!(judgement.seen.get("pid"), Some(&Value::Count(sleeper.pid().into())));
    assert_eq!(judgement.seen.get("comm"), Some(&Value::Text("sleep".into())));
    assert!(judgement.seen.get("uptime_ms").is_some() && judgement.seen.get("start_ticks").is_some());
    let noted = stage.services.lock().unwrap().newest(&service()).cloned().unwrap();
    assert_eq!((noted.process.pid, noted.ended_boottime_ms), (sleeper.pid(), None));
}

#[test]
fn an_exit_wakes_the_probe_and_a_successor_clears_it() {
    let mut first = Sleeper::start();
    let mut stage = Stage::new();
    stage.write(first.pid().to_string());
    stage.run(false);
    let pidfd = stage.probe.wake().expect("a pidfd to wait for");
    first.kill();
    let mut fds = [PollFd::new(&*pidfd, PollFlags::IN)];
    poll(&mut fds, None).unwrap();
    // Not reaped yet: a zombie, of which the end is already certain.
    let reasons: Vec<Reason> = stage.run(false).problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::ProcessDown]);
    let ringing = |probe: &PidFileProbe, bound: Timespec| {
        let Some(fd) = probe.wake() else { return false };
        poll(&mut [PollFd::new(&*fd, PollFlags::IN)], Some(&bound)) == Ok(1)
    };
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert!(!ringing(&stage.probe, at_once), "a zombie would wake for ever");
    let tells_exits = stage.probe.wake().is_some();
    let reasons: Vec<Reason> = stage.run(false).problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::ProcessDown, Reason::ProcessZombie]);
    first.0.wait().unwrap();
    // The reaping wakes it again, and the kernel tells how it ended.
    assert_eq!(ringing(&stage.probe, Timespec { tv_sec: 60, tv_nsec: 0 }), tells_exits);
    let down = stage.run(false);
    let told = if tells_exits { "SIGKILL" } else { "unknown" };
    assert_eq!(down.problems[0].evidence.get("exit_status"), Some(&Value::Text(told.into())), "{down:?}");
    assert!(stage.probe.wake().is_none(), "nothing more is to come");
    let reasons: Vec<Reason> = down.problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::ProcessDown]);
    let noted = stage.services.lock().unwrap().newest(&service()).cloned().unwrap();
    assert!(noted.ended_boottime_ms.is_some());

    let second = Sleeper::start();
    stage.write(second.pid().to_string());
    let back = stage.run(false);
    assert_eq!(back.verdict(), Verdict::Ok, "{back:?}");
    let [restart] = back.occurrences.as_slice() else { panic!("{back:?}") };
    assert_eq!(restart.reason, Reason::ProcessRestarted);
    assert_eq!(restart.evidence.get("old_pid"), Some(&Value::Count(first.pid().into())));
    assert_eq!(restart.evidence.get("new_pid"), Some(&Value::Count(second.pid().into())));
    assert!(restart.evidence.get("gap_ms").is_some());
    assert!(stage.run(false).occurrences.is_empty(), "one restart is told once");
}

#[test]
fn a_restart_of_the_agent_forgets_nothing() {
    let mut sleeper = Sleeper::start();
    let mut stage = Stage::new();
    stage.write(sleeper.pid().to_string());
    stage.run(false);
    let saved = stage.probe.save().unwrap();
    sleeper.kill();
    sleeper.0.wait().unwrap();
    stage.probe = PidFileProbe::new(service(), stage.path().to_str().unwrap(), HostRoot::default(), None);
    stage.probe.restore(saved);
    assert_eq!(stage.reasons(), [Reason::ProcessDown]);
    stage.probe.restore(Remembered::of(serde_json::json!({"not": "ours"})).unwrap());
}

#[test]
fn what_is_not_one_pid_is_malformed() {
    let mut stage = Stage::new();
    assert_eq!(stage.reasons(), [Reason::PidFileMissing]);
    for content in ["", "\n", "-1", "0", "abc", "12 34", "1x", "99999999", "99999999999999999999"] {
        stage.write(content);
        assert_eq!(stage.reasons(), [Reason::PidFileMalformed], "{content:?}");
    }
    stage.write(vec![b'7'; 1 << 20]);
    assert_eq!(stage.reasons(), [Reason::PidFileMalformed]);
    std::fs::remove_file(stage.path()).unwrap();
    std::fs::create_dir(stage.path()).unwrap();
    assert_eq!(stage.reasons(), [Reason::PidFileMalformed]);
    std::fs::remove_dir(stage.path()).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(stage.path()).unwrap();
    assert_eq!(stage.reasons(), [Reason::PidFileMalformed]);
}

#[test]
fn a_fifo_neither_blocks_nor_is_opened() {
    let mut stage = Stage::new();
    rustix::fs::mkfifoat(rustix::fs::CWD, stage.path(), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let judgement = stage.run(true);
    assert_eq!(judgement.problems[0].reason, Reason::PidFileMalformed);
    assert!(judgement.problems[0].summary.contains("FIFO"));
    // Nor does a step that is told: whoever reads it would wait.
    assert!(judgement.problems[0].next_steps[0].starts_with("look at it: ls -ld /"), "{judgement:?}");
    // A writer is only let in while somebody reads: nobody does, so nobody opened it.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let opened = OpenOptions::new().write(true).custom_flags(nonblocking).open(stage.path());
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(rustix::io::Errno::NXIO.raw_os_error()));
}

#[test]
fn a_stale_file_says_that_nothing_runs() {
    let mut sleeper = Sleeper::start();
    let mut stage = Stage::new();
    stage.write(sleeper.pid().to_string());
    sleeper.kill();
    sleeper.0.wait().unwrap();
    let judgement = stage.run(true);
    assert_eq!(judgement.problems.len(), 1);
    assert_eq!(judgement.problems[0].reason, Reason::PidFileStale);
    assert!(judgement.problems[0].summary.contains("not running"));
}

#[test]
fn a_zombie_is_named() {
    let mut sleeper = Sleeper::start();
    let mut stage = Stage::new();
    stage.write(sleeper.pid().to_string());
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(i32::try_from(sleeper.pid()).unwrap()).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    sleeper.kill();
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
    assert_eq!(stage.reasons(), [Reason::ProcessZombie]);
    sleeper.0.wait().unwrap();
}

#[test]
fn a_pid_that_another_process_took_over_is_stale() {
    let sleeper = Sleeper::start();
    let mut stage = Stage::new();
    stage.write(sleeper.pid().to_string());
    // The file is an hour older than the process it names.
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    OpenOptions::new().write(true).open(stage.path()).unwrap().set_modified(hour_ago).unwrap();
    let judgement = stage.run(true);
    assert_eq!(judgement.problems[0].reason, Reason::PidFileStale, "{judgement:?}");
    assert_eq!(judgement.problems[0].evidence.get("comm"), Some(&Value::Text("sleep".into())));
}

#[test]
fn a_thread_of_the_kernel_is_no_service() {
    let is_one = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_err() && is_kernel_thread(*pid);
    let Some(pid) = (2..100).find(is_one) else {
        println!("skipped: no thread of the kernel is seen here (a container)");
        return;
    };
    let mut stage = Stage::new();
    // Younger than the thread: as if it had been written for it.
    stage.write(format!("{pid}\n"));
    let judgement = stage.run(true);
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    assert_eq!(problem.reason, Reason::PidFileStale);
    assert!(problem.summary.ends_with(": a thread of the kernel, which writes no pid file"), "{}", problem.summary);
    assert!(stage.services.lock().unwrap().newest(&service()).is_none(), "nobody takes it for the service's");
}

/// `PF_KTHREAD` in the flags, the seventh field behind the name.
fn is_kernel_thread(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & 0x0020_0000 != 0)
}

#[test]
fn a_symbolic_link_is_followed_and_told() {
    let sleeper = Sleeper::start();
    let mut stage = Stage::new();
    let target = stage.folder.path().join("real.pid");
    std::fs::write(&target, sleeper.pid().to_string()).unwrap();
    std::os::unix::fs::symlink(&target, stage.path()).unwrap();
    let judgement = stage.run(true);
    assert_eq!(judgement.verdict(), Verdict::Ok);
    assert_eq!(judgement.seen.get("symlink_to"), Some(&Value::Text(target.to_str().unwrap().into())));
    std::fs::remove_file(&target).unwrap();
    let judgement = stage.run(true);
    assert!(judgement.problems.iter().any(|problem| problem.reason == Reason::PidFileMissing));
}
