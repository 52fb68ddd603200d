//! Whether to page, and with what: once per incident and receiver, again only when it got worse or better explained.

use super::assess::{Assessment, assess};
use super::{Case, human};
use crate::apply::incidents::hold_of;
use crate::cause;
use crate::changes;
use crate::entry::{Conclusion, Resolution};
use crate::page::{Page, PageAction};
use crate::response::{ESCALATIONS_MAX, asks, unanswered};
use crate::routing::told;
use crate::signals;
use crate::state::{Cause, Incident, IncidentStatus, PageKey, State};
use muster_common::time::Timestamp;

/// Hosts named in a page; the whole count is told beside them.
const AGENTS_NAMED_MAX: usize = 50;
/// Later than this many heartbeats is worth telling.
const LATE_HEARTBEATS: u32 = 3;

/// The next page about an unresolved incident, or the reason for none.
pub(super) fn page(case: Case<'_>) -> Option<Conclusion> {
    let incident = case.incident;
    if !incident.hold_over {
        return None;
    }
    if !incident.has_paged()
        && let Some(why) = why_not(case)
    {
        let incident_key = incident.key.clone();
        return (!incident.explained).then_some(Conclusion::NotPaged { incident: incident_key, why });
    }
    let is_held_back = match held_back(case.state, incident) {
        HeldBack::No => false,
        HeldBack::Told => true,
        HeldBack::News(conclusion) => return Some(conclusion),
    };
    let dedup = incident.dedup_key();
    let triggers = if is_held_back { None } else { trigger(case, &dedup) };
    triggers.or_else(|| acknowledge(case, &dedup)).or_else(|| replaced(case.state, case.now, incident, &dedup))
}

/// Whether a silence holds pages back that call somebody. What was told before is acknowledged and resolved all the same.
enum HeldBack {
    No,
    /// The timeline says so already.
    Told,
    News(Conclusion),
}

fn held_back(state: &State, incident: &Incident) -> HeldBack {
    let Some((index, silence)) = state.silence_of(incident) else { return HeldBack::No };
    let told = incident.response.silenced_by;
    if state.silences_of(incident).any(|(known, _)| told == Some(known)) {
        return HeldBack::Told;
    }
    let why = format!("{} {}", silence.kind.as_str(), silence.words());
    HeldBack::News(Conclusion::IncidentSilenced { incident: incident.key.clone(), silence: index, why })
}

/// The next page that calls somebody, under the key that counts now.
fn trigger(case: Case<'_>, dedup: &str) -> Option<Conclusion> {
    let Case { state, now, incident, found, .. } = case;
    if let Some(escalation) = escalate(state, now, incident) {
        return Some(escalation);
    }
    if let Some(wanted) = resend(case, dedup) {
        return Some(wanted);
    }
    for told in told(state, incident) {
        let receiver = told.receiver;
        let known = incident.page_keys.iter().find(|page| page.receiver == receiver && page.dedup_key == dedup);
        let why = match known {
            None => first_page(incident, found, told.in_place_of),
            Some(known) if incident.severity > known.severity => format!("worse than told before: {}", incident.why),
            Some(known) if incident.reason != known.reason => format!("better explained: {}", incident.why),
            Some(known) if known.escalations < incident.response.escalations && !escalates_itself(state, receiver) => {
                let (count, waited) = (incident.response.escalations, unanswered(state.policy(), incident, now));
                format!("escalation {count}: {waited}; {}", incident.why)
            }
            Some(_) => continue,
        };
        // Someone who joins the receivers later hears of what is open; of what recovers only those who were told, and
        // those whose page is still to come in the round that the first one began.
        let round = incident.page_keys.iter().any(|page| page.dedup_key == dedup);
        let joined_later = round && !incident.receivers.iter().any(|told| told == receiver);
        if known.is_none() && joined_later && incident.status == IncidentStatus::Recovering {
            continue;
        }
        let page = build(case, receiver, dedup, PageAction::Trigger, &why);
        return Some(Conclusion::PageRequested { incident: incident.key.clone(), page: Box::new(page), why });
    }
    None
}

fn escalates_itself(state: &State, receiver: &str) -> bool {
    state.policy().self_escalating.contains(receiver)
}

/// Nobody acknowledged it in time: it is told again to those whose receivers do not see to that themselves. Not while it
/// recovers, and not when it was made milder meanwhile than what is paged.
fn escalate(state: &State, now: Timestamp, incident: &Incident) -> Option<Conclusion> {
    let (policy, response) = (state.policy(), &incident.response);
    let due = response.escalation_due
        && incident.acknowledged.is_none()
        && incident.status == IncidentStatus::Open
        && incident.severity >= policy.page_from
        && response.escalations < ESCALATIONS_MAX;
    let anybody = || told(state, incident).iter().any(|told| !escalates_itself(state, told.receiver));
    let why = || unanswered(policy, incident, now);
    let count = response.escalations + 1;
    (due && anybody()).then(|| Conclusion::IncidentEscalated { incident: incident.key.clone(), count, why: why() })
}

