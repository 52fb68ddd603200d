//! Values of the bus as bounded values of ours.

use muster_agent_core::unit::Property;
use muster_common::limits::clip;
use std::collections::BTreeMap;
use zbus::Variant;

/// What `GetAll` answers.
pub(super) type PropertyMap<'a> = BTreeMap<&'a str, Variant<'a>>;

/// Bytes kept of one text.
const TEXT_BYTES_MAX: usize = 4_096;
/// Items kept of one array or structure.
const ITEMS_MAX: usize = 256;
/// Lists in lists that are looked into.
const DEPTH_MAX: usize = 3;

/// What fits; the rest is cut.
pub(super) fn property(value: &Variant<'_>) -> Property {
    bounded(value, DEPTH_MAX)
}

fn bounded(value: &Variant<'_>, depth: usize) -> Property {
    match value {
        Variant::U8(number) => Property::Number(u64::from(*number)),
        Variant::U16(number) => Property::Number(u64::from(*number)),
        Variant::U32(number) => Property::Number(u64::from(*number)),
        Variant::U64(number) => Property::Number(*number),
        Variant::I16(number) => Property::Signed(i64::from(*number)),
        Variant::I32(number) => Property::Signed(i64::from(*number)),
        Variant::I64(number) => Property::Signed(*number),
        Variant::Bool(flag) => Property::Flag(*flag),
        Variant::Str(text) => Property::Text(clip(text.as_str(), TEXT_BYTES_MAX)),
        Variant::ObjectPath(path) => Property::Text(clip(path.as_str(), TEXT_BYTES_MAX)),
        Variant::Variant(inner) if depth > 0 => bounded(inner, depth - 1),
        Variant::Array(array) if depth > 0 => list(array.inner(), depth - 1),
        Variant::Structure(structure) if depth > 0 => list(structure.fields(), depth - 1),
        _ => Property::Other,
    }
}

fn list(items: &[Variant<'_>], depth: usize) -> Property {
    let byte = |item: &Variant<'_>| if let Variant::U8(byte) = item { Some(*byte) } else { None };
    let items = items.get(..ITEMS_MAX).unwrap_or(items);
    match items.iter().map(byte).collect::<Option<Vec<u8>>>() {
        Some(bytes) if !bytes.is_empty() => Property::Bytes(bytes),
        _ => Property::List(items.iter().map(|item| bounded(item, depth)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_typed_and_bounded() {
        assert_eq!(property(&Variant::from(7u32)), Property::Number(7));
        assert_eq!(property(&Variant::from(-7i32)), Property::Signed(-7));
        assert_eq!(property(&Variant::from(vec![1u8, 2])), Property::Bytes(vec![1, 2]));
        assert_eq!(property(&Variant::from(1.5f64)), Property::Other);
        let Property::Text(text) = property(&Variant::from("x".repeat(10_000))) else { panic!() };
        assert!(text.len() <= TEXT_BYTES_MAX);
        let Property::List(items) = property(&Variant::from(vec!["a"; 1_000])) else { panic!() };
        assert_eq!(items.len(), ITEMS_MAX);
        let mut deep = Variant::from(1u32);
        for _ in 0..50 {
            deep = Variant::Variant(Box::new(deep));
        }
        assert_eq!(property(&deep), Property::Other);
    }
}
