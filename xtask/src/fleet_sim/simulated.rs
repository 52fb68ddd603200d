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
use std::ops::Range;
use std::time::{Duration, Instant};

const FACT_US: f64 = 2.0;
/// Facts of one kind that are timed.
const FACTS: usize = 200_000;
/// Facts about incidents: more are open at once in no fleet.
const INCIDENT_FACTS: usize = 5_000;
/// Between two facts.
const STEP: Duration = Duration::from_micros(100);
/// Facts that are made together before they are fed, as a coordinator takes them in: what is made long before has left the
/// caches meanwhile, so that reading it would be counted.
const BATCH: usize = 128;
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
    let connect = |agent, _, index| Ok(Fact::AgentConnected { agent, hello: hello(index).into() });
    let first = fleet.time(0..agents, connect)?;
    let each = number(usize::try_from(rss_kib()?.saturating_sub(before))?) / number(agents);
    let conditions = format!("{agents} agents with two labels, nothing open");
    results.add("memory of a simulated agent in State", each, "KiB", None, &conditions);
    let few = FACTS.min(agents);
    let leave = fleet.time(0..few, |agent, _, _| Ok(Fact::AgentDisconnected { agent, how: Disconnect::Reset }))?;
    let back = fleet.time(0..few, connect)?;
    let heard = fleet.time(0..few, |agent, _, _| Ok(Fact::AgentHeard { agent }))?;
    let audit = fleet.time(0..few, |agent, at, _| finding(agent, at, &FindingEvent::Occurred(audited()?)))?;
    let open = |agent, at, _| finding(agent, at, &FindingEvent::Opened(drift()?));
    let again = |agent, at, _| finding(agent, at, &FindingEvent::Updated(drift()?));
    let clear = |agent, at, _| finding(agent, at, &cleared(drift()?));
    // Elsewhere first: conditions come and go, and the memory that they need is asked of the kernel once.
    let incidents = INCIDENT_FACTS.min(agents / 2).max(1);
    let elsewhere = incidents..2 * incidents;
    let growing = fleet.time(elsewhere.clone(), open)?;
    fleet.time(elsewhere, clear)?;
    let (open, again) = (fleet.time(0..incidents, open)?, fleet.time(0..incidents, again)?);
    let clear = fleet.time(0..incidents, clear)?;
    let incident = fleet.time(0..incidents, |agent, at, _| finding(agent, at, &FindingEvent::Opened(closed()?)))?;
    let alone = "processor time of one thread; making facts and encoding entries left out";
    let grows = "the same, and what the kernel takes for memory that State never had before";
    let many = "the same; with its conclusions: thousands of them, so that they are gathered into one";
    let bar = Some(FACT_US);
    for (what, micros, bar, conditions) in [
        ("an agent connects for the first time", first, bar, grows),
        ("a known agent connects", back, bar, alone),
        ("its stream ends", leave, bar, alone),
        ("it is heard again", heard, bar, alone),
        ("an occurrence for the record", audit, bar, alone),
        ("a condition is told again", again, bar, alone),
        ("a condition clears", clear, bar, alone),
        ("a condition opens", open, bar, alone),
        ("more conditions open than ever", growing, bar, grows),
        ("a condition opens an incident", incident, None, many),
    ] {
        results.add(&format!("decided: {what}"), micros, "µs", bar, conditions);
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
    /// Feeds facts about agents all over the fleet; microseconds each. A batch is made before the clock runs; giving back
    /// what comes of it is counted.
    fn time(
        &mut self,
        numbers: Range<usize>,
        fact: impl Fn(AgentName, Position, usize) -> Result<Fact>,
    ) -> Result<f64> {
        let (mut facts, mut spent, mut entries) = (Vec::with_capacity(BATCH), Duration::ZERO, 0);
        let count = numbers.len();
        for first in numbers.clone().step_by(BATCH) {
            for number in first..numbers.end.min(first + BATCH) {
                facts.push(self.make(number, &fact)?);
            }
            let before = cpu()?;
            for fact in facts.drain(..) {
                self.now = self.now + STEP;
                entries += self.machine.feed(self.now, fact).len();
            }
            spent += cpu()?.saturating_sub(before);
        }
        ensure!(entries >= count, "{count} facts made {entries} entries");
        Ok(1e6 * spent.as_secs_f64() / number(count))
    }

    fn make(&mut self, number: usize, fact: impl Fn(AgentName, Position, usize) -> Result<Fact>) -> Result<Fact> {
        let index = number.wrapping_mul(STRIDE) % self.names.len();
        let name = self.names.get(index).context("no such agent")?.clone();
        let sequence = self.positions.get_mut(index).context("no such agent")?;
        *sequence += 1;
        let spool = SpoolId(uuid::Uuid::from_u128(u128::try_from(index)?));
        fact(name, Position { spool, sequence: *sequence, hash: EntryHash([1; 16]) }, index)
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

fn closed() -> Result<Finding> {
    let subject = SubjectKey::new(ServiceName::new("sim")?, ProbeKind::Port, "127.0.0.1:9100");
    Ok(Finding::new(FindingKey { subject, reason: Reason::PortClosed }, "nobody listens"))
}

fn cleared(finding: Finding) -> FindingEvent {
    FindingEvent::Cleared { key: finding.key, summary: "as declared".to_owned(), evidence: Evidence::new() }
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
