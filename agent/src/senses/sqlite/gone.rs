//! A database that is not there: what of it is still there, and who still has it open. Of a database that was deleted
//! under its writer the -wal may hold all that is left, and the writer's end takes it away.

use super::SqliteProbe;
use super::files::{self, Obstacle};
use super::report;
use crate::probe::Context;
use crate::sandbox;
use crate::senses::HostRoot;
use crate::senses::locks::{self, Holder};
use muster_agent_core::judgement::{Judgement, Unknown};
use muster_agent_core::locks::party::Party;
use muster_common::reason::Reason;
use std::path::{Path, PathBuf};

/// Processes named that have it open.
const HOLDERS_MAX: usize = 8;

/// What is left of a database that is gone.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Where it should be: behind a symbolic link, the place that it names.
    pub(super) place: PathBuf,
    /// The path is a link to that place.
    pub(super) is_link: bool,
    /// Its siblings that are still there: what their names end in, and their sizes.
    pub(super) siblings: Vec<(&'static str, u64)>,
    /// Who has it or one of them open, and the number of the descriptor of the deleted file itself.
    pub(super) holders: Vec<(Party, Option<u32>)>,
    /// Everybody was asked whether they have it open.
    pub(super) all_asked: bool,
}

impl Left {
    fn of(path: &Path) -> Self {
        let link = std::fs::read_link(path).ok();
        let is_link = link.is_some();
        let place =
            link.map_or_else(|| path.to_owned(), |to| path.parent().map_or(to.clone(), |folder| folder.join(to)));
        // The kernel names what a process has open without symbolic links.
        let folder = place.parent().and_then(|folder| folder.canonicalize().ok());
        let place = folder.zip(place.file_name()).map(|(folder, name)| folder.join(name)).unwrap_or(place);
        let size = |suffix| {
            let found = std::fs::symlink_metadata(files::sibling(&place, suffix)).ok()?;
            found.is_file().then_some((suffix, found.len()))
        };
        let siblings = ["-wal", "-shm", "-journal"].into_iter().filter_map(size).collect();
        Self { place, is_link, siblings, ..Self::default() }
    }
}

impl SqliteProbe {
    /// What is told of a path that could not be looked at.
    pub(super) fn obstructed(&self, obstacle: &Obstacle) -> Judgement {
        let problem = match obstacle {
            Obstacle::Missing => report::missing(&self.path, &Left::of(&self.path)),
            Obstacle::NotAFile(kind) => report::not_a_file(&self.path, kind),
            other => {
                let (why, way_out) = report::blind(other);
                return Judgement::unknown(why, way_out.as_deref());
            }
        };
        // What was open stays open: a file that is gone is not a file that is well.
        Judgement { unknown: Some(Unknown::new("there is no database to check", None)), ..Judgement::problem(problem) }
    }

