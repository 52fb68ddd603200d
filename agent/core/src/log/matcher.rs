//! Many patterns, asked at once which of them match, in time linear in the text and in little memory.
//!
//! The general machine of the regex library is made to find where a match is: it keeps each pattern backwards as well,
//! and a cache per thread. Here only the names of those that match are asked for.

use super::rules::one_line;
use regex::bytes::{RegexSet, RegexSetBuilder};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind, PatternSet};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Bytes of all patterns together, compiled.
const SET_BYTES_MAX: usize = 4 << 20;
/// Bytes of the machine's cache; it is built as texts need it.
const CACHE_BYTES_MAX: usize = 512 * 1024;

/// Patterns that are matched together.
#[derive(Debug)]
pub(super) struct Matcher {
    patterns: Vec<String>,
    /// `None` where a pattern asks for what this machine does not know.
    machine: Option<(DFA, Mutex<Cache>)>,
    /// The general one, made when it is needed.
    general: OnceLock<Option<RegexSet>>,
}

impl Matcher {
    /// Compiles them; what is wrong is told in one line.
    pub(super) fn new(patterns: Vec<String>) -> Result<Self, String> {
        let machine = machine(&patterns).map(|machine| {
            let cache = Mutex::new(machine.create_cache());
            (machine, cache)
        });
        let general = match &machine {
            Some(_) => OnceLock::new(),
            None => OnceLock::from(Some(set(&patterns).map_err(|error| one_line(&error))?)),
        };
        Ok(Self { patterns, machine, general })
    }

    /// Numbers of those that match, in order.
    pub(super) fn matches(&self, text: &[u8]) -> Vec<usize> {
        self.by_machine(text).unwrap_or_else(|| self.by_general(text))
    }

    /// `None` where the machine cannot tell.
    fn by_machine(&self, text: &[u8]) -> Option<Vec<usize>> {
        let (machine, cache) = self.machine.as_ref()?;
        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        let input = Input::new(text).earliest(true);
        // Nearly every line ends here.
        if machine.try_search_fwd(&mut cache, &input).ok()?.is_none() {
            return Some(Vec::new());
        }
        let mut matching = PatternSet::new(machine.pattern_len());
        machine.try_which_overlapping_matches(&mut cache, &Input::new(text), &mut matching).ok()?;
        Some(matching.iter().map(|pattern| pattern.as_usize()).collect())
    }

    fn by_general(&self, text: &[u8]) -> Vec<usize> {
        let general = self.general.get_or_init(|| set(&self.patterns).ok());
        general.as_ref().map(|set| set.matches(text).into_iter().collect()).unwrap_or_default()
    }
}

fn machine(patterns: &[String]) -> Option<DFA> {
    DFA::builder()
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .thompson(
            thompson::Config::new().utf8(false).which_captures(WhichCaptures::None).nfa_size_limit(Some(SET_BYTES_MAX)),
        )
        // A word boundary that knows Unicode is right as long as the text is ASCII; other texts are told as errors.
        .configure(DFA::config().match_kind(MatchKind::All).unicode_word_boundary(true).cache_capacity(CACHE_BYTES_MAX))
        .build_many(patterns)
        .ok()
}

fn set(patterns: &[String]) -> Result<RegexSet, regex::Error> {
    // ASCII classes: a tenth of the memory. `(?u)` turns them on where a pattern needs them.
    let mut builder = RegexSetBuilder::new(patterns);
    builder.unicode(false).size_limit(SET_BYTES_MAX).dfa_size_limit(CACHE_BYTES_MAX).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn both(patterns: &[&str], text: &[u8]) -> Vec<usize> {
        let matcher = Matcher::new(patterns.iter().map(|pattern| (*pattern).to_owned()).collect()).unwrap();
        let matching = matcher.matches(text);
        assert_eq!(matching, matcher.by_general(text), "{patterns:?} on {text:?}");
        matching
    }

    #[test]
    fn all_that_match_are_told_in_their_order() {
        let patterns = ["b+", "^a", "x$", "(?i)ABC", r"\bb\b", "", r"(?u)\bä", r"\w{3}"];
        assert_eq!(both(&patterns, b"abc"), [0, 1, 3, 5, 7]);
        assert_eq!(both(&patterns, b"\xff b x"), [0, 2, 4, 5]);
        assert_eq!(both(&patterns, "zu ändern".as_bytes()), [5, 6, 7]);
        assert_eq!(both(&patterns[..3], b"none"), [0usize; 0]);
    }

    #[test]
    fn what_is_wrong_with_a_pattern_is_told() {
        assert!(Matcher::new(vec!["a(b".to_owned()]).unwrap_err().contains("unclosed group"));
        assert!(Matcher::new(vec![r"(\w{1,500}){1,500}".to_owned()]).unwrap_err().contains("too large"));
    }

    proptest! {
        #[test]
        fn it_says_what_the_general_one_says(
            patterns in proptest::collection::vec("[ab.*+?|()^$\\\\bw]{0,8}", 1..4),
            text in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b' '), any::<u8>()], 0..40),
        ) {
            if let Ok(matcher) = Matcher::new(patterns) {
                prop_assert_eq!(matcher.matches(&text), matcher.by_general(&text));
            }
        }
    }
}
