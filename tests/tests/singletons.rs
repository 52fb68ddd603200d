//! Services of which there may be one, when a host dies, is moved from, or must not run them.

use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::state::IncidentStatus;
use muster_tests::scenario::{Fleet, START_UNIX_MS, agent, key, policy};
use std::time::Duration;

/// Lets time pass to a second of the script, as its lines do.
fn at(fleet: &mut Fleet, second: u64) {
    fleet.advance(muster_common::time::Timestamp::from_unix_ms(START_UNIX_MS) + Duration::from_secs(second));
}

/// At a second, an agent tells that it runs or does not any more.
fn tells(fleet: &mut Fleet, second: u64, host: &str, state: &str) {
    at(fleet, second);
    let evidence = Evidence::new().text("what", "singleton").text("new", state);
    let finding = Finding::new(key("spl", "singleton", Reason::Change), &format!("spl: {state}")).evidence(evidence);
    fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::ZERO);
}

fn expect(fleet: &Fleet, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(fleet.log().lines().collect::<Vec<_>>(), expected, "\nfound:\n{}", fleet.log());
    fleet.check_journal();
}

/// It runs on `a` and `b` at once from second 100 on, and that is told.
fn twice() -> Fleet {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    tells(&mut fleet, 10, "a", "running");
    tells(&mut fleet, 100, "b", "running");
    fleet.run("300 end");
    fleet
}

const TWICE: &str = "220 opened sev2 duplicate_instance fleet/singleton/spl#1
                     230 page trigger sev2 duplicate_instance fleet/singleton/spl\n";

/// The service was moved to `b` after `a` died. An agent that tells nothing after its reboot must not leave it in doubt.
#[test]
fn what_ran_before_a_reboot_does_not_run_until_it_is_told_again() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 boot a 1\n0 connect a b");
    tells(&mut fleet, 10, "a", "running");
    fleet.run("100 silent a reset");
    tells(&mut fleet, 200, "b", "running");
    fleet.run("300 boot a 2\n300 connect a\n5000 end");
    assert!(!fleet.log().contains("duplicate_instance"), "{}", fleet.log());
    tells(&mut fleet, 5000, "a", "running");
    fleet.run("5119 end");
    assert!(!fleet.log().contains("duplicate_instance"), "{}", fleet.log());
    fleet.run("5120 end");
    assert!(fleet.log().contains("5120 opened sev2 duplicate_instance fleet/singleton/spl#1"), "{}", fleet.log());
    // The same boot says nothing of it.
    fleet.run("5200 connect a\n5300 end");
    assert!(!fleet.log().contains("recovering fleet/singleton/spl"), "{}", fleet.log());
    fleet.run("5300 boot a 3\n5300 connect a\n5301 end");
    assert!(fleet.log().contains("5300 recovering fleet/singleton/spl"), "{}", fleet.log());
    fleet.check_journal();
}

/// That its process is down is told at once, that it does not run as a singleton half a minute later.
#[test]
fn a_duplicate_is_over_when_one_of_the_two_is_down() {
    for (subject, reason) in [("it", "process_down"), ("/run/spl.pid", "pid_file_missing"), ("it", "unit_inactive")] {
        let mut fleet = twice();
        fleet.run(&format!("300 open b spl {subject} {reason}"));
        tells(&mut fleet, 340, "b", "stopped");
        fleet.run("2000 end");
        expect(
            &fleet,
            &format!(
                "{TWICE}300 recovering fleet/singleton/spl
                 1200 resolved fleet/singleton/spl
                 1200 page resolve sev2 duplicate_instance fleet/singleton/spl"
            ),
        );
    }
}

/// Somebody started it by hand: that its unit is inactive is no proof that it does not run.
#[test]
fn what_was_down_before_it_was_told_as_running_is_no_proof() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    tells(&mut fleet, 10, "a", "running");
    fleet.run("50 open b spl spl.service unit_inactive");
    tells(&mut fleet, 100, "b", "running");
    fleet.run("300 end");
    assert!(fleet.log().contains("220 opened sev2 duplicate_instance fleet/singleton/spl#1"), "{}", fleet.log());
    fleet.check_journal();
}

/// Within the stability window it is moved: the other one is stopped and the first started. Nothing runs twice.
#[test]
fn a_move_while_a_duplicate_recovers_pages_nothing() {
    let mut fleet = twice();
    fleet.run("300 open b spl it process_down");
    tells(&mut fleet, 340, "b", "stopped");
    fleet.run("400 clear b spl it process_down");
    tells(&mut fleet, 405, "b", "running");
    // They overlap for a minute, as a planned move may.
    fleet.run("460 open a spl it process_down");
    tells(&mut fleet, 500, "a", "stopped");
    fleet.run("3000 end");
    expect(
        &fleet,
        &format!(
            "{TWICE}300 recovering fleet/singleton/spl
             1200 resolved fleet/singleton/spl
             1200 page resolve sev2 duplicate_instance fleet/singleton/spl"
        ),
    );
}

/// A relapse waits as the first opening did, and is one after that.
#[test]
fn a_duplicate_that_comes_back_and_lasts_relapses_after_the_hold() {
    let mut fleet = twice();
    fleet.run("300 open b spl it process_down\n400 clear b spl it process_down\n519 end");
    assert!(!fleet.log().contains("relapsed"), "{}", fleet.log());
    fleet.run("520 end");
    assert!(fleet.log().contains("520 relapsed fleet/singleton/spl"), "{}", fleet.log());
    fleet.check_journal();
}

