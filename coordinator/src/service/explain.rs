//! `Explain`: asks the core why, now or in the past, and tells it on the wire.
//!
//! The past is rebuilt beside the loop, by one of few threads and with a deadline.

use super::status_of;
use crate::runtime::{Handle, View};
use crate::store::JournalStore;
use crate::store::past::{PastError, state_at};
use muster_common::chain::Chain;
use muster_common::ids::{AgentName, ServiceName};
use muster_common::limits::{SUBJECT_BYTES_MAX, clip};
use muster_common::time::Timestamp;
use muster_coordinator_core::explain::{
    Asked, Explanation, Figure, Outcome, RuleLook, held_back, unheard_service, why, why_finding, why_not, why_page,
};
use muster_coordinator_core::page::PageId;
use muster_coordinator_core::state::State;
use muster_proto::convert::{grade_to_wire, timestamp_to_wire};
use muster_proto::v1::explain_request::About;
use muster_proto::v1::{self, RuleOutcome};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tonic::Status;

/// Questions about the past that are answered at once: each holds a State of its own. Overflow rule: the next one waits,
/// up to the deadline.
const PAST_AT_ONCE: usize = 2;
/// Until a question about the past is given up.
const PAST_DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of an id: a finding's, which holds an agent, a service and a subject.
const ID_BYTES_MAX: usize = SUBJECT_BYTES_MAX + 512;

static PAST: Semaphore = Semaphore::const_new(PAST_AT_ONCE);

/// Answers.
pub(super) async fn explain(handle: &Handle, request: v1::ExplainRequest) -> Result<v1::ExplainResponse, Status> {
    let explanation = match request.about {
        None => return Err(Status::invalid_argument("ask about an id (INC-…, a page, a finding), or why_not a host")),
        Some(About::Id(id)) => about_id(handle, id).await?,
        Some(About::WhyNot(asked)) => about_host(handle, asked).await?,
    };
    Ok(wire(explanation))
}

async fn about_id(handle: &Handle, id: String) -> Result<Explanation, Status> {
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(Status::invalid_argument(
            "id is empty or too long: give INC-YYYYMMDD-NNNN, a page's number or a finding's id",
        ));
    }
    let shown = clip(&id, 100);
    let read = move |view: &View<'_>| {
        if let Some(incident) = view.state.incident_by_number(&id) {
            return Some(why(view.state, incident, view.now));
        }
        let page = id.strip_prefix("PAGE-").unwrap_or(&id).parse().map(PageId);
        match page {
            Ok(page) => why_page(view.state, page, view.now),
            Err(_) => why_finding(view.state, &id, view.now),
        }
    };
    let found = handle.query(read).await.map_err(|error| status_of(&error))?;
    found.ok_or_else(|| {
        Status::not_found(format!(
            "nothing is known of {shown:?}: give an incident (musterctl incidents list --all), the number of a page that is kept, or a finding's id (agent/service/probe/subject/reason)"
        ))
    })
}

async fn about_host(handle: &Handle, asked: v1::WhyNot) -> Result<Explanation, Status> {
    let agent = AgentName::new(asked.agent.as_str())
        .map_err(|error| Status::invalid_argument(format!("agent is no name of an agent: {error}")))?;
    let service = (!asked.service.is_empty()).then(|| ServiceName::new(asked.service.as_str())).transpose();
    let service =
        service.map_err(|error| Status::invalid_argument(format!("service is no name of a service: {error}")))?;
    let now = handle.now();
    let Some(at) = asked.at else { return at_present(handle, agent, service).await };
    let at = muster_proto::convert::timestamp(&at);
    if at > now {
        return Err(Status::invalid_argument(format!("at is in the future: it is {now} by this coordinator's clock")));
    }
    in_the_past(handle, agent, service, at).await
}

async fn at_present(handle: &Handle, agent: AgentName, service: Option<ServiceName>) -> Result<Explanation, Status> {
    let read = move |view: &View<'_>| {
        let last_heard = view.liveness.last_heard(&agent);
        let service = service.as_ref();
        let asked = Asked { agent: &agent, at: view.now, service, last_heard, is_past: false };
        why_not(view.state, &asked).ok_or_else(|| unknown_agent(view.state, view.store, &agent))
    };
    handle.query(read).await.map_err(|error| status_of(&error))?
}

async fn in_the_past(
    handle: &Handle,
    agent: AgentName,
    service: Option<ServiceName>,
    at: Timestamp,
) -> Result<Explanation, Status> {
    let told = past(handle, move |store, deadline| {
        let state = state_at(store, at, deadline)?;
        let asked = Asked { agent: &agent, at, service: service.as_ref(), last_heard: None, is_past: true };
        Ok(why_not(&state, &asked).ok_or_else(|| unknown_agent(&state, store, &agent)))
    })
    .await?;
    let mut explanation = told?;
    what_became(handle, &mut explanation).await?;
    Ok(explanation)
}

