//! Violent exercises with real processes.

use crate::lab::{Lab, WEBHOOK_PATH};
use crate::say;
use crate::suite::cargo_command;
use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

/// Which one.
#[derive(Subcommand, Debug, Clone)]
pub(crate) enum Drill {
    /// kill -9 of the coordinator at any moment under load: nothing acknowledged is lost, no page is lost or doubled
    Crash {
        /// How often
        #[arg(long, default_value_t = 100)]
        rounds: u32,
    },
    /// Many seeded worlds: agents, network, disks, coordinators, all breaking, no process started
    Sim {
        /// How many worlds
        #[arg(long, default_value_t = 500)]
        seeds: u64,
    },
}

/// Runs a drill.
pub(crate) fn run(drill: &Drill) -> Result<()> {
    match drill {
        Drill::Crash { rounds } => crash(*rounds),
        Drill::Sim { seeds } => sim(*seeds),
    }
}

/// Runs `seeds` worlds of the simulator; a failing one says how to run it again.
fn sim(seeds: u64) -> Result<()> {
    let mut cargo = cargo_command(&["test", "--package", "muster-tests", "--test", "simulation", "--", "--nocapture"]);
    let status = cargo.env("MUSTER_SEEDS", seeds.to_string()).status();
    ensure!(status.context("cannot run cargo test")?.success(), "a world broke a promise: see its seed above");
    Ok(())
}

/// Everything pages at once and by itself, and nothing resolves while the drill runs.
const COORDINATOR_EXTRA: &str = "\
[incidents]\n\
hold = { sev0 = \"0s\", sev1 = \"0s\", sev2 = \"0s\", sev3 = \"0s\", sev4 = \"0s\" }\n\
stability = { sev0 = \"1h\", sev1 = \"1h\", sev2 = \"1h\", sev3 = \"1h\", sev4 = \"1h\" }\n\n\
[detectors.incident_burst]\n\
incidents = 100000\n";

/// Agents of the drill.
const AGENTS: usize = 10;
/// Pid files that each agent watches: fewer than the incidents that one agent may have open at a time.
const SUBJECTS_PER_AGENT: usize = 30;
/// All of them; each is broken once, one after the other, as the load.
const SUBJECTS: usize = AGENTS * SUBJECTS_PER_AGENT;

/// Kills the coordinator `rounds` times while findings pour in, then checks that every fault became exactly one incident
/// with exactly one deduplication key at the receiver.
pub(crate) fn crash(rounds: u32) -> Result<()> {
    let mut lab = Lab::new("crash", false)?;
    lab.prepare_coordinators(&["coord-a"])?;
    lab.write_coordinator_config("coord-a", None, COORDINATOR_EXTRA)?;
    lab.start_coordinator("coord-a")?;
    for agent in 0..AGENTS {
        let config = watch_pid_files(&lab, agent)?;
        lab.start_agent(&format!("web-{agent}"), &config)?;
    }
    lab.wait("all agents are live", Duration::from_secs(60), || {
        Ok((lab.ctl("coord-a", &["status"])?["agents_live"].as_u64() == Some(AGENTS as u64)).then_some(()))
    })?;
    let start = Instant::now();
    let mut broken = 0;
    for round in 0..rounds {
        // Spread over the rounds, so that each crash meets findings in flight.
        let goal = SUBJECTS * (round as usize + 1) / rounds as usize;
        for subject in broken..goal {
            fs::write(pid_file(&lab, subject), "gone\n")?;
        }
        broken = goal;
        // Any moment: a spread from 0 to 700 ms that depends on the round alone, so that a failure can be repeated.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 7919 % 700));
        lab.kill("coord-a", Signal::SIGKILL)?;
        lab.start_coordinator("coord-a")?;
    }
    let expected: BTreeSet<String> = (0..SUBJECTS).map(service_name).collect();
    lab.wait("every fault is paged", Duration::from_secs(120), || {
        let paged: BTreeSet<String> = keys_by_service(&lab)?.into_keys().collect();
        Ok((paged == expected).then_some(()))
    })?;
    check_kept(&lab, &expected)?;
    say!("crash drill: {rounds} kills, {SUBJECTS} faults, each paged under one key ({:.0?})", start.elapsed());
    Ok(())
}

fn check_kept(lab: &Lab, expected: &BTreeSet<String>) -> Result<()> {
    for (service, keys) in keys_by_service(lab)? {
        ensure!(keys.len() == 1, "{service} was paged under {} deduplication keys: {keys:?}", keys.len());
    }
    let listed = lab.ctl("coord-a", &["findings", "list"])?;
    let findings = listed["findings"].as_array().context("no findings in the answer")?;
    let stored: BTreeSet<String> =
        findings.iter().filter_map(|finding| finding["service"].as_str().map(str::to_owned)).collect();
    let lost: Vec<&String> = expected.difference(&stored).collect();
    ensure!(lost.is_empty(), "{} findings were lost, among them {:?}", lost.len(), lost.first());
    // The journal that survived all this is whole, and its conclusions follow from its facts again.
    lab.kill("coord-a", Signal::SIGTERM)?;
    let config = lab.path("coordinator/coord-a/coordinator.toml");
    say!("{}", lab.run("muster-coordinator", &["check-store", "--config", &config])?.trim_end());
    Ok(())
}

/// Deduplication keys of triggers, by service.
fn keys_by_service(lab: &Lab) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for call in lab.receiver.calls(WEBHOOK_PATH) {
        if call.text("/action") == "trigger" && call.text("/reason") == "pid_file_malformed" {
            let service = call.text("/services/0").to_owned();
            keys.entry(service).or_default().insert(call.text("/dedup_key").to_owned());
        }
    }
    Ok(keys)
}

fn service_name(subject: usize) -> String {
    format!("svc-{subject:03}")
}

fn pid_file(lab: &Lab, subject: usize) -> String {
    lab.path(&format!("run/{}.pid", service_name(subject)))
}

/// All pid files name this very process, so all is well at first. Neighbours in time belong to different agents.
fn watch_pid_files(lab: &Lab, agent: usize) -> Result<String> {
    fs::create_dir_all(lab.root.join("run"))?;
    let mut config = String::new();
    for subject in (agent..SUBJECTS).step_by(AGENTS) {
        let path = pid_file(lab, subject);
        fs::write(&path, format!("{}\n", std::process::id()))?;
        config.push_str(&format!("[service.{}]\npid_file = {path:?}\n\n", service_name(subject)));
    }
    Ok(config)
}
