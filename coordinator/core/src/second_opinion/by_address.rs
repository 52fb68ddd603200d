//! The agents by the address that they connect from. One family each: a map's nodes hold the numbers of eleven addresses
//! of four bytes in one line of the cache, and among a million such lines are what a connect waits for.
//!
//! Written as one map of sets, addresses of four bytes first.

use crate::state::FewSet;
use muster_common::ids::AgentName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// See the head of the file. Behind an address is nearly always one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ByAddress {
    v4: BTreeMap<Ipv4Addr, FewSet<AgentName>>,
    v6: BTreeMap<Ipv6Addr, FewSet<AgentName>>,
}

impl ByAddress {
    pub(super) fn get(&self, address: IpAddr) -> Option<&FewSet<AgentName>> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address),
            IpAddr::V6(address) => self.v6.get(&address),
        }
    }

    /// Those at lower addresses of the same family, the nearest first.
    pub(super) fn below(&self, address: IpAddr) -> Box<dyn Iterator<Item = &FewSet<AgentName>> + '_> {
        match address {
            IpAddr::V4(address) => Box::new(self.v4.range(..address).rev().map(|(_, agents)| agents)),
            IpAddr::V6(address) => Box::new(self.v6.range(..address).rev().map(|(_, agents)| agents)),
        }
    }

    /// Those at higher addresses of the same family, the nearest first.
    pub(super) fn above(&self, address: IpAddr) -> Box<dyn Iterator<Item = &FewSet<AgentName>> + '_> {
        let higher = |at: bool, agents| (!at).then_some(agents);
        match address {
            IpAddr::V4(own) => Box::new(self.v4.range(own..).filter_map(move |(at, all)| higher(*at == own, all))),
            IpAddr::V6(own) => Box::new(self.v6.range(own..).filter_map(move |(at, all)| higher(*at == own, all))),
        }
    }

    /// An agent connects from this address.
    pub(super) fn enter(&mut self, address: IpAddr, agent: &AgentName) {
        let agents = match address {
            IpAddr::V4(address) => self.v4.entry(address).or_default(),
            IpAddr::V6(address) => self.v6.entry(address).or_default(),
        };
        agents.insert(agent.clone());
    }

    /// It does not any more.
    pub(super) fn leave(&mut self, address: IpAddr, agent: &AgentName) {
        match address {
            IpAddr::V4(address) => leave(&mut self.v4, address, agent),
            IpAddr::V6(address) => leave(&mut self.v6, address, agent),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (IpAddr, &FewSet<AgentName>)> {
        let v4 = self.v4.iter().map(|(address, agents)| (IpAddr::V4(*address), agents));
        v4.chain(self.v6.iter().map(|(address, agents)| (IpAddr::V6(*address), agents)))
    }
}

fn leave<A: Ord>(index: &mut BTreeMap<A, FewSet<AgentName>>, address: A, agent: &AgentName) {
    let Some(agents) = index.get_mut(&address) else { return };
    agents.remove(agent);
    if agents.is_empty() {
        index.remove(&address);
    }
}

impl Serialize for ByAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for ByAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut index = Self::default();
        for (address, agents) in BTreeMap::<IpAddr, FewSet<AgentName>>::deserialize(deserializer)? {
            agents.iter().for_each(|agent| index.enter(address, agent));
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// What it holds, what lies near an address, and how it is written, are those of a map of sets.
        #[test]
        fn it_is_a_map_of_sets(moves in proptest::collection::vec((any::<bool>(), 0..6_u8, 0..4_u8), 0..40)) {
            let (mut index, mut sets) = (ByAddress::default(), BTreeMap::<IpAddr, BTreeSet<AgentName>>::new());
            for (comes, address, agent) in moves {
                let last = u16::from(address);
                let address = match address {
                    0..3 => IpAddr::from([10, 0, 0, address]),
                    _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]),
                };
                let agent = AgentName::new(format!("web-{agent}")).unwrap();
                let set = sets.entry(address).or_default();
                if comes {
                    index.enter(address, &agent);
                    set.insert(agent);
                } else {
                    index.leave(address, &agent);
                    set.remove(&agent);
                }
                sets.retain(|_, set| !set.is_empty());
                let written = serde_json::to_string(&index).unwrap();
                prop_assert_eq!(&written, &serde_json::to_string(&sets).unwrap());
                prop_assert_eq!(&serde_json::from_str::<ByAddress>(&written).unwrap(), &index);
                prop_assert_eq!(index.get(address).map(FewSet::len), sets.get(&address).map(BTreeSet::len));
                let alike = |other: &IpAddr| *other != address && other.is_ipv4() == address.is_ipv4();
                let names = |agents: &FewSet<AgentName>| agents.iter().cloned().collect::<BTreeSet<_>>();
                let below: Vec<_> = index.below(address).map(names).collect();
                let lower = sets.range(..address).rev().filter(|(other, _)| alike(other));
                prop_assert_eq!(below, lower.map(|(_, set)| set.clone()).collect::<Vec<_>>());
                let above: Vec<_> = index.above(address).map(names).collect();
                let higher = sets.range(address..).filter(|(other, _)| alike(other));
                prop_assert_eq!(above, higher.map(|(_, set)| set.clone()).collect::<Vec<_>>());
            }
        }
    }
}
