//! What receivers did with their pages, and what follows for them: who stands in, what is kept of a page given up.

use super::{Step, add_occurrence, incidents};
use crate::cause;
use crate::page::{Page, PageAction, PageId};
use crate::state::{
    CauseOccurrence, DEAD_LETTERS_MAX, DeadLetter, Incident, OUTSIDE_EVENTS_MAX, PageOutcome, PageRecord, ResendWish,
    State, outside_event,
};
use crate::timeline::LineKind;
use muster_common::evidence::Grade;
use muster_common::limits::{SUMMARY_BYTES_MAX, clip};
use muster_common::reason::Reason;
use muster_common::units::human_duration;
use std::time::Duration;

/// Receivers that the policy no longer names are forgotten, so that a name in a config is all that State grows by.
pub(super) fn keep_configured(state: &mut State) {
    let (receivers, policy) = (&mut state.receivers, &state.policy);
    receivers.retain(|name, _| policy.receivers.contains(name));
}

/// A page has an outcome.
pub(super) fn ended(state: &mut State, step: Step, record: &PageRecord, outcome: &PageOutcome) {
    let name = &record.page.receiver;
    let is_configured = state.policy.receivers.contains(name);
    match outcome {
        PageOutcome::Delivered if is_configured => {
            let receiver = state.receivers.entry(name.clone()).or_default();
            receiver.delivered = receiver.delivered.saturating_add(1);
            receiver.last_delivered = Some(step.at);
            receiver.last_error.clear();
            let took_nothing = receiver.takes_nothing();
            (receiver.failing_since, receiver.given_up_since) = (None, None);
            if took_nothing {
                state.touched.insert(cause::receiver(name));
            }
        }
        PageOutcome::Failed { error } => {
            if is_configured {
                let receiver = state.receivers.entry(name.clone()).or_default();
                receiver.failed = receiver.failed.saturating_add(1);
                receiver.last_error = clip(error, SUMMARY_BYTES_MAX);
            }
            // What is told again and given up again is one letter: the newest says all that the older ones said.
            let page = &record.page;
            let is_older = |known: &Page| {
                (&known.receiver, &known.dedup_key, known.action) == (&page.receiver, &page.dedup_key, page.action)
            };
            state.dead_letters.retain(|letter| !is_older(&letter.record.page));
            let letter = PageRecord { outcome: Some(outcome.clone()), ..record.clone() };
            state.dead_letters.push_back(DeadLetter { record: letter, failed: step.at, resent: None });
            if state.dead_letters.len() > DEAD_LETTERS_MAX {
                state.dead_letters.pop_front();
            }
            given_up(state, step, record, error, is_configured);
        }
        PageOutcome::Delivered | PageOutcome::Cancelled { .. } => {}
    }
}

/// A call that was given up is news to the other receivers, and somebody stands in. No news when it told of a failing
/// receiver itself: two of them would tell of each other for ever.
fn given_up(state: &mut State, step: Step, record: &PageRecord, error: &str, is_configured: bool) {
    let (page, receiver) = (&record.page, &record.page.receiver);
    let tells_of_another = cause::failing_receiver(&page.cause_key).is_some();
    if page.action != PageAction::Trigger || !is_configured || tells_of_another {
        return;
    }
    state.receivers.entry(receiver.clone()).or_default().given_up_since.get_or_insert(step.at);
    let fallback = state.policy.fallbacks.get(receiver).cloned();
    if let Some(fallback) = fallback
        && let Some(incident) = incidents::get_mut(state, &record.incident).filter(|incident| incident.is_unresolved())
        && !was_told(incident, &fallback, &page.dedup_key)
    {
        incident.stands_in.insert(fallback, receiver.clone());
    }
    let incident = &page.incident;
    let summary = format!("the receiver {receiver} did not take the page of {incident}: {error}");
    let first = format!("musterctl incidents show {incident}: whoever {receiver} calls was not called about it");
    tell_others(state, step, receiver, &summary, first);
}

