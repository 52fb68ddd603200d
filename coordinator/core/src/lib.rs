//! PURE heart of the coordinator: journal entries, state, apply, decide, liveness, detectors, incidents, paging policy.
//!
//! Invariant: no clock, no randomness, no I/O; the same entries give the same state and the same conclusions.

pub mod agent_stream;
pub mod apply;
pub mod cause;
pub mod decide;
pub mod entry;
pub mod failover;
pub mod freeze;
pub mod invariants;
pub mod liveness;
pub mod machine;
pub mod page;
pub mod policy;
pub mod replay;
pub mod routing;
pub mod state;
pub mod timeline;

pub use apply::apply;
pub use decide::decide;
pub use machine::Machine;
pub use state::{State, next_deadline};
