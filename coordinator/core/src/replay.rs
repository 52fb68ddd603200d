//! Feeds the facts of a journal to the rules again, one entry at a time, and compares: with the recorded conclusions
//! ([`Verifier`]), or with what another policy makes of them ([`whatif`]).
//!
//! Keeps nothing of what it has compared, so that a journal of any length fits. Must never claim what the journal
//! cannot tell.

mod difference;
pub mod whatif;

use crate::entry::{Entry, EntryBody};
use crate::machine::Machine;
use crate::state::State;
pub use difference::{Course, IncidentDiff, Told, Unmatched, WhatIf};
use muster_common::time::Timestamp;
use serde::Serialize;
use std::collections::VecDeque;
pub use whatif::{WhatIfError, WhatIfRun, what_if};

/// Where a replay went another way than the journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Index of the entry.
    pub index: u64,
    /// What the journal has.
    pub recorded: Option<Entry>,
    /// What the rules give.
    pub replayed: Option<Entry>,
}

/// How many entries of which kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Observed or done.
    pub facts: u64,
    /// Timers that ran out.
    pub deadlines: u64,
    /// Decided.
    pub conclusions: u64,
}

impl Counts {
    /// Counts one more.
    pub fn add(&mut self, body: &EntryBody) {
        let count = match body {
            EntryBody::Fact(_) => &mut self.facts,
            EntryBody::Deadline(_) => &mut self.deadlines,
            EntryBody::Conclusion(_) => &mut self.conclusions,
        };
        *count = count.saturating_add(1);
    }

    /// All of them.
    pub fn entries(&self) -> u64 {
        self.facts.saturating_add(self.deadlines).saturating_add(self.conclusions)
    }
}

/// Compares a journal with what the rules make of its facts, entry by entry.
#[derive(Debug)]
pub struct Verifier {
    machine: Machine,
    /// What the rules gave and the journal has not shown yet.
    ahead: VecDeque<Entry>,
    counts: Counts,
}

impl Verifier {
    /// Goes on from `snapshot`; the first entry is the one right after it.
    pub fn new(snapshot: State) -> Self {
        Self { machine: Machine::new(snapshot), ahead: VecDeque::new(), counts: Counts::default() }
    }

    /// The next entry of the journal.
    pub fn next(&mut self, recorded: Entry) -> Result<(), Box<Divergence>> {
        self.counts.add(&recorded.body);
        let Entry { index, at, trace, body } = recorded;
        let body = match body {
            EntryBody::Fact(fact) if self.ahead.is_empty() => {
                self.ahead.extend(self.machine.feed(at, fact));
                return self.fed(index, at, trace);
            }
            EntryBody::Deadline(key) => {
                if self.ahead.is_empty() {
                    self.ahead.extend(self.machine.run_deadlines(at));
                }
                EntryBody::Deadline(key)
            }
            other => other,
        };
        let recorded = Entry { index, at, trace, body };
        match self.ahead.pop_front() {
            Some(mine) if mine == recorded => Ok(()),
            mine => Err(Box::new(Divergence { index, recorded: Some(recorded), replayed: mine })),
        }
    }

    /// The fact just fed is what the rules gave first, unless a timer ran before it that is not in the journal.
    fn fed(&mut self, index: u64, at: Timestamp, trace: u64) -> Result<(), Box<Divergence>> {
        let agrees = |mine: &Entry| {
            matches!(mine.body, EntryBody::Fact(_)) && (mine.index, mine.at, mine.trace) == (index, at, trace)
        };
        match self.ahead.pop_front() {
            Some(mine) if agrees(&mine) => Ok(()),
            mine => {
                let fact = mine.iter().chain(&self.ahead).find(|entry| matches!(entry.body, EntryBody::Fact(_)));
                let recorded = fact.map(|entry| Entry { index, at, trace, body: entry.body.clone() });
                Err(Box::new(Divergence { index, recorded, replayed: mine }))
            }
        }
    }

    /// What is known now.
    pub fn state(&self) -> &State {
        self.machine.state()
    }

    /// What was compared so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The journal is over. A fact is stored together with everything that was concluded from it, so nothing may be left.
    pub fn finish(mut self) -> Result<State, Box<Divergence>> {
        match self.ahead.pop_front() {
            None => Ok(self.machine.into_state()),
            Some(more) => Err(Box::new(Divergence { index: more.index, recorded: None, replayed: Some(more) })),
        }
    }
}

/// Feeds only the facts of `journal` (which begins right after `snapshot`) to the rules and compares every entry.
pub fn verify(snapshot: State, journal: &[Entry]) -> Result<State, Box<Divergence>> {
    let mut verifier = Verifier::new(snapshot);
    journal.iter().try_for_each(|entry| verifier.next(entry.clone()))?;
    verifier.finish()
}
