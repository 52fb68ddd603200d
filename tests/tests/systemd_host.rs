//! The shipped units on a host whose PID 1 is a real systemd, in namespaces of its own: started, watched, reloaded,
//! stopped and shut down as an administrator does it.
//!
//! Needs root, the built binaries, and a tool beside this checkout that boots such a host; says so where one is missing.
//! Builds nothing itself.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

#[path = "../../agent/tests/booted/mod.rs"]
mod booted;

use booted::Booted;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Ends a wait for a host that does not go down.
const POWEROFF_SECONDS_MAX: &str = "120";
/// For a failure's message.
const LOG: &str = "cat /var/log/muster-agent.log; journalctl --no-pager -b -u 'muster-*' | tail -n 60";
/// CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE.
const AGENT_CAPABILITIES: &str = "0000000000080004";
const NO_CAPABILITIES: &str = "0000000000000000";
/// A watchdog that is quick to bite, and a log that outlives the host.
const AGENT_DROP_IN: &str = "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n\
    StandardError=append:/var/log/muster-agent.log\nEnvironment=MUSTER_LOG=warn,muster_agent=debug\n";
const BINARIES: [&str; 3] = ["muster-agent", "muster-coordinator", "musterctl"];

fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Where cargo puts binaries: this test runs in the `deps` below it.
fn binary(name: &str) -> PathBuf {
    std::env::current_exe().unwrap().parent().and_then(Path::parent).unwrap().join(name)
}

/// The booted host, with what is installed on it.
struct Host {
    booted: Booted,
    folder: tempfile::TempDir,
}

