//! What `doctor` found, and its JSON: one object, findings worst first, a contract that programs rely on.

use crate::senses::sqlite::NOT_DEEP;
use muster_agent_core::diagnose::{Link, Recent, Relation, Story, stories};
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_agent_core::services::Services;
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::{Finding, ProbeKind, SubjectKey};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use std::fmt;
use std::time::Duration;

/// One probe's run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// About what.
    pub subject: SubjectKey,
    /// What it said.
    pub judgement: Judgement,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// As people take it: what happened (a kill) is no "ok" either, although nothing is open.
    pub fn verdict(&self) -> Verdict {
        if self.judgement.occurrences.is_empty() { self.judgement.verdict() } else { Verdict::Problem }
    }
}

/// The command that tells of kills that are history; a remark with it is about the host.
pub(super) const OLD_KILLS_COMMAND: &str = "muster-agent doctor --kmsg-file /dev/kmsg";

/// A clock that nothing keeps right, where the config does not ask for that.
pub(super) const UNKEPT_CLOCK: &str = "nothing keeps this host's clock right, says the kernel: timedatectl; with \
                                       `synchronised = true` in [clock] that is a finding";

/// Databases of which a glance did not see everything.
pub(super) fn read_in_part(ran: &[Ran]) -> Option<String> {
    let glanced = |ran: &&Ran| {
        let says_so = |value: &Value| matches!(value, Value::Text(text) if text == NOT_DEEP);
        ran.judgement.seen.get("deep_check").is_some_and(says_so)
    };
    let databases = ran.iter().filter(glanced).count();
    let them = if databases == 1 { "1 database was".to_owned() } else { format!("{databases} databases were") };
    (databases > 0).then(|| format!("{them} checked quickly; --deep checks all of it, on a copy"))
}

/// A cause that the running agent tells, and that was not found here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSays {
    /// The service.
    pub service: String,
    /// How bad, with all that belongs to it.
    pub severity: Severity,
    /// Reason code.
    pub reason: String,
    /// About what, where it is open.
    pub subject: String,
    /// The one sentence.
    pub summary: String,
    /// It lasts; else it happened lately.
    pub open: bool,
    /// When it happened, and how long ago that was, where the agent tells.
    #[serde(default)]
    pub happened: Option<(Timestamp, Duration)>,
    /// It was open there still, and this look saw it to be over.
    #[serde(default)]
    pub over: bool,
    /// What a person could do, in order.
    pub next_steps: Vec<String>,
    /// What was found here and is a symptom of it: reason and subject.
    #[serde(default)]
    pub seen_here: Vec<String>,
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unanswered {
    /// The service.
    pub service: String,
    /// The kind of question.
    pub probe: String,
    /// About what.
    pub subject: String,
    /// Why.
    pub why: String,
    /// What would let the agent see.
    pub way_out: Option<String>,
    /// Another answer tells what is behind it.
    #[serde(default)]
    pub told_elsewhere: bool,
}

/// A key of the config that no probe of this version asks about. A remark: it says nothing about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotWatched {
    /// The service.
    pub service: String,
    /// The key.
    pub key: &'static str,
    /// Its value, where that tells something.
    pub subject: String,
}

impl fmt::Display for NotWatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, key, subject } = self;
        write!(f, "{service} {key}{}{subject}", if subject.is_empty() { "" } else { " " })
    }
}

/// Everything `doctor` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Host name, as the kernel has it.
    pub host: String,
    /// Worst first, then by service, probe, subject and reason.
    pub findings: Vec<Finding>,
    /// The findings as causes with what belongs to them, worst first.
    pub stories: Vec<Story>,
    /// What the agent that runs on the host says beside, worst first.
    pub agent_says: Vec<AgentSays>,
    /// In order of subject.
    pub unknown: Vec<Unanswered>,
    /// In order of subject.
    pub probes: Vec<Ran>,
    /// Configured, and no probe asks about it yet.
    pub not_watched: Vec<NotWatched>,
    /// Remarks about the run itself, for people.
    pub notes: Vec<String>,
}

/// The overall verdict, in the words of monitoring plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overall {
    /// Nothing wrong, everything answered.
    Ok,
    /// The worst finding is sev3 or sev4.
    Warning,
    /// The worst finding is sev2 or worse.
    Critical,
    /// Nothing wrong was seen, but not everything was answered.
    Unknown,
}

impl Overall {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Unknown => "unknown",
        }
    }

    /// The exit status.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }
}

/// Whether a run tells why nothing about `question` can be told: its file is not there, or no database, or damaged.
/// Whatever else is wrong with a file (a lock, a mode, a row too many), it says nothing of a question about it.
fn answers(ran: &Ran, question: &SubjectKey) -> bool {
    if ran.subject.probe != ProbeKind::Sqlite || ran.subject.service != question.service {
        return false;
    }
    let same = ran.subject.subject == question.subject;
    ran.judgement.problems.iter().any(|problem| match problem.reason {
        Reason::SqliteMissing | Reason::SqliteNotADatabase | Reason::SqliteCorrupt | Reason::SqliteShrunk => {
            same || is_query_of(question, &ran.subject)
        }
        // The probe itself leaves it alone; a query is asked of a copy.
        Reason::SqliteJournalHot => ran.subject == *question,
        _ => false,
    })
}

