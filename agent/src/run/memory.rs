//! What the agent remembers across a restart: open conditions, what was seen lately, instances of services, cursors of probes. Saved
//! in one transaction with the events that follow from it.
//!
//! One row per subject and per service, and only those that changed are written: a host with thousands of services
//! pays for what happens, not for what there is.

use crate::probe::Remembered;
use crate::senses::singleton;
use crate::spool::{Append, STATE_BYTES_MAX, SpoolError, SpoolOwner};
use muster_agent_core::clock::Now;
use muster_agent_core::diagnose::Recent;
use muster_agent_core::judgement::{Judgement, Problem};
use muster_agent_core::ledger::{Change, Ledger, Watched};
use muster_agent_core::services::{Instance, Services};
use muster_common::finding::{FindingEvent, SubjectKey};
use muster_common::ids::{BootId, ServiceName, SpoolId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The spool keeps all rows under keys that begin so.
const PREFIX: &str = "memory/";

/// Everything that is remembered.
#[derive(Debug)]
pub struct Memory {
    /// The boot it is of.
    boot: BootId,
    /// Open conditions.
    pub ledger: Ledger,
    /// What explains other things.
    pub recent: Recent,
    /// Instances of services.
    pub services: Services,
    probes: BTreeMap<SubjectKey, Remembered>,
    /// What may differ from what the spool has.
    changed: BTreeSet<Row>,
    /// What the spool has: a hash of each row, by its key.
    written: BTreeMap<String, u64>,
    /// The spool that has it.
    spool: Option<SpoolId>,
}

/// What an append made durable.
#[derive(Debug)]
pub struct Written {
    /// The last entry of the spool.
    pub head_sequence: u64,
    /// The subjects about which something may have changed since the append before.
    pub subjects: Vec<SubjectKey>,
}

/// Where events and memory go.
pub trait StateOutlet {
    /// Writes both durably, or neither; gives the last entry of the spool.
    fn append(&mut self, events: &[Append], memory: &mut Memory, now: Now) -> Result<u64, SpoolError>;

    /// Does what others asked of it meanwhile.
    fn serve(&mut self) {}

    /// The host's memory was just looked at: so much is available, to be told in heartbeats; 0 where that is not known.
    fn memory_probed(&mut self, _available_bytes: u64) {}
}

/// One row of the spool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    /// What is about no subject and no service.
    Head,
    Service(ServiceName),
    Subject(SubjectKey),
}

