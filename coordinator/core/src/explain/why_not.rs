//! Why nobody was paged about a host: every rule that looked, and what held it back.

use super::{Explanation, Figure, Outcome, RuleLook, held_back, unheard_service};
use crate::cause;
use crate::detect;
use crate::policy::LivenessPolicy;
use crate::singletons;
use crate::state::{AgentRecord, Incident, Link, OpenFinding, State};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use std::collections::BTreeSet;
use std::time::Duration;

/// What happened this long before the time that is asked about is told as well: who asks does not know the minute.
pub const NEAR: Duration = Duration::from_secs(3600);
/// Occurrences told.
const OCCURRENCES_MAX: usize = 20;
/// Names of the agents in a sentence are the state's own; of what is open so many are told.
const OPEN_MAX: usize = 50;

/// What holds everything of a host back for a while, whatever its incidents are.
const HOLDING_NOW: [&str; 3] = ["rehear_window", "planned_stop", "silence"];

/// What is asked.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// About which host.
    pub agent: &'a AgentName,
    /// At what time; State is that of this time.
    pub at: Timestamp,
    /// Only what is about this service.
    pub service: Option<&'a ServiceName>,
    /// When it was last heard, where that is known beyond the journal: heartbeats are not in it.
    pub last_heard: Option<Timestamp>,
    /// The time is past, and State was rebuilt from the journal.
    pub is_past: bool,
}

/// Why nobody was paged about a host. `None` when nothing is known of such an agent.
pub fn why_not(state: &State, asked: &Asked<'_>) -> Option<Explanation> {
    let record = state.agent(asked.agent)?;
    let mut rules = vec![liveness(state, record, asked)];
    let incidents = incidents(state, record, asked);
    rules.extend(incidents.iter().map(|incident| of_incident(state, incident, asked)));
    rules.extend(open(state, record, asked));
    rules.extend(occurrences(state, asked));
    rules.extend(looks(state, asked));
    rules.extend(around(state, record, asked));
    rules.extend(receivers(state, &incidents, asked));
    rules.extend(super::flapping::looks(state, &incidents, asked.at));
    let mut explanation = Explanation { answer: String::new(), rules, unknown: unknown(state, record, asked) }.settle();
    let doubted = asked.service.and_then(|service| unheard_service(state, Some(asked.agent), service.as_str()));
    explanation.answer = answer(state, &explanation.rules, record, asked, doubted);
    Some(explanation)
}

/// Incidents that the host takes part in, and those that were over shortly before.
fn incidents<'a>(state: &'a State, record: &AgentRecord, asked: &Asked<'_>) -> Vec<&'a Incident> {
    let since = asked.at - NEAR;
    let concerns = |incident: &&Incident| {
        (incident.is_unresolved() && record.incidents.contains(&incident.key.cause))
            || (incident.agents.contains(asked.agent) && incident.resolved.is_none_or(|resolved| resolved >= since))
    };
    let of_service = |incident: &&Incident| {
        let Some(service) = asked.service else { return true };
        let cause = &incident.key.cause;
        crate::routing::service_of_cause(cause) == Some(service.as_str())
            || cause.split('/').any(|part| part == service.as_str())
            || incident.concerns_service(service.as_str())
    };
    state.incidents().filter(concerns).filter(of_service).collect()
}

fn of_incident(state: &State, incident: &Incident, asked: &Asked<'_>) -> RuleLook {
    let (rule, about) = (incident.reason.as_str(), incident.key.cause.as_str());
    let index = incident.timeline.first().map_or(0, |line| line.index);
    let over = incident.resolved.map(|at| format!("; resolved at {at}")).unwrap_or_default();
    let look = match held_back(state, incident, asked.at) {
        Some((word, why)) => {
            let why = format!("{} ({}) paged nobody: {why}{over}", incident.title, incident.severity);
            RuleLook::new(rule, about, Outcome::HeldBack, why).held_by(word)
        }
        None => {
            let first = super::first_page(incident);
            let when = first.map(|line| format!(" at {}", line.at)).unwrap_or_default();
            let failed = match (incident.first_delivered, incident.triggers_failed) {
                (None, n) if n > 0 => ", and no receiver took it",
                (None, _) => ", and no receiver has taken it yet",
                _ => "",
            };
            let why = format!(
                "{} ({}) paged {}{when}{failed}{over}",
                incident.title,
                incident.severity,
                super::incident::receivers(state, incident)
            );
            RuleLook::new(rule, about, Outcome::Paged, why)
        }
    };
    look.at(incident.opened, index).graded(incident.grade).of(incident)
}

