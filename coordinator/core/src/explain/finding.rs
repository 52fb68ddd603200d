//! Which incident tells of a finding, also where none is named after it: it folded into another's, or was counted by a
//! storm of many hosts.

use super::taken_in_by;
use crate::cause;
use crate::detect;
use crate::entry::Resolution;
use crate::state::{Incident, State};
use muster_common::finding::{Finding, FindingKey};
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;

/// From a symptom to its cause so many steps are followed.
const FOLDS_MAX: usize = 16;

/// The incident that tells of what `agent` told at `received`; for a question, not for an input.
pub fn incident_of<'a>(
    state: &'a State,
    agent: &AgentName,
    finding: &Finding,
    received: Timestamp,
) -> Option<&'a Incident> {
    let key = &finding.key;
    named(state, agent, key).or_else(|| taken_in_by(state, agent, key)).or_else(|| {
        let own = state.newest_incident(&cause::of_finding(agent, key));
        let own = own.filter(|incident| tells(incident, agent, key) && lasts(incident, received));
        own.map(|incident| folded(state, incident)).or_else(|| counted(state, agent, finding, received))
    })
}

/// Whether an incident of its own cause tells of it: what only happened is no member, and counts when it is no less bad than
/// what opens one.
fn tells(incident: &Incident, agent: &AgentName, key: &FindingKey) -> bool {
    incident.reason == key.reason || incident.members.contains(&cause::member_name(agent, key))
}

/// An unresolved incident of the agent that has it among its findings.
fn named<'a>(state: &'a State, agent: &AgentName, key: &FindingKey) -> Option<&'a Incident> {
    let id = cause::member_name(agent, key);
    let causes = state.agent(agent).into_iter().flat_map(|record| &record.incidents);
    causes.filter_map(|cause| state.unresolved(cause)).find(|incident| incident.members.contains(&id))
}

/// The storm that counts it.
fn counted<'a>(state: &'a State, agent: &AgentName, finding: &Finding, received: Timestamp) -> Option<&'a Incident> {
    let feeds = detect::all().flat_map(|detector| detector.occurrences(state, agent, finding));
    let storms = feeds.filter_map(|feed| state.newest_incident(&feed.group));
    let own = |incident: &&Incident| incident.agents.contains(agent) && lasts(incident, received);
    storms.map(|incident| folded(state, incident)).find(own)
}

fn lasts(incident: &Incident, received: Timestamp) -> bool {
    incident.resolved.is_none_or(|resolved| resolved >= received)
}

/// The incident that it ended as a symptom of, or itself.
fn folded<'a>(state: &'a State, incident: &'a Incident) -> &'a Incident {
    let mut last = incident;
    for _ in 0..FOLDS_MAX {
        let Some(Resolution::FoldedInto { incident } | Resolution::MergedInto { incident }) = &last.resolution else {
            break;
        };
        let Some(next) = state.incident(incident) else { break };
        last = next;
    }
    last
}
