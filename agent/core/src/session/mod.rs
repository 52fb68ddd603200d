//! The link to the coordinator as a state machine: when to connect, what to send, what to believe. Sans-IO: sockets,
//! the spool and the clocks are the driver's (`muster-agent`, `uplink`); it turns what happens into an [`Input`] and
//! does every [`Output`] in order.
//!
//! # States
//!
//! ```text
//! Idle        waits for its deadline, then connects                                  -> Connecting
//! Connecting  connected: says hello                                                  -> Greeting
//!             failed or too slow: next endpoint, backs off                           -> Idle
//! Greeting    welcome of our fleet and of no lower epoch than ever heard             -> Settling
//!             not the primary, or a lower epoch (told so): next endpoint at once,
//!             after a full round backs off                                           -> Connecting | Idle
//!             anything else: backs off                                               -> Idle
//! Settling    1. a higher epoch is made durable before anything is done under it
//!             2. the coordinator's position is compared with the spool:
//!                it agrees                                                           -> Streaming
//!                it does not (a reverted VM): the spool starts a new id, reconnects  -> Idle
//! Streaming   heartbeats at their own deadline; entries, gaps and the open set within the window; acknowledgements
//!             stream ended, protocol broken, no acknowledgement for too long         -> Idle
//! Stopped     after a goodbye; nothing follows
//! ```
//!
//! Invariant: nothing but a goodbye is sent under an epoch lower than one that was made durable. Invariant: a heartbeat
//! never waits for entries: it depends on its deadline alone. Invariant: within a stream entries go out in strictly
//! rising order, and what is missing between them is told as a gap.

mod entry;
mod stream;
mod words;

pub use entry::{Age, Entry, Written};
pub use words::{End, Goodbye, Input, Message, Output, Phase, SpoolAnswer, SpoolView, Welcome};

use muster_common::ids::{Epoch, FleetName};
use muster_common::retry::Backoff;
use std::time::Duration;
use stream::Streaming;

/// Waits between tries: full jitter, so that a fleet does not come back as one.
pub const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), cap: Duration::from_secs(30) };
/// A connection with its TLS handshake takes milliseconds; a host that drops packets takes for ever.
pub const CONNECT_TIMEOUT_MS: u64 = 5_000;
/// From hello until the spool agreed with the welcome. Generous: a coordinator admits a whole fleet after a restart.
pub const GREETING_TIMEOUT_MS: u64 = 15_000;
/// Without progress in acknowledgements for this long a stream is given up: the coordinator lives but does not commit.
pub const ACK_TIMEOUT_MS: u64 = 60_000;
/// A stream that lived this long was a success: the next failure starts with short waits again.
pub const STABLE_MS: u64 = 10_000;
/// Unacknowledged batches on the way. More than one hides the round trip; few keep a stream short of memory.
pub const WINDOW_BATCHES: usize = 4;
/// Endpoints tried, configured and learned together: a full round stays short.
pub const ENDPOINTS_MAX: usize = 16;
/// Bytes of an endpoint that is learned from a welcome.
const ENDPOINT_BYTES_MAX: usize = 256;
/// Heartbeat intervals a coordinator may ask for: neither a flood nor a silence.
const HEARTBEAT_MS_MIN: u64 = 200;
const HEARTBEAT_MS_MAX: u64 = 60_000;

#[derive(Debug)]
enum State {
    Idle { until_ms: u64 },
    Connecting { deadline_ms: u64 },
    Greeting { deadline_ms: u64 },
    Settling { welcome: Box<Welcome>, deadline_ms: u64, early: Early },
    Streaming(Streaming),
    Stopped,
}

/// What a coordinator sent after its welcome, while we were still settling: taken up when streaming begins.
#[derive(Debug, Default)]
struct Early {
    /// (stored, replicated), the newest.
    ack: Option<(u64, u64)>,
    resync: Option<u64>,
}

/// The state machine.
#[derive(Debug)]
pub struct Session {
    fleet: FleetName,
    configured: Vec<String>,
    learned: Vec<String>,
    /// Index into configured and learned, as one list.
    endpoint: usize,
    /// Endpoints tried at once, without a wait, since the last wait.
    hops: usize,
    /// Failed tries since the last stable stream.
    attempt: u32,
    highest: Option<Epoch>,
    view: SpoolView,
    stream: u64,
    state: State,
    last_end: Option<End>,
}

