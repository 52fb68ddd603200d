//! PURE heart of the agent: parsers, verdicts with hysteresis, diagnosis, schedule, session state machine.
//!
//! Invariant: no clock, no randomness, no I/O; the same input gives the same output. Time arrives as [`clock::Now`].

pub mod absence;
pub mod accounts;
pub mod backup;
pub mod baseline;
pub mod bundle;
pub mod clock;
pub mod diagnose;
pub mod disk;
pub mod executable;
pub mod freeze;
pub mod health;
pub mod host_clock;
pub mod journal_file;
pub mod judgement;
pub mod kmsg;
pub mod ledger;
pub mod locks;
pub mod log;
pub mod memory;
pub mod mounts;
pub mod neighbour;
pub mod news;
pub mod permission;
pub mod pid_file;
pub mod port;
pub mod preflight;
pub mod pressure;
pub mod process;
pub mod restarts;
pub mod schedule;
pub mod services;
pub mod session;
pub mod shell;
pub mod singleton;
pub mod sqlite;
pub mod unit;
pub mod watched_files;
