//! `cargo xtask bench`: what Muster costs and how quick it is, measured on the machine it runs on. Nothing is asserted:
//! the figures are for people, with the conditions they were taken under.

mod agent;
mod child;
mod cost;
pub(crate) mod host;
mod latency;
pub(crate) mod measure;
mod peers;
mod replay;
pub(crate) mod service;
pub(crate) mod stage;
pub(crate) mod table;

use anyhow::Result;
use clap::Subcommand;

/// What is measured.
#[derive(Subcommand, Debug, Clone)]
pub(crate) enum Bench {
    /// The agent: memory, processor time, wake-ups, and how soon a kill is told
    Agent(agent::Options),
    /// `muster-coordinator replay`: how quick it goes through a bundle of many facts
    Replay(replay::Options),
}

/// Measures.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Agent(options) => agent::run(options),
        Bench::Replay(options) => replay::run(options),
    }
}
