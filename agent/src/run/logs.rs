//! Which logs are followed, by which rules, and whether the host's user-space OOM killers have a journal to be read.

use super::plan::{Means, Planned, planned};
use crate::config::Config;
use crate::config::log::{LogFormat, LogSource, STANDARD, standard_rules};
use crate::senses::log::{LogProbe, Rules};
use muster_agent_core::log::Rule;
use muster_common::ids::ServiceName;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Where a journal is, if there is one.
const JOURNAL_FOLDERS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];
/// Where their lines are on hosts without one.
const SYSLOG_FILES: [&str; 2] = ["/var/log/syslog", "/var/log/messages"];

/// A probe for each log of each service. Logs with the same rules share them.
pub(super) fn logs(config: &Config, means: &Means<'_>) -> Vec<Planned> {
    if config.services.iter().all(|service| service.logs.is_empty()) {
        return Vec::new();
    }
    let standard = standard_rules();
    let mut shared: BTreeMap<Vec<String>, Arc<Rules>> = BTreeMap::new();
    let mut probes = Vec::new();
    for service in &config.services {
        for log in &service.logs {
            let own = config.log_rules.iter().map(|rule| (rule, false));
            let all = own.chain(standard.iter().map(|rule| (rule, true)));
            let asked = |(rule, is_standard): &(&Rule, bool)| {
                let named = |name: &String| *name == rule.name || (*is_standard && name == STANDARD);
                // Killers have a watch of their own: told twice, one kill would be two.
                let by_default = rule.killer.is_none() || !is_standard;
                let named = log.rules.as_ref().map_or(by_default, |names| names.iter().any(named) && by_default);
                named && rule.is_about(service.name.as_str())
            };
            let rules: Vec<Rule> = all.filter(asked).map(|(rule, _)| rule.clone()).collect();
            let names = rules.iter().map(|rule| rule.name.clone()).collect();
            let rules = shared.entry(names).or_insert_with(|| Arc::new(Rules::new(rules)));
            let (rules, name) = (Arc::clone(rules), service.name.clone());
            let as_text = log.format == LogFormat::Text;
            let probe = match &log.source {
                LogSource::File(path) => LogProbe::of_file(name, path, as_text, rules, means.host),
                LogSource::Journal(unit) => LogProbe::of_unit(name, unit, as_text, rules, means.host),
            };
            probes.push(planned(config, probe, log.interval.unwrap_or(config.probes.log)));
        }
    }
    probes
}

/// The watch over user-space OOM killers, where there is a journal or a syslog that they write to.
pub(super) fn killers(config: &Config, means: &Means<'_>) -> Option<Planned> {
    let exists = |path: &str| means.host.path(path).exists();
    let rules = || {
        let own = config.log_rules.iter().cloned();
        let rules = own.chain(standard_rules()).filter(|rule| rule.killer.is_some() && !rule.from.is_empty());
        Arc::new(Rules::new(rules.collect()))
    };
    // An empty folder is left where journald does not run.
    let holds = |folder| std::fs::read_dir(means.host.path(folder)).is_ok_and(|mut entries| entries.next().is_some());
    let probe = if JOURNAL_FOLDERS.into_iter().any(holds) {
        LogProbe::of_killers(rules(), means.host)
    } else {
        let syslog = SYSLOG_FILES.into_iter().find(|file| exists(file))?;
        LogProbe::of_file(ServiceName::host(), Path::new(syslog), true, rules(), means.host)
    };
    Some(planned(config, probe, config.probes.log))
}
