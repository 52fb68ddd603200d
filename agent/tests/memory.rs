//! The memory sense against the real `/proc/meminfo` and made-up ones.

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::HostRoot;
use muster_agent::senses::memory::MemoryProbe;
use muster_agent_core::judgement::Verdict;
use muster_agent_core::memory::Bands;
use muster_common::reason::Reason;
use std::sync::Arc;

fn context() -> Context {
    Context { now: clock::now(), services: Arc::default(), one_shot: true }
}

#[test]
fn the_real_host_answers() {
    let mut healthy = MemoryProbe::new(HostRoot::default(), Some(Bands { approaching_bytes: 1, critical_bytes: 0 }));
    assert_eq!(healthy.run(&context()).verdict(), Verdict::Ok);
    let bands = Bands { approaching_bytes: u64::MAX, critical_bytes: u64::MAX };
    let judgement = MemoryProbe::new(HostRoot::default(), Some(bands)).run(&context());
    assert_eq!(judgement.problems[0].reason, Reason::MemoryCritical);
    assert_eq!(judgement.problems.len(), 1);
}

#[test]
fn an_absent_or_old_meminfo_is_unknown() {
    let root = tempfile::tempdir().unwrap();
    let mut probe = MemoryProbe::new(HostRoot(root.path().to_owned()), None);
    assert_eq!(probe.run(&context()).verdict(), Verdict::Unknown);
    std::fs::create_dir(root.path().join("proc")).unwrap();
    std::fs::write(root.path().join("proc/meminfo"), "MemTotal: 1000 kB\nMemFree: 10 kB\n").unwrap();
    assert_eq!(probe.run(&context()).verdict(), Verdict::Unknown);
    std::fs::write(root.path().join("proc/meminfo"), "MemTotal: 1000 kB\nMemAvailable: 90 kB\n").unwrap();
    assert_eq!(probe.run(&context()).problems[0].reason, Reason::MemoryApproaching);
}
