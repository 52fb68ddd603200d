//! What conclusions, timers and outcomes of pages do to incidents.

use super::{Step, facts, flood, links, pages, response, stability};
use crate::cause::{self, CauseKind};
use crate::changes;
use crate::correlation;
use crate::detect;
use crate::entry::{Conclusion, IncidentKey, Resolution, TimerKey};
use crate::same_kill;
use crate::second_opinion;
use crate::signals;
use crate::state::{Incident, IncidentStatus, MEMBERS_MAX, PageOutcome, RESOLVED_INCIDENTS_MAX, State, TIMELINE_MAX};
use crate::timeline::{LineKind, TimelineLine};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) fn get_mut<'a>(state: &'a mut State, key: &IncidentKey) -> Option<&'a mut Incident> {
    state.incidents.get_mut(&key.cause)?.get_mut(&key.generation).map(Box::as_mut)
}

pub(super) fn unresolved_mut<'a>(state: &'a mut State, cause: &str) -> Option<&'a mut Incident> {
    let newest = state.incidents.get_mut(cause)?.values_mut().next_back()?;
    newest.is_unresolved().then_some(newest)
}

/// Adds a line to the timeline: of a full one the first half and the newest lines stay.
pub(crate) fn note(incident: &mut Incident, step: Step, kind: LineKind, text: String) {
    if incident.timeline.len() >= TIMELINE_MAX {
        incident.timeline.remove(TIMELINE_MAX / 2);
    }
    incident.timeline.push(TimelineLine { at: step.at, index: step.index, kind, text });
}

pub(super) fn apply_conclusion(state: &mut State, step: Step, conclusion: &Conclusion) {
    match conclusion {
        Conclusion::IncidentOpened { incident, .. } => opened(state, step, incident, conclusion),
        Conclusion::IncidentJoined { incident, member, why } => joined(state, step, incident, member, why),
        Conclusion::IncidentChanged { incident, severity, reason, title, why } => {
            changed(state, step, incident, (*severity, *reason), title, why);
        }
        Conclusion::IncidentRecovering { incident, why } => recovering(state, step, incident, why),
        Conclusion::IncidentRelapsed { incident, why } => relapsed(state, step, incident, why),
        Conclusion::IncidentResolved { incident, resolution, why } => resolved(state, step, incident, resolution, why),
        Conclusion::SecondOpinionWanted { .. } => second_opinion::asked(state, step, conclusion),
        Conclusion::PageRequested { incident, page, why } => {
            pages::requested(state, step, incident, page, why);
            changes::note(state, &incident.cause);
        }
        Conclusion::PageCancelled { page, why } => {
            super::page_ended(state, step, *page, PageOutcome::Cancelled { why: why.clone() });
        }
        Conclusion::SeveritySet { incident, severity, assessed, by, why } => {
            response::severity_set(state, step, incident, (*severity, *assessed), by, why);
        }
        Conclusion::IncidentEscalated { incident, count, why } => {
            response::escalated(state, step, incident, *count, why);
        }
        Conclusion::IncidentSilenced { incident, silence, why } => {
            response::silenced(state, step, incident, *silence, why);
        }
        Conclusion::NotPaged { incident, why } => {
            if let Some(known) = get_mut(state, incident) {
                known.explained = true;
                note(known, step, LineKind::Decision, format!("not paged: {why}"));
            }
        }
    }
    if let Some(key) = conclusion_key(state, conclusion) {
        state.touched.insert(key);
    }
}

fn conclusion_key(state: &State, conclusion: &Conclusion) -> Option<String> {
    match conclusion {
        Conclusion::IncidentOpened { incident, .. }
        | Conclusion::IncidentJoined { incident, .. }
        | Conclusion::IncidentChanged { incident, .. }
        | Conclusion::IncidentRecovering { incident, .. }
        | Conclusion::IncidentRelapsed { incident, .. }
        | Conclusion::IncidentResolved { incident, .. }
        | Conclusion::PageRequested { incident, .. }
        | Conclusion::SeveritySet { incident, .. }
        | Conclusion::IncidentEscalated { incident, .. }
        | Conclusion::IncidentSilenced { incident, .. }
        | Conclusion::SecondOpinionWanted { incident, .. }
        | Conclusion::NotPaged { incident, .. } => Some(incident.cause.clone()),
        Conclusion::PageCancelled { page, .. } => state.page(*page).map(|record| record.incident.cause.clone()),
    }
}

