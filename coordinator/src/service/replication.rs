//! The primary's side of replication: a snapshot when the follower's journal is not ours, then entries as they are
//! committed, and a heartbeat each second.
//!
//! Invariants: only what is committed is sent; a fact never goes without what was concluded from it, so that a standby
//! whose primary dies in mid-stream holds no half of a thought; only what a follower has acknowledged counts as
//! replicated.

use super::caller::{FOLLOWERS, allow};
use crate::failover::{Failover, not_primary};
use crate::runtime::{CoordinatorRole, Handle, View};
use crate::store::{Head, JournalHash, JournalStore, Snapshot, StoreError, StoredEntry};
use muster_common::chain::Chain;
use muster_common::ids::CoordinatorId;
use muster_coordinator_core::state::State;
use muster_proto::convert;
use muster_proto::v1::replicate_request::Message as Request_;
use muster_proto::v1::replicate_response::Message;
use muster_proto::v1::replication_service_server::ReplicationService;
use muster_proto::v1::{
    FollowerHello, JournalEntries, JournalEntry, PrimaryHeartbeat, PrimaryHello, ReplicateRequest, ReplicateResponse,
    SnapshotChunk,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one replication message. An entry can be a whole resync of one agent, which is larger than any message on
/// an agent's link.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of a snapshot that a follower takes: about 50 KiB for each of 10 000 agents.
pub const SNAPSHOT_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Bytes of a snapshot in one message.
const CHUNK_BYTES: usize = 256 * 1024;
/// Entries read and sent at once, unless a single fact had more consequences; what they weigh is bounded by
/// [`BATCH_BYTES`].
const BATCH_ENTRIES: usize = 256;
/// Bytes of entries in one message, unless what belongs together is more.
const BATCH_BYTES: usize = 1024 * 1024;
/// Messages on their way to one follower. Overflow rule: the sender waits, the follower lags and is shown to.
const MESSAGES_MAX: usize = 4;
/// Followers at once: a standby or two, and one that changes places. Overflow rule: RESOURCE_EXHAUSTED.
const FOLLOWERS_MAX: usize = 4;
/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A follower says who it is at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A follower that has been away for this long no longer holds back what agents may delete.
const FORGET_AFTER: Duration = Duration::from_secs(15 * 60);

/// Between two looks whether a follower that was away is back.
const ABSENCE_LOOK: Duration = Duration::from_secs(10);

/// Serves followers.
#[derive(Debug)]
pub struct Replication {
    failover: Failover,
    slots: Arc<Semaphore>,
}

impl Replication {
    /// For the coordinator of `failover`.
    pub fn new(failover: Failover) -> Self {
        Self { failover, slots: Arc::new(Semaphore::new(FOLLOWERS_MAX)) }
    }
}

#[tonic::async_trait]
impl ReplicationService for Replication {
    type ReplicateStream = ReceiverStream<Result<ReplicateResponse, Status>>;

    async fn replicate(
        &self,
        request: Request<Streaming<ReplicateRequest>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let caller = allow(&request, FOLLOWERS)?;
        let follower = caller.coordinator().ok_or_else(|| Status::permission_denied("only coordinators follow"))?;
        let mut requests = request.into_inner();
        let hello = read_hello(&mut requests).await?;
        let standing = self.failover.hear(hello.highest_epoch.as_ref(), follower.as_str()).await?;
        if standing.role != CoordinatorRole::Primary {
            return Err(not_primary(&standing, self.failover.config()));
        }
        if follower == standing.id {
            return Err(Status::invalid_argument(
                "a coordinator cannot follow itself: point [failover] follow at the primary",
            ));
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{FOLLOWERS_MAX} followers are served already; stop one first"))
        })?;
        let (out, messages) = mpsc::channel(MESSAGES_MAX);
        let gone = CancellationToken::new();
        let handle = self.failover.handle().clone();
        tokio::spawn(read_acks(handle.clone(), follower.clone(), requests, gone.clone().drop_guard()));
        let feed = Feed { handle, follower, out, _slot: slot };
        tokio::spawn(feed.run(hello, gone));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

async fn read_hello(requests: &mut Streaming<ReplicateRequest>) -> Result<FollowerHello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, requests.message()).await;
    let first =
        first.map_err(|_| Status::deadline_exceeded("the first message must be a hello, and come at once"))??;
    match first.and_then(|request| request.message) {
        Some(Request_::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message must be a hello")),
    }
}

/// Notes how far the follower is. Dropping `gone` ends the feed.
async fn read_acks(
    handle: Handle,
    follower: CoordinatorId,
    mut requests: Streaming<ReplicateRequest>,
    gone: DropGuard,
) {
    while let Ok(Some(request)) = requests.message().await {
        let Some(Request_::Ack(ack)) = request.message else { break };
        let head = handle.head().borrow().index;
        if ack.journal_index > head {
            tracing::warn!(%follower, index = ack.journal_index, head, "a follower has what we have not: let it begin anew");
            break;
        }
        handle.follower_progress(follower.clone(), ack.journal_index);
    }
    drop(gone);
    tracing::warn!(%follower, "the follower is gone; agents keep what it lacks until it is back");
    forget_if_away(handle, follower).await;
}

/// Gives a follower that is away [`FORGET_AFTER`] to come back; then it no longer counts.
pub(crate) async fn forget_if_away(handle: Handle, follower: CoordinatorId) {
    let (away_since, stop) = (handle.now(), handle.stopping());
    let forget_at = Instant::now() + FORGET_AFTER;
    while Instant::now() < forget_at {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ABSENCE_LOOK) => {}
        }
        let still_away = handle.followers().get(&follower).is_some_and(|known| known.last_heard <= away_since);
        if !still_away {
            return;
        }
    }
    tracing::error!(%follower, "the follower stays away: what is stored here counts as safe without it");
    if let Err(error) = handle.forget_follower(&follower).await {
        tracing::warn!(%follower, error = %Chain(&error), "cannot write down that the follower is gone");
    }
}

