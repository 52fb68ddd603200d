//! Room, read-only remounts, modes and declared settings, on real file systems and of a real process.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too, and skips are said")]

mod started;

use muster_agent::clock;
use muster_agent::config::Config;
use muster_agent::config::baseline::Baseline;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::HostRoot;
use muster_agent::senses::baseline::BaselineProbe;
use muster_agent::senses::disk::{DiskProbe, Kept, MountTable, Place};
use muster_agent::senses::host_clock::HostClockProbe;
use muster_agent::senses::permission::PermissionProbe;
use muster_agent::senses::process;
use muster_agent_core::disk::{Thresholds, Use};
use muster_agent_core::host_clock::Limits;
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::permission::Role;
use muster_agent_core::services::{Instance, Services};
use muster_common::evidence::{Grade, Value};
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use started::Agent;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Set for the child that works in a mount namespace of its own.
const FOLDER_KEY: &str = "MUSTER_TEST_MOUNTS_BELOW";
const NOBODY: u32 = 65_534;

fn spl() -> ServiceName {
    ServiceName::new("spl").unwrap()
}

/// Looks as often as the agent does: what is shared for a moment is then old, and what stands while the kernel tells of
/// no change is not.
struct Clock(u64);

impl Clock {
    fn context(&mut self, services: &Arc<Mutex<Services>>) -> Context {
        self.0 += 5_000;
        let mut now = clock::now();
        now.boottime_ms += self.0;
        Context { now, services: Arc::clone(services), one_shot: false }
    }

