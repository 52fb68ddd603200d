//! Paths in the commands that are proposed to people.

/// As a shell takes it, whatever the path has in it.
///
/// ```
/// use muster_agent_core::shell::quoted;
/// assert_eq!(quoted("/var/lib/a-b_1.db"), "/var/lib/a-b_1.db");
/// assert_eq!(quoted("/it's; rm -rf /"), r"'/it'\''s; rm -rf /'");
/// ```
pub fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@+,=".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}
