//! `muster-agent doctor --deep`: everything is read that can be proven whole or damaged, one file after the other.
//!
//! Invariant: whatever ends it, also Ctrl-C, no copy of a database is left behind. One that is killed (signal 9) leaves
//! its folder to the next `--deep`.

use super::progress::Progress;
use super::report::Ran;
use super::run_all;
use crate::probe::Context;
use crate::run::plan::Planned;
use crate::senses::HostRoot;
use crate::senses::sqlite::{DeepFolder, OneShot};
use muster_common::finding::ProbeKind;
use nix::sys::signal::{SigSet, Signal};
use std::path::PathBuf;
use std::time::Duration;

/// One database or set of copies: a disk reads a terabyte in an hour and a half, and nobody waits longer at a terminal.
const CHECK_MAX: Duration = Duration::from_secs(3600);
/// Beyond the check's own bound, for what cannot be interrupted.
const GRACE: Duration = Duration::from_secs(60);
/// Where copies are made unless TMPDIR says otherwise: /tmp may be memory, which a large copy would take from the host.
const FOLDER_DEFAULT: &str = "/var/tmp";
/// Tries to delete the folder while a check still writes to it.
const DELETES_MAX: u32 = 100;
/// Wait between them.
const DELETE_AGAIN: Duration = Duration::from_millis(10);

/// The means of one `--deep`.
#[derive(Debug)]
pub(super) struct Deep {
    folder: DeepFolder,
}

impl Deep {
    /// Call it before there is any other thread: all inherit which signals wait for the one that deletes.
    pub(super) fn begin() -> std::io::Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let parent = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from(FOLDER_DEFAULT), PathBuf::from);
        let folder = DeepFolder::new(&parent).map_err(|why| {
            let shown = parent.display();
            std::io::Error::other(format!("no folder for copies below {shown} (TMPDIR names another one): {why}"))
        })?;
        let path = folder.path().to_owned();
        let wait = move || {
            let Ok(signal) = signals.wait() else { return };
            for _ in 0..DELETES_MAX {
                if std::fs::remove_dir_all(&path).is_ok() || !path.exists() {
                    break;
                }
                std::thread::sleep(DELETE_AGAIN);
            }
            std::process::exit(128 + signal as i32);
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
        Ok(Self { folder })
    }

    /// How much probes are to read.
    pub(super) fn one_shot(&self) -> OneShot {
        OneShot::Deep(self.folder.path().to_owned(), CHECK_MAX)
    }
}

/// Whether a probe reads all of something under `--deep`.
pub(super) const fn is_deep(kind: ProbeKind) -> bool {
    matches!(kind, ProbeKind::Sqlite | ProbeKind::Backup)
}

/// One after the other: they share a disk.
pub(super) fn run_each(planned: Vec<Planned>, context: &Context, host: &HostRoot) -> Vec<Ran> {
    let bytes = |planned: &Planned| {
        // A pattern of copies, or a file that is not there, has no size.
        std::fs::metadata(host.path(&planned.probe.subject().subject)).map_or(0, |metadata| metadata.len())
    };
    let all_bytes = planned.iter().map(|planned| bytes(planned).max(1)).fold(0, u64::saturating_add);
    let mut progress = Progress::new(planned.len(), all_bytes);
    let mut ran = Vec::new();
    for planned in planned {
        progress.begin(&planned.probe.subject().subject, bytes(&planned));
        ran.extend(run_all(vec![planned], context, Some(CHECK_MAX + GRACE), &mut || progress.tick()));
        progress.end();
    }
    progress.clear();
    ran
}
