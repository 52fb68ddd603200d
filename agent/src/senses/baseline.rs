//! Reads the settings that are declared: sysctls, limits of a service's process, modes, owners and hashes of files.
//!
//! A file is read for its hash only when its inode, size or times changed, and only so much in one run.

use super::permission::accounts;
use super::regular::{Found, open_regular};
use super::unit::{Units, UnitsError};
use super::{HostRoot, process};
use crate::config::baseline::{Baseline, DeclaredFile};
use crate::net::{Mailbox, NetHandle};
use crate::probe::{Context, Lane, Probe, Remembered};
use muster_agent_core::accounts::Accounts;
use muster_agent_core::baseline::{Applied, BaselineJudge, Setting, limits, sysctl, unit_property};
use muster_agent_core::judgement::Judgement;
use muster_agent_core::shell::quoted;
use muster_agent_core::unit::Property;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use rustix::fs::{OFlags, Stat, stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// What the probe is about, beside the service.
const SUBJECT: &str = "declared settings";
/// A value of `/proc/sys` is read up to this size.
const SYSCTL_BYTES_MAX: u64 = 4096;
/// Bytes hashed in one run, so that a cold disk cannot hold the lane; the other files wait for the next run.
const HASHED_PER_RUN_BYTES_MAX: u64 = 32 << 20;
/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// How often a bus that is not connected yet is asked again, and how long after: one and a half seconds in all.
const ASKED_MAX: u32 = 30;
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// How long `doctor` waits for it.
const PATIENCE: Duration = Duration::from_millis(1_600);

type Answer = Result<BTreeMap<String, Property>, String>;

/// A way to a unit's properties.
#[derive(Debug)]
pub struct UnitSource {
    unit: String,
    units: Units,
    net: NetHandle,
    mailbox: Arc<Mailbox<Answer>>,
    answer: Option<Answer>,
}

impl UnitSource {
    /// Of `unit`, as `units` tells them. Fails where no event descriptor can be made.
    pub fn new(unit: &str, units: Units, net: NetHandle) -> std::io::Result<Self> {
        Ok(Self { unit: unit.to_owned(), units, net, mailbox: Mailbox::new()?, answer: None })
    }

    /// The newest answer. A run that finds none new asks, and the answer wakes the next one.
    fn look(&mut self, names: &BTreeMap<String, String>, one_shot: bool) {
        if let Some(answer) = self.mailbox.take() {
            self.answer = Some(answer);
            return;
        }
        let (unit, units, mailbox) = (self.unit.clone(), self.units.clone(), Arc::clone(&self.mailbox));
        let names: Vec<String> = names.keys().cloned().collect();
        self.net.spawn(async move { mailbox.put(ask(&unit, &units, &names).await) });
        if one_shot {
            self.answer = self.mailbox.wait(PATIENCE);
        }
    }
}

async fn ask(unit: &str, units: &Units, names: &[String]) -> Answer {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut asked = 0;
    loop {
        asked += 1;
        match units.properties(unit, &names).await {
            Err(UnitsError::Unreachable(_)) if asked < ASKED_MAX => tokio::time::sleep(ASK_PAUSE).await,
            answer => return answer.map_err(|error| error.to_string()),
        }
    }
}

/// Compares one baseline with what is applied.
#[derive(Debug)]
pub struct BaselineProbe {
    subject: SubjectKey,
    root: HostRoot,
    baseline: Baseline,
    judge: BaselineJudge,
    hashes: BTreeMap<String, Hashed>,
    /// The service's unit, and a way to it, where there is one.
    unit: Option<(String, Option<UnitSource>)>,
}

/// The hash of a file as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hashed {
    of: Version,
    sha256: String,
}

/// What changes when a file does: device, inode, size, and the times of its content and of its inode in ns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Version(u64, u64, i64, i64, i64);

