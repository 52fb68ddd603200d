//! May new work start on this host? From the memory band, stalls, and freezes: go, caution or stop, and how many workers
//! of a given size there is room for.
//!
//! Answers for this moment alone: two callers at once are told the same room.

use crate::memory::{Band, Bands, Reading};
use crate::pressure::psi::Psi;
use muster_common::units::human_bytes;
use std::fmt;

/// Hundredths of a percent of the last ten seconds in which some process stalled for memory: from here on caution.
const SOME_CAUTION: u64 = 10_00;
/// In which all stalled at once: from here on caution.
const FULL_CAUTION: u64 = 2_00;
/// And from here on stop: a host that thrashes does not get better by more work.
const FULL_STOP: u64 = 10_00;

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// Start.
    Go,
    /// Start less, or later.
    Caution,
    /// Do not start.
    Stop,
}

impl Decision {
    /// `"go"`, `"caution"` or `"stop"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Caution => "caution",
            Self::Stop => "stop",
        }
    }

    /// 0, 1 or 2.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Go => 0,
            Self::Caution => 1,
            Self::Stop => 2,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is asked and what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question<'a> {
    /// `/proc/meminfo`; `None` where it cannot be read.
    pub memory: Option<Reading>,
    /// The thresholds.
    pub bands: Bands,
    /// `None` where the kernel does not tell.
    pub stalls: Option<Psi>,
    /// Freezes that concern this host, each in words.
    pub freezes: &'a [String],
    /// How many workers the caller wants to start; `None`: how many could be?
    pub workers: Option<u32>,
    /// What one needs.
    pub worker_bytes: u64,
}

/// The answer with its grounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// In one word.
    pub decision: Decision,
    /// The memory band now; `None` where it is not known.
    pub band: Option<Band>,
    /// What is available; `None` where it is not known.
    pub available_bytes: Option<u64>,
    /// Below it memory is critical, and nothing is planned.
    pub critical_bytes: u64,
    /// Stalls for memory; `None` where the kernel does not tell.
    pub stalls: Option<Psi>,
    /// The freezes in force, each in words.
    pub freezes: Vec<String>,
    /// Workers that fit above the critical threshold.
    pub workers_max: u32,
    /// Why, worst first; empty for a plain go.
    pub reasons: Vec<String>,
}

/// Decides.
pub fn decide(question: &Question<'_>) -> Answer {
    let mut grounds: Vec<(Decision, String)> = Vec::new();
    grounds.extend(question.freezes.iter().map(|freeze| (Decision::Stop, format!("freeze: {freeze}"))));
    let band = question.memory.map(|memory| Band::default().next(memory.available_bytes, question.bands));
    let workers_max = match question.memory {
        Some(memory) => {
            let room = memory.available_bytes.saturating_sub(question.bands.critical_bytes);
            u32::try_from(room / question.worker_bytes.max(1)).unwrap_or(u32::MAX)
        }
        None => {
            grounds.push((Decision::Caution, "available memory is not known: /proc/meminfo cannot be read".to_owned()));
            0
        }
    };
    grounds.extend(question.memory.zip(band).and_then(|(memory, band)| about_band(memory, band, question.bands)));
    grounds.extend(question.stalls.and_then(about_stalls));
    if question.memory.is_some() {
        grounds.extend(about_room(question, workers_max));
    }
    grounds.sort_by_key(|(decision, _)| std::cmp::Reverse(*decision));
    let decision = grounds.first().map_or(Decision::Go, |(decision, _)| *decision);
    let workers_max = if decision == Decision::Stop { 0 } else { workers_max };
    Answer {
        decision,
        band,
        available_bytes: question.memory.map(|memory| memory.available_bytes),
        critical_bytes: question.bands.critical_bytes,
        stalls: question.stalls,
        freezes: question.freezes.to_vec(),
        workers_max,
        reasons: grounds.into_iter().map(|(_, words)| words).collect(),
    }
}

