//! Output: tables for people, JSON for programs.
//!
//! Invariant: no byte of a stranger reaches a terminal as a control character; colour is added after layout, by us.

use crate::args::Format;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::{SignedDuration, Timestamp};
use muster_common::units::human_duration;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Narrower than this a table is unreadable whatever one does.
const WIDTH_MIN: usize = 60;
/// The last column, which has the sentences, gets this at least; otherwise it goes under its row.
const SENTENCE_WIDTH_MIN: usize = 32;
/// From this on a table has room for moments beside "3 min ago".
const WIDTH_OF_MOMENTS: u16 = 140;
/// Between two columns, and before what goes under a row.
const GAP: usize = 2;
const INDENT: usize = 4;

/// Where to print and how.
pub(crate) struct Out {
    writer: Box<dyn Write>,
    format: Format,
    /// Columns of the terminal; `None`: not a terminal, so nothing is cut or wrapped.
    width: Option<u16>,
    colour: bool,
    /// The moment that "3 min ago" counts from.
    now: Timestamp,
}

impl Out {
    /// Standard output, with the abilities of what is behind it.
    pub(crate) fn stdout(format: Format) -> Self {
        let stdout = std::io::stdout();
        let is_terminal = stdout.is_terminal();
        let size = is_terminal.then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten();
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            writer: Box::new(stdout),
            format,
            width: size.map(|size| size.ws_col).filter(|columns| *columns > 0),
            colour: is_terminal && !wants_none && !is_dumb,
            now: Timestamp::now(),
        }
    }

    /// True when JSON was asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// What was asked for.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// Prints JSON.
    pub(crate) fn json(&mut self, value: &Value) -> std::io::Result<()> {
        let text = escape_json(&format!("{value:#}"));
        writeln!(self.writer, "{text}")
    }

    /// Prints JSON as one line: an element of a stream.
    pub(crate) fn json_line(&mut self, value: &Value) -> std::io::Result<()> {
        let text = escape_json(&value.to_string());
        writeln!(self.writer, "{text}")?;
        self.writer.flush()
    }

    /// Prints a text of our own as it is, to its last line break.
    pub(crate) fn text(&mut self, text: &str) -> std::io::Result<()> {
        let end = if text.ends_with('\n') { "" } else { "\n" };
        write!(self.writer, "{text}{end}")
    }

    /// Takes a new look at the clock, for what runs longer than a moment.
    pub(crate) fn now(&mut self) {
        self.now = Timestamp::now();
    }

    /// True where lines may be drawn over each other.
    pub(crate) fn is_terminal(&self) -> bool {
        self.width.is_some()
    }

    /// Writes bytes that are laid out already, and shows them.
    pub(crate) fn draw(&mut self, bytes: &str) -> std::io::Result<()> {
        write!(self.writer, "{bytes}")?;
        self.writer.flush()
    }

    /// In colour where that is wanted.
    pub(crate) fn coloured(&self, text: &str) -> String {
        if self.colour { colour_words(text) } else { text.to_owned() }
    }

    /// Prints one line. `text` must be clean already.
    pub(crate) fn line(&mut self, text: &str) -> std::io::Result<()> {
        let text = if self.colour { colour_words(text) } else { text.to_owned() };
        writeln!(self.writer, "{text}")
    }

    /// Prints rows under headers. Nothing but the last column is ever broken over lines: ids are there to be copied.
    pub(crate) fn table(&mut self, headers: &[&str], rows: Vec<Vec<String>>) -> std::io::Result<()> {
        let text = match self.width {
            Some(width) => fitted(headers, &rows, usize::from(width).max(WIDTH_MIN)),
            None => table(headers, rows),
        };
        self.line(&text)
    }

    /// A point in time in a table: with its moment where there is room.
    pub(crate) fn when(&self, at: Option<&prost_types::Timestamp>) -> String {
        if self.width.is_some_and(|width| width < WIDTH_OF_MOMENTS) { self.ago(at) } else { self.time(at) }
    }

    /// Prints name and value per line; empty values are left out.
    pub(crate) fn fields(&mut self, fields: &[(&str, String)]) -> std::io::Result<()> {
        let widest = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            self.line(&format!("{name:widest$}  {value}"))?;
        }
        Ok(())
    }

    /// `2026-11-21 03:04:05Z`; empty when unset.
    pub(crate) fn moment(&self, at: Option<&prost_types::Timestamp>) -> String {
        at.and_then(to_jiff).map(|at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()).unwrap_or_default()
    }

    /// `3 min ago`, where there is no room for more; empty when unset.
    pub(crate) fn ago(&self, at: Option<&prost_types::Timestamp>) -> String {
        let Some(at) = at.and_then(to_jiff) else { return String::new() };
        let ago = self.now.duration_since(at);
        let length = human_duration(Duration::from_secs(ago.unsigned_abs().as_secs()));
        if ago.is_negative() { format!("in {length}") } else { format!("{length} ago") }
    }

    /// `2026-11-21 03:04:05Z (3 min ago)`; empty when unset.
    pub(crate) fn time(&self, at: Option<&prost_types::Timestamp>) -> String {
        time(at, self.now)
    }
}

