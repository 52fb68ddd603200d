//! What the kernel tells of a process: memory, processor time, wake-ups.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{Duration, Instant};

/// Ticks of `/proc/PID/stat` per second; a constant of the kernel's interface.
const TICKS_PER_SECOND: u64 = 100;

/// One look.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    at: Instant,
    /// Its share of the memory it maps.
    pub(crate) pss_kib: u64,
    /// All it maps and that is in memory.
    pub(crate) rss_kib: u64,
    /// What is its own alone.
    pub(crate) anonymous_kib: u64,
    /// Threads now.
    pub(crate) threads: u64,
    cpu_ticks: u64,
    switches: u64,
}

/// What went on between two looks.
#[derive(Debug, Clone)]
pub(crate) struct Cost {
    /// Processor seconds a minute.
    pub(crate) cpu_seconds_per_minute: f64,
    /// Times a minute that a thread of it went to sleep by itself: one for each wake-up.
    pub(crate) wakes_per_minute: f64,
    /// The second look.
    pub(crate) end: Look,
    /// The largest PSS and number of threads seen between.
    pub(crate) pss_max_kib: u64,
    /// As above.
    pub(crate) threads_max: u64,
}

/// What is set beside others.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) pss_kib: u64,
    pub(crate) cpu_seconds_per_minute: f64,
    pub(crate) wakes_per_minute: f64,
    pub(crate) threads: u64,
}

impl Cost {
    /// The least that tells of it.
    pub(crate) const fn summary(&self) -> Summary {
        Summary {
            pss_kib: self.end.pss_kib,
            cpu_seconds_per_minute: self.cpu_seconds_per_minute,
            wakes_per_minute: self.wakes_per_minute,
            threads: self.end.threads,
        }
    }
}

/// The 1-minute load average.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

/// Looks at a process and at its children, as one.
pub(crate) fn look(pids: &[u32]) -> Result<Look> {
    let mut sum =
        Look { at: Instant::now(), pss_kib: 0, rss_kib: 0, anonymous_kib: 0, threads: 0, cpu_ticks: 0, switches: 0 };
    for pid in pids {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let rollup = read("smaps_rollup")?;
        sum.pss_kib += kib(&rollup, "Pss:");
        sum.rss_kib += kib(&rollup, "Rss:");
        sum.anonymous_kib += kib(&rollup, "Anonymous:");
        let stat = read("stat")?;
        // Behind the name, which may hold anything: state is field 3, the times are 14 and 15.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        sum.cpu_ticks += field(14) + field(15);
        sum.threads += field(20);
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // A thread that has just ended is not worth an error.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            sum.switches += number(&status, "voluntary_ctxt_switches:");
        }
    }
    Ok(sum)
}

/// Watches a process for `length`.
pub(crate) fn watch(pids: &[u32], length: Duration) -> Result<Cost> {
    let start = look(pids)?;
    let (mut pss_max_kib, mut threads_max) = (start.pss_kib, start.threads);
    while start.at.elapsed() < length {
        // Rarely: reading the smaps of a process takes its locks.
        std::thread::sleep(Duration::from_secs(7).min(length.saturating_sub(start.at.elapsed())));
        let now = look(pids)?;
        (pss_max_kib, threads_max) = (pss_max_kib.max(now.pss_kib), threads_max.max(now.threads));
    }
    let end = look(pids)?;
    let minutes = end.at.duration_since(start.at).as_secs_f64() / 60.0;
    let ticks = end.cpu_ticks.saturating_sub(start.cpu_ticks);
    let per_minute = |count: u64| u32::try_from(count).map_or(f64::NAN, f64::from) / minutes;
    Ok(Cost {
        cpu_seconds_per_minute: per_minute(ticks) / f64::from(u32::try_from(TICKS_PER_SECOND)?),
        wakes_per_minute: per_minute(end.switches.saturating_sub(start.switches)),
        end,
        pss_max_kib,
        threads_max,
    })
}

/// Names of the threads of a process.
pub(crate) fn thread_names(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| Some(fs::read_to_string(task.path().join("comm")).ok()?.trim().to_owned())).collect()
}

/// Median, 99th percentile and maximum.
pub(crate) fn spread(mut times: Vec<Duration>) -> Option<[Duration; 3]> {
    times.sort();
    let at = |permille: usize| times.get((times.len() * permille / 1000).min(times.len().saturating_sub(1))).copied();
    Some([at(500)?, at(990)?, *times.last()?])
}

fn kib(text: &str, key: &str) -> u64 {
    number(text, key)
}

fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