/// How long an incident waits before it pages. Silences come staggered by a heartbeat, so that the page about many of
/// them waits for one, to count them all.
pub(crate) fn hold_of(state: &State, reason: Reason, severity: Severity) -> Duration {
    let hold = *state.policy.hold.get(severity);
    if reason == Reason::MassStale { hold.max(state.policy.liveness.heartbeat) } else { hold }
}

fn opened(state: &mut State, step: Step, key: &IncidentKey, conclusion: &Conclusion) {
    let Conclusion::IncidentOpened { number, reason, severity, grade, title, why, began, next_steps, .. } = conclusion
    else {
        return;
    };
    count_number(state, step);
    let cause = state.causes.entry(key.cause.clone()).or_default();
    cause.generation = key.generation;
    cause.active = true;
    let names = cause.members.keys().chain(cause.unjoined.iter());
    let members: BTreeSet<String> = names.take(MEMBERS_MAX).cloned().collect();
    cause.unjoined.clear();
    let mut agents: BTreeSet<AgentName> = cause.agents.keys().cloned().collect();
    agents.extend(cause.occurrences.iter().filter_map(|occurrence| occurrence.agent.clone()));
    agents.extend(cause.storm.iter().flat_map(|storm| storm.agents.iter().cloned()));
    agents.extend(cause.burst.iter().flat_map(|burst| burst.agents.iter().cloned()));
    let services = facts::services_of(&key.cause, cause);
    let mut incident = Incident {
        key: key.clone(),
        number: number.clone(),
        fleet: state.fleet.as_ref().map(ToString::to_string).unwrap_or_default(),
        status: IncidentStatus::Open,
        reason: *reason,
        severity: *severity,
        grade: *grade,
        title: title.clone(),
        why: why.clone(),
        next_steps: next_steps.clone(),
        began: *began,
        opened: step.at,
        owner: None,
        acknowledged: None,
        resolved: None,
        resolution: None,
        members_dropped: (cause.members.len() - members.len().min(cause.members.len())) as u64,
        members,
        agents: BTreeSet::new(),
        services,
        response: Default::default(),
        changes: Vec::new(),
        timeline: Vec::new(),
        relapses: 0,
        repages: 0,
        hold_until: None,
        hold_over: false,
        explained: false,
        page_keys: Vec::new(),
        receivers: Vec::new(),
        first_delivered: None,
        pages_delivered: 0,
        triggers_failed: 0,
        blind: BTreeSet::new(),
        stability_left_ms: 0,
        stability_from: None,
        stability_over: false,
        resolve_wish: None,
        stands_in: BTreeMap::new(),
        resend: BTreeMap::new(),
    };
    note(&mut incident, step, LineKind::Decision, format!("opened: {title} ({why})"));
    state.numbers.insert(number.clone(), key.clone());
    let of_cause = state.incidents.get_or_insert_with(&key.cause, BTreeMap::new);
    of_cause.insert(key.generation, Box::new(incident));
    agents_joined(state, &key.cause, &agents);
    changes::note(state, &key.cause);
    signals::flapped(state, step, &key.cause);
    set_hold(state, step, &key.cause, step.at);
    second_opinion::opened(state, step, key);
    correlation::opened(state, step.at, &key.cause);
    touch_symptoms(state, &key.cause);
}

fn count_number(state: &mut State, step: Step) {
    let day = step.at.utc_day();
    if state.number_day != day {
        // A takeover's thousand holds on the day of the takeover; before the first incident of a day it is kept.
        let fresh = if state.number_day == 0 { state.number_next } else { 1 };
        state.number_day = day;
        state.number_next = fresh;
    }
    state.number_next = state.number_next.saturating_add(1);
}

