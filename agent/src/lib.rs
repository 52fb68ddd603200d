//! The shell round `muster-agent-core`: senses, spool, uplink, doctor, CLI.

pub mod clock;
pub mod probe;
pub mod seccomp;
pub mod senses;
