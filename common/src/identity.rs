//! Who a certificate says its holder is: a URI subject alternative name `muster://FLEET/ROLE/NAME`.
//!
//! Identity comes from the certificate and never from a message field (law 4).

use crate::ids::{FleetName, NameError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the holder of a certificate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reports about its own host; nothing else.
    Agent,
    /// Reads and acts.
    Operator,
    /// Reads.
    Viewer,
    /// Serves agents and operators, follows and promotes.
    Coordinator,
}

impl Role {
    /// The word in the URI and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
            Self::Coordinator => "coordinator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        [Self::Agent, Self::Operator, Self::Viewer, Self::Coordinator]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| IdentityError::Role(crate::limits::clip(text, 64)))
    }
}

/// Why a URI is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form `muster://FLEET/ROLE/NAME`.
    #[error("expected muster://FLEET/ROLE/NAME, found {0:?}")]
    Form(String),
    /// An unknown role.
    #[error("expected role agent, operator, viewer or coordinator, found {0:?}")]
    Role(String),
    /// A fleet or name with characters that are not allowed.
    #[error("bad name in the identity")]
    Name(#[from] NameError),
    /// No `muster:` URI, or more than one.
    #[error("the certificate has {0} muster:// names, expected exactly one")]
    Count(usize),
    /// Not a certificate that can be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
}

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The fleet whose CA signed it.
    pub fleet: FleetName,
    /// What it may do.
    pub role: Role,
    /// The name within fleet and role; checked like every name.
    pub name: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "muster://{}/{}/{}", self.fleet, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;
    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(crate::limits::clip(uri, 200));
        let rest = uri.strip_prefix("muster://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        let (Some(fleet), Some(role), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        Ok(Self { fleet: FleetName::new(fleet)?, role: role.parse()?, name: crate::ids::AgentName::new(name)?.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let uri = "muster://prod/agent/web-1";
        let identity: Identity = uri.parse().unwrap();
        assert_eq!(identity.role, Role::Agent);
        assert_eq!(identity.to_string(), uri);
        for bad in ["", "muster://prod/agent", "muster://prod/root/x", "muster://prod/agent/a/b", "https://a/b/c"] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
