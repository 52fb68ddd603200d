//! The one function that changes State. Total: it takes any entry a [`crate::machine::Machine`] wrote, on a primary, a
//! standby and at start, and gives the same state each time.
//!
//! Facts feed agents and causes here and in [`findings`] and [`storms`]; conclusions shape incidents in [`incidents`].

mod archive;
mod facts;
pub(crate) mod fallen;
mod findings;
mod flood;
pub(crate) mod incidents;
pub(crate) mod links;
mod pages;
mod receivers;
mod response;
mod stability;
mod storms;

use crate::cause;
use crate::correlation;
use crate::entry::{Entry, EntryBody, Fact, IncidentKey, OperatorAction, TimerKey};
use crate::freeze::{self, Freeze};
use crate::page::{PageAction, PageId};
use crate::refusals;
use crate::response::SeverityWish;
use crate::second_opinion;
use crate::signals;
use crate::silence::{self, Silence};
use crate::state::{CAUSE_OCCURRENCES_MAX, CauseOccurrence, Incident, PAST_PAGES_MAX, PageOutcome, State};
use crate::timeline::LineKind;
use muster_common::evidence::Grade;
use muster_common::ids::{AgentName, Epoch};
use muster_common::limits::{SUMMARY_BYTES_MAX, clip};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Where and when: what every step needs of the entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) index: u64,
    pub(crate) at: Timestamp,
    /// Time of the entry before it.
    pub(crate) before: Timestamp,
}

/// Applies one entry.
pub fn apply(state: &mut State, entry: &Entry) {
    let step = Step { index: entry.index, at: entry.at, before: state.last_at };
    state.head_index = entry.index;
    state.last_at = state.last_at.max(entry.at);
    state.touched.clear();
    match &entry.body {
        EntryBody::Fact(fact) => apply_fact(state, step, fact),
        EntryBody::Deadline(timer) => apply_deadline(state, step, timer),
        EntryBody::Conclusion(conclusion) => incidents::apply_conclusion(state, step, conclusion),
    }
    correlation::update(state);
}

fn apply_fact(state: &mut State, step: Step, fact: &Fact) {
    match fact {
        Fact::Started { coordinator, fleet, epoch, .. } => {
            state.fleet = Some(fleet.clone());
            state.coordinator = Some(coordinator.clone());
            begin_reign(state, step, epoch);
        }
        Fact::TookOver { epoch, .. } => {
            state.coordinator = Some(epoch.coordinator.clone());
            skip_to_next_thousand(state);
            begin_reign(state, step, epoch);
        }
        Fact::Paused { .. } => links::begin_rehear(state, step),
        Fact::PolicyLoaded { policy } => load_policy(state, step, policy),
        Fact::AgentConnected { agent, hello } => links::connected(state, step, agent, hello),
        Fact::AgentDisconnected { agent, how } => links::disconnected(state, step, agent, *how),
        Fact::AgentFlapping { agent, reconnects } => {
            let record = links::record(state, step, agent);
            record.reconnects = record.reconnects.saturating_add(*reconnects);
            refusals::looped(state, step, agent.as_str(), "", refusals::RECONNECTS, *reconnects);
        }
        Fact::AgentSilent { agent, last_heard, silence } => links::silent(state, step, agent, *last_heard, *silence),
        Fact::AgentHeard { agent } => links::heard(state, step, agent),
        Fact::SecondOpinion { agent, question, answers } => {
            second_opinion::answered(state, step, agent, *question, answers);
        }
        Fact::AgentArchived { agent, by, reason } => archive::archived(state, step, agent, by, reason),
        Fact::FindingReceived { agent, position, observed, estimated, event } => {
            let seen = findings::Seen { at: (*observed).min(step.at), estimated: *estimated };
            findings::received(state, step, agent, *position, seen, event);
        }
        Fact::FindingsLost { agent, spool, first, last } => findings::lost(state, step, agent, *spool, *first, *last),
        Fact::SpoolReplaced { agent, new, .. } => {
            links::record(state, step, agent).position = Some(muster_common::spool::Position::start(*new));
            signals::lost(state, step, agent);
        }
        Fact::DigestDiffers { agent } => links::digest(state, step, agent, false),
        Fact::OpenSetReceived { agent, subjects } => findings::open_set(state, step, agent, subjects),
        Fact::IdentityConflict { agent, holder, refused } => identity_conflict(state, step, agent, holder, refused),
        Fact::CallsRefused { caller, address, route, why, count } => {
            refusals::refused(state, step, caller, address, route, why, *count);
        }
        Fact::CallsLooped { caller, address, route, count } => {
            refusals::looped(state, step, caller, address, route, *count);
        }
        Fact::Operator { by, cause, generation, action } => operator(state, step, by, cause, *generation, action),
        Fact::FreezeSet { by, scope, reason, expires } => {
            let (by, reason) = (by.clone(), clip(reason, SUMMARY_BYTES_MAX));
            let (scope, id) = (scope.clone(), freeze::id(step.index));
            freeze::set(state, step.index, Freeze { id, scope, reason, by, created: step.at, expires: *expires });
        }
        Fact::FreezeLifted { index, .. } => freeze::end(state, *index),
        Fact::SilenceSet { by, kind, matchers, reason, starts, ends } => {
            let silence = Silence {
                id: silence::id(step.index),
                kind: *kind,
                matchers: matchers.clone(),
                reason: clip(reason, SUMMARY_BYTES_MAX),
                by: by.clone(),
                created: step.at,
                starts: *starts,
                ends: *ends,
                active: false,
                ended: None,
                ended_by: None,
                notice_at: None,
                noticed: None,
                holds: Default::default(),
            };
            silence::set(state, step.index, step.at, silence);
        }
        Fact::SilenceExpired { by, index } => {
            let ended = silence::end(state, *index, step.at, Some(by));
            response::unsilenced(state, step, *index, ended);
        }
        Fact::PageAttempted { page } => pages::attempted(state, *page),
        Fact::PageDelivered { page } => page_ended(state, step, *page, PageOutcome::Delivered),
        Fact::PageFailed { page, error } => {
            page_ended(state, step, *page, PageOutcome::Failed { error: error.clone() });
        }
        Fact::ReceiverFailing { receiver, for_ms, error } => receivers::failing(state, step, receiver, *for_ms, error),
        Fact::ResendAsked { by, page } => receivers::resend_asked(state, step, by, *page),
        Fact::OutsideEvent { source, id } => receivers::outside_event_seen(state, source, id),
        Fact::EpochHeard { epoch, .. } => {
            if state.epoch.as_ref().is_none_or(|mine| epoch > mine) {
                state.fenced_by = Some(epoch.clone());
            }
        }
        Fact::DecidePanicked { entry, message } => fault(state, step, *entry, message),
    }
}

