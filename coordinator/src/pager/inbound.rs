//! What PagerDuty tells back: its v3 webhooks, signed, about an incident that a person acknowledged or resolved there.
//!
//! PURE but for the reading of keys. Whatever has no valid signature is not even parsed.

use super::receiver::{ReceiverError, read};
use super::secret::{Secret, SecretFile};
use super::signature;
use arc_swap::ArcSwap;
use muster_common::config::Reader;
use muster_common::limits::clip;
use serde::Deserialize;
use std::sync::Arc;

/// Largest body that is read; real ones have a few kilobytes.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// The header with the signatures.
pub const SIGNATURE_HEADER: &str = "x-pagerduty-signature";
/// Under which name its events are remembered.
pub const SOURCE: &str = "pagerduty";
/// Longest id of an event, longest deduplication key, longest name of a person that are taken.
const ID_BYTES_MAX: usize = 128;
const KEY_BYTES_MAX: usize = 255;
const NAME_BYTES_MAX: usize = 64;
/// Secrets at the same time: one for each subscription, and the old ones while they are rotated.
const SECRETS_MAX: usize = 8;

/// What somebody did there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Took it.
    Acknowledged,
    /// Closed it.
    Resolved,
}

/// An event that concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The same again is the same event again.
    pub id: String,
    /// What.
    pub deed: Deed,
    /// The deduplication key under which we told of it.
    pub dedup_key: String,
    /// Who, as PagerDuty calls them.
    pub by: String,
}

/// Why nothing follows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No or no valid signature.
    #[error("no valid signature: compare the secret of the webhook subscription with secret_files")]
    Unsigned,
    /// Signed, but not what is documented.
    #[error("not a webhook of version 3: {0}")]
    Malformed(String),
    /// Signed and well, and none of our business: another kind of event, or not done by a person.
    #[error("nothing follows from {0}")]
    Ignored(String),
}

/// The secrets of the subscriptions.
#[derive(Debug)]
pub struct Inbound {
    files: Vec<SecretFile>,
    secrets: ArcSwap<Vec<Secret>>,
}

/// Reads `[pagerduty_webhook]`; mistakes are noted in the reader. Empty: nothing is taken.
pub fn read_inbound(root: &Reader<'_>) -> Vec<SecretFile> {
    let Some(table) = root.table("pagerduty_webhook") else { return Vec::new() };
    super::config::refuse_secret(&table, "secret", "secret_files");
    let Some(value) = table.required("secret_files") else { return Vec::new() };
    let files = table.list("secret_files", SecretFile::parse);
    if value.is_array() && (value.items().is_empty() || value.items().len() > SECRETS_MAX) {
        value.mistake("the secrets of the webhook subscriptions", &format!("expected 1 to {SECRETS_MAX} files"));
    }
    files
}

impl Inbound {
    /// Reads the secrets.
    pub fn open(files: Vec<SecretFile>) -> Result<Self, ReceiverError> {
        let secrets = ArcSwap::from_pointee(read_all(&files)?);
        Ok(Self { files, secrets })
    }

    /// Reads them again.
    pub fn reload(&self) -> Result<(), ReceiverError> {
        self.secrets.store(Arc::new(read_all(&self.files)?));
        Ok(())
    }

    /// What a call says, if it is signed and concerns us.
    pub fn event(&self, signatures: &str, body: &[u8]) -> Result<Event, Refusal> {
        if !signature::is_signed(&self.secrets.load(), "v1", signatures, body) {
            return Err(Refusal::Unsigned);
        }
        parse(body)
    }
}

fn read_all(files: &[SecretFile]) -> Result<Vec<Secret>, ReceiverError> {
    let sound = |text: &str| text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic());
    let expected = "the secret of a webhook subscription (at least 16 printable characters, alone in the file)";
    files.iter().map(|file| read("pagerduty_webhook", file, sound, expected)).collect()
}

#[derive(Deserialize)]
struct Envelope {
    event: Wire,
}

