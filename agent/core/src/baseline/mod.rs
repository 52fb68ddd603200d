//! Declared settings against applied ones, and since when they differ.
//!
//! Must never say that something drifted because it could not be read: what is unknown stays unknown.

pub mod limits;
pub mod sysctl;
pub mod unit_property;

use crate::clock::Now;
use crate::judgement::{Judgement, Problem, Unknown};
use muster_common::evidence::Evidence;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Drifted settings that are shown; the rest is counted.
const SHOWN_MAX: usize = 12;
/// Of these, named in the sentence beside the first.
const NAMED_MAX: usize = 3;

/// What is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// This.
    Value(String),
    /// There is no such thing on this host.
    Missing,
    /// It could not be read: why.
    Unknown(String),
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, unique in a baseline: `"sysctl vm.swappiness"`, `"mode of /etc/x"`.
    pub name: String,
    /// As declared.
    pub requested: String,
    /// As it is.
    pub applied: Applied,
    /// Where a person looks for who set it.
    pub step: String,
}

/// Judges one baseline over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BaselineJudge {
    history: BTreeMap<String, Past>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Past {
    value: String,
    /// When it was first seen to have this value; for people, so by the wall clock.
    since: Timestamp,
    /// What it had before, if that was seen.
    before: Option<String>,
}

impl BaselineJudge {
    /// One look at all settings of one baseline.
    pub fn judge(&mut self, settings: &[Setting], now: Now) -> Judgement {
        let names: BTreeSet<&String> = settings.iter().map(|setting| &setting.name).collect();
        self.history.retain(|name, _| names.contains(name));
        let mut drifted: Vec<(&Setting, String)> = Vec::new();
        let mut unread: Vec<String> = Vec::new();
        for setting in settings {
            let applied = match &setting.applied {
                Applied::Value(value) => value.clone(),
                Applied::Missing => "missing".to_owned(),
                Applied::Unknown(why) => {
                    unread.push(format!("{}: {why}", setting.name));
                    continue;
                }
            };
            self.note(setting, &applied, now);
            if applied != setting.requested {
                drifted.push((setting, self.told(setting, &applied)));
            }
        }
        let seen = Evidence::new()
            .count("settings", count(settings.len()))
            .count("drifted", count(drifted.len()))
            .count("not_read", count(unread.len()));
        let unknown = unread.first().map(|first| {
            let why = match unread.len() {
                1 => first.clone(),
                many => format!("{many} settings cannot be read, the first is {first}"),
            };
            Unknown::new(why, None)
        });
        let problems = problem(&drifted, settings.len(), &seen).into_iter().collect();
        Judgement { problems, unknown, seen, ..Judgement::default() }
    }

    fn note(&mut self, setting: &Setting, applied: &str, now: Now) {
        let past = self.history.get(&setting.name);
        if past.is_some_and(|past| past.value == applied) {
            return;
        }
        let before = past.map(|past| past.value.clone());
        self.history.insert(setting.name.clone(), Past { value: applied.to_owned(), since: now.wall, before });
    }

    /// `"sysctl vm.swappiness is 60, declared is 10; it was 10 until 2026-11-22 02:04 UTC"`.
    fn told(&self, setting: &Setting, applied: &str) -> String {
        let told = format!("{} is {applied}, declared is {}", setting.name, setting.requested);
        match self.history.get(&setting.name) {
            Some(Past { before: Some(before), since, .. }) => {
                format!("{told}; it was {before} until {}", since.to_utc_minute())
            }
            Some(Past { since, .. }) => format!("{told}; seen so since {}", since.to_utc_minute()),
            None => told,
        }
    }
}

