//! Who wrote a line of the kernel log, when, and what it says without its prefix.

/// Who wrote it. User space may write to `/dev/kmsg`, but never with facility 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The kernel, proven by the facility.
    Kernel,
    /// A process: not believed.
    UserSpace,
    /// The form carries no facility (plain `dmesg`); only for offline triage of a file a person vouches for.
    Untold,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Who wrote it.
    pub source: Source,
    /// Sequence number, where the form has one.
    pub sequence: Option<u64>,
    /// Microseconds since boot, where the form has them.
    pub usec: Option<u64>,
    /// The message itself.
    pub text: String,
}

/// One record as a single read of `/dev/kmsg` returns it: `prio,seq,usec,flags[,…];text`, then lines ` KEY=value` that
/// describe the device and are not part of the message. `None` when it is not such a record.
pub fn parse_record(record: &[u8]) -> Option<Line> {
    let text = String::from_utf8_lossy(record);
    parse_raw(text.lines().next()?)
}

/// One line of a saved log: a raw record, `dmesg` (plain, `-T`, `-x`, `-r`), syslog or `journalctl`.
///
/// ```
/// use muster_agent_core::kmsg::{Source, parse_saved};
/// let line = parse_saved("Mar  2 17:35:10 web-1 kernel: [2858609.598568] Killed process 1 (a)");
/// assert_eq!((line.text.as_str(), line.usec), ("Killed process 1 (a)", Some(2_858_609_598_568)));
/// assert_eq!(parse_saved("12,5,99,-;oomd kill").source, Source::UserSpace);
/// ```
pub fn parse_saved(line: &str) -> Line {
    let line = strip_colours(line);
    let line = line.trim_end();
    if let Some(raw) = parse_raw(line) {
        return raw;
    }
    let mut source = Source::Untold;
    let mut rest = line;
    if let Some((priority, after)) = angle_priority(rest) {
        source = facility_source(priority);
        rest = after;
    } else if let Some((decoded, after)) = decoded_facility(rest) {
        source = decoded;
        rest = after;
    }
    if let Some(after) = after_syslog_tag(rest) {
        source = if source == Source::UserSpace { source } else { Source::Kernel };
        rest = after;
    }
    let (usec, text) = strip_stamp(rest);
    Line { source, sequence: None, usec, text: text.to_owned() }
}

/// Whether `line`, parsed from `raw`, is one that only a kernel log has: a facility, a stamp, a tag, or a sentence of
/// the OOM killer. A text without any such line is no kernel log, and its silence proves nothing.
pub fn bears_kernel_mark(raw: &str, line: &Line) -> bool {
    line.source != Source::Untold
        || line.usec.is_some()
        || line.text != strip_colours(raw).trim_end()
        || super::forms::parse(&line.text).is_some()
}

fn facility_source(priority: u64) -> Source {
    if priority >> 3 == 0 { Source::Kernel } else { Source::UserSpace }
}

fn parse_raw(line: &str) -> Option<Line> {
    let (head, text) = line.split_once(';')?;
    let mut fields = head.split(',');
    let priority = decimal(fields.next()?)?;
    let sequence = decimal(fields.next()?)?;
    let usec = decimal(fields.next()?)?;
    fields.next()?;
    Some(Line { source: facility_source(priority), sequence: Some(sequence), usec: Some(usec), text: unescape(text) })
}

