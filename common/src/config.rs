//! Reads a TOML config so that *all* mistakes come out at once, each with file, line, column, the text underlined and
//! what was expected.
//!
//! Serde stops at its first error and loses positions inside enums, so configs are walked instead: a [`Reader`] is
//! asked for the keys it should have; whatever was wrong with them is noted with its span, and keys nobody asked for
//! are reported when the reader is dropped, with the nearest asked one as "did you mean". The walk *is* the list of
//! known keys: there is no second one to keep in step.

use crate::units::{parse_bytes, parse_duration};
use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Bytes of a config file: room for every subject one agent may watch, with its comments.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// Mistakes printed: who has more mends these first.
const MISTAKES_SHOWN_MAX: usize = 100;
/// Bytes of the lines shown with a mistake; beyond it only the place is told.
const SNIPPET_BYTES_MAX: usize = 8 * 1024;

/// One mistake in a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Bytes of the text that are wrong.
    pub span: Range<usize>,
    /// What is wrong, lower case, one sentence.
    pub message: String,
    /// What was expected, shown under the caret.
    pub expected: String,
}

/// All mistakes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// Name of the file, as the user gave it.
    pub file: String,
    /// The whole text.
    pub text: String,
    /// In order of position; never empty.
    pub mistakes: Vec<Mistake>,
}

impl ConfigErrors {
    /// The report for people: a snippet with a caret per mistake, then a count.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for mistake in self.mistakes.iter().take(MISTAKES_SHOWN_MAX) {
            out.push_str(&self.render_one(mistake, &renderer));
            out.push_str("\n\n");
        }
        let more = self.mistakes.len().saturating_sub(MISTAKES_SHOWN_MAX);
        if more > 0 {
            out.push_str(&format!("and {more} more\n\n"));
        }
        let n = self.mistakes.len();
        out.push_str(&format!("{}: {n} mistake{}", self.file, if n == 1 { "" } else { "s" }));
        out
    }

    /// Only the lines around the mistake are handed to the renderer, which walks all it is given.
    fn render_one(&self, mistake: &Mistake, renderer: &Renderer) -> String {
        let span = clamp(mistake.span.clone(), &self.text);
        let (before, after) = (self.text.get(..span.start), self.text.get(span.end..));
        let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = after.find('\n').map_or(self.text.len(), |newline| span.end + newline);
        let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
        let lines = self.text.get(start..end).filter(|lines| lines.len() <= SNIPPET_BYTES_MAX);
        let title = Level::ERROR.primary_title(mistake.message.as_str());
        let Some(lines) = lines else {
            let column = 1 + before.get(start..).unwrap_or_default().chars().count();
            let place = Origin::path(self.file.as_str()).line(line).char_column(column);
            return renderer.render(&[title.element(place).element(Level::NOTE.message(mistake.expected.as_str()))]);
        };
        let mark = AnnotationKind::Primary.span(span.start - start..span.end - start);
        let snippet = Snippet::source(lines)
            .path(self.file.as_str())
            .line_start(line)
            .annotation(mark.label(mistake.expected.as_str()));
        renderer.render(&[title.element(snippet)])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for ConfigErrors {}

/// The text of a config file. What is no regular file is refused before it is opened: the open of a FIFO would wait
/// for a writer, and a device may never end.
pub fn read_file(path: &Path) -> io::Result<String> {
    let regular = |metadata: &std::fs::Metadata| {
        if metadata.is_file() { Ok(()) } else { Err(io::Error::other("not a regular file")) }
    };
    regular(&std::fs::metadata(path)?)?;
    let file = std::fs::File::open(path)?;
    // Again, of what was really opened.
    regular(&file.metadata()?)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        let bound = crate::units::human_bytes(FILE_BYTES_MAX);
        return Err(io::Error::other(format!("larger than {bound}, which no config is")));
    }
    Ok(text)
}

