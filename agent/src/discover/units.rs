//! Where a process belongs, by its cgroup, and what the file of its systemd unit says of it.
//!
//! Files of units are read only for what changes how a service is watched; systemd itself is asked by the probes.

use crate::senses::HostRoot;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

/// Where units are, in systemd's order.
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// Where it is written down what is started at boot.
const ENABLED_FOLDERS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/generator"];
/// What every boot reaches; a graphical session, a shutdown or a network that is waited for may never come.
const REACHED: [&str; 4] = ["default.target", "multi-user.target", "basic.target", "sysinit.target"];
/// Entries of such a folder looked at.
const ENTRIES_MAX: usize = 1024;
/// A unit file is a page, not a book.
const UNIT_FILE_BYTES_MAX: u64 = 64 << 10;
/// Bytes of a description in a comment.
const DESCRIPTION_BYTES_MAX: usize = 100;
/// Services that a distribution runs for itself, beside those that begin with `systemd-`.
const HELPERS: [&str; 8] =
    ["dbus", "dbus-broker", "polkit", "polkitd", "rtkit-daemon", "accounts-daemon", "emergency", "rescue"];
/// Beginnings of such with an instance.
const HELPER_TEMPLATES: [&str; 5] = ["getty@", "serial-getty@", "container-getty@", "autovt@", "user-runtime-dir@"];
/// Beginnings of a container's own part of a cgroup path.
const CONTAINER_PARTS: [&str; 9] =
    ["docker-", "libpod-", "crio-", "cri-containerd-", "nerdctl-", "kubepods", "machine.slice", "lxc.payload", "lxc"];

/// To whom a process belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A service unit of the host.
    Unit(String),
    /// A unit that the system runs for itself.
    Helper(String),
    /// A user's session or a command under systemd-run: it is there for as long as somebody needs it.
    Session,
    /// A container.
    Container,
    /// The service manager.
    Manager,
    /// A host without systemd, or outside of its units.
    Nowhere,
}

/// The path of a process on the hierarchy of systemd, or the unified one.
pub(super) fn cgroup_path(cgroup: &str) -> &str {
    let named = cgroup.lines().find_map(|line| Some(line.split_once(":name=systemd:")?.1));
    // With both, processes are in the named one and the unified one may be empty.
    named.or_else(|| cgroup.lines().find_map(|line| line.strip_prefix("0::"))).unwrap_or_default()
}

/// By the cgroup of a process and of the first process: in a container, everything is below that. On a host without
/// systemd, units are those of containers.
pub(super) fn place(cgroup: &str, of_first: &str, systemd: bool) -> Place {
    let above = cgroup_path(of_first).trim_end_matches("/init.scope");
    let path = cgroup_path(cgroup);
    let path = path.strip_prefix(above).filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
    let parts = || path.split('/').filter(|part| !part.is_empty());
    let names_units = || parts().any(|part| part.ends_with(".service") || part.ends_with(".scope"));
    let below_a_slice = || parts().next().is_some_and(|part| part.ends_with(".slice") || part == "init.scope");
    let nested = || names_units() && !(systemd && below_a_slice());
    if parts().next() == Some("docker") || parts().any(is_container) || nested() {
        return Place::Container;
    }
    if parts().next() == Some("user.slice") {
        return Place::Session;
    }
    match parts().rev().find(|part| part.ends_with(".service")) {
        Some(unit) => place_of_unit(unit),
        None => match parts().next_back() {
            Some("init.scope") => Place::Manager,
            Some(part) if part.ends_with(".scope") => Place::Session,
            _ => Place::Nowhere,
        },
    }
}

/// By the name of the unit alone.
pub(super) fn place_of_unit(unit: &str) -> Place {
    let stem = unit.trim_end_matches(".service");
    let of_system = stem.starts_with("systemd-") || HELPERS.contains(&stem) || stem == "console-getty";
    if unit.starts_with("run-") || unit.starts_with("user@") {
        Place::Session
    } else if of_system || HELPER_TEMPLATES.iter().any(|template| stem.starts_with(template)) {
        Place::Helper(unit.to_owned())
    } else {
        Place::Unit(unit.to_owned())
    }
}

