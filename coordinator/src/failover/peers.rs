//! Talking to the other coordinators while this one reigns: asks them for a higher epoch, and tells an old primary
//! that it is one.
//!
//! Agents pass epochs on too; this is the way that does not wait for them.

use super::client::connect;
use super::{Failover, wall_unix_ms};
use crate::config::FailoverConfig;
use crate::runtime::CoordinatorRole;
use futures_util::future::join_all;
use muster_common::chain::Chain;
use muster_common::epoch_proof::{self, EpochProof};
use muster_common::tls::Credentials;
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::failover_service_client::FailoverServiceClient;
use muster_proto::v1::replication_service_client::ReplicationServiceClient;
use std::time::Duration;

/// A peer that does not answer by then is not waited for.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two rounds of questions: short enough that an old primary that wakes up is fenced before it has paged much,
/// long enough to cost nothing.
const ROUND: Duration = Duration::from_secs(5);

/// The coordinators to talk to: the one to follow, and the peers.
pub fn endpoints(config: &FailoverConfig) -> Vec<String> {
    let mut endpoints: Vec<String> = config.follow.iter().chain(&config.peers).cloned().collect();
    endpoints.sort();
    endpoints.dedup();
    endpoints
}

/// Asks one coordinator how it stands.
pub async fn ask(endpoint: &str, credentials: &Credentials) -> Result<v1::GetFailoverStatusResponse, String> {
    let question = async {
        let channel = connect(endpoint, credentials).await.map_err(|error| Chain(&error).to_string())?;
        let answer = FailoverServiceClient::new(channel).get_failover_status(v1::GetFailoverStatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| format!("{endpoint} refused: {}", status.message()))
    };
    let late = || format!("{endpoint} did not answer within {} s", ASK_TIMEOUT.as_secs());
    tokio::time::timeout(ASK_TIMEOUT, question).await.unwrap_or_else(|_| Err(late()))
}

/// Asks all of them at once, before this coordinator begins, for the highest epoch they can prove. Who does not answer
/// is named and not waited for: with every peer down, somebody must be able to start.
pub async fn ask_all(config: &FailoverConfig, credentials: &Credentials) -> Option<EpochProof> {
    let endpoints = endpoints(config);
    let answers = join_all(endpoints.iter().map(|endpoint| ask(endpoint, credentials))).await;
    let mut highest: Option<EpochProof> = None;
    for (endpoint, answer) in endpoints.iter().zip(answers) {
        let proof = answer.and_then(|status| believe(&status, credentials));
        match proof {
            Ok(Some(proof)) if highest.as_ref().is_none_or(|highest| highest.epoch < proof.epoch) => {
                highest = Some(proof);
            }
            Ok(_) => {}
            Err(problem) => {
                tracing::warn!(endpoint, problem, "cannot ask for a higher epoch; going on without its answer");
            }
        }
    }
    highest
}

fn believe(status: &v1::GetFailoverStatusResponse, credentials: &Credentials) -> Result<Option<EpochProof>, String> {
    let Some(wire) = &status.highest_epoch else { return Ok(None) };
    let proof = convert::epoch_proof(wire).map_err(|error| error.to_string())?;
    epoch_proof::verify(&proof, credentials.roots(), credentials.fleet(), wall_unix_ms())
        .map_err(|error| error.to_string())?;
    Ok(Some(proof))
}

/// Asks and tells while this coordinator reigns; ends only where there is nobody to talk to.
pub(super) async fn run(failover: &Failover) {
    let endpoints = endpoints(failover.config());
    if endpoints.is_empty() {
        return;
    }
    let mut standing = failover.handle().standing();
    loop {
        if standing.wait_for(|standing| standing.role == CoordinatorRole::Primary).await.is_err() {
            return;
        }
        let asking = failover.handle().asking_peers();
        join_all(endpoints.iter().map(|endpoint| ask_and_tell(failover, endpoint))).await;
        failover.handle().peers_asked(asking);
        // Whoever stood still (suspended, stopped) asks at once, and pages nobody until it has.
        drop(tokio::time::timeout(ROUND, failover.handle().peers_to_ask()).await);
    }
}

async fn ask_and_tell(failover: &Failover, endpoint: &str) {
    let status = match ask(endpoint, failover.credentials()).await {
        Ok(status) => status,
        Err(problem) => {
            tracing::debug!(endpoint, problem, "a coordinator does not answer");
            return;
        }
    };
    let standing = match failover.hear(status.highest_epoch.as_ref(), endpoint).await {
        Ok(standing) => standing,
        Err(error) => {
            tracing::warn!(endpoint, error = %Chain(&error), "a coordinator tells of an epoch that is not proven");
            return;
        }
    };
    let reigns = status.role() == v1::CoordinatorRole::Primary && status.coordinator_id != standing.id.as_str();
    if reigns && standing.role == CoordinatorRole::Primary {
        tracing::error!(endpoint, other = status.coordinator_id, "a second coordinator reigns: telling it our epoch");
        tell(failover, endpoint, standing.own.as_ref()).await;
    }
}

/// A follower's hello carries the epoch; who hears a higher one than its own refuses and is fenced.
async fn tell(failover: &Failover, endpoint: &str, own: Option<&EpochProof>) {
    let hello = v1::FollowerHello { highest_epoch: own.map(convert::epoch_proof_to_wire), ..Default::default() };
    let request = v1::ReplicateRequest { message: Some(v1::replicate_request::Message::Hello(hello)) };
    let telling = async {
        let channel = connect(endpoint, failover.credentials()).await.map_err(|error| Chain(&error).to_string())?;
        let answer = ReplicationServiceClient::new(channel).replicate(tokio_stream::once(request)).await;
        answer.map(drop).map_err(|status| status.message().to_owned())
    };
    match tokio::time::timeout(ASK_TIMEOUT, telling).await {
        Ok(Ok(())) => tracing::warn!(endpoint, "the other coordinator heard our epoch and reigns on"),
        Ok(Err(answer)) => tracing::info!(endpoint, answer, "the other coordinator was told"),
        Err(_) => tracing::warn!(endpoint, "the other coordinator did not answer when it was told"),
    }
}
