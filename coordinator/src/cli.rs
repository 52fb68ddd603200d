//! The command line.

use crate::ca::CaCommand;
use crate::config::{Config, DEFAULT_PATH, TlsFiles, parse};
use crate::pager::ReceiverError;
use crate::paging::Paging;
use crate::replay::{ReplayCommand, ReplayError};
use crate::runtime::RuntimeError;
use crate::serve::Coordinator;
use crate::store::check::check_store;
use crate::store::sqlite::{SqliteStore, path_of};
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use muster_common::chain::Chain;
use muster_common::config::ConfigErrors;
use muster_common::tls::Credentials;
use muster_common::units::human_duration;
use sd_notify::NotifyState;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Exit status of a config or usage mistake.
const EXIT_USAGE: u8 = 2;
/// An agent waits up to 30 s between two tries and connects for up to 5 s.
const AGENT_AWAY_MAX: Duration = Duration::from_secs(35);
/// A loop that does not turn within this part of the watchdog's time gets no more help against it.
const WATCHDOG_PARTS: u32 = 3;
/// Threads that serve connections, whatever the machine has (docs/decisions/0022): decisions, the store and what takes
/// long have threads of their own.
const WORKERS: usize = 1;

/// The fleet's coordinator: journals what agents report, decides, pages.
#[derive(Debug, Parser)]
#[command(name = "muster-coordinator", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the coordinator
    Run(ConfigPath),
    /// Report every mistake of the config at once; exit status 0 or 2
    CheckConfig(ConfigPath),
    /// Verify the journal: file, hash chain, entries, and that the rules reproduce the recorded conclusions
    CheckStore(ConfigPath),
    /// Feed the facts of a bundle to the rules again: same conclusions, or what another policy would have paged
    Replay(ReplayCommand),
    /// The built-in certificate authority
    #[command(subcommand)]
    Ca(CaCommand),
}

#[derive(Debug, Args)]
struct ConfigPath {
    /// The config file
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
}

