//! One agent's stream, seen from the journal: its hello, the entries of its spool in order (position, chain of hashes,
//! bounds), its open set, and what may be acknowledged. The server and the simulator hold agents to this one piece.
//!
//! What is already stored is dropped without a word and acknowledged again; what does not follow ends the stream. Must
//! never let an entry pass whose place in the chain is not proven, except the first one after a gap.

use crate::entry::{AgentHello, Fact, SubjectState};
use crate::liveness::Heard;
use crate::state::AgentRecord;
use muster_common::finding::FindingEvent;
use muster_common::ids::{AgentName, SpoolId};
use muster_common::limits::{OPEN_FINDINGS_PER_AGENT_MAX, SUBJECTS_PER_AGENT_MAX};
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

/// Nothing is dated further back than this: a host whose clock says 1970 makes no news of 1970. What is older is dated
/// by a guess.
pub const OBSERVED_AGE_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Stored batches remembered until the standby has them. Overflow rule: the oldest is forgotten; a later batch's
/// acknowledgement covers it.
const UNREPLICATED_MAX: usize = 1_024;

/// Why a stream is ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the spool of the hello.
    #[error("these entries are of another spool than the hello's: say hello again with it")]
    OtherSpool,
    /// Sequence number 0.
    #[error("sequence numbers begin with 1")]
    NoSequence,
    /// Not the next one.
    #[error("sequence {found} does not follow {at}: send from {next}, or a gap message if those are lost", next = at + 1)]
    NotNext {
        /// What came.
        found: u64,
        /// What is known.
        at: u64,
    },
    /// Another history than the one that is stored.
    #[error(
        "entry {0} does not continue what is stored of this spool (a reverted disk?): say hello again, and start a new spool where the welcome's position is not yours"
    )]
    Diverged(u64),
    /// The hash does not cover what came.
    #[error("the hash of entry {0} is not that of its content")]
    WrongHash(u64),
    /// The content is not understood.
    #[error("entry {sequence} is not understood: {why}")]
    Content {
        /// Which.
        sequence: u64,
        /// Why.
        why: String,
    },
    /// A gap without a beginning, or one that ends before it.
    #[error("a gap goes from its first to its last sequence number")]
    NoGap,
    /// A gap after a gap that was not told.
    #[error("a gap from {first} does not follow {at}")]
    GapNotNext {
        /// What came.
        first: u64,
        /// What is known.
        at: u64,
    },
    /// Too much is open.
    #[error("an open set has at most {SUBJECTS_PER_AGENT_MAX} subjects and {OPEN_FINDINGS_PER_AGENT_MAX} findings")]
    OpenSetTooLarge,
}

/// An entry as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offered<'a> {
    /// Its number.
    pub sequence: u64,
    /// Hash of the one before.
    pub previous_hash: EntryHash,
    /// Its own, which covers the number, the one before and the body.
    pub hash: EntryHash,
    /// How long ago it was observed.
    pub age: Duration,
    /// The age is an estimate.
    pub estimated: bool,
    /// The encoded event.
    pub body: &'a [u8],
}

/// How far one agent's spool has been read, commits still outstanding included.
#[derive(Debug, Clone)]
pub struct SpoolReader {
    agent: AgentName,
    position: Position,
    /// After a gap the hash before the next entry is not known.
    hash_known: bool,
    chunks: Vec<SubjectState>,
    open: usize,
}

impl SpoolReader {
    /// Goes on after `position`.
    pub fn new(agent: AgentName, position: Position) -> Self {
        let hash_known = position.sequence == 0 || position.hash != EntryHash::ZERO;
        Self { agent, position, hash_known, chunks: Vec::new(), open: 0 }
    }

    /// How far it has been read.
    pub fn position(&self) -> Position {
        self.position
    }

    /// What is sent under a spool id must be of the spool that said hello.
    pub fn must_be_ours(&self, spool: SpoolId) -> Result<(), Refusal> {
        if spool == self.position.spool { Ok(()) } else { Err(Refusal::OtherSpool) }
    }

    /// Takes the entry that came at log time `now`; `None` when it was stored before.
    pub fn entry<E: Display>(
        &mut self,
        offered: Offered<'_>,
        now: Timestamp,
        decode: impl FnOnce(&[u8]) -> Result<FindingEvent, E>,
    ) -> Result<Option<Fact>, Refusal> {
        let (sequence, at) = (offered.sequence, self.position.sequence);
        if sequence == 0 {
            return Err(Refusal::NoSequence);
        }
        if sequence <= at {
            if sequence == at && self.hash_known && offered.hash != self.position.hash {
                return Err(Refusal::Diverged(sequence));
            }
            return Ok(None);
        }
        if sequence != at.saturating_add(1) {
            return Err(Refusal::NotNext { found: sequence, at });
        }
        if self.hash_known && offered.previous_hash != self.position.hash {
            return Err(Refusal::Diverged(sequence));
        }
        if EntryHash::of(self.position.spool, sequence, offered.previous_hash, offered.body) != offered.hash {
            return Err(Refusal::WrongHash(sequence));
        }
        let event = decode(offered.body).map_err(|error| Refusal::Content { sequence, why: error.to_string() })?;
        self.position = Position { spool: self.position.spool, sequence, hash: offered.hash };
        self.hash_known = true;
        Ok(Some(Fact::FindingReceived {
            agent: self.agent.clone(),
            position: self.position,
            observed: now - offered.age.min(OBSERVED_AGE_MAX),
            estimated: offered.estimated || offered.age > OBSERVED_AGE_MAX,
            event,
        }))
    }

