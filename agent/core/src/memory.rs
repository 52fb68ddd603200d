//! MemAvailable in bands: healthy, approaching, critical, with hysteresis on the way back.

use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use muster_common::evidence::{Evidence, Value};
use muster_common::reason::Reason;
use muster_common::units::human_bytes;
use serde::{Deserialize, Serialize};

/// A band is left upwards only this far above its threshold, so that a value on the line does not flap.
const BACK_PERCENT: u64 = 10;
/// Evidence key of what is available.
const AVAILABLE_KEY: &str = "available_bytes";
/// Default thresholds.
const APPROACHING_BYTES: u64 = 4 << 30;
const CRITICAL_BYTES: u64 = 2 << 30;

/// The two thresholds; `critical_bytes` is the lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bands {
    /// Below: approaching.
    pub approaching_bytes: u64,
    /// Below: critical.
    pub critical_bytes: u64,
}

impl Bands {
    /// The defaults: 4 GiB and 2 GiB, but never more than 10 % and 5 % of a host with less than 40 GiB.
    ///
    /// ```
    /// use muster_agent_core::memory::Bands;
    /// assert_eq!(Bands::default_for(256 << 30).approaching_bytes, 4 << 30);
    /// assert_eq!(Bands::default_for(2000).critical_bytes, 100);
    /// ```
    pub fn default_for(total_bytes: u64) -> Self {
        Self {
            approaching_bytes: APPROACHING_BYTES.min(total_bytes / 10),
            critical_bytes: CRITICAL_BYTES.min(total_bytes / 20),
        }
    }
}

/// What `/proc/meminfo` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// `MemAvailable`.
    pub available_bytes: u64,
    /// `MemTotal`.
    pub total_bytes: u64,
}

/// Why there is no reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absent {
    /// The file is not there, or cannot be read: the reason.
    NoFile(String),
    /// The file is there, without this line.
    NoLine(&'static str),
}

/// Reads the text of `/proc/meminfo`.
pub fn parse(text: &str) -> Result<Reading, Absent> {
    let line = |key: &'static str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == key)
            .and_then(|(_, value)| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024))
            .ok_or(Absent::NoLine(key))
    };
    Ok(Reading { available_bytes: line("MemAvailable")?, total_bytes: line("MemTotal")? })
}

/// What [`MemoryJudge::judge`] saw available; 0 where it saw nothing.
pub fn available_bytes(seen: &Evidence) -> u64 {
    match seen.get(AVAILABLE_KEY) {
        Some(Value::Bytes(bytes)) => *bytes,
        _ => 0,
    }
}

/// Where the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Band {
    /// Enough.
    #[default]
    Healthy,
    /// Below the first threshold.
    Approaching,
    /// Below the second.
    Critical,
}

impl Band {
    /// `"healthy"`, `"approaching"` or `"critical"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Approaching => "approaching",
            Self::Critical => "critical",
        }
    }

    /// The band of `available_bytes` for a host that was in `self`: worse at once, better only with a margin.
    #[must_use]
    pub fn next(self, available_bytes: u64, bands: Bands) -> Self {
        let threshold = |bytes: u64, inside: bool| {
            if inside { bytes.saturating_add(bytes / 100 * BACK_PERCENT) } else { bytes }
        };
        if available_bytes < threshold(bands.critical_bytes, self >= Self::Critical) {
            Self::Critical
        } else if available_bytes < threshold(bands.approaching_bytes, self >= Self::Approaching) {
            Self::Approaching
        } else {
            Self::Healthy
        }
    }
}

/// Judges readings over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryJudge {
    bands: Option<Bands>,
    band: Band,
    since_boottime_ms: Option<u64>,
}

impl MemoryJudge {
    /// With the configured thresholds, or the defaults for the host's size.
    pub fn new(bands: Option<Bands>) -> Self {
        Self { bands, band: Band::Healthy, since_boottime_ms: None }
    }

    /// Where the host is, by the last reading.
    pub fn band(&self) -> Band {
        self.band
    }

