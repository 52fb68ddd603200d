//! What the journal is made of: facts (observed or done), deadlines (time that passed), conclusions (decided).
//!
//! Serialized as JSON; an entry's form is a compatibility promise to every journal ever written.

mod agent;
mod form;
pub(crate) mod shared;
mod timer;

pub use agent::{AgentHello, Disconnect, Silence};
pub use timer::TimerKey;

use crate::freeze::FreezeScope;
use crate::page::{Page, PageId};
use crate::policy::Policy;
use crate::second_opinion::PeerAnswer;
use crate::silence::{Matchers, SilenceKind};
use muster_common::evidence::Grade;
use muster_common::finding::{Finding, FindingEvent, SubjectKey};
use muster_common::ids::{AgentName, CoordinatorId, Epoch, FleetName, SpoolId};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::spool::Position;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// 1 for the first; no gaps.
    pub index: u64,
    /// Log time; never goes back.
    pub at: Timestamp,
    /// Index of the fact or deadline that this followed from; its own index for those.
    pub trace: u64,
    /// What.
    #[serde(flatten)]
    pub body: EntryBody,
}

/// The three kinds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryBody {
    /// Observed or done.
    Fact(Fact),
    /// A timer of State ran out. Not fed to a what-if replay: another policy has other timers.
    Deadline(TimerKey),
    /// Decided.
    Conclusion(Conclusion),
}

/// The verdict on one subject, in a resync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubjectState {
    /// What.
    pub subject: SubjectKey,
    /// `Some(true)` ok, `Some(false)` problem, `None` unknown.
    pub ok: Option<bool>,
    /// Open conditions.
    pub open: Vec<Finding>,
}

/// What a person did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorAction {
    /// Took ownership.
    Acknowledge {
        /// May be empty.
        note: String,
    },
    /// Closed by hand.
    Resolve {
        /// Why.
        summary: String,
    },
    /// Wrote something down.
    Note {
        /// What.
        text: String,
    },
    /// Raised or lowered it.
    SetSeverity {
        /// To what.
        severity: Severity,
        /// Why.
        note: String,
    },
    /// Named who leads the response.
    SetCommander {
        /// Empty: nobody any more.
        commander: String,
    },
}

impl OperatorAction {
    /// What was done, by whom, for people.
    pub fn told(&self, by: &str) -> String {
        match self {
            Self::Acknowledge { note } if note.is_empty() => format!("acknowledged by {by}"),
            Self::Acknowledge { note } => format!("acknowledged by {by}: {note}"),
            Self::Resolve { summary } => format!("resolve asked for by {by}: {summary}"),
            Self::Note { text } => format!("note by {by}: {text}"),
            Self::SetSeverity { severity, note } => format!("{severity} asked for by {by}: {note}"),
            Self::SetCommander { commander } if commander.is_empty() => {
                format!("{by} took the command back: nobody leads the response")
            }
            Self::SetCommander { commander } => format!("{by} named {commander} to lead the response"),
        }
    }
}

