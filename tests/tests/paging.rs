//! Who is told of what: routes, fallbacks, pages sent again, and how many calls a thousand hosts are.

use muster_common::finding::{Finding, FindingEvent};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::spool::{EntryHash, Position};
use muster_coordinator_core::entry::{Fact, Silence};
use muster_coordinator_core::page::{Page, PageAction, PageId};
use muster_coordinator_core::policy::{Policy, Route};
use muster_coordinator_core::state::Incident;
use muster_tests::scenario::{Fleet, hello, key, policy};
use std::collections::BTreeMap;
use std::time::Duration;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn to(receivers: &[&str]) -> Route {
    Route { receivers: names(receivers), ..Route::default() }
}

/// Three receivers and these routes.
fn routed(routes: Vec<Route>) -> Policy {
    Policy { receivers: names(&["ops", "chat", "boss"]), routes, ..policy() }
}

fn run(policy: Policy, script: &[&str]) -> Fleet {
    let mut fleet = Fleet::new(policy);
    script.iter().for_each(|line| fleet.run_line(line));
    fleet
}

/// Every page requested: `receiver action cause`.
fn pages(fleet: &Fleet) -> Vec<String> {
    let words = |page: &Page| format!("{} {} {}", page.receiver, page.action.as_str(), page.cause_key);
    fleet.pages().map(|(_, page)| words(page)).collect()
}

fn last_page(fleet: &Fleet, receiver: &str) -> (PageId, Page) {
    let found = fleet.pages().rfind(|(_, page)| page.receiver == receiver);
    found.map(|(id, page)| (id, page.clone())).unwrap_or_else(|| panic!("{receiver} was told nothing"))
}

fn incident<'a>(fleet: &'a Fleet, cause: &str) -> &'a Incident {
    fleet.machine.state().newest_incident(cause).unwrap_or_else(|| panic!("no incident of {cause}"))
}

fn connect_labelled(fleet: &mut Fleet, name: &str, role: &str) {
    let mut said = hello(name);
    said.labels = BTreeMap::from([("role".to_owned(), role.to_owned())]);
    let agent = AgentName::new(name).unwrap_or_else(|error| panic!("{error}"));
    fleet.feed(Fact::AgentConnected { agent, hello: said.into() });
}

const A: &str = "host/a/service/spl";

#[test]
fn the_first_route_that_matches_counts_and_without_one_all_are_told() {
    let by_service = Route { services: ["spl".to_owned()].into(), ..to(&["chat"]) };
    let by_reason = Route { reasons: [Reason::SqliteCorrupt].into(), ..to(&["boss"]) };
    let fleet = run(
        routed(vec![by_service, by_reason]),
        &[
            "0 connect a",
            "0 open a spl x port_closed",
            "1 open a spl /d.db sqlite_corrupt",
            "2 open a web /d.db sqlite_corrupt",
            "3 open a web x port_closed",
            "60 end",
        ],
    );
    let mut told = pages(&fleet);
    told.sort();
    let expected = [
        "boss trigger host/a/service/web",
        "boss trigger host/a/sqlite/web//d.db",
        "chat trigger host/a/service/spl",
        "chat trigger host/a/service/web",
        "chat trigger host/a/sqlite/spl//d.db",
        "ops trigger host/a/service/web",
    ];
    assert_eq!(told, expected);
    fleet.check_journal();
}

#[test]
fn a_route_that_goes_on_adds_receivers_and_labels_are_those_of_a_host() {
    let of_db = Route { labels: BTreeMap::from([("role".to_owned(), "db".to_owned())]), ..to(&["chat"]) };
    let mut fleet = Fleet::new(routed(vec![Route { goes_on: true, ..of_db }, to(&["ops"])]));
    connect_labelled(&mut fleet, "a", "db");
    connect_labelled(&mut fleet, "b", "web");
    fleet.run(
        "0 open a spl x port_closed
         0 open b spl x port_closed
         30 end",
    );
    let mut told = pages(&fleet);
    told.sort();
    let b = "host/b/service/spl";
    assert_eq!(told, [format!("chat trigger {A}"), format!("ops trigger {A}"), format!("ops trigger {b}")]);
    fleet.check_journal();
}

