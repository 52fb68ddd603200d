//! Which functions of a program are called: a breakpoint at the start of each, taken away when it is first hit, and put
//! there once again later, so that what is called all the time can be told from what only a start needs.
//!
//! For x86-64, where a breakpoint is one byte.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::ptrace::{self, Options as Traced};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `int3`.
const BREAKPOINT: u8 = 0xcc;

/// What to run, and where to tell.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Names of called functions go there, one a line, and an empty line when all begins again
    #[arg(long)]
    out: PathBuf,
    /// After so many seconds those that were called are looked at once again
    #[arg(long)]
    again_after: u32,
    /// What `nm --defined-only` says of the program, where there is no nm
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
    /// The program, with its symbols
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the program to its end.
pub(crate) fn run(options: &Options) -> Result<()> {
    let symbols = match &options.symbols {
        Some(path) => fs::read_to_string(path)?,
        None => symbols(&options.program)?,
    };
    let functions = functions(&symbols);
    if functions.is_empty() {
        bail!("{} has no symbols", options.program.display());
    }
    let mut out = File::create(&options.out)?;
    // It waits for us before it becomes the program.
    let mut command = Command::new("sh");
    command.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]).arg(&options.program).args(&options.arguments);
    let child = command.spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    ensure!(
        matches!(waitpid(pid, Some(WaitPidFlag::WUNTRACED))?, WaitStatus::Stopped(..)),
        "the program does not wait to be traced"
    );
    ptrace::seize(pid, Traced::PTRACE_O_TRACEEXEC | Traced::PTRACE_O_TRACECLONE | Traced::PTRACE_O_EXITKILL)?;
    nix::sys::signal::kill(pid, Signal::SIGCONT)?;
    // Its end wakes the wait below, as nothing else could.
    let timer = Command::new("sleep").arg(options.again_after.to_string()).spawn()?;
    let timer = Pid::from_raw(i32::try_from(timer.id())?);
    let mut armed: Option<Armed> = None;
    loop {
        let status = waitpid(None, Some(WaitPidFlag::__WALL))?;
        match status {
            WaitStatus::Exited(ended, _) if ended == timer => {
                armed.as_mut().context("the program has not begun")?.arm_again()?;
                writeln!(out)?;
            }
            WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..) if ended == pid => return Ok(()),
            WaitStatus::PtraceEvent(thread, _, event) => {
                if event == nix::libc::PTRACE_EVENT_EXEC {
                    armed = Some(Armed::new(thread, &options.program, &functions)?);
                }
                ptrace::cont(thread, None).ok();
            }
            WaitStatus::Stopped(thread, Signal::SIGTRAP) => {
                if let Some(name) = armed.as_mut().map(|armed| armed.hit(thread)).transpose()?.flatten() {
                    writeln!(out, "{name}")?;
                }
                ptrace::cont(thread, None).ok();
            }
            WaitStatus::Stopped(thread, signal) => drop(ptrace::cont(thread, signal)),
            _ => {}
        }
    }
}

/// What `nm` says.
pub(super) fn symbols(program: &Path) -> Result<String> {
    let output = Command::new("nm").args(["--defined-only"]).arg(program).output().context("nm (binutils)")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Functions by their address in the file. Of several names of one place the first is told.
fn functions(symbols: &str) -> BTreeMap<u64, String> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        matches!(kind, "t" | "T" | "w" | "W").then_some(())?;
        Some((u64::from_str_radix(address, 16).ok()?, name.to_owned()))
    };
    symbols.lines().filter_map(one).collect()
}

/// The program with its breakpoints.
struct Armed {
    memory: File,
    base: u64,
    points: BTreeMap<u64, Point>,
}

struct Point {
    /// What stood there.
    byte: u8,
    name: String,
    is_armed: bool,
}

impl Armed {
    fn new(pid: Pid, program: &Path, functions: &BTreeMap<u64, String>) -> Result<Self> {
        let program = program.canonicalize()?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let first = maps.lines().find(|line| line.ends_with(&*program.to_string_lossy()));
        let base = first.and_then(|line| line.split('-').next()).context("the program is not where it was started")?;
        let base = u64::from_str_radix(base, 16)?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let mut points = BTreeMap::new();
        for (address, name) in functions {
            let mut byte = [0];
            memory.read_exact_at(&mut byte, base + address)?;
            memory.write_all_at(&[BREAKPOINT], base + address)?;
            points.insert(*address, Point { byte: byte[0], name: name.clone(), is_armed: true });
        }
        Ok(Self { memory, base, points })
    }

    /// Puts all that were hit back.
    fn arm_again(&mut self) -> Result<()> {
        for (address, point) in self.points.iter_mut().filter(|(_, point)| !point.is_armed) {
            self.memory.write_all_at(&[BREAKPOINT], self.base + address)?;
            point.is_armed = true;
        }
        Ok(())
    }

    /// Takes the breakpoint away at which `thread` stands. No name where another thread was quicker.
    fn hit(&mut self, thread: Pid) -> Result<Option<&str>> {
        let mut registers = ptrace::getregs(thread)?;
        let at = registers.rip.wrapping_sub(1);
        let Some(point) = self.points.get_mut(&at.wrapping_sub(self.base)) else { return Ok(None) };
        let is_first = std::mem::take(&mut point.is_armed);
        if is_first {
            self.memory.write_all_at(&[point.byte], at)?;
        }
        registers.rip = at;
        ptrace::setregs(thread, registers)?;
        Ok(is_first.then_some(&point.name))
    }
}
