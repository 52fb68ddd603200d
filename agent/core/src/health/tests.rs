//! Answers over time as data.

use super::*;
use muster_common::evidence::Value;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;

const DAY_MS: i64 = 86_400_000;

fn now(second: u64) -> Now {
    Now { boottime_ms: second * 1000, wall: Timestamp::from_unix_ms(1_795_000_000_000) }
}

fn rules() -> Rules {
    Rules {
        url: "http://127.0.0.1:9100/health".to_owned(),
        socket: None,
        status: vec![200..=299],
        field: None,
        max_latency: Some(Duration::from_secs(1)),
        expiry_warning: Duration::from_secs(14 * 86_400),
        failures: 2,
    }
}

fn answer(status: u16, body: &str) -> Reading {
    let answer = Answer {
        status,
        location: None,
        body: body.as_bytes().to_vec(),
        field: None,
        latency: Duration::from_millis(20),
    };
    Reading { outcome: Outcome::Answer(answer), certificate: None }
}

fn refused() -> Reading {
    let why = "connection refused".to_owned();
    let outcome = Outcome::Failed { phase: Phase::Connect, why, timed_out: false, took: Duration::from_millis(1) };
    Reading { outcome, certificate: None }
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

#[test]
fn two_failures_in_a_row_and_one_good_answer() {
    let mut judge = HealthJudge::default();
    let first = judge.judge(&rules(), &refused(), now(10), false);
    assert!(first.problems.is_empty() && first.unknown.is_some());
    assert!(judge.judge(&rules(), &answer(200, ""), now(20), false).unknown.is_none());
    assert_eq!(reasons(&judge.judge(&rules(), &refused(), now(30), false)), []);
    let told = judge.judge(&rules(), &answer(503, "{\"token\": \"abcdefgh\"}\u{1b}[2J"), now(40), false);
    assert_eq!(reasons(&told), [Reason::HealthCheckFailed]);
    let problem = &told.problems[0];
    assert_eq!(
        problem.summary,
        "http://127.0.0.1:9100/health says that it is not well: status 503 (answered within 20 ms) (2 times in a row, for 10 \
         s)"
    );
    let body = problem.evidence.get("body").unwrap().to_string();
    assert!(!body.contains("abcdefgh") && !body.contains('\u{1b}'), "{body}");
    assert_eq!(
        judge.judge(&rules(), &answer(204, ""), now(50), false),
        Judgement {
            seen: Evidence::new().count("status", 204u16).duration("latency_ms", Duration::from_millis(20)),
            ..Judgement::default()
        }
    );
}

#[test]
fn one_look_is_enough_in_a_one_shot_run() {
    let told = HealthJudge::default().judge(&rules(), &refused(), now(1), true);
    assert_eq!(reasons(&told), [Reason::HealthCheckFailed]);
    assert_eq!(told.problems[0].evidence.get("phase"), Some(&Value::Text("connect".into())));
}

#[test]
fn fields_and_redirects() {
    let rules = Rules { field: Some(("/status".to_owned(), "ok".to_owned())), ..rules() };
    for (field, expected) in [
        (Some(FieldFound::Value("ok".into())), None),
        (Some(FieldFound::Value("degraded".into())), Some("/status is \"degraded\" where \"ok\" is expected")),
        (Some(FieldFound::Missing), Some("its body has no /status")),
        (Some(FieldFound::NotJson("expected value".into())), Some("is not JSON")),
        (Some(FieldFound::TooLong), Some("too long")),
    ] {
        let mut reading = answer(200, "x");
        if let Outcome::Answer(answer) = &mut reading.outcome {
            answer.field = field;
        }
        let told = HealthJudge::default().judge(&rules, &reading, now(1), true);
        let summary = told.problems.first().map(|problem| problem.summary.clone());
        assert_eq!(summary.is_some(), expected.is_some(), "{told:?}");
        assert!(summary.unwrap_or_default().contains(expected.unwrap_or_default()), "{told:?}");
    }
    let mut reading = answer(302, "");
    if let Outcome::Answer(answer) = &mut reading.outcome {
        answer.location = Some("https://login/?token=abcdefghijk".to_owned());
    }
    let told = HealthJudge::default().judge(&rules, &reading, now(1), true);
    assert!(told.problems[0].summary.contains("redirects are not followed"), "{told:?}");
    assert!(!format!("{told:?}").contains("abcdefghijk"));
}

#[test]
fn slow_answers_are_graded_lower() {
    let mut slow = answer(200, "");
    if let Outcome::Answer(answer) = &mut slow.outcome {
        answer.latency = Duration::from_millis(2500);
    }
    let mut judge = HealthJudge::default();
    assert_eq!(reasons(&judge.judge(&rules(), &slow, now(1), false)), []);
    let told = judge.judge(&rules(), &slow, now(2), false);
    assert_eq!((reasons(&told), told.problems[0].severity), (vec![Reason::HealthCheckFailed], Some(Severity::Sev3)));
    assert!(told.problems[0].summary.contains("answers well but slowly: 2.5 s"), "{told:?}");
    assert!(judge.judge(&rules(), &answer(200, ""), now(3), false).problems.is_empty());
}

#[test]
fn certificates_run_out() {
    for (days, expected) in
        [(15, None), (13, Some("runs out on 2026-12-01 11:06 UTC")), (-2, Some("ran out on 2026-11-16 11:06 UTC"))]
    {
        let at = |days: i64| Timestamp::from_unix_ms(now(0).wall.unix_ms() + days * DAY_MS);
        let certificate = Certificate {
            not_before: at(-90),
            not_after: at(days),
            subject: "CN=spl".to_owned(),
            issuer: "CN=ca".to_owned(),
        };
        let reading = Reading { certificate: Some(certificate), ..answer(200, "") };
        let told = HealthJudge::default().judge(&rules(), &reading, now(1), false);
        let problem = told.problems.first();
        assert_eq!(problem.map(|problem| problem.reason), expected.map(|_| Reason::CertificateExpiring));
        let summary = problem.map(|problem| problem.summary.clone()).unwrap_or_default();
        assert!(summary.contains(expected.unwrap_or_default()), "{summary}");
        let severity = problem.and_then(|problem| problem.severity);
        assert_eq!(severity, (days < 0).then_some(Severity::Sev2));
    }
}

#[test]
fn what_could_not_be_tried_is_unknown() {
    let outcome = Outcome::NotTried { why: "the ca file is missing".to_owned(), way_out: None };
    let told = HealthJudge::default().judge(&rules(), &Reading { outcome, certificate: None }, now(1), true);
    assert!(told.problems.is_empty() && told.unknown.is_some());
}
