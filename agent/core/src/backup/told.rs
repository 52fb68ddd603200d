//! The sentences, evidence and next steps about copies. When copies were made and are gone is told as a moment: a page is
//! read minutes later, and "104 s old" is then no longer so.

use super::shrinking::Shrinking;
use super::{ACCEPTED_AFTER, Known, Left, Loss, Rules, Source, age};
use crate::clock::Now;
use crate::judgement::Problem;
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::{human_bytes, human_duration as length};
use std::time::Duration;

/// Good copies named one by one.
const NAMED_MAX: usize = 4;
/// Lost tables named.
const TABLES_NAMED_MAX: usize = 6;

/// A path as it may stand in a sentence: control characters escaped.
pub(super) fn shown(path: &str) -> String {
    path.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A path as it may stand in a command.
fn quoted(path: &str) -> String {
    crate::shell::quoted(&shown(path))
}

pub(super) fn missing(rules: &Rules, last: Option<&Known>, missing_folder: Option<&str>) -> Problem {
    let pattern = shown(&rules.pattern);
    let folder = missing_folder.map(shown);
    let absent = folder.as_ref().map(|folder| format!(": there is no folder {folder} (not mounted, or misspelt?)"));
    let before = last.map(|known| {
        let (path, size) = (shown(&known.file.path), human_bytes(known.file.size_bytes));
        format!("{} the last good copy was {path} ({size})", if folder.is_some() { ";" } else { ":" })
    });
    let (absent, before) = (absent.unwrap_or_default(), before.unwrap_or_default());
    let summary = format!("there is no backup that fits {pattern}{absent}{before}");
    let mut evidence = Evidence::new().text("pattern", pattern);
    if let Some(source) = &rules.source {
        evidence = evidence.text("source_path", source);
    }
    if let Some(known) = last {
        evidence = evidence.text("last_good", shown(&known.file.path)).bytes("last_good_bytes", known.file.size_bytes);
    }
    let mounted = match &folder {
        Some(folder) => {
            evidence = evidence.text("missing_folder", folder);
            format!("is the target of {folder} mounted, is its name in the agent's config right? findmnt; df -h")
        }
        None => "is the target mounted? findmnt; df -h".to_owned(),
    };
    let ran = "did the backup job ever run? systemctl list-timers --all; crontab -l; ls /etc/cron.d".to_owned();
    let (first, second) = if folder.is_some() { (mounted, ran) } else { (ran, mounted) };
    let by_hand = "make one by hand now, and look at what the job writes and where".to_owned();
    Problem::new(Reason::BackupMissing, summary).evidence(evidence).next_steps([first, second, by_hand])
}

pub(super) fn stale(rules: &Rules, newest: &Known, age: Duration, max_age: Duration, written: bool) -> Problem {
    let path = shown(&newest.file.path);
    let now = if written { "; a newer one is being written" } else { "" };
    let made = newest.file.modified.to_utc_minute();
    let (old, allowed) = (length(age), length(max_age));
    let summary = format!("the newest backup {path}, of {made}, is {old} old (at most {allowed} is allowed){now}");
    let mut evidence = Evidence::new()
        .text("newest", path)
        .text("pattern", shown(&rules.pattern))
        .duration("age_ms", age)
        .duration("max_age_ms", max_age)
        .bytes("size_bytes", newest.file.size_bytes)
        .text("modified", newest.file.modified.to_string());
    if let Some(source) = &rules.source {
        evidence = evidence.text("source_path", source);
    }
    Problem::new(Reason::BackupStale, summary).evidence(evidence).next_steps([
        "find the job and its last run: systemctl list-timers --all; systemctl --failed; crontab -l".to_owned(),
        "read what it said: journalctl -u UNIT_OF_THE_JOB -n 50".to_owned(),
        "room on the target? df -h; df -i".to_owned(),
    ])
}

pub(super) fn too_few(rules: &Rules, there: u32, keep: u32) -> Problem {
    let pattern = shown(&rules.pattern);
    let summary = format!("only {there} of {keep} backups are left that fit {pattern}: there were {keep} before");
    let evidence = Evidence::new().text("pattern", pattern).count("copies", there).count("keep", keep);
    Problem::new(Reason::BackupMissing, summary).evidence(evidence).next_steps([
        "who removes them? look at the rotation: ls /etc/logrotate.d; crontab -l; systemctl list-timers --all",
        "copy the good ones aside before more of them go",
    ])
}

/// The newest copy is damaged.
pub(super) fn corrupt(rules: &Rules, bad: &Known, left: &Left, now: Now) -> Problem {
    let path = shown(&bad.file.path);
    let content = bad.content.clone().unwrap_or_default();
    let why = match content.damage {
        Some(damage) => shown(&damage),
        None if bad.file.size_bytes == 0 => "it is empty (0 bytes)".to_owned(),
        None => format!(
            "it has {}, less than the configured least size of {}",
            human_bytes(bad.file.size_bytes),
            human_bytes(rules.min_bytes)
        ),
    };
    let summary = format!("the backup {path} is unusable: {why}; {}", left_in_words(left));
    let evidence = about(rules, bad, now).text("damage", why).text("checked", content.checked);
    let problem = Problem::new(Reason::BackupCorrupt, summary).evidence(with_left(evidence, left));
    let problem = if left.good.is_empty() { problem.severity(Severity::Sev1) } else { problem };
    problem.next_steps(steps(rules, left, None))
}

/// The newest copy is much less than the last good one.
pub(super) fn shrunk(
    rules: &Rules,
    known: &Known,
    loss: &Loss,
    source: Option<&Source>,
    left: &Left,
    now: Now,
) -> Problem {
    let path = shown(&known.file.path);
    let state = source.map(|source| source_state(rules, loss, source));
    let overwritten = loss.before_path == known.file.path && rules.fixed;
    let verb = if overwritten { "overwrote a good one:" } else { "follows a good one:" };
    let source_words = match (&state, &rules.source) {
        (Some((state, said)), Some(source)) if *state != "intact" => format!("; the source {} {said}", shown(source)),
        (Some(("intact", _)), Some(source)) => {
            format!("; the source {} is not smaller, so the copying itself failed", shown(source))
        }
        _ => String::new(),
    };
    let summary = format!("the backup {path} {verb} it {}{source_words}; {}", loss.what, left_in_words(left));
    let mut evidence = about(rules, known, now)
        .text("last_good", shown(&loss.before_path))
        .bytes("last_good_bytes", loss.before_bytes)
        .flag("empty", loss.empty)
        .flag("overwritten", overwritten);
    if let (Some(before), Some(rows)) = (loss.before_rows, loss.now_rows) {
        evidence = evidence.count("last_good_rows", before).count("rows", rows);
    }
    if !loss.lost_tables.is_empty() {
        let named: Vec<&str> = loss.lost_tables.iter().take(TABLES_NAMED_MAX).map(String::as_str).collect();
        evidence = evidence.text("lost_tables", shown(&named.join(", ")));
    }
    if let Some((state, _)) = &state {
        evidence = evidence.text("source_state", *state);
    }
    if let Some(Source::Bytes(bytes)) = source {
        evidence = evidence.bytes("source_bytes", *bytes);
    }
    if let Some(bytes) = loss.source_before_bytes {
        evidence = evidence.bytes("source_before_bytes", bytes);
    }
    let source_lost = state.as_ref().is_some_and(|(state, _)| !matches!(*state, "intact" | "unknown"));
    let severity = match loss.grade {
        _ if left.good.is_empty() && source_lost => Severity::Sev1,
        Grade::Possible => Severity::Sev3,
        _ => Severity::Sev2,
    };
    Problem::new(Reason::BackupShrunk, summary)
        .grade(loss.grade)
        .severity(severity)
        .evidence(with_left(evidence, left))
        .next_steps(steps(rules, left, (!loss.empty).then_some(rules.min_percent)))
}

/// Each copy is good by itself, and the newest is much less than the largest.
pub(super) fn shrinking(rules: &Rules, shrinking: &Shrinking<'_>, now: Now) -> Problem {
    let Shrinking { newest, largest, by_rows, .. } = *shrinking;
    let amount = |amount: u64| if by_rows { format!("{amount} rows") } else { human_bytes(amount) };
    let percent = u128::from(shrinking.now) * 100 / u128::from(shrinking.before.max(1));
    let old = age(&largest.file, now);
    let summary = format!(
        "the backup {} has {} ({percent} %) of the {} in the largest good copy, of {}: copies shrink little by \
         little, none of them by much",
        shown(&newest.file.path),
        amount(shrinking.now),
        amount(shrinking.before),
        largest.file.modified.to_utc_minute()
    );
    let key = |what: &str| format!("{what}_{}", if by_rows { "rows" } else { "bytes" });
    let value = |amount| if by_rows { Value::Count(amount) } else { Value::Bytes(amount) };
    let evidence = about(rules, newest, now)
        .text("largest", shown(&largest.file.path))
        .with(&key("largest"), value(shrinking.before))
        .with(&key("newest"), value(shrinking.now))
        .duration("largest_age_ms", old)
        .flag("little_by_little", true);
    let source = rules.source.as_ref().map_or_else(|| "the source".to_owned(), |source| quoted(source));
    Problem::new(Reason::BackupShrunk, summary)
        .grade(Grade::Possible)
        .severity(Severity::Sev4)
        .evidence(evidence)
        .next_steps([
            format!(
                "does something prune {source} on purpose (a retention, a clean-up job)? then this is what it does"
            ),
            "if nothing should: keep one of the larger copies where nothing rotates, and find what is missing in the \
             newest"
                .to_owned(),
            format!(
                "if it was meant: nothing; it is over when {ACCEPTED_AFTER} copies in a row keep one size, or lower \
                 min_percent_over_time ({}) for these backups (0: never told)",
                rules.min_percent_over_time
            ),
        ])
}

/// Where the loss began: in the source, or in the copying.
fn source_state(rules: &Rules, loss: &Loss, source: &Source) -> (&'static str, String) {
    let bytes = match source {
        Source::Missing => return ("missing", "does not exist any more: look there first".to_owned()),
        Source::Hidden(why) => return ("unknown", format!("could not be looked at ({why})")),
        Source::Bytes(0) => return ("empty", "is itself empty: look there first".to_owned()),
        Source::Bytes(bytes) => *bytes,
    };
    let less = |before: u64| u128::from(bytes) * 100 < u128::from(before) * u128::from(rules.min_percent);
    match loss.source_before_bytes {
        Some(before) if less(before) => {
            let sizes = format!("{} where it had {}", human_bytes(bytes), human_bytes(before));
            ("shrunk", format!("is itself smaller ({sizes}): look there first"))
        }
        // A file that was never seen larger says something only beside a plain copy of it.
        None if loss.before_rows.is_some() && less(loss.before_bytes) => {
            let sizes =
                format!("{} where the last good copy has {}", human_bytes(bytes), human_bytes(loss.before_bytes));
            ("shrunk", format!("is itself smaller ({sizes}): look there first"))
        }
        None if loss.before_rows.is_none() => ("unknown", "was not seen before".to_owned()),
        _ => ("intact", String::new()),
    }
}

fn about(rules: &Rules, known: &Known, now: Now) -> Evidence {
    let mut evidence = Evidence::new()
        .text("path", shown(&known.file.path))
        .text("pattern", shown(&rules.pattern))
        .bytes("size_bytes", known.file.size_bytes)
        .duration("age_ms", age(&known.file, now))
        .text("modified", known.file.modified.to_string())
        .count("inode", known.file.inode);
    if let Some(source) = &rules.source {
        evidence = evidence.text("source_path", source);
    }
    if let Some(not_checked) = known.content.as_ref().and_then(|content| content.not_checked.as_ref()) {
        evidence = evidence.text("not_checked", not_checked);
    }
    evidence
}

fn with_left(mut evidence: Evidence, left: &Left) -> Evidence {
    evidence = evidence.count("good_copies", left.good.len() as u64);
    for (index, copy) in left.good.iter().take(NAMED_MAX).enumerate() {
        let (bytes, made) = (human_bytes(copy.size_bytes), copy.made.to_utc_minute());
        let said = format!("{} ({bytes}, of {made})", shown(&copy.path));
        evidence = evidence.text(&format!("good_copy_{}", index + 1), said);
    }
    if !left.good.is_empty() {
        evidence = evidence.count("rotations_left", left.rotations).count("kept_copies", left.kept);
        if let Some(rhythm) = left.rhythm {
            evidence = evidence
                .duration("usual_gap_ms", rhythm)
                .duration("last_good_gone_in_ms", rhythm.saturating_mul(left.rotations));
        }
        if let Some(at) = left.gone_at {
            evidence = evidence.with("last_good_gone_at", Value::Time(at));
        }
    }
    evidence
}

/// `2 good copies are left, the newest … (64 KiB, of 2026-11-22 19:31 UTC); … 2 more backups remove the last one (at about
/// 2026-11-24 19:30 UTC)`.
fn left_in_words(left: &Left) -> String {
    let Some(newest) = left.good.first() else { return "no good copy is left".to_owned() };
    let copies = match left.good.len() {
        1 => "1 good copy is left:".to_owned(),
        many => format!("{many} good copies are left, the newest"),
    };
    let rotations = match left.rotations {
        0 | 1 => "the next backup removes the last one".to_owned(),
        many => format!("{many} more backups remove the last one"),
    };
    let gone = left.gone_at.map(|at| format!(" (at about {})", at.to_utc_minute()));
    format!(
        "{copies} {} ({}, of {}); if {} are kept as now, {rotations}{}: stop the rotation",
        shown(&newest.path),
        human_bytes(newest.size_bytes),
        newest.made.to_utc_minute(),
        left.kept,
        gone.unwrap_or_default()
    )
}

fn steps(rules: &Rules, left: &Left, min_percent: Option<u64>) -> Vec<String> {
    let mut steps = vec![
        "stop the rotation now: systemctl list-timers --all, then systemctl stop JOB.timer; or comment its line out \
         with crontab -e or in /etc/cron.d"
            .to_owned(),
    ];
    if let Some(good) = left.good.first() {
        let path = quoted(&good.path);
        steps.push(format!(
            "copy the newest good one to where nothing rotates: cp -a --no-clobber {path} /SAFE/FOLDER/"
        ));
    }
    if let Some(source) = &rules.source {
        let source = quoted(source);
        steps.push(format!(
            "look at the source before anything else: ls -la {source}*; if it lost content, stop its writers and copy it \
             with its -wal, -shm and -journal aside"
        ));
    } else {
        steps.push("look at what was copied before anything else: is it whole?".to_owned());
    }
    steps.push("read what the backup job said: journalctl -u UNIT_OF_THE_JOB -n 50; df -h".to_owned());
    if let Some(percent) = min_percent {
        steps.push(format!(
            "if it was meant (a purge): nothing; it is accepted after some more copies of that size, or lower \
             min_percent ({percent}) for these backups"
        ));
    }
    steps.push("start the rotation again when a new good copy exists".to_owned());
    steps
}
