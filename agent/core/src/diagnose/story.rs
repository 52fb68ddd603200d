//! One sentence per cause for people: what happened, how sure, what it led to, how things stand now; with what is not
//! known and what to do next. Steps are printed, never executed.

use super::recent::{Recent, Trace};
use super::rules::explains;
use super::{
    EXIT_STATUS_KEY, GROUP_KEY, PID_KEY, RESULT_KEY, RULE_KEY, SINCE_BOOT_KEY, START_TICKS_KEY, TOLD_BY_KEY, number,
    text,
};
use crate::judgement::Judgement;
use crate::process::exit::{NO_SUCCESSOR, START_IT};
use crate::restarts::LEFT_DOWN;
use crate::services::{Instance, Services};
use crate::shell::quoted;
use muster_common::evidence::{Grade, Value};
use muster_common::finding::{Finding, FindingKey, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::limits::{NEXT_STEPS_MAX, SUMMARY_BYTES_MAX, clip};
use muster_common::reason::{Reason, ReasonKind};
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Symptoms named in the sentence; the rest are counted.
const SYMPTOMS_TOLD_MAX: usize = 2;
/// Databases named in the sentence.
const DATABASES_TOLD_MAX: usize = 3;
/// Backgrounds named in the sentence.
const BACKGROUNDS_TOLD_MAX: usize = 2;

/// What says that a database is ill. That somebody holds a lock on it or its log grows tells nothing of its content.
const ILL: &[Reason] = &[
    Reason::SqliteCorrupt,
    Reason::SqliteNotADatabase,
    Reason::SqliteMissing,
    Reason::SqliteReplaced,
    Reason::SqliteShrunk,
    Reason::SqliteJournalHot,
    Reason::SqliteRowsLost,
];

/// What probes say of an exit status that nobody could tell.
const UNKNOWN: &str = "unknown";

/// The process of a service, in a step of who does not know it.
const PROC_OF_SERVICE: &str = "/proc/PID/";

/// How a finding belongs to a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// It made the cause more likely.
    Because,
    /// The cause explains it.
    Symptom,
    /// The same thing, earlier.
    Earlier,
}

/// One finding that belongs to a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Index into the findings.
    pub finding: usize,
    /// How it belongs.
    pub relation: Relation,
    /// How sure that is.
    pub grade: Grade,
}

/// One thing to tell: a cause with all that belongs to it. Indexes into the given findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// What explains the rest.
    pub cause: usize,
    /// What belongs to it: backgrounds, then symptoms, then earlier ones.
    pub links: Vec<Link>,
    /// Symptoms that it explains as surely as another cause does, with which they are told: they raise nothing here.
    #[serde(default)]
    pub shared: Vec<Link>,
    /// The worst severity among them.
    pub severity: Severity,
    /// The one sentence.
    pub sentence: String,
    /// Words for the cause itself, where another look knew better ones than the finding has.
    #[serde(default)]
    pub better_words: Option<String>,
    /// How things stand since, as the sentence tells it: a successor, databases that are well.
    pub standing: Vec<String>,
    /// What is not known.
    pub unknown: Vec<String>,
    /// What a person could do, in order; what saves data comes first.
    pub next_steps: Vec<String>,
    /// When the cause happened, `CLOCK_BOOTTIME`, where it lasts no longer.
    #[serde(default)]
    pub happened_boottime_ms: Option<u64>,
}

/// Tells the findings of one round as stories, worst first (then by service, reason and subject). `recent` has noted
/// them.
pub fn stories(findings: &[Finding], recent: &Recent, services: &Services) -> Vec<Story> {
    let traces: Vec<Trace> = findings.iter().map(|finding| known(finding, recent)).collect();
    let parents: Vec<Option<(usize, Grade)>> = traces.iter().map(|effect| parent(&traces, effect)).collect();
    let mut folded: Vec<Option<(usize, Link)>> = (0..findings.len())
        .map(|finding| {
            let (root, grade) = root(&parents, finding);
            let link = Link { finding, relation: Relation::Symptom, grade };
            (root != finding).then_some((root, link))
        })
        .collect();
    fold_backgrounds(&traces, &mut folded);
    fold_earlier(&traces, &mut folded);
    let mut stories: Vec<Story> = Vec::new();
    for (cause, trace) in traces.iter().enumerate() {
        if folded.get(cause) != Some(&None) {
            continue;
        }
        let mut links: Vec<Link> =
            folded.iter().flatten().filter(|(root, _)| *root == cause).map(|(_, link)| *link).collect();
        links.sort_by_key(|link| (link.relation, link.finding));
        let shared = shared(&traces, &parents, &folded, cause);
        let members =
            || std::iter::once(cause).chain(links.iter().map(|link| link.finding)).filter_map(|at| findings.get(at));
        let severity = members().map(|finding| finding.severity).max().unwrap_or(trace.severity);
        let mut next_steps = steps(salvage(trace, recent), limit(trace, recent, services), members());
        if successor(trace, services).is_some() {
            next_steps.retain(|step| !step.starts_with(START_IT));
        }
        let unknown = unknown(members());
        let sentence = sentence(trace, &trace.key, recent, services).unwrap_or_else(|| trace.summary.clone());
        let standing = standing(trace, recent, services);
        let happened_boottime_ms = trace.until_ms.filter(|at_ms| *at_ms != u64::MAX);
        name_process(&trace.key.subject.service, services, &mut next_steps);
        stories.push(Story {
            cause,
            links,
            shared,
            severity,
            sentence,
            better_words: None,
            standing,
            unknown,
            next_steps,
            happened_boottime_ms,
        });
    }
    let key = |story: &Story| findings.get(story.cause).map(|finding| finding.key.clone());
    stories.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| key(a).cmp(&key(b))));
    stories
}

impl Recent {
    /// Adds the whole story to what a run found (`diagnosis`), where there is more to tell than the finding itself says.
    pub fn tell(&self, services: &Services, subject: &SubjectKey, judgement: &mut Judgement) {
        for problem in judgement.problems.iter_mut().chain(&mut judgement.occurrences) {
            let trace = known(&problem.finding(subject), self);
            if successor(&trace, services).is_some() {
                problem.summary = problem.summary.replace(NO_SUCCESSOR, "");
                problem.next_steps.retain(|step| !step.starts_with(START_IT));
            }
            let root = self.root_of(&trace);
            // A symptom stands before what is told of its cause: it is not told there again.
            let told = sentence(root, &trace.key, self, services);
            if let Some(told) = told.or_else(|| (root.key != trace.key).then(|| root.summary.clone())) {
                problem.evidence.insert("diagnosis", Value::Text(told));
            }
            let salvage = salvage(if ended_hard(root) { root } else { &trace }, self);
            let own = std::mem::take(&mut problem.next_steps);
            let salvage = salvage.into_iter().filter(|step| !own.contains(step)).collect::<Vec<_>>();
            let limit = limit(root, self, services).filter(|step| !own.contains(step));
            problem.next_steps = salvage.into_iter().chain(own).chain(limit).take(NEXT_STEPS_MAX).collect();
            name_process(&trace.key.subject.service, services, &mut problem.next_steps);
        }
    }
}

/// The finding with what is remembered of its times.
fn known(finding: &Finding, recent: &Recent) -> Trace {
    // What happened is forgotten after a while; then it says itself when it was. A condition lasts until now.
    let happened = finding.key.reason.kind() == ReasonKind::Occurrence;
    let from_ms = match finding.evidence.get(SINCE_BOOT_KEY) {
        Some(Value::Millis(since_boot_ms)) if happened => *since_boot_ms,
        _ => u64::MAX,
    };
    let fresh = Trace::new(finding, from_ms);
    let service = &finding.key.subject.service;
    let mut same = recent.of_service(service).filter(|trace| trace.key == finding.key && trace.facts == fresh.facts);
    // Of several that look the same the last is meant.
    same.next_back().cloned().unwrap_or(fresh)
}

