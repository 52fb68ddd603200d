//! One kernel message: which of the OOM killer's sentences it is. Kernels 2.6 to 6.x, with the backports of
//! distributions.
//!
//! A process chooses its own name (15 bytes), so names are cut out by what the kernel prints *behind* them, searched
//! from the right, and every sentence is anchored at its start.

use serde::{Deserialize, Serialize};

/// Bytes of a name that the kernel keeps; vendors print a little more.
const COMM_BYTES_MAX: usize = 15;

/// A recognised message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// `X invoked oom-killer: …`: a new event.
    Invoked {
        /// Name of the process that needed memory.
        comm: String,
        /// True for sysrq-f (`order=-1`).
        by_operator: bool,
    },
    /// `CPU: 1 PID: 2 Comm: X` or `Pid: 2, comm: X`: the pid behind [`Form::Invoked`].
    TriggerPid {
        /// The pid.
        pid: u32,
        /// The name, so that it can be matched.
        comm: String,
    },
    /// `Task in A killed as a result of limit of B`.
    TaskIn {
        /// Cgroup of the victim.
        cgroup: String,
        /// Cgroup whose limit was hit.
        limit_cgroup: String,
    },
    /// `memory: usage …, limit …`.
    Limit {
        /// The limit.
        limit_bytes: u64,
    },
    /// A row of the task table.
    TableRow {
        /// The pid.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// `oom-kill:constraint=…`.
    Summary(Summary),
    /// `… Kill process N (X) score S or sacrifice child`: what the kernel is about to do.
    Announced {
        /// The pid.
        pid: u32,
        /// The name.
        comm: String,
        /// True when the sentence says it was a cgroup's limit.
        memcg: Option<bool>,
    },
    /// `… Killed process N (X) …`: what it did.
    Killed(Killed),
    /// `Tasks in A are going to be killed due to memory.oom.group set`.
    GroupKill {
        /// The group.
        cgroup: String,
    },
    /// `oom_reaper: reaped process N (X)` or `unable to reap pid:N (X)`.
    Reaper {
        /// The pid.
        pid: u32,
        /// Whether its memory was freed.
        reaped: bool,
    },
}

/// The one-line summary of kernels since 5.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The victim.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its user.
    pub uid: Option<u32>,
    /// `CONSTRAINT_NONE`, `CONSTRAINT_MEMCG`, …
    pub constraint: String,
    /// Cgroup of the victim.
    pub cgroup: Option<String>,
    /// Cgroup whose limit was hit; absent for `global_oom`.
    pub limit_cgroup: Option<String>,
}

/// What a victim used, as far as the line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Used {
    /// Virtual size.
    pub total_vm_bytes: Option<u64>,
    /// Anonymous memory.
    pub anon_rss_bytes: Option<u64>,
    /// File-backed memory.
    pub file_rss_bytes: Option<u64>,
    /// Shared memory.
    pub shmem_rss_bytes: Option<u64>,
    /// Page tables.
    pub pgtables_bytes: Option<u64>,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i64>,
}

impl Used {
    /// Resident memory, if any part of it is told.
    pub fn rss_bytes(&self) -> Option<u64> {
        let parts = [self.anon_rss_bytes, self.file_rss_bytes, self.shmem_rss_bytes];
        let told = parts.iter().any(Option::is_some);
        told.then(|| parts.iter().flatten().fold(0, |sum: u64, part| sum.saturating_add(*part)))
    }
}

/// The line that says a process was killed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Killed {
    /// The victim.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its user.
    pub uid: Option<u32>,
    /// True when the sentence says it was a cgroup's limit, false when it was the host's memory.
    pub memcg: Option<bool>,
    /// What it used.
    pub used: Used,
}

