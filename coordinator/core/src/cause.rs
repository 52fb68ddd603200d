//! Which cause key a finding belongs to, and how telling a reason is among the members of one cause.
//!
//! Keys are part of the deduplication keys of pages: changing their form pages everything again.

use muster_common::finding::{FindingKey, ProbeKind};
use muster_common::ids::{AgentName, ServiceName};
use muster_common::reason::Reason;

/// Cause key of `mass_stale`.
pub const MASS_STALE: &str = "fleet/mass_stale";
/// Cause key of many new incidents that nothing explains, on more than one host.
pub const FLEET_BURST: &str = "fleet/incident_burst";
/// Cause key of `coordinator_fault`.
pub const COORDINATOR_FAULT: &str = "coordinator/fault";

/// Before a receiver's name in the cause key of its failing.
const RECEIVER: &str = "coordinator/receiver/";

/// What a cause key is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseKind {
    /// One subject, service or host.
    Host,
    /// An agent's silence.
    AgentStale,
    /// Many agents' silence.
    MassStale,
    /// Another matter of many hosts: its detector knows which.
    Fleet,
    /// More incidents of one agent than are opened.
    AgentFlood,
    /// Many new incidents that nothing explains.
    Burst,
}

/// The agent of a host's cause key, and what follows it. Asked some ten times a fact of names of a dozen letters: for so
/// few looking at each costs a fraction of what a search that is made for long texts does.
pub(crate) fn parts_of_host(cause: &str) -> Option<(&str, &str)> {
    let of_host = cause.strip_prefix("host/")?;
    let end = of_host.bytes().position(|byte| byte == b'/')?;
    Some((of_host.get(..end)?, of_host.get(end + 1..)?))
}

/// The kind of a key.
pub fn kind_of(cause: &str) -> CauseKind {
    if cause.starts_with("host/") {
        // What has more parts than the agent and one word is about a subject or a service.
        return match parts_of_host(cause) {
            Some((_, "agent")) => CauseKind::AgentStale,
            Some((_, "flood")) => CauseKind::AgentFlood,
            Some((_, rest)) if is_nth(rest, "burst") => CauseKind::Burst,
            _ => CauseKind::Host,
        };
    }
    if cause == MASS_STALE || cause.starts_with("fleet/mass_stale/") {
        CauseKind::MassStale
    } else if is_nth(cause, FLEET_BURST) {
        CauseKind::Burst
    } else if cause.starts_with("fleet/") {
        CauseKind::Fleet
    } else {
        CauseKind::Host
    }
}

/// A gathering, also one of those that came while an older one was still open: see [`nth_burst`].
fn is_nth(key: &str, base: &str) -> bool {
    let Some(rest) = key.strip_prefix(base) else { return false };
    rest.is_empty() || rest.strip_prefix('-').is_some_and(|nth| nth.parse::<usize>().is_ok())
}

/// `host/AGENT` and this end, and nothing between.
fn is_of_host(cause: &str, end: &str) -> bool {
    cause.starts_with("host/") && cause.ends_with(end) && cause.matches('/').count() == 2
}

/// Cause key of many new incidents of one host that nothing explains.
pub fn host_burst(agent: &AgentName) -> String {
    of_host(agent, &["burst"])
}

/// The nth of several gatherings that are open at once: the first has the plain key.
pub fn nth_burst(base: &str, nth: usize) -> String {
    if nth <= 1 { base.to_owned() } else { format!("{base}-{nth}") }
}

/// Cause key of more incidents of one agent than are opened.
pub fn agent_flood(agent: &AgentName) -> String {
    of_host(agent, &["flood"])
}

/// The agent that told of a cause, and so may tell of too many; none for what the coordinator found out by itself.
pub fn teller_of(cause: &str) -> Option<&str> {
    let (agent, rest) = parts_of_host(cause)?;
    (kind_of(cause) == CauseKind::Host && rest != "identity").then_some(agent)
}

/// The host that a cause is about; none for the fleet's and the coordinator's own.
pub fn agent_of(cause: &str) -> Option<AgentName> {
    // Also of a key that ends with the name.
    let agent = parts_of_host(cause).map(|(agent, _)| agent).or_else(|| cause.strip_prefix("host/"))?;
    AgentName::new(agent).ok()
}

/// Cause key of an agent's silence.
pub fn agent_stale(agent: &AgentName) -> String {
    of_host(agent, &["agent"])
}

/// Cause key of two agents under one identity.
pub fn identity_conflict(agent: &AgentName) -> String {
    format!("host/{agent}/identity")
}

/// Whether a cause key is that of two agents under one identity.
pub fn is_identity_conflict(cause: &str) -> bool {
    is_of_host(cause, "/identity")
}

/// Cause key of a receiver that does not take its pages.
pub fn receiver(name: &str) -> String {
    format!("{RECEIVER}{name}")
}

