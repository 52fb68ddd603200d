//! `logs` of a service and `[[log_rule]]`: which lines are worth telling, and the rules that are shipped.

use super::walk::{INTERVALS, absolute_pattern, table_or_string, unit_name};
use muster_agent_core::log::{Rule, check_examples, check_pattern, group_names, may_come_from_a_log, placeholders};
use muster_common::config::{Reader, Value, did_you_mean, nearest};
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Before the name of a unit whose journal is followed.
const JOURNAL_PREFIX: &str = "journal:";
/// All shipped rules, in a log's list of rules.
pub const STANDARD: &str = "standard";
/// The shipped rules, in the form of everybody's.
const STANDARD_RULES: &str = include_str!("standard_rules.toml");
/// Rules of one config.
const RULES_MAX: usize = 256;
/// Bytes of one pattern: what is longer is a program.
const PATTERN_BYTES_MAX: usize = 2048;

/// A rule as the config has it.
pub type LogRule = Rule;

/// A log that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Where its lines come from.
    pub source: LogSource,
    /// How its lines are taken apart.
    pub format: LogFormat,
    /// Names of the rules that are asked, or [`STANDARD`]; all of them when `None`.
    pub rules: Option<Vec<String>>,
    /// How often it is read.
    pub interval: Option<Duration>,
}

/// Where lines come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSource {
    /// A file, or files whose name fits a pattern.
    File(PathBuf),
    /// The journal of a unit.
    Journal(String),
}

/// How lines are taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// A line that is a JSON object is taken as such, any other as text.
    #[default]
    Auto,
    /// Every line is text.
    Text,
}

impl fmt::Display for LogSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Journal(unit) => write!(f, "{JOURNAL_PREFIX}{unit}"),
        }
    }
}

/// The shipped rules. Read when a log is followed, not kept.
pub fn standard_rules() -> Vec<Rule> {
    let walk = |root: &Reader<'_>| root.tables("log_rule").iter().filter_map(|rule| rule_of(rule, false)).collect();
    // They are tested; without them the agent still watches everything else.
    muster_common::config::read("standard_rules.toml", STANDARD_RULES, walk).unwrap_or_default()
}

/// `"/path"`, `"journal:UNIT"`, or a table with every option. `own` are the names of the config's own rules.
pub(super) fn walk(value: &Value<'_>, own: &[String]) -> Option<Log> {
    if value.if_string().is_some() {
        let source = value.parsed(source)?;
        return Some(Log { source, format: LogFormat::Auto, rules: None, interval: None });
    }
    let table = table_or_string(value)?;
    let source = table.required("source").and_then(|inner| inner.parsed(source));
    let interval = table.duration("interval", INTERVALS);
    let format = table.parsed("format", |text| match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        _ => Err(format!("expected \"auto\" (JSON objects and text) or \"text\", found {text:?}")),
    });
    let rules = table.value("rules").map(|_| {
        let standard: Vec<String> = standard_rules().into_iter().map(|rule| rule.name).collect();
        table.list("rules", |text| {
            let known = || own.iter().chain(&standard).map(String::as_str).chain([STANDARD]);
            if known().any(|name| name == text) {
                return Ok(text.to_owned());
            }
            Err(format!("no log_rule is called {text:?}{}", did_you_mean(nearest(text, known()).as_deref())))
        })
    });
    Some(Log { source: source?, format: format.unwrap_or_default(), rules, interval })
}

/// Every `[[log_rule]]`.
pub(super) fn walk_rules(root: &Reader<'_>) -> Vec<Rule> {
    let readers = root.tables("log_rule");
    let mut names: BTreeSet<String> = standard_rules().into_iter().map(|rule| rule.name).collect();
    let mut rules = Vec::new();
    for reader in &readers {
        let Some(rule) = rule_of(reader, true) else { continue };
        if !names.insert(rule.name.clone()) {
            let message = format!("the log_rule {:?} is there twice", rule.name);
            reader.mistake(&message, "expected a name that no other rule has, a shipped one included");
        }
        rules.push(rule);
    }
    if let (true, Some(last)) = (rules.len() > RULES_MAX, readers.last()) {
        last.mistake("too many log rules", &format!("expected at most {RULES_MAX}"));
    }
    rules
}