fn liveness(state: &State, record: &AgentRecord, asked: &Asked<'_>) -> RuleLook {
    let policy = &state.policy().liveness;
    let stale = policy.heartbeat * policy.stale_after;
    let about = cause::agent_stale(asked.agent);
    let heard = asked.last_heard.filter(|_| !asked.is_past);
    let figure = |silent: Duration| Figure::new("silent for", human_duration(silent), human_duration(stale));
    let of = |outcome, why: String| RuleLook::new("agent_stale", &about, outcome, why);
    match &record.link {
        Link::Heard => match heard {
            Some(last) => {
                let silent = asked.at.since(last);
                let why = format!(
                    "it was heard {} ago; {} of silence make it stale",
                    human_duration(silent),
                    human_duration(stale)
                );
                of(Outcome::NothingSeen, why).figures([figure(silent)])
            }
            None => of(Outcome::NothingSeen, "it counted as heard: its heartbeats came in time".to_owned()),
        },
        Link::NotReheard => {
            let until = state.rehear_until().map(|until| format!(" until {until}")).unwrap_or_default();
            let why =
                format!("it had not been heard since this coordinator began to listen; it had{until} to come back");
            of(Outcome::HeldBack, why).held_by("rehear_window")
        }
        Link::Disconnected { how, at } => disconnected(of, figure, policy, asked, *how, *at),
        Link::Silent { since, last_heard, silence, index } => {
            let silent = asked.at.since(*last_heard);
            let words = silence_words(*silence);
            let incident = state.unresolved(&about).or_else(|| detect::explained_by(state, &about));
            let told = incident.map(|incident| format!("; see {}", incident.number)).unwrap_or_default();
            let (outcome, held) = match incident {
                Some(incident) if incident.has_paged() => (Outcome::Paged, ""),
                _ => (Outcome::HeldBack, if incident.is_some() { "grouping" } else { "severity" }),
            };
            let why = format!(
                "it was {} ({words}) and counts as silent since {since}{told}",
                silence.last_heard(*last_heard)
            );
            of(outcome, why).held_by(held).at(*since, *index).figures([figure(silent)])
        }
    }
}

fn disconnected(
    of: impl Fn(Outcome, String) -> RuleLook,
    figure: impl Fn(Duration) -> Figure,
    policy: &LivenessPolicy,
    asked: &Asked<'_>,
    how: crate::entry::Disconnect,
    at: Timestamp,
) -> RuleLook {
    use crate::entry::Disconnect as D;
    let gone = asked.at.since(at);
    match how {
        D::Goodbye | D::HostShutdown => {
            let grace = if how == D::HostShutdown { policy.reboot_grace } else { policy.goodbye_grace };
            let left = human_duration(grace.saturating_sub(gone));
            let why = format!(
                "it said goodbye at {at}: a planned stop is no incident for {}, {left} are left",
                human_duration(grace)
            );
            let figure = Figure::new("gone for", human_duration(gone), human_duration(grace));
            of(Outcome::HeldBack, why).held_by("planned_stop").figures([figure])
        }
        _ => {
            let why = format!(
                "its connection ended at {at}; it counts as silent when it is not heard for {}",
                human_duration(policy.heartbeat * policy.stale_after)
            );
            of(Outcome::BelowThreshold, why).figures([figure(gone)])
        }
    }
}

