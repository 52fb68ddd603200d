//! The command line. Exit status of `doctor` as monitoring plugins have it: 0 ok, 1 warning, 2 critical, 3 unknown or
//! usage; of the others: 0 well, 2 a wrong config or command line, 1 any other failure.

use crate::bundle::{self, Opened, Wish};
use crate::config::{self, Config, ConfigError};
use crate::discover;
use crate::doctor::report::Report;
use crate::doctor::{self, text};
use crate::local;
use crate::preflight::{self, Wanted};
use crate::seccomp;
use crate::senses::HostRoot;
use clap::{Parser, Subcommand, ValueEnum};
use muster_common::chain::Chain;
use muster_common::config::did_you_mean;
use muster_common::units::{human_bytes, parse_bytes, parse_duration};
use muster_proto::v1;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Also the status of `doctor` when nothing can be said.
const EXIT_USAGE: u8 = 3;
const EXIT_WRONG_CONFIG: u8 = 2;
const EXIT_FAILURE: u8 = 1;

/// Tells, with evidence, what is wrong with the services of this host.
#[derive(Debug, Parser)]
#[command(name = "muster-agent", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch this host and report to the coordinator (the daemon)
    Run {
        /// The config
        #[arg(long, value_name = "FILE", default_value = config::PATH_DEFAULT)]
        config: PathBuf,
    },
    /// Diagnose this host once; needs no coordinator and, without a config, discovers what runs
    ///
    /// Exit status: 0 ok, 1 warning (worst is sev3 or sev4), 2 critical (sev2 or worse), 3 unknown or usage.
    Doctor {
        /// The config [default: /etc/muster/agent.toml where it exists, else discovery]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How to print
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// Only this service ("host" for the host itself)
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Read a saved kernel log (dmesg, journalctl -k, syslog, raw /dev/kmsg) instead of this host
        #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "service"])]
        kmsg_file: Option<PathBuf>,
        /// Tell what `muster-agent bundle` found on another host
        #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "kmsg_file"])]
        bundle: Option<PathBuf>,
        /// List what is in the bundle, and what is not and why
        #[arg(long, requires = "bundle")]
        list: bool,
        /// Print one file of the bundle
        #[arg(long, value_name = "NAME", requires = "bundle", conflicts_with = "list")]
        show: Option<String>,
        /// Read databases and backups to their end, on copies below TMPDIR or /var/tmp: takes minutes
        #[arg(long, conflicts_with_all = ["kmsg_file", "bundle"])]
        deep: bool,
        /// List every check, also those that are well, and what holds the agent to reading
        #[arg(long, short)]
        verbose: bool,
    },
    /// Put what somebody elsewhere needs to see of this host into one file, without secrets
    ///
    /// Readings, findings, the daemon's own view, the newest lines of logs and journal, the config. Read it with
    /// `muster-agent doctor --bundle FILE` on any machine, or as any .tar.gz. Look at it before you send it.
    Bundle {
        /// The new file, such as web-1.tar.gz
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// The config [default: /etc/muster/agent.toml where it exists, else discovery]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How far back the journal is taken
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
        since: Duration,
    },
    /// Check a config and tell all mistakes at once; exit status 0 or 2
    CheckConfig {
        /// The config
        #[arg(long, value_name = "FILE", default_value = config::PATH_DEFAULT)]
        config: PathBuf,
    },
    /// May new work start on this host? Exit status: 0 go, 1 caution, 2 stop, 3 usage
    Preflight {
        /// How many workers are to start [default: tell how many could]
        #[arg(long, value_name = "N")]
        workers: Option<u32>,
        /// What one worker needs
        #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = worker_memory)]
        worker_memory: u64,
        /// How to print
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// The config [default: /etc/muster/agent.toml where it can be read, else the defaults]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Tell the agent on this host of something that happened to a service
    ///
    /// Returns when it is durable. Further `--KEY VALUE` pairs are kept as evidence.
    Report {
        /// The service, as in the agent's config (needed)
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Reason code of an occurrence, such as repo_locked (needed)
        #[arg(long, value_name = "CODE")]
        reason: Option<String>,
        /// What it is about
        #[arg(long, value_name = "TEXT", default_value = "")]
        subject: String,
        /// One sentence
        #[arg(long, value_name = "TEXT", default_value = "")]
        message: String,
        /// The agent's socket [default: that of --config, else /run/muster-agent/agent.sock]
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// The agent's config, for its socket
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// --KEY VALUE …
        #[arg(value_name = "EVIDENCE", trailing_var_arg = true, allow_hyphen_values = true)]
        evidence: Vec<String>,
    },
    /// Discover services with their units, ports, logs and open SQLite files, and print a commented config
    Init,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors.
            let status = if error.use_stderr() { usage_status(std::env::args_os().nth(1)) } else { 0 };
            error.print().ok();
            return ExitCode::from(status);
        }
    };
    // First of all, before there is a second thread.
    let restricted = seccomp::restrict();
    let status = match cli.command {
        Command::Run { config } => run(&config, restricted),
        Command::Doctor { format, service, bundle: Some(file), list, show, verbose, .. } => {
            let asked = Asked { config: None, format, service, kmsg_file: None, deep: false, verbose };
            read_bundle(&file, list, show.as_deref(), &asked)
        }
        Command::Bundle { output, config, since } => write_bundle(&output, config, since),
        Command::Doctor { config, format, service, kmsg_file, deep, verbose, .. } => {
            let notes = match (&restricted, verbose) {
                (Ok(()), true) => {
                    vec!["held by seccomp: no program is started, no other process is signalled or traced".to_owned()]
                }
                (Ok(()), false) => Vec::new(),
                (Err(error), _) => vec![format!("not held by seccomp: {}", Chain(error))],
            };
            let asked = Asked { config, format, service, kmsg_file, deep, verbose };
            run_doctor(&asked, notes)
        }
        Command::CheckConfig { config } => check_config(&config),
        Command::Preflight { workers, worker_memory, format, config } => {
            run_preflight(config.as_deref(), format, Wanted { workers, worker_bytes: worker_memory })
        }
        Command::Report { service, reason, subject, message, socket, config, evidence } => {
            let (service, reason) = (service.unwrap_or_default(), reason.unwrap_or_default());
            let request = v1::ReportRequest { service, reason, subject, message, ..v1::ReportRequest::default() };
            report(Told { request, socket, config }, &evidence)
        }
        Command::Init => init(),
    };
    ExitCode::from(status)
}

