//! The loop's thread. One turn: drain the inbox, feed the facts, run what time brought, commit once, publish.
//!
//! Invariant: replies, watchers and readers see nothing before the commit of the turn that made it. A commit that
//! fails, or a panic in `apply`, ends the loop, and with it the process.

mod reign;

use super::clock::LogClock;
use super::handle::{
    Batch, Committed, CoordinatorRole, Handle, INBOX_INPUTS_MAX, Input, PeerQuestion, Resume, RuntimeError,
    STOOD_STILL_MS, Shared, Standing, View, WATCHER_BATCHES_MAX, boot_ms, lock,
};
use super::links::{Link, Links, Newest};
use super::load::load;
use super::resync::{Before, Resynced};
use super::snapshot::{Encoding, packed};
use super::standing;
use crate::metrics::Metrics;
use crate::store::JournalStore;
use muster_common::ids::{AgentName, CoordinatorId};
use muster_common::time::Timestamp;
use muster_coordinator_core::agent_stream::{greet, wants_resync};
use muster_coordinator_core::entry::{AgentHello, Disconnect, Entry, EntryBody, Fact, TimerKey};
use muster_coordinator_core::liveness::{Liveness, PauseWatch, Swept};
use muster_coordinator_core::machine::Machine;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::silence;
use muster_coordinator_core::state::next_deadline;
use muster_proto::v1;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Inputs of one commit: enough that an fsync costs nothing per fact, few enough that a reply stays quick.
const TURN_INPUTS_MAX: usize = 256;
/// The loop turns at least this often.
const TICK: Duration = Duration::from_millis(250);
/// Entries between two snapshots: a start replays at most this many.
const SNAPSHOT_ENTRIES: u64 = 20_000;
/// Wait between two resync requests to one agent: a resync that goes astray is asked for again, but never in a storm.
const RESYNC_INTERVAL_MS: i64 = 10_000;
/// Between two counts for `/metrics`: they look at every agent, so not at every turn, and scrapes are further apart.
const GAUGES_INTERVAL: Duration = Duration::from_secs(5);
/// Sweeps within a heartbeat's interval, ...
const SWEEPS_PER_HEARTBEAT: u32 = 5;
/// ... and the longest time between two: what nobody notices beside the threshold of a stale agent.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Shortest gap that counts as a pause; a busy machine hiccups below it.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// What the loop begins with.
pub struct Start {
    /// The journal.
    pub store: Box<dyn JournalStore>,
    /// Role and epoch, as [`Standing::load`] gave them.
    pub standing: Standing,
    /// Thresholds of the config.
    pub policy: Policy,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").field("standing", &self.standing).finish_non_exhaustive()
    }
}

/// The running loop, for whoever has to end it.
#[derive(Debug)]
pub struct Runtime {
    stop_loop: CancellationToken,
    ended: oneshot::Receiver<Result<(), RuntimeError>>,
}

impl Runtime {
    /// Resolves when the loop has ended by itself, which is always a failure.
    pub async fn failed(&mut self) -> RuntimeError {
        match (&mut self.ended).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => RuntimeError::Stopped,
            Err(_) => RuntimeError::State("the loop panicked; its last words are in the log".to_owned()),
        }
    }

    /// Ends the loop: what is in the inbox is committed, a snapshot is taken.
    pub async fn finish(self) -> Result<(), RuntimeError> {
        self.stop_loop.cancel();
        self.ended.await.unwrap_or(Err(RuntimeError::State("the loop panicked".to_owned())))
    }
}

