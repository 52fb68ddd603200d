//! Why a page, an incident or a finding is what it is ([`why`]), and why nobody was paged about a host ([`why_not()`]).
//!
//! Every conclusion carries its why already, and this tells it: what is told here is read from State, with the entry of
//! the journal that proves it. It must never reason for itself where a rule has spoken, and looks only.

mod finding;
mod flapping;
mod incident;
mod services;
mod waiting;
mod why_not;

pub use finding::incident_of;
pub use incident::{taken_in_by, title, why, why_finding, why_page};
pub use services::{fits_nothing, unheard_service};
pub use waiting::waits_for;
pub use why_not::{Asked, NEAR, why_not};

use crate::state::{Incident, IncidentStatus, State};
use crate::timeline::{LineKind, TimelineLine};
use muster_common::evidence::Grade;
use muster_common::time::Timestamp;
use muster_common::units::human_duration;
use serde::Serialize;

/// Rules told in one answer, the most telling ones; what is beyond is counted in [`Explanation::unknown`].
pub const RULES_MAX: usize = 200;
/// Findings told of one incident.
const FINDINGS_MAX: usize = 50;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Explanation {
    /// One sentence.
    pub answer: String,
    /// Every rule that looked, the most telling first.
    pub rules: Vec<RuleLook>,
    /// What would be needed to say more.
    pub unknown: Vec<String>,
}

/// What became of what a rule looked at. In order of how telling it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Somebody was paged.
    Paged,
    /// There was something to tell, and nobody was paged about it.
    HeldBack,
    /// What it saw was below its threshold.
    BelowThreshold,
    /// It had nothing to look at.
    #[default]
    NothingSeen,
}

/// One rule that looked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RuleLook {
    /// Its name: a reason code, a detector, or one of hold, silence, grouping, hysteresis, freeze, rehear_window, severity,
    /// routing, response, stability, liveness.
    pub rule: String,
    /// Cause key or subject that it looked at.
    pub about: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What held it back, if something did.
    pub held_back_by: String,
    /// One sentence: values, thresholds, by how much.
    pub why: String,
    /// What it compared.
    pub figures: Vec<Figure>,
    /// How sure.
    pub grade: Option<Grade>,
    /// When.
    pub at: Option<Timestamp>,
    /// Entry of the journal; 0 when none.
    pub index: u64,
    /// Number of the incident, if one was open.
    pub incident: String,
}

/// What a rule compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// What.
    pub name: String,
    /// With its unit.
    pub value: String,
    /// With its unit; empty where there is none.
    pub threshold: String,
}

impl Figure {
    fn new(name: &str, value: impl ToString, threshold: impl ToString) -> Self {
        Self { name: name.to_owned(), value: value.to_string(), threshold: threshold.to_string() }
    }
}

impl RuleLook {
    fn new(rule: &str, about: &str, outcome: Outcome, why: impl Into<String>) -> Self {
        let (rule, about) = (rule.to_owned(), about.to_owned());
        Self { rule, about, outcome, why: why.into(), ..Self::default() }
    }

    fn held_by(mut self, what: &str) -> Self {
        self.held_back_by = what.to_owned();
        self
    }

    fn at(mut self, at: Timestamp, index: u64) -> Self {
        (self.at, self.index) = (Some(at), index);
        self
    }

    fn line(self, line: &TimelineLine) -> Self {
        self.at(line.at, line.index)
    }

    fn of(mut self, incident: &Incident) -> Self {
        self.incident = incident.number.clone();
        self
    }

    fn graded(mut self, grade: Grade) -> Self {
        self.grade = Some(grade);
        self
    }

    fn figures(mut self, figures: impl IntoIterator<Item = Figure>) -> Self {
        self.figures.extend(figures);
        self
    }
}

impl Explanation {
    /// Puts the most telling first, and cuts to the bound.
    fn settle(mut self) -> Self {
        self.rules.sort_by_key(|look| look.outcome);
        let more = self.rules.len().saturating_sub(RULES_MAX);
        if more > 0 {
            self.rules.truncate(RULES_MAX);
            self.unknown
                .push(format!("{more} more looks of rules are not listed: ask about one service, or one incident"));
        }
        self
    }
}

/// What held the pages of an incident back, in one word and one sentence; none when it was paged. The rules' own words
/// where they have spoken.
pub fn held_back(state: &State, incident: &Incident, now: Timestamp) -> Option<(&'static str, String)> {
    if incident.has_paged() {
        return None;
    }
    let said = incident.timeline.iter().rev().find_map(|line| line.text.strip_prefix("not paged: "));
    if incident.status == IncidentStatus::Resolved {
        let how = incident.timeline.iter().rev().find_map(|line| line.text.strip_prefix("resolved: "));
        let how = how.unwrap_or("it was resolved");
        return Some(match (&incident.resolution, said) {
            (Some(crate::entry::Resolution::FoldedInto { .. }), _) => ("grouping", how.to_owned()),
            (Some(crate::entry::Resolution::Operator { .. }), _) => ("by_hand", how.to_owned()),
            (_, Some(said)) => (word_for(said), said.to_owned()),
            _ => ("resolved", format!("it was over before it was paged: {how}")),
        });
    }
    if let Some((_, silence)) = state.silence_of(incident) {
        return Some(("silence", format!("{} holds its pages back", silence.words())));
    }
    if let Some(until) = incident.hold_until.filter(|_| !incident.hold_over) {
        let left = human_duration(until.since(now));
        let rehear = state.rehear_until().is_some_and(|rehear| rehear == until);
        return Some(if rehear {
            ("rehear_window", format!("agents get until {until} ({left} more) to be heard again by this coordinator"))
        } else {
            ("hold", format!("it waits until {until} ({left} more), so that its symptoms can gather before it pages"))
        });
    }
    if let Some(said) = said.filter(|_| incident.explained) {
        return Some((word_for(said), said.to_owned()));
    }
    Some(match &incident.owner {
        Some(owner) if incident.acknowledged.is_some() => ("acknowledged", format!("{owner} acknowledged it")),
        _ => ("undecided", "no rule has said why; see its timeline".to_owned()),
    })
}

/// One word for what a rule said.
fn word_for(said: &str) -> &'static str {
    let words = [
        ("is less bad than", "severity"),
        ("receiver", "routing"),
        ("acknowledged", "acknowledged"),
        ("cleared", "recovering"),
        ("silence", "silence"),
        ("maintenance", "silence"),
        ("SIL-", "silence"),
    ];
    words.iter().find(|(part, _)| said.contains(part)).map_or("decision", |(_, word)| word)
}

/// The first page about an incident that was asked for, as its timeline has it.
pub(crate) fn first_page(incident: &Incident) -> Option<&TimelineLine> {
    incident.timeline.iter().find(|line| line.kind == LineKind::Page && line.text.starts_with("page trigger to "))
}
