//! The shipped units: `systemd-analyze verify` finds nothing to say, and `systemd-analyze security` scores them as
//! promised. Where the tool is missing the test says that it was skipped.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Promised for the shipped units.
const EXPOSURE_MAX: f64 = 2.0;
/// Promised for the agent without capabilities.
const EXPOSURE_REDUCED_MAX: f64 = 1.5;
const UNITS: [&str; 2] = ["muster-agent.service", "muster-coordinator.service"];

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name)
}

/// A root directory with our units installed, stubs for the binaries, and the host's own units to refer to.
struct Root(tempfile::TempDir);

impl Root {
    /// `None`, with a word on why, where the tool is missing.
    fn new() -> Option<Self> {
        let tool = Command::new("systemd-analyze").arg("--version").output();
        if !tool.is_ok_and(|output| output.status.success()) {
            println!("skipped: systemd-analyze is not there");
            return None;
        }
        let root = Self(tempfile::tempdir().unwrap());
        let units = root.path("etc/systemd/system");
        std::fs::create_dir_all(&units).unwrap();
        for unit in UNITS {
            std::fs::copy(shipped(unit), units.join(unit)).unwrap();
        }
        for folder in ["bin", "usr/bin"] {
            std::fs::create_dir_all(root.path(folder)).unwrap();
        }
        for binary in ["usr/bin/muster-agent", "usr/bin/muster-coordinator", "bin/kill", "bin/sh"] {
            let stub = root.path(binary);
            std::fs::write(&stub, "").unwrap();
            std::fs::set_permissions(&stub, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let theirs = root.path("usr/lib/systemd/system");
        std::fs::create_dir_all(&theirs).unwrap();
        for entry in std::fs::read_dir("/usr/lib/systemd/system").into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_file() && path.extension().is_some_and(|kind| kind == "target" || kind == "slice") {
                std::fs::copy(&path, theirs.join(entry.file_name())).unwrap();
            }
        }
        Some(root)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside)
    }

    fn reduce(&self) {
        let dropins = self.path("etc/systemd/system/muster-agent.service.d");
        std::fs::create_dir_all(&dropins).unwrap();
        std::fs::copy(shipped("muster-agent.service.d/reduced.conf"), dropins.join("reduced.conf")).unwrap();
    }

    fn analyze(&self, arguments: &[&str]) -> Output {
        let root = format!("--root={}", self.0.path().display());
        Command::new("systemd-analyze").args(arguments).arg(root).output().unwrap()
    }

    /// Every complaint about our units. A complaint does not always change the exit status.
    fn complaints(&self) -> String {
        let output = self.analyze(&["verify", "--man=no", UNITS[0], UNITS[1]]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let ours: Vec<_> = text.lines().filter(|line| line.contains("muster")).collect();
        assert!(output.status.success() || !ours.is_empty(), "{text}");
        ours.join("\n")
    }

    fn exposure(&self, unit: &str) -> f64 {
        let output = self.analyze(&["security", "--offline=yes", "--no-pager", unit]);
        let text = String::from_utf8_lossy(&output.stdout);
        exposure(&text).unwrap_or_else(|| panic!("no score in {text:?} {output:?}"))
    }
}

/// The number in `→ Overall exposure level for X.service: 2.0 OK`.
fn exposure(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("Overall exposure level"))?;
    line.rsplit_once(": ")?.1.split_whitespace().next()?.parse().ok()
}

#[test]
fn the_units_verify_without_a_word() {
    let Some(root) = Root::new() else { return };
    assert_eq!(root.complaints(), "");
    root.reduce();
    assert_eq!(root.complaints(), "");
}

#[test]
fn the_check_would_see_a_mistake() {
    let Some(root) = Root::new() else { return };
    let unit = root.path("etc/systemd/system").join(UNITS[0]);
    let text = std::fs::read_to_string(&unit).unwrap();
    std::fs::write(&unit, text.replace("MemoryMax=", "MemmoryMax=")).unwrap();
    assert!(root.complaints().contains("MemmoryMax"), "{}", root.complaints());
}

#[test]
fn the_units_score_as_promised() {
    let Some(root) = Root::new() else { return };
    for unit in UNITS {
        let score = root.exposure(unit);
        println!("{unit}: {score}");
        assert!(score <= EXPOSURE_MAX, "{unit} scores {score}; see: systemd-analyze security --offline=yes");
    }
    root.reduce();
    let score = root.exposure(UNITS[0]);
    println!("{} with reduced.conf: {score}", UNITS[0]);
    assert!(score <= EXPOSURE_REDUCED_MAX, "{score}");
}

#[test]
fn the_score_is_read_from_the_last_line() {
    assert_eq!(exposure("x\n→ Overall exposure level for a.service: 1.9 OK :-)\n"), Some(1.9));
    assert_eq!(exposure("nothing"), None);
}
