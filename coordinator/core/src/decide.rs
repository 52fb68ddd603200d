//! Looks at State and says what follows for one cause; changes nothing. Each conclusion says why.
//!
//! One conclusion at a time: the machine applies it and asks again, so that every rule sees the state it speaks about.

pub(crate) mod assess;
mod lasting;
mod paging;

pub use lasting::ended;

use crate::cause::{self, CauseKind};
use crate::detect;
use crate::entry::{Conclusion, IncidentKey, Resolution};
use crate::second_opinion;
use crate::signals;
use crate::singletons;
use crate::state::{Archived, Cause, Incident, IncidentStatus, MEMBERS_MAX, MemberRef, State};
use crate::symptom;
use assess::{Assessment, Wording, assess};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use std::time::Duration;

/// What an incident would be called now, where that counts: nobody was told of it yet, and it is still about what it was
/// opened for; or a mass is silent anew, which grows after its relapse is told. None where its own title holds.
pub(crate) fn title(state: &State, incident: &Incident, now: Timestamp) -> Option<String> {
    let key = &incident.key.cause;
    let is_mass = cause::kind_of(key) == CauseKind::MassStale;
    let grows = is_mass && incident.relapses > 0 && incident.status == IncidentStatus::Open;
    let cause = state.cause(key).filter(|_| incident.is_unresolved() && (!incident.has_paged() || grows))?;
    let found = assess(state, now, key, cause).filter(|found| found.reason == incident.reason)?;
    Some(found.wording(state, now, key, cause).title)
}

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

/// What the rules about an unresolved incident look at.
#[derive(Clone, Copy)]
struct Case<'a> {
    state: &'a State,
    now: Timestamp,
    key: &'a str,
    cause: &'a Cause,
    incident: &'a Incident,
    /// What is wrong with the cause now.
    found: Option<&'a Assessment>,
}

/// No incident of this cause is unresolved: is there reason for one?
fn raise(state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Conclusion> {
    let found = assess(state, now, key, cause)?;
    let minor = detect::of(key).is_some_and(|detector| detector.minor());
    if !found.raises || (found.severity < Severity::Sev3 && !minor) {
        return None;
    }
    if let Some(target) = symptom::of_cause(state, key, cause) {
        // Silences and locks are members of the fleet's cause already; a restarting service joins by name.
        let by_name = detect::of(&target.key.cause).is_some_and(|detector| detector.joins_by_name());
        let is_member = !by_name || target.members.contains(key) || target.members.len() >= MEMBERS_MAX;
        let known = is_member && cause.occurrences.is_empty();
        let here = if key.starts_with("host/") { " on this host" } else { "" };
        let joined = || Conclusion::IncidentJoined {
            incident: target.key.clone(),
            member: key.to_owned(),
            why: format!("{}{here} is a symptom of {}", found.reason, target.number),
        };
        return carried(state, target, key, found.severity, &found.worst).or_else(|| (!known).then(joined));
    }
    if let Some(target) = flood_of(state, key) {
        let known = target.members.contains(key) || target.members.len() >= MEMBERS_MAX;
        let why = format!("{} is one more than are opened for one agent", found.reason);
        let news = !known || !cause.occurrences.is_empty();
        let joined = || Conclusion::IncidentJoined { incident: target.key.clone(), member: key.to_owned(), why };
        return carried(state, target, key, found.severity, &found.worst).or_else(|| news.then(joined));
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

/// What explains others is as bad as the worst of them: to be a symptom hides nothing. A severity that the policy names
/// for the reason is obeyed.
fn carried(state: &State, target: &Incident, key: &str, severity: Severity, worst: &str) -> Option<Conclusion> {
    let named = state.policy().severities.contains_key(&target.reason);
    if named || severity <= target.raised_beyond() {
        return None;
    }
    Some(Conclusion::IncidentChanged {
        incident: target.key.clone(),
        severity,
        reason: target.reason,
        title: target.title.clone(),
        why: format!("its symptom {key} makes it {severity}: {worst}"),
    })
}

/// `INC-YYYYMMDD-NNNN`, as [`crate::apply()`] will count it.
fn next_number(state: &State, now: Timestamp) -> String {
    let day = now.utc_day();
    let number = if state.number_day == day || state.number_day == 0 { state.number_next } else { 1 };
    format!("INC-{day:08}-{number:04}")
}

/// The incident that gathers what an agent tells beyond its bound.
fn flood_of<'a>(state: &'a State, key: &str) -> Option<&'a Incident> {
    let agent = AgentName::new(cause::teller_of(key)?).ok()?;
    state.agent(&agent).filter(|record| record.floods(state.policy()))?;
    state.unresolved(&cause::agent_flood(&agent))
}

fn unresolved(state: &State, now: Timestamp, key: &str, cause: &Cause, incident: &Incident) -> Option<Conclusion> {
    let id = incident.key.clone();
    if let Some((by, summary)) = &incident.resolve_wish {
        let resolution = Resolution::Operator { by: by.clone(), summary: summary.clone() };
        let why = format!("{by} closed it: {summary}; only new findings open it again");
        return Some(Conclusion::IncidentResolved { incident: id, resolution, why });
    }
    if let Some(target) = symptom::of_cause(state, key, cause) {
        if let Some(worse) = carried(state, target, key, incident.severity, &incident.title) {
            return Some(worse);
        }
        let into = target.key.clone();
        let (resolution, why) = if incident.has_paged() {
            let why = format!("merged into {}: {}", target.number, target.title);
            (Resolution::MergedInto { incident: into }, why)
        } else {
            let why = format!("it is a symptom of {}: {}", target.number, target.title);
            (Resolution::FoldedInto { incident: into }, why)
        };
        return Some(Conclusion::IncidentResolved { incident: id, resolution, why });
    }
    if let Some(member) = cause.unjoined.first() {
        return Some(Conclusion::IncidentJoined {
            incident: id,
            member: member.clone(),
            why: joins(state, key, cause, member),
        });
    }
    let found = assess(state, now, key, cause);
    let case = Case { state, now, key, cause, incident, found: found.as_ref() };
    by_hand(case)
        .or_else(|| changed(case))
        .or_else(|| second_opinion_told(case))
        .or_else(|| rages_again(case))
        .or_else(|| turned(case))
        .or_else(|| second_opinion::wanted(state, now, incident))
        .or_else(|| paging::page(case))
        .or_else(|| over(case))
}

fn joins(state: &State, key: &str, cause: &Cause, member: &str) -> String {
    let told = cause.members.get(member).and_then(|member| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        Some(open.finding.summary.clone())
    });
    told.unwrap_or_else(|| detect::of(key).map_or("fell silent as well", |detector| detector.joined()).to_owned())
}

