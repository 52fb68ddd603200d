//! A page as a mail: headers, body, and what holds the mails of one incident together.
//!
//! Every mail about an incident refers to the same first message id, so that mail programs show one thread; a page that
//! is sent twice has the same id twice. No header is made of text that could end it: line breaks and other control
//! characters are replaced before, and what is not ASCII is encoded.

use super::runbook;
use super::{is_test, steers};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use muster_common::limits::clip;
use muster_coordinator_core::page::{Page, PageAction, PageId};
use std::fmt::Write;

/// Longest subject, in bytes before it is encoded.
const SUBJECT_BYTES_MAX: usize = 200;
/// Bytes of one encoded word: its whole line stays below 76.
const WORD_BYTES_MAX: usize = 36;
/// Characters of a line of the encoded body.
const LINE_CHARS: usize = 76;
/// Longest body, before it is encoded.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Lines of one list.
const LINES_MAX: usize = 50;

/// The whole message, lines ended by CRLF; `link` leads to the runbook.
pub fn message(
    fleet: &str,
    (from, to): (&str, &[String]),
    id: PageId,
    page: &Page,
    link: Option<&str>,
    now: Timestamp,
) -> String {
    let domain = from.rsplit_once('@').map_or("localhost", |(_, domain)| domain);
    let thread = format!("{}.{}@{domain}", id_part(&page.incident), id_part(fleet));
    let own = match is_test(id) {
        true => format!("test-{}.{thread}", now.as_millisecond()),
        false => format!("page-{}.{thread}", id.0),
    };
    let date = jiff::fmt::rfc2822::to_string(&now.to_zoned(jiff::tz::TimeZone::UTC)).unwrap_or_default();
    let mut text = String::new();
    let mut header = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        write!(text, "{name}: {value}\r\n").ok();
    };
    header("From", &format!("Muster <{from}>"));
    // A line each: 32 of them in one would be longer than a mail's line may be.
    header("To", &to.join(",\r\n "));
    header("Subject", &encoded(&subject(page)));
    header("Date", &date);
    header("Message-ID", &format!("<{own}>"));
    header("In-Reply-To", &format!("<{thread}>"));
    header("References", &format!("<{thread}>"));
    header("Auto-Submitted", "auto-generated");
    header("X-Muster-Page", &id.0.to_string());
    header("MIME-Version", "1.0");
    header("Content-Type", "text/plain; charset=utf-8");
    header("Content-Transfer-Encoding", "base64");
    text.push_str("\r\n");
    let body = STANDARD.encode(clip(&body(fleet, id, page, link), BODY_BYTES_MAX));
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE_CHARS));
        text.push_str(line);
        text.push_str("\r\n");
        rest = after;
    }
    text
}

/// A server's name or address.
pub fn parse_host(text: &str) -> Result<String, String> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(sound) {
        return Err("expected the name or the address of a mail server, without a port".to_owned());
    }
    Ok(text.to_owned())
}

/// An address that needs no quoting anywhere.
pub fn parse_address(text: &str) -> Result<String, String> {
    let expected = || Err("expected a mail address such as \"ops@example.com\"".to_owned());
    let Some((local, domain)) = text.rsplit_once('@') else { return expected() };
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b".!#$%&'*+-/=?^_`{|}~".contains(&byte);
    let of_domain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let local_sound = !local.is_empty() && local.len() <= 64 && local.bytes().all(sound);
    if local_sound && !domain.is_empty() && domain.len() <= 253 && domain.bytes().all(of_domain) {
        return Ok(text.to_owned());
    }
    expected()
}

fn subject(page: &Page) -> String {
    let what = match page.action {
        PageAction::Trigger => format!("[{}]", page.severity),
        PageAction::Acknowledge => "acknowledged:".to_owned(),
        PageAction::Resolve => "resolved:".to_owned(),
    };
    clip(&format!("{what} {} ({})", page.title.trim(), page.incident), SUBJECT_BYTES_MAX)
}

/// What may stand in a message id.
fn id_part(text: &str) -> String {
    let sound = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    clip(text, 64).chars().map(sound).collect()
}

/// A header's value: as it is where that is plain text, in encoded words (RFC 2047) where it is not.
fn encoded(text: &str) -> String {
    let clean: String = text.chars().map(|letter| if steers(letter) { ' ' } else { letter }).collect();
    if clean.is_ascii() && !clean.contains("=?") && clean.len() <= LINE_CHARS {
        return clean;
    }
    let mut words = Vec::new();
    let mut word = String::new();
    for letter in clean.chars() {
        if word.len() + letter.len_utf8() > WORD_BYTES_MAX {
            words.push(std::mem::take(&mut word));
        }
        word.push(letter);
    }
    words.push(word);
    let words: Vec<String> = words.iter().map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word))).collect();
    words.join("\r\n ")
}