/// Loads State from the journal (verifying its chain) and starts the loop on a thread of its own.
pub fn start(start: Start) -> Result<(Handle, Runtime), RuntimeError> {
    let machine = Machine::new(load(start.store.as_ref())?);
    let followers = standing::followers(start.store.as_ref(), start.standing.role)?;
    let clock = LogClock::anchored(machine.state().last_at());
    let (inbox, inputs) = mpsc::channel(INBOX_INPUTS_MAX);
    let shared = Arc::new(Shared {
        inbox,
        committed: broadcast::channel(WATCHER_BATCHES_MAX).0,
        standing: watch::channel(start.standing.clone()).0,
        head: watch::channel(start.store.head()).0,
        replicated: watch::channel(followers.values().map(|follower| follower.index).min()).0,
        freezes: watch::channel(machine.state().freezes().cloned().collect()).0,
        followers: Mutex::new(followers),
        links: Arc::new(Links::default()),
        metrics: start.metrics,
        turns: AtomicU64::new(0),
        clock: Mutex::new(clock),
        turned_at_ms: AtomicU64::new(0),
        peers: PeerQuestion::default(),
        stop: CancellationToken::new(),
        stop_loop: CancellationToken::new(),
    });
    let now = clock.now();
    let mut turner = Turner {
        liveness: Liveness::from_state(machine.state(), now),
        machine,
        snapshot_index: start.store.snapshot()?.map_or(0, |snapshot| snapshot.index),
        store: start.store,
        encoding: None,
        standing: start.standing,
        policy: start.policy,
        clock,
        started: now,
        pause: PauseWatch::new(now, TICK),
        swept: now,
        gauged: Timestamp::UNIX_EPOCH,
        shared: Arc::clone(&shared),
        entries: Vec::new(),
        resynced: Vec::new(),
        words: Vec::new(),
        answers: Vec::new(),
    };
    turner.tell_alive();
    turner.reign_begins(now)?;
    let stop_loop = shared.stop_loop.clone();
    let (tell_end, ended) = oneshot::channel();
    let waiting = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| RuntimeError::State(format!("cannot start the loop: {error}")))?;
    std::thread::Builder::new()
        .name("loop".to_owned())
        .spawn(move || {
            let outcome = turner.run(&waiting, inputs);
            drop(tell_end.send(outcome));
        })
        .map_err(|error| RuntimeError::State(format!("cannot start the loop's thread: {error}")))?;
    Ok((Handle { shared }, Runtime { stop_loop, ended }))
}

type Answer = Box<dyn FnOnce(&Turner) + Send>;
/// Agents whose newest heartbeat tells of another open set than State has.
type Disagreeing = Vec<(AgentName, Arc<Link>, Newest)>;

