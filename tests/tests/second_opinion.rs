//! Before a silence is paged its neighbours are asked: who is asked about whom, what is not asked at all, what the page
//! says afterwards, which answers count.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use muster_common::ids::AgentName;
use muster_coordinator_core::entry::{AgentHello, Conclusion, EntryBody, Fact, Silence};
use muster_coordinator_core::policy::{Policy, SecondOpinionPolicy};
use muster_coordinator_core::second_opinion::{PeerAnswer, PortAnswer, PortOutcome};
use muster_tests::scenario::{Fleet, agent, hello, policy};
use std::net::IpAddr;
use std::time::Duration;

const MINUTE: u64 = 60;

/// One question, as it was concluded.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    index: u64,
    about: String,
    address: String,
    ports: Vec<u16>,
    askers: Vec<String>,
}

fn asked(fleet: &Fleet) -> Vec<Asked> {
    let questions = fleet.journal.iter().filter_map(|entry| match &entry.body {
        EntryBody::Conclusion(Conclusion::SecondOpinionWanted { agent, address, ports, askers, .. }) => Some(Asked {
            index: entry.index,
            about: agent.to_string(),
            address: address.to_string(),
            ports: ports.clone(),
            askers: askers.iter().map(ToString::to_string).collect(),
        }),
        _ => None,
    });
    questions.collect()
}

/// A fleet of `(name, address, zone)`, all heard, each listening on 22 and 443.
fn fleet_of(policy: Policy, agents: &[(&str, &str, &str)]) -> Fleet {
    let mut fleet = Fleet::new(policy);
    for (name, address, zone) in agents {
        connect(&mut fleet, name, address, zone, &[22, 443]);
    }
    fleet
}

fn connect(fleet: &mut Fleet, name: &str, address: &str, zone: &str, ports: &[u16]) {
    let hello = AgentHello {
        peer_address: (*address).to_owned(),
        labels: [("zone".to_owned(), (*zone).to_owned())].into(),
        listening_ports: ports.to_vec(),
        ..hello(name)
    };
    fleet.feed(Fact::AgentConnected { agent: agent(name), hello: hello.into() });
}

fn wait(fleet: &mut Fleet, seconds: u64) {
    fleet.advance(fleet.now + Duration::from_secs(seconds));
}

fn silent(fleet: &mut Fleet, name: &str) {
    let last_heard = fleet.now - Duration::from_secs(15);
    fleet.feed(Fact::AgentSilent { agent: agent(name), last_heard, silence: Silence::Nothing });
}

/// Every asker says `outcome` of 22.
fn answer(fleet: &mut Fleet, outcomes: &[PortOutcome]) {
    let question = asked(fleet).pop().unwrap();
    let answers = question.askers.iter().zip(outcomes).map(|(peer, outcome)| PeerAnswer {
        peer: AgentName::new(peer.as_str()).unwrap(),
        ports: vec![PortAnswer { port: 22, outcome: *outcome }],
        refused: None,
    });
    let answers = answers.collect();
    fleet.feed(Fact::SecondOpinion { agent: agent(&question.about), question: question.index, answers });
}

/// Title and steps of the newest page about a silence.
fn page(fleet: &Fleet) -> (String, Vec<String>) {
    let (_, page) = fleet.pages().next_back().unwrap();
    (page.title.clone(), page.next_steps.clone())
}

/// web-3 to web-5 are as near by label as web-2, and farther by address; db-1 is the nearest of another zone.
const FLEET: &[(&str, &str, &str)] = &[
    ("web-1", "10.0.1.1", "a"),
    ("web-2", "10.0.1.2", "a"),
    ("web-3", "10.0.2.3", "a"),
    ("web-4", "10.0.3.4", "a"),
    ("web-5", "10.9.0.5", "a"),
    ("db-1", "10.0.1.9", "b"),
    ("db-2", "10.0.1.8", "b"),
];

#[test]
fn those_who_share_most_and_are_nearest_are_asked_where_the_coordinator_saw_it() {
    let mut fleet = fleet_of(policy(), FLEET);
    silent(&mut fleet, "web-1");
    wait(&mut fleet, 9);
    assert_eq!(asked(&fleet), [], "silences that come together would be a mass");
    wait(&mut fleet, 1);
    let questions = asked(&fleet);
    assert_eq!(questions.len(), 1);
    assert_eq!(questions[0].askers, ["web-2", "web-3", "web-4"]);
    assert_eq!((questions[0].address.as_str(), questions[0].ports.as_slice()), ("10.0.1.1", &[22, 443][..]));
    answer(&mut fleet, &[PortOutcome::Open; 3]);
    wait(&mut fleet, MINUTE);
    let (title, steps) = page(&fleet);
    assert!(title.contains("the host answers on 22 from 3 peers: it lives, its agent is down"), "{title}");
    assert!(title.contains("last heard") && steps.iter().all(|step| !step.contains("ping")), "{title} {steps:?}");
    assert_eq!(asked(&fleet).len(), 1, "once");
    fleet.check_journal();
}

