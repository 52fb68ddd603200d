//! Many new incidents that nothing explains are one.

use muster_coordinator_core::cause::FLEET_BURST;
use muster_tests::scenario::{Fleet, policy};

/// Hosts in one zone.
fn hosts(fleet: &mut Fleet, n: usize) {
    for n in 0..n {
        fleet.run_line(&format!("0 label h{n} zone=north"));
        fleet.run_line(&format!("0 connect h{n}"));
    }
}

/// So many hosts, each with another trouble, a second apart.
fn troubles(fleet: &mut Fleet, n: usize) {
    hosts(fleet, n);
    for n in 0..n {
        fleet.run_line(&format!("{n} open h{n} s{n} a port_closed"));
    }
}

fn count(fleet: &Fleet, part: &str) -> usize {
    fleet.log().lines().filter(|line| line.contains(part)).count()
}

#[test]
fn ten_new_incidents_are_one_page_with_its_blast_radius() {
    let mut fleet = Fleet::new(policy());
    troubles(&mut fleet, 10);
    fleet.run_line("100 end");
    let log = fleet.log();
    assert_eq!(count(&fleet, " opened sev2 incident_burst fleet/incident_burst#1"), 1, "{log}");
    assert_eq!(count(&fleet, " page trigger "), 1, "{log}");
    let incident = fleet.machine.state().unresolved(FLEET_BURST).unwrap();
    assert_eq!((incident.agents.len(), incident.services.len()), (10, 10));
    for part in ["10 new incidents within 9 s on 10 hosts: h0, h1", "services: s0", "all have zone=north", "first INC-"]
    {
        assert!(incident.title.contains(part), "{}", incident.title);
    }
    fleet.check_journal();
}

#[test]
fn nine_are_nine() {
    let mut fleet = Fleet::new(policy());
    troubles(&mut fleet, 9);
    fleet.run_line("100 end");
    assert_eq!((count(&fleet, "incident_burst"), count(&fleet, " page trigger ")), (0, 9));
}

#[test]
fn ten_that_come_slowly_are_ten() {
    let mut fleet = Fleet::new(policy());
    hosts(&mut fleet, 10);
    for n in 0..10 {
        fleet.run_line(&format!("{} open h{n} s{n} a port_closed", n * 20));
    }
    fleet.run_line("300 end");
    assert_eq!((count(&fleet, "incident_burst"), count(&fleet, " page trigger ")), (0, 10));
}

