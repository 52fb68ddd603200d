//! What SQLite's sentences about damage mean: which table or index, and whether a REINDEX would mend it.

use std::collections::{BTreeMap, BTreeSet};

/// Sentences kept: the first ones tell, the rest repeat.
pub const MESSAGES_MAX: usize = 20;
/// Names of tables and indexes kept.
const NAMES_MAX: usize = 8;

/// One entry of `sqlite_schema` that has a b-tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaEntry {
    /// Its name.
    pub name: String,
    /// True for an index.
    pub index: bool,
    /// The table it belongs to.
    pub table: String,
}

/// Root page to entry.
pub type Roots = BTreeMap<u64, SchemaEntry>;

/// What is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Damage {
    /// SQLite's sentences, at most [`MESSAGES_MAX`].
    pub messages: Vec<String>,
    /// Damaged tables, where they could be told.
    pub tables: BTreeSet<String>,
    /// Damaged indexes, where they could be told.
    pub indexes: BTreeSet<String>,
    /// A sentence could not be pinned to a table or an index.
    pub elsewhere: bool,
    /// Every sentence is about the content of rows (a NULL or a value that a constraint forbids), none about structure.
    pub content_only: bool,
}

impl Damage {
    /// Reads SQLite's sentences. A row of `quick_check` may hold several lines.
    pub fn read<'a>(rows: impl IntoIterator<Item = &'a str>, roots: &Roots) -> Self {
        let mut damage = Self { content_only: true, ..Self::default() };
        for line in rows.into_iter().flat_map(str::lines).map(str::trim) {
            if line.is_empty() || line == "ok" || line.starts_with("*** in database") {
                continue;
            }
            damage.add(line, roots);
        }
        damage.content_only &= !damage.messages.is_empty();
        damage
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Only indexes are damaged: their content can be made again from the tables.
    pub fn only_indexes(&self) -> bool {
        self.tables.is_empty() && !self.indexes.is_empty() && !self.elsewhere
    }

    /// `table "jobs", index "jobs_by_state"`; empty when nothing could be told.
    pub fn names(&self) -> String {
        let named = |kind: &'static str| move |name: &String| format!("{kind} {name:?}");
        let tables = self.tables.iter().map(named("table"));
        let all: Vec<_> = tables.chain(self.indexes.iter().map(named("index"))).collect();
        match all.len().checked_sub(NAMES_MAX) {
            Some(more @ 1..) => format!("{} and {more} more", all[..NAMES_MAX].join(", ")),
            _ => all.join(", "),
        }
    }

    /// True when both tell of the same place: the same sentence, table or index, or both of a place without a name.
    pub fn overlaps(&self, other: &Self) -> bool {
        (self.elsewhere && other.elsewhere)
            || !self.tables.is_disjoint(&other.tables)
            || !self.indexes.is_disjoint(&other.indexes)
            || self.messages.iter().any(|message| other.messages.contains(message))
    }

    /// Adds what another pass found.
    pub fn merge(&mut self, other: Self) {
        self.content_only = (self.content_only || self.is_empty()) && other.content_only;
        for message in other.messages {
            if self.messages.len() < MESSAGES_MAX && !self.messages.contains(&message) {
                self.messages.push(message);
            }
        }
        self.tables.extend(other.tables);
        self.indexes.extend(other.indexes);
        self.elsewhere |= other.elsewhere;
    }

    /// Damage that showed itself as an error while `table` was read.
    pub fn of_table(table: &str, message: &str) -> Self {
        let tables = BTreeSet::from([table.to_owned()]);
        Self { messages: vec![message.to_owned()], tables, ..Self::default() }
    }

    /// Damage that showed itself as an error before any table could be read.
    pub fn of_file(message: &str) -> Self {
        Self { messages: vec![message.to_owned()], elsewhere: true, ..Self::default() }
    }

    fn add(&mut self, line: &str, roots: &Roots) {
        self.content_only &= is_about_content(line);
        if let Some(index) = index_named_in(line) {
            self.indexes.insert(index.to_owned());
        } else if let Some(table) = table_named_in(line) {
            self.tables.insert(table.to_owned());
        } else if let Some(entry) = root_in(line).and_then(|root| roots.get(&root)) {
            let set = if entry.index { &mut self.indexes } else { &mut self.tables };
            set.insert(entry.name.clone());
        } else {
            self.elsewhere = true;
        }
        if self.messages.len() < MESSAGES_MAX {
            self.messages.push(line.to_owned());
        }
    }
}

