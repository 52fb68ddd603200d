//! Were rows lost? Rows come and go, so a smaller number alone says nothing. It counts only across an event at which no
//! row should go: the file was replaced or written over by another one, an upgrade raised `user_version`, or the table
//! was made anew. The last count before it is compared with the first one after it.

use crate::clock::Now;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A loss is told this long, unless the rows come back; then the number that is left is the new normal.
const TOLD_FOR: Duration = Duration::from_secs(24 * 3600);
/// Tables remembered: the bound of the config, with room for names that were taken out of it.
const TABLES_MAX: usize = 64;

/// What a count belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The file.
    pub inode: u64,
    /// `PRAGMA user_version`.
    pub user_version: i64,
    /// The header's; it never counts back in one database.
    pub change_counter: u32,
    /// Hash of the table's own CREATE statement; zero when there is no such table.
    pub table_sql_hash: u64,
}

/// What happened between two counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The path names another file.
    Replaced,
    /// Another database was written over it.
    Overwritten,
    /// `user_version` changed.
    Upgraded,
    /// The table was made anew.
    TableRemade,
    /// There is no such table any more.
    TableGone,
}

impl Event {
    /// As part of a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "since the file was replaced",
            Self::Overwritten => "since another database was written over it",
            Self::Upgraded => "since its user_version changed",
            Self::TableRemade => "since the table was made anew",
            Self::TableGone => "since the table went away",
        }
    }
}

impl Version {
    fn event(&self, now: &Self) -> Option<Event> {
        // The counter wraps around.
        let counted_back = now.change_counter.wrapping_sub(self.change_counter).cast_signed() < 0;
        if self.inode != now.inode {
            Some(Event::Replaced)
        } else if self.user_version != now.user_version {
            Some(Event::Upgraded)
        } else if now.table_sql_hash == 0 && self.table_sql_hash != 0 {
            Some(Event::TableGone)
        } else if self.table_sql_hash != now.table_sql_hash {
            Some(Event::TableRemade)
        } else if counted_back {
            Some(Event::Overwritten)
        } else {
            None
        }
    }
}

/// Rows that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Rows at the last count before.
    pub before: u64,
    /// Rows now.
    pub after: u64,
    /// Rows that would be enough.
    pub enough: u64,
    /// What happened in between.
    pub event: Event,
    since_boottime_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    version: Version,
    rows: u64,
    lost: Option<Lost>,
}

/// The named tables of one database; saved across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rows {
    tables: BTreeMap<String, Table>,
}

impl Rows {
    /// Notes a count (zero where there is no such table); `min_percent` of the rows must outlive an event.
    pub fn note(&mut self, table: &str, version: Version, rows: u64, min_percent: u32, now: &Now) {
        let Some(known) = self.tables.get_mut(table) else {
            // A table that is not there yet has nothing to lose.
            if self.tables.len() < TABLES_MAX && version.table_sql_hash != 0 {
                self.tables.insert(table.to_owned(), Table { version, rows, lost: None });
            }
            return;
        };
        let event = known.version.event(&version);
        if let Some(lost) = &mut known.lost {
            lost.after = rows;
            if rows >= lost.enough {
                known.lost = None;
            }
        } else if let Some(event) = event {
            let enough = enough(known.rows, min_percent);
            if rows < enough {
                let since_boottime_ms = now.boottime_ms;
                known.lost = Some(Lost { before: known.rows, after: rows, enough, event, since_boottime_ms });
            }
        }
        (known.version, known.rows) = (version, rows);
    }

    /// Forgets what was told for long enough. To be called once per run.
    pub fn age(&mut self, now: &Now) {
        for table in self.tables.values_mut() {
            if let Some(lost) = &mut table.lost {
                // After a reboot the clock starts again.
                lost.since_boottime_ms = lost.since_boottime_ms.min(now.boottime_ms);
                if now.since(lost.since_boottime_ms) > TOLD_FOR {
                    table.lost = None;
                }
            }
        }
    }

    /// Forgets tables that nobody asks about any more.
    pub fn keep_only(&mut self, wanted: impl Fn(&str) -> bool) {
        self.tables.retain(|name, _| wanted(name));
    }

    /// The last counts.
    pub fn counts(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tables.iter().map(|(name, table)| (name.as_str(), table.rows))
    }

    /// Tables that lost rows.
    pub fn lost(&self) -> impl Iterator<Item = (&str, &Lost)> {
        self.tables.iter().filter_map(|(name, table)| Some((name.as_str(), table.lost.as_ref()?)))
    }
}

/// Rounded up: of three rows, 90 percent are three.
fn enough(before: u64, min_percent: u32) -> u64 {
    let product = u128::from(before) * u128::from(min_percent.min(100));
    u64::try_from(product.div_ceil(100)).unwrap_or(before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_common::time::Timestamp;

    const V1: Version = Version { inode: 1, user_version: 3, change_counter: 10, table_sql_hash: 77 };

    /// (version, rows) one after the other, an hour apart, and what is told after the last.
    fn check(counts: &[(Version, u64)], told: Option<(u64, u64, Event)>) {
        let mut rows = Rows::default();
        for (hour, (version, count)) in counts.iter().enumerate() {
            let now = Now { boottime_ms: 3_600_000 * hour as u64, wall: Timestamp::UNIX_EPOCH };
            rows.age(&now);
            rows.note("jobs", *version, *count, 90, &now);
            rows = serde_json::from_value(serde_json::to_value(&rows).unwrap()).unwrap();
        }
        let lost = rows.lost().next().map(|(_, lost)| (lost.before, lost.after, lost.event));
        assert_eq!(lost, told, "{counts:?}");
    }

    #[test]
    fn only_an_event_makes_fewer_rows_a_loss() {
        let upgraded = Version { user_version: 4, ..V1 };
        let replaced = Version { inode: 2, ..V1 };
        let remade = Version { table_sql_hash: 78, ..V1 };
        let gone = Version { table_sql_hash: 0, ..V1 };
        check(&[(V1, 100), (V1, 3)], None);
        check(&[(V1, 100), (upgraded, 89)], Some((100, 89, Event::Upgraded)));
        check(&[(V1, 100), (upgraded, 90)], None);
        check(&[(V1, 100), (V1, 40), (upgraded, 39)], None);
        check(&[(V1, 100), (replaced, 0)], Some((100, 0, Event::Replaced)));
        check(&[(V1, 100), (remade, 7)], Some((100, 7, Event::TableRemade)));
        check(&[(V1, 100), (gone, 0)], Some((100, 0, Event::TableGone)));
        check(&[(V1, 100), (Version { change_counter: 9, ..V1 }, 7)], Some((100, 7, Event::Overwritten)));
        check(&[(V1, 100), (Version { change_counter: 11, ..V1 }, 7)], None);
        check(&[(gone, 0), (V1, 0), (upgraded, 0)], None);
    }

    #[test]
    fn a_loss_stays_until_the_rows_are_back_or_it_is_old_news() {
        let upgraded = Version { user_version: 4, ..V1 };
        check(&[(V1, 100), (upgraded, 5), (upgraded, 8)], Some((100, 8, Event::Upgraded)));
        check(&[(V1, 100), (upgraded, 5), (upgraded, 95)], None);
        let mut long = vec![(V1, 100), (upgraded, 5)];
        long.extend([(upgraded, 6); 25]);
        check(&long, None);
    }

    #[test]
    fn of_few_rows_all_must_stay() {
        assert_eq!((enough(3, 90), enough(0, 90), enough(1, 50), enough(u64::MAX, 100)), (3, 0, 1, u64::MAX));
    }
}