fn silence_words(silence: crate::entry::Silence) -> &'static str {
    use crate::entry::Silence as S;
    match silence {
        S::Goodbye => "it said goodbye and did not come back",
        S::HostShutdown => "its host went down and did not come back",
        S::Reset => "its connection was reset and it did not come back",
        S::Nothing => "nothing came on an open connection",
        S::NotReheard => "it did not come back after the coordinator began to listen",
    }
}

/// Open conditions that no incident of their own tells of.
fn open(state: &State, record: &AgentRecord, asked: &Asked<'_>) -> Vec<RuleLook> {
    let wanted = |open: &&OpenFinding| asked.service.is_none_or(|service| open.finding.key.subject.service == *service);
    let told = record.open.values().map(Box::as_ref).filter(wanted).filter_map(|open| {
        let finding = &open.finding;
        let key = cause::of_finding(asked.agent, &finding.key);
        if state.unresolved(&key).is_some() {
            return None;
        }
        let name = cause::member_name(asked.agent, &finding.key);
        let severity = singletons::severity(state, asked.agent, open);
        let dismissed = state.cause(&key).is_some_and(|cause| open.event_index <= cause.dismissed_index);
        let summary = &finding.summary;
        let look = match detect::explained_by(state, &key) {
            Some(incident) => {
                let why = format!("{summary}: a symptom of {} ({})", incident.number, incident.title);
                RuleLook::new("grouping", &name, outcome_of(incident), why).held_by("grouping").of(incident)
            }
            None if dismissed => {
                let why = format!("{summary}: closed by hand; only something new opens an incident again");
                RuleLook::new("grouping", &name, Outcome::HeldBack, why).held_by("by_hand")
            }
            None if severity < Severity::Sev3 => {
                let why = match singletons::not_missed(state, asked.agent, &finding.key) {
                    Some(other) => format!("{summary}: it runs on {other}, and there may be one of it: {severity}"),
                    None => format!("{summary}: {severity} opens no incident, sev3 or worse does"),
                };
                RuleLook::new("severity", &name, Outcome::BelowThreshold, why)
                    .held_by("severity")
                    .figures([Figure::new("severity", severity, Severity::Sev3)])
            }
            None => flooded(state, record, asked, &key, &name, summary),
        };
        Some(look.graded(finding.grade).at(open.received, open.event_index))
    });
    told.take(OPEN_MAX).collect()
}

fn outcome_of(incident: &Incident) -> Outcome {
    if incident.has_paged() { Outcome::Paged } else { Outcome::HeldBack }
}

/// The incident that told of a cause which has none of its own since `since`: one that took it in.
fn told_in<'a>(state: &'a State, key: &str, since: Timestamp) -> Option<&'a Incident> {
    detect::explained_by(state, key).or_else(|| {
        let took_in = |incident: &&Incident| {
            incident.members.contains(key) && incident.resolved.is_none_or(|resolved| resolved >= since)
        };
        state.incidents().filter(took_in).max_by_key(|incident| incident.opened)
    })
}

/// Where it goes on, when it ended as a symptom.
fn goes_on(state: &State, incident: &Incident) -> String {
    state.goes_on_in(incident).map(|cause| format!(", which goes on in {}", cause.number)).unwrap_or_default()
}

fn flooded(state: &State, record: &AgentRecord, asked: &Asked<'_>, key: &str, name: &str, summary: &str) -> RuleLook {
    if let Some(incident) = told_in(state, key, asked.at) {
        let why = format!("{summary}: told in {} ({})", incident.number, incident.title);
        return RuleLook::new("grouping", name, outcome_of(incident), why).held_by("grouping").of(incident);
    }
    let flood = state.unresolved(&cause::agent_flood(asked.agent)).filter(|_| record.floods(state.policy()));
    match flood {
        Some(flood) => {
            let why = format!(
                "{summary}: gathered in {}, since one agent opens at most {} incidents",
                flood.number,
                state.policy().detect.agent_flood.incidents
            );
            RuleLook::new("grouping", name, outcome_of(flood), why).held_by("grouping").of(flood)
        }
        None => RuleLook::new(
            "grouping",
            name,
            Outcome::HeldBack,
            format!("{summary}: no incident that is open tells of it"),
        ),
    }
}