fn parent(traces: &[Trace], effect: &Trace) -> Option<(usize, Grade)> {
    let causes = traces.iter().enumerate().filter_map(|(index, cause)| Some((index, cause, explains(cause, effect)?)));
    let folding = causes.filter(|(.., explained)| !explained.background);
    let surest = folding.max_by_key(|(_, cause, explained)| (explained.grade, cause.from_ms));
    surest.map(|(index, _, explained)| (index, explained.grade))
}

/// Every finding points at its nearest cause; following that to its root gives the story it belongs to.
fn root(parents: &[Option<(usize, Grade)>], finding: usize) -> (usize, Grade) {
    let (mut at, mut grade) = (finding, Grade::Confirmed);
    // The relation has no cycles; the bound is for the day somebody adds one.
    for _ in 0..parents.len() {
        let Some((next, sure)) = parents.get(at).copied().flatten() else { break };
        (at, grade) = (next, grade.min(sure));
    }
    (at, grade)
}

/// Symptoms that stand with another cause and that this one, or what is told with it, explains as surely.
fn shared(
    traces: &[Trace],
    parents: &[Option<(usize, Grade)>],
    folded: &[Option<(usize, Link)>],
    cause: usize,
) -> Vec<Link> {
    let told_with = |at: usize| folded.get(at).copied().flatten().map_or(at, |(root, _)| root);
    let own: Vec<&Trace> =
        traces.iter().enumerate().filter(|(at, _)| told_with(*at) == cause).map(|(_, own)| own).collect();
    let effects = traces.iter().enumerate().filter(|(at, _)| told_with(*at) != cause);
    let link = |(finding, effect): (usize, &Trace)| {
        let (_, grade) = parents.get(finding).copied().flatten()?;
        let as_sure = |own: &&Trace| {
            explains(own, effect).is_some_and(|explained| !explained.background && explained.grade >= grade)
        };
        own.iter().any(as_sure).then_some(Link { finding, relation: Relation::Symptom, grade })
    };
    effects.filter_map(link).collect()
}

/// A background of the same service that explains nothing else is told with what it led to. One about the host stays a
/// story of its own: it may be behind several. So does a cause whose symptom a surer or nearer one has: the two have
/// nothing to do with each other.
fn fold_backgrounds(traces: &[Trace], folded: &mut [Option<(usize, Link)>]) {
    for (index, cause) in traces.iter().enumerate() {
        let has_symptoms = folded.iter().flatten().any(|(root, _)| *root == index);
        if has_symptoms || folded.get(index) != Some(&None) || cause.key.subject.service.is_host() {
            continue;
        }
        let led_to = traces.iter().enumerate().filter_map(|(at, effect)| Some((at, explains(cause, effect)?)));
        let led_to = led_to.filter(|(_, explained)| explained.background);
        let Some((at, explained)) = led_to.max_by_key(|(_, explained)| explained.grade) else { continue };
        let root = folded.get(at).copied().flatten().map_or(at, |(root, _)| root);
        if root != index
            && let Some(place) = folded.get_mut(index)
        {
            *place = Some((root, Link { finding: index, relation: Relation::Because, grade: explained.grade }));
        }
    }
}

/// Two rules of one log may have one reason, and a rule's groups are told apart.
fn is_same_kind(one: &Trace, other: &Trace) -> bool {
    let same = |key| text(&one.facts, key) == text(&other.facts, key);
    one.key == other.key && same(RULE_KEY) && same(GROUP_KEY)
}

/// Of the same occurrence many times the last is told, the others are counted.
fn fold_earlier(traces: &[Trace], folded: &mut [Option<(usize, Link)>]) {
    let alone: Vec<usize> = (0..traces.len())
        .filter(|index| folded.get(*index) == Some(&None))
        .filter(|index| !folded.iter().flatten().any(|(root, _)| root == index))
        .collect();
    for index in &alone {
        let Some(trace) = traces.get(*index) else { continue };
        let later = |other: &usize| {
            traces.get(*other).is_some_and(|other_trace| {
                is_same_kind(other_trace, trace) && (other_trace.from_ms, *other) > (trace.from_ms, *index)
            })
        };
        let last = alone
            .iter()
            .copied()
            .filter(|other| later(other))
            .max_by_key(|other| traces.get(*other).map(|t| (t.from_ms, *other)));
        if let (Some(last), Some(place)) = (last, folded.get_mut(*index)) {
            *place = Some((last, Link { finding: *index, relation: Relation::Earlier, grade: Grade::Confirmed }));
        }
    }
}

/// `None` where there is nothing to say beyond the summary. `own` is the finding that it is told with.
fn sentence(cause: &Trace, own: &FindingKey, recent: &Recent, services: &Services) -> Option<String> {
    let service = &cause.key.subject.service;
    let effects: Vec<(&Trace, Grade)> = recent
        .of_service(service)
        .filter_map(|effect| {
            let explained = explains(cause, effect).filter(|explained| !explained.background)?;
            Some((effect, explained.grade))
        })
        .collect();
    let mut clauses: Vec<String> = Vec::new();
    clauses.extend(end_seen(cause, &effects));
    // A loop is its ends: it is not behind one of them.
    let circular = |background: &Trace| background.key.reason == Reason::RestartLoop && ends(cause.key.reason);
    let mut backgrounds: Vec<_> = recent.causes_of(cause).filter(|(background, _)| !circular(background)).collect();
    backgrounds.sort_by_key(|(background, explained)| (std::cmp::Reverse(explained.grade), background.from_ms));
    clauses.extend(
        backgrounds
            .iter()
            .take(BACKGROUNDS_TOLD_MAX)
            .map(|(background, explained)| behind(cause, background, explained.grade)),
    );
    clauses.extend(standing(cause, recent, services));
    // Of a symptom that came and went and came again the last is told.
    let is_last = |at: usize, effect: &Trace| !effects.iter().skip(at + 1).any(|(later, _)| later.key == effect.key);
    let others = effects.iter().enumerate().filter(|(at, (effect, _))| is_last(*at, effect));
    // The end of what was killed, of what has ended anyway, or of each life of a loop is no news beside it.
    let tells_end = ends(cause.key.reason) || matches!(cause.key.reason, Reason::OomKill | Reason::RestartLoop);
    let is_news = |effect: &Trace| effect.key != *own && !(tells_end && ends(effect.key.reason));
    let others: Vec<_> = others.map(|(_, told)| told).filter(|(effect, _)| is_news(effect)).collect();
    clauses.extend(others.iter().take(SYMPTOMS_TOLD_MAX).map(|(effect, grade)| symptom(effect, *grade)));
    if others.len() > SYMPTOMS_TOLD_MAX {
        let more = others.len() - SYMPTOMS_TOLD_MAX;
        clauses.push(format!("and {more} more symptom{}", if more == 1 { "" } else { "s" }));
    }
    if clauses.is_empty() {
        return None;
    }
    let summary = match successor(cause, services) {
        Some(_) => cause.summary.replace(NO_SUCCESSOR, ""),
        None => cause.summary.clone(),
    };
    Some(clip(&format!("{summary}; {}", clauses.join("; ")), SUMMARY_BYTES_MAX))
}

/// One that is over is told as such: its own words are of the time when it was seen.
fn symptom(effect: &Trace, grade: Grade) -> String {
    let lasted = effect.until_ms.filter(|until| *until > effect.from_ms && effect.from_ms != u64::MAX);
    let over = lasted.map(|until| human_duration(Duration::from_millis(until - effect.from_ms)));
    let over = over.map(|lasted| format!(", over after {lasted}:")).unwrap_or_default();
    format!("and so ({grade}){over} {}", effect.summary)
}

