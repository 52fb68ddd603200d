//! What the daemon answers a coordinator that asks: what is open, with its story; and what its hello tells of its ports.

use super::{Daemon, Stage};
use crate::fake::Behaviour;
use crate::until;
use muster_common::reason::ReasonKind;
use muster_proto::convert;
use std::net::TcpListener;

#[tokio::test]
async fn the_daemon_answers_with_what_is_open_and_tells_its_ports() {
    let stage = Stage::set_with([Behaviour::Good, Behaviour::Curious(&[])]).await;
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    stage.config(&stage.path("state"), "[service.spl]\npid_file = \"/nonexistent/spl.pid\"\n");
    let mut first = Daemon::start(&stage);
    stage.hears("spl", "pid_file_missing").await;
    stage.more_heartbeats().await;
    assert_eq!(first.stop().await, Some(0));
    let mut second = Daemon::start(&stage);
    let state = until(&stage.fake, |state| !state.diagnoses.is_empty()).await;
    let hello = state.hellos.last().unwrap();
    // Where many listen already, this one may be beyond the bound.
    assert!(hello.listening_ports.contains(&port) || hello.listening_ports.len() == 8, "{hello:?}");
    let diagnosis = state.diagnoses[0].diagnosis.as_ref().unwrap();
    let missing = diagnosis.findings.iter().find(|finding| finding.reason == "pid_file_missing");
    convert::finding(missing.unwrap(), ReasonKind::Condition).unwrap();
    assert!(diagnosis.stories.iter().any(|story| story.contains("spl")), "{diagnosis:?}");
    assert!(diagnosis.judged.is_some() && diagnosis.findings_left_out == 0);
    assert_eq!(second.stop().await, Some(0));
}
