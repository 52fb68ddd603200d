//! On which hosts the services run of which there may be one. Agents tell it as changes; what an agent that is not heard
//! told last may be true or not, so it neither raises nor clears. The same holds for one that lost entries, among which may
//! be that it stopped: until it tells again, which it does every few hours. What a host ran before it was rebooted is over.
//!
//! That it is down on a host is told at once as a condition, and counts from then on; that it does not run as a singleton
//! is told later. While it runs on one host, that it is down on another is as it should be, and no fault there: the passive
//! one of two hosts, the one that a failover left behind, or the one where somebody stopped what was one too many.

use crate::apply::{Step, drop_if_empty, fallen};
use crate::cause;
use crate::detect;
use crate::entry::Disconnect;
use crate::signals;
use crate::state::{Link, MemberRef, OpenFinding, State};
use muster_common::evidence::Value;
use muster_common::finding::{Finding, FindingKey};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Services remembered; what is told of more is not compared.
pub const SERVICES_MAX: usize = 1024;
/// Hosts of one service remembered: two are too many already.
pub const HOSTS_MAX: usize = 64;

/// When two are too many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SingletonPolicy {
    /// A planned move may overlap for so long.
    pub hold: Duration,
}

impl Default for SingletonPolicy {
    fn default() -> Self {
        Self { hold: Duration::from_secs(120) }
    }
}

/// It runs on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Since when, by observed time.
    pub since: Timestamp,
    /// Index of the fact.
    pub index: u64,
    /// Index of the fact that told it last.
    #[serde(default)]
    pub told: u64,
    /// What the agent told after it may be lost.
    #[serde(default)]
    pub doubtful: bool,
}

/// Who runs what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Singletons {
    hosts: BTreeMap<ServiceName, BTreeMap<AgentName, Running>>,
    of_agent: BTreeMap<AgentName, BTreeSet<ServiceName>>,
    /// Since when, in log time, two heard agents have both told that it runs.
    beside: BTreeMap<ServiceName, Timestamp>,
    /// Where any service is told to be down, up to the same bounds: what is beyond them is a fault wherever else it runs.
    #[serde(default)]
    down: BTreeMap<ServiceName, BTreeSet<AgentName>>,
}

impl Singletons {
    /// What runs on a host.
    pub(crate) fn of_agent(&self, agent: &AgentName) -> impl Iterator<Item = &str> {
        self.of_agent.get(agent).into_iter().flatten().map(ServiceName::as_str)
    }

    /// Since when, in log time, more than one heard host has had it.
    pub(crate) fn beside(&self, service: &str) -> Option<Timestamp> {
        self.beside.iter().find(|(name, _)| name.as_str() == service).map(|(_, since)| *since)
    }
}

/// Cause key of one service.
pub fn cause_key(service: &str) -> String {
    format!("fleet/singleton/{service}")
}