/// How things stand since something ended.
fn standing(cause: &Trace, recent: &Recent, services: &Services) -> Vec<String> {
    let ended = ends(cause.key.reason)
        || matches!(cause.key.reason, Reason::OomKill | Reason::UnitFailed | Reason::RestartLoop);
    if !ended || cause.key.subject.service.is_host() {
        return Vec::new();
    }
    let worktree = ended_hard(cause).then(|| "its worktree may hold unsaved work: see the salvage steps".to_owned());
    succession(cause, services).into_iter().chain(databases(cause, recent)).chain(worktree).collect()
}

const fn ends(reason: Reason) -> bool {
    matches!(reason, Reason::ProcessDown | Reason::ProcessZombie | Reason::ProcessRestarted)
}

/// Of a kill, that the process has ended of it. What else may be behind an end tells it as its symptom.
fn end_seen(cause: &Trace, effects: &[(&Trace, Grade)]) -> Option<String> {
    if cause.key.reason != Reason::OomKill {
        return None;
    }
    let (end, grade) = effects.iter().find(|(effect, _)| ends(effect.key.reason))?;
    let status = text(&end.facts, EXIT_STATUS_KEY).filter(|status| *status != UNKNOWN);
    let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
    let after = end.from_ms.checked_sub(cause.from_ms).filter(|after| *after > 0 && end.from_ms != u64::MAX);
    let when = after.map(|after| format!(" {} later", human_duration(Duration::from_millis(after))));
    Some(match grade {
        Grade::Confirmed => format!("its end{status} was seen{}", when.unwrap_or_default()),
        grade => format!("its end{status} was seen{} ({grade} the same process)", when.unwrap_or_default()),
    })
}

fn succession(cause: &Trace, services: &Services) -> Option<String> {
    if let Some(successor) = successor(cause, services) {
        return Some(format!("it has restarted as pid {}", successor.process.pid));
    }
    let newest = services.newest(&cause.key.subject.service).filter(|newest| newest.ended_boottime_ms.is_some())?;
    match cause.key.reason {
        // Its own summary says so.
        Reason::ProcessDown => None,
        // Its own summary names a successor.
        Reason::ProcessRestarted => Some(format!("pid {} has ended since then", newest.process.pid)),
        Reason::RestartLoop if cause.summary.contains(LEFT_DOWN) => None,
        _ => Some("no successor is known".to_owned()),
    }
}

/// Who runs now in place of the process that is gone.
fn successor<'a>(gone: &Trace, services: &'a Services) -> Option<&'a Instance> {
    let newest = services.newest(&gone.key.subject.service).filter(|newest| newest.ended_boottime_ms.is_none())?;
    let (pid, start) = (number(&gone.facts, PID_KEY)?, number(&gone.facts, START_TICKS_KEY));
    let same = pid == u64::from(newest.process.pid) && start.is_none_or(|start| start == newest.process.start_ticks);
    (!same).then_some(newest)
}

/// What is behind a cause, and for how long it had been so.
fn behind(cause: &Trace, background: &Trace, grade: Grade) -> String {
    let sure = match grade {
        Grade::Confirmed => "",
        Grade::Likely => "likely ",
        Grade::Possible => "possibly ",
    };
    let summary = &background.summary;
    let lasted = Duration::from_millis(cause.from_ms.saturating_sub(background.from_ms));
    if lasted.is_zero() || cause.from_ms == u64::MAX {
        return format!("{sure}behind it: {summary}");
    }
    let lasted = human_duration(lasted);
    let over = background.until_ms.filter(|until| *until < cause.from_ms).map(|until| cause.from_ms - until);
    let band = match background.key.reason {
        Reason::MemoryCritical => "critical",
        Reason::MemoryApproaching => "low",
        _ => return format!("{sure}behind it: {summary}, {lasted} before"),
    };
    match over {
        None => format!("MemAvailable had been {band} for {lasted} ({sure}behind it: {summary})"),
        Some(over) => {
            let over = human_duration(Duration::from_millis(over));
            format!("MemAvailable had been {band} until {over} before ({sure}behind it: {summary})")
        }
    }
}

