//! A small real service: a pid file, a listening port, a SQLite database that it commits to. The demo starts it, watches
//! agents watch it, and breaks it. It ends when its parent does.

use anyhow::{Context, Result};
use clap::Args;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the service has.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Writes its pid there
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Listens and answers there
    #[arg(long)]
    port: Option<u16>,
    /// At this address
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Once this file exists, stops to listen
    #[arg(long)]
    release_port_when: Option<PathBuf>,
    /// Commits five rows a second there, in WAL mode
    #[arg(long)]
    database: Option<PathBuf>,
    /// Takes an exclusive lock on each of these databases and holds it
    #[arg(long)]
    lock: Vec<PathBuf>,
    /// Once this file exists, fills memory in steps of 16 MiB until something stops it
    #[arg(long)]
    eat_memory_when: Option<PathBuf>,
}

/// Runs until killed, or until the process that started it is gone.
pub(crate) fn run(options: &Options) -> Result<()> {
    let parent = parent_id();
    let held = hold_locks(options)?;
    if let Some(port) = options.port {
        let listener = bind(options.address, port)?;
        listener.set_nonblocking(true)?;
        let release = options.release_port_when.clone();
        std::thread::spawn(move || serve(&listener, release.as_deref()));
    }
    let database = options.database.as_ref().map(open_database).transpose()?;
    if let Some(path) = &options.pid_file {
        // Last, and by rename: whoever sees the file sees a whole pid of a service that is ready.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, format!("{}\n", std::process::id()))?;
        std::fs::rename(&fresh, path)?;
    }
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while parent_id() == parent {
        if let Some(database) = &database {
            // A corrupted or locked database is what the demo is about: the service carries on.
            drop(database.execute("INSERT INTO beat (at) VALUES (unixepoch('subsec'))", []));
        }
        if options.eat_memory_when.as_ref().is_some_and(|file| file.exists()) {
            eaten.push(vec![1; 16 << 20]);
            continue;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    drop((held, eaten));
    Ok(())
}

/// Another service may be about to give the port up.
fn bind(address: IpAddr, port: u16) -> Result<TcpListener> {
    let start = Instant::now();
    loop {
        match TcpListener::bind((address, port)) {
            Err(_) if start.elapsed() < Duration::from_secs(5) => std::thread::sleep(Duration::from_millis(5)),
            outcome => return outcome.with_context(|| format!("port {port}")),
        }
    }
}

fn serve(listener: &TcpListener, release: Option<&Path>) {
    while !release.is_some_and(Path::exists) {
        match listener.accept() {
            Ok((mut stream, _)) => drop(stream.write_all(b"ok\n")),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn open_database(path: &PathBuf) -> Result<rusqlite::Connection> {
    let database = rusqlite::Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS beat (id INTEGER PRIMARY KEY, at REAL);
         CREATE TABLE IF NOT EXISTS job (id INTEGER PRIMARY KEY, name TEXT, payload BLOB);
         CREATE INDEX IF NOT EXISTS job_by_name ON job (name);",
    )?;
    let jobs: i64 = database.query_row("SELECT count(*) FROM job", [], |row| row.get(0))?;
    if jobs == 0 {
        database.execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             INSERT INTO job (name, payload) SELECT 'job-' || i, zeroblob(200) FROM n;
             PRAGMA wal_checkpoint(TRUNCATE);",
        )?;
    }
    Ok(database)
}

fn hold_locks(options: &Options) -> Result<Vec<rusqlite::Connection>> {
    let lock = |path: &PathBuf| -> Result<rusqlite::Connection> {
        let database = rusqlite::Connection::open(path)?;
        database.busy_timeout(Duration::from_secs(10))?;
        database.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(database)
    };
    options.lock.iter().map(|path| lock(path).with_context(|| format!("cannot lock {}", path.display()))).collect()
}
