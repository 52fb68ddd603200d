//! The post-incident note: what State knows of one incident, for people who were not there. As data ([`Note`], for JSON)
//! and as Markdown ([`markdown()`]).
//!
//! Deterministic, bounded by what State keeps of an incident. Everything in it may come from a hostile host: the Markdown
//! escapes all of it. Must say what is not known rather than leave it out.

mod chain;
mod markdown;

pub use markdown::markdown;

use crate::changes;
use crate::entry::Resolution;
use crate::explain::{first_page, held_back};
use crate::policy::Policy;
use crate::state::{Incident, IncidentStatus, PageRecord, State, TIMELINE_MAX};
use crate::timeline::{ACKNOWLEDGEMENT_ENDED, LineKind};
use crate::working_days::later;
use muster_common::evidence::Grade;
use muster_common::ids::AgentName;
use muster_common::time::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Hosts named in a note; the whole count stands beside them.
const HOSTS_MAX: usize = 100;
/// Links of the chain of causes.
const LINKS_MAX: usize = 40;
/// Reason codes told, those seen most often.
const REASONS_MAX: usize = 10;

/// A post-incident note.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Note {
    /// Of this form.
    pub format_version: u32,
    /// `INC-…`.
    pub incident: String,
    /// One sentence.
    pub title: String,
    /// How bad it is, or was when it ended.
    pub severity: String,
    /// open, recovering or resolved.
    pub state: String,
    /// The reason code it goes by.
    pub reason: String,
    /// How sure that is.
    pub grade: String,
    /// Cause key.
    pub cause: String,
    /// Which time this cause raised an incident.
    pub generation: u64,
    /// Of which fleet.
    pub fleet: String,
    /// When this note was made, log time.
    pub made: String,
    /// Why it was opened, or raised last: rule, values, thresholds.
    pub why: String,
    /// Who led, and who took it.
    pub people: People,
    /// Whom it hit, for how long, who was told.
    pub impact: Impact,
    /// What led to it, the most telling first.
    pub causes: Vec<Link>,
    /// Reason codes of what was folded in, those seen most often first.
    pub reasons: Vec<Count>,
    /// What happened to it, oldest first.
    pub timeline: Vec<Line>,
    /// What people did.
    pub actions: Vec<Line>,
    /// Pages that State still keeps.
    pub pages: Vec<PageLine>,
    /// What changed on its hosts shortly before.
    pub changes: Vec<String>,
    /// Journal entries that begin what followed: `musterctl trace ID` shows all of it.
    pub traces: Vec<u64>,
    /// Under which thresholds.
    pub configuration: Configuration,
    /// What is left to do.
    pub follow_ups: Vec<String>,
    /// What is not known.
    pub unknown: Vec<String>,
}

/// Who.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct People {
    /// Who leads the response.
    pub commander: Option<String>,
    /// Who acknowledged it.
    pub owner: Option<String>,
    /// When that did not hold any more, since it got much worse.
    pub acknowledgement_ended: Option<String>,
}

/// Whom it hit, for how long, who was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Impact {
    /// How many hosts.
    pub n_hosts: usize,
    /// Some of them.
    pub hosts: Vec<String>,
    /// Services.
    pub services: Vec<String>,
    /// Findings and symptoms folded in.
    pub n_findings: u64,
    /// When it began, by the hosts' word.
    pub began: String,
    /// When it was concluded.
    pub opened: String,
    /// When somebody took it.
    pub acknowledged: Option<String>,
    /// When it was over.
    pub resolved: Option<String>,
    /// How it ended.
    pub resolution: Option<String>,
    /// From its beginning to its end, or to now.
    pub lasted_ms: u64,
    /// From its beginning to the first page that a receiver took.
    pub until_told_ms: Option<u64>,
    /// Whose page goes on for it, where that was taken before it was opened.
    pub told_before: Option<String>,
    /// From its opening to the first page that was asked for: what its hold came to.
    pub held_ms: Option<u64>,
    /// From its opening to the acknowledgement.
    pub until_acknowledged_ms: Option<u64>,
    /// From its opening to its end.
    pub until_resolved_ms: Option<u64>,
    /// Pages that receivers took.
    pub pages_delivered: u64,
    /// Pages that were given up.
    pub pages_given_up: u64,
    /// Why nobody was paged, where nobody was.
    pub not_paged: Option<String>,
    /// How often it came back before it was over.
    pub relapses: u64,
    /// How often nobody acknowledged it in time.
    pub escalations: u64,
}

