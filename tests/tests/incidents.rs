//! Findings become incidents, incidents become pages: one `check` per situation.

use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_coordinator_core::entry::Fact;
use muster_tests::scenario::{Fleet, check, policy};
use std::time::Duration;

#[test]
fn a_service_goes_down_and_comes_back() {
    check(
        "0 connect web-1
         0 open web-1 spl /run/spl.pid process_down
         2 open web-1 spl 127.0.0.1:1 port_closed
         60 clear web-1 spl /run/spl.pid process_down
         70 clear web-1 spl 127.0.0.1:1 port_closed
         2000 end",
        "0 opened sev2 process_down host/web-1/service/spl#1
         10 page trigger sev2 process_down host/web-1/service/spl
         70 recovering host/web-1/service/spl
         970 resolved host/web-1/service/spl
         970 page resolve sev2 process_down host/web-1/service/spl",
    );
}

#[test]
fn cleared_within_the_hold_pages_nobody() {
    check(
        "0 connect web-1
         0 open web-1 spl /run/spl.pid process_down
         5 clear web-1 spl /run/spl.pid process_down
         2000 end",
        "0 opened sev2 process_down host/web-1/service/spl#1
         5 recovering host/web-1/service/spl
         10 quiet host/web-1/service/spl: it cleared within the hold of 10 s
         905 resolved host/web-1/service/spl",
    );
}

#[test]
fn flapping_pages_once_although_each_time_is_short() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         1 clear web-1 spl a port_closed
         20 open web-1 spl a port_closed
         21 clear web-1 spl a port_closed
         40 open web-1 spl a port_closed
         41 clear web-1 spl a port_closed
         60 open web-1 spl a port_closed
         61 clear web-1 spl a port_closed
         62 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         1 recovering host/web-1/service/spl
         10 quiet host/web-1/service/spl: it cleared within the hold of 10 s
         20 relapsed host/web-1/service/spl
         21 recovering host/web-1/service/spl
         30 quiet host/web-1/service/spl: it cleared within the hold of 10 s
         40 relapsed host/web-1/service/spl
         41 recovering host/web-1/service/spl
         50 page trigger sev2 port_closed host/web-1/service/spl
         60 relapsed host/web-1/service/spl
         61 recovering host/web-1/service/spl",
    );
}

/// The first page is about what is open, not about what was over before anybody was told.
#[test]
fn what_cleared_untold_gives_no_name_to_what_comes_after() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         2 clear web-1 spl a port_closed
         300 open web-1 spl h health_check_failed
         320 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         2 recovering host/web-1/service/spl
         10 quiet host/web-1/service/spl: it cleared within the hold of 10 s
         300 changed sev2 health_check_failed host/web-1/service/spl
         300 relapsed host/web-1/service/spl
         310 page trigger sev2 health_check_failed host/web-1/service/spl",
    );
}

#[test]
fn damage_pages_at_once_and_comes_back_as_another_generation() {
    check(
        "0 connect web-1
         0 open web-1 spl /a.db sqlite_corrupt
         10 clear web-1 spl /a.db sqlite_corrupt
         100 open web-1 spl /a.db sqlite_corrupt
         110 clear web-1 spl /a.db sqlite_corrupt
         1500 open web-1 spl /a.db sqlite_corrupt",
        "0 opened sev1 sqlite_corrupt host/web-1/sqlite/spl//a.db#1
         0 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl//a.db
         10 recovering host/web-1/sqlite/spl//a.db
         100 relapsed host/web-1/sqlite/spl//a.db
         110 recovering host/web-1/sqlite/spl//a.db
         1010 resolved host/web-1/sqlite/spl//a.db
         1010 page resolve sev1 sqlite_corrupt host/web-1/sqlite/spl//a.db
         1500 opened sev1 sqlite_corrupt host/web-1/sqlite/spl//a.db#2
         1500 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl//a.db",
    );
}

