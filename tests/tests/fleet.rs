//! What many hosts mean together: silences, storms, locks; starts and takeovers.

use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_coordinator_core::State;
use muster_coordinator_core::entry::{EntryBody, Fact, TimerKey};
use muster_coordinator_core::liveness::{Heard, Liveness, Swept};
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::replay::{self, WhatIfError};
use muster_tests::scenario::{Fleet, START_UNIX_MS, agent, check, key, policy};
use std::time::Duration;

#[test]
fn staggered_silences_page_once() {
    check(
        "0 connect a b c d e
         100 silent a nothing
         103 silent b nothing
         107 silent c reset
         108 silent d reset
         200 end",
        "100 opened sev3 agent_stale host/a/agent#1
         103 opened sev3 agent_stale host/b/agent#1
         107 opened sev1 mass_stale fleet/mass_stale#1
         107 folded host/a/agent into fleet/mass_stale
         107 folded host/b/agent into fleet/mass_stale
         112 page trigger sev1 mass_stale fleet/mass_stale",
    );
}

#[test]
fn a_mass_silence_ends_with_a_summary_and_names_who_is_left() {
    let fleet = check(
        "0 connect a b c d e f g h i j k l
         100 silent a b c d e f g h i j k nothing
         200 heard a b c d e f g h i j
         2000 end",
        "100 opened sev3 agent_stale host/a/agent#1
         100 opened sev3 agent_stale host/b/agent#1
         100 opened sev3 agent_stale host/c/agent#1
         100 opened sev1 mass_stale fleet/mass_stale#1
         100 folded host/a/agent into fleet/mass_stale
         100 folded host/b/agent into fleet/mass_stale
         100 folded host/c/agent into fleet/mass_stale
         105 page trigger sev1 mass_stale fleet/mass_stale
         200 recovering fleet/mass_stale
         200 opened sev3 agent_stale host/k/agent#1
         260 page trigger sev3 agent_stale host/k/agent
         1100 resolved fleet/mass_stale
         1100 page resolve sev1 mass_stale fleet/mass_stale",
    );
    let incident = fleet.machine.state().newest_incident("fleet/mass_stale").unwrap();
    let last = &incident.timeline.iter().rev().find(|line| line.text.starts_with("resolved")).unwrap().text;
    assert!(last.contains("10 of 11 agents are back; still silent: k"), "{last}");
}

#[test]
fn one_silence_after_a_mass_silence_is_an_incident_of_its_own() {
    check(
        "0 connect a b c d
         100 silent a b c nothing
         200 heard a b c
         300 silent a nothing
         400 end",
        "100 opened sev3 agent_stale host/a/agent#1
         100 opened sev3 agent_stale host/b/agent#1
         100 opened sev1 mass_stale fleet/mass_stale#1
         100 folded host/a/agent into fleet/mass_stale
         100 folded host/b/agent into fleet/mass_stale
         105 page trigger sev1 mass_stale fleet/mass_stale
         200 recovering fleet/mass_stale
         300 opened sev3 agent_stale host/a/agent#2
         360 page trigger sev3 agent_stale host/a/agent",
    );
}

#[test]
fn a_mass_silence_relapses_with_a_new_mass() {
    check(
        "0 connect a b c d
         100 silent a b c nothing
         102 heard a b c
         300 silent a nothing
         301 silent b nothing
         302 silent d nothing
         400 end",
        "100 opened sev3 agent_stale host/a/agent#1
         100 opened sev3 agent_stale host/b/agent#1
         100 opened sev1 mass_stale fleet/mass_stale#1
         100 folded host/a/agent into fleet/mass_stale
         100 folded host/b/agent into fleet/mass_stale
         102 recovering fleet/mass_stale
         105 quiet fleet/mass_stale: it cleared within the hold of 5 s
         300 opened sev3 agent_stale host/a/agent#2
         301 opened sev3 agent_stale host/b/agent#2
         302 changed sev1 mass_stale fleet/mass_stale
         302 relapsed fleet/mass_stale
         302 folded host/a/agent into fleet/mass_stale
         302 folded host/b/agent into fleet/mass_stale
         307 page trigger sev1 mass_stale fleet/mass_stale",
    );
}

/// Whoever reads it after a relapse reads who is silent now, and not who was at first.
#[test]
fn a_mass_silence_that_comes_back_is_told_by_its_new_extent() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b c d e f g h\n100 silent a b c nothing\n200 heard a b c\n300 silent c d e f g h nothing");
    fleet.run("301 end");
    let incident = fleet.machine.state().unresolved("fleet/mass_stale").unwrap();
    assert_eq!((incident.relapses, incident.has_paged()), (1, true), "{}", fleet.log());
    assert!(!incident.title.contains("a, b, c") && incident.title.contains("c, d, e"), "{}", incident.title);
    let now = muster_coordinator_core::explain::title(fleet.machine.state(), incident, fleet.now);
    assert!(now.starts_with("6 of 8 agents fell silent together"), "those who fell silent after it too: {now}");
    let old = |text: &str| text.starts_with("opened: 3 of 8 agents fell silent together");
    assert!(incident.timeline.iter().any(|line| old(&line.text)), "{:#?}", incident.timeline);
    fleet.check_journal();
}

