//! Scenarios as data: a script of what happens, a list of what must follow, one `check`.
//!
//! ```text
//! SECONDS COMMAND
//!   connect A...            stream begins               goodbye A / gone A     stream ends
//!   silent A... HOW         goodbye|reset|nothing|not_reheard                  heard A...
//!   open A SERVICE SUBJECT REASON [sevN]                clear A SERVICE SUBJECT REASON
//!   occur A SERVICE REASON AGO_SECONDS [estimated]      differs A / resync A SERVICE SUBJECT ok|unknown
//!     [sha256=HASH|version=V: the build that it happened to] [gap=SECONDS down before a restart] [lived=SECONDS the
//!     life before it] [ended=SIGNAL|exit_code_N] [automatic: systemd restarted it]
//!   address A IP / boot A N (at its next connect)
//!   ack CAUSE / resolve CAUSE / note CAUSE              restart / takeover / pause / fence
//!   severity CAUSE sevN / commander CAUSE NAME          label A KEY=VALUE (at its next connect)
//!   silence SECONDS KIND=PATTERN...                     maintenance IN_SECONDS SECONDS KIND=PATTERN...
//!   expire N (the Nth silence of the script, from 1)    KIND: agent|label.NAME|service|reason|cause
//!   pager down|up           end
//! ```
//!
//! What follows is told as `SECONDS opened|page|cancelled|quiet|silenced|escalated|by hand|recovering|relapsed|resolved|
//! folded|merged|changed ...`.
//! After the script the journal is applied from genesis and its facts are replayed: both must agree with what ran.

use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{AgentName, BootId, CoordinatorId, Epoch, FleetName, ServiceName, SpoolId};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{
    AgentHello, Conclusion, Disconnect, Entry, EntryBody, Fact, OperatorAction, Resolution, Silence, SubjectState,
};
use muster_coordinator_core::page::{Page, PageId};
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::silence::{Matchers, SilenceKind};
use muster_coordinator_core::{Machine, State, apply, invariants, next_deadline, replay};
use std::collections::BTreeMap;
use std::time::Duration;

/// Second 0 of every script.
pub const START_UNIX_MS: i64 = 1_795_220_000_000;

/// A machine, its journal and what the script needs.
#[derive(Debug)]
pub struct Fleet {
    /// The rules.
    pub machine: Machine,
    /// Everything written.
    pub journal: Vec<Entry>,
    /// Now.
    pub now: Timestamp,
    sequences: BTreeMap<AgentName, u64>,
    labels: BTreeMap<AgentName, BTreeMap<String, String>>,
    addresses: BTreeMap<AgentName, String>,
    boots: BTreeMap<AgentName, u64>,
    silences: Vec<u64>,
    pager_up: bool,
}

