//! A service of which there may be one runs on two hosts at once. What it is compared by is in [`crate::singletons`].

use super::{Detector, Look};
use crate::decide::assess::{Assessment, names, of_fleet};
use crate::decide::human;
use crate::singletons::{self, cause_key};
use crate::state::{Cause, Incident, IncidentStatus, State};
use muster_common::ids::AgentName;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;

/// Before the service in the cause keys.
const PREFIX: &str = "fleet/singleton";

/// See the head of the file.
#[derive(Debug)]
pub(super) struct Singleton;

impl Detector for Singleton {
    fn name(&self) -> &'static str {
        "singleton"
    }

    fn owns(&self, key: &str) -> bool {
        super::rest(key, PREFIX).is_some()
    }

    fn assess(&self, state: &State, now: Timestamp, key: &str, cause: &Cause) -> Option<Assessment> {
        let service = super::rest(key, PREFIX)?;
        let signals = &state.signals.singletons;
        let mut running: Vec<_> = singletons::running(state, service).collect();
        if running.is_empty() {
            return None;
        }
        running.sort_by_key(|(_, running)| running.since);
        let news = running.iter().any(|(_, running)| running.index > cause.dismissed_index);
        let hold = state.policy().signals.singleton.hold;
        let lasts = signals.beside(service).is_some_and(|since| now >= since + hold);
        // Whose agent fell silent meanwhile may still run it: what is open stays open. What recovers may be a move, and
        // has to last as it had to the first time.
        let is_open = |incident: &Incident| incident.status == IncidentStatus::Open;
        let goes_on = state.unresolved(key).is_some_and(is_open) && running.len() >= 2;
        let began = running.get(1).map_or(state.last_at(), |(_, running)| running.since);
        let heard = singletons::heard(state, service).len();
        let since = |(agent, running): &(&AgentName, &singletons::Running)| format!("{agent} since {}", running.since);
        let each: Vec<String> = running.iter().take(4).map(since).collect();
        let mut summary =
            format!("{service} may run once and runs on {} hosts at once: {}", running.len(), each.join(", "));
        if heard < running.len() {
            summary = format!("{summary}; {} of them not sure now (not heard, or entries lost)", running.len() - heard);
        }
        let next_steps = vec![
            format!(
                "before anything is stopped: which of {} do its clients reach, and which one writes?",
                names(running.iter().map(|(agent, _)| *agent))
            ),
            format!("on each: muster-agent doctor --service {service}; who started it, and when?"),
            "where it must not run: systemctl disable --now its unit; if both wrote, keep copies of both stores"
                .to_owned(),
        ];
        Some(of_fleet(state, Reason::DuplicateInstance, began, news && (lasts || goes_on), summary, next_steps))
    }

    fn why(&self, state: &State, _key: &str, found: &Assessment) -> String {
        let hold = human(state.policy().signals.singleton.hold);
        format!("its agents say singleton = true, and two of them had it for {hold} or longer: {}", found.severity)
    }

    fn recovered(&self, _state: &State, _key: &str) -> String {
        "it runs on one host at most again".to_owned()
    }

    fn services(&self, key: &str) -> Vec<String> {
        super::rest(key, PREFIX).map(str::to_owned).into_iter().collect()
    }

    fn details(&self, state: &State, key: &str, _cause: &Cause) -> Option<Vec<String>> {
        let hosts = singletons::running(state, super::rest(key, PREFIX)?);
        let line =
            |(agent, running): (&AgentName, &singletons::Running)| format!("runs on {agent} since {}", running.since);
        Some(hosts.map(line).take(crate::decide::assess::DETAILS_MAX).collect())
    }

    fn joined(&self) -> &'static str {
        "runs it as well"
    }

    fn looks(&self, state: &State, now: Timestamp, agent: &AgentName) -> Vec<Look> {
        let hold = state.policy().signals.singleton.hold;
        let services = state.signals.singletons.of_agent(agent);
        services
            .map(|service| {
                let heard = singletons::heard(state, service).len();
                let since = state.signals.singletons.beside(service);
                let reached = since.is_some_and(|since| now >= since + hold);
                let held_back_by = match since {
                    None => format!("it runs on {heard} heard host"),
                    Some(since) if !reached => {
                        format!("a planned move may take {}; it has been {}", human(hold), human(now.since(since)))
                    }
                    Some(_) => String::new(),
                };
                Look {
                    rule: self.name(),
                    about: cause_key(service),
                    seen: format!("{service} runs on {heard} heard hosts"),
                    threshold: format!("2 heard hosts for {}", human(hold)),
                    reached,
                    held_back_by,
                }
            })
            .collect()
    }
}
