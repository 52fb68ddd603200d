//! Typed identifiers. A pid is (pid, start time), a file is (device, inode), a boot is its boot id.

use crate::limits::NAME_BYTES_MAX;
use crate::name_text::{NameText, read_text};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a name must not be empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("a name has at most {NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// A character outside `A-Z a-z 0-9 . _ -`, or a first one that is no letter or digit.
    #[error("a name starts with a letter or digit and has only letters, digits, '.', '_' and '-'; found {0:?}")]
    Character(char),
}

fn check_name(text: &str, also: &[char]) -> Result<(), NameError> {
    let first = text.chars().next().ok_or(NameError::Empty)?;
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::Character(first));
    }
    // Nearly every name is told by its bytes; the letters are looked at where one is not.
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        return Ok(());
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c) && !also.contains(c)) {
        Some(bad) => Err(NameError::Character(bad)),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, also: $also:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NameText);

        impl $name {
            /// Checks `text` and wraps it.
            pub fn new(text: impl AsRef<str>) -> Result<Self, NameError> {
                let text = text.as_ref();
                check_name(text, $also)?;
                Ok(Self(NameText::new(text)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                read_text(deserializer, |text| Self::new(text))
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
    };
}

name_type!(
    /// The name in an agent's certificate. The only identity of an agent; host names are evidence.
    AgentName, also: &[]
);
name_type!(
    /// The name in a coordinator's certificate.
    CoordinatorId, also: &[]
);
name_type!(
    /// The fleet that a CA and all its certificates belong to.
    FleetName, also: &[]
);
name_type!(
    /// A service: the unit of diagnosis on a host. `@` and `:` occur in unit names.
    ServiceName, also: &['@', ':']
);

impl AgentName {
    /// Its first bytes as a number, by which many names are searched: names with different heads are ordered as these are.
    #[inline]
    pub fn head(&self) -> u128 {
        self.0.head()
    }
}

impl ServiceName {
    /// The name under which findings about the host itself (memory, OOM kills of unwatched processes) are kept.
    pub fn host() -> Self {
        Self(NameText::new("host"))
    }

    /// True for [`ServiceName::host`].
    pub fn is_host(&self) -> bool {
        self.as_str() == "host"
    }
}

/// The reign of a primary. Ordered by number, then by coordinator, so that two claims are never equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Rises by a takeover to the highest number ever heard plus one.
    pub number: u64,
    /// Who reigns.
    pub coordinator: CoordinatorId,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.number, self.coordinator)
    }
}

/// One life of an agent's spool file. A reverted or restored disk starts a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpoolId(pub uuid::Uuid);

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process on one boot of one host: a pid alone names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the agent's own pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after boot.
    pub start_ticks: u64,
}

/// A file by identity, not by path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// `/proc/sys/kernel/random/boot_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub uuid::Uuid);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(AgentName::new("web-1.example").is_ok());
        assert_eq!(AgentName::new(""), Err(NameError::Empty));
        assert_eq!(AgentName::new("-x"), Err(NameError::Character('-')));
        assert_eq!(AgentName::new("a/b"), Err(NameError::Character('/')));
        assert_eq!(AgentName::new("a".repeat(65)), Err(NameError::TooLong(65)));
        assert!(ServiceName::new("getty@tty1").is_ok());
        assert!(serde_json::from_str::<AgentName>("\"a b\"").is_err());
    }

    #[test]
    fn epochs_are_totally_ordered() {
        let epoch = |number, id: &str| Epoch { number, coordinator: CoordinatorId::new(id).unwrap() };
        assert!(epoch(2, "a") > epoch(1, "b"));
        assert!(epoch(1, "b") > epoch(1, "a"));
    }
}
