//! From a victim to the finding about it.

use super::events::{Proof, Scope, Unnamed, Victim};
use crate::diagnose::SINCE_BOOT_KEY;
use crate::judgement::Problem;
use crate::services::Instance;
use muster_common::evidence::{Evidence, Grade, Value};
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::units::human_bytes;

/// The service a victim belonged to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Belonging {
    /// The service.
    pub service: ServiceName,
    /// Its instance that was killed, when the main process was.
    pub instance: Option<Instance>,
    /// How sure that is.
    pub grade: Grade,
}

/// The finding about one victim. `process` is its (pid, start time) where known.
pub fn oom_kill(victim: &Victim, process: Option<ProcessId>, belonging: Option<&Belonging>) -> Problem {
    let (cause, cause_grade) = cause(victim);
    let whose = belonging.map(|belonging| format!(", service {}", belonging.service)).unwrap_or_default();
    let used = victim.used.rss_bytes().map(|rss| format!(" while it used {}", human_bytes(rss))).unwrap_or_default();
    let verb = if victim.proof == Proof::Announced { "announced to kill" } else { "killed" };
    let summary = format!("the kernel {verb} {} (pid {}{whose}){used}: {cause}", victim.comm, victim.pid);
    let mut evidence = facts(victim).text("cause", &cause).text("cause_grade", cause_grade.as_str());
    if let Some(process) = process {
        evidence = evidence.count("start_ticks", process.start_ticks);
    }
    if let Some(belonging) = belonging {
        evidence = evidence
            .text("service", belonging.service.as_str())
            .text("service_grade", belonging.grade.as_str())
            .flag("main_process", belonging.instance.is_some());
    }
    let severity = match belonging {
        Some(_) => Severity::Sev2,
        // Somebody asked for it: kept for the audit trail.
        None if victim.by_operator => Severity::Sev4,
        None => Severity::Sev3,
    };
    let grade = if victim.proof == Proof::Announced { Grade::Likely } else { Grade::Confirmed };
    let mut problem = Problem::new(Reason::OomKill, summary)
        .grade(grade)
        .severity(severity)
        .evidence(evidence)
        .next_steps(steps(victim));
    problem.service = belonging.map(|belonging| belonging.service.clone());
    problem
}

/// The finding about kills in one cgroup of which the text names no process.
pub fn unnamed_kills(unnamed: &Unnamed, kills: u64) -> Problem {
    let limit = &unnamed.limit_cgroup;
    let summary = format!(
        "the kernel killed in {} because {limit} reached its limit ({kills} times); the log does not name the process",
        unnamed.cgroup
    );
    let evidence = Evidence::new()
        .text("cgroup", &unnamed.cgroup)
        .text("limit_cgroup", limit)
        .text("scope", "memcg")
        .count("kills", kills);
    Problem::new(Reason::OomKill, summary).grade(Grade::Likely).evidence(evidence).next_steps([
        "read the log from further up: the lines around this one name the process",
        "see which process of the cgroup restarted at that time",
    ])
}

/// The finding about kills that the kernel counted without a line in its log.
pub fn unexplained_kills(kills: u64, lost_records: u64) -> Problem {
    let why = if lost_records > 0 { "their lines were overwritten" } else { "no line tells of them" };
    let summary = format!("{kills} OOM kills are unexplained: the kernel counted them, but {why}");
    let evidence = Evidence::new().count("unexplained_kills", kills).count("lost_records", lost_records);
    Problem::new(Reason::OomKill, summary).grade(Grade::Likely).evidence(evidence).next_steps([
        "compare /proc/vmstat oom_kill with: dmesg | grep -c 'Killed process'",
        "look at memory.events of the cgroups: grep -H oom_kill /sys/fs/cgroup/*/memory.events",
    ])
}

fn cause(victim: &Victim) -> (String, Grade) {
    if victim.by_operator {
        return ("an operator asked for it (sysrq f), memory was not exhausted".to_owned(), Grade::Confirmed);
    }
    match (victim.scope, &victim.limit_cgroup, victim.limit_bytes) {
        (Scope::Memcg, Some(cgroup), Some(limit)) => {
            (format!("cgroup {cgroup} reached its limit of {}", human_bytes(limit)), Grade::Confirmed)
        }
        (Scope::Memcg, Some(cgroup), None) => (format!("cgroup {cgroup} reached its limit"), Grade::Confirmed),
        (Scope::Memcg, None, _) => ("its cgroup reached its limit".to_owned(), Grade::Confirmed),
        (Scope::Global, _, _) => ("the host ran out of memory".to_owned(), Grade::Confirmed),
        (Scope::Untold, _, _) => ("memory ran out, the log does not tell whose".to_owned(), Grade::Likely),
    }
}

