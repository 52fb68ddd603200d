//! `coordinator.toml`: every key, its bounds and its default, in one walk. All mistakes come out at once.
//!
//! Never holds a secret: only the names of the files that do.

mod detectors;
mod signals;

use crate::pager::heartbeat::{HeartbeatConfig, read_heartbeat};
use crate::pager::inbound::read_inbound;
use crate::pager::secret::{SecretFile, masked};
use crate::pager::{ReceiverConfig, read_receivers, read_routes};
use crate::store::sqlite;
use muster_common::config::{ConfigErrors, Reader, Value, read};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use muster_coordinator_core::policy::{PerSeverity, Policy};
use muster_coordinator_core::working_days::Weekday;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Where the config is when the command line does not say.
pub const DEFAULT_PATH: &str = "/etc/muster/coordinator.toml";
/// Coordinators an agent may try, and peers to follow: two today, room for a few.
const ENDPOINTS_MAX: usize = 8;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// Certificate, key and CA.
    pub tls: TlsFiles,
    /// `sqlite:PATH`.
    pub store_url: String,
    /// Thresholds and matrix.
    pub policy: Policy,
    /// Where pages go.
    pub receivers: Vec<ReceiverConfig>,
    /// Who outside expects a sign of life.
    pub heartbeat_out: Option<HeartbeatConfig>,
    /// Secrets of PagerDuty's webhook subscriptions; none: what PagerDuty tells is not taken.
    pub pagerduty_webhook: Vec<SecretFile>,
    /// Whom to follow.
    pub failover: FailoverConfig,
    /// What agents are told to try, in order of preference; empty: they keep to their own config.
    pub advertise: Vec<String>,
}

/// `[listen]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// gRPC with mTLS.
    pub grpc: SocketAddr,
    /// Plain HTTP: health and metrics.
    pub http: Option<SocketAddr>,
    /// gRPC for people on this host.
    pub unix: Option<PathBuf>,
}

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The fleet's CA.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Our key.
    pub key: PathBuf,
}

/// `[failover]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailoverConfig {
    /// The primary that a standby follows at its first start; unset: this coordinator reigns at its first start.
    /// Afterwards the store knows what it is.
    pub follow: Option<String>,
    /// The other coordinators: asked for a higher epoch before anything is done as primary.
    pub peers: Vec<String>,
}

/// Parses `text`, the content of `file`.
pub fn parse(file: &str, text: &str) -> Result<Config, ConfigErrors> {
    let (_, config) = read_covered(file, text, |root| walk(root, true))?;
    // A walk without a mistake has found every required key.
    config.ok_or_else(|| ConfigErrors { file: file.to_owned(), text: text.to_owned(), mistakes: Vec::new() })
}

/// The policy in `text`, for what-if questions: certificates and a store may be there, and need not be.
pub fn parse_policy(file: &str, text: &str) -> Result<Policy, ConfigErrors> {
    read_covered(file, text, |root| walk(root, false)).map(|(policy, _)| policy)
}

/// A report shows the lines with mistakes; a secret that does not belong there is covered.
fn read_covered<T>(file: &str, text: &str, walk: impl FnOnce(&Reader<'_>) -> T) -> Result<T, ConfigErrors> {
    read(file, text, walk).map_err(|errors| ConfigErrors { text: masked(text), ..errors })
}

/// The policy, and all of it where what a coordinator cannot run without is there.
fn walk(root: &Reader<'_>, is_whole: bool) -> (Policy, Option<Config>) {
    let listen = read_listen(root);
    let wanted = |key: &str| is_whole || root.value(key).is_some();
    let tls = if wanted("tls") { read_tls(root) } else { None };
    let store_url = if wanted("store") { read_store(root) } else { None };
    let (receivers, names) = read_receivers(root);
    let mut policy = read_policy(root);
    read_routes(root, &receivers, &names, &mut policy);
    let heartbeat_out = read_heartbeat(root, &receivers, &names);
    let pagerduty_webhook = read_inbound(root);
    let failover = read_failover(root);
    let advertise = match root.table("advertise") {
        Some(table) => read_endpoints(&table, "endpoints"),
        None => Vec::new(),
    };
    let own = policy.clone();
    let whole = || {
        Some(Config {
            listen: listen?,
            tls: tls?,
            store_url: store_url?,
            policy,
            receivers,
            heartbeat_out,
            pagerduty_webhook,
            failover,
            advertise,
        })
    };
    (own, whole())
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an address with a port, such as \"0.0.0.0:7420\"".to_owned())
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("expected an absolute path".to_owned()) }
}

fn parse_endpoint(text: &str) -> Result<String, String> {
    let expected = || "expected \"https://HOST:PORT\", such as \"https://coord-a:7420\"".to_owned();
    let rest = text.strip_prefix("https://").ok_or_else(expected)?;
    let (host, port) = rest.rsplit_once(':').ok_or_else(expected)?;
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(expected());
    }
    Ok(text.to_owned())
}