/// Recognises `message`, without prefix.
pub fn parse(message: &str) -> Option<Form> {
    let message = message.trim_end();
    if let Some(rest) = message.strip_prefix("oom-kill:") {
        return summary(rest).map(Form::Summary);
    }
    if let Some(rest) = message.strip_prefix("oom_reaper: ") {
        return reaper(rest);
    }
    if let Some((memcg, rest)) = kill_sentence(message, "killed process ") {
        return killed(memcg, rest).map(Form::Killed);
    }
    if let Some((memcg, rest)) = kill_sentence(message, "kill process ") {
        let (pid, rest) = leading_number(rest)?;
        let comm = name_before(rest.strip_prefix(" (")?, &[") score ", ") or sacrifice", ")"])?.0;
        return Some(Form::Announced { pid, comm, memcg });
    }
    if let Some(rest) = message.strip_prefix("Tasks in ") {
        let cgroup = rest.strip_suffix(" are going to be killed due to memory.oom.group set")?;
        return Some(Form::GroupKill { cgroup: cgroup.to_owned() });
    }
    if let Some(rest) = message.strip_prefix("Task in ") {
        let (cgroup, limit_cgroup) = rest.split_once(" killed as a result of limit of ")?;
        return Some(Form::TaskIn { cgroup: cgroup.to_owned(), limit_cgroup: limit_cgroup.trim_end().to_owned() });
    }
    if let Some(rest) = message.strip_prefix("memory: usage ") {
        let (_, rest) = rest.split_once("limit ")?;
        return kib(rest).map(|limit_bytes| Form::Limit { limit_bytes });
    }
    if message.starts_with('[') {
        return table_row(message);
    }
    trigger(message)
}

/// `verb` after one of the kernel's own introductions, in either case of letters. The introduction tells the scope.
fn kill_sentence<'a>(message: &'a str, verb: &str) -> Option<(Option<bool>, &'a str)> {
    const INTRODUCTIONS: [(&str, Option<bool>); 6] = [
        ("memory cgroup out of memory: ", Some(true)),
        ("out of memory: ", Some(false)),
        ("out of memory (oom_kill_allocating_task): ", Some(false)),
        ("no available memory (mpol_bind): ", Some(false)),
        ("no available memory in cpuset: ", Some(false)),
        ("", None),
    ];
    INTRODUCTIONS.iter().find_map(|(introduction, memcg)| {
        let rest = strip_prefix_any_case(message, introduction)?;
        Some((*memcg, strip_prefix_any_case(rest, verb)?))
    })
}

fn strip_prefix_any_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn leading_number(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, rest))
}

/// The name in `name) …`: everything before the right-most of the first ending that occurs at all.
fn name_before<'a>(text: &'a str, endings: &[&str]) -> Option<(String, &'a str)> {
    endings.iter().find_map(|ending| {
        let at = text.rfind(ending)?;
        Some((text.get(..at)?.to_owned(), text.get(at + 1..)?))
    })
}

fn killed(memcg: Option<bool>, rest: &str) -> Option<Killed> {
    let (pid, rest) = leading_number(rest)?;
    let mut uid = None;
    let named = match rest.strip_prefix(", UID ") {
        // el6: `11726, UID 498, (mysqld) total-vm:…`
        Some(after) => {
            let (number, after) = leading_number(after)?;
            uid = Some(number);
            after.strip_prefix(", (")?
        }
        None => rest.strip_prefix(" (")?,
    };
    let endings = [") total-vm:", "), UID ", ") vsz:", "), UID:", ").", ")"];
    let (comm, facts) = name_before(named, &endings)?;
    // el7: `(mysqld), UID 27, total-vm:…`; since 5.3: `… UID:27 pgtables:…`
    if uid.is_none() {
        uid = number_after(facts, ", UID ").or_else(|| number_after(facts, " UID:"));
    }
    let used = Used {
        total_vm_bytes: size_after(facts, "total-vm:").or_else(|| size_after(facts, "vsz:")),
        anon_rss_bytes: size_after(facts, "anon-rss:"),
        file_rss_bytes: size_after(facts, "file-rss:"),
        shmem_rss_bytes: size_after(facts, "shmem-rss:"),
        pgtables_bytes: size_after(facts, "pgtables:"),
        oom_score_adj: after(facts, "oom_score_adj:").and_then(|text| {
            let end = text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len());
            text.get(..end)?.parse().ok()
        }),
    };
    Some(Killed { pid, comm, uid, memcg, used })
}

fn after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.find(key).and_then(|at| text.get(at + key.len()..))
}

fn number_after(text: &str, key: &str) -> Option<u32> {
    leading_number(after(text, key)?).map(|(number, _)| number)
}

fn size_after(text: &str, key: &str) -> Option<u64> {
    kib(after(text, key)?)
}

/// `123kB` in bytes.
fn kib(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    if strip_prefix_any_case(unit, "kb").is_none_or(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic())) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(1024)
}

