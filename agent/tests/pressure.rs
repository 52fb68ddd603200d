//! The pressure senses against this host's kernel, and a real memory cgroup with a process at its limit.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says what it skips"
)]

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::HostRoot;
use muster_agent::senses::pressure::{HostPressure, ServicePressure};
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::pressure::psi::StallRules;
use muster_agent_core::pressure::service::PressureRules;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::{Grade, Value};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LIMIT_BYTES: u64 = 64 << 20;
const RULES: PressureRules =
    PressureRules { stalls: StallRules { some_percent: 100, full_percent: 100 }, limit_percent: 80 };

/// A memory cgroup that is named like a unit's and removes itself.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create(test: &str) -> Option<Self> {
        let name = format!("muster-test-{test}-{}.service", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory").join(&name);
        let v2 = Path::new("/sys/fs/cgroup").join(&name);
        for (path, limit) in [(v1, "memory.limit_in_bytes"), (v2, "memory.max")] {
            if path.parent().is_some_and(Path::is_dir) && std::fs::create_dir(&path).is_ok() {
                let group = Self(path);
                if std::fs::write(group.0.join(limit), LIMIT_BYTES.to_string()).is_ok() {
                    return Some(group);
                }
            }
        }
        println!("skipped: no memory cgroup can be created here");
        None
    }

    fn path(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_string_lossy())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What ran in it needs a moment to be gone.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{} stays behind", self.0.display());
    }
}

/// Holds so many bytes: a `tail` that waits for the end of what has no line in it.
struct Holder(Child, Option<ChildStdin>, BufReader<std::process::ChildStdout>);

impl Holder {
    /// The shell joins the cgroup before it does anything, so that every page is counted there.
    fn start(cgroup: &Cgroup, bytes: u64) -> Self {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec 4>&1 && \
             {{ head -c {bytes} /dev/zero; echo done >&4; read release; }} | tail > /dev/null",
            cgroup.0.display()
        );
        let mut child = Command::new("bash")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut holder = Self(child, input, BufReader::new(output));
        // All is written, or somebody was killed over it.
        holder.2.read_line(&mut String::new()).ok();
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.1.take());
        self.0.wait().unwrap();
    }
}

struct Stage {
    services: Arc<Mutex<Services>>,
    instance: Instance,
    probe: ServicePressure,
}

impl Stage {
    fn new(root: HostRoot, cgroup: &str) -> Self {
        let service = ServiceName::new("hog").unwrap();
        let services: Arc<Mutex<Services>> = Arc::default();
        let instance = Instance {
            process: ProcessId { pid: 1, start_ticks: 1 },
            comm: "hog".into(),
            exe: None,
            cgroup: Some(cgroup.to_owned()),
            first_seen_boottime_ms: 0,
            ended_boottime_ms: None,
        };
        let probe = ServicePressure::new(service, root, RULES);
        let mut stage = Self { services, instance, probe };
        stage.note(|_| {});
        stage
    }

    fn note(&mut self, change: impl FnOnce(&mut Instance)) {
        change(&mut self.instance);
        self.services.lock().unwrap().note(&self.probe.subject().service, self.instance.clone());
    }

    fn run(&mut self, one_shot: bool) -> Judgement {
        self.probe.run(&Context { now: clock::now(), services: Arc::clone(&self.services), one_shot })
    }
}

