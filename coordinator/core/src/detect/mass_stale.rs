//! Many agents fall silent together: one page, not one per host. Counted over the whole fleet, and over each place that
//! the agents share (a label's value, a subnet); where several of them explain it the one that fits best tells it.
//! Recoveries always pass: whoever is heard leaves at once. A mass takes in those who fall silent soon after each other;
//! who does so later, while some of an old mass are still away, is another matter and told as such.

use super::places::{self, Place};
use super::{Detector, Look, agent_stale, rest};
use crate::cause::{self, CauseKind, MASS_STALE};
use crate::decide::assess::{Assessment, DETAILS_MAX, names, of_fleet};
use crate::decide::human;
use crate::state::{Cause, Incident, IncidentStatus, State};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A mass silence goes on while more than one in this many of its agents is silent.
const MASS_BACK_ONE_IN: usize = 10;
/// Recent silences looked at for those of a place. Where more fall silent at once it is the fleet's matter long before.
const LOOKED_AT_MAX: usize = 1024;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct MassStale;

impl Detector for MassStale {
    fn name(&self) -> &'static str {
        "mass_stale"
    }

    fn owns(&self, key: &str) -> bool {
        cause::kind_of(key) == CauseKind::MassStale
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let n = cause.members.len();
        let place = rest(key, MASS_STALE);
        let open = match state.unresolved(key) {
            None => n > 0,
            Some(incident) if incident.status == IncidentStatus::Recovering => reached(state, place),
            // After a relapse the new silences count by themselves: of a very large mass they may be few.
            Some(incident) => {
                let ever = incident.agents.len().max(n);
                n * MASS_BACK_ONE_IN > ever || (incident.relapses > 0 && reached(state, place))
            }
        };
        let named = names(cause.agents.keys());
        let first = state.silences.iter().find(|(_, agent)| cause.agents.contains_key(agent));
        let first = first.and_then(|(_, agent)| agent_stale::silent(state, agent));
        let (began, heard) = match first {
            Some(first) => (first.began, first.last_heard),
            None => (state.last_at(), format!("last heard {}", state.last_at())),
        };
        let narrow = places::narrowest(state, cause).map(|(place, count)| (place, count.agents));
        let own = place.map(|place| (place.to_owned(), places::count(state, place).agents));
        let who = match narrow.or(own) {
            Some((place, all)) => places::words(n as u64, "agents", &place, all),
            None => format!("{n} of {} agents", state.agents.len()),
        };
        let summary = format!("{who} fell silent together, the first {heard}: {named}");
        let next_steps = vec![
            "look for what they share: a switch, a zone, a certificate authority, an upgrade".to_owned(),
            "see whether this coordinator itself is cut off: musterctl failover status on the standby".to_owned(),
        ];
        Some(of_fleet(state, Reason::MassStale, began, open, summary, next_steps))
    }

    fn why(&self, state: &State, key: &str, found: &Assessment) -> String {
        format!("{}: {}", asked(state, rest(key, MASS_STALE)), found.severity)
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "most of the silent agents are heard again".to_owned()
    }

    /// How many are back, who is not.
    fn ended(&self, state: &State, incident: &Incident) -> Option<String> {
        let missing: Vec<&str> = state
            .cause(&incident.key.cause)
            .into_iter()
            .flat_map(|cause| cause.agents.keys())
            .map(AgentName::as_str)
            .collect();
        let back = incident.agents.len().saturating_sub(missing.len());
        let named = missing.iter().take(10).copied().collect::<Vec<_>>().join(", ");
        let rest = if missing.is_empty() { "none is missing".to_owned() } else { format!("still silent: {named}") };
        Some(format!("{back} of {} agents are back; {rest}", incident.agents.len()))
    }

    fn details(&self, state: &State, _key: &str, cause: &Cause) -> Option<Vec<String>> {
        let words = cause.agents.keys().take(DETAILS_MAX);
        Some(words.filter_map(|agent| Some(agent_stale::silent(state, agent)?.words)).collect())
    }

    /// A place is a symptom of the fleet, and of another place that its agents are all part of.
    fn groups_of(&self, state: &State, cause: &str) -> Vec<String> {
        if !cause.starts_with(MASS_STALE) && !cause.ends_with("/agent") {
            return Vec::new();
        }
        let agent = match cause::kind_of(cause) {
            CauseKind::AgentStale => cause::agent_of(cause),
            CauseKind::MassStale => state.cause(cause).and_then(|cause| cause.agents.keys().next().cloned()),
            _ => None,
        };
        let groups =
            |agent: AgentName| [MASS_STALE.to_owned()].into_iter().chain(mass_of_places(state, &agent)).collect();
        agent.map(groups).unwrap_or_default()
    }

    fn takes(&self, state: &State, group: &str, cause: &Cause, symptom: &str) -> bool {
        match cause::agent_of(symptom) {
            Some(agent) => cause.agents.contains_key(&agent),
            None => state.cause(symptom).is_some_and(|inner| {
                let (inner_size, outer_size) = ((symptom, inner.agents.len()), (group, cause.agents.len()));
                places::yields(state, inner_size, outer_size, |key| rest(key, MASS_STALE))
                    && places::is_part(inner, cause)
            }),
        }
    }

    fn symptoms(&self, state: &State, group: &str, cause: &Cause) -> Vec<String> {
        let silences = cause.members.values().map(|member| cause::agent_stale(&member.agent));
        silences.chain(places::other_groups(state, MASS_STALE, group)).collect()
    }

    fn joins_by_name(&self) -> bool {
        false
    }

    fn looks(&self, state: &State, _now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let look = |place: Option<&str>| {
            let Fell { fell, live } = fell(state, place);
            let share = fell as f64 * 100.0 / live.max(1) as f64;
            let window = human(state.policy().liveness.mass_window);
            let of = place.map(|place| format!(" of {place}")).unwrap_or_default();
            let reached = reached(state, place);
            Look {
                rule: self.name(),
                about: key_of(place),
                seen: format!("{fell} of {live} agents{of} ({share:.0} %) fell silent within {window}"),
                threshold: asked(state, place),
                reached,
                held_back_by: if reached { String::new() } else { "too few agents, or too small a share".to_owned() },
            }
        };
        let places = places::of(state, agent);
        [None].into_iter().chain(places.iter().map(|place| Some(place.as_str()))).map(look).collect()
    }
}

