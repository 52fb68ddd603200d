//! The agents' links: what the newest heartbeat said, in atomics that the liveness sweep reads, and the way to reach a
//! connected agent. Heartbeats end here; they never pass through the inbox.

use super::handle::lock;
use super::questions::Questions;
use super::to_agent::Outbox;
use muster_common::ids::AgentName;
use muster_proto::v1::{self, ConnectResponse};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a heartbeat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Digest of the open conditions as of `head_sequence`.
    pub digest: u64,
    /// Head of the agent's spool.
    pub head_sequence: u64,
    /// MemAvailable.
    pub memory_available_bytes: u64,
    /// Entries evicted before they were acknowledged.
    pub evicted_entries: u64,
    /// Host's wall clock minus ours, in ms.
    pub skew_ms: i64,
}

/// One living stream of an agent.
#[derive(Debug)]
pub struct Link {
    /// Address the coordinator sees.
    pub peer: String,
    /// Distinguishes this stream from the one before and after it.
    pub number: u64,
    /// Ends the stream with a reason for the agent.
    pub replaced: CancellationToken,
    /// Messages to the agent.
    pub outbox: Outbox,
    /// Log time in ms at which anything was last heard on this stream.
    pub last_heard_ms: AtomicI64,
    /// The newest heartbeat; read as a whole, so that digest and head belong together.
    pub newest: Mutex<Option<Newest>>,
    /// A heartbeat came that nobody has taken.
    is_new: AtomicBool,
    /// Resync last asked for; 0 before the first.
    pub resync_asked: AtomicU64,
    /// Log time in ms of that.
    pub resync_asked_ms: AtomicI64,
    /// Log time in ms at which a contender for this stream's name was last journaled.
    pub conflict_told_ms: AtomicI64,
    /// Highest ping sent.
    pub pinged: AtomicU64,
    /// Highest ping answered.
    pub ponged: AtomicU64,
    /// Rings when a pong arrives.
    pub pong: Notify,
    /// Questions that wait for their answer.
    pub questions: Questions,
}

impl Link {
    /// A stream that was just opened at log time `now_ms`.
    pub fn new(peer: String, number: u64, now_ms: i64, outbox: Outbox) -> Self {
        Self {
            peer,
            number,
            replaced: CancellationToken::new(),
            outbox,
            last_heard_ms: AtomicI64::new(now_ms),
            newest: Mutex::new(None),
            is_new: AtomicBool::new(false),
            resync_asked: AtomicU64::new(0),
            resync_asked_ms: AtomicI64::new(i64::MIN),
            conflict_told_ms: AtomicI64::new(i64::MIN),
            pinged: AtomicU64::new(0),
            ponged: AtomicU64::new(0),
            pong: Notify::new(),
            questions: Questions::default(),
        }
    }

    /// A heartbeat came.
    pub fn beat(&self, newest: Newest) {
        *lock(&self.newest) = Some(newest);
        self.is_new.store(true, Ordering::Release);
    }

    /// The newest heartbeat, if one came since this was asked last.
    pub fn take_new(&self) -> Option<Newest> {
        // Most have nothing new: a look leaves the cache line to whoever has it.
        let is_new = self.is_new.load(Ordering::Relaxed) && self.is_new.swap(false, Ordering::AcqRel);
        if is_new { self.newest() } else { None }
    }

    /// The newest heartbeat, if any came.
    pub fn newest(&self) -> Option<Newest> {
        *lock(&self.newest)
    }

    /// Sends a ping and waits for its answer; how long it took, or `None`.
    pub async fn ping(&self, patience: std::time::Duration) -> Option<std::time::Duration> {
        let id = self.pinged.fetch_add(1, Ordering::Relaxed) + 1;
        let message = v1::connect_response::Message::Ping(v1::Ping { id });
        let begun = std::time::Instant::now();
        self.outbox.try_send(Ok(ConnectResponse { message: Some(message) })).ok()?;
        let answered = async {
            loop {
                let bell = self.pong.notified();
                if self.ponged.load(Ordering::Acquire) >= id {
                    return;
                }
                bell.await;
            }
        };
        tokio::time::timeout(patience, answered).await.ok()?;
        Some(begun.elapsed())
    }

    /// Notes the answer to a ping.
    pub fn ponged(&self, id: u64) {
        self.ponged.fetch_max(id.min(self.pinged.load(Ordering::Relaxed)), Ordering::Release);
        self.pong.notify_waiters();
    }

    /// Whether a contender at `now_ms` is to be journaled: the first one, and then one in each interval.
    pub fn tells_conflict(&self, now_ms: i64, interval: std::time::Duration) -> bool {
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX);
        let due = |told_ms: i64| (now_ms.saturating_sub(told_ms) >= interval_ms).then_some(now_ms);
        self.conflict_told_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok()
    }

    /// Notes that something was heard.
    pub fn heard(&self, now_ms: i64) {
        self.last_heard_ms.fetch_max(now_ms, Ordering::Relaxed);
    }
}

/// Every agent's current stream.
#[derive(Debug, Default)]
pub struct Links {
    by_agent: Mutex<BTreeMap<AgentName, Arc<Link>>>,
    next_number: AtomicU64,
}

impl Links {
    /// A number for a new stream.
    pub fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The agent's stream, if it is connected.
    pub fn get(&self, agent: &AgentName) -> Option<Arc<Link>> {
        lock(&self.by_agent).get(agent).cloned()
    }

    /// Makes `link` the agent's stream and gives back the one it replaces.
    pub fn insert(&self, agent: &AgentName, link: Arc<Link>) -> Option<Arc<Link>> {
        lock(&self.by_agent).insert(agent.clone(), link)
    }

    /// Removes the agent's stream, if it is still this one.
    pub fn remove(&self, agent: &AgentName, number: u64) -> bool {
        let mut links = lock(&self.by_agent);
        let same = links.get(agent).is_some_and(|link| link.number == number);
        if same {
            links.remove(agent);
        }
        same
    }

    /// Connected agents.
    pub fn len(&self) -> usize {
        lock(&self.by_agent).len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks at all streams, in order of name, without a copy. Nobody comes or goes meanwhile: be quick.
    pub fn look<T>(&self, look: impl FnOnce(&BTreeMap<AgentName, Arc<Link>>) -> T) -> T {
        look(&lock(&self.by_agent))
    }

    /// All streams, in order of name.
    pub fn all(&self) -> Vec<(AgentName, Arc<Link>)> {
        lock(&self.by_agent).iter().map(|(name, link)| (name.clone(), Arc::clone(link))).collect()
    }
}
