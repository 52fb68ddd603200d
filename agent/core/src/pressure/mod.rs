//! Memory pressure: how long processes stall for memory (PSI), and how near a service is to the limit of its own cgroup
//! or of one above it.

pub mod cgroup;
pub mod psi;
pub mod service;