#[test]
fn a_worse_severity_shortens_the_hold_and_updates_the_page() {
    check(
        "0 connect web-1
         0 open web-1 spl /a.pid pid_file_stale
         5 open web-1 spl /a.pid process_down
         30 open web-1 spl x port_conflict sev1",
        "0 opened sev3 pid_file_stale host/web-1/service/spl#1
         5 changed sev2 process_down host/web-1/service/spl
         10 page trigger sev2 process_down host/web-1/service/spl
         30 changed sev1 port_conflict host/web-1/service/spl
         30 page trigger sev1 port_conflict host/web-1/service/spl
         30 page resolve sev1 port_conflict host/web-1/service/spl",
    );
}

#[test]
fn an_oom_kill_names_the_outage_it_caused() {
    check(
        "0 connect web-1
         0 open web-1 host memory memory_critical
         1 open web-1 spl /run/spl.pid process_down
         3 occur web-1 spl oom_kill 2
         20 end",
        "0 opened sev3 memory_critical host/web-1/memory#1
         1 opened sev2 process_down host/web-1/service/spl#1
         3 changed sev2 memory_critical host/web-1/memory
         3 changed sev2 oom_kill host/web-1/service/spl
         10 page trigger sev2 memory_critical host/web-1/memory
         11 page trigger sev2 oom_kill host/web-1/service/spl",
    );
}

#[test]
fn an_agent_is_believed_up_to_one_worse_than_the_reasons_severity() {
    check(
        "0 connect web-1
         0 open web-1 spl a disk_space_low sev0
         0 open web-1 spl b sqlite_corrupt sev0
         5 end",
        "0 opened sev2 disk_space_low host/web-1/disk_space_low/spl/a#1
         0 opened sev1 sqlite_corrupt host/web-1/sqlite/spl/b#1
         0 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/b",
    );
}

#[test]
fn one_agent_cannot_drown_the_others() {
    let mut policy = policy();
    let most = policy.detect.agent_flood.incidents as usize;
    let mut script = "0 connect a b\n".to_owned();
    for n in 0..most + 100 {
        script.push_str(&format!("0 open a spl /{n}.db sqlite_missing\n1 occur a spl{n} oom_kill 0\n"));
    }
    script.push_str("2 open b spl /b.db sqlite_missing\n");
    // Without the gathering of many new incidents, which would take them in before they are too many.
    policy.correlation.incidents = u32::MAX;
    let mut fleet = Fleet::new(policy.clone());
    let mut lines: Vec<&str> = script.lines().collect();
    lines.sort_by_key(|line| line.chars().next());
    lines.iter().for_each(|line| fleet.run_line(line));
    let opened = |fleet: &Fleet, what: &str| {
        fleet.log().lines().filter(|line| line.contains(" opened ") && line.contains(what)).count()
    };
    assert_eq!(opened(&fleet, "host/a/sqlite/"), most);
    assert_eq!((opened(&fleet, "agent_flood host/a/flood#1"), opened(&fleet, " host/b/")), (1, 1));
    assert_eq!(opened(&fleet, ""), most + 2);
    fleet.run_line("100 end");
    let paged = fleet.log().lines().filter(|line| line.contains(" page trigger ")).count();
    assert_eq!(paged, most + 2);
    let gathered = fleet.machine.state().unresolved("host/a/flood").map_or(0, |incident| incident.members.len());
    assert!(gathered >= 200, "{gathered}");
    // What is closed makes room for what was gathered and is still open.
    fleet.run_line("200 resolve host/a/sqlite/spl//0.db");
    assert_eq!(opened(&fleet, "host/a/sqlite/"), most + 1);
    fleet.check_journal();
    // A policy that opens more for one agent makes room as well, one that opens fewer gathers again.
    policy.detect.agent_flood.incidents += 10;
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(policy.clone()) });
    assert_eq!(opened(&fleet, "host/a/sqlite/"), most + 11);
    policy.detect.agent_flood.incidents = 2;
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(policy) });
    fleet.run_line("300 open a spl /new.db sqlite_missing");
    assert_eq!(opened(&fleet, "host/a/sqlite/"), most + 11);
    fleet.check_journal();
}

