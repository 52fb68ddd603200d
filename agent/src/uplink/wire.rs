//! Messages of the link to and from what the session speaks.

use super::{HostFacts, OpenSnapshot, Security};
use muster_agent_core::clock::Now;
use muster_agent_core::freeze::Freeze;
use muster_agent_core::judgement::Verdict;
use muster_agent_core::ledger::SubjectState;
use muster_agent_core::session::{End, Entry, Message, SpoolView, Welcome};
use muster_common::chain::Chain;
use muster_common::epoch_proof::{self, EpochProof};
use muster_common::ids::{BootId, Epoch, SpoolId};
use muster_common::limits::{LINK_MESSAGE_BYTES_MAX, LISTENING_PORTS_MAX, NAME_BYTES_MAX, SUMMARY_BYTES_MAX, clip};
use muster_proto::convert;
use muster_proto::v1;
use muster_proto::v1::connect_response::Message as Wire;
use prost::Message as _;

/// Version of the protocol in a hello.
const PROTOCOL_VERSION: u32 = 1;
/// Bytes of one chunk of an open set: far below the bound, and a heartbeat is never behind more than this.
const CHUNK_BYTES_MAX: usize = 128 * 1024;
/// Bytes of one subject above which its conditions are told in parts; together with a full chunk it still fits.
const SUBJECT_BYTES_MAX: usize = LINK_MESSAGE_BYTES_MAX / 2;
const _: () = assert!(CHUNK_BYTES_MAX + SUBJECT_BYTES_MAX < LINK_MESSAGE_BYTES_MAX, "no message is over the bound");
/// Freezes of one host: what is beyond stops work no more than these do.
const FREEZES_MAX: usize = 256;
/// Bytes of a coordinator's words that are kept for people.
const MESSAGE_BYTES_MAX: usize = 300;

/// What the coordinator sent, with every claim checked.
pub(super) fn received(response: v1::ConnectResponse, security: &Security, now: Now) -> Message {
    match response.message {
        None => Message::Unknown,
        Some(Wire::Diagnose(question)) => match convert::bounded("service", &question.service, NAME_BYTES_MAX) {
            Ok(service) => Message::Diagnose { id: question.id, service },
            Err(error) => Message::Malformed(error.to_string()),
        },
        Some(Wire::Neighbour(v1::NeighbourQuestion { id, address, ports })) => {
            // Beyond the bound by one, so that it is refused there.
            let ports = ports.into_iter().take(LISTENING_PORTS_MAX + 1).collect();
            Message::Neighbour { id, address: clip(&address, NAME_BYTES_MAX), ports }
        }
        Some(Wire::Ping(ping)) => Message::Ping { id: ping.id },
        Some(Wire::Resync(resync)) => Message::Resync { id: resync.id },
        Some(Wire::Freezes(freezes)) => match freezes.freezes.iter().take(FREEZES_MAX).map(freeze).collect() {
            Ok(freezes) => Message::Freezes(freezes),
            Err(error) => Message::Malformed(error),
        },
        Some(Wire::Ack(ack)) => match convert::spool_id(&ack.spool_id) {
            Ok(spool) => Message::Ack { spool, stored: ack.stored_sequence, replicated: ack.replicated_sequence },
            Err(error) => Message::Malformed(error.to_string()),
        },
        Some(Wire::Welcome(wire)) => match welcome(wire, security, now) {
            Ok(welcome) => Message::Welcome(Box::new(welcome)),
            Err(why) => Message::Malformed(why),
        },
    }
}

fn freeze(freeze: &v1::Freeze) -> Result<Freeze, String> {
    let text = |field, text: &str, bound| convert::bounded(field, text, bound).map_err(|error| error.to_string());
    Ok(Freeze {
        id: text("id", &freeze.id, NAME_BYTES_MAX)?,
        reason: text("reason", &freeze.reason, SUMMARY_BYTES_MAX)?,
        created_by: text("created_by", &freeze.created_by, 2 * NAME_BYTES_MAX)?,
        expires: freeze.expire_time.as_ref().map(convert::timestamp),
    })
}

