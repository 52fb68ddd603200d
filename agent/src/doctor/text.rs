//! The report for a tired person: what is wrong first, then the evidence, then what to do.
//!
//! Must never print a stranger's control characters: names of processes and paths are theirs, the terminal is ours.

use super::report::{Overall, Report, Unanswered};
use muster_agent_core::diagnose::{Relation, Story};
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::finding::Finding;
use muster_common::limits::clip;
use muster_common::severity::Severity;
use muster_common::units::human_duration;
use std::collections::BTreeSet;
use std::io::{self, Write};

/// Bytes of one value without `--verbose`: a line on most terminals, and enough of a kernel line to know it.
const VALUE_BYTES_MAX: usize = 90;

/// Bytes of a line of evidence without `--verbose`.
const EVIDENCE_LINE_BYTES: usize = 100;

/// Services named where many have the same trouble.
const NAMES_SHOWN_MAX: usize = 6;

/// Evidence for programs, or told in other words: only `--verbose` prints it.
const FOR_PROGRAMS: [&str; 7] =
    ["cause_grade", "ended_after", "kmsg_sequence", "observed_at", "since_boot_ms", "start_ticks", "undated"];

/// How to print.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// With colours.
    pub colour: bool,
    /// With every probe and every remark.
    pub verbose: bool,
}

/// Prints the report.
pub fn write(out: &mut dyn Write, report: &Report, style: Style) -> io::Result<()> {
    write_title(out, report, style)?;
    // The worst comes first, whoever tells it.
    let agent_first = report.agent_knows_worse();
    if agent_first {
        write_agent_says(out, report, style)?;
    }
    for story in &report.stories {
        write_story(out, report, story, style)?;
    }
    if !agent_first {
        write_agent_says(out, report, style)?;
    }
    // What a finding tells is not asked twice; where nothing tells it, it must not be lost.
    let is_told = |unknown: &Unanswered| {
        let of_it = |finding: &Finding| finding.key.subject.service.as_str() == unknown.service;
        let is_said = || report.agent_says.iter().any(|said| said.open && said.service == unknown.service);
        unknown.told_elsewhere && (report.findings.iter().any(of_it) || is_said())
    };
    let unknown: Vec<&Unanswered> =
        report.unknown.iter().filter(|unknown| style.verbose || !is_told(unknown)).collect();
    if !unknown.is_empty() {
        writeln!(out, "\n{}", paint("could not be answered", Paint::Bold, style))?;
        for alike in alike(&unknown) {
            write_unknown(out, &alike, style)?;
        }
    }
    if style.verbose {
        write_probes(out, report, style)?;
    }
    write_notes(out, report, style)
}

/// Questions without an answer for the same reason, together: twenty logs that may not be read are one thing to mend.
fn alike<'a>(unknown: &[&'a Unanswered]) -> Vec<Vec<&'a Unanswered>> {
    let mut groups: Vec<Vec<&Unanswered>> = Vec::new();
    for &one in unknown {
        let same = |group: &&mut Vec<&Unanswered>| {
            group.first().is_some_and(|first| {
                let probe = first.told_elsewhere || first.probe == one.probe;
                probe && (&first.why, &first.way_out) == (&one.why, &one.way_out)
            })
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(one),
            None => groups.push(vec![one]),
        }
    }
    groups
}

fn write_unknown(out: &mut dyn Write, alike: &[&Unanswered], style: Style) -> io::Result<()> {
    let Some(first) = alike.first() else { return Ok(()) };
    let why = plain(&first.why);
    if alike.len() == 1 || style.verbose {
        for unknown in alike {
            let [service, probe, subject] =
                [&unknown.service, &unknown.probe, &unknown.subject].map(|text| plain(text));
            writeln!(out, "  {service} {probe} {subject}: {why}")?;
        }
    } else {
        let mut services: Vec<String> = alike.iter().map(|unknown| plain(&unknown.service)).collect();
        services.dedup();
        let shown = services.len().min(NAMES_SHOWN_MAX);
        let more = if services.len() > shown { format!(" and {} more", services.len() - shown) } else { String::new() };
        let names = services.get(..shown).unwrap_or_default().join(", ");
        if first.told_elsewhere {
            let probes: BTreeSet<String> = alike.iter().map(|unknown| plain(&unknown.probe)).collect();
            let probes = probes.into_iter().collect::<Vec<_>>().join(", ");
            writeln!(out, "  {names}{more} ({probes}): {why}")?;
        } else {
            writeln!(out, "  {} {} checks ({names}{more}): {why}", alike.len(), plain(&first.probe))?;
        }
    }
    match &first.way_out {
        Some(way_out) => writeln!(out, "    way out: {}", plain(way_out)),
        None => Ok(()),
    }
}

