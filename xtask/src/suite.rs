//! `cargo xtask test` and `cargo xtask ci`: named steps, one line each, with what was skipped told at the end.

use crate::{demo, drill, fleet_sim, foreign, lab, neighbours, say, tidy};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What to run besides.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Leave the demo out (it is the longest step)
    #[arg(long)]
    no_demo: bool,
    /// Insist on a real Alertmanager (Debian's package, or MUSTER_ALERTMANAGER=PATH); installs nothing
    #[arg(long)]
    with_alertmanager: bool,
}

/// Where Debian's package, or somebody's hands, put it.
const ALERTMANAGERS: [&str; 2] = ["/usr/bin/prometheus-alertmanager", "/usr/bin/alertmanager"];

/// Crash rounds that the quick suite runs; all hundred by `cargo xtask drill crash`.
const CRASH_ROUNDS_QUICK: u32 = 8;

/// The workspace's root folder.
pub(crate) fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Everything that must pass.
pub(crate) fn test(options: &Options) -> Result<()> {
    let mut skipped = Vec::new();
    if options.with_alertmanager {
        step("a real Alertmanager", real_alertmanager)?;
    }
    step("house rules (tidy)", tidy::run)?;
    step("unit, integration and simulation tests", || {
        skipped.extend(cargo_test()?);
        lab::built_by_tests();
        Ok(())
    })?;
    step("an independent gRPC client", || {
        skipped.extend(foreign::check()?);
        Ok(())
    })?;
    step("second opinions of real agents", || {
        skipped.extend(neighbours::check()?);
        Ok(())
    })?;
    step("crash drill (quick)", || drill::crash(CRASH_ROUNDS_QUICK))?;
    step("fleet-sim (50 agents)", || fleet_sim::smoke(lab::build()?))?;
    if options.no_demo {
        skipped.push("the demo, by --no-demo".to_owned());
    } else {
        step("demo", || demo::run(&demo::Options::default()))?;
    }
    report_skipped(&skipped);
    Ok(())
}

/// The pager's tests against it are skipped where it is missing; here that is an error.
fn real_alertmanager() -> Result<()> {
    let named = std::env::var_os("MUSTER_ALERTMANAGER").map(PathBuf::from);
    if let Some(path) = named.as_ref().filter(|path| !path.exists()) {
        bail!("MUSTER_ALERTMANAGER names {}, and nothing is there", path.display());
    }
    let found = named.into_iter().chain(ALERTMANAGERS.map(PathBuf::from)).find(|path| path.exists());
    let missing = "no Alertmanager here (looked for /usr/bin/prometheus-alertmanager and /usr/bin/alertmanager): apt-get \
                   install prometheus-alertmanager, or unpack that package and name its binary by MUSTER_ALERTMANAGER=PATH";
    say!("found {}", found.context(missing)?.display());
    cargo(&["test", "--quiet", "--package", "muster-coordinator", "--test", "pager", "--", "alertmanager"])
}

/// What CI runs.
pub(crate) fn ci(options: &Options) -> Result<()> {
    step("formatting", || cargo(&["fmt", "--all", "--check"]))?;
    step("lints", || cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step("documentation", || {
        let mut command = cargo_command(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
        // A link to a private module is right here: private items are documented.
        command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
        run(command)
    })?;
    step("the other crypto provider compiles", || {
        let packages = ["--package", "muster-agent", "--package", "muster-coordinator", "--package", "musterctl"];
        let mut arguments = vec!["check", "--quiet", "--no-default-features", "--features", "aws-lc-rs"];
        arguments.extend(packages);
        cargo(&arguments)
    })?;
    step("dependencies: licences, bans, sources, advisories", deny)?;
    test(options)
}

fn step(name: &str, task: impl FnOnce() -> Result<()>) -> Result<()> {
    say!("==> {name}");
    let start = Instant::now();
    task().with_context(|| format!("step failed: {name}"))?;
    say!("<== {name}: passed in {:.0?}", start.elapsed());
    Ok(())
}

/// cargo in the workspace. What `cargo run` says of xtask is no news of the other packages, but build scripts would take it
/// for such and build anew.
pub(crate) fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(workspace()).args(arguments).stdin(Stdio::null());
    let of_xtask = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_xtask)) {
        command.env_remove(name);
    }
    command
}

/// Builds programs of the workspace, and returns the folder in which those of `profile` lie.
pub(crate) fn build(arguments: &[&str], profile: &str) -> Result<PathBuf> {
    cargo(&[&["build", "--quiet"], arguments].concat())?;
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("the running program has no target folder")?;
    Ok(target.join(profile))
}

fn run(mut command: Command) -> Result<()> {
    let status = command.status()?;
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    ensure!(status.success(), "cargo {} failed: {status}", arguments.join(" "));
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(cargo_command(arguments))
}

/// Runs `cargo deny` where it is installed. The advisory database needs a network: without it that check alone is left
/// out, and told.
fn deny() -> Result<()> {
    let installed = Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success());
    if !installed {
        say!("skipped: cargo-deny is not installed");
        return Ok(());
    }
    cargo(&["deny", "check", "licenses", "bans", "sources"])?;
    if !cargo_command(&["deny", "check", "advisories"]).output()?.status.success() {
        let offline = cargo_command(&["deny", "fetch", "db"]).output()?;
        ensure!(!offline.status.success(), "an advisory concerns this workspace: run cargo deny check advisories");
        say!("skipped: advisories (the database cannot be fetched here)");
    }
    Ok(())
}

/// Runs the tests, prints their summaries, and returns what they said they skipped. All output is shown on failure.
fn cargo_test() -> Result<Vec<String>> {
    let mut command = cargo_command(&["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("no output")?;
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line.starts_with("test result:") && !line.contains(" 0 passed; 0 failed") {
            say!("{line}");
        }
        if let Some(what) = line.trim().strip_prefix("skipped: ") {
            skipped.push(what.to_owned());
        }
        all.push(line);
    }
    let status = child.wait()?;
    if !status.success() {
        all.iter().for_each(|line| say!("{line}"));
        bail!("tests failed: {status}");
    }
    Ok(skipped)
}

fn report_skipped(skipped: &[String]) {
    if skipped.is_empty() {
        say!("nothing was skipped");
        return;
    }
    say!("skipped here ({}):", skipped.len());
    skipped.iter().for_each(|what| say!("  - {what}"));
}
