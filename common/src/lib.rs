//! Words that agent and coordinator share, and nothing else.
//!
//! Everything here is a plain value: ids, time, severity, reason codes, findings, the spool's position, error
//! chains, config errors. No clock is read and no socket opened, except behind the `tls` feature, which the two pure
//! cores do not enable.

pub mod archive;
pub mod chain;
pub mod config;
pub mod epoch_proof;
pub mod evidence;
pub mod finding;
pub mod identity;
pub mod ids;
pub mod limits;
mod name_text;
pub mod neighbour;
pub mod reason;
pub mod retry;
pub mod severity;
pub mod spool;
pub mod time;
#[cfg(feature = "tls")]
pub mod tls;
pub mod units;