#[derive(Deserialize)]
struct Wire {
    id: String,
    event_type: String,
    #[serde(default)]
    agent: Option<Agent>,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Agent {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    summary: Option<String>,
    #[serde(default)]
    id: Option<String>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    incident_key: Option<String>,
}

/// What is documented of an event, and no more.
fn parse(body: &[u8]) -> Result<Event, Refusal> {
    let envelope: Envelope = serde_json::from_slice(body).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let Wire { id, event_type, agent, data } = envelope.event;
    let shown = clip(&event_type, NAME_BYTES_MAX).escape_debug().to_string();
    let deed = match event_type.as_str() {
        "incident.acknowledged" => Deed::Acknowledged,
        "incident.resolved" => Deed::Resolved,
        _ => return Err(Refusal::Ignored(shown)),
    };
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(Refusal::Malformed("an event without a sound id".to_owned()));
    }
    // What our own calls did there comes back as well, by an integration.
    let Some(agent) = agent.filter(|agent| agent.kind.starts_with("user")) else {
        return Err(Refusal::Ignored(format!("{shown} that no person did")));
    };
    let Some(dedup_key) = data.and_then(|data| data.incident_key).filter(|key| key.len() <= KEY_BYTES_MAX) else {
        return Err(Refusal::Ignored(format!("{shown} without a key")));
    };
    let name = agent.summary.or(agent.id).filter(|name| !name.trim().is_empty());
    let name = name.unwrap_or_else(|| "somebody".to_owned());
    let name: String = name.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    Ok(Event { id, deed, dedup_key, by: format!("{SOURCE}:{}", clip(name.trim(), NAME_BYTES_MAX)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn body(event_type: &str, agent: &str) -> Vec<u8> {
        json!({ "event": {
            "id": "01BE3P4VV8WLOT1WQ8KTO2XK4J",
            "event_type": event_type,
            "resource_type": "incident",
            "occurred_at": "2026-11-21T17:32:15.000Z",
            "agent": { "id": "PLH1HKV", "type": agent, "summary": "Ann \u{1b}[31mOnCall" },
            "client": null,
            "data": { "id": "PGR0VU2", "type": "incident", "incident_key": "abc", "status": "acknowledged" },
        }})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn a_persons_deed_is_read_and_others_are_not() {
        let event = parse(&body("incident.acknowledged", "user_reference")).unwrap();
        assert_eq!((event.deed, event.dedup_key.as_str()), (Deed::Acknowledged, "abc"));
        assert_eq!(event.by, "pagerduty:Ann  [31mOnCall");
        assert_eq!(parse(&body("incident.resolved", "user_reference")).unwrap().deed, Deed::Resolved);
        for (kind, agent) in [
            ("incident.acknowledged", "events_api_v2_inbound_integration_reference"),
            ("incident.triggered", "user_reference"),
            ("pagey.ping", "user_reference"),
        ] {
            assert!(matches!(parse(&body(kind, agent)), Err(Refusal::Ignored(_))), "{kind} {agent}");
        }
        assert!(matches!(parse(b"{}"), Err(Refusal::Malformed(_))));
    }

    #[test]
    fn unsigned_is_not_parsed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "a-long-enough-secret\n").unwrap();
        let inbound = Inbound::open(vec![file.clone().into()]).unwrap();
        assert_eq!(inbound.event("", b"{"), Err(Refusal::Unsigned));
        assert_eq!(inbound.event(&format!("v1={}", "00".repeat(32)), b"{"), Err(Refusal::Unsigned));
        std::fs::write(&file, "short").unwrap();
        let error = inbound.reload().unwrap_err().to_string();
        assert!(error.contains("at least 16") && !error.contains("short"), "{error}");
        assert!(!format!("{inbound:?}").contains("long-enough"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_a_refusal(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            parse(&bytes).ok();
        }

        #[test]
        fn any_names_are_bounded(id in "\\PC{0,200}", key in "\\PC{0,300}", name in ".{0,200}") {
            let body = json!({ "event": { "id": id, "event_type": "incident.resolved",
                "agent": { "type": "user_reference", "summary": name }, "data": { "incident_key": key } } });
            if let Ok(event) = parse(body.to_string().as_bytes()) {
                prop_assert!(event.id.len() <= ID_BYTES_MAX && event.dedup_key.len() <= KEY_BYTES_MAX);
                prop_assert!(event.by.len() <= SOURCE.len() + 1 + NAME_BYTES_MAX && !event.by.contains(char::is_control));
            }
        }
    }
}
