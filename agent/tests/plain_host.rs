//! `doctor` and `init` on a plain Debian host, without any config: sshd, cron, PostgreSQL, nginx and redis are found with
//! their units, ports and logs, and of a host that is well nothing bad is told.
//!
//! Needs root, a tool beside this checkout that boots such a host, and the packages; says so where one is missing.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod booted;
mod packages;

use booted::{Booted, text};
use std::path::Path;
use std::process::{Command, Stdio};

/// Ends a download that hangs.
const FETCH_SECONDS_MAX: &str = "300";
const PACKAGES: [&str; 5] = ["openssh-server", "cron", "postgresql", "nginx-light", "redis-server"];
/// Service, its port, one of its logs beside the journal.
const EXPECTED: [(&str, &str, &str); 5] = [
    ("cron", "", ""),
    ("nginx", "0.0.0.0:80", "/var/log/nginx/error.log"),
    ("postgresql@15-main", "127.0.0.1:5432", "/var/log/postgresql/postgresql-15-main.log"),
    ("redis-server", "127.0.0.1:6379", "/var/log/redis/redis-server.log"),
    ("ssh", "0.0.0.0:22", ""),
];

/// A host with the packages installed and running, and the agent beside them.
fn boot() -> Option<Booted> {
    let what = "a plain Debian host";
    let host = Booted::boot("host-ns.sh", what, "plain", None)?;
    let Some(packages) = packages::fetched("plain-debs", &PACKAGES, FETCH_SECONDS_MAX) else {
        println!("skipped: {what}: its packages cannot be had: no apt, or no network");
        return None;
    };
    push_folder(&host, &packages, "/root/debs");
    // The order on the command line does not heed what must be there before: what was refused comes second.
    host.sh("export DEBIAN_FRONTEND=noninteractive; \
         dpkg -i /root/debs/*.deb >/root/install.log 2>&1 || dpkg -i /root/debs/cron_*.deb >>/root/install.log 2>&1");
    host.push(Path::new(env!("CARGO_BIN_EXE_muster-agent")), "/usr/bin/muster-agent");
    Some(host)
}

fn push_folder(host: &Booted, from: &Path, to: &str) {
    let mut tar = Command::new("tar");
    tar.args(["-C", &from.display().to_string(), "--exclude=partial", "--exclude=lock", "-cf", "-", "."]);
    let mut tar = tar.stdout(Stdio::piped()).spawn().unwrap();
    let unpack = format!("mkdir -p {to} && tar -C {to} -xf -");
    let output = host.tool("run", &["sh", "-euc", &unpack], tar.stdout.take().unwrap().into());
    tar.wait().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// What it shares with the machine below, and says nothing about it: the kernel's log and the room on the disk.
const SHARED: [&str; 3] = ["oom_kill", "disk_space_low", "disk_inodes_low"];

/// What `doctor` says, beside what the machine below is to blame for.
fn findings(host: &Booted, arguments: &str) -> (Vec<String>, String) {
    let output = host.output(&format!("muster-agent doctor --format json {arguments}"));
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    let told = ["findings", "unknown"].iter().flat_map(|key| report[key].as_array().unwrap());
    let told =
        told.filter(|told| !SHARED.iter().any(|reason| told["reason"] == *reason)).map(ToString::to_string).collect();
    (told, format!("{report:#}"))
}

#[test]
fn a_plain_host_is_found_whole_and_well() {
    let Some(host) = boot() else { return };
    // Right after the start, and without a config.
    let (told, report) = findings(&host, "");
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
    let (told, report) = findings(&host, "--config /root/agent.toml");
    assert_eq!(told, Vec::<String>::new(), "{report}");
    let (told, report) = findings(&host, "--config /root/agent.toml --deep");
    assert_eq!(told, Vec::<String>::new(), "{report}");

    // What goes wrong is told: the same config, one service less.
    host.sh("systemctl kill -s KILL nginx.service");
    host.until("systemctl is-failed nginx.service");
    let (told, report) = findings(&host, "--config /root/agent.toml");
    assert!(told.iter().any(|told| told.contains("\"nginx\"")), "{report}");
    assert!(told.iter().all(|told| told.contains("\"nginx\"")), "{report}");

    // The same without any config, also of what has no process and no pid file left.
    host.sh("systemctl stop redis-server.service");
    let (told, report) = findings(&host, "");
    for down in ["\"nginx\"", "\"redis-server\""] {
        assert!(told.iter().any(|told| told.contains(down)), "{report}");
    }
    let init = host.sh("muster-agent init");
    for line in
        ["\"nginx.service\"   # it has failed", "\"redis-server.service\"   # it is enabled, and was not running"]
    {
        assert!(init.contains(line), "{line}: {init}");
    }

    // What somebody elsewhere gets of it holds what the journal says of its end.
    host.sh("muster-agent bundle --config /root/agent.toml --output /root/bundle.tar.gz");
    let listed = host.sh("muster-agent doctor --bundle /root/bundle.tar.gz --list");
    let journal = listed.split_whitespace().find(|word| word.ends_with("journal-nginx.service.log"));
    let journal = journal.unwrap_or_else(|| panic!("{listed}"));
    let slice = host.sh(&format!("muster-agent doctor --bundle /root/bundle.tar.gz --show {journal}"));
    for line in ["Started nginx.service", "code=killed, status=9/KILL", "Failed with result 'signal'"] {
        assert!(slice.contains(line), "{line}: {slice}");
    }
}
