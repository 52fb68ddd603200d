//! What happens when a rule is broken, and past bugs that random worlds found, as scenarios.

use muster_common::finding::{Finding, FindingEvent};
use muster_common::ids::{CoordinatorId, Epoch, FleetName};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{Conclusion, EntryBody, Fact};
use muster_coordinator_core::{Machine, State, decide};
use muster_tests::scenario::{Fleet, START_UNIX_MS, agent, hello, key, policy};
use std::collections::BTreeSet;
use std::time::Duration;

/// As [`decide`], but one rule falls over.
fn broken(state: &State, now: Timestamp, cause: &str) -> Option<Conclusion> {
    assert!(cause != "host/web-1/memory", "index out of range");
    decide(state, now, cause)
}

#[test]
fn a_rule_that_panics_is_isolated_journaled_and_paged_about_once() {
    let mut fleet = Fleet::new(policy());
    fleet.machine = Machine::with_rules(fleet.machine.state().clone(), broken);
    fleet.run(
        "0 connect web-1
         1 open web-1 host memory memory_approaching
         2 open web-1 spl a sqlite_corrupt
         3 clear web-1 host memory memory_approaching
         100 end",
    );
    let panics: Vec<_> = fleet
        .journal
        .iter()
        .filter_map(|entry| match &entry.body {
            EntryBody::Fact(Fact::DecidePanicked { entry, message }) => Some((*entry, message.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(panics.len(), 2, "one per fact whose rule fell over: {panics:?}");
    let about = |index: u64| fleet.journal.iter().find(|entry| entry.index == index).map(|entry| &entry.body);
    for (entry, message) in panics {
        assert_eq!(message, "index out of range");
        assert!(matches!(about(entry), Some(EntryBody::Fact(Fact::FindingReceived { .. }))));
    }
    let log = fleet.log();
    let fault: Vec<&str> = log.lines().filter(|line| line.contains("page trigger") && line.contains("fault")).collect();
    assert_eq!(fault.len(), 1, "one page about both:\n{log}");
    assert!(log.contains("2 page trigger sev1 sqlite_corrupt host/web-1/sqlite/spl/a"), "the others go on:\n{log}");
}

/// Found by a seeded world: a standby promoted before it knew the fleet's name paged everything anew after its next
/// start, because the name is part of the deduplication key.
#[test]
fn a_key_made_before_the_fleets_name_was_known_stays() {
    let epoch = Epoch { number: 2, coordinator: CoordinatorId::new("coord-b").unwrap() };
    let mut machine = Machine::new(State::genesis());
    let mut now = Timestamp::from_unix_ms(START_UNIX_MS);
    let mut keys = BTreeSet::new();
    let mut feed = |machine: &mut Machine, now: &mut Timestamp, fact: Fact| {
        *now = *now + Duration::from_secs(1);
        for entry in machine.feed(*now, fact) {
            if let EntryBody::Conclusion(Conclusion::PageRequested { page, .. }) = entry.body {
                keys.insert(page.dedup_key);
            }
        }
    };
    let (by, reason) = ("ops".to_owned(), "drill".to_owned());
    let took_over = Fact::TookOver { epoch: epoch.clone(), from: None, by, reason, overridden: Vec::new() };
    feed(&mut machine, &mut now, took_over);
    feed(&mut machine, &mut now, Fact::PolicyLoaded { policy: Box::new(policy()) });
    let name = agent("web-1");
    let said = hello("web-1");
    let position =
        |sequence| muster_common::spool::Position { sequence, ..muster_common::spool::Position::start(said.spool) };
    let found = |sequence, observed| Fact::FindingReceived {
        agent: name.clone(),
        position: position(sequence),
        observed,
        estimated: false,
        event: FindingEvent::Opened(Finding::new(key("spl", "/a.db", Reason::SqliteCorrupt), "broken")),
    };
    feed(&mut machine, &mut now, Fact::AgentConnected { agent: name.clone(), hello: said.clone().into() });
    let observed = now;
    feed(&mut machine, &mut now, found(1, observed));
    let coordinator = epoch.coordinator.clone();
    let fleet = FleetName::new("test").unwrap();
    feed(&mut machine, &mut now, Fact::Started { coordinator, fleet, version: "0.1.0".to_owned(), epoch });
    feed(&mut machine, &mut now, Fact::AgentConnected { agent: name.clone(), hello: said.clone().into() });
    feed(&mut machine, &mut now, found(2, observed));
    assert_eq!(keys.len(), 1, "one incident, one key: {keys:?}");
}
