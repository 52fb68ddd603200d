//! Each threshold of `[detectors]` decides: under its default and under another value the same events come to something
//! else. Values come through the config's own reader; `docs/coordinator-config.md` says which there are.

use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_coordinator::config::parse;
use muster_coordinator_core::entry::{AgentHello, Fact};
use muster_coordinator_core::policy::Policy;
use muster_tests::scenario::{Fleet, agent, hello, key, policy};
use std::collections::BTreeSet;
use std::time::Duration;

/// What every config must have.
const REQUIRED: &str = "[tls]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"\n[store]\nurl = \"sqlite:/var/lib/j.db\"\n";

/// Under which of the two the events come to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    ByDefault,
    ByOther,
}
use Only::{ByDefault, ByOther};

/// A key, another value for it, what happens, and what that comes to under one of the two only. What happens is told by
/// [`play`]: events of one line are divided by `;`.
type Row = (&'static str, &'static str, &'static str, Only, &'static str);

const ROWS: &[Row] = &[
    (
        "mass_stale.place_agents_min",
        "2",
        "zone b 2; zone a 9; 100 silent b0 b1 nothing; 200",
        ByOther,
        "fleet/mass_stale/zone=b",
    ),
    (
        "mass_stale.place_share",
        "0.4",
        "zone b 7; zone a 9; 100 silent b0 b1 b2 nothing; 200",
        ByOther,
        "fleet/mass_stale/zone=b",
    ),
    (
        "restart_storm.window",
        "\"1m\"",
        "zone a 3; every 100 of 3 occur a spl process_restarted 0",
        ByDefault,
        "fleet/restart_storm/spl",
    ),
    (
        "restart_storm.host_restarts",
        "3",
        "zone a 1; 3 times occur a0 spl process_restarted 0",
        ByOther,
        "restart_storm host/a0/service/spl",
    ),
    (
        "restart_storm.fleet_hosts",
        "2",
        "zone a 2; every 0 of 2 occur a spl process_restarted 0",
        ByOther,
        "fleet/restart_storm/spl",
    ),
    (
        "lock_contention.fleet_hosts",
        "2",
        "zone a 2; every 0 of 2 open a spl /a.db lock_contention",
        ByOther,
        "fleet/lock/spl/a.db",
    ),
    (
        "lock_contention.sustained",
        "\"1m\"",
        "zone a 1; 0 open a0 spl /a.db sqlite_lock_held; 100",
        ByOther,
        "changed sev2 sqlite_lock_held",
    ),
    (
        "lock_contention.host_subjects",
        "2",
        "zone a 1; 0 open a0 spl /a.db lock_contention; 0 open a0 spl /b.db lock_contention",
        ByOther,
        "sev2 lock_contention host/a0/lock/spl//a.db",
    ),
    ("oom_storm.window", "\"1m\"", "zone a 3; every 100 of 3 occur a spl oom_kill 0", ByDefault, "fleet/oom_storm/spl"),
    ("oom_storm.hosts", "2", "zone a 2; every 0 of 2 occur a spl oom_kill 0", ByOther, "fleet/oom_storm/spl"),
    ("oom_storm.kills", "3", "zone a 1; 3 times occur a0 spl oom_kill 0", ByOther, "fleet/oom_storm/spl"),
    (
        "reason_widespread.window",
        "\"1m\"",
        "zone a 40; every 90 of 5 occur a spl timeout 0",
        ByDefault,
        "fleet/reason/timeout",
    ),
    ("reason_widespread.hosts", "2", "zone a 40; every 0 of 2 occur a spl timeout 0", ByOther, "fleet/reason/timeout"),
    (
        "reason_widespread.sources",
        "2",
        "zone a 40; 0 occur a0 spl timeout 0; 0 occur a0 dba timeout 0",
        ByOther,
        "fleet/reason/timeout",
    ),
    (
        "reason_widespread.fleet_share",
        "0.1",
        "zone a 40; every 0 of 5 occur a spl install_failed 0",
        ByOther,
        "sev2 reason_widespread fleet/reason/install_failed",
    ),
    (
        "reason_widespread.prolonged",
        "\"2m\"",
        "zone a 6; every 0 of 6 occur a spl permanent_error 0; 300 occur a0 spl permanent_error 0",
        ByOther,
        "changed sev1 reason_widespread",
    ),
    (
        "memory_group.hosts",
        "2",
        "zone a 9; every 0 of 2 open a host memory memory_critical",
        ByOther,
        "fleet/reason/memory",
    ),
    (
        "memory_group.place_hosts_min",
        "2",
        "zone a 3; zone b 9; every 0 of 2 open a host memory memory_critical",
        ByOther,
        "fleet/reason/memory/zone=a",
    ),
    (
        "memory_group.place_share",
        "0.9",
        "zone a 4; zone b 9; every 0 of 3 open a host memory memory_critical",
        ByDefault,
        "fleet/reason/memory/zone=a",
    ),
    (
        "corruption_spread.hosts",
        "3",
        "zone a 9; every 0 of 2 open a spl /hub.db sqlite_corrupt",
        ByDefault,
        "fleet/corruption/spl/hub.db",
    ),
    (
        "corruption_spread.after_change",
        "\"1m\"",
        "zone a 9; 0 build a0 2.0; 600 open a0 spl /hub.db sqlite_corrupt",
        ByDefault,
        "fleet/corruption/spl/hub.db",
    ),
    (
        "probe_blind.hosts",
        "2",
        "zone a 9; every 0 of 2 open a spl /x.pid probe_blind",
        ByOther,
        "fleet/probe_blind/pid_file/spl",
    ),
    ("incident_burst.incidents", "3", "zone a 9; every 0 of 3 open a spl x port_closed", ByOther, "incident_burst"),
    (
        "incident_burst.window",
        "\"10s\"",
        "zone a 20; every 5 of 10 open a spl x port_closed; 60",
        ByDefault,
        "incident_burst",
    ),
    (
        "agent_flood.incidents",
        "2",
        "zone a 1; 0 open a0 spl /1.db sqlite_missing; 0 open a0 spl /2.db sqlite_missing; 0 open a0 spl /3.db sqlite_missing",
        ByOther,
        "agent_flood host/a0/flood",
    ),
    (
        "changes.window",
        "\"1m\"",
        "zone a 1; 0 build a0 2.0; 600 open a0 spl x port_closed; 700",
        ByDefault,
        "what changed: ",
    ),
    (
        "update.settle",
        "\"30m\"",
        "zone a 1; 98 open a0 spl /x.pid process_down; 100 occur a0 spl update_failed 0; 105 occur a0 spl update_rollback 0; 400",
        ByDefault,
        "changed sev1 update_rollback",
    ),
    (
        "update.within",
        "\"20s\"",
        "zone a 1; 100 occur a0 spl update_failed 0; 105 occur a0 spl update_rollback 0; 150 open a0 spl /x.pid process_down; 160",
        ByDefault,
        "changed sev1 update_rollback",
    ),
    ("singleton.hold", "\"30m\"", "zone a 2; 0 runs a0; 0 runs a1; 600", ByDefault, "fleet/singleton/one"),
    ("version_skew.versions", "1", "zone a 1; 0 version x 0.2.0; 90000", ByOther, "version_skew"),
    ("version_skew.oldest", "\"0.2.0\"", "zone a 1; 90000", ByOther, "version_skew"),
    ("version_skew.build_hosts", "2", "zone a 2; 0 build a0 2.0; 0 build a1 3.0; 90000", ByOther, "version_skew"),
    (
        "version_skew.after",
        "\"1m\"",
        "zone a 3; 0 build a0 2.0; 0 build a1 3.0; 0 build a2 3.0; 100",
        ByOther,
        "version_skew",
    ),
    ("auth_abuse.refusals", "10", "0 refused 20", ByOther, "fleet/auth_abuse"),
    ("auth_abuse.window", "\"60s\"", "0 refused 40; 300 refused 40", ByDefault, "fleet/auth_abuse"),
    (
        "agent_identity_conflict.quiet",
        "\"2m\"",
        "zone a 1; 10 conflict a0; 300",
        ByOther,
        "recovering host/a0/identity",
    ),
    ("flapping.high_percent", "15", "zone a 1; 10 flaps 100 300", ByOther, "relapsed"),
    ("flapping.low_percent", "1", "zone a 1; 10 flaps 100 100; 2500", ByDefault, "1520 resolved"),
    ("flapping.look", "\"10s\"", "zone a 1; 10 flaps 100 100; 2500", ByDefault, "1520 resolved"),
];

