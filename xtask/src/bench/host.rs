//! A host with a real systemd, in namespaces of its own, for what needs units on a machine that has none: booted by a tool
//! beside this checkout, and removed at the end, whichever way that comes.

use crate::suite::workspace;
use anyhow::{Context, Result, bail, ensure};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The tool, from the folder of the workspace.
const TOOL: &str = "../shared/tools/host-ns.sh";
/// Where programs lie inside.
pub(crate) const FOLDER: &str = "/opt/muster-bench";
/// Ends what this program, killed, cannot end any more: `$0` is the tool, `$1` our pid, `$2` the host.
const GUARD: &str = "while kill -0 \"$1\" 2>/dev/null; do sleep 1; done; exec \"$0\" down \"$2\"";

/// The host.
pub(crate) struct Host {
    tool: PathBuf,
    name: String,
    guard: Child,
}

impl Host {
    /// `Err` says why none can be had here.
    pub(crate) fn boot() -> Result<Self> {
        let tool = workspace().join(TOOL);
        ensure!(tool.exists(), "no tool to boot a host with");
        ensure!(nix::unistd::geteuid().is_root(), "not root");
        let own = std::process::id().to_string();
        let name = format!("bench{own}");
        // In a group of its own: Ctrl-C is for us, and it follows.
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD]).arg(&tool).args([&own, &name]).process_group(0);
        let guard = guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let host = Self { tool, name, guard };
        let output = host.command("up").output()?;
        ensure!(output.status.success(), "it does not boot here: {}", said(&output));
        Ok(host)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.tool);
        command.args([verb, &self.name]).stdin(Stdio::null());
        command
    }

    /// Puts a file there.
    pub(crate) fn push(&self, from: &Path, to: &str) -> Result<()> {
        let output = self.command("push").arg(from).arg(to).output()?;
        ensure!(output.status.success(), "{} cannot be put there: {}", from.display(), said(&output));
        Ok(())
    }

    /// Puts files and this very program into [`FOLDER`], and tells where the program is.
    pub(crate) fn equip(&self, files: &[PathBuf]) -> Result<String> {
        // Its image has no such file, and the coordinator's name is looked up.
        self.run(&["sh", "-c", &format!("mkdir -p {FOLDER} && echo 127.0.0.1 localhost >>/etc/hosts")])?;
        let own = std::env::current_exe()?;
        let to = |path: &Path| {
            let name = path.file_name().context("a file without a name")?.to_string_lossy().into_owned();
            anyhow::Ok(format!("{FOLDER}/{name}"))
        };
        for file in files.iter().chain([&own]) {
            self.push(file, &to(file)?)?;
        }
        to(&own)
    }

    /// Runs a command inside; what it says goes where ours goes.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command("run").args(arguments).status()?;
        ensure!(status.success(), "{} failed inside: {status}", arguments.join(" "));
        Ok(())
    }

    /// What a command inside says.
    pub(crate) fn read(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command("run").args(arguments).output()?;
        if !output.status.success() {
            bail!("{} failed inside: {}", arguments.join(" "), said(&output));
        }
        String::from_utf8(output.stdout).context("no text")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.guard.kill());
        drop(self.guard.wait());
        drop(self.command("down").output());
    }
}

fn said(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    both.join(" ").trim().to_owned()
}
