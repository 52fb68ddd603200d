//! Somebody is refused again and again, or calls in a loop: by route, since a certificate that ran out everywhere is one
//! matter. The counts are in [`crate::refusals`].

use super::Detector;
use crate::decide::assess::{Assessment, DETAILS_MAX, of_fleet};
use crate::decide::human;
use crate::refusals::{self, PREFIX};
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
        let named: Vec<String> = abusive
            .iter()
            .take(NAMED_MAX)
            .map(|(name, caller, count)| format!("{name} from {} {count} times ({})", caller.address, caller.why))
            .collect();
        let more = abusive.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more callers") } else { String::new() };
        let summary = match named.is_empty() {
            true => format!("{total} calls of {route} were refused within {}", human(policy.window)),
            false => {
                let window = human(policy.window);
                format!("calls of {route} are refused again and again: within {window} {}{more}", named.join(", "))
            }
        };
        let next_steps = vec![
            "is the address one of yours? If not, close the port to it".to_owned(),
            "on that host: openssl x509 -in /etc/muster/agent/cert.pem -noout -subject -enddate -ext subjectAltName"
                .to_owned(),
            "what it tries, and with which certificate: journalctl -u muster-coordinator --since -1h | grep refused"
                .to_owned(),
        ];
        let began = first.unwrap_or(state.last_at());
        Some(of_fleet(state, Reason::AuthAbuse, began, !abusive.is_empty(), summary, next_steps))
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let policy = &state.policy().signals.auth_abuse;
        let (refusals, window) = (policy.refusals, human(policy.window));
        format!("at least {refusals} refusals of one caller on one route within {window}: {}", found.severity)
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "nobody is refused that often any more".to_owned()
    }

    fn details(&self, state: &State, key: &str, _cause: &Cause) -> Option<Vec<String>> {
        let abusive = refusals::abusive(state, state.last_at(), key.strip_prefix(PREFIX)?);
        let line = |(name, caller, count): (&str, &refusals::Caller, u64)| {
            format!("{name} from {}: {count} times, {}", caller.address, caller.why)
        };
        Some(abusive.into_iter().take(DETAILS_MAX).map(line).collect())
    }
}