pub(crate) fn occurred(state: &mut State, step: Step, agent: &AgentName, finding: &Finding, observed: Timestamp) {
    let text = |key: &str| match finding.evidence.get(key) {
        Some(Value::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    if finding.key.reason != Reason::Change || text("what") != Some("singleton") {
        return;
    }
    let service = finding.key.subject.service.clone();
    match text("new") {
        Some("running") => runs(state, step, agent, &service, observed),
        Some("stopped") => stopped(state, step, agent, &service),
        _ => {}
    }
}

fn runs(state: &mut State, step: Step, agent: &AgentName, service: &ServiceName, since: Timestamp) {
    let known = &mut state.signals.singletons;
    let room = known.hosts.len() < SERVICES_MAX || known.hosts.contains_key(service);
    if !room {
        return;
    }
    let hosts = known.hosts.entry(service.clone()).or_default();
    if let Some(running) = hosts.get_mut(agent) {
        (running.doubtful, running.told) = (false, step.index);
        return compare(state, step, service);
    }
    if hosts.len() >= HOSTS_MAX {
        return;
    }
    hosts.insert(agent.clone(), Running { since, index: step.index, told: step.index, doubtful: false });
    known.of_agent.entry(agent.clone()).or_default().insert(service.clone());
    let key = cause_key(service.as_str());
    let cause = state.causes.entry(key.clone()).or_default();
    cause.members.insert(agent.to_string(), MemberRef::of_agent(agent.clone()));
    cause.agents.insert(agent.clone(), 1);
    cause.unjoined.insert(agent.to_string());
    compare(state, step, service);
}

fn stopped(state: &mut State, step: Step, agent: &AgentName, service: &ServiceName) {
    let known = &mut state.signals.singletons;
    let Some(hosts) = known.hosts.get_mut(service) else { return };
    if hosts.remove(agent).is_none() {
        return;
    }
    if hosts.is_empty() {
        known.hosts.remove(service);
    }
    if let Some(own) = known.of_agent.get_mut(agent) {
        own.remove(service);
        if own.is_empty() {
            known.of_agent.remove(agent);
        }
    }
    let key = cause_key(service.as_str());
    if let Some(cause) = state.causes.get_mut(&key) {
        cause.members.remove(agent.as_str());
        cause.agents.remove(agent);
        cause.unjoined.remove(agent.as_str());
    }
    compare(state, step, service);
    drop_if_empty(state, &key);
}

pub(crate) fn link_changed(state: &mut State, step: Step, agent: &AgentName) {
    let services: Vec<ServiceName> =
        state.signals.singletons.of_agent.get(agent).into_iter().flatten().cloned().collect();
    for service in services {
        compare(state, step, &service);
    }
    // Whether what is down here is missed hangs on whether this host is heard, too.
    let known = &state.signals.singletons;
    if known.hosts.is_empty() || known.down.is_empty() {
        return;
    }
    let open = state.agents.get(agent).into_iter().flat_map(|record| record.open.keys());
    let down = open.filter(|key| tells_absence(key.reason)).map(|key| &key.subject.service);
    let told: BTreeSet<String> = down
        .filter(|service| known.hosts.contains_key(*service))
        .map(|service| cause::service(agent, service))
        .collect();
    state.touched.extend(told);
}

/// Entries of an agent are lost: where it told that a service runs, it may have told since that it does not.
pub(crate) fn lost(state: &mut State, step: Step, agent: &AgentName) {
    let services: Vec<ServiceName> =
        state.signals.singletons.of_agent.get(agent).into_iter().flatten().cloned().collect();
    for service in services {
        let hosts = state.signals.singletons.hosts.get_mut(&service);
        if let Some(running) = hosts.and_then(|hosts| hosts.get_mut(agent)) {
            running.doubtful = true;
            compare(state, step, &service);
        }
    }
}

/// An agent is forgotten, or its host was rebooted: nothing of before runs there.
pub(crate) fn forget(state: &mut State, step: Step, agent: &AgentName) {
    let services: Vec<ServiceName> =
        state.signals.singletons.of_agent.get(agent).into_iter().flatten().cloned().collect();
    for service in services {
        stopped(state, step, agent, &service);
    }
}

/// A condition of an agent is open, or is not any more.
pub(crate) fn condition_changed(state: &mut State, agent: &AgentName, key: &FindingKey) {
    let service = &key.subject.service;
    if !tells_absence(key.reason) || service.is_host() {
        return;
    }
    let is_down = fell(state, agent, service) > 0;
    let known = &mut state.signals.singletons;
    if !is_down {
        if let Some(hosts) = known.down.get_mut(service) {
            hosts.remove(agent);
            if hosts.is_empty() {
                known.down.remove(service);
            }
        }
    } else if known.down.len() < SERVICES_MAX || known.down.contains_key(service) {
        let hosts = known.down.entry(service.clone()).or_default();
        if hosts.len() < HOSTS_MAX {
            hosts.insert(agent.clone());
        }
    }
    if state.signals.singletons.hosts.get(service).is_some_and(|hosts| hosts.contains_key(agent)) {
        let step = Step { index: state.head_index, at: state.last_at, before: state.last_at };
        compare(state, step, service);
    }
}

/// The process is not there, by the pid file or the unit.
const fn tells_absence(reason: Reason) -> bool {
    use Reason::{PidFileMissing, PidFileStale, ProcessDown, ProcessZombie, UnitFailed, UnitInactive};
    matches!(reason, ProcessDown | ProcessZombie | PidFileMissing | PidFileStale | UnitInactive | UnitFailed)
}

/// Index of the fact that told last that a service is down on a host, where it is; else 0.
fn fell(state: &State, agent: &AgentName, service: &ServiceName) -> u64 {
    let cause = state.cause(&cause::service(agent, service));
    let open = cause.into_iter().flat_map(|cause| fallen::conditions(state, cause));
    let absent = open.filter(|open| tells_absence(open.finding.key.reason));
    absent.map(|open| open.event_index).max().unwrap_or_default()
}

/// What was told last holds: an inactive unit is no proof against a process that somebody started by hand since.
fn is_up(state: &State, agent: &AgentName, service: &ServiceName, running: &Running) -> bool {
    fell(state, agent, service) <= running.told
}

/// The hosts on which a service runs: it was not told to be down there since.
pub(crate) fn running<'a>(state: &'a State, service: &str) -> impl Iterator<Item = (&'a AgentName, &'a Running)> {
    let of_service = state.signals.singletons.hosts.iter().find(|(name, _)| name.as_str() == service);
    let hosts = of_service.into_iter().flat_map(|(name, hosts)| hosts.iter().map(move |host| (name, host)));
    let up = hosts.filter(|(name, (agent, running))| is_up(state, agent, name, running));
    up.map(|(_, host)| host)
}

/// Hosts on which a service runs, whose agents are heard, and are not known to have told more than arrived.
pub(crate) fn heard<'a>(state: &'a State, service: &str) -> Vec<&'a AgentName> {
    let is_heard = |agent: &&AgentName| state.agents.get(agent).is_some_and(|record| record.link == Link::Heard);
    let sure = running(state, service).filter(|(_, running)| !running.doubtful);
    sure.map(|(agent, _)| agent).filter(is_heard).collect()
}

