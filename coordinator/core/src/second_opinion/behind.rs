//! The agents behind one address: nearly always one, for which a set of its own would be most of what the index costs.
//! Written as a set all the same.

use muster_common::ids::AgentName;
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// See the head of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeSet<AgentName>", into = "BTreeSet<AgentName>")]
pub(crate) enum Behind {
    One(AgentName),
    /// Never of one.
    Many(BTreeSet<AgentName>),
}

impl Behind {
    pub(super) fn is_one(&self) -> bool {
        matches!(self, Self::One(_))
    }

    /// By name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &AgentName> {
        let (one, many) = match self {
            Self::One(agent) => (Some(agent), None),
            Self::Many(agents) => (None, Some(agents)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl From<BTreeSet<AgentName>> for Behind {
    fn from(agents: BTreeSet<AgentName>) -> Self {
        match agents.first().filter(|_| agents.len() == 1) {
            Some(only) => Self::One(only.clone()),
            None => Self::Many(agents),
        }
    }
}

impl From<Behind> for BTreeSet<AgentName> {
    fn from(behind: Behind) -> Self {
        match behind {
            Behind::One(agent) => Self::from([agent]),
            Behind::Many(agents) => agents,
        }
    }
}

/// An agent connects from this address.
pub(super) fn enter(index: &mut BTreeMap<IpAddr, Behind>, address: IpAddr, agent: &AgentName) {
    let known = match index.entry(address) {
        Entry::Vacant(nobody) => {
            nobody.insert(Behind::One(agent.clone()));
            return;
        }
        Entry::Occupied(known) => known.into_mut(),
    };
    match known {
        Behind::Many(agents) => {
            agents.insert(agent.clone());
        }
        Behind::One(only) if only == agent => {}
        Behind::One(only) => *known = Behind::Many([only.clone(), agent.clone()].into()),
    }
}

/// It does not any more.
pub(super) fn leave(index: &mut BTreeMap<IpAddr, Behind>, address: IpAddr, agent: &AgentName) {
    let Some(behind) = index.get_mut(&address) else { return };
    if let Behind::Many(agents) = behind
        && agents.len() > 2
    {
        agents.remove(agent);
        return;
    }
    let others: BTreeSet<AgentName> = behind.iter().filter(|known| *known != agent).cloned().collect();
    if others.is_empty() {
        index.remove(&address);
    } else {
        *behind = others.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What it holds, and how it is written, are those of a map of sets.
        #[test]
        fn it_is_a_set(moves in proptest::collection::vec((any::<bool>(), 0..2_u8, 0..4_u8), 0..40)) {
            let (mut index, mut sets) = (BTreeMap::new(), BTreeMap::<IpAddr, BTreeSet<AgentName>>::new());
            for (comes, address, agent) in moves {
                let address = IpAddr::from([10, 0, 0, address]);
                let agent = AgentName::new(format!("web-{agent}")).unwrap();
                let set = sets.entry(address).or_default();
                if comes {
                    enter(&mut index, address, &agent);
                    set.insert(agent);
                } else {
                    leave(&mut index, address, &agent);
                    set.remove(&agent);
                }
                sets.retain(|_, set| !set.is_empty());
                let written = serde_json::to_string(&index).unwrap();
                prop_assert_eq!(&written, &serde_json::to_string(&sets).unwrap());
                prop_assert_eq!(&serde_json::from_str::<BTreeMap<IpAddr, Behind>>(&written).unwrap(), &index);
                prop_assert!(index.values().all(|behind| behind.is_one() == (behind.iter().count() == 1)));
            }
        }
    }
}
