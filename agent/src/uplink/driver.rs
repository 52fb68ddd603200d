//! Turns what happens into inputs of the session, and does what it puts out.

use super::answers;
use super::link::{self, LinkEvent};
use super::outbox::{Bulk, Clock, Outbox};
use super::{
    GOODBYE_TIMEOUT, OpenSnapshot, Security, SnapshotProvider, Stop, UplinkConfig, UplinkFacts, UplinkStatus, wire,
};
use crate::spool::{Comparison, SpoolError, SpoolHandle};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use muster_agent_core::clock::Now;
use muster_agent_core::host_clock::Heard;
use muster_agent_core::neighbour::Guard;
use muster_agent_core::session::{End, Goodbye, Input, Output, Phase, Session, SpoolAnswer, SpoolView};
use muster_common::ids::{Epoch, SpoolId};
use muster_common::limits::{BATCH_ENTRIES_MAX, ENTRY_BODY_BYTES_MAX};
use muster_common::spool::Position;
use muster_proto::v1;
use muster_proto::v1::connect_response::Message as Wire;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Bytes of bodies in one batch: what a heartbeat may have to wait behind once the transport took it.
const BATCH_BYTES_MAX: usize = ENTRY_BODY_BYTES_MAX;
/// Messages received that wait for the driver; the rest waits in the transport.
const EVENTS_MAX: usize = 16;

/// Diagnoses that are made at once; beyond, a question stays without an answer and is asked again.
const DIAGNOSES_MAX: usize = 4;

/// The same trouble with the same coordinator is told again after this.
const SAME_TROUBLE_PAUSE_MS: u64 = 600_000;

/// What others did for us.
enum Done {
    Spool(u64, SpoolAnswer),
    Epoch(u64, Result<(Epoch, Vec<u8>), SpoolError>),
    Snapshot(u64, Option<OpenSnapshot>),
    Acked,
    Diagnosed(u64, v1::DiagnoseAnswer),
    Looked(u64, v1::NeighbourAnswer),
}

/// The connection in use.
struct Link {
    stream: u64,
    outbox: Outbox,
    events: mpsc::Receiver<LinkEvent>,
    task: JoinHandle<()>,
}

struct Driver {
    config: UplinkConfig,
    spool: SpoolHandle,
    provider: SnapshotProvider,
    facts: Arc<Mutex<UplinkFacts>>,
    session: Session,
    /// The highest epoch with its proof, as the spool has it.
    highest: Option<(Epoch, Vec<u8>)>,
    spool_id: SpoolId,
    link: Option<Link>,
    /// Last of a connection that was let go: it may need a moment to get its goodbye out.
    parting: Option<JoinHandle<()>>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    snapshot: Option<OpenSnapshot>,
    /// The newest acknowledgement that is not in the spool yet, while an earlier one is being written.
    ack_waiting: Option<(SpoolId, u64, u64)>,
    ack_running: bool,
    last_message: String,
    /// What was told of each endpoint since there was a stream, and when.
    told: BTreeMap<String, (String, u64)>,
    streaming_since_boottime_ms: Option<u64>,
    /// The coordinator's clock.
    heard: Heard,
    /// The ports of this host, as of the newest connection.
    listening_ports: Vec<u16>,
    /// Diagnoses that are being made.
    diagnosing: usize,
    /// Whether and how often neighbours are looked at.
    guard: Guard,
}

