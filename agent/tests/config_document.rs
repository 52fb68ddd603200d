//! `docs/agent-config.md` is true: it names every key that the walk over the config knows and no other, its defaults are
//! those of the code, its bounds those that a mistake is told with, and its examples pass.
//!
//! What is known is asked of the walk itself: a key that nobody knows is answered with all that there are.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use muster_agent::config::Config;
use std::collections::{BTreeMap, BTreeSet};

const DOCUMENT: &str = include_str!("../../docs/agent-config.md");
/// So unlike any key that no other is meant.
const UNKNOWN: &str = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq";
/// Where a line of a table goes in a text below.
const HERE: &str = "HERE";

/// One section of the document and a config around its table: with nothing in place of `HERE` it passes, or lacks only
/// what that table requires.
struct Section {
    heading: &'static str,
    config: &'static str,
    /// Keys that the config around it gives already.
    given: &'static [&'static str],
}

const fn section(heading: &'static str, config: &'static str, given: &'static [&'static str]) -> Section {
    Section { heading, config, given }
}

const SECTIONS: &[Section] = &[
    section("[agent]", "[agent]\nHERE", &[]),
    section("[coordinator]", "[coordinator]\nendpoints = [\"https://a:1\"]\nHERE", &["endpoints"]),
    section("[tls]", "[tls]\nHERE", &[]),
    section("[memory]", "[memory]\nHERE", &[]),
    section("[probes]", "[probes]\nHERE", &[]),
    section("[disk]", "[disk]\nHERE", &[]),
    section("[[disk.mounts]]", "[[disk.mounts]]\npath = \"/a\"\nHERE", &["path"]),
    section("[clock]", "[clock]\nHERE", &[]),
    section("[pressure]", "[pressure]\nHERE", &[]),
    section("[process]", "[process]\nHERE", &[]),
    section("[baseline]", "[baseline]\nHERE", &[]),
    section("[[baseline.files]]", "[[baseline.files]]\npath = \"/a\"\nmode = \"0644\"\nHERE", &["path", "mode"]),
    section("[spool]", "[spool]\nHERE", &[]),
    section(
        "[[log_rule]]",
        "[[log_rule]]\nname = \"a\"\nreason = \"timeout\"\npattern = \"a\"\nHERE",
        &["name", "reason", "pattern"],
    ),
    section("[service.NAME]", "[service.a]\nlogs = \"/a.log\"\nHERE", &["logs"]),
    section("unit", "[service.a.unit]\nname = \"a.service\"\nHERE", &["name"]),
    section("pid_file", "[service.a.pid_file]\npath = \"/a\"\nHERE", &["path"]),
    section("ports", "[[service.a.ports]]\naddress = \"*:1\"\nHERE", &["address"]),
    section("health", "[service.a.health]\nurl = \"http://a/\"\nHERE", &["url"]),
    section(
        "health.field",
        "[service.a.health]\nurl = \"http://a/\"\n[service.a.health.field]\npointer = \"/a\"\nequals = \"b\"\nHERE",
        &["pointer", "equals"],
    ),
    section("sqlite", "[[service.a.sqlite]]\npath = \"/a\"\nHERE", &["path"]),
    section(
        "sqlite.rows",
        "[[service.a.sqlite]]\npath = \"/a\"\n[[service.a.sqlite.rows]]\ntable = \"t\"\nHERE",
        &["table"],
    ),
    section(
        "sqlite.queries",
        "[[service.a.sqlite]]\npath = \"/a\"\n[[service.a.sqlite.queries]]\nname = \"q\"\nsql = \"select 1\"\nmin = 1\nHERE",
        &["name", "sql", "min"],
    ),
    section("backups", "[service.a.backups]\npath = \"/a\"\nHERE", &["path"]),
    section("locks", "[service.a.locks]\npath = \"/a\"\nHERE", &["path"]),
    section("logs", "[service.a.logs]\nsource = \"/a.log\"\nHERE", &["source"]),
    section("[service.NAME.baseline]", "[service.a]\nlogs = \"/a.log\"\n[service.a.baseline]\nHERE", &[]),
];

