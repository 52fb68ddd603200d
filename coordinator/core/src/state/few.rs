//! Maps and sets that nearly always hold one entry: the conditions of a cause, the agents behind an address, what an entry
//! touched. The first lies in place; a node of an ordinary map makes room for eleven, and asking for it, filling it and
//! giving it back was a good part of what a fact costs.
//!
//! Ordered, compared and written as ordinary maps and sets are.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Borrow;
use std::collections::{BTreeMap, btree_map};

/// A map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Few<K, V>(Kept<K, V>);

#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::box_collection, reason = "as small as a pointer, so that the whole is no larger than one in place")]
enum Kept<K, V> {
    InPlace(Option<(K, V)>),
    /// Never of fewer than two.
    Many(Box<BTreeMap<K, V>>),
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Kept::InPlace(None))
    }
}

impl<K, V> Few<K, V> {
    /// How many.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::InPlace(one) => usize::from(one.is_some()),
            Kept::Many(map) => map.len(),
        }
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Kept::InPlace(None))
    }

    /// By key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        match &self.0 {
            Kept::InPlace(one) => Iter::InPlace(one.as_ref()),
            Kept::Many(map) => Iter::Many(map.iter()),
        }
    }

    /// In order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// By key.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// By key, to be changed.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let (one, many) = match &mut self.0 {
            Kept::InPlace(one) => (one.as_mut().map(|(_, value)| value), None),
            Kept::Many(map) => (None, Some(map.values_mut())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// The one in place, where there is one.
    pub(super) fn in_place(&self) -> Option<(&K, &V)> {
        match &self.0 {
            Kept::InPlace(one) => one.as_ref().map(|(key, value)| (key, value)),
            Kept::Many(_) => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn in_place_mut(&mut self) -> Option<&mut V> {
        match &mut self.0 {
            Kept::InPlace(one) => one.as_mut().map(|(_, value)| value),
            Kept::Many(_) => None,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0 = Kept::InPlace(None);
    }
}

impl<K: Ord, V> Few<K, V> {
    /// What is kept under the key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        match &self.0 {
            Kept::InPlace(one) => one.as_ref().filter(|(known, _)| known.borrow() == key).map(|(_, value)| value),
            Kept::Many(map) => map.get(key),
        }
    }

    /// Whether something is.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match &mut self.0 {
            Kept::InPlace(one) => one.as_mut().filter(|(known, _)| (*known).borrow() == key).map(|(_, value)| value),
            Kept::Many(map) => map.get_mut(key),
        }
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.make_room_for(&key);
        match &mut self.0 {
            Kept::InPlace(one) => one.replace((key, value)).map(|(_, value)| value),
            Kept::Many(map) => map.insert(key, value),
        }
    }

    /// The value; a new one where there is none. A key that is known is not copied, unless there are many.
    pub(crate) fn get_or_insert_with<Q>(&mut self, key: &Q, make: impl FnOnce() -> V) -> &mut V
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + Ord + ?Sized,
    {
        self.make_room_for(key);
        match &mut self.0 {
            Kept::InPlace(one) => &mut one.get_or_insert_with(|| (key.to_owned(), make())).1,
            Kept::Many(map) => map.entry(key.to_owned()).or_insert_with(make),
        }
    }

    /// The one in place makes room, unless it is the one with this key. An entry under the key comes next.
    fn make_room_for<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        if let Kept::InPlace(one) = &mut self.0
            && let Some(other) = one.take_if(|(known, _)| (*known).borrow() != key)
        {
            self.0 = Kept::Many(Box::new(BTreeMap::from([other])));
        }
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let map = match &mut self.0 {
            Kept::InPlace(one) => {
                return one.take_if(|(known, _)| (*known).borrow() == key).map(|(_, value)| value);
            }
            Kept::Many(map) => map,
        };
        let removed = map.remove(key);
        if map.len() < 2 {
            self.0 = Kept::InPlace(map.pop_first());
        }
        removed
    }

    fn pop_first(&mut self) -> Option<(K, V)> {
        let map = match &mut self.0 {
            Kept::InPlace(one) => return one.take(),
            Kept::Many(map) => map,
        };
        let first = map.pop_first();
        if map.len() < 2 {
            self.0 = Kept::InPlace(map.pop_first());
        }
        first
    }
}

/// Over a [`Few`], by key.
#[derive(Debug)]
pub enum Iter<'a, K, V> {
    /// One at most.
    InPlace(Option<&'a (K, V)>),
    /// Any number.
    Many(btree_map::Iter<'a, K, V>),
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::InPlace(one) => one.take().map(|(key, value)| (key, value)),
            Self::Many(many) => many.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let length = match self {
            Self::InPlace(one) => usize::from(one.is_some()),
            Self::Many(many) => many.len(),
        };
        (length, Some(length))
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, K, V> {}

impl<'a, K, V> IntoIterator for &'a Few<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<K: Ord, V> From<BTreeMap<K, V>> for Few<K, V> {
    fn from(mut map: BTreeMap<K, V>) -> Self {
        Self(if map.len() < 2 { Kept::InPlace(map.pop_first()) } else { Kept::Many(Box::new(map)) })
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Few<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        BTreeMap::from_iter(entries).into()
    }
}

impl<K: Serialize, V: Serialize> Serialize for Few<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for Few<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(deserializer)?.into())
    }
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FewSet<K>(Few<K, ()>);

