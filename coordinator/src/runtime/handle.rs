//! How everyone else talks to the loop: facts in, committed entries and answers out. Cheap to clone.

use super::clock::LogClock;
use super::links::Links;
use super::resync::Resynced;
use crate::metrics::Metrics;
use crate::store::{Head, JournalStore, Snapshot, StoreError, StoredEntry};
use muster_common::epoch_proof::EpochProof;
use muster_common::ids::{AgentName, CoordinatorId, Epoch, FleetName};
use muster_common::spool::Position;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{AgentHello, Disconnect, Entry, Fact};
pub use muster_coordinator_core::failover::CoordinatorRole;
use muster_coordinator_core::freeze::Freeze;
use muster_coordinator_core::liveness::Liveness;
use muster_coordinator_core::state::State;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Inputs waiting for the loop. Overflow rule: senders wait, so a stream that sends too much slows itself down.
/// Heartbeats do not pass through here.
pub(super) const INBOX_INPUTS_MAX: usize = 4_096;
/// Committed batches a watcher may be behind. Overflow rule: the slow watcher is ended and begins anew.
pub(super) const WATCHER_BATCHES_MAX: usize = 1_024;
/// A loop that has not turned for this long may have stood still together with everything else here. It turns at
/// least four times a second.
pub(super) const STOOD_STILL_MS: u64 = 1_000;

/// Who this coordinator is and under which epoch it reigns, as far as it is durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The name in its certificate.
    pub id: CoordinatorId,
    /// The fleet of its certificate.
    pub fleet: FleetName,
    /// What it is.
    pub role: CoordinatorRole,
    /// Its own epoch, if it ever reigned, with the proof.
    pub own: Option<EpochProof>,
    /// The highest epoch it has heard, its own included, with the proof.
    pub highest: Option<EpochProof>,
}

impl Standing {
    /// Its own epoch.
    pub fn epoch(&self) -> Option<Epoch> {
        self.own.as_ref().map(|proof| proof.epoch.clone())
    }

    /// The highest epoch it has heard.
    pub fn highest_epoch(&self) -> Option<Epoch> {
        self.highest.as_ref().map(|proof| proof.epoch.clone())
    }
}

/// Why the runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Only a primary takes facts.
    #[error("this coordinator is {}, not the primary: ask the primary{}", .role.as_str(), named(.primary))]
    NotPrimary {
        /// What it is.
        role: CoordinatorRole,
        /// The primary, as far as it is known.
        primary: Option<String>,
    },
    /// Only a standby follows.
    #[error("this coordinator is {}, not a standby: it follows nobody", .0.as_str())]
    NotStandby(CoordinatorRole),
    /// An epoch that is not higher than one heard before.
    #[error("epoch {offered} is not above {highest}, the highest heard: take that one's number plus one")]
    EpochTooLow {
        /// What was offered.
        offered: String,
        /// What is known.
        highest: String,
    },
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// State did not take an entry or a snapshot.
    #[error("{0}")]
    State(String),
    /// The coordinator is going down.
    #[error("the coordinator is stopping: try again in a few seconds")]
    Stopped,
}

/// The name callers of `submit` know.
pub type SubmitError = RuntimeError;

fn named(primary: &Option<String>) -> String {
    primary.as_ref().map(|name| format!(" ({name})")).unwrap_or_default()
}

/// What a submission became.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Index of the first submitted fact: its trace id.
    pub trace: u64,
    /// The journal's end after the commit.
    pub head: Head,
    /// Log time of the commit.
    pub at: Timestamp,
}

/// Where a newly connected agent goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// What is stored of its spool.
    pub position: Position,
    /// Journal index at which that was known.
    pub index: u64,
    /// How often it is to beat.
    pub heartbeat: std::time::Duration,
}

/// What one commit made durable.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The entries, in order. Never empty.
    pub entries: Arc<[Entry]>,
    /// What the resyncs among them changed.
    pub resynced: Arc<[Resynced]>,
    /// The journal's end after them.
    pub head: Head,
}

