//! Feeds the facts of a journal to the rules again and compares.

use crate::cause;
use crate::entry::{Conclusion, Entry, EntryBody, Fact, IncidentKey};
use crate::machine::Machine;
use crate::page::PageAction;
use crate::policy::Policy;
use crate::state::State;
use muster_common::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Where a replay went another way than the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Index of the entry.
    pub index: u64,
    /// What the journal has.
    pub recorded: Option<Entry>,
    /// What the rules give.
    pub replayed: Option<Entry>,
}

/// Feeds only the facts of `journal` (which begins right after `snapshot`) to the rules and compares every entry.
pub fn verify(snapshot: State, journal: &[Entry]) -> Result<State, Box<Divergence>> {
    let mut machine = Machine::new(snapshot);
    let mut replayed: Vec<Entry> = Vec::new();
    let mut checked = 0;
    for entry in journal {
        let known = machine.state().head_index() >= entry.index;
        if !known {
            match &entry.body {
                EntryBody::Fact(fact) => replayed.extend(machine.feed(entry.at, fact.clone())),
                EntryBody::Deadline(_) => replayed.extend(machine.run_deadlines(entry.at)),
                EntryBody::Conclusion(_) => {}
            }
        }
        let mine = replayed.get(checked);
        if mine != Some(entry) {
            let (index, recorded, replayed) = (entry.index, Some(entry.clone()), mine.cloned());
            return Err(Box::new(Divergence { index, recorded, replayed }));
        }
        checked += 1;
    }
    match replayed.get(checked) {
        None => Ok(machine.into_state()),
        Some(more) => Err(Box::new(Divergence { index: more.index, recorded: None, replayed: Some(more.clone()) })),
    }
}

/// What another policy would have paged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WhatIf {
    /// Pages that only the other policy sends, in order.
    pub added: Vec<Told>,
    /// Pages that only the journal has.
    pub removed: Vec<Told>,
    /// Pages of both, at another time: the journal's, then the other policy's.
    pub moved: Vec<(Told, Timestamp)>,
    /// Operator facts whose incident does not exist under the other policy, by index.
    pub unmatched: Vec<u64>,
}

/// A trigger page, as far as two policies can be compared by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// When.
    pub at: Timestamp,
    /// About which incident.
    pub incident: IncidentKey,
    /// To whom.
    pub receiver: String,
    /// Under which key.
    pub dedup_key: String,
}

/// Why a comparison would claim more than the journal can tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    /// Heartbeats are not in the journal.
    #[error(
        "the other policy notices silence earlier than the recorded one; the journal cannot tell who would have been silent: loosen the thresholds, do not tighten them"
    )]
    TighterLiveness,
}

/// Feeds the facts of `journal` to the rules under `policy` and compares the pages. Outcomes of pages are not fed: they
/// belong to pages that the other policy may not have sent.
pub fn what_if(snapshot: &State, journal: &[Entry], policy: &Policy) -> Result<WhatIf, WhatIfError> {
    let stale = |policy: &Policy| policy.liveness.heartbeat * policy.liveness.stale_after;
    let mut recorded_policies = journal.iter().filter_map(|entry| match &entry.body {
        EntryBody::Fact(Fact::PolicyLoaded { policy }) => Some(policy.as_ref()),
        _ => None,
    });
    if recorded_policies.any(|recorded| stale(policy) < stale(recorded)) || stale(policy) < stale(snapshot.policy()) {
        return Err(WhatIfError::TighterLiveness);
    }
    let mut machine = Machine::new(snapshot.clone());
    let mut replayed = Vec::new();
    let mut result = WhatIf::default();
    if let Some(first) = journal.first() {
        replayed.extend(machine.feed(first.at, Fact::PolicyLoaded { policy: Box::new(policy.clone()) }));
    }
    for entry in journal {
        let EntryBody::Fact(fact) = &entry.body else { continue };
        match fact {
            Fact::PolicyLoaded { .. }
            | Fact::PageAttempted { .. }
            | Fact::PageDelivered { .. }
            | Fact::PageFailed { .. }
            | Fact::DecidePanicked { .. } => continue,
            Fact::Operator { cause, generation, .. } => {
                let key = IncidentKey { cause: cause.clone(), generation: *generation };
                if machine.state().incident(&key).is_none() {
                    result.unmatched.push(entry.index);
                    continue;
                }
            }
            _ => {}
        }
        replayed.extend(machine.feed(entry.at, fact.clone()));
    }
    if let Some(last) = journal.last() {
        replayed.extend(machine.run_deadlines(last.at));
    }
    compare(&first_triggers(journal), &first_triggers(&replayed), &mut result);
    Ok(result)
}

/// The first trigger of each receiver and key. Those about a failing receiver follow from outcomes, which are not fed.
fn first_triggers(entries: &[Entry]) -> Vec<Told> {
    let mut seen = BTreeSet::new();
    let triggers = entries.iter().filter_map(|entry| match &entry.body {
        EntryBody::Conclusion(Conclusion::PageRequested { incident, page, .. })
            if page.action == PageAction::Trigger && cause::failing_receiver(&page.cause_key).is_none() =>
        {
            let (receiver, dedup_key) = (page.receiver.clone(), page.dedup_key.clone());
            Some(Told { at: entry.at, incident: incident.clone(), receiver, dedup_key })
        }
        _ => None,
    });
    triggers.filter(|told| seen.insert((told.receiver.clone(), told.dedup_key.clone()))).collect()
}

fn compare(recorded: &[Told], replayed: &[Told], result: &mut WhatIf) {
    let name = |told: &Told| (told.receiver.clone(), told.dedup_key.clone());
    let theirs: BTreeMap<_, &Told> = replayed.iter().map(|told| (name(told), told)).collect();
    let ours: BTreeMap<_, &Told> = recorded.iter().map(|told| (name(told), told)).collect();
    for told in recorded {
        match theirs.get(&name(told)) {
            None => result.removed.push(told.clone()),
            Some(other) if other.at != told.at => result.moved.push((told.clone(), other.at)),
            Some(_) => {}
        }
    }
    result.added = replayed.iter().filter(|told| !ours.contains_key(&name(told))).cloned().collect();
}
