//! Prometheus Alertmanager, API v2: `POST /api/v2/alerts` to every member of the cluster.
//!
//! An Alertmanager knows an alert by its labels, so they are made of what an incident keeps: its reason and severity
//! are told anew when they change, and the alert they replace is ended in the same call. A firing alert says until when
//! it stands; [`super::refresh`] tells it again well before. Whoever stops telling lets it end by itself.
//!
//! An acknowledgement is an annotation: the Alertmanager has no word for it.

use super::runbook::{self, RunbookUrl};
use super::{Pending, is_test};
use hyper::Uri;
use hyper::body::Bytes;
use jiff::Timestamp;
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::page::{Page, PageAction, PageId};
use muster_coordinator_core::routing::{host_of_cause, service_of_cause};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Labels that Muster sets.
pub const OWN_LABELS: &[&str] =
    &["alertname", "severity", "muster_severity", "fleet", "incident", "dedup_key", "host", "service"];
/// Longest label value and annotation.
const VALUE_BYTES_MAX: usize = 1024;
const ANNOTATION_BYTES_MAX: usize = 4096;

/// One alert, as the API takes it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Alert {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<&'static str, String>,
    starts_at: String,
    ends_at: String,
}

/// True for what may be a label's name.
pub fn is_label_name(name: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = name.bytes().next();
    !name.starts_with("__") && first.is_some_and(|byte| !byte.is_ascii_digit()) && name.bytes().all(sound)
}

/// Where a member of the cluster takes alerts.
pub fn alerts_url(base: &Uri) -> Uri {
    let path = format!("{}/api/v2/alerts", base.path().trim_end_matches('/'));
    let scheme = base.scheme_str().unwrap_or("http");
    let authority = base.authority().map_or("", |authority| authority.as_str());
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().unwrap_or_else(|_| base.clone())
}

/// What an alert of this receiver is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) fleet: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) valid_for: Duration,
    pub(super) now: Timestamp,
    pub(super) runbooks: Option<&'a RunbookUrl>,
}

/// The body that tells of `page`: what it replaces has ended, and what it is about stands or has ended as well.
pub(super) fn body(frame: Frame<'_>, pending: &Pending) -> Bytes {
    let Pending { id, page, told_before, calls, acknowledged, .. } = pending;
    let mut alerts: Vec<Alert> = Vec::new();
    for (severity, reason) in told_before {
        if (*severity, *reason) != (page.severity, page.reason) {
            let before = Page { severity: *severity, reason: *reason, ..page.clone() };
            alerts.push(alert(frame, Some(*id), &before, "", true));
        }
    }
    let (over, acknowledged) = match page.action {
        PageAction::Resolve => (true, ""),
        PageAction::Acknowledge => (false, page.why.as_str()),
        PageAction::Trigger => (false, acknowledged.as_str()),
    };
    // Annotations that are not told again are gone, and what to do is not over when somebody does it.
    let calls = calls.as_deref().filter(|_| page.action == PageAction::Acknowledge);
    let shown = calls.map(|calls| Page { severity: page.severity, reason: page.reason, ..calls.clone() });
    alerts.push(alert(frame, Some(*id), shown.as_ref().unwrap_or(page), acknowledged, over));
    render(&alerts)
}

/// The body that tells of many at once. Alerts are strings: they always serialize; an empty body would be refused.
pub(super) fn render(alerts: &[Alert]) -> Bytes {
    Bytes::from(serde_json::to_vec(alerts).unwrap_or_default())
}

/// One alert.
pub(super) fn alert(frame: Frame<'_>, id: Option<PageId>, page: &Page, acknowledged: &str, over: bool) -> Alert {
    let now_ms = frame.now.as_millisecond();
    let valid_ms = i64::try_from(frame.valid_for.as_millis()).unwrap_or(i64::MAX);
    let ends_ms = if over { now_ms } else { now_ms.saturating_add(valid_ms) };
    // An alert that ends before it began is refused; the clocks of two coordinators may differ.
    let began = page.began.to_string().parse::<Timestamp>().map_or(now_ms, |began| began.as_millisecond());
    let began_ms = began.min(now_ms.saturating_sub(1));
    Alert {
        labels: labels(frame, page),
        annotations: annotations(frame, id, page, acknowledged),
        starts_at: rfc3339(began_ms, frame.now),
        ends_at: rfc3339(ends_ms, frame.now),
    }
}