/// The name, or a panic that shows it: scripts are written by us.
pub fn agent(name: &str) -> AgentName {
    AgentName::new(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn coordinator(name: &str) -> CoordinatorId {
    CoordinatorId::new(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Which probe finds a reason, near enough for a script.
fn probe_of(reason: Reason) -> ProbeKind {
    let code = reason.as_str();
    match () {
        () if code.starts_with("port") || code.starts_with("health") => ProbeKind::Port,
        () if code.starts_with("memory") => ProbeKind::Memory,
        () if code.starts_with("oom") => ProbeKind::Oom,
        () if code.starts_with("sqlite") || code.starts_with("lock") => ProbeKind::Sqlite,
        () => ProbeKind::PidFile,
    }
}

/// Identity of a finding.
pub fn key(service: &str, subject: &str, reason: Reason) -> FindingKey {
    let service = ServiceName::new(service).unwrap_or_else(|error| panic!("{service}: {error}"));
    FindingKey { subject: SubjectKey::new(service, probe_of(reason), subject), reason }
}

/// What an agent says when it connects.
pub fn hello(name: &str) -> AgentHello {
    AgentHello {
        host_name: name.to_owned(),
        agent_version: "0.1.0".to_owned(),
        os_version: "test".to_owned(),
        kernel_version: "6.0".to_owned(),
        boot_id: None,
        labels: BTreeMap::new(),
        peer_address: address_of(name).to_string(),
        spool: SpoolId::default_of(name),
        listening_ports: vec![22],
    }
}

/// An address in 10.0.0.0/8 made from the name: each name another one, near enough.
fn address_of(name: &str) -> std::net::Ipv4Addr {
    let number = name.bytes().fold(7_u32, |number, byte| number.wrapping_mul(31).wrapping_add(byte.into()));
    std::net::Ipv4Addr::from_bits((10 << 24) | (number % (1 << 24)))
}

/// Spool ids made from names.
trait DefaultOf {
    fn default_of(name: &str) -> Self;
}

impl DefaultOf for SpoolId {
    fn default_of(name: &str) -> Self {
        let mut bytes = [7u8; 16];
        for (slot, byte) in bytes.iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        serde_json::from_value(serde_json::Value::String(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        ))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// Whose pages a log tells. What each of the others was told is compared with it.
const RECEIVER: &str = "ops";

/// The policy of the scripts: the default with two receivers.
pub fn policy() -> Policy {
    Policy { receivers: vec![RECEIVER.to_owned(), "chat".to_owned()], ..Policy::default() }
}

impl Fleet {
    /// A coordinator that has just started, its re-hear window over at second 0.
    pub fn new(policy: Policy) -> Self {
        let start = Timestamp::from_unix_ms(START_UNIX_MS) - Duration::from_secs(3600);
        let mut fleet = Self {
            machine: Machine::new(State::genesis()),
            journal: Vec::new(),
            now: start,
            sequences: BTreeMap::new(),
            labels: BTreeMap::new(),
            addresses: BTreeMap::new(),
            boots: BTreeMap::new(),
            silences: Vec::new(),
            pager_up: true,
        };
        let epoch = Epoch { number: 1, coordinator: coordinator("coord-a") };
        let name = FleetName::new("test").unwrap_or_else(|error| panic!("{error}"));
        let id = coordinator("coord-a");
        fleet.feed(Fact::Started { coordinator: id, fleet: name, version: "0.1.0".to_owned(), epoch });
        fleet.feed(Fact::PolicyLoaded { policy: Box::new(policy) });
        fleet.advance(Timestamp::from_unix_ms(START_UNIX_MS));
        fleet
    }

    /// Feeds a fact now, and lets the pager work.
    pub fn feed(&mut self, fact: Fact) {
        let entries = self.machine.feed(self.now, fact);
        self.journal.extend(entries);
        self.inspect();
        self.deliver();
    }

    /// Lets time pass; each deadline runs at its time.
    pub fn advance(&mut self, to: Timestamp) {
        while let Some((due, _)) = next_deadline(self.machine.state()).filter(|(due, _)| *due <= to) {
            self.now = self.now.max(due);
            let entries = self.machine.run_deadlines(self.now);
            assert!(!entries.is_empty() || self.machine.state().fenced_by().is_some(), "a deadline did not run");
            if entries.is_empty() {
                break;
            }
            self.journal.extend(entries);
            self.inspect();
            self.deliver();
        }
        self.now = self.now.max(to);
    }

    fn inspect(&self) {
        let found = invariants::check(self.machine.state());
        assert!(found.is_empty(), "{found:#?}\n{}", self.log());
    }

    fn deliver(&mut self) {
        while self.pager_up {
            let ids: Vec<_> = self.machine.state().sendable_pages().iter().map(|record| record.id).collect();
            let Some(page) = ids.first().copied() else { break };
            for fact in [Fact::PageAttempted { page }, Fact::PageDelivered { page }] {
                let entries = self.machine.feed(self.now, fact);
                self.journal.extend(entries);
            }
            self.inspect();
        }
    }

    /// An event of an agent, observed `ago` before now.
    pub fn event(&mut self, name: &AgentName, event: FindingEvent, ago: Duration) {
        self.told_by_agent(name, event, ago, false);
    }

    fn told_by_agent(&mut self, name: &AgentName, event: FindingEvent, ago: Duration, estimated: bool) {
        let sequence = self.sequences.entry(name.clone()).or_default();
        *sequence += 1;
        let position =
            Position { spool: SpoolId::default_of(name.as_str()), sequence: *sequence, hash: EntryHash([1; 16]) };
        let observed = self.now - ago;
        self.feed(Fact::FindingReceived { agent: name.clone(), position, observed, estimated, event });
    }

    /// Runs a script, and checks nothing of what follows.
    pub fn run(&mut self, script: &str) {
        lines(script).iter().for_each(|line| self.run_line(line));
    }

    /// Runs one line of a script.
    pub fn run_line(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (second, rest) = words.split_first().unwrap_or_else(|| panic!("empty line"));
        let second: u64 = second.parse().unwrap_or_else(|_| panic!("no second in {line:?}"));
        self.advance(Timestamp::from_unix_ms(START_UNIX_MS) + Duration::from_secs(second));
        self.command(rest, line);
    }

    fn command(&mut self, words: &[&str], line: &str) {
        match words {
            ["connect", names @ ..] => {
                for name in names {
                    let hello = self.hello_of(name);
                    self.feed(Fact::AgentConnected { agent: agent(name), hello: hello.into() });
                }
            }
            ["goodbye", name] => self.feed(Fact::AgentDisconnected { agent: agent(name), how: Disconnect::Goodbye }),
            ["gone", name] => self.feed(Fact::AgentDisconnected { agent: agent(name), how: Disconnect::Reset }),
            ["silent", names @ .., how] => {
                let silence: Silence = parse(how);
                let last_heard = self.now - Duration::from_secs(15);
                for name in names {
                    self.feed(Fact::AgentSilent { agent: agent(name), last_heard, silence });
                }
            }
            ["heard", names @ ..] => names.iter().for_each(|name| self.feed(Fact::AgentHeard { agent: agent(name) })),
            ["open", name, service, subject, reason, more @ ..] => {
                let finding = finding(service, subject, reason, more.first().copied());
                self.event(&agent(name), FindingEvent::Opened(finding), Duration::ZERO);
            }
            ["clear", name, service, subject, reason] => {
                let key = key(service, subject, parse(reason));
                let event = FindingEvent::Cleared { key, summary: "well".to_owned(), evidence: Default::default() };
                self.event(&agent(name), event, Duration::ZERO);
            }
            ["occur", name, service, reason, ago, more @ ..] => {
                let ago = Duration::from_secs(ago.parse().unwrap_or_else(|_| panic!("no number in {line:?}")));
                let evidence = more.iter().fold(Evidence::new(), |evidence, word| proven(evidence, word, line));
                let finding = finding(service, "it", reason, None).evidence(evidence);
                self.told_by_agent(&agent(name), FindingEvent::Occurred(finding), ago, more == ["estimated"]);
            }
            ["differs", name] => self.feed(Fact::DigestDiffers { agent: agent(name) }),
            ["resync", name, service, subject, probe, verdict] => {
                let probe: ProbeKind = parse(probe);
                let service = ServiceName::new(*service).unwrap_or_else(|error| panic!("{line}: {error}"));
                let subject = SubjectKey::new(service, probe, subject);
                let subjects = vec![SubjectState { subject, ok: (*verdict == "ok").then_some(true), open: Vec::new() }];
                self.feed(Fact::OpenSetReceived { agent: agent(name), subjects });
            }
            [verb @ ("ack" | "resolve" | "note"), cause] => self.operator(verb, cause, ""),
            [verb @ ("severity" | "commander"), cause, what] => self.operator(verb, cause, what),
            ["label", name, label] => {
                let (key, value) = label.split_once('=').unwrap_or_else(|| panic!("no label in {line:?}"));
                let labels = self.labels.entry(agent(name)).or_default();
                labels.insert(key.to_owned(), value.to_owned());
            }
            ["address", name, ip] => drop(self.addresses.insert(agent(name), format!("{ip}:4000"))),
            ["boot", name, nth] => {
                let nth: u64 = nth.parse().unwrap_or_else(|_| panic!("no number in {line:?}"));
                self.boots.insert(agent(name), nth);
            }
            ["silence", length, matchers @ ..] => self.silence(SilenceKind::Silence, "0", length, matchers),
            ["maintenance", within, length, matchers @ ..] => {
                self.silence(SilenceKind::Maintenance, within, length, matchers);
            }
            ["expire", nth] => {
                let nth: usize = nth.parse().unwrap_or_else(|_| panic!("no number in {line:?}"));
                let index = self.silences[nth - 1];
                self.feed(Fact::SilenceExpired { by: "bob".to_owned(), index });
            }
            _ => self.own_life(words, line),
        }
    }

    fn hello_of(&self, name: &str) -> AgentHello {
        let mut hello = hello(name);
        let name = agent(name);
        hello.labels = self.labels.get(&name).cloned().unwrap_or_default();
        hello.boot_id = self.boots.get(&name).map(|nth| BootId(uuid::Uuid::from_u64_pair(1, *nth)));
        if let Some(address) = self.addresses.get(&name) {
            hello.peer_address.clone_from(address);
        }
        hello
    }

    fn own_life(&mut self, words: &[&str], line: &str) {
        let epoch = |number: u64, name: &str| Epoch { number, coordinator: coordinator(name) };
        match words {
            ["restart"] => self.feed(Fact::Started {
                coordinator: coordinator("coord-a"),
                fleet: FleetName::new("test").unwrap_or_else(|error| panic!("{error}")),
                version: "0.1.0".to_owned(),
                epoch: epoch(1, "coord-a"),
            }),
            ["takeover"] => self.feed(Fact::TookOver {
                epoch: epoch(2, "coord-b"),
                from: Some(coordinator("coord-a")),
                by: "ops".to_owned(),
                reason: "drill".to_owned(),
                overridden: Vec::new(),
            }),
            ["pause"] => self.feed(Fact::Paused { gap_ms: 60_000 }),
            ["fence"] => self.feed(Fact::EpochHeard { epoch: epoch(9, "coord-z"), from: "test".to_owned() }),
            ["pager", "down"] => self.pager_up = false,
            ["pager", "up"] => {
                self.pager_up = true;
                self.deliver();
            }
            ["panicked"] => self.feed(Fact::DecidePanicked { entry: 1, message: "index out of range".to_owned() }),
            ["conflict", name] => self.feed(Fact::IdentityConflict {
                agent: agent(name),
                holder: "10.0.0.1:1".to_owned(),
                refused: "10.0.0.2:1".to_owned(),
            }),
            ["end"] => {}
            _ => panic!("unknown command {line:?}"),
        }
    }

    fn silence(&mut self, kind: SilenceKind, within: &str, length: &str, patterns: &[&str]) {
        let seconds = |text: &str| Duration::from_secs(text.parse().unwrap_or_else(|_| panic!("no number: {text}")));
        let starts = self.now + seconds(within);
        let mut matchers = Matchers::default();
        for pattern in patterns {
            let (kind, value) = pattern.split_once('=').unwrap_or_else(|| panic!("no pattern: {pattern}"));
            let value = value.to_owned();
            match kind.strip_prefix("label.") {
                Some(name) => drop(matchers.labels.insert(name.to_owned(), value)),
                None => {
                    let place = match kind {
                        "agent" => &mut matchers.agents,
                        "service" => &mut matchers.services,
                        "reason" => &mut matchers.reasons,
                        "cause" => &mut matchers.causes,
                        _ => panic!("unknown kind of pattern: {pattern}"),
                    };
                    place.insert(value);
                }
            }
        }
        let (by, reason, ends) = ("bob".to_owned(), "work".to_owned(), starts + seconds(length));
        self.feed(Fact::SilenceSet { by, kind, matchers, reason, starts, ends });
        let made = self.machine.state().silences().map(|(index, _)| index).max();
        self.silences.push(made.unwrap_or_else(|| panic!("no silence came of {patterns:?}")));
    }

    fn operator(&mut self, verb: &str, cause: &str, what: &str) {
        let generation = self.machine.state().newest_incident(cause).map_or(0, |incident| incident.key.generation);
        let action = match verb {
            "ack" => OperatorAction::Acknowledge { note: String::new() },
            "resolve" => OperatorAction::Resolve { summary: "done".to_owned() },
            "severity" => OperatorAction::SetSeverity {
                severity: what.parse().unwrap_or_else(|error| panic!("{what}: {error}")),
                note: "as it is".to_owned(),
            },
            "commander" => OperatorAction::SetCommander { commander: what.to_owned() },
            _ => OperatorAction::Note { text: "noted".to_owned() },
        };
        self.feed(Fact::Operator { by: "ann".to_owned(), cause: cause.to_owned(), generation, action });
    }

    /// Every page that was requested, of all receivers, the oldest first.
    pub fn pages(&self) -> impl DoubleEndedIterator<Item = (PageId, &Page)> {
        self.journal.iter().filter_map(|entry| match &entry.body {
            EntryBody::Conclusion(Conclusion::PageRequested { page, .. }) => Some((PageId(entry.index), page.as_ref())),
            _ => None,
        })
    }

    /// What followed, one line each; of the pages those of one receiver.
    pub fn log(&self) -> String {
        self.told(RECEIVER, |_| true).join("\n")
    }

    /// Conclusions that `counts` about no page, or about one of the receiver's.
    fn told(&self, receiver: &str, counts: impl Fn(&Conclusion) -> bool) -> Vec<String> {
        let start = Timestamp::from_unix_ms(START_UNIX_MS);
        let mut receivers: BTreeMap<PageId, &str> = BTreeMap::new();
        let mut lines = Vec::new();
        for entry in &self.journal {
            let EntryBody::Conclusion(conclusion) = &entry.body else { continue };
            let whose = match conclusion {
                Conclusion::PageRequested { page, .. } => {
                    receivers.insert(PageId(entry.index), &page.receiver);
                    Some(page.receiver.as_str())
                }
                Conclusion::PageCancelled { page, .. } => receivers.get(page).copied(),
                _ => Some(receiver),
            };
            if whose == Some(receiver)
                && counts(conclusion)
                && let Some(words) = told(conclusion)
            {
                lines.push(format!("{} {words}", entry.at.since(start).as_secs()));
            }
        }
        lines
    }

    /// Every receiver was told the same at the same time.
    fn check_receivers(&self) {
        let of_pages =
            |told: &Conclusion| matches!(told, Conclusion::PageRequested { .. } | Conclusion::PageCancelled { .. });
        let receivers = &self.machine.state().policy().receivers;
        for receiver in receivers {
            let (found, expected) = (self.told(receiver, of_pages), self.told(RECEIVER, of_pages));
            assert_eq!(found, expected, "{receiver} was told something else");
        }
    }

    /// The journal applied from genesis, and its facts replayed, agree with what ran.
    pub fn check_journal(&self) {
        let mut fresh = State::genesis();
        for entry in &self.journal {
            let broken = invariants::check_entry(&fresh, entry);
            assert!(broken.is_empty(), "{broken:#?}\n{entry:#?}\n{}", self.log());
            apply(&mut fresh, entry);
        }
        assert_eq!(json(&fresh), json(self.machine.state()), "the journal gives another state");
        let replayed = replay::verify(State::genesis(), &self.journal);
        let replayed = replayed.unwrap_or_else(|divergence| panic!("the replay diverges: {divergence:#?}"));
        assert_eq!(json(&replayed), json(self.machine.state()), "the replay gives another state");
        check_what_if(&self.journal);
    }
}

/// Under its own policy a journal pages and opens the same, from its beginning and from its middle; under a policy
/// without receivers it pages nobody. Of a journal with several policies, or with panics of rules that are not broken
/// here, nothing is known.
pub fn check_what_if(journal: &[Entry]) {
    let facts = |entry: &Entry| match &entry.body {
        EntryBody::Fact(fact) => Some(fact.clone()),
        _ => None,
    };
    let mut policies: Vec<Policy> = Vec::new();
    for fact in journal.iter().filter_map(facts) {
        match fact {
            Fact::PolicyLoaded { policy } if !policies.contains(&policy) => policies.push(*policy),
            Fact::DecidePanicked { .. } => return,
            _ => {}
        }
    }
    let [own] = policies.as_slice() else { return };
    let mut middle = State::genesis();
    // Between two thoughts: a fact is stored together with what followed from it.
    let begins = |entry: &Entry| entry.trace == entry.index && entry.index > journal.len() as u64 / 2;
    let end = journal.iter().position(begins).unwrap_or(journal.len());
    journal.iter().take(end).for_each(|entry| apply(&mut middle, entry));
    let same = replay::what_if(&State::genesis(), journal, own);
    let same = same.unwrap_or_else(|error| panic!("no comparison with itself: {error}"));
    assert!(same.is_same(), "the same policy concludes otherwise: {same:#?}");
    if middle.policy() == own {
        let rest = journal.get(end..).unwrap_or_default();
        let same = replay::what_if(&middle, rest, own).unwrap_or_else(|error| panic!("{error}"));
        assert!(same.is_same(), "from entry {end} on the same policy concludes otherwise: {same:#?}");
    }
    let nobody = Policy { receivers: Vec::new(), ..own.clone() };
    let quiet = replay::what_if(&State::genesis(), journal, &nobody).unwrap_or_else(|error| panic!("{error}"));
    assert!(quiet.added.is_empty() && quiet.moved.is_empty(), "nobody was paged: {quiet:#?}");
}

/// A state as its snapshot.
pub fn json(state: &State) -> String {
    serde_json::to_string(state).unwrap_or_else(|error| panic!("a state does not serialize: {error}"))
}

fn parse<T: serde::de::DeserializeOwned>(word: &str) -> T {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).unwrap_or_else(|error| panic!("{word}: {error}"))
}

fn finding(service: &str, subject: &str, reason: &str, severity: Option<&str>) -> Finding {
    let reason: Reason = parse(reason);
    let finding = Finding::new(key(service, subject, reason), &format!("{service}: {reason} of {subject}"));
    match severity {
        Some(severity) => finding.severity(severity.parse::<Severity>().unwrap_or_else(|error| panic!("{error}"))),
        None => finding,
    }
}

/// What a word of a script says of an occurrence, as agents prove it.
fn proven(evidence: Evidence, word: &str, line: &str) -> Evidence {
    let seconds = |text: &str| Duration::from_secs(text.parse().unwrap_or_else(|_| panic!("no number in {line:?}")));
    match word.split_once('=') {
        Some(("gap", down)) => evidence.duration("gap_ms", seconds(down)),
        Some(("lived", life)) => evidence.duration("old_lifetime_ms", seconds(life)),
        Some(("ended", how)) => evidence.text("exit_status", how.replace('_', " ")),
        Some((key, value)) => evidence.text(&format!("executable_{key}"), value),
        None if word == "automatic" => evidence.flag("automatic", true),
        None => evidence,
    }
}

fn told(conclusion: &Conclusion) -> Option<String> {
    Some(match conclusion {
        Conclusion::IncidentOpened { incident, severity, reason, .. } => {
            format!("opened {severity} {reason} {}#{}", incident.cause, incident.generation)
        }
        Conclusion::IncidentJoined { .. } => return None,
        Conclusion::IncidentChanged { incident, severity, reason, .. } => {
            format!("changed {severity} {reason} {}", incident.cause)
        }
        Conclusion::IncidentRecovering { incident, .. } => format!("recovering {}", incident.cause),
        Conclusion::IncidentRelapsed { incident, .. } => format!("relapsed {}", incident.cause),
        Conclusion::IncidentResolved { incident, resolution, .. } => match resolution {
            Resolution::FoldedInto { incident: target } => format!("folded {} into {}", incident.cause, target.cause),
            Resolution::MergedInto { incident: target } => format!("merged {} into {}", incident.cause, target.cause),
            Resolution::Operator { by, .. } => format!("resolved {} by {by}", incident.cause),
            Resolution::Evidence => format!("resolved {}", incident.cause),
        },
        Conclusion::PageRequested { page, .. } => {
            let late = page.late_by_ms.map(|ms| format!(" late {}", ms / 1000)).unwrap_or_default();
            format!("page {} {} {} {}{late}", page.action.as_str(), page.severity, page.reason, page.cause_key)
        }
        Conclusion::PageCancelled { .. } => "cancelled".to_owned(),
        Conclusion::SecondOpinionWanted { .. } => return None,
        Conclusion::SeveritySet { incident, severity, assessed, .. } => {
            format!("by hand {severity}, by the rules {assessed} {}", incident.cause)
        }
        Conclusion::IncidentEscalated { incident, count, .. } => format!("escalated {} {count}", incident.cause),
        Conclusion::IncidentSilenced { incident, .. } => format!("silenced {}", incident.cause),
        Conclusion::NotPaged { incident, why } => format!("quiet {}: {why}", incident.cause),
    })
}

/// Runs `script` under `policy` and compares everything that followed with `expected`.
pub fn check_under(policy: Policy, script: &str, expected: &str) -> Fleet {
    let mut fleet = Fleet::new(policy);
    fleet.run(script);
    let (found, expected) = (fleet.log(), lines(expected).join("\n"));
    assert_eq!(found, expected, "\nfound:\n{found}\n\nexpected:\n{expected}\n");
    fleet.check_receivers();
    fleet.check_journal();
    fleet
}

/// [`check_under`] the scripts' policy.
pub fn check(script: &str, expected: &str) -> Fleet {
    check_under(policy(), script, expected)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
