//! What lines mean: rules as data, matched all at once in time linear in the line, however hostile it is.

use super::entry::Entry;
use super::matcher::Matcher;
use super::redact::redact;
use super::window::Sample;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use regex::bytes::{Regex, RegexBuilder};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Bytes of one compiled pattern: `\w{1000}{1000}` is refused, what a person writes is a hundredth of it.
const PATTERN_BYTES_MAX: usize = 256 * 1024;
/// Bytes of one pattern's cache; it is built as lines need it.
const CACHE_BYTES_MAX: usize = 512 * 1024;
/// Bytes of one line that a finding shows.
const SAMPLE_BYTES_MAX: usize = 600;
/// Bytes of what a named group caught.
const CAPTURE_BYTES_MAX: usize = 200;

/// What a line means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name, unique.
    pub name: String,
    /// What a matching line means; always an occurrence.
    pub reason: Reason,
    /// A regular expression.
    pub pattern: String,
    /// Lines that match this as well are not meant.
    pub exclude: Option<String>,
    /// Fields that must have exactly these values.
    pub fields: BTreeMap<String, String>,
    /// Only logs of these services; all when empty.
    pub services: Vec<String>,
    /// Only lines of these units or programs, as the journal or the syslog tag names them; all when empty.
    pub from: Vec<String>,
    /// Lines whose level is debug or trace are not meant: they say what a program tries and sees, not what is wrong.
    pub skips_debug: bool,
    /// How bad, where the reason's default does not fit.
    pub severity: Option<Severity>,
    /// The finding's sentence, with `{name}` for what a named group caught.
    pub summary: Option<String>,
    /// The named group whose values are told and limited apart.
    pub group_by: Option<String>,
    /// The user-space killer whose lines these are: the finding is then about its victim.
    pub killer: Option<String>,
    /// Lines that must match, and must not: checked with the config.
    pub matches: Vec<String>,
    /// See `matches`.
    pub ignores: Vec<String>,
}

impl Rule {
    /// A rule with nothing but what every rule has.
    pub fn new(name: &str, reason: Reason, pattern: &str) -> Self {
        Self {
            name: name.to_owned(),
            reason,
            pattern: pattern.to_owned(),
            exclude: None,
            fields: BTreeMap::new(),
            services: Vec::new(),
            from: Vec::new(),
            skips_debug: false,
            severity: None,
            summary: None,
            group_by: None,
            killer: None,
            matches: Vec::new(),
            ignores: Vec::new(),
        }
    }

    /// Whether it is asked about the logs of `service`.
    pub fn is_about(&self, service: &str) -> bool {
        self.services.is_empty() || self.services.iter().any(|known| known == service)
    }

    fn is_from(&self, program: Option<&str>) -> bool {
        let stem = |name: &str| name.strip_suffix(".service").unwrap_or(name).to_owned();
        self.from.is_empty() || program.is_some_and(|program| self.from.iter().any(|from| stem(from) == stem(program)))
    }
}

/// Why a pattern cannot be used, as one line, and where in it.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    compile(pattern).map(|_| ()).map_err(|error| one_line(&error))
}

/// The names of a pattern's groups.
pub fn group_names(pattern: &str) -> Vec<String> {
    let names = |regex: Regex| regex.capture_names().flatten().map(str::to_owned).collect();
    compile(pattern).map(names).unwrap_or_default()
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    // ASCII classes: a tenth of the memory. `(?u)` turns them on where a pattern needs them.
    RegexBuilder::new(pattern).unicode(false).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(CACHE_BYTES_MAX).build()
}

/// The library draws the pattern and a caret over several lines; the last one says what is wrong.
pub(super) fn one_line(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "the pattern is too large when compiled; repeat less of it".to_owned(),
        other => {
            let text = other.to_string();
            let what = text.lines().last().unwrap_or_default().trim();
            let what = what.strip_prefix("error: ").unwrap_or(what);
            let caret = text.lines().find(|line| line.trim_start().starts_with('^') && line.trim().len() < line.len());
            match caret {
                // The library indents by four.
                Some(line) => {
                    let column = line.find('^').unwrap_or(4).saturating_sub(4) + 1;
                    format!("not a regular expression: {what}, at character {column} of the pattern")
                }
                None => format!("not a regular expression: {what}"),
            }
        }
    }
}

/// Rules that are matched together.
#[derive(Debug)]
pub struct RuleSet {
    set: Matcher,
    rules: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    rule: Rule,
    /// Made when the rule first matches: most never do.
    pattern: OnceLock<Option<Regex>>,
    exclude: OnceLock<Option<Regex>>,
}

