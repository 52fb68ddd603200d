//! `cargo xtask demo`: the main job on real input, checking itself.
//!
//! Two coordinators, three agents and a handful of small services run as real processes with their own state. Then
//! things are broken for real, and each fault must be found and paged exactly once. What is not possible on this machine
//! (a memory cgroup) is skipped, and told.

mod answers;
mod faults;

use crate::lab::receiver::Call;
use crate::lab::{Lab, PAGERDUTY_PATH, WEBHOOK_PATH};
use crate::say;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How to run it.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Options {
    /// Keeps everything up at the end and prints commands to try; Ctrl-C ends it
    #[arg(long)]
    stay: bool,
    /// Leaves the temporary folder (logs, configs, journals) behind
    #[arg(long)]
    keep: bool,
}

/// How long a fault may take from its making to its page. Generous: a loaded machine is not what is tested.
const PAGE_LIMIT: Duration = Duration::from_secs(60);

/// Holds and stability windows of the demo: seconds where production has minutes. The three agents share this machine's
/// kernel log, so that each tells the one OOM kill, and those of whatever else ran here in the last minutes; and the same
/// service is killed on all of them one after the other: both would be a storm.
const COORDINATOR_EXTRA: &str = "\
[detectors.oom_storm]\n\
hosts = 4\n\
kills = 100000\n\
[detectors.restart_storm]\n\
fleet_hosts = 4\n\
[incidents]\n\
hold = { sev0 = \"0s\", sev1 = \"0s\", sev2 = \"2s\", sev3 = \"4s\", sev4 = \"4s\" }\n\
stability = { sev0 = \"5s\", sev1 = \"5s\", sev2 = \"5s\", sev3 = \"5s\", sev4 = \"5s\" }\n";

/// Reason of the freeze that outlives the primary.
const CARRIED_FREEZE: &str = "kept by the standby";

/// One line of the closing table.
struct Row {
    fault: &'static str,
    outcome: Outcome,
}

enum Outcome {
    Paged { after: Duration, incident: String, severity: String, title: String },
    Skipped(String),
    Done { after: Duration, what: String },
}

impl Outcome {
    /// The page came; its fault was made at `start`.
    fn paged(page: &Call, start: Instant) -> Self {
        Self::Paged {
            after: page.at.duration_since(start),
            incident: page.text("/incident").to_owned(),
            severity: page.text("/severity").to_owned(),
            title: page.text("/title").to_owned(),
        }
    }
}

/// Runs it. An error when anything was not found, was paged twice, or did not resolve.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut lab = Lab::new("demo", options.keep)?;
    let outcome = play(&mut lab);
    match &outcome {
        Ok(rows) => print_table(rows),
        // Told here already: with --stay the process does not end by itself.
        Err(error) => say!("\nFAILED: {error:#}; logs are in {} (kept only with --keep)", lab.path("log")),
    }
    if options.stay {
        print_commands(&lab)?;
        // Until Ctrl-C: the signal thread ends everything and the process.
        loop {
            std::thread::park();
        }
    }
    outcome.map(|rows| say!("\ndemo passed: {} steps", rows.len()))
}

fn play(lab: &mut Lab) -> Result<Vec<Row>> {
    start_fleet(lab)?;
    let mut rows = Vec::new();
    for fault in faults::ALL {
        let row = Row { fault: fault.name, outcome: make_fault(lab, fault)? };
        progress(&row);
        rows.push(row);
        if rows.len() == 1 {
            rows.push(answers::silence_a_fault(lab)?);
        }
    }
    rows.push(answers::explain_and_replay(lab, first_incident(&rows)?)?);
    rows.push(freeze_a_host(lab)?);
    rows.extend(lose_the_primary(lab)?);
    check_each_paged_once(lab)?;
    Ok(rows)
}

fn start_fleet(lab: &mut Lab) -> Result<()> {
    say!("starting two coordinators, three agents and their services …");
    let start = Instant::now();
    lab.prepare_coordinators(&["coord-a", "coord-b"])?;
    lab.write_coordinator_config("coord-a", None, COORDINATOR_EXTRA)?;
    lab.write_coordinator_config("coord-b", Some("coord-a"), COORDINATOR_EXTRA)?;
    lab.start_coordinator("coord-a")?;
    lab.start_coordinator("coord-b")?;
    faults::start_services(lab)?;
    for host in faults::HOSTS {
        lab.start_agent(host, &faults::services_config(lab, host))?;
    }
    lab.wait("three agents live, their services seen, a standby following", Duration::from_secs(60), || {
        let status = lab.ctl("coord-a", &["status"])?;
        let live = status["agents_live"].as_u64() == Some(3);
        let standby = status["standbys"].as_array().is_some_and(|standbys| standbys.len() == 1);
        Ok((live && standby && faults::all_seen_alive(lab)?).then_some(()))
    })?;
    let what = "3 agents live, 7 services seen, a standby follows".to_owned();
    progress(&Row { fault: "fleet started", outcome: Outcome::Done { after: start.elapsed(), what } });
    Ok(())
}

