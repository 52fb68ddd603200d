//! Places: what agents share that may fail as a whole: the value of a label, the subnet of the address they come from.
//! State counts the agents of each place, so that a share of them costs no pass over the fleet.

use crate::cause;
use crate::entry::AgentHello;
use crate::state::{Cause, Link, State};
use muster_common::ids::AgentName;
use muster_common::limits::clip;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Places that are counted. Beyond, shares of places cannot be told any more, and no rule asks about places; what is
/// counted over the whole fleet goes on.
pub const PLACES_MAX: usize = 65_536;
/// Labels of an agent that make places, in the order of their names.
const LABELS_COUNTED_MAX: usize = 16;
/// Bytes of a place's name: what a person can read in a title.
const PLACE_BYTES_MAX: usize = 128;
/// Members compared where one group of hosts is said to be part of another: of thousands these tell.
const COMPARED_MAX: usize = 32;

/// The agents of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// All that are known.
    pub agents: u64,
    /// Those that are silent.
    pub silent: u64,
}

/// The places of an agent that says this of itself: labels first.
pub(crate) fn of_hello(hello: &AgentHello) -> Vec<String> {
    let labels = hello.labels.iter().filter(|(name, value)| !name.is_empty() && !value.is_empty());
    let labels = labels.take(LABELS_COUNTED_MAX).map(|(name, value)| {
        let place = cause::joined(&[name, "=", value]);
        if place.len() <= PLACE_BYTES_MAX { place } else { clip(&place, PLACE_BYTES_MAX) }
    });
    let mut places: Vec<String> = Vec::with_capacity(1 + hello.labels.len().min(LABELS_COUNTED_MAX));
    for place in labels.chain(subnet(&hello.peer_address)) {
        // Two long ones may be clipped to the same.
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

/// The places of a known agent.
pub(super) fn of(state: &State, agent: &AgentName) -> Vec<String> {
    let hello = state.agent(agent).and_then(|record| record.hello.as_deref());
    hello.map(of_hello).unwrap_or_default()
}

/// `10.0.1.0/24`, `2001:db8:0:1::/64`; none for an address that says nothing about where the host is.
fn subnet(peer: &str) -> Option<String> {
    let address = peer.parse::<IpAddr>().or_else(|_| peer.parse::<SocketAddr>().map(|peer| peer.ip())).ok()?;
    if address.is_loopback() || address.is_unspecified() {
        return None;
    }
    // Nearly all are told so: the network's text is then the address's, but for the last number.
    if let (true, Some((network, _))) = (address.is_ipv4() && !peer.contains(':'), peer.rsplit_once('.')) {
        return Some(cause::joined(&[network, ".0/24"]));
    }
    Some(match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    })
}

/// Whether places are counted well enough to ask for shares of them.
pub(super) fn are_counted(state: &State) -> bool {
    state.detect.places_dropped == 0
}

/// The agents of a place.
pub(super) fn count(state: &State, place: &str) -> Place {
    state.detect.places.get(place).copied().unwrap_or_default()
}

/// An agent is in these places from now on.
pub(crate) fn enter(state: &mut State, places: &[String], silent: bool) {
    for place in places {
        let has_room = state.detect.places.len() < PLACES_MAX;
        let count = match state.detect.places.get_mut(place) {
            Some(count) => count,
            None if has_room => state.detect.places.get_or_insert_with(place, Place::default),
            None => {
                state.detect.places_dropped = state.detect.places_dropped.saturating_add(1);
                continue;
            }
        };
        count.agents = count.agents.saturating_add(1);
        count.silent = count.silent.saturating_add(u64::from(silent));
    }
}

/// An agent is not in these places any more.
pub(crate) fn leave(state: &mut State, places: &[String], silent: bool) {
    for place in places {
        let Some(count) = state.detect.places.get_mut(place) else { continue };
        count.agents = count.agents.saturating_sub(1);
        count.silent = count.silent.saturating_sub(u64::from(silent));
        if count.agents == 0 {
            state.detect.places.remove(place);
        }
    }
}

/// An agent is forgotten.
pub(crate) fn gone(state: &mut State, agent: &AgentName) {
    let places = of(state, agent);
    leave(state, &places, false);
}

/// An agent falls silent, or is silent no more.
pub(crate) fn silence(state: &mut State, agent: &AgentName, silent: bool) {
    for place in of(state, agent) {
        if let Some(count) = state.detect.places.get_mut(&place) {
            count.silent = if silent { count.silent.saturating_add(1) } else { count.silent.saturating_sub(1) };
        }
    }
}

/// Whether all hosts of one group are in another; of large groups some are compared.
pub(super) fn is_part(inner: &Cause, outer: &Cause) -> bool {
    !inner.agents.is_empty()
        && inner.agents.len() <= outer.agents.len()
        && inner.agents.keys().take(COMPARED_MAX).all(|agent| outer.agents.contains_key(agent))
}

/// Whether all of some hosts are among others; of many some are compared.
pub(super) fn are_part(inner: &BTreeSet<AgentName>, outer: &BTreeSet<AgentName>) -> bool {
    !inner.is_empty()
        && inner.len() <= outer.len()
        && inner.iter().take(COMPARED_MAX).all(|agent| outer.contains(agent))
}

/// Whether, of two groups with the same hosts, the inner one is told by the outer: the whole fleet tells it, the one with
/// more hosts, the better fitting place, the first by name. Groups are given as key and number of hosts.
pub(super) fn yields<'a>(
    state: &State,
    inner: (&'a str, usize),
    outer: (&'a str, usize),
    place_of: impl Fn(&'a str) -> Option<&'a str>,
) -> bool {
    let Some(outer_place) = place_of(outer.0) else { return true };
    let Some(inner_place) = place_of(inner.0) else { return false };
    let fit = |hosts: usize, place: &'a str| (std::cmp::Reverse(hosts), count(state, place).agents, place);
    fit(outer.1, outer_place) < fit(inner.1, inner_place)
}

/// The groups of other places under `prefix` that have an incident: each of them may be part of `group`. Asked when an
/// incident opens, turns or ends, and not for each member.
pub(super) fn other_groups(state: &State, prefix: &str, group: &str) -> Vec<String> {
    let places = format!("{prefix}/");
    let known = state.causes.starting_with(&places);
    known.filter(|(key, cause)| cause.active && *key != group).map(|(key, _)| key.clone()).collect()
}

/// The narrowest place that all hosts of a group are in, if it is narrower than the fleet; of large groups some hosts are
/// asked.
pub(super) fn narrowest(state: &State, cause: &Cause) -> Option<(String, Place)> {
    let mut agents = cause.agents.keys().take(COMPARED_MAX);
    let mut common = of(state, agents.next()?);
    for agent in agents {
        if common.is_empty() {
            break;
        }
        let places = of(state, agent);
        common.retain(|place| places.contains(place));
    }
    let n = cause.agents.len() as u64;
    let n_fleet = state.agents.len() as u64;
    let counted = common.into_iter().map(|place| (count(state, &place), place));
    let narrow = counted.filter(|(count, _)| count.agents >= n && count.agents < n_fleet);
    // Of equally narrow ones the first: labels say more than subnets.
    let narrowest = narrow.reduce(|best, other| if other.0.agents < best.0.agents { other } else { best });
    narrowest.filter(|_| are_counted(state)).map(|(count, place)| (place, count))
}

/// `all 12 agents of zone=b`, `11 of 12 agents of zone=b`.
pub(super) fn words(n: u64, unit: &str, place: &str, all: u64) -> String {
    if n >= all { format!("all {n} {unit} of {place}") } else { format!("{n} of {all} {unit} of {place}") }
}

/// Whether the agent is silent, as places count it.
pub(crate) fn is_silent(state: &State, agent: &AgentName) -> bool {
    state.agent(agent).is_some_and(|record| matches!(record.link, Link::Silent { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_subnet() {
        assert_eq!(subnet("10.1.2.3:4000").as_deref(), Some("10.1.2.0/24"));
        assert_eq!(subnet("[2001:db8:0:1:2:3:4:5]:4000").as_deref(), Some("2001:db8:0:1::/64"));
        assert_eq!(subnet("[::ffff:10.1.2.3]:4000").as_deref(), Some("10.1.2.0/24"));
        assert_eq!((subnet("127.0.0.1:1"), subnet("[::1]:1"), subnet("unix"), subnet("")), (None, None, None, None));
    }
}
