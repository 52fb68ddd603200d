//! Callers that this coordinator refused or that call in a loop, by route, within a window. What the listener and the
//! services count comes here as one fact a minute for each caller.

use crate::apply::{Step, drop_if_empty};
use crate::signals;
use crate::state::State;
use muster_common::limits::clip;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Before the route in the cause keys.
pub const PREFIX: &str = "fleet/auth_abuse/";
/// Before the route of those whom nobody refused and who call in a loop, within the cause keys as well. No route of a
/// refusal begins with it.
const LOOP: &str = "loop/";
/// The route of agents that reconnect in a loop.
pub const RECONNECTS: &str = "agent_link";
/// Routes remembered; there are about as many as there are calls in the contract.
pub const ROUTES_MAX: usize = 96;
/// Callers of one route remembered; beyond, the one that was refused last the longest ago is forgotten.
pub const CALLERS_MAX: usize = 128;
/// Facts about one caller within a window: one a minute.
const COUNTS_MAX: usize = 64;
/// Bytes of a caller's name and of a reason.
const WORDS_BYTES_MAX: usize = 128;

/// When refusals are an abuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthAbusePolicy {
    /// So many of one caller on one route ...
    pub refusals: u32,
    /// ... within this time.
    pub window: Duration,
    /// One caller's calls within a minute, beyond which it is in a loop. A person has a handful, a dashboard one a second.
    #[serde(default = "calls_per_minute")]
    pub calls_per_minute: u32,
}

const fn calls_per_minute() -> u32 {
    600
}

impl Default for AuthAbusePolicy {
    fn default() -> Self {
        Self { refusals: 60, window: Duration::from_secs(600), calls_per_minute: calls_per_minute() }
    }
}

/// One caller on one route.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Caller {
    /// Why it was refused last.
    pub why: String,
    /// From where it called last.
    pub address: String,
    /// How often, and when that was told.
    counts: VecDeque<(Timestamp, u64)>,
}

impl Caller {
    /// Refusals within the window before `now`, and when the first and the last of them were told.
    pub(crate) fn within(&self, now: Timestamp, window: Duration) -> Option<(u64, Timestamp, Timestamp)> {
        let inside = || self.counts.iter().filter(|(at, _)| *at + window > now);
        let count = inside().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
        Some((count, inside().next()?.0, inside().next_back()?.0))
    }
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Refusals {
    routes: BTreeMap<String, BTreeMap<String, Caller>>,
}

impl Refusals {
    /// The callers of a route by name.
    pub fn callers(&self, route: &str) -> impl Iterator<Item = (&str, &Caller)> {
        self.routes.get(route).into_iter().flatten().map(|(name, caller)| (name.as_str(), caller))
    }
}

/// A caller was refused `count` times since the last fact about it.
pub(crate) fn refused(state: &mut State, step: Step, caller: &str, address: &str, route: &str, why: &str, count: u64) {
    count_in(state, step, (caller, address), plain(route), why, count);
}

/// A caller called `count` times, most of all this; or an agent reconnected.
pub(crate) fn looped(state: &mut State, step: Step, caller: &str, address: &str, route: &str, count: u64) {
    count_in(state, step, (caller, address), format!("{LOOP}{}", plain(route)), "", count);
}

/// The route of those that call in a loop; none for one of refusals.
pub(crate) fn loop_of(route: &str) -> Option<&str> {
    route.strip_prefix(LOOP)
}

fn count_in(state: &mut State, step: Step, (caller, address): (&str, &str), route: String, why: &str, count: u64) {
    let caller = clip(caller, WORDS_BYTES_MAX);
    let window = state.policy.signals.auth_abuse.window;
    let routes = &mut state.signals.refusals.routes;
    if routes.len() >= ROUTES_MAX && !routes.contains_key(&route) {
        return;
    }
    let callers = routes.entry(route.clone()).or_default();
    callers.retain(|_, caller| caller.within(step.at, window).is_some());
    if callers.len() >= CALLERS_MAX && !callers.contains_key(&caller) {
        let last = |caller: &Caller| caller.counts.back().map(|(at, _)| *at);
        let oldest = callers.iter().min_by_key(|(_, caller)| last(caller)).map(|(name, _)| name.clone());
        oldest.and_then(|oldest| callers.remove(&oldest));
    }
    let known = callers.entry(caller).or_default();
    known.why = clip(why, WORDS_BYTES_MAX);
    known.address = clip(address, WORDS_BYTES_MAX);
    known.counts.retain(|(at, _)| *at + window > step.at);
    if known.counts.len() >= COUNTS_MAX {
        known.counts.pop_front();
    }
    known.counts.push_back((step.at, count));
    let key = format!("{PREFIX}{route}");
    state.causes.entry(key.clone()).or_default();
    signals::set_due(state, &key, Some(step.at + window));
    state.touched.insert(key);
}

/// A window without a refusal is over: what is old is forgotten.
pub(crate) fn due(state: &mut State, step: Step, key: &str) {
    let Some(route) = key.strip_prefix(PREFIX) else { return };
    let window = state.policy.signals.auth_abuse.window;
    if let Some(callers) = state.signals.refusals.routes.get_mut(route) {
        callers.retain(|_, caller| caller.within(step.at, window).is_some());
        if callers.is_empty() {
            state.signals.refusals.routes.remove(route);
        }
    }
    drop_if_empty(state, key);
}

/// Callers above the threshold at `now`: the worst first, with their count.
pub(crate) fn abusive<'a>(state: &'a State, now: Timestamp, route: &str) -> Vec<(&'a str, &'a Caller, u64)> {
    let policy = &state.policy.signals.auth_abuse;
    let callers = state.signals.refusals.routes.get(route).into_iter().flatten();
    // Who calls in a loop is told of for nothing else; reconnects are counted before they are judged.
    let is_proof = loop_of(route).is_some_and(|route| route != RECONNECTS);
    let enough = if is_proof { 1 } else { u64::from(policy.refusals) };
    let counted = callers.filter_map(|(name, caller)| {
        let (count, ..) = caller.within(now, policy.window)?;
        (count >= enough).then_some((name.as_str(), caller, count))
    });
    let mut counted: Vec<_> = counted.collect();
    counted.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
    counted
}

/// Only what a cause key can hold.
fn plain(route: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    clip(route, WORDS_BYTES_MAX).chars().map(letter).collect()
}
