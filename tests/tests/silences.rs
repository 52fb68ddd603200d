//! What silences hold back, and what they do not: one `check` per situation.

use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{EntryBody, Fact, TimerKey};
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::silence::{self, Matchers, PAST_SILENCES_MAX, SILENCES_MAX, SilenceKind};
use muster_tests::scenario::{Fleet, agent, check, policy};
use std::time::Duration;

#[test]
fn an_incident_that_outlives_its_silence_pages_then_and_says_so() {
    let fleet = check(
        "0 connect web-1
         0 silence 600 agent=web-1
         5 open web-1 spl a port_closed
         700 end",
        "5 opened sev2 port_closed host/web-1/service/spl#1
         15 silenced host/web-1/service/spl
         600 page trigger sev2 port_closed host/web-1/service/spl",
    );
    assert_eq!(fleet.pages().count(), 2);
    for (_, page) in fleet.pages() {
        let why = &page.why;
        assert!(why.starts_with("SIL-5 of bob (work) ended after 10 min, and it is still open: "), "{why}");
    }
    let incident = fleet.machine.state().newest_incident("host/web-1/service/spl").unwrap();
    let told = |part: &str| incident.timeline.iter().any(|line| line.text.contains(part));
    assert!(told("pages held back: silence SIL-5 of bob until ") && told("SIL-5 of bob (work) ended after 10 min"));
}

#[test]
fn what_is_over_when_the_silence_ends_pages_nobody() {
    check(
        "0 connect web-1
         0 silence 600 service=spl
         5 open web-1 spl a port_closed
         6 occur web-1 dba oom_kill 0
         7 silence 600 service=dba
         100 clear web-1 spl a port_closed
         2000 end",
        "5 opened sev2 port_closed host/web-1/service/spl#1
         6 opened sev2 oom_kill host/web-1/service/dba#1
         6 recovering host/web-1/service/dba
         15 silenced host/web-1/service/spl
         16 silenced host/web-1/service/dba
         100 recovering host/web-1/service/spl
         600 quiet host/web-1/service/spl: it was over when SIL-5 of bob (work) ended after 10 min
         607 quiet host/web-1/service/dba: it was over when SIL-11 of bob (work) ended after 10 min
         906 resolved host/web-1/service/dba
         1000 resolved host/web-1/service/spl",
    );
}

#[test]
fn a_silence_of_one_host_does_not_hide_the_fleets_incident() {
    check(
        "0 connect a b c
         0 silence 6000 agent=a
         0 open a spl /a.db sqlite_lock_held
         0 open b spl /a.db sqlite_lock_held
         0 open c spl /a.db sqlite_lock_held
         100 end",
        "0 opened sev3 sqlite_lock_held host/a/lock/spl//a.db#1
         0 opened sev3 sqlite_lock_held host/b/lock/spl//a.db#1
         0 opened sev3 lock_contention_fleet fleet/lock/spl/a.db#1
         0 folded host/a/lock/spl//a.db into fleet/lock/spl/a.db
         0 folded host/b/lock/spl//a.db into fleet/lock/spl/a.db
         60 page trigger sev3 lock_contention_fleet fleet/lock/spl/a.db",
    );
}

#[test]
fn a_silence_of_a_label_holds_for_what_concerns_only_hosts_that_carry_it() {
    check(
        "0 label a zone=north-1
         0 label b zone=north-2
         0 connect a b c
         0 silence 6000 label.zone=north-*
         0 open a spl /a.db sqlite_lock_held
         0 open b spl /a.db sqlite_lock_held
         10 open c x /c.db sqlite_lock_held
         100 open c spl /a.db sqlite_lock_held
         200 end",
        "0 opened sev3 sqlite_lock_held host/a/lock/spl//a.db#1
         0 opened sev3 sqlite_lock_held host/b/lock/spl//a.db#1
         10 opened sev3 sqlite_lock_held host/c/lock/x//c.db#1
         60 silenced host/a/lock/spl//a.db
         60 silenced host/b/lock/spl//a.db
         70 page trigger sev3 sqlite_lock_held host/c/lock/x//c.db
         100 opened sev3 lock_contention_fleet fleet/lock/spl/a.db#1
         100 folded host/a/lock/spl//a.db into fleet/lock/spl/a.db
         100 folded host/b/lock/spl//a.db into fleet/lock/spl/a.db
         160 page trigger sev3 lock_contention_fleet fleet/lock/spl/a.db",
    );
}

