//! Reads an entry's JSON in one pass. Serde's own way with a flattened body copies each entry into a tree first, which
//! is most of what a replay or a start would cost. Takes what `#[derive(Deserialize)]` with `flatten` takes: fields in any
//! order, unknown ones left alone.

use super::{Entry, EntryBody};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// A field of an entry; the last three are the kinds of [`EntryBody`].
enum Field {
    Index,
    At,
    Trace,
    Fact,
    Deadline,
    Conclusion,
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Field;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field of an entry")
            }
            fn visit_str<E: Error>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "index" => Field::Index,
                    "at" => Field::At,
                    "trace" => Field::Trace,
                    "fact" => Field::Fact,
                    "deadline" => Field::Deadline,
                    "conclusion" => Field::Conclusion,
                    _ => Field::Other,
                })
            }
        }
        deserializer.deserialize_identifier(Name)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a journal entry")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Entry, M::Error> {
        let (mut index, mut at, mut trace, mut body) = (None, None, None, None);
        while let Some(field) = map.next_key()? {
            let twice = match field {
                Field::Index => index.replace(map.next_value()?).is_some(),
                Field::At => at.replace(map.next_value()?).is_some(),
                Field::Trace => trace.replace(map.next_value()?).is_some(),
                Field::Fact => body.replace(EntryBody::Fact(map.next_value()?)).is_some(),
                Field::Deadline => body.replace(EntryBody::Deadline(map.next_value()?)).is_some(),
                Field::Conclusion => body.replace(EntryBody::Conclusion(map.next_value()?)).is_some(),
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(M::Error::custom("an entry with the same field twice, or with two bodies"));
            }
        }
        Ok(Entry {
            index: index.ok_or_else(|| M::Error::missing_field("index"))?,
            at: at.ok_or_else(|| M::Error::missing_field("at"))?,
            trace: trace.ok_or_else(|| M::Error::missing_field("trace"))?,
            body: body.ok_or_else(|| M::Error::custom("an entry without a fact, a deadline or a conclusion"))?,
        })
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Fact, TimerKey};
    use muster_common::time::Timestamp;

    #[test]
    fn an_entry_is_read_in_any_order_and_once() {
        let at = Timestamp::from_unix_ms(7);
        let entry = |body| Entry { index: 1, at, trace: 1, body };
        for body in [EntryBody::Fact(Fact::Paused { gap_ms: 3 }), EntryBody::Deadline(TimerKey::RehearOver)] {
            let text = serde_json::to_string(&entry(body.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry(body));
        }
        let shuffled = r#"{"fact":{"paused":{"gap_ms":3}},"later":[{}],"trace":1,"at":7,"index":1}"#;
        let found: Entry = serde_json::from_str(shuffled).unwrap();
        assert_eq!(found, entry(EntryBody::Fact(Fact::Paused { gap_ms: 3 })));
        for bad in [
            r#"{"index":1,"at":7,"trace":1}"#,
            r#"{"index":1,"at":7,"trace":1,"deadline":"rehear_over","fact":{"paused":{"gap_ms":3}}}"#,
            r#"{"index":1,"index":1,"at":7,"trace":1,"deadline":"rehear_over"}"#,
            r#"{"at":7,"trace":1,"deadline":"rehear_over"}"#,
            "[1,7,1]",
        ] {
            assert!(serde_json::from_str::<Entry>(bad).is_err(), "{bad}");
        }
    }
}