#[test]
fn closing_a_mass_silence_by_hand_does_not_page_each_host() {
    check(
        "0 connect a b c
         100 silent a b c nothing
         110 resolve fleet/mass_stale
         2000 end",
        "100 opened sev3 agent_stale host/a/agent#1
         100 opened sev3 agent_stale host/b/agent#1
         100 opened sev1 mass_stale fleet/mass_stale#1
         100 folded host/a/agent into fleet/mass_stale
         100 folded host/b/agent into fleet/mass_stale
         105 page trigger sev1 mass_stale fleet/mass_stale
         110 resolved fleet/mass_stale by ann
         110 page resolve sev1 mass_stale fleet/mass_stale",
    );
}

#[test]
fn silence_while_agents_are_reheard_pages_nobody() {
    check(
        "0 connect a b c d e f g h
         100 silent a nothing
         110 restart
         112 connect b c d e f g h
         115 heard a
         300 end",
        "100 opened sev3 agent_stale host/a/agent#1
         115 recovering host/a/agent
         160 quiet host/a/agent: it cleared within the hold of 60 s",
    );
}

#[test]
fn who_died_during_the_gap_still_gets_an_incident() {
    check(
        "0 connect a b c d e f g h
         110 takeover
         112 connect b c d e f g h
         161 silent a not_reheard
         300 end",
        "161 opened sev3 agent_stale host/a/agent#1
         221 page trigger sev3 agent_stale host/a/agent",
    );
}

/// Heartbeats are not journaled: who stays away after a restart was heard until shortly before the journal's last entry,
/// and not when it connected; and its silence counts from when somebody listened again.
#[test]
fn who_stays_away_after_a_restart_is_told_by_what_the_journal_knows() {
    let at = |second| Timestamp::from_unix_ms(START_UNIX_MS) + Duration::from_secs(second);
    let mut fleet = Fleet::new(policy());
    fleet.run(
        "0 connect a b
         3600 open b spl x port_closed sev4
         3605 restart",
    );
    let table = Liveness::from_state(fleet.machine.state(), fleet.now);
    assert_eq!(table.last_heard(&agent("a")), Some(at(3600 - 15)));
    // Another restart within the window proves nothing more of who was not heard in between.
    fleet.run("3610 connect b\n3620 restart\n3625 connect b");
    let mut table = Liveness::from_state(fleet.machine.state(), fleet.now);
    assert_eq!(table.last_heard(&agent("a")), Some(at(3600 - 15)));
    assert_eq!(table.connected(&agent("b"), fleet.now), Heard::Back);
    fleet.run("3670 end");
    let swept = table.sweep(fleet.now, &policy().liveness, |_| false);
    let silent = swept.into_iter().find_map(|swept| match swept {
        Swept::Silent { agent, last_heard, silence } => Some(Fact::AgentSilent { agent, last_heard, silence }),
        _ => None,
    });
    fleet.feed(silent.unwrap_or_else(|| panic!("nobody is silent")));
    let incident = fleet.machine.state().newest_incident("host/a/agent").unwrap_or_else(|| panic!("{}", fleet.log()));
    assert_eq!(incident.began, at(3605), "when this coordinator began to listen");
    let expected = format!("; heard until {} at least", at(3600 - 15));
    assert!(incident.title.ends_with(&expected), "{}", incident.title);
    let why = &incident.timeline.first().unwrap_or_else(|| panic!("no line")).text;
    assert!(why.contains("not back within 50 s after this coordinator began to listen"), "{why}");
    fleet.check_journal();
}

#[test]
fn a_takeover_keeps_owner_and_keys_and_skips_numbers() {
    let fleet = check(
        "0 connect a
         0 open a spl x port_closed
         20 ack host/a/service/spl
         110 takeover
         112 connect a
         120 open a dba x port_closed
         200 clear a spl x port_closed
         1200 end",
        "0 opened sev2 port_closed host/a/service/spl#1
         10 page trigger sev2 port_closed host/a/service/spl
         20 page acknowledge sev2 port_closed host/a/service/spl
         120 opened sev2 port_closed host/a/service/dba#1
         130 page trigger sev2 port_closed host/a/service/dba
         200 recovering host/a/service/spl
         1100 resolved host/a/service/spl
         1100 page resolve sev2 port_closed host/a/service/spl",
    );
    let state = fleet.machine.state();
    let (first, second) =
        (state.newest_incident("host/a/service/spl").unwrap(), state.newest_incident("host/a/service/dba").unwrap());
    assert!(first.number.ends_with("-0001"), "{}", first.number);
    assert!(second.number.ends_with("-1000"), "{}", second.number);
    assert_eq!(first.owner.as_deref(), Some("ann"));
    let mut keys: Vec<_> = state.past_pages().map(|record| record.page.dedup_key.as_str()).collect();
    assert!(keys.iter().all(|key| key.len() == 40));
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 2);
}

