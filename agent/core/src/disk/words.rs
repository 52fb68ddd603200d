//! What is said about a file system, and shown as proof.

use super::{Outlook, Space};
use crate::mounts::Mount;
use crate::shell::quoted;
use muster_common::evidence::Evidence;
use muster_common::units::{human_bytes, human_duration};
use std::collections::BTreeMap;

/// Services named in a sentence; the evidence has them all.
const NAMED_MAX: usize = 4;
/// Below this rate people think in hours, not in seconds.
const PER_SECOND_FROM_BYTES: u64 = 100 << 10;

/// What a service keeps on a file system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The service, or `muster-agent`.
    pub service: String,
    /// What it is: `"database"`, `"backups"`, `"logs"`, …
    pub what: &'static str,
}

pub(super) fn mount_evidence(mount: &Mount, uses: &[Use]) -> Evidence {
    let mut services: Vec<&str> = uses.iter().map(|one| one.service.as_str()).collect();
    services.sort_unstable();
    services.dedup();
    Evidence::new()
        .text("mount_point", &mount.mount_point)
        .text("source", &mount.source)
        .text("fs_type", &mount.fs_type)
        .text("services", services.join(", "))
}

pub(super) fn space_evidence(seen: Evidence, space: &Space, outlook: Option<Outlook>) -> Evidence {
    let mut seen = seen
        .bytes("total_bytes", space.total_bytes)
        .bytes("available_bytes", space.available_bytes)
        .bytes("reserved_for_root_bytes", space.reserved_bytes());
    if space.inodes > 0 {
        seen = seen.count("inodes", space.inodes).count("inodes_available", space.inodes_available);
    }
    match outlook {
        Some(Outlook { per_hour, left }) => {
            seen.bytes("fills_bytes_per_second", per_hour / 3600).duration("full_in_ms", left)
        }
        None => seen,
    }
}

/// `"; spl has its database and logs there"`.
fn users(uses: &[Use]) -> String {
    let mut by_service: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for one in uses {
        let whats = by_service.entry(&one.service).or_default();
        if !whats.contains(&one.what) {
            whats.push(one.what);
        }
    }
    let more = by_service.len().saturating_sub(NAMED_MAX);
    let one = |(service, whats): (&&str, &Vec<&str>)| format!("{service} has its {} there", listed(whats));
    let mut told: Vec<String> = by_service.iter().take(NAMED_MAX).map(one).collect();
    if more > 0 {
        told.push(format!("{more} more services use it"));
    }
    told.iter().map(|part| format!("; {part}")).collect()
}

fn listed(parts: &[&str]) -> String {
    match parts {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn percent(part: u64, of: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(of.max(1));
    if tenths < 100 { format!("{}.{} %", tenths / 10, tenths % 10) } else { format!("{} %", tenths / 10) }
}

pub(super) fn space(mount: &Mount, space: &Space, least: u64, outlook: Option<Outlook>, uses: &[Use]) -> String {
    let place = &mount.mount_point;
    let usable = space.usable_bytes();
    let mut told = if space.available_bytes == 0 {
        format!("{place} is full: nothing of {} is left", human_bytes(usable))
    } else {
        format!(
            "{place} has {} of {} left ({}), less than {}",
            human_bytes(space.available_bytes),
            human_bytes(usable),
            percent(space.available_bytes, usable),
            human_bytes(least),
        )
    };
    if let Some(outlook) = outlook.filter(|_| space.available_bytes > 0) {
        let rate = match outlook.per_hour / 3600 {
            per_second if per_second >= PER_SECOND_FROM_BYTES => format!("{}/s", human_bytes(per_second)),
            _ => format!("{} an hour", human_bytes(outlook.per_hour)),
        };
        told = format!("{told}; full in about {} at {rate}", human_duration(outlook.left));
    }
    if space.reserved_bytes() > 0 {
        told = format!("{told}; {} more are reserved for root", human_bytes(space.reserved_bytes()));
    }
    format!("{told}{}", users(uses))
}

pub(super) fn inodes(mount: &Mount, space: &Space, least: u64, uses: &[Use]) -> String {
    let place = &mount.mount_point;
    let mut told = match space.inodes_available {
        0 => format!("{place} has no inode left of {}: no file can be created", space.inodes),
        left => format!(
            "{place} has {left} of {} inodes left ({}), less than {least}",
            space.inodes,
            percent(left, space.inodes)
        ),
    };
    if space.available_bytes > 0 {
        told = format!("{told}, though {} of space are free", human_bytes(space.available_bytes));
    }
    format!("{told}{}", users(uses))
}

pub(super) fn read_only(mount: &Mount, why: &str, uses: &[Use]) -> String {
    let place = &mount.mount_point;
    let source = &mount.source;
    let kernel = if mount.super_read_only && mount.errors_remount_ro {
        ": the kernel does that after an error of the device"
    } else {
        ""
    };
    format!("{place} ({source}) is read-only, though {why}{kernel}; nothing can be saved there{}", users(uses))
}

pub(super) fn space_steps(mount: &Mount) -> [String; 4] {
    let place = quoted(&mount.mount_point);
    [
        format!("see what takes the space: du -xh --max-depth=2 {place} | sort -h | tail -20"),
        format!("look for deleted files that are still open: lsof -nP +L1 {place}"),
        "never delete a database's -wal, -shm or -journal file: committed rows are in it".to_owned(),
        format!("make room or grow it: df -h {place}; findmnt {place}"),
    ]
}

pub(super) fn inode_steps(mount: &Mount) -> [String; 3] {
    let place = quoted(&mount.mount_point);
    [
        format!("find the folder with the many files: du -x --inodes --max-depth=3 {place} | sort -n | tail -20"),
        "see which service makes them (sessions, spools, caches), and mend its clean-up".to_owned(),
        format!("check again: df -i {place}"),
    ]
}

pub(super) fn read_only_steps(mount: &Mount) -> [String; 4] {
    let (place, source) = (quoted(&mount.mount_point), quoted(&mount.source));
    [
        "see why: journalctl -k -b | grep -iE 'error|remount|readonly|read-only' | tail -50".to_owned(),
        format!("see how it is mounted: findmnt -o TARGET,SOURCE,FSTYPE,OPTIONS {place}; lsblk {source}"),
        "after an error of the device: secure copies first, the device may be dying (smartctl -a)".to_owned(),
        format!("only when the cause is known: check it unmounted (fsck {source}), then mount -o remount,rw {place}"),
    ]
}
