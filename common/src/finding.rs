//! What an agent reports.

use crate::evidence::{Evidence, Grade};
use crate::ids::ServiceName;
use crate::limits::{NEXT_STEP_BYTES_MAX, NEXT_STEPS_MAX, SUBJECT_BYTES_MAX, SUMMARY_BYTES_MAX, clip};
use crate::reason::{Reason, ReasonKind};
use crate::severity::Severity;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

macro_rules! probes {
    ($($name:ident $code:literal $doc:literal),* $(,)?) => {
        /// A kind of question asked of the host about one subject of a service.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ProbeKind {
            $(#[doc = $doc] $name,)*
        }

        impl ProbeKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The snake_case code.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

probes! {
    PidFile "pid_file" "A pid file and the process it names.",
    Port "port" "A TCP or Unix-socket listener.",
    Memory "memory" "MemAvailable of the host.",
    Oom "oom" "Kernel OOM kills.",
    Sqlite "sqlite" "A SQLite database.",
    Unit "unit" "A systemd unit.",
    Process "process" "The main process of a service: its life, its descriptors, its memory, its children.",
    Lock "lock" "Who holds a file lock and who waits for it.",
    Query "query" "A read-only SQL assertion about a database.",
    Backup "backup" "The copies of one file or database.",
    Log "log" "A log file or the journal of a unit.",
    Health "health" "A health endpoint over HTTP.",
    Disk "disk" "A file system that a service's files live on.",
    Clock "clock" "The host's clock.",
    Baseline "baseline" "What was declared of sysctls, limits, unit properties and files.",
    Permission "permission" "Modes and owners of a service's pid files, databases and keys.",
    Pressure "pressure" "Memory stalls and the memory limits of a service's own cgroup.",
    Report "report" "What an application told over the local socket.",
    Agent "agent" "The agent itself: blind probes, its own limits.",
    Unknown "unknown" "A newer agent's, which this program does not know: its name stands in the subject.",
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProbeKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or_else(|| format!("unknown probe {text:?}"))
    }
}

/// One thing that is watched: the unit of a verdict.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SubjectKey {
    /// The service, or [`ServiceName::host`].
    pub service: ServiceName,
    /// The kind of question.
    pub probe: ProbeKind,
    /// The path, address or name asked about; at most [`SUBJECT_BYTES_MAX`] bytes, and behind it the names of
    /// [`FindingKey::foreign`].
    pub subject: String,
}

impl SubjectKey {
    /// Joins the parts; the subject is clipped to its bound.
    pub fn new(service: ServiceName, probe: ProbeKind, subject: &str) -> Self {
        Self { service, probe, subject: clip(subject, SUBJECT_BYTES_MAX) }
    }

    /// One of a probe that this program does not know.
    pub fn foreign(service: ServiceName, probe: &str, subject: &str) -> Self {
        Self { service, probe: ProbeKind::Unknown, subject: format!("{subject} ({probe})") }
    }

    /// Probe and subject in the agent's own words.
    pub fn told(&self) -> (&str, &str) {
        match names_behind(&self.subject).filter(|_| self.probe == ProbeKind::Unknown) {
            Some((subject, names)) => (names.split_once('/').map_or(names, |(probe, _)| probe), subject),
            None => (self.probe.as_str(), &self.subject),
        }
    }
}

/// The subject before the names of what is not known, and those: `SUBJECT (PROBE/REASON)`.
fn names_behind(text: &str) -> Option<(&str, &str)> {
    text.strip_suffix(')')?.rsplit_once(" (")
}

impl fmt::Display for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.service, self.probe, self.subject)
    }
}

/// Identity of a finding within one agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "WrittenKey")]
pub struct FindingKey {
    /// What it is about.
    #[serde(flatten)]
    pub subject: SubjectKey,
    /// What is wrong with it.
    pub reason: Reason,
}

/// A key as it is written: its parts side by side. Read by itself, since serde's `flatten` copies what it reads first, and
/// a journal is full of keys.
#[derive(Deserialize)]
struct WrittenKey {
    service: ServiceName,
    probe: ProbeKind,
    subject: String,
    reason: Reason,
}

