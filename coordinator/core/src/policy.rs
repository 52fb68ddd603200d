//! Thresholds, severity matrix, holds: everything that a person may tune, without secrets. It lives in State and
//! changes by a `PolicyLoaded` fact, so that a replay knows which policy was in force when.

use crate::detect::policy::DetectPolicy;
use crate::signals::SignalPolicy;
use crate::working_days::{self, Weekday};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Changes whenever a rule's meaning changes. Replay reproduces conclusions byte for byte only under equal versions.
pub const RULES_VERSION: u32 = 6;

/// One value per severity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerSeverity<T> {
    /// Complete outage.
    pub sev0: T,
    /// Data at risk.
    pub sev1: T,
    /// A service is down.
    pub sev2: T,
    /// Degraded.
    pub sev3: T,
    /// For the audit trail.
    pub sev4: T,
}

impl<T> PerSeverity<T> {
    /// The value of a severity.
    pub const fn get(&self, severity: Severity) -> &T {
        match severity {
            Severity::Sev0 => &self.sev0,
            Severity::Sev1 => &self.sev1,
            Severity::Sev2 => &self.sev2,
            Severity::Sev3 => &self.sev3,
            Severity::Sev4 => &self.sev4,
        }
    }

    /// The same, to be changed.
    pub const fn get_mut(&mut self, severity: Severity) -> &mut T {
        match severity {
            Severity::Sev0 => &mut self.sev0,
            Severity::Sev1 => &mut self.sev1,
            Severity::Sev2 => &mut self.sev2,
            Severity::Sev3 => &mut self.sev3,
            Severity::Sev4 => &mut self.sev4,
        }
    }
}

/// When an agent counts as silent, and when many of them count as one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LivenessPolicy {
    /// Interval that agents are told to beat at.
    pub heartbeat: Duration,
    /// Missed heartbeats until an agent is stale.
    pub stale_after: u32,
    /// At least this many agents silent within `mass_window` ...
    pub mass_agents_min: u32,
    /// ... and this share of those that were live make one `mass_stale`, ...
    pub mass_share: f64,
    /// ... or this many, whatever the share.
    pub mass_agents: u32,
    /// Silences this close together belong together.
    pub mass_window: Duration,
    /// Longest reconnect back-off of an agent plus its connect time-out: part of the re-hear window.
    pub reconnect_max: Duration,
    /// How long an agent that said goodbye may be gone before that is an incident: a restart, an upgrade.
    pub goodbye_grace: Duration,
    /// The same for one whose host goes down: a reboot, with its checks of disks and memory.
    #[serde(default = "LivenessPolicy::reboot_grace_default")]
    pub reboot_grace: Duration,
    /// Agents admitted per second after a start or a takeover: stretches the re-hear window of a large fleet.
    pub admission_per_s: u32,
}

impl LivenessPolicy {
    const fn reboot_grace_default() -> Duration {
        Duration::from_secs(900)
    }
}

/// When many new incidents that nothing explains are gathered into one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorrelationPolicy {
    /// So many new ones ...
    pub incidents: u32,
    /// ... within this long; and as long as each new one comes no later than this after the one before.
    pub window: Duration,
}

impl Default for CorrelationPolicy {
    fn default() -> Self {
        Self { incidents: 10, window: Duration::from_secs(120) }
    }
}

/// When restarts are a storm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartStormPolicy {
    /// Restarts counted together, by the time they were observed.
    pub window: Duration,
    /// Restarts of one service on one host within `window`.
    pub host_restarts: u32,
    /// Hosts on which the same service restarted within `window`.
    pub fleet_hosts: u32,
}

/// When contended locks are the fleet's matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockContentionPolicy {
    /// Hosts on which the same subject is contended at once.
    pub fleet_hosts: u32,
    /// A lock that has been contended for so long is worse.
    #[serde(default = "sustained_lock")]
    pub sustained: Duration,
    /// So many subjects of one service at once on one host make each of them worse.
    #[serde(default = "many_subjects")]
    pub host_subjects: u32,
}

/// Which receivers are told of what. A condition that is empty holds for everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The incident has one of these severities.
    #[serde(default)]
    pub severities: BTreeSet<Severity>,
    /// Its reason is one of these.
    #[serde(default)]
    pub reasons: BTreeSet<Reason>,
    /// It concerns one of these services.
    #[serde(default)]
    pub services: BTreeSet<String>,
    /// One of its hosts carries all of these labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Who is told.
    pub receivers: Vec<String>,
    /// The routes that follow are asked as well.
    #[serde(default)]
    pub goes_on: bool,
}

/// Whether neighbours of a silent agent are asked about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecondOpinionPolicy {
    /// Off: nobody is asked.
    pub enabled: bool,
    /// How many of them, at most [`crate::second_opinion::ASKERS_MAX`].
    pub askers: u32,
}

impl Default for SecondOpinionPolicy {
    fn default() -> Self {
        Self { enabled: true, askers: 3 }
    }
}

const fn many_subjects() -> u32 {
    5
}

