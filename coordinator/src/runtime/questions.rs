//! Questions to a connected agent that it answers in its own time: a diagnosis, a look at a neighbour. An answer nobody
//! waits for is dropped.

use super::handle::lock;
use super::links::Link;
use muster_proto::v1::connect_response::Message;
use muster_proto::v1::{self, ConnectResponse};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::oneshot;

/// Questions that wait for one agent. Overflow rule: one more is not asked.
const WAITING_MAX: usize = 8;

/// What an agent answers.
#[derive(Debug)]
pub enum Answer {
    /// What it holds to be wrong.
    Diagnosis(v1::DiagnoseAnswer),
    /// Whether a neighbour answers it.
    Neighbour(v1::NeighbourAnswer),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// Too many questions wait, or it does not read.
    Busy,
    /// Its stream ended.
    Gone,
    /// It did not answer in time.
    Late,
}

/// The questions of one stream.
#[derive(Debug, Default)]
pub struct Questions(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    asked: u64,
    by_id: BTreeMap<u64, oneshot::Sender<Answer>>,
}

impl Questions {
    /// An answer came.
    pub fn answered(&self, id: u64, answer: Answer) {
        if let Some(waiting) = lock(&self.0).by_id.remove(&id) {
            // Whoever asked may have gone.
            drop(waiting.send(answer));
        }
    }

    fn add(&self) -> Option<(u64, oneshot::Receiver<Answer>)> {
        let mut waiting = lock(&self.0);
        waiting.by_id.retain(|_, sender| !sender.is_closed());
        if waiting.by_id.len() >= WAITING_MAX {
            return None;
        }
        waiting.asked += 1;
        let id = waiting.asked;
        let (sender, answer) = oneshot::channel();
        waiting.by_id.insert(id, sender);
        Some((id, answer))
    }
}

impl Link {
    /// Asks what `question` makes of a fresh id and waits for the answer, at most for `patience`.
    pub async fn ask(&self, question: impl FnOnce(u64) -> Message, patience: Duration) -> Result<Answer, NoAnswer> {
        let (id, answer) = self.questions.add().ok_or(NoAnswer::Busy)?;
        let message = Some(question(id));
        self.outbox.try_send(Ok(ConnectResponse { message })).map_err(|_| NoAnswer::Busy)?;
        tokio::select! {
            answer = tokio::time::timeout(patience, answer) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(NoAnswer::Gone),
                Err(_) => Err(NoAnswer::Late),
            },
            () = self.outbox.closed() => Err(NoAnswer::Gone),
        }
    }
}