/// Parses `text` and walks it with `walk`. `Ok` only when neither the syntax nor the walk found a mistake.
pub fn read<T>(file: &str, text: &str, walk: impl FnOnce(&Reader<'_>) -> T) -> Result<T, ConfigErrors> {
    let mistakes = RefCell::new(Vec::new());
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        let span = error.span().unwrap_or(0..0);
        mistakes.borrow_mut().push(Mistake {
            span: clamp(span, text),
            message: error.message().to_owned(),
            expected: "not valid TOML".to_owned(),
        });
    }
    let root = Reader {
        table: document.get_ref(),
        path: String::new(),
        span: 0..text.len().min(1),
        asked: RefCell::new(BTreeSet::new()),
        mistakes: &mistakes,
    };
    let value = walk(&root);
    drop(root);
    let mut found = mistakes.into_inner();
    found.sort_by_key(|mistake| (mistake.span.start, mistake.span.end));
    found.dedup();
    if found.is_empty() {
        Ok(value)
    } else {
        Err(ConfigErrors { file: file.to_owned(), text: text.to_owned(), mistakes: found })
    }
}

fn clamp(span: Range<usize>, text: &str) -> Range<usize> {
    let end = span.end.min(text.len());
    span.start.min(end)..end
}

/// One table of the document.
#[derive(Debug)]
pub struct Reader<'a> {
    table: &'a DeTable<'a>,
    path: String,
    span: Range<usize>,
    asked: RefCell<BTreeSet<String>>,
    mistakes: &'a RefCell<Vec<Mistake>>,
}

