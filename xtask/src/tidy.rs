//! House rules that no compiler checks. Each is a machine check with a reason, or it is no rule.

use crate::say;
use crate::suite::workspace;
use anyhow::{Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a file before its tests; beyond, it is more than one room.
const FILE_LINES_MAX: usize = 600;

/// Runs all checks and reports all violations at once.
pub(crate) fn run() -> Result<()> {
    let files = tracked_files()?;
    let mut violations = Vec::new();
    for file in &files {
        let text = fs::read_to_string(workspace().join(file)).unwrap_or_default();
        if file.extension().is_some_and(|extension| extension == "rs") {
            check_source(file, &text, &mut violations);
        }
        if file.extension().is_some_and(|extension| extension == "md") {
            if text.contains("@@") {
                violations.push(format!("{}: a placeholder was left", file.display()));
            }
            check_links(file, &text, &mut violations);
        }
    }
    check_crate_edges(&mut violations)?;
    if violations.is_empty() {
        say!("tidy: {} files, no violation", files.len());
        return Ok(());
    }
    violations.iter().for_each(|violation| say!("{violation}"));
    bail!("{} house rules are broken", violations.len())
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let output = Command::new("git").current_dir(workspace()).args(["ls-files", "-z"]).output()?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout)?;
    Ok(names.split_terminator('\0').map(PathBuf::from).filter(|file| workspace().join(file).exists()).collect())
}

fn check_source(file: &Path, text: &str, violations: &mut Vec<String>) {
    let name = file.display();
    if !text.starts_with("//!") {
        violations.push(format!("{name}: no `//!` head: say what the file is for"));
    }
    let in_tests = file.components().any(|part| part.as_os_str() == "tests");
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > FILE_LINES_MAX && !in_tests {
        violations.push(format!("{name}: {lines} lines before its tests, at most {FILE_LINES_MAX}: split it"));
    }
    // Written in two parts so that this file does not accuse itself.
    let banned = [
        (concat!("#[ign", "ore"), "a test that does not run proves nothing: make it skip and say so"),
        (concat!("#[should_", "panic"), "assert on a result instead"),
        (concat!("#[all", "ow("), "use #[expect(…, reason = …)]: it ends when its reason does"),
    ];
    for (pattern, why) in banned {
        for (index, _) in text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with(pattern)) {
            violations.push(format!("{name}:{}: {pattern}…: {why}", index + 1));
        }
    }
    if file.starts_with("agent/core/src") || file.starts_with("coordinator/core/src") {
        for pattern in [
            "tokio::",
            "std::fs",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "Instant::now",
            "SystemTime::now",
            "HashMap",
            "HashSet",
        ] {
            let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
            for (index, _) in code.filter(|(_, line)| line.contains(pattern)) {
                violations.push(format!("{name}:{}: {pattern} in a pure core", index + 1));
            }
        }
    }
}

/// Relative links of our documents lead somewhere.
fn check_links(file: &Path, text: &str, violations: &mut Vec<String>) {
    let folder = file.parent().unwrap_or(Path::new(""));
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let path = target.split('#').next().unwrap_or_default();
        if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
            continue;
        }
        if !workspace().join(folder).join(path).exists() {
            violations.push(format!("{}: the link {target:?} leads nowhere", file.display()));
        }
    }
}

/// The two cores depend on `muster-common` and on nothing that could reach a clock or a socket.
fn check_crate_edges(violations: &mut Vec<String>) -> Result<()> {
    const ALLOWED: [&str; 8] =
        ["muster-common", "regex", "regex-automata", "ruzstd", "serde", "serde_json", "thiserror", "sha2"];
    for core in ["agent/core", "coordinator/core"] {
        let manifest = fs::read_to_string(workspace().join(core).join("Cargo.toml"))?;
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for line in dependencies.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if !ALLOWED.contains(&name) {
                violations.push(format!("{core}/Cargo.toml: {name} is not allowed in a pure core"));
            }
        }
    }
    Ok(())
}