impl BaselineProbe {
    /// Compares `baseline`, of a service or of the host.
    ///
    /// Properties of a unit need its name and a way to it; without one they are unknown.
    pub fn new(
        service: ServiceName,
        baseline: Baseline,
        unit: Option<(String, Option<UnitSource>)>,
        root: HostRoot,
    ) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Baseline, SUBJECT);
        Self { subject, root, baseline, judge: BaselineJudge::default(), hashes: BTreeMap::new(), unit }
    }

    fn settings(&mut self, context: &Context) -> Vec<Setting> {
        let mut settings: Vec<Setting> =
            self.baseline.sysctl.iter().map(|(name, requested)| self.sysctl(name, requested)).collect();
        settings.extend(self.limits(context));
        settings.extend(self.unit_properties(context));
        if self.baseline.files.is_empty() {
            return settings;
        }
        let accounts = accounts(&self.root);
        let files = std::mem::take(&mut self.baseline.files);
        let mut budget_bytes = HASHED_PER_RUN_BYTES_MAX;
        for file in &files {
            settings.extend(self.file(file, &accounts, &mut budget_bytes));
        }
        self.baseline.files = files;
        settings
    }

    fn sysctl(&self, name: &str, requested: &str) -> Setting {
        let applied = match sysctl::path(name) {
            Ok(path) => match read_some(&self.root.path(format!("/proc/sys/{path}"))) {
                Ok(value) => Applied::Value(sysctl::plain(&value)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Applied::Missing,
                Err(error) => Applied::Unknown(error.to_string()),
            },
            Err(why) => Applied::Unknown(why),
        };
        Setting {
            name: format!("sysctl {name}"),
            requested: requested.to_owned(),
            applied,
            step: format!(
                "see who sets it: sysctl {name}; grep -rs {name} /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d"
            ),
        }
    }

    fn limits(&self, context: &Context) -> Vec<Setting> {
        if self.baseline.limits.is_empty() {
            return Vec::new();
        }
        let service = &self.subject.service;
        let text = self.limits_text(context);
        let one = |(name, requested): (&String, &String)| Setting {
            name: format!("limit {name}"),
            requested: requested.clone(),
            applied: match &text {
                Ok((_, text)) => limits::applied(text, name, requested).map_or(Applied::Missing, Applied::Value),
                Err(why) => Applied::Unknown(why.clone()),
            },
            step: match &text {
                Ok((pid, _)) => format!(
                    "see where it comes from (LimitNOFILE= and the like of the unit, limits.conf): prlimit -p {pid}; \
                     a new limit needs a restart of {service}"
                ),
                Err(_) => String::new(),
            },
        };
        self.baseline.limits.iter().map(one).collect()
    }

    fn unit_properties(&mut self, context: &Context) -> Vec<Setting> {
        if self.baseline.unit.is_empty() {
            return Vec::new();
        }
        if let Some((_, Some(source))) = &mut self.unit {
            source.look(&self.baseline.unit, context.one_shot);
        }
        let answer = match &self.unit {
            None => Err("the service names no unit: name it with unit ="),
            Some((_, None)) => Err("there is no systemd here to ask"),
            Some((_, Some(UnitSource { answer: None, .. }))) => Err("systemd has not answered yet"),
            Some((_, Some(UnitSource { answer: Some(Err(why)), .. }))) => Err(why.as_str()),
            Some((_, Some(UnitSource { answer: Some(Ok(properties)), .. }))) => Ok(properties),
        };
        let unit = self.unit.as_ref().map_or("the service's unit", |(unit, _)| unit.as_str());
        let one = |(name, requested): (&String, &String)| Setting {
            name: format!("{name} of {unit}"),
            requested: requested.clone(),
            applied: match answer {
                Ok(properties) => properties
                    .get(name)
                    .map_or(Applied::Missing, |value| Applied::Value(unit_property::applied(value, requested))),
                Err(why) => Applied::Unknown(why.to_owned()),
            },
            step: format!("see who sets it: systemctl cat {unit}; a change of the file needs systemctl daemon-reload"),
        };
        self.baseline.unit.iter().map(one).collect()
    }

    /// Of the service's main process, with its pid.
    fn limits_text(&self, context: &Context) -> Result<(u32, String), String> {
        let newest = {
            let services = context.services.lock().unwrap_or_else(PoisonError::into_inner);
            services.newest(&self.subject.service).filter(|newest| newest.ended_boottime_ms.is_none()).cloned()
        };
        let process = newest
            .ok_or("no running process of the service is known: its pid_file or unit names it, where it has one")?
            .process;
        let text = read_some(&self.root.path(format!("/proc/{}/limits", process.pid))).map_err(|e| e.to_string())?;
        match process::id(&self.root, process.pid) == Some(process) {
            true => Ok((process.pid, text)),
            false => Err("its process has just ended".to_owned()),
        }
    }

    fn file(&mut self, file: &DeclaredFile, accounts: &Accounts, budget_bytes: &mut u64) -> Vec<Setting> {
        let path = file.path.to_string_lossy();
        let found = stat(self.root.path(&file.path));
        let applied = |of: &dyn Fn(&Stat) -> String| match &found {
            Ok(stat) => Applied::Value(of(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Applied::Missing,
            Err(errno) => Applied::Unknown(std::io::Error::from(*errno).to_string()),
        };
        let is_number = |text: &str| text.parse::<u32>().is_ok();
        let mut settings = Vec::new();
        let mut declare = |what: &str, requested: &Option<String>, applied: &dyn Fn(&str) -> Applied| {
            let Some(requested) = requested else { return };
            settings.push(Setting {
                name: format!("{what} of {path}"),
                requested: requested.clone(),
                applied: applied(requested),
                step: format!("see what changed it: stat {0}; dpkg -S {0} || rpm -qf {0}", quoted(&path)),
            });
        };
        declare("mode", &file.mode, &|_| applied(&|stat| format!("{:04o}", stat.st_mode & 0o7777)));
        declare("owner", &file.owner, &|wanted| {
            applied(&|stat| if is_number(wanted) { stat.st_uid.to_string() } else { accounts.user(stat.st_uid) })
        });
        declare("group", &file.group, &|wanted| {
            applied(&|stat| if is_number(wanted) { stat.st_gid.to_string() } else { accounts.group(stat.st_gid) })
        });
        if file.sha256.is_some() {
            let hash = self.hash(&file.path, budget_bytes);
            declare("sha256", &file.sha256, &|_| hash.clone());
        }
        settings
    }

    fn hash(&mut self, path: &Path, budget_bytes: &mut u64) -> Applied {
        let key = path.to_string_lossy().into_owned();
        let (file, stat) = match open_regular(&self.root.path(path), OFlags::empty()) {
            Ok(Found::File(file, stat)) => (file, stat),
            Ok(Found::Other(_)) => return Applied::Unknown("it is no regular file".to_owned()),
            Err(Errno::NOENT | Errno::NOTDIR) => return Applied::Missing,
            Err(errno) => return Applied::Unknown(std::io::Error::from(errno).to_string()),
        };
        let of = version(&stat);
        if let Some(known) = self.hashes.get(&key).filter(|known| known.of == of) {
            return Applied::Value(known.sha256.clone());
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if size_bytes > HASHED_PER_RUN_BYTES_MAX {
            let bound = muster_common::units::human_bytes(HASHED_PER_RUN_BYTES_MAX);
            return Applied::Unknown(format!("it is larger than {bound}, the bound for hashing"));
        }
        if size_bytes > *budget_bytes {
            return Applied::Unknown("its turn to be hashed comes in a later run".to_owned());
        }
        *budget_bytes -= size_bytes;
        match sha256(file, size_bytes) {
            Ok(sha256) => {
                self.hashes.insert(key, Hashed { of, sha256: sha256.clone() });
                Applied::Value(sha256)
            }
            Err(error) => Applied::Unknown(error.to_string()),
        }
    }
}

impl Probe for BaselineProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        let settings = self.settings(context);
        let mut judgement = self.judge.judge(&settings, context.now);
        if let Some(unknown) = &mut judgement.unknown
            && unknown.why.contains("ermission denied")
        {
            unknown.way_out = Some("give the agent CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE".to_owned());
        }
        judgement
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        let (_, source) = self.unit.as_ref().filter(|_| !self.baseline.unit.is_empty())?;
        source.as_ref().map(|source| source.mailbox.bell())
    }

    fn save(&self) -> Option<Remembered> {
        Remembered::of((&self.judge, &self.hashes))
    }

    fn restore(&mut self, saved: Remembered) {
        let Ok((judge, hashes)) = saved.read::<(BaselineJudge, BTreeMap<String, Hashed>)>() else {
            return;
        };
        let declared: BTreeSet<String> =
            self.baseline.files.iter().map(|file| file.path.to_string_lossy().into_owned()).collect();
        self.judge = judge;
        self.hashes = hashes.into_iter().filter(|(path, _)| declared.contains(path)).collect();
    }
}

fn version(stat: &Stat) -> Version {
    let nanos = |seconds: i64, nanos: u64| {
        seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(nanos).unwrap_or(0))
    };
    let modified = nanos(stat.st_mtime, stat.st_mtime_nsec);
    Version(stat.st_dev, stat.st_ino, stat.st_size, modified, nanos(stat.st_ctime, stat.st_ctime_nsec))
}

/// Of at most `size_bytes`: a file that grows meanwhile has another version in the next run.
fn sha256(file: File, size_bytes: u64) -> std::io::Result<String> {
    let mut file = file.take(size_bytes);
    let mut hasher = Sha256::new();
    let mut chunk = vec![0u8; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => hasher.update(chunk.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read_some(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SYSCTL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