#[test]
fn restarts_on_one_host_become_a_storm_of_the_same_incident() {
    check(
        "0 connect a
         0 occur a spl process_restarted 0
         30 occur a spl process_restarted 0
         60 occur a spl process_restarted 0
         70 open a spl x process_down
         90 occur a spl process_restarted 0
         120 occur a spl process_restarted 0
         130 clear a spl x process_down
         2000 end",
        "70 opened sev2 process_down host/a/service/spl#1
         80 page trigger sev2 process_down host/a/service/spl
         120 changed sev2 restart_storm host/a/service/spl
         120 page trigger sev2 restart_storm host/a/service/spl
         720 recovering host/a/service/spl
         1620 resolved host/a/service/spl
         1620 page resolve sev2 restart_storm host/a/service/spl",
    );
}

#[test]
fn a_crash_loop_without_recovery_is_worse() {
    check(
        "0 connect a
         0 occur a spl process_restarted 0
         140 occur a spl process_restarted 0
         280 occur a spl process_restarted 0
         420 occur a spl process_restarted 0
         560 occur a spl process_restarted 0
         700 occur a spl process_restarted 0
         1400 end",
        "560 opened sev2 restart_storm host/a/service/spl#1
         570 page trigger sev2 restart_storm host/a/service/spl
         700 changed sev1 restart_storm host/a/service/spl
         700 page trigger sev1 restart_storm host/a/service/spl
         700 page resolve sev1 restart_storm host/a/service/spl
         1300 recovering host/a/service/spl",
    );
}

#[test]
fn a_contended_lock_is_worse_while_its_service_restarts_again_and_again() {
    check(
        "0 connect a b c
         0 open a spl /a.db sqlite_lock_held
         0 open b spl /a.db sqlite_lock_held
         0 open c spl /a.db sqlite_lock_held
         5 occur b spl process_restarted 0
         6 occur b spl process_restarted 0
         7 occur b spl process_restarted 0
         8 occur b spl process_restarted 0
         9 occur b spl process_restarted 0
         30 end",
        "0 opened sev3 sqlite_lock_held host/a/lock/spl//a.db#1
         0 opened sev3 sqlite_lock_held host/b/lock/spl//a.db#1
         0 opened sev3 lock_contention_fleet fleet/lock/spl/a.db#1
         0 folded host/a/lock/spl//a.db into fleet/lock/spl/a.db
         0 folded host/b/lock/spl//a.db into fleet/lock/spl/a.db
         9 changed sev2 lock_contention_fleet fleet/lock/spl/a.db
         9 opened sev2 restart_storm host/b/service/spl#1
         10 page trigger sev2 lock_contention_fleet fleet/lock/spl/a.db
         19 page trigger sev2 restart_storm host/b/service/spl",
    );
}

#[test]
fn an_old_backlog_is_no_storm() {
    check(
        "0 connect a b c
         10 occur a spl process_restarted 36000
         10 occur a spl process_restarted 28000
         10 occur a spl process_restarted 20000
         10 occur a spl process_restarted 12000
         10 occur a spl process_restarted 4000
         10 occur b spl process_restarted 34000
         10 occur c spl process_restarted 26000
         2000 end",
        "",
    );
}

#[test]
fn guessed_times_make_no_storm() {
    check(
        "0 connect a b c
         10 occur a spl process_restarted 2592000 estimated
         10 occur a spl process_restarted 2592000 estimated
         10 occur a spl process_restarted 2592000 estimated
         10 occur a spl process_restarted 60 estimated
         10 occur a spl process_restarted 60 estimated
         10 occur a spl process_restarted 60 estimated
         10 occur b spl process_restarted 60 estimated
         10 occur c spl process_restarted 60 estimated
         2000 end",
        "",
    );
}

#[test]
fn a_storm_of_hours_ago_is_dated_when_it_was() {
    let fleet = check(
        "0 connect a
         10 occur a spl process_restarted 7200
         10 occur a spl process_restarted 7170
         10 occur a spl process_restarted 7140
         10 occur a spl process_restarted 7110
         10 occur a spl process_restarted 7080
         10 occur a spl process_restarted 7050
         2000 end",
        "10 opened sev2 restart_storm host/a/service/spl#1
         10 recovering host/a/service/spl
         20 page trigger sev2 restart_storm host/a/service/spl late 7050
         910 resolved host/a/service/spl
         910 page resolve sev2 restart_storm host/a/service/spl",
    );
    let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
    assert_eq!(incident.began.unix_ms(), START_UNIX_MS + 10_000 - 7_200_000);
}

