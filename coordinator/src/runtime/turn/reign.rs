//! What the loop's thread does when its role begins or changes, and what a standby does with the primary's entries.

use super::super::clock::LogClock;
use super::super::handle::{Batch, CoordinatorRole, RuntimeError, Standing, lock};
use super::super::load::decode_state;
use super::super::resync::Before;
use super::Turner;
use crate::metrics::RoleLabel;
use crate::store::{Head, Snapshot, StoredEntry};
use muster_common::epoch_proof::EpochProof;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{Entry, EntryBody, Fact};
use muster_coordinator_core::failover;
use muster_coordinator_core::liveness::Liveness;
use muster_coordinator_core::machine::Machine;

impl Turner {
    /// At the start of a primary: `Started`, the policy of the config, and the first commit.
    pub(super) fn reign_begins(&mut self, now: Timestamp) -> Result<(), RuntimeError> {
        self.tell_role();
        let Some(epoch) = self.standing.epoch().filter(|_| self.standing.role == CoordinatorRole::Primary) else {
            return Ok(());
        };
        let (coordinator, fleet) = (self.standing.id.clone(), self.standing.fleet.clone());
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.feed(now, Fact::Started { coordinator, fleet, version, epoch });
        self.listen_anew(now);
        self.commit()
    }

    /// The policy of the config, where it differs, and a table in which every known agent is awaited.
    pub(super) fn listen_anew(&mut self, now: Timestamp) {
        if self.machine.state().policy() != &self.policy {
            let policy = Box::new(self.policy.clone());
            self.feed(now, Fact::PolicyLoaded { policy });
        }
        self.liveness = Liveness::from_state(self.machine.state(), now);
    }

    pub(super) fn promote(&mut self, now: Timestamp, proof: EpochProof, fact: Fact) -> Result<u64, RuntimeError> {
        if let Some(highest) = self.standing.highest_epoch().filter(|highest| *highest >= proof.epoch) {
            let (offered, highest) = (proof.epoch.to_string(), highest.to_string());
            return Err(RuntimeError::EpochTooLow { offered, highest });
        }
        let standing = Standing {
            role: CoordinatorRole::Primary,
            own: Some(proof.clone()),
            highest: Some(proof),
            ..self.standing.clone()
        };
        // In one transaction with the fact: no epoch without its takeover, and the other way round.
        self.words = standing.words();
        self.standing = standing;
        self.clock = LogClock::anchored(self.machine.state().last_at().max(now));
        *lock(&self.shared.clock) = self.clock;
        let now = self.clock.now();
        let index = self.feed(now, fact);
        self.listen_anew(now);
        Ok(index)
    }

    pub(super) fn hear(&mut self, proof: EpochProof) -> Result<Standing, RuntimeError> {
        let mut reign = self.standing.reign();
        if reign.hear(&proof.epoch) == failover::Heard::Known {
            return Ok(self.standing.clone());
        }
        let standing = Standing { role: reign.role, highest: Some(proof), ..self.standing.clone() };
        standing.save(self.store.as_mut())?;
        self.standing = standing;
        self.tell_role();
        Ok(self.standing.clone())
    }

    pub(super) fn tell_role(&self) {
        let metrics = &self.shared.metrics;
        for role in [CoordinatorRole::Primary, CoordinatorRole::Standby, CoordinatorRole::Fenced] {
            let label = RoleLabel { role: role.as_str().to_owned() };
            metrics.role.get_or_create(&label).set(i64::from(role == self.standing.role));
        }
        let number = self.standing.epoch().map_or(0, |epoch| epoch.number);
        metrics.epoch.set(i64::try_from(number).unwrap_or(i64::MAX));
        self.shared.standing.send_replace(self.standing.clone());
    }

    pub(super) fn must_follow(&self) -> Result<(), RuntimeError> {
        match self.standing.role {
            CoordinatorRole::Standby => Ok(()),
            role => Err(RuntimeError::NotStandby(role)),
        }
    }

    /// Standby: the primary's entries, durable first, then applied.
    pub(super) fn append_stored(&mut self, stored: &[StoredEntry]) -> Result<Head, RuntimeError> {
        self.must_follow()?;
        let entries: Vec<Entry> = stored.iter().map(StoredEntry::decode).collect::<Result<_, _>>()?;
        let head = self.store.append_stored(stored)?;
        let mut resynced = Vec::new();
        for entry in &entries {
            let before = match &entry.body {
                EntryBody::Fact(fact) => Before::of(self.machine.state(), fact),
                _ => None,
            };
            self.machine.apply_replicated(entry).map_err(|error| RuntimeError::State(error.to_string()))?;
            resynced.extend(before.map(|before| before.compared(self.machine.state(), entry.index)));
        }
        if !entries.is_empty() {
            self.publish(Batch { entries: entries.into(), resynced: resynced.into(), head });
        }
        Ok(head)
    }

    /// Standby: another history than the primary's is thrown away for it.
    pub(super) fn install(&mut self, snapshot: &Snapshot) -> Result<Head, RuntimeError> {
        self.must_follow()?;
        let state = decode_state(snapshot)?;
        self.store.replace(snapshot)?;
        self.machine = Machine::new(state);
        self.snapshot_index = snapshot.index;
        self.encoding = None;
        self.shared.freezes.send_replace(self.machine.state().freezes().cloned().collect());
        self.shared.head.send_replace(self.store.head());
        Ok(self.store.head())
    }
}
