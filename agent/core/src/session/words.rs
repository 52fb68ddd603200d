//! What a session is told and what it says.

use super::Entry;
use crate::freeze::Freeze;
use muster_common::ids::{Epoch, SpoolId};
use muster_common::spool::Position;

/// What the driver knows about the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolView {
    /// Its id.
    pub spool: SpoolId,
    /// Last sequence number written; 0 when nothing was.
    pub head: u64,
    /// Oldest kept; head + 1 when nothing is.
    pub oldest: u64,
    /// Entries evicted before they were acknowledged, ever.
    pub evicted: u64,
    /// Highest sequence number a coordinator acknowledged as stored.
    pub stored: u64,
}

/// The coordinator's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Its fleet; must be ours.
    pub fleet: String,
    /// Its epoch; the driver has checked the proof.
    pub epoch: Epoch,
    /// The proof, to be kept and shown to others.
    pub proof: Vec<u8>,
    /// How often to send heartbeats.
    pub heartbeat_interval_ms: u64,
    /// What it has of our spool; `None` when nothing.
    pub resume: Option<Position>,
    /// Coordinators that may be tried.
    pub endpoints: Vec<String>,
}

/// A message from the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Where to go on.
    Welcome(Box<Welcome>),
    /// Everything up to here is safe.
    Ack {
        /// Of which spool.
        spool: SpoolId,
        /// Committed by the primary.
        stored: u64,
        /// Also held by the standby.
        replicated: u64,
    },
    /// Send the open set.
    Resync {
        /// To be repeated in the answer.
        id: u64,
    },
    /// The freezes that concern this agent, all of them.
    Freezes(Vec<Freeze>),
    /// What do you hold to be wrong?
    Diagnose {
        /// To be repeated in the answer.
        id: u64,
        /// Of this service alone; empty: of all.
        service: String,
    },
    /// Does a neighbour answer you?
    Neighbour {
        /// To be repeated in the answer.
        id: u64,
        /// Where; not checked yet.
        address: String,
        /// On which ports; not checked yet.
        ports: Vec<u32>,
    },
    /// Are you there?
    Ping {
        /// To be repeated in the answer.
        id: u64,
    },
    /// A message of a later protocol; ignored.
    Unknown,
    /// A message that breaks the protocol, and how.
    Malformed(String),
}

/// Why a connection came to nothing or a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The coordinator is not the primary (FAILED_PRECONDITION).
    NotPrimary,
    /// What we sent is not what it has, or another stream of ours took over (ABORTED, OUT_OF_RANGE): it is to be greeted again, and
    /// the comparison of positions then tells whether a new spool is due.
    Regreet,
    /// Too many at once (RESOURCE_EXHAUSTED).
    Busy,
    /// It refused something we sent (INVALID_ARGUMENT).
    Invalid,
    /// Another living agent has our certificate (ALREADY_EXISTS).
    Conflict,
    /// It does not accept our certificate (UNAUTHENTICATED, PERMISSION_DENIED).
    Denied,
    /// Anything else: refused, reset, timed out, closed.
    Unavailable,
    /// Its epoch is lower than the highest heard.
    EpochRefused,
    /// It belongs to another fleet.
    OtherFleet,
    /// It broke the protocol.
    Protocol,
    /// It acknowledged nothing for too long.
    NoAck,
    /// Our spool could not do its part.
    Spool,
    /// Our spool got a new id.
    SpoolRestarted,
}

/// What the spool's owner answers to an [`Output`] that asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolAnswer {
    /// This is the highest durable epoch now; not the one that was to be stored when that was lower.
    EpochIs(Epoch),
    /// The coordinator's position agrees with the spool, as far as can be told.
    ResumeAgrees,
    /// The coordinator knows entries that this spool never wrote, or wrote differently.
    ResumeDiffers,
    /// The spool has a new id.
    Restarted(SpoolView),
    /// Entries after the one asked for, in order; empty when all of them are gone.
    Entries(Vec<Entry>),
    /// It failed; the reason was logged.
    Failed,
}

/// What happens to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time passed; the deadline may be due.
    Tick,
    /// The transport of stream `0` (the number) stands.
    Connected(u64),
    /// The coordinator sent something on this stream.
    Received(u64, Message),
    /// Connecting failed, or the stream is over.
    Ended(u64, End),
    /// The spool did what was asked under this stream.
    Spool(u64, SpoolAnswer),
    /// The spool changed: appended, evicted, acknowledged, restarted.
    SpoolChanged(SpoolView),
    /// The snapshot asked for under this stream was taken; it is as of this entry.
    SnapshotTaken(u64, u64),
    /// The agent stops; true when the whole host does.
    Shutdown(bool),
}

/// Why we say goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    /// The agent stops.
    Shutdown,
    /// The host stops.
    HostShutdown,
    /// The coordinator's epoch is lower than the highest heard.
    EpochRefused,
}

/// What the driver must do, in order. Everything but `Connect` is about the stream last connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Connect stream number `stream` to `endpoint`.
    Connect {
        /// To be repeated in every input about this stream.
        stream: u64,
        /// Whom to ask.
        endpoint: String,
    },
    /// Send a hello with what the spool has now.
    SendHello,
    /// Send a heartbeat, before anything that waits.
    SendHeartbeat {
        /// Counts from 1 within the stream.
        sequence: u64,
    },
    /// Send entries.
    SendEntries {
        /// Of this spool.
        spool: SpoolId,
        /// In order.
        entries: Vec<Entry>,
    },
    /// Send that these entries are gone.
    SendGap {
        /// Of this spool.
        spool: SpoolId,
        /// First that is gone.
        first: u64,
        /// Last that is gone.
        last: u64,
    },
    /// Take a snapshot of the open set and answer with [`Input::SnapshotTaken`].
    TakeSnapshot,
    /// Send the snapshot taken last as the answer to this request.
    SendSnapshot {
        /// The request.
        request: u64,
    },
    /// Answer a ping.
    SendPong {
        /// Its id.
        id: u64,
    },
    /// Answer what is held to be wrong.
    Diagnose {
        /// The question.
        id: u64,
        /// Of this service alone; empty: of all.
        service: String,
    },
    /// Look whether a neighbour answers, if that is allowed.
    LookAtNeighbour {
        /// The question.
        id: u64,
        /// Where.
        address: String,
        /// On which ports.
        ports: Vec<u32>,
    },
    /// Say goodbye; a `Close` follows.
    SendGoodbye(Goodbye),
    /// Make the epoch durable.
    StoreEpoch {
        /// The epoch.
        epoch: Epoch,
        /// Its proof.
        proof: Vec<u8>,
    },
    /// Compare the coordinator's position with the spool.
    CompareResume(Position),
    /// Give the spool a new id; entries that are not replicated go on under it.
    RestartSpool,
    /// Read entries with `after < sequence <= up_to`.
    ReadEntries {
        /// Last one already sent.
        after: u64,
        /// Not beyond this.
        up_to: u64,
    },
    /// Note an acknowledgement in the spool.
    StoreAck {
        /// Of this spool.
        spool: SpoolId,
        /// Stop sending below.
        stored: u64,
        /// May be deleted below.
        replicated: u64,
    },
    /// Keep these freezes for who asks on the host, instead of those before.
    StoreFreezes(Vec<Freeze>),
    /// Let go of the stream once what was sent before is out.
    Close(End),
    /// Nothing follows.
    Stopped,
}

/// Where a session stands, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting before the next try.
    Idle,
    /// Connecting or being greeted.
    Connecting,
    /// Connected.
    Streaming,
    /// Over.
    Stopped,
}