/// Only `doctor` and `preflight` have a status of their own for usage; a wrong line in a unit file is as final as a
/// wrong config.
fn usage_status(command: Option<OsString>) -> u8 {
    let others = ["run", "check-config", "init", "report", "bundle"];
    let of_others = command.is_some_and(|command| others.iter().any(|name| command == *name));
    if of_others { EXIT_WRONG_CONFIG } else { EXIT_USAGE }
}

/// Of nothing there is always enough for any number of workers.
fn worker_memory(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("a worker that needs nothing cannot be counted; give what one needs, such as \"512MiB\"".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Without a config that can be read the defaults answer: a worker's user may not read the agent's.
fn run_preflight(config: Option<&Path>, format: Format, wanted: Wanted) -> u8 {
    let loaded = match config {
        Some(path) => Config::load(path),
        None => Config::load(Path::new(config::PATH_DEFAULT)).or_else(|error| match error {
            ConfigError::Read { .. } => Ok(Config::default()),
            ConfigError::Wrong(_) => Err(error),
        }),
    };
    let config = match loaded {
        Ok(config) => config,
        Err(error) => return wrong_config(&error, EXIT_USAGE),
    };
    let answer = preflight::ask(&config, &HostRoot::default(), wanted);
    let text = match format {
        Format::Json => format!("{}\n", preflight::to_json(&answer, wanted)),
        Format::Text => preflight::to_text(&answer),
    };
    match print(&text) {
        0 => answer.decision.exit_status(),
        _ => EXIT_USAGE,
    }
}

/// What `report` was told to tell, and whom.
struct Told {
    request: v1::ReportRequest,
    socket: Option<PathBuf>,
    config: Option<PathBuf>,
}

fn report(mut told: Told, evidence: &[String]) -> u8 {
    if let Err(message) = told.add(evidence) {
        complain(&message);
        return EXIT_WRONG_CONFIG;
    }
    let socket = match (told.socket, told.config) {
        (Some(socket), _) => socket,
        (None, Some(config)) => match Config::load(&config) {
            Ok(config) => config.socket,
            Err(error) => return wrong_config(&error, EXIT_WRONG_CONFIG),
        },
        (None, None) => PathBuf::from(config::SOCKET_DEFAULT),
    };
    match local::client::report(&socket, told.request) {
        Ok(_) => 0,
        Err(error) => {
            complain(&Chain(&error).to_string());
            EXIT_FAILURE
        }
    }
}

impl Told {
    /// `--KEY VALUE` pairs; the command's own options may stand among them.
    fn add(&mut self, evidence: &[String]) -> Result<(), String> {
        const OWN: [&str; 6] = ["service", "reason", "subject", "message", "socket", "config"];
        for pair in evidence.chunks(2) {
            let [key, value] = pair else {
                return Err(format!("{:?} has no value: evidence is --KEY VALUE pairs", pair.concat()));
            };
            let Some(key) = key.strip_prefix("--") else {
                return Err(format!("expected --KEY VALUE, found {key:?}"));
            };
            match key {
                "service" => self.request.service.clone_from(value),
                "reason" => self.request.reason.clone_from(value),
                "subject" => self.request.subject.clone_from(value),
                "message" => self.request.message.clone_from(value),
                "socket" => self.socket = Some(value.into()),
                "config" => self.config = Some(value.into()),
                _ => {
                    if let Some(meant) = OWN.iter().find(|own| is_slip(own, key)) {
                        return Err(format!(
                            "--{key} is no option, did you mean --{meant}? Evidence needs another name"
                        ));
                    }
                    self.request.evidence.insert(key.replace('-', "_"), value.clone());
                }
            }
        }
        let lacks = |value: &String, name| value.is_empty().then_some(name);
        let request = &self.request;
        let lacking = [lacks(&request.service, "--service NAME"), lacks(&request.reason, "--reason CODE")];
        let lacking: Vec<&str> = lacking.into_iter().flatten().collect();
        if lacking.is_empty() { Ok(()) } else { Err(format!("{} must be given", lacking.join(" and "))) }
    }
}

/// Whether one letter too many, too few or wrong, or two exchanged, make `meant` of `typed`.
fn is_slip(meant: &str, typed: &str) -> bool {
    let (meant, typed) = (meant.as_bytes(), typed.as_bytes());
    let head = meant.iter().zip(typed).take_while(|(one, other)| one == other).count();
    let (meant, typed) = (meant.get(head..).unwrap_or_default(), typed.get(head..).unwrap_or_default());
    let same = |of_meant: usize, of_typed: usize| {
        meant.get(of_meant..).is_some_and(|left| typed.get(of_typed..) == Some(left))
    };
    let exchanged = || matches!((meant, typed), ([a, b, ..], [c, d, ..]) if (a, b) == (d, c));
    same(1, 1) || same(1, 0) || same(0, 1) || (same(2, 2) && exchanged())
}

struct Asked {
    config: Option<PathBuf>,
    format: Format,
    service: Option<String>,
    kmsg_file: Option<PathBuf>,
    deep: bool,
    verbose: bool,
}

fn run(config: &Path, restricted: Result<(), seccomp::SeccompError>) -> u8 {
    crate::heap::keep_small();
    log_to_stderr();
    crate::heap::keep_sqlite_small();
    if let Err(error) = restricted {
        tracing::warn!("not held by seccomp: {}", Chain(&error));
    }
    match crate::run::run(config) {
        Ok(()) => 0,
        Err(error) => match error.downcast_ref::<ConfigError>() {
            Some(error) => wrong_config(error, EXIT_WRONG_CONFIG),
            None => {
                tracing::error!("{error:#}");
                EXIT_FAILURE
            }
        },
    }
}

fn run_doctor(asked: &Asked, mut notes: Vec<String>) -> u8 {
    let host = HostRoot::default();
    let report = if let Some(file) = &asked.kmsg_file {
        match doctor::diagnose_kmsg(file) {
            Ok(mut report) => {
                report.notes.extend(notes);
                report
            }
            Err(error) => {
                complain(&format!("cannot read the kernel log {}: {error}", file.display()));
                return EXIT_USAGE;
            }
        }
    } else {
        let mut config = match doctor_config(asked.config.as_deref(), &host, &mut notes) {
            Ok(config) => config,
            Err(error) => return wrong_config(&error, EXIT_USAGE),
        };
        if let Some(service) = &asked.service
            && let Err(message) = known_service(&config, service)
        {
            complain(&message);
            return EXIT_USAGE;
        }
        if let (true, Some(asked)) = (asked.deep, &asked.service) {
            // Nobody waits for what is not told.
            for other in config.services.iter_mut().filter(|service| service.name.as_str() != asked) {
                other.sqlite.clear();
                other.backups.clear();
            }
        }
        let diagnose = if asked.deep { doctor::diagnose_deep } else { doctor::diagnose };
        let report = match diagnose(&config, &host, notes) {
            Ok(report) => report,
            Err(error) => {
                complain(&format!("cannot begin: {error}"));
                return EXIT_USAGE;
            }
        };
        match &asked.service {
            Some(service) => report.only(service),
            None => report,
        }
    };
    match delivered(print_report(&report, asked)) {
        Ok(()) => report.overall().exit_status(),
        Err(error) => {
            complain(&format!("the report could not be written: {error}"));
            EXIT_USAGE
        }
    }
}

fn write_bundle(output: &Path, config_path: Option<PathBuf>, since: Duration) -> u8 {
    if output == Path::new("-") {
        complain("a bundle is written to a new file, not to standard output: give its name, such as web-1.tar.gz");
        return EXIT_WRONG_CONFIG;
    }
    // Before the work, not after it.
    if let Err(error) = bundle::is_free(output) {
        complain(&Chain(&error).to_string());
        return EXIT_FAILURE;
    }
    let (host, mut notes) = (HostRoot::default(), Vec::new());
    let config = match doctor_config(config_path.as_deref(), &host, &mut notes) {
        Ok(config) => config,
        Err(error) => return wrong_config(&error, EXIT_WRONG_CONFIG),
    };
    let default = Path::new(config::PATH_DEFAULT);
    let config_path = config_path.or_else(|| default.exists().then(|| default.to_owned()));
    let wish = Wish { config, config_path, since };
    let made = doctor::diagnose(&wish.config, &host, notes).and_then(|report| bundle::make(&wish, &report, &host));
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            complain(&format!("cannot gather: {error}"));
            return EXIT_FAILURE;
        }
    };
    if let Err(error) = bundle::write(output, &made) {
        complain(&Chain(&error).to_string());
        return EXIT_FAILURE;
    }
    let (manifest, bytes) = (&made.manifest, u64::try_from(made.bytes.len()).unwrap_or(u64::MAX));
    let mut told = format!("{}: {}, {}", output.display(), counted(manifest.items.len(), "file"), human_bytes(bytes));
    if !manifest.missing.is_empty() {
        told.push_str(&format!(", {} not there (--list tells why)", manifest.missing.len()));
    }
    print(&format!("{}\nread it with: muster-agent doctor --bundle FILE\n", text::plain(&told)))
}

