//! Looks at the configuration files of a service and of the agent itself: those that are declared in a baseline, the
//! files of its unit, the agent's own config.
//!
//! A look is a `stat`; a file is read only when that tells of another version.

use super::HostRoot;
use super::executable::version;
use super::regular::{Found, open_regular};
use super::unit::Units;
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::watched_files::{FilesJudge, Look};
use muster_common::evidence::Evidence;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::units::human_bytes;
use rustix::fs::{OFlags, stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What the probe is about, beside the service.
const SUBJECT: &str = "watched configuration";
/// A larger file is no configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Files of one service, drop-ins of its unit included; the first in the order of their names.
const FILES_MAX: usize = 64;
/// Where drop-ins of units are put: by people, by programs until the next boot.
const DROP_INS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/system"];

/// Watches the configuration of one service, or of the host.
#[derive(Debug)]
pub struct WatchedFiles {
    subject: SubjectKey,
    root: HostRoot,
    about: String,
    files: Vec<PathBuf>,
    unit: Option<(String, Units)>,
    judge: FilesJudge,
}

impl WatchedFiles {
    /// Watches `files` (absolute, as the host knows them) and those of `unit`. `about` is whose they are, for people.
    pub fn new(
        service: ServiceName,
        about: &str,
        files: Vec<PathBuf>,
        unit: Option<(String, Units)>,
        root: HostRoot,
    ) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Baseline, SUBJECT);
        Self { subject, root, about: about.to_owned(), files, unit, judge: FilesJudge::default() }
    }

    fn paths(&self) -> BTreeSet<PathBuf> {
        let mut paths: BTreeSet<PathBuf> = self.files.iter().cloned().collect();
        // A drop-in that was removed is in no folder any more.
        paths.extend(self.judge.paths().map(PathBuf::from));
        if let Some((unit, units)) = &self.unit {
            let fragment = units.state(unit).map(|state| PathBuf::from(state.fragment_path));
            paths.extend(fragment.filter(|path| path.is_absolute()));
            for folder in DROP_INS {
                let folder = Path::new(folder).join(format!("{unit}.d"));
                let Ok(entries) = std::fs::read_dir(self.root.path(&folder)) else { continue };
                let names = entries.take(FILES_MAX).filter_map(Result::ok).map(|entry| folder.join(entry.file_name()));
                paths.extend(names.filter(|path| path.extension().is_some_and(|extension| extension == "conf")));
            }
        }
        paths.into_iter().take(FILES_MAX).collect()
    }

    fn look(&self, path: &Path) -> Look {
        let unknown = |errno: Errno| Look::Unknown(std::io::Error::from(errno).to_string());
        let name = path.to_string_lossy();
        let found = match stat(self.root.path(path)) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR) => return Look::Absent,
            Err(errno) => return unknown(errno),
        };
        if let Some(sha256) = self.judge.sha256_of(&name, &version(&found)) {
            return Look::Present { version: version(&found), sha256: sha256.to_owned() };
        }
        let (file, found) = match open_regular(&self.root.path(path), OFlags::empty()) {
            Ok(Found::File(file, found)) => (file, found),
            Ok(Found::Other(_)) => return Look::Unknown("it is no regular file".to_owned()),
            Err(Errno::NOENT | Errno::NOTDIR) => return Look::Absent,
            Err(errno) => return unknown(errno),
        };
        let mut content = Vec::new();
        match file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content) {
            Ok(read) if u64::try_from(read).unwrap_or(u64::MAX) > FILE_BYTES_MAX => {
                Look::Unknown(format!("it is larger than {}", human_bytes(FILE_BYTES_MAX)))
            }
            Ok(_) => {
                let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
                Look::Present { version: version(&found), sha256 }
            }
            Err(error) => Look::Unknown(error.to_string()),
        }
    }
}

impl Probe for WatchedFiles {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        // Whoever looks once has nothing to compare with.
        if context.one_shot {
            let files = u64::try_from(self.files.len()).unwrap_or(u64::MAX);
            return Judgement::ok(Evidence::new().count("files", files).text("edits", "the daemon tells them"));
        }
        let looks: BTreeMap<String, Look> =
            self.paths().iter().map(|path| (path.to_string_lossy().into_owned(), self.look(path))).collect();
        self.judge.judge(&self.about, looks, context.now)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of(&self.judge)
    }

    fn restore(&mut self, saved: Remembered) {
        if let Ok(judge) = saved.read() {
            self.judge = judge;
        }
    }
}
