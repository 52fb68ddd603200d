//! What a resync changed. The journal holds the agent's whole open set; watchers want to hear of the difference alone.

use muster_common::finding::{Finding, FindingKey};
use muster_common::ids::AgentName;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::state::State;
use std::collections::BTreeMap;

/// The difference that one `OpenSetReceived` made.
#[derive(Debug, Clone, PartialEq)]
pub struct Resynced {
    /// The journal entry.
    pub index: u64,
    /// Whose.
    pub agent: AgentName,
    /// Open now and not before.
    pub opened: Vec<Finding>,
    /// Open before and not now, as they were.
    pub cleared: Vec<Finding>,
}

/// The open set of an agent before its resync.
#[derive(Debug)]
pub(super) struct Before {
    agent: AgentName,
    open: BTreeMap<FindingKey, Finding>,
}

impl Before {
    /// `None` for every other fact.
    pub(super) fn of(state: &State, fact: &Fact) -> Option<Self> {
        let Fact::OpenSetReceived { agent, .. } = fact else { return None };
        Some(Self { agent: agent.clone(), open: open(state, agent) })
    }

    /// Compares with `state`, to which entry `index` was applied meanwhile.
    pub(super) fn compared(self, state: &State, index: u64) -> Resynced {
        let after = open(state, &self.agent);
        let new = |(key, finding): (&FindingKey, &Finding)| (!self.open.contains_key(key)).then(|| finding.clone());
        let opened = after.iter().filter_map(new).collect();
        let cleared = self.open.into_iter().filter(|(key, _)| !after.contains_key(key)).map(|(_, finding)| finding);
        Resynced { index, agent: self.agent, opened, cleared: cleared.collect() }
    }
}

fn open(state: &State, agent: &AgentName) -> BTreeMap<FindingKey, Finding> {
    let record = state.agent(agent);
    let open = record.into_iter().flat_map(|record| record.open.iter());
    open.map(|(key, open)| (key.clone(), open.finding.clone())).collect()
}
