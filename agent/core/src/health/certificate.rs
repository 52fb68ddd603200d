//! When a certificate runs out, and whose it is: the few fields of its DER that a person wants to read.
//!
//! Judges nothing about trust: that is the handshake's. Hostile bytes give `None`, never a panic.

use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, which holds the version.
const VERSION: u8 = 0xa0;
/// Attributes of one name that are looked at.
const ATTRIBUTES_MAX: usize = 32;
/// Bytes of one attribute that are shown.
const ATTRIBUTE_BYTES_MAX: usize = 64;

/// What is read of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// Whose it is: `CN=spl, O=Example`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
}

impl Certificate {
    /// Reads it; `None` when it is no X.509 certificate.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (certificate, _) = element(der, SEQUENCE)?;
        let (body, _) = element(certificate, SEQUENCE)?;
        let rest = match element(body, VERSION) {
            Some((_, rest)) => rest,
            None => body,
        };
        let (_serial, rest) = element(rest, INTEGER)?;
        let (_algorithm, rest) = element(rest, SEQUENCE)?;
        let (issuer, rest) = element(rest, SEQUENCE)?;
        let (validity, rest) = element(rest, SEQUENCE)?;
        let (subject, _) = element(rest, SEQUENCE)?;
        let (not_before, until) = time(validity)?;
        let (not_after, _) = time(until)?;
        Some(Self { not_before, not_after, subject: name(subject), issuer: name(issuer) })
    }
}

/// The content of an element of the wanted kind, and what follows it.
fn element(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = any_element(bytes)?;
    (tag == wanted).then_some((content, rest))
}

fn any_element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, bytes) = bytes.split_first()?;
    let (first, bytes) = bytes.split_first()?;
    let (length, bytes) = match first {
        0..=0x7f => (usize::from(*first), bytes),
        0x81..=0x84 => {
            let (digits, bytes) = bytes.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0usize, |length, digit| (length << 8) | usize::from(*digit)), bytes)
        }
        // Indefinite lengths are no DER, longer ones no certificate.
        _ => return None,
    };
    let (content, rest) = bytes.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn time(bytes: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (tag, content, rest) = any_element(bytes)?;
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, text) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let (year, text) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            // RFC 5280: 50 and above are of the last century.
            (if year < 50 { 2000 + year } else { 1900 + year }, text)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, text) = text.split_at_checked(4)?;
            (year.parse().ok()?, text)
        }
        _ => return None,
    };
    let part = |at: usize| text.get(at..at + 2)?.parse::<i64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((Timestamp::from_unix_ms(seconds.saturating_mul(1000)), rest))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, counted in years that begin in March.
const fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let century_4 = year.div_euclid(400);
    let year_of_4 = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_4 = year_of_4 * 365 + year_of_4 / 4 - year_of_4 / 100 + day_of_year;
    century_4 * 146_097 + day_of_4 - 719_468
}

/// `CN=spl, O=Example`; attributes of other kinds are left out.
fn name(mut bytes: &[u8]) -> String {
    let mut parts = Vec::new();
    for _ in 0..ATTRIBUTES_MAX {
        let Some((set, rest)) = element(bytes, SET) else { break };
        bytes = rest;
        parts.extend(attribute(set));
    }
    // The common name first: it is what people know.
    parts.sort_by_key(|(order, _)| *order);
    let parts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
    if parts.is_empty() { "(no name)".to_owned() } else { parts.join(", ") }
}

fn attribute(set: &[u8]) -> Option<(u8, String)> {
    let (pair, _) = element(set, SEQUENCE)?;
    let (kind, rest) = element(pair, OBJECT_ID)?;
    let (_, value, _) = any_element(rest)?;
    let (order, key) = match kind {
        [0x55, 4, 3] => (0, "CN"),
        [0x55, 4, 10] => (1, "O"),
        [0x55, 4, 11] => (2, "OU"),
        [0x55, 4, 6] => (3, "C"),
        _ => return None,
    };
    let text: String = String::from_utf8_lossy(value).chars().filter(|c| !c.is_control()).collect();
    Some((order, format!("{key}={}", muster_common::limits::clip(&text, ATTRIBUTE_BYTES_MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82, length[0], length[1]], content].concat()
    }

    fn made(not_after: &[u8], tag: u8) -> Vec<u8> {
        let common = [der(OBJECT_ID, &[0x55, 4, 3]), der(0x0c, b"spl\n")].concat();
        let organisation = [der(OBJECT_ID, &[0x55, 4, 10]), der(0x13, b"Example")].concat();
        let name = [der(SET, &der(SEQUENCE, &organisation)), der(SET, &der(SEQUENCE, &common))].concat();
        let body = [
            der(VERSION, &[2, 1, 2]),
            der(INTEGER, &[1]),
            der(SEQUENCE, &[]),
            der(SEQUENCE, &name),
            der(SEQUENCE, &[der(UTC_TIME, b"700101000000Z"), der(tag, not_after)].concat()),
            der(SEQUENCE, &[]),
        ];
        der(SEQUENCE, &der(SEQUENCE, &body.concat()))
    }

    #[test]
    fn times_and_names() {
        let read = Certificate::parse(&made(b"261122030405Z", UTC_TIME)).unwrap();
        assert_eq!(read.not_after.to_string(), "2026-11-22T03:04:05.000Z");
        assert_eq!(read.not_before, Timestamp::UNIX_EPOCH);
        assert_eq!((read.issuer.as_str(), read.subject.as_str()), ("CN=spl, O=Example", "(no name)"));
        for (text, shown) in [
            (b"20240229235959Z", "2024-02-29T23:59:59.000Z"),
            (b"20000301000000Z", "2000-03-01T00:00:00.000Z"),
            (b"19001231000000Z", "1900-12-31T00:00:00.000Z"),
            (b"20991231000000Z", "2099-12-31T00:00:00.000Z"),
        ] {
            assert_eq!(Certificate::parse(&made(text, GENERALIZED_TIME)).unwrap().not_after.to_string(), shown);
        }
        for wrong in [&b"20241301000000Z"[..], b"2024", b"2024030100000+Z", b"20240301000000"] {
            assert_eq!(Certificate::parse(&made(wrong, GENERALIZED_TIME)), None);
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..200, cut in 0usize..250) {
            let _ = Certificate::parse(&bytes);
            let mut real = made(b"261122030405Z", UTC_TIME);
            if let (Some(byte), Some(other)) = (real.get_mut(at), bytes.first()) {
                *byte = *other;
            }
            real.truncate(cut.max(at));
            let _ = Certificate::parse(&real);
        }
    }
}
