//! A service that does nothing but exist: a pid file, ports, an open database. It costs nothing while it is measured
//! how much it costs to watch it. It ends when its parent does, or who else
//! it lives for.

use anyhow::{Context, Result};
use clap::Args;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it looks whether its parent lives, and whether to eat.
const TURN: Duration = Duration::from_secs(1);
/// Bytes taken at a time.
const BITE_BYTES: usize = 1 << 20;
/// The eater stops here: whatever should have stopped it before is not there, and the host must not pay for that.
const BITES_MAX: usize = 128;

/// What it has.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Options {
    /// Writes its pid there
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Listens and answers there
    #[arg(long)]
    port: Vec<u16>,
    /// Holds this database open, in WAL mode, and leaves it alone
    #[arg(long)]
    database: Option<PathBuf>,
    /// Reads one line, then fills memory up to 128 MiB, unless something stops it
    #[arg(long)]
    eat_memory: bool,
    /// Lives as long as this process, and not as its parent: that is systemd for a unit
    #[arg(long, value_name = "PID")]
    lives_for: Option<u32>,
}

/// Runs until killed, or until the process that started it is gone.
pub(crate) fn run(options: &Options) -> Result<()> {
    let parent = parent_id();
    if options.eat_memory {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        let mut eaten: Vec<Vec<u8>> = Vec::new();
        while !line.is_empty() && eaten.len() < BITES_MAX {
            eaten.push(vec![1; BITE_BYTES]);
        }
        return Ok(());
    }
    for port in &options.port {
        let listener = TcpListener::bind(("127.0.0.1", *port)).with_context(|| format!("cannot listen on {port}"))?;
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
            listener.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"ok\n")));
        })?;
    }
    let database = options.database.as_ref().map(open_database).transpose()?;
    if let Some(path) = &options.pid_file {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, format!("{}\n", std::process::id()))?;
        std::fs::rename(&fresh, path)?;
    }
    let goes_on = || match options.lives_for {
        Some(pid) => Path::new(&format!("/proc/{pid}")).exists(),
        None => parent_id() == parent,
    };
    while goes_on() {
        std::thread::sleep(TURN);
    }
    drop(database);
    Ok(())
}

/// About 1 MB with a table and an index; a log that is in use and does not change.
fn open_database(path: &PathBuf) -> Result<rusqlite::Connection> {
    let database = rusqlite::Connection::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS job (id INTEGER PRIMARY KEY, name TEXT, payload BLOB);
         CREATE INDEX IF NOT EXISTS job_by_name ON job (name);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
         INSERT INTO job (name, payload) SELECT 'job-' || i, zeroblob(200) FROM n
         WHERE NOT EXISTS (SELECT 1 FROM job);",
    )?;
    Ok(database)
}
