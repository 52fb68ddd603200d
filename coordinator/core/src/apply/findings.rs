//! What agents report: the open set per agent, its digest, its position.

use super::{Step, add_occurrence, facts, fallen, incidents, links, storms};
use crate::cause;
use crate::detect;
use crate::entry::{SubjectState, TimerKey};
use crate::state::{
    AgentRecord, CauseOccurrence, Known, MemberRef, OccurrenceRecord, OpenFinding, RECENT_OCCURRENCES_MAX, State,
};
use crate::{same_kill, signals, updates};
use muster_common::finding::{Finding, FindingEvent, FindingKey};
use muster_common::ids::{AgentName, SpoolId};
use muster_common::limits::OPEN_FINDINGS_PER_AGENT_MAX;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// When something was observed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// When.
    pub(super) at: Timestamp,
    /// That is a guess.
    pub(super) estimated: bool,
}

/// An entry of a spool. What is already known by its position is dropped.
pub(super) fn received(
    state: &mut State,
    step: Step,
    agent: &AgentName,
    position: Position,
    seen: Seen,
    event: &FindingEvent,
) {
    match event {
        FindingEvent::Opened(finding) | FindingEvent::Updated(finding) => {
            let news = matches!(event, FindingEvent::Opened(_));
            open(state, step, agent, finding, seen, news, Some(position));
        }
        FindingEvent::Cleared { key, summary, .. } => {
            let groups = causes(state, agent, key);
            let record = links::record(state, step, agent);
            if goes_on(record, position) {
                let was_open = take(record, key);
                tell(state, step, agent, key, &groups, &["clears: ", summary]);
                if was_open {
                    leave(state, agent, key, groups);
                }
            }
        }
        FindingEvent::Occurred(finding) => {
            if goes_on(links::record(state, step, agent), position) {
                occurred(state, step, agent, finding, seen);
            }
        }
    }
}

/// Whether an entry of its spool is news; the spool is read up to there then.
fn goes_on(record: &mut AgentRecord, position: Position) -> bool {
    let known =
        record.position.is_some_and(|known| known.spool == position.spool && known.sequence >= position.sequence);
    if !known {
        record.position = Some(position);
    }
    !known
}

/// Opens or updates, with an entry of its spool or without. The record is looked up once: among a million it is a good part
/// of what a finding costs.
fn open(
    state: &mut State,
    step: Step,
    agent: &AgentName,
    finding: &Finding,
    seen: Seen,
    news: bool,
    position: Option<Position>,
) {
    let groups = causes(state, agent, &finding.key);
    let record = links::record(state, step, agent);
    if position.is_some_and(|position| !goes_on(record, position)) {
        return;
    }
    let Some((opened, words)) = put(record, step, finding, seen, news) else { return };
    if let Some(words) = words {
        tell(state, step, agent, &finding.key, &groups, &words);
    }
    for group in groups {
        join(state, agent, &finding.key, group, Some(opened));
    }
    fallen::opened(state, agent, &finding.key);
    signals::condition_changed(state, agent, &finding.key);
    let many = detect::made_many(state, agent, &finding.key, step.at);
    state.touched.extend(many);
}

