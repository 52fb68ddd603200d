//! What only an older kernel and version 2 of cgroups show, on a machine of its own with Debian's kernel 6.1: a unit that
//! is killed at its own limit, one that does not feed its watchdog, one that systemd gives up, two near `memory.high` and
//! `memory.max`, killers in user space, declared properties, and an end of which systemd alone can tell.
//!
//! Needs root, a tool beside this checkout that boots such a machine, and `strip`; says so where one is missing. One boot
//! serves all: it is emulated, and slow.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod booted;
mod packages;

use booted::{Booted, text};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;

const WHAT: &str = "units and cgroups on kernel 6.1";
/// Ends a download that hangs.
const FETCH_SECONDS_MAX: &str = "120";
/// Looks until all units have answered.
const DOCTOR_TRIES_MAX: u32 = 30;
/// Killers in user space, out of Debian's packages: small, and without anything that they need besides.
const KILLERS: [&str; 2] = ["earlyoom", "systemd-oomd"];
const CONFIG: &str = r#"
[agent]
state_dir = "/var/lib/agent-under-test"
socket = "/run/agent-under-test.sock"
[memory]
approaching = "2B"
critical = "1B"
[probes]
process = "1s"
pid_file = "1s"
pressure = "1s"
baseline = "1s"
[pressure]
some_percent = 100
full_percent = 100
[service.memory]
unit = "memory.service"
[service.watchdog]
unit = "watchdog.service"
[service.limit]
unit = "limit.service"
[service.tight]
unit = "tight.service"
[service.full]
unit = "full.service"
[service.eater]
unit = "eater.service"
[service.good]
unit = "good.service"
pid_file = "/run/good.pid"
[service.good.baseline.unit]
MemoryMax = "64MiB"
Restart = "no"
LoadState = "loaded"
"#;
/// Fills its cgroup with pages of a file first, which are given back for what it holds then. `hold.py NAME MIB`.
const HOLD: &str = r#"
import sys, time
path, held = "/var/tmp/" + sys.argv[1], []
with open(path, "wb") as file:
    for _ in range(40):
        file.write(bytes(1 << 20))
for round in range(10000):
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass
    if round == 4:
        held.append(bytearray(b"x") * (int(sys.argv[2]) << 20))
    time.sleep(0.5)
"#;
/// (name, lines of `[Service]`). A unit named after a controller has a cgroup of another name.
const UNITS: [(&str, &str); 7] = [
    ("memory", "ExecStart=/usr/bin/python3 -c 'bytearray(200<<20)'\nMemoryMax=24M"),
    ("watchdog", "ExecStart=/bin/sleep 1000\nWatchdogSec=2s"),
    ("limit", "ExecStart=/bin/sh -c 'sleep 0.2; exit 7'\nRestart=always\nRestartSec=100ms"),
    (
        "tight",
        "ExecStart=/usr/bin/python3 /root/hold.py tight 25\nMemoryHigh=32M\n\
         ManagedOOMMemoryPressure=kill\nManagedOOMMemoryPressureLimit=1%",
    ),
    ("full", "ExecStart=/usr/bin/python3 /root/hold.py full 25\nMemoryMax=32M"),
    ("eater", "ExecStart=/usr/bin/python3 -c 'import time; held = bytearray(b\"x\") * (160 << 20); time.sleep(1000)'"),
    ("good", "ExecStart=/bin/sleep 1000\nExecStartPost=/bin/sh -c 'echo $MAINPID >/run/good.pid'\nMemoryMax=64M"),
];

/// Waits until the agent's log has a line.
fn until_logged(host: &Booted, pattern: &str) {
    host.until(&format!("grep -q '{pattern}' /var/log/agent.log"));
}

