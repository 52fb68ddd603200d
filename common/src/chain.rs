//! Prints an error with all its causes in one line. `Display` of our errors never repeats its source, so the chain
//! reads like a sentence: `cannot open the spool: disk I/O error: no space left on device`.

use std::error::Error;
use std::fmt;

/// Shows `error` and every `source` below it, separated by `: `.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        // Bounded: a cyclic chain is a bug elsewhere, not a reason to hang a log line.
        for _ in 0..16 {
            let Some(cause) = next else { break };
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the spool")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn prints_the_whole_chain() {
        let error = Outer(std::io::Error::other("no space left"));
        assert_eq!(Chain(&error).to_string(), "cannot open the spool: no space left");
    }
}