/// Makes one fault, waits for its page, mends it, waits for its resolve.
fn make_fault(lab: &Lab, fault: &faults::Fault) -> Result<Outcome> {
    let before = lab.receiver.calls(WEBHOOK_PATH).len();
    let start = Instant::now();
    if let Some(reason) = (fault.inject)(lab)? {
        return Ok(Outcome::Skipped(reason));
    }
    let (page, _) = lab.wait(&format!("a page for: {}", fault.name), PAGE_LIMIT, || {
        Ok(lab.receiver.calls(WEBHOOK_PATH).into_iter().skip(before).find(|call| fault.matches(call)))
    })?;
    let outcome = Outcome::paged(&page, start);
    if let Some(mend) = fault.mend {
        mend(lab)?;
        resolved(lab, fault, &page)?;
    }
    Ok(outcome)
}

/// Waits until what a page told of is told to be over.
fn resolved(lab: &Lab, fault: &faults::Fault, page: &Call) -> Result<()> {
    let key = page.text("/dedup_key");
    let is_resolve = |call: &Call| call.text("/dedup_key") == key && call.text("/action") == "resolve";
    lab.wait(&format!("the resolve of: {}", fault.name), PAGE_LIMIT, || {
        Ok(lab.receiver.calls(WEBHOOK_PATH).iter().any(is_resolve).then_some(()))
    })?;
    Ok(())
}

/// The incident that was paged first.
fn first_incident(rows: &[Row]) -> Result<&str> {
    let incident = rows.iter().find_map(|row| match &row.outcome {
        Outcome::Paged { incident, .. } => Some(incident.as_str()),
        _ => None,
    });
    incident.context("nothing was paged")
}

/// Freezes one host: `preflight` there says stop, who and why, and elsewhere it does not; lifted, it says go again. One
/// more stays for the standby to know.
fn freeze_a_host(lab: &Lab) -> Result<Row> {
    let [frozen, other, _] = faults::HOSTS;
    let start = Instant::now();
    let on = ["freeze", "on", "--reason", "demo of a freeze", "--agent", frozen];
    let freeze = lab.ctl("coord-a", &on)?;
    let id = freeze["id"].as_str().unwrap_or_default().to_owned();
    lab.wait("preflight to stop on the frozen host", PAGE_LIMIT, || {
        let (status, told) = preflight(lab, frozen)?;
        let whole = told.contains("demo of a freeze") && told.contains("by alice") && told.contains(&id);
        Ok((status == 2 && whole).then_some(()))
    })?;
    let (_, told) = preflight(lab, other)?;
    ensure!(!told.contains("demo of a freeze"), "{other} was not frozen: {told}");
    lab.ctl("coord-a", &["freeze", "off", &id])?;
    lab.wait("preflight to go again", PAGE_LIMIT, || Ok((preflight(lab, frozen)?.0 == 0).then_some(())))?;
    lab.ctl("coord-a", &["freeze", "on", "--reason", CARRIED_FREEZE])?;
    let what = "preflight stopped and went again".to_owned();
    let row = Row { fault: "host frozen", outcome: Outcome::Done { after: start.elapsed(), what } };
    progress(&row);
    Ok(row)
}