    /// One reading.
    pub fn judge(&mut self, reading: Result<Reading, Absent>, now: Now) -> Judgement {
        let reading = match reading {
            Ok(reading) => reading,
            Err(Absent::NoFile(why)) => {
                let why = format!("/proc/meminfo cannot be read: {why}");
                return Judgement::unknown(why, Some("mount procfs; without it memory is not watched"));
            }
            Err(Absent::NoLine(line)) => {
                let why = format!("/proc/meminfo has no {line} line");
                return Judgement::unknown(why, Some("MemAvailable needs Linux 3.14 or newer"));
            }
        };
        let bands = self.bands.unwrap_or_else(|| Bands::default_for(reading.total_bytes));
        let band = self.band.next(reading.available_bytes, bands);
        if band != self.band || self.since_boottime_ms.is_none() {
            self.since_boottime_ms = Some(now.boottime_ms);
        }
        self.band = band;
        let in_band = now.since(self.since_boottime_ms.unwrap_or(now.boottime_ms));
        let seen = Evidence::new()
            .bytes(AVAILABLE_KEY, reading.available_bytes)
            .bytes("total_bytes", reading.total_bytes)
            .text("band", band.as_str())
            .duration("in_band_ms", in_band);
        let (reason, threshold_bytes) = match band {
            Band::Healthy => return Judgement::ok(seen.bytes("threshold_bytes", bands.approaching_bytes)),
            Band::Approaching => (Reason::MemoryApproaching, bands.approaching_bytes),
            Band::Critical => (Reason::MemoryCritical, bands.critical_bytes),
        };
        let seen = seen.bytes("threshold_bytes", threshold_bytes);
        let summary = format!(
            "{} of {} memory available, the {} threshold is {}",
            human_bytes(reading.available_bytes),
            human_bytes(reading.total_bytes),
            band.as_str(),
            human_bytes(threshold_bytes),
        );
        let problem = Problem::new(reason, summary).evidence(seen.clone()).next_steps([
            "see who uses it: ps -eo pid,rss,comm --sort=-rss | head",
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
    use proptest::prelude::*;

    const BANDS: Bands = Bands { approaching_bytes: 4000, critical_bytes: 2000 };

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn worse_at_once_better_with_a_margin() {
        let mut band = Band::Healthy;
        let mut next = |available| {
            band = band.next(available, BANDS);
            band
        };
        assert_eq!(next(4000), Band::Healthy);
        assert_eq!(next(3999), Band::Approaching);
        assert_eq!(next(4399), Band::Approaching);
        assert_eq!(next(4400), Band::Healthy);
        assert_eq!(next(1999), Band::Critical);
        assert_eq!(next(2199), Band::Critical);
        assert_eq!(next(2200), Band::Approaching);
        assert_eq!(next(0), Band::Critical);
        assert_eq!(next(9000), Band::Healthy);
    }

    #[test]
    fn only_the_worse_is_a_problem_and_time_in_band_counts() {
        let mut judge = MemoryJudge::new(Some(BANDS));
        let reading = |available_bytes| Ok(Reading { available_bytes, total_bytes: 10_000 });
        assert_eq!(judge.judge(reading(9000), at(0)).verdict(), Verdict::Ok);
        judge.judge(reading(1000), at(5_000));
        let judgement = judge.judge(reading(1500), at(9_000));
        let [problem] = judgement.problems.as_slice() else { panic!() };
        assert_eq!(problem.reason, Reason::MemoryCritical);
        assert_eq!(problem.evidence.get("in_band_ms"), Some(&Value::Millis(4_000)));
        assert_eq!(judge.judge(reading(3000), at(9_001)).problems[0].reason, Reason::MemoryApproaching);
    }

    #[test]
    fn no_meminfo_is_unknown() {
        let mut judge = MemoryJudge::new(None);
        assert_eq!(judge.judge(Err(Absent::NoFile("gone".into())), at(0)).verdict(), Verdict::Unknown);
        assert_eq!(judge.judge(parse("MemTotal: 5 kB\n"), at(0)).verdict(), Verdict::Unknown);
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    900 kB\n";
        assert_eq!(parse(text), Ok(Reading { available_bytes: 900 << 10, total_bytes: 1000 << 10 }));
        assert_eq!(judge.judge(parse(text), at(0)).verdict(), Verdict::Ok);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(Mem(Total|Available|Free):[ ]{0,3}[0-9a-z-]{0,22}( kB)?\n?){0,4}") {
            let _ = MemoryJudge::new(None).judge(parse(&text), at(0));
        }
    }
}
