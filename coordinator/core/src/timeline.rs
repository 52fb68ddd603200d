//! The lines of an incident's timeline.

use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Line of an acknowledgement that ended since its incident got much worse.
pub(crate) const ACKNOWLEDGEMENT_ENDED: &str = "so much worse that the acknowledgement does not hold any more";

/// Where a line of a timeline comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LineKind {
    /// A rule.
    #[default]
    Decision,
    /// A page was asked for, or ended.
    Page,
    /// A person acted.
    Operator,
    /// Something was observed.
    Fact,
}

impl LineKind {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Page => "page",
            Self::Operator => "operator",
            Self::Fact => "fact",
        }
    }
}

/// One line of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineLine {
    /// When.
    pub at: Timestamp,
    /// Entry of the journal.
    pub index: u64,
    /// Where it comes from. Snapshots of older versions do not say.
    #[serde(default)]
    pub kind: LineKind,
    /// What, in words.
    pub text: String,
}