/// The receiver whose failing a cause key is about: it is told to all others.
pub fn failing_receiver(cause: &str) -> Option<&str> {
    cause.strip_prefix(RECEIVER)
}

/// Cause key of a service's availability on one host.
pub fn service(agent: &AgentName, service: &ServiceName) -> String {
    of_service(agent, service.as_str())
}

/// The same by the service's text.
pub(crate) fn of_service(agent: &AgentName, service: &str) -> String {
    of_host(agent, &["service", service])
}

/// Writes it over another one: for many hosts in a row.
pub(crate) fn set_of_service(key: &mut String, agent: &AgentName, service: &str) {
    key.clear();
    for part in ["host/", agent.as_str(), "/service/", service] {
        key.push_str(part);
    }
}

/// Cause key of a host's memory.
pub fn memory(agent: &AgentName) -> String {
    of_host(agent, &["memory"])
}

/// Cause key of a finding on its own host.
pub fn of_finding(agent: &AgentName, key: &FindingKey) -> String {
    let name = &key.subject.service;
    let of_subject = |family: &str| of_host(agent, &[family, name.as_str(), &key.subject.subject]);
    match family(key.reason) {
        Family::Availability => service(agent, name),
        // Of the host's own update nothing else is known here.
        Family::Update if name.is_host() => of_subject(key.reason.as_str()),
        Family::Update => service(agent, name),
        Family::Oom if name.is_host() => of_host(agent, &["oom"]),
        Family::Oom => service(agent, name),
        Family::Memory if name.is_host() => memory(agent),
        // A service at the limit of its own cgroup is what its kill and its silence come from.
        Family::Memory => service(agent, name),
        Family::Sqlite => of_subject("sqlite"),
        Family::Lock => of_subject("lock"),
        Family::Backup => of_subject("backup"),
        // What the coordinator has no name for is about the service all the same where its probe is about that.
        Family::Other if key.reason == Reason::UnknownCondition && !name.is_host() && of_life(key.subject.probe) => {
            service(agent, name)
        }
        Family::Other => of_subject(key.reason.as_str()),
    }
}

/// Whether a probe looks at nothing but whether a service is there.
fn of_life(probe: ProbeKind) -> bool {
    matches!(probe, ProbeKind::PidFile | ProbeKind::Process | ProbeKind::Port | ProbeKind::Unit | ProbeKind::Health)
}

/// `host/AGENT` and the parts after it.
fn of_host(agent: &AgentName, parts: &[&str]) -> String {
    let agent = agent.as_str();
    let length: usize = parts.iter().map(|part| 1 + part.len()).sum();
    let mut key = String::with_capacity("host/".len() + agent.len() + length);
    key.push_str("host/");
    key.push_str(agent);
    for part in parts {
        key.push('/');
        key.push_str(part);
    }
    key
}

/// The parts as one text. Keys and places are put together for every fact: by hand, which costs half of what `concat` does
/// and a fraction of what `format!` does.
pub(crate) fn joined(parts: &[&str]) -> String {
    let mut text = String::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| text.push_str(part));
    text
}

/// Cause key of the same lock on all hosts: the service and the file's name, since paths differ between hosts.
pub fn of_fleet_lock(key: &FindingKey) -> Option<String> {
    if family(key.reason) != Family::Lock {
        return None;
    }
    Some(["fleet/lock/", key.subject.service.as_str(), "/", file_name(&key.subject.subject)].concat())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Availability,
    Update,
    Oom,
    Memory,
    Sqlite,
    Lock,
    Backup,
    Other,
}

fn family(reason: Reason) -> Family {
    match reason {
        Reason::ProcessDown
        | Reason::ProcessZombie
        | Reason::ProcessRestarted
        | Reason::PidFileMissing
        | Reason::PidFileStale
        | Reason::PidFileMalformed
        | Reason::PidFileOrphaned
        | Reason::PortClosed
        | Reason::PortUnresponsive
        | Reason::PortConflict
        | Reason::HealthCheckFailed
        | Reason::UnitFailed
        | Reason::UnitInactive
        | Reason::UnitMissing
        | Reason::UnitStuck
        | Reason::FdExhaustion
        | Reason::RestartLoop
        | Reason::RestartStorm => Family::Availability,
        Reason::UpdateFailed | Reason::UpdateRollback => Family::Update,
        Reason::OomKill => Family::Oom,
        Reason::MemoryApproaching | Reason::MemoryCritical | Reason::MemoryPressure | Reason::MemoryGrowth => {
            Family::Memory
        }
        Reason::SqliteCorrupt
        | Reason::SqliteNotADatabase
        | Reason::SqliteMissing
        | Reason::SqliteReplaced
        | Reason::SqliteShrunk
        | Reason::SqliteWalGrowth
        | Reason::SqliteJournalHot
        | Reason::SqliteRowsLost
        | Reason::SqliteForeignKeys => Family::Sqlite,
        Reason::SqliteLockHeld | Reason::LockContention => Family::Lock,
        Reason::BackupMissing | Reason::BackupStale | Reason::BackupShrunk | Reason::BackupCorrupt => Family::Backup,
        _ => Family::Other,
    }
}

