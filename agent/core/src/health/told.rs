//! The sentences, evidence and next steps about health endpoints.

use super::{Answer, Fault, Outcome, Phase, Reading, Rules};
use crate::clock::Now;
use crate::health::certificate::Certificate;
use crate::judgement::Problem;
use crate::log::redact;
use crate::shell::quoted;
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use std::time::Duration;

/// Bytes of a body that are shown.
const BODY_SHOWN_BYTES: usize = 400;

pub(super) fn failed(rules: &Rules, reading: &Reading, fault: &Fault, failures: u32, since: Duration) -> Problem {
    let url = redact(&rules.url);
    let lasting = match failures {
        0 | 1 => String::new(),
        many => format!(" ({many} times in a row, for {})", human_duration(since)),
    };
    let summary = match &reading.outcome {
        Outcome::Answer(answer) => {
            let took = human_duration(answer.latency);
            format!("{url} says that it is not well: {} (answered within {took}){lasting}", fault.why)
        }
        Outcome::Failed { timed_out: true, took, .. } => {
            format!("{url} does not answer: {} within {}{lasting}", fault.why, human_duration(*took))
        }
        _ => format!("{url} does not answer: {}{lasting}", fault.why),
    };
    let mut evidence = Evidence::new()
        .text("url", &url)
        .text("phase", fault.phase.as_str())
        .text("why", &fault.why)
        .count("failures", failures);
    if !since.is_zero() {
        evidence = evidence.duration("since_ms", since);
    }
    match &reading.outcome {
        Outcome::Answer(answer) => {
            evidence = evidence.count("status", answer.status).duration("latency_ms", answer.latency);
            if !answer.body.is_empty() {
                evidence = evidence.text("body", shown(&answer.body));
            }
            if let Some(location) = &answer.location {
                evidence = evidence.text("location", redact(location));
            }
        }
        Outcome::Failed { took, timed_out, .. } => {
            evidence = evidence.flag("timed_out", *timed_out);
            // A refusal comes at once.
            if took.as_millis() > 0 {
                evidence = evidence.duration("took_ms", *took);
            }
        }
        Outcome::NotTried { .. } => {}
    }
    let problem = Problem::new(Reason::HealthCheckFailed, summary).evidence(evidence);
    problem.next_steps(steps(rules, fault.phase))
}

pub(super) fn slow(rules: &Rules, answer: &Answer, max: Duration, times: u32) -> Problem {
    let url = redact(&rules.url);
    let summary = format!(
        "{url} answers well but slowly: {} (at most {} is allowed, {times} times in a row)",
        human_duration(answer.latency),
        human_duration(max)
    );
    let evidence = Evidence::new()
        .text("url", &url)
        .text("phase", "slow")
        .count("status", answer.status)
        .duration("latency_ms", answer.latency)
        .duration("max_latency_ms", max)
        .count("slow_answers", times);
    Problem::new(Reason::HealthCheckFailed, summary)
        .severity(Severity::Sev3)
        .evidence(evidence)
        .next_steps(steps(rules, Phase::Response))
}

/// The certificate runs out soon, or has run out.
pub(super) fn expiring(rules: &Rules, certificate: Option<&Certificate>, now: Now) -> Option<Problem> {
    let certificate = certificate?;
    let left = certificate.not_after.since(now.wall);
    let expired = certificate.not_after <= now.wall;
    if !expired && left > rules.expiry_warning {
        return None;
    }
    let url = redact(&rules.url);
    let when = certificate.not_after.to_utc_minute();
    let verb = if expired { "ran out" } else { "runs out" };
    let summary = format!("the certificate of {url} {verb} on {when} (subject {})", certificate.subject);
    let evidence = Evidence::new()
        .text("url", &url)
        .text("subject", &certificate.subject)
        .text("issuer", &certificate.issuer)
        .with("not_after", Value::Time(certificate.not_after))
        .with("not_before", Value::Time(certificate.not_before))
        .duration("left_ms", left)
        .count("left_days", left.as_secs() / 86_400)
        .flag("expired", expired);
    let mut problem = Problem::new(Reason::CertificateExpiring, summary).grade(Grade::Confirmed).evidence(evidence);
    if expired {
        problem = problem.severity(Severity::Sev2);
    }
    Some(problem.next_steps([
        "did the automatic renewal fail? systemctl list-timers --all; journalctl -u certbot.service -n 50",
        "was it renewed, and the service not reloaded? compare the file on disk: openssl x509 -noout -enddate -subject -in CERT.pem",
        "renew it, reload the service, and see that the clock is right: timedatectl",
    ]))
}

fn steps(rules: &Rules, phase: Phase) -> Vec<String> {
    let ask = match &rules.socket {
        Some(socket) => {
            let path = rules.url.rsplit_once(":/").map_or("", |(_, path)| path);
            format!(
                "ask it yourself: curl -sS -m 5 -i --unix-socket {} {}",
                quoted(socket),
                quoted(&format!("http://localhost/{path}"))
            )
        }
        None => format!("ask it yourself: curl -sS -m 5 -i {}", quoted(&redact(&rules.url))),
    };
    let second = match phase {
        Phase::Resolve => "does the name resolve? getent hosts NAME; cat /etc/resolv.conf",
        Phase::Connect => "does anybody listen? ss -ltnxp; is a firewall in between? nft list ruleset",
        Phase::Tls => {
            "which certificate is it? openssl s_client -connect HOST:PORT </dev/null | openssl x509 -noout -dates -subject -issuer"
        }
        Phase::Response => "what does the service say itself? journalctl -u UNIT -n 50",
    };
    vec![ask, second.to_owned(), "is it this service alone? muster-agent doctor".to_owned()]
}

/// The first bytes of a body, printable and without secrets.
fn shown(body: &[u8]) -> String {
    let start = body.get(..BODY_SHOWN_BYTES.min(body.len())).unwrap_or_default();
    let text = redact(&String::from_utf8_lossy(start));
    if body.len() > BODY_SHOWN_BYTES { format!("{text} …") } else { text }
}
