//! `muster-coordinator`: everything is in the library.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    muster_coordinator::cli::main(muster_coordinator::cli::Cli::parse())
}