/// What the document says of a key.
#[derive(Debug, PartialEq)]
struct Row<'a> {
    kind: &'a str,
    default: &'a str,
}

/// Heading to its keys.
fn documented() -> BTreeMap<&'static str, BTreeMap<&'static str, Row<'static>>> {
    let mut sections: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    let mut heading = "";
    for line in DOCUMENT.lines() {
        if let Some(title) = line.strip_prefix("##") {
            heading = title.trim_start_matches('#').trim().trim_matches('`');
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        let key = cells[0].strip_prefix("| `").and_then(|rest| rest.strip_suffix('`'));
        if let (Some(key), [_, kind, default, ..]) = (key, cells.as_slice()) {
            let twice = sections.entry(heading).or_default().insert(key, Row { kind, default });
            assert_eq!(twice, None, "[{heading}] {key} is there twice");
        }
    }
    sections
}

/// What the walk expects in place of a key it does not know.
fn known(config: &str) -> BTreeSet<String> {
    let text = config.replace(HERE, &format!("{UNKNOWN} = 1"));
    let errors = Config::parse("a", &text).unwrap_err();
    let told = errors.mistakes.iter().find(|mistake| mistake.message.contains(UNKNOWN)).unwrap();
    let keys = told.expected.strip_prefix("expected one of: ").unwrap_or_else(|| panic!("{config}: {told:?}"));
    keys.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_is_documented_and_no_other() {
    let documented = documented();
    for section in SECTIONS {
        let of_code = known(section.config);
        let of_document = documented.get(section.heading).unwrap_or_else(|| panic!("no section {}", section.heading));
        let of_document: BTreeSet<String> = of_document.keys().map(|key| (*key).to_owned()).collect();
        assert_eq!(of_document, of_code, "left: the document, right: the code, in {}", section.heading);
    }
    let headings: BTreeSet<&str> = SECTIONS.iter().map(|section| section.heading).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), headings);
    // Every table of the file has a section; of the tables within services those that are told above.
    for table in known(HERE) {
        let forms = [format!("[{table}]"), format!("[[{table}]]"), format!("[{table}.NAME]")];
        assert!(forms.iter().any(|form| headings.contains(form.as_str())), "{table}");
    }
}

#[test]
fn defaults_are_those_of_the_code() {
    let documented = documented();
    let mut compared = 0;
    for section in SECTIONS {
        let literals: Vec<String> = documented[section.heading]
            .iter()
            .filter(|(key, _)| !section.given.contains(*key))
            .filter_map(|(key, row)| Some((key, row.default.strip_prefix('`')?.strip_suffix('`')?)))
            // Words with code at both ends are no value.
            .filter(|(_, value)| !value.contains('`'))
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        compared += literals.len();
        let parse = |lines: &str| Config::parse("a", &section.config.replace(HERE, lines));
        let (plain, full) = (parse("").unwrap(), parse(&literals.join("\n")));
        assert_eq!(full.unwrap_or_else(|errors| panic!("{errors}")), plain, "{}", section.heading);
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn bounds_are_those_that_mistakes_are_told_with() {
    let documented = documented();
    let mut compared = 0;
    for section in SECTIONS {
        for (key, row) in &documented[section.heading] {
            let beyond = match row.kind.split(' ').next() {
                Some("duration") => "\"99999d\"",
                Some("whole") => "-1",
                _ => continue,
            };
            let errors = Config::parse("a", &section.config.replace(HERE, &format!("{key} = {beyond}"))).unwrap_err();
            let bounds = row.kind.replace("; required", "");
            assert!(errors.mistakes[0].expected.ends_with(&bounds), "{} {key}: {errors}", section.heading);
            compared += 1;
        }
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn every_example_passes() {
    let mut examples = 0;
    for block in DOCUMENT.split("```toml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        Config::parse("docs/agent-config.md", text).unwrap_or_else(|errors| panic!("{errors}"));
        examples += 1;
    }
    assert!(examples > 5, "{examples}");
}
