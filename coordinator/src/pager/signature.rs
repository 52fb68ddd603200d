//! HMAC-SHA256 over what leaves and what arrives.
//!
//! Signed is `TIMESTAMP "." BODY`: the time is part of the signed text, so that a receiver can refuse what is replayed.

use super::secret::Secret;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt::Write;

/// Seconds since 1970 at which the call was signed.
pub const TIMESTAMP_HEADER: &str = "x-muster-timestamp";
/// `sha256=HEX`; while keys are rotated one for each, separated by commas.
pub const SIGNATURE_HEADER: &str = "x-muster-signature";
/// Signatures of one call that are looked at.
const SIGNATURES_MAX: usize = 16;

type HmacSha256 = Hmac<Sha256>;

fn mac(key: &Secret, parts: &[&[u8]]) -> Option<HmacSha256> {
    // HMAC takes keys of any length.
    let mut mac = <HmacSha256 as Mac>::new_from_slice(key.expose().as_bytes()).ok()?;
    parts.iter().for_each(|part| mac.update(part));
    Some(mac)
}

/// The headers of a call, signed with every key.
pub fn headers(keys: &[Secret], unix_s: i64, body: &[u8]) -> Vec<(&'static str, String)> {
    let time = unix_s.to_string();
    let signed = keys.iter().filter_map(|key| mac(key, &[time.as_bytes(), b".", body]));
    let signatures: Vec<String> = signed.map(|mac| format!("sha256={}", hex(&mac.finalize().into_bytes()))).collect();
    vec![(TIMESTAMP_HEADER, time), (SIGNATURE_HEADER, signatures.join(","))]
}

/// True when one of the signatures in `header` (`v1=HEX, v1=HEX`) is that of `body` under one of the keys. Compared in
/// constant time.
pub fn is_signed(keys: &[Secret], version: &str, header: &str, body: &[u8]) -> bool {
    let given = header.split(',').take(SIGNATURES_MAX);
    let given: Vec<Vec<u8>> =
        given.filter_map(|one| one.trim().strip_prefix(version)?.strip_prefix('=')).filter_map(unhex).collect();
    let mut found = false;
    // Anybody may send a large body with many signatures: it is read once for each key, and not at all without any.
    for mac in keys.iter().filter(|_| !given.is_empty()).filter_map(|key| mac(key, &[body])) {
        for signature in &given {
            found |= mac.clone().verify_slice(signature).is_ok();
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_the_published_algorithm() {
        // RFC 4231, test case 2.
        let mac = mac(&Secret::new("Jefe"), &[b"what do ya want ", b"for nothing?"]).unwrap();
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&mac.finalize().into_bytes()), expected);
        let header = format!("v1=00, v1={expected}");
        let body = b"what do ya want for nothing?";
        assert!(is_signed(&[Secret::new("other"), Secret::new("Jefe")], "v1", &header, body));
        assert!(!is_signed(&[Secret::new("other")], "v1", &header, body));
        assert!(!is_signed(&[Secret::new("Jefe")], "v1", &header, b"what do ya want for nothing!"));
        assert!(!is_signed(&[Secret::new("Jefe")], "v0", &header, body));
        assert!(!is_signed(&[], "v1", &header, body));
    }

    #[test]
    fn both_keys_of_a_rotation_sign() {
        let headers = headers(&[Secret::new("new"), Secret::new("old")], 1_795_225_445, b"{}");
        assert_eq!(headers[0], (TIMESTAMP_HEADER, "1795225445".to_owned()));
        let signatures: Vec<_> = headers[1].1.split(',').collect();
        assert_eq!(signatures.len(), 2);
        assert!(signatures.iter().all(|one| one.starts_with("sha256=") && one.len() == 7 + 64), "{signatures:?}");
        assert_ne!(signatures[0], signatures[1]);
        assert!(is_signed(&[Secret::new("old")], "sha256", &headers[1].1, b"1795225445.{}"));
    }

    proptest! {
        #[test]
        fn any_header_is_refused(header in "\\PC*|(v1=[0-9a-f]{64},?)*", body in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(!is_signed(&[Secret::new("k")], "v1", &header, &body));
        }
    }
}
