//! What a health endpoint answered, over time: well, not well, too slow, or with a certificate that runs out.
//!
//! One lost packet is no outage: a failure is told when it is seen again. What the endpoint said is shown with its
//! secrets taken out.

pub mod certificate;
mod told;

use crate::clock::Now;
use crate::judgement::{Judgement, Unknown};
use certificate::Certificate;
use muster_common::evidence::Evidence;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::time::Duration;

/// What must be true of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Its address, for people.
    pub url: String,
    /// A path of a Unix socket: there is no `curl URL` for it.
    pub socket: Option<String>,
    /// Statuses that are well.
    pub status: Vec<RangeInclusive<u16>>,
    /// What a field of the body must be.
    pub field: Option<(String, String)>,
    /// A slower answer is a problem.
    pub max_latency: Option<Duration>,
    /// A certificate that runs out within this is told.
    pub expiry_warning: Duration,
    /// Failures in a row before it is told.
    pub failures: u32,
}

/// How far a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The name is asked for.
    Resolve,
    /// The connection is made.
    Connect,
    /// The handshake.
    Tls,
    /// The request is sent, the answer read.
    Response,
}

impl Phase {
    /// `resolve`, `connect`, `tls`, `response`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Response => "response",
        }
    }
}

/// What the wanted field of the body was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldFound {
    /// This value.
    Value(String),
    /// The body is JSON, and has no such field.
    Missing,
    /// The body is no JSON.
    NotJson(String),
    /// The body is longer than what is read of it.
    TooLong,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Where it redirects to.
    pub location: Option<String>,
    /// The first bytes of the body.
    pub body: Vec<u8>,
    /// The wanted field, where one is wanted.
    pub field: Option<FieldFound>,
    /// From the first packet to the end of what was read.
    pub latency: Duration,
}

/// What one request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, whatever it says.
    Answer(Answer),
    /// None.
    Failed {
        /// How far it came.
        phase: Phase,
        /// Why it ended.
        why: String,
        /// It was given up after its time.
        timed_out: bool,
        /// How long it took.
        took: Duration,
    },
    /// It could not be tried; says nothing about the endpoint.
    NotTried {
        /// Why.
        why: String,
        /// What would help.
        way_out: Option<String>,
    },
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What it came to.
    pub outcome: Outcome,
    /// The certificate that was presented, trusted or not.
    pub certificate: Option<Certificate>,
}

/// Judges an endpoint over time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthJudge {
    /// Failures in a row.
    failures: u32,
    /// When the first of them was seen.
    since_boottime_ms: Option<u64>,
    /// Slow answers in a row.
    slow: u32,
}

/// Why an answer is not well.
struct Fault {
    phase: Phase,
    why: String,
}

impl HealthJudge {
    /// One reading. In a one-shot run there is no second look: one failure counts.
    pub fn judge(&mut self, rules: &Rules, reading: &Reading, now: Now, one_shot: bool) -> Judgement {
        let mut judgement = Judgement { seen: seen(reading, now), ..Judgement::default() };
        judgement.problems.extend(told::expiring(rules, reading.certificate.as_ref(), now));
        if let Outcome::NotTried { why, way_out } = &reading.outcome {
            judgement.unknown = Some(Unknown::new(why, way_out.as_deref()));
            return judgement;
        }
        let needed = if one_shot { 1 } else { rules.failures };
        if let Some(fault) = fault(rules, &reading.outcome) {
            self.failures = self.failures.saturating_add(1);
            // After a reboot the clock starts again.
            let since = self.since_boottime_ms.filter(|since| *since <= now.boottime_ms).unwrap_or(now.boottime_ms);
            self.since_boottime_ms = Some(since);
            if self.failures >= needed {
                judgement.problems.push(told::failed(rules, reading, &fault, self.failures, now.since(since)));
            } else {
                let why = format!("{} of {needed} failures in a row: {}", self.failures, fault.why);
                judgement.unknown = Some(Unknown::new(why, None));
            }
            return judgement;
        }
        (self.failures, self.since_boottime_ms) = (0, None);
        self.slow(rules, reading, needed, &mut judgement);
        judgement
    }

    fn slow(&mut self, rules: &Rules, reading: &Reading, needed: u32, judgement: &mut Judgement) {
        let Outcome::Answer(answer) = &reading.outcome else { return };
        let Some(max) = rules.max_latency.filter(|max| answer.latency > *max) else {
            self.slow = 0;
            return;
        };
        self.slow = self.slow.saturating_add(1);
        if self.slow >= needed {
            judgement.problems.push(told::slow(rules, answer, max, self.slow));
        } else {
            let why = format!("{} of {needed} slow answers in a row", self.slow);
            judgement.unknown = Some(Unknown::new(why, None));
        }
    }
}

fn fault(rules: &Rules, outcome: &Outcome) -> Option<Fault> {
    let answer = match outcome {
        Outcome::NotTried { .. } => return None,
        Outcome::Failed { phase, why, .. } => return Some(Fault { phase: *phase, why: why.clone() }),
        Outcome::Answer(answer) => answer,
    };
    let of_answer = |why: String| Some(Fault { phase: Phase::Response, why });
    if !rules.status.iter().any(|range| range.contains(&answer.status)) {
        return of_answer(match &answer.location {
            Some(location) => {
                let location = crate::log::redact(location);
                format!("status {} redirects to {location}, and redirects are not followed", answer.status)
            }
            None => format!("status {}", answer.status),
        });
    }
    let (pointer, wanted) = rules.field.as_ref()?;
    match answer.field.as_ref() {
        Some(FieldFound::Value(value)) if value == wanted => None,
        Some(FieldFound::Value(value)) => {
            let value = crate::log::redact(&muster_common::limits::clip(value, 100));
            of_answer(format!("{pointer} is {value:?} where {wanted:?} is expected"))
        }
        Some(FieldFound::NotJson(why)) => of_answer(format!("its body is not JSON ({why}), so there is no {pointer}")),
        Some(FieldFound::TooLong) => of_answer(format!("its body is too long to be searched for {pointer}")),
        Some(FieldFound::Missing) | None => of_answer(format!("its body has no {pointer}")),
    }
}

fn seen(reading: &Reading, now: Now) -> Evidence {
    let mut seen = Evidence::new();
    if let Outcome::Answer(answer) = &reading.outcome {
        seen = seen.count("status", answer.status).duration("latency_ms", answer.latency);
    }
    if let Some(certificate) = &reading.certificate {
        seen = seen.duration("certificate_left_ms", certificate.not_after.since(now.wall));
    }
    seen
}

#[cfg(test)]
mod tests;
