//! What feeds a cause key: conditions, occurrences, a storm, a gathering. Incidents are concluded from it.

use super::{Few, FewSet, Known};
use crate::correlation::Burst;
use crate::flapping::Flaps;
use muster_common::evidence::Grade;
use muster_common::finding::FindingKey;
use muster_common::ids::{AgentName, ServiceName};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};

/// What feeds one cause key: open conditions, occurrences, a storm. Incidents are concluded from it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cause {
    /// Open conditions, by member name.
    pub members: Few<String, Box<MemberRef>>,
    /// How many of them each agent has.
    pub agents: Few<AgentName, u64>,
    /// Members that have not joined the unresolved incident yet.
    pub unjoined: FewSet<String>,
    /// Occurrences since the last incident was resolved, oldest first, bounded.
    pub occurrences: VecDeque<CauseOccurrence>,
    /// A storm of restarts, or of other occurrences. Few causes have one.
    pub storm: Option<Box<Storm>>,
    /// Many incidents gathered into one.
    #[serde(default)]
    pub burst: Option<Box<Burst>>,
    /// When its conditions are looked at again for having lasted: a timer.
    #[serde(default)]
    pub look_at: Option<Timestamp>,
    /// How often it changed between wrong and well lately.
    #[serde(default)]
    pub flaps: Flaps,
    /// Conditions up to this entry were dismissed by hand.
    pub dismissed_index: u64,
    /// Generation of the newest incident; 0 before the first.
    pub generation: u64,
    /// That incident is not resolved, or pages of it are not settled.
    pub active: bool,
}

impl Cause {
    /// What is not forgotten with its incidents.
    pub(crate) fn holds_something(&self) -> bool {
        self.active
            || !self.members.is_empty()
            || !self.occurrences.is_empty()
            || self.storm.is_some()
            || self.burst.is_some()
    }
}

/// A condition by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRef {
    /// Whose.
    pub agent: AgentName,
    /// Which; none for the agent's own silence.
    pub key: Option<FindingKey>,
    /// When it became true, where that is known without looking it up.
    #[serde(skip)]
    pub(crate) opened: Known,
}

impl MemberRef {
    /// That an agent is silent, or another condition that is told by no finding.
    pub(crate) fn of_agent(agent: AgentName) -> Box<Self> {
        Box::new(Self { agent, key: None, opened: Known(None) })
    }
}

/// An occurrence that counts for a cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseOccurrence {
    /// Index of the fact.
    pub index: u64,
    /// Whose, if an agent's.
    pub agent: Option<AgentName>,
    /// Service concerned.
    pub service: Option<ServiceName>,
    /// What.
    pub reason: Reason,
    /// How bad, by whoever told.
    pub severity: Severity,
    /// How sure.
    pub grade: Grade,
    /// One sentence.
    pub summary: String,
    /// When it happened.
    pub observed: Timestamp,
    /// When the coordinator heard of it.
    pub received: Timestamp,
    /// What to do.
    pub next_steps: Vec<String>,
    /// It told that a rollback did not succeed.
    #[serde(default)]
    pub rollback_failed: bool,
}

/// Restarts, or other occurrences, close together by observed time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storm {
    /// First restart of the storm.
    pub began: Timestamp,
    /// Last restart of the storm.
    pub last: Timestamp,
    /// Restarts counted, or other occurrences.
    pub restarts: u64,
    /// Hosts.
    pub agents: BTreeSet<AgentName>,
    /// When the coordinator heard of the last one.
    pub received: Timestamp,
    /// The window after `last` is not over.
    pub active: bool,
    /// Index of the entry that counted last.
    pub index: u64,
    /// Causes on its hosts that are symptoms of it. Empty for a storm on one host.
    #[serde(default)]
    pub symptoms: BTreeSet<String>,
    /// Those of them that fell in the course of it and are not well again: its incident stays open for them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub down: BTreeSet<String>,
}

impl Storm {
    /// It goes on, or what fell in it is not well again.
    pub(crate) fn is_open(&self) -> bool {
        self.active || !self.down.is_empty()
    }

    /// Whether a symptom's trouble is that of the storm: once the storm is over only what fell in it is.
    pub(crate) fn takes(&self, symptom: &str) -> bool {
        self.symptoms.contains(symptom) && (self.active || self.down.contains(symptom))
    }
}
