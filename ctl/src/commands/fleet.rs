//! `status` and `agents …`.

use super::{PAGE_SIZE, all_pages, counted};
use crate::args::State;
use crate::connect::Channel;
use crate::error::CtlError;
use crate::json;
use crate::render::{Out, clean, duration};
use muster_common::units::human_bytes;
use muster_proto::v1::fleet_service_client::FleetServiceClient;
use muster_proto::v1::{
    Agent, AgentState, GetAgentRequest, GetFleetStatusRequest, ListAgentsRequest, PingAgentRequest,
};

pub(super) async fn status(channel: Channel, out: &mut Out) -> Result<(), CtlError> {
    let status = FleetServiceClient::new(channel).get_fleet_status(GetFleetStatusRequest {}).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&json::fleet_status(&status))?);
    }
    let epoch = status.epoch.as_ref().map(|epoch| format!("{}@{}", epoch.number, clean(&epoch.coordinator_id)));
    let incidents = format!("{} open, {} without an owner", status.open_incidents, status.unacknowledged_incidents);
    let agents = format!(
        "{} live, {} stale, {} stopped, {} not yet re-heard",
        status.agents_live, status.agents_stale, status.agents_stopped, status.agents_not_yet_reheard
    );
    let standbys = if status.standbys.is_empty() { "none".to_owned() } else { clean(&status.standbys.join(", ")) };
    let failed = match status.pages_failed {
        0 => String::new(),
        n => format!(", {n} given up and not sent again: see musterctl receivers dead-letters"),
    };
    let pages = format!("{} pending{failed}", status.pages_pending);
    let silences = match status.silences_active {
        0 => "none hold".to_owned(),
        n => format!("{n} hold"),
    };
    let silences = [vec![silences], status.silences_ending.iter().map(|ending| clean(ending)).collect()].concat();
    let rehearing = match out.time(status.rehear_until.as_ref()) {
        until if until.is_empty() => until,
        until => format!("until {until}: silence is not judged before"),
    };
    if status.role != "primary" {
        // Whatever it shows below is what it last knew.
        out.line(&format!(
            "{} is {}, not the primary: what follows is what it knew at journal entry {}; ask the primary for now",
            clean(&status.coordinator_id),
            clean(&status.role),
            status.journal_index
        ))?;
    }
    out.fields(&[
        ("fleet", clean(&status.fleet)),
        (
            "coordinator",
            format!("{} ({}, version {})", clean(&status.coordinator_id), clean(&status.role), clean(&status.version)),
        ),
        ("epoch", epoch.unwrap_or_default()),
        ("started", out.time(status.started.as_ref())),
        ("standbys", standbys),
        ("agents", agents),
        ("incidents", incidents),
        ("findings", format!("{} open", status.open_findings)),
        ("pages", pages),
        ("silences", silences.join("; ")),
        ("journal", format!("entry {}", status.journal_index)),
        ("re-hearing", rehearing),
    ])?;
    Ok(())
}

