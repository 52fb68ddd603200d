//! Reads a bundle of another host. It may have been changed by anybody: nothing of it is unpacked to disk, nothing is
//! believed before it is checked, and what it says is printed escaped.

use super::store::{UNPACKED_BYTES_MAX, decompress};
use super::{FORMAT_VERSION, MANIFEST, Manifest, REPORT_EXACT, SavedReport};
use crate::doctor::report::Report;
use crate::senses::regular::{Found, open_regular};
use muster_agent_core::bundle::archive::{ArchiveError, unpack};
use muster_common::config::{did_you_mean, nearest};
use rustix::fs::OFlags;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a bundle's file. Compressed text is smaller than the text.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Why a bundle is not read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file itself.
    #[error("cannot read the bundle")]
    Read(#[from] io::Error),
    /// Not what was asked for.
    #[error("the bundle is no regular file")]
    NotAFile,
    /// Larger than any.
    #[error("the bundle has more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// Cut, damaged, or no gzip at all.
    #[error("the file is no bundle, or it is cut short or damaged")]
    Compressed(#[source] io::Error),
    /// More than it could hold.
    #[error("the bundle unpacks to more than {UNPACKED_BYTES_MAX} bytes, so `muster-agent bundle` did not write it")]
    Bomb,
    /// The archive.
    #[error("the bundle cannot be used")]
    Archive(#[from] ArchiveError),
    /// A file of it.
    #[error("the bundle has no {0}; look at what it has with --list, at one with --show NAME")]
    Lacks(String),
    /// What the bundle itself says is not there.
    #[error("{0} is not in the bundle: {1}")]
    NotThere(String, String),
    /// A file of it that is damaged, or of another version.
    #[error("{name} in the bundle is not what this version writes; it may be of a newer one")]
    Form {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A later form.
    #[error("the bundle is of format {0}, this version knows {FORMAT_VERSION}; use a newer muster-agent")]
    TooNew(u32),
}

/// A bundle in memory.
#[derive(Debug)]
pub struct Opened {
    manifest: Manifest,
    archive: Vec<u8>,
}

impl Opened {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, OpenError> {
        let file = match open_regular(path, OFlags::empty()).map_err(io::Error::from)? {
            Found::File(file, _) => file,
            Found::Other(_) => return Err(OpenError::NotAFile),
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES_MAX) {
            return Err(OpenError::TooLarge);
        }
        Self::from_bytes(&bytes)
    }

    /// Reads its bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        let archive = decompress(bytes).map_err(OpenError::Compressed)?.ok_or(OpenError::Bomb)?;
        let text = content(&archive, MANIFEST)?;
        // The version first: the rest of a newer manifest may have another form.
        let version: Version = json(text, MANIFEST)?;
        if version.format_version > FORMAT_VERSION {
            return Err(OpenError::TooNew(version.format_version));
        }
        let manifest = json(text, MANIFEST)?;
        Ok(Self { manifest, archive })
    }

    /// Where it is from.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The report of that host.
    pub fn report(&self) -> Result<Report, OpenError> {
        let saved: SavedReport = json(content(&self.archive, REPORT_EXACT)?, REPORT_EXACT)?;
        Ok(saved.into_report())
    }

    /// One file of it.
    pub fn item(&self, name: &str) -> Result<&[u8], OpenError> {
        content(&self.archive, name).map_err(|error| {
            let why = self.manifest.missing.iter().find(|missing| missing.name == name);
            why.map_or(error, |missing| OpenError::NotThere(name.to_owned(), missing.why.clone()))
        })
    }
}

#[derive(serde::Deserialize)]
struct Version {
    format_version: u32,
}

fn content<'a>(archive: &'a [u8], name: &str) -> Result<&'a [u8], OpenError> {
    let files = unpack(archive)?;
    let found = files.iter().find(|(known, _)| *known == name);
    found.map(|(_, content)| *content).ok_or_else(|| {
        let meant = nearest(name, files.iter().map(|(known, _)| *known));
        OpenError::Lacks(format!("{name:?}{}", did_you_mean(meant.as_deref())))
    })
}

