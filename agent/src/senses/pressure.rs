//! Memory stalls of the host, and the memory of each service's own cgroup against its limits.
//!
//! PSI triggers are not used: they need a write to the kernel and a worker of it per cgroup (and privileges before Linux
//! 6.5), for a few seconds' gain over the interval; an OOM kill has its own wake in the kernel's log.

use super::HostRoot;
use super::cgroup::{Limited, MemoryCgroup, NoCgroup, host_psi};
use super::oom::log_is_open;
use crate::clock::boot_id;
use crate::probe::{Context, Probe};
use muster_agent_core::judgement::Judgement;
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

    fn save(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.judge).ok()
    }

    fn restore(&mut self, saved: serde_json::Value) {
        self.judge = serde_json::from_value(saved).unwrap_or_default();
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

    fn find(&mut self, cgroup: &str, now_ms: u64) -> &Found {
        let fresh = |found: &Found| found.cgroup == cgroup && now_ms.saturating_sub(found.at_ms) < LIMITS_MS;
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
        let cgroup = {
            let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
            services.newest(&self.subject.service).map(|instance| instance.cgroup.clone())
        };
        let cgroup = match cgroup {
            Some(Some(cgroup)) => cgroup,
            Some(None) => return nothing("cgroup", "unknown: /proc/PID/cgroup of its process cannot be read"),
            // Whoever should name its process tells why it does not.
            None => return nothing("process", "no process of the service is known"),
        };
        let found = self.find(&cgroup, context.now.boottime_ms);
        let memory = match &found.memory {
            Ok(memory) => memory,
            Err(NoCgroup::Root) => return nothing("limit", "none: its process is in the root cgroup"),
            Err(NoCgroup::Hidden(why)) => return nothing("limit_unknown", why),
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

    fn save(&self) -> Option<serde_json::Value> {
        serde_json::to_value((boot_id(&self.root), &self.judge)).ok()
    }

    fn restore(&mut self, saved: serde_json::Value) {
        let Ok((boot, judge)) = serde_json::from_value::<(BootId, ServiceJudge)>(saved) else { return };
        // After a reboot every cgroup counts from zero.
        if !boot.0.is_nil() && boot == boot_id(&self.root) {
            self.judge = judge;
        }
    }
}

fn nothing(key: &str, text: &str) -> Judgement {
    Judgement::ok(Evidence::new().text(key, text))
}

fn host_bytes(root: &HostRoot) -> u64 {
    let text = std::fs::read_to_string(root.path("/proc/meminfo")).unwrap_or_default();
    memory::parse(&text).map_or(u64::MAX, |host| host.total_bytes)
}

fn has_controller(root: &HostRoot) -> bool {
    let controllers = std::fs::read_to_string(root.path("/sys/fs/cgroup/cgroup.controllers")).unwrap_or_default();
    root.path("/sys/fs/cgroup/memory").is_dir() || controllers.split_whitespace().any(|name| name == "memory")
}
