//! Every call of `muster-coordinator` in the documents is one that it understands.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../../tests/commands_in_documents.rs"]
mod commands_in_documents;

#[test]
fn calls_in_the_documents_are_understood() {
    commands_in_documents::check("muster-coordinator", env!("CARGO_BIN_EXE_muster-coordinator"), 5);
}
