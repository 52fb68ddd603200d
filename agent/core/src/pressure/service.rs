//! The verdict on the memory of one service's cgroup: near a limit (its own, or of a slice above), stalling, killed.
//!
//! Must never tell a kill twice: the kernel's log names the victim, so its counter speaks only where that log is closed
//! to the agent. A cgroup that is taken away with its last process takes its counter with it; then the unit's result
//! is the witness.

use super::cgroup::{Counters, Limit};
use super::psi::{Psi, StallRules};
use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use crate::process::watch::Room;
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::human_bytes;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Below the threshold by this much it is well again, in percent of the limit.
const BACK_PERCENT: u64 = 5;
/// "In the last minute".
const WINDOW_MS: u64 = 60_000;
/// Readings kept of that minute: one a second at most.
const HITS_MAX: usize = 64;
/// Out of memory is told at least this long.
const OOM_STAYS_MS: u64 = 60_000;

/// What is too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PressureRules {
    /// Stalls.
    pub stalls: StallRules,
    /// Of a limit, by what cannot be given back.
    pub limit_percent: u64,
}

/// A cgroup with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Its path.
    pub path: String,
    /// Its limits; at least one.
    pub limits: Vec<Limit>,
    /// What it uses, page cache included.
    pub usage_bytes: u64,
    /// What of it can be given back; `None` when it uses so little that nobody asked.
    pub reclaimable_bytes: Option<u64>,
    /// What happened there.
    pub counters: Counters,
}

impl Level {
    fn tightest(&self) -> Option<&Limit> {
        self.limits.iter().min_by_key(|limit| limit.bytes)
    }

    fn held_bytes(&self) -> u64 {
        self.usage_bytes.saturating_sub(self.reclaimable_bytes.unwrap_or(0))
    }

    fn percent(&self) -> u64 {
        let held = u128::from(self.held_bytes()) * 100;
        let limit = self.tightest().map_or(u128::MAX, |limit| u128::from(limit.bytes.max(1)));
        u64::try_from(held / limit).unwrap_or(u64::MAX)
    }

    /// What is left here before the limit.
    pub fn room(&self) -> Option<Room> {
        let limit = self.tightest()?;
        Some(Room {
            name: format!("{} of {}", limit.name, self.path),
            limit_bytes: limit.bytes,
            left_bytes: limit.bytes.saturating_sub(self.held_bytes()),
        })
    }
}

/// One reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The cgroup of the service's main process.
    pub cgroup: String,
    /// True when nothing but the service is in it.
    pub of_one_service: bool,
    /// What happened in it.
    pub counters: Counters,
    /// The levels with a limit, from the service's own upwards.
    pub levels: Vec<Level>,
    /// Stalls inside the cgroup, where the kernel tells.
    pub psi: Option<Psi>,
    /// False when the agent cannot read the kernel's log; asked only when something was killed.
    pub log_is_open: bool,
}

/// Judges one service over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServiceJudge {
    cgroup: String,
    near: bool,
    stalling: bool,
    oom_kills: Option<u64>,
    #[serde(skip)]
    ooms: Option<u64>,
    #[serde(skip)]
    oom_seen_ms: Option<u64>,
    /// When, `high`, `max` of the level that is told.
    #[serde(skip)]
    hits: VecDeque<(u64, u64, u64)>,
}

impl ServiceJudge {
    /// Whether `counters` say of a kill that was not told yet.
    pub fn sees_kill(&self, cgroup: &str, counters: &Counters, one_shot: bool) -> bool {
        self.new_kills(cgroup, counters, one_shot) > 0
    }

    fn new_kills(&self, cgroup: &str, counters: &Counters, one_shot: bool) -> u64 {
        let Some(kills) = counters.oom_kill else { return 0 };
        match self.oom_kills.filter(|_| self.cgroup == cgroup) {
            // Less than before: the cgroup was made anew since.
            Some(before) => kills.checked_sub(before).unwrap_or(kills),
            None if one_shot => kills,
            None => 0,
        }
    }

