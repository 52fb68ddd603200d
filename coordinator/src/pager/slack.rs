//! Slack's incoming webhook: one message per page, in blocks, within their bounds.
//!
//! What strangers wrote is text: `&`, `<` and `>` are escaped, so that nobody can mention `<!channel>` or forge a link.

use super::{is_test, runbook, steers};
use hyper::body::Bytes;
use muster_common::limits::clip;
use muster_coordinator_core::page::{Page, PageAction, PageId};
use serde_json::{Value, json};

/// Longest header block and longest section, in characters after escaping; both below Slack's 150 and 3,000.
const HEADER_CHARS_MAX: usize = 140;
const SECTION_CHARS_MAX: usize = 2_900;
/// Longest text of a notification.
const TEXT_CHARS_MAX: usize = 2_900;
/// Lines of one list.
const LINES_MAX: usize = 10;
const LINE_BYTES_MAX: usize = 300;

/// The request's body; `link` leads to the runbook.
pub fn body(fleet: &str, id: PageId, page: &Page, link: Option<&str>) -> Bytes {
    let head = heading(page);
    let mut blocks = vec![json!({
        "type": "header",
        "text": { "type": "plain_text", "text": chars(&head, HEADER_CHARS_MAX), "emoji": false },
    })];
    blocks.push(section(&format!("*{}*\n{}", escaped(&page.title), escaped(&page.why))));
    if page.action == PageAction::Trigger {
        let lists = [("Seen", &page.details), ("What to do", &page.next_steps)];
        let lists = lists.into_iter().filter(|(_, lines)| !lines.is_empty());
        blocks.extend(lists.map(|(name, lines)| section(&list(name, lines))));
    }
    let hosts = match page.n_agents {
        0 => "no host".to_owned(),
        1 => page.agents.first().cloned().unwrap_or_default(),
        n => format!("{n} hosts"),
    };
    let test = if is_test(id) { " · test" } else { "" };
    let runbook = match link {
        // Checked when the config was read: it holds nothing that would end the link.
        Some(link) => format!("<{}|runbook {}>", escaped(link), page.reason),
        None => runbook::command(page.reason),
    };
    let context =
        format!("fleet {} · {} · {} · {runbook} · page {}{test}", escaped(fleet), escaped(&hosts), page.incident, id.0);
    blocks.push(
        json!({ "type": "context", "elements": [{ "type": "mrkdwn", "text": chars(&context, SECTION_CHARS_MAX) }] }),
    );
    let text = chars(&format!("{}: {}", escaped(&head), escaped(&page.title)), TEXT_CHARS_MAX);
    let message: Value = json!({ "text": text, "blocks": blocks });
    Bytes::from(serde_json::to_vec(&message).unwrap_or_default())
}

fn heading(page: &Page) -> String {
    match page.action {
        PageAction::Trigger => format!("[{}] {}", page.severity, page.incident),
        PageAction::Acknowledge => format!("acknowledged: {}", page.incident),
        PageAction::Resolve => format!("resolved: {}", page.incident),
    }
}

fn list(name: &str, lines: &[String]) -> String {
    let shown = lines.iter().take(LINES_MAX).map(|line| format!("• {}", escaped(&clip(line, LINE_BYTES_MAX))));
    let more = lines.len().saturating_sub(LINES_MAX);
    let more = (more > 0).then(|| format!("… and {more} more"));
    let lines: Vec<String> = shown.chain(more).collect();
    format!("*{name}*\n{}", lines.join("\n"))
}

fn section(text: &str) -> Value {
    json!({ "type": "section", "text": { "type": "mrkdwn", "text": chars(text, SECTION_CHARS_MAX) } })
}

/// As Slack wants it; and characters that would hide or turn text are gone.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\n' => out.push('\n'),
            letter if steers(letter) => out.push(' '),
            letter => out.push(letter),
        }
    }
    out
}

