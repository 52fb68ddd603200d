//! A certificate that cannot be used blinds nobody, is named, and is taken up once it can.

use super::{Daemon, Stage};
use crate::certificates::Ca;
use nix::sys::signal::Signal;
use std::path::PathBuf;

/// Puts other files in the place of the agent's certificate and key; the CA's stays.
fn put(stage: &Stage, [_, certificate, key]: &[PathBuf; 3]) {
    let [_, own_certificate, own_key] = &stage.tls;
    std::fs::copy(certificate, own_certificate).unwrap();
    std::fs::copy(key, own_key).unwrap();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named_and_taken_up_once_it_can() {
    let stage = Stage::set().await;
    stage.config(&stage.path("state"), "[service.gone]\npid_file = \"/nonexistent/gone.pid\"\n");
    let issue = |ca: &Ca, uri| ca.issue_files(stage.folder.path(), uri);
    let good = issue(&stage.ca, "muster://prod/agent/web-1");
    let operator = issue(&stage.ca, "muster://prod/operator/eve");
    let other_ca = issue(&Ca::new("prod"), "muster://prod/agent/web-1");
    let other_agent = issue(&stage.ca, "muster://prod/agent/web-2");

    std::fs::write(&stage.tls[1], "nothing").unwrap();
    let mut daemon = Daemon::start(&stage);
    daemon.says(&["ERROR", "no coordinator is told", "cert.pem"]).await;
    for (files, words) in [(&operator, "which is not of role agent"), (&other_ca, "our own CA does not accept")] {
        put(&stage, files);
        daemon.signal(Signal::SIGHUP);
        daemon.says(&["ERROR", words]).await;
    }
    put(&stage, &good);
    daemon.signal(Signal::SIGHUP);
    stage.hears("gone", "pid_file_missing").await;

    put(&stage, &issue(&stage.ca, "muster://prod/agent/web-1"));
    daemon.signal(Signal::SIGHUP);
    daemon.says(&["certificate read again", "muster://prod/agent/web-1"]).await;
    put(&stage, &other_agent);
    daemon.signal(Signal::SIGHUP);
    daemon.says(&["ERROR", "the one before stays in use", "web-2"]).await;
    let state = stage.more_heartbeats().await;
    assert_eq!((state.streams, state.broken), (1, None), "one stream all the time");
    assert_eq!(daemon.stop().await, Some(0));
}
