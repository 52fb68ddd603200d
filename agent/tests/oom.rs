//! The OOM sense against real kernel logs: saved ones of many kernels, and this host's own.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says what it skips"
)]

use muster_agent::config::Config;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::{HostRoot, oom, saved_log};
use muster_agent::{clock, doctor};
use muster_agent_core::judgement::{Judgement, Problem};
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::Value;
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

fn context(services: &Arc<Mutex<Services>>, one_shot: bool) -> Context {
    Context { now: clock::now(), services: Arc::clone(services), one_shot }
}

fn count(problem: &Problem, key: &str) -> Option<u64> {
    match problem.evidence.get(key)? {
        Value::Count(count) | Value::Bytes(count) => Some(*count),
        _ => None,
    }
}

fn text(problem: &Problem, key: &str) -> Option<String> {
    match problem.evidence.get(key)? {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    }
}

fn victims(problems: &[Problem]) -> Vec<(u64, String)> {
    let victim = |problem: &Problem| Some((count(problem, "pid")?, text(problem, "comm")?));
    problems.iter().filter_map(victim).collect()
}

#[test]
fn saved_logs_of_many_kernels_name_every_victim_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/oom");
    if !folder.is_dir() {
        println!("skipped: {} is missing", folder.display());
        return;
    }
    let odd = [
        "foo",
        "python3.4",
        "foo-bar",
        "Plex Media Server",
        "x86_64-pc-linux-gnu-c++-5.4.0",
        "[",
        "()",
        "\"with quotes\"",
    ];
    let odd: Vec<(u64, &str)> = odd.iter().map(|comm| (1234, *comm)).collect();
    let expected: [(&str, &[(u64, &str)]); 14] = [
        ("01", &[(13536, "memorymonster")]),
        ("03", &[(1381, "gunpowder-memho")]),
        ("05", &odd),
        ("07", &[(3902942, "php-fpm")]),
        ("09", &[(651, "unattended-upgr")]),
        ("11", &[(3401999, "prometheus-conf"), (255629, "stress")]),
        (
            "13",
            &[
                (1221, "allocate"),
                (1217, "allocate"),
                (1218, "allocate"),
                (1219, "allocate"),
                (1220, "allocate"),
                (1222, "allocate"),
            ],
        ),
        ("15", &[(11726, "mysqld")]),
        ("17", &[(9139, "memcg_test_1"), (9140, "memcg_test_1")]),
        ("19", &[(7558, "a.out")]),
        ("21", &[(1669, "xdg-desktop-por")]),
        ("23", &[]),
        ("25", &[]),
        ("27", &[]),
    ];
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    files.sort();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some((_, expected)) = expected.iter().find(|(number, _)| name.starts_with(number)) else {
            println!("{name}: no expectation written down");
            continue;
        };
        let log = saved_log::read_log(&path).unwrap();
        assert!(log.kernel_lines > 0, "{name}");
        let problems = log.kills;
        let found = victims(&problems);
        let found: Vec<(u64, &str)> = found.iter().map(|(pid, comm)| (*pid, comm.as_str())).collect();
        assert_eq!(&found, expected, "{name}");
        assert!(problems.iter().all(|problem| problem.reason == Reason::OomKill), "{name}");
        details(&name, &problems);
    }
}

/// What else the texts prove.
fn details(name: &str, problems: &[Problem]) {
    let Some(first) = problems.first() else { return };
    match name.get(..2).unwrap_or_default() {
        "01" => {
            assert_eq!((count(first, "uid"), count(first, "limit_bytes")), (Some(275_858), Some(980 << 10)));
            assert_eq!(text(first, "cgroup").as_deref(), Some("/mem2"));
            assert_eq!(count(first, "trigger_pid"), Some(13536));
        }
        "07" => {
            assert_eq!(count(first, "anon_rss_bytes"), Some(12_625_252 << 10));
            assert_eq!(text(first, "limit_cgroup").as_deref(), Some("/lxc/39004"));
            assert_eq!(text(first, "trigger_comm").as_deref(), Some("php-fpm"));
        }
        "09" => assert_eq!(first.evidence.get("by_operator"), Some(&Value::Flag(true))),
        "11" => assert_eq!(text(first, "scope").as_deref(), Some("memcg")),
        "13" => {
            let whole = Some(&Value::Flag(true));
            assert!(problems.iter().all(|problem| problem.evidence.get("group_kill") == whole));
            assert!(problems.iter().all(|problem| text(problem, "cgroup").as_deref() == Some("/A1")));
        }
        "15" => assert_eq!(count(first, "uid"), Some(498)),
        "19" => assert_eq!(first.evidence.get("memory_freed"), Some(&Value::Flag(false))),
        // Three kills in one cgroup, of which the log names no process.
        "23" => assert_eq!((problems.len(), count(first, "kills")), (1, Some(3))),
        _ => {}
    }
}

