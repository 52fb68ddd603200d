//! A standby's side of replication: connects to the primary, makes its entries durable, says how far it is.
//!
//! Invariant: nothing is acknowledged before it is on disk here.

use super::client::{ConnectError, connect};
use super::{Failover, Following, HearError};
use crate::runtime::{CoordinatorRole, RuntimeError};
use crate::service::replication::{MESSAGE_BYTES_MAX, SNAPSHOT_BYTES_MAX};
use crate::store::{Head, JournalHash, Snapshot, StoreError, StoredEntry};
use muster_common::chain::Chain;
use muster_common::ids::Epoch;
use muster_common::retry::Backoff;
use muster_common::time::Timestamp;
use muster_proto::convert;
use muster_proto::v1::replicate_request::Message as Request;
use muster_proto::v1::replicate_response::Message as Response;
use muster_proto::v1::replication_service_client::ReplicationServiceClient;
use muster_proto::v1::{FollowerAck, FollowerHello, JournalEntries, PrimaryHello, ReplicateRequest, SnapshotChunk};
use std::time::Duration;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

/// The primary says something every second; after this long it is gone or cut off.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A standby is one of few, so it may come back quickly.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(10) };

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the primary refused: {0}")]
    Refused(String),
    #[error("the connection to the primary was lost")]
    Lost,
    #[error("{claimed} claims to reign, but {highest} does: point [failover] follow at that one")]
    Outdone { claimed: Epoch, highest: Epoch },
    #[error("cannot believe the primary's epoch")]
    Epoch(#[from] HearError),
    #[error("the primary said nothing for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("the primary ended the stream")]
    Ended,
    #[error("the primary broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("cannot take over the primary's journal")]
    Runtime(#[from] RuntimeError),
}

impl From<Status> for FollowError {
    /// A status with a source was made here, of the transport's error; one without was sent.
    fn from(status: Status) -> Self {
        match std::error::Error::source(&status) {
            Some(_) => Self::Lost,
            None => Self::Refused(status.message().to_owned()),
        }
    }
}

/// Follows while this coordinator is a standby. Never returns.
pub(super) async fn run(failover: &Failover) {
    let mut standing = failover.handle().standing();
    let mut attempt = 0;
    loop {
        let is_standby = standing.borrow_and_update().role == CoordinatorRole::Standby;
        let Some(endpoint) = failover.config().follow.as_deref().filter(|_| is_standby) else {
            *failover.lock_following() = Following::default();
            if standing.changed().await.is_err() {
                return;
            }
            continue;
        };
        let error = tokio::select! {
            error = follow(failover, endpoint, &mut attempt) => error,
            // A new epoch is heard within `follow` too; only another role ends it.
            _ = standing.wait_for(|standing| standing.role != CoordinatorRole::Standby) => continue,
        };
        let problem = Chain(&error).to_string();
        let wait = BACKOFF.delay(attempt, rand_u64());
        tracing::warn!(endpoint, problem, "not following the primary; trying again");
        attempt = attempt.saturating_add(1);
        {
            let mut following = failover.lock_following();
            following.connected = false;
            following.problem = Some(problem);
        }
        tokio::time::sleep(wait).await;
    }
}

async fn follow(failover: &Failover, endpoint: &str, attempt: &mut u32) -> FollowError {
    match try_follow(failover, endpoint, attempt).await {
        Ok(()) => FollowError::Ended,
        Err(error) => error,
    }
}

async fn try_follow(failover: &Failover, endpoint: &str, attempt: &mut u32) -> Result<(), FollowError> {
    let channel = connect(endpoint, failover.credentials()).await?;
    let mut client = ReplicationServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let hello = hello(failover);
    // Only the newest acknowledgement counts, so there is no queue of them.
    let (acks, progress) = watch::channel(0);
    let acked = WatchStream::from_changes(progress)
        .map(|journal_index| ReplicateRequest { message: Some(Request::Ack(FollowerAck { journal_index })) });
    let first = ReplicateRequest { message: Some(Request::Hello(hello)) };
    let requests = tokio_stream::once(first).chain(acked);
    let answer = tokio::time::timeout(SILENCE_MAX, client.replicate(requests)).await;
    let mut messages = answer.map_err(|_| FollowError::Silent)??.into_inner();
    let mut stream = Stream { failover, acks, snapshot: None, welcomed: false };
    loop {
        let message = tokio::time::timeout(SILENCE_MAX, messages.message()).await;
        let Some(message) = message.map_err(|_| FollowError::Silent)?? else { return Ok(()) };
        stream.take(message.message.ok_or(FollowError::Protocol("an empty message"))?).await?;
        *attempt = 0;
    }
}

fn hello(failover: &Failover) -> FollowerHello {
    let head = *failover.handle().head().borrow();
    let standing = failover.handle().standing().borrow().clone();
    FollowerHello {
        journal_index: head.index,
        journal_hash: head.hash.0.to_vec().into(),
        highest_epoch: standing.highest.as_ref().map(convert::epoch_proof_to_wire),
    }
}

/// One stream from the primary.
struct Stream<'a> {
    failover: &'a Failover,
    acks: watch::Sender<u64>,
    snapshot: Option<Snapshot>,
    welcomed: bool,
}

