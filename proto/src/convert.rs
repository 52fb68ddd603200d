//! Wire to domain and back. Beyond a limit: an error that names the field and the bound; never a clipped value.

use crate::v1;
use muster_common::epoch_proof::{CHAIN_BYTES_MAX, CHAIN_CERTIFICATES_MAX, EpochProof, SIGNATURE_BYTES_MAX};
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::finding::{Finding, FindingEvent, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{CoordinatorId, Epoch, NameError, ServiceName, SpoolId};
use muster_common::limits::{
    CODE_BYTES_MAX, ENTRY_BODY_BYTES_MAX, EVIDENCE_KEY_BYTES_MAX, EVIDENCE_KEYS_MAX, EVIDENCE_TEXT_BYTES_MAX,
    NEXT_STEP_BYTES_MAX, NEXT_STEPS_MAX, SUBJECT_BYTES_MAX, SUMMARY_BYTES_MAX,
};
use muster_common::reason::{Reason, ReasonKind, UnknownReason};
use muster_common::severity::Severity;
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use prost::Message;
use std::collections::HashMap;

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field is over its bound.
    #[error("{field} has {found} {unit}, at most {bound} are allowed")]
    TooLarge {
        /// Which field.
        field: &'static str,
        /// What it has.
        found: usize,
        /// What it may have.
        bound: usize,
        /// Bytes or items.
        unit: &'static str,
    },
    /// A field has a value outside its set.
    #[error("{field} has the unknown value {value}")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// What it has.
        value: String,
    },
    /// A name that is none.
    #[error("{field} is not a name: {error}")]
    Name {
        /// Which field.
        field: &'static str,
        /// Why.
        error: NameError,
    },
    /// A reason code that does not exist.
    #[error(transparent)]
    Reason(#[from] UnknownReason),
    /// A reason of the wrong kind for its place: a conclusion sent by an agent, an occurrence that opens.
    #[error("{reason} is of kind {kind:?} and cannot be used here")]
    Kind {
        /// The reason.
        reason: Reason,
        /// What it is.
        kind: ReasonKind,
    },
    /// Bytes that do not decode.
    #[error("{0} does not decode")]
    Encoding(&'static str),
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Checks the length of a text field.
pub fn bounded(field: &'static str, text: &str, bound: usize) -> Result<String, WireError> {
    if text.len() > bound {
        return Err(WireError::TooLarge { field, found: text.len(), bound, unit: "bytes" });
    }
    Ok(text.to_owned())
}

fn at_most(field: &'static str, found: usize, bound: usize) -> Result<(), WireError> {
    if found > bound { Err(WireError::TooLarge { field, found, bound, unit: "items" }) } else { Ok(()) }
}

/// A spool id from its 16 bytes.
pub fn spool_id(bytes: &[u8]) -> Result<SpoolId, WireError> {
    uuid::Uuid::from_slice(bytes).map(SpoolId).map_err(|_| WireError::Encoding("spool_id"))
}

/// An entry hash from its 16 bytes; empty is [`EntryHash::ZERO`].
pub fn entry_hash(bytes: &[u8]) -> Result<EntryHash, WireError> {
    if bytes.is_empty() {
        return Ok(EntryHash::ZERO);
    }
    bytes.try_into().map(EntryHash).map_err(|_| WireError::Encoding("hash"))
}

/// A severity; unspecified is an error.
pub fn severity(value: i32) -> Result<Severity, WireError> {
    let level = u8::try_from(value).ok().and_then(|value| value.checked_sub(1));
    level
        .and_then(Severity::from_level)
        .ok_or_else(|| WireError::Unknown { field: "severity", value: value.to_string() })
}

/// The wire form of a severity.
pub fn severity_to_wire(severity: Severity) -> i32 {
    i32::from(severity.level()) + 1
}

fn grade(value: i32) -> Result<Grade, WireError> {
    match v1::Grade::try_from(value) {
        Ok(v1::Grade::Possible) => Ok(Grade::Possible),
        Ok(v1::Grade::Likely) => Ok(Grade::Likely),
        Ok(v1::Grade::Confirmed) => Ok(Grade::Confirmed),
        _ => Err(WireError::Unknown { field: "grade", value: value.to_string() }),
    }
}

/// The wire form of a grade.
pub fn grade_to_wire(grade: Grade) -> i32 {
    match grade {
        Grade::Possible => v1::Grade::Possible.into(),
        Grade::Likely => v1::Grade::Likely.into(),
        Grade::Confirmed => v1::Grade::Confirmed.into(),
    }
}

/// A point in time on the wire.
pub fn timestamp_to_wire(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.unix_ms().rem_euclid(1000) * 1_000_000;
    prost_types::Timestamp { seconds: time.unix_ms().div_euclid(1000), nanos: i32::try_from(nanos).unwrap_or_default() }
}

/// A length of time on the wire.
pub fn duration_to_wire(length: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(length.subsec_nanos()).unwrap_or_default(),
    }
}

/// A point in time from the wire, clamped to the years 1 to 9999.
pub fn timestamp(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_unix_ms(time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos) / 1_000_000))
}

