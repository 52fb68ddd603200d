//! What people and their timers do to incidents: severity by hand, escalation, silences, and what becomes of pages when
//! incidents merge.

use super::Step;
use super::incidents::{get_mut, note, set_hold};
use crate::entry::{IncidentKey, TimerKey};
use crate::response::{ByHand, escalates_at};
use crate::silence::{self, Ended};
use crate::state::{Incident, State};
use crate::timeline::{ACKNOWLEDGEMENT_ENDED, LineKind};
use muster_common::severity::Severity;

/// An incident that gets this bad, or worse than this, is paged again under a new key: receivers keep quiet about a key
/// that someone acknowledged.
const REPAGE_FROM: Severity = Severity::Sev1;

/// Whether a rise ends what people did about the milder one.
fn much_worse(before: Severity, after: Severity) -> bool {
    after >= REPAGE_FROM && after > before
}

/// A severity that just rose from `before`: an acknowledgement does not hold for what is so much worse, and who was told
/// of something milder is told anew.
pub(super) fn risen(incident: &mut Incident, step: Step, before: Severity) {
    let void = much_worse(before, incident.severity) && incident.acknowledged.take().is_some();
    if void {
        note(incident, step, LineKind::Decision, ACKNOWLEDGEMENT_ENDED.to_owned());
    }
    repage(incident, void);
}

/// A new key where the one in use was told of something so much milder, or where receivers keep quiet about it although
/// nobody answers for it any more.
fn repage(incident: &mut Incident, void: bool) {
    if incident.has_paged() {
        incident.response.unsilenced = None;
    }
    let current = incident.dedup_key();
    let keys = incident.page_keys.iter().filter(|page| page.dedup_key == current);
    let told = keys.map(|page| page.severity).max();
    if told.is_some_and(|told| void || much_worse(told, incident.severity)) {
        incident.repages = incident.repages.saturating_add(1);
        // Answering counts from the new page on.
        incident.response.paged_at = None;
        incident.response.escalations = 0;
    }
}

/// A person's severity takes effect.
pub(super) fn severity_set(
    state: &mut State,
    step: Step,
    key: &IncidentKey,
    (severity, assessed): (Severity, Severity),
    by: &str,
    why: &str,
) {
    let Some(incident) = get_mut(state, key) else { return };
    let before = std::mem::replace(&mut incident.severity, severity);
    incident.response.wish = None;
    incident.response.by_hand = Some(ByHand { by: by.to_owned(), assessed });
    // What is paged and what is held back is asked anew.
    incident.explained = false;
    why.clone_into(&mut incident.why);
    note(incident, step, LineKind::Decision, format!("{severity} instead of {before}: {why}"));
    risen(incident, step, before);
    let (opened, waiting) = (incident.opened, incident.hold_until.is_some());
    if waiting {
        set_hold(state, step, &key.cause, opened);
    }
    set_escalation(state, step, key);
}

/// Sets the timer anew, from the first page under the key in use; none for what was not paged or is answered.
pub(super) fn set_escalation(state: &mut State, step: Step, key: &IncidentKey) {
    stop_escalation(state, key);
    let Some(incident) = state.incident(key) else { return };
    if !incident.is_unresolved() || incident.acknowledged.is_some() {
        return;
    }
    let Some(paged_at) = incident.response.paged_at else { return };
    let (severity, escalations) = (incident.severity, incident.response.escalations);
    let Some(at) = escalates_at(&state.policy, severity, paged_at, escalations, step.at) else { return };
    let due = at <= step.at;
    if !due {
        state.timers.insert((at, timer(key)));
    }
    if let Some(incident) = get_mut(state, key) {
        incident.response.escalate_at = (!due).then_some(at);
        incident.response.escalation_due = due;
    }
}

fn timer(key: &IncidentKey) -> TimerKey {
    TimerKey::EscalationDue { cause: key.cause.clone(), generation: key.generation }
}

/// Answered, or over.
pub(super) fn stop_escalation(state: &mut State, key: &IncidentKey) {
    let Some(incident) = get_mut(state, key) else { return };
    incident.response.escalation_due = false;
    if let Some(at) = incident.response.escalate_at.take() {
        state.timers.remove(&(at, timer(key)));
    }
}

pub(super) fn escalation_due(state: &mut State, step: Step, cause: &str, generation: u64) {
    let key = IncidentKey { cause: cause.to_owned(), generation };
    if let Some(incident) = get_mut(state, &key)
        && incident.response.escalate_at.is_some_and(|at| at <= step.at)
    {
        incident.response.escalate_at = None;
        incident.response.escalation_due = true;
    }
    state.touched.insert(cause.to_owned());
}

pub(super) fn escalated(state: &mut State, step: Step, key: &IncidentKey, count: u64, why: &str) {
    if let Some(incident) = get_mut(state, key) {
        incident.response.escalations = count;
        incident.response.unsilenced = None;
        note(incident, step, LineKind::Decision, format!("escalation {count}: {why}"));
    }
    set_escalation(state, step, key);
}