fn json<T: serde::de::DeserializeOwned>(text: &[u8], name: &'static str) -> Result<T, OpenError> {
    serde_json::from_slice(text).map_err(|source| OpenError::Form { name, source })
}

#[cfg(test)]
mod tests {
    use super::super::store::compress;
    use super::*;
    use muster_agent_core::bundle::archive::pack;
    use proptest::prelude::*;

    const GOOD: &str = r#"{"format_version":1,"host":"web-1","time":"2026-01-02T03:04:05Z","agent_version":"0.1.0",
        "kernel":"","os":"","boot_id":"","uptime_s":1,"since_s":1,"uid":0,"items":[],"missing":[]}"#;
    const REPORT: &str = r#"{"host":"web-1","findings":[],"stories":[],"unknown":[],"probes":[],"notes":["a note"]}"#;

    fn bundle(files: &[(&str, &str)]) -> Vec<u8> {
        compress(&pack(files.iter().map(|(name, text)| (*name, text.as_bytes())), 0)).unwrap()
    }

    fn why(bytes: &[u8]) -> String {
        match Opened::from_bytes(bytes).and_then(|opened| opened.report()) {
            Ok(report) => format!("read: {}", report.host),
            Err(error) => muster_common::chain::Chain(&error).to_string(),
        }
    }

    #[test]
    fn each_kind_of_damage_is_told() {
        let good = bundle(&[(MANIFEST, GOOD), (REPORT_EXACT, REPORT)]);
        assert_eq!(why(&good), "read: web-1");
        assert!(why(&good[..good.len() - 9]).contains("cut short or damaged"));
        assert!(why(b"").contains("cut short or damaged"));
        assert!(why(b"[agent]\n").contains("is no bundle"));
        let mut flipped = good.clone();
        let last = flipped.len() - 5;
        flipped[last] ^= 1;
        assert!(why(&flipped).contains("damaged"), "{}", why(&flipped));
        assert!(why(&bundle(&[(REPORT_EXACT, REPORT)])).contains("has no \"manifest.json\""));
        assert!(why(&bundle(&[(MANIFEST, GOOD)])).contains("has no \"report-exact.json\""));
        assert!(why(&bundle(&[(MANIFEST, "{}"), (REPORT_EXACT, REPORT)])).contains("manifest.json"));
        assert!(why(&bundle(&[(MANIFEST, GOOD), (REPORT_EXACT, "[")])).contains("report-exact.json"));
        let newer = GOOD.replace("\"format_version\":1", "\"format_version\":2");
        assert!(why(&bundle(&[(MANIFEST, &newer)])).contains("use a newer muster-agent"));
        assert!(why(&compress(&vec![0; UNPACKED_BYTES_MAX + 1]).unwrap()).contains("did not write it"));
    }

    #[test]
    fn a_story_that_names_nothing_is_printed_without_harm() {
        let story = r#"{"cause":7,"links":[{"finding":9,"relation":"symptom","grade":"likely"}],"severity":"sev2",
            "sentence":"x","standing":[],"unknown":[],"next_steps":[]}"#;
        let report = REPORT.replace("\"stories\":[]", &format!("\"stories\":[{story}]"));
        let opened = Opened::from_bytes(&bundle(&[(MANIFEST, GOOD), (REPORT_EXACT, &report)])).unwrap();
        let report = opened.report().unwrap();
        let mut out = Vec::new();
        crate::doctor::text::write(&mut out, &report, crate::doctor::text::Style::default()).unwrap();
        assert!(report.to_json().contains("diagnoses"));
        assert!(report.only("host").findings.is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), text in "\\PC{0,200}") {
            let _ = why(&bytes);
            let _ = why(&bundle(&[(MANIFEST, &text)]));
            let _ = why(&bundle(&[(MANIFEST, GOOD), (REPORT_EXACT, &text)]));
        }

        #[test]
        fn no_damage_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), end in any::<prop::sample::Index>()) {
            let mut bytes = bundle(&[(MANIFEST, GOOD), (REPORT_EXACT, REPORT)]);
            let place = at.index(bytes.len());
            bytes[place] = byte;
            bytes.truncate(end.index(bytes.len()) + 1);
            let _ = why(&bytes);
        }
    }
}
