//! Snapshots made beside the loop: it copies State and goes on; another thread turns the copy into JSON and packs it,
//! which takes many times longer.

use super::handle::RuntimeError;
use crate::store::packed::Packed;
use crate::store::{Head, StoreError};
use muster_coordinator_core::state::State;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

/// A snapshot in the making.
#[derive(Debug)]
pub(super) struct Encoding {
    head: Head,
    body: Receiver<Result<Packed, RuntimeError>>,
}

impl Encoding {
    /// Begins with a copy of committed State, as of `head`.
    pub(super) fn begin(state: State, head: Head) -> Result<Self, RuntimeError> {
        let (tell, body) = sync_channel(1);
        std::thread::Builder::new()
            .name("snapshot".to_owned())
            .spawn(move || {
                // Whoever began it may have gone.
                drop(tell.send(packed(&state)));
            })
            .map_err(|error| RuntimeError::State(format!("cannot start a snapshot's thread: {error}")))?;
        Ok(Self { head, body })
    }

    /// The snapshot, once it is made.
    pub(super) fn made(&self) -> Option<Result<(Head, Packed), RuntimeError>> {
        match self.body.try_recv() {
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                Some(Err(RuntimeError::State("a snapshot's thread panicked".to_owned())))
            }
            Ok(body) => Some(body.map(|body| (self.head, body))),
        }
    }
}

/// State as the store keeps it.
pub(super) fn packed(state: &State) -> Result<Packed, RuntimeError> {
    let json = serde_json::to_vec(state);
    let json = json.map_err(|error| RuntimeError::State(format!("cannot encode a snapshot: {error}")))?;
    Ok(Packed::of(&json).map_err(StoreError::Pack)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_the_state_it_began_with() {
        let head = Head { index: 7, ..Head::default() };
        let encoding = Encoding::begin(State::genesis(), head).unwrap();
        let made = loop {
            if let Some(made) = encoding.made() {
                break made.unwrap();
            }
            std::thread::yield_now();
        };
        assert_eq!(made, (head, packed(&State::genesis()).unwrap()));
    }
}
