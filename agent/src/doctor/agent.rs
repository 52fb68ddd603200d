//! What the agent that runs on this host says: it has watched for hours what `doctor` sees for a moment (a lock that is
//! held, a trend, a skew, restarts).
//!
//! Told as its word, beside what was found. Nobody waits for an agent that hangs, and nobody else's socket is believed.

use super::report::{AgentSays, Report};
use crate::local::client::{LocalError, status_at_once};
use crate::senses::HostRoot;
use muster_agent_core::diagnose::{PID_KEY, START_TICKS_KEY, is_symptom};
use muster_agent_core::judgement::Verdict;
use muster_common::chain::Chain;
use muster_common::finding::Finding;
use muster_common::limits::{
    NAME_BYTES_MAX, NEXT_STEPS_MAX, OPEN_FINDINGS_PER_AGENT_MAX, SUBJECT_BYTES_MAX, SUMMARY_BYTES_MAX, clip,
};
use muster_common::reason::{Reason, ReasonKind};
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_proto::convert::{finding, severity};
use muster_proto::v1;
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
        Ok(status) => {
            let now = crate::clock::now().wall;
            report.agent_says = said(&status, report, now);
            adopt(&status, report);
            fold(&status, report);
        }
        Err(error) => report.notes.push(not_heard(socket, &error)),
    }
}

fn not_heard(socket: &Path, error: &LocalError) -> String {
    format!("what the running agent knows is not in here ({}): {}", socket.display(), Chain(error))
}

/// The causes that it tells, without those that were found here as well.
fn said(status: &v1::LocalStatus, report: &Report, now: Timestamp) -> Vec<AgentSays> {
    // Folded ones as well: what is a symptom here was a cause there, as long as it was all that was seen.
    let is_new = |said: &&v1::LocalDiagnosis| {
        let is_it = |found: &Finding| {
            let subject = &found.key.subject;
            let same = subject.service.as_str() == said.service && found.key.reason.as_str() == said.reason;
            same && is_about(said, subject.probe.as_str(), &subject.subject)
        };
        !report.findings.iter().any(is_it)
    };
    let said = status.diagnoses.iter().filter(is_new).map(|said| {
        let open = |finding: &&v1::FindingDetail| {
            finding.reason == said.reason
                && finding.subject.as_ref().is_some_and(|subject| {
                    subject.service == said.service && is_about(said, &subject.probe, &subject.subject)
                })
        };
        let found = status.findings.iter().find(open);
        let over = found.is_some_and(|found| is_over(found, status, report));
        let happened = (said.happened_unix_ms > 0).then(|| Timestamp::from_unix_ms(said.happened_unix_ms));
        let subject = found.and_then(|finding| finding.subject.as_ref()).map(|subject| subject.subject.as_str());
        let steps = said.next_steps.iter().take(NEXT_STEPS_MAX);
        AgentSays {
            service: clip(&said.service, NAME_BYTES_MAX),
            severity: severity(said.severity).unwrap_or(Severity::Sev4),
            reason: clip(&said.reason, NAME_BYTES_MAX),
            subject: clip(subject.unwrap_or_default(), SUBJECT_BYTES_MAX),
            summary: clip(&said.summary, SUMMARY_BYTES_MAX),
            open: found.is_some() && !over,
            happened: happened.map(|at| (at, now.since(at))),
            over,
            next_steps: steps.map(|step| clip(step, SUMMARY_BYTES_MAX)).collect(),
            seen_here: Vec::new(),
        }
    });
    said.take(SAID_MAX).collect()
}

/// Whether the same probe saw a successor run here: the agent waits for a second look before it says that an end is over.
///
/// The pid of the one that ended may be a stranger's by now. Only who watched knows, so a process with that pid, or with
/// one that the agent calls a stranger's, is none.
fn is_over(told: &v1::FindingDetail, status: &v1::LocalStatus, report: &Report) -> bool {
    let read = |detail: &v1::FindingDetail| finding(detail, ReasonKind::Condition).ok();
    let ended = Some(told).filter(|told| told.reason == Reason::ProcessDown.as_str()).and_then(read);
    let Some(ended) = ended else { return false };
    let subject = &ended.key.subject;
    let seen = report.probes.iter().find(|ran| ran.subject == *subject).map(|ran| &ran.judgement);
    let seen = seen.filter(|seen| seen.verdict() == Verdict::Ok && !seen.sees_no_process());
    let Some(pid) = seen.and_then(|seen| seen.seen.get(PID_KEY)) else { return false };
    let stale = |detail: &&v1::FindingDetail| detail.reason == Reason::PidFileStale.as_str();
    let open = status.findings.iter().take(OPEN_FINDINGS_PER_AGENT_MAX).filter(stale).filter_map(read);
    let mut strangers = open.filter(|stale| stale.key.subject == *subject);
    ended.evidence.get(PID_KEY).is_some_and(|ended| ended != pid)
        && !strangers.any(|stranger| stranger.evidence.get(PID_KEY) == Some(pid))
}

