//! `muster-agent preflight`: may new work start here? Reads three small files and answers; needs no daemon.

use crate::config::Config;
use crate::freezes;
use crate::senses::HostRoot;
use muster_agent_core::freeze::Freeze;
use muster_agent_core::memory::{Bands, parse as parse_memory};
use muster_agent_core::preflight::{Answer, Question, decide};
use muster_agent_core::pressure::psi;
use serde_json::json;

/// What the caller wants.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// How many workers; `None`: how many could be?
    pub workers: Option<u32>,
    /// What one needs.
    pub worker_bytes: u64,
}

/// Asks the host.
pub fn ask(config: &Config, host: &HostRoot, wanted: Wanted) -> Answer {
    let read = |path: &str| std::fs::read_to_string(host.path(path)).ok();
    let memory = read("/proc/meminfo").and_then(|text| parse_memory(&text).ok());
    let total_bytes = memory.map_or(0, |memory| memory.total_bytes);
    let bands = crate::run::plan::bands(config).unwrap_or_else(|| Bands::default_for(total_bytes));
    let now = crate::clock::now().wall;
    let frozen: Vec<String> = match freezes::read(&freezes::path(&config.socket), now) {
        Ok(freezes) => freezes.iter().map(Freeze::words).collect(),
        // A freeze that cannot be read must not be taken for none.
        Err(error) => vec![format!("whether there is one is not known: {error}")],
    };
    decide(&Question {
        memory,
        bands,
        stalls: read("/proc/pressure/memory").and_then(|text| psi::parse(&text)),
        freezes: &frozen,
        workers: wanted.workers,
        worker_bytes: wanted.worker_bytes,
    })
}

/// For programs.
pub fn to_json(answer: &Answer, wanted: Wanted) -> String {
    // Hundredths, as the kernel has them.
    let percent = |hundredths: u64| f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0;
    let pressure = answer.stalls.map(
        |psi| json!({ "some_avg10_percent": percent(psi.some.avg10), "full_avg10_percent": percent(psi.full.avg10) }),
    );
    json!({
        "decision": answer.decision.as_str(),
        "memory_band": answer.band.map_or("unknown", muster_agent_core::memory::Band::as_str),
        "memory_available_bytes": answer.available_bytes,
        "memory_critical_bytes": answer.critical_bytes,
        "pressure": pressure,
        "freezes": answer.freezes,
        "workers_max": answer.workers_max,
        "workers_wanted": wanted.workers,
        "worker_bytes": wanted.worker_bytes,
        "reasons": answer.reasons,
    })
    .to_string()
}

/// For people.
pub fn to_text(answer: &Answer) -> String {
    let room = match answer.workers_max {
        1 => "room for 1 worker".to_owned(),
        room => format!("room for {room} workers"),
    };
    let mut text = format!("{}: {room}\n", answer.decision);
    for reason in &answer.reasons {
        text.push_str(&format!("  {}\n", crate::doctor::text::plain(reason)));
    }
    text
}
