//! Random fleets under all detectors: the invariants hold after every event (the scripts' fleet looks after each), a
//! symptom is folded exactly once, and what heals ends. `MUSTER_SEEDS=n` runs more, `MUSTER_SEED=n` one.

use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::entry::{AgentHello, Conclusion, EntryBody, Fact, IncidentKey, Resolution};
use muster_coordinator_core::policy::Policy;
use muster_tests::rng::Rng;
use muster_tests::scenario::{Fleet, agent, hello, key, policy};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Seeds of an ordinary run.
const SEEDS: u64 = 24;
const AGENTS: usize = 12;
const EVENTS: usize = 220;

/// What may be open: service, subject, reason.
const CONDITIONS: &[(&str, &str, &str)] = &[
    ("host", "memory", "memory_critical"),
    ("host", "stalls", "memory_pressure"),
    ("spl", "/hub.db", "sqlite_corrupt"),
    ("spl", "/hub.db", "sqlite_lock_held"),
    ("spl", "/v2/hub.db", "sqlite_not_a_database"),
    ("spl", "/run/spl.pid", "process_down"),
    ("spl", "/run/spl.pid", "probe_blind"),
    ("dba", "/a.db", "lock_contention"),
    ("dba", "/b.db", "lock_contention"),
    ("dba", "/c.db", "sqlite_lock_held"),
    ("job", "it", "duplicate_instance"),
];
/// What may happen: service, reason.
const OCCURRENCES: &[(&str, &str)] = &[
    ("spl", "process_restarted"),
    ("spl", "process_restarted"),
    ("spl", "oom_kill"),
    ("dba", "oom_kill"),
    ("host", "oom_kill"),
    ("spl", "timeout"),
    ("dba", "timeout"),
    ("spl", "permanent_error"),
    ("dba", "repo_locked"),
    ("spl", "install_failed"),
    ("spl", "update_failed"),
    ("dba", "update_rollback"),
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Thresholds that a small fleet reaches.
fn small() -> Policy {
    let mut policy = policy();
    let detect = &mut policy.detect;
    detect.memory_group.hosts = 5;
    detect.memory_group.place_hosts_min = 2;
    detect.probe_blind.hosts = 3;
    detect.oom_storm.hosts = 2;
    detect.oom_storm.kills = 4;
    detect.reason_widespread.hosts = 3;
    detect.mass_place.agents_min = 2;
    policy.lock_contention.host_subjects = 2;
    policy.signals.auth_abuse.refusals = 20;
    policy.correlation.incidents = 6;
    policy.signals.singleton.hold = Duration::from_secs(5);
    policy.signals.version_skew.versions = 1;
    policy.signals.version_skew.after = Duration::from_secs(60);
    // Builds differ to the end here: what heals is the agents' versions.
    policy.signals.version_skew.build_hosts = 100;
    policy
}

struct Host {
    silent: bool,
    runs: bool,
    open: BTreeSet<usize>,
}

struct Run {
    rng: Rng,
    fleet: Fleet,
    hosts: Vec<Host>,
    second: u64,
    trace: Vec<String>,
}

impl Run {
    fn line(&mut self, words: &str) {
        let line = format!("{} {words}", self.second);
        self.trace.push(line.clone());
        self.fleet.run_line(&line);
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.rng.below(n as u64)).unwrap_or_default()
    }

    fn event(&mut self) {
        self.second += match self.rng.below(20) {
            0 => 700,
            1..=3 => self.rng.below(120),
            _ => self.rng.below(8),
        };
        let who = self.below(AGENTS);
        match self.rng.below(100) {
            0..=34 => self.condition(who),
            35..=69 => self.occurrence(who),
            70..=86 => self.link(who),
            87..=91 => {
                let zone = self.below(3);
                self.line(&format!("label h{who} zone=z{zone}"));
                self.connect(who);
            }
            92..=93 => self.act("resolve"),
            94 => self.act("ack"),
            95 => self.line("restart"),
            96 => self.line(&format!("conflict h{who}")),
            97 => {
                let length = 60 + self.below(600);
                self.line(&format!("silence {length} agent=h{who}"));
            }
            98 => self.callers(who),
            _ => match self.below(5) {
                0 | 1 => self.singleton(who),
                2 => self.other_version(who),
                3 => self.expire(),
                _ => self.by_hand(),
            },
        }
    }

    fn condition(&mut self, who: usize) {
        let which = self.below(CONDITIONS.len());
        let (service, subject, reason) = CONDITIONS[which];
        let verb = if self.hosts[who].open.remove(&which) { "clear" } else { "open" };
        if verb == "open" {
            self.hosts[who].open.insert(which);
        }
        self.line(&format!("{verb} h{who} {service} {subject} {reason}"));
    }

    fn occurrence(&mut self, who: usize) {
        let (service, reason) = OCCURRENCES[self.below(OCCURRENCES.len())];
        let ago = if self.rng.chance(20) { self.rng.below(2000) } else { 0 };
        let build = ["", "sha256=aaaa", "sha256=bbbb"][self.below(3)];
        self.line(&format!("occur h{who} {service} {reason} {ago} {build}"));
    }

    fn link(&mut self, who: usize) {
        if self.hosts[who].silent {
            self.connect(who);
        } else {
            self.hosts[who].silent = true;
            let how = ["nothing", "reset", "goodbye"][self.below(3)];
            self.line(&format!("silent h{who} {how}"));
        }
    }

    fn connect(&mut self, who: usize) {
        self.hosts[who].silent = false;
        self.line(&format!("connect h{who}"));
    }

    /// The service of which there may be one runs here as well, or not any more.
    fn singleton(&mut self, who: usize) {
        let state = if self.hosts[who].runs { "stopped" } else { "running" };
        self.hosts[who].runs = !self.hosts[who].runs;
        self.trace.push(format!("{} h{who} one {state}", self.second));
        let evidence = Evidence::new().text("what", "singleton").text("new", state);
        let finding = Finding::new(key("one", "it", Reason::Change), state).evidence(evidence);
        self.fleet.event(&agent(&format!("h{who}")), FindingEvent::Occurred(finding), Duration::ZERO);
    }

    /// It comes back with another version, until it connects as it was.
    fn other_version(&mut self, who: usize) {
        let (name, version) = (format!("h{who}"), format!("0.{}.0", 2 + self.below(3)));
        self.trace.push(format!("{} {name} has {version}", self.second));
        self.hosts[who].silent = false;
        let hello = AgentHello { agent_version: version, ..hello(&name) };
        self.fleet.feed(Fact::AgentConnected { agent: agent(&name), hello });
    }

    /// Somebody ends a silence before its time.
    fn expire(&mut self) {
        let held: Vec<u64> = self.fleet.machine.state().silences().map(|(index, _)| index).collect();
        if let Some(&index) = self.rng.pick(&held) {
            self.trace.push(format!("{} silence {index} is ended", self.second));
            self.fleet.feed(Fact::SilenceExpired { by: "bob".to_owned(), index });
        }
    }

    /// Somebody knows better how bad it is.
    fn by_hand(&mut self) {
        let open = self.fleet.machine.state().incidents().filter(|incident| incident.is_unresolved());
        let causes: Vec<String> = open.map(|incident| incident.key.cause.clone()).collect();
        let severity = self.below(4);
        if let Some(cause) = self.rng.pick(&causes).cloned() {
            self.line(&format!("severity {cause} sev{severity}"));
        }
    }

    /// One is refused, one calls in a loop.
    fn callers(&mut self, who: usize) {
        let (caller, address) = (format!("10.9.9.{who}"), format!("10.9.9.{who}:1"));
        let (route, count) = ("FleetService.ListAgents".to_owned(), 1 + self.rng.below(40));
        self.trace.push(format!("{} {caller} is refused or in a loop, {count}", self.second));
        self.fleet.feed(match self.rng.chance(50) {
            true => Fact::CallsLooped { caller, address, route, count },
            false => Fact::CallsRefused { caller, address, route, why: "no role".to_owned(), count },
        });
    }

    fn act(&mut self, verb: &str) {
        let open = self.fleet.machine.state().incidents().filter(|incident| incident.is_unresolved());
        let causes: Vec<String> = open.map(|incident| incident.key.cause.clone()).collect();
        if let Some(cause) = self.rng.pick(&causes).cloned() {
            self.line(&format!("{verb} {cause}"));
        }
    }

    /// Everybody is heard, nothing is wrong, and the windows pass.
    fn heal(&mut self) {
        for who in 0..AGENTS {
            self.connect(who);
            if self.hosts[who].runs {
                self.singleton(who);
            }
            for which in std::mem::take(&mut self.hosts[who].open) {
                let (service, subject, reason) = CONDITIONS[which];
                self.line(&format!("clear h{who} {service} {subject} {reason}"));
            }
        }
        self.second += 20_000;
        self.line("end");
    }
}

