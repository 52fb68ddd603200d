//! The unit sense on a real D-Bus: a private bus of this test, on which this test plays systemd.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use futures_util::StreamExt;
use muster_agent::clock;
use muster_agent::net::{Net, NetHandle};
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::pid_file::PidFileProbe;
use muster_agent::senses::process_watch::ProcessWatch;
use muster_agent::senses::restarts::RestartProbe;
use muster_agent::senses::unit::{SystemdProbe, UnitProbe, Units};
use muster_agent::senses::{HostRoot, process};
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::pid_file::ProcessReading;
use muster_agent_core::process::growth::GrowthRules;
use muster_agent_core::process::watch::ProcessRules;
use muster_agent_core::services::Services;
use muster_agent_core::unit::{Exit, Options, Property};
use muster_common::evidence::Value;
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, ObjectPath, Variant};

const UNIT: &str = "spl.service";
const SYSTEMD: &str = "org.freedesktop.systemd1";
/// Properties of units of every type among those that are asked for here.
const OF_EVERY_UNIT: [&str; 2] = ["UnitFileState", "StateChangeTimestampMonotonic"];
const PATIENCE: Duration = Duration::from_secs(60);
/// So long that no test waits for it: what is seen, was told by a signal.
const NEVER: Duration = Duration::from_secs(3_600);

type Properties = BTreeMap<String, Variant<'static>>;

/// A private bus; it ends with the test.
struct Bus {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Bus {
    /// `None`, with a word on why, where there is no dbus-daemon.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "<busconfig><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context='default'><allow send_destination='*'/><allow send_type='signal'/><allow own='*'/>\
             <allow receive_sender='*'/></policy></busconfig>",
            folder.path().join("bus").display()
        );
        std::fs::write(folder.path().join("bus.conf"), config).unwrap();
        let Some(daemon) = Self::daemon(folder.path().into()) else {
            println!("skipped: units on a real bus: no dbus-daemon here");
            return None;
        };
        Some(Self { folder, daemon })
    }

    fn daemon(folder: PathBuf) -> Option<Child> {
        let _old_one = std::fs::remove_file(folder.join("bus"));
        let config = format!("--config-file={}", folder.join("bus.conf").display());
        let mut command = Command::new("dbus-daemon");
        command.args([config.as_str(), "--nofork", "--nopidfile", "--print-address=1"]);
        let mut daemon = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().ok()?;
        // Its address comes when it listens.
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "dbus-daemon did not start");
        Some(daemon)
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.folder.path().join("bus").display())
    }

    fn stop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    fn restart(&mut self) {
        self.daemon = Self::daemon(self.folder.path().into()).unwrap();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        if self.daemon.kill().is_ok() {
            self.daemon.wait().unwrap();
        }
    }
}

#[derive(Default)]
struct World {
    units: BTreeMap<String, Properties>,
    /// Members of the calls that came.
    calls: Vec<String>,
    /// The unique name of who asks.
    agent: String,
}

/// systemd, as far as anybody here asks it.
struct FakeSystemd {
    connection: Connection,
    world: Arc<Mutex<World>>,
    net: NetHandle,
}

fn path_of(unit: &str) -> String {
    format!("/org/freedesktop/systemd1/unit/{}", unit.replace('.', "_2e").replace('-', "_2d"))
}

impl FakeSystemd {
    fn start(net: &NetHandle, address: String, world: Arc<Mutex<World>>) -> Self {
        let (sender, started) = mpsc::channel();
        let theirs = Arc::clone(&world);
        net.spawn(async move {
            let connection = zbus::connection::Builder::address(address.as_str()).build().await.unwrap();
            let mut stream = MessageStream::from(&connection);
            connection.request_name(SYSTEMD).await.unwrap();
            sender.send(connection.clone()).unwrap();
            while let Some(Ok(message)) = stream.next().await {
                if message.message_type() == Type::MethodCall {
                    answer(&connection, &theirs, &message).await;
                }
            }
        });
        Self { connection: started.recv_timeout(PATIENCE).unwrap(), world, net: net.clone() }
    }

