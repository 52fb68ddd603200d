//! The memory controller's files of one cgroup and of those above it, under either version of cgroups.
//!
//! Reads only. A path that leads out of the agent's own view (a cgroup namespace shows `/../…`) is not followed.

use super::HostRoot;
use super::small::read_piece_text;
use muster_agent_core::pressure::cgroup::{Counters, Limit, Version, counters, limit_bytes, reclaimable_bytes};
use muster_agent_core::pressure::psi::{Absent, Psi, parse};
use muster_agent_core::pressure::service::Level;
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// Where controllers are mounted: version 1, version 2, and version 2 beside 1.
const MOUNTS: [(&str, Version); 3] =
    [("/sys/fs/cgroup/memory", Version::V1), ("/sys/fs/cgroup", Version::V2), ("/sys/fs/cgroup/unified", Version::V2)];
/// Cgroups from the service's up to the root; systemd's trees are five deep, containers add as much.
const LEVELS_MAX: usize = 16;
/// `memory.stat` is the longest, a few KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Below this part of its limit nobody asks what of its usage could be given back.
const ASK_FROM_PERCENT: u64 = 75;

/// A cgroup and its ancestors, the root left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryCgroup {
    version: Version,
    folder: PathBuf,
    /// The path of each, as `/proc/PID/cgroup` has it, from the innermost outwards; and its folder.
    levels: Vec<(String, PathBuf)>,
    /// Of the innermost: stalls are told by version 2 alone, also where version 1 has the controller.
    pressure: PathBuf,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCgroup {
    /// The process is in the root: no limit but the host's.
    Root,
    /// The memory controller is off there, or in the whole kernel: no limit but the host's.
    NoController,
    /// The hierarchy is there, the cgroup is not: it was removed, or it is not seen from here.
    Gone,
    /// It cannot be seen: why.
    Hidden(String),
}

impl MemoryCgroup {
    /// The cgroup of this path.
    pub fn find(root: &HostRoot, cgroup: &str) -> Result<Self, NoCgroup> {
        // The kernel adds this to the path of a cgroup that was removed under its processes.
        let path = cgroup.strip_suffix(" (deleted)").unwrap_or(cgroup);
        if path.split('/').any(|part| part == "..") {
            return Err(NoCgroup::Hidden(format!("cgroup {path} is outside of the agent's cgroup namespace")));
        }
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Err(NoCgroup::Root);
        }
        let unified = |path: &str| {
            MOUNTS
                .iter()
                .rev()
                .map(|(mount, _)| root.path(mount).join(path.trim_start_matches('/')))
                .find(|folder| folder.join("memory.pressure").exists())
        };
        for (mount, version) in MOUNTS {
            let mount = root.path(mount);
            let levels: Vec<(String, PathBuf)> = Path::new(path)
                .ancestors()
                .take(LEVELS_MAX)
                .filter_map(|level| Some((level.to_str()?, level.strip_prefix("/").ok()?)))
                .filter(|(_, below)| !below.as_os_str().is_empty())
                .map(|(level, below)| (level.to_owned(), mount.join(below)))
                .filter(|(_, folder)| folder.join(usage_file(version)).exists())
                .collect();
            if let Some((_, innermost)) = levels.first() {
                let pressure = unified(path).unwrap_or_else(|| innermost.clone()).join("memory.pressure");
                let folder = mount.join(path.trim_start_matches('/'));
                return Ok(Self { version, folder, levels, pressure });
            }
        }
        Err(why_none(root, path))
    }

    /// Whether the innermost one is still there.
    pub fn is_there(&self) -> bool {
        self.folder.exists()
    }

    /// Those with a limit below `host_bytes`, with it: all that has to be read again and again.
    pub fn limited(&self, host_bytes: u64) -> Vec<Limited> {
        let names: &[&'static str] = match self.version {
            Version::V1 => &["memory.limit_in_bytes"],
            Version::V2 => &["memory.max", "memory.high"],
        };
        let limits_of = |folder: &Path| -> Vec<Limit> {
            let limit = |name: &'static str| Some(Limit { name, bytes: limit_bytes(&read(&folder.join(name)).ok()?)? });
            names.iter().filter_map(|name| limit(name)).filter(|limit| limit.bytes < host_bytes).collect()
        };
        let levels = self.levels.iter().map(|(path, folder)| Limited {
            version: self.version,
            path: path.clone(),
            limits: limits_of(folder),
            folder: folder.clone(),
        });
        levels.filter(|level| !level.limits.is_empty()).collect()
    }

    /// What happened in the innermost one.
    pub fn counters(&self) -> Counters {
        // Where it is not counted by itself, the next one above counts others with it.
        let own = self.levels.first().filter(|(_, folder)| *folder == self.folder);
        own.map(|(_, folder)| read_counters(self.version, folder)).unwrap_or_default()
    }

    /// Stalls in the innermost one, where the kernel tells.
    pub fn psi(&self) -> Option<Psi> {
        read_psi(&self.pressure).ok()
    }
}

