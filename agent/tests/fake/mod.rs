//! A coordinator for tests: keeps what it is sent, notices when an agent breaks the protocol, and misbehaves by script.

use muster_common::spool::{EntryHash, Position};
use muster_common::tls::Credentials;
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::agent_link_service_server::{AgentLinkService, AgentLinkServiceServer};
use muster_proto::v1::connect_request::Message as In;
use muster_proto::v1::connect_response::Message as Out;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// How far its clock is ahead.
pub(crate) const AHEAD_MS: i64 = 42_000;
const HEARTBEAT_MS: u64 = 200;

/// What one stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Stores and acknowledges.
    Good,
    /// Ends with an error in the midst of a batch after so many entries, which it stored and did not acknowledge.
    DropAfter(usize),
    /// Ends in good order after so many entries.
    CloseAfter(usize),
    /// RESOURCE_EXHAUSTED.
    Busy,
    /// FAILED_PRECONDITION.
    NotPrimary,
    /// INVALID_ARGUMENT at the first entry.
    Invalid,
    /// Reads and stores, acknowledges nothing.
    NeverAck,
    /// Of this epoch; ends after so many entries unless 0.
    Epoch(u64, usize),
    /// Asks for the open set after the first entries.
    Resync(u64),
    /// Good, but nobody can believe its epoch.
    Forged,
    /// Claims to have more of the spool than there is.
    Ahead,
    /// Asks for a diagnosis and for looks at neighbours, at the first heartbeat.
    Curious(&'static [(&'static str, &'static [u32])]),
}

/// What was heard, over all streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) streams: usize,
    pub(crate) hellos: Vec<v1::Hello>,
    pub(crate) heartbeats: Vec<v1::Heartbeat>,
    pub(crate) entries: Vec<v1::SpoolEntry>,
    pub(crate) goodbyes: Vec<i32>,
    /// Each with the last entry heard before it.
    pub(crate) open_sets: Vec<(v1::OpenSet, u64)>,
    /// Epochs under which a heartbeat or entry came, in order, without repeats.
    pub(crate) talked_under: Vec<u64>,
    pub(crate) diagnoses: Vec<v1::DiagnoseAnswer>,
    pub(crate) looks: Vec<v1::NeighbourAnswer>,
    /// How an agent broke the protocol.
    pub(crate) broken: Option<String>,
    position: Option<Position>,
}

/// A running coordinator; it ends with the runtime of the test.
#[derive(Debug)]
pub(crate) struct Fake {
    address: SocketAddr,
    state: watch::Sender<State>,
    scheme: &'static str,
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[derive(Debug, Clone)]
struct Service {
    script: Arc<Mutex<VecDeque<Behaviour>>>,
    state: watch::Sender<State>,
    credentials: Option<Credentials>,
}

impl Fake {
    /// The n-th stream does the n-th of `script`; all later ones are good.
    pub(crate) async fn start(script: impl IntoIterator<Item = Behaviour>) -> Self {
        let (listener, address) = listen().await;
        let state = watch::Sender::new(State::default());
        let script = Arc::new(Mutex::new(script.into_iter().collect()));
        let service = AgentLinkServiceServer::new(Service { script, state: state.clone(), credentials: None });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, state, scheme: "http" }
    }

    /// As `start`, with mutual TLS and proven epochs.
    pub(crate) async fn start_tls(script: impl IntoIterator<Item = Behaviour>, credentials: Credentials) -> Self {
        let (listener, address) = listen().await;
        let state = watch::Sender::new(State::default());
        let script = Arc::new(Mutex::new(script.into_iter().collect()));
        let acceptor = TlsAcceptor::from(muster_common::tls::server_config(&credentials).unwrap());
        let (accepted, incoming) = mpsc::channel::<std::io::Result<_>>(4);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(socket).await {
                    accepted.send(Ok(stream)).await.ok();
                }
            }
        });
        let service = Service { script, state: state.clone(), credentials: Some(credentials) };
        let server = tonic::transport::Server::builder().add_service(AgentLinkServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(incoming)));
        Self { address, state, scheme: "https" }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}

