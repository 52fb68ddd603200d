//! Reads one agent's stream off the wire and holds it to the core's rules ([`agent_stream`]).
//!
//! Must never decide by itself what follows what: it converts, and gives each refusal its code.

use muster_common::ids::AgentName;
use muster_common::limits::BATCH_ENTRIES_MAX;
use muster_common::reason::ReasonKind;
use muster_common::spool::Position;
use muster_common::time::Timestamp;
use muster_coordinator_core::agent_stream::{self, Offered, Refusal};
use muster_coordinator_core::entry::{Fact, SubjectState};
use muster_proto::convert::{entry_hash, finding, finding_event, spool_id, subject_key};
use muster_proto::v1;
use std::time::Duration;
use tonic::Status;

/// Entries that an agent may write between two words about its head. A gap beyond them is a mistake, and would have all
/// later entries of that spool taken for old ones.
const UNTOLD_ENTRIES_MAX: u64 = 1_000_000;

/// What a batch holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Read {
    /// New entries, in order.
    pub(super) facts: Vec<Fact>,
    /// Entries that were stored before.
    pub(super) duplicates: u64,
}

/// How far one agent's spool has been read, commits still outstanding included.
#[derive(Debug)]
pub(super) struct SpoolReader {
    rules: agent_stream::SpoolReader,
    /// The last entry that the agent said it has written.
    head: u64,
}

impl SpoolReader {
    /// Goes on after `position`.
    pub(super) fn new(agent: AgentName, position: Position) -> Self {
        Self { rules: agent_stream::SpoolReader::new(agent, position), head: position.sequence }
    }

    /// The agent told how far its spool goes.
    pub(super) fn tells_head(&mut self, sequence: u64) {
        self.head = self.head.max(sequence);
    }

    /// How far it has been read.
    pub(super) fn position(&self) -> Position {
        self.rules.position()
    }

    /// Reads a batch that came at log time `now`.
    pub(super) fn entries(&mut self, batch: &v1::EntryBatch, now: Timestamp) -> Result<Read, Status> {
        self.rules.must_be_ours(spool_id(&batch.spool_id)?).map_err(refused)?;
        if batch.entries.len() > BATCH_ENTRIES_MAX {
            let found = batch.entries.len();
            return Err(Status::invalid_argument(format!("a batch has {found} entries, at most {BATCH_ENTRIES_MAX}")));
        }
        let mut read = Read::default();
        for entry in &batch.entries {
            let offered = Offered {
                sequence: entry.sequence,
                previous_hash: entry_hash(&entry.previous_hash)?,
                hash: entry_hash(&entry.hash)?,
                age: Duration::from_millis(entry.age_ms),
                estimated: entry.age_estimated,
                body: &entry.body,
            };
            match self.rules.entry(offered, now, finding_event).map_err(refused)? {
                Some(fact) => read.facts.push(fact),
                None => read.duplicates += 1,
            }
        }
        Ok(read)
    }

    /// The agent lost entries before they could be sent.
    pub(super) fn gap(&mut self, gap: &v1::SpoolGap) -> Result<Vec<Fact>, Status> {
        self.rules.must_be_ours(spool_id(&gap.spool_id)?).map_err(refused)?;
        let bound = self.head.saturating_add(UNTOLD_ENTRIES_MAX);
        if gap.last_sequence > bound {
            let (last, head) = (gap.last_sequence, self.head);
            let text =
                format!("a gap up to {last}, but the spool was said to end at {head}: greet with its head first");
            return Err(Status::out_of_range(text));
        }
        let lost = self.rules.gap(gap.first_sequence, gap.last_sequence).map_err(refused)?;
        Ok(lost.into_iter().collect())
    }

    /// Gathers a resync's chunks; the last one makes the fact.
    pub(super) fn open_set(&mut self, set: &v1::OpenSet, asked: u64) -> Result<Option<Fact>, Status> {
        let subjects = set.subjects.iter().map(subject_state).collect::<Result<Vec<_>, _>>()?;
        self.rules.open_set(asked, set.request_id, set.head_sequence, subjects, set.last).map_err(refused)
    }
}

fn refused(refusal: Refusal) -> Status {
    let words = refusal.to_string();
    match refusal {
        // Not FAILED_PRECONDITION: this is the right coordinator, and the agent is to greet it again. The welcome's
        // position then shows the agent whether its spool is another one.
        Refusal::OtherSpool | Refusal::Diverged(_) => Status::aborted(words),
        Refusal::NotNext { .. } | Refusal::GapNotNext { .. } => Status::out_of_range(words),
        Refusal::NoSequence
        | Refusal::WrongHash(_)
        | Refusal::Content { .. }
        | Refusal::NoGap
        | Refusal::OpenSetTooLarge => Status::invalid_argument(words),
    }
}