fn is_container(part: &str) -> bool {
    CONTAINER_PARTS.iter().any(|begin| {
        part.strip_prefix(begin).is_some_and(|rest| {
            // A unit such as docker-registry.service is none.
            !part.ends_with(".service") && (!begin.ends_with('-') || !rest.is_empty())
        })
    })
}

/// What the file of a unit says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct UnitFile {
    /// For people.
    pub(super) description: String,
    /// It does its work and ends.
    pub(super) oneshot: bool,
    /// Something else starts it when it is needed, and it may end when it is not.
    pub(super) on_demand: bool,
    /// Once it was started at boot it has a process: it neither ends by itself nor depends on a condition.
    pub(super) lasts: bool,
}

/// Service units that every boot starts, under their own names.
pub(super) fn enabled(host: &HostRoot) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in ENABLED_FOLDERS {
        for folder in entries(&host.path(root)) {
            let name = folder.file_name().to_string_lossy().into_owned();
            let by = name.strip_suffix(".wants").or_else(|| name.strip_suffix(".requires")).unwrap_or_default();
            if REACHED.contains(&by) || by.ends_with(".service") {
                found.extend(entries(&folder.path()).filter_map(|link| own_name(&link)));
            }
        }
    }
    found
}

fn entries(folder: &Path) -> impl Iterator<Item = fs::DirEntry> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().take(ENTRIES_MAX)
}

/// The unit behind a link, which may have the name of an alias.
fn own_name(link: &fs::DirEntry) -> Option<String> {
    let name = link.file_name().to_str()?.to_owned();
    let target = fs::read_link(link.path()).ok();
    let target = target.as_deref().and_then(Path::file_name).and_then(|target| target.to_str());
    let is_one = |name: &&str| name.ends_with(".service") && !name.contains("@.");
    target.filter(is_one).or_else(|| Some(name.as_str()).filter(is_one)).map(str::to_owned)
}

/// Nothing starts a unit that is masked.
fn is_masked(host: &HostRoot, unit: &str) -> bool {
    let folders = ["/etc/systemd/system", "/run/systemd/system"].iter();
    let mut links = folders.filter_map(|folder| fs::read_link(host.path(Path::new(folder).join(unit))).ok());
    links.any(|target| target == Path::new("/dev/null"))
}

/// Whether something outside of the unit decides if it runs.
fn has_condition(host: &HostRoot, unit: &str, text: &str) -> bool {
    let decides = |text: &str| text.lines().any(|line| ["Condition", "Assert"].iter().any(|key| line.starts_with(key)));
    let dropins =
        UNIT_FOLDERS.iter().flat_map(|folder| entries(&host.path(Path::new(folder).join(format!("{unit}.d")))));
    decides(text) || dropins.filter_map(|dropin| read(&dropin.path())).any(|text| decides(&text))
}

/// Reads the file of a unit; nothing is known where there is none.
pub(super) fn unit_file(host: &HostRoot, unit: &str) -> UnitFile {
    let template = unit.split_once('@').map(|(name, _)| format!("{name}@.service"));
    let names = || std::iter::once(unit).chain(template.as_deref());
    let paths = names().flat_map(|name| UNIT_FOLDERS.iter().map(move |folder| Path::new(folder).join(name)));
    let Some(text) = paths.into_iter().find_map(|path| read(&host.path(&path))) else { return UnitFile::default() };
    let instance = unit.split_once('@').map_or("", |(_, rest)| rest.trim_end_matches(".service"));
    let value = |key: &str| {
        let of_key =
            |line: &str| Some(line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim().to_owned());
        text.lines().rev().find_map(of_key).unwrap_or_default()
    };
    let description = value("Description").replace("%i", instance).replace("%I", instance);
    let kind = value("Type");
    let installed = text.lines().any(|line| line.trim() == "[Install]");
    let socket = Path::new("/etc/systemd/system/sockets.target.wants").join(unit.replace(".service", ".socket"));
    let by_socket = fs::symlink_metadata(host.path(&socket)).is_ok();
    UnitFile {
        description: muster_common::limits::clip(&description, DESCRIPTION_BYTES_MAX),
        oneshot: kind == "oneshot",
        on_demand: by_socket || (kind == "dbus" && !installed),
        lasts: kind != "oneshot"
            && !by_socket
            && !["yes", "true", "on", "1"].contains(&value("RemainAfterExit").as_str())
            && !is_masked(host, unit)
            && !has_condition(host, unit, &text),
    }
}