/// How a follower begins.
enum Plan {
    /// Its journal is a beginning of ours.
    Continue,
    /// It is not, or is too old.
    Replace(Head, Box<State>),
}

impl Plan {
    /// The snapshot to begin with, if one is needed.
    fn encoded(self) -> Result<Option<Snapshot>, StoreError> {
        let Self::Replace(head, state) = self else { return Ok(None) };
        let body = serde_json::to_vec(&state)?;
        Ok(Some(Snapshot { index: head.index, hash: head.hash, at: head.at, body }))
    }
}

/// What goes to one follower.
struct Feed {
    handle: Handle,
    follower: CoordinatorId,
    out: mpsc::Sender<Result<ReplicateResponse, Status>>,
    _slot: OwnedSemaphorePermit,
}

/// The feed is over: the follower is gone, or was told why.
struct Over;

impl Feed {
    async fn run(self, hello: FollowerHello, gone: CancellationToken) {
        let stop = self.handle.stopping();
        let mut standing = self.handle.standing();
        let ended = tokio::select! {
            ended = self.feed(hello) => ended,
            () = gone.cancelled() => Ok(Over),
            () = stop.cancelled() => Err(Status::unavailable("the primary is stopping; try again")),
            _ = standing.wait_for(|standing| standing.role != CoordinatorRole::Primary) => {
                Err(Status::failed_precondition("this coordinator reigns no more"))
            }
        };
        if let Err(status) = ended {
            tracing::warn!(follower = %self.follower, reason = status.message(), "the follower's stream ends");
            // A follower that does not read will notice by itself.
            drop(self.out.try_send(Err(status)));
        }
    }

