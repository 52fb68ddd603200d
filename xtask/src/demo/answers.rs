//! What the coordinator answers when it is asked: why it did not page, why it did, and what it would have done under
//! another policy.

use super::{Outcome, PAGE_LIMIT, Row, faults, progress, resolved};
use crate::lab::{Lab, WEBHOOK_PATH};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Instant;

/// Kills a service under a silence: nobody is paged, and asked why not the coordinator names the silence. It is ended,
/// and the page comes.
pub(super) fn silence_a_fault(lab: &Lab) -> Result<Row> {
    let fault = &faults::SILENCED;
    let matchers = ["--agent", "web-2", "--service", "spl"];
    let add = [&["silence", "add", "--reason", "demo of a silence", "--ttl", "10m"], &matchers[..]].concat();
    let silence = lab.ctl("coord-a", &add)?;
    let id = silence["id"].as_str().context("a silence without an id")?;
    (fault.inject)(lab)?;
    lab.wait("the incident to be held back", PAGE_LIMIT, || {
        let list = lab.ctl("coord-a", &[&["incidents", "list"], &matchers[..]].concat())?;
        let incident = &list["incidents"][0];
        let told = incident["not_paged_because"].as_str().is_some_and(|why| why.contains(id));
        Ok((incident["silenced_by"] == id && told).then_some(()))
    })?;
    let answer = lab.ctl("coord-a", &["why-not", "web-2"])?;
    let rules = answer["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(rules.iter().any(|rule| rule["held_back_by"] == "silence"), "why-not names no silence: {answer:#}");
    let paged = || lab.receiver.calls(WEBHOOK_PATH).into_iter().find(|call| fault.matches(call));
    ensure!(paged().is_none(), "somebody was paged although {id} holds");
    let start = Instant::now();
    lab.ctl("coord-a", &["silence", "expire", id])?;
    let (page, _) = lab.wait("the page after the silence", PAGE_LIMIT, || Ok(paged()))?;
    let outcome = Outcome::paged(&page, start);
    if let Some(mend) = fault.mend {
        mend(lab)?;
        resolved(lab, fault, &page)?;
    }
    let row = Row { fault: fault.name, outcome };
    progress(&row);
    Ok(row)
}

/// Asks why an incident paged, takes the journal behind it home, and replays it: under the same policy every conclusion
/// is the same, under one with a longer hold pages move.
pub(super) fn explain_and_replay(lab: &Lab, incident: &str) -> Result<Row> {
    let start = Instant::now();
    let why = lab.ctl("coord-a", &["why", incident])?;
    ensure!(why["rules"].as_array().is_some_and(|rules| !rules.is_empty()), "no rule is named: {why:#}");
    let note = lab.path("incident.md");
    lab.ctl_text("coord-a", &["incidents", "export", incident, "--output", &note])?;
    ensure!(fs::read_to_string(&note)?.contains(incident), "the note does not name {incident}");
    let bundle = lab.path("incident.bundle");
    lab.ctl_text("coord-a", &["incidents", "export", incident, "--bundle", "--output", &bundle])?;
    let replay = |more: &[&str]| -> Result<serde_json::Value> {
        let text = lab.run("muster-coordinator", &[&["replay", &bundle, "--format", "json"], more].concat())?;
        Ok(serde_json::from_str(&text)?)
    };
    let same = replay(&[])?;
    ensure!(same["identical"] == true, "the journal does not replay: {same:#}");
    let config = fs::read_to_string(lab.path("coordinator/coord-a/coordinator.toml"))?;
    let patient = lab.path("patient.toml");
    fs::write(&patient, config.replace("sev2 = \"2s\"", "sev2 = \"3s\""))?;
    let other = replay(&["--policy", &patient])?;
    let n = |what: &str| other["what_if"][what].as_array().map_or(0, Vec::len);
    let changed = n("moved") + n("removed");
    ensure!(changed > 0, "a longer hold changes nothing: {other:#}");
    let facts = same["counts"]["facts"].as_u64().unwrap_or_default();
    let what = format!("{facts} facts give the same conclusions; a hold of 3 s moves or saves {changed} pages");
    let row = Row { fault: "why, export and replay", outcome: Outcome::Done { after: start.elapsed(), what } };
    progress(&row);
    Ok(row)
}
