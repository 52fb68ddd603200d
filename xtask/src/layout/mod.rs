//! `cargo xtask layout`: which functions of the agent a start and ordinary work use, as a script for the linker that
//! puts them together (`agent/layout/used.ld`; `agent/build.rs` hands it over).
//!
//! The kernel maps a program's text in large pieces round what is used. What is used lies everywhere in it by itself, so
//! that nearly all is mapped. What a calm time calls comes first, then what starts, ends and troubles need, so that the
//! latter can be unmapped (docs/decisions/0024) and stays so. Names are written without what changes with each compiler: a list that is old still fits
//! nearly all, and costs memory only, never correctness.

pub(crate) mod trace;

use crate::bench::host::{self, Host};
use crate::bench::stage::{AgentPlan, Programs, SERVICES, Stage, has_systemd};
use crate::lab;
use crate::say;
use crate::suite::{build, workspace};
use anyhow::{Context, Result};
use clap::Args;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A start is over by then, traced as it is.
const STARTED_SECONDS: u32 = 45;
/// How long it works before services are killed: text that is used more rarely has been unmapped in between.
const CALM: Duration = Duration::from_secs(660);
/// How long it works on after the kills.
const AFTER: Duration = Duration::from_secs(90);
/// Between kills.
const KILL_PAUSE: Duration = Duration::from_secs(3);
/// Unused bytes beside so many used ones that are put up with for a shorter list.
const UNUSED_PERCENT: u64 = 5;
/// The same, for the least of functions.
const UNUSED_BYTES: u64 = 64;

const HEAD: &str = "\
/* Where functions lie in the agent's program: first those that a calm time calls, then what a start and
   troubles need, before all others, so that the rest of the text is not mapped. Written by `cargo xtask layout`; do not edit. A name that is not found
   does no harm, and a function that is missing here is mapped with its neighbours when it is first used. */
";
/// Assembly has no sections of its own per function.
const ALWAYS: [&str; 3] = ["*crt1.o(.text)", "*crtbegin*.o(.text)", "*libring-*:*(.text .text.*)"];

/// Without any it does all; with them it is what another one runs inside of a host.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// The folder with the agent, its symbols and the coordinator
    #[arg(long, hide = true, requires = "called")]
    programs: Option<PathBuf>,
    /// Names of called functions go there, one a line: those of a calm time, an empty line, all others
    #[arg(long, hide = true, requires = "programs")]
    called: Option<PathBuf>,
}

/// The agent's symbols, in the folder of the programs.
const SYMBOLS: &str = "symbols";

/// Runs the agent as it is shipped, with its symbols, and writes the script.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let (Some(programs), Some(called)) = (&options.programs, &options.called) {
        return work(programs, called);
    }
    say!("building muster-agent as it is shipped …");
    let built = build(&["--profile", "agent", "--package", "muster-agent"], "agent")?;
    let agent = built.join("muster-agent");
    let folder = tempfile::tempdir()?;
    let (programs, called) = (folder.path().join("all"), folder.path().join("called"));
    fs::create_dir(&programs)?;
    fs::write(programs.join(SYMBOLS), trace::symbols(&agent)?)?;
    for program in [&agent, &lab::build()?.join("muster-coordinator")] {
        symlink(program, programs.join(program.file_name().context("no name")?))?;
    }
    let called = if has_systemd() {
        work(&programs, &called)?;
        fs::read_to_string(&called)?
    } else {
        match Host::boot() {
            Ok(host) => inside(&host, &programs)?,
            Err(why) => {
                say!("traced without units, of which the list will know nothing: {why:#}");
                work(&programs, &called)?;
                fs::read_to_string(&called)?
            }
        }
    };
    let (calm, rest) = called.split_once("\n\n").context("the trace knows no calm time")?;
    let (calm, rest): (Vec<_>, Vec<_>) = (calm.lines().collect(), rest.lines().collect());
    let script = script(sizes(&agent)?, [&calm, &rest]);
    let path = workspace().join("agent/layout/used.ld");
    fs::write(&path, &script)?;
    let (calm, rest, lines) = (calm.len(), rest.len(), script.lines().count());
    say!("{calm} functions called in a calm time, {rest} others; {lines} lines in {}", path.display());
    Ok(())
}

