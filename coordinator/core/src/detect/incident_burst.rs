//! What is told of many incidents that were gathered into one: how many, on which hosts, of which services, what the
//! hosts share, and what came first.

use super::Detector;
use super::explain::{Look, look};
use crate::cause::{self, CauseKind};
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::decide::human;
use crate::state::{Cause, Incident, IncidentStatus, State};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Services and labels named in a sentence.
const NAMED_MAX: usize = 5;

/// See the head of the file.
#[derive(Debug)]
pub(super) struct IncidentBurst;

impl Detector for IncidentBurst {
    fn name(&self) -> &'static str {
        "incident_burst"
    }

    fn owns(&self, key: &str) -> bool {
        cause::kind_of(key) == CauseKind::Burst
    }

    fn assess(&self, state: &State, _now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        assessed(state, key, cause)
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let (rule, severity) = (&state.policy().correlation, found.severity);
        let (count, window) = (rule.incidents, human(rule.window));
        format!(
            "{count} or more new incidents within {window} that nothing explains are told as one: {severity}, as the worst of them"
        )
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "few of what was gathered are still wrong, and those are told one by one".to_owned()
    }

    fn ended(&self, state: &State, incident: &Incident) -> Option<String> {
        let burst = state.cause(&incident.key.cause)?.burst.as_ref()?;
        Some(format!(
            "{} incidents were gathered; {} of their causes are still wrong",
            burst.gathered.len(),
            burst.n_wrong
        ))
    }

    /// What came first, in the order it came.
    fn details(&self, _state: &State, _key: &str, cause: &Cause) -> Option<Vec<String>> {
        Some(cause.burst.as_ref().map(|burst| burst.first.clone()).unwrap_or_default())
    }

    fn groups_of(&self, state: &State, cause: &str) -> Vec<String> {
        state.gathered_in.get(cause).cloned().into_iter().collect()
    }

    /// What is still wrong when few of them are comes back; what only happened is told with the others.
    fn takes(&self, state: &State, group: &str, cause: &Cause, symptom: &str) -> bool {
        let open = state.unresolved(group).is_some_and(|incident| incident.status == IncidentStatus::Open);
        let wrong = cause.burst.as_ref().and_then(|burst| burst.gathered.get(symptom));
        wrong.is_some_and(|wrong| open || !wrong)
    }

    fn lasting(&self) -> bool {
        true
    }

    fn symptoms(&self, _state: &State, _group: &str, cause: &Cause) -> Vec<String> {
        cause.burst.iter().flat_map(|burst| burst.gathered.keys().cloned()).collect()
    }

    fn looks(&self, state: &State, _now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let count = state.policy().correlation.incidents;
        let threshold = format!("{count} new incidents within {}", human(state.policy().correlation.window));
        let needed = usize::try_from(count).unwrap_or(usize::MAX);
        let n = state.recently_opened.len();
        let own = format!("host/{agent}/");
        let of_host = state.gathered_in.starting_with(&own);
        let about = of_host.last().map(|(_, burst)| burst.clone()).unwrap_or_else(|| cause::FLEET_BURST.to_owned());
        vec![look(self.name(), about, (n, needed, "new incidents"), threshold)]
    }
}

fn assessed(state: &State, key: &str, cause: &Cause) -> Option<Assessment> {
    let burst = cause.burst.as_ref()?;
    let count = state.policy().correlation.incidents;
    let open = match state.unresolved(key) {
        // To come back it takes as many as to begin.
        Some(incident) if incident.status == IncidentStatus::Recovering => burst.n_wrong >= u64::from(count),
        _ => burst.goes_on(count),
    };
    let (n, n_hosts) = (burst.gathered.len(), burst.agents.len());
    let span = human(burst.last.since(burst.first_opened));
    let hosts = if n_hosts == 1 { "host" } else { "hosts" };
    let mut summary = format!("{n} new incidents within {span} on {n_hosts} {hosts}: {}", names(burst.agents.iter()));
    if !burst.services.is_empty() {
        summary.push_str(&format!("; services: {}", listed(burst.services.iter().map(String::as_str))));
    }
    if n_hosts > 1 && !burst.labels.is_empty() {
        let labels: Vec<String> = burst.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        summary.push_str(&format!("; all have {}", listed(labels.iter().map(String::as_str))));
    }
    if let Some(first) = burst.first.first() {
        summary.push_str(&format!("; first {first}"));
    }
    let next_steps = vec![
        "begin with what came first: the others are often its symptoms".to_owned(),
        "look for what they share: a host, a label, a service, a change shortly before".to_owned(),
        format!("see all that was gathered: musterctl incidents show {}", number(state, key)),
    ];
    let mut found = of_fleet(state, Reason::IncidentBurst, burst.began, open, summary, next_steps);
    // As bad as the worst of them: that there are many is no reason to wake somebody about what can wait.
    if !state.policy().severities.contains_key(&Reason::IncidentBurst) {
        found.severity = burst.worst;
    }
    found.raises = true;
    found.happened = burst.happened;
    Some(found)
}

fn number(state: &State, key: &str) -> String {
    state.unresolved(key).map_or_else(|| "INC-...".to_owned(), |incident| incident.number.clone())
}

fn listed<'a>(items: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = items.len().saturating_sub(NAMED_MAX);
    let named = items.take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}
