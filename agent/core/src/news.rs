//! What of a finding's evidence is news when it changes.
//!
//! Must never make news of a number that moves by itself: an open finding would be told anew for as long as it lasts.

use muster_common::evidence::Value;
use muster_common::finding::Finding;

/// The part of the evidence that is news when it changes: names, flags, codes and ids, not measurements.
fn words(finding: &Finding) -> impl Iterator<Item = (&str, &Value)> {
    finding.evidence.iter().filter(|(key, value)| match value {
        Value::Text(_) | Value::Flag(_) | Value::Integer(_) => true,
        Value::Count(_) => *key == "pid" || *key == "start_ticks" || *key == "inode",
        Value::Bytes(_) | Value::Millis(_) | Value::Time(_) => false,
    })
}

/// True when nothing that is news differs between the two.
pub fn same_words(one: &Finding, other: &Finding) -> bool {
    let (mut ones, mut others) = (words(one), words(other));
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return true,
            (Some((one_key, one)), Some((other_key, other))) if one_key == other_key => {
                let same = match (one, other) {
                    (Value::Text(one), Value::Text(other)) => {
                        one == other || without_measures(one).eq(without_measures(other))
                    }
                    _ => one == other,
                };
                if !same {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// The words of a text without its lengths of time, counts of times and sizes: an age moves on with every run.
fn without_measures(text: &str) -> impl Iterator<Item = &str> {
    const UNITS: [&str; 13] = ["ms", "s", "min", "h", "d", "time", "times", "B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut words = text.split(' ').peekable();
    std::iter::from_fn(move || {
        loop {
            let word = words.next()?;
            let number = word.trim_start_matches('(');
            let is_number = number.starts_with(|first: char| first.is_ascii_digit())
                && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            let is_unit = |next: &&str| UNITS.contains(&next.trim_end_matches([',', ';', ':', ')', '.']));
            if !is_number || words.next_if(is_unit).is_none() {
                return Some(word);
            }
        }
    })
}
