//! The agent's binary: everything is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_agent::cli::main()
}
