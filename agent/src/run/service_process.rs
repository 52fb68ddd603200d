//! From config to the probes of main processes and of memory pressure.

use super::plan::{Means, Planned, planned};
use super::service_units;
use crate::config::{Config, Service};
use crate::senses::executable::ExecutableProbe;
use crate::senses::pressure::{HostPressure, ServicePressure};
use crate::senses::process_watch::ProcessWatch;
use crate::senses::singleton::SingletonProbe;
use crate::senses::unit::Units;
use muster_agent_core::pressure::psi::StallRules;
use muster_agent_core::pressure::service::PressureRules;
use muster_agent_core::process::growth::GrowthRules;
use muster_agent_core::process::watch::ProcessRules;
use std::time::Duration;

/// A new process wakes the look at its program; what comes between is a program that could not be read.
const PROGRAM_INTERVAL: Duration = Duration::from_secs(60);
/// A second one is told after it has lasted for a minute: two looks.
const SINGLETON_INTERVAL: Duration = Duration::from_secs(30);

/// For each service whose main process somebody notes: its pid file, or its unit.
pub(super) fn of_services(config: &Config, means: &Means<'_>, units: Option<&Units>) -> Vec<Planned> {
    let one = |service: &Service| {
        let unit = service_units::asked(service, means, units);
        if unit.is_none() && service.pid_file.is_none() {
            return Vec::new();
        }
        let (name, host) = (service.name.clone(), means.host.clone());
        let process = ProcessWatch::new(name.clone(), host.clone(), process_rules(config, service), unit);
        let program = ExecutableProbe::new(name.clone(), host.clone());
        let pressure = ServicePressure::new(name, host, pressure_rules(config));
        let singleton = service.singleton.then(|| SingletonProbe::new(service.name.clone(), means.host.clone()));
        let mut probes = vec![
            planned(config, process, config.probes.process),
            planned(config, program, PROGRAM_INTERVAL),
            planned(config, pressure, config.probes.pressure),
        ];
        probes.extend(singleton.map(|singleton| planned(config, singleton, SINGLETON_INTERVAL)));
        probes
    };
    config.services.iter().flat_map(one).collect()
}

/// The host's own.
pub(super) fn of_host(config: &Config, means: &Means<'_>) -> Planned {
    let probe = HostPressure::new(means.host.clone(), pressure_rules(config).stalls);
    planned(config, probe, config.probes.pressure)
}

fn process_rules(config: &Config, service: &Service) -> ProcessRules {
    let process = config.process;
    ProcessRules {
        open_files_percent: process.open_files_percent,
        memory_growth: GrowthRules {
            window: process.memory_growth_window,
            by_at_least: process.memory_growth_min_bytes,
            by_percent: process.memory_growth_percent,
        },
        zombie_children: process.zombie_children,
        // One cause, one finding: with a pid file it is the pid file's probe that tells the end.
        tells_end: service.pid_file.is_none(),
    }
}

fn pressure_rules(config: &Config) -> PressureRules {
    let pressure = config.pressure;
    let stalls = StallRules { some_percent: pressure.some_percent, full_percent: pressure.full_percent };
    PressureRules { stalls, limit_percent: pressure.limit_percent }
}
