//! The deep check: `integrity_check` on a private copy, on a thread of its own, rarely.
//!
//! Must never block a run, and never more than one at a time: they share a disk.

use super::check::Pass;
use super::copy::{self, CopyError, Limits};
use super::{Ground, SqliteProbe};
use crate::sandbox::{self, SandboxError, SandboxState};
use muster_agent_core::clock::Now;
use muster_agent_core::sqlite::damage::Damage;
use muster_agent_core::sqlite::state::Token;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Wait before a deep check that failed is tried again.
const DEEP_RETRY: Duration = Duration::from_secs(10 * 60);

impl SqliteProbe {
    /// Starts a deep check on its own restricted thread when one is due.
    pub(super) fn start_deep(&mut self, path: &Path, token: &Token, now: &Now, one_shot: bool) {
        let Some(scratch) = self.options.scratch_dir.clone().filter(|_| !one_shot && self.deep.is_none()) else {
            return;
        };
        let old = |at: Option<u64>, age| at.is_none_or(|at| at > now.boottime_ms || now.since(at) >= age);
        // Damage that was found is looked for again once somebody changed the file.
        let repaired = self.memory.deep_damaged && self.deep_token.as_ref() != Some(token);
        let again = repaired || !self.deep_suspicion.is_empty();
        let due = again || old(self.memory.deep_boottime_ms, self.options.deep_interval);
        if !due || !old(self.deep_tried_boottime_ms, DEEP_RETRY) {
            return;
        }
        let Some(turn) = DeepTurn::take() else { return };
        self.deep_tried_boottime_ms = Some(now.boottime_ms);
        self.deep_token = Some(token.clone());
        let limits =
            Limits { bytes_max: self.options.deep_bytes_max, time_max: self.options.deep_time_max, integrity: true };
        let path = path.to_owned();
        let work = move |sandbox: Result<SandboxState, SandboxError>| {
            let _until_the_end = turn;
            if !Ground::new(sandbox, None).allows(&path) {
                return Err(CopyError::Scratch("the thread could not be restricted".to_owned()));
            }
            copy::check_copy(&path, &scratch, limits)
        };
        let writable = self.options.scratch_dir.iter().cloned().collect();
        match sandbox::spawn_database_thread("sqlite-deep", writable, work) {
            Ok(thread) => {
                "running".clone_into(&mut self.deep_note);
                self.deep = Some(thread);
            }
            Err(error) => self.deep_note = format!("no thread for it: {error}"),
        }
    }

    /// Takes in what a deep check that has ended found.
    pub(super) fn collect_deep(&mut self, now: &Now) {
        let Some(thread) = self.deep.take_if(|thread| thread.is_finished()) else { return };
        match thread.join() {
            Ok(Ok(pass)) if !pass.damage.is_empty() => self.take_in_deep_damage(pass, now),
            Ok(Ok(pass)) if pass.whole => {
                if pass.integrity {
                    "integrity_check of a copy ran to its end".clone_into(&mut self.deep_note);
                    self.memory.deep_boottime_ms = Some(now.boottime_ms);
                    self.memory.deep_damaged = false;
                    self.unconfirmed_count += u64::from(!self.deep_suspicion.is_empty());
                    (self.deep_damage, self.deep_suspicion) = Default::default();
                } else {
                    self.deep_note = format!("not finished: {}", pass.not_covered);
                }
                self.damage = Damage::default();
                self.complete_boottime_ms = Some(now.boottime_ms);
            }
            Ok(Ok(pass)) => self.deep_note = format!("not finished: {}", pass.not_covered),
            Ok(Err(error)) => self.deep_note = format!("not made: {error}"),
            Err(_panic) => "not made: it panicked".clone_into(&mut self.deep_note),
        }
    }

    fn take_in_deep_damage(&mut self, pass: Pass, now: &Now) {
        let known = [&self.damage, &self.deep_damage, &self.deep_suspicion];
        if pass.proven || known.iter().any(|known| pass.damage.overlaps(known)) {
            "a check of a copy found damage".clone_into(&mut self.deep_note);
            self.memory.deep_boottime_ms = Some(now.boottime_ms);
            self.memory.deep_damaged = true;
            self.deep_damage = pass.damage;
            self.deep_suspicion = Damage::default();
        } else {
            "signs of damage in a copy; another copy is checked at once".clone_into(&mut self.deep_note);
            self.deep_suspicion.merge(pass.damage);
            self.deep_tried_boottime_ms = None;
        }
    }
}

/// One deep check at a time in this process: they share a disk.
struct DeepTurn;

static DEEP_RUNNING: AtomicBool = AtomicBool::new(false);

impl DeepTurn {
    fn take() -> Option<Self> {
        (!DEEP_RUNNING.swap(true, Ordering::SeqCst)).then_some(Self)
    }
}

impl Drop for DeepTurn {
    fn drop(&mut self) {
        DEEP_RUNNING.store(false, Ordering::SeqCst);
    }
}