/// `constraint=…,nodemask=…,cpuset=…,mems_allowed=…,oom_memcg=…|global_oom,task_memcg=…,task=…,pid=…,uid=…`, read from
/// the right because cpuset, cgroup and name are chosen by others.
fn summary(rest: &str) -> Option<Summary> {
    let (rest, uid) = rest.rsplit_once(",uid=")?;
    let (rest, pid) = rest.rsplit_once(",pid=")?;
    // A name may contain ",task=" itself; the left-most that leaves a possible name is the kernel's.
    let key = ",task=";
    let at = rest.match_indices(key).map(|(at, _)| at).find(|at| rest.len() - at - key.len() <= COMM_BYTES_MAX);
    let at = at.or_else(|| rest.rfind(key))?;
    let comm = rest.get(at + key.len()..)?;
    let rest = rest.get(..at)?;
    let (rest, cgroup) = match rest.split_once(",task_memcg=") {
        Some((rest, cgroup)) => (rest, Some(cgroup.to_owned())),
        None => (rest, None),
    };
    let limit_cgroup = rest.split_once(",oom_memcg=").map(|(_, cgroup)| cgroup.to_owned());
    let constraint = rest.strip_prefix("constraint=")?.split(',').next()?;
    Some(Summary {
        pid: pid.parse().ok()?,
        comm: comm.to_owned(),
        uid: uid.trim_end().parse().ok(),
        constraint: constraint.to_owned(),
        cgroup,
        limit_cgroup,
    })
}

fn reaper(rest: &str) -> Option<Form> {
    if let Some(rest) = rest.strip_prefix("reaped process ") {
        return leading_number(rest).map(|(pid, _)| Form::Reaper { pid, reaped: true });
    }
    let rest = rest.strip_prefix("unable to reap pid:")?;
    leading_number(rest).map(|(pid, _)| Form::Reaper { pid, reaped: false })
}

/// `[ 323]     0   323 …`: pid, uid, tgid. A thread's row (pid is not tgid) is skipped.
fn table_row(message: &str) -> Option<Form> {
    let (pid, rest) = message.strip_prefix('[')?.split_once(']')?;
    let pid: u32 = pid.trim().parse().ok()?;
    let mut fields = rest.split_whitespace();
    let uid = fields.next()?.parse().ok()?;
    let tgid: u32 = fields.next()?.parse().ok()?;
    (tgid == pid).then_some(Form::TableRow { pid, uid })
}

