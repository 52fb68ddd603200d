//! `muster-agent doctor`: every probe once, in parallel, each within its deadline; then one report.
//!
//! Needs no coordinator, no state and, with discovery, no config. Changes nothing.

mod agent;
mod deep;
mod progress;
pub mod report;
pub mod text;

use crate::config::Config;
use crate::local::LinkStatus;
use crate::net::Net;
use crate::probe::{Context, Lane as Kind};
use crate::run::lanes::{Delivery, Done, Job, Lane};
use crate::run::plan::{Means, Planned, not_watched, probes};
use crate::senses::HostRoot;
use crate::senses::log::UNDATED_KEY;
use crate::senses::saved_log::read_log;
use crate::senses::sqlite::OneShot;
use deep::{Deep, is_deep};
use muster_agent_core::absence::{self, Sign};
use muster_agent_core::clock::Now;
use muster_agent_core::diagnose::Recent;
use muster_agent_core::judgement::{Judgement, Unknown};
use muster_agent_core::services::Services;
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::units::human_duration;
use report::{Ran, Report, UNKEPT_CLOCK, read_in_part};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Threads for quick probes: they wait for the kernel, not for the processor.
const QUICK_THREADS: usize = 4;
/// Descriptors that `doctor` makes room for, where the host lets it: each health endpoint that is asked has two.
const DESCRIPTORS_MAX: u64 = 16_384;
/// Of them, for everything else. What there is no room for is asked by the quick threads.
const DESCRIPTORS_KEPT: u64 = 256;
/// Threads for small files: one file system that hangs takes one or two of them, and each is replaced.
const FILES_THREADS: usize = 4;
/// Threads for databases: each may read a disk at full speed.
const DATABASE_THREADS: usize = 3;
/// One database in `doctor`, whatever the config allows the daemon: nobody waits a minute for a first answer.
const DATABASE_DEADLINE: Duration = Duration::from_secs(8);
/// Without `--deep`, one database is read for so long,
const GLANCE_MAX: Duration = Duration::from_millis(100);
/// and all of them together for about so long,
const GLANCES_MAX: Duration = Duration::from_millis(500);
/// but each for so long at least.
const GLANCE_MIN: Duration = Duration::from_millis(10);
/// A kill of longer ago is history.
const NEWS: Duration = Duration::from_secs(24 * 3600);
/// Milliseconds of a tick, the unit of start times, on every architecture since Linux 2.6.
const TICK_MS: u64 = 10;
/// How often somebody who waits is told how far it is.
const TICK: Duration = Duration::from_millis(200);
/// A pid file that hangs is not waited for longer before the other probes start without its answer.
const QUICK_DEADLINE: Duration = Duration::from_secs(2);

/// Diagnoses this host by `config`. Fails where no thread can be started.
pub fn diagnose(config: &Config, host: &HostRoot, notes: Vec<String>) -> std::io::Result<Report> {
    let databases: usize = config.services.iter().map(|service| service.sqlite.len()).sum();
    let each = GLANCES_MAX.saturating_mul(u32::try_from(DATABASE_THREADS).unwrap_or(1));
    let each = each / u32::try_from(databases).unwrap_or(u32::MAX).max(1);
    diagnose_with(config, host, notes, None, OneShot::Glance(each.clamp(GLANCE_MIN, GLANCE_MAX)))
}

/// The same, and reads databases and copies to their end. Call it before there is another thread.
pub fn diagnose_deep(config: &Config, host: &HostRoot, notes: Vec<String>) -> std::io::Result<Report> {
    let deep = Deep::begin()?;
    let one_shot = deep.one_shot();
    diagnose_with(config, host, notes, Some(&deep), one_shot)
}

