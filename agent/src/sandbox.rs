//! Holds the law "read-only, by the kernel": a thread that opens strangers' files gives up every right to create,
//! write, truncate, rename or delete, except below the paths that are named.
//!
//! Never restrict the whole process: the spool and the sockets need their rights. A restricted thread cannot read
//! `/proc/PID/exe` of others, and no thread that it starts can: what needs that is handed to [`unrestricted`].

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

/// Newest Landlock version whose rights are asked for; older kernels enforce what they know.
const LANDLOCK_ABI: ABI = ABI::V5;

/// Why a thread could not be restricted although the kernel should be able to.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A system call failed.
    #[error("cannot restrict the thread with Landlock; check that a seccomp filter allows landlock_*")]
    Landlock(#[from] RulesetError),
}

/// What the kernel holds this thread to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// All rights that were asked for are taken.
    Full,
    /// An older kernel: creating, opening for writing and deleting are taken, some newer rights (truncation by path)
    /// are not known to it. SQLite cannot change a file with those alone.
    Partial,
    /// The kernel has no Landlock, or it is switched off.
    None,
}

/// The state of the calling thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxState {
    /// How far it goes.
    pub enforcement: Enforcement,
    /// Folders below which the thread may still write; canonical where they exist.
    pub writable: Vec<PathBuf>,
}

impl SandboxState {
    /// True when the kernel keeps this thread from changing `path` (canonical) and its siblings.
    pub fn protects(&self, path: &Path) -> bool {
        self.enforcement != Enforcement::None && !self.writable.iter().any(|folder| path.starts_with(folder))
    }
}

/// Restricts the calling thread, and the threads it starts later, and gives it idle I/O priority.
pub fn restrict_thread(writable: &[PathBuf]) -> Result<SandboxState, SandboxError> {
    // Idle priority is a courtesy: where a filter refuses it the checks still are right.
    let _refused = set_idle_io_priority();
    let writable: Vec<PathBuf> =
        writable.iter().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).collect();
    let rights = AccessFs::from_write(LANDLOCK_ABI);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(rights)?
        .create()?
        .add_rules(path_beneath_rules(&writable, rights))?
        .restrict_self()?;
    let enforcement = match status.ruleset {
        RulesetStatus::FullyEnforced => Enforcement::Full,
        RulesetStatus::PartiallyEnforced => Enforcement::Partial,
        RulesetStatus::NotEnforced => Enforcement::None,
    };
    Ok(SandboxState { enforcement, writable })
}

/// Starts a thread that is restricted before it runs `work`.
pub fn spawn_database_thread<T: Send + 'static>(
    name: &str,
    writable: Vec<PathBuf>,
    work: impl FnOnce(Result<SandboxState, SandboxError>) -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || work(restrict_thread(&writable)))
}

/// Work that one thread hands to another.
pub type Work = Box<dyn FnOnce() + Send>;
/// Hands work to a thread that is not restricted; what cannot be done is dropped.
pub type Free = Box<dyn Fn(Work)>;

/// A thread that is lent for good to what needs a restricted one.
struct Lent {
    free: Free,
    /// Since the first such work: below what it may write, and the outcome.
    restricted: Option<(Option<PathBuf>, SandboxState)>,
}

thread_local! {
    static LENT: RefCell<Option<Lent>> = const { RefCell::new(None) };
}

/// Has the calling thread be restricted itself, for good, by the first [`restricted`] work on it: to start a thread for
/// each piece of work costs more than most of that work. `free` reaches a thread that is not.
pub fn lend(free: Free) {
    LENT.with_borrow_mut(|lent| *lent = Some(Lent { free, restricted: None }));
}

/// Runs `work` where only what is below `scratch` can be written: on the calling thread where that is [lent](lend), else on
/// a thread of its own.
pub fn restricted<T: Send>(
    scratch: Option<PathBuf>,
    work: impl FnOnce(Result<SandboxState, SandboxError>, Option<PathBuf>) -> T + Send,
) -> Result<T, String> {
    if let Some(state) = on_this_thread(&scratch) {
        return Ok(work(Ok(state), scratch));
    }
    let writable: Vec<PathBuf> = scratch.iter().cloned().collect();
    let restricted = move || work(restrict_thread(&writable), scratch);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("sqlite-probe".to_owned()).spawn_scoped(scope, restricted);
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_panic)) => Err("the check panicked; please report this".to_owned()),
            Err(error) => Err(format!("no thread for the check: {error}")),
        }
    })
}

