//! `cargo xtask bench agent`: ten services with ten pid files, twenty ports, five databases, five units and five logs,
//! all watched every five seconds by an agent that is connected over mutual TLS.

use super::child::Logged;
use super::cost::{self, SETTLE, Told};
use super::latency::{self, Spread};
use super::measure;
use super::peers;
use super::stage::{AgentPlan, Programs, Stage};
use super::table::{Format, Table};
use crate::say;
use anyhow::Result;
use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How to measure.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// How long cost is measured, and how long that of each peer
    #[arg(long, default_value_t = 3)]
    pub(crate) minutes: u32,
    /// Measures monit, node-exporter and zabbix-agent2 of Debian beside it; fetches their packages
    #[arg(long)]
    peers: bool,
    /// Compressed time for so many minutes: every probe once a second, services killed and started, logs rotated
    #[arg(long, value_name = "MINUTES", default_value_t = 0)]
    growth: u32,
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
    pub(crate) keep: bool,
    /// Writes what was measured there instead of printing it, for the one who started this inside of a host
    #[arg(long, value_name = "FILE", hide = true)]
    report: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Cost,
    Preflight,
    Doctor,
    Exit,
    Oom,
    Heartbeat,
}

impl Part {
    /// As `--only` takes it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cost => "cost",
            Self::Preflight => "preflight",
            Self::Doctor => "doctor",
            Self::Exit => "exit",
            Self::Oom => "oom",
            Self::Heartbeat => "heartbeat",
        }
    }
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// The interval of heartbeats that a coordinator asks for unless it is told otherwise.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Kills of watched processes, and of victims of the OOM killer.
const EXIT_ROUNDS: usize = 50;
const OOM_ROUNDS: usize = 20;
/// For how long heartbeats are listened to.
const BEATS: Duration = Duration::from_secs(60);

/// Measures and prints.
pub(crate) fn run(options: &Options) -> Result<()> {
    let wants = |part| options.wants(part);
    let programs = Programs::get(options.programs.as_deref())?;
    let mut targets = Table::new("The agent", &["what", "measured", "bound", "how"]);
    let standing: Vec<Part> =
        [Part::Cost, Part::Preflight, Part::Doctor].into_iter().filter(|part| wants(*part)).collect();
    let mut told = Told::default();
    if !standing.is_empty() {
        told = match &options.report {
            Some(path) => return cost::report(&cost::here(options, &programs, &standing)?, path),
            None => cost::measure(options, &programs, &standing)?,
        };
        targets.extend(std::mem::take(&mut told.rows));
    }
    let others = [Part::Exit, Part::Oom, Part::Heartbeat].into_iter().any(wants);
    if others || options.growth > 0 || options.peers {
        rest(options, &programs, &told, &mut targets)?;
    } else {
        targets.print(options.format);
    }
    conditions(options, &told)?.print(options.format);
    Ok(())
}

/// What needs no units: one stage for all of it.
fn rest(options: &Options, programs: &Programs, told: &Told, targets: &mut Table) -> Result<()> {
    let wants = |part| options.wants(part);
    let stage = Stage::set_with(programs, "5s", options.keep, false)?;
    let length = Duration::from_secs(u64::from(options.minutes) * 60);
    if wants(Part::Exit) || wants(Part::Oom) {
        let agent = stage.start_agent(&latency::plan("bench-quick", ""))?;
        std::thread::sleep(SETTLE / 3);
        if wants(Part::Exit) {
            say!("{EXIT_ROUNDS} kills …");
            let exits = latency::exits(&stage, &agent, EXIT_ROUNDS)?;
            row(targets, "kill -9 to entry in the spool", &Ok(exits), "median < 10 ms", "to the agent's log line");
        }
        if wants(Part::Oom) {
            say!("{OOM_ROUNDS} OOM kills …");
            let kills = latency::kills(&stage, &agent, "bench-quick", OOM_ROUNDS)?;
            let how = "from the kernel's own time to the coordinator's commit";
            row(targets, "OOM kill to finding at the coordinator", &kills, "median < 50 ms", how);
        }
        end(&stage, "bench-quick")?;
    }
    if wants(Part::Heartbeat) {
        heartbeats(&stage, targets)?;
    }
    if options.growth > 0 {
        growth(&stage, Duration::from_secs(u64::from(options.growth) * 60), targets)?;
    }
    targets.print(options.format);
    if options.peers {
        say!("peers, {} s each …", length.as_secs());
        peers::measure(&stage, SETTLE, length, told.summary.as_ref())?.print(options.format);
    }
    Ok(())
}

fn end(stage: &Stage, name: &str) -> Result<()> {
    stage.lab.kill(name, Signal::SIGTERM)
}

