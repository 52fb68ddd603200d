//! Asks the file systems that services' files live on for room, and the kernel's mount table whether they can be
//! written to.
//!
//! Must never touch a file on a file system of another machine to find out where it is, and asks each file system once.

use super::HostRoot;
use super::small::{read_small_file, text};
use crate::clock::boot_id;
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::disk::{DiskJudge, Reading, Space, Thresholds, Use};
use muster_agent_core::judgement::{Judgement, Unknown};
use muster_agent_core::mounts::{self, Mount};
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::{BootId, ServiceName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Mount tables and fstab are read up to this size: 8192 lines of a container host.
const TABLE_BYTES_MAX: u64 = 2 << 20;
/// One reading of the tables serves all file systems of a round.
const FRESH_MS: u64 = 1_000;
/// And of those that follow, while the kernel tells of no change of a mount. It does not tell of a file system that it
/// makes read-only after an error, which a sandboxed agent does not see otherwise, nor of fstab.
const UNCHANGED_MS: u64 = 15_000;
/// Symbolic links followed for one path, as the kernel does.
const LINKS_MAX: usize = 40;

/// A file or folder that somebody keeps something in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where, as the host knows it.
    pub path: PathBuf,
    /// Who and what.
    pub by: Use,
}

/// A file system to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its mount point.
    pub mount_point: String,
    /// Who keeps what there.
    pub uses: Vec<Use>,
}

/// The mount tables, shared by all disk probes; and what was planned by them, so that a change of it is noticed.
#[derive(Debug)]
pub struct MountTable {
    root: HostRoot,
    taken: Mutex<Option<Taken>>,
    settled: Mutex<Settled>,
    moved: Arc<AtomicBool>,
}

/// What was planned by where files were.
#[derive(Debug, Default)]
struct Settled {
    kept: Vec<Kept>,
    places: Vec<Place>,
    /// The answers of [`MountTable::hanging_place`].
    hanging: BTreeMap<PathBuf, Option<u64>>,
}

/// The tables as they were read at a time.
#[derive(Debug)]
struct Taken {
    at_ms: u64,
    tables: Arc<Tables>,
    /// Open since then: the kernel marks them when a mount is made, moved, removed or given other options. Empty where
    /// it is not the kernel that wrote them.
    files: Vec<File>,
}

impl Taken {
    fn stands(&self, now_boottime_ms: u64) -> bool {
        let age_ms = now_boottime_ms.abs_diff(self.at_ms);
        age_ms < FRESH_MS || (age_ms < UNCHANGED_MS && !self.files.is_empty() && !self.is_marked())
    }

    fn is_marked(&self) -> bool {
        let mut fds: Vec<PollFd<'_>> = self.files.iter().map(|file| PollFd::new(file, PollFlags::PRI)).collect();
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0)
    }
}

#[derive(Debug)]
struct Tables {
    own: Result<Vec<Mount>, String>,
    /// As PID 1 sees it: without the sandbox of the agent's own unit.
    host: Vec<Mount>,
    fstab: String,
}

impl MountTable {
    /// Of the host under `root`.
    pub fn new(root: HostRoot) -> Arc<Self> {
        let (taken, settled, moved) = (Mutex::default(), Mutex::default(), Arc::default());
        Arc::new(Self { root, taken, settled, moved })
    }