/// The body of an alert that always stands while somebody is alive to tell of it.
pub(super) fn watchdog(frame: Frame<'_>, valid_for: Duration, from: &str) -> Bytes {
    let now_ms = frame.now.as_millisecond();
    let valid_ms = i64::try_from(valid_for.as_millis()).unwrap_or(i64::MAX);
    let mut labels = frame.labels.clone();
    for (name, value) in [("alertname", "Watchdog"), ("severity", "none"), ("fleet", frame.fleet)] {
        labels.insert(name.to_owned(), value.to_owned());
    }
    let summary = format!("always firing while Muster's coordinator is alive; told last by {from}");
    render(&[Alert {
        labels,
        annotations: BTreeMap::from([("summary", clip(&summary, ANNOTATION_BYTES_MAX))]),
        starts_at: rfc3339(now_ms.saturating_sub(1), frame.now),
        ends_at: rfc3339(now_ms.saturating_add(valid_ms), frame.now),
    }])
}

fn rfc3339(ms: i64, otherwise: Timestamp) -> String {
    Timestamp::from_millisecond(ms).unwrap_or(otherwise).to_string()
}

fn labels(frame: Frame<'_>, page: &Page) -> BTreeMap<String, String> {
    let mut labels = frame.labels.clone();
    let mut set = |name: &str, value: &str| {
        // An empty label is none.
        if !value.is_empty() {
            labels.insert(name.to_owned(), clip(value, VALUE_BYTES_MAX));
        }
    };
    set("alertname", page.reason.as_str());
    set("severity", word(page.severity));
    set("muster_severity", page.severity.as_str());
    set("fleet", frame.fleet);
    set("incident", &page.incident);
    set("dedup_key", &page.dedup_key);
    set("host", host_of_cause(&page.cause_key).unwrap_or_default());
    set("service", service_of_cause(&page.cause_key).unwrap_or_default());
    labels
}

/// The words that alerting rules usually use.
const fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Sev0 | Severity::Sev1 => "critical",
        Severity::Sev2 | Severity::Sev3 => "warning",
        Severity::Sev4 => "info",
    }
}

fn annotations(
    frame: Frame<'_>,
    id: Option<PageId>,
    page: &Page,
    acknowledged: &str,
) -> BTreeMap<&'static str, String> {
    let mut annotations = BTreeMap::new();
    let mut set = |name: &'static str, value: String| {
        if !value.is_empty() {
            annotations.insert(name, clip(&value, ANNOTATION_BYTES_MAX));
        }
    };
    set("summary", page.title.clone());
    set("description", page.why.clone());
    set("details", page.details.join("\n"));
    set("next_steps", page.next_steps.join("\n"));
    set("hosts", format!("{} ({})", page.n_agents, page.agents.join(", ")));
    set("services", page.services.join(", "));
    set("grade", page.grade.as_str().to_owned());
    set("cause_key", page.cause_key.clone());
    set("runbook", runbook::command(page.reason));
    // The name that dashboards and notification templates look for.
    set("runbook_url", frame.runbooks.map(|url| url.of(page.reason)).unwrap_or_default());
    set("acknowledged", acknowledged.to_owned());
    if let Some(id) = id {
        set("page_id", id.0.to_string());
        set("test", if is_test(id) { "true".to_owned() } else { String::new() });
    }
    annotations
}

