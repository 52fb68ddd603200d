//! `[pressure]`: when processes stall for memory too much, and how near a cgroup may come to its memory limit.

use muster_common::config::Reader;

/// Thresholds of stalls and of cgroup limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// `some_percent`: `memory_pressure` when some process waited for memory this part of the last minute; clears below
    /// half of it.
    pub some_percent: u64,
    /// `full_percent`: or when all processes waited at once this part of it; clears below half of it.
    pub full_percent: u64,
    /// `limit_percent`: or when memory that cannot be given back fills this part of the limit of the service's cgroup,
    /// or of one above it; clears five below.
    pub limit_percent: u64,
}

impl Default for Pressure {
    fn default() -> Self {
        Self { some_percent: 20, full_percent: 5, limit_percent: 90 }
    }
}

/// The whole table.
pub(super) fn walk(reader: &Reader<'_>) -> Pressure {
    let mut pressure = Pressure::default();
    for (key, place) in [
        ("some_percent", &mut pressure.some_percent),
        ("full_percent", &mut pressure.full_percent),
        ("limit_percent", &mut pressure.limit_percent),
    ] {
        if let Some(percent) = reader.integer(key, 1..=100).and_then(|percent| u64::try_from(percent).ok()) {
            *place = percent;
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_option_is_read_and_mistakes_are_told_together() {
        let text = "[pressure]\nsome_percent = 30\nfull_percent = 10\nlimit_percent = 95\n";
        let expected = Pressure { some_percent: 30, full_percent: 10, limit_percent: 95 };
        assert_eq!(Config::parse("agent.toml", text).unwrap().pressure, expected);
        let errors = Config::parse("agent.toml", "[pressure]\nsome_percent = 0\nful_percent = 3\n").unwrap_err();
        let errors = errors.render(false);
        assert!(errors.contains("from 1 to 100") && errors.contains("full_percent"), "{errors}");
    }
}