fn acknowledge(case: Case<'_>, dedup: &str) -> Option<Conclusion> {
    let incident = case.incident;
    let owner = incident.owner.as_ref().filter(|_| incident.acknowledged.is_some())?;
    let page_key = incident.page_keys.iter().find(|page| !page.acknowledged && page.dedup_key == dedup)?;
    let why = format!("{owner} acknowledged it");
    let page = build(case, &page_key.receiver, dedup, PageAction::Acknowledge, &why);
    Some(Conclusion::PageRequested { incident: incident.key.clone(), page: Box::new(page), why })
}

/// A page that an operator wants to be sent again: under the key that counts now.
fn resend(case: Case<'_>, dedup: &str) -> Option<Conclusion> {
    let Case { state, incident, .. } = case;
    let configured = |receiver: &String| state.policy().receivers.contains(receiver);
    let (receiver, wish) = incident.resend.iter().find(|(receiver, _)| configured(receiver))?;
    let why = format!("{} sends the page {} again, which was given up: {}", wish.by, wish.page.0, incident.why);
    let page = build(case, receiver, dedup, wish.action, &why);
    Some(Conclusion::PageRequested { incident: incident.key.clone(), page: Box::new(page), why })
}

fn why_not(Case { state, now, incident, found, .. }: Case<'_>) -> Option<String> {
    let policy = state.policy();
    if incident.severity < policy.page_from {
        return Some(format!(
            "{} is less bad than {}, from which on pages go out",
            incident.severity, policy.page_from
        ));
    }
    if told(state, incident).is_empty() {
        let other = if policy.receivers.is_empty() { "" } else { "other " };
        return Some(format!("no {other}receiver is configured"));
    }
    if let Some(owner) = incident.owner.as_ref().filter(|_| incident.acknowledged.is_some()) {
        return Some(format!("{owner} acknowledged it before its hold was over"));
    }
    if incident.status == IncidentStatus::Recovering
        && let Some(silence) = &incident.response.unsilenced
    {
        return Some(format!("it was over when {silence}"));
    }
    let happened = found.is_some_and(|found| found.happened);
    if incident.status == IncidentStatus::Recovering && !happened && !signals::flaps(state, now, &incident.key.cause) {
        let hold = hold_of(state, incident.reason, incident.severity);
        return Some(match hold.is_zero() {
            true => "it cleared before it was paged".to_owned(),
            false => format!("it cleared within the hold of {}", human(hold)),
        });
    }
    None
}

fn first_page(incident: &Incident, found: Option<&Assessment>, in_place_of: Option<&str>) -> String {
    let why = why_page(incident, found);
    match in_place_of {
        Some(failing) => format!("the receiver {failing} does not take its pages, you are told in its place: {why}"),
        None => why,
    }
}

fn why_page(incident: &Incident, found: Option<&Assessment>) -> String {
    let why = why_now(incident, found);
    match &incident.response.unsilenced {
        Some(silence) => format!("{silence}, and it is still open: {why}"),
        None => why,
    }
}

fn why_now(incident: &Incident, found: Option<&Assessment>) -> String {
    // Nothing but flapping pages what recovers and did not happen at one moment.
    if incident.status == IncidentStatus::Recovering
        && incident.relapses > 0
        && !found.is_some_and(|found| found.happened)
    {
        return format!("it came back {} times: {}", incident.relapses, incident.why);
    }
    match found.filter(|found| found.happened && !found.open) {
        Some(found) => format!("it happened, although nothing is open now: {}", found.worst),
        None => incident.why.clone(),
    }
}

/// A key that is not in use any more, since the page goes on under another one: resolved there where the new one is told.
fn replaced(state: &State, now: Timestamp, incident: &Incident, in_use: &str) -> Option<Conclusion> {
    let is_told = |receiver: &str| {
        let mut keys = incident.page_keys.iter();
        keys.any(|page| page.receiver == receiver && page.dedup_key == in_use)
            || !told(state, incident).iter().any(|told| told.receiver == receiver)
    };
    let mut old = incident.page_keys.iter().filter(|page| page.dedup_key != in_use && !page.settled);
    let page_key = old.find(|page| is_told(&page.receiver))?;
    let why = match &incident.response.adopted {
        Some(adopted) if adopted.key != incident.key => {
            format!("merged into {}, whose page goes on as that of {}", adopted.number, incident.number)
        }
        _ => format!("{} is told under a new key: {}", incident.number, incident.why),
    };
    Some(settle_key(state, now, incident, page_key, why))
}

