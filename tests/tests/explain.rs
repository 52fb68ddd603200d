//! Why and why not: one situation, one answer.

use muster_common::finding::{Finding, FindingEvent};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use muster_coordinator_core::State;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::explain::{
    Asked, Explanation, Outcome, RuleLook, fits_nothing, incident_of, taken_in_by, title, unheard_service, waits_for,
    why, why_finding, why_not, why_page,
};
use muster_coordinator_core::page::PageId;
use muster_coordinator_core::policy::{Policy, Route};
use muster_coordinator_core::silence::Matchers;
use muster_tests::scenario::{Fleet, START_UNIX_MS, agent, key, policy};
use std::time::Duration;

fn ran_under(policy: Policy, script: &str) -> Fleet {
    let mut fleet = Fleet::new(policy);
    script.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| fleet.run_line(line));
    fleet
}

fn ran(script: &str) -> Fleet {
    ran_under(policy(), script)
}

fn ask(state: &State, now: Timestamp, name: &str) -> Explanation {
    let name: AgentName = agent(name);
    let asked = Asked { agent: &name, at: now, service: None, last_heard: None, is_past: false };
    why_not(state, &asked).unwrap_or_else(|| panic!("{name} is not known"))
}

/// The look of a rule at something, or a panic that shows all of them.
fn look<'a>(explanation: &'a Explanation, rule: &str, about: &str) -> &'a RuleLook {
    let found = explanation.rules.iter().find(|look| look.rule == rule && look.about.contains(about));
    found.unwrap_or_else(|| panic!("no {rule} about {about}: {explanation:#?}"))
}

/// Why nobody was paged about `a`: what held it back, and words of the answer.
fn check(script: &str, outcome: Outcome, held: &str, answer: &str) {
    let fleet = ran(script);
    let found = ask(fleet.machine.state(), fleet.now, "a");
    assert!(found.answer.contains(answer), "{answer:?} is not in {:?}\n{found:#?}", found.answer);
    let first = found.rules.iter().find(|look| look.outcome == outcome && look.held_back_by == held);
    assert!(first.is_some(), "nothing is {outcome:?} by {held:?}: {found:#?}");
    for look in &found.rules {
        assert!(look.index <= fleet.machine.state().head_index() && !look.why.is_empty(), "{look:#?}");
    }
}

#[test]
fn each_reason_for_silence_has_its_word() {
    check("0 connect a", Outcome::NothingSeen, "", "nothing was wrong");
    check("0 connect a\n1 open a spl x port_closed", Outcome::HeldBack, "hold", "it waits until");
    check("0 connect a\n1 open a spl x port_closed\n20 end", Outcome::Paged, "", "somebody was paged about a");
    check(
        "0 connect a\n1 silence 600 agent=a\n2 open a spl x port_closed\n20 end",
        Outcome::HeldBack,
        "silence",
        "holds its pages back",
    );
    check(
        "0 connect a\n1 maintenance 0 600 agent=a\n2 open a spl x port_closed\n20 end",
        Outcome::HeldBack,
        "silence",
        "holds its pages back",
    );
    check(
        "0 connect a\n1 open a spl x port_closed\n3 clear a spl x port_closed\n20 end",
        Outcome::HeldBack,
        "recovering",
        "cleared within the hold",
    );
    check(
        "0 connect a\n1 open a spl x port_closed\n3 ack host/a/service/spl\n20 end",
        Outcome::HeldBack,
        "acknowledged",
        "ann acknowledged it",
    );
    check(
        "0 connect a\n1 open a spl x port_closed sev4\n20 end",
        Outcome::BelowThreshold,
        "severity",
        "nothing reached its threshold",
    );
    check("0 connect a\n5 goodbye a\n20 end", Outcome::HeldBack, "planned_stop", "it said goodbye");
    check("0 connect a\n5 restart\n6 end", Outcome::HeldBack, "rehear_window", "it had not been heard since");
    check(
        "0 connect a\n1 open a spl x port_closed\n5 resolve host/a/service/spl\n20 end",
        Outcome::HeldBack,
        "by_hand",
        "ann",
    );
}

