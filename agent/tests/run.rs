//! The daemon as the service manager sees it: starts, tells, reloads, stops, remembers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod started;

use nix::sys::signal::Signal;
use started::Agent;
use std::path::Path;
use std::process::{Child, Command};

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
