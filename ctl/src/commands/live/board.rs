//! What is on the live screen: the fleet's counts, open incidents, agents in trouble, the last changes. Bounded by what
//! a screen can show; laid out as plain lines that fit.

use crate::commands::incidents::owner;
use crate::json;
use crate::render::{Out, clean, table_lines};
use muster_proto::v1::{Agent, AgentState, GetFleetStatusResponse, Incident, IncidentState};
use std::collections::{BTreeMap, VecDeque};

/// Incidents and agents kept; a screen shows far fewer, and the counts are the coordinator's.
const KEPT_MAX: usize = 500;
/// Changes kept.
const CHANGES_MAX: usize = 100;
/// Lines for the last changes, where there is room.
const CHANGES_SHOWN: usize = 8;

/// How to end it, on a terminal.
const QUIT_HINT: &str = "q quits";

#[derive(Debug, Default)]
pub(super) struct Board {
    status: GetFleetStatusResponse,
    incidents: BTreeMap<String, Incident>,
    agents: BTreeMap<String, Agent>,
    changes: VecDeque<String>,
    trouble: Option<String>,
}

impl Board {
    /// The whole fleet's counts.
    pub(super) fn fleet(&mut self, status: GetFleetStatusResponse) {
        self.status = status;
        self.trouble = None;
    }

    /// A new connection sends everything again.
    pub(super) fn begin_again(&mut self) {
        self.incidents.clear();
        self.agents.clear();
    }

    /// Why what is shown may be old.
    pub(super) fn trouble(&mut self, words: &str) {
        self.trouble = Some(words.lines().next().unwrap_or_default().to_owned());
    }

    pub(super) fn incident(&mut self, incident: Incident) {
        if incident.state() == IncidentState::Resolved {
            self.incidents.remove(&incident.id);
        } else if self.incidents.len() < KEPT_MAX || self.incidents.contains_key(&incident.id) {
            self.incidents.insert(incident.id.clone(), incident);
        }
    }

    /// Only those in trouble stay.
    pub(super) fn agent(&mut self, agent: Agent) {
        let ill = matches!(agent.state(), AgentState::Stale | AgentState::NotYetReheard);
        if !ill {
            self.agents.remove(&agent.id);
        } else if self.agents.len() < KEPT_MAX || self.agents.contains_key(&agent.id) {
            self.agents.insert(agent.id.clone(), agent);
        }
    }

    /// It is known no more.
    pub(super) fn archived(&mut self, name: &str) {
        self.agents.remove(name);
    }

    pub(super) fn change(&mut self, line: String) {
        if self.changes.len() >= CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(line);
    }

    /// At most `rows - 1` lines of at most `columns` characters: the last row stays free, so that nothing scrolls.
    pub(super) fn lines(&self, out: &Out, columns: usize, rows: usize) -> Vec<String> {
        let mut lines = self.heading(out);
        let room = rows.saturating_sub(1).saturating_sub(lines.len());
        let changes: Vec<String> = self.changes.iter().rev().take(CHANGES_SHOWN.min(room / 3)).cloned().collect();
        let room = room.saturating_sub(if changes.is_empty() { 0 } else { changes.len() + 2 });
        let agents = self.agents_table(out);
        // Incidents come first; agents take what is left, and a third of the room in any case.
        let for_agents = agents.len().min((room / 3).max(room.saturating_sub(self.incidents.len() + 3)));
        lines.extend(shortened(self.incidents_table(out), room.saturating_sub(for_agents)));
        lines.extend(shortened(agents, for_agents));
        if !changes.is_empty() {
            lines.extend([String::new(), "LAST CHANGES".to_owned()]);
            lines.extend(changes);
        }
        lines.into_iter().take(rows.saturating_sub(1)).map(|line| cut(&line, columns)).collect()
    }

    /// The counts alone, for where nothing is redrawn: what is open follows line by line.
    pub(super) fn counts(&self, out: &Out) -> Vec<String> {
        let mut lines = self.heading(out);
        if let Some(first) = lines.first_mut() {
            *first = first.trim_end_matches(QUIT_HINT).trim_end().to_owned();
        }
        lines
    }

    fn heading(&self, out: &Out) -> Vec<String> {
        let status = &self.status;
        let epoch = status.epoch.as_ref().map(|epoch| epoch.number).unwrap_or_default();
        let mut lines = vec![
            format!(
                "{}  {} ({}, epoch {epoch})  {}  {QUIT_HINT}",
                clean(&status.fleet),
                clean(&status.coordinator_id),
                clean(&status.role),
                out.moment(status.now.as_ref())
            ),
            format!(
                "agents {} live, {} stale, {} stopped, {} not yet re-heard",
                status.agents_live, status.agents_stale, status.agents_stopped, status.agents_not_yet_reheard
            ),
            format!(
                "incidents {} open, {} without an owner; findings {} open; pages {} pending, {} given up",
                status.open_incidents,
                status.unacknowledged_incidents,
                status.open_findings,
                status.pages_pending,
                status.pages_failed
            ),
        ];
        lines.extend(status.silences_ending.iter().map(|ending| clean(ending)));
        if let Some(trouble) = &self.trouble {
            lines.push(format!("NOT CURRENT: {trouble}; trying again"));
        }
        lines
    }