fn is_about_content(line: &str) -> bool {
    line.starts_with("NULL value in ")
        || line.starts_with("CHECK constraint failed in ")
        || (line.contains(" value in ") && !line.starts_with("row "))
}

/// `row 3 missing from index X`, `wrong # of entries in index X`, `non-unique entry in index X`, `rowid not at end-of-
/// record for row 3 of index X`, `row 3 values differ from index X`.
fn index_named_in(line: &str) -> Option<&str> {
    let (_, name) = line.rsplit_once(" index ")?;
    (!name.is_empty() && !line.starts_with("malformed inverted")).then_some(name)
}

/// `NULL value in T.C`, `CHECK constraint failed in T`, `malformed inverted index for FTS5 table main.T`, `row not in
/// PRIMARY KEY order for T`, `unable to validate the inverted index for FTS5 table main.T: …`.
fn table_named_in(line: &str) -> Option<&str> {
    if let Some((_, rest)) = line.split_once("FTS").and_then(|(_, rest)| rest.split_once(" table ")) {
        let name = rest.split_once('.').map_or(rest, |(_, name)| name);
        return Some(name.split_once(':').map_or(name, |(name, _)| name));
    }
    if let Some(name) = line.strip_prefix("CHECK constraint failed in ") {
        return Some(name);
    }
    if let Some((_, name)) = line.split_once(" PRIMARY KEY order for ") {
        return Some(name);
    }
    let (_, place) = line.split_once(" value in ")?;
    Some(place.rsplit_once('.').map_or(place, |(table, _)| table))
}

/// The root page in `Tree R page P cell C: …` and in the older `On tree page R cell C: …`.
fn root_in(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("Tree ").or_else(|| line.strip_prefix("On tree page "))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn roots() -> Roots {
        let entry = |name: &str, index| SchemaEntry { name: name.into(), index, table: "jobs".into() };
        Roots::from([(2, entry("jobs", false)), (3, entry("jobs_by_state", true))])
    }

    #[test]
    fn names_what_is_damaged() {
        let damage = Damage::read(["Tree 2 page 9 cell 3: Rowid 7 out of order", "ok"], &roots());
        assert_eq!(damage.names(), "table \"jobs\"");
        assert!(!damage.only_indexes() && !damage.content_only);
        let damage =
            Damage::read(["*** in database main ***\nTree 3 page 4: bad\nrow 3 missing from index a b"], &roots());
        assert_eq!(damage.names(), "index \"a b\", index \"jobs_by_state\"");
        assert!(damage.only_indexes());
        let damage = Damage::read(["malformed inverted index for FTS5 table main.notes"], &roots());
        assert_eq!(damage.names(), "table \"notes\"");
        let damage = Damage::read(["NULL value in jobs.state"], &roots());
        assert!(damage.content_only && damage.names() == "table \"jobs\"");
        let damage = Damage::read(["Page 12: never used"], &roots());
        assert!(damage.elsewhere && damage.names().is_empty());
        assert!(Damage::read(["ok"], &roots()).is_empty());
    }

    #[test]
    fn damage_elsewhere_confirms_nothing() {
        let table = Damage::read(["Tree 2 page 9 cell 3: Rowid 7 out of order"], &roots());
        let same = Damage::of_table("jobs", "database disk image is malformed");
        let index = Damage::read(["Tree 3 page 4: bad"], &roots());
        assert!(table.overlaps(&same) && same.overlaps(&table));
        assert!(!table.overlaps(&index) && !index.overlaps(&Damage::of_file("file is not a database")));
    }

    #[test]
    fn merging_keeps_structure_damage() {
        let mut damage = Damage::read(["NULL value in jobs.state"], &roots());
        damage.merge(Damage::of_table("jobs", "database disk image is malformed"));
        assert!(!damage.content_only);
        let mut fresh = Damage::default();
        fresh.merge(Damage::read(["NULL value in jobs.state"], &roots()));
        assert!(fresh.content_only);
    }

    proptest! {
        #[test]
        fn never_panics(rows in proptest::collection::vec("(Tree|On tree page|row| index| value in|FTS5 table|[0-9 .:äa-z\n]){0,12}", 0..60)) {
            let damage = Damage::read(rows.iter().map(String::as_str), &roots());
            let _ = damage.names();
            prop_assert!(damage.messages.len() <= MESSAGES_MAX);
        }
    }
}
