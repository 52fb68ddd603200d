//! The post-incident note, whole: compared with a file. `MUSTER_BLESS=1` writes that file anew, for a person to read.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
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
    assert_eq!(reasons, ["oom_kill", "port_closed", "process_down"]);
}

/// The note of an incident, as JSON and as Markdown, of what a script came to.
fn told(script: &str, cause: &str) -> (serde_json::Value, String) {
    let mut fleet = Fleet::new(policy());
    fleet.run(script);
    fleet.check_journal();
    let state = fleet.machine.state();
    let incident = state.newest_incident(cause).unwrap_or_else(|| panic!("no {cause}:\n{}", fleet.log()));
    let note = note(state, incident, fleet.now, None);
    (serde_json::to_value(&note).unwrap(), markdown(&note))
}

#[test]
fn an_acknowledgement_that_a_rise_ended_is_told_as_one() {
    let script = "0 connect a\n1 open a spl x port_closed sev2\n40 ack host/a/service/spl\n\
                  100 severity host/a/service/spl sev1\n200 end";
    let (json, text) = told(script, "host/a/service/spl");
    assert_eq!(json["people"]["owner"], "ann");
    assert_eq!(json["impact"]["until_acknowledged_ms"], 39_000);
    assert!(
        json["people"]["acknowledgement_ended"].as_str().is_some_and(|at| at.ends_with("00:15:00.000Z")),
        "{json:#}"
    );
    assert!(text.contains("acknowledged by: ann, until it got much worse at "), "{text}");
    assert!(!text.contains("never so far |\n| resolved"), "{text}");
    let todo = json["follow_ups"].to_string();
    assert!(todo.contains("nobody acknowledged it again after it got much worse"), "{todo}");
    // The holds of all severities that page: it waited for that of the milder one.
    assert!(text.contains("- holds: sev0 0 ms, sev1 0 ms, sev2 10 s, sev3"), "{text}");
    assert_eq!(json["impact"]["held_ms"], 10_000);
    // And one that was repeated stands.
    let (json, text) = told(&script.replace("200 end", "150 ack host/a/service/spl\n200 end"), "host/a/service/spl");
    assert_eq!(json["people"]["acknowledgement_ended"], serde_json::Value::Null);
    assert!(!json["follow_ups"].to_string().contains("acknowledged it"), "{text}");
}

#[test]
fn a_storms_note_tells_its_reasons_and_its_symptoms_in_words_with_grades() {
    let (json, text) = told(
        "0 connect a b c
         10 occur a spl oom_kill 0
         12 occur b spl oom_kill 0
         15 occur c spl oom_kill 0
         16 open c spl x process_down
         60 end",
        "fleet/oom_storm/spl",
    );
    assert_eq!(json["impact"]["services"], serde_json::json!(["spl"]));
    assert_eq!(json["reasons"][0], serde_json::json!({ "reason": "oom_kill", "count": 3 }), "{text}");
    let causes = json["causes"].as_array().unwrap();
    let symptoms: Vec<_> =
        causes.iter().filter(|link| link["words"].as_str().unwrap().contains("a symptom: ")).collect();
    let words: Vec<&str> = symptoms.iter().filter_map(|link| link["words"].as_str()).collect();
    assert_eq!(symptoms.len(), 3, "{causes:#?}");
    assert!(words.iter().any(|words| words.starts_with("INC-") && words.contains("oom_kill of it")), "{words:#?}");
    assert!(symptoms.iter().all(|link| link["grade"] == "confirmed" && link["what"] == "oom_kill"), "{symptoms:#?}");
}