/// What is called where units of a real systemd are watched as well.
fn inside(host: &Host, programs: &Path) -> Result<String> {
    let called = format!("{}/called", host::FOLDER);
    let xtask = host.equip(&["muster-agent", "muster-coordinator", SYMBOLS].map(|name| programs.join(name)))?;
    host.run(&["env", "TMPDIR=/var/tmp", &xtask, "layout", "--programs", host::FOLDER, "--called", &called])?;
    host.read(&["cat", &called])
}

/// What an agent does on any day, traced.
fn work(programs: &Path, called: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let trace = folder.path().join("trace");
    let programs = Programs { agent: traced(folder.path(), programs, &trace)?, others: programs.to_owned() };
    let stage = Stage::set_with(&programs, "5s", false, has_systemd())?;
    say!("the agent is traced …");
    // Kept: with its log closed nothing of what tells would be run as it is on a host.
    let _log = stage.start_agent(&AgentPlan { name: "layout", interval: "5s", more: "", filter: None })?;
    let logs = stage.write_logs()?;
    std::thread::sleep(Duration::from_secs(STARTED_SECONDS.into()) + CALM);
    let so_far = fs::read_to_string(&trace)?;
    let (_, calm) = so_far.split_once("\n\n").context("the trace did not begin again")?;
    for index in 0..SERVICES {
        stage.kill_service(index)?;
        std::thread::sleep(KILL_PAUSE);
        stage.start_service(index)?;
        std::thread::sleep(KILL_PAUSE);
    }
    for log in stage.logs() {
        fs::rename(&log, format!("{log}.1"))?;
    }
    std::thread::sleep(AFTER);
    drop(logs);
    stage.lab.check_running(&["layout"])?;
    stage.lab.kill("layout", Signal::SIGTERM).ok();
    let calm: BTreeSet<&str> = calm.lines().collect();
    let all = fs::read_to_string(&trace)?;
    let rest: BTreeSet<&str> = all.lines().filter(|name| !name.is_empty() && !calm.contains(name)).collect();
    let lines = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join("\n");
    fs::write(called, format!("{}\n\n{}\n", lines(calm), lines(rest)))?;
    Ok(())
}

/// A script in the place of the agent that has its daemon traced.
fn traced(folder: &Path, programs: &Path, called: &Path) -> Result<PathBuf> {
    let (xtask, agent, called) = (std::env::current_exe()?, programs.join("muster-agent"), called.display());
    let (agent, symbols) = (agent.display(), programs.join(SYMBOLS));
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = run ] || exec '{agent}' \"$@\"\n\
         exec '{}' trace-calls --out '{called}' --again-after {STARTED_SECONDS} --symbols '{}' '{agent}' -- \"$@\"\n",
        xtask.display(),
        symbols.display()
    );
    let script = folder.join("muster-agent");
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// Sizes of functions by name.
fn sizes(program: &Path) -> Result<BTreeMap<String, u64>> {
    let output = Command::new("nm").args(["--defined-only", "--print-size"]).arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let one = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, size, "t" | "T" | "w" | "W", name] = words.as_slice() else { return None };
        Some(((*name).to_owned(), u64::from_str_radix(size, 16).ok()?))
    };
    Ok(text.lines().filter_map(one).collect())
}

/// Used and unused bytes.
type Bytes = (u64, u64);

/// `groups` in the order in which they lie.
fn script(mut sizes: BTreeMap<String, u64>, groups: [&[&str]; 2]) -> String {
    let mut script = format!("{HEAD}SECTIONS\n{{\n  .text.used :\n  {{\n");
    script.extend(ALWAYS.iter().map(|line| format!("    {line}\n")));
    for called in groups {
        script += "    *(\n";
        // The star stands for `unlikely.` before what the compiler takes for cold.
        script.extend(patterns(&sizes, called).iter().map(|name| format!("      .text*.{name}\n")));
        script += "    )\n";
        // The first pattern that fits decides: a later one may fit them, too.
        sizes.retain(|name, _| !called.contains(&name.as_str()));
    }
    script + "  }\n}\nINSERT BEFORE .text;\n"
}