fn begin_reign(state: &mut State, step: Step, epoch: &Epoch) {
    state.epoch = Some(epoch.clone());
    if state.fenced_by.as_ref().is_some_and(|fence| epoch >= fence) {
        state.fenced_by = None;
    }
    links::begin_rehear(state, step);
    // A standby may have been cut off between a fact and its conclusions: everything is looked at again, once.
    state.touched.extend(state.causes.keys().cloned());
}

fn skip_to_next_thousand(state: &mut State) {
    state.number_next = (state.number_next / 1000 + 1) * 1000;
}

/// Timers keep their times, but for a re-hear window: it may have begun under the policy of the reign before. Rules look
/// at the new thresholds from here on. What is unresolved is looked at again.
fn load_policy(state: &mut State, step: Step, policy: &crate::policy::Policy) {
    let old = std::mem::replace(&mut state.policy, policy.clone());
    links::adjust_rehear(state, step, &old.liveness);
    receivers::keep_configured(state);
    flood::policy_changed(state, &old);
    let open = state.causes.iter().filter(|(_, cause)| cause.active || !cause.members.is_empty());
    let open: Vec<String> = open.map(|(key, _)| key.clone()).collect();
    state.touched.extend(open);
}

fn apply_deadline(state: &mut State, step: Step, timer: &TimerKey) {
    let due = state.timers.iter().take_while(|(due, _)| *due <= step.at).filter(|(_, key)| key == timer);
    for entry in due.cloned().collect::<Vec<_>>() {
        state.timers.remove(&entry);
    }
    match timer {
        TimerKey::RehearOver => {
            state.rehear_until = None;
        }
        TimerKey::HoldOver { cause, generation } => incidents::hold_over(state, step, cause, *generation),
        TimerKey::StabilityOver { cause, generation } => incidents::stability_over(state, step, cause, *generation),
        // Looked at again; a deadline of an incident that is over finds nothing.
        TimerKey::SecondOpinionDue { cause, .. } => {
            state.touched.insert(cause.clone());
        }
        TimerKey::SignalDue { cause } => signals::due(state, step, cause),
        TimerKey::FreezeOver { index } => freeze::end(state, *index),
        TimerKey::SilenceTurn { index } => {
            let ended = silence::turn(state, *index, step.at);
            response::unsilenced(state, step, *index, ended);
        }
        TimerKey::SilenceEnds { index } => response::silence_ends(state, step, *index),
        TimerKey::EscalationDue { cause, generation } => response::escalation_due(state, step, cause, *generation),
        TimerKey::WindowOver { window } => storms::window_over(state, step, window),
    }
}