/// Why no memory controller is to be seen for this cgroup.
fn why_none(root: &HostRoot, path: &str) -> NoCgroup {
    // A process tells its cgroup of version 1 where that has the controller, and then its folders are not these.
    let of_version_1 = read(&root.path("/proc/cgroups")).is_ok_and(|text| memory_hierarchy(&text) > 0);
    let mut mounts = MOUNTS.iter().filter(|(_, version)| (*version == Version::V1) == of_version_1);
    let mount = mounts.find_map(|(mount, _)| {
        let mount = root.path(mount);
        mount.join("cgroup.procs").exists().then_some(mount)
    });
    let Some(mount) = mount else {
        return NoCgroup::Hidden(format!("no hierarchy of cgroups is to be seen that could have {path}"));
    };
    if !mount.join(path.trim_start_matches('/')).exists() {
        return NoCgroup::Gone;
    }
    NoCgroup::NoController
}

/// The number of the hierarchy of version 1 that has the memory controller; 0 where that is of version 2 or off.
fn memory_hierarchy(text: &str) -> u32 {
    let line = text.lines().find_map(|line| line.strip_prefix("memory")?.split_whitespace().next()?.parse().ok());
    line.unwrap_or(0)
}

/// A cgroup with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    version: Version,
    path: String,
    folder: PathBuf,
    limits: Vec<Limit>,
}

impl Limited {
    /// What it uses now; `None` when it is gone.
    pub fn read(&self) -> Option<Level> {
        let usage_bytes = read(&self.folder.join(usage_file(self.version))).ok()?.trim().parse().ok()?;
        let tightest = self.limits.iter().map(|limit| limit.bytes).min()?;
        let near = usage_bytes >= tightest / 100 * ASK_FROM_PERCENT;
        let stat = near.then(|| read(&self.folder.join("memory.stat")).ok()).flatten();
        Some(Level {
            path: self.path.clone(),
            limits: self.limits.clone(),
            usage_bytes,
            reclaimable_bytes: stat.and_then(|stat| reclaimable_bytes(&stat, self.version)),
            counters: read_counters(self.version, &self.folder),
        })
    }
}

/// The host's stalls.
pub fn host_psi(root: &HostRoot) -> Result<Psi, Absent> {
    read_psi(&root.path("/proc/pressure/memory"))
}

fn read_psi(path: &Path) -> Result<Psi, Absent> {
    let text = read(path).map_err(|error| {
        let off = [Errno::OPNOTSUPP, Errno::NOENT, Errno::NOTDIR]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        if off { Absent::NoPsi } else { Absent::Error(error.to_string()) }
    })?;
    parse(&text).ok_or_else(|| Absent::Error("it has no line of stalls".to_owned()))
}

const fn usage_file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    }
}

fn read_counters(version: Version, folder: &Path) -> Counters {
    let events = match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    let failcnt = match version {
        Version::V1 => read(&folder.join("memory.failcnt")).ok(),
        Version::V2 => None,
    };
    read(&folder.join(events)).map(|events| counters(&events, failcnt.as_deref())).unwrap_or_default()
}