/// A rule that takes a line.
#[derive(Debug, Clone, Copy)]
pub struct Hit<'a> {
    compiled: &'a Compiled,
}

impl RuleSet {
    /// Compiles rules; the first in the list that matches a line takes it.
    pub fn new(rules: Vec<Rule>) -> Result<Self, String> {
        let set = Matcher::new(rules.iter().map(|rule| rule.pattern.clone()).collect())?;
        let compiled = |rule| Compiled { rule, pattern: OnceLock::new(), exclude: OnceLock::new() };
        Ok(Self { set, rules: rules.into_iter().map(compiled).collect() })
    }

    /// The rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|compiled| &compiled.rule)
    }

    /// The rule of a name.
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules().find(|rule| rule.name == name)
    }

    /// The rule that takes a line of `service`; `program` is the unit or program that wrote it, where known.
    pub fn hit(&self, entry: &Entry<'_>, service: &str, program: Option<&str>) -> Option<Hit<'_>> {
        let text = entry.text.as_bytes();
        let matching = self.set.matches(text);
        let mut compiled = matching.into_iter().filter_map(|index| self.rules.get(index));
        let found = compiled.find(|compiled| {
            let rule = &compiled.rule;
            rule.is_about(service)
                && (rule.from.is_empty() || rule.is_from(program.or_else(|| entry.program())))
                && rule.fields.iter().all(|(name, value)| entry.field(name).as_deref() == Some(value.as_str()))
                && !compiled.exclude().is_some_and(|exclude| exclude.is_match(text))
                && !(rule.skips_debug && entry.is_debug())
        });
        found.map(|compiled| Hit { compiled })
    }
}

impl Compiled {
    fn pattern(&self) -> Option<&Regex> {
        self.pattern.get_or_init(|| compile(&self.rule.pattern).ok()).as_ref()
    }

    fn exclude(&self) -> Option<&Regex> {
        let exclude = self.rule.exclude.as_ref()?;
        self.exclude.get_or_init(|| compile(exclude).ok()).as_ref()
    }
}

impl<'a> Hit<'a> {
    /// The rule.
    pub const fn rule(self) -> &'a Rule {
        &self.compiled.rule
    }

    /// What is shown of the line. Groups are taken from the redacted line: one that only the secret matched is empty.
    pub fn sample(self, entry: &Entry<'_>, boottime_ms: u64) -> Sample {
        let text = redact(&entry.text);
        let mut captures = BTreeMap::new();
        if let Some(pattern) = self.compiled.pattern()
            && pattern.captures_len() > 1
            && let Some(caught) = pattern.captures(text.as_bytes())
        {
            for name in pattern.capture_names().flatten() {
                let Some(value) = caught.name(name) else { continue };
                let value = muster_common::limits::clip(&String::from_utf8_lossy(value.as_bytes()), CAPTURE_BYTES_MAX);
                captures.insert(name.to_owned(), value);
            }
        }
        let undated = entry.unix_ms.is_none();
        Sample { text: around(&text, self.compiled.pattern()), captures, boottime_ms, undated }
    }

    /// The group of a sample, by the rule's `group_by`.
    pub fn group(self, sample: &Sample) -> String {
        let group = self.compiled.rule.group_by.as_ref().and_then(|name| sample.captures.get(name));
        group.cloned().unwrap_or_default()
    }
}

/// The part of a long line that matched, with what stands around it.
fn around(text: &str, pattern: Option<&Regex>) -> String {
    use muster_common::limits::clip;
    if text.len() <= SAMPLE_BYTES_MAX {
        return text.to_owned();
    }
    let at = pattern.and_then(|pattern| pattern.find(text.as_bytes())).map_or(0, |found| found.start());
    let mut start = at.saturating_sub(SAMPLE_BYTES_MAX / 4);
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let tail = text.get(start..).unwrap_or(text);
    if start == 0 { clip(tail, SAMPLE_BYTES_MAX) } else { format!("…{}", clip(tail, SAMPLE_BYTES_MAX)) }
}

