//! From a finding that an agent sends to the call that a receiver gets, while the fleet reports a thousand others a
//! second that page nobody.

use super::Results;
use super::measures::{latency, number};
use super::stage::Stage;
use crate::lab::WEBHOOK_PATH;
use crate::say;
use anyhow::Result;
use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Added to the coordinator's config: no hold before the page that is measured, and each pages by itself.
pub(crate) const HOLDS: &str = "[incidents.hold]\nsev2 = \"0s\"\n[detectors.incident_burst]\nincidents = 100000\n";
/// Findings a second that page nobody.
const LOAD_PER_S: u64 = 1_000;
/// Pages that are measured, and how far apart: fewer than would be told as one.
const PAGES: usize = 40;
const PAGES_BRISK: usize = 4;
const APART: Duration = Duration::from_millis(1_500);
/// For the last ones to arrive.
const LATE: Duration = Duration::from_secs(10);
const PAGE_MS: f64 = 100.0;
/// Sends are spread over the second in so many steps.
const STEP: Duration = Duration::from_millis(10);

/// Measures.
pub(crate) fn measure(stage: &Stage, results: &mut Results) -> Result<()> {
    let pages = if stage.brisk { PAGES_BRISK } else { PAGES };
    say!("{pages} findings that page, among {LOAD_PER_S} a second that do not …");
    let agents = &stage.swarm.agents;
    let (begun, mut sent, mut load) = (Instant::now(), BTreeMap::new(), 0u64);
    let length = APART * u32::try_from(pages)?;
    let before = stage.look()?;
    while begun.elapsed() < length {
        let due = u64::try_from(begun.elapsed().as_micros())? * LOAD_PER_S / 1_000_000;
        while load < due {
            let round = load / u64::try_from(agents.len())?;
            let index = usize::try_from(load)? % agents.len();
            if let Some(agent) = agents.get(index) {
                agent.report(&drift(round.is_multiple_of(2))?);
            }
            load += 1;
        }
        let page = sent.len();
        if begun.elapsed() > APART * u32::try_from(page)? && page < pages {
            let service = format!("paged-{page}");
            let key = FindingKey { subject: subject(&service, ProbeKind::Port)?, reason: Reason::PortClosed };
            let event = FindingEvent::Opened(Finding::new(key, "nobody listens"));
            if let Some(agent) = agents.get((page * 97) % agents.len()) {
                sent.insert(service, Instant::now());
                agent.report(&event);
            }
        }
        std::thread::sleep(STEP);
    }
    let cpu = stage.look()?.cpu.saturating_sub(before.cpu);
    let late = Instant::now();
    while late.elapsed() < LATE && stage.lab.receiver.calls(WEBHOOK_PATH).len() < pages {
        std::thread::sleep(STEP);
    }
    let calls = stage.lab.receiver.calls(WEBHOOK_PATH);
    let times: Vec<Duration> = sent
        .iter()
        .filter_map(|(service, at)| {
            let of_it = |call: &&crate::lab::receiver::Call| call.text("/services/0") == service;
            Some(calls.iter().find(of_it)?.at.saturating_duration_since(*at))
        })
        .collect();
    say!("  {} of {} pages arrived by themselves; {} calls in all", times.len(), sent.len(), calls.len());
    latency(results, "finding sent to page at a receiver, p99", times, PAGE_MS);
    let load = number(usize::try_from(load)?);
    let conditions = format!("{:.0} a second, to the journal and back", load / length.as_secs_f64());
    results.add("processor time of a finding", 1e6 * cpu.as_secs_f64() / load, "µs", None, &conditions);
    Ok(())
}

/// Opens or clears a condition that is kept for the record only.
fn drift(open: bool) -> Result<FindingEvent> {
    let key = FindingKey { subject: subject("sim", ProbeKind::Baseline)?, reason: Reason::BaselineDrift };
    Ok(match open {
        true => FindingEvent::Opened(Finding::new(key, "vm.swappiness is 60, declared is 10")),
        false => FindingEvent::Cleared { key, summary: "it is as declared".to_owned(), evidence: Evidence::new() },
    })
}

fn subject(service: &str, probe: ProbeKind) -> Result<SubjectKey> {
    Ok(SubjectKey::new(ServiceName::new(service)?, probe, "vm.swappiness"))
}
