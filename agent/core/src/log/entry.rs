//! What one line says: its message, its fields, and when it was written, from JSON lines or from text.

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// Where structured loggers put the message.
const MESSAGE_KEYS: [&str; 4] = ["msg", "message", "MESSAGE", "event"];
/// Where they put what went wrong beside it.
const ERROR_KEYS: [&str; 5] = ["error", "err", "exception", "error.message", "cause"];
/// Where they put the time.
const TIME_KEYS: [&str; 6] = ["time", "timestamp", "ts", "@timestamp", "datetime", "date"];
/// Where they put the level.
const LEVEL_KEYS: [&str; 12] = [
    "level",
    "lvl",
    "severity",
    "levelname",
    "log.level",
    "loglevel",
    "levelno",
    "@l",
    "PRIORITY",
    "severity_number",
    "severityNumber",
    "SeverityNumber",
];
/// Debug, of the eight priorities of syslog and the journal: the highest number is the least.
const PRIORITY_DEBUG: u8 = 7;
/// A text line has its level among so many first words: behind date, time, zone, host, program and thread.
const LEVEL_WORDS_MAX: usize = 7;
/// Words for a level; the lowest two come last.
const LEVELS: [&str; 17] = [
    "emerg",
    "emergency",
    "alert",
    "crit",
    "critical",
    "fatal",
    "panic",
    "severe",
    "error",
    "err",
    "warning",
    "warn",
    "notice",
    "info",
    "debug",
    "trace",
    "verbose",
];
/// Such as nobody waits for.
const DEBUG_LEVELS: [&str; 3] = ["debug", "trace", "verbose"];
/// Fields of one line that are kept for rules.
const FIELDS_MAX: usize = 64;
/// Objects within objects that are looked into, as `outer.inner`.
const DEPTH_MAX: usize = 3;
/// Bytes of a tag that names a program (`earlyoom[812]:`).
const TAG_BYTES_MAX: usize = 64;

/// One line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry<'a> {
    /// What rules are matched against: the message and the error of a JSON line, or the whole line.
    pub text: Cow<'a, str>,
    /// When it was written, where the line says so with its time zone.
    pub unix_ms: Option<i64>,
    /// What its source says of its level, as syslog counts: 0 is the gravest. What the line itself says goes before.
    priority: Option<u8>,
    /// The plain fields of a JSON line; a text line is asked by [`Entry::field`].
    fields: Vec<(String, Cow<'a, str>)>,
}

impl<'a> Entry<'a> {
    /// Takes a line apart.
    ///
    /// ```
    /// use muster_agent_core::log::Entry;
    /// let entry = Entry::parse(r#"{"time":"2026-01-02T03:04:05Z","msg":"push failed","err":"timeout","code":7}"#);
    /// assert_eq!((&*entry.text, entry.field("code").as_deref()), ("push failed: timeout", Some("7")));
    /// assert_eq!(Entry::parse("level=warn code=7 late").field("level").as_deref(), Some("warn"));
    /// ```
    pub fn parse(line: &'a str) -> Self {
        if line.trim_start().starts_with('{')
            && let Some(entry) = json(line)
        {
            return entry;
        }
        Self::text(line)
    }

    /// A line that is text, whatever it looks like.
    pub fn text(line: &'a str) -> Self {
        Self { text: Cow::Borrowed(line), unix_ms: text_time(line), priority: None, fields: Vec::new() }
    }

    /// A message of which everything else is known from elsewhere (the journal).
    pub fn message(text: &'a str, unix_ms: Option<i64>) -> Self {
        let entry = Self::parse(text);
        Self { unix_ms: unix_ms.or(entry.unix_ms), ..entry }
    }

    /// With the level that its source gives it (`PRIORITY` of the journal).
    #[must_use]
    pub fn with_priority(self, priority: Option<u8>) -> Self {
        Self { priority, ..self }
    }