fn diagnose_with(
    config: &Config,
    host: &HostRoot,
    mut notes: Vec<String>,
    deep: Option<&Deep>,
    one_shot: OneShot,
) -> std::io::Result<Report> {
    let at_once = endpoints_at_once();
    let net = Net::start()?;
    let services = Arc::new(Mutex::new(Services::default()));
    let now = crate::clock::now();
    let context = Context { now, services: Arc::clone(&services), one_shot: true };
    let means = Means { host, scratch: None, net: &net.handle(), link: LinkStatus::default(), one_shot };
    let mut planned = probes(config, &means);
    let asks = |planned: &&mut Planned| planned.probe.subject().probe == ProbeKind::Health;
    planned.iter_mut().filter(asks).take(at_once).for_each(|planned| planned.probe.begin());
    let (first, second): (Vec<_>, Vec<_>) =
        planned.into_iter().partition(|planned| tells_processes(planned.probe.subject().probe));
    let (last, second): (Vec<_>, Vec<_>) =
        second.into_iter().partition(|planned| deep.is_some() && is_deep(planned.probe.subject().probe));
    // Ports and kills ask whose process they see: pid files and units go first.
    let mut ran = run_all(first, &context, None, &mut || {});
    ran.extend(run_all(second, &context, None, &mut || {}));
    if deep.is_some() {
        ran.extend(deep::run_each(last, &context, host));
    }
    notes.extend(read_in_part(&ran));
    notes.extend(unkept_clock(&ran));
    notes.extend(history(now, host, &mut ran));
    let (ran, recent) = explain(now, ran);
    let report = {
        let services = services.lock().unwrap_or_else(PoisonError::into_inner);
        Report::new(host_name(host), ran, &recent, &services)
    };
    let mut report = report.remarks(not_watched(config), notes);
    agent::add(&mut report, host, &config.socket);
    Ok(report)
}

/// How many health endpoints may be asked at once. The usual soft limit of a shell, 1024, is there for programs that know
/// no higher numbers of descriptors.
fn endpoints_at_once() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS_MAX, |maximum| maximum.min(DESCRIPTORS_MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), ..limit };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit = raised;
        }
    }
    let room = limit.current.unwrap_or(DESCRIPTORS_MAX).saturating_sub(DESCRIPTORS_KEPT) / 2;
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// Takes away what is no news and explains nothing: kills from before this container was started, and, where nothing is
/// wrong now, those of more than a day ago. The kernel's log goes back to the boot.
fn history(now: Now, host: &HostRoot, ran: &mut [Ran]) -> Option<String> {
    let since_ms = crate::senses::process::id(host, 1).map_or(0, |first| first.start_ticks.saturating_mul(TICK_MS));
    let well = ran.iter().all(|ran| ran.judgement.problems.is_empty());
    let (mut before_start, mut old) = (0, 0);
    for ran in ran.iter_mut().filter(|ran| ran.subject.probe == ProbeKind::Oom) {
        ran.judgement.occurrences.retain(|happened| {
            let Some(at_ms) = happened.observed_boottime_ms else { return true };
            let (is_before, is_old) = (at_ms < since_ms, well && now.since(at_ms) > NEWS);
            before_start += usize::from(is_before);
            old += usize::from(is_old && !is_before);
            !is_before && !is_old
        });
    }
    let counted = |count: usize, when: &str| {
        let kills = if count == 1 { "1 OOM kill".to_owned() } else { format!("{count} OOM kills") };
        (count > 0).then(|| format!("{kills} {when}"))
    };
    let parts = [counted(old, "more than a day ago"), counted(before_start, "before this container was started")];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{}: {}", parts.join(", "), report::OLD_KILLS_COMMAND))
}

/// A clock that nothing keeps right, where the config does not ask for that.
fn unkept_clock(ran: &[Ran]) -> Option<String> {
    let unkept = |ran: &Ran| {
        let clock = ran.subject.probe == ProbeKind::Clock && ran.judgement.problems.is_empty();
        clock && ran.judgement.seen.get("synchronised") == Some(&Value::Flag(false))
    };
    ran.iter().any(unkept).then(|| UNKEPT_CLOCK.to_owned())
}

/// Whether other probes ask what this one noted.
const fn tells_processes(kind: ProbeKind) -> bool {
    matches!(kind, ProbeKind::PidFile | ProbeKind::Unit)
}