/// Keys that are no rule of the core: who counts calls and streams has tests of its own.
const ELSEWHERE: &[&str] = &["auth_abuse.calls_per_minute", "agent_identity_conflict.interval"];

/// Under the default policy, or with one key that has another value.
fn under(key: &str, other: Option<&str>) -> Policy {
    let (table, name) = key.split_once('.').unwrap_or_else(|| panic!("no table: {key}"));
    let set = other.map(|value| format!("[detectors.{table}]\n{name} = {value}\n")).unwrap_or_default();
    let config = parse("c.toml", &format!("{REQUIRED}{set}")).unwrap_or_else(|errors| panic!("{key}: {errors}"));
    Policy { receivers: policy().receivers, ..config.policy }
}

/// One event after the other: `zone Z N` connects N agents of a zone, `N times …` repeats a command each second, `every S of N …` for
/// one host after the other, and
/// what the scripts have no word for is told here. Everything else is a line of a script.
fn play(fleet: &mut Fleet, script: &str) {
    for event in script.split(';').map(str::trim) {
        let words: Vec<&str> = event.split(' ').collect();
        match words.as_slice() {
            ["zone", zone, n] => (0..number(n)).for_each(|nth| {
                fleet.run(&format!("0 label {zone}{nth} zone={zone}\n0 connect {zone}{nth}"));
            }),
            [n, "times", command @ ..] => (0..number(n)).for_each(|nth| {
                fleet.run_line(&format!("{nth} {}", command.join(" ")));
            }),
            ["every", seconds, "of", n, verb, who, rest @ ..] => (0..number(n)).for_each(|nth| {
                fleet.run_line(&format!("{} {verb} {who}{nth} {}", nth * number(seconds), rest.join(" ")));
            }),
            [second] => fleet.run_line(&format!("{second} end")),
            [second, command @ ..] => told(fleet, second, command, event),
            [] => {}
        }
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|error| panic!("{word}: {error}"))
}

