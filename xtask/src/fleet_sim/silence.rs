//! How soon the coordinator notices that an agent is gone: one that freezes with its connection open, and one whose
//! connection is reset.

use super::agent::{FREEZE, RESET};
use super::http2::{Messages, Operator, piece};
use super::measures::runtime;
use super::stage::Stage;
use super::{CONNECT_LIMIT, Results};
use crate::bench::measure::spread;
use crate::say;
use anyhow::{Context, Result};
use muster_proto::v1::{self, AgentState};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Agents of each kind; below what counts as a mass.
const VICTIMS: usize = 40;
/// Of a fleet so small that fewer are to be spared.
const VICTIMS_SHARE: usize = 5;
/// Beyond the threshold.
const LATE_S: f64 = 2.0;
/// Heartbeats missed until an agent is stale, as the coordinator has it by itself.
const STALE_AFTER: u32 = 3;
/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Measures both.
pub(crate) fn measure(stage: &Stage, heartbeat: Duration, results: &mut Results) -> Result<()> {
    let agents = &stage.swarm.agents;
    let victims = VICTIMS.min(agents.len() / VICTIMS_SHARE).max(1);
    say!("{victims} agents freeze, {victims} connections are reset …");
    let begun = stage.swarm.common.begun;
    let seen = runtime()?.block_on(async {
        let mut operator = stage.operator().await?;
        let mut watch = operator.call("FleetService/WatchAgents", &v1::WatchAgentsRequest::default()).await?;
        let (mut messages, mut seen) = (Messages::default(), Seen::default());
        // The first messages tell of everyone as it stands.
        while let Ok(piece) = tokio::time::timeout(heartbeat, piece(&mut watch)).await {
            messages.push(&piece?.context("the watch ended")?);
            while messages.next::<v1::WatchAgentsResponse>()?.is_some() {}
        }
        let (frozen, reset) = (agents.iter().take(victims), agents.iter().skip(victims).take(victims));
        frozen.clone().for_each(|agent| agent.want(FREEZE));
        // They would be back within a moment: gone they must stay.
        stage.swarm.common.gate.send_replace(false);
        let reset_at = Instant::now();
        reset.clone().for_each(|agent| agent.want(RESET));
        seen.unlinked = unlinked(&mut operator, &agents.get(victims).context("no agents")?.name).await?;
        while reset_at.elapsed() < LIMIT && seen.stale.len() < 2 * victims {
            let Ok(piece) = tokio::time::timeout(LIMIT, piece(&mut watch)).await else { break };
            messages.push(&piece?.context("the watch ended")?);
            let at = Instant::now();
            while let Some(told) = messages.next::<v1::WatchAgentsResponse>()? {
                seen.note(told.agent.unwrap_or_default(), at);
            }
        }
        let beat = |name: &str| {
            agents
                .iter()
                .find(|agent| agent.name == name)
                .map(|agent| begun + Duration::from_micros(agent.beat_us.load(std::sync::atomic::Ordering::Acquire)))
        };
        let since_beat = |(name, at): (&String, &Instant)| Some(at.saturating_duration_since(beat(name)?));
        let confirmed = seen.disconnected.iter().filter(|(name, _)| reset.clone().any(|agent| agent.name == **name));
        let confirmed: Vec<_> = confirmed.map(|(_, at)| at.saturating_duration_since(reset_at)).collect();
        // Those whose connection was reset are stale later where they are held back: within a re-hear window.
        let stale = seen.stale.iter().filter(|(name, _)| frozen.clone().any(|agent| agent.name == **name));
        let stale: Vec<_> = stale.filter_map(since_beat).collect();
        anyhow::Ok((stale, confirmed, seen.unlinked))
    });
    stage.open_gate();
    agents.iter().take(victims).for_each(|agent| agent.want(RESET));
    let (stale, confirmed, unlinked) = seen?;
    let seconds = heartbeat.as_secs_f64();
    p99(results, "stale agent noticed, from its last heartbeat, p99", stale, seconds * f64::from(STALE_AFTER) + LATE_S);
    p99(results, "reset connection confirmed, p99", confirmed, seconds + LATE_S);
    results.add(
        "reset connection noticed",
        1e3 * unlinked.as_secs_f64(),
        "ms",
        None,
        "the registry says: not connected",
    );
    stage.swarm.until_connected(agents.len(), CONNECT_LIMIT)?;
    Ok(())
}

#[derive(Default)]
struct Seen {
    stale: BTreeMap<String, Instant>,
    disconnected: BTreeMap<String, Instant>,
    unlinked: Duration,
}

impl Seen {
    fn note(&mut self, agent: v1::Agent, at: Instant) {
        if agent.state == i32::from(AgentState::Stale) {
            self.stale.entry(agent.id).or_insert(at);
        } else if agent.state_reason.starts_with("disconnected") {
            self.disconnected.entry(agent.id).or_insert(at);
        }
    }
}

async fn unlinked(operator: &mut Operator, name: &str) -> Result<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let question = v1::GetAgentRequest { id: name.to_owned() };
        if !operator.ask::<v1::Agent>("FleetService/GetAgent", &question).await?.connected {
            break;
        }
    }
    Ok(begun.elapsed())
}

fn p99(results: &mut Results, what: &str, times: Vec<Duration>, bar_s: f64) {
    let count = times.len();
    let Some([median, p99, max]) = spread(times).map(|times| times.map(|time| time.as_secs_f64())) else {
        say!("  {what}: not seen");
        return;
    };
    let conditions = format!("{count} agents; median {median:.1} s, longest {max:.1} s");
    results.add(what, p99, "s", Some(bar_s), &conditions);
}