/// Status as `doctor`'s.
fn read_bundle(file: &Path, list: bool, show: Option<&str>, asked: &Asked) -> u8 {
    match told_by_bundle(file, list, show, asked) {
        Ok((text, status)) => match print(&text) {
            0 => status,
            _ => EXIT_USAGE,
        },
        Err(message) => {
            complain(&message);
            EXIT_USAGE
        }
    }
}

fn told_by_bundle(file: &Path, list: bool, show: Option<&str>, asked: &Asked) -> Result<(String, u8), String> {
    let failed = |error: bundle::OpenError| format!("{}: {}", file.display(), Chain(&error));
    let opened = Opened::read(file).map_err(failed)?;
    if list {
        return Ok((bundle::list(opened.manifest()), 0));
    }
    if let Some(name) = show {
        return Ok((bundle::printable(opened.item(name).map_err(failed)?), 0));
    }
    let report = opened.report().map_err(failed)?;
    let report = match &asked.service {
        Some(service) => {
            let names = report.probes.iter().map(|ran| ran.subject.service.as_str()).chain(["host"]);
            known_name(names.collect(), service)?;
            report.only(service)
        }
        None => report,
    };
    let status = report.overall().exit_status();
    if asked.format == Format::Json {
        let origin = bundle::origin_json(opened.manifest());
        return Ok((format!("{}\n", report.to_json_with(Some(("bundle", origin)))), status));
    }
    let mut out = format!("{}\n", bundle::origin(opened.manifest())).into_bytes();
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let style = text::Style { colour, verbose: asked.verbose };
    text::write(&mut out, &report, style).map_err(|error| error.to_string())?;
    Ok((String::from_utf8_lossy(&out).into_owned(), status))
}