    /// A field of a JSON line, or `name=value` of a text line.
    pub fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        if let Some((_, value)) = self.fields.iter().find(|(key, _)| key == name) {
            return Some(Cow::Borrowed(value));
        }
        if self.fields.is_empty() { logfmt(&self.text, name).map(Cow::Borrowed) } else { None }
    }

    /// Whether its own level is debug or trace: a field of it says so, by name or by number (pino and bunyan, syslog,
    /// OpenTelemetry), or the first word or pair for a level near its begin; else what its source says. A number among
    /// text (`compress level=9 failed`) is no level.
    ///
    /// ```
    /// use muster_agent_core::log::Entry;
    /// assert!(Entry::parse("2026-01-02T03:04:05Z DEBUG sql: \"disk I/O error\" is code 10").is_debug());
    /// assert!(Entry::parse(r#"{"level":20,"msg":"disk I/O error"}"#).is_debug());
    /// assert!(!Entry::parse("ERROR sql: disk I/O error (DEBUG is off)").is_debug());
    /// ```
    pub fn is_debug(&self) -> bool {
        let own = if self.fields.is_empty() {
            text_level(&self.text)
        } else {
            self.field_level().or_else(|| self.text.split_whitespace().take(LEVEL_WORDS_MAX).find_map(level_of))
        };
        if let Some(level) = own {
            return level.is_debug();
        }
        self.priority.or_else(|| syslog_priority(&self.text)) == Some(PRIORITY_DEBUG)
    }

    /// Of a JSON line: a name goes before a number, which may count something else (`"level":9` of a compression).
    fn field_level(&self) -> Option<Level> {
        let named = LEVEL_KEYS.iter().find_map(|key| level_name(self.field(key)?.trim()));
        named.or_else(|| {
            let (key, value) = LEVEL_KEYS.iter().find_map(|key| Some((*key, self.field(key)?)))?;
            Some(level_of_value(key, value.trim()).unwrap_or(Level::Other))
        })
    }

    /// The program that a line of a syslog file names before its message.
    pub fn program(&self) -> Option<&str> {
        let colon = self.text.find(": ")?;
        let before = self.text.get(..colon)?;
        let tag = before.rsplit(' ').next()?;
        let name = tag.split('[').next()?;
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./@".contains(c));
        (!name.is_empty() && name.len() <= TAG_BYTES_MAX && plain && before.len() > tag.len()).then_some(name)
    }
}

/// Whether a number stands for debug or trace where `key` has it. GELF and syslog count down to 7 and have nothing above
/// it; pino, bunyan and their like begin at 10 and have info at 30.
fn is_debug_number(key: &str, number: i64) -> bool {
    let syslog = i64::from(PRIORITY_DEBUG);
    match key {
        "PRIORITY" | "severity" => number == syslog,
        "levelno" => (1..=10).contains(&number),
        "severity_number" | "severityNumber" | "SeverityNumber" => (1..=8).contains(&number),
        _ => (syslog..30).contains(&number),
    }
}

/// Of a line that begins as syslog has it on the wire: `<15>`.
fn syslog_priority(line: &str) -> Option<u8> {
    let (number, _) = line.strip_prefix('<')?.split_once('>')?;
    number.parse::<u8>().ok().filter(|number| *number <= 191).map(|number| number % 8)
}

/// What matters of a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Such as nobody waits for.
    Debug,
    /// Any other.
    Other,
}

impl Level {
    const fn is_debug(self) -> bool {
        matches!(self, Self::Debug)
    }

    const fn debug_if(debug: bool) -> Self {
        if debug { Self::Debug } else { Self::Other }
    }
}

fn level_name(name: &str) -> Option<Level> {
    let is_one_of = |levels: &[&str]| levels.iter().any(|level| name.eq_ignore_ascii_case(level));
    is_one_of(&LEVELS).then(|| Level::debug_if(is_one_of(&DEBUG_LEVELS)))
}

