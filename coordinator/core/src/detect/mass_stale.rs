//! Many agents fall silent together: one page, not one per host. Recoveries always pass: whoever is heard leaves at once.

use super::{Detector, Look, agent_stale};
use crate::cause::{self, CauseKind};
use crate::decide::assess::{Assessment, DETAILS_MAX, names, of_fleet};
use crate::decide::human;
use crate::state::{Cause, Incident, IncidentStatus, Link, State};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::collections::BTreeSet;

/// A mass silence goes on while more than one in this many of its agents is silent.
const MASS_BACK_ONE_IN: usize = 10;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct MassStale;

impl Detector for MassStale {
    fn name(&self) -> &'static str {
        "mass_stale"
    }

    fn owns(&self, key: &str) -> bool {
        cause::kind_of(key) == CauseKind::MassStale
    }

    fn assess(&self, state: &State, _now: Timestamp, _key: &str, cause: &Cause) -> Option<Assessment> {
        let n = cause.members.len();
        let open = match state.unresolved(cause::MASS_STALE) {
            None => n > 0,
            Some(incident) if incident.status == IncidentStatus::Recovering => mass_reached(state),
            // After a relapse the new silences count by themselves: of a very large mass they may be few.
            Some(incident) => {
                let ever = incident.agents.len().max(n);
                n * MASS_BACK_ONE_IN > ever || (incident.relapses > 0 && mass_reached(state))
            }
        };
        let named = names(cause.agents.keys());
        let first = state.silences.iter().find(|(_, agent)| cause.agents.contains_key(agent));
        let began = first
            .and_then(|(_, agent)| agent_stale::silence_words(state, agent))
            .map_or(state.last_at(), |(_, last_heard, _)| last_heard);
        let n_agents = state.agents.len();
        let summary = format!("{n} of {n_agents} agents fell silent together, the first last heard {began}: {named}");
        let next_steps = vec![
            "look for what they share: a switch, a zone, a certificate authority, an upgrade".to_owned(),
            "see whether this coordinator itself is cut off: musterctl failover status on the standby".to_owned(),
        ];
        Some(of_fleet(state, Reason::MassStale, began, open, summary, next_steps))
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let rule = &state.policy().liveness;
        let (min, share, n, window) =
            (rule.mass_agents_min, rule.mass_share * 100.0, rule.mass_agents, human(rule.mass_window));
        let severity = found.severity;
        format!("at least {min} agents and {share:.0} % of those heard, or {n} agents, within {window}: {severity}")
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "most of the silent agents are heard again".to_owned()
    }

    /// How many are back, who is not.
    fn ended(&self, state: &State, incident: &Incident) -> Option<String> {
        let missing: Vec<&str> = state
            .cause(&incident.key.cause)
            .into_iter()
            .flat_map(|cause| cause.agents.keys())
            .map(AgentName::as_str)
            .collect();
        let back = incident.agents.len().saturating_sub(missing.len());
        let named = missing.iter().take(10).copied().collect::<Vec<_>>().join(", ");
        let rest = if missing.is_empty() { "none is missing".to_owned() } else { format!("still silent: {named}") };
        Some(format!("{back} of {} agents are back; {rest}", incident.agents.len()))
    }

    fn details(&self, state: &State, _key: &str, cause: &Cause) -> Option<Vec<String>> {
        let words = cause.agents.keys().take(DETAILS_MAX);
        Some(words.filter_map(|agent| Some(agent_stale::silence_words(state, agent)?.0)).collect())
    }

    fn groups_of(&self, _state: &State, cause: &str) -> Vec<String> {
        match cause::kind_of(cause) {
            CauseKind::AgentStale => vec![cause::MASS_STALE.to_owned()],
            _ => Vec::new(),
        }
    }

    fn takes(&self, _state: &State, _group: &str, cause: &Cause, symptom: &str) -> bool {
        cause::agent_of(symptom).is_some_and(|agent| cause.agents.contains_key(&agent))
    }

    fn symptoms(&self, _state: &State, _group: &str, cause: &Cause) -> Vec<String> {
        cause.members.values().map(|member| cause::agent_stale(&member.agent)).collect()
    }

    fn joins_by_name(&self) -> bool {
        false
    }

    fn looks(&self, state: &State, _now: Timestamp, _agent: &AgentName) -> Vec<Look> {
        let rule = &state.policy().liveness;
        let Fell { fell, live } = fell(state);
        let share = fell as f64 * 100.0 / live.max(1) as f64;
        let reached = mass_reached(state);
        let (min, percent, n) = (rule.mass_agents_min, rule.mass_share * 100.0, rule.mass_agents);
        let window = human(rule.mass_window);
        vec![Look {
            rule: self.name(),
            about: cause::MASS_STALE.to_owned(),
            seen: format!("{fell} of {live} agents ({share:.0} %) fell silent within {window}"),
            threshold: format!("{min} agents and {percent:.0} % of those heard, or {n} agents, within {window}"),
            reached,
            held_back_by: if reached { String::new() } else { "too few agents, or too small a share".to_owned() },
        }]
    }
}

/// Agents that fell silent within the window, of those that were heard before.
struct Fell {
    fell: u64,
    live: u64,
}

/// Those that came back meanwhile still count as live before.
fn fell(state: &State) -> Fell {
    let policy = &state.policy.liveness;
    let silent_now =
        |agent: &AgentName| matches!(state.agents.get(agent).map(|record| &record.link), Some(Link::Silent { .. }));
    let mut fell: BTreeSet<&AgentName> = BTreeSet::new();
    // The absolute count is the most that any rule asks for, so that a large fleet costs no more than that here.
    let enough = usize::try_from(policy.mass_agents.max(policy.mass_agents_min)).unwrap_or(usize::MAX);
    for (_, agent) in state.silences.iter().rev() {
        if silent_now(agent) {
            fell.insert(agent);
        }
        if fell.len() >= enough {
            break;
        }
    }
    let n_heard = (state.agents.len() as u64).saturating_sub(state.n_silent);
    Fell { fell: fell.len() as u64, live: n_heard + fell.len() as u64 }
}

/// Enough agents fell silent within the window.
pub(crate) fn mass_reached(state: &State) -> bool {
    let policy = &state.policy.liveness;
    let Fell { fell, live } = fell(state);
    let share = fell as f64 / live.max(1) as f64;
    fell >= u64::from(policy.mass_agents) || (fell >= u64::from(policy.mass_agents_min) && share >= policy.mass_share)
}