fn was_told(incident: &Incident, receiver: &str, dedup_key: &str) -> bool {
    incident.page_keys.iter().any(|page| page.receiver == receiver && page.dedup_key == dedup_key)
}

/// A receiver has taken nothing for a while: whoever is to be told by it is told by its fallback from here on.
pub(super) fn failing(state: &mut State, step: Step, name: &str, for_ms: u64, error: &str) {
    if !state.policy.receivers.iter().any(|receiver| receiver == name) {
        return;
    }
    let receiver = state.receivers.entry(name.to_owned()).or_default();
    if receiver.failing_since.is_some() {
        return;
    }
    receiver.failing_since = Some(step.at);
    receiver.last_error = clip(error, SUMMARY_BYTES_MAX);
    let waiting = state.pages.values().filter(|record| record.page.receiver == name);
    let causes: Vec<String> = waiting.map(|record| record.incident.cause.clone()).collect();
    state.touched.extend(causes);
    let only_of_others = state.pages.values().filter(|record| record.page.receiver == name);
    let mut only_of_others = only_of_others.map(|record| cause::failing_receiver(&record.incident.cause).is_some());
    if only_of_others.all(|of_another| of_another) {
        return;
    }
    let length = human_duration(Duration::from_millis(for_ms));
    let summary = format!("the receiver {name} has taken no page for {length}: {error}");
    let first = "musterctl incidents list: whoever it calls is not called about what is open".to_owned();
    tell_others(state, step, name, &summary, first);
}

fn tell_others(state: &mut State, step: Step, receiver: &str, summary: &str, first_step: String) {
    let steps = vec![
        first_step,
        format!("check the address and the secret of the receiver {receiver} in the coordinator's config"),
    ];
    let occurrence = CauseOccurrence {
        index: step.index,
        agent: None,
        service: None,
        reason: Reason::CoordinatorFault,
        severity: Reason::CoordinatorFault.default_severity(),
        grade: Grade::Confirmed,
        summary: clip(summary, SUMMARY_BYTES_MAX),
        observed: step.at,
        received: step.at,
        next_steps: steps,
        rollback_failed: false,
    };
    add_occurrence(state, step, &cause::receiver(receiver), occurrence);
}

/// An operator wants a page to be sent again that was given up.
pub(super) fn resend_asked(state: &mut State, step: Step, by: &str, page: PageId) {
    let found = state.dead_letters.iter().find(|letter| letter.record.id == page);
    let Some(record) = found.map(|letter| letter.record.clone()) else { return };
    let Some(incident) = incidents::get_mut(state, &record.incident).filter(|incident| incident.is_unresolved()) else {
        return;
    };
    let receiver = record.page.receiver;
    let line = format!("{by} asks to send the page {} to {receiver} again", page.0);
    incidents::note(incident, step, LineKind::Operator, line);
    incident.resend.insert(receiver, ResendWish { page, action: record.page.action, by: by.to_owned() });
    state.touched.insert(record.incident.cause);
}

/// A page was requested: if somebody wished for it, the wish is fulfilled.
pub(super) fn resent(state: &mut State, key: &crate::entry::IncidentKey, page: &Page, id: PageId) {
    let Some(wish) = incidents::get_mut(state, key).and_then(|incident| incident.resend.remove(&page.receiver)) else {
        return;
    };
    if let Some(letter) = state.dead_letters.iter_mut().find(|letter| letter.record.id == wish.page) {
        letter.resent = Some(id);
    }
}

/// Remembers another system's event.
pub(super) fn outside_event_seen(state: &mut State, source: &str, id: &str) {
    if state.knows_outside_event(source, id) {
        return;
    }
    state.outside_events.push_back(outside_event(source, id));
    if state.outside_events.len() > OUTSIDE_EVENTS_MAX {
        state.outside_events.pop_front();
    }
}