fn level_of_value(key: &str, value: &str) -> Option<Level> {
    level_name(value).or_else(|| Some(Level::debug_if(is_debug_number(key, value.parse().ok()?))))
}

/// Of a text line: the first word for a level near its begin, or a pair. A name in a pair counts where it does not follow
/// a plain word of a sentence; a number only in a line that has nothing but pairs before it and behind it.
fn text_level(line: &str) -> Option<Level> {
    let mut words = Words(line).peekable();
    let (mut before, mut only_pairs, mut count) = ("", true, 0);
    while let Some(word) = words.next() {
        count += 1;
        let near = count <= LEVEL_WORDS_MAX;
        if !near && !only_pairs {
            return None;
        }
        if let Some(level) = level_of(word).filter(|_| near) {
            return Some(level);
        }
        let pair = word.split_once('=');
        if let Some((key, value)) = pair.filter(|(key, _)| LEVEL_KEYS.contains(key)) {
            let value = value.trim_matches('"');
            let behind_header = before.is_empty() || before.contains(['=', ':', ']']);
            let named = level_name(value).filter(|_| behind_header);
            let pair_follows = words.peek().is_none_or(|next| next.contains('='));
            let level = named.or_else(|| level_of_value(key, value).filter(|_| only_pairs && pair_follows));
            if level.is_some() {
                return level;
            }
        }
        only_pairs &= pair.is_some();
        before = word;
    }
    None
}

/// The words of a line; the quoted value of a pair is of its word.
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.trim_start();
        let plain = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let quoted = rest.find("=\"").filter(|at| *at < plain).and_then(|at| {
            let from = at + 2;
            Some(from + rest.get(from..)?.find('"')? + 1)
        });
        let (word, rest) = rest.split_at_checked(quoted.unwrap_or(plain))?;
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }
}

/// The level that a word of a text line stands for: `DEBUG`, `[debug]`, `debug:`, `DEBUG:module:`. A small word among
/// others is a word.
fn level_of(word: &str) -> Option<Level> {
    let marked = word.starts_with(['[', '<', '(']) || word.contains(':');
    let bare = word.trim_start_matches(['[', '<', '(']);
    let bare = bare.split([']', '>', ')', ':', ',']).next()?;
    let loud = bare.chars().all(|c| c.is_ascii_uppercase());
    level_name(bare).filter(|_| marked || loud)
}

fn json(line: &str) -> Option<Entry<'_>> {
    let mut found = Found::default();
    let mut reader = serde_json::Deserializer::from_str(line);
    reader.deserialize_map(Top(&mut found)).ok()?;
    let text = match (found.message, found.error) {
        (Some(message), Some(error)) if !message.contains(&*error) => Cow::Owned(format!("{message}: {error}")),
        (Some(message), _) => message,
        (None, Some(error)) => error,
        (None, None) => Cow::Borrowed(line),
    };
    Some(Entry { text, unix_ms: found.unix_ms, priority: None, fields: found.fields })
}

#[derive(Default)]
struct Found<'a> {
    message: Option<Cow<'a, str>>,
    error: Option<Cow<'a, str>>,
    unix_ms: Option<i64>,
    fields: Vec<(String, Cow<'a, str>)>,
}

impl<'a> Found<'a> {
    fn take(&mut self, name: String, value: Cow<'a, str>) {
        if MESSAGE_KEYS.contains(&name.as_str()) && self.message.is_none() {
            self.message = Some(value.clone());
        } else if ERROR_KEYS.contains(&name.as_str()) && self.error.is_none() {
            self.error = Some(value.clone());
        } else if TIME_KEYS.contains(&name.as_str()) && self.unix_ms.is_none() {
            self.unix_ms = rfc3339(&value).or_else(|| number_time(&value));
        }
        if self.fields.len() < FIELDS_MAX {
            self.fields.push((name, value));
        }
    }
}

/// The outermost object.
struct Top<'f, 'a>(&'f mut Found<'a>);

