//! Real kills of a real service under the real daemon, by `kill -9` and by the kernel for memory: one finding each, whose
//! sentence says how the process ended, who follows it, and that its database was checked since.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod started;

use muster_agent::local::client;
use muster_common::units::human_bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::Connection;
use started::Agent;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Tells this test binary to be the service.
const SERVES: &str = "MUSTER_TEST_SERVES";
/// Of the cgroup whose limit kills; far more than the service needs while it is well.
const LIMIT_BYTES: u64 = 64 << 20;

/// The body of the service: does nothing unless a parent told it to. It lives until its input ends; a line makes it eat.
#[test]
fn served() {
    if std::env::var_os(SERVES).is_none() {
        return;
    }
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for _ in std::io::stdin().lock().lines() {
        // Whatever should have stopped it before is not there: the host must not pay for that.
        (0..256).for_each(|_| eaten.push(vec![1; 1 << 20]));
    }
}

/// A memory cgroup that removes itself.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> Option<Self> {
        let name = format!("muster-test-story-{}", std::process::id());
        for (hierarchy, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let path = Path::new(hierarchy).join(&name);
            if Path::new(hierarchy).is_dir() && std::fs::create_dir(&path).is_ok() {
                let group = Self(path);
                if std::fs::write(group.0.join(limit), LIMIT_BYTES.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        None
    }

    fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_string_lossy())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Who was in it is reaped, and may still be on its way out.
        let end = Instant::now() + PATIENCE;
        while std::fs::remove_dir(&self.0).is_err_and(|error| error.raw_os_error() == Some(16)) && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A service as its supervisor has it: this test starts it, reaps it and starts it again.
struct Service {
    folder: tempfile::TempDir,
    /// Where all its processes are.
    cgroup: Option<PathBuf>,
    child: Child,
    /// Stays open, as that of a service does.
    _database: Connection,
}

impl Service {
    fn start(cgroup: Option<&Cgroup>) -> Self {
        let cgroup = cgroup.map(|cgroup| cgroup.0.clone());
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().display();
        let text = format!(
            "[agent]\nstate_dir = \"{shown}/state\"\nsocket = \"{shown}/agent.sock\"\n\
             [probes]\npid_file = \"1s\"\nprocess = \"1s\"\nsqlite = \"1s\"\nsqlite_quick = \"5s\"\n\
             [memory]\napproaching = \"2B\"\ncritical = \"1B\"\n\
             [service.spl]\npid_file = \"{shown}/spl.pid\"\nsqlite = [\"{shown}/hub.db\"]\n"
        );
        std::fs::write(folder.path().join("agent.toml"), text).unwrap();
        let database = Connection::open(folder.path().join("hub.db")).unwrap();
        database.execute_batch("pragma journal_mode = wal; create table jobs (name text)").unwrap();
        let child = spawn(folder.path(), cgroup.as_deref());
        Self { folder, cgroup, child, _database: database }
    }

    /// After its end, however it came: reaped, followed by another one, which writes nothing yet.
    fn follow(&mut self) -> (u32, u32) {
        let old = self.child.id();
        assert!(!self.child.wait().unwrap().success());
        self.child = spawn(self.folder.path(), self.cgroup.as_deref());
        (old, self.child.id())
    }

    /// The sentences that the daemon tells of it now.
    fn told(&self) -> Vec<String> {
        let status = client::status(&self.folder.path().join("agent.sock")).unwrap();
        let ours = status.diagnoses.into_iter().filter(|diagnosis| diagnosis.service == "spl");
        ours.map(|diagnosis| diagnosis.summary).collect()
    }

    /// Waits until the daemon tells one thing, with all of `parts` in it.
    fn until_told(&self, parts: &[String]) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.told();
            if let [one] = told.as_slice()
                && parts.iter().all(|part| one.contains(part))
            {
                return one.clone();
            }
            assert!(Instant::now() < end, "no {parts:?} in one sentence: {told:#?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(folder: &Path, cgroup: Option<&Path>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "served", "--nocapture"]).env(SERVES, "1").stdin(Stdio::piped());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    if let Some(cgroup) = cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    std::fs::write(folder.join("spl.pid"), child.id().to_string()).unwrap();
    child
}

fn watched(service: &Service) -> Agent {
    let agent = Agent::start(service.folder.path());
    agent.until(&["probed", "spl.pid", "\"ok\""]);
    agent.until(&["probed", "hub.db", "\"ok\""]);
    agent
}

/// From 6.15 on the kernel tells everybody; before it is systemd's word, which a service of a test has not.
fn kernel_tells() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.trim().parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 15)
}

#[test]
fn a_killed_service_that_runs_again_is_one_sentence() {
    let mut service = Service::start(None);
    let agent = watched(&service);
    kill(Pid::from_raw(i32::try_from(service.child.id()).unwrap()), Signal::SIGKILL).unwrap();
    let (old, new) = service.follow();
    agent.until(&["occurred", "process_restarted"]);
    let mut parts = vec![format!("pid {old} became pid {new}"), "hub.db passed its check since then".to_owned()];
    if kernel_tells() {
        parts.push("ended by SIGKILL".to_owned());
    } else {
        println!("skipped: the signal: this kernel tells it to nobody but systemd");
    }
    service.until_told(&parts);
    assert_eq!(agent.stop(), Some(0));
}

/// What follows `from` up to `to`, as often as that is in `text`.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Vec<&'a str> {
    text.split(from).skip(1).filter_map(|rest| rest.split_once(to)).map(|(inner, _)| inner).collect()
}

#[test]
fn a_service_killed_for_memory_that_runs_again_is_one_sentence() {
    let Some(cgroup) = Cgroup::create() else {
        println!("skipped: no memory cgroup can be created here");
        return;
    };
    if std::fs::File::open("/dev/kmsg").is_err() {
        println!("skipped: the kernel's log is closed to this test");
        return;
    }
    let mut service = Service::start(Some(&cgroup));
    let agent = watched(&service);
    agent.until(&["probed", "host/oom", "\"ok\""]);
    service.child.stdin.as_mut().unwrap().write_all(b"eat\n").unwrap();
    let (old, new) = service.follow();
    agent.until(&["occurred", "oom_kill", "spl"]);
    let mut parts = vec![
        format!("(pid {old}, service spl) while it used "),
        format!(": cgroup {} reached its limit of {}", cgroup.name(), human_bytes(LIMIT_BYTES)),
        format!("it has restarted as pid {new}"),
        "hub.db passed its check since then".to_owned(),
        "its worktree may hold unsaved work: see the salvage steps".to_owned(),
    ];
    if kernel_tells() {
        parts.push("its end (SIGKILL) was seen".to_owned());
    } else {
        parts.push("its end was seen".to_owned());
    }
    let told = service.until_told(&parts);
    assert!(told.starts_with("the kernel killed "), "{told}");
    // It had room for nothing else.
    let [used] = between(&told, "while it used ", ":")[..] else { panic!("{told}") };
    assert!(used.ends_with("MiB"), "{told}");
    // How much later its end was seen, where that was as much as a millisecond.
    let later = between(&told, " was seen", ";")[0];
    assert!(later.is_empty() || later.ends_with(" later"), "{told}");
    assert_eq!(agent.stop(), Some(0));
}
