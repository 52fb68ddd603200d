//! From what a rule took to the occurrence that is told.

use super::rules::Rule;
use super::window::Told;
use crate::clock::Now;
use crate::diagnose::{GROUP_KEY, RULE_KEY};
use crate::judgement::Problem;
use crate::services::{Instance, Services};
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::ids::ServiceName;
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::severity::Severity;

/// Bytes of a line within a sentence.
const QUOTE_BYTES_MAX: usize = 240;
/// An instance that ended this much before or after a killer's line may be its victim: the line is written when the
/// signal is sent, the exit is seen by a probe later.
const VICTIM_SLACK_MS: u64 = 15_000;
/// Groups of a killer's rule whose value is a number without unit.
const NUMBERS: [&str; 3] = ["pid", "uid", "badness"];

/// When a line was written, on the agent's clock: its own time as a distance from now, never in the future.
pub fn observed_boottime_ms(unix_ms: Option<i64>, now: Now) -> u64 {
    let age_ms = unix_ms.map_or(0, |written| now.wall.unix_ms().saturating_sub(written));
    now.boottime_ms.saturating_sub(u64::try_from(age_ms).unwrap_or(0))
}

/// The occurrence about what one rule took from the log `source` since it was last told.
pub fn occurrence(rule: &Rule, source: &str, told: &Told) -> Problem {
    let repeated = if told.count > 1 { format!(" ({} such lines)", told.count) } else { String::new() };
    let sentence = match &rule.summary {
        Some(summary) => fill(summary, told),
        None => {
            let meaning = rule.reason.meaning().trim_end_matches('.');
            format!("{meaning}: {}", clip(&told.first.text, QUOTE_BYTES_MAX))
        }
    };
    let mut evidence =
        Evidence::new().text(RULE_KEY, &rule.name).text("source", source).text("first_line", &told.first.text);
    if told.count > 1 {
        evidence = evidence.count("lines", told.count);
    }
    if let Some(last) = &told.last {
        evidence = evidence.text("last_line", &last.text);
    }
    if !told.group.is_empty() {
        evidence = evidence.text(GROUP_KEY, &told.group);
    }
    for (name, value) in &told.first.captures {
        evidence = captured(evidence, name, value);
    }
    let mut problem = Problem::new(rule.reason, format!("{sentence}{repeated}")).evidence(evidence).next_steps([
        format!("read what stands around it: {}", how_to_read(source)),
        format!("what it means: musterctl runbook {}", rule.reason),
    ]);
    problem.severity = rule.severity;
    problem.observed_boottime_ms = Some(told.first.boottime_ms);
    problem
}

/// The occurrence about a process or cgroup that a user-space killer says it killed. Never more than likely: a signal
/// that was sent is no exit, and the line is no kernel record. Of a file only possible: anybody may write a syslog tag,
/// where the journal names the writer itself.
pub fn user_space_kill(rule: &Rule, killer: &str, source: &str, told: &Told, services: &Services) -> Problem {
    let witnessed = !source.starts_with('/');
    let grade = if witnessed { Grade::Likely } else { Grade::Possible };
    let mut problem = occurrence(rule, source, told).grade(grade);
    problem.evidence = problem.evidence.text("killer", killer);
    let caught = |name: &str| told.first.captures.get(name).map(String::as_str);
    let pid = caught("pid").and_then(|pid| pid.parse::<u32>().ok());
    let cgroup = caught("cgroup").map(absolute_cgroup);
    if let Some(cgroup) = &cgroup {
        problem.evidence = problem.evidence.text("cgroup", cgroup);
    }
    let at = told.first.boottime_ms;
    // Pid 0 is nobody's: the cgroup alone decides then.
    let belongs = services.of_victim(pid.unwrap_or(0), cgroup.as_deref(), at);
    let belongs = belongs.map(|(service, instance, grade)| (service.clone(), instance.cloned(), grade));
    // A killer that takes a whole cgroup takes the main process with it.
    let belongs = belongs.map(|(service, instance, grade)| match instance {
        None if pid.is_none() => {
            let main = main_process(services, &service, at);
            (service, main, grade)
        }
        instance => (service, instance, grade),
    });
    if let Some((service, instance, grade)) = belongs {
        problem.evidence = problem
            .evidence
            .text("service", service.as_str())
            .text("service_grade", grade.as_str())
            .flag("main_process", instance.is_some());
        if let Some(instance) = instance {
            problem.evidence = problem
                .evidence
                .count("pid", instance.process.pid)
                .count("start_ticks", instance.process.start_ticks)
                .text("comm", instance.comm);
        }
        problem.summary = format!("{} (service {service})", problem.summary);
        problem.service = Some(service);
        problem.severity = witnessed.then_some(Severity::Sev2).or(problem.severity);
    }
    let steps = std::mem::take(&mut problem.next_steps);
    problem.next_steps(
        [
            "see who uses the memory now: ps -eo pid,rss,comm --sort=-rss | head".to_owned(),
            format!("see the limits that {killer} acts on: systemctl cat {killer}; systemctl status {killer}"),
        ]
        .into_iter()
        .chain(steps),
    )
}