/// Hosts that take part from now on: whether they are heard decides on the incident's stability window.
pub(super) fn agents_joined(state: &mut State, cause: &str, agents: &BTreeSet<AgentName>) {
    let counts_blind = counts_blind(cause);
    for agent in agents {
        let sure = state.agent(agent).is_none_or(links::is_sure);
        let Some(incident) = unresolved_mut(state, cause) else { return };
        if incident.agents.len() < MEMBERS_MAX && incident.agents.insert(agent.clone()) {
            if counts_blind && !sure {
                incident.blind.insert(agent.clone());
            }
            if let Some(record) = state.agents.get_mut(agent) {
                record.incidents.insert(cause.to_owned());
            }
            flood::watch(state, agent);
        }
    }
}

/// Whether an incident waits for all of its hosts to be heard. One about silences does not, nor one that gathers others:
/// each of those is watched by its own cause, and whoever stays silent has an incident of its own when it recovers.
fn counts_blind(cause: &str) -> bool {
    !matches!(cause::kind_of(cause), CauseKind::MassStale | CauseKind::Burst)
}

/// An agent that takes part in the incident is forgotten: nobody waits for it to be heard.
pub(super) fn forget_agent(state: &mut State, step: Step, cause: &str, agent: &AgentName, words: String) {
    if let Some(incident) = unresolved_mut(state, cause) {
        incident.blind.remove(agent);
        note(incident, step, LineKind::Operator, words);
    }
    restart_clock(state, step, cause);
}

/// The causes that may fold into a fleet-wide one are looked at again.
fn touch_symptoms(state: &mut State, cause: &str) {
    let symptoms = symptoms(state, cause);
    state.touched.extend(symptoms);
}

fn symptoms(state: &State, key: &str) -> Vec<String> {
    let mut symptoms = detect::symptoms(state, key);
    let folds = |other: &String| {
        let told = state.cause(other).and_then(|cause| same_kill::explained(state, other, cause));
        told.is_some_and(|incident| incident.key.cause == key)
    };
    symptoms.extend(same_kill::beside(state, key).into_iter().filter(folds));
    symptoms
}

/// Starts the hold, counted from `from`; over at once when it is zero or past.
pub(super) fn set_hold(state: &mut State, step: Step, cause: &str, from: Timestamp) {
    let Some(incident) = unresolved_mut(state, cause) else { return };
    let (reason, severity, key) = (incident.reason, incident.severity, incident.key.clone());
    let old = incident.hold_until.take();
    let mut until = from + hold_of(state, reason, severity);
    if matches!(reason, Reason::AgentStale | Reason::MassStale)
        && let Some(rehear) = state.rehear_until
    {
        until = until.max(rehear);
    }
    let timer = TimerKey::HoldOver { cause: cause.to_owned(), generation: key.generation };
    if let Some(old) = old {
        state.timers.remove(&(old, timer.clone()));
    }
    let over = until <= step.at;
    if !over {
        state.timers.insert((until, timer));
    }
    if let Some(incident) = unresolved_mut(state, cause) {
        incident.hold_until = (!over).then_some(until);
        incident.hold_over = over;
        incident.explained = false;
    }
}

pub(super) fn hold_over(state: &mut State, step: Step, cause: &str, generation: u64) {
    let key = IncidentKey { cause: cause.to_owned(), generation };
    if let Some(incident) = get_mut(state, &key)
        && incident.hold_until.is_some_and(|until| until <= step.at)
    {
        incident.hold_until = None;
        incident.hold_over = true;
    }
    state.touched.insert(cause.to_owned());
}

/// While agents are being re-heard nobody is paged about their silence. One pass over unresolved incidents, at a start.
pub(super) fn postpone_silences(state: &mut State, until: Timestamp) {
    let mut moved = Vec::new();
    for generations in state.incidents.values_mut() {
        let Some(incident) = generations.values_mut().next_back().filter(|incident| incident.is_unresolved()) else {
            continue;
        };
        let of_silence = matches!(incident.reason, Reason::AgentStale | Reason::MassStale);
        if of_silence && !incident.has_paged() && incident.hold_until.is_none_or(|hold| hold < until) {
            moved.push((incident.key.clone(), incident.hold_until.replace(until)));
            incident.hold_over = false;
        }
    }
    for (key, old) in moved {
        let timer = TimerKey::HoldOver { cause: key.cause, generation: key.generation };
        if let Some(old) = old {
            state.timers.remove(&(old, timer.clone()));
        }
        state.timers.insert((until, timer));
    }
}