/// One rule; with `check` its examples are tried.
fn rule_of(reader: &Reader<'_>, check: bool) -> Option<Rule> {
    let name = reader.required("name").and_then(|value| value.parsed(plain_name));
    let reason = reader.required("reason").and_then(|value| value.parsed(reason));
    let pattern = reader.required("pattern").and_then(|value| value.parsed(|text| pattern(text, check)));
    let mut rule = Rule::new(&name.unwrap_or_default(), reason.unwrap_or(Reason::LogError), "");
    rule.exclude = reader.parsed("exclude", |text| pattern_of(text, check));
    rule.fields = reader.string_map("fields");
    rule.services = reader.list("services", |text| {
        ServiceName::new(text).map(|name| name.to_string()).map_err(|error| error.to_string())
    });
    rule.from = reader.list("from", plain_name);
    rule.skips_debug = reader.boolean("skips_debug").unwrap_or(false);
    rule.severity = reader.parsed("severity", str::parse);
    let groups = if check { pattern.as_deref().map(group_names).unwrap_or_default() } else { Vec::new() };
    let known_group = |text: &str| {
        if !check || groups.iter().any(|group| group == text) {
            return Ok(());
        }
        let near = did_you_mean(nearest(text, groups.iter().map(String::as_str)).as_deref());
        Err(format!("the pattern has no group called {text:?}{near}; write it as (?<{text}>…)"))
    };
    rule.summary = reader.parsed("summary", |text| {
        placeholders(text).into_iter().try_for_each(known_group)?;
        Ok(text.to_owned())
    });
    rule.group_by = reader.parsed("group_by", |text| known_group(text).map(|()| text.to_owned()));
    rule.killer = reader.parsed("killer", plain_name);
    rule.matches = reader.list("matches", |text| Ok(text.to_owned()));
    rule.ignores = reader.list("ignores", |text| Ok(text.to_owned()));
    let about_kills = reason == Some(Reason::OomKill);
    if let Some(value) = reader.value("reason").filter(|_| about_kills != rule.killer.is_some()) {
        value.mistake(
            "a log tells of an oom_kill only by the word of a killer",
            "expected killer = \"…\" beside reason = \"oom_kill\", and with no other reason",
        );
    }
    // What is wrong already has its own mistake.
    if name_is_empty(&rule) || reason.is_none() {
        return None;
    }
    rule.pattern = pattern?;
    if check && let Err(why) = check_examples(&rule) {
        let value = reader.value("matches").or_else(|| reader.value("ignores"));
        if let Some(value) = value {
            value.mistake(&format!("an example of the log_rule {:?} does not fit", rule.name), &why);
        }
    }
    if !check {
        // At run time examples are dead weight.
        (rule.matches, rule.ignores) = (Vec::new(), Vec::new());
    }
    Some(rule)
}

fn name_is_empty(rule: &Rule) -> bool {
    rule.name.is_empty()
}

fn plain_name(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.@:".contains(c));
    if plain && !text.is_empty() && text.len() <= 64 && text != STANDARD {
        Ok(text.to_owned())
    } else {
        Err(format!("expected a name of letters, digits and _-.@: such as \"push_refused\", found {text:?}"))
    }
}

fn reason(text: &str) -> Result<Reason, String> {
    let reason = text.parse::<Reason>().map_err(|error| error.to_string())?;
    if may_come_from_a_log(reason) {
        return Ok(reason);
    }
    Err(format!(
        "expected a reason that happens (an occurrence, such as log_error); {reason} is a state, and a line proves none"
    ))
}

fn pattern(text: &str, check: bool) -> Result<String, String> {
    if text.is_empty() {
        return Err("expected a regular expression; an empty one matches every line".to_owned());
    }
    pattern_of(text, check)
}