fn problem(drifted: &[(&Setting, String)], settings: usize, seen: &Evidence) -> Option<Problem> {
    let (first, told) = drifted.first()?;
    let summary = match drifted.len() {
        1 => told.clone(),
        many => {
            let others: Vec<&str> =
                drifted.iter().skip(1).take(NAMED_MAX).map(|(setting, _)| setting.name.as_str()).collect();
            let more = if many > NAMED_MAX + 1 { " and more" } else { "" };
            format!("{many} of {settings} declared settings differ: {told}; also {}{more}", others.join(", "))
        }
    };
    let mut evidence = seen.clone();
    if let (1, Applied::Value(applied)) = (drifted.len(), &first.applied) {
        evidence = evidence.text("requested", &first.requested).text("applied", applied);
    }
    for (index, (_, told)) in drifted.iter().take(SHOWN_MAX).enumerate() {
        evidence = evidence.text(&format!("drift_{index:02}"), told);
    }
    let mut steps: Vec<&str> = Vec::new();
    for (setting, _) in drifted.iter().take(SHOWN_MAX) {
        if !steps.contains(&setting.step.as_str()) && steps.len() < NAMED_MAX + 1 {
            steps.push(&setting.step);
        }
    }
    steps.push("if the new value is meant, declare it in the agent's config; if not, set it back and find who set it");
    Some(Problem::new(Reason::BaselineDrift, summary).evidence(evidence).next_steps(steps))
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Verdict;
    use muster_common::evidence::Value;

    fn setting(name: &str, requested: &str, applied: Applied) -> Setting {
        Setting { name: name.into(), requested: requested.into(), applied, step: format!("look at {name}") }
    }

    fn value(text: &str) -> Applied {
        Applied::Value(text.into())
    }

    fn at(minute: u64) -> Now {
        let wall = Timestamp::from_unix_ms(1_700_000_000_000) + std::time::Duration::from_secs(minute * 60);
        Now { boottime_ms: minute * 60_000, wall }
    }

    #[test]
    fn what_drifts_is_told_with_before_and_since() {
        let mut judge = BaselineJudge::default();
        let look = |judge: &mut BaselineJudge, applied: &str, minute| {
            judge.judge(&[setting("sysctl vm.swappiness", "10", value(applied))], at(minute))
        };
        assert_eq!(look(&mut judge, "10", 0).verdict(), Verdict::Ok);
        look(&mut judge, "60", 5);
        let saved = serde_json::to_string(&judge).unwrap();
        judge = serde_json::from_str(&saved).unwrap();
        let judgement = look(&mut judge, "60", 10);
        assert_eq!(
            judgement.problems[0].summary,
            "sysctl vm.swappiness is 60, declared is 10; it was 10 until 2023-11-14 22:18 UTC"
        );
        assert_eq!(judgement.problems[0].evidence.get("applied"), Some(&Value::Text("60".into())));
        assert_eq!(look(&mut judge, "10", 15).verdict(), Verdict::Ok);
        let first_look = look(&mut BaselineJudge::default(), "60", 0);
        assert!(first_look.problems[0].summary.ends_with("declared is 10; seen so since 2023-11-14 22:13 UTC"));
    }

    #[test]
    fn many_are_one_finding_and_the_unread_drifted_nowhere() {
        let mut settings: Vec<Setting> =
            (0..20).map(|index| setting(&format!("limit l{index:02}"), "1", value("2"))).collect();
        settings.push(setting("mode of /x", "0640", Applied::Missing));
        settings.push(setting("limit nofile", "5", Applied::Unknown("no process is known".into())));
        let judgement = BaselineJudge::default().judge(&settings, at(0));
        let [problem] = judgement.problems.as_slice() else { panic!() };
        assert!(problem.summary.starts_with("21 of 22 declared settings differ: limit l00 is 2, declared is 1;"));
        assert!(problem.summary.ends_with("also limit l01, limit l02, limit l03 and more"));
        assert!(problem.evidence.get("drift_11").is_some() && problem.evidence.get("drift_12").is_none());
        assert!(problem.next_steps.len() <= 5);
        assert_eq!(judgement.unknown.unwrap().why, "limit nofile: no process is known");
    }
}
