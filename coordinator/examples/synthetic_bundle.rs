//! Makes a bundle of as many facts as are asked for: `cargo xtask bench replay` replays it.
//!
//! A fleet of 200 agents opens and clears conditions, restarts services, falls silent and comes back, with people who
//! acknowledge and a receiver that accepts. From a seed: the same facts each time.

#![expect(clippy::unwrap_used, reason = "a tool of the bench stops at the first surprise")]
#![expect(clippy::print_stdout, reason = "what it made, for who asked")]

use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{AgentName, CoordinatorId, Epoch, FleetName, ServiceName, SpoolId};
use muster_common::reason::Reason;
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use muster_coordinator::bundle::{FORMAT_VERSION, KIND, Manifest, Writer};
use muster_coordinator::store::{JournalHash, StoredEntry};
use muster_coordinator_core::entry::{AgentHello, Entry, EntryBody, Fact, Silence};
use muster_coordinator_core::machine::Machine;
use muster_coordinator_core::policy::{Policy, RULES_VERSION};
use muster_coordinator_core::state::State;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::time::Duration;

/// Agents of the fleet.
const AGENTS: u64 = 200;
/// What goes wrong, and where.
const TROUBLES: [(&str, ProbeKind, &str, Reason); 5] = [
    ("spl", ProbeKind::PidFile, "/run/spl/spl.pid", Reason::ProcessDown),
    ("spl", ProbeKind::Port, "127.0.0.1:9100", Reason::PortClosed),
    ("web", ProbeKind::Port, "0.0.0.0:443", Reason::PortUnresponsive),
    ("db", ProbeKind::Sqlite, "/var/lib/db/hub.db", Reason::SqliteLockHeld),
    ("host", ProbeKind::Memory, "host", Reason::MemoryApproaching),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (facts, path) = (arguments.next().unwrap().parse().unwrap(), arguments.next().unwrap());
    let mut plain =
        File::options().create(true).truncate(true).read(true).write(true).open(format!("{path}.plain")).unwrap();
    let mut world = World::new(BufWriter::new(plain.try_clone().unwrap()));
    while world.facts < facts {
        world.step();
    }
    let World { out, hash, index, last_at, .. } = world;
    drop(out.into_inner().unwrap());
    plain.seek(SeekFrom::Start(0)).unwrap();
    let manifest = Manifest {
        kind: KIND.to_owned(),
        format_version: FORMAT_VERSION,
        coordinator_version: env!("CARGO_PKG_VERSION").to_owned(),
        coordinator: "coord-a".to_owned(),
        fleet: "bench".to_owned(),
        made: last_at,
        rules_version: RULES_VERSION,
        incident: None,
        state_index: 0,
        state_bytes: 0,
        state_sha256: String::new(),
        chain_before: String::new(),
        first_index: 1,
        last_index: index,
        first_at: Timestamp::UNIX_EPOCH,
        last_at,
        chain_after: hash.to_string(),
        missing: Vec::new(),
    };
    let out = BufWriter::new(File::create(&path).unwrap());
    let mut writer = Writer::begin(out, manifest, None, JournalHash::ZERO).unwrap();
    let (mut plain, mut hash) = (BufReader::new(plain), JournalHash::ZERO);
    for index in 1..=index {
        let mut length = [0; 4];
        plain.read_exact(&mut length).unwrap();
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        plain.read_exact(&mut body).unwrap();
        hash = hash.then(&body);
        writer.push(&StoredEntry { index, hash, body }).unwrap();
    }
    let (mut out, counts) = writer.finish().unwrap();
    out.flush().unwrap();
    std::fs::remove_file(format!("{path}.plain")).unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    let (facts, entries) = (counts.facts, counts.entries());
    println!("{{\"facts\":{facts},\"entries\":{entries},\"bytes\":{bytes}}}");
}

struct World<W: Write> {
    machine: Machine,
    now: Timestamp,
    seed: u64,
    facts: u64,
    index: u64,
    hash: JournalHash,
    last_at: Timestamp,
    out: W,
    sequences: Vec<u64>,
    open: BTreeSet<(u64, usize)>,
    silent: BTreeSet<u64>,
}

