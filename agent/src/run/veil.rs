//! Subjects that the agent's own sandbox hides from it (`PrivateTmp=`, `ProtectHome=`, `InaccessiblePaths=`): what it
//! sees there is not the host's, so nothing it could say about them would be true.
//!
//! A mount namespace does not change while the agent runs: asked once, when the probes are planned.

use super::plan::{Means, Planned};
use crate::probe::{Context, Probe};
use crate::senses::disk::MountTable;
use muster_agent_core::judgement::Judgement;
use muster_common::finding::{ProbeKind, SubjectKey};
use std::path::{Path, PathBuf};

/// Stands in the place of a probe whose subject is hidden.
#[derive(Debug)]
struct Hidden {
    subject: SubjectKey,
    path: PathBuf,
}

impl Probe for Hidden {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn run(&mut self, _context: &Context) -> Judgement {
        let path = self.path.display();
        let why = format!("{path} is hidden by the agent's own sandbox: what is there for it is not the host's");
        let way_out = "show it to the agent: `systemctl edit muster-agent`, under [Service] PrivateTmp=no where it is in \
                       /tmp or /var/tmp, else BindReadOnlyPaths= with its folder; then restart the agent";
        Judgement::unknown(why, Some(way_out))
    }
}

/// Puts one that says so in the place of each probe whose subject is hidden.
pub(super) fn over(planned: Vec<Planned>, means: &Means<'_>) -> Vec<Planned> {
    let table = MountTable::new(means.host.clone());
    let now_ms = crate::clock::now().boottime_ms;
    let one = |planned: Planned| {
        let subject = planned.probe.subject();
        match path_of(subject).filter(|path| table.is_hidden(path, now_ms)) {
            Some(path) => Planned { probe: Box::new(Hidden { subject: subject.clone(), path }), ..planned },
            None => planned,
        }
    };
    planned.into_iter().map(one).collect()
}

/// The file, or its deepest folder that is known, of a subject that is one.
fn path_of(subject: &SubjectKey) -> Option<PathBuf> {
    let text = subject.subject.as_str();
    match subject.probe {
        ProbeKind::Health => {
            let (socket, _) = text.strip_prefix("unix:")?.split_once(":/")?;
            Some(PathBuf::from(socket))
        }
        ProbeKind::PidFile
        | ProbeKind::Sqlite
        | ProbeKind::Backup
        | ProbeKind::Log
        | ProbeKind::Lock
        | ProbeKind::Permission => {
            let path = Path::new(text).is_absolute().then_some(text)?;
            let fixed = path
                .find(['*', '?'])
                .and_then(|at| path.get(..at))
                .map_or(path, |fixed| fixed.rsplit_once('/').map_or("/", |(folder, _)| folder));
            Some(PathBuf::from(if fixed.is_empty() { "/" } else { fixed }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::ids::ServiceName;

    #[test]
    fn the_path_of_a_subject() {
        for (probe, text, expected) in [
            (ProbeKind::Backup, "/tmp/bk/*/hub.db.*", Some("/tmp/bk")),
            (ProbeKind::Backup, "/*.bak", Some("/")),
            (ProbeKind::PidFile, "/tmp/a.pid", Some("/tmp/a.pid")),
            (ProbeKind::Health, "unix:/tmp/a.sock:/health", Some("/tmp/a.sock")),
            (ProbeKind::Health, "http://127.0.0.1/", None),
            (ProbeKind::Log, "journal:web.service", None),
            (ProbeKind::Disk, "/tmp", None),
        ] {
            let subject = SubjectKey::new(ServiceName::host(), probe, text);
            assert_eq!(path_of(&subject).as_deref(), expected.map(Path::new), "{text}");
        }
    }
}