/// An epoch.
pub fn epoch(epoch: &v1::Epoch) -> Result<Epoch, WireError> {
    let coordinator = CoordinatorId::new(epoch.coordinator_id.as_str())
        .map_err(|error| WireError::Name { field: "epoch.coordinator_id", error })?;
    Ok(Epoch { number: epoch.number, coordinator })
}

/// The wire form of an epoch.
pub fn epoch_to_wire(epoch: &Epoch) -> v1::Epoch {
    v1::Epoch { number: epoch.number, coordinator_id: epoch.coordinator.to_string() }
}

/// An epoch with its proof. What it proves is for `muster_common::epoch_proof::verify` to say.
pub fn epoch_proof(proof: &v1::EpochProof) -> Result<EpochProof, WireError> {
    at_most("epoch_proof.certificate_chain", proof.certificate_chain.len(), CHAIN_CERTIFICATES_MAX)?;
    let bytes = proof.certificate_chain.iter().map(|certificate| certificate.len()).sum::<usize>();
    for (field, found, bound) in [
        ("epoch_proof.certificate_chain", bytes, CHAIN_BYTES_MAX),
        ("epoch_proof.signature", proof.signature.len(), SIGNATURE_BYTES_MAX),
    ] {
        if found > bound {
            return Err(WireError::TooLarge { field, found, bound, unit: "bytes" });
        }
    }
    Ok(EpochProof {
        epoch: epoch(proof.epoch.as_ref().ok_or(WireError::Missing("epoch_proof.epoch"))?)?,
        certificate_chain: proof.certificate_chain.iter().map(|certificate| certificate.to_vec()).collect(),
        signature: proof.signature.to_vec(),
    })
}

/// The wire form of an epoch with its proof.
pub fn epoch_proof_to_wire(proof: &EpochProof) -> v1::EpochProof {
    v1::EpochProof {
        epoch: Some(epoch_to_wire(&proof.epoch)),
        certificate_chain: proof.certificate_chain.iter().map(|certificate| certificate.clone().into()).collect(),
        signature: proof.signature.clone().into(),
    }
}

/// A spool position.
pub fn position(position: &v1::Position) -> Result<Position, WireError> {
    Ok(Position {
        spool: spool_id(&position.spool_id)?,
        sequence: position.sequence,
        hash: entry_hash(&position.hash)?,
    })
}

/// The wire form of a spool position.
pub fn position_to_wire(position: Position) -> v1::Position {
    v1::Position {
        spool_id: position.spool.0.as_bytes().to_vec().into(),
        sequence: position.sequence,
        hash: position.hash.0.to_vec().into(),
    }
}

/// A subject.
pub fn subject_key(subject: Option<&v1::SubjectKey>) -> Result<SubjectKey, WireError> {
    let subject = subject.ok_or(WireError::Missing("subject"))?;
    let service = ServiceName::new(subject.service.as_str())
        .map_err(|error| WireError::Name { field: "subject.service", error })?;
    let text = bounded("subject.subject", &subject.subject, SUBJECT_BYTES_MAX)?;
    Ok(match subject.probe.parse::<ProbeKind>() {
        Ok(probe) if probe != ProbeKind::Unknown => SubjectKey { service, probe, subject: text },
        Err(_) if is_code(&subject.probe) => SubjectKey::foreign(service, &subject.probe, &text),
        _ => {
            let value = muster_common::limits::clip(&subject.probe, CODE_BYTES_MAX);
            return Err(WireError::Unknown { field: "subject.probe", value });
        }
    })
}

/// What may be the name of a reason or a probe: one that is not known here is kept under it, and shown to people.
fn is_code(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    text.len() <= CODE_BYTES_MAX
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(plain)
}

