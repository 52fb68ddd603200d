//! Takes secrets out of a line before it leaves the host, and makes its control characters visible.
//!
//! Errs on the side of too much: a word lost from a sample costs a look at the log, a token in a page costs the token.

/// What stands in place of a secret.
const MARK: &str = "***";
/// A word that holds one of these names a secret when `=` or `:` follows.
const SECRET_NAMES: [&str; 15] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "api_key",
    "apikey",
    "api-key",
    "access_key",
    "private_key",
    "credential",
    "authorization",
    "cookie",
    "session",
];
/// Short names that count only as a whole word.
const SECRET_WORDS: [&str; 6] = ["key", "auth", "pass", "sig", "signature", "pw"];
/// Words before a secret that is the next word.
const SCHEMES: [&str; 3] = ["bearer", "basic", "digest"];
/// How well-known tokens begin.
const TOKEN_PREFIXES: [&str; 17] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "AIza",
    "eyJ",
    "npm_",
    "pypi-",
];
/// Shorter than this a word with such a begin is a word.
const TOKEN_BYTES_MIN: usize = 16;

/// The line without its secrets, in printable characters.
///
/// ```
/// use muster_agent_core::log::redact;
/// assert_eq!(redact("GET https://bob:hunter2@host/x?token=abc&n=1"), "GET https://bob:***@host/x?token=***&n=1");
/// ```
pub fn redact(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    // The name of a secret, or a scheme, was just seen: the next value is one.
    let mut armed = false;
    while !rest.is_empty() {
        if rest.starts_with("-----BEGIN ") {
            out.push_str(MARK);
            rest = rest.find("-----END ").and_then(|end| rest.get(end + 9..)).unwrap_or_default();
            rest = rest.find("-----").and_then(|end| rest.get(end + 5..)).unwrap_or_default();
            armed = false;
            continue;
        }
        let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        if length == 0 {
            let Some(first) = rest.chars().next() else { break };
            if armed && !is_between(first) && !ends_value(first) {
                out.push_str(MARK);
                rest = rest.trim_start_matches(|c| !ends_value(c));
                armed = false;
                continue;
            }
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
            if first == ':' && rest.starts_with("//") && hides_password(&mut rest, &mut out) {
                continue;
            }
            escape(first, &mut out);
            // What separates a name from its value does not disarm; an end of a part does.
            armed = armed && is_between(first);
            continue;
        }
        let (word, behind) = rest.split_at(length);
        rest = behind;
        let scheme = SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme));
        if scheme && behind.starts_with(' ') {
            out.push_str(word);
            armed = true;
        } else if armed {
            out.push_str(MARK);
            // A value goes on to the next sign that cannot be within one.
            rest = rest.trim_start_matches(|c| !ends_value(c));
            armed = false;
        } else if is_token(word) {
            out.push_str(MARK);
        } else {
            out.push_str(word);
            armed = names_secret(word) && assigns(behind);
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-.+/~".contains(c)
}

/// What may stand between a name and its value.
fn is_between(c: char) -> bool {
    matches!(c, '=' | ':' | ' ' | '"' | '\'' | '\\')
}

/// What cannot be within a value.
fn ends_value(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'&,;)}]".contains(c)
}

/// Copies `//user:***@` of a URL with a password; false when there is none.
fn hides_password(rest: &mut &str, out: &mut String) -> bool {
    let end = rest.get(2..).and_then(|url| url.find(|c: char| c.is_whitespace() || "/\"'<>".contains(c)));
    let authority = rest.get(2..end.map_or(rest.len(), |end| end + 2)).unwrap_or_default();
    let Some((user, at)) = authority.rfind('@').and_then(|at| Some((authority.get(..at)?, at))) else { return false };
    let name = match user.split_once(':') {
        Some((name, _)) => name,
        // `https://TOKEN@host`: a name as long as that is none.
        None if user.len() >= TOKEN_BYTES_MIN => "",
        None => return false,
    };
    out.push_str("://");
    name.chars().for_each(|c| escape(c, out));
    if !name.is_empty() {
        out.push(':');
    }
    out.push_str(MARK);
    out.push('@');
    *rest = rest.get(2 + at + 1..).unwrap_or_default();
    true
}

