//! What waits to be sent on one stream. The transport takes a message when it has room for one; the order in which
//! they are given is decided here, at that moment: heartbeats and pongs before entries.

use crate::uplink::wire;
use futures_util::Stream;
use muster_agent_core::clock::Now;
use muster_agent_core::session::Entry;
use muster_common::ids::{BootId, SpoolId};
use muster_proto::v1;
use muster_proto::v1::connect_request::Message;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Pongs that wait. A coordinator that pings faster than it reads gets the newest answers only.
const PONGS_MAX: usize = 8;

/// Messages that may be large and keep their order.
#[derive(Debug)]
pub(super) enum Bulk {
    Entries { spool: SpoolId, entries: Vec<Entry> },
    Gap(v1::SpoolGap),
    OpenSet(v1::OpenSet),
    Diagnosis(v1::DiagnoseAnswer),
    Neighbour(v1::NeighbourAnswer),
}

/// How ages are told: at the moment an entry leaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: fn() -> Now,
    pub(super) boot: BootId,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    hello: Option<v1::Hello>,
    pongs: VecDeque<u64>,
    /// Only the newest: one that could not be sent in time says nothing any more.
    heartbeat: Option<v1::Heartbeat>,
    bulk: VecDeque<Bulk>,
    goodbye: Option<v1::Goodbye>,
    closed: bool,
    waker: Option<Waker>,
}

/// The sending end; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Outbox(Arc<Mutex<Inner>>);

/// The end the transport reads.
#[derive(Debug)]
pub(super) struct OutboxStream(Arc<Mutex<Inner>>);

impl Outbox {
    pub(super) fn new(clock: Clock) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            clock,
            hello: None,
            pongs: VecDeque::new(),
            heartbeat: None,
            bulk: VecDeque::new(),
            goodbye: None,
            closed: false,
            waker: None,
        })))
    }

    pub(super) fn stream(&self) -> OutboxStream {
        OutboxStream(Arc::clone(&self.0))
    }

    pub(super) fn hello(&self, hello: v1::Hello) {
        self.change(|inner| inner.hello = Some(hello));
    }

    pub(super) fn pong(&self, id: u64) {
        self.change(|inner| {
            if inner.pongs.len() == PONGS_MAX {
                inner.pongs.pop_front();
            }
            inner.pongs.push_back(id);
        });
    }

    pub(super) fn heartbeat(&self, heartbeat: v1::Heartbeat) {
        self.change(|inner| inner.heartbeat = Some(heartbeat));
    }

    /// Bounded by the session: a window of batches, and the chunks of one open set; and by the driver: few answers.
    pub(super) fn bulk(&self, bulk: Bulk) {
        self.change(|inner| inner.bulk.push_back(bulk));
    }

    /// What is bulky is dropped: it is in the spool, and goodbye is now.
    pub(super) fn goodbye(&self, reason: v1::goodbye::Reason) {
        self.change(|inner| {
            inner.bulk.clear();
            inner.goodbye = Some(v1::Goodbye { reason: reason.into() });
        });
    }

    /// Ends the stream after pongs, heartbeat and goodbye.
    pub(super) fn close(&self) {
        self.change(|inner| {
            inner.bulk.clear();
            inner.closed = true;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = lock(&self.0);
        change(&mut inner);
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }
}

impl Stream for OutboxStream {
    type Item = v1::ConnectRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = lock(&self.0);
        match inner.next() {
            Some(message) => Poll::Ready(Some(v1::ConnectRequest { message: Some(message) })),
            None if inner.closed => Poll::Ready(None),
            None => {
                inner.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Inner {
    fn next(&mut self) -> Option<Message> {
        if let Some(hello) = self.hello.take() {
            return Some(Message::Hello(hello));
        }
        if let Some(id) = self.pongs.pop_front() {
            return Some(Message::Pong(v1::Pong { id }));
        }
        if let Some(heartbeat) = self.heartbeat.take() {
            return Some(Message::Heartbeat(heartbeat));
        }
        if let Some(goodbye) = self.goodbye.take() {
            return Some(Message::Goodbye(goodbye));
        }
        Some(match self.bulk.pop_front()? {
            Bulk::Entries { spool, entries } => {
                Message::Entries(wire::entry_batch(spool, entries, (self.clock.now)(), self.clock.boot))
            }
            Bulk::Gap(gap) => Message::Gap(gap),
            Bulk::OpenSet(set) => Message::OpenSet(set),
            Bulk::Diagnosis(answer) => Message::Diagnosis(answer),
            Bulk::Neighbour(answer) => Message::Neighbour(answer),
        })
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};
    use muster_common::time::Timestamp;

    fn outbox() -> Outbox {
        let now = || Now { boottime_ms: 9_000, wall: Timestamp::UNIX_EPOCH };
        Outbox::new(Clock { now, boot: BootId(uuid::Uuid::nil()) })
    }

    fn take(stream: &mut OutboxStream) -> Option<Message> {
        stream.next().now_or_never().flatten().and_then(|request| request.message)
    }

    fn gap(first_sequence: u64) -> Bulk {
        Bulk::Gap(v1::SpoolGap { first_sequence, ..v1::SpoolGap::default() })
    }

    #[test]
    fn a_heartbeat_passes_everything_that_waits_and_only_the_newest_goes() {
        let outbox = outbox();
        let mut stream = outbox.stream();
        (1..=3).for_each(|n| outbox.bulk(gap(n)));
        for sequence in 1..=2 {
            outbox.heartbeat(v1::Heartbeat { sequence, ..v1::Heartbeat::default() });
        }
        assert!(matches!(take(&mut stream), Some(Message::Heartbeat(heartbeat)) if heartbeat.sequence == 2));
        assert!(matches!(take(&mut stream), Some(Message::Gap(gap)) if gap.first_sequence == 1));
        outbox.pong(4);
        assert!(matches!(take(&mut stream), Some(Message::Pong(pong)) if pong.id == 4));
        assert!(matches!(take(&mut stream), Some(Message::Gap(gap)) if gap.first_sequence == 2));
        outbox.goodbye(v1::goodbye::Reason::Shutdown);
        outbox.close();
        assert!(matches!(take(&mut stream), Some(Message::Goodbye(_))));
        assert_eq!(stream.next().now_or_never(), Some(None));
    }

    #[test]
    fn pongs_are_bounded() {
        let outbox = outbox();
        let mut stream = outbox.stream();
        (0..100).for_each(|id| outbox.pong(id));
        assert!(matches!(take(&mut stream), Some(Message::Pong(pong)) if pong.id == 92));
    }
}
