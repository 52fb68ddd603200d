//! The agents' streams: hello, heartbeats, entries, acknowledgements.
//!
//! One task per stream. Whatever is malformed ends that stream with a code and a message that says what to do, is
//! counted, and harms nobody else. Invariant: nothing is acknowledged before it is committed.

use super::admission::Admission;
use super::caller::{Caller, allow};
use super::ear::{Ear, News};
use super::spool_reader::SpoolReader;
use crate::failover::{Failover, HearError, not_primary};
use crate::runtime::{
    Answer, CoordinatorRole, Handle, Link, Messages, Newest, Outbox, Resume, View, Waiting, wall_clock,
};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use muster_common::identity::Role;
use muster_common::ids::{AgentName, BootId, SpoolId};
use muster_common::limits::{LABEL_BYTES_MAX, LABELS_MAX, LISTENING_PORTS_MAX, NAME_BYTES_MAX};
use muster_common::time::Timestamp;
use muster_coordinator_core::agent_stream::Acks;
use muster_coordinator_core::entry::{AgentHello, Disconnect, Fact};
use muster_coordinator_core::freeze::Freeze;
use muster_proto::convert::{bounded, epoch_proof_to_wire, position_to_wire, spool_id};
use muster_proto::v1::agent_link_service_server::AgentLinkService;
use muster_proto::v1::{self, ConnectRequest, ConnectResponse, connect_request, connect_response};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::{Code, Request, Response, Status, Streaming};

/// The protocol that is spoken here.
const PROTOCOL_VERSION: u32 = 1;
/// An agent says hello at once; who does not is no agent.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the first stream of an identity may take to answer before the second one replaces it.
const CONFLICT_PING: Duration = Duration::from_secs(2);
/// Agents of a fleet: twice the largest this is built for. Overflow rule: one that was never seen is refused.
const AGENTS_MAX: usize = 20_000;
/// Batches of one stream waiting for their commit. Overflow rule: the stream is not read meanwhile.
const BATCHES_IN_FLIGHT_MAX: usize = 8;

type Commit = Pin<Box<dyn Future<Output = Result<(u64, u64), Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub struct AgentLink {
    handle: Handle,
    failover: Failover,
    endpoints: Arc<Vec<String>>,
    admission: Arc<Admission>,
}

impl AgentLink {
    /// Agents are told to try `endpoints`.
    pub fn new(failover: Failover, endpoints: Vec<String>) -> Self {
        let handle = failover.handle().clone();
        Self { handle, failover, endpoints: Arc::new(endpoints), admission: Arc::default() }
    }

    /// Serves one stream from its hello to its end.
    async fn serve(&self, caller: &Caller, requests: &mut Streaming<ConnectRequest>, outbox: &Outbox) -> Ended {
        // In a block of its own, which is gone with the greeting: in place its room would stay with the stream.
        let opened = Box::pin(self.open(caller, requests, outbox)).await;
        let mut session = match opened {
            Ok(session) => session,
            Err(status) => return Ended::Refused(status),
        };
        let (agent, number) = (session.agent.clone(), session.link.number);
        let ended = session.run(requests).await;
        self.handle.links().remove(&agent, number);
        self.handle.disconnected(agent, number, ended.how()).await;
        ended
    }