/// A link of the chain of causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// How sure.
    pub grade: Option<&'static str>,
    /// What: a reason code, or `symptom`.
    pub what: String,
    /// In words.
    pub words: String,
}

/// How often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Reason code.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// A line of the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// When.
    pub at: String,
    /// fact, decision, page or operator.
    pub kind: &'static str,
    /// What.
    pub text: String,
    /// Entry of the journal.
    pub index: u64,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PageLine {
    /// When it was asked for.
    pub at: String,
    /// Its id.
    pub page: u64,
    /// trigger, acknowledge or resolve.
    pub action: &'static str,
    /// To whom.
    pub receiver: String,
    /// What became of it.
    pub outcome: String,
    /// Why.
    pub why: String,
}

/// The policy that counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Configuration {
    /// As of when.
    pub as_of: String,
    /// True when it is the one in force when the incident was opened.
    pub at_opening: bool,
    /// All of it; it holds no secret.
    pub policy: Policy,
}

/// Milliseconds.
fn ms(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// The note about `incident` as State knows it `now`. `then`: the policy in force when it was opened, where that could be
/// told.
pub fn note(state: &State, incident: &Incident, now: Timestamp, then: Option<&Policy>) -> Note {
    let policy = then.unwrap_or(state.policy());
    let timeline: Vec<Line> = incident.timeline.iter().map(Line::of).collect();
    let pages: Vec<&PageRecord> = pages_of(state, incident);
    Note {
        format_version: 1,
        incident: incident.number.clone(),
        title: incident.title.clone(),
        severity: incident.severity.to_string(),
        state: status(incident).to_owned(),
        reason: incident.reason.to_string(),
        grade: incident.grade.as_str().to_owned(),
        cause: incident.key.cause.clone(),
        generation: incident.key.generation,
        fleet: incident.fleet.clone(),
        made: now.to_string(),
        why: incident.why.clone(),
        people: people(incident),
        impact: impact(state, incident, now),
        causes: chain::causes(state, incident, &pages),
        reasons: chain::reasons(state, incident),
        actions: timeline.iter().filter(|line| line.kind == LineKind::Operator.as_str()).cloned().collect(),
        traces: traces(incident),
        pages: pages.iter().map(|record| PageLine::of(record)).collect(),
        changes: told_or_known(changes::lines(state, incident), &incident.changes),
        configuration: Configuration {
            as_of: if then.is_some() { incident.opened } else { now }.to_string(),
            at_opening: then.is_some(),
            policy: policy.clone(),
        },
        follow_ups: follow_ups(incident, policy),
        unknown: unknown(state, incident, then.is_some()),
        timeline,
    }
}

/// What is known now, or what was written down while it was open.
fn told_or_known(now: Vec<String>, then: &[String]) -> Vec<String> {
    if now.is_empty() { then.to_vec() } else { now }
}

fn people(incident: &Incident) -> People {
    People {
        commander: incident.response.commander.clone(),
        owner: incident.owner.clone(),
        acknowledgement_ended: ended(incident).map(|at| at.to_string()),
    }
}

/// When somebody first took it: also where that did not hold to its end.
fn taken(incident: &Incident) -> Option<Timestamp> {
    let acts = incident.timeline.iter().filter(|line| line.kind == LineKind::Operator);
    let first = acts.filter(|line| line.text.starts_with("acknowledged by ")).map(|line| line.at);
    first.chain(incident.acknowledged).min()
}

/// When an acknowledgement ended that nobody repeated.
fn ended(incident: &Incident) -> Option<Timestamp> {
    let worse = incident.timeline.iter().rev().find(|line| line.text == ACKNOWLEDGEMENT_ENDED);
    worse.filter(|_| incident.acknowledged.is_none()).map(|line| line.at)
}

fn status(incident: &Incident) -> &'static str {
    match incident.status {
        IncidentStatus::Open => "open",
        IncidentStatus::Recovering => "recovering",
        IncidentStatus::Resolved => "resolved",
    }
}