fn write_title(out: &mut dyn Write, report: &Report, style: Style) -> io::Result<()> {
    let overall = report.overall();
    let (ok, all) = (report.ok_count(), report.probes.len());
    let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut parts = Vec::new();
    if !report.stories.is_empty() {
        parts.push(counted(report.stories.len(), "problem"));
    }
    let open = report.agent_says.iter().filter(|said| said.open).count();
    if open > 0 {
        parts.push(format!("{} said by the running agent", counted(open, "problem")));
    }
    let unanswered = report.unanswered().count();
    if unanswered > 0 {
        parts.push(format!("{unanswered} not answered"));
    }
    if all > 0 {
        parts.push(format!("{ok} of {} ok", counted(all, "check")));
    }
    if parts.is_empty() {
        parts.push("nothing to check".to_owned());
    }
    let word = overall.as_str().to_uppercase();
    let colour = match overall {
        Overall::Ok => Paint::Green,
        Overall::Warning | Overall::Unknown => Paint::Yellow,
        Overall::Critical => Paint::Red,
    };
    writeln!(out, "{} {}: {}", paint(&word, colour, style), plain(&report.host), parts.join(", "))
}

fn write_story(out: &mut dyn Write, report: &Report, story: &Story, style: Style) -> io::Result<()> {
    let Some(finding) = report.findings.get(story.cause) else { return Ok(()) };
    let key = &finding.key;
    let colour = if story.severity >= Severity::Sev2 { Paint::Red } else { Paint::Yellow };
    let title = format!("{} {} {}", story.severity, key.subject.service, key.reason);
    writeln!(out, "\n{}  {}", paint(&title, colour, style), plain(&key.subject.subject))?;
    writeln!(out, "  {}", plain(story.better_words.as_ref().unwrap_or(&finding.summary)))?;
    if finding.grade != Grade::Confirmed {
        writeln!(out, "  how sure: {}", finding.grade)?;
    }
    if style.verbose {
        write_evidence(out, &finding.evidence, "    ", style)?;
    } else {
        write_new_evidence(out, finding)?;
    }
    for link in &story.links {
        let Some(other) = report.findings.get(link.finding) else { continue };
        let (key, summary) = (&other.key, plain(&other.summary));
        let lead = match link.relation {
            Relation::Because => "because",
            Relation::Symptom => "and so",
            Relation::Earlier if style.verbose => "earlier",
            Relation::Earlier => continue,
        };
        // Of what happened before a line each is enough: there may be hundreds.
        if link.relation == Relation::Earlier {
            writeln!(out, "  {lead}: {summary}")?;
            continue;
        }
        let name = format!("{} {}", other.severity, key.reason);
        writeln!(
            out,
            "  {lead} ({}): {} {}",
            link.grade,
            paint(&name, Paint::Bold, style),
            plain(&key.subject.subject)
        )?;
        writeln!(out, "    {summary}")?;
        if style.verbose {
            write_evidence(out, &other.evidence, "      ", style)?;
        }
        let shares = |rival: &&Story| rival.shared.iter().any(|shared| shared.finding == link.finding);
        let rivals: Vec<String> =
            report.stories.iter().filter(shares).filter_map(|rival| name_of(report, rival.cause)).collect();
        if !rivals.is_empty() {
            writeln!(out, "    or as surely because of: {}", rivals.join("; "))?;
        }
    }
    for shared in &story.shared {
        let told_with =
            report.stories.iter().find(|other| other.links.iter().any(|link| link.finding == shared.finding));
        let told_with = told_with.and_then(|other| name_of(report, other.cause));
        if let Some((symptom, told_with)) = name_of(report, shared.finding).zip(told_with) {
            writeln!(out, "  and so, or because of {told_with} ({}): {symptom}", shared.grade)?;
        }
    }
    let earlier = story.links.iter().filter(|link| link.relation == Relation::Earlier).count();
    if earlier > 0 && !style.verbose {
        writeln!(out, "  and {earlier} earlier of the same kind (--verbose lists them)")?;
    }
    if !story.standing.is_empty() {
        writeln!(out, "  {} {}", paint("now:", Paint::Bold, style), plain(&story.standing.join("; ")))?;
    }
    for unknown in &story.unknown {
        writeln!(out, "  {} {}", paint("not known:", Paint::Bold, style), plain(unknown))?;
    }
    for step in &story.next_steps {
        writeln!(out, "  {} {}", paint("next:", Paint::Bold, style), plain(step))?;
    }
    Ok(())
}

