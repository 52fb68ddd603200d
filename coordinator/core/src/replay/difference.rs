//! How two courses of the same facts differ: pages and incidents, side by side.

use crate::apply::incidents::hold_of;
use crate::cause;
use crate::entry::{IncidentKey, Resolution};
use crate::state::{Incident, State};
use crate::timeline::{LineKind, TimelineLine};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What another policy would have done.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct WhatIf {
    /// Pages that only the other policy sends, in order.
    pub added: Vec<Told>,
    /// Pages that only the journal has.
    pub removed: Vec<Told>,
    /// Pages of both, at another time: the journal's, then the other policy's.
    pub moved: Vec<(Told, Timestamp)>,
    /// Pages of the journal that the other policy had not decided on when it ended, or when a person answered them, and
    /// when it would have looked again.
    pub undecided: Vec<(Told, Timestamp)>,
    /// Incidents that differ, by cause and generation.
    pub incidents: Vec<IncidentDiff>,
    /// Operator facts whose incident does not exist, or is over, under the other policy.
    pub unmatched: Vec<Unmatched>,
    /// What the journal cannot tell, one sentence each.
    pub unsure: Vec<String>,
}

impl WhatIf {
    /// True when both policies page and open the same.
    pub fn is_same(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.moved.is_empty()
            && self.undecided.is_empty()
            && self.incidents.is_empty()
            && self.unmatched.is_empty()
    }
}

/// A trigger page, as far as two policies can be compared by it: the first to one receiver under one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// When.
    pub at: Timestamp,
    /// About which incident.
    pub incident: IncidentKey,
    /// To whom.
    pub receiver: String,
    /// Under which key.
    pub dedup_key: String,
    /// How bad.
    pub severity: Severity,
    /// What.
    pub reason: Reason,
    /// One sentence.
    pub title: String,
}

/// What became of an incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Course {
    /// For people; the two policies number differently.
    pub number: String,
    /// When it was opened.
    pub opened: Timestamp,
    /// The worst it got.
    pub severity: Severity,
    /// What it was about in the end.
    pub reason: Reason,
    /// When it was resolved.
    pub resolved: Option<Timestamp>,
    /// As a symptom of this one.
    pub folded_into: Option<IncidentKey>,
}

impl Course {
    pub(super) fn of(incident: &Incident) -> Self {
        let folded_into = incident.resolution.as_ref().and_then(folded_into).cloned();
        Self {
            number: incident.number.clone(),
            opened: incident.opened,
            severity: incident.severity,
            reason: incident.reason,
            resolved: incident.resolved,
            folded_into,
        }
    }
}

pub(super) fn folded_into(resolution: &Resolution) -> Option<&IncidentKey> {
    match resolution {
        Resolution::FoldedInto { incident } | Resolution::MergedInto { incident } => Some(incident),
        Resolution::Evidence | Resolution::Operator { .. } => None,
    }
}

/// An incident that the two policies see differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IncidentDiff {
    /// Which.
    pub incident: IncidentKey,
    /// In the journal; none when only the other policy opens it.
    pub recorded: Option<Course>,
    /// Under the other policy; none when it does not open it.
    pub replayed: Option<Course>,
}

/// What a person did about an incident that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unmatched {
    /// Of the fact.
    pub index: u64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// About which incident.
    pub incident: IncidentKey,
    /// What: acknowledge, resolve, note, …
    pub action: String,
}

/// Those about a failing receiver follow from outcomes of pages that the other policy may not send; those about a rule
/// that panicked from a fault of the program that wrote the journal, which is not fed.
fn is_compared(incident: &IncidentKey) -> bool {
    cause::failing_receiver(&incident.cause).is_none() && incident.cause != cause::COORDINATOR_FAULT
}

/// `state` is the other policy's at the end.
pub(super) fn pages(recorded: Vec<Told>, replayed: Vec<Told>, state: &State, result: &mut WhatIf) {
    let name = |told: &Told| (told.receiver.clone(), told.dedup_key.clone());
    let counts = |told: &Told| is_compared(&told.incident);
    tell_uncompared(&recorded, &replayed, result);
    let theirs: BTreeMap<_, Timestamp> = replayed.iter().map(|told| (name(told), told.at)).collect();
    let ours: BTreeSet<_> = recorded.iter().map(name).collect();
    result.added = replayed.into_iter().filter(|told| counts(told) && !ours.contains(&name(told))).collect();
    for told in recorded.into_iter().filter(counts) {
        match theirs.get(&name(&told)) {
            None => match answered(state, &told).or_else(|| looked_at_again(state, &told)) {
                Some(at) => result.undecided.push((told, at)),
                None => result.removed.push(told),
            },
            Some(at) if *at != told.at => result.moved.push((told, *at)),
            Some(_) => {}
        }
    }
}