impl<'de> Visitor<'de> for Top<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            map.next_value_seed(Field { found: &mut *self.0, name: name.into_owned(), depth: 1 })?;
        }
        Ok(())
    }
}

/// One value: a plain one is kept, an object is looked into.
struct Field<'f, 'a> {
    found: &'f mut Found<'a>,
    name: String,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Field<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Field<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<(), E> {
        self.found.take(self.name, Cow::Borrowed(text));
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.found.take(self.name, Cow::Owned(text.to_owned()));
        Ok(())
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<(), E> {
        self.found.take(self.name, Cow::Owned(flag.to_string()));
        Ok(())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.found.take(self.name, Cow::Owned(number.to_string()));
        Ok(())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.found.take(self.name, Cow::Owned(number.to_string()));
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.found.take(self.name, Cow::Owned(number.to_string()));
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.depth >= DEPTH_MAX {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            let name = format!("{}.{name}", self.name);
            map.next_value_seed(Field { found: &mut *self.found, name, depth: self.depth + 1 })?;
        }
        Ok(())
    }
}

/// The value of `name=value` or `name="some words"`.
fn logfmt<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut from = 0;
    while let Some(at) = text.get(from..)?.find(name) {
        let (start, end) = (from + at, from + at + name.len());
        from = end.max(from + 1);
        let alone = text.get(..start)?.chars().next_back().is_none_or(char::is_whitespace);
        let Some(value) = text.get(end..).and_then(|rest| rest.strip_prefix('=')).filter(|_| alone) else { continue };
        return match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => value.split(char::is_whitespace).next(),
        };
    }
    None
}

/// `2026-01-02T03:04:05.678Z` at the begin of a line, also in brackets. A time without a zone is nobody's.
fn text_time(line: &str) -> Option<i64> {
    let line = line.strip_prefix('[').unwrap_or(line);
    let end = line.find([' ', ']', '\t']).unwrap_or(line.len());
    rfc3339(line.get(..end)?)
}

/// Seconds, milliseconds, microseconds or nanoseconds since 1970: told apart by size.
fn number_time(text: &str) -> Option<i64> {
    /// 2001 in the unit and 2286 in it: no two units overlap.
    const YEAR_2001: i64 = 1_000_000_000;
    const YEAR_2286: i64 = 10_000_000_000;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let number: i64 = whole.parse().ok()?;
    let within = |scale: i64| (YEAR_2001.saturating_mul(scale)..YEAR_2286.saturating_mul(scale)).contains(&number);
    if within(1) {
        return Some(number.checked_mul(1000)?.saturating_add(milliseconds(fraction)));
    }
    match () {
        () if within(1_000) => Some(number),
        () if within(1_000_000) => Some(number / 1_000),
        () if (YEAR_2001.saturating_mul(1_000_000_000)..).contains(&number) => Some(number / 1_000_000),
        () => None,
    }
}

/// `.678` of a second in milliseconds, given its digits.
fn milliseconds(digits: &str) -> i64 {
    let padded: String = digits.chars().chain("000".chars()).take(3).collect();
    padded.parse().unwrap_or(0)
}

