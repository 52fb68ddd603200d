//! From config to probes: which there are, on which lane, how often. The daemon and `doctor` ask the same ones.

use super::service_process;
use super::service_units;
use super::{host_files, logs};
use crate::config::backup::Backup;
use crate::config::health::Health;
use crate::config::sqlite::Sqlite;
use crate::config::{Config, Service, Watch};
use crate::doctor::report::NotWatched;
use crate::local::LinkStatus;
use crate::net::NetHandle;
use crate::probe::{Lane, Probe};
use crate::senses::HostRoot;
use crate::senses::backup::{BackupOptions, BackupProbe};
use crate::senses::disk::MountTable;
use crate::senses::health::HealthProbe;
use crate::senses::host_clock::HostClockProbe;
use crate::senses::locks::{LockProbe, LockTable, MAX_WAIT_DEFAULT};
use crate::senses::memory::MemoryProbe;
use crate::senses::oom::OomProbe;
use crate::senses::pid_file::PidFileProbe;
use crate::senses::port::PortProbe;
use crate::senses::sockets::SocketTable;
use crate::senses::sqlite::{OneShot, QueryOptions, QueryProbe, SqliteOptions, SqliteProbe};
use crate::senses::unit::Units;
use muster_agent_core::host_clock::Limits;
use muster_agent_core::locks::contention::Limits as LockLimits;
use muster_agent_core::memory::Bands;
use muster_agent_core::port::Target;
use muster_agent_core::schedule::Plan;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A probe and when it runs.
pub struct Planned {
    /// The probe.
    pub probe: Box<dyn Probe>,
    /// When.
    pub plan: Plan,
}

/// The lane of a kind of probes, as the schedule numbers it.
pub const fn lane_index(kind: Lane) -> usize {
    match kind {
        Lane::Quick => 0,
        Lane::Files => 1,
        Lane::Database => 2,
    }
}

/// What probes work with.
#[derive(Debug, Clone)]
pub struct Means<'a> {
    /// The host.
    pub host: &'a HostRoot,
    /// The daemon's folder for copies of databases; `doctor` has none, and must not sweep the daemon's.
    pub scratch: Option<&'a Path>,
    /// Where tasks run that wait for other programs.
    pub net: &'a NetHandle,
    /// What the link to the coordinator knows; empty without one.
    pub link: LinkStatus,
    /// How much of databases and copies `doctor` reads.
    pub one_shot: OneShot,
}

/// All probes of a config, on this host. Pid files first: the others ask them whose process they see.
pub fn probes(config: &Config, means: &Means<'_>) -> Vec<Planned> {
    probes_by(config, means, &MountTable::new(means.host.clone()))
}

/// As [`probes`], by this mount table: it tells when it is time to plan anew.
pub fn probes_by(config: &Config, means: &Means<'_>, mounts: &Arc<MountTable>) -> Vec<Planned> {
    mounts.start_plan();
    let mut planned = Vec::new();
    let sockets = SocketTable::new(means.host.clone());
    let lock_table = LockTable::new(means.host.clone());
    let near = host_files::near(mounts);
    let units = service_units::units(config, means);
    for service in &config.services {
        planned.extend(pid_file(config, service, means, units.as_ref()));
    }
    planned.extend(service_units::of_units(config, means, units.as_ref()));
    planned.extend(service_units::of_host(config, means, units.as_ref()));
    for service in &config.services {
        planned.extend(ports(config, service, &sockets));
        planned.extend(databases(config, service, means));
        planned.extend(locks(config, service, &near, &lock_table));
        planned.extend(backups(config, service, means));
        planned.extend(health(config, service, means));
    }
    planned.extend(service_units::restarts(config, means, units.as_ref()));
    planned.extend(service_process::of_services(config, means, units.as_ref()));
    planned.extend(host_probes(config, means));
    planned.push(service_process::of_host(config, means));
    planned.extend(logs::logs(config, means));
    planned.extend(logs::killers(config, means));
    planned.extend(host_files::disks(config, mounts));
    planned.extend(host_files::permissions(config, means, &near));
    planned.extend(host_files::baselines(config, means, units.as_ref()));
    planned.extend(host_files::watched_files(config, means, units.as_ref(), &near));
    planned.push(host_clock(config, means));
    host_files::note_places(&mut planned, mounts);
    super::veil::over(planned, means)
}

pub(super) fn planned(config: &Config, probe: impl Probe + 'static, interval: Duration) -> Planned {
    let lane = probe.lane();
    let deadline = match lane {
        Lane::Quick | Lane::Files => config.probes.deadline,
        Lane::Database => config.probes.sqlite_deadline,
    };
    Planned { probe: Box::new(probe), plan: Plan { lane: lane_index(lane), interval, deadline, place: None } }
}

fn pid_file(config: &Config, service: &Service, means: &Means<'_>, units: Option<&Units>) -> Option<Planned> {
    let pid_file = service.pid_file.as_ref()?;
    let path = pid_file.what.to_string_lossy();
    let unit = service_units::asked(service, means, units);
    let probe = PidFileProbe::new(service.name.clone(), &path, means.host.clone(), unit);
    Some(planned(config, probe, pid_file.interval.unwrap_or(config.probes.pid_file)))
}

fn ports(config: &Config, service: &Service, sockets: &Arc<SocketTable>) -> Vec<Planned> {
    let one = |port: &Watch<Target>| {
        let probe = PortProbe::new(service.name.clone(), port.what.clone(), Arc::clone(sockets));
        planned(config, probe, port.interval.unwrap_or(config.probes.port))
    };
    service.ports.iter().map(one).collect()
}

