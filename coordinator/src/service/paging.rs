//! Lists in pages: a size within bounds, in items and in bytes, and an opaque token that names the last item given.

use muster_common::limits::{LIST_PAGE_SIZE_DEFAULT, LIST_PAGE_SIZE_MAX};
use std::collections::BTreeMap;
use tonic::Status;

/// Bytes of the items of one page: half of what gRPC clients take by default. Overflow rule: the page is shorter, its
/// token goes on; one item is given in any case.
pub(super) const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
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

    /// The first items behind `after` by key, as many as were asked for, made into their wire form. Of all others only
    /// the number is kept: this runs on the loop's thread.
    pub(super) fn cut<K: Ord, T, U: prost::Message>(
        &self,
        items: impl Iterator<Item = (K, T)>,
        after: Option<&K>,
        token: impl Fn(&K) -> String,
        wire: impl Fn(T) -> U,
    ) -> Page<U> {
        let mut first = BTreeMap::new();
        let (mut total, mut more) = (0_i32, false);
        for (key, item) in items {
            total = total.saturating_add(1);
            if after.is_some_and(|after| key <= *after) {
                continue;
            }
            let room = first.len() < self.size;
            if room || first.last_key_value().is_some_and(|(last, _)| key < *last) {
                first.insert(key, item);
            }
            more |= !room;
            if first.len() > self.size {
                first.pop_last();
            }
        }
        let (mut items, mut bytes, mut last) = (Vec::with_capacity(first.len()), 0_usize, None);
        for (key, item) in first {
            let item = wire(item);
            bytes = bytes.saturating_add(item.encoded_len());
            if bytes > PAGE_BYTES_MAX && last.is_some() {
                more = true;
                break;
            }
            items.push(item);
            last = Some(key);
        }
        let next_token = last.filter(|_| more).map(|key| encode(&token(&key))).unwrap_or_default();
        Page { items, next_token, total }
    }
}

/// Makes a token of a key.
pub(super) fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// For a token that decodes to what no list of ours gave.
pub(super) fn bad_token() -> Status {
    Status::invalid_argument("page_token is not one of ours: use next_page_token of the answer before")
}

fn decode(token: &str) -> Result<String, Status> {
    if token.len() > TOKEN_BYTES_MAX || !token.is_ascii() || !token.len().is_multiple_of(2) {
        return Err(bad_token());
    }
    let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = token.as_bytes().chunks(2).map(digit).collect();
    String::from_utf8(bytes.ok_or_else(bad_token)?).map_err(|_| bad_token())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pages of ten, as a client takes them.
    fn all_pages<T: prost::Message, I: Iterator<Item = (u32, T)>>(items: impl Fn() -> I, total: i32) -> Vec<Vec<T>> {
        let (mut token, mut pages) = (String::new(), Vec::new());
        loop {
            let request = PageRequest::new(10, &token).unwrap();
            let after = request.after().map(|after| after.parse::<u32>().unwrap());
            let page = request.cut(items(), after.as_ref(), u32::to_string, |item| item);
            assert_eq!(page.total, total);
            pages.push(page.items);
            token = page.next_token;
            if token.is_empty() {
                return pages;
            }
        }
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_repeat() {
        // In no order at all: 7 is prime to 25.
        let items = || (0..25).map(|n| n * 7 % 25).map(|n| (n, n));
        let pages = all_pages(items, 25);
        let seen = pages.concat();
        assert_eq!(seen, (0..25).collect::<Vec<_>>());
    }

    #[test]
    fn a_page_of_large_items_is_short_and_the_next_one_goes_on() {
        let large = PAGE_BYTES_MAX / 3;
        let items = || (0..5).map(|n| (n, "x".repeat(if n == 4 { 2 * PAGE_BYTES_MAX } else { large })));
        let seen: Vec<usize> = all_pages(items, 5).iter().map(Vec::len).collect();
        assert_eq!(seen, [2, 2, 1], "each is given once, also the one that is too large by itself");
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
