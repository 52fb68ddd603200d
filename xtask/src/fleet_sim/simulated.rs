//! A fleet without sockets: what the rules alone cost, a million agents at once; and lives of agents under losses, cuts
//! and standstills, for as many hours as one likes.

use super::Results;
use super::measures::number;
use crate::say;
use anyhow::{Context, Result, ensure};
use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{AgentName, ServiceName, SpoolId};
use muster_common::reason::Reason;
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::{AgentHello, Disconnect, Fact};
use muster_coordinator_core::machine::Machine;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::state::State;
use muster_tests::loss::{Conditions, run};
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::time::{Duration, Instant};

const FACT_US: f64 = 2.0;
/// Facts of one kind that are timed.
const FACTS: usize = 200_000;
/// Facts about incidents: more are open at once in no fleet.
const INCIDENT_FACTS: usize = 5_000;
/// Between two facts.
const STEP: Duration = Duration::from_micros(100);
/// A prime, so that one fact's agent says nothing about the next one's.
const STRIDE: usize = 7_919;
/// Lives that are told of at once.
const AGENTS_PER_ROUND: u64 = 1_000;

struct Fleet {
    machine: Machine,
    names: Vec<AgentName>,
    positions: Vec<u64>,
    now: Timestamp,
}

/// Times facts of several kinds.
pub(crate) fn decide(agents: usize, results: &mut Results) -> Result<()> {
    say!("{agents} agents without sockets …");
    let mut machine = Machine::new(State::genesis());
    let begin = Timestamp::from_unix_ms(1_795_220_000_000);
    machine.feed(
        begin,
        Fact::PolicyLoaded { policy: Box::new(Policy { receivers: vec!["hook".to_owned()], ..Policy::default() }) },
    );
    let names = (0..agents).map(|index| AgentName::new(format!("sim-{index:07}"))).collect::<Result<Vec<_>, _>>()?;
    let mut fleet = Fleet { machine, names, positions: vec![0; agents], now: begin };
    let before = rss_kib()?;
    let connect =
        fleet.time(agents, |agent, _, index| Ok(Fact::AgentConnected { agent, hello: hello(index).into() }))?;
    let each = number(usize::try_from(rss_kib()?.saturating_sub(before))?) / number(agents);
    results.add(
        "memory of a simulated agent in State",
        each,
        "KiB",
        None,
        &format!("{agents} agents with two labels, nothing open"),
    );
    let few = FACTS.min(agents);
    let leave = fleet.time(few, |agent, _, _| Ok(Fact::AgentDisconnected { agent, how: Disconnect::Reset }))?;
    let back = fleet.time(few, |agent, _, _| Ok(Fact::AgentHeard { agent }))?;
    let audit = fleet.time(few, |agent, at, _| finding(agent, at, &FindingEvent::Occurred(audited()?)))?;
    let incidents = INCIDENT_FACTS.min(agents);
    let open = fleet.time(incidents, |agent, at, _| finding(agent, at, &FindingEvent::Opened(drift()?)))?;
    let again = fleet.time(incidents, |agent, at, _| finding(agent, at, &FindingEvent::Updated(drift()?)))?;
    let cleared = || {
        anyhow::Ok(FindingEvent::Cleared {
            key: drift()?.key,
            summary: "as declared".to_owned(),
            evidence: Evidence::new(),
        })
    };
    let clear = fleet.time(incidents, |agent, at, _| finding(agent, at, &cleared()?))?;
    for (what, micros) in [
        ("an agent connects", connect),
        ("its stream ends", leave),
        ("it is heard again", back),
        ("an occurrence for the record", audit),
        ("a condition is told again", again),
        ("a condition clears", clear),
        ("a condition opens", open),
    ] {
        results.add(
            &format!("decided: {what}"),
            micros,
            "µs",
            Some(FACT_US),
            "processor time of one thread, encoding left out",
        );
    }
    Ok(())
}