/// Where a service runs, or ran last, that is told to be down on this host, and of which there may be one. Where it fell
/// last it is missed, until it is told that it does not run there any more: a restart there is no fault here.
fn elsewhere<'a>(state: &'a State, agent: &AgentName, service: &ServiceName) -> Option<&'a AgentName> {
    // A coordinator that has just started has heard nobody yet, which is no sign of an end.
    let may_run = |other: &AgentName| {
        state.agents.get(other).is_some_and(|record| match record.link {
            Link::Heard | Link::NotReheard => true,
            Link::Disconnected { how, .. } => how != Disconnect::HostShutdown,
            Link::Silent { since, .. } => is_silent_too(state, agent, since),
        })
    };
    others(state, agent, service).into_iter().find(|other| may_run(other))
}

/// Whether a host is not heard either, and fell silent no later than together with another: what is known of it is as old,
/// and says nothing of what the other's silence means. Who is cut off at once is not noticed in the same moment.
fn is_silent_too(state: &State, agent: &AgentName, other_since: Timestamp) -> bool {
    let together = state.policy.liveness.heartbeat * state.policy.liveness.stale_after;
    match state.agents.get(agent).map(|record| &record.link) {
        Some(Link::Silent { since, .. }) => *since <= other_since + together,
        _ => false,
    }
}