#[test]
fn who_was_told_hears_the_rest_when_another_route_takes_over() {
    let bad = Route { severities: [Severity::Sev2, Severity::Sev1].into(), ..to(&["boss"]) };
    let script = [
        "0 connect a",
        "0 open a spl x pid_file_missing",
        "100 open a spl y port_closed",
        "140 clear a spl x pid_file_missing",
        "140 clear a spl y port_closed",
        "2000 end",
    ];
    let fleet = run(routed(vec![bad, to(&["chat"])]), &script);
    let expected = ["chat trigger", "chat trigger", "boss trigger", "chat resolve", "boss resolve"];
    assert_eq!(pages(&fleet), expected.map(|words| format!("{words} {A}")));
    fleet.check_journal();
}

/// `chat` stands in for `ops`; nothing else leads to it.
fn with_fallback() -> Policy {
    let fallbacks = BTreeMap::from([("ops".to_owned(), "chat".to_owned())]);
    Policy { receivers: names(&["ops", "chat"]), routes: vec![to(&["ops"])], fallbacks, ..policy() }
}

fn attempt(fleet: &mut Fleet, receiver: &str) -> PageId {
    let (page, _) = last_page(fleet, receiver);
    fleet.feed(Fact::PageAttempted { page });
    page
}

#[test]
fn a_page_that_is_given_up_goes_to_the_fallback_and_says_so() {
    let mut fleet = run(with_fallback(), &["0 pager down", "0 connect a", "0 open a spl x port_closed", "20 end"]);
    assert_eq!(pages(&fleet), [format!("ops trigger {A}")]);
    let page = attempt(&mut fleet, "ops");
    fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
    let (_, stand_in) = last_page(&fleet, "chat");
    assert!(pages(&fleet).contains(&format!("chat trigger {A}")), "{:?}", pages(&fleet));
    let told = fleet.machine.state().pending_pages().find(|record| record.page.cause_key == A);
    let why = told.map(|record| record.page.why.clone()).unwrap_or_default();
    assert!(why.starts_with("the receiver ops does not take its pages, you are told in its place: "), "{why}");
    assert!(stand_in.receiver == "chat");
    fleet.run(
        "30 pager up
         40 clear a spl x port_closed
         2000 end",
    );
    assert!(pages(&fleet).contains(&format!("chat resolve {A}")), "{:?}", pages(&fleet));
    fleet.check_journal();
}

#[test]
fn a_receiver_that_fails_for_minutes_is_replaced_until_it_takes_a_page() {
    let mut fleet = run(with_fallback(), &["0 pager down", "0 connect a b c", "0 open a spl x port_closed", "20 end"]);
    let waiting = attempt(&mut fleet, "ops");
    let failing =
        |error: &str| Fact::ReceiverFailing { receiver: "ops".to_owned(), for_ms: 300_000, error: error.to_owned() };
    fleet.feed(failing("answered 503"));
    assert!(pages(&fleet).contains(&format!("chat trigger {A}")), "what waits is told: {:?}", pages(&fleet));
    // Told again after a restart of the coordinator, it changes nothing.
    let before = pages(&fleet).len();
    fleet.feed(failing("answered 503"));
    assert_eq!(pages(&fleet).len(), before);
    fleet.run_line("60 open b spl x port_closed");
    fleet.run_line("90 end");
    let b = "host/b/service/spl";
    assert!(pages(&fleet).contains(&format!("chat trigger {b}")), "what is new, too: {:?}", pages(&fleet));
    assert!(pages(&fleet).contains(&format!("ops trigger {b}")), "and it is still asked itself");
    let own = incident(&fleet, "coordinator/receiver/ops");
    assert!(own.why.contains("has taken no page for 5 min") || own.title.contains("ops"), "{own:?}");

    fleet.feed(Fact::PageDelivered { page: waiting });
    let ops = fleet.machine.state().receiver("ops").cloned().unwrap_or_default();
    assert_eq!((ops.failing_since, ops.delivered, ops.last_error.as_str()), (None, 1, ""));
    fleet.run_line("100 open c spl x port_closed");
    fleet.run_line("130 end");
    assert!(!pages(&fleet).contains(&"chat trigger host/c/service/spl".to_owned()), "it is well again");
    fleet.check_journal();
}

