//! The project's own tasks. `cargo xtask demo` and `cargo xtask test` are the two commands of the README.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod bench;
mod demo;
mod drill;
mod fleet_sim;
mod foreign;
mod lab;
mod layout;
mod neighbours;
mod suite;
mod tidy;

#[derive(Parser)]
#[command(name = "xtask", about = "Muster's own tasks", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The main job on real input: two coordinators, three agents, real faults; checks itself
    Demo(demo::Options),
    /// Everything that must pass
    Test(suite::Options),
    /// What CI runs: formatting, lints, docs, tidy, then the tests and the demo
    Ci(suite::Options),
    /// House rules that no compiler checks
    Tidy,
    /// Long or violent exercises
    Drill {
        #[command(subcommand)]
        drill: drill::Drill,
    },
    /// What it costs and how quick it is, with the figures of this machine
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// The coordinator under a large fleet, with the figures of this machine
    FleetSim(fleet_sim::Options),
    /// Writes agent/layout/used.ld: which functions of the agent are used, for the linker to put together
    Layout(layout::Options),
    /// Runs a program and tells which of its functions are called, for `layout`
    #[command(hide = true)]
    TraceCalls(layout::trace::Options),
    /// A service that does nothing, for the bench to watch
    #[command(hide = true)]
    BenchService(bench::service::Options),
    /// What `neighbours` does in a network of its own
    #[command(hide = true)]
    Neighbours,
    /// A small service for the demo to watch and to break
    #[command(hide = true)]
    DemoService(lab::service::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => suite::test(&options),
        Task::Ci(options) => suite::ci(&options),
        Task::Tidy => tidy::run(),
        Task::Drill { drill } => drill::run(&drill),
        Task::Bench { bench } => bench::run(&bench),
        Task::FleetSim(options) => fleet_sim::run(&options),
        Task::Layout(options) => layout::run(&options),
        Task::TraceCalls(options) => layout::trace::run(&options),
        Task::BenchService(options) => bench::service::run(&options),
        Task::Neighbours => neighbours::run(),
        Task::DemoService(options) => lab::service::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line at once, also into a pipe; a closed pipe is not our problem.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        drop(writeln!(out, $($argument)*).and_then(|()| out.flush()));
    }};
}