    async fn feed(&self, hello: FollowerHello) -> Result<Over, Status> {
        let hash = if hello.journal_hash.is_empty() {
            Some(JournalHash::ZERO)
        } else {
            JournalHash::from_slice(&hello.journal_hash)
        };
        let hash = hash.ok_or_else(|| Status::invalid_argument("journal_hash must have 32 bytes"))?;
        let index = hello.journal_index;
        let plan = self.query(move |view| plan(view, index, hash)).await?;
        // Off the loop's thread, which only made the copy.
        let plan = tokio::task::spawn_blocking(|| plan.encoded()).await;
        let plan = plan
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::internal(Chain(&error).to_string()))?;
        let mut next = index.saturating_add(1);
        let replace = plan.is_some();
        if self.greet(replace).await.is_err() {
            return Ok(Over);
        }
        match plan {
            None => self.joined(index).await?,
            Some(snapshot) => {
                self.joined(0).await?;
                next = snapshot.index.saturating_add(1);
                if self.send_snapshot(&snapshot).await.is_err() {
                    return Ok(Over);
                }
            }
        }
        tracing::info!(follower = %self.follower, from = next, replace, "a coordinator follows");
        self.send_entries(next).await
    }

    async fn joined(&self, index: u64) -> Result<(), Status> {
        let joined = self.handle.follower_joined(self.follower.clone(), index).await;
        joined.map_err(|error| Status::unavailable(Chain(&error).to_string()))
    }

    async fn greet(&self, snapshot_follows: bool) -> Result<(), Over> {
        let epoch = self.handle.standing().borrow().own.as_ref().map(convert::epoch_proof_to_wire);
        let journal_index = self.handle.head().borrow().index;
        self.send(Message::Hello(PrimaryHello { epoch, journal_index, snapshot_follows })).await
    }

    async fn send_snapshot(&self, snapshot: &Snapshot) -> Result<(), Over> {
        let mut chunks = snapshot.body.chunks(CHUNK_BYTES).peekable();
        while let Some(data) = chunks.next() {
            let chunk = SnapshotChunk {
                journal_index: snapshot.index,
                journal_hash: snapshot.hash.0.to_vec().into(),
                data: data.to_vec().into(),
                last: chunks.peek().is_none(),
                at_unix_ms: snapshot.at.unix_ms(),
            };
            self.send(Message::Snapshot(chunk)).await?;
        }
        Ok(())
    }

    async fn send_entries(&self, mut next: u64) -> Result<Over, Status> {
        let mut head = self.handle.head();
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            while head.borrow_and_update().index >= next {
                let groups = self.query(move |view| whole_groups(view.store, next, BATCH_ENTRIES)).await?;
                let contiguous =
                    groups.first().and_then(|group| group.first()).is_some_and(|entry| entry.index == next);
                if !contiguous {
                    return Err(Status::out_of_range("what you lack is no longer kept: come back for a snapshot"));
                }
                for entries in pack(groups) {
                    next = entries.last().map_or(next, |entry| entry.index.saturating_add(1));
                    if self.send(Message::Entries(JournalEntries { entries })).await.is_err() {
                        return Ok(Over);
                    }
                }
            }
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return Ok(Over) },
                _ = beat.tick() => {
                    let heartbeat = PrimaryHeartbeat {
                        journal_index: head.borrow().index,
                        log_time_unix_ms: self.handle.now().unix_ms(),
                    };
                    if self.send(Message::Heartbeat(heartbeat)).await.is_err() {
                        return Ok(Over);
                    }
                }
            }
        }
    }

    async fn send(&self, message: Message) -> Result<(), Over> {
        self.out.send(Ok(ReplicateResponse { message: Some(message) })).await.map_err(|_| Over)
    }

    async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let answer = self.handle.query(read).await.map_err(|error| Status::unavailable(Chain(&error).to_string()))?;
        answer.map_err(|error| Status::internal(Chain(&error).to_string()))
    }
}

/// Whether a journal that ends at `index` with `hash` is a beginning of ours.
fn plan(view: &View<'_>, index: u64, hash: JournalHash) -> Result<Plan, StoreError> {
    let head = view.store.head();
    if has(view, head, index, hash)? && view.store.oldest()? <= index.saturating_add(1) {
        return Ok(Plan::Continue);
    }
    Ok(Plan::Replace(head, Box::new(view.state.clone())))
}

fn has(view: &View<'_>, head: Head, index: u64, hash: JournalHash) -> Result<bool, StoreError> {
    if index == 0 || index > head.index {
        return Ok(index == 0 && hash == JournalHash::ZERO);
    }
    let entry = view.store.entries_from(index, 1)?.into_iter().next();
    if let Some(entry) = entry.filter(|entry| entry.index == index) {
        return Ok(entry.hash == hash);
    }
    Ok(view.store.snapshot()?.is_some_and(|snapshot| snapshot.index == index && snapshot.hash == hash))
}

/// A fact or deadline with everything that was concluded from it.
type Group = Vec<StoredEntry>;

