//! What an agent costs that watches all there is, five units among it, and what the commands beside it take. Where this
//! machine has no systemd, it is measured on a host that has, by this very program inside of it.

use super::agent::{Options, Part, mib, ms, row};
use super::host::{FOLDER, Host};
use super::latency::Spread;
use super::measure::{self, Summary};
use super::stage::{AgentPlan, Programs, Stage, has_systemd};
use super::table::Table;
use crate::say;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Until an agent is what it is: first runs, first checks of databases, the link.
pub(crate) const SETTLE: Duration = Duration::from_secs(30);
/// How often each command is started.
const PREFLIGHT_ROUNDS: usize = 50;
const DOCTOR_ROUNDS: usize = 10;
/// Exit statuses up to here are answers; those above say that it could not be run.
const ANSWER_MAX: i32 = 3;
const NAME: &str = "bench-cost";

/// What was measured, to be told by another process as well.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told {
    /// For the table: what, measured, bound, how.
    pub(crate) rows: Vec<Vec<String>>,
    /// Of the agent, for the table with others.
    pub(crate) summary: Option<Summary>,
    /// Which units were watched, and where.
    pub(crate) units: String,
}

/// Measures `parts` where there are units to watch; without any, where there are none to be had.
pub(crate) fn measure(options: &Options, programs: &Programs, parts: &[Part]) -> Result<Told> {
    if has_systemd() {
        return here(options, programs, parts);
    }
    match Host::boot() {
        Ok(host) => inside(&host, options, programs, parts),
        Err(why) => {
            let mut told = here(options, programs, parts)?;
            told.units = format!("none: no systemd runs here, and a host with one cannot be had: {why:#}");
            Ok(told)
        }
    }
}

fn inside(host: &Host, options: &Options, programs: &Programs, parts: &[Part]) -> Result<Told> {
    let program = host.equip(&[programs.agent.clone(), programs.others.join("muster-coordinator")])?;
    let report = format!("{FOLDER}/report.json");
    let minutes = options.minutes.to_string();
    // Not below /tmp, which is memory there.
    let mut arguments = vec!["env", "TMPDIR=/var/tmp", &program, "bench", "agent", "--programs", FOLDER];
    arguments.extend(["--minutes", &minutes, "--report", &report]);
    for part in parts {
        arguments.extend(["--only", part.name()]);
    }
    host.run(&arguments)?;
    let mut told: Told = serde_json::from_str(&host.read(&["cat", &report])?).context("its report")?;
    told.units += "; agent, services and coordinator in one host of namespaces, files on an overlay";
    Ok(told)
}

/// On this very machine, with units where it has systemd.
pub(crate) fn here(options: &Options, programs: &Programs, parts: &[Part]) -> Result<Told> {
    let stage = Stage::set_with(programs, "5s", options.keep, has_systemd())?;
    let agent = stage.start_agent(&AgentPlan { name: NAME, interval: "5s", more: "", filter: None })?;
    let _logs = stage.write_logs()?;
    let mut table = Table::new("", &[]);
    let mut told = Told::default();
    if parts.contains(&Part::Cost) {
        let length = Duration::from_secs(u64::from(options.minutes) * 60);
        say!("cost: {} s to settle, then {} s …", SETTLE.as_secs(), length.as_secs());
        std::thread::sleep(SETTLE);
        told.summary = Some(cost(agent.pid, length, &mut table)?);
    } else {
        std::thread::sleep(SETTLE / 3);
    }
    let config = stage.lab.path(&format!("agent/{NAME}/agent.toml"));
    if parts.contains(&Part::Preflight) {
        say!("preflight, {PREFLIGHT_ROUNDS} times …");
        let (first, times) = times(&programs.agent, &["preflight", "--config", &config], PREFLIGHT_ROUNDS)?;
        let how = format!("start to end of the process; the agent runs beside it; one before them took {}", ms(first));
        row(&mut table, "preflight", &Ok(times), "max < 10 ms", &how);
    }
    if parts.contains(&Part::Doctor) {
        say!("doctor, {DOCTOR_ROUNDS} times …");
        let (first, times) = times(&programs.agent, &["doctor", "--config", &config], DOCTOR_ROUNDS)?;
        let how = "start to end of the process, with this bench's config; the agent runs and adds what it knows";
        let how = format!("{how}; one before them took {}", ms(first));
        row(&mut table, "doctor", &Ok(times), "max < 1 s", &how);
    }
    told.units = units(&stage, &programs.agent, &config)?;
    stage.lab.kill(NAME, Signal::SIGTERM)?;
    told.rows = table.into_rows();
    Ok(told)
}