/// An active and a passive host, both with `singleton = true`: that it is down where it must not run calls nobody, for as
/// long as it runs on the other.
#[test]
fn where_it_must_not_run_it_is_not_missed_while_it_runs_elsewhere() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    tells(&mut fleet, 10, "a", "running");
    fleet.run("20 open b spl /run/spl.pid pid_file_missing\n20 open b spl 9100 port_closed\n9000 end");
    expect(&fleet, "");
    // A restart of the coordinator does not know for a moment who is heard.
    fleet.run("9000 restart\n9001 heard a b\n9900 end");
    expect(&fleet, "");
    // It restarts on a: that is told of a alone. When it does not come back it is missed on both.
    fleet.run("10000 open a spl it process_down\n10039 end");
    expect(
        &fleet,
        "10000 opened sev2 process_down host/a/service/spl#1\n10010 page trigger sev2 process_down host/a/service/spl",
    );
    tells(&mut fleet, 10_040, "a", "stopped");
    assert!(fleet.log().contains("10040 opened sev2 port_closed host/b/service/spl#1"), "{}", fleet.log());
    // A failover: what died on a is no matter for the night any more, and nor is what is down on b.
    fleet.run("10110 clear b spl 9100 port_closed\n10110 clear b spl /run/spl.pid pid_file_missing");
    tells(&mut fleet, 10_120, "b", "running");
    fleet.run("10121 end");
    assert!(fleet.log().contains("10120 recovering host/a/service/spl"), "{}", fleet.log());
    let told = fleet
        .machine
        .state()
        .newest_incident("host/a/service/spl")
        .map(|incident| incident.timeline.iter().any(|line| line.text.contains("spl runs on b")));
    assert_eq!(told, Some(true), "where it runs is told");
    // The one that took over falls silent: nobody knows that it runs anywhere.
    fleet.run("20000 silent b nothing\n20100 end");
    assert!(fleet.log().contains("20000 opened sev2 process_down host/a/service/spl#2"), "{}", fleet.log());
    fleet.check_journal();
}

/// Both hosts lose their power: that it does not run where it must not is nothing new, and the silence is told by itself.
/// When the passive one alone is back, it is missed.
#[test]
fn hosts_that_fall_silent_together_do_not_miss_it() {
    let is_missed = |fleet: &Fleet| {
        let incident = fleet.machine.state().unresolved("host/b/service/spl");
        incident.is_some_and(|incident| incident.status != IncidentStatus::Recovering)
    };
    for order in ["100 silent a nothing\n101 silent b nothing", "100 silent b nothing\n101 silent a nothing"] {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect a b");
        tells(&mut fleet, 10, "a", "running");
        fleet.run("20 open b spl /run/spl.pid pid_file_missing");
        fleet.run(&format!("{order}\n3000 end"));
        let log = fleet.log();
        assert!(!log.contains("page trigger sev3 pid_file_missing"), "{log}");
        assert!(!is_missed(&fleet), "{log}");
        fleet.run("3000 connect b\n3100 end");
        assert!(is_missed(&fleet), "{}", fleet.log());
        fleet.check_journal();
    }
    // The passive one falls silent much later: it was missed there, and is.
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    tells(&mut fleet, 10, "a", "running");
    fleet.run("20 open b spl /run/spl.pid pid_file_missing\n100 silent a nothing\n300 silent b nothing\n9000 end");
    assert!(is_missed(&fleet), "{}", fleet.log());
    let incident = fleet.machine.state().unresolved("host/b/service/spl").unwrap();
    assert!(incident.why.contains("a, where it ran last, is silent"), "{}", incident.why);
    fleet.check_journal();
}

/// A storm that is over is no reason to miss the service for ever where it must not run.
#[test]
fn after_a_storm_it_is_not_missed_where_it_must_not_run() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b c");
    for second in 20..25 {
        for host in ["a", "b", "c"] {
            fleet.run_line(&format!("{second} occur {host} spl process_restarted 0"));
        }
    }
    fleet.run("3000 end");
    assert!(fleet.log().contains("resolved fleet/restart_storm/spl"), "{}", fleet.log());
    let before = fleet.log().lines().count();
    tells(&mut fleet, 3000, "a", "running");
    fleet.run("3010 open b spl /run/spl.pid pid_file_missing\n9000 end");
    assert_eq!(fleet.log().lines().count(), before, "{}", fleet.log());
    fleet.check_journal();

    // While the storm's incident is open it is the storm's to tell; with its end it is as it should be.
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b c");
    tells(&mut fleet, 10, "a", "running");
    for host in ["a", "b", "c"] {
        fleet.run_line(&format!("20 occur {host} spl process_restarted 0"));
    }
    fleet.run("30 open b spl /run/spl.pid pid_file_missing\n9000 end");
    let log = fleet.log();
    assert!(log.contains("resolved fleet/restart_storm/spl"), "{log}");
    assert!(fleet.machine.state().unresolved("host/b/service/spl").is_none(), "{log}");
    fleet.check_journal();
}

/// What is down on a host whose service is no singleton of anybody is missed there.
#[test]
fn another_service_and_another_fault_are_no_matter_of_it() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    tells(&mut fleet, 10, "a", "running");
    fleet.run("20 open b web it process_down\n30 open a spl 9100 port_closed\n60 end");
    let log = fleet.log();
    assert!(log.contains("20 opened sev2 process_down host/b/service/web#1"), "{log}");
    assert!(log.contains("30 opened sev2 port_closed host/a/service/spl#1"), "{log}");
    // Whoever wants to hear of it names a severity.
    let mut named: Policy = policy();
    named.severities.insert(Reason::ProcessDown, muster_common::severity::Severity::Sev2);
    let mut fleet = Fleet::new(named);
    fleet.run("0 connect a b");
    tells(&mut fleet, 10, "a", "running");
    fleet.run("20 open b spl it process_down\n60 end");
    assert!(fleet.log().contains("20 opened sev2 process_down host/b/service/spl#1"), "{}", fleet.log());
    fleet.check_journal();
}