fn joined(state: &mut State, step: Step, key: &IncidentKey, member: &str, why: &str) {
    if let Some(cause) = state.causes.get_mut(&key.cause) {
        cause.unjoined.remove(member);
    }
    // A whole cause that joins as a symptom has been told: what only happened there does not raise it again.
    forget_occurrences(state, member);
    super::drop_if_empty(state, member);
    let agents: BTreeSet<AgentName> = state
        .causes
        .get(&key.cause)
        .and_then(|cause| cause.members.get(member))
        .map(|m| m.agent.clone())
        .into_iter()
        .collect();
    let service = state.causes.get(&key.cause).and_then(|cause| cause.members.get(member)?.key.as_ref());
    let service = service.map(|key| key.subject.service.to_string());
    if let Some(incident) = get_mut(state, key) {
        if incident.members.len() < MEMBERS_MAX {
            incident.members.insert(member.to_owned());
        } else {
            incident.members_dropped = incident.members_dropped.saturating_add(1);
        }
        facts::add_services(incident, service);
        note(incident, step, LineKind::Decision, format!("{member} joined: {why}"));
    }
    agents_joined(state, &key.cause, &agents);
    if !agents.is_empty() {
        let symptoms = agents.iter().filter(|_| cause::kind_of(&key.cause) == CauseKind::MassStale);
        state.touched.extend(symptoms.map(cause::agent_stale).collect::<Vec<_>>());
    }
    restart_clock(state, step, &key.cause);
}

fn forget_occurrences(state: &mut State, key: &str) {
    if let Some(cause) = state.causes.get_mut(key) {
        cause.occurrences.clear();
        if cause.storm.as_ref().is_some_and(|storm| !storm.active) {
            cause.storm = None;
        }
    }
}

fn changed(
    state: &mut State,
    step: Step,
    key: &IncidentKey,
    (severity, reason): (Severity, Reason),
    title: &str,
    why: &str,
) {
    let Some(incident) = get_mut(state, key) else { return };
    let before = std::mem::replace(&mut incident.severity, severity);
    let worse = severity > before;
    risen_by_rule(incident, step, before);
    incident.reason = reason;
    incident.title = title.to_owned();
    incident.why = why.to_owned();
    note(incident, step, LineKind::Decision, format!("now {severity} {reason}: {title} ({why})"));
    let (opened, waiting) = (incident.opened, incident.hold_until.is_some());
    if worse && waiting {
        set_hold(state, step, &key.cause, opened);
    }
    if worse {
        response::set_escalation(state, step, key);
    }
}

/// What a rule found is worse than what a person made of it: from now on the rules count again.
fn risen_by_rule(incident: &mut Incident, step: Step, before: Severity) {
    if incident.severity > before {
        incident.response.by_hand = None;
        response::risen(incident, step, before);
    }
}

fn recovering(state: &mut State, step: Step, key: &IncidentKey, why: &str) {
    let Some(incident) = get_mut(state, key) else { return };
    incident.status = IncidentStatus::Recovering;
    note(incident, step, LineKind::Decision, format!("recovering: {why}"));
    signals::flapped(state, step, &key.cause);
    if cause::kind_of(&key.cause) == CauseKind::MassStale {
        // Who fell silent until now is told: a relapse is a new mass.
        detect::forget_silences(state, &key.cause);
    }
    restart_stability(state, step, &key.cause);
    let blind = state.incident(key).and_then(|incident| incident.blind.first().cloned());
    if let Some(agent) = blind {
        stability::tell(state, step, &key.cause, &agent);
    }
    touch_symptoms(state, &key.cause);
}

