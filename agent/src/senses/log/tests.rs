//! Real files, rotated in every way while a real process writes.

use super::file::{FilePass, FileState, Follower};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

struct Stage {
    folder: tempfile::TempDir,
    follower: Follower,
    lines: Vec<String>,
    now_ms: u64,
}

impl Stage {
    fn new(pattern: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let follower = Follower::new(folder.path().join(pattern));
        Self { folder, follower, lines: Vec::new(), now_ms: 1_000 }
    }

    /// A log that is followed from its begin.
    fn started(pattern: &str) -> Self {
        let mut stage = Self::new(pattern);
        std::fs::write(stage.path("x.log"), "").unwrap();
        stage.pass();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn append(&self, name: &str, text: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn copy_and_truncate(&self, from: &str, to: &str) {
        std::fs::copy(self.path(from), self.path(to)).unwrap();
        std::fs::OpenOptions::new().write(true).open(self.path(from)).unwrap().set_len(0).unwrap();
    }

    fn pass(&mut self) -> FilePass {
        // Not the five seconds of production: passes here follow each other much faster than a slow writer writes.
        self.now_ms += 1;
        let lines = &mut self.lines;
        self.follower.pass(self.now_ms, None, &mut |line, _| lines.push(String::from_utf8_lossy(line).into_owned()))
    }

    /// Another life of the agent, with what the first one saved.
    fn restart(&mut self, pattern: &str) {
        let saved = serde_json::to_string(self.follower.state()).unwrap();
        self.follower = Follower::new(self.folder.path().join(pattern));
        self.follower.restore(serde_json::from_str::<FileState>(&saved).unwrap());
    }

    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// Lets go of what was rotated away long ago.
    fn later(&mut self) {
        self.now_ms += 120_000;
        self.pass();
    }
}

fn numbered(range: std::ops::RangeInclusive<u32>) -> Vec<String> {
    range.map(|n| format!("line {n}")).collect()
}

fn text(range: std::ops::RangeInclusive<u32>) -> String {
    numbered(range).iter().map(|line| format!("{line}\n")).collect()
}

/// A process that writes what it is told, to a descriptor that it holds until it is told to open the path anew.
struct Writer(Child);

impl Writer {
    fn start(path: &Path) -> Self {
        let script = r#"exec 3>>"$1"; while read -r line; do
            case $line in reopen) exec 3>>"$1";; *) echo "$line" >&3;; esac; echo done; done"#;
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg("sh").arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn tell(&mut self, line: &str) {
        use std::io::Read;
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut answer = [0; 5];
        self.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn what_was_there_before_is_history_and_a_part_of_a_line_waits() {
    let mut stage = Stage::new("x.log");
    stage.append("x.log", "old\nhal");
    stage.pass();
    stage.append("x.log", "f of an old one\nnew\nnot yet");
    stage.pass();
    assert_eq!(stage.take(), ["new"]);
    stage.append("x.log", " whole\n");
    stage.pass();
    assert_eq!(stage.take(), ["not yet whole"]);
    stage.pass();
    assert!(stage.take().is_empty());
}

#[test]
fn a_log_that_is_made_after_the_first_look_is_new_from_its_begin() {
    for pattern in ["x.log", "*.log"] {
        let mut stage = Stage::new(pattern);
        stage.pass();
        stage.restart(pattern);
        stage.pass();
        stage.append("x.log", &text(1..=3));
        stage.pass();
        assert_eq!(stage.take(), numbered(1..=3), "{pattern}");
    }
    // One that was made before, and was not to be seen (a file system that is mounted late), is history.
    let mut stage = Stage::new("late/x.log");
    std::fs::create_dir(stage.path("early")).unwrap();
    stage.append("early/x.log", "old\n");
    let second = || crate::clock::now().wall.unix_ms() / 1000;
    let made = second();
    while second() == made {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    stage.pass();
    stage.rename("early", "late");
    stage.pass();
    stage.append("late/x.log", "new\n");
    stage.pass();
    assert_eq!(stage.take(), ["new"]);
}

#[test]
fn a_device_of_another_number_after_a_reboot_makes_no_other_file() {
    let mut stage = Stage::started("x.log");
    stage.append("x.log", &text(1..=5));
    stage.pass();
    stage.take();
    let mut saved = serde_json::to_value(stage.follower.state()).unwrap();
    let device = &mut saved["tails"][0]["device"];
    *device = (device.as_u64().unwrap() + 1).into();
    stage.follower = Follower::new(stage.path("x.log"));
    stage.follower.restore(serde_json::from_value(saved).unwrap());
    stage.append("x.log", "line 6\n");
    let pass = stage.pass();
    assert_eq!((stage.take(), pass.lost_files, pass.rotations), (numbered(6..=6), 0, 0));
    stage.restart("x.log");
    stage.pass();
    assert!(stage.take().is_empty());
}

#[test]
fn a_one_shot_look_reads_the_end_of_what_is_there() {
    let mut stage = Stage::new("x.log");
    stage.append("x.log", &text(1..=3));
    let mut seen = Vec::new();
    stage.follower.pass(1, Some(0), &mut |line, _| seen.push(String::from_utf8_lossy(line).into_owned()));
    assert_eq!(seen, numbered(1..=3));
    let mut old = Stage::new("x.log");
    old.append("x.log", &text(1..=3));
    old.follower.pass(1, Some(i64::MAX), &mut |_, _| panic!("too old"));
}

#[test]
fn last_words_without_a_newline_are_told_when_nothing_follows() {
    let mut stage = Stage::started("x.log");
    stage.append("x.log", "line 1\npanic: la");
    stage.pass();
    assert_eq!(stage.take(), ["line 1"]);
    // It grows: it is still being written.
    stage.now_ms += 50_000;
    stage.append("x.log", "st wor");
    stage.pass();
    stage.now_ms += 50_000;
    stage.pass();
    assert!(stage.take().is_empty());
    stage.later();
    assert_eq!(stage.take(), ["panic: last wor"]);
    stage.later();
    stage.restart("x.log");
    // What comes after all is mostly of the next start, and is a line.
    stage.append("x.log", "line 2\nline 3\n");
    stage.pass();
    assert_eq!(stage.take(), ["line 2", "line 3"]);
    // A restart of the agent reads nothing twice.
    stage.append("x.log", "end");
    stage.pass();
    stage.restart("x.log");
    stage.pass();
    assert!(stage.take().is_empty());
    stage.later();
    assert_eq!(stage.take(), ["end"]);
    // Whoever looks once does not wait.
    let mut once = Stage::new("x.log");
    once.append("x.log", "line 1\nend");
    let mut seen = Vec::new();
    let pass = once.follower.pass(1, Some(0), &mut |line, _| seen.push(String::from_utf8_lossy(line).into_owned()));
    assert_eq!((seen, pass.backlog_bytes), (vec!["line 1".to_owned(), "end".to_owned()], 0));
}

#[test]
fn renamed_and_made_anew_while_a_process_writes() {
    let mut stage = Stage::started("x.log");
    // Opens the path anew for each line, as fast as it can.
    let script = r#"i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo "line $i" >>"$1"; done"#;
    let mut command = Command::new("sh");
    let mut writer = command.arg("-c").arg(script).arg("sh").arg(stage.path("x.log")).spawn().unwrap();
    let mut rotations = 0;
    loop {
        let over = writer.try_wait().unwrap().is_some();
        // On a busy machine one pass may read so much that the writer has not made the next file yet: one that came and
        // was rotated away within a tick of the clock would have no order among the others.
        let is_seen = stage.path("x.log").exists();
        stage.pass();
        if stage.lines.len() > rotations * 400 + 200 && rotations < 3 && is_seen {
            if stage.path("x.log.1").exists() {
                stage.rename("x.log.1", "x.log.2");
            }
            stage.rename("x.log", "x.log.1");
            rotations += 1;
        }
        if over {
            break;
        }
    }
    stage.pass();
    assert_eq!(rotations, 3);
    let lines = stage.take();
    let missing: Vec<String> = numbered(1..=1500).into_iter().filter(|line| !lines.contains(line)).collect();
    assert_eq!((lines.len(), missing), (1500, Vec::new()));
    stage.later();
    assert!(stage.take().is_empty());
}

#[test]
fn a_writer_that_keeps_the_old_file_is_read_to_its_end() {
    let mut stage = Stage::started("x.log");
    let mut writer = Writer::start(&stage.path("x.log"));
    writer.tell("line 1");
    stage.pass();
    stage.rename("x.log", "x.log.1");
    writer.tell("line 2");
    stage.pass();
    stage.append("x.log", "line 4\n");
    writer.tell("line 3");
    stage.pass();
    writer.tell("reopen");
    writer.tell("line 5");
    stage.pass();
    let mut lines = stage.take();
    lines.sort();
    assert_eq!(lines, numbered(1..=5));
    // An end without a newline is a line when nobody writes any more.
    stage.rename("x.log", "x.log.2");
    stage.append("x.log.2", "its end");
    stage.append("x.log", "");
    stage.pass();
    assert!(stage.take().is_empty());
    stage.later();
    assert_eq!(stage.take(), ["its end"]);
}

#[test]
fn copied_and_truncated_with_lines_that_only_the_copy_has() {
    let mut stage = Stage::started("x.log");
    let mut writer = Writer::start(&stage.path("x.log"));
    numbered(1..=50).iter().for_each(|line| writer.tell(line));
    stage.pass();
    numbered(51..=100).iter().for_each(|line| writer.tell(line));
    stage.copy_and_truncate("x.log", "x.log.1");
    numbered(101..=120).iter().for_each(|line| writer.tell(line));
    let pass = stage.pass();
    assert_eq!((pass.rotations, pass.lost_files), (1, 0));
    let mut lines = stage.take();
    lines.sort_by_key(|line| line[5..].parse::<u32>().unwrap());
    assert_eq!(lines, numbered(1..=120));
    // Grown beyond the old place before anybody looked: how it begins tells.
    stage.copy_and_truncate("x.log", "x.log.1");
    numbered(121..=400).iter().for_each(|line| writer.tell(line));
    stage.pass();
    let mut lines = stage.take();
    lines.sort_by_key(|line| line[5..].parse::<u32>().unwrap());
    assert_eq!(lines, numbered(121..=400));
    stage.later();
    assert!(stage.take().is_empty());
}

#[test]
fn a_restart_reads_on_where_it_was_through_two_rotations() {
    let mut stage = Stage::started("x.log");
    stage.append("x.log", &text(1..=10));
    stage.pass();
    stage.append("x.log", &text(11..=20));
    let tick = || std::thread::sleep(std::time::Duration::from_millis(20));
    stage.rename("x.log", "x.log.1");
    // File systems stamp by the clock's tick: two files of one tick have no order.
    tick();
    stage.append("x.log", &text(21..=30));
    tick();
    stage.rename("x.log.1", "x.log.2");
    stage.rename("x.log", "x.log.1");
    stage.append("x.log", &text(31..=40));
    stage.append("x.log.conf", "not a log\n");
    stage.restart("x.log");
    let pass = stage.pass();
    assert_eq!(pass.lost_files, 0);
    let mut lines = stage.take();
    lines.sort_by_key(|line| line[5..].parse::<u32>().unwrap());
    assert_eq!(lines, numbered(1..=40));
    stage.restart("x.log");
    stage.pass();
    stage.later();
    assert!(stage.take().is_empty());
}

#[test]
fn a_restart_finds_the_copy_of_a_truncated_log() {
    let mut stage = Stage::started("x.log");
    stage.append("x.log", &text(1..=10));
    stage.pass();
    stage.append("x.log", &text(11..=20));
    stage.copy_and_truncate("x.log", "x.log-20260102");
    stage.append("x.log", &text(21..=22));
    stage.restart("x.log");
    stage.pass();
    let mut lines = stage.take();
    lines.sort_by_key(|line| line[5..].parse::<u32>().unwrap());
    assert_eq!(lines, numbered(1..=22));
}

#[test]
fn what_was_compressed_or_deleted_unread_is_counted() {
    let mut stage = Stage::started("x.log");
    stage.append("x.log", &text(1..=10));
    stage.pass();
    stage.append("x.log", &text(11..=20));
    // The reader holds no descriptor in another life: the file is gone for good.
    stage.rename("x.log", "x.log.1.gz");
    stage.append("x.log", &text(21..=22));
    stage.restart("x.log");
    let pass = stage.pass();
    assert_eq!((pass.rotations, pass.lost_files), (1, 1));
    let lines: Vec<String> = numbered(1..=10).into_iter().chain(numbered(21..=22)).collect();
    assert_eq!(stage.take(), lines);
    // A reader that was there has the descriptor, and loses nothing.
    stage.append("x.log", &text(23..=24));
    std::fs::remove_file(stage.path("x.log")).unwrap();
    let pass = stage.pass();
    assert!(pass.unreadable.is_some_and(|(why, _)| why.contains("does not exist")));
    stage.append("x.log", &text(25..=26));
    let pass = stage.pass();
    assert_eq!(pass.unreadable, None);
    assert_eq!(stage.take(), numbered(23..=26));
}

#[test]
fn a_symbolic_link_may_be_turned_to_another_file() {
    let mut stage = Stage::new("current");
    stage.append("day-1.log", "");
    std::os::unix::fs::symlink("day-1.log", stage.path("current")).unwrap();
    stage.pass();
    stage.append("day-1.log", &text(1..=3));
    stage.pass();
    stage.append("day-1.log", &text(4..=5));
    std::fs::remove_file(stage.path("current")).unwrap();
    stage.append("day-2.log", &text(6..=7));
    std::os::unix::fs::symlink("day-2.log", stage.path("current")).unwrap();
    stage.pass();
    assert_eq!(stage.take(), numbered(1..=7));
}

#[test]
fn several_files_have_their_turns_and_a_busy_one_is_bounded() {
    let mut stage = Stage::new("*.log");
    stage.append("a.log", "");
    stage.append("b.log", "");
    stage.pass();
    let big = "x".repeat(1023) + "\n";
    stage.append("a.log", &big.repeat(8 * 1024));
    stage.append("b.log", "small\n");
    stage.append("c.log", "later\n");
    stage.append("c.log.gz", "never\n");
    let pass = stage.pass();
    assert_eq!(pass.files, 3);
    assert!(pass.bytes >= 4 << 20 && pass.bytes < 5 << 20, "{}", pass.bytes);
    assert!(pass.backlog_bytes > 3 << 20, "{}", pass.backlog_bytes);
    let mut small = stage.take();
    small.retain(|line| line.len() < 100);
    small.sort();
    assert_eq!(small, ["later", "small"]);
    stage.pass();
    assert_eq!(stage.pass().backlog_bytes, 0);
    assert_eq!(stage.take().len(), 8 * 1024 - usize::try_from(pass.bytes / 1024).unwrap());
}

#[test]
fn a_hopeless_backlog_is_skipped_and_counted() {
    let mut stage = Stage::started("x.log");
    let file = std::fs::OpenOptions::new().write(true).open(stage.path("x.log")).unwrap();
    file.set_len(100 << 20).unwrap();
    stage.append("x.log", "\nthe end\n");
    let pass = stage.pass();
    assert!(pass.skipped_bytes > 99 << 20, "{}", pass.skipped_bytes);
    assert_eq!(stage.take(), ["the end"]);
}

#[test]
fn what_is_no_file_is_told_and_never_waited_for() {
    let mut stage = Stage::new("x.log");
    nix::unistd::mkfifo(&stage.path("x.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (why, _) = stage.pass().unreadable.unwrap();
    assert!(why.ends_with("is a named pipe, not a file"), "{why}");
    std::fs::remove_file(stage.path("x.log")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", stage.path("x.log")).unwrap();
    let (why, _) = stage.pass().unreadable.unwrap();
    assert!(why.ends_with("is a device, not a file"), "{why}");
    std::fs::remove_file(stage.path("x.log")).unwrap();
    let (why, _) = stage.pass().unreadable.unwrap();
    assert!(why.ends_with("does not exist"), "{why}");
    // It was not there when somebody looked: all of it is new when it comes.
    stage.append("x.log", "first\n");
    stage.pass();
    stage.append("x.log", "second\n");
    stage.pass();
    assert_eq!(stage.take(), ["first", "second"]);
}

#[test]
fn an_inode_that_is_used_again_is_another_file() {
    let mut stage = Stage::started("x.log");
    stage.append("x.log", "first life\n");
    stage.pass();
    // In place: same inode, other content, no smaller.
    std::fs::write(stage.path("x.log"), "second life, which is longer\n").unwrap();
    stage.pass();
    assert_eq!(stage.take(), ["first life", "second life, which is longer"]);
}