impl Host {
    /// `None`, with a word on why, where it cannot be had.
    fn boot() -> Option<Self> {
        let what = "the units on a real systemd";
        if let Some(missing) = BINARIES.iter().find(|name| !binary(name).exists()) {
            println!("skipped: {what}: {missing} is not built");
            return None;
        }
        Some(Self {
            booted: Booted::boot("host-ns.sh", what, "muster", Some(LOG))?,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn sh(&self, script: &str) -> String {
        self.booted.sh(script)
    }

    fn until(&self, condition: &str) {
        self.booted.until(condition);
    }

    fn push(&self, from: &Path, to: &str) {
        self.booted.push(from, to);
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show -P {name} {unit}"))
    }

    /// How the coordinator sees the agent: state and why.
    fn agent_is(&self, state: &str, reason: &str) {
        self.until(&format!(
            "musterctl agents list --format json >/tmp/agents && grep -q '\"state\": \"{state}\"' /tmp/agents \
             && grep -q '\"state_reason\": \".*{reason}' /tmp/agents"
        ));
    }

    /// As `systemd/README.md` tells.
    fn install(&self) {
        for (from, to) in [
            ("muster.sysusers", "/usr/lib/sysusers.d/muster.conf"),
            ("muster.tmpfiles", "/usr/lib/tmpfiles.d/muster.conf"),
            ("muster-agent.service", "/etc/systemd/system/muster-agent.service"),
            ("muster-coordinator.service", "/etc/systemd/system/muster-coordinator.service"),
        ] {
            self.push(&checkout("systemd").join(from), to);
        }
        for name in BINARIES {
            self.push(&binary(name), &format!("/usr/bin/{name}"));
        }
        self.sh("systemd-sysusers 2>/dev/null && systemd-tmpfiles --create muster.conf");
        self.push(&checkout("systemd/config/coordinator.toml"), "/etc/muster/coordinator.toml");
        let config = std::fs::read_to_string(checkout("systemd/config/agent.toml")).unwrap();
        let ours = self.folder.path().join("agent.toml");
        let coordinator = "[coordinator]\nendpoints = [\"https://127.0.0.1:7420\"]\n";
        std::fs::write(&ours, config.replace("[tls]", &format!("{coordinator}[tls]"))).unwrap();
        self.push(&ours, "/etc/muster/agent.toml");
        self.sh("cd /root
             muster-coordinator ca init --dir ca --fleet prod
             muster-coordinator ca issue --dir ca --role coordinator --name coord-a --san 127.0.0.1 --out coordinator
             muster-coordinator ca issue --dir ca --role agent --name web-1 --out agent
             install -m 0640 -g muster-agent agent/*.pem /etc/muster/agent/
             install -m 0600 -o muster-coordinator coordinator/*.pem /etc/muster/coordinator/");
        let drop_in = self.folder.path().join("test.conf");
        std::fs::write(&drop_in, AGENT_DROP_IN).unwrap();
        self.sh("mkdir /etc/systemd/system/muster-agent.service.d");
        self.push(&drop_in, "/etc/systemd/system/muster-agent.service.d/test.conf");
        self.sh("systemctl daemon-reload");
    }

    fn holds(&self, unit: &str, capabilities: &str) {
        let status = self.sh(&format!("cat /proc/$(systemctl show -P MainPID {unit})/status"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t{capabilities}")), "{unit}: {set}\n{status}");
        }
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
        assert_ne!(self.property(unit, "User"), "root");
    }
}

#[test]
fn the_units_on_a_real_systemd() {
    let Some(host) = Host::boot() else { return };
    host.install();

    // Type=notify: a start returns when both are ready, not before.
    host.sh("systemctl start muster-coordinator && musterctl status");
    host.sh("systemctl start muster-agent");
    host.agent_is("live", "heard");
    host.holds("muster-agent", AGENT_CAPABILITIES);
    host.holds("muster-coordinator", NO_CAPABILITIES);

    // The kernel log is handed over as descriptor 0; without CAP_SYSLOG nobody could open it.
    let pid = host.property("muster-agent", "MainPID");
    assert_eq!(host.sh(&format!("readlink /proc/{pid}/fd/0")), "/dev/kmsg");
    host.until("grep -q 'probed.*host/oom/.*\"ok\"' /var/log/muster-agent.log");

    host.sh("systemctl reload muster-agent muster-coordinator");
    host.until("grep -q 'config read again' /var/log/muster-agent.log");
    assert_eq!(host.property("muster-agent", "MainPID"), pid, "a reload is no restart");

    the_watchdog_is_fed_and_bites(&host);

    host.sh("systemctl stop muster-agent");
    host.agent_is("stopped", "said goodbye (stopped)");
    assert_eq!(host.property("muster-agent", "Result"), "success");

    the_reduced_agent_starts(&host);
    the_whole_host_goes_down(&host);
}

fn the_watchdog_is_fed_and_bites(host: &Host) {
    // Heard of over more than three of its periods: no restart before that is none by luck.
    host.until(
        "test $(($(systemctl show -P WatchdogTimestampMonotonic muster-agent) \
         - $(systemctl show -P ActiveEnterTimestampMonotonic muster-agent))) -gt 7000000",
    );
    assert_eq!(host.property("muster-agent", "NRestarts"), "0");
    host.sh("kill -STOP $(systemctl show -P MainPID muster-agent)");
    host.until("test $(systemctl show -P NRestarts muster-agent) = 1");
    host.until("systemctl -q is-active muster-agent");
    host.agent_is("live", "heard");
}

/// Without any capability: it runs, and is heard.
fn the_reduced_agent_starts(host: &Host) {
    let drop_ins = "/etc/systemd/system/muster-agent.service.d";
    host.push(&checkout("systemd/muster-agent.service.d/reduced.conf"), &format!("{drop_ins}/reduced.conf"));
    host.sh("systemctl daemon-reload && systemctl start muster-agent");
    host.agent_is("live", "heard");
    host.holds("muster-agent", NO_CAPABILITIES);
}

fn the_whole_host_goes_down(host: &Host) {
    let kept = host.booted.tool("leader", &[], Stdio::null());
    let leader = String::from_utf8_lossy(&kept.stdout).trim().to_owned();
    // What the host writes can be read through its PID 1, until that ends; this descriptor stays.
    let mut log = std::fs::File::open(format!("/proc/{leader}/root/var/log/muster-agent.log")).unwrap();
    host.booted.output("systemctl poweroff");
    let mut wait = Command::new("timeout");
    wait.args([POWEROFF_SECONDS_MAX, "tail", "--pid", &leader, "-f", "/dev/null"]).stdin(Stdio::null());
    assert!(wait.status().unwrap().success(), "the host does not go down");
    let mut told = String::new();
    std::io::Read::read_to_string(&mut log, &mut told).unwrap();
    assert!(told.lines().rev().any(|line| line.contains("saying goodbye") && line.contains("Host")), "{told}");
}
