//! Locks of every kind, held and waited for by real processes; SQLite writers in every state. A busy lock that moves is
//! never told, a stuck one always, with who holds it.

#![expect(clippy::unwrap_used, reason = "a test binary: a failed step ends the test, and skips are said")]

mod sqlite;
mod support;

use muster_agent::clock::now;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::HostRoot;
use muster_agent::senses::locks::{LockProbe, LockTable};
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Problem, Verdict};
use muster_agent_core::locks::contention::Limits;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::{Grade, Value};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Role, until, until_waiting};

#[test]
fn child() {
    support::child_main();
}

fn service() -> ServiceName {
    ServiceName::new("spl").unwrap()
}

/// Minutes that pass between two looks without anybody waiting for them: time is an input.
struct Looks {
    probe: LockProbe,
    services: Arc<Mutex<Services>>,
    now: Now,
}

impl Looks {
    fn of_file(path: &Path, max_hold: Option<Duration>) -> Self {
        let limits = Limits { max_wait: Duration::from_secs(10), max_hold };
        let table = LockTable::new(HostRoot::default());
        Self::new(LockProbe::of_file(service(), path.to_str().unwrap(), limits, table))
    }

    fn of_service(main_pid: u32) -> Self {
        let table = LockTable::new(HostRoot::default());
        let looks = Self::new(LockProbe::of_service(service(), Vec::new(), Vec::new(), table));
        let start_ticks = start_ticks(main_pid);
        let instance = Instance {
            process: ProcessId { pid: main_pid, start_ticks },
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: 0,
            ended_boottime_ms: None,
        };
        looks.services.lock().unwrap().note(&service(), instance);
        looks
    }

    fn new(probe: LockProbe) -> Self {
        Self { probe, services: Arc::default(), now: now() }
    }

    fn once(&mut self, one_shot: bool) -> Judgement {
        self.now.boottime_ms += 60_000;
        self.probe.run(&Context { now: self.now, services: Arc::clone(&self.services), one_shot })
    }

    /// Two looks, a minute apart: the second sees a wait of a minute.
    fn stuck(&mut self) -> Problem {
        let first = self.once(false);
        assert!(first.problems.is_empty(), "one look tells nothing: {first:?}");
        let second = self.once(false);
        let [problem] = second.problems.as_slice() else { panic!("{second:?}") };
        assert_eq!(problem.reason, Reason::LockContention);
        problem.clone()
    }

    fn well(&mut self) -> Judgement {
        self.once(false);
        let second = self.once(false);
        assert_eq!(second.verdict(), Verdict::Ok, "{second:?}");
        second
    }
}

fn start_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap()
}

fn count(problem: &Problem, key: &str) -> Option<u64> {
    match problem.evidence.get(key) {
        Some(Value::Count(count)) => Some(*count),
        _ => None,
    }
}

#[test]
fn every_kind_of_wait_names_holder_and_waiter() {
    for kind in ["flock", "posix"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spl.lock");
        let holder = Role::start(folder.path(), &format!("{kind} spl.lock; say"));
        let mut looks = Looks::of_file(&path, None);
        let alone = looks.well();
        assert_eq!(alone.seen.get("pid"), Some(&Value::Count(holder.pid().into())), "{kind}: {alone:?}");
        let waiter = Role::start(folder.path(), &format!("say; {kind} spl.lock"));
        until_waiting(&path, 1);
        let problem = looks.stuck();
        assert_eq!(count(&problem, "pid"), Some(holder.pid().into()), "{kind}: {problem:?}");
        assert_eq!(count(&problem, "start_ticks"), Some(start_ticks(holder.pid())));
        assert_eq!(count(&problem, "waiter_pid"), Some(waiter.pid().into()));
        assert_eq!(problem.evidence.get("waited_ms"), Some(&Value::Millis(60_000)));
        assert!(problem.summary.contains(path.to_str().unwrap()), "{}", problem.summary);
        drop(holder);
        until("the waiter holds it", || looks_pid(&path) == Some(waiter.pid()));
        looks.well();
    }
}

/// Who holds a lock on the file by the kernel's own word.
fn looks_pid(path: &Path) -> Option<u32> {
    let mut looks = Looks::of_file(path, None);
    match looks.once(true).seen.get("pid") {
        Some(Value::Count(pid)) => u32::try_from(*pid).ok(),
        _ => None,
    }
}

#[test]
fn an_ofd_lock_has_no_pid_and_its_holder_is_found_by_its_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spl.lock");
    let holder = Role::start(folder.path(), "ofd spl.lock; say");
    let _waiter = Role::start(folder.path(), "say; ofd spl.lock");
    until_waiting(&path, 1);
    let problem = Looks::of_file(&path, None).stuck();
    assert_eq!(count(&problem, "pid"), Some(holder.pid().into()), "{problem:?}");
    assert_eq!((count(&problem, "waiters_count"), problem.grade), (Some(1), Grade::Likely));
    // The service that holds it is told without a word about the file in its config.
    let problem = Looks::of_service(holder.pid()).stuck();
    assert_eq!(problem.evidence.get("holder_service"), Some(&Value::Text("spl".into())), "{problem:?}");
}