/// Settles what was paged about a resolved incident: cancels what was never tried, resolves what may have arrived.
pub(super) fn settle(state: &State, now: Timestamp, incident: &Incident) -> Option<Conclusion> {
    let open: Option<&PageKey> = incident.page_keys.iter().find(|page| !page.settled);
    let page_key = open?;
    let why = match &incident.resolution {
        Some(Resolution::Evidence) | None => "it is over".to_owned(),
        Some(Resolution::Operator { by, summary }) => format!("{by} closed it: {summary}"),
        Some(Resolution::FoldedInto { incident }) => match state.incident(incident) {
            Some(target) => format!("it is a symptom of {}", target.number),
            None => format!("it is a symptom of {}", incident.cause),
        },
        Some(Resolution::MergedInto { incident }) => match state.incident(incident) {
            Some(target) => format!("merged into {}", target.number),
            None => format!("merged into {}", incident.cause),
        },
    };
    let last = incident.timeline.iter().rev().find(|line| line.text.starts_with("resolved: "));
    let untried = page_key.pending.iter().any(|id| state.page(*id).is_some_and(|record| !record.attempted));
    let why = last.filter(|_| !untried).map_or(why, |line| line.text.clone());
    Some(settle_key(state, now, incident, page_key, why))
}

/// Cancels what was never tried, resolves what may have arrived.
fn settle_key(state: &State, now: Timestamp, incident: &Incident, page_key: &PageKey, why: String) -> Conclusion {
    let untried = page_key.pending.iter().find(|id| state.page(**id).is_some_and(|record| !record.attempted));
    if let Some(page) = untried {
        return Conclusion::PageCancelled { page: *page, why: format!("{why}, and nobody has been told") };
    }
    let key = &incident.key.cause;
    let empty = Cause::default();
    let cause = state.cause(key).unwrap_or(&empty);
    let (receiver, dedup) = (&page_key.receiver, &page_key.dedup_key);
    let found = assess(state, now, key, cause);
    let case = Case { state, now, key, cause, incident, found: found.as_ref() };
    let page = build(case, receiver, dedup, PageAction::Resolve, &why);
    Conclusion::PageRequested { incident: incident.key.clone(), page: Box::new(page), why }
}

/// Nobody was told under this key, and the newest news are still about what the incident is about.
fn is_first(incident: &Incident, dedup: &str, found: Option<&Assessment>) -> bool {
    let is_told = incident.page_keys.iter().any(|page| page.dedup_key == dedup);
    !is_told && found.is_some_and(|found| found.reason == incident.reason)
}

/// A page is made of everything that is known, in one place.
fn build(case: Case<'_>, receiver: &str, dedup: &str, action: PageAction, why: &str) -> Page {
    let Case { state, now, key, cause, incident, found } = case;
    let wording = found.filter(|_| action == PageAction::Trigger).map(|found| found.wording(state, now, key, cause));
    let (title, details, next_steps, services) = match wording {
        // The title told first stays unless a better explanation was found: receivers compare them. Until somebody was told
        // it is that of the newest news.
        Some(words) if cause::kind_of(key) != cause::CauseKind::Host || is_first(incident, dedup, found) => {
            (words.title, words.details, words.next_steps, words.services)
        }
        Some(words) => (incident.title.clone(), words.details, words.next_steps, words.services),
        None => (incident.title.clone(), Vec::new(), Vec::new(), Vec::new()),
    };
    let (mut details, mut next_steps) = (details, next_steps);
    if action == PageAction::Trigger {
        details.extend(changes::lines(state, incident).into_iter().map(|line| format!("what changed: {line}")));
    }
    if action == PageAction::Trigger
        && let Some(asks) = asks(state.policy(), incident, escalates_itself(state, receiver), now)
    {
        next_steps.insert(0, asks);
    }
    let late = found.map(|found| found.late).unwrap_or_default();
    let worth_telling = late > state.policy().liveness.heartbeat * LATE_HEARTBEATS;
    Page {
        receiver: receiver.to_owned(),
        action,
        dedup_key: dedup.to_owned(),
        incident: incident.number.clone(),
        cause_key: key.to_owned(),
        severity: incident.severity,
        reason: incident.reason,
        grade: incident.grade,
        title,
        why: why.to_owned(),
        details,
        next_steps,
        agents: incident.agents.iter().take(AGENTS_NAMED_MAX).map(ToString::to_string).collect(),
        n_agents: incident.agents.len() as u64,
        services,
        began: incident.began,
        requested: now,
        late_by_ms: worth_telling.then(|| u64::try_from(late.as_millis()).unwrap_or(u64::MAX)),
    }
}
