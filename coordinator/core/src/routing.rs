//! Who is told about an incident: the routes of the policy, and who stands in for a receiver that fails.
//!
//! Looks at a bounded part of an incident only: a route is asked about it at every decision.

use crate::cause;
use crate::policy::{Policy, Route};
use crate::state::{Incident, State};
use std::collections::{BTreeMap, BTreeSet};

/// Hosts and members of an incident that routes look at, the first ones by name: as many hosts as a page names.
pub const LOOKED_AT_MAX: usize = 50;

/// One who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told<'a> {
    /// Name of the receiver.
    pub receiver: &'a str,
    /// The receiver that fails, when no route leads here.
    pub in_place_of: Option<&'a str>,
}

/// Who is told of `incident` as it stands now, in the policy's order. Whoever was told under the newest key stays: what
/// becomes of it is told to those who know of it.
///
/// That a receiver fails is told to all others, whatever the routes say.
pub fn told<'a>(state: &'a State, incident: &'a Incident) -> Vec<Told<'a>> {
    let policy = state.policy();
    let own = cause::failing_receiver(&incident.key.cause);
    let mut places: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    let routed = match own {
        Some(_) => policy.receivers.iter().map(String::as_str).collect(),
        None => routed(state, incident),
    };
    places.extend(routed.into_iter().map(|receiver| (receiver, None)));
    if let Some(newest) = incident.page_keys.last() {
        let known = incident.page_keys.iter().filter(|page| page.dedup_key == newest.dedup_key);
        for page in known.filter(|page| !incident.stands_in.contains_key(&page.receiver)) {
            places.entry(&page.receiver).or_insert(None);
        }
    }
    for (receiver, failing) in &incident.stands_in {
        places.entry(receiver).or_insert(Some(failing));
    }
    let mut unasked: Vec<&str> = places.keys().copied().collect();
    while let Some(receiver) = unasked.pop() {
        if let Some(fallback) = stand_in(state, incident, receiver)
            && !places.contains_key(fallback)
        {
            places.insert(fallback, Some(receiver));
            unasked.push(fallback);
        }
    }
    let receivers = policy.receivers.iter().map(String::as_str).filter(|receiver| own != Some(*receiver));
    receivers.filter_map(|receiver| Some(Told { receiver, in_place_of: *places.get(receiver)? })).collect()
}

/// Who is told in place of a receiver that takes nothing at present: not of what it has taken already.
fn stand_in<'a>(state: &'a State, incident: &Incident, receiver: &str) -> Option<&'a str> {
    let fallback = state.policy().fallbacks.get(receiver)?;
    state.receiver(receiver)?.failing_since?;
    let newest = incident.page_keys.last().map(|page| &page.dedup_key);
    let mut known = incident.page_keys.iter().filter(|page| Some(&page.dedup_key) == newest);
    let taken = known.any(|page| page.receiver == receiver && page.pending.is_empty());
    (!taken).then_some(fallback.as_str())
}

/// Receivers by the routes: those of the first that matches, and of the following ones while it says `continue`. Where
/// none matches, all.
fn routed<'a>(state: &'a State, incident: &Incident) -> BTreeSet<&'a str> {
    let policy = state.policy();
    let mut found = BTreeSet::new();
    let mut matched = false;
    for route in policy.routes.iter().filter(|route| matches(state, route, incident)) {
        matched = true;
        found.extend(route.receivers.iter().map(String::as_str));
        if !route.goes_on {
            return found;
        }
    }
    if matched { found } else { policy.receivers.iter().map(String::as_str).collect() }
}

/// Places of the routes that say who is told of `incident`, for those who ask why.
pub fn routes_of(state: &State, incident: &Incident) -> Vec<usize> {
    let mut found = Vec::new();
    for (place, route) in state.policy().routes.iter().enumerate() {
        if matches(state, route, incident) {
            found.push(place);
            if !route.goes_on {
                break;
            }
        }
    }
    found
}

fn matches(state: &State, route: &Route, incident: &Incident) -> bool {
    let one_of = |empty: bool, inside: bool| empty || inside;
    one_of(route.severities.is_empty(), route.severities.contains(&incident.severity))
        && one_of(route.reasons.is_empty(), route.reasons.contains(&incident.reason))
        && (route.services.is_empty() || serves(route, incident))
        && (route.labels.is_empty() || is_labelled(state, route, incident))
}