/// What happened shortly before and is no condition.
fn occurrences(state: &State, asked: &Asked<'_>) -> Vec<RuleLook> {
    let since = asked.at - NEAR;
    let own = state.recent_occurrences().rev().filter(|seen| {
        let of_service = asked.service.is_none_or(|service| seen.finding.key.subject.service == *service);
        seen.agent == *asked.agent && seen.received >= since && of_service
    });
    let told = own.take(OCCURRENCES_MAX).map(|seen| {
        let finding = &seen.finding;
        let severity = state.severity_of(finding.key.reason, finding.severity);
        let name = cause::member_name(asked.agent, &finding.key);
        let rule = finding.key.reason.as_str();
        let key = cause::of_finding(asked.agent, &finding.key);
        let newest = state.newest_incident(&key);
        let own = newest.filter(|incident| incident.resolved.is_none_or(|resolved| resolved >= seen.received));
        let look = match own.or_else(|| told_in(state, &key, seen.received)) {
            Some(incident) => {
                let on = goes_on(state, incident);
                let why = format!("{} at {}: told in {}{on}", finding.summary, seen.observed, incident.number);
                RuleLook::new(rule, &name, outcome_of(incident), why).of(incident)
            }
            None if severity < Severity::Sev3 => {
                let harmless = detect::harmless(state.policy(), finding);
                let harmless = harmless.map(|why| format!("; {why}")).unwrap_or_default();
                let why =
                    format!("{} at {}: {severity} alone opens no incident{harmless}", finding.summary, seen.observed);
                RuleLook::new(rule, &name, Outcome::BelowThreshold, why).held_by("severity").figures([Figure::new(
                    "severity",
                    severity,
                    Severity::Sev3,
                )])
            }
            None => {
                let why = format!("{} at {}: no incident that is kept tells of it", finding.summary, seen.observed);
                RuleLook::new(rule, &name, Outcome::HeldBack, why).held_by("grouping")
            }
        };
        look.graded(finding.grade).at(seen.received, seen.index)
    });
    told.collect()
}

/// What each detector saw.
fn looks(state: &State, asked: &Asked<'_>) -> Vec<RuleLook> {
    let looks = detect::explain(state, asked.at, asked.agent).into_iter().filter(|look| {
        // The agent's own silence is told with its last word.
        let own = look.about == cause::agent_stale(asked.agent);
        !own && asked.service.is_none_or(|service| look.about.split('/').any(|part| part == service.as_str()))
    });
    let told = looks.map(|look| {
        let open = state.unresolved(&look.about).or_else(|| detect::explained_by(state, &look.about));
        // A rule may share its cause key with others: what it did not raise is not its own.
        let open = open.filter(|incident| look.has_part_in(incident));
        let incident = open.filter(|incident| incident.agents.contains(asked.agent));
        let outcome = match incident {
            Some(incident) => outcome_of(incident),
            // The others' trouble: this host is no part of it.
            None if open.is_some() => Outcome::NothingSeen,
            None if look.reached => Outcome::HeldBack,
            None if look.seen.starts_with("0 ") => Outcome::NothingSeen,
            None => Outcome::BelowThreshold,
        };
        let held = if look.held_back_by.is_empty() { String::new() } else { format!("; {}", look.held_back_by) };
        let why = format!("saw {}, asks for {}{held}", look.seen, look.threshold);
        let told = RuleLook::new(look.rule, &look.about, outcome, why);
        let told = told.figures([Figure::new("seen", &look.seen, &look.threshold)]);
        match incident {
            Some(incident) => told.of(incident),
            None if outcome == Outcome::BelowThreshold => told.held_by("threshold"),
            None => told,
        }
    });
    told.collect()
}

