//! Replays: what they reproduce, what another policy would have paged, and what they do not claim.

use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::State;
use muster_coordinator_core::entry::{Conclusion, Entry, EntryBody, Fact};
use muster_coordinator_core::freeze::FreezeScope;
use muster_coordinator_core::page::PageId;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::replay::{Verifier, WhatIf, what_if};
use muster_tests::scenario::{Fleet, START_UNIX_MS, agent, check_what_if, policy};
use std::time::Duration;

/// What ran under the scripts' policy.
fn ran(script: &str) -> Fleet {
    let mut fleet = Fleet::new(policy());
    script.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| fleet.run_line(line));
    fleet.check_journal();
    fleet
}

/// What another policy would have made of it.
fn under(fleet: &Fleet, change: impl Fn(&mut Policy)) -> WhatIf {
    let mut other = policy();
    change(&mut other);
    what_if(&State::genesis(), &fleet.journal, &other).unwrap_or_else(|error| panic!("{error}"))
}

/// Pages as `SECOND REASON CAUSE` of one of the two receivers.
fn pages(told: &[muster_coordinator_core::replay::Told]) -> Vec<String> {
    let mine = told.iter().filter(|told| told.receiver == "ops");
    mine.map(|told| {
        let second = (told.at.unix_ms() - START_UNIX_MS) / 1000;
        format!("{second} {} {}", told.reason, told.incident.cause)
    })
    .collect()
}

