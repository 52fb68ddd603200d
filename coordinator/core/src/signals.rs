//! What the fleet is compared by: changes, builds and versions, where singletons run, refused callers. Kept in State for
//! the detectors of the same names, which look at it; this file takes the facts in.
//!
//! Each part is bounded by itself, and none of them grows with what one agent tells.

use crate::apply::Step;
use crate::builds::{self, Builds, VersionSkewPolicy};
use crate::changes::{self, Changes, ChangesPolicy};
use crate::entry::{AgentHello, TimerKey};
use crate::flapping::FlapPolicy;
use crate::refusals::{self, AuthAbusePolicy, Refusals};
use crate::singletons::{self, SingletonPolicy, Singletons};
use crate::state::State;
use crate::updates::{self, UpdatePolicy};
use muster_common::finding::{Finding, FindingKey};
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Thresholds, one table each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SignalPolicy {
    /// What changed before an incident.
    pub changes: ChangesPolicy,
    /// Updates that fail.
    pub update: UpdatePolicy,
    /// Services that may run once.
    pub singleton: SingletonPolicy,
    /// Versions and builds that differ.
    pub version_skew: VersionSkewPolicy,
    /// Callers that are refused again and again.
    pub auth_abuse: AuthAbusePolicy,
    /// Two agents under one name.
    pub agent_identity_conflict: IdentityConflictPolicy,
    /// What changes between wrong and well too often.
    pub flapping: FlapPolicy,
}

/// When a second agent under the same name is taken for gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConflictPolicy {
    /// It did not come for so long. An agent comes again within a minute, and is told of once an `interval`.
    pub quiet: Duration,
    /// A second agent that keeps coming is journaled once in so long.
    #[serde(default = "conflict_interval")]
    pub interval: Duration,
}

const fn conflict_interval() -> Duration {
    Duration::from_secs(60)
}

impl Default for IdentityConflictPolicy {
    fn default() -> Self {
        Self { quiet: Duration::from_secs(900), interval: conflict_interval() }
    }
}

/// See the head of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Signals {
    /// What changed lately.
    pub changes: Changes,
    /// Who runs which version.
    pub builds: Builds,
    /// Where singletons run.
    pub singletons: Singletons,
    /// Whom this coordinator refused.
    pub refusals: Refusals,
    /// When a cause is looked at again; its timer.
    pub(crate) due: BTreeMap<String, Timestamp>,
}

/// Something happened on a host.
pub(crate) fn occurred(state: &mut State, step: Step, agent: &AgentName, finding: &Finding, observed: Timestamp) {
    changes::occurred(state, step, agent, finding, observed);
    builds::occurred(state, step, agent, finding);
    singletons::occurred(state, step, agent, finding, observed);
    updates::occurred(state, step, agent, finding);
}

/// An agent connected; `old` is what it said of itself before.
pub(crate) fn connected(state: &mut State, step: Step, agent: &AgentName, old: Option<&AgentHello>, new: &AgentHello) {
    changes::connected(state, step, agent, old, new);
    builds::connected(state, step, agent, old, new);
    let boots = (old.and_then(|old| old.boot_id), new.boot_id);
    if let (Some(old), Some(new)) = boots
        && old != new
    {
        singletons::forget(state, step, agent);
    }
}

/// A condition of an agent is open, or is not any more.
pub(crate) fn condition_changed(state: &mut State, agent: &AgentName, key: &FindingKey) {
    singletons::condition_changed(state, agent, key);
}

/// An agent is heard, or not any more.
pub(crate) fn link_changed(state: &mut State, step: Step, agent: &AgentName) {
    singletons::link_changed(state, step, agent);
}

/// Entries of an agent are lost, or it begins anew.
pub(crate) fn lost(state: &mut State, step: Step, agent: &AgentName) {
    singletons::lost(state, step, agent);
}

/// An agent is forgotten.
pub(crate) fn forget(state: &mut State, step: Step, agent: &AgentName) {
    changes::forget(state, agent);
    builds::forget(state, step, agent);
    singletons::forget(state, step, agent);
}

/// A cause changed between wrong and well.
pub(crate) fn flapped(state: &mut State, step: Step, cause: &str) {
    let policy = &state.policy.signals.flapping;
    if let Some(cause) = state.causes.get_mut(cause) {
        cause.flaps.changed(step.at, policy);
    }
}

/// Whether the recoveries of a cause are not believed now.
pub(crate) fn flaps(state: &State, now: Timestamp, cause: &str) -> bool {
    let policy = &state.policy.signals.flapping;
    state.causes.get(cause).is_some_and(|cause| cause.flaps.is_flapping(now, policy))
}

/// What is well but flaps is looked at again when it is calm.
pub(crate) fn await_calm(state: &mut State, step: Step, cause: &str) -> Option<Timestamp> {
    let policy = &state.policy.signals.flapping;
    let calm_at = state.causes.get(cause).and_then(|cause| cause.flaps.calm_at(step.at, policy));
    if calm_at.is_some() {
        set_due(state, cause, calm_at);
    }
    calm_at
}

/// The cause is looked at again at this time, and at no other that was set before.
pub(crate) fn set_due(state: &mut State, cause: &str, at: Option<Timestamp>) {
    let timer = TimerKey::SignalDue { cause: cause.to_owned() };
    if let Some(old) = state.signals.due.remove(cause) {
        state.timers.remove(&(old, timer.clone()));
    }
    if let Some(at) = at {
        state.signals.due.insert(cause.to_owned(), at);
        state.timers.insert((at, timer));
    }
}

/// That time has come.
pub(crate) fn due(state: &mut State, step: Step, cause: &str) {
    state.signals.due.remove(cause);
    if cause == builds::VERSION_SKEW {
        builds::due(state);
    }
    refusals::due(state, step, cause);
    state.touched.insert(cause.to_owned());
}