    /// Changes properties and tells so, as systemd does: those of the type first, then those of the unit.
    fn change(&self, unit: &str, changed: Properties) {
        self.world.lock().unwrap().units.get_mut(unit).unwrap().extend(clone(&changed));
        let connection = self.connection.clone();
        let path = path_of(unit);
        signal(&self.net, connection, path, changed, None);
    }

    fn calls(&self, member: &str) -> usize {
        self.world.lock().unwrap().calls.iter().filter(|call| *call == member).count()
    }
}

/// Sends `PropertiesChanged` twice and waits until both are on their way.
fn signal(net: &NetHandle, connection: Connection, path: String, changed: Properties, to: Option<String>) {
    let (sender, sent) = mpsc::channel();
    net.spawn(async move {
        for interface in ["Service", "Unit"] {
            let interface = format!("{SYSTEMD}.{interface}");
            let body = (interface.as_str(), &changed, Vec::<&str>::new());
            let properties = "org.freedesktop.DBus.Properties";
            let mut message = Message::signal(path.as_str(), properties, "PropertiesChanged");
            if let Some(to) = &to {
                message = message.destination(to.as_str());
            }
            let message = message.build(&body).unwrap();
            connection.send(&message).await.unwrap();
        }
        sender.send(()).unwrap();
    });
    sent.recv_timeout(PATIENCE).unwrap();
}

async fn answer(connection: &Connection, world: &Arc<Mutex<World>>, message: &Message) {
    let header = message.header();
    let member = header.member().unwrap().to_string();
    world.lock().unwrap().calls.push(member.clone());
    world.lock().unwrap().agent = header.sender().unwrap().to_string();
    let unit_of = |path: &str| world.lock().unwrap().units.keys().find(|unit| path_of(unit) == path).cloned();
    let unit = unit_of(header.path().unwrap().as_str());
    let properties = unit.and_then(|unit| world.lock().unwrap().units.get(&unit).map(clone));
    let body = message.body();
    match (member.as_str(), properties) {
        ("LoadUnit", _) => {
            let (name,): (String,) = body.deserialize().unwrap();
            if world.lock().unwrap().units.contains_key(&name) {
                let path = path_of(&name);
                connection.reply(&header, &ObjectPath::try_from(path.as_str()).unwrap()).await.unwrap();
            } else {
                let refused = format!("{SYSTEMD}.NoSuchUnit");
                connection.reply_error(&header, refused.as_str(), &"no such unit").await.unwrap();
            }
        }
        ("GetAll", Some(properties)) => connection.reply(&header, &properties).await.unwrap(),
        ("Get", Some(properties)) => {
            let (interface, name): (String, String) = body.deserialize().unwrap();
            // As the real one, which does not look through all interfaces for an empty name.
            let of_unit = OF_EVERY_UNIT.contains(&name.as_str());
            let asked = if of_unit { "Unit" } else { "Service" };
            match properties.get(&name).filter(|_| interface == format!("{SYSTEMD}.{asked}")) {
                Some(value) => connection.reply(&header, value).await.unwrap(),
                None => {
                    let refused = "org.freedesktop.DBus.Error.UnknownProperty";
                    connection.reply_error(&header, refused, &"no such property").await.unwrap();
                }
            }
        }
        _ => connection.reply(&header, &()).await.unwrap(),
    }
}

fn clone(properties: &Properties) -> Properties {
    properties.iter().map(|(name, value)| (name.clone(), value.try_clone().unwrap())).collect()
}