/// Cause key of a place, or of the whole fleet.
fn key_of(place: Option<&str>) -> String {
    place.map_or_else(|| MASS_STALE.to_owned(), |place| format!("{MASS_STALE}/{place}"))
}

/// What the policy asks for.
fn asked(state: &State, place: Option<&str>) -> String {
    let rule = &state.policy().liveness;
    let window = human(rule.mass_window);
    match place {
        None => {
            let (min, share, n) = (rule.mass_agents_min, rule.mass_share * 100.0, rule.mass_agents);
            format!("at least {min} agents and {share:.0} % of those heard, or {n} agents, within {window}")
        }
        Some(place) => {
            let rule = &state.policy().detect.mass_place;
            let (min, share) = (rule.agents_min, rule.share * 100.0);
            format!("at least {min} agents and {share:.0} % of those heard of {place}, within {window}")
        }
    }
}

/// The masses of the places that an agent is in.
pub(crate) fn mass_of_places(state: &State, agent: &AgentName) -> Vec<String> {
    places::of(state, agent).iter().map(|place| key_of(Some(place))).collect()
}

/// Agents that fell silent within the window, of those that were heard before.
struct Fell {
    fell: u64,
    live: u64,
}

/// Those that came back meanwhile still count as live before.
fn fell(state: &State, place: Option<&str>) -> Fell {
    let policy = &state.policy.liveness;
    let mut fell: BTreeSet<&AgentName> = BTreeSet::new();
    // The absolute count is the most that any rule asks for, so that a large fleet costs no more than that here.
    let enough = usize::try_from(policy.mass_agents.max(policy.mass_agents_min)).unwrap_or(usize::MAX);
    let looked_at = if place.is_some() { LOOKED_AT_MAX } else { usize::MAX };
    for (_, agent) in state.silences.iter().rev().take(looked_at) {
        let inside = |place: &str| places::of(state, agent).iter().any(|own| own == place);
        if places::is_silent(state, agent) && place.is_none_or(inside) {
            fell.insert(agent);
        }
        if place.is_none() && fell.len() >= enough {
            break;
        }
    }
    let fell = fell.len() as u64;
    let heard = match place {
        None => (state.agents.len() as u64).saturating_sub(state.n_silent),
        Some(place) => {
            let Place { agents, silent } = places::count(state, place);
            agents.saturating_sub(silent)
        }
    };
    Fell { fell, live: heard + fell }
}

/// Enough agents fell silent within the window, of a place or of the whole fleet.
fn reached(state: &State, place: Option<&str>) -> bool {
    is_enough(state, place, &fell(state, place))
}

fn is_enough(state: &State, place: Option<&str>, fell: &Fell) -> bool {
    let share = fell.fell as f64 / fell.live.max(1) as f64;
    let policy = &state.policy.liveness;
    match place {
        None => {
            fell.fell >= u64::from(policy.mass_agents)
                || (fell.fell >= u64::from(policy.mass_agents_min) && share >= policy.mass_share)
        }
        Some(_) => {
            let rule = &state.policy.detect.mass_place;
            fell.fell >= u64::from(rule.agents_min.max(2)) && share >= rule.share && places::are_counted(state)
        }
    }
}

