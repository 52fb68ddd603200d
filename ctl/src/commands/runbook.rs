//! `runbook`: the runbooks as they were when this command was built. Asks nobody.

use crate::error::CtlError;
use crate::render::Out;
use muster_common::config::{did_you_mean, nearest};

include!(concat!(env!("OUT_DIR"), "/runbooks.rs"));

pub(super) fn show(out: &mut Out, reason: Option<&str>) -> Result<(), CtlError> {
    let Some(reason) = reason else { return list(out) };
    let Some((reason, text)) = RUNBOOKS.iter().find(|(name, _)| *name == reason) else {
        let meant = nearest(reason, RUNBOOKS.iter().map(|(name, _)| *name));
        let meant = did_you_mean(meant.as_deref());
        let end = if meant.is_empty() { ";" } else { "" };
        let text = format!("there is no runbook {reason:?}{meant}{end} musterctl runbook lists them all");
        return Err(CtlError::Usage(text));
    };
    if out.is_json() {
        return Ok(out.json(&serde_json::json!({ "reason": reason, "text": text }))?);
    }
    Ok(out.text(&for_terminal(text))?)
}

/// A terminal follows no links: they become the command, the address or the document that they lead to.
fn for_terminal(text: &str) -> String {
    let (mut told, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, words, target, after)) = next_link(rest) {
        told.push_str(before);
        told.push_str(&link(words, target));
        rest = after;
    }
    told.push_str(rest);
    told
}

/// What stands before the first `[words](target)`, its parts, and what follows.
fn next_link(text: &str) -> Option<(&str, &str, &str, &str)> {
    let (head, tail) = text.split_once("](")?;
    let (before, words) = head.rsplit_once('[')?;
    let (target, after) = tail.split_once(')')?;
    Some((before, words, target, after))
}

fn link(words: &str, target: &str) -> String {
    let path = target.split('#').next().unwrap_or_default();
    let runbook = path.strip_suffix(".md").filter(|name| RUNBOOKS.iter().any(|(known, _)| known == name));
    match (runbook, path.strip_prefix("../")) {
        (Some(name), _) => format!("{words} (musterctl runbook {name})"),
        (None, Some(document)) => format!("{words} (docs/{document})"),
        (None, None) if path.contains("://") => format!("{words} ({target})"),
        (None, None) => format!("{words} (docs/runbooks/{path})"),
    }
}

fn list(out: &mut Out) -> Result<(), CtlError> {
    let all: Vec<(&str, &str)> = RUNBOOKS.iter().map(|(name, text)| (*name, meaning(text))).collect();
    if out.is_json() {
        let all: Vec<_> =
            all.iter().map(|(name, meaning)| serde_json::json!({ "reason": name, "meaning": meaning })).collect();
        return Ok(out.json(&serde_json::json!({ "runbooks": all }))?);
    }
    let rows = all.into_iter().map(|(name, meaning)| vec![name.to_owned(), meaning.to_owned()]).collect();
    Ok(out.table(&["reason", "meaning"], rows)?)
}

/// The first sentence under the heading.
fn meaning(text: &str) -> &str {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next().unwrap_or_default();
    line.split_once(". ").map_or(line, |(first, _)| first).trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::reason::Reason;

    #[test]
    fn links_tell_where_they_lead_on_a_terminal() {
        for (text, expected) in [
            (
                "see [oom_kill](oom_kill.md), [it](port_closed.md#first).",
                "see oom_kill (musterctl runbook oom_kill), it (musterctl runbook port_closed).",
            ),
            (
                "a [list] (of it) and [pages then](README.md#to-silence-one)",
                "a [list] (of it) and pages then (docs/runbooks/README.md)",
            ),
            ("[silences](../incidents.md#silences)", "silences (docs/incidents.md)"),
            ("[there](https://example.org/a#b)", "there (https://example.org/a#b)"),
            ("`x[0](` and [half](open", "`x[0](` and [half](open"),
        ] {
            assert_eq!(for_terminal(text), expected);
        }
        for (reason, text) in RUNBOOKS {
            let told = for_terminal(text);
            assert!(!told.contains("](") && !told.contains(".md#"), "{reason}: {told}");
        }
    }

    #[test]
    fn every_reason_has_its_runbook_embedded() {
        for reason in Reason::ALL {
            let found = RUNBOOKS.iter().find(|(name, _)| *name == reason.as_str());
            assert!(found.is_some_and(|(_, text)| !meaning(text).is_empty()), "{reason}");
        }
    }
}
