//! One agent tells of more causes than incidents are opened for it: the rest is gathered in one, so that a lying or very
//! ill host cannot drown the others' pages.

use super::{Detector, Look};
use crate::cause::{self, CauseKind};
use crate::decide::assess::{Assessment, of_fleet};
use crate::state::{Cause, State};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct AgentFlood;

impl Detector for AgentFlood {
    fn name(&self) -> &'static str {
        "agent_flood"
    }

    fn owns(&self, key: &str) -> bool {
        cause::kind_of(key) == CauseKind::AgentFlood
    }

    fn assess(&self, state: &State, _now: Timestamp, _key: &str, cause: &Cause) -> Option<Assessment> {
        let agent = cause.agents.keys().next()?;
        let most = most(state);
        let summary = format!("agent {agent} has {most} unresolved incidents: what else it tells is gathered here");
        let next_steps = vec![
            format!("see what it tells, and whether that is believable: musterctl findings list --agent {agent}"),
            format!("on {agent}: muster-agent doctor; look for what its troubles share"),
        ];
        Some(of_fleet(state, Reason::AgentFlood, state.last_at(), true, summary, next_steps))
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        format!("at most {} incidents are opened for one agent: {}", most(state), found.severity)
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "the agent has fewer unresolved incidents again".to_owned()
    }

    fn looks(&self, state: &State, _now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let Some(record) = state.agent(agent) else { return Vec::new() };
        let key = cause::agent_flood(agent);
        let own = usize::from(record.incidents.contains(&key));
        let most = most(state);
        let seen = (record.incidents.len() - own, most, "unresolved incidents");
        vec![super::explain::look(self.name(), key, seen, format!("{most} unresolved incidents"))]
    }
}

fn most(state: &State) -> usize {
    state.policy().detect.agent_flood.incidents as usize
}
