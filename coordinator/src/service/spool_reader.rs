//! Reads one agent's spool entries in order: position, chain of hashes, bounds. PURE: times and ids come in.
//!
//! What is already stored is dropped without a word and acknowledged again; what does not follow ends the stream.

use muster_common::ids::AgentName;
use muster_common::limits::{BATCH_ENTRIES_MAX, OPEN_FINDINGS_PER_AGENT_MAX, SUBJECTS_PER_AGENT_MAX};
use muster_common::reason::ReasonKind;
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{Fact, SubjectState};
use muster_proto::convert::{entry_hash, finding, finding_event, spool_id, subject_key};
use muster_proto::v1;
use std::time::Duration;
use tonic::Status;

/// Nothing is dated further back than this: a host whose clock says 1970 makes no news of 1970.
pub(super) const OBSERVED_AGE_MAX: Duration = Duration::from_secs(30 * 86_400);

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
    agent: AgentName,
    position: Position,
    /// After a gap the hash before the next entry is not known.
    hash_known: bool,
    chunks: Vec<SubjectState>,
    open: usize,
}

impl SpoolReader {
    /// Goes on after `position`.
    pub(super) fn new(agent: AgentName, position: Position) -> Self {
        let hash_known = position.sequence == 0 || position.hash != EntryHash::ZERO;
        Self { agent, position, hash_known, chunks: Vec::new(), open: 0 }
    }

    /// How far it has been read.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Reads a batch that came at log time `now`.
    pub(super) fn entries(&mut self, batch: &v1::EntryBatch, now: Timestamp) -> Result<Read, Status> {
        self.must_be_ours(&batch.spool_id)?;
        if batch.entries.len() > BATCH_ENTRIES_MAX {
            let found = batch.entries.len();
            return Err(Status::invalid_argument(format!("a batch has {found} entries, at most {BATCH_ENTRIES_MAX}")));
        }
        let mut read = Read::default();
        for entry in &batch.entries {
            match self.entry(entry, now)? {
                Some(fact) => read.facts.push(fact),
                None => read.duplicates += 1,
            }
        }
        Ok(read)
    }

    fn entry(&mut self, entry: &v1::SpoolEntry, now: Timestamp) -> Result<Option<Fact>, Status> {
        let (sequence, at) = (entry.sequence, self.position.sequence);
        if sequence == 0 {
            return Err(Status::invalid_argument("sequence numbers begin with 1"));
        }
        let hash = entry_hash(&entry.hash)?;
        if sequence <= at {
            if sequence == at && self.hash_known && hash != self.position.hash {
                return Err(diverged(sequence));
            }
            return Ok(None);
        }
        if sequence != at + 1 {
            return Err(Status::out_of_range(format!(
                "sequence {sequence} does not follow {at}: send from {}, or a gap message if those are lost",
                at + 1
            )));
        }
        let previous = entry_hash(&entry.previous_hash)?;
        if self.hash_known && previous != self.position.hash {
            return Err(diverged(sequence));
        }
        if EntryHash::of(self.position.spool, sequence, previous, &entry.body) != hash {
            return Err(Status::invalid_argument(format!("the hash of entry {sequence} is not that of its content")));
        }
        let event = finding_event(&entry.body)
            .map_err(|error| Status::invalid_argument(format!("entry {sequence} is not understood: {error}")))?;
        self.position = Position { spool: self.position.spool, sequence, hash };
        self.hash_known = true;
        let age = Duration::from_millis(entry.age_ms).min(OBSERVED_AGE_MAX);
        Ok(Some(Fact::FindingReceived {
            agent: self.agent.clone(),
            position: self.position,
            observed: now - age,
            estimated: entry.age_estimated,
            event,
        }))
    }

    /// The agent lost entries before they could be sent.
    pub(super) fn gap(&mut self, gap: &v1::SpoolGap) -> Result<Vec<Fact>, Status> {
        self.must_be_ours(&gap.spool_id)?;
        if gap.first_sequence == 0 || gap.last_sequence < gap.first_sequence {
            return Err(Status::invalid_argument("a gap goes from its first to its last sequence number"));
        }
        let next = self.position.sequence + 1;
        if gap.last_sequence < next {
            return Ok(Vec::new());
        }
        if gap.first_sequence > next {
            let first = gap.first_sequence;
            return Err(Status::out_of_range(format!("a gap from {first} does not follow {}", next - 1)));
        }
        self.position = Position { sequence: gap.last_sequence, hash: EntryHash::ZERO, ..self.position };
        self.hash_known = false;
        Ok(vec![Fact::FindingsLost {
            agent: self.agent.clone(),
            spool: self.position.spool,
            first: next,
            last: gap.last_sequence,
        }])
    }

    /// Gathers a resync's chunks; the last one makes the fact. Answers to older requests, and sets as of another entry
    /// than the last one read, are dropped: they will be asked for again.
    pub(super) fn open_set(&mut self, set: &v1::OpenSet, asked: u64) -> Result<Option<Fact>, Status> {
        if set.request_id != asked || asked == 0 {
            self.forget_chunks();
            return Ok(None);
        }
        for subject in &set.subjects {
            let state = subject_state(subject)?;
            self.open += state.open.len();
            self.chunks.push(state);
            if self.chunks.len() > SUBJECTS_PER_AGENT_MAX || self.open > OPEN_FINDINGS_PER_AGENT_MAX {
                return Err(Status::invalid_argument(format!(
                    "an open set has at most {SUBJECTS_PER_AGENT_MAX} subjects and {OPEN_FINDINGS_PER_AGENT_MAX} findings"
                )));
            }
        }
        if !set.last {
            return Ok(None);
        }
        let subjects = std::mem::take(&mut self.chunks);
        self.forget_chunks();
        if set.head_sequence != self.position.sequence {
            return Ok(None);
        }
        Ok(Some(Fact::OpenSetReceived { agent: self.agent.clone(), subjects }))
    }

    fn forget_chunks(&mut self) {
        self.chunks.clear();
        self.open = 0;
    }

    fn must_be_ours(&self, bytes: &[u8]) -> Result<(), Status> {
        if spool_id(bytes)? == self.position.spool {
            return Ok(());
        }
        Err(Status::failed_precondition("these entries are of another spool than the hello's: say hello again with it"))
    }
}

fn diverged(sequence: u64) -> Status {
    Status::failed_precondition(format!(
        "entry {sequence} is not the one that was stored under this number (a reverted disk?): start a new spool"
    ))
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
            Fact::FindingReceived { observed, .. } => Some(now.since(*observed)),
            _ => None,
        };
        let observed: Vec<_> = read.facts.iter().filter_map(age).collect();
        assert_eq!(observed, [Duration::from_secs(1), OBSERVED_AGE_MAX]);
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
        assert_eq!(code(&mut other_history, vec![reverted]), Code::FailedPrecondition);
        assert_eq!(code(&mut reader(), vec![first; BATCH_ENTRIES_MAX + 1]), Code::InvalidArgument);
    }

    #[test]
    fn a_gap_moves_on_and_the_next_entry_is_believed() {
        let (mut reader, mut at) = (reader(), Position::start(spool()));
        for _ in 0..3 {
            entry(&mut at, 0);
        }
        let gap = v1::SpoolGap { spool_id: spool().0.as_bytes().to_vec().into(), first_sequence: 1, last_sequence: 3 };
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