/// A query's subject is "FILE: NAME".
fn is_query_of(query: &SubjectKey, database: &SubjectKey) -> bool {
    let of_file = || query.subject.strip_prefix(&database.subject).is_some_and(|rest| rest.starts_with(": "));
    query.probe == ProbeKind::Query && database.probe == ProbeKind::Sqlite && of_file()
}

impl Report {
    /// From the runs. `recent` has noted them.
    pub fn new(host: String, mut probes: Vec<Ran>, recent: &Recent, services: &Services) -> Self {
        probes.sort_by(|a, b| a.subject.cmp(&b.subject));
        let (mut findings, mut unknown) = (Vec::new(), Vec::new());
        for ran in &probes {
            let problems = ran.judgement.problems.iter().chain(&ran.judgement.occurrences);
            findings.extend(problems.map(|problem| problem.finding(&ran.subject)));
            let told = probes.iter().any(|other| answers(other, &ran.subject));
            unknown.extend(ran.judgement.unknown.as_ref().map(|unknown| Unanswered {
                service: ran.subject.service.to_string(),
                probe: ran.subject.probe.to_string(),
                subject: ran.subject.subject.clone(),
                why: unknown.why.clone(),
                way_out: unknown.way_out.clone(),
                told_elsewhere: unknown.told_elsewhere || told,
            }));
        }
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.key.cmp(&b.key)));
        unknown.sort_by(|a, b| (&a.service, &a.probe, &a.subject).cmp(&(&b.service, &b.probe, &b.subject)));
        let stories = stories(&findings, recent, services);
        let (agent_says, not_watched, notes) = (Vec::new(), Vec::new(), Vec::new());
        Self { host, findings, stories, agent_says, unknown, probes, not_watched, notes }
    }

    /// Adds remarks.
    #[must_use]
    pub fn remarks(mut self, not_watched: Vec<NotWatched>, notes: Vec<String>) -> Self {
        self.not_watched.extend(not_watched);
        self.notes.extend(notes);
        self
    }

    /// Only what concerns one service.
    #[must_use]
    pub fn only(mut self, service: &str) -> Self {
        let kept = |finding: &Finding| finding.key.subject.service.as_str() == service;
        let mut places = self.findings.iter().filter(|finding| kept(finding)).enumerate();
        let place: Vec<Option<usize>> = self
            .findings
            .iter()
            .map(|finding| kept(finding).then(|| places.next()).flatten().map(|(at, _)| at))
            .collect();
        let place = |at: usize| place.get(at).copied().flatten();
        self.stories = std::mem::take(&mut self.stories)
            .into_iter()
            .filter_map(|mut story| {
                story.cause = place(story.cause)?;
                for links in [&mut story.links, &mut story.shared] {
                    let moved = links.iter().filter_map(|link| Some(Link { finding: place(link.finding)?, ..*link }));
                    *links = moved.collect();
                }
                Some(story)
            })
            .collect();
        self.findings.retain(kept);
        self.agent_says.retain(|said| said.service == service);
        // What is history of the whole host, or its clock, is not about one service; nor are others' databases.
        let of_host = |note: &str| note.ends_with(OLD_KILLS_COMMAND) || note == UNKEPT_CLOCK;
        let of_all = read_in_part(&self.probes);
        self.notes.retain(|note| (service == "host" || !of_host(note)) && Some(note) != of_all.as_ref());
        self.unknown.retain(|unknown| unknown.service == service);
        self.probes.retain(|ran| ran.subject.service.as_str() == service);
        self.notes.extend(of_all.and_then(|_| read_in_part(&self.probes)));
        self.not_watched.retain(|not_watched| not_watched.service == service);
        self
    }

    /// Whether something that only the running agent knows, and that lasts, is worse than all that is told of what was
    /// found here: a symptom that is told with the agent's word counts there.
    pub fn agent_knows_worse(&self) -> bool {
        self.worst_said() > self.stories.iter().map(|story| story.severity).max()
    }

    fn worst_said(&self) -> Option<Severity> {
        self.agent_says.iter().filter(|said| said.open).map(|said| said.severity).max()
    }

    /// The overall verdict.
    pub fn overall(&self) -> Overall {
        match self.findings.iter().map(|finding| finding.severity).chain(self.worst_said()).max() {
            Some(severity) if severity >= Severity::Sev2 => Overall::Critical,
            Some(_) => Overall::Warning,
            None if self.unanswered().next().is_none() => Overall::Ok,
            None => Overall::Unknown,
        }
    }

    /// What was not answered and is told by no other answer.
    pub fn unanswered(&self) -> impl Iterator<Item = &Unanswered> {
        self.unknown.iter().filter(|unknown| !unknown.told_elsewhere)
    }

    /// How many probes said ok.
    pub fn ok_count(&self) -> usize {
        self.probes.iter().filter(|ran| ran.verdict() == Verdict::Ok).count()
    }

    fn diagnoses_json(&self) -> Vec<serde_json::Value> {
        let named = |at: usize| {
            let key = self.findings.get(at).map(|finding| &finding.key);
            json!({
                "reason": key.map(|key| key.reason.as_str()),
                "probe": key.map(|key| key.subject.probe.as_str()),
                "subject": key.map(|key| key.subject.subject.as_str()),
            })
        };
        let link = |link: &Link| {
            let mut object = named(link.finding);
            object["relation"] = json!(relation_str(link.relation));
            object["grade"] = json!(link.grade.as_str());
            object
        };
        let story = |story: &Story| {
            json!({
                "service": self.findings.get(story.cause).map(|finding| finding.key.subject.service.as_str()),
                "severity": story.severity.as_str(),
                "summary": story.sentence,
                "cause": named(story.cause),
                "links": story.links.iter().map(link).collect::<Vec<_>>(),
                "shared": story.shared.iter().map(link).collect::<Vec<_>>(),
                "unknown": story.unknown,
                "next_steps": story.next_steps,
            })
        };
        self.stories.iter().map(story).collect()
    }

    fn agent_says_json(&self) -> Vec<serde_json::Value> {
        let said = |said: &AgentSays| {
            json!({
                "service": said.service, "severity": said.severity.as_str(), "reason": said.reason,
                "subject": said.subject, "summary": said.summary, "open": said.open, "next_steps": said.next_steps,
                "seen_here": said.seen_here, "happened_at": said.happened.map(|(at, _)| at.to_string()),
            })
        };
        self.agent_says.iter().map(said).collect()
    }

    /// One JSON object on several lines, safe to print on a terminal.
    pub fn to_json(&self) -> String {
        self.to_json_with(None)
    }

    /// With one more key in the object.
    pub fn to_json_with(&self, more: Option<(&str, serde_json::Value)>) -> String {
        let findings: Vec<_> = self.findings.iter().map(finding_json).collect();
        let unknown: Vec<_> = self
            .unknown
            .iter()
            .map(|unknown| {
                json!({
                    "service": unknown.service, "probe": unknown.probe, "subject": unknown.subject,
                    "why": unknown.why, "way_out": unknown.way_out, "told_elsewhere": unknown.told_elsewhere,
                })
            })
            .collect();
        let probes: Vec<_> = self
            .probes
            .iter()
            .map(|ran| {
                let mut probe = subject_json(&ran.subject);
                probe.insert("verdict".to_owned(), json!(ran.verdict().as_str()));
                probe.insert("took_ms".to_owned(), json!(u64::try_from(ran.took.as_millis()).unwrap_or(u64::MAX)));
                probe
            })
            .collect();
        let not_watched = self.not_watched.iter();
        let not_watched = not_watched.map(|what| format!("{what}: configured, but this version has no probe for it"));
        let notes: Vec<String> = self.notes.iter().cloned().chain(not_watched).collect();
        let mut object = json!({
            "host": self.host, "verdict": self.overall().as_str(), "diagnoses": self.diagnoses_json(),
            "findings": findings, "agent_says": self.agent_says_json(), "unknown": unknown, "probes": probes, "notes": notes,
        });
        if let Some((key, value)) = more {
            object[key] = value;
        }
        let text = serde_json::to_string_pretty(&object).unwrap_or_default();
        // JSON lets some control characters stand that a terminal obeys; escaped they mean the same.
        let risky = |c: char| (c.is_control() && c != '\n') || super::text::reorders(c);
        text.chars().map(|c| if risky(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() }).collect()
    }
}

