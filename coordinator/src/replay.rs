//! `muster-coordinator replay BUNDLE`: feeds the facts of a bundle to the rules again. Without another policy it tells
//! whether they conclude the same, byte for byte; with one, what that would have paged.
//!
//! Reads a bundle on one thread and decides on another, so that a bundle of any length fits into memory. The rules are the
//! slower of the two, so that all else is the reader's: it frees what it decoded, too. Needs no coordinator, no key and no
//! secret; writes nothing but its answer.

use crate::bundle::{BundleError, Manifest, Reader};
use crate::config::parse_policy;
use anyhow::Context;
use clap::{Args, ValueEnum};
use muster_common::config::ConfigErrors;
use muster_coordinator_core::entry::{Entry, EntryBody, Fact};
use muster_coordinator_core::policy::{Policy, RULES_VERSION};
use muster_coordinator_core::replay::{Counts, Divergence, Verifier, WhatIf, WhatIfError, WhatIfRun};
use muster_coordinator_core::state::State;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

/// Entries handed over at once: many for one wake of a thread, and few enough that they are still close to the processor.
const BATCH_ENTRIES: usize = 128;
/// Batches on their way. Overflow rule: the reader waits.
const BATCHES_MAX: usize = 8;
/// Lines of one list in the answer for people; JSON has them all.
const LINES_MAX: usize = 50;
/// Bytes of an entry shown for people.
const SHOWN_BYTES_MAX: usize = 2_000;

/// What is asked.
#[derive(Debug, Args)]
pub struct ReplayCommand {
    /// The bundle, as musterctl incidents export --bundle made it
    bundle: PathBuf,
    /// Compare with what the policy of this coordinator config would have paged; keys and secrets in it are not read
    #[arg(long, value_name = "CONFIG")]
    policy: Option<PathBuf>,
    /// Output for people or for programs
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Output for people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people; not to be parsed.
    Text,
    /// One object.
    Json,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The config has mistakes.
    #[error("the policy has mistakes")]
    Config(Box<ConfigErrors>),
    /// Everything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// The whole answer.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    bundle: &'a Manifest,
    counts: Counts,
    /// Versions of the rules that wrote the journal, and of this program.
    rules_versions: BTreeSet<u32>,
    own_rules_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    identical: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<&'a Divergence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    what_if: Option<&'a WhatIf>,
    /// What is not claimed.
    not_claimed: Vec<String>,
}