#[test]
fn sev4_opens_nothing() {
    check(
        "0 connect web-1
         0 open web-1 host memory memory_approaching
         1 occur web-1 spl process_restarted 0
         2000 end",
        "",
    );
}

#[test]
fn an_acknowledgement_is_told_and_one_within_the_hold_keeps_quiet() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         5 ack host/web-1/service/spl
         20 open web-1 dba a port_closed
         40 ack host/web-1/service/dba",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 quiet host/web-1/service/spl: ann acknowledged it before its hold was over
         20 opened sev2 port_closed host/web-1/service/dba#1
         30 page trigger sev2 port_closed host/web-1/service/dba
         40 page acknowledge sev2 port_closed host/web-1/service/dba",
    );
}

#[test]
fn much_worse_than_acknowledged_pages_again() {
    let fleet = check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         20 ack host/web-1/service/spl
         30 open web-1 spl b port_conflict sev1
         40 clear web-1 spl a port_closed
         40 clear web-1 spl b port_conflict
         2000 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         20 page acknowledge sev2 port_closed host/web-1/service/spl
         30 changed sev1 port_conflict host/web-1/service/spl
         30 page trigger sev1 port_conflict host/web-1/service/spl
         30 page resolve sev1 port_conflict host/web-1/service/spl
         40 recovering host/web-1/service/spl
         940 resolved host/web-1/service/spl
         940 page resolve sev1 port_conflict host/web-1/service/spl",
    );
    let keys: std::collections::BTreeSet<_> =
        fleet.machine.state().past_pages().map(|record| record.page.dedup_key.clone()).collect();
    assert_eq!(keys.len(), 2);
}

#[test]
fn closed_by_hand_stays_closed_until_something_new_is_found() {
    check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         20 resolve host/web-1/service/spl
         30 differs web-1
         31 open web-1 spl b port_closed",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         20 resolved host/web-1/service/spl by ann
         20 page resolve sev2 port_closed host/web-1/service/spl
         31 opened sev2 port_closed host/web-1/service/spl#2",
    );
}

#[test]
fn a_resolve_cancels_what_was_never_tried() {
    check(
        "0 connect web-1
         0 pager down
         0 open web-1 spl a port_closed
         20 resolve host/web-1/service/spl
         21 pager up",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         20 resolved host/web-1/service/spl by ann
         20 cancelled",
    );
}

#[test]
fn the_stability_window_stands_still_while_the_host_is_not_heard() {
    check(
        "0 connect web-1
         0 open web-1 spl a sqlite_corrupt
         100 clear web-1 spl a sqlite_corrupt
         200 silent web-1 nothing
         205 heard web-1
         300 differs web-1
         500 resync web-1 spl a sqlite ok
         1305 end",
        "0 opened sev1 sqlite_corrupt host/web-1/sqlite/spl/a#1
         0 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/a
         100 recovering host/web-1/sqlite/spl/a
         200 opened sev3 agent_stale host/web-1/agent#1
         205 recovering host/web-1/agent
         260 quiet host/web-1/agent: it cleared within the hold of 60 s
         1205 resolved host/web-1/sqlite/spl/a
         1205 page resolve sev1 sqlite_corrupt host/web-1/sqlite/spl/a
         1305 resolved host/web-1/agent",
    );
}

