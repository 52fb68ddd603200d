//! The text of a name. Names are compared and copied far more often than they are made: a short one lies in place, so
//! that looking for one among a million follows no pointer at each comparison, and a copy asks for no memory.
//!
//! Must never hold a text with a zero byte: the end of a short one is told by zeros.

use serde::de::{Deserializer, Error, Visitor};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Bytes that lie in place: as many as make it no larger than a `String`. Overflow rule: a longer text has a block of its
/// own.
const SHORT_BYTES_MAX: usize = 22;

/// Text in place, or in a block of its own.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum NameText {
    /// With zeros after its end.
    Short {
        length: u8,
        bytes: [u8; SHORT_BYTES_MAX],
    },
    Long(Box<str>),
}

impl NameText {
    /// Keeps `text`, which has no zero byte.
    #[inline]
    pub(crate) fn new(text: &str) -> Self {
        let mut bytes = [0; SHORT_BYTES_MAX];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short { length, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        match self {
            // It was cut out of a text as a whole, so that it is one.
            Self::Short { .. } => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }

    /// The first bytes as a number, with zeros after the end. Texts with different heads are ordered as these are.
    #[inline]
    pub(crate) fn head(&self) -> u128 {
        match self {
            Self::Short { bytes, .. } => order(bytes).0,
            Self::Long(text) => u128::from_be_bytes(text.as_bytes().first_chunk().copied().unwrap_or_default()),
        }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(text) => text.as_bytes(),
        }
    }
}

/// The order of short texts as two numbers: zeros sort before every letter, so that a prefix comes first.
#[inline]
fn order(bytes: &[u8; SHORT_BYTES_MAX]) -> (u128, u64) {
    let first = u128::from_be_bytes(bytes.first_chunk().copied().unwrap_or_default());
    // They overlap; what both have is equal where the second one is asked.
    (first, u64::from_be_bytes(bytes.last_chunk().copied().unwrap_or_default()))
}

impl Ord for NameText {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Short { bytes, .. }, Self::Short { bytes: others, .. }) => order(bytes).cmp(&order(others)),
            _ => self.as_bytes().cmp(other.as_bytes()),
        }
    }
}

impl PartialOrd for NameText {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for NameText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for NameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Makes something of a text that is read, without a copy of it.
pub(crate) fn read_text<'de, D: Deserializer<'de>, T, E: fmt::Display>(
    deserializer: D,
    make: impl Fn(&str) -> Result<T, E>,
) -> Result<T, D::Error> {
    struct Text<F>(F);
    impl<T, E: fmt::Display, F: Fn(&str) -> Result<T, E>> Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<R: Error>(self, text: &str) -> Result<T, R> {
            (self.0)(text).map_err(R::custom)
        }
    }
    deserializer.deserialize_str(Text(make))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_as_long_as_it_was_wherever_it_lies() {
        for length in 0..2 * SHORT_BYTES_MAX {
            let text = "x".repeat(length);
            let kept = NameText::new(&text);
            assert_eq!(kept.as_str(), text);
            assert_eq!(matches!(kept, NameText::Short { .. }), length <= SHORT_BYTES_MAX);
        }
        assert_eq!(size_of::<NameText>(), size_of::<String>());
    }

    proptest! {
        #[test]
        fn order_and_equality_are_those_of_the_text(a in "[a-c.-]{0,40}", b in "[a-c.-]{0,40}") {
            let (short, other) = (NameText::new(&a), NameText::new(&b));
            prop_assert_eq!(short.cmp(&other), a.cmp(&b));
            prop_assert_eq!(short == other, a == b);
            prop_assert!(short.head() == other.head() || short.head().cmp(&other.head()) == a.cmp(&b));
        }
    }
}