impl<K> Default for FewSet<K> {
    fn default() -> Self {
        Self(Few::default())
    }
}

impl<K: Ord> FewSet<K> {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &K> {
        self.0.keys()
    }

    /// The first by order.
    pub fn first(&self) -> Option<&K> {
        self.iter().next()
    }

    /// Whether it is one of them.
    pub fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// Whether it was none of them before.
    pub(crate) fn insert(&mut self, key: K) -> bool {
        self.0.insert(key, ()).is_none()
    }

    /// Whether it was one of them.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.remove(key).is_some()
    }

    pub(crate) fn pop_first(&mut self) -> Option<K> {
        self.0.pop_first().map(|(key, ())| key)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes the others in, and leaves none there.
    pub(crate) fn append(&mut self, others: &mut Self) {
        while let Some(key) = others.pop_first() {
            self.insert(key);
        }
    }
}

impl<K: Ord> Extend<K> for FewSet<K> {
    fn extend<I: IntoIterator<Item = K>>(&mut self, keys: I) {
        keys.into_iter().for_each(|key| {
            self.insert(key);
        });
    }
}

impl<K: Serialize + Ord> Serialize for FewSet<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord> Deserialize<'de> for FewSet<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys = std::collections::BTreeSet::<K>::deserialize(deserializer)?;
        Ok(Self(keys.into_iter().map(|key| (key, ())).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::ids::AgentName;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// What it holds, its order and how it is written are those of an ordinary map or set.
        #[test]
        fn it_is_a_map(moves in proptest::collection::vec((0..5_u8, 0..4_u32), 0..40)) {
            let (mut few, mut map) = (Few::<String, u32>::default(), BTreeMap::new());
            let (mut set, mut ordinary) = (FewSet::default(), BTreeSet::new());
            for (number, (how, key)) in moves.into_iter().enumerate() {
                let (key, number) = (key.to_string(), u32::try_from(number).unwrap());
                match how {
                    0 => prop_assert_eq!(few.remove(&key), map.remove(&key)),
                    1 => prop_assert_eq!(few.insert(key.clone(), number), map.insert(key.clone(), number)),
                    2 => {
                        let kept = *few.get_or_insert_with(key.as_str(), || number);
                        prop_assert_eq!(kept, *map.entry(key.clone()).or_insert(number));
                    }
                    3 => prop_assert_eq!(few.pop_first(), map.pop_first()),
                    _ => {
                        prop_assert_eq!(few.get_mut(&key).map(|value| *value += 7), map.get_mut(&key).map(|value| *value += 7));
                    }
                }
                prop_assert_eq!(few.get(&key), map.get(&key));
                prop_assert_eq!((few.len(), few.is_empty(), few.iter().len()), (map.len(), map.is_empty(), map.len()));
                prop_assert!(few.iter().eq(map.iter()) && few.keys().eq(map.keys()) && few.values().eq(map.values()));
                prop_assert!(few.values_mut().eq(map.values_mut()));
                prop_assert_eq!(&Few::from(map.clone()), &few);
                let written = serde_json::to_string(&few).unwrap();
                prop_assert_eq!(&written, &serde_json::to_string(&map).unwrap());
                prop_assert_eq!(&serde_json::from_str::<Few<String, u32>>(&written).unwrap(), &few);
                match how {
                    0 => prop_assert_eq!(set.remove(&key), ordinary.remove(&key)),
                    3 => prop_assert_eq!(set.pop_first(), ordinary.pop_first()),
                    4 => {
                        set.extend([key.clone()]);
                        ordinary.extend([key.clone()]);
                    }
                    _ => prop_assert_eq!(set.insert(key.clone()), ordinary.insert(key.clone())),
                }
                prop_assert!(set.iter().eq(ordinary.iter()) && set.first() == ordinary.first());
                prop_assert_eq!((set.contains(&key), set.is_empty()), (ordinary.contains(&key), ordinary.is_empty()));
                let written = serde_json::to_string(&set).unwrap();
                prop_assert_eq!(&written, &serde_json::to_string(&ordinary).unwrap());
                prop_assert_eq!(&serde_json::from_str::<FewSet<String>>(&written).unwrap(), &set);
            }
        }
    }

    #[test]
    fn one_in_place_takes_no_more_than_itself() {
        assert_eq!(size_of::<FewSet<AgentName>>(), size_of::<AgentName>());
        assert_eq!(size_of::<Few<String, Box<u64>>>(), size_of::<(String, Box<u64>)>());
    }
}
