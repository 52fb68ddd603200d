//! The agent's own readers of bytes from outside, each as a function that takes anything. Shared by the bounded run
//! beside this file and by the fuzz targets (`fuzz/`), as those of the core are.

use muster_agent::bundle::Opened;
use muster_agent::clock;
use muster_agent::config::Config;
use muster_agent::freezes;
use muster_agent::local::LinkStatus;
use muster_agent::net::Net;
use muster_agent::probe::{Context, Lane, Remembered};
use muster_agent::run::plan::{self, Means, lane_index};
use muster_agent::senses::HostRoot;
use muster_agent::senses::saved_log::read_log;
use muster_agent::senses::sqlite::OneShot;
use muster_common::time::Timestamp;
use muster_proto::{convert, v1};
use prost::Message as _;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Takes any bytes.
pub type Parser = fn(&[u8]);

/// All of them, by name.
pub const PARSERS: [(&str, Parser); 6] = [
    ("agent_config", agent_config),
    ("bundle", bundle),
    ("freezes", freeze_file),
    ("probe_state", probe_state),
    ("saved_log_file", saved_log_file),
    ("wire", wire),
];

/// A config with a probe of nearly every kind.
const CONFIG: &str = r#"
[service.spl]
pid_file = "/run/spl.pid"
unit = "spl.service"
ports = ["127.0.0.1:8080", "unix:/run/spl.sock"]
sqlite = [{ path = "/srv/hub.db" }]
locks = "/srv/spl.lock"
backups = "/backup/hub.db.*"
logs = "/var/log/spl.log"
health = "http://127.0.0.1:1/healthz"
"#;

/// Keeps the optimiser of a fuzz target from leaving out what nobody uses.
fn ran<T>(outcome: T) {
    std::hint::black_box(outcome);
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("written");
    file
}

/// A config: mistakes are told with their place, whatever it holds.
pub fn agent_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Config::parse("agent.toml", &text) {
        Ok(config) => assert!(config.services.len() <= text.len()),
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}

/// What somebody sent as a bundle.
pub fn bundle(bytes: &[u8]) {
    if let Ok(opened) = Opened::from_bytes(bytes) {
        ran((opened.report().is_ok(), opened.item("report.json").is_ok()));
    }
}

/// The file of freezes.
pub fn freeze_file(bytes: &[u8]) {
    let file = file(bytes);
    let now = Timestamp::from_unix_ms(1_000);
    if let Ok(held) = freezes::read(file.path(), now) {
        assert!(held.iter().all(|freeze| freeze.expires.is_none_or(|until| until > now)));
    }
}

/// A saved kernel log, through the file.
pub fn saved_log_file(bytes: &[u8]) {
    let file = file(bytes);
    let log = read_log(file.path()).expect("a regular file is read");
    assert!(log.kernel_lines <= log.lines && log.kills.len() as u64 <= log.lines);
}

/// Messages of the link: what decodes is bounded or refused.
pub fn wire(bytes: &[u8]) {
    if let Ok(event) = convert::finding_event(bytes) {
        let again = convert::finding_event(&convert::encode_finding_event(&event));
        assert_eq!(again.as_ref().ok(), Some(&event));
    }
    if let Ok(proof) = v1::EpochProof::decode(bytes) {
        ran(convert::epoch_proof(&proof));
    }
    if let Ok(position) = v1::Position::decode(bytes) {
        ran(convert::position(&position));
    }
    if let Ok(detail) = v1::FindingDetail::decode(bytes) {
        ran(convert::subject_key(detail.subject.as_ref()));
    }
    ran(v1::ConnectResponse::decode(bytes));
}

fn fake_host() -> &'static HostRoot {
    static HOST: OnceLock<HostRoot> = OnceLock::new();
    HOST.get_or_init(|| {
        // Beside this file, from the agent's tests and from the fuzz crate alike.
        let folders = ["tests/kernels", "../agent/tests/kernels"];
        let found = folders.iter().map(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
        let kernels: PathBuf = found.into_iter().find(|folder| folder.is_dir()).expect("the fixtures");
        HostRoot(kernels.join("linux-6.18"))
    })
}

/// The same document with every number replaced by `number`.
fn with_numbers(value: &Value, number: &Value) -> Value {
    match value {
        Value::Number(_) => number.clone(),
        Value::Array(items) => items.iter().map(|item| with_numbers(item, number)).collect(),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(key, item)| (key.clone(), with_numbers(item, number))).collect())
        }
        other => other.clone(),
    }
}

/// What a probe kept across a restart of the agent: every probe takes it, or leaves it, and then still answers.
pub fn probe_state(bytes: &[u8]) {
    static NET: OnceLock<Net> = OnceLock::new();
    let Ok(saved) = serde_json::from_slice::<Value>(bytes) else { return };
    let config = Config::parse("agent.toml", CONFIG).expect("the config is right");
    let net = NET.get_or_init(|| Net::start().expect("a thread")).handle();
    let means = Means {
        host: fake_host(),
        scratch: None,
        net: &net,
        link: LinkStatus::default(),
        one_shot: OneShot::default(),
    };
    let context = Context { now: clock::now(), services: Arc::default(), one_shot: false };
    let numbers = [Value::from(0), Value::from(1), Value::from(u64::MAX), Value::from(i64::MIN), Value::from(i64::MAX)];
    for state in std::iter::once(saved.clone()).chain(numbers.iter().map(|number| with_numbers(&saved, number))) {
        for planned in &mut plan::probes(&config, &means) {
            let probe = &mut planned.probe;
            probe.restore(Remembered::of(&state).expect("it is JSON"));
            if lane_index(probe.lane()) != lane_index(Lane::Database) {
                ran(probe.run(&context));
            }
            ran(probe.save());
        }
    }
}