/// What holds back at the moment comes before what was paged and is over.
#[test]
fn what_holds_now_comes_before_what_was_over() {
    let over = "0 connect a\n1 open a spl x port_closed\n20 clear a spl x port_closed\n1000 end\n";
    let more = |more: &str| format!("{over}{more}");
    check(over, Outcome::Paged, "", "somebody was paged about a");
    check(
        &more("1100 restart\n1101 end"),
        Outcome::HeldBack,
        "rehear_window",
        "nobody was paged about a: it had not been",
    );
    check(
        &more("1100 goodbye a\n1101 end"),
        Outcome::HeldBack,
        "planned_stop",
        "nobody was paged about a: it said goodbye",
    );
}

/// A maintenance excuses a goodbye, and says so: of a host that is well it holds nothing back, and one that is still to
/// come, or is over, is not spoken of.
#[test]
fn a_maintenance_of_the_host_is_told_while_it_lasts() {
    let script = "0 connect a b\n0 maintenance 100 600 agent=a\n";
    let look_at = |more: &str, name: &str| {
        let fleet = ran(&format!("{script}{more}"));
        let found = ask(fleet.machine.state(), fleet.now, name);
        let look = found.rules.into_iter().find(|look| look.rule == "silence" && look.about == name);
        look.map(|look| (look.outcome, look.held_back_by, look.why))
    };
    assert_eq!(look_at("50 end", "a"), None);
    let (outcome, held, why) = look_at("150 end", "a").unwrap_or_else(|| panic!("it is not told"));
    assert_eq!((outcome, held.as_str()), (Outcome::NothingSeen, ""));
    assert!(why.starts_with("maintenance: SIL-6 of bob until ") && why.ends_with("; a goodbye within it is expected"));
    assert_eq!(look_at("150 end", "b"), None, "another host's");
    let (outcome, held, _) = look_at("150 goodbye a\n160 end", "a").unwrap_or_else(|| panic!("it is not told"));
    assert_eq!((outcome, held.as_str()), (Outcome::HeldBack, "silence"));
    assert_eq!(look_at("150 goodbye a\n710 end", "a"), None);
}

#[test]
fn below_a_threshold_says_by_how_much() {
    let mut script = "0 connect a\n".to_owned();
    (0..4).for_each(|n| script.push_str(&format!("{} occur a spl process_restarted 0\n", 10 + n * 20)));
    let fleet = ran(&script);
    let found = ask(fleet.machine.state(), fleet.now, "a");
    let storm = found.rules.iter().find(|look| look.rule == "restart_storm" && look.outcome == Outcome::BelowThreshold);
    let storm = storm.unwrap_or_else(|| panic!("{found:#?}"));
    let (figure, about) = (&storm.figures[0], "host/a/service/spl");
    let (value, threshold) = ("4 restarts", "5 restarts of one service on one host within 10 min");
    assert_eq!((figure.value.as_str(), figure.threshold.as_str(), storm.about.as_str()), (value, threshold, about));
    assert_eq!(storm.why, format!("saw {value}, asks for {threshold}; below the threshold by 1 restart"));
    let fleet_wide = look(&found, "restart_storm", "fleet/restart_storm/spl");
    assert!(fleet_wide.why.starts_with("saw 4 occurrences from 1 source on 1 host within 10 min"), "{fleet_wide:#?}");
    assert!(fleet_wide.why.ends_with("; below the threshold by 2 hosts"), "{fleet_wide:#?}");
    assert!(found.answer.starts_with("nobody was paged about a: nothing reached its threshold"), "{}", found.answer);
}

#[test]
fn what_folded_into_the_fleets_incident_is_said_so() {
    let mut script = String::new();
    for n in 0..8 {
        script.push_str(&format!("0 connect h{n}\n"));
    }
    for n in 0..6 {
        script.push_str(&format!("100 silent h{n} nothing\n"));
    }
    script.push_str("200 end");
    let fleet = ran(&script);
    let found = ask(fleet.machine.state(), fleet.now, "h1");
    assert!(found.answer.contains("fell silent together"), "{}", found.answer);
    assert_eq!(look(&found, "mass_stale", "fleet/mass_stale").outcome, Outcome::Paged);
    assert!(found.unknown.iter().any(|words| words.contains("since it was last heard")), "{:?}", found.unknown);
    let heard = ask(fleet.machine.state(), fleet.now, "h7");
    assert!(heard.rules.iter().all(|look| look.outcome != Outcome::Paged), "{heard:#?}");
}

