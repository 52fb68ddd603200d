//! Deadlocks: processes that wait for each other in a ring.
//!
//! The kernel refuses such a ring among POSIX locks; among flocks, open file description locks and mixtures of them it
//! does not look. A ring of processes with one thread each can never end by itself.

use super::table::Contended;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Longest ring that is looked for; longer ones are not told apart from a long queue.
const RING_MAX: usize = 16;

/// The first ring through `start`, as pids, each waiting for the next and the last for the first.
pub fn through(contended: &[Contended], start: u32) -> Option<Vec<u32>> {
    let mut waits_for: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for Contended { holder, waiters } in contended {
        let Some(holder) = holder.pid else { continue };
        for waiter in waiters.iter().filter_map(|waiter| waiter.pid).filter(|waiter| *waiter != holder) {
            waits_for.entry(waiter).or_default().insert(holder);
        }
    }
    // Breadth first, so that the shortest ring is found and every process is looked at once.
    let mut came_from: BTreeMap<u32, u32> = BTreeMap::new();
    let mut frontier = vec![start];
    for _ in 0..RING_MAX {
        let mut next = Vec::new();
        for pid in frontier {
            for held_by in waits_for.get(&pid).into_iter().flatten().copied() {
                if held_by == start {
                    return Some(path(&came_from, start, pid));
                }
                if let Entry::Vacant(place) = came_from.entry(held_by) {
                    place.insert(pid);
                    next.push(held_by);
                }
            }
        }
        frontier = next;
    }
    None
}

fn path(came_from: &BTreeMap<u32, u32>, start: u32, last: u32) -> Vec<u32> {
    let mut ring = vec![last];
    let mut at = last;
    while at != start {
        let Some(before) = came_from.get(&at) else { break };
        at = *before;
        ring.push(at);
    }
    ring.reverse();
    ring
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::table::parse;

    /// `holder<waiter,waiter` per lock.
    fn check(locks: &[&str], start: u32, expected: Option<&[u32]>) {
        let mut text = String::new();
        for (number, lock) in locks.iter().enumerate() {
            let (holder, waiters) = lock.split_once('<').unwrap();
            text.push_str(&format!("{number}: FLOCK  ADVISORY  WRITE {holder} fe:00:{number} 0 EOF\n"));
            for waiter in waiters.split(',') {
                text.push_str(&format!("{number}: -> FLOCK  ADVISORY  WRITE {waiter} fe:00:{number} 0 EOF\n"));
            }
        }
        let table = parse(&text, &BTreeSet::new());
        assert_eq!(through(&table.contended, start).as_deref(), expected, "{locks:?}");
    }

    #[test]
    fn rings_are_found_and_queues_are_none() {
        check(&["1<2", "2<1"], 1, Some(&[1, 2]));
        check(&["1<2", "2<1"], 2, Some(&[2, 1]));
        check(&["1<2,3", "3<4"], 4, None);
        check(&["1<2", "2<3", "3<1"], 3, Some(&[3, 2, 1]));
        check(&["1<2", "2<3", "3<2"], 1, None);
        check(&["1<1"], 1, None);
        check(&["1<9", "2<1", "1<2"], 9, None);
        check(&["-1<2", "2<-1"], 2, None);
    }
}