#[test]
fn those_of_one_host_are_that_hosts() {
    let of = |h1_too: bool| {
        let mut fleet = Fleet::new(policy());
        hosts(&mut fleet, 2);
        if h1_too {
            fleet.run_line("0 open h1 s0 a port_closed");
        }
        for n in 0..10 {
            fleet.run_line(&format!("{} open h0 s{n} a port_closed", n / 2));
        }
        fleet.run_line("100 end");
        assert_eq!(count(&fleet, " opened sev2 incident_burst "), 1, "{}", fleet.log());
        let state = fleet.machine.state();
        let burst = |cause: &str| {
            state.unresolved(cause).map(|burst| burst.agents.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        (burst("host/h0/burst"), burst(FLEET_BURST))
    };
    assert_eq!(of(false), (Some(vec!["h0".to_owned()]), None));
    // One of another host among them, and they are the fleet's.
    assert_eq!(of(true), (None, Some(vec!["h0".to_owned(), "h1".to_owned()])));
}

#[test]
fn what_is_paged_already_goes_on_under_the_oldest_page() {
    let mut fleet = Fleet::new(policy());
    hosts(&mut fleet, 10);
    for n in 0..10 {
        fleet.run_line(&format!("{} open h{n} s{n} a port_closed", n * 5));
        if n == 3 {
            fleet.run_line("15 ack host/h0/service/s0");
        }
    }
    fleet.run_line("100 end");
    let log = fleet.log();
    let (merged, resolved) = (count(&fleet, " merged "), count(&fleet, " page resolve "));
    assert_eq!((merged, resolved), (8, 7), "{log}");
    let incident = fleet.machine.state().unresolved(FLEET_BURST).unwrap();
    assert_eq!(incident.owner.as_deref(), Some("ann"));
    let keys: std::collections::BTreeSet<_> = incident.page_keys.iter().map(|key| &key.dedup_key).collect();
    assert_eq!(keys.len(), 1, "the page of the oldest goes on");
    fleet.check_journal();
}

#[test]
fn what_outlives_it_comes_back_by_itself_and_late_ones_join_while_it_is_hot() {
    let mut fleet = Fleet::new(policy());
    troubles(&mut fleet, 10);
    hosts(&mut fleet, 12);
    fleet.run_line("60 open h10 s10 a port_closed");
    fleet.run_line("1000 open h11 s11 a port_closed");
    for n in 0..8 {
        fleet.run_line(&format!("2000 clear h{n} s{n} a port_closed"));
    }
    fleet.run_line("4000 end");
    let log = fleet.log();
    let told: Vec<&str> = log.lines().filter(|line| !line.contains(" folded ") && !line.starts_with("9 ")).collect();
    let told = told.join("\n");
    assert!(log.contains("60 folded host/h10/service/s10 into fleet/incident_burst"), "{log}");
    assert!(log.contains("1010 page trigger sev2 port_closed host/h11/service/s11"), "it had cooled down: {log}");
    assert!(told.contains("2000 recovering fleet/incident_burst"), "{log}");
    for n in [8, 9, 10] {
        assert!(log.contains(&format!("2010 page trigger sev2 port_closed host/h{n}/service/s{n}")), "{log}");
    }
    assert!(log.contains("2900 resolved fleet/incident_burst"), "{log}");
    fleet.check_journal();
}

#[test]
fn what_only_happened_is_gathered_as_well() {
    let mut fleet = Fleet::new(policy());
    hosts(&mut fleet, 10);
    for n in 0..10 {
        fleet.run_line(&format!("{} occur h{n} s{n} update_failed 0", n / 2));
    }
    fleet.run_line("2000 end");
    let log = fleet.log();
    assert_eq!(count(&fleet, " opened sev2 incident_burst "), 1, "{log}");
    assert_eq!(count(&fleet, " page trigger "), 1, "{log}");
    assert_eq!(count(&fleet, " page resolve "), 1, "{log}");
    assert_eq!(count(&fleet, " merged ") + count(&fleet, " folded "), 10, "{log}");
    fleet.check_journal();
}

#[test]
fn closing_it_by_hand_closes_what_it_gathered() {
    let mut fleet = Fleet::new(policy());
    troubles(&mut fleet, 10);
    fleet.run_line("100 resolve fleet/incident_burst");
    fleet.run_line("2000 end");
    assert_eq!(count(&fleet, " page trigger "), 1);
    assert!(fleet.machine.state().incidents().all(|incident| !incident.is_unresolved()), "{}", fleet.log());
    fleet.run_line("2001 open h0 s0 b port_closed");
    assert!(fleet.machine.state().unresolved("host/h0/service/s0").is_some());
    fleet.check_journal();
}

/// Of many hosts ten fall silent, which is no mass yet; then it becomes one.
#[test]
fn a_cause_found_later_takes_the_gathering_in() {
    let mut policy = policy();
    // Masses of a subnet or a label come sooner.
    policy.detect.mass_place.agents_min = u32::MAX;
    let mut fleet = Fleet::new(policy);
    for n in 0..100 {
        fleet.run_line(&format!("0 connect h{n}"));
    }
    for n in 0..60 {
        fleet.run_line(&format!("{} silent h{n} nothing", 100 + n / 2));
    }
    fleet.run_line("300 end");
    let log = fleet.log();
    assert_eq!(
        (count(&fleet, " opened sev3 incident_burst "), count(&fleet, " opened sev1 mass_stale ")),
        (1, 1),
        "{log}"
    );
    assert_eq!(count(&fleet, "ed fleet/incident_burst into fleet/mass_stale"), 1, "{log}");
    assert_eq!(count(&fleet, " page trigger "), 1, "{log}");
    fleet.check_journal();
}

/// To be one of many hides nothing: what gets worse among them makes the gathering worse, and pages.
#[test]
fn what_gets_worse_among_them_is_told() {
    let mut fleet = Fleet::new(policy());
    hosts(&mut fleet, 10);
    for n in 0..10 {
        fleet.run_line(&format!("{n} open h{n} s{n} /a.db sqlite_wal_growth"));
    }
    fleet.run_line("100 ack fleet/incident_burst");
    fleet.run_line("5000 open h3 s3 /a.db sqlite_corrupt");
    fleet.run_line("5010 end");
    let log = fleet.log();
    assert!(log.contains("69 page trigger sev3 incident_burst fleet/incident_burst"), "{log}");
    assert!(log.contains("5000 changed sev1 incident_burst fleet/incident_burst"), "{log}");
    assert!(log.contains("5000 page trigger sev1 incident_burst fleet/incident_burst"), "{log}");
    let incident = fleet.machine.state().unresolved(FLEET_BURST).unwrap();
    assert_eq!(incident.acknowledged, None, "that was about something milder");
    assert!(incident.why.contains("host/h3/sqlite/s3//a.db makes it sev1: sqlite_corrupt"), "{}", incident.why);
    // A person who knows of it makes it milder: it stays so.
    fleet.run_line("5020 severity fleet/incident_burst sev3");
    fleet.run_line("5030 open h4 s4 /a.db sqlite_not_a_database");
    assert_eq!(fleet.machine.state().unresolved(FLEET_BURST).unwrap().severity.to_string(), "sev3");
    fleet.check_journal();
}

/// Ten that come hours later, while the old ones are still open, are another page and not its symptoms.
#[test]
fn a_second_wave_is_another_gathering() {
    let mut fleet = Fleet::new(policy());
    troubles(&mut fleet, 10);
    fleet.run_line("100 ack fleet/incident_burst");
    hosts(&mut fleet, 30);
    for n in 10..20 {
        fleet.run_line(&format!("{} open h{n} s{n} a port_closed", 30_000 + n));
    }
    fleet.run_line("30100 end");
    let log = fleet.log();
    assert!(log.contains("30019 opened sev2 incident_burst fleet/incident_burst-2#1"), "{log}");
    assert!(log.contains("30029 page trigger sev2 incident_burst fleet/incident_burst-2"), "{log}");
    assert_eq!(count(&fleet, " page trigger "), 2, "{log}");
    let second = fleet.machine.state().unresolved("fleet/incident_burst-2").unwrap();
    assert!(second.title.starts_with("10 new incidents within 9 s on 10 hosts: h10, h11"), "{}", second.title);
    let first = fleet.machine.state().unresolved(FLEET_BURST).unwrap();
    assert_eq!((first.agents.len(), first.owner.as_deref()), (10, Some("ann")));
    let looks = muster_coordinator_core::detect::explain(
        fleet.machine.state(),
        fleet.now,
        &muster_tests::scenario::agent("h12"),
    );
    assert!(looks.iter().any(|look| look.about == "fleet/incident_burst-2"), "{looks:?}");
    // Late ones join the one that is hot.
    fleet.run_line("30110 open h21 s21 a port_closed");
    assert_eq!(fleet.machine.state().unresolved("fleet/incident_burst-2").unwrap().agents.len(), 11);
    fleet.check_journal();
}

/// In a large fleet something is always new: it is not swallowed for hours by what began with ten.
#[test]
fn a_gathering_takes_new_ones_in_for_a_bounded_time() {
    let mut fleet = Fleet::new(policy());
    hosts(&mut fleet, 60);
    for n in 0..10 {
        fleet.run_line(&format!("{n} open h{n} s{n} a port_closed"));
    }
    for n in 10..40 {
        fleet.run_line(&format!("{} open h{n} s{n} a port_closed", (n - 9) * 100));
    }
    let log = fleet.log();
    assert_eq!(fleet.machine.state().unresolved(FLEET_BURST).unwrap().agents.len(), 10 + 12, "{log}");
    // The others are their own, since they come too slowly for another gathering.
    assert_eq!(count(&fleet, " page trigger "), 1 + 17, "{log}");
    fleet.check_journal();
}

/// What was well for longer than an incident of its own would have been kept open is news when it fails again.
#[test]
fn what_was_well_for_long_is_on_its_own_again() {
    let mut fleet = Fleet::new(policy());
    troubles(&mut fleet, 10);
    fleet.run_line("100 ack fleet/incident_burst");
    for (line, expected) in [
        ("1000 clear h0 s0 a port_closed", 1),
        ("1500 open h0 s0 a port_closed", 1),
        ("1600 clear h0 s0 a port_closed", 1),
        ("9000 open h0 s0 a port_closed", 1),
        ("9010 ack host/h0/service/s0", 2),
        ("9020 occur h1 s1 oom_kill 0", 2),
        ("20000 clear h1 s1 a port_closed", 2),
        ("30000 occur h1 s1 oom_kill 0", 2),
        ("30010 end", 3),
    ] {
        fleet.run_line(line);
        assert_eq!(count(&fleet, " page trigger "), expected, "{line}: {}", fleet.log());
    }
    assert!(fleet.log().contains("9010 page trigger sev2 port_closed host/h0/service/s0"), "{}", fleet.log());
    fleet.check_journal();
}

/// A few of many silent hosts never come back: they are told one by one, and the gathering ends.
#[test]
fn a_gathering_of_silences_ends_although_some_stay_silent() {
    let mut policy = policy();
    policy.detect.mass_place.agents_min = u32::MAX;
    let mut fleet = Fleet::new(policy);
    hosts(&mut fleet, 100);
    for n in 0..12 {
        fleet.run_line(&format!("{} silent h{n} nothing", 100 + n));
    }
    for n in 0..9 {
        fleet.run_line(&format!("{} heard h{n}", 500 + n));
    }
    fleet.run_line("5000 end");
    let log = fleet.log();
    assert!(log.contains("507 recovering fleet/incident_burst"), "{log}");
    assert!(log.contains("567 page trigger sev3 agent_stale host/h11/agent"), "{log}");
    assert!(log.contains("1407 resolved fleet/incident_burst"), "{log}");
    fleet.check_journal();
}

/// Somebody silenced a reason: many of it are no way around that.
#[test]
fn a_silence_of_a_reason_holds_back_many_of_it_and_nothing_else() {
    let mut fleet = Fleet::new(policy());
    hosts(&mut fleet, 12);
    fleet.run_line("0 silence 6000 reason=disk_space_low");
    for n in 0..10 {
        fleet.run_line(&format!("{n} open h{n} s{n} / disk_space_low"));
    }
    fleet.run_line("100 end");
    assert_eq!(count(&fleet, " page trigger "), 0, "{}", fleet.log());
    assert!(fleet.log().contains("69 silenced fleet/incident_burst"), "{}", fleet.log());
    fleet.run_line("110 open h11 s11 a port_closed");
    fleet.run_line("200 end");
    assert_eq!(count(&fleet, " page trigger "), 1, "one that is about something else joined: {}", fleet.log());
    fleet.check_journal();
}

/// What came back from one gathering and is gathered by another one is no part of the first any more, which would wait for
/// it for ever.
#[test]
fn what_is_gathered_again_is_gathered_once() {
    let mut fleet = Fleet::new(policy());
    troubles(&mut fleet, 10);
    hosts(&mut fleet, 20);
    for n in 0..6 {
        fleet.run_line(&format!("1000 clear h{n} s{n} a port_closed"));
    }
    assert!(fleet.log().contains("1000 recovering fleet/incident_burst"), "{}", fleet.log());
    // Four are on their own again; with six others they are a gathering beside the first.
    for n in 10..16 {
        fleet.run_line(&format!("1005 open h{n} s{n} a port_closed"));
    }
    assert!(fleet.log().contains("1005 opened sev2 incident_burst fleet/incident_burst-2#1"), "{}", fleet.log());
    for n in 6..16 {
        fleet.run_line(&format!("2000 clear h{n} s{n} a port_closed"));
    }
    fleet.run_line("4000 end");
    assert!(fleet.machine.state().incidents().all(|incident| !incident.is_unresolved()), "{}", fleet.log());
    fleet.check_journal();
}
