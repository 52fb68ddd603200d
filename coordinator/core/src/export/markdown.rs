//! A note as Markdown. Whatever is not ours is escaped: it can neither format, nor link, nor break out of its line.

use super::{Line, Note};
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use std::fmt::Write;
use std::time::Duration;

/// Marks of Markdown, of GitHub's and of HTML: a backslash takes each one's meaning.
const MARKS: &str = "\\`*_{}[]()#|~!$^@:=";

/// Renders the note.
pub fn markdown(note: &Note) -> String {
    let mut out = String::new();
    head(&mut out, note);
    impact(&mut out, note);
    section(&mut out, "What led to it", &note.causes, |link| {
        let grade = link.grade.map(|grade| format!(", {grade}")).unwrap_or_default();
        format!("{}{grade}: {}", code(&link.what), text(&link.words))
    });
    section(&mut out, "Top reason codes", &note.reasons, |count| format!("{} × {}", count.count, code(&count.reason)));
    section(&mut out, "What changed shortly before", &note.changes, |change| text(change));
    lines(&mut out, "Timeline", &note.timeline);
    lines(&mut out, "What people did", &note.actions);
    pages(&mut out, note);
    configuration(&mut out, note);
    let traces: Vec<String> = note.traces.iter().map(u64::to_string).collect();
    write(
        &mut out,
        format_args!("\n## Trace ids\n\n{}\n", if traces.is_empty() { "none".to_owned() } else { traces.join(", ") }),
    );
    write(&mut out, format_args!("\n`musterctl trace ID` shows everything that followed from one of them.\n"));
    write(&mut out, format_args!("\n## Follow-ups\n\n"));
    for todo in &note.follow_ups {
        write(&mut out, format_args!("- [ ] {}\n", text(todo)));
    }
    section(&mut out, "What is not known", &note.unknown, |what| text(what));
    out
}

fn write(out: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    out.write_fmt(words).ok();
}

fn head(out: &mut String, note: &Note) {
    write(out, format_args!("# {}: {}\n\n", text(&note.incident), text(&note.title)));
    write(out, format_args!("{}, {}, {} ({})", note.severity, note.state, code(&note.reason), note.grade));
    write(out, format_args!(" in fleet {}; note of {}\n", code(&note.fleet), note.made));
    write(out, format_args!("\n- why: {}\n", text(&note.why)));
    write(out, format_args!("- cause: {}, generation {}\n", code(&note.cause), note.generation));
    let person = |name: &Option<String>| name.as_ref().map_or_else(|| "nobody".to_owned(), |name| text(name));
    write(out, format_args!("- commander: {}\n", person(&note.people.commander)));
    let ended = note.people.acknowledgement_ended.as_ref();
    let ended = ended.map(|at| format!(", until it got much worse at {at}")).unwrap_or_default();
    write(out, format_args!("- acknowledged by: {}{ended}\n", person(&note.people.owner)));
}

fn impact(out: &mut String, note: &Note) {
    let impact = &note.impact;
    let length = |ms: u64| human_duration(Duration::from_millis(ms));
    let maybe = |ms: Option<u64>| ms.map_or_else(|| "never so far".to_owned(), length);
    let shown = impact.hosts.len();
    let more = if impact.n_hosts > shown { format!(" and {} more", impact.n_hosts - shown) } else { String::new() };
    let hosts: Vec<String> = impact.hosts.iter().map(|host| code(host)).collect();
    let services: Vec<String> = impact.services.iter().map(|service| code(service)).collect();
    let none = |list: Vec<String>| if list.is_empty() { "none known".to_owned() } else { list.join(", ") };
    write(out, format_args!("\n## Impact\n\n| what | |\n|---|---|\n"));
    let mut row = |what: &str, value: String| write(out, format_args!("| {what} | {value} |\n"));
    row("hosts", format!("{}: {}{more}", impact.n_hosts, none(hosts)));
    row("services", none(services));
    row("findings and symptoms", impact.n_findings.to_string());
    row("began", impact.began.clone());
    row("opened", impact.opened.clone());
    row("acknowledged", impact.acknowledged.clone().unwrap_or_else(|| "never so far".to_owned()));
    row("resolved", impact.resolved.clone().unwrap_or_else(|| "not yet".to_owned()));
    if let Some(resolution) = &impact.resolution {
        row("how it ended", text(resolution));
    }
    row("lasted", length(impact.lasted_ms));
    if let Some(held_ms) = impact.held_ms {
        row("opening to first page asked for", length(held_ms));
    }
    let told_before = impact.told_before.as_ref().map(|words| text(words));
    row("beginning to first page taken", told_before.unwrap_or_else(|| maybe(impact.until_told_ms)));
    row("opening to acknowledgement", maybe(impact.until_acknowledged_ms));
    row("opening to end", maybe(impact.until_resolved_ms));
    row("pages taken", impact.pages_delivered.to_string());
    row("pages given up", impact.pages_given_up.to_string());
    if let Some(why) = &impact.not_paged {
        row("not paged because", text(why));
    }
    row("came back", format!("{} times", impact.relapses));
    row("not acknowledged in time", format!("{} times", impact.escalations));
}

