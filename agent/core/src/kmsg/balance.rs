//! The kernel's own count of OOM kills against the lines that were read: a kill without a line is unexplained.

use serde::{Deserialize, Serialize};

/// Cumulative, because a kill is counted a moment before its line is printed, and the two are read one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Balance {
    base: Option<u64>,
    lines: u64,
    reported: u64,
    missing_before: u64,
}

impl Balance {
    /// Starts from `counted` (`oom_kill` of `/proc/vmstat`), unless it has started before.
    pub fn start(&mut self, counted: u64) {
        self.base.get_or_insert(counted);
    }

    /// True once it knows where to count from.
    pub fn has_started(&self) -> bool {
        self.base.is_some()
    }

    /// One run: the kernel's count, and how many `Killed process` lines came since the last run. Answers how many kills
    /// have newly become unexplained: missing now *and* a run ago (`at_once` does without that grace).
    pub fn check(&mut self, counted: u64, new_lines: u64, at_once: bool) -> u64 {
        let Some(base) = self.base else { return 0 };
        self.lines = self.lines.saturating_add(new_lines);
        let explained = self.lines.saturating_add(self.reported);
        let missing = counted.saturating_sub(base).saturating_sub(explained);
        let report = if at_once { missing } else { missing.min(self.missing_before) };
        self.reported = self.reported.saturating_add(report);
        self.missing_before = missing - report;
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_line_has_one_run_to_come() {
        let mut balance = Balance::default();
        assert_eq!(balance.check(5, 0, false), 0);
        balance.start(5);
        balance.start(99);
        assert_eq!(balance.check(7, 2, false), 0);
        // Counted before its line was printed.
        assert_eq!(balance.check(8, 0, false), 0);
        assert_eq!(balance.check(8, 1, false), 0);
        // Printed before the count was read again.
        assert_eq!(balance.check(8, 1, false), 0);
        assert_eq!(balance.check(9, 0, false), 0);
        // Never printed.
        assert_eq!(balance.check(11, 0, false), 0);
        assert_eq!(balance.check(11, 0, false), 2);
        assert_eq!(balance.check(11, 0, false), 0);
        assert_eq!(balance.check(12, 0, true), 1);
        assert_eq!(balance.check(0, u64::MAX, false), 0);
    }
}