/// What was found here and is open there in better words: who saw it begin knows how, and since when. Only of what tells a
/// past; a number is told by who looked last, and so is what is left to do it in (copies of a backup).
fn adopt(status: &v1::LocalStatus, report: &mut Report) {
    const PASTS: &[Reason] = &[
        Reason::ProcessDown,
        Reason::ProcessZombie,
        Reason::ProcessStopped,
        Reason::PidFileStale,
        Reason::UnitFailed,
        Reason::UnitInactive,
        Reason::RestartLoop,
        Reason::SqliteLockHeld,
        Reason::LockContention,
        Reason::SqliteReplaced,
        Reason::SqliteShrunk,
    ];
    let open = status.findings.iter().take(OPEN_FINDINGS_PER_AGENT_MAX);
    let open: Vec<Finding> = open.filter_map(|detail| finding(detail, ReasonKind::Condition).ok()).collect();
    for story in &mut report.stories {
        let found = report.findings.get(story.cause).filter(|found| PASTS.contains(&found.key.reason));
        let Some(found) = found else { continue };
        let Some(told) = open.iter().find(|told| told.key == found.key && !is_newer(found, told)) else { continue };
        let is_it = |said: &&v1::LocalDiagnosis| {
            let key = &found.key;
            (said.service.as_str(), said.reason.as_str()) == (key.subject.service.as_str(), key.reason.as_str())
                && !said.probe.is_empty()
                && is_about(said, key.subject.probe.as_str(), &key.subject.subject)
        };
        let whole = status.diagnoses.iter().find(is_it);
        story.better_words = Some(clip(&told.summary, SUMMARY_BYTES_MAX));
        story.sentence = clip(whole.map_or(&told.summary, |whole| &whole.summary), SUMMARY_BYTES_MAX);
        let steps = whole.map_or(&told.next_steps, |whole| &whole.next_steps);
        if !steps.is_empty() {
            story.next_steps = steps.iter().take(NEXT_STEPS_MAX).map(|step| clip(step, SUMMARY_BYTES_MAX)).collect();
        }
        if let Some(whole) = whole {
            let unknown = whole.unknown.iter().take(NEXT_STEPS_MAX);
            story.unknown = unknown.map(|unknown| clip(unknown, SUMMARY_BYTES_MAX)).collect();
        }
    }
}

/// Whether a look found another process than the one that was told of: what was told is of before.
fn is_newer(found: &Finding, told: &Finding) -> bool {
    [PID_KEY, START_TICKS_KEY].iter().any(|key| {
        let values = found.evidence.get(key).zip(told.evidence.get(key));
        values.is_some_and(|(found, told)| found != told)
    })
}

/// Whether a diagnosis is about this; an older agent tells neither probe nor subject.
fn is_about(said: &v1::LocalDiagnosis, probe: &str, subject: &str) -> bool {
    said.probe.is_empty() || (said.probe == probe && said.subject == subject)
}

/// One exit, one story: what was found here and is a symptom of what the agent saw (a pid file that names the process
/// whose end it tells) is told with it.
fn fold(status: &v1::LocalStatus, report: &mut Report) {
    let open = status.findings.iter().take(OPEN_FINDINGS_PER_AGENT_MAX);
    let open: Vec<Finding> = open.filter_map(|detail| finding(detail, ReasonKind::Condition).ok()).collect();
    let Report { stories, findings, agent_says, .. } = report;
    stories.retain(|story| {
        let Some(found) = findings.get(story.cause) else { return true };
        let Some(cause) = open.iter().find(|cause| is_symptom(cause, found)) else { return true };
        let Some(said) = teller(agent_says, cause) else { return true };
        if !said.open {
            // What happened has left something that lasts.
            (said.open, said.subject) = (true, clip(&cause.key.subject.subject, SUBJECT_BYTES_MAX));
        }
        said.severity = said.severity.max(story.severity);
        let links = story.links.iter().filter_map(|link| findings.get(link.finding));
        let seen = std::iter::once(found).chain(links);
        said.seen_here
            .extend(seen.map(|seen| format!("{} {} {}", seen.severity, seen.key.reason, seen.key.subject.subject)));
        false
    });
    agent_says.sort_by_key(|said| std::cmp::Reverse(said.severity));
}

