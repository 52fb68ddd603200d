//! Receivers that do not take their pages.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::page::PageAction;
use muster_coordinator_core::state::IncidentStatus;
use muster_tests::scenario::{Fleet, policy};

/// What was requested of whom, by receiver and cause key.
fn triggers(fleet: &Fleet) -> Vec<(String, String)> {
    let triggers = fleet.pages().filter(|(_, page)| page.action == PageAction::Trigger);
    triggers.map(|(_, page)| (page.receiver.clone(), page.cause_key.clone())).collect()
}

fn fail_all(fleet: &mut Fleet, receivers: &[&str]) {
    let pending = fleet.machine.state().pending_pages().filter(|page| receivers.contains(&page.page.receiver.as_str()));
    let ids: Vec<_> = pending.map(|page| page.id).collect();
    for page in ids {
        fleet.feed(Fact::PageAttempted { page });
        fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
    }
}

fn run(script: &[&str]) -> Fleet {
    let mut fleet = Fleet::new(policy());
    script.iter().for_each(|line| fleet.run_line(line));
    fleet
}

#[test]
fn a_receiver_that_fails_is_told_to_the_others() {
    let mut fleet = run(&["0 pager down", "0 connect a", "0 open a spl x port_closed", "20 end"]);
    fail_all(&mut fleet, &["ops"]);
    fleet.run_line("40 end");
    let told: Vec<_> = triggers(&fleet).into_iter().filter(|(_, cause)| cause.starts_with("coordinator/")).collect();
    assert_eq!(told, [("chat".to_owned(), "coordinator/receiver/ops".to_owned())]);
    let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
    assert_eq!((incident.triggers_failed, incident.first_delivered), (1, None));
}

#[test]
fn receivers_that_all_fail_do_not_tell_of_each_other_for_ever() {
    // Both escalate by themselves: what is counted here is no escalation.
    let mut quiet = policy();
    quiet.self_escalating = quiet.receivers.iter().cloned().collect();
    let mut fleet = Fleet::new(quiet);
    fleet.run(
        "0 pager down
         0 connect a
         0 open a spl x port_closed
         20 end",
    );
    for second in (30..20_000).step_by(500) {
        fail_all(&mut fleet, &["ops", "chat"]);
        fleet.run_line(&format!("{second} end"));
    }
    assert_eq!(triggers(&fleet).len(), 4, "{:?}", triggers(&fleet));
}

#[test]
fn the_only_receiver_is_not_paged_about_itself() {
    let mut fleet = run(&["0 pager down"]);
    let mut alone = policy();
    alone.receivers.truncate(1);
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(alone) });
    fleet.run(
        "0 connect a
         0 open a spl x port_closed
         20 end",
    );
    fail_all(&mut fleet, &["ops"]);
    fleet.run_line("40 end");
    assert_eq!(triggers(&fleet).len(), 1);
    let incident = fleet.machine.state().newest_incident("coordinator/receiver/ops").unwrap();
    let last = &incident.timeline.last().unwrap().text;
    assert_eq!(last, "not paged: no other receiver is configured");
}

/// What a receiver does with what waits for it: `ops` takes nothing, `chat` everything.
fn only_chat_takes(fleet: &mut Fleet) {
    loop {
        let mut of_chat = fleet.machine.state().pending_pages().filter(|page| page.page.receiver == "chat");
        let Some(page) = of_chat.next().map(|page| page.id) else { return };
        drop(of_chat);
        fleet.feed(Fact::PageAttempted { page });
        fleet.feed(Fact::PageDelivered { page });
    }
}

/// Lines of the receiver's own incident, as chat is told of it.
fn of_ops(fleet: &Fleet) -> Vec<String> {
    let own = fleet.pages().filter(|(_, page)| page.cause_key == "coordinator/receiver/ops");
    own.map(|(_, page)| format!("{} {}", page.receiver, page.action.as_str())).collect()
}

fn status(fleet: &Fleet) -> IncidentStatus {
    fleet.machine.state().newest_incident("coordinator/receiver/ops").unwrap().status
}

/// Told once and escalated, never resolved while it takes nothing; the page that it takes is what it recovers by.
#[test]
fn a_receiver_that_fails_is_not_well_until_it_takes_a_page() {
    let mut fleet = run(&["0 pager down", "0 connect a", "0 open a spl x port_closed", "20 end"]);
    let waiting = fleet.machine.state().pending_pages().find(|page| page.page.receiver == "ops").map(|page| page.id);
    let page = waiting.unwrap();
    fleet.feed(Fact::PageAttempted { page });
    let error = "answered 503".to_owned();
    fleet.feed(Fact::ReceiverFailing { receiver: "ops".to_owned(), for_ms: 300_000, error });
    for second in (30..7_200).step_by(30) {
        fleet.run_line(&format!("{second} end"));
        only_chat_takes(&mut fleet);
        assert_eq!(status(&fleet), IncidentStatus::Open, "at {second}");
    }
    assert_eq!(of_ops(&fleet), ["chat trigger", "chat trigger"], "told, and told again since nobody looked after it");
    fleet.feed(Fact::PageDelivered { page });
    assert_eq!(status(&fleet), IncidentStatus::Recovering);
    fleet.run_line("8200 end");
    assert_eq!(status(&fleet), IncidentStatus::Resolved);
    assert_eq!(of_ops(&fleet), ["chat trigger", "chat trigger", "chat resolve"]);
    let incident = fleet.machine.state().newest_incident("coordinator/receiver/ops").unwrap();
    let said: Vec<&str> = incident.timeline.iter().map(|line| line.text.as_str()).collect();
    assert!(said.contains(&"recovering: the receiver ops took a page again"), "{said:#?}");
    let held = "resolved: no page to ops was given up for 15 min since it took one again";
    assert!(said.contains(&held), "{said:#?}");
    fleet.check_journal();
}

/// A page that was given up is the same, although nothing waits: the next page shows whether it is well.
#[test]
fn a_receiver_that_gave_a_page_up_is_not_well_until_it_takes_one() {
    let mut fleet = run(&["0 pager down", "0 connect a b", "0 open a spl x port_closed", "20 end"]);
    fail_all(&mut fleet, &["ops"]);
    fleet.run_line("3000 end");
    only_chat_takes(&mut fleet);
    assert_eq!(status(&fleet), IncidentStatus::Open);
    fleet.run(
        "3100 open b spl x port_closed
         3120 pager up
         3130 end",
    );
    assert_eq!(status(&fleet), IncidentStatus::Recovering);
    fleet.check_journal();
}

#[test]
fn a_failing_receiver_that_leaves_the_config_is_nobodys_trouble() {
    let mut fleet = run(&["0 pager down", "0 connect a", "0 open a spl x port_closed", "20 end"]);
    fail_all(&mut fleet, &["ops"]);
    assert_eq!(status(&fleet), IncidentStatus::Open);
    let mut alone = policy();
    alone.receivers.remove(0);
    fleet.feed(Fact::PolicyLoaded { policy: Box::new(alone) });
    assert_eq!(status(&fleet), IncidentStatus::Recovering);
}