fn facts(victim: &Victim) -> Evidence {
    let scope = match victim.scope {
        Scope::Global => "global",
        Scope::Memcg => "memcg",
        Scope::Untold => "unknown",
    };
    let mut evidence = Evidence::new()
        .count("pid", victim.pid)
        .text("comm", &victim.comm)
        .text("scope", scope)
        .flag("by_operator", victim.by_operator)
        .flag("group_kill", victim.group_kill)
        .text("line", &victim.line);
    let texts =
        [("cgroup", &victim.cgroup), ("limit_cgroup", &victim.limit_cgroup), ("constraint", &victim.constraint)];
    for (key, text) in texts {
        if let Some(text) = text {
            evidence = evidence.text(key, text);
        }
    }
    let sizes = [
        ("rss_bytes", victim.used.rss_bytes()),
        ("anon_rss_bytes", victim.used.anon_rss_bytes),
        ("file_rss_bytes", victim.used.file_rss_bytes),
        ("shmem_rss_bytes", victim.used.shmem_rss_bytes),
        ("total_vm_bytes", victim.used.total_vm_bytes),
        ("pgtables_bytes", victim.used.pgtables_bytes),
        ("limit_bytes", victim.limit_bytes),
    ];
    for (key, size) in sizes {
        if let Some(bytes) = size {
            evidence = evidence.bytes(key, bytes);
        }
    }
    if let Some(uid) = victim.uid {
        evidence = evidence.count("uid", uid);
    }
    if let Some(adjustment) = victim.used.oom_score_adj {
        evidence = evidence.with("oom_score_adj", Value::Integer(adjustment));
    }
    if let Some(trigger) = &victim.trigger {
        evidence = evidence.text("trigger_comm", &trigger.comm);
        if let Some(pid) = trigger.pid {
            evidence = evidence.count("trigger_pid", pid);
        }
    }
    if let Some(reaped) = victim.reaped {
        evidence = evidence.flag("memory_freed", reaped);
    }
    if let Some(sequence) = victim.sequence {
        evidence = evidence.count("kmsg_sequence", sequence);
    }
    if let Some(usec) = victim.usec {
        evidence = evidence.with(SINCE_BOOT_KEY, Value::Millis(usec / 1000));
    }
    evidence
}

fn steps(victim: &Victim) -> Vec<String> {
    if victim.by_operator {
        return vec!["ask who pressed sysrq f: nothing ran out of memory".to_owned()];
    }
    let mut steps = Vec::new();
    if victim.reaped == Some(false) {
        steps.push("its memory was not freed: the process hangs in the kernel, see its stack in dmesg".to_owned());
    }
    match victim.scope {
        Scope::Memcg => {
            steps.push("raise the cgroup's memory limit (MemoryMax=) or find what grew inside it".to_owned())
        }
        _ => steps.push("see who uses the memory now: ps -eo pid,rss,comm --sort=-rss | head".to_owned()),
    }
    steps.push("check what it was writing: a killed writer may leave a hot journal or a torn file".to_owned());
    steps
}

#[cfg(test)]
mod tests {
    use super::super::{Joiner, parse_saved};
    use super::*;

    fn victim(text: &str) -> Victim {
        let mut joiner = Joiner::default();
        text.lines().for_each(|line| joiner.feed(&parse_saved(line)));
        joiner.take(true).victims.remove(0)
    }

    #[test]
    fn a_watched_service_is_worse_and_named() {
        let victim = victim("Out of memory: Killed process 7 (spl) total-vm:9kB, anon-rss:2048kB, file-rss:0kB");
        let problem = oom_kill(&victim, None, None);
        assert_eq!((problem.severity, problem.service), (Some(Severity::Sev3), None));
        assert!(problem.summary.contains("spl (pid 7)") && problem.summary.contains("2 MiB"), "{}", problem.summary);
        let service = ServiceName::new("hub").unwrap();
        let belonging = Belonging { service: service.clone(), instance: None, grade: Grade::Likely };
        let process = ProcessId { pid: 7, start_ticks: 99 };
        let problem = oom_kill(&victim, Some(process), Some(&belonging));
        assert_eq!((problem.severity, problem.service), (Some(Severity::Sev2), Some(service)));
        assert_eq!(problem.evidence.get("start_ticks"), Some(&Value::Count(99)));
        assert_eq!(problem.evidence.get("service"), Some(&Value::Text("hub".into())));
        assert!(problem.evidence.get("evidence_dropped_keys").is_none());
    }

    #[test]
    fn an_operators_kill_is_no_alarm() {
        let victim =
            victim("k invoked oom-killer: order=-1, oom_score_adj=0\nOut of memory: Killed process 7 (a) vsz:1kB");
        let problem = oom_kill(&victim, None, None);
        assert_eq!(problem.severity, Some(Severity::Sev4));
        assert!(problem.summary.contains("operator"));
    }
}
