//! Logs as the daemon follows them: real files and a real journal, restarts between, told once and without secrets.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]
#![expect(clippy::print_stdout, reason = "a test that is skipped says so")]

#[expect(dead_code, reason = "other tests do more with a host")]
mod booted;

use booted::Booted;
use muster_agent::clock;
use muster_agent::config::log::standard_rules;
use muster_agent::probe::{Context, Probe, Remembered};
use muster_agent::senses::HostRoot;
use muster_agent::senses::log::{LogProbe, Rules};
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::log::Rule;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::{Grade, Value};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn service() -> ServiceName {
    ServiceName::new("hub").unwrap()
}

fn standard() -> Arc<Rules> {
    Arc::new(Rules::new(standard_rules().into_iter().filter(|rule| rule.killer.is_none()).collect()))
}

fn context(one_shot: bool, later: Duration) -> Context {
    let mut now = clock::now();
    now.boottime_ms += u64::try_from(later.as_millis()).unwrap();
    Context { now, services: Arc::default(), one_shot }
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.occurrences.iter().map(|occurrence| occurrence.reason).collect()
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

struct Stage {
    _folder: tempfile::TempDir,
    path: PathBuf,
    rules: Arc<Rules>,
    probe: LogProbe,
}

impl Stage {
    fn new(rules: Arc<Rules>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.log");
        std::fs::write(&path, "a line of before: database is locked\n").unwrap();
        let probe = Self::probe(&path, &rules);
        Self { _folder: folder, path, rules, probe }
    }

    fn probe(path: &Path, rules: &Arc<Rules>) -> LogProbe {
        LogProbe::of_file(service(), path, false, Arc::clone(rules), &HostRoot::default())
    }

    fn run(&mut self, later: Duration) -> Judgement {
        self.probe.run(&context(false, later))
    }

    fn restart(&mut self) {
        let saved = self.probe.save().unwrap();
        self.probe = Self::probe(&self.path, &self.rules);
        self.probe.restore(saved);
    }
}

#[test]
fn lines_become_occurrences_once_and_without_secrets() {
    let mut stage = Stage::new(standard());
    let first = stage.run(Duration::ZERO);
    assert_eq!((first.verdict(), reasons(&first)), (Verdict::Ok, vec![]));
    append(
        &stage.path,
        "all is well\n{\"msg\":\"push failed\",\"err\":\"429 Too Many Requests\",\"token\":\"s3cr3t\"}\n",
    );
    append(&stage.path, "cannot push to https://bob:hunter2@host/x: context deadline exceeded\n");
    let judgement = stage.run(Duration::ZERO);
    assert_eq!(reasons(&judgement), [Reason::ProviderRateLimited, Reason::Timeout]);
    let timeout = &judgement.occurrences[1];
    assert!(timeout.summary.contains("https://bob:***@host/x"), "{}", timeout.summary);
    assert!(!format!("{judgement:?}").contains("hunter2") && !format!("{judgement:?}").contains("s3cr3t"));
    assert_eq!(timeout.evidence.get("rule"), Some(&Value::Text("timeout".into())));
    // A restart reads nothing twice, and counts on in the same window.
    stage.restart();
    assert!(stage.run(Duration::ZERO).occurrences.is_empty());
    append(&stage.path, &"job timed out\n".repeat(500));
    assert!(stage.run(Duration::from_secs(30)).occurrences.is_empty());
    stage.restart();
    let judgement = stage.run(Duration::from_secs(61));
    assert_eq!(reasons(&judgement), [Reason::Timeout]);
    assert_eq!(judgement.occurrences[0].evidence.get("lines"), Some(&Value::Count(500)));
}

#[test]
fn a_rule_that_was_told_before_a_reboot_is_told_again_after_it() {
    let mut stage = Stage::new(standard());
    stage.run(Duration::ZERO);
    append(&stage.path, "database is locked\n");
    assert_eq!(reasons(&stage.run(Duration::ZERO)), [Reason::DatabaseBusy]);
    let mut saved: serde_json::Value = stage.probe.save().unwrap().read().unwrap();
    // Another boot, after a long one: its clock was far ahead of the present one.
    saved["boot"] = "00000000-0000-4000-8000-000000000001".into();
    saved["windows"][0]["quiet_until_ms"] = u64::MAX.into();
    stage.probe = Stage::probe(&stage.path, &stage.rules);
    stage.probe.restore(Remembered::of(saved).unwrap());
    append(&stage.path, "database is locked\n");
    assert_eq!(reasons(&stage.run(Duration::ZERO)), [Reason::DatabaseBusy]);
}

#[test]
fn a_rotation_while_the_agent_is_away_loses_nothing() {
    let mut stage = Stage::new(standard());
    stage.run(Duration::ZERO);
    append(&stage.path, "database is locked\n");
    std::fs::rename(&stage.path, stage.path.with_extension("log.1")).unwrap();
    append(&stage.path, "no space left on device\n");
    stage.restart();
    let judgement = stage.run(Duration::ZERO);
    assert_eq!(reasons(&judgement), [Reason::DatabaseBusy, Reason::ResourceExhausted]);
    assert_eq!(judgement.seen.get("rotations"), Some(&Value::Count(1)));
}

#[test]
fn a_one_shot_look_tells_of_the_last_day_by_the_lines_own_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hub.log");
    let now = clock::now().wall;
    append(&path, &format!("2001-02-03T04:05:06Z database is locked\n{now} connection refused\n"));
    let mut probe = Stage::probe(&path, &standard());
    let judgement = probe.run(&context(true, Duration::ZERO));
    assert_eq!(reasons(&judgement), [Reason::NetworkError]);
}