fn read_endpoints(table: &Reader<'_>, key: &str) -> Vec<String> {
    let endpoints = table.list(key, parse_endpoint);
    if endpoints.len() > ENDPOINTS_MAX {
        table.mistake(&format!("too many {key}"), &format!("expected at most {ENDPOINTS_MAX}"));
    }
    endpoints
}

fn read_listen(root: &Reader<'_>) -> Option<Listen> {
    let Some(table) = root.table("listen") else {
        return parse_address("0.0.0.0:7420").ok().map(|grpc| Listen {
            grpc,
            http: parse_address("127.0.0.1:7421").ok(),
            unix: None,
        });
    };
    let grpc = table.required("grpc").and_then(|value| value.parsed(parse_address));
    let http = table.parsed("http", parse_address);
    if let (Some(grpc), Some(http), Some(value)) = (grpc, http, table.value("http"))
        && overlap(grpc, http)
    {
        value.mistake(
            &format!("listen.grpc has that port ({grpc}): one of the two could not listen"),
            "expected another port, such as \"127.0.0.1:7421\"",
        );
    }
    let unix = table.parsed("unix", parse_path);
    Some(Listen { grpc: grpc?, http, unix })
}

/// Whether who listens on one of them keeps the other from it. Any IPv6 address stands for any IPv4 address, too.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
    let (a, b) = (one.ip(), other.ip());
    one.port() == other.port() && one.port() != 0 && (a == b || takes(a, b) || takes(b, a))
}

fn read_tls(root: &Reader<'_>) -> Option<TlsFiles> {
    let table = root.required("tls")?.table()?;
    let file = |key: &str| table.required(key).and_then(|value| value.parsed(parse_path));
    let (ca, cert, key) = (file("ca"), file("cert"), file("key"));
    Some(TlsFiles { ca: ca?, cert: cert?, key: key? })
}

fn read_store(root: &Reader<'_>) -> Option<String> {
    let table = root.required("store")?.table()?;
    table.required("url")?.parsed(|text| {
        let expected = || "expected \"sqlite:\" and an absolute path".to_owned();
        let path = sqlite::path_of(text).map_err(|_| expected())?;
        if path.is_absolute() { Ok(text.to_owned()) } else { Err(expected()) }
    })
}

fn read_failover(root: &Reader<'_>) -> FailoverConfig {
    let Some(table) = root.table("failover") else { return FailoverConfig::default() };
    FailoverConfig { follow: table.parsed("follow", parse_endpoint), peers: read_endpoints(&table, "peers") }
}

fn read_policy(root: &Reader<'_>) -> Policy {
    let mut policy = Policy::default();
    read_liveness(root, &mut policy);
    detectors::read(root, &mut policy);
    read_second_opinion(root, &mut policy);
    if let Some(table) = root.table("incidents") {
        for (key, values) in [("hold", &mut policy.hold), ("stability", &mut policy.stability)] {
            if let Some(per_severity) = table.table(key) {
                read_per_severity(&per_severity, values, DAY);
            }
        }
        // The next working day may be some days away.
        read_response(&table, &mut policy);
        set(&mut policy.working_days, table.value("working_days").map(|days| read_days(&days)));
        set(&mut policy.silence_notice, table.duration("silence_notice", Duration::ZERO..=DAY));
        set(&mut policy.page_from, table.parsed("page_from", |text| text.parse::<Severity>()));
    }
    if let Some(table) = root.table("severity") {
        for &reason in Reason::ALL {
            if reason == Reason::Change {
                if let Some(value) = table.value(reason.as_str()) {
                    value.mistake("a change pages nobody: it is told in the pages of what follows it", "leave it out");
                }
            } else if let Some(severity) = table.parsed(reason.as_str(), |text| text.parse::<Severity>()) {
                policy.severities.insert(reason, severity);
            }
        }
    }
    policy
}

/// Until when somebody is to answer, and after what it is told again. Told again before anybody was to answer makes no
/// sense: where only one of the two stands in the config, the default of the other gives way.
fn read_response<'a>(table: &Reader<'a>, policy: &mut Policy) {
    let (response, escalation) = (table.table("response"), table.table("escalation"));
    for (told, values) in [(&response, &mut policy.response), (&escalation, &mut policy.escalation)] {
        if let Some(per_severity) = told {
            read_per_severity(per_severity, values, DAY * 14);
        }
    }
    for severity in Severity::ALL {
        let (answer, again) = (*policy.response.get(severity), *policy.escalation.get(severity));
        if again.is_zero() || again >= answer {
            continue;
        }
        let of = |table: Option<&Reader<'a>>| table.and_then(|table| table.value(severity.as_str()));
        match (of(response.as_ref()), of(escalation.as_ref())) {
            (Some(_), Some(value)) => {
                let message = format!(
                    "{severity} would be told again after {}, before anybody is to answer ({})",
                    human_duration(again),
                    human_duration(answer)
                );
                value.mistake(&message, "expected at least as long as response, or \"0s\": never");
            }
            (None, _) => *policy.response.get_mut(severity) = again,
            (Some(_), None) => *policy.escalation.get_mut(severity) = answer,
        }
    }
}