#[test]
fn a_freeze_never_holds_a_page_back_and_hysteresis_is_the_agents() {
    let mut fleet = ran("0 connect a\n1 open a spl x port_closed\n20 end");
    let scope = muster_coordinator_core::freeze::FreezeScope::default();
    let by = "ann".to_owned();
    fleet.feed(muster_coordinator_core::entry::Fact::FreezeSet {
        by,
        scope,
        reason: "drill".to_owned(),
        expires: None,
    });
    let found = ask(fleet.machine.state(), fleet.now, "a");
    assert!(look(&found, "freeze", "a").why.contains("never holds a page back"));
    assert!(look(&found, "hysteresis", "a").why.contains("its own probes"));
    assert_eq!(found.rules[0].outcome, Outcome::Paged, "the most telling first");
}

#[test]
fn a_service_can_be_asked_about_alone() {
    let fleet = ran("0 connect a\n1 open a spl x port_closed\n1 open a web y sqlite_corrupt\n20 end");
    let (name, service) = (agent("a"), ServiceName::new("web").unwrap());
    let asked = Asked { agent: &name, at: fleet.now, service: Some(&service), last_heard: None, is_past: false };
    let found = why_not(fleet.machine.state(), &asked).unwrap();
    assert!(found.rules.iter().any(|look| look.about.contains("sqlite/web")), "{found:#?}");
    assert!(!found.rules.iter().any(|look| look.about.contains("service/spl")), "{found:#?}");
    assert!(why_not(fleet.machine.state(), &Asked { agent: &agent("nobody"), ..asked }).is_none());
}

#[test]
fn why_tells_rule_values_thresholds_grades_and_who_by_which_route() {
    let route = Route { receivers: vec!["ops".to_owned()], ..Route::default() };
    let fleet = ran_under(
        Policy { routes: vec![route], ..policy() },
        "0 connect a\n1 open a spl x port_closed\n2 open a spl /run/spl.pid process_down\n20 ack host/a/service/spl",
    );
    let state = fleet.machine.state();
    let incident = state.newest_incident("host/a/service/spl").unwrap();
    let found = why(state, incident, fleet.now);
    assert!(found.answer.contains("paged ops 10 s after it was opened"), "{}", found.answer);
    let hold = look(&found, "hold", "host/a/service/spl");
    assert_eq!((hold.figures[0].value.as_str(), hold.figures[0].threshold.as_str()), ("10 s", "10 s"));
    assert!(look(&found, "routing", "").why.contains("route 1 of 1 matches: ops"), "{found:#?}");
    assert_eq!(look(&found, "severity", "").figures[0].threshold, "sev3");
    let down = look(&found, "process_down", "a/spl/pid_file//run/spl.pid/process_down");
    assert_eq!(down.grade.map(|grade| grade.as_str()), Some("confirmed"));
    assert!(look(&found, "response", "").why.contains("ann"));
    let indexes: Vec<u64> = found.rules.iter().map(|look| look.index).filter(|index| *index > 0).collect();
    assert!(!indexes.is_empty() && indexes.iter().all(|index| *index <= state.head_index()));
    let page = state.past_pages().find(|record| record.page.receiver == "ops").unwrap();
    let of_page = why_page(state, page.id, fleet.now).unwrap();
    assert!(of_page.answer.contains("ops accepted it"), "{}", of_page.answer);
    assert_eq!(of_page.rules[0].index, page.id.0);
    let of_finding = why_finding(state, "a/spl/port/x/port_closed", fleet.now).unwrap();
    assert!(of_finding.answer.contains(&incident.number), "{}", of_finding.answer);
    assert!(why_finding(state, "a/spl/port/x/nothing", fleet.now).is_none());
    assert!(why_page(state, PageId(1), fleet.now).is_none());
}

#[test]
fn why_of_what_paged_nobody_says_what_held_it() {
    let fleet = ran("0 connect a\n1 open a spl x port_closed");
    let state = fleet.machine.state();
    let found = why(state, state.newest_incident("host/a/service/spl").unwrap(), fleet.now);
    assert!(found.answer.contains("paged nobody: it waits until"), "{}", found.answer);
    assert_eq!(look(&found, "hold", "").held_back_by, "hold");
    let low = why_finding(
        ran("0 connect a\n1 open a spl x port_closed sev4").machine.state(),
        "a/spl/port/x/port_closed",
        fleet.now,
    );
    assert!(low.unwrap().answer.contains("no incident is open for it"));
}