#[test]
fn the_first_entry_that_differs_is_named() {
    let fleet = ran("0 connect a
                     1 open a spl x sqlite_corrupt
                     5 ack host/a/sqlite/spl/x");
    let check = |edit: &dyn Fn(&mut Vec<Entry>) -> u64| {
        let mut journal = fleet.journal.clone();
        let expected = edit(&mut journal);
        let mut verifier = Verifier::new(State::genesis());
        let found = journal.iter().try_for_each(|entry| verifier.next(entry));
        let found = found.and_then(|()| verifier.finish().map(drop)).unwrap_err();
        assert_eq!(found.index, expected, "{found:#?}");
        found
    };
    let opened = |entry: &Entry| matches!(entry.body, EntryBody::Conclusion(Conclusion::IncidentOpened { .. }));
    let place = fleet.journal.iter().position(opened).unwrap();
    let index = fleet.journal[place].index;
    let other = check(&|journal| {
        if let EntryBody::Conclusion(Conclusion::IncidentOpened { title, .. }) = &mut journal[place].body {
            title.push('!');
        }
        index
    });
    assert!(other.recorded.is_some() && other.replayed.is_some());
    // A conclusion too many, one too few, a fact at another time, a journal that ends in the middle of a thought.
    check(&|journal| {
        journal.insert(place + 1, journal[place].clone());
        index
    });
    check(&|journal| {
        journal.remove(place);
        index + 1
    });
    let fact = check(&|journal| {
        journal[place - 1].at = journal[place - 1].at - Duration::from_secs(1000);
        index - 1
    });
    assert!(matches!(fact.recorded.as_ref().map(|entry| &entry.body), Some(EntryBody::Fact(_))), "{fact:#?}");
    let ended = check(&|journal| {
        journal.truncate(place);
        index
    });
    assert_eq!(ended.recorded, None);
}

#[test]
fn what_refers_to_an_entry_still_refers_to_it_when_the_entries_are_others() {
    // Under the other policy nothing is opened for the port, so that every later index is smaller.
    let mut fleet = Fleet::new(policy());
    ["0 connect a b", "1 open a spl x port_closed", "12 open b spl y process_down"]
        .iter()
        .for_each(|line| fleet.run_line(line));
    let scope = FreezeScope::default();
    fleet.feed(Fact::FreezeSet { by: "ann".to_owned(), scope, reason: "drill".to_owned(), expires: None });
    let index = fleet.machine.state().head_index();
    fleet.run_line("13 silence 600 agent=b");
    fleet.feed(Fact::FreezeLifted { by: "ann".to_owned(), index });
    ["30 expire 1", "31 pager down", "40 open a spl z sqlite_corrupt"].iter().for_each(|line| fleet.run_line(line));
    let failing: Vec<PageId> = fleet.machine.state().pending_pages().map(|record| record.id).collect();
    for page in failing {
        fleet.feed(Fact::PageAttempted { page });
        fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
        fleet.feed(Fact::ResendAsked { by: "ann".to_owned(), page });
    }
    ["50 pager up", "2000 end"].iter().for_each(|line| fleet.run_line(line));
    fleet.check_journal();
    let found = under(&fleet, |policy| {
        policy.severities.insert(Reason::PortClosed, Severity::Sev4);
    });
    assert_eq!(
        (pages(&found.added), pages(&found.moved.iter().map(|(told, _)| told.clone()).collect::<Vec<_>>())),
        (vec![], vec![])
    );
    assert_eq!(pages(&found.removed), ["11 port_closed host/a/service/spl"]);
    assert_eq!(found.incidents.len(), 1, "{:#?}", found.incidents);
    assert_eq!(found.incidents[0].incident.cause, "host/a/service/spl");
    assert!(found.incidents[0].recorded.is_some() && found.incidents[0].replayed.is_none());
}

#[test]
fn a_more_patient_policy_notices_silence_later_or_never() {
    let fleet = ran("0 connect a b c d e f g h
                     15 silent a nothing
                     20 heard a
                     100 silent b nothing
                     3000 end");
    let found = under(&fleet, |policy| policy.liveness.stale_after = 6);
    assert_eq!(pages(&found.removed), Vec::<String>::new(), "a had come back within its hold: nobody was paged");
    let (moved, to) = found.moved.iter().find(|(told, _)| told.receiver == "ops").unwrap();
    assert_eq!(pages(std::slice::from_ref(moved)), ["160 agent_stale host/b/agent"]);
    assert_eq!(to.since(moved.at), Duration::from_secs(15), "noticed three heartbeats later");
    assert!(
        found.incidents.iter().any(|differs| differs.incident.cause == "host/a/agent" && differs.replayed.is_none())
    );
    assert!(found.unsure.iter().any(|words| words.contains("heartbeats are not in the journal")), "{:?}", found.unsure);
    let never = under(&fleet, |policy| policy.liveness.stale_after = 1000);
    assert_eq!(pages(&never.removed), ["160 agent_stale host/b/agent"]);
    assert!(never.unsure.iter().any(|words| words.contains("not due by the end")), "{:?}", never.unsure);
}

#[test]
fn what_would_notice_earlier_is_not_claimed() {
    let fleet = ran("0 connect a");
    let refused = |change: &dyn Fn(&mut Policy)| {
        let mut other = policy();
        change(&mut other);
        what_if(&State::genesis(), &fleet.journal, &other).unwrap_err().to_string()
    };
    assert!(refused(&|policy| policy.liveness.stale_after = 2).contains("stale_after"));
    assert!(refused(&|policy| policy.liveness.heartbeat = Duration::from_secs(1)).contains("heartbeat"));
    assert!(refused(&|policy| policy.liveness.goodbye_grace = Duration::ZERO).contains("goodbye_grace"));
    assert!(refused(&|policy| policy.liveness.reboot_grace = Duration::ZERO).contains("reboot_grace"));
    assert!(refused(&|policy| policy.liveness.reconnect_max = Duration::ZERO).contains("re-hear window"));
    assert!(refused(&|policy| policy.liveness.admission_per_s = 1_000_000).contains("admission_per_s"));
}

#[test]
fn what_people_did_about_nothing_is_listed() {
    let fleet = ran("0 connect a
                     1 open a spl x port_closed
                     20 ack host/a/service/spl
                     30 note host/a/service/spl
                     40 resolve host/a/service/spl
                     60 end");
    let found = under(&fleet, |policy| {
        policy.severities.insert(Reason::PortClosed, Severity::Sev4);
    });
    let actions: Vec<&str> = found.unmatched.iter().map(|fact| fact.action.as_str()).collect();
    assert_eq!(actions, ["acknowledge", "note", "resolve"]);
    assert!(found.unmatched.iter().all(|fact| fact.by == "ann" && fact.incident.cause == "host/a/service/spl"));
}

#[test]
fn other_thresholds_page_more_or_less() {
    let mut script = "0 connect a\n".to_owned();
    for n in 0..4 {
        script.push_str(&format!("{} occur a spl process_restarted 0\n", 10 + n * 20));
    }
    script.push_str("2000 end");
    let fleet = ran(&script);
    let eager = under(&fleet, |policy| policy.restart_storm.host_restarts = 3);
    assert_eq!(pages(&eager.added).len(), 1, "{:#?}", eager.added);
    assert!(pages(&eager.added)[0].contains("restart_storm host/a/service/spl"), "{:#?}", eager.added);
    assert_eq!((eager.removed.len(), eager.unmatched.len()), (0, 0));
    let quiet = under(&fleet, |policy| policy.page_from = Severity::Sev0);
    assert!(quiet.added.is_empty() && quiet.moved.is_empty());
}

#[test]
fn what_is_missing_is_said() {
    let mut fleet = Fleet::new(policy());
    ["0 connect a", "5 restart", "70 pause"].iter().for_each(|line| fleet.run_line(line));
    let spool = muster_tests::scenario::hello("a").spool;
    let name = agent("a");
    fleet.feed(Fact::FindingsLost { agent: name.clone(), spool, first: 1, last: 3 });
    fleet.feed(Fact::AgentFlapping { agent: name, reconnects: 20 });
    let found = under(&fleet, |_| {});
    assert!(found.is_same());
    for words in ["lost entries", "starts, takeovers or standstills", "reconnect all the time"] {
        assert!(found.unsure.iter().any(|told| told.contains(words)), "{words}: {:?}", found.unsure);
    }
    check_what_if(&fleet.journal);
}

/// What the other policy holds beyond the end of the journal is neither kept nor removed.
#[test]
fn a_page_whose_longer_hold_is_not_over_is_not_claimed() {
    let script = "0 connect a b
                  1 open a spl x port_closed
                  2 open b spl x port_closed
                  5 clear b spl x port_closed
                  60 end";
    let fleet = ran(script);
    let found = under(&fleet, |policy| policy.hold.sev2 = Duration::from_secs(600));
    assert_eq!((pages(&found.removed), pages(&found.added)), (vec![], vec![]));
    let undecided: Vec<_> = found.undecided.iter().filter(|(told, _)| told.receiver == "ops").collect();
    let [(told, until)] = undecided.as_slice() else { panic!("{:#?}", found.undecided) };
    assert_eq!(pages(std::slice::from_ref(told)), ["11 port_closed host/a/service/spl"]);
    assert_eq!((until.unix_ms() - START_UNIX_MS) / 1000, 601);
    assert!(!found.is_same(), "that is no sameness");
    // Who acknowledged it may have come because of the page.
    let acked = script.replace("60 end", "20 ack host/a/service/spl\n60 end");
    let found = under(&ran(&acked), |policy| policy.hold.sev2 = Duration::from_secs(600));
    assert_eq!((found.removed.len(), found.undecided.len(), found.moved.len()), (0, 2, 0), "{found:#?}");
    // A journal that goes on tells which: moved where it stays open, removed where it does not.
    let found =
        under(&ran(&script.replace("60 end", "1000 end")), |policy| policy.hold.sev2 = Duration::from_secs(600));
    assert_eq!((found.removed.len(), found.undecided.len(), found.moved.len()), (0, 0, 2), "{found:#?}");
    let script = script.replace("60 end", "60 clear a spl x port_closed\n1000 end");
    let found = under(&ran(&script), |policy| policy.hold.sev2 = Duration::from_secs(600));
    assert_eq!((found.removed.len(), found.undecided.len(), found.moved.len()), (2, 0, 0), "{found:#?}");
}

/// Who lowered it or closed it after its page may have done so because of that page.
#[test]
fn what_people_did_about_a_page_leaves_undecided_whether_it_would_have_come() {
    let longer = |policy: &mut Policy| policy.hold.sev2 = Duration::from_secs(600);
    let begins = "0 connect a\n1 open a spl x port_closed";
    let cause = "host/a/service/spl";
    for (ends, undecided) in [
        (format!("20 severity {cause} sev4\n60 end"), true),
        (format!("20 resolve {cause}\n60 end"), true),
        (format!("20 ack {cause}\n60 end"), true),
        // Whether anybody would have come is as open when the journal goes on.
        (format!("20 severity {cause} sev4\n1000 end"), true),
        (format!("20 resolve {cause}\n1000 end"), true),
        (format!("20 ack {cause}\n1000 end"), true),
        (format!("20 note {cause}\n100 clear a spl x port_closed\n5000 end"), false),
    ] {
        let found = under(&ran(&format!("{begins}\n{ends}")), longer);
        let told = if undecided { (0, 2, 0) } else { (2, 0, 0) };
        assert_eq!((found.removed.len(), found.undecided.len(), found.moved.len()), told, "{ends}: {found:#?}");
        let until = found.undecided.iter().map(|(_, until)| (until.unix_ms() - START_UNIX_MS) / 1000);
        assert!(until.clone().all(|second| second == 601), "{ends}: {:?}", until.collect::<Vec<_>>());
    }
}

/// A panic is a fault of the program that wrote the journal: its page is neither claimed removed, nor its incident.
#[test]
fn pages_about_panics_are_said_not_to_be_compared() {
    let fleet = ran("0 connect a\n1 panicked\n2 open a spl x port_closed\n60 connect a");
    let faults = fleet.pages().filter(|(_, page)| page.reason == Reason::CoordinatorFault).count();
    assert!(faults > 0, "{}", fleet.log());
    let found = under(&fleet, |policy| policy.hold.sev2 = Duration::from_secs(20));
    let about = |told: &muster_coordinator_core::replay::Told| told.reason == Reason::CoordinatorFault;
    assert!(!found.removed.iter().any(about) && !found.undecided.iter().any(|(told, _)| about(told)), "{found:#?}");
    assert_eq!(found.moved.len(), 2, "{found:#?}");
    assert!(found.incidents.iter().all(|differ| differ.incident.cause != "coordinator/fault"), "{found:#?}");
    let said = found.unsure.iter().any(|told| told.starts_with("1 panics of a rule") && told.contains("not compared"));
    assert!(said, "{:?}", found.unsure);
}

/// That a receiver fails follows from outcomes of pages: such pages are not compared, and that is said.
#[test]
fn pages_about_receivers_that_fail_are_said_not_to_be_compared() {
    let mut fleet = ran("0 connect a\n1 pager down\n2 open a spl x port_closed\n20 end");
    let failing: Vec<PageId> = fleet.machine.state().pending_pages().map(|record| record.id).collect();
    let page = failing[0];
    fleet.feed(Fact::PageAttempted { page });
    fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
    fleet.run_line("60 end");
    let faults = fleet.pages().filter(|(_, page)| page.reason == Reason::CoordinatorFault).count();
    assert!(faults > 0, "{}", fleet.log());
    let words = "receivers that fail are not compared";
    let same = under(&fleet, |_| {});
    assert!(same.is_same() && !same.unsure.iter().any(|told| told.contains(words)), "{:?}", same.unsure);
    let found = under(&fleet, |policy| {
        policy.severities.insert(Reason::PortClosed, Severity::Sev4);
    });
    let told = format!("{faults} pages about {words}");
    assert!(found.unsure.iter().any(|sentence| sentence.starts_with(&told)), "{told}: {:?}", found.unsure);
}