struct Turner {
    machine: Machine,
    liveness: Liveness,
    store: Box<dyn JournalStore>,
    standing: Standing,
    policy: Policy,
    clock: LogClock,
    started: Timestamp,
    pause: PauseWatch,
    /// Log time of the last liveness sweep.
    swept: Timestamp,
    /// Log time of the last count for `/metrics`.
    gauged: Timestamp,
    snapshot_index: u64,
    encoding: Option<Encoding>,
    shared: Arc<Shared>,
    /// Applied and not committed.
    entries: Vec<Entry>,
    /// What the resyncs among those changed.
    resynced: Vec<Resynced>,
    /// Words of our own that become durable together with those.
    words: Vec<(&'static str, Vec<u8>)>,
    /// Given after the commit, in order.
    answers: Vec<Answer>,
}

impl Turner {
    fn run(mut self, waiting: &tokio::runtime::Runtime, mut inputs: mpsc::Receiver<Input>) -> Result<(), RuntimeError> {
        let stop = self.shared.stop_loop.clone();
        let mut drained = Vec::with_capacity(TURN_INPUTS_MAX);
        loop {
            let wait = self.next_wake();
            let stopping = waiting.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => true,
                    _ = inputs.recv_many(&mut drained, TURN_INPUTS_MAX) => false,
                    () = tokio::time::sleep(wait) => false,
                }
            });
            if stopping {
                inputs.close();
                while let Ok(input) = inputs.try_recv() {
                    drained.push(input);
                }
            }
            self.shared.metrics.inbox_depth.set(i64::try_from(inputs.len()).unwrap_or(i64::MAX));
            self.turn(&mut drained)?;
            if stopping {
                return self.snapshot();
            }
        }
    }

    fn next_wake(&self) -> Duration {
        let due = next_deadline(self.machine.state()).map(|(due, _)| due.since(self.clock.now()));
        if self.standing.role == CoordinatorRole::Primary { due.unwrap_or(TICK).min(TICK) } else { TICK }
    }

    fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<(), RuntimeError> {
        let now = self.clock.now();
        self.watch_for_pause(now);
        self.tell_alive();
        for input in inputs.drain(..) {
            self.take(now, input)?;
        }
        if self.standing.role == CoordinatorRole::Primary {
            // Linear in the fleet, so by the clock and not by the turn.
            if now.since(self.swept) >= self.sweep_interval() {
                self.swept = now;
                self.sweep(now);
            }
            self.entries.extend(self.machine.run_deadlines(now));
        }
        self.commit()?;
        self.snapshot_beside()?;
        self.shared.turns.fetch_add(1, Ordering::Relaxed);
        if now.since(self.gauged) >= GAUGES_INTERVAL {
            self.gauged = now;
            super::gauges::refresh(&self.shared.metrics, self.machine.state());
        }
        Ok(())
    }

    fn sweep_interval(&self) -> Duration {
        let heartbeat = self.machine.state().policy().liveness.heartbeat;
        (heartbeat / SWEEPS_PER_HEARTBEAT).clamp(TICK, SWEEP_INTERVAL_MAX)
    }

    /// After a standstill (or a very slow disk, which looks the same) the other coordinators are asked before anyone is
    /// paged, and the pagers, which waited meanwhile, look again.
    fn tell_alive(&self) {
        let now_ms = boot_ms();
        let stood_still = now_ms.saturating_sub(self.shared.turned_at_ms.load(Ordering::Acquire)) >= STOOD_STILL_MS;
        if stood_still {
            self.shared.peers.raise();
        }
        self.shared.turned_at_ms.store(now_ms, Ordering::Release);
        if stood_still {
            self.shared.head.send_modify(|_| {});
        }
    }

    fn watch_for_pause(&mut self, now: Timestamp) {
        let liveness = &self.machine.state().policy().liveness;
        let bound = (liveness.heartbeat * liveness.stale_after / 2).max(PAUSE_MIN);
        let Some(gap) = self.pause.tick(now, bound) else { return };
        if self.standing.role != CoordinatorRole::Primary {
            return;
        }
        tracing::warn!(gap_ms = gap.as_millis(), "this process stood still; agents get time to be heard again");
        self.feed(now, Fact::Paused { gap_ms: u64::try_from(gap.as_millis()).unwrap_or(u64::MAX) });
        self.liveness.paused(now, self.machine.state().rehear_until().unwrap_or(now));
    }

    /// Feeds one fact and gives its index.
    fn feed(&mut self, now: Timestamp, fact: Fact) -> u64 {
        let before = Before::of(self.machine.state(), &fact);
        let archived = if let Fact::AgentArchived { agent, .. } = &fact { Some(agent.clone()) } else { None };
        let new = self.machine.feed(now, fact);
        if let Some(agent) = archived.filter(|agent| self.machine.state().agent(agent).is_none()) {
            self.liveness.forget(&agent);
        }
        let is_fact = |entry: &&Entry| matches!(&entry.body, EntryBody::Fact(fact) if !matches!(fact, Fact::DecidePanicked { .. }));
        let index = new.iter().find(is_fact).map_or(self.machine.state().head_index(), |entry| entry.index);
        self.entries.extend(new);
        self.resynced.extend(before.map(|before| before.compared(self.machine.state(), index)));
        index
    }

    fn take(&mut self, now: Timestamp, input: Input) -> Result<(), RuntimeError> {
        match input {
            Input::Facts { facts, reply } => {
                let outcome = self.must_reign().map(|()| {
                    let indexes: Vec<u64> = facts.into_iter().map(|fact| self.feed(now, fact)).collect();
                    indexes.first().copied().unwrap_or(self.machine.state().head_index())
                });
                self.answer(move |turner| {
                    let committed = |trace| Committed { trace, head: turner.store.head(), at: now };
                    if let Some(reply) = reply {
                        drop(reply.send(outcome.map(committed)));
                    }
                });
            }
            Input::Read(read) => self.answer(move |turner| read(&turner.view())),
            Input::Connected { agent, hello, reply } => {
                let outcome = self.must_reign().map(|()| self.connected(now, &agent, *hello));
                self.answer(move |_| drop(reply.send(outcome)));
            }
            Input::Disconnected { agent, number, how } => self.disconnected(now, &agent, number, how),
            Input::AppendStored { entries, reply } => {
                self.commit()?;
                drop(reply.send(self.append_stored(&entries)));
            }
            Input::InstallSnapshot { snapshot, reply } => {
                self.commit()?;
                drop(reply.send(self.install(&snapshot)));
            }
            Input::Promote { proof, fact, reply } => {
                self.commit()?;
                let outcome = self.promote(now, proof, *fact);
                self.answer(move |turner| {
                    let committed = |trace| Committed { trace, head: turner.store.head(), at: now };
                    drop(reply.send(outcome.map(committed)));
                });
            }
            Input::HearEpoch { proof, reply } => {
                self.commit()?;
                let heard = self.hear(proof);
                // An epoch that cannot be remembered must not be forgotten by going on.
                if let Err(error) = &heard {
                    tracing::error!(%error, "cannot write down a higher epoch; this coordinator stops");
                    return heard.map(drop);
                }
                drop(reply.send(heard));
            }
            Input::KeepFollowers { reply } => drop(reply.send(self.keep_followers())),
        }
        Ok(())
    }

    fn keep_followers(&mut self) -> Result<(), RuntimeError> {
        let names: Vec<CoordinatorId> = lock(&self.shared.followers).keys().cloned().collect();
        standing::keep_followers(self.store.as_mut(), &names)
    }

    fn answer(&mut self, answer: impl FnOnce(&Self) + Send + 'static) {
        self.answers.push(Box::new(answer));
    }

    fn must_reign(&self) -> Result<(), RuntimeError> {
        if self.standing.role == CoordinatorRole::Primary {
            return Ok(());
        }
        let primary = self.standing.highest_epoch().map(|epoch| epoch.coordinator.to_string());
        Err(RuntimeError::NotPrimary { role: self.standing.role, primary })
    }

    fn view(&self) -> View<'_> {
        View {
            state: self.machine.state(),
            liveness: &self.liveness,
            now: self.clock.now(),
            store: self.store.as_ref(),
            standing: &self.standing,
            started: self.started,
        }
    }

    /// Makes everything applied durable in one transaction, then tells everyone.
    fn commit(&mut self) -> Result<(), RuntimeError> {
        if !self.entries.is_empty() {
            let begun = Instant::now();
            let words = std::mem::take(&mut self.words);
            let head = self.store.append_with(&self.entries, &words)?;
            self.tell_alive();
            // Before the entries are published: whoever is woken by them must see who reigns.
            if !words.is_empty() {
                self.tell_role();
            }
            let metrics = &self.shared.metrics;
            metrics.commit_seconds.observe(begun.elapsed().as_secs_f64());
            metrics.commits.inc();
            metrics.entries.inc_by(u64::try_from(self.entries.len()).unwrap_or_default());
            let entries: Arc<[Entry]> = std::mem::take(&mut self.entries).into();
            let resynced = std::mem::take(&mut self.resynced).into();
            self.publish(Batch { entries, resynced, head });
        }
        for answer in std::mem::take(&mut self.answers) {
            answer(self);
        }
        Ok(())
    }

    fn publish(&self, batch: Batch) {
        self.shared.freezes.send_if_modified(|known| {
            let same = known.iter().eq(self.machine.state().freezes());
            if !same {
                *known = self.machine.state().freezes().cloned().collect();
            }
            !same
        });
        self.announce(&batch);
        self.shared.metrics.journal_index.set(i64::try_from(batch.head.index).unwrap_or(i64::MAX));
        self.shared.head.send_replace(batch.head);
        // Nobody may be watching.
        drop(self.shared.committed.send(batch));
    }

    /// A silence that begins or ends is told in the log, whether or not anything pages then: who made it may have forgotten.
    fn announce(&self, batch: &Batch) {
        for entry in batch.entries.iter() {
            if let EntryBody::Deadline(TimerKey::SilenceTurn { index }) = &entry.body {
                tracing::info!("{}", silence::turned(self.machine.state(), *index, entry.at));
            }
            if let EntryBody::Deadline(TimerKey::SilenceEnds { index }) = &entry.body {
                tracing::info!("{}", silence::ends_soon(self.machine.state(), *index, entry.at));
            }
        }
    }

    /// Keeps the snapshot that was begun, once it is made, and begins the next one when it is due.
    fn snapshot_beside(&mut self) -> Result<(), RuntimeError> {
        if let Some(made) = self.encoding.as_ref().and_then(Encoding::made) {
            self.encoding = None;
            let (head, state) = made?;
            self.store.put_snapshot(head, &state)?;
            self.snapshot_index = head.index;
        }
        let head = self.store.head();
        if self.encoding.is_none() && head.index >= self.snapshot_index + SNAPSHOT_ENTRIES {
            self.encoding = Some(Encoding::begin(self.machine.state().clone(), head)?);
        }
        Ok(())
    }

    /// At the end there is nobody to wait for the loop.
    fn snapshot(&mut self) -> Result<(), RuntimeError> {
        let head = self.store.head();
        if head.index > self.snapshot_index {
            self.store.put_snapshot(head, &packed(self.machine.state())?)?;
            self.snapshot_index = head.index;
        }
        Ok(())
    }
}

