//! A coordinator whose clock is another: what the daemon hears on the real stream becomes the finding about its own clock.

use super::{Daemon, Stage, events};
use crate::PATIENCE;
use crate::fake::AHEAD_MS;
use muster_common::evidence::Value;
use muster_common::finding::FindingEvent;
use muster_common::reason::Reason;

/// Nobody may set the clock of a machine for a test, and no namespace has a wall clock of its own: so the other end is
/// off, which is the same difference.
#[tokio::test]
async fn a_clock_that_differs_from_the_coordinators_is_told_with_by_how_much() {
    let stage = Stage::set().await;
    stage.config(&stage.path("state"), "");
    let path = stage.path("agent.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    // The default asks once a minute.
    std::fs::write(&path, text.replace("[probes]\n", "[probes]\nclock = \"1s\"\n")).unwrap();
    let mut daemon = Daemon::start(&stage);
    let state = stage.hears("host", "clock_skew").await;
    let told = events(&state).find_map(|event| match event {
        FindingEvent::Opened(finding) if finding.key.reason == Reason::ClockSkew => Some(finding),
        _ => None,
    });
    let told = told.expect("it opens");
    assert!(told.summary.contains(" behind the coordinator's, more than 5 s"), "{}", told.summary);
    let Some(Value::Integer(skew_ms)) = told.evidence.get("skew_signed_ms") else { panic!("{told:?}") };
    // The way of the welcome through a busy machine is in it.
    let way_ms = i64::try_from(PATIENCE.as_millis()).unwrap().min(AHEAD_MS / 2);
    assert!((-AHEAD_MS - 100..=-AHEAD_MS + way_ms).contains(skew_ms), "{skew_ms}");
    assert_eq!(daemon.stop().await, Some(0));
}
