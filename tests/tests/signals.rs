//! What the fleet is compared by: changes in pages, updates that fail, singletons, versions, refused callers.

use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{Finding, FindingEvent};
use muster_common::ids::BootId;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::entry::{AgentHello, Fact};
use muster_coordinator_core::page::Page;
use muster_coordinator_core::policy::Policy;
use muster_tests::scenario::{Fleet, START_UNIX_MS, agent, check, hello, key, policy};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Lets time pass to a second of the script, as its lines do.
fn at(fleet: &mut Fleet, second: u64) {
    fleet.advance(muster_common::time::Timestamp::from_unix_ms(START_UNIX_MS) + Duration::from_secs(second));
}

fn occurs(fleet: &mut Fleet, host: &str, service: &str, reason: Reason, pairs: &[(&str, &str)], ago: Duration) {
    let evidence = pairs.iter().fold(Evidence::new(), |evidence, (key, text)| match *text {
        "yes" => evidence.with(key, Value::Flag(true)),
        text => evidence.text(key, text),
    });
    let finding = Finding::new(key(service, "it", reason), &format!("{reason} of {service}")).evidence(evidence);
    fleet.event(&agent(host), FindingEvent::Occurred(finding), ago);
}

fn deploys(fleet: &mut Fleet, host: &str, service: &str, new: &str, ago: Duration) {
    let (new, old) = (new.repeat(32), "aa".repeat(32));
    let pairs = [("what", "deploy"), ("old", &old), ("new", &new), ("executable_sha256", &new)];
    occurs(fleet, host, service, Reason::Change, &pairs, ago);
}

/// The last page that calls somebody.
fn page(fleet: &Fleet) -> &Page {
    let (_, page) = fleet.pages().next_back().unwrap_or_else(|| panic!("no page:\n{}", fleet.log()));
    page
}

fn what_changed(page: &Page) -> Vec<&str> {
    page.details.iter().filter_map(|line| line.strip_prefix("what changed: ")).collect()
}

fn expect(fleet: &Fleet, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(fleet.log().lines().collect::<Vec<_>>(), expected, "\nfound:\n{}", fleet.log());
    fleet.check_journal();
}

fn incident_changes<'a>(fleet: &'a Fleet, cause: &str) -> &'a [String] {
    let incident = fleet.machine.state().newest_incident(cause);
    &incident.unwrap_or_else(|| panic!("no incident of {cause}:\n{}", fleet.log())).changes
}

#[test]
fn a_page_about_many_hosts_says_what_was_deployed_before_it_in_one_line() {
    let mut fleet = Fleet::new(policy());
    let hosts: Vec<String> = (0..14).map(|n| format!("h{n:02}")).collect();
    for host in &hosts {
        fleet.feed(Fact::AgentConnected { agent: agent(host), hello: hello(host).into() });
    }
    at(&mut fleet, 100);
    for host in &hosts {
        deploys(&mut fleet, host, "spl", "3f", Duration::ZERO);
    }
    deploys(&mut fleet, "h00", "other", "77", Duration::ZERO);
    at(&mut fleet, 280);
    for host in &hosts {
        fleet.run_line(&format!("280 occur {host} spl process_restarted 0"));
    }
    at(&mut fleet, 300);
    let told = page(&fleet);
    assert_eq!(told.reason, Reason::RestartStorm);
    let expected = "3 min before: spl runs a new build 3f3f3f3f3f3f, it was aaaaaaaaaaaa, on 14 hosts";
    assert_eq!(what_changed(told), [expected], "{:#?}", told.details);
    assert_eq!(incident_changes(&fleet, &told.cause_key), [expected]);
    fleet.check_journal();
}

#[test]
fn changes_count_within_the_hour_before_and_the_closest_come_first() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect web");
    let config = |fleet: &mut Fleet, path: &str| {
        let pairs = [("what", "config"), ("path", path)];
        let finding = Finding::new(key("spl", path, Reason::Change), &format!("{path} was edited"));
        let evidence = pairs.iter().fold(Evidence::new(), |evidence, (key, text)| evidence.text(key, *text));
        fleet.event(&agent("web"), FindingEvent::Occurred(finding.evidence(evidence)), Duration::ZERO);
    };
    at(&mut fleet, 399);
    config(&mut fleet, "/etc/too-old");
    at(&mut fleet, 400);
    config(&mut fleet, "/etc/just-within");
    at(&mut fleet, 3940);
    config(&mut fleet, "/etc/newest");
    occurs(&mut fleet, "web", "spl", Reason::Change, &[("what", "deploy"), ("first_seen", "yes")], Duration::ZERO);
    fleet.run("4000 open web spl /run/spl.pid process_down\n4010 end");
    let expected =
        ["60 s before: /etc/newest was edited, on web", "60 min before: /etc/just-within was edited, on web"];
    assert_eq!(what_changed(page(&fleet)), expected);
}