    /// The agent lost the entries `first..=last` before they could be sent; `None` when they are known.
    pub fn gap(&mut self, first: u64, last: u64) -> Result<Option<Fact>, Refusal> {
        if first == 0 || last < first {
            return Err(Refusal::NoGap);
        }
        let at = self.position.sequence;
        if last <= at {
            return Ok(None);
        }
        if first > at + 1 {
            return Err(Refusal::GapNotNext { first, at });
        }
        self.position = Position { sequence: last, hash: EntryHash::ZERO, ..self.position };
        self.hash_known = false;
        let (agent, spool) = (self.agent.clone(), self.position.spool);
        Ok(Some(Fact::FindingsLost { agent, spool, first: at + 1, last }))
    }

    /// Gathers a resync's chunks; the last one makes the fact. Answers to older requests than the one `asked` last, and
    /// sets as of another entry than the last one read, are dropped: they will be asked for again.
    pub fn open_set(
        &mut self,
        asked: u64,
        request: u64,
        head: u64,
        subjects: Vec<SubjectState>,
        is_last: bool,
    ) -> Result<Option<Fact>, Refusal> {
        if request != asked || asked == 0 {
            self.forget_chunks();
            return Ok(None);
        }
        self.open += subjects.iter().map(|subject| subject.open.len()).sum::<usize>();
        self.chunks.extend(subjects);
        if self.chunks.len() > SUBJECTS_PER_AGENT_MAX || self.open > OPEN_FINDINGS_PER_AGENT_MAX {
            return Err(Refusal::OpenSetTooLarge);
        }
        if !is_last {
            return Ok(None);
        }
        let subjects = std::mem::take(&mut self.chunks);
        self.forget_chunks();
        let same = head == self.position.sequence;
        Ok(same.then(|| Fact::OpenSetReceived { agent: self.agent.clone(), subjects }))
    }

    fn forget_chunks(&mut self) {
        self.chunks.clear();
        self.open = 0;
    }
}

/// What may be acknowledged on one stream: what is committed, and what the standby has as well.
#[derive(Debug, Clone)]
pub struct Acks {
    stored: u64,
    replicated: u64,
    /// (journal index, sequence), ascending: stored, and not known to be replicated.
    unreplicated: VecDeque<(u64, u64)>,
}

impl Acks {
    /// Up to `sequence` was committed before the stream began, at the latest with the journal's entry `index`.
    pub fn new(index: u64, sequence: u64) -> Self {
        Self { stored: sequence, replicated: 0, unreplicated: VecDeque::from([(index, sequence)]) }
    }

    /// A batch up to `sequence` is committed with the journal's entry `index`.
    pub fn committed(&mut self, index: u64, sequence: u64) {
        self.stored = sequence;
        if self.unreplicated.len() == UNREPLICATED_MAX {
            self.unreplicated.pop_front();
        }
        self.unreplicated.push_back((index, sequence));
    }

    /// The standby has the journal up to `index`; without a standby (`None`) what is stored is as safe as it gets. True
    /// when this is news for the agent.
    pub fn replicated(&mut self, index: Option<u64>) -> bool {
        let before = self.replicated;
        while let Some((at, sequence)) = self.unreplicated.front().copied()
            && index.is_none_or(|index| index >= at)
        {
            self.replicated = self.replicated.max(sequence);
            self.unreplicated.pop_front();
        }
        self.replicated != before
    }

    /// Whether there is something that the standby may be about to have.
    pub fn waits(&self) -> bool {
        !self.unreplicated.is_empty()
    }

    /// (stored, replicated), as they may be told.
    pub fn told(&self) -> (u64, u64) {
        (self.stored, self.replicated.min(self.stored))
    }
}

/// What a hello means for the journal, and the position to go on from.
pub fn greet(known: Option<&AgentRecord>, heard: Heard, agent: &AgentName, hello: AgentHello) -> (Vec<Fact>, Position) {
    let spool = hello.spool;
    let old = known.and_then(|record| record.position);
    let mut facts = Vec::new();
    if heard == Heard::Back || known.is_none_or(|record| record.hello.as_deref() != Some(&hello)) {
        facts.push(Fact::AgentConnected { agent: agent.clone(), hello: Arc::new(hello) });
    }
    if old.is_some_and(|position| position.spool != spool) {
        facts.push(Fact::SpoolReplaced { agent: agent.clone(), old, new: spool });
    }
    (facts, old.filter(|position| position.spool == spool).unwrap_or(Position::start(spool)))
}

/// Whether agent and State disagree about what is open at the very same entry, or did when they last spoke of it: then
/// the open set is asked for.
pub fn wants_resync(record: &AgentRecord, head: u64, digest: u64) -> bool {
    let stored = record.position.map_or(0, |position| position.sequence);
    !record.digest_matches || (head == stored && digest != record.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_to_be_replicated_before_the_standby_has_it() {
        let mut acks = Acks::new(10, 3);
        assert!(!acks.replicated(Some(9)));
        assert_eq!(acks.told(), (3, 0));
        acks.committed(20, 5);
        assert!(acks.replicated(Some(19)));
        assert_eq!(acks.told(), (5, 3));
        assert!(acks.replicated(None));
        assert_eq!(acks.told(), (5, 5));
        for index in 0..2 * UNREPLICATED_MAX as u64 {
            acks.committed(100 + index, 6 + index);
        }
        assert_eq!(acks.unreplicated.len(), UNREPLICATED_MAX);
    }
}