    fn run(&mut self, probe: &mut impl Probe) -> Judgement {
        probe.run(&self.context(&Arc::default()))
    }
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn small_file_systems_fill_up_and_become_read_only() {
    let works = Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    if !is_root() || !works {
        println!("skipped: no private mount namespace can be made here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new("unshare");
    child.arg("-m").arg(std::env::current_exe().unwrap()).args(["--exact", "child", "--nocapture"]);
    let output = child.env(FOLDER_KEY, folder.path().canonicalize().unwrap()).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("all mounts were tried"), "{told}");
}

/// Does nothing unless it is started by the test above.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER_KEY).map(PathBuf::from) else { return };
    let at = |name: &str| folder.join(name);
    for (name, options) in [("small", c"size=4m,nr_inodes=64"), ("bound", c"size=1m")] {
        std::fs::create_dir(at(name)).unwrap();
        mount("none", at(name), "tmpfs", MountFlags::empty(), options).unwrap();
    }
    symlink(at("small"), at("link")).unwrap();
    let (mut clock, table) = (Clock(0), MountTable::new(HostRoot::default()));
    let kept = |path: PathBuf, what| Kept { path, by: Use { service: "spl".into(), what } };
    let kept = [
        kept(at("link").join("deep/hub.db"), "database"),
        kept(at("link/../link/log"), "logs"),
        kept(at("bound/x"), "logs"),
    ];
    let places = table.places(&kept, 0);
    let points: Vec<&str> = places.iter().map(|place| place.mount_point.as_str()).collect();
    assert_eq!(points, [at("bound").to_str().unwrap(), at("small").to_str().unwrap()]);
    assert_eq!(places[1].uses.len(), 2);
    let probe = |name: &str| {
        let place = places.iter().find(|place: &&Place| place.mount_point.ends_with(name)).unwrap().clone();
        DiskProbe::new(place, Thresholds::default(), Arc::clone(&table))
    };

    let mut small = probe("small");
    assert_eq!(clock.run(&mut small).verdict(), Verdict::Ok);
    std::fs::write(at("small/fill"), vec![1u8; (4 << 20) - (64 << 10)]).unwrap();
    let judgement = clock.run(&mut small);
    assert_eq!(reasons(&judgement), [Reason::DiskSpaceLow], "{judgement:?}");
    assert!(judgement.problems[0].summary.contains("64 KiB of 4 MiB left (1.5 %)"), "{judgement:?}");
    std::fs::remove_file(at("small/fill")).unwrap();
    assert_eq!(clock.run(&mut small).verdict(), Verdict::Ok);

    let mut made = 0;
    while std::fs::write(at("small").join(made.to_string()), "").is_ok() {
        made += 1;
    }
    assert!((50..64).contains(&made), "{made}");
    let judgement = clock.run(&mut small);
    assert_eq!(reasons(&judgement), [Reason::DiskInodesLow]);
    assert!(judgement.problems[0].summary.contains("no inode left of 64"), "{judgement:?}");
    (0..made).for_each(|name| std::fs::remove_file(at("small").join(name.to_string())).unwrap());
    assert_eq!(clock.run(&mut small).verdict(), Verdict::Ok);

    // What a restart of the agent keeps is enough to know that it was writable.
    let saved = small.save().unwrap();
    mount_remount(at("small"), MountFlags::RDONLY, "").unwrap();
    assert!(std::fs::write(at("small/x"), "").is_err());
    let mut restarted = probe("small");
    assert_eq!(clock.run(&mut restarted).verdict(), Verdict::Ok, "it may always have been so");
    restarted.restore(saved);
    let judgement = clock.run(&mut restarted);
    assert_eq!(reasons(&judgement), [Reason::DiskReadOnly]);
    assert_eq!(judgement.problems[0].grade, Grade::Confirmed);
    mount_remount(at("small"), MountFlags::empty(), "").unwrap();
    assert_eq!(clock.run(&mut restarted).verdict(), Verdict::Ok);

    // As ProtectSystem=strict does it: this mount is read-only, the file system is not.
    let mut bound = probe("bound");
    assert_eq!(clock.run(&mut bound).verdict(), Verdict::Ok);
    mount_bind(at("bound"), at("bound")).unwrap();
    mount_remount(at("bound"), MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
    assert!(std::fs::write(at("bound/x"), "").is_err());
    assert_eq!(clock.run(&mut bound).verdict(), Verdict::Ok);
    tell_of_a_late_mount(&folder);
    println!("all mounts were tried");
}

/// The daemon, after its start, hears of a file system under a service's folder, and of one under that.
fn tell_of_a_late_mount(folder: &Path) {
    let folder = folder.join("daemon");
    let late = folder.join("late");
    std::fs::create_dir_all(&late).unwrap();
    let shown = folder.display();
    let config = format!(
        "[agent]\nstate_dir = \"{shown}/state\"\nsocket = \"{shown}/agent.sock\"\n[probes]\ndisk = \"1s\"\n\
         [disk]\nmin_free = \"1KiB\"\nmounts = [{{ path = \"{shown}/late\", min_free = \"50%\" }}]\n\
         [memory]\napproaching = \"2B\"\ncritical = \"1B\"\n[service.web]\nlogs = [\"{shown}/late/web.log\"]\n"
    );
    std::fs::write(folder.join("agent.toml"), config).unwrap();
    let agent = Agent::start(&folder);
    agent.until(&["watching"]);
    agent.until(&["probed", "host/disk"]);
    mount("none", &late, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    std::fs::write(late.join("fill"), vec![1u8; 768 << 10]).unwrap();
    agent.until(&["opened", "disk_space_low", "daemon/late"]);
    // What is gone is told, and not forgotten.
    unmount(&late, UnmountFlags::DETACH).unwrap();
    agent.until(&["probed", "daemon/late", "\"unknown\""]);
    mount("none", &late, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    agent.until(&["cleared", "disk_space_low", "daemon/late"]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn the_real_host_tells_its_room() {
    let table = MountTable::new(HostRoot::default());
    let own = Kept { path: std::env::temp_dir(), by: Use { service: "spl".into(), what: "logs" } };
    let places = table.places(&[own.clone(), own], 0);
    assert_eq!(places.len(), 1);
    let judgement = Clock(0).run(&mut DiskProbe::new(places[0].clone(), Thresholds::default(), table));
    assert!(judgement.unknown.is_none(), "{judgement:?}");
    assert!(judgement.seen.get("available_bytes").is_some(), "{judgement:?}");
    let nowhere = MountTable::new(HostRoot("/nonexistent".into()));
    let mut probe = DiskProbe::new(places[0].clone(), Thresholds::default(), nowhere);
    assert_eq!(Clock(0).run(&mut probe).verdict(), Verdict::Unknown);
}

#[test]
fn the_real_clock_answers_and_waits_to_be_set() {
    let limits = Limits { max_skew: Duration::from_secs(5), synchronised: false };
    let mut probe = HostClockProbe::new(limits, Arc::default(), HostRoot::default());
    assert!(probe.wake().is_some());
    // Two runs at once: nobody sets the clock between, and the boot-time clock has gone on as it has.
    let context = Context { now: clock::now(), services: Arc::default(), one_shot: false };
    for _ in 0..2 {
        let judgement = probe.run(&context);
        assert!(judgement.problems.is_empty() && judgement.occurrences.is_empty(), "{judgement:?}");
        assert!(judgement.seen.get("synchronised").is_some());
    }
    let mut set = context;
    set.now.wall = set.now.wall + Duration::from_secs(3600);
    assert_eq!(probe.run(&set).occurrences[0].reason, Reason::ClockJumped);
}

/// A process that is the service's, and ends with the test.
struct Running {
    child: Child,
    services: Arc<Mutex<Services>>,
}

impl Running {
    fn start(shell: &str) -> Self {
        let child = Command::new("sh").arg("-c").arg(shell).stdin(Stdio::null()).spawn().unwrap();
        let services: Arc<Mutex<Services>> = Arc::default();
        let process = process::id(&HostRoot::default(), child.id()).unwrap();
        let instance = Instance {
            process,
            comm: "sh".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: 0,
            ended_boottime_ms: None,
        };
        services.lock().unwrap().note(&spl(), instance);
        Self { child, services }
    }

    /// Until the shell has done its work and become the sleep.
    fn settle(&self) {
        let comm = format!("/proc/{}/comm", self.child.id());
        for _ in 0..10_000 {
            if std::fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n") {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the process did not start");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn modes_and_owners_are_judged_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::start("exec sleep 600");
    let (database, link) = (folder.path().join("hub.db"), folder.path().join("link.db"));
    std::fs::write(&database, "").unwrap();
    std::fs::write(folder.path().join("hub.db-wal"), "").unwrap();
    symlink(&database, &link).unwrap();
    let mut clock = Clock(0);
    let mut probe = PermissionProbe::new(spl(), Role::Database, &link, HostRoot::default());
    let mut look = || probe.run(&clock.context(&running.services));
    for path in [database.clone(), folder.path().join("hub.db-wal")] {
        set_mode(&path, 0o600);
        assert_eq!(look().verdict(), Verdict::Ok);
        set_mode(&path, 0o606);
        let judgement = look();
        assert_eq!(reasons(&judgement), [Reason::PermissionInsecure]);
        let steps = &judgement.problems[0].next_steps;
        assert!(steps.contains(&format!("consider: chmod o-w {}", path.display())), "{steps:?}");
        set_mode(&path, 0o600);
    }
    set_mode(folder.path(), 0o777);
    assert!(look().problems[0].summary.contains("is 0777"));
    set_mode(folder.path(), 0o1777);
    assert_eq!(look().verdict(), Verdict::Ok);
    if !is_root() {
        println!("skipped: other owners, this test does not run as root");
        return;
    }
    chown(&database, Some(NOBODY), None).unwrap();
    let judgement = look();
    assert_eq!(judgement.problems[0].evidence.get("service_user"), Some(&Value::Text("root".into())), "{judgement:?}");
    assert!(judgement.problems[0].summary.contains("belongs to nobody"), "{judgement:?}");
    std::fs::remove_file(&database).unwrap();
    assert_eq!(look().seen.get("exists"), Some(&Value::Flag(false)));
}

#[test]
fn a_readable_key_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.pem");
    std::fs::write(&key, "").unwrap();
    let mut probe = PermissionProbe::new(spl(), Role::Key, &key, HostRoot::default());
    set_mode(&key, 0o640);
    assert_eq!(Clock(0).run(&mut probe).verdict(), Verdict::Ok);
    set_mode(&key, 0o644);
    assert_eq!(reasons(&Clock(0).run(&mut probe)), [Reason::PermissionInsecure]);
}

fn baseline(text: &str) -> (Baseline, Baseline) {
    let mut config = Config::parse("agent.toml", text).unwrap();
    (config.baseline, config.services.remove(0).baseline)
}

#[test]
fn declared_settings_are_compared_with_the_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "abc").unwrap();
    set_mode(&file, 0o640);
    let text = format!(
        r#"
[baseline]
sysctl = {{ "kernel.ostype" = "Linux" }}
files = [{{ path = {file:?}, mode = "0640", sha256 = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD" }}]
[service.spl]
pid_file = "/run/spl.pid"
[service.spl.baseline]
limits = {{ nofile = "123:456" }}
"#
    );
    let (host, service) = baseline(&text);
    let mut clock = Clock(0);
    let mut probe = BaselineProbe::new(ServiceName::host(), host, None, HostRoot::default());
    assert_eq!(clock.run(&mut probe).verdict(), Verdict::Ok);
    std::fs::write(&file, "abd").unwrap();
    set_mode(&file, 0o666);
    let judgement = clock.run(&mut probe);
    assert_eq!(judgement.seen.get("drifted"), Some(&Value::Count(2)), "{judgement:?}");
    assert!(judgement.problems[0].summary.contains("is 0666, declared is 0640; it was 0640 until"), "{judgement:?}");
    let mut restarted = BaselineProbe::new(ServiceName::host(), baseline(&text).0, None, HostRoot::default());
    restarted.restore(probe.save().unwrap());
    assert!(clock.run(&mut restarted).problems[0].summary.contains("it was 0640 until"));
    std::fs::remove_file(&file).unwrap();
    assert!(clock.run(&mut probe).problems[0].summary.contains("is missing"));

    let mut probe = BaselineProbe::new(spl(), service, None, HostRoot::default());
    assert_eq!(clock.run(&mut probe).verdict(), Verdict::Unknown, "no process is known");
    for (shell, verdict) in [
        ("ulimit -Sn 123; ulimit -Hn 456; exec sleep 600", Verdict::Ok),
        ("ulimit -Sn 100; exec sleep 600", Verdict::Problem),
    ] {
        let running = Running::start(shell);
        running.settle();
        let judgement = probe.run(&clock.context(&running.services));
        assert_eq!(judgement.verdict(), verdict, "{judgement:?}");
    }
}

#[test]
fn a_property_of_a_unit_is_told_by_its_name_where_there_is_no_systemd() {
    let text = "[service.spl]\nunit = \"spl.service\"\n[service.spl.baseline]\nunit = { MemoryMax = \"3GiB\" }\n";
    for (unit, told) in [
        (Some(("spl.service".to_owned(), None)), "MemoryMax of spl.service: there is no systemd here to ask"),
        (None, "MemoryMax of the service's unit: the service names no unit: name it with unit ="),
    ] {
        let mut probe = BaselineProbe::new(spl(), baseline(text).1, unit, HostRoot::default());
        assert_eq!(Clock(0).run(&mut probe).unknown.map(|unknown| unknown.why).as_deref(), Some(told));
    }
}