#[test]
fn the_page_says_what_the_answers_come_to() {
    use PortOutcome::{Open, Refused, Timeout, Unreachable};
    let check = |outcomes: &[PortOutcome], words: &str| {
        let mut fleet = fleet_of(policy(), FLEET);
        silent(&mut fleet, "web-1");
        wait(&mut fleet, 10);
        answer(&mut fleet, outcomes);
        wait(&mut fleet, MINUTE);
        let (title, steps) = page(&fleet);
        assert!(title.contains(words), "{outcomes:?}: {title}");
        assert!(!steps.is_empty());
        let incident = fleet.machine.state().newest_incident("host/web-1/agent").unwrap();
        assert!(incident.title.contains(words) && incident.why.contains("neighbours were asked"), "{}", incident.why);
        assert!(incident.timeline.iter().any(|line| line.text.contains("web-2")), "{:?}", incident.timeline);
        fleet.check_journal();
    };
    check(&[Open, Refused, Open], "the host answers on 22 from 3 peers");
    check(&[Refused, Refused, Refused], "the host answers from 3 peers that nothing listens there");
    check(&[Timeout, Unreachable, Timeout], "nobody reaches 10.0.1.1 (3 peers asked): the host or its network is down");
    check(&[Open, Timeout, Open], "peers disagree: 2 of 3 reach 10.0.1.1 on 22 (web-2, web-4), 1 does not (web-3)");
    check(&[Open], "the host answers on 22 from 1 peer");
    check(&[], "3 of its peers were asked whether the host answers, and none of them could say");
}

#[test]
fn a_mass_silence_asks_nobody() {
    let mut fleet = fleet_of(policy(), FLEET);
    silent(&mut fleet, "web-1");
    wait(&mut fleet, 4);
    silent(&mut fleet, "web-2");
    wait(&mut fleet, 4);
    silent(&mut fleet, "web-3");
    wait(&mut fleet, 2 * MINUTE);
    assert_eq!(asked(&fleet), []);
    assert!(page(&fleet).0.contains("fell silent together"));
    fleet.check_journal();
}

#[test]
fn nobody_is_asked_where_it_is_switched_off_or_there_is_nothing_to_ask() {
    let check = |policy: Policy, target: (&str, &[u16]), others: &[(&str, &str, &str)]| {
        let mut fleet = fleet_of(policy, others);
        connect(&mut fleet, "web-1", target.0, "a", target.1);
        silent(&mut fleet, "web-1");
        wait(&mut fleet, MINUTE);
        assert_eq!(asked(&fleet), [], "{target:?} {others:?}");
        assert!(page(&fleet).0.contains("agent web-1 says nothing"), "it is paged all the same");
        fleet.check_journal();
    };
    let others = &FLEET[1..];
    let off = SecondOpinionPolicy { enabled: false, ..SecondOpinionPolicy::default() };
    check(Policy { second_opinion: off, ..policy() }, ("10.0.1.1", &[22]), others);
    let mut at_once = policy();
    at_once.hold.sev3 = Duration::from_secs(3);
    check(at_once, ("10.0.1.1", &[22]), others);
    check(policy(), ("10.0.1.1", &[]), others);
    for nowhere in ["127.0.0.1", "::1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "", "local"] {
        check(policy(), (nowhere, &[22]), others);
    }
    // Several agents behind one address: whose host answers there is anybody's guess.
    check(policy(), ("10.0.1.2", &[22]), others);
    // No neighbour that could look: through a proxy on this very host, of another family, nobody at all.
    check(policy(), ("10.0.1.1", &[22]), &[("web-2", "127.0.0.1", "a"), ("web-3", "2001:db8::3", "a")]);
    check(policy(), ("10.0.1.1", &[22]), &[]);
}

#[test]
fn who_is_silent_or_gone_is_not_asked() {
    let mut fleet = fleet_of(policy(), FLEET);
    fleet.run_line("0 goodbye web-2");
    fleet.run_line("0 gone web-3");
    silent(&mut fleet, "web-1");
    wait(&mut fleet, 10);
    assert_eq!(asked(&fleet)[0].askers, ["web-4", "web-5", "db-1"]);
}

