//! The one function that changes State.

use crate::entry::Entry;
use crate::state::State;

/// Applies one entry. Total: never fails, never panics.
pub fn apply(state: &mut State, entry: &Entry) {
    state.head_index = entry.index;
    state.last_at = state.last_at.max(entry.at);
    state.touched.clear();
}
