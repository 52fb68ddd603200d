//! Pressure stall information (`/proc/pressure/memory`, `memory.pressure` of a cgroup; Linux 4.20) and the verdict on
//! the host's.
//!
//! The kernel's averages are believed as they are: those over 60 s decide, those over 10 s only when all work stands
//! still, so that a moment of reclaim is no finding.

use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use muster_common::evidence::Evidence;
use muster_common::reason::Reason;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// With this many times the threshold over 10 s nothing moves any more: told before the minute is over.
const STANDSTILL_FACTOR: u64 = 4;

/// From which share of time on stalls are too much, in percent of the last minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallRules {
    /// Some process stalls.
    pub some_percent: u64,
    /// All processes stall at once.
    pub full_percent: u64,
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stall {
    /// Hundredths of a percent of the last 10 s.
    pub avg10: u64,
    /// Hundredths of a percent of the last 60 s.
    pub avg60: u64,
    /// Since boot, or since the cgroup was made.
    pub total_us: u64,
}

/// Both lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Psi {
    /// At least one process stalled.
    pub some: Stall,
    /// All of them stalled.
    pub full: Stall,
}

/// Reads the text.
///
/// ```
/// use muster_agent_core::pressure::psi::parse;
/// let text = "some avg10=1.53 avg60=0.87 avg300=0.23 total=1243566\nfull avg10=0.00 avg60=0.10 avg300=0.00 total=9\n";
/// let psi = parse(text).unwrap();
/// assert_eq!((psi.some.avg10, psi.full.avg60, psi.full.total_us), (153, 10, 9));
/// assert_eq!(parse("nothing"), None);
/// ```
pub fn parse(text: &str) -> Option<Psi> {
    let line = |name: &str| {
        let fields = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let field = |key: &str| fields.split(' ').find_map(|field| field.strip_prefix(key));
        let total_us = field("total=")?.trim().parse().ok()?;
        Some(Stall { avg10: hundredths(field("avg10=")?)?, avg60: hundredths(field("avg60=")?)?, total_us })
    };
    Some(Psi { some: line("some")?, full: line("full").unwrap_or_default() })
}

fn hundredths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.')?;
    let part: u64 = part.get(..2)?.parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(part)
}

impl Psi {
    /// Too much, for a place that was (not) too much before: back only below half of the thresholds.
    pub fn is_high(&self, rules: StallRules, was_high: bool) -> bool {
        let part = if was_high { 50 } else { 100 };
        self.some.avg60 >= rules.some_percent * part
            || self.full.avg60 >= rules.full_percent * part
            || self.full.avg10 >= rules.full_percent * STANDSTILL_FACTOR * part
    }

    /// `some process waited for memory 34 % of the last minute, all of them 12 %`.
    pub fn words(&self) -> String {
        let (some, full) = (self.some.avg60 / 100, self.full.avg60 / 100);
        format!("some process waited for memory {some} % of the last minute, all at once {full} %")
    }

    /// The figures.
    #[must_use]
    pub fn evidence(&self, evidence: Evidence) -> Evidence {
        evidence
            .count("stall_some_avg10_percent", self.some.avg10 / 100)
            .count("stall_some_avg60_percent", self.some.avg60 / 100)
            .count("stall_full_avg10_percent", self.full.avg10 / 100)
            .count("stall_full_avg60_percent", self.full.avg60 / 100)
    }
}

/// Why there is no reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// The kernel has no such file, or the accounting is switched off.
    NoPsi,
    /// Something else: what.
    Error(String),
}

/// Judges the host's stalls over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostJudge {
    high: bool,
    since_boottime_ms: Option<u64>,
    #[serde(skip)]
    last: Option<(u64, u64)>,
}

