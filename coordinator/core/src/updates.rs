//! Updates that failed or were taken back, and whether the service is well after them: one matter of its availability,
//! worse when the rollback failed or the service is not well.

use crate::apply::Step;
use crate::cause;
use crate::severity::When;
use crate::signals;
use crate::state::{Cause, CauseOccurrence, State};
use muster_common::evidence::Value;
use muster_common::finding::Finding;
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When an unwell service is a consequence of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdatePolicy {
    /// What was wrong before and still is counts after this: a restart takes a moment.
    pub settle: Duration,
    /// What goes wrong later than this after it has other reasons.
    pub within: Duration,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self { settle: Duration::from_secs(120), within: Duration::from_secs(1800) }
    }
}

const fn is_update(reason: Reason) -> bool {
    matches!(reason, Reason::UpdateFailed | Reason::UpdateRollback)
}

/// An update failed or was taken back: its service is looked at again when it has had the time to come up.
pub(crate) fn occurred(state: &mut State, step: Step, agent: &AgentName, finding: &Finding) {
    if is_update(finding.key.reason) {
        let settle = state.policy.signals.update.settle;
        signals::set_due(state, &cause::of_finding(agent, &finding.key), Some(step.at + settle));
    }
}

/// Whether an application told that its rollback did not succeed: `outcome` (or `result`, `status`) is a failure,
/// `success` is false, or an update failed in its `phase` of rolling back.
pub(crate) fn rollback_failed(finding: &Finding) -> bool {
    let says = |keys: &[&str], words: &[&str]| {
        keys.iter().any(|key| match finding.evidence.get(key) {
            Some(Value::Text(text)) => words.iter().any(|word| text.eq_ignore_ascii_case(word)),
            _ => false,
        })
    };
    let not = |key: &str| finding.evidence.get(key) == Some(&Value::Flag(false));
    let failed = says(&["outcome", "result", "status"], &["failed", "failure", "error"])
        || says(&["success", "ok"], &["false", "no", "0"])
        || not("success")
        || not("ok");
    match finding.key.reason {
        Reason::UpdateRollback => failed,
        Reason::UpdateFailed => says(&["phase", "step"], &["rollback"]),
        _ => false,
    }
}

/// The circumstances of one occurrence under the cause of its service.
pub(crate) fn circumstances(state: &State, now: Timestamp, cause: &Cause, occurrence: &CauseOccurrence) -> Vec<When> {
    if !is_update(occurrence.reason) {
        return Vec::new();
    }
    let mut holds = Vec::new();
    if occurrence.rollback_failed {
        holds.push(When::RollbackFailed);
    }
    let policy = &state.policy.signals.update;
    // News that arrives late has had its time to settle from when it arrived: what cleared meanwhile follows it.
    let settled = now >= occurrence.received + policy.settle;
    let unwell = cause.members.values().any(|member| {
        let open = state.agent(&member.agent).and_then(|agent| agent.open.get(member.key.as_ref()?));
        open.is_some_and(|open| {
            let counts = state.severity_of(open.finding.key.reason, open.finding.severity) >= Severity::Sev3;
            let after = open.opened >= occurrence.observed && open.opened <= occurrence.observed + policy.within;
            let still = open.opened < occurrence.observed && settled;
            counts && (after || still)
        })
    });
    if unwell {
        holds.push(When::UnhealthyAfter);
    }
    holds
}