impl From<WrittenKey> for FindingKey {
    fn from(WrittenKey { service, probe, subject, reason }: WrittenKey) -> Self {
        Self { subject: SubjectKey { service, probe, subject }, reason }
    }
}

impl FindingKey {
    /// What an agent tells that knows more than this program: a reason or a probe that is not known here has a stand-in,
    /// and the subject both names. So people see them, two such reasons about one subject stay two findings, and the
    /// digest is the agent's.
    pub fn foreign(service: ServiceName, probe: &str, subject: &str, reason: &str, kind: ReasonKind) -> Self {
        let subject = SubjectKey {
            service,
            probe: probe.parse().unwrap_or(ProbeKind::Unknown),
            subject: format!("{subject} ({probe}/{reason})"),
        };
        Self { subject, reason: reason.parse().unwrap_or(Reason::stand_in(kind)) }
    }

    /// Whether a stand-in is part of it.
    pub fn is_foreign(&self) -> bool {
        self.reason.is_stand_in() || self.subject.probe == ProbeKind::Unknown
    }

    /// Probe, subject and reason in the agent's own words.
    pub fn told(&self) -> (&str, &str, &str) {
        let names = names_behind(&self.subject.subject).filter(|_| self.is_foreign());
        match names.and_then(|(subject, names)| Some((subject, names.split_once('/')?))) {
            Some((subject, (probe, reason))) => (probe, subject, reason),
            None => (self.subject.probe.as_str(), &self.subject.subject, self.reason.as_str()),
        }
    }

    /// This key's share of an [`open_digest`]: the first eight bytes of SHA-256 over the length-prefixed parts.
    pub fn digest_term(&self) -> u64 {
        let mut hash = Sha256::new();
        let (probe, subject, reason) = self.told();
        for part in [self.subject.service.as_str(), probe, subject, reason] {
            hash.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let bytes = hash.finalize();
        let mut first = [0u8; 8];
        first.copy_from_slice(&bytes[..8]);
        u64::from_be_bytes(first)
    }
}

impl fmt::Display for FindingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.subject, self.reason)
    }
}

/// Digest of a set of open conditions: the XOR of their terms, so it can be kept up to date in O(1) and does not
/// depend on order. The empty set is 0.
pub fn open_digest<'a>(keys: impl IntoIterator<Item = &'a FindingKey>) -> u64 {
    keys.into_iter().fold(0, |digest, key| digest ^ key.digest_term())
}

/// Something wrong, with its proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Identity.
    pub key: FindingKey,
    /// The agent's view; the coordinator's policy may differ.
    pub severity: Severity,
    /// How sure.
    pub grade: Grade,
    /// One sentence: what happened and why.
    pub summary: String,
    /// The proof.
    pub evidence: Evidence,
    /// What a person could do now, in order. Printed, never executed.
    pub next_steps: Vec<String>,
}

impl Finding {
    /// A confirmed finding of the reason's default severity, without evidence or steps yet.
    pub fn new(key: FindingKey, summary: &str) -> Self {
        let severity = key.reason.default_severity();
        Self {
            key,
            severity,
            grade: Grade::Confirmed,
            summary: clip(summary, SUMMARY_BYTES_MAX),
            evidence: Evidence::new(),
            next_steps: Vec::new(),
        }
    }

    /// Sets the evidence.
    #[must_use]
    pub fn evidence(mut self, evidence: Evidence) -> Self {
        self.evidence = evidence;
        self
    }

    /// Sets the severity.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// Sets the grade.
    #[must_use]
    pub fn grade(mut self, grade: Grade) -> Self {
        self.grade = grade;
        self
    }

    /// Sets what to do next, clipped to the bounds.
    #[must_use]
    pub fn next_steps<S: AsRef<str>>(mut self, steps: impl IntoIterator<Item = S>) -> Self {
        self.next_steps =
            steps.into_iter().take(NEXT_STEPS_MAX).map(|step| clip(step.as_ref(), NEXT_STEP_BYTES_MAX)).collect();
        self
    }
}