/// Reads a saved kernel log instead of the host, which may be another one: for triage elsewhere.
pub fn diagnose_kmsg(path: &Path) -> std::io::Result<Report> {
    let start = Instant::now();
    let log = read_log(path)?;
    let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Oom, &path.display().to_string());
    let kills = u64::try_from(log.kills.len()).unwrap_or(u64::MAX);
    let seen = Evidence::new().count("oom_kills", kills).count("kernel_lines", log.kernel_lines);
    let unknown = if log.kernel_lines == 0 {
        let why = format!("no kernel messages are in its {} lines", log.lines);
        Some(Unknown::new(why, Some("save them with one of: dmesg > FILE, journalctl -k > FILE")))
    } else if log.cut_short {
        Some(Unknown::new("only its beginning was read, it is too large", Some("split it")))
    } else {
        None
    };
    let judgement = Judgement { occurrences: log.kills, seen, unknown, ..Judgement::default() };
    let ran = Ran { subject, judgement, took: start.elapsed() };
    let mut recent = Recent::default();
    recent.note(crate::clock::now(), &ran.subject, &ran.judgement);
    Ok(Report::new(path.display().to_string(), vec![ran], &recent, &Services::default()))
}

/// Whether a service runs whose pid file names nobody: here all is known that others saw of it.
fn look_round(ran: &mut [Ran]) {
    let sign = |ran: &Ran| {
        let (judgement, probe) = (&ran.judgement, ran.subject.probe);
        let reasons = judgement.problems.iter().map(|problem| problem.reason);
        let has_process = judgement.seen.get("comm").is_some();
        let sign = absence::sign(probe, judgement.verdict(), reasons, has_process, Some(&judgement.seen))?;
        Some((ran.subject.clone(), sign))
    };
    if !ran.iter().any(|ran| absence::matters(&ran.judgement)) {
        return;
    }
    let signs: Vec<(SubjectKey, Sign)> = ran.iter().filter_map(sign).collect();
    for one in ran.iter_mut().filter(|ran| absence::matters(&ran.judgement)) {
        let of_it = signs.iter().filter(|(subject, _)| subject.service == one.subject.service);
        absence::tell(&mut one.judgement, of_it.map(|(subject, sign)| (subject, sign.clone())));
    }
}

fn explain(now: Now, mut ran: Vec<Ran>) -> (Vec<Ran>, Recent) {
    look_round(&mut ran);
    let mut recent = Recent::default();
    for one in &ran {
        recent.note(now, &one.subject, &one.judgement);
    }
    for one in &mut ran {
        recent.explain(now, &one.subject, &mut one.judgement);
        // The kernel's log reaches back to the boot: a kill of last month is told as such.
        for happened in &mut one.judgement.occurrences {
            let Some(at_ms) = happened.observed_boottime_ms else { continue };
            let (age, at) = (now.since(at_ms), now.wall - now.since(at_ms));
            let (minute, age) = (at.to_utc_minute(), human_duration(age));
            let when = match happened.evidence.get(UNDATED_KEY) {
                Some(Value::Flag(true)) => {
                    format!("at or before {minute}: the line does not tell its time, or not its zone")
                }
                _ => format!("at {minute}, {age} ago"),
            };
            happened.summary = format!("{}; {when}", happened.summary);
            happened.evidence.insert("observed_at", Value::Time(at));
        }
    }
    (ran, recent)
}

fn host_name(host: &HostRoot) -> String {
    let name = std::fs::read_to_string(host.path("/proc/sys/kernel/hostname")).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "this host".to_owned() } else { name.to_owned() }
}

/// Runs each probe once and waits for every one at most for its deadline, or for `bound`.
fn run_all(planned: Vec<Planned>, context: &Context, bound: Option<Duration>, tick: &mut dyn FnMut()) -> Vec<Ran> {
    let mut pool = Pool::new(planned, bound);
    let mut ran = Vec::new();
    loop {
        pool.start(context);
        let Some(deadline) = pool.next_deadline() else { break };
        let wait = deadline.saturating_duration_since(Instant::now());
        match pool.results.recv_timeout(wait.min(TICK)) {
            Ok(done) => ran.extend(pool.finish(done)),
            Err(_) => ran.extend(pool.give_up(Instant::now())),
        }
        tick();
    }
    ran.extend(pool.rest());
    ran
}

struct Pool {
    waiting: VecDeque<Planned>,
    lanes: Vec<Lane>,
    /// By lane: what runs there, and until when it may.
    running: Vec<Option<(SubjectKey, Instant, Duration)>>,
    results: std::sync::mpsc::Receiver<Done>,
    /// Instead of each probe's own deadline.
    bound: Option<Duration>,
}

