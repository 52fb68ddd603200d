//! An agent that is gone for good: what was open about it ends with it, by an operator's word and with their words.

use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::state::IncidentStatus;
use muster_tests::scenario::{Fleet, agent, hello, policy};

fn archive(fleet: &mut Fleet, name: &str) {
    fleet.feed(Fact::AgentArchived { agent: agent(name), by: "ada".to_owned(), reason: "sold".to_owned() });
}

#[test]
fn what_is_open_about_it_ends_and_says_why() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b c d e\n 1 open a spl /run/spl.pid process_down\n 30 silent a nothing\n 100 end");
    archive(&mut fleet, "a");
    let log = fleet.log();
    for line in [
        "100 resolved host/a/agent",
        "100 page resolve sev3 agent_stale host/a/agent",
        "100 resolved host/a/service/spl",
        "100 page resolve sev2 process_down host/a/service/spl",
    ] {
        assert!(log.contains(line), "{line}:\n{log}");
    }
    let state = fleet.machine.state();
    assert!(state.agent(&agent("a")).is_none() && state.n_silent() == 0 && state.open_findings().next().is_none());
    let incident = state.newest_incident("host/a/service/spl").unwrap();
    assert_eq!(incident.status, IncidentStatus::Resolved);
    let lines: Vec<&str> = incident.timeline.iter().map(|line| line.text.as_str()).collect();
    assert!(lines.iter().any(|line| line.contains("a was archived by ada: sold")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("a is gone for good: archived by ada, sold")), "{lines:?}");
    fleet.check_journal();
}

#[test]
fn one_that_is_heard_stays_and_one_that_comes_back_is_new() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b c d\n 1 open a spl /run/spl.pid process_down\n 20 end");
    let before = fleet.log();
    archive(&mut fleet, "a");
    assert!(fleet.machine.state().agent(&agent("a")).is_some_and(|record| !record.open.is_empty()));
    assert_eq!(fleet.log(), before);
    fleet.run("30 goodbye a");
    archive(&mut fleet, "a");
    archive(&mut fleet, "nobody");
    assert!(fleet.machine.state().agent(&agent("a")).is_none());
    assert!(fleet.machine.state().archived(&agent("a")).is_some());
    fleet.run("40 end");
    fleet.feed(Fact::AgentConnected { agent: agent("a"), hello: hello("a").into() });
    let state = fleet.machine.state();
    let record = state.agent(&agent("a")).unwrap();
    assert!(record.open.is_empty() && record.first_seen == fleet.now && state.archived(&agent("a")).is_none());
    fleet.check_journal();
}

#[test]
fn an_incident_of_several_hosts_goes_on_without_it() {
    let mut fleet = Fleet::new(policy());
    fleet.run(
        "0 connect a b c d e
         10 silent a b c nothing
         60 end",
    );
    for name in ["a", "b"] {
        archive(&mut fleet, name);
        assert!(fleet.machine.state().unresolved("fleet/mass_stale").is_some(), "{name}");
    }
    archive(&mut fleet, "c");
    let log = fleet.log();
    assert!(log.contains("60 resolved fleet/mass_stale"), "{log}");
    let state = fleet.machine.state();
    assert_eq!((state.n_agents(), state.n_silent()), (2, 0));
    fleet.check_journal();
}

#[test]
fn nobody_waits_for_it_where_others_recover() {
    let mut fleet = Fleet::new(policy());
    fleet.run(
        "0 connect a b c d e f
         10 open a spl /run/db.lock lock_contention
         10 open b spl /run/db.lock lock_contention
         10 open c spl /run/db.lock lock_contention
         20 silent a nothing
         100 clear b spl /run/db.lock lock_contention
         100 clear c spl /run/db.lock lock_contention",
    );
    let key = "fleet/lock/spl/db.lock";
    let blind = fleet.machine.state().unresolved(key).unwrap().blind.clone();
    assert!(blind.contains(&agent("a")), "{blind:?}");
    archive(&mut fleet, "a");
    assert!(fleet.machine.state().unresolved(key).unwrap().blind.is_empty());
    fleet.run("2000 end");
    assert!(fleet.log().contains("1000 resolved fleet/lock/spl/db.lock"), "{}", fleet.log());
    fleet.check_journal();
}