/// Agents coming and going.
impl Turner {
    fn connected(&mut self, now: Timestamp, agent: &AgentName, hello: AgentHello) -> Resume {
        let heard = self.liveness.connected(agent, now);
        let (facts, position) = greet(self.machine.state().agent(agent), heard, agent, hello);
        for fact in facts {
            self.feed(now, fact);
        }
        let state = self.machine.state();
        Resume { position, index: state.head_index(), heartbeat: state.policy().liveness.heartbeat }
    }

    fn disconnected(&mut self, now: Timestamp, agent: &AgentName, number: u64, how: Disconnect) {
        let superseded = self.shared.links.get(agent).is_some_and(|link| link.number != number);
        if self.standing.role != CoordinatorRole::Primary || superseded {
            return;
        }
        if self.liveness.disconnected(agent, how, now) {
            self.feed(now, Fact::AgentDisconnected { agent: agent.clone(), how });
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        let links = Arc::clone(&self.shared.links);
        let (back, told) = links.look(|links| self.read_links(now, links));
        for agent in back {
            self.feed(now, Fact::AgentHeard { agent });
        }
        for (agent, link, newest) in told {
            self.compare_digest(now, &agent, &link, newest);
        }
        let policy = self.machine.state().policy().liveness.clone();
        let state = self.machine.state();
        let swept = self.liveness.sweep(now, &policy, |agent| state.maintenance_of(agent).is_some());
        for swept in swept {
            let fact = match swept {
                Swept::Silent { agent, last_heard, silence } => Fact::AgentSilent { agent, last_heard, silence },
                Swept::Disconnected { agent, how } => Fact::AgentDisconnected { agent, how },
                Swept::Flapping { agent, reconnects } => Fact::AgentFlapping { agent, reconnects },
            };
            self.feed(now, fact);
        }
    }

    /// Who is back, and whose new heartbeat disagrees with State. Linear in the fleet and under the links' lock: both
    /// tables are walked in order of names, side by side, and nothing is copied of the healthy.
    fn read_links(&mut self, now: Timestamp, links: &BTreeMap<AgentName, Arc<Link>>) -> (Vec<AgentName>, Disagreeing) {
        let stale_after = self.stale_after();
        let heard = links.iter().filter_map(|(agent, link)| {
            let last_heard = Timestamp::from_unix_ms(link.last_heard_ms.load(Ordering::Relaxed));
            (now.since(last_heard) < stale_after).then_some((agent, last_heard))
        });
        let back = self.liveness.heard_all(heard);
        let state = self.machine.state();
        let disagrees = |(agent, link): (&AgentName, &Arc<Link>)| {
            let newest = link.take_new()?;
            let record = state.agent(agent)?;
            wants_resync(record, newest.head_sequence, newest.digest).then(|| (agent.clone(), Arc::clone(link), newest))
        };
        (back, links.iter().filter_map(disagrees).collect())
    }

    fn stale_after(&self) -> Duration {
        let liveness = &self.machine.state().policy().liveness;
        liveness.heartbeat * liveness.stale_after
    }

    /// Asks for a resync when agent and State disagree about what is open at the very same entry.
    fn compare_digest(&mut self, now: Timestamp, agent: &AgentName, link: &Link, newest: Newest) {
        let Some(record) = self.machine.state().agent(agent) else { return };
        if !wants_resync(record, newest.head_sequence, newest.digest) {
            return;
        }
        let asked_ms = link.resync_asked_ms.load(Ordering::Relaxed);
        if now.unix_ms().saturating_sub(asked_ms) < RESYNC_INTERVAL_MS {
            return;
        }
        let id = link.resync_asked.load(Ordering::Relaxed) + 1;
        let message = v1::connect_response::Message::Resync(v1::ResyncRequest { id });
        link.resync_asked_ms.store(now.unix_ms(), Ordering::Relaxed);
        link.resync_asked.store(id, Ordering::Relaxed);
        if link.outbox.try_send(Ok(v1::ConnectResponse { message: Some(message) })).is_ok() {
            self.shared.metrics.resyncs.inc();
        }
        if record.digest_matches {
            self.feed(now, Fact::DigestDiffers { agent: agent.clone() });
        }
    }
}
