//! The generic webhook: one JSON object per page, by POST.
//!
//! | field | what |
//! |---|---|
//! | `schema` | 1; rises when a field changes its meaning. Fields are added without notice |
//! | `page_id` | number of the page within this fleet; the same number again is the same page again |
//! | `action` | `trigger`, `acknowledge` or `resolve` |
//! | `dedup_key` | what belongs together: one incident, until it pages anew |
//! | `fleet`, `incident`, `cause_key` | which |
//! | `severity`, `reason`, `grade` | `sev0` … `sev4`; reason code; `confirmed`, `likely` or `possible` |
//! | `title`, `why`, `details`, `next_steps` | for people: one sentence, the rule, what was seen, what to do |
//! | `agents`, `n_agents`, `services` | hosts (the first ones), how many in all, services |
//! | `began`, `requested` | RFC 3339, UTC |
//! | `late_by_ms` | how late the coordinator heard of it; null when it was told at once |
//! | `runbook`, `runbook_url` | the command that shows the runbook; its address, null where `[runbooks]` names none |
//! | `test` | true when a person tries whether pages arrive; nobody needs to act |
//!
//! With signing keys, each call carries its time and signatures ([`super::signature`]).

use super::{is_test, runbook};
use hyper::body::Bytes;
use muster_coordinator_core::page::{Page, PageId};
use serde::Serialize;

/// Version of the object.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Message<'a> {
    schema: u32,
    page_id: u64,
    action: &'static str,
    dedup_key: &'a str,
    fleet: &'a str,
    incident: &'a str,
    cause_key: &'a str,
    severity: &'static str,
    reason: &'static str,
    grade: &'static str,
    title: &'a str,
    why: &'a str,
    details: &'a [String],
    next_steps: &'a [String],
    agents: &'a [String],
    n_agents: u64,
    services: &'a [String],
    began: String,
    requested: String,
    late_by_ms: Option<u64>,
    runbook: String,
    runbook_url: Option<&'a str>,
    test: bool,
}

/// The request's body; `link` leads to the runbook.
pub fn body(fleet: &str, id: PageId, page: &Page, link: Option<&str>) -> Bytes {
    let message = Message {
        schema: SCHEMA,
        page_id: id.0,
        action: page.action.as_str(),
        dedup_key: &page.dedup_key,
        fleet,
        incident: &page.incident,
        cause_key: &page.cause_key,
        severity: page.severity.as_str(),
        reason: page.reason.as_str(),
        grade: page.grade.as_str(),
        title: &page.title,
        why: &page.why,
        details: &page.details,
        next_steps: &page.next_steps,
        agents: &page.agents,
        n_agents: page.n_agents,
        services: &page.services,
        began: page.began.to_string(),
        requested: page.requested.to_string(),
        late_by_ms: page.late_by_ms,
        runbook: runbook::command(page.reason),
        runbook_url: link,
        test: is_test(id),
    };
    // Strings and numbers only: serializing them into memory cannot fail. If it ever did, an empty body would be
    // refused by the receiver and the refusal journaled.
    Bytes::from(serde_json::to_vec(&message).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::receiver::tests::page;
    use muster_coordinator_core::page::PageAction;

    #[test]
    fn the_object_is_as_documented() {
        let page = page(PageAction::Trigger, "abc");
        let text = |link| String::from_utf8(body("prod", PageId(17), &page, link).to_vec()).unwrap();
        assert_eq!(
            text(None),
            concat!(
                r#"{"schema":1,"page_id":17,"action":"trigger","dedup_key":"abc","fleet":"prod","#,
                r#""incident":"INC-20261121-0001","cause_key":"host/web-1/service/spl","severity":"sev2","#,
                r#""reason":"process_down","grade":"confirmed","title":"spl on web-1 is down","#,
                r#""why":"process_down for 10 s (hold of sev2: 10 s)","details":["pid 42 ended at 03:04:05"],"#,
                r#""next_steps":["systemctl status spl"],"agents":["web-1"],"n_agents":1,"services":["spl"],"#,
                r#""began":"2026-11-21T01:44:05.678Z","requested":"2026-11-21T01:44:15.678Z","late_by_ms":null,"#,
                r#""runbook":"musterctl runbook process_down","runbook_url":null,"test":false}"#
            )
        );
        let linked = text(Some("https://wiki.example/process_down"));
        assert!(linked.ends_with(r#","runbook_url":"https://wiki.example/process_down","test":false}"#), "{linked}");
    }
}
