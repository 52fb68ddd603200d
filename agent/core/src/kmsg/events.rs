//! Joins the messages of one OOM event into its victims.
//!
//! The kernel prints one event under one lock, so its messages never interleave with another event's; but it limits
//! the rate of the long ones, and after about ten kills in a second only the `Killed process` lines remain. With
//! `memory.oom.group` one event has many victims, one of them printed twice.

use super::forms::{self, Form, Killed, Summary, Used};
use super::line::{Line, Source};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Kills remembered to recognise a repeated line; more than a group kill of one cgroup usually has.
const RECENT_MAX: usize = 4096;
/// The same pid with the same name within this time is the same kill printed twice.
const REPEAT_USEC_MAX: u64 = 60_000_000;
/// Messages further apart than this are of different events.
const EVENT_GAP_USEC_MAX: u64 = 2_000_000;
/// Rows of one task table kept to look up users.
const TABLE_ROWS_MAX: usize = 8192;
/// Victims kept until they are taken; a saved log with more is counted in `victims_dropped`.
const VICTIMS_MAX: usize = 10_000;

/// Who needed the memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// Its name.
    pub comm: String,
    /// Its pid.
    pub pid: Option<u32>,
}

/// Whose memory ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The host's.
    Global,
    /// A cgroup reached its limit.
    Memcg,
    /// The text does not say.
    Untold,
}

/// What proves the kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The `Killed process` line.
    Killed,
    /// The `oom-kill:` line alone.
    Summary,
    /// Only the announcement (`Kill process … or sacrifice child`).
    Announced,
}

/// One process the kernel killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// Pid in the initial pid namespace.
    pub pid: u32,
    /// Name as the kernel has it.
    pub comm: String,
    /// What proves it.
    pub proof: Proof,
    /// Whose memory ran out.
    pub scope: Scope,
    /// Its user.
    pub uid: Option<u32>,
    /// Its memory cgroup.
    pub cgroup: Option<String>,
    /// The cgroup whose limit was reached.
    pub limit_cgroup: Option<String>,
    /// That limit.
    pub limit_bytes: Option<u64>,
    /// `CONSTRAINT_MEMCG` and the like.
    pub constraint: Option<String>,
    /// What it used.
    pub used: Used,
    /// Who needed the memory.
    pub trigger: Option<Trigger>,
    /// True when an operator asked for a kill (sysrq-f).
    pub by_operator: bool,
    /// True when a whole group was killed (`memory.oom.group`).
    pub group_kill: bool,
    /// Whether the reaper could free its memory, where it said so.
    pub reaped: Option<bool>,
    /// Sequence number of the record.
    pub sequence: Option<u64>,
    /// Microseconds since boot.
    pub usec: Option<u64>,
    /// The kernel's sentence.
    pub line: String,
}

/// A kill of which the text tells the cgroup, but not the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unnamed {
    /// The victim's cgroup.
    pub cgroup: String,
    /// The cgroup whose limit was reached.
    pub limit_cgroup: String,
    /// Microseconds since boot.
    pub usec: Option<u64>,
}

/// What came out since the last [`Joiner::take`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Every victim once, in the order of their kills.
    pub victims: Vec<Victim>,
    /// Kills without a name.
    pub unnamed: Vec<Unnamed>,
    /// `Killed process` lines, repeated ones included: what `/proc/vmstat` counts.
    pub kill_lines: u64,
    /// Lines of user space that look like the OOM killer's; not believed.
    pub forged_lines: u64,
    /// Victims beyond the bound.
    pub victims_dropped: u64,
}

/// A summary or announcement that waits for its `Killed process` line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    victim: Victim,
    /// Takes it has survived.
    takes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Event {
    trigger: Option<Trigger>,
    by_operator: bool,
    task_in: Option<Unnamed>,
    limit_bytes: Option<u64>,
    group: Option<String>,
    summary: Option<Pending>,
    announced: Option<Pending>,
    /// True once a victim came out of it.
    killed: bool,
    last_usec: Option<u64>,
    /// Not kept across a restart: a table is hundreds of rows, and only old kernels need it for the uid.
    #[serde(skip)]
    uids: BTreeMap<u32, u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Recent {
    pid: u32,
    comm: String,
    usec: Option<u64>,
    event: u64,
}

/// The state machine: lines in, victims out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Joiner {
    event: Event,
    events: u64,
    recent: VecDeque<Recent>,
    outcome: Outcome,
}

