//! What the uplink answers in its own time: a diagnosis, a look at a neighbour. Both are bounded, and no heartbeat waits
//! for either.
//!
//! Must never send anything to a neighbour: a connection is made and closed. Whether a question may be followed at all
//! is [`muster_agent_core::neighbour::Guard`]'s to say.

use crate::run::asks::{Ask, Asks, Picture};
use crate::senses::{HostRoot, sockets};
use futures_util::future::join_all;
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::Verdict;
use muster_agent_core::neighbour;
use muster_common::finding::{Finding, ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::limits::{LINK_MESSAGE_BYTES_MAX, SUMMARY_BYTES_MAX, clip};
use muster_proto::convert::{finding_to_wire, subject_to_wire, timestamp_to_wire};
use muster_proto::v1;
use muster_proto::v1::port_answer::Outcome;
use prost::Message as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A host that lives answers within a fraction of this; one that does not never does.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The loop answers between two turns; it may wait for its disk.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(5);
/// The list of sockets is a matter of milliseconds; a hello does not wait longer for it.
const SOCKETS_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of findings in one diagnosis; together with the rest it fits a message.
const FINDINGS_BYTES_MAX: usize = LINK_MESSAGE_BYTES_MAX / 2;
/// Stories in one diagnosis; the worst come first.
const STORIES_MAX: usize = 64;
/// Subjects without an answer in one diagnosis.
const UNKNOWN_MAX: usize = 128;
const _: () = assert!(
    FINDINGS_BYTES_MAX + (STORIES_MAX + 2 * UNKNOWN_MAX) * (SUMMARY_BYTES_MAX + 16) < LINK_MESSAGE_BYTES_MAX,
    "a diagnosis fits a message"
);

/// What is held to be wrong; of one service, or of all where its name is empty.
pub(super) async fn diagnosis(asks: Option<Asks>, service: String, now: Now) -> v1::Diagnosis {
    match picture(asks).await {
        Ok(picture) => told(&picture, &service, now),
        Err(why) => v1::Diagnosis {
            judged: Some(timestamp_to_wire(now.wall)),
            unknown: vec![unknown(&SubjectKey::new(ServiceName::host(), ProbeKind::Agent, "agent"), why)],
            ..v1::Diagnosis::default()
        },
    }
}

async fn picture(asks: Option<Asks>) -> Result<Picture, &'static str> {
    let asks = asks.ok_or("this agent judges nothing")?;
    let (answer, answered) = oneshot::channel();
    asks.put(Ask::Picture(answer)).map_err(|_| "the agent stops, or too many ask it at once; try again")?;
    match tokio::time::timeout(PICTURE_TIMEOUT, answered).await {
        Ok(Ok(picture)) => Ok(picture),
        Ok(Err(_)) => Err("the agent stops"),
        Err(_) => Err("the agent is busy with its disk; try again, and look at the disk of its state_dir"),
    }
}

fn unknown(subject: &SubjectKey, why: &str) -> v1::UnknownSubject {
    v1::UnknownSubject { subject: Some(subject_to_wire(subject)), why: clip(why, SUMMARY_BYTES_MAX) }
}

fn told(picture: &Picture, service: &str, now: Now) -> v1::Diagnosis {
    let about = |subject: &SubjectKey| service.is_empty() || subject.service.as_str() == service;
    let open = picture.findings.iter().take(picture.open_count).filter(|finding| about(&finding.key.subject));
    let mut open: Vec<&Finding> = open.collect();
    open.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.key.cmp(&b.key)));
    let (mut findings, mut bytes, total) = (Vec::new(), 0, open.len());
    for finding in open {
        let finding = finding_to_wire(finding);
        bytes += finding.encoded_len();
        if bytes > FINDINGS_BYTES_MAX {
            break;
        }
        findings.push(finding);
    }
    let cause = |story: &&muster_agent_core::diagnose::Story| {
        picture.findings.get(story.cause).is_some_and(|finding| about(&finding.key.subject))
    };
    let stories = picture.stories.iter().filter(cause).take(STORIES_MAX);
    let ok = picture.verdicts.iter().filter(|(subject, verdict)| *verdict == Verdict::Ok && about(subject)).count();
    let blind = picture.unknown.iter().filter(|(subject, _)| about(subject)).take(UNKNOWN_MAX);
    v1::Diagnosis {
        judged: Some(timestamp_to_wire(now.wall)),
        stories: stories.map(|story| clip(&story.sentence, SUMMARY_BYTES_MAX)).collect(),
        findings_left_out: u32::try_from(total - findings.len()).unwrap_or(u32::MAX),
        findings,
        unknown: blind.map(|(subject, why)| unknown(subject, why)).collect(),
        subjects_ok: u32::try_from(ok).unwrap_or(u32::MAX),
    }
}

/// The ports to tell of in a hello; none where they cannot be read in time.
pub(super) async fn listening_ports(root: Option<HostRoot>) -> Vec<u16> {
    let Some(root) = root else { return Vec::new() };
    let read = tokio::task::spawn_blocking(move || neighbour::listening_ports(&sockets::listening(&root)));
    match tokio::time::timeout(SOCKETS_TIMEOUT, read).await {
        Ok(Ok(ports)) => ports,
        _ => Vec::new(),
    }
}

/// One connection to each port, closed at once.
pub async fn look(address: IpAddr, ports: &[u16]) -> Result<Vec<v1::PortAnswer>, String> {
    if is_own(address) {
        return Err(format!("{address} is not looked at: it is this very host"));
    }
    let look = ports.iter().map(|port| async move {
        let outcome = connect(SocketAddr::new(address, *port)).await;
        v1::PortAnswer { port: (*port).into(), outcome: outcome.into() }
    });
    Ok(join_all(look).await)
}

/// Whether packets to `address` would leave from that very address. Asks the routing table; nothing is sent.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let own = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, 9))?;
        Ok::<_, io::Error>(socket.local_addr()?.ip() == address)
    };
    own().unwrap_or(false)
}

async fn connect(at: SocketAddr) -> Outcome {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(at)).await {
        Err(_) => Outcome::Timeout,
        Ok(Ok(_closed_by_its_drop)) => Outcome::Open,
        Ok(Err(error)) => match error.kind() {
            ConnectionRefused | ConnectionReset => Outcome::Refused,
            TimedOut => Outcome::Timeout,
            HostUnreachable | NetworkUnreachable => Outcome::Unreachable,
            // Trouble of our own says nothing about the neighbour.
            _ => Outcome::Unspecified,
        },
    }
}
