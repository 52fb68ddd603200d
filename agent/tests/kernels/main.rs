//! What several kernels print below `/proc` and `/sys/fs/cgroup`, read by the agent's own senses: the folders beside this
//! file are host roots. Figures that a kernel does not tell are absent or unknown with a way out, never zero.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::cgroup::MemoryCgroup;
use muster_agent::senses::memory::MemoryProbe;
use muster_agent::senses::oom::OomProbe;
use muster_agent::senses::pressure::{HostPressure, ServicePressure};
use muster_agent::senses::process_watch::ProcessWatch;
use muster_agent::senses::{HostRoot, process};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::locks::table;
use muster_agent_core::memory::{self, Absent};
use muster_agent_core::pid_file::ProcessReading;
use muster_agent_core::pressure::psi::StallRules;
use muster_agent_core::pressure::service::PressureRules;
use muster_agent_core::process::growth::GrowthRules;
use muster_agent_core::process::proc_text;
use muster_agent_core::process::watch::ProcessRules;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::Value;
use muster_common::ids::{ProcessId, ServiceName};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PID: u32 = 4188;
const KIB: u64 = 1024;
const GROWTH: GrowthRules = GrowthRules { window: Duration::from_secs(3600), by_at_least: 1 << 20, by_percent: 20 };
const RULES: ProcessRules =
    ProcessRules { open_files_percent: 80, memory_growth: GROWTH, zombie_children: 10, tells_end: true };
/// The most that fits into 64 bits when a kernel says it in KiB.
const KIB_MAX: u64 = 18_014_398_509_481_983;

fn host(name: &str) -> HostRoot {
    let root = HostRoot(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(name));
    assert!(root.path("/proc/sys/kernel/osrelease").exists() || name.ends_with("hidepid"), "{name}");
    root
}

fn text(root: &HostRoot, path: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(root.path(path)).unwrap()).into_owned()
}

fn of_process(root: &HostRoot, file: &str) -> String {
    text(root, &format!("/proc/{PID}/{file}"))
}

fn doctor(services: Services) -> Context {
    Context { now: clock::now(), services: Arc::new(Mutex::new(services)), one_shot: true }
}

/// `spl` with the process of a host.
fn services(start_ticks: u64, cgroup: Option<String>) -> Services {
    let mut services = Services::default();
    let instance = Instance {
        process: ProcessId { pid: PID, start_ticks },
        comm: "spl".to_owned(),
        exe: None,
        cgroup,
        first_seen_boottime_ms: 1,
        ended_boottime_ms: None,
    };
    services.note(&ServiceName::new("spl").unwrap(), instance);
    services
}