/// The machine, with units, programs and the agent on it; `false` without killers in user space.
fn boot() -> Option<(Booted, bool)> {
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("muster-agent");
    // The channel into the machine is slow, and nobody looks at symbols there.
    let mut strip = Command::new("strip");
    let strip = strip.arg("-o").arg(&stripped).arg(env!("CARGO_BIN_EXE_muster-agent")).status();
    if !strip.is_ok_and(|status| status.success()) {
        println!("skipped: {WHAT}: no strip (binutils)");
        return None;
    }
    let log = Some("grep -v probed /var/log/agent.log | tail -n 60; journalctl -b --no-pager | tail -n 30");
    let host = Booted::boot("host-vm.sh", WHAT, "vm", log)?;
    let push = |name: &str, content: &str, to: &str| {
        let from = folder.path().join(name);
        std::fs::write(&from, content).unwrap();
        host.push(&from, to);
    };
    host.push(&stripped, "/usr/bin/muster-agent");
    push("agent.toml", CONFIG, "/etc/agent.toml");
    push("hold.py", HOLD, "/root/hold.py");
    let agent = "ExecStart=/usr/bin/muster-agent run --config /etc/agent.toml\n\
                 Environment=MUSTER_LOG=info,muster_agent=debug\nStandardError=append:/var/log/agent.log";
    for (name, lines) in UNITS.into_iter().chain([("agent-under-test", agent)]) {
        let unit = format!("[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n[Service]\n{lines}\n");
        push(name, &unit, &format!("/etc/systemd/system/{name}.service"));
    }
    let killers = killers();
    for package in killers.iter().flatten() {
        host.push(package, &format!("/root/{}", package.file_name().unwrap().to_string_lossy()));
    }
    if killers.is_some() {
        host.sh("printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
             dpkg -i /root/*.deb >/root/install.log 2>&1
             echo 'EARLYOOM_ARGS=\"-r 0 -m 60 -s 100\"' >/etc/default/earlyoom");
    } else {
        println!("skipped: killers in user space: their packages cannot be had: no apt, or no network");
    }
    host.sh("systemctl daemon-reload");
    Some((host, killers.is_some()))
}

/// Their packages, fetched once.
fn killers() -> Option<Vec<PathBuf>> {
    let folder = packages::fetched("killer-debs", &KILLERS, FETCH_SECONDS_MAX)?;
    let files = std::fs::read_dir(folder).ok()?.filter_map(|file| Some(file.ok()?.path()));
    Some(files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

#[test]
fn an_older_kernel_and_version_2_of_cgroups() {
    let Some((host, with_killers)) = boot() else { return };
    host.sh("systemctl start good agent-under-test");
    // Declared as applied, of the unit's own type and of all types.
    until_logged(&host, "probed subject=good/baseline/declared settings verdict=\"ok\"");
    // Looked for once a minute, hence removed now.
    host.until("test -d /var/lib/agent-under-test/scratch");
    host.sh("rmdir /var/lib/agent-under-test/scratch");

    host.sh("systemctl start --no-block memory watchdog limit tight full");
    failures(&host);
    limits(&host);
    drift(&host);
    the_end_that_systemd_tells(&host);
    if with_killers {
        killers_in_user_space(&host);
    }
    until_logged(&host, "the folder for copies of databases was removed: it is made again");
    host.sh("test -d /var/lib/agent-under-test/scratch");
    // A pidfd does not hang up here when a parent reaps: who was reaped is no zombie all the same.
    host.until(
        "test $(grep -c 'opened: .*/process_zombie ' /var/log/agent.log) = \
         $(grep -c 'cleared: .*/process_zombie' /var/log/agent.log)",
    );
    what_doctor_says(&host);
}

/// By systemd's own results.
fn failures(host: &Booted) {
    // The kernel's cgroup is `_memory.service`, the unit's name is not.
    until_logged(
        host,
        "occurred: the kernel killed python3 (pid [0-9]*, service memory) while it used [0-9.]* MiB: \
         cgroup /system.slice/_memory.service reached its limit of 24 MiB",
    );
    until_logged(host, "opened: memory.service has failed .*: the OOM killer killed a process of it");
    until_logged(host, "opened: watchdog.service has failed .*: it did not report to its watchdog in time");
    until_logged(host, "limit.service was restarted by systemd: .*status 7");
    until_logged(
        host,
        "opened: limit.service has failed .*status 7; systemd gave up after [0-9] automatic restarts (start limit)",
    );
    let by_hand = host.output("grep 'limit.service was restarted on request' /var/log/agent.log");
    assert_eq!(by_hand.status.code(), Some(1), "nobody did: {}", text(&by_hand));
}

/// `memory.high` throttles and `memory.max` reclaims; neither kills as long as pages can be given back.
fn limits(host: &Booted) {
    for (service, file, name) in [("tight", "memory.high", "memory.high"), ("full", "memory.max", "the limit")] {
        until_logged(
            host,
            &format!(
                "opened: {service} uses .* of its limit 32 MiB ({file} of /system.slice/{service}.service), .* of it \
                 cannot be given back, hit {name} [0-9]* times in the last minute"
            ),
        );
    }
    host.sh("systemctl stop full");
}

/// A declared property of a real unit, changed and changed back.
fn drift(host: &Booted) {
    host.sh("systemctl set-property --runtime good.service MemoryMax=128M");
    until_logged(host, "opened: .*MemoryMax of good.service is 134217728 (128 MiB), declared is 67108864 (64 MiB)");
    host.sh("systemctl set-property --runtime good.service MemoryMax=64M");
    until_logged(host, "cleared: baseline_drift .*key=good/baseline/");
}

/// Linux 6.1 tells a stranger nothing of an exit.
fn the_end_that_systemd_tells(host: &Booted) {
    host.sh("kill -KILL $(cat /run/good.pid)");
    // By its pid file or by its unit, whichever looks first.
    until_logged(host, "good (sleep, pid [0-9]*) ended at [0-9:]*Z by SIGKILL .* key=good/.*/process_down");
    until_logged(host, "opened: good.service has failed .*: its main process was killed by SIGKILL");
}

/// The first look of somebody who has just come, where no agent runs: reasons, causes, what to do.
fn what_doctor_says(host: &Booted) {
    host.sh("systemctl stop agent-under-test");
    // It waits for nobody longer than a second, and systemd is slow here.
    let all_answered = |report: &Value| report["unknown"].as_array().unwrap().iter().all(|one| one["probe"] != "unit");
    let mut looks = (0..DOCTOR_TRIES_MAX).map(|_| {
        let doctor = host.output("muster-agent doctor --config /etc/agent.toml --format json");
        assert_eq!(doctor.status.code(), Some(2), "{}", text(&doctor));
        serde_json::from_slice::<Value>(&doctor.stdout).unwrap()
    });
    let report = looks.find(all_answered).expect("systemd answers");
    let cause_of = |service: &str| {
        let all = report["diagnoses"].as_array().unwrap();
        let ours: Vec<&Value> = all.iter().filter(|diagnosis| diagnosis["service"] == service).collect();
        let [one] = ours.as_slice() else { panic!("{service}: {report:#}") };
        (*one).clone()
    };
    let memory = cause_of("memory");
    assert_eq!(memory["cause"]["reason"], "oom_kill", "{memory:#}");
    assert!(memory["links"].as_array().unwrap().iter().any(|link| link["reason"] == "unit_failed"), "{memory:#}");
    assert!(memory["summary"].as_str().unwrap().contains("reached its limit of 24 MiB"), "{memory:#}");
    assert!(memory["next_steps"].to_string().contains("MemoryMax="), "{memory:#}");
    let watchdog = cause_of("watchdog");
    assert_eq!(watchdog["cause"]["reason"], "unit_failed", "{watchdog:#}");
    assert!(watchdog["next_steps"].to_string().contains("WatchdogUSec"), "{watchdog:#}");
    let limit = cause_of("limit");
    assert!(matches!(limit["cause"]["reason"].as_str(), Some("unit_failed" | "restart_loop")), "{limit:#}");
    assert!(limit["next_steps"].to_string().contains("systemctl reset-failed limit.service"), "{limit:#}");
}

/// Graded lower than the kernel's word, and given to the service all the same.
fn killers_in_user_space(host: &Booted) {
    host.sh("systemctl start earlyoom && systemctl start eater");
    until_logged(
        host,
        "occurred: earlyoom sent SIGTERM to python3 (pid [0-9]*), which used [0-9]* MiB (service eater)",
    );
    host.sh("systemctl stop earlyoom");
    until_logged(
        host,
        "occurred: systemd-oomd killed the processes of /system.slice/tight.service: memory pressure (service tight)",
    );
    until_logged(host, "opened: tight.service has failed .*: the OOM killer killed a process of it");
    // All in one sentence, by its unit's.
    until_logged(
        host,
        "(systemd-oomd killed the processes of .*; its end (SIGKILL) was seen.*; likely behind it: tight uses .* \
         (memory.high of /system.slice/tight.service), .*key=tight/unit/tight.service/unit_failed",
    );
}
