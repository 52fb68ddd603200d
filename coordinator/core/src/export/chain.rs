//! What led to an incident, as links with their grades, and how often each reason was told in it.
//!
//! Looks at what State keeps of the incident, of its symptoms and of what happened lately; tells nothing of its own.

use super::{Count, LINKS_MAX, Link, REASONS_MAX};
use crate::cause;
use crate::entry::Resolution;
use crate::state::{Incident, OccurrenceRecord, PageRecord, State};
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Diagnoses of hosts that are told, the most telling first.
const DIAGNOSES_MAX: usize = 3;

/// What led to it: its own reason, then what is open, or what its last page told where that is over, then its symptoms.
pub(super) fn causes(state: &State, incident: &Incident, pages: &[&PageRecord]) -> Vec<Link> {
    let own = Link {
        grade: Some(incident.grade.as_str()),
        what: incident.reason.to_string(),
        words: format!("{} ({})", incident.title, incident.why),
    };
    let mut links = vec![own];
    let known = state.cause(&incident.key.cause).filter(|_| incident.is_unresolved());
    let mut open: Vec<_> = known
        .into_iter()
        .flat_map(|known| known.members.values())
        .filter_map(|member| {
            let finding = &state.agent(&member.agent)?.open.get(member.key.as_ref()?)?.finding;
            Some((Reverse(cause::telling(finding.key.reason)), &member.agent, finding))
        })
        .take(LINKS_MAX)
        .collect();
    open.sort_by(|a, b| (a.0, a.1, &a.2.key).cmp(&(b.0, b.1, &b.2.key)));
    links.extend(open.iter().map(|(_, agent, finding)| Link {
        grade: Some(finding.grade.as_str()),
        what: finding.key.reason.to_string(),
        words: format!("{agent}: {}", finding.summary),
    }));
    links.extend(diagnoses(&open));
    if open.is_empty() {
        let told = pages.iter().rev().find(|record| !record.page.details.is_empty());
        let details = told.into_iter().flat_map(|record| &record.page.details);
        links.extend(details.map(|detail| Link {
            grade: None,
            what: "told in its page".to_owned(),
            words: detail.clone(),
        }));
    }
    let symptoms = incident.members.iter().filter(|member| is_symptom(member));
    links.extend(symptoms.take(LINKS_MAX).map(|symptom| symptom_link(state, incident, symptom)));
    links.truncate(LINKS_MAX);
    links
}

/// A member that is the cause key of another incident, and no finding.
fn is_symptom(member: &str) -> bool {
    member.starts_with("host/") || member.starts_with("fleet/")
}

/// What the hosts themselves made of it: their words, in which each step has its grade.
fn diagnoses(open: &[(Reverse<u8>, &AgentName, &Finding)]) -> Vec<Link> {
    let mut told = BTreeSet::new();
    let words = open.iter().filter_map(|(_, agent, finding)| match finding.evidence.get("diagnosis")? {
        Value::Text(diagnosis) => Some(format!("{agent}: {diagnosis}")),
        _ => None,
    });
    let fresh = words.filter(|words| told.insert(words.clone()));
    let link = |words| Link { grade: None, what: "diagnosis".to_owned(), words };
    fresh.take(DIAGNOSES_MAX).map(link).collect()
}

/// The incident of its own that a symptom had, which ended as part of this one.
fn folded<'a>(state: &'a State, incident: &Incident, symptom: &str) -> Option<&'a Incident> {
    state.newest_incident(symptom).filter(|own| match &own.resolution {
        Some(Resolution::FoldedInto { incident: into } | Resolution::MergedInto { incident: into }) => {
            *into == incident.key
        }
        _ => false,
    })
}

/// A symptom in the words of its own incident, or of what happened under its key lately.
fn symptom_link(state: &State, incident: &Incident, symptom: &str) -> Link {
    if let Some(own) = folded(state, incident, symptom) {
        let words = format!("{}, a symptom: {}", own.number, own.title);
        return Link { grade: Some(own.grade.as_str()), what: own.reason.to_string(), words };
    }
    let mut seen: Vec<&OccurrenceRecord> = happened(state, incident).filter(|seen| key_of(seen) == symptom).collect();
    seen.sort_by_key(|seen| (cause::telling(seen.finding.key.reason), seen.observed));
    match seen.last() {
        Some(seen) => {
            let words = format!("{}, a symptom: {}", seen.agent, seen.finding.summary);
            Link { grade: Some(seen.finding.grade.as_str()), what: seen.finding.key.reason.to_string(), words }
        }
        None => Link { grade: None, what: "symptom".to_owned(), words: symptom.to_owned() },
    }
}

fn key_of(seen: &OccurrenceRecord) -> String {
    cause::of_finding(&seen.agent, &seen.finding.key)
}

/// What is kept of what happened in the course of it: on its hosts, under its key or that of a symptom.
fn happened<'a>(state: &'a State, incident: &'a Incident) -> impl Iterator<Item = &'a OccurrenceRecord> {
    state.recent_occurrences().filter(move |seen| {
        let within = seen.observed >= incident.began && incident.resolved.is_none_or(|end| seen.received <= end);
        let known = || {
            let key = key_of(seen);
            key == incident.key.cause || incident.members.contains(&key)
        };
        within && incident.agents.contains(&seen.agent) && known()
    })
}

/// How often each reason was told: findings by their names, which end in it, those of folded incidents too, silent agents,
/// and what happened. Of what is not told by any host its own.
pub(super) fn reasons(state: &State, incident: &Incident) -> Vec<Count> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let of_symptoms = incident.members.iter().filter_map(|member| folded(state, incident, member));
    let findings: BTreeSet<&str> = std::iter::once(incident)
        .chain(of_symptoms)
        .flat_map(|incident| &incident.members)
        .filter(|member| !is_symptom(member))
        .map(String::as_str)
        .collect();
    for member in findings {
        let reason = member.rsplit_once('/').map_or(Reason::AgentStale.as_str(), |(_, reason)| reason);
        *counts.entry(reason).or_default() += 1;
    }
    for seen in happened(state, incident) {
        *counts.entry(seen.finding.key.reason.as_str()).or_default() += 1;
    }
    if counts.is_empty() {
        counts.insert(incident.reason.as_str(), 1);
    }
    let mut counts: Vec<_> =
        counts.into_iter().map(|(reason, count)| Count { reason: reason.to_owned(), count }).collect();
    counts.sort_by(|a, b| (Reverse(a.count), &a.reason).cmp(&(Reverse(b.count), &b.reason)));
    counts.truncate(REASONS_MAX);
    counts
}