/// `=`, `:` or their quoted forms follow: `password=`, `"password": `, `--password `.
fn assigns(behind: &str) -> bool {
    let behind = behind.trim_start_matches(['"', '\'', '\\']).trim_start();
    // `key: value` and `key=value`, not `token://…`.
    behind.starts_with('=') || (behind.starts_with(':') && !behind.starts_with("://"))
}

/// Whether what stands under this name is a secret.
pub fn names_secret(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    let whole = lower.trim_start_matches('-');
    // `lock.pid.key=`: the last part names it.
    let last = whole.rsplit(['.', '/', '-', '_']).next().unwrap_or(whole);
    SECRET_NAMES.iter().any(|name| whole.contains(name)) || SECRET_WORDS.contains(&last)
}

fn is_token(word: &str) -> bool {
    let is_aws_id = |word: &str| {
        (word.starts_with("AKIA") || word.starts_with("ASIA"))
            && word.len() == 20
            && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
    };
    is_aws_id(word) || (word.len() >= TOKEN_BYTES_MIN && TOKEN_PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
}

/// Control characters, and those that turn the direction of the text, as `\u{…}`.
fn escape(c: char, out: &mut String) {
    match c {
        '\t' => out.push(' '),
        c if c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
        {
            out.extend(c.escape_default());
        }
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_do_not_leave() {
        for (line, expected) in [
            ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
            ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic ***"),
            ("connect postgres://app:s3cr3t@db:5432/x failed", "connect postgres://app:***@db:5432/x failed"),
            ("clone https://ghp_0123456789abcdefghij@github.com/x", "clone https://***@github.com/x"),
            ("password=hunter2, retry", "password=***, retry"),
            ("{\"password\":\"hunter2\",\"n\":1}", "{\"password\":\"***\",\"n\":1}"),
            ("{\\\"api_key\\\": \\\"abc\\\"}", "{\\\"api_key\\\": \\\"***\"}"),
            ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG+bPx", "AWS_SECRET_ACCESS_KEY=***"),
            ("using AKIAIOSFODNN7EXAMPLE for s3", "using *** for s3"),
            ("token ghp_0123456789abcdefghij refused", "token *** refused"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.abc ok", "jwt *** ok"),
            ("x -----BEGIN RSA PRIVATE KEY-----\\nMIIE\\n-----END RSA PRIVATE KEY----- y", "x *** y"),
            ("x -----BEGIN PRIVATE KEY----- MIIE", "x ***"),
            ("--key=abc --keyfile=/etc/x", "--key=*** --keyfile=/etc/x"),
            ("Set-Cookie: sid=abc; path=/", "Set-Cookie: ***; path=/"),
            ("?sig=a%2Bb&x=1", "?sig=***&x=1"),
            ("monkey=7 passage=3 tokens left: 5", "monkey=7 passage=3 tokens left: 5"),
            ("a plain line: nothing to hide", "a plain line: nothing to hide"),
            ("mail bob@example.org at https://example.org/a@b", "mail bob@example.org at https://example.org/a@b"),
        ] {
            assert_eq!(redact(line), expected, "{line}");
        }
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(redact("a\u{1b}[31mred\tb\u{202e}x\0"), "a\\u{1b}[31mred b\\u{202e}x\\u{0}");
    }

    proptest! {
        #[test]
        fn any_line_comes_out_printable_and_bounded(line in any::<String>()) {
            let clean = redact(&line);
            prop_assert!(!clean.chars().any(char::is_control));
            prop_assert!(clean.len() <= line.len() * 8 + MARK.len());
        }

        #[test]
        fn a_value_behind_a_secret_name_never_survives(
            name in "(password|db_token|X-Api-Key|client_secret)",
            sign in "(=|: |\":\"|=\"|='| = )",
            value in "[A-Za-z0-9!#$%*+/.@_-][A-Za-z0-9!#$%*+/.:@_-]{7,40}",
        ) {
            let clean = redact(&format!("before {name}{sign}{value} after"));
            prop_assert!(!clean.contains(&value), "{}", clean);
        }
    }
}
