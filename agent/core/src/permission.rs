//! Whether strangers could change what a service trusts: its pid file, its databases, its backups, its logs, its keys.
//!
//! What is told is what somebody could do, not that a mode looks unusual: a group of the service's own may write, a
//! sticky folder is no open door. Must never ask for more rights than are needed to look.

use crate::accounts::Accounts;
use crate::judgement::{Judgement, Problem};
use crate::shell::quoted;
use muster_common::evidence::Evidence;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use std::collections::BTreeSet;

const WORLD_WRITE: u32 = 0o002;
const WORLD_READ: u32 = 0o004;
const GROUP_WRITE: u32 = 0o020;
const STICKY: u32 = 0o1000;
/// Faults told of one subject; whoever mends these looks again.
const FAULTS_MAX: usize = 8;

/// What a path is to its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A pid file.
    PidFile,
    /// A database, with its -wal and -shm.
    Database,
    /// The folder of backups.
    Backups,
    /// A log.
    Log,
    /// A private key.
    Key,
}

impl Role {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PidFile => "pid file",
            Self::Database => "database",
            Self::Backups => "folder of backups",
            Self::Log => "log",
            Self::Key => "private key",
        }
    }

    /// What somebody can do who may write to it, or put another in its place.
    const fn harm(self) -> &'static str {
        match self {
            Self::PidFile => "make it name another process, which is then signalled in the service's place",
            Self::Database => "change or destroy its rows",
            Self::Backups => "delete the backups or put false ones in their place",
            Self::Log => "forge or erase its lines",
            Self::Key => "replace the key",
        }
    }

    /// Whether its owner says something: a log may belong to whoever rotates or writes it, backups to whoever makes
    /// them.
    const fn has_expected_owner(self) -> bool {
        matches!(self, Self::PidFile | Self::Database | Self::Key)
    }
}

/// Mode and owner of one inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its path, as people will name it.
    pub path: String,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Whom the service's process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunsAs {
    /// Effective user.
    pub uid: u32,
    /// Effective group, and all others.
    pub gids: BTreeSet<u32>,
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// The symbolic link at the path, if it is one.
    pub link: Option<Inode>,
    /// What is there, links followed, and what belongs to it (-wal, -shm); empty when nothing is there.
    pub files: Vec<Inode>,
    /// The folders above, nearest first, links resolved.
    pub folders: Vec<Inode>,
    /// Whom the service runs as, where it runs and that could be seen.
    pub runs_as: Option<RunsAs>,
}

/// One way in.
struct Fault {
    told: String,
    fix: String,
    inode: Inode,
    grave: bool,
}

/// The verdict on `path`.
pub fn judge(role: Role, path: &str, reading: &Reading, accounts: &Accounts) -> Judgement {
    let mut faults: Vec<Fault> = Vec::new();
    for file in &reading.files {
        faults.extend(of_file(role, file, reading.runs_as.as_ref(), accounts));
    }
    faults.extend(of_link(role, reading, accounts));
    faults.extend(of_folders(role, reading, accounts));
    faults.sort_by_key(|fault| !fault.grave);
    let mut seen = Evidence::new().text("role", role.as_str()).flag("exists", !reading.files.is_empty());
    if let Some(file) = reading.files.first() {
        seen = seen.text("mode", octal(file.mode)).text("owner", accounts.user(file.uid));
        seen = seen.text("group", accounts.group(file.gid));
    }
    if let Some(RunsAs { uid, .. }) = &reading.runs_as {
        seen = seen.text("service_user", accounts.user(*uid));
    }
    match problem(role, path, &faults, &seen, accounts) {
        Some(problem) => Judgement { seen, ..Judgement::problem(problem) },
        None => Judgement::ok(seen),
    }
}

fn problem(role: Role, path: &str, faults: &[Fault], seen: &Evidence, accounts: &Accounts) -> Option<Problem> {
    let first = faults.first()?;
    let more = match faults.len() {
        1 => String::new(),
        2 => "; the evidence has 1 more way in".to_owned(),
        count => format!("; the evidence has {} more ways in", count - 1),
    };
    let summary = format!("{} {path}: {}{more}", role.as_str(), first.told);
    let mut evidence = seen.clone().text("path", path).text("insecure_path", &first.inode.path);
    evidence = evidence
        .text("mode", octal(first.inode.mode))
        .text("owner", accounts.user(first.inode.uid))
        .text("group", accounts.group(first.inode.gid));
    for (index, fault) in faults.iter().take(FAULTS_MAX).enumerate() {
        evidence = evidence.text(&format!("fault_{index}"), &fault.told);
    }
    let mut steps = vec![format!("look: namei -l {}", quoted(path))];
    let fixes: BTreeSet<&String> = faults.iter().take(FAULTS_MAX).map(|fault| &fault.fix).collect();
    steps.extend(fixes.into_iter().map(|fix| format!("consider: {fix}")));
    steps.push("see what sets it so (unit, package, deployment), or it comes back".to_owned());
    let problem = Problem::new(Reason::PermissionInsecure, summary).evidence(evidence).next_steps(steps);
    Some(if first.grave { problem.severity(Severity::Sev3) } else { problem })
}

