//! Edits of watched configuration on a real file system: an edit, a touch, a rename over it, a removal.

use muster_agent::clock;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::HostRoot;
use muster_agent::senses::watched_files::WatchedFiles;
use muster_agent_core::judgement::Problem;
use muster_common::evidence::Value;
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use std::sync::Arc;

fn run(probe: &mut WatchedFiles) -> Vec<Problem> {
    let context = Context { now: clock::now(), services: Arc::default(), one_shot: false };
    let judgement = probe.run(&context);
    assert!(judgement.problems.is_empty() && judgement.unknown.is_none(), "{judgement:?}");
    judgement.occurrences
}

#[test]
fn what_changes_the_content_is_told_and_what_does_not_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spl.conf");
    let spl = ServiceName::new("spl").unwrap();
    let mut probe = WatchedFiles::new(spl, "spl", vec![path.clone()], None, HostRoot::default());
    std::fs::write(&path, "a = 1\n").unwrap();
    assert!(run(&mut probe).is_empty(), "the first look");
    std::fs::write(&path, "a = 2\n").unwrap();
    let told = run(&mut probe);
    let [edit] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(edit.reason, Reason::Change);
    assert_eq!(edit.evidence.get("path"), Some(&Value::Text(path.to_string_lossy().into_owned())));
    let file = std::fs::File::options().append(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(run(&mut probe).is_empty(), "a touch");
    // As editors and package managers write: the same content, then another, in a new inode.
    for (content, edits) in [("a = 2\n", 0), ("a = 3\n", 1)] {
        std::fs::write(folder.path().join("new"), content).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(run(&mut probe).len(), edits, "{content:?}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(run(&mut probe)[0].summary.ends_with("was removed"));
    assert!(run(&mut probe).is_empty(), "once");
    // What an agent that was away missed is told by the one that comes after it.
    std::fs::write(&path, "a = 4\n").unwrap();
    let mut restarted =
        WatchedFiles::new(ServiceName::new("spl").unwrap(), "spl", vec![path.clone()], None, HostRoot::default());
    restarted.restore(probe.save().unwrap());
    assert!(run(&mut restarted)[0].summary.ends_with("appeared"));
    // A FIFO in its place hangs nobody.
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(run(&mut restarted).is_empty());
}
