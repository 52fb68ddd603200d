//! The post-incident note, whole: compared with a file. `MUSTER_BLESS=1` writes that file anew, for a person to read.

use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_coordinator_core::export::{markdown, note};
use muster_tests::scenario::{Fleet, agent, key, policy};
use std::path::Path;
use std::time::Duration;

/// An outage of one service on a host whose agent tells what would format, link and break out if it could.
fn outage() -> Fleet {
    let mut fleet = Fleet::new(policy());
    let run = |fleet: &mut Fleet, lines: &[&str]| lines.iter().for_each(|line| fleet.run_line(line));
    run(&mut fleet, &["0 connect web-1", "1 open web-1 spl /run/spl.pid process_down", "5 occur web-1 spl oom_kill 2"]);
    let hostile = "spl | `rm -rf /` <img src=x onerror=alert(1)> [pay](http://evil.example)\n# all is well\u{202e}";
    let finding = Finding::new(key("spl", "127.0.0.1:1", Reason::PortClosed), hostile);
    let finding = finding.next_steps(["- [x] **done** https://evil.example & <b>gone</b>"]);
    fleet.event(&agent("web-1"), FindingEvent::Opened(finding), Duration::ZERO);
    run(
        &mut fleet,
        &[
            "40 ack host/web-1/service/spl",
            "50 note host/web-1/service/spl",
            "100 clear web-1 spl /run/spl.pid process_down",
            "110 clear web-1 spl 127.0.0.1:1 port_closed",
            "2000 end",
        ],
    );
    fleet.check_journal();
    fleet
}

#[test]
fn a_note_is_told_in_full_and_escaped() {
    let fleet = outage();
    let state = fleet.machine.state();
    let incident = state.newest_incident("host/web-1/service/spl").unwrap();
    let note = note(state, incident, fleet.now, Some(state.policy()));
    let text = markdown(&note);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/incident.md");
    if std::env::var_os("MUSTER_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, golden, "\n{text}");
    for forbidden in ["<img", "](http", "\n# all", "<b>", "\u{202e}", "- [x]"] {
        assert!(!text.contains(forbidden), "{forbidden:?} got through:\n{text}");
    }
    // Every row of a table has the cells of its head, whatever a summary holds.
    let cells = |row: &str| row.replace("\\|", "").matches('|').count();
    let mut width = None;
    for line in text.lines() {
        match line.starts_with('|') {
            true => assert_eq!(*width.get_or_insert(cells(line)), cells(line), "{line}"),
            false => width = None,
        }
    }
}

#[test]
fn a_note_says_the_same_in_json_and_each_time() {
    let fleet = outage();
    let state = fleet.machine.state();
    let incident = state.newest_incident("host/web-1/service/spl").unwrap();
    let made = || serde_json::to_value(note(state, incident, fleet.now, None)).unwrap();
    let json = made();
    assert_eq!(json, made());
    assert_eq!(json["incident"], incident.number.as_str());
    assert_eq!(json["impact"]["n_hosts"], 1);
    assert_eq!(json["impact"]["services"], serde_json::json!(["spl"]));
    assert_eq!(json["impact"]["until_acknowledged_ms"], 39_000);
    assert_eq!(json["people"]["owner"], "ann");
    assert_eq!(json["configuration"]["at_opening"], false);
    assert!(json["actions"].as_array().unwrap().len() >= 2, "{json:#}");
    assert!(json["unknown"].to_string().contains("the configuration at its opening"));
    let reasons: Vec<&str> = json["reasons"].as_array().unwrap().iter().filter_map(|r| r["reason"].as_str()).collect();
    assert_eq!(reasons, ["port_closed", "process_down"]);
}
