//! What `/metrics` shows of State: counted now and then, not at every change.

use crate::metrics::{Metrics, StateLabel};
use muster_coordinator_core::entry::Disconnect;
use muster_coordinator_core::state::{Link, State};

/// States in which an agent can be, as label values.
const AGENT_STATES: [&str; 4] = ["live", "stale", "stopped", "not_yet_reheard"];

/// Counts agents and incidents into the gauges.
pub(super) fn refresh(metrics: &Metrics, state: &State) {
    let mut counts = [0i64; AGENT_STATES.len()];
    for agent in state.agents() {
        let index = match &agent.link {
            Link::Disconnected { how: Disconnect::Goodbye | Disconnect::HostShutdown, .. } => 2,
            Link::Heard | Link::Disconnected { .. } => 0,
            Link::Silent { .. } => 1,
            Link::NotReheard => 3,
        };
        if let Some(count) = counts.get_mut(index) {
            *count += 1;
        }
    }
    for (name, count) in AGENT_STATES.iter().zip(counts) {
        metrics.agents.get_or_create(&StateLabel { state: (*name).to_owned() }).set(count);
    }
    let open = state.incidents().filter(|incident| incident.is_unresolved()).count();
    metrics.incidents_open.set(i64::try_from(open).unwrap_or(i64::MAX));
}
