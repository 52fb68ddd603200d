//! What docs/local-api.md shows is true: its examples are run, its options exist.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::process::{Command, Output};

const DOC: &str = include_str!("../../docs/local-api.md");
/// Evidence of an example, no option.
const EVIDENCE: &str = "--attempts";

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster-agent")).args(arguments).output().unwrap()
}

/// The blocks of this language.
fn blocks(language: &str) -> Vec<String> {
    let mut parts = DOC.split("```").skip(1).step_by(2);
    let mut found = Vec::new();
    while let Some((first, block)) = parts.next().and_then(|part| part.split_once('\n')) {
        if first == language {
            found.push(block.to_owned());
        }
    }
    found
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn preflight_answers_with_the_documented_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (config, socket) = (folder.path().join("agent.toml"), folder.path().join("agent.sock"));
    let text = format!("[agent]\nsocket = {socket:?}\n[memory]\napproaching = \"2B\"\ncritical = \"1B\"\n");
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let asked = ["preflight", "--workers", "2", "--worker-memory", "512MiB", "--format", "json", "--config", &config];
    let examples = blocks("json");
    let [shown, freezes] = examples.as_slice() else { panic!("{examples:?}") };
    let shown: Value = serde_json::from_str(shown).unwrap();
    let told: Value = serde_json::from_slice(&agent(&asked).stdout).unwrap();
    assert_eq!(keys(&told), keys(&shown));
    assert_eq!(told["memory_band"], shown["memory_band"]);
    for key in keys(&told) {
        assert!(DOC.contains(&format!("| `{key}` |")), "{key} is not explained");
    }

    std::fs::write(folder.path().join("freezes.json"), freezes).unwrap();
    let stopped = agent(&asked);
    assert_eq!(stopped.status.code(), Some(2));
    let told: Value = serde_json::from_slice(&stopped.stdout).unwrap();
    assert_eq!(told["decision"], "stop");
    assert!(told["reasons"].to_string().contains("upgrade (by ada, FRZ-42)"), "{told}");
    // Past by its own clock: over. Not to be read: taken for one.
    std::fs::write(folder.path().join("freezes.json"), freezes.replace("null", "1000")).unwrap();
    assert!(!String::from_utf8_lossy(&agent(&asked).stdout).contains("upgrade"));
    std::fs::write(folder.path().join("freezes.json"), "[{").unwrap();
    assert_eq!(agent(&asked).status.code(), Some(2));
}

#[test]
fn every_option_that_is_shown_exists() {
    let lines = blocks("").join("\n").replace("\\\n", " ");
    let commands: Vec<Vec<&str>> = lines
        .lines()
        .filter(|line| line.starts_with("muster-agent "))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let help = agent(&[command[1], "--help"]);
        let help = String::from_utf8_lossy(&help.stdout);
        for option in command.iter().filter(|word| word.starts_with("--") && **word != EVIDENCE) {
            assert!(help.contains(option), "{command:?}: {option} is not in {help}");
        }
    }
}
