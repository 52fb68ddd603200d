//! Secrets: named by the config, read from a file or a systemd credential, never shown.
//!
//! Invariant: no error, log line or `Debug` of this crate holds a secret's text, nor does a report about a config.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// No secret file is larger.
const SECRET_BYTES_MAX: u64 = 4096;
/// The bit of a file's mode that lets everybody read it.
const OTHERS_READ: u32 = 0o004;
/// What names a systemd credential in place of a path.
const CREDENTIAL: &str = "credential:";
/// Around strings of several lines.
const BLOCKS: [&str; 2] = ["\"\"\"", "'''"];
/// Where systemd puts them.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Text that must never be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFile {
    /// A file of its own.
    Path(PathBuf),
    /// `LoadCredential=NAME:…` or `SetCredentialEncrypted=NAME:…` of the unit.
    Credential(String),
}

impl From<PathBuf> for SecretFile {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Credential(name) => write!(f, "{CREDENTIAL}{name}"),
        }
    }
}

impl SecretFile {
    /// Reads a config's value.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix(CREDENTIAL) {
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            let is_name = !name.is_empty() && !name.starts_with('.') && name.bytes().all(sound);
            return if is_name {
                Ok(Self::Credential(name.to_owned()))
            } else {
                Err("expected \"credential:\" and the name of a credential of the unit".to_owned())
            };
        }
        let path = PathBuf::from(text);
        if path.is_absolute() {
            return Ok(Self::Path(path));
        }
        Err("expected the absolute path of a file with the secret, or \"credential:NAME\"; never the secret".to_owned())
    }

    /// The text, without the white space around it.
    pub fn read(&self) -> io::Result<Secret> {
        match self {
            Self::Path(path) => read(path),
            Self::Credential(name) => {
                let directory = std::env::var_os(CREDENTIALS_DIRECTORY).ok_or_else(|| {
                    io::Error::other(
                        "this process was given no credentials: add LoadCredential= to the unit, or name a file",
                    )
                })?;
                read(&Path::new(&directory).join(name))
            }
        }
    }
}

impl SecretFile {
    /// Every user of this host may read it. Of a credential systemd sees to that.
    pub fn is_open_to_all(&self) -> bool {
        let Self::Path(path) = self else { return false };
        std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & OTHERS_READ != 0)
    }

    /// A credential of a unit that this process is not: only the unit can read it.
    pub fn is_anothers(&self) -> bool {
        matches!(self, Self::Credential(_)) && std::env::var_os(CREDENTIALS_DIRECTORY).is_none()
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    // The open of a FIFO would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(io::Error::other(format!("larger than {SECRET_BYTES_MAX} bytes, which no secret is")));
    }
    Ok(Secret::new(text.trim()))
}

/// A config's text with everything covered that may be a secret, byte for byte, so that positions stay: values of keys
/// that sound like one and name no file, users and passwords of URLs, paths of Slack's hooks.
pub fn masked(text: &str) -> String {
    let text = masked_blocks(text);
    let covered: Vec<String> = text.split('\n').map(masked_line).collect();
    covered.join("\n")
}