/// What fits the names of the called ones, and of next to no others.
fn patterns(sizes: &BTreeMap<String, u64>, called: &[&str]) -> Vec<String> {
    let mut patterns: BTreeMap<String, Bytes> = BTreeMap::new();
    for (name, size) in sizes {
        patterns.entry(pattern(name)).or_default().1 += size;
    }
    for name in called {
        let size = sizes.get(*name).copied().unwrap_or(0);
        let bytes = patterns.entry(pattern(name)).or_default();
        *bytes = (bytes.0 + size.max(1), bytes.1.saturating_sub(size));
    }
    let mut chosen = Vec::new();
    let all: Vec<(&str, Bytes)> = patterns.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
    choose(&all, &mut chosen);
    chosen
}

/// The shortest beginnings under which next to nothing is unused. `names` are in order.
fn choose(names: &[(&str, Bytes)], chosen: &mut Vec<String>) {
    let (used, unused) = names.iter().fold((0, 0), |sum, (_, bytes)| (sum.0 + bytes.0, sum.1 + bytes.1));
    let (Some((first, bytes)), Some((last, _))) = (names.first(), names.last()) else { return };
    if used == 0 {
        return;
    }
    if names.len() == 1 {
        chosen.push((*first).to_owned());
        return;
    }
    let common = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    let shared = first.get(..common).unwrap_or_default();
    if common > 3 && unused <= (used * UNUSED_PERCENT / 100).max(UNUSED_BYTES) {
        chosen.push(format!("{}*", shared.trim_end_matches('*')));
        return;
    }
    let mut rest = names;
    if first.len() == common {
        if bytes.0 > 0 {
            chosen.push((*first).to_owned());
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    while let Some((name, _)) = rest.first() {
        let next = name.as_bytes().get(common);
        let count = rest.iter().take_while(|(name, _)| name.as_bytes().get(common) == next).count();
        let (group, others) = rest.split_at(count);
        choose(group, chosen);
        rest = others;
    }
}

/// A function's name, with a star for what another compiler, or another build, makes otherwise.
fn pattern(name: &str) -> String {
    // `…17h0123456789abcdefE`, and what the linker's optimizer puts behind it.
    if name.starts_with("_ZN")
        && let Some((path, _)) = name.rsplit_once("17h")
    {
        return format!("{path}17h*");
    }
    if !name.starts_with("_R") {
        return name.to_owned();
    }
    // One of several copies.
    let (name, star) = match name.rsplit_once('.') {
        Some((name, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => (name, "*"),
        _ => (name, ""),
    };
    // `Cs4Qf1_5alloc`: the middle is a hash of the crate.
    let mut parts = name.split("Cs");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let hash = part.bytes().take_while(u8::is_ascii_alphanumeric).count();
        let is_hash = hash > 4 && part.as_bytes().get(hash) == Some(&b'_');
        out += if is_hash { "C*" } else { "Cs" };
        out += if is_hash { part.get(hash..).unwrap_or_default() } else { part };
    }
    out + star
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_without_its_hashes() {
        for (name, expected) in [
            ("_ZN5tokio4task4poll17h0123456789abcdefE", "_ZN5tokio4task4poll17h*"),
            ("_ZN5tokio4task4poll17h0123456789abcdefE.955", "_ZN5tokio4task4poll17h*"),
            ("_RNvMs3_NtCslNYArtu3iFV_5alloc7raw_vec", "_RNvMs3_NtC*_5alloc7raw_vec"),
            ("_RNvNtCsgEmfK2I1SDS_4core4char3raw.1080", "_RNvNtC*_4core4char3raw*"),
            ("sqlite3VdbeExec", "sqlite3VdbeExec"),
        ] {
            assert_eq!(pattern(name), expected);
        }
    }

    #[test]
    fn what_is_used_as_a_whole_is_one_beginning_and_what_is_not_is_named() {
        let sizes = [("hyper_a", 500), ("hyper_b", 500), ("clap_a", 500), ("clap_b", 500), ("clap_b_unused", 500)];
        let sizes = sizes.map(|(name, size)| (name.to_owned(), size)).into();
        let script = script(sizes, [&["hyper_a", "clap_b"], &["hyper_b"]]);
        let lines: Vec<&str> = script.lines().map(str::trim).filter(|line| line.starts_with(".text*")).collect();
        assert_eq!(lines, [".text*.clap_b", ".text*.hyper_a", ".text*.hyper_b"]);
    }
}
