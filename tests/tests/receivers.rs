//! Receivers that do not take their pages.

use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::page::PageAction;
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
