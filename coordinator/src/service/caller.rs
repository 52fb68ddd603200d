//! Who calls, proven by the connection: the certificate on the TCP port, the peer's uid on the Unix socket.
//!
//! Invariant: no field of any message is ever taken for an identity (law 4).

use muster_common::identity::{Identity, Role};
use muster_common::ids::{AgentName, CoordinatorId};
use tonic::{Request, Status};

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub who: Who,
    /// Where from, for people.
    pub address: String,
}

/// What proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// A certificate of this fleet's CA.
    Certificate(Identity),
    /// The Unix socket; root or the coordinator's own user.
    Local {
        /// User id.
        uid: u32,
    },
}

impl Caller {
    /// What the caller may do.
    pub fn role(&self) -> Role {
        match &self.who {
            Who::Certificate(identity) => identity.role,
            Who::Local { .. } => Role::Operator,
        }
    }

    /// The name under which what the caller does is journaled.
    pub fn name(&self) -> String {
        match &self.who {
            Who::Certificate(identity) => identity.name.clone(),
            Who::Local { uid } => format!("local:{uid}"),
        }
    }

    /// The agent's name, if it is one.
    pub fn agent(&self) -> Option<AgentName> {
        match &self.who {
            Who::Certificate(identity) if identity.role == Role::Agent => AgentName::new(identity.name.as_str()).ok(),
            _ => None,
        }
    }

    /// The coordinator's id, if it is one.
    pub fn coordinator(&self) -> Option<CoordinatorId> {
        match &self.who {
            Who::Certificate(identity) if identity.role == Role::Coordinator => {
                CoordinatorId::new(identity.name.as_str()).ok()
            }
            _ => None,
        }
    }
}

/// Who sent this request.
pub fn caller_of<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| {
        Status::unauthenticated("this connection proves no identity: connect with a certificate of the fleet")
    })
}

/// Lets the caller pass when its role is among `allowed`.
pub fn allow<T>(request: &Request<T>, allowed: &[Role]) -> Result<Caller, Status> {
    let caller = caller_of(request)?;
    if allowed.contains(&caller.role()) {
        return Ok(caller);
    }
    let roles: Vec<&str> = allowed.iter().map(|role| role.as_str()).collect();
    Err(Status::permission_denied(format!(
        "{} has the role {}, this call needs {}: use such a certificate (muster-coordinator ca issue --role {})",
        caller.name(),
        caller.role(),
        roles.join(" or "),
        roles.first().copied().unwrap_or("operator"),
    )))
}

/// Those who may read.
pub const READERS: &[Role] = &[Role::Viewer, Role::Operator, Role::Coordinator];
/// Those who may act.
pub const ACTORS: &[Role] = &[Role::Operator];
/// Those who may follow the journal.
pub const FOLLOWERS: &[Role] = &[Role::Coordinator];
