//! The agent's commands as a user and a monitoring system see them: output and exit status of the real binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::Path;
use std::process::{Command, Output};

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster-agent")).args(arguments).output().unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Thresholds that no host is below: what the host's memory does is no part of these tests.
const ENOUGH_MEMORY: &str = "[memory]\napproaching = \"2B\"\ncritical = \"1B\"\n";

#[test]
fn usage_errors_exit_3_and_help_exits_0() {
    for arguments in [&["doctor", "--no-such"][..], &["frobnicate"], &[], &["doctor", "--format", "xml"]] {
        assert_eq!(status(&agent(arguments)), 3, "{arguments:?}");
    }
    for arguments in [&["check-config", "--bogus"][..], &["run", "--bogus"], &["init", "--bogus"]] {
        assert_eq!(status(&agent(arguments)), 2, "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["doctor", "--help"], &["--version"]] {
        assert_eq!(status(&agent(arguments)), 0, "{arguments:?}");
    }
}

#[test]
fn check_config_tells_all_mistakes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let good = write(folder.path(), "good.toml", "[service.web]\nports = [\"127.0.0.1:80\"]\nsingleton = true\n");
    let output = agent(&["check-config", "--config", &good]);
    assert_eq!(status(&output), 0);
    assert!(stdout(&output).starts_with("ok: 1 service, 0 pid files, 1 port,"), "{}", stdout(&output));
    assert!(stdout(&output).contains("web singleton: not watched yet"), "{}", stdout(&output));

    let bad = write(folder.path(), "bad.toml", "[service.web]\nport = []\n[memory]\ncritical = \"4G\"\n");
    let output = agent(&["check-config", "--config", &bad]);
    assert_eq!(status(&output), 2);
    let told = stderr(&output);
    assert!(told.contains("did you mean \"ports\"?") && told.contains("bad.toml:4:12"), "{told}");
    assert!(told.contains("^^^^"), "{told}");
    assert!(told.trim_end().ends_with("mistakes"), "{told}");
    assert!(!told.contains('\u{1b}'), "no colours where there is no terminal: {told}");

    let output = agent(&["check-config", "--config", "/nonexistent.toml"]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("muster-agent init"), "{}", stderr(&output));
}

#[test]
fn doctor_refuses_a_wrong_config_and_an_unknown_service() {
    let folder = tempfile::tempdir().unwrap();
    let bad = write(folder.path(), "bad.toml", "nonsense");
    assert_eq!(status(&agent(&["doctor", "--config", &bad])), 3);
    assert_eq!(status(&agent(&["doctor", "--config", "/nonexistent.toml"])), 3);
    // A folder: nothing to create there.
    let folder_named = agent(&["doctor", "--config", &folder.path().display().to_string()]);
    assert_eq!(status(&folder_named), 3);
    assert!(!stderr(&folder_named).contains("muster-agent init"), "{}", stderr(&folder_named));
    let good = write(folder.path(), "good.toml", "[service.web]\nports = [\"127.0.0.1:80\"]\n");
    let output = agent(&["doctor", "--config", &good, "--service", "wbe"]);
    assert_eq!(status(&output), 3);
    assert!(stderr(&output).contains("did you mean \"web\"?"), "{}", stderr(&output));
}

