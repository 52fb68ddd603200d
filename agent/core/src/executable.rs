//! Which program a service runs, by the content of its file: what tells a new build from the old one, on this host and
//! on others.
//!
//! A file is read only when another one (device, inode, size, times) stands behind the process than before. What cannot
//! be read is unknown, and unknown is no change. Of an interpreted service the program is the interpreter: its scripts
//! are another's matter (declare them in a baseline).

use crate::clock::Now;
use crate::judgement::{Judgement, Problem};
use crate::services::Services;
use muster_common::evidence::{Evidence, Value};
use muster_common::finding::SubjectKey;
use muster_common::ids::{ProcessId, ServiceName};
use muster_common::reason::Reason;
use serde::{Deserialize, Serialize};

/// Key of the evidence: the running program's hash, hexadecimal.
pub const SHA256_KEY: &str = "executable_sha256";
/// Key of the evidence: why there is no hash.
pub const UNKNOWN_KEY: &str = "executable_unknown";
/// Key of the evidence: nothing is known to have changed, this is the first look.
pub const FIRST_SEEN_KEY: &str = "first_seen";
/// Subject of the probe that finds it out.
pub const SUBJECT: &str = "executable";
/// Of a hash, what a sentence shows: enough to tell builds apart.
const SHORT_CHARS: usize = 12;
/// Until the probe has looked.
const NOT_YET: &str = "not looked at yet";

/// Which content a file had: another one when any of it differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileVersion {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Size.
    pub size_bytes: u64,
    /// Time of its content, Unix epoch.
    pub modified_ns: i64,
    /// Time of its inode, Unix epoch.
    pub changed_ns: i64,
}

/// The program behind a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executable {
    /// Which file.
    pub version: Option<FileVersion>,
    /// Its SHA-256, or why it is not known.
    pub sha256: Result<String, String>,
}

/// What a service ran when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    version: Option<FileVersion>,
    sha256: String,
    path: Option<String>,
}

/// Tells of each new program of one service, once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecutableJudge {
    known: Option<Known>,
}

impl ExecutableJudge {
    /// The hash of a file that was read before.
    pub fn sha256_of(&self, version: &FileVersion) -> Option<&str> {
        let known = self.known.as_ref()?;
        (known.version.as_ref() == Some(version)).then_some(known.sha256.as_str())
    }

    /// One look at a living process, which started at `start_boottime_ms`.
    pub fn judge(
        &mut self,
        service: &ServiceName,
        process: ProcessId,
        path: Option<&str>,
        executable: &Executable,
        start_boottime_ms: u64,
        now: Now,
    ) -> Judgement {
        let mut seen = Evidence::new().count("pid", process.pid);
        if let Some(path) = path {
            seen = seen.text("exe", path);
        }
        let sha256 = match &executable.sha256 {
            Err(why) => return Judgement::ok(seen.text(UNKNOWN_KEY, why)),
            Ok(sha256) => sha256,
        };
        let seen = seen.text(SHA256_KEY, sha256);
        let new = Known { version: executable.version, sha256: sha256.clone(), path: path.map(str::to_owned) };
        let old = self.known.replace(new);
        let judgement = Judgement::ok(seen.clone());
        match old {
            Some(old) if old.sha256 == *sha256 => judgement,
            old => judgement.occurred(change(service, seen, old.as_ref(), sha256, start_boottime_ms, now)),
        }
    }
}

fn change(
    service: &ServiceName,
    seen: Evidence,
    old: Option<&Known>,
    sha256: &str,
    start_boottime_ms: u64,
    now: Now,
) -> Problem {
    let short = short(sha256);
    let (summary, evidence) = match old {
        // The first look changes nothing and explains nothing; it is told so that the fleet knows who runs what.
        None => (format!("{service} runs build {short}, seen for the first time"), seen.flag(FIRST_SEEN_KEY, true)),
        Some(old) => {
            let mut evidence = seen.text("old", &old.sha256);
            if let Some(path) = &old.path {
                evidence = evidence.text("old_exe", path);
            }
            (format!("{service} runs a new build {short}, it was {}", self::short(&old.sha256)), evidence)
        }
    };
    let mut problem =
        Problem::new(Reason::Change, summary).evidence(evidence.text("what", "deploy").text("new", sha256));
    problem.observed_boottime_ms = Some(start_boottime_ms.min(now.boottime_ms));
    problem
}