/// Exit status and output of `preflight` on an agent's host.
fn preflight(lab: &Lab, host: &str) -> Result<(i32, String)> {
    let config = lab.path(&format!("agent/{host}/agent.toml"));
    let asked = ["preflight", "--config", &config, "--worker-memory", "1MiB", "--format", "json"];
    let output = std::process::Command::new(lab.binary("muster-agent")).args(asked).output()?;
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Acknowledges an open incident, kills the primary, promotes the standby, and checks what carried over.
fn lose_the_primary(lab: &mut Lab) -> Result<Vec<Row>> {
    let open = lab.ctl("coord-a", &["incidents", "list"])?;
    let Some(number) =
        open["incidents"].as_array().and_then(|list| list.first()).map(|incident| incident["id"].clone())
    else {
        bail!("no incident is open to be carried over: {open}");
    };
    let number = number.as_str().unwrap_or_default().to_owned();
    lab.ctl("coord-a", &["incidents", "ack", &number, "--note", "looking"])?;
    lab.wait("the standby to hold the acknowledgement", PAGE_LIMIT, || {
        Ok((lab.ctl("coord-b", &["incidents", "show", &number])?["owner"].as_str() != Some("")).then_some(()))
    })?;
    lab.kill("coord-a", nix::sys::signal::Signal::SIGKILL)?;
    let start = Instant::now();
    let promote = ["failover", "promote", "--old-primary", "coord-a", "--reason", "demo"];
    lab.ctl("coord-b", &[&promote[..], &["--force", "--yes", "--wait", "0s"]].concat())?;
    let (_, _) = lab.wait("agents to re-home to coord-b", PAGE_LIMIT, || {
        // One of the three was stopped by a fault above and stays away.
        Ok((lab.ctl("coord-b", &["status"])?["agents_live"].as_u64() >= Some(2)).then_some(()))
    })?;
    let rehomed = Row {
        fault: "primary killed, standby promoted",
        outcome: Outcome::Done { after: start.elapsed(), what: "agents re-homed".to_owned() },
    };
    progress(&rehomed);
    let freezes = lab.ctl("coord-b", &["freeze", "list"])?;
    ensure!(freezes["freezes"][0]["reason"] == CARRIED_FREEZE, "the freeze was lost: {freezes}");
    let carried = lab.ctl("coord-b", &["incidents", "show", &number])?;
    ensure!(carried["state"].as_str().is_some_and(|state| state.eq_ignore_ascii_case("acknowledged")), "{carried}");
    let after = Row { fault: faults::AFTER_TAKEOVER.name, outcome: make_fault(lab, &faults::AFTER_TAKEOVER)? };
    progress(&after);
    Ok(vec![rehomed, after])
}

/// Over the whole run: one deduplication key per incident, no incident without its page at both receivers, and no two
/// incidents open for one cause at a time.
fn check_each_paged_once(lab: &Lab) -> Result<()> {
    let triggers = |path: &str, action: &str, is: &str| -> Vec<Call> {
        lab.receiver.calls(path).into_iter().filter(|call| call.text(action) == is).collect()
    };
    let hooks = triggers(WEBHOOK_PATH, "/action", "trigger");
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for call in &hooks {
        keys.entry(call.text("/incident").to_owned()).or_default().insert(call.text("/dedup_key").to_owned());
    }
    for (incident, keys) in &keys {
        ensure!(keys.len() == 1, "{incident} was paged under {} keys", keys.len());
    }
    for fault in all_faults() {
        let distinct: BTreeSet<String> =
            hooks.iter().filter(|call| fault.matches(call)).map(|call| call.text("/dedup_key").to_owned()).collect();
        ensure!(distinct.len() <= 1, "{} was paged {} times", fault.name, distinct.len());
    }
    let (_, _) = lab.wait("PagerDuty's stand-in has the same keys", PAGE_LIMIT, || {
        let pagerduty: BTreeSet<String> = triggers(PAGERDUTY_PATH, "/event_action", "trigger")
            .iter()
            .map(|call| call.text("/dedup_key").to_owned())
            .collect();
        let webhook: BTreeSet<String> = keys.values().flatten().cloned().collect();
        Ok(webhook.is_subset(&pagerduty).then_some(()))
    })?;
    // A page updated under its key (a loop behind an outage) is the same page.
    let explained: BTreeSet<&str> = hooks
        .iter()
        .filter(|call| all_faults().any(|fault| fault.matches(call)))
        .map(|call| call.text("/dedup_key"))
        .collect();
    let stray: Vec<String> = hooks
        .iter()
        .filter(|call| !explained.contains(call.text("/dedup_key")))
        // The three agents share this machine's kernel log: each tells kills of processes that are none of its services'.
        .filter(|call| call.text("/reason") != "oom_kill" || call.body["services"] != serde_json::json!(["host"]))
        .map(|call| format!("{} {}", call.text("/reason"), call.text("/title")))
        .collect();
    ensure!(stray.is_empty(), "pages that no fault explains: {stray:#?}");
    Ok(())
}

fn all_faults() -> impl Iterator<Item = &'static faults::Fault> {
    faults::ALL.iter().chain([&faults::SILENCED, &faults::AFTER_TAKEOVER])
}

fn progress(row: &Row) {
    match &row.outcome {
        Outcome::Paged { after, severity, title, .. } => {
            say!("  ok    {:<36} {severity} paged after {after:.1?}: {title}", row.fault);
        }
        Outcome::Skipped(why) => say!("  skip  {:<36} {why}", row.fault),
        Outcome::Done { after, what } => say!("  ok    {:<36} {what} after {after:.1?}", row.fault),
    }
}

fn print_table(rows: &[Row]) {
    say!("\n{:<36} {:<10} {:<18} {:>9}", "what was broken", "result", "incident", "page after");
    say!("{}", "-".repeat(78));
    for row in rows {
        let (result, incident, after) = match &row.outcome {
            Outcome::Paged { after, incident, .. } => ("paged once", incident.as_str(), format!("{after:.1?}")),
            Outcome::Skipped(_) => ("skipped", "", String::new()),
            Outcome::Done { after, .. } => ("done", "", format!("{after:.1?}")),
        };
        say!("{:<36} {result:<10} {incident:<18} {after:>9}", row.fault);
    }
}

fn print_commands(lab: &Lab) -> Result<()> {
    let tls = lab.path("tls/alice");
    let endpoint = lab.endpoint("coord-b")?;
    let address = endpoint.trim_start_matches("https://");
    let flags = format!("-cacert {tls}/ca.pem -cert {tls}/cert.pem -key {tls}/key.pem {address}");
    say!("\nEverything stays up; Ctrl-C ends it. To try:");
    say!("  grpcurl {flags} list");
    say!("  grpcurl {flags} muster.v1.FleetService/GetFleetStatus");
    say!("  grpcurl {flags} muster.v1.IncidentService/ListIncidents");
    say!("  grpcurl -d '{{\"page_size\": 5}}' {flags} muster.v1.FindingService/ListFindings");
    say!("  {} {} status", lab.binary("musterctl").display(), lab.ctl_arguments("coord-b")?.join(" "));
    Ok(())
}