#[test]
fn a_change_that_arrives_late_is_dated_when_it_was() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect web\n7000 open web spl /run/spl.pid process_down");
    assert!(incident_changes(&fleet, "host/web/service/spl").is_empty());
    // A backlog: one from two hours ago, one from two minutes before it began.
    at(&mut fleet, 7200);
    deploys(&mut fleet, "web", "spl", "11", 2 * 60 * MINUTE);
    deploys(&mut fleet, "web", "spl", "22", Duration::from_secs(320));
    let expected = ["2 min before: spl runs a new build 222222222222, it was aaaaaaaaaaaa, on web"];
    assert_eq!(incident_changes(&fleet, "host/web/service/spl"), expected);
    // What came long after the beginning explains nothing.
    deploys(&mut fleet, "web", "spl", "33", Duration::ZERO);
    assert_eq!(incident_changes(&fleet, "host/web/service/spl"), expected);
    fleet.check_journal();
}

#[test]
fn a_reboot_and_an_upgrade_are_seen_when_the_agent_connects_again() {
    let mut fleet = Fleet::new(policy());
    let boot = |byte: u8| Some(BootId(uuid::Uuid::from_bytes([byte; 16])));
    let connect = |fleet: &mut Fleet, boot_id, version: &str| {
        let hello = AgentHello { boot_id, agent_version: version.to_owned(), ..hello("web") };
        fleet.feed(Fact::AgentConnected { agent: agent("web"), hello: hello.into() });
    };
    connect(&mut fleet, boot(1), "0.1.0");
    connect(&mut fleet, boot(1), "0.1.0");
    at(&mut fleet, 60);
    connect(&mut fleet, boot(2), "0.2.0");
    fleet.run("120 open web spl /run/spl.pid process_down\n130 end");
    let expected = [
        "60 s before: the agent was upgraded from 0.1.0 to 0.2.0, on web",
        "60 s before: the host was rebooted, on web",
    ];
    assert_eq!(what_changed(page(&fleet)), expected);
    fleet.check_journal();
}

#[test]
fn what_changed_stays_bounded_whatever_a_host_tells() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect web db");
    deploys(&mut fleet, "db", "spl", "55", Duration::ZERO);
    for n in 0..200u32 {
        occurs(&mut fleet, "web", &format!("s{n}"), Reason::Change, &[("what", "deploy")], Duration::ZERO);
    }
    let changes = &fleet.machine.state().signals().changes;
    assert_eq!(changes.of_agent(&agent("web")).count(), muster_coordinator_core::changes::CHANGES_PER_AGENT_MAX);
    assert_eq!(changes.of_agent(&agent("db")).count(), 1, "one that tells much pushes out nobody else's");
}

const SPL: &str = "host/web/service/spl";

#[test]
fn an_update_that_failed_and_was_taken_back_is_one_incident() {
    check(
        "0 connect web
         100 occur web spl update_failed 0
         105 occur web spl update_rollback 0
         1100 end",
        "100 opened sev2 update_failed host/web/service/spl#1
         100 recovering host/web/service/spl
         105 changed sev2 update_rollback host/web/service/spl
         110 page trigger sev2 update_rollback host/web/service/spl
         1005 resolved host/web/service/spl
         1005 page resolve sev2 update_rollback host/web/service/spl",
    );
}

