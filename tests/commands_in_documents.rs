//! Commands that documents name, tried against the program itself. Shared by the tests of each program.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Tries every call of `program` in the documents: the program must know its commands and options. Nothing is done:
/// with `--help` it only says what it would.
pub(crate) fn check(program: &str, binary: &str, least: usize) {
    let mut documents = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let starts = [root.join("docs"), root.join("README.md"), root.join("systemd/README.md")];
    starts.into_iter().for_each(|start| collect(start, &mut documents));
    let mut tried = 0;
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        // Behind the free words of a report `--help` would be one of them; the agent's tests make those calls for real.
        for call in calls(&text, program).iter().filter(|call| !call.contains(" report ")) {
            let output = Command::new(binary).args(words(call).iter().skip(1)).arg("--help").output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {call}\n{told}", document.display());
            tried += 1;
        }
    }
    assert!(tried >= least, "only {tried} calls of {program} were found");
}

fn collect(path: PathBuf, documents: &mut Vec<PathBuf>) {
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| collect(entry.unwrap().path(), documents));
    } else if path.extension().is_some_and(|extension| extension == "md") {
        documents.push(path);
    }
}

/// What stands in code, in a line or in a block, and begins with the program's name.
pub(crate) fn calls(text: &str, program: &str) -> Vec<String> {
    let mut calls = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let code: Vec<&str> = if in_block { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for call in code.iter().flat_map(|code| code.split("&&")) {
            let ends = [" > ", " # ", " | ", "  ", " \\"];
            let end = ends.iter().filter_map(|end| call.trim().find(end)).min();
            let call = call.trim();
            let call = call.get(..end.unwrap_or(call.len())).unwrap_or_default().trim_end_matches(['…', ' ']);
            if call.strip_prefix(program).is_some_and(|rest| rest.starts_with(' ')) {
                calls.push(call.to_owned());
            }
        }
    }
    calls
}

/// As a shell takes them apart, as far as documents go.
pub(crate) fn words(call: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in call.split(['"', '\'']).enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}
