//! Somebody is refused again and again, or calls in a loop: by route, since a certificate that ran out everywhere is one
//! matter. The counts are in [`crate::refusals`].

use super::Detector;
use crate::decide::assess::{Assessment, DETAILS_MAX, of_fleet};
use crate::decide::human;
use crate::refusals::{self, Caller, PREFIX, RECONNECTS};
use crate::state::{Cause, State};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Callers named in the title.
const NAMED_MAX: usize = 3;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct AuthAbuse;

impl Detector for AuthAbuse {
    fn name(&self) -> &'static str {
        "auth_abuse"
    }

    fn owns(&self, key: &str) -> bool {
        key.starts_with(PREFIX)
    }

    fn assess(&self, state: &State, now: Timestamp, key: &str, _cause: &Cause) -> Option<Assessment> {
        let route = key.strip_prefix(PREFIX)?;
        let policy = &state.policy().signals.auth_abuse;
        let abusive = refusals::abusive(state, now, route);
        let callers: Vec<_> = state.signals.refusals.callers(route).collect();
        let total: u64 = callers.iter().filter_map(|(_, caller)| Some(caller.within(now, policy.window)?.0)).sum();
        let first = abusive.iter().filter_map(|(_, caller, _)| Some(caller.within(now, policy.window)?.1)).min();
        let named: Vec<String> = abusive.iter().take(NAMED_MAX).map(|caller| line(route, *caller)).collect();
        let more = abusive.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more callers") } else { String::new() };
        let (window, named) = (human(policy.window), named.join(", "));
        let summary = match refusals::loop_of(route) {
            Some(RECONNECTS) => format!("agents reconnect in a loop: within {window} {named}{more}"),
            Some(route) if named.is_empty() => format!("{total} calls, most of all of {route}, within {window}"),
            Some(route) => format!("callers are in a loop, most of all with {route}: within {window} {named}{more}"),
            None if named.is_empty() => format!("{total} calls of {route} were refused within {window}"),
            None => format!("calls of {route} are refused again and again: within {window} {named}{more}"),
        };
        let next_steps = next_steps(route);
        let began = first.unwrap_or(state.last_at());
        Some(of_fleet(state, Reason::AuthAbuse, began, !abusive.is_empty(), summary, next_steps))
    }

    fn why(&self, state: &State, key: &str, found: &Assessment) -> String {
        let policy = &state.policy().signals.auth_abuse;
        let (refusals, window, severity) = (policy.refusals, human(policy.window), found.severity);
        match key.strip_prefix(PREFIX).and_then(refusals::loop_of) {
            Some(RECONNECTS) => format!("at least {refusals} reconnects of one agent within {window}: {severity}"),
            Some(_) => format!("more than {} calls of one caller within a minute: {severity}", policy.calls_per_minute),
            None => format!("at least {refusals} refusals of one caller on one route within {window}: {severity}"),
        }
    }

    fn recovered(&self, _state: &State, key: &str) -> String {
        match key.strip_prefix(PREFIX).and_then(refusals::loop_of) {
            Some(RECONNECTS) => "no agent reconnects that often any more",
            Some(_) => "nobody calls that often any more",
            None => "nobody is refused that often any more",
        }
        .to_owned()
    }

    fn details(&self, state: &State, key: &str, _cause: &Cause) -> Option<Vec<String>> {
        let route = key.strip_prefix(PREFIX)?;
        let abusive = refusals::abusive(state, state.last_at(), route);
        Some(abusive.into_iter().take(DETAILS_MAX).map(|caller| line(route, caller)).collect())
    }
}

/// One caller, where it calls from, how often, and why it was refused.
fn line(route: &str, (name, caller, count): (&str, &Caller, u64)) -> String {
    let from = if caller.address.is_empty() { String::new() } else { format!(" from {}", caller.address) };
    match refusals::loop_of(route) {
        Some(RECONNECTS) => format!("{name} {count} times"),
        Some(_) => format!("{name}{from} called {count} times"),
        None => format!("{name}{from} {count} times ({})", caller.why),
    }
}

fn next_steps(route: &str) -> Vec<String> {
    let steps: &[&str] = match refusals::loop_of(route) {
        Some(RECONNECTS) => &[
            "on that host, why its streams end: journalctl -u muster-agent --since -1h",
            "two agents under one name take each other's place: musterctl incidents list",
        ],
        Some(_) => &[
            "find the script or dashboard that uses that certificate, and let it wait between its calls",
            "what must know at once need not ask again and again: musterctl status --live watches",
        ],
        None => &[
            "is the address one of yours? If not, close the port to it",
            "on that host: openssl x509 -in /etc/muster/agent/cert.pem -noout -subject -enddate -ext subjectAltName",
            "what it tries, and with which certificate: journalctl -u muster-coordinator --since -1h | grep refused",
        ],
    };
    steps.iter().map(|&step| step.to_owned()).collect()
}