/// Text of a stranger, safe for a terminal: control characters and those that reorder text are shown as escapes.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let reorders =
            matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{061c}');
        if c.is_control() || reorders {
            out.extend(c.escape_unicode_or_short());
        } else {
            out.push(c);
        }
    }
    out
}

trait EscapeShort {
    fn escape_unicode_or_short(self) -> Vec<char>;
}

impl EscapeShort for char {
    /// `\n` and `\t` by their usual names, everything else by number.
    fn escape_unicode_or_short(self) -> Vec<char> {
        match self {
            '\n' | '\t' | '\r' => self.escape_default().collect(),
            other => other.escape_unicode().collect(),
        }
    }
}

/// Rows under headers as lines, for who lays out a whole screen.
pub(crate) fn table_lines(headers: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    table(headers, rows).lines().map(str::to_owned).collect()
}

/// Rows under headers within `width`: the last column is wrapped where it stands when it has room there. Otherwise each
/// row is one line with as many columns as fit, and what is left stands under it.
fn fitted(headers: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let Some(last) = headers.len().checked_sub(1) else { return String::new() };
    let widths: Vec<usize> = headers
        .iter()
        .enumerate()
        .map(|(column, header)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(header.chars().count())
        })
        .collect();
    let before = |columns: usize| widths.iter().take(columns).map(|width| width + GAP).sum::<usize>();
    let sentence = widths.last().copied().unwrap_or(0);
    if before(last) + sentence.min(SENTENCE_WIDTH_MIN) <= width {
        let room = width - before(last);
        let mut lines = Vec::new();
        for line in table(headers, rows.to_vec()).lines() {
            let at = line.char_indices().nth(before(last)).map_or(line.len(), |(at, _)| at);
            let (head, sentence) = line.split_at(at);
            let mut wrapped = wrap(sentence, room).into_iter();
            lines.push(format!("{head}{}", wrapped.next().unwrap_or_default()).trim_end().to_owned());
            lines.extend(wrapped.map(|more| format!("{}{more}", " ".repeat(before(last)))));
        }
        return lines.join("\n");
    }
    let fits = (1..=last).rev().find(|columns| before(*columns) - GAP <= width).unwrap_or(1);
    let cut = |row: &[String]| row.iter().take(fits).cloned().collect::<Vec<_>>();
    let text = table(headers.get(..fits).unwrap_or_default(), rows.iter().map(|row| cut(row)).collect());
    let mut heads = text.lines();
    let mut lines = vec![heads.next().unwrap_or_default().to_owned()];
    for (head, row) in heads.zip(rows) {
        lines.push(head.to_owned());
        let rest = headers.iter().zip(row).enumerate().skip(fits).filter(|(_, (_, cell))| !cell.is_empty());
        let rest = rest.map(|(column, (header, cell))| match column == last {
            true => cell.clone(),
            false => format!("{header}: {cell};"),
        });
        let rest = rest.collect::<Vec<_>>().join(" ");
        lines.extend(
            wrap(rest.trim_end_matches(';'), width - INDENT)
                .into_iter()
                .map(|line| format!("{}{line}", " ".repeat(INDENT))),
        );
    }
    lines.join("\n")
}

/// Lines of at most `width` characters, broken between words; a word that is longer by itself is broken as well.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let word: Vec<char> = word.chars().collect();
        for (nth, part) in word.chunks(width.max(1)).enumerate() {
            let gap = usize::from(length > 0 && nth == 0);
            if length + gap + part.len() > width && length > 0 {
                lines.push(std::mem::take(&mut line));
                length = 0;
            }
            if length > 0 && gap > 0 {
                line.push(' ');
                length += 1;
            }
            line.extend(part);
            length += part.len();
        }
    }
    if length > 0 {
        lines.push(line);
    }
    lines
}

/// Rows under headers, two spaces between columns, no trailing blanks, however wide that is.
fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headers.iter().map(|header| header.to_uppercase()));
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Text of a stranger that has lines of its own, such as a document: each of them safe for a terminal.
pub(crate) fn clean_lines(text: &str) -> String {
    text.lines().map(|line| clean(line) + "\n").collect()
}

fn time(at: Option<&prost_types::Timestamp>, now: Timestamp) -> String {
    let Some(at) = at.and_then(to_jiff) else { return String::new() };
    let absolute = at.strftime("%Y-%m-%d %H:%M:%SZ");
    let ago = now.duration_since(at);
    let length = human_duration(ago.unsigned_abs());
    match ago {
        ago if ago.abs() < SignedDuration::from_secs(1) => format!("{absolute} (now)"),
        ago if ago.is_positive() => format!("{absolute} ({length} ago)"),
        _ => format!("{absolute} (in {length})"),
    }
}