fn operator(state: &mut State, step: Step, by: &str, cause: &str, generation: u64, action: &OperatorAction) {
    let key = IncidentKey { cause: cause.to_owned(), generation };
    let Some(incident) = incidents::get_mut(state, &key) else { return };
    let unresolved = incident.is_unresolved();
    match action {
        OperatorAction::Acknowledge { .. } if unresolved => {
            incident.owner = Some(by.to_owned());
            incident.acknowledged = Some(step.at);
            response::stop_escalation(state, &key);
        }
        OperatorAction::Resolve { summary } if unresolved => {
            incident.resolve_wish = Some((by.to_owned(), summary.clone()));
        }
        OperatorAction::SetSeverity { severity, note } if unresolved => {
            let wish = SeverityWish { by: by.to_owned(), severity: *severity, note: note.clone() };
            incident.response.wish = Some(wish);
        }
        OperatorAction::SetCommander { commander } => {
            incident.response.commander = Some(commander.clone()).filter(|name| !name.is_empty());
        }
        _ => {}
    }
    if let Some(incident) = incidents::get_mut(state, &key) {
        incidents::note(incident, step, LineKind::Operator, action.told(by));
    }
    state.touched.insert(cause.to_owned());
}

fn page_ended(state: &mut State, step: Step, id: PageId, outcome: PageOutcome) {
    let Some(mut record) = state.pages.remove(&id) else { return };
    pages::ended(state, step, &record, &outcome);
    if let Some(incident) = incidents::get_mut(state, &record.incident) {
        count(incident, step, record.page.action == PageAction::Trigger, &outcome);
    }
    receivers::ended(state, step, &record, &outcome);
    record.outcome = Some(outcome);
    state.past_pages.push_back(*record);
    if state.past_pages.len() > PAST_PAGES_MAX {
        state.past_pages.pop_front();
    }
}

/// What an incident keeps of its pages after they are forgotten.
fn count(incident: &mut Incident, step: Step, is_trigger: bool, outcome: &PageOutcome) {
    match outcome {
        PageOutcome::Delivered => {
            incident.pages_delivered = incident.pages_delivered.saturating_add(1);
            if is_trigger {
                incident.first_delivered.get_or_insert(step.at);
            }
        }
        PageOutcome::Failed { .. } => {
            incident.triggers_failed = incident.triggers_failed.saturating_add(u64::from(is_trigger));
        }
        PageOutcome::Cancelled { .. } => {}
    }
}

fn identity_conflict(state: &mut State, step: Step, agent: &AgentName, holder: &str, refused: &str) {
    let summary = format!(
        "two living agents present the certificate of {agent}: {holder} holds the stream, {refused} was refused"
    );
    let steps = vec![
        format!("find out which of {holder} and {refused} is {agent}"),
        "give the other one a certificate of its own".to_owned(),
    ];
    let occurrence = CauseOccurrence {
        index: step.index,
        agent: Some(agent.clone()),
        service: None,
        reason: Reason::AgentIdentityConflict,
        severity: Reason::AgentIdentityConflict.default_severity(),
        grade: Grade::Confirmed,
        summary,
        observed: step.at,
        received: step.at,
        next_steps: steps,
        rollback_failed: false,
    };
    let key = cause::identity_conflict(agent);
    let quiet = state.policy.signals.agent_identity_conflict.quiet;
    signals::set_due(state, &key, Some(step.at + quiet));
    add_occurrence(state, step, &key, occurrence);
}

fn fault(state: &mut State, step: Step, entry: u64, message: &str) {
    let occurrence = CauseOccurrence {
        index: step.index,
        agent: None,
        service: None,
        reason: Reason::CoordinatorFault,
        severity: Reason::CoordinatorFault.default_severity(),
        grade: Grade::Confirmed,
        summary: format!("a rule panicked while deciding on journal entry {entry}: {message}"),
        observed: step.at,
        received: step.at,
        next_steps: vec!["report the message and the journal around that entry".to_owned()],
        rollback_failed: false,
    };
    add_occurrence(state, step, cause::COORDINATOR_FAULT, occurrence);
}

/// Notes an occurrence under a cause. While its incident recovers, the stability window begins anew.
fn add_occurrence(state: &mut State, step: Step, key: &str, occurrence: CauseOccurrence) {
    let cause = state.causes.entry(key.to_owned()).or_default();
    cause.occurrences.push_back(occurrence);
    if cause.occurrences.len() > CAUSE_OCCURRENCES_MAX {
        cause.occurrences.pop_front();
    }
    incidents::restart_stability(state, step, key);
    state.touched.insert(key.to_owned());
}

/// Forgets causes that hold nothing, so that State does not grow with what once was. Their generation is kept by the
/// newest incident.
pub(crate) fn drop_if_empty(state: &mut State, key: &str) {
    if state.causes.get(key).is_some_and(|cause| !cause.holds_something()) {
        forget(state, key);
    }
}

/// The same of one that is known to hold nothing.
fn forget(state: &mut State, key: &str) {
    if !state.incidents.contains_key(key) {
        state.causes.remove(key);
    }
}