/// How a link is told.
pub const fn relation_str(relation: Relation) -> &'static str {
    match relation {
        Relation::Because => "because",
        Relation::Symptom => "symptom",
        Relation::Earlier => "earlier",
    }
}

fn subject_json(subject: &SubjectKey) -> Map<String, serde_json::Value> {
    let mut map = Map::new();
    map.insert("service".to_owned(), json!(subject.service.as_str()));
    map.insert("probe".to_owned(), json!(subject.probe.as_str()));
    map.insert("subject".to_owned(), json!(subject.subject));
    map
}

fn finding_json(finding: &Finding) -> serde_json::Value {
    let subject = &finding.key.subject;
    json!({
        "reason": finding.key.reason.as_str(),
        "severity": finding.severity.as_str(),
        "service": subject.service.as_str(),
        "probe": subject.probe.as_str(),
        "subject": subject.subject,
        "summary": finding.summary,
        "evidence": evidence_json(&finding.evidence),
        "grade": finding.grade.as_str(),
        "next_steps": finding.next_steps,
    })
}

/// Plain values: the unit is in the key.
fn evidence_json(evidence: &Evidence) -> Map<String, serde_json::Value> {
    let plain = |value: &Value| match value {
        Value::Text(text) => json!(text),
        Value::Count(number) | Value::Bytes(number) | Value::Millis(number) => json!(number),
        Value::Integer(number) => json!(number),
        Value::Time(time) => json!(time.to_string()),
        Value::Flag(flag) => json!(flag),
    };
    evidence.iter().map(|(key, value)| (key.to_owned(), plain(value))).collect()
}