#[test]
fn why_of_what_is_over_tells_what_was_seen_and_what_is_not_kept() {
    let fleet = ran(
        "0 connect a\n1 open a spl x port_closed\n2 open a spl /run/spl.pid process_down\n20 clear a spl x port_closed\n30 clear a spl /run/spl.pid process_down\n2000 end",
    );
    let state = fleet.machine.state();
    let incident = state.newest_incident("host/a/service/spl").unwrap();
    assert!(!incident.is_unresolved());
    let found = why(state, incident, fleet.now);
    let seen = found.rules.iter().filter(|look| look.rule == "observed").count();
    assert_eq!(seen, 3, "{found:#?}");
    look(&found, "process_down", "a/spl/pid_file//run/spl.pid/process_down");
    assert!(found.unknown.iter().any(|words| words.contains("not kept after it was resolved")), "{:?}", found.unknown);
}

/// A receiver that takes nothing holds nothing back from a host about which there is nothing to tell.
#[test]
fn a_failing_receiver_is_no_answer_about_a_healthy_host() {
    let mut fleet = ran("0 pager down\n0 connect a b\n1 open b spl x port_closed\n20 end");
    let pending: Vec<PageId> = fleet.machine.state().pending_pages().map(|record| record.id).collect();
    for page in pending {
        fleet.feed(Fact::PageAttempted { page });
        fleet.feed(Fact::PageFailed { page, error: "answered 400".to_owned() });
    }
    for receiver in ["ops", "chat"] {
        let (receiver, error) = (receiver.to_owned(), "refused".to_owned());
        fleet.feed(Fact::ReceiverFailing { receiver, for_ms: 300_000, error });
    }
    let healthy = ask(fleet.machine.state(), fleet.now, "a");
    assert!(healthy.answer.contains("nothing was wrong"), "{}", healthy.answer);
    let receiver = look(&healthy, "routing", "ops");
    assert_eq!(receiver.outcome, Outcome::NothingSeen, "{receiver:#?}");
    assert!(receiver.why.ends_with("nothing about a waits for it"), "{receiver:#?}");
    let ill = ask(fleet.machine.state(), fleet.now, "b");
    let receiver = look(&ill, "routing", "ops");
    let number = &fleet.machine.state().newest_incident("host/b/service/spl").unwrap().number;
    assert_eq!((receiver.outcome, &receiver.incident), (Outcome::HeldBack, number), "{receiver:#?}");
    let never = format!("the receiver ops counts as failing since {}: it never took one", fleet.now);
    assert_eq!(receiver.why, never);
}

/// What was over is no answer about what is wrong now.
#[test]
fn the_answer_is_about_what_is_open_at_the_moment_asked() {
    let fleet =
        ran("0 connect a\n1 open a spl x port_closed\n30 clear a spl x port_closed\n1500 silence 3600 agent=a\n\
         1600 open a spl x port_closed\n1700 end");
    let number = &fleet.machine.state().newest_incident("host/a/service/spl").unwrap().number;
    let found = ask(fleet.machine.state(), fleet.now, "a");
    let expected = format!("nobody was paged about a: {number}: ");
    assert!(found.answer.starts_with(&expected) && found.answer.contains("holds its pages back"), "{found:#?}");
    assert!(found.rules.iter().any(|look| look.outcome == Outcome::Paged), "the old one is told: {found:#?}");
}

/// Rules look at the trouble of a service on a host under one cause key: one that saw too little raised nothing.
#[test]
fn a_rule_that_saw_too_little_did_not_page() {
    let fleet = ran("0 connect a\n1 open a spl x process_down\n5 occur a spl process_restarted 0\n60 end");
    let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
    assert_eq!(incident.reason.as_str(), "process_down");
    for found in [ask(fleet.machine.state(), fleet.now, "a"), why(fleet.machine.state(), incident, fleet.now)] {
        let storm = look(&found, "restart_storm", "host/a/service/spl");
        assert_eq!(storm.outcome, Outcome::BelowThreshold, "{storm:#?}");
    }
}