fn body(fleet: &str, id: PageId, page: &Page, link: Option<&str>) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(&page.title);
    line("");
    line(&page.why);
    for (name, items) in [("Seen:", &page.details), ("What to do:", &page.next_steps)] {
        if !items.is_empty() && page.action == PageAction::Trigger {
            line("");
            line(name);
            items.iter().take(LINES_MAX).for_each(|item| line(&format!("  {item}")));
        }
    }
    line("");
    line(&format!("Incident:  {} ({}, {}, {})", page.incident, page.severity, page.reason, page.grade.as_str()));
    line(&format!("Fleet:     {fleet}"));
    line(&format!("Hosts:     {} ({})", page.n_agents, page.agents.join(", ")));
    if !page.services.is_empty() {
        line(&format!("Services:  {}", page.services.join(", ")));
    }
    line(&format!("Began:     {}", page.began));
    if let Some(late) = page.late_by_ms {
        let late = muster_common::units::human_duration(std::time::Duration::from_millis(late));
        line(&format!("Late by:   {late}"));
    }
    line(&format!("Runbook:   {}", runbook::command(page.reason)));
    if let Some(link) = link {
        line(&format!("           {link}"));
    }
    line(&format!("Page:      {} ({})", id.0, page.action.as_str()));
    // What hosts wrote must not steer a terminal that shows the mail.
    text.chars().map(|letter| if steers(letter) && letter != '\n' { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::receiver::tests::page;
    use proptest::prelude::*;

    const LINK: &str = "https://wiki.example/process_down";

    fn mail(id: u64, page: &Page) -> String {
        let to = ["ops@example.com".to_owned(), "me@example.com".to_owned()];
        message(
            "prod",
            ("muster@example.com", &to),
            PageId(id),
            page,
            Some(LINK),
            "2026-11-21T02:00:00Z".parse().unwrap(),
        )
    }

    fn header<'a>(mail: &'a str, name: &str) -> &'a str {
        let head = mail.split_once("\r\n\r\n").unwrap().0;
        let line = head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("no {name} in {head}"))
    }

    #[test]
    fn one_incident_is_one_thread() {
        let trigger = mail(17, &page(PageAction::Trigger, "abc"));
        let resolve = mail(23, &page(PageAction::Resolve, "def"));
        assert_eq!(header(&trigger, "References"), header(&resolve, "References"));
        assert_eq!(header(&trigger, "Message-ID"), "<page-17.INC-20261121-0001.prod@example.com>");
        assert_eq!(header(&trigger, "Subject"), "[sev2] spl on web-1 is down (INC-20261121-0001)");
        assert_eq!(header(&resolve, "Subject"), "resolved: spl on web-1 is down (INC-20261121-0001)");
        assert!(trigger.contains("\r\nTo: ops@example.com,\r\n me@example.com\r\n"), "{trigger}");
        assert_eq!(header(&trigger, "Date"), "Sat, 21 Nov 2026 02:00:00 +0000");
        assert_eq!(mail(17, &page(PageAction::Trigger, "abc")), trigger, "sent twice, it is the same mail");
        let body = trigger.split_once("\r\n\r\n").unwrap().1.replace("\r\n", "");
        let body = String::from_utf8(STANDARD.decode(body).unwrap()).unwrap();
        assert!(body.contains("What to do:\n  systemctl status spl\n") && body.contains("Page:      17 (trigger)"));
        let runbook = format!("Runbook:   musterctl runbook process_down\n           {LINK}\n");
        assert!(body.contains(&runbook), "{body}");
    }

    #[test]
    fn as_many_and_as_long_addresses_as_a_config_may_have_are_lines_of_a_mail() {
        let to = vec![format!("{}@{}.example", "a".repeat(64), "b".repeat(180)); 32];
        let now = "2026-11-21T02:00:00Z".parse().unwrap();
        let mail =
            message("prod", ("muster@example.com", &to), PageId(1), &page(PageAction::Trigger, "abc"), None, now);
        let longest = mail.split("\r\n").map(str::len).max().unwrap();
        assert!(longest <= 998, "{longest}");
        assert_eq!(mail.matches("@bbb").count(), 32);
    }

    #[test]
    fn addresses_are_plain() {
        assert!(parse_address("a.b+c@ex-1.org").is_ok() && parse_host("::1").is_ok());
        for bad in ["", "a", "@b", "a@", "a b@c", "a@b\r\nBcc: x@y", "\"a\"@b", "a@b>", "a@b,c@d", "ä@b"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
        assert!(parse_host("mx.example:25\r\n").is_err() && parse_host("").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_header(title in "\\PC{0,300}|[\r\n:a-zBc ]{0,300}|(\r\n\r\nBcc: x@y.z){1,9}") {
            let mut hostile = page(PageAction::Trigger, "abc");
            hostile.title = title;
            let mail = mail(17, &hostile);
            let (head, body) = mail.split_once("\r\n\r\n").unwrap();
            let names: Vec<_> = head.split("\r\n").filter(|line| !line.starts_with(' ')).map(|line| line.split(": ").next().unwrap()).collect();
            prop_assert_eq!(names, ["From", "To", "Subject", "Date", "Message-ID", "In-Reply-To", "References",
                "Auto-Submitted", "X-Muster-Page", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"]);
            prop_assert!(mail.is_ascii());
            prop_assert!(mail.split("\r\n").all(|line| line.len() <= 998 && !line.contains(['\r', '\n']) && line != "."));
            // Base64 alone: it may spell "Bcc" by chance, but a header needs a colon.
            prop_assert!(body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=\r\n".contains(&byte)));
        }
    }
}
