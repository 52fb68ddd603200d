//! A host with a real systemd as PID 1, in namespaces of its own or as a machine with an older kernel, for tests that need
//! one: booted by a tool beside this checkout, powered off and removed at the end. Where it cannot be had, the test says
//! why and is skipped.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Ends a command that hangs; the slowest ones (a first boot, installing packages) need half a minute.
const COMMAND_SECONDS_MAX: &str = "300";

/// What a command said, on both outputs.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The host.
pub(crate) struct Booted {
    tool: PathBuf,
    name: String,
    log: Option<&'static str>,
}

impl Booted {
    /// `None`, with a word on why, where it cannot be had. `tool` boots it; `log` is a script whose output goes with a
    /// failure.
    pub(crate) fn boot(tool: &str, what: &str, name: &str, log: Option<&'static str>) -> Option<Self> {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tools").join(tool);
        // Tests of one process run side by side.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let host = Self { tool, name: format!("{name}{}-{number}", std::process::id()), log };
        let booted = || {
            // What a test left behind that was killed and had this pid.
            host.tool("down", &[], Stdio::null());
            let output = host.tool("up", &[], Stdio::null());
            if output.status.success() {
                None
            } else {
                Some(format!("it does not boot here: {}", text(&output).trim()))
            }
        };
        let why = if !host.tool.exists() {
            Some("no tool to boot a host with".to_owned())
        } else if !is_root() {
            Some("not root".to_owned())
        } else {
            booted()
        };
        match why {
            None => Some(host),
            Some(why) => {
                println!("skipped: {what}: {why}");
                None
            }
        }
    }

    /// What the tool says, asked for something about this host.
    pub(crate) fn tool(&self, verb: &str, arguments: &[&str], input: Stdio) -> Output {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", COMMAND_SECONDS_MAX]).arg(&self.tool).args([verb, &self.name]).args(arguments);
        command.stdin(input).output().unwrap()
    }

    /// What a shell script says, run inside.
    pub(crate) fn output(&self, script: &str) -> Output {
        self.tool("run", &["sh", "-euc", script], Stdio::null())
    }

    /// Runs a shell script inside; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.output(script);
        if !output.status.success() {
            let log = self.log.map(|log| text(&self.output(log))).unwrap_or_default();
            panic!("{script}\n{}\n{log}", text(&output));
        }
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until a condition of the shell holds; the time limit of a command ends a wait for what never comes.
    pub(crate) fn until(&self, condition: &str) {
        self.sh(&format!("until {condition}; do sleep 0.1; done"));
    }

    /// Puts a file there.
    pub(crate) fn push(&self, from: &Path, to: &str) {
        let output = self.tool("push", &[&from.display().to_string(), to], Stdio::null());
        assert!(output.status.success(), "{to}: {}", text(&output));
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        self.tool("down", &[], Stdio::null());
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| text(&output).trim() == "0")
}