#[test]
fn doctor_tells_a_stale_pid_file_and_a_closed_port_as_one_problem() {
    let folder = tempfile::tempdir().unwrap();
    // A process that has ended and was reaped.
    let mut ended = Command::new("true").spawn().unwrap();
    let pid = ended.id();
    ended.wait().unwrap();
    // A port that nobody else has while we hold it bound without listening.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let pid_file = write(folder.path(), "web.pid", &format!("{pid}\n"));
    let text = format!("{ENOUGH_MEMORY}[service.web]\npid_file = \"{pid_file}\"\nports = [\"127.0.0.1:{port}\"]\n");
    let config = write(folder.path(), "agent.toml", &text);

    let output = agent(&["doctor", "--config", &config, "--service", "web", "--format", "json"]);
    assert_eq!(status(&output), 2, "{}", stdout(&output));
    let report = json(&output);
    assert_eq!(report["verdict"], "critical");
    let reasons: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|finding| finding["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["pid_file_stale", "port_closed"], "{report:#}");
    let stale = &report["findings"][0];
    assert_eq!((&stale["evidence"]["pid"], &stale["service"]), (&pid.into(), &"web".into()));
    assert!(!stale["next_steps"].as_array().unwrap().is_empty());
    // Nothing of it runs: it is down, and that is said first.
    assert_eq!(
        (&stale["severity"], &stale["evidence"]["silent"]),
        (&"sev2".into(), &format!("port 127.0.0.1:{port}").into())
    );
    assert!(stale["summary"].as_str().unwrap().starts_with(&format!("web is not running: pid {pid} of ")), "{stale:#}");
    let probes = report["probes"].as_array().unwrap();
    for kind in ["pid_file", "port"] {
        let probe = probes.iter().find(|probe| probe["probe"] == kind).unwrap_or_else(|| panic!("{kind}: {report:#}"));
        assert!(probe["verdict"] == "problem" && probe["took_ms"].is_u64(), "{probe:#}");
    }

    let output = agent(&["doctor", "--config", &config, "--service", "web"]);
    let text = stdout(&output);
    assert_eq!(status(&output), 2);
    assert!(text.starts_with("CRITICAL ") && text.contains(": 1 problem,"), "{text}");
    assert!(text.contains("web pid_file_stale") && text.contains("and so (likely): sev2 port_closed"), "{text}");
    assert!(text.contains("  next: "), "{text}");
}

#[test]
fn doctor_is_content_with_a_service_that_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pid_file = write(folder.path(), "web.pid", &std::process::id().to_string());
    let config = write(
        folder.path(),
        "agent.toml",
        &format!("[service.web]\npid_file = \"{pid_file}\"\nports = [\"127.0.0.1:{port}\"]\n"),
    );
    let output = agent(&["doctor", "--config", &config, "--service", "web", "--verbose"]);
    assert_eq!(status(&output), 0, "{}", stdout(&output));
    let text = stdout(&output);
    assert!(text.starts_with("OK ") && text.contains(" checks ok\n"), "{text}");
    assert!(text.contains("held by seccomp"), "{text}");
}

#[test]
fn what_is_configured_and_not_watched_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let text = format!("[service.web]\nports = [\"127.0.0.1:{port}\"]\nsingleton = true\n");
    let config = write(folder.path(), "agent.toml", &text);
    let output = agent(&["doctor", "--config", &config, "--service", "web", "--format", "json"]);
    // A probe that is still to be written is no ill of the host.
    assert_eq!(status(&output), 0);
    let report = json(&output);
    assert_eq!((&report["verdict"], &report["unknown"]), (&"ok".into(), &serde_json::json!([])));
    let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().filter_map(|note| note.as_str()).collect();
    assert!(notes.iter().any(|note| note.starts_with("web singleton: configured")), "{notes:?}");
    let text = stdout(&agent(&["doctor", "--config", &config, "--service", "web"]));
    assert!(text.starts_with("OK ") && text.contains("no probe for it: web singleton"), "{text}");
    assert!(!stdout(&agent(&["doctor", "--config", &config, "--service", "host"])).contains("singleton"));
}

#[test]
fn a_fifo_as_pid_file_does_not_hold_doctor_up_nor_do_strange_names_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fi\u{1b}[31mfo.pid");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let name = fifo.display().to_string().replace('\u{1b}', "\\u001b");
    let config = write(folder.path(), "agent.toml", &format!("[service.web]\npid_file = \"{name}\"\n"));
    let output = agent(&["doctor", "--config", &config, "--service", "web"]);
    assert!(status(&output) > 0);
    assert!(!stdout(&output).contains('\u{1b}') && stdout(&output).contains("\\u{1b}"), "{}", stdout(&output));
}

#[test]
fn a_fifo_as_config_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("agent.toml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.display().to_string();
    for (command, expected) in [("check-config", 2), ("doctor", 3)] {
        let output = agent(&[command, "--config", &fifo]);
        assert_eq!(status(&output), expected);
        assert!(stderr(&output).contains("not a regular file"), "{}", stderr(&output));
    }
}