fn read_days(days: &Value<'_>) -> BTreeSet<Weekday> {
    let named = days.items();
    if days.is_array() && named.is_empty() {
        days.mistake("no day is a working day", "expected some of mon, tue, wed, thu, fri, sat, sun");
    }
    named.into_iter().filter_map(|day| day.parsed(str::parse)).collect()
}

fn read_per_severity(table: &Reader<'_>, values: &mut PerSeverity<Duration>, longest: Duration) {
    let bounds = Duration::ZERO..=longest;
    set(&mut values.sev0, table.duration("sev0", bounds.clone()));
    set(&mut values.sev1, table.duration("sev1", bounds.clone()));
    set(&mut values.sev2, table.duration("sev2", bounds.clone()));
    set(&mut values.sev3, table.duration("sev3", bounds.clone()));
    set(&mut values.sev4, table.duration("sev4", bounds));
}

fn read_liveness(root: &Reader<'_>, policy: &mut Policy) {
    let Some(table) = root.table("liveness") else { return };
    let liveness = &mut policy.liveness;
    let minute = Duration::from_secs(60);
    set(&mut liveness.heartbeat, table.duration("heartbeat", Duration::from_millis(100)..=minute));
    set(&mut liveness.stale_after, count(&table, "stale_after", 2..=100));
    set(&mut liveness.mass_agents_min, count(&table, "mass_agents_min", 2..=100_000));
    set(&mut liveness.mass_share, table.number("mass_share", 0.01..=1.0));
    set(&mut liveness.mass_agents, count(&table, "mass_agents", 2..=100_000));
    set(&mut liveness.mass_window, table.duration("mass_window", SECOND..=DAY));
    set(&mut liveness.goodbye_grace, table.duration("goodbye_grace", SECOND..=DAY));
    set(&mut liveness.reboot_grace, table.duration("reboot_grace", SECOND..=DAY));
    set(&mut liveness.admission_per_s, count(&table, "admission_per_s", 1..=100_000));
    set(&mut liveness.reconnect_max, table.duration("reconnect_max", SECOND..=DAY));
}

fn read_second_opinion(root: &Reader<'_>, policy: &mut Policy) {
    let Some(table) = root.table("second_opinion") else { return };
    set(&mut policy.second_opinion.enabled, table.boolean("enabled"));
    set(&mut policy.second_opinion.askers, count(&table, "askers", 1..=3));
}

