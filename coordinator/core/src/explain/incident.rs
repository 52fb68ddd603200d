//! Why an incident, a page or a finding is what it is.

use super::{Explanation, FINDINGS_MAX, Figure, Outcome, RuleLook, first_page, held_back};
use crate::apply::incidents::hold_of;
use crate::cause;
use crate::detect;
use crate::page::{PageAction, PageId};
use crate::routing::told;
use crate::state::{Incident, IncidentStatus, OpenFinding, PageOutcome, PageRecord, State};
use crate::timeline::LineKind;
use muster_common::evidence::{Evidence, Grade};
use muster_common::finding::{Finding, FindingKey};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use std::collections::BTreeSet;
use std::time::Duration;

/// Figures told of one finding's evidence.
const EVIDENCE_MAX: usize = 8;

/// Why this incident, and why it paged or did not.
pub fn why(state: &State, incident: &Incident, now: Timestamp) -> Explanation {
    let mut rules = vec![opened(incident)];
    rules.extend(detectors(state, incident, now));
    rules.extend(findings(state, incident));
    rules.extend(told_by_rules(incident));
    rules.extend(super::waiting::look(state, incident, now));
    rules.push(hold(state, incident, now));
    rules.push(severity(state, incident));
    rules.push(routing(state, incident));
    for (index, silence) in state.silences_of(incident) {
        let why = format!("{} holds its pages back", silence.words());
        let look = RuleLook::new("silence", &incident.key.cause, Outcome::HeldBack, why).at(silence.starts, index);
        rules.push(look.held_by("silence").of(incident));
    }
    let unknown = unknown(incident);
    let answer = answer(state, incident, now);
    // In the order of what led to what, not of what is most telling: it is one story.
    Explanation { answer, rules, unknown }
}

/// Why this page was sent. `None` when it is not kept.
pub fn why_page(state: &State, id: PageId, now: Timestamp) -> Option<Explanation> {
    let record = state.page(id).or_else(|| {
        let dead = state.dead_letters().find(|letter| letter.record.id == id);
        dead.map(|letter| &letter.record)
    })?;
    let page = &record.page;
    let mut explanation = match state.incident(&record.incident) {
        Some(incident) => why(state, incident, now),
        None => Explanation { unknown: vec![format!("{} is not kept any more", page.incident)], ..Default::default() },
    };
    let became = outcome(record);
    explanation.answer = format!(
        "page {} ({} to {}) was asked for at {} about {}: {}; {became}",
        id.0,
        page.action.as_str(),
        page.receiver,
        page.requested,
        page.incident,
        page.why
    );
    let look = RuleLook::new("page", &page.dedup_key, Outcome::Paged, format!("{}; {became}", page.why));
    let look = look.at(page.requested, id.0).graded(page.grade);
    let mut look = look.figures([
        Figure::new("severity", page.severity, format!("{} or worse pages", state.policy().page_from)),
        Figure::new("hosts", page.n_agents, ""),
    ]);
    look.incident.clone_from(&page.incident);
    if let Some(late_ms) = page.late_by_ms {
        let late = human_duration(std::time::Duration::from_millis(late_ms));
        look.figures.push(Figure::new("heard later than it happened by", late, ""));
    }
    explanation.rules.insert(0, look);
    Some(explanation)
}