/// Pages about failing receivers that one side has and the other has not, or at another time: they are left out, and
/// that is said.
fn tell_uncompared(recorded: &[Told], replayed: &[Told], result: &mut WhatIf) {
    let of = |side: &[Told]| -> BTreeSet<(String, String, Timestamp)> {
        let about = side.iter().filter(|told| cause::failing_receiver(&told.incident.cause).is_some());
        about.map(|told| (told.receiver.clone(), told.dedup_key.clone(), told.at)).collect()
    };
    let differ = of(recorded).symmetric_difference(&of(replayed)).count();
    if differ > 0 {
        result.unsure.push(format!(
            "{differ} pages about receivers that fail are not compared, nor are their incidents: whether a receiver fails follows from what became of pages, and the other policy may send others"
        ));
    }
}

/// When the other policy would have paged what a person answered after the journal's page and before that: by an
/// acknowledgement, a lower severity, or closing it. They may have come because of that page: would they have without?
fn answered(state: &State, told: &Told) -> Option<Timestamp> {
    let incident = state.incident(&told.incident).filter(|incident| !incident.has_paged())?;
    let until = incident.opened + hold_of(state, told.reason, told.severity);
    let acted = |line: &TimelineLine| line.kind == LineKind::Operator && line.at >= told.at && line.at < until;
    let closed = matches!(incident.resolution, Some(Resolution::Operator { .. }));
    let lowered = incident.response.by_hand.is_some() && incident.severity < told.severity;
    let acknowledged = incident.acknowledged.is_some_and(|at| at >= told.at);
    let over = incident.resolved.is_some_and(|at| at < until) && !closed;
    let is_answered = (closed || lowered || acknowledged) && !over && incident.timeline.iter().any(acted);
    (is_answered && state.fenced_by().is_none()).then_some(until)
}

/// When a cause is judged again that has paged nobody yet: the hold of its incident is over, or what it is about has
/// lasted for long enough.
fn looked_at_again(state: &State, told: &Told) -> Option<Timestamp> {
    let cause = told.incident.cause.as_str();
    let incident = state.unresolved(cause);
    // Who acknowledged it before its page is paged no more.
    let unasked = |incident: &Incident| incident.acknowledged.is_some_and(|at| at < told.at);
    let is_decided = |incident: &Incident| incident.has_paged() || unasked(incident);
    if incident.is_some_and(is_decided) || state.fenced_by().is_some() {
        return None;
    }
    let hold = incident.and_then(|incident| incident.hold_until);
    let lasts = state.cause(cause).and_then(|cause| cause.look_at);
    let due = state.signals().due.get(cause).copied();
    hold.into_iter().chain(lasts).chain(due).filter(|at| *at > state.last_at()).min()
}

pub(super) fn incidents(
    mut recorded: BTreeMap<IncidentKey, Course>,
    replayed: BTreeMap<IncidentKey, Course>,
) -> Vec<IncidentDiff> {
    let counts = is_compared;
    let same = |a: &Course, b: &Course| {
        Course { number: String::new(), ..a.clone() } == Course { number: String::new(), ..b.clone() }
    };
    let mut differ = Vec::new();
    for (incident, theirs) in replayed.into_iter().filter(|(key, _)| counts(key)) {
        let ours = recorded.remove(&incident);
        if !ours.as_ref().is_some_and(|ours| same(ours, &theirs)) {
            differ.push(IncidentDiff { incident, recorded: ours, replayed: Some(theirs) });
        }
    }
    let missing = recorded.into_iter().filter(|(key, _)| counts(key));
    differ.extend(missing.map(|(incident, ours)| IncidentDiff { incident, recorded: Some(ours), replayed: None }));
    differ.sort_by(|a, b| a.incident.cmp(&b.incident));
    differ
}