impl Joiner {
    /// Takes one line into account.
    pub fn feed(&mut self, line: &Line) {
        let Some(form) = forms::parse(&line.text) else { return };
        if line.source == Source::UserSpace {
            let claims = matches!(form, Form::Killed(_) | Form::Summary(_) | Form::Announced { .. });
            self.outcome.forged_lines += u64::from(claims);
            return;
        }
        self.expire(line.usec);
        match form {
            Form::Invoked { comm, by_operator } => {
                self.begin();
                self.event.trigger = Some(Trigger { comm, pid: None });
                self.event.by_operator = by_operator;
            }
            Form::TriggerPid { pid, comm } => {
                let trigger = self.event.trigger.as_mut().filter(|trigger| comm.starts_with(&trigger.comm));
                if let Some(trigger) = trigger {
                    trigger.pid.get_or_insert(pid);
                }
            }
            Form::TaskIn { cgroup, limit_cgroup } => {
                if self.event.killed || self.event.task_in.is_some() {
                    self.begin();
                }
                self.event.task_in = Some(Unnamed { cgroup, limit_cgroup, usec: line.usec });
            }
            Form::Limit { limit_bytes } => {
                self.event.limit_bytes.get_or_insert(limit_bytes);
            }
            Form::TableRow { pid, uid } if self.event.uids.len() < TABLE_ROWS_MAX => {
                self.event.uids.insert(pid, uid);
            }
            Form::TableRow { .. } => {}
            Form::Summary(summary) => self.summary(summary, line),
            Form::Announced { pid, comm, memcg } => {
                if self.event.killed || self.event.announced.is_some() {
                    self.begin();
                }
                let mut victim = self.victim(pid, comm, Proof::Announced, line);
                victim.scope = scope(memcg, &victim);
                self.event.announced = Some(Pending { victim, takes: 0 });
            }
            Form::Killed(killed) => self.killed(killed, line),
            Form::GroupKill { cgroup } => {
                // Printed behind the first victim's line: that one was of the group as well.
                if self.event.killed
                    && let Some(first) = self.outcome.victims.last_mut()
                    && self.recent.back().is_some_and(|recent| recent.pid == first.pid && recent.event == self.events)
                {
                    first.group_kill = true;
                    first.cgroup.get_or_insert_with(|| cgroup.clone());
                }
                self.event.group = Some(cgroup);
            }
            Form::Reaper { pid, reaped } => {
                if let Some(victim) = self.outcome.victims.iter_mut().rev().find(|victim| victim.pid == pid) {
                    victim.reaped = Some(reaped);
                }
            }
        }
        self.event.last_usec = line.usec.or(self.event.last_usec);
    }

    /// What came out. A summary or announcement whose `Killed process` line may still be on its way is kept back
    /// once; `last` says that nothing more will come.
    pub fn take(&mut self, last: bool) -> Outcome {
        let waits = [&mut self.event.summary, &mut self.event.announced];
        let mut overdue = last;
        for pending in waits.into_iter().flatten() {
            overdue |= pending.takes > 0;
            pending.takes += 1;
        }
        if overdue {
            self.finish();
        }
        std::mem::take(&mut self.outcome)
    }