/// Why a finding, by its id (`agent/service/probe/subject/reason`), led to what it did. `None` when nothing of it is known.
pub fn why_finding(state: &State, id: &str, now: Timestamp) -> Option<Explanation> {
    let (agent, key) = id.split_once('/')?;
    let record = state.agent(&AgentName::new(agent).ok()?);
    let open = record.and_then(|record| record.open.values().find(|open| open.finding.key.to_string() == key));
    let of_cause = open.map(|open| {
        let agent = AgentName::new(agent).ok();
        let mut keys: Vec<String> = agent.iter().map(|agent| cause::of_finding(agent, &open.finding.key)).collect();
        keys.extend(agent.iter().flat_map(|agent| detect::groups(state, agent, &open.finding.key)));
        keys
    });
    // Of several the newest: also those that are over and named it.
    let by_cause = of_cause.iter().flatten().filter_map(|key| state.newest_incident(key));
    let incidents = state.incidents().filter(|incident| incident.members.contains(id));
    let mut incidents: Vec<&Incident> =
        by_cause.filter(|incident| incident.members.contains(id)).chain(incidents).collect();
    incidents.sort_by_key(|incident| (std::cmp::Reverse(incident.opened), &incident.key));
    incidents.dedup_by_key(|incident| &incident.key);
    let first = incidents.first();
    let mut explanation = match (first, open) {
        (None, None) => return None,
        (Some(incident), _) => why(state, incident, now),
        (None, Some(_)) => Explanation::default(),
    };
    explanation.answer = match (open, first) {
        (Some(open), Some(incident)) => {
            format!("{}, open since {}, is part of {}: {}", id, open.opened, incident.number, explanation.answer)
        }
        (None, Some(incident)) => format!("{id} is over; it was part of {}: {}", incident.number, explanation.answer),
        (Some(open), None) => alone(state, id, open),
        (None, None) => return None,
    };
    if let Some(open) = open {
        explanation.rules.insert(0, finding(id, open, Outcome::Paged));
        if first.is_none()
            && let Some(look) = explanation.rules.first_mut()
        {
            look.outcome = Outcome::HeldBack;
            look.held_back_by = "severity".to_owned();
        }
    }
    Some(explanation)
}

/// The unresolved incident that took in what a finding's own would be about: it names that one, not the finding.
pub fn taken_in_by<'a>(state: &'a State, agent: &AgentName, key: &FindingKey) -> Option<&'a Incident> {
    let own = cause::of_finding(agent, key);
    let names = |incident: &&Incident| incident.members_dropped > 0 || incident.members.contains(&own);
    detect::explained_by(state, &own).filter(names)
}

fn alone(state: &State, id: &str, open: &OpenFinding) -> String {
    let severity = state.severity_of(open.finding.key.reason, open.finding.severity);
    format!(
        "{id} is open since {} with {severity} and no incident is open for it: sev3 or worse opens one, unless it was closed by hand or folded into another's",
        open.opened
    )
}

/// Its title, for people: until somebody was told, that of the newest news, as the page would have it. A page that is
/// held back does not hide how a process ended.
pub fn title(state: &State, incident: &Incident, now: Timestamp) -> String {
    crate::decide::title(state, incident, now).unwrap_or_else(|| incident.title.clone())
}

fn answer(state: &State, incident: &Incident, now: Timestamp) -> String {
    let waits = super::waits_for(state, incident, now);
    let answer = paged_or_not(state, incident, now);
    waits.map_or(answer.clone(), |waits| format!("{answer}; {waits}"))
}

fn paged_or_not(state: &State, incident: &Incident, now: Timestamp) -> String {
    let number = &incident.number;
    match (first_page(incident), held_back(state, incident, now)) {
        (Some(line), _) => {
            let waited = line.at.since(incident.opened);
            let after = if waited.is_zero() {
                "at once".to_owned()
            } else {
                format!("{} after it was opened", human_duration(waited))
            };
            let receivers = receivers(state, incident);
            format!("{number} paged {receivers} {after}: {} ({})", incident.title, incident.why)
        }
        (None, Some((_, why))) => format!("{number} paged nobody: {why}; it was opened because {}", incident.why),
        (None, None) => format!("{number} paged {}: {} ({})", receivers(state, incident), incident.title, incident.why),
    }
}

/// Who was paged; who did not take it is told apart.
pub(super) fn receivers(state: &State, incident: &Incident) -> String {
    let given_up = state.dead_letters().filter(|letter| {
        letter.resent.is_none()
            && letter.record.incident == incident.key
            && letter.record.page.action == PageAction::Trigger
    });
    let given_up: BTreeSet<&str> = given_up.map(|letter| letter.record.page.receiver.as_str()).collect();
    let all: BTreeSet<&str> = incident.page_keys.iter().map(|page| page.receiver.as_str()).collect();
    let (failed, taken): (Vec<&str>, Vec<&str>) = all.into_iter().partition(|name| given_up.contains(name));
    match (taken.as_slice(), failed.as_slice()) {
        (_, []) => taken.join(", "),
        ([], _) => format!("{} (given up)", failed.join(", ")),
        _ => format!("{} ({} given up)", taken.join(", "), failed.join(", ")),
    }
}