fn shown(judgement: &Judgement, key: &str) -> String {
    match judgement.seen.get(key) {
        Some(Value::Text(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}

/// Where the kernel has the process: its state, name, start and memory cgroup.
#[test]
fn a_process_is_read_on_every_kernel() {
    let unified = Some("/system.slice/spl.service");
    for (kernel, state, comm, start, cgroup) in [
        ("linux-4.4", "alive", "a) b (c", 1_241_436, unified),
        ("linux-4.18", "alive", "Web Content", 99, unified),
        ("linux-5.4-hybrid", "alive", "größe €", 1_241_436, unified),
        ("linux-5.10", "alive", "kworker/u16:3-events_unbound", 77, Some("/")),
        ("linux-5.15-musl", "alive", "spl\n2", 1_241_436, Some("/openrc.spl")),
        ("linux-6.12", "zombie", "größenwahnsi\u{fffd}", 1_241_436, Some("/system.slice/spl.service (deleted)")),
        ("linux-6.18", "alive", "((((", u64::MAX, Some("/a.slice/b:c.service/d e")),
    ] {
        let root = host(kernel);
        let (found, facts) = match process::read(&root, PID) {
            ProcessReading::Alive(facts) => ("alive", facts),
            ProcessReading::Zombie(facts) => ("zombie", facts),
            other => panic!("{kernel}: {other:?}"),
        };
        assert_eq!((found, facts.comm.as_str(), facts.process.start_ticks), (state, comm, start), "{kernel}");
        assert_eq!(facts.cgroup.as_deref(), cgroup, "{kernel}");
        // The agent's own reader of the same line agrees.
        let stat = proc_text::stat(&of_process(&root, "stat")).unwrap();
        assert_eq!((stat.comm.as_str(), stat.process), (comm, facts.process), "{kernel}");
    }
    // On a fake host nobody can ask beside procfs whether it is hidden.
    assert_eq!(process::read(&host("linux-6.1-hidepid"), PID), ProcessReading::Gone);
}

#[test]
fn figures_that_a_kernel_does_not_tell_are_absent() {
    let kib = |kib: u64| Some(kib * KIB);
    for (kernel, rss, anon, swap, threads) in [
        ("linux-2.6.32", kib(3928), None, kib(0), Some(4)),
        ("linux-4.4", kib(3928), None, kib(0), Some(4)),
        ("linux-4.18", kib(500_000), kib(480_000), kib(1000), Some(4)),
        ("linux-5.4-hybrid", kib(3928), kib(3000), kib(0), Some(4)),
        ("linux-5.10", None, None, None, Some(1)),
        ("linux-6.12", None, None, None, Some(1)),
        ("linux-6.18", kib(KIB_MAX), kib(KIB_MAX), kib(KIB_MAX), Some(2_147_483_647)),
    ] {
        let status = proc_text::status(&of_process(&host(kernel), "status"));
        let read = (status.rss_bytes, status.anon_bytes, status.swap_bytes, status.threads);
        assert_eq!(read, (rss, anon, swap, threads), "{kernel}");
        assert_eq!((status.voluntary_switches, status.involuntary_switches), (Some(150), Some(545)), "{kernel}");
    }
    // More than can be counted is the most that can.
    assert_eq!(proc_text::status(&of_process(&host("linux-6.18"), "status")).own_bytes(), Some(u64::MAX));
    let most = Some(u64::MAX / 2);
    for (kernel, soft, hard, space) in [
        ("linux-4.4", Some(1024), Some(1_048_576), None),
        ("linux-4.18", None, None, Some(8 << 30)),
        ("linux-6.12", Some(1024), Some(524_288), None),
        ("linux-6.18", most, most, None),
    ] {
        let limits = proc_text::limits(&of_process(&host(kernel), "limits"));
        assert_eq!((limits.open_files, limits.open_files_hard), (soft, hard), "{kernel}");
        assert_eq!(limits.address_space_bytes, space, "{kernel}");
    }
}

#[test]
fn memory_is_read_or_the_kernel_is_too_old() {
    for (kernel, total, available) in [
        ("linux-4.4", 4_046_508, 3_012_345),
        ("linux-5.15-musl", 2_014_000, 1_500_000),
        ("linux-6.18", KIB_MAX, KIB_MAX - 1),
    ] {
        let read = memory::parse(&text(&host(kernel), "/proc/meminfo")).unwrap();
        assert_eq!((read.total_bytes, read.available_bytes), (total * KIB, available * KIB), "{kernel}");
    }
    assert_eq!(memory::parse(&text(&host("linux-2.6.32"), "/proc/meminfo")), Err(Absent::NoLine("MemAvailable")));
    let unknown = MemoryProbe::new(host("linux-2.6.32"), None).run(&doctor(Services::default())).unknown.unwrap();
    assert!(unknown.way_out.unwrap().contains("Linux 3.14"));
}

#[test]
fn stalls_are_read_or_the_kernel_is_too_old() {
    let rules = StallRules { some_percent: 100, full_percent: 100 };
    for (kernel, told) in [
        ("linux-4.4", false),
        ("linux-4.18", false),
        ("linux-5.4-hybrid", true),
        ("linux-5.15-musl", false),
        ("linux-6.12", true),
        ("linux-6.18", true),
    ] {
        let judgement = HostPressure::new(host(kernel), rules).run(&doctor(Services::default()));
        assert_eq!(judgement.unknown.is_none(), told, "{kernel}: {judgement:?}");
        if let Some(unknown) = judgement.unknown {
            assert!(unknown.way_out.unwrap().contains("Linux 4.20"), "{kernel}");
        }
    }
}

/// (high, max, oom, kills), limits below 8 GiB, and whether the cgroup's own stalls are told.
#[test]
fn the_memory_cgroup_is_found_under_every_hierarchy() {
    type Counted = (Option<u64>, Option<u64>, Option<u64>, Option<u64>);
    let cases: [(&str, &str, Counted, &[u64], bool); 5] = [
        // Before 4.13 no cgroup counted its kills.
        ("linux-4.4", "/system.slice/spl.service", (None, Some(17), None, None), &[1_000_000_000], false),
        ("linux-4.18", "/system.slice/spl.service", (None, Some(0), None, Some(2)), &[], false),
        // Limits are version 1's, stalls are version 2's.
        ("linux-5.4-hybrid", "/system.slice/spl.service", (None, Some(0), None, Some(0)), &[1_000_000_000], true),
        ("linux-5.15-musl", "/openrc.spl", (Some(3), Some(2), Some(1), Some(1)), &[10_000], false),
        ("linux-6.18", "/a.slice/b:c.service/d e", (Some(u64::MAX), Some(2), Some(1), Some(1)), &[], true),
    ];
    for (kernel, path, counted, limits, stalls) in cases {
        let cgroup = MemoryCgroup::find(&host(kernel), path).unwrap();
        let counters = cgroup.counters();
        assert_eq!((counters.high, counters.max, counters.oom, counters.oom_kill), counted, "{kernel}");
        assert_eq!(counters.stopped, kernel.ends_with("hybrid"), "{kernel}");
        let levels: Vec<_> = cgroup.limited(8 << 30).iter().map(|level| level.read().unwrap()).collect();
        let bytes: Vec<u64> = levels.iter().flat_map(|level| &level.limits).map(|limit| limit.bytes).collect();
        assert_eq!(bytes, limits, "{kernel}");
        assert_eq!(cgroup.psi().is_some(), stalls, "{kernel}");
    }
    assert!(MemoryCgroup::find(&host("linux-5.10"), "/").is_err());
}

/// (locks on the inode, waiters, lines not understood)
#[test]
fn locks_of_every_kernel() {
    for (kernel, inode, watched, waiters, unread) in [
        ("linux-4.4", 131, 1, 1, 0),
        ("linux-4.18", 7, 1, 0, 0),
        ("linux-5.4-hybrid", 131, 0, 0, 0),
        ("linux-5.15-musl", 131, 1, 0, 0),
        ("linux-6.12", 131, 1, 2, 0),
        // A class that no kernel has yet is a lock all the same.
        ("linux-6.18", 131, 1, 0, 1),
    ] {
        let table = table::parse(&text(&host(kernel), "/proc/locks"), &BTreeSet::from([inode]));
        let waiting: usize = table.contended.iter().map(|contended| contended.waiters.len()).sum();
        assert_eq!((table.watched.len(), waiting, table.unread_lines), (watched, waiters, unread), "{kernel}");
    }
}

/// What a probe cannot know on this kernel stands in what `doctor` shows of it.
#[test]
fn a_probe_says_what_its_kernel_lacks() {
    let process = |kernel: &str, start_ticks| {
        let mut probe = ProcessWatch::new(ServiceName::new("spl").unwrap(), host(kernel), RULES, None);
        probe.run(&doctor(services(start_ticks, None)))
    };
    for (kernel, by_pidfd, tells_exit) in
        [("linux-4.4", false, false), ("linux-4.18", false, false), ("linux-5.4-hybrid", true, false)]
    {
        let start = if kernel == "linux-4.18" { 99 } else { 1_241_436 };
        let seen = process(kernel, start);
        assert_eq!(shown(&seen, "exit_watch").contains("Linux 5.3"), !by_pidfd, "{kernel}: {:?}", seen.seen);
        assert_eq!(
            shown(&seen, "exit_status_unknown").contains("Linux 6.15"),
            !tells_exit,
            "{kernel}: {:?}",
            seen.seen
        );
    }
    let newest = process("linux-6.18", u64::MAX);
    assert!(newest.seen.get("exit_watch").is_none() && newest.seen.get("exit_status_unknown").is_none(), "{newest:?}");
    // The folder of descriptors is not there at all: said, with the way out.
    assert!(newest.unknown.unwrap().way_out.unwrap().contains("6.2"));

    let pressure = |kernel: &str, cgroup: &str| {
        let rules = PressureRules { stalls: StallRules { some_percent: 100, full_percent: 100 }, limit_percent: 100 };
        let mut probe = ServicePressure::new(ServiceName::new("spl").unwrap(), host(kernel), rules);
        probe.run(&doctor(services(1, Some(cgroup.to_owned()))))
    };
    let old = pressure("linux-4.4", "/system.slice/spl.service");
    assert!(shown(&old, "oom_kills_unknown").contains("Linux 4.13"), "{:?}", old.seen);
    assert!(shown(&old, "stalls_unknown").contains("Linux 4.20"), "{:?}", old.seen);
    let new = pressure("linux-6.18", "/a.slice/b:c.service/d e");
    assert!(new.seen.get("stalls_unknown").is_none() && new.seen.get("oom_kills_unknown").is_none());

    // No kernel log on a fake host: unknown, with the way out.
    let unknown = OomProbe::new(host("linux-4.4")).run(&doctor(Services::default())).unknown.unwrap();
    assert!(unknown.why.contains("/dev/kmsg") && unknown.way_out.is_some());
}