impl Stream<'_> {
    async fn take(&mut self, message: Response) -> Result<(), FollowError> {
        match message {
            Response::Hello(hello) => self.welcome(&hello).await?,
            _ if !self.welcomed => return Err(FollowError::Protocol("no hello first")),
            Response::Snapshot(chunk) => self.take_chunk(chunk).await?,
            Response::Entries(entries) => self.take_entries(entries).await?,
            Response::Heartbeat(heartbeat) => self.note(heartbeat.journal_index),
        }
        Ok(())
    }

    async fn welcome(&mut self, hello: &PrimaryHello) -> Result<(), FollowError> {
        let proof = hello.epoch.as_ref().ok_or(FollowError::Protocol("a hello without an epoch"))?;
        let claimed = convert::epoch_proof(proof).map_err(HearError::from)?.epoch;
        // Remembered before a single entry is taken: after a crash nobody lower is followed.
        let standing = self.failover.hear(Some(proof), "the followed primary").await?;
        if let Some(highest) = standing.highest_epoch().filter(|highest| *highest > claimed) {
            return Err(FollowError::Outdone { claimed, highest });
        }
        self.welcomed = true;
        let head = self.head();
        if hello.snapshot_follows && head.index > 0 {
            tracing::warn!(
                index = head.index,
                hash = %head.hash,
                "this journal is not the primary's (or too old to be continued): the primary's replaces it"
            );
        }
        tracing::info!(primary = %claimed.coordinator, epoch = claimed.number, index = head.index, "following");
        self.note(hello.journal_index);
        Ok(())
    }

    async fn take_chunk(&mut self, chunk: SnapshotChunk) -> Result<(), FollowError> {
        let hash = hash_of(&chunk.journal_hash)?;
        let snapshot = self.snapshot.get_or_insert_with(|| Snapshot {
            index: chunk.journal_index,
            hash,
            at: Timestamp::from_unix_ms(chunk.at_unix_ms),
            body: Vec::new(),
        });
        if snapshot.index != chunk.journal_index || snapshot.hash != hash {
            return Err(FollowError::Protocol("chunks of two snapshots mixed"));
        }
        if snapshot.body.len().saturating_add(chunk.data.len()) > SNAPSHOT_BYTES_MAX {
            return Err(FollowError::Protocol("a snapshot larger than any State"));
        }
        snapshot.body.extend_from_slice(&chunk.data);
        if chunk.last
            && let Some(snapshot) = self.snapshot.take()
        {
            let (index, bytes) = (snapshot.index, snapshot.body.len());
            let head = self.failover.handle().install_snapshot(snapshot).await?;
            tracing::info!(index, bytes, "took the primary's snapshot");
            self.acknowledge(head);
        }
        Ok(())
    }

    async fn take_entries(&mut self, entries: JournalEntries) -> Result<(), FollowError> {
        let mut stored = Vec::with_capacity(entries.entries.len());
        for entry in entries.entries {
            let hash = hash_of(&entry.hash)?;
            stored.push(StoredEntry { index: entry.index, hash, body: entry.body.to_vec() });
        }
        if stored.is_empty() {
            return Ok(());
        }
        let head = match self.failover.handle().append_replicated(stored).await {
            // Already have them: a replay after a lost connection is harmless.
            Err(RuntimeError::Store(StoreError::NotNext { found, head })) if found <= head => {
                return Err(FollowError::Protocol("entries that are here already"));
            }
            answer => answer?,
        };
        self.acknowledge(head);
        Ok(())
    }

    fn acknowledge(&self, head: Head) {
        self.acks.send_replace(head.index);
        self.note(head.index);
    }

    /// Notes that the primary was heard, and is at least at `index`.
    fn note(&self, index: u64) {
        let (now, own) = (self.failover.handle().now(), self.head().index);
        let mut following = self.failover.lock_following();
        let newest = following.primary_index.filter(|known| following.connected && *known > index).unwrap_or(index);
        following.connected = true;
        following.primary_index = Some(newest);
        following.last_heard = Some(now);
        following.problem = None;
        if own >= newest {
            following.in_sync_at = Some(now);
        }
    }

    fn head(&self) -> Head {
        *self.failover.handle().head().borrow()
    }
}

fn hash_of(bytes: &[u8]) -> Result<JournalHash, FollowError> {
    JournalHash::from_slice(bytes).ok_or(FollowError::Protocol("a hash that is not 32 bytes"))
}

/// Jitter, nothing more.
fn rand_u64() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}