    async fn open(
        &self,
        caller: &Caller,
        requests: &mut Streaming<ConnectRequest>,
        outbox: &Outbox,
    ) -> Result<Session, Status> {
        let agent = caller.agent().ok_or_else(|| Status::permission_denied("only agents may open an agent link"))?;
        self.must_reign()?;
        let name = agent.clone();
        let asked = self.handle.query(move |view| {
            let room = view.state.agent(&name).is_some() || view.state.n_agents() < AGENTS_MAX;
            (room, view.state.policy().liveness.admission_per_s)
        });
        let (room, per_s) = asked.await.map_err(status)?;
        if !room {
            let text = format!("{AGENTS_MAX} agents are known already: this one needs a fleet with room");
            return Err(Status::resource_exhausted(text));
        }
        let Some(wait) = self.admission.admit(Instant::now(), per_s, &agent) else {
            return Err(Status::resource_exhausted("too many agents connect at once: come back in a few seconds"));
        };
        tokio::select! {
            () = self.handle.stopping().cancelled_owned() => return Err(Status::unavailable("draining: this coordinator stops")),
            () = tokio::time::sleep(wait) => {}
        }
        let hello = first_hello(requests).await?;
        self.hear_epoch(&hello, &agent).await?;
        let said = hello_of(&hello, &caller.address)?;
        let freezes = self.handle.freezes();
        let concerned = concerned(&freezes.borrow(), &agent, &said.labels);
        self.settle_conflict(&agent, &said).await?;
        let links = self.handle.links();
        let number = links.next_number();
        let mut link = Link::new(caller.address.clone(), number, self.handle.now().unix_ms(), outbox.clone());
        // One token to wait for: it ends with the coordinator, or when another stream takes over.
        link.replaced = self.handle.stopping().child_token();
        let link = Arc::new(link);
        if let Some(before) = links.insert(&agent, Arc::clone(&link)) {
            before.replaced.cancel();
        }
        let resume = match self.handle.connected(agent.clone(), said).await {
            Ok(resume) => resume,
            Err(error) => {
                links.remove(&agent, number);
                return Err(status(error));
            }
        };
        let welcome = self.welcome(&resume);
        if send(outbox, connect_response::Message::Welcome(welcome)).await.is_err() {
            links.remove(&agent, number);
            self.handle.disconnected(agent, number, Disconnect::Reset).await;
            return Err(Status::cancelled("the agent is gone"));
        }
        let mut session = Session::new(self.handle.clone(), agent, link, resume, outbox.clone());
        // Told at the start in any case: the agent may know some that were lifted meanwhile.
        session.owes_freezes = Some(concerned);
        session.reader.tells_head(hello.head_sequence);
        Ok(session)
    }

    fn must_reign(&self) -> Result<(), Status> {
        let standing = self.handle.standing().borrow().clone();
        if standing.role == CoordinatorRole::Primary {
            return Ok(());
        }
        Err(not_primary(&standing, self.failover.config()))
    }

