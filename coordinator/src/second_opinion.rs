//! Carries the questions that were concluded about silent agents to their neighbours, and what these answer back as a
//! fact. Decides nothing: whom to ask, where and on which ports is in the conclusion.
//!
//! A question that is lost (a restart, agents that went away) is not asked again: the page goes out without it.

use crate::runtime::{Answer, CoordinatorRole, Handle};
use futures_util::future::join_all;
use muster_common::ids::AgentName;
use muster_common::limits::{SUMMARY_BYTES_MAX, clip};
use muster_coordinator_core::entry::{Conclusion, EntryBody, Fact};
use muster_coordinator_core::second_opinion::{ANSWER_MAX, PeerAnswer, PortAnswer, PortOutcome};
use muster_proto::v1;
use muster_proto::v1::connect_response::Message;
use std::net::IpAddr;
use tokio::sync::broadcast::error::RecvError;

/// Asks until the coordinator stops.
pub async fn run(handle: Handle) {
    let (stop, mut batches) = (handle.stopping(), handle.subscribe());
    loop {
        let batch = tokio::select! {
            () = stop.cancelled() => return,
            batch = batches.recv() => batch,
        };
        let batch = match batch {
            Ok(batch) => batch,
            Err(RecvError::Lagged(batches)) => {
                tracing::warn!(batches, "questions about silent agents may have been missed");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        // A standby follows entries like these; the primary asks.
        if handle.role() != CoordinatorRole::Primary {
            continue;
        }
        for entry in batch.entries.iter() {
            if let EntryBody::Conclusion(Conclusion::SecondOpinionWanted { agent, address, ports, askers, .. }) =
                &entry.body
            {
                // Few at a time: the rules bound how many are asked in a minute.
                let asked = ask(handle.clone(), agent.clone(), entry.index, *address, ports.clone(), askers.clone());
                tokio::spawn(asked);
            }
        }
    }
}

async fn ask(
    handle: Handle,
    agent: AgentName,
    question: u64,
    address: IpAddr,
    ports: Vec<u16>,
    askers: Vec<AgentName>,
) {
    let asked = askers.into_iter().map(|peer| one(&handle, peer, address, &ports));
    let answers: Vec<PeerAnswer> = join_all(asked).await.into_iter().flatten().collect();
    // A coordinator that stops, or reigns no more, pages nobody either.
    if let Err(error) = handle.submit(Fact::SecondOpinion { agent, question, answers }).await {
        tracing::debug!(%error, "a second opinion came too late");
    }
}

async fn one(handle: &Handle, peer: AgentName, address: IpAddr, ports: &[u16]) -> Option<PeerAnswer> {
    let link = handle.links().get(&peer)?;
    let (address, ports) = (address.to_string(), ports.iter().map(|port| u32::from(*port)).collect());
    let question = |id| Message::Neighbour(v1::NeighbourQuestion { id, address, ports });
    match link.ask(question, ANSWER_MAX).await {
        Ok(Answer::Neighbour(answer)) => Some(PeerAnswer {
            peer,
            ports: answer.ports.iter().take(muster_common::limits::LISTENING_PORTS_MAX).filter_map(port).collect(),
            refused: (!answer.refused.is_empty()).then(|| clip(&answer.refused, SUMMARY_BYTES_MAX)),
        }),
        Ok(Answer::Diagnosis(_)) => None,
        Err(why) => {
            tracing::debug!(%peer, ?why, "a neighbour did not answer");
            None
        }
    }
}

fn port(answer: &v1::PortAnswer) -> Option<PortAnswer> {
    use v1::port_answer::Outcome;
    let outcome = match answer.outcome() {
        Outcome::Open => PortOutcome::Open,
        Outcome::Refused => PortOutcome::Refused,
        Outcome::Timeout => PortOutcome::Timeout,
        Outcome::Unreachable => PortOutcome::Unreachable,
        Outcome::Unspecified => return None,
    };
    Some(PortAnswer { port: u16::try_from(answer.port).ok()?, outcome })
}