#[test]
fn a_service_that_is_unwell_after_a_rollback_is_worse_and_before_it_is_not() {
    let after = check(
        "0 connect web
         100 occur web spl update_failed 0
         105 occur web spl update_rollback 0
         200 open web spl /run/spl.pid process_down
         210 end",
        "100 opened sev2 update_failed host/web/service/spl#1
         100 recovering host/web/service/spl
         105 changed sev2 update_rollback host/web/service/spl
         110 page trigger sev2 update_rollback host/web/service/spl
         200 changed sev1 update_rollback host/web/service/spl
         200 relapsed host/web/service/spl
         200 page trigger sev1 update_rollback host/web/service/spl
         200 page resolve sev1 update_rollback host/web/service/spl",
    );
    let incident = after.machine.state().newest_incident(SPL).map(|incident| incident.why.clone());
    assert!(incident.is_some_and(|why| why.contains("sev1")));
    // It was down during the update, and came up within two minutes: that is what a rollback is for.
    check(
        "0 connect web
         98 open web spl /run/spl.pid process_down
         100 occur web spl update_failed 0
         105 occur web spl update_rollback 0
         224 clear web spl /run/spl.pid process_down
         230 end",
        "98 opened sev2 process_down host/web/service/spl#1
         100 changed sev2 update_failed host/web/service/spl
         105 changed sev2 update_rollback host/web/service/spl
         108 page trigger sev2 update_rollback host/web/service/spl
         224 recovering host/web/service/spl",
    );
    // It did not.
    check(
        "0 connect web
         98 open web spl /run/spl.pid process_down
         100 occur web spl update_failed 0
         105 occur web spl update_rollback 0
         230 end",
        "98 opened sev2 process_down host/web/service/spl#1
         100 changed sev2 update_failed host/web/service/spl
         105 changed sev2 update_rollback host/web/service/spl
         108 page trigger sev2 update_rollback host/web/service/spl
         225 changed sev1 update_rollback host/web/service/spl
         225 page trigger sev1 update_rollback host/web/service/spl
         225 page resolve sev1 update_rollback host/web/service/spl",
    );
}

#[test]
fn a_rollback_that_failed_is_worse() {
    for (reason, pairs, expected) in [
        (Reason::UpdateRollback, ("outcome", "failed"), Severity::Sev1),
        (Reason::UpdateRollback, ("success", "false"), Severity::Sev1),
        (Reason::UpdateRollback, ("outcome", "done"), Severity::Sev2),
        (Reason::UpdateFailed, ("phase", "rollback"), Severity::Sev1),
        (Reason::UpdateFailed, ("phase", "install"), Severity::Sev2),
    ] {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect web\n100 occur web spl update_failed 0");
        occurs(&mut fleet, "web", "spl", reason, &[pairs], Duration::ZERO);
        let incident = fleet.machine.state().newest_incident(SPL).map(|incident| incident.severity);
        assert_eq!(incident, Some(expected), "{reason} {pairs:?}");
        fleet.check_journal();
    }
}

/// What could not be taken back was not taken back.
#[test]
fn what_changed_does_not_say_that_a_failed_rollback_took_anything_back() {
    let said = |reason: Reason, pairs: &[(&str, &str)]| {
        let mut fleet = Fleet::new(policy());
        fleet.run_line("0 connect web");
        at(&mut fleet, 100);
        occurs(&mut fleet, "web", "spl", reason, pairs, Duration::ZERO);
        incident_changes(&fleet, SPL).first().cloned().unwrap_or_default()
    };
    let rollback = Reason::UpdateRollback;
    let failed = said(rollback, &[("outcome", "failed")]);
    assert_eq!(failed, "at the same time: an update of spl could not be taken back: update_rollback of spl, on web");
    let done = said(rollback, &[("outcome", "done")]);
    assert_eq!(done, "at the same time: an update of spl was taken back: update_rollback of spl, on web");
    let both = said(Reason::UpdateFailed, &[("phase", "rollback")]);
    assert_eq!(
        both,
        "at the same time: an update of spl failed, and so did its rollback: update_failed of spl, on web"
    );
}

#[test]
fn a_backlog_of_an_update_is_told_late_and_no_worse_than_it_was() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect web");
    at(&mut fleet, 7200);
    fleet.run_line("7200 occur web spl update_failed 3600");
    fleet.run_line("7200 occur web spl update_rollback 3590");
    fleet.run("7230 end");
    expect(
        &fleet,
        "7200 opened sev2 update_failed host/web/service/spl#1
         7200 recovering host/web/service/spl
         7200 changed sev2 update_rollback host/web/service/spl
         7210 page trigger sev2 update_rollback host/web/service/spl late 3590",
    );
}

fn singleton(fleet: &mut Fleet, host: &str, state: &str, ago: Duration) {
    occurs(fleet, host, "spl", Reason::Change, &[("what", "singleton"), ("new", state)], ago);
}

