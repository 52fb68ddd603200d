//! One kill of one kernel that several agents tell: containers on a kernel read the same log, and each may have an agent.
//!
//! It counts once and is one incident: that of the agent that watches the service which was hit, else of whoever told it
//! first, or whose incident about earlier ones is open. What the others tell folds into it. Looks back a bounded number of
//! occurrences; what is older than those counts by itself.

use crate::cause;
use crate::state::{Cause, Incident, OccurrenceRecord, State};
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::{AgentName, BootId};
use muster_common::reason::Reason;

/// Occurrences looked at for the same kill, the newest first.
const LOOKED_AT_MAX: usize = 256;

/// Whose kernel an agent tells of: kept with the occurrence, since its host may be rebooted before all others have told.
pub(crate) fn kernel(state: &State, agent: &AgentName, finding: &Finding) -> Option<BootId> {
    if finding.key.reason != Reason::OomKill {
        return None;
    }
    state.agent(agent)?.hello.as_ref()?.boot_id
}

/// Whether another agent on the same kernel told of this kill before.
pub(crate) fn is_told_by_another(state: &State, agent: &AgentName, finding: &Finding) -> bool {
    let Some(kill) = kernel(state, agent, finding).and_then(|kernel| kill(kernel, finding)) else { return false };
    tellers(state, kill).next().is_some_and(|first| first.agent != *agent)
}

/// The incident of another cause that tells what happened under this one: nothing is open here, and every kill is told
/// better, or was told before, elsewhere.
pub(crate) fn explained<'a>(state: &'a State, key: &str, cause: &Cause) -> Option<&'a Incident> {
    let only_kills = cause.occurrences.iter().all(|occurrence| occurrence.reason == Reason::OomKill);
    if !only_kills || !cause.members.is_empty() || cause.storm.is_some() {
        return None;
    }
    let mut found = None;
    for occurrence in &cause.occurrences {
        let best = best(state, occurrence.index)?;
        let other = cause::of_finding(&best.agent, &best.finding.key);
        let counts = state.cause(&other)?.occurrences.iter().any(|known| known.index == best.index);
        if other == key || !counts {
            return None;
        }
        let incident = state.unresolved(&other)?;
        found = found.or(Some(incident));
    }
    found
}

/// Whether the kill of an entry was told as well by another, whose incident about it is over, and is no part of what is
/// wrong under this cause: whoever tells it later tells nothing new.
pub(crate) fn is_over(state: &State, key: &str, index: u64) -> bool {
    let is_open = || state.unresolved(key).is_some() || state.cause(key).is_some_and(|cause| !cause.members.is_empty());
    let Some(first) = first(state, index).filter(|first| first.index != index && !is_open()) else { return false };
    let resolved =
        state.newest_incident(&cause::of_finding(&first.agent, &first.finding.key)).map(|told| told.resolved);
    resolved.flatten().is_some_and(|resolved| resolved >= first.received)
}

/// The causes of all who tell the kills of this one: when its incident opens, or another telling comes, they are looked
/// at again.
pub(crate) fn beside(state: &State, key: &str) -> Vec<String> {
    let Some(cause) = state.cause(key) else { return Vec::new() };
    let kills = cause.occurrences.iter().filter(|occurrence| occurrence.reason == Reason::OomKill);
    let told = kills.filter_map(|kill| told_at(state, kill.index)).flat_map(|kill| tellers(state, kill));
    told.map(|seen| cause::of_finding(&seen.agent, &seen.finding.key)).filter(|other| other != key).collect()
}

/// Kernel, pid, and when by that kernel's clock.
type Kill = (BootId, u64, u64);

fn kill(kernel: BootId, finding: &Finding) -> Option<Kill> {
    match (finding.evidence.get("pid")?, finding.evidence.get("since_boot_ms")?) {
        (Value::Count(pid), Value::Millis(since_boot_ms)) => Some((kernel, *pid, *since_boot_ms)),
        _ => None,
    }
}

fn newest(state: &State) -> impl Iterator<Item = (&OccurrenceRecord, Kill)> {
    let newest = state.recent_occurrences().rev().take(LOOKED_AT_MAX);
    newest.filter_map(|seen| Some((seen, kill(seen.kernel?, &seen.finding)?)))
}

/// The kill that an entry of the journal told.
fn told_at(state: &State, index: u64) -> Option<Kill> {
    newest(state).find(|(seen, _)| seen.index == index).map(|(_, kill)| kill)
}

/// Everybody who told of a kill, the oldest first.
fn tellers(state: &State, wanted: Kill) -> impl Iterator<Item = &OccurrenceRecord> {
    let same: Vec<&OccurrenceRecord> =
        newest(state).filter(|(_, kill)| *kill == wanted).map(|(seen, _)| seen).collect();
    same.into_iter().rev()
}

/// Who tells the kill of an entry best. Of several that do not watch what was hit, the one whose incident is open the
/// longest: what kills again and again is one matter, whoever is the first to tell each time.
fn best(state: &State, index: u64) -> Option<&OccurrenceRecord> {
    let kill = told_at(state, index)?;
    tellers(state, kill).min_by_key(|seen| {
        let is_host = seen.finding.key.subject.service.is_host();
        let known = state.unresolved(&cause::of_finding(&seen.agent, &seen.finding.key)).filter(|_| is_host);
        let opened = known.map(|incident| incident.opened);
        (is_host, is_host && opened.is_none(), opened, seen.index)
    })
}

/// Who told the kill of an entry best, whatever is open now.
fn first(state: &State, index: u64) -> Option<&OccurrenceRecord> {
    let kill = told_at(state, index)?;
    tellers(state, kill).min_by_key(|seen| (seen.finding.key.subject.service.is_host(), seen.index))
}