/// What was held back then may have been told since.
async fn what_became(handle: &Handle, explanation: &mut Explanation) -> Result<(), Status> {
    let open = explanation.rules.iter().filter(|look| look.outcome == Outcome::HeldBack && !look.incident.is_empty());
    let numbers: Vec<String> = open.map(|look| look.incident.clone()).collect();
    if numbers.is_empty() {
        return Ok(());
    }
    let read = move |view: &View<'_>| {
        let known = numbers.into_iter().filter_map(|number| {
            let incident = view.state.incident_by_number(&number)?;
            Some((number, held_back(view.state, incident, view.now).map(|(_, why)| why)))
        });
        known.collect::<BTreeMap<String, Option<String>>>()
    };
    let became = handle.query(read).await.map_err(|error| status_of(&error))?;
    for look in &mut explanation.rules {
        let Some(since) = became.get(&look.incident).filter(|_| look.outcome == Outcome::HeldBack) else { continue };
        look.why = match since {
            None => format!("{}; it has paged since", look.why),
            // Nothing has changed: the same reason twice says no more.
            Some(why) if look.why.contains(why) => format!("{}; it has paged nobody to this day", look.why),
            Some(why) => format!("{}; it has paged nobody to this day: {why}", look.why),
        };
    }
    Ok(())
}

/// What to say of an empty list about a service that nobody told of.
pub(super) fn doubted_service(state: &State, service: &str, found: i32) -> String {
    let asked = !service.is_empty() && found == 0;
    asked.then(|| unheard_service(state, None, service)).flatten().unwrap_or_default()
}

/// Of one that was forgotten by hand it is known by whom, and when as long as the journal has the entry.
fn unknown_agent(state: &State, store: &dyn JournalStore, agent: &AgentName) -> Status {
    let Some(archived) = state.archived(agent) else {
        let text = format!("no agent {agent} was known then: see musterctl agents list for those that are");
        return Status::not_found(text);
    };
    let entries = store.entries_from(archived.index, 1).unwrap_or_default();
    let entry = entries.first().filter(|stored| stored.index == archived.index).and_then(|stored| stored.decode().ok());
    let at = entry.map(|entry| format!(" at {}", entry.at)).unwrap_or_default();
    Status::not_found(format!(
        "{agent} was archived by {}{at} ({}), and nothing of it is kept: ask about a time before that (--at)",
        archived.by, archived.reason
    ))
}

/// Runs a question about the past beside the loop.
pub(super) async fn past<T: Send + 'static>(
    handle: &Handle,
    question: impl FnOnce(&dyn JournalStore, Instant) -> Result<T, PastError> + Send + 'static,
) -> Result<T, Status> {
    let slow = || past_status(&PastError::TooSlow);
    let deadline = Instant::now() + PAST_DEADLINE;
    let slot = tokio::time::timeout(PAST_DEADLINE, PAST.acquire()).await.map_err(|_| slow())?;
    let slot = slot.map_err(|_| Status::unavailable("the coordinator is stopping: try again in a few seconds"))?;
    let store = handle.query(|view: &View<'_>| view.store.beside()).await.map_err(|error| status_of(&error))?;
    let store = store.map_err(|error| past_status(&error.into()))?;
    let answer = tokio::task::spawn_blocking(move || question(store.as_ref(), deadline)).await;
    drop(slot);
    let answer = answer.map_err(|error| Status::internal(format!("a question about the past panicked: {error}")))?;
    answer.map_err(|error| past_status(&error))
}

pub(super) fn past_status(error: &PastError) -> Status {
    let text = Chain(error).to_string();
    match error {
        PastError::TooOld(_) | PastError::TooFar(_) => Status::out_of_range(text),
        PastError::TooSlow => Status::deadline_exceeded(text),
        PastError::Store(_) | PastError::Snapshot { .. } => Status::internal(text),
    }
}

fn wire(explanation: Explanation) -> v1::ExplainResponse {
    let Explanation { answer, rules, unknown } = explanation;
    v1::ExplainResponse { answer, rules: rules.into_iter().map(rule).collect(), unknown }
}

fn rule(look: RuleLook) -> v1::RuleExplanation {
    let outcome = match look.outcome {
        Outcome::Paged => RuleOutcome::Paged,
        Outcome::HeldBack => RuleOutcome::HeldBack,
        Outcome::BelowThreshold => RuleOutcome::BelowThreshold,
        Outcome::NothingSeen => RuleOutcome::NothingSeen,
    };
    let figure = |Figure { name, value, threshold }| v1::Figure { name, value, threshold };
    v1::RuleExplanation {
        rule: look.rule,
        about: look.about,
        outcome: outcome.into(),
        held_back_by: look.held_back_by,
        why: look.why,
        figures: look.figures.into_iter().map(figure).collect(),
        grade: look.grade.map(grade_to_wire).unwrap_or_default(),
        at: look.at.map(timestamp_to_wire),
        journal_index: look.index,
        incident: look.incident,
    }
}
