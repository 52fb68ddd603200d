//! The shell round `muster-agent-core`: senses, spool, uplink, doctor, CLI.

pub mod clock;
pub mod probe;
pub mod sandbox;
pub mod seccomp;
pub mod senses;
pub mod spool;
pub mod uplink;
