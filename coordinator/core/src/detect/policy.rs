//! Thresholds of the detectors, one table each. Part of the policy; what an older policy does not name has its default.

use serde::{Deserialize, Serialize};

/// Of all detectors that have no table of their own in the policy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectPolicy {}
