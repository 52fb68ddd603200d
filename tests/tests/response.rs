//! What people do about incidents and by when: escalation, severity by hand, commander, and pages that merge.

use muster_common::severity::Severity;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::page::{Page, PageAction};
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::response::ESCALATIONS_MAX;
use muster_tests::scenario::{Fleet, check, check_under, policy};
use std::time::Duration;

fn triggers<'a>(fleet: &'a Fleet, receiver: &'a str) -> impl Iterator<Item = &'a Page> {
    let pages = fleet.pages().map(|(_, page)| page);
    pages.filter(move |page| page.receiver == receiver && page.action == PageAction::Trigger)
}

#[test]
fn what_nobody_acknowledges_is_told_again_until_somebody_does() {
    let fleet = check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         7300 ack host/web-1/service/spl
         20000 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         3610 escalated host/web-1/service/spl 1
         3610 page trigger sev2 port_closed host/web-1/service/spl
         7210 escalated host/web-1/service/spl 2
         7210 page trigger sev2 port_closed host/web-1/service/spl
         7300 page acknowledge sev2 port_closed host/web-1/service/spl",
    );
    let told: Vec<_> = triggers(&fleet, "ops").collect();
    let asks = &told[0].next_steps[0];
    let (within, by) = asks.split_once(" UTC: musterctl incidents ack INC-").unwrap();
    assert!(within.starts_with("acknowledge within 30 min, by 20") && by.len() > 10, "{asks}");
    assert!(told[1].next_steps[0].starts_with("acknowledge now, it was expected by 20"), "{:?}", told[1].next_steps);
    assert!(asks.contains("; otherwise it is told again at 20"), "{asks}");
    let why = &told[2].why;
    assert!(why.starts_with("escalation 2: nobody acknowledged it for 2 h, expected within 30 min; "), "{why}");
    let keys: std::collections::BTreeSet<_> = told.iter().map(|page| &page.dedup_key).collect();
    assert_eq!(keys.len(), 1, "an escalation is told under the same key");
}

#[test]
fn each_severity_has_its_own_time_and_sev4_has_none() {
    let at = |severity: Severity| *Policy::default().escalation.get(severity);
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    let expected = [minutes(5), minutes(30), minutes(60), minutes(24 * 60), Duration::ZERO];
    let all = [Severity::Sev0, Severity::Sev1, Severity::Sev2, Severity::Sev3, Severity::Sev4];
    assert_eq!(all.map(at), expected);
    check(
        "0 connect web-1
         0 open web-1 spl a sqlite_corrupt
         2000 end",
        "0 opened sev1 sqlite_corrupt host/web-1/sqlite/spl/a#1
         0 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/a
         1800 escalated host/web-1/sqlite/spl/a 1
         1800 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/a",
    );
}

/// The scripts begin on a Saturday, 21 November 2026, at 00:13 UTC.
#[test]
fn what_can_wait_for_a_working_day_is_not_told_again_on_a_sunday() {
    let script = "0 connect web-1\n0 open web-1 spl a disk_space_low\n400000 end";
    let opened = "0 opened sev3 disk_space_low host/web-1/disk_space_low/spl/a#1
                  60 page trigger sev3 disk_space_low host/web-1/disk_space_low/spl/a\n";
    let told = |seconds: &[u64]| {
        let again = |(count, second): (usize, &u64)| {
            let cause = "host/web-1/disk_space_low/spl/a";
            format!("{second} escalated {cause} {}\n{second} page trigger sev3 disk_space_low {cause}\n", count + 1)
        };
        opened.to_owned() + &seconds.iter().enumerate().map(again).collect::<String>()
    };
    // The whole of Monday, then the same time of each day; 00:13:20 is 800 s after midnight.
    let fleet = check(script, &told(&[259_200 - 800, 345_600 - 800]));
    let page = triggers(&fleet, "ops").next().unwrap();
    let asks = &page.next_steps[0];
    assert!(asks.contains("acknowledge within 4 h, by 2026-11-21 04:14 UTC"), "hours run through: {asks}");
    assert!(asks.ends_with("; otherwise it is told again at 2026-11-24 00:00 UTC"), "{asks}");
    let mut every_day = policy();
    every_day.working_days = muster_coordinator_core::working_days::every_day();
    check_under(every_day, script, &told(&[86_460, 172_860, 259_260, 345_660]));
    // A day to answer in is a working day as well, and the page says so.
    let mut slow = policy();
    (slow.response.sev3, slow.escalation.sev3) = (Duration::from_secs(86_400), Duration::from_secs(2 * 86_400));
    let mut fleet = Fleet::new(slow);
    fleet.run("0 connect web-1\n0 open web-1 spl a disk_space_low\n100 end");
    let asks = triggers(&fleet, "ops").next().unwrap().next_steps[0].clone();
    assert!(asks.contains("within 24 h of working days, by 2026-11-24 00:00 UTC"), "{asks}");
}

