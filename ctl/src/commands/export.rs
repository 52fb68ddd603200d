//! `incidents export`: the post-incident note, or the bundle for a replay. What is written to a file is whole or not
//! there at all.

use crate::args::Format;
use crate::connect::Channel;
use crate::error::CtlError;
use crate::render::{Out, clean, clean_lines};
use muster_common::units::human_bytes;
use muster_proto::v1::incident_service_client::IncidentServiceClient;
use muster_proto::v1::{ExportBundleRequest, ExportFormat, ExportIncidentRequest};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of one chunk of a bundle, and more than any note has.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

pub(super) async fn note(channel: Channel, out: &mut Out, id: String, output: Option<PathBuf>) -> Result<(), CtlError> {
    let format = if out.format() == Format::Json { ExportFormat::Json } else { ExportFormat::Markdown };
    let request = ExportIncidentRequest { id: id.clone(), format: format.into() };
    let mut client = IncidentServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let text = client.export_incident(request).await?.into_inner().text;
    match output {
        Some(path) => {
            let mut file = Target::open(&path)?;
            file.write(text.as_bytes())?;
            written(out, &id, &path, file.done()?, "")
        }
        // Lines of strangers on a terminal; in a file or a pipe they stay as they are.
        None if out.is_terminal() => Ok(out.text(&clean_lines(&text))?),
        None => Ok(out.text(&text)?),
    }
}

pub(super) async fn bundle(
    channel: Channel,
    out: &mut Out,
    id: String,
    output: Option<PathBuf>,
) -> Result<(), CtlError> {
    let path = output.ok_or_else(|| CtlError::Usage("a bundle goes to a file: give -o FILE".to_owned()))?;
    let mut client = IncidentServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut chunks = client.export_bundle(ExportBundleRequest { id: id.clone() }).await?.into_inner();
    let mut file = Target::open(&path)?;
    while let Some(chunk) = chunks.message().await? {
        file.write(&chunk.chunk)?;
    }
    let next = format!(
        ": muster-coordinator replay {} --policy FILE tells what another policy would have done",
        clean(&path.display().to_string())
    );
    written(out, &id, &path, file.done()?, &next)
}

fn written(out: &mut Out, id: &str, path: &Path, bytes: u64, next: &str) -> Result<(), CtlError> {
    let file = path.display().to_string();
    if out.is_json() {
        return Ok(out.json(&serde_json::json!({ "id": id, "file": file, "bytes": bytes }))?);
    }
    Ok(out.line(&format!("{} written, {}{next}", clean(&file), human_bytes(bytes)))?)
}

/// A file that appears under its name once it is whole. What it holds is for its owner.
struct Target {
    path: PathBuf,
    part: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl Target {
    fn open(path: &Path) -> Result<Self, CtlError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part);
        let file = file.map_err(|source| CtlError::Write { path: part.clone(), source })?;
        Ok(Self { path: path.to_owned(), part, file: Some(file), bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CtlError> {
        let failed = |source| CtlError::Write { path: self.part.clone(), source };
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes)).map_err(failed)?;
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn done(mut self) -> Result<u64, CtlError> {
        let failed = |source| CtlError::Write { path: self.path.clone(), source };
        if let Some(file) = self.file.take() {
            file.sync_all().map_err(failed)?;
            std::fs::rename(&self.part, &self.path).map_err(failed)?;
        }
        Ok(self.bytes)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Half a file helps nobody.
        if self.file.take().is_some() {
            std::fs::remove_file(&self.part).ok();
        }
    }
}