/// `sev2 port_closed 127.0.0.1:9100`.
fn name_of(report: &Report, finding: usize) -> Option<String> {
    let finding = report.findings.get(finding)?;
    Some(format!("{} {} {}", finding.severity, finding.key.reason, plain(&finding.key.subject.subject)))
}

/// The word of the agent that runs there: it has watched for longer.
fn write_agent_says(out: &mut dyn Write, report: &Report, style: Style) -> io::Result<()> {
    if report.agent_says.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", paint("the running agent says", Paint::Bold, style))?;
    for said in &report.agent_says {
        let title = format!("{} {} {}", said.severity, plain(&said.service), plain(&said.reason));
        let colour = if said.severity >= Severity::Sev2 { Paint::Red } else { Paint::Yellow };
        let subject = match said.happened {
            _ if said.open => plain(&said.subject),
            _ if said.over => "(over: its process runs)".to_owned(),
            Some((at, ago)) => format!("(at {}, {} ago)", at.to_utc_minute(), human_duration(ago)),
            None => "(within the last hour)".to_owned(),
        };
        writeln!(out, "  {}  {subject}", paint(&title, colour, style))?;
        writeln!(out, "    {}", plain(&said.summary))?;
        if !said.seen_here.is_empty() {
            writeln!(out, "    {} {}", paint("seen here:", Paint::Bold, style), plain(&said.seen_here.join("; ")))?;
        }
        for step in &said.next_steps {
            writeln!(out, "    {} {}", paint("next:", Paint::Bold, style), plain(step))?;
        }
    }
    Ok(())
}

/// What the summary does not say already, in as few lines as it takes; `--verbose` has all of it, a line each.
fn write_new_evidence(out: &mut dyn Write, finding: &Finding) -> io::Result<()> {
    let telling = |(key, value): &(&str, &Value)| match value {
        Value::Flag(false) | Value::Bytes(0) | Value::Millis(0) => false,
        _ if FOR_PROGRAMS.contains(key) => false,
        value => !says(&finding.summary, &value.to_string()),
    };
    let mut line = String::new();
    for (key, value) in finding.evidence.iter().filter(telling) {
        let item = format!("{} {}", plain(key), clip(&plain(&value.to_string()), VALUE_BYTES_MAX));
        if !line.is_empty() && line.len() + item.len() > EVIDENCE_LINE_BYTES {
            writeln!(out, "    {line}")?;
            line.clear();
        }
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(&item);
    }
    if line.is_empty() { Ok(()) } else { writeln!(out, "    {line}") }
}

/// Whether `text` has `value` as words of its own: the 1 of "10" is not said.
fn says(text: &str, value: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    !value.is_empty()
        && text.match_indices(value).any(|(at, _)| {
            let (before, after) = (text[..at].chars().next_back(), text[at + value.len()..].chars().next());
            !is_word(before) && !is_word(after)
        })
}

fn write_evidence(out: &mut dyn Write, evidence: &Evidence, indent: &str, style: Style) -> io::Result<()> {
    let width = evidence.iter().map(|(key, _)| key.len()).max().unwrap_or(0).min(28);
    for (key, value) in evidence.iter() {
        let value = plain(&value.to_string());
        let value = if style.verbose { value } else { clip(&value, VALUE_BYTES_MAX) };
        writeln!(out, "{indent}{:width$}  {value}", plain(key))?;
    }
    Ok(())
}

fn write_probes(out: &mut dyn Write, report: &Report, style: Style) -> io::Result<()> {
    writeln!(out, "\nchecks")?;
    for ran in &report.probes {
        let subject = &ran.subject;
        let verdict = ran.verdict().as_str();
        let (took, name) = (human_duration(ran.took), plain(&subject.subject));
        writeln!(out, "  {verdict:8} {} {} {name} ({took})", subject.service, subject.probe)?;
        write_evidence(out, &ran.judgement.seen, "             ", style)?;
    }
    Ok(())
}

