//! Looks at State and says what follows for one cause; changes nothing. Each conclusion says why.
//!
//! One conclusion at a time: the machine applies it and asks again, so that every rule sees the state it speaks about.

mod assess;
mod paging;

use crate::apply::incidents::FLAPS_MAX;
use crate::cause::{self, CauseKind};
use crate::entry::{Conclusion, IncidentKey, Resolution};
use crate::state::{Cause, Incident, IncidentStatus, MEMBERS_MAX, State};
use assess::{Assessment, assess};
use muster_common::ids::AgentName;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use std::time::Duration;

/// The next conclusion about the cause key, if any; asked again after it is applied.
pub fn decide(state: &State, now: Timestamp, key: &str) -> Option<Conclusion> {
    if state.fenced_by().is_some() {
        return None;
    }
    let cause = state.cause(key)?;
    match state.newest_incident(key) {
        Some(incident) if incident.is_unresolved() => unresolved(state, now, key, cause, incident),
        Some(incident) if cause.active => paging::settle(state, now, incident),
        _ => raise(state, now, key, cause),
    }
}

/// No incident of this cause is unresolved: is there reason for one?
fn raise(state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Conclusion> {
    let found = assess(state, now, key, cause)?;
    if !found.raises || found.severity < Severity::Sev3 {
        return None;
    }
    if let Some(target) = folds_into(state, key) {
        // Silences and locks are members of the fleet's cause already; a restarting service joins by name.
        let is_member = cause::kind_of(&target.key.cause) != CauseKind::FleetStorm
            || target.members.contains(key)
            || target.members.len() >= MEMBERS_MAX;
        let known = is_member && cause.occurrences.is_empty();
        let why = format!("{} on this host is a symptom of {}", found.reason, target.number);
        return (!known).then(|| Conclusion::IncidentJoined {
            incident: target.key.clone(),
            member: key.to_owned(),
            why,
        });
    }
    if let Some(target) = flood_of(state, key) {
        let known = target.members.contains(key) || target.members.len() >= MEMBERS_MAX;
        let why = format!("{} is one more than are opened for one agent", found.reason);
        return (!known || !cause.occurrences.is_empty()).then(|| Conclusion::IncidentJoined {
            incident: target.key.clone(),
            member: key.to_owned(),
            why,
        });
    }
    let generation = cause.generation.max(state.generation_floor) + 1;
    let text = found.wording(state, now, key, cause);
    Some(Conclusion::IncidentOpened {
        incident: IncidentKey { cause: key.to_owned(), generation },
        number: next_number(state, now),
        reason: found.reason,
        severity: found.severity,
        grade: found.grade,
        title: text.title,
        why: text.why,
        began: found.began,
        next_steps: text.next_steps,
    })
}

/// `INC-YYYYMMDD-NNNN`, as [`crate::apply()`] will count it.
fn next_number(state: &State, now: Timestamp) -> String {
    let day = now.utc_day();
    let number = if state.number_day == day || state.number_day == 0 { state.number_next } else { 1 };
    format!("INC-{day:08}-{number:04}")
}

/// The fleet-wide incident that this cause is a symptom of: while it is open, and for a lock until it is resolved, since
/// its last hosts are no news. Who is still silent or down when the others are back is.
fn folds_into<'a>(state: &'a State, key: &str) -> Option<&'a Incident> {
    let (fleet, agent) = cause::fleet_cause_of(key)?;
    let lasting = cause::kind_of(&fleet) == CauseKind::FleetLock;
    let target = state.unresolved(&fleet).filter(|incident| lasting || incident.status == IncidentStatus::Open)?;
    let agent = AgentName::new(agent).ok()?;
    let cause = state.cause(&fleet)?;
    let inside = match cause::kind_of(&fleet) {
        CauseKind::FleetStorm => cause.storm.as_ref().is_some_and(|storm| storm.agents.contains(&agent)),
        _ => cause.agents.contains_key(&agent),
    };
    inside.then_some(target)
}

/// The incident that gathers what an agent tells beyond its bound.
fn flood_of<'a>(state: &'a State, key: &str) -> Option<&'a Incident> {
    let agent = AgentName::new(cause::teller_of(key)?).ok()?;
    state.agent(&agent).filter(|record| record.floods())?;
    state.unresolved(&cause::agent_flood(&agent))
}

