//! How many agents are let in per second: after a start or a takeover the whole fleet comes at once.
//!
//! Must never let one identity, however often it comes, take the places of the others.

use muster_common::ids::AgentName;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A second's worth may come at once.
const BURST: Duration = Duration::from_secs(1);
/// One identity takes at most one in this many of the places.
const SHARE_ONE_IN: u32 = 10;
/// Identities whose share is watched; those that have not come for a second are forgotten first. Overflow rule: one
/// beyond it is held to the common rate only.
const IDENTITIES_MAX: usize = 8_192;

/// Token buckets, each as the moment at which it will be full again.
#[derive(Debug, Default)]
pub(super) struct Admission {
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    common: Option<Instant>,
    by_agent: BTreeMap<AgentName, Instant>,
}

impl Admission {
    /// Takes a token for `agent` at `now`, with `per_s` tokens a second; `false` when there is none, or none for this one.
    pub(super) fn admit(&self, now: Instant, per_s: u32, agent: &AgentName) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken(buckets.by_agent.get(agent).copied(), now, per_s / SHARE_ONE_IN);
        let common = taken(buckets.common, now, per_s);
        let (Some(own), Some(common)) = (own, common) else { return false };
        buckets.common = Some(common);
        if buckets.by_agent.len() >= IDENTITIES_MAX {
            buckets.by_agent.retain(|_, full_at| *full_at > now);
        }
        if buckets.by_agent.len() < IDENTITIES_MAX {
            buckets.by_agent.insert(agent.clone(), own);
        }
        true
    }
}

/// The bucket after a token was taken; none when it is empty.
fn taken(full_at: Option<Instant>, now: Instant, per_s: u32) -> Option<Instant> {
    let cost = Duration::from_secs(1) / per_s.max(1);
    let next = full_at.unwrap_or(now).max(now) + cost;
    (next.duration_since(now) <= BURST.max(cost)).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: usize) -> AgentName {
        AgentName::new(format!("web-{n}")).unwrap()
    }

    #[test]
    fn admits_a_burst_then_the_rate() {
        let (admission, start) = (Admission::default(), Instant::now());
        let admitted = |now, from| (from..from + 50).filter(|n| admission.admit(now, 10, &agent(*n))).count();
        assert_eq!(admitted(start, 0), 10);
        assert_eq!(admitted(start + Duration::from_millis(300), 100), 3);
    }

    #[test]
    fn one_identity_leaves_room_for_the_others() {
        let (admission, now) = (Admission::default(), Instant::now());
        assert_eq!((0..1_000).filter(|_| admission.admit(now, 100, &agent(0))).count(), 10);
        assert_eq!((1..=90).filter(|n| admission.admit(now, 100, &agent(*n))).count(), 90);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (admission, now) = (Admission::default(), Instant::now());
        for n in 0..2 * IDENTITIES_MAX {
            let now = now + Duration::from_millis(u64::try_from(n).unwrap());
            assert!(admission.admit(now, 100_000, &agent(n)));
        }
        assert!(admission.buckets.lock().unwrap().by_agent.len() <= IDENTITIES_MAX);
    }
}