    /// Set when a file of what was planned is on another file system than it was then.
    pub fn moved(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.moved)
    }

    /// Forgets what was planned, places that are not mounted any more with it.
    pub fn start_anew(&self) {
        *self.settled() = Settled::default();
    }

    /// Forgets which files were looked at, before they are planned for again.
    pub fn start_plan(&self) {
        self.settled().hanging.clear();
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables(&self, now_boottime_ms: u64) -> Arc<Tables> {
        let (tables, changed) = self.taken(now_boottime_ms);
        if let Some(mounts) = tables.own.as_ref().ok().filter(|_| changed) {
            self.note_moves(mounts);
        }
        tables
    }

    /// The tables, and whether the own one is another than before.
    fn taken(&self, now_boottime_ms: u64) -> (Arc<Tables>, bool) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = taken.as_ref().filter(|taken| taken.stands(now_boottime_ms)) {
            return (Arc::clone(&taken.tables), false);
        }
        let mut files = Vec::new();
        let mut table = |path: &str| -> std::io::Result<Vec<Mount>> {
            // Opened first: what changes while it is read is a change since.
            let file = File::open(self.root.path(path))?;
            let text = read_text(&file)?;
            files.extend(self.root.is_real().then_some(file));
            Ok(mounts::parse(&text))
        };
        let own = table("/proc/self/mountinfo").map_err(|error| error.to_string());
        let host = table("/proc/1/mountinfo").unwrap_or_default();
        let fstab = File::open(self.root.path("/etc/fstab")).and_then(|file| read_text(&file)).unwrap_or_default();
        let tables = Arc::new(Tables { own, host, fstab });
        let new = Taken { at_ms: now_boottime_ms, tables: Arc::clone(&tables), files };
        let before = taken.replace(new);
        let changed = before.is_none_or(|before| before.tables.own != tables.own);
        (tables, changed)
    }

    /// Mounts were made, moved or removed: whether that is about a file of what was planned.
    fn note_moves(&self, mounts: &[Mount]) {
        let settled = self.settled();
        let hangs = |path: &Path| self.hanging_in(mounts, path);
        let moved = self.places_in(mounts, &settled.kept, &settled.places) != settled.places
            || settled.hanging.iter().any(|(path, place)| hangs(path) != *place);
        if moved {
            self.moved.store(true, Ordering::Relaxed);
        }
    }

    /// Has the tables be read anew.
    fn forget(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The file systems on which `kept` is, each once, in order of their mount points; and those of the last answer that
    /// are not mounted any more, until [`MountTable::start_anew`].
    pub fn places(&self, kept: &[Kept], now_boottime_ms: u64) -> Vec<Place> {
        let tables = self.tables(now_boottime_ms);
        let mut settled = self.settled();
        if let Ok(mounts) = &tables.own {
            settled.places = self.places_in(mounts, kept, &settled.places);
        }
        settled.kept = kept.to_vec();
        settled.places.clone()
    }

    fn places_in(&self, mounts: &[Mount], kept: &[Kept], known: &[Place]) -> Vec<Place> {
        let mut places: BTreeMap<String, Vec<Use>> = BTreeMap::new();
        for one in kept {
            let path = self.resolved(mounts, &one.path);
            let Some(on) = mounts::of_path(mounts, &path.to_string_lossy()) else { continue };
            let main = mounts::main_mount(mounts, on.device).unwrap_or(on);
            let uses = places.entry(main.mount_point.clone()).or_default();
            if !uses.contains(&one.by) {
                uses.push(one.by.clone());
            }
        }
        // Told as not mounted any more.
        for gone in known.iter().filter(|known| !mounts.iter().any(|mount| mount.mount_point == known.mount_point)) {
            places.insert(gone.mount_point.clone(), gone.uses.clone());
        }
        places.into_iter().map(|(mount_point, uses)| Place { mount_point, uses }).collect()
    }

    /// A number for the file system of `path`, where a look at it may wait for another machine or program.
    pub fn hanging_place(&self, path: &Path, now_boottime_ms: u64) -> Option<u64> {
        let tables = self.tables(now_boottime_ms);
        let place = self.hanging_in(tables.own.as_ref().ok()?, path);
        self.settled().hanging.insert(path.to_owned(), place);
        place
    }

    fn hanging_in(&self, mounts: &[Mount], path: &Path) -> Option<u64> {
        let path = self.resolved(mounts, path);
        let mount = mounts::of_path(mounts, &path.to_string_lossy()).filter(|mount| mount.may_hang())?;
        Some(mount.device.number())
    }

    /// Whether the agent's own mount namespace has something else at `path` than the host's has.
    pub fn is_hidden(&self, path: &Path, now_boottime_ms: u64) -> bool {
        let tables = self.tables(now_boottime_ms);
        let Ok(mounts) = &tables.own else { return false };
        mounts::hides(mounts, &tables.host, &self.resolved(mounts, path).to_string_lossy())
    }

    /// The path without symbolic links, as far as they can be read without asking another machine. What does not exist
    /// yet is taken as it stands.
    fn resolved(&self, mounts: &[Mount], path: &Path) -> PathBuf {
        let parts = |path: &Path| -> VecDeque<OsString> {
            path.components()
                .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
                .map(|part| part.as_os_str().to_owned())
                .collect()
        };
        let (mut done, mut rest, mut links) = (PathBuf::from("/"), parts(path), 0);
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            let on = mounts::of_path(mounts, &next.to_string_lossy());
            let target = match on {
                Some(mount) if mount.may_hang() || links >= LINKS_MAX => None,
                _ => std::fs::read_link(self.root.path(&next)).ok(),
            };
            let Some(target) = target else {
                done = next;
                continue;
            };
            links += 1;
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            let mut again = parts(&target);
            again.append(&mut rest);
            rest = again;
        }
        done
    }
}