/// Lives agents under trouble until `hours` are lived in all.
pub(crate) fn loss(hours: u64, results: &mut Results) -> Result<()> {
    say!("{hours} agent-hours with 1 % loss, 5 s cuts and 60 s standstills …");
    let (conditions, begun, mut told) = (Conditions::default(), Instant::now(), Instant::now());
    let (mut lived, mut false_stale, mut round, mut longest) = (0, 0, 0, 0);
    let (mut cuts, mut pauses, mut lost) = (0, 0, 0);
    let each = (hours / AGENTS_PER_ROUND).clamp(1, 100);
    while lived < hours {
        let outcome = run(round, AGENTS_PER_ROUND, each, &conditions)?;
        lived += outcome.agent_hours;
        false_stale += outcome.false_stale;
        longest = longest.max(outcome.longest_gap_ms);
        (cuts, pauses, lost) = (cuts + outcome.partitions, pauses + outcome.pauses, lost + outcome.lost);
        round += 1;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            say!("  {lived} lived, {false_stale} false alarms");
        }
    }
    let conditions = format!(
        "{lived} agent-hours in {:.0} s, {lost} packets lost, {cuts} cuts, {pauses} standstills; longest gap {longest} ms",
        begun.elapsed().as_secs_f64()
    );
    results.add("false stale under losses", number(usize::try_from(false_stale)?), "", None, &conditions);
    Ok(())
}

impl Fleet {
    /// Feeds `count` facts about agents all over the fleet; microseconds each.
    fn time(&mut self, count: usize, fact: impl Fn(AgentName, Position, usize) -> Result<Fact>) -> Result<f64> {
        let mut facts = Vec::with_capacity(count);
        for number in 0..count {
            let index = number.wrapping_mul(STRIDE) % self.names.len();
            let name = self.names.get(index).context("no such agent")?.clone();
            let sequence = self.positions.get_mut(index).context("no such agent")?;
            *sequence += 1;
            let spool = SpoolId(uuid::Uuid::from_u128(u128::try_from(index)?));
            facts.push(fact(name, Position { spool, sequence: *sequence, hash: EntryHash([1; 16]) }, index)?);
        }
        let (before, mut entries) = (cpu()?, 0);
        for fact in facts {
            self.now = self.now + STEP;
            entries += self.machine.feed(self.now, fact).len();
        }
        ensure!(entries >= count, "{count} facts made {entries} entries");
        Ok(1e6 * cpu()?.saturating_sub(before).as_secs_f64() / number(count))
    }
}

fn finding(agent: AgentName, position: Position, event: &FindingEvent) -> Result<Fact> {
    let observed = Timestamp::from_unix_ms(1_795_220_000_000);
    Ok(Fact::FindingReceived { agent, position, observed, estimated: false, event: event.clone() })
}

fn hello(index: usize) -> AgentHello {
    AgentHello {
        host_name: format!("sim-{index:07}.fleet.example"),
        agent_version: "0.1.0".to_owned(),
        os_version: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        kernel_version: "6.18.0-amd64".to_owned(),
        boot_id: None,
        labels: [("role", "worker"), ("zone", "sim")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        peer_address: format!("10.{}.{}.{}", (index >> 16) & 255, (index >> 8) & 255, index & 255),
        spool: SpoolId(uuid::Uuid::from_u128(u128::try_from(index).unwrap_or_default())),
        listening_ports: Vec::new(),
    }
}

fn audited() -> Result<Finding> {
    let subject = SubjectKey::new(ServiceName::new("sim")?, ProbeKind::Report, "/srv/repo");
    Ok(Finding::new(FindingKey { subject, reason: Reason::RepoUntrackedFiles }, "3 files are not tracked"))
}

fn drift() -> Result<Finding> {
    let subject = SubjectKey::new(ServiceName::new("sim")?, ProbeKind::Baseline, "vm.swappiness");
    Ok(Finding::new(FindingKey { subject, reason: Reason::BaselineDrift }, "vm.swappiness is 60, declared is 10"))
}

/// Of this thread, to the nanosecond: what `getrusage` tells is counted in ticks of 4 ms, a third of what some pieces take.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn rss_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().next().context("no VmRSS")?.parse()?)
}