    /// One reading of the cgroup of `service`.
    pub fn judge(
        &mut self,
        rules: &PressureRules,
        service: &str,
        reading: &Reading,
        now: Now,
        one_shot: bool,
    ) -> Judgement {
        let kills = self.new_kills(&reading.cgroup, &reading.counters, one_shot);
        if self.cgroup != reading.cgroup {
            *self = Self { cgroup: reading.cgroup.clone(), ..Self::default() };
        }
        self.oom_kills = reading.counters.oom_kill.or(self.oom_kills);
        let level = reading.levels.iter().max_by_key(|level| level.percent());
        let seen = evidence_of(reading, level);
        let mut judgement = Judgement::ok(seen.clone());
        if one_shot {
            say_what_the_kernel_lacks(&mut judgement.seen, reading);
        }
        if kills > 0 && reading.of_one_service && !reading.log_is_open {
            judgement.occurrences.push(killed(service, reading, level, kills, one_shot));
        }
        let hits = self.note_hits(level, now);
        let words = self.words(rules, service, reading, level, hits, now);
        if words.is_empty() {
            return judgement;
        }
        let evidence = seen.count("hit_high_last_minute", hits.0).count("hit_max_last_minute", hits.1);
        let path = level.map_or(&reading.cgroup, |level| &level.path);
        let mut problem = Problem::new(Reason::MemoryPressure, words.join("; ")).evidence(evidence).next_steps([
            format!("see what uses it: systemd-cgtop -m -1, and memory.stat of the cgroup {path}"),
            "give it less work, or restart it before the kernel kills it".to_owned(),
            "raise MemoryMax= or MemoryHigh= of its unit (or of the slice above) only if the host has room".to_owned(),
        ]);
        if level.is_some_and(|level| level.counters.stopped) {
            problem = problem.severity(Severity::Sev2);
        }
        judgement.problems.push(problem);
        judgement
    }

    /// What is wrong, as parts of one sentence; nothing when all is well.
    fn words(
        &mut self,
        rules: &PressureRules,
        service: &str,
        reading: &Reading,
        level: Option<&Level>,
        hits: (u64, u64),
        now: Now,
    ) -> Vec<String> {
        let back = if self.near { BACK_PERCENT } else { 0 };
        self.near = level.is_some_and(|level| level.percent() >= rules.limit_percent.saturating_sub(back));
        self.stalling = reading.psi.is_some_and(|psi| psi.is_high(rules.stalls, self.stalling));
        let ooms = level.and_then(|level| level.counters.oom);
        if let (Some(before), Some(ooms)) = (self.ooms, ooms)
            && ooms > before
        {
            self.oom_seen_ms = Some(now.boottime_ms);
        }
        self.ooms = ooms;
        let was_out = self.oom_seen_ms.is_some_and(|at| now.boottime_ms.saturating_sub(at) < OOM_STAYS_MS);
        let stopped = level.is_some_and(|level| level.counters.stopped);
        let mut words = Vec::new();
        if self.near || self.stalling || was_out || stopped {
            words.extend(level.map(|level| usage_words(service, reading, level, hits)));
        }
        if stopped {
            words.push("its processes are stopped: the cgroup is out of memory and its OOM killer is off".to_owned());
        } else if was_out {
            words.push("it ran out of memory".to_owned());
        }
        if let Some(psi) = reading.psi.filter(|_| self.stalling) {
            words.push(if words.is_empty() { format!("{service}: {}", psi.words()) } else { psi.words() });
        }
        words
    }

    /// How often `memory.high` and the limit were hit in the last minute.
    fn note_hits(&mut self, level: Option<&Level>, now: Now) -> (u64, u64) {
        let Some(level) = level else { return (0, 0) };
        let (high, max) = (level.counters.high.unwrap_or(0), level.counters.max.unwrap_or(0));
        // Another level, or the cgroup made anew.
        if self.hits.back().is_some_and(|(_, old_high, old_max)| *old_high > high || *old_max > max) {
            self.hits.clear();
        }
        self.hits.push_back((now.boottime_ms, high, max));
        let begin = now.boottime_ms.saturating_sub(WINDOW_MS);
        while self.hits.len() > HITS_MAX || self.hits.front().is_some_and(|(at, ..)| *at < begin) {
            self.hits.pop_front();
        }
        self.hits.front().map_or((0, 0), |(_, old_high, old_max)| (high - old_high, max - old_max))
    }
}

