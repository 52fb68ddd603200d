//! One simulated agent: connects as a real one does, says hello, beats when its bell rings, sends what is put into its
//! spool, answers pings. One task, no timer of its own.

use super::http2::{self, Messages};
use anyhow::{Result, bail};
use bytes::Bytes;
use h2::{Ping, RecvStream, SendStream};
use muster_common::finding::{FindingEvent, FindingKey};
use muster_common::ids::SpoolId;
use muster_common::spool::{EntryHash, Position};
use muster_proto::convert::encode_finding_event;
use muster_proto::v1::{self, connect_request, connect_response};
use rustls::ClientConfig;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// As the agent has it: from the first packet to the end of the handshake, ...
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// ... from the hello to the welcome, ...
const GREETING_TIMEOUT: Duration = Duration::from_secs(15);
/// ... and the bounds of the waits between tries, each drawn from all that is below.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// What the bell may ring for.
pub(crate) const BEAT: u32 = 1;
/// A ping of the transport.
pub(crate) const PING: u32 = 2;
/// The socket is reset.
pub(crate) const RESET: u32 = 4;
/// Nothing is read or written any more, as if the host had frozen, until a reset.
pub(crate) const FREEZE: u32 = 8;

/// What all agents of a swarm share.
#[derive(Debug)]
pub(crate) struct Common {
    /// Where the coordinator is.
    pub(crate) target: SocketAddr,
    /// The moment all times are told from.
    pub(crate) begun: Instant,
    /// Whether agents may connect; they wait at the gate otherwise.
    pub(crate) gate: tokio::sync::watch::Sender<bool>,
    /// Agents that were welcomed and whose stream lives.
    pub(crate) connected: AtomicU64,
    /// Tries that failed.
    pub(crate) failed: AtomicU64,
    /// Heartbeats sent.
    pub(crate) beats: AtomicU64,
    /// Pings sent.
    pub(crate) pings: AtomicU64,
    /// Open sets asked for.
    pub(crate) resyncs: AtomicU64,
    /// Why a try failed last.
    pub(crate) last_failure: Mutex<String>,
}

impl Common {
    /// Microseconds since the beginning; never 0.
    pub(crate) fn micros(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }
}

/// An agent, for its task and for whoever plays with it.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) name: String,
    source: IpAddr,
    tls: Arc<ClientConfig>,
    common: Arc<Common>,
    /// Rings for what is in `wanted`, and for entries.
    bell: Notify,
    wanted: AtomicU32,
    /// May live at all.
    awake: AtomicBool,
    /// [`Common::micros`] of the welcome; 0 while there is none.
    pub(crate) welcomed_us: AtomicU64,
    /// [`Common::micros`] of the last heartbeat.
    pub(crate) beat_us: AtomicU64,
    /// Sent as available memory, so that a heartbeat can be recognised.
    pub(crate) stamp: AtomicU64,
    /// The stamp sent last, and [`Common::micros`] of when it was sent first.
    stamped: Mutex<(u64, u64)>,
    sequence: AtomicU64,
    spool: Mutex<Spool>,
    random: AtomicU64,
}

#[derive(Debug)]
struct Spool {
    position: Position,
    digest: u64,
    unsent: Vec<v1::SpoolEntry>,
    /// The epoch heard, as it was told.
    epoch: Option<v1::EpochProof>,
}

impl Agent {
    /// An agent that sleeps.
    pub(crate) fn new(name: String, number: u64, source: IpAddr, tls: Arc<ClientConfig>, common: Arc<Common>) -> Self {
        let spool = SpoolId(uuid::Uuid::from_u128(u128::from(number) + (1 << 64)));
        Self {
            name,
            source,
            tls,
            common,
            bell: Notify::new(),
            wanted: AtomicU32::new(0),
            awake: AtomicBool::new(false),
            welcomed_us: AtomicU64::new(0),
            beat_us: AtomicU64::new(0),
            stamp: AtomicU64::new(8 << 30),
            stamped: Mutex::new((0, 0)),
            sequence: AtomicU64::new(0),
            spool: Mutex::new(Spool { position: Position::start(spool), digest: 0, unsent: Vec::new(), epoch: None }),
            random: AtomicU64::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        }
    }

    /// Rings the bell.
    pub(crate) fn want(&self, what: u32) {
        self.wanted.fetch_or(what, Ordering::AcqRel);
        self.bell.notify_one();
    }

    /// When a heartbeat with this stamp was sent, if one was.
    pub(crate) fn sent_at(&self, stamp: u64) -> Option<Instant> {
        let (sent, micros) = *lock(&self.stamped);
        (sent == stamp).then(|| self.common.begun + Duration::from_micros(micros))
    }