fn rfc3339(text: &str) -> Option<i64> {
    if !text.is_ascii() || text.len() < 20 {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok()).flatten()
    };
    let sign = |at: usize, expected: &[u8]| text.as_bytes().get(at).is_some_and(|byte| expected.contains(byte));
    if !(sign(4, b"-") && sign(7, b"-") && sign(10, b"Tt ") && sign(13, b":") && sign(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !((1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60) {
        return None;
    }
    let rest = text.get(19..)?;
    let fraction = rest.strip_prefix(['.', ',']).unwrap_or_default();
    let fraction = fraction.get(..fraction.bytes().take_while(u8::is_ascii_digit).count())?;
    let zone = if fraction.is_empty() { rest } else { rest.get(fraction.len() + 1..)? };
    let offset_minutes = match zone {
        "Z" | "z" => 0,
        _ => {
            let direction = if zone.starts_with('-') { -1 } else { 1 };
            let digits: String = zone.strip_prefix(['+', '-'])?.chars().filter(|c| *c != ':').collect();
            let plain = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
            let digits: i64 = digits.parse().ok().filter(|_| plain)?;
            direction * (digits / 100 * 60 + digits % 100)
        }
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some((seconds - offset_minutes * 60) * 1000 + milliseconds(fraction))
}

/// Of the proleptic Gregorian calendar. Counted from 1 March of year 0, so that a leap day ends a year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days_before_month = (month * 153 + 2) / 5;
    year * 365 + leap_days + days_before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_with_a_zone_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-22T01:51:45.5Z", Some(1_795_312_305_500)),
            ("2026-11-22T03:51:45,500+02:00", Some(1_795_312_305_500)),
            ("2024-02-29 23:59:59-0000", Some(1_709_251_199_000)),
            ("2026-11-22T01:51:45", None),
            ("2026-13-22T01:51:45Z", None),
            ("not a time at all", None),
        ] {
            assert_eq!(rfc3339(text), expected, "{text}");
        }
        let time = |line| Entry::parse(line).unix_ms;
        assert_eq!(time("[2026-11-22T01:51:45Z] started"), Some(1_795_312_305_000));
        assert_eq!(time("2026-11-22 01:51:45 no zone"), None);
        for number in ["1795312305", "1795312305.000", "1795312305000", "1795312305000000", "1795312305000000000"] {
            let line = format!("{{\"ts\":{number}}}");
            assert_eq!(Entry::parse(&line).unix_ms, Some(1_795_312_305_000), "{number}");
        }
    }

    #[test]
    fn a_json_line_gives_message_error_and_fields() {
        let entry =
            Entry::parse(r#"{"level":"error","msg":"push \"x\"","error":"denied","http":{"status":429},"l":[1]}"#);
        assert_eq!(entry.text, "push \"x\": denied");
        assert_eq!(entry.field("http.status").as_deref(), Some("429"));
        assert_eq!(entry.field("level").as_deref(), Some("error"));
        assert_eq!(entry.field("status"), None);
        for broken in ["{\"msg\":", "{}", "{no json}", "[1]"] {
            assert_eq!(Entry::parse(broken).text, broken);
        }
    }

    #[test]
    fn a_level_is_known_by_a_field_or_by_a_word_near_the_begin() {
        for (line, expected) in [
            (r#"{"level":"debug","msg":"disk I/O error"}"#, true),
            (r#"{"lvl":"TRACE","msg":"x"}"#, true),
            (r#"{"level":"error","msg":"DEBUG is off"}"#, false),
            (r#"{"log":{"level":"Debug"},"msg":"x"}"#, true),
            ("time=1 level=debug msg=\"timed out\"", true),
            ("level=warn msg=\"DEBUG timed out\"", false),
            ("DEBUG sql: x", true),
            ("DEBUG:root:x", true),
            ("debug: x", true),
            ("2026-11-22 01:51:45,123 [main] TRACE o.h.Sql - x", true),
            ("2026/11/22 01:51:45 [debug] 7#7: x", true),
            ("Nov 22 01:51:45 host hub[812]: DEBUG x", true),
            ("ERROR retry with DEBUG on", false),
            ("WARNING: DEBUG x", false),
            ("could not open debug log", false),
            ("Traceback (most recent call last):", false),
            ("sqlite3.OperationalError: disk I/O error", false),
            ("", false),
            // pino and bunyan
            (r#"{"level":10,"msg":"timed out"}"#, true),
            (r#"{"level":20,"time":1795312305000,"msg":"timed out"}"#, true),
            (r#"{"level":30,"msg":"timed out"}"#, false),
            (r#"{"level":50,"msg":"timed out"}"#, false),
            // GELF and syslog: 7 is debug, 3 is an error.
            (r#"{"version":"1.1","level":7,"short_message":"timed out"}"#, true),
            (r#"{"level":3,"msg":"timed out"}"#, false),
            (r#"{"PRIORITY":"7","MESSAGE":"timed out"}"#, true),
            (r#"{"PRIORITY":"6","MESSAGE":"timed out"}"#, false),
            ("<15>Nov 22 01:51:45 host hub: timed out", true),
            ("<11>Nov 22 01:51:45 host hub: timed out", false),
            ("<999>timed out", false),
            (r#"{"levelno":10,"msg":"timed out"}"#, true),
            (r#"{"levelno":20,"msg":"timed out"}"#, false),
            (r#"{"severityNumber":5,"body":"timed out"}"#, true),
            (r#"{"severityNumber":17,"body":"timed out"}"#, false),
            (r#"{"@l":"Verbose","@m":"timed out"}"#, true),
            ("level=20 msg=x", true),
            ("time=\"2026-11-22 01:51:45\" level=20 msg=x", true),
            ("Nov 22 01:51:45 host hub[7]: time=\"2026-11-22 01:51:45\" level=debug msg=\"timed out\"", true),
            ("msg=\"timed out after one two three four five six\" level=debug", true),
            // Of text, such pairs are about something else.
            ("2026-11-22T01:51:45Z ERROR backup: compress level=9 failed: disk I/O error", false),
            ("ERROR tls severity=7 connection timed out", false),
            ("2026-11-22 01:51:45 [ERROR] zstd level=19 window=7: database disk image is malformed", false),
            ("Nov 22 01:51:45 host hub[77]: level=15 battery: database disk image is malformed", false),
            ("level=15 battery: database disk image is malformed", false),
            ("compress level=9 failed: disk I/O error", false),
            ("setting level=debug failed: disk I/O error", false),
            ("2026-11-22T01:51:45Z DEBUG compress level=3 failed: timed out", true),
            (r#"{"severity":"ERROR","level":9,"msg":"timed out"}"#, false),
            (r#"{"level":9,"severity":"DEBUG","msg":"timed out"}"#, true),
        ] {
            assert_eq!(Entry::parse(line).is_debug(), expected, "{line}");
        }
    }

    #[test]
    fn what_a_line_says_of_its_level_goes_before_what_its_source_says() {
        for (line, priority, expected) in [
            ("timed out", Some(7), true),
            ("timed out", Some(6), false),
            ("ERROR timed out", Some(7), false),
            ("DEBUG timed out", Some(6), true),
            (r#"{"level":50,"msg":"timed out"}"#, Some(7), false),
            ("timed out", None, false),
        ] {
            let entry = Entry::message(line, Some(1)).with_priority(priority);
            assert_eq!(entry.is_debug(), expected, "{line} {priority:?}");
        }
    }

    #[test]
    fn a_text_line_gives_its_pairs_and_its_program() {
        let entry = Entry::parse("xlevel=no level=warn msg=\"two words\" n=1");
        assert_eq!(entry.field("level").as_deref(), Some("warn"));
        assert_eq!(entry.field("msg").as_deref(), Some("two words"));
        assert_eq!(entry.field("z"), None);
        let program = |line| Entry::parse(line).program().map(str::to_owned);
        assert_eq!(program("Nov 22 01:51:45 host earlyoom[812]: mem avail").as_deref(), Some("earlyoom"));
        assert_eq!(program("2026-11-22T01:51:45Z host systemd-oomd: Killed x").as_deref(), Some("systemd-oomd"));
        assert_eq!(program("error: nothing"), None);
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in "\\PC{0,80}", json in "[{}\\[\\]\":,a-z0-9\\\\u\\.-]{0,60}") {
            let _ = Entry::parse(&line).field("level");
            let _ = Entry::parse(&line).program();
            let _ = Entry::parse(&line).is_debug();
            let _ = Entry::parse(&format!("{{{json}")).field("a");
            let _ = rfc3339(&line);
            let _ = number_time(&line);
        }
    }
}