/// One spread.
pub(crate) fn row(table: &mut Table, what: &str, measured: &Result<Spread, String>, bound: &str, how: &str) {
    match measured {
        Ok(Spread { rounds, times: [median, high, max] }) => {
            let told = format!("{} (p99 {}, max {}, n {rounds})", ms(*median), ms(*high), ms(*max));
            table.row([what, &told, bound, how]);
        }
        Err(why) => table.row([what, &format!("not measured: {why}"), bound, how]),
    }
}

fn heartbeats(stage: &Stage, table: &mut Table) -> Result<()> {
    say!("heartbeats, twice {} s …", BEATS.as_secs());
    stage.start_agent(&latency::plan("bench-calm", ""))?;
    let calm = latency::beats(stage, "bench-calm", HEARTBEAT, BEATS)?;
    end(stage, "bench-calm")?;
    let hung = latency::hang(stage)?;
    let agent = stage.start_agent(&latency::plan("bench-hung", &hung.services))?;
    let hindered = latency::beats(stage, "bench-hung", HEARTBEAT, BEATS)?;
    let threads = measure::look(&[agent.pid])?.threads;
    table.row(["heartbeat later than due, at most", &ms(calm.delay), "100 ms", &format!("{} heartbeats", calm.count)]);
    let how = format!("{} heartbeats, {threads} threads; {}", hindered.count, hung.what);
    table.row(["the same while probes hang", &ms(hindered.delay), "100 ms", &how]);
    end(stage, "bench-hung")?;
    Ok(())
}

/// No day is waited for: the same work in less time. What grows with time alone is not seen by it.
fn growth(stage: &Stage, length: Duration, table: &mut Table) -> Result<()> {
    say!("growth, {} s …", length.as_secs());
    let plan = AgentPlan { name: "bench-growth", interval: "1s", more: "", filter: Some(latency::FILTER) };
    let agent = stage.start_agent(&plan)?;
    let _logs = stage.write_logs()?;
    std::thread::sleep(SETTLE);
    let before = measure::look(&[agent.pid])?;
    let (start, mut kills, mut findings, mut middle) = (Instant::now(), 0, 0, None);
    while start.elapsed() < length {
        let index = kills % super::stage::SERVICES;
        stage.kill_service(index)?;
        findings += worth(&agent, Duration::from_millis(700));
        stage.start_service(index)?;
        findings += worth(&agent, Duration::from_millis(700));
        kills += 1;
        if kills % 20 == 0 {
            stage.logs().iter().try_for_each(|log| fs::rename(log, format!("{log}.1")).or_else(absent))?;
        }
        if middle.is_none() && start.elapsed() > length / 2 {
            middle = Some(measure::look(&[agent.pid])?);
        }
    }
    let after = measure::look(&[agent.pid])?;
    end(stage, "bench-growth")?;
    let looks = [Some(&before), middle.as_ref(), Some(&after)];
    let three = |part: fn(&measure::Look) -> u64| looks.map(|look| mib(look.map_or(0, part))).join(" → ");
    let told = format!("{}, of it anonymous {}", three(|look| look.pss_kib), three(|look| look.anonymous_kib));
    let simulated = length.as_secs() * 5 / 60;
    let how = format!(
        "start, half, end of {} s at 1 s intervals (probe runs of {simulated} min at 5 s), {kills} kills, {findings} \
         findings told",
        length.as_secs()
    );
    table.row(["PSS under compressed work", &told, "no growth", &how]);
    Ok(())
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn worth(agent: &Logged, length: Duration) -> usize {
    let told = ["opened: ", "cleared: ", "occurred: ", "updated: "];
    agent.for_a_while(length).iter().filter(|line| told.iter().any(|word| line.text.contains(word))).count()
}

fn conditions(options: &Options, told: &Told) -> Result<Table> {
    let mut table = Table::new("Conditions", &["what", "value"]);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    table.row(["when", &now]);
    table.row(["kernel", &read("/proc/sys/kernel/osrelease")]);
    let cores = std::thread::available_parallelism()?.get();
    table.row(["processor", &format!("{cores} × {}", model.trim_start_matches([' ', '\t', ':']))]);
    table.row(["load at the end", &load]);
    table.row(["agent", "profile `agent`: opt-level z, fat LTO, agent/layout/used.ld; log level info for cost"]);
    table.row(["coordinator", "profile `dev`, in its own process, on loopback; heartbeats every 5 s"]);
    table.row(["cost measured for", &format!("{} min after {} s", options.minutes, SETTLE.as_secs())]);
    let units = if told.units.is_empty() { "none: only cost, preflight and doctor watch units" } else { &told.units };
    table.row(["units", units]);
    Ok(table)
}

/// Bytes for people.
pub(crate) fn mib(kib: u64) -> String {
    format!("{:.1} MiB", f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0)
}

pub(crate) fn ms(length: Duration) -> String {
    format!("{:.1} ms", length.as_secs_f64() * 1000.0)
}
