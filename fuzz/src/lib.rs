//! What every fuzz target does: gives its bytes to the parser of its name. The parsers, and what they promise, are
//! those of the tests `any_bytes`.

#[path = "../../agent/core/tests/any_bytes/parsers.rs"]
pub mod parsers;

#[cfg(feature = "agent")]
#[path = "../../agent/tests/any_bytes/parsers.rs"]
pub mod agent_parsers;

/// The entry of a target.
#[macro_export]
macro_rules! target {
    ($module:ident :: $parser:ident) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::$module::$parser(bytes));
    };
}