/// Watches one file system.
#[derive(Debug)]
pub struct DiskProbe {
    subject: SubjectKey,
    place: Place,
    thresholds: Thresholds,
    table: Arc<MountTable>,
    judge: DiskJudge,
}

type Looked = (Arc<Tables>, Mount, Option<(Space, bool)>);

impl DiskProbe {
    /// Watches `place`.
    pub fn new(place: Place, thresholds: Thresholds, table: Arc<MountTable>) -> Self {
        let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Disk, &place.mount_point);
        Self { subject, place, thresholds, table, judge: DiskJudge::default() }
    }

    /// The tables, the own mount of the place, and what it tells of itself.
    fn look(&self, context: &Context) -> Result<Looked, Unknown> {
        let tables = self.table.tables(context.now.boottime_ms);
        let mounts = tables.own.as_ref().map_err(|why| {
            let why = format!("/proc/self/mountinfo cannot be read: {why}");
            Unknown::new(why, Some("mount procfs; without it no file system is watched"))
        })?;
        let place = &self.place.mount_point;
        let mount = at_place(mounts, place).ok_or_else(|| {
            let way_out = "mount it again, or reload the agent: it then finds the files anew";
            Unknown::new(format!("{place} is not mounted any more"), Some(way_out))
        })?;
        let found = self.space(&mount)?;
        Ok((tables, mount, found))
    }

    /// Room at the mount point, through the own mount of the file system, and whether nothing can be written through that.
    fn space(&self, mount: &Mount) -> Result<Option<(Space, bool)>, Unknown> {
        if mount.is_automount() || mount.is_read_only_by_type() {
            return Ok(None);
        }
        let place = &self.place.mount_point;
        match statvfs(self.table.root.path(place)) {
            Ok(answer) => {
                let bytes = |blocks: u64| blocks.saturating_mul(answer.f_frsize);
                let space = Space {
                    total_bytes: bytes(answer.f_blocks),
                    free_bytes: bytes(answer.f_bfree),
                    available_bytes: bytes(answer.f_bavail),
                    inodes: answer.f_files,
                    inodes_available: answer.f_favail,
                };
                Ok(Some((space, answer.f_flag.contains(StatVfsMountFlags::RDONLY))))
            }
            Err(errno) => {
                let way_out = match errno {
                    Errno::ACCESS | Errno::PERM => "give the agent CAP_DAC_READ_SEARCH",
                    Errno::STALE | Errno::NOTCONN => "mount it again: the server, or the program behind it, is gone",
                    Errno::IO => "look at the device: dmesg -T | tail",
                    _ => "see how it is mounted: findmnt",
                };
                let why = format!("{place} does not tell its room: {}", std::io::Error::from(errno));
                Err(Unknown::new(why, Some(way_out)))
            }
        }
    }
}

impl Probe for DiskProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let looked = self.look(context).and_then(|(tables, mount, found)| {
            let known = mount.mount_read_only || mount.super_read_only;
            if found.is_some_and(|(_, read_only)| read_only != known) {
                self.table.forget();
                return self.look(context);
            }
            Ok((tables, mount, found))
        });
        let (tables, mount, found) = match looked {
            Ok(looked) => looked,
            Err(unknown) => return Judgement { unknown: Some(unknown), ..Judgement::default() },
        };
        let place = &self.place.mount_point;
        // The same place may be another file system there: then its mount says nothing of this one.
        let host = at_place(&tables.host, place).filter(|host| host.device == mount.device);
        let reading = Reading {
            mount: &mount,
            host_read_only: host.map(|host| host.mount_read_only),
            fstab_writable: mounts::fstab_writable(&tables.fstab, place),
            space: found.map(|(space, _)| space),
        };
        self.judge.judge(&reading, &self.place.uses, self.thresholds, context.now)
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((boot_id(&self.table.root), &self.judge))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((boot, judge)) = saved.read::<(BootId, DiskJudge)>() else { return };
        self.judge = judge;
        if boot.0.is_nil() || boot != boot_id(&self.table.root) {
            self.judge.rebooted();
        }
    }
}

/// What is mounted there; the last one lies over the others.
fn at_place(mounts: &[Mount], place: &str) -> Option<Mount> {
    mounts.iter().rfind(|mount| mount.mount_point == place).cloned()
}

fn read_text(file: &File) -> std::io::Result<String> {
    read_small_file(file, TABLE_BYTES_MAX).map(text)
}
