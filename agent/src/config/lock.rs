//! `locks` of a service: lock files, how long they may be held and waited for.

use super::walk::{INTERVALS, absolute, table_or_string};
use muster_common::config::Value;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// A lock is held, and waited for, for a second at least before anybody minds; a month is no bound any more.
const LIMITS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(31 * 86_400);

/// A lock file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Its path.
    pub path: PathBuf,
    /// Longest time one process may hold it; unset for a lock that is held as long as the service runs.
    pub max_hold: Option<Duration>,
    /// Longest time a process may wait for it.
    pub max_wait: Option<Duration>,
    /// How often it is looked at.
    pub interval: Option<Duration>,
}

/// `"PATH"`, or a table with every option.
pub(super) fn walk(value: &Value<'_>) -> Option<Lock> {
    if value.if_string().is_some() {
        return Some(Lock { path: value.parsed(absolute)?, max_hold: None, max_wait: None, interval: None });
    }
    let table = table_or_string(value)?;
    let path = table.required("path").and_then(|inner| inner.parsed(absolute));
    let max_hold = table.duration("max_hold", LIMITS);
    let max_wait = table.duration("max_wait", LIMITS);
    let interval = table.duration("interval", INTERVALS);
    Some(Lock { path: path?, max_hold, max_wait, interval })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn the_short_form_and_every_option() {
        let text = r#"
[service.spl]
locks = ["/run/spl.lock", { path = "/run/job.lock", max_hold = "10m", max_wait = "30s", interval = "2s" }]
"#;
        let config = Config::parse("agent.toml", text).unwrap();
        let [plain, full] = config.services[0].locks.as_slice() else { panic!("{config:?}") };
        assert_eq!((plain.path.as_path(), plain.max_hold), (Path::new("/run/spl.lock"), None));
        assert_eq!((full.max_hold, full.max_wait), (Some(Duration::from_secs(600)), Some(Duration::from_secs(30))));
        assert_eq!(full.interval, Some(Duration::from_secs(2)));
    }

    #[test]
    fn mistakes_are_told_with_what_was_meant() {
        let told = |locks: &str| {
            Config::parse("agent.toml", &format!("[service.a]\nlocks = [{locks}]")).unwrap_err().to_string()
        };
        assert!(told("{ path = \"/a\", max_hld = \"1s\" }").contains("did you mean \"max_hold\"?"));
        assert!(told("{ path = \"/a\", max_wait = \"10ms\" }").contains("expected a duration from 1 s"));
        assert!(told("\"run/a.lock\"").contains("expected an absolute path"));
        assert!(told("\"/a\", \"/a\"").contains("watched twice"));
        assert!(told("\"/var/lib/muster-agent/spool.lock\"").contains("its own files"));
    }
}
