//! The loop itself.