/// What is known of the service's databases after something ended. A check from before tells nothing of it.
fn databases(cause: &Trace, recent: &Recent) -> Vec<String> {
    let service = &cause.key.subject.service;
    let open = |trace: &&Trace| trace.until_ms.is_none() && ILL.contains(&trace.key.reason);
    let ill: Vec<&Trace> = recent.of_service(service).filter(open).collect();
    let is_ill = |path: &str| ill.iter().any(|trace| trace.key.subject.subject == path);
    let told = ill.iter().filter(|trace| explains(cause, trace).is_none());
    let mut clauses: Vec<String> = told.take(DATABASES_TOLD_MAX).map(|trace| trace.summary.clone()).collect();
    let (since, not_since): (Vec<_>, Vec<_>) = recent
        .checked(service)
        .filter(|(path, _)| !is_ill(path))
        .partition(|(_, at)| at.is_some_and(|at| at >= cause.from_ms));
    let names = |databases: &[(&str, _)]| {
        let names: Vec<String> = databases.iter().take(DATABASES_TOLD_MAX).map(|(path, _)| name_of(path)).collect();
        let more = databases.len() - names.len();
        names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    // With when: what is told is read later, and a database may be damaged by then. As a length of time, which makes no
    // news of each new check.
    if let Some(first) = since.iter().filter_map(|(_, at)| *at).min() {
        let later = Duration::from_millis(first - cause.from_ms);
        let verb = if since.len() == 1 { "passed its check" } else { "passed their checks" };
        let or_more = if since.len() == 1 { "" } else { " or more" };
        // Who looks once sees both at one moment.
        let later = match later.as_secs() {
            0 => String::new(),
            _ => format!(" ({}{or_more} later)", human_duration(later)),
        };
        clauses.push(format!("{} {verb} since then{later}", names(&since)));
    }
    if !not_since.is_empty() {
        let verb = if not_since.len() == 1 { "has" } else { "have" };
        clauses.push(format!("{} {verb} not been checked since then", names(&not_since)));
    }
    clauses
}

fn name_of(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// True when the process had no chance to finish what it was doing.
fn ended_hard(cause: &Trace) -> bool {
    const HARD: [&str; 6] = ["SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"];
    let status = text(&cause.facts, EXIT_STATUS_KEY);
    cause.key.reason == Reason::OomKill
        || (ends(cause.key.reason) && status.is_some_and(|status| HARD.contains(&status)))
}

/// What a person could save of what a killed process left, before something writes over it.
fn salvage(cause: &Trace, recent: &Recent) -> Vec<String> {
    let service = &cause.key.subject.service;
    if service.is_host() || !ended_hard(cause) {
        return Vec::new();
    }
    let copy = recent.checked(service).take(DATABASES_TOLD_MAX).map(|(path, _)| {
        let path = quoted(path);
        format!(
            "salvage: before any repair, copy the database with its -wal, -shm and -journal: cp -a {path}* SAFE_PLACE/"
        )
    });
    let worktree = format!(
        "salvage: before {service} or a clean-up writes there, save unsaved work in its working directory: git status, \
         half-written *.tmp and *.lock files"
    );
    std::iter::once(worktree).chain(copy).collect()
}

fn unknown<'a>(members: impl Iterator<Item = &'a Finding>) -> Vec<String> {
    let mut unknown = Vec::new();
    for finding in members.filter(|finding| ends(finding.key.reason)) {
        let evidence = &finding.evidence;
        // A kill that is known says how it ended.
        if evidence.get("cause").is_some() || text(evidence, EXIT_STATUS_KEY).is_some_and(|status| status != UNKNOWN) {
            continue;
        }
        let why = text(evidence, "exit_unknown_why").map(|why| format!(" ({why})")).unwrap_or_default();
        unknown.push(format!("how it ended: exit status or signal{why}"));
    }
    unknown.dedup();
    unknown
}

/// Of what its own supervisor ended, the bound that it broke: the next start breaks it too.
fn limit(cause: &Trace, recent: &Recent, services: &Services) -> Option<String> {
    let service = &cause.key.subject.service;
    let unit = services.unit_of(service).filter(|_| ends(cause.key.reason))?;
    // Where the kernel told how it ended, its unit knows why.
    let of_unit = |trace: &Trace| trace.until_ms.is_none() && text(&trace.facts, RESULT_KEY) == Some("watchdog");
    let told = text(&cause.facts, TOLD_BY_KEY).is_some_and(|by| by.ends_with("(result watchdog)"));
    (told || recent.of_service(service).any(of_unit)).then(|| {
        format!(
            "see what it has to keep up with: systemctl show {unit} -p WatchdogUSec (it must send WATCHDOG=1 that often)"
        )
    })
}

/// A step that leaves the process to be filled in is about the service's own, where that is known.
fn name_process(service: &ServiceName, services: &Services, steps: &mut [String]) {
    for step in steps.iter_mut().filter(|step| step.contains(PROC_OF_SERVICE)) {
        if let Some(newest) = services.newest(service).filter(|newest| newest.ended_boottime_ms.is_none()) {
            *step = step.replace(PROC_OF_SERVICE, &format!("/proc/{}/", newest.process.pid));
        }
    }
}

/// Steps about data come first: a restart may destroy what they would save.
fn steps<'a>(salvage: Vec<String>, limit: Option<String>, members: impl Iterator<Item = &'a Finding>) -> Vec<String> {
    let about_data = |reason: Reason| {
        let code = reason.as_str();
        code.starts_with("sqlite_") || code.starts_with("backup_")
    };
    let (data, other): (Vec<&Finding>, Vec<&Finding>) = members.partition(|finding| about_data(finding.key.reason));
    let mut steps: Vec<String> = Vec::new();
    // The cause's steps mend its symptoms as well; those of symptoms only stand in where it has none.
    let first = other.iter().find(|finding| !finding.next_steps.is_empty());
    let (data, first) = (data.iter().flat_map(|finding| &finding.next_steps), first.map(|finding| &finding.next_steps));
    // Damage that is seen goes before damage that may be.
    for step in data.chain(&salvage).chain(first.into_iter().flatten()).chain(&limit) {
        if !steps.contains(step) && steps.len() < NEXT_STEPS_MAX {
            steps.push(step.clone());
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::diagnose::CHECKED_AT_KEY;
    use crate::judgement::Problem;
    use crate::process::exit::KILLED_BY_WHOM;
    use muster_common::evidence::Evidence;
    use muster_common::finding::ProbeKind;
    use muster_common::ids::ProcessId;
    use muster_common::time::Timestamp;

    fn subject(service: &str, reason: Reason) -> SubjectKey {
        let probe = match reason {
            Reason::OomKill => ProbeKind::Oom,
            Reason::MemoryCritical => ProbeKind::Memory,
            Reason::PortClosed => ProbeKind::Port,
            _ => ProbeKind::PidFile,
        };
        let service = if service == "host" { ServiceName::host() } else { ServiceName::new(service).unwrap() };
        SubjectKey::new(service, probe, reason.as_str())
    }

    fn finding(service: &str, reason: Reason, evidence: Evidence) -> Finding {
        Finding::new(FindingKey { subject: subject(service, reason), reason }, reason.as_str()).evidence(evidence)
    }

    fn process(pid: u64, start: u64) -> Evidence {
        Evidence::new().count(PID_KEY, pid).count(START_TICKS_KEY, start)
    }

    fn noted(findings: &[Finding]) -> Recent {
        let mut recent = Recent::default();
        for finding in findings {
            let problem = Problem::new(finding.key.reason, finding.summary.clone()).evidence(finding.evidence.clone());
            let judgement = match finding.key.reason.kind() {
                muster_common::reason::ReasonKind::Occurrence => Judgement::default().occurred(problem),
                _ => Judgement::problem(problem),
            };
            recent.note(now(1_000), &finding.key.subject, &judgement);
        }
        recent
    }

    fn now(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::UNIX_EPOCH }
    }

    fn shown(findings: &[Finding]) -> Vec<String> {
        stories(findings, &noted(findings), &Services::default())
            .iter()
            .map(|story| {
                let name = |index: usize| findings[index].key.reason.as_str();
                let links: Vec<String> = story
                    .links
                    .iter()
                    .map(|link| format!("{:?} {} {}", link.relation, name(link.finding), link.grade))
                    .collect();
                format!("{} {} [{}]", story.severity, name(story.cause), links.join(", "))
            })
            .collect()
    }

    #[test]
    fn symptoms_fold_under_their_cause() {
        let findings = [
            finding("spl", Reason::PortClosed, Evidence::new()),
            finding("spl", Reason::ProcessDown, process(7, 1)),
            finding("spl", Reason::PidFileStale, process(7, 1)),
            finding("other", Reason::PortClosed, Evidence::new()),
        ];
        assert_eq!(
            shown(&findings),
            ["sev2 port_closed []", "sev2 process_down [Symptom port_closed likely, Symptom pid_file_stale likely]"]
        );
    }

    /// Who reads of one cause must read that its symptom may be another's.
    #[test]
    fn a_symptom_that_two_causes_explain_as_surely_is_named_with_both() {
        let shared = |reasons: &[Reason]| {
            let findings: Vec<Finding> =
                reasons.iter().map(|reason| finding("spl", *reason, Evidence::new())).collect();
            let name = |index: usize| findings[index].key.reason.as_str();
            let all = stories(&findings, &noted(&findings), &Services::default());
            let of = |story: &Story| {
                let shared: Vec<String> =
                    story.shared.iter().map(|link| format!("{} {}", name(link.finding), link.grade)).collect();
                format!("{} [{}]", name(story.cause), shared.join(", "))
            };
            all.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(
            shared(&[Reason::SqliteMissing, Reason::SqliteNotADatabase, Reason::HealthCheckFailed]),
            ["sqlite_not_a_database []", "sqlite_missing [health_check_failed possible]"]
        );
        // The closed port explains it more surely than either.
        assert_eq!(
            shared(&[Reason::SqliteMissing, Reason::PortClosed, Reason::HealthCheckFailed]),
            ["sqlite_missing []", "port_closed []"]
        );
    }

    /// Of two damaged files each may be behind the same silence: neither is behind the other.
    #[test]
    fn who_may_explain_the_same_symptom_is_no_cause_of_its_rival() {
        let of = |reasons: &[Reason]| {
            let findings: Vec<Finding> =
                reasons.iter().map(|reason| finding("spl", *reason, Evidence::new())).collect();
            shown(&findings)
        };
        assert_eq!(
            of(&[Reason::SqliteMissing, Reason::SqliteNotADatabase, Reason::HealthCheckFailed]),
            ["sev1 sqlite_not_a_database [Symptom health_check_failed possible]", "sev2 sqlite_missing []"]
        );
        assert_eq!(
            of(&[Reason::SqliteMissing, Reason::SqliteNotADatabase, Reason::PortClosed, Reason::HealthCheckFailed]),
            [
                "sev1 sqlite_not_a_database []",
                "sev2 sqlite_missing []",
                "sev2 port_closed [Symptom health_check_failed likely]",
            ]
        );
        // What is only ever told with what it led to.
        assert_eq!(
            of(&[Reason::UpdateFailed, Reason::PortClosed, Reason::HealthCheckFailed]),
            ["sev2 port_closed [Because update_failed possible, Symptom health_check_failed likely]"]
        );
    }

    #[test]
    fn a_kill_is_the_cause_of_the_exit_of_the_same_process_only() {
        let kill = finding("spl", Reason::OomKill, process(7, 1));
        let case = |start| [kill.clone(), finding("spl", Reason::ProcessDown, process(7, start))];
        assert_eq!(shown(&case(1)), ["sev2 oom_kill [Symptom process_down confirmed]"]);
        assert_eq!(shown(&case(2)), ["sev2 process_down []", "sev3 oom_kill []"]);
        let mut deep = case(1).to_vec();
        deep.push(finding("spl", Reason::PortClosed, Evidence::new()));
        deep.push(finding("spl", Reason::MemoryGrowth, Evidence::new()));
        assert_eq!(
            shown(&deep),
            [
                "sev2 oom_kill [Because memory_growth likely, Symptom process_down confirmed, Symptom port_closed likely]"
            ]
        );
        let mut host = case(1).to_vec();
        host.push(finding("host", Reason::MemoryCritical, Evidence::new()));
        assert_eq!(shown(&host), ["sev2 oom_kill [Symptom process_down confirmed]", "sev3 memory_critical []"]);
    }

    #[test]
    fn the_same_occurrence_many_times_is_one_story() {
        let findings: Vec<Finding> = (0..5).map(|n| finding("host", Reason::OomKill, process(n, n))).collect();
        let told = shown(&findings);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("sev3 oom_kill [Earlier oom_kill confirmed, "), "{told:?}");
    }

    #[test]
    fn of_many_kills_over_hours_the_newest_is_told() {
        const MIN: u64 = 60_000;
        let at_ms = |n: u64| MIN + n * 6 * MIN;
        let kill = |n| {
            let evidence = process(n, n).with(SINCE_BOOT_KEY, Value::Millis(at_ms(n)));
            let mut kill = Problem::new(Reason::OomKill, format!("kill {n}")).evidence(evidence);
            kill.observed_boottime_ms = Some(at_ms(n));
            kill
        };
        let kills = Judgement { occurrences: (0..30).map(kill).collect(), ..Judgement::default() };
        let host = subject("host", Reason::OomKill);
        let mut recent = Recent::default();
        recent.note(now(at_ms(29) + 3_000), &host, &kills);
        let findings: Vec<Finding> = kills.occurrences.iter().map(|kill| kill.finding(&host)).collect();
        let told = stories(&findings, &recent, &Services::default());
        let [story] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((findings[story.cause].summary.as_str(), story.links.len()), ("kill 29", 29));
    }

    #[test]
    fn a_left_pid_file_and_a_dead_unit_are_symptoms_of_the_kill_of_that_pid() {
        let kill = |pid: u64| finding("spl", Reason::OomKill, Evidence::new().count(PID_KEY, pid));
        let left = |reason| finding("spl", reason, Evidence::new().count(PID_KEY, 7u64));
        let findings = [kill(7), left(Reason::PidFileStale), left(Reason::UnitFailed)];
        assert_eq!(shown(&findings), ["sev2 oom_kill [Symptom pid_file_stale likely, Symptom unit_failed likely]"]);
        assert_eq!(shown(&[kill(8), left(Reason::PidFileStale)]).len(), 2);
    }

    #[test]
    fn one_sentence_tells_the_whole_chain() {
        let spl = ServiceName::new("spl").unwrap();
        let mut recent = Recent::default();
        let mut services = Services::default();
        let low =
            Judgement::problem(Problem::new(Reason::MemoryCritical, "1.1 GiB of memory are available, below 2 GiB"));
        recent.note(now(100_000), &subject("host", Reason::MemoryCritical), &low);
        let mut kill = Problem::new(Reason::OomKill, "the kernel killed spl (pid 7)").evidence(process(7, 1));
        kill.service = Some(spl.clone());
        kill.observed_boottime_ms = Some(195_000);
        recent.note(now(195_002), &subject("host", Reason::OomKill), &Judgement::default().occurred(kill));
        let down = Problem::new(Reason::ProcessDown, "spl (pid 7) is gone").evidence(process(7, 1));
        let down_subject = subject("spl", Reason::ProcessDown);
        recent.note(now(195_040), &down_subject, &Judgement::problem(down.clone()));
        let database = SubjectKey::new(spl.clone(), ProbeKind::Sqlite, "/var/lib/spl/hub.db");
        let checked = |at_ms| Judgement::ok(Evidence::new().with(CHECKED_AT_KEY, Value::Millis(at_ms)));
        // Well at a look after the kill, by a check from before it.
        recent.note(now(196_000), &database, &checked(194_000));
        let instance = |pid, ended| Instance {
            process: ProcessId { pid, start_ticks: u64::from(pid) },
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: 1,
            ended_boottime_ms: ended,
        };
        services.note(&spl, instance(7, Some(195_040)));
        let told = |recent: &Recent, services: &Services| {
            let mut judgement = Judgement::problem(down.clone());
            recent.tell(services, &down_subject, &mut judgement);
            judgement.problems[0].evidence.get("diagnosis").unwrap().to_string()
        };
        assert_eq!(
            told(&recent, &services),
            "the kernel killed spl (pid 7); its end was seen 40 ms later; MemAvailable had been critical for 95 s (likely \
             behind it: 1.1 GiB of memory are available, below 2 GiB); no successor is known; hub.db has not been \
             checked since then; its worktree may hold unsaved work: see the salvage steps"
        );
        services.note(&spl, instance(4188, None));
        recent.note(now(198_000), &database, &checked(197_000));
        assert!(
            told(&recent, &services).contains("; hub.db passed its check since then (2 s later); "),
            "{}",
            told(&recent, &services)
        );
        assert!(told(&recent, &services).contains("it has restarted as pid 4188"), "{}", told(&recent, &services));
        let mut alone = Judgement::problem(Problem::new(Reason::PortClosed, "closed"));
        recent.tell(&services, &subject("other", Reason::PortClosed), &mut alone);
        assert!(alone.problems[0].evidence.is_empty());
    }

    #[test]
    fn each_symptom_tells_the_whole_story_and_how_to_save_what_is_left() {
        let mut recent = Recent::default();
        let spl = |reason| subject("spl", reason);
        let mut kill = Problem::new(Reason::OomKill, "the kernel killed spl (pid 7)").evidence(process(7, 1));
        kill.service = Some(ServiceName::new("spl").unwrap());
        recent.note(now(1_000), &subject("host", Reason::OomKill), &Judgement::default().occurred(kill));
        let down = Problem::new(Reason::ProcessDown, format!("spl ended by SIGKILL ({KILLED_BY_WHOM})"));
        let mut down = Judgement::problem(down.evidence(process(7, 1)).next_steps(["start it"]));
        recent.note(now(1_040), &spl(Reason::ProcessDown), &down);
        let hub = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::Sqlite, "/var/lib/my spl/hub.db");
        recent.note(now(1_050), &hub, &Judgement::default());
        recent.explain(now(1_060), &spl(Reason::ProcessDown), &mut down);
        recent.tell(&Services::default(), &spl(Reason::ProcessDown), &mut down);
        assert_eq!(down.problems[0].summary, "spl ended by SIGKILL (by the kernel's OOM killer)");
        let steps = &down.problems[0].next_steps;
        assert!(steps[0].contains("git status"), "{steps:?}");
        assert!(steps[1].contains("cp -a '/var/lib/my spl/hub.db'* "), "{steps:?}");
        assert_eq!(steps[2], "start it");
        // A symptom of a symptom is told with what is behind both.
        let stale = Problem::new(Reason::PidFileStale, "stale").evidence(Evidence::new().count(PID_KEY, 7u64));
        let mut stale = Judgement::problem(stale);
        recent.note(now(1_070), &spl(Reason::PidFileStale), &stale);
        recent.tell(&Services::default(), &spl(Reason::PidFileStale), &mut stale);
        let diagnosis = stale.problems[0].evidence.get("diagnosis").unwrap().to_string();
        assert!(diagnosis.starts_with("the kernel killed spl (pid 7); its end was seen 40 ms later"), "{diagnosis}");
    }

    #[test]
    fn a_lock_that_was_held_before_the_exit_may_be_behind_it_though_it_is_told_later() {
        let down = finding("spl", Reason::ProcessDown, process(7, 1));
        for (held_ms, expected) in [(15_000, Some(Grade::Possible)), (1_000, None)] {
            let mut recent = noted(std::slice::from_ref(&down));
            let evidence = process(9, 9).with(crate::diagnose::HELD_KEY, Value::Millis(held_ms));
            let evidence = evidence.text(crate::diagnose::WAITER_SERVICES_KEY, "hub, spl");
            let held = Judgement::problem(Problem::new(Reason::SqliteLockHeld, "held").evidence(evidence));
            let database = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::Sqlite, "/hub.db");
            recent.note(now(12_000), &database, &held);
            let cause = recent.cause_of(&known(&down, &recent)).map(|(_, explained)| explained.grade);
            assert_eq!(cause, expected, "{held_ms}");
        }
    }

    #[test]
    fn a_symptom_that_is_over_is_told_as_over() {
        let mut recent = noted(&[finding("spl", Reason::ProcessDown, process(7, 1))]);
        let port = subject("spl", Reason::PortClosed);
        recent.note(now(2_000), &port, &Judgement::problem(Problem::new(Reason::PortClosed, "nobody listens")));
        let told = |recent: &Recent| {
            let mut down = Judgement::problem(Problem::new(Reason::ProcessDown, "down").evidence(process(7, 1)));
            recent.tell(&Services::default(), &subject("spl", Reason::ProcessDown), &mut down);
            down.problems[0].evidence.get("diagnosis").unwrap().to_string()
        };
        assert!(told(&recent).ends_with("; and so (likely) nobody listens"), "{}", told(&recent));
        recent.note(now(14_000), &port, &Judgement::default());
        assert!(told(&recent).ends_with("; and so (likely), over after 12 s: nobody listens"), "{}", told(&recent));
    }

    /// A pid file that was written a second after the start, and an end two seconds later.
    #[test]
    fn what_was_over_before_its_cause_began_is_no_effect_of_it() {
        for (from_ms, over_ms, down_ms, expected) in [
            (1_000, 2_000, 3_000, false),
            // Two looks may see them in the wrong order.
            (1_000, 5_000, 3_000, true),
            (3_000, 4_000, 2_000, true),
        ] {
            let (mut recent, port) = (Recent::default(), subject("spl", Reason::PortClosed));
            let mut down = Judgement::problem(Problem::new(Reason::ProcessDown, "down").evidence(process(7, 1)));
            let closed = Judgement::problem(Problem::new(Reason::PortClosed, "nobody listens"));
            let mut looks = [
                (from_ms, &port, closed),
                (over_ms, &port, Judgement::default()),
                (down_ms, &subject("spl", Reason::ProcessDown), down.clone()),
            ];
            looks.sort_by_key(|(at_ms, ..)| *at_ms);
            for (at_ms, subject, judgement) in looks {
                recent.note(now(at_ms), subject, &judgement);
            }
            recent.tell(&Services::default(), &subject("spl", Reason::ProcessDown), &mut down);
            let diagnosis = down.problems[0].evidence.get("diagnosis").map(ToString::to_string).unwrap_or_default();
            assert_eq!(diagnosis.contains("nobody listens"), expected, "{from_ms} {over_ms} {down_ms}: {diagnosis}");
        }
    }

    #[test]
    fn a_loop_is_not_behind_one_of_its_restarts() {
        let mut recent = Recent::default();
        let of_loop = subject("spl", Reason::RestartLoop);
        let problem = Problem::new(Reason::RestartLoop, "spl keeps restarting");
        recent.note(now(1_000), &of_loop, &Judgement::problem(problem));
        let restart = finding("spl", Reason::ProcessRestarted, Evidence::new());
        let seen = Problem::new(Reason::ProcessRestarted, restart.summary.clone());
        recent.note(now(2_000), &restart.key.subject, &Judgement::default().occurred(seen));
        let told = stories(std::slice::from_ref(&restart), &recent, &Services::default());
        assert!(!told[0].sentence.contains("behind it"), "{}", told[0].sentence);
    }

    #[test]
    fn one_truncated_database_is_one_story() {
        let database = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::Sqlite, "/hub.db");
        let one = |reason| Finding::new(FindingKey { subject: database.clone(), reason }, reason.as_str());
        let findings = [one(Reason::SqliteCorrupt), one(Reason::SqliteShrunk)];
        assert_eq!(shown(&findings), ["sev1 sqlite_shrunk [Symptom sqlite_corrupt likely]"]);
    }

    #[test]
    fn a_symptom_that_came_twice_is_told_once() {
        let mut recent = noted(&[finding("spl", Reason::ProcessDown, process(7, 1))]);
        let stale = subject("spl", Reason::PidFileStale);
        for (at_ms, summary) in [(2_000, Some("names pid 8")), (3_000, None), (4_000, Some("names pid 9"))] {
            let seen = summary.map(|summary| Judgement::problem(Problem::new(Reason::PidFileStale, summary)));
            recent.note(now(at_ms), &stale, &seen.unwrap_or_default());
        }
        let mut down = Judgement::problem(Problem::new(Reason::ProcessDown, "down").evidence(process(7, 1)));
        recent.tell(&Services::default(), &subject("spl", Reason::ProcessDown), &mut down);
        let diagnosis = down.problems[0].evidence.get("diagnosis").unwrap().to_string();
        assert_eq!(diagnosis.matches("names pid").count(), 1, "{diagnosis}");
        assert!(diagnosis.contains("and so (likely) names pid 9"), "{diagnosis}");
    }

    /// A successor that another look has seen since the end makes that end's own words untrue.
    #[test]
    fn who_has_restarted_needs_no_start() {
        let mut judge = crate::process::watch::ProcessJudge::default();
        let instance = |pid: u32| Instance {
            process: ProcessId { pid, start_ticks: 1 },
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: 1,
            ended_boottime_ms: None,
        };
        let rules = crate::process::watch::ProcessRules {
            open_files_percent: 80,
            memory_growth: crate::process::growth::GrowthRules {
                window: Duration::from_secs(3_600),
                by_at_least: 1,
                by_percent: 1,
            },
            zombie_children: 10,
            tells_end: true,
        };
        let gone = crate::process::watch::Life::Gone(crate::process::exit::Exit::Unknown("nobody told".into()));
        let down = judge.judge(&rules, &instance(7), 1, &gone, now(60_000), false);
        let mut file = crate::pid_file::PidFileJudge::default();
        let reading = |alive| crate::pid_file::Reading {
            file: crate::pid_file::FileReading::Pid { pid: 7, modified: Timestamp::UNIX_EPOCH },
            symlink_to: None,
            process: Some(alive),
            known_alive: None,
            exit: None,
        };
        let alive = crate::pid_file::ProcessReading::Alive(crate::pid_file::Facts {
            process: ProcessId { pid: 7, start_ticks: 1 },
            start_boottime_ms: 1,
            comm: "spl".into(),
            exe: None,
            cgroup: None,
        });
        file.judge("/run/spl.pid", reading(alive), now(50_000), false);
        let by_file = file.judge("/run/spl.pid", reading(crate::pid_file::ProcessReading::Gone), now(60_000), false);
        for judgement in [down, by_file] {
            let at = subject("spl", Reason::ProcessDown);
            let mut recent = Recent::default();
            recent.note(now(60_000), &at, &judgement);
            for (running, says, starts) in [(7, "no successor is known", true), (9, "it has restarted as pid 9", false)]
            {
                let mut services = Services::default();
                let ended = (running == 7).then_some(60_000);
                services.note(&at.service, Instance { ended_boottime_ms: ended, ..instance(running) });
                let mut told = judgement.clone();
                recent.tell(&services, &at, &mut told);
                let finding = told.problems[0].finding(&at);
                // As it was told before the successor was seen.
                let before = judgement.problems[0].finding(&at);
                let story = stories(std::slice::from_ref(&before), &recent, &services).remove(0);
                assert_eq!(finding.summary.contains("no successor"), starts, "{}", finding.summary);
                assert!(story.sentence.contains(says), "{}", story.sentence);
                assert_eq!(story.sentence.contains("no successor"), starts, "{}", story.sentence);
                for steps in [&finding.next_steps, &story.next_steps] {
                    assert_eq!(steps.iter().any(|step| step.contains("start it")), starts, "{steps:?}");
                    assert!(steps.iter().any(|step| step.starts_with("see why it ended")), "{steps:?}");
                }
            }
        }
    }

    #[test]
    fn a_successor_that_has_ended_too_is_named() {
        let restart =
            finding("spl", Reason::ProcessRestarted, Evidence::new().count(crate::diagnose::OLD_PID_KEY, 7u64));
        let mut services = Services::default();
        let ended = Instance {
            process: ProcessId { pid: 9, start_ticks: 1 },
            comm: "spl".into(),
            exe: None,
            cgroup: None,
            first_seen_boottime_ms: 1,
            ended_boottime_ms: Some(2_000),
        };
        services.note(&restart.key.subject.service, ended);
        let told = stories(std::slice::from_ref(&restart), &noted(std::slice::from_ref(&restart)), &services).remove(0);
        assert_eq!(told.standing, ["pid 9 has ended since then"]);
    }

    #[test]
    fn what_has_ended_and_is_not_reaped_is_one_story() {
        let findings =
            [finding("spl", Reason::ProcessZombie, process(7, 1)), finding("spl", Reason::ProcessDown, process(7, 1))];
        assert_eq!(shown(&findings), ["sev2 process_down [Symptom process_zombie confirmed]"]);
        assert!(crate::diagnose::is_symptom(&findings[1], &findings[0]));
        let other = [findings[0].clone(), finding("spl", Reason::ProcessDown, process(8, 1))];
        assert_eq!(shown(&other).len(), 2);
        let told = stories(&findings, &noted(&findings), &Services::default()).remove(0);
        assert!(!told.sentence.contains("its end was seen"), "{}", told.sentence);
    }

    /// Who holds a lock says nothing of what is in the database, and what is damaged has passed nothing.
    #[test]
    fn of_databases_only_ill_ones_are_told() {
        let restart = finding("spl", Reason::ProcessRestarted, Evidence::new());
        let hub = SubjectKey::new(ServiceName::new("spl").unwrap(), ProbeKind::Sqlite, "/hub.db");
        let told = |reason: Reason, well_first: bool| {
            let mut recent = noted(std::slice::from_ref(&restart));
            if well_first {
                let well = Judgement::ok(Evidence::new().with(CHECKED_AT_KEY, Value::Millis(4_000)));
                recent.note(now(4_000), &hub, &well);
            }
            let other = SubjectKey { probe: ProbeKind::Lock, ..hub.clone() };
            let subject = if well_first { &other } else { &hub };
            recent.note(now(90_000), subject, &Judgement::problem(Problem::new(reason, "it is so")));
            stories(std::slice::from_ref(&restart), &recent, &Services::default()).remove(0).standing.join("; ")
        };
        assert_eq!(told(Reason::SqliteLockHeld, false), "");
        assert_eq!(told(Reason::SqliteWalGrowth, false), "");
        assert_eq!(told(Reason::SqliteCorrupt, false), "it is so");
        assert_eq!(told(Reason::LockContention, true), "hub.db passed its check since then (3 s later)");
        assert_eq!(told(Reason::SqliteCorrupt, true), "it is so");
    }

    #[test]
    fn a_lock_of_a_database_locks_no_repository() {
        let held = |reason| {
            let findings =
                [finding("spl", Reason::SqliteLockHeld, process(9, 9)), finding("spl", reason, process(7, 1))];
            noted(&findings).cause_of(&known(&findings[1], &noted(&findings))).map(|(_, explained)| explained.grade)
        };
        assert_eq!(held(Reason::RepoLocked), None);
        assert_eq!(held(Reason::Timeout), Some(Grade::Possible));
    }

    /// Strangers that wait for each other end nobody else; and only of a kill is an end the killed one's.
    #[test]
    fn a_lock_between_strangers_ends_nothing() {
        let held = |evidence: Evidence| finding("spl", Reason::LockContention, evidence);
        let party = |key, services: &str| process(9, 9).text(key, services);
        for reason in [Reason::RestartLoop, Reason::UnitFailed, Reason::ProcessDown] {
            let told = |evidence: Evidence| {
                let findings = [held(evidence), finding("spl", reason, process(7, 1))];
                stories(&findings, &noted(&findings), &Services::default())
            };
            for strangers in [process(9, 9), party(crate::diagnose::WAITER_SERVICES_KEY, "hub")] {
                assert_eq!(told(strangers).len(), 2, "{reason}");
            }
            for known in [
                process(7, 1),
                party(crate::diagnose::HOLDER_SERVICE_KEY, "spl"),
                party(crate::diagnose::WAITER_SERVICES_KEY, "hub, spl"),
            ] {
                let told = told(known);
                assert_eq!(told.len(), 1, "{reason}");
                let sentence = &told[0].sentence;
                assert!(!sentence.contains("its end") && sentence.contains("and so (possible)"), "{sentence}");
            }
        }
    }

    #[test]
    fn a_loop_does_not_tell_the_end_of_one_of_its_lives() {
        let status = |pid| process(pid, 1).text(EXIT_STATUS_KEY, "exit code 3");
        let findings =
            [finding("spl", Reason::RestartLoop, process(8, 1)), finding("spl", Reason::ProcessDown, status(7))];
        let told = stories(&findings, &noted(&findings), &Services::default());
        assert_eq!(told.len(), 1);
        assert!(!told[0].sentence.contains("its end"), "{}", told[0].sentence);
    }

    #[test]
    fn what_is_told_with_a_symptom_does_not_tell_it_again() {
        let mut recent = noted(&[finding("spl", Reason::ProcessDown, process(7, 1))]);
        let told = |recent: &mut Recent, reason: Reason| {
            let mut seen = Judgement::problem(Problem::new(reason, format!("{reason} says this")));
            recent.note(now(2_000), &subject("spl", reason), &seen);
            recent.tell(&Services::default(), &subject("spl", reason), &mut seen);
            seen.problems[0].evidence.get("diagnosis").unwrap().to_string()
        };
        // Without another symptom its cause alone is told.
        assert_eq!(told(&mut recent, Reason::HealthCheckFailed), "process_down");
        let port = told(&mut recent, Reason::PortClosed);
        assert_eq!(port, "process_down; and so (likely) health_check_failed says this");
        told(&mut recent, Reason::PidFileStale);
        told(&mut recent, Reason::PortUnresponsive);
        let health = told(&mut recent, Reason::HealthCheckFailed);
        assert!(health.ends_with("; and 1 more symptom") && !health.contains("health_check"), "{health}");
    }

    #[test]
    fn an_error_that_joins_nothing_is_a_story_of_its_own_and_the_worst_first() {
        let findings = [Reason::PermissionDenied, Reason::Timeout, Reason::DatabaseError, Reason::LogError]
            .map(|reason| finding("spl", reason, Evidence::new()));
        let recent = noted(&findings);
        let kept: Vec<Finding> = recent.occurrences().collect();
        let told = stories(&kept, &recent, &Services::default());
        let told: Vec<&str> = told.iter().map(|story| kept[story.cause].key.reason.as_str()).collect();
        assert_eq!(told, ["database_error", "permission_denied", "timeout", "log_error"]);
    }

    #[test]
    fn only_the_same_kind_is_an_earlier_one() {
        let line = |rule: &str, group: &str| {
            let evidence = Evidence::new().text(RULE_KEY, rule);
            let evidence = if group.is_empty() { evidence } else { evidence.text(GROUP_KEY, group) };
            Finding { summary: format!("{rule} {group}"), ..finding("spl", Reason::LogError, evidence) }
        };
        let findings = [line("r", "a"), line("r", "b"), line("r", "a"), line("s", ""), line("s", "")];
        let mut recent = Recent::default();
        for (at_ms, finding) in findings.iter().enumerate() {
            let happened = Problem::new(finding.key.reason, &finding.summary).evidence(finding.evidence.clone());
            recent.note(now(1_000 + at_ms as u64), &finding.key.subject, &Judgement::default().occurred(happened));
        }
        // As a look of its own, and as the agent remembers it.
        for findings in [findings.to_vec(), recent.occurrences().collect()] {
            let told = stories(&findings, &recent, &Services::default());
            let told: Vec<_> = told.iter().map(|story| (story.sentence.as_str(), story.links.len())).collect();
            assert_eq!(told, [("r b", 0), ("r a", 1), ("s ", 1)]);
        }
    }

    #[test]
    fn a_story_of_what_happened_says_when() {
        let happened = finding("spl", Reason::Timeout, Evidence::new());
        let lasts = finding("spl", Reason::PortClosed, Evidence::new());
        let mut recent = Recent::default();
        for finding in [&happened, &lasts] {
            let problem = Problem::new(finding.key.reason, "x");
            let judgement = match finding.key.reason.kind() {
                ReasonKind::Occurrence => Judgement::default().occurred(problem),
                _ => Judgement::problem(problem),
            };
            recent.note(now(7_000), &finding.key.subject, &judgement);
        }
        let told = stories(&[happened.clone(), lasts], &recent, &Services::default());
        assert_eq!(told.iter().map(|story| story.happened_boottime_ms).collect::<Vec<_>>(), [None, Some(7_000)]);
        let unseen = stories(&[happened], &Recent::default(), &Services::default());
        assert_eq!(unseen[0].happened_boottime_ms, None);
    }

    #[test]
    fn a_kill_by_the_watchdog_names_the_bound() {
        let killed = |by: &str| {
            let evidence = process(7, 1).text(EXIT_STATUS_KEY, "SIGABRT").text(TOLD_BY_KEY, by);
            finding("spl", Reason::ProcessDown, evidence).next_steps(["see why it ended"])
        };
        let mut services = Services::default();
        services.note_unit(&killed("").key.subject.service, "spl.service");
        for (by, named) in
            [("systemd (result watchdog)", true), ("systemd (result core-dump)", false), ("kernel", false)]
        {
            let down = killed(by);
            let told = stories(std::slice::from_ref(&down), &noted(std::slice::from_ref(&down)), &services);
            let names =
                |steps: &[String]| steps.iter().any(|step| step.contains("systemctl show spl.service -p WatchdogUSec"));
            assert_eq!(names(&told[0].next_steps), named, "{by}: {:?}", told[0].next_steps);
            let problem = Problem::new(down.key.reason, "x").evidence(down.evidence.clone());
            let mut judgement = Judgement::problem(problem);
            let recent = noted(std::slice::from_ref(&down));
            recent.tell(&services, &down.key.subject, &mut judgement);
            assert_eq!(names(&judgement.problems[0].next_steps), named, "{by}");
            // The kernel told how, systemd why.
            let unit = finding("spl", Reason::UnitFailed, process(7, 1).text(RESULT_KEY, "watchdog"));
            let both = [down.clone(), unit];
            assert!(names(&stories(&both, &noted(&both), &services)[0].next_steps), "{by}");
        }
    }

    #[test]
    fn a_step_names_the_process_that_is_known() {
        let step = "ls -l /proc/PID/fd | grep deleted";
        let replaced = finding("spl", Reason::SqliteReplaced, Evidence::new()).next_steps([step]);
        for (ended, expected) in [(None, "ls -l /proc/9/fd | grep deleted"), (Some(5), step)] {
            let mut services = Services::default();
            let instance = Instance {
                process: ProcessId { pid: 9, start_ticks: 1 },
                comm: "spl".into(),
                exe: None,
                cgroup: None,
                first_seen_boottime_ms: 1,
                ended_boottime_ms: ended,
            };
            services.note(&replaced.key.subject.service, instance);
            let told = stories(std::slice::from_ref(&replaced), &Recent::default(), &services);
            assert_eq!(told[0].next_steps, [expected]);
            let mut judgement =
                Judgement::problem(Problem::new(Reason::SqliteReplaced, "x").next_steps([step.to_owned()]));
            Recent::default().tell(&services, &replaced.key.subject, &mut judgement);
            assert_eq!(judgement.problems[0].next_steps, [expected]);
        }
    }

    #[test]
    fn who_is_stopped_answers_nobody_and_keeps_its_locks() {
        let findings = [
            finding("spl", Reason::ProcessStopped, process(7, 1)),
            finding("spl", Reason::HealthCheckFailed, Evidence::new()),
            finding("spl", Reason::SqliteLockHeld, process(7, 1)),
        ];
        let told = "sev2 process_stopped [Symptom health_check_failed likely, Symptom sqlite_lock_held likely]";
        assert_eq!(shown(&findings), [told]);
    }

    #[test]
    fn a_cgroup_at_its_own_limit_is_no_likely_fault_of_the_host() {
        let mut recent = Recent::default();
        let low = Judgement::problem(Problem::new(Reason::MemoryCritical, "1 GiB left"));
        recent.note(now(1_000), &subject("host", Reason::MemoryCritical), &low);
        let kill = |scope: &str| {
            let mut recent = recent.clone();
            let kill =
                Problem::new(Reason::OomKill, "killed").evidence(process(7, 1).text(super::super::SCOPE_KEY, scope));
            let mut kill = Judgement::default().occurred(kill);
            recent.note(now(3_000), &subject("spl", Reason::OomKill), &kill);
            recent.tell(&Services::default(), &subject("spl", Reason::OomKill), &mut kill);
            kill.occurrences[0].evidence.get("diagnosis").unwrap().to_string()
        };
        assert!(kill("memcg").contains("critical for 2 s (possibly behind it: 1 GiB left)"), "{}", kill("memcg"));
        assert!(kill("global").contains("critical for 2 s (likely behind it: 1 GiB left)"), "{}", kill("global"));
    }

    #[test]
    fn steps_that_save_data_come_first_and_none_is_told_twice() {
        let with = |reason, steps: &[&str]| finding("spl", reason, process(7, 1)).next_steps(steps);
        let findings = [
            with(Reason::ProcessDown, &["start it"]),
            with(Reason::SqliteJournalHot, &["copy it", "start it"]),
            with(Reason::PortClosed, &["look"]),
        ];
        let told = stories(&findings, &noted(&findings), &Services::default());
        assert_eq!(told[0].next_steps, ["copy it", "start it"]);
    }
}
