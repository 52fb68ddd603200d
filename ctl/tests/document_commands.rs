//! Every call of `musterctl` in the documents is one that it understands.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../../tests/commands_in_documents.rs"]
mod commands_in_documents;

#[test]
fn calls_in_the_documents_are_understood() {
    commands_in_documents::check("musterctl", env!("CARGO_BIN_EXE_musterctl"), 20);
}

/// Beyond `--help`: all that the program asks for is there, and each value has its form. It gets as far as the
/// coordinator that is not there.
#[test]
fn what_runbooks_silence_with_is_complete() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    let mut tried = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for call in commands_in_documents::calls(&text, "musterctl silence add") {
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_musterctl"))
                .env_clear()
                .args(commands_in_documents::words(&call).iter().skip(1))
                .args(["--socket", "/nonexistent/coordinator.sock"])
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            let reached = output.status.code() != Some(2) && told.contains("/nonexistent/coordinator.sock");
            assert!(reached, "{}: {call}\n{told}", path.display());
            tried += 1;
        }
    }
    assert!(tried >= muster_common::reason::Reason::ALL.len(), "only {tried} were found");
}
