//! What others ask of the loop that judges: reports of applications, and how things stand. Answered between two turns,
//! so that nobody sees half of a thought.

use crate::bell::Bell;
use muster_agent_core::diagnose::{Recent, Story, stories};
use muster_agent_core::judgement::{Problem, Verdict};
use muster_agent_core::ledger::Ledger;
use muster_agent_core::services::Services;
use muster_common::finding::{Finding, SubjectKey};
use muster_proto::v1;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use tokio::sync::oneshot;

/// Questions that wait: more than this many callers at once are sent away.
const WAITING_MAX: usize = 64;

/// One question.
#[derive(Debug)]
pub enum Ask {
    /// Something happened.
    Report {
        /// To whom.
        subject: SubjectKey,
        /// What.
        problem: Problem,
        /// The spool's head once it is durable, or why it is not yet.
        answer: oneshot::Sender<Result<u64, String>>,
    },
    /// How do things stand?
    Picture(oneshot::Sender<Picture>),
}

/// How things stand.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Open conditions, then what happened lately.
    pub findings: Vec<Finding>,
    /// How many of them are open conditions.
    pub open_count: usize,
    /// What the last look at each subject said.
    pub subjects: Vec<v1::SubjectState>,
    /// The findings as causes with what belongs to them.
    pub stories: Vec<Story>,
    /// The last verdict on each subject.
    pub verdicts: Vec<(SubjectKey, Verdict)>,
    /// What could not be answered, and why.
    pub unknown: Vec<(SubjectKey, String)>,
}

impl Picture {
    /// Of what the loop knows.
    pub fn new(ledger: &Ledger, recent: &Recent, services: &Services) -> Self {
        let mut findings: Vec<Finding> = ledger.open().cloned().collect();
        let open_count = findings.len();
        findings.extend(recent.occurrences());
        let stories = stories(&findings, recent, services);
        let subjects = ledger.subjects().map(|state| crate::uplink::subject_state(&state)).collect();
        let verdicts = ledger.subjects().map(|state| (state.subject.clone(), state.verdict)).collect();
        let unknown = ledger.unknown().map(|(subject, unknown)| (subject.clone(), unknown.why.clone())).collect();
        Self { findings, open_count, subjects, stories, verdicts, unknown }
    }
}

/// A way to ask; cheap to clone.
#[derive(Debug, Clone)]
pub struct Asks {
    queue: SyncSender<Ask>,
    bell: Bell,
}

/// The loop's end of it.
#[derive(Debug)]
pub struct Asked {
    /// Questions that wait.
    pub queue: Receiver<Ask>,
    /// Rings when there is one.
    pub bell: Bell,
}

/// Too many ask, or the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Come back later.
    #[error("too many callers wait; come back later")]
    Full,
    /// The agent stops.
    #[error("the agent stops")]
    Stopped,
}

/// Both ends.
pub fn asks() -> io::Result<(Asks, Asked)> {
    let (sender, queue) = sync_channel(WAITING_MAX);
    let bell = Bell::new()?;
    Ok((Asks { queue: sender, bell: bell.clone() }, Asked { queue, bell }))
}

impl Asks {
    /// Puts a question; never waits.
    pub fn put(&self, ask: Ask) -> Result<(), Refused> {
        self.queue.try_send(ask).map_err(|error| match error {
            TrySendError::Full(_) => Refused::Full,
            TrySendError::Disconnected(_) => Refused::Stopped,
        })?;
        self.bell.ring();
        Ok(())
    }
}