fn read(path: &Path) -> Option<String> {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return None;
    }
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(UNIT_FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cgroup: &str) -> Place {
        place(&format!("0::{cgroup}\n"), "0::/init.scope\n", true)
    }

    #[test]
    fn processes_are_placed_by_their_cgroups() {
        let unit = |name: &str| Place::Unit(name.to_owned());
        let helper = |name: &str| Place::Helper(name.to_owned());
        for (cgroup, expected) in [
            ("/system.slice/cron.service", unit("cron.service")),
            ("/system.slice/system-postgresql.slice/postgresql@15-main.service", unit("postgresql@15-main.service")),
            ("/system.slice/docker-registry.service", unit("docker-registry.service")),
            ("/system.slice/docker.service", unit("docker.service")),
            ("/system.slice/spl.service/worker", unit("spl.service")),
            ("/system.slice/systemd-journald.service", helper("systemd-journald.service")),
            ("/system.slice/system-getty.slice/getty@tty1.service", helper("getty@tty1.service")),
            ("/system.slice/dbus.service", helper("dbus.service")),
            ("/user.slice/user-1000.slice/session-3.scope", Place::Session),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", Place::Session),
            ("/system.slice/run-u41.service", Place::Session),
            ("/system.slice/docker-0af.scope", Place::Container),
            ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-0af.scope", Place::Container),
            ("/docker/0af", Place::Container),
            ("/guest/system.slice/cron.service", Place::Container),
            ("/init.scope", Place::Manager),
            ("/", Place::Nowhere),
        ] {
            assert_eq!(of(cgroup), expected, "{cgroup}");
        }
    }

    #[test]
    fn inside_of_a_container_the_rest_of_the_path_counts() {
        let first = "0::/docker/0af/init.scope\n";
        assert_eq!(place("0::/docker/0af/system.slice/a.service\n", first, true), Place::Unit("a.service".to_owned()));
        assert_eq!(place("0::/docker/0af\n", "0::/docker/0af\n", false), Place::Nowhere);
        assert_eq!(place("0::/system.slice/a.service\n", "0::/\n", false), Place::Container);
        // Both hierarchies: the named one has the processes.
        let hybrid = "4:memory:/\n1:name=systemd:/system.slice/a.service\n0::/\n";
        assert_eq!(place(hybrid, "", true), Place::Unit("a.service".to_owned()));
    }

    #[test]
    fn unit_files_tell_what_may_end() {
        let folder = tempfile::tempdir().unwrap();
        let host = HostRoot(folder.path().to_owned());
        let write = |path: &str, text: &str| {
            let path = host.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "/lib/systemd/system/pg@.service",
            "[Unit]\nDescription=Cluster %i\n[Service]\nType=forking\n[Install]\n",
        );
        write("/lib/systemd/system/once.service", "[Service]\nType = oneshot\n");
        write("/lib/systemd/system/bus.service", "[Service]\nType=dbus\nBusName=a.b\n");
        write("/etc/systemd/system/sockets.target.wants/ssh.socket", "");
        write("/lib/systemd/system/ssh.service", "[Service]\nType=notify\n[Install]\n");
        let pg = unit_file(&host, "pg@15.service");
        assert_eq!((pg.description.as_str(), pg.oneshot, pg.on_demand), ("Cluster 15", false, false));
        assert!(unit_file(&host, "once.service").oneshot);
        assert!(unit_file(&host, "bus.service").on_demand && unit_file(&host, "ssh.service").on_demand);
        assert_eq!(unit_file(&host, "none.service"), UnitFile::default());
    }
}
