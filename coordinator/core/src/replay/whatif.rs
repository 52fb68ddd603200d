//! What another policy would have paged, from the facts of a journal.
//!
//! Timers and conclusions of the journal are not fed: another policy has its own. What became of a page is fed for the
//! page of the same receiver, key and turn, so that under the same policy nothing differs. Silences that a more patient
//! policy would have noticed later are fed later, and not at all where the agent was heard again by then. Whatever the
//! journal cannot tell is counted and said ([`WhatIf::unsure`]).

use super::difference::{Course, Told, Unmatched, WhatIf, folded_into, incidents, pages};
use crate::entry::{Conclusion, Entry, EntryBody, Fact, IncidentKey, OperatorAction, Silence};
use crate::liveness::rehear_window;
use crate::machine::{Machine, ends_a_gap};
use crate::page::{Page, PageAction, PageId};
use crate::policy::{LivenessPolicy, Policy, RULES_VERSION};
use crate::state::State;
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Why a comparison would claim more than the journal can tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    /// Heartbeats are not in the journal.
    #[error(
        "the other policy has a shorter {0} than the recorded one; heartbeats are not in the journal, so it cannot tell who would have been silent: loosen the thresholds of liveness, do not tighten them"
    )]
    TighterLiveness(&'static str),
}

/// Feeds the facts of `journal` (which begins right after `snapshot`) to the rules under `policy` and compares.
pub fn what_if(snapshot: &State, journal: &[Entry], policy: &Policy) -> Result<WhatIf, WhatIfError> {
    let mut run = WhatIfRun::new(snapshot.clone(), policy.clone())?;
    journal.iter().try_for_each(|entry| run.next(entry.clone()))?;
    Ok(run.finish())
}

/// Entries kept for who frees them ([`WhatIfRun::give_back`]). Overflow rule: they are freed here.
const SPENT_MAX: usize = 1024;

