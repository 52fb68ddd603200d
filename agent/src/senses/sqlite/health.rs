//! What can be wrong with a database that is whole: its log grows or lost what was committed, rows went away with an
//! upgrade, rows refer to nothing.
//!
//! Invariant: what was found stays told until a later look shows that it is over; a look that was not made, or not
//! ended, clears nothing.

use super::content::{ContentReader, Found, Round};
use super::copy::Limits;
use super::files::{Claim, Look};
use super::log::{self, LogLook};
use super::recipe;
use super::{Ground, OneShot, SqliteOptions, health_report as report};
use crate::probe::Context;
use muster_agent_core::clock::Now;
use muster_agent_core::judgement::{Judgement, Problem, Unknown};
use muster_agent_core::sqlite::growth::{self, Growth, GrowthWatch, Sample};
use muster_agent_core::sqlite::header::WalIndex;
use muster_agent_core::sqlite::rows::Rows;
use muster_agent_core::sqlite::state::{FileFacts, State, Token};
use muster_agent_core::sqlite::wal::{Chain, Loss, LossWatch, Reading};
use muster_common::evidence::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Bytes of a log that are walked in one run: a few milliseconds.
const WALK_BYTES_MAX: u64 = 4 << 20;
/// The same in `doctor`, and when a first look found something.
const ONE_SHOT_WALK_BYTES_MAX: u64 = 64 << 20;
/// Longest pass over the content in `doctor`: rows of named tables are asked for, so it takes more than a glance.
const ONE_SHOT_BOUND: Duration = Duration::from_millis(500);

/// What `doctor` may spend on the content.
const fn one_shot_bound(options: &SqliteOptions) -> Duration {
    match &options.one_shot {
        OneShot::Deep(_, bound) => *bound,
        OneShot::Moment | OneShot::Glance(_) => ONE_SHOT_BOUND,
    }
}

/// What is remembered across a restart of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    loss: Option<Loss>,
    rows: Rows,
    user_version: Option<i64>,
    grows: bool,
}

/// The state of one database's health.
#[derive(Debug, Default)]
pub(super) struct Health {
    memory: Memory,
    loss: LossWatch,
    chain: Option<Chain>,
    /// What was there when the log was last looked at, and whether there was nothing left to walk.
    log_seen: Option<(Option<FileFacts>, Option<WalIndex>, bool)>,
    walked_boottime_ms: Option<u64>,
    watch: GrowthWatch,
    growth: Option<Growth>,
    growth_watching: bool,
    round: Round,
    /// The last pass over the content: what was there, and when.
    content: Option<(Token, u64)>,
    found: Option<Found>,
    dangling: Option<BTreeMap<(String, String), u64>>,
    left_out: BTreeMap<String, String>,
    /// Why the present run got no answer.
    note: String,
    changes: Vec<Problem>,
}

impl Health {
    pub(super) fn save(&self) -> Memory {
        Memory { loss: self.loss.loss, ..self.memory.clone() }
    }

    pub(super) fn restore(&mut self, memory: Memory) {
        self.loss.loss = memory.loss;
        self.memory = memory;
    }

    /// A first look found something that a second one has to confirm.
    pub(super) const fn is_pending(&self) -> bool {
        self.loss.is_pending()
    }