/// Strings over several lines are covered whole: none of our keys takes one.
fn masked_blocks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = [rest.find(BLOCKS[0]), rest.find(BLOCKS[1])].into_iter().flatten().min() {
        let (before, block) = rest.split_at(at);
        let (opening, inside) = block.split_at(BLOCKS[0].len());
        let (inside, after) = inside.split_at(inside.find(opening).unwrap_or(inside.len()));
        out.push_str(before);
        out.push_str(opening);
        out.push_str(&inside.split('\n').map(cover).collect::<Vec<_>>().join("\n"));
        let closing = if after.is_empty() { "" } else { opening };
        out.push_str(closing);
        rest = after.get(closing.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn masked_line(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(['"', '\'']) {
        let (before, quoted) = rest.split_at(at);
        let quote = quoted.chars().next().unwrap_or('"');
        let inside = quoted.get(1..).unwrap_or_default();
        let end = inside.find(quote).unwrap_or(inside.len());
        let (value, after) = inside.split_at(end);
        out.push_str(before);
        out.push(quote);
        let key = key_before(before).or_else(|| key_before(line));
        out.push_str(&masked_value(key.as_deref().unwrap_or_default(), value));
        let closing = after.chars().next().map_or("", |_| after.get(..1).unwrap_or_default());
        out.push_str(closing);
        rest = after.get(closing.len()..).unwrap_or_default();
    }
    // A value without quotes is none that TOML takes; it may be a secret all the same.
    match rest.split_once('=') {
        Some((key, value)) if out.is_empty() && sounds_secret(key) => {
            out.push_str(key);
            out.push('=');
            out.push_str(&cover(value));
        }
        _ => out.push_str(rest),
    }
    out
}

/// The key of `key = ` at the end, or of the line's first one.
fn key_before(text: &str) -> Option<String> {
    let (left, _) = text.trim_end().rsplit_once('=')?;
    let name = left.trim_end().rsplit(|letter: char| !(letter.is_ascii_alphanumeric() || "_-\"'".contains(letter)));
    name.into_iter().next().map(|name| name.to_ascii_lowercase())
}

fn sounds_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "token", "secret", "pass", "auth", "sign"].iter().any(|word| key.contains(word))
}

fn masked_value(key: &str, value: &str) -> String {
    let names_a_file = value.starts_with('/') || value.starts_with(CREDENTIAL);
    if sounds_secret(key) && !names_a_file {
        return cover(value);
    }
    if let Some(start) = value.find("hooks.slack.com/") {
        let (host, path) = value.split_at(start + "hooks.slack.com/".len());
        return format!("{host}{}", cover(path));
    }
    if let Some((scheme, rest)) = value.split_once("://")
        && let Some((user, host)) = rest.rsplit_once('@')
    {
        return format!("{scheme}://{}@{host}", cover(user));
    }
    value.to_owned()
}

/// As many bytes of stars.
fn cover(text: &str) -> String {
    "*".repeat(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_may_be_a_secret_is_covered_and_a_path_is_not() {
        for (line, shown) in [
            ("routing_key = \"abc\"", "routing_key = \"***\""),
            ("routing_key_file = \"abc\"", "routing_key_file = \"***\""),
            ("routing_key_file = \"/etc/key\"", "routing_key_file = \"/etc/key\""),
            ("key_files = [\"/a\", \"abc\"]", "key_files = [\"/a\", \"***\"]"),
            ("token = 'abc' # x", "token = '***' # x"),
            ("x = { name = \"ops\", token = \"abc\" }", "x = { name = \"ops\", token = \"***\" }"),
            ("password = abc", "password =****"),
            ("url = \"https://me:pw@host/x\"", "url = \"https://*****@host/x\""),
            ("url = \"https://hooks.slack.com/services/T0\"", "url = \"https://hooks.slack.com/***********\""),
            ("password = \"unfinished", "password = \"**********"),
            ("name = \"ops\"", "name = \"ops\""),
            ("token = \"\"\"\nab\nc\"\"\"\nx = 1", "token = \"\"\"\n**\n*\"\"\"\nx = 1"),
        ] {
            assert_eq!(masked(line), shown);
        }
    }

    #[test]
    fn names_of_credentials_and_files_are_checked() {
        assert_eq!(SecretFile::parse("credential:pd.key"), Ok(SecretFile::Credential("pd.key".to_owned())));
        for bad in ["credential:", "credential:../x", "credential:a/b", "relative", "0123456789abcdef", ""] {
            assert!(SecretFile::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fifo_a_directory_and_a_large_file_are_no_secrets() {
        let dir = tempfile::tempdir().unwrap();
        assert!(SecretFile::Path(dir.path().to_owned()).read().is_err());
        let large = dir.path().join("large");
        std::fs::write(&large, "x".repeat(5000)).unwrap();
        assert!(SecretFile::Path(large).read().is_err());
        let good = dir.path().join("good");
        std::fs::write(&good, " abc\n").unwrap();
        let secret = SecretFile::Path(good).read().unwrap();
        assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("abc", "Secret(…)"));
    }

    proptest! {
        #[test]
        fn any_text_keeps_its_length(text in "\\PC*|[a-z_=\"' /:@\n]*") {
            prop_assert_eq!(masked(&text).len(), text.len());
        }
    }
}