/// A page by what it is, not by the index of its entry.
type PageName = (String, String, &'static str, u32);

/// What one side told and opened so far.
#[derive(Debug, Default)]
struct Side {
    triggers: Vec<Told>,
    known: BTreeSet<(String, String)>,
    incidents: BTreeMap<IncidentKey, Course>,
    /// How many pages of each kind were requested.
    turns: BTreeMap<(String, String, &'static str), u32>,
}

impl Side {
    /// Notes an entry; the page it asks for, if it does.
    fn note(&mut self, entry: &Entry) -> Option<PageName> {
        let EntryBody::Conclusion(conclusion) = &entry.body else { return None };
        match conclusion {
            Conclusion::IncidentOpened { incident, number, severity, reason, .. } => {
                let course = Course {
                    number: number.clone(),
                    opened: entry.at,
                    severity: *severity,
                    reason: *reason,
                    resolved: None,
                    folded_into: None,
                };
                self.incidents.insert(incident.clone(), course);
            }
            Conclusion::IncidentChanged { incident, severity, reason, .. } => {
                if let Some(course) = self.incidents.get_mut(incident) {
                    (course.severity, course.reason) = (course.severity.max(*severity), *reason);
                }
            }
            Conclusion::SeveritySet { incident, severity, .. } => {
                if let Some(course) = self.incidents.get_mut(incident) {
                    course.severity = course.severity.max(*severity);
                }
            }
            Conclusion::IncidentResolved { incident, resolution, .. } => {
                if let Some(course) = self.incidents.get_mut(incident) {
                    course.resolved = Some(entry.at);
                    course.folded_into = folded_into(resolution).cloned();
                }
            }
            Conclusion::PageRequested { incident, page, .. } => return Some(self.page(entry.at, incident, page)),
            _ => {}
        }
        None
    }

    fn page(&mut self, at: Timestamp, incident: &IncidentKey, page: &Page) -> PageName {
        let (receiver, dedup_key) = (page.receiver.clone(), page.dedup_key.clone());
        let action = page.action.as_str();
        if page.action == PageAction::Trigger && self.known.insert((receiver.clone(), dedup_key.clone())) {
            self.triggers.push(Told {
                at,
                incident: incident.clone(),
                receiver: receiver.clone(),
                dedup_key: dedup_key.clone(),
                severity: page.severity,
                reason: page.reason,
                title: page.title.clone(),
            });
        }
        let turn = self.turns.entry((receiver.clone(), dedup_key.clone(), action)).or_default();
        *turn += 1;
        (receiver, dedup_key, action, *turn)
    }
}

/// A silence that the other policy has not noticed yet.
#[derive(Debug, Clone, Copy)]
struct Later {
    due: Timestamp,
    last_heard: Timestamp,
    silence: Silence,
}

/// What was seen that makes a comparison less sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Doubts {
    gaps: u64,
    standstills: u64,
    flapping: u64,
    panics: u64,
    outcomes: u64,
    later: u64,
    rules: Option<u32>,
}

/// The facts of a journal under another policy, entry by entry.
#[derive(Debug)]
pub struct WhatIfRun {
    machine: Machine,
    policy: Policy,
    /// In force when the facts were journaled.
    recorded_liveness: LivenessPolicy,
    recorded: Side,
    replayed: Side,
    /// Pages of the journal without outcome, and of the other policy by name.
    recorded_pages: BTreeMap<PageId, PageName>,
    replayed_pages: BTreeMap<PageName, PageId>,
    /// Facts that others refer to, by their index: the journal's, then the other policy's.
    indexes: BTreeMap<u64, u64>,
    /// Pages that were given up: the journal's, then the other policy's.
    given_up: BTreeMap<PageId, PageId>,
    /// The newest question to the neighbours of each agent.
    replayed_questions: BTreeMap<AgentName, u64>,
    later: BTreeMap<AgentName, Later>,
    doubts: Doubts,
    unmatched: Vec<Unmatched>,
    last_at: Timestamp,
    spent: Vec<Entry>,
}

impl WhatIfRun {
    /// Goes on from `snapshot` under `policy`. Its rules version is this binary's: no other rules are there to be asked.
    pub fn new(snapshot: State, policy: Policy) -> Result<Self, WhatIfError> {
        let policy = Policy { rules_version: RULES_VERSION, ..policy };
        let recorded_policy = snapshot.policy().clone();
        let began = snapshot.head_index() > 0;
        let mut run = Self {
            last_at: snapshot.last_at(),
            recorded_liveness: recorded_policy.liveness.clone(),
            machine: Machine::new(snapshot),
            policy,
            recorded: Side::default(),
            replayed: Side::default(),
            recorded_pages: BTreeMap::new(),
            replayed_pages: BTreeMap::new(),
            indexes: BTreeMap::new(),
            given_up: BTreeMap::new(),
            replayed_questions: BTreeMap::new(),
            later: BTreeMap::new(),
            doubts: Doubts::default(),
            unmatched: Vec::new(),
            spent: Vec::new(),
        };
        if began {
            run.begin(&recorded_policy)?;
        }
        Ok(run)
    }

    /// What the snapshot holds is both sides' beginning.
    fn begin(&mut self, recorded: &Policy) -> Result<(), WhatIfError> {
        self.must_be_patient(recorded)?;
        for record in self.machine.state().pending_pages() {
            let page = &record.page;
            // Which turn it was is not in the snapshot: numbers that no later page gets tell them apart.
            let turn = u32::MAX.saturating_sub(u32::try_from(self.recorded_pages.len()).unwrap_or(u32::MAX));
            let name = (page.receiver.clone(), page.dedup_key.clone(), page.action.as_str(), turn);
            self.recorded_pages.insert(record.id, name.clone());
            self.replayed_pages.insert(name, record.id);
        }
        let keys = self.machine.state().incidents().flat_map(|incident| &incident.page_keys);
        let known: BTreeSet<_> = keys.map(|key| (key.receiver.clone(), key.dedup_key.clone())).collect();
        (self.recorded.known, self.replayed.known) = (known.clone(), known);
        let courses: BTreeMap<_, _> =
            self.machine.state().incidents().map(|i| (i.key.clone(), Course::of(i))).collect();
        (self.recorded.incidents, self.replayed.incidents) = (courses.clone(), courses);
        if *recorded != self.policy {
            let policy = Box::new(self.policy.clone());
            self.feed(self.last_at, Fact::PolicyLoaded { policy });
        }
        Ok(())
    }

    /// The next entry of the journal.
    pub fn next(&mut self, entry: Entry) -> Result<(), WhatIfError> {
        self.last_at = self.last_at.max(entry.at);
        if let Some(name) = self.recorded.note(&entry) {
            self.recorded_pages.insert(PageId(entry.index), name);
        }
        self.notice_silences(entry.at);
        let Entry { index, at, trace, body } = entry;
        let body = match body {
            EntryBody::Fact(fact) => return self.fact(index, at, fact),
            other => other,
        };
        match &body {
            // The clock was looked at: our own timers run, as the recorded ones did.
            EntryBody::Deadline(_) => {
                let entries = self.machine.run_deadlines(at);
                self.note_replayed(entries);
            }
            EntryBody::Conclusion(Conclusion::PageCancelled { page, .. }) => {
                self.recorded_pages.remove(page);
            }
            EntryBody::Conclusion(_) | EntryBody::Fact(_) => {}
        }
        self.keep([Entry { index, at, trace, body }]);
        Ok(())
    }

    /// Puts what is not needed any more behind `entries`: who decoded it may have more time to free it.
    pub fn give_back(&mut self, entries: &mut Vec<Entry>) {
        entries.append(&mut self.spent);
    }

    fn keep(&mut self, spent: impl IntoIterator<Item = Entry>) {
        if self.spent.len() >= SPENT_MAX {
            self.spent.clear();
        }
        self.spent.extend(spent);
    }

    fn fact(&mut self, index: u64, at: Timestamp, fact: Fact) -> Result<(), WhatIfError> {
        // Another policy makes a re-hear window that runs longer.
        let gap = ends_a_gap(&fact) || matches!(fact, Fact::PolicyLoaded { .. });
        let fact = match fact {
            Fact::PolicyLoaded { policy } => {
                self.must_be_patient(&policy)?;
                self.recorded_liveness = policy.liveness;
                Some(Fact::PolicyLoaded { policy: Box::new(self.policy.clone()) })
            }
            Fact::PageAttempted { page } => self.paged(page, false).map(|page| Fact::PageAttempted { page }),
            Fact::PageDelivered { page } => self.paged(page, true).map(|page| Fact::PageDelivered { page }),
            Fact::PageFailed { page, error } => self.paged(page, true).map(|own| {
                self.given_up.insert(page, own);
                Fact::PageFailed { page: own, error }
            }),
            Fact::ResendAsked { by, page } => {
                let page = self.given_up.get(&page).copied().unwrap_or(page);
                Some(Fact::ResendAsked { by, page })
            }
            Fact::DecidePanicked { .. } => {
                self.doubts.panics += 1;
                None
            }
            Fact::Operator { by, cause, generation, action } => {
                let incident = IncidentKey { cause: cause.clone(), generation };
                self.compare_operator(index, at, &by, incident, &action);
                // One that is about nothing changes nothing.
                Some(Fact::Operator { by, cause, generation, action })
            }
            Fact::AgentSilent { agent, last_heard, silence } => self.silent(at, agent, last_heard, silence),
            Fact::SilenceExpired { by, index } => {
                let index = self.indexes.remove(&index).unwrap_or(index);
                Some(Fact::SilenceExpired { by, index })
            }
            Fact::SecondOpinion { agent, question, answers } => {
                let question = self.replayed_questions.get(&agent).copied().unwrap_or(question);
                Some(Fact::SecondOpinion { agent, question, answers })
            }
            Fact::FreezeLifted { by, index } => {
                let index = self.indexes.remove(&index).unwrap_or(index);
                Some(Fact::FreezeLifted { by, index })
            }
            other => {
                self.look_at(&other);
                Some(other)
            }
        };
        if let Some(fact) = fact {
            let referred = matches!(fact, Fact::FreezeSet { .. } | Fact::SilenceSet { .. });
            let own = self.feed(at, fact);
            if let Some(own) = own.filter(|_| referred) {
                self.indexes.insert(index, own);
            }
        }
        if gap {
            self.listen_anew();
        }
        Ok(())
    }

    /// Facts that say more than they look like.
    fn look_at(&mut self, fact: &Fact) {
        match fact {
            Fact::AgentHeard { agent } | Fact::AgentConnected { agent, .. } => {
                self.later.remove(agent);
            }
            Fact::FindingsLost { .. } => self.doubts.gaps += 1,
            Fact::AgentFlapping { .. } => self.doubts.flapping += 1,
            Fact::Started { .. } | Fact::TookOver { .. } | Fact::Paused { .. } => self.doubts.standstills += 1,
            _ => {}
        }
    }

    /// Feeds a fact and gives its index.
    fn feed(&mut self, at: Timestamp, fact: Fact) -> Option<u64> {
        let entries = self.machine.feed(at, fact);
        let own = entries.iter().find(|entry| matches!(entry.body, EntryBody::Fact(_))).map(|entry| entry.index);
        self.note_replayed(entries);
        own
    }

    fn note_replayed(&mut self, entries: Vec<Entry>) {
        for entry in &entries {
            if let EntryBody::Conclusion(Conclusion::SecondOpinionWanted { agent, .. }) = &entry.body {
                self.replayed_questions.insert(agent.clone(), entry.index);
            }
            if let Some(name) = self.replayed.note(entry) {
                self.replayed_pages.insert(name, PageId(entry.index));
            }
        }
        self.keep(entries);
    }

    /// The other policy's page of the same name. One that it does not send has no outcome.
    fn paged(&mut self, page: PageId, is_over: bool) -> Option<PageId> {
        let name = if is_over { self.recorded_pages.remove(&page) } else { self.recorded_pages.get(&page).cloned() }?;
        let own = if is_over { self.replayed_pages.remove(&name) } else { self.replayed_pages.get(&name).copied() };
        self.doubts.outcomes += u64::from(own.is_none() && is_over);
        own
    }

    /// Notes what a person did about an incident that is not there, or is over, under the other policy alone.
    fn compare_operator(
        &mut self,
        index: u64,
        at: Timestamp,
        by: &str,
        incident: IncidentKey,
        action: &OperatorAction,
    ) {
        let open = |side: &Side| side.incidents.get(&incident).is_some_and(|course| course.resolved.is_none());
        let is_there = self.replayed.incidents.contains_key(&incident);
        let was_there = self.recorded.incidents.contains_key(&incident);
        if (was_there && !is_there) || (open(&self.recorded) && !open(&self.replayed)) {
            let action = action_name(action);
            self.unmatched.push(Unmatched { index, at, by: by.to_owned(), incident, action });
        }
    }

    /// A silence is noticed when the other policy would have; at once where it is no more patient.
    fn silent(&mut self, at: Timestamp, agent: AgentName, last_heard: Timestamp, silence: Silence) -> Option<Fact> {
        let n_agents = u64::try_from(self.machine.state().n_agents()).unwrap_or(u64::MAX);
        let patience = |policy: &LivenessPolicy| match silence {
            Silence::Goodbye => policy.goodbye_grace,
            Silence::HostShutdown => policy.reboot_grace,
            Silence::Reset | Silence::Nothing => policy.heartbeat * policy.stale_after,
            Silence::NotReheard => rehear_window(policy, n_agents),
        };
        let longer = patience(&self.policy.liveness).saturating_sub(patience(&self.recorded_liveness));
        if longer.is_zero() {
            return Some(Fact::AgentSilent { agent, last_heard, silence });
        }
        self.doubts.later += 1;
        self.later.insert(agent, Later { due: at + longer, last_heard, silence });
        None
    }

    /// Feeds the silences that are due by `now`, in their order.
    fn notice_silences(&mut self, now: Timestamp) {
        if self.later.is_empty() {
            return;
        }
        let due = self.later.iter().filter(|(_, later)| later.due <= now);
        let mut due: Vec<(Timestamp, AgentName)> = due.map(|(agent, later)| (later.due, agent.clone())).collect();
        due.sort();
        for (at, agent) in due {
            if let Some(Later { last_heard, silence, .. }) = self.later.remove(&agent) {
                self.feed(at, Fact::AgentSilent { agent, last_heard, silence });
            }
        }
    }

    /// After a start, a takeover or a standstill nobody is silent before the re-hear window is over.
    fn listen_anew(&mut self) {
        let Some(until) = self.machine.state().rehear_until() else { return };
        for later in self.later.values_mut() {
            later.due = later.due.max(until);
        }
    }

    fn must_be_patient(&mut self, recorded: &Policy) -> Result<(), WhatIfError> {
        if recorded.rules_version != RULES_VERSION {
            self.doubts.rules = Some(recorded.rules_version);
        }
        let (other, recorded) = (&self.policy.liveness, &recorded.liveness);
        let stale = |policy: &LivenessPolicy| policy.heartbeat * policy.stale_after;
        let slowest = |policy: &LivenessPolicy| policy.reconnect_max + policy.heartbeat * 2;
        let shorter: [(&'static str, bool); 4] = [
            ("time until an agent is stale (heartbeat times stale_after)", stale(other) < stale(recorded)),
            ("goodbye_grace", other.goodbye_grace < recorded.goodbye_grace),
            ("reboot_grace", other.reboot_grace < recorded.reboot_grace),
            (
                "re-hear window (reconnect_max, heartbeat, admission_per_s)",
                slowest(other) < slowest(recorded) || other.admission_per_s > recorded.admission_per_s,
            ),
        ];
        match shorter.into_iter().find(|(_, is_shorter)| *is_shorter) {
            Some((what, _)) => Err(WhatIfError::TighterLiveness(what)),
            None => Ok(()),
        }
    }

    /// What is known now under the other policy.
    pub fn state(&self) -> &State {
        self.machine.state()
    }

    /// The journal is over.
    pub fn finish(mut self) -> WhatIf {
        self.notice_silences(self.last_at);
        let entries = self.machine.run_deadlines(self.last_at);
        self.note_replayed(entries);
        let unsure = self.doubts.sentences(self.later.len());
        let mut result = WhatIf { unmatched: self.unmatched, unsure, ..WhatIf::default() };
        pages(self.recorded.triggers, self.replayed.triggers, self.machine.state(), &mut result);
        result.incidents = incidents(self.recorded.incidents, self.replayed.incidents);
        result
    }
}

fn action_name(action: &OperatorAction) -> String {
    match action {
        OperatorAction::Acknowledge { .. } => "acknowledge",
        OperatorAction::Resolve { .. } => "resolve",
        OperatorAction::Note { .. } => "note",
        OperatorAction::SetSeverity { .. } => "set severity",
        OperatorAction::SetCommander { .. } => "set commander",
    }
    .to_owned()
}

impl Doubts {
    fn sentences(&self, waiting: usize) -> Vec<String> {
        let mut told = Vec::new();
        let mut tell = |n: u64, words: &str| {
            if n > 0 {
                told.push(format!("{n} {words}"));
            }
        };
        tell(
            self.later,
            "silences are noticed later than recorded: heartbeats are not in the journal, so an agent counts as heard again only where a connect or a word of it was journaled",
        );
        tell(u64::try_from(waiting).unwrap_or(u64::MAX), "of them are not due by the end of the journal");
        tell(self.gaps, "times an agent lost entries before they were sent: what they told is not in the journal");
        tell(
            self.standstills,
            "starts, takeovers or standstills of a coordinator: what agents did meanwhile is known from what they told afterwards alone",
        );
        tell(
            self.flapping,
            "reports of agents that reconnect all the time: single reconnects are counted, not journaled",
        );
        tell(
            self.panics,
            "panics of a rule are recorded and not fed: what it would have concluded is missing from the journal, and the pages about the panics are not compared",
        );
        tell(
            self.outcomes,
            "outcomes belong to pages that the other policy does not send; pages that only it sends have none, so that nobody has taken them",
        );
        if let Some(version) = self.rules {
            told.push(format!(
                "the journal was written under rules version {version}, this program has {RULES_VERSION}: a difference may come from the rules and not from the policy"
            ));
        }
        told
    }
}