fn read(path: &Path) -> std::io::Result<String> {
    read_piece_text(path, FILE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, HostRoot) {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let root = HostRoot(folder.path().to_owned());
        (folder, root)
    }

    #[test]
    fn version_2_with_a_limited_slice_above() {
        let (_folder, root) = host(&[
            ("sys/fs/cgroup/a.slice/s.service/memory.current", "5000\n"),
            ("sys/fs/cgroup/a.slice/s.service/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/s.service/memory.high", "max\n"),
            ("sys/fs/cgroup/a.slice/s.service/memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 4\n"),
            ("sys/fs/cgroup/a.slice/s.service/memory.pressure", "some avg10=1.00 avg60=2.00 avg300=0.00 total=5\n"),
            ("sys/fs/cgroup/a.slice/memory.current", "9000\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "10000\n"),
            ("sys/fs/cgroup/a.slice/memory.high", "max\n"),
            ("sys/fs/cgroup/a.slice/memory.events", "high 3\nmax 2\noom 1\noom_kill 4\n"),
            ("sys/fs/cgroup/a.slice/memory.stat", "inactive_file 1000\nactive_file 500\nslab_reclaimable 100\n"),
        ]);
        let cgroup = MemoryCgroup::find(&root, "/a.slice/s.service").unwrap();
        assert_eq!((cgroup.counters().oom_kill, cgroup.psi().map(|psi| psi.some.avg60)), (Some(4), Some(200)));
        let [limited] = &*cgroup.limited(1 << 40) else { panic!() };
        let level = limited.read().unwrap();
        assert_eq!((level.path.as_str(), level.usage_bytes, level.reclaimable_bytes), ("/a.slice", 9000, Some(1600)));
        assert_eq!(level.limits, [Limit { name: "memory.max", bytes: 10_000 }]);
        assert_eq!((level.counters.high, level.counters.oom), (Some(3), Some(1)));
        // A limit that is no tighter than the host is none.
        assert!(cgroup.limited(10_000).is_empty());
    }

    #[test]
    fn no_limit_is_known_from_not_to_be_seen() {
        let none = |files: &[(&str, &str)], cgroup: &str| {
            let (_folder, root) = host(files);
            MemoryCgroup::find(&root, cgroup).unwrap_err()
        };
        let (root_of_2, service) = (("sys/fs/cgroup/cgroup.procs", ""), "/a.slice/s.service");
        let counted = ("sys/fs/cgroup/a.slice/s.service/cgroup.procs", "9\n");
        let line_of_1 = ("proc/cgroups", "#subsys_name\thierarchy\ncpu\t3\t1\t1\nmemory\t4\t319\t1\n");
        let line_of_2 = ("proc/cgroups", "memory\t0\t319\t1\n");
        // The controller is not switched on for it, or the kernel has none: then nobody can limit it.
        assert_eq!(none(&[root_of_2, counted, line_of_2], service), NoCgroup::NoController);
        assert_eq!(none(&[root_of_2, counted], service), NoCgroup::NoController);
        assert_eq!(none(&[root_of_2, line_of_2], service), NoCgroup::Gone);
        // Version 1 has it, and that is not to be seen; or nothing is.
        assert!(matches!(none(&[root_of_2, counted, line_of_1], service), NoCgroup::Hidden(_)));
        assert!(matches!(none(&[line_of_2], service), NoCgroup::Hidden(_)));
        let root_of_1 = ("sys/fs/cgroup/memory/cgroup.procs", "");
        assert_eq!(none(&[root_of_1, line_of_1], service), NoCgroup::Gone);
    }

    #[test]
    fn version_1_and_what_is_not_followed() {
        let (_folder, root) = host(&[
            ("sys/fs/cgroup/memory/g/memory.usage_in_bytes", "900\n"),
            ("sys/fs/cgroup/memory/g/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/g/memory.failcnt", "17\n"),
            ("sys/fs/cgroup/memory/g/memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"),
            ("sys/fs/cgroup/memory/g/memory.stat", "total_inactive_file 100\ntotal_active_file 50\n"),
        ]);
        let cgroup = MemoryCgroup::find(&root, "/g/gone").unwrap();
        let level = cgroup.limited(1 << 40)[0].read().unwrap();
        assert_eq!((level.usage_bytes, level.reclaimable_bytes), (900, Some(150)));
        assert_eq!((level.counters.max, level.counters.oom_kill, level.counters.stopped), (Some(17), Some(2), true));
        assert_eq!(MemoryCgroup::find(&root, "/"), Err(NoCgroup::Root));
        assert!(matches!(MemoryCgroup::find(&root, "/../g"), Err(NoCgroup::Hidden(_))));
        assert!(matches!(MemoryCgroup::find(&root, "/nowhere"), Err(NoCgroup::Hidden(_))));
        let parent = MemoryCgroup::find(&root, "/g/gone").unwrap();
        assert!(!parent.is_there() && MemoryCgroup::find(&root, "/g").unwrap().is_there());
        assert_eq!(parent.counters(), Counters::default(), "another's kills are not its own");
        assert_eq!(host_psi(&root), Err(Absent::NoPsi));
    }
}
