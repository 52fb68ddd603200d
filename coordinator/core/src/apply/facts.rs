//! What an incident remembers of what was observed: lines of its timeline, and the services that it concerns.

use super::Step;
use super::incidents::{note, unresolved_mut};
use crate::detect;
use crate::routing::service_of_cause;
use crate::state::{Cause, INCIDENT_SERVICES_MAX, Incident, MEMBERS_MAX, State, TIMELINE_MAX};
use crate::symptom;
use crate::timeline::{LineKind, TimelineLine};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::{SUMMARY_BYTES_MAX, clip};
use std::collections::BTreeSet;

/// Lines of a timeline that tell of facts, at most.
const FACT_LINES_MAX: usize = TIMELINE_MAX / 2;
/// Of these, lines that tell of what was known already in other words: figures move on all the time. Overflow rule: the
/// middle one goes, so that the first ones and the newest stay.
const UPDATES_MAX: usize = FACT_LINES_MAX / 4;
/// What a line says of a finding that was told anew.
pub(super) const UPDATED: &str = "is now";

/// Something was observed that concerns the unresolved incident of a cause, or the one that it is a symptom of. Of very
/// many the first and the newest stay, so that a chatty host does not push out what was decided.
pub(super) fn fact(state: &mut State, step: Step, cause: &str, text: impl FnOnce() -> String) {
    let explained = match state.unresolved(cause) {
        Some(_) => None,
        None => match symptom::of(state, cause) {
            Some(incident) => Some(incident.key.cause.clone()),
            None => return,
        },
    };
    let Some(incident) = unresolved_mut(state, explained.as_deref().unwrap_or(cause)) else { return };
    let text = text();
    let updates = if is_update(&text) { places(incident, |line| is_update(&line.text)).count() } else { 0 };
    let facts = places(incident, |_| true).count();
    let dropped = match (updates >= UPDATES_MAX, facts >= FACT_LINES_MAX) {
        (true, _) => places(incident, |line| is_update(&line.text)).nth(UPDATES_MAX / 2),
        (false, true) => places(incident, |_| true).nth(FACT_LINES_MAX / 2),
        (false, false) => None,
    };
    if let Some(place) = dropped {
        incident.timeline.remove(place);
        if incident.response.facts_dropped == 0 {
            let words = "more is observed than is kept here: musterctl events list has it all".to_owned();
            note(incident, step, LineKind::Decision, words);
        }
        incident.response.facts_dropped = incident.response.facts_dropped.saturating_add(1);
    }
    let text = if text.len() <= SUMMARY_BYTES_MAX { text } else { clip(&text, SUMMARY_BYTES_MAX) };
    note(incident, step, LineKind::Fact, text);
}

/// `AGENT: REASON of SUBJECT is now …`. A host whose own words look like it harms its own lines alone.
fn is_update(text: &str) -> bool {
    let said = |(place, _): (usize, &str)| {
        let after = text.get(place + UPDATED.len()..).unwrap_or_default();
        text.get(..place).is_some_and(|before| before.ends_with(' '))
            && (after.starts_with(": ") || after.starts_with(" sev"))
    };
    text.match_indices(UPDATED).any(said)
}

/// Places of the lines that tell of facts, such as updates.
fn places(incident: &Incident, such: impl Fn(&TimelineLine) -> bool) -> impl Iterator<Item = usize> {
    let lines = incident.timeline.iter().enumerate();
    lines.filter(move |(_, line)| line.kind == LineKind::Fact && such(line)).map(|(place, _)| place)
}

/// Something was observed of an agent: all its unresolved incidents tell it.
pub(super) fn fact_of_agent(state: &mut State, step: Step, agent: &AgentName, text: &str) {
    let causes = state.agents.get(agent).map(|record| record.incidents.clone()).unwrap_or_default();
    for cause in causes {
        fact(state, step, &cause, || text.to_owned());
    }
}

/// Services that feed a cause, bounded.
pub(super) fn services_of(key: &str, cause: &Cause) -> BTreeSet<String> {
    let of_members = cause.members.values().filter_map(|member| member.key.as_ref());
    let of_members = of_members.map(|key| key.subject.service.as_str());
    let happened = cause.occurrences.iter().filter_map(|occurrence| occurrence.service.as_ref());
    let gathered = cause.burst.iter().flat_map(|burst| burst.services.iter().map(String::as_str));
    let of_key = match detect::of(key) {
        Some(detector) => detector.services(key),
        None => service_of_cause(key).map(str::to_owned).into_iter().collect(),
    };
    let all = of_members.chain(happened.map(ServiceName::as_str)).chain(gathered);
    all.take(MEMBERS_MAX)
        .map(str::to_owned)
        .chain(of_key)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .take(INCIDENT_SERVICES_MAX)
        .collect()
}

/// Services that it concerns from now on, too.
pub(super) fn add_services(incident: &mut Incident, services: impl IntoIterator<Item = String>) {
    for service in services {
        if incident.services.len() < INCIDENT_SERVICES_MAX {
            incident.services.insert(service);
        }
    }
}