fn doctor_config(asked: Option<&Path>, host: &HostRoot, notes: &mut Vec<String>) -> Result<Config, ConfigError> {
    let default = Path::new(config::PATH_DEFAULT);
    match asked {
        Some(path) => Config::load(path),
        None if default.exists() => Config::load(default),
        None => {
            let found = discover::discover(host);
            notes.push(format!(
                "no config: {} discovered; `muster-agent init` prints what to keep in {}",
                counted(found.services.len(), "service"),
                config::PATH_DEFAULT
            ));
            notes.extend(found.notes.iter().cloned());
            Ok(discover::to_config(&found))
        }
    }
}

fn known_service(config: &Config, service: &str) -> Result<(), String> {
    known_name(config.services.iter().map(|service| service.name.as_str()).chain(["host"]).collect(), service)
}

fn known_name(names: std::collections::BTreeSet<&str>, service: &str) -> Result<(), String> {
    if names.contains(service) {
        return Ok(());
    }
    let nearest = muster_common::config::nearest(service, names.iter().copied());
    let list = names.into_iter().collect::<Vec<_>>().join(", ");
    Err(format!("no service {service:?}{} (there are: {list})", did_you_mean(nearest.as_deref())))
}

fn print_report(report: &Report, asked: &Asked) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match asked.format {
        Format::Json => writeln!(out, "{}", report.to_json())?,
        Format::Text => {
            let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            text::write(&mut out, report, text::Style { colour, verbose: asked.verbose })?;
        }
    }
    out.flush()
}

