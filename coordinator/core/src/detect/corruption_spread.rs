//! The same database of a service is damaged on several hosts, or on a first one soon after its service was changed:
//! damage is being copied, or made again in the same way. By service and the file's name, since paths differ between
//! hosts.

use super::{Detector, Look, at_once, rest};
use crate::cause;
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::decide::human;
use crate::policy::Policy;
use crate::state::{Cause, State};
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Before service and file in the cause keys.
const PREFIX: &str = "fleet/corruption";
/// Hosts looked at for a change before the damage.
const LOOKED_AT_MAX: usize = 16;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct CorruptionSpread;

fn needed(policy: &Policy) -> usize {
    usize::try_from(policy.detect.corruption_spread.hosts.max(2)).unwrap_or(usize::MAX)
}

fn group(service: &str, path: &str) -> String {
    format!("{PREFIX}/{service}/{}", cause::file_name(path))
}

/// What was changed about the service on one of the hosts, shortly before its database was found damaged.
fn change_before(state: &State, cause: &Cause) -> Option<String> {
    let limit = state.policy().detect.corruption_spread.after_change;
    cause.members.values().take(LOOKED_AT_MAX).find_map(|member| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        let service = &open.finding.key.subject.service;
        let change = super::change_of(state, &member.agent, service, open.opened, limit)?;
        let ago = human(open.opened.since(change.0));
        Some(format!("{ago} after a change on {}: {}", member.agent, change.1))
    })
}

impl Detector for CorruptionSpread {
    fn name(&self) -> &'static str {
        "corruption_spread"
    }

    fn owns(&self, key: &str) -> bool {
        rest(key, PREFIX).is_some()
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let seen = at_once::at_once(state, cause)?;
        let (service, file) = rest(key, PREFIX)?.split_once('/')?;
        let change = change_before(state, cause);
        let (n, named) = (seen.hosts, names(cause.agents.keys()));
        let hosts = if n == 1 { "host" } else { "hosts" };
        let after = change.as_ref().map(|change| format!(", {change}")).unwrap_or_default();
        let summary = format!("{file} of {service} is damaged on {n} {hosts}{after}: {named}");
        let next_steps = vec![
            "stop what copies or writes it: replication, sync jobs, deploys, the rotation of backups".to_owned(),
            format!("musterctl findings list --service {service}: where was it first, and is it the same damage?"),
            "pin the copy and the backups of a host that is still well before anything else".to_owned(),
        ];
        let enough = n >= needed(state.policy()) || change.is_some();
        let open = enough && !seen.dismissed;
        Some(of_fleet(state, Reason::CorruptionSpread, seen.began, open, summary, next_steps))
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let rule = &state.policy().detect.corruption_spread;
        let (hosts, after) = (rule.hosts, human(rule.after_change));
        let severity = found.severity;
        format!("the same database damaged on at least {hosts} hosts, or within {after} of a change: {severity}")
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "it is damaged on fewer hosts than the threshold".to_owned()
    }

    fn services(&self, key: &str) -> Vec<String> {
        let service = rest(key, PREFIX).and_then(|rest| rest.split_once('/'));
        service.map(|(service, _)| service.to_owned()).into_iter().collect()
    }

    fn conditions(&self, _state: &State, _agent: &AgentName, key: &FindingKey) -> Vec<String> {
        match key.reason {
            Reason::SqliteCorrupt | Reason::SqliteNotADatabase => {
                vec![group(key.subject.service.as_str(), &key.subject.subject)]
            }
            _ => Vec::new(),
        }
    }

    fn threshold(&self, policy: &Policy, _key: &str) -> usize {
        needed(policy)
    }

    fn groups_of(&self, _state: &State, cause: &str) -> Vec<String> {
        let subject = cause::parts_of_host(cause).and_then(|(_, rest)| rest.strip_prefix("sqlite/"));
        let group = subject.and_then(|subject| subject.split_once('/')).map(|(service, path)| group(service, path));
        group.into_iter().collect()
    }

    /// Other troubles of the same file are its host's own, unless the damage explains them.
    fn takes(&self, _state: &State, _group: &str, cause: &Cause, symptom: &str) -> bool {
        cause::agent_of(symptom).is_some_and(|agent| cause.agents.contains_key(&agent))
    }

    fn symptoms(&self, _state: &State, _group: &str, cause: &Cause) -> Vec<String> {
        at_once::host_causes(cause)
    }

    fn joins_by_name(&self) -> bool {
        false
    }

    fn looks(&self, state: &State, _now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let needed = needed(state.policy());
        let words = format!("the same database damaged on {needed} hosts, or soon after a change");
        super::explain::conditions(self, state, agent, |_| (needed, words.clone()))
    }
}
