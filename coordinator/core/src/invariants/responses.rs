//! What must hold of silences, escalations, gatherings and of who is told; and of each single step.

use super::{Found, Violation};
use crate::entry::{Conclusion, Entry, EntryBody, TimerKey};
use crate::page::PageAction;
use crate::routing::told;
use crate::silence::{PAST_SILENCES_MAX, SILENCES_MAX};
use crate::state::{Incident, IncidentStatus, State};

pub(super) fn check(state: &State, found: &mut Found) {
    silences(state, found);
    let recent = state.recently_opened.iter().filter(|(_, key)| state.unresolved(key).is_some()).count() as u64;
    // The oldest of them leave when the next one comes: they are no more than make a gathering at any time.
    let few = recent < u64::from(state.policy().correlation.incidents) || state.fenced_by().is_some();
    found.unless(few, "many new incidents are gathered", || recent.to_string());
    for incident in state.incidents() {
        let name = || incident.number.clone();
        escalation(state, incident, found);
        let services_bounded = incident.services.len() <= crate::state::INCIDENT_SERVICES_MAX;
        found.unless(services_bounded, "services are bounded", name);
        if state.fenced_by().is_none() && incident.is_unresolved() {
            found.unless(!must_be_told(state, incident), "what is to be paged is paged", name);
        }
    }
    for (key, burst) in state.gathered_in.iter() {
        let known = state.cause(burst).and_then(|cause| cause.burst.as_ref());
        let known = known.is_some_and(|burst| burst.gathered.contains_key(key));
        found.unless(known, "what is gathered is gathered somewhere", || key.clone());
    }
    for (key, cause) in state.causes.iter() {
        let Some(burst) = &cause.burst else { continue };
        let n_wrong = burst.gathered.values().filter(|wrong| **wrong).count() as u64;
        found.unless(n_wrong == burst.n_wrong, "what is wrong in a gathering is counted", || key.clone());
        let elsewhere = burst.gathered.keys().find(|gathered| state.gathered_in.get(gathered) != Some(key));
        found.unless(elsewhere.is_none(), "what is gathered is gathered once", || format!("{key}: {elsewhere:?}"));
    }
}

fn silences(state: &State, found: &mut Found) {
    let (current, past) = (state.silences().count(), state.past_silences().count());
    let bounded = current <= SILENCES_MAX && past <= PAST_SILENCES_MAX;
    found.unless(bounded, "silences are bounded", || format!("{current} and {past}"));
    for (index, silence) in state.silences() {
        let next = if silence.active { silence.ends } else { silence.starts };
        let timed = state.timers.contains(&(next, TimerKey::SilenceTurn { index }));
        found.unless(timed, "a silence has a timer", || silence.id.clone());
        let notice = silence.notice_at.map(|at| (at, TimerKey::SilenceEnds { index }));
        let noticed = notice.is_none_or(|timer| state.timers.contains(&timer));
        found.unless(noticed, "the notice of a silence has its timer", || silence.id.clone());
        for cause in &silence.holds {
            let held = state.unresolved(cause).is_some_and(|incident| incident.response.silenced_by == Some(index));
            found.unless(held, "what a silence holds back is unresolved", || format!("{}: {cause}", silence.id));
        }
    }
}

fn escalation(state: &State, incident: &Incident, found: &mut Found) {
    let Some(at) = incident.response.escalate_at else { return };
    let name = || incident.number.clone();
    let (cause, generation) = (incident.key.cause.clone(), incident.key.generation);
    let timed = state.timers.contains(&(at, TimerKey::EscalationDue { cause, generation }));
    found.unless(timed, "an escalation has its timer", name);
    found.unless(incident.is_unresolved(), "nothing that is over escalates", name);
    found.unless(incident.acknowledged.is_none(), "nothing that somebody acknowledged escalates", name);
}

/// Nothing holds the page about it back, and there is none.
fn must_be_told(state: &State, incident: &Incident) -> bool {
    incident.status == IncidentStatus::Open
        && incident.hold_over
        && !incident.has_paged()
        && incident.acknowledged.is_none()
        && incident.severity >= state.policy().page_from
        && state.silence_of(incident).is_none()
        && !told(state, incident).is_empty()
}

/// What must hold of one entry, with the state before it.
pub fn check_entry(before: &State, entry: &Entry) -> Vec<Violation> {
    let mut found = Found(Vec::new());
    let EntryBody::Conclusion(conclusion) = &entry.body else { return found.0 };
    match conclusion {
        Conclusion::PageRequested { incident, page, .. } if page.action == PageAction::Trigger => {
            let Some(known) = before.incident(incident) else {
                found.unless(false, "a page is about an incident", || page.incident.clone());
                return found.0;
            };
            let name = || page.incident.clone();
            found.unless(before.silence_of(known).is_none(), "a silenced incident pages nobody", name);
            found.unless(known.is_unresolved(), "nobody is paged about what is over", name);
            found.unless(known.hold_over, "nobody is paged before the hold is over", name);
            let bad_enough = known.severity >= before.policy().page_from || known.has_paged();
            found.unless(bad_enough, "what is not bad enough pages nobody", name);
        }
        Conclusion::IncidentEscalated { incident, .. } => {
            let known = before.incident(incident);
            let unanswered = known.is_some_and(|incident| incident.acknowledged.is_none());
            found.unless(unanswered, "nothing that somebody acknowledged escalates", || incident.cause.clone());
        }
        _ => {}
    }
    found.0
}
