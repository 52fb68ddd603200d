//! What people read in the middle of the night: titles that name what they are about, and steps that are said once.

use muster_common::finding::{Finding, FindingEvent};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_coordinator_core::page::Page;
use muster_tests::scenario::{Fleet, agent, key, policy};
use std::time::Duration;

fn tell(fleet: &mut Fleet, host: &AgentName, subject: &str, reason: Reason, words: &str, steps: &[&str]) {
    let finding = Finding::new(key("spl", subject, reason), words).next_steps(steps.iter().copied());
    fleet.event(host, FindingEvent::Opened(finding), Duration::ZERO);
}

fn page(fleet: &Fleet) -> &Page {
    fleet.pages().map(|(_, page)| page).next().unwrap_or_else(|| panic!("no page:\n{}", fleet.log()))
}

#[test]
fn a_page_says_of_which_service_and_of_what_its_summary_leaves_out() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect web-1");
    tell(&mut fleet, &agent("web-1"), "api.example", Reason::Timeout, "call timed out", &[]);
    fleet.run_line("100 end");
    fleet.check_journal();
    assert_eq!(page(&fleet).title, "spl on web-1, api.example: call timed out");
}

/// Of one cause each finding has steps of its own, which say the same in other words: those of the most telling are enough.
#[test]
fn what_to_do_is_what_the_most_telling_finding_says() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect web-1");
    let host = agent("web-1");
    tell(&mut fleet, &host, "127.0.0.1:1", Reason::PortClosed, "closed", &["see whether spl runs"]);
    tell(&mut fleet, &host, "/run/spl.pid", Reason::ProcessDown, "down", &["systemctl status spl", "read its log"]);
    fleet.run_line("100 end");
    fleet.check_journal();
    let steps = &page(&fleet).next_steps;
    assert!(!steps.iter().any(|step| step == "see whether spl runs"), "{steps:?}");
    assert!(
        ["systemctl status spl", "read its log"].iter().all(|step| steps.iter().any(|told| told == step)),
        "{steps:?}"
    );
    // Where the most telling one says nothing, the others do.
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect web-1");
    tell(&mut fleet, &host, "127.0.0.1:1", Reason::PortClosed, "closed", &["see whether spl runs"]);
    tell(&mut fleet, &host, "/run/spl.pid", Reason::ProcessDown, "down", &[]);
    fleet.run_line("100 end");
    assert!(page(&fleet).next_steps.iter().any(|step| step == "see whether spl runs"), "{:?}", page(&fleet).next_steps);
}