fn properties<const N: usize>(list: [(&str, Variant<'static>); N]) -> Properties {
    list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn text(text: &str) -> Variant<'static> {
    Variant::from(text.to_owned())
}

/// A running service with this main process.
fn running(pid: u32) -> Properties {
    let mut all = properties([
        ("LoadState", text("loaded")),
        ("ActiveState", text("active")),
        ("SubState", text("running")),
        ("Result", text("success")),
        ("Type", text("simple")),
        ("Restart", text("on-failure")),
        ("NRestarts", Variant::from(0u32)),
        ("ControlGroup", text("/system.slice/spl.service")),
        ("StateChangeTimestampMonotonic", Variant::from(1_000_000u64)),
        ("ActiveEnterTimestampMonotonic", Variant::from(1_000_000u64)),
    ]);
    all.extend(main_process(pid, 1_000_000, None));
    all
}

/// `exit`: when, `si_code`, `si_status`.
fn main_process(pid: u32, start_usec: u64, exit: Option<(u64, i32, i32)>) -> Properties {
    let (exit_usec, code, status) = exit.unwrap_or_default();
    properties([
        ("MainPID", Variant::from(if exit.is_some() { 0 } else { pid })),
        ("ExecMainPID", Variant::from(pid)),
        ("ExecMainStartTimestampMonotonic", Variant::from(start_usec)),
        ("ExecMainExitTimestampMonotonic", Variant::from(exit_usec)),
        ("ExecMainCode", Variant::from(code)),
        ("ExecMainStatus", Variant::from(status)),
    ])
}

/// All of it: the bus, systemd, the agent's side.
struct Stage {
    probe: UnitProbe,
    units: Units,
    systemd: FakeSystemd,
    services: Arc<Mutex<Services>>,
    net: Net,
    bus: Bus,
}

fn service() -> ServiceName {
    ServiceName::new("spl").unwrap()
}

impl Stage {
    fn new(unit: Properties) -> Option<Self> {
        Self::with([(UNIT.to_owned(), unit)].into())
    }

    fn with(units: BTreeMap<String, Properties>) -> Option<Self> {
        let bus = Bus::start()?;
        let net = Net::start().unwrap();
        let world = Arc::new(Mutex::new(World { units, ..World::default() }));
        let systemd = FakeSystemd::start(&net.handle(), bus.address(), world);
        let names = [UNIT.to_owned()].into();
        let units = Units::follow_at(&net.handle(), Some(bus.address()), names, NEVER).unwrap();
        let options = Options::default();
        let probe = UnitProbe::new(service(), UNIT, &units, HostRoot::default(), options, PATIENCE).unwrap();
        Some(Self { probe, units, systemd, services: Arc::default(), net, bus })
    }

    fn context(&self, one_shot: bool) -> Context {
        Context { now: clock::now(), services: Arc::clone(&self.services), one_shot }
    }

    fn run(&mut self) -> Judgement {
        let context = self.context(false);
        self.probe.run(&context)
    }

    /// Runs the probe, as its bell would, until it says this.
    fn until(&mut self, what: impl Fn(&Judgement) -> bool) -> Judgement {
        let end = Instant::now() + PATIENCE;
        loop {
            let judgement = self.run();
            if what(&judgement) {
                return judgement;
            }
            assert!(Instant::now() < end, "it never came: {judgement:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

fn is_ok(judgement: &Judgement) -> bool {
    judgement.verdict() == Verdict::Ok
}

#[test]
fn a_failure_is_told_by_a_signal_and_the_main_process_is_noted() {
    let mut process = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let pid = process.id();
    let Some(mut stage) = Stage::new(running(pid)) else {
        process.kill().unwrap();
        process.wait().unwrap();
        return;
    };
    let ok = stage.until(is_ok);
    assert_eq!(ok.seen.get("pid"), Some(&Value::Count(pid.into())));
    assert!(ok.seen.get("start_ticks").is_some(), "{ok:?}");
    let noted = stage.services.lock().unwrap().newest(&service()).cloned().unwrap();
    assert_eq!((noted.process.pid, noted.comm.as_str(), noted.ended_boottime_ms), (pid, "sleep", None));
    assert_eq!(stage.units.state(UNIT).unwrap().control_group, "/system.slice/spl.service");

    process.kill().unwrap();
    process.wait().unwrap();
    let mut failed = main_process(pid, 1_000_000, Some((5_000_000, 2, 9)));
    failed.extend(properties([
        ("ActiveState", text("failed")),
        ("SubState", text("failed")),
        ("Result", text("signal")),
        ("StateChangeTimestampMonotonic", Variant::from(5_000_000u64)),
    ]));
    stage.systemd.change(UNIT, failed);
    let failed = stage.until(|judgement| !is_ok(judgement));
    assert_eq!(reasons(&failed), [Reason::UnitFailed]);
    let evidence = &failed.problems[0].evidence;
    assert_eq!(evidence.get("exit_signal"), Some(&Value::Text("SIGKILL".into())));
    assert_eq!(evidence.get("start_ticks"), Some(&Value::Count(noted.process.start_ticks)));
    let noted = stage.services.lock().unwrap().newest(&service()).cloned().unwrap();
    assert!(noted.ended_boottime_ms.is_some());
    assert_eq!(stage.units.exit_of(UNIT, pid, 1_000, 0), Some(Exit::Signal(9)));
    assert_eq!(stage.units.exit_of(UNIT, pid, 60_000, 0), None, "another life of that pid");
    assert_eq!(stage.systemd.calls("GetAll"), 2, "nothing was asked that a signal tells");
}

/// A host that gives no pidfd, as a kernel that tells nobody how a process ended.
fn old_kernel() -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/proc", host.path().join("proc")).unwrap();
    host
}

#[test]
fn systemd_tells_how_a_process_ended_where_the_kernel_does_not() {
    let mut child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let ProcessReading::Alive(facts) = process::read(&HostRoot::default(), pid) else { panic!("{pid} runs") };
    let start_usec = facts.start_boottime_ms.saturating_sub(clock::suspended_ms()) * 1_000;
    let mut unit = running(pid);
    unit.extend(main_process(pid, start_usec, None));
    let Some(mut stage) = Stage::new(unit) else {
        child.kill().unwrap();
        child.wait().unwrap();
        return;
    };
    stage.until(is_ok);
    let host = old_kernel();
    let root = || HostRoot(host.path().into());
    let write = |pid: u32| std::fs::write(host.path().join("spl.pid"), pid.to_string()).unwrap();
    write(pid);
    let asked = || Some((UNIT.to_owned(), stage.units.clone()));
    let memory_growth = GrowthRules { window: NEVER, by_at_least: 1 << 40, by_percent: 100 };
    let rules = ProcessRules { open_files_percent: 100, memory_growth, zombie_children: 9, tells_end: true };
    let mut probes: [Box<dyn Probe>; 2] = [
        Box::new(PidFileProbe::new(service(), "/spl.pid", root(), asked())),
        Box::new(ProcessWatch::new(service(), root(), rules, asked())),
    ];
    let context = || stage.context(false);
    for probe in &mut probes {
        let ok = probe.run(&context());
        assert_eq!((ok.verdict(), probe.again_in()), (Verdict::Ok, None), "{ok:?}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let exit = |judgement: &Judgement| judgement.problems[0].evidence.get("exit_status").cloned();
    for probe in &mut probes {
        let down = probe.run(&context());
        assert_eq!(reasons(&down), [Reason::ProcessDown]);
        assert_eq!(exit(&down), Some(Value::Text("unknown".into())));
        assert!(probe.again_in().is_some_and(|soon| soon < Duration::from_secs(1)), "it is asked again soon");
    }
    let mut killed = main_process(pid, start_usec, Some((start_usec + 5_000_000, 2, 9)));
    killed.extend(properties([("Result", text("oom-kill"))]));
    stage.systemd.change(UNIT, killed);
    for probe in &mut probes {
        let end = Instant::now() + PATIENCE;
        let down = loop {
            let down = probe.run(&context());
            if exit(&down) == Some(Value::Text("SIGKILL".into())) {
                break down;
            }
            assert!(Instant::now() < end, "systemd's word never came: {down:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(down.problems[0].summary.contains(" by SIGKILL ("), "{down:?}");
        let told_by = down.problems[0].evidence.get("exit_told_by");
        assert_eq!(told_by, Some(&Value::Text("systemd (result oom-kill)".into())));
    }
    // The successor: how the old one ended is part of its story, and one more look comes soon.
    write(std::process::id());
    let [pid_file, _] = &mut probes;
    let back = pid_file.run(&context());
    assert_eq!(back.verdict(), Verdict::Ok, "{back:?}");
    assert!(back.occurrences[0].summary.contains("the old one ended by SIGKILL"), "{back:?}");
    assert_eq!(pid_file.again_in(), Some(Duration::from_secs(1)));
    pid_file.run(&context());
    assert_eq!(pid_file.again_in(), None, "seen twice");
}

#[test]
fn doctor_waits_for_the_answer() {
    let Some(mut stage) = Stage::new(running(std::process::id())) else { return };
    let context = stage.context(true);
    assert_eq!(stage.probe.run(&context).verdict(), Verdict::Ok);
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(host.path().join("run/systemd/system")).unwrap();
    let mut probe = SystemdProbe::new(stage.units.clone(), HostRoot(host.path().into()), PATIENCE);
    assert_eq!(probe.run(&context).seen.get("units_followed"), Some(&Value::Count(1)));
    let nowhere = HostRoot("/nonexistent".into());
    let without = SystemdProbe::new(stage.units.clone(), nowhere, PATIENCE).run(&context).unknown.unwrap();
    assert!(without.why.contains("does not run systemd") && without.way_out.is_some(), "{without:?}");
}

#[test]
fn a_signal_of_somebody_else_is_not_believed() {
    let Some(mut stage) = Stage::new(running(std::process::id())) else { return };
    stage.until(is_ok);
    let (sender, connected) = mpsc::channel();
    let address = stage.bus.address();
    stage.net.handle().spawn(async move {
        sender.send(zbus::connection::Builder::address(address.as_str()).build().await.unwrap()).unwrap();
    });
    let stranger = connected.recv_timeout(PATIENCE).unwrap();
    // Straight to the agent's own name, as any user may.
    let forged = properties([("ActiveState", text("failed"))]);
    let agent = stage.systemd.world.lock().unwrap().agent.clone();
    signal(&stage.net.handle(), stranger, path_of(UNIT), forged, Some(agent));
    // What systemd says afterwards comes after it.
    stage.systemd.change(UNIT, properties([("SubState", text("exited"))]));
    let told = stage.until(|judgement| judgement.seen.get("sub_state") == Some(&Value::Text("exited".into())));
    assert_eq!(told.verdict(), Verdict::Ok);
    assert_eq!(told.seen.get("active_state"), Some(&Value::Text("active".into())));
}

#[test]
fn what_does_not_exist_is_missing_and_what_is_odd_harms_nothing() {
    let Some(mut missing) = Stage::with(BTreeMap::new()) else { return };
    let told = missing.until(|judgement| !judgement.problems.is_empty());
    assert_eq!(reasons(&told), [Reason::UnitMissing]);

    let mut odd = running(std::process::id());
    odd.extend(properties([
        ("MainPID", text("one")),
        ("Result", Variant::from(vec![1u8; 9_000])),
        ("FragmentPath", text(&"x".repeat(100_000))),
        ("TriggeredBy", Variant::from(vec![String::from("y"); 5_000])),
        ("ExecMainPID", Variant::from(u64::MAX)),
    ]));
    let Some(mut stage) = Stage::new(odd) else { return };
    let told = stage.until(is_ok);
    assert!(told.seen.get("result").is_none());
}

#[test]
fn a_bus_that_goes_away_is_unknown_and_found_again() {
    let Some(mut stage) = Stage::new(running(std::process::id())) else { return };
    stage.until(is_ok);
    stage.bus.stop();
    let lost = stage.until(|judgement| judgement.unknown.is_some());
    assert!(lost.problems.is_empty() && lost.unknown.unwrap().why.starts_with("not asked: "));
    assert!(stage.units.unreachable().is_some());
    stage.bus.restart();
    let mut failed = running(std::process::id());
    failed.extend(properties([("ActiveState", text("failed")), ("Result", text("watchdog"))]));
    stage.systemd.world.lock().unwrap().units.insert(UNIT.to_owned(), failed);
    let world = Arc::clone(&stage.systemd.world);
    stage.systemd = FakeSystemd::start(&stage.net.handle(), stage.bus.address(), world);
    let told = stage.until(|judgement| !judgement.problems.is_empty());
    assert_eq!(reasons(&told), [Reason::UnitFailed]);
}

#[test]
fn any_property_can_be_asked_for() {
    let mut unit = running(1);
    unit.extend(properties([("LimitNOFILE", Variant::from(1_024u64)), ("ProtectHome", text("read-only"))]));
    let Some(mut stage) = Stage::new(unit) else { return };
    stage.until(is_ok);
    let units = stage.units.clone();
    let (sender, answer) = mpsc::channel();
    stage.net.handle().spawn(async move {
        let found = units.properties(UNIT, &["LimitNOFILE", "ProtectHome", "NoSuchProperty"]).await.unwrap();
        let missing = units.properties("other.service", &["LimitNOFILE"]).await;
        sender.send((found, missing.map_err(|error| error.to_string()))).unwrap();
    });
    let (found, missing) = answer.recv_timeout(PATIENCE).unwrap();
    let expected = [
        ("LimitNOFILE".to_owned(), Property::Number(1_024)),
        ("ProtectHome".to_owned(), Property::Text("read-only".to_owned())),
    ];
    assert_eq!(found, expected.into());
    assert!(missing.unwrap_err().contains("other.service"));
}

#[test]
fn a_crash_loop_between_two_looks_is_seen_whole() {
    let now_usec = clock::now().boottime_ms.saturating_sub(clock::suspended_ms()) * 1_000;
    let begin_usec = now_usec.saturating_sub(60_000_000);
    let mut unit = running(1_000_001);
    unit.extend(main_process(1_000_001, begin_usec, None));
    let Some(mut stage) = Stage::new(unit) else { return };
    stage.until(is_ok);
    let known_unit = Some((UNIT.to_owned(), stage.units.clone()));
    let mut restarts = RestartProbe::new(service(), known_unit, HostRoot::default());
    let context = stage.context(false);
    assert_eq!(restarts.run(&context).verdict(), Verdict::Ok);
    // Processes that live for a second and are long gone when anybody looks into /proc.
    for n in 1..=4u32 {
        let start_usec = begin_usec + u64::from(n) * 2_000_000;
        let exit = Some((start_usec - 1_000_000, 1, 7));
        stage.systemd.change(UNIT, main_process(1_000_000 + n, start_usec - 2_000_000, exit));
        let mut next = main_process(1_000_001 + n, start_usec, None);
        next.insert("NRestarts".to_owned(), Variant::from(n));
        stage.systemd.change(UNIT, next);
    }
    let lives = |stage: &Stage| stage.units.state(UNIT).map_or(0, |state| state.lives().len());
    let told = stage.until(|judgement| !judgement.occurrences.is_empty());
    let mut told = told.occurrences;
    while lives(&stage) < 5 || told.len() < 4 {
        told.extend(stage.until(|judgement| !judgement.occurrences.is_empty()).occurrences);
    }
    assert_eq!(told.len(), 4, "{told:#?}");
    assert!(told.iter().all(|restart| restart.reason == Reason::ProcessRestarted));
    assert_eq!(told[3].evidence.get("exit_status"), Some(&Value::Integer(7)));
    assert_eq!(told[3].evidence.get("automatic"), Some(&Value::Flag(true)));
    let judgement = restarts.run(&stage.context(false));
    assert_eq!(reasons(&judgement), [Reason::RestartLoop], "{judgement:?}");
    let saved = restarts.save().unwrap();
    let mut restored = RestartProbe::new(service(), None, HostRoot::default());
    restored.restore(saved);
    assert_eq!(reasons(&restored.run(&context)), [Reason::RestartLoop]);
}
