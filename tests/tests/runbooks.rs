//! Every runbook is about a reason code that exists, and has the parts that a tired person looks for.

use muster_common::reason::Reason;
use std::path::Path;

#[test]
fn every_reason_has_a_complete_runbook() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    for reason in Reason::ALL {
        let path = folder.join(format!("{reason}.md"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(text.starts_with(&format!("# {reason}\n")), "{reason}");
        for part in
            ["Default severity: ", "\n## Likely causes\n", "\n## First three steps\n\n1. ", "\n3. ", "\n## Recovery\n"]
        {
            assert!(text.contains(part), "{reason} lacks {part:?}");
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
