//! A real kill of a real service under the real daemon: one finding, whose sentence says how the process ended, who follows
//! it, and that its database was checked since.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod started;

use muster_agent::local::client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::Connection;
use started::Agent;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A service as its supervisor has it: this test starts it, reaps it and starts it again.
struct Service {
    folder: tempfile::TempDir,
    child: Child,
    database: Connection,
}

impl Service {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().display();
        let text = format!(
            "[agent]\nstate_dir = \"{shown}/state\"\nsocket = \"{shown}/agent.sock\"\n\
             [probes]\npid_file = \"1s\"\nprocess = \"1s\"\nsqlite = \"1s\"\nsqlite_quick = \"1s\"\n\
             [memory]\napproaching = \"2B\"\ncritical = \"1B\"\n\
             [service.spl]\npid_file = \"{shown}/spl.pid\"\nsqlite = [\"{shown}/hub.db\"]\n"
        );
        std::fs::write(folder.path().join("agent.toml"), text).unwrap();
        let database = Connection::open(folder.path().join("hub.db")).unwrap();
        database.execute_batch("pragma journal_mode = wal; create table jobs (name text)").unwrap();
        let child = spawn(folder.path());
        Self { folder, child, database }
    }

    fn works(&self) {
        self.database.execute("insert into jobs values ('x')", []).unwrap();
    }

    /// After its end, however it came: reaped, followed by another one that does its work.
    fn follow(&mut self) -> (u32, u32) {
        let old = self.child.id();
        assert!(!self.child.wait().unwrap().success());
        self.child = spawn(self.folder.path());
        self.works();
        (old, self.child.id())
    }

    /// The sentences that the daemon tells of it now.
    fn told(&self) -> Vec<String> {
        let status = client::status(&self.folder.path().join("agent.sock")).unwrap();
        let ours = status.diagnoses.into_iter().filter(|diagnosis| diagnosis.service == "spl");
        // That its program was seen for the first time is no story of a kill.
        let ours = ours.filter(|diagnosis| diagnosis.reason != "change");
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
            // It looks again at its database.
            self.works();
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

fn spawn(folder: &Path) -> Child {
    let mut command = Command::new("sh");
    let child = command.args(["-c", "read never"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
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
    let mut service = Service::start();
    let agent = watched(&service);
    kill(Pid::from_raw(i32::try_from(service.child.id()).unwrap()), Signal::SIGKILL).unwrap();
    let (old, new) = service.follow();
    agent.until(&["occurred", "process_restarted"]);
    let mut parts = vec![format!("pid {old} became pid {new}"), "hub.db passes its check since then".to_owned()];
    if kernel_tells() {
        parts.push("ended by SIGKILL".to_owned());
    } else {
        println!("skipped: the signal: this kernel tells it to nobody but systemd");
    }
    service.until_told(&parts);
    assert_eq!(agent.stop(), Some(0));
}