fn trigger(message: &str) -> Option<Form> {
    if let Some((comm, rest)) = message.split_once(" invoked oom-killer:") {
        return Some(Form::Invoked { comm: comm.to_owned(), by_operator: rest.contains("order=-1,") });
    }
    if let Some(rest) = message.strip_prefix("Pid: ") {
        let (pid, rest) = leading_number(rest)?;
        return Some(Form::TriggerPid { pid, comm: rest.strip_prefix(", comm: ")?.to_owned() });
    }
    let rest = message.strip_prefix("CPU: ")?;
    let (pid, _) = leading_number(after(rest, " PID: ")?)?;
    Some(Form::TriggerPid { pid, comm: after(rest, " Comm: ")?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn killed_line(text: &str) -> Killed {
        match parse(text) {
            Some(Form::Killed(killed)) => killed,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn killed_lines_of_all_ages() {
        for (text, pid, comm, uid, anon_kib) in [
            ("Killed process 31 (web) total-vm:90kB, anon-rss:12kB, file-rss:4kB", 31, "web", None, Some(12)),
            ("Killed process 31 (web) vsz:90kB, anon-rss:12kB, file-rss:4kB", 31, "web", None, Some(12)),
            ("Killed process 31, UID 48, (web) total-vm:90kB, anon-rss:12kB", 31, "web", Some(48), Some(12)),
            ("Killed process 31 (web), UID 48, total-vm:90kB, anon-rss:12kB", 31, "web", Some(48), Some(12)),
            ("Out of Memory: Killed process 31 (web).", 31, "web", None, None),
            ("Out of memory: Killed process 31 (w) b) total-vm:9kB, anon-rss:1kB", 31, "w) b", None, Some(1)),
            ("Killed process 31 ()) total-vm:9kB, anon-rss:1kB", 31, ")", None, Some(1)),
            ("Killed process 31 (x) total-vm:1) total-vm:9kB, anon-rss:1kB", 31, "x) total-vm:1", None, Some(1)),
        ] {
            let killed = killed_line(text);
            assert_eq!((killed.pid, killed.comm.as_str(), killed.uid), (pid, comm, uid), "{text}");
            assert_eq!(killed.used.anon_rss_bytes, anon_kib.map(|kib: u64| kib * 1024), "{text}");
        }
        let text = "Memory cgroup out of memory: Killed process 9 (a) total-vm:8kB, anon-rss:1kB, file-rss:2kB, \
                    shmem-rss:3kB, UID:7 pgtables:4kB oom_score_adj:-5";
        let killed = killed_line(text);
        assert_eq!((killed.memcg, killed.uid, killed.used.oom_score_adj), (Some(true), Some(7), Some(-5)));
        assert_eq!((killed.used.shmem_rss_bytes, killed.used.pgtables_bytes), (Some(3072), Some(4096)));
    }

    #[test]
    fn sentences_inside_other_messages_are_not_believed() {
        for text in [
            "usb 1-1: Product: Out of memory: Killed process 1 (init) total-vm:1kB",
            "oomd: Killed process 1 (init) total-vm:1kB",
            "Killed process init",
            "Killed process",
            "Killed process 99999999999 (a)",
        ] {
            assert!(!matches!(parse(text), Some(Form::Killed(_))), "{text}");
        }
    }

    #[test]
    fn the_summary_is_read_from_the_right() {
        let text = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/a,\
                    task_memcg=/a/b,task=x,pid=1,uid=2,pid=77,uid=1000";
        let Some(Form::Summary(found)) = parse(text) else { panic!() };
        assert_eq!((found.pid, found.uid, found.comm.as_str()), (77, Some(1000), "x,pid=1,uid=2"));
        assert_eq!((found.cgroup.as_deref(), found.limit_cgroup.as_deref()), (Some("/a/b"), Some("/a")));
        assert_eq!(found.constraint, "CONSTRAINT_MEMCG");
        let text = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
                    task_memcg=/,task=a,task=b,pid=5,uid=0";
        let Some(Form::Summary(found)) = parse(text) else { panic!() };
        assert_eq!((found.comm.as_str(), found.limit_cgroup), ("a,task=b", None));
    }

    #[test]
    fn the_smaller_forms() {
        let announced = |comm: &str, memcg| Some(Form::Announced { pid: 4, comm: comm.into(), memcg });
        assert_eq!(parse("Out of memory: Kill process 4 (a) score 5 or sacrifice child"), announced("a", Some(false)));
        assert_eq!(
            parse("Memory cgroup out of memory: kill process 4 (b c) score 3 or a child"),
            announced("b c", Some(true))
        );
        assert_eq!(parse("oom_reaper: unable to reap pid:4 (a)"), Some(Form::Reaper { pid: 4, reaped: false }));
        assert_eq!(
            parse("k/0:2 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=-1, oom_score_adj=0"),
            Some(Form::Invoked { comm: "k/0:2".into(), by_operator: true })
        );
        assert_eq!(
            parse("CPU: 5 UID: 0 PID: 13 Comm: mem Tainted: P"),
            Some(Form::TriggerPid { pid: 13, comm: "mem Tainted: P".into() })
        );
        assert_eq!(parse("memory: usage 980kB, limit 980kB, failcnt 4"), Some(Form::Limit { limit_bytes: 980 * 1024 }));
        assert_eq!(
            parse("[13536] 275858 13536  8389663 343 1 2 0 mm"),
            Some(Form::TableRow { pid: 13536, uid: 275858 })
        );
        assert_eq!(parse("[ pid ]   uid  tgid total_vm"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = parse(&text);
        }

        #[test]
        fn never_panics_on_mangled_sentences(
            cut in 0usize..200, insert in "[a-z0-9():,= kB.ä-]{0,12}", which in 0usize..5,
        ) {
            let lines = [
                "Memory cgroup out of memory: Killed process 9 (a) total-vm:8kB, anon-rss:1kB, UID:7 oom_score_adj:-5",
                "oom-kill:constraint=C,nodemask=(null),oom_memcg=/a,task_memcg=/a/b,task=x,pid=77,uid=1000",
                "Out of memory: Kill process 4 (a) score 5 or sacrifice child",
                "Task in /a killed as a result of limit of /a",
                "CPU: 5 PID: 13 Comm: mem",
            ];
            let mut line: String = lines[which].chars().take(cut).collect();
            line.push_str(&insert);
            line.extend(lines[which].chars().skip(cut));
            let _ = parse(&line);
        }
    }
}
