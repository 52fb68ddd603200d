//! An agent's spool in memory: the same promises as the agent's SQLite file (positions, chain of hashes, eviction,
//! acknowledgements, the highest epoch), none of its I/O. Cloned, it is what a reverted disk brings back.

use muster_agent_core::clock::Now;
use muster_agent_core::session::{Entry, SpoolView, Written};
use muster_common::finding::FindingEvent;
use muster_common::ids::{BootId, Epoch, SpoolId};
use muster_common::spool::{EntryHash, Position};
use std::collections::VecDeque;

/// Replicated entries kept, so that a coordinator that lost them may ask again.
const KEPT_REPLICATED: usize = 20;

/// The spool.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    pub(super) id: SpoolId,
    pub(super) head: u64,
    pub(super) head_hash: EntryHash,
    pub(super) stored: u64,
    pub(super) replicated: u64,
    pub(super) evicted: u64,
    pub(super) epoch: Option<Epoch>,
    pub(super) entries: VecDeque<Entry>,
}

impl Spool {
    pub(super) fn new(id: SpoolId) -> Self {
        Self {
            id,
            head: 0,
            head_hash: EntryHash::ZERO,
            stored: 0,
            replicated: 0,
            evicted: 0,
            epoch: None,
            entries: VecDeque::new(),
        }
    }

    pub(super) fn view(&self) -> SpoolView {
        let oldest = self.entries.front().map_or(self.head + 1, |entry| entry.sequence);
        SpoolView { spool: self.id, head: self.head, oldest, evicted: self.evicted, stored: self.stored }
    }

    fn insert(&mut self, body: Vec<u8>, written: Written) -> EntryHash {
        let previous_hash = self.head_hash;
        self.head += 1;
        self.head_hash = EntryHash::of(self.id, self.head, previous_hash, &body);
        self.entries.push_back(Entry { sequence: self.head, previous_hash, hash: self.head_hash, body, written });
        self.head_hash
    }

    pub(super) fn append(
        &mut self,
        event: &FindingEvent,
        observed_boottime_ms: u64,
        boot: BootId,
        now: Now,
    ) -> EntryHash {
        let body = muster_proto::convert::encode_finding_event(event);
        let boottime_ms = observed_boottime_ms.min(now.boottime_ms);
        self.insert(body, Written { boot, boottime_ms, wall: now.wall - now.since(boottime_ms) })
    }

    pub(super) fn read(&self, after: u64, up_to: u64, entries_max: usize) -> Vec<Entry> {
        let wanted = |entry: &&Entry| entry.sequence > after && entry.sequence <= up_to;
        self.entries.iter().filter(wanted).take(entries_max).cloned().collect()
    }

    pub(super) fn ack(&mut self, spool: SpoolId, stored: u64, replicated: u64) {
        if spool != self.id {
            return;
        }
        self.stored = self.stored.max(stored.min(self.head));
        self.replicated = self.replicated.max(replicated.min(self.stored));
        let deletable = self.entries.iter().take_while(|entry| entry.sequence <= self.replicated).count();
        self.entries.drain(..deletable.saturating_sub(KEPT_REPLICATED));
    }

    /// False when the position is of another history.
    pub(super) fn agrees(&self, position: Position) -> bool {
        if position.spool != self.id || position.sequence == 0 {
            return true;
        }
        if position.sequence > self.head {
            return false;
        }
        let ours = match self.entries.iter().find(|entry| entry.sequence >= position.sequence) {
            Some(entry) if entry.sequence == position.sequence => Some(entry.hash),
            Some(entry) if entry.sequence == position.sequence + 1 => Some(entry.previous_hash),
            Some(_) => None,
            None => (self.head == position.sequence).then_some(self.head_hash),
        };
        position.hash == EntryHash::ZERO || ours.is_none_or(|ours| ours == position.hash)
    }

    /// Goes on under a new id with what is not replicated; gives the old and the new hash of each.
    pub(super) fn restart(&mut self, id: SpoolId) -> Vec<(EntryHash, EntryHash)> {
        let kept: Vec<Entry> = self.entries.drain(..).filter(|entry| entry.sequence > self.replicated).collect();
        *self = Self { evicted: self.evicted, epoch: self.epoch.take(), ..Self::new(id) };
        kept.into_iter().map(|entry| (entry.hash, self.insert(entry.body, entry.written))).collect()
    }

    /// Too full: the older half goes, acknowledged or not. Gives what no coordinator was known to have.
    pub(super) fn evict(&mut self) -> Vec<EntryHash> {
        let gone: Vec<Entry> = self.entries.drain(..self.entries.len() / 2).collect();
        let lost: Vec<_> =
            gone.iter().filter(|entry| entry.sequence > self.replicated).map(|entry| entry.hash).collect();
        self.evicted += lost.len() as u64;
        lost
    }

    /// Makes the epoch durable unless a higher one is; gives the highest.
    pub(super) fn store_epoch(&mut self, epoch: Epoch) -> Epoch {
        let highest = self.epoch.take().max(Some(epoch.clone())).unwrap_or(epoch);
        self.epoch = Some(highest.clone());
        highest
    }
}