impl<'a> Reader<'a> {
    /// The key's value, if it is there.
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        self.asked.borrow_mut().insert(key.to_owned());
        let value = self.table.get(key)?;
        Some(Value { value, path: join(&self.path, key), mistakes: self.mistakes })
    }

    /// The key's value; its absence is a mistake.
    pub fn required(&self, key: &str) -> Option<Value<'a>> {
        let value = self.value(key);
        if value.is_none() {
            let place = if self.path.is_empty() { "this file".to_owned() } else { format!("[{}]", self.path) };
            self.mistake(&format!("{place} lacks the key {key:?}"), "required here");
        }
        value
    }

    /// Notes a mistake about the table as a whole.
    pub fn mistake(&self, message: &str, expected: &str) {
        self.mistakes.borrow_mut().push(Mistake {
            span: self.span.clone(),
            message: message.to_owned(),
            expected: expected.to_owned(),
        });
    }

    /// Whether a key was not asked for so far: after the last question a mistake, told when this goes away.
    pub fn has_unknown_key(&self) -> bool {
        let asked = self.asked.borrow();
        self.table.iter().any(|(name, _)| !asked.contains(name.get_ref().as_ref()))
    }

    /// Dotted path of this table; empty for the whole file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A sub-table.
    pub fn table(&self, key: &str) -> Option<Reader<'a>> {
        self.value(key)?.table()
    }

    /// Every `[key.NAME]`, in order of position, with the position of its name.
    pub fn named_tables(&self, key: &str) -> Vec<(String, Range<usize>, Reader<'a>)> {
        let Some(outer) = self.table(key) else { return Vec::new() };
        let mut tables: Vec<_> = outer
            .table
            .iter()
            .filter_map(|(name, value)| {
                outer.asked.borrow_mut().insert(name.get_ref().to_string());
                let path = join(&outer.path, name.get_ref());
                let reader = Value { value, path, mistakes: self.mistakes }.table()?;
                Some((name.get_ref().to_string(), name.span(), reader))
            })
            .collect();
        tables.sort_by_key(|(_, span, _)| span.start);
        tables
    }

    /// Every `[[key]]`, or the tables of an inline array.
    pub fn tables(&self, key: &str) -> Vec<Reader<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        value.items().into_iter().filter_map(|item| item.table()).collect()
    }

    /// A string.
    pub fn string(&self, key: &str) -> Option<String> {
        Some(self.value(key)?.string()?.to_owned())
    }

    /// A string that `parse` understands; its error is shown under the caret.
    pub fn parsed<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.value(key)?.parsed(parse)
    }

    /// A duration such as `"5s"`, within `bounds`.
    pub fn duration(&self, key: &str, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        self.value(key)?.parsed_as("a duration in quotes and with its unit, such as \"5s\"", |text| {
            let length = parse_duration(text)?;
            if bounds.contains(&length) {
                return Ok(length);
            }
            let (low, high) = bounds.into_inner();
            let human = crate::units::human_duration;
            Err(format!("expected a duration from {} to {}", human(low), human(high)))
        })
    }

    /// A size such as `"4GiB"`.
    pub fn bytes(&self, key: &str) -> Option<u64> {
        self.value(key)?.parsed_as("a size in quotes and with its unit, such as \"4GiB\"", parse_bytes)
    }

    /// A whole number within `bounds`.
    pub fn integer(&self, key: &str, bounds: RangeInclusive<i64>) -> Option<i64> {
        self.value(key)?.integer(bounds)
    }

    /// A number within `bounds`.
    pub fn number(&self, key: &str, bounds: RangeInclusive<f64>) -> Option<f64> {
        self.value(key)?.number(bounds)
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        let value = self.value(key)?;
        let flag = value.value.get_ref().as_bool();
        if flag.is_none() {
            value.wrong_type("true or false");
        }
        flag
    }

    /// The items of an array; none when the key is absent.
    pub fn items(&self, key: &str) -> Vec<Value<'a>> {
        self.value(key).map(|value| value.items()).unwrap_or_default()
    }

    /// The strings of an array that `parse` understands.
    pub fn list<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        self.items(key).into_iter().filter_map(|item| item.parsed(&parse)).collect()
    }

    /// A table of strings (labels), in key order.
    pub fn string_map(&self, key: &str) -> BTreeMap<String, String> {
        let strings = self.entries(key).into_iter();
        strings.filter_map(|entry| Some((entry.name, entry.value.string()?.to_owned()))).collect()
    }

    /// What is in a table whose keys are not known, in key order.
    pub fn entries(&self, key: &str) -> Vec<Entry<'a>> {
        let Some(reader) = self.table(key) else { return Vec::new() };
        let entry = |(name, _): (&'a Spanned<DeString<'a>>, _)| {
            let (name, span) = (name.get_ref().to_string(), name.span());
            Some(Entry { value: reader.value(&name)?, name, span })
        };
        reader.table.iter().filter_map(entry).collect()
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        for (name, _) in self.table.iter().filter(|(name, _)| !asked.contains(name.get_ref().as_ref())) {
            let found = name.get_ref();
            let place = if self.path.is_empty() { String::new() } else { format!(" in [{}]", self.path) };
            let expected = match nearest(found, asked.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("expected one of: {}", asked.iter().cloned().collect::<Vec<_>>().join(", ")),
            };
            self.mistakes.borrow_mut().push(Mistake {
                span: name.span(),
                message: format!("unknown key {found:?}{place}"),
                expected,
            });
        }
    }
}

/// One key that the user chose, and its value.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// The key.
    pub name: String,
    /// Its value.
    pub value: Value<'a>,
    span: Range<usize>,
}

impl Entry<'_> {
    /// Notes a mistake about the key itself.
    pub fn mistake(&self, message: &str, expected: &str) {
        self.value.mistakes.borrow_mut().push(Mistake {
            span: self.span.clone(),
            message: message.to_owned(),
            expected: expected.to_owned(),
        });
    }
}

/// One value of the document, with its position.
#[derive(Debug, Clone)]
pub struct Value<'a> {
    value: &'a Spanned<DeValue<'a>>,
    path: String,
    mistakes: &'a RefCell<Vec<Mistake>>,
}

impl<'a> Value<'a> {
    /// Notes a mistake about this value.
    pub fn mistake(&self, message: &str, expected: &str) {
        self.mistakes.borrow_mut().push(Mistake {
            span: self.value.span(),
            message: message.to_owned(),
            expected: expected.to_owned(),
        });
    }

    /// True when it is a table.
    pub fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// True when it is an array.
    pub fn is_array(&self) -> bool {
        self.value.get_ref().is_array()
    }

