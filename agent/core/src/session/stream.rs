//! What happens on a stream once both sides agree where the spool stands.

use super::{ACK_TIMEOUT_MS, Entry, Output, SpoolView, WINDOW_BATCHES};
use muster_common::ids::Epoch;
use std::collections::VecDeque;

/// An answer to a resync request on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resync {
    None,
    /// Asked for while a read was out: what is being read may be newer than a snapshot taken now.
    Wanted(u64),
    /// The driver is taking the snapshot.
    Taking(u64),
    /// Taken as of `head`; goes out when every entry up to there did, and no later one does before it.
    Held {
        request: u64,
        head: u64,
    },
}

#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) since_ms: u64,
    /// Of the coordinator at the other end.
    pub(super) epoch: Epoch,
    interval_ms: u64,
    heartbeat_due_ms: u64,
    heartbeats: u64,
    /// Last sequence number sent, or told to be gone, or known to the coordinator.
    sent: u64,
    stored: u64,
    replicated: u64,
    /// Last sequence number of each batch that is not acknowledged, oldest first; at most [`WINDOW_BATCHES`].
    unacked: VecDeque<u64>,
    ack_deadline_ms: u64,
    /// Upper end of the read that is out.
    reading: Option<u64>,
    resync: Resync,
}

impl Streaming {
    /// The first heartbeat is due at once: it tells the coordinator whether the digests agree.
    pub(super) fn new(now_ms: u64, epoch: Epoch, interval_ms: u64, resume: u64) -> Self {
        Self {
            since_ms: now_ms,
            epoch,
            interval_ms,
            heartbeat_due_ms: now_ms,
            heartbeats: 0,
            sent: resume,
            stored: 0,
            replicated: 0,
            unacked: VecDeque::with_capacity(WINDOW_BATCHES),
            ack_deadline_ms: u64::MAX,
            reading: None,
            resync: Resync::None,
        }
    }

    pub(super) fn deadline_ms(&self) -> u64 {
        self.heartbeat_due_ms.min(self.ack_deadline_ms)
    }

    pub(super) fn ack_overdue(&self, now_ms: u64) -> bool {
        now_ms >= self.ack_deadline_ms
    }

    pub(super) fn tick(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if now_ms < self.heartbeat_due_ms {
            return;
        }
        self.heartbeats += 1;
        out.push(Output::SendHeartbeat { sequence: self.heartbeats });
        // On the beat where possible; after a suspend not all the missed ones.
        let next_ms = self.heartbeat_due_ms.saturating_add(self.interval_ms);
        self.heartbeat_due_ms = if next_ms > now_ms { next_ms } else { now_ms.saturating_add(self.interval_ms) };
    }

    /// Sends what may be sent and asks for what is wanted.
    pub(super) fn pump(&mut self, view: &SpoolView, out: &mut Vec<Output>) {
        if let Resync::Held { request, head } = self.resync
            && self.sent >= head
            && self.reading.is_none()
        {
            out.push(Output::SendSnapshot { request });
            self.resync = Resync::None;
        }
        if let Resync::Wanted(request) = self.resync
            && self.reading.is_none()
        {
            out.push(Output::TakeSnapshot);
            self.resync = Resync::Taking(request);
        }
        let up_to = match self.resync {
            Resync::Held { head, .. } => head,
            Resync::Taking(_) | Resync::Wanted(_) => return,
            Resync::None => view.head,
        };
        if self.reading.is_none() && self.unacked.len() < WINDOW_BATCHES && self.sent < up_to {
            out.push(Output::ReadEntries { after: self.sent, up_to });
            self.reading = Some(up_to);
        }
    }

    /// False when the entries are not what was asked for.
    pub(super) fn entries_read(
        &mut self,
        now_ms: u64,
        entries: Vec<Entry>,
        view: &SpoolView,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(up_to) = self.reading.take() else { return true };
        let mut last = self.sent;
        for entry in &entries {
            if entry.sequence <= last || entry.sequence > up_to {
                return false;
            }
            last = entry.sequence;
        }
        let next = entries.first().map_or(up_to.saturating_add(1), |entry| entry.sequence);
        if next > self.sent + 1 {
            out.push(Output::SendGap { spool: view.spool, first: self.sent + 1, last: next - 1 });
            self.sent = next - 1;
        }
        if !entries.is_empty() {
            if self.unacked.is_empty() {
                self.ack_deadline_ms = now_ms.saturating_add(ACK_TIMEOUT_MS);
            }
            self.sent = last;
            self.unacked.push_back(last);
            out.push(Output::SendEntries { spool: view.spool, entries });
        }
        self.pump(view, out);
        true
    }

    /// False when more was acknowledged than was ever sent.
    pub(super) fn acked(
        &mut self,
        now_ms: u64,
        stored: u64,
        replicated: u64,
        view: &SpoolView,
        out: &mut Vec<Output>,
    ) -> bool {
        if stored > self.sent {
            return false;
        }
        let (stored, replicated) = (stored.max(self.stored), replicated.min(stored).max(self.replicated));
        if (stored, replicated) == (self.stored, self.replicated) {
            return true;
        }
        (self.stored, self.replicated) = (stored, replicated);
        out.push(Output::StoreAck { spool: view.spool, stored, replicated });
        let before = self.unacked.len();
        self.unacked.retain(|last| *last > stored);
        if self.unacked.is_empty() {
            self.ack_deadline_ms = u64::MAX;
        } else if self.unacked.len() < before {
            self.ack_deadline_ms = now_ms.saturating_add(ACK_TIMEOUT_MS);
        }
        self.pump(view, out);
        true
    }

    /// A later request replaces an earlier one that was not answered yet.
    pub(super) fn resync(&mut self, request: u64, view: &SpoolView, out: &mut Vec<Output>) {
        self.resync = match self.resync {
            Resync::None | Resync::Wanted(_) => Resync::Wanted(request),
            Resync::Taking(_) => Resync::Taking(request),
            Resync::Held { head, .. } => Resync::Held { request, head },
        };
        self.pump(view, out);
    }

    pub(super) fn snapshot_taken(&mut self, head: u64, view: &SpoolView, out: &mut Vec<Output>) {
        if let Resync::Taking(request) = self.resync {
            // A snapshot cannot be newer than the spool; waiting for more would be waiting for ever.
            self.resync = Resync::Held { request, head: head.min(view.head) };
            self.pump(view, out);
        }
    }
}
