//! Children that hold and wait for locks as real processes. A child is this test binary itself, told by the environment
//! which steps to take: locks of one's own process cannot be tested.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const STEPS: &str = "MUSTER_TEST_LOCK_STEPS";
const FOLDER: &str = "MUSTER_TEST_LOCK_FOLDER";
const MARK: &str = "child says: ";
/// Nothing here takes this long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The body of the test `child`: does nothing unless a parent told it what to be.
pub(crate) fn child_main() {
    let (Ok(steps), Some(folder)) = (std::env::var(STEPS), std::env::var_os(FOLDER)) else { return };
    let folder = PathBuf::from(folder);
    let mut kept = Kept::default();
    for step in steps.split("; ") {
        let (verb, argument) = step.split_once(' ').unwrap_or((step, ""));
        kept.take(verb, argument, &folder);
    }
    wait_for_the_end();
    // Not back into the harness: its last word would go into a pipe that the parent may have closed, and it complains.
    std::process::exit(0);
}

/// What a child holds until it ends.
#[derive(Default)]
struct Kept {
    files: Vec<File>,
    connection: Option<Connection>,
}

impl Kept {
    fn take(&mut self, verb: &str, argument: &str, folder: &Path) {
        let open =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(argument));
        match verb {
            "say" => say(&std::process::id().to_string()),
            "flock" => {
                let file = open().unwrap();
                flock(&file, FlockOperation::LockExclusive).unwrap();
                self.files.push(file);
            }
            "posix" | "ofd" => {
                let file = open().unwrap();
                let lock = whole_file(libc::F_WRLCK);
                let how = if verb == "posix" { FcntlArg::F_SETLKW(&lock) } else { FcntlArg::F_OFD_SETLKW(&lock) };
                fcntl(&file, how).unwrap();
                self.files.push(file);
            }
            "lease" => {
                let file = open().unwrap();
                set_lease(&file);
                self.files.push(file);
            }
            "thread" => drop(std::thread::spawn(|| std::thread::sleep(PATIENCE * 10))),
            // Takes and gives back, with a pause in which another may take it.
            "busy" => loop {
                let file = open().unwrap();
                flock(&file, FlockOperation::LockExclusive).unwrap();
                std::thread::sleep(Duration::from_millis(2));
                drop(file);
                std::thread::sleep(Duration::from_millis(1));
            },
            // A child of this child inherits the locked file; this one ends.
            "hand-on" => {
                let file = self.files.last().unwrap();
                rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
                let grandchild = command(folder, "say").spawn().unwrap();
                drop(grandchild);
                std::process::exit(0);
            }
            "say-in-recovery" => say_in_recovery(),
            "sqlite" => self.connection = Some(Connection::open(folder.join(argument)).unwrap()),
            "sql" => {
                let connection = self.connection.as_ref().unwrap();
                connection.busy_timeout(PATIENCE * 10).unwrap();
                connection.execute_batch(argument).unwrap();
            }
            // The statement stays open, and with it the read transaction.
            "read" => {
                let connection = self.connection.as_ref().unwrap();
                connection.execute_batch("BEGIN").unwrap();
                let _count: i64 = connection.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).unwrap();
            }
            "repeat" => loop {
                self.connection.as_ref().unwrap().execute_batch(argument).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            },
            other => panic!("unknown step {other}"),
        }
    }
}

fn whole_file(kind: i32) -> libc::flock {
    let kind = libc::c_short::try_from(kind).unwrap();
    libc::flock { l_type: kind, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 }
}

#[expect(unsafe_code, reason = "no safe wrapper of F_SETLEASE exists in std, nix or rustix")]
fn set_lease(file: &File) {
    // SAFETY: the descriptor is open, and the argument is an integer.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// Has SQLite say the pid in the midst of a recovery, and wait there for the end. It logs what it has recovered before it
/// gives its locks back.
#[expect(unsafe_code, reason = "rusqlite has no safe way to be called by SQLite's log")]
fn say_in_recovery() {
    use rusqlite::ffi::{SQLITE_CONFIG_LOG, SQLITE_NOTICE_RECOVER_WAL, SQLITE_OK, sqlite3_config};
    extern "C" fn log(_: *mut libc::c_void, code: libc::c_int, _: *const libc::c_char) {
        if code == SQLITE_NOTICE_RECOVER_WAL {
            say(&std::process::id().to_string());
            wait_for_the_end();
        }
    }
    let log: extern "C" fn(*mut libc::c_void, libc::c_int, *const libc::c_char) = log;
    // SAFETY: the option takes a function of this type and a pointer for it, which may be null; nothing is open yet.
    let outcome = unsafe { sqlite3_config(SQLITE_CONFIG_LOG, log, std::ptr::null_mut::<libc::c_void>()) };
    assert_eq!(outcome, SQLITE_OK);
}

fn command(folder: &Path, steps: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(STEPS, steps).env(FOLDER, folder);
    command
}

fn say(word: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{MARK}{word}").unwrap();
    out.flush().unwrap();
}

fn wait_for_the_end() {
    // End of file, whatever came before it.
    let _closed = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A running child. It ends with the test: its end of file, then a kill.
pub(crate) struct Role {
    child: Child,
    _stdin: ChildStdin,
    /// Open to its end: the harness in the child has a last word, too.
    _stdout: BufReader<ChildStdout>,
    said: u32,
}

impl Role {
    /// Starts a child with the test harness's threads and all, and waits until it says its pid.
    pub(crate) fn start(folder: &Path, steps: &str) -> Self {
        let mut child = command(folder, steps).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 0 {
            if let Some((_, word)) = line.split_once(MARK) {
                let said = word.trim().parse().unwrap();
                return Self { child, _stdin: stdin, _stdout: lines, said };
            }
            line.clear();
        }
        child.wait().unwrap();
        panic!("the child ended without a word: {steps}");
    }

    /// The pid that was said: of the child, or of the one it handed on to.
    pub(crate) fn pid(&self) -> u32 {
        self.said
    }

    /// Stops it, and waits until it is.
    pub(crate) fn stop(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let stat = format!("/proc/{pid}/stat");
        until("it is stopped", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    }

    /// Waits for its end, without asking for it.
    pub(crate) fn ended(&mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Polls a condition, with a bound.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the kernel shows `count` waiters for locks on the file.
pub(crate) fn until_waiting(path: &Path, count: usize) {
    let inode = std::fs::metadata(path).map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata)).unwrap();
    until("somebody waits", || {
        let text = std::fs::read_to_string("/proc/locks").unwrap();
        text.lines().filter(|line| line.contains("->") && line.contains(&format!(":{inode} "))).count() == count
    });
}