fn of_file(role: Role, file: &Inode, runs_as: Option<&RunsAs>, accounts: &Accounts) -> Vec<Fault> {
    let mut faults = Vec::new();
    let path = quoted(&file.path);
    let mut fault = |told: String, fix: String, grave| faults.push(Fault { told, fix, inode: file.clone(), grave });
    let sticky_folder = is_folder(file) && file.mode & STICKY != 0;
    if file.mode & WORLD_WRITE != 0 && !sticky_folder {
        let told = format!("any user of this host can {}, as {} is {}", role.harm(), file.path, octal(file.mode));
        fault(told, format!("chmod o-w {path}"), matches!(role, Role::Database | Role::Key | Role::Backups));
    }
    let known_group = file.gid == 0
        || accounts.is_private_group(file.uid, file.gid)
        || runs_as.is_some_and(|service| service.gids.contains(&file.gid));
    if file.mode & GROUP_WRITE != 0 && !known_group && matches!(role, Role::Database | Role::Key | Role::PidFile) {
        let group = accounts.group(file.gid);
        let told = format!(
            "everybody in group {group} can {}, as {} is {}, and the service is not known to be in that group",
            role.harm(),
            file.path,
            octal(file.mode)
        );
        fault(told, format!("chmod g-w {path}"), false);
    }
    if role == Role::Key && file.mode & WORLD_READ != 0 {
        let told = format!("any user of this host can read it, as {} is {}", file.path, octal(file.mode));
        fault(told, format!("chmod o-rwx {path} and, as it may have been copied, replace the key"), true);
    }
    if role.has_expected_owner() && is_strangers(file, runs_as) {
        let told = format!("{} belongs to {}, who can {}", file.path, accounts.user(file.uid), role.harm());
        let owner = runs_as.map_or_else(|| "root".to_owned(), |service| accounts.user(service.uid));
        fault(told, format!("chown {owner} {path}"), false);
    }
    faults
}

/// A link that a stranger made leads where the stranger wants.
fn of_link(role: Role, reading: &Reading, accounts: &Accounts) -> Option<Fault> {
    let link = reading.link.as_ref().filter(|link| is_strangers(link, reading.runs_as.as_ref()))?;
    let told = format!(
        "{} is a symbolic link of {}, who can point it elsewhere and so {}",
        link.path,
        accounts.user(link.uid),
        role.harm()
    );
    let fix = format!(
        "replace the link by one of root's, after a look at where it leads: readlink -f {}",
        quoted(&link.path)
    );
    Some(Fault { told, fix, inode: link.clone(), grave: false })
}

fn of_folders(role: Role, reading: &Reading, accounts: &Accounts) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, folder) in reading.folders.iter().enumerate() {
        let path = quoted(&folder.path);
        if folder.mode & WORLD_WRITE != 0 && folder.mode & STICKY == 0 {
            let told = format!(
                "any user of this host can put another in its place, as the folder {} is {}, and so {}",
                folder.path,
                octal(folder.mode),
                role.harm(),
            );
            let fix = format!("chmod o-w {path}, or chmod +t {path} where all must write");
            faults.push(Fault { told, fix, inode: folder.clone(), grave: false });
        } else if index == 0 && role.has_expected_owner() && is_strangers(folder, reading.runs_as.as_ref()) {
            let owner = accounts.user(folder.uid);
            let told = format!(
                "the folder {} belongs to {owner}, who can put another in its place and so {}",
                folder.path,
                role.harm()
            );
            faults.push(Fault { told, fix: format!("chown root {path}"), inode: folder.clone(), grave: false });
        }
    }
    faults
}

/// Of neither root nor the service's user, where that is known.
fn is_strangers(inode: &Inode, runs_as: Option<&RunsAs>) -> bool {
    inode.uid != 0 && runs_as.is_some_and(|service| service.uid != inode.uid)
}

const fn is_folder(inode: &Inode) -> bool {
    inode.mode & 0o170_000 == 0o040_000
}