impl<W: Write> World<W> {
    fn new(out: W) -> Self {
        let now = Timestamp::from_unix_ms(1_795_220_000_000);
        let agents = usize::try_from(AGENTS).unwrap();
        let mut world = Self {
            machine: Machine::new(State::genesis()),
            now,
            seed: 7,
            facts: 0,
            index: 0,
            hash: JournalHash::ZERO,
            last_at: now,
            out,
            sequences: vec![0; agents],
            open: BTreeSet::new(),
            silent: BTreeSet::new(),
        };
        let coordinator = CoordinatorId::new("coord-a").unwrap();
        let epoch = Epoch { number: 1, coordinator: coordinator.clone() };
        let (fleet, version) = (FleetName::new("bench").unwrap(), "0.1.0".to_owned());
        world.feed(Fact::Started { coordinator, fleet, version, epoch });
        let policy = Policy { receivers: vec!["ops".to_owned()], ..Policy::default() };
        world.feed(Fact::PolicyLoaded { policy: Box::new(policy) });
        for agent in 0..AGENTS {
            let hello = hello(agent);
            world.feed(Fact::AgentConnected { agent: name(agent), hello: hello.into() });
        }
        world
    }

    fn feed(&mut self, fact: Fact) {
        let entries = self.machine.feed(self.now, fact);
        self.write(&entries);
        let due: Vec<_> = self.machine.state().sendable_pages().iter().map(|record| record.id).collect();
        for page in due {
            for fact in [Fact::PageAttempted { page }, Fact::PageDelivered { page }] {
                let entries = self.machine.feed(self.now, fact);
                self.write(&entries);
            }
        }
    }

    fn write(&mut self, entries: &[Entry]) {
        for entry in entries {
            let body = serde_json::to_vec(entry).unwrap();
            self.hash = self.hash.then(&body);
            (self.index, self.last_at) = (entry.index, entry.at);
            self.facts += u64::from(matches!(entry.body, EntryBody::Fact(_)));
            self.out.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
            self.out.write_all(&body).unwrap();
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(self.random(2_000));
        let agent = self.random(AGENTS);
        if self.silent.contains(&agent) || self.random(400) == 0 {
            return self.turn(agent);
        }
        let trouble = usize::try_from(self.random(5)).unwrap();
        let (service, probe, subject, reason) = TROUBLES[trouble];
        let key = |reason| {
            let service = ServiceName::new(service).unwrap();
            FindingKey { subject: SubjectKey::new(service, probe, subject), reason }
        };
        let summary = format!("{service}: {reason} of {subject}, seen by the bench");
        let event = match (self.random(6), self.open.remove(&(agent, trouble))) {
            (0, false) => FindingEvent::Occurred(Finding::new(key(Reason::ProcessRestarted), &summary)),
            (_, true) => {
                let (summary, evidence) = ("well again".to_owned(), Default::default());
                FindingEvent::Cleared { key: key(reason), summary, evidence }
            }
            (_, false) => {
                self.open.insert((agent, trouble));
                let evidence = muster_common::evidence::Evidence::new().count("tries", 3_u64).text("address", subject);
                FindingEvent::Opened(Finding::new(key(reason), &summary).evidence(evidence))
            }
        };
        let at = usize::try_from(agent).unwrap();
        self.sequences[at] += 1;
        let position = Position { spool: hello(agent).spool, sequence: self.sequences[at], hash: EntryHash([1; 16]) };
        let observed = self.now - Duration::from_secs(1);
        self.feed(Fact::FindingReceived { agent: name(agent), position, observed, estimated: false, event });
    }

    /// Silent, or heard again.
    fn turn(&mut self, agent: u64) {
        if self.silent.remove(&agent) {
            return self.feed(Fact::AgentHeard { agent: name(agent) });
        }
        self.silent.insert(agent);
        let last_heard = self.now - Duration::from_secs(15);
        self.feed(Fact::AgentSilent { agent: name(agent), last_heard, silence: Silence::Nothing });
    }
}

fn name(agent: u64) -> AgentName {
    AgentName::new(format!("web-{agent}").as_str()).unwrap()
}

fn hello(agent: u64) -> AgentHello {
    let hello = serde_json::json!({
        "host_name": format!("web-{agent}"), "agent_version": "0.1.0", "os_version": "bench", "kernel_version": "6.1",
        "boot_id": null, "labels": {"zone": "a"}, "peer_address": "10.0.0.1:4000",
        "spool": SpoolId(uuid::Uuid::from_u128(u128::from(agent) + 1)),
    });
    serde_json::from_value(hello).unwrap()
}
