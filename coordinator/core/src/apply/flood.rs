//! Whether an agent tells of more than incidents are opened for it: the condition that its flood is a member of.

use crate::cause;
use crate::policy::Policy;
use crate::state::{MemberRef, State};
use muster_common::ids::AgentName;

/// Whether an agent has more unresolved incidents than are opened is a condition of its own, kept here.
pub(super) fn watch(state: &mut State, agent: &AgentName) {
    let Some(floods) = state.agent(agent).map(|record| record.floods(&state.policy)) else { return };
    let key = cause::agent_flood(agent);
    let known = state.causes.get(&key).is_some_and(|cause| !cause.members.is_empty());
    if floods == known {
        return;
    }
    if floods {
        let cause = state.causes.entry(key.clone()).or_default();
        cause.members.insert(agent.to_string(), MemberRef::of_agent(agent.clone()));
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

/// Another policy may open more incidents for one agent, or fewer.
pub(super) fn policy_changed(state: &mut State, old: &Policy) {
    if old.detect.agent_flood == state.policy.detect.agent_flood {
        return;
    }
    let troubled = state.agents.values().filter(|record| !record.incidents.is_empty());
    let troubled: Vec<AgentName> = troubled.map(|record| record.name.clone()).collect();
    troubled.iter().for_each(|agent| watch(state, agent));
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
