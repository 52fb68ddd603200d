//! PagerDuty Events API v2: the body of a call, within its bounds.
//!
//! Alerts are joined by `dedup_key`: a repeated trigger joins the open alert, so sending at least once is enough.

use super::runbook;
use hyper::body::Bytes;
use muster_common::limits::clip;
use muster_common::severity::Severity;
use muster_coordinator_core::page::{Page, PageAction, PageId};
use serde_json::{Value, json};

/// Longest `payload.summary` that is taken, in characters.
const SUMMARY_CHARS_MAX: usize = 1024;
/// Longest `dedup_key` that is taken.
const DEDUP_KEY_CHARS_MAX: usize = 255;
/// Largest body that is taken.
const BODY_BYTES_MAX: usize = 512 * 1024;
/// Longest single text and longest list that goes into `custom_details`; far below the body's bound together.
const TEXT_BYTES_MAX: usize = 4096;
const ITEMS_MAX: usize = 64;
/// How a text over its bound ends.
const ELLIPSIS: &str = "…";

/// The request's body; `link` leads to the runbook.
pub fn body(routing_key: &str, fleet: &str, id: PageId, page: &Page, link: Option<&str>) -> Bytes {
    let mut event = json!({
        "routing_key": routing_key,
        "event_action": page.action.as_str(),
        "dedup_key": chars(&page.dedup_key, DEDUP_KEY_CHARS_MAX),
    });
    if page.action == PageAction::Trigger {
        event["client"] = json!("muster");
        event["payload"] = payload(fleet, id, page, details(fleet, id, page));
        if let Some(link) = link {
            event["links"] = json!([{ "href": link, "text": format!("Runbook: {}", page.reason) }]);
        }
    }
    let body = serde_json::to_vec(&event).unwrap_or_default();
    if body.len() <= BODY_BYTES_MAX {
        return Bytes::from(body);
    }
    // Cannot happen within the bounds above; if it does, a short page is better than none.
    event["payload"] = payload(fleet, id, page, json!({ "page_id": id.0, "incident": page.incident }));
    Bytes::from(serde_json::to_vec(&event).unwrap_or_default())
}

/// PagerDuty has four severities for our five.
pub const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Sev0 | Severity::Sev1 => "critical",
        Severity::Sev2 => "error",
        Severity::Sev3 => "warning",
        Severity::Sev4 => "info",
    }
}

fn payload(fleet: &str, id: PageId, page: &Page, details: Value) -> Value {
    let mut summary = format!("[{}] {}", page.severity, page.title.trim());
    if let Some(late) = page.late_by_ms {
        let late = muster_common::units::human_duration(std::time::Duration::from_millis(late));
        summary = format!("{} (late by {late})", chars(&summary, SUMMARY_CHARS_MAX - 64));
    }
    // "source" is the affected system; a page about the fleet itself has no single host.
    let source = match page.agents.as_slice() {
        [host] if page.n_agents == 1 => host.clone(),
        _ => format!("fleet {fleet}"),
    };
    let component = page.services.first().map_or("host", String::as_str);
    json!({
        "summary": chars(&summary, SUMMARY_CHARS_MAX),
        "source": clip(&source, TEXT_BYTES_MAX),
        "severity": severity(page.severity),
        "timestamp": page.began.to_string(),
        "component": clip(component, TEXT_BYTES_MAX),
        "group": fleet,
        "class": page.reason.as_str(),
        "custom_details": with_page_id(details, id),
    })
}

fn with_page_id(mut details: Value, id: PageId) -> Value {
    details["page_id"] = json!(id.0);
    details
}