#[test]
fn an_old_oom_kill_pages_once_and_says_so() {
    check(
        "0 connect a
         10 occur a spl oom_kill 7200
         10 occur a spl oom_kill 7100
         10 occur a spl oom_kill 4000
         30 end",
        "10 opened sev2 oom_kill host/a/service/spl#1
         10 recovering host/a/service/spl
         20 page trigger sev2 oom_kill host/a/service/spl late 4000",
    );
}

#[test]
fn the_same_service_restarting_on_many_hosts_is_one_storm() {
    check(
        "0 connect a b c d
         0 open a spl x process_down
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 open c spl x process_down
         23 occur c spl process_restarted 0
         24 open d spl x process_down
         25 occur d spl process_restarted 0
         40 clear a spl x process_down
         50 clear c spl x process_down
         60 clear d spl x process_down
         2000 end",
        "0 opened sev2 process_down host/a/service/spl#1
         10 page trigger sev2 process_down host/a/service/spl
         22 opened sev2 process_down host/c/service/spl#1
         23 opened sev2 restart_storm fleet/restart_storm/spl#1
         23 merged host/a/service/spl into fleet/restart_storm/spl
         23 folded host/c/service/spl into fleet/restart_storm/spl
         24 opened sev2 process_down host/d/service/spl#1
         25 folded host/d/service/spl into fleet/restart_storm/spl
         33 page trigger sev2 restart_storm fleet/restart_storm/spl
         625 recovering fleet/restart_storm/spl
         1525 resolved fleet/restart_storm/spl
         1525 page resolve sev2 restart_storm fleet/restart_storm/spl",
    );
}

/// What fell in a storm and never came back is still that storm: whoever took it keeps it until the last host is well.
#[test]
fn a_storm_whose_member_is_dead_for_good_stays_open_with_its_owner() {
    let fleet = check(
        "0 connect a b c
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 open c spl it process_down
         24 occur c spl process_restarted 0
         30 clear c spl it process_down
         40 ack fleet/restart_storm/spl
         50 open b spl it process_down
         60 open c spl it process_down
         3000 clear c spl it process_down
         4000 clear b spl it process_down
         9000 end",
        "22 opened sev2 process_down host/c/service/spl#1
         24 opened sev2 restart_storm fleet/restart_storm/spl#1
         24 folded host/c/service/spl into fleet/restart_storm/spl
         34 page trigger sev2 restart_storm fleet/restart_storm/spl
         40 page acknowledge sev2 restart_storm fleet/restart_storm/spl
         4000 recovering fleet/restart_storm/spl
         4900 resolved fleet/restart_storm/spl
         4900 page resolve sev2 restart_storm fleet/restart_storm/spl",
    );
    let incident = fleet.machine.state().newest_incident("fleet/restart_storm/spl").unwrap();
    assert_eq!(incident.owner.as_deref(), Some("ann"));
    let why = incident.timeline.iter().find(|line| line.text.starts_with("recovering: "));
    assert_eq!(
        why.map(|line| line.text.as_str()),
        Some("recovering: no restart for a whole window, and where spl fell it is up again")
    );
}

/// A death long after the storm is news, although the storm is open for another host.
#[test]
fn a_death_long_after_the_storm_pages_although_another_host_keeps_it_open() {
    check(
        "0 connect a b c
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         50 open b spl it process_down
         60 ack fleet/restart_storm/spl
         5000 open a spl it process_down
         5100 clear a spl it process_down
         7000 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         60 page acknowledge sev2 restart_storm fleet/restart_storm/spl
         5000 opened sev2 process_down host/a/service/spl#1
         5010 page trigger sev2 process_down host/a/service/spl
         5100 recovering host/a/service/spl
         6000 resolved host/a/service/spl
         6000 page resolve sev2 process_down host/a/service/spl",
    );
}

/// Closed by hand, the dead of a storm stay closed: also when the service restarts elsewhere.
#[test]
fn what_fell_in_a_storm_that_was_closed_by_hand_does_not_hold_the_next_one() {
    check(
        "0 connect a b c d e
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         50 open b spl it process_down
         60 resolve fleet/restart_storm/spl
         100 occur c spl process_restarted 0
         101 occur d spl process_restarted 0
         102 occur e spl process_restarted 0
         2000 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         60 resolved fleet/restart_storm/spl by ann
         60 page resolve sev2 restart_storm fleet/restart_storm/spl
         100 opened sev2 restart_storm fleet/restart_storm/spl#2
         110 page trigger sev2 restart_storm fleet/restart_storm/spl
         702 recovering fleet/restart_storm/spl
         1602 resolved fleet/restart_storm/spl
         1602 page resolve sev2 restart_storm fleet/restart_storm/spl",
    );
}

