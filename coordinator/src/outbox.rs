//! The pages' outbox as the pagers see it: a view of the journal, not a second truth.

use crate::pager::alertmanager::distinct;
use crate::pager::{Of, Outbox, OutboxError, Outcome, Pending, Standing};
use crate::runtime::{Handle, RuntimeError};
use muster_common::chain::Chain;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::page::{Page, PageAction, PageId};
use muster_coordinator_core::routing::LOOKED_AT_MAX;
use muster_coordinator_core::state::{Incident, PageKey, PageRecord, State};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// The journal's pages without an outcome.
#[derive(Debug, Clone)]
pub struct JournalOutbox {
    handle: Handle,
}

impl JournalOutbox {
    /// Asks the loop behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn is_pending(&self, page: PageId) -> Result<bool, OutboxError> {
        let pending =
            move |view: &crate::runtime::View<'_>| view.state.page(page).is_some_and(|record| record.outcome.is_none());
        self.handle.query(pending).await.map_err(refused)
    }
}

fn refused(error: RuntimeError) -> OutboxError {
    OutboxError(Chain(&error).to_string())
}

/// Runs on the loop's thread: whatever is not asked for is not copied, however many pages wait.
fn cut(state: &State, now: Timestamp, of: Of<'_>, limit: usize) -> Vec<Pending> {
    let mut found: Vec<&PageRecord> = state.sendable_pages();
    found.retain(|record| of.matches(&record.page.receiver));
    found.sort_by_key(|record| (Reverse(record.page.severity), record.id));
    let mut told: BTreeMap<(&str, &str), Vec<&Page>> = BTreeMap::new();
    for record in state.past_pages().filter(|record| of.matches(&record.page.receiver)) {
        let page = &record.page;
        if record.attempted && page.action == PageAction::Trigger {
            told.entry((&page.receiver, &page.dedup_key)).or_default().push(page);
        }
    }
    let pending = |record: &PageRecord| {
        let before = told.get(&(record.page.receiver.as_str(), record.page.dedup_key.as_str()));
        let before = before.map(Vec::as_slice).unwrap_or_default();
        Pending {
            id: record.id,
            page: record.page.clone(),
            attempted: record.attempted,
            tried_for: record.attempted_at.map_or(Duration::ZERO, |first| now.since(first)),
            told_before: distinct(before.iter().map(|page| (page.severity, page.reason))),
            calls: before.last().map(|page| Box::new((*page).clone())),
            acknowledged: state.incident(&record.incident).map(acknowledged).unwrap_or_default(),
        }
    };
    found.into_iter().take(limit).map(pending).collect()
}

/// Who has acknowledged it, in words.
fn acknowledged(incident: &Incident) -> String {
    let owner = incident.owner.as_ref().filter(|_| incident.acknowledged.is_some());
    owner.map(|owner| format!("{owner} acknowledged it")).unwrap_or_default()
}

/// Runs on the loop's thread as well, every few minutes.
fn standing(state: &State, receiver: &str, after: &str, limit: usize) -> Vec<Standing> {
    let mut found: BTreeMap<&str, (&Incident, &PageKey)> = BTreeMap::new();
    for incident in state.incidents().filter(|incident| incident.is_unresolved()) {
        for key in incident.page_keys.iter().filter(|key| key.receiver == receiver && key.dedup_key.as_str() > after) {
            if key.attempted && !key.settled {
                found.insert(&key.dedup_key, (incident, key));
            }
        }
    }
    let mut last: BTreeMap<&str, &PageRecord> = BTreeMap::new();
    // What called somebody; an acknowledgement after it says less.
    let calls = |record: &&PageRecord| record.page.receiver == receiver && record.page.action == PageAction::Trigger;
    for record in state.past_pages().filter(calls) {
        last.insert(&record.page.dedup_key, record);
    }
    let standing = |(dedup_key, (incident, key)): (&str, (&Incident, &PageKey))| {
        let acknowledged = acknowledged(incident);
        match last.get(dedup_key) {
            Some(record) => {
                let page = Page { severity: key.severity, reason: key.reason, ..record.page.clone() };
                Standing { id: Some(record.id), page, acknowledged }
            }
            None => Standing { id: None, page: from_incident(incident, key), acknowledged },
        }
    };
    found.into_iter().take(limit).map(standing).collect()
}