fn details(fleet: &str, id: PageId, page: &Page) -> Value {
    json!({
        "page_id": id.0,
        "fleet": fleet,
        "incident": page.incident,
        "cause_key": clip(&page.cause_key, TEXT_BYTES_MAX),
        "muster_severity": page.severity.as_str(),
        "grade": page.grade.as_str(),
        "why": clip(&page.why, TEXT_BYTES_MAX),
        "details": items(&page.details),
        "next_steps": items(&page.next_steps),
        "agents": items(&page.agents),
        "n_agents": page.n_agents,
        "services": items(&page.services),
        "began": page.began.to_string(),
        "requested": page.requested.to_string(),
        "late_by_ms": page.late_by_ms,
        "runbook": runbook::command(page.reason),
    })
}

fn items(texts: &[String]) -> Vec<String> {
    texts.iter().take(ITEMS_MAX).map(|text| clip(text, TEXT_BYTES_MAX / 4)).collect()
}

/// At most `max` characters, with an ellipsis as the last one when something was cut.
fn chars(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(ELLIPSIS.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::receiver::tests::page;

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const LINK: &str = "https://wiki.example/process_down";

    fn event(page: &Page) -> Value {
        serde_json::from_slice(&body(KEY, "prod", PageId(17), page, Some(LINK))).unwrap()
    }

    #[test]
    fn a_trigger_has_what_the_api_asks_for() {
        let event = event(&page(PageAction::Trigger, "abc"));
        assert_eq!(event["routing_key"], KEY);
        assert_eq!(event["event_action"], "trigger");
        assert_eq!(event["dedup_key"], "abc");
        let payload = &event["payload"];
        assert_eq!(payload["summary"], "[sev2] spl on web-1 is down");
        assert_eq!(payload["source"], "web-1");
        assert_eq!(payload["severity"], "error");
        assert_eq!(payload["timestamp"], "2026-11-21T01:44:05.678Z");
        assert_eq!(payload["component"], "spl");
        assert_eq!(payload["group"], "prod");
        assert_eq!(payload["class"], "process_down");
        assert_eq!(payload["custom_details"]["page_id"], 17);
        assert_eq!(payload["custom_details"]["runbook"], "musterctl runbook process_down");
        assert_eq!(event["links"], json!([{ "href": LINK, "text": "Runbook: process_down" }]));
        let unlinked = body(KEY, "prod", PageId(17), &page(PageAction::Trigger, "abc"), None);
        assert_eq!(serde_json::from_slice::<Value>(&unlinked).unwrap().get("links"), None);
    }

    #[test]
    fn acknowledge_and_resolve_are_the_key_alone() {
        for action in [PageAction::Acknowledge, PageAction::Resolve] {
            let event = event(&page(action, "abc"));
            assert_eq!(event["event_action"], action.as_str());
            assert!(event.get("payload").is_none() && event.get("links").is_none());
        }
    }

    #[test]
    fn bounds_hold_for_the_worst_page() {
        let mut worst = page(PageAction::Trigger, &"k".repeat(400));
        worst.title = "ü".repeat(5000);
        worst.late_by_ms = Some(7_200_000);
        worst.details = vec!["\u{1}".repeat(10_000); 5000];
        worst.agents = vec!["h".repeat(64); 10_000];
        worst.n_agents = 10_000;
        let bytes = body(KEY, "prod", PageId(17), &worst, Some(LINK));
        assert!(bytes.len() <= BODY_BYTES_MAX, "{}", bytes.len());
        let event: Value = serde_json::from_slice(&bytes).unwrap();
        let summary = event["payload"]["summary"].as_str().unwrap();
        assert!(summary.chars().count() <= SUMMARY_CHARS_MAX && summary.ends_with("(late by 2 h)"), "{summary}");
        assert_eq!(event["dedup_key"].as_str().unwrap().chars().count(), DEDUP_KEY_CHARS_MAX);
        assert_eq!(event["payload"]["source"], "fleet prod");
    }

    #[test]
    fn every_severity_maps() {
        let mapped: Vec<_> = Severity::ALL.into_iter().map(severity).collect();
        assert_eq!(mapped, ["critical", "critical", "error", "warning", "info"]);
    }
}