/// The groups from entry `next` on, about `max_entries` of them, each one whole. The journal's end is always the end of
/// a group, because a group is committed in one transaction.
fn whole_groups(store: &dyn JournalStore, next: u64, max_entries: usize) -> Result<Vec<Group>, StoreError> {
    let mut groups: Vec<Group> = Vec::new();
    let mut from = next;
    loop {
        let read = store.entries_from(from, max_entries)?;
        let ended = read.len() < max_entries;
        for entry in read {
            from = entry.index.saturating_add(1);
            let begins = entry.decode()?.trace == entry.index;
            match groups.last_mut() {
                Some(group) if !begins => group.push(entry),
                _ => groups.push(vec![entry]),
            }
        }
        if ended {
            return Ok(groups);
        }
        // More follows, and the last group may go on there; without it there must be something left to send.
        if groups.len() > 1 {
            groups.pop();
            return Ok(groups);
        }
    }
}

/// Packs groups into messages of bounded weight; never an empty one, never half a group.
fn pack(groups: Vec<Group>) -> Vec<Vec<JournalEntry>> {
    let (mut messages, mut message, mut bytes) = (Vec::new(), Vec::new(), 0usize);
    for group in groups {
        let weight = group.iter().map(|entry| entry.body.len()).fold(0, usize::saturating_add);
        if !message.is_empty() && bytes.saturating_add(weight) > BATCH_BYTES {
            messages.push(std::mem::take(&mut message));
            bytes = 0;
        }
        bytes = bytes.saturating_add(weight);
        let to_wire = |entry: StoredEntry| JournalEntry {
            index: entry.index,
            hash: entry.hash.0.to_vec().into(),
            body: entry.body.into(),
        };
        message.extend(group.into_iter().map(to_wire));
    }
    if !message.is_empty() {
        messages.push(message);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::SqliteStore;
    use muster_common::time::Timestamp;
    use muster_coordinator_core::entry::{Entry, EntryBody, Fact, TimerKey};

    #[test]
    fn groups_are_packed_by_weight_and_lose_nothing() {
        let entry = |index, bytes| StoredEntry { index, hash: JournalHash::ZERO, body: vec![b'x'; bytes] };
        let groups = vec![
            vec![entry(1, 10)],
            vec![entry(2, BATCH_BYTES), entry(3, 10)],
            vec![entry(4, BATCH_BYTES * 2)],
            vec![entry(5, 1)],
            vec![entry(6, 1)],
        ];
        let messages = pack(groups);
        let indexes: Vec<Vec<u64>> =
            messages.iter().map(|message| message.iter().map(|entry| entry.index).collect()).collect();
        assert_eq!(indexes, [vec![1], vec![2, 3], vec![4], vec![5, 6]]);
        assert!(pack(Vec::new()).is_empty());
    }

    #[test]
    fn a_fact_and_its_consequences_are_never_parted() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(&dir.path().join("journal.db")).unwrap();
        // Groups of 1, 4, 2 and 3 entries.
        let traces = [1, 2, 2, 2, 2, 6, 6, 8, 8, 8];
        let entries: Vec<Entry> = (1u64..)
            .zip(traces)
            .map(|(index, trace)| {
                let body = match index == trace {
                    true => EntryBody::Fact(Fact::Paused { gap_ms: index }),
                    false => EntryBody::Deadline(TimerKey::RehearOver),
                };
                Entry { index, at: Timestamp::UNIX_EPOCH, trace, body }
            })
            .collect();
        store.append(&entries).unwrap();
        let read = |next, max| -> Vec<Vec<u64>> {
            let groups = whole_groups(&store, next, max).unwrap();
            groups.iter().map(|group| group.iter().map(|entry| entry.index).collect()).collect()
        };
        assert_eq!(read(1, 3), [vec![1]]);
        assert_eq!(read(2, 3), [vec![2, 3, 4, 5]], "longer than what is read at once, and whole all the same");
        assert_eq!(read(6, 3), [vec![6, 7]]);
        assert_eq!(read(8, 3), [vec![8, 9, 10]]);
        assert_eq!(read(1, 100), [vec![1], vec![2, 3, 4, 5], vec![6, 7], vec![8, 9, 10]]);
        assert!(read(11, 3).is_empty());
    }
}
