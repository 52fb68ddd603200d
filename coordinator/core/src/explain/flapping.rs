//! What damping does to the incidents of a host: whether what comes and goes is believed to be over.

use super::{Figure, Outcome, RuleLook};
use crate::flapping::LOOKS;
use crate::state::{Incident, State};
use muster_common::time::Timestamp;
use muster_common::units::human_duration;

/// One look at each incident that changed lately; nothing about those that did not.
pub(super) fn looks(state: &State, incidents: &[&Incident], now: Timestamp) -> Vec<RuleLook> {
    incidents.iter().filter_map(|incident| look(state, incident, now)).collect()
}

fn look(state: &State, incident: &Incident, now: Timestamp) -> Option<RuleLook> {
    let policy = &state.policy().signals.flapping;
    let flaps = &state.cause(&incident.key.cause)?.flaps;
    let percent = flaps.percent(now, policy);
    if percent == 0 || !incident.is_unresolved() {
        return None;
    }
    let seen = format!(
        "it changed at {percent} % of the last {} looks, {} apart",
        LOOKS.saturating_sub(1),
        human_duration(policy.look)
    );
    let figure = Figure::new("changed looks", format!("{percent} %"), format!("{} %", policy.high_percent));
    let of = |outcome, why: String| {
        RuleLook::new("flapping", &incident.key.cause, outcome, why).figures([figure.clone()]).of(incident)
    };
    if !flaps.is_flapping(now, policy) {
        let why = format!("{seen}: it would flap from {} % on", policy.high_percent);
        return Some(of(Outcome::NothingSeen, why));
    }
    let calm = flaps.calm_at(now, policy).map(|at| format!(", at {at} if it changes no more")).unwrap_or_default();
    if incident.has_paged() {
        let why = format!(
            "{seen} and flaps: {} stays one incident, its recoveries are not believed and its relapses page nobody \
             again until it is calm{calm}",
            incident.number
        );
        return Some(of(Outcome::HeldBack, why).held_by("flapping"));
    }
    let why = format!("{seen} and flaps: that holds no page back, it is paged without another hold; calm{calm}");
    Some(of(Outcome::NothingSeen, why))
}
