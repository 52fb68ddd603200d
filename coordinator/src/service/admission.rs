//! How many agents are let in per second: after a start or a takeover the whole fleet comes at once. Who is a little
//! early waits for its turn: it has made its handshake already, and to send it away would cost both sides another one.
//!
//! Must never let one identity, however often it comes, take the places of the others.

use muster_common::ids::AgentName;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A second's worth may come at once.
const BURST: Duration = Duration::from_secs(1);
/// Longest wait for a turn: well below the time that agents give a greeting. Overflow rule: who would have to wait longer
/// is sent away, and comes back later.
const WAIT_MAX: Duration = Duration::from_secs(5);
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
    /// Takes a token for `agent` at `now`, with `per_s` tokens a second, and gives the time to wait for it; `None` when
    /// that is too long, or when this one had its share.
    pub(super) fn admit(&self, now: Instant, per_s: u32, agent: &AgentName) -> Option<Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken(buckets.by_agent.get(agent).copied(), now, per_s / SHARE_ONE_IN, Duration::ZERO)?;
        let common = taken(buckets.common, now, per_s, WAIT_MAX)?;
        buckets.common = Some(common);
        if buckets.by_agent.len() >= IDENTITIES_MAX {
            buckets.by_agent.retain(|_, full_at| *full_at > now);
        }
        if buckets.by_agent.len() < IDENTITIES_MAX {
            buckets.by_agent.insert(agent.clone(), own);
        }
        Some(common.duration_since(now).saturating_sub(BURST))
    }
}

/// The bucket after a token was taken, perhaps in advance; none when that is more than `wait` away.
fn taken(full_at: Option<Instant>, now: Instant, per_s: u32, wait: Duration) -> Option<Instant> {
    let cost = Duration::from_secs(1) / per_s.max(1);
    let next = full_at.unwrap_or(now).max(now) + cost;
    (next.duration_since(now) <= BURST.max(cost) + wait).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: usize) -> AgentName {
        AgentName::new(format!("web-{n}")).unwrap()
    }

    #[test]
    fn admits_a_burst_then_the_rate_then_nobody() {
        let (admission, start) = (Admission::default(), Instant::now());
        let admit = |now, n| admission.admit(now, 10, &agent(n));
        assert!((0..10).all(|n| admit(start, n) == Some(Duration::ZERO)));
        let waits: Vec<_> = (10..100).map_while(|n| admit(start, n)).collect();
        assert_eq!(waits.len(), 50, "five seconds' worth");
        assert_eq!(waits.first().zip(waits.last()), Some((&Duration::from_millis(100), &Duration::from_secs(5))));
        let later = start + Duration::from_millis(300);
        assert_eq!((200..250).map_while(|n| admit(later, n)).count(), 3);
    }

    #[test]
    fn one_identity_leaves_room_for_the_others() {
        let (admission, now) = (Admission::default(), Instant::now());
        let is_in = |n| admission.admit(now, 100, &agent(n)) == Some(Duration::ZERO);
        assert_eq!((0..1_000).filter(|_| admission.admit(now, 100, &agent(0)).is_some()).count(), 10);
        assert_eq!((1..=90).filter(|n| is_in(*n)).count(), 90);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (admission, now) = (Admission::default(), Instant::now());
        for n in 0..2 * IDENTITIES_MAX {
            let now = now + Duration::from_millis(u64::try_from(n).unwrap());
            assert!(admission.admit(now, 100_000, &agent(n)).is_some());
        }
        assert!(admission.buckets.lock().unwrap().by_agent.len() <= IDENTITIES_MAX);
    }
}
