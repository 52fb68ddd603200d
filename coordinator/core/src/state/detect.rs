//! What detectors keep in State: see [`crate::detect`], which looks at it.

use super::Keyed;
use crate::detect::{AgentStorms, Place, Window};
use crate::entry::Disconnect;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Over all hosts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Detect {
    /// Occurrences that count together, by the cause key of their group; at most [`crate::detect::WINDOWS_MAX`].
    #[serde(default)]
    pub(crate) windows: BTreeMap<String, Window>,
    /// The agents of each label value and subnet; at most [`crate::detect::PLACES_MAX`].
    #[serde(default)]
    pub(crate) places: Keyed<Place, 2>,
    /// Places that were not counted for lack of room.
    #[serde(default)]
    pub(crate) places_dropped: u64,
}

/// Of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AgentWatch {
    /// How its last stream ended.
    #[serde(default)]
    pub left: Option<Disconnect>,
    /// It came back from its last silence with another boot id.
    #[serde(default)]
    pub rebooted_while_silent: bool,
    /// The groups that count its causes.
    #[serde(default)]
    pub(crate) storms: AgentStorms,
}