#[test]
fn a_resync_clears_what_is_well_and_keeps_what_is_unknown() {
    let fleet = check(
        "0 connect web-1
         0 open web-1 spl a sqlite_missing
         0 open web-1 spl b sqlite_missing
         15 differs web-1
         16 resync web-1 spl a sqlite unknown",
        "0 opened sev2 sqlite_missing host/web-1/sqlite/spl/a#1
         0 opened sev2 sqlite_missing host/web-1/sqlite/spl/b#1
         10 page trigger sev2 sqlite_missing host/web-1/sqlite/spl/a
         10 page trigger sev2 sqlite_missing host/web-1/sqlite/spl/b
         16 recovering host/web-1/sqlite/spl/b",
    );
    assert_eq!(fleet.machine.state().open_findings().count(), 1);
}

/// The second one is there until it has stayed away for 15 min, and who does not look after it is told again.
#[test]
fn two_agents_under_one_name_are_open_until_the_second_stays_away() {
    let fleet = check(
        "0 connect web-1
         0 conflict web-1
         60 conflict web-1
         900 conflict web-1
         1700 conflict web-1
         2500 conflict web-1
         3300 conflict web-1
         3700 conflict web-1
         6000 end",
        "0 opened sev2 agent_identity_conflict host/web-1/identity#1
         10 page trigger sev2 agent_identity_conflict host/web-1/identity
         3610 escalated host/web-1/identity 1
         3610 page trigger sev2 agent_identity_conflict host/web-1/identity
         4600 recovering host/web-1/identity
         5500 resolved host/web-1/identity
         5500 page resolve sev2 agent_identity_conflict host/web-1/identity",
    );
    let incident = fleet.machine.state().newest_incident("host/web-1/identity").unwrap();
    let said = |words: &str| incident.timeline.iter().any(|line| line.text == words);
    assert!(said("recovering: no second agent came under this name for 15 min"), "{:#?}", incident.timeline);
    assert!(said("resolved: no second agent came under this name for another 15 min"), "{:#?}", incident.timeline);
}

/// One that comes again within the stability window goes on where it was.
#[test]
fn a_second_agent_that_comes_again_relapses() {
    check(
        "0 connect web-1
         0 conflict web-1
         1000 conflict web-1
         1100 end",
        "0 opened sev2 agent_identity_conflict host/web-1/identity#1
         10 page trigger sev2 agent_identity_conflict host/web-1/identity
         900 recovering host/web-1/identity
         1000 relapsed host/web-1/identity",
    );
}

/// Of what only happened nobody saw that it is well again.
#[test]
fn what_only_happened_is_not_said_to_be_well() {
    let resolved = |script: &str, cause: &str| {
        let mut fleet = Fleet::new(policy());
        fleet.run(script);
        let incident = fleet.machine.state().newest_incident(cause).unwrap();
        let last = incident.timeline.iter().rfind(|line| line.text.starts_with("resolved: "));
        last.map(|line| line.text.clone()).unwrap_or_default()
    };
    let killed = resolved("0 connect a\n 0 occur a spl oom_kill 0\n 2000 end", "host/a/service/spl");
    let heard = "for 15 min while all hosts concerned were heard";
    let words = format!("resolved: nothing more of it happened {heard}; nobody has shown that it is well");
    assert_eq!(killed, words);
    let both =
        "0 connect a\n 0 occur a spl oom_kill 0\n 1 open a spl x port_closed\n 9 clear a spl x port_closed\n 2000 end";
    let words = format!("resolved: evidence of health held {heard}, and nothing more of it happened");
    assert_eq!(resolved(both, "host/a/service/spl"), words);
    let cleared = "0 connect a\n 1 open a spl x port_closed\n 9 clear a spl x port_closed\n 2000 end";
    assert_eq!(resolved(cleared, "host/a/service/spl"), format!("resolved: evidence of health held {heard}"));
}