fn relapsed(state: &mut State, step: Step, key: &IncidentKey, why: &str) {
    let Some(incident) = get_mut(state, key) else { return };
    incident.status = IncidentStatus::Open;
    incident.relapses = incident.relapses.saturating_add(1);
    incident.stability_over = false;
    note(incident, step, LineKind::Decision, format!("relapsed: {why}"));
    signals::flapped(state, step, &key.cause);
    let flaps = signals::flaps(state, step.at, &key.cause);
    let Some(incident) = get_mut(state, key) else { return };
    let hold_anew = !incident.has_paged() && !flaps && incident.acknowledged.is_none();
    incident.explained = incident.explained && !hold_anew;
    stop_clock(state, step, &key.cause);
    if hold_anew {
        set_hold(state, step, &key.cause, step.at);
    }
    touch_symptoms(state, &key.cause);
}

/// A new stability window for an incident that recovers.
pub(super) fn restart_stability(state: &mut State, step: Step, cause: &str) {
    let Some(incident) = unresolved_mut(state, cause).filter(|i| i.status == IncidentStatus::Recovering) else {
        return;
    };
    let severity = incident.severity;
    stop_clock(state, step, cause);
    let window = *state.policy.stability.get(severity);
    if let Some(incident) = unresolved_mut(state, cause) {
        incident.stability_over = false;
        incident.stability_left_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    }
    restart_clock(state, step, cause);
}

/// Lets the window run if all hosts concerned are heard, and stand still otherwise.
fn restart_clock(state: &mut State, step: Step, cause: &str) {
    let Some(incident) = unresolved_mut(state, cause).filter(|i| i.status == IncidentStatus::Recovering) else {
        return;
    };
    let should_run = incident.blind.is_empty() && !incident.stability_over;
    if !should_run {
        stop_clock(state, step, cause);
    } else if incident.stability_from.is_none() {
        incident.stability_from = Some(step.at);
        let until = step.at + Duration::from_millis(incident.stability_left_ms);
        incident.stability_over = until <= step.at;
        let generation = incident.key.generation;
        if until > step.at {
            state.timers.insert((until, TimerKey::StabilityOver { cause: cause.to_owned(), generation }));
        } else {
            signals::await_calm(state, step, cause);
        }
        state.touched.insert(cause.to_owned());
    }
}

fn stop_clock(state: &mut State, step: Step, cause: &str) {
    let Some(incident) = unresolved_mut(state, cause) else { return };
    let Some(from) = incident.stability_from.take() else { return };
    let until = from + Duration::from_millis(incident.stability_left_ms);
    let ran_ms = u64::try_from(step.at.since(from).as_millis()).unwrap_or(u64::MAX);
    incident.stability_left_ms = incident.stability_left_ms.saturating_sub(ran_ms);
    let generation = incident.key.generation;
    state.timers.remove(&(until, TimerKey::StabilityOver { cause: cause.to_owned(), generation }));
}

pub(super) fn stability_over(state: &mut State, step: Step, cause: &str, generation: u64) {
    let key = IncidentKey { cause: cause.to_owned(), generation };
    if let Some(incident) = get_mut(state, &key)
        && let Some(from) = incident.stability_from
        && from + Duration::from_millis(incident.stability_left_ms) <= step.at
    {
        incident.stability_over = true;
        let calm_at = signals::await_calm(state, step, cause);
        stability::tell_flapping(state, step, cause, calm_at);
    }
    state.touched.insert(cause.to_owned());
}

/// An agent is heard again, or not any more, or its open set is in doubt.
pub(super) fn sureness_changed(state: &mut State, step: Step, agent: &AgentName) {
    signals::link_changed(state, step, agent);
    let Some(record) = state.agents.get(agent) else { return };
    let sure = links::is_sure(record);
    for cause in record.incidents.clone() {
        if !counts_blind(&cause) {
            continue;
        }
        let Some(incident) = unresolved_mut(state, &cause) else { continue };
        let stood = !incident.blind.is_empty();
        if sure {
            incident.blind.remove(agent);
        } else {
            incident.blind.insert(agent.clone());
        }
        let stands = !incident.blind.is_empty();
        restart_clock(state, step, &cause);
        if stood != stands {
            stability::tell(state, step, &cause, agent);
        }
    }
}