/// A row's content.
#[derive(Debug, Serialize, Deserialize)]
enum Content<'a> {
    Head { boot: BootId, suppressed_total: u64, recent: Cow<'a, Recent> },
    Service(Cow<'a, ServiceName>, Cow<'a, VecDeque<Instance>>),
    Subject { subject: Cow<'a, SubjectKey>, watched: Option<Cow<'a, Watched>>, probe: Option<Cow<'a, Remembered>> },
}

impl Memory {
    /// Nothing yet.
    pub fn new(boot: BootId) -> Self {
        Self {
            boot,
            ledger: Ledger::default(),
            recent: Recent::default(),
            services: Services::default(),
            probes: BTreeMap::new(),
            changed: BTreeSet::new(),
            written: BTreeMap::new(),
            spool: None,
        }
    }

    /// What the spool kept. What cannot be read is told and forgotten: what is wrong will be seen again.
    pub fn load(spool: &mut SpoolOwner, boot: BootId) -> Result<Self, SpoolError> {
        let mut memory = Self::decode(spool.with(|spool| spool.get_states(PREFIX))?, boot);
        memory.spool = Some(spool.view().spool);
        Ok(memory)
    }

    /// Writes events and what changed in memory to the spool, in one transaction.
    pub fn append_to(&mut self, spool: &mut SpoolOwner, events: &[Append], now: Now) -> Result<Written, SpoolError> {
        let id = spool.view().spool;
        if self.spool.replace(id) != Some(id) {
            // Another spool may have nothing of it.
            self.written.clear();
            self.all_changed();
        }
        let rows = self.changed_rows();
        let hashes: Vec<(String, Option<u64>)> =
            rows.iter().map(|(key, bytes)| (key.clone(), (!bytes.is_empty()).then(|| hash(bytes)))).collect();
        if !events.is_empty() || !rows.is_empty() {
            spool.append(events, &rows, now)?;
        }
        for (key, hash) in hashes {
            match hash {
                Some(hash) => drop(self.written.insert(key, hash)),
                None => drop(self.written.remove(&key)),
            }
        }
        let subject = |row| if let Row::Subject(subject) = row { Some(subject) } else { None };
        let subjects = std::mem::take(&mut self.changed).into_iter().filter_map(subject).collect();
        Ok(Written { head_sequence: spool.view().head, subjects })
    }

    /// Takes in the outcome of one run and says what changed.
    pub fn observe(&mut self, now: Now, subject: &SubjectKey, judgement: &Judgement) -> Vec<Change> {
        if self.ledger.is_no_news(subject, judgement) {
            return Vec::new();
        }
        self.changed.extend(Ledger::touched_by(subject).map(Row::Subject));
        self.ledger.observe(now, subject, judgement)
    }

    /// What a probe gave to keep.
    pub fn probe(&self, subject: &SubjectKey) -> Option<Remembered> {
        self.probes.get(subject).cloned()
    }

    /// Keeps what a probe gives.
    pub fn note_probe(&mut self, subject: &SubjectKey, saved: Option<Remembered>) {
        self.changed.insert(Row::Subject(subject.clone()));
        match saved {
            Some(saved) => drop(self.probes.insert(subject.clone(), saved)),
            None => drop(self.probes.remove(subject)),
        }
    }

    /// Keeps what the probes noted of services since the last time.
    pub fn note_services(&mut self, services: &mut Services) {
        for service in services.take_changed() {
            if let Some(instances) = services.instances(&service) {
                self.services.set(service.clone(), instances.clone());
                self.changed.insert(Row::Service(service));
            }
        }
    }

    /// What the fleet would go on to believe of subjects that are no longer watched; before they are forgotten.
    pub fn unwatched(&mut self, now: Now, watched: &BTreeSet<SubjectKey>) -> Vec<Change> {
        let gone = self.probes.iter().filter(|(subject, _)| !watched.contains(subject));
        let told = gone.filter_map(|(subject, saved)| Some((subject.clone(), singleton::unwatched(subject, saved)?)));
        let told: Vec<(SubjectKey, Problem)> = told.collect();
        told.into_iter()
            .flat_map(|(subject, problem)| self.observe(now, &subject, &Judgement::default().occurred(problem)))
            .collect()
    }

    /// Forgets subjects that are no longer watched, and tells what is over for that reason.
    pub fn retain(&mut self, watched: &BTreeSet<SubjectKey>) -> Vec<FindingEvent> {
        self.all_changed();
        self.probes.retain(|subject, _| watched.contains(subject));
        self.ledger.retain(watched)
    }

    fn all_changed(&mut self) {
        let subjects = self.ledger.subjects().map(|state| state.subject).chain(self.probes.keys());
        self.changed.extend(subjects.cloned().map(Row::Subject));
        self.changed.extend(self.services.names().cloned().map(Row::Service));
    }

    /// The rows to write: their keys and bytes, no bytes for a row that is no more.
    fn changed_rows(&self) -> Vec<(String, Vec<u8>)> {
        let rows = self.changed.iter().chain([&Row::Head]).map(|row| (row.key(), self.encode(row)));
        rows.filter(|(key, bytes)| {
            if bytes.len() > STATE_BYTES_MAX {
                tracing::error!(%key, bytes = bytes.len(), "too much to remember; it is lost at the next restart");
                return false;
            }
            self.written.get(key).copied() != (!bytes.is_empty()).then(|| hash(bytes))
        })
        .collect()
    }

    fn encode(&self, row: &Row) -> Vec<u8> {
        let content = match row {
            Row::Head => Content::Head {
                boot: self.boot,
                suppressed_total: self.ledger.suppressed_total(),
                recent: Cow::Borrowed(&self.recent),
            },
            Row::Service(service) => match self.services.instances(service) {
                Some(instances) => Content::Service(Cow::Borrowed(service), Cow::Borrowed(instances)),
                None => return Vec::new(),
            },
            Row::Subject(subject) => {
                let (watched, probe) = (self.ledger.watched(subject), self.probes.get(subject));
                if watched.is_none() && probe.is_none() {
                    return Vec::new();
                }
                let (watched, probe) = (watched.map(Cow::Borrowed), probe.map(Cow::Borrowed));
                Content::Subject { subject: Cow::Borrowed(subject), watched, probe }
            }
        };
        // Maps with structured keys are the only thing that could fail, and there is none (see the tests).
        serde_json::to_vec(&content).unwrap_or_default()
    }

    fn decode(rows: Vec<(String, Vec<u8>)>, boot: BootId) -> Self {
        let mut memory = Self::new(boot);
        let (mut saved_boot, mut suppressed_before, mut subjects) = (None, 0, Vec::new());
        for (key, bytes) in rows {
            match serde_json::from_slice(&bytes) {
                Ok(Content::Head { boot, suppressed_total, recent }) => {
                    (saved_boot, suppressed_before) = (Some(boot), suppressed_total);
                    memory.recent = recent.into_owned();
                }
                Ok(Content::Service(service, instances)) => {
                    memory.services.set(service.into_owned(), instances.into_owned());
                }
                Ok(Content::Subject { subject, watched, probe }) => {
                    let subject = subject.into_owned();
                    memory.probes.extend(probe.map(|probe| (subject.clone(), probe.into_owned())));
                    subjects.extend(watched.map(|watched| (subject, watched.into_owned())));
                }
                Err(error) => tracing::error!(%key, %error, "what was remembered cannot be read; beginning anew"),
            }
            memory.written.insert(key, hash(&bytes));
        }
        memory.ledger = Ledger::restored(suppressed_before, subjects);
        if saved_boot != Some(boot) || boot.0.is_nil() {
            memory.all_changed();
            memory.ledger.rebooted();
            memory.recent.rebooted();
            // Every process of before is another life's; the probes tell the reboot from their own cursors.
            memory.services = Services::default();
        }
        memory
    }
}

impl Row {
    fn key(&self) -> String {
        match self {
            Self::Head => format!("{PREFIX}head"),
            Self::Service(service) => format!("{PREFIX}service/{service}"),
            Self::Subject(SubjectKey { service, probe, subject }) => {
                format!("{PREFIX}subject/{service}/{probe}/{subject}")
            }
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Spool, SpoolLimits};
    use muster_agent_core::restarts::{Life, Reading, RestartJudge};
    use muster_common::evidence::{Evidence, Value};
    use muster_common::finding::ProbeKind;
    use muster_common::ids::ProcessId;
    use muster_common::reason::Reason;

    fn boot(n: u128) -> BootId {
        BootId(uuid::Uuid::from_u128(n))
    }

    fn pid_file(service: &ServiceName) -> SubjectKey {
        SubjectKey::new(service.clone(), ProbeKind::PidFile, "/run/spl.pid")
    }

    #[test]
    fn survives_a_restart_and_knows_a_reboot() {
        let service = ServiceName::new("spl").unwrap();
        let subject = pid_file(&service);
        let mut memory = Memory::new(boot(1));
        let down = Judgement::problem(Problem::new(Reason::ProcessDown, "gone"));
        assert_eq!(memory.observe(crate::clock::now(), &subject, &down).len(), 1);
        memory.note_probe(&subject, Remembered::of(serde_json::json!({ "inode": 7 })));
        let instance = Instance {
            process: ProcessId { pid: 7, start_ticks: 9 },
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: 1,
            ended_boottime_ms: None,
        };
        let mut services = Services::default();
        services.note(&service, instance);
        memory.note_services(&mut services);
        let rows = memory.changed_rows();

        let mut same = Memory::decode(rows.clone(), boot(1));
        assert_eq!(same.changed_rows(), [], "nothing changed yet");
        assert!(same.observe(crate::clock::now(), &subject, &down).is_empty());
        assert_eq!(
            same.probe(&subject).unwrap().read::<serde_json::Value>().unwrap(),
            serde_json::json!({ "inode": 7 })
        );
        assert!(same.services.newest(&service).is_some());
        assert_eq!(same.retain(&BTreeSet::new()).len(), 1);
        assert!(same.changed_rows().contains(&(Row::Subject(subject).key(), Vec::new())), "the row is removed");

        let other = Memory::decode(rows, boot(2));
        assert_eq!(other.ledger.open().count(), 1);
        assert!(other.services.newest(&service).is_none());
        assert_eq!(other.changed_rows().len(), 2, "the head and the service");
        assert_eq!(Memory::decode(vec![("memory/head".into(), b"{".into())], boot(1)).ledger.open().count(), 0);
    }

    /// What all rows take.
    fn kept_bytes(memory: &mut Memory) -> usize {
        memory.all_changed();
        memory.changed.iter().chain([&Row::Head]).map(|row| memory.encode(row).len()).sum()
    }

    /// Ten services of which each dies every quarter of an hour, while a log complains once a minute: what is remembered
    /// after a day is what was remembered after half of it.
    #[test]
    fn a_day_of_troubles_leaves_no_more_behind_than_half_a_day() {
        const STEP_MS: u64 = 30_000;
        const LIFE_STEPS: u64 = 30;
        const HOUR_STEPS: u64 = 3_600_000 / STEP_MS;
        let mut memory = Memory::new(boot(1));
        let mut seen = Services::default();
        let named: Vec<ServiceName> = (0..10).map(|n| ServiceName::new(format!("service-{n}")).unwrap()).collect();
        let mut judges = vec![RestartJudge::default(); named.len()];
        let mut hours = Vec::new();
        for step in 1..=24 * HOUR_STEPS {
            let now = Now { boottime_ms: step * STEP_MS, ..crate::clock::now() };
            for (index, service) in named.iter().enumerate() {
                let (life, age) = ((step + 3 * index as u64) / LIFE_STEPS, (step + 3 * index as u64) % LIFE_STEPS);
                let pid = 1_000 + u32::try_from(life * 10).unwrap() + u32::try_from(index).unwrap();
                let instance = |ended_boottime_ms| Instance {
                    process: ProcessId { pid, start_ticks: life },
                    comm: format!("service-{index}"),
                    exe: Some("/usr/bin/service".into()),
                    cgroup: Some(format!("/system.slice/service-{index}.service")),
                    first_seen_boottime_ms: now.boottime_ms.saturating_sub(age * STEP_MS),
                    ended_boottime_ms,
                };
                let is_down = age == LIFE_STEPS - 1;
                seen.note(service, instance(is_down.then_some(now.boottime_ms)));
                let down = Problem::new(Reason::ProcessDown, format!("{service} (pid {pid}) was killed with SIGKILL"))
                    .evidence(Evidence::new().text("pid", pid.to_string()).text("ended_by", "SIGKILL"));
                let lives = seen.instances(service).into_iter().flatten().map(|instance| Life {
                    pid: instance.process.pid,
                    start_boottime_ms: instance.first_seen_boottime_ms,
                    ended_boottime_ms: instance.ended_boottime_ms,
                    ended: None,
                    exit: None,
                });
                let reading = Reading { lives: lives.collect(), ..Reading::default() };
                let restarts = judges[index].judge(service.as_str(), &reading, now, false);
                let busy = Problem::new(Reason::DatabaseBusy, format!("database is locked (request {step})"));
                let log = Judgement::ok(Evidence::new());
                let subjects = [
                    (
                        pid_file(service),
                        if is_down { Judgement::problem(down) } else { Judgement::ok(Evidence::new()) },
                    ),
                    (SubjectKey::new(service.clone(), ProbeKind::Process, "restarts"), restarts),
                    (
                        SubjectKey::new(service.clone(), ProbeKind::Log, "/var/log/service.log"),
                        if step % 2 == 0 { log.occurred(busy) } else { log },
                    ),
                ];
                for (subject, mut judgement) in subjects {
                    memory.recent.note(now, &subject, &judgement);
                    memory.recent.explain(now, &subject, &mut judgement);
                    memory.observe(now, &subject, &judgement);
                }
                let subject = SubjectKey::new(service.clone(), ProbeKind::Process, "restarts");
                memory.note_probe(&subject, Remembered::of(&judges[index]));
            }
            memory.note_services(&mut seen);
            if step % HOUR_STEPS == 0 {
                hours.push(kept_bytes(&mut memory));
            }
        }
        let (first, second) = hours.split_at(12);
        let (first, second) = (first.iter().max().unwrap(), second.iter().max().unwrap());
        // Numbers have more digits later.
        assert!(*second <= first + first / 50, "{hours:?}");
        // What it holds back is what grows at first.
        assert!(hours[0] < *first, "{hours:?}");
    }

    /// The coordinator would count it as running for ever, and a second one as one too many.
    #[test]
    fn a_singleton_that_is_no_longer_watched_is_told_as_stopped() {
        let subject = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::Process, singleton::SUBJECT);
        let running = serde_json::json!([boot(1), { "told": { "running": true, "at_ms": 7 } }]);
        let stopped = serde_json::json!([boot(1), { "told": { "running": false, "at_ms": 7 } }]);
        for (saved, expected) in [(running, 1), (stopped, 0), (serde_json::json!({ "inode": 7 }), 0)] {
            let mut memory = Memory::new(boot(1));
            memory.note_probe(&subject, Remembered::of(saved));
            let now = crate::clock::now();
            let told = memory.unwatched(now, &BTreeSet::from([subject.clone()]));
            assert!(told.is_empty(), "it is watched: {told:?}");
            let told = memory.unwatched(now, &BTreeSet::new());
            assert_eq!(told.len(), expected, "{told:?}");
            for Change { event, .. } in told {
                let FindingEvent::Occurred(finding) = event else { panic!("{event:?}") };
                assert_eq!(finding.evidence.get("new"), Some(&Value::Text("stopped".into())));
                assert_eq!(finding.key.subject, subject);
            }
            assert!(memory.retain(&BTreeSet::new()).is_empty());
            assert!(memory.unwatched(now, &BTreeSet::new()).is_empty(), "once");
        }
    }

    #[test]
    fn as_many_subjects_as_are_allowed_are_kept_and_only_what_changed_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool.db");
        let spool = Spool::open(&path, SpoolLimits::default(), boot(1), crate::clock::now()).unwrap();
        let (mut spool, _handle) = crate::spool::own(spool).unwrap();
        let mut memory = Memory::load(&mut spool, boot(1)).unwrap();
        let bad = Judgement::problem(Problem::new(Reason::PidFileMalformed, "x".repeat(400)));
        let subjects: Vec<SubjectKey> =
            (0..4096).map(|n| pid_file(&ServiceName::new(format!("service-{n}")).unwrap())).collect();
        for subject in &subjects {
            memory.observe(crate::clock::now(), subject, &bad);
            memory.note_probe(subject, Remembered::of(serde_json::json!({ "seen": "y".repeat(800) })));
        }
        let written = memory.append_to(&mut spool, &[], crate::clock::now()).unwrap();
        assert!(written.subjects.len() >= subjects.len());
        let mut copy = Ledger::default();
        copy.copy_from(&memory.ledger, &written.subjects);
        assert_eq!(copy.open_digest(), memory.ledger.open_digest());

        let healthy = Judgement::default();
        memory.observe(crate::clock::now(), &subjects[7], &healthy);
        assert!(memory.changed_rows().len() <= 3);
        memory.append_to(&mut spool, &[], crate::clock::now()).unwrap();
        let digest = memory.ledger.open_digest();
        let (rows, spool_id) = (spool.with(|spool| spool.get_states(PREFIX)).unwrap(), spool.view().spool);
        assert_eq!(Memory::decode(rows, boot(1)).ledger.open_digest(), digest);

        let restarted = spool.with(Spool::restart).unwrap();
        assert_ne!(restarted.spool, spool_id);
        let written = memory.append_to(&mut spool, &[], crate::clock::now()).unwrap();
        assert!(written.subjects.len() >= subjects.len(), "another spool is given everything");
    }
}
