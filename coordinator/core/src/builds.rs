//! Which version of the agent, and which build of each service, how many hosts run. Counted as it is told; the first
//! names are kept as examples.

use crate::apply::{Step, drop_if_empty};
use crate::entry::AgentHello;
use crate::signals;
use crate::state::State;
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Cause key of `version_skew`: all that differs is one matter.
pub const VERSION_SKEW: &str = "fleet/version_skew";
/// Distinct versions, or builds of one service, that are told apart; hosts with more are not counted.
pub const VERSIONS_MAX: usize = 64;
/// Hosts named for each.
pub const NAMED_MAX: usize = 16;
/// Services whose builds are compared.
pub const SERVICES_MAX: usize = 4096;
/// Services of one host whose builds are remembered.
pub const SERVICES_PER_AGENT_MAX: usize = 64;
/// Bytes of a version or a hash.
const VERSION_BYTES_MAX: usize = 64;

/// When versions differ too much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionSkewPolicy {
    /// More versions of the agent than this ...
    pub versions: u32,
    /// ... or one older than this, which is the oldest that tells all that this coordinator asks for ...
    pub oldest: String,
    /// ... for this long; the same for builds of a service.
    pub after: Duration,
    /// A service whose builds are compared runs on so many hosts.
    pub build_hosts: u32,
}

impl Default for VersionSkewPolicy {
    fn default() -> Self {
        let (versions, oldest, after) = (3, "0.1.0".to_owned(), Duration::from_secs(24 * 3600));
        Self { versions, oldest, after, build_hosts: 3 }
    }
}

/// Hosts with the same version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hosts {
    /// How many.
    pub count: u64,
    /// The first few.
    pub named: BTreeSet<AgentName>,
}

/// Hosts by version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Versions {
    hosts: BTreeMap<String, Hosts>,
    /// Since when, in log time, they have differed too much.
    skewed: Option<Timestamp>,
}

impl Versions {
    /// Each version and its hosts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Hosts)> {
        self.hosts.iter().map(|(version, hosts)| (version.as_str(), hosts))
    }

    /// Since when they have differed too much.
    pub fn skewed(&self) -> Option<Timestamp> {
        self.skewed
    }

    fn join(&mut self, version: &str, agent: &AgentName) {
        let has_room = self.hosts.len() < VERSIONS_MAX;
        let hosts = match self.hosts.get_mut(version) {
            Some(hosts) => hosts,
            None if has_room => self.hosts.entry(version.to_owned()).or_default(),
            None => return,
        };
        hosts.count += 1;
        if hosts.named.len() < NAMED_MAX {
            hosts.named.insert(agent.clone());
        }
    }

    fn leave(&mut self, version: &str, agent: &AgentName) {
        let Some(hosts) = self.hosts.get_mut(version) else { return };
        hosts.count = hosts.count.saturating_sub(1);
        hosts.named.remove(agent);
        if hosts.count == 0 {
            self.hosts.remove(version);
        }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Builds {
    /// Of the agents.
    pub agents: Versions,
    /// Of each service.
    pub services: BTreeMap<ServiceName, Versions>,
    of_agent: BTreeMap<AgentName, BTreeMap<ServiceName, String>>,
}

impl Builds {
    /// Hash of the program that a service runs on a host, as far as it was told.
    pub fn of(&self, agent: &AgentName, service: &ServiceName) -> Option<&str> {
        self.of_agent.get(agent)?.get(service).map(String::as_str)
    }

    /// The build that most hosts run; none where two are equally common.
    pub fn common(&self, service: &ServiceName) -> Option<&str> {
        let hosts = &self.services.get(service)?.hosts;
        let (version, most) = hosts.iter().max_by_key(|(_, hosts)| hosts.count)?;
        let alone = hosts.values().filter(|hosts| hosts.count == most.count).count() == 1;
        alone.then_some(version.as_str())
    }
}

pub(crate) fn connected(state: &mut State, step: Step, agent: &AgentName, old: Option<&AgentHello>, new: &AgentHello) {
    let old = old.map(|old| clipped(&old.agent_version));
    let new = clipped(&new.agent_version);
    if old.as_ref() == Some(&new) {
        return;
    }
    let versions = &mut state.signals.builds.agents;
    if let Some(old) = old {
        versions.leave(&old, agent);
    }
    versions.join(&new, agent);
    compare_agents(state, step);
}

fn clipped(version: &str) -> Cow<'_, str> {
    if version.len() <= VERSION_BYTES_MAX { version.into() } else { clip(version, VERSION_BYTES_MAX).into() }
}

