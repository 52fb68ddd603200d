//! What a support bundle is made of, without touching the host: an archive with one strict reader, and the removal of
//! secrets from whole texts.

pub mod archive;
mod secrets;

pub use secrets::{clean_json, clean_text};