/// Enough of a hash for a sentence.
pub fn short(sha256: &str) -> &str {
    sha256.get(..SHORT_CHARS).unwrap_or(sha256)
}

/// Adds the program to what is told of a process that ended or was replaced: of the new one (`executable_sha256`), of
/// the one that ended (`old_executable_sha256`), and why the first is not known.
pub fn tell(services: &Services, subject: &SubjectKey, judgement: &mut Judgement) {
    for problem in judgement.problems.iter_mut().chain(&mut judgement.occurrences) {
        let restarted = problem.reason == Reason::ProcessRestarted;
        if !restarted && !is_end(problem.reason) {
            continue;
        }
        let service = problem.service.as_ref().unwrap_or(&subject.service).clone();
        let evidence = &mut problem.evidence;
        let (pid, ticks) = if restarted { ("new_pid", "new_start_ticks") } else { ("pid", "start_ticks") };
        let now = of_process(services, &service, evidence, pid, ticks);
        match now.map(|executable| &executable.sha256) {
            Some(Ok(sha256)) => evidence.insert(SHA256_KEY, Value::Text(sha256.clone())),
            Some(Err(why)) => evidence.insert(UNKNOWN_KEY, Value::Text(why.clone())),
            None => evidence.insert(UNKNOWN_KEY, Value::Text(NOT_YET.to_owned())),
        }
        if restarted
            && let Some(Executable { sha256: Ok(sha256), .. }) =
                of_process(services, &service, evidence, "old_pid", "old_start_ticks")
        {
            evidence.insert("old_executable_sha256", Value::Text(sha256.clone()));
        }
    }
}

const fn is_end(reason: Reason) -> bool {
    matches!(reason, Reason::ProcessDown | Reason::ProcessZombie | Reason::RestartLoop)
}