#[test]
fn an_inherited_flock_is_told_of_who_has_it_now() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spl.lock");
    let mut parent = Role::start(folder.path(), "flock spl.lock; hand-on");
    parent.ended();
    let mut looks = Looks::of_file(&path, None);
    let judgement = looks.once(true);
    assert_eq!(judgement.seen.get("pid"), Some(&Value::Count(parent.pid().into())), "{judgement:?}");
    drop(parent);
    until("the heir has ended", || looks_pid(&path).is_none());
}

#[test]
fn a_stopped_holder_is_told_at_once_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spl.lock");
    let holder = Role::start(folder.path(), "flock spl.lock; say");
    let _waiter = Role::start(folder.path(), "say; flock spl.lock");
    until_waiting(&path, 1);
    let running = Looks::of_file(&path, None).once(true);
    assert_eq!(running.verdict(), Verdict::Ok, "one look cannot tell how long: {running:?}");
    assert_eq!(running.seen.get("waiters_count"), Some(&Value::Count(1)));
    holder.stop();
    let judgement = Looks::of_file(&path, None).once(true);
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    assert!(problem.summary.contains("is stopped"), "{}", problem.summary);
    assert!(problem.next_steps.iter().any(|step| step.contains("kill -CONT")));
}

#[test]
fn a_busy_lock_that_moves_is_never_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spl.lock");
    let busy: Vec<Role> = (0..3).map(|_| Role::start(folder.path(), "say; busy spl.lock")).collect();
    let mut of_file = Looks::of_file(&path, None);
    let mut of_service = Looks::of_service(busy[0].pid());
    for _ in 0..50 {
        for looks in [&mut of_file, &mut of_service] {
            let judgement = looks.once(false);
            assert!(judgement.problems.is_empty(), "{judgement:?}");
        }
    }
}

#[test]
fn a_service_is_told_of_whatever_it_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("elsewhere.lock");
    let holder = Role::start(folder.path(), "flock elsewhere.lock; say");
    let ours = Role::start(folder.path(), "say; flock elsewhere.lock");
    until_waiting(&path, 1);
    let problem = Looks::of_service(ours.pid()).stuck();
    assert!(problem.summary.contains(path.to_str().unwrap()), "found at a descriptor: {}", problem.summary);
    assert_eq!(count(&problem, "pid"), Some(holder.pid().into()));
    assert!(problem.evidence.get("waiters").unwrap().to_string().contains("service spl"));
    let stranger = Role::start(folder.path(), "say");
    Looks::of_service(stranger.pid()).well();
}

#[test]
fn a_ring_is_told_as_a_deadlock() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.lock"), folder.path().join("b.lock"));
    // Each waits for the file `go`, so that both have their first lock before they want the second.
    let gate = Role::start(folder.path(), "flock gate.a; flock gate.b; say");
    let first = Role::start(folder.path(), "flock a.lock; say; flock gate.a; flock b.lock");
    let second = Role::start(folder.path(), "flock b.lock; say; flock gate.b; flock a.lock");
    drop(gate);
    until_waiting(&a, 1);
    until_waiting(&b, 1);
    let problem = Looks::of_service(first.pid()).stuck();
    let ring = problem.evidence.get("ring").unwrap().to_string();
    for pid in [first.pid(), second.pid()] {
        assert!(ring.contains(&format!("(pid {pid}")), "{ring}");
    }
}

#[test]
fn a_lock_file_that_is_held_too_long_is_told_and_a_missing_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.lock");
    let mut looks = Looks::of_file(&path, Some(Duration::from_secs(30)));
    assert_eq!(looks.well().seen.get("exists"), Some(&Value::Flag(false)));
    let holder = Role::start(folder.path(), "flock job.lock; say");
    let problem = looks.stuck();
    assert!(problem.summary.contains("has held the flock"), "{}", problem.summary);
    let saved = looks.probe.save().unwrap();
    let mut restarted = Looks::of_file(&path, Some(Duration::from_secs(30)));
    restarted.probe.restore(saved);
    restarted.now = looks.now;
    assert_eq!(restarted.once(false).problems.len(), 1, "a restart of the agent forgets nothing");
    drop(holder);
    until("the lock is free", || looks_pid(&path).is_none());
    looks.well();
}

#[test]
fn a_lease_is_seen_and_not_broken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("leased");
    let holder = Role::start(folder.path(), "lease leased; say");
    let mut looks = Looks::of_file(&path, Some(Duration::from_secs(30)));
    for _ in 0..3 {
        let judgement = looks.once(false);
        assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
        let leases = judgement.seen.get("leases").unwrap().to_string();
        assert!(leases.contains(&holder.pid().to_string()) && !leases.contains("taken back"), "{leases}");
    }
}

#[test]
fn on_an_overlay_the_device_of_the_mount_counts() {
    const MOUNT: &str =
        "mkdir low up work all && mount -t overlay overlay -o lowerdir=low,upperdir=up,workdir=work all";
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let mounted = std::process::Command::new("sh").args(["-c", MOUNT]).current_dir(folder.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: no overlay can be mounted here");
        return;
    }
    let all = folder.path().join("all");
    let judgement = std::panic::catch_unwind(|| {
        let holder = Role::start(&all, "flock spl.lock; say");
        let judgement = Looks::of_file(&all.join("spl.lock"), None).once(true);
        (holder.pid(), judgement)
    });
    rustix::mount::unmount(&all, rustix::mount::UnmountFlags::DETACH).unwrap();
    let (pid, judgement) = judgement.unwrap();
    assert_eq!(judgement.seen.get("pid"), Some(&Value::Count(pid.into())), "{judgement:?}");
}