#[test]
fn receivers_that_escalate_by_themselves_are_not_told_again() {
    let mut policy = policy();
    policy.self_escalating.insert("chat".to_owned());
    let mut fleet = Fleet::new(policy.clone());
    fleet.run(
        "0 connect web-1
         0 open web-1 spl a port_closed
         4000 end",
    );
    assert_eq!((triggers(&fleet, "ops").count(), triggers(&fleet, "chat").count()), (2, 1));
    let asks = &triggers(&fleet, "chat").next().unwrap().next_steps[0];
    assert!(asks.ends_with("; whoever calls you escalates by their own rules"), "{asks}");
    fleet.check_journal();
    // Where all of them do, there is nothing to escalate.
    policy.self_escalating.insert("ops".to_owned());
    check_under(
        policy,
        "0 connect web-1
         0 open web-1 spl a port_closed
         9000 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl",
    );
}

#[test]
fn escalation_ends_after_a_bounded_number_of_times() {
    let mut policy = policy();
    policy.escalation.sev2 = Duration::from_secs(60);
    let mut fleet = Fleet::new(policy);
    fleet.run(
        "0 connect web-1
         0 open web-1 spl a port_closed
         5000 end",
    );
    let told = u64::try_from(triggers(&fleet, "ops").count()).unwrap();
    assert_eq!(told, 1 + ESCALATIONS_MAX);
    let incident = fleet.machine.state().newest_incident("host/web-1/service/spl").unwrap();
    assert_eq!((incident.response.escalations, incident.response.escalate_at), (ESCALATIONS_MAX, None));
}

#[test]
fn nobody_is_called_again_about_what_recovers_and_again_when_it_relapses() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         3000 clear web-1 spl a port_closed
         3700 open web-1 spl a port_closed
         3800 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         3000 recovering host/web-1/service/spl
         3700 relapsed host/web-1/service/spl
         3700 escalated host/web-1/service/spl 1
         3700 page trigger sev2 port_closed host/web-1/service/spl",
    );
}

#[test]
fn an_acknowledgement_survives_a_takeover_and_stops_the_clock() {
    let fleet = check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         100 ack host/web-1/service/spl
         200 takeover
         201 connect web-1
         9000 clear web-1 spl a port_closed
         9100 open web-1 spl a port_closed
         9200 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         100 page acknowledge sev2 port_closed host/web-1/service/spl
         9000 recovering host/web-1/service/spl
         9100 relapsed host/web-1/service/spl",
    );
    let incident = fleet.machine.state().newest_incident("host/web-1/service/spl").unwrap();
    assert_eq!(incident.owner.as_deref(), Some("ann"));
}

#[test]
fn escalation_waits_for_a_silence() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         3000 silence 3000 agent=web-1
         6100 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         3610 silenced host/web-1/service/spl
         6000 escalated host/web-1/service/spl 1
         6000 page trigger sev2 port_closed host/web-1/service/spl",
    );
}