/// `spl uses 2.9 GiB of its limit 3 GiB (memory.max of /…), 2.8 GiB of it cannot be given back, hit …`.
fn usage_words(service: &str, reading: &Reading, level: &Level, hits: (u64, u64)) -> String {
    let Some(limit) = level.tightest() else { return String::new() };
    let (used, held, bytes) =
        (human_bytes(level.usage_bytes), human_bytes(level.held_bytes()), human_bytes(limit.bytes));
    let own = level.path == reading.cgroup && reading.of_one_service;
    let mut words = if own {
        format!("{service} uses {used} of its limit {bytes} ({} of {})", limit.name, level.path)
    } else {
        format!("{service} is in {}, which uses {used} of its limit {bytes} ({})", level.path, limit.name)
    };
    if level.reclaimable_bytes.is_some() {
        words = format!("{words}, {held} of it cannot be given back");
    }
    for (hit, name) in [(hits.0, "memory.high"), (hits.1, "the limit")] {
        if hit > 0 {
            words = format!("{words}, hit {name} {hit} times in the last minute");
        }
    }
    words
}

fn killed(service: &str, reading: &Reading, level: Option<&Level>, kills: u64, one_shot: bool) -> Problem {
    let what = if kills == 1 { "a process".to_owned() } else { format!("{kills} processes") };
    let when = if one_shot { "since its cgroup was made" } else { "since the last look" };
    let summary = format!(
        "an OOM killer killed {what} of {service} {when} (oom_kill of {}); the kernel's log, which names them, is closed \
         to the agent",
        reading.cgroup
    );
    let evidence = evidence_of(reading, level).count("kills", kills).text("told_by", "memory.events of the cgroup");
    Problem::new(Reason::OomKill, summary).evidence(evidence).grade(Grade::Likely).severity(Severity::Sev2).next_steps(
        [
            "see who it was: journalctl -k | grep -i -A1 'oom-kill'",
            "let the agent read the kernel's log: StandardInput=file:/dev/kmsg in its unit, or CAP_SYSLOG",
        ],
    )
}

fn say_what_the_kernel_lacks(seen: &mut Evidence, reading: &Reading) {
    if reading.counters.oom_kill.is_none() {
        seen.insert(
            "oom_kills_unknown",
            Value::Text("not told: a cgroup counts its kills from Linux 4.13 on".to_owned()),
        );
    }
    if reading.psi.is_none() {
        let text = "not told: needs Linux 4.20, pressure stall information (psi=1) and version 2 of cgroups";
        seen.insert("stalls_unknown", Value::Text(text.to_owned()));
    }
}

fn evidence_of(reading: &Reading, level: Option<&Level>) -> Evidence {
    let mut evidence = Evidence::new().text("cgroup", &reading.cgroup);
    if let Some(level) = level
        && let Some(limit) = level.tightest()
    {
        evidence = evidence
            .text("limit_cgroup", &level.path)
            .text("limit_file", limit.name)
            .bytes("limit_bytes", limit.bytes)
            .bytes("usage_bytes", level.usage_bytes)
            .count("held_percent", level.percent());
        if let Some(bytes) = level.reclaimable_bytes {
            evidence = evidence.bytes("reclaimable_bytes", bytes);
        }
        if let Some(ooms) = level.counters.oom {
            evidence = evidence.count("limit_ooms", ooms);
        }
    } else {
        evidence = evidence.text("limit", "none below the host's memory");
    }
    if let Some(kills) = reading.counters.oom_kill {
        evidence = evidence.count("oom_kills", kills);
    }
    match &reading.psi {
        Some(psi) => psi.evidence(evidence),
        None => evidence,
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