#[test]
fn output_that_cannot_be_delivered_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), "agent.toml", ENOUGH_MEMORY);
    for (arguments, expected) in [
        (&["doctor", "--config", &config][..], 3),
        (&["doctor", "--config", &config, "--format", "json"], 3),
        (&["check-config", "--config", &config], 1),
        (&["init"], 1),
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        let output = command.args(arguments).stdout(full).output().unwrap();
        assert_eq!(status(&output), expected, "{arguments:?}");
        assert!(stderr(&output).contains("could not be written"), "{}", stderr(&output));
    }
}

#[test]
fn a_saved_kernel_log_gives_one_finding_per_victim() {
    let folder = tempfile::tempdir().unwrap();
    let log = "[   10.000000] Out of memory: Killed process 100 (spl) total-vm:100kB, anon-rss:50kB, file-rss:0kB, \
               shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0\n\
               [   11.000000] Out of memory: Killed process 101 (hub) total-vm:100kB, anon-rss:50kB, file-rss:0kB, \
               shmem-rss:0kB, UID:0 pgtables:1kB oom_score_adj:0\n";
    let file = write(folder.path(), "kern.log", log);
    let output = agent(&["doctor", "--kmsg-file", &file, "--format", "json"]);
    assert_eq!(status(&output), 1, "{}", stdout(&output));
    let report = json(&output);
    let mut victims: Vec<(u64, &str)> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            assert_eq!(finding["reason"], "oom_kill");
            (finding["evidence"]["pid"].as_u64().unwrap(), finding["evidence"]["comm"].as_str().unwrap())
        })
        .collect();
    victims.sort_unstable();
    assert_eq!(victims, [(100, "spl"), (101, "hub")]);
    assert_eq!(status(&agent(&["doctor", "--kmsg-file", "/nonexistent"])), 3);
    let well = write(folder.path(), "well.log", "[    0.000000] Linux version 6.1.0\n");
    assert_eq!(status(&agent(&["doctor", "--kmsg-file", &well])), 0);
}