/// Why a command failed.
enum Failure {
    /// Mistakes in the config.
    Config(Box<ConfigErrors>),
    /// Everything else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Runs the command line and gives the exit status.
pub fn main(cli: Cli) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let mut err = std::io::stderr();
    let outcome = match cli.command {
        Command::Run(path) => run(&path.config),
        Command::CheckConfig(path) => check_config(&path.config, &mut out),
        Command::CheckStore(path) => check(&path.config, &mut out),
        Command::Replay(command) => replay(&command, &mut out),
        Command::Ca(command) => crate::ca::run(&command, &mut out).map(|()| ExitCode::SUCCESS).map_err(Failure::from),
    };
    // Where nobody reads what is said there is nobody to tell.
    match outcome {
        Ok(code) => code,
        Err(Failure::Config(errors)) => {
            let colour = std::io::IsTerminal::is_terminal(&err);
            drop(writeln!(err, "{}", errors.render(colour)));
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Other(error)) => {
            drop(writeln!(err, "muster-coordinator: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn read(path: &Path) -> Result<Config, Failure> {
    let hint = if path == Path::new(DEFAULT_PATH) { ": name the config with --config" } else { "" };
    let text =
        muster_common::config::read_file(path).with_context(|| format!("cannot read {}{hint}", path.display()))?;
    parse(&path.display().to_string(), &text).map_err(|errors| Failure::Config(Box::new(errors)))
}

fn check_config(path: &Path, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    match read(path) {
        Ok(config) => check_secrets(path, &config, out),
        Err(Failure::Other(error)) => {
            writeln!(out, "{error:#}")?;
            Ok(ExitCode::from(EXIT_USAGE))
        }
        Err(failure) => Err(failure),
    }
}

/// What would keep it from starting although the config is sound: secrets that are not there, or hold something else.
fn check_secrets(path: &Path, config: &Config, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    let (unknown, mistakes): (Vec<_>, Vec<_>) = Paging::mistakes(config)
        .into_iter()
        .partition(|error| matches!(error, ReceiverError::Secret { file, .. } if file.is_anothers()));
    for error in &unknown {
        if let ReceiverError::Secret { name, file, .. } = error {
            writeln!(out, "not checked: {file} of {name:?}, which systemd gives to the unit alone")?;
        }
    }
    for file in Paging::open_to_all(config) {
        writeln!(out, "warning: every user of this host may read the secret in {file}: chmod o-r {file}")?;
    }
    let reconnect_max = config.policy.liveness.reconnect_max;
    if reconnect_max < AGENT_AWAY_MAX {
        writeln!(
            out,
            "warning: liveness.reconnect_max is {}, but agents may take {} to come back: some that are well are paged as silent after a restart",
            human_duration(reconnect_max),
            human_duration(AGENT_AWAY_MAX)
        )?;
    }
    for error in &mistakes {
        writeln!(out, "{}", Chain(error))?;
    }
    if !mistakes.is_empty() {
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    writeln!(out, "{}: ok", path.display())?;
    Ok(ExitCode::SUCCESS)
}

fn replay(command: &ReplayCommand, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    crate::replay::run(command, out).map_err(|error| match error {
        ReplayError::Config(errors) => Failure::Config(errors),
        ReplayError::Other(error) => Failure::Other(error),
    })
}

fn check(path: &Path, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    let config = read(path)?;
    let store = SqliteStore::open_read_only(&path_of(&config.store_url)?)?;
    let report = check_store(&store)?;
    let (entries, oldest, newest) = (report.entries, report.oldest, report.newest);
    for problem in &report.problems {
        writeln!(out, "problem: {problem}")?;
    }
    let verdict =
        if report.problems.is_empty() { "sound" } else { "DAMAGED: restore a backup, or promote the standby" };
    let (replayed, conclusions) = (report.replayed, report.conclusions);
    writeln!(
        out,
        "{entries} entries checked ({oldest} to {newest}), {replayed} replayed, {conclusions} conclusions reproduced: \
         {verdict}"
    )?;
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(path: &Path) -> Result<ExitCode, Failure> {
    start_log();
    let config = read(path)?;
    let credentials = Credentials::load(&config.tls.ca, &config.tls.cert, &config.tls.key)?;
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = threads.worker_threads(WORKERS).enable_all().build().context("cannot start tokio")?;
    runtime.block_on(run_until_told(config, credentials))?;
    Ok(ExitCode::SUCCESS)
}

async fn run_until_told(config: Config, credentials: Credentials) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let tls = config.tls.clone();
    let mut coordinator = Coordinator::start(config, credentials).await?;
    let http = coordinator.http_address().map_or_else(|| "none".to_owned(), |address| address.to_string());
    tracing::info!(grpc = %coordinator.grpc_address(), http, "listening");
    notify(&[NotifyState::Ready]);
    let watchdog = tokio::spawn(feed_watchdog(coordinator.handle().clone()));
    let failure = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => {
                renew(&coordinator, &tls);
                coordinator.reload_secrets();
            }
            error = coordinator.failed() => break Some(error),
        }
    };
    watchdog.abort();
    notify(&[NotifyState::Stopping]);
    if let Some(error) = failure {
        tracing::error!(error = format!("{error:#}"), "going down");
        // No clean stop: what is in memory may be ahead of the journal.
        return Err(error);
    }
    tracing::info!("stopping");
    match coordinator.stop().await {
        Ok(()) | Err(RuntimeError::Stopped) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// SIGHUP: the certificate may have been renewed. One that cannot be used leaves the old one in place.
fn renew(coordinator: &Coordinator, tls: &TlsFiles) {
    let renewed = Credentials::load(&tls.ca, &tls.cert, &tls.key);
    match renewed.and_then(|credentials| coordinator.renew_certificate(credentials)) {
        Ok(()) => tracing::info!("new connections are served with the renewed certificate"),
        Err(error) => tracing::error!(error = %Chain(&error), "the certificate was not renewed; the old one serves on"),
    }
}

/// Tells the service manager that the loop turns, for as long as it does.
async fn feed_watchdog(handle: crate::runtime::Handle) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut interval = tokio::time::interval((patience / WATCHDOG_PARTS).max(Duration::from_millis(10)));
    let mut turns = handle.turns();
    loop {
        interval.tick().await;
        let now = handle.turns();
        if now != turns {
            turns = now;
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(error = %Chain(&error), "the service manager was not told");
    }
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MUSTER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would tell a line that cannot be written on stderr, and panic when that cannot be written either: whoever
        // read the log may be gone (journald was killed), and the fleet is watched all the same.
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // The journal adds the time itself. A second call in one process changes nothing.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    drop(if journal { log.without_time().try_init() } else { log.try_init() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_named_the_config_is_not_asked_to_name_it() {
        let told = |path: &str| match read(Path::new(path)) {
            Err(Failure::Other(error)) => format!("{error:#}"),
            _ => panic!("{path} was read"),
        };
        let named = told("/nonexistent/c.toml");
        assert!(named.starts_with("cannot read /nonexistent/c.toml: ") && !named.contains("--config"), "{named}");
        if !Path::new(DEFAULT_PATH).exists() {
            assert!(told(DEFAULT_PATH).contains("name the config with --config"));
        }
    }
}