#[test]
fn the_hosts_diagnosis_is_part_of_what_led_to_it() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect a");
    let story = "nothing listens; behind it (likely): the OOM killer took it";
    let evidence = muster_common::evidence::Evidence::new().text("diagnosis", story);
    let finding = Finding::new(key("spl", "x", Reason::PortClosed), "closed").evidence(evidence);
    fleet.event(&agent("a"), FindingEvent::Opened(finding), Duration::ZERO);
    let state = fleet.machine.state();
    let note = note(state, state.newest_incident("host/a/service/spl").unwrap(), fleet.now, None);
    let told = note.causes.iter().find(|link| link.what == "diagnosis").unwrap();
    assert_eq!(told.words, format!("a: {story}"));
}

/// A page that an older incident got goes on for the one that it merged into.
#[test]
fn a_page_that_was_taken_over_is_not_told_as_one_after_no_time() {
    let mut script = "0 connect a b c\n1 open a spl x process_down\n20 end\n".to_owned();
    for (n, host) in ["b", "c", "a"].iter().enumerate() {
        script += &format!("{} occur {host} spl oom_kill 0\n", 100 + n);
    }
    let (json, text) = told(&(script + "160 end"), "fleet/oom_storm/spl");
    assert_eq!(json["impact"]["until_told_ms"], serde_json::Value::Null, "{text}");
    let before = json["impact"]["told_before"].as_str().unwrap();
    assert!(before.starts_with("the page of INC-") && before.ends_with(" goes on for it"), "{before}");
    assert!(text.contains("beginning to first page taken | the page of INC-"), "{text}");
}

/// What a host says of something that it told before is part of the timeline, and of the trace ids.
#[test]
fn an_update_that_says_something_new_is_in_the_timeline_and_the_traces() {
    let mut fleet = Fleet::new(policy());
    let tell = |fleet: &mut Fleet, event: fn(Finding) -> FindingEvent, words: &str, rank: Severity| {
        let finding = Finding::new(key("spl", "/run/spl.pid", Reason::ProcessDown), words).severity(rank);
        let entry = fleet.machine.state().head_index() + 1;
        fleet.event(&agent("a"), event(finding), Duration::ZERO);
        entry
    };
    let lines = |fleet: &Fleet| {
        let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
        let of_updates = incident.timeline.iter().filter(|line| line.text.contains(" is now"));
        of_updates.map(|line| (line.index, line.text.clone())).collect::<Vec<_>>()
    };
    fleet.run_line("0 connect a");
    tell(&mut fleet, FindingEvent::Opened, "spl ended", Severity::Sev2);
    let ended = tell(&mut fleet, FindingEvent::Updated, "spl ended by SIGTERM", Severity::Sev2);
    tell(&mut fleet, FindingEvent::Updated, "spl ended by SIGTERM", Severity::Sev2);
    let worse = tell(&mut fleet, FindingEvent::Updated, "spl ended by SIGTERM", Severity::Sev1);
    let process = "a: process_down of /run/spl.pid";
    let expected = [
        (ended, format!("{process} is now: spl ended by SIGTERM")),
        (worse, format!("{process} is now sev1: spl ended by SIGTERM")),
    ];
    assert_eq!(lines(&fleet), expected, "said twice, it is told once");
    let state = fleet.machine.state();
    let note = note(state, state.newest_incident("host/a/service/spl").unwrap(), fleet.now, None);
    assert!(note.traces.contains(&ended) && note.traces.contains(&worse), "{:?}", note.traces);
    // Figures that move on all the time push nothing else out.
    fleet.run_line("1 open a spl y port_closed");
    for n in 0..500 {
        tell(&mut fleet, FindingEvent::Updated, &format!("spl ended {n} s ago"), Severity::Sev1);
    }
    let told = lines(&fleet);
    let (first, last) = (&told.first().unwrap().1, &told.last().unwrap().1);
    assert!(first.ends_with("SIGTERM") && last.ends_with("499 s ago") && told.len() < 60, "{}", told.len());
    let incident = fleet.machine.state().newest_incident("host/a/service/spl").unwrap();
    assert!(incident.timeline.iter().any(|line| line.text.contains("port_closed of y opens")), "{incident:#?}");
    fleet.check_journal();
}