#[test]
fn a_singleton_on_two_hosts_is_told_after_the_time_of_a_move() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b c");
    at(&mut fleet, 100);
    singleton(&mut fleet, "a", "running", Duration::ZERO);
    at(&mut fleet, 200);
    singleton(&mut fleet, "b", "running", Duration::ZERO);
    at(&mut fleet, 400);
    singleton(&mut fleet, "c", "running", Duration::ZERO);
    singleton(&mut fleet, "c", "stopped", Duration::ZERO);
    at(&mut fleet, 500);
    singleton(&mut fleet, "a", "stopped", Duration::ZERO);
    fleet.run("1500 end");
    expect(
        &fleet,
        "320 opened sev2 duplicate_instance fleet/singleton/spl#1
         330 page trigger sev2 duplicate_instance fleet/singleton/spl
         500 recovering fleet/singleton/spl
         1400 resolved fleet/singleton/spl
         1400 page resolve sev2 duplicate_instance fleet/singleton/spl",
    );
}

/// The host itself saw both: that is told by its condition, at once.
#[test]
fn a_singleton_twice_on_one_host_is_that_hosts() {
    check(
        "0 connect a b
         10 open a spl spl duplicate_instance
         300 clear a spl spl duplicate_instance
         1300 end",
        "10 opened sev2 duplicate_instance host/a/duplicate_instance/spl/spl#1
         20 page trigger sev2 duplicate_instance host/a/duplicate_instance/spl/spl
         300 recovering host/a/duplicate_instance/spl/spl
         1200 resolved host/a/duplicate_instance/spl/spl
         1200 page resolve sev2 duplicate_instance host/a/duplicate_instance/spl/spl",
    );
}

#[test]
fn a_planned_move_is_no_duplicate() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    singleton(&mut fleet, "a", "running", Duration::ZERO);
    at(&mut fleet, 1000);
    singleton(&mut fleet, "b", "running", Duration::ZERO);
    at(&mut fleet, 1119);
    singleton(&mut fleet, "a", "stopped", Duration::from_secs(110));
    fleet.run("5000 end");
    expect(&fleet, "");
}

#[test]
fn a_silent_host_may_run_it_or_not() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    singleton(&mut fleet, "a", "running", Duration::ZERO);
    fleet.run("100 silent a nothing");
    at(&mut fleet, 200);
    singleton(&mut fleet, "b", "running", Duration::ZERO);
    fleet.run("1000 end");
    let log = fleet.log();
    assert!(!log.contains("duplicate_instance"), "a takeover after a death:\n{log}");
    // The dead one comes back and runs it still.
    fleet.run("1000 heard a\n1119 end");
    assert!(!fleet.log().contains("duplicate_instance"), "{}", fleet.log());
    fleet.run("1121 end");
    assert!(fleet.log().contains("1120 opened sev2 duplicate_instance fleet/singleton/spl#1"), "{}", fleet.log());
    // It falls silent again: nobody knows that it stopped.
    fleet.run("1200 silent a nothing\n9000 end");
    assert!(!fleet.log().contains("recovering fleet/singleton/spl"), "{}", fleet.log());
    fleet.check_journal();
}

#[test]
fn a_backlog_about_a_move_is_no_duplicate() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b");
    at(&mut fleet, 7200);
    // Both tell at once what happened an hour ago: a had it, b took it over.
    singleton(&mut fleet, "b", "running", 60 * MINUTE);
    singleton(&mut fleet, "a", "running", 120 * MINUTE);
    singleton(&mut fleet, "a", "stopped", 61 * MINUTE);
    fleet.run("9000 end");
    expect(&fleet, "");
}

fn connect_version(fleet: &mut Fleet, host: &str, version: &str) {
    let hello = AgentHello { agent_version: version.to_owned(), ..hello(host) };
    fleet.feed(Fact::AgentConnected { agent: agent(host), hello: hello.into() });
}

