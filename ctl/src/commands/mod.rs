//! One function per command: ask, then print.

mod agents;
mod explain;
mod export;
mod failover;
mod findings;
mod fleet;
mod freeze;
mod incidents;
mod live;
mod receivers;
mod runbook;
mod silences;

use crate::args::{
    Agents, Arguments, Command, Events, Failover, Findings, Format, Freeze, Incidents, Receivers, Silence,
};
use crate::connect::Channel;
use crate::error::CtlError;
use crate::render::{Out, clean};
use crate::{connect, settings};
use muster_proto::v1::GetAgentRequest;
use muster_proto::v1::fleet_service_client::FleetServiceClient;
use std::io::Write;
use tonic::Code;

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
    let is_export = matches!(arguments.command, Command::Incidents(Incidents::Export { .. }));
    if arguments.format == Format::Markdown && !is_export {
        return Err(CtlError::Usage("--format markdown is for incidents export: use table or json here".to_owned()));
    }
    if let Command::Runbook { reason } = &arguments.command {
        runbook::show(out, reason.as_deref())?;
        return Ok(0);
    }
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
        Command::Status { live: false } => fleet::status(channel, out).await?,
        Command::Status { live: true } => live::status(channel, &target, out).await?,
        Command::Agents(command) => run_agents(channel, out, command).await?,
        Command::Findings(command) => run_findings(channel, out, command).await?,
        Command::Events(Events::List { limit, agent, incident }) => {
            findings::events(channel, out, limit, agent, incident).await?;
        }
        Command::Trace { id } => findings::trace(channel, out, id).await?,
        Command::Incidents(command) => run_incidents(channel, out, command).await?,
        Command::Silence(Silence::Add(new)) => silences::add(channel, out, new).await?,
        Command::Silence(Silence::List { all }) => silences::list(channel, out, all).await?,
        Command::Silence(Silence::Expire { id }) => silences::expire(channel, out, id).await?,
        Command::Receivers(Receivers::List) => receivers::list(channel, out).await?,
        Command::Receivers(Receivers::Test { name }) => return receivers::test(channel, out, name).await,
        Command::Receivers(Receivers::DeadLetters { receiver, all }) => {
            receivers::dead_letters(channel, out, receiver, all).await?;
        }
        Command::Receivers(Receivers::Resend { page }) => receivers::resend(channel, out, page).await?,
        Command::Why { id } => explain::why(channel, out, id).await?,
        Command::WhyNot { host, at, service } => explain::why_not(channel, out, host, at, service).await?,
        // Answered above, without a connection.
        Command::Runbook { .. } => {}
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

async fn run_agents(channel: Channel, out: &mut Out, command: Agents) -> Result<(), CtlError> {
    match command {
        Agents::List { state, labels } => fleet::list(channel, out, state, labels).await,
        Agents::Show { name } => fleet::show(channel, out, name).await,
        Agents::Ping { name } => fleet::ping(channel, out, name).await,
        Agents::Diagnose { name, service } => agents::diagnose(channel, out, name, service).await,
        Agents::Archive { name, reason } => agents::archive(channel, out, name, reason).await,
    }
}

async fn run_findings(channel: Channel, out: &mut Out, command: Findings) -> Result<(), CtlError> {
    match command {
        Findings::List { agent, service, reason, occurrences } => {
            let filter = findings::Filter { agent, service, reason, occurrences };
            findings::list(channel, out, filter).await
        }
        Findings::Watch { agent, service, reason, min_severity } => {
            let filter = findings::Filter { agent, service, reason, occurrences: true };
            findings::watch(channel, out, filter, min_severity).await
        }
    }
}

async fn run_incidents(channel: Channel, out: &mut Out, command: Incidents) -> Result<(), CtlError> {
    match command {
        Incidents::List { all, agent, service } => incidents::list(channel, out, all, agent, service).await,
        Incidents::Show { id } => incidents::show(channel, out, id).await,
        Incidents::Ack { id, note } => incidents::acknowledge(channel, out, id, note).await,
        Incidents::Resolve { id, summary } => incidents::resolve(channel, out, id, summary).await,
        Incidents::Note { id, text } => incidents::note(channel, out, id, text).await,
        Incidents::Severity { id, severity, note } => incidents::severity(channel, out, id, severity, note).await,
        Incidents::Commander { id, name, .. } => incidents::commander(channel, out, id, name.unwrap_or_default()).await,
        Incidents::Export { id, bundle: false, output } => export::note(channel, out, id, output).await,
        Incidents::Export { id, bundle: true, output } => export::bundle(channel, out, id, output).await,
    }
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

/// Tells of names that fit nobody: they may be of hosts to come, or misspelt, and then an empty list must not look as if
/// all were well. On standard error, so that what programs read stays as it is.
async fn note_unknown<'a>(channel: Channel, agents: impl IntoIterator<Item = &'a String>) {
    let mut client = FleetServiceClient::new(channel);
    for agent in agents.into_iter().filter(|agent| !agent.ends_with('*')) {
        let answer = client.get_agent(GetAgentRequest { id: agent.clone() }).await;
        if answer.is_err_and(|status| status.code() == Code::NotFound) {
            let agent = clean(agent);
            note(&format!("no agent {agent:?} is known now; if that is misspelt, see musterctl agents list"));
        }
    }
}

/// What the coordinator says of a question whose answer is empty.
fn note_doubt(text: &str) {
    if !text.is_empty() {
        note(&clean(text));
    }
}

/// Beside the answer.
pub(crate) fn note(text: &str) {
    // With nowhere to tell it, it is left out.
    drop(writeln!(std::io::stderr().lock(), "musterctl: note: {text}"));
}

/// `1 agent`, `2 agents`.
fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