#[test]
fn answers_that_nobody_asked_for_or_that_come_late_do_not_count() {
    let open = |peer: &str, port: u16| PeerAnswer {
        peer: agent(peer),
        ports: vec![PortAnswer { port, outcome: PortOutcome::Open }],
        refused: None,
    };
    let fact =
        |question: u64, answers: Vec<PeerAnswer>| Fact::SecondOpinion { agent: agent("web-1"), question, answers };
    let mut fleet = fleet_of(policy(), FLEET);
    fleet.feed(fact(1, vec![open("web-2", 22)]));
    silent(&mut fleet, "web-1");
    wait(&mut fleet, 10);
    let index = asked(&fleet)[0].index;
    for (wrong, answers) in [(index + 1, vec![open("web-2", 22)]), (0, vec![])] {
        fleet.feed(fact(wrong, answers));
        let question = fleet.machine.state().second_opinion(&agent("web-1")).unwrap();
        assert_eq!(question.opinion, None, "{wrong}");
    }
    // Of one who was not asked, and about a port that was not asked about.
    fleet.feed(fact(index, vec![open("db-2", 22), open("web-3", 25)]));
    wait(&mut fleet, MINUTE);
    assert!(page(&fleet).0.contains("none of them could say"), "{}", page(&fleet).0);
    // The first answer counts, and after the page none does.
    let mut fleet = fleet_of(policy(), FLEET);
    silent(&mut fleet, "web-1");
    wait(&mut fleet, MINUTE);
    let before = (fleet.log(), page(&fleet));
    let index = asked(&fleet)[0].index;
    fleet.feed(fact(index, vec![open("web-2", 22)]));
    assert_eq!((fleet.log(), page(&fleet)), before);
    assert!(!before.1.0.contains("answers"), "{}", before.1.0);
    fleet.check_journal();
}

#[test]
fn questions_are_rare_per_target_per_asker_and_all_together() {
    let names: Vec<(String, String)> =
        (0..200).map(|n| (format!("n-{n:03}"), format!("10.1.{}.{}", n / 100, n % 100 + 1))).collect();
    let mut policy = policy();
    // The silences of this test are to stay single ones.
    (policy.liveness.mass_agents, policy.liveness.mass_share) = (10_000, 1.0);
    policy.correlation.incidents = 10_000;
    let mut fleet = Fleet::new(policy);
    for (name, address) in &names {
        // No label: those of one zone would be a mass of their own.
        let hello = AgentHello { peer_address: address.clone(), ..hello(name) };
        fleet.feed(Fact::AgentConnected { agent: agent(name), hello: hello.into() });
    }
    for (name, _) in names.iter().step_by(4) {
        silent(&mut fleet, name);
    }
    wait(&mut fleet, 30);
    let questions = asked(&fleet);
    assert!(questions.len() <= 32, "{}", questions.len());
    for (name, _) in &names {
        let times = questions.iter().filter(|question| question.askers.contains(name)).count();
        assert!(times <= 4, "{name} was asked {times} times");
        let about = questions.iter().filter(|question| question.about == *name).count();
        assert!(about <= 1, "{name} was asked about {about} times");
    }
    // Back and silent again at once: not looked for a second time.
    let target = questions[0].about.clone();
    fleet.feed(Fact::AgentHeard { agent: agent(&target) });
    silent(&mut fleet, &target);
    wait(&mut fleet, 30);
    assert_eq!(asked(&fleet).iter().filter(|question| question.about == target).count(), 1);
    fleet.check_journal();
}

#[test]
fn an_agent_that_comes_back_from_elsewhere_is_looked_for_there() {
    let mut fleet = fleet_of(policy(), FLEET);
    connect(&mut fleet, "web-1", "10.0.7.7", "a", &[2222]);
    silent(&mut fleet, "web-1");
    wait(&mut fleet, 10);
    let question = asked(&fleet).pop().unwrap();
    assert_eq!((question.address.as_str(), question.ports.as_slice()), ("10.0.7.7", &[2222][..]));
    assert!(question.address.parse::<IpAddr>().is_ok());
    fleet.feed(Fact::AgentHeard { agent: agent("web-1") });
    assert_eq!(fleet.machine.state().second_opinion(&agent("web-1")), None, "what was asked matters no more");
    fleet.check_journal();
}

/// The incident shows the steps that the page tells, and not those from before somebody looked.
#[test]
fn the_incidents_steps_are_those_of_the_opinion() {
    let mut fleet = fleet_of(policy(), FLEET);
    silent(&mut fleet, "web-1");
    wait(&mut fleet, 10);
    answer(&mut fleet, &[PortOutcome::Timeout; 3]);
    wait(&mut fleet, MINUTE);
    let incident = fleet.machine.state().newest_incident("host/web-1/agent").unwrap();
    assert!(incident.next_steps[0].starts_with("look at the power, console"), "{:?}", incident.next_steps);
    fleet.check_journal();
}