    fn incidents_table(&self, out: &Out) -> Vec<String> {
        let mut open: Vec<&Incident> = self.incidents.values().collect();
        // The worst first; of these the newest.
        open.sort_by(|a, b| a.severity.cmp(&b.severity).then_with(|| b.id.cmp(&a.id)));
        if open.is_empty() {
            return vec![String::new(), "no open incidents".to_owned()];
        }
        let row = |incident: &&Incident| {
            vec![
                json::severity(incident.severity).to_owned(),
                clean(&incident.id),
                json::incident_state(incident.state).to_owned(),
                owner(incident),
                out.ago(incident.opened.as_ref()),
                clean(&incident.title),
            ]
        };
        let table =
            table_lines(&["sev", "incident", "state", "owner", "opened", "title"], open.iter().map(row).collect());
        std::iter::once(String::new()).chain(table).collect()
    }

    fn agents_table(&self, out: &Out) -> Vec<String> {
        if self.agents.is_empty() {
            return Vec::new();
        }
        let row = |agent: &Agent| {
            vec![
                clean(&agent.id),
                json::agent_state(agent.state).to_owned(),
                out.ago(agent.last_heard.as_ref()),
                clean(&agent.state_reason),
            ]
        };
        let table = table_lines(&["agent", "state", "last heard", "why"], self.agents.values().map(row).collect());
        std::iter::once(String::new()).chain(table).collect()
    }
}

/// The first lines, and how many are not shown.
fn shortened(mut lines: Vec<String>, room: usize) -> Vec<String> {
    if lines.len() <= room {
        return lines;
    }
    let shown = room.saturating_sub(1);
    let left = lines.len() - shown;
    lines.truncate(shown);
    if room > 0 {
        lines.push(format!("… {left} more"));
    }
    lines
}

/// A line as long as the screen is wide.
fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    line.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Format;

    fn board(incidents: usize, agents: usize, changes: usize) -> Board {
        let mut board = Board::default();
        board.fleet(GetFleetStatusResponse { fleet: "prod".to_owned(), ..Default::default() });
        for n in 0..incidents {
            let severity = 1 + i32::try_from(n % 5).unwrap();
            let (title, owner) = (format!("it\u{1b}[2J is down {}", "x".repeat(300)), "ada".to_owned());
            board.incident(Incident { id: format!("INC-{n}"), severity, title, owner, state: 1, ..Default::default() });
        }
        for n in 0..agents {
            let agent = Agent { id: format!("web-{n}"), state: AgentState::Stale.into(), ..Default::default() };
            board.agent(agent);
        }
        (0..changes).for_each(|n| board.change(format!("change {n}")));
        board
    }

    #[test]
    fn whatever_happens_it_fits_the_screen_and_steers_nothing() {
        let out = Out::stdout(Format::Table);
        for (incidents, agents, changes) in [(0, 0, 0), (1, 0, 0), (3, 2, 5), (600, 600, 300), (0, 40, 0), (40, 0, 1)] {
            let board = board(incidents, agents, changes);
            for (columns, rows) in [(80, 24), (40, 10), (200, 50), (20, 4), (1, 1), (0, 0)] {
                let lines = board.lines(&out, columns, rows);
                assert!(lines.len() <= rows.saturating_sub(1), "{columns}x{rows}: {lines:#?}");
                for line in &lines {
                    assert!(line.chars().count() <= columns.max(1), "{columns}x{rows}: {line}");
                    assert!(!line.contains('\u{1b}'), "{line}");
                }
            }
        }
    }

    #[test]
    fn the_worst_is_on_top_and_what_is_well_again_goes() {
        let out = Out::stdout(Format::Table);
        let mut board = board(3, 2, 1);
        let text = board.lines(&out, 200, 40).join("\n");
        let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words}: {text}"));
        assert!(text.contains("was ada"), "an acknowledgement that is over is none: {text}");
        assert!(at("INC-0") < at("INC-1") && at("INC-1") < at("web-0") && at("web-0") < at("change 0"));
        board.incident(Incident {
            id: "INC-0".to_owned(),
            state: IncidentState::Resolved.into(),
            ..Default::default()
        });
        board.agent(Agent { id: "web-0".to_owned(), state: AgentState::Live.into(), ..Default::default() });
        board.archived("web-1");
        board.trouble("cannot connect\nmore");
        let text = board.lines(&out, 200, 40).join("\n");
        assert!(!text.contains("INC-0") && !text.contains("web-0") && !text.contains("web-1"), "{text}");
        assert!(text.contains("NOT CURRENT: cannot connect; trying again"), "{text}");
    }
}
