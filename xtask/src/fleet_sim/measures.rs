//! Memory, heartbeats, and everyone at once.

use super::agent::BEAT;
use super::http2::Operator;
use super::stage::Stage;
use super::{CONNECT_LIMIT, Results};
use crate::bench::measure::spread;
use crate::say;
use anyhow::{Context, Result, ensure};
use muster_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bars of the coordinator.
const MEMORY_KIB: f64 = 40.0;
const CPU_US: f64 = 30.0;
const REGISTRY_MS: f64 = 250.0;
const RECONNECT_S: f64 = 10.0;
const RECONNECT_BEAT_MS: f64 = 1_000.0;

/// The small fleet beside the whole one.
const FEW: usize = 1_000;
/// Heartbeats that are followed into the registry.
const FOLLOWED: usize = 300;
const FOLLOWED_BRISK: usize = 20;
/// Between two of them.
const FOLLOWED_EVERY: Duration = Duration::from_millis(20);
/// A heartbeat that has not arrived by then never will.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(20);
/// After a re-hear window that should be over.
const REHEAR_LIMIT: Duration = Duration::from_secs(300);

/// RSS for each agent, and what is left when they have gone.
pub(crate) fn memory(stage: &Stage, results: &mut Results) -> Result<()> {
    let all = stage.swarm.agents.len();
    std::thread::sleep(stage.settle / 6);
    let empty = stage.look()?;
    let mut full = empty;
    let counts = if all > FEW { vec![FEW, all] } else { vec![all] };
    for count in counts {
        say!("memory of {count} agents …");
        stage.swarm.wake(count);
        stage.swarm.until_connected(count, CONNECT_LIMIT)?;
        std::thread::sleep(stage.settle);
        full = stage.look()?;
        let each = kib(full.rss_kib.saturating_sub(empty.rss_kib)) / number(count);
        let conditions = format!("VmRSS less {:.1} MiB when nobody was there", kib(empty.rss_kib) / 1024.0);
        results.add(
            &format!("memory of a connected agent, {count} of them"),
            each,
            "KiB",
            Some(MEMORY_KIB),
            &conditions,
        );
    }
    say!("all leave at once …");
    stage.swarm.wake(0);
    stage.swarm.until_connected(0, CONNECT_LIMIT)?;
    std::thread::sleep(stage.settle);
    let gone = stage.look()?;
    let taken = full.rss_kib.saturating_sub(empty.rss_kib).max(1);
    let back = full.rss_kib.saturating_sub(gone.rss_kib);
    let conditions =
        format!("{:.1} MiB with {all} agents, {:.1} MiB after", kib(full.rss_kib) / 1024.0, kib(gone.rss_kib) / 1024.0);
    results.add("of that given back after all left at once", 100.0 * kib(back) / kib(taken), "%", None, &conditions);
    Ok(())
}

/// Processor time and latency of heartbeats.
pub(crate) fn heartbeats(stage: &Stage, length: Duration, results: &mut Results) -> Result<()> {
    say!("heartbeats of {} agents for {:.0} s …", stage.swarm.agents.len(), length.as_secs_f64());
    std::thread::sleep(stage.settle);
    let (start, beats_before, begun) = (stage.look()?, stage.swarm.beats(), Instant::now());
    let pings_before = stage.swarm.common.pings.load(Ordering::Relaxed);
    std::thread::sleep(length);
    let (end, beats) = (stage.look()?, stage.swarm.beats() - beats_before);
    let pings = stage.swarm.common.pings.load(Ordering::Relaxed) - pings_before;
    ensure!(beats > 0, "no heartbeat was sent");
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = end.cpu.saturating_sub(start.cpu);
    let conditions = format!(
        "user and system time of the whole process; {:.0} heartbeats and {:.0} pings a second, {:.1} % of a core",
        float(beats) / seconds,
        float(pings) / seconds,
        100.0 * cpu.as_secs_f64() / seconds
    );
    results.add(
        "processor time of a heartbeat",
        1e6 * cpu.as_secs_f64() / float(beats),
        "µs",
        Some(CPU_US),
        &conditions,
    );
    let times = runtime()?.block_on(async {
        let mut operator = stage.operator().await?;
        let mut times = Vec::new();
        for index in 0..if stage.brisk { FOLLOWED_BRISK } else { FOLLOWED } {
            times.extend(follow(stage, &mut operator, index * 31).await?);
            tokio::time::sleep(FOLLOWED_EVERY).await;
        }
        anyhow::Ok(times)
    })?;
    latency(results, "heartbeat to registry, p99", times, REGISTRY_MS);
    Ok(())
}