/// Replays and prints. Exit status 0: an answer, and where no other policy was given, the same conclusions; 1: others.
pub fn run(command: &ReplayCommand, out: &mut dyn Write) -> Result<ExitCode, ReplayError> {
    let policy = command.policy.as_deref().map(read_policy).transpose()?;
    let file = File::open(&command.bundle).with_context(|| format!("cannot read {}", command.bundle.display()))?;
    let mut reader = Reader::open(file).with_context(|| format!("{}", command.bundle.display()))?;
    let state = reader.take_state().unwrap_or_else(State::genesis);
    let mut versions = BTreeSet::from([state.policy().rules_version]);
    if state.head_index() == 0 {
        versions.clear();
    }
    let manifest = reader.manifest().clone();
    let (batches, counts) = read_beside(reader)?;
    let mut note = |entry: &Entry| {
        if let EntryBody::Fact(Fact::PolicyLoaded { policy }) = &entry.body {
            versions.insert(policy.rules_version);
        }
    };
    let outcome = match policy {
        None => Outcome::Verified(verify(state, &batches, &mut note)),
        Some(policy) => {
            let pages_nobody = policy.receivers.is_empty();
            Outcome::Compared { found: compare(state, policy, &batches, &mut note)?, pages_nobody }
        }
    };
    // What a damaged bundle seems to conclude is nobody's conclusion: its end is waited for.
    let Ok(()) = batches.each(|batch| {
        batch.iter().for_each(&mut note);
        Ok::<_, std::convert::Infallible>(())
    });
    let counts = counts.join().map_err(|_| anyhow::anyhow!("the bundle's reader panicked"))?;
    let counts = counts.with_context(|| format!("{}", command.bundle.display()))?;
    let answer = answer(&manifest, counts, versions, &outcome);
    match command.format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &answer).context("cannot print the answer")?;
            writeln!(out).context("cannot print the answer")?;
        }
        Format::Text => text(&answer, out).context("cannot print the answer")?,
    }
    Ok(if answer.identical == Some(false) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read_policy(path: &Path) -> Result<Policy, ReplayError> {
    let text = muster_common::config::read_file(path)
        .with_context(|| format!("cannot read {}: name a coordinator's config with --policy", path.display()))?;
    parse_policy(&path.display().to_string(), &text).map_err(|errors| ReplayError::Config(Box::new(errors)))
}

enum Outcome {
    Verified(Result<(), Box<Divergence>>),
    Compared {
        found: WhatIf,
        /// The policy has no receiver.
        pages_nobody: bool,
    },
}

type Reading = std::thread::JoinHandle<Result<Counts, BundleError>>;

/// What the reader has decoded.
struct Batches {
    decoded: Receiver<Vec<Entry>>,
    /// Back to the reader: it made these entries, and it has the time to free them. Never more than were on their way.
    spent: Sender<Vec<Entry>>,
}

impl Batches {
    /// Looks at all that come, to the first error.
    fn each<E>(&self, mut look: impl FnMut(&mut Vec<Entry>) -> Result<(), E>) -> Result<(), E> {
        for mut batch in &self.decoded {
            look(&mut batch)?;
            // A reader that is done takes nothing back.
            drop(self.spent.send(batch));
        }
        Ok(())
    }
}

/// Unpacks and decodes on a thread of its own.
fn read_beside(mut reader: Reader<File>) -> anyhow::Result<(Batches, Reading)> {
    let (sender, decoded) = sync_channel(BATCHES_MAX);
    let (spent, done) = channel::<Vec<Entry>>();
    let read = move || {
        let mut batch = Vec::with_capacity(BATCH_ENTRIES);
        loop {
            let next = reader.next_entry()?;
            let over = next.is_none();
            batch.extend(next);
            if over || batch.len() >= BATCH_ENTRIES {
                let room = done.try_recv().unwrap_or_else(|_| Vec::with_capacity(BATCH_ENTRIES));
                // Nobody waits for the rest: it is read to its end all the same, for its proof.
                drop(sender.send(std::mem::replace(&mut batch, room)));
                batch.clear();
            }
            if over {
                return Ok(reader.counts());
            }
        }
    };
    let thread = std::thread::Builder::new().name("bundle".to_owned()).spawn(read);
    Ok((Batches { decoded, spent }, thread.context("cannot start a thread")?))
}

fn verify(state: State, batches: &Batches, note: &mut dyn FnMut(&Entry)) -> Result<(), Box<Divergence>> {
    let mut verifier = Verifier::new(state);
    batches.each(|batch| {
        batch.iter().try_for_each(|entry| {
            note(entry);
            verifier.next(entry)
        })
    })?;
    verifier.finish().map(drop)
}

fn compare(state: State, policy: Policy, batches: &Batches, note: &mut dyn FnMut(&Entry)) -> anyhow::Result<WhatIf> {
    let mut run = WhatIfRun::new(state, policy)?;
    batches.each(|batch| {
        batch.drain(..).try_for_each(|entry| {
            note(&entry);
            run.next(entry)
        })?;
        run.give_back(batch);
        Ok::<_, WhatIfError>(())
    })?;
    Ok(run.finish())
}

fn answer<'a>(
    manifest: &'a Manifest,
    counts: Counts,
    rules_versions: BTreeSet<u32>,
    outcome: &'a Outcome,
) -> Answer<'a> {
    let (mut identical, mut divergence, mut what_if) = (None, None, None);
    let mut not_claimed = manifest.missing.clone();
    match outcome {
        Outcome::Verified(verified) => {
            identical = Some(verified.is_ok());
            divergence = verified.as_ref().err().map(Box::as_ref);
            if rules_versions.iter().any(|version| *version != RULES_VERSION) {
                not_claimed.push(format!(
                    "the same conclusions: the journal was written under rules version {}, this program has {RULES_VERSION}; only equal versions conclude the same",
                    join(&rules_versions)
                ));
            }
        }
        Outcome::Compared { found, pages_nobody } => {
            what_if = Some(found);
            if *pages_nobody {
                let text = "who would have been paged: the other policy has no receiver; give it [[receiver.…]] tables";
                not_claimed.push(text.to_owned());
            }
            not_claimed.extend(found.unsure.iter().cloned());
            not_claimed
                .push("what the other policy would have made of heartbeats: they are not in the journal".to_owned());
            not_claimed.push(
                "what people would have done, had they been paged otherwise: what they did is fed as it was".to_owned(),
            );
        }
    }
    let own_rules_version = RULES_VERSION;
    Answer { bundle: manifest, counts, rules_versions, own_rules_version, identical, divergence, what_if, not_claimed }
}

