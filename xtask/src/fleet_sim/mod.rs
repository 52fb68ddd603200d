//! `cargo xtask fleet-sim`: the coordinator at scale. A fleet of simulated agents, each with a certificate and a real mTLS
//! connection of its own, against a release build of the coordinator in another process; and a fleet without sockets for
//! what only the rules cost. Nothing is asserted: figures, their ratio to the bar, and the conditions.

mod agent;
mod http2;
mod measures;
mod pages;
mod papers;
mod silence;
mod simulated;
mod stage;
mod swarm;

use crate::bench::measure::load;
use crate::bench::table::{Format, Table};
use crate::say;
use crate::suite::build;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use stage::Stage;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use swarm::Manner;

/// What to measure, and with how many.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Agents with a connection each
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// Between two heartbeats of one agent
    #[arg(long, default_value = "5s", value_parser = length)]
    heartbeat: Duration,
    /// Between two pings of an agent's transport, while it hears nothing
    #[arg(long, default_value = "20s", value_parser = length)]
    ping: Duration,
    /// Minutes over which the cost of heartbeats is measured
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Threads that run the agents
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The fleet has no sockets: what the rules cost, and false alarms under losses
    #[arg(long)]
    simulated: bool,
    /// Hours that simulated agents live under losses, all together
    #[arg(long, default_value_t = 1_000_000)]
    agent_hours: u64,
    /// Measures only this
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Measures the programs in this folder instead of building them
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Leaves the temporary folder behind
    #[arg(long)]
    keep: bool,
    /// Waits little and measures few: to see that it works, not for figures
    #[arg(long)]
    brisk: bool,
}

/// Agents of [`smoke`], connected and in State alone.
const SMOKE_AGENTS: usize = 50;
/// What [`smoke`] must have measured at least.
const SMOKE_ROWS: usize = 20;

/// A small fleet with debug builds, so that the command does not rot. Its figures say nothing.
pub(crate) fn smoke(programs: PathBuf) -> Result<()> {
    let mut options = Options {
        agents: SMOKE_AGENTS,
        heartbeat: Duration::from_millis(500),
        ping: Duration::from_secs(1),
        minutes: 0.05,
        threads: 1,
        simulated: true,
        agent_hours: 2_000,
        only: Vec::new(),
        programs: Some(programs),
        format: Format::Text,
        keep: false,
        brisk: true,
    };
    let without = measure(&options)?;
    options.simulated = false;
    let rows = without.rows + measure(&options)?.rows;
    ensure!(rows >= SMOKE_ROWS, "only {rows} figures were measured");
    Ok(())
}

/// The measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Memory for each connected agent, and what is given back when they leave
    Memory,
    /// Processor time of a heartbeat, and how soon the registry knows of it
    Heartbeat,
    /// From a finding to the call at a receiver
    Page,
    /// How soon a stale agent and a reset connection are noticed
    Stale,
    /// Everyone at once after the coordinator was killed
    Reconnect,
    /// Without sockets: processor time of a fact, memory of an agent in State
    Decide,
    /// Without sockets: false alarms under losses, cuts and standstills
    Loss,
}

impl Part {
    fn has_sockets(self) -> bool {
        !matches!(self, Self::Decide | Self::Loss)
    }
}

/// Runs the measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.programs.is_none() {
        return in_release();
    }
    measure(options)?.print(options.format);
    Ok(())
}

fn measure(options: &Options) -> Result<Results> {
    let programs = options.programs.clone().context("no programs to measure")?;
    let manner =
        Manner { agents: options.agents, heartbeat: options.heartbeat, ping: options.ping, threads: options.threads };
    let wants = |part: Part| match options.only.is_empty() {
        true => part.has_sockets() != options.simulated,
        false => options.only.contains(&part),
    };
    let mut results = Results::new();
    if wants(Part::Decide) {
        simulated::decide(options.agents, &mut results)?;
    }
    if wants(Part::Loss) {
        simulated::loss(options.agent_hours, &mut results)?;
    }
    if !Part::value_variants().iter().any(|part| part.has_sockets() && wants(*part)) {
        return Ok(results);
    }
    let stage = Stage::set(programs, manner, options.brisk, options.keep)?;
    say!("coordinator: pid {}, {} agents sleep", stage.pid()?, options.agents);
    if wants(Part::Memory) {
        measures::memory(&stage, &mut results)?;
    }
    stage.swarm.wake(options.agents);
    stage.swarm.until_connected(options.agents, CONNECT_LIMIT)?;
    if wants(Part::Heartbeat) {
        measures::heartbeats(&stage, Duration::from_secs_f64(options.minutes * 60.0), &mut results)?;
    }
    if wants(Part::Page) {
        pages::measure(&stage, &mut results)?;
    }
    if wants(Part::Stale) {
        silence::measure(&stage, options.heartbeat, &mut results)?;
    }
    if wants(Part::Reconnect) {
        measures::reconnect(&stage, &mut results)?;
    }
    Ok(results)
}

/// However slow the machine: a fleet that is not there by then does not come.
const CONNECT_LIMIT: Duration = Duration::from_secs(300);

/// What was measured.
pub(crate) struct Results {
    table: Table,
    rows: usize,
}

impl Results {
    fn new() -> Self {
        let head = ["what", "measured", "bar", "of the bar", "conditions"];
        Self { table: Table::new("The coordinator at scale", &head), rows: 0 }
    }

    /// One figure in `unit` against its bar (of which it should stay below), or without one.
    pub(crate) fn add(&mut self, what: &str, measured: f64, unit: &str, bar: Option<f64>, conditions: &str) {
        let number = |value: f64| {
            let digits = if value.abs() < 10.0 { 2 } else { 0 };
            format!("{value:.digits$} {unit}")
        };
        let ratio = bar.filter(|bar| *bar > 0.0).map_or_else(String::new, |bar| format!("{:.2}", measured / bar));
        let bar = bar.map_or_else(String::new, number);
        let conditions = format!("{conditions}; load {}", load());
        say!(
            "  {what}: {} {}",
            number(measured),
            if ratio.is_empty() { String::new() } else { format!("({ratio} of the bar)") }
        );
        self.rows += 1;
        self.table.row([what, &number(measured), &bar, &ratio, &conditions]);
    }

    fn print(&self, format: Format) {
        self.table.print(format);
    }
}

fn length(text: &str) -> Result<Duration, String> {
    let parsed =
        text.strip_suffix("ms").map(|number| (number, 1)).or(text.strip_suffix('s').map(|number| (number, 1000)));
    let (number, millis) = parsed.ok_or("expected a length such as 5s or 200ms")?;
    let number: u64 = number.parse().map_err(|_| "expected a length such as 5s or 200ms")?;
    Ok(Duration::from_millis(number.saturating_mul(millis)))
}

/// Builds the coordinator and this program as they are shipped, and lets that one measure: agents of a debug build would
/// cost more than the coordinator.
fn in_release() -> Result<()> {
    say!("building muster-coordinator and the simulator with --release …");
    let programs = build(&["--release", "--package", "muster-coordinator", "--package", "xtask"], "release")?;
    let mut simulator = Command::new(programs.join("xtask"));
    simulator.args(std::env::args_os().skip(1)).arg("--programs").arg(&programs);
    let status = simulator.status()?;
    ensure!(status.success(), "the simulator failed: {status}");
    Ok(())
}