/// A person wants another severity. What the rules made of it so far is remembered with it: only worse than that counts
/// later.
fn by_hand(Case { incident, found, .. }: Case<'_>) -> Option<Conclusion> {
    let wish = incident.response.wish.as_ref()?;
    let so_far = incident.response.by_hand.as_ref().map_or(incident.severity, |hand| hand.assessed);
    let assessed = found.map_or(so_far, |found| found.severity.max(so_far));
    let note = &wish.note;
    Some(Conclusion::SeveritySet {
        incident: incident.key.clone(),
        severity: wish.severity,
        assessed,
        by: wish.by.clone(),
        why: format!("{} made it {}: {note}; the rules make it {assessed}", wish.by, wish.severity),
    })
}

/// Worse than before, or a cause was found behind the symptoms.
fn changed(Case { state, now, key, cause, incident, found }: Case<'_>) -> Option<Conclusion> {
    let found = found?;
    let worse = found.severity > incident.raised_beyond();
    let better_told = cause::telling(found.reason) > cause::telling(incident.reason);
    let renamed = better_told || names_what_is_over(key, cause, incident, found);
    if !worse && !renamed {
        return None;
    }
    let (severity, reason) =
        (if worse { found.severity } else { incident.severity }, if renamed { found.reason } else { incident.reason });
    let before = incident.reason;
    let name = match (better_told, renamed) {
        (true, _) => format!("{reason} explains what was seen before ({before})"),
        (_, true) => format!("{reason} is open; {before} is over, and nobody was told of it"),
        _ => found.worst.clone(),
    };
    let why = match (worse, renamed) {
        (true, false) => format!("{name} makes it {severity}{}", found.raised_words()),
        (true, true) => format!("{name} and makes it {severity}"),
        (false, _) => name,
    };
    let title = if renamed { found.wording(state, now, key, cause).title } else { incident.title.clone() };
    Some(Conclusion::IncidentChanged { incident: incident.key.clone(), severity, reason, title, why })
}

