//! The services that systemd counts as failed, asked once: for discovery, where no config names a unit yet.
//!
//! Asks and changes nothing. Bounded in time and number: whoever waits for it has typed a command.

use super::bus::SYSTEMD;
use std::time::Duration;
use zbus::OwnedObjectPath;

/// To connect, to ask and to be answered; systemd takes milliseconds.
const ANSWER_MAX: Duration = Duration::from_millis(700);
/// Units taken; a host with more has one trouble, not hundreds.
const FAILED_MAX: usize = 256;

/// Name, description, load, active and sub state, who follows it, its path, its job with type and path.
type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// The names of all service units that have failed, in order; an error is for people.
pub fn failed_services(address: Option<&str>) -> Result<Vec<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let asked = runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, ask(address)).await });
    // A connection that hangs must not hold up whoever asked.
    runtime.shutdown_background();
    match asked {
        Ok(Ok(rows)) => Ok(names(rows)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} ms", ANSWER_MAX.as_millis())),
    }
}

async fn ask(address: Option<&str>) -> zbus::Result<Vec<Row>> {
    let builder = match address {
        Some(address) => zbus::connection::Builder::address(address),
        None => zbus::connection::Builder::system(),
    };
    let connection = builder.build().await?;
    let (path, manager) = ("/org/freedesktop/systemd1", format!("{SYSTEMD}.Manager"));
    let states = (vec!["failed"],);
    let answer =
        connection.call_method(Some(SYSTEMD), path, Some(manager.as_str()), "ListUnitsFiltered", &states).await?;
    answer.body().deserialize()
}

/// A unit without a file is what is left of a removed package.
fn names(rows: Vec<Row>) -> Vec<String> {
    let services = rows.into_iter().filter(|row| row.2 == "loaded" && row.3 == "failed").map(|row| row.0);
    let mut names: Vec<String> = services.filter(|name| name.ends_with(".service")).collect();
    names.sort();
    names.truncate(FAILED_MAX);
    names
}
