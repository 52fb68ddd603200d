//! Which file systems are watched for room, and which files for who may write to them: those that the config names
//! anyway. And what of the host is declared.

use super::plan::{Means, Planned, planned};
use crate::config::baseline::Baseline;
use crate::config::log::LogSource;
use crate::config::{Config, Service};
use crate::probe::Lane;
use crate::senses::baseline::{BaselineProbe, UnitSource};
use crate::senses::disk::{DiskProbe, Kept, MountTable};
use crate::senses::permission::PermissionProbe;
use crate::senses::unit::{Units, is_systemd};
use crate::senses::watched_files::WatchedFiles;
use muster_agent_core::disk::Use;
use muster_agent_core::permission::Role;
use muster_common::ids::ServiceName;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An edit is told with the time of the edit: how often is a matter of freshness alone.
const WATCHED_FILES_INTERVAL: Duration = Duration::from_secs(60);
/// What the agent's own files are called in the evidence.
const OWN_NAME: &str = "muster-agent";

/// A probe for each file system that something named in the config is on.
pub(super) fn disks(config: &Config, table: &Arc<MountTable>) -> Vec<Planned> {
    let mut kept: Vec<Kept> = config.services.iter().flat_map(of_service).collect();
    let own = Use { service: OWN_NAME.to_owned(), what: "spool" };
    kept.push(Kept { path: config.state_dir.clone(), by: own });
    let places = table.places(&kept, crate::clock::now().boottime_ms);
    let one = |place: crate::senses::disk::Place| {
        let thresholds = config.disk.of(&place.mount_point);
        planned(config, DiskProbe::new(place, thresholds, Arc::clone(table)), config.probes.disk)
    };
    places.into_iter().map(one).collect()
}

fn of_service(service: &Service) -> Vec<Kept> {
    let kept = |(role, path): (Role, PathBuf)| {
        let what = match role {
            Role::PidFile => "pid file",
            Role::Database => "database",
            Role::Backups => "backups",
            Role::Log => "logs",
            Role::Key => "key",
        };
        Kept { path, by: Use { service: service.name.to_string(), what } }
    };
    files(service).into_iter().map(kept).collect()
}

/// Notes which probes hang together if the server of their file system is gone.
pub(super) fn note_places(planned: &mut [Planned], table: &MountTable) {
    let now = crate::clock::now();
    for one in planned.iter_mut().filter(|one| one.probe.lane() != Lane::Quick) {
        // The subject of a probe of files begins with the path.
        let subject = Path::new(&one.probe.subject().subject);
        if subject.is_absolute() {
            one.plan.place = table.hanging_place(subject, now.boottime_ms);
        }
    }
}

/// Tells whether a look at a path waits for nobody else.
pub(super) fn near(table: &MountTable) -> impl Fn(&Path) -> bool {
    let now = crate::clock::now();
    move |path| table.hanging_place(path, now.boottime_ms).is_none()
}

/// A probe for each file that a service trusts, and for the agent's own key.
pub(super) fn permissions(config: &Config, means: &Means<'_>, near: &impl Fn(&Path) -> bool) -> Vec<Planned> {
    let one = |service: &ServiceName, role, path: &Path| {
        let probe = PermissionProbe::new(service.clone(), role, path, means.host.clone());
        planned(config, probe, config.probes.permission)
    };
    let mut all: Vec<Planned> = Vec::new();
    for service in &config.services {
        // Whose server is gone takes a thread per look, and a mode there is the server's to keep.
        let near = |file: &(Role, PathBuf)| near(&file.1);
        all.extend(files(service).into_iter().filter(near).map(|(role, path)| one(&service.name, role, &path)));
    }
    // Without a coordinator there need not be a key.
    if !config.endpoints.is_empty() {
        all.push(one(&ServiceName::host(), Role::Key, &config.tls.key));
    }
    all
}

/// A probe for each baseline in which something is declared.
pub(super) fn baselines(config: &Config, means: &Means<'_>, units: Option<&Units>) -> Vec<Planned> {
    let host = std::iter::once((ServiceName::host(), &config.baseline, None));
    let services = config.services.iter().map(|service| {
        let unit = service.unit.as_ref().map(|unit| {
            let units = units.filter(|_| is_systemd(means.host));
            let way = units.and_then(|units| UnitSource::new(&unit.name, units.clone(), means.net.clone()).ok());
            (unit.name.clone(), way)
        });
        (service.name.clone(), &service.baseline, unit)
    });
    let declared = host.chain(services).filter(|(_, baseline, _)| !baseline.is_empty());
    let one = |(name, baseline, unit): (ServiceName, &Baseline, Option<(String, Option<UnitSource>)>)| {
        planned(config, BaselineProbe::new(name, baseline.clone(), unit, means.host.clone()), config.probes.baseline)
    };
    declared.map(one).collect()
}

/// A probe for the configuration of each service that has one, and one for the agent's own and the host's.
pub(super) fn watched_files(
    config: &Config,
    means: &Means<'_>,
    units: Option<&Units>,
    near: &impl Fn(&Path) -> bool,
) -> Vec<Planned> {
    // Whose server is gone takes a thread per look.
    let declared = |baseline: &Baseline| -> Vec<PathBuf> {
        baseline.files.iter().map(|file| file.path.clone()).filter(|path| near(path)).collect()
    };
    let own = declared(&config.baseline).into_iter().chain(config.source.clone()).collect();
    let host = WatchedFiles::new(ServiceName::host(), "this host", own, None, means.host.clone());
    let mut all = vec![planned(config, host, WATCHED_FILES_INTERVAL)];
    for service in &config.services {
        let unit = service.unit.as_ref().zip(units).filter(|_| is_systemd(means.host));
        let unit = unit.map(|(unit, units)| (unit.name.clone(), units.clone()));
        let files = declared(&service.baseline);
        if unit.is_some() || !files.is_empty() {
            let (name, about) = (service.name.clone(), service.name.as_str());
            let probe = WatchedFiles::new(name, about, files, unit, means.host.clone());
            all.push(planned(config, probe, WATCHED_FILES_INTERVAL));
        }
    }
    all
}

/// The files of a service, each once; of backups the folder.
fn files(service: &Service) -> Vec<(Role, PathBuf)> {
    let mut files: Vec<(Role, PathBuf)> = Vec::new();
    files.extend(service.pid_file.iter().map(|watch| (Role::PidFile, watch.what.clone())));
    files.extend(service.sqlite.iter().map(|sqlite| (Role::Database, sqlite.path.clone())));
    files.extend(service.backups.iter().map(|backup| (Role::Backups, PathBuf::from(backup.path.folder()))));
    for log in &service.logs {
        if let LogSource::File(path) = &log.source {
            files.push((Role::Log, path.clone()));
        }
    }
    files.extend(service.keys.iter().map(|key| (Role::Key, key.clone())));
    let mut unique: Vec<(Role, PathBuf)> = Vec::new();
    for (role, path) in files {
        if !unique.iter().any(|(_, known)| *known == path) {
            unique.push((role, path));
        }
    }
    unique
}