/// What a reader sees: State as of the last commit, and what lives beside it.
pub struct View<'a> {
    /// Committed State.
    pub state: &'a State,
    /// The liveness table.
    pub liveness: &'a Liveness,
    /// Log time.
    pub now: Timestamp,
    /// The journal.
    pub store: &'a dyn JournalStore,
    /// Role and epoch.
    pub standing: &'a Standing,
    /// Log time at which this process began.
    pub started: Timestamp,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("now", &self.now).field("standing", self.standing).finish_non_exhaustive()
    }
}

type Reply<T> = oneshot::Sender<Result<T, RuntimeError>>;
pub(super) type Read = Box<dyn FnOnce(&View<'_>) + Send>;

/// One input of the loop.
pub(super) enum Input {
    Facts {
        facts: Vec<Fact>,
        reply: Option<Reply<Committed>>,
    },
    Read(Read),
    /// A stream began; the answer comes after what it caused is durable.
    Connected {
        agent: AgentName,
        hello: Box<AgentHello>,
        reply: Reply<Resume>,
    },
    /// A stream ended.
    Disconnected {
        agent: AgentName,
        number: u64,
        how: Disconnect,
    },
    AppendStored {
        entries: Vec<StoredEntry>,
        reply: Reply<Head>,
    },
    InstallSnapshot {
        snapshot: Snapshot,
        reply: Reply<Head>,
    },
    Promote {
        proof: EpochProof,
        fact: Box<Fact>,
        reply: Reply<Committed>,
    },
    HearEpoch {
        proof: EpochProof,
        reply: Reply<Standing>,
    },
    /// The standbys changed: who they are outlives the process.
    KeepFollowers {
        reply: Reply<()>,
    },
}

/// A standby, as its primary knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Follower {
    /// Journal index it has made durable.
    pub index: u64,
    /// Log time of its last word.
    pub last_heard: Timestamp,
}

/// The promise of an answer that is given after the commit.
#[derive(Debug)]
pub struct Waiting(oneshot::Receiver<Result<Committed, RuntimeError>>);

impl Waiting {
    /// The answer.
    pub async fn done(self) -> Result<Committed, RuntimeError> {
        self.0.await.unwrap_or(Err(RuntimeError::Stopped))
    }
}

/// A round of questions to the other coordinators, by what had been raised when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asking(u64);

/// Whether the other coordinators are to be asked for a higher epoch before anyone is paged. After this process stood
/// still, somebody else may reign.
#[derive(Debug, Default)]
pub(super) struct PeerQuestion {
    /// Somebody asks when told to.
    pub(super) asker: AtomicBool,
    /// How often the question was raised.
    raised: AtomicU64,
    /// Up to which time it is answered: an answer that was on its way when this process stopped counts for none since.
    answered: AtomicU64,
    pub(super) ask: Notify,
}

impl PeerQuestion {
    /// Opens the question, if there is somebody who asks it.
    pub(super) fn raise(&self) {
        if self.asker.load(Ordering::Acquire) {
            self.raised.fetch_add(1, Ordering::AcqRel);
            self.ask.notify_one();
        }
    }

    /// Whoever begins to ask now answers the question as it was raised so far.
    fn begin(&self) -> Asking {
        Asking(self.raised.load(Ordering::Acquire))
    }

    /// True when this closed the question.
    fn answer(&self, asking: Asking) -> bool {
        let before = self.answered.fetch_max(asking.0, Ordering::AcqRel);
        before < asking.0 && !self.is_open()
    }

    fn is_open(&self) -> bool {
        self.answered.load(Ordering::Acquire) < self.raised.load(Ordering::Acquire)
    }
}

pub(super) struct Shared {
    pub(super) inbox: mpsc::Sender<Input>,
    pub(super) committed: broadcast::Sender<Batch>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) head: watch::Sender<Head>,
    pub(super) replicated: watch::Sender<Option<u64>>,
    /// Freezes as of the last commit.
    pub(super) freezes: watch::Sender<Arc<[Freeze]>>,
    pub(super) followers: Mutex<BTreeMap<CoordinatorId, Follower>>,
    pub(super) links: Arc<Links>,
    pub(super) metrics: Arc<Metrics>,
    /// Turns of the loop: a number that stands still means a loop that hangs.
    pub(super) turns: AtomicU64,
    /// The loop's clock. Everyone reads it for himself: what comes while the loop stands still is heard when it came.
    pub(super) clock: Mutex<LogClock>,
    /// Time since boot, in ms, at the loop's last turn.
    pub(super) turned_at_ms: AtomicU64,
    pub(super) peers: PeerQuestion,
    /// Everyone ends.
    pub(super) stop: CancellationToken,
    /// The loop ends, after everyone.
    pub(super) stop_loop: CancellationToken,
}