/// Whether an open mass takes this agent in, which fell silent just now: another one of it did within the window, or this
/// one was of it and came back only lately. None when there is no open mass.
fn gathers(state: &State, key: &str, agent: &AgentName) -> Option<bool> {
    let mass = state.unresolved(key).filter(|mass| mass.status == IncidentStatus::Open)?;
    let (now, policy) = (state.last_at(), state.policy());
    let members = &state.cause(key)?.agents;
    let lately = |at: Timestamp| at + policy.liveness.mass_window >= now;
    let recent = state.silences.iter().rev().take(LOOKED_AT_MAX).take_while(|(at, _)| lately(*at));
    let grows = recent.map(|(_, other)| other).any(|other| other != agent && members.contains_key(other));
    let back = state.agent(agent).and_then(|record| record.connected_at);
    let relapses = || back.is_some_and(|at| at + *policy.stability.get(mass.severity) >= now);
    Some(grows || (mass.agents.contains(agent) && relapses()))
}

/// Whether an agent's silence is part of something larger that goes on.
pub(crate) fn is_gathered(state: &State, agent: &AgentName) -> bool {
    let masses = mass_of_places(state, agent).into_iter().chain([MASS_STALE.to_owned()]);
    masses.into_iter().any(|mass| gathers(state, &mass, agent) == Some(true))
}

/// An agent fell silent: the masses that it makes or joins, each with those that join with it.
pub(crate) fn mass_groups(state: &State, agent: &AgentName) -> Vec<(String, Vec<AgentName>)> {
    // While the mass recovers, a new silence is one of its own, unless there are enough of them for a new mass. One that
    // stands still, since some of it never came back, has been told long ago: it takes nobody in.
    let fleet = gathers(state, MASS_STALE, agent);
    if fleet == Some(true) {
        return vec![(MASS_STALE.to_owned(), vec![agent.clone()])];
    }
    let recent = |place: Option<&str>| -> Vec<AgentName> {
        let silent = state.silences.iter().map(|(_, agent)| agent).filter(|agent| places::is_silent(state, agent));
        let inside =
            |agent: &&AgentName| place.is_none_or(|place| places::of(state, agent).iter().any(|own| own == place));
        silent.filter(inside).cloned().collect::<BTreeSet<_>>().into_iter().collect()
    };
    if fleet.is_none() && reached(state, None) {
        return vec![(MASS_STALE.to_owned(), recent(None))];
    }
    let places = places::of(state, agent);
    let of_places: Vec<Option<bool>> = places.iter().map(|place| gathers(state, &key_of(Some(place)), agent)).collect();
    let with = |wanted: Option<bool>| {
        let zipped = places.iter().zip(&of_places).filter(move |(_, gathers)| **gathers == wanted);
        zipped.map(|(place, _)| place.clone()).collect::<Vec<String>>()
    };
    let running = with(Some(true));
    if !running.is_empty() {
        return running.iter().map(|place| (key_of(Some(place)), vec![agent.clone()])).collect();
    }
    let free = with(None);
    let best = best_place(state, &free);
    best.map(|place| (key_of(Some(place)), recent(Some(place)))).into_iter().collect()
}

/// The place of which enough fell silent: the one with most of them, of those the narrowest, of those the first.
fn best_place<'a>(state: &State, places: &'a [String]) -> Option<&'a String> {
    let min = u64::from(state.policy.detect.mass_place.agents_min.max(2));
    let may: Vec<&String> = places.iter().filter(|place| places::count(state, place).silent >= min).collect();
    if may.is_empty() {
        return None;
    }
    let mut seen: BTreeSet<&AgentName> = BTreeSet::new();
    let mut fell: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, agent) in state.silences.iter().rev().take(LOOKED_AT_MAX) {
        if seen.insert(agent) && places::is_silent(state, agent) {
            let own = places::of(state, agent);
            for place in may.iter().filter(|place| own.contains(**place)) {
                *fell.entry(place.as_str()).or_default() += 1;
            }
        }
    }
    let enough = may.into_iter().filter_map(|place| {
        let Place { agents, silent } = places::count(state, place);
        let n = fell.get(place.as_str()).copied().unwrap_or_default();
        let seen = Fell { fell: n, live: agents.saturating_sub(silent) + n };
        is_enough(state, Some(place), &seen).then_some((n, agents, place))
    });
    enough.min_by_key(|(n, agents, _)| (Reverse(*n), *agents)).map(|(.., place)| place)
}

/// A mass is told to the end: who fell silent until now does not count for another one of the same place.
pub(crate) fn forget_silences(state: &mut State, key: &str) {
    match rest(key, MASS_STALE).map(str::to_owned) {
        None => state.silences.clear(),
        Some(place) => {
            let mut silences = std::mem::take(&mut state.silences);
            silences.retain(|(_, agent)| !places::of(state, agent).contains(&place));
            state.silences = silences;
        }
    }
}
