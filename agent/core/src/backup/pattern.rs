//! Which names are copies: `*` and `?` within path components, and the names of copies that are not finished.

/// Endings of files that somebody is still writing, or that belong to another file.
const UNFINISHED: [&str; 15] = [
    ".tmp",
    ".temp",
    ".part",
    ".partial",
    ".new",
    ".swp",
    ".lock",
    ".filepart",
    ".crdownload",
    ".inprogress",
    ".incomplete",
    "~",
    "-wal",
    "-shm",
    "-journal",
];
/// Wildcards of one pattern.
pub const WILDCARDS_MAX: usize = 16;

/// An absolute path with wildcards, split where the wildcards begin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pattern {
    text: String,
    /// Deepest folder without a wildcard.
    folder: String,
    /// What is below it; the last one names files.
    components: Vec<String>,
}

impl Pattern {
    /// Reads it.
    ///
    /// ```
    /// use muster_agent_core::backup::pattern::Pattern;
    /// let pattern = Pattern::parse("/backup/*/hub.db.*").unwrap();
    /// assert_eq!((pattern.folder(), pattern.components().len()), ("/backup", 2));
    /// assert!(Pattern::parse("backup/hub.db").is_err());
    /// assert!(Pattern::parse("/backup/**/hub.db").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(relative) = text.strip_prefix('/') else {
            return Err(format!("expected an absolute path such as \"/backup/hub.db.*\", found {text:?}"));
        };
        let parts: Vec<&str> = relative.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.iter().any(|part| part.contains("**")) {
            return Err("expected `*` and `?` within folder and file names; `**` is not known".to_owned());
        }
        if parts.is_empty() || text.ends_with('/') || parts.contains(&"..") || text.contains('\0') {
            return Err("expected a path of files, without \"..\", not of a folder".to_owned());
        }
        if text.matches(['*', '?']).count() > WILDCARDS_MAX {
            return Err(format!("expected at most {WILDCARDS_MAX} wildcards"));
        }
        let wild = parts.iter().position(|part| part.contains(['*', '?'])).unwrap_or(parts.len());
        let (fixed, below) = parts.split_at(wild.min(parts.len() - 1));
        let folder = format!("/{}", fixed.join("/"));
        let components = below.iter().map(|part| (*part).to_owned()).collect();
        Ok(Self { text: text.to_owned(), folder, components })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The deepest folder without a wildcard.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// What is looked for below it, one component after the other; the last one names files.
    pub fn components(&self) -> &[String] {
        &self.components
    }

    /// True when it names one path.
    pub fn is_fixed(&self) -> bool {
        !self.text.contains(['*', '?'])
    }
}

/// Whether `name` fits one component. As in a shell, a wildcard at the start does not stand for a dot. Takes time
/// linear in the name for each `*`.
pub fn fits(component: &str, name: &str) -> bool {
    if name.starts_with('.') && !component.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (component.chars().collect(), name.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last star stands, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while let Some(next) = name.get(seen) {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || wanted == next => (at, seen) = (at + 1, seen + 1),
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                (at, seen) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|rest| *rest == '*')
}

/// Whether `name` says itself that it is no finished copy (unless the pattern ends the same way).
pub fn is_unfinished(component: &str, name: &str) -> bool {
    UNFINISHED.iter().any(|ending| name.ends_with(ending) && !component.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_and_question_marks() {
        for (component, name) in [
            ("hub.db.*.bak", "hub.db.2026-11-21.bak"),
            ("hub.db.?", "hub.db.1"),
            ("*", "x"),
            ("a*b*c", "a-b-b-c"),
            ("hub.db", "hub.db"),
            (".*", ".hidden"),
            ("[1]*", "[1]x"),
        ] {
            assert!(fits(component, name), "{component} {name}");
        }
        for (component, name) in
            [("hub.db.?", "hub.db.10"), ("*", ".hidden"), ("hub.db.*.bak", "hub.db.bak"), ("", "x"), ("a*b", "a-c")]
        {
            assert!(!fits(component, name), "{component} {name}");
        }
    }

    #[test]
    fn unfinished_names() {
        assert!(is_unfinished("hub.db.*", "hub.db.3.tmp") && is_unfinished("hub.db*", "hub.db-wal"));
        assert!(!is_unfinished("hub.*.new", "hub.1.new") && !is_unfinished("hub.db.*", "hub.db.3"));
    }

    #[test]
    fn a_path_without_wildcards_is_a_file_in_its_folder() {
        let pattern = Pattern::parse("/hub.db").unwrap();
        assert_eq!((pattern.folder(), pattern.components()), ("/", ["hub.db".to_owned()].as_slice()));
        for wrong in ["/", "/a/", "/a/../b", "x", "", "/a/***"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}", name in "\\PC{0,40}") {
            if let Ok(pattern) = Pattern::parse(&format!("/{text}")) {
                for component in pattern.components() {
                    let _ = fits(component, &name);
                }
            }
            prop_assert!(name.is_empty() || name.starts_with('.') || fits("*", &name));
        }
    }
}