pub(crate) fn occurred(state: &mut State, step: Step, agent: &AgentName, finding: &Finding) {
    let text = |key: &str| match finding.evidence.get(key) {
        Some(Value::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let told = match finding.key.reason {
        Reason::Change if text("what") == Some("deploy") => text("executable_sha256"),
        Reason::ProcessRestarted => text("executable_sha256"),
        _ => None,
    };
    let service = &finding.key.subject.service;
    let Some(new) = told.map(|told| clip(told, VERSION_BYTES_MAX)).filter(|_| !service.is_host()) else { return };
    let builds = &mut state.signals.builds;
    let own = builds.of_agent.entry(agent.clone()).or_default();
    let known = own.contains_key(service) || own.len() < SERVICES_PER_AGENT_MAX;
    let room = builds.services.contains_key(service) || builds.services.len() < SERVICES_MAX;
    if !known || !room || own.get(service) == Some(&new) {
        return;
    }
    let old = own.insert(service.clone(), new.clone());
    let versions = builds.services.entry(service.clone()).or_default();
    if let Some(old) = old {
        versions.leave(&old, agent);
    }
    versions.join(&new, agent);
    compare_service(state, step, service);
}

pub(crate) fn forget(state: &mut State, step: Step, agent: &AgentName) {
    let hello = state.agents.get(agent).and_then(|record| record.hello.as_ref());
    if let Some(version) = hello.map(|hello| clip(&hello.agent_version, VERSION_BYTES_MAX)) {
        state.signals.builds.agents.leave(&version, agent);
        compare_agents(state, step);
    }
    for (service, build) in state.signals.builds.of_agent.remove(agent).unwrap_or_default() {
        let builds = &mut state.signals.builds;
        if let Some(versions) = builds.services.get_mut(&service) {
            versions.leave(&build, agent);
            if versions.hosts.is_empty() {
                builds.services.remove(&service);
            }
        }
        compare_service(state, step, &service);
    }
}

/// `0.12.3` as numbers; what follows them does not count.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let plain = version.split(['-', '+']).next()?;
    let mut parts = plain.split('.').map(|part| part.parse::<u64>().ok());
    Some([parts.next()??, parts.next().unwrap_or(Some(0))?, parts.next().unwrap_or(Some(0))?])
}

/// Whether a version of the agent is older than the policy allows; what is no version is not.
pub(crate) fn is_too_old(version: &str, policy: &VersionSkewPolicy) -> bool {
    // Nearly all agents of a fleet have the same version, often the oldest allowed: nothing to read then.
    version != policy.oldest
        && matches!((numbers(version), numbers(&policy.oldest)), (Some(version), Some(oldest)) if version < oldest)
}

fn compare_agents(state: &mut State, step: Step) {
    let policy = &state.policy.signals.version_skew;
    let versions = &state.signals.builds.agents;
    let many = versions.hosts.len() > usize::try_from(policy.versions).unwrap_or(usize::MAX);
    let skewed = many || versions.hosts.keys().any(|version| is_too_old(version, policy));
    let since = versions.skewed;
    state.signals.builds.agents.skewed = skewed.then(|| since.unwrap_or(step.at));
    turned(state, since.is_some() != skewed);
}

fn compare_service(state: &mut State, step: Step, service: &ServiceName) {
    let needed = u64::from(state.policy.signals.version_skew.build_hosts);
    let Some(versions) = state.signals.builds.services.get_mut(service) else { return turned(state, true) };
    let hosts: u64 = versions.hosts.values().map(|hosts| hosts.count).sum();
    let skewed = versions.hosts.len() > 1 && hosts >= needed;
    let was = versions.skewed.is_some();
    versions.skewed = skewed.then(|| versions.skewed.unwrap_or(step.at));
    turned(state, was != skewed);
}

/// Looks at the cause again when something begins or ends to differ, and when it has differed for long enough.
fn turned(state: &mut State, changed: bool) {
    if !changed {
        return;
    }
    let after = state.policy.signals.version_skew.after;
    let builds = &state.signals.builds;
    let all = builds.services.values().chain([&builds.agents]);
    let next = all.filter_map(|versions| Some(versions.skewed? + after)).filter(|due| *due > state.last_at).min();
    if builds.agents.skewed.is_some() || builds.services.values().any(|versions| versions.skewed.is_some()) {
        state.causes.entry(VERSION_SKEW.to_owned()).or_default();
    } else {
        drop_if_empty(state, VERSION_SKEW);
    }
    signals::set_due(state, VERSION_SKEW, next);
    state.touched.insert(VERSION_SKEW.to_owned());
}

/// The timer of the cause ran: the next one that differs for long.
pub(crate) fn due(state: &mut State) {
    turned(state, true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let policy = VersionSkewPolicy { oldest: "0.9.0".to_owned(), ..VersionSkewPolicy::default() };
        for (version, old) in
            [("0.8.12", true), ("0.10.0", false), ("0.9.0-rc1", false), ("1", false), ("0.8", true), ("main", false)]
        {
            assert_eq!(is_too_old(version, &policy), old, "{version}");
        }
    }
}