pub(super) async fn list(
    channel: Channel,
    out: &mut Out,
    state: Option<State>,
    labels: Vec<(String, String)>,
) -> Result<(), CtlError> {
    let client = FleetServiceClient::new(channel);
    let state = state.map_or(AgentState::Unspecified, |state| match state {
        State::Live => AgentState::Live,
        State::Stale => AgentState::Stale,
        State::Stopped => AgentState::Stopped,
        State::NotYetReheard => AgentState::NotYetReheard,
    });
    let mut agents = all_pages(usize::MAX, |page_token| {
        let mut client = client.clone();
        let labels = labels.iter().cloned().collect();
        let request = ListAgentsRequest { page_size: PAGE_SIZE, page_token, state: state.into(), labels };
        async move {
            let answer = client.list_agents(request).await?.into_inner();
            Ok((answer.agents, answer.next_page_token))
        }
    })
    .await?;
    if out.is_json() {
        let agents: Vec<_> = agents.iter().map(json::agent).collect();
        return Ok(out.json(&serde_json::json!({ "total_size": agents.len(), "agents": agents }))?);
    }
    if agents.is_empty() {
        return Ok(out.line("no agents")?);
    }
    agents.sort_by(|a, b| trouble(a).cmp(&trouble(b)).then_with(|| a.id.cmp(&b.id)));
    let row = |agent: &Agent| {
        vec![
            clean(&agent.id),
            json::agent_state(agent.state).to_owned(),
            json::severity(agent.worst_severity).to_owned(),
            agent.open_findings.to_string(),
            out.when(agent.last_heard.as_ref()),
            clean(&agent.agent_version),
            clean(&agent.state_reason),
        ]
    };
    let rows = agents.iter().map(row).collect();
    out.table(&["agent", "state", "worst", "open", "last heard", "version", "why"], rows)?;
    Ok(out.line(&format!("\n{}", counted(agents.len(), "agent")))?)
}

/// Sort key: silent ones first, then by the worst of what they report.
fn trouble(agent: &Agent) -> (u8, i32) {
    let state = match AgentState::try_from(agent.state) {
        Ok(AgentState::Stale) => 0,
        Ok(AgentState::NotYetReheard) => 1,
        Ok(AgentState::Live) => 2,
        _ => 3,
    };
    let severity = if agent.worst_severity == 0 { i32::MAX } else { agent.worst_severity };
    (state, severity)
}

pub(super) async fn show(channel: Channel, out: &mut Out, name: String) -> Result<(), CtlError> {
    let agent = FleetServiceClient::new(channel).get_agent(GetAgentRequest { id: name }).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&json::agent(&agent))?);
    }
    let mut labels: Vec<_> = agent.labels.iter().map(|(key, value)| clean(&format!("{key}={value}"))).collect();
    labels.sort();
    let memory = match agent.memory_available_bytes {
        0 => String::new(),
        bytes => format!("{} available", human_bytes(bytes)),
    };
    let lost = match agent.lost_entries {
        0 => String::new(),
        lost => format!("{lost} (evicted from the agent's spool before they were acknowledged)"),
    };
    let findings = match json::severity(agent.worst_severity) {
        "" => format!("{} open", agent.open_findings),
        worst => format!("{} open, the worst {worst}", agent.open_findings),
    };
    out.fields(&[
        ("agent", clean(&agent.id)),
        ("state", format!("{} {}", json::agent_state(agent.state), clean(&agent.state_reason)).trim_end().to_owned()),
        ("findings", findings),
        ("last heard", out.time(agent.last_heard.as_ref())),
        ("first seen", out.time(agent.first_seen.as_ref())),
        (
            "connected",
            format!("{} {}", if agent.connected { "yes, from" } else { "no, last from" }, clean(&agent.peer_address)),
        ),
        ("host", clean(&agent.host_name)),
        ("version", clean(&agent.agent_version)),
        ("os", clean(&agent.os_version)),
        ("kernel", clean(&agent.kernel_version)),
        ("boot", clean(&agent.boot_id)),
        ("labels", labels.join(", ")),
        ("memory", memory),
        ("clock skew", duration(agent.clock_skew.as_ref())),
        ("stored", format!("up to sequence {}", agent.stored_sequence)),
        ("lost", lost),
        ("more", format!("musterctl findings list --agent {0}, musterctl agents diagnose {0}", clean(&agent.id))),
    ])?;
    Ok(())
}

pub(super) async fn ping(channel: Channel, out: &mut Out, name: String) -> Result<(), CtlError> {
    let request = PingAgentRequest { id: name.clone() };
    let answer = FleetServiceClient::new(channel).ping_agent(request).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&json::ping(&name, &answer))?);
    }
    Ok(out.line(&format!("{} answered after {}", clean(&name), duration(answer.round_trip.as_ref())))?)
}
