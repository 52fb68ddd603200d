//! `/proc/PID/mountinfo` and `/etc/fstab`: which file system a path is on, and whether it may be written to.
//!
//! Two things say "read-only", and only one of them is about the file system: the options behind the dash are the super
//! block's own, those before it belong to the mount, and so to the mount namespace of whoever reads. A sandboxed agent
//! sees nearly all mounts read-only; the file systems are not.

/// Mounts read of one file; a host with more (one per container layer) has its services' files on the first ones.
const MOUNTS_MAX: usize = 8192;

/// The file system's number, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

impl Device {
    /// Both in one.
    pub fn number(self) -> u64 {
        u64::from(self.major) << 32 | u64::from(self.minor)
    }
}

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Which file system.
    pub device: Device,
    /// The folder of the file system that is mounted: `/` for all of it.
    pub root: String,
    /// Where.
    pub mount_point: String,
    /// Whether this mount of it is read-only.
    pub mount_read_only: bool,
    /// Its type.
    pub fs_type: String,
    /// What is mounted: a block device, a server's path, or a name.
    pub source: String,
    /// Whether the file system itself is read-only.
    pub super_read_only: bool,
    /// Whether the kernel makes it read-only after an error.
    pub errors_remount_ro: bool,
}

impl Mount {
    /// True for types that can never be written to.
    pub fn is_read_only_by_type(&self) -> bool {
        matches!(self.fs_type.as_str(), "squashfs" | "erofs" | "iso9660" | "cramfs" | "romfs" | "udf")
    }

    /// True where the answer to a question comes from another machine or program, and may never come.
    pub fn may_hang(&self) -> bool {
        let remote = ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "lustre", "autofs"];
        remote.contains(&self.fs_type.as_str()) || self.fs_type.starts_with("fuse")
    }

    /// True for the place where something will be mounted at its first use.
    pub fn is_automount(&self) -> bool {
        self.fs_type == "autofs"
    }
}

/// All lines that are well formed, in order.
///
/// ```
/// let text = "36 35 98:0 / /a\\040b rw,noatime shared:1 - ext4 /dev/sda1 ro,errors=remount-ro";
/// let mounts = muster_agent_core::mounts::parse(text);
/// assert_eq!(mounts[0].mount_point, "/a b");
/// assert!(mounts[0].super_read_only && !mounts[0].mount_read_only);
/// ```
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).take(MOUNTS_MAX).collect()
}

