//! Random fleets under all detectors: the invariants hold after every event (the scripts' fleet looks after each), a
//! symptom is folded exactly once, and what heals ends. `MUSTER_SEEDS=n` runs more, `MUSTER_SEED=n` one.

use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::entry::{AgentHello, Conclusion, EntryBody, Fact, IncidentKey, Resolution, TimerKey};
use muster_coordinator_core::page::PageAction;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::severity::RAISES;
use muster_tests::rng::Rng;
use muster_tests::scenario::{Fleet, agent, hello, key, policy};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Seeds of an ordinary run: enough to come to all of [`REACHED`].
const SEEDS: u64 = 10;
const AGENTS: usize = 12;
const EVENTS: usize = 220;
/// On which they run.
const KERNELS: usize = 4;

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
    ("spl", "process_restarted"),
    ("spl", "process_restarted"),
    ("spl", "oom_kill"),
    ("dba", "oom_kill"),
    ("host", "oom_kill"),
    ("spl", "timeout"),
    ("dba", "timeout"),
    ("spl", "permanent_error"),
    ("dba", "repo_locked"),
    ("dba", "repo_locked"),
    ("spl", "install_failed"),
    ("spl", "update_failed"),
    ("dba", "update_rollback"),
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Thresholds that a small fleet reaches. With every second seed nothing is gathered, so that what would be gathered is
/// told by its own rule.
fn small(seed: u64) -> Policy {
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
    if seed.is_multiple_of(2) {
        policy.detect.agent_flood.incidents = 9;
        policy.correlation.incidents = 6;
    } else {
        policy.correlation.incidents = u32::MAX;
    }
    // With some seeds a storm takes no kills, so that they fold into each other.
    if seed % 4 == 1 {
        (policy.detect.oom_storm.hosts, policy.detect.oom_storm.kills) = (u32::MAX, u32::MAX);
    }
    policy.signals.flapping.high_percent = 15;
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
    /// Of the kills alone.
    kills: Rng,
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
            0..=29 => self.condition(who),
            30..=56 => self.occurrence(who),
            // A bad build, or something that they share.
            57..=59 => self.together(),
            60..=74 => self.link(who),
            75..=76 => {
                let zone = self.below(3);
                self.line(&format!("label h{who} zone=z{zone}"));
                self.connect(who);
            }
            77..=78 => self.act("resolve"),
            79..=80 => self.act("ack"),
            81 => self.line("restart"),
            82 => self.line(&format!("conflict h{who}")),
            83..=85 => self.silence(who),
            86..=87 => self.expire(),
            88..=90 => self.callers(who),
            91..=94 => self.singleton(who),
            95..=96 => self.other_version(who),
            _ => self.by_hand(),
        }
        if self.kills.chance(4) {
            self.kill();
        }
    }

    /// Somebody knows of it, or plans it: of one host, or of one service on all of them.
    fn silence(&mut self, who: usize) {
        let length = 60 + self.below(1800);
        let about = match self.below(3) {
            0 => format!("service={}", ["spl", "dba"][self.below(2)]),
            _ => format!("agent=h{who}"),
        };
        match self.below(4) {
            0 => self.line(&format!("maintenance {} {length} {about}", length / 2)),
            _ => self.line(&format!("silence {length} {about}")),
        }
    }

    fn condition(&mut self, who: usize) {
        let which = self.below(CONDITIONS.len());
        self.turn(who, which);
    }

    /// It begins, or is over.
    fn turn(&mut self, who: usize, which: usize) {
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
        if reason == "repo_locked" {
            (0..=self.below(3)).for_each(|nth| self.repository(who, service, nth, ago));
            return;
        }
        let build = ["", "sha256=aaaa", "sha256=bbbb"][self.below(3)];
        self.line(&format!("occur h{who} {service} {reason} {ago} {build}"));
    }

    /// A kernel kills something, and some of the agents in containers on it tell so, now or later; one may know whose process
    /// it was.
    fn kill(&mut self) {
        let mut below = |n: usize| usize::try_from(self.kills.below(n as u64)).unwrap_or_default();
        let (who, pid, tellers, knows, wait) = (below(AGENTS), below(40) as u64, 1 + below(3), below(4), below(4));
        for nth in 0..tellers {
            let name = format!("h{}", (who + nth * KERNELS) % AGENTS);
            let (kernel, service) = (who % KERNELS, if nth == knows { "spl" } else { "host" });
            self.trace.push(format!("{} {name} tells that kernel {kernel} killed {pid} of {service}", self.second));
            let evidence = Evidence::new().count("pid", pid).with("since_boot_ms", Value::Millis(5_000));
            let finding = Finding::new(key(service, "it", Reason::OomKill), "killed").evidence(evidence);
            self.fleet.event(&agent(&name), FindingEvent::Occurred(finding), Duration::ZERO);
            self.second += [0, 0, 5, 400][wait];
            self.line("end");
        }
    }

    /// The same happens or begins on several hosts, or a switch fails.
    fn together(&mut self) {
        let (occurs, begins, first) = (self.below(OCCURRENCES.len()), self.below(CONDITIONS.len()), self.below(AGENTS));
        let what = self.below(3);
        for who in (0..5).map(|nth| (first + nth) % AGENTS) {
            let host = &mut self.hosts[who];
            match what {
                0 => {
                    let (service, reason) = OCCURRENCES[occurs];
                    self.line(&format!("occur h{who} {service} {reason} 0"));
                }
                1 if !host.open.contains(&begins) => self.turn(who, begins),
                2 if !host.silent => {
                    host.silent = true;
                    self.line(&format!("silent h{who} nothing"));
                }
                _ => {}
            }
        }
    }

    /// One of a few repositories is locked.
    fn repository(&mut self, who: usize, service: &str, nth: usize, ago: u64) {
        let subject = ["/a.git", "/b.git", "/c.git"][nth];
        self.trace.push(format!("{} h{who} {service} {subject} is locked, {ago} s ago", self.second));
        let finding = Finding::new(key(service, subject, Reason::RepoLocked), "locked");
        let ago = Duration::from_secs(ago);
        self.fleet.event(&agent(&format!("h{who}")), FindingEvent::Occurred(finding), ago);
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
        self.fleet.feed(Fact::AgentConnected { agent: agent(&name), hello: hello.into() });
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
        let (route, count) = ("FleetService.ListAgents".to_owned(), 10 + self.rng.below(60));
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
    let (rng, kills) = (Rng::new(seed), Rng::new(!seed));
    let mut run = Run { rng, kills, fleet: Fleet::new(small(seed)), hosts, second: 0, trace: Vec::new() };
    for who in 0..AGENTS {
        run.line(&format!("label h{who} zone=z{}", who % 3));
        run.line(&format!("label h{who} role=r{}", who % 2));
        run.line(&format!("address h{who} 10.0.{}.{who}", who / 4));
        run.line(&format!("boot h{who} {}", who % KERNELS));
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

/// What the seeds must reach, all of them together: a generator that never comes to a rule proves nothing about it.
const REACHED: &[&str] = &[
    "opened mass_stale of the fleet",
    "opened mass_stale of a place",
    "opened agent_stale",
    "opened restart_storm",
    "opened oom_storm",
    "opened lock_contention_fleet",
    "opened corruption_spread",
    "opened reason_widespread",
    "opened reason_widespread of memory",
    "opened probe_blind of many",
    "opened duplicate_instance of a singleton",
    "opened duplicate_instance of a host",
    "opened agent_identity_conflict",
    "opened version_skew",
    "opened auth_abuse of a refused caller",
    "opened auth_abuse of a loop",
    "opened incident_burst",
    "opened agent_flood",
    "opened update_failed",
    "opened update_rollback",
    "opened repo_locked",
    "raised: many locks of the service are contended there at once",
    "raised: the lock has not moved for long",
    "severity by hand",
    "silenced",
    "paged when its silence ended",
    "a silence announced its end",
    "acknowledged at a receiver",
    "escalated",
    "relapsed",
    "told again under a new key",
    "folded",
    "folded into the same kill",
    "joined the same kill",
    "merged",
    "closed by hand",
];

/// What an entry shows to have been reached.
fn reached(body: &EntryBody) -> Vec<String> {
    let raised = |why: &str| {
        let raises = RAISES.iter().filter(|raise| why.contains(raise.words));
        raises.map(|raise| format!("raised: {}", raise.words)).collect::<Vec<_>>()
    };
    let one = |words: &str| vec![words.to_owned()];
    match body {
        EntryBody::Deadline(TimerKey::SilenceEnds { .. }) => one("a silence announced its end"),
        EntryBody::Conclusion(Conclusion::IncidentOpened { incident, reason, why, .. }) => {
            let mut opened = raised(why);
            opened.push(format!("opened {reason}{}", whose(&incident.cause, *reason)));
            opened
        }
        EntryBody::Conclusion(Conclusion::IncidentChanged { why, .. }) => raised(why),
        EntryBody::Conclusion(Conclusion::SeveritySet { .. }) => one("severity by hand"),
        EntryBody::Conclusion(Conclusion::IncidentSilenced { .. }) => one("silenced"),
        EntryBody::Conclusion(Conclusion::IncidentEscalated { .. }) => one("escalated"),
        EntryBody::Conclusion(Conclusion::IncidentRelapsed { .. }) => one("relapsed"),
        EntryBody::Conclusion(Conclusion::NotPaged { why, .. }) if why.starts_with("it was over when SIL-") => {
            one("quiet when its silence ended")
        }
        EntryBody::Conclusion(Conclusion::IncidentJoined { incident, member, .. }) if same_kill(member, incident) => {
            one("joined the same kill")
        }
        EntryBody::Conclusion(Conclusion::IncidentResolved { incident, resolution, .. }) => one(match resolution {
            Resolution::FoldedInto { incident: into } | Resolution::MergedInto { incident: into }
                if same_kill(&incident.cause, into) =>
            {
                "folded into the same kill"
            }
            Resolution::FoldedInto { .. } => "folded",
            Resolution::MergedInto { .. } => "merged",
            Resolution::Operator { .. } => "closed by hand",
            Resolution::Evidence => "healed",
        }),
        EntryBody::Conclusion(Conclusion::PageRequested { page, why, .. }) => match page.action {
            PageAction::Trigger if why.starts_with("SIL-") => one("paged when its silence ended"),
            PageAction::Acknowledge => one("acknowledged at a receiver"),
            PageAction::Resolve if why.contains(" is told under a new key: ") => one("told again under a new key"),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// A host's own cause is a symptom of another host's alone where both tell one kill.
fn same_kill(cause: &str, into: &IncidentKey) -> bool {
    let of_kill = |cause: &str| cause.ends_with("/oom") || cause.ends_with("/service/spl");
    cause.starts_with("host/") && of_kill(cause) && into.cause.starts_with("host/") && of_kill(&into.cause)
}

/// Which kind of cause, where a reason has several.
fn whose(cause: &str, reason: Reason) -> &'static str {
    let is_fleet = cause.starts_with("fleet/");
    match reason {
        Reason::MassStale if cause == "fleet/mass_stale" => " of the fleet",
        Reason::MassStale => " of a place",
        Reason::DuplicateInstance if is_fleet => " of a singleton",
        Reason::DuplicateInstance => " of a host",
        Reason::AuthAbuse if cause.starts_with("fleet/auth_abuse/loop/") => " of a loop",
        Reason::AuthAbuse => " of a refused caller",
        Reason::ProbeBlind if is_fleet => " of many",
        Reason::ReasonWidespread if cause.starts_with("fleet/reason/memory") => " of memory",
        _ => "",
    }
}

#[test]
fn random_fleets_keep_their_promises_fold_once_and_heal() {
    let seeds = match number("MUSTER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MUSTER_SEEDS").unwrap_or(SEEDS),
    };
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for seed in seeds.clone() {
        println!("again with MUSTER_SEED={seed}");
        let run = run(seed);
        check_folds(&run);
        run.fleet.check_journal();
        let all: BTreeSet<String> = run.fleet.journal.iter().flat_map(|entry| reached(&entry.body)).collect();
        all.into_iter().for_each(|what| *times.entry(what).or_default() += 1);
    }
    println!("reached, by how many seeds: {times:#?}");
    if seeds.end - seeds.start >= SEEDS {
        let never: Vec<_> = REACHED.iter().filter(|what| !times.contains_key(**what)).collect();
        assert!(never.is_empty(), "no seed came to {never:?}; to what they came, and how many: {times:#?}");
    }
}