    /// Looks at the log, where there is one.
    pub(super) fn look_at_log(
        &mut self,
        path: &Path,
        look: &Look,
        claim: &Claim,
        options: &SqliteOptions,
        context: &Context,
    ) {
        let snapshot = &look.snapshot;
        self.loss.age(&context.now);
        let wal_bytes = snapshot.wal.map_or(0, |wal| wal.size_bytes);
        let max_bytes =
            options.wal_max_bytes.unwrap_or_else(|| growth::default_max_bytes(snapshot.database.size_bytes));
        let large = growth::may_be_too_large(wal_bytes, max_bytes);
        let state = snapshot.state();
        // Without its index nobody has it open, and the next one to open it copies it back.
        if !large || state == State::WalWithoutIndex {
            self.no_growth();
        }
        if snapshot.shm.is_none() || look.remote || !matches!(state, State::LiveWal | State::AtRest) {
            self.log_seen = None;
            return;
        }
        let known = self.log_seen.is_some_and(|(wal, index, _)| (wal, index) == (snapshot.wal, snapshot.wal_index));
        let complete = self.log_seen.is_some_and(|(_, _, complete)| complete);
        let walk_due = self.walk_is_due(options, context);
        if known && complete && !large && !walk_due && !context.one_shot {
            return;
        }
        // A log that moves is walked rarely, one that rests once.
        let walk_bytes_max = match () {
            () if context.one_shot || self.loss.is_pending() => ONE_SHOT_WALK_BYTES_MAX,
            () if walk_due || (known && !complete) => WALK_BYTES_MAX,
            () => 0,
        };
        if walk_due {
            self.walked_boottime_ms = Some(context.now.boottime_ms);
        }
        // From its start again; a walk that takes many runs ends first.
        if (walk_due && complete) || self.loss.is_pending() {
            self.chain = None;
        }
        let Some(found) = log::look(path, claim, &mut self.chain, walk_bytes_max) else { return };
        self.loss.sample(&found.index, found.reading, snapshot.database, context.one_shot, &context.now);
        let complete = found.walked || found.reading == Reading::Another;
        self.log_seen = Some((snapshot.wal, snapshot.wal_index, complete && !self.loss.is_pending()));
        if large {
            self.look_at_growth(path, look, claim, &found, max_bytes, context);
        }
    }

    fn walk_is_due(&self, options: &SqliteOptions, context: &Context) -> bool {
        let now = &context.now;
        self.walked_boottime_ms.is_none_or(|at| at > now.boottime_ms || now.since(at) >= options.quick_interval)
    }

    fn look_at_growth(
        &mut self,
        path: &Path,
        look: &Look,
        claim: &Claim,
        found: &LogLook,
        max_bytes: u64,
        context: &Context,
    ) {
        let locks = look.snapshot.locks;
        let readers = log::readers(path, claim);
        let in_use = locks.shared.is_some() || readers.iter().any(Option::is_some);
        let index = found.index;
        let sample = Sample { wal_bytes: found.wal_bytes, max_bytes, index, readers, writer: locks.wal_write, in_use };
        let answer = self.watch.sample(sample, context.one_shot, &context.now);
        self.growth_watching = self.watch.is_watching(&context.now);
        self.memory.grows = answer.is_some() || (self.growth_watching && self.memory.grows);
        self.growth = answer;
    }

    fn no_growth(&mut self) {
        self.watch.forget();
        (self.growth, self.growth_watching, self.memory.grows) = (None, false, false);
    }

    /// Looks at the content when it is due; tells why it could not.
    pub(super) fn look_at_content(
        &mut self,
        path: &Path,
        look: &Look,
        claim: &Claim,
        options: &SqliteOptions,
        (context, ground): (&Context, &Ground),
    ) {
        self.note.clear();
        let token = look.snapshot.token();
        if !self.content_is_due(&token, options, context) {
            return;
        }
        let bound = if context.one_shot { one_shot_bound(options) } else { options.quick_bound };
        let bytes_max = options.deep_bytes_max.min(super::RUN_COPY_BYTES_MAX);
        let limits = Limits { bytes_max, time_max: bound, integrity: false };
        let (tables, foreign_keys) = (options.rows.as_slice(), options.foreign_keys);
        let mut round = self.round.clone();
        let mut reader = ContentReader { tables, foreign_keys, round: &mut round, bound };
        match recipe::read(path, look, claim, ground.scratch.as_deref(), limits, &mut reader) {
            Ok(found) => {
                self.round = round;
                self.take_in(path, look, found, options, &context.now);
                self.content = Some((token, context.now.boottime_ms));
            }
            Err(error) => self.note = error.to_string(),
        }
    }

    fn content_is_due(&self, token: &Token, options: &SqliteOptions, context: &Context) -> bool {
        let Some((seen, at)) = &self.content else { return true };
        let more = self.found.as_ref().is_some_and(|found| found.more);
        let waits = context.now.since(*at) < options.quick_interval;
        context.one_shot || more || (seen != token && !waits)
    }

