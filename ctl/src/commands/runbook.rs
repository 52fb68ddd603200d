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
    Ok(out.text(text)?)
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
    fn every_reason_has_its_runbook_embedded() {
        for reason in Reason::ALL {
            let found = RUNBOOKS.iter().find(|(name, _)| *name == reason.as_str());
            assert!(found.is_some_and(|(_, text)| !meaning(text).is_empty()), "{reason}");
        }
    }
}
