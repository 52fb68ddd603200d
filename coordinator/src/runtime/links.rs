//! The agents' links: what the newest heartbeat said, in atomics that the liveness sweep reads, and the way to reach a
//! connected agent. Heartbeats end here; they never pass through the inbox.

use super::handle::lock;
use muster_common::ids::AgentName;
use muster_proto::v1::ConnectResponse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// Messages waiting for one agent (acks, pings, resyncs). Overflow rule: the newest is not sent; every one of them is
/// repeated or superseded by a later one.
pub const LINK_OUTBOX_MESSAGES_MAX: usize = 16;

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
    pub outbox: mpsc::Sender<Result<ConnectResponse, tonic::Status>>,
    /// Log time in ms at which anything was last heard on this stream.
    pub last_heard_ms: AtomicI64,
    /// Digest of the newest heartbeat.
    pub digest: AtomicU64,
    /// Head sequence of the newest heartbeat.
    pub head_sequence: AtomicU64,
    /// MemAvailable of the newest heartbeat.
    pub memory_available_bytes: AtomicU64,
    /// Evicted entries as of the newest heartbeat.
    pub evicted_entries: AtomicU64,
    /// Host's wall clock minus log time at the newest heartbeat, in ms.
    pub skew_ms: AtomicI64,
    /// Number of heartbeats heard.
    pub heartbeats: AtomicU64,
    /// Highest ping answered.
    pub ponged: AtomicU64,
    /// Rings when a pong arrives.
    pub pong: Notify,
}

impl Link {
    /// A stream that was just opened at log time `now_ms`.
    pub fn new(
        peer: String,
        number: u64,
        now_ms: i64,
        outbox: mpsc::Sender<Result<ConnectResponse, tonic::Status>>,
    ) -> Self {
        Self {
            peer,
            number,
            replaced: CancellationToken::new(),
            outbox,
            last_heard_ms: AtomicI64::new(now_ms),
            digest: AtomicU64::new(0),
            head_sequence: AtomicU64::new(0),
            memory_available_bytes: AtomicU64::new(0),
            evicted_entries: AtomicU64::new(0),
            skew_ms: AtomicI64::new(0),
            heartbeats: AtomicU64::new(0),
            ponged: AtomicU64::new(0),
            pong: Notify::new(),
        }
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

    /// All streams, in order of name.
    pub fn all(&self) -> Vec<(AgentName, Arc<Link>)> {
        lock(&self.by_agent).iter().map(|(name, link)| (name.clone(), Arc::clone(link))).collect()
    }
}

/// Removes a stream from [`Links`] when its task ends, however it ends.
#[derive(Debug)]
pub struct LinkKeeper {
    /// Where from.
    pub links: Arc<Links>,
    /// Whose.
    pub agent: AgentName,
    /// Which.
    pub number: u64,
}

impl Drop for LinkKeeper {
    fn drop(&mut self) {
        self.links.remove(&self.agent, self.number);
    }
}