const fn sustained_lock() -> Duration {
    Duration::from_secs(1800)
}

/// Everything tunable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// [`RULES_VERSION`] of the binary that loaded it.
    pub rules_version: u32,
    /// Liveness of agents.
    pub liveness: LivenessPolicy,
    /// Restart storms.
    pub restart_storm: RestartStormPolicy,
    /// Lock contention.
    pub lock_contention: LockContentionPolicy,
    /// The other detectors.
    #[serde(default)]
    pub detect: DetectPolicy,
    /// What the fleet is compared by.
    #[serde(default)]
    pub signals: SignalPolicy,
    /// Second opinions.
    #[serde(default)]
    pub second_opinion: SecondOpinionPolicy,
    /// Severity by reason, where it differs from the default.
    pub severities: BTreeMap<Reason, Severity>,
    /// How long a new incident waits for its symptoms before it pages.
    pub hold: PerSeverity<Duration>,
    /// How long evidence of health must hold before an incident resolves.
    pub stability: PerSeverity<Duration>,
    /// Incidents less bad than this never page.
    pub page_from: Severity,
    /// Within what somebody is expected to acknowledge: told in the page.
    #[serde(default = "Policy::response_default")]
    pub response: PerSeverity<Duration>,
    /// An incident that nobody acknowledged for this long is told again; zero: never.
    #[serde(default = "Policy::escalation_default")]
    pub escalation: PerSeverity<Duration>,
    /// On which days, in UTC, a response or an escalation of a day and more is counted.
    #[serde(default = "working_days::every_day")]
    pub working_days: BTreeSet<Weekday>,
    /// So long before its end a silence that holds something open back is told to be over soon; zero: never, as it was
    /// in journals that do not name it.
    #[serde(default)]
    pub silence_notice: Duration,
    /// Many new incidents that nothing explains.
    #[serde(default)]
    pub correlation: CorrelationPolicy,
    /// Names of all receivers, in order.
    pub receivers: Vec<String>,
    /// Which of them are told of what; the first that matches counts, and where none does, all are told.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Who is told in place of a receiver that fails.
    #[serde(default)]
    pub fallbacks: BTreeMap<String, String>,
    /// Receivers that escalate by themselves.
    #[serde(default)]
    pub self_escalating: BTreeSet<String>,
}

impl Policy {
    const fn response_default() -> PerSeverity<Duration> {
        const fn minutes(minutes: u64) -> Duration {
            Duration::from_secs(minutes * 60)
        }
        let (sev1, sev2, sev3, sev4) = (minutes(15), minutes(30), minutes(4 * 60), minutes(24 * 60));
        PerSeverity { sev0: Duration::ZERO, sev1, sev2, sev3, sev4 }
    }

    /// The next working day is a day later, counted on [`Policy::working_days`].
    const fn escalation_default() -> PerSeverity<Duration> {
        const fn minutes(minutes: u64) -> Duration {
            Duration::from_secs(minutes * 60)
        }
        let (sev0, sev1, sev2, sev3) = (minutes(5), minutes(30), minutes(60), minutes(24 * 60));
        PerSeverity { sev0, sev1, sev2, sev3, sev4: Duration::ZERO }
    }
}

impl Default for Policy {
    fn default() -> Self {
        const fn seconds(seconds: u64) -> Duration {
            Duration::from_secs(seconds)
        }
        let quarter_hour = seconds(900);
        Self {
            rules_version: RULES_VERSION,
            liveness: LivenessPolicy {
                heartbeat: seconds(5),
                stale_after: 3,
                mass_agents_min: 3,
                mass_share: 0.3,
                mass_agents: 50,
                mass_window: seconds(60),
                reconnect_max: seconds(40),
                goodbye_grace: seconds(600),
                reboot_grace: LivenessPolicy::reboot_grace_default(),
                admission_per_s: 2_000,
            },
            restart_storm: RestartStormPolicy { window: seconds(600), host_restarts: 5, fleet_hosts: 3 },
            lock_contention: LockContentionPolicy {
                fleet_hosts: 3,
                sustained: sustained_lock(),
                host_subjects: many_subjects(),
            },
            detect: DetectPolicy::default(),
            signals: SignalPolicy::default(),
            second_opinion: SecondOpinionPolicy::default(),
            severities: BTreeMap::new(),
            hold: PerSeverity {
                sev0: seconds(0),
                sev1: seconds(0),
                sev2: seconds(10),
                sev3: seconds(60),
                sev4: seconds(60),
            },
            stability: PerSeverity {
                sev0: quarter_hour,
                sev1: quarter_hour,
                sev2: quarter_hour,
                sev3: quarter_hour,
                sev4: quarter_hour,
            },
            page_from: Severity::Sev3,
            response: Self::response_default(),
            escalation: Self::escalation_default(),
            working_days: working_days::usual(),
            silence_notice: seconds(600),
            correlation: CorrelationPolicy::default(),
            receivers: Vec::new(),
            routes: Vec::new(),
            fallbacks: BTreeMap::new(),
            self_escalating: BTreeSet::new(),
        }
    }
}