fn resolved(state: &mut State, step: Step, key: &IncidentKey, resolution: &Resolution, why: &str) {
    stop_clock(state, step, &key.cause);
    response::over(state, key);
    let Some(incident) = get_mut(state, key) else { return };
    incident.status = IncidentStatus::Resolved;
    incident.resolved = Some(step.at);
    incident.resolution = Some(resolution.clone());
    note(incident, step, LineKind::Decision, format!("resolved: {why}"));
    let hold = incident.hold_until.take();
    let (agents, owner, number) = (incident.agents.clone(), incident.owner.clone(), incident.number.clone());
    if let Some(hold) = hold {
        let (cause, generation) = (key.cause.clone(), key.generation);
        state.timers.remove(&(hold, TimerKey::HoldOver { cause, generation }));
    }
    for agent in &agents {
        if let Some(record) = state.agents.get_mut(agent) {
            record.incidents.remove(&key.cause);
        }
        flood::watch(state, agent);
    }
    let symptoms = symptoms(state, &key.cause);
    for symptom in &symptoms {
        forget_occurrences(state, symptom);
    }
    if matches!(resolution, Resolution::Operator { .. }) {
        for dismissed in symptoms.iter().chain([&key.cause]) {
            if let Some(cause) = state.causes.get_mut(dismissed) {
                cause.dismissed_index = step.index;
                if let Some(storm) = cause.storm.as_mut() {
                    storm.down.clear();
                }
            }
        }
    }
    state.touched.extend(symptoms);
    correlation::dissolve(state, &key.cause);
    if let Resolution::MergedInto { incident: target } = resolution {
        response::merge(state, step, key, target);
    }
    end_cause(state, key);
    if let Resolution::FoldedInto { incident: target } | Resolution::MergedInto { incident: target } = resolution {
        fold(state, step, target, &key.cause, &agents, owner.as_deref(), &number);
    }
    state.resolved_order.push_back(key.clone());
    drop_old_incidents(state);
}

fn end_cause(state: &mut State, key: &IncidentKey) {
    forget_occurrences(state, &key.cause);
    let settled = state.incident(key).is_none_or(|incident| incident.page_keys.iter().all(|page| page.settled));
    if let Some(cause) = state.causes.get_mut(&key.cause) {
        cause.active = !settled;
        if cause::kind_of(&key.cause) == CauseKind::MassStale {
            cause.members.clear();
            cause.agents.clear();
            cause.unjoined.clear();
        }
    }
}

fn fold(
    state: &mut State,
    step: Step,
    target: &IncidentKey,
    member: &str,
    agents: &BTreeSet<AgentName>,
    owner: Option<&str>,
    number: &str,
) {
    let services = state.newest_incident(member).map(|incident| incident.services.iter().cloned().collect::<Vec<_>>());
    if let Some(incident) = get_mut(state, target) {
        if incident.members.len() < MEMBERS_MAX {
            incident.members.insert(member.to_owned());
        }
        facts::add_services(incident, services.into_iter().flatten());
        let owned = owner.map(|owner| format!(", owned by {owner}")).unwrap_or_default();
        note(incident, step, LineKind::Decision, format!("{number} ({member}{owned}) is a symptom of this"));
        agents_joined(state, &target.cause, agents);
        // One of them may not be heard: a window that runs stands still then.
        restart_clock(state, step, &target.cause);
        // More hosts: a silence may not fit any more. Another page: its key may be another one.
        state.touched.insert(target.cause.clone());
    }
}

fn drop_old_incidents(state: &mut State) {
    while state.resolved_order.len() > RESOLVED_INCIDENTS_MAX {
        let Some(key) = state.resolved_order.front().cloned() else { return };
        let settled =
            |incident: &Incident| incident.page_keys.iter().all(|page| page.settled && page.pending.is_empty());
        if !state.incident(&key).is_none_or(settled) {
            return;
        }
        state.resolved_order.pop_front();
        state.generation_floor = state.generation_floor.max(key.generation);
        if let Some(generations) = state.incidents.get_mut(&key.cause) {
            if let Some(incident) = generations.remove(&key.generation) {
                state.numbers.remove(&incident.number);
            }
            if generations.is_empty() {
                state.incidents.remove(&key.cause);
                super::drop_if_empty(state, &key.cause);
            }
        }
    }
}