/// The state of the calling thread, if it is lent and restricted to just this. One that could not be restricted is tried
/// again for each work, on a thread of its own.
fn on_this_thread(scratch: &Option<PathBuf>) -> Option<SandboxState> {
    LENT.with_borrow_mut(|lent| {
        let lent = lent.as_mut()?;
        if lent.restricted.is_none() {
            let writable: Vec<PathBuf> = scratch.iter().cloned().collect();
            let state = restrict_thread(&writable).ok()?;
            lent.restricted = Some((scratch.clone(), state));
        }
        let (to, state) = lent.restricted.as_ref()?;
        (to == scratch).then(|| state.clone())
    })
}

/// Runs `work` where other processes may be looked into, and waits for it; `None` where there is no thread for it.
pub fn unrestricted<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (answer, answered) = channel();
    let work = move || drop(answer.send(work()));
    LENT.with_borrow(|lent| match lent {
        Some(Lent { free, restricted: Some(_) }) => free(Box::new(work)),
        _ => work(),
    });
    answered.recv().ok()
}

/// `ioprio_set` of the calling thread to the idle class; glibc has no wrapper for it.
#[expect(unsafe_code, reason = "no safe wrapper of ioprio_set exists in std, nix or rustix")]
fn set_idle_io_priority() -> std::io::Result<()> {
    const IOPRIO_WHO_PROCESS: nix::libc::c_int = 1;
    const IOPRIO_CLASS_IDLE: nix::libc::c_int = 3;
    const IOPRIO_CLASS_SHIFT: u32 = 13;
    const THIS_THREAD: nix::libc::c_int = 0;
    // SAFETY: three integers by value; the call changes nothing but the scheduling class of this thread.
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            THIS_THREAD,
            IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_thread_is_restricted_once_and_what_needs_more_runs_elsewhere() {
        let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (theirs, mine) = (folder.path().join("new"), scratch.path().join("new"));
        let (wanted, works) = channel::<Work>();
        let lent = std::thread::spawn(move || {
            lend(Box::new(move |work| wanted.send(work).unwrap()));
            let thread = std::thread::current().id();
            let before = unrestricted(move || std::thread::current().id() == thread);
            let mut outcomes = Vec::new();
            for _ in 0..2 {
                let answer = restricted(Some(scratch.path().to_owned()), |state, _| {
                    let here = std::thread::current().id() == thread;
                    let writes = (std::fs::write(&theirs, b"x").is_ok(), std::fs::write(&mine, b"x").is_ok());
                    (state.unwrap().enforcement, here, writes)
                });
                outcomes.push(answer.unwrap());
            }
            // Another folder is none that this thread may ever write to again.
            let other = restricted(None, |_, _| std::thread::current().id() == thread).unwrap();
            let free =
                unrestricted(move || std::fs::write(&theirs, b"x").map(|()| std::thread::current().id() == thread));
            (before, outcomes, other, free)
        });
        // Until the lent thread is gone.
        works.iter().for_each(|work| work());
        let (before, outcomes, other, free) = lent.join().unwrap();
        if outcomes.iter().any(|(enforcement, ..)| *enforcement == Enforcement::None) {
            println!("skipped: this kernel has no Landlock");
            return;
        }
        assert_eq!(before, Some(true), "nothing restricts it yet");
        assert!(outcomes.iter().all(|(_, here, writes)| *here && *writes == (false, true)), "{outcomes:?}");
        assert!(!other);
        assert!(matches!(free, Some(Ok(false))), "{free:?}");
    }

    #[test]
    fn a_restricted_thread_writes_only_where_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let (open, closed) = (folder.path().join("open"), folder.path().join("closed"));
        std::fs::create_dir(&open).unwrap();
        std::fs::create_dir(&closed).unwrap();
        std::fs::write(closed.join("kept"), b"kept").unwrap();
        let (mine, theirs) = (open.clone(), closed.clone());
        let state = spawn_database_thread("test", vec![open.clone()], move |state| {
            let state = state.unwrap();
            if state.enforcement == Enforcement::None {
                return state;
            }
            std::fs::write(mine.join("new"), b"x").unwrap();
            assert!(std::fs::write(theirs.join("new"), b"x").is_err());
            assert!(std::fs::remove_file(theirs.join("kept")).is_err());
            assert!(std::fs::OpenOptions::new().append(true).open(theirs.join("kept")).is_err());
            assert_eq!(std::fs::read(theirs.join("kept")).unwrap(), b"kept");
            state
        })
        .unwrap()
        .join()
        .unwrap();
        if state.enforcement == Enforcement::None {
            println!("skipped: this kernel has no Landlock");
            return;
        }
        assert!(state.protects(&closed.canonicalize().unwrap()));
        assert!(!state.protects(&open.canonicalize().unwrap().join("new")));
        std::fs::write(closed.join("new"), b"the other threads are free").unwrap();
    }
}