/// The same of a storm of OOM kills: what the kernel killed and nobody started again is not well because no more are killed.
#[test]
fn a_storm_of_kills_whose_victim_stays_down_stays_open() {
    check(
        "0 connect a b c
         20 occur a spl oom_kill 0
         21 occur b spl oom_kill 0
         22 occur c spl oom_kill 0
         25 open b spl it process_down
         40 ack fleet/oom_storm/spl
         3000 clear b spl it process_down
         4000 end",
        "20 opened sev2 oom_kill host/a/service/spl#1
         20 recovering host/a/service/spl
         21 opened sev2 oom_kill host/b/service/spl#1
         21 recovering host/b/service/spl
         22 opened sev2 oom_storm fleet/oom_storm/spl#1
         22 folded host/a/service/spl into fleet/oom_storm/spl
         22 folded host/b/service/spl into fleet/oom_storm/spl
         32 page trigger sev2 oom_storm fleet/oom_storm/spl
         40 page acknowledge sev2 oom_storm fleet/oom_storm/spl
         3000 recovering fleet/oom_storm/spl
         3900 resolved fleet/oom_storm/spl
         3900 page resolve sev2 oom_storm fleet/oom_storm/spl",
    );
}

/// What was none of the dead has an incident of its own until the storm goes on, and is a symptom again then.
#[test]
fn a_storm_that_goes_on_takes_back_what_stood_by_itself_meanwhile() {
    check(
        "0 connect a b c d
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         30 open a spl x port_closed
         50 open b spl it unit_failed
         640 occur d spl process_restarted 30
         700 clear a spl x port_closed
         710 clear b spl it unit_failed
         3000 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         622 opened sev2 port_closed host/a/service/spl#1
         632 page trigger sev2 port_closed host/a/service/spl
         640 merged host/a/service/spl into fleet/restart_storm/spl
         640 page resolve sev2 port_closed host/a/service/spl
         1210 recovering fleet/restart_storm/spl
         2110 resolved fleet/restart_storm/spl
         2110 page resolve sev2 restart_storm fleet/restart_storm/spl",
    );
}

/// A second wave under an incident that is open for the first one's dead: none of them is forgotten.
#[test]
fn a_storm_that_comes_again_keeps_the_dead_of_the_first() {
    let fleet = check(
        "0 connect a b c d e
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         50 open b spl it unit_failed
         5000 occur c spl process_restarted 0
         5001 occur d spl process_restarted 0
         5002 occur e spl process_restarted 0
         7000 clear b spl it unit_failed
         9000 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         3632 escalated fleet/restart_storm/spl 1
         3632 page trigger sev2 restart_storm fleet/restart_storm/spl
         7000 recovering fleet/restart_storm/spl
         7900 resolved fleet/restart_storm/spl
         7900 page resolve sev2 restart_storm fleet/restart_storm/spl",
    );
    // Minutes after the last restart a page says what it is still about.
    let escalated = fleet.pages().map(|(_, page)| page).find(|page| page.why.starts_with("escalation 1")).unwrap();
    assert!(escalated.title.ends_with("; since then still down: b"), "{}", escalated.title);
}

/// A host that fell when the storm was over is part of it after all when the storm goes on.
#[test]
fn a_storm_that_resumes_takes_what_fell_meanwhile() {
    let fleet = check(
        "0 connect a b c d
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         640 open b spl it process_down
         650 occur d spl process_restarted 60
         2000 clear b spl it process_down
         2001 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         622 recovering fleet/restart_storm/spl
         640 opened sev2 process_down host/b/service/spl#1
         650 page trigger sev2 process_down host/b/service/spl
         650 changed sev2 restart_storm fleet/restart_storm/spl
         650 relapsed fleet/restart_storm/spl
         650 merged host/b/service/spl into fleet/restart_storm/spl
         650 page resolve sev2 process_down host/b/service/spl
         2000 recovering fleet/restart_storm/spl",
    );
    // It is named by what rages now, and the timeline tells what came.
    let storm = fleet.machine.state().newest_incident("fleet/restart_storm/spl").unwrap();
    assert!(storm.title.contains("on 4 hosts") && storm.title.contains("a, b, c, d"), "{}", storm.title);
    let told =
        storm.timeline.iter().any(|line| line.text.contains("restart_storm again") && line.text.contains("a, b, c, d"));
    assert!(told, "{:#?}", storm.timeline);
}

