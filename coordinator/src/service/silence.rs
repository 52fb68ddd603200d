//! `SilenceService`: what operators hold back.

use super::caller::{ACTORS, READERS, allow};
use super::status_of;
use crate::runtime::{Handle, View};
use muster_common::ids::AgentName;
use muster_common::limits::{LABEL_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX, SUMMARY_BYTES_MAX, clip};
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::freeze::{FREEZES_MAX, Freeze, FreezeScope, id};
use muster_proto::convert::{bounded, timestamp_to_wire};
use muster_proto::v1;
use muster_proto::v1::set_freeze_request::Change;
use muster_proto::v1::silence_service_server::SilenceService;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Names in one scope; beyond it a label says it better.
const SCOPE_AGENTS_MAX: usize = 256;
/// A freeze without end is lifted by hand; one that ends by itself does so within a year.
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);

/// Serves operators.
#[derive(Debug, Clone)]
pub struct SilenceApi {
    handle: Handle,
}

impl SilenceApi {
    /// Asks the loop behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn freezes(&self) -> Result<Vec<Freeze>, Status> {
        let read = |view: &View<'_>| view.state.freezes().cloned().collect();
        self.handle.query(read).await.map_err(|error| status_of(&error))
    }

    async fn submit(&self, fact: Fact) -> Result<u64, Status> {
        Ok(self.handle.submit(fact).await.map_err(|error| status_of(&error))?.trace)
    }
}

#[tonic::async_trait]
impl SilenceService for SilenceApi {
    async fn set_freeze(
        &self,
        request: Request<v1::SetFreezeRequest>,
    ) -> Result<Response<v1::SetFreezeResponse>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let known = self.freezes().await?;
        let freeze = match request.into_inner().change {
            Some(Change::Freeze(new)) => {
                if known.len() >= FREEZES_MAX {
                    return Err(Status::resource_exhausted(format!(
                        "{FREEZES_MAX} freezes hold already: lift some first"
                    )));
                }
                let (scope, reason) =
                    (scope(new.scope.unwrap_or_default())?, bounded("reason", &new.reason, SUMMARY_BYTES_MAX)?);
                if reason.trim().is_empty() {
                    return Err(Status::invalid_argument(
                        "reason is empty: say why, it is told to everybody who is stopped",
                    ));
                }
                let ttl = new.ttl.map(ttl).transpose()?;
                let now = self.handle.now();
                let expires = ttl.map(|ttl| now + ttl);
                let fact = Fact::FreezeSet { by, scope, reason, expires };
                let index = self.submit(fact).await?;
                let set = self.freezes().await?.into_iter().find(|freeze| freeze.id == id(index));
                set.ok_or_else(|| Status::resource_exhausted("too many freezes were set at once: lift some first"))?
            }
            Some(Change::LiftId(lifted)) => {
                let lifted = clip(&lifted, NAME_BYTES_MAX);
                let known = known.into_iter().find(|freeze| freeze.id == lifted);
                let freeze = known.ok_or_else(|| {
                    Status::not_found(format!("no freeze {lifted:?} holds: see ListFreezes (musterctl freeze list)"))
                })?;
                let index = freeze.id.trim_start_matches("FRZ-").parse().map_err(|_| Status::internal("not an id"))?;
                self.submit(Fact::FreezeLifted { by, index }).await?;
                freeze
            }
            None => {
                return Err(Status::invalid_argument("nothing is asked for: give a freeze, or the id of one to lift"));
            }
        };
        Ok(Response::new(v1::SetFreezeResponse { freeze: Some(wire(&freeze)) }))
    }

    async fn list_freezes(
        &self,
        request: Request<v1::ListFreezesRequest>,
    ) -> Result<Response<v1::ListFreezesResponse>, Status> {
        allow(&request, READERS)?;
        let freezes = self.freezes().await?.iter().map(wire).collect();
        Ok(Response::new(v1::ListFreezesResponse { freezes }))
    }

    async fn create_silence(
        &self,
        _request: Request<v1::CreateSilenceRequest>,
    ) -> Result<Response<v1::Silence>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn list_silences(
        &self,
        _request: Request<v1::ListSilencesRequest>,
    ) -> Result<Response<v1::ListSilencesResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn expire_silence(
        &self,
        _request: Request<v1::ExpireSilenceRequest>,
    ) -> Result<Response<v1::Silence>, Status> {
        Err(Status::unimplemented("not served yet"))
    }
}

/// As it is told to operators and to the agents it concerns.
pub(super) fn wire(freeze: &Freeze) -> v1::Freeze {
    let scope = v1::FreezeScope {
        agents: freeze.scope.agents.iter().map(ToString::to_string).collect(),
        labels: freeze.scope.labels.clone().into_iter().collect(),
    };
    v1::Freeze {
        id: freeze.id.clone(),
        scope: Some(scope),
        reason: freeze.reason.clone(),
        created_by: freeze.by.clone(),
        create_time: Some(timestamp_to_wire(freeze.created)),
        expire_time: freeze.expires.map(timestamp_to_wire),
    }
}

fn scope(scope: v1::FreezeScope) -> Result<FreezeScope, Status> {
    if scope.agents.len() > SCOPE_AGENTS_MAX || scope.labels.len() > LABELS_MAX {
        return Err(Status::invalid_argument(format!(
            "a scope has at most {SCOPE_AGENTS_MAX} agents and {LABELS_MAX} labels"
        )));
    }
    let agents = scope.agents.iter().map(|name| {
        AgentName::new(clip(name, NAME_BYTES_MAX + 1)).map_err(|error| Status::invalid_argument(error.to_string()))
    });
    let labels = scope.labels.iter().map(|(key, value)| {
        Ok::<_, Status>((
            bounded("a label's key", key, LABEL_BYTES_MAX)?,
            bounded("a label's value", value, LABEL_BYTES_MAX)?,
        ))
    });
    Ok(FreezeScope { agents: agents.collect::<Result<_, _>>()?, labels: labels.collect::<Result<_, _>>()? })
}

fn ttl(ttl: prost_types::Duration) -> Result<Duration, Status> {
    let length = Duration::try_from(ttl).ok().filter(|length| !length.is_zero() && *length <= TTL_MAX);
    length.ok_or_else(|| Status::invalid_argument("ttl is not between a moment and a year"))
}