impl HostJudge {
    /// One reading.
    pub fn judge(&mut self, rules: StallRules, reading: Result<Psi, Absent>, now: Now) -> Judgement {
        let psi = match reading {
            Ok(psi) => psi,
            Err(Absent::NoPsi) => {
                return Judgement::unknown(
                    "this kernel does not tell how long processes wait for memory (no /proc/pressure/memory)",
                    Some("needs Linux 4.20 with CONFIG_PSI; where it is built in but off, boot with psi=1"),
                );
            }
            Err(Absent::Error(why)) => {
                return Judgement::unknown(format!("/proc/pressure/memory cannot be read: {why}"), None);
            }
        };
        let high = psi.is_high(rules, self.high);
        if !high {
            self.since_boottime_ms = None;
        }
        self.high = high;
        let mut seen = psi.evidence(Evidence::new());
        if let Some((total_us, at_ms)) = self.last.replace((psi.some.total_us, now.boottime_ms)) {
            let waited = Duration::from_micros(psi.some.total_us.saturating_sub(total_us));
            seen = seen.duration("waited_ms", waited).duration("waited_within_ms", now.since(at_ms));
        }
        if !high {
            return Judgement::ok(seen);
        }
        let since = *self.since_boottime_ms.get_or_insert(now.boottime_ms);
        let lasting = now.since(since);
        let mut summary = format!("the host is short of memory: {}", psi.words());
        if lasting.as_secs() > 0 {
            summary = format!("{summary}, for {} now", human_duration(lasting));
        }
        let evidence = seen
            .clone()
            .duration("lasting_ms", lasting)
            .count("threshold_some_percent", rules.some_percent)
            .count("threshold_full_percent", rules.full_percent);
        let problem = Problem::new(Reason::MemoryPressure, summary).evidence(evidence).next_steps([
            "see who uses it: ps -eo pid,rss,comm --sort=-rss | head",
            "see whether it swaps: vmstat 1 5 (columns si and so)",
            "start no new work on this host until it recovers (muster-agent preflight tells)",
        ]);
        Judgement { seen, ..Judgement::problem(problem) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Verdict;
    use muster_common::time::Timestamp;

    const RULES: StallRules = StallRules { some_percent: 20, full_percent: 5 };

    fn psi(some60: u64, full10: u64, full60: u64) -> Psi {
        let stall = |avg10: u64, avg60: u64| Stall { avg10: avg10 * 100, avg60: avg60 * 100, total_us: 0 };
        Psi { some: stall(some60, some60), full: stall(full10, full60) }
    }

    #[test]
    fn the_last_minute_decides_and_a_standstill_at_once() {
        for (name, readings, expected) in [
            ("a moment", vec![(19, 19, 0)], "."),
            ("some", vec![(20, 0, 0), (11, 0, 0), (9, 0, 0)], "!!."),
            ("all", vec![(5, 5, 5), (5, 3, 3), (5, 2, 2)], "!!."),
            ("standstill", vec![(8, 20, 4), (2, 3, 2)], "!."),
        ] {
            let mut judge = HostJudge::default();
            let mut told = String::new();
            for (index, (some60, full10, full60)) in (1u64..).zip(readings) {
                let now = Now { boottime_ms: index * 5_000, wall: Timestamp::UNIX_EPOCH };
                let judgement = judge.judge(RULES, Ok(psi(some60, full10, full60)), now);
                told.push(if judgement.verdict() == Verdict::Ok { '.' } else { '!' });
                judge = serde_json::from_str(&serde_json::to_string(&judge).unwrap()).unwrap();
            }
            assert_eq!(told, expected, "{name}");
        }
    }

    #[test]
    fn an_old_kernel_is_unknown_with_the_way_out() {
        let now = Now { boottime_ms: 0, wall: Timestamp::UNIX_EPOCH };
        let unknown = HostJudge::default().judge(RULES, Err(Absent::NoPsi), now).unknown.unwrap();
        assert!(unknown.way_out.unwrap().contains("psi=1"));
    }

    #[test]
    fn texts_of_kernels() {
        // 4.20 has both lines; some kernels print no "full".
        let one = "some avg10=99.99 avg60=12.34 avg300=0.00 total=18446744073709551615\n";
        assert_eq!(parse(one).map(|psi| (psi.some.avg60, psi.full)), Some((1234, Stall::default())));
        for bad in ["", "some", "some avg10=x avg60=1.0 total=1", "some avg10=1 avg60=1.00 total=1", "some avg10=1.é"]
        {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text in "(some|full)( (avg10|avg60|total)=[0-9.]{0,22}){0,4}\n?") {
            if let Some(psi) = parse(&text) {
                let _ = psi.words();
            }
        }
    }
}