#[test]
fn what_cannot_be_read_is_unknown_with_a_way_out() {
    let mut stage = Stage::new(standard());
    std::fs::remove_file(&stage.path).unwrap();
    nix::unistd::mkfifo(&stage.path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let judgement = stage.run(Duration::ZERO);
    assert_eq!(judgement.verdict(), Verdict::Unknown);
    assert!(judgement.unknown.unwrap().why.contains("named pipe"));
    let root = HostRoot(stage.path.parent().unwrap().to_owned());
    let mut journal = LogProbe::of_unit(service(), "hub.service", false, standard(), &root);
    let unknown = journal.run(&context(false, Duration::ZERO)).unknown.unwrap();
    assert!(unknown.why.contains("there is no journal") && unknown.way_out.is_some(), "{unknown:?}");
}

#[test]
fn a_killer_that_a_syslog_names_is_possible_and_joined_to_its_victims_service() {
    let killers = standard_rules().into_iter().filter(|rule| rule.killer.is_some()).collect();
    let mut stage = Stage::new(Arc::new(Rules::new(killers)));
    stage.run(Duration::ZERO);
    let kill = "sending SIGKILL to process 4188 uid 0 \"spl\": badness 1021, VmRSS 2345 MiB";
    append(&stage.path, &format!("Nov 22 01:51:45 host earlyoom[812]: {kill}\n"));
    append(&stage.path, &format!("Nov 22 01:51:46 host web[99]: {kill}\n{kill}\n"));
    let mut services = Services::default();
    let spl = ServiceName::new("spl").unwrap();
    let process = ProcessId { pid: 4188, start_ticks: 7 };
    let instance = Instance {
        process,
        comm: "spl".into(),
        exe: None,
        cgroup: None,
        first_seen_boottime_ms: 1,
        ended_boottime_ms: None,
    };
    services.note(&spl, instance);
    let context = Context { services: Arc::new(Mutex::new(services)), ..context(false, Duration::ZERO) };
    let judgement = stage.probe.run(&context);
    let [kill] = judgement.occurrences.as_slice() else { panic!("{judgement:?}") };
    assert_eq!((kill.reason, kill.grade, kill.severity), (Reason::OomKill, Grade::Possible, None));
    assert_eq!(kill.service.as_ref(), Some(&spl));
    assert_eq!(kill.evidence.get("start_ticks"), Some(&Value::Count(7)));
    assert_eq!(kill.evidence.get("killer"), Some(&Value::Text("earlyoom".into())));
    assert_eq!(kill.evidence.get("rss_bytes"), Some(&Value::Bytes(2345 << 20)));
}

/// A real systemd in namespaces of its own, with a real journald.
struct Host(Booted);

impl Host {
    fn start() -> Option<Self> {
        Booted::boot("host-ns.sh", "a real journal", "log", None).map(Self)
    }

    fn run(&self, command: &[&str]) {
        let output = self.0.tool("run", command, Stdio::null());
        assert!(output.status.success(), "{command:?}: {}", booted::text(&output));
    }

    /// Its files, as seen from outside.
    fn root(&self) -> HostRoot {
        let leader = self.0.tool("leader", &[], Stdio::null());
        HostRoot(PathBuf::from(format!("/proc/{}/root", booted::text(&leader).trim())))
    }

    /// Runs a shell line as a unit, and waits until its end. What systemd itself says of a unit is in its log, too: by
    /// default that would quote the line.
    fn unit(&self, unit: &str, script: &str) {
        let unit = format!("--unit={unit}");
        let description = "--description=a test";
        self.run(&["systemd-run", "--quiet", "--wait", "--collect", description, &unit, "sh", "-c", script]);
        self.run(&["journalctl", "--sync"]);
    }
}

/// All that a probe tells until `enough` of it is there.
fn told(probe: &mut LogProbe, enough: usize) -> Vec<String> {
    let start = Instant::now();
    let mut lines = Vec::new();
    while lines.len() < enough && start.elapsed() < Duration::from_secs(20) {
        let judgement = probe.run(&context(false, Duration::ZERO));
        assert_eq!(judgement.unknown, None);
        lines.extend(judgement.occurrences.iter().map(|occurrence| occurrence.summary.clone()));
    }
    lines
}

fn journal_rule() -> Arc<Rules> {
    let mut rule = Rule::new("marks", Reason::LogError, r"mark (?<mark>\w+)");
    rule.summary = Some("{mark}".into());
    rule.group_by = Some("mark".into());
    Arc::new(Rules::new(vec![rule]))
}

#[test]
fn a_real_journal_is_followed_through_rotation_and_restart() {
    let Some(host) = Host::start() else { return };
    let root = host.root();
    host.unit("hub.service", "echo mark before");
    let probe = || LogProbe::of_unit(service(), "hub.service", false, journal_rule(), &root);
    let mut follower = probe();
    assert_eq!(told(&mut follower, 1).len(), 0, "what was there before is history");
    host.unit("other.service", "echo mark theirs");
    host.unit("hub.service", "echo mark one; echo mark two");
    assert_eq!(told(&mut follower, 2), ["one", "two"]);
    // Long messages are compressed.
    host.unit("hub.service", "printf 'mark long %2000s\\n' x");
    assert_eq!(told(&mut follower, 1), ["long"]);
    // Half in a file that is rotated away, half in its successor, and the agent away meanwhile.
    let saved = follower.save().unwrap();
    host.unit("hub.service", "echo mark three");
    host.run(&["journalctl", "--rotate"]);
    host.unit("hub.service", "echo mark four");
    host.run(&["journalctl", "--rotate"]);
    host.unit("hub.service", "echo mark five");
    let mut follower = probe();
    follower.restore(saved);
    let mut lines = told(&mut follower, 3);
    lines.sort();
    assert_eq!(lines, ["five", "four", "three"]);
    // And while it looks on.
    host.run(&["journalctl", "--rotate"]);
    host.unit("hub.service", "echo mark six");
    assert_eq!(told(&mut follower, 1), ["six"]);
    let judgement = follower.run(&context(false, Duration::ZERO));
    assert!(judgement.occurrences.is_empty(), "{judgement:?}");
    // What anybody says about a unit is not what systemd says about it.
    host.run(&["sh", "-c", "printf 'MESSAGE=mark forged\\nUNIT=hub.service\\n' | logger --journald || true"]);
    host.unit("hub.service", "echo mark seven");
    assert_eq!(told(&mut follower, 1), ["seven"]);
    // A one-shot diagnosis looks back.
    let judgement = probe().run(&context(true, Duration::ZERO));
    let marks: Vec<&str> = judgement.occurrences.iter().map(|occurrence| occurrence.summary.as_str()).collect();
    assert!(marks.contains(&"seven"), "{marks:?}");
}

#[test]
fn a_killer_is_believed_by_the_unit_that_wrote_the_line() {
    let Some(host) = Host::start() else { return };
    let killers = standard_rules().into_iter().filter(|rule| rule.killer.is_some()).collect();
    let mut watch = LogProbe::of_killers(Arc::new(Rules::new(killers)), &host.root());
    watch.run(&context(false, Duration::ZERO));
    let line = "Killed /system.slice/hub.service due to memory pressure for /system.slice being 85.23% > 60.00%";
    host.unit("web.service", &format!("echo '{line}'"));
    host.unit("systemd-oomd.service", &format!("echo '{line} for > 30s with reclaim activity'"));
    let lines = told(&mut watch, 1);
    assert_eq!(lines, ["systemd-oomd killed the processes of /system.slice/hub.service: memory pressure"]);
    assert!(watch.run(&context(false, Duration::ZERO)).occurrences.is_empty());
}