#[test]
fn a_service_at_the_limit_of_its_cgroup_is_told() {
    let Some(cgroup) = Cgroup::create("limit") else { return };
    let mut stage = Stage::new(HostRoot::default(), &cgroup.path());
    let well = stage.run(false);
    assert_eq!(well.verdict(), Verdict::Ok, "{well:?}");
    assert_eq!(well.seen.get("limit_bytes"), Some(&Value::Bytes(LIMIT_BYTES)));
    let holder = Holder::start(&cgroup, LIMIT_BYTES / 100 * 88);
    // Its last bytes are on their way through a pipe.
    let mut judgement = stage.run(false);
    for _ in 0..3000 {
        if judgement.verdict() == Verdict::Problem {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        judgement = stage.run(false);
    }
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    assert_eq!(problem.reason, Reason::MemoryPressure);
    assert!(problem.summary.contains("of its limit 64 MiB"), "{}", problem.summary);
    assert!(problem.summary.contains("cannot be given back"), "{}", problem.summary);
    drop(holder);
    assert_eq!(stage.run(false).verdict(), Verdict::Ok, "it gave all back");
}

#[test]
fn a_cgroup_that_cannot_be_seen_is_unknown_and_one_that_is_gone_is_well() {
    let nothing = tempfile::tempdir().unwrap();
    let mut stage = Stage::new(HostRoot(nothing.path().to_owned()), "/system.slice/hog.service");
    let unknown = stage.run(false).unknown.unwrap();
    assert_eq!(unknown.why, "no hierarchy of cgroups is to be seen that could have /system.slice/hog.service");
    assert!(unknown.way_out.is_some() && !unknown.told_elsewhere, "nobody else tells it: {unknown:?}");
    stage.note(|instance| instance.cgroup = None);
    let unknown = stage.run(false).unknown.unwrap();
    assert!(unknown.why.contains("/proc/1/cgroup") && !unknown.told_elsewhere, "{unknown:?}");
    stage.note(|instance| instance.ended_boottime_ms = Some(1));
    assert!(stage.run(false).unknown.unwrap().told_elsewhere, "merely stopped");
    *stage.services.lock().unwrap() = Services::default();
    assert!(stage.run(false).unknown.unwrap().told_elsewhere, "never seen");

    let Some(cgroup) = Cgroup::create("gone") else { return };
    let mut stage = Stage::new(HostRoot::default(), &cgroup.path());
    assert!(stage.run(false).seen.get("limit_bytes").is_some());
    drop(cgroup);
    let unknown = stage.run(false);
    assert_eq!(unknown.seen.get("cgroup_removed"), None, "its process is not known to have ended");
    stage.note(|instance| instance.ended_boottime_ms = Some(1));
    let judgement = stage.run(false);
    assert_eq!((judgement.verdict(), judgement.sees_no_process()), (Verdict::Ok, true), "{judgement:?}");
    assert_eq!(judgement.seen.get("cgroup_removed"), Some(&Value::Flag(true)));
}

fn swaps() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

#[test]
fn a_kill_by_the_cgroups_limit_is_counted_and_told_where_the_log_is_closed() {
    let Some(cgroup) = Cgroup::create("kill") else { return };
    let mut stage = Stage::new(HostRoot::default(), &cgroup.path());
    // The same cgroup seen by an agent that has no /dev/kmsg.
    let blind = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(blind.path().join("sys/fs")).unwrap();
    std::os::unix::fs::symlink("/sys/fs/cgroup", blind.path().join("sys/fs/cgroup")).unwrap();
    let mut blind_stage = Stage::new(HostRoot(blind.path().to_owned()), &cgroup.path());
    for stage in [&mut stage, &mut blind_stage] {
        assert!(stage.run(false).occurrences.is_empty());
    }
    drop(Holder::start(&cgroup, 4 * LIMIT_BYTES));
    let judgement = blind_stage.run(false);
    if judgement.occurrences.is_empty() && swaps() {
        println!("skipped: nothing was killed, this host swaps");
        return;
    }
    let [kill] = judgement.occurrences.as_slice() else { panic!("{judgement:?}") };
    assert_eq!((kill.reason, kill.grade), (Reason::OomKill, Grade::Likely));
    assert!(matches!(kill.evidence.get("kills"), Some(Value::Count(1..))), "{kill:?}");
    assert_eq!(kill.evidence.get("cgroup"), Some(&Value::Text(cgroup.path())));
    assert!(blind_stage.run(false).occurrences.is_empty(), "told once");
    let open = stage.run(false);
    assert!(matches!(open.seen.get("oom_kills"), Some(Value::Count(1..))), "{open:?}");
    if std::fs::File::open("/dev/kmsg").is_ok() {
        assert!(open.occurrences.is_empty(), "the kernel's log tells it: {open:?}");
    }
}

#[test]
fn this_hosts_stalls_are_read_or_the_way_out_is_told() {
    let rules = StallRules { some_percent: 100, full_percent: 100 };
    let mut probe = HostPressure::new(HostRoot::default(), rules);
    let judgement = probe.run(&Context { now: clock::now(), services: Arc::default(), one_shot: true });
    match judgement.unknown {
        Some(unknown) => assert!(unknown.way_out.unwrap().contains("psi=1")),
        None => assert!(judgement.seen.get("stall_some_avg60_percent").is_some(), "{:?}", judgement.seen),
    }
    let nowhere = tempfile::tempdir().unwrap();
    let mut probe = HostPressure::new(HostRoot(nowhere.path().to_owned()), rules);
    let judgement = probe.run(&Context { now: clock::now(), services: Arc::default(), one_shot: true });
    assert_eq!(judgement.verdict(), Verdict::Unknown);
    assert!(judgement.seen.get("memory_controller").is_some());
}
