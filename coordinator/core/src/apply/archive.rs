//! Forgetting an agent that is gone for good. What was open about it ends with it: the evidence is an operator's word
//! that there is no such host any more. It is a new agent when it connects again.

use super::{Step, findings, flood, incidents, links};
use crate::cause;
use crate::detect::places;
use crate::second_opinion;
use crate::signals;
use crate::state::{Archived, Link, State};
use muster_common::finding::FindingKey;
use muster_common::ids::AgentName;

/// Forgotten agents whose operator is remembered, for the words of incidents that end with them; the oldest go first.
pub(crate) const ARCHIVED_MAX: usize = 1024;

/// Forgets `agent`; one that is heard stays.
pub(super) fn archived(state: &mut State, step: Step, agent: &AgentName, by: &str, reason: &str) {
    let Some(record) = state.agents.get(agent).filter(|record| record.link != Link::Heard) else { return };
    let silent = matches!(record.link, Link::Silent { .. });
    let (keys, causes): (Vec<FindingKey>, Vec<String>) =
        (record.open.keys().cloned().collect(), record.incidents.iter().cloned().collect());
    for key in &keys {
        findings::clear(state, agent, key);
    }
    if silent {
        links::end_silence(state, agent);
    }
    // Whether somebody could be heard about an incident is no question any more for one that is gone.
    for cause in &causes {
        incidents::forget_agent(state, step, cause, agent, format!("{agent} was archived by {by}: {reason}"));
    }
    flood::end(state, agent);
    second_opinion::over(state, agent);
    let hello = state.agents.get(agent).and_then(|record| record.hello.clone());
    second_opinion::moved(state, agent, hello.as_ref().map(|hello| hello.peer_address.as_str()), None);
    places::gone(state, agent);
    signals::forget(state, step, agent);
    state.agents.remove(agent);
    remember(state, agent, Archived { index: step.index, by: by.to_owned(), reason: reason.to_owned() });
    state.touched.extend(causes);
    state.touched.insert(cause::agent_stale(agent));
}

fn remember(state: &mut State, agent: &AgentName, archived: Archived) {
    state.archived.insert(agent.clone(), archived);
    if state.archived.len() > ARCHIVED_MAX {
        let oldest = state.archived.iter().min_by_key(|(_, archived)| archived.index);
        if let Some(oldest) = oldest.map(|(agent, _)| agent.clone()) {
            state.archived.remove(&oldest);
        }
    }
}