/// Circumstances: silences, freezes, the re-hear window, who reigns, the agent's own hysteresis.
fn around(state: &State, record: &AgentRecord, asked: &Asked<'_>) -> Vec<RuleLook> {
    let mut rules = Vec::new();
    let name = asked.agent.as_str();
    let labels = record.hello.as_ref().map(|hello| hello.labels.clone()).unwrap_or_default();
    if let Some(silence) = state.maintenance_of(asked.agent) {
        let why = format!("maintenance: {}; a goodbye within it is expected", silence.words());
        let well = record.link == Link::Heard && record.open.is_empty() && record.incidents.is_empty();
        rules.push(match well {
            true => RuleLook::new("silence", name, Outcome::NothingSeen, why),
            false => RuleLook::new("silence", name, Outcome::HeldBack, why).held_by("silence"),
        });
    }
    for freeze in state.freezes().filter(|freeze| freeze.scope.concerns(asked.agent, &labels)) {
        let why = format!(
            "{} of {} ({}) stops new work here; a freeze never holds a page back",
            freeze.id, freeze.by, freeze.reason
        );
        rules.push(RuleLook::new("freeze", name, Outcome::NothingSeen, why));
    }
    if let Some(until) = state.rehear_until() {
        let why = format!(
            "until {until} agents get time to be heard again by this coordinator; silences wait, findings do not"
        );
        rules.push(RuleLook::new("rehear_window", name, Outcome::NothingSeen, why));
    }
    if let Some(epoch) = state.fenced_by() {
        let why = format!("this coordinator stopped deciding: {epoch} reigns; ask that one");
        rules.push(RuleLook::new("epoch", name, Outcome::HeldBack, why).held_by("epoch"));
    }
    let why = "an agent tells of a condition only when its own probes are sure; what was below that stays on the host (muster-agent doctor, or its probes' verdicts, tell)";
    rules.push(RuleLook::new("hysteresis", name, Outcome::NothingSeen, why));
    rules
}

/// Receivers hold something back only where there is something to tell them, and they have not taken it.
fn receivers(state: &State, incidents: &[&Incident], asked: &Asked<'_>) -> Vec<RuleLook> {
    let name = asked.agent.as_str();
    if state.policy().receivers.is_empty() {
        let why = "no receiver is configured: no page can leave (add a [[receiver.…]] to the coordinator's config)";
        let look = |outcome| RuleLook::new("routing", name, outcome, why);
        return vec![match incidents.is_empty() {
            true => look(Outcome::NothingSeen),
            false => look(Outcome::HeldBack).held_by("routing"),
        }];
    }
    let failing = state.policy().receivers.iter().filter_map(|receiver| {
        let known = state.receiver(receiver)?;
        let since = known.failing_since?;
        let took = match known.last_delivered {
            Some(at) => format!("the last page that it took was at {at}"),
            None => "it never took one".to_owned(),
        };
        let why = format!("the receiver {receiver} counts as failing since {since}: {took}");
        let untold = |incident: &&&Incident| {
            incident.first_delivered.is_none() && incident.page_keys.iter().any(|page| page.receiver == *receiver)
        };
        Some(match incidents.iter().find(untold) {
            Some(incident) => {
                RuleLook::new("routing", receiver, Outcome::HeldBack, why).held_by("routing").of(incident)
            }
            None => RuleLook::new(
                "routing",
                receiver,
                Outcome::NothingSeen,
                format!("{why}; nothing about {name} waits for it"),
            ),
        })
    });
    failing.collect()
}

