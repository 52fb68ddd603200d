//! On which hosts the services run of which there may be one. Agents tell it as changes; what an agent that is not heard
//! told last may be true or not, so it neither raises nor clears. The same holds for one that lost entries, among which may
//! be that it stopped: until it tells again, which it does every few hours.

use crate::apply::{Step, drop_if_empty};
use crate::signals;
use crate::state::{Link, MemberRef, State};
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::{AgentName, ServiceName};
use muster_common::reason::Reason;
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
}

impl Singletons {
    /// The hosts on which a service runs, as far as was told.
    pub fn hosts(&self, service: &str) -> impl Iterator<Item = (&AgentName, &Running)> {
        self.hosts.iter().find(|(name, _)| name.as_str() == service).into_iter().flat_map(|(_, hosts)| hosts)
    }

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
        if std::mem::take(&mut running.doubtful) {
            compare(state, step, service);
        }
        return;
    }
    if hosts.len() >= HOSTS_MAX {
        return;
    }
    hosts.insert(agent.clone(), Running { since, index: step.index, doubtful: false });
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

pub(crate) fn forget(state: &mut State, step: Step, agent: &AgentName) {
    let services: Vec<ServiceName> =
        state.signals.singletons.of_agent.get(agent).into_iter().flatten().cloned().collect();
    for service in services {
        stopped(state, step, agent, &service);
    }
}

/// Hosts of a service whose agents are heard, and are not known to have told more than arrived.
pub(crate) fn heard<'a>(state: &'a State, service: &str) -> Vec<&'a AgentName> {
    let is_heard = |agent: &&AgentName| state.agents.get(*agent).is_some_and(|record| record.link == Link::Heard);
    let sure = state.signals.singletons.hosts(service).filter(|(_, running)| !running.doubtful);
    sure.map(|(agent, _)| agent).filter(is_heard).collect()
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
}
