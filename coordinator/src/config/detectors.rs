//! `[detectors.*]`: when many hosts, or many occurrences, are one matter. One table for each detector.

use super::{DAY, SECOND, count, set, signals};
use muster_common::config::Reader;
use muster_coordinator_core::policy::Policy;
use std::ops::RangeInclusive;

/// Hosts, agents, sources, occurrences.
const MANY: RangeInclusive<i64> = 2..=100_000;
/// A share of hosts.
const SHARE: RangeInclusive<f64> = 0.01..=1.0;

pub(super) fn read(root: &Reader<'_>, policy: &mut Policy) {
    let Some(table) = root.table("detectors") else { return };
    if let Some(storm) = table.table("restart_storm") {
        set(&mut policy.restart_storm.window, storm.duration("window", SECOND..=DAY));
        set(&mut policy.restart_storm.host_restarts, count(&storm, "host_restarts", MANY));
        set(&mut policy.restart_storm.fleet_hosts, count(&storm, "fleet_hosts", MANY));
    }
    if let Some(locks) = table.table("lock_contention") {
        set(&mut policy.lock_contention.fleet_hosts, count(&locks, "fleet_hosts", MANY));
        set(&mut policy.lock_contention.sustained, locks.duration("sustained", SECOND..=DAY));
        set(&mut policy.lock_contention.host_subjects, count(&locks, "host_subjects", MANY));
    }
    if let Some(burst) = table.table("incident_burst") {
        set(&mut policy.correlation.incidents, count(&burst, "incidents", MANY));
        set(&mut policy.correlation.window, burst.duration("window", SECOND..=DAY));
    }
    read_places(&table, policy);
    signals::read(&table, &mut policy.signals);
    let detect = &mut policy.detect;
    if let Some(kills) = table.table("oom_storm") {
        set(&mut detect.oom_storm.window, kills.duration("window", SECOND..=DAY));
        set(&mut detect.oom_storm.hosts, count(&kills, "hosts", MANY));
        set(&mut detect.oom_storm.kills, count(&kills, "kills", MANY));
    }
    if let Some(reasons) = table.table("reason_widespread") {
        let rule = &mut detect.reason_widespread;
        set(&mut rule.window, reasons.duration("window", SECOND..=DAY));
        set(&mut rule.hosts, count(&reasons, "hosts", MANY));
        set(&mut rule.sources, count(&reasons, "sources", MANY));
        set(&mut rule.fleet_share, reasons.number("fleet_share", SHARE));
        set(&mut rule.prolonged, reasons.duration("prolonged", SECOND..=DAY));
    }
    if let Some(damage) = table.table("corruption_spread") {
        set(&mut detect.corruption_spread.hosts, count(&damage, "hosts", MANY));
        set(&mut detect.corruption_spread.after_change, damage.duration("after_change", SECOND..=DAY));
    }
    if let Some(blind) = table.table("probe_blind") {
        set(&mut detect.probe_blind.hosts, count(&blind, "hosts", MANY));
    }
    if let Some(flood) = table.table("agent_flood") {
        set(&mut detect.agent_flood.incidents, count(&flood, "incidents", 2..=1000));
    }
}

/// Those that ask for a share of a label's value or of a subnet.
fn read_places(table: &Reader<'_>, policy: &mut Policy) {
    let detect = &mut policy.detect;
    if let Some(mass) = table.table("mass_stale") {
        set(&mut detect.mass_place.agents_min, count(&mass, "place_agents_min", MANY));
        set(&mut detect.mass_place.share, mass.number("place_share", SHARE));
    }
    if let Some(memory) = table.table("memory_group") {
        set(&mut detect.memory_group.hosts, count(&memory, "hosts", MANY));
        set(&mut detect.memory_group.place_hosts_min, count(&memory, "place_hosts_min", MANY));
        set(&mut detect.memory_group.place_share, memory.number("place_share", SHARE));
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
            "{MINIMAL}[detectors.restart_storm]\nwindow = \"11s\"\n[detectors.lock_contention]\nsustained = \"12s\"\nhost_subjects = 13\n\
             [detectors.mass_stale]\nplace_agents_min = 4\nplace_share = 0.7\n\
             [detectors.oom_storm]\nwindow = \"13s\"\nhosts = 5\nkills = 6\n\
             [detectors.reason_widespread]\nwindow = \"14s\"\nhosts = 7\nsources = 8\nfleet_share = 0.9\nprolonged = \"15s\"\n\
             [detectors.memory_group]\nhosts = 9\nplace_hosts_min = 10\nplace_share = 0.8\n\
             [detectors.corruption_spread]\nhosts = 11\nafter_change = \"16s\"\n[detectors.probe_blind]\nhosts = 12\n\
             [detectors.agent_flood]\nincidents = 17\n"
        );
        let policy = parse("c.toml", &text).unwrap_or_else(|errors| panic!("{errors}")).policy;
        let detect = &policy.detect;
        assert_eq!(policy.restart_storm.window, Duration::from_secs(11));
        assert_eq!(policy.lock_contention.sustained, Duration::from_secs(12));
        assert_eq!(policy.lock_contention.host_subjects, 13);
        assert_eq!((detect.mass_place.agents_min, detect.mass_place.share), (4, 0.7));
        assert_eq!((detect.oom_storm.hosts, detect.oom_storm.kills), (5, 6));
        assert_eq!((detect.reason_widespread.hosts, detect.reason_widespread.sources), (7, 8));
        assert_eq!(detect.reason_widespread.prolonged, Duration::from_secs(15));
        assert_eq!((detect.memory_group.hosts, detect.memory_group.place_hosts_min), (9, 10));
        assert_eq!((detect.corruption_spread.hosts, detect.probe_blind.hosts), (11, 12));
        assert_eq!(detect.agent_flood.incidents, 17);
    }

    #[test]
    fn bounds_and_misspelt_keys_are_told() {
        let text = format!(
            "{MINIMAL}[detectors.oom_storm]\nhosts = 1\nkill = 3\n[detectors.memory_group]\nplace_share = 2.0\n\
             [detectors.oomstorm]\nhosts = 3\n"
        );
        let errors = parse("c.toml", &text).unwrap_err().to_string();
        for part in ["hosts", "did you mean \"kills\"", "place_share", "did you mean \"oom_storm\""] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
}