/// The other hosts on which a service runs or ran last that is told to be down on this one, heard or not.
fn others<'a>(state: &'a State, agent: &AgentName, service: &ServiceName) -> Vec<&'a AgentName> {
    let known = &state.signals.singletons;
    let is_down = known.down.get(service).is_some_and(|down| down.contains(agent));
    let Some(hosts) = known.hosts.get(service).filter(|_| is_down) else { return Vec::new() };
    // One that is told as running since it was down runs twice.
    if hosts.get(agent).is_some_and(|own| is_up(state, agent, service, own)) {
        return Vec::new();
    }
    let own = fell(state, agent, service);
    let runs = |other: &AgentName, running: &Running| {
        is_up(state, other, service, running) || fell(state, other, service) > own
    };
    let others = hosts.iter().filter(|(other, _)| *other != agent);
    others.filter(|(other, running)| runs(other, running)).map(|(other, _)| other).collect()
}

/// Where a service runs, if a condition of this host says no more than that it does not run here, and that is as it should
/// be: there may be one of it.
pub(crate) fn not_missed<'a>(state: &'a State, agent: &AgentName, key: &FindingKey) -> Option<&'a AgentName> {
    let follows = tells_absence(key.reason) || matches!(key.reason, Reason::PortClosed | Reason::HealthCheckFailed);
    if !follows || state.signals.singletons.hosts.is_empty() {
        return None;
    }
    // What fell in a storm is that storm's to tell, and it waits for it.
    let own = cause::of_finding(agent, key);
    if detect::is_in_storm(state, agent, &own) {
        return None;
    }
    elsewhere(state, agent, &key.subject.service)
}

/// How bad an open condition is: what is not missed calls nobody, unless the policy names a severity for its reason.
pub(crate) fn severity(state: &State, agent: &AgentName, open: &OpenFinding) -> Severity {
    let key = &open.finding.key;
    let told = state.severity_of(key.reason, open.finding.severity);
    let is_named = state.policy.severities.contains_key(&key.reason);
    if !is_named && not_missed(state, agent, key).is_some() { told.min(Severity::Sev4) } else { told }
}

/// Why what is down under the cause of a service on a host is not missed, for people.
pub(crate) fn not_missed_under(state: &State, key: &str) -> Option<String> {
    let (agent, rest) = cause::parts_of_host(key)?;
    let service = ServiceName::new(rest.strip_prefix("service/")?).ok()?;
    let other = elsewhere(state, &AgentName::new(agent).ok()?, &service)?;
    if is_silent(state, other) {
        return Some(format!("{service} ran on {other} when both fell silent, and there may be one of it"));
    }
    Some(format!("{service} runs on {other}, and there may be one of it"))
}

/// Why what is down under the cause of a service on a host is missed now although it ran elsewhere, for people.
pub(crate) fn missed_under(state: &State, key: &str) -> Option<String> {
    let (agent, rest) = cause::parts_of_host(key)?;
    let service = ServiceName::new(rest.strip_prefix("service/")?).ok()?;
    let agent = AgentName::new(agent).ok()?;
    if elsewhere(state, &agent, &service).is_some() {
        return None;
    }
    let other = others(state, &agent, &service).into_iter().find(|other| is_silent(state, other))?;
    Some(format!("{other}, where it ran last, is silent"))
}

fn is_silent(state: &State, agent: &AgentName) -> bool {
    state.agents.get(agent).is_some_and(|record| matches!(record.link, Link::Silent { .. }))
}

fn compare(state: &mut State, step: Step, service: &ServiceName) {
    let key = cause_key(service.as_str());
    let twice = heard(state, service.as_str()).len() >= 2;
    let was = state.signals.singletons.beside.contains_key(service);
    if twice && !was {
        state.signals.singletons.beside.insert(service.clone(), step.at);
        let hold = state.policy.signals.singleton.hold;
        signals::set_due(state, &key, Some(step.at + hold));
    } else if was && !twice {
        state.signals.singletons.beside.remove(service);
        signals::set_due(state, &key, None);
    }
    state.touched.insert(key);
    // Where it is down, it is missed now or is not any more.
    let down = state.signals.singletons.down.get(service).into_iter().flatten();
    state.touched.extend(down.map(|agent| cause::service(agent, service)));
}