    /// Lets it connect, and stay connected, or not.
    pub(crate) fn wake(&self, awake: bool) {
        self.awake.store(awake, Ordering::Release);
        self.bell.notify_one();
    }

    /// Whether it has its welcome.
    pub(crate) fn is_connected(&self) -> bool {
        self.welcomed_us.load(Ordering::Acquire) > 0
    }

    /// Writes an entry into the spool and sends it.
    pub(crate) fn report(&self, event: &FindingEvent) {
        let mut spool = self.spool();
        let term = |key: &FindingKey| key.digest_term();
        spool.digest ^= match event {
            FindingEvent::Opened(finding) => term(&finding.key),
            FindingEvent::Cleared { key, .. } => term(key),
            FindingEvent::Updated(_) | FindingEvent::Occurred(_) => 0,
        };
        let body = encode_finding_event(event);
        let Position { spool: id, sequence, hash: previous } = spool.position;
        let (sequence, hash) = (sequence + 1, EntryHash::of(id, sequence + 1, previous, &body));
        spool.position = Position { spool: id, sequence, hash };
        spool.unsent.push(v1::SpoolEntry {
            sequence,
            previous_hash: previous.0.to_vec().into(),
            hash: hash.0.to_vec().into(),
            age_ms: 0,
            age_estimated: false,
            body: body.into(),
        });
        drop(spool);
        self.bell.notify_one();
    }

    /// Lives until it is aborted: connects whenever it may, and waits as a real agent does after a failure.
    pub(crate) async fn live(self: Arc<Self>) {
        let mut gate = self.common.gate.subscribe();
        let mut attempt = 0u32;
        loop {
            while !self.awake.load(Ordering::Acquire) {
                self.bell.notified().await;
            }
            if gate.wait_for(|open| *open).await.is_err() {
                return;
            }
            let outcome = self.stream().await;
            if self.welcomed_us.swap(0, Ordering::AcqRel) > 0 {
                self.common.connected.fetch_sub(1, Ordering::AcqRel);
                attempt = 0;
            } else if let Err(error) = outcome {
                self.common.failed.fetch_add(1, Ordering::Relaxed);
                *lock(&self.common.last_failure) = format!("{error:#}");
            }
            if *gate.borrow() && self.awake.load(Ordering::Acquire) {
                tokio::time::sleep(self.backoff(attempt)).await;
                attempt = attempt.saturating_add(1);
            } else {
                attempt = 0;
            }
        }
    }

    fn backoff(&self, attempt: u32) -> Duration {
        let longest = (BACKOFF_FIRST * 2u32.saturating_pow(attempt.min(10))).min(BACKOFF_CAP);
        // xorshift: a seed for each agent is all the chance that is needed.
        let mut random = self.random.load(Ordering::Relaxed);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.store(random, Ordering::Relaxed);
        let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(random % millis.max(1))
    }

    async fn stream(&self) -> Result<()> {
        let (mut requests, mut wire) =
            http2::connect(self.source, self.common.target, Arc::clone(&self.tls), CONNECT_TIMEOUT).await?;
        let mut pings = wire.ping_pong();
        let (answer, mut out) = http2::open(&mut requests, "AgentLinkService/Connect")?;
        send(&mut out, connect_request::Message::Hello(self.hello()))?;
        let greeting = async {
            tokio::select! {
                answer = answer => Ok(answer?),
                ended = &mut wire => Err(anyhow::anyhow!("the connection ended before an answer: {ended:?}")),
            }
        };
        let answer = tokio::time::timeout(GREETING_TIMEOUT, greeting).await??;
        if let Some((code, why)) = http2::code(answer.headers()) {
            bail!("refused with code {code}: {why}");
        }
        let (mut body, mut messages) = (answer.into_body(), Messages::default());
        let welcome_until = tokio::time::sleep(GREETING_TIMEOUT);
        let mut welcome_until = std::pin::pin!(welcome_until);
        let mut pinging = false;
        loop {
            tokio::select! {
                ended = &mut wire => { ended?; return Ok(()) }
                piece = http2::piece(&mut body) => {
                    let Some(data) = piece? else { return self.ended(&mut body).await };
                    messages.push(&data);
                    while let Some(message) = messages.next::<v1::ConnectResponse>()? {
                        self.answer(message, &mut out)?;
                    }
                }
                () = self.bell.notified() => {
                    if !self.awake.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    let wanted = self.wanted.swap(0, Ordering::AcqRel);
                    if wanted & RESET != 0 {
                        return Ok(());
                    }
                    if wanted & FREEZE != 0 {
                        while self.wanted.swap(0, Ordering::AcqRel) & RESET == 0 {
                            self.bell.notified().await;
                        }
                        return Ok(());
                    }
                    if wanted & BEAT != 0 && self.is_connected() {
                        self.beat(&mut out)?;
                    }
                    if wanted & PING != 0 && let (Some(pings), false) = (&mut pings, pinging) {
                        pings.send_ping(Ping::opaque())?;
                        pinging = true;
                        self.common.pings.fetch_add(1, Ordering::Relaxed);
                    }
                    self.send_entries(&mut out)?;
                }
                pong = poll_fn(|cx| pings.as_mut().map_or(std::task::Poll::Pending, |pings| pings.poll_pong(cx))), if pinging => {
                    pong?;
                    pinging = false;
                }
                () = &mut welcome_until, if !self.is_connected() => bail!("no welcome in time"),
            }
        }
    }