/// The words it was opened with; its present ones may be others.
fn opened(incident: &Incident) -> RuleLook {
    let first = incident.timeline.first();
    let why = first.and_then(|line| line.text.strip_prefix("opened: ")).unwrap_or(&incident.why);
    let outcome = if incident.has_paged() { Outcome::Paged } else { Outcome::HeldBack };
    let look = RuleLook::new(incident.reason.as_str(), &incident.key.cause, outcome, why).of(incident);
    let look = look.graded(incident.grade).at(incident.opened, first.map_or(0, |line| line.index));
    look.figures([
        Figure::new("began", incident.began, ""),
        Figure::new("hosts", incident.agents.len(), ""),
        Figure::new("findings and symptoms", incident.members.len() as u64 + incident.members_dropped, ""),
        Figure::new("generation", incident.key.generation, ""),
    ])
}

/// What the fleet's rules see of it now, while it is open.
fn detectors(state: &State, incident: &Incident, now: Timestamp) -> Vec<RuleLook> {
    let Some(agent) = incident.agents.first().filter(|_| incident.is_unresolved()) else { return Vec::new() };
    let looks = detect::explain(state, now, agent).into_iter().filter(|look| look.about == incident.key.cause);
    let told = looks.map(|look| {
        let figures = [Figure::new("seen", &look.seen, &look.threshold)];
        let why = format!("sees {} now; asks for {}", look.seen, look.threshold);
        // A rule may share its cause key with others: what it did not raise is not its own.
        let outcome = match look.has_part_in(incident) {
            true => Outcome::Paged,
            false if look.seen.starts_with("0 ") => Outcome::NothingSeen,
            false => Outcome::BelowThreshold,
        };
        RuleLook::new(look.rule, &look.about, outcome, why).of(incident).figures(figures)
    });
    told.collect()
}

/// What is open and folded in, with its proof; of what is over what its timeline still tells of it.
fn findings(state: &State, incident: &Incident) -> Vec<RuleLook> {
    if !incident.is_unresolved() {
        return observed(incident);
    }
    let Some(known) = state.cause(&incident.key.cause) else { return Vec::new() };
    let outcome = if incident.has_paged() { Outcome::Paged } else { Outcome::HeldBack };
    let open = known.members.iter().filter_map(|(name, member)| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        Some(finding(name, open, outcome).of(incident))
    });
    let mut looks: Vec<RuleLook> = open.take(FINDINGS_MAX).collect();
    looks.extend(known.occurrences.iter().map(|occurrence| {
        let about = occurrence.agent.as_ref().map_or_else(String::new, ToString::to_string);
        let look = RuleLook::new(occurrence.reason.as_str(), &about, outcome, &*occurrence.summary).of(incident);
        look.graded(occurrence.grade).at(occurrence.received, occurrence.index)
    }));
    looks
}

/// What hosts told in the course of it, and which findings and symptoms belonged to it.
fn observed(incident: &Incident) -> Vec<RuleLook> {
    let outcome = if incident.has_paged() { Outcome::Paged } else { Outcome::HeldBack };
    let about = &incident.key.cause;
    let facts = incident.timeline.iter().filter(|line| line.kind == LineKind::Fact);
    let facts = facts.map(|line| RuleLook::new("observed", about, outcome, &*line.text).line(line).of(incident));
    let mut looks: Vec<RuleLook> = facts.take(FINDINGS_MAX).collect();
    let members = incident.members.iter().take(FINDINGS_MAX);
    looks.extend(members.map(|member| {
        // `agent/service/probe/subject/reason`, or the cause key of a symptom, or an agent that fell silent.
        let reason = member.rsplit('/').next().filter(|_| !member.starts_with("host/")).unwrap_or("grouping");
        let rule = if member.contains('/') { reason } else { incident.reason.as_str() };
        RuleLook::new(rule, member, outcome, format!("{member} belonged to it")).of(incident)
    }));
    looks
}