#[tonic::async_trait]
impl AgentLinkService for Service {
    type ConnectStream = ReceiverStream<Result<v1::ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let behaviour = self.script.lock().unwrap().pop_front().unwrap_or(Behaviour::Good);
        self.state.send_modify(|state| state.streams += 1);
        match behaviour {
            Behaviour::Busy => return Err(Status::resource_exhausted("too many")),
            Behaviour::NotPrimary => return Err(Status::failed_precondition("coord-b is the primary")),
            _ => {}
        }
        let (sender, receiver) = mpsc::channel(16);
        let (state, credentials) = (self.state.clone(), self.credentials.clone());
        let stream = Stream { behaviour, state, credentials, sender, entries: 0 };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Stream {
    behaviour: Behaviour,
    state: watch::Sender<State>,
    credentials: Option<Credentials>,
    sender: mpsc::Sender<Result<v1::ConnectResponse, Status>>,
    entries: usize,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<v1::ConnectRequest>) {
        while let Ok(Some(request)) = requests.message().await {
            match self.take(request.message).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(status) => {
                    self.sender.send(Err(status)).await.ok();
                    return;
                }
            }
        }
    }

    fn epoch(&self) -> u64 {
        if let Behaviour::Epoch(number, _) = self.behaviour { number } else { 1 }
    }

    async fn take(&mut self, message: Option<In>) -> Result<bool, Status> {
        match message {
            Some(In::Hello(hello)) => self.welcome(hello).await,
            Some(In::Heartbeat(heartbeat)) => {
                self.talked();
                self.state.send_modify(|state| state.heartbeats.push(heartbeat));
                self.ask().await;
            }
            Some(In::Entries(batch)) => {
                self.talked();
                if !self.store(batch)? {
                    return Ok(false);
                }
                self.acknowledge().await;
            }
            Some(In::Gap(gap)) => self.broken(format!("an unexpected gap {gap:?}")),
            Some(In::OpenSet(set)) => self.state.send_modify(|state| {
                let after = state.position.map_or(0, |position| position.sequence);
                state.open_sets.push((set, after));
            }),
            Some(In::Goodbye(goodbye)) => {
                self.state.send_modify(|state| state.goodbyes.push(goodbye.reason));
                return Ok(false);
            }
            Some(In::Pong(_)) => {}
            Some(In::Diagnosis(answer)) => self.state.send_modify(|state| state.diagnoses.push(answer)),
            Some(In::Neighbour(answer)) => self.state.send_modify(|state| state.looks.push(answer)),
            None => self.broken("an empty message".to_owned()),
        }
        Ok(true)
    }

    /// Question n is about the n-th neighbour.
    async fn ask(&mut self) {
        let Behaviour::Curious(neighbours) = self.behaviour else { return };
        self.behaviour = Behaviour::Good;
        self.send(Out::Diagnose(v1::DiagnoseQuestion { id: 7, service: String::new() })).await;
        for (id, (address, ports)) in (0..).zip(neighbours) {
            let (address, ports) = ((*address).to_owned(), ports.to_vec());
            self.send(Out::Neighbour(v1::NeighbourQuestion { id, address, ports })).await;
        }
    }

    async fn welcome(&self, hello: v1::Hello) {
        let spool = convert::spool_id(&hello.spool_id).unwrap();
        let known = self.state.borrow().position.filter(|position| position.spool == spool);
        let resume = match self.behaviour {
            Behaviour::Ahead => Position { spool, sequence: 99, hash: EntryHash([9; 16]) },
            _ => known.unwrap_or(Position::start(spool)),
        };
        self.state.send_modify(|state| {
            state.position = Some(resume).filter(|_| self.behaviour != Behaviour::Ahead);
            state.hellos.push(hello);
        });
        let epoch = v1::Epoch { number: self.epoch(), coordinator_id: "coord-a".into() };
        self.send(Out::Welcome(v1::Welcome {
            fleet: "prod".into(),
            coordinator_id: "coord-a".into(),
            epoch: Some(self.prove(epoch)),
            heartbeat_interval_ms: HEARTBEAT_MS,
            resume: Some(convert::position_to_wire(resume)),
            has_standby: false,
            endpoints: Vec::new(),
            wall_unix_ms: muster_agent::clock::now().wall.unix_ms() + AHEAD_MS,
        }))
        .await;
    }

    fn prove(&self, epoch: v1::Epoch) -> v1::EpochProof {
        let Some(credentials) = &self.credentials else {
            return v1::EpochProof { epoch: Some(epoch), ..Default::default() };
        };
        let claim = convert::epoch(&epoch).unwrap();
        let proof = muster_common::epoch_proof::sign(credentials, &claim).unwrap();
        let mut signature = proof.signature;
        if self.behaviour == Behaviour::Forged {
            signature.reverse();
        }
        v1::EpochProof {
            epoch: Some(epoch),
            certificate_chain: proof.certificate_chain.into_iter().map(Into::into).collect(),
            signature: signature.into(),
        }
    }

    /// Stores a batch entry by entry; false when the stream shall end in good order.
    fn store(&mut self, batch: v1::EntryBatch) -> Result<bool, Status> {
        if self.behaviour == Behaviour::Invalid {
            return Err(Status::invalid_argument("entry 1 is not understood"));
        }
        let spool = convert::spool_id(&batch.spool_id).unwrap();
        for entry in batch.entries {
            let at = self.state.borrow().position.unwrap_or(Position::start(spool));
            let previous = convert::entry_hash(&entry.previous_hash).unwrap();
            let hash = EntryHash::of(spool, entry.sequence, previous, &entry.body);
            if (at.spool, at.sequence + 1, at.hash) != (spool, entry.sequence, previous)
                || entry.hash != hash.0.as_slice()
            {
                self.broken(format!("entry {} does not follow {at:?}", entry.sequence));
            }
            self.state.send_modify(|state| {
                state.position = Some(Position { spool, sequence: entry.sequence, hash });
                state.entries.push(entry);
            });
            self.entries += 1;
            match self.behaviour {
                Behaviour::DropAfter(count) if count == self.entries => return Err(Status::unavailable("dropped")),
                Behaviour::CloseAfter(count) | Behaviour::Epoch(_, count) if count == self.entries => return Ok(false),
                _ => {}
            }
        }
        Ok(true)
    }

    async fn acknowledge(&mut self) {
        let position = self.state.borrow().position;
        let Some(position) = position.filter(|_| self.behaviour != Behaviour::NeverAck) else { return };
        if let Behaviour::Resync(id) = self.behaviour {
            self.behaviour = Behaviour::Good;
            self.send(Out::Resync(v1::ResyncRequest { id })).await;
        }
        self.send(Out::Ack(v1::Ack {
            spool_id: position.spool.0.as_bytes().to_vec().into(),
            stored_sequence: position.sequence,
            replicated_sequence: position.sequence,
            ..Default::default()
        }))
        .await;
    }

    fn talked(&self) {
        let epoch = self.epoch();
        self.state.send_modify(|state| {
            if state.talked_under.last() != Some(&epoch) {
                state.talked_under.push(epoch);
            }
        });
    }

    fn broken(&self, how: String) {
        self.state.send_modify(|state| state.broken = Some(how));
    }

    async fn send(&self, message: Out) {
        self.sender.send(Ok(v1::ConnectResponse { message: Some(message) })).await.ok();
    }
}

/// A TCP proxy that can stop forwarding without closing anything: a network that swallows.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    frozen: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let (listener, address) = listen().await;
        let frozen = watch::Sender::new(false);
        let accepting = frozen.clone();
        tokio::spawn(async move {
            while let Ok((inside, _)) = listener.accept().await {
                let Ok(outside) = TcpStream::connect(to).await else { continue };
                let (inside_read, inside_write) = inside.into_split();
                let (outside_read, outside_write) = outside.into_split();
                tokio::spawn(forward(inside_read, outside_write, accepting.subscribe()));
                tokio::spawn(forward(outside_read, inside_write, accepting.subscribe()));
            }
        });
        Self { address, frozen }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on bytes are swallowed: those of connections that are frozen once never come.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    frozen: watch::Receiver<bool>,
) {
    let mut swallowed = false;
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        swallowed |= *frozen.borrow();
        if !swallowed && to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
