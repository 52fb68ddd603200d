//! One function per command: ask, then print.

mod failover;
mod findings;
mod fleet;
mod freeze;
mod incidents;

use crate::args::{Agents, Arguments, Command, Events, Failover, Findings, Freeze, Incidents};
use crate::error::CtlError;
use crate::render::Out;
use crate::{connect, settings};

/// Nothing was changed: refused, declined or not reachable.
pub(crate) const NOT_PROMOTED: u8 = 18;
/// Promoted, but the old primary is not attached as a standby.
pub(crate) const OLD_PRIMARY_MISSING: u8 = 22;
/// Items asked for at once; the coordinator may give fewer.
const PAGE_SIZE: i32 = 500;
/// A list of more pages than this does not end.
const PAGES_MAX: usize = 10_000;

/// Runs the command; the result is the exit status.
pub(crate) async fn run(arguments: Arguments, out: &mut Out) -> Result<u8, CtlError> {
    let target = settings::resolve(&arguments.target)?;
    let is_promotion = matches!(arguments.command, Command::Failover(Failover::Promote { .. }));
    let channel = match connect::connect(&target).await {
        // Callers of a promotion must be able to tell "nothing happened" from "perhaps".
        Err(error) if is_promotion && error.exit_status() == 1 => {
            return Err(CtlError::NotPromoted(format!("nothing was changed: {}", error.report())));
        }
        connected => connected?,
    };
    match arguments.command {
        Command::Status => fleet::status(channel, out).await?,
        Command::Agents(Agents::List { state, labels }) => fleet::list(channel, out, state, labels).await?,
        Command::Agents(Agents::Show { name }) => fleet::show(channel, out, name).await?,
        Command::Agents(Agents::Ping { name }) => fleet::ping(channel, out, name).await?,
        Command::Findings(Findings::List { agent, service, reason, occurrences }) => {
            let filter = findings::Filter { agent, service, reason, occurrences };
            findings::list(channel, out, filter).await?;
        }
        Command::Events(Events::List { limit, agent, incident }) => {
            findings::events(channel, out, limit, agent, incident).await?;
        }
        Command::Trace { id } => findings::trace(channel, out, id).await?,
        Command::Incidents(Incidents::List { all, agent, service }) => {
            incidents::list(channel, out, all, agent, service).await?;
        }
        Command::Incidents(Incidents::Show { id }) => incidents::show(channel, out, id).await?,
        Command::Incidents(Incidents::Ack { id, note }) => incidents::acknowledge(channel, out, id, note).await?,
        Command::Incidents(Incidents::Resolve { id, summary }) => {
            incidents::resolve(channel, out, id, summary).await?;
        }
        Command::Incidents(Incidents::Note { id, text }) => incidents::note(channel, out, id, text).await?,
        Command::Freeze(Freeze::On { reason, agents, labels, ttl }) => {
            freeze::on(channel, out, freeze::Order { agents, labels, ttl, reason }).await?;
        }
        Command::Freeze(Freeze::Off { id }) => freeze::off(channel, out, id).await?,
        Command::Freeze(Freeze::List) => freeze::list(channel, out).await?,
        Command::Failover(Failover::Status) => failover::status(channel, out).await?,
        Command::Failover(Failover::Promote { old_primary, force, reason, yes, wait }) => {
            let order = failover::Order { old_primary, force, reason, yes, wait };
            return failover::promote(channel, out, order).await;
        }
    }
    Ok(0)
}

/// Fetches page after page until there is no next one or `limit` items are there.
async fn all_pages<T, F>(limit: usize, mut fetch: impl FnMut(String) -> F) -> Result<Vec<T>, CtlError>
where
    F: Future<Output = Result<(Vec<T>, String), CtlError>>,
{
    let mut items = Vec::new();
    let mut token = String::new();
    for _ in 0..PAGES_MAX {
        let (page, next) = fetch(token.clone()).await?;
        items.extend(page);
        if next.is_empty() || items.len() >= limit {
            items.truncate(limit);
            return Ok(items);
        }
        if next == token {
            break;
        }
        token = next;
    }
    Err(CtlError::EndlessList)
}

/// `1 agent`, `2 agents`.
fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