impl Line {
    fn of(line: &crate::timeline::TimelineLine) -> Self {
        Self { at: line.at.to_string(), kind: line.kind.as_str(), text: line.text.clone(), index: line.index }
    }
}

impl PageLine {
    fn of(record: &PageRecord) -> Self {
        use crate::state::PageOutcome as O;
        let outcome = match &record.outcome {
            None if record.attempted => "tried, no answer yet".to_owned(),
            None => "on its way".to_owned(),
            Some(O::Delivered) => "accepted".to_owned(),
            Some(O::Failed { error }) => format!("given up: {error}"),
            Some(O::Cancelled { why }) => format!("not sent: {why}"),
        };
        let page = &record.page;
        Self {
            at: page.requested.to_string(),
            page: record.id.0,
            action: page.action.as_str(),
            receiver: page.receiver.clone(),
            outcome,
            why: page.why.clone(),
        }
    }
}

/// Oldest first; those that are kept.
fn pages_of<'a>(state: &'a State, incident: &Incident) -> Vec<&'a PageRecord> {
    let dead = state.dead_letters().map(|letter| &letter.record);
    let all = state.past_pages().chain(state.pending_pages()).chain(dead);
    let own: BTreeMap<_, _> =
        all.filter(|record| record.incident == incident.key).map(|record| (record.id, record)).collect();
    own.into_values().collect()
}

fn impact(state: &State, incident: &Incident, now: Timestamp) -> Impact {
    let end = incident.resolved.unwrap_or(now);
    let since_opened = |time: Option<Timestamp>| time.map(|time| ms(time.since(incident.opened)));
    let resolution = incident.resolution.as_ref().map(|resolution| match resolution {
        Resolution::Evidence => crate::decide::ended(incident).to_owned(),
        Resolution::Operator { by, summary } => format!("closed by {by}: {summary}"),
        Resolution::FoldedInto { incident } => format!("a symptom of {}", number_of(state, incident)),
        Resolution::MergedInto { incident } => format!("merged into {}", number_of(state, incident)),
    });
    // A page that was taken before it was opened is that of an older incident, which it goes on for.
    let (own, adopted) = match incident.first_delivered {
        Some(at) if at < incident.opened => (None, Some(at)),
        first => (first, None),
    };
    let whose = incident.response.adopted.as_ref().map_or("an older incident", |adopted| adopted.number.as_str());
    Impact {
        n_hosts: incident.agents.len(),
        hosts: incident.agents.iter().take(HOSTS_MAX).map(AgentName::to_string).collect(),
        services: incident.services_named().map(str::to_owned).collect(),
        n_findings: u64::try_from(incident.members.len()).unwrap_or(u64::MAX).saturating_add(incident.members_dropped),
        began: incident.began.to_string(),
        opened: incident.opened.to_string(),
        acknowledged: taken(incident).map(|at| at.to_string()),
        resolved: incident.resolved.map(|at| at.to_string()),
        resolution,
        lasted_ms: ms(end.since(incident.began)),
        until_told_ms: own.map(|at| ms(at.since(incident.began))),
        told_before: adopted.map(|at| format!("the page of {whose}, taken at {at}, goes on for it")),
        held_ms: since_opened(first_page(incident).map(|line| line.at)),
        until_acknowledged_ms: since_opened(taken(incident)),
        until_resolved_ms: since_opened(incident.resolved),
        pages_delivered: incident.pages_delivered,
        pages_given_up: incident.triggers_failed,
        not_paged: held_back(state, incident, now).map(|(_, why)| why),
        relapses: incident.relapses,
        escalations: incident.response.escalations,
    }
}

