//! How bad it is: `sev0` (complete outage) to `sev4` (for the audit trail).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Ordered by badness: `Sev0` is the greatest, so `max` picks the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Complete outage.
    Sev0,
    /// Data at risk or most of the fleet affected.
    Sev1,
    /// A service is down.
    Sev2,
    /// Degraded; needs a person today.
    Sev3,
    /// Worth knowing; never pages.
    Sev4,
}

impl Severity {
    /// All, worst first.
    pub const ALL: [Self; 5] = [Self::Sev0, Self::Sev1, Self::Sev2, Self::Sev3, Self::Sev4];

    /// One step worse; the worst stays what it is.
    pub const fn worse(self) -> Self {
        match self {
            Self::Sev4 => Self::Sev3,
            Self::Sev3 => Self::Sev2,
            Self::Sev2 => Self::Sev1,
            Self::Sev1 | Self::Sev0 => Self::Sev0,
        }
    }

    /// 0 (worst) to 4.
    pub const fn level(self) -> u8 {
        match self {
            Self::Sev0 => 0,
            Self::Sev1 => 1,
            Self::Sev2 => 2,
            Self::Sev3 => 3,
            Self::Sev4 => 4,
        }
    }

    /// The severity of a level, 0 to 4.
    pub fn from_level(level: u8) -> Option<Self> {
        Self::ALL.get(usize::from(level)).copied()
    }

    /// `"sev2"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sev0 => "sev0",
            Self::Sev1 => "sev1",
            Self::Sev2 => "sev2",
            Self::Sev3 => "sev3",
            Self::Sev4 => "sev4",
        }
    }
}

impl PartialOrd for Severity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Severity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.level().cmp(&self.level())
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Severity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|severity| severity.as_str() == text)
            .ok_or_else(|| format!("expected sev0 to sev4, found {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_is_greatest() {
        assert_eq!(Severity::Sev1.max(Severity::Sev3), Severity::Sev1);
        for severity in Severity::ALL {
            assert_eq!(Severity::from_level(severity.level()), Some(severity));
            assert_eq!(severity.as_str().parse(), Ok(severity));
        }
        assert_eq!(Severity::from_level(5), None);
    }
}
