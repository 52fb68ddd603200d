//! What an unresolved incident waits for before it is over: for whoever sees "recovering" long after the stability window,
//! or a storm that is open although nothing happens any more.

use super::{Outcome, RuleLook};
use crate::apply::links::is_sure;
use crate::detect;
use crate::state::{Incident, IncidentStatus, Link, State};
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use std::time::Duration;

/// Hosts named in a sentence.
const NAMED_MAX: usize = 5;

/// One sentence; none of what is plainly open, and of what is over.
pub fn waits_for(state: &State, incident: &Incident, now: Timestamp) -> Option<String> {
    match incident.status {
        IncidentStatus::Resolved => None,
        IncidentStatus::Open => detect::waits(state, &incident.key.cause),
        IncidentStatus::Recovering => Some(recovers(state, incident, now)?.1),
    }
}

/// The same as one of the rules that looked.
pub(super) fn look(state: &State, incident: &Incident, now: Timestamp) -> Option<RuleLook> {
    let (held_by, why) = match incident.status {
        IncidentStatus::Recovering => recovers(state, incident, now)?,
        _ => ("threshold", waits_for(state, incident, now)?),
    };
    let outcome = if incident.has_paged() { Outcome::Paged } else { Outcome::HeldBack };
    Some(RuleLook::new("stability", &incident.key.cause, outcome, why).held_by(held_by).of(incident))
}

/// What keeps its end away, in one word and one sentence.
fn recovers(state: &State, incident: &Incident, now: Timestamp) -> Option<(&'static str, String)> {
    let policy = &state.policy().signals.flapping;
    let flaps = state.cause(&incident.key.cause).map(|cause| &cause.flaps);
    let calm_at = flaps.and_then(|flaps| flaps.calm_at(now, policy));
    if !incident.blind.is_empty() && !incident.stability_over {
        let left = human_duration(Duration::from_millis(incident.stability_left_ms));
        let why = format!("its stability window stands still, {left} of it are left: {}", unsure(state, incident));
        return Some(("liveness", why));
    }
    let ends = incident.stability_from.map(|from| from + Duration::from_millis(incident.stability_left_ms));
    let ends = ends.filter(|_| !incident.stability_over);
    match (calm_at, ends) {
        (Some(calm), ends) if ends.is_none_or(|ends| calm > ends) => {
            let percent = flaps.map_or(0, |flaps| flaps.percent(now, policy));
            let why = format!(
                "it flaps, it changed at {percent} % of the last looks: that it is well is not believed before {calm}, and \
                 later if it changes again"
            );
            Some(("flapping", why))
        }
        (_, Some(ends)) => Some(("stability", format!("it is resolved at {ends} if nothing of it comes back"))),
        (_, None) => None,
    }
}

/// Which hosts nobody can tell of, and why.
fn unsure(state: &State, incident: &Incident) -> String {
    let unsure = |agent: &&AgentName| state.agent(agent).is_none_or(|record| !is_sure(record));
    let word = |agent: &AgentName| match state.agent(agent).map(|record| &record.link) {
        Some(Link::Heard) => format!("what is open on {agent} is in doubt until it has told all of it again"),
        _ => format!("{agent} is not heard"),
    };
    let words: Vec<String> = incident.blind.iter().filter(unsure).take(NAMED_MAX).map(word).collect();
    let more = incident.blind.len().saturating_sub(words.len());
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    format!("{}{more}", words.join(", "))
}
