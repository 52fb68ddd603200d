//! The agents by name. Among a million a search costs more than what most rules do with what they find, and the rules ask
//! again and again for the agent that the entry is about: where that one lies is remembered, so that an entry searches once.
//!
//! The map that is searched has the names' first bytes as numbers side by side, four in a line of the cache; records lie in
//! blocks, in the order in which they came. Ordered, compared and written as a map by name is.

use super::{AgentRecord, Few};
use muster_common::ids::AgentName;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// Records of a block: enough that the list of blocks of a large fleet is small, and few enough for a small fleet.
const BLOCK: usize = 256;

/// See the head of the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Agents {
    /// Where each lies, by the head of its name: its number is that of its block times [`BLOCK`], and its place there. Names
    /// with the same head, which long ones may have, lie together.
    numbers: BTreeMap<u128, Few<AgentName, usize>>,
    length: usize,
    /// All but the last are full: where one is forgotten, the last of all takes its place.
    blocks: Vec<Vec<AgentRecord>>,
    /// The one that was to be changed last. Nothing that is known: any number is right.
    last: usize,
}

impl Agents {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn get(&self, name: &AgentName) -> Option<&AgentRecord> {
        self.at(self.find(name)?)
    }

    pub(crate) fn get_mut(&mut self, name: &AgentName) -> Option<&mut AgentRecord> {
        self.last = self.find(name)?;
        self.at_mut(self.last)
    }

    /// The record; a new one where there is none.
    pub(crate) fn get_or_insert_with(
        &mut self,
        name: &AgentName,
        make: impl FnOnce() -> AgentRecord,
    ) -> &mut AgentRecord {
        let next = self.length;
        if !self.is_at(self.last, name) {
            self.last = *self.numbers.entry(name.head()).or_default().get_or_insert_with(name, || next);
        }
        if self.last == next {
            if next.is_multiple_of(BLOCK) {
                self.blocks.push(Vec::with_capacity(BLOCK));
            }
            self.blocks[next / BLOCK].push(make());
            self.length += 1;
        }
        &mut self.blocks[self.last / BLOCK][self.last % BLOCK]
    }

    pub(crate) fn remove(&mut self, name: &AgentName) -> Option<AgentRecord> {
        let alike = self.numbers.get_mut(&name.head())?;
        let number = alike.remove(name)?;
        if alike.is_empty() {
            self.numbers.remove(&name.head());
        }
        self.length -= 1;
        let last = self.blocks.last_mut()?.pop()?;
        self.blocks.pop_if(|block| block.is_empty());
        if last.name == *name {
            return Some(last);
        }
        self.numbers.entry(last.name.head()).or_default().insert(last.name.clone(), number);
        self.at_mut(number).map(|record| std::mem::replace(record, last))
    }

    /// In order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &AgentName> {
        self.numbers.values().flat_map(Few::keys)
    }

    /// By name.
    pub(crate) fn values(&self) -> impl Iterator<Item = &AgentRecord> {
        self.numbers.values().flat_map(Few::values).filter_map(|number| self.at(*number))
    }

    /// The names before this one, the nearest first.
    pub(crate) fn before<'a>(&'a self, name: &'a AgentName) -> impl Iterator<Item = &'a AgentName> {
        let alike = self.numbers.range(..=name.head()).rev().flat_map(|(_, alike)| {
            let mut names: Vec<&AgentName> = alike.keys().collect();
            names.reverse();
            names
        });
        alike.skip_while(move |other| *other >= name)
    }

    /// The names after this one, the nearest first.
    pub(crate) fn after<'a>(&'a self, name: &'a AgentName) -> impl Iterator<Item = &'a AgentName> {
        let alike = self.numbers.range(name.head()..).flat_map(|(_, alike)| alike.keys());
        alike.skip_while(move |other| *other <= name)
    }

    fn find(&self, name: &AgentName) -> Option<usize> {
        match self.is_at(self.last, name) {
            true => Some(self.last),
            false => self.numbers.get(&name.head())?.get(name).copied(),
        }
    }

    fn is_at(&self, number: usize, name: &AgentName) -> bool {
        self.at(number).is_some_and(|record| record.name == *name)
    }

    fn at(&self, number: usize) -> Option<&AgentRecord> {
        self.blocks.get(number / BLOCK)?.get(number % BLOCK)
    }

    fn at_mut(&mut self, number: usize) -> Option<&mut AgentRecord> {
        self.blocks.get_mut(number / BLOCK)?.get_mut(number % BLOCK)
    }
}

impl PartialEq for Agents {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.keys().eq(other.keys()) && self.values().eq(other.values())
    }
}

impl Serialize for Agents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.keys().zip(self.values()))
    }
}

impl<'de> Deserialize<'de> for Agents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Agents;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("agents by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Agents, M::Error> {
                let mut agents = Agents::default();
                while let Some((name, record)) = map.next_entry::<AgentName, AgentRecord>()? {
                    agents.get_or_insert_with(&name, || record);
                }
                Ok(agents)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::links::unheard;
    use muster_common::time::Timestamp;
    use proptest::prelude::*;

    /// Short ones, and long ones with the same head.
    fn name(number: u32) -> AgentName {
        let begin = if number.is_multiple_of(3) { "a-long-name-of-a-host-in-a-rack" } else { "web" };
        AgentName::new(format!("{begin}-{number}")).unwrap()
    }

    fn record(number: u32) -> AgentRecord {
        unheard(name(number), Timestamp::UNIX_EPOCH)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What it holds, its order and how it is written are those of a map by name, also beyond one block.
        #[test]
        fn it_is_a_map_by_name(
            known in 0..600_u32,
            moves in proptest::collection::vec((0..3_u8, 0..600_u32), 0..100),
        ) {
            let (mut agents, mut map) = (Agents::default(), BTreeMap::new());
            for number in 0..known {
                agents.get_or_insert_with(&name(number), || record(number));
                map.insert(name(number), record(number));
            }
            for (step, (how, number)) in (1_u64..).zip(moves) {
                let name = name(number);
                match how {
                    0 => {
                        agents.get_or_insert_with(&name, || record(number)).reconnects += step;
                        map.entry(name.clone()).or_insert_with(|| record(number)).reconnects += step;
                    }
                    1 => {
                        let changed = agents.get_mut(&name).map(|record| record.reboots = step);
                        prop_assert_eq!(changed, map.get_mut(&name).map(|record| record.reboots = step));
                    }
                    _ => prop_assert_eq!(agents.remove(&name), map.remove(&name)),
                }
                prop_assert_eq!((agents.get(&name), agents.len()), (map.get(&name), map.len()));
            }
            prop_assert!(agents.keys().eq(map.keys()) && agents.values().eq(map.values()));
            prop_assert!(map.iter().all(|(name, record)| agents.get(name) == Some(record)));
            for near in [0, 300, 601, 900].map(name) {
                prop_assert!(agents.before(&near).eq(map.range(..&near).rev().map(|(name, _)| name)));
                prop_assert!(agents.after(&near).eq(map.range(&near..).map(|(name, _)| name).filter(|name| **name != near)));
            }
            let written = serde_json::to_string(&agents).unwrap();
            prop_assert_eq!(&written, &serde_json::to_string(&map).unwrap());
            prop_assert_eq!(serde_json::from_str::<Agents>(&written).unwrap(), agents);
        }
    }
}
