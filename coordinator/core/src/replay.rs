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
use serde::Serialize;
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
    /// What the rules gave besides the fact fed last.
    ahead: Vec<Entry>,
    /// How many of these the journal has shown.
    shown: usize,
    counts: Counts,
}

impl Verifier {
    /// Goes on from `snapshot`; the first entry is the one right after it.
    pub fn new(snapshot: State) -> Self {
        Self { machine: Machine::new(snapshot), ahead: Vec::new(), shown: 0, counts: Counts::default() }
    }

    /// The next entry of the journal.
    pub fn next(&mut self, recorded: &Entry) -> Result<(), Box<Divergence>> {
        self.counts.add(&recorded.body);
        if self.ahead.is_empty() {
            match recorded.body {
                EntryBody::Fact(_) => return self.feed(recorded),
                EntryBody::Deadline(_) => self.ahead = self.machine.run_deadlines(recorded.at),
                EntryBody::Conclusion(_) => {}
            }
        }
        match self.ahead.get(self.shown) {
            Some(mine) if mine == recorded => {}
            mine => return Err(diverged(recorded, mine.cloned())),
        }
        self.shown += 1;
        if self.shown == self.ahead.len() {
            self.ahead.clear();
            self.shown = 0;
        }
        Ok(())
    }

    /// The fact is what the rules would journal next, unless a timer runs before it that is not in the journal.
    fn feed(&mut self, recorded: &Entry) -> Result<(), Box<Divergence>> {
        if self.machine.feed_again(recorded, &mut self.ahead) {
            return Ok(());
        }
        let mine = self.ahead.first().cloned().unwrap_or_else(|| {
            let index = self.machine.state().head_index() + 1;
            let at = recorded.at.max(self.machine.state().last_at());
            Entry { index, at, trace: index, body: recorded.body.clone() }
        });
        Err(diverged(recorded, Some(mine)))
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
    pub fn finish(self) -> Result<State, Box<Divergence>> {
        match self.ahead.get(self.shown) {
            None => Ok(self.machine.into_state()),
            Some(more) => Err(Box::new(Divergence { index: more.index, recorded: None, replayed: Some(more.clone()) })),
        }
    }
}

fn diverged(recorded: &Entry, replayed: Option<Entry>) -> Box<Divergence> {
    Box::new(Divergence { index: recorded.index, recorded: Some(recorded.clone()), replayed })
}

/// Feeds only the facts of `journal` (which begins right after `snapshot`) to the rules and compares every entry.
pub fn verify(snapshot: State, journal: &[Entry]) -> Result<State, Box<Divergence>> {
    let mut verifier = Verifier::new(snapshot);
    journal.iter().try_for_each(|entry| verifier.next(entry))?;
    verifier.finish()
}
