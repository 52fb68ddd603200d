//! Who calls, proven by the connection: the certificate on the TCP port, the peer's uid on the Unix socket.
//!
//! Invariant: no field of any message is ever taken for an identity (law 4). Whoever shares the socket's account may say who
//! it is that uses it (`muster-as`): a word for people that stands beside the proven name, and allows nothing.

use muster_common::identity::{Identity, Role};
use muster_common::ids::{AgentName, CoordinatorId};
use muster_common::limits::NAME_BYTES_MAX;
use nix::unistd::{Uid, User};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// Header in which somebody on the socket says who uses its account.
const SAID: &str = "muster-as";

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
            Who::Local { uid } => format!("local:{}", login(*uid)),
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

/// A caller whose role is enough, and the word that it gave for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    caller: Caller,
    said: Option<String>,
}

impl Allowed {
    /// The name under which what the caller does is journaled: `ann` of a certificate, `local:root`, `local:root (ann)`.
    pub fn name(&self) -> String {
        match &self.said {
            Some(said) => format!("{} ({said})", self.caller.name()),
            None => self.caller.name(),
        }
    }
}

impl std::ops::Deref for Allowed {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// A user's name, or its number where it has none.
fn login(uid: u32) -> String {
    let known = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

/// What a caller on the socket says of itself; a certificate says more than any word.
fn said(caller: &Caller, metadata: &MetadataMap) -> Result<Option<String>, Status> {
    let Some(word) = metadata.get(SAID).filter(|_| matches!(caller.who, Who::Local { .. })) else { return Ok(None) };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    match word.to_str() {
        Ok(word) if !word.is_empty() && word.len() <= NAME_BYTES_MAX && word.chars().all(plain) => {
            Ok(Some(word.to_owned()))
        }
        _ => Err(Status::invalid_argument(format!(
            "{SAID} is no name: give one of at most {NAME_BYTES_MAX} letters, digits and . _ - @ +"
        ))),
    }
}

/// Who sent this request.
pub fn caller_of<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| {
        Status::unauthenticated("this connection proves no identity: connect with a certificate of the fleet")
    })
}

/// Lets the caller pass when its role is among `allowed`.
pub fn allow<T>(request: &Request<T>, allowed: &[Role]) -> Result<Allowed, Status> {
    let caller = caller_of(request)?;
    if allowed.contains(&caller.role()) {
        let said = said(&caller, request.metadata())?;
        return Ok(Allowed { caller, said });
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

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::ids::FleetName;

    fn local(uid: u32, said: Option<&'static str>) -> Result<String, Status> {
        let mut request = Request::new(());
        request.extensions_mut().insert(Caller { who: Who::Local { uid }, address: "unix".to_owned() });
        if let Some(said) = said {
            request.metadata_mut().insert(SAID, said.parse().unwrap());
        }
        allow(&request, ACTORS).map(|caller| caller.name())
    }

    #[test]
    fn a_person_on_the_socket_has_a_users_name_and_may_say_another() {
        assert_eq!(local(0, None).unwrap(), "local:root");
        assert_eq!(local(0, Some("ann")).unwrap(), "local:root (ann)");
        // Nobody's number.
        assert_eq!(local(4_000_000_123, Some("a.b@c")).unwrap(), "local:4000000123 (a.b@c)");
        for wrong in ["", "ann smith", "x)", "<b>"] {
            let refused = local(0, Some(wrong)).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{wrong:?}: {refused}");
        }
    }

    #[test]
    fn a_word_gives_no_role_and_does_not_change_a_certificates_name() {
        let mut request = Request::new(());
        let identity = Identity { fleet: FleetName::new("prod").unwrap(), role: Role::Viewer, name: "val".to_owned() };
        request.extensions_mut().insert(Caller { who: Who::Certificate(identity), address: "x".to_owned() });
        request.metadata_mut().insert(SAID, "root".parse().unwrap());
        assert_eq!(allow(&request, READERS).unwrap().name(), "val");
        assert_eq!(allow(&request, ACTORS).unwrap_err().code(), tonic::Code::PermissionDenied);
    }
}