fn serves(route: &Route, incident: &Incident) -> bool {
    let members = incident.members.iter().take(LOOKED_AT_MAX).filter_map(|member| service_of_member(member));
    members.chain(service_of_cause(&incident.key.cause)).any(|service| route.services.contains(service))
}

/// `agent/service/probe/subject/reason`, or the cause key of a symptom.
fn service_of_member(member: &str) -> Option<&str> {
    service_of_cause(member).or_else(|| member.split('/').nth(1))
}

/// The service that a cause key names, whatever else it is about.
pub fn service_of_cause(cause: &str) -> Option<&str> {
    let rest = match (cause.strip_prefix("host/"), cause.strip_prefix("fleet/")) {
        (Some(rest), _) => rest.split_once('/')?.1,
        (None, Some(rest)) => rest,
        (None, None) => return None,
    };
    rest.split('/').nth(1).filter(|service| !service.is_empty())
}

/// The host that a cause key is about, if it is about one.
pub fn host_of_cause(cause: &str) -> Option<&str> {
    cause.strip_prefix("host/")?.split('/').next()
}

fn is_labelled(state: &State, route: &Route, incident: &Incident) -> bool {
    incident.agents.iter().take(LOOKED_AT_MAX).any(|agent| {
        let hello = state.agent(agent).and_then(|record| record.hello.as_ref());
        hello.is_some_and(|hello| route.labels.iter().all(|(name, value)| hello.labels.get(name) == Some(value)))
    })
}

/// For each route that can never match, the earlier one that takes everything it would.
pub fn unreachable(policy: &Policy) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (late, route) in policy.routes.iter().enumerate() {
        let earlier = policy.routes.iter().take(late);
        let mut ending = earlier.enumerate().filter(|(_, earlier)| !earlier.goes_on);
        if let Some((early, _)) = ending.find(|(_, earlier)| covers(earlier, route)) {
            found.push((late, early));
        }
    }
    found
}

/// True when `wide` matches whatever `narrow` does.
fn covers(wide: &Route, narrow: &Route) -> bool {
    fn set<T: Ord>(wide: &BTreeSet<T>, narrow: &BTreeSet<T>) -> bool {
        wide.is_empty() || (!narrow.is_empty() && narrow.is_subset(wide))
    }
    set(&wide.severities, &narrow.severities)
        && set(&wide.reasons, &narrow.reasons)
        && set(&wide.services, &narrow.services)
        && wide.labels.iter().all(|(name, value)| narrow.labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::severity::Severity;

    #[test]
    fn services_and_hosts_are_read_off_the_key() {
        for (cause, service, host) in [
            ("host/web-1/service/spl", Some("spl"), Some("web-1")),
            ("host/web-1/lock/spl//var/a.db", Some("spl"), Some("web-1")),
            ("host/web-1/agent", None, Some("web-1")),
            ("fleet/restart_storm/spl", Some("spl"), None),
            ("fleet/mass_stale", None, None),
            ("coordinator/fault", None, None),
        ] {
            assert_eq!((service_of_cause(cause), host_of_cause(cause)), (service, host), "{cause}");
        }
        assert_eq!(service_of_member("web-1/spl/port/127.0.0.1:1/port_closed"), Some("spl"));
        assert_eq!(service_of_member("web-1"), None);
    }

    #[test]
    fn a_route_behind_one_that_takes_all_of_it_is_found() {
        let route = |severities: &[Severity], services: &[&str], goes_on| Route {
            severities: severities.iter().copied().collect(),
            services: services.iter().map(ToString::to_string).collect(),
            goes_on,
            ..Route::default()
        };
        let routes = vec![
            route(&[], &["spl"], true),
            route(&[Severity::Sev1, Severity::Sev2], &[], false),
            route(&[Severity::Sev1], &["spl"], false),
            route(&[], &["spl"], false),
            route(&[], &[], false),
            route(&[Severity::Sev4], &[], false),
        ];
        let policy = Policy { routes, ..Policy::default() };
        assert_eq!(unreachable(&policy), [(2, 1), (5, 4)]);
    }
}
