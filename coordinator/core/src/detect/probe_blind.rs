//! The same probe of the same service cannot answer on many hosts: what it needs was taken away from all of them, such
//! as a permission by an upgrade. Nothing is known of those subjects meanwhile, which is worse than one blind probe.

use super::{Detector, Look, at_once, rest};
use crate::cause;
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::policy::Policy;
use crate::severity::When;
use crate::state::{Cause, State};
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Before probe and service in the cause keys.
const PREFIX: &str = "fleet/probe_blind";

/// See the head of the file.
#[derive(Debug)]
pub(super) struct ProbeBlind;

fn needed(policy: &Policy) -> usize {
    usize::try_from(policy.detect.probe_blind.hosts.max(2)).unwrap_or(usize::MAX)
}

impl Detector for ProbeBlind {
    fn name(&self) -> &'static str {
        "probe_blind"
    }

    fn owns(&self, key: &str) -> bool {
        rest(key, PREFIX).is_some()
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let seen = at_once::at_once(state, cause)?;
        let (probe, service) = rest(key, PREFIX)?.split_once('/')?;
        let (n, named) = (seen.hosts, names(cause.agents.keys()));
        let summary = format!("the {probe} probe of {service} is blind on {n} hosts: {named}");
        let next_steps = vec![
            "read why on one of them: muster-agent doctor lists what it could not judge, and why".to_owned(),
            "ask what was changed on all of them: permissions, paths, the agent's unit or version".to_owned(),
        ];
        let open = seen.hosts >= needed(state.policy()) && !seen.dismissed;
        let mut found = of_fleet(state, Reason::ProbeBlind, seen.began, open, summary, next_steps);
        found.raise(state, Reason::ProbeBlind, &[When::Widespread]);
        Some(found)
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let hosts = state.policy().detect.probe_blind.hosts;
        format!("blind on at least {hosts} hosts at once: {}{}", found.severity, found.raised_words())
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "the probe answers again on all but a few hosts".to_owned()
    }

    fn services(&self, key: &str) -> Vec<String> {
        let service = rest(key, PREFIX).and_then(|rest| rest.split_once('/'));
        service.map(|(_, service)| service.to_owned()).into_iter().collect()
    }

    fn conditions(&self, _state: &State, _agent: &AgentName, key: &FindingKey) -> Vec<String> {
        match key.reason {
            Reason::ProbeBlind => vec![format!("{PREFIX}/{}/{}", key.subject.probe, key.subject.service)],
            _ => Vec::new(),
        }
    }

    fn threshold(&self, policy: &Policy, _key: &str) -> usize {
        needed(policy)
    }

    /// The host's own cause does not say which probe: any that the host's blind ones are in may take it.
    fn groups_of(&self, state: &State, cause: &str) -> Vec<String> {
        let blind = cause::parts_of_host(cause).is_some_and(|(_, rest)| rest.starts_with("probe_blind/"));
        let Some(own) = blind.then(|| state.cause(cause)).flatten() else { return Vec::new() };
        let keys = own.members.values().filter_map(|member| Some((&member.agent, member.key.as_ref()?)));
        keys.flat_map(|(agent, key)| self.conditions(state, agent, key)).collect()
    }

    fn takes(&self, _state: &State, _group: &str, cause: &Cause, symptom: &str) -> bool {
        cause::agent_of(symptom).is_some_and(|agent| cause.agents.contains_key(&agent))
    }

    fn symptoms(&self, _state: &State, _group: &str, cause: &Cause) -> Vec<String> {
        at_once::host_causes(cause)
    }

    fn lasting(&self) -> bool {
        true
    }

    fn joins_by_name(&self) -> bool {
        false
    }

    fn looks(&self, state: &State, _now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let needed = needed(state.policy());
        let threshold = |_: &str| (needed, format!("the same probe blind on {needed} hosts at once"));
        super::explain::conditions(self, state, agent, threshold)
    }
}
