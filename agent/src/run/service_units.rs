//! From config to the probes of systemd units and of restarts.

use super::plan::{Means, Planned, planned};
use crate::config::{Config, Service};
use crate::senses::restarts::RestartProbe;
use crate::senses::unit::{SystemdProbe, UnitProbe, Units, is_systemd};
use std::collections::BTreeSet;
use std::time::Duration;

/// Signals tell of every change. A question to make sure that none was missed wakes the agent, the bus and systemd, and
/// is not asked more often than this.
const CHECK_MIN: Duration = Duration::from_secs(60);

/// The configured units on the system bus, for every probe that asks systemd. No conversation is begun where there is no
/// systemd or no unit.
pub(super) fn units(config: &Config, means: &Means<'_>) -> Option<Units> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    if is_systemd(means.host) {
        names.extend(config.services.iter().filter_map(|service| Some(service.unit.as_ref()?.name.clone())));
    }
    let units = Units::follow(means.net, names, config.probes.unit.max(CHECK_MIN));
    units.inspect_err(|error| tracing::error!("units cannot be watched: {error}")).ok()
}

/// One probe per unit; where nothing can be asked, the host's own probe says so.
pub(super) fn of_units(config: &Config, means: &Means<'_>, units: Option<&Units>) -> Vec<Planned> {
    let Some(units) = units else { return Vec::new() };
    let patience = patience(config);
    let one = |service: &Service| {
        let unit = service.unit.as_ref()?;
        // With a pid file it is the pid file's probe that tells of restarts.
        let options = unit.options(service.pid_file.is_none());
        let name = service.name.clone();
        let probe = UnitProbe::new(name, &unit.name, units, means.host.clone(), options, patience)?;
        Some(planned(config, probe, unit.interval.unwrap_or(config.probes.unit)))
    };
    config.services.iter().filter_map(one).collect()
}

/// What is said once for the host.
pub(super) fn of_host(config: &Config, means: &Means<'_>, units: Option<&Units>) -> Option<Planned> {
    let units = units.filter(|_| config.services.iter().any(|service| service.unit.is_some()))?;
    let probe = SystemdProbe::new(units.clone(), means.host.clone(), patience(config));
    Some(planned(config, probe, config.probes.unit))
}

/// The service's unit, for probes that ask systemd besides.
pub(super) fn asked(service: &Service, means: &Means<'_>, units: Option<&Units>) -> Option<(String, Units)> {
    let unit = service.unit.as_ref().zip(units).filter(|_| is_systemd(means.host));
    unit.map(|(unit, units)| (unit.name.clone(), units.clone()))
}

/// One probe per service whose main process is known.
pub(super) fn restarts(config: &Config, means: &Means<'_>, units: Option<&Units>) -> Vec<Planned> {
    let one = |service: &Service| {
        let unit = asked(service, means, units);
        if unit.is_none() && service.pid_file.is_none() {
            return None;
        }
        let probe = RestartProbe::new(service.name.clone(), unit, means.host.clone());
        Some(planned(config, probe, config.probes.process))
    };
    config.services.iter().filter_map(one).collect()
}

/// How long `doctor` waits for systemd: the probe's own word is better than the deadline's.
fn patience(config: &Config) -> Duration {
    config.probes.deadline.min(Duration::from_secs(2)) * 3 / 4
}