/// Remarks, none of which says that something is wrong with the host.
fn write_notes(out: &mut dyn Write, report: &Report, style: Style) -> io::Result<()> {
    if report.notes.is_empty() && report.not_watched.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    for note in &report.notes {
        writeln!(out, "{}", paint(&format!("note: {}", plain(note)), Paint::Dim, style))?;
    }
    if !report.not_watched.is_empty() {
        let names: Vec<String> = report.not_watched.iter().map(|what| plain(&what.to_string())).collect();
        let line = format!("note: configured, but this version has no probe for it: {}", names.join(", "));
        writeln!(out, "{}", paint(&line, Paint::Dim, style))?;
    }
    Ok(())
}

/// `text` with everything that a terminal would obey made visible instead.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || reorders(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that change the order in which others are shown.
pub fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}')
}

enum Paint {
    Red,
    Yellow,
    Green,
    Bold,
    Dim,
}

fn paint(text: &str, paint: Paint, style: Style) -> String {
    if !style.colour {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Red => "1;31",
        Paint::Yellow => "1;33",
        Paint::Green => "1;32",
        Paint::Bold => "1",
        Paint::Dim => "2",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::report::{AgentSays, NotWatched, Ran};
    use muster_agent_core::diagnose::Recent;
    use muster_agent_core::judgement::{Judgement, Problem};
    use muster_agent_core::services::Services;
    use muster_common::finding::{ProbeKind, SubjectKey};
    use muster_common::ids::ServiceName;
    use muster_common::reason::Reason;
    use std::time::Duration;

    fn ran(probe: ProbeKind, subject: &str, judgement: Judgement) -> Ran {
        let subject = SubjectKey::new(ServiceName::new("spl").unwrap(), probe, subject);
        Ran { subject, judgement, took: Duration::from_millis(3) }
    }

    fn report(probes: Vec<Ran>) -> Report {
        let now = muster_agent_core::clock::Now { boottime_ms: 1, wall: muster_common::time::Timestamp::UNIX_EPOCH };
        let mut recent = Recent::default();
        for ran in &probes {
            recent.note(now, &ran.subject, &ran.judgement);
        }
        Report::new("web-1".into(), probes, &recent, &Services::default())
    }

    fn sample() -> Report {
        let down = Problem::new(Reason::ProcessDown, "spl (pid 7) is gone\u{1b}[2J")
            .evidence(
                Evidence::new().count("pid", 7u64).text("comm", "s\npl").duration("ran_ms", Duration::from_secs(95)),
            )
            .next_steps(["look at the log: journalctl -u spl"]);
        let closed = Problem::new(Reason::PortClosed, "nobody listens on 127.0.0.1:9100").next_steps(["start it"]);
        let probes = vec![
            ran(ProbeKind::Port, "tcp:127.0.0.1:9100", Judgement::problem(closed)),
            ran(ProbeKind::PidFile, "/run/spl.pid", Judgement::problem(down)),
            ran(
                ProbeKind::Sqlite,
                "/var/lib/hub.db",
                Judgement::ok(
                    Evidence::new().text("state", "wal").duration("checked_since_boot_ms", Duration::from_millis(1)),
                ),
            ),
            ran(ProbeKind::Oom, "kernel", Judgement::unknown("no access to /dev/kmsg", Some("run as root"))),
        ];
        let health = NotWatched { service: "spl".into(), key: "health", subject: "http://127.0.0.1:1/".into() };
        let singleton = NotWatched { service: "spl".into(), key: "singleton", subject: String::new() };
        report(probes).remarks(vec![health, singleton], vec![])
    }

    /// Whoever reads one of the two causes must not take the symptom for its alone.
    #[test]
    fn a_symptom_of_two_causes_is_told_with_both() {
        let damaged = |reason, subject| {
            let judgement = Judgement::problem(Problem::new(reason, "it is ill"));
            ran(ProbeKind::Sqlite, subject, judgement)
        };
        let failed = Judgement::problem(Problem::new(Reason::HealthCheckFailed, "it answers 503"));
        let report = report(vec![
            damaged(Reason::SqliteNotADatabase, "/text.db"),
            damaged(Reason::SqliteMissing, "/gone.db"),
            ran(ProbeKind::Health, "http://h/", failed),
        ]);
        let mut out = Vec::new();
        write(&mut out, &report, Style::default()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let stories: Vec<&str> = text.split("\n\n").skip(1).collect();
        let [rival, teller, ..] = stories[..] else { panic!("{text}") };
        let told =
            "  and so, or because of sev2 sqlite_missing /gone.db (possible): sev2 health_check_failed http://h/";
        assert!(rival.contains("sqlite_not_a_database  /text.db") && rival.contains(told), "{text}");
        assert!(teller.contains("and so (possible): sev2 health_check_failed http://h/"), "{text}");
        assert!(teller.contains("    or as surely because of: sev1 sqlite_not_a_database /text.db"), "{text}");
        assert!(report.to_json().contains("\"shared\""));
    }

    #[test]
    fn the_word_of_the_running_agent_is_told_as_such_and_counts_while_it_lasts() {
        let mut report = report(vec![ran(ProbeKind::Port, "tcp:1", Judgement::default())]);
        let said = |reason: &str, open| AgentSays {
            service: "spl".into(),
            severity: Severity::Sev2,
            reason: reason.into(),
            subject: "/hub.db".into(),
            summary: format!("{reason}\u{1b}[2J"),
            open,
            happened: None,
            over: false,
            next_steps: vec!["look".into()],
            seen_here: vec![],
        };
        report.agent_says = vec![said("process_restarted", false)];
        assert_eq!(report.overall(), Overall::Ok);
        report.agent_says.insert(0, said("sqlite_lock_held", true));
        assert_eq!(report.overall(), Overall::Critical);
        let mut out = Vec::new();
        write(&mut out, &report, Style::default()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("CRITICAL web-1: 1 problem said by the running agent, 1 of 1 check ok\n"), "{text}");
        for part in [
            "\nthe running agent says\n  sev2 spl sqlite_lock_held  /hub.db\n    sqlite_lock_held\\u{1b}[2J\n    next: look\n",
            "  sev2 spl process_restarted  (within the last hour)\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // With its time, where the agent tells that.
        let mut when = |happened, over| {
            let said = report.agent_says.last_mut().unwrap();
            (said.happened, said.over) = (happened, over);
            let mut out = Vec::new();
            write(&mut out, &report, Style::default()).unwrap();
            String::from_utf8(out).unwrap()
        };
        let at = Some((muster_common::time::Timestamp::UNIX_EPOCH, Duration::from_secs(58 * 60)));
        let text = when(at, false);
        assert!(text.contains("sev2 spl process_restarted  (at 1970-01-01 00:00 UTC, 58 min ago)\n"), "{text}");
        let text = when(None, true);
        assert!(text.contains("sev2 spl process_restarted  (over: its process runs)\n"), "{text}");
        assert!(report.only("other").agent_says.is_empty());
    }

    #[test]
    fn what_the_running_agent_knows_comes_first_where_it_is_worse() {
        for (severity, agent_first) in [(Severity::Sev1, true), (Severity::Sev2, false), (Severity::Sev4, false)] {
            let closed = Problem::new(Reason::PortClosed, "closed").severity(Severity::Sev2);
            let mut report = report(vec![ran(ProbeKind::Port, "tcp:1", Judgement::problem(closed))]);
            report.agent_says = vec![AgentSays {
                service: "hub".into(),
                severity,
                reason: "sqlite_lock_held".into(),
                subject: "/hub.db".into(),
                summary: "held".into(),
                open: true,
                happened: None,
                over: false,
                next_steps: vec![],
                seen_here: vec![],
            }];
            let mut out = Vec::new();
            write(&mut out, &report, Style::default()).unwrap();
            let text = String::from_utf8(out).unwrap();
            let (said, found) = (text.find("sqlite_lock_held").unwrap(), text.find("port_closed").unwrap());
            assert_eq!(said < found, agent_first, "{text}");
        }
    }

    #[test]
    fn what_a_finding_tells_is_not_asked_again_and_earlier_kills_are_a_line_each() {
        let same = |probe, judgement| ran(probe, "/hub.db", judgement);
        let broken = Judgement::problem(Problem::new(Reason::SqliteNotADatabase, "no database"));
        let probes =
            vec![same(ProbeKind::Sqlite, broken), same(ProbeKind::Lock, Judgement::unknown("it is no database", None))];
        let report = report(probes);
        assert_eq!(report.unanswered().count(), 0);
        let damaged = Judgement::problem(Problem::new(Reason::SqliteCorrupt, "it is damaged"));
        let query = |subject| ran(ProbeKind::Query, subject, Judgement::unknown("malformed", None));
        let probes = vec![same(ProbeKind::Sqlite, damaged), query("/hub.db: rows"), query("/hub.db2: rows")];
        let asked = self::report(probes);
        assert_eq!(asked.unanswered().map(|one| one.subject.as_str()).collect::<Vec<_>>(), ["/hub.db2: rows"]);
        let mut out = Vec::new();
        write(&mut out, &report, Style::default()).unwrap();
        assert!(!String::from_utf8(out).unwrap().contains("could not be answered"));

        let kill =
            |pid: u64| Problem::new(Reason::OomKill, format!("kill {pid}")).evidence(Evidence::new().count("pid", pid));
        let kills = Judgement { occurrences: (1..=30).map(kill).collect(), ..Judgement::default() };
        let report = self::report(vec![ran(ProbeKind::Oom, "kernel", kills)]);
        let mut out = Vec::new();
        write(&mut out, &report, Style { verbose: true, ..Style::default() }).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("kill 1\n") && text.lines().count() < 75, "{text}");
    }

    #[test]
    fn a_finding_stands_for_no_question_that_it_does_not_answer() {
        let found = |reason| Judgement::problem(Problem::new(reason, "x"));
        let blind = || Judgement::unknown("permission denied", None);
        let both = |reason, why: &str| Judgement { unknown: Judgement::unknown(why, None).unknown, ..found(reason) };
        let unanswered = |probes: Vec<Ran>| {
            let report = report(probes);
            let mut out = Vec::new();
            write(&mut out, &report, Style::default()).unwrap();
            let count = report.unanswered().count();
            assert_eq!(String::from_utf8(out).unwrap().contains("could not be answered"), count > 0);
            count
        };
        let file = |probe, judgement| ran(probe, "/hub.db", judgement);
        let query = || ran(ProbeKind::Query, "/hub.db: rows", blind());
        // Each can be read in spite of it.
        for reason in
            [Reason::SqliteForeignKeys, Reason::SqliteWalGrowth, Reason::SqliteLockHeld, Reason::SqliteRowsLost]
        {
            assert_eq!(unanswered(vec![file(ProbeKind::Sqlite, found(reason)), query()]), 1, "{reason}");
            assert_eq!(unanswered(vec![file(ProbeKind::Sqlite, both(reason, "there is no table nope"))]), 1);
        }
        for probe in [ProbeKind::Sqlite, ProbeKind::Log, ProbeKind::PidFile] {
            let open = file(ProbeKind::Permission, found(Reason::PermissionInsecure));
            assert_eq!(unanswered(vec![open, file(probe, blind())]), 1, "{probe}");
        }
        assert_eq!(unanswered(vec![file(ProbeKind::Baseline, both(Reason::BaselineDrift, "it is a FIFO"))]), 1);
        // Nothing of what is not there, or no database, can be asked.
        for reason in [Reason::SqliteMissing, Reason::SqliteNotADatabase, Reason::SqliteCorrupt, Reason::SqliteShrunk] {
            let lock = file(ProbeKind::Lock, blind());
            assert_eq!(unanswered(vec![file(ProbeKind::Sqlite, both(reason, "no")), lock, query()]), 0, "{reason}");
        }
        // A hot journal keeps the look at the content off, and a query is asked of a copy.
        let hot = || file(ProbeKind::Sqlite, both(Reason::SqliteJournalHot, "never opened"));
        assert_eq!((unanswered(vec![hot()]), unanswered(vec![hot(), query()])), (0, 1));
    }

    #[test]
    fn tells_what_is_wrong_first_and_folds_symptoms() {
        let mut out = Vec::new();
        write(&mut out, &sample(), Style::default()).unwrap();
        let expected = "\
CRITICAL web-1: 1 problem, 1 not answered, 1 of 4 checks ok

sev2 spl process_down  /run/spl.pid
  spl (pid 7) is gone\\u{1b}[2J
    comm s\\npl, ran_ms 95 s
  and so (likely): sev2 port_closed tcp:127.0.0.1:9100
    nobody listens on 127.0.0.1:9100
  now: hub.db passed its check since then
  not known: how it ended: exit status or signal
  next: look at the log: journalctl -u spl

could not be answered
  spl oom kernel: no access to /dev/kmsg
    way out: run as root

note: configured, but this version has no probe for it: spl health http://127.0.0.1:1/, spl singleton
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_answered_for_one_reason_is_one_line() {
        let of = |subject: &str, why: &str| ran(ProbeKind::Log, subject, Judgement::unknown(why, Some("run as root")));
        let probes = vec![of("journal:a", "no access"), of("/b.log", "it is a folder"), of("journal:c", "no access")];
        let text = |verbose| {
            let mut out = Vec::new();
            write(&mut out, &report(probes.clone()), Style { verbose, ..Style::default() }).unwrap();
            String::from_utf8(out).unwrap()
        };
        let expected = "\
UNKNOWN web-1: 3 not answered, 0 of 3 checks ok

could not be answered
  spl log /b.log: it is a folder
    way out: run as root
  2 log checks (spl): no access
    way out: run as root
";
        assert_eq!(text(false), expected);
        assert!(text(true).contains("spl log journal:c: no access"), "{}", text(true));
    }

    #[test]
    fn what_waits_for_a_process_is_one_line_and_no_alarm() {
        let report = |probes: Vec<Ran>| {
            let mut out = Vec::new();
            let report = report(probes);
            write(&mut out, &report, Style::default()).unwrap();
            (report.overall().as_str(), String::from_utf8(out).unwrap())
        };
        let well = ran(ProbeKind::Unit, "spl.service", Judgement::default());
        let waits = [ProbeKind::Process, ProbeKind::Pressure].map(|kind| ran(kind, "x", Judgement::no_process()));
        let (overall, text) = report([well.clone()].into_iter().chain(waits.clone()).collect());
        assert_eq!(overall, "ok");
        let expected = "\
OK web-1: 1 of 3 checks ok

could not be answered
  spl (pressure, process): no running process of the service is known
    way out: its pid file or its unit tells why
";
        assert_eq!(text, expected);
        let blind = ran(ProbeKind::PidFile, "/run/spl.pid", Judgement::unknown("no access", None));
        let (overall, text) = report(waits.into_iter().chain([blind]).collect());
        assert_eq!(overall, "unknown");
        assert!(text.starts_with("UNKNOWN web-1: 1 not answered, 0 of 3 checks ok\n"), "{text}");
    }

    #[test]
    fn json_has_the_names_of_the_contract() {
        let text = sample().to_json();
        assert!(text.is_ascii() || !text.contains('\u{9b}'));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["host"], "web-1");
        assert_eq!(json["verdict"], "critical");
        let finding = &json["findings"][0];
        assert_eq!(finding["reason"], "process_down");
        assert_eq!(finding["severity"], "sev2");
        assert_eq!(finding["evidence"], serde_json::json!({ "pid": 7, "comm": "s\npl", "ran_ms": 95_000 }));
        assert_eq!(finding["grade"], "confirmed");
        assert_eq!(finding["next_steps"][0], "look at the log: journalctl -u spl");
        assert_eq!(json["unknown"][0]["why"], "no access to /dev/kmsg");
        assert_eq!(json["probes"][3]["took_ms"], 3);
        assert_eq!(json["probes"][3]["verdict"], "ok");
    }

    #[test]
    fn the_exit_status_follows_the_worst() {
        let overall = |problems: &[Reason], unknown: bool| {
            let mut probes: Vec<Ran> = problems
                .iter()
                .map(|reason| ran(ProbeKind::Port, reason.as_str(), Judgement::problem(Problem::new(*reason, "x"))))
                .collect();
            if unknown {
                probes.push(ran(ProbeKind::Oom, "kernel", Judgement::unknown("x", None)));
            }
            report(probes).overall().exit_status()
        };
        assert_eq!(overall(&[], false), 0);
        assert_eq!(overall(&[Reason::MemoryApproaching, Reason::PidFileStale], true), 1);
        assert_eq!(overall(&[Reason::PidFileStale, Reason::SqliteCorrupt], true), 2);
        assert_eq!(overall(&[], true), 3);
    }

    #[test]
    fn colours_only_when_asked() {
        let mut out = Vec::new();
        write(&mut out, &sample(), Style { colour: true, verbose: true }).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("\u{1b}[1;31mCRITICAL\u{1b}[0m"), "{text}");
        assert!(text.contains("ok       spl sqlite /var/lib/hub.db (3 ms)"), "{text}");
        assert_eq!(plain("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
    }
}
