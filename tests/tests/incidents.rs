//! Findings become incidents, incidents become pages: one `check` per situation.

use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_coordinator_core::state::INCIDENTS_PER_AGENT_MAX;
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
    let mut script = "0 connect a b\n".to_owned();
    for n in 0..INCIDENTS_PER_AGENT_MAX + 100 {
        script.push_str(&format!("0 open a spl /{n}.db sqlite_missing\n1 occur a spl{n} oom_kill 0\n"));
    }
    script.push_str("2 open b spl /b.db sqlite_missing\n");
    // Without the gathering of many new incidents, which would take them in before they are too many.
    let mut policy = policy();
    policy.correlation.incidents = u32::MAX;
    let mut fleet = Fleet::new(policy);
    let mut lines: Vec<&str> = script.lines().collect();
    lines.sort_by_key(|line| line.chars().next());
    lines.iter().for_each(|line| fleet.run_line(line));
    let opened = |fleet: &Fleet, what: &str| {
        fleet.log().lines().filter(|line| line.contains(" opened ") && line.contains(what)).count()
    };
    assert_eq!(opened(&fleet, "host/a/sqlite/"), INCIDENTS_PER_AGENT_MAX);
    assert_eq!((opened(&fleet, "agent_flood host/a/flood#1"), opened(&fleet, " host/b/")), (1, 1));
    assert_eq!(opened(&fleet, ""), INCIDENTS_PER_AGENT_MAX + 2);
    fleet.run_line("100 end");
    let paged = fleet.log().lines().filter(|line| line.contains(" page trigger ")).count();
    assert_eq!(paged, INCIDENTS_PER_AGENT_MAX + 2);
    let gathered = fleet.machine.state().unresolved("host/a/flood").map_or(0, |incident| incident.members.len());
    assert!(gathered >= 200, "{gathered}");
    // What is closed makes room for what was gathered and is still open.
    fleet.run_line("200 resolve host/a/sqlite/spl//0.db");
    assert_eq!(opened(&fleet, "host/a/sqlite/"), INCIDENTS_PER_AGENT_MAX + 1);
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

#[test]
fn two_agents_under_one_name_page() {
    check(
        "0 connect web-1
         0 conflict web-1
         5 conflict web-1
         10 end",
        "0 opened sev2 agent_identity_conflict host/web-1/identity#1
         0 recovering host/web-1/identity
         10 page trigger sev2 agent_identity_conflict host/web-1/identity",
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