#[test]
fn what_is_no_kernel_log_is_no_all_clear() {
    let folder = tempfile::tempdir().unwrap();
    let empty = write(folder.path(), "empty.log", "");
    let noise: Vec<u8> = (0..100_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let random = folder.path().join("random");
    std::fs::write(&random, noise).unwrap();
    let random = random.display().to_string();
    for file in [empty.as_str(), "/etc/passwd", &random] {
        let output = agent(&["doctor", "--kmsg-file", file]);
        assert_eq!(status(&output), 3, "{file}: {}", stdout(&output));
        assert!(stdout(&output).contains("no kernel messages"), "{file}: {}", stdout(&output));
    }
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let output = agent(&["doctor", "--kmsg-file", &fifo.display().to_string()]);
    assert_eq!((status(&output), stdout(&output).contains("no kernel messages")), (3, true));
    let output = agent(&["doctor", "--kmsg-file", "/dev/zero"]);
    assert_eq!((status(&output), stderr(&output).contains("neither a file nor")), (3, true), "{output:?}");
    // The live log: where it may be read, it ends where nothing new is.
    let output = agent(&["doctor", "--kmsg-file", "/dev/kmsg"]);
    assert!((0..=3).contains(&status(&output)), "{output:?}");
}

#[test]
fn what_init_prints_is_a_good_config() {
    let folder = tempfile::tempdir().unwrap();
    let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = agent(&["init"]);
    assert_eq!(status(&output), 0);
    assert!(stdout(&output).starts_with('#'));
    let config = write(folder.path(), "agent.toml", &stdout(&output));
    let output = agent(&["check-config", "--config", &config]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
}

/// A row that its index does not know: only `integrity_check` compares them.
fn damaged_index(path: &Path) {
    let database = rusqlite::Connection::open(path).unwrap();
    database
        .execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, b TEXT); CREATE INDEX tb ON t(b);
             WITH RECURSIVE n(i) AS (SELECT 10000 UNION ALL SELECT i + 1 FROM n WHERE i < 19999)
             INSERT INTO t(b) SELECT 'row ' || i FROM n;",
        )
        .unwrap();
    drop(database);
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(9).position(|part| part == b"row 15000").unwrap();
    bytes[at + 8] = b'x';
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn deep_reads_what_a_glance_leaves_and_leaves_no_copy() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let database = folder.path().join("hub.db");
    damaged_index(&database);
    let config = write(
        folder.path(),
        "agent.toml",
        &format!("{ENOUGH_MEMORY}[service.web]\nsqlite = [\"{}\"]\n", database.display()),
    );
    let asked = ["doctor", "--config", &config, "--service", "web", "--format", "json"];
    let output = agent(&asked);
    assert_eq!(status(&output), 0, "{}", stdout(&output));
    assert!(stdout(&output).contains("--deep checks all of it"), "{}", stdout(&output));

    let mut deep = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    let output = deep.args(asked).arg("--deep").env("TMPDIR", scratch.path()).output().unwrap();
    assert_eq!(status(&output), 2, "{}", stdout(&output));
    assert_eq!(json(&output)["findings"][0]["reason"], "sqlite_corrupt");
    // No terminal, no bar; stdout is the report's.
    assert!(stderr(&output).starts_with("deep check 1 of 1: ") && !stderr(&output).contains('\u{1b}'), "{output:?}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_deep_check_that_is_interrupted_leaves_no_copy() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    let rows = "CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB); CREATE INDEX tb ON t(b);
                WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
                INSERT INTO t(b) SELECT randomblob(100) FROM n;";
    database.execute_batch(rows).unwrap();
    drop(database);
    let text = format!("{ENOUGH_MEMORY}[service.web]\nsqlite = [\"{}\"]\n", path.display());
    let config = write(folder.path(), "agent.toml", &text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    command.args(["doctor", "--config", &config, "--service", "web", "--deep"]).env("TMPDIR", scratch.path());
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let copies = || std::fs::read_dir(scratch.path()).unwrap().count();
    while copies() == 0 && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    // Whether the signal came in time or the check was faster: nothing is left.
    let code = child.wait().unwrap().code();
    assert!(code == Some(130) || code == Some(0), "{code:?}");
    assert_eq!(copies(), 0);
}

/// A file that names nobody is all there is to see of one service; the other runs under another pid than its file says.
#[test]
fn doctor_tells_a_service_that_is_down_from_a_file_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let pid_file = write(folder.path(), "web.pid", &format!("{}\n", ended.id()));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (more, severity, start) in [
        (String::new(), "sev3", "web is not running: pid "),
        (format!("ports = [\"127.0.0.1:{port}\"]\n"), "sev3", "web answers (port 127.0.0.1:"),
    ] {
        let text = format!("{ENOUGH_MEMORY}[service.web]\npid_file = \"{pid_file}\"\n{more}");
        let config = write(folder.path(), "agent.toml", &text);
        let output = agent(&["doctor", "--config", &config, "--service", "web", "--format", "json"]);
        let report = json(&output);
        let stale = &report["findings"][0];
        assert_eq!((&stale["reason"], &stale["severity"]), (&"pid_file_stale".into(), &severity.into()), "{report:#}");
        assert!(stale["summary"].as_str().unwrap().starts_with(start), "{stale:#}");
        // Who answers is this test.
        let own = format!("see whether pid {} is the service", std::process::id());
        let first = stale["next_steps"][0].as_str().unwrap();
        assert_eq!(first.contains(&own), start.contains("answers"), "{stale:#}");
    }
}

/// Endpoints that answer nobody before all are asked: a few at a time would wait for each other in vain.
#[test]
fn doctor_asks_all_health_endpoints_at_once() {
    const ENDPOINTS: usize = 300;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Room for all of them before the first is taken.
    rustix::net::listen(&listener, 4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let asked: Vec<_> = listener.incoming().take(ENDPOINTS).map_while(Result::ok).collect();
        for mut stream in asked {
            let request = std::io::Read::read(&mut stream, &mut [0; 4096]);
            let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            request.and_then(|_| std::io::Write::write_all(&mut stream, answer)).ok();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let services: String =
        (0..ENDPOINTS).map(|at| format!("[service.s{at}]\nhealth = \"http://127.0.0.1:{port}/{at}\"\n")).collect();
    let config = write(folder.path(), "agent.toml", &services);
    let output = agent(&["doctor", "--config", &config, "--format", "json"]);
    let report = json(&output);
    let health: Vec<_> =
        report["probes"].as_array().unwrap().iter().filter(|probe| probe["probe"] == "health").collect();
    assert_eq!(health.len(), ENDPOINTS);
    assert!(health.iter().all(|probe| probe["verdict"] == "ok"), "{}", stdout(&output));
}
