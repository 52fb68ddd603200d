//! `status --live`: the one screen that stays, fed by the coordinator's watches. On a terminal it is redrawn; elsewhere
//! every change is one line.
//!
//! Must never leave a terminal as it had to make it: whatever ends this, the guard gives it back.

mod board;
mod terminal;

use super::findings::change_line;
use crate::connect::{self, Channel};
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean};
use crate::settings::Settings;
use board::Board;
use muster_proto::v1::finding_service_client::FindingServiceClient;
use muster_proto::v1::fleet_service_client::FleetServiceClient;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::{
    Agent, AgentState, GetFleetStatusRequest, GetFleetStatusResponse, Incident, WatchAgentsRequest,
    WatchAgentsResponse, WatchFindingsRequest, WatchFindingsResponse, WatchIncidentsRequest, WatchIncidentsResponse,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use terminal::{Key, Keys, Screen};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Streaming;

/// Drawn this often while things change: no eye follows faster, and a terminal far away has to.
const DRAW_INTERVAL: Duration = Duration::from_millis(500);
/// Counts of the whole fleet are asked for this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// Ids of which the last line is kept.
const LAST_MAX: usize = 10_000;
/// A coordinator that went away is tried again after this.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// The watches of one connection.
struct Watches {
    fleet: FleetServiceClient<Channel>,
    agents: Streaming<WatchAgentsResponse>,
    incidents: Streaming<WatchIncidentsResponse>,
    findings: Streaming<WatchFindingsResponse>,
}

/// What came.
enum News {
    Agent(Box<Agent>),
    /// An agent that is known no more.
    Archived(String),
    Incident(Box<Incident>),
    Finding(Box<WatchFindingsResponse>),
}

impl Watches {
    async fn open(channel: Channel) -> Result<(Self, GetFleetStatusResponse), CtlError> {
        let mut fleet = FleetServiceClient::new(channel.clone());
        let status = fleet.get_fleet_status(GetFleetStatusRequest {}).await?.into_inner();
        let agents = fleet.watch_agents(WatchAgentsRequest::default()).await?.into_inner();
        let incidents = IncidentServiceClient::new(channel.clone());
        let incidents = { incidents }.watch_incidents(WatchIncidentsRequest::default()).await?.into_inner();
        let findings = FindingServiceClient::new(channel);
        let findings = { findings }.watch_findings(WatchFindingsRequest::default()).await?.into_inner();
        Ok((Self { fleet, agents, incidents, findings }, status))
    }

    /// The next change on any of them.
    async fn next(&mut self) -> Result<News, CtlError> {
        tokio::select! {
            told = self.agents.message() => {
                let WatchAgentsResponse { agent, archived } = told?.ok_or(CtlError::Ended)?;
                Ok(agent.map_or(News::Archived(archived), |agent| News::Agent(Box::new(agent))))
            }
            incident = self.incidents.message() => {
                Ok(News::Incident(Box::new(incident?.ok_or(CtlError::Ended)?.incident.unwrap_or_default())))
            }
            finding = self.findings.message() => Ok(News::Finding(Box::new(finding?.ok_or(CtlError::Ended)?))),
        }
    }

    async fn status(&mut self) -> Result<GetFleetStatusResponse, CtlError> {
        Ok(self.fleet.get_fleet_status(GetFleetStatusRequest {}).await?.into_inner())
    }
}

pub(super) async fn status(channel: Channel, target: &Settings, out: &mut Out) -> Result<(), CtlError> {
    if out.is_json() || !out.is_terminal() {
        return lines(channel, target, out).await;
    }
    let (watches, status) = Watches::open(channel).await?;
    let mut board = Board::default();
    board.fleet(status);
    let mut screen = Screen::open()?;
    let mut keys = Keys::open()?;
    let mut watches = Some(watches);
    loop {
        let ended = match watches.take() {
            Some(watches) => watch(watches, &mut board, &mut screen, &mut keys, out).await?,
            None => match again(target).await {
                Ok((opened, status)) => {
                    board.begin_again();
                    board.fleet(status);
                    watches = Some(opened);
                    continue;
                }
                Err(error) => Some(error),
            },
        };
        // None: somebody has seen enough.
        let Some(error) = ended else { return Ok(()) };
        board.trouble(&error.report());
        draw(&board, &mut screen, out)?;
        tokio::select! {
            key = keys.next() => if key == Key::Quit { return Ok(()) },
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

/// Connects anew and begins anew: what was missed meanwhile is in what the watches send first.
async fn again(target: &Settings) -> Result<(Watches, GetFleetStatusResponse), CtlError> {
    Watches::open(connect::connect(target).await?).await
}

/// Draws what comes, until the connection ends (with what was said) or somebody quits.
async fn watch(
    mut watches: Watches,
    board: &mut Board,
    screen: &mut Screen,
    keys: &mut Keys,
    out: &mut Out,
) -> Result<Option<CtlError>, CtlError> {
    let (mut drawing, mut asking) = (every(DRAW_INTERVAL), every(STATUS_INTERVAL));
    loop {
        tokio::select! {
            key = keys.next() => match key {
                Key::Quit => return Ok(None),
                Key::Other => draw(board, screen, out)?,
            },
            _ = drawing.tick() => draw(board, screen, out)?,
            _ = asking.tick() => match watches.status().await {
                Ok(status) => board.fleet(status),
                Err(error) => return Ok(Some(error)),
            },
            news = watches.next() => match news {
                Ok(News::Agent(agent)) => board.agent(*agent),
                Ok(News::Archived(name)) => board.archived(&name),
                Ok(News::Incident(incident)) => board.incident(*incident),
                Ok(News::Finding(change)) => board.change(change_line(&change, out)),
                Err(error) => return Ok(Some(error)),
            },
        }
    }
}

fn every(length: Duration) -> Interval {
    let mut every = interval(length);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every
}

fn draw(board: &Board, screen: &mut Screen, out: &mut Out) -> Result<(), CtlError> {
    out.now();
    let (columns, rows) = screen.size();
    let lines = board.lines(out, columns, rows);
    let drawn: String = lines.iter().map(|line| format!("{}\u{1b}[K\r\n", out.coloured(line))).collect();
    Ok(out.draw(&format!("\u{1b}[H{drawn}\u{1b}[J"))?)
}

/// Where nothing can be redrawn: the screen once, then a line for each change. When the coordinator goes away that is a
/// line, and the screen comes once more when it is back. Ends only when nobody takes the lines any more.
async fn lines(channel: Channel, target: &Settings, out: &mut Out) -> Result<(), CtlError> {
    let mut last = Last::default();
    // Who cannot be asked at all is told so at once, as by any other command.
    let mut opened = Ok(Watches::open(channel).await?);
    let mut told = String::new();
    loop {
        let error = match opened {
            Ok((mut watches, status)) => {
                told.clear();
                counts(status, out)?;
                changes(&mut watches, &mut last, out).await?
            }
            Err(error) => error,
        };
        let why = error.report().lines().next().unwrap_or_default().to_owned();
        if why != told {
            out.now();
            match out.is_json() {
                true => out.json_line(&json!({ "interrupted": why }))?,
                false => out.line(&format!("interrupted: {why}; tried again every {} s", RETRY_INTERVAL.as_secs()))?,
            }
            told = why;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
        opened = again(target).await;
    }
}

/// The screen's counts.
fn counts(status: GetFleetStatusResponse, out: &mut Out) -> Result<(), CtlError> {
    if out.is_json() {
        return Ok(out.json_line(&json!({ "fleet_status": json::fleet_status(&status) }))?);
    }
    let mut board = Board::default();
    board.fleet(status);
    for line in board.counts(out) {
        out.line(&line)?;
    }
    Ok(())
}

/// Tells what comes, until the connection ends (with what was said) or nobody takes it.
async fn changes(watches: &mut Watches, last: &mut Last, out: &mut Out) -> Result<CtlError, CtlError> {
    loop {
        let news = match watches.next().await {
            Ok(news) => news,
            Err(error) => return Ok(error),
        };
        out.now();
        match out.is_json() {
            true => out.json_line(&document(&news))?,
            false => {
                if let Some(line) = last.line(&news, out) {
                    out.line(&line)?;
                }
            }
        }
    }
}

fn document(news: &News) -> serde_json::Value {
    match news {
        News::Archived(name) => json!({ "archived": name }),
        News::Agent(agent) => json!({ "agent": json::agent(agent) }),
        News::Incident(incident) => json!({ "incident": json::incident(incident) }),
        News::Finding(change) => json!({ "finding": json::finding_change(change) }),
    }
}

/// What was said last of each incident and of each agent that is not well: of most changes a line shows nothing.
#[derive(Debug, Default)]
struct Last(BTreeMap<String, String>);

impl Last {
    /// True when a line about `id` says something else than the one before it. Beyond the bound all is forgotten: lines may
    /// come twice then.
    fn is_news(&mut self, id: &str, line: &str) -> bool {
        if self.0.len() >= LAST_MAX && !self.0.contains_key(id) {
            self.0.clear();
        }
        self.0.insert(id.to_owned(), line.to_owned()).is_none_or(|before| before != line)
    }

    /// What a person has to read of it, if anything.
    fn line(&mut self, news: &News, out: &Out) -> Option<String> {
        match news {
            News::Archived(name) => {
                self.forget(name);
                Some(format!("agent {} archived", clean(name)))
            }
            News::Agent(agent) => self.agent(agent),
            News::Incident(incident) => self.incident(incident),
            News::Finding(change) => Some(format!("finding {}", change_line(change, out))),
        }
    }

    /// The line about an agent, when it is news: that it is well is so only of one that was not.
    fn agent(&mut self, agent: &Agent) -> Option<String> {
        let (state, why) = (json::agent_state(agent.state), clean(&agent.state_reason));
        let well = agent.state() == AgentState::Live && agent.connected;
        if well && !self.knows(&agent.id) {
            return None;
        }
        let line = format!("agent {} {state} {why}", clean(&agent.id));
        let is_news = self.is_news(&agent.id, &line);
        if well {
            self.forget(&agent.id);
        }
        is_news.then(|| line.trim_end().to_owned())
    }

    /// The line about an incident, when it is news. One that is resolved is not forgotten: pages about it may still be told
    /// and taken, which changes it and not the line.
    fn incident(&mut self, incident: &Incident) -> Option<String> {
        let words = [json::severity(incident.severity), json::incident_state(incident.state)].join(" ");
        let line = format!("incident {} {words} {}", clean(&incident.id), clean(&incident.title));
        self.is_news(&incident.id, &line).then_some(line)
    }

    fn knows(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    fn forget(&mut self, id: &str) {
        self.0.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_proto::v1::IncidentState;

    #[test]
    fn that_an_incident_is_resolved_is_told_once() {
        let mut last = Last::default();
        let open = Incident { id: "INC-1".to_owned(), title: "spl is down".to_owned(), ..Default::default() };
        let resolved = |pages_failed| Incident {
            state: IncidentState::Resolved.into(),
            pages_failed,
            resolved: Some(prost_types::Timestamp::default()),
            ..open.clone()
        };
        let told: Vec<bool> = [open.clone(), resolved(0), resolved(1), resolved(2)]
            .iter()
            .map(|news| last.incident(news).is_some())
            .collect();
        assert_eq!(told, [true, true, false, false]);
    }

    #[test]
    fn a_line_is_told_when_it_says_something_new_of_its_id() {
        let mut last = Last::default();
        let told: Vec<bool> = [("a", "open"), ("a", "open"), ("b", "open"), ("a", "resolved"), ("a", "open")]
            .into_iter()
            .map(|(id, line)| last.is_news(id, line))
            .collect();
        assert_eq!(told, [true, false, true, true, true]);
        last.forget("a");
        assert!(!last.knows("a") && last.knows("b") && last.is_news("a", "open"));
        assert!((0..=LAST_MAX).all(|n| last.is_news(&n.to_string(), "x")));
        assert!(last.0.len() <= LAST_MAX);
    }
}
