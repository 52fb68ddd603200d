//! Every runbook is about a reason code that exists, and has the parts that a tired person looks for: what it means,
//! likely causes, the first three steps, recovery, how to silence it. Whether `musterctl` takes the commands is asked in
//! its own tests.

use muster_common::reason::Reason;
use muster_common::units::parse_duration;
use std::path::Path;
use std::time::Duration;

/// Longest time that a runbook proposes to be silent: whoever copies it does not know what else will happen.
const SILENT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

#[test]
fn every_reason_has_a_complete_runbook() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    for reason in Reason::ALL {
        let path = folder.join(format!("{reason}.md"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let parts = [
            "\n\nDefault severity: ",
            "\n\n## Likely causes\n\n",
            "\n\n## First three steps\n\n1. ",
            "\n3. ",
            "\n\n## Recovery\n\n",
            "\n\n## How to silence\n\n",
        ];
        let mut rest = text.strip_prefix(&format!("# {reason}\n\n")).unwrap_or_else(|| panic!("{reason}: its heading"));
        for part in parts {
            let (before, after) =
                rest.split_once(part).unwrap_or_else(|| panic!("{reason} lacks {part:?} in its place"));
            assert!(!before.trim().is_empty(), "{reason}: nothing before {part:?}");
            rest = after;
        }
        let severity = format!("Default severity: {}", reason.default_severity());
        assert!(text.contains(&severity), "{reason}: the code says {severity}");
    }
}

#[test]
fn the_list_has_every_reason_in_order_with_its_severity_and_whether_it_is_raised() {
    let list = include_str!("../../docs/runbooks/README.md");
    let rows = list.lines().filter_map(|line| line.strip_prefix("| [")?.split_once(']'));
    let rows: Vec<(&str, &str)> = rows.collect();
    let mut reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    reasons.sort_unstable();
    assert_eq!(rows.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), reasons);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    for (code, told) in rows {
        let severity = code.parse::<Reason>().unwrap().default_severity();
        assert!(told.starts_with(&format!("({code}.md) | {severity}")), "{code}: the code says {severity}");
        let runbook = std::fs::read_to_string(folder.join(format!("{code}.md"))).unwrap();
        let is_raised = !told.contains("not raised by this version");
        assert_eq!(is_raised, !runbook.contains("Not raised by this version"), "{code}");
    }
}

#[test]
fn the_command_that_silences_a_reason_names_it_and_ends() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    for reason in Reason::ALL {
        let text = std::fs::read_to_string(folder.join(format!("{reason}.md"))).unwrap();
        let (_, section) = text.split_once("\n## How to silence\n").unwrap_or_else(|| panic!("{reason}"));
        let (_, command) =
            section.split_once("`musterctl silence add ").unwrap_or_else(|| panic!("{reason}: no command"));
        let (command, _) = command.split_once('`').unwrap_or_else(|| panic!("{reason}: its command does not end"));
        // What never opens an incident has nothing of its own to silence, and says so.
        let matcher = match reason {
            Reason::Change => "--cause KEY ".to_owned(),
            _ => format!("--code {reason} "),
        };
        assert!(command.starts_with(&matcher), "{reason}: {command}");
        let (matchers, rest) = command.split_once("--reason \"").unwrap_or_else(|| panic!("{reason}: {command}"));
        let (why, length) = rest.split_once("\" --ttl ").unwrap_or_else(|| panic!("{reason}: {command}"));
        assert!(!why.is_empty(), "{reason}: {command}");
        assert!(parse_duration(length).unwrap_or_else(|error| panic!("{reason}: {error}")) <= SILENT_MAX, "{reason}");
        let words: Vec<&str> = matchers.split_whitespace().collect();
        for pair in words.chunks(2) {
            let [option, value] = pair else { panic!("{reason}: {command}") };
            // Capital words stand for what the page says.
            let is_named = ["AGENT", "SERVICE", "KEY", "zone=ZONE", reason.as_str()].contains(value);
            assert!(["--code", "--agent", "--service", "--label", "--cause"].contains(option) && is_named, "{command}");
        }
    }
}

#[test]
fn no_runbook_is_about_an_unknown_reason() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name != "README" {
            assert!(name.parse::<Reason>().is_ok(), "{name}");
        }
    }
}