fn finding(name: &str, open: &OpenFinding, outcome: Outcome) -> RuleLook {
    let OpenFinding { finding, received, event_index, .. } = open;
    let look = RuleLook::new(finding.key.reason.as_str(), name, outcome, &*finding.summary);
    let look = look.graded(finding.grade).at(*received, *event_index);
    look.figures([Figure::new("severity", finding.severity, "")]).figures(evidence(finding))
}

fn evidence(finding: &Finding) -> Vec<Figure> {
    let Finding { evidence, .. } = finding;
    let numbers = |evidence: &Evidence| {
        let pairs = evidence.iter().filter(|(_, value)| !matches!(value, muster_common::evidence::Value::Text(_)));
        pairs.take(EVIDENCE_MAX).map(|(key, value)| Figure::new(key, value, "")).collect()
    };
    numbers(evidence)
}

/// What rules and people said in the course of it, each with its entry.
fn told_by_rules(incident: &Incident) -> Vec<RuleLook> {
    let lines = incident.timeline.iter().skip(1).filter(|line| line.kind != LineKind::Fact);
    let told = lines.map(|line| {
        let (rule, outcome) = match line.kind {
            LineKind::Page => ("page", Outcome::Paged),
            LineKind::Operator => ("response", Outcome::Paged),
            _ if line.text.contains(" joined: ") || line.text.ends_with("is a symptom of this") => {
                ("grouping", Outcome::Paged)
            }
            _ if line.text.starts_with("not paged: ") => ("paging", Outcome::HeldBack),
            _ if line.text.starts_with("pages held back: ") => ("silence", Outcome::HeldBack),
            _ if ["recovering: ", "relapsed: ", "resolved: ", "stability: "]
                .iter()
                .any(|start| line.text.starts_with(start)) =>
            {
                ("stability", Outcome::Paged)
            }
            _ => ("decision", Outcome::Paged),
        };
        let outcome = if incident.has_paged() { outcome } else { Outcome::HeldBack };
        RuleLook::new(rule, &incident.key.cause, outcome, &*line.text).line(line).of(incident)
    });
    told.collect()
}

/// What it was while it was held: what its first page says, where that is still known, and not what it became since.
fn held_as(state: &State, incident: &Incident) -> Option<(Reason, Severity)> {
    match first_page(incident) {
        Some(line) => state.page(PageId(line.index)).map(|record| (record.page.reason, record.page.severity)),
        None => Some((incident.reason, incident.severity)),
    }
}

fn hold(state: &State, incident: &Incident, now: Timestamp) -> RuleLook {
    let as_what = held_as(state, incident);
    let hold = as_what.map(|(reason, severity)| hold_of(state, reason, severity));
    let (outcome, waited, why) = match (first_page(incident), incident.hold_until) {
        (Some(line), _) => {
            let waited = line.at.since(incident.opened);
            let waited_words = human_duration(waited);
            let why = match as_what.zip(hold) {
                // It had cleared for a while, or pages were held back.
                Some(((_, severity), hold)) if waited > hold => format!(
                    "its first page came {waited_words} after it was opened: longer than the hold of {severity} ({}), see what came before it",
                    human_duration(hold)
                ),
                Some(_) => format!("held for {waited_words} before its first page"),
                None => format!("its first page came {waited_words} after it was opened"),
            };
            (Outcome::Paged, waited, why)
        }
        (None, Some(until)) => {
            (Outcome::HeldBack, now.since(incident.opened), format!("held until {until}, so that symptoms can gather"))
        }
        (None, None) => {
            let end = incident.resolved.unwrap_or(now);
            let why = if incident.has_paged() { "its page is older than its timeline" } else { "the hold is over" };
            (Outcome::Paged, hold.map_or(Duration::ZERO, |hold| end.since(incident.opened).min(hold)), why.to_owned())
        }
    };
    let look = RuleLook::new("hold", &incident.key.cause, outcome, why).of(incident);
    let look = if outcome == Outcome::HeldBack { look.held_by("hold") } else { look };
    // What waited for something else is not compared with the hold.
    let threshold = hold.filter(|hold| waited <= *hold).map(human_duration).unwrap_or_default();
    look.figures([Figure::new("waited", human_duration(waited), threshold)])
}