/// A reader that went away (`| head`) is no failure; the status still tells.
fn delivered(written: io::Result<()>) -> io::Result<()> {
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

fn check_config(path: &Path) -> u8 {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return wrong_config(&error, EXIT_WRONG_CONFIG),
    };
    let sum = |of: fn(&config::Service) -> usize| config.services.iter().map(of).sum::<usize>();
    let parts = [
        counted(config.services.len(), "service"),
        counted(sum(|service| usize::from(service.pid_file.is_some())), "pid file"),
        counted(sum(|service| service.ports.len()), "port"),
        counted(sum(|service| service.sqlite.len()), "database"),
        counted(config.endpoints.len(), "coordinator"),
    ];
    let mut out = format!("ok: {}\n", parts.join(", "));
    for not_watched in crate::run::plan::not_watched(&config) {
        let what = text::plain(&not_watched.to_string());
        out.push_str(&format!("note: {what}: not watched yet, this version has no probe for it\n"));
    }
    print(&out)
}

fn print(text: &str) -> u8 {
    let mut out = io::stdout().lock();
    match delivered(out.write_all(text.as_bytes()).and_then(|()| out.flush())) {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("the output could not be written: {error}"));
            EXIT_FAILURE
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn init() -> u8 {
    let found = discover::discover(&HostRoot::default());
    print(&discover::to_toml(&found))
}

fn wrong_config(error: &ConfigError, status: u8) -> u8 {
    match error {
        ConfigError::Wrong(errors) => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            // The renderer makes control characters visible itself, and its own colours must pass.
            let _written = writeln!(io::stderr().lock(), "{}", errors.render(colour));
        }
        ConfigError::Read { .. } => complain(&Chain(error).to_string()),
    }
    status
}

fn complain(message: &str) {
    let _written = writeln!(io::stderr().lock(), "{}", text::plain(message));
}

/// To stderr, which the service manager keeps; it adds the time itself.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MUSTER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would tell a line that cannot be written on stderr, and panic when that cannot be written either: whoever
        // read the log may be gone (journald was killed), and watching goes on.
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    if journal { builder.without_time().init() } else { builder.init() }
}
