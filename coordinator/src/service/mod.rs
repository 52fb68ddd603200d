//! The gRPC services. Each translates between the wire and the loop; none keeps a truth of its own.

mod admission;
pub mod agent_link;
pub mod caller;
mod ear;
mod events;
mod explain;
mod export;
pub mod failover;
pub mod finding;
pub mod fleet;
pub mod incident;
pub mod pagerduty;
mod paging;
pub mod receivers;
pub mod replication;
pub mod silence;
mod spool_reader;
mod watch;

use crate::runtime::RuntimeError;
use muster_common::chain::Chain;
use tonic::Status;

/// The canonical code of what the loop could not do.
pub(crate) fn status_of(error: &RuntimeError) -> Status {
    let text = Chain(error).to_string();
    match error {
        RuntimeError::NotPrimary { .. } | RuntimeError::NotStandby(_) | RuntimeError::EpochTooLow { .. } => {
            Status::failed_precondition(text)
        }
        RuntimeError::Stopped => Status::unavailable(text),
        RuntimeError::Store(_) | RuntimeError::State(_) => Status::internal(text),
    }
}
