//! `FailoverService`: how this coordinator stands, and the command that makes it the primary.
//!
//! Invariant: nothing is changed before every check has been made; what was overridden is in the journal.

use super::caller::{ACTORS, READERS, allow};
use super::status_of;
use crate::failover::{Failover, Following, peers};
use crate::runtime::{CoordinatorRole, Standing, View};
use muster_common::chain::Chain;
use muster_common::epoch_proof;
use muster_common::ids::CoordinatorId;
use muster_common::limits::NOTE_BYTES_MAX;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::failover::{Check, OldPrimary, PromotionFacts, promotion_checks};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::failover_service_server::FailoverService;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Serves operators, and other coordinators that ask for a higher epoch.
#[derive(Debug)]
pub struct FailoverApi {
    failover: Failover,
}

impl FailoverApi {
    /// For the coordinator of `failover`.
    pub fn new(failover: Failover) -> Self {
        Self { failover }
    }
}

#[tonic::async_trait]
impl FailoverService for FailoverApi {
    async fn get_failover_status(
        &self,
        request: Request<v1::GetFailoverStatusRequest>,
    ) -> Result<Response<v1::GetFailoverStatusResponse>, Status> {
        allow(&request, READERS)?;
        Ok(Response::new(self.status()))
    }

    async fn promote(&self, request: Request<v1::PromoteRequest>) -> Result<Response<v1::PromoteResponse>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let request = request.into_inner();
        let reason = convert::bounded("reason", &request.reason, NOTE_BYTES_MAX)?;
        let Ok(_alone) = self.failover.promotion().try_lock() else {
            return Err(Status::aborted("another promotion of this coordinator is running: look at failover status"));
        };
        let facts = self.gather(&request.old_primary).await?;
        let overridden = judge(&promotion_checks(&facts), request.force)?;
        let epoch = facts.reign.next_epoch(&facts.me);
        let epoch = epoch.ok_or_else(|| Status::failed_precondition("there is no next epoch"))?;
        let proof = epoch_proof::sign(self.failover.credentials(), &epoch)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        let from = facts.named.clone();
        let fact =
            Fact::TookOver { epoch: epoch.clone(), from, by: by.clone(), reason, overridden: overridden.clone() };
        // Counted before: once this coordinator reigns, its pagers are quick.
        let pages_pending = self.outlook().await?.pages_pending;
        tracing::warn!(%epoch, by, ?overridden, "taking over");
        let committed = self.failover.handle().promote(proof, fact).await.map_err(|error| status_of(&error))?;
        let response = v1::PromoteResponse {
            epoch: Some(convert::epoch_to_wire(&epoch)),
            journal_index: committed.head.index,
            overridden,
            pages_pending,
            ..self.outlook().await?
        };
        Ok(Response::new(response))
    }
}

impl FailoverApi {
    fn status(&self) -> v1::GetFailoverStatusResponse {
        let handle = self.failover.handle();
        let standing = handle.standing().borrow().clone();
        let head = *handle.head().borrow();
        let is_primary = standing.role == CoordinatorRole::Primary;
        let is_standby = standing.role == CoordinatorRole::Standby;
        let following = if is_standby { self.failover.following() } else { Following::default() };
        let standbys = handle.followers().into_iter().filter(|_| is_primary).map(|(id, follower)| v1::Standby {
            coordinator_id: id.to_string(),
            journal_index: follower.index,
            last_heard: Some(convert::timestamp_to_wire(follower.last_heard)),
        });
        v1::GetFailoverStatusResponse {
            role: role_to_wire(standing.role).into(),
            coordinator_id: standing.id.to_string(),
            epoch: standing.epoch().as_ref().map(convert::epoch_to_wire),
            highest_epoch: standing.highest.as_ref().map(convert::epoch_proof_to_wire),
            journal_index: head.index,
            journal_hash: head.hash.to_string(),
            follows: self.failover.config().follow.clone().filter(|_| is_standby).unwrap_or_default(),
            following: following.connected,
            primary_journal_index: following.primary_index.unwrap_or_default(),
            last_heard_primary: following.last_heard.map(convert::timestamp_to_wire),
            lag: lag(&following, head.index, handle.now()).map(convert::duration_to_wire),
            standbys: standbys.collect(),
            problems: problems(&standing, &following, self.failover.config().follow.is_some()),
        }
    }

