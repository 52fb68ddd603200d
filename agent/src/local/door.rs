//! Who may hold a connection to the agent's socket, how many, and for how long: everybody may connect, so one user must
//! not take the agent's descriptors and memory from all others, nor the last place from root.
//!
//! Must never wait: who finds no place is sent away at once.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Connections of one user; root and the agent's own user have more, and places of their own.
const PLACES_PER_USER_MAX: usize = 8;
/// Connections of root, and of the agent's own user.
const PLACES_OF_TRUSTED_MAX: usize = 32;
/// Connections of all other users together: some 16 KiB each.
const PLACES_OF_OTHERS_MAX: usize = 64;
/// Who sends nothing for so long has to connect again.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// That somebody was sent away is logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Counts who is in.
#[derive(Debug, Clone, Default)]
pub(super) struct Door(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    taken: BTreeMap<u32, usize>,
    sent_away: u64,
    logged: Option<Instant>,
}

/// One place, given back when it is dropped.
#[derive(Debug)]
struct Place {
    door: Door,
    uid: u32,
}

/// A connection that has a place.
#[derive(Debug)]
pub(super) struct Guest {
    stream: UnixStream,
    idle: Pin<Box<Sleep>>,
    _place: Place,
}

impl Door {
    /// Lets a connection in; `None` where its user, or all others together, have all their places.
    pub(super) fn admit(&self, stream: UnixStream) -> Option<Guest> {
        let uid = stream.peer_cred().ok()?.uid();
        let place = self.take(uid, nix::unistd::Uid::effective().as_raw())?;
        Some(Guest { stream, idle: Box::pin(sleep(IDLE_MAX)), _place: place })
    }

    fn take(&self, uid: u32, own: u32) -> Option<Place> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let trusted = |uid: u32| uid == 0 || uid == own;
        let of_user = places.taken.get(&uid).copied().unwrap_or(0);
        let of_others: usize = places.taken.iter().filter(|(uid, _)| !trusted(**uid)).map(|(_, count)| *count).sum();
        let free = match trusted(uid) {
            true => of_user < PLACES_OF_TRUSTED_MAX,
            false => of_user < PLACES_PER_USER_MAX && of_others < PLACES_OF_OTHERS_MAX,
        };
        if free {
            *places.taken.entry(uid).or_default() += 1;
            return Some(Place { door: self.clone(), uid });
        }
        places.sent_away = places.sent_away.saturating_add(1);
        if places.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            places.logged = Some(Instant::now());
            tracing::warn!(uid, sent_away = places.sent_away, "too many connections to the local socket");
        }
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.door.0.lock().unwrap_or_else(PoisonError::into_inner);
        match places.taken.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(places.taken.remove(&self.uid)),
        }
    }
}

impl Connected for Guest {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.idle.as_mut().reset(tokio::time::Instant::now() + IDLE_MAX);
            return read;
        }
        self.idle.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 998;

    #[test]
    fn one_user_takes_its_places_and_nobody_elses() {
        let door = Door::default();
        let mut held: Vec<_> = (0..100).filter_map(|_| door.take(1000, OWN)).collect();
        assert_eq!(held.len(), PLACES_PER_USER_MAX);
        for uid in 1001..1100 {
            held.extend((0..100).filter_map(|_| door.take(uid, OWN)));
        }
        assert_eq!(held.len(), PLACES_OF_OTHERS_MAX);
        for uid in [0, OWN] {
            let trusted: Vec<_> = (0..100).filter_map(|_| door.take(uid, OWN)).collect();
            assert_eq!(trusted.len(), PLACES_OF_TRUSTED_MAX);
        }
        drop(held);
        assert!(door.take(1000, OWN).is_some(), "places come back");
        assert!(door.0.lock().unwrap().taken.is_empty());
    }
}