/// What a page said, as far as the incident still knows when the page itself is forgotten.
fn from_incident(incident: &Incident, key: &PageKey) -> Page {
    Page {
        receiver: key.receiver.clone(),
        action: PageAction::Trigger,
        dedup_key: key.dedup_key.clone(),
        incident: incident.number.clone(),
        cause_key: incident.key.cause.clone(),
        severity: key.severity,
        reason: key.reason,
        grade: incident.grade,
        title: incident.title.clone(),
        why: incident.why.clone(),
        details: Vec::new(),
        next_steps: incident.next_steps.clone(),
        agents: incident.agents.iter().take(LOOKED_AT_MAX).map(ToString::to_string).collect(),
        n_agents: incident.agents.len() as u64,
        services: Vec::new(),
        began: incident.began,
        requested: incident.opened,
        late_by_ms: None,
    }
}

impl Outbox for JournalOutbox {
    fn may_page(&self) -> bool {
        self.handle.may_page()
    }

    async fn pending(&self, of: Of<'_>, limit: usize) -> Result<Vec<Pending>, OutboxError> {
        let pages = match of {
            Of::Receiver(name) => {
                let name = name.to_owned();
                self.handle.query(move |view| cut(view.state, view.now, Of::Receiver(&name), limit)).await
            }
            Of::NoneOf(names) => {
                let names = names.to_vec();
                self.handle.query(move |view| cut(view.state, view.now, Of::NoneOf(&names), limit)).await
            }
        };
        pages.map_err(refused)
    }

    async fn attempted(&self, page: PageId) -> Result<bool, OutboxError> {
        if !self.is_pending(page).await? {
            return Ok(false);
        }
        self.handle.submit(Fact::PageAttempted { page }).await.map_err(refused)?;
        // A cancellation may have come in between; from here on there is none.
        self.is_pending(page).await
    }

    async fn concluded(&self, page: PageId, outcome: Outcome) -> Result<(), OutboxError> {
        let (word, fact) = match outcome {
            Outcome::Delivered => ("delivered", Fact::PageDelivered { page }),
            Outcome::Failed(error) => ("failed", Fact::PageFailed { page, error }),
        };
        self.handle.submit(fact).await.map_err(refused)?;
        self.handle.metrics().page(word);
        Ok(())
    }

    async fn failing(&self, receiver: &str, length: Duration, error: String) -> Result<(), OutboxError> {
        let for_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let fact = Fact::ReceiverFailing { receiver: receiver.to_owned(), for_ms, error };
        self.handle.submit(fact).await.map(drop).map_err(refused)
    }

