//! The wire: `muster.v1` messages and services.
//!
//! Invariant: wire types stop here. [`convert`] turns them into domain types with every limit enforced; nothing past
//! this crate sees a message that breaks a bound.

pub mod codec;
pub mod convert;

/// Generated from `proto/muster/v1/*.proto`; the doc comments are there.
#[expect(missing_docs, clippy::allow_attributes_without_reason, clippy::large_enum_variant, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("muster.v1");
}

/// The encoded descriptor set, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/muster.fds"));