/// What was told under one key before, newest last and each once: alerts that may still stand.
pub fn distinct(told: impl Iterator<Item = (Severity, Reason)>) -> Vec<(Severity, Reason)> {
    let mut found = Vec::new();
    for one in told {
        found.retain(|known| *known != one);
        found.push(one);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::receiver::tests::page;
    use serde_json::Value;

    fn told(action: PageAction, before: Vec<(Severity, Reason)>) -> Vec<Value> {
        let labels = BTreeMap::from([("team".to_owned(), "db".to_owned())]);
        let now = "2026-11-21T02:00:00Z".parse().unwrap();
        let runbooks = RunbookUrl::parse("https://wiki.example/{reason}").unwrap();
        let runbooks = Some(&runbooks);
        let frame = Frame { fleet: "prod", labels: &labels, valid_for: Duration::from_secs(900), now, runbooks };
        let pending = Pending { told_before: before, ..Pending::new(PageId(17), page(action, "abc")) };
        serde_json::from_slice(&body(frame, &pending)).unwrap()
    }

    #[test]
    fn a_trigger_stands_for_a_while() {
        let alerts = told(PageAction::Trigger, Vec::new());
        assert_eq!(alerts.len(), 1);
        let (labels, annotations) = (&alerts[0]["labels"], &alerts[0]["annotations"]);
        assert_eq!((&labels["alertname"], &labels["severity"]), (&"process_down".into(), &"warning".into()));
        assert_eq!((&labels["host"], &labels["service"]), (&"web-1".into(), &"spl".into()));
        assert_eq!((&labels["team"], &labels["dedup_key"]), (&"db".into(), &"abc".into()));
        assert_eq!((&annotations["page_id"], &annotations["hosts"]), (&"17".into(), &"1 (web-1)".into()));
        assert_eq!(annotations["runbook"], "musterctl runbook process_down");
        assert_eq!(annotations["runbook_url"], "https://wiki.example/process_down");
        assert_eq!(alerts[0]["startsAt"], "2026-11-21T01:44:05.678Z");
        assert_eq!(alerts[0]["endsAt"], "2026-11-21T02:15:00Z");
    }

    #[test]
    fn what_it_replaces_ends_and_so_does_what_is_resolved() {
        let before = vec![(Severity::Sev3, Reason::PortClosed), (Severity::Sev2, Reason::ProcessDown)];
        let alerts = told(PageAction::Trigger, before.clone());
        let ends: Vec<_> = alerts.iter().map(|alert| (&alert["labels"]["alertname"], &alert["endsAt"])).collect();
        assert_eq!(ends[0], (&"port_closed".into(), &"2026-11-21T02:00:00Z".into()));
        assert_eq!(ends[1], (&"process_down".into(), &"2026-11-21T02:15:00Z".into()));
        let alerts = told(PageAction::Resolve, before);
        assert!(alerts.len() == 2 && alerts.iter().all(|alert| alert["endsAt"] == "2026-11-21T02:00:00Z"));
    }

    #[test]
    fn an_acknowledgement_is_an_annotation_and_takes_nothing_away() {
        let acknowledgement = Page {
            why: "ada acknowledged it".to_owned(),
            details: Vec::new(),
            next_steps: Vec::new(),
            services: Vec::new(),
            ..page(PageAction::Acknowledge, "abc")
        };
        let calls = Some(Box::new(page(PageAction::Trigger, "abc")));
        let pending = Pending { calls, ..Pending::new(PageId(18), acknowledgement) };
        let labels = BTreeMap::new();
        let now = "2026-11-21T02:00:00Z".parse().unwrap();
        let frame = Frame { fleet: "prod", labels: &labels, valid_for: Duration::from_secs(900), now, runbooks: None };
        let alerts: Vec<Value> = serde_json::from_slice(&body(frame, &pending)).unwrap();
        let annotations = &alerts[0]["annotations"];
        assert_eq!(alerts.len(), 1);
        assert_eq!(annotations["acknowledged"], "ada acknowledged it");
        assert_eq!(annotations["next_steps"], "systemctl status spl");
        assert_eq!(annotations["details"], "pid 42 ended at 03:04:05");
        assert_eq!(annotations["description"], "process_down for 10 s (hold of sev2: 10 s)");
        let told_again = Pending {
            acknowledged: "ada acknowledged it".to_owned(),
            ..Pending::new(PageId(19), page(PageAction::Trigger, "abc"))
        };
        let alerts: Vec<Value> = serde_json::from_slice(&body(frame, &told_again)).unwrap();
        assert_eq!(alerts[0]["annotations"]["acknowledged"], "ada acknowledged it", "also when it is told anew");
    }

    #[test]
    fn an_incident_that_began_in_the_future_does_not_end_before_it_begins() {
        let mut future = page(PageAction::Resolve, "abc");
        future.began = future.began + Duration::from_secs(86_400);
        let (now, labels) = ("2026-11-21T02:00:00Z".parse().unwrap(), BTreeMap::new());
        let frame = Frame { fleet: "prod", labels: &labels, valid_for: Duration::from_secs(900), now, runbooks: None };
        let alert = alert(frame, None, &future, "", true);
        assert!(alert.starts_at < alert.ends_at, "{alert:?}");
    }

    #[test]
    fn names_and_urls() {
        assert!(is_label_name("team_1") && is_label_name("_x"));
        for bad in ["", "1a", "a-b", "__name", "ä", "a b"] {
            assert!(!is_label_name(bad), "{bad}");
        }
        for (base, url) in [
            ("http://am:9093", "http://am:9093/api/v2/alerts"),
            ("https://am/prefix/", "https://am/prefix/api/v2/alerts"),
        ] {
            assert_eq!(alerts_url(&base.parse().unwrap()).to_string(), url);
        }
    }
}