/// The fleet-wide lock that a host's lock may be a symptom of.
pub fn fleet_lock_of(cause: &str) -> Option<String> {
    let (_, rest) = parts_of_host(cause)?;
    let (service, subject) = rest.strip_prefix("lock/")?.split_once('/')?;
    Some(["fleet/lock/", service, "/", file_name(subject)].concat())
}

pub(crate) fn file_name(subject: &str) -> &str {
    subject.rsplit('/').next().filter(|file| !file.is_empty()).unwrap_or(subject)
}

/// How much a reason explains the other members of its cause: the highest names the incident.
pub fn telling(reason: Reason) -> u8 {
    match reason {
        Reason::RestartStorm => 9,
        Reason::OomKill | Reason::UpdateRollback => 8,
        Reason::UpdateFailed => 7,
        Reason::PortConflict | Reason::SqliteCorrupt | Reason::SqliteNotADatabase | Reason::SqliteRowsLost => 7,
        Reason::RestartLoop | Reason::SqliteMissing | Reason::SqliteReplaced | Reason::FdExhaustion => 6,
        Reason::ProcessDown | Reason::ProcessZombie | Reason::SqliteLockHeld => 5,
        Reason::UnitFailed | Reason::UnitInactive | Reason::UnitMissing | Reason::UnitStuck => 4,
        Reason::PortUnresponsive | Reason::PortClosed | Reason::LockContention => 3,
        Reason::HealthCheckFailed => 2,
        _ => 1,
    }
}

/// `agent/service/probe/subject/reason`: the name of a member.
pub fn member_name(agent: &AgentName, key: &FindingKey) -> String {
    let FindingKey { subject, reason } = key;
    let (service, probe) = (subject.service.as_str(), subject.probe.as_str());
    joined(&[agent.as_str(), "/", service, "/", probe, "/", &subject.subject, "/", reason.as_str()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::finding::SubjectKey;

    fn check(service: &str, probe: ProbeKind, subject: &str, reason: Reason, host: &str, fleet: Option<&str>) {
        let agent = AgentName::new("web-1").unwrap();
        let subject = SubjectKey::new(ServiceName::new(service).unwrap(), probe, subject);
        let key = FindingKey { subject, reason };
        assert_eq!(of_finding(&agent, &key), host);
        assert_eq!(of_fleet_lock(&key).as_deref(), fleet);
        assert_eq!(member_name(&agent, &key), format!("{agent}/{key}"));
    }

    #[test]
    fn findings_of_one_cause_share_a_key() {
        let spl = "host/web-1/service/spl";
        check("spl", ProbeKind::PidFile, "/run/spl.pid", Reason::ProcessDown, spl, None);
        check("spl", ProbeKind::Port, "127.0.0.1:1", Reason::PortClosed, spl, None);
        check("spl", ProbeKind::Oom, "spl", Reason::OomKill, spl, None);
        check("host", ProbeKind::Oom, "victim", Reason::OomKill, "host/web-1/oom", None);
        check("host", ProbeKind::Memory, "host", Reason::MemoryCritical, "host/web-1/memory", None);
        check("host", ProbeKind::Pressure, "memory stalls", Reason::MemoryPressure, "host/web-1/memory", None);
        check("spl", ProbeKind::Pressure, "memory cgroup", Reason::MemoryPressure, spl, None);
        check("spl", ProbeKind::Process, "main process", Reason::FdExhaustion, spl, None);
        check("spl", ProbeKind::Unit, "spl.service", Reason::UnitInactive, spl, None);
        let (lock, fleet) = ("host/web-1/lock/spl//var/a.db", Some("fleet/lock/spl/a.db"));
        check("spl", ProbeKind::Sqlite, "/var/a.db", Reason::SqliteLockHeld, lock, fleet);
        check("spl", ProbeKind::Sqlite, "/var/a.db", Reason::SqliteCorrupt, "host/web-1/sqlite/spl//var/a.db", None);
    }

    #[test]
    fn kinds_are_read_off_the_key() {
        assert_eq!(kind_of("host/web-1/agent"), CauseKind::AgentStale);
        assert_eq!(kind_of("host/web-1/service/agent"), CauseKind::Host);
        assert_eq!(kind_of("fleet/lock/spl/a.db"), CauseKind::Fleet);
        for base in [FLEET_BURST, "host/web-1/burst"] {
            for nth in [1, 2, 16] {
                assert_eq!(kind_of(&nth_burst(base, nth)), CauseKind::Burst, "{base} {nth}");
            }
        }
        assert_eq!(kind_of("host/web-2/service/burst-2"), CauseKind::Host);
    }
}