/// A page must name what is wrong now: what cleared before anybody was told, and came back as something else, gives the
/// incident no name.
fn names_what_is_over(key: &str, cause: &Cause, incident: &Incident, found: &Assessment) -> bool {
    let is_there = |reason: Reason| {
        let of_member = |member: &MemberRef| member.key.as_ref().is_some_and(|key| key.reason == reason);
        cause.members.values().any(|member| of_member(member))
            || cause.occurrences.iter().any(|occurrence| occurrence.reason == reason)
    };
    cause::kind_of(key) == CauseKind::Host
        && found.open
        && !incident.has_paged()
        && found.reason != incident.reason
        && !is_there(incident.reason)
}

/// Between wrong and healthy.
fn turned(Case { state, key, incident, found, .. }: Case<'_>) -> Option<Conclusion> {
    let open = found.is_some_and(|found| found.open);
    let id = incident.key.clone();
    match incident.status {
        IncidentStatus::Open if !open => {
            let why = match cause::kind_of(key) {
                _ if gone_for_good(state, incident).is_some() => "every host concerned was archived".to_owned(),
                _ => match detect::of(key) {
                    Some(detector) => detector.recovered(state, key),
                    None => lasting::recovered(state, incident, found.is_some_and(|found| found.happened)),
                },
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

/// A storm that goes on, or a mass that falls silent anew, is told by what came, and not as it was when it first ended.
fn rages_again(Case { state, now, key, cause, incident, found }: Case<'_>) -> Option<Conclusion> {
    let found = found.filter(|found| found.open && incident.status == IncidentStatus::Recovering)?;
    let Wording { title, why, .. } = found.wording(state, now, key, cause);
    let is_mass = cause::kind_of(key) == CauseKind::MassStale;
    let is_told = (cause.storm.is_none() && !is_mass) || title == incident.title;
    let (severity, reason) = (incident.severity, incident.reason);
    let why = format!("{} again; {why}", found.reason);
    let id = incident.key.clone();
    (!is_told).then_some(Conclusion::IncidentChanged { incident: id, severity, reason, title, why })
}

/// The neighbours have spoken: the title says so, and with it every page that is still to come.
fn second_opinion_told(Case { state, now, key, cause, incident, found }: Case<'_>) -> Option<Conclusion> {
    let asked = cause::kind_of(key) == CauseKind::AgentStale && incident.status == IncidentStatus::Open;
    let question = state.second_opinion(incident.agents.first().filter(|_| asked)?)?;
    question.opinion.as_ref()?;
    let title = found?.wording(state, now, key, cause).title;
    let (severity, reason) = (incident.severity, incident.reason);
    let why = format!("{}; {} of its neighbours were asked", incident.why, question.askers.len());
    let id = incident.key.clone();
    (title != incident.title).then_some(Conclusion::IncidentChanged { incident: id, severity, reason, title, why })
}

/// The first agent of an incident whose agents were all archived, and by whom.
fn gone_for_good<'a>(state: &'a State, incident: &'a Incident) -> Option<(&'a AgentName, &'a Archived)> {
    let archived = |agent: &AgentName| state.agent(agent).is_none() && state.archived(agent).is_some();
    let first = incident.agents.first().filter(|_| incident.agents.iter().all(archived))?;
    Some((first, state.archived(first)?))
}

fn over(Case { state, now, incident, found, .. }: Case<'_>) -> Option<Conclusion> {
    if incident.status == IncidentStatus::Recovering
        && let Some((agent, archived)) = gone_for_good(state, incident)
    {
        let others = if incident.agents.len() > 1 { " and the others" } else { "" };
        let why = format!("{agent}{others} are gone for good: archived by {}, {}", archived.by, archived.reason);
        let why = if others.is_empty() { why.replacen(" are gone", " is gone", 1) } else { why };
        return Some(Conclusion::IncidentResolved {
            incident: incident.key.clone(),
            resolution: Resolution::Evidence,
            why,
        });
    }
    // While it flaps its recovery waits until it is calm: else each round would be an incident of its own.
    let flaps = signals::flaps(state, now, &incident.key.cause);
    if incident.status != IncidentStatus::Recovering || !incident.stability_over || flaps {
        return None;
    }
    let window = human_duration(*state.policy().stability.get(incident.severity));
    let mut why = lasting::held(incident, found.is_some_and(|found| found.happened), &window);
    if let Some(words) = detect::of(&incident.key.cause).and_then(|detector| detector.ended(state, incident)) {
        why = words;
    }
    if let Some(words) = singletons::not_missed_under(state, &incident.key.cause) {
        why = format!("{words}, for {window}");
    }
    Some(Conclusion::IncidentResolved { incident: incident.key.clone(), resolution: Resolution::Evidence, why })
}

/// A length of time for people.
pub(crate) fn human(length: Duration) -> String {
    human_duration(length)
}
