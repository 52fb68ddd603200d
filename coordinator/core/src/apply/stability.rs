//! What becomes of the stability window of an incident that recovers, as its timeline tells it: that it stands still, runs
//! again, or is over while nobody believes that it is well.

use super::Step;
use super::incidents::{note, unresolved_mut};
use crate::state::{Incident, IncidentStatus, State};
use crate::timeline::LineKind;
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use std::time::Duration;

/// How the lines begin.
const STABILITY: &str = "stability: ";
/// Of a host that comes and goes only the first round is told: the timeline is for more than that, and what is so now is
/// told by whoever explains the incident.
const LINES_IN_A_ROW_MAX: usize = 2;

/// It stands still from now on, since nobody knows of `agent`, or it runs again.
pub(super) fn tell(state: &mut State, step: Step, cause: &str, agent: &AgentName) {
    let waits = |incident: &&mut Incident| incident.status == IncidentStatus::Recovering && !incident.stability_over;
    let Some(incident) = unresolved_mut(state, cause).filter(waits) else { return };
    let left = human_duration(Duration::from_millis(incident.stability_left_ms));
    let text = match incident.blind.is_empty() {
        true => format!("its window runs again, {left} of it are left: all hosts concerned are heard"),
        false => format!("its window stands still, {left} of it are left: how things are on {agent} is not known"),
    };
    line(incident, step, &text);
}

/// It is over, but the incident flaps until then.
pub(super) fn tell_flapping(state: &mut State, step: Step, cause: &str, calm_at: Option<Timestamp>) {
    let Some((calm_at, incident)) = calm_at.zip(unresolved_mut(state, cause)) else { return };
    let text = format!("its window is over, but it flaps: it counts as well at {calm_at} if it changes no more");
    line(incident, step, &text);
}

fn line(incident: &mut Incident, step: Step, text: &str) {
    let last = incident.timeline.iter().rev().take(LINES_IN_A_ROW_MAX);
    if last.filter(|line| line.text.starts_with(STABILITY)).count() < LINES_IN_A_ROW_MAX {
        note(incident, step, LineKind::Decision, format!("{STABILITY}{text}"));
    }
}
