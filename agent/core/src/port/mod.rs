//! A listening socket: whether anybody listens, whether connections are taken, and whether it is the service that does.

pub mod proc_net;
pub mod target;

pub use target::{Address, Listener, SocketFile, Target, TcpHost, matching};

use crate::clock::Now;
use crate::diagnose::PID_KEY;
use crate::judgement::{Judgement, Problem};
use crate::services::{Instance, is_of_one_service};
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::ids::ProcessId;
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// A queue that is not empty and never shrinks is not being drained when seen so in this many runs …
const STUCK_RUNS_MIN: u32 = 6;
/// … over at least this long, so that runs in quick succession do not condemn a busy server.
const STUCK_MIN: Duration = Duration::from_secs(20);
/// Programs that hold a port on behalf of a container: whose it is cannot be told from the holder.
const PROXIES: [&str; 3] = ["docker-proxy", "rootlesskit", "rootlessport"];

/// A process that holds a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// (pid, start time).
    pub process: ProcessId,
    /// Name.
    pub comm: String,
    /// Executable, where it could be read.
    pub exe: Option<String>,
    /// Its user.
    pub uid: Option<u32>,
    /// Its cgroup.
    pub cgroup: Option<String>,
    /// Parents, nearest first.
    pub ancestors: Vec<ProcessId>,
}

/// What a connection attempt met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connect {
    /// The kernel completed it.
    Accepted,
    /// Nothing came back within the bound, or the queue is full.
    NoAnswer,
    /// It was refused although somebody listens.
    Refused,
    /// It could not be tried (a firewall, no route): says nothing about the service.
    Failed,
}

/// One run's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The listeners that serve the target, or why they cannot be known.
    pub listeners: Result<Vec<Listener>, String>,
    /// Who holds them; empty when nobody was found or looked for.
    pub owners: Vec<Owner>,
    /// What is at the path of a Unix socket.
    pub file: Option<SocketFile>,
    /// A connection attempt, when one was made.
    pub connect: Option<Connect>,
    /// True when the service runs in another network namespace, whose sockets are not in `listeners`.
    pub foreign_namespace: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queue {
    length: u32,
    runs: u32,
    since_boottime_ms: u64,
    /// The same by the wall clock, for people: a count of runs would be news with each run.
    since: Timestamp,
}

/// Judges a port over time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortJudge {
    queues: BTreeMap<u64, Queue>,
}

impl PortJudge {
    /// One reading of `target`, of a service whose newest instance is `instance`.
    pub fn judge(&mut self, target: &Target, reading: &Reading, instance: Option<&Instance>, now: Now) -> Judgement {
        let listeners = match &reading.listeners {
            Ok(listeners) => listeners.as_slice(),
            Err(why) => {
                let why = format!("the listening sockets cannot be listed: {why}");
                return Judgement::unknown(why, Some("allow AF_NETLINK (RestrictAddressFamilies=) or mount /proc"));
            }
        };
        let Some(first) = listeners.first() else {
            self.queues.clear();
            return closed(target, reading);
        };
        let mut seen = Evidence::new()
            .text("target", target.to_string())
            .text("listener", first.address.to_string())
            .count("accept_queue", first.queue)
            .count("listeners", u64::try_from(listeners.len()).unwrap_or(u64::MAX));
        if let Some(backlog) = first.backlog {
            seen.insert("backlog", Value::Count(backlog.into()));
        }
        if let Some(uid) = first.uid {
            seen.insert("uid", Value::Count(uid.into()));
        }
        match reading.owners.first() {
            Some(owner) => seen = owner_evidence(seen, owner),
            None => {
                let uid = first.uid.map_or_else(|| "unknown".to_owned(), |uid| uid.to_string());
                seen.insert("holder", Value::Text(format!("holder unknown, uid {uid}")));
            }
        }
        let mut judgement = Judgement::ok(seen.clone());
        judgement.problems.extend(conflict(target, &reading.owners, instance, &seen));
        judgement.problems.extend(self.unresponsive(target, listeners, reading.connect, &seen, now));
        judgement
    }

