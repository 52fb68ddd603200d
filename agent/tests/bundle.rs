//! Bundles by the real command on this very host: what is in them, what must never be in them, and what becomes of one
//! that was changed on the way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use flate2::read::GzDecoder;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// In no file but those that a test writes.
const SECRET: &str = "hunter2-correct-horse";
/// Far beyond every bound of the command together; only a hang comes near.
const HANG: Duration = Duration::from_secs(60);

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_muster-agent")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A service whose pid file names a process that ended, with a database, and secrets wherever one could stand.
struct Planted {
    folder: tempfile::TempDir,
    config: String,
}

impl Planted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| shown(&folder.path().join(name));
        let mut ended = Command::new("true").spawn().unwrap();
        let pid = ended.id();
        ended.wait().unwrap();
        std::fs::write(path("web.pid"), format!("{pid}\n")).unwrap();
        std::fs::write(path("own.pid"), format!("{}\n", std::process::id())).unwrap();
        let database = rusqlite::Connection::open(path("web.db")).unwrap();
        database.execute_batch(&format!("create table t (x text); insert into t values ('{SECRET}-row')")).unwrap();
        drop(database);
        let log = format!(
            "started\npassword={SECRET}\nGET https://bob:{SECRET}@h/ 500\n-----BEGIN PRIVATE KEY-----\n{SECRET}\n\
             -----END PRIVATE KEY-----\nAuthorization: Bearer {SECRET}\nevil \u{1b}[2J end\n"
        );
        std::fs::write(path("web.log"), log).unwrap();
        let text = format!(
            "# {SECRET}\n[agent]\nstate_dir = {:?}\nsocket = {:?}\n[memory]\napproaching = \"2B\"\ncritical = \"1B\"\n\
             [service.web]\npid_file = {:?}\nsqlite = [{:?}]\nlogs = [{:?}]\n\
             health = {{ url = \"http://127.0.0.1:9/?token={SECRET}\", headers = {{ X-Api-Key = \"{SECRET}\" }} }}\n\
             [service.own]\npid_file = {:?}\n",
            path("state"),
            path("agent.sock"),
            path("web.pid"),
            path("web.db"),
            path("web.log"),
            path("own.pid")
        );
        let config = path("agent.toml");
        std::fs::write(&config, text).unwrap();
        Self { folder, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bundle(&self) -> String {
        let file = shown(&self.path("b.tar.gz"));
        let output = agent(&["bundle", "-o", &file, "--config", &self.config]);
        assert!(output.status.success(), "{}", stderr(&output));
        file
    }
}