/// The coordinator is killed and started; all come at once.
pub(crate) fn reconnect(stage: &Stage, results: &mut Results) -> Result<()> {
    let all = stage.swarm.agents.len();
    say!("the coordinator is killed, {all} agents come back at once …");
    let known = runtime()?.block_on(async { silences(&mut stage.operator().await?).await })?;
    stage.restart()?;
    let failed_before = stage.swarm.common.failed.load(Ordering::Relaxed);
    let before = stage.look()?;
    let done = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&done);
    let (took, times) = std::thread::scope(|scope| {
        let (ready, begin) = std::sync::mpsc::channel();
        let followed = scope.spawn(move || {
            runtime()?.block_on(async {
                let mut operator = stage.operator().await?;
                ready.send(()).context("nobody waits")?;
                let (mut times, mut index) = (Vec::new(), 0);
                while !told.load(Ordering::Acquire) {
                    index += 1;
                    times.extend(follow(stage, &mut operator, index * 31).await?);
                    tokio::time::sleep(FOLLOWED_EVERY).await;
                }
                anyhow::Ok(times)
            })
        });
        begin.recv().context("no operator connects")?;
        stage.open_gate();
        let took = stage.swarm.until_connected(all, CONNECT_LIMIT);
        done.store(true, Ordering::Release);
        let times = followed.join().map_err(|_| anyhow::anyhow!("the thread that asks panicked"))?;
        anyhow::Ok((took?, times?))
    })?;
    let cpu = stage.look()?.cpu.saturating_sub(before.cpu);
    let failed = stage.swarm.common.failed.load(Ordering::Relaxed) - failed_before;
    let conditions = format!(
        "{failed} tries failed and were repeated as agents do; {:.2} ms of the coordinator's processor time each",
        1e3 * cpu.as_secs_f64() / number(all)
    );
    results.add(&format!("all {all} agents are back"), took.as_secs_f64(), "s", Some(RECONNECT_S), &conditions);
    latency(results, "heartbeat to registry meanwhile, p99", times, RECONNECT_BEAT_MS);
    false_stale(stage, known, results)
}

/// Waits until the re-hear window is over and counts who is not live, and incidents about silence that are new.
fn false_stale(stage: &Stage, known: usize, results: &mut Results) -> Result<()> {
    say!("waiting for the end of the re-hear window …");
    let (stale, incidents, waited) = runtime()?.block_on(async {
        let mut operator = stage.operator().await?;
        let (begun, mut most) = (Instant::now(), 0);
        loop {
            let status: v1::GetFleetStatusResponse =
                operator.ask("FleetService/GetFleetStatus", &v1::GetFleetStatusRequest {}).await?;
            let is_over = status.rehear_until.is_none();
            most = most.max(status.agents_stale + status.agents_not_yet_reheard * u32::from(is_over));
            if is_over {
                let incidents = silences(&mut operator).await?.saturating_sub(known);
                return anyhow::Ok((most, incidents, begun.elapsed()));
            }
            ensure!(begun.elapsed() < REHEAR_LIMIT, "the re-hear window does not end");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })?;
    let conditions =
        format!("{incidents} new incidents about silence; {:.0} s after the last welcome", waited.as_secs_f64());
    results.add("false stale after it", f64::from(stale), "", None, &conditions);
    Ok(())
}

/// Incidents about silence, resolved ones included.
async fn silences(operator: &mut Operator) -> Result<usize> {
    let mut question = v1::ListIncidentsRequest { page_size: 1000, include_resolved: true, ..Default::default() };
    let mut count = 0;
    loop {
        let listed: v1::ListIncidentsResponse = operator.ask("IncidentService/ListIncidents", &question).await?;
        let silent = |incident: &&v1::Incident| ["agent_stale", "mass_stale"].contains(&incident.reason.as_str());
        count += listed.incidents.iter().filter(silent).count();
        if listed.next_page_token.is_empty() {
            return Ok(count);
        }
        question.page_token = listed.next_page_token;
    }
}

/// Lets an agent beat and asks for it until the registry knows: the time from when it was sent. How long the agent took to
/// wake up is the simulator's matter, which has all of them on one thread. None when no such agent is connected.
async fn follow(stage: &Stage, operator: &mut Operator, from: usize) -> Result<Option<Duration>> {
    let agents = &stage.swarm.agents;
    let Some(agent) = agents.iter().cycle().skip(from % agents.len()).take(agents.len()).find(|a| a.is_connected())
    else {
        return Ok(None);
    };
    let stamp = agent.stamp.fetch_add(4096, Ordering::AcqRel) + 4096;
    let begun = Instant::now();
    agent.want(BEAT);
    while begun.elapsed() < ARRIVAL_LIMIT {
        let question = v1::GetAgentRequest { id: agent.name.clone() };
        let known: v1::Agent = operator.ask("FleetService/GetAgent", &question).await?;
        if known.memory_available_bytes == stamp {
            return Ok(agent.sent_at(stamp).map(|sent| sent.elapsed()));
        }
        if !agent.is_connected() {
            return Ok(None);
        }
    }
    Ok(Some(ARRIVAL_LIMIT))
}

/// The 99th percentile of `times` against a bar in ms, with median and maximum.
pub(crate) fn latency(results: &mut Results, what: &str, times: Vec<Duration>, bar_ms: f64) {
    let count = times.len();
    let Some([median, p99, max]) = spread(times).map(|times| times.map(|time| 1e3 * time.as_secs_f64())) else {
        say!("  {what}: not measured");
        return;
    };
    let conditions = format!("{count} of them; median {median:.1} ms, longest {max:.0} ms");
    results.add(what, p99, "ms", Some(bar_ms), &conditions);
}

/// A runtime for an operator's calls.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Counts are far below 2^32.
pub(crate) fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::NAN, f64::from)
}

fn float(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::NAN, f64::from)
}

fn kib(kib: u64) -> f64 {
    float(kib)
}