/// Who of them tells of `cause`: it, or what the agent found to be behind it.
fn teller<'a>(agent_says: &'a mut [AgentSays], cause: &Finding) -> Option<&'a mut AgentSays> {
    let tells = |said: &AgentSays, reason: Reason| {
        said.service == cause.key.subject.service.as_str() && said.reason == reason.as_str()
    };
    let reasons = [cause.key.reason, Reason::OomKill, Reason::RestartLoop];
    let exact = |said: &AgentSays| tells(said, cause.key.reason) && said.subject == cause.key.subject.subject;
    let exact = agent_says.iter().position(exact);
    let any = || reasons.iter().find_map(|reason| agent_says.iter().position(|said| tells(said, *reason)));
    let at = exact.or_else(any)?;
    agent_says.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::Ran;
    use muster_agent_core::clock::Now;
    use muster_agent_core::diagnose::Recent;
    use muster_agent_core::judgement::{Judgement, Problem};
    use muster_agent_core::services::Services;
    use muster_common::evidence::Evidence;
    use muster_common::finding::{FindingKey, ProbeKind, SubjectKey};
    use muster_common::ids::ServiceName;
    use muster_proto::convert::{finding_to_wire, severity_to_wire};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn subject() -> SubjectKey {
        SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::PidFile, "/run/spl.pid")
    }

    /// A look that found a stale pid file and a closed port.
    fn found(pid: u32) -> Report {
        let stale = Problem::new(Reason::PidFileStale, "stale").evidence(Evidence::new().count("pid", pid));
        let closed = Problem::new(Reason::PortClosed, "closed");
        let port = SubjectKey { probe: ProbeKind::Port, subject: "tcp:1".into(), ..subject() };
        let ran = [(subject(), stale), (port, closed)].map(|(subject, problem)| Ran {
            subject,
            judgement: Judgement::problem(problem),
            took: Duration::ZERO,
        });
        let mut recent = Recent::default();
        for ran in &ran {
            recent.note(Now { boottime_ms: 1, wall: Timestamp::UNIX_EPOCH }, &ran.subject, &ran.judgement);
        }
        Report::new("web-1".into(), ran.into(), &recent, &Services::default())
    }

    /// What an agent says that saw the end of process 7, with `reason` as the cause.
    fn status(reason: Reason) -> v1::LocalStatus {
        let key = FindingKey { subject: subject(), reason: Reason::ProcessDown };
        let down = Finding::new(key, "spl (pid 7) ended").evidence(Evidence::new().count("pid", 7u32));
        let diagnosis = v1::LocalDiagnosis {
            service: "spl".into(),
            severity: severity_to_wire(Severity::Sev2),
            reason: reason.to_string(),
            summary: "spl (pid 7) ended by SIGKILL".into(),
            ..v1::LocalDiagnosis::default()
        };
        v1::LocalStatus { findings: vec![finding_to_wire(&down)], diagnoses: vec![diagnosis], ..Default::default() }
    }

    /// A backup and its database, found here as one story, and what the agent says of them and of another backup.
    #[test]
    fn the_agent_s_word_is_left_out_where_the_same_was_found_and_nowhere_else() {
        let at = |probe, subject: &str| SubjectKey { probe, subject: subject.into(), ..self::subject() };
        let copied = Evidence::new().text("source_path", "/hub.db");
        let ran = [
            (at(ProbeKind::Sqlite, "/hub.db"), Problem::new(Reason::SqliteCorrupt, "damaged")),
            (at(ProbeKind::Backup, "/hub.db.*.bak"), Problem::new(Reason::BackupShrunk, "small").evidence(copied)),
        ];
        let now = Now { boottime_ms: 1, wall: Timestamp::UNIX_EPOCH };
        let mut recent = Recent::default();
        let ran = ran.map(|(subject, problem)| {
            let judgement = Judgement::problem(problem);
            recent.note(now, &subject, &judgement);
            Ran { subject, judgement, took: Duration::ZERO }
        });
        let report = Report::new("web-1".into(), ran.into(), &recent, &Services::default());
        assert_eq!(report.stories.len(), 1, "{:?}", report.stories);
        let tells = |probe: &str, subject: &str| {
            let diagnosis = v1::LocalDiagnosis {
                service: "spl".into(),
                reason: "backup_shrunk".into(),
                probe: probe.into(),
                subject: subject.into(),
                ..v1::LocalDiagnosis::default()
            };
            let key = |subject| FindingKey { subject: at(ProbeKind::Backup, subject), reason: Reason::BackupShrunk };
            let open = ["/hub.db.*.bak", "/other.bak"].map(|subject| finding_to_wire(&Finding::new(key(subject), "x")));
            let status =
                v1::LocalStatus { findings: open.into(), diagnoses: vec![diagnosis], ..v1::LocalStatus::default() };
            said(&status, &report, NOW).into_iter().map(|said| (said.subject, said.open)).collect::<Vec<_>>()
        };
        assert_eq!(tells("backup", "/hub.db.*.bak"), []);
        assert_eq!(tells("backup", "/other.bak"), [("/other.bak".to_owned(), true)]);
        // An older agent does not say what it is about.
        assert_eq!(tells("", ""), []);
        // What is no longer open happened lately.
        assert_eq!(tells("backup", "/gone.bak"), [(String::new(), false)]);
    }

    #[test]
    fn one_exit_is_one_story_and_another_exit_another() {
        for (pid, cause, stories) in [
            (7, Reason::ProcessDown, 0),
            (7, Reason::OomKill, 0),
            // Another process, and a cause that has nothing to do with an exit.
            (8, Reason::ProcessDown, 1),
            (7, Reason::SqliteLockHeld, 1),
        ] {
            let (mut report, status) = (found(pid), status(cause));
            report.agent_says = said(&status, &report, NOW);
            fold(&status, &mut report);
            assert_eq!((report.stories.len(), report.agent_says.len()), (stories, 1), "{pid} {cause}");
            let said = &report.agent_says[0];
            if stories == 0 {
                assert_eq!(said.seen_here, ["sev3 pid_file_stale /run/spl.pid", "sev2 port_closed tcp:1"]);
                assert!(said.open && said.subject == "/run/spl.pid", "{said:?}");
                // What is down now is told first, not behind what was found beside.
                assert!(report.agent_knows_worse());
            } else {
                assert!(said.seen_here.is_empty(), "{said:?}");
            }
            assert_eq!(report.findings.len(), 2, "programs are told what was found");
        }
    }

    /// Between two lives its pid file names nobody: whoever starts it by hand then starts one life more.
    #[test]
    fn between_two_lives_of_a_loop_the_loop_is_told() {
        let mut report = found(7);
        let mut status = status(Reason::RestartLoop);
        let key = FindingKey { subject: subject(), reason: Reason::RestartLoop };
        let of_last_life = Evidence::new().count("pid", 6u32);
        status.findings = vec![finding_to_wire(&Finding::new(key, "it keeps restarting").evidence(of_last_life))];
        report.agent_says = said(&status, &report, NOW);
        fold(&status, &mut report);
        assert_eq!((report.stories.len(), report.agent_says.len()), (0, 1), "{:?}", report.stories);
        assert_eq!(report.agent_says[0].seen_here, ["sev3 pid_file_stale /run/spl.pid", "sev2 port_closed tcp:1"]);
    }

    fn unit() -> SubjectKey {
        SubjectKey { probe: ProbeKind::Unit, subject: "spl.service".into(), ..subject() }
    }

    fn look(subject: SubjectKey, judgement: Judgement) -> Report {
        let mut recent = Recent::default();
        recent.note(Now { boottime_ms: 1, wall: NOW }, &subject, &judgement);
        let ran = Ran { subject, judgement, took: Duration::ZERO };
        Report::new("web-1".into(), vec![ran], &recent, &Services::default())
    }

    /// `systemctl stop`: systemd has forgotten how it ended, and who watched has not.
    #[test]
    fn what_the_agent_saw_begin_is_told_in_its_words() {
        let told = |reason: Reason, here: Evidence, there: Evidence| {
            let here = Problem::new(reason, "it is not running").evidence(here).next_steps(["look"]);
            let mut report = look(unit(), Judgement::problem(here));
            let key = FindingKey { subject: unit(), reason };
            let there =
                Finding::new(key, "it was stopped (SIGTERM)").evidence(there).next_steps(["see who stopped it"]);
            let diagnosis = v1::LocalDiagnosis {
                service: "spl".into(),
                reason: reason.to_string(),
                probe: "unit".into(),
                subject: "spl.service".into(),
                summary: "it was stopped (SIGTERM); and so on".into(),
                next_steps: vec!["see who stopped it".into()],
                ..v1::LocalDiagnosis::default()
            };
            let findings = vec![finding_to_wire(&there)];
            let status = v1::LocalStatus { findings, diagnoses: vec![diagnosis], ..v1::LocalStatus::default() };
            report.agent_says = said(&status, &report, NOW);
            adopt(&status, &mut report);
            fold(&status, &mut report);
            assert!(report.agent_says.is_empty() && report.stories.len() == 1, "once");
            let mut out = Vec::new();
            crate::doctor::text::write(&mut out, &report, crate::doctor::text::Style::default()).unwrap();
            (String::from_utf8(out).unwrap(), report.to_json())
        };
        let pid = |pid: u32| Evidence::new().count("pid", pid);
        let (text, json) = told(Reason::UnitInactive, Evidence::new(), pid(7));
        assert!(text.contains("\n  it was stopped (SIGTERM)\n") && text.contains("next: see who stopped it"), "{text}");
        assert!(!text.contains("it is not running"), "{text}");
        assert!(json.contains("it was stopped (SIGTERM); and so on"), "{json}");
        // Of another process, and of what is measured, the newest look tells.
        let (text, _) = told(Reason::UnitFailed, pid(8), pid(7));
        assert!(text.contains("it is not running") && !text.contains("SIGTERM"), "{text}");
        for measured in [Reason::DiskSpaceLow, Reason::BackupShrunk] {
            let (text, _) = told(measured, Evidence::new(), Evidence::new());
            assert!(text.contains("it is not running") && !text.contains("SIGTERM"), "{text}");
        }
    }

    /// The agent waits for a second look at the successor before it clears. The pid of the one that ended may be a
    /// stranger's by now, and a look without a past takes it for the service.
    #[test]
    fn an_end_is_over_once_another_process_is_seen_to_run() {
        let runs = |pid: u32, start: u32| Evidence::new().count("pid", pid).count("start_ticks", start);
        let stale = |pid: u32| {
            let key = FindingKey { subject: subject(), reason: Reason::PidFileStale };
            finding_to_wire(&Finding::new(key, "a stranger's").evidence(runs(pid, 5)))
        };
        for (judgement, stale, open) in [
            (Judgement::ok(runs(8, 5)), None, false),
            // A number alone names nothing.
            (Judgement::ok(runs(7, 5)), None, true),
            (Judgement::ok(runs(7, 5)), Some(stale(7)), true),
            (Judgement::ok(runs(8, 5)), Some(stale(8)), true),
            // What the agent saw before is no word about another process.
            (Judgement::ok(runs(8, 5)), Some(stale(7)), false),
            (Judgement::default(), None, true),
            (Judgement::ok(runs(8, 5).text("process", "has ended")), None, true),
            (Judgement::unknown("no access", None), None, true),
        ] {
            let mut report = look(subject(), judgement.clone());
            let mut status = status(Reason::ProcessDown);
            status.findings.extend(stale);
            status.diagnoses[0].happened_unix_ms = 0;
            report.agent_says = said(&status, &report, NOW);
            let said = &report.agent_says[0];
            assert_eq!((said.open, said.over), (open, !open), "{judgement:?}");
            let critical = report.overall() == crate::doctor::report::Overall::Critical;
            assert_eq!(critical, open);
        }
    }

    #[test]
    fn what_happened_has_its_time() {
        let report = look(subject(), Judgement::default());
        let mut status = status(Reason::OomKill);
        status.findings.clear();
        status.diagnoses[0].happened_unix_ms = 60_000;
        let now = Timestamp::from_unix_ms(180_000);
        let told = said(&status, &report, now);
        assert_eq!(told[0].happened, Some((Timestamp::from_unix_ms(60_000), Duration::from_secs(120))));
    }
}