impl Shared {
    /// What every standby holds is safe.
    fn tell_replicated(&self) {
        let followers = lock(&self.followers);
        self.replicated.send_replace(followers.values().map(|follower| follower.index).min());
    }
}

/// The way to the loop.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("standing", &*self.shared.standing.borrow()).finish_non_exhaustive()
    }
}

impl Handle {
    /// Submits one fact and waits until it and what followed from it are durable.
    pub async fn submit(&self, fact: Fact) -> Result<Committed, RuntimeError> {
        self.submit_all(vec![fact]).await
    }

    /// Submits facts that belong together: one commit, in this order.
    pub async fn submit_all(&self, facts: Vec<Fact>) -> Result<Committed, RuntimeError> {
        self.enqueue(facts).await?.done().await
    }

    /// Puts facts into the inbox (waiting while it is full) and gives the promise of their commit.
    pub async fn enqueue(&self, facts: Vec<Fact>) -> Result<Waiting, RuntimeError> {
        let (reply, answer) = oneshot::channel();
        self.send(Input::Facts { facts, reply: Some(reply) }).await?;
        Ok(Waiting(answer))
    }

    /// Reads committed State, between two commits. `read` runs on the loop's thread: it looks and copies, nothing more.
    pub async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let (reply, answer) = oneshot::channel();
        let read: Read = Box::new(move |view| {
            // The asker may have gone; its answer then goes nowhere.
            drop(reply.send(read(view)));
        });
        self.send(Input::Read(read)).await?;
        answer.await.map_err(|_| RuntimeError::Stopped)
    }

    /// Every batch committed (or replicated) from now on. A receiver that lags has missed some and must begin anew.
    pub fn subscribe(&self) -> broadcast::Receiver<Batch> {
        self.shared.committed.subscribe()
    }

    /// The journal's end, as it moves.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.shared.head.subscribe()
    }

    /// Role and epoch, as they change.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    /// What this coordinator is now.
    pub fn role(&self) -> CoordinatorRole {
        self.shared.standing.borrow().role
    }

    /// Log time.
    pub fn now(&self) -> Timestamp {
        lock(&self.shared.clock).now()
    }

    /// Turns the loop has made. It turns at least twice a second while it is healthy.
    pub fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Relaxed)
    }

    /// Whether pages may leave now: this is the primary, its loop turned a moment ago, and if it had stood still, the
    /// other coordinators have been asked since.
    pub fn may_page(&self) -> bool {
        let turned_at_ms = self.shared.turned_at_ms.load(Ordering::Acquire);
        let stood_still_ms = boot_ms().saturating_sub(turned_at_ms);
        self.role() == CoordinatorRole::Primary
            && !self.shared.stop.is_cancelled()
            && stood_still_ms < STOOD_STILL_MS
            && !self.shared.peers.is_open()
    }

    /// For the one who asks the other coordinators: waits until that is due because this process stood still.
    pub(crate) async fn peers_to_ask(&self) {
        self.shared.peers.asker.store(true, Ordering::Release);
        self.shared.peers.ask.notified().await;
    }

    /// For the same one: a round begins.
    pub(crate) fn asking_peers(&self) -> Asking {
        self.shared.peers.begin()
    }

    /// They have been asked, or do not answer.
    pub(crate) fn peers_asked(&self, asking: Asking) {
        if self.shared.peers.answer(asking) {
            // The pagers waited for this.
            self.shared.head.send_modify(|_| {});
        }
    }

    /// The agents' links: liveness atomics and ways to reach a connected agent.
    pub fn links(&self) -> &Arc<Links> {
        &self.shared.links
    }

    /// Counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Cancelled when the coordinator is to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.shared.stop.clone()
    }

    /// Standby: makes the primary's entries durable and applies them.
    pub async fn append_replicated(&self, entries: Vec<StoredEntry>) -> Result<Head, RuntimeError> {
        self.ask(|reply| Input::AppendStored { entries, reply }).await
    }

    /// Standby: replaces journal and State by the primary's snapshot.
    pub async fn install_snapshot(&self, snapshot: Snapshot) -> Result<Head, RuntimeError> {
        self.ask(|reply| Input::InstallSnapshot { snapshot, reply }).await
    }

    /// Becomes the primary under a new epoch. The epoch and `fact` (a `TookOver`) become durable together.
    pub async fn promote(&self, proof: EpochProof, fact: Fact) -> Result<Committed, RuntimeError> {
        self.ask(|reply| Input::Promote { proof, fact: Box::new(fact), reply }).await
    }

    /// Tells of an epoch whose proof was verified. When it is above a primary's own, that primary is fenced at once.
    pub async fn hear_epoch(&self, proof: EpochProof) -> Result<Standing, RuntimeError> {
        self.ask(|reply| Input::HearEpoch { proof, reply }).await
    }

    /// Primary: a standby begins to follow at `index`. Remembered on disk first: after a restart, what agents may delete
    /// waits for it.
    pub async fn follower_joined(&self, id: CoordinatorId, index: u64) -> Result<(), RuntimeError> {
        let is_new = !lock(&self.shared.followers).contains_key(&id);
        self.follower_progress(id, index);
        if is_new { self.ask(|reply| Input::KeepFollowers { reply }).await } else { Ok(()) }
    }

    /// Primary: notes how far a standby is.
    pub fn follower_progress(&self, id: CoordinatorId, index: u64) {
        lock(&self.shared.followers).insert(id, Follower { index, last_heard: self.now() });
        self.shared.tell_replicated();
    }

    /// Primary: forgets a standby that is gone for good; entries then count as safe without it.
    pub async fn forget_follower(&self, id: &CoordinatorId) -> Result<(), RuntimeError> {
        lock(&self.shared.followers).remove(id);
        self.shared.tell_replicated();
        self.ask(|reply| Input::KeepFollowers { reply }).await
    }

    /// Primary: its standbys.
    pub fn followers(&self) -> BTreeMap<CoordinatorId, Follower> {
        lock(&self.shared.followers).clone()
    }

    /// Journal index that every standby holds, as it moves; `None` where there is no standby.
    pub fn replicated(&self) -> watch::Receiver<Option<u64>> {
        self.shared.replicated.subscribe()
    }

    /// Freezes as of the last commit, as they change.
    pub fn freezes(&self) -> watch::Receiver<Arc<[Freeze]>> {
        self.shared.freezes.subscribe()
    }

    /// Tells everyone who watches [`Handle::stopping`] to end. The loop goes on until [`super::Runtime::finish`].
    pub fn shutdown(&self) {
        self.shared.stop.cancel();
    }

    /// An agent's stream began.
    pub(crate) async fn connected(&self, agent: AgentName, hello: AgentHello) -> Result<Resume, RuntimeError> {
        self.ask(|reply| Input::Connected { agent, hello: Box::new(hello), reply }).await
    }

    /// An agent's stream ended.
    pub(crate) async fn disconnected(&self, agent: AgentName, number: u64, how: Disconnect) {
        // A loop that has ended needs no news.
        drop(self.send(Input::Disconnected { agent, number, how }).await);
    }

    async fn ask<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, RuntimeError> {
        let (reply, answer) = oneshot::channel();
        self.send(input(reply)).await?;
        answer.await.unwrap_or(Err(RuntimeError::Stopped))
    }

    async fn send(&self, input: Input) -> Result<(), RuntimeError> {
        self.shared.inbox.send(input).await.map_err(|_| RuntimeError::Stopped)
    }
}

/// Time since boot in ms, suspend included.
pub(super) fn boot_ms() -> u64 {
    u64::try_from(super::clock::since_boot().as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_asked_for_before_a_standstill_does_not_let_pages_out_after_it() {
        let question = PeerQuestion::default();
        question.raise();
        assert!(!question.is_open(), "nobody asks, so nobody is waited for");
        question.asker.store(true, Ordering::Release);
        let before = question.begin();
        question.raise();
        assert!(!question.answer(before) && question.is_open());
        let after = question.begin();
        assert!(question.answer(after) && !question.is_open());
        assert!(!question.answer(after), "it was closed already");
    }
}