    /// A long silence ends an event.
    fn expire(&mut self, usec: Option<u64>) {
        if let (Some(now), Some(last)) = (usec, self.event.last_usec)
            && now.saturating_sub(last) > EVENT_GAP_USEC_MAX
        {
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.finish();
        self.event = Event::default();
        self.events += 1;
    }

    /// Lets out what waited for a line that did not come.
    fn finish(&mut self) {
        let announced = self.event.announced.take();
        if let Some(pending) = self.event.summary.take().or(announced) {
            self.let_out(pending.victim);
        } else if !self.event.killed
            && let Some(unnamed) = self.event.task_in.take()
            && self.outcome.unnamed.len() < VICTIMS_MAX
        {
            self.outcome.unnamed.push(unnamed);
        }
    }

    fn summary(&mut self, summary: Summary, line: &Line) {
        if self.event.killed || self.event.summary.is_some() {
            self.begin();
        }
        let mut victim = self.victim(summary.pid, summary.comm, Proof::Summary, line);
        victim.uid = summary.uid.or(victim.uid);
        victim.cgroup = summary.cgroup.or(victim.cgroup);
        victim.limit_cgroup = summary.limit_cgroup.or(victim.limit_cgroup);
        victim.scope = if summary.constraint == "CONSTRAINT_MEMCG" { Scope::Memcg } else { Scope::Global };
        victim.constraint = Some(summary.constraint);
        self.event.summary = Some(Pending { victim, takes: 0 });
    }

    fn killed(&mut self, killed: Killed, line: &Line) {
        self.outcome.kill_lines += 1;
        let pid = killed.pid;
        let repeated = self.is_repeat(pid, &killed.comm, line.usec);
        let is = |pending: &Option<Pending>| pending.as_ref().is_some_and(|pending| pending.victim.pid == pid);
        let mut known = None;
        if is(&self.event.summary) {
            known = self.event.summary.take();
            self.event.announced = None;
        } else if self.event.announced.is_some() {
            // Either the announced process, or the child that was sacrificed in its place.
            known = self.event.announced.take().filter(|pending| pending.victim.pid == pid);
            self.event.summary = None;
        } else if self.event.summary.is_some() || (self.event.killed && self.event.group.is_none() && !repeated) {
            // Another event, whose longer messages the rate limit swallowed.
            self.begin();
        }
        self.event.killed = true;
        if repeated {
            return;
        }
        let mut victim = match known {
            Some(pending) => pending.victim,
            None => self.victim(pid, killed.comm.clone(), Proof::Killed, line),
        };
        victim.scope = scope(killed.memcg, &victim);
        victim.comm = killed.comm;
        victim.proof = Proof::Killed;
        victim.uid = killed.uid.or(victim.uid);
        victim.used = killed.used;
        victim.sequence = line.sequence;
        victim.usec = line.usec;
        victim.line.clone_from(&line.text);
        self.let_out(victim);
    }

    /// A victim with what the event tells so far.
    fn victim(&self, pid: u32, comm: String, proof: Proof, line: &Line) -> Victim {
        let event = &self.event;
        let told = event.task_in.as_ref();
        Victim {
            pid,
            comm,
            proof,
            scope: Scope::Untold,
            uid: event.uids.get(&pid).copied(),
            cgroup: event.group.clone().or_else(|| told.map(|told| told.cgroup.clone())),
            limit_cgroup: told.map(|told| told.limit_cgroup.clone()),
            limit_bytes: event.limit_bytes,
            constraint: None,
            used: Used::default(),
            trigger: event.trigger.clone(),
            by_operator: event.by_operator,
            group_kill: event.group.is_some(),
            reaped: None,
            sequence: line.sequence,
            usec: line.usec,
            line: line.text.clone(),
        }
    }

    fn is_repeat(&self, pid: u32, comm: &str, usec: Option<u64>) -> bool {
        self.recent.iter().any(|recent| {
            let near = match (recent.usec, usec) {
                (Some(before), Some(now)) => now.abs_diff(before) < REPEAT_USEC_MAX,
                _ => recent.event == self.events,
            };
            recent.pid == pid && recent.comm == comm && near
        })
    }

    fn let_out(&mut self, victim: Victim) {
        if self.is_repeat(victim.pid, &victim.comm, victim.usec) {
            return;
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        let Victim { pid, comm, usec, .. } = victim.clone();
        self.recent.push_back(Recent { pid, comm, usec, event: self.events });
        if self.outcome.victims.len() < VICTIMS_MAX {
            self.outcome.victims.push(victim);
        } else {
            self.outcome.victims_dropped += 1;
        }
    }
}

/// The kill line's introduction decides; older kernels leave it out and tell the cgroup before.
fn scope(memcg: Option<bool>, victim: &Victim) -> Scope {
    match memcg {
        Some(true) => Scope::Memcg,
        _ if victim.scope != Scope::Untold => victim.scope,
        _ if victim.limit_cgroup.is_some() => Scope::Memcg,
        Some(false) => Scope::Global,
        None => Scope::Untold,
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::{parse_record, parse_saved};
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Outcome {
        let mut joiner = Joiner::default();
        text.lines().for_each(|line| joiner.feed(&parse_saved(line)));
        joiner.take(true)
    }

    fn names(outcome: &Outcome) -> Vec<(u32, &str)> {
        outcome.victims.iter().map(|victim| (victim.pid, victim.comm.as_str())).collect()
    }

    #[test]
    fn the_modern_form_joins_into_one_victim() {
        let outcome = read(
            "6,1,1000000,-;eater invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n\
             6,2,1000001,-;CPU: 1 UID: 0 PID: 40 Comm: eater Not tainted 6.18\n\
             6,3,1000002,-;memory: usage 20480kB, limit 20480kB, failcnt 9\n\
             6,4,1000003,-;[     41]  1000    41     9     9        9        9          0             0 hog\n\
             6,5,1000004,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
             oom_memcg=/box,task_memcg=/box/in,task=hog,pid=41,uid=1000\n\
             3,6,1000005,-;Memory cgroup out of memory: Killed process 41 (hog) total-vm:9kB, anon-rss:3kB, \
             file-rss:2kB, shmem-rss:1kB, UID:1000 pgtables:4kB oom_score_adj:-17\n\
             6,7,1000006,-;oom_reaper: reaped process 41 (hog), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB\n",
        );
        let [victim] = outcome.victims.as_slice() else { panic!("{outcome:?}") };
        assert_eq!((victim.pid, victim.comm.as_str(), victim.uid), (41, "hog", Some(1000)));
        assert_eq!((victim.scope, victim.proof, victim.reaped), (Scope::Memcg, Proof::Killed, Some(true)));
        assert_eq!((victim.cgroup.as_deref(), victim.limit_cgroup.as_deref()), (Some("/box/in"), Some("/box")));
        assert_eq!((victim.limit_bytes, victim.used.rss_bytes()), (Some(20480 << 10), Some(6 << 10)));
        assert_eq!(victim.trigger, Some(Trigger { comm: "eater".into(), pid: Some(40) }));
        assert_eq!((victim.sequence, victim.used.oom_score_adj), (Some(6), Some(-17)));
        assert_eq!(outcome.kill_lines, 1);
    }

    #[test]
    fn after_the_rate_limit_the_bare_lines_count() {
        let text: String = (0..30)
            .map(|i| {
                format!("3,{i},{},-;Memory cgroup out of memory: Killed process {} (w) total-vm:1kB\n", i * 9, 50 + i)
            })
            .collect();
        let outcome = read(&text);
        assert_eq!(outcome.victims.len(), 30);
        assert!(outcome.victims.iter().all(|victim| !victim.group_kill && victim.cgroup.is_none()));
    }

    #[test]
    fn a_group_kill_counts_each_once() {
        let outcome = read(
            "[ 5.0] Out of memory: Kill process 8 (a) score 9 or sacrifice child\n\
             [ 5.1] Killed process 8 (a) total-vm:1kB\n\
             [ 5.2] Tasks in /g are going to be killed due to memory.oom.group set\n\
             [ 5.3] Killed process 7 (a) total-vm:1kB\n\
             [ 5.4] Killed process 8 (a) total-vm:1kB\n\
             [ 5.5] Killed process 9 (b) total-vm:1kB\n",
        );
        assert_eq!(names(&outcome), [(8, "a"), (7, "a"), (9, "b")]);
        assert_eq!(outcome.kill_lines, 4);
        let of_the_group = |victim: &Victim| victim.group_kill && victim.cgroup.as_deref() == Some("/g");
        assert!(outcome.victims.iter().all(of_the_group), "{outcome:?}");
    }

    #[test]
    fn an_announcement_counts_only_without_its_deed() {
        let child = "Out of memory: Kill process 8 (boss) score 9 or sacrifice child\nKilled process 9 (child) vsz:1kB";
        assert_eq!(names(&read(child)), [(9, "child")]);
        let alone = read("Out of memory: Kill process 8 (boss) score 9 or sacrifice child\n");
        assert_eq!(names(&alone), [(8, "boss")]);
        assert_eq!(alone.victims[0].proof, Proof::Announced);
    }

    #[test]
    fn old_kernels_tell_user_and_cgroup_before() {
        let outcome = read(
            "mm invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0\n\
             Task in /box killed as a result of limit of /\n\
             [ 36]  1007    36     9     9   9     9             0 mm\n\
             Memory cgroup out of memory: Kill process 36 (mm) score 996 or sacrifice child\n\
             Killed process 36 (mm) total-vm:8kB, anon-rss:4kB, file-rss:0kB\n",
        );
        assert_eq!(names(&outcome), [(36, "mm")]);
        assert_eq!((outcome.victims[0].uid, outcome.victims[0].scope), (Some(1007), Scope::Memcg));
        assert!(outcome.unnamed.is_empty());
        assert_eq!(read("Task in /b killed as a result of limit of /b\n").unnamed.len(), 1);
    }

    #[test]
    fn an_operator_who_asks_for_it_is_named() {
        let outcome = read(
            "kworker/0:2 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=-1, oom_score_adj=0\n\
             Out of memory: Killed process 36 (mm) total-vm:8kB, anon-rss:4kB, file-rss:0kB\n",
        );
        assert!(outcome.victims[0].by_operator);
    }

    #[test]
    fn user_space_is_counted_not_believed() {
        let outcome = read("14,1,1,-;Killed process 1 (init) total-vm:1kB\n<14>Out of memory: Killed process 1 (i)\n");
        assert!(outcome.victims.is_empty());
        assert_eq!((outcome.kill_lines, outcome.forged_lines), (0, 2));
    }

    #[test]
    fn a_summary_waits_once_for_its_line() {
        let mut joiner = Joiner::default();
        let summary = b"6,1,1000,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),global_oom,task_memcg=/,task=a,pid=5,uid=0";
        joiner.feed(&parse_record(summary).unwrap());
        assert!(joiner.take(false).victims.is_empty());
        let mut late = joiner.clone();
        assert_eq!(names(&joiner.take(false)), [(5, "a")]);
        late.feed(&parse_record(b"3,2,1002,-;Out of memory: Killed process 5 (a) total-vm:1kB").unwrap());
        let outcome = late.take(false);
        assert_eq!(outcome.victims[0].proof, Proof::Killed);
        assert!(late.take(true).victims.is_empty());
        // The line that comes after the summary was let out is the same kill.
        joiner.feed(&parse_record(b"3,2,1002,-;Out of memory: Killed process 5 (a) total-vm:1kB").unwrap());
        assert!(joiner.take(true).victims.is_empty());
    }

    #[test]
    fn the_same_pid_much_later_is_another_process() {
        let outcome = read("[ 5.0] Killed process 8 (a) total-vm:1kB\n[ 500.0] Killed process 8 (a) total-vm:1kB\n");
        assert_eq!(outcome.victims.len(), 2);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_repeats(picks in proptest::collection::vec((0usize..9, 0u32..4, 0u64..3), 0..60)) {
            let mut joiner = Joiner::default();
            let mut time = 0;
            let mut victims = Vec::new();
            for (which, pid, step) in picks {
                time += step;
                let message = match which {
                    0 => "x invoked oom-killer: order=0, oom_score_adj=0".to_owned(),
                    1 => format!("oom-kill:constraint=CONSTRAINT_MEMCG,task_memcg=/a,task=c,pid={pid},uid=0"),
                    2 => format!("Out of memory: Kill process {pid} (c) score 1 or sacrifice child"),
                    3 | 4 => format!("Killed process {pid} (c) total-vm:1kB"),
                    5 => "Tasks in /a are going to be killed due to memory.oom.group set".to_owned(),
                    6 => "Task in /a killed as a result of limit of /a".to_owned(),
                    7 => format!("oom_reaper: reaped process {pid} (c)"),
                    _ => format!("[ {pid}] 0 {pid} 1 1"),
                };
                joiner.feed(&Line { source: Source::Kernel, sequence: None, usec: Some(time), text: message });
                if step == 2 {
                    victims.extend(joiner.take(false).victims);
                }
            }
            victims.extend(joiner.take(true).victims);
            let mut pids: Vec<u32> = victims.iter().map(|victim| victim.pid).collect();
            let all = pids.len();
            pids.sort_unstable();
            pids.dedup();
            prop_assert_eq!(all, pids.len());
        }
    }
}
