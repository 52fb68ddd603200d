//! What is a symptom of what: the incident that a cause key's own incident folds into.

use crate::cause::{self, CauseKind};
use crate::detect;
use crate::state::{Incident, IncidentStatus, State};

/// The incident that this cause is a symptom of: that of a detector, or the one that gathers it among many others.
pub(crate) fn of<'a>(state: &'a State, key: &str) -> Option<&'a Incident> {
    detect::explained_by(state, key).or_else(|| burst_explained(state, key))
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