/// Runs until told to stop.
pub(super) async fn run(
    config: UplinkConfig,
    spool: SpoolHandle,
    provider: SnapshotProvider,
    facts: Arc<Mutex<UplinkFacts>>,
    publish: watch::Sender<UplinkStatus>,
    mut stopping: watch::Receiver<Option<Stop>>,
    mut renewed: watch::Receiver<Security>,
) {
    let highest = match spool.call(|spool| spool.highest_epoch()).await {
        Ok(highest) => highest,
        Err(error) => {
            // Without it a coordinator that was replaced could be believed: rather report to nobody.
            tracing::error!(error = &error as &dyn std::error::Error, "the uplink cannot start");
            return;
        }
    };
    let fleet = match &config.security {
        Security::Mutual(credentials) => credentials.fleet().clone(),
        Security::Plain(fleet) => fleet.clone(),
    };
    let epoch = highest.as_ref().map(|(epoch, _)| epoch.clone());
    let session = Session::new(fleet, config.endpoints.clone(), epoch, spool.view());
    let mut views = spool.watch();
    let guard = Guard::new(config.second_opinion.enabled);
    let mut driver = Driver {
        config,
        spool_id: spool.view().spool,
        spool,
        provider,
        facts,
        session,
        highest,
        link: None,
        parting: None,
        work: FuturesUnordered::new(),
        snapshot: None,
        ack_waiting: None,
        ack_running: false,
        last_message: String::new(),
        told: BTreeMap::new(),
        streaming_since_boottime_ms: None,
        heard: Heard::default(),
        listening_ports: Vec::new(),
        diagnosing: 0,
        guard,
    };
    while let Some(deadline_ms) = driver.session.deadline_ms() {
        let wait = Duration::from_millis(deadline_ms.saturating_sub((driver.config.clock)().boottime_ms));
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait) => driver.input(Input::Tick),
            Ok(()) = stopping.changed() => {
                let stop = *stopping.borrow_and_update();
                driver.input(Input::Shutdown(stop == Some(Stop::Host)));
            }
            Ok(()) = renewed.changed() => driver.config.security = renewed.borrow_and_update().clone(),
            Some(done) = driver.work.next() => driver.done(done),
            Some(event) = next_event(&mut driver.link) => driver.event(event),
            Ok(()) = views.changed() => {
                let view = *views.borrow_and_update();
                driver.spool_changed(view);
            }
        }
        driver.publish(&publish);
    }
    if let Some(parting) = driver.parting.take() {
        parting.await.ok();
    }
}

async fn next_event(link: &mut Option<Link>) -> Option<LinkEvent> {
    match link {
        Some(link) => link.events.recv().await,
        None => None,
    }
}

impl Driver {
    fn input(&mut self, input: Input) {
        let now_ms = (self.config.clock)().boottime_ms;
        // The low half of a version 4 UUID: 62 random bits, of which jitter uses the lowest.
        let random = uuid::Uuid::new_v4().as_u64_pair().1;
        for output in self.session.handle(now_ms, random, input) {
            self.output(output);
        }
    }

    fn spool_changed(&mut self, view: SpoolView) {
        if self.spool_id != view.spool {
            self.spool_id = view.spool;
            // It may have been damaged, and have lost the epoch with the rest.
            if let Some((epoch, proof)) = self.highest.clone() {
                self.store_epoch(0, epoch, proof);
            }
        }
        self.input(Input::SpoolChanged(view));
    }

    fn event(&mut self, event: LinkEvent) {
        let Some(stream) = self.link.as_ref().map(|link| link.stream) else { return };
        match event {
            LinkEvent::Connected(ports) => {
                self.listening_ports = ports;
                self.input(Input::Connected(stream));
            }
            LinkEvent::Received(response) => {
                let now = (self.config.clock)();
                self.note_clock(&response, now);
                let message = wire::received(*response, &self.config.security, now);
                if let muster_agent_core::session::Message::Malformed(why) = &message {
                    self.last_message.clone_from(why);
                }
                self.input(Input::Received(stream, message));
            }
            LinkEvent::Ended(end, words) => {
                self.tell_end(end, &words);
                self.last_message = words;
                self.link = None;
                self.input(Input::Ended(stream, end));
            }
        }
    }

    fn note_clock(&mut self, response: &v1::ConnectResponse, now: Now) {
        let wall_unix_ms = match &response.message {
            Some(Wire::Welcome(welcome)) => {
                self.heard.forget();
                welcome.wall_unix_ms
            }
            Some(Wire::Ack(ack)) => ack.wall_unix_ms,
            _ => 0,
        };
        // An older coordinator does not tell.
        if wall_unix_ms > 0 {
            self.heard.note(wall_unix_ms, now.boottime_ms);
        }
    }