/// A probe that has read everything so far, or `None` (and says so) where the kernel log is closed to this test.
fn caught_up(services: &Arc<Mutex<Services>>) -> Option<oom::OomProbe> {
    let mut probe = oom::OomProbe::new(HostRoot::default());
    let first = probe.run(&context(services, false));
    if let Some(unknown) = first.unknown {
        println!("skipped: {}", unknown.why);
        return None;
    }
    // Twice more, so that nothing older is still owed.
    probe.run(&context(services, false));
    probe.run(&context(services, false));
    Some(probe)
}

#[test]
fn a_line_written_by_user_space_is_not_believed() {
    let services = Arc::default();
    let Some(mut probe) = caught_up(&services) else { return };
    let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") else {
        println!("skipped: /dev/kmsg cannot be written");
        return;
    };
    // The priority asks for facility 0; the kernel makes it user space's all the same.
    let marker = format!("forged{}", std::process::id());
    let line = format!("<3>Out of memory: Killed process 1 ({marker}) total-vm:1kB, anon-rss:1kB, file-rss:1kB\n");
    log.write_all(line.as_bytes()).unwrap();
    let judgement = probe.run(&context(&services, false));
    assert!(!victims(&judgement.occurrences).iter().any(|(_, comm)| *comm == marker), "{judgement:?}");
    assert!(matches!(judgement.seen.get("user_space_lines_not_believed"), Some(Value::Count(1..))));
}