fn subject_state(wire: &v1::SubjectState) -> Result<SubjectState, Status> {
    let ok = match v1::Verdict::try_from(wire.verdict) {
        Ok(v1::Verdict::Ok) => Some(true),
        Ok(v1::Verdict::Problem) => Some(false),
        Ok(v1::Verdict::Unknown) => None,
        _ => return Err(Status::invalid_argument(format!("verdict has the unknown value {}", wire.verdict))),
    };
    let open = wire.open.iter().map(|detail| finding(detail, ReasonKind::Condition)).collect::<Result<_, _>>()?;
    Ok(SubjectState { subject: subject_key(wire.subject.as_ref())?, ok, open })
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
    use muster_common::ids::{ServiceName, SpoolId};
    use muster_common::reason::Reason;
    use muster_common::spool::EntryHash;
    use muster_coordinator_core::agent_stream::OBSERVED_AGE_MAX;
    use muster_proto::convert::encode_finding_event;
    use tonic::Code;

    fn spool() -> SpoolId {
        SpoolId(uuid::Uuid::from_u128(7))
    }

    fn entry(position: &mut Position, age_ms: u64) -> v1::SpoolEntry {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Port, "127.0.0.1:1");
        let finding = Finding::new(FindingKey { subject, reason: Reason::PortClosed }, "closed");
        let body = encode_finding_event(&FindingEvent::Opened(finding));
        let (sequence, previous) = (position.sequence + 1, position.hash);
        let hash = EntryHash::of(position.spool, sequence, previous, &body);
        *position = Position { sequence, hash, ..*position };
        v1::SpoolEntry {
            sequence,
            previous_hash: previous.0.to_vec().into(),
            hash: hash.0.to_vec().into(),
            age_ms,
            age_estimated: false,
            body: body.into(),
        }
    }

    fn batch(entries: Vec<v1::SpoolEntry>) -> v1::EntryBatch {
        v1::EntryBatch { spool_id: spool().0.as_bytes().to_vec().into(), entries }
    }

    fn reader() -> SpoolReader {
        SpoolReader::new(AgentName::new("a").unwrap(), Position::start(spool()))
    }

    #[test]
    fn reads_in_order_and_drops_what_it_has() {
        let (mut reader, mut at) = (reader(), Position::start(spool()));
        let now = Timestamp::from_unix_ms(1_795_225_445_678);
        let entries = vec![entry(&mut at, 1000), entry(&mut at, u64::MAX)];
        let read = reader.entries(&batch(entries.clone()), now).unwrap();
        assert_eq!((read.facts.len(), read.duplicates), (2, 0));
        let age = |fact: &Fact| match fact {
            Fact::FindingReceived { observed, estimated, .. } => Some((now.since(*observed), *estimated)),
            _ => None,
        };
        let observed: Vec<_> = read.facts.iter().filter_map(age).collect();
        // What is too old to be dated is dated by a guess.
        assert_eq!(observed, [(Duration::from_secs(1), false), (OBSERVED_AGE_MAX, true)]);
        let read = reader.entries(&batch(entries), now).unwrap();
        assert_eq!((read.facts.len(), read.duplicates), (0, 2));
        assert_eq!(reader.position(), at);
    }

    #[test]
    fn what_does_not_follow_is_refused_by_its_code() {
        let now = Timestamp::UNIX_EPOCH;
        let mut at = Position::start(spool());
        let (first, second) = (entry(&mut at, 0), entry(&mut at, 0));
        let code = |reader: &mut SpoolReader, entries| reader.entries(&batch(entries), now).unwrap_err().code();
        assert_eq!(code(&mut reader(), vec![second.clone()]), Code::OutOfRange);
        let mut forged = first.clone();
        forged.body = vec![0xff; 4].into();
        assert_eq!(code(&mut reader(), vec![forged]), Code::InvalidArgument);
        let mut other_history = reader();
        other_history.entries(&batch(vec![first.clone()]), now).unwrap();
        let mut reverted = second;
        reverted.previous_hash = vec![9; 16].into();
        assert_eq!(code(&mut other_history, vec![reverted]), Code::Aborted);
        assert_eq!(code(&mut reader(), vec![first; BATCH_ENTRIES_MAX + 1]), Code::InvalidArgument);
    }

    #[test]
    fn a_gap_moves_on_and_the_next_entry_is_believed() {
        let (mut reader, mut at) = (reader(), Position::start(spool()));
        for _ in 0..3 {
            entry(&mut at, 0);
        }
        let mut gap =
            v1::SpoolGap { spool_id: spool().0.as_bytes().to_vec().into(), first_sequence: 1, last_sequence: u64::MAX };
        assert_eq!(reader.gap(&gap).unwrap_err().code(), Code::OutOfRange, "no spool goes that far");
        gap.last_sequence = 3;
        assert_eq!(reader.gap(&gap).unwrap().len(), 1);
        assert!(reader.gap(&gap).unwrap().is_empty(), "told twice, counted once");
        let fourth = entry(&mut at, 0);
        assert_eq!(reader.entries(&batch(vec![fourth]), Timestamp::UNIX_EPOCH).unwrap().facts.len(), 1);
    }

    #[test]
    fn an_open_set_of_another_request_or_entry_is_dropped() {
        let mut reader = reader();
        let set =
            |request_id, head_sequence| v1::OpenSet { request_id, head_sequence, subjects: Vec::new(), last: true };
        assert_eq!(reader.open_set(&set(1, 0), 2).unwrap(), None);
        assert_eq!(reader.open_set(&set(2, 5), 2).unwrap(), None);
        assert!(reader.open_set(&set(2, 0), 2).unwrap().is_some());
        let unknown = v1::SubjectState { subject: None, verdict: 77, open: Vec::new() };
        let bad = v1::OpenSet { request_id: 2, head_sequence: 0, subjects: vec![unknown], last: true };
        assert_eq!(reader.open_set(&bad, 2).unwrap_err().code(), Code::InvalidArgument);
    }
}
