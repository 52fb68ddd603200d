//! What happened on the hosts of a storm: how often which ending or victim, each host's own words, and what else its
//! symptoms tell. For pages, which must say what is behind a number. Looks at what State keeps, bounded, and never counts
//! what the storm itself has counted.

use crate::cause;
use crate::decide::assess::DETAILS_MAX;
use crate::state::{OccurrenceRecord, State, Storm};
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::AgentName;
use muster_common::limits::{SUMMARY_BYTES_MAX, clip};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Hosts told one by one.
const HOSTS_MAX: usize = 7;
/// Symptoms that are asked what else they tell.
const SYMPTOMS_MAX: usize = 64;
/// This long before a storm, or after it, something else that happened under the same causes is told with it.
const BEFORE: Duration = Duration::from_secs(900);
/// Occurrences looked at, the newest first, for a title, which is made with every occurrence.
const NEWEST_MAX: usize = 256;
/// Names in a title or a tally.
const NAMED_MAX: usize = 5;

/// The occurrences of a storm's reason, the newest first.
fn of_storm<'a>(state: &'a State, storm: &'a Storm, reason: Reason) -> impl Iterator<Item = &'a OccurrenceRecord> {
    state.recent_occurrences().rev().filter(move |seen| {
        let within = seen.observed >= storm.began && seen.observed <= storm.last;
        seen.finding.key.reason == reason && within && storm.agents.contains(&seen.agent)
    })
}

/// Names that `name` finds in the newest occurrences.
pub(super) fn named(
    state: &State,
    storm: &Storm,
    reason: Reason,
    name: impl Fn(&Finding) -> Option<String>,
) -> Vec<String> {
    let newest = state.recent_occurrences().rev().take(NEWEST_MAX);
    let of_storm = newest.filter(|seen| {
        seen.finding.key.reason == reason && seen.observed >= storm.began && storm.agents.contains(&seen.agent)
    });
    let names: BTreeSet<String> = of_storm.filter_map(|seen| name(&seen.finding)).collect();
    names.into_iter().take(NAMED_MAX).collect()
}

/// Lines for a page. `heading` and `name`: what is counted over all of them; `fits`: which occurrences belong to the group.
pub(super) fn details(
    state: &State,
    storm: &Storm,
    reason: Reason,
    heading: &str,
    name: impl Fn(&Finding) -> Option<String>,
    fits: impl Fn(&Finding) -> bool,
) -> Vec<String> {
    let mut told: BTreeSet<(&AgentName, &str)> = BTreeSet::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut hosts = Vec::new();
    for seen in of_storm(state, storm, reason).filter(|seen| fits(&seen.finding)) {
        let unknown = || "not known".to_owned();
        *counts.entry(name(&seen.finding).unwrap_or_else(unknown)).or_default() += 1;
        if told.insert((&seen.agent, seen.finding.key.subject.service.as_str())) && hosts.len() < HOSTS_MAX {
            hosts.push(format!("{} at {}: {}", seen.agent, seen.observed, seen.finding.summary));
        }
    }
    let more = told.len().saturating_sub(hosts.len());
    if more > 0 {
        hosts.push(format!("and {more} more like these: musterctl findings list --occurrences"));
    }
    let tally = (!counts.is_empty()).then(|| format!("{heading}: {}", tally(counts)));
    let lines = tally.into_iter().chain(hosts).chain(beside(state, storm, reason));
    lines.take(DETAILS_MAX).map(|line| clip(&line, SUMMARY_BYTES_MAX)).collect()
}

/// `12 × SIGSEGV, 2 × exit code 1`.
fn tally(counts: BTreeMap<String, usize>) -> String {
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by(|a, b| (Reverse(a.1), &a.0).cmp(&(Reverse(b.1), &b.0)));
    let parts: Vec<String> = counts.iter().take(NAMED_MAX).map(|(name, n)| format!("{n} × {name}")).collect();
    let more = if counts.len() > NAMED_MAX { ", and others" } else { "" };
    format!("{}{more}", parts.join(", "))
}

/// What else is known under the causes that folded in, such as an update that failed there: the most telling first.
fn beside(state: &State, storm: &Storm, reason: Reason) -> Vec<String> {
    let near = |seen: &OccurrenceRecord| seen.observed + BEFORE >= storm.began && seen.observed <= storm.last + BEFORE;
    let happened = state.recent_occurrences().filter(|seen| {
        let other = seen.finding.key.reason != reason && seen.finding.severity > Severity::Sev4;
        other && near(seen) && storm.symptoms.contains(&cause::of_finding(&seen.agent, &seen.finding.key))
    });
    let mut told: Vec<(Reverse<u8>, String)> = happened
        .map(|seen| {
            let (reason, summary) = (seen.finding.key.reason, &seen.finding.summary);
            let line = format!("{}: {reason} at {}: {summary}", seen.agent, seen.observed);
            (Reverse(cause::telling(reason)), line)
        })
        .collect();
    for symptom in storm.symptoms.iter().take(SYMPTOMS_MAX) {
        let Some(known) = state.cause(symptom) else { continue };
        let open = known.members.values().filter_map(|member| {
            let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
            let (reason, summary) = (open.finding.key.reason, &open.finding.summary);
            let line = format!("{}: {reason} since {}: {summary}", member.agent, open.opened);
            Some((Reverse(cause::telling(reason)), line))
        });
        told.extend(open.take(DETAILS_MAX));
    }
    told.sort();
    told.dedup();
    told.into_iter().map(|(_, line)| line).collect()
}

/// How a process ended, as the agents tell it: `SIGKILL`, `exit code 3`; none where nobody knows.
pub(super) fn ending(finding: &Finding) -> Option<String> {
    match (finding.evidence.get("exit_signal"), finding.evidence.get("exit_status")) {
        (Some(Value::Text(signal)), _) => Some(signal.clone()),
        (_, Some(Value::Text(status))) if status != "unknown" => Some(status.clone()),
        (_, Some(Value::Integer(code))) => Some(format!("exit code {code}")),
        _ => None,
    }
}

/// The process that the kernel killed.
pub(super) fn victim(finding: &Finding) -> Option<String> {
    match finding.evidence.get("comm")? {
        Value::Text(comm) if !comm.is_empty() => Some(comm.clone()),
        _ => None,
    }
}
