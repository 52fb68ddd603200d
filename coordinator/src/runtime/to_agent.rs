//! The queue of messages to one agent. Each message has a block of its own: the queue keeps room for thirty-two of them
//! from its beginning on, and a welcome is large. In place that would be most of what an idle agent costs.

use futures_util::Stream;
use muster_proto::v1::ConnectResponse;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tonic::Status;

/// Messages waiting for one agent (acks, pings, resyncs). Overflow rule: the newest is not sent; every one of them is
/// repeated or superseded by a later one.
pub const LINK_OUTBOX_MESSAGES_MAX: usize = 16;

/// A message, or the word that ends the stream.
pub type ToAgent = Result<ConnectResponse, Status>;

/// The queue is full, or the stream is gone.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent does not read, or is gone")]
pub struct NotTaken;

/// Where messages go in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox(mpsc::Sender<Box<ToAgent>>);

/// Room for one message.
#[derive(Debug)]
pub struct Room<'a>(mpsc::Permit<'a, Box<ToAgent>>);

/// Where they come out: the body of the stream's answer.
#[derive(Debug)]
pub struct Messages(mpsc::Receiver<Box<ToAgent>>);

impl Outbox {
    /// An empty queue.
    pub fn new() -> (Self, Messages) {
        let (sender, receiver) = mpsc::channel(LINK_OUTBOX_MESSAGES_MAX);
        (Self(sender), Messages(receiver))
    }

    /// Puts a message in, if there is room.
    pub fn try_send(&self, message: ToAgent) -> Result<(), NotTaken> {
        self.0.try_send(Box::new(message)).map_err(|_| NotTaken)
    }

    /// Puts a message in, as soon as there is room.
    pub async fn send(&self, message: ToAgent) -> Result<(), NotTaken> {
        self.0.send(Box::new(message)).await.map_err(|_| NotTaken)
    }

    /// Waits for room.
    pub async fn reserve(&self) -> Result<Room<'_>, NotTaken> {
        self.0.reserve().await.map(Room).map_err(|_| NotTaken)
    }

    /// Waits for the end of the stream.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

impl Room<'_> {
    /// Puts a message in.
    pub fn send(self, message: ToAgent) {
        self.0.send(Box::new(message));
    }
}

impl Stream for Messages {
    type Item = ToAgent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ToAgent>> {
        self.0.poll_recv(cx).map(|message| message.map(|message| *message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;

    #[tokio::test]
    async fn what_is_beyond_the_bound_is_not_taken() {
        let (outbox, mut messages) = Outbox::new();
        for _ in 0..LINK_OUTBOX_MESSAGES_MAX {
            outbox.try_send(Ok(ConnectResponse::default())).unwrap();
        }
        assert_eq!(outbox.try_send(Ok(ConnectResponse::default())), Err(NotTaken));
        assert!(messages.next().await.unwrap().is_ok());
        outbox.reserve().await.unwrap().send(Err(Status::unavailable("draining")));
        drop(messages);
        assert_eq!(outbox.send(Ok(ConnectResponse::default())).await, Err(NotTaken));
        outbox.closed().await;
    }
}
