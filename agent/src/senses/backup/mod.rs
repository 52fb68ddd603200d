//! Lists the copies of one set, and has new ones looked into.
//!
//! A look may take minutes (a large copy, a slow disk), so it runs on a restricted thread that lives only as long and
//! of which there is one at a time in the process; the lane that lists never waits for it, `doctor` for a moment. Must
//! never write, and never open what is no regular file.

mod examine;
mod list;

use super::HostRoot;
use crate::config::backup::Backup;
use crate::net::Mailbox;
use crate::probe::{Context, Lane, Probe, Remembered};
use examine::{Answer, Turn};
use muster_agent_core::backup::pattern::Pattern;
use muster_agent_core::backup::{BackupJudge, Rules};
use muster_agent_core::judgement::Judgement;
use muster_common::finding::{ProbeKind, SubjectKey};
use muster_common::ids::ServiceName;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long `doctor` waits for the looks.
const ONE_SHOT_WAIT: Duration = Duration::from_millis(500);
/// Copies looked into by one thread.
const LOOKS_MAX: usize = 64;

/// How one set of copies is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOptions {
    /// Where copies are.
    pub pattern: Pattern,
    /// What they are copies of.
    pub source: Option<PathBuf>,
    /// What must be true of them.
    pub rules: Rules,
    /// Look into copies, not only at them.
    pub look_inside: bool,
    /// `doctor --deep`: every look to its end.
    pub deep: bool,
}

impl From<&Backup> for BackupOptions {
    fn from(backup: &Backup) -> Self {
        let rules = Rules {
            pattern: backup.path.as_str().to_owned(),
            fixed: backup.path.is_fixed(),
            source: backup.of.as_ref().map(|path| path.display().to_string()),
            max_age: backup.max_age,
            min_percent: backup.min_percent,
            min_percent_over_time: backup.min_percent_over_time,
            min_bytes: backup.min_bytes,
            keep: backup.keep,
        };
        let (pattern, source) = (backup.path.clone(), backup.of.clone());
        Self { pattern, source, rules, look_inside: backup.look_inside, deep: false }
    }
}

/// The probe of one set of copies.
#[derive(Debug)]
pub struct BackupProbe {
    subject: SubjectKey,
    root: HostRoot,
    options: BackupOptions,
    judge: BackupJudge,
    answers: Option<Receiver<Answer>>,
    /// Rings when a thread has ended.
    ended: Option<Arc<Mailbox<()>>>,
}

impl BackupProbe {
    /// Watches the copies that fit the options' pattern.
    pub fn new(service: ServiceName, options: BackupOptions, root: HostRoot) -> Self {
        let subject = SubjectKey::new(service, ProbeKind::Backup, options.pattern.as_str());
        // Without a bell the answers are taken in by the next run.
        let ended = Mailbox::new().ok();
        Self { subject, root, options, judge: BackupJudge::default(), answers: None, ended }
    }

    const fn one_shot_wait(&self) -> Duration {
        if self.options.deep { examine::LOOK_MAX } else { ONE_SHOT_WAIT }
    }

    /// Takes in what threads have found so far; waits at most so long for the rest.
    fn collect(&mut self, wait: Duration) {
        let Some(answers) = &self.answers else { return };
        let start = Instant::now();
        loop {
            match answers.recv_timeout(wait.saturating_sub(start.elapsed())) {
                Ok(Answer { file, content }) => self.judge.learn(&file, content),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => return,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        self.answers = None;
    }

    fn start_looks(&mut self, one_shot: bool) -> Result<(), &'static str> {
        let mut wanted = self.judge.wants();
        if wanted.is_empty() || self.answers.is_some() {
            return Ok(());
        }
        wanted.truncate(LOOKS_MAX);
        if self.options.deep {
            wanted.iter_mut().for_each(|(_, deep)| *deep = true);
        }
        if !self.options.look_inside {
            for (file, _) in wanted {
                self.judge.learn(&file, examine::from_outside());
            }
            return Ok(());
        }
        let turn = Turn::take().ok_or("copies of another set are being looked into")?;
        let (sender, answers) = channel();
        let root = self.root.clone();
        let ended = self.ended.clone();
        let bound = if one_shot { self.one_shot_wait() } else { examine::LOOK_MAX };
        let work = move |sandbox| {
            examine::all(&root, wanted, sandbox, bound, &sender);
            // Both before the bell: the run that it wakes may want the next look.
            drop(turn);
            drop(sender);
            if let Some(ended) = ended {
                ended.put(());
            }
        };
        crate::sandbox::spawn_database_thread("backup-look", Vec::new(), work)
            .map_err(|_| "no thread could be started")?;
        self.answers = Some(answers);
        Ok(())
    }
}

impl Probe for BackupProbe {
    fn subject(&self) -> &SubjectKey {
        &self.subject
    }

    fn lane(&self) -> Lane {
        Lane::Files
    }

    fn run(&mut self, context: &Context) -> Judgement {
        if let Some(ended) = &self.ended {
            ended.take();
        }
        let listing = list::list(&self.root, &self.options.pattern, self.options.source.as_deref());
        self.judge.note(listing, context.now);
        self.collect(Duration::ZERO);
        let deadline = Instant::now() + self.one_shot_wait();
        let mut waits = self.start_looks(context.one_shot);
        while context.one_shot && waits.is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            waits = self.start_looks(true);
        }
        if context.one_shot {
            self.collect(deadline.saturating_duration_since(Instant::now()));
        }
        let mut judgement = self.judge.judge(&self.options.rules, context.now, context.one_shot);
        if let (Some(unknown), Err(why)) = (&mut judgement.unknown, waits) {
            unknown.why = format!("{}: {why}", unknown.why);
        }
        judgement
    }

    fn wake(&self) -> Option<Arc<OwnedFd>> {
        self.ended.as_ref().filter(|_| self.answers.is_some()).map(|ended| ended.bell())
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
