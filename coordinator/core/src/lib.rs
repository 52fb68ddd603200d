//! PURE heart of the coordinator: journal entries, state, apply, decide, liveness, detectors, incidents, paging policy.
//!
//! Invariant: no clock, no randomness, no I/O; the same entries give the same state and the same conclusions.

pub mod agent_stream;
pub mod apply;
pub mod builds;
pub mod cause;
pub mod changes;
pub mod correlation;
pub mod decide;
pub mod detect;
pub mod entry;
pub mod explain;
pub mod export;
pub mod failover;
pub mod flapping;
pub mod freeze;
pub mod invariants;
pub mod liveness;
pub mod machine;
pub mod page;
pub mod policy;
pub mod refusals;
pub mod replay;
pub mod response;
pub mod routing;
mod same_kill;
pub mod second_opinion;
pub mod severity;
pub mod signals;
pub mod silence;
pub mod singletons;
pub mod state;
mod symptom;
pub mod timeline;
pub mod updates;
pub mod working_days;

pub use apply::apply;
pub use decide::decide;
pub use machine::Machine;
pub use state::{State, next_deadline};
