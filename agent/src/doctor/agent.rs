//! What the agent that runs on this host says: it has watched for hours what `doctor` sees for a moment (a lock that is
//! held, a trend, a skew, restarts).
//!
//! Told as its word, beside what was found. Nobody waits for an agent that hangs, and nobody else's socket is believed.

use super::report::{AgentSays, Report};
use crate::local::client::{LocalError, status_at_once};
use crate::senses::HostRoot;
use muster_common::chain::Chain;
use muster_common::limits::{NAME_BYTES_MAX, NEXT_STEPS_MAX, SUBJECT_BYTES_MAX, SUMMARY_BYTES_MAX, clip};
use muster_common::severity::Severity;
use muster_proto::convert::severity;
use muster_proto::v1;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// The agent answers within milliseconds.
const ANSWER_MAX: Duration = Duration::from_millis(300);
/// Causes of one agent that are told: the worst come first.
const SAID_MAX: usize = 32;

/// Adds what the agent behind `socket` says and the report does not; a note where it does not answer.
pub(super) fn add(report: &mut Report, host: &HostRoot, socket: &Path) {
    let place = host.path(socket);
    if std::fs::symlink_metadata(&place).is_err() {
        return;
    }
    match status_at_once(&place, ANSWER_MAX) {
        Ok(status) => report.agent_says = said(&status, report),
        Err(error) => report.notes.push(not_heard(socket, &error)),
    }
}

fn not_heard(socket: &Path, error: &LocalError) -> String {
    format!("what the running agent knows is not in here ({}): {}", socket.display(), Chain(error))
}

/// The causes that it tells, without those that were found here as well.
fn said(status: &v1::LocalStatus, report: &Report) -> Vec<AgentSays> {
    let found: BTreeSet<(&str, &str)> = report
        .stories
        .iter()
        .filter_map(|story| report.findings.get(story.cause))
        .map(|finding| (finding.key.subject.service.as_str(), finding.key.reason.as_str()))
        .collect();
    let new = |said: &&v1::LocalDiagnosis| !found.contains(&(said.service.as_str(), said.reason.as_str()));
    let said = status.diagnoses.iter().filter(new).map(|said| {
        let open = |finding: &&v1::FindingDetail| {
            let service = finding.subject.as_ref().map(|subject| subject.service.as_str());
            service == Some(said.service.as_str()) && finding.reason == said.reason
        };
        let finding = status.findings.iter().find(open);
        let subject = finding.and_then(|finding| finding.subject.as_ref()).map(|subject| subject.subject.as_str());
        let steps = said.next_steps.iter().take(NEXT_STEPS_MAX);
        AgentSays {
            service: clip(&said.service, NAME_BYTES_MAX),
            severity: severity(said.severity).unwrap_or(Severity::Sev4),
            reason: clip(&said.reason, NAME_BYTES_MAX),
            subject: clip(subject.unwrap_or_default(), SUBJECT_BYTES_MAX),
            summary: clip(&said.summary, SUMMARY_BYTES_MAX),
            open: finding.is_some(),
            next_steps: steps.map(|step| clip(step, SUMMARY_BYTES_MAX)).collect(),
        }
    });
    said.take(SAID_MAX).collect()
}
