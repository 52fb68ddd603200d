//! The agent's own socket, by the real daemon and the real command: who may report what, what is durable, what is told.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod started;

use muster_proto::v1;
use nix::unistd::Uid;
use started::Agent;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Debian's and everybody's "nobody".
const NOBODY: u32 = 65_534;

fn config(folder: &Path, reporters: &str) -> PathBuf {
    let shown = folder.display();
    let text = format!(
        "[agent]\nstate_dir = \"{shown}/state\"\nsocket = \"{shown}/agent.sock\"\n\
         [probes]\npid_file = \"1s\"\n[memory]\napproaching = \"2B\"\ncritical = \"1B\"\n\
         [service.web]\npid_file = \"{shown}/web.pid\"\nreporters = [{reporters}]\n"
    );
    std::fs::write(folder.join("agent.toml"), text).unwrap();
    folder.join("agent.sock")
}

/// A daemon that watches, in a folder of its own, and its socket.
fn watching() -> (tempfile::TempDir, PathBuf, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let socket = config(folder.path(), "");
    let agent = Agent::start(folder.path());
    agent.until(&["watching"]);
    (folder, socket, agent)
}

fn report(socket: &Path, arguments: &[&str], uid: Option<u32>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    let socket = socket.display().to_string();
    command.args(["report", "--socket", &socket]).args(arguments);
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_report_is_durable_when_the_command_returns_and_shows_in_the_status() {
    let (folder, socket, agent) = watching();
    let arguments = [
        "--service",
        "web",
        "--reason",
        "repo_locked",
        "--subject",
        "/srv/repo",
        "--attempts",
        "7",
        "--message",
        "the index is locked",
    ];
    let output = report(&socket, &arguments, None);
    assert!(output.status.success(), "{}", said(&output));
    agent.until(&["occurred", "web/report//srv/repo/repo_locked", "the index is locked"]);
    agent.until(&["opened", "pid_file_missing"]);
    let status = muster_agent::local::client::status(&socket).unwrap();
    assert_eq!(status.link, "", "no coordinator is configured");
    assert!(status.findings.iter().any(|finding| finding.reason == "pid_file_missing"), "{status:?}");
    let diagnosed: Vec<&str> = status.diagnoses.iter().map(|diagnosis| diagnosis.reason.as_str()).collect();
    assert!(diagnosed.contains(&"pid_file_missing"), "{diagnosed:?}");
    assert_eq!(agent.stop(), Some(0));
    assert!(!socket.exists(), "the socket goes with the agent");

    // What was answered is in the spool of the next life.
    let database = rusqlite::Connection::open(folder.path().join("state/spool.db")).unwrap();
    let bodies: Vec<Vec<u8>> = database
        .prepare("select body from entries")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let has = |body: &Vec<u8>, part: &[u8]| body.windows(part.len()).any(|window| window == part);
    assert!(bodies.iter().any(|body| has(body, b"repo_locked") && has(body, b"attempts")), "{}", bodies.len());
}

#[test]
fn doctor_tells_what_only_the_running_agent_knows() {
    let (folder, socket, agent) = watching();
    let arguments = ["--service", "web", "--reason", "timeout", "--message", "no answer from the hub"];
    assert!(report(&socket, &arguments, None).status.success());
    agent.until(&["occurred", "no answer from the hub"]);
    agent.until(&["opened", "pid_file_missing"]);
    let doctor = |more: &[&str]| {
        let config = folder.path().join("agent.toml").display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        let output = command.args(["doctor", "--config", &config, "--service", "web"]).args(more).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let told = doctor(&[]);
    let (found, said) = told.split_once("the running agent says").unwrap_or_else(|| panic!("{told}"));
    assert!(said.contains("web timeout  (at 20") && said.contains("no answer from the hub"), "{told}");
    assert!(said.lines().any(|line| line.contains(" UTC, ") && line.ends_with("s ago)")), "{told}");
    // What both know is told once, by who looked now.
    assert!(found.contains("pid_file_missing") && !said.contains("pid_file_missing"), "{told}");
    let json: serde_json::Value = serde_json::from_str(&doctor(&["--format", "json"])).unwrap();
    assert_eq!(json["agent_says"][0]["reason"], "timeout", "{json:#}");
    assert_eq!(agent.stop(), Some(0));
    assert!(!doctor(&[]).contains("the running agent"));
}

#[test]
fn a_report_loses_its_secrets_before_it_is_kept() {
    let (folder, socket, agent) = watching();
    let arguments = [
        "--service",
        "web",
        "--reason",
        "timeout",
        "--subject",
        "https://bob:hunter2@host/x",
        "--message",
        "no answer with password=hunter2",
        "--api_token",
        "hunter2",
        "--command",
        "mysql -phunter2 hub",
        "--attempts",
        "7",
    ];
    let output = report(&socket, &arguments, None);
    assert!(output.status.success(), "{}", said(&output));
    agent.until(&["occurred", "https://bob:***@host/x", "no answer with password=***"]);
    assert_eq!(agent.stop(), Some(0));
    let database = rusqlite::Connection::open(folder.path().join("state/spool.db")).unwrap();
    let count = |part: &str| {
        let sql = "select count(*) from entries where instr(body, cast(?1 as blob)) > 0";
        database.query_row(sql, [part], |row| row.get::<_, u32>(0)).unwrap()
    };
    assert!(count("attempts") > 0 && count("api_token") > 0);
    assert_eq!(count("hunter2"), 0);
}

#[test]
fn wrong_reports_are_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let socket = config(folder.path(), "");
    let nobody_there = report(&socket, &["--service", "web", "--reason", "repo_locked"], None);
    assert_eq!(nobody_there.status.code(), Some(1));
    assert!(said(&nobody_there).contains("is it running?"), "{}", said(&nobody_there));
    let agent = Agent::start(folder.path());
    agent.until(&["watching"]);
    let cases: [(&[&str], &str); 10] = [
        (&["--service", "wbe", "--reason", "repo_locked"], "did you mean \"web\"?"),
        (&["--service", "web", "--reason", "repo_lokced"], "did you mean \"repo_locked\"?"),
        (&["--service", "web", "--reason", "process_down"], "is no occurrence"),
        (&["--service", "web", "--reason", "Time Out"], "did you mean \"timeout\"?"),
        // The kernel's word, not an application's.
        (&["--service", "web", "--reason", "oom_kill"], "the agent itself sees"),
        (&["--service", "web", "--reason", "backup_failed"], "unknown reason code \"backup_failed\"; report one of: "),
        (&["--service", "web", "--reason", "timeout", "--mesage", "x"], "did you mean --message?"),
        (&["--attempts", "7", "--reason", "timeout"], "--service NAME must be given"),
        (&["--service", "web", "--reason", "timeout", "--reported_by_uid", "0"], "is no key of evidence"),
        (&["--service", "web", "--reason", "timeout", "--lonely"], "has no value"),
    ];
    for (arguments, expected) in cases {
        let output = report(&socket, arguments, None);
        assert!(!output.status.success() && said(&output).contains(expected), "{arguments:?}: {}", said(&output));
    }
    // Whatever stands first, and by the config as every other command.
    let config = folder.path().join("agent.toml").display().to_string();
    let arguments = ["report", "--attempts", "7", "--config", &config, "--service", "web", "--reason", "timeout"];
    let output = Command::new(env!("CARGO_BIN_EXE_muster-agent")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    agent.until(&["occurred", "An operation took longer than allowed (reported by user "]);
    let long = "x".repeat(100_000);
    let output = report(&socket, &["--service", "web", "--reason", "timeout", "--message", &long], None);
    assert!(!output.status.success(), "{}", said(&output));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn the_kernel_tells_who_reports() {
    if !Uid::effective().is_root() {
        println!("skipped: needs root to become another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The command, and the way to the socket, must be open to the other user.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_muster-agent"));
    let copy = folder.path().join("muster-agent");
    // By another process: what somebody has open for writing (a fork of the test beside) cannot be executed.
    assert!(Command::new("cp").arg(&program).arg(&copy).status().unwrap().success());
    let as_nobody = |socket: &Path| {
        let socket = socket.display().to_string();
        let arguments = ["report", "--socket", &socket, "--service", "web", "--reason", "timeout"];
        Command::new(&copy).args(arguments).uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let socket = config(folder.path(), "");
    let agent = Agent::start(folder.path());
    agent.until(&["watching"]);
    let refused = as_nobody(&socket);
    assert!(said(&refused).contains("reporters = [65534]"), "{}", said(&refused));
    config(folder.path(), "65534");
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    agent.until(&["config read again"]);
    // The list is taken up right after the line.
    let mut allowed = as_nobody(&socket);
    for _ in 0..100 {
        if allowed.status.success() {
            break;
        }
        allowed = as_nobody(&socket);
    }
    assert!(allowed.status.success(), "{}", said(&allowed));
    agent.until(&["occurred", "web/report/", "timeout"]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn preflight_counts_no_workers_that_need_nothing() {
    let arguments = ["preflight", "--worker-memory", "0B"];
    let output = Command::new(env!("CARGO_BIN_EXE_muster-agent")).args(arguments).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("--worker-memory") && told.contains("give what one needs"), "{told}");
}

#[test]
fn preflight_answers_without_a_daemon_and_obeys_a_freeze() {
    let folder = tempfile::tempdir().unwrap();
    let socket = config(folder.path(), "");
    let preflight = || {
        let config = folder.path().join("agent.toml").display().to_string();
        let arguments =
            ["preflight", "--config", &config, "--workers", "1", "--worker-memory", "1B", "--format", "json"];
        let output = Command::new(env!("CARGO_BIN_EXE_muster-agent")).args(arguments).output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json)
    };
    let (status, json) = preflight();
    assert_eq!(json["memory_band"], "healthy", "{json}");
    assert!(json["memory_available_bytes"].as_u64() > json["memory_critical_bytes"].as_u64(), "{json}");
    assert!(json["workers_max"].as_u64() > Some(0) && json["freezes"] == serde_json::json!([]), "{json}");
    let told = std::fs::read_to_string("/proc/pressure/memory").is_ok();
    let (some, full) = (&json["pressure"]["some_avg10_percent"], &json["pressure"]["full_avg10_percent"]);
    assert!(if told { some.is_f64() && full.is_f64() } else { json["pressure"].is_null() }, "{json}");
    // The host may stall for memory just now: then the answer says so.
    let stalls = json["reasons"].to_string().contains("stall");
    assert!((status == Some(0) && json["decision"] == "go") || stalls, "{json}");
    let freeze = muster_agent_core::freeze::Freeze {
        id: "FRZ-1".to_owned(),
        reason: "upgrade of the database".to_owned(),
        created_by: "ana".to_owned(),
        expires: None,
    };
    muster_agent::freezes::write(&muster_agent::freezes::path(&socket), &[freeze]).unwrap();
    let (status, json) = preflight();
    assert_eq!((status, &json["decision"], &json["workers_max"]), (Some(2), &"stop".into(), &0.into()), "{json}");
    assert!(json["reasons"][0].as_str().unwrap().contains("freeze: upgrade of the database (by ana"), "{json}");
    std::fs::write(muster_agent::freezes::path(&socket), "{").unwrap();
    assert_eq!(preflight().0, Some(2), "a freeze that cannot be read is not none");
}

#[test]
fn a_request_without_a_service_is_malformed() {
    let (_folder, socket, agent) = watching();
    let error = muster_agent::local::client::report(&socket, v1::ReportRequest::default()).unwrap_err();
    assert!(
        matches!(&error, muster_agent::local::client::LocalError::Refused(status)
        if status.code() == tonic::Code::InvalidArgument),
        "{error:?}"
    );
    assert_eq!(agent.stop(), Some(0));
}
