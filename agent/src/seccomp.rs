//! The agent's own seccomp filter: no program is started, no other process is signalled, traced or written to, also
//! where no unit file says so. A unit cannot deny `execve` to itself; this can.
//!
//! Best effort: where the kernel has no seccomp the agent goes on and `doctor --verbose` says so.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// This build is for a processor the filter compiler does not know.
    #[error("no seccomp filter for the architecture {0}")]
    Architecture(&'static str),
    /// The filter could not be built or loaded.
    #[error("cannot load the seccomp filter")]
    Load(#[from] seccompiler::Error),
    /// The filter could not be built.
    #[error("cannot build the seccomp filter")]
    Build(#[from] seccompiler::BackendError),
}

/// Denies, with EPERM, for this thread and all it starts: call it first in `main`, before there are others.
pub fn restrict() -> Result<(), SeccompError> {
    let program = program()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

fn program() -> Result<BpfProgram, SeccompError> {
    let arch = std::env::consts::ARCH;
    let arch = arch.try_into().map_err(|_| SeccompError::Architecture(arch))?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in ALWAYS {
        rules.insert(*call, Vec::new());
    }
    // A signal to ourselves is how an abort works.
    let own_pid = u64::from(std::process::id());
    for call in UNLESS_TO_SELF {
        let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, own_pid)?;
        rules.insert(*call, vec![SeccompRule::new(vec![other])?]);
    }
    let denied = SeccompAction::Errno(EPERM);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()?)
}

const EPERM: u32 = 1;

const ALWAYS: &[i64] = &[
    nix::libc::SYS_execve,
    nix::libc::SYS_execveat,
    nix::libc::SYS_pidfd_send_signal,
    nix::libc::SYS_ptrace,
    nix::libc::SYS_process_vm_readv,
    nix::libc::SYS_process_vm_writev,
];

/// Calls whose first argument is the process (group) that gets the signal.
const UNLESS_TO_SELF: &[i64] =
    &[nix::libc::SYS_kill, nix::libc::SYS_tgkill, nix::libc::SYS_rt_sigqueueinfo, nix::libc::SYS_rt_tgsigqueueinfo];

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::sys::signal::kill;
    use nix::unistd::{Pid, getpid, getppid};

    #[test]
    fn denies_signals_to_others_and_programs() {
        // On a thread of its own: a filter cannot be taken back.
        let outcome = std::thread::spawn(|| {
            restrict().unwrap();
            let spawned = std::process::Command::new("/bin/true").spawn().map(|_| ()).map_err(|e| e.raw_os_error());
            (kill(getppid(), None), kill(Pid::from_raw(-1), None), kill(getpid(), None), spawned)
        })
        .join()
        .unwrap();
        assert_eq!(outcome.0, Err(Errno::EPERM));
        assert_eq!(outcome.1, Err(Errno::EPERM));
        assert_eq!(outcome.2, Ok(()));
        assert_eq!(outcome.3, Err(Some(1)));
    }
}