fn databases(config: &Config, service: &Service, means: &Means<'_>) -> Vec<Planned> {
    service.sqlite.iter().flat_map(|sqlite| database(config, service, sqlite, means)).collect()
}

fn database(config: &Config, service: &Service, sqlite: &Sqlite, means: &Means<'_>) -> Vec<Planned> {
    let scratch_dir = means.scratch.map(Path::to_owned);
    let path = means.host.path(&sqlite.path);
    let options = SqliteOptions {
        quick_interval: sqlite.quick_interval.unwrap_or(config.probes.sqlite_quick),
        deep_interval: sqlite.deep_interval.unwrap_or(config.probes.sqlite_deep),
        scratch_dir: scratch_dir.clone(),
        wal_max_bytes: sqlite.wal_max_bytes,
        rows: sqlite.rows.clone(),
        foreign_keys: sqlite.foreign_keys || matches!(means.one_shot, OneShot::Deep(..)),
        one_shot: means.one_shot.clone(),
        ..SqliteOptions::default()
    };
    let probe = SqliteProbe::new(service.name.clone(), path.clone(), options);
    let mut probes = vec![planned(config, probe, sqlite.interval.unwrap_or(config.probes.sqlite))];
    for query in &sqlite.queries {
        let options = QueryOptions {
            name: query.name.clone(),
            sql: query.sql.clone(),
            bounds: query.bounds,
            timeout: query.timeout,
            severity: query.severity,
            summary: query.summary.clone(),
            scratch_dir: scratch_dir.clone(),
        };
        let probe = QueryProbe::new(service.name.clone(), path.clone(), options);
        probes.push(planned(config, probe, query.interval.unwrap_or(config.probes.query)));
    }
    probes
}

fn health(config: &Config, service: &Service, means: &Means<'_>) -> Vec<Planned> {
    let one = |health: &Health| {
        let interval = health.interval.unwrap_or(config.probes.health);
        let probe = HealthProbe::new(service.name.clone(), health, interval, means.net.clone());
        planned(config, probe, interval)
    };
    service.health.iter().map(one).collect()
}

fn backups(config: &Config, service: &Service, means: &Means<'_>) -> Vec<Planned> {
    let one = |backup: &Backup| {
        let deep = matches!(means.one_shot, OneShot::Deep(..));
        let options = BackupOptions { deep, ..BackupOptions::from(backup) };
        let probe = BackupProbe::new(service.name.clone(), options, means.host.clone());
        planned(config, probe, backup.interval.unwrap_or(config.probes.backup))
    };
    service.backups.iter().map(one).collect()
}

/// One probe per lock file, and one for every other file that the processes of a service lock.
fn locks(config: &Config, service: &Service, near: &impl Fn(&Path) -> bool, table: &Arc<LockTable>) -> Vec<Planned> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut probes = Vec::new();
    for lock in &service.locks {
        let limits = LockLimits { max_wait: lock.max_wait.unwrap_or(MAX_WAIT_DEFAULT), max_hold: lock.max_hold };
        let probe = LockProbe::of_file(service.name.clone(), &text(&lock.path), limits, Arc::clone(table));
        probes.push(planned(config, probe, lock.interval.unwrap_or(config.probes.lock)));
    }
    // Whose processes are not known has no files of interest.
    if service.pid_file.is_some() || service.unit.is_some() {
        let own = service.locks.iter().map(|lock| text(&lock.path)).collect();
        // One that may hang would take the service's other files with it.
        let files = service.pid_file.iter().filter(|pid_file| near(&pid_file.what));
        let files = files.map(|pid_file| text(&pid_file.what)).collect();
        let probe = LockProbe::of_service(service.name.clone(), files, own, Arc::clone(table));
        probes.push(planned(config, probe, config.probes.lock));
    }
    probes
}

fn host_probes(config: &Config, means: &Means<'_>) -> Vec<Planned> {
    let host = means.host;
    vec![
        planned(config, MemoryProbe::new(host.clone(), bands(config)), config.probes.memory),
        planned(config, OomProbe::new(host.clone()), config.probes.oom),
    ]
}

fn host_clock(config: &Config, means: &Means<'_>) -> Planned {
    let limits = Limits { max_skew: config.clock.max_skew, synchronised: config.clock.synchronised };
    planned(config, HostClockProbe::new(limits, means.link.clone(), means.host.clone()), config.probes.clock)
}

/// What is configured and cannot be answered by any probe of this version: never passed over in silence.
pub fn not_watched(config: &Config) -> Vec<NotWatched> {
    config.services.iter().flat_map(of_service).collect()
}

fn of_service(service: &Service) -> Vec<NotWatched> {
    let not_watched =
        |key, subject: &str| NotWatched { service: service.name.to_string(), key, subject: subject.to_owned() };
    // Whose main process nobody notes cannot be counted.
    let blind = service.singleton && service.unit.is_none() && service.pid_file.is_none();
    let singleton = blind.then(|| not_watched("singleton", ""));
    singleton.into_iter().collect()
}

/// What the config sets; one threshold alone sets the other at twice or half of it. `None`: the defaults.
pub(crate) fn bands(config: &Config) -> Option<Bands> {
    let memory = config.memory;
    let approaching_bytes = memory.approaching_bytes.or(memory.critical_bytes.map(|low| low.saturating_mul(2)))?;
    let critical_bytes = memory.critical_bytes.unwrap_or(approaching_bytes / 2);
    Some(Bands { approaching_bytes, critical_bytes })
}