/// Which finding; its reason must be of `kind`. Agents may be newer than coordinators: what they alone know has a
/// stand-in, which nobody tells by itself.
fn finding_key(subject: Option<&v1::SubjectKey>, reason: &str, kind: ReasonKind) -> Result<FindingKey, WireError> {
    let key = subject_key(subject)?;
    let known = match reason.parse::<Reason>() {
        Ok(known) if known.kind() != kind || known.is_stand_in() => {
            return Err(WireError::Kind { reason: known, kind: known.kind() });
        }
        Ok(known) if key.probe != ProbeKind::Unknown => Some(known),
        Err(error) if !is_code(reason) => return Err(error.into()),
        _ => None,
    };
    if let Some(reason) = known {
        return Ok(FindingKey { subject: key, reason });
    }
    let (probe, subject) = key.told();
    Ok(FindingKey::foreign(key.service.clone(), probe, subject, reason, kind))
}

/// The wire form of a subject.
pub fn subject_to_wire(subject: &SubjectKey) -> v1::SubjectKey {
    let (probe, text) = subject.told();
    v1::SubjectKey { service: subject.service.to_string(), probe: probe.to_owned(), subject: text.to_owned() }
}

/// The wire form of a finding's identity: subject and reason.
fn key_to_wire(key: &FindingKey) -> (v1::SubjectKey, String) {
    let (probe, subject, reason) = key.told();
    let service = key.subject.service.to_string();
    (v1::SubjectKey { service, probe: probe.to_owned(), subject: subject.to_owned() }, reason.to_owned())
}

/// In place of a value of a kind that this program does not know.
const UNREADABLE: &str = "told in a form that this version does not read";

fn evidence(map: &HashMap<String, v1::EvidenceValue>) -> Result<Evidence, WireError> {
    use v1::evidence_value::Value as Wire;
    at_most("evidence", map.len(), EVIDENCE_KEYS_MAX)?;
    let mut evidence = Evidence::new();
    for (key, value) in map {
        bounded("an evidence key", key, EVIDENCE_KEY_BYTES_MAX)?;
        // A kind of value that is not known here arrives as none.
        let Some(value) = value.value.as_ref() else {
            evidence.insert(key, Value::Text(UNREADABLE.to_owned()));
            continue;
        };
        let value = match value {
            Wire::Text(text) => Value::Text(bounded("an evidence text", text, EVIDENCE_TEXT_BYTES_MAX)?),
            Wire::Count(count) => Value::Count(*count),
            Wire::Integer(integer) => Value::Integer(*integer),
            Wire::Bytes(bytes) => Value::Bytes(*bytes),
            Wire::Millis(ms) => Value::Millis(*ms),
            Wire::TimeUnixMs(ms) => Value::Time(Timestamp::from_unix_ms(*ms)),
            Wire::Flag(flag) => Value::Flag(*flag),
        };
        evidence.insert(key, value);
    }
    Ok(evidence)
}

fn evidence_to_wire(evidence: &Evidence) -> HashMap<String, v1::EvidenceValue> {
    use v1::evidence_value::Value as Wire;
    let wire = |value: &Value| match value {
        Value::Text(text) => Wire::Text(text.clone()),
        Value::Count(count) => Wire::Count(*count),
        Value::Integer(integer) => Wire::Integer(*integer),
        Value::Bytes(bytes) => Wire::Bytes(*bytes),
        Value::Millis(ms) => Wire::Millis(*ms),
        Value::Time(time) => Wire::TimeUnixMs(time.unix_ms()),
        Value::Flag(flag) => Wire::Flag(*flag),
    };
    evidence.iter().map(|(key, value)| (key.to_owned(), v1::EvidenceValue { value: Some(wire(value)) })).collect()
}

/// A finding; its reason must be of `kind`.
pub fn finding(detail: &v1::FindingDetail, kind: ReasonKind) -> Result<Finding, WireError> {
    let key = finding_key(detail.subject.as_ref(), &detail.reason, kind)?;
    at_most("next_steps", detail.next_steps.len(), NEXT_STEPS_MAX)?;
    let steps: Result<Vec<_>, _> =
        detail.next_steps.iter().map(|step| bounded("a next step", step, NEXT_STEP_BYTES_MAX)).collect();
    Ok(Finding {
        key,
        severity: severity(detail.severity)?,
        grade: grade(detail.grade)?,
        summary: bounded("summary", &detail.summary, SUMMARY_BYTES_MAX)?,
        evidence: evidence(&detail.evidence)?,
        next_steps: steps?,
    })
}

/// The wire form of a finding.
pub fn finding_to_wire(finding: &Finding) -> v1::FindingDetail {
    let (subject, reason) = key_to_wire(&finding.key);
    v1::FindingDetail {
        subject: Some(subject),
        reason,
        severity: severity_to_wire(finding.severity),
        grade: grade_to_wire(finding.grade),
        summary: finding.summary.clone(),
        evidence: evidence_to_wire(&finding.evidence),
        next_steps: finding.next_steps.clone(),
    }
}