fn unresolved(state: &State, now: Timestamp, key: &str, cause: &Cause, incident: &Incident) -> Option<Conclusion> {
    let id = incident.key.clone();
    if let Some((by, summary)) = &incident.resolve_wish {
        let resolution = Resolution::Operator { by: by.clone(), summary: summary.clone() };
        let why = format!("{by} closed it: {summary}; only new findings open it again");
        return Some(Conclusion::IncidentResolved { incident: id, resolution, why });
    }
    if let Some(target) = folds_into(state, key) {
        let why = format!("it is a symptom of {}: {}", target.number, target.title);
        let resolution = Resolution::FoldedInto { incident: target.key.clone() };
        return Some(Conclusion::IncidentResolved { incident: id, resolution, why });
    }
    if let Some(member) = cause.unjoined.first() {
        return Some(Conclusion::IncidentJoined {
            incident: id,
            member: member.clone(),
            why: joins(state, cause, member),
        });
    }
    let found = assess(state, now, key, cause);
    changed(state, now, key, cause, incident, found.as_ref())
        .or_else(|| turned(incident, key, found.as_ref()))
        .or_else(|| paging::page(state, now, key, cause, incident, found.as_ref()))
        .or_else(|| over(state, incident))
}

fn joins(state: &State, cause: &Cause, member: &str) -> String {
    let told = cause.members.get(member).and_then(|member| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        Some(open.finding.summary.clone())
    });
    told.unwrap_or_else(|| "fell silent as well".to_owned())
}

/// Worse than before, or a cause was found behind the symptoms.
fn changed(
    state: &State,
    now: Timestamp,
    key: &str,
    cause: &Cause,
    incident: &Incident,
    found: Option<&Assessment>,
) -> Option<Conclusion> {
    let found = found?;
    let worse = found.severity > incident.severity;
    let better_told = cause::telling(found.reason) > cause::telling(incident.reason);
    if !worse && !better_told {
        return None;
    }
    let (severity, reason) =
        (found.severity.max(incident.severity), if better_told { found.reason } else { incident.reason });
    let why = match (worse, better_told) {
        (true, false) => format!("{} makes it {severity}", found.worst),
        (false, _) => format!("{reason} explains what was seen before ({})", incident.reason),
        (true, true) => format!("{reason} explains what was seen before ({}) and makes it {severity}", incident.reason),
    };
    let title = if better_told { found.wording(state, now, key, cause).title } else { incident.title.clone() };
    Some(Conclusion::IncidentChanged { incident: incident.key.clone(), severity, reason, title, why })
}

/// Between wrong and healthy.
fn turned(incident: &Incident, key: &str, found: Option<&Assessment>) -> Option<Conclusion> {
    let open = found.is_some_and(|found| found.open);
    let id = incident.key.clone();
    match incident.status {
        IncidentStatus::Open if !open => {
            let why = match cause::kind_of(key) {
                CauseKind::MassStale => "most of the silent agents are heard again".to_owned(),
                CauseKind::AgentStale => "the agent is heard again".to_owned(),
                CauseKind::AgentFlood => "the agent has fewer unresolved incidents again".to_owned(),
                CauseKind::FleetStorm => "no restart for a whole window".to_owned(),
                CauseKind::FleetLock => "fewer hosts than the threshold are contended".to_owned(),
                CauseKind::Host => "nothing about it is open any more".to_owned(),
            };
            Some(Conclusion::IncidentRecovering { incident: id, why })
        }
        IncidentStatus::Recovering if open => {
            let reason = found.map(|found| found.worst.clone()).unwrap_or_default();
            Some(Conclusion::IncidentRelapsed { incident: id, why: format!("{reason} again") })
        }
        _ => None,
    }
}

fn over(state: &State, incident: &Incident) -> Option<Conclusion> {
    if incident.status != IncidentStatus::Recovering || !incident.stability_over {
        return None;
    }
    let window = human_duration(*state.policy().stability.get(incident.severity));
    let mut why = format!("evidence of health held for {window} while all hosts concerned were heard");
    if cause::kind_of(&incident.key.cause) == CauseKind::MassStale {
        why = mass_summary(state, incident);
    }
    Some(Conclusion::IncidentResolved { incident: incident.key.clone(), resolution: Resolution::Evidence, why })
}

/// How a mass silence ended: how many are back, who is not.
fn mass_summary(state: &State, incident: &Incident) -> String {
    let missing: Vec<&str> = state
        .cause(cause::MASS_STALE)
        .into_iter()
        .flat_map(|cause| cause.agents.keys())
        .map(AgentName::as_str)
        .collect();
    let back = incident.agents.len().saturating_sub(missing.len());
    let named = missing.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    let rest = if missing.is_empty() { "none is missing".to_owned() } else { format!("still silent: {named}") };
    format!("{back} of {} agents are back; {rest}", incident.agents.len())
}

/// True when the incident has relapsed too often for its recoveries to count.
fn flaps(incident: &Incident) -> bool {
    incident.relapses >= FLAPS_MAX
}

/// A length of time for people.
fn human(length: Duration) -> String {
    human_duration(length)
}