    async fn ended(&self, body: &mut RecvStream) -> Result<()> {
        let trailers = body.trailers().await?.unwrap_or_default();
        match http2::code(&trailers) {
            Some((code, why)) if code != 0 => bail!("refused with code {code}: {why}"),
            _ => Ok(()),
        }
    }

    fn hello(&self) -> v1::Hello {
        let spool = self.spool();
        v1::Hello {
            protocol_version: 1,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            host_name: format!("{}.fleet.example", self.name),
            boot_id: "2f1d4c52-9c0b-4a36-8f61-4a4b6a2d9c01".to_owned(),
            labels: [("zone".to_owned(), "sim".to_owned()), ("role".to_owned(), "worker".to_owned())].into(),
            spool_id: spool.position.spool.0.as_bytes().to_vec().into(),
            head_sequence: spool.position.sequence,
            oldest_sequence: spool.position.sequence + 1,
            highest_epoch: spool.epoch.clone(),
            os_version: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            kernel_version: "6.18.0-amd64".to_owned(),
            boottime_ms: self.common.micros() / 1000,
            wall_unix_ms: wall_unix_ms(),
            ..v1::Hello::default()
        }
    }

    fn answer(&self, message: v1::ConnectResponse, out: &mut SendStream<Bytes>) -> Result<()> {
        match message.message {
            Some(connect_response::Message::Welcome(welcome)) => {
                self.spool().epoch = welcome.epoch;
                self.welcomed_us.store(self.common.micros(), Ordering::Release);
                self.common.connected.fetch_add(1, Ordering::AcqRel);
                // As a real agent: its first heartbeat at once.
                self.beat(out)
            }
            Some(connect_response::Message::Ping(ping)) => {
                send(out, connect_request::Message::Pong(v1::Pong { id: ping.id }))
            }
            Some(connect_response::Message::Resync(_)) => {
                self.common.resyncs.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn beat(&self, out: &mut SendStream<Bytes>) -> Result<()> {
        let (head_sequence, open_digest) = {
            let spool = self.spool();
            (spool.position.sequence, spool.digest)
        };
        let (now_us, stamp) = (self.common.micros(), self.stamp.load(Ordering::Acquire));
        self.beat_us.store(now_us, Ordering::Release);
        {
            let mut stamped = lock(&self.stamped);
            if stamped.0 != stamp {
                *stamped = (stamp, now_us);
            }
        }
        self.common.beats.fetch_add(1, Ordering::Relaxed);
        let heartbeat = v1::Heartbeat {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            open_digest,
            head_sequence,
            boottime_ms: self.common.micros() / 1000,
            memory_available_bytes: stamp,
            evicted_entries: 0,
            wall_unix_ms: wall_unix_ms(),
        };
        send(out, connect_request::Message::Heartbeat(heartbeat))
    }

    fn send_entries(&self, out: &mut SendStream<Bytes>) -> Result<()> {
        let (entries, spool_id) = {
            let mut spool = self.spool();
            (std::mem::take(&mut spool.unsent), spool.position.spool)
        };
        if entries.is_empty() {
            return Ok(());
        }
        let batch = v1::EntryBatch { spool_id: spool_id.0.as_bytes().to_vec().into(), entries };
        send(out, connect_request::Message::Entries(batch))
    }

    fn spool(&self) -> MutexGuard<'_, Spool> {
        lock(&self.spool)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(out: &mut SendStream<Bytes>, message: connect_request::Message) -> Result<()> {
    Ok(out.send_data(http2::frame(&v1::ConnectRequest { message: Some(message) }), false)?)
}

fn wall_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