/// Checks a rule's own examples; the first that does not fit is told.
pub fn check_examples(rule: &Rule) -> Result<(), String> {
    let alone = Rule { services: Vec::new(), ..rule.clone() };
    let set = RuleSet::new(vec![alone])?;
    let program = rule.from.first().map(String::as_str);
    let hits = |line: &str| set.hit(&Entry::parse(line), "", program).is_some();
    if let Some(line) = rule.matches.iter().find(|line| !hits(line)) {
        return Err(format!("expected the rule to match its example {line:?}"));
    }
    match rule.ignores.iter().find(|line| hits(line)) {
        Some(line) => Err(format!("expected the rule not to match its example {line:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(rules: Vec<Rule>) -> RuleSet {
        RuleSet::new(rules).unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_takes_the_line() {
        let mut picky = Rule::new("picky", Reason::Timeout, "time(d )?out");
        picky.exclude = Some("harmless".into());
        picky.fields.insert("level".into(), "error".into());
        picky.services = vec!["hub".into()];
        let set = set(vec![picky, Rule::new("any", Reason::NetworkError, "(?i)TIMED OUT")]);
        let hit = |line: &str, service| set.hit(&Entry::parse(line), service, None).map(|hit| hit.rule().name.clone());
        assert_eq!(hit(r#"{"level":"error","msg":"timed out"}"#, "hub").as_deref(), Some("picky"));
        assert_eq!(hit(r#"{"level":"error","msg":"timed out"}"#, "spl").as_deref(), Some("any"));
        assert_eq!(hit(r#"{"level":"info","msg":"timed out"}"#, "hub").as_deref(), Some("any"));
        assert_eq!(hit(r#"{"level":"error","msg":"timed out, harmless"}"#, "hub").as_deref(), Some("any"));
        assert_eq!(hit("level=error timed out", "hub").as_deref(), Some("picky"));
        assert_eq!(hit("all is well", "hub"), None);
    }

    #[test]
    fn a_rule_that_skips_debug_does_so_alone() {
        let mut quiet = Rule::new("quiet", Reason::Timeout, "timed out");
        quiet.skips_debug = true;
        let set = set(vec![quiet, Rule::new("any", Reason::NetworkError, "timed out")]);
        let hit = |line: &str| set.hit(&Entry::parse(line), "", None).map(|hit| hit.rule().name.clone());
        assert_eq!(hit("ERROR timed out").as_deref(), Some("quiet"));
        assert_eq!(hit("DEBUG timed out").as_deref(), Some("any"));
    }

    #[test]
    fn a_rule_about_a_program_believes_the_journal_before_the_text() {
        let mut rule = Rule::new("killer", Reason::OomKill, "^.*Killed");
        rule.from = vec!["earlyoom.service".into()];
        let set = set(vec![rule]);
        let hit = |line: &str, program| set.hit(&Entry::parse(line), "", program).is_some();
        assert!(hit("Killed x", Some("earlyoom.service")));
        assert!(!hit("Killed x", None));
        assert!(hit("Nov 22 01:51:45 host earlyoom[812]: Killed x", None));
        assert!(!hit("Nov 22 01:51:45 host earlyoom[812]: Killed x", Some("web.service")));
    }

    #[test]
    fn a_sample_is_redacted_bounded_and_has_the_groups() {
        let set = set(vec![Rule::new("r", Reason::Timeout, r"user=(?<user>\S+) token=(?<token>\S+)")]);
        let line = format!("{} user=bob token=abc123 {}", "x".repeat(2000), "y".repeat(2000));
        let entry = Entry::parse(&line);
        let sample = set.hit(&entry, "", None).unwrap().sample(&entry, 7);
        assert_eq!(sample.captures["user"], "bob");
        assert_eq!(sample.captures["token"], "***");
        assert!(sample.text.contains("user=bob token=***") && sample.text.len() < 700, "{}", sample.text);
    }

    #[test]
    fn a_bad_pattern_is_told_in_one_line() {
        for (pattern, expected) in [
            ("a(b", "not a regular expression: unclosed group, at character 2 of the pattern"),
            ("(?=a)", "look-around"),
            (r"(a)\1", "backreferences are not supported"),
            (r"(\w{1,500}){1,500}", "too large"),
        ] {
            let error = check_pattern(pattern).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{pattern}: {error}");
        }
        assert_eq!(group_names("(?<a>x)(y)(?P<b>z)"), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn any_pattern_on_any_line_is_an_answer(pattern in "\\PC{0,30}", line in "\\PC{0,200}") {
            if check_pattern(&pattern).is_ok() {
                let set = set(vec![Rule::new("r", Reason::Timeout, &pattern)]);
                let entry = Entry::parse(&line);
                if let Some(hit) = set.hit(&entry, "", None) {
                    prop_assert!(hit.sample(&entry, 0).text.len() <= SAMPLE_BYTES_MAX + 8);
                }
            }
        }
    }
}
