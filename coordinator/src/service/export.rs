//! `ExportIncident` and `ExportBundle`: what an incident was, as a note for people and as a part of the journal for a replay.

use super::explain::{past, past_status};
use super::status_of;
use super::watch::Watched;
use crate::bundle::{FORMAT_VERSION, KIND, Manifest, WriteError, Writer};
use crate::runtime::{Handle, View};
use crate::store::past::{Beginning, PastError, beginning, state_at};
use crate::store::{Head, JournalStore, StoreError};
use muster_common::chain::Chain;
use muster_common::limits::clip;
use muster_common::time::Timestamp;
use muster_coordinator_core::export::{markdown, note};
use muster_coordinator_core::policy::RULES_VERSION;
use muster_proto::v1::{self, ExportFormat};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// A bundle begins this long before its incident: what changed then is part of the story.
const BEFORE: Duration = Duration::from_secs(3600);
/// A bundle goes on for so long after its incident was resolved.
const AFTER: Duration = Duration::from_secs(15 * 60);
/// Bundles made at once. Overflow rule: RESOURCE_EXHAUSTED.
const BUNDLES_MAX: usize = 2;
/// Bytes of one message.
const CHUNK_BYTES: usize = 64 << 10;
/// Messages on their way to one reader. Overflow rule: the writer waits, up to [`READER_PATIENCE`].
const CHUNKS_MAX: usize = 8;
/// A reader that takes nothing for so long is gone.
const READER_PATIENCE: Duration = Duration::from_secs(60);
/// Entries read at once.
const BATCH_ENTRIES: usize = 1_000;

static BUNDLES: std::sync::LazyLock<Arc<Semaphore>> =
    std::sync::LazyLock::new(|| Arc::new(Semaphore::new(BUNDLES_MAX)));

/// The post-incident note.
pub(super) async fn incident(
    handle: &Handle,
    request: v1::ExportIncidentRequest,
) -> Result<v1::ExportIncidentResponse, Status> {
    let format = ExportFormat::try_from(request.format)
        .map_err(|_| Status::invalid_argument(format!("format has the unknown value {}", request.format)))?;
    let number = request.id.clone();
    let read = move |view: &View<'_>| view.state.incident_by_number(&number).map(|incident| incident.opened);
    let opened = handle.query(read).await.map_err(|error| status_of(&error))?.ok_or_else(|| unknown(&request.id))?;
    // The policy at that time, where the journal still has it; a note without it is better than none.
    let then =
        past(handle, move |store, deadline| state_at(store, opened, deadline).map(|state| state.policy().clone()));
    let then = then.await.ok();
    let number = request.id.clone();
    let read = move |view: &View<'_>| {
        let incident = view.state.incident_by_number(&number)?;
        Some(note(view.state, incident, view.now, then.as_ref()))
    };
    let note = handle.query(read).await.map_err(|error| status_of(&error))?.ok_or_else(|| unknown(&request.id))?;
    let text = match format {
        ExportFormat::Unspecified | ExportFormat::Markdown => markdown(&note),
        ExportFormat::Json => serde_json::to_string_pretty(&note)
            .map_err(|error| Status::internal(format!("the note does not print: {error}")))?,
    };
    Ok(v1::ExportIncidentResponse { text })
}

fn unknown(number: &str) -> Status {
    let number = clip(number, 64);
    Status::not_found(format!(
        "no incident {number:?}: see ListIncidents with include_resolved (musterctl incidents list --all) for those that \
         are kept"
    ))
}

/// What a bundle is made of.
struct Wanted {
    number: String,
    began: Timestamp,
    /// The entry that opened it.
    opened_index: u64,
    resolved: Option<Timestamp>,
    fleet: String,
    coordinator: String,
    now: Timestamp,
    head: Head,
}

