//! Lists in pages: a size within bounds, and an opaque token that names the last item given.

use muster_common::limits::{LIST_PAGE_SIZE_DEFAULT, LIST_PAGE_SIZE_MAX};
use std::collections::BTreeMap;
use std::ops::Bound;
use tonic::Status;

/// Bytes of a token; an item's key is far shorter.
const TOKEN_BYTES_MAX: usize = 4_096;

/// Which page was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageRequest {
    size: usize,
    after: Option<String>,
}

/// One page.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) next_token: String,
    pub(super) total: i32,
}

impl PageRequest {
    pub(super) fn new(size: i32, token: &str) -> Result<Self, Status> {
        let size = match usize::try_from(size) {
            Ok(0) => LIST_PAGE_SIZE_DEFAULT,
            Ok(size) => size.min(LIST_PAGE_SIZE_MAX),
            Err(_) => {
                return Err(Status::invalid_argument("page_size is negative: leave it out or use a positive one"));
            }
        };
        let after = if token.is_empty() { None } else { Some(decode(token)?) };
        Ok(Self { size, after })
    }

    /// Items wanted.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Key of the last item of the page before.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// Cuts the page out of `items`, which are in order of their keys.
    pub(super) fn cut<T, U>(&self, items: &BTreeMap<String, T>, wire: impl Fn(&T) -> U) -> Page<U> {
        let from = match &self.after {
            Some(after) => Bound::Excluded(after.clone()),
            None => Bound::Unbounded,
        };
        let mut rest = items.range((from, Bound::Unbounded));
        let page: Vec<_> = rest.by_ref().take(self.size).collect();
        let more = rest.next().is_some();
        let next_token = match page.last() {
            Some((key, _)) if more => encode(key),
            _ => String::new(),
        };
        let items_given = page.into_iter().map(|(_, item)| wire(item)).collect();
        Page { items: items_given, next_token, total: i32::try_from(items.len()).unwrap_or(i32::MAX) }
    }
}

/// Makes a token of a key.
pub(super) fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(token: &str) -> Result<String, Status> {
    let bad = || Status::invalid_argument("page_token is not one of ours: use next_page_token of the answer before");
    if token.len() > TOKEN_BYTES_MAX || !token.is_ascii() || !token.len().is_multiple_of(2) {
        return Err(bad());
    }
    let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = token.as_bytes().chunks(2).map(digit).collect();
    String::from_utf8(bytes.ok_or_else(bad)?).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_gap_or_repeat() {
        let items: BTreeMap<String, u32> = (0..25).map(|n| (format!("{n:03}"), n)).collect();
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let page = PageRequest::new(10, &token).unwrap().cut(&items, |n| *n);
            assert_eq!(page.total, 25);
            seen.extend(page.items);
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, (0..25).collect::<Vec<_>>());
    }

    #[test]
    fn sizes_and_tokens_are_checked() {
        assert!(PageRequest::new(-1, "").is_err());
        assert_eq!(PageRequest::new(0, "").unwrap().size(), LIST_PAGE_SIZE_DEFAULT);
        assert_eq!(PageRequest::new(i32::MAX, "").unwrap().size(), LIST_PAGE_SIZE_MAX);
        for bad in ["x", "zz", "ff", "é"] {
            assert!(PageRequest::new(1, bad).is_err(), "{bad}");
        }
        assert_eq!(PageRequest::new(1, &encode("a/b")).unwrap().after(), Some("a/b"));
    }
}
