//! `doctor` and `init` on a plain Debian host, without any config: sshd, cron, PostgreSQL, nginx and redis are found with
//! their units, ports and logs, and of a host that is well nothing bad is told.
//!
//! Needs root, a tool beside this checkout that boots such a host, and the packages; says so where one is missing.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Ends a command that hangs; the slowest one here (installing the packages) needs half a minute.
const COMMAND_SECONDS_MAX: &str = "300";
const PACKAGES: [&str; 5] = ["openssh-server", "cron", "postgresql", "nginx-light", "redis-server"];
/// Service, its port, one of its logs beside the journal.
const EXPECTED: [(&str, &str, &str); 5] = [
    ("cron", "", ""),
    ("nginx", "0.0.0.0:80", "/var/log/nginx/error.log"),
    ("postgresql@15-main", "127.0.0.1:5432", "/var/log/postgresql/postgresql-15-main.log"),
    ("redis-server", "127.0.0.1:6379", "/var/log/redis/redis-server.log"),
    ("ssh", "0.0.0.0:22", ""),
];

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
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
        let skip = |why: &str| println!("skipped: a plain Debian host: {why}");
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tools/host-ns.sh");
        if !tool.exists() {
            skip("no tool to boot a host with");
            return None;
        }
        if text(&run(Command::new("id").arg("-u"))).trim() != "0" {
            skip("not root");
            return None;
        }
        let host = Self { tool, name: format!("plain{}", std::process::id()) };
        let booted = host.tool(&["up", &host.name], Stdio::null());
        if !booted.status.success() {
            skip(&format!("the host does not boot here: {}", text(&booted).trim()));
            return None;
        }
        let Some(packages) = packages() else {
            skip("its packages cannot be had: no apt, or no network");
            return None;
        };
        let mut tar = Command::new("tar")
            .args(["-C", &packages.display().to_string(), "--exclude=partial", "--exclude=lock", "-cf", "-", "."])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let unpack = "mkdir -p /root/debs && tar -C /root/debs -xf -";
        let unpacked = host.tool(&["run", &host.name, "sh", "-euc", unpack], tar.stdout.take().unwrap().into());
        tar.wait().unwrap();
        assert!(unpacked.status.success(), "{}", text(&unpacked));
        // The order on the command line does not heed what must be there before: what was refused comes second.
        host.sh(
            "export DEBIAN_FRONTEND=noninteractive; \
             dpkg -i /root/debs/*.deb >/root/install.log 2>&1 || dpkg -i /root/debs/cron_*.deb >>/root/install.log 2>&1",
        );
        let agent = env!("CARGO_BIN_EXE_muster-agent");
        let pushed = host.tool(&["push", &host.name, agent, "/usr/bin/muster-agent"], Stdio::null());
        assert!(pushed.status.success(), "{}", text(&pushed));
        Some(host)
    }

    fn tool(&self, arguments: &[&str], input: Stdio) -> Output {
        let mut command = Command::new("timeout");
        run(command.args(["-k", "5", COMMAND_SECONDS_MAX]).arg(&self.tool).args(arguments).stdin(input))
    }

    fn output(&self, script: &str) -> Output {
        self.tool(&["run", &self.name, "sh", "-euc", script], Stdio::null())
    }

    /// Runs a shell script inside; it must succeed.
    fn sh(&self, script: &str) -> String {
        let output = self.output(script);
        assert!(output.status.success(), "{script}\n{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What `doctor` says, beside kills for memory: this host shares the kernel's log with others.
    fn findings(&self, arguments: &str) -> (Vec<String>, String) {
        let output = self.output(&format!("muster-agent doctor --format json {arguments}"));
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
        let told = ["findings", "unknown"].iter().flat_map(|key| report[key].as_array().unwrap());
        let told = told.filter(|told| told["reason"] != "oom_kill").map(ToString::to_string).collect();
        (told, format!("{report:#}"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.tool(&["down", &self.name], Stdio::null());
    }
}

/// Files of the packages and all they need that the host has not; fetched once.
fn packages() -> Option<PathBuf> {
    let cache = std::env::var("REALHOST_CACHE").unwrap_or_else(|_| "/tmp/realhost".to_owned());
    let (folder, base) = (Path::new(&cache).join("plain-debs"), Path::new(&cache).join("base"));
    if !folder.join("complete").exists() {
        std::fs::create_dir_all(folder.join("partial")).ok()?;
        let mut apt = Command::new("timeout");
        apt.args(["-k", "5", COMMAND_SECONDS_MAX, "apt-get", "-y", "-q", "--no-install-recommends"]);
        apt.arg("-o").arg(format!("Dir::State::status={}", base.join("var/lib/dpkg/status").display()));
        apt.arg("-o").arg(format!("Dir::Cache::archives={}", folder.display()));
        apt.args(["-o", "Debug::NoLocking=1", "--download-only", "install"]).args(PACKAGES);
        let fetched = apt.stdin(Stdio::null()).output().ok()?;
        if !fetched.status.success() {
            return None;
        }
        std::fs::write(folder.join("complete"), "").ok()?;
    }
    Some(folder)
}

#[test]
fn a_plain_host_is_found_whole_and_well() {
    let Some(host) = Host::boot() else { return };
    // Right after the start, and without a config.
    let (told, report) = host.findings("");
    assert_eq!(told, Vec::<String>::new(), "{report}");

    let init = host.sh("muster-agent init");
    assert_eq!(init, host.sh("muster-agent init"));
    for (service, port, log) in EXPECTED {
        let name = if service.contains('@') { format!("\"{service}\"") } else { service.to_owned() };
        let section =
            init.split(&format!("\n[service.{name}]\n")).nth(1).unwrap_or_else(|| panic!("{service}: {init}"));
        let section = section.split("\n\n").next().unwrap();
        assert!(section.contains(&format!("unit = \"{service}.service\"")), "{section}");
        assert!(section.contains(&format!("\"journal:{service}.service\"")), "{section}");
        assert!(section.contains(port) && section.contains(log), "{section}");
    }
    assert_eq!(init.matches("\n[service.").count(), EXPECTED.len(), "{init}");

    let checked = host.sh("muster-agent init >/root/agent.toml; muster-agent check-config --config /root/agent.toml");
    assert!(checked.starts_with("ok: 5 services, 5 pid files,"), "{checked}");
    let (told, report) = host.findings("--config /root/agent.toml");
    assert_eq!(told, Vec::<String>::new(), "{report}");
    let (told, report) = host.findings("--config /root/agent.toml --deep");
    assert_eq!(told, Vec::<String>::new(), "{report}");

    // What goes wrong is told: the same config, one service less.
    host.sh("systemctl kill -s KILL nginx.service; until systemctl is-failed nginx.service; do sleep 0.1; done");
    let (told, report) = host.findings("--config /root/agent.toml");
    assert!(told.iter().any(|told| told.contains("\"nginx\"")), "{report}");
    assert!(told.iter().all(|told| told.contains("\"nginx\"")), "{report}");
}