#[test]
fn each_kind_of_matcher_must_fit() {
    check(
        "0 connect web-1 db-1
         0 silence 6000 agent=web-* service=spl reason=port_closed
         0 open web-1 spl a port_closed
         1 open web-1 dba a port_closed
         2 open db-1 spl a port_closed
         3 silence 6000 cause=host/db-1/sqlite/*
         4 open db-1 spl /a.db sqlite_missing
         20 open web-1 spl b port_conflict
         50 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         1 opened sev2 port_closed host/web-1/service/dba#1
         2 opened sev2 port_closed host/db-1/service/spl#1
         4 opened sev2 sqlite_missing host/db-1/sqlite/spl//a.db#1
         10 silenced host/web-1/service/spl
         11 page trigger sev2 port_closed host/web-1/service/dba
         12 page trigger sev2 port_closed host/db-1/service/spl
         14 silenced host/db-1/sqlite/spl//a.db
         20 changed sev2 port_conflict host/web-1/service/spl
         20 page trigger sev2 port_conflict host/web-1/service/spl",
    );
}

#[test]
fn what_was_told_before_is_acknowledged_and_resolved_in_silence() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         20 silence 3000 agent=web-1
         30 ack host/web-1/service/spl
         40 open web-1 spl b port_conflict sev1
         60 clear web-1 spl a port_closed
         60 clear web-1 spl b port_conflict
         1500 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         30 silenced host/web-1/service/spl
         30 page acknowledge sev2 port_closed host/web-1/service/spl
         40 changed sev1 port_conflict host/web-1/service/spl
         60 recovering host/web-1/service/spl
         960 resolved host/web-1/service/spl
         960 page resolve sev1 port_conflict host/web-1/service/spl",
    );
}

#[test]
fn what_got_worse_in_silence_is_told_when_it_ends() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         20 silence 600 agent=web-1
         40 open web-1 spl b port_conflict sev1
         700 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         40 changed sev1 port_conflict host/web-1/service/spl
         40 silenced host/web-1/service/spl
         620 page trigger sev1 port_conflict host/web-1/service/spl
         620 page resolve sev1 port_conflict host/web-1/service/spl",
    );
}

#[test]
fn of_two_silences_the_longer_holds() {
    check(
        "0 connect web-1
         0 silence 100 agent=web-1
         0 silence 200 service=spl
         5 open web-1 spl a port_closed
         300 end",
        "5 opened sev2 port_closed host/web-1/service/spl#1
         15 silenced host/web-1/service/spl
         200 page trigger sev2 port_closed host/web-1/service/spl",
    );
    check(
        "0 connect web-1
         0 silence 100 agent=web-1
         5 open web-1 spl a port_closed
         50 silence 150 service=spl
         300 end",
        "5 opened sev2 port_closed host/web-1/service/spl#1
         15 silenced host/web-1/service/spl
         100 silenced host/web-1/service/spl
         200 page trigger sev2 port_closed host/web-1/service/spl",
    );
}

#[test]
fn a_silence_is_ended_by_hand() {
    let fleet = check(
        "0 connect web-1
         0 silence 6000 agent=web-1
         5 open web-1 spl a port_closed
         100 expire 1
         200 expire 1
         300 end",
        "5 opened sev2 port_closed host/web-1/service/spl#1
         15 silenced host/web-1/service/spl
         100 page trigger sev2 port_closed host/web-1/service/spl",
    );
    let past: Vec<_> = fleet.machine.state().past_silences().collect();
    assert_eq!(past.len(), 1);
    assert_eq!(past[0].ended_by.as_deref(), Some("bob"));
}

#[test]
fn a_maintenance_begins_at_its_time() {
    check(
        "0 connect web-1
         0 maintenance 100 200 agent=web-1
         50 open web-1 dba a port_closed
         150 open web-1 spl a port_closed
         400 end",
        "50 opened sev2 port_closed host/web-1/service/dba#1
         60 page trigger sev2 port_closed host/web-1/service/dba
         150 opened sev2 port_closed host/web-1/service/spl#1
         160 silenced host/web-1/service/spl
         300 page trigger sev2 port_closed host/web-1/service/spl",
    );
}

#[test]
fn a_silence_survives_a_restart_and_a_takeover() {
    check(
        "0 connect web-1
         0 silence 600 agent=web-1
         5 open web-1 spl a port_closed
         100 restart
         101 connect web-1
         200 takeover
         201 connect web-1
         700 end",
        "5 opened sev2 port_closed host/web-1/service/spl#1
         15 silenced host/web-1/service/spl
         600 page trigger sev2 port_closed host/web-1/service/spl",
    );
}

#[test]
fn an_agent_that_is_silent_in_its_maintenance_pages_when_that_is_over() {
    check(
        "0 connect web-1
         0 maintenance 0 600 agent=web-1
         100 silent web-1 nothing
         700 end",
        "100 opened sev3 agent_stale host/web-1/agent#1
         160 silenced host/web-1/agent
         600 page trigger sev3 agent_stale host/web-1/agent",
    );
}

#[test]
fn only_a_maintenance_that_names_hosts_excuses_a_goodbye() {
    let mut fleet = Fleet::new(policy());
    fleet.run(
        "0 label web-1 rack=7
         0 connect web-1 web-2
         0 silence 100 agent=web-1",
    );
    let excused = |fleet: &Fleet, name: &str| fleet.machine.state().maintenance_of(&agent(name)).is_some();
    assert!(!excused(&fleet, "web-1"), "a silence plans nothing");
    fleet.run_line("1 maintenance 0 100 service=spl");
    assert!(!excused(&fleet, "web-1"), "a service is not a host");
    fleet.run_line("2 maintenance 10 100 label.rack=7");
    assert!(!excused(&fleet, "web-1"), "it is still to come");
    fleet.run_line("20 end");
    assert!(excused(&fleet, "web-1") && !excused(&fleet, "web-2"));
    fleet.run_line("112 end");
    assert!(!excused(&fleet, "web-1"), "it is over");
}

#[test]
fn silences_are_bounded_and_empty_ones_hold_nothing() {
    let mut fleet = Fleet::new(policy());
    let now = fleet.now;
    let set = |now: Timestamp, reason: &str, agents: &[&str], seconds: u64| Fact::SilenceSet {
        by: "bob".to_owned(),
        kind: SilenceKind::Silence,
        matchers: Matchers { agents: agents.iter().map(ToString::to_string).collect(), ..Matchers::default() },
        reason: reason.to_owned(),
        starts: now,
        ends: now + Duration::from_secs(seconds),
    };
    fleet.feed(set(now, "matches everything", &[], 60));
    fleet.feed(set(now, "over before it began", &["a"], 0));
    assert_eq!(fleet.machine.state().silences().count(), 0);
    for n in 0..SILENCES_MAX + 5 {
        fleet.feed(set(now, &n.to_string(), &["a"], 60));
    }
    assert_eq!(fleet.machine.state().silences().count(), SILENCES_MAX);
    fleet.advance(now + Duration::from_secs(60));
    assert_eq!(fleet.machine.state().silences().count(), 0);
    for n in 0..5 {
        let now = fleet.now;
        fleet.feed(set(now, &n.to_string(), &["a"], 1));
    }
    fleet.advance(now + Duration::from_secs(100));
    assert_eq!(fleet.machine.state().past_silences().count(), PAST_SILENCES_MAX);
    fleet.check_journal();
}

/// What the timelines of an incident say of an end that comes, by second.
fn announced(fleet: &Fleet, cause: &str) -> Vec<(u64, String)> {
    let start = Timestamp::from_unix_ms(muster_tests::scenario::START_UNIX_MS);
    let incident = fleet.machine.state().newest_incident(cause).unwrap_or_else(|| panic!("no incident of {cause}"));
    let lines = incident.timeline.iter().filter(|line| line.text.contains(" ends soon"));
    lines.map(|line| (line.at.since(start).as_secs(), line.text.clone())).collect()
}

/// What the journal, and with it the coordinator's log, says at the notice.
fn notices(fleet: &Fleet) -> usize {
    let is_notice = |body: &EntryBody| matches!(body, EntryBody::Deadline(TimerKey::SilenceEnds { .. }));
    fleet.journal.iter().filter(|entry| is_notice(&entry.body)).count()
}

#[test]
fn that_a_silence_ends_soon_is_told_once_and_pages_nobody() {
    let mut fleet = Fleet::new(policy());
    fleet.run(
        "0 connect web-1
         0 silence 3600 agent=web-1
         5 open web-1 spl a port_closed
         6 open web-1 dba a port_closed
         100 clear web-1 dba a port_closed
         2999 end",
    );
    let service = "host/web-1/service/spl";
    assert_eq!((announced(&fleet, service), notices(&fleet)), (vec![], 0));
    assert_eq!(fleet.machine.state().silences_ending(fleet.now).count(), 0);
    fleet.run_line("3000 end");
    let told = announced(&fleet, service);
    let [(3000, words)] = told.as_slice() else { panic!("{told:?}") };
    assert!(words.starts_with("SIL-5 of bob until ") && words.ends_with(": it pages then, unless it is over"));
    assert_eq!(announced(&fleet, "host/web-1/service/dba"), [], "what is over pages nobody");
    assert_eq!((notices(&fleet), fleet.pages().count()), (1, 0));
    let (state, now) = (fleet.machine.state(), fleet.now);
    let ending: Vec<u64> = state.silences_ending(now).map(|(index, _)| index).collect();
    let [index] = ending.as_slice() else { panic!("{ending:?}") };
    let number = state.newest_incident(service).unwrap().number.clone();
    let words = silence::ended_soon(state, *index, now);
    assert_eq!(words, silence::ends_soon(state, *index, now));
    let expected = format!("within 10 min: {number} pages then, unless it is over or somebody makes another silence");
    assert!(words.starts_with("silence SIL-5 of bob (work) ends at ") && words.ends_with(&expected), "{words}");
    fleet.run_line("3599 clear web-1 spl a port_closed");
    assert_eq!(fleet.machine.state().silences_ending(fleet.now).count(), 0, "nothing pages then");
    let asked = fleet.now;
    fleet.run_line("5000 end");
    assert_eq!((notices(&fleet), fleet.pages().count()), (1, 0));
    // Whoever reads the journal later reads what was so then.
    assert_eq!(silence::ended_soon(fleet.machine.state(), 5, now), words);
    assert_ne!(silence::ends_soon(fleet.machine.state(), 5, asked), words, "nothing is open");
    fleet.check_journal();
}

#[test]
fn an_end_that_is_no_news_or_that_somebody_made_is_not_announced() {
    for (policy, script, expected) in [
        (policy(), "0 silence 600 agent=a\n1 open a spl x port_closed", 0),
        (policy(), "0 silence 700 agent=a\n1 open a spl x port_closed", 1),
        (policy(), "0 silence 3600 agent=a\n1 open a spl x port_closed\n2000 expire 1", 0),
        (policy(), "0 maintenance 100 3600 agent=a\n200 open a spl x port_closed", 1),
        (
            Policy { silence_notice: Duration::ZERO, ..policy() },
            "0 silence 3600 agent=a\n1 open a spl x port_closed",
            0,
        ),
        (
            Policy { silence_notice: Duration::from_secs(60), ..policy() },
            "0 silence 600 agent=a\n1 open a spl x port_closed",
            1,
        ),
    ] {
        let mut fleet = Fleet::new(policy);
        fleet.run(&format!("0 connect a\n{script}\n5000 end"));
        assert_eq!((notices(&fleet), announced(&fleet, "host/a/service/spl").len()), (expected, expected), "{script}");
        fleet.check_journal();
    }
}

/// A journal from before there were notices has none, and still replays to what it says.
#[test]
fn a_policy_that_does_not_name_the_notice_has_none() {
    let mut old = serde_json::to_value(policy()).unwrap();
    assert!(old.as_object_mut().unwrap().remove("silence_notice").is_some());
    let old: Policy = serde_json::from_value(old).unwrap();
    assert_eq!(old.silence_notice, Duration::ZERO);
}

/// That a silence is over is said so, and not only that its time came: also by what is asked later.
#[test]
fn a_silence_that_begins_or_ends_is_told_as_what_it_is() {
    let fleet = check(
        "0 connect a
         0 maintenance 100 600 agent=a
         1000 end",
        "",
    );
    let told: Vec<String> = fleet
        .journal
        .iter()
        .filter_map(|entry| match &entry.body {
            EntryBody::Deadline(TimerKey::SilenceTurn { index }) => {
                Some(silence::turned(fleet.machine.state(), *index, entry.at))
            }
            _ => None,
        })
        .collect();
    let [begins, over] = told.as_slice() else { panic!("{told:?}") };
    assert!(begins.contains(" begins (") && begins.contains("wait until"), "{begins}");
    assert!(over.contains("is over after 10 min") && over.contains("pages now"), "{over}");
}
