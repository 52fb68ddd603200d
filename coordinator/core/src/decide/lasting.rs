//! What only happened, and yet lasts: a receiver that took no page takes none until it takes one again, and two agents
//! are under one name until the second has stayed away for a while. Whatever else only happened is over when it is told.

use super::human;
use crate::cause;
use crate::singletons;
use crate::state::{Cause, Incident, State};
use muster_common::time::Timestamp;

/// Whether what happened under this cause still holds.
pub(super) fn lasts(state: &State, now: Timestamp, key: &str, cause: &Cause) -> bool {
    if let Some(name) = cause::failing_receiver(key) {
        return state.receiver(name).is_some_and(|receiver| receiver.takes_nothing());
    }
    let quiet = state.policy().signals.agent_identity_conflict.quiet;
    let last = cause.occurrences.back().filter(|_| cause::is_identity_conflict(key));
    last.is_some_and(|last| last.observed + quiet > now)
}

/// Why nothing about an incident is open any more, where no detector knows.
pub(super) fn recovered(state: &State, incident: &Incident, happened: bool) -> String {
    let key = &incident.key.cause;
    if let Some(name) = cause::failing_receiver(key) {
        return match state.receiver(name) {
            Some(_) => format!("the receiver {name} took a page again"),
            None => format!("the receiver {name} is not in the config any more"),
        };
    }
    if cause::is_identity_conflict(key) {
        let quiet = human(state.policy().signals.agent_identity_conflict.quiet);
        return format!("no second agent came under this name for {quiet}");
    }
    if let Some(words) = singletons::not_missed_under(state, key) {
        return words;
    }
    match happened && only_happened(incident) {
        true => "it happened at one moment, nothing about it stays open".to_owned(),
        false => "nothing about it is open any more".to_owned(),
    }
}

/// What was true for a whole stability window; `window` in words. Says of nothing that it is well which nobody saw well.
pub(super) fn held(incident: &Incident, happened: bool, window: &str) -> String {
    let key = &incident.key.cause;
    if let Some(name) = cause::failing_receiver(key) {
        return format!("no page to {name} was given up for {window} since it took one again");
    }
    if cause::is_identity_conflict(key) {
        return format!("no second agent came under this name for another {window}");
    }
    let heard = if incident.agents.is_empty() { "" } else { " while all hosts concerned were heard" };
    match (happened, only_happened(incident)) {
        (true, true) => format!("nothing more of it happened for {window}{heard}; nobody has shown that it is well"),
        (true, false) => format!("evidence of health held for {window}{heard}, and nothing more of it happened"),
        (false, _) => format!("evidence of health held for {window}{heard}"),
    }
}

/// How an incident ended, in the words with which it was resolved.
pub fn ended(incident: &Incident) -> &str {
    let told = incident.timeline.iter().rev().find_map(|line| line.text.strip_prefix("resolved: "));
    told.unwrap_or("it is over")
}

/// No condition belonged to it: its members are at most the causes that it takes, which are named by their keys.
fn only_happened(incident: &Incident) -> bool {
    incident.members.iter().all(|member| member.starts_with("host/") || member.starts_with("fleet/"))
}
