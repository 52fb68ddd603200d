//! Units of a real systemd as the agent sees them: one that fails, one that is killed for memory, one that restarts in a
//! loop, one that is restarted by hand, one that is stopped.
//!
//! Needs root, and a tool beside this checkout that boots such a host; says so where one is missing.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod booted;

use booted::{Booted, text};
use std::path::Path;

const CONFIG: &str = r#"
[agent]
state_dir = "/var/lib/agent-under-test"
socket = "/run/agent-under-test.sock"
[probes]
process = "1s"
[service.good]
unit = "good.service"
[service.bad]
unit = "bad.service"
[service.loop]
unit = "loop.service"
[service.memory]
unit = "memory.service"
[service.ghost]
unit = "ghost.service"
[service.job]
unit = "systemd-tmpfiles-clean.service"
"#;
/// (name, what it runs, more of `[Service]`)
const UNITS: [(&str, &str, &str); 4] = [
    ("good", "/bin/sleep 1000", ""),
    ("bad", "/bin/sh -c 'exit 3'", ""),
    ("loop", "/bin/sh -c 'sleep 0.2; exit 7'", "Restart=always\nRestartSec=100ms"),
    ("memory", "/usr/bin/python3 -c 'bytearray(200<<20)'", "MemoryMax=30M"),
];

/// Waits until the agent's log has a line.
fn until_logged(host: &Booted, pattern: &str) {
    host.until(&format!("grep -q \"{pattern}\" /var/log/agent.log"));
}

fn install(host: &Booted) {
    let folder = tempfile::tempdir().unwrap();
    let push = |name: &str, content: &str, to: &str| {
        let from = folder.path().join(name);
        std::fs::write(&from, content).unwrap();
        host.push(&from, to);
    };
    for (name, runs, more) in UNITS {
        let unit = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart={runs}\n{more}\n");
        push(name, &unit, &format!("/etc/systemd/system/{name}.service"));
    }
    let daemon = "[Service]\nExecStart=/usr/bin/muster-agent run --config /etc/agent.toml\n\
                  Environment=MUSTER_LOG=info\nStandardError=append:/var/log/agent.log\n";
    push("under-test", daemon, "/etc/systemd/system/agent-under-test.service");
    push("agent.toml", CONFIG, "/etc/agent.toml");
    host.push(Path::new(env!("CARGO_BIN_EXE_muster-agent")), "/usr/bin/muster-agent");
    host.sh("systemctl daemon-reload");
}

#[test]
fn units_of_a_real_systemd() {
    let log = Some("tail -n 60 /var/log/agent.log");
    let Some(host) = Booted::boot("host-ns.sh", "units of a real systemd", "units", log) else { return };
    install(&host);
    host.sh("systemctl start good && systemctl start agent-under-test");
    until_logged(&host, "opened: ghost.service does not exist");

    // Each of these follows from a signal: the unit's own interval is a minute.
    host.output("systemctl start bad memory");
    until_logged(&host, "opened: bad.service has failed .*main process exited with status 3");
    until_logged(&host, "opened: memory.service has failed .*\\(SIGKILL\\|OOM killer\\)");

    host.sh("systemctl restart good");
    until_logged(&host, "good.service was restarted on request: .*SIGTERM");
    host.sh("kill -KILL $(systemctl show -P MainPID good)");
    until_logged(&host, "opened: good.service has failed .*SIGKILL");

    host.sh("systemctl start loop");
    until_logged(&host, "loop.service was restarted by systemd: .*status 7");
    until_logged(&host, "opened: loop keeps restarting: its last [0-9]* lives");

    // The bus goes and comes back; what happens afterwards is told as before.
    host.sh("systemctl restart dbus && systemctl start good && systemctl daemon-reload");
    until_logged(&host, "cleared: unit_failed .*key=good/unit/");
    host.sh("systemctl stop good");
    until_logged(&host, "opened: good.service is not running .*stopped (SIGTERM");

    // A first look, without any memory. Worse than a warning: it says so by its exit status.
    let doctor = host.output("/usr/bin/muster-agent doctor --config /etc/agent.toml --format json");
    assert_eq!(doctor.status.code(), Some(2), "{}", text(&doctor));
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let mut told: Vec<String> = report["findings"].as_array().unwrap().iter().map(finding).collect();
    told.retain(|finding| finding.contains("unit_") || finding.contains("restart_loop"));
    // Doctor may look between two of its lives.
    told.retain(|finding| finding != "loop unit_inactive");
    told.sort_unstable();
    let expected =
        ["bad unit_failed", "ghost unit_missing", "good unit_inactive", "loop restart_loop", "memory unit_failed"];
    assert_eq!(told, expected, "{report:#}");
    let unknown = report["unknown"].as_array().unwrap();
    assert!(unknown.iter().all(|unknown| unknown["probe"] != "unit"), "{unknown:?}");
    // The loop and a restart by hand are told apart.
    assert_eq!(host.output("grep -q 'opened: good keeps restarting' /var/log/agent.log").status.code(), Some(1));
}

fn finding(finding: &serde_json::Value) -> String {
    let word = |key: &str| finding[key].as_str().unwrap_or_default();
    format!("{} {}", word("service"), word("reason"))
}