/// A memory cgroup of 20 MiB that removes itself.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create() -> Option<Self> {
        let name = format!("muster-test-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory").join(&name);
        let v2 = Path::new("/sys/fs/cgroup").join(&name);
        for (path, limit) in [(v1, "memory.limit_in_bytes"), (v2, "memory.max")] {
            if path.parent().is_some_and(Path::is_dir) && std::fs::create_dir(&path).is_ok() {
                let group = Self(path);
                if std::fs::write(group.0.join(limit), "20971520").is_ok() {
                    return Some(group);
                }
            }
        }
        println!("skipped: no memory cgroup can be created here");
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            println!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// A shell that waits for a line, then keeps 200 MB in a variable.
fn hog() -> Child {
    let script = "read go; x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo done";
    Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn instance_of(pid: u32, cgroup: Option<String>) -> Instance {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_ticks = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    Instance {
        process: ProcessId { pid, start_ticks },
        comm: "sh".into(),
        exe: None,
        cgroup,
        first_seen_boottime_ms: clock::now().boottime_ms,
        ended_boottime_ms: None,
    }
}

#[test]
fn a_real_kill_in_a_cgroup_is_found_and_given_to_its_service() {
    let services: Arc<Mutex<Services>> = Arc::default();
    let Some(mut probe) = caught_up(&services) else { return };
    let Some(cgroup) = Cgroup::create() else { return };
    let mut child = hog();
    let pid = child.id();
    std::fs::write(cgroup.0.join("cgroup.procs"), pid.to_string()).unwrap();
    let service = ServiceName::new("hog").unwrap();
    let name = format!("/{}", cgroup.0.file_name().unwrap().to_string_lossy());
    services.lock().unwrap().note(&service, instance_of(pid, Some(name.clone())));
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("hog.pid");
    std::fs::write(&pid_file, pid.to_string()).unwrap();
    let begun_ms = clock::now().boottime_ms;
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success(), "the kernel did not kill it");
    let mut occurrences: Vec<Problem> = Vec::new();
    for _ in 0..3 {
        let Judgement { occurrences: found, .. } = probe.run(&context(&services, false));
        occurrences.extend(found);
    }
    let ours: Vec<&Problem> = occurrences
        .iter()
        .filter(|problem| text(problem, "limit_cgroup").is_some_and(|own| own.contains(&name)))
        .collect();
    assert!(!ours.is_empty(), "{occurrences:?}");
    assert!(ours.iter().all(|problem| problem.service.as_ref() == Some(&service)), "{ours:?}");
    assert!(ours.iter().all(|problem| problem.severity == Some(Severity::Sev2)));
    assert_eq!(text(ours[0], "scope").as_deref(), Some("memcg"));
    // However far the clock of the log is behind: it was killed for what it took.
    let told_ms = clock::now().boottime_ms;
    let happened: Vec<_> = ours.iter().filter_map(|problem| problem.observed_boottime_ms).collect();
    assert!(happened.iter().all(|at_ms| (begun_ms..=told_ms).contains(at_ms)), "{begun_ms} {happened:?} {told_ms}");
    let mut pids: Vec<_> = ours.iter().map(|problem| count(problem, "pid")).collect();
    let all = pids.len();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), all, "a victim was reported twice");
    if let Some(main) = ours.iter().find(|problem| count(problem, "pid") == Some(pid.into())) {
        assert!(main.evidence.get("start_ticks").is_some(), "{main:?}");
        assert_eq!(main.evidence.get("main_process"), Some(&Value::Flag(true)));
    }
    assert!(!occurrences.iter().any(|problem| problem.evidence.get("unexplained_kills").is_some()), "{occurrences:?}");

    // A new life of the agent that resumes there reports none of it again.
    let saved = probe.save().unwrap();
    let mut resumed = oom::OomProbe::new(HostRoot::default());
    resumed.restore(saved);
    let again = resumed.run(&context(&services, false));
    let repeated = |problem: &&Problem| text(problem, "limit_cgroup").is_some_and(|own| own.contains(&name));
    assert_eq!(again.occurrences.iter().filter(repeated).count(), 0);
    // A one-shot diagnosis finds it in the log.
    let mut doctor = oom::OomProbe::new(HostRoot::default());
    let report = doctor.run(&context(&services, true));
    assert_eq!(report.occurrences.iter().filter(repeated).count(), all);
    if pids.contains(&Some(pid.into())) {
        the_doctor_joins_it_to_what_it_left(&pid_file);
    }
}

/// Nobody watched: the pid file that was left names the victim.
fn the_doctor_joins_it_to_what_it_left(pid_file: &Path) {
    let text = format!("[service.hog]\npid_file = \"{}\"\n", pid_file.display());
    let config = Config::parse("agent.toml", &text).unwrap();
    let report = doctor::diagnose(&config, &HostRoot::default(), Vec::new()).unwrap();
    let of_hog = |at: usize| report.findings[at].key.subject.service.as_str() == "hog";
    let told: Vec<_> = report.stories.iter().filter(|story| of_hog(story.cause)).collect();
    let [story] = told.as_slice() else { panic!("{told:#?}") };
    let reason = |at: usize| report.findings[at].key.reason;
    assert_eq!(reason(story.cause), Reason::OomKill, "{story:#?}");
    assert!(story.links.iter().any(|link| reason(link.finding) == Reason::PidFileStale), "{story:#?}");
}

#[test]
fn without_the_log_it_is_unknown_with_a_way_out() {
    let root = tempfile::tempdir().unwrap();
    let mut probe = oom::OomProbe::new(HostRoot(root.path().to_owned()));
    let unknown = probe.run(&context(&Arc::default(), false)).unknown.unwrap();
    assert!(unknown.way_out.unwrap().contains("StandardInput"));
    std::fs::create_dir(root.path().join("dev")).unwrap();
    std::fs::write(root.path().join("dev/kmsg"), "3,1,1,-;Out of memory: Killed process 1 (a) vsz:1kB\n").unwrap();
    assert!(probe.run(&context(&Arc::default(), false)).unknown.is_some());
}