/// Digits only: `u64::from_str` would take a sign.
fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// Undoes the kernel's `\xHH` for bytes that do not print.
fn unescape(text: &str) -> String {
    if !text.contains("\\x") {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Removes terminal colours (`dmesg --color=always` into a file).
fn strip_colours(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let letter = part.find(|c: char| c.is_ascii_alphabetic());
        out.push_str(letter.and_then(|at| part.get(at + 1..)).unwrap_or(part));
    }
    out
}

/// `<6>rest`, as `dmesg -r` and the old syslog protocol have it.
fn angle_priority(line: &str) -> Option<(u64, &str)> {
    let (number, rest) = line.strip_prefix('<')?.split_once('>')?;
    Some((decimal(number)?, rest))
}

/// `kern  :info  : rest`, as `dmesg -x` has it.
fn decoded_facility(line: &str) -> Option<(Source, &str)> {
    let (facility, rest) = line.split_once(':')?;
    let (level, rest) = rest.split_once(':')?;
    let facility = facility.trim_end();
    let levels = ["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"];
    if !levels.contains(&level.trim_end()) || facility.is_empty() || facility.contains(' ') {
        return None;
    }
    Some((if facility == "kern" { Source::Kernel } else { Source::UserSpace }, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// What follows `TIME HOST kernel: `. Other tags are left on, and a line with one matches no kernel form.
fn after_syslog_tag(line: &str) -> Option<&str> {
    // A syslog or journal prefix has a date of up to five words, a time and a host.
    const PREFIX_WORDS_MAX: usize = 8;
    let (prefix, rest) = line.split_once(" kernel: ")?;
    let clock = |word: &str| word.matches(':').count() >= 2 && word.bytes().any(|byte| byte.is_ascii_digit());
    let other_tag = prefix.split_whitespace().any(|word| word.ends_with(':'));
    let usual = prefix.split_whitespace().any(clock) && prefix.split_whitespace().count() <= PREFIX_WORDS_MAX;
    (usual && !other_tag).then_some(rest)
}

/// Splits `[   52.835327] text`, `[   52.8][ T123] text` and `[Di Aug 12 03:54:03 2025] text`. A row of the task table
/// (`[ 323]     0 …`) keeps its brackets.
fn strip_stamp(line: &str) -> (Option<u64>, &str) {
    let Some((inside, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return (None, line);
    };
    let stamp = inside.trim();
    let usec = seconds_to_usec(stamp);
    if usec.is_none() && !has_clock(stamp) {
        return (None, line);
    }
    let rest = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((caller, after)) if caller.trim_start().starts_with(['T', 'C']) => after,
        _ => rest,
    };
    (usec, rest.strip_prefix(' ').unwrap_or(rest))
}

/// `03:54:03` somewhere in it.
fn has_clock(stamp: &str) -> bool {
    let is_clock = |bytes: &[u8]| {
        bytes.iter().enumerate().all(|(at, byte)| if at % 3 == 2 { *byte == b':' } else { byte.is_ascii_digit() })
    };
    stamp.as_bytes().windows("00:00:00".len()).any(is_clock)
}

fn seconds_to_usec(stamp: &str) -> Option<u64> {
    let (seconds, fraction) = stamp.split_once('.')?;
    let seconds = decimal(seconds)?;
    let micros = decimal(&format!("{:0<6}", fraction.get(..fraction.len().min(6))?))?;
    seconds.checked_mul(1_000_000)?.checked_add(micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_raw_record_tells_who_wrote_it() {
        let line = parse_record(b"6,1234,5678901,-,caller=T1;Out of memory\n SUBSYSTEM=x\n DEVICE=y\n").unwrap();
        assert_eq!(line.source, Source::Kernel);
        assert_eq!((line.sequence, line.usec), (Some(1234), Some(5_678_901)));
        assert_eq!(line.text, "Out of memory");
        assert_eq!(parse_record(b"14,1,2,-;Killed process 1 (a)").unwrap().source, Source::UserSpace);
        assert!(parse_record(b"").is_none());
        assert!(parse_record(b"+6,1,2,-;x").is_none());
        assert_eq!(parse_record(b"6,1,2,-;a\\x0ab\\x5cx41 \\xZZ").unwrap().text, "a\nb\\x41 \\xZZ");
    }

    #[test]
    fn every_usual_prefix_comes_off() {
        let message = "Killed process 7 (a b)";
        for prefix in [
            "",
            "[    1.500000] ",
            "[    1.500000][  T77] ",
            "[Di Aug 12 03:54:03 2025] ",
            "[四 3月 18 18:47:12 2021] ",
            "<6>[    1.500000] ",
            "kern  :info  : [    1.500000] ",
            "\u{1b}[32m[    1.500000] \u{1b}[0m",
            "Nov 22 06:26:05 web-1 kernel: ",
            "Nov 22 06:26:05 web-1 kernel: [    1.500000] ",
            "2025-08-12T03:54:03+0200 web-1 kernel: ",
            "6,1,1500000,-;",
        ] {
            let line = parse_saved(&format!("{prefix}{message}"));
            assert_eq!(line.text, message, "{prefix:?}");
            assert_ne!(line.source, Source::UserSpace, "{prefix:?}");
            if prefix.contains("1.5") {
                assert_eq!(line.usec, Some(1_500_000), "{prefix:?}");
            }
        }
    }

    #[test]
    fn user_space_stays_recognisable() {
        assert_eq!(parse_saved("<14>[ 1.0] Killed process 7 (a)").source, Source::UserSpace);
        assert_eq!(parse_saved("user  :info  : [ 1.0] Killed process 7 (a)").source, Source::UserSpace);
        let line = parse_saved("Nov 22 06:26:05 web-1 oomd[7]: kernel: Killed process 7 (a)");
        assert!(!line.text.starts_with("Killed"), "{line:?}");
        let row = "[    323]     0   323     9458     2766    77824        0          -250 systemd-journal";
        assert_eq!(parse_saved(row).text, row);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_record(&bytes);
            let _ = parse_saved(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn never_panics_near_a_prefix(line in "[<\\[0-9,;:\\] .TC>\\\\x\u{1b}äkernel]{0,60}") {
            let _ = parse_record(line.as_bytes());
            let _ = parse_saved(&line);
        }
    }
}