    fn take_in(&mut self, path: &Path, look: &Look, found: Found, options: &SqliteOptions, now: &Now) {
        let inode = look.snapshot.database.inode;
        let change_counter = look.snapshot.header.map_or(0, |header| header.change_counter);
        let user_version = found.facts.user_version;
        if let Some(before) = self.memory.user_version.replace(user_version).filter(|old| *old != user_version) {
            self.changes.push(report::upgraded(path, before, user_version));
        }
        let rows = &mut self.memory.rows;
        rows.keep_only(|name| options.rows.iter().any(|counted| counted.table == name));
        for counted in &options.rows {
            if let Some((count, hash)) = found.counts.get(&counted.table) {
                let version = found.version(inode, change_counter, *hash);
                rows.note(&counted.table, version, *count, counted.min_percent, now);
            }
        }
        if let Some(dangling) = &found.dangling {
            self.dangling = Some(dangling.clone());
            self.left_out.clone_from(&found.left_out);
        }
        self.found = Some(found);
    }

    /// Adds what is known to what the checks say.
    pub(super) fn tell(&mut self, path: &Path, options: &SqliteOptions, judgement: &mut Judgement, context: &Context) {
        let one_shot = context.one_shot;
        self.memory.rows.age(&context.now);
        let rows_lost: Vec<_> = self.memory.rows.lost().collect();
        if self.loss.loss.is_some() || !rows_lost.is_empty() {
            judgement.problems.push(report::rows_lost(path, self.loss.loss.as_ref(), &rows_lost));
        }
        if let Some(growth) = &self.growth {
            judgement.problems.push(report::growth(path, growth));
        }
        if let Some(dangling) = self.dangling.as_ref().filter(|dangling| !dangling.is_empty() && options.foreign_keys) {
            judgement.problems.push(report::foreign_keys(path, dangling));
        }
        judgement.occurrences.append(&mut self.changes);
        judgement.seen =
            report::seen(std::mem::take(&mut judgement.seen), self.found.as_ref(), &self.memory.rows, &self.left_out);
        if let Some(absent) = self.absent(options) {
            judgement.seen.insert("rows_not_counted", Value::Text(format!("there is no table {absent:?}")));
        }
        judgement.unknown = judgement.unknown.take().or_else(|| self.unknown(options, one_shot));
    }

    fn unknown(&self, options: &SqliteOptions, one_shot: bool) -> Option<Unknown> {
        if self.loss.is_pending() {
            let why = "the log seems to lack frames that were committed; a second look has to confirm it";
            return Some(Unknown::new(why, None));
        }
        if self.memory.grows && self.growth.is_none() {
            let why = "the log is beyond its bound again; whether it comes back shows within a minute";
            return Some(Unknown::new(why, None));
        }
        if options.rows.is_empty() && !options.foreign_keys {
            return None;
        }
        if self.dangling.is_none() {
            let why = if self.note.is_empty() { "they are looked at over several runs" } else { &self.note };
            let what = "rows and foreign keys have not been looked at yet";
            return Some(Unknown::new(format!("{what}: {why}"), None));
        }
        // Told to whoever tries the configuration; in the daemon it would keep everything else open.
        let absent = self.absent(options).filter(|_| one_shot)?;
        let why = format!("there is no table {absent:?}, whose rows are to be counted");
        Some(Unknown::new(&why, Some("check `rows` of this database in the agent's configuration")))
    }

    /// A table that is to be counted and never was there.
    fn absent<'a>(&self, options: &'a SqliteOptions) -> Option<&'a str> {
        let known = |table: &str| self.memory.rows.counts().any(|(name, _)| name == table);
        let names = options.rows.iter().map(|counted| counted.table.as_str());
        self.dangling.as_ref()?;
        names.into_iter().find(|table| !known(table) && !self.left_out.contains_key(*table))
    }

    /// Another file lies there, or an empty one: what was found in the old one says nothing about it.
    pub(super) fn another_file(&mut self) {
        self.content = None;
        self.round = Round::default();
        self.dangling = None;
        self.log_seen = None;
    }
}
