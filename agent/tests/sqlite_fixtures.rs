//! Corrupt databases of the outside world, through the real binary: `doctor` reports every one, none takes long, and
//! not one byte beside them changes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// No image may hold up a diagnosis for longer; the probe's own bounds lie far below.
const TOOK_MS_MAX: u64 = 10_000;
/// So many images there are; fewer would mean that something was not looked at.
const IMAGES_MIN: usize = 31;

/// Every file of a folder with its content, its size and its time of modification.
fn files(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let content = |path: &Path| (std::fs::read(path).unwrap(), path.metadata().unwrap().modified().unwrap());
    paths.map(|path| (path.clone(), content(&path))).collect()
}

/// The verdict of `doctor` on `databases`, as JSON.
fn doctor(databases: &[PathBuf]) -> serde_json::Value {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("agent.toml");
    let enough_memory = "[memory]\napproaching = \"2B\"\ncritical = \"1B\"\n";
    std::fs::write(&config, format!("{enough_memory}[service.images]\nsqlite = {databases:?}\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    let output = command.args(["doctor", "--format", "json", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The entries of a list that are about the database at `path`.
fn about<'a>(report: &'a serde_json::Value, list: &str, path: &Path) -> Vec<&'a serde_json::Value> {
    let entries = report[list].as_array().unwrap().iter();
    entries.filter(|entry| entry["probe"] == "sqlite" && entry["subject"] == path.to_str().unwrap()).collect()
}

fn verify_reported(report: &serde_json::Value, path: &Path) {
    let findings = about(report, "findings", path);
    let reported = findings
        .iter()
        .find(|finding| matches!(finding["reason"].as_str(), Some("sqlite_corrupt" | "sqlite_not_a_database")));
    let reported = reported.unwrap_or_else(|| panic!("{} is not reported: {findings:?}", path.display()));
    assert_eq!(reported["evidence"]["path"], path.to_str().unwrap());
    assert!(!reported["next_steps"].as_array().unwrap().is_empty());
    let probes = about(report, "probes", path);
    assert_eq!(probes.len(), 1, "{}", path.display());
    assert!(probes[0]["took_ms"].as_u64().unwrap() <= TOOK_MS_MAX, "{:?}", probes[0]);
}

#[test]
fn doctor_reports_every_corrupt_image_and_changes_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/corrupt-sqlite");
    let Ok(folder) = folder.canonicalize() else {
        println!("skipped: {} is missing", folder.display());
        return;
    };
    let before = files(&folder);
    let images: Vec<PathBuf> =
        before.keys().filter(|path| path.extension().is_some_and(|e| e == "db")).cloned().collect();
    assert!(images.len() >= IMAGES_MIN, "{} images", images.len());
    let report = doctor(&images);
    assert_eq!(report["verdict"], "critical");
    for image in &images {
        verify_reported(&report, image);
    }
    assert!(files(&folder) == before, "an image changed, or a file beside it appeared or went");
}

#[test]
fn doctor_changes_nothing_where_it_could_write() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/corrupt-sqlite");
    if !source.is_dir() {
        println!("skipped: {} is missing", source.display());
        return;
    }
    // Copies in a folder of our own, some of them with an empty log beside them, as a service leaves them.
    let folder = tempfile::tempdir().unwrap();
    for (number, image) in files(&source).keys().enumerate() {
        let copy = folder.path().join(image.file_name().unwrap());
        std::fs::write(&copy, std::fs::read(image).unwrap()).unwrap();
        if number % 2 == 0 {
            let mut log = copy.into_os_string();
            log.push("-wal");
            std::fs::write(log, "").unwrap();
        }
    }
    let before = files(folder.path());
    let images: Vec<PathBuf> =
        before.keys().filter(|path| path.extension().is_some_and(|e| e == "db")).cloned().collect();
    let report = doctor(&images);
    for image in &images {
        verify_reported(&report, image);
    }
    assert!(files(folder.path()) == before, "a copy changed, or a file beside it appeared or went");
}