/// What delayed a page is told as what it was.
#[test]
fn a_page_that_waited_for_the_end_of_a_silence_was_not_held() {
    let fleet = ran("0 connect a\n0 silence 600 agent=a\n5 open a spl x port_closed\n700 end");
    let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
    let found = why(fleet.machine.state(), incident, fleet.now);
    let hold = look(&found, "hold", "host/a/service/spl");
    assert!(hold.why.starts_with("its first page came 9 min after it was opened: longer than the hold"), "{hold:#?}");
    assert!(hold.figures[0].threshold.is_empty(), "{hold:#?}");
    let held = found.rules.iter().find(|look| look.why.starts_with("pages held back: ")).unwrap();
    assert_eq!((held.rule.as_str(), held.outcome), ("silence", Outcome::HeldBack), "{held:#?}");
}

#[test]
fn no_receiver_at_all_is_no_answer_about_a_healthy_host() {
    let none = || Policy { receivers: Vec::new(), ..policy() };
    let fleet = ran_under(none(), "0 connect a\n20 end");
    let found = ask(fleet.machine.state(), fleet.now, "a");
    assert!(found.answer.contains("nothing was wrong"), "{}", found.answer);
    let fleet = ran_under(none(), "0 connect a\n1 open a spl x port_closed\n20 end");
    let found = ask(fleet.machine.state(), fleet.now, "a");
    assert!(found.answer.contains("no receiver is configured"), "{}", found.answer);
}

#[test]
fn a_service_that_nobody_told_of_is_doubted_and_one_that_was_is_not() {
    let fleet = ran("0 connect a b\n1 open a spl x port_closed sev4\n2 occur b web update_failed 0\n20 end");
    let ask = |service: &str| {
        let (name, service) = (agent("a"), ServiceName::new(service).unwrap());
        let asked = Asked { agent: &name, at: fleet.now, service: Some(&service), last_heard: None, is_past: false };
        why_not(fleet.machine.state(), &asked).unwrap().answer
    };
    let doubted = "nobody was paged about a: a has not told of a service \"web\": hosts tell only of what is wrong, so it \
                   is well or the name is misspelt (told of lately: spl)";
    assert_eq!(ask("web"), doubted);
    assert!(ask("spl").contains("nothing reached its threshold"), "{}", ask("spl"));
    let of_fleet = |service| unheard_service(fleet.machine.state(), None, service);
    assert_eq!((of_fleet("web"), of_fleet("spl")), (None, None));
    assert!(of_fleet("wbe").unwrap().starts_with("no host has told of a service \"wbe\""));
}

/// What went into the incident of many hosts names it, also where the host never had one of its own.
#[test]
fn what_was_taken_in_names_the_incident_that_tells_it() {
    let mut script = "0 connect a b c d\n".to_owned();
    for (n, host) in ["b", "c", "d", "a"].iter().enumerate() {
        script += &format!("{} occur {host} spl oom_kill 0\n", 10 + n);
    }
    let fleet = ran(&(script + "60 end"));
    let storm = &fleet.machine.state().newest_incident("fleet/oom_storm/spl").unwrap().number;
    for host in ["a", "b"] {
        let found = ask(fleet.machine.state(), fleet.now, host);
        let kill = look(&found, "oom_kill", "oom/");
        let key =
            &fleet.machine.state().recent_occurrences().find(|seen| seen.agent == agent(host)).unwrap().finding.key;
        let told = taken_in_by(fleet.machine.state(), &agent(host), key).map(|incident| &incident.number);
        assert_eq!(told, Some(storm), "as the list of findings has it");
        assert!(kill.why.contains(storm.as_str()), "{kill:#?}");
        let open = format!("; {storm} is open");
        assert!(found.rules.iter().any(|look| look.rule == "oom_storm" && look.why.ends_with(&open)), "{found:#?}");
    }
}

