//! `docs/coordinator-config.md` is true of the walk over the coordinator's config.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../../tests/config_document.rs"]
mod config_document;

use config_document::{Page, Section, section};
use muster_common::config::ConfigErrors;
use muster_common::reason::Reason;
use muster_coordinator::config::{Config, parse};
use std::collections::BTreeSet;

/// What every config must have, where a text is about something else.
const REQUIRED: [(&str, &str); 2] =
    [("[tls]", "ca = \"/a\"\ncert = \"/a\"\nkey = \"/a\"\n"), ("[store]", "url = \"sqlite:/a\"\n")];

const PAGE: Page<Config> = Page {
    document: include_str!("../../docs/coordinator-config.md"),
    sections: SECTIONS,
    in_words: &["severity"],
    parse: parse_with_what_is_required,
};

const fn receiver(heading: &'static str, config: &'static str, given: &'static [&'static str]) -> Section {
    Section { shared: Some("[[receiver.KIND]]"), ..section(heading, config, given) }
}

const SECTIONS: &[Section] = &[
    section("[listen]", "[listen]\ngrpc = \"0.0.0.0:1\"\nHERE", &["grpc"]),
    section("[tls]", "[tls]\nca = \"/a\"\ncert = \"/a\"\nkey = \"/a\"\nHERE", &["ca", "cert", "key"]),
    section("[store]", "[store]\nurl = \"sqlite:/a\"\nHERE", &["url"]),
    section("[failover]", "[failover]\nHERE", &[]),
    section("[advertise]", "[advertise]\nHERE", &[]),
    section("[liveness]", "[liveness]\nHERE", &[]),
    section("[second_opinion]", "[second_opinion]\nHERE", &[]),
    section("[incidents]", "[incidents]\nHERE", &[]),
    section("[detectors]", "[detectors]\nHERE", &[]),
    receiver(
        "[[receiver.pagerduty]]",
        "[[receiver.pagerduty]]\nname = \"a\"\nrouting_key_file = \"/a\"\nHERE",
        &["name"],
    ),
    receiver(
        "[[receiver.alertmanager]]",
        "[[receiver.alertmanager]]\nname = \"a\"\nurls = [\"http://a/\"]\nHERE",
        &["name"],
    ),
    receiver("[[receiver.slack]]", "[[receiver.slack]]\nname = \"a\"\nurl_file = \"/a\"\nHERE", &["name"]),
    receiver(
        "[[receiver.smtp]]",
        "[[receiver.smtp]]\nname = \"a\"\nhost = \"a\"\nfrom = \"a@a\"\nto = [\"a@a\"]\nHERE",
        &["name"],
    ),
    receiver("[[receiver.webhook]]", "[[receiver.webhook]]\nname = \"a\"\nurl = \"http://a/\"\nHERE", &["name", "url"]),
    section(
        "[[route]]",
        "[[receiver.webhook]]\nname = \"a\"\nurl = \"http://a/\"\n[[route]]\nreceivers = [\"a\"]\nHERE",
        &["receivers"],
    ),
    section("[runbooks]", "[runbooks]\nurl = \"http://a/{reason}\"\nHERE", &["url"]),
    section("[pagerduty_webhook]", "[pagerduty_webhook]\nsecret_files = [\"/a\"]\nHERE", &["secret_files"]),
    section("[heartbeat_out]", "[heartbeat_out]\nurl = \"http://a/\"\nHERE", &["url"]),
];

fn parse_with_what_is_required(text: &str) -> Result<Config, ConfigErrors> {
    let lacking = REQUIRED.iter().filter(|(table, _)| !text.contains(table));
    let lacking: String = lacking.map(|(table, keys)| format!("{table}\n{keys}")).collect();
    parse("docs/coordinator-config.md", &format!("{text}\n{lacking}"))
}

#[test]
fn every_key_is_documented_and_no_other() {
    PAGE.names_every_key_and_no_other();
    let reasons: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(PAGE.known("[severity]\nHERE"), reasons);
    let kinds: BTreeSet<String> = PAGE.known("[receiver]\nHERE");
    let told = SECTIONS.iter().filter_map(|section| section.heading.strip_prefix("[[receiver.")?.strip_suffix("]]"));
    assert_eq!(told.map(str::to_owned).collect::<BTreeSet<_>>(), kinds);
}

#[test]
fn defaults_are_those_of_the_code() {
    PAGE.defaults_are_those_of_the_code(60);
}

#[test]
fn bounds_are_those_that_mistakes_are_told_with() {
    PAGE.bounds_are_those_that_mistakes_are_told_with(50);
}

#[test]
fn every_example_passes() {
    PAGE.every_example_passes(3);
}