/// What the host learned within the hold is the title of the first page; later ones keep it.
#[test]
fn the_first_page_has_the_newest_title() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect web-1");
    let told = |summary: &str| {
        let key = muster_tests::scenario::key("spl", "/run/spl.pid", Reason::ProcessDown);
        Finding::new(key, summary)
    };
    let agent = muster_tests::scenario::agent("web-1");
    fleet.event(&agent, FindingEvent::Opened(told("spl (pid 7) ended just now")), Duration::ZERO);
    fleet.run_line("2 end");
    fleet.event(&agent, FindingEvent::Updated(told("spl (pid 7) was ended by SIGTERM")), Duration::ZERO);
    fleet.run_line("20 end");
    let title = "spl on web-1: spl (pid 7) was ended by SIGTERM";
    assert_eq!(fleet.pages().map(|(_, page)| page.title.as_str()).collect::<Vec<_>>(), [title, title]);
    let of_list =
        |fleet: &Fleet| fleet.machine.state().newest_incident("host/web-1/service/spl").unwrap().title.clone();
    assert_eq!(of_list(&fleet), title);
    fleet.event(&agent, FindingEvent::Updated(told("spl (pid 7) is gone")), Duration::ZERO);
    fleet.run_line("4000 end");
    assert!(fleet.pages().count() > 2, "it escalates");
    assert!(fleet.pages().all(|(_, page)| page.title == title), "receivers compare titles");
    fleet.check_journal();
}

/// An acknowledgement ends with its incident: what comes back later pages again and is nobody's.
#[test]
fn an_acknowledgement_ends_at_resolve() {
    let fleet = check(
        "0 connect web-1
         0 open web-1 spl a port_closed
         20 ack host/web-1/service/spl
         30 clear web-1 spl a port_closed
         1000 open web-1 spl a port_closed
         1020 end",
        "0 opened sev2 port_closed host/web-1/service/spl#1
         10 page trigger sev2 port_closed host/web-1/service/spl
         20 page acknowledge sev2 port_closed host/web-1/service/spl
         30 recovering host/web-1/service/spl
         930 resolved host/web-1/service/spl
         930 page resolve sev2 port_closed host/web-1/service/spl
         1000 opened sev2 port_closed host/web-1/service/spl#2
         1010 page trigger sev2 port_closed host/web-1/service/spl",
    );
    let again = fleet.machine.state().newest_incident("host/web-1/service/spl").unwrap();
    assert_eq!((again.owner.as_deref(), again.acknowledged), (None, None));
}

/// Second 0 of a script is 00:13:20 UTC of 2026-11-21.
#[test]
fn numbers_begin_anew_with_each_day() {
    let mut fleet = Fleet::new(policy());
    fleet.run(
        "0 connect a b c
         0 open a spl x port_closed
         80000 open b spl x port_closed
         90000 open c spl x port_closed
         90100 end",
    );
    let number = |host: &str| {
        let cause = format!("host/{host}/service/spl");
        fleet.machine.state().newest_incident(&cause).unwrap().number.clone()
    };
    assert_eq!(
        [number("a"), number("b"), number("c")].map(|n| n[4..].to_owned()),
        ["20261121-0001", "20261121-0002", "20261122-0001"]
    );
}

#[test]
fn a_fenced_coordinator_concludes_nothing() {
    check("0 connect web-1\n 0 fence\n 1 open web-1 spl a sqlite_corrupt\n 2000 end", "");
}

/// The host knows more than its coordinator: what it made of it comes first in the page.
#[test]
fn a_page_begins_with_the_hosts_own_diagnosis() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect web-1");
    let told = "the kernel killed spl (pid 7); its end (SIGKILL) was seen 40 ms later; no successor runs";
    let key = muster_tests::scenario::key("spl", "/run/spl.pid", Reason::ProcessDown);
    let finding = Finding::new(key, "spl (pid 7) ended").evidence(Evidence::new().text("diagnosis", told));
    fleet.event(&muster_tests::scenario::agent("web-1"), FindingEvent::Opened(finding), Duration::ZERO);
    fleet.run_line("20 end");
    assert_ne!(fleet.pages().count(), 0);
    for (_, page) in fleet.pages() {
        assert_eq!(page.details.first(), Some(&format!("the host's diagnosis: {told}")), "{page:?}");
    }
}