    fn unresponsive(
        &mut self,
        target: &Target,
        listeners: &[Listener],
        connect: Option<Connect>,
        seen: &Evidence,
        now: Now,
    ) -> Option<Problem> {
        let before = std::mem::take(&mut self.queues);
        for listener in listeners {
            let known = before.get(&listener.inode).filter(|known| known.length > 0 && listener.queue >= known.length);
            let queue = match known {
                Some(known) => Queue { length: listener.queue, runs: known.runs.saturating_add(1), ..*known },
                None => Queue { length: listener.queue, runs: 1, since_boottime_ms: now.boottime_ms, since: now.wall },
            };
            self.queues.insert(listener.inode, queue);
        }
        // With SO_REUSEPORT one listener that is drained does not help the connections of another.
        let full = listeners.iter().find(|listener| listener.is_full());
        let stuck = self.queues.values().find(|queue| {
            queue.length > 0 && queue.runs >= STUCK_RUNS_MIN && now.since(queue.since_boottime_ms) >= STUCK_MIN
        });
        let (why, grade) = match (connect, full, stuck) {
            (Some(Connect::NoAnswer), _, _) => ("a connection got no answer".to_owned(), Grade::Confirmed),
            (Some(Connect::Refused), _, _) => ("a connection was refused".to_owned(), Grade::Confirmed),
            (_, Some(listener), _) => {
                let backlog = listener.backlog.unwrap_or_default();
                (format!("{} connections wait, the backlog of {backlog} is full", listener.queue), Grade::Confirmed)
            }
            (_, None, Some(queue)) => {
                (format!("connections wait and none was taken since {}", queue.since.to_utc_minute()), Grade::Likely)
            }
            (_, None, None) => return None,
        };
        let summary = format!("{target} is listened on, but connections are not accepted: {why}");
        let problem =
            Problem::new(Reason::PortUnresponsive, summary).grade(grade).evidence(seen.clone().text("why", why));
        let look = match crate::diagnose::number(seen, PID_KEY) {
            Some(pid) => format!("see what its process does: cat /proc/{pid}/stack /proc/{pid}/wchan; top -H -p {pid}"),
            None => "see who listens and what it does: ss -lntpx; then top -H -p its pid".to_owned(),
        };
        let restart = "restart the service if it hangs, after keeping a core or a stack of it".to_owned();
        Some(problem.next_steps([look, restart]))
    }
}

fn closed(target: &Target, reading: &Reading) -> Judgement {
    if reading.foreign_namespace {
        return Judgement::unknown(
            format!("the service runs in another network namespace, where {target} cannot be seen"),
            Some("watch it by a port published on the host, or run an agent inside"),
        );
    }
    let why = match &reading.file {
        Some(SocketFile::Missing) => "the socket file does not exist".to_owned(),
        Some(SocketFile::Socket(_)) => "nobody listens on the socket file, it is left over".to_owned(),
        Some(SocketFile::NotASocket(kind)) => format!("there is a {kind} in place of the socket"),
        Some(SocketFile::Unreadable(why)) => {
            return Judgement::unknown(
                format!("{target} cannot be looked at: {why}"),
                Some("give the agent CAP_DAC_READ_SEARCH, or open the folder for its group"),
            );
        }
        None => "nobody listens".to_owned(),
    };
    let evidence = Evidence::new().text("target", target.to_string()).text("why", &why);
    let problem = Problem::new(Reason::PortClosed, format!("{target} is closed: {why}")).evidence(evidence);
    Judgement::problem(problem.next_steps([
        "check whether the service runs and what it says: systemctl status, its log",
        "see what listens on this host: ss -lntpx",
    ]))
}

/// A problem when the holders are known and none of them belongs to the service.
fn conflict(target: &Target, owners: &[Owner], instance: Option<&Instance>, seen: &Evidence) -> Option<Problem> {
    let stranger = owners.first()?;
    let instance = instance?;
    if owners.iter().any(|owner| belongs(owner, instance)) {
        return None;
    }
    let same_exe = instance.exe.is_some() && stranger.exe == instance.exe;
    // A dead instance's program in another process is most probably its successor, not yet in the pid file.
    if same_exe && instance.ended_boottime_ms.is_some() {
        return None;
    }
    let pid = stranger.process.pid;
    let summary = format!("{target} is held by {} (pid {pid}), which is not the service's process", stranger.comm);
    let evidence = seen.clone().count("service_pid", instance.process.pid).text("service_comm", &instance.comm);
    let grade = if same_exe || stranger.exe.is_none() { Grade::Likely } else { Grade::Confirmed };
    Some(Problem::new(Reason::PortConflict, summary).grade(grade).evidence(evidence).next_steps([
        format!("see who it is: ps -fp {pid}; cat /proc/{pid}/cgroup"),
        "stop the stranger or move it to another port, then restart the service".to_owned(),
    ]))
}

