//! A descriptor that one thread makes readable to wake another.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Rings until it is silenced; cheap to clone.
#[derive(Debug, Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// One that is silent.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        // Full means it rings already.
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).ok();
    }

    /// Takes the ringing back. Do this before you look for what it told of, never after.
    pub fn silence(&self) {
        let mut rings = [0u8; 8];
        // Fails when it did not ring.
        rustix::io::read(&self.0, &mut rings).ok();
    }

    /// The descriptor, for [`crate::probe::Probe::wake`].
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
