//! What leaves the house: one message to one receiver about one incident.

use muster_common::evidence::Grade;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Index of the journal entry that requested the page: unique over the journal's life, the same on a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageId(pub u64);

/// What the receiver should do with the deduplication key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageAction {
    /// Someone must look.
    Trigger,
    /// Someone looks.
    Acknowledge,
    /// It is over.
    Resolve,
}

impl PageAction {
    /// The word PagerDuty uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Acknowledge => "acknowledge",
            Self::Resolve => "resolve",
        }
    }
}

/// Everything a receiver needs; rendered to its wire form when it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Name of the receiver.
    pub receiver: String,
    /// Trigger, acknowledge or resolve.
    pub action: PageAction,
    /// Hash of fleet, cause key, generation and re-page count, hexadecimal. Holds no epoch, no coordinator, no display
    /// number, so that two coordinators agree without talking.
    pub dedup_key: String,
    /// `INC-YYYYMMDD-NNNN`, for people.
    pub incident: String,
    /// Cause key of the incident.
    pub cause_key: String,
    /// How bad.
    pub severity: Severity,
    /// What is wrong.
    pub reason: Reason,
    /// How sure.
    pub grade: Grade,
    /// One sentence.
    pub title: String,
    /// Why this pages: rule, values, thresholds.
    pub why: String,
    /// What was seen, one line each, most telling first; bounded.
    pub details: Vec<String>,
    /// What to do, in order.
    pub next_steps: Vec<String>,
    /// Hosts concerned, bounded; `n_agents` has the whole count.
    pub agents: Vec<String>,
    /// How many hosts are concerned.
    pub n_agents: u64,
    /// Services concerned.
    pub services: Vec<String>,
    /// When what it is about began.
    pub began: Timestamp,
    /// When the page was requested.
    pub requested: Timestamp,
    /// How much later than it began the coordinator heard of it, where that is more than a few heartbeats.
    pub late_by_ms: Option<u64>,
}
