//! What must hold after every entry; the simulator asks after each event.

use crate::state::State;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

/// Everything that is wrong with `state`.
pub fn check(state: &State) -> Vec<Violation> {
    let mut found = Vec::new();
    if state.pending_pages().any(|record| record.outcome.is_some()) {
        found.push(Violation { invariant: "a pending page has no outcome", what: String::new() });
    }
    found
}
