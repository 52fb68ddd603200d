//! Units of a real systemd as the agent sees them: one that fails, one that is killed for memory, one that restarts in a
//! loop, one that is restarted by hand, one that is stopped.
//!
//! Needs root, and a tool beside this checkout that boots such a host; says so where one is missing.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Ends a command that hangs; the slowest one here (the first boot, which makes the host's files) needs half a minute.
const COMMAND_SECONDS_MAX: &str = "120";
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

fn run(command: &mut Command) -> Output {
    command.stdin(std::process::Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A booted host; it is powered off and removed at the end.
struct Host {
    tool: PathBuf,
    name: String,
}

impl Host {
    /// `None`, with a word on why, where it cannot be had.
    fn boot() -> Option<Self> {
        let skip = |why: &str| println!("skipped: units of a real systemd: {why}");
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tools/host-ns.sh");
        if !tool.exists() {
            skip("no tool to boot a host with");
            return None;
        }
        if text(&run(Command::new("id").arg("-u"))).trim() != "0" {
            skip("not root");
            return None;
        }
        let host = Self { tool, name: format!("units{}", std::process::id()) };
        let booted = host.tool(&["up", &host.name]);
        if !booted.status.success() {
            skip(&format!("the host does not boot here: {}", text(&booted).trim()));
            return None;
        }
        Some(host)
    }

    fn tool(&self, arguments: &[&str]) -> Output {
        run(Command::new("timeout").args(["-k", "5", COMMAND_SECONDS_MAX]).arg(&self.tool).args(arguments))
    }

    fn output(&self, script: &str) -> Output {
        self.tool(&["run", &self.name, "sh", "-euc", script])
    }

    /// Runs a shell script inside; it must succeed.
    fn sh(&self, script: &str) -> String {
        let output = self.output(script);
        if !output.status.success() {
            let log = text(&self.output("tail -n 60 /var/log/agent.log"));
            panic!("{script}\n{}\n{log}", text(&output));
        }
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until the agent's log has a line; the tool's time limit ends a wait for one that never comes.
    fn until_logged(&self, pattern: &str) {
        self.sh(&format!("until grep -q \"{pattern}\" /var/log/agent.log; do sleep 0.1; done"));
    }

    fn install(&self) {
        let folder = tempfile::tempdir().unwrap();
        let push = |name: &str, content: &str, to: &str| {
            let from = folder.path().join(name);
            std::fs::write(&from, content).unwrap();
            let output = self.tool(&["push", &self.name, &from.display().to_string(), to]);
            assert!(output.status.success(), "{to}: {}", text(&output));
        };
        for (name, runs, more) in UNITS {
            let unit = format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart={runs}\n{more}\n");
            push(name, &unit, &format!("/etc/systemd/system/{name}.service"));
        }
        let daemon = "[Service]\nExecStart=/usr/bin/muster-agent run --config /etc/agent.toml\n\
                      Environment=MUSTER_LOG=info\nStandardError=append:/var/log/agent.log\n";
        push("under-test", daemon, "/etc/systemd/system/agent-under-test.service");
        push("agent.toml", CONFIG, "/etc/agent.toml");
        let pushed = self.tool(&["push", &self.name, env!("CARGO_BIN_EXE_muster-agent"), "/usr/bin/muster-agent"]);
        assert!(pushed.status.success(), "{}", text(&pushed));
        self.sh("systemctl daemon-reload");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.tool(&["down", &self.name]);
    }
}

#[test]
fn units_of_a_real_systemd() {
    let Some(host) = Host::boot() else { return };
    host.install();
    host.sh("systemctl start good && systemctl start agent-under-test");
    host.until_logged("opened: ghost.service does not exist");

    // Each of these follows from a signal: the unit's own interval is a minute.
    host.output("systemctl start bad memory");
    host.until_logged("opened: bad.service has failed .*main process exited with status 3");
    host.until_logged("opened: memory.service has failed .*\\(SIGKILL\\|OOM killer\\)");

    host.sh("systemctl restart good");
    host.until_logged("good.service was restarted on request: .*SIGTERM");
    host.sh("kill -KILL $(systemctl show -P MainPID good)");
    host.until_logged("opened: good.service has failed .*SIGKILL");

    host.sh("systemctl start loop");
    host.until_logged("loop.service was restarted by systemd: .*status 7");
    host.until_logged("opened: loop keeps restarting: its last [0-9]* lives");

    // The bus goes and comes back; what happens afterwards is told as before.
    host.sh("systemctl restart dbus && systemctl start good && systemctl daemon-reload");
    host.until_logged("cleared: unit_failed .*key=good/unit/");
    host.sh("systemctl stop good");
    host.until_logged("opened: good.service is not running .*stopped (SIGTERM");

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