/// The bundle, as it is made.
pub(super) async fn bundle(
    handle: &Handle,
    request: v1::ExportBundleRequest,
) -> Result<Watched<v1::ExportBundleResponse>, Status> {
    let id = request.id.clone();
    let read = move |view: &View<'_>| {
        let incident = view.state.incident_by_number(&id)?;
        let wanted = Wanted {
            number: incident.number.clone(),
            began: incident.began.min(incident.opened),
            opened_index: incident.timeline.first().map_or(0, |line| line.index),
            resolved: incident.resolved,
            fleet: view.standing.fleet.to_string(),
            coordinator: view.standing.id.to_string(),
            now: view.now,
            head: view.store.head(),
        };
        Some((wanted, view.store.beside()))
    };
    let found = handle.query(read).await.map_err(|error| status_of(&error))?;
    let (wanted, store) = found.ok_or_else(|| unknown(&request.id))?;
    let store = store.map_err(|error| past_status(&error.into()))?;
    let slot = Arc::clone(&BUNDLES).try_acquire_owned().map_err(|_| {
        Status::resource_exhausted(format!("{BUNDLES_MAX} bundles are being made already: try again in a minute"))
    })?;
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let stop = handle.stopping();
    tokio::task::spawn_blocking(move || {
        let _slot = slot;
        let out = Chunks { sender: sender.clone(), stop, buffer: Vec::with_capacity(CHUNK_BYTES) };
        if let Err(error) = write_bundle(store.as_ref(), &wanted, out) {
            tracing::warn!(incident = wanted.number, error = %Chain(&error), "a bundle was not finished");
            let status = match &error {
                ExportError::Past(error) => past_status(error),
                ExportError::Write(_) => Status::internal(Chain(&error).to_string()),
            };
            // Who does not read any more learns nothing.
            drop(sender.try_send(Err(status)));
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Why a bundle was not finished.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Past(#[from] PastError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl From<StoreError> for ExportError {
    fn from(error: StoreError) -> Self {
        Self::Past(error.into())
    }
}

fn write_bundle(store: &dyn JournalStore, wanted: &Wanted, out: impl Write) -> Result<(), ExportError> {
    let (beginning, missing) = begins(store, wanted)?;
    let last = match wanted.resolved {
        Some(resolved) => store.last_index_at(resolved + AFTER)?.unwrap_or(wanted.head.index).min(wanted.head.index),
        None => wanted.head.index,
    };
    let last = last.max(beginning.at.index);
    let (chain_after, last_at) = match store.entries_from(last, 1)?.first().filter(|stored| stored.index == last) {
        Some(stored) => (stored.hash, stored.decode()?.at),
        None => (beginning.at.hash, beginning.at.at),
    };
    let manifest = Manifest {
        kind: KIND.to_owned(),
        format_version: FORMAT_VERSION,
        coordinator_version: env!("CARGO_PKG_VERSION").to_owned(),
        coordinator: wanted.coordinator.clone(),
        fleet: wanted.fleet.clone(),
        made: wanted.now,
        rules_version: RULES_VERSION,
        incident: Some(wanted.number.clone()),
        state_index: beginning.at.index,
        state_bytes: 0,
        state_sha256: String::new(),
        chain_before: String::new(),
        first_index: beginning.at.index + 1,
        last_index: last,
        first_at: beginning.at.at,
        last_at,
        chain_after: chain_after.to_string(),
        missing,
    };
    let mut writer = Writer::begin(out, manifest, beginning.state.as_deref(), beginning.at.hash)?;
    let mut next = beginning.at.index + 1;
    while next <= last {
        let left = usize::try_from(last - next + 1).unwrap_or(usize::MAX);
        let batch = store.entries_from(next, left.min(BATCH_ENTRIES))?;
        if batch.is_empty() {
            // Retention went on meanwhile.
            return Err(WriteError::NotNext(next).into());
        }
        for stored in &batch {
            writer.push(stored)?;
        }
        next += u64::try_from(batch.len()).unwrap_or(u64::MAX);
    }
    let (mut out, counts) = writer.finish()?;
    out.flush().map_err(WriteError::from)?;
    tracing::info!(incident = wanted.number, facts = counts.facts, entries = counts.entries(), "made a bundle");
    Ok(())
}

/// Where the bundle begins, and what is missing because the journal does not reach back further.
fn begins(store: &dyn JournalStore, wanted: &Wanted) -> Result<(Beginning, Vec<String>), ExportError> {
    let early = store.last_index_at(wanted.began - BEFORE)?.unwrap_or(0);
    if let Some(found) = beginning(store, early)? {
        return Ok((found, Vec::new()));
    }
    let first = store.snapshots()?.into_iter().next();
    let first = first.map(|snapshot| beginning(store, snapshot.index)).transpose()?.flatten();
    let Some(first) = first else { return Err(PastError::TooOld(wanted.head.at).into()) };
    let at = first.at.at;
    let missing = if first.at.index >= wanted.opened_index {
        format!("the journal reaches back to {at}, after {} was opened: what led to it is not here", wanted.number)
    } else {
        format!("the journal reaches back to {at}, less than an hour before {} began", wanted.number)
    };
    Ok((first, vec![missing]))
}

/// Writes into messages of a stream.
struct Chunks {
    sender: mpsc::Sender<Result<v1::ExportBundleResponse, Status>>,
    stop: CancellationToken,
    buffer: Vec<u8>,
}

impl Chunks {
    fn send(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        let message = Ok(v1::ExportBundleResponse { chunk: chunk.into() });
        let sent = tokio::runtime::Handle::current().block_on(async {
            tokio::select! {
                sent = tokio::time::timeout(READER_PATIENCE, self.sender.send(message)) => sent.map(|sent| sent.is_ok()),
                () = self.stop.cancelled() => Ok(false),
            }
        });
        match sent {
            Ok(true) => Ok(()),
            Ok(false) => Err(std::io::Error::new(std::io::ErrorKind::BrokenPipe, "nobody reads it any more")),
            Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the reader takes nothing")),
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let room = CHUNK_BYTES.saturating_sub(self.buffer.len()).min(bytes.len());
        self.buffer.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if self.buffer.len() >= CHUNK_BYTES {
            self.send()?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.send()
    }
}