fn line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (major, minor) = before.next()?.split_once(':')?;
    let device = Device { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let (root, mount_point, options) = (before.next()?, before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (fs_type, source, super_options) = (after.next()?, after.next()?, after.next().unwrap_or_default());
    let mount_point = unescaped(mount_point);
    mount_point.starts_with('/').then(|| Mount {
        device,
        root: unescaped(root),
        mount_point,
        mount_read_only: has(options, "ro"),
        fs_type: unescaped(fs_type),
        source: unescaped(source),
        super_read_only: has(super_options, "ro"),
        errors_remount_ro: has(super_options, "errors=remount-ro"),
    })
}

fn has(options: &str, wanted: &str) -> bool {
    options.split(',').any(|option| option == wanted)
}

/// The kernel writes space, tab, newline, backslash and `#` as a backslash and three octal digits.
fn unescaped(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = |digit: &u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
        let byte = match (first, tail) {
            (b'\\', [a, b, c, ..]) => match (octal(a), octal(b), octal(c)) {
                (Some(a), Some(b), Some(c)) => u8::try_from(a * 64 + b * 8 + c).ok(),
                _ => None,
            },
            _ => None,
        };
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mount that `path` (absolute, without symbolic links) is on: the deepest, and of several at one place the last.
pub fn of_path<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    let holds = |mount: &&Mount| {
        let rest = path.strip_prefix(mount.mount_point.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    mounts.iter().filter(holds).max_by_key(|mount| mount.mount_point.len())
}

/// The place by which people know the file system: where all of it is mounted, else the shortest path of a part.
pub fn main_mount(mounts: &[Mount], device: Device) -> Option<&Mount> {
    let rank = |mount: &&Mount| (mount.root != "/", mount.mount_point.len());
    mounts.iter().filter(|mount| mount.device == device).min_by_key(rank)
}

/// Whether a process with the mounts `own` sees another file system, or another part of one, at `path` than the host
/// with the mounts `host`. Where one of both is not known nothing is said.
///
/// ```
/// use muster_agent_core::mounts::{hides, parse};
/// let host = parse("22 1 8:1 / / rw - ext4 /dev/sda1 rw");
/// let own = parse("22 1 8:1 / / ro - ext4 /dev/sda1 rw
/// 23 22 8:1 /var/lib/a /var/lib/a rw - ext4 /dev/sda1 rw
/// 24 22 8:1 /tmp/systemd-private-1/tmp /tmp rw - ext4 /dev/sda1 rw
/// 25 22 0:9 / /home rw - tmpfs tmpfs rw");
/// assert!(hides(&own, &host, "/tmp/x") && hides(&own, &host, "/home/bob/x"));
/// assert!(!hides(&own, &host, "/var/lib/a/x") && !hides(&own, &host, "/etc/x") && !hides(&own, &[], "/tmp/x"));
/// ```
pub fn hides(own: &[Mount], host: &[Mount], path: &str) -> bool {
    let place = |mounts: &[Mount]| {
        let mount = of_path(mounts, path)?;
        let below = path.strip_prefix(mount.mount_point.trim_end_matches('/')).unwrap_or_default();
        Some((mount.device, format!("{}{below}", mount.root.trim_end_matches('/'))))
    };
    place(own).zip(place(host)).is_some_and(|(own, host)| own != host)
}

/// Whether `/etc/fstab` says that the file system at `mount_point` is to be writable; `None` where it says nothing.
///
/// ```
/// use muster_agent_core::mounts::fstab_writable;
/// let fstab = "# comment\n/dev/sda1 / ext4 errors=remount-ro 0 1\nLABEL=x /mnt/x\\040y xfs ro 0 0\n";
/// assert_eq!(fstab_writable(fstab, "/"), Some(true));
/// assert_eq!(fstab_writable(fstab, "/mnt/x y"), Some(false));
/// assert_eq!(fstab_writable(fstab, "/var"), None);
/// ```
pub fn fstab_writable(fstab: &str, mount_point: &str) -> Option<bool> {
    let lines = fstab.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut found = None;
    for line in lines {
        let mut words = line.split_ascii_whitespace();
        let (Some(_), Some(place), Some(_)) = (words.next(), words.next(), words.next()) else { continue };
        if unescaped(place) == mount_point {
            found = Some(!has(words.next().unwrap_or("defaults"), "ro"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
23 22 0:5 / /proc rw,nosuid - proc proc rw
24 22 8:2 / /var rw - ext4 /dev/sda2 rw
25 24 8:1 /srv/data /var/lib/data ro,relatime master:7 propagate_from:2 - ext4 /dev/sda1 rw,errors=remount-ro
26 24 0:40 / /var/lib/late rw - tmpfs first rw
27 26 0:41 / /var/lib/late rw - tmpfs second rw,size=4k
28 22 0:50 / /mnt/nfs rw - nfs4 server:/x rw,addr=10.0.0.1
";

    #[test]
    fn a_path_is_on_the_deepest_and_latest_mount() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 7);
        let source = |path| of_path(&mounts, path).map(|mount| mount.source.as_str());
        assert_eq!(source("/etc/passwd"), Some("/dev/sda1"));
        assert_eq!(source("/variable"), Some("/dev/sda1"));
        assert_eq!(source("/var"), Some("/dev/sda2"));
        assert_eq!(source("/var/lib/database"), Some("/dev/sda2"));
        assert_eq!(source("/var/lib/late/x"), Some("second"));
        assert!(of_path(&mounts, "/mnt/nfs/x").is_some_and(Mount::may_hang));
        assert_eq!(of_path(&[], "/"), None);
    }

    #[test]
    fn a_read_only_mount_of_a_writable_file_system_is_told_apart() {
        let mounts = parse(TEXT);
        let bind = of_path(&mounts, "/var/lib/data/hub.db").unwrap();
        assert!(bind.mount_read_only && !bind.super_read_only && bind.errors_remount_ro);
        assert_eq!(main_mount(&mounts, bind.device).unwrap().mount_point, "/");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}", line in "[0-9 :/\\\\rwo,-]{0,80}", path in "[/a-z\\\\0-9]{0,20}") {
            for text in [&text, &line] {
                let mounts = parse(text);
                of_path(&mounts, &path);
                fstab_writable(text, &path);
                unescaped(text);
            }
        }

        #[test]
        fn what_the_kernel_escapes_is_read_back(path in "/[ -~é\n\t]{0,30}") {
            let escape = |c: char| match c {
                ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", u32::from(c)),
                other => other.to_string(),
            };
            let escaped: String = path.chars().map(escape).collect();
            let line = format!("36 35 98:0 / {escaped} rw - ext4 /dev/sda1 rw");
            prop_assert_eq!(&parse(&line)[0].mount_point, &path);
        }
    }
}