    /// Tells with a database that is gone who still has it open. Looks around on a thread that may look at other
    /// processes, and only for a file that was there: a wrong path in the config is nobody's.
    pub(super) fn tell_holders(&self, context: &Context, judgement: &mut Judgement) {
        let missing = judgement.problems.iter_mut().find(|problem| problem.reason == Reason::SqliteMissing);
        let Some(missing) = missing else { return };
        let left = Left::of(&self.path);
        if left.siblings.is_empty() && !self.memory.had_content && !context.one_shot {
            return;
        }
        let living = locks::living(context);
        let asked = sandbox::unrestricted(move || {
            let root = HostRoot::default();
            let (holders, all_asked) = locks::holders_of_deleted(&root, &left.place, HOLDERS_MAX);
            let named = |Holder { pid, descriptor }| Some((locks::party(&root, &living, pid)?, descriptor));
            Left { holders: holders.into_iter().filter_map(named).collect(), all_asked, ..left }
        });
        if let Some(left) = asked {
            *missing = report::missing(&self.path, &left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SqliteOptions;
    use super::*;
    use muster_agent_core::clock::Now;
    use muster_common::ids::ServiceName;
    use muster_common::time::Timestamp;
    use std::io::{BufRead, BufReader};
    use std::sync::Arc;

    const PATH_KEY: &str = "MUSTER_TEST_DELETED_DATABASE";
    const TO_KEY: &str = "MUSTER_TEST_RENAMED_DATABASE";
    const NAME: &str = "senses::sqlite::gone::tests::a_database_deleted_under_its_writer_is_saved_with_its_log";

    fn run(path: &Path) -> Judgement {
        let mut probe = SqliteProbe::new(ServiceName::host(), path.to_owned(), SqliteOptions::default());
        let now = Now { boottime_ms: 1_000, wall: Timestamp::UNIX_EPOCH };
        let context = Context { now, services: Arc::default(), one_shot: true };
        crate::probe::Probe::run(&mut probe, &context)
    }

    fn told(path: &Path) -> (String, Vec<String>) {
        let problem = run(path).problems.remove(0);
        assert_eq!(problem.reason, Reason::SqliteMissing);
        (problem.summary, problem.next_steps)
    }

    /// A child that opens the database at `path`, and then deletes it or gives it the name `to`.
    struct Writer {
        child: std::process::Child,
        _lines: Box<dyn Iterator<Item = String>>,
    }

    impl Writer {
        fn start(path: &Path, to: Option<&Path>) -> Self {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", NAME, "--nocapture"]).env(PATH_KEY, path);
            if let Some(to) = to {
                command.env(TO_KEY, to);
            }
            let piped = std::process::Stdio::piped;
            let mut child = command.stdin(piped()).stdout(piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
            assert!(lines.any(|line| line == "gone"));
            Self { child, _lines: Box::new(lines) }
        }

        /// Ends it; its pid.
        fn end(mut self) -> u32 {
            drop(self.child.stdin.take());
            self.child.wait().unwrap();
            self.child.id()
        }
    }

    #[test]
    fn a_database_deleted_under_its_writer_is_saved_with_its_log() {
        if let Some(path) = std::env::var_os(PATH_KEY).map(PathBuf::from) {
            let writer = rusqlite::Connection::open(&path).unwrap();
            writer
                .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE jobs(id); INSERT INTO jobs VALUES (1)")
                .unwrap();
            match std::env::var_os(TO_KEY) {
                Some(to) => std::fs::rename(&path, to).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            println!("\ngone");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("hub.db");
        let writer = Writer::start(&path, None);
        let (summary, steps) = told(&path);
        let pid = writer.end();
        assert!(summary.contains("does not exist; its -wal (") && summary.contains(" and -shm (32"), "{summary}");
        assert!(summary.contains(&format!("(pid {pid}) still has it open")), "{summary}");
        let shown = path.display();
        assert_eq!(
            steps[0],
            format!("keep pid {pid} running: its end may delete the -wal, which holds the newest rows")
        );
        let copy = format!("copy what is left, all of it, before that: cp -a {shown}-wal {shown}-shm SAFE_PLACE/");
        assert_eq!(steps[1], copy);
        assert!(steps[2].contains(&format!("cp /proc/{pid}/fd/")), "{steps:?}");
        assert!(steps[2].ends_with(" SAFE_PLACE/hub.db"), "{steps:?}");
    }

    #[test]
    fn a_database_renamed_under_its_writer_says_where_its_log_is() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (old, new) = (folder.join("old.db"), folder.join("new.db"));
        let writer = Writer::start(&old, Some(&new));
        let (moved, left) = (run(&new).unknown.unwrap(), told(&old).0);
        let pid = writer.end();
        assert_eq!(moved.why, format!("the database is just being opened or closed by pid {pid}"));
        assert!(moved.way_out.unwrap().contains(&format!("ls -l /proc/{pid}/fd")), "the -wal has the old name");
        assert!(left.contains(&format!("(pid {pid}) still has it open")), "{left}");
    }

    #[test]
    fn what_a_killed_writer_left_without_its_database_is_saved_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("hub.db");
        std::fs::write(files::sibling(&path, "-journal"), b"rows").unwrap();
        let (summary, steps) = told(&path);
        assert!(summary.ends_with("hub.db does not exist; its -journal (4 B) is still there"), "{summary}");
        assert!(steps[0].starts_with("copy what is left, all of it, before anything opens it: cp -a "), "{steps:?}");
    }

    #[test]
    fn a_link_to_nowhere_is_told_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("nowhere.db", folder.join("link.db")).unwrap();
        let (summary, _) = told(&folder.join("link.db"));
        let shown = folder.display();
        assert_eq!(
            summary,
            format!("the database {shown}/link.db is a link to {shown}/nowhere.db, which does not exist")
        );
    }
}