fn main_process(services: &Services, service: &ServiceName, at_boottime_ms: u64) -> Option<Instance> {
    let instances = services.instances(service)?;
    let lived = |instance: &&Instance| {
        instance.first_seen_boottime_ms <= at_boottime_ms
            && instance.ended_boottime_ms.is_none_or(|ended| at_boottime_ms <= ended.saturating_add(VICTIM_SLACK_MS))
    };
    instances.iter().find(lived).cloned()
}

/// oomd names cgroups without the first slash.
fn absolute_cgroup(cgroup: &str) -> String {
    if cgroup.starts_with('/') { cgroup.to_owned() } else { format!("/{cgroup}") }
}

/// `{name}` becomes what the group of that name caught; a sentence without it says `?`.
fn fill(summary: &str, told: &Told) -> String {
    let mut out = String::new();
    let mut rest = summary;
    while let Some((before, behind)) = rest.split_once('{') {
        out.push_str(before);
        let Some((name, behind)) = behind.split_once('}') else {
            out.push('{');
            rest = behind;
            continue;
        };
        out.push_str(told.first.captures.get(name).map_or("?", String::as_str));
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The names in braces of a summary.
pub fn placeholders(summary: &str) -> Vec<&str> {
    summary.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name)).collect()
}

fn captured(evidence: Evidence, name: &str, value: &str) -> Evidence {
    let number = value.parse::<u64>().ok();
    match (name.strip_suffix("_mib"), name.strip_suffix("_ms"), number) {
        (Some(size), _, Some(mib)) => evidence.bytes(&format!("{size}_bytes"), mib.saturating_mul(1 << 20)),
        (_, Some(_), Some(ms)) => evidence.with(name, Value::Millis(ms)),
        (None, None, Some(number)) if NUMBERS.contains(&name) => evidence.count(name, number),
        _ => evidence.text(name, value),
    }
}

fn how_to_read(source: &str) -> String {
    match source.strip_prefix("journal:") {
        Some("") | None if !source.starts_with('/') => "journalctl -e".to_owned(),
        Some(unit) => format!("journalctl -u {unit} -e"),
        None => format!("less +G {source}"),
    }
}

/// Whether `reason` may be told by a log: only what happened, never what is true now.
pub fn may_come_from_a_log(reason: Reason) -> bool {
    reason.kind() == muster_common::reason::ReasonKind::Occurrence && !reason.is_stand_in()
}

#[cfg(test)]
mod tests {
    use super::super::entry::Entry;
    use super::super::rules::RuleSet;
    use super::super::window::Windows;
    use super::*;
    use muster_common::ids::ProcessId;
    use muster_common::time::Timestamp;

    const NOW: Now = Now { boottime_ms: 1_000_000, wall: Timestamp::UNIX_EPOCH };

    fn told(rule: &Rule, lines: &[&str]) -> Told {
        let set = RuleSet::new(vec![rule.clone()]).unwrap();
        let mut windows = Windows::default();
        for line in lines {
            let entry = Entry::parse(line);
            let hit = set.hit(&entry, "", rule.from.first().map(String::as_str)).unwrap();
            let sample = hit.sample(&entry, NOW.boottime_ms);
            windows.note(&rule.name, &hit.group(&sample), NOW, || sample);
        }
        windows.take(NOW, false).remove(0)
    }

