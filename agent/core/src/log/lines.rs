//! From bytes to lines: what is whole is a line, what is not yet whole waits in the file, not in memory.

use serde::{Deserialize, Serialize};

/// Bytes of a line that are looked at and kept; a longer one is cut, and counted as such.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Cuts lines off a stream of bytes. Remembers only whether it is inside of a line that was longer than its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Splitter {
    skipping: bool,
}

impl Splitter {
    /// One that begins in the middle of a line, which is no line then.
    pub const fn inside_a_line() -> Self {
        Self { skipping: true }
    }

    /// Gives every whole line of `data` to `line`, with whether it was cut, and returns how many bytes are done with.
    /// What is left is the begin of a line: bring it again with what follows. With `last` nothing follows, and the
    /// rest is a line as well. `data` of more than [`LINE_BYTES_MAX`] always moves on.
    pub fn split<'a>(&mut self, data: &'a [u8], last: bool, mut line: impl FnMut(&'a [u8], bool)) -> usize {
        let mut rest = data;
        loop {
            let newline = rest.iter().position(|byte| *byte == b'\n');
            if self.skipping {
                let Some(end) = newline else { return data.len() };
                rest = rest.get(end + 1..).unwrap_or_default();
                self.skipping = false;
                continue;
            }
            match newline {
                Some(end) => {
                    let (whole, cut) = bounded(rest.get(..end).unwrap_or_default());
                    line(whole, cut);
                    rest = rest.get(end + 1..).unwrap_or_default();
                }
                None if last && !rest.is_empty() => {
                    let (whole, cut) = bounded(rest);
                    line(whole, cut);
                    return data.len();
                }
                None if rest.len() > LINE_BYTES_MAX => {
                    // A file that was truncated under a writer without O_APPEND begins with a hole: no line.
                    if rest.iter().all(|byte| *byte == 0) {
                        return data.len();
                    }
                    let (whole, cut) = bounded(rest);
                    line(whole, cut);
                    self.skipping = true;
                    return data.len();
                }
                None => return data.len() - rest.len(),
            }
        }
    }
}

/// Without the NULs of a hole before it and the carriage return behind it, and within the bound.
fn bounded(line: &[u8]) -> (&[u8], bool) {
    let start = line.iter().position(|byte| *byte != 0).unwrap_or(line.len());
    let line = line.get(start..).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.get(..LINE_BYTES_MAX) {
        Some(cut) if line.len() > LINE_BYTES_MAX => (cut, true),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(splitter: &mut Splitter, data: &[u8], last: bool) -> (Vec<(String, bool)>, usize) {
        let mut lines = Vec::new();
        let done = splitter.split(data, last, |line, cut| lines.push((String::from_utf8_lossy(line).into(), cut)));
        (lines, done)
    }

    #[test]
    fn a_line_is_whole_when_its_newline_is_there() {
        let mut splitter = Splitter::default();
        let whole = |text: &str| (text.to_owned(), false);
        assert_eq!(split(&mut splitter, b"a\r\nb\npart", false), (vec![whole("a"), whole("b")], 5));
        assert_eq!(split(&mut splitter, b"part", true), (vec![whole("part")], 4));
        assert_eq!(split(&mut splitter, b"\0\0\0after a hole\n", false), (vec![whole("after a hole")], 16));
        assert_eq!(split(&mut splitter, b"", true), (vec![], 0));
    }

    #[test]
    fn a_long_line_is_cut_once_and_its_rest_is_no_line() {
        let mut splitter = Splitter::default();
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let (lines, done) = split(&mut splitter, &long, false);
        assert_eq!((lines.len(), lines[0].0.len(), lines[0].1, done), (1, LINE_BYTES_MAX, true, long.len()));
        assert_eq!(split(&mut splitter, b"more of it", false), (vec![], 10));
        assert_eq!(split(&mut splitter, b"its end\nnext\n", false), (vec![("next".into(), false)], 13));
    }

    proptest! {
        #[test]
        fn however_the_bytes_arrive_the_lines_are_the_same(
            lines in proptest::collection::vec("[a-z]{0,40}", 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..40),
        ) {
            let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let (mut splitter, mut seen, mut at, mut end) = (Splitter::default(), Vec::new(), 0, 0);
            for cut in cuts.iter().cycle() {
                end = (end + cut).min(text.len());
                at += splitter.split(&text.as_bytes()[at..end], false, |line, _| {
                    seen.push(String::from_utf8_lossy(line).into_owned());
                });
                if end == text.len() { break; }
            }
            prop_assert_eq!(at, text.len());
            prop_assert_eq!(seen, lines);
        }
    }
}
