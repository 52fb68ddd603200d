//! What a support bundle is made of, without touching the host: an archive with one strict reader, and the removal of
//! secrets from whole texts.

mod secrets;

pub use muster_common::archive;
pub use secrets::{clean_json, clean_text};