/// The relapses of what was paged page nobody again: damping says that it does so, since when and until when.
#[test]
fn what_flaps_is_said_to_and_until_when() {
    let comes_and_goes =
        |second: u64| format!("{second} open a spl x process_down\n{} clear a spl x process_down\n", second + 20);
    let mut fleet = ran(&format!("0 connect a\n{}{}", comes_and_goes(1000), comes_and_goes(1100)));
    let key = "host/a/service/spl";
    let found = ask(fleet.machine.state(), fleet.now, "a");
    let below = look(&found, "flapping", key);
    assert_eq!((below.outcome, below.why.contains("20 %")), (Outcome::NothingSeen, true), "{below:#?}");
    assert!(below.why.ends_with("it would flap from 30 % on"), "{}", below.why);
    comes_and_goes(1200).lines().for_each(|line| fleet.run_line(line));
    let found = ask(fleet.machine.state(), fleet.now, "a");
    let flaps = look(&found, "flapping", key);
    assert_eq!((flaps.outcome, flaps.held_back_by.as_str()), (Outcome::HeldBack, "flapping"), "{flaps:#?}");
    assert_eq!((flaps.figures[0].value.as_str(), flaps.figures[0].threshold.as_str()), ("30 %", "30 %"));
    // Of the six changes two may stay within the last ten minutes: the fourth came at 1120.
    let calm = Timestamp::from_unix_ms(START_UNIX_MS) + Duration::from_secs(1720);
    assert!(flaps.why.ends_with(&format!("until it is calm, at {calm} if it changes no more")), "{}", flaps.why);
    assert!(found.answer.contains("somebody was paged about a"), "{}", found.answer);
    fleet.run_line("1721 end");
    let found = ask(fleet.machine.state(), fleet.now, "a");
    assert!(!found.rules.iter().any(|look| look.held_back_by == "flapping"), "{found:#?}");
}

/// Long after its stability window an incident says why it is not over.
#[test]
fn what_recovers_says_what_it_waits_for() {
    let told = |fleet: &Fleet, cause: &str| {
        let state = fleet.machine.state();
        let incident = state.newest_incident(cause).unwrap();
        let explained = why(state, incident, fleet.now);
        let waits = waits_for(state, incident, fleet.now).unwrap_or_default();
        assert!(waits.is_empty() || explained.answer.ends_with(&format!("; {waits}")), "{explained:#?}");
        let lines: Vec<String> = incident.timeline.iter().map(|line| line.text.clone()).collect();
        (waits, lines.join("\n"))
    };
    let spl = "host/a/service/spl";
    let mut fleet = ran("0 connect a\n1 open a spl x port_closed\n20 clear a spl x port_closed\n30 end");
    let (waits, _) = told(&fleet, spl);
    assert!(waits.starts_with("it is resolved at ") && waits.ends_with(" if nothing of it comes back"), "{waits}");
    // Nobody hears the host: the window stands still.
    fleet.run_line("80 gone a");
    let (waits, timeline) = told(&fleet, spl);
    assert_eq!(waits, "its stability window stands still, 14 min of it are left: a is not heard");
    let expected = "stability: its window stands still, 14 min of it are left: how things are on a is not known";
    assert!(timeline.ends_with(expected), "{timeline}");
    for second in [90, 100, 110, 120] {
        fleet.run_line(&format!("{second} connect a"));
        fleet.run_line(&format!("{} gone a", second + 5));
    }
    let (_, timeline) = told(&fleet, spl);
    assert_eq!(timeline.matches("stability: ").count(), 2, "one round is told: {timeline}");
    assert!(timeline.contains("stability: its window runs again, 14 min of it are left"), "{timeline}");
    // It flaps: that it is well is not believed although the window is over.
    let mut policy = policy();
    policy.stability.sev2 = Duration::from_secs(60);
    let mut fleet = ran_under(policy, "0 connect a");
    for second in (0..8).map(|n| 10 + n * 20) {
        fleet.run_line(&format!("{second} open a spl x port_closed"));
        fleet.run_line(&format!("{} clear a spl x port_closed", second + 10));
    }
    fleet.run_line("300 end");
    let (waits, timeline) = told(&fleet, spl);
    assert!(waits.starts_with("it flaps, it changed at ") && waits.contains("is not believed before "), "{waits}");
    assert!(timeline.contains("stability: its window is over, but it flaps: it counts as well at "), "{timeline}");
    let looks = why(fleet.machine.state(), fleet.machine.state().newest_incident(spl).unwrap(), fleet.now);
    assert_eq!(looks.rules.iter().filter(|look| look.held_back_by == "flapping").count(), 1, "{looks:#?}");
    // A storm that is open for its dead.
    let mut script = "0 connect a b c\n".to_owned();
    for (second, host) in [(20, "a"), (21, "b"), (22, "c")] {
        script.push_str(&format!("{second} occur {host} spl process_restarted 0\n"));
    }
    let fleet = ran(&(script + "30 open b spl it process_down\n2000 end"));
    let (waits, _) = told(&fleet, "fleet/restart_storm/spl");
    assert!(waits.contains("stays open for what fell in it and is down: b"), "{waits}");
    // What is plainly open waits for nothing but its end.
    let fleet = ran("0 connect a\n1 open a spl x port_closed\n20 end");
    assert_eq!(told(&fleet, spl).0, "");
}

