//! The shell round `muster-agent-core`: senses, spool, uplink, doctor, CLI.

pub mod bell;
pub mod bundle;
pub mod cli;
pub mod clock;
pub mod config;
pub mod discover;
pub mod doctor;
pub mod freezes;
pub mod heap;
pub mod local;
pub mod net;
pub mod preflight;
pub mod probe;
pub mod run;
pub mod sandbox;
pub mod seccomp;
pub mod senses;
pub mod spool;
pub mod uplink;