/// At most `max` characters; never a part of an escape.
fn chars(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let cut: String = text.chars().take(max.saturating_sub(1)).collect();
    let whole = match cut.rfind('&') {
        Some(at) if !cut.get(at..).unwrap_or_default().contains(';') => cut.get(..at).unwrap_or_default(),
        _ => cut.as_str(),
    };
    format!("{whole}…")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::receiver::tests::page;
    use proptest::prelude::*;

    fn message(page: &Page) -> Value {
        serde_json::from_slice(&body("prod", PageId(17), page, None)).unwrap()
    }

    #[test]
    fn a_trigger_says_what_and_what_to_do() {
        let message = message(&page(PageAction::Trigger, "abc"));
        assert_eq!(message["text"], "[sev2] INC-20261121-0001: spl on web-1 is down");
        let blocks = message["blocks"].as_array().unwrap();
        assert_eq!(blocks[0]["text"]["text"], "[sev2] INC-20261121-0001");
        assert_eq!(blocks[3]["text"]["text"], "*What to do*\n• systemctl status spl");
        let context = blocks[4]["elements"][0]["text"].as_str().unwrap();
        assert!(context.ends_with("musterctl runbook process_down · page 17"), "{context}");
        let link = "https://wiki.example/process_down?a=1&b=2";
        let linked = body("prod", PageId(17), &page(PageAction::Trigger, "abc"), Some(link));
        let linked: Value = serde_json::from_slice(&linked).unwrap();
        let context = linked["blocks"][4]["elements"][0]["text"].as_str().unwrap();
        let expected = " · <https://wiki.example/process_down?a=1&amp;b=2|runbook process_down> · page 17";
        assert!(context.ends_with(expected), "{context}");
    }

    /// What became of a page is told in the channel as well: by whom, or why it is over, and nothing to do any more.
    #[test]
    fn an_acknowledgement_and_a_resolve_say_so_and_ask_for_nothing() {
        for (action, word, why) in [
            (PageAction::Acknowledge, "acknowledged", "ann acknowledged it"),
            (PageAction::Resolve, "resolved", "resolved: evidence of health held for 15 min"),
        ] {
            let page = Page { why: why.to_owned(), ..page(action, "abc") };
            let head = format!("{word}: INC-20261121-0001");
            let context = "fleet prod · web-1 · INC-20261121-0001 · musterctl runbook process_down · page 17";
            let section = format!("*spl on web-1 is down*\n{why}");
            let expected = json!({
                "text": format!("{head}: spl on web-1 is down"),
                "blocks": [
                    { "type": "header", "text": { "type": "plain_text", "text": head, "emoji": false } },
                    { "type": "section", "text": { "type": "mrkdwn", "text": section } },
                    { "type": "context", "elements": [{ "type": "mrkdwn", "text": context }] },
                ],
            });
            assert_eq!(message(&page), expected);
        }
    }

    #[test]
    fn nobody_is_mentioned_by_what_a_host_wrote() {
        let mut hostile = page(PageAction::Trigger, "abc");
        hostile.title = "<!channel> & <https://evil|click>\u{1b}[31m \u{202e}backwards".to_owned();
        let text = message(&hostile).to_string();
        assert!(text.contains("  backwards"), "{text}");
        assert!(!text.contains("<!") && !text.contains("<https") && !text.contains("\\u001b"), "{text}");
        assert!(text.contains("&lt;!channel&gt; &amp; &lt;https://evil|click&gt;"), "{text}");
    }

    proptest! {
        #[test]
        fn bounds_hold_for_any_page(title in "\\PC{0,40}|[<>&]{0,2000}", lines in proptest::collection::vec("[<&x]{0,900}", 0..30)) {
            let mut worst = page(PageAction::Trigger, "abc");
            worst.title = title.repeat(60);
            worst.details = lines.clone();
            worst.next_steps = lines;
            let message = message(&worst);
            prop_assert!(message["text"].as_str().unwrap().chars().count() <= 3_000);
            let blocks = message["blocks"].as_array().unwrap();
            prop_assert!(blocks.len() <= 50);
            for block in blocks {
                let text = block["text"]["text"].as_str().unwrap_or_default();
                let max = if block["type"] == "header" { 150 } else { 3_000 };
                prop_assert!(text.chars().count() <= max);
                let escapes = text.matches("&amp;").count() + text.matches("&lt;").count() + text.matches("&gt;").count();
                prop_assert_eq!(text.matches('&').count(), escapes, "no half of an escape");
            }
        }
    }
}