/// Decodes the body of a spool entry.
pub fn finding_event(body: &[u8]) -> Result<FindingEvent, WireError> {
    use v1::finding_event::Event;
    if body.len() > ENTRY_BODY_BYTES_MAX {
        let (found, bound) = (body.len(), ENTRY_BODY_BYTES_MAX);
        return Err(WireError::TooLarge { field: "body", found, bound, unit: "bytes" });
    }
    let event = v1::FindingEvent::decode(body).map_err(|_| WireError::Encoding("body"))?;
    Ok(match event.event.ok_or(WireError::Missing("event"))? {
        Event::Opened(detail) => FindingEvent::Opened(finding(&detail, ReasonKind::Condition)?),
        Event::Updated(detail) => FindingEvent::Updated(finding(&detail, ReasonKind::Condition)?),
        Event::Occurred(detail) => FindingEvent::Occurred(finding(&detail, ReasonKind::Occurrence)?),
        Event::Cleared(cleared) => FindingEvent::Cleared {
            key: finding_key(cleared.subject.as_ref(), &cleared.reason, ReasonKind::Condition)?,
            summary: bounded("summary", &cleared.summary, SUMMARY_BYTES_MAX)?,
            evidence: evidence(&cleared.evidence)?,
        },
    })
}

/// Encodes the body of a spool entry.
pub fn encode_finding_event(event: &FindingEvent) -> Vec<u8> {
    use v1::finding_event::Event;
    let event = match event {
        FindingEvent::Opened(finding) => Event::Opened(finding_to_wire(finding)),
        FindingEvent::Updated(finding) => Event::Updated(finding_to_wire(finding)),
        FindingEvent::Occurred(finding) => Event::Occurred(finding_to_wire(finding)),
        FindingEvent::Cleared { key, summary, evidence } => {
            let (subject, reason) = key_to_wire(key);
            let (summary, evidence) = (summary.clone(), evidence_to_wire(evidence));
            Event::Cleared(v1::FindingCleared { subject: Some(subject), reason, summary, evidence })
        }
    };
    v1::FindingEvent { event: Some(event) }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::limits::HEARTBEAT_BYTES_MAX;

    fn sample(reason: Reason) -> Finding {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Sqlite, "/var/lib/hub.db");
        Finding::new(FindingKey { subject, reason }, "damaged")
            .evidence(Evidence::new().bytes("size_bytes", 7).text("detail", "row 3 missing").flag("wal", true))
            .next_steps(["copy it first"])
    }

    #[test]
    fn events_round_trip() {
        let key = sample(Reason::SqliteCorrupt).key;
        for event in [
            FindingEvent::Opened(sample(Reason::SqliteCorrupt)),
            FindingEvent::Updated(sample(Reason::SqliteCorrupt)),
            FindingEvent::Occurred(sample(Reason::OomKill)),
            FindingEvent::Cleared { key, summary: "passes".into(), evidence: Evidence::new() },
        ] {
            assert_eq!(finding_event(&encode_finding_event(&event)), Ok(event));
        }
    }

    #[test]
    fn an_agent_cannot_conclude_or_confuse_kinds() {
        for event in [
            FindingEvent::Opened(sample(Reason::MassStale)),
            FindingEvent::Opened(sample(Reason::OomKill)),
            FindingEvent::Occurred(sample(Reason::SqliteCorrupt)),
        ] {
            let error = finding_event(&encode_finding_event(&event)).unwrap_err();
            assert!(matches!(error, WireError::Kind { .. }), "{error}");
        }
    }

    fn detail(reason: &str, probe: &str) -> v1::FindingDetail {
        let mut detail = finding_to_wire(&sample(Reason::SqliteCorrupt));
        detail.reason = reason.to_owned();
        detail.subject.as_mut().unwrap().probe = probe.to_owned();
        detail
    }

    fn opened(detail: v1::FindingDetail) -> Vec<u8> {
        v1::FindingEvent { event: Some(v1::finding_event::Event::Opened(detail)) }.encode_to_vec()
    }

    /// Agents may be upgraded before coordinators.
    #[test]
    fn what_a_newer_agent_knows_is_kept_under_its_own_name() {
        for (reason, probe, known, shown) in [
            ("sqlite_haunted", "sqlite", Reason::UnknownCondition, "/var/lib/hub.db (sqlite/sqlite_haunted)"),
            ("sqlite_corrupt", "seance", Reason::SqliteCorrupt, "/var/lib/hub.db (seance/sqlite_corrupt)"),
            ("sqlite_haunted", "seance", Reason::UnknownCondition, "/var/lib/hub.db (seance/sqlite_haunted)"),
        ] {
            let event = finding_event(&opened(detail(reason, probe))).unwrap();
            let found = event.finding().unwrap();
            assert_eq!((found.key.reason, found.key.subject.subject.as_str()), (known, shown));
            assert_eq!(found.severity, Severity::Sev1, "as it was told");
            assert_eq!(finding_event(&encode_finding_event(&event)), Ok(event.clone()));
            let FindingEvent::Opened(finding) = &event else { panic!("{event:?}") };
            assert_eq!(finding_to_wire(finding), detail(reason, probe), "told on in the same words");
            // It clears what it opened.
            let cleared = v1::FindingCleared {
                subject: detail(reason, probe).subject,
                reason: reason.to_owned(),
                ..Default::default()
            };
            let cleared = v1::FindingEvent { event: Some(v1::finding_event::Event::Cleared(cleared)) };
            assert_eq!(finding_event(&cleared.encode_to_vec()).unwrap().key(), &finding.key);
        }
        let happened = v1::FindingEvent { event: Some(v1::finding_event::Event::Occurred(detail("boo", "sqlite"))) };
        let happened = finding_event(&happened.encode_to_vec()).unwrap();
        assert_eq!(happened.key().reason, Reason::UnknownOccurrence);
        let mut valued = detail("sqlite_corrupt", "sqlite");
        valued.evidence.insert("aura".to_owned(), v1::EvidenceValue { value: None });
        let valued = finding_event(&opened(valued)).unwrap();
        assert_eq!(valued.finding().unwrap().evidence.get("aura"), Some(&Value::Text(UNREADABLE.to_owned())));
    }

    #[test]
    fn what_is_no_name_and_what_stands_for_others_is_refused() {
        let long = "x".repeat(CODE_BYTES_MAX + 1);
        for reason in ["", "Boo", "b oo", "_boo", "1boo", "boo\n", "b\u{202e}oo", "a/b", "unknown_condition", &long] {
            assert!(finding_event(&opened(detail(reason, "sqlite"))).is_err(), "{reason:?}");
            assert!(finding_event(&opened(detail(reason, "seance"))).is_err(), "{reason:?}");
        }
        for probe in ["", "Seance", "sé", "a/b", "unknown", &long] {
            assert!(finding_event(&opened(detail("sqlite_corrupt", probe))).is_err(), "{probe:?}");
            assert!(finding_event(&opened(detail("boo", probe))).is_err(), "{probe:?}");
        }
        let widest = "x".repeat(CODE_BYTES_MAX);
        assert!(finding_event(&opened(detail(&widest, &widest))).is_ok());
    }

    #[test]
    fn limits_are_errors_with_the_field_named() {
        let mut large = sample(Reason::SqliteCorrupt);
        large.summary = "x".repeat(SUMMARY_BYTES_MAX + 1);
        let error = finding_event(&encode_finding_event(&FindingEvent::Opened(large))).unwrap_err();
        assert_eq!(error.to_string(), "summary has 901 bytes, at most 900 are allowed");
        assert_eq!(severity(0).unwrap_err().to_string(), "severity has the unknown value 0");
        assert!(severity(-1).is_err() && severity(6).is_err());
        assert_eq!(finding_event(&[0xff; 8]), Err(WireError::Encoding("body")));
    }

    #[test]
    fn the_largest_heartbeat_fits_its_bound() {
        let heartbeat = v1::Heartbeat {
            sequence: u64::MAX,
            open_digest: u64::MAX,
            head_sequence: u64::MAX,
            boottime_ms: u64::MAX,
            memory_available_bytes: u64::MAX,
            evicted_entries: u64::MAX,
            wall_unix_ms: i64::MIN,
        };
        let message = v1::ConnectRequest { message: Some(v1::connect_request::Message::Heartbeat(heartbeat)) };
        assert!(message.encoded_len() <= HEARTBEAT_BYTES_MAX, "{}", message.encoded_len());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body: Vec<u8>) {
            let _outcome = finding_event(&body).is_ok();
        }

        #[test]
        fn timestamps_round_trip(ms in -62_135_596_800_000i64..253_402_207_200_000) {
            let time = Timestamp::from_unix_ms(ms);
            proptest::prop_assert_eq!(timestamp(&timestamp_to_wire(time)), time);
        }
    }
}
