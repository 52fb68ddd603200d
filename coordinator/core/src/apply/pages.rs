//! What pages and their outcomes do to the incident they are about.

use super::incidents::{get_mut, note};
use super::{Step, receivers, response};
use crate::entry::IncidentKey;
use crate::page::{Page, PageAction, PageId};
use crate::response::is_ask;
use crate::routing;
use crate::state::{Incident, PageKey, PageOutcome, PageRecord, State};
use crate::timeline::LineKind;
use std::collections::BTreeSet;

pub(super) fn requested(state: &mut State, step: Step, key: &IncidentKey, page: &Page, why: &str) {
    let id = PageId(step.index);
    let (attempted, attempted_at) = (false, None);
    let record = PageRecord { id, incident: key.clone(), page: page.clone(), attempted, attempted_at, outcome: None };
    state.pages.insert(id, Box::new(record));
    receivers::resent(state, key, page, id);
    let told = state.incident(key).map(|incident| routing::told(state, incident)).unwrap_or_default();
    let receivers = told.into_iter().map(|told| told.receiver.to_owned()).collect();
    let Some(incident) = get_mut(state, key) else { return };
    if !incident.page_keys.iter().any(|known| known.dedup_key == page.dedup_key) {
        incident.receivers = receivers;
    }
    if page.action == PageAction::Trigger {
        // What lists show is what was told: a mass has grown within its hold, a cause was found behind its symptoms.
        incident.title.clone_from(&page.title);
        incident.next_steps = page.next_steps.iter().filter(|step| !is_ask(step)).cloned().collect();
    }
    let escalations = incident.response.escalations;
    note(incident, step, LineKind::Page, format!("page {} to {}: {why}", page.action.as_str(), page.receiver));
    let known = incident
        .page_keys
        .iter_mut()
        .find(|known| known.receiver == page.receiver && known.dedup_key == page.dedup_key);
    match known {
        Some(known) => {
            known.severity = page.severity;
            known.reason = page.reason;
            known.escalations = escalations;
            known.acknowledged |= page.action == PageAction::Acknowledge;
            known.settled |= page.action == PageAction::Resolve;
            known.pending.insert(id);
        }
        None => incident.page_keys.push(PageKey {
            receiver: page.receiver.clone(),
            dedup_key: page.dedup_key.clone(),
            severity: page.severity,
            reason: page.reason,
            attempted: false,
            pending: BTreeSet::from([id]),
            acknowledged: false,
            settled: false,
            escalations,
        }),
    }
    if page.action == PageAction::Trigger {
        response::triggered(state, step, key);
    }
    settle_cause(state, key);
}

fn settle_cause(state: &mut State, key: &IncidentKey) {
    let over = state
        .incident(key)
        .is_some_and(|incident| !incident.is_unresolved() && incident.page_keys.iter().all(|page| page.settled));
    let newest = state.newest_incident(&key.cause).is_some_and(|incident| incident.key == *key);
    if over
        && newest
        && let Some(cause) = state.causes.get_mut(&key.cause)
    {
        cause.active = false;
    }
}

pub(super) fn attempted(state: &mut State, id: PageId) {
    let now = state.last_at;
    let Some(record) = state.pages.get_mut(&id) else { return };
    record.attempted = true;
    record.attempted_at.get_or_insert(now);
    let (key, page) = (record.incident.clone(), record.page.clone());
    if let Some(known) = page_key_mut(state, &key, &page) {
        known.attempted = true;
    }
}

fn page_key_mut<'a>(state: &'a mut State, key: &IncidentKey, page: &Page) -> Option<&'a mut PageKey> {
    let keys = &mut get_mut(state, key)?.page_keys;
    keys.iter_mut().find(|known| known.receiver == page.receiver && known.dedup_key == page.dedup_key)
}

pub(super) fn ended(state: &mut State, step: Step, record: &PageRecord, outcome: &PageOutcome) {
    let key = &record.incident;
    let unresolved = state.incident(key).is_some_and(Incident::is_unresolved);
    let in_use = state.incident(key).map(Incident::dedup_key).unwrap_or_default();
    if let Some(known) = page_key_mut(state, key, &record.page) {
        known.pending.remove(&record.id);
        if known.pending.is_empty() && !known.attempted && (!unresolved || known.dedup_key != in_use) {
            known.settled = true;
        }
    }
    if let Some(incident) = get_mut(state, key) {
        let (action, receiver) = (record.page.action.as_str(), &record.page.receiver);
        let line = match outcome {
            PageOutcome::Delivered => format!("page {action} accepted by {receiver}"),
            PageOutcome::Failed { error } => format!("page {action} to {receiver} given up: {error}"),
            PageOutcome::Cancelled { why } => format!("page {action} to {receiver} cancelled: {why}"),
        };
        note(incident, step, LineKind::Page, line);
    }
    settle_cause(state, key);
    state.touched.insert(key.cause.clone());
}