/// What is told late of a death in the storm takes the recovery back, instead of paging anew.
#[test]
fn a_death_in_the_storm_that_is_told_late_relapses_it() {
    let mut fleet = check(
        "0 connect a b c
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         700 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         622 recovering fleet/restart_storm/spl",
    );
    let down = Finding::new(key("spl", "it", Reason::ProcessDown), "spl is down");
    fleet.event(&agent("b"), FindingEvent::Opened(down), Duration::from_secs(500));
    fleet.run(
        "1000 clear b spl it process_down
         2000 end",
    );
    let log = fleet.log();
    let tail: Vec<&str> = log.lines().skip(3).collect();
    assert_eq!(
        tail,
        [
            "700 changed sev2 restart_storm fleet/restart_storm/spl",
            "700 relapsed fleet/restart_storm/spl",
            "1000 recovering fleet/restart_storm/spl",
            "1900 resolved fleet/restart_storm/spl",
            "1900 page resolve sev2 restart_storm fleet/restart_storm/spl",
        ],
        "{log}"
    );
    fleet.check_journal();
}

/// One host restarted often enough for a storm of its own, and was the last: both windows end at the same moment.
#[test]
fn a_storm_ends_without_an_incident_for_the_host_that_restarted_most() {
    check(
        "0 connect a b c
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         23 occur c spl process_restarted 0
         24 occur c spl process_restarted 0
         25 occur c spl process_restarted 0
         26 occur c spl process_restarted 0
         2000 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         626 recovering fleet/restart_storm/spl
         1526 resolved fleet/restart_storm/spl
         1526 page resolve sev2 restart_storm fleet/restart_storm/spl",
    );
}

/// Mending an outage on three hosts is no storm: each had run for hours, was down for minutes, and somebody started it.
#[test]
fn repairs_of_an_outage_are_no_storm() {
    check(
        "0 connect a b c
         0 open a spl it process_down
         10 open b spl it process_down
         95 occur a spl process_restarted 0 gap=95 lived=86400
         100 clear a spl it process_down
         140 occur c spl process_restarted 0 gap=1 lived=86400
         150 occur b spl process_restarted 0 gap=390 lived=86400
         160 clear b spl it process_down
         2000 end",
        "0 opened sev2 process_down host/a/service/spl#1
         10 page trigger sev2 process_down host/a/service/spl
         10 opened sev2 process_down host/b/service/spl#1
         20 page trigger sev2 process_down host/b/service/spl
         100 recovering host/a/service/spl
         160 recovering host/b/service/spl
         1000 resolved host/a/service/spl
         1000 page resolve sev2 process_down host/a/service/spl
         1060 resolved host/b/service/spl
         1060 page resolve sev2 process_down host/b/service/spl",
    );
}

/// What tells a repair from a loop that backs off: how long it was down, how long it had run, and who started it.
#[test]
fn loops_that_back_off_are_storms_all_the_same() {
    let storms = |how: &str| {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect a b c");
        for (second, host) in [(20, "a"), (21, "b"), (22, "c")] {
            fleet.run_line(&format!("{second} occur {host} spl process_restarted 0 {how}"));
        }
        fleet.run_line("60 end");
        fleet.check_journal();
        fleet.machine.state().unresolved("fleet/restart_storm/spl").is_some()
    };
    // A supervisor that waits for a minute, with what a start takes.
    assert!(storms("gap=65 lived=86400"));
    assert!(!storms("gap=90 lived=86400"));
    // It died again before a window was over: what started it has repaired nothing.
    assert!(storms("gap=300 lived=599"));
    assert!(!storms("gap=300 lived=600"));
    // systemd itself started it, however long it waited.
    assert!(storms("gap=300 lived=86400 automatic"));
    // How long it was down, or had run, is not known: no proof of a repair.
    assert!(storms("lived=86400"));
    assert!(storms("gap=300"));
}

/// Somebody restarts a fleet host by host. What tells it from crashes: how they ended, how long they had run, and who
/// started them again.
#[test]
fn an_orderly_restart_of_a_fleet_is_no_storm() {
    let storms = |how: &str| {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect a b c d");
        for (second, host) in [(20, "a"), (80, "b"), (140, "c"), (200, "d")] {
            fleet.run_line(&format!("{second} occur {host} spl process_restarted 0 gap=2 {how}"));
        }
        fleet.run_line("260 end");
        fleet.check_journal();
        fleet.machine.state().unresolved("fleet/restart_storm/spl").is_some()
    };
    for ended in ["SIGTERM", "SIGINT", "SIGHUP", "exit_code_0", "exit_code_143"] {
        assert!(!storms(&format!("lived=86400 ended={ended}")), "{ended}");
        // systemd did it by itself: nobody asked.
        assert!(storms(&format!("lived=86400 ended={ended} automatic")), "{ended}");
        // Again within a window: who does that has trouble.
        assert!(storms(&format!("lived=599 ended={ended}")), "{ended}");
    }
    assert!(storms("lived=86400"), "how it ended is not known");
    for ended in ["SIGKILL", "SIGSEGV", "SIGABRT", "exit_code_1", "exit_code_137", "unknown"] {
        assert!(storms(&format!("lived=86400 ended={ended}")), "{ended}");
    }
}

