//! The tables of `[detectors.*]` about what the fleet is compared by: changes, updates, singletons, versions, refused
//! callers, flapping.

use super::{DAY, SECOND, count, set};
use muster_common::config::Reader;
use muster_common::units::human_duration;
use muster_coordinator_core::signals::SignalPolicy;
use std::time::Duration;

/// Rolling upgrades of large fleets take days.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// Reads from `[detectors]`.
pub(super) fn read(table: &Reader<'_>, policy: &mut SignalPolicy) {
    if let Some(changes) = table.table("changes") {
        set(&mut policy.changes.window, changes.duration("window", SECOND..=DAY));
    }
    if let Some(update) = table.table("update") {
        set(&mut policy.update.settle, update.duration("settle", SECOND..=DAY));
        set(&mut policy.update.within, update.duration("within", SECOND..=DAY));
    }
    if let Some(singleton) = table.table("singleton") {
        set(&mut policy.singleton.hold, singleton.duration("hold", SECOND..=DAY));
    }
    if let Some(skew) = table.table("version_skew") {
        let rule = &mut policy.version_skew;
        set(&mut rule.versions, count(&skew, "versions", 1..=64));
        set(&mut rule.oldest, skew.parsed("oldest", version));
        set(&mut rule.after, skew.duration("after", SECOND..=MONTH));
        set(&mut rule.build_hosts, count(&skew, "build_hosts", 2..=100_000));
    }
    if let Some(abuse) = table.table("auth_abuse") {
        set(&mut policy.auth_abuse.refusals, count(&abuse, "refusals", 5..=100_000));
        // Callers are told of once a minute, and so many facts are remembered.
        set(&mut policy.auth_abuse.window, abuse.duration("window", SECOND * 60..=SECOND * 3600));
        set(&mut policy.auth_abuse.calls_per_minute, count(&abuse, "calls_per_minute", 60..=1_000_000));
    }
    if let Some(conflict) = table.table("agent_identity_conflict") {
        let rule = &mut policy.agent_identity_conflict;
        set(&mut rule.quiet, conflict.duration("quiet", SECOND * 120..=DAY));
        set(&mut rule.interval, conflict.duration("interval", SECOND * 10..=SECOND * 3600));
        // Else it would end between two of those that tell of it.
        if rule.quiet < rule.interval * 2 {
            let expected = format!("expected at least twice the interval, which is {}", human_duration(rule.interval));
            conflict.mistake("quiet is too short for the interval", &expected);
        }
    }
    if let Some(flapping) = table.table("flapping") {
        let rule = &mut policy.flapping;
        set(&mut rule.look, flapping.duration("look", SECOND..=SECOND * 3600));
        set(&mut rule.high_percent, count(&flapping, "high_percent", 5..=100));
        set(&mut rule.low_percent, count(&flapping, "low_percent", 0..=95));
        if rule.low_percent >= rule.high_percent {
            let expected = format!("expected less than high_percent, which is {}", rule.high_percent);
            flapping.mistake("low_percent is not below high_percent", &expected);
        }
    }
}

fn version(text: &str) -> Result<String, String> {
    let numbers = text.split('.').all(|part| !part.is_empty() && part.parse::<u32>().is_ok());
    if numbers && text.split('.').count() == 3 {
        Ok(text.to_owned())
    } else {
        Err("expected a version such as \"0.3.0\"".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::parse;
    use std::time::Duration;

    const MINIMAL: &str = "[tls]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"\n[store]\nurl = \"sqlite:/var/lib/j.db\"\n";

    #[test]
    fn every_table_is_read() {
        let text = format!(
            "{MINIMAL}[detectors.changes]\nwindow = \"2h\"\n[detectors.update]\nsettle = \"31s\"\nwithin = \"32s\"\n\
             [detectors.singleton]\nhold = \"33s\"\n\
             [detectors.version_skew]\nversions = 5\noldest = \"0.2.0\"\nafter = \"3d\"\nbuild_hosts = 6\n\
             [detectors.auth_abuse]\nrefusals = 77\nwindow = \"5m\"\ncalls_per_minute = 78\n\
             [detectors.agent_identity_conflict]\nquiet = \"4m\"\ninterval = \"34s\"\n\
             [detectors.flapping]\nlook = \"7s\"\nhigh_percent = 50\nlow_percent = 20\n"
        );
        let policy = parse("c.toml", &text).unwrap_or_else(|errors| panic!("{errors}")).policy.signals;
        let seconds = Duration::from_secs;
        assert_eq!(policy.changes.window, seconds(7200));
        assert_eq!((policy.update.settle, policy.update.within), (seconds(31), seconds(32)));
        assert_eq!(policy.singleton.hold, seconds(33));
        let skew = &policy.version_skew;
        assert_eq!((skew.versions, skew.oldest.as_str(), skew.build_hosts), (5, "0.2.0", 6));
        assert_eq!(skew.after, seconds(3 * 86_400));
        assert_eq!((policy.auth_abuse.refusals, policy.auth_abuse.window), (77, seconds(300)));
        assert_eq!((policy.auth_abuse.calls_per_minute, policy.agent_identity_conflict.quiet), (78, seconds(240)));
        assert_eq!(policy.agent_identity_conflict.interval, seconds(34));
        let flapping = &policy.flapping;
        assert_eq!((flapping.look, flapping.high_percent, flapping.low_percent), (seconds(7), 50, 20));
    }

    #[test]
    fn bounds_and_misspelt_keys_are_told() {
        let text = format!(
            "{MINIMAL}[detectors.version_skew]\noldest = \"new\"\n[detectors.flapping]\nhigh_percent = 10\nlow_percent = 20\n\
             [detectors.singleton]\nholds = \"1s\"\n[detectors.auth_abuse]\nrefusals = 1\n\
             [detectors.agent_identity_conflict]\ninterval = \"10m\"\n"
        );
        let errors = parse("c.toml", &text).unwrap_err().to_string();
        for part in [
            "such as \"0.3.0\"",
            "low_percent is not below",
            "did you mean \"hold\"",
            "refusals",
            "too short for the interval",
        ] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
}