/// Notes a condition with its agent: since when it is open, and what is to be told of it. None when it is one too many.
/// An update counts as news only when it is worse than what was known.
fn put<'a>(
    record: &mut AgentRecord,
    step: Step,
    finding: &'a Finding,
    seen: Seen,
    news: bool,
) -> Option<(Timestamp, Option<[&'a str; 5]>)> {
    let Some(known) = record.open.get_mut(&finding.key) else {
        if record.open.len() >= OPEN_FINDINGS_PER_AGENT_MAX {
            record.suppressed = record.suppressed.saturating_add(1);
            return None;
        }
        record.digest ^= finding.key.digest_term();
        let (event_index, estimated) = (step.index, seen.estimated);
        let open = OpenFinding { finding: finding.clone(), opened: seen.at, received: step.at, event_index, estimated };
        record.open.insert(finding.key.clone(), Box::new(open));
        return Some((seen.at, Some(["opens: ", &finding.summary, "", "", ""])));
    };
    if news || finding.severity > known.finding.severity {
        known.event_index = step.index;
    }
    let (before, now) = (known.finding.severity, finding.severity);
    let told = before != now || known.finding.summary != finding.summary;
    let (space, severity) = if before == now { ("", "") } else { (" ", now.as_str()) };
    // Often it is told again as it was.
    if known.finding != *finding {
        known.finding = finding.clone();
    }
    Some((known.opened, told.then_some([facts::UPDATED, space, severity, ": ", &finding.summary])))
}

/// Takes a condition from its agent; whether it was there.
fn take(record: &mut AgentRecord, key: &FindingKey) -> bool {
    let was_open = record.open.remove(key).is_some();
    if was_open {
        record.digest ^= key.digest_term();
    }
    was_open
}

/// A host's news belongs to the timelines of the incidents that it concerns: those of its `groups`. Most of it concerns
/// none, and is not put into words.
fn tell(state: &mut State, step: Step, agent: &AgentName, key: &FindingKey, groups: &[String], words: &[&str]) {
    for group in groups {
        facts::fact(state, step, group, || {
            let about = [agent.as_str(), ": ", key.reason.as_str(), " of ", &key.subject.subject, " "];
            [about.concat(), words.concat()].concat()
        });
    }
}

/// An open condition is a member of a cause.
fn join(state: &mut State, agent: &AgentName, key: &FindingKey, group: String, opened: Option<Timestamp>) {
    let member = cause::member_name(agent, key);
    let cause = state.causes.entry(&group).or_default();
    if !cause.members.contains_key(&member) {
        let opened = Known(opened);
        let known = MemberRef { agent: agent.clone(), key: Some(key.clone()), opened };
        cause.members.insert(member.clone(), Box::new(known));
        *cause.agents.get_or_insert_with(agent, u64::default) += 1;
        cause.unjoined.insert(member);
    }
    // The members of a cause are all contended locks, or none is.
    if cause.look_at.is_none() && detect::is_lock(key.reason) {
        look_later(state, &group);
    }
    touch(state, group);
}

/// A condition is no member of a cause any more.
fn part(state: &mut State, agent: &AgentName, key: &FindingKey, group: String) {
    let member = cause::member_name(agent, key);
    if let Some(cause) = state.causes.get_mut(&group)
        && cause.members.remove(&member).is_some()
        && let Some(count) = cause.agents.get_mut(agent)
    {
        cause.unjoined.remove(&member);
        *count -= 1;
        if *count == 0 {
            cause.agents.remove(agent);
        }
        if cause.members.is_empty()
            && let Some(at) = cause.look_at.take()
        {
            state.timers.remove(&(at, TimerKey::WindowOver { window: group.clone() }));
        }
        if !cause.holds_something() {
            super::forget(state, &group);
        }
    } else {
        super::drop_if_empty(state, &group);
    }
    touch(state, group);
}

/// The agent moved to other places: its open condition leaves the groups of `before` that are not its any more.
pub(super) fn regroup(state: &mut State, agent: &AgentName, key: &FindingKey, before: &[String]) {
    let after = detect::groups(state, agent, key);
    for group in before.iter().filter(|group| !after.contains(group)) {
        part(state, agent, key, group.clone());
    }
    let opened = state.agents.get(agent).and_then(|record| Some(record.open.get(key)?.opened));
    for group in after.into_iter().filter(|group| !before.contains(group)) {
        join(state, agent, key, group, opened);
    }
}

/// One timer per cause for conditions that get worse by lasting.
fn look_later(state: &mut State, group: &str) {
    let Some(cause) = state.causes.get(group).filter(|cause| cause.look_at.is_none()) else { return };
    let Some(at) = detect::sustained_at(state, cause) else { return };
    if let Some(cause) = state.causes.get_mut(group) {
        cause.look_at = Some(at);
        state.timers.insert((at, TimerKey::WindowOver { window: group.to_owned() }));
    }
}

/// A cause's timer has run: it is judged anew, and again when another of its conditions has lasted.
pub(super) fn lasted(state: &mut State, step: Step, group: &str) {
    let Some(cause) = state.causes.get_mut(group) else { return };
    if cause.look_at.is_some_and(|at| at <= step.at) {
        cause.look_at = None;
        state.touched.insert(group.to_owned());
        look_later(state, group);
    }
}

pub(super) fn clear(state: &mut State, agent: &AgentName, key: &FindingKey) {
    let groups = causes(state, agent, key);
    if state.agents.get_mut(agent).is_some_and(|record| take(record, key)) {
        leave(state, agent, key, groups);
    }
}

/// A condition that fed `groups` is over.
fn leave(state: &mut State, agent: &AgentName, key: &FindingKey, groups: Vec<String>) {
    for group in groups {
        part(state, agent, key, group);
    }
    fallen::cleared(state, agent, key);
    signals::condition_changed(state, agent, key);
}

fn causes(state: &State, agent: &AgentName, key: &FindingKey) -> Vec<String> {
    let mut causes = vec![cause::of_finding(agent, key)];
    causes.append(&mut detect::groups(state, agent, key));
    causes
}

/// A group of conditions is about its members too: whether they fold into it depends on how many there are.
fn touch(state: &mut State, key: String) {
    // Only around the threshold does one host change what the others fold into.
    let near = detect::is_near_threshold(state, &key);
    if near {
        let symptoms = detect::symptoms(state, &key);
        state.touched.extend(symptoms);
    }
    state.touched.insert(key);
}

fn occurred(state: &mut State, step: Step, agent: &AgentName, finding: &Finding, seen: Seen) {
    let observed = seen.at;
    let kernel = same_kill::kernel(state, agent, finding);
    state.occurrences.push_back(OccurrenceRecord {
        index: step.index,
        agent: agent.clone(),
        observed,
        received: step.at,
        finding: finding.clone(),
        kernel,
    });
    if state.occurrences.len() > RECENT_OCCURRENCES_MAX {
        state.occurrences.pop_front();
    }
    signals::occurred(state, step, agent, finding, observed);
    let service = &finding.key.subject.service;
    let reason = finding.key.reason;
    // Guesses may all fall on one moment: how close together they were is not known.
    if !seen.estimated {
        storms::occurred(state, step, agent, finding, observed);
    }
    if reason == Reason::OomKill && !service.is_host() {
        let record = links::record(state, step, agent);
        record.watched_oom_at = record.watched_oom_at.max(Some(observed));
        state.touched.insert(cause::memory(agent));
    }
    if state.severity_of(reason, finding.severity) == Severity::Sev4 {
        return;
    }
    let occurrence = CauseOccurrence {
        index: step.index,
        agent: Some(agent.clone()),
        service: Some(service.clone()),
        reason,
        severity: finding.severity,
        grade: finding.grade,
        summary: finding.summary.clone(),
        observed,
        received: step.at,
        next_steps: finding.next_steps.clone(),
        rollback_failed: updates::rollback_failed(finding),
    };
    let groups = causes(state, agent, &finding.key);
    tell(state, step, agent, &finding.key, &groups, &["happens: ", &finding.summary]);
    let own = cause::of_finding(agent, &finding.key);
    if kernel.is_some() && same_kill::is_over(state, &own, step.index) {
        return;
    }
    add_occurrence(state, step, &own, occurrence);
    if kernel.is_some() {
        let beside = same_kill::beside(state, &own);
        state.touched.extend(beside);
    }
    let many = detect::made_many(state, agent, &finding.key, step.at);
    state.touched.extend(many);
}

pub(super) fn lost(state: &mut State, step: Step, agent: &AgentName, spool: SpoolId, first: u64, last: u64) {
    let record = links::record(state, step, agent);
    let known = record.position.filter(|position| position.spool == spool).map_or(0, |position| position.sequence);
    if last <= known {
        return;
    }
    record.entries_lost =
        record.entries_lost.saturating_add(last.saturating_sub(first.max(known + 1)).saturating_add(1));
    record.position = Some(Position { spool, sequence: last, hash: EntryHash::ZERO });
    links::digest(state, step, agent, false);
    signals::lost(state, step, agent);
}

/// All verdicts of the agent. Opens what is missing; clears what it judged ok or no longer watches; what it could not
/// judge stays (absence is not recovery).
pub(super) fn open_set(state: &mut State, step: Step, agent: &AgentName, subjects: &[SubjectState]) {
    let listed: BTreeMap<&FindingKey, &Finding> =
        subjects.iter().flat_map(|subject| &subject.open).map(|finding| (&finding.key, finding)).collect();
    // By probe and subject alone: a finding may name another service than the subject was configured under.
    let unknown: BTreeSet<(&str, &str)> =
        subjects.iter().filter(|subject| subject.ok.is_none()).map(|subject| subject.subject.told()).collect();
    let record = links::record(state, step, agent);
    let gone: Vec<FindingKey> = record
        .open
        .keys()
        .filter(|key| !listed.contains_key(key))
        .filter(|key| {
            let (probe, subject, _) = key.told();
            !unknown.contains(&(probe, subject))
        })
        .cloned()
        .collect();
    for key in gone {
        clear(state, agent, &key);
    }
    for finding in listed.values() {
        open(state, step, agent, finding, Seen { at: step.at, estimated: false }, false, None);
    }
    links::digest(state, step, agent, true);
    incidents::sureness_changed(state, step, agent);
}