fn told(fleet: &mut Fleet, second: &str, command: &[&str], event: &str) {
    let at = |fleet: &mut Fleet| fleet.run_line(&format!("{second} end"));
    match command {
        ["build", host, new] => {
            at(fleet);
            let evidence = [("what", "deploy"), ("old", "1.0"), ("new", new), ("executable_sha256", new)];
            change(fleet, host, "spl", &evidence);
        }
        ["runs", host] => {
            at(fleet);
            change(fleet, host, "one", &[("what", "singleton"), ("new", "running")]);
        }
        ["version", host, version] => {
            at(fleet);
            let hello = AgentHello { agent_version: (*version).to_owned(), ..hello(host) };
            fleet.feed(Fact::AgentConnected { agent: agent(host), hello: hello.into() });
        }
        ["refused", count] => {
            at(fleet);
            fleet.feed(Fact::CallsRefused {
                caller: "eve".to_owned(),
                address: "10.0.0.9:1".to_owned(),
                route: "FleetService.ListAgents".to_owned(),
                why: "no role".to_owned(),
                count: number(count),
            });
        }
        // Ten times it is there for 20 s.
        ["flaps", first, every] => (0..10).for_each(|nth| {
            let begins = number(first) + nth * number(every);
            fleet.run_line(&format!("{begins} open a0 spl /x.pid process_down"));
            fleet.run_line(&format!("{} clear a0 spl /x.pid process_down", begins + 20));
        }),
        _ => fleet.run_line(event),
    }
}

fn change(fleet: &mut Fleet, host: &str, service: &str, pairs: &[(&str, &str)]) {
    let evidence =
        pairs.iter().fold(Evidence::new(), |evidence, (key, text)| evidence.with(key, Value::Text((*text).to_owned())));
    let finding = Finding::new(key(service, "it", Reason::Change), "another").evidence(evidence);
    fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::ZERO);
}

/// Everything that was concluded and told.
fn outcome(mut policy: Policy, script: &str) -> String {
    // So that what flaps can end between two of its rounds.
    policy.stability.sev2 = Duration::from_secs(60);
    let mut fleet = Fleet::new(policy);
    play(&mut fleet, script);
    fleet.check_journal();
    let pages: Vec<String> =
        fleet.pages().map(|(_, page)| format!("{}\n{}", page.why, page.details.join("\n"))).collect();
    format!("{}\n{}", fleet.log(), pages.join("\n"))
}

#[test]
fn each_threshold_decides() {
    let mut wrong = Vec::new();
    for (key, other, script, only, mark) in ROWS {
        let (default, other) = (outcome(under(key, None), script), outcome(under(key, Some(other)), script));
        let expected = (*only == ByDefault, *only == ByOther);
        if (default.contains(mark), other.contains(mark)) != expected {
            wrong.push(format!("{key}: {mark:?} {only:?}\n--- by default\n{default}\n--- otherwise\n{other}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_key_of_the_document_has_a_row() {
    let document = include_str!("../../docs/coordinator-config.md");
    let section = document.split("## `[detectors]`").nth(1).and_then(|rest| rest.split("\n## ").next());
    let keys = section.unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<&str> = keys.collect();
    let rows: BTreeSet<&str> = ROWS.iter().map(|(key, ..)| *key).chain(ELSEWHERE.iter().copied()).collect();
    assert_eq!(rows, documented);
}
