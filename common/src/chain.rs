//! Prints an error with all its causes in one line. `Display` of our errors never repeats its source, so the chain
//! reads like a sentence: `cannot open the spool: disk I/O error: no space left on device`. Others' errors do repeat
//! theirs, some of them twice: a cause with which the text already ends is left out.

use std::error::Error;
use std::fmt;

/// Shows `error` and every `source` below it, separated by `: `.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut next = self.0.source();
        // Bounded: a cyclic chain is a bug elsewhere, not a reason to hang a log line.
        for _ in 0..16 {
            let Some(cause) = next else { break };
            let words = cause.to_string();
            if !text.ends_with(&words) {
                text.push_str(": ");
                text.push_str(&words);
            }
            next = cause.source();
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the spool")]
    struct Outer(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Layer {
        says: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn nothing_is_said_twice() {
        let layers =
            ["refused (111)", "refused (111)", "connect: refused (111)", "connect: refused (111)", "transport"];
        let wrap = |source, says| Some(Box::new(Layer { says, source }));
        let error = layers.into_iter().fold(None, wrap).unwrap();
        assert_eq!(Chain(&*error).to_string(), "transport: connect: refused (111)");
    }

    #[test]
    fn prints_the_whole_chain() {
        let error = Outer(std::io::Error::other("no space left"));
        assert_eq!(Chain(&error).to_string(), "cannot open the spool: no space left");
    }
}
