//! What was measured, as a table for people or for the docs.

use crate::say;
use clap::ValueEnum;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Text,
    /// A table for docs/benchmarks.md
    Markdown,
}

/// Rows of equal length under a head.
#[derive(Debug, Default)]
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub(crate) fn new(title: &str, head: &[&str]) -> Self {
        Self { title: title.to_owned(), rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// One more row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(str::to_owned).to_vec());
    }

    /// More rows, as another table has them.
    pub(crate) fn extend(&mut self, rows: Vec<Vec<String>>) {
        self.rows.extend(rows);
    }

    /// Without its head.
    pub(crate) fn into_rows(self) -> Vec<Vec<String>> {
        self.rows.into_iter().skip(1).collect()
    }

    /// Prints it.
    pub(crate) fn print(&self, format: Format) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0)
        };
        let (start, between, end) = if format == Format::Markdown { ("| ", " | ", " |") } else { ("", "  ", "") };
        say!("\n{}{}\n", if format == Format::Markdown { "### " } else { "" }, self.title);
        for (number, row) in self.rows.iter().enumerate() {
            let cell = |column: usize| format!("{:<1$}", row.get(column).map_or("", String::as_str), width(column));
            let cells: Vec<String> = (0..columns).map(cell).collect();
            say!("{start}{}{end}", cells.join(between).trim_end());
            if number == 0 && format == Format::Markdown {
                say!("|{}", "---|".repeat(columns));
            }
        }
    }
}