#[test]
fn versions_that_differ_for_a_day_are_one_matter_that_calls_nobody() {
    let mut fleet = Fleet::new(policy());
    for (host, version) in [("a", "0.1.0"), ("b", "0.2.0"), ("c", "0.3.0")] {
        connect_version(&mut fleet, host, version);
    }
    fleet.run("90000 end");
    assert_eq!(fleet.log(), "", "three versions are what an upgrade of two steps has");
    connect_version(&mut fleet, "d", "0.4.0");
    fleet.run("176399 end");
    assert_eq!(fleet.log(), "", "just below a day");
    at(&mut fleet, 176_400);
    for (host, build) in [("a", "11"), ("b", "11"), ("c", "22")] {
        deploys(&mut fleet, host, "spl", build, Duration::ZERO);
    }
    fleet.run("176461 end");
    expect(
        &fleet,
        "176400 opened sev4 version_skew fleet/version_skew#1
         176460 quiet fleet/version_skew: sev4 is less bad than sev3, from which on pages go out",
    );
    connect_version(&mut fleet, "d", "0.3.0");
    assert!(fleet.log().ends_with("176461 recovering fleet/version_skew"), "{}", fleet.log());
    // The builds have differed for a day as well: the same matter.
    fleet.run("262900 end");
    let newest = fleet.machine.state().newest_incident("fleet/version_skew").map(|incident| incident.title.clone());
    let title = newest.unwrap_or_default();
    assert_eq!(title, "builds of spl differ, most hosts run 111111111111: 222222222222 on c", "{}", fleet.log());
    fleet.check_journal();
}

#[test]
fn an_agent_too_old_for_this_coordinator_is_told_of() {
    let mut policy: Policy = policy();
    policy.signals.version_skew.oldest = "0.2.0".to_owned();
    let mut fleet = Fleet::new(policy);
    connect_version(&mut fleet, "a", "0.1.9");
    connect_version(&mut fleet, "b", "0.2.0");
    fleet.run("86400 end");
    let incident = fleet.machine.state().newest_incident("fleet/version_skew").map(|incident| incident.title.clone());
    assert_eq!(incident.as_deref(), Some("agents run 2 versions: 0.1.9 on a, too old; 0.2.0 on b"), "{}", fleet.log());
}

fn refused(fleet: &mut Fleet, caller: &str, route: &str, count: u64) {
    fleet.feed(Fact::CallsRefused {
        caller: caller.to_owned(),
        address: "10.0.0.9:4711".to_owned(),
        route: route.to_owned(),
        why: "its certificate has run out".to_owned(),
        count,
    });
}

#[test]
fn a_caller_that_is_refused_again_and_again_is_told_by_route() {
    let mut fleet = Fleet::new(policy());
    for minute in 0..5u64 {
        at(&mut fleet, 60 + minute * 60);
        refused(&mut fleet, "10.0.0.9", "handshake", if minute == 4 { 11 } else { 12 });
        refused(&mut fleet, "muster://f/viewer/eve", "FleetService.ArchiveAgent", 3);
    }
    assert_eq!(fleet.log(), "", "59 of one and 15 of another are below 60");
    refused(&mut fleet, "10.0.0.9", "handshake", 1);
    fleet.run("2000 end");
    expect(
        &fleet,
        "300 opened sev3 auth_abuse fleet/auth_abuse/handshake#1
         360 page trigger sev3 auth_abuse fleet/auth_abuse/handshake
         900 recovering fleet/auth_abuse/handshake
         1800 resolved fleet/auth_abuse/handshake
         1800 page resolve sev3 auth_abuse fleet/auth_abuse/handshake",
    );
    let title = fleet.machine.state().newest_incident("fleet/auth_abuse/handshake").map(|i| i.title.clone());
    let title = title.unwrap_or_default();
    assert!(title.contains("10.0.0.9 from 10.0.0.9:4711 60 times (its certificate has run out)"), "{title}");
}

fn looped(fleet: &mut Fleet, caller: &str, route: &str, count: u64) {
    fleet.feed(Fact::CallsLooped {
        caller: caller.to_owned(),
        address: "10.0.0.9:4711".to_owned(),
        route: route.to_owned(),
        count,
    });
}

/// Nobody refused it, and the page does not say so.
#[test]
fn a_caller_in_a_loop_is_told_as_one_with_what_it_calls() {
    let mut fleet = Fleet::new(policy());
    at(&mut fleet, 60);
    looped(&mut fleet, "muster://f/operator/alice", "FleetService.ListAgents", 1500);
    fleet.run("2000 end");
    expect(
        &fleet,
        "60 opened sev3 auth_abuse fleet/auth_abuse/loop/FleetService.ListAgents#1
         120 page trigger sev3 auth_abuse fleet/auth_abuse/loop/FleetService.ListAgents
         660 recovering fleet/auth_abuse/loop/FleetService.ListAgents
         1560 resolved fleet/auth_abuse/loop/FleetService.ListAgents
         1560 page resolve sev3 auth_abuse fleet/auth_abuse/loop/FleetService.ListAgents",
    );
    let incident = fleet.machine.state().newest_incident("fleet/auth_abuse/loop/FleetService.ListAgents").unwrap();
    let told = "callers are in a loop, most of all with FleetService.ListAgents: within 10 min \
                muster://f/operator/alice from 10.0.0.9:4711 called 1500 times";
    assert_eq!(incident.title, told);
    assert_eq!(incident.why, "more than 600 calls of one caller within a minute: sev3");
    assert!(incident.next_steps.iter().any(|step| step.contains("wait between its calls")), "{incident:?}");
}