    /// Notes that this value is of another type than `expected`.
    pub fn wrong_type(&self, expected: &str) {
        let found = self.value.get_ref().type_str();
        self.mistake(&format!("{:?} is of the wrong type", self.path), &format!("expected {expected}, found {found}"));
    }

    /// The string itself, without a mistake when it is something else.
    pub fn if_string(&self) -> Option<&'a str> {
        self.value.get_ref().as_str()
    }

    /// The string; anything else is a mistake.
    pub fn string(&self) -> Option<&'a str> {
        self.string_as("a string")
    }

    fn string_as(&self, expected: &str) -> Option<&'a str> {
        let text = self.value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(expected);
        }
        text
    }

    /// A string that `parse` understands.
    pub fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.parsed_as("a string", parse)
    }

    /// The same; `expected` is told where it is no string at all.
    pub fn parsed_as<T>(&self, expected: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.string_as(expected)?) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.mistake(&format!("bad value for {:?}", self.path), &expected);
                None
            }
        }
    }

    /// A whole number within `bounds`.
    pub fn integer(&self, bounds: RangeInclusive<i64>) -> Option<i64> {
        let expected = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let Some(integer) = self.value.get_ref().as_integer() else {
            self.wrong_type(&expected);
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let inside = number.filter(|number| bounds.contains(number));
        if inside.is_none() {
            self.mistake(&format!("bad value for {:?}", self.path), &format!("expected {expected}"));
        }
        inside
    }

    /// A number within `bounds`.
    pub fn number(&self, bounds: RangeInclusive<f64>) -> Option<f64> {
        let expected = format!("a number from {} to {}", bounds.start(), bounds.end());
        let value = self.value.get_ref();
        let text = value.as_float().map(|float| float.as_str().to_owned());
        let Some(text) = text.or_else(|| value.as_integer().map(|integer| integer.as_str().to_owned())) else {
            self.wrong_type(&expected);
            return None;
        };
        let inside = text.parse::<f64>().ok().filter(|number| bounds.contains(number));
        if inside.is_none() {
            self.mistake(&format!("bad value for {:?}", self.path), &format!("expected {expected}"));
        }
        inside
    }

    /// The items of an array; anything else is a mistake.
    pub fn items(&self) -> Vec<Value<'a>> {
        let Some(array) = self.value.get_ref().as_array() else {
            self.wrong_type("a list in [ ]");
            return Vec::new();
        };
        let item = |(index, value)| Value { value, path: format!("{}[{index}]", self.path), mistakes: self.mistakes };
        array.iter().enumerate().map(item).collect()
    }

    /// A reader of this table; anything else is a mistake.
    pub fn table(&self) -> Option<Reader<'a>> {
        let Some(table) = self.value.get_ref().as_table() else {
            self.wrong_type("a table");
            return None;
        };
        Some(Reader {
            table,
            path: self.path.clone(),
            span: self.value.span(),
            asked: RefCell::new(BTreeSet::new()),
            mistakes: self.mistakes,
        })
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The candidate nearest to `found`, if any is near enough to have been meant.
pub fn nearest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Bounded work on hostile input: no key is that long.
    if found.len() > 64 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(found, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// `, did you mean "x"?`, or nothing.
pub fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|near| format!(", did you mean {near:?}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(root: &Reader<'_>) -> (Option<Duration>, Vec<String>) {
        let memory = root.table("memory");
        let interval = memory.as_ref().and_then(|memory| {
            memory.bytes("critical");
            memory.duration("interval", Duration::from_secs(1)..=Duration::from_secs(60))
        });
        let mut names = Vec::new();
        for (name, _, service) in root.named_tables("service") {
            service.list("ports", |text| text.parse::<u16>().map_err(|_| "expected a port".to_owned()));
            service.required("pid_file");
            names.push(name);
        }
        (interval, names)
    }

    #[test]
    fn a_good_config_passes() {
        let text = "[memory]\ninterval = \"5s\"\n[service.a]\npid_file = \"/run/a\"\nports = [\"80\"]\n";
        let (interval, names) = read("agent.toml", text, walk).unwrap();
        assert_eq!(interval, Some(Duration::from_secs(5)));
        assert_eq!(names, ["a"]);
    }

    #[test]
    fn all_mistakes_come_at_once_with_carets() {
        let text = "[memory]\nintervall = \"5s\"\ncritical = \"4G\"\n[service.a]\nports = [\"84430\", 7]\n";
        let error = read("agent.toml", text, walk).unwrap_err();
        let at: Vec<_> = error.mistakes.iter().map(|m| (&text[m.span.clone()], m.expected.as_str())).collect();
        assert_eq!(at[0], ("intervall", "did you mean \"interval\"?"));
        assert_eq!(at[1].0, "\"4G\"");
        assert!(error.mistakes.iter().any(|m| m.message.contains("lacks the key \"pid_file\"")));
        assert!(at.contains(&("\"84430\"", "expected a port")));
        assert!(at.contains(&("7", "expected a string, found integer")));
        assert_eq!(error.mistakes.len(), 5);
        let shown = error.to_string();
        assert!(shown.contains("agent.toml:2:1"), "{shown}");
        assert!(shown.ends_with("agent.toml: 5 mistakes"), "{shown}");
    }

    #[test]
    fn a_number_without_a_unit_is_told_how_to_be_written() {
        let text = "[memory]\ninterval = 5\ncritical = 4096\n[service.a]\npid_file = \"/run/a\"\nports = 80\n";
        let error = read("agent.toml", text, walk).unwrap_err();
        let at: Vec<_> = error.mistakes.iter().map(|m| (&text[m.span.clone()], m.expected.as_str())).collect();
        let expected = [
            ("5", "expected a duration in quotes and with its unit, such as \"5s\", found integer"),
            ("4096", "expected a size in quotes and with its unit, such as \"4GiB\", found integer"),
            ("80", "expected a list in [ ], found integer"),
        ];
        assert_eq!(at, expected);
    }

    #[test]
    fn a_mistake_about_a_key_is_shown_at_the_key() {
        let text = "[limits]\nnofile = \"1\"\nnofil = \"2\"\ncore = 3\n";
        let error = read("a.toml", text, |root| {
            for entry in root.entries("limits") {
                match entry.name.as_str() {
                    "nofil" => entry.mistake("\"nofil\" is no limit", "did you mean \"nofile\"?"),
                    _ => drop(entry.value.parsed_as("a string such as \"65536\"", |text| Ok(text.to_owned()))),
                }
            }
        });
        let error = error.unwrap_err();
        let at: Vec<_> = error.mistakes.iter().map(|m| (&text[m.span.clone()], m.expected.as_str())).collect();
        let core = ("3", "expected a string such as \"65536\", found integer");
        assert_eq!(at, [("nofil", "did you mean \"nofile\"?"), core]);
    }

    #[test]
    fn syntax_errors_are_reported_with_the_rest() {
        let error = read("a.toml", "[memory]\ninterval = \nx = 1\n", walk).unwrap_err();
        assert!(error.mistakes.len() >= 2, "{error}");
    }

    #[test]
    fn a_file_full_of_mistakes_is_told_within_bounds() {
        let text: String = (0..20_000).map(|n| format!("wrong{n} = {n}\n")).collect();
        let error = read("a.toml", &text, walk).unwrap_err();
        assert_eq!(error.mistakes.len(), 20_000);
        let shown = error.to_string();
        assert_eq!(shown.matches("did you mean").count() + shown.matches("expected one of").count(), 100, "{shown}");
        assert!(shown.contains("a.toml:100:1") && shown.contains("100 | wrong99 = 99"), "{shown}");
        assert!(shown.ends_with("and 19900 more\n\na.toml: 20000 mistakes"), "{shown}");
    }

    #[test]
    fn a_mistake_in_a_line_without_end_is_told_by_its_place() {
        let text = format!("[memory]\nlong = \"{}\"\n", "x".repeat(100_000));
        let error = read("a.toml", &text, walk).unwrap_err();
        let shown = error.to_string();
        assert!(shown.len() < 1000 && shown.contains("a.toml:2:1"), "{}", shown.len());
    }
}
