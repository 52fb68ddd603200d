//! Freezes in the coordinator's state: set, lifted, over by themselves, bounded, kept by whoever takes over, known to
//! journals and snapshots of before there were any.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use muster_common::time::Timestamp;
use muster_coordinator_core::State;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::freeze::{FREEZES_MAX, FreezeScope};
use muster_tests::scenario::{Fleet, agent, json, policy};
use std::time::Duration;

/// Sets one on the whole fleet; its index.
fn set(fleet: &mut Fleet, reason: &str, ttl_s: Option<u64>) -> u64 {
    let expires = ttl_s.map(|seconds| fleet.now + Duration::from_secs(seconds));
    let scope = FreezeScope::default();
    fleet.feed(Fact::FreezeSet { by: "ada".to_owned(), scope, reason: reason.to_owned(), expires });
    fleet.journal.iter().rev().find(|entry| json_of(entry).contains("freeze_set")).map(|entry| entry.index).unwrap()
}

fn json_of(entry: &muster_coordinator_core::entry::Entry) -> String {
    serde_json::to_string(&entry.body).unwrap()
}

fn reasons(fleet: &Fleet) -> Vec<String> {
    fleet.machine.state().freezes().map(|freeze| freeze.reason.clone()).collect()
}

#[test]
fn they_hold_until_they_are_lifted_or_over() {
    let mut fleet = Fleet::new(policy());
    let upgrade = set(&mut fleet, "upgrade", None);
    set(&mut fleet, "drill", Some(60));
    let early = set(&mut fleet, "lifted early", Some(60));
    let freeze = fleet.machine.state().freezes().next().unwrap();
    assert_eq!((freeze.id.as_str(), freeze.by.as_str()), (format!("FRZ-{upgrade}").as_str(), "ada"));
    assert_eq!((freeze.created, freeze.expires), (fleet.now, None));
    fleet.feed(Fact::FreezeLifted { by: "bob".to_owned(), index: early });
    assert_eq!(reasons(&fleet), ["upgrade", "drill"]);
    fleet.run_line("59 end");
    assert_eq!(reasons(&fleet), ["upgrade", "drill"]);
    fleet.run_line("60 end");
    assert_eq!(reasons(&fleet), ["upgrade"]);
    // Twice, or one that never was: nothing to do, and no harm.
    for index in [upgrade, upgrade, 999_999] {
        fleet.feed(Fact::FreezeLifted { by: "bob".to_owned(), index });
    }
    assert!(reasons(&fleet).is_empty());
    assert_eq!(fleet.log(), "", "a freeze pages nobody");
    fleet.check_journal();
}

#[test]
fn no_more_than_a_bound() {
    let mut fleet = Fleet::new(policy());
    let first = set(&mut fleet, "0", None);
    for number in 1..FREEZES_MAX + 3 {
        set(&mut fleet, &number.to_string(), Some(600));
    }
    assert_eq!(reasons(&fleet).len(), FREEZES_MAX);
    fleet.feed(Fact::FreezeLifted { by: "bob".to_owned(), index: first });
    set(&mut fleet, "room again", None);
    assert_eq!(reasons(&fleet).last().map(String::as_str), Some("room again"));
    fleet.run_line("601 end");
    assert_eq!(reasons(&fleet), ["room again"]);
    fleet.check_journal();
}

#[test]
fn who_takes_over_keeps_them_and_they_still_end() {
    let mut fleet = Fleet::new(policy());
    set(&mut fleet, "upgrade", None);
    set(&mut fleet, "drill", Some(60));
    fleet.run_line("30 takeover");
    assert_eq!(reasons(&fleet), ["upgrade", "drill"]);
    fleet.run_line("40 restart");
    fleet.run_line("61 end");
    assert_eq!(reasons(&fleet), ["upgrade"]);
    fleet.check_journal();
}

#[test]
fn a_snapshot_has_them_and_one_of_before_has_none() {
    let mut fleet = Fleet::new(policy());
    let empty = json(fleet.machine.state());
    let mut before: serde_json::Value = serde_json::from_str(&empty).unwrap();
    assert!(before.as_object_mut().unwrap().remove("freezes").is_some());
    let restored: State = serde_json::from_value(before).unwrap();
    assert_eq!(json(&restored), empty);
    set(&mut fleet, "drill", Some(60));
    let restored: State = serde_json::from_str(&json(fleet.machine.state())).unwrap();
    assert_eq!(json(&restored), json(fleet.machine.state()));
    assert_eq!(restored.freezes().count(), 1);
}

#[test]
fn a_scope_is_names_and_labels_together() {
    let labels = |text: &str| {
        text.split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    };
    let check = |agents: &[&str], wanted: &str, name: &str, has: &str, expected: bool| {
        let scope = FreezeScope { agents: agents.iter().map(|name| agent(name)).collect(), labels: labels(wanted) };
        assert_eq!(scope.concerns(&agent(name), &labels(has)), expected, "{agents:?} {wanted:?}: {name} {has:?}");
    };
    check(&[], "", "web-1", "", true);
    check(&["web-1", "web-2"], "", "web-2", "zone=a", true);
    check(&["web-1"], "", "web-2", "", false);
    check(&[], "zone=a", "web-1", "zone=a role=x", true);
    check(&[], "zone=a role=x", "web-1", "zone=a", false);
    check(&["web-1"], "zone=a", "web-1", "zone=b", false);
    check(&["web-1"], "zone=a", "web-1", "zone=a", true);
}

#[test]
fn times_of_a_freeze_are_the_logs() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("5 end");
    // Over before it begins: a late fact. It ends with the next deadline.
    let scope = FreezeScope::default();
    let expires = Some(Timestamp::from_unix_ms(0));
    fleet.feed(Fact::FreezeSet { by: "ada".to_owned(), scope, reason: "late".to_owned(), expires });
    fleet.run_line("6 end");
    assert!(reasons(&fleet).is_empty());
    fleet.check_journal();
}
