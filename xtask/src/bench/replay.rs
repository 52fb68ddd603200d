//! `cargo xtask bench replay`: a bundle of so many facts, made by the rules themselves, replayed by the program as it is
//! shipped; once for the same conclusions and once under another policy.

use super::measure;
use super::table::{Format, Table};
use crate::suite::build;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How much.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Facts in the bundle
    #[arg(long, default_value_t = 1_000_000)]
    facts: u64,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    crate::say!("building muster-coordinator and the maker of the bundle with --release …");
    let what = ["--package", "muster-coordinator", "--bin", "muster-coordinator", "--example", "synthetic_bundle"];
    let programs = build(&[&["--release"], &what[..]].concat(), "release")?;
    let dir = tempfile::tempdir()?;
    let (bundle, policy) = (dir.path().join("bundle.tar.gz"), dir.path().join("policy.toml"));
    let mut make = Command::new(programs.join("examples/synthetic_bundle"));
    let made = make.arg(options.facts.to_string()).arg(&bundle).output().context("cannot make a bundle")?;
    ensure!(made.status.success(), "no bundle: {}", String::from_utf8_lossy(&made.stderr));
    let what: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    std::fs::write(
        &policy,
        "[incidents]\nhold = { sev2 = \"60s\" }\n[[receiver.webhook]]\nname = \"ops\"\nurl = \"http://127.0.0.1:9/\"\n",
    )?;
    let same = replay(&programs, &bundle, &[])?;
    let other = replay(&programs, &bundle, &["--policy", &policy.display().to_string()])?;
    let mut table = Table::new("Replay", &["what", "measured", "bound"]);
    table.row(["facts", &what["facts"].to_string(), ""]);
    table.row(["entries", &what["entries"].to_string(), ""]);
    table.row(["bundle", &format!("{:.0} MB", what["bytes"].as_f64().unwrap_or(0.0) / 1e6), ""]);
    table.row(["the same conclusions", &format!("{:.1} s", same.as_secs_f64()), "10 s for 1,000,000 facts"]);
    table.row(["another policy", &format!("{:.1} s", other.as_secs_f64()), "10 s for 1,000,000 facts"]);
    table.print(options.format);
    crate::say!("load average {}", measure::load());
    Ok(())
}

fn replay(programs: &Path, bundle: &Path, more: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    let out = Command::new(programs.join("muster-coordinator")).arg("replay").arg(bundle).args(more).output()?;
    let took = begun.elapsed();
    let first: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().take(2).map(str::to_owned).collect();
    ensure!(out.status.success(), "the replay failed: {first:?} {}", String::from_utf8_lossy(&out.stderr));
    crate::say!("{}", first.join("\n"));
    Ok(took)
}
