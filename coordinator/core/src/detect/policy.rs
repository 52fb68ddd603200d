//! Thresholds of the detectors that have no older place in the policy, one table each. What a policy does not name has
//! its default.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// All of them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectPolicy {
    /// Many agents of one place fall silent.
    pub mass_place: MassPlacePolicy,
    /// OOM kills.
    pub oom_storm: OomStormPolicy,
    /// The same reason from many hosts or sources.
    pub reason_widespread: WidespreadPolicy,
    /// Hosts short of memory at once.
    pub memory_group: MemoryGroupPolicy,
    /// The same database damaged on several hosts.
    pub corruption_spread: CorruptionPolicy,
    /// The same probe blind on many hosts.
    pub probe_blind: ProbeBlindPolicy,
    /// One agent with more troubles than incidents are opened for.
    pub agent_flood: AgentFloodPolicy,
}

/// When the silent agents of one place (a label's value, a subnet) are one matter, although the fleet goes on. Windows
/// are those of the whole fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MassPlacePolicy {
    /// At least this many agents of the place ...
    pub agents_min: u32,
    /// ... and this share of those of it that were heard.
    pub share: f64,
}

impl Default for MassPlacePolicy {
    fn default() -> Self {
        Self { agents_min: 3, share: 0.5 }
    }
}

/// When OOM kills are one matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OomStormPolicy {
    /// Kills counted together, by the time they were observed.
    pub window: Duration,
    /// Hosts with a kill within `window`.
    pub hosts: u32,
    /// Kills of one service within `window`, wherever.
    pub kills: u32,
}

impl Default for OomStormPolicy {
    fn default() -> Self {
        Self { window: Duration::from_secs(600), hosts: 3, kills: 10 }
    }
}

/// When the same reason is widespread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WidespreadPolicy {
    /// Occurrences counted together, by the time they were observed.
    pub window: Duration,
    /// Hosts that tell of it within `window`.
    pub hosts: u32,
    /// Services on hosts that tell of it within `window`.
    pub sources: u32,
    /// This share of all agents is the whole fleet.
    pub fleet_share: f64,
    /// Without a pause of a `window` for so long is prolonged.
    pub prolonged: Duration,
}

impl Default for WidespreadPolicy {
    fn default() -> Self {
        let (window, prolonged) = (Duration::from_secs(600), Duration::from_secs(1800));
        Self { window, hosts: 5, sources: 8, fleet_share: 0.3, prolonged }
    }
}

/// When hosts short of memory are one matter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryGroupPolicy {
    /// Hosts short of memory at once, or ...
    pub hosts: u32,
    /// ... at least this many of one place (a label's value, a subnet) ...
    pub place_hosts_min: u32,
    /// ... and this share of its agents.
    pub place_share: f64,
}

impl Default for MemoryGroupPolicy {
    fn default() -> Self {
        Self { hosts: 10, place_hosts_min: 3, place_share: 0.5 }
    }
}

/// When damage spreads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CorruptionPolicy {
    /// Hosts on which a service's database of the same file name is damaged at once.
    pub hosts: u32,
    /// Damage so soon after a change of its service is taken for the change's, on the first host already.
    pub after_change: Duration,
}

impl Default for CorruptionPolicy {
    fn default() -> Self {
        Self { hosts: 2, after_change: Duration::from_secs(3600) }
    }
}

/// How much of one agent is told one by one, so that a lying or very ill host cannot drown the others' pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentFloodPolicy {
    /// Unresolved incidents of one agent: what it tells beyond is gathered in one.
    pub incidents: u32,
}

impl Default for AgentFloodPolicy {
    fn default() -> Self {
        Self { incidents: 32 }
    }
}

/// When blind probes are one matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeBlindPolicy {
    /// Hosts on which the same probe of the same service is blind at once.
    pub hosts: u32,
}

impl Default for ProbeBlindPolicy {
    fn default() -> Self {
        Self { hosts: 5 }
    }
}
