//! `[process]`: what is normal for the main process of a service.

use muster_common::config::Reader;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Shorter is no trend, longer nobody waits for.
const WINDOWS: RangeInclusive<Duration> = Duration::from_secs(3600)..=Duration::from_secs(48 * 3600);

/// Thresholds of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// `open_files_percent`: `fd_exhaustion` from this part of the soft limit of open files on; clears five below.
    pub open_files_percent: u64,
    /// `memory_growth_window`: `memory_growth` is told of memory whose floor rises throughout this time.
    pub memory_growth_window: Duration,
    /// `memory_growth_min`: and by at least this much within it.
    pub memory_growth_min_bytes: u64,
    /// `memory_growth_percent`: and by at least this part of where it began.
    pub memory_growth_percent: u64,
    /// `zombie_children`: so many children left unreaped for a minute are told.
    pub zombie_children: u64,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            open_files_percent: 90,
            memory_growth_window: Duration::from_secs(6 * 3600),
            memory_growth_min_bytes: 64 << 20,
            memory_growth_percent: 10,
            zombie_children: 5,
        }
    }
}

/// The whole table.
pub(super) fn walk(reader: &Reader<'_>) -> Process {
    let mut process = Process::default();
    let number = |key, bounds| reader.integer(key, bounds).and_then(|number| u64::try_from(number).ok());
    for (key, place, bounds) in [
        ("open_files_percent", &mut process.open_files_percent, 10..=100),
        ("memory_growth_percent", &mut process.memory_growth_percent, 1..=1000),
        ("zombie_children", &mut process.zombie_children, 1..=100_000),
    ] {
        if let Some(value) = number(key, bounds) {
            *place = value;
        }
    }
    if let Some(window) = reader.duration("memory_growth_window", WINDOWS) {
        process.memory_growth_window = window;
    }
    if let Some(bytes) = reader.bytes("memory_growth_min") {
        process.memory_growth_min_bytes = bytes;
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_option_is_read_and_mistakes_are_told_together() {
        let text = "[process]\nopen_files_percent = 75\nmemory_growth_window = \"12h\"\nmemory_growth_min = \"1GiB\"\n\
                    memory_growth_percent = 50\nzombie_children = 1\n";
        let expected = Process {
            open_files_percent: 75,
            memory_growth_window: Duration::from_secs(12 * 3600),
            memory_growth_min_bytes: 1 << 30,
            memory_growth_percent: 50,
            zombie_children: 1,
        };
        assert_eq!(Config::parse("agent.toml", text).unwrap().process, expected);
        let wrong = "[process]\nopen_files_percent = 101\nzombi_children = 3\nmemory_growth_window = \"5m\"\n";
        let errors = Config::parse("agent.toml", wrong).unwrap_err().render(false);
        for part in ["from 10 to 100", "zombie_children", "a duration from"] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
}