/// One change in what an agent knows to be wrong. The body of a spool entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingEvent {
    /// A condition became true.
    Opened(Finding),
    /// An open condition has new evidence, severity or wording.
    Updated(Finding),
    /// A condition is over, by this evidence of health.
    Cleared {
        /// Which.
        key: FindingKey,
        /// Why we believe so.
        summary: String,
        /// The proof.
        evidence: Evidence,
    },
    /// Something happened at a point in time.
    Occurred(Finding),
}

impl FindingEvent {
    /// The finding's identity.
    pub fn key(&self) -> &FindingKey {
        match self {
            Self::Opened(finding) | Self::Updated(finding) | Self::Occurred(finding) => &finding.key,
            Self::Cleared { key, .. } => key,
        }
    }

    /// The finding, unless it is a clear.
    pub fn finding(&self) -> Option<&Finding> {
        match self {
            Self::Opened(finding) | Self::Updated(finding) | Self::Occurred(finding) => Some(finding),
            Self::Cleared { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(subject: &str, reason: Reason) -> FindingKey {
        FindingKey { subject: SubjectKey::new(ServiceName::host(), ProbeKind::Port, subject), reason }
    }

    #[test]
    fn digest_ignores_order_and_sees_every_difference() {
        let (a, b) = (key("1", Reason::PortClosed), key("2", Reason::PortClosed));
        assert_eq!(open_digest([&a, &b]), open_digest([&b, &a]));
        assert_ne!(open_digest([&a]), open_digest([&b]));
        assert_ne!(open_digest([&a]), open_digest([&key("1", Reason::PortConflict)]));
        assert_eq!(open_digest([]), 0);
    }

    /// The digest of an agent that knows a reason or a probe is that of a coordinator that does not.
    #[test]
    fn what_is_not_known_keeps_its_words_and_its_digest() {
        let digest = |parts: [&str; 4]| {
            let mut hash = Sha256::new();
            for part in parts {
                hash.update(u32::try_from(part.len()).unwrap().to_be_bytes());
                hash.update(part.as_bytes());
            }
            u64::from_be_bytes(hash.finalize()[..8].try_into().unwrap())
        };
        for (probe, subject, reason) in [
            ("port", "127.0.0.1:1", "port_haunted"),
            ("seance", "a (b/c) (d)", "port_closed"),
            ("seance", "", "port_haunted"),
        ] {
            let key = FindingKey::foreign(ServiceName::host(), probe, subject, reason, ReasonKind::Condition);
            assert!(key.is_foreign());
            assert_eq!(key.told(), (probe, subject, reason));
            assert_eq!(key.digest_term(), digest(["host", probe, subject, reason]));
            let again: FindingKey = serde_json::from_str(&serde_json::to_string(&key).unwrap()).unwrap();
            assert_eq!(again, key);
            let watched = SubjectKey::foreign(ServiceName::host(), "seance", subject);
            assert_eq!(watched.told(), ("seance", subject));
        }
        // A journal may hold anything; and what is known is taken by its word.
        for subject in ["", "x", "x)", "x (y)", " (/)"] {
            let known = key(subject, Reason::PortClosed);
            assert_eq!(known.told(), ("port", subject, "port_closed"));
            let _no_panic = key(subject, Reason::UnknownCondition).told();
        }
    }

    #[test]
    fn a_key_is_read_as_it_is_written_in_any_order() {
        let key = key("1", Reason::PortClosed);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(text, r#"{"service":"host","probe":"port","subject":"1","reason":"port_closed"}"#);
        assert_eq!(serde_json::from_str::<FindingKey>(&text).unwrap(), key);
        let other = r#"{"reason":"port_closed","later":{},"subject":"1","service":"host","probe":"port"}"#;
        assert_eq!(serde_json::from_str::<FindingKey>(other).unwrap(), key);
        assert!(serde_json::from_str::<FindingKey>(r#"{"service":"host","probe":"port","subject":"1"}"#).is_err());
    }
}
