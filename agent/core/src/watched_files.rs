//! Which watched configuration files changed: a finding of its own kind, since an edit is no fault but often the reason
//! for one.
//!
//! A file of another version (inode, size, times) is read and its content compared: a `touch` is no edit. What cannot be
//! read is unknown, and unknown is no change. The first look at a path changes nothing, unless the file took its place
//! since the look before.

use crate::clock::Now;
use crate::executable::{FileVersion, short};
use crate::judgement::{Judgement, Problem};
use muster_common::evidence::Evidence;
use muster_common::reason::Reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Told in one run, one by one; more are counted in the last one.
const TOLD_MAX: usize = 8;
/// Paths remembered; beyond, those that are not there any more are forgotten.
const KNOWN_MAX: usize = 256;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// Nothing.
    Absent,
    /// A file.
    Present {
        /// Which.
        version: FileVersion,
        /// SHA-256 of its content.
        sha256: String,
    },
    /// It cannot be told: why.
    Unknown(String),
}

/// Remembers each path as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilesJudge {
    known: BTreeMap<String, Look>,
    /// The wall clock at the look before.
    looked_unix_ms: Option<i64>,
}

impl FilesJudge {
    /// The hash of a file that is as it was.
    pub fn sha256_of(&self, path: &str, version: &FileVersion) -> Option<&str> {
        match self.known.get(path)? {
            Look::Present { version: known, sha256 } if known == version => Some(sha256),
            _ => None,
        }
    }

    /// The files that were there at the look before.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.known.iter().filter(|(_, look)| matches!(look, Look::Present { .. })).map(|(path, _)| path.as_str())
    }

    /// One look at all of them. `about` names whose they are: `spl`, or the agent itself.
    pub fn judge(&mut self, about: &str, looks: BTreeMap<String, Look>, now: Now) -> Judgement {
        let mut seen = Evidence::new().count("files", u64::try_from(looks.len()).unwrap_or(u64::MAX));
        let mut changes: Vec<Problem> = Vec::new();
        let mut more = 0u64;
        if self.known.len() > KNOWN_MAX {
            self.known.retain(|path, _| looks.contains_key(path));
        }
        let looked_unix_ms = self.looked_unix_ms.replace(now.wall.unix_ms());
        for (path, look) in looks {
            if let Look::Unknown(why) = &look {
                seen = seen.text("unknown", format!("{path}: {why}"));
                continue;
            }
            let is_new =
                |version: &FileVersion| looked_unix_ms.is_some_and(|looked| version.changed_ns / 1_000_000 > looked);
            let old = match (self.known.insert(path.clone(), look.clone()), &look) {
                (None, Look::Present { version, .. }) if is_new(version) => Some(Look::Absent),
                (old, _) => old,
            };
            let Some(change) = old.and_then(|old| change(about, &path, &old, &look, now)) else { continue };
            if changes.len() < TOLD_MAX { changes.push(change) } else { more += 1 }
        }
        if let Some(last) = changes.last_mut().filter(|_| more > 0) {
            last.evidence.insert("more_files", muster_common::evidence::Value::Count(more));
            last.summary = format!("{}; {more} more files changed", last.summary);
        }
        changes.into_iter().fold(Judgement::ok(seen), Judgement::occurred)
    }
}

fn change(about: &str, path: &str, old: &Look, new: &Look, now: Now) -> Option<Problem> {
    let evidence = Evidence::new().text("what", "config").text("path", path);
    let (verb, evidence, at) = match (old, new) {
        (Look::Present { sha256: old, .. }, Look::Present { sha256: new, version }) if old != new => {
            let evidence = evidence.text("old", short(old)).text("new", short(new));
            ("was edited", evidence, age_ms(version, now))
        }
        (Look::Absent, Look::Present { sha256, version }) => {
            ("appeared", evidence.text("new", short(sha256)), age_ms(version, now))
        }
        (Look::Present { sha256, .. }, Look::Absent) => ("was removed", evidence.text("old", short(sha256)), 0),
        _ => return None,
    };
    let mut problem =
        Problem::new(Reason::Change, format!("{path}, a configuration of {about}, {verb}")).evidence(evidence);
    problem.observed_boottime_ms = Some(now.boottime_ms.saturating_sub(at));
    Some(problem)
}