    /// A coordinator that is away is tried for hours, every few seconds: what is no news is told rarely.
    fn tell_end(&mut self, end: End, words: &str) {
        let endpoint = self.session.endpoint();
        let now_ms = (self.config.clock)().boottime_ms;
        let told = self.told.get(endpoint);
        if told.is_some_and(|(said, at_ms)| said == words && now_ms < at_ms.saturating_add(SAME_TROUBLE_PAUSE_MS)) {
            tracing::debug!(endpoint, ?end, reason = words, "the link is still down");
            return;
        }
        tracing::warn!(endpoint, ?end, reason = words, "the link is down");
        self.told.insert(endpoint.to_owned(), (words.to_owned(), now_ms));
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Spool(stream, answer) => self.input(Input::Spool(stream, answer)),
            Done::Epoch(stream, Ok((epoch, proof))) => {
                self.highest = Some((epoch.clone(), proof));
                self.input(Input::Spool(stream, SpoolAnswer::EpochIs(epoch)));
            }
            Done::Epoch(stream, Err(error)) => {
                let answer = failed(&error);
                self.input(Input::Spool(stream, answer));
            }
            Done::Snapshot(stream, Some(snapshot)) => {
                // The snapshot may know an entry that the session was not told of yet.
                self.spool_changed(self.spool.view());
                let head = snapshot.head_sequence;
                self.snapshot = Some(snapshot);
                self.input(Input::SnapshotTaken(stream, head));
            }
            Done::Snapshot(stream, None) => self.input(Input::Spool(stream, SpoolAnswer::Failed)),
            Done::Diagnosed(stream, answer) => {
                self.diagnosing = self.diagnosing.saturating_sub(1);
                self.answer(stream, Bulk::Diagnosis(answer));
            }
            Done::Looked(stream, answer) => self.answer(stream, Bulk::Neighbour(answer)),
            Done::Acked => {
                self.ack_running = false;
                if let Some((spool, stored, replicated)) = self.ack_waiting.take() {
                    self.store_ack(spool, stored, replicated);
                }
            }
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect { stream, endpoint } => self.connect(stream, endpoint),
            Output::Close(end) => {
                tracing::info!(endpoint = self.session.endpoint(), ?end, "closing the link");
                self.close();
            }
            Output::Stopped => {}
            Output::StoreFreezes(freezes) => {
                if let Some(keeper) = &self.config.freezes {
                    keeper.keep(freezes);
                }
            }
            Output::StoreAck { spool, stored, replicated } => self.store_ack(spool, stored, replicated),
            Output::Diagnose { id, service } => self.diagnose(id, service),
            Output::LookAtNeighbour { id, address, ports } => self.look(id, &address, &ports),
            Output::TakeSnapshot => self.take_snapshot(),
            Output::StoreEpoch { epoch, proof } => {
                if let Some(stream) = self.link.as_ref().map(|link| link.stream) {
                    self.store_epoch(stream, epoch, proof);
                }
            }
            Output::CompareResume(position) => self.compare(position),
            Output::RestartSpool => {
                tracing::warn!("the coordinator knows other entries of this spool: it was reverted; starting a new id");
                let spool = self.spool.clone();
                self.ask(async move { spool.call(|spool| spool.restart()).await.map(SpoolAnswer::Restarted) });
            }
            Output::ReadEntries { after, up_to } => {
                let spool = self.spool.clone();
                let read =
                    move |spool: &mut crate::spool::Spool| spool.read(after, up_to, BATCH_ENTRIES_MAX, BATCH_BYTES_MAX);
                self.ask(async move { spool.call(read).await.map(SpoolAnswer::Entries) });
            }
            sending => self.send(sending),
        }
    }

    fn send(&mut self, output: Output) {
        let now = (self.config.clock)();
        let view = self.spool.view();
        let Some(link) = &self.link else { return };
        match output {
            Output::SendHello => {
                let (highest, ports) = (self.highest.as_ref(), &self.listening_ports);
                link.outbox.hello(wire::hello(&self.config.host, self.config.boot, view, highest, ports, now));
            }
            Output::SendHeartbeat { sequence } => {
                let facts = *self.facts.lock().unwrap_or_else(PoisonError::into_inner);
                link.outbox.heartbeat(v1::Heartbeat {
                    sequence,
                    open_digest: facts.open_digest,
                    head_sequence: facts.head_sequence,
                    boottime_ms: now.boottime_ms,
                    memory_available_bytes: facts.memory_available_bytes,
                    evicted_entries: view.evicted,
                    wall_unix_ms: now.wall.unix_ms(),
                });
            }
            Output::SendEntries { spool, entries } => link.outbox.bulk(Bulk::Entries { spool, entries }),
            Output::SendGap { spool, first, last } => link.outbox.bulk(Bulk::Gap(wire::gap(spool, first, last))),
            Output::SendSnapshot { request } => {
                for chunk in wire::open_set(request, self.snapshot.take().unwrap_or_default()) {
                    link.outbox.bulk(Bulk::OpenSet(chunk));
                }
            }
            Output::SendPong { id } => link.outbox.pong(id),
            Output::SendGoodbye(goodbye) => link.outbox.goodbye(match goodbye {
                Goodbye::Shutdown => v1::goodbye::Reason::Shutdown,
                Goodbye::HostShutdown => v1::goodbye::Reason::HostShutdown,
                Goodbye::EpochRefused => v1::goodbye::Reason::EpochRefused,
            }),
            _ => {}
        }
    }

    fn connect(&mut self, stream: u64, endpoint: String) {
        let outbox = Outbox::new(Clock { now: self.config.clock, boot: self.config.boot });
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (security, root) = (self.config.security.clone(), self.config.second_opinion.root.clone());
        let task = tokio::spawn(link::run(endpoint, security, root, outbox.stream(), sender));
        self.link = Some(Link { stream, outbox, events, task });
    }

    /// Ends the stream after what was sent last, and gives it a moment; a link that never connected has none to give.
    fn close(&mut self) {
        let Some(link) = self.link.take() else { return };
        link.outbox.close();
        drop(link.events);
        let mut task = link.task;
        self.parting = Some(tokio::spawn(async move {
            if tokio::time::timeout(GOODBYE_TIMEOUT, &mut task).await.is_err() {
                task.abort();
            }
        }));
        self.snapshot = None;
    }

    /// Asks the spool; the answer comes as an input of the present stream.
    fn ask(&mut self, question: impl Future<Output = Result<SpoolAnswer, SpoolError>> + Send + 'static) {
        let Some(stream) = self.link.as_ref().map(|link| link.stream) else { return };
        self.work
            .push(Box::pin(async move { Done::Spool(stream, question.await.unwrap_or_else(|error| failed(&error))) }));
    }

    fn compare(&mut self, position: Position) {
        let spool = self.spool.clone();
        self.ask(async move {
            Ok(match spool.call(move |spool| spool.compare(position)).await? {
                Comparison::Same | Comparison::Unknown => SpoolAnswer::ResumeAgrees,
                Comparison::Different => SpoolAnswer::ResumeDiffers,
            })
        });
    }

    fn store_epoch(&mut self, stream: u64, epoch: Epoch, proof: Vec<u8>) {
        let spool = self.spool.clone();
        self.work.push(Box::pin(async move {
            let stored = spool.call(move |spool| {
                match spool.store_epoch(&epoch, &proof) {
                    Ok(()) | Err(SpoolError::EpochLower { .. }) => {}
                    Err(error) => return Err(error),
                }
                Ok(spool.highest_epoch()?.unwrap_or((epoch, proof)))
            });
            Done::Epoch(stream, stored.await)
        }));
    }

    fn store_ack(&mut self, id: SpoolId, stored: u64, replicated: u64) {
        if self.ack_running {
            self.ack_waiting = Some((id, stored, replicated));
            return;
        }
        self.ack_running = true;
        let (spool, now) = (self.spool.clone(), (self.config.clock)());
        self.work.push(Box::pin(async move {
            if let Err(error) = spool.call(move |spool| spool.ack(id, stored, replicated, now)).await {
                // Kept longer than needed, and sent again after a restart: the coordinator drops what it has.
                tracing::warn!(error = &error as &dyn std::error::Error, "an acknowledgement was not noted");
            }
            Done::Acked
        }));
    }

    /// Answers go to the stream they were asked on, or nowhere.
    fn answer(&self, stream: u64, answer: Bulk) {
        if let Some(link) = self.link.as_ref().filter(|link| link.stream == stream) {
            link.outbox.bulk(answer);
        }
    }

    fn diagnose(&mut self, id: u64, service: String) {
        let Some(stream) = self.link.as_ref().map(|link| link.stream) else { return };
        // Who asks again before the first answer waits for that one.
        if self.diagnosing >= DIAGNOSES_MAX {
            return;
        }
        self.diagnosing += 1;
        let (asks, now) = (self.config.asks.clone(), (self.config.clock)());
        self.work.push(Box::pin(async move {
            let diagnosis = Some(answers::diagnosis(asks, service, now).await);
            Done::Diagnosed(stream, v1::DiagnoseAnswer { id, diagnosis })
        }));
    }

    fn look(&mut self, id: u64, address: &str, ports: &[u32]) {
        let Some(stream) = self.link.as_ref().map(|link| link.stream) else { return };
        let admitted = self.guard.admit((self.config.clock)().boottime_ms, address, ports);
        self.work.push(Box::pin(async move {
            let looked = match admitted {
                Ok((address, ports)) => answers::look(address, &ports).await,
                Err(why) => Err(why),
            };
            let answer = match looked {
                Ok(ports) => v1::NeighbourAnswer { id, ports, ..Default::default() },
                Err(refused) => v1::NeighbourAnswer { id, refused, ..Default::default() },
            };
            Done::Looked(stream, answer)
        }));
    }

    fn take_snapshot(&mut self) {
        let Some(stream) = self.link.as_ref().map(|link| link.stream) else { return };
        let provider = self.provider.clone();
        let taken = tokio::task::spawn_blocking(move || (provider.0)());
        self.work.push(Box::pin(async move { Done::Snapshot(stream, taken.await.ok()) }));
    }

    fn publish(&mut self, publish: &watch::Sender<UplinkStatus>) {
        let phase = self.session.phase();
        self.streaming_since_boottime_ms = match (phase, self.streaming_since_boottime_ms) {
            (Phase::Streaming, None) => {
                tracing::info!(endpoint = self.session.endpoint(), "connected");
                self.told.clear();
                Some((self.config.clock)().boottime_ms)
            }
            (Phase::Streaming, since) => since,
            _ => None,
        };
        let view = self.spool.view();
        let status = UplinkStatus {
            phase,
            endpoint: self.session.endpoint().to_owned(),
            epoch: self.session.highest_epoch().cloned(),
            streaming_since_boottime_ms: self.streaming_since_boottime_ms,
            last_end: self.session.last_end(),
            last_message: self.last_message.clone(),
            failed_tries: self.session.attempt(),
            unacked_entries: view.head.saturating_sub(view.stored),
            coordinator_less_boottime_ms: self.heard.less_boottime_ms(),
        };
        publish.send_if_modified(|known| {
            let changed = *known != status;
            if changed {
                *known = status;
            }
            changed
        });
    }
}

fn failed(error: &SpoolError) -> SpoolAnswer {
    tracing::error!(error = error as &dyn std::error::Error, "the spool failed");
    SpoolAnswer::Failed
}