/// Observed or done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A coordinator process began to reign over this journal (first start or restart).
    Started {
        /// Who.
        coordinator: CoordinatorId,
        /// The fleet of its certificate.
        fleet: FleetName,
        /// Its version.
        version: String,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A standby became the primary.
    TookOver {
        /// The new epoch.
        epoch: Epoch,
        /// Whom it replaces.
        from: Option<CoordinatorId>,
        /// The operator.
        by: String,
        /// Why, in the operator's words.
        reason: String,
        /// Checks that were not met and overridden.
        overridden: Vec<String>,
    },
    /// The coordinator itself stood still (suspend, SIGSTOP, VM snapshot).
    Paused {
        /// How long.
        gap_ms: u64,
    },
    /// Thresholds and matrix from here on.
    PolicyLoaded {
        /// All of it.
        policy: Box<Policy>,
    },
    /// An agent's stream began (reconnects within the confirmation interval are not journaled).
    AgentConnected {
        /// Who.
        agent: AgentName,
        /// What it said.
        #[serde(with = "shared")]
        hello: Arc<AgentHello>,
    },
    /// An agent's stream ended and it did not come back within the confirmation interval, or it said goodbye.
    AgentDisconnected {
        /// Who.
        agent: AgentName,
        /// How.
        how: Disconnect,
    },
    /// More reconnects than a healthy agent makes.
    AgentFlapping {
        /// Who.
        agent: AgentName,
        /// Reconnects counted, not journaled.
        reconnects: u64,
    },
    /// Nothing heard beyond the threshold.
    AgentSilent {
        /// Who.
        agent: AgentName,
        /// Last heard, log time.
        last_heard: Timestamp,
        /// Why it counts as silent.
        silence: Silence,
    },
    /// Heard again after a silence.
    AgentHeard {
        /// Who.
        agent: AgentName,
    },
    /// What an agent's neighbours said about its silence.
    SecondOpinion {
        /// Who is silent.
        agent: AgentName,
        /// Index of the question, a `SecondOpinionWanted`.
        question: u64,
        /// Of those that answered in time.
        answers: Vec<PeerAnswer>,
    },
    /// An agent that is gone for good was forgotten.
    AgentArchived {
        /// Who.
        agent: AgentName,
        /// Identity of the person's certificate, or `local:UID`.
        by: String,
        /// Why.
        reason: String,
    },
    /// An entry of an agent's spool.
    FindingReceived {
        /// Who.
        agent: AgentName,
        /// Position after this entry.
        position: Position,
        /// Log time at which it was observed: now − age, clamped.
        observed: Timestamp,
        /// The age is an estimate by the wall clock (spooled across a reboot).
        estimated: bool,
        /// What.
        event: FindingEvent,
    },
    /// Entries that the agent evicted before they were acknowledged.
    FindingsLost {
        /// Who.
        agent: AgentName,
        /// Position to go on from (the last lost entry; its hash is unknown: zero).
        spool: SpoolId,
        /// First lost sequence number.
        first: u64,
        /// Last lost sequence number.
        last: u64,
    },
    /// The agent sends from another spool than before (new disk, reverted VM).
    SpoolReplaced {
        /// Who.
        agent: AgentName,
        /// What was known.
        old: Option<Position>,
        /// From now on.
        new: SpoolId,
    },
    /// The digest of the agent's open conditions differs from ours at the same position: a resync was asked for.
    DigestDiffers {
        /// Who.
        agent: AgentName,
    },
    /// The agent told all its verdicts and open conditions.
    OpenSetReceived {
        /// Who.
        agent: AgentName,
        /// Every watched subject.
        subjects: Vec<SubjectState>,
    },
    /// A second living agent presented the same certificate and was refused.
    IdentityConflict {
        /// Which name.
        agent: AgentName,
        /// Address of the one that holds the stream.
        holder: String,
        /// Address of the refused one.
        refused: String,
    },
    /// A caller was refused; told at most once a minute for each caller and route. Before rules version 2 one that called
    /// in a loop was told by this too, with the route `any`.
    CallsRefused {
        /// Name of its certificate, or its address where it showed none that is believed.
        caller: String,
        /// From where it called last.
        address: String,
        /// What it called, or `handshake`.
        route: String,
        /// Why it was refused last.
        why: String,
        /// How often since it was told before.
        count: u64,
    },
    /// A caller called so often that it must be in a loop; nobody refused it. Told at most once a minute for each caller.
    CallsLooped {
        /// Name of its certificate, or its address where it showed none that is believed.
        caller: String,
        /// From where it called last.
        address: String,
        /// What it called the most.
        route: String,
        /// How often within the last minute, all routes.
        count: u64,
    },
    /// A person acted on an incident.
    Operator {
        /// Identity of the person's certificate, or `local:UID`.
        by: String,
        /// Cause key: an action names the cause and generation it was about, so that a replay can tell whether it still
        /// applies.
        cause: String,
        /// Generation.
        generation: u64,
        /// What.
        action: OperatorAction,
    },
    /// No new work is to be dispatched, on some hosts.
    FreezeSet {
        /// Identity of the person's certificate, or `local:UID`.
        by: String,
        /// Whom it concerns.
        scope: FreezeScope,
        /// Why.
        reason: String,
        /// Until when; `None`: until it is lifted.
        expires: Option<Timestamp>,
    },
    /// A freeze was lifted.
    FreezeLifted {
        /// By whom.
        by: String,
        /// Index of the fact that set it.
        index: u64,
    },
    /// Pages about what matches are held back.
    SilenceSet {
        /// Identity of the person's certificate, or `local:UID`.
        by: String,
        /// Silence or maintenance.
        kind: SilenceKind,
        /// What it concerns.
        matchers: Matchers,
        /// Why.
        reason: String,
        /// From when on.
        starts: Timestamp,
        /// Until when.
        ends: Timestamp,
    },
    /// A silence was ended before its time.
    SilenceExpired {
        /// By whom.
        by: String,
        /// Index of the fact that made it.
        index: u64,
    },
    /// Delivery of a page is about to be tried for the first time: from here on it may have reached the receiver.
    PageAttempted {
        /// Which.
        page: PageId,
    },
    /// The receiver accepted it.
    PageDelivered {
        /// Which.
        page: PageId,
    },
    /// Given up: refused for good, or out of retries.
    PageFailed {
        /// Which.
        page: PageId,
        /// Why.
        error: String,
    },
    /// A receiver has taken nothing for a while, although it was asked.
    ReceiverFailing {
        /// Which.
        receiver: String,
        /// For how long.
        for_ms: u64,
        /// What it answered last.
        error: String,
    },
    /// A page that was given up is to be sent again.
    ResendAsked {
        /// Identity of the person's certificate, or `local:UID`.
        by: String,
        /// Which.
        page: PageId,
    },
    /// Another system told of an event; what it means is the fact that follows. Remembered, so that the same event told
    /// again changes nothing.
    OutsideEvent {
        /// Such as `pagerduty`.
        source: String,
        /// Its id there.
        id: String,
    },
    /// A higher epoch exists; this coordinator stops.
    EpochHeard {
        /// It.
        epoch: Epoch,
        /// Who told.
        from: String,
    },
    /// A rule panicked; what it would have concluded is missing.
    DecidePanicked {
        /// Index of the entry that was being decided.
        entry: u64,
        /// The panic's message.
        message: String,
    },
}