#[test]
fn an_agent_that_reconnects_in_a_loop_is_not_refused_either() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect web-1");
    for minute in 1..4u64 {
        at(&mut fleet, minute * 60);
        fleet.feed(Fact::AgentFlapping { agent: agent("web-1"), reconnects: 20 });
        let incident = fleet.machine.state().newest_incident("fleet/auth_abuse/loop/agent_link");
        assert_eq!(incident.is_some(), minute == 3, "60 of them are too many");
    }
    let incident = fleet.machine.state().newest_incident("fleet/auth_abuse/loop/agent_link").unwrap();
    assert_eq!(incident.title, "agents reconnect in a loop: within 10 min web-1 60 times");
    fleet.check_journal();
}

#[test]
fn many_made_up_callers_stay_bounded() {
    let mut fleet = Fleet::new(policy());
    for n in 0..400 {
        refused(&mut fleet, &format!("10.0.{}.{}", n / 200, n % 200), "handshake", 1);
        refused(&mut fleet, "10.9.9.9", &format!("Made.Up{n}"), 1);
    }
    let refusals = &fleet.machine.state().signals().refusals;
    assert!(refusals.callers("handshake").count() <= muster_coordinator_core::refusals::CALLERS_MAX);
    let routes = (0..400).filter(|n| refusals.callers(&format!("Made.Up{n}")).count() > 0).count();
    assert!(routes <= muster_coordinator_core::refusals::ROUTES_MAX, "{routes}");
    fleet.run("1000 end");
    let causes = fleet.machine.state().cause("fleet/auth_abuse/handshake").is_some();
    assert!(!causes && fleet.log().is_empty(), "what is old is forgotten: {}", fleet.log());
}

/// A condition that is there for 20 s of every `period_s`, so many times.
fn comes_and_goes(fleet: &mut Fleet, times: u64, period_s: u64) {
    for round in 0..times {
        let start = 1000 + round * period_s;
        fleet.run_line(&format!("{start} open web spl /run/spl.pid process_down"));
        fleet.run_line(&format!("{} clear web spl /run/spl.pid process_down", start + 20));
    }
}

fn count(fleet: &Fleet, word: &str) -> usize {
    fleet.log().lines().filter(|line| line.contains(word)).count()
}

#[test]
fn what_flaps_is_one_incident_until_it_is_calm_and_its_recovery_is_told() {
    let mut policy: Policy = policy();
    policy.stability.sev2 = MINUTE;
    let mut fleet = Fleet::new(policy.clone());
    fleet.run("0 connect web");
    // Without damping each of the ten rounds would be an incident, a page and a resolve.
    comes_and_goes(&mut fleet, 10, 100);
    assert_eq!(count(&fleet, "opened sev2 process_down"), 3, "{}", fleet.log());
    assert_eq!(count(&fleet, "page trigger"), 3, "{}", fleet.log());
    let newest = |fleet: &Fleet| fleet.machine.state().newest_incident(SPL).map(|incident| incident.is_unresolved());
    // The last change came at 1920; at 2400 there are three left of the last ten minutes, at 2420 two.
    fleet.run("2419 end");
    assert_eq!(newest(&fleet), Some(true), "{}", fleet.log());
    fleet.run("2421 end");
    assert_eq!(newest(&fleet), Some(false), "{}", fleet.log());
    assert_eq!(count(&fleet, "page resolve"), 3, "{}", fleet.log());
    fleet.check_journal();
    // Five changes of the last twenty looks are just below.
    let mut fleet = Fleet::new(policy);
    fleet.run("0 connect web");
    comes_and_goes(&mut fleet, 10, 300);
    assert_eq!(count(&fleet, "opened sev2 process_down"), 10, "{}", fleet.log());
    assert_eq!(count(&fleet, "resolved host/web"), 9, "{}", fleet.log());
}