/// A restart that was counted for no storm is said to be a repair, and why.
#[test]
fn a_repair_is_named() {
    let fleet = ran("0 connect a\n20 occur a spl process_restarted 0 gap=390 lived=86400\n30 end");
    let found = ask(fleet.machine.state(), fleet.now, "a");
    let repair = look(&found, "process_restarted", "a/spl");
    assert!(repair.why.contains("a repair, which counts for no storm of many hosts"), "{}", repair.why);
    assert!(repair.why.contains("it ended 6 min of being down, and had run for 24 h"), "{}", repair.why);
}

/// So is one that somebody asked for.
#[test]
fn an_orderly_restart_is_named() {
    let fleet = ran("0 connect a\n20 occur a spl process_restarted 0 gap=2 lived=86400 ended=SIGTERM\n30 end");
    let found = ask(fleet.machine.state(), fleet.now, "a");
    let orderly = look(&found, "process_restarted", "a/spl");
    assert!(orderly.why.contains("an orderly restart, which counts for no storm of many hosts"), "{}", orderly.why);
    assert!(orderly.why.contains("it ended with SIGTERM after 24 h"), "{}", orderly.why);
}

/// How a process ended is news that comes a moment later: it is in the title also where no page has told it.
#[test]
fn a_title_has_the_newest_news_while_nobody_was_told() {
    let mut fleet = ran("0 connect a\n1 silence 600 agent=a\n2 open a spl it process_down");
    let worse = Finding::new(key("spl", "it", Reason::ProcessDown), "spl ended with exit code 3");
    fleet.event(&agent("a"), FindingEvent::Updated(worse), Duration::ZERO);
    let now = |fleet: &Fleet| {
        let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
        (title(fleet.machine.state(), incident, fleet.now), incident.title.clone())
    };
    let (told, first) = now(&fleet);
    assert!(told.ends_with("spl ended with exit code 3") && !first.contains("exit code"), "{told}: {first}");
    // From the first page on it is the one that was told.
    fleet.run_line("700 end");
    let again = Finding::new(key("spl", "it", Reason::ProcessDown), "spl ended with exit code 4");
    fleet.event(&agent("a"), FindingEvent::Updated(again), Duration::ZERO);
    assert!(!now(&fleet).0.contains("exit code 4"), "{}", now(&fleet).0);
}

#[test]
fn matchers_that_fit_nothing_known_are_doubted() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 label a zone=east\n0 connect a\n1 open a spl x port_closed\n2 end");
    let one = |text: &str| [text.to_owned()].into();
    let doubts = |matchers: Matchers| fits_nothing(fleet.machine.state(), &matchers);
    let known = Matchers {
        labels: [("zone".to_owned(), "ea*".to_owned())].into(),
        services: one("sp*"),
        causes: one("host/a/*"),
        ..Matchers::default()
    };
    assert_eq!(doubts(known), Vec::<String>::new());
    let label = doubts(Matchers { labels: [("zone".to_owned(), "west".to_owned())].into(), ..Matchers::default() });
    assert_eq!(label, ["no agent that is known now has the label zone=west: there are: east"]);
    let label = doubts(Matchers { labels: [("rack".to_owned(), "1".to_owned())].into(), ..Matchers::default() });
    assert_eq!(label, ["no agent that is known now has the label rack=1: no agent has that label"]);
    let service = doubts(Matchers { services: ["slp".to_owned(), "q*".to_owned()].into(), ..Matchers::default() });
    assert!(service[0].contains("fits \"q*\"") && service[1].contains("told of lately: spl"), "{service:?}");
    let known = Matchers { agents: ["a*".to_owned(), "b".to_owned()].into(), ..Matchers::default() };
    assert_eq!(doubts(known), Vec::<String>::new(), "a plain name is asked about by whoever gives it");
    let agent = doubts(Matchers { agents: one("zz*"), ..Matchers::default() });
    assert_eq!(agent, ["no agent that is known now fits \"zz*\": see musterctl agents list"]);
    let cause = doubts(Matchers { causes: one("host/b/*"), ..Matchers::default() });
    assert!(cause[0].starts_with("no cause that is known now fits \"host/b/*\""), "{cause:?}");
}