fn severity(state: &State, incident: &Incident) -> RuleLook {
    let from = state.policy().page_from;
    let pages = incident.severity >= from;
    let (outcome, why) = if pages {
        (Outcome::Paged, format!("{} is at least as bad as {from}, from which on incidents page", incident.severity))
    } else {
        (Outcome::HeldBack, format!("{} is less bad than {from}, from which on incidents page", incident.severity))
    };
    let look = RuleLook::new("severity", &incident.key.cause, outcome, why).of(incident);
    let look = if pages { look } else { look.held_by("severity") };
    look.figures([Figure::new("severity", incident.severity, from)])
}

/// Who is told, and by which route.
fn routing(state: &State, incident: &Incident) -> RuleLook {
    let told = told(state, incident);
    let route = crate::routing::routes_of(state, incident);
    let by = match (state.policy().routes.len(), route.as_slice()) {
        (0, _) => "there are no routes, so every receiver is told".to_owned(),
        (n, []) => format!("none of the {n} routes matches, so every receiver is told"),
        (n, matched) => {
            let numbers: Vec<String> = matched.iter().map(|place| (place + 1).to_string()).collect();
            format!("route {} of {n} matches", numbers.join(" and "))
        }
    };
    let names: Vec<String> = told
        .iter()
        .map(|told| match told.in_place_of {
            Some(failing) => format!("{} (in place of {failing}, which fails)", told.receiver),
            None => told.receiver.to_owned(),
        })
        .collect();
    let (outcome, why) = if names.is_empty() {
        (Outcome::HeldBack, format!("{by}, and nobody is: no receiver is configured"))
    } else {
        (Outcome::Paged, format!("{by}: {}", names.join(", ")))
    };
    let look = RuleLook::new("routing", &incident.key.cause, outcome, why).of(incident);
    if outcome == Outcome::HeldBack { look.held_by("routing") } else { look }
}

fn outcome(record: &PageRecord) -> String {
    match &record.outcome {
        None if record.attempted => "it was tried, and no answer is known yet".to_owned(),
        None => "it is on its way".to_owned(),
        Some(PageOutcome::Delivered) => format!("{} accepted it", record.page.receiver),
        Some(PageOutcome::Failed { error }) => format!("it was given up: {error}"),
        Some(PageOutcome::Cancelled { why }) => format!("it was not sent: {why}"),
    }
}

fn unknown(incident: &Incident) -> Vec<String> {
    let mut unknown = Vec::new();
    if incident.timeline.len() >= crate::state::TIMELINE_MAX {
        unknown.push(
            "its timeline is full: the middle of it is in the journal alone (musterctl events list --incident)"
                .to_owned(),
        );
    }
    if incident.members_dropped > 0 {
        unknown.push(format!("{} more findings belong to it than are named", incident.members_dropped));
    }
    if incident.grade != Grade::Confirmed {
        unknown.push(format!("its cause is {}, not confirmed: another explanation may fit", incident.grade.as_str()));
    }
    let blind: Vec<&str> = incident.blind.iter().map(AgentName::as_str).take(5).collect();
    if !blind.is_empty() && incident.status != IncidentStatus::Resolved {
        unknown.push(format!(
            "how things stand now on {}: not heard, or its open findings are in doubt",
            blind.join(", ")
        ));
    }
    if !incident.is_unresolved() {
        unknown.push("the findings themselves are not kept after it was resolved; a bundle has them (musterctl incidents export --bundle)".to_owned());
    }
    unknown
}