/// With no stability window at all, what flaps still ends when it is calm.
#[test]
fn what_flaps_ends_when_it_is_calm_although_its_window_is_nothing() {
    let mut policy: Policy = policy();
    policy.stability.sev2 = Duration::from_millis(0);
    policy.hold.sev2 = Duration::from_secs(60);
    policy.signals.flapping.high_percent = 10;
    policy.signals.flapping.low_percent = 5;
    let mut fleet = Fleet::new(policy);
    fleet.run("0 connect web");
    comes_and_goes(&mut fleet, 6, 100);
    fleet.run("2200 end");
    let newest = fleet.machine.state().newest_incident(SPL);
    assert_eq!(newest.map(|incident| incident.is_unresolved()), Some(false), "{}", fleet.log());
    fleet.check_journal();
}

/// It told that it runs, lost entries, and may have told that it stopped: that is no proof of two.
#[test]
fn what_an_agent_told_before_it_lost_entries_is_no_proof_of_two() {
    for told_again in [false, true] {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect a b");
        singleton(&mut fleet, "a", "running", Duration::ZERO);
        at(&mut fleet, 100);
        let spool = fleet.machine.state().agent(&agent("a")).and_then(|record| record.position).unwrap().spool;
        fleet.feed(Fact::FindingsLost { agent: agent("a"), spool, first: 2, last: 900 });
        at(&mut fleet, 200);
        singleton(&mut fleet, "b", "running", Duration::ZERO);
        fleet.run("5000 end");
        assert!(!fleet.log().contains("duplicate_instance"), "{}", fleet.log());
        if told_again {
            // What it tells again is known again.
            let next =
                muster_common::spool::Position { spool, sequence: 901, hash: muster_common::spool::EntryHash([1; 16]) };
            let evidence = Evidence::new().text("what", "singleton").text("new", "running");
            let finding = Finding::new(key("spl", "it", Reason::Change), "runs here").evidence(evidence);
            let event = FindingEvent::Occurred(finding);
            let (agent, observed) = (agent("a"), fleet.now);
            fleet.feed(Fact::FindingReceived { agent, position: next, observed, estimated: false, event });
            fleet.run("5130 end");
            assert!(fleet.log().contains("5120 opened sev2 duplicate_instance"), "{}", fleet.log());
        }
        fleet.check_journal();
    }
}

/// The first look at a build is no change: no page names it, also where nothing else changed and where the diagnosis of
/// an older agent does.
#[test]
fn a_build_seen_for_the_first_time_is_no_change() {
    let story = "spl ended (exit code 3); possibly behind it: spl runs build 4add, seen for the first time, 53 s before; \
                 no successor is known";
    let ill = |told: &[(&str, &str)]| {
        let mut fleet = Fleet::new(policy());
        fleet.run_line("0 connect web-1");
        let evidence = told.iter().fold(Evidence::new(), |evidence, (key, text)| evidence.text(key, *text));
        let evidence = evidence.flag("first_seen", told.iter().all(|(key, _)| *key != "old"));
        let build = Finding::new(key("spl", "executable", Reason::Change), "spl runs build 4add").evidence(evidence);
        fleet.event(&agent("web-1"), FindingEvent::Occurred(build), Duration::ZERO);
        fleet.run_line("53 end");
        let evidence = Evidence::new().text("diagnosis", story);
        let finding = Finding::new(key("spl", "x", Reason::PortClosed), "closed").evidence(evidence);
        fleet.event(&agent("web-1"), FindingEvent::Opened(finding), Duration::ZERO);
        fleet.run_line("120 end");
        fleet.check_journal();
        let changes = fleet.machine.state().newest_incident("host/web-1/service/spl").unwrap().changes.clone();
        let pages = fleet.pages().flat_map(|(_, page)| page.details.clone());
        (changes, pages.filter_map(|line| line.strip_prefix("what changed: ").map(str::to_owned)).next())
    };
    let seen = [("what", "deploy"), ("new", "4add")];
    assert_eq!(ill(&seen), (vec![], None));
    let (changes, paged) = ill(&[seen[0], seen[1], ("old", "3bcc")]);
    assert!(changes.len() == 1 && changes[0].contains("spl runs a new build 4add, it was 3bcc"), "{changes:?}");
    assert_eq!(paged.as_deref(), Some(changes[0].as_str()));
}