impl Session {
    /// A session that connects at its first tick. `highest` is the highest epoch the spool remembers.
    pub fn new(fleet: FleetName, mut endpoints: Vec<String>, highest: Option<Epoch>, view: SpoolView) -> Self {
        endpoints.truncate(ENDPOINTS_MAX);
        Self {
            fleet,
            configured: endpoints,
            learned: Vec::new(),
            endpoint: 0,
            hops: 0,
            attempt: 0,
            highest,
            view,
            stream: 0,
            state: State::Idle { until_ms: 0 },
            last_end: None,
        }
    }

    /// Takes one input at `now_ms` (boot-time clock). `random` is fresh for every call and only used for jitter.
    pub fn handle(&mut self, now_ms: u64, random: u64, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Tick => self.tick(now_ms, random, &mut out),
            Input::SpoolChanged(view) => self.spool_changed(now_ms, random, view, &mut out),
            Input::Shutdown(host) => self.shutdown(host, &mut out),
            // Durable is durable, also when the stream that taught it is gone.
            Input::Spool(stream, SpoolAnswer::EpochIs(epoch)) => {
                self.epoch_durable(now_ms, random, stream, epoch, &mut out);
            }
            // Late news of a stream that was let go.
            Input::Connected(stream)
            | Input::Received(stream, _)
            | Input::Ended(stream, _)
            | Input::Spool(stream, _)
            | Input::SnapshotTaken(stream, _)
                if stream != self.stream => {}
            Input::Connected(_) => {
                if matches!(self.state, State::Connecting { .. }) {
                    self.state = State::Greeting { deadline_ms: now_ms.saturating_add(GREETING_TIMEOUT_MS) };
                    out.push(Output::SendHello);
                }
            }
            Input::Received(_, message) => self.received(now_ms, random, message, &mut out),
            Input::Ended(_, end) => {
                if !matches!(self.state, State::Idle { .. } | State::Stopped) {
                    self.leave(now_ms, random, end, &mut out);
                }
            }
            Input::Spool(_, answer) => self.spool_answered(now_ms, random, answer, &mut out),
            Input::SnapshotTaken(_, head) => {
                if let State::Streaming(streaming) = &mut self.state {
                    streaming.snapshot_taken(head, &self.view, &mut out);
                }
            }
        }
        out
    }

    /// When the next [`Input::Tick`] is due; `None` when stopped.
    pub fn deadline_ms(&self) -> Option<u64> {
        match &self.state {
            State::Idle { until_ms } => Some(*until_ms),
            State::Connecting { deadline_ms }
            | State::Greeting { deadline_ms }
            | State::Settling { deadline_ms, .. } => Some(*deadline_ms),
            State::Streaming(streaming) => Some(streaming.deadline_ms()),
            State::Stopped => None,
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Idle { .. } => Phase::Idle,
            State::Connecting { .. } | State::Greeting { .. } | State::Settling { .. } => Phase::Connecting,
            State::Streaming(_) => Phase::Streaming,
            State::Stopped => Phase::Stopped,
        }
    }

    /// The highest epoch that was made durable.
    pub fn highest_epoch(&self) -> Option<&Epoch> {
        self.highest.as_ref()
    }

    /// Why the last stream or try ended.
    pub fn last_end(&self) -> Option<End> {
        self.last_end
    }

    /// The endpoint in use or tried next.
    pub fn endpoint(&self) -> &str {
        self.configured.iter().chain(&self.learned).nth(self.endpoint).map_or("", String::as_str)
    }

    /// Failed tries since the last stable stream.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    fn tick(&mut self, now_ms: u64, random: u64, out: &mut Vec<Output>) {
        match &mut self.state {
            State::Idle { until_ms } if now_ms >= *until_ms => self.connect(now_ms, out),
            State::Connecting { deadline_ms }
            | State::Greeting { deadline_ms }
            | State::Settling { deadline_ms, .. }
                if now_ms >= *deadline_ms =>
            {
                self.close(now_ms, random, End::Unavailable, out);
            }
            State::Streaming(streaming) => {
                streaming.tick(now_ms, out);
                if streaming.ack_overdue(now_ms) {
                    self.close(now_ms, random, End::NoAck, out);
                }
            }
            _ => {}
        }
    }

    fn connect(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        self.stream += 1;
        self.state = State::Connecting { deadline_ms: now_ms.saturating_add(CONNECT_TIMEOUT_MS) };
        out.push(Output::Connect { stream: self.stream, endpoint: self.endpoint().to_owned() });
    }

    fn received(&mut self, now_ms: u64, random: u64, message: Message, out: &mut Vec<Output>) {
        match (&mut self.state, message) {
            (State::Idle { .. } | State::Connecting { .. } | State::Stopped, _) | (_, Message::Unknown) => {}
            (_, Message::Ping { id }) => out.push(Output::SendPong { id }),
            (State::Greeting { .. }, Message::Welcome(welcome)) => self.welcomed(now_ms, random, welcome, out),
            (State::Settling { early, .. }, Message::Resync { id }) => early.resync = Some(id),
            (State::Settling { early, .. }, Message::Ack { spool, stored, replicated }) => {
                if spool == self.view.spool {
                    early.ack = Some((stored, replicated));
                }
            }
            (State::Streaming(streaming), Message::Resync { id }) => streaming.resync(id, &self.view, out),
            (State::Streaming(streaming), Message::Ack { spool, stored, replicated }) => {
                if spool == self.view.spool && !streaming.acked(now_ms, stored, replicated, &self.view, out) {
                    self.close(now_ms, random, End::Protocol, out);
                }
            }
            (State::Settling { .. } | State::Streaming(_), Message::Freezes(freezes)) => {
                out.push(Output::StoreFreezes(freezes));
            }
            (State::Streaming(_), Message::Diagnose { id, service }) => out.push(Output::Diagnose { id, service }),
            (State::Streaming(_), Message::Neighbour { id, address, ports }) => {
                out.push(Output::LookAtNeighbour { id, address, ports });
            }
            // Nothing is done for a coordinator whose epoch is not settled; it asks again if it must know.
            (_, Message::Diagnose { .. } | Message::Neighbour { .. }) => {}
            // A second welcome, an acknowledgement before the first entry, bytes that are no message.
            (
                _,
                Message::Welcome(_)
                | Message::Ack { .. }
                | Message::Resync { .. }
                | Message::Freezes(_)
                | Message::Malformed(_),
            ) => {
                self.close(now_ms, random, End::Protocol, out);
            }
        }
    }

    fn welcomed(&mut self, now_ms: u64, random: u64, welcome: Box<Welcome>, out: &mut Vec<Output>) {
        if welcome.fleet != self.fleet.as_str() {
            return self.close(now_ms, random, End::OtherFleet, out);
        }
        if self.highest.as_ref().is_some_and(|highest| welcome.epoch < *highest) {
            out.push(Output::SendGoodbye(Goodbye::EpochRefused));
            return self.close(now_ms, random, End::EpochRefused, out);
        }
        let higher = self.highest.as_ref() != Some(&welcome.epoch);
        let (epoch, proof) = (welcome.epoch.clone(), welcome.proof.clone());
        self.state = State::Settling {
            welcome,
            deadline_ms: now_ms.saturating_add(GREETING_TIMEOUT_MS),
            early: Early::default(),
        };
        if higher {
            out.push(Output::StoreEpoch { epoch, proof });
        } else {
            self.compare_or_stream(now_ms, random, out);
        }
    }

    fn epoch_durable(&mut self, now_ms: u64, random: u64, stream: u64, durable: Epoch, out: &mut Vec<Output>) {
        self.highest = self.highest.take().max(Some(durable));
        let spoken_to = match &self.state {
            State::Settling { welcome, .. } => &welcome.epoch,
            State::Streaming(streaming) => &streaming.epoch,
            _ => return,
        };
        if self.highest.as_ref() > Some(spoken_to) {
            out.push(Output::SendGoodbye(Goodbye::EpochRefused));
            self.close(now_ms, random, End::EpochRefused, out);
        } else if stream == self.stream && matches!(self.state, State::Settling { .. }) {
            self.compare_or_stream(now_ms, random, out);
        }
    }

    fn compare_or_stream(&mut self, now_ms: u64, random: u64, out: &mut Vec<Output>) {
        let State::Settling { welcome, .. } = &self.state else { return };
        match welcome.resume.filter(|resume| resume.spool == self.view.spool && resume.sequence > 0) {
            Some(resume) => out.push(Output::CompareResume(resume)),
            None => self.start_streaming(now_ms, random, 0, out),
        }
    }

    fn start_streaming(&mut self, now_ms: u64, random: u64, resume: u64, out: &mut Vec<Output>) {
        let State::Settling { welcome, early, .. } = &self.state else { return };
        let interval_ms = welcome.heartbeat_interval_ms.clamp(HEARTBEAT_MS_MIN, HEARTBEAT_MS_MAX);
        let current = self.endpoint().to_owned();
        let room = ENDPOINTS_MAX - self.configured.len();
        self.learned = welcome
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.len() <= ENDPOINT_BYTES_MAX && !self.configured.contains(endpoint))
            .take(room)
            .cloned()
            .collect();
        self.endpoint = self.configured.iter().chain(&self.learned).position(|known| *known == current).unwrap_or(0);
        self.hops = 0;
        let mut streaming = Streaming::new(now_ms, welcome.epoch.clone(), interval_ms, resume);
        streaming.tick(now_ms, out);
        if let Some(request) = early.resync {
            streaming.resync(request, &self.view, out);
        }
        // What the coordinator has, it has stored, whatever happened to the acknowledgement.
        let (stored, replicated) = early.ack.unwrap_or((resume, 0));
        let believable = streaming.acked(now_ms, stored.max(resume), replicated, &self.view, out);
        streaming.pump(&self.view, out);
        self.state = State::Streaming(streaming);
        if !believable {
            self.close(now_ms, random, End::Protocol, out);
        }
    }

    fn spool_answered(&mut self, now_ms: u64, random: u64, answer: SpoolAnswer, out: &mut Vec<Output>) {
        match (&mut self.state, answer) {
            (State::Settling { welcome, .. }, SpoolAnswer::ResumeAgrees) => {
                let resume = welcome.resume.map_or(0, |resume| resume.sequence);
                self.start_streaming(now_ms, random, resume, out);
            }
            (State::Settling { .. }, SpoolAnswer::ResumeDiffers) => out.push(Output::RestartSpool),
            (State::Settling { .. }, SpoolAnswer::Restarted(view)) => {
                self.view = view;
                self.close(now_ms, random, End::SpoolRestarted, out);
            }
            (State::Streaming(streaming), SpoolAnswer::Entries(entries)) => {
                let as_asked = streaming.entries_read(now_ms, entries, &self.view, out);
                if !as_asked {
                    self.close(now_ms, random, End::Spool, out);
                }
            }
            (State::Settling { .. } | State::Streaming(_), SpoolAnswer::Failed) => {
                self.close(now_ms, random, End::Spool, out);
            }
            _ => {}
        }
    }

    fn spool_changed(&mut self, now_ms: u64, random: u64, view: SpoolView, out: &mut Vec<Output>) {
        let restarted = view.spool != self.view.spool;
        self.view = view;
        match &mut self.state {
            // While settling the restart was asked for, and its answer follows.
            State::Streaming(_) | State::Greeting { .. } if restarted => {
                self.close(now_ms, random, End::SpoolRestarted, out);
            }
            State::Streaming(streaming) => streaming.pump(&self.view, out),
            _ => {}
        }
    }

    fn shutdown(&mut self, host: bool, out: &mut Vec<Output>) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        let connected = matches!(self.state, State::Greeting { .. } | State::Settling { .. } | State::Streaming(_));
        if connected {
            let reason = if host { Goodbye::HostShutdown } else { Goodbye::Shutdown };
            out.push(Output::SendGoodbye(reason));
        }
        if connected || matches!(self.state, State::Connecting { .. }) {
            out.push(Output::Close(End::Unavailable));
        }
        self.state = State::Stopped;
        out.push(Output::Stopped);
    }

    /// We end the stream.
    fn close(&mut self, now_ms: u64, random: u64, end: End, out: &mut Vec<Output>) {
        out.push(Output::Close(end));
        self.leave(now_ms, random, end, out);
    }

    /// The stream is over: who is asked next, and when.
    fn leave(&mut self, now_ms: u64, random: u64, end: End, out: &mut Vec<Output>) {
        if let State::Streaming(streaming) = &self.state
            && now_ms.saturating_sub(streaming.since_ms) >= STABLE_MS
        {
            self.attempt = 0;
        }
        self.last_end = Some(end);
        let endpoints = (self.configured.len() + self.learned.len()).max(1);
        let stay =
            matches!(end, End::Busy | End::SpoolRestarted | End::Spool | End::Invalid | End::Conflict | End::Regreet);
        if !stay {
            self.endpoint = (self.endpoint + 1) % endpoints;
        }
        if matches!(end, End::NotPrimary | End::EpochRefused) && self.hops + 1 < endpoints {
            self.hops += 1;
            return self.connect(now_ms, out);
        }
        self.hops = 0;
        let wait = match end {
            // Trying again soon would meet the same answer: wait at least half of the longest wait.
            End::Invalid | End::Conflict | End::Denied | End::OtherFleet => {
                BACKOFF.cap / 2 + BACKOFF.delay(u32::MAX, random) / 2
            }
            _ => BACKOFF.delay(self.attempt, random),
        };
        self.attempt = self.attempt.saturating_add(1);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.state = State::Idle { until_ms: now_ms.saturating_add(wait_ms) };
    }
}

#[cfg(test)]
mod tests;
