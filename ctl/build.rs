//! Embeds the runbooks, so that `musterctl runbook` works where there is neither a coordinator nor a network.

#![expect(clippy::expect_used, reason = "a build that cannot read its sources ends")]

use std::fmt::Write;
use std::path::Path;

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks");
    println!("cargo:rerun-if-changed={}", folder.display());
    let entries = std::fs::read_dir(&folder).expect("docs/runbooks is there");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("docs/runbooks can be listed").path()).collect();
    files.sort();
    let mut text =
        String::from("/// Reason code and text, by reason code.\npub(super) const RUNBOOKS: &[(&str, &str)] = &[\n");
    for file in files {
        let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if name == "README" || file.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        println!("cargo:rerun-if-changed={}", file.display());
        let words = std::fs::read_to_string(&file).expect("a runbook can be read");
        writeln!(text, "    ({name:?}, {words:?}),").expect("a string takes what is written");
    }
    text.push_str("];\n");
    let out = std::env::var_os("OUT_DIR").expect("cargo names the folder");
    std::fs::write(Path::new(&out).join("runbooks.rs"), text).expect("the folder can be written");
}
