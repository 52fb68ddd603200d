//! `backups` of a service: where copies are, and what must be true of them.

use super::walk::{INTERVALS, absolute, table_or_string};
use muster_agent_core::backup::COPIES_MAX;
use muster_agent_core::backup::pattern::Pattern;
use muster_common::config::{Reader, Value};
use muster_common::limits::SUBJECT_BYTES_MAX;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Half of what was there: a purge takes less, a lost table or an empty source more.
const MIN_PERCENT_DEFAULT: u64 = 50;
/// A quarter: what is pruned on purpose keeps a level in the end.
const MIN_PERCENT_OVER_TIME_DEFAULT: u64 = 75;
/// Shorter than the fastest job, up to yearly ones.
const AGES: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(400 * 86_400);

/// A set of copies of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Pattern of the copies.
    pub path: Pattern,
    /// What they are copies of.
    pub of: Option<PathBuf>,
    /// How old the newest good one may be; `None`: as old as it likes.
    pub max_age: Option<Duration>,
    /// A copy with less than this share of the last good one has shrunk.
    pub min_percent: u64,
    /// Less than this share of the largest good one, lost little by little, has shrunk as well; 0 tells it never.
    pub min_percent_over_time: u64,
    /// A smaller file is no copy.
    pub min_bytes: u64,
    /// How many there should be.
    pub keep: Option<u32>,
    /// How often they are listed.
    pub interval: Option<Duration>,
    /// New copies are looked into (`check = "quick"`), not only at (`"none"`).
    pub look_inside: bool,
}

impl Backup {
    /// With the defaults.
    pub fn new(path: Pattern) -> Self {
        Self {
            path,
            of: None,
            max_age: None,
            min_percent: MIN_PERCENT_DEFAULT,
            min_percent_over_time: MIN_PERCENT_OVER_TIME_DEFAULT,
            min_bytes: 0,
            keep: None,
            interval: None,
            look_inside: true,
        }
    }
}

/// `"PATTERN"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Backup> {
    if value.if_string().is_some() {
        return Some(Backup::new(value.parsed(pattern)?));
    }
    let reader = table_or_string(value)?;
    let path = reader.required("path").and_then(|value| value.parsed(pattern));
    let options = options(&reader);
    Some(Backup { path: path?, ..options })
}

fn options(reader: &Reader<'_>) -> Backup {
    let narrow = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
    let mut backup = Backup::new(Pattern::default());
    backup.of = reader.parsed("of", absolute);
    backup.max_age = reader.duration("max_age", AGES);
    let percent = |key, default| reader.integer(key, 0..=100).and_then(|n| u64::try_from(n).ok()).unwrap_or(default);
    backup.min_percent = percent("min_percent", MIN_PERCENT_DEFAULT);
    backup.min_percent_over_time = percent("min_percent_over_time", MIN_PERCENT_OVER_TIME_DEFAULT);
    backup.min_bytes = reader.bytes("min_bytes").unwrap_or(0);
    backup.keep = reader.integer("keep", 1..=i64::try_from(COPIES_MAX).unwrap_or(1)).map(narrow);
    backup.interval = reader.duration("interval", INTERVALS);
    let check = reader.parsed("check", |text| match text {
        "quick" => Ok(true),
        "none" => Ok(false),
        _ => Err(format!("expected \"quick\" (the newest copy is looked into) or \"none\", found {text:?}")),
    });
    backup.look_inside = check.unwrap_or(true);
    backup
}

fn pattern(text: &str) -> Result<Pattern, String> {
    if text.len() > SUBJECT_BYTES_MAX {
        return Err(format!("expected a path of at most {SUBJECT_BYTES_MAX} bytes"));
    }
    Pattern::parse(text)
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::time::Duration;

    fn mistakes(text: &str) -> Vec<String> {
        let errors = Config::parse("agent.toml", text).unwrap_err();
        errors.mistakes.iter().map(|mistake| format!("{}: {}", mistake.message, mistake.expected)).collect()
    }

    #[test]
    fn a_string_and_a_table() {
        let text = r#"
[service.hub]
backups = ["/backup/a.*", { path = "/backup/b.*", of = "/var/lib/b", max_age = "26h", min_percent = 80,
            min_percent_over_time = 60, min_bytes = "1MiB", keep = 7, interval = "5m", check = "none" }]
"#;
        let config = Config::parse("agent.toml", text).unwrap();
        let [short, long] = config.services[0].backups.as_slice() else { panic!("{config:?}") };
        assert_eq!((short.path.as_str(), short.min_percent, short.look_inside), ("/backup/a.*", 50, true));
        assert_eq!((short.min_percent_over_time, long.min_percent_over_time), (75, 60));
        assert_eq!((long.min_percent, long.min_bytes, long.keep), (80, 1 << 20, Some(7)));
        assert_eq!((long.interval, long.look_inside), (Some(Duration::from_secs(300)), false));
    }

    #[test]
    fn mistakes_are_told_where_they_are() {
        let told =
            mistakes("[service.hub]\nbackups = [{ path = \"/b/**/x\", max_agee = \"1h\", check = \"deep\" }, \"x\"]\n");
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told.iter().any(|mistake| mistake.contains("`**` is not known")));
        assert!(told.iter().any(|mistake| mistake.contains("max_age")));
        let twice = mistakes("[service.hub]\nbackups = [\"/b/x\", \"/b/x\"]\n");
        assert!(twice[0].contains("watched twice"), "{twice:?}");
    }
}