/// By (pid, start time); where the start is not told, the newest one of that pid.
fn of_process<'a>(
    services: &'a Services,
    service: &ServiceName,
    evidence: &Evidence,
    pid: &str,
    start_ticks: &str,
) -> Option<&'a Executable> {
    let Some(Value::Count(pid)) = evidence.get(pid) else { return None };
    let pid = u32::try_from(*pid).ok()?;
    match evidence.get(start_ticks) {
        Some(Value::Count(start_ticks)) => services.executable(service, ProcessId { pid, start_ticks: *start_ticks }),
        _ => {
            let newest = services.instances(service)?.iter().rev().find(|instance| instance.process.pid == pid)?;
            services.executable(service, newest.process)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::finding::ProbeKind;
    use muster_common::time::Timestamp;

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::from_unix_ms(0) }
    }

    fn spl() -> ServiceName {
        ServiceName::new("spl").unwrap()
    }

    fn version(inode: u64) -> FileVersion {
        FileVersion { device: 1, inode, size_bytes: 10, modified_ns: 5, changed_ns: 5 }
    }

    fn executable(inode: u64, sha256: &str) -> Executable {
        Executable { version: Some(version(inode)), sha256: Ok(sha256.repeat(32)) }
    }

    fn look(judge: &mut ExecutableJudge, pid: u32, executable: &Executable) -> Judgement {
        let process = ProcessId { pid, start_ticks: 1 };
        judge.judge(&spl(), process, Some("/usr/bin/spl"), executable, 1_000, at(5_000))
    }

    #[test]
    fn a_new_build_is_told_once_and_when_its_process_started() {
        let mut judge = ExecutableJudge::default();
        let first = look(&mut judge, 1, &executable(1, "aa"));
        assert_eq!(first.occurrences[0].evidence.get(FIRST_SEEN_KEY), Some(&Value::Flag(true)));
        assert_eq!(first.occurrences[0].evidence.get("old"), None);
        assert!(look(&mut judge, 2, &executable(1, "aa")).occurrences.is_empty(), "a restart is no change");
        assert!(look(&mut judge, 3, &executable(2, "aa")).occurrences.is_empty(), "nor is a copy of the same program");
        assert_eq!(judge.sha256_of(&version(2)), Some("aa".repeat(32).as_str()));
        let saved = serde_json::to_string(&judge).unwrap();
        judge = serde_json::from_str(&saved).unwrap();
        let second = look(&mut judge, 4, &executable(3, "bb"));
        let [change] = second.occurrences.as_slice() else { panic!("{second:?}") };
        assert_eq!(change.reason, Reason::Change);
        assert_eq!(change.summary, "spl runs a new build bbbbbbbbbbbb, it was aaaaaaaaaaaa");
        assert_eq!(change.observed_boottime_ms, Some(1_000));
        assert_eq!(change.evidence.get("old"), Some(&Value::Text("aa".repeat(32))));
        assert_eq!(change.evidence.get("new"), Some(&Value::Text("bb".repeat(32))));
        assert_eq!(change.evidence.get("what"), Some(&Value::Text("deploy".into())));
    }

    #[test]
    fn what_cannot_be_read_is_no_change() {
        let mut judge = ExecutableJudge::default();
        look(&mut judge, 1, &executable(1, "aa"));
        let hidden = Executable { version: None, sha256: Err("permission denied".into()) };
        let judgement = look(&mut judge, 2, &hidden);
        assert!(judgement.occurrences.is_empty() && judgement.unknown.is_none());
        assert_eq!(judgement.seen.get(UNKNOWN_KEY), Some(&Value::Text("permission denied".into())));
        assert!(look(&mut judge, 3, &executable(1, "aa")).occurrences.is_empty());
    }

    #[test]
    fn a_restart_carries_both_programs_as_far_as_they_are_known() {
        let mut services = Services::default();
        let process = |pid| ProcessId { pid, start_ticks: u64::from(pid) };
        services.note_executable(&spl(), process(1), executable(1, "aa"));
        let subject = SubjectKey::new(spl(), ProbeKind::PidFile, "/run/spl.pid");
        let restarted = |new: u32| {
            let evidence = Evidence::new()
                .count("old_pid", 1u32)
                .count("old_start_ticks", 1u32)
                .count("new_pid", new)
                .count("new_start_ticks", new);
            let restart = Problem::new(Reason::ProcessRestarted, "again").evidence(evidence);
            Judgement::default().occurred(restart)
        };
        let mut judgement = restarted(2);
        tell(&services, &subject, &mut judgement);
        let evidence = &judgement.occurrences[0].evidence;
        assert_eq!(evidence.get("old_executable_sha256"), Some(&Value::Text("aa".repeat(32))));
        assert_eq!(evidence.get(UNKNOWN_KEY), Some(&Value::Text(NOT_YET.into())));
        services.note_executable(&spl(), process(2), executable(2, "bb"));
        let mut judgement = restarted(2);
        tell(&services, &subject, &mut judgement);
        let evidence = &judgement.occurrences[0].evidence;
        assert_eq!(evidence.get(SHA256_KEY), Some(&Value::Text("bb".repeat(32))));
        assert_eq!(evidence.get(UNKNOWN_KEY), None);
        // The same pid of another life is another process.
        let mut judgement = restarted(3);
        judgement.occurrences[0].evidence.insert("new_pid", Value::Count(2));
        tell(&services, &subject, &mut judgement);
        assert_eq!(judgement.occurrences[0].evidence.get(SHA256_KEY), None);
    }
}