/// A repair does not keep a storm alive that rages: mending it is how it ends.
#[test]
fn mending_a_storm_does_not_prolong_it() {
    check(
        "0 connect a b c d
         20 occur a spl process_restarted 0
         21 occur b spl process_restarted 0
         22 occur c spl process_restarted 0
         40 open c spl it process_down
         400 occur c spl process_restarted 0 gap=360 lived=86400
         410 clear c spl it process_down
         700 end",
        "22 opened sev2 restart_storm fleet/restart_storm/spl#1
         32 page trigger sev2 restart_storm fleet/restart_storm/spl
         622 recovering fleet/restart_storm/spl",
    );
}

#[test]
fn a_lock_contended_on_many_hosts_is_one_incident() {
    check(
        "0 connect a b c d
         0 open a spl /v1/a.db sqlite_lock_held
         10 open b spl /v2/a.db sqlite_lock_held
         20 open d spl /v2/other.db sqlite_lock_held
         30 open c spl /v3/a.db lock_contention
         100 clear b spl /v2/a.db sqlite_lock_held
         200 clear a spl /v1/a.db sqlite_lock_held
         200 clear c spl /v3/a.db lock_contention
         210 clear d spl /v2/other.db sqlite_lock_held
         3000 end",
        "0 opened sev3 sqlite_lock_held host/a/lock/spl//v1/a.db#1
         10 opened sev3 sqlite_lock_held host/b/lock/spl//v2/a.db#1
         20 opened sev3 sqlite_lock_held host/d/lock/spl//v2/other.db#1
         30 opened sev3 lock_contention_fleet fleet/lock/spl/a.db#1
         30 folded host/a/lock/spl//v1/a.db into fleet/lock/spl/a.db
         30 folded host/b/lock/spl//v2/a.db into fleet/lock/spl/a.db
         80 page trigger sev3 sqlite_lock_held host/d/lock/spl//v2/other.db
         90 page trigger sev3 lock_contention_fleet fleet/lock/spl/a.db
         100 recovering fleet/lock/spl/a.db
         210 recovering host/d/lock/spl//v2/other.db
         1000 resolved fleet/lock/spl/a.db
         1000 page resolve sev3 lock_contention_fleet fleet/lock/spl/a.db
         1110 resolved host/d/lock/spl//v2/other.db
         1110 page resolve sev3 sqlite_lock_held host/d/lock/spl//v2/other.db",
    );
}

#[test]
fn no_timer_is_left_behind() {
    let fleet = check(
        "0 connect a
         0 open a spl x port_closed
         20 clear a spl x port_closed
         2000 end",
        "0 opened sev2 port_closed host/a/service/spl#1
         10 page trigger sev2 port_closed host/a/service/spl
         20 recovering host/a/service/spl
         920 resolved host/a/service/spl
         920 page resolve sev2 port_closed host/a/service/spl",
    );
    assert_eq!(fleet.machine.state().timers().count(), 0);
    let rehear = |body: &EntryBody| matches!(body, EntryBody::Deadline(TimerKey::RehearOver));
    assert_eq!(fleet.journal.iter().filter(|entry| rehear(&entry.body)).count(), 1);
}

#[test]
fn a_caught_panic_is_an_incident() {
    check(
        "0 panicked
         20 end",
        "0 opened sev2 coordinator_fault coordinator/fault#1
         0 recovering coordinator/fault
         10 page trigger sev2 coordinator_fault coordinator/fault",
    );
}

#[test]
fn what_if_compares_pages_and_does_not_claim_more_than_it_can() {
    let fleet = check(
        "0 connect a
         0 open a spl x port_closed
         12 ack host/a/service/spl
         30 clear a spl x port_closed",
        "0 opened sev2 port_closed host/a/service/spl#1
         10 page trigger sev2 port_closed host/a/service/spl
         12 page acknowledge sev2 port_closed host/a/service/spl
         30 recovering host/a/service/spl",
    );
    let what_if = |change: &dyn Fn(&mut Policy)| {
        let mut other = policy();
        change(&mut other);
        replay::what_if(&State::genesis(), &fleet.journal, &other)
    };
    assert!(what_if(&|_| {}).unwrap().is_same());
    let slower = what_if(&|policy| policy.hold.sev2 = Duration::from_secs(11)).unwrap();
    assert_eq!((slower.added.len(), slower.removed.len(), slower.moved.len()), (0, 0, 2));
    let patient = what_if(&|policy| policy.hold.sev2 = Duration::from_secs(60)).unwrap();
    // Whoever acknowledged it may have come because of the page: that hold is not over at the end, and nobody knows.
    assert_eq!((patient.added.len(), patient.removed.len(), patient.undecided.len()), (0, 0, 2));
    let quiet = what_if(&|policy| {
        policy.severities.insert(Reason::PortClosed, Severity::Sev4);
    })
    .unwrap();
    assert_eq!((quiet.removed.len(), quiet.unmatched.len()), (2, 1));
    let tighter = what_if(&|policy| policy.liveness.stale_after = 1).unwrap_err();
    assert!(matches!(tighter, WhatIfError::TighterLiveness(_)) && tighter.to_string().contains("stale_after"));
}