fn unknown(state: &State, record: &AgentRecord, asked: &Asked<'_>) -> Vec<String> {
    let mut unknown = Vec::new();
    if asked.is_past {
        unknown.push("heartbeats are not in the journal: when it was last heard before that time is known only where it fell silent".to_owned());
    }
    if asked.at < record.first_seen {
        unknown.push(format!("it was not known before {}", record.first_seen));
    }
    if !record.digest_matches {
        unknown.push("what it has open differs from what is known here; a resync was asked for".to_owned());
    }
    if record.suppressed > 0 {
        unknown.push(format!("{} conditions of it were not kept: it had too many open", record.suppressed));
    }
    if record.entries_lost > 0 {
        unknown.push(format!("it lost {} entries before they were sent", record.entries_lost));
    }
    if matches!(record.link, Link::Silent { .. } | Link::NotReheard | Link::Disconnected { .. }) {
        unknown.push(
            "what went on there since it was last heard: ask again when it is back, its spool may hold it".to_owned(),
        );
    }
    let full = state.recent_occurrences().count() >= crate::state::RECENT_OCCURRENCES_MAX;
    if full && state.recent_occurrences().next().is_some_and(|oldest| oldest.received > asked.at - NEAR) {
        unknown.push(
            "older occurrences of the last hour are in the journal alone (musterctl events list --agent)".to_owned(),
        );
    }
    unknown
}

/// Of the open incidents that somebody was paged about, or would have been, the newest; the worst of equally new ones.
fn newest_open<'a>(state: &'a State, rules: &[RuleLook]) -> Option<&'a Incident> {
    let is_told = |look: &&RuleLook| matches!(look.outcome, Outcome::Paged | Outcome::HeldBack);
    let told: BTreeSet<&str> = rules.iter().filter(is_told).map(|look| look.incident.as_str()).collect();
    let open = state.incidents().filter(|incident| incident.is_unresolved() && told.contains(incident.number.as_str()));
    open.max_by_key(|incident| (incident.opened, incident.severity, incident.has_paged()))
}

/// About the moment that is asked about: what is wrong then comes before what was over. `doubted`: the service that is
/// asked about is not known of this host.
fn answer(
    state: &State,
    rules: &[RuleLook],
    record: &AgentRecord,
    asked: &Asked<'_>,
    doubted: Option<String>,
) -> String {
    let agent = &record.name;
    let when = if asked.is_past { format!(" at {}", asked.at) } else { String::new() };
    let of = |outcome: Outcome| rules.iter().filter(move |look| look.outcome == outcome);
    let number =
        |look: &RuleLook| if look.incident.is_empty() { String::new() } else { format!("{}: ", look.incident) };
    let newest = |look: &&RuleLook| (!look.incident.is_empty(), look.at);
    let paged = |look: &RuleLook| format!("somebody was paged about {agent}{when}: {}{}", number(look), look.why);
    let held = |look: &RuleLook| format!("nobody was paged about {agent}{when}: {}{}", number(look), look.why);
    if let Some(incident) = newest_open(state, rules) {
        let of_it = |look: &&RuleLook| look.incident == incident.number;
        if let Some(look) = of(Outcome::Paged).find(of_it) {
            return paged(look);
        }
        if let Some(look) = of(Outcome::HeldBack).filter(of_it).max_by_key(newest) {
            return held(look);
        }
    }
    // What holds back right now comes before what was paged and is over.
    let of_now = |look: &&RuleLook| look.incident.is_empty() && HOLDING_NOW.contains(&look.held_back_by.as_str());
    if let Some(look) = of(Outcome::HeldBack).find(of_now) {
        return held(look);
    }
    if let Some(look) = of(Outcome::Paged).find(|look| !look.incident.is_empty()) {
        return paged(look);
    }
    if let Some(look) = of(Outcome::HeldBack).max_by_key(newest) {
        return held(look);
    }
    // Rules about the whole fleet look all the time: what they see is no trouble of this host.
    let of_host = |look: &&RuleLook| {
        let about = look.about.strip_prefix("host/").unwrap_or(&look.about);
        about.split('/').next() == Some(agent.as_str())
    };
    if let Some(look) = of(Outcome::BelowThreshold).find(of_host) {
        return format!(
            "nobody was paged about {agent}{when}: nothing reached its threshold; {} {}",
            look.rule, look.why
        );
    }
    if let Some(doubted) = doubted {
        return format!("nobody was paged about {agent}{when}: {doubted}");
    }
    format!(
        "nobody was paged about {agent}{when}: as far as is known here nothing was wrong; its agent was heard and had told of nothing"
    )
}