    /// An agent may bring the news that somebody else reigns by now. News that nobody can prove are not believed, but
    /// the agent is welcome all the same.
    async fn hear_epoch(&self, hello: &v1::Hello, from: &AgentName) -> Result<(), Status> {
        match self.failover.hear(hello.highest_epoch.as_ref(), from.as_str()).await {
            Ok(_) => self.must_reign(),
            Err(HearError::Proof(error)) => {
                tracing::warn!(agent = from.as_str(), %error, "an agent told of an epoch without proof");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A second stream of one identity: the first is asked whether it lives.
    async fn settle_conflict(&self, agent: &AgentName, said: &AgentHello) -> Result<(), Status> {
        let Some(first) = self.handle.links().get(agent) else { return Ok(()) };
        if first.ping(CONFLICT_PING).await.is_none() {
            return Ok(());
        }
        let (holder, refused) = (first.peer.clone(), said.peer_address.clone());
        let interval = self.handle.query(|view| view.state.policy().signals.agent_identity_conflict.interval);
        let interval = interval.await.map_err(status)?;
        if first.tells_conflict(self.handle.now().unix_ms(), interval) {
            let fact = Fact::IdentityConflict { agent: agent.clone(), holder: holder.clone(), refused };
            self.handle.submit(fact).await.map_err(status)?;
        }
        Err(Status::already_exists(format!(
            "another living agent at {holder} uses the certificate of {agent:?}: issue this host its own",
            agent = agent.as_str()
        )))
    }

    fn welcome(&self, resume: &Resume) -> v1::Welcome {
        let standing = self.handle.standing().borrow().clone();
        v1::Welcome {
            fleet: standing.fleet.to_string(),
            coordinator_id: standing.id.to_string(),
            epoch: standing.own.as_ref().map(epoch_proof_to_wire),
            heartbeat_interval_ms: u64::try_from(resume.heartbeat.as_millis()).unwrap_or(u64::MAX),
            resume: Some(position_to_wire(resume.position)),
            has_standby: self.handle.replicated().borrow().is_some(),
            endpoints: self.endpoints.as_ref().clone(),
            wall_unix_ms: wall_clock().unix_ms(),
        }
    }
}

#[tonic::async_trait]
impl AgentLinkService for AgentLink {
    type ConnectStream = Messages;

    async fn connect(&self, request: Request<Streaming<ConnectRequest>>) -> Result<Response<Messages>, Status> {
        let caller = allow(&request, &[Role::Agent]).inspect_err(|status| {
            self.handle.metrics().stream_refused(status.code());
        })?;
        let mut requests = request.into_inner();
        let (outbox, messages) = Outbox::new();
        let service = self.clone();
        tokio::spawn(async move {
            if let Some(status) = service.serve(&caller, &mut requests, &outbox).await.status() {
                service.handle.metrics().stream_refused(status.code());
                let refused = &service.handle.metrics().refused;
                refused.call(&caller, "AgentLinkService.Connect", status.code(), status.message());
                tracing::info!(agent = caller.name(), code = ?status.code(), why = status.message(), "stream ended");
                // An agent that does not read its last message learns nothing; its stream ends with the channel.
                drop(outbox.try_send(Err(status)));
            }
        });
        Ok(Response::new(messages))
    }
}

async fn send(outbox: &Outbox, message: connect_response::Message) -> Result<(), ()> {
    outbox.send(Ok(ConnectResponse { message: Some(message) })).await.map_err(|_| ())
}

fn status(error: crate::runtime::RuntimeError) -> Status {
    super::status_of(&error)
}

/// How a stream ended.
enum Ended {
    /// The agent said goodbye.
    Goodbye(Disconnect),
    /// The transport ended.
    Lost(Disconnect),
    /// We ended it.
    Refused(Status),
    Replaced,
    Draining,
}

impl Ended {
    fn how(&self) -> Disconnect {
        match self {
            Self::Goodbye(how) | Self::Lost(how) => *how,
            Self::Refused(_) => Disconnect::Refused,
            Self::Replaced => Disconnect::Replaced,
            Self::Draining => Disconnect::Draining,
        }
    }

    fn status(self) -> Option<Status> {
        match self {
            Self::Goodbye(_) | Self::Lost(_) => None,
            Self::Refused(status) => Some(status),
            Self::Replaced => Some(Status::aborted("another stream of this agent has taken over")),
            Self::Draining => Some(Status::unavailable("draining: this coordinator stops, connect again soon")),
        }
    }
}

async fn first_hello(requests: &mut Streaming<ConnectRequest>) -> Result<v1::Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello within 10 s: send it first"))?;
    let message = first.map_err(|status| malformed(&status).unwrap_or(status))?.and_then(|first| first.message);
    match message {
        Some(connect_request::Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message must be a hello")),
    }
}

/// What an agent says of itself, within its bounds.
fn hello_of(hello: &v1::Hello, peer: &str) -> Result<AgentHello, Status> {
    if hello.protocol_version != PROTOCOL_VERSION {
        let found = hello.protocol_version;
        let text =
            format!("protocol version {found} is not spoken here, {PROTOCOL_VERSION} is: upgrade the older side");
        return Err(Status::failed_precondition(text));
    }
    if hello.labels.len() > LABELS_MAX {
        return Err(Status::invalid_argument(format!("labels has {} items, at most {LABELS_MAX}", hello.labels.len())));
    }
    let label = |(key, value): (&String, &String)| {
        Ok((bounded("a label's key", key, LABEL_BYTES_MAX)?, bounded("a label's value", value, LABEL_BYTES_MAX)?))
    };
    let labels: Result<_, muster_proto::convert::WireError> = hello.labels.iter().map(label).collect();
    let boot_id = match hello.boot_id.as_str() {
        "" => None,
        text => Some(BootId(uuid::Uuid::parse_str(text).map_err(|_| Status::invalid_argument("boot_id is no uuid"))?)),
    };
    // A port changes with every connection and says nothing about the host.
    let peer_address = peer.parse::<std::net::SocketAddr>().map_or(peer.to_owned(), |peer| peer.ip().to_string());
    Ok(AgentHello {
        host_name: bounded("host_name", &hello.host_name, 4 * NAME_BYTES_MAX)?,
        agent_version: bounded("agent_version", &hello.agent_version, NAME_BYTES_MAX)?,
        os_version: bounded("os_version", &hello.os_version, 4 * NAME_BYTES_MAX)?,
        kernel_version: bounded("kernel_version", &hello.kernel_version, 4 * NAME_BYTES_MAX)?,
        boot_id,
        labels: labels?,
        peer_address,
        spool: spool_id(&hello.spool_id)?,
        listening_ports: listening_ports(&hello.listening_ports)?,
    })
}

fn listening_ports(told: &[u32]) -> Result<Vec<u16>, Status> {
    if told.len() > LISTENING_PORTS_MAX {
        let text = format!("listening_ports has {} items, at most {LISTENING_PORTS_MAX}", told.len());
        return Err(Status::invalid_argument(text));
    }
    let port = |told: &u32| {
        let port = u16::try_from(*told).ok().filter(|port| *port > 0);
        port.ok_or_else(|| Status::invalid_argument(format!("listening_ports has {told}, which is no port")))
    };
    told.iter().map(port).collect()
}

/// The status of a message that does not decode or is too large; `None` for what the transport does.
fn malformed(status: &Status) -> Option<Status> {
    match status.code() {
        Code::OutOfRange => Some(status.clone()),
        Code::Internal if status.message().contains("decode") => {
            Some(Status::invalid_argument(format!("malformed message: {}", status.message())))
        }
        _ => None,
    }
}

/// Whether the kernel gave the peer up (a route that is gone is its word for the same), or it was closed.
fn lost(status: &Status) -> Disconnect {
    let text = muster_common::chain::Chain(status).to_string();
    if text.contains("timed out") || text.contains("unreachable") { Disconnect::Timeout } else { Disconnect::Reset }
}

/// The freezes that concern an agent, all of them.
fn concerned(freezes: &[Freeze], agent: &AgentName, labels: &BTreeMap<String, String>) -> v1::Freezes {
    let concerned = freezes.iter().filter(|freeze| freeze.scope.concerns(agent, labels));
    v1::Freezes { freezes: concerned.map(super::silence::wire).collect() }
}

/// After a change of freezes: labels are not kept beside State for that.
async fn concerned_now(handle: Handle, agent: AgentName, freezes: Arc<[Freeze]>) -> Result<v1::Freezes, Status> {
    let look = move |view: &View<'_>| {
        let hello = view.state.agent(&agent).and_then(|record| record.hello.as_ref());
        concerned(&freezes, &agent, hello.map_or(&BTreeMap::new(), |hello| &hello.labels))
    };
    handle.query(look).await.map_err(status)
}

/// What a message comes to.
enum Taken {
    Facts(Vec<Fact>),
    End(Ended),
}

/// One stream after its welcome.
struct Session {
    handle: Handle,
    agent: AgentName,
    link: Arc<Link>,
    reader: SpoolReader,
    outbox: Outbox,
    in_flight: FuturesOrdered<Commit>,
    acks: Acks,
    /// An acknowledgement is due.
    owes_ack: bool,
    /// The freezes that concern it, to be told; `None` when it knows them.
    owes_freezes: Option<v1::Freezes>,
}

impl Session {
    fn new(handle: Handle, agent: AgentName, link: Arc<Link>, resume: Resume, outbox: Outbox) -> Self {
        let sequence = resume.position.sequence;
        Self {
            reader: SpoolReader::new(agent.clone(), resume.position),
            handle,
            agent,
            link,
            outbox,
            in_flight: FuturesOrdered::new(),
            acks: Acks::new(resume.index, sequence),
            owes_ack: sequence > 0,
            owes_freezes: None,
        }
    }

    async fn run(&mut self, requests: &mut Streaming<ConnectRequest>) -> Ended {
        let stop = self.handle.stopping();
        let mut replicated = self.handle.replicated();
        let outbox = self.outbox.clone();
        self.note_replicated(*replicated.borrow_and_update());
        let mut told = std::pin::pin!(Ear::new(&self.handle, &self.link).listen());
        loop {
            tokio::select! {
                (news, ear) = told.as_mut() => {
                    told.set(ear.listen());
                    match news {
                        News::Replaced if stop.is_cancelled() => return Ended::Draining,
                        News::Replaced => return Ended::Replaced,
                        News::Role(role) => {
                            let text = format!("this coordinator is {} now: connect to the primary", role.as_str());
                            return Ended::Refused(Status::failed_precondition(text));
                        }
                        News::Ending => return Ended::Draining,
                        News::Freezes(known) => {
                            match Box::pin(concerned_now(self.handle.clone(), self.agent.clone(), known)).await {
                                Ok(concerned) => self.owes_freezes = Some(concerned),
                                Err(status) => return Ended::Refused(status),
                            }
                        }
                    }
                }
                // Only who waits for it is woken: it changes with every commit.
                changed = replicated.changed(), if self.acks.waits() => {
                    if changed.is_err() {
                        return Ended::Draining;
                    }
                    self.note_replicated(*replicated.borrow_and_update());
                }
                committed = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    match committed {
                        Some(Ok((index, sequence))) => self.note_stored(index, sequence, *replicated.borrow()),
                        Some(Err(status)) => return Ended::Refused(status),
                        None => {}
                    }
                }
                permit = outbox.reserve(), if self.owes_freezes.is_some() => {
                    let Ok(permit) = permit else { return Ended::Lost(Disconnect::Reset) };
                    let message = self.owes_freezes.take().map(connect_response::Message::Freezes);
                    permit.send(Ok(ConnectResponse { message }));
                }
                permit = outbox.reserve(), if self.owes_ack => {
                    let Ok(permit) = permit else { return Ended::Lost(Disconnect::Reset) };
                    let message = Some(connect_response::Message::Ack(self.ack()));
                    permit.send(Ok(ConnectResponse { message }));
                    self.owes_ack = false;
                }
                message = requests.message(), if self.in_flight.len() < BATCHES_IN_FLIGHT_MAX => {
                    let message = match message {
                        Ok(Some(ConnectRequest { message })) => message,
                        Ok(None) => return Ended::Lost(Disconnect::Reset),
                        Err(status) => return match malformed(&status) {
                            Some(status) => Ended::Refused(status),
                            None => Ended::Lost(lost(&status)),
                        },
                    };
                    let now = self.handle.now();
                    self.link.heard(now.unix_ms());
                    let facts = match self.take(now, message) {
                        Ok(Taken::Facts(facts)) => facts,
                        Ok(Taken::End(ended)) => return ended,
                        Err(status) => return Ended::Refused(status),
                    };
                    if let Err(status) = self.enqueue(facts).await {
                        return Ended::Refused(status);
                    }
                }
            }
        }
    }

    /// Counts what this version has no name for, and says once that there is such a thing.
    fn note_foreign(&self, facts: &[Fact]) {
        let foreign = facts.iter().filter_map(|fact| match fact {
            Fact::FindingReceived { event, .. } => Some(event.key()).filter(|key| key.is_foreign()),
            _ => None,
        });
        for key in foreign {
            if self.handle.metrics().foreign.inc() == 0 {
                let (agent, (probe, _, reason)) = (&self.agent, key.told());
                tracing::warn!(%agent, probe, reason, "a newer agent tells what this version has no name for: upgrade it as well");
            }
        }
    }

    /// Waits for nothing, so that no message stays in the stream's task.
    fn take(&mut self, now: Timestamp, message: Option<connect_request::Message>) -> Result<Taken, Status> {
        use connect_request::Message;
        let mut facts = Vec::new();
        match message {
            Some(Message::Heartbeat(heartbeat)) => self.heartbeat(now, &heartbeat),
            Some(Message::Entries(batch)) => {
                let read = self.reader.entries(&batch, now)?;
                self.handle.metrics().duplicates.inc_by(read.duplicates);
                self.note_foreign(&read.facts);
                if read.duplicates > 0 {
                    self.owes_ack = true;
                }
                facts = read.facts;
            }
            Some(Message::Gap(gap)) => {
                facts = self.reader.gap(&gap)?;
            }
            Some(Message::OpenSet(set)) => {
                let asked = self.link.resync_asked.load(Ordering::Relaxed);
                facts.extend(self.reader.open_set(&set, asked)?);
            }
            Some(Message::Pong(pong)) => self.link.ponged(pong.id),
            Some(Message::Goodbye(goodbye)) => return Ok(Taken::End(Ended::Goodbye(goodbye_of(&goodbye)?))),
            Some(Message::Hello(_)) => {
                return Err(Status::invalid_argument("a second hello: open a new stream for it"));
            }
            Some(Message::Diagnosis(answer)) => self.link.questions.answered(answer.id, Answer::Diagnosis(answer)),
            Some(Message::Neighbour(answer)) => self.link.questions.answered(answer.id, Answer::Neighbour(answer)),
            None => return Err(Status::invalid_argument("an empty or unknown message: upgrade the older side")),
        }
        Ok(Taken::Facts(facts))
    }

    fn heartbeat(&mut self, now: Timestamp, heartbeat: &v1::Heartbeat) {
        self.reader.tells_head(heartbeat.head_sequence);
        let skew_ms = heartbeat.wall_unix_ms.saturating_sub(now.unix_ms());
        self.link.beat(Newest {
            digest: heartbeat.open_digest,
            head_sequence: heartbeat.head_sequence,
            memory_available_bytes: heartbeat.memory_available_bytes,
            evicted_entries: heartbeat.evicted_entries,
            skew_ms,
        });
        self.handle.metrics().heartbeats.inc();
        tracing::trace!(agent = %self.agent, sequence = heartbeat.sequence, "heartbeat");
    }

    async fn enqueue(&mut self, facts: Vec<Fact>) -> Result<(), Status> {
        if facts.is_empty() {
            return Ok(());
        }
        let sequence = self.reader.position().sequence;
        let waiting: Waiting = self.handle.enqueue(facts).await.map_err(status)?;
        self.in_flight.push_back(Box::pin(async move {
            let committed = waiting.done().await.map_err(status)?;
            Ok((committed.head.index, sequence))
        }));
        Ok(())
    }

    fn note_stored(&mut self, index: u64, sequence: u64, replicated: Option<u64>) {
        tracing::trace!(agent = %self.agent, sequence, "stored");
        self.acks.committed(index, sequence);
        self.owes_ack = true;
        self.note_replicated(replicated);
    }

    fn note_replicated(&mut self, index: Option<u64>) {
        if self.acks.replicated(index) {
            self.owes_ack = true;
        }
    }

    fn ack(&self) -> v1::Ack {
        let SpoolId(spool) = self.reader.position().spool;
        let (stored_sequence, replicated_sequence) = self.acks.told();
        v1::Ack {
            spool_id: spool.as_bytes().to_vec().into(),
            stored_sequence,
            replicated_sequence,
            wall_unix_ms: wall_clock().unix_ms(),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("agent", &self.agent).finish_non_exhaustive()
    }
}

fn goodbye_of(goodbye: &v1::Goodbye) -> Result<Disconnect, Status> {
    use v1::goodbye::Reason;
    match Reason::try_from(goodbye.reason) {
        Ok(Reason::Shutdown) => Ok(Disconnect::Goodbye),
        Ok(Reason::HostShutdown) => Ok(Disconnect::HostShutdown),
        // It lives and goes elsewhere; whether it is well is not ours to say.
        Ok(Reason::EpochRefused) => Ok(Disconnect::Reset),
        _ => Err(Status::invalid_argument(format!("goodbye.reason has the unknown value {}", goodbye.reason))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_peer_that_the_kernel_gave_up_is_told_from_one_that_closed() {
        for (kind, how) in [
            (ErrorKind::TimedOut, Disconnect::Timeout),
            (ErrorKind::HostUnreachable, Disconnect::Timeout),
            (ErrorKind::NetworkUnreachable, Disconnect::Timeout),
            (ErrorKind::ConnectionReset, Disconnect::Reset),
            (ErrorKind::BrokenPipe, Disconnect::Reset),
        ] {
            assert_eq!(lost(&Status::from_error(Box::new(Error::from(kind)))), how, "{kind:?}");
        }
    }
}
