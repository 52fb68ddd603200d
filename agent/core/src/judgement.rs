//! What one run of a probe found out about its subject.

use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::finding::{Finding, FindingKey, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use serde::{Deserialize, Serialize};

/// How the process is that a probe looks at, in its evidence.
pub const PROCESS_KEY: &str = "process";
/// It is no more.
pub const HAS_ENDED: &str = "has ended";

/// The short answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Evidence of health was seen.
    Ok,
    /// At least one thing is wrong.
    Problem,
    /// The question could not be answered; raises nothing and clears nothing.
    Unknown,
}

impl Verdict {
    /// `"ok"`, `"problem"` or `"unknown"`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Problem => "problem",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that is wrong (a condition) or that happened (an occurrence).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What.
    pub reason: Reason,
    /// How bad, where the reason's default does not fit.
    pub severity: Option<Severity>,
    /// How sure.
    pub grade: Grade,
    /// One sentence: what happened and why.
    pub summary: String,
    /// The proof.
    pub evidence: Evidence,
    /// What a person could do, in order.
    pub next_steps: Vec<String>,
    /// `CLOCK_BOOTTIME` of what happened, where it is older than the run that found it (a kernel record).
    pub observed_boottime_ms: Option<u64>,
    /// The service it concerns, where that is another than the probe's subject (the victim of an OOM kill).
    pub service: Option<ServiceName>,
    /// What it concerns, where that is another than the probe's subject (what an application reports about).
    pub subject: Option<String>,
}

impl Problem {
    /// A confirmed problem with nothing but its sentence yet.
    pub fn new(reason: Reason, summary: impl Into<String>) -> Self {
        Self {
            reason,
            severity: None,
            grade: Grade::Confirmed,
            summary: summary.into(),
            evidence: Evidence::new(),
            next_steps: Vec::new(),
            observed_boottime_ms: None,
            service: None,
            subject: None,
        }
    }

    /// Sets the evidence.
    #[must_use]
    pub fn evidence(mut self, evidence: Evidence) -> Self {
        self.evidence = evidence;
        self
    }

    /// Sets the grade.
    #[must_use]
    pub fn grade(mut self, grade: Grade) -> Self {
        self.grade = grade;
        self
    }

    /// Sets the severity.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = Some(severity);
        self
    }

    /// Sets what to do next.
    #[must_use]
    pub fn next_steps<S: Into<String>>(mut self, steps: impl IntoIterator<Item = S>) -> Self {
        self.next_steps = steps.into_iter().map(Into::into).collect();
        self
    }

    /// The finding about `subject`, or about the service and subject that the problem names.
    pub fn finding(&self, subject: &SubjectKey) -> Finding {
        let mut subject = match &self.subject {
            Some(named) => SubjectKey::new(subject.service.clone(), subject.probe, named),
            None => subject.clone(),
        };
        if let Some(service) = &self.service {
            subject.service = service.clone();
        }
        let key = FindingKey { subject, reason: self.reason };
        Finding::new(key, &self.summary)
            .severity(self.severity.unwrap_or(self.reason.default_severity()))
            .grade(self.grade)
            .evidence(self.evidence.clone())
            .next_steps(&self.next_steps)
    }
}

/// Why a question could not be answered, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// One sentence.
    pub why: String,
    /// What would let the agent see (a capability, a drop-in), where known.
    pub way_out: Option<String>,
    /// Another probe of the service tells what is behind it (there is no process to look at): this one's blindness is no
    /// finding of its own.
    #[serde(default)]
    pub told_elsewhere: bool,
}

impl Unknown {
    /// Why, and the way out.
    pub fn new(why: impl Into<String>, way_out: Option<&str>) -> Self {
        Self { why: why.into(), way_out: way_out.map(str::to_owned), told_elsewhere: false }
    }
}

/// The outcome of one run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Judgement {
    /// Conditions that are true now, each with another reason.
    pub problems: Vec<Problem>,
    /// Set when the question was not, or not wholly, answered. Conditions that are open and not in `problems` then
    /// stay as they are.
    pub unknown: Option<Unknown>,
    /// What happened since the last run.
    pub occurrences: Vec<Problem>,
    /// What was seen; evidence of health in a clear, and what `doctor` shows beside an ok.
    pub seen: Evidence,
}

impl Judgement {
    /// All is well, with this evidence of health.
    pub fn ok(seen: Evidence) -> Self {
        Self { seen, ..Self::default() }
    }

    /// One condition is true.
    pub fn problem(problem: Problem) -> Self {
        Self { problems: vec![problem], ..Self::default() }
    }

    /// Not answered.
    pub fn unknown(why: impl Into<String>, way_out: Option<&str>) -> Self {
        Self { unknown: Some(Unknown::new(why, way_out)), ..Self::default() }
    }

    /// There is no process to look at; whoever should name it, the pid file's probe or the unit's, tells why.
    pub fn no_process() -> Self {
        let unknown =
            Unknown::new("no running process of the service is known", Some("its pid file or its unit tells why"));
        Self { unknown: Some(Unknown { told_elsewhere: true, ..unknown }), ..Self::default() }
    }

    /// Adds something that happened.
    #[must_use]
    pub fn occurred(mut self, occurrence: Problem) -> Self {
        self.occurrences.push(occurrence);
        self
    }

    /// Whether the run found the process that it looks at to have ended.
    pub fn sees_no_process(&self) -> bool {
        let down = |problem: &Problem| problem.reason == Reason::ProcessDown;
        self.problems.iter().any(down) || self.seen.get(PROCESS_KEY) == Some(&Value::Text(HAS_ENDED.to_owned()))
    }

    /// The short answer: a problem outranks unknown, unknown outranks ok.
    pub fn verdict(&self) -> Verdict {
        if !self.problems.is_empty() {
            Verdict::Problem
        } else if self.unknown.is_some() {
            Verdict::Unknown
        } else {
            Verdict::Ok
        }
    }
}
