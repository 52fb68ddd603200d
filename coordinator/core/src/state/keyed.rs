//! A map by text of which a fact looks a dozen up: cause keys, places. What they begin with is the same for many, so that
//! comparing them as texts follows a pointer at each step: their first bytes are compared as numbers, in place, and the
//! text is looked at once, where those are equal.
//!
//! Ordered and written as a map by text is.

use super::Few;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Bytes of a word.
const WORD_BYTES: usize = 8;

/// The first bytes of a text as numbers, with zeros after its end. Where two heads differ they order the texts, since zeros
/// sort before all that may follow; texts with equal heads lie together and are ordered by themselves.
fn head_of<const WORDS: usize>(text: &str) -> [u64; WORDS] {
    let mut rest = text.as_bytes();
    std::array::from_fn(|_| {
        if let Some((word, others)) = rest.split_first_chunk() {
            rest = others;
            return u64::from_be_bytes(*word);
        }
        let mut word = [0; WORD_BYTES];
        word.iter_mut().zip(rest).for_each(|(place, byte)| *place = *byte);
        rest = &[];
        u64::from_be_bytes(word)
    })
}

/// See the head of the file. As many words lie in place as tell most keys apart: four hold `host/`, a name and the family.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Keyed<V, const WORDS: usize = 4> {
    by_head: BTreeMap<[u64; WORDS], Few<String, V>>,
    length: usize,
}

impl<V, const WORDS: usize> Default for Keyed<V, WORDS> {
    fn default() -> Self {
        Self { by_head: BTreeMap::new(), length: 0 }
    }
}

impl<V, const WORDS: usize> Keyed<V, WORDS> {
    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        let alike = self.by_head.get(&head_of(key))?;
        match alike.in_place() {
            Some((known, value)) => Self::is(known, key).then_some(value),
            None => alike.get(key),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        let alike = self.by_head.get_mut(&head_of(key))?;
        match alike.in_place() {
            Some((known, _)) if !Self::is(known, key) => None,
            Some(_) => alike.in_place_mut(),
            None => alike.get_mut(key),
        }
    }

    /// Whether a text is this one, which has the same head: of a short one the head is all, and lies here already.
    fn is(known: &str, key: &str) -> bool {
        known.len() == key.len() && (key.len() <= WORDS * WORD_BYTES || known == key)
    }

    pub(crate) fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn insert(&mut self, key: String, value: V) -> Option<V> {
        let replaced = self.by_head.entry(head_of(&key)).or_default().insert(key, value);
        self.length += usize::from(replaced.is_none());
        replaced
    }

    pub(crate) fn get_or_insert_with(&mut self, key: &str, make: impl FnOnce() -> V) -> &mut V {
        let length = &mut self.length;
        self.by_head.entry(head_of(key)).or_default().get_or_insert_with(key, || {
            *length += 1;
            make()
        })
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        let Entry::Occupied(mut alike) = self.by_head.entry(head_of(key)) else { return None };
        let removed = alike.get_mut().remove(key);
        if alike.get().is_empty() {
            alike.remove();
        }
        self.length -= usize::from(removed.is_some());
        removed
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// By key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.by_head.values().flatten()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.by_head.values_mut().flat_map(Few::values_mut)
    }

    /// Those whose keys begin so, by key.
    pub(crate) fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a V)> {
        let from = self.by_head.range(head_of(prefix)..).flat_map(|(_, alike)| alike);
        // Those that are ordered before a prefix longer than a head may have the same head.
        let from = from.skip_while(move |(key, _)| key.as_str() < prefix);
        from.take_while(move |(key, _)| key.starts_with(prefix))
    }
}

impl<V: Serialize, const WORDS: usize> Serialize for Keyed<V, WORDS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>, const WORDS: usize> Deserialize<'de> for Keyed<V, WORDS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut keyed = Self::default();
        for (key, value) in BTreeMap::<String, V>::deserialize(deserializer)? {
            keyed.insert(key, value);
        }
        Ok(keyed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYS: &str = "(host/web-[0-2]{0,2}/lock/spl//var/lib/){0,1}[a/é\0.-]{0,4}";

    proptest! {
        /// What it holds, its order and how it is written are those of a map by text: also of texts that are equal for
        /// long, of those with zeros in them, and of those with letters beyond ASCII.
        #[test]
        fn it_is_a_map_by_text(moves in proptest::collection::vec((0..3_u8, KEYS), 0..60)) {
            let (mut keyed, mut map) = (Keyed::<usize, 2>::default(), BTreeMap::new());
            for (number, (how, key)) in moves.iter().enumerate() {
                match how {
                    0 => prop_assert_eq!(keyed.insert(key.clone(), number), map.insert(key.clone(), number)),
                    1 => {
                        let kept = *keyed.get_or_insert_with(key, || number);
                        prop_assert_eq!(kept, *map.entry(key.clone()).or_insert(number));
                    }
                    _ => prop_assert_eq!(keyed.remove(key), map.remove(key)),
                }
                prop_assert_eq!((keyed.get(key), keyed.len()), (map.get(key), map.len()));
                let begin: Vec<&String> = keyed.starting_with(key).map(|(key, _)| key).collect();
                let begins: Vec<&String> = map.keys().filter(|known| known.starts_with(key.as_str())).collect();
                prop_assert_eq!(begin, begins);
            }
            prop_assert!(keyed.iter().eq(map.iter()) && keyed.values_mut().eq(map.values_mut()));
            let written = serde_json::to_string(&keyed).unwrap();
            prop_assert_eq!(&written, &serde_json::to_string(&map).unwrap());
            prop_assert_eq!(serde_json::from_str::<Keyed<usize, 2>>(&written).unwrap(), keyed);
        }
    }
}