#[test]
fn what_was_delivered_before_it_began_to_fail_is_not_told_again() {
    let mut fleet = run(with_fallback(), &["0 connect a b", "0 open a spl x port_closed", "20 pager down"]);
    fleet.run_line("30 open b spl x port_closed");
    fleet.run_line("50 end");
    attempt(&mut fleet, "ops");
    let error = "answered 503".to_owned();
    fleet.feed(Fact::ReceiverFailing { receiver: "ops".to_owned(), for_ms: 300_000, error });
    fleet.run_line("60 open a spl y port_unresponsive");
    fleet.run_line("90 end");
    assert!(!pages(&fleet).contains(&format!("chat trigger {A}")), "{:?}", pages(&fleet));
    assert!(pages(&fleet).contains(&"chat trigger host/b/service/spl".to_owned()), "{:?}", pages(&fleet));
}

#[test]
fn that_a_receiver_fails_is_told_to_all_others_whatever_the_routes_say() {
    let mut fleet =
        run(routed(vec![to(&["ops"])]), &["0 pager down", "0 connect a", "0 open a spl x port_closed", "20 end"]);
    let page = attempt(&mut fleet, "ops");
    fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
    fleet.run_line("90 end");
    let cause = "coordinator/receiver/ops";
    let told: Vec<String> = pages(&fleet).into_iter().filter(|page| page.ends_with(cause)).collect();
    assert_eq!(told, [format!("chat trigger {cause}"), format!("boss trigger {cause}")]);
}

#[test]
fn a_dead_letter_is_kept_and_sent_again_once() {
    let mut fleet = run(policy(), &["0 pager down", "0 connect a", "0 open a spl x port_closed", "20 end"]);
    let page = attempt(&mut fleet, "ops");
    let (_, first) = last_page(&fleet, "ops");
    fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
    let letters: Vec<_> = fleet.machine.state().dead_letters().map(|letter| letter.record.id).collect();
    assert_eq!(letters, [page]);
    let ask = Fact::ResendAsked { by: "ann".to_owned(), page };
    fleet.feed(ask.clone());
    let (again, sent) = last_page(&fleet, "ops");
    assert!(again > page && sent.dedup_key == first.dedup_key && sent.action == PageAction::Trigger);
    assert!(sent.why.starts_with(&format!("ann sends the page {} again", page.0)), "{}", sent.why);
    let resent = fleet.machine.state().dead_letters().next().and_then(|letter| letter.resent);
    assert_eq!(resent, Some(again));
    fleet.run_line("30 pager up");
    let delivered = fleet.machine.state().receiver("ops").map(|receiver| receiver.delivered);
    assert_eq!(delivered, Some(1));

    // About what is resolved nobody is told again.
    fleet.run_line(&format!("40 resolve {A}"));
    let before = pages(&fleet).len();
    fleet.feed(ask);
    fleet.feed(Fact::ResendAsked { by: "ann".to_owned(), page: PageId(9999) });
    assert_eq!(pages(&fleet).len(), before);
    fleet.check_journal();
}

/// Nobody acknowledges, and the receiver refuses each escalation: one letter, the newest.
#[test]
fn what_is_told_again_and_given_up_again_is_one_dead_letter() {
    let mut fleet = run(policy(), &["0 pager down", "0 connect a", "0 open a spl x port_closed", "20 end"]);
    let mut given_up = Vec::new();
    for second in [20, 3700, 7400] {
        fleet.run_line(&format!("{second} end"));
        let page = attempt(&mut fleet, "ops");
        fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
        given_up.push(page);
    }
    let letters: Vec<_> = fleet.machine.state().dead_letters().map(|letter| letter.record.id).collect();
    assert_eq!(letters, given_up[2..], "of {given_up:?}");
    assert_eq!(fleet.machine.state().receiver("ops").map(|receiver| receiver.failed), Some(3), "each is counted");
    fleet.check_journal();
}