fn number_of(state: &State, key: &crate::entry::IncidentKey) -> String {
    state.incident(key).map_or_else(|| key.cause.clone(), |incident| incident.number.clone())
}

fn traces(incident: &Incident) -> Vec<u64> {
    // Facts begin a trace; conclusions and pages are what followed from one.
    let facts = incident.timeline.iter().filter(|line| matches!(line.kind, LineKind::Fact | LineKind::Operator));
    let all: BTreeSet<u64> = facts.map(|line| line.index).collect();
    all.into_iter().collect()
}

fn follow_ups(incident: &Incident, policy: &Policy) -> Vec<String> {
    let mut todo = Vec::new();
    if incident.grade != Grade::Confirmed {
        todo.push(format!("find out what it was: its cause is {} only", incident.grade.as_str()));
    }
    todo.push(format!("compare with docs/runbooks/{}.md, and write down there what it lacked", incident.reason));
    todo.extend(incident.next_steps.iter().cloned());
    if incident.triggers_failed > 0 {
        todo.push(
            "mend the receivers that did not take their pages (musterctl receivers list, receivers test)".to_owned(),
        );
    }
    let expected = *policy.response.get(incident.severity);
    let by = later(incident.opened, expected, &policy.working_days);
    match taken(incident) {
        _ if ended(incident).is_some() => {
            todo.push("find out why nobody acknowledged it again after it got much worse".to_owned());
        }
        None if incident.has_paged() && incident.owner.is_none() => {
            todo.push("find out why nobody acknowledged it".to_owned())
        }
        Some(at) if at > by && !expected.is_zero() => {
            todo.push("find out why it was acknowledged later than expected".to_owned());
        }
        _ => {}
    }
    if incident.relapses > 0 {
        todo.push("find out why it came back: what was done did not last".to_owned());
    }
    if incident.is_unresolved() {
        todo.push("make this note again when it is resolved".to_owned());
    }
    todo.push("name who does each of these, and until when".to_owned());
    todo
}

fn unknown(state: &State, incident: &Incident, policy_known: bool) -> Vec<String> {
    let mut unknown = Vec::new();
    if incident.timeline.len() >= TIMELINE_MAX {
        unknown.push(format!("the middle of the timeline: only {TIMELINE_MAX} lines are kept, the journal has them all (musterctl events list --incident {})", incident.number));
    }
    if incident.members_dropped > 0 {
        unknown.push(format!("the names of {} more findings that belong to it", incident.members_dropped));
    }
    if !policy_known {
        unknown.push(
            "the configuration at its opening: the journal does not reach back that far, the present one is shown"
                .to_owned(),
        );
    }
    let silent: Vec<&str> = incident.blind.iter().map(AgentName::as_str).take(10).collect();
    if !silent.is_empty() {
        unknown.push(format!("what went on while these were not heard: {}", silent.join(", ")));
    }
    let lost = incident.agents.iter().filter_map(|agent| state.agent(agent)).filter(|record| record.entries_lost > 0);
    let lost: Vec<String> = lost.take(10).map(|record| format!("{} ({})", record.name, record.entries_lost)).collect();
    if !lost.is_empty() {
        unknown.push(format!("what these hosts had to forget before it was sent, in entries: {}", lost.join(", ")));
    }
    if !incident.is_unresolved() {
        unknown.push(
            "the evidence of what is over: a bundle of the journal has it (musterctl incidents export --bundle)"
                .to_owned(),
        );
    }
    unknown.push("what it meant for customers, and what it cost: only people know".to_owned());
    unknown
}