fn welcome(wire: v1::Welcome, security: &Security, now: Now) -> Result<Welcome, String> {
    let proof = wire.epoch.ok_or("the welcome has no epoch")?;
    let claimed = proof.epoch.as_ref().ok_or("the welcome has no epoch")?;
    let epoch = convert::epoch(claimed).map_err(|error| error.to_string())?;
    if let Security::Mutual(credentials) = security {
        let claim = EpochProof {
            epoch: epoch.clone(),
            certificate_chain: proof.certificate_chain.iter().map(|bytes| bytes.to_vec()).collect(),
            signature: proof.signature.to_vec(),
        };
        epoch_proof::verify(&claim, credentials.roots(), credentials.fleet(), now.wall.unix_ms())
            .map_err(|error| error.to_string())?;
    }
    let resume = match wire.resume {
        Some(position) if position.sequence > 0 => {
            Some(convert::position(&position).map_err(|error| error.to_string())?)
        }
        _ => None,
    };
    Ok(Welcome {
        fleet: wire.fleet,
        epoch,
        proof: proof.encode_to_vec(),
        heartbeat_interval_ms: wire.heartbeat_interval_ms,
        resume,
        endpoints: wire.endpoints,
    })
}

pub(super) fn hello(
    host: &HostFacts,
    boot: BootId,
    view: SpoolView,
    highest: Option<&(Epoch, Vec<u8>)>,
    listening_ports: &[u16],
    now: Now,
) -> v1::Hello {
    let highest_epoch = highest.map(|(epoch, proof)| {
        v1::EpochProof::decode(proof.as_slice())
            .unwrap_or_else(|_| v1::EpochProof { epoch: Some(convert::epoch_to_wire(epoch)), ..Default::default() })
    });
    v1::Hello {
        protocol_version: PROTOCOL_VERSION,
        agent_version: host.agent_version.clone(),
        host_name: host.host_name.clone(),
        boot_id: boot.to_string(),
        labels: host.labels.clone().into_iter().collect(),
        spool_id: spool_bytes(view.spool),
        head_sequence: view.head,
        oldest_sequence: view.oldest,
        highest_epoch,
        os_version: host.os_version.clone(),
        kernel_version: host.kernel_version.clone(),
        boottime_ms: now.boottime_ms,
        wall_unix_ms: now.wall.unix_ms(),
        listening_ports: listening_ports.iter().map(|port| (*port).into()).collect(),
        ..v1::Hello::default()
    }
}

pub(super) fn entry_batch(spool: SpoolId, entries: Vec<Entry>, now: Now, boot: BootId) -> v1::EntryBatch {
    let wire = |entry: Entry| {
        let age = entry.written.age(now, boot);
        v1::SpoolEntry {
            sequence: entry.sequence,
            previous_hash: entry.previous_hash.0.to_vec().into(),
            hash: entry.hash.0.to_vec().into(),
            age_ms: age.ms,
            age_estimated: age.estimated,
            body: entry.body.into(),
        }
    };
    v1::EntryBatch { spool_id: spool_bytes(spool), entries: entries.into_iter().map(wire).collect() }
}

pub(super) fn gap(spool: SpoolId, first_sequence: u64, last_sequence: u64) -> v1::SpoolGap {
    v1::SpoolGap { spool_id: spool_bytes(spool), first_sequence, last_sequence }
}

/// What a resync, and who asks on the host, is told about one subject.
pub(crate) fn subject_state(state: &SubjectState<'_>) -> v1::SubjectState {
    let verdict = match state.verdict {
        Verdict::Ok => v1::Verdict::Ok,
        Verdict::Problem => v1::Verdict::Problem,
        Verdict::Unknown => v1::Verdict::Unknown,
    };
    v1::SubjectState {
        subject: Some(convert::subject_to_wire(state.subject)),
        verdict: verdict.into(),
        open: state.open.iter().map(|finding| convert::finding_to_wire(finding)).collect(),
    }
}