    async fn standing(&self, receiver: &str, after: &str, limit: usize) -> Result<Vec<Standing>, OutboxError> {
        let (receiver, after) = (receiver.to_owned(), after.to_owned());
        let found = self.handle.query(move |view| standing(view.state, &receiver, &after, limit)).await;
        found.map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::ids::{AgentName, CoordinatorId, Epoch, FleetName};
    use muster_common::reason::Reason;
    use muster_common::severity::Severity;
    use muster_coordinator_core::entry::OperatorAction;
    use muster_coordinator_core::machine::Machine;
    use muster_coordinator_core::policy::Policy;

    /// Three incidents, the worst one last, paged to two receivers.
    fn machine() -> Machine {
        let mut machine = Machine::new(State::genesis());
        let now = Timestamp::from_unix_ms(1_795_220_000_000);
        let coordinator = CoordinatorId::new("coord-a").unwrap();
        let mut policy = Policy { receivers: vec!["ops".to_owned(), "chat".to_owned()], ..Policy::default() };
        policy.severities.insert(Reason::CoordinatorFault, Severity::Sev1);
        let epoch = Epoch { number: 1, coordinator: coordinator.clone() };
        let (fleet, version) = (FleetName::new("test").unwrap(), String::new());
        machine.feed(now, Fact::Started { coordinator, fleet, version, epoch });
        machine.feed(now, Fact::PolicyLoaded { policy: Box::new(policy) });
        for agent in ["web-1", "web-2"] {
            let (agent, holder, refused) = (AgentName::new(agent).unwrap(), "a".to_owned(), "b".to_owned());
            machine.feed(now, Fact::IdentityConflict { agent, holder, refused });
        }
        machine.feed(now, Fact::DecidePanicked { entry: 1, message: "it".to_owned() });
        machine.run_deadlines(now + Duration::from_secs(60));
        machine
    }

    #[test]
    fn what_is_asked_for_is_cut_out_worst_first() {
        let machine = machine();
        let found = |of: Of<'_>, limit| -> Vec<(String, Severity)> {
            let pages = cut(machine.state(), machine.state().last_at(), of, limit);
            pages.into_iter().map(|pending| (pending.page.receiver, pending.page.severity)).collect()
        };
        let ops = |severity| ("ops".to_owned(), severity);
        assert_eq!(found(Of::Receiver("ops"), 2), [ops(Severity::Sev1), ops(Severity::Sev2)]);
        assert_eq!(found(Of::Receiver("ops"), 9).len(), 3);
        let others = found(Of::NoneOf(&["ops".to_owned()]), 9);
        assert!(others.len() == 3 && others.iter().all(|(receiver, _)| receiver == "chat"), "{others:?}");
    }

    #[test]
    fn for_how_long_a_page_is_tried_does_not_begin_anew_with_a_process() {
        let mut machine = machine();
        let first = Timestamp::from_unix_ms(1_795_220_000_000) + Duration::from_secs(61);
        let page = cut(machine.state(), first, Of::Receiver("ops"), 1).remove(0).id;
        machine.feed(first, Fact::PageAttempted { page });
        // Another process reads it from the journal, and says once more that it tries.
        let again = first + Duration::from_secs(600);
        machine.feed(again, Fact::PageAttempted { page });
        let state = serde_json::to_vec(machine.state()).unwrap();
        let state: State = serde_json::from_slice(&state).unwrap();
        let pages = cut(&state, again, Of::Receiver("ops"), 9);
        let tried: Vec<_> = pages.iter().map(|pending| (pending.id == page, pending.tried_for.as_secs())).collect();
        assert_eq!(tried, [(true, 600), (false, 0), (false, 0)]);
    }

    #[test]
    fn what_was_acknowledged_is_told_with_what_called_for_it() {
        let mut machine = machine();
        let now = Timestamp::from_unix_ms(1_795_220_000_000) + Duration::from_secs(61);
        let pages: Vec<PageId> = machine.state().pending_pages().map(|record| record.id).collect();
        for page in pages {
            machine.feed(now, Fact::PageAttempted { page });
            machine.feed(now, Fact::PageDelivered { page });
        }
        let incident = machine.state().newest_incident("coordinator/fault").unwrap().key.clone();
        let (cause, generation) = (incident.cause, incident.generation);
        let action = OperatorAction::Acknowledge { note: String::new() };
        machine.feed(now, Fact::Operator { by: "ada".to_owned(), cause, generation, action });
        let pending = cut(machine.state(), now, Of::Receiver("ops"), 9);
        let [acknowledgement] = pending.as_slice() else { panic!("{pending:?}") };
        assert_eq!(acknowledgement.page.action, PageAction::Acknowledge);
        assert!(acknowledgement.calls.as_ref().is_some_and(|page| page.action == PageAction::Trigger));
        let (id, told) = (acknowledgement.id, "ada acknowledged it");
        machine.feed(now, Fact::PageAttempted { page: id });
        machine.feed(now, Fact::PageDelivered { page: id });
        let standing = standing(machine.state(), "ops", "", 9);
        let acknowledged: Vec<_> = standing.iter().filter(|one| one.acknowledged == told).collect();
        assert_eq!((standing.len(), acknowledged.len()), (3, 1));
        assert!(standing.iter().all(|one| one.page.action == PageAction::Trigger), "{standing:?}");
    }
}
