//! What the agent remembers across a restart: open conditions, causes, instances of services, cursors of probes. Saved
//! in one transaction with the events that follow from it.

use crate::spool::{Append, SpoolError, SpoolHandle};
use muster_agent_core::clock::Now;
use muster_agent_core::diagnose::Causes;
use muster_agent_core::ledger::Ledger;
use muster_agent_core::services::Services;
use muster_common::finding::SubjectKey;
use muster_common::ids::BootId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Under this the spool keeps it.
const STATE_KEY: &str = "agent";

/// Everything that is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    /// The boot it was saved in.
    boot: BootId,
    /// Open conditions.
    pub ledger: Ledger,
    /// What explains other things.
    pub causes: Causes,
    /// Instances of services.
    pub services: Services,
    #[serde(with = "pairs")]
    probes: BTreeMap<SubjectKey, serde_json::Value>,
}

/// Where events and memory go.
pub trait StateOutlet {
    /// Writes both durably, or neither.
    fn append(&mut self, events: Vec<Append>, memory: &Memory, now: Now) -> Result<(), SpoolError>;

    /// The host's memory was just looked at: a good moment to tell it in heartbeats.
    fn memory_probed(&mut self) {}
}

impl Memory {
    /// Nothing yet.
    pub fn new(boot: BootId) -> Self {
        Self {
            boot,
            ledger: Ledger::default(),
            causes: Causes::default(),
            services: Services::default(),
            probes: BTreeMap::new(),
        }
    }

    /// What the spool kept. A memory that cannot be read is told and begun anew: what is wrong will be seen again.
    pub fn load(spool: &SpoolHandle, boot: BootId) -> Result<Self, SpoolError> {
        let Some(bytes) = spool.get_state_blocking(STATE_KEY)? else { return Ok(Self::new(boot)) };
        Ok(Self::decode(&bytes, boot))
    }

    /// Writes events and memory to the spool in one transaction; gives the last sequence number.
    pub fn append_to(&self, spool: &SpoolHandle, events: Vec<Append>, now: Now) -> Result<u64, SpoolError> {
        let states = vec![(STATE_KEY.to_owned(), self.encode())];
        spool.append_blocking(events, states, now).map(|position| position.sequence)
    }

    fn encode(&self) -> Vec<u8> {
        // Maps with structured keys are the only thing that could fail, and there is none (see the tests).
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn decode(bytes: &[u8], boot: BootId) -> Self {
        let mut memory: Self = match serde_json::from_slice(bytes) {
            Ok(memory) => memory,
            Err(error) => {
                tracing::error!(%error, "what was remembered cannot be read; beginning anew");
                return Self::new(boot);
            }
        };
        if memory.boot != boot || boot.0.is_nil() {
            memory.ledger.rebooted();
            memory.causes.rebooted();
            // Every process of before is another life's; the probes tell the reboot from their own cursors.
            memory.services = Services::default();
            memory.boot = boot;
        }
        memory
    }

    /// What a probe gave to keep.
    pub fn probe(&self, subject: &SubjectKey) -> Option<serde_json::Value> {
        self.probes.get(subject).cloned()
    }

    /// Keeps what a probe gives.
    pub fn note_probe(&mut self, subject: &SubjectKey, saved: Option<serde_json::Value>) {
        match saved {
            Some(saved) => drop(self.probes.insert(subject.clone(), saved)),
            None => drop(self.probes.remove(subject)),
        }
    }

    /// Forgets probes that are no longer.
    pub fn retain(&mut self, watched: &BTreeSet<SubjectKey>) {
        self.probes.retain(|subject, _| watched.contains(subject));
    }
}

/// JSON has no maps with structured keys: a list of pairs.
mod pairs {
    use super::SubjectKey;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    type Map = BTreeMap<SubjectKey, serde_json::Value>;

    pub(super) fn serialize<S: Serializer>(map: &Map, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
        Vec::<(SubjectKey, serde_json::Value)>::deserialize(deserializer).map(|pairs| pairs.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_agent_core::judgement::{Judgement, Problem};
    use muster_common::finding::ProbeKind;
    use muster_common::ids::{ProcessId, ServiceName};
    use muster_common::reason::Reason;

    #[test]
    fn survives_a_restart_and_knows_a_reboot() {
        let boot = |n| BootId(uuid::Uuid::from_u128(n));
        let service = ServiceName::new("spl").unwrap();
        let subject = SubjectKey::new(service.clone(), ProbeKind::PidFile, "/run/spl.pid");
        let mut memory = Memory::new(boot(1));
        let down = Judgement::problem(Problem::new(Reason::ProcessDown, "gone"));
        assert_eq!(memory.ledger.observe(crate::clock::now(), &subject, &down).len(), 1);
        memory.note_probe(&subject, Some(serde_json::json!({ "inode": 7 })));
        let instance = muster_agent_core::services::Instance {
            process: ProcessId { pid: 7, start_ticks: 9 },
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: 1,
            ended_boottime_ms: None,
        };
        memory.services.note(&service, instance);
        let bytes = memory.encode();

        let mut same = Memory::decode(&bytes, boot(1));
        assert!(same.ledger.observe(crate::clock::now(), &subject, &down).is_empty());
        assert_eq!(same.probe(&subject), Some(serde_json::json!({ "inode": 7 })));
        assert!(same.services.newest(&service).is_some());

        let other = Memory::decode(&bytes, boot(2));
        assert_eq!(other.ledger.open().count(), 1);
        assert!(other.services.newest(&service).is_none());
        assert_eq!(Memory::decode(b"{", boot(1)).ledger.open().count(), 0);
    }
}