/// The wire's point in time; `None` when it is out of every calendar.
pub(crate) fn to_jiff(at: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok()
}

/// A wire duration as people read it; negative ones with a sign.
pub(crate) fn duration(length: Option<&prost_types::Duration>) -> String {
    let Some(length) = length else { return String::new() };
    let sign = if length.seconds < 0 || length.nanos < 0 { "-" } else { "" };
    let whole = Duration::new(length.seconds.unsigned_abs(), length.nanos.unsigned_abs().min(999_999_999));
    format!("{sign}{}", human_duration(whole))
}

/// JSON escapes only what JSON must; terminals also obey DEL and the C1 controls, which can stand in strings alone.
fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            code @ 0x7f..=0x9f => out.push_str(&format!("\\u{code:04x}")),
            _ => out.push(c),
        }
    }
    out
}

/// Colours the words that call for attention. The text is laid out already, so widths stay right.
fn colour_words(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for piece in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let code = match word {
            "sev0" | "sev1" | "fenced" => "1;31",
            "sev2" | "stale" => "31",
            "sev3" | "not_yet_reheard" => "33",
            _ => {
                out.push_str(piece);
                continue;
            }
        };
        out.push_str(&format!("\u{1b}[{code}m{word}\u{1b}[0m{}", &piece[word.len()..]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}c\n\u{202e}d"), "a\\u{1b}[2Jb\\u{9b}c\\n\\u{202e}d");
        assert_eq!(clean("größer ✓"), "größer ✓");
        assert_eq!(escape_json("\"a\u{7f}\u{85}b\""), "\"a\\u007f\\u0085b\"");
    }

    #[test]
    fn tables_are_plain_and_fit() {
        let rows = vec![
            vec!["web-1".to_owned(), "live".to_owned(), "all is well".to_owned()],
            vec!["db-10".to_owned(), "stale".to_owned(), "nothing heard for 40 s, connection still open".to_owned()],
        ];
        let golden = "\
AGENT  STATE  WHY
web-1  live   all is well
db-10  stale  nothing heard for 40 s, connection still open";
        assert_eq!(table(&["agent", "state", "why"], rows.clone()), golden);
        assert_eq!(fitted(&["agent", "state", "why"], &rows, 80), golden);
        let narrow = fitted(&["agent", "state", "why"], &[vec!["a".into(), "b".into(), "word ".repeat(40)]], 60);
        assert!(narrow.lines().count() > 3 && narrow.lines().all(|line| line.len() <= 60), "{narrow}");
    }

    #[test]
    fn an_id_is_never_broken_and_sentences_go_under_their_row() {
        let headers = ["incident", "state", "opened", "reason", "paged", "title"];
        let row = |id: &str, title: &str| {
            [id, "acknowledged", "3 min ago", "sqlite_lock_held", "no: on hold", title].map(str::to_owned).to_vec()
        };
        let title = format!("nobody /listens/{}", "x".repeat(90));
        let rows = [row("INC-20261121-0001", "it is down"), row("INC-20261121-0002", &title)];
        let shown = fitted(&headers, &rows, 60);
        let golden = "\
INCIDENT           STATE         OPENED     REASON
INC-20261121-0001  acknowledged  3 min ago  sqlite_lock_held
    paged: no: on hold; it is down
INC-20261121-0002  acknowledged  3 min ago  sqlite_lock_held
    paged: no: on hold; nobody";
        assert!(shown.starts_with(golden), "{shown}");
        for width in [60, 70, 80, 100, 120, 200] {
            let shown = fitted(&headers, &rows, width);
            assert!(shown.lines().all(|line| line.chars().count() <= width), "{width}: {shown}");
            for whole in ["INC-20261121-0001", "INC-20261121-0002", "sqlite_lock_held", "it is down"] {
                assert!(shown.contains(whole), "{width}, {whole}: {shown}");
            }
        }
    }

    #[test]
    fn times_are_relative_and_absolute() {
        let now: Timestamp = "2026-11-21T03:04:05Z".parse().unwrap();
        let at = |seconds| prost_types::Timestamp { seconds: now.as_second() + seconds, nanos: 0 };
        assert_eq!(time(Some(&at(-180)), now), "2026-11-21 03:01:05Z (3 min ago)");
        assert_eq!(time(Some(&at(0)), now), "2026-11-21 03:04:05Z (now)");
        assert_eq!(time(Some(&at(20)), now), "2026-11-21 03:04:25Z (in 20 s)");
        assert_eq!(time(None, now), "");
        assert_eq!(time(Some(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), now), "");
    }

    #[test]
    fn colour_touches_whole_words_only() {
        assert_eq!(colour_words("sev1 stale x-stales"), "\u{1b}[1;31msev1\u{1b}[0m \u{1b}[31mstale\u{1b}[0m x-stales");
    }
}