#[test]
fn a_severity_raised_by_hand_pages_again_and_is_not_lowered_by_rules() {
    check(
        "0 connect web-1
         0 open web-1 spl a disk_space_low
         70 ack host/web-1/disk_space_low/spl/a
         80 severity host/web-1/disk_space_low/spl/a sev1
         90 open web-1 spl a disk_space_low sev2
         2000 end",
        "0 opened sev3 disk_space_low host/web-1/disk_space_low/spl/a#1
         60 page trigger sev3 disk_space_low host/web-1/disk_space_low/spl/a
         70 page acknowledge sev3 disk_space_low host/web-1/disk_space_low/spl/a
         80 by hand sev1, by the rules sev3 host/web-1/disk_space_low/spl/a
         80 page trigger sev1 disk_space_low host/web-1/disk_space_low/spl/a
         80 page resolve sev1 disk_space_low host/web-1/disk_space_low/spl/a
         1880 escalated host/web-1/disk_space_low/spl/a 1
         1880 page trigger sev1 disk_space_low host/web-1/disk_space_low/spl/a",
    );
}

#[test]
fn a_severity_lowered_by_hand_holds_until_it_is_worse_than_then() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         5 severity host/web-1/service/spl sev4
         20 open web-1 spl b port_closed
         30 open web-1 spl c port_conflict sev1
         40 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         5 by hand sev4, by the rules sev2 host/web-1/service/spl
         30 changed sev1 port_conflict host/web-1/service/spl
         30 page trigger sev1 port_conflict host/web-1/service/spl",
    );
}

/// Milder news call nobody: what comes next anyway carries them.
#[test]
fn a_severity_lowered_after_the_page_is_told_with_what_comes_next() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         20 severity host/web-1/service/spl sev3
         300 ack host/web-1/service/spl
         400 clear web-1 spl a port_closed
         1400 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         20 by hand sev3, by the rules sev2 host/web-1/service/spl
         300 page acknowledge sev3 port_closed host/web-1/service/spl
         400 recovering host/web-1/service/spl
         1300 resolved host/web-1/service/spl
         1300 page resolve sev3 port_closed host/web-1/service/spl",
    );
}

#[test]
fn a_commander_is_named_and_takes_the_command_back() {
    let mut fleet = Fleet::new(policy());
    let cause = "host/web-1/service/spl";
    fleet.run(
        "0 connect web-1
         0 open web-1 spl a port_closed
         5 commander host/web-1/service/spl eve",
    );
    let commander = |fleet: &Fleet| fleet.machine.state().newest_incident(cause).unwrap().response.commander.clone();
    assert_eq!(commander(&fleet).as_deref(), Some("eve"));
    fleet.run_line("6 ack host/web-1/service/spl");
    assert_eq!(commander(&fleet).as_deref(), Some("eve"), "the owner may be another one");
    fleet.check_journal();
}

