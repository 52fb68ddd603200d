//! What stands beside a log file, and what of it is the same log, rotated.

use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;

/// Entries of a folder that are looked at: a folder with more is no folder of logs.
const ENTRIES_MAX: usize = 4096;
/// What compression leaves behind.
const COMPRESSED: [&str; 6] = [".gz", ".xz", ".zst", ".bz2", ".lz4", ".Z"];

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sibling {
    pub(super) name: String,
    pub(super) inode: u64,
}

impl Sibling {
    /// Whether its name is that of `path` with a number or a date: `x.log.1`, `x.log-20260102`, `x-20260102.log`.
    pub(super) fn is_rotation_of(&self, path: &Path) -> bool {
        let Some(base) = path.file_name().and_then(|name| name.to_str()) else { return false };
        let is_mark = |mark: &str| {
            !mark.is_empty()
                && mark.starts_with(['.', '-', '_'])
                && mark.chars().all(|c| c.is_ascii_digit() || ".-_:T".contains(c) || c == 'Z')
                && mark.chars().any(|c| c.is_ascii_digit())
        };
        if let Some(mark) = self.name.strip_prefix(base) {
            return is_mark(mark) || mark == ".old" || mark == ".bak";
        }
        let Some((stem, extension)) = base.rsplit_once('.') else { return false };
        let middle = self.name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(&format!(".{extension}")));
        middle.is_some_and(is_mark)
    }
}

/// What is in a folder, up to its bound.
pub(super) fn siblings(folder: &Path) -> io::Result<Vec<Sibling>> {
    let entries = std::fs::read_dir(folder)?.take(ENTRIES_MAX).filter_map(Result::ok);
    let sibling =
        |entry: std::fs::DirEntry| Some(Sibling { name: entry.file_name().to_str()?.to_owned(), inode: entry.ino() });
    Ok(entries.filter_map(sibling).collect())
}

/// Whether a name tells of a compressed file.
pub(super) fn is_compressed(name: &str) -> bool {
    COMPRESSED.iter().any(|suffix| name.ends_with(suffix))
}

/// `*` for any characters, `?` for one. In time linear in both for the one star that most patterns have, and never
/// worse than their product.
pub(super) fn matches_pattern(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut of, mut star) = (0, 0, None);
    while let Some(c) = name.get(of) {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, of));
                at += 1;
            }
            Some(expected) if *expected == '?' || expected == c => {
                at += 1;
                of += 1;
            }
            _ => {
                let Some((star_at, star_of)) = star else { return false };
                star = Some((star_at, star_of + 1));
                (at, of) = (star_at + 1, star_of + 1);
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotations_are_known() {
        let of = |name: &str| Sibling { name: name.into(), inode: 1 }.is_rotation_of(Path::new("/l/x.log"));
        for name in ["x.log.1", "x.log.12", "x.log-20260102", "x.log.2026-01-02T03:04", "x-20260102.log", "x.log.old"] {
            assert!(of(name), "{name}");
        }
        for name in ["x.log", "y.log.1", "x.log.conf", "x.log.", "x-error.log", "xx.log", "x.log.1.gz.tmp"] {
            assert!(!of(name), "{name}");
        }
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.log", "a.log", true),
            ("*.log", "a.log.1", false),
            ("a?c*", "abcd", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("*", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches_pattern(pattern, name), expected, "{pattern} {name}");
        }
        assert!(!matches_pattern(&"*a".repeat(30), &"a".repeat(29)));
    }
}