/// The first page under a key begins the time in which somebody is to answer.
pub(super) fn triggered(state: &mut State, step: Step, key: &IncidentKey) {
    let Some(incident) = get_mut(state, key) else { return };
    if incident.response.paged_at.is_none() {
        incident.response.paged_at = Some(step.at);
        set_escalation(state, step, key);
    }
}

/// Pages about it are held back.
pub(super) fn silenced(state: &mut State, step: Step, key: &IncidentKey, index: u64, why: &str) {
    let Some(incident) = get_mut(state, key) else { return };
    let before = incident.response.silenced_by.replace(index);
    incident.response.unsilenced = None;
    incident.explained = true;
    note(incident, step, LineKind::Decision, format!("pages held back: {why}"));
    if let Some(before) = before.filter(|before| *before != index) {
        silence::releases(state, before, &key.cause);
    }
    silence::holds(state, index, &key.cause);
}

/// A silence is over: what it held back is looked at again.
pub(super) fn unsilenced(state: &mut State, step: Step, index: u64, ended: Option<Ended>) {
    let Some(ended) = ended else { return };
    for cause in ended.causes {
        let Some(incident) = super::incidents::unresolved_mut(state, &cause) else { continue };
        if incident.response.silenced_by != Some(index) {
            continue;
        }
        incident.response.silenced_by = None;
        incident.response.unsilenced = Some(ended.words.clone());
        incident.explained = false;
        note(incident, step, LineKind::Decision, ended.words.clone());
        state.touched.insert(cause);
    }
}

/// A silence is over soon: whoever looks at what it holds back reads so.
pub(super) fn silence_ends(state: &mut State, step: Step, index: u64) {
    let Some((causes, words)) = silence::ending(state, index) else { return };
    for cause in causes {
        if let Some(incident) = super::incidents::unresolved_mut(state, &cause) {
            note(incident, step, LineKind::Decision, words.clone());
        }
    }
}

/// Over: nothing is held back, nobody is waited for.
pub(super) fn over(state: &mut State, key: &IncidentKey) {
    stop_escalation(state, key);
    let Some(incident) = get_mut(state, key) else { return };
    incident.response.wish = None;
    if let Some(index) = incident.response.silenced_by.take() {
        silence::releases(state, index, &key.cause);
    }
}

/// `from`, which was paged, is a symptom of `into`. Of the two the page of the older goes on, with its owner; the other's
/// is resolved.
pub(super) fn merge(state: &mut State, step: Step, from: &IncidentKey, into: &IncidentKey) {
    let (Some(old), Some(target)) = (state.incident(from), state.incident(into)) else { return };
    let holder = old.key_holder();
    let goes_on = target.page_keys.is_empty() || holder.opened < target.key_holder().opened;
    if !goes_on {
        let words = format!("{} was paged as well; its page is resolved, this one goes on", old.number);
        if let Some(target) = get_mut(state, into) {
            note(target, step, LineKind::Decision, words);
        }
        return;
    }
    let Some(old) = get_mut(state, from) else { return };
    let current = old.dedup_key();
    // Keys that were given up before are settled where they are.
    let (moved, left): (Vec<_>, Vec<_>) =
        std::mem::take(&mut old.page_keys).into_iter().partition(|page| page.dedup_key == current);
    old.page_keys = left;
    // Who was told is told by the other one from here on.
    let receivers = std::mem::take(&mut old.receivers);
    let (owner, acknowledged, severity) = (old.owner.clone(), old.acknowledged, old.severity);
    let (repages, first) = (old.repages, old.first_delivered);
    let (number, response) = (old.number.clone(), old.response.clone());
    for id in moved.iter().flat_map(|page| &page.pending) {
        if let Some(record) = state.pages.get_mut(id) {
            record.incident = into.clone();
        }
    }
    let Some(target) = get_mut(state, into) else { return };
    target.page_keys.extend(moved);
    target.response.adopted = Some(holder);
    target.response.adoptions = target.response.adoptions.saturating_add(1).saturating_add(target.repages);
    target.response.paged_at = response.paged_at;
    target.response.escalations = response.escalations;
    target.response.commander = response.commander.or(target.response.commander.take());
    target.repages = repages;
    target.receivers = receivers;
    target.first_delivered = first.into_iter().chain(target.first_delivered).min();
    let words = match owner.as_ref().filter(|_| acknowledged.is_some()) {
        Some(owner) => format!("the page of {number} goes on for this, owned by {owner}"),
        None => format!("the page of {number} goes on for this"),
    };
    // Whoever answered for the worse one has answered: an answer to something milder does not take its place.
    let answered = target.acknowledged.is_some() && much_worse(severity, target.severity);
    if acknowledged.is_some() && !answered {
        target.owner = owner;
        target.acknowledged = acknowledged;
    }
    note(target, step, LineKind::Decision, words);
    if answered {
        repage(target, false);
    } else {
        risen(target, step, severity);
    }
    set_escalation(state, step, into);
}
