//! The spool cannot write: the agent goes on, and says so.

use super::{Daemon, Stage, events};
use crate::until;
use muster_common::finding::FindingEvent;
use muster_common::reason::Reason;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// Room for a fresh spool and its log, and for little more.
const DISK: &std::ffi::CStr = c"size=1m,mode=0700";

/// SQLite writes over the pages of its log that it needs no more: enough findings that they do not fit in there.
const SERVICES: usize = 60;

/// A small disk of its own.
struct Disk(PathBuf);

impl Disk {
    /// `None`, with a word on why, where this process may not mount.
    fn mount(path: PathBuf) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        mount("muster-test", &path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, DISK)
            .inspect_err(|error| println!("skipped: a full and a read-only disk: mount: {error}"))
            .ok()?;
        Some(Self(path))
    }

    /// Writes until nothing more goes in; gives the file that takes the room.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        // Smaller and smaller, to the last byte.
        for size in [64 * 1024, 4096, 1] {
            while std::io::Write::write(&mut file, &vec![0; size]).is_ok_and(|count| count > 0) {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}

/// So many services `web-N` with a port each.
fn listeners(stage: &Stage, state: &Path, count: usize) -> Vec<TcpListener> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let service = |(n, listener): (usize, &TcpListener)| {
        format!("[service.web-{n}]\nports = [\"{}\"]\n", listener.local_addr().unwrap())
    };
    stage.config(state, &listeners.iter().enumerate().map(service).collect::<String>());
    listeners
}

#[tokio::test]
async fn a_full_disk_stops_neither_heartbeats_nor_the_watchdog_and_what_was_seen_is_told_later() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(stage.path("state")) else { return };
    let mut listeners = listeners(&stage, &disk.0, SERVICES);
    let mut daemon = Daemon::start(&stage);
    stage.more_heartbeats().await;
    drop(listeners.remove(0));
    stage.hears("web-0", "port_closed").await;
    let filler = disk.fill();
    drop(listeners);
    daemon.says(&["ERROR", "cannot write the spool"]).await;
    for _ in 0..3 {
        let pings = daemon.pings();
        stage.more_heartbeats().await;
        daemon.more_pings(pings).await;
    }
    std::fs::remove_file(filler).unwrap();
    daemon.says(&["the spool can be written again"]).await;
    let mut state = stage.more_heartbeats().await;
    for n in 0..SERVICES {
        state = stage.hears(&format!("web-{n}"), "port_closed").await;
    }
    assert_eq!((state.streams, state.broken), (1, None));
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn a_folder_for_copies_that_was_removed_is_made_again_and_can_be_used() {
    let stage = Stage::set().await;
    // A log without its index, as after a copy: each answer comes from a copy of its own.
    let (path, source) = (stage.path("hub.db"), stage.path("source.db"));
    let writer = rusqlite::Connection::open(&source).unwrap();
    let sql = "PRAGMA journal_mode = wal; CREATE TABLE jobs (id INTEGER); INSERT INTO jobs VALUES (1);";
    writer.execute_batch(sql).unwrap();
    std::fs::copy(&source, &path).unwrap();
    std::fs::copy(stage.path("source.db-wal"), stage.path("hub.db-wal")).unwrap();
    let query = r#"{ name = "rows", sql = "select count(*) from jobs", max = 100, interval = "1s" }"#;
    let path = path.display();
    let service = format!("[service.hub]\nsqlite = [{{ path = \"{path}\", queries = [{query}] }}]\n");
    stage.config(&stage.path("state"), &service);
    let mut daemon = Daemon::start(&stage);
    daemon.says(&["watching"]).await;
    let scratch = stage.path("state/scratch");
    std::fs::remove_dir_all(&scratch).unwrap();
    stage.hears("hub", "probe_blind").await;
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.says(&["WARN", "was removed: it is made again"]).await;
    until(&stage.fake, |state| {
        events(state)
            .any(|event| matches!(&event, FindingEvent::Cleared { key, .. } if key.reason == Reason::ProbeBlind))
    })
    .await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn a_state_folder_that_is_read_only_leaves_an_agent_that_tells_from_memory() {
    let stage = Stage::set().await;
    let Some(disk) = Disk::mount(stage.path("state")) else { return };
    let mut listeners = listeners(&stage, &disk.0, 3);
    let mut daemon = Daemon::start(&stage);
    stage.more_heartbeats().await;
    assert_eq!(daemon.stop().await, Some(0));

    mount_remount(&disk.0, MountFlags::RDONLY, DISK).unwrap();
    let mut daemon = Daemon::start(&stage);
    daemon.says(&["ERROR", "kept in memory only", "Read-only file system"]).await;
    listeners.truncate(1);
    stage.hears("web-1", "port_closed").await;
    stage.hears("web-2", "port_closed").await;
    let state = stage.more_heartbeats().await;
    assert_eq!(state.broken, None);
    let highest = |hello: &muster_proto::v1::Hello| hello.highest_epoch.clone().and_then(|proof| proof.epoch);
    let last = state.hellos.last().and_then(highest);
    assert_eq!(last.map(|epoch| epoch.number), Some(1), "the epoch heard before is known");

    mount_remount(&disk.0, MountFlags::empty(), DISK).unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGHUP);
    daemon.says(&["the state folder can be used again"]).await;
    drop(listeners);
    let state = stage.hears("web-0", "port_closed").await;
    assert_eq!(state.broken, None);
    assert_eq!(daemon.stop().await, Some(0));
    until(&stage.fake, |state| state.goodbyes.len() == 2).await;
    let mut daemon = Daemon::start(&stage);
    daemon.says(&["watching"]).await;
    let state = stage.more_heartbeats().await;
    let closed =
        |event: &FindingEvent| matches!(event, FindingEvent::Opened(_)) && event.key().reason == Reason::PortClosed;
    assert_eq!(events(&state).filter(closed).count(), 3, "what was told before is not told again");
    assert_eq!(daemon.stop().await, Some(0));
}
