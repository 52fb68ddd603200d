//! A page about a config, held to the walk that reads it: the page names every key that the walk knows and no other, its
//! defaults are those of the code, its bounds those that a mistake is told with, and its examples pass. Shared by the
//! tests of both programs.
//!
//! What is known is asked of the walk itself: a key that nobody knows is answered with all that there are.

use muster_common::config::ConfigErrors;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// So unlike any key that no other is meant.
const UNKNOWN: &str = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq";
/// Where a line of a table goes in the text of a section.
const HERE: &str = "HERE";
/// What is said of a key that is asked for only to be refused.
const REFUSED: &str = "would be a secret";

/// One section of the page and a config around its table: with nothing in place of `HERE` it passes.
pub(crate) struct Section {
    pub(crate) heading: &'static str,
    pub(crate) config: &'static str,
    /// Keys that the config around it gives already.
    pub(crate) given: &'static [&'static str],
    /// Another heading whose keys belong to this table as well.
    pub(crate) shared: Option<&'static str>,
}

pub(crate) const fn section(heading: &'static str, config: &'static str, given: &'static [&'static str]) -> Section {
    Section { heading, config, given, shared: None }
}

/// What the page says of a key.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    kind: &'static str,
    default: &'static str,
}

/// Keys of one table.
type Rows = BTreeMap<&'static str, Row>;

/// The page and what it is about.
pub(crate) struct Page<T> {
    pub(crate) document: &'static str,
    pub(crate) sections: &'static [Section],
    /// Tables whose keys are told in words.
    pub(crate) in_words: &'static [&'static str],
    pub(crate) parse: fn(&str) -> Result<T, ConfigErrors>,
}

impl<T: PartialEq + Debug> Page<T> {
    /// Heading to its keys.
    fn documented(&self) -> BTreeMap<&'static str, Rows> {
        let mut sections: BTreeMap<_, Rows> = BTreeMap::new();
        let mut heading = "";
        for line in self.document.lines() {
            if let Some(title) = line.strip_prefix("##") {
                heading = title.trim_start_matches('#').trim().trim_matches('`');
            }
            let cells: Vec<&str> = line.split(" | ").collect();
            let key = cells[0].strip_prefix("| `").and_then(|rest| rest.strip_suffix('`'));
            if let (Some(key), [_, kind, default, ..]) = (key, cells.as_slice()) {
                let twice = sections.entry(heading).or_default().insert(key, Row { kind, default });
                assert_eq!(twice, None, "{heading} {key} is there twice");
            }
        }
        sections
    }

    fn rows(&self, section: &Section) -> Rows {
        let documented = self.documented();
        let headings = [Some(section.heading), section.shared].into_iter().flatten();
        let rows = headings
            .flat_map(|heading| documented.get(heading).unwrap_or_else(|| panic!("no section {heading}")).clone());
        rows.collect()
    }

    /// What the walk expects in place of a key it does not know.
    pub(crate) fn known(&self, config: &str) -> BTreeSet<String> {
        let text = config.replace(HERE, &format!("{UNKNOWN} = 1"));
        let errors = (self.parse)(&text).unwrap_err();
        let told = errors.mistakes.iter().find(|mistake| mistake.message.contains(UNKNOWN)).unwrap();
        let keys = told.expected.strip_prefix("expected one of: ").unwrap_or_else(|| panic!("{config}: {told:?}"));
        let is_taken = |key: &&str| {
            let errors = (self.parse)(&config.replace(HERE, &format!("{key} = \"x\""))).err();
            !errors.is_some_and(|errors| errors.mistakes.iter().any(|mistake| mistake.message.contains(REFUSED)))
        };
        keys.split(", ").filter(is_taken).map(str::to_owned).collect()
    }

    /// The same with the keys of the tables within, `table.key`.
    fn known_within(&self, config: &str) -> BTreeSet<String> {
        let tables = self.known(config).into_iter();
        let keys = tables.flat_map(|table| {
            let within = self.known(&config.replace(HERE, &format!("{table}.{HERE}")));
            within.into_iter().map(move |key| format!("{table}.{key}"))
        });
        keys.collect()
    }

    pub(crate) fn names_every_key_and_no_other(&self) {
        let mut headings = BTreeSet::new();
        for section in self.sections {
            let rows = self.rows(section);
            let is_dotted = rows.keys().any(|key| key.contains('.'));
            let of_code = if is_dotted { self.known_within(section.config) } else { self.known(section.config) };
            let of_document: BTreeSet<String> = rows.keys().map(|key| (*key).to_owned()).collect();
            assert_eq!(of_document, of_code, "left: the document, right: the code, in {}", section.heading);
            headings.extend([Some(section.heading), section.shared].into_iter().flatten());
        }
        assert_eq!(self.documented().keys().copied().collect::<BTreeSet<_>>(), headings);
        // Every table of the file has a section; of the tables within services those that are told above.
        for table in self.known(HERE) {
            let forms = ["[T]", "[[T]]", "[T.NAME]", "[[T.KIND]]"].map(|form| form.replace('T', &table));
            let is_told = forms.iter().any(|form| headings.contains(form.as_str()));
            assert!(is_told || self.in_words.contains(&table.as_str()), "{table}");
        }
    }

    pub(crate) fn defaults_are_those_of_the_code(&self, least: usize) {
        let mut compared = 0;
        for section in self.sections {
            let rows = self.rows(section);
            let literals: Vec<String> = rows
                .iter()
                .filter(|(key, _)| !section.given.contains(*key))
                .filter_map(|(key, row)| Some((key, row.default.strip_prefix('`')?.strip_suffix('`')?)))
                // Words with code at both ends are no value.
                .filter(|(_, value)| !value.contains('`'))
                .map(|(key, value)| format!("{key} = {value}"))
                .collect();
            compared += literals.len();
            let parse = |lines: &str| (self.parse)(&section.config.replace(HERE, lines));
            let (plain, full) = (parse("").unwrap_or_else(|errors| panic!("{errors}")), parse(&literals.join("\n")));
            assert_eq!(full.unwrap_or_else(|errors| panic!("{errors}")), plain, "{}", section.heading);
        }
        assert!(compared >= least, "only {compared} defaults were compared");
    }

    pub(crate) fn bounds_are_those_that_mistakes_are_told_with(&self, least: usize) {
        let mut compared = 0;
        for section in self.sections {
            for (key, row) in self.rows(section) {
                let beyond = match row.kind.split(' ').next() {
                    Some("duration") => "\"99999d\"",
                    Some("whole") => "-1",
                    // One without words for its bounds has those of its neighbour.
                    Some("number") if row.kind != "number" => "-1",
                    _ => continue,
                };
                let errors = (self.parse)(&section.config.replace(HERE, &format!("{key} = {beyond}"))).unwrap_err();
                let bounds = row.kind.split(';').next().unwrap_or_default();
                assert!(errors.mistakes[0].expected.ends_with(bounds), "{} {key}: {errors}", section.heading);
                compared += 1;
            }
        }
        assert!(compared >= least, "only {compared} bounds were compared");
    }

    pub(crate) fn every_example_passes(&self, least: usize) {
        let mut examples = 0;
        for block in self.document.split("```toml\n").skip(1) {
            let text = block.split("```").next().unwrap();
            (self.parse)(text).unwrap_or_else(|errors| panic!("{errors}"));
            examples += 1;
        }
        assert!(examples >= least, "only {examples} examples were found");
    }
}