#[test]
fn dead_letters_and_events_are_bounded() {
    let mut fleet = run(policy(), &["0 pager down", "0 connect a"]);
    for number in 0..300 {
        fleet.run_line(&format!("{} open a s{number} x sqlite_corrupt", number * 40));
        fleet.run_line(&format!("{} clear a s{number} x sqlite_corrupt", number * 40 + 20));
        let waiting: Vec<_> = fleet.machine.state().pending_pages().map(|record| record.id).collect();
        for page in waiting {
            fleet.feed(Fact::PageAttempted { page });
            fleet.feed(Fact::PageFailed { page, error: "no".to_owned() });
        }
    }
    assert_eq!(fleet.machine.state().dead_letters().count(), 200);
    for number in 0..5000 {
        fleet.machine.feed(fleet.now, Fact::OutsideEvent { source: "pagerduty".to_owned(), id: number.to_string() });
    }
    let state = fleet.machine.state();
    assert!(state.knows_outside_event("pagerduty", "4999") && !state.knows_outside_event("pagerduty", "1"));
    assert!(!state.knows_outside_event("other", "4999"));
}

#[test]
fn a_receiver_that_leaves_the_config_is_forgotten() {
    let mut fleet = run(policy(), &["0 connect a", "0 open a spl x port_closed", "20 end"]);
    assert!(fleet.machine.state().receiver("chat").is_some());
    let alone = Policy { receivers: names(&["ops"]), ..policy() };
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(alone) });
    assert!(fleet.machine.state().receiver("chat").is_none() && fleet.machine.state().receiver("ops").is_some());
}

#[test]
fn routes_can_change_while_an_incident_is_open() {
    let mut fleet = run(routed(vec![to(&["ops"])]), &["0 connect a", "0 open a spl x port_closed", "20 end"]);
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(routed(vec![to(&["chat"])])) });
    fleet.run_line("30 clear a spl x port_closed");
    fleet.run_line("2000 end");
    let expected = ["ops trigger", "chat trigger", "ops resolve", "chat resolve"];
    assert_eq!(pages(&fleet), expected.map(|words| format!("{words} {A}")));
    fleet.check_journal();
}

/// Pages by receiver: each is one call.
fn calls(fleet: &Fleet) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for page in pages(fleet) {
        let receiver = page.split(' ').next().unwrap_or_default().to_owned();
        *calls.entry(receiver).or_default() += 1;
    }
    calls
}

const HOSTS: usize = 1000;
/// What a receiver may be called about them, all told.
const CALLS_MAX: usize = 30;

/// Facts in bulk: what must hold is checked afterwards, not after each of a thousand.
fn feed_each(fleet: &mut Fleet, fact: impl Fn(&Fleet, AgentName) -> Fact) {
    for number in 0..HOSTS {
        let name = AgentName::new(format!("h{number}")).unwrap_or_else(|error| panic!("{error}"));
        let fact = fact(fleet, name);
        let entries = fleet.machine.feed(fleet.now, fact);
        fleet.journal.extend(entries);
    }
}

fn thousand() -> Fleet {
    let mut fleet = Fleet::new(policy());
    feed_each(&mut fleet, |_, agent| Fact::AgentConnected { hello: hello(agent.as_str()).into(), agent });
    fleet.run_line("20 end");
    fleet
}

fn few_calls(fleet: &Fleet) {
    let (calls, found) = (calls(fleet), muster_coordinator_core::invariants::check(fleet.machine.state()));
    assert_eq!(calls.len(), 2, "both were told: {calls:?}");
    assert!(calls.values().all(|calls| *calls <= CALLS_MAX), "{calls:?}");
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_thousand_silent_hosts_are_a_handful_of_calls() {
    let mut fleet = thousand();
    feed_each(&mut fleet, |fleet, agent| {
        let last_heard = fleet.now - Duration::from_secs(15);
        Fact::AgentSilent { agent, last_heard, silence: Silence::Nothing }
    });
    fleet.run_line("600 end");
    few_calls(&fleet);
    feed_each(&mut fleet, |_, agent| Fact::AgentHeard { agent });
    fleet.run_line("5000 end");
    few_calls(&fleet);
}

#[test]
fn the_same_fault_on_a_thousand_hosts_is_a_handful_of_calls() {
    let mut fleet = thousand();
    feed_each(&mut fleet, |fleet, agent| {
        let position = Position { spool: hello(agent.as_str()).spool, sequence: 1, hash: EntryHash([1; 16]) };
        let event = FindingEvent::Opened(Finding::new(key("spl", "x", Reason::PortClosed), "spl: port x is closed"));
        Fact::FindingReceived { agent, position, observed: fleet.now, estimated: false, event }
    });
    fleet.run_line("600 end");
    few_calls(&fleet);
}
