//! The shell round `muster-agent-core`: senses, spool, uplink, doctor, CLI.

pub mod probe;
pub mod senses;