fn join(versions: &BTreeSet<u32>) -> String {
    versions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn text(answer: &Answer<'_>, out: &mut dyn Write) -> std::io::Result<()> {
    let Manifest {
        fleet, coordinator, coordinator_version, first_index, last_index, first_at, last_at, incident, ..
    } = answer.bundle;
    // A journal that is here from its first entry on begins with nothing.
    let from = if *first_index <= 1 { "the beginning".to_owned() } else { first_at.to_string() };
    let about = incident.as_ref().map(|incident| format!(" of {}", plain(incident))).unwrap_or_default();
    let (fleet, coordinator, version) = (plain(fleet), plain(coordinator), plain(coordinator_version));
    writeln!(
        out,
        "bundle{about}, fleet {fleet}: entries {first_index} to {last_index}, {from} to {last_at}, made by {coordinator} ({version})"
    )?;
    let Counts { facts, deadlines, conclusions } = answer.counts;
    match (answer.identical, answer.divergence, answer.what_if) {
        (Some(true), ..) => writeln!(
            out,
            "identical: {facts} facts give the {deadlines} deadlines and {conclusions} conclusions of the journal again, byte for byte"
        )?,
        (_, Some(divergence), _) => diverged(divergence, out)?,
        (.., Some(what_if)) => differences(what_if, facts, out)?,
        _ => {}
    }
    list(out, "not claimed", &answer.not_claimed, |line| plain(line))
}

fn diverged(divergence: &Divergence, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(
        out,
        "different: entry {} is the first that the rules of this program conclude otherwise",
        divergence.index
    )?;
    for (what, entry) in [("recorded", &divergence.recorded), ("replayed", &divergence.replayed)] {
        let shown = match entry {
            Some(entry) => serde_json::to_string(entry).unwrap_or_else(|error| error.to_string()),
            None => "nothing".to_owned(),
        };
        writeln!(out, "  {what}: {}", plain(&muster_common::limits::clip(&shown, SHOWN_BYTES_MAX)))?;
    }
    Ok(())
}

fn differences(what_if: &WhatIf, facts: u64, out: &mut dyn Write) -> std::io::Result<()> {
    let WhatIf { added, removed, moved, undecided, incidents, unmatched, .. } = what_if;
    if what_if.is_same() {
        writeln!(out, "same: under the other policy {facts} facts page and open the same")?;
    } else {
        writeln!(
            out,
            "different: of {facts} facts the other policy makes {} more pages, {} fewer, {} at another time; {} incidents differ",
            added.len(),
            removed.len(),
            moved.len(),
            incidents.len()
        )?;
    }
    let told = |told: &muster_coordinator_core::replay::Told| {
        let (at, severity, reason, title) = (told.at, told.severity, told.reason, plain(&told.title));
        format!(
            "{at}  {severity} {reason} to {}: {title} [{}#{}]",
            plain(&told.receiver),
            plain(&told.incident.cause),
            told.incident.generation
        )
    };
    list(out, "pages added", added, told)?;
    list(out, "pages removed", removed, told)?;
    list(out, "pages moved", moved, |(page, to)| format!("{} -> {to}", told(page)))?;
    list(
        out,
        "pages not claimed, since the journal ends or somebody answers before it is decided",
        undecided,
        |(page, until)| format!("{}; looked at again {until}", told(page)),
    )?;
    list(out, "incidents that differ", incidents, |differ| {
        let course = |course: &Option<muster_coordinator_core::replay::Course>| match course {
            None => "not opened".to_owned(),
            Some(course) => {
                let end = course.resolved.map_or_else(|| "still open".to_owned(), |at| format!("over {at}"));
                format!("{} {} from {}, {end}", course.severity, course.reason, course.opened)
            }
        };
        let key = &differ.incident;
        format!(
            "{}#{}: {} -> {}",
            plain(&key.cause),
            key.generation,
            course(&differ.recorded),
            course(&differ.replayed)
        )
    })?;
    list(out, "what people did that matches nothing", unmatched, |fact| {
        let key = &fact.incident;
        format!(
            "{}  entry {}: {} by {} about {}#{}",
            fact.at,
            fact.index,
            fact.action,
            plain(&fact.by),
            plain(&key.cause),
            key.generation
        )
    })
}

fn list<T>(out: &mut dyn Write, heading: &str, items: &[T], line: impl Fn(&T) -> String) -> std::io::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(out, "{heading} ({}):", items.len())?;
    for item in items.iter().take(LINES_MAX) {
        writeln!(out, "  {}", line(item))?;
    }
    match items.len().saturating_sub(LINES_MAX) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more: --format json has them all"),
    }
}

/// Others' words on one line of a terminal.
fn plain(words: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    words.chars().map(|c| if hidden(c) { '?' } else { c }).collect()
}