fn unpacked(file: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(std::fs::File::open(file).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn has(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

#[test]
fn a_bundle_tells_what_doctor_told_and_no_secret() {
    let planted = Planted::new();
    let file = planted.bundle();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = unpacked(&file);
    assert!(!has(&bytes, SECRET), "a secret is in the bundle");
    assert!(has(&bytes, "password=***") && has(&bytes, "X-Api-Key"), "what stands beside a secret is kept");

    let reasons = |output: &Output| {
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let finding = |finding: &serde_json::Value| {
            ["service", "reason", "subject", "severity"].map(|key| finding[key].as_str().unwrap().to_owned())
        };
        report["findings"].as_array().unwrap().iter().map(finding).collect::<Vec<_>>()
    };
    let only = ["--service", "web", "--format", "json"];
    let there = agent(&[&["doctor", "--bundle", &file][..], &only].concat());
    let here = agent(&[&["doctor", "--config", &planted.config][..], &only].concat());
    assert_eq!((reasons(&there), there.status.code()), (reasons(&here), here.status.code()), "{}", stderr(&there));
    assert!(reasons(&there).iter().any(|finding| finding[1] == "process_down" || finding[1] == "pid_file_stale"));
    let report: serde_json::Value = serde_json::from_slice(&there.stdout).unwrap();
    assert_eq!(report["bundle"]["agent_version"], env!("CARGO_PKG_VERSION"));

    let text = stdout(&agent(&["doctor", "--bundle", &file]));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(text.starts_with(&format!("from {} at 2", host.trim())), "{text}");
    let wrong = agent(&["doctor", "--bundle", &file, "--service", "wbe"]);
    assert_eq!(wrong.status.code(), Some(3));
    assert!(stderr(&wrong).contains("did you mean \"web\"?"), "{}", stderr(&wrong));

    let list = stdout(&agent(&["doctor", "--bundle", &file, "--list"]));
    for name in ["proc/meminfo", "config.toml", "services/001-web/log-01.log", "databases.json", "002-own/status"] {
        assert!(list.contains(name), "{name} is not in:\n{list}");
    }
    assert!(list.contains("missing  daemon.json: no agent answers"), "{list}");
    let log = stdout(&agent(&["doctor", "--bundle", &file, "--show", "services/001-web/log-01.log"]));
    assert!(log.contains("started\npassword=***") && log.contains("evil \\u{1b}[2J end"), "{log}");
    let missing = agent(&["doctor", "--bundle", &file, "--show", "daemon.json"]);
    assert!(stderr(&missing).contains("is not in the bundle: no agent answers"), "{}", stderr(&missing));
    let wrong = agent(&["doctor", "--bundle", &file, "--show", "proc/meminf"]);
    assert!(stderr(&wrong).contains("did you mean \"proc/meminfo\"?"), "{}", stderr(&wrong));
}

/// Runs `script` with `$0` and `$1…` as another machine: with processes, mounts, network and a name of its own, an empty
/// /run, and nothing at `hidden`. `None` where that may not be made here.
fn elsewhere(hidden: &Path, script: &str, arguments: &[&str]) -> Option<Output> {
    let setup = format!(
        "set -e; mount --make-rprivate /; mount -t proc proc /proc; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs {}; \
         hostname elsewhere; set +e; {script}",
        shown(hidden)
    );
    // As root, or as whoever may be root in a namespace.
    [&["-m", "-p", "-u", "-n", "--fork"][..], &["-U", "-r", "-m", "-p", "-u", "-n", "--fork"]].iter().find_map(
        |flags| {
            let mut command = Command::new("unshare");
            let made = command.args(*flags).args(["sh", "-c", "mount -t proc proc /proc && hostname x"]);
            let may = made.output().is_ok_and(|output| output.status.success());
            may.then(|| {
                let mut command = Command::new("unshare");
                command.args(*flags).args(["sh", "-c", &setup]).args(arguments).output().unwrap()
            })
        },
    )
}

#[test]
fn it_is_read_on_another_machine_with_the_same_findings() {
    let planted = Planted::new();
    let elsewhere_too = tempfile::tempdir().unwrap();
    let file = shown(&elsewhere_too.path().join("b.tar.gz"));
    std::fs::copy(planted.bundle(), &file).unwrap();
    let agent_path = env!("CARGO_BIN_EXE_muster-agent");
    let look = "echo \"$(hostname) $(find /run -mindepth 1 -not -path '/run/mount*' | wc -l) $(test -e \"$2\" && echo there || echo gone)\" >&2; \
                exec \"$0\" doctor --bundle \"$1\" --format json";
    let Some(there) = elsewhere(planted.folder.path(), look, &[agent_path, &file, &planted.config]) else {
        println!("skipped: no namespace can be made here");
        return;
    };
    assert_eq!(stderr(&there), "elsewhere 0 gone\n", "it is another machine");
    // That the bundle tells what doctor told is proven above; here, that where it is read changes nothing.
    let here = agent(&["doctor", "--bundle", &file, "--format", "json"]);
    assert_eq!((stdout(&there), there.status.code()), (stdout(&here), here.status.code()));
    let report: serde_json::Value = serde_json::from_slice(&there.stdout).unwrap();
    let stale = report["findings"].as_array().unwrap().iter().find(|finding| finding["reason"] == "pid_file_stale");
    assert!(stale.is_some(), "{report:#}");
}

#[test]
fn ordinary_tools_read_it() {
    let planted = Planted::new();
    let file = planted.bundle();
    let Ok(output) = Command::new("tar").args(["tzvf", &file]).output() else {
        println!("skipped: there is no tar");
        return;
    };
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("muster-bundle/manifest.json"), "{}", stdout(&output));
}

#[test]
fn nothing_is_overwritten() {
    let planted = Planted::new();
    let file = planted.bundle();
    let before = std::fs::read(&file).unwrap();
    let again = agent(&["bundle", "-o", &file, "--config", &planted.config]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let link = planted.path("link");
    std::os::unix::fs::symlink(planted.path("elsewhere"), &link).unwrap();
    assert_eq!(agent(&["bundle", "-o", &shown(&link), "--config", &planted.config]).status.code(), Some(1));
    assert!(!planted.path("elsewhere").exists());
    assert_eq!(agent(&["bundle", "--config", &planted.config]).status.code(), Some(2), "an output must be named");
    let nowhere = agent(&["bundle", "-o", "/nonexistent/b", "--config", &planted.config]);
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn a_daemon_that_hangs_is_left_out() {
    let planted = Planted::new();
    // Somebody listens and never answers.
    let _hung = UnixListener::bind(planted.path("agent.sock")).unwrap();
    // Freezes that are no file must not be waited for either.
    nix::unistd::mkfifo(&planted.path("freezes.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let start = Instant::now();
    let file = planted.bundle();
    assert!(start.elapsed() < HANG, "the bundle waited for the daemon");
    let list = stdout(&agent(&["doctor", "--bundle", &file, "--list"]));
    assert!(list.contains("missing  daemon.json: no answer within 5 s"), "{list}");
    assert!(list.contains("missing  freezes.json: it is no file"), "{list}");
}

#[test]
fn what_was_changed_on_the_way_is_refused() {
    let planted = Planted::new();
    let file = planted.bundle();
    let good = std::fs::read(&file).unwrap();
    let refused = |name: &str, bytes: &[u8], why: &str| {
        let path = shown(&planted.path(name));
        std::fs::write(&path, bytes).unwrap();
        let output = agent(&["doctor", "--bundle", &path]);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(3), ""), "{name}");
        assert!(stderr(&output).contains(why), "{name}: {}", stderr(&output));
    };
    refused("cut", &good[..good.len() / 2], "cut short or damaged");
    refused("empty", b"", "cut short or damaged");
    refused("text", b"[agent]\n", "no bundle");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x55;
    refused("flipped", &flipped, "damaged");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::copy(&mut std::io::repeat(0).take(64 << 20), &mut encoder).unwrap();
    refused("bomb", &encoder.finish().unwrap(), "did not write it");
    let folder = agent(&["doctor", "--bundle", "/"]);
    assert!(stderr(&folder).contains("no regular file"), "{}", stderr(&folder));
    let none = agent(&["doctor", "--bundle", "/nonexistent"]);
    assert_eq!(none.status.code(), Some(3));
}