fn belongs(owner: &Owner, instance: &Instance) -> bool {
    let cgroup = instance.cgroup.as_deref().filter(|cgroup| is_of_one_service(cgroup));
    owner.process == instance.process
        || owner.ancestors.contains(&instance.process)
        || (cgroup.is_some() && owner.cgroup.as_deref() == cgroup)
        // Socket activation: the service manager opened it and keeps it.
        || owner.process.pid == 1
        || PROXIES.contains(&owner.comm.as_str())
}

fn owner_evidence(mut evidence: Evidence, owner: &Owner) -> Evidence {
    evidence = evidence
        .count("pid", owner.process.pid)
        .count("start_ticks", owner.process.start_ticks)
        .text("comm", &owner.comm);
    if let Some(exe) = &owner.exe {
        evidence = evidence.text("exe", exe);
    }
    if let Some(uid) = owner.uid {
        evidence = evidence.count("uid", uid);
    }
    if let Some(cgroup) = &owner.cgroup {
        evidence = evidence.text("cgroup", cgroup);
    }
    evidence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Verdict;

    fn at(seconds: u64) -> Now {
        Now { boottime_ms: seconds * 1000, wall: Timestamp::UNIX_EPOCH }
    }

    fn target() -> Target {
        "127.0.0.1:80".parse().unwrap()
    }

    fn listener(queue: u32) -> Listener {
        let address = Address::Tcp { ip: [127, 0, 0, 1].into(), port: 80, v6only: false };
        Listener { address, inode: 9, uid: Some(33), queue, backlog: Some(8) }
    }

    fn reading(queue: u32) -> Reading {
        Reading {
            listeners: Ok(vec![listener(queue)]),
            owners: Vec::new(),
            file: None,
            connect: None,
            foreign_namespace: false,
        }
    }

    fn owner(pid: u32, exe: &str) -> Owner {
        Owner {
            process: ProcessId { pid, start_ticks: 1 },
            comm: exe.into(),
            exe: Some(exe.into()),
            uid: Some(33),
            cgroup: Some("/".into()),
            ancestors: Vec::new(),
        }
    }

    fn instance(pid: u32, exe: &str, ended: Option<u64>) -> Instance {
        Instance {
            process: ProcessId { pid, start_ticks: 1 },
            comm: exe.into(),
            exe: Some(exe.into()),
            cgroup: Some("/".into()),
            first_seen_boottime_ms: 0,
            ended_boottime_ms: ended,
        }
    }

    fn reasons(judgement: &Judgement) -> Vec<Reason> {
        judgement.problems.iter().map(|problem| problem.reason).collect()
    }

    #[test]
    fn an_unknown_holder_is_no_problem() {
        let judgement = PortJudge::default().judge(&target(), &reading(0), Some(&instance(5, "web", None)), at(0));
        assert_eq!(judgement.verdict(), Verdict::Ok);
        assert_eq!(judgement.seen.get("holder"), Some(&Value::Text("holder unknown, uid 33".into())));
    }

    #[test]
    fn closed_says_why() {
        let mut judge = PortJudge::default();
        let mut none = Reading { listeners: Ok(Vec::new()), ..reading(0) };
        assert_eq!(reasons(&judge.judge(&target(), &none, None, at(0))), [Reason::PortClosed]);
        none.file = Some(SocketFile::NotASocket("directory"));
        assert!(judge.judge(&target(), &none, None, at(0)).problems[0].summary.contains("directory"));
        none.foreign_namespace = true;
        assert_eq!(judge.judge(&target(), &none, None, at(0)).verdict(), Verdict::Unknown);
        let blind = Reading { listeners: Err("denied".into()), ..none };
        assert_eq!(judge.judge(&target(), &blind, None, at(0)).verdict(), Verdict::Unknown);
    }

    #[test]
    fn a_full_queue_or_one_that_never_shrinks() {
        let mut judge = PortJudge::default();
        assert_eq!(reasons(&judge.judge(&target(), &reading(8), None, at(0))), [Reason::PortUnresponsive]);
        let mut judge = PortJudge::default();
        for run in 0..5 {
            assert!(judge.judge(&target(), &reading(3), None, at(run * 5)).problems.is_empty());
        }
        let stuck = judge.judge(&target(), &reading(3), None, at(25));
        assert_eq!((reasons(&stuck), stuck.problems[0].grade), (vec![Reason::PortUnresponsive], Grade::Likely));
        assert!(judge.judge(&target(), &reading(2), None, at(30)).problems.is_empty());
        let timed_out = Reading { connect: Some(Connect::NoAnswer), ..reading(1) };
        assert_eq!(reasons(&judge.judge(&target(), &timed_out, None, at(35))), [Reason::PortUnresponsive]);
    }

    /// For hours, with a queue that grows: one finding, told once.
    #[test]
    fn a_queue_that_stays_stuck_is_no_news_with_each_run() {
        let (mut judge, mut ledger) = (PortJudge::default(), crate::ledger::Ledger::default());
        let service = muster_common::ids::ServiceName::new("web").unwrap();
        let subject =
            muster_common::finding::SubjectKey::new(service, muster_common::finding::ProbeKind::Port, "tcp:80");
        let mut told = Vec::new();
        for run in 0..100u32 {
            let now = Now { wall: Timestamp::from_unix_ms(i64::from(run) * 5_000), ..at(u64::from(run) * 5) };
            let reading = Reading { owners: vec![owner(7, "web")], ..reading(3 + run / 25) };
            told.extend(ledger.observe(now, &subject, &judge.judge(&target(), &reading, None, now)));
        }
        let [change] = told.as_slice() else { panic!("{told:#?}") };
        let muster_common::finding::FindingEvent::Opened(finding) = &change.event else { panic!("{change:?}") };
        assert!(finding.summary.ends_with("connections wait and none was taken since 1970-01-01 00:00 UTC"));
        assert!(finding.next_steps[0].contains("top -H -p 7"), "{:?}", finding.next_steps);
    }

    #[test]
    fn a_stranger_is_a_conflict_and_a_relative_is_not() {
        let mut judge = PortJudge::default();
        let mut judge = |owner: Owner, instance: Option<Instance>| {
            let reading = Reading { owners: vec![owner], ..reading(0) };
            reasons(&judge.judge(&target(), &reading, instance.as_ref(), at(0)))
        };
        let conflict = vec![Reason::PortConflict];
        assert_eq!(judge(owner(7, "nc"), Some(instance(5, "web", None))), conflict);
        assert_eq!(judge(owner(7, "nc"), Some(instance(5, "web", Some(1)))), conflict);
        assert_eq!(judge(owner(7, "web"), Some(instance(5, "web", None))), conflict);
        assert!(judge(owner(7, "web"), Some(instance(5, "web", Some(1)))).is_empty());
        assert!(judge(owner(5, "web"), Some(instance(5, "web", None))).is_empty());
        assert!(judge(owner(7, "nc"), None).is_empty());
        assert!(judge(owner(1, "systemd"), Some(instance(5, "web", None))).is_empty());
        let child = Owner { ancestors: vec![ProcessId { pid: 5, start_ticks: 1 }], ..owner(7, "w") };
        assert!(judge(child, Some(instance(5, "web", None))).is_empty());
        let reused = Owner { ancestors: vec![ProcessId { pid: 5, start_ticks: 2 }], ..owner(7, "w") };
        assert_eq!(judge(reused, Some(instance(5, "web", None))), conflict);
        let own = Some("/web.service".to_owned());
        let neighbour = Owner { cgroup: own.clone(), ..owner(7, "w") };
        assert!(judge(neighbour, Some(Instance { cgroup: own, ..instance(5, "web", None) })).is_empty());
    }
}
