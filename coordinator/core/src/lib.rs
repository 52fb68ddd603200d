//! PURE heart of the coordinator: journal entries, state, apply, decide, liveness, detectors, incidents, paging policy.
//!
//! Invariant: no clock, no randomness, no I/O; the same entries give the same state and the same conclusions.

pub mod entry;
pub mod page;
pub mod policy;