/// Which incident.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IncidentKey {
    /// Cause key, such as `host/web-1/service/spl`.
    pub cause: String,
    /// 1 for the first incident of this cause; rises when it comes back after the stability window.
    pub generation: u64,
}

/// Why an incident is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Evidence of health held for the stability window.
    Evidence,
    /// By hand.
    Operator {
        /// Who.
        by: String,
        /// In their words.
        summary: String,
    },
    /// It was a symptom of this one.
    FoldedInto {
        /// The cause.
        incident: IncidentKey,
    },
    /// It had been paged, and is a symptom of this one. Of the two the page of the older goes on.
    MergedInto {
        /// The cause.
        incident: IncidentKey,
    },
}

/// Decided. Each carries its reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// A new incident.
    IncidentOpened {
        /// Which.
        incident: IncidentKey,
        /// `INC-YYYYMMDD-NNNN`.
        number: String,
        /// What.
        reason: Reason,
        /// How bad.
        severity: Severity,
        /// How sure.
        grade: Grade,
        /// One sentence.
        title: String,
        /// Rule, values, thresholds.
        why: String,
        /// When it began.
        began: Timestamp,
        /// What to do.
        next_steps: Vec<String>,
    },
    /// A finding or an agent joined an incident.
    IncidentJoined {
        /// Which.
        incident: IncidentKey,
        /// `agent/service/probe/subject/reason`, or an agent's name for a silence.
        member: String,
        /// Why it belongs there.
        why: String,
    },
    /// Worse than before, or worded better now that more is known.
    IncidentChanged {
        /// Which.
        incident: IncidentKey,
        /// New severity.
        severity: Severity,
        /// New reason (a cause found behind its symptoms).
        reason: Reason,
        /// New title.
        title: String,
        /// Why.
        why: String,
    },
    /// Evidence of health is complete; the stability window runs.
    IncidentRecovering {
        /// Which.
        incident: IncidentKey,
        /// Why.
        why: String,
    },
    /// Evidence of health is no longer complete.
    IncidentRelapsed {
        /// Which.
        incident: IncidentKey,
        /// Why.
        why: String,
    },
    /// Over.
    IncidentResolved {
        /// Which.
        incident: IncidentKey,
        /// How.
        resolution: Resolution,
        /// Why.
        why: String,
    },
    /// A message to a receiver. Pending until it has an outcome.
    PageRequested {
        /// Which incident.
        incident: IncidentKey,
        /// What.
        page: Box<Page>,
        /// Why now.
        why: String,
    },
    /// Not needed any more and never tried.
    PageCancelled {
        /// Which.
        page: PageId,
        /// Why.
        why: String,
    },
    /// Agents near a silent one are to be asked whether its host answers.
    SecondOpinionWanted {
        /// Which incident.
        incident: IncidentKey,
        /// Who is silent.
        agent: AgentName,
        /// Where the coordinator saw it connect from.
        address: IpAddr,
        /// Ports it had told of.
        ports: Vec<u16>,
        /// Who is asked.
        askers: Vec<AgentName>,
        /// Why.
        why: String,
    },
    /// A person's severity takes effect.
    SeveritySet {
        /// Which.
        incident: IncidentKey,
        /// From now on.
        severity: Severity,
        /// What the rules make of it now: only what is worse than this raises it again.
        assessed: Severity,
        /// Who.
        by: String,
        /// Why.
        why: String,
    },
    /// Nobody acknowledged it in time: it is told again.
    IncidentEscalated {
        /// Which.
        incident: IncidentKey,
        /// How often by now.
        count: u64,
        /// Why.
        why: String,
    },
    /// Its pages are held back; explains silence.
    IncidentSilenced {
        /// Which.
        incident: IncidentKey,
        /// Index of the fact that made the silence.
        silence: u64,
        /// Which one, whose, until when.
        why: String,
    },
    /// Looked at and left alone; explains silence.
    NotPaged {
        /// Which incident.
        incident: IncidentKey,
        /// Why not.
        why: String,
    },
}
