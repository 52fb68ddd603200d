//! One occurrence per rule, group and window, however many lines: the first is told at once, the rest is counted.

use crate::clock::Now;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a rule that was told is only counted.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Windows kept at once; beyond it the groups of a rule share one.
const WINDOWS_MAX: usize = 64;
/// The group of what did not fit.
const OTHERS: &str = "(others)";

/// One line that a rule took, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The line, redacted.
    pub text: String,
    /// What the rule's named groups caught, redacted.
    pub captures: BTreeMap<String, String>,
    /// When it was written, or else read, `CLOCK_BOOTTIME`.
    pub boottime_ms: u64,
    /// It does not tell itself when it was written.
    #[serde(default)]
    pub undated: bool,
}

/// What is to be told of one rule and group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The rule.
    pub rule: String,
    /// Its group; empty without one.
    pub group: String,
    /// Lines since the last time.
    pub count: u64,
    /// The first of them.
    pub first: Sample,
    /// The last of them, where it is another.
    pub last: Option<Sample>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    rule: String,
    group: String,
    /// Not told again before.
    quiet_until_ms: u64,
    count: u64,
    first: Option<Sample>,
    last: Option<Sample>,
}

/// All windows of one log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Windows(Vec<Window>);

impl Windows {
    /// The host was rebooted: the boot-time clock starts anew. What waits was written before the boot.
    pub fn rebooted(&mut self) {
        for window in &mut self.0 {
            window.quiet_until_ms = 0;
            window.first.iter_mut().chain(&mut window.last).for_each(|sample| sample.boottime_ms = 0);
        }
    }

    /// Takes in one line; `sample` is made only if it will be shown.
    pub fn note(&mut self, rule: &str, group: &str, now: Now, sample: impl FnOnce() -> Sample) {
        let known = |windows: &[Window], group: &str| {
            windows.iter().position(|window| window.rule == rule && window.group == group)
        };
        let index = known(&self.0, group).unwrap_or_else(|| {
            let group = if self.0.len() < WINDOWS_MAX { group } else { OTHERS };
            known(&self.0, group).unwrap_or_else(|| {
                let (rule, group) = (rule.to_owned(), group.to_owned());
                self.0.push(Window { rule, group, quiet_until_ms: now.boottime_ms, count: 0, first: None, last: None });
                self.0.len() - 1
            })
        });
        let Some(window) = self.0.get_mut(index) else { return };
        window.count = window.count.saturating_add(1);
        if window.first.is_none() {
            window.first = Some(sample());
        } else {
            window.last = Some(sample());
        }
    }

    /// What is due to be told, or all that waits with `at_once`.
    pub fn take(&mut self, now: Now, at_once: bool) -> Vec<Told> {
        let mut told = Vec::new();
        for window in &mut self.0 {
            if window.quiet_until_ms > now.boottime_ms && !at_once {
                continue;
            }
            let Some(first) = window.first.take() else { continue };
            window.quiet_until_ms = now.boottime_ms.saturating_add(u64::try_from(WINDOW.as_millis()).unwrap_or(0));
            told.push(Told {
                rule: window.rule.clone(),
                group: window.group.clone(),
                count: std::mem::take(&mut window.count),
                first,
                last: window.last.take(),
            });
        }
        self.0.retain(|window| window.count > 0 || window.quiet_until_ms > now.boottime_ms);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;

    fn at(seconds: u64) -> Now {
        Now { boottime_ms: seconds * 1000, wall: Timestamp::UNIX_EPOCH }
    }

    fn sample(text: &str) -> Sample {
        Sample { text: text.to_owned(), captures: BTreeMap::new(), boottime_ms: 1, undated: false }
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_is_counted() {
        let mut windows = Windows::default();
        windows.note("r", "", at(10), || sample("one"));
        let [told] = windows.take(at(10), false).try_into().unwrap();
        assert_eq!((told.count, told.first.text.as_str(), told.last), (1, "one", None));
        for text in ["two", "three", "four"] {
            windows.note("r", "", at(20), || sample(text));
        }
        assert!(windows.take(at(20), false).is_empty());
        assert!(windows.take(at(69), false).is_empty());
        // Across a restart.
        let saved = serde_json::to_string(&windows).unwrap();
        let mut windows: Windows = serde_json::from_str(&saved).unwrap();
        let [told] = windows.take(at(70), false).try_into().unwrap();
        assert_eq!((told.count, told.first.text, told.last.unwrap().text), (3, "two".into(), "four".into()));
        assert!(windows.take(at(200), false).is_empty());
        assert_eq!(windows, Windows::default());
    }

    #[test]
    fn a_rule_that_was_told_before_a_reboot_is_not_silent_after_it() {
        let mut windows = Windows::default();
        // After a hundred days.
        windows.note("r", "", at(8_640_000), || sample("before"));
        assert_eq!(windows.take(at(8_640_000), false).len(), 1);
        windows.note("r", "", at(8_640_030), || Sample { boottime_ms: 8_640_030_000, ..sample("waits") });
        windows.rebooted();
        windows.note("r", "", at(20), || sample("after"));
        let [told] = windows.take(at(20), false).try_into().unwrap();
        assert_eq!((told.count, told.first.boottime_ms, told.last.unwrap().text), (2, 0, "after".into()));
        windows.note("r", "", at(21), || sample("again"));
        assert!(windows.take(at(79), false).is_empty());
        assert_eq!(windows.take(at(80), false).len(), 1);
    }

    #[test]
    fn groups_are_told_apart_up_to_a_bound() {
        let mut windows = Windows::default();
        for n in 0..1000 {
            windows.note("r", &n.to_string(), at(1), || sample("x"));
        }
        let told = windows.take(at(1), false);
        assert_eq!(told.len(), WINDOWS_MAX + 1);
        assert_eq!(told.iter().map(|told| told.count).sum::<u64>(), 1000);
        assert!(told.iter().any(|told| told.group == OTHERS && told.count > 900));
    }
}