#[test]
fn three_hundred_silent_hosts_are_one_page() {
    let mut script = String::new();
    for index in 0..400 {
        script.push_str(&format!("0 connect h{index}\n"));
    }
    for index in 0..300 {
        script.push_str(&format!("{} silent h{index} nothing\n", 100 + index / 60));
    }
    script.push_str("200 end");
    let mut fleet = Fleet::new(policy());
    script.lines().for_each(|line| fleet.run_line(line));
    let log = fleet.log();
    let pages: Vec<&str> = log.lines().filter(|line| line.contains(" page ")).collect();
    assert_eq!(pages, ["105 page trigger sev1 mass_stale fleet/mass_stale"]);
    let page = &fleet.machine.state().past_pages().next_back().unwrap().page;
    assert_eq!(page.n_agents, 300);
    assert!(page.title.starts_with("300 of 400 agents fell silent together"), "{}", page.title);
    fleet.check_journal();
}

/// Some of a mass never came back. Who falls silent days later is no part of it, and is told.
#[test]
fn an_old_mass_silence_does_not_swallow_later_ones() {
    let mut fleet = Fleet::new(policy());
    for n in 0..40 {
        fleet.run_line(&format!("0 label h{n} zone=z{}", n % 4));
        fleet.run_line(&format!("0 connect h{n}"));
    }
    for n in 0..20 {
        fleet.run_line(&format!("{} silent h{n} nothing", 100 + n / 4));
    }
    fleet.run_line("200 ack fleet/mass_stale");
    for n in 0..15 {
        fleet.run_line(&format!("{} connect h{n}", 300 + n));
    }
    // One that blips belongs to it; one that was never of it, or has been back for long, does not.
    fleet.run_line("500 silent h3 nothing");
    fleet.run_line("600 connect h3");
    fleet.run_line("90000 silent h30 nothing");
    fleet.run_line("91000 silent h4 nothing");
    fleet.run_line("91100 end");
    let log = fleet.log();
    let pages: Vec<&str> = log.lines().filter(|line| line.contains(" page trigger ")).collect();
    assert_eq!(
        pages,
        [
            "107 page trigger sev1 mass_stale fleet/mass_stale",
            "90060 page trigger sev3 agent_stale host/h30/agent",
            "91060 page trigger sev3 agent_stale host/h4/agent"
        ],
        "{log}"
    );
    // A zone that falls silent beside it is its own page.
    for n in [21, 25, 29, 33, 37] {
        fleet.run_line(&format!("100000 silent h{n} nothing"));
    }
    fleet.run_line("100010 end");
    assert!(fleet.log().contains("100005 page trigger sev1 mass_stale fleet/mass_stale/zone=z1"), "{}", fleet.log());
    fleet.check_journal();
}

/// How long agents may take to come back is what the config says that this reign began with, not that of the last.
#[test]
fn a_rehear_window_is_that_of_the_policy_of_its_reign() {
    let patient = |seconds: u64| {
        let mut patient = policy();
        patient.liveness.reconnect_max = Duration::from_secs(seconds);
        patient
    };
    let mut fleet = Fleet::new(patient(4));
    fleet.run(
        "0 connect a
         100 restart",
    );
    let left = |fleet: &Fleet| fleet.machine.state().rehear_until().map(|until| until.since(fleet.now).as_secs());
    assert_eq!(left(&fleet), Some(14));
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(patient(20)) });
    assert_eq!(left(&fleet), Some(30));
    // Nobody is paged about a silence before it is over, also one that was held until the shorter one was.
    fleet.run_line("101 silent a not_reheard");
    fleet.run_line("129 end");
    assert_eq!(left(&fleet), Some(1));
    fleet.run_line("131 end");
    assert_eq!(left(&fleet), None);
    fleet.run_line("200 restart");
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(patient(4)) });
    assert_eq!(left(&fleet), Some(14));
    // At any other time it changes nothing.
    fleet.run_line("300 end");
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(patient(40)) });
    assert_eq!(left(&fleet), None);
    fleet.check_journal();
}
