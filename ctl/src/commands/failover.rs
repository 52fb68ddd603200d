//! `failover …`.

use super::{NOT_PROMOTED, OLD_PRIMARY_MISSING};
use crate::connect::Channel;
use crate::error::{CtlError, code_name};
use crate::json;
use crate::render::{Out, clean, duration};
use muster_proto::v1::failover_service_client::FailoverServiceClient;
use muster_proto::v1::{
    CoordinatorRole, Epoch, GetFailoverStatusRequest, GetFailoverStatusResponse, PromoteRequest, PromoteResponse,
};
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

/// How often the new primary is asked whether the old one has attached.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

pub(super) async fn status(channel: Channel, out: &mut Out) -> Result<(), CtlError> {
    let mut client = FailoverServiceClient::new(channel);
    let status = client.get_failover_status(GetFailoverStatusRequest {}).await?.into_inner();
    if out.is_json() {
        return Ok(out.json(&json::failover_status(&status))?);
    }
    print_status(out, &status)?;
    Ok(())
}

fn print_status(out: &mut Out, status: &GetFailoverStatusResponse) -> std::io::Result<()> {
    let highest = status.highest_epoch.as_ref().and_then(|proof| proof.epoch.clone());
    let highest = if highest == status.epoch { String::new() } else { epoch(highest.as_ref()) };
    let follows = match (status.follows.as_str(), status.following) {
        ("", _) => String::new(),
        (name, true) => format!("{}, at entry {}", clean(name), status.primary_journal_index),
        (name, false) => format!("{}, but does not hear it", clean(name)),
    };
    out.fields(&[
        ("coordinator", format!("{} ({})", clean(&status.coordinator_id), json::role(status.role))),
        ("epoch", epoch(status.epoch.as_ref())),
        ("highest epoch", highest),
        ("journal", format!("entry {} {}", status.journal_index, clean(&status.journal_hash))),
        ("follows", follows),
        ("last heard", out.time(status.last_heard_primary.as_ref())),
        ("lag", duration(status.lag.as_ref())),
    ])?;
    if status.role == i32::from(CoordinatorRole::Primary) && status.standbys.is_empty() {
        out.line("standbys     none: if this host is lost, so is its journal")?;
    }
    for standby in &status.standbys {
        let behind = status.journal_index.saturating_sub(standby.journal_index);
        let heard = out.time(standby.last_heard.as_ref());
        out.line(&format!("standby      {}: {behind} entries behind, heard {heard}", clean(&standby.coordinator_id)))?;
    }
    status.problems.iter().try_for_each(|problem| out.line(&format!("problem      {}", clean(problem))))
}

fn epoch(epoch: Option<&Epoch>) -> String {
    epoch.map(|epoch| format!("{}@{}", epoch.number, clean(&epoch.coordinator_id))).unwrap_or_default()
}

/// What `failover promote` was asked for.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) old_primary: String,
    pub(super) force: bool,
    pub(super) reason: String,
    pub(super) yes: bool,
    pub(super) wait: Duration,
}

pub(super) async fn promote(channel: Channel, out: &mut Out, order: Order) -> Result<u8, CtlError> {
    let mut client = FailoverServiceClient::new(channel);
    if !order.yes && std::io::stdin().is_terminal() {
        let before = client.get_failover_status(GetFailoverStatusRequest {}).await.map_err(nothing_changed)?;
        if !confirm(out, &before.into_inner(), &order)? {
            return Err(CtlError::NotPromoted("nothing was changed: not confirmed".to_owned()));
        }
    }
    let request =
        PromoteRequest { old_primary: order.old_primary.clone(), force: order.force, reason: order.reason.clone() };
    let answer = match client.promote(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if is_refusal(status.code()) => return Err(nothing_changed(status)),
        // The call broke: it may have been promoted all the same.
        Err(status) => return Err(status.into()),
    };
    let attached = match order.wait {
        Duration::ZERO => None,
        wait => Some(attaches(&mut client, &order.old_primary, wait).await),
    };
    if out.is_json() {
        out.json(&json::promotion(&answer, attached))?;
    } else {
        print_promotion(out, &answer, &order.old_primary, attached)?;
    }
    Ok(if attached == Some(false) { OLD_PRIMARY_MISSING } else { 0 })
}

/// Codes by which a coordinator says no before it changes anything.
fn is_refusal(code: Code) -> bool {
    use Code::{
        Aborted, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unimplemented,
    };
    matches!(
        code,
        Aborted | FailedPrecondition | InvalidArgument | NotFound | PermissionDenied | Unauthenticated | Unimplemented
    )
}

fn nothing_changed(status: Status) -> CtlError {
    let code = code_name(status.code());
    CtlError::NotPromoted(format!("nothing was changed: {} ({code}, exit status {NOT_PROMOTED})", status.message()))
}

fn confirm(out: &mut Out, before: &GetFailoverStatusResponse, order: &Order) -> std::io::Result<bool> {
    let mut terminal = std::io::stderr().lock();
    writeln!(
        terminal,
        "{} becomes the primary in place of {} (heard {}).",
        clean(&before.coordinator_id),
        clean(&order.old_primary),
        out.time(before.last_heard_primary.as_ref()),
    )?;
    for problem in &before.problems {
        writeln!(terminal, "  problem: {}", clean(problem))?;
    }
    write!(terminal, "Type yes to go on: ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// True as soon as the old primary follows the new one.
async fn attaches(client: &mut FailoverServiceClient<Channel>, old_primary: &str, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    loop {
        if let Ok(status) = client.get_failover_status(GetFailoverStatusRequest {}).await
            && status.get_ref().standbys.iter().any(|standby| standby.coordinator_id == old_primary)
        {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        sleep(LOOK_INTERVAL).await;
    }
}

fn print_promotion(
    out: &mut Out,
    answer: &PromoteResponse,
    old_primary: &str,
    attached: Option<bool>,
) -> std::io::Result<()> {
    out.line(&format!("promoted: epoch {}, journal entry {}", epoch(answer.epoch.as_ref()), answer.journal_index))?;
    for check in &answer.overridden {
        out.line(&format!("overridden: {}", clean(check)))?;
    }
    out.line(&format!(
        "carried over: {} agents, {} open incidents, {} pending pages",
        answer.agents_known, answer.open_incidents, answer.pages_pending
    ))?;
    let rehear = out.time(answer.rehear_until.as_ref());
    if !rehear.is_empty() {
        out.line(&format!("silence is not judged before {rehear}; musterctl agents list --state not-yet-reheard"))?;
    }
    let old = clean(old_primary);
    match attached {
        None => Ok(()),
        Some(true) => out.line(&format!("{old} has attached as a standby")),
        Some(false) => out.line(&format!(
            "the promotion succeeded. {old} has not attached as a standby, as is to be expected when it is dead (exit \
             status {OLD_PRIMARY_MISSING} says this, not a failure): there is no second copy of the journal; when it \
             comes back it hears the new epoch and stops, then start it as a standby"
        )),
    }
}