/// Kills of what nobody watches are of no service.
#[test]
fn a_storm_of_unwatched_kills_is_said_to_be_one() {
    let mut script = "0 connect a b c\n".to_owned();
    for (second, host) in [(20, "a"), (21, "b"), (22, "c")] {
        script.push_str(&format!("{second} occur {host} host oom_kill 0\n"));
    }
    let fleet = ran(&(script + "60 end"));
    let storm = fleet.machine.state().newest_incident("fleet/oom_storm/host").unwrap();
    assert!(storm.why.starts_with("OOM kills of unwatched processes on at least 3 hosts"), "{}", storm.why);
}

/// Each restart names the storm that counted it, also when that is over; a repair is of none.
#[test]
fn what_a_storm_counted_names_it() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a b c d");
    for (second, host) in [(20, "a"), (21, "b"), (22, "c")] {
        fleet.run_line(&format!("{second} occur {host} spl process_restarted 0"));
    }
    fleet.run("25 open b spl it process_down\n26 occur d spl process_restarted 0 gap=390 lived=86400\n30 end");
    let told = |fleet: &Fleet| -> Vec<String> {
        let state = fleet.machine.state();
        let number = |name: &AgentName, finding: &Finding, received| {
            incident_of(state, name, finding, received).map_or("none".to_owned(), |incident| incident.key.cause.clone())
        };
        let happened = state.recent_occurrences().map(|seen| number(&seen.agent, &seen.finding, seen.received));
        happened.chain(state.open_findings().map(|(name, open)| number(name, &open.finding, open.received))).collect()
    };
    let storm = "fleet/restart_storm/spl";
    assert_eq!(told(&fleet), [storm, storm, storm, "none", storm]);
    fleet.run("40 clear b spl it process_down\n9000 end");
    assert!(!fleet.machine.state().newest_incident(storm).unwrap().is_unresolved());
    assert_eq!(told(&fleet), [storm, storm, storm, "none"]);
}

/// What is newest is what is asked about, whatever the order of the causes' names.
#[test]
fn the_answer_is_about_the_newest_that_is_open() {
    let old = "0 connect a
               1 open a app x port_closed
               20 ack host/a/service/app
               21 severity host/a/service/app sev4
               300 open a spl y process_down";
    let answer = |script: &str| {
        let fleet = ran(script);
        let number = |cause: &str| fleet.machine.state().newest_incident(cause).unwrap().number.clone();
        let numbers = (number("host/a/service/app"), number("host/a/service/spl"));
        (ask(fleet.machine.state(), fleet.now, "a").answer, numbers)
    };
    let (held, (_, newest)) = answer(&format!("{old}\n301 end"));
    assert!(held.starts_with(&format!("nobody was paged about a: {newest}: ")), "{held}");
    assert!(held.contains("it waits until"), "{held}");
    let (paged, (_, newest)) = answer(&format!("{old}\n320 end"));
    assert!(paged.starts_with(&format!("somebody was paged about a: {newest}: ")), "{paged}");
    // Equally new: the worst.
    let script = "0 connect a\n1 open a app x port_closed sev3\n1 open a spl y process_down sev2\n100 end";
    let (worst, (_, spl)) = answer(script);
    assert!(worst.starts_with(&format!("somebody was paged about a: {spl}: ")), "{worst}");
    // It was newest, and is over: what is open comes first.
    let (open, (app, _)) = answer(&format!("{old}\n320 clear a spl y process_down\n5000 end"));
    assert!(open.starts_with(&format!("somebody was paged about a: {app}: ")), "{open}");
}

/// It was held as what it was then.
#[test]
fn a_hold_is_that_of_the_severity_that_was_paged() {
    let fleet = ran("0 connect a\n1 open a spl x port_closed\n20 severity host/a/service/spl sev4\n60 end");
    let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
    assert_eq!(incident.severity.to_string(), "sev4");
    let found = why(fleet.machine.state(), incident, fleet.now);
    let hold = look(&found, "hold", "host/a/service/spl");
    assert_eq!((hold.figures[0].value.as_str(), hold.figures[0].threshold.as_str()), ("10 s", "10 s"), "{hold:#?}");
}
