//! Gives memory back to the kernel after a mass disconnect. Left to itself the C library's allocator keeps what ten
//! thousand connections freed, for ever: their blocks lie between others that live on.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the connections are counted.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Connections that must have ended before it is worth a walk over the heap, ...
const ENDED_MIN: usize = 256;
/// ... and one in so many of those there were at most.
const ENDED_SHARE: usize = 4;

/// Counts connections now and then, by `count`, and trims the heap when many have ended and no more are ending.
pub(crate) async fn watch(count: impl Fn() -> usize, stop: CancellationToken) {
    let mut ebb = Ebb::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        if ebb.look(count()) {
            // It takes the allocator's locks one after the other: on a thread that nobody waits for.
            let trimmed = tokio::task::spawn_blocking(give_back).await;
            tracing::debug!(ok = trimmed.is_ok(), "gave free memory back after many connections ended");
        }
    }
}

/// Notices when many have gone.
#[derive(Debug, Default)]
struct Ebb {
    /// The most there were since memory was given back.
    high: usize,
    last: usize,
}

impl Ebb {
    /// There are `now` connections: is it time?
    fn look(&mut self, now: usize) -> bool {
        self.high = self.high.max(now);
        let ended = self.high - now;
        let is_still = now >= self.last;
        self.last = now;
        let due = is_still && ended >= ENDED_MIN && ended >= self.high / ENDED_SHARE;
        if due {
            self.high = now;
        }
        due
    }
}

#[expect(unsafe_code, reason = "no safe wrapper of malloc_trim exists in std, nix or rustix")]
#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: takes the allocator's own locks, touches no block that is in use.
    let _released = unsafe { nix::libc::malloc_trim(0) };
}

/// Other C libraries have other allocators.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_when_the_ebb_is_over() {
        let mut ebb = Ebb::default();
        let told: Vec<usize> =
            [0, 9_000, 10_000, 9_900, 6_000, 1_000, 1_000, 900, 900, 5_000, 4_900, 4_900, 3_000, 3_100]
                .into_iter()
                .enumerate()
                .filter_map(|(at, now)| ebb.look(now).then_some(at))
                .collect();
        assert_eq!(told, [6, 13], "when they have gone, and when again more than a quarter has");
    }
}