fn pattern_of(text: &str, check: bool) -> Result<String, String> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(format!("expected at most {PATTERN_BYTES_MAX} bytes"));
    }
    if check {
        check_pattern(text)?;
    }
    Ok(text.to_owned())
}

fn source(text: &str) -> Result<LogSource, String> {
    if let Some(unit) = text.strip_prefix(JOURNAL_PREFIX) {
        return Ok(LogSource::Journal(unit_name(unit)?));
    }
    let path = absolute_pattern(text)?;
    let folder = path.parent().map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default();
    if path.file_name().is_none() || text.ends_with('/') {
        return Err("expected the path of a file; a folder is followed as \"/folder/*.log\"".to_owned());
    }
    if folder.contains('*') {
        return Err("expected `*` in the name of the file alone, not in its folders".to_owned());
    }
    Ok(LogSource::File(path))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use muster_agent_core::log::{Entry, RuleSet};

    fn mistakes(text: &str) -> Vec<(String, String)> {
        let errors = Config::parse("a", text).unwrap_err();
        let one = |mistake: &muster_common::config::Mistake| {
            (text.get(mistake.span.clone()).unwrap_or_default().to_owned(), mistake.expected.clone())
        };
        errors.mistakes.iter().map(one).collect()
    }

    #[test]
    fn the_shipped_rules_are_well_and_fit_their_examples() {
        let walk = |root: &Reader<'_>| walk_all(root);
        let rules = muster_common::config::read("standard_rules.toml", STANDARD_RULES, walk).unwrap();
        assert_eq!(rules.len(), standard_rules().len());
        let together = RuleSet::new(rules.clone()).unwrap();
        let mut names = BTreeSet::new();
        for rule in &rules {
            assert!(names.insert(&rule.name), "{} is there twice", rule.name);
            assert!(rule.skips_debug, "{} takes what a program says only of its own work", rule.name);
            assert!(!rule.matches.is_empty() && !rule.ignores.is_empty(), "{} has no examples", rule.name);
            // Also among all others it is the one that takes its examples.
            let program = rule.from.first().map(String::as_str);
            for line in &rule.matches {
                let hit = together.hit(&Entry::parse(line), "any", program).map(|hit| &hit.rule().name);
                assert_eq!(hit, Some(&rule.name), "{line}");
            }
        }
    }

    fn walk_all(root: &Reader<'_>) -> Vec<Rule> {
        root.tables("log_rule").iter().filter_map(|rule| rule_of(rule, true)).collect()
    }

    #[test]
    fn every_reason_of_the_design_that_logs_tell_of_has_a_rule() {
        let rules = standard_rules();
        for reason in [
            Reason::RepoLocked,
            Reason::ProviderRateLimited,
            Reason::NetworkError,
            Reason::Timeout,
            Reason::RetryBudgetExceeded,
            Reason::PermanentError,
            Reason::UpdateFailed,
            Reason::UpdateRollback,
            Reason::InstallFailed,
            Reason::RepoConflicts,
            Reason::RepoStagedChanges,
            Reason::RepoUnstagedChanges,
            Reason::RepoUntrackedFiles,
            Reason::NonFastForward,
            Reason::PermissionDenied,
            Reason::PreflightWarning,
            Reason::ResourceExhausted,
            Reason::DatabaseBusy,
            Reason::DatabaseError,
            Reason::OomKill,
        ] {
            assert!(rules.iter().any(|rule| rule.reason == reason), "{reason}");
        }
    }

    #[test]
    fn ordinary_lines_mean_nothing() {
        let set = RuleSet::new(standard_rules()).unwrap();
        for line in [
            "GET /health 200 0.004s",
            "level=info msg=\"job done\" duration=1.2s retries=0 errors=0",
            "{\"level\":\"info\",\"msg\":\"timeout set to 30s\",\"locked\":false}",
            "listening on 127.0.0.1:9100",
            "permission check passed for user bob",
            "rate limit remaining: 4999",
            "connection from 10.0.0.1 port 22",
            "rollback journal mode is wal",
            "update check: already up to date",
            "pre-flight: ok",
            "read 429 rows",
            "DEBUG sql: \"disk I/O error\" is mapped to code 10",
            "2026-11-22T01:51:45Z TRACE http: retry after connection refused",
            "{\"level\":\"debug\",\"msg\":\"database is locked, trying again\"}",
            "time=2026-11-22T01:51:45Z level=debug msg=\"job 17 timed out after 30 s\"",
        ] {
            let hit = set.hit(&Entry::parse(line), "any", None).map(|hit| hit.rule().name.clone());
            assert_eq!(hit, None, "{line}");
        }
    }

    #[test]
    fn logs_in_both_forms() {
        let config = Config::parse(
            "a",
            r#"
            [[log_rule]]
            name = "late"
            reason = "timeout"
            pattern = 'late by (?<late_ms>\d+)'
            summary = "late by {late_ms}"
            fields = { level = "error" }
            matches = ['{"level":"error","msg":"late by 7"}']
            ignores = ["early", "late by 7"]
            [service.hub]
            logs = ["journal:hub.service", { source = "/var/log/hub/*.log", rules = ["late", "standard"], format = "text" }]
            "#,
        )
        .unwrap();
        let [journal, file] = config.services[0].logs.as_slice() else { panic!("{:?}", config.services) };
        assert_eq!(journal.source, LogSource::Journal("hub.service".into()));
        assert_eq!(file.source, LogSource::File("/var/log/hub/*.log".into()));
        assert_eq!(
            (file.format, file.rules.as_deref()),
            (LogFormat::Text, Some(&["late".into(), "standard".into()][..]))
        );
        assert_eq!(config.log_rules[0].summary.as_deref(), Some("late by {late_ms}"));
    }

    #[test]
    fn mistakes_are_told_where_they_are() {
        let rule = |line: &str| mistakes(&format!("[[log_rule]]\nname = \"x\"\n{line}\n"));
        for (line, place, expected) in [
            ("reason = \"timeout\"\npattern = \"a(b\"", "\"a(b\"", "unclosed group, at character 2"),
            ("reason = \"timout\"\npattern = \"a\"", "\"timout\"", "did you mean \"timeout\"?"),
            ("reason = \"fd_exhaustion\"\npattern = \"a\"", "\"fd_exhaustion\"", "is a state, and a line proves none"),
            ("reason = \"oom_kill\"\npattern = \"a\"", "\"oom_kill\"", "expected killer"),
            ("reason = \"timeout\"\npattern = \"\"", "\"\"", "an empty one matches every line"),
            (
                "reason = \"timeout\"\npattern = \"(?<wait>a)\"\ngroup_by = \"wiat\"",
                "\"wiat\"",
                "did you mean \"wait\"?",
            ),
            ("reason = \"timeout\"\npattern = \"a\"\nmatches = [\"b\"]", "[\"b\"]", "to match its example \"b\""),
            ("reason = \"timeout\"\npattern = \"a\"\nignores = [\"a\"]", "[\"a\"]", "not to match its example \"a\""),
            ("reason = \"timeout\"\npattern = '(\\w{1,500}){1,500}'", "'(\\w{1,500}){1,500}'", "too large"),
            ("reason = \"timeout\"\npattern = \"a\"\npatern = \"b\"", "patern", "did you mean \"pattern\"?"),
        ] {
            let found = rule(line);
            assert!(found.iter().any(|(at, what)| at == place && what.contains(expected)), "{line}: {found:?}");
        }
        let log = mistakes("[service.a]\nlogs = [{ source = \"/x\", rules = [\"repo_lockd\"] }, \"/a*/b.log\"]");
        assert!(log[0].1.contains("did you mean \"repo_locked\"?"), "{log:?}");
        assert!(log[1].1.contains("in the name of the file alone"), "{log:?}");
        let twice = mistakes("[[log_rule]]\nname = \"repo_locked\"\nreason = \"timeout\"\npattern = \"a\"");
        assert!(twice[0].1.contains("a shipped one included"), "{twice:?}");
    }
}
