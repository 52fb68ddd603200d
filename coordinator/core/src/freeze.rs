//! Freezes: "do not dispatch new work" on some hosts, until lifted or over. Agents are told of those that concern them
//! and answer `preflight` by them; a freeze pages nobody and silences nothing.

use crate::entry::TimerKey;
use crate::state::State;
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Freezes at once; an operator lifts some before there may be more.
pub const FREEZES_MAX: usize = 64;

/// Whom it concerns: everybody who has every label and, where names are given, one of the names. Empty: the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FreezeScope {
    /// Names of agents.
    pub agents: BTreeSet<AgentName>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl FreezeScope {
    /// Whether it concerns this agent.
    ///
    /// ```
    /// use muster_coordinator_core::freeze::FreezeScope;
    /// let web = "web-1".parse().unwrap();
    /// assert!(FreezeScope::default().concerns(&web, &Default::default()), "the whole fleet");
    /// let zone_a = FreezeScope { labels: [("zone".into(), "a".into())].into(), ..FreezeScope::default() };
    /// assert!(!zone_a.concerns(&web, &[("zone".into(), "b".into())].into()));
    /// ```
    pub fn concerns(&self, agent: &AgentName, labels: &BTreeMap<String, String>) -> bool {
        let named = self.agents.is_empty() || self.agents.contains(agent);
        named && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// One freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// `FRZ-N`, with the journal index of its fact.
    pub id: String,
    /// Whom it concerns.
    pub scope: FreezeScope,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Since when, log time.
    pub created: Timestamp,
    /// Until when; `None`: until it is lifted.
    pub expires: Option<Timestamp>,
}

/// The id of the freeze that the fact at `index` set.
pub fn id(index: u64) -> String {
    format!("FRZ-{index}")
}

impl State {
    /// All freezes, oldest first.
    pub fn freezes(&self) -> impl Iterator<Item = &Freeze> {
        self.freezes.values()
    }
}

pub(crate) fn set(state: &mut State, index: u64, freeze: Freeze) {
    if state.freezes.len() >= FREEZES_MAX {
        return;
    }
    if let Some(expires) = freeze.expires {
        state.timers.insert((expires, TimerKey::FreezeOver { index }));
    }
    state.freezes.insert(index, freeze);
}

/// Lifted or over; also when it is both, or was never.
pub(crate) fn end(state: &mut State, index: u64) {
    if let Some(expires) = state.freezes.remove(&index).and_then(|freeze| freeze.expires) {
        state.timers.remove(&(expires, TimerKey::FreezeOver { index }));
    }
}
