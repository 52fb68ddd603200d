//! Whether an agent tells of more than incidents are opened for it: the condition that its flood is a member of.

use crate::cause;
use crate::state::{AgentRecord, MemberRef, State};
use muster_common::ids::AgentName;

/// Whether an agent has more unresolved incidents than are opened is a condition of its own, kept here.
pub(super) fn watch(state: &mut State, agent: &AgentName) {
    let Some(floods) = state.agent(agent).map(AgentRecord::floods) else { return };
    let key = cause::agent_flood(agent);
    let known = state.causes.get(&key).is_some_and(|cause| !cause.members.is_empty());
    if floods == known {
        return;
    }
    if floods {
        let cause = state.causes.entry(key.clone()).or_default();
        cause.members.insert(agent.to_string(), MemberRef { agent: agent.clone(), key: None });
        cause.agents.insert(agent.clone(), 1);
    } else {
        if let Some(cause) = state.causes.get_mut(&key) {
            cause.members.clear();
            cause.agents.clear();
        }
        // There is room again for what was gathered.
        let gathered: Vec<String> =
            state.unresolved(&key).map(|incident| incident.members.iter().cloned().collect()).unwrap_or_default();
        state.touched.extend(gathered);
        super::drop_if_empty(state, &key);
    }
    state.touched.insert(key);
}

/// An agent is forgotten, and with it that it told too much.
pub(super) fn end(state: &mut State, agent: &AgentName) {
    let key = cause::agent_flood(agent);
    if let Some(cause) = state.causes.get_mut(&key) {
        cause.members.clear();
        cause.agents.clear();
        state.touched.insert(key.clone());
        super::drop_if_empty(state, &key);
    }
}