/// Cuts a snapshot into messages; the last is marked, and there is always one.
pub(super) fn open_set(request_id: u64, snapshot: OpenSnapshot) -> Vec<v1::OpenSet> {
    let chunk = || v1::OpenSet { request_id, head_sequence: snapshot.head_sequence, subjects: Vec::new(), last: false };
    let (mut chunks, mut current, mut bytes) = (Vec::new(), chunk(), 0);
    for subject in snapshot.subjects {
        for part in split_subject(subject) {
            let part_bytes = part.encoded_len();
            if bytes + part_bytes > CHUNK_BYTES_MAX && !current.subjects.is_empty() {
                chunks.push(std::mem::replace(&mut current, chunk()));
                bytes = 0;
            }
            bytes += part_bytes;
            current.subjects.push(part);
        }
    }
    current.last = true;
    chunks.push(current);
    chunks
}

/// A subject whose conditions overflow a message is told in several parts, each with the same subject and verdict.
fn split_subject(subject: v1::SubjectState) -> Vec<v1::SubjectState> {
    if subject.encoded_len() <= SUBJECT_BYTES_MAX {
        return vec![subject];
    }
    let part = |open| v1::SubjectState { subject: subject.subject.clone(), verdict: subject.verdict, open };
    subject.open.iter().map(|finding| part(vec![finding.clone()])).collect()
}

/// What a status means to the session.
pub(super) fn end(status: &tonic::Status) -> End {
    use tonic::Code;
    match status.code() {
        Code::FailedPrecondition => End::NotPrimary,
        Code::Aborted | Code::OutOfRange => End::Regreet,
        Code::ResourceExhausted => End::Busy,
        Code::InvalidArgument => End::Invalid,
        Code::AlreadyExists => End::Conflict,
        Code::Unauthenticated | Code::PermissionDenied => End::Denied,
        _ => End::Unavailable,
    }
}

/// The status in words, clipped: what the coordinator said first. What its code means in general is the least of it.
pub(super) fn words(status: &tonic::Status) -> String {
    let text = match status.message() {
        "" => status.code().to_string(),
        message => format!("{message} ({:?})", status.code()),
    };
    clip(&text, MESSAGE_BYTES_MAX)
}

/// An error with its causes in words, clipped.
pub(super) fn error_words(error: &(dyn std::error::Error + 'static)) -> String {
    clip(&Chain(error).to_string(), MESSAGE_BYTES_MAX)
}

fn spool_bytes(spool: SpoolId) -> prost::bytes::Bytes {
    spool.0.as_bytes().to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_set_of_any_size_fits_the_bound_and_ends() {
        let detail = v1::FindingDetail { summary: "x".repeat(900), ..Default::default() };
        for (subjects, open) in [(0, 0), (1, 0), (2000, 1), (1, 1024), (3, 100)] {
            let state = v1::SubjectState { open: vec![detail.clone(); open], ..Default::default() };
            let snapshot = OpenSnapshot { head_sequence: 7, subjects: vec![state; subjects] };
            let chunks = open_set(5, snapshot);
            let (last, others) = chunks.split_last().unwrap();
            assert!(last.last && others.iter().all(|chunk| !chunk.last));
            assert!(
                chunks.iter().all(|chunk| chunk.encoded_len() < LINK_MESSAGE_BYTES_MAX && chunk.head_sequence == 7)
            );
            let told: usize = chunks.iter().flat_map(|chunk| &chunk.subjects).map(|subject| subject.open.len()).sum();
            assert_eq!(told, subjects * open);
        }
    }

    #[test]
    fn a_refusal_is_told_with_its_code() {
        let told = words(&tonic::Status::failed_precondition("ask the primary (coord-a)"));
        assert_eq!(told, "ask the primary (coord-a) (FailedPrecondition)");
        assert!(!words(&tonic::Status::unavailable("")).is_empty());
    }

    #[test]
    fn malformed_messages_are_named_and_unknown_ones_tolerated() {
        let security = Security::Plain(muster_common::ids::FleetName::new("prod").unwrap());
        let now = crate::clock::now();
        let read = |message| received(v1::ConnectResponse { message }, &security, now);
        assert_eq!(read(None), Message::Unknown);
        for message in [
            Wire::Ack(v1::Ack { spool_id: vec![1].into(), ..Default::default() }),
            Wire::Welcome(v1::Welcome::default()),
        ] {
            assert!(matches!(read(Some(message)), Message::Malformed(_)));
        }
    }
}
