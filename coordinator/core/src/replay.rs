//! Feeds the facts of a journal to the rules again and compares.

use crate::entry::{Entry, EntryBody};
use crate::machine::Machine;
use crate::state::State;

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