fn about_band(memory: Reading, band: Band, bands: Bands) -> Option<(Decision, String)> {
    let words = |threshold: u64| {
        format!(
            "memory is {}: {} available, below {}",
            band.as_str(),
            human_bytes(memory.available_bytes),
            human_bytes(threshold)
        )
    };
    match band {
        Band::Healthy => None,
        Band::Approaching => Some((Decision::Caution, words(bands.approaching_bytes))),
        Band::Critical => Some((Decision::Stop, words(bands.critical_bytes))),
    }
}

fn about_stalls(psi: Psi) -> Option<(Decision, String)> {
    let (some, full) = (psi.some.avg10, psi.full.avg10);
    let words = || {
        let percent = |hundredths: u64| format!("{}.{:02} %", hundredths / 100, hundredths % 100);
        format!("processes stall for memory: some {}, all at once {} of the last 10 s", percent(some), percent(full))
    };
    if full >= FULL_STOP {
        Some((Decision::Stop, words()))
    } else if full >= FULL_CAUTION || some >= SOME_CAUTION {
        Some((Decision::Caution, words()))
    } else {
        None
    }
}

fn about_room(question: &Question<'_>, workers_max: u32) -> Option<(Decision, String)> {
    let size = human_bytes(question.worker_bytes);
    let critical = human_bytes(question.bands.critical_bytes);
    let wanted = question.workers.unwrap_or(1);
    if workers_max >= wanted {
        return None;
    }
    if workers_max == 0 {
        return Some((Decision::Stop, format!("no worker of {size} fits above the critical {critical}")));
    }
    Some((
        Decision::Caution,
        format!("only {workers_max} of {wanted} workers of {size} fit above the critical {critical}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pressure::psi::Stall;

    const GIB: u64 = 1 << 30;

    /// (decision, workers that fit, a part of the first reason).
    fn check(question: &Question<'_>, expected: (Decision, u32, &str)) {
        let answer = decide(question);
        let first = answer.reasons.first().map_or("", String::as_str);
        assert_eq!((answer.decision, answer.workers_max), (expected.0, expected.1), "{answer:?}");
        assert!(first.contains(expected.2) && first.is_empty() == expected.2.is_empty(), "{answer:?}");
    }

    #[test]
    fn decides_by_band_room_stalls_and_freezes() {
        let host = |available_bytes| Question {
            memory: Some(Reading { available_bytes, total_bytes: 64 * GIB }),
            bands: Bands { approaching_bytes: 4 * GIB, critical_bytes: 2 * GIB },
            stalls: None,
            freezes: &[],
            workers: None,
            worker_bytes: GIB,
        };
        check(&host(32 * GIB), (Decision::Go, 30, ""));
        check(&Question { workers: Some(30), ..host(32 * GIB) }, (Decision::Go, 30, ""));
        check(
            &Question { workers: Some(31), ..host(32 * GIB) },
            (Decision::Caution, 30, "only 30 of 31 workers of 1 GiB"),
        );
        check(&Question { worker_bytes: 40 * GIB, ..host(32 * GIB) }, (Decision::Stop, 0, "no worker of 40 GiB fits"));
        check(&host(4 * GIB - 1), (Decision::Caution, 1, "memory is approaching"));
        check(&host(2 * GIB - 1), (Decision::Stop, 0, "memory is critical"));
        check(&Question { worker_bytes: 0, ..host(3 * GIB) }, (Decision::Caution, 1 << 30, "approaching"));
        let stall = |avg10| Stall { avg10, ..Stall::default() };
        let stalls = |some, full| Some(Psi { some: stall(some), full: stall(full) });
        check(&Question { stalls: stalls(999, 199), ..host(32 * GIB) }, (Decision::Go, 30, ""));
        let caution = "some 10.00 %, all at once 0.00 %";
        check(&Question { stalls: stalls(1_000, 0), ..host(32 * GIB) }, (Decision::Caution, 30, caution));
        check(&Question { stalls: stalls(5_000, 1_000), ..host(32 * GIB) }, (Decision::Stop, 0, "stall"));
        let freezes = ["upgrade of the database, by ana until 04:00".to_owned()];
        check(&Question { freezes: &freezes, ..host(3 * GIB) }, (Decision::Stop, 0, "freeze: upgrade"));
        check(&Question { memory: None, ..host(0) }, (Decision::Caution, 0, "not known"));
    }
}
