//! The daemon as the service manager sees it: starts, tells, reloads, stops, remembers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// A line that must come has this long; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

struct Agent {
    child: Child,
    lines: Receiver<String>,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_muster-agent"))
            .args(["run", "--config", &folder.join("agent.toml").display().to_string()])
            .env_remove("NOTIFY_SOCKET")
            .env("MUSTER_LOG", "warn,muster_agent=debug")
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// Reads lines until one has all of `parts`; gives those before it.
    fn until(&self, parts: &[&str]) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {parts:?} in {before:#?}"));
            if parts.iter().all(|part| line.contains(part)) {
                return before;
            }
            before.push(line);
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn stop(mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn service(folder: &Path) -> Child {
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(folder.join("web.pid"), child.id().to_string()).unwrap();
    child
}

fn end(mut service: Child) {
    service.kill().unwrap();
    service.wait().unwrap();
}

fn config(folder: &Path, more: &str) {
    let shown = folder.display();
    let text = format!(
        "[agent]\nstate_dir = \"{shown}/state\"\n[probes]\npid_file = \"1s\"\n\
         [memory]\napproaching = \"2B\"\ncritical = \"1B\"\n\
         [service.web]\npid_file = \"{shown}/web.pid\"\n{more}"
    );
    std::fs::write(folder.join("agent.toml"), text).unwrap();
}

#[test]
fn tells_an_exit_remembers_it_and_clears_it_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    config(folder.path(), "");
    let web = service(folder.path());
    let agent = Agent::start(folder.path());
    agent.until(&["watching"]);
    // The exit must be of an instance that was seen.
    agent.until(&["probed", "web.pid", "\"ok\""]);
    end(web);
    agent.until(&["opened", "process_down"]);
    assert_eq!(agent.stop(), Some(0));

    let web = service(folder.path());
    let agent = Agent::start(folder.path());
    let before = agent.until(&["cleared", "process_down"]);
    assert!(!before.iter().any(|line| line.contains("process_down")), "opened twice: {before:#?}");
    end(web);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn reloads_a_good_config_and_keeps_the_old_one_for_a_wrong_one() {
    let folder = tempfile::tempdir().unwrap();
    config(folder.path(), "");
    let web = service(folder.path());
    let agent = Agent::start(folder.path());
    agent.until(&["watching"]);
    config(folder.path(), "prots = []\n");
    agent.signal(Signal::SIGHUP);
    agent.until(&["kept as it was"]);
    agent.until(&["did you mean \"ports\"?"]);
    config(folder.path(), &format!("[service.gone]\npid_file = \"{}/gone.pid\"\n", folder.path().display()));
    agent.signal(Signal::SIGHUP);
    agent.until(&["config read again", "services=2"]);
    agent.until(&["opened", "gone/pid_file", "pid_file_missing"]);
    config(folder.path(), "");
    agent.signal(Signal::SIGHUP);
    agent.until(&["cleared: no longer watched", "pid_file_missing"]);
    end(web);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn two_agents_do_not_share_a_state_folder_and_a_wrong_config_stops_at_once() {
    let folder = tempfile::tempdir().unwrap();
    config(folder.path(), "");
    let agent = Agent::start(folder.path());
    agent.until(&["watching"]);
    let mut second = Agent::start(folder.path());
    second.until(&["another muster-agent uses"]);
    assert_eq!(second.child.wait().unwrap().code(), Some(1));
    assert_eq!(agent.stop(), Some(0));
    config(folder.path(), "nonsense = 1\n");
    let mut wrong = Agent::start(folder.path());
    wrong.until(&["unknown key"]);
    assert_eq!(wrong.child.wait().unwrap().code(), Some(2));
}
