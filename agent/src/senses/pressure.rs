//! Memory stalls of the host, and the memory of each service's own cgroup against its limits.
//!
//! PSI triggers are not used: they need a write to the kernel and a worker of it per cgroup (and privileges before Linux
//! 6.5), for a few seconds' gain over the interval; an OOM kill has its own wake in the kernel's log.

use super::HostRoot;
use super::cgroup::{Limited, MemoryCgroup, NoCgroup, host_psi};
use super::oom::log_is_open;
use crate::clock::boot_id;
use crate::probe::{Context, Probe, Remembered};
use muster_agent_core::judgement::{HAS_ENDED, Judgement, PROCESS_KEY};
use muster_agent_core::memory;
use muster_agent_core::pressure::psi::{HostJudge, StallRules};
use muster_agent_core::pressure::service::{PressureRules, Reading, ServiceJudge};
use muster_agent_core::services::is_of_one_service;
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use std::sync::PoisonError;

/// Limits are looked for this often; what is used is read every run.
const LIMITS_MS: u64 = 60_000;
/// The way to a process's own files.
const WAY_OUT_PROCESS: &str = "mount /proc without hidepid for the agent's group, or give the agent CAP_SYS_PTRACE";
/// The way to the cgroups of the host.
const WAY_OUT_CGROUP: &str = "the agent needs the host's cgroups at /sys/fs/cgroup: run it outside of a container, or in the host's cgroup namespace";

/// Watches the host's stalls.
#[derive(Debug)]
pub struct HostPressure {
    subject: SubjectKey,
    root: HostRoot,
    rules: StallRules,
    judge: HostJudge,
}

impl HostPressure {
    /// By these thresholds.
    pub fn new(root: HostRoot, rules: StallRules) -> Self {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Pressure, "memory stalls");
        Self { subject, root, rules, judge: HostJudge::default() }
    }
}

impl Probe for HostPressure {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let mut judgement = self.judge.judge(self.rules, host_psi(&self.root), context.now);
        if context.one_shot && !has_controller(&self.root) {
            let text = "none: limits of services are not seen; boot with cgroup_enable=memory";
            judgement.seen.insert("memory_controller", Value::Text(text.to_owned()));
        }
        judgement
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of(&self.judge)
    }

    fn restore(&mut self, saved: Remembered) {
        self.judge = saved.read().unwrap_or_default();
    }
}

/// Watches the memory cgroup of one service.
#[derive(Debug)]
pub struct ServicePressure {
    subject: SubjectKey,
    root: HostRoot,
    rules: PressureRules,
    judge: ServiceJudge,
    found: Option<Found>,
}

/// Where the service's memory is counted.
#[derive(Debug)]
struct Found {
    cgroup: String,
    at_ms: u64,
    memory: Result<MemoryCgroup, NoCgroup>,
    limited: Vec<Limited>,
}

impl ServicePressure {
    /// Of a service whose main process somebody notes.
    pub fn new(service: ServiceName, root: HostRoot, rules: PressureRules) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Pressure, "memory cgroup");
        Self { subject, root, rules, judge: ServiceJudge::default(), found: None }
    }

    /// `keep` what was found before, for a while.
    fn find(&mut self, cgroup: &str, now_ms: u64, keep: bool) -> &Found {
        let fresh = |found: &Found| keep && found.cgroup == cgroup && now_ms.saturating_sub(found.at_ms) < LIMITS_MS;
        let found = match self.found.take().filter(fresh) {
            Some(found) => found,
            None => {
                let memory = MemoryCgroup::find(&self.root, cgroup);
                let host_bytes = host_bytes(&self.root);
                let limited = memory.as_ref().map(|memory| memory.limited(host_bytes)).unwrap_or_default();
                Found { cgroup: cgroup.to_owned(), at_ms: now_ms, memory, limited }
            }
        };
        self.found.insert(found)
    }
}

impl Probe for ServicePressure {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let newest = {
            let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
            services.newest(&self.subject.service).cloned()
        };
        let Some(instance) = newest else { return Judgement::no_process() };
        let has_ended = instance.ended_boottime_ms.is_some();
        let Some(cgroup) = instance.cgroup else {
            let pid = instance.process.pid;
            return unseen(format!("/proc/{pid}/cgroup of its process cannot be read"), WAY_OUT_PROCESS, has_ended);
        };
        // That of an ended process may be removed at any time.
        let found = self.find(&cgroup, context.now.boottime_ms, !has_ended);
        let memory = match &found.memory {
            Ok(memory) if has_ended && !memory.is_there() => return gone(&cgroup),
            Ok(memory) => memory,
            Err(NoCgroup::Root) => return unlimited("its process is in the root cgroup"),
            Err(NoCgroup::NoController) => return unlimited("no memory controller is switched on for its cgroup"),
            Err(NoCgroup::Gone) if has_ended => return gone(&cgroup),
            Err(NoCgroup::Gone) => {
                return unseen(format!("its cgroup {cgroup} is not to be seen"), WAY_OUT_CGROUP, has_ended);
            }
            Err(NoCgroup::Hidden(why)) => return unseen(why.clone(), WAY_OUT_CGROUP, has_ended),
        };
        let (counters, psi) = (memory.counters(), memory.psi());
        let levels = found.limited.iter().filter_map(Limited::read).collect();
        let of_one_service = is_of_one_service(&cgroup);
        let asks = of_one_service && self.judge.sees_kill(&cgroup, &counters, context.one_shot);
        let log_is_open = !asks || log_is_open(&self.root);
        let reading = Reading { cgroup, of_one_service, counters, levels, psi, log_is_open };
        let name = self.subject.service.as_str();
        self.judge.judge(&self.rules, name, &reading, context.now, context.one_shot)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.root), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, judge)) = saved.read::<(BootId, ServiceJudge)>() else { return };
        // After a reboot every cgroup counts from zero.
        if !boot.0.is_nil() && boot == boot_id(&self.root) {
            self.judge = judge;
        }
    }
}

/// An answer: nobody could limit it.
fn unlimited(why: &str) -> Judgement {
    Judgement::ok(Evidence::new().text("limit", format!("none: {why}")))
}

/// What is no more uses no memory.
fn gone(cgroup: &str) -> Judgement {
    Judgement::ok(Evidence::new().text(PROCESS_KEY, HAS_ENDED).text("cgroup", cgroup).flag("cgroup_removed", true))
}

/// Of a process that has ended nobody needs to see the cgroup: that it is down is told by whoever names it.
fn unseen(why: String, way_out: &str, has_ended: bool) -> Judgement {
    if has_ended { Judgement::no_process() } else { Judgement::unknown(why, Some(way_out)) }
}

fn host_bytes(root: &HostRoot) -> u64 {
    let text = std::fs::read_to_string(root.path("/proc/meminfo")).unwrap_or_default();
    memory::parse(&text).map_or(u64::MAX, |host| host.total_bytes)
}

fn has_controller(root: &HostRoot) -> bool {
    let controllers = std::fs::read_to_string(root.path("/sys/fs/cgroup/cgroup.controllers")).unwrap_or_default();
    root.path("/sys/fs/cgroup/memory").is_dir() || controllers.split_whitespace().any(|name| name == "memory")
}
