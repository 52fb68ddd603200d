//! What people do about incidents, at random: silences and maintenances made and ended, severities set by hand, a
//! commander named.

use super::{AGENTS, World};
use muster_common::severity::Severity;
use muster_coordinator_core::entry::{Fact, IncidentKey, OperatorAction};
use muster_coordinator_core::silence::{Matchers, SilenceKind};
use std::time::Duration;

impl World {
    /// One of these.
    pub(super) fn people(&mut self) {
        let index = self.primary();
        if !self.works(index) {
            return;
        }
        match self.rng.below(5) {
            0 | 1 => self.hold_back(index),
            2 => self.end_silence(index),
            _ => self.judge(index),
        }
    }

    fn hold_back(&mut self, index: usize) {
        let one = |text: &str| [text.to_owned()].into();
        let mut matchers = Matchers::default();
        match self.rng.below(4) {
            0 => matchers.agents = one(self.rng.pick(&AGENTS).copied().unwrap_or("a1")),
            1 => matchers.agents = one("a*"),
            2 => matchers.services = one("spl"),
            _ => matchers.causes = one("host/a2/*"),
        }
        let kind = if self.rng.chance(50) { SilenceKind::Silence } else { SilenceKind::Maintenance };
        let starts = self.now + Duration::from_secs(self.rng.below(30));
        let ends = starts + Duration::from_secs(1 + self.rng.below(200));
        self.note(format!("{} of {matchers:?} from {starts} until {ends}", kind.as_str()));
        self.count("a silence");
        let fact = Fact::SilenceSet { by: "bob".to_owned(), kind, matchers, reason: "work".to_owned(), starts, ends };
        let now = self.now;
        self.coordinators[index].hear_fact(now, fact);
    }

    fn end_silence(&mut self, index: usize) {
        let known: Vec<u64> = self.coordinators[index].machine.state().silences().map(|(silence, _)| silence).collect();
        let Some(silence) = self.rng.pick(&known).copied() else { return };
        self.note(format!("SIL-{silence} is ended"));
        let now = self.now;
        self.coordinators[index].hear_fact(now, Fact::SilenceExpired { by: "bob".to_owned(), index: silence });
    }

    fn judge(&mut self, index: usize) {
        let open: Vec<IncidentKey> = {
            let state = self.coordinators[index].machine.state();
            state.incidents().filter(|incident| incident.is_unresolved()).map(|incident| incident.key.clone()).collect()
        };
        let all = [Severity::Sev0, Severity::Sev1, Severity::Sev2, Severity::Sev3, Severity::Sev4];
        let severity = self.rng.pick(&all).copied().unwrap_or(Severity::Sev3);
        let Some(IncidentKey { cause, generation }) = self.rng.pick(&open).cloned() else { return };
        let action = match self.rng.chance(80) {
            true => OperatorAction::SetSeverity { severity, note: "as it is".to_owned() },
            false => OperatorAction::SetCommander { commander: "eve".to_owned() },
        };
        self.note(format!("{action:?} of {cause}"));
        let now = self.now;
        self.coordinators[index].hear_fact(now, Fact::Operator { by: "ann".to_owned(), cause, generation, action });
    }

    /// What the rules for people came to in this run, for those who ask whether a seed tries anything.
    pub(super) fn count_conclusions(&mut self) {
        use muster_coordinator_core::entry::{Conclusion as C, EntryBody, Resolution};
        let journal = &self.coordinators[self.primary()].committed;
        let is_told = |index: u64| {
            let entry = journal.binary_search_by_key(&index, |entry| entry.index).ok().and_then(|at| journal.get(at));
            entry.is_some_and(|entry| matches!(entry.body, EntryBody::Fact(_)))
        };
        let names = journal.iter().filter_map(|entry| match &entry.body {
            // No restart for a window is a deadline; that the last of the dead is up again is told.
            EntryBody::Conclusion(C::IncidentRecovering { incident, .. })
                if ["fleet/restart_storm", "fleet/oom_storm"].iter().any(|storm| incident.cause.starts_with(storm))
                    && is_told(entry.trace) =>
            {
                Some("a storm that waits for its dead")
            }
            EntryBody::Conclusion(C::IncidentSilenced { .. }) => Some("an incident is silenced"),
            EntryBody::Conclusion(C::IncidentEscalated { .. }) => Some("an escalation"),
            EntryBody::Conclusion(C::SeveritySet { .. }) => Some("a severity by hand"),
            EntryBody::Conclusion(C::IncidentOpened { incident, .. })
                if incident.cause.ends_with("/burst") || incident.cause.ends_with("/incident_burst") =>
            {
                Some("a gathering")
            }
            EntryBody::Conclusion(C::IncidentResolved { resolution: Resolution::MergedInto { .. }, .. }) => {
                Some("pages that merge")
            }
            _ => None,
        });
        let names: Vec<&'static str> = names.collect();
        names.into_iter().for_each(|name| self.count(name));
    }
}
