//! What is a symptom of what: the incident that a cause key's own incident folds into.

use crate::cause::{self, CauseKind};
use crate::detect;
use crate::same_kill;
use crate::state::{Cause, Incident, IncidentStatus, State};

/// The incident that this cause is a symptom of: that of a detector, or the one that gathers it among many others.
pub(crate) fn of<'a>(state: &'a State, key: &str) -> Option<&'a Incident> {
    detect::explained_by(state, key).or_else(|| burst_explained(state, key))
}

/// The same of a cause that is at hand, and what only happened there and is told by another host of the same kernel.
pub(crate) fn of_cause<'a>(state: &'a State, key: &str, cause: &Cause) -> Option<&'a Incident> {
    of(state, key).or_else(|| if cause.occurrences.is_empty() { None } else { same_kill::explained(state, key, cause) })
}

/// The incident of a detector that explains this cause; being one of many explains nothing.
pub(crate) fn of_detector<'a>(state: &'a State, key: &str) -> Option<&'a Incident> {
    detect::explained_by(state, key).filter(|incident| cause::kind_of(&incident.key.cause) != CauseKind::Burst)
}

/// What was gathered as unexplained is explained: most of it is a symptom of one fleet-wide incident.
fn burst_explained<'a>(state: &'a State, key: &str) -> Option<&'a Incident> {
    if cause::kind_of(key) != CauseKind::Burst {
        return None;
    }
    let burst = state.cause(key)?.burst.as_ref()?;
    let target = state.unresolved(burst.explanation()?)?;
    (target.status == IncidentStatus::Open).then_some(target)
}
