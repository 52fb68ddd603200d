//! Runs the rules: one fact in, the entries that follow out. Deterministic; the caller brings the time and commits.

use crate::apply::apply;
use crate::decide::decide;
use crate::entry::{Conclusion, Entry, EntryBody, Fact};
use crate::state::State;
use muster_common::limits::{NOTE_BYTES_MAX, clip};
use muster_common::time::Timestamp;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Conclusions that may follow from one fact. A mass silence of the largest fleet stays far below; more means that two
/// rules answer each other for ever, which is reported as a fault and ends the round.
pub const CONCLUSIONS_PER_FACT_MAX: usize = 100_000;
/// Deadlines run before one fact; the rest runs before the next.
pub const DEADLINES_PER_RUN_MAX: usize = 100_000;

/// A replicated entry does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicationError {
    /// Not the next one.
    #[error("expected journal entry {expected}, got {found}: ask the primary for a snapshot")]
    Gap {
        /// What should come.
        expected: u64,
        /// What came.
        found: u64,
    },
}

/// The rules: the next conclusion about a cause key, if any.
pub type Rules = fn(&State, Timestamp, &str) -> Option<Conclusion>;

/// State and the rules over it.
#[derive(Debug, Clone)]
pub struct Machine {
    state: State,
    rules: Rules,
}

impl Machine {
    /// Goes on from `state`.
    pub fn new(state: State) -> Self {
        Self::with_rules(state, decide)
    }

    /// Goes on from `state` under other rules than [`decide`]: for tests of what happens when a rule is broken.
    pub fn with_rules(state: State, rules: Rules) -> Self {
        Self { state, rules }
    }

    /// What is known now, uncommitted entries included.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Gives the state back.
    pub fn into_state(self) -> State {
        self.state
    }

    /// Runs overdue deadlines, then the fact and everything that follows. Facts about the coordinator's own life come
    /// before overdue deadlines, which then run at the end of the gap.
    pub fn feed(&mut self, now: Timestamp, fact: Fact) -> Vec<Entry> {
        let now = now.max(self.state.last_at());
        // Most facts conclude nothing: room for one entry, and not for four as a vector makes it.
        let mut entries = Vec::with_capacity(1);
        if ends_a_gap(&fact) {
            self.run(now, EntryBody::Fact(fact), &mut entries);
            self.deadlines(now, Some(now), &mut entries);
        } else {
            self.deadlines(now, None, &mut entries);
            self.run(now, EntryBody::Fact(fact), &mut entries);
        }
        entries
    }

    /// Feeds a fact as a journal has it, which is not copied: `others` gets what comes besides. False where it is not what
    /// this machine would journal next; then it was not fed, and `others` has the deadlines that come before it.
    pub fn feed_again(&mut self, recorded: &Entry, others: &mut Vec<Entry>) -> bool {
        let EntryBody::Fact(fact) = &recorded.body else { return false };
        let (at, ends_a_gap) = (recorded.at, ends_a_gap(fact));
        if at < self.state.last_at() {
            return false;
        }
        let known = others.len();
        if !ends_a_gap {
            self.deadlines(at, None, others);
        }
        let index = self.state.head_index() + 1;
        if others.len() > known || (recorded.index, recorded.trace) != (index, index) {
            return false;
        }
        apply(&mut self.state, recorded);
        self.follow(at, index, is_fault(fact), others);
        if ends_a_gap {
            self.deadlines(at, Some(at), others);
        }
        true
    }

    /// Runs the deadlines up to `now`.
    pub fn run_deadlines(&mut self, now: Timestamp) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.deadlines(now, None, &mut entries);
        entries
    }

    /// Applies an entry of the primary; decides nothing.
    pub fn apply_replicated(&mut self, entry: &Entry) -> Result<(), ReplicationError> {
        let expected = self.state.head_index() + 1;
        if entry.index != expected {
            return Err(ReplicationError::Gap { expected, found: entry.index });
        }
        apply(&mut self.state, entry);
        Ok(())
    }

    fn deadlines(&mut self, now: Timestamp, at: Option<Timestamp>, entries: &mut Vec<Entry>) {
        if self.state.fenced_by().is_some() {
            return;
        }
        for _ in 0..DEADLINES_PER_RUN_MAX {
            let Some((due, key)) = self.state.timers.first().filter(|(due, _)| *due <= now).cloned() else { return };
            let at = at.unwrap_or(due).max(self.state.last_at());
            self.run(at, EntryBody::Deadline(key), entries);
        }
    }

    fn append(&mut self, at: Timestamp, trace: u64, body: EntryBody, entries: &mut Vec<Entry>) -> u64 {
        let index = self.state.head_index() + 1;
        let trace = if trace == 0 { index } else { trace };
        let entry = Entry { index, at, trace, body };
        apply(&mut self.state, &entry);
        entries.push(entry);
        index
    }

    fn run(&mut self, at: Timestamp, body: EntryBody, entries: &mut Vec<Entry>) {
        let is_fault = matches!(&body, EntryBody::Fact(fact) if is_fault(fact));
        let trace = self.append(at, 0, body, entries);
        self.follow(at, trace, is_fault, entries);
    }

    /// What follows from the entry that was applied last; a panic is not told of what tells a panic.
    fn follow(&mut self, at: Timestamp, trace: u64, is_fault: bool, entries: &mut Vec<Entry>) {
        if let Err(message) = self.settle(at, trace, entries)
            && !is_fault
        {
            let fault = Fact::DecidePanicked { entry: trace, message: clip(&message, NOTE_BYTES_MAX) };
            self.run(at, EntryBody::Fact(fault), entries);
        }
    }

    /// Decides until nothing more follows. A cause whose rule panics is left as it is and reported once.
    fn settle(&mut self, at: Timestamp, trace: u64, entries: &mut Vec<Entry>) -> Result<(), String> {
        let mut work = std::mem::take(&mut self.state.touched.0);
        let mut fault = Ok(());
        let mut conclusions = 0;
        while let Some(cause) = work.pop_first() {
            let (state, rules) = (&self.state, self.rules);
            match catch_unwind(AssertUnwindSafe(|| rules(state, at, &cause))) {
                Ok(None) => {}
                Ok(Some(conclusion)) => {
                    self.append(at, trace, EntryBody::Conclusion(conclusion), entries);
                    work.append(&mut self.state.touched);
                    work.insert(cause);
                    conclusions += 1;
                }
                Err(panic) => fault = Err(panic_message(&*panic)),
            }
            if conclusions >= CONCLUSIONS_PER_FACT_MAX {
                return Err(format!("more than {CONCLUSIONS_PER_FACT_MAX} conclusions from entry {trace}"));
            }
        }
        fault
    }
}

/// A fact that ends a stretch of time in which nobody looked at the clock.
pub(crate) fn ends_a_gap(fact: &Fact) -> bool {
    matches!(fact, Fact::Started { .. } | Fact::TookOver { .. } | Fact::Paused { .. })
}

fn is_fault(fact: &Fact) -> bool {
    matches!(fact, Fact::DecidePanicked { .. })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