/// The page of the oldest goes on as that of the storm; the others end.
#[test]
fn the_oldest_page_goes_on_when_its_host_is_one_of_many() {
    let fleet = check(
        "0 connect a b c
         0 open a spl x process_down
         1 occur a spl process_restarted 0
         15 ack host/a/service/spl
         20 open b spl x process_down
         21 occur b spl process_restarted 0
         40 open c spl x process_down
         41 occur c spl process_restarted 0
         60 end",
        "0 opened sev2 process_down host/a/service/spl#1
         10 page trigger sev2 process_down host/a/service/spl
         15 page acknowledge sev2 process_down host/a/service/spl
         20 opened sev2 process_down host/b/service/spl#1
         30 page trigger sev2 process_down host/b/service/spl
         40 opened sev2 process_down host/c/service/spl#1
         41 opened sev2 restart_storm fleet/restart_storm/spl#1
         41 merged host/a/service/spl into fleet/restart_storm/spl
         41 merged host/b/service/spl into fleet/restart_storm/spl
         41 page resolve sev2 process_down host/b/service/spl
         41 folded host/c/service/spl into fleet/restart_storm/spl
         51 page trigger sev2 restart_storm fleet/restart_storm/spl",
    );
    let incident = fleet.machine.state().newest_incident("fleet/restart_storm/spl").unwrap();
    assert_eq!(incident.owner.as_deref(), Some("ann"), "the owner comes with the page");
    let dedup = |cause: &str| {
        let pages = triggers(&fleet, "ops").filter(|page| page.cause_key == cause);
        pages.map(|page| page.dedup_key.clone()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(dedup("fleet/restart_storm/spl"), dedup("host/a/service/spl"));
    let ended = fleet.pages().find(|(_, page)| page.action == PageAction::Resolve);
    let why = &ended.unwrap().1.why;
    assert!(why.contains(&format!("merged into {}: ", incident.number)), "{why}");
}

/// An older one that joins after the fleet's was paged: its page goes on nevertheless.
#[test]
fn an_older_page_goes_on_although_the_fleets_was_told_first() {
    for ack in [None, Some("host/a/service/spl"), Some("fleet/restart_storm/spl")] {
        let mut fleet = Fleet::new(policy());
        let script = "0 connect a b c d
             0 open a spl x process_down
             100 occur b spl process_restarted 0
             101 occur c spl process_restarted 0
             102 occur d spl process_restarted 0";
        script.lines().for_each(|line| fleet.run_line(line));
        if let Some(cause) = ack {
            fleet.run_line(&format!("115 ack {cause}"));
        }
        fleet.run_line("120 occur a spl process_restarted 0");
        fleet.run_line("130 end");
        let mut expected = vec![
            "0 opened sev2 process_down host/a/service/spl#1",
            "10 page trigger sev2 process_down host/a/service/spl",
            "102 opened sev2 restart_storm fleet/restart_storm/spl#1",
            "112 page trigger sev2 restart_storm fleet/restart_storm/spl",
        ];
        let acked = match ack {
            Some("host/a/service/spl") => Some("115 page acknowledge sev2 process_down host/a/service/spl"),
            Some(_) => Some("115 page acknowledge sev2 restart_storm fleet/restart_storm/spl"),
            None => None,
        };
        expected.extend(acked);
        expected.push("120 merged host/a/service/spl into fleet/restart_storm/spl");
        expected.push("120 page trigger sev2 restart_storm fleet/restart_storm/spl");
        if ack == Some("fleet/restart_storm/spl") {
            expected.push("120 page acknowledge sev2 restart_storm fleet/restart_storm/spl");
        }
        expected.push("120 page resolve sev2 restart_storm fleet/restart_storm/spl");
        assert_eq!(fleet.log(), expected.join("\n"), "{ack:?}");
        let incident = fleet.machine.state().newest_incident("fleet/restart_storm/spl").unwrap();
        assert_eq!(incident.owner.as_deref(), ack.map(|_| "ann"), "{ack:?}");
        assert_eq!(incident.acknowledged.is_some(), ack.is_some());
        fleet.check_journal();
    }
}

/// A page that had been acknowledged as something milder does not keep quiet about an outage.
#[test]
fn a_merge_that_makes_it_sev1_pages_under_a_new_key() {
    let mut policy = policy();
    policy.hold.sev3 = Duration::from_secs(5);
    let fleet = check_under(
        policy,
        "0 connect a b c d
         100 silent a nothing
         110 ack host/a/agent
         120 silent b nothing
         121 silent c nothing
         200 end",
        "100 opened sev3 agent_stale host/a/agent#1
         105 page trigger sev3 agent_stale host/a/agent
         110 page acknowledge sev3 agent_stale host/a/agent
         120 opened sev3 agent_stale host/b/agent#1
         121 opened sev1 mass_stale fleet/mass_stale#1
         121 merged host/a/agent into fleet/mass_stale
         121 folded host/b/agent into fleet/mass_stale
         126 page trigger sev1 mass_stale fleet/mass_stale
         126 page resolve sev1 mass_stale fleet/mass_stale",
    );
    let incident = fleet.machine.state().newest_incident("fleet/mass_stale").unwrap();
    assert_eq!(incident.acknowledged, None);
}

/// Who answered the outage is not called again because an older, milder page merges into it.
#[test]
fn an_answer_to_the_worse_one_holds_when_a_milder_older_page_merges_in() {
    let mut fleet = Fleet::new(policy());
    let mut script: Vec<String> = vec!["0 connect a b c d".to_owned(), "0 open a spl x process_down".to_owned()];
    script.extend((0..7).map(|n| format!("{} occur b spl process_restarted 0", 100 + n * 110)));
    script.push("765 occur c spl process_restarted 0".to_owned());
    script.push("766 occur d spl process_restarted 0".to_owned());
    script.push("780 ack fleet/restart_storm/spl".to_owned());
    script.push("790 occur a spl process_restarted 0".to_owned());
    script.push("4000 end".to_owned());
    script.iter().for_each(|line| fleet.run_line(line));
    let log = fleet.log();
    assert!(log.contains("opened sev1 restart_storm fleet/restart_storm/spl#1"), "{log}");
    assert!(log.contains("790 merged host/a/service/spl into fleet/restart_storm/spl"), "{log}");
    let incident = fleet.machine.state().newest_incident("fleet/restart_storm/spl").unwrap();
    assert!(incident.acknowledged.is_some() && incident.owner.as_deref() == Some("ann"), "{log}");
    assert!(!log.contains("escalated fleet"), "{log}");
    assert!(log.contains("790 page acknowledge sev1 restart_storm fleet/restart_storm/spl"), "{log}");
    fleet.check_journal();
}

/// An outage that somebody answered becomes a complete one.
#[test]
fn a_rise_from_sev1_to_sev0_ends_the_acknowledgement_too() {
    check(
        "0 connect web-1
         0 open web-1 spl a sqlite_corrupt
         10 ack host/web-1/sqlite/spl/a
         20 severity host/web-1/sqlite/spl/a sev0
         30 end",
        "0 opened sev1 sqlite_corrupt host/web-1/sqlite/spl/a#1
         0 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/a
         10 page acknowledge sev1 sqlite_corrupt host/web-1/sqlite/spl/a
         20 by hand sev0, by the rules sev1 host/web-1/sqlite/spl/a
         20 page trigger sev0 sqlite_corrupt host/web-1/sqlite/spl/a
         20 page resolve sev0 sqlite_corrupt host/web-1/sqlite/spl/a",
    );
}

/// Receivers keep quiet about a key that was acknowledged: when that does not hold any more there is another key.
#[test]
fn an_acknowledgement_that_ends_always_brings_a_new_key() {
    check(
        "0 connect web-1
         0 open web-1 spl a sqlite_corrupt
         10 severity host/web-1/sqlite/spl/a sev3
         20 ack host/web-1/sqlite/spl/a
         30 severity host/web-1/sqlite/spl/a sev1
         40 end",
        "0 opened sev1 sqlite_corrupt host/web-1/sqlite/spl/a#1
         0 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/a
         10 by hand sev3, by the rules sev1 host/web-1/sqlite/spl/a
         20 page acknowledge sev3 sqlite_corrupt host/web-1/sqlite/spl/a
         30 by hand sev1, by the rules sev1 host/web-1/sqlite/spl/a
         30 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/a
         30 page resolve sev1 sqlite_corrupt host/web-1/sqlite/spl/a",
    );
}

/// A phone must not say "resolved" about what got worse before it says how much worse.
#[test]
fn a_resolve_waits_for_the_page_that_takes_its_place() {
    let mut fleet = Fleet::new(policy());
    fleet.run(
        "0 connect web-1
         0 open web-1 spl a sqlite_corrupt
         10 severity host/web-1/sqlite/spl/a sev3
         20 ack host/web-1/sqlite/spl/a
         25 pager down
         30 severity host/web-1/sqlite/spl/a sev1",
    );
    let sendable = |fleet: &Fleet| -> Vec<String> {
        let pages = fleet.machine.state().sendable_pages();
        let words = pages.iter().map(|record| format!("{} {}", record.page.receiver, record.page.action.as_str()));
        let mut words: Vec<String> = words.collect();
        words.sort();
        words
    };
    assert_eq!(fleet.machine.state().pending_pages().count(), 4, "a trigger and a resolve to each of two");
    assert_eq!(sendable(&fleet), ["chat trigger", "ops trigger"]);
    let trigger = |fleet: &Fleet, receiver: &str| {
        let mut pages = fleet.machine.state().pending_pages();
        let found = pages.find(|record| record.page.receiver == receiver && record.page.action == PageAction::Trigger);
        found.map(|record| record.id).unwrap()
    };
    let (ops, chat) = (trigger(&fleet, "ops"), trigger(&fleet, "chat"));
    fleet.feed(Fact::PageAttempted { page: ops });
    fleet.feed(Fact::PageAttempted { page: chat });
    assert_eq!(sendable(&fleet), ["chat trigger", "ops trigger"], "tried is not taken");
    fleet.feed(Fact::PageDelivered { page: ops });
    assert_eq!(sendable(&fleet), ["chat trigger", "ops resolve"], "each receiver by itself");
    fleet.feed(Fact::PageFailed { page: chat, error: "answered 400".to_owned() });
    assert!(sendable(&fleet).contains(&"chat resolve".to_owned()), "{:?}", sendable(&fleet));
    fleet.run_line("60 pager up");
    fleet.run_line("61 end");
    assert_eq!(fleet.machine.state().pending_pages().count(), 0);
    fleet.check_journal();
}

/// What lists show is what was told: the steps are those of the cause, and not of what was seen first.
#[test]
fn an_incident_shows_the_title_and_the_steps_of_its_page() {
    let mut fleet = Fleet::new(policy());
    let mut script: Vec<String> = (0..12).map(|n| format!("0 connect h{n}")).collect();
    script.extend((0..12).map(|n| format!("{} silent h{n} nothing", 100 + n / 4)));
    script.push("200 end".to_owned());
    script.iter().for_each(|line| fleet.run_line(line));
    let page = triggers(&fleet, "ops").last().unwrap().clone();
    let incident = fleet.machine.state().unresolved("fleet/mass_stale").unwrap();
    assert!(page.title.starts_with("12 of 12 agents") || page.title.starts_with("all 12 agents"), "{}", page.title);
    assert_eq!(incident.title, page.title);
    assert!(!incident.next_steps.is_empty(), "{incident:?}");
    assert_eq!(incident.next_steps, page.next_steps[1..], "without what the page asks for");
}

/// The number of a page that merged leads to where it goes on: the phone knows no other.
#[test]
fn the_number_of_a_symptom_leads_to_its_cause() {
    let mut fleet = Fleet::new(policy());
    for line in ["0 connect a b c", "0 open a spl x process_down", "20 occur a spl process_restarted 0"] {
        fleet.run_line(line);
    }
    let number = fleet.machine.state().newest_incident("host/a/service/spl").unwrap().number.clone();
    let goes_on = |fleet: &Fleet| {
        let state = fleet.machine.state();
        let known = state.incident_by_number(&number).unwrap();
        state.goes_on_in(known).map(|cause| cause.key.cause.clone())
    };
    assert_eq!(goes_on(&fleet), None);
    fleet.run_line("21 occur b spl process_restarted 0");
    fleet.run_line("22 occur c spl process_restarted 0");
    assert_eq!(goes_on(&fleet).as_deref(), Some("fleet/restart_storm/spl"));
    // The storm is a symptom as well.
    for (n, host) in ["a", "b", "c"].iter().enumerate() {
        fleet.run_line(&format!("{} occur {host} spl oom_kill 0", 30 + n));
    }
    assert_eq!(goes_on(&fleet).as_deref(), Some("fleet/oom_storm/spl"));
    fleet.run_line("3000 end");
    assert_eq!(goes_on(&fleet).as_deref(), Some("fleet/oom_storm/spl"), "what fell in it is down");
    fleet.run_line("3000 clear a spl x process_down");
    fleet.run_line("4000 end");
    assert_eq!(goes_on(&fleet), None, "it is over");
    fleet.check_journal();
}