fn section<T>(out: &mut String, heading: &str, items: &[T], words: impl Fn(&T) -> String) {
    write(out, format_args!("\n## {heading}\n\n"));
    if items.is_empty() {
        write(out, format_args!("Nothing is known.\n"));
    }
    for item in items {
        write(out, format_args!("- {}\n", words(item)));
    }
}

fn lines(out: &mut String, heading: &str, lines: &[Line]) {
    write(out, format_args!("\n## {heading}\n\n"));
    if lines.is_empty() {
        write(out, format_args!("Nothing.\n"));
        return;
    }
    write(out, format_args!("| at | kind | what | entry |\n|---|---|---|---|\n"));
    for line in lines {
        write(out, format_args!("| {} | {} | {} | {} |\n", line.at, line.kind, text(&line.text), line.index));
    }
}

fn pages(out: &mut String, note: &Note) {
    write(out, format_args!("\n## Pages\n\n"));
    if note.pages.is_empty() {
        write(out, format_args!("None is kept.\n"));
        return;
    }
    write(out, format_args!("| at | page | to | what | outcome | why |\n|---|---|---|---|---|---|\n"));
    for page in &note.pages {
        let (receiver, outcome, why) = (text(&page.receiver), text(&page.outcome), text(&page.why));
        write(
            out,
            format_args!("| {} | {} | {receiver} | {} | {outcome} | {why} |\n", page.at, page.page, page.action),
        );
    }
}

fn configuration(out: &mut String, note: &Note) {
    let (policy, at) = (&note.configuration.policy, &note.configuration.as_of);
    let when = if note.configuration.at_opening { "when it was opened" } else { "at present" };
    write(out, format_args!("\n## Configuration\n\nThe policy in force {when} ({at}):\n\n"));
    let mut line = |what: &str, value: String| write(out, format_args!("- {what}: {value}\n"));
    line("rules version", policy.rules_version.to_string());
    let severity: Severity = note.severity.parse().unwrap_or(policy.page_from);
    line("pages go out from", policy.page_from.to_string());
    // It may have had several severities, and the hold of an earlier one may have counted.
    let holds = Severity::ALL.iter().filter(|severity| **severity >= policy.page_from);
    let holds = holds.map(|severity| format!("{severity} {}", human_duration(*policy.hold.get(*severity))));
    line("holds", holds.collect::<Vec<_>>().join(", "));
    line(&format!("stability of {severity}"), human_duration(*policy.stability.get(severity)));
    line(&format!("expected acknowledgement of {severity}"), human_duration(*policy.response.get(severity)));
    let liveness = &policy.liveness;
    line("an agent is stale after", human_duration(liveness.heartbeat * liveness.stale_after));
    let receivers: Vec<String> = policy.receivers.iter().map(|name| code(name)).collect();
    line("receivers", if receivers.is_empty() { "none".to_owned() } else { receivers.join(", ") });
    line("routes", policy.routes.len().to_string());
    for (reason, severity) in &policy.severities {
        line(&format!("severity of {}", code(reason.as_str())), severity.to_string());
    }
}

/// Words of others in a line of Markdown: one line, no mark with a meaning, no letter that is not seen.
pub(super) fn text(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for c in visible(words) {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c if MARKS.contains(c) => out.extend(['\\', c]),
            // A list or a number at the beginning, a link anywhere ("www.").
            '-' | '+' if out.is_empty() => out.extend(['\\', c]),
            '.' if out.ends_with("www") || out.bytes().all(|byte| byte.is_ascii_digit()) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// A name as code. A backtick or a bar would end it: those are shown as others.
fn code(name: &str) -> String {
    let plain: String = visible(name).map(|c| if c == '`' || c == '|' || c == '\\' { '?' } else { c }).collect();
    let plain = plain.trim();
    if plain.is_empty() { "(none)".to_owned() } else { format!("`{plain}`") }
}

/// Breaks and other controls become spaces; letters that turn or hide text become `?`.
fn visible(words: &str) -> impl Iterator<Item = char> + '_ {
    words.chars().map(|c| match c {
        c if c.is_control() || c == '\u{2028}' || c == '\u{2029}' => ' ',
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{061c}' => '?',
        c => c,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hostile: &str, expected: &str) {
        assert_eq!(text(hostile), expected);
    }

    #[test]
    fn nothing_of_others_formats_links_or_breaks_out() {
        check("spl is down", "spl is down");
        check("a|b`c`*d*_e_", "a\\|b\\`c\\`\\*d\\*\\_e\\_");
        check("<script>alert(1)</script>", "&lt;script&gt;alert\\(1\\)&lt;/script&gt;");
        check("[x](http://evil) ![i](y)", "\\[x\\]\\(http\\://evil\\) \\!\\[i\\]\\(y\\)");
        check("line\r\n# heading\n\n- list", "line  \\# heading  - list");
        check("- a", "\\- a");
        check("12. a", "12\\. a");
        check("www.evil.example me@x", "www\\.evil.example me\\@x");
        check("\u{202e}cba\u{200b}\u{7}", "?cba? ");
        check("&lt; \\", "&amp;lt; \\\\");
        assert_eq!(code("a`|b\n"), "`a??b`");
        assert_eq!(code(""), "(none)");
    }
}
