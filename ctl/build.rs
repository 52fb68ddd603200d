//! Embeds the runbooks, so that `musterctl runbook` works where there is neither a coordinator nor a network.

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    // Asked when it runs: built once, it may serve another checkout with the same target folder.
    let folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../docs/runbooks");
    println!("cargo:rerun-if-changed={}", folder.display());
    let files: Result<Vec<PathBuf>, _> =
        std::fs::read_dir(&folder)?.map(|entry| entry.map(|file| file.path())).collect();
    let mut files = files?;
    files.sort();
    let mut text =
        String::from("/// Reason code and text, by reason code.\npub(super) const RUNBOOKS: &[(&str, &str)] = &[\n");
    for file in files {
        let name = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if name == "README" || file.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        println!("cargo:rerun-if-changed={}", file.display());
        let words = std::fs::read_to_string(&file)?;
        writeln!(text, "    ({name:?}, {words:?}),")?;
    }
    text.push_str("];\n");
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("runbooks.rs"), text)?;
    Ok(())
}