fn cost(pid: u32, length: Duration, table: &mut Table) -> Result<Summary> {
    let cost = measure::watch(&[pid], length)?;
    let threads = measure::thread_names(pid).join(", ");
    let end = &cost.end;
    table.row(["PSS at the end", &mib(end.pss_kib), "8 MiB", "smaps_rollup"]);
    table.row(["PSS, largest seen", &mib(cost.pss_max_kib), "8 MiB", "every 7 s"]);
    table.row(["of it anonymous", &mib(end.anonymous_kib), "", "smaps_rollup"]);
    table.row(["RSS", &mib(end.rss_kib), "", "smaps_rollup"]);
    table.row(["threads at the end", &end.threads.to_string(), "5", &threads]);
    table.row(["threads, most seen", &cost.threads_max.to_string(), "", "short-lived ones included, every 7 s"]);
    let cpu = format!("{:.3} s", cost.cpu_seconds_per_minute);
    table.row(["processor time a minute", &cpu, "0.06 s", "user and system, over the whole run"]);
    let wakes = format!("{:.0}", cost.wakes_per_minute);
    table.row(["wake-ups a minute", &wakes, "", "voluntary context switches of threads that stay"]);
    table.row(["system calls", "not measured", "", "counting them changes what is measured"]);
    Ok(cost.summary())
}

/// From before the start of a process to after its end: of a first one, for which the kernel may have to read the program
/// from disk, and of `rounds` that follow.
fn times(program: &Path, arguments: &[&str], rounds: usize) -> Result<(Duration, Spread)> {
    let mut times = Vec::new();
    for _ in 0..=rounds {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let start = Instant::now();
        let output = command.output()?;
        times.push(start.elapsed());
        let answered = output.status.code().is_some_and(|status| (0..=ANSWER_MAX).contains(&status));
        ensure!(answered, "{arguments:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let first = times.remove(0);
    Ok((first, Spread { rounds, times: measure::spread(times).context("no rounds")? }))
}

/// What the agent itself says of the units: none is watched that it does not see.
fn units(stage: &Stage, agent: &Path, config: &str) -> Result<String> {
    let units = stage.units();
    if units.is_empty() {
        return Ok("none: no systemd runs here".to_owned());
    }
    let output = Command::new(agent).args(["doctor", "--config", config, "--format", "json"]).output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("doctor's answer")?;
    let of_units = |key: &str| -> Vec<String> {
        let all = report.get(key).and_then(|all| all.as_array()).into_iter().flatten();
        all.filter(|one| one.get("probe").is_some_and(|probe| probe == "unit")).map(ToString::to_string).collect()
    };
    let unseen = [of_units("unknown"), of_units("findings")].concat();
    ensure!(unseen.is_empty(), "units are not seen to be well: {unseen:?}");
    let version = Command::new("systemctl").arg("--version").output()?.stdout;
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned();
    Ok(format!("{} of {version}, each with the process of one of the services", units.len()))
}

/// Writes what was measured for the process that asked for it.
pub(crate) fn report(told: &Told, path: &Path) -> Result<()> {
    Ok(fs::write(path, serde_json::to_vec(told)?)?)
}
