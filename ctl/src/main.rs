//! `musterctl`: the operator's command.
//!
//! It asks a coordinator and prints; it decides nothing and keeps nothing. Everything that comes from the wire was
//! written by strangers (hosts, operators, kernels) and is escaped before it reaches a terminal.
//!
//! Exit status: 0 done; 1 the coordinator could not be asked or said no; 2 wrong usage; for `failover promote` also
//! 18 (nothing was changed) and 22 (promoted, but the old primary has not attached as a standby).

mod args;
mod commands;
mod connect;
mod error;
mod json;
mod render;
mod settings;
mod times;

use args::Arguments;
use clap::Parser;
use error::CtlError;
use render::Out;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = Out::stdout(arguments.format);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(arguments, &mut out)),
        Err(error) => Err(CtlError::Output(error)),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        // The reader of our pipe has seen enough (`musterctl events list | head`).
        Err(CtlError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // With nowhere to complain to, the exit status has to do.
            drop(writeln!(std::io::stderr().lock(), "musterctl: {}", error.report()));
            ExitCode::from(error.exit_status())
        }
    }
}
