//! `docs/agent-config.md` is true of the walk over the agent's config.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../../tests/config_document.rs"]
mod config_document;

use config_document::{Page, Section, section};
use muster_agent::config::Config;

const PAGE: Page<Config> = Page {
    document: include_str!("../../docs/agent-config.md"),
    sections: SECTIONS,
    in_words: &[],
    parse: |text| Config::parse("docs/agent-config.md", text),
};

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

#[test]
fn every_key_is_documented_and_no_other() {
    PAGE.names_every_key_and_no_other();
}

#[test]
fn defaults_are_those_of_the_code() {
    PAGE.defaults_are_those_of_the_code(60);
}

#[test]
fn bounds_are_those_that_mistakes_are_told_with() {
    PAGE.bounds_are_those_that_mistakes_are_told_with(40);
}

#[test]
fn every_example_passes() {
    PAGE.every_example_passes(6);
}