    #[test]
    fn an_occurrence_quotes_counts_and_points() {
        let rule = Rule::new("slow", Reason::Timeout, "timed out");
        let problem = occurrence(&rule, "/var/log/hub.log", &told(&rule, &["x timed out", "y", "z timed out"][..1]));
        assert_eq!(problem.summary, "An operation took longer than allowed: x timed out");
        let problem = occurrence(&rule, "journal:hub.service", &told(&rule, &["x timed out", "z timed out"]));
        assert!(problem.summary.ends_with("(2 such lines)"), "{}", problem.summary);
        assert_eq!(problem.evidence.get("lines"), Some(&Value::Count(2)));
        assert_eq!(problem.evidence.get("last_line"), Some(&Value::Text("z timed out".into())));
        assert!(problem.next_steps[0].contains("journalctl -u hub.service"), "{:?}", problem.next_steps);
        assert_eq!(problem.next_steps[1], format!("what it means: musterctl runbook {}", problem.reason));
    }

    #[test]
    fn a_summary_is_filled_from_the_groups() {
        let mut rule = Rule::new("r", Reason::Timeout, r"op (?<op>\w+)( after (?<wait_ms>\d+))?");
        rule.summary = Some("{op} timed out after {wait_ms}".into());
        rule.group_by = Some("op".into());
        let told = told(&rule, &["op push after 30"]);
        let problem = occurrence(&rule, "/x", &told);
        assert_eq!(problem.summary, "push timed out after 30");
        assert_eq!(problem.evidence.get("group"), Some(&Value::Text("push".into())));
        assert_eq!(problem.evidence.get("wait_ms"), Some(&Value::Millis(30)));
        assert_eq!(placeholders("{a} and {b"), ["a"]);
    }

    #[test]
    fn a_killers_victim_is_joined_to_its_service_and_only_likely() {
        let mut services = Services::default();
        let hub = ServiceName::new("hub").unwrap();
        let instance = Instance {
            process: ProcessId { pid: 77, start_ticks: 5 },
            comm: "hub".into(),
            exe: None,
            cgroup: Some("/system.slice/hub.service".into()),
            first_seen_boottime_ms: 1,
            ended_boottime_ms: None,
        };
        services.note(&hub, instance);
        let mut by_pid = Rule::new("e", Reason::OomKill, r"process (?<pid>\d+) VmRSS (?<rss_mib>\d+)");
        by_pid.killer = Some("earlyoom".into());
        let problem = user_space_kill(&by_pid, "earlyoom", "x", &told(&by_pid, &["process 77 VmRSS 3"]), &services);
        assert_eq!((problem.grade, problem.severity), (Grade::Likely, Some(Severity::Sev2)));
        assert_eq!(problem.service.as_ref(), Some(&hub));
        let forgeable = told(&by_pid, &["process 77 VmRSS 3"]);
        let forgeable = user_space_kill(&by_pid, "earlyoom", "/var/log/syslog", &forgeable, &services);
        assert_eq!((forgeable.grade, forgeable.severity), (Grade::Possible, None));
        assert_eq!(problem.evidence.get("start_ticks"), Some(&Value::Count(5)));
        assert_eq!(problem.evidence.get("rss_bytes"), Some(&Value::Bytes(3 << 20)));
        let mut by_cgroup = Rule::new("o", Reason::OomKill, r"Killed (?<cgroup>\S+)");
        by_cgroup.killer = Some("systemd-oomd".into());
        let line = "Killed /system.slice/hub.service";
        let problem = user_space_kill(&by_cgroup, "systemd-oomd", "x", &told(&by_cgroup, &[line]), &services);
        assert_eq!(problem.evidence.get("pid"), Some(&Value::Count(77)));
        let problem =
            user_space_kill(&by_cgroup, "systemd-oomd", "x", &told(&by_cgroup, &["Killed /user.slice/x"]), &services);
        assert_eq!((problem.service, problem.severity), (None, None));
    }

    #[test]
    fn a_lines_own_time_is_a_distance_and_never_ahead() {
        let now = Now { boottime_ms: 50_000, wall: Timestamp::from_unix_ms(1_000_000) };
        assert_eq!(observed_boottime_ms(Some(990_000), now), 40_000);
        assert_eq!(observed_boottime_ms(Some(2_000_000), now), 50_000);
        assert_eq!(observed_boottime_ms(Some(i64::MIN), now), 0);
        assert_eq!(observed_boottime_ms(None, now), 50_000);
    }
}