/// How long ago it took its place, by the clock that stamped it: a copy keeps the time of its content.
fn age_ms(version: &FileVersion, now: Now) -> u64 {
    u64::try_from(now.wall.unix_ms().saturating_sub(version.changed_ns / 1_000_000)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::evidence::Value;
    use muster_common::time::Timestamp;

    fn at(boottime_ms: u64) -> Now {
        Now { boottime_ms, wall: Timestamp::from_unix_ms(1_000_000 + boottime_ms as i64) }
    }

    fn file(inode: u64, content: &str, changed_boottime_ms: i64) -> Look {
        let changed_ns = (1_000_000 + changed_boottime_ms) * 1_000_000;
        let version = FileVersion { device: 1, inode, size_bytes: 1, modified_ns: 0, changed_ns };
        Look::Present { version, sha256: content.repeat(64) }
    }

    fn look(judge: &mut FilesJudge, now_ms: u64, look: Look) -> Vec<Problem> {
        judge.judge("spl", BTreeMap::from([("/etc/spl.conf".to_owned(), look)]), at(now_ms)).occurrences
    }

    #[test]
    fn an_edit_is_told_once_with_its_time_and_a_touch_is_none() {
        let mut judge = FilesJudge::default();
        assert!(look(&mut judge, 60_000, file(1, "a", 0)).is_empty(), "the first look");
        assert!(look(&mut judge, 120_000, file(1, "a", 90_000)).is_empty(), "a touch");
        judge = serde_json::from_str(&serde_json::to_string(&judge).unwrap()).unwrap();
        let told = look(&mut judge, 180_000, file(2, "b", 150_000));
        let [edit] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(edit.summary, "/etc/spl.conf, a configuration of spl, was edited");
        assert_eq!(edit.observed_boottime_ms, Some(150_000));
        assert_eq!(edit.evidence.get("what"), Some(&Value::Text("config".into())));
        assert_eq!(edit.evidence.get("old"), Some(&Value::Text("a".repeat(12))));
        assert!(look(&mut judge, 240_000, file(2, "b", 150_000)).is_empty(), "once");
        assert!(look(&mut judge, 300_000, Look::Unknown("a hung disk".into())).is_empty());
        assert!(look(&mut judge, 360_000, file(2, "b", 150_000)).is_empty(), "unknown forgets nothing");
        assert_eq!(look(&mut judge, 420_000, Look::Absent).len(), 1);
        assert_eq!(look(&mut judge, 480_000, file(3, "b", 470_000)).len(), 1);
    }

    #[test]
    fn a_file_that_is_new_in_its_folder_appears_and_one_that_was_never_asked_about_does_not() {
        let mut judge = FilesJudge::default();
        let looks = |name: &str, look| BTreeMap::from([(name.to_owned(), look)]);
        judge.judge("spl", looks("/etc/a", file(1, "a", 0)), at(60_000));
        assert!(judge.judge("spl", looks("/etc/b", file(2, "b", 30_000)), at(120_000)).occurrences.is_empty());
        let told = judge.judge("spl", looks("/etc/c", file(3, "c", 130_000)), at(180_000)).occurrences;
        assert_eq!(told[0].summary, "/etc/c, a configuration of spl, appeared");
        assert_eq!(judge.paths().collect::<Vec<_>>(), ["/etc/a", "/etc/b", "/etc/c"]);
    }

    #[test]
    fn many_at_once_are_bounded_and_counted() {
        let mut judge = FilesJudge::default();
        let all = |content: &str| (0..20).map(|n| (format!("/etc/{n:02}"), file(n, content, 0))).collect();
        assert!(judge.judge("the host", all("a"), at(0)).occurrences.is_empty());
        let told = judge.judge("the host", all("b"), at(60_000)).occurrences;
        assert_eq!(told.len(), TOLD_MAX);
        assert_eq!(told[TOLD_MAX - 1].evidence.get("more_files"), Some(&Value::Count(12)));
    }
}