impl Pool {
    fn new(planned: Vec<Planned>, bound: Option<Duration>) -> Self {
        let (sender, results) = channel();
        let count = |kind| planned.iter().filter(|planned| planned.probe.lane() == kind).count();
        let quick = count(Kind::Quick).min(QUICK_THREADS);
        let database = count(Kind::Database).min(DATABASE_THREADS);
        let files = count(Kind::Files).min(FILES_THREADS);
        let kinds = [(Kind::Quick, quick), (Kind::Files, files), (Kind::Database, database)];
        let kinds = kinds.into_iter().flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
        let lanes: Vec<Lane> =
            kinds.enumerate().map(|(index, kind)| Lane::new(index, kind, Delivery::new(sender.clone()))).collect();
        let running = lanes.iter().map(|_| None).collect();
        Self { waiting: planned.into(), lanes, running, results, bound }
    }

    fn start(&mut self, context: &Context) {
        for (lane, running) in self.lanes.iter_mut().zip(&mut self.running).filter(|(lane, _)| lane.is_free()) {
            let fits = self.waiting.iter().position(|planned| planned.probe.lane() == lane.kind());
            let Some(Planned { probe, plan }) = fits.and_then(|index| self.waiting.remove(index)) else { continue };
            let bound = self.bound.unwrap_or_else(|| match lane.kind() {
                Kind::Quick | Kind::Files => plan.deadline.min(QUICK_DEADLINE),
                Kind::Database => plan.deadline.min(DATABASE_DEADLINE),
            });
            let subject = probe.subject().clone();
            let context = Context { now: crate::clock::now(), ..context.clone() };
            match lane.start(Job { probe, context }) {
                Ok(()) => *running = Some((subject, Instant::now() + bound, bound)),
                Err(job) => self.waiting.push_front(Planned { probe: job.probe, plan }),
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.running.iter().flatten().map(|(_, until, _)| *until).min()
    }

    fn finish(&mut self, done: Done) -> Option<Ran> {
        if let Some(lane) = self.lanes.get_mut(done.lane) {
            lane.finished(&done);
        }
        let subject = done.subject();
        let running = self.running.get_mut(done.lane)?;
        // One that was given up and comes back late has been told as unknown already.
        running.take_if(|(running, _, _)| *running == subject)?;
        Some(Ran { subject, judgement: done.judgement, took: done.took })
    }

    fn give_up(&mut self, now: Instant) -> Vec<Ran> {
        let mut ran = Vec::new();
        for (lane, running) in self.lanes.iter_mut().zip(&mut self.running) {
            let Some((subject, _, bound)) = running.take_if(|(_, until, _)| *until <= now) else { continue };
            lane.replace();
            let way_out = "see whether the host is overloaded (uptime; cat /proc/pressure/*), or a file system or device \
                           hangs: ps -eo pid,stat,wchan:32,comm | grep ' D'";
            let why = format!("no answer within {}", human_duration(bound));
            ran.push(Ran { subject, judgement: Judgement::unknown(why, Some(way_out)), took: bound });
        }
        ran
    }

    /// What never ran because all threads hang.
    fn rest(self) -> Vec<Ran> {
        let unknown = |planned: Planned| Ran {
            subject: planned.probe.subject().clone(),
            judgement: Judgement::unknown("not asked: other probes hang", None),
            took: Duration::ZERO,
        };
        self.waiting.into_iter().map(unknown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Probe;
    use crate::run::lanes::tests::fake;
    use muster_agent_core::judgement::Verdict;
    use muster_agent_core::schedule::Plan;

    fn planned(probe: Box<dyn Probe>, deadline_ms: u64) -> Planned {
        let plan = Plan {
            lane: 0,
            interval: Duration::from_secs(5),
            deadline: Duration::from_millis(deadline_ms),
            place: None,
        };
        Planned { probe, plan }
    }

    #[test]
    fn old_kills_are_history_where_nothing_is_wrong() {
        use muster_agent_core::judgement::Problem;
        use muster_common::reason::Reason;
        let day_ms = 24 * 3_600_000;
        let now = Now { boottime_ms: 3 * day_ms, wall: crate::clock::now().wall };
        let kill = |at_ms| {
            let mut kill = Problem::new(Reason::OomKill, "killed");
            kill.observed_boottime_ms = Some(at_ms);
            kill
        };
        let ran = |probe, judgement| {
            let subject = SubjectKey::new(ServiceName::host(), probe, "x");
            Ran { subject, judgement, took: Duration::ZERO }
        };
        let kills = |ran: &Ran| ran.judgement.occurrences.iter().filter_map(|kill| kill.observed_boottime_ms).collect();
        let occurrences = vec![kill(day_ms), kill(3 * day_ms - 1)];
        let oom = ran(ProbeKind::Oom, Judgement { occurrences, ..Judgement::default() });
        let nowhere = HostRoot("/nonexistent".into());
        let mut well = vec![oom.clone()];
        assert!(history(now, &nowhere, &mut well).unwrap().starts_with("1 OOM kill more than a day ago:"));
        let left: Vec<u64> = kills(&well[0]);
        assert_eq!(left, [3 * day_ms - 1]);
        let down = ran(ProbeKind::Port, Judgement::problem(Problem::new(Reason::PortClosed, "x")));
        let mut ill = vec![oom, down];
        assert_eq!(history(now, &nowhere, &mut ill), None);
        let left: Vec<u64> = kills(&ill[0]);
        assert_eq!(left.len(), 2);
    }

    /// What is in a log for minutes did not happen at the moment of the look.
    #[test]
    fn a_line_without_a_time_is_as_old_as_its_file_at_least() {
        use crate::senses::log::{LogProbe, Rules};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spl.log");
        let now = crate::clock::now();
        let written = now.wall - Duration::from_secs(20);
        let dated = now.wall - Duration::from_secs(40);
        std::fs::write(&path, format!("database is locked\n{dated} connection refused\n")).unwrap();
        let file = std::fs::File::options().append(true).open(&path).unwrap();
        let since_1970 = Duration::from_millis(u64::try_from(written.unix_ms()).unwrap());
        file.set_modified(std::time::UNIX_EPOCH + since_1970).unwrap();
        let rules = crate::config::log::standard_rules().into_iter().filter(|rule| rule.killer.is_none());
        let rules = Arc::new(Rules::new(rules.collect()));
        let service = ServiceName::new("spl").unwrap();
        let mut probe = LogProbe::of_file(service, &path, false, rules, &HostRoot::default());
        let context = Context { now, services: Arc::default(), one_shot: true };
        let judgement = probe.run(&context);
        let ran = Ran { subject: probe.subject().clone(), judgement, took: Duration::ZERO };
        let (ran, _) = explain(now, vec![ran]);
        let told: Vec<&str> = ran[0].judgement.occurrences.iter().map(|told| told.summary.as_str()).collect();
        let [busy, refused] = told[..] else { panic!("{told:?}") };
        let expected =
            format!("; at or before {}: the line does not tell its time, or not its zone", written.to_utc_minute());
        assert!(busy.ends_with(&expected), "{busy}");
        assert!(refused.ends_with(&format!("; at {}, 40 s ago", dated.to_utc_minute())), "{refused}");
    }

    #[test]
    fn a_clock_that_nothing_keeps_right_is_remarked() {
        let clock = |kept| {
            let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Clock, "clock");
            vec![Ran {
                subject,
                judgement: Judgement::ok(Evidence::new().flag("synchronised", kept)),
                took: Duration::ZERO,
            }]
        };
        assert!(unkept_clock(&clock(false)).unwrap().contains("timedatectl"));
        assert_eq!(unkept_clock(&clock(true)), None);
    }

    #[test]
    fn hung_probes_are_unknown_and_the_others_answer() {
        let services = Arc::new(Mutex::new(Services::default()));
        let context = Context { now: crate::clock::now(), services, one_shot: true };
        let (keep, hang) = channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let mut all = Vec::new();
        for index in 0..8 {
            let hang = Arc::clone(&hang);
            let probe = fake(&format!("hung {index}"), move || {
                let _gone = hang.lock().is_ok_and(|hang| hang.recv().is_err());
                Judgement::default()
            });
            all.push(planned(probe, 50));
        }
        for index in 0..8 {
            all.push(planned(fake(&format!("well {index}"), Judgement::default), 60_000));
        }
        let ran = run_all(all, &context, None, &mut || {});
        drop(keep);
        assert_eq!(ran.len(), 16);
        for one in ran {
            let expected = if one.subject.subject.starts_with("hung") { Verdict::Unknown } else { Verdict::Ok };
            assert_eq!(one.judgement.verdict(), expected, "{}", one.subject);
        }
    }
}