fn count(table: &Reader<'_>, key: &str, bounds: std::ops::RangeInclusive<i64>) -> Option<u32> {
    u32::try_from(table.integer(key, bounds)?).ok()
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[tls]\nca = \"/c\"\ncert = \"/d\"\nkey = \"/k\"\n[store]\nurl = \"sqlite:/var/lib/j.db\"\n";

    #[test]
    fn the_least_and_the_most() {
        let config = parse("c.toml", MINIMAL).unwrap();
        assert_eq!(config.listen.grpc.port(), 7420);
        assert_eq!(config.policy, Policy::default());
        let most = format!(
            "{MINIMAL}[listen]\ngrpc = \"0.0.0.0:1\"\nunix = \"/run/s\"\n[liveness]\nheartbeat = \"2s\"\nstale_after = 4\n\
             [incidents]\nhold = {{ sev2 = \"3s\" }}\n\
             response = {{ sev3 = \"3d\" }}\nescalation = {{ sev2 = \"10m\", sev3 = \"0s\" }}\nworking_days = [\"sun\", \"mon\"]\n[detectors.incident_burst]\nincidents = 20\n[detectors.restart_storm]\nhost_restarts = 9\n\
             [severity]\nport_closed = \"sev1\"\n[failover]\nfollow = \"https://a:7420\"\npeers = [\"https://a:7420\"]\n\
             [advertise]\nendpoints = [\"https://a:7420\"]\n[[receiver.webhook]]\nname = \"ops\"\nurl = \"http://127.0.0.1:9/\"\n"
        );
        let config = parse("c.toml", &most).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.policy.liveness.stale_after, 4);
        assert_eq!(config.policy.hold.sev2, Duration::from_secs(3));
        assert_eq!(config.policy.response.sev3, DAY * 3);
        assert_eq!((config.policy.escalation.sev2, config.policy.escalation.sev3), (SECOND * 600, Duration::ZERO));
        assert_eq!(config.policy.correlation.incidents, 20);
        assert_eq!(config.policy.working_days, [Weekday::Mon, Weekday::Sun].into());
        assert_eq!(config.policy.severities.get(&Reason::PortClosed), Some(&Severity::Sev1));
        assert_eq!(config.policy.receivers, ["ops"]);
        assert_eq!(config.failover.follow.as_deref(), Some("https://a:7420"));
    }

    #[test]
    fn nobody_is_told_again_before_an_answer_is_due() {
        let policy = |keys: &str| parse_policy("p.toml", &format!("[incidents]\n{keys}\n"));
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let both = |keys: &str| {
            let policy = policy(keys).unwrap_or_else(|errors| panic!("{errors}"));
            (policy.response.sev2, policy.escalation.sev2)
        };
        assert_eq!(both("escalation = { sev2 = \"2m\" }"), (minutes(2), minutes(2)), "the default gives way");
        assert_eq!(both("response = { sev2 = \"2h\" }"), (minutes(120), minutes(120)));
        assert_eq!(both("escalation = { sev2 = \"0s\" }"), (minutes(30), Duration::ZERO), "never is not too early");
        let equal = "response = { sev2 = \"5m\" }\nescalation = { sev2 = \"5m\" }";
        assert_eq!(both(equal), (minutes(5), minutes(5)));
        let error = policy("response = { sev2 = \"30m\" }\nescalation = { sev2 = \"2m\" }").unwrap_err().to_string();
        assert!(
            error.contains("sev2 would be told again after 2 min, before anybody is to answer (30 min)"),
            "{error}"
        );
    }

    /// It is what other pages show.
    #[test]
    fn a_change_has_no_severity() {
        for severity in ["sev1", "sev4"] {
            let error = parse_policy("p.toml", &format!("[severity]\nchange = \"{severity}\"\n")).unwrap_err();
            assert!(error.to_string().contains("a change pages nobody"), "{error}");
        }
    }

    #[test]
    fn two_listeners_need_two_addresses() {
        let listen = |grpc: &str, http: &str| {
            parse("c.toml", &format!("{MINIMAL}[listen]\ngrpc = \"{grpc}\"\nhttp = \"{http}\"\n"))
        };
        for (grpc, http) in [
            ("127.0.0.1:7420", "127.0.0.1:7420"),
            ("0.0.0.0:7420", "127.0.0.1:7420"),
            ("10.0.0.1:7420", "0.0.0.0:7420"),
            ("[::]:7420", "127.0.0.1:7420"),
        ] {
            let error = listen(grpc, http).unwrap_err().to_string();
            assert!(error.contains("listen.grpc has that port"), "{grpc} {http}: {error}");
        }
        for (grpc, http) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("10.0.0.1:7420", "127.0.0.1:7420"),
            ("0.0.0.0:7420", "127.0.0.1:7421"),
            ("0.0.0.0:7420", "[::1]:7420"),
        ] {
            assert!(listen(grpc, http).is_ok(), "{grpc} {http}");
        }
    }

    #[test]
    fn a_policy_needs_neither_certificates_nor_a_store() {
        let text = "[incidents]\nhold = { sev2 = \"3s\" }\n[[receiver.webhook]]\nname = \"ops\"\nurl = \"http://127.0.0.1:9/\"\n";
        let policy = parse_policy("p.toml", text).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!((policy.hold.sev2, policy.receivers), (Duration::from_secs(3), vec!["ops".to_owned()]));
        assert_eq!(parse_policy("c.toml", MINIMAL).unwrap(), Policy::default());
        let errors = parse_policy("p.toml", "[tls]\nca = \"c\"\n[liveness]\nheartbeatt = \"1s\"\n").unwrap_err();
        assert!(errors.to_string().contains("did you mean \"heartbeat\""), "{errors}");
        assert!(parse("p.toml", text).is_err());
    }

    #[test]
    fn a_fleet_has_working_days() {
        for (days, told) in [("[]", "no day is a working day"), ("[\"monday\"]", "expected one of mon, tue")] {
            let error =
                parse_policy("p.toml", &format!("[incidents]\nworking_days = {days}\n")).unwrap_err().to_string();
            assert!(error.contains(told), "{days}: {error}");
        }
    }

    #[test]
    fn all_mistakes_at_once() {
        let bad = "[tls]\nca = \"/c\"\ncert = \"d\"\n[listen]\ngrpcc = \"x\"\n[store]\nurl = \"mysql:x\"\n\
                   [liveness]\nheartbeat = \"5\"\n[severity]\nport_close = \"sev1\"\n";
        let errors = parse("c.toml", bad).unwrap_err();
        let text = errors.to_string();
        for part in
            ["lacks the key \"key\"", "absolute path", "did you mean \"grpc\"", "sqlite:", "heartbeat", "port_closed"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(errors.mistakes.len() >= 6);
    }
}
