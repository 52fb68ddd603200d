//! Evidence: the typed key/values that prove a finding. Keys carry their unit as suffix (`rss_bytes`, `held_ms`), so
//! that a JSON object of plain values still says what it means.

use crate::limits::{EVIDENCE_KEYS_MAX, EVIDENCE_TEXT_BYTES_MAX, clip};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// Words, a path, a kernel line.
    Text(String),
    /// A count or id without unit.
    Count(u64),
    /// A signed number (an exit status, a score adjustment).
    Integer(i64),
    /// A size in bytes.
    Bytes(u64),
    /// A length of time in milliseconds.
    Millis(u64),
    /// A point in time by the clock of whoever observed it.
    Time(Timestamp),
    /// Yes or no.
    Flag(bool),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Count(count) => count.fmt(f),
            Self::Integer(integer) => integer.fmt(f),
            Self::Bytes(bytes) => f.write_str(&crate::units::human_bytes(*bytes)),
            Self::Millis(ms) => f.write_str(&crate::units::human_duration(Duration::from_millis(*ms))),
            Self::Time(time) => time.fmt(f),
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
        }
    }
}

/// Keys in order, so that equal evidence prints, hashes and serializes equally.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Evidence(BTreeMap<String, Value>);

impl Evidence {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one value; builder style. Beyond [`EVIDENCE_KEYS_MAX`] keys the value is dropped and
    /// `evidence_dropped_keys` counts it.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.insert(key, value);
        self
    }

    /// Adds or replaces one value, with the bound of [`Evidence::with`]. Texts are clipped.
    pub fn insert(&mut self, key: &str, value: Value) {
        let value = match value {
            Value::Text(text) if text.len() > EVIDENCE_TEXT_BYTES_MAX => {
                Value::Text(clip(&text, EVIDENCE_TEXT_BYTES_MAX))
            }
            other => other,
        };
        if self.0.len() + 1 >= EVIDENCE_KEYS_MAX && !self.0.contains_key(key) {
            let dropped = match self.0.get("evidence_dropped_keys") {
                Some(Value::Count(count)) => count + 1,
                _ => 1,
            };
            self.0.insert("evidence_dropped_keys".to_owned(), Value::Count(dropped));
            return;
        }
        self.0.insert(key.to_owned(), value);
    }

    /// A text value.
    #[must_use]
    pub fn text(self, key: &str, text: impl Into<String>) -> Self {
        self.with(key, Value::Text(text.into()))
    }

    /// A count.
    #[must_use]
    pub fn count(self, key: &str, count: impl Into<u64>) -> Self {
        self.with(key, Value::Count(count.into()))
    }

    /// A size.
    #[must_use]
    pub fn bytes(self, key: &str, bytes: u64) -> Self {
        self.with(key, Value::Bytes(bytes))
    }

    /// A length of time.
    #[must_use]
    pub fn duration(self, key: &str, length: Duration) -> Self {
        self.with(key, Value::Millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Yes or no.
    #[must_use]
    pub fn flag(self, key: &str, flag: bool) -> Self {
        self.with(key, Value::Flag(flag))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All pairs in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How sure a link of a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// Consistent, but other explanations fit as well.
    Possible,
    /// The best explanation of what was seen.
    Likely,
    /// Seen directly.
    Confirmed,
}

impl Grade {
    /// `"confirmed"`, `"likely"` or `"possible"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Confirmed => "confirmed",
        }
    }
}

impl std::fmt::Display for Grade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_keys_are_counted_not_kept() {
        let mut evidence = Evidence::new();
        for index in 0..100u64 {
            evidence.insert(&format!("key_{index:03}"), Value::Count(index));
        }
        assert_eq!(evidence.len(), EVIDENCE_KEYS_MAX);
        assert_eq!(evidence.get("evidence_dropped_keys"), Some(&Value::Count(53)));
    }
}