fn octal(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judgement::Verdict;

    fn inode(path: &str, mode: u32, uid: u32, gid: u32) -> Inode {
        Inode { path: path.into(), mode, uid, gid }
    }

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0\nspl:x:900:900\nbob:x:1000:1000\n",
            "root:x:0\nspl:x:900\nusers:x:100\nbob:x:1000\n",
        )
    }

    fn reading(file: Inode, folder_mode: u32) -> Reading {
        Reading {
            link: None,
            files: vec![file],
            folders: vec![inode("/run/spl", folder_mode, 0, 0), inode("/", 0o40755, 0, 0)],
            runs_as: Some(RunsAs { uid: 900, gids: [900, 5].into() }),
        }
    }

    /// Role, the file, its folder's mode; parts of the sentence and of a step, or nothing.
    fn check(role: Role, file: Inode, folder_mode: u32, expected: Option<(&str, &str)>) {
        let judgement = judge(role, "/run/spl/x", &reading(file.clone(), folder_mode), &accounts());
        let Some((part, fix)) = expected else {
            assert_eq!(judgement.verdict(), Verdict::Ok, "{role:?} {file:?} {judgement:?}");
            return;
        };
        let problem = judgement.problems.first().unwrap_or_else(|| panic!("{role:?} {file:?} is well"));
        assert!(problem.summary.contains(part), "{}", problem.summary);
        assert!(problem.next_steps.iter().any(|step| step.contains(fix)), "{:?}", problem.next_steps);
    }

    #[test]
    fn what_only_root_and_the_service_can_change_is_well() {
        let well = 0o40755;
        check(Role::PidFile, inode("/run/spl/x", 0o100_644, 900, 900), well, None);
        check(Role::PidFile, inode("/run/spl/x", 0o100_644, 0, 0), well, None);
        check(Role::Database, inode("/run/spl/x", 0o100_660, 900, 5), well, None);
        check(Role::Database, inode("/run/spl/x", 0o100_664, 900, 900), well, None);
        check(Role::Key, inode("/run/spl/x", 0o100_640, 0, 900), well, None);
        check(Role::Log, inode("/run/spl/x", 0o100_664, 1000, 100), well, None);
        check(Role::Backups, inode("/run/spl/x", 0o41_777, 1000, 100), well, None);
        check(Role::PidFile, inode("/run/spl/x", 0o100_644, 900, 900), 0o41_777, None);
    }

    #[test]
    fn each_way_in_is_told_with_what_closes_it() {
        let well = 0o40755;
        for (role, mode, uid, gid, folder, part, fix) in [
            (Role::PidFile, 0o666, 900, 900, well, "any user of this host can make it name", "chmod o-w /run/spl/x"),
            (Role::Database, 0o666, 900, 900, well, "change or destroy its rows", "chmod o-w /run/spl/x"),
            (Role::Database, 0o660, 900, 100, well, "everybody in group users", "chmod g-w /run/spl/x"),
            (Role::Key, 0o644, 0, 0, well, "any user of this host can read it", "replace the key"),
            (Role::Database, 0o600, 1000, 1000, well, "belongs to bob", "chown spl /run/spl/x"),
            (Role::Log, 0o622, 900, 900, well, "forge or erase", "chmod o-w"),
            (Role::PidFile, 0o644, 0, 0, 0o40777, "as the folder /run/spl is 0777", "chmod +t /run/spl"),
        ] {
            check(role, inode("/run/spl/x", 0o100_000 | mode, uid, gid), folder, Some((part, fix)));
        }
        let folder = inode("/run/spl/x", 0o40_777, 0, 0);
        check(Role::Backups, folder, well, Some(("delete the backups", "chmod o-w /run/spl/x")));
    }

    #[test]
    fn the_gravest_comes_first_and_all_are_shown() {
        let mut reading = reading(inode("/run/spl/key", 0o100_646, 1000, 1000), 0o40777);
        reading.link = Some(inode("/etc/link", 0o120_777, 1000, 1000));
        let judgement = judge(Role::Key, "/etc/link", &reading, &accounts());
        let problem = &judgement.problems[0];
        assert_eq!(problem.severity, Some(Severity::Sev3));
        assert!(problem.summary.contains("4 more ways in"), "{}", problem.summary);
        assert!(problem.evidence.get("fault_4").is_some());
    }

    #[test]
    fn without_a_running_service_owners_are_not_judged() {
        let mut reading = reading(inode("/run/spl/x", 0o100_644, 1000, 1000), 0o40755);
        reading.runs_as = None;
        assert_eq!(judge(Role::PidFile, "/run/spl/x", &reading, &accounts()).verdict(), Verdict::Ok);
        reading.files.clear();
        let missing = judge(Role::PidFile, "/run/spl/x", &reading, &accounts());
        assert_eq!(missing.verdict(), Verdict::Ok, "another probe tells that it is missing");
    }
}
