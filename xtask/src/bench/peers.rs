//! Other agents, out of Debian's packages, doing the nearest equivalent. Their packages are fetched and unpacked into
//! the bench's folder: nothing is installed, and nothing starts by itself afterwards.

use super::agent::mib;
use super::child::Logged;
use super::measure::{self, Summary};
use super::stage::Stage;
use super::table::Table;
use crate::lab::free_port;
use crate::say;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// The packages.
const PACKAGES: [&str; 3] = ["monit", "prometheus-node-exporter", "zabbix-agent2"];
/// It takes none above, which the kernel gives out by itself.
const ZABBIX_PORTS: RangeInclusive<u16> = 20_000..=32_767;
/// How often each looks, as ours does.
const INTERVAL: Duration = Duration::from_secs(5);

/// Measures them one after the other.
pub(crate) fn measure(stage: &Stage, settle: Duration, length: Duration, ours: Option<&Summary>) -> Result<Table> {
    let head = ["agent", "PSS", "processor time a minute", "wake-ups a minute", "threads", "what it does"];
    let mut table = Table::new("Beside others, in the same run", &head);
    if let Some(cost) = ours {
        line(
            &mut table,
            "muster-agent",
            cost,
            "10 pid files, 20 ports, 5 databases, 5 units (see the conditions), 5 logs; mTLS stream, heartbeats, spool",
        );
    }
    let root = stage.lab.root.join("peers");
    if let Err(error) = fetch(&root) {
        table.row(["monit, node-exporter, zabbix-agent2", &format!("not measured: {error:#}"), "", "", "", ""]);
        return Ok(table);
    }
    for (name, what, start) in [
        ("monit", "10 pid files, 20 ports, 5 files", start_monit as fn(&Stage, &Path) -> Result<Peer>),
        ("prometheus-node-exporter", "its default collectors, scraped", start_node_exporter),
        ("zabbix-agent2", "10 processes, 20 ports, 5 files, asked for by passive checks", start_zabbix),
    ] {
        say!("{name} …");
        let measured = start(stage, &root).and_then(|peer| {
            std::thread::sleep(settle);
            let cost = measure::watch(&[peer.agent.pid], length);
            stage.lab.kill(name, nix::sys::signal::Signal::SIGTERM)?;
            Ok((cost?, peer))
        });
        match measured {
            Ok((cost, _peer)) => line(&mut table, name, &cost.summary(), what),
            Err(error) => table.row([name, &format!("not measured: {error:#}"), "", "", "", what]),
        }
    }
    Ok(table)
}

fn line(table: &mut Table, name: &str, cost: &Summary, what: &str) {
    let cpu = format!("{:.3} s", cost.cpu_seconds_per_minute);
    let wakes = format!("{:.0}", cost.wakes_per_minute);
    table.row([name, &mib(cost.pss_kib), &cpu, &wakes, &cost.threads.to_string(), what]);
}

/// What runs, and who asks it.
struct Peer {
    agent: Logged,
    _asker: Option<std::sync::mpsc::Sender<()>>,
}

/// Fetches the packages, with what they need and is not there, and unpacks them below `root`.
fn fetch(root: &Path) -> Result<()> {
    let archives = root.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--no-install-recommends", "--reinstall", "--download-only"]);
    apt.arg("-o").arg(format!("Dir::Cache::archives={}", archives.display())).args(PACKAGES);
    let fetched = apt.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(fetched.context("no apt-get here")?.success(), "apt-get cannot fetch the packages");
    for entry in fs::read_dir(&archives)?.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "deb"))
    {
        let status = Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(root).status()?;
        ensure!(status.success(), "dpkg-deb cannot unpack {}", entry.path().display());
    }
    Ok(())
}

fn start_monit(stage: &Stage, root: &Path) -> Result<Peer> {
    let mut config = format!("set daemon {}\nset pidfile {}\n", INTERVAL.as_secs(), stage.lab.path("run/monit.pid"));
    config += &format!("set statefile {}\nset idfile {}\n", stage.lab.path("run/m.state"), stage.lab.path("run/m.id"));
    let ports: Vec<u16> = stage.all_ports().collect();
    for (index, pid_file) in stage.all_pid_files().enumerate() {
        config += &format!("check process p{index} with pidfile {pid_file}\n");
        for port in ports.iter().skip(index * 2).take(2) {
            config += &format!("  if failed host 127.0.0.1 port {port} then alert\n");
        }
    }
    for (index, database) in stage.all_databases().enumerate() {
        config += &format!("check file f{index} with path {database}\n  if does not exist then alert\n");
    }
    let path = stage.lab.path("run/monitrc");
    fs::write(&path, config)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let agent = Logged::start(&stage.lab, "monit", &root.join("usr/bin/monit"), &["-I", "-c", &path], None)?;
    Ok(Peer { agent, _asker: None })
}

fn start_node_exporter(stage: &Stage, root: &Path) -> Result<Peer> {
    let port = free_port()?;
    let program = root.join("usr/bin/prometheus-node-exporter");
    let listen = format!("--web.listen-address=127.0.0.1:{port}");
    let agent = Logged::start(&stage.lab, "prometheus-node-exporter", &program, &[&listen], None)?;
    let asker = ask_every_interval(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new())
    });
    Ok(Peer { agent, _asker: Some(asker) })
}

fn start_zabbix(stage: &Stage, root: &Path) -> Result<Peer> {
    let port = ZABBIX_PORTS.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let port = port.context("no port that zabbix-agent2 takes is free")?;
    let config = format!(
        "LogType=console\nServer=127.0.0.1\nListenIP=127.0.0.1\nListenPort={port}\nHostname=bench\n\
         PluginSocket={socket}\nControlSocket={control}\nPidFile={pid}\n",
        socket = stage.lab.path("run/zp.sock"),
        control = stage.lab.path("run/zc.sock"),
        pid = stage.lab.path("run/zabbix.pid"),
    );
    let path = stage.lab.path("run/zabbix.conf");
    fs::write(&path, config)?;
    let agent =
        Logged::start(&stage.lab, "zabbix-agent2", &root.join("usr/sbin/zabbix_agent2"), &["-c", &path, "-f"], None)?;
    let mut keys: Vec<String> = stage.all_ports().map(|port| format!("net.tcp.listen[{port}]")).collect();
    keys.extend(stage.all_pid_files().map(|file| format!("vfs.file.contents[{file}]")));
    keys.extend(stage.all_databases().map(|file| format!("vfs.file.size[{file}]")));
    let asker = ask_every_interval(move || {
        let mut bytes = 0;
        for key in &keys {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            let length = u64::try_from(key.len()).unwrap_or(0).to_le_bytes();
            stream.write_all(&[b"ZBXD\x01".as_slice(), &length, key.as_bytes()].concat())?;
            bytes += stream.read_to_end(&mut Vec::new())?;
        }
        Ok(bytes)
    });
    Ok(Peer { agent, _asker: Some(asker) })
}

/// Asks until the sender is dropped.
fn ask_every_interval(mut ask: impl FnMut() -> std::io::Result<usize> + Send + 'static) -> std::sync::mpsc::Sender<()> {
    let (guard, ended) = channel();
    std::thread::spawn(move || {
        while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
            // One that is not up yet is asked again.
            drop(ask());
        }
    });
    guard
}
