//! Containers on one kernel, each with an agent: all of them read the same line of its log.

use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_tests::scenario::{Fleet, agent, key, policy};
use std::time::Duration;

/// At a second, an agent tells that a kernel killed pid 77 of a service when it was 5 s old.
fn killed(fleet: &mut Fleet, second: u64, host: &str, service: &str) {
    killed_pid(fleet, second, host, service, 77);
}

fn killed_pid(fleet: &mut Fleet, second: u64, host: &str, service: &str, pid: u64) {
    fleet.run(&format!("{second} end"));
    let evidence = Evidence::new().count("pid", pid).with("since_boot_ms", Value::Millis(5_000));
    let finding =
        Finding::new(key(service, "python3", Reason::OomKill), "the kernel killed python3").evidence(evidence);
    fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::ZERO);
}

fn one_kernel() -> Fleet {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 boot a 1\n0 boot b 1\n0 boot c 1\n0 boot x 2\n0 connect a b c x");
    fleet
}

fn expect(fleet: &Fleet, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(fleet.log().lines().collect::<Vec<_>>(), expected, "\nfound:\n{}", fleet.log());
    fleet.check_journal();
}

#[test]
fn a_kill_that_nobody_watches_is_the_incident_of_who_told_it_first() {
    let mut fleet = one_kernel();
    for (second, host) in [(10, "b"), (11, "a"), (300, "c")] {
        killed(&mut fleet, second, host, "host");
    }
    fleet.run("400 end");
    expect(
        &fleet,
        "10 opened sev3 oom_kill host/b/oom#1
         10 recovering host/b/oom
         70 page trigger sev3 oom_kill host/b/oom",
    );
    let incident = fleet.machine.state().unresolved("host/b/oom").unwrap();
    for other in ["host/a/oom", "host/c/oom"] {
        assert!(incident.members.contains(other), "{other}: {:?}", incident.members);
    }
}

/// One host kills again and again, and each time another agent is the first to tell: the incident that is open takes it.
#[test]
fn a_series_of_kills_is_one_incident_whoever_is_first() {
    let mut fleet = one_kernel();
    for (second, host, pid) in
        [(10, "b", 77), (11, "a", 77), (30, "b", 78), (31, "a", 78), (40, "a", 79), (41, "b", 79)]
    {
        killed_pid(&mut fleet, second, host, "host", pid);
    }
    fleet.run("400 end");
    let log = fleet.log();
    assert!(log.contains("41 folded host/a/oom into host/b/oom"), "{log}");
    let keys: std::collections::BTreeSet<String> = fleet.pages().map(|(_, page)| page.dedup_key.clone()).collect();
    assert_eq!(keys.len(), 1, "{log}");
    // When it is over, the next one is that of who tells it first.
    fleet.run("4000 end");
    assert!(fleet.log().contains("resolved host/b/oom"), "{}", fleet.log());
    killed_pid(&mut fleet, 4000, "a", "host", 80);
    killed_pid(&mut fleet, 4001, "b", "host", 80);
    fleet.run("4200 end");
    let log = fleet.log();
    assert!(log.contains("4000 opened sev3 oom_kill host/a/oom#2") && !log.contains("host/b/oom#2"), "{log}");
    fleet.check_journal();
}

#[test]
fn who_watches_the_victim_tells_it_whoever_came_first() {
    let mut fleet = one_kernel();
    killed(&mut fleet, 10, "a", "host");
    killed(&mut fleet, 11, "c", "spl");
    killed(&mut fleet, 12, "b", "host");
    fleet.run("400 end");
    expect(
        &fleet,
        "10 opened sev3 oom_kill host/a/oom#1
         10 recovering host/a/oom
         11 opened sev2 oom_kill host/c/service/spl#1
         11 folded host/a/oom into host/c/service/spl
         11 recovering host/c/service/spl
         21 page trigger sev2 oom_kill host/c/service/spl",
    );
}

/// Told by who watches it after the page: one page goes on, under the key of the first.
#[test]
fn a_page_that_went_out_goes_on() {
    let mut fleet = one_kernel();
    killed(&mut fleet, 10, "a", "host");
    killed(&mut fleet, 100, "c", "spl");
    fleet.run("400 end");
    let keys: std::collections::BTreeSet<String> = fleet.pages().map(|(_, page)| page.dedup_key.clone()).collect();
    assert_eq!(keys.len(), 1, "{}", fleet.log());
    assert!(fleet.log().contains("merged host/a/oom into host/c/service/spl"), "{}", fleet.log());
    fleet.check_journal();
}

#[test]
fn another_kernel_and_another_kill_are_incidents_of_their_own() {
    let mut fleet = one_kernel();
    killed(&mut fleet, 10, "a", "host");
    killed(&mut fleet, 11, "x", "host");
    fleet.run("12 end");
    let log = fleet.log();
    assert!(log.contains("11 opened sev3 oom_kill host/x/oom#1"), "{log}");
    fleet.check_journal();
    // Where the line of the log has no pid, nothing is known to be the same.
    let mut fleet = one_kernel();
    killed(&mut fleet, 10, "a", "host");
    fleet.run("13 occur b host oom_kill 0\n14 end");
    assert!(fleet.log().contains("13 opened sev3 oom_kill host/b/oom#1"), "{}", fleet.log());
    fleet.check_journal();
}

/// Who was cut off for an hour tells nothing new, unless it is the one that knows whose process it was.
#[test]
fn a_kill_that_was_told_to_its_end_pages_nobody_again() {
    let mut fleet = one_kernel();
    killed(&mut fleet, 10, "a", "host");
    fleet.run("3000 end");
    assert!(fleet.log().contains("resolved host/a/oom"), "{}", fleet.log());
    let before = fleet.log();
    killed(&mut fleet, 3600, "b", "host");
    fleet.run("4000 end");
    assert_eq!(fleet.log(), before);
    killed(&mut fleet, 4001, "c", "spl");
    fleet.run("4100 end");
    assert!(fleet.log().contains("4001 opened sev2 oom_kill host/c/service/spl#1"), "{}", fleet.log());
    fleet.check_journal();
}

/// What is open there is that host's own matter, and the kill a part of it.
#[test]
fn a_service_that_is_down_is_not_folded_away() {
    let mut fleet = one_kernel();
    killed(&mut fleet, 10, "a", "spl");
    fleet.run("11 open b spl it process_down");
    killed(&mut fleet, 12, "b", "spl");
    fleet.run("30 end");
    let log = fleet.log();
    assert!(log.contains("11 opened sev2 process_down host/b/service/spl#1"), "{log}");
    assert!(log.contains("changed sev2 oom_kill host/b/service/spl") && !log.contains("folded"), "{log}");
    fleet.check_journal();
}

/// A reboot between two tellings changes nothing about which kernel it was.
#[test]
fn the_kernel_is_that_of_the_telling() {
    let mut fleet = one_kernel();
    killed(&mut fleet, 10, "a", "host");
    fleet.run("20 boot a 9\n20 boot b 9\n20 boot c 9\n20 connect a");
    killed(&mut fleet, 30, "b", "host");
    fleet.run("40 connect b c\n50 end");
    let log = fleet.log();
    assert!(log.contains("10 opened sev3 oom_kill host/a/oom#1") && !log.contains("host/b/oom#1"), "{log}");
    // Another boot's kill with the same figures is another one.
    killed(&mut fleet, 60, "c", "host");
    assert!(fleet.log().contains("60 opened sev3 oom_kill host/c/oom#1"), "{}", fleet.log());
    fleet.check_journal();
}