fn run(seed: u64) -> Run {
    let hosts = (0..AGENTS).map(|_| Host { silent: false, runs: false, open: BTreeSet::new() }).collect();
    let mut run = Run { rng: Rng::new(seed), fleet: Fleet::new(small()), hosts, second: 0, trace: Vec::new() };
    for who in 0..AGENTS {
        run.line(&format!("label h{who} zone=z{}", who % 3));
        run.line(&format!("label h{who} role=r{}", who % 2));
        run.line(&format!("address h{who} 10.0.{}.{who}", who / 4));
        run.connect(who);
    }
    for _ in 0..EVENTS {
        run.event();
    }
    run.heal();
    run
}

/// Each incident that ended as a symptom ended so once, in an incident that was open then, and was not told of after it.
fn check_folds(run: &Run) {
    let mut ended: BTreeMap<IncidentKey, IncidentKey> = BTreeMap::new();
    let mut open: BTreeSet<IncidentKey> = BTreeSet::new();
    for entry in &run.fleet.journal {
        let EntryBody::Conclusion(conclusion) = &entry.body else { continue };
        match conclusion {
            Conclusion::IncidentOpened { incident, severity, .. } => {
                // What calls nobody and is listed: versions that differ.
                let is_listed = incident.cause == "fleet/version_skew";
                assert!(*severity >= Severity::Sev3 || is_listed, "{incident:?}");
                assert!(open.insert(incident.clone()), "{incident:?} opened twice");
            }
            Conclusion::IncidentResolved { incident, resolution, .. } => {
                assert!(open.remove(incident), "{incident:?} ended twice");
                if let Resolution::FoldedInto { incident: into } | Resolution::MergedInto { incident: into } =
                    resolution
                {
                    assert!(open.contains(into), "{incident:?} folded into {into:?}, which is over");
                    assert_eq!(ended.insert(incident.clone(), into.clone()), None, "{incident:?} folded twice");
                }
            }
            Conclusion::IncidentChanged { incident, .. } | Conclusion::IncidentRecovering { incident, .. } => {
                assert!(open.contains(incident), "{incident:?} is over");
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "not over: {open:?}\n{}", run.fleet.log());
}

#[test]
fn random_fleets_keep_their_promises_fold_once_and_heal() {
    let seeds = match number("MUSTER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MUSTER_SEEDS").unwrap_or(SEEDS),
    };
    let mut kinds: BTreeSet<String> = BTreeSet::new();
    for seed in seeds.clone() {
        println!("again with MUSTER_SEED={seed}");
        let run = run(seed);
        check_folds(&run);
        run.fleet.check_journal();
        kinds.extend(run.fleet.machine.state().incidents().map(|incident| {
            let parts: Vec<&str> = incident.key.cause.split('/').collect();
            match (parts[0], parts[1], parts.last()) {
                ("fleet", "reason", Some(&"memory")) => "fleet/memory".to_owned(),
                ("fleet", kind, _) if parts.get(2) == Some(&"loop") => format!("fleet/{kind}/loop"),
                ("fleet", kind, _) => format!("fleet/{kind}"),
                (_, _, Some(&"identity")) => "identity".to_owned(),
                (_, _, Some(last)) if last.starts_with("burst") => "burst".to_owned(),
                _ => parts.get(2).map(|kind| format!("host/{kind}")).unwrap_or_default(),
            }
        }));
    }
    // A generator that never reaches a rule proves nothing about it.
    if seeds.end - seeds.start >= SEEDS {
        let of_fleet = ["mass_stale", "corruption", "oom_storm", "restart_storm", "lock", "reason", "probe_blind"];
        for kind in of_fleet {
            assert!(kinds.contains(&format!("fleet/{kind}")), "no seed made {kind}: {kinds:?}");
        }
    }
}
