//! A map by cause key. A fact looks a dozen keys up, and what they begin with is the same for many: their first bytes lie
//! in place and are compared as numbers, so that nearly no comparison follows a pointer.
//!
//! Ordered and written as a map by text is.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Bytes in place: enough for `host/`, a name and the family.
const HEAD_BYTES: usize = 32;

/// The first bytes of a text as numbers, with zeros after its end.
type Head = [u128; 2];

fn head_of(text: &str) -> Head {
    let mut bytes = [0_u8; HEAD_BYTES];
    let length = text.len().min(HEAD_BYTES);
    if let (Some(place), Some(head)) = (bytes.get_mut(..length), text.as_bytes().get(..length)) {
        place.copy_from_slice(head);
    }
    let (first, second) = bytes.split_at(HEAD_BYTES / 2);
    [first, second].map(|half| u128::from_be_bytes(half.first_chunk().copied().unwrap_or_default()))
}

/// A key, or what is looked for.
trait Text {
    fn head(&self) -> &Head;
    fn text(&self) -> &str;
}

#[derive(Debug, Clone)]
struct Key {
    head: Head,
    text: String,
}

struct Wanted<'a> {
    head: Head,
    text: &'a str,
}

impl Text for Key {
    fn head(&self) -> &Head {
        &self.head
    }
    fn text(&self) -> &str {
        &self.text
    }
}

impl Text for Wanted<'_> {
    fn head(&self) -> &Head {
        &self.head
    }
    fn text(&self) -> &str {
        self.text
    }
}

impl Key {
    fn new(text: String) -> Self {
        Self { head: head_of(&text), text }
    }
}

impl<'a> Wanted<'a> {
    fn new(text: &'a str) -> Self {
        Self { head: head_of(text), text }
    }
}

/// Where the heads differ they order the texts: zeros sort before all that may follow. Where they are equal the texts do.
impl Ord for dyn Text + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head().cmp(other.head()).then_with(|| self.text().cmp(other.text()))
    }
}

impl PartialOrd for dyn Text + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Text + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for dyn Text + '_ {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Key {}

impl<'a> Borrow<dyn Text + 'a> for Key {
    fn borrow(&self) -> &(dyn Text + 'a) {
        self
    }
}

/// See the head of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Keyed<V>(BTreeMap<Key, V>);

impl<V> Default for Keyed<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V> Keyed<V> {
    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.0.get(&Wanted::new(key) as &dyn Text)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.0.get_mut(&Wanted::new(key) as &dyn Text)
    }

    pub(crate) fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn insert(&mut self, key: String, value: V) -> Option<V> {
        self.0.insert(Key::new(key), value)
    }

    pub(crate) fn get_or_insert_with(&mut self, key: String, make: impl FnOnce(&str) -> V) -> &mut V {
        self.0.entry(Key::new(key)).or_insert_with_key(|key| make(&key.text))
    }

    pub(crate) fn remove(&mut self, key: &str) -> Option<V> {
        self.0.remove(&Wanted::new(key) as &dyn Text)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// By key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.0.iter().map(|(key, value)| (&key.text, value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys().map(|key| &key.text)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut()
    }

    /// Those whose keys begin so, by key.
    pub(crate) fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a V)> {
        let wanted = Wanted::new(prefix);
        let from = self.0.range::<dyn Text, _>((Bound::Included(&wanted as &dyn Text), Bound::Unbounded));
        from.map(|(key, value)| (&key.text, value)).take_while(move |(key, _)| key.starts_with(prefix))
    }
}

impl<V: Serialize> Serialize for Keyed<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Keyed<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let by_text = BTreeMap::<String, V>::deserialize(deserializer)?;
        Ok(Self(by_text.into_iter().map(|(key, value)| (Key::new(key), value)).collect()))
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
        fn it_is_a_map_by_text(moves in proptest::collection::vec((any::<bool>(), KEYS), 0..60)) {
            let (mut keyed, mut map) = (Keyed::default(), BTreeMap::new());
            for (number, (comes, key)) in moves.iter().enumerate() {
                if *comes {
                    prop_assert_eq!(keyed.insert(key.clone(), number), map.insert(key.clone(), number));
                } else {
                    prop_assert_eq!(keyed.remove(key), map.remove(key));
                }
                prop_assert_eq!(keyed.get(key), map.get(key));
                let begin: Vec<&String> = keyed.starting_with(key).map(|(key, _)| key).collect();
                let begins: Vec<&String> = map.keys().filter(|known| known.starts_with(key.as_str())).collect();
                prop_assert_eq!(begin, begins);
            }
            prop_assert!(keyed.iter().eq(map.iter()));
            let written = serde_json::to_string(&keyed).unwrap();
            prop_assert_eq!(&written, &serde_json::to_string(&map).unwrap());
            prop_assert_eq!(serde_json::from_str::<Keyed<usize>>(&written).unwrap(), keyed);
        }
    }
}