    /// Everything the checks ask for. Changes nothing.
    async fn gather(&self, named: &str) -> Result<PromotionFacts, Status> {
        let named = match named {
            "" => None,
            name => Some(CoordinatorId::new(name).map_err(|error| {
                Status::invalid_argument(format!("old_primary is not a name: {error}; see failover status"))
            })?),
        };
        let handle = self.failover.handle();
        let old_primary = self.ask_old_primary().await;
        // After the question, which takes time: the standing is as of now.
        let standing = handle.standing().borrow().clone();
        let store_problem = handle.query(store_problem).await.map_err(|error| status_of(&error))?;
        Ok(PromotionFacts {
            reign: standing.reign(),
            me: standing.id,
            named,
            old_primary,
            own_index: handle.head().borrow().index,
            primary_index: self.failover.following().primary_index,
            store_problem,
        })
    }

    async fn ask_old_primary(&self) -> OldPrimary {
        let Some(endpoint) = &self.failover.config().follow else { return OldPrimary::NotAsked };
        match peers::ask(endpoint, self.failover.credentials()).await {
            Ok(status) if status.role() == v1::CoordinatorRole::Primary => OldPrimary::Reigns,
            Ok(_) => OldPrimary::Resigned,
            Err(problem) => OldPrimary::Gone(problem),
        }
    }

    /// What the new primary begins with, for the person who promoted it.
    async fn outlook(&self) -> Result<v1::PromoteResponse, Status> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.failover
            .handle()
            .query(move |view| v1::PromoteResponse {
                agents_known: count(view.state.n_agents()),
                rehear_until: view.state.rehear_until().map(convert::timestamp_to_wire),
                open_incidents: count(view.state.incidents().filter(|incident| incident.is_unresolved()).count()),
                pages_pending: count(view.state.pending_pages().count()),
                ..Default::default()
            })
            .await
            .map_err(|error| status_of(&error))
    }
}

/// The checks that were not met and are overridden; an error when one may not be, or `force` is not set.
fn judge(checks: &[Check], force: bool) -> Result<Vec<String>, Status> {
    let unmet: Vec<&Check> = checks.iter().filter(|check| !check.is_met()).collect();
    let may = unmet.iter().all(|check| force && check.can_force);
    if may {
        return Ok(unmet.iter().map(ToString::to_string).collect());
    }
    let advice = match unmet.iter().all(|check| check.can_force) {
        true => "put it right, or promote with force and accept the risk",
        false => "put it right; force does not override this",
    };
    let list: Vec<String> = checks.iter().map(|check| format!("\n  {check}")).collect();
    Err(Status::failed_precondition(format!("not promoted: {advice}{}", list.concat())))
}

/// Reads the newest entry back; `None` when it is what it should be.
fn store_problem(view: &View<'_>) -> Option<String> {
    let head = view.store.head();
    if head.index == 0 {
        return None;
    }
    match view.store.entries_from(head.index, 1) {
        Ok(entries) => match entries.first() {
            Some(entry) if entry.hash != head.hash => Some("the newest entry is not what was written".to_owned()),
            _ => None,
        },
        Err(error) => Some(Chain(&error).to_string()),
    }
}

fn lag(following: &Following, own_index: u64, now: Timestamp) -> Option<Duration> {
    let primary = following.primary_index?;
    if following.connected && own_index >= primary {
        return Some(Duration::ZERO);
    }
    following.in_sync_at.map(|at| now.since(at))
}

fn problems(standing: &Standing, following: &Following, follows: bool) -> Vec<String> {
    let mut problems: Vec<String> = following.problem.iter().cloned().collect();
    if standing.role == CoordinatorRole::Standby && !follows {
        problems.push("a standby that follows nobody: set [failover] follow".to_owned());
    }
    if standing.role == CoordinatorRole::Fenced
        && let Some(highest) = standing.highest_epoch()
    {
        problems.push(format!("{highest} reigns: set [failover] follow to that coordinator and restart this one"));
    }
    problems
}

fn role_to_wire(role: CoordinatorRole) -> v1::CoordinatorRole {
    match role {
        CoordinatorRole::Primary => v1::CoordinatorRole::Primary,
        CoordinatorRole::Standby => v1::CoordinatorRole::Standby,
        CoordinatorRole::Fenced => v1::CoordinatorRole::Fenced,
    }
}
