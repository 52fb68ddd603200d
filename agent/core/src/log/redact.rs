//! Takes secrets out of a line before it leaves the host, and makes its control characters visible.
//!
//! Errs on the side of too much: a word lost from a sample costs a look at the log, a token in a page costs the token.

/// What stands in place of a secret.
const MARK: &str = "***";
/// A word that holds one of these names a secret when something is assigned to it.
const SECRET_NAMES: [&str; 22] = [
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
    "accesskey",
    "accountkey",
    "encryptionkey",
    "masterkey",
    "private_key",
    "privatekey",
    "sharedkey",
    "signingkey",
    "credential",
    "authorization",
    "cookie",
    "session",
];
/// Short names that count only as a whole word.
const SECRET_WORDS: [&str; 6] = ["key", "auth", "pass", "sig", "signature", "pw"];
/// Headers whose whole line is the secret: nobody knows all schemes, and a cookie has many parts.
const SECRET_HEADERS: [&str; 2] = ["authorization", "cookie"];
/// Words before a secret that is the next word.
const SCHEMES: [&str; 3] = ["bearer", "basic", "digest"];
/// What assigns a value to a name. The longer ones first.
const ASSIGNS: [&str; 7] = ["=>", "->", ":=", "=", ":", ">", "%3D"];
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
/// A part of a word this long, of capitals, small letters and digits in no order, is nothing that people write: a line
/// of a key, a token of a kind that has no name here.
const JUMBLE_BYTES_MIN: usize = 32;
/// So many of them are digits.
const JUMBLE_DIGITS_MIN: usize = 3;
/// Looked at behind each `://` of a line, so that a line of nothing else does not cost the square of its length.
const URL_CHARS_MAX: usize = 512;
/// The same behind each `:`.
const SOURCE_NAME_CHARS_MAX: usize = 96;

/// The line without its secrets, in printable characters.
///
/// ```
/// use muster_agent_core::log::redact;
/// assert_eq!(redact("GET https://bob:hunter2@host/x?token=abc&n=1"), "GET https://bob:***@host/x?token=***&n=1");
/// ```
pub fn redact(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        if rest.starts_with("-----BEGIN ") {
            out.push_str(MARK);
            rest = rest.find("-----END ").and_then(|end| rest.get(end + 9..)).unwrap_or_default();
            rest = rest.find("-----").and_then(|end| rest.get(end + 5..)).unwrap_or_default();
            continue;
        }
        let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        if length == 0 {
            let Some(first) = rest.chars().next() else { break };
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
            if first == ':' && (hides_password(&mut rest, &mut out) || hides_source_name(&mut rest, &mut out)) {
                continue;
            }
            escape(first, &mut out);
            continue;
        }
        let (word, behind) = rest.split_at(length);
        rest = behind;
        if is_token(word) {
            out.push_str(MARK);
            continue;
        }
        out.push_str(word);
        let Some(length) = between(word, behind) else { continue };
        let (sign, value) = behind.split_at(length);
        sign.chars().for_each(|c| escape(c, &mut out));
        let lower = word.to_ascii_lowercase();
        let header = sign.trim_start().starts_with(':') && SECRET_HEADERS.iter().any(|name| lower.ends_with(name));
        rest = hide_value(value, header, &mut out);
    }
    out
}

/// Bytes between a word that announces a secret and the secret; `None` where it announces none.
fn between(word: &str, behind: &str) -> Option<usize> {
    let blanks = |text: &str| text.len() - text.trim_start_matches([' ', '\t']).len();
    let gap = blanks(behind);
    let next = behind.get(gap..)?;
    if SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme)) {
        return Some(gap).filter(|gap| *gap > 0);
    }
    // `IDENTIFIED BY 'secret'`
    if word.eq_ignore_ascii_case("identified") && next.get(..3).is_some_and(|by| by.eq_ignore_ascii_case("by ")) {
        return Some(gap + 3);
    }
    if !names_secret(word) {
        return None;
    }
    // `"password": `, `[password]=`
    let closed = behind.len() - behind.trim_start_matches(['"', '\'', '`', '\\', ']']).len();
    let sign_at = closed + blanks(behind.get(closed..)?);
    let sign = ASSIGNS.iter().find(|sign| behind.get(sign_at..).is_some_and(|text| text.starts_with(**sign)));
    if let Some(sign) = sign {
        let value_at = sign_at + sign.len();
        // `token://…` assigns nothing.
        let value = behind.get(value_at..).filter(|value| !(*sign == ":" && value.starts_with("//")))?;
        return Some(value_at + blanks(value));
    }
    // `--password secret`, `PASSWORD 'secret'`
    let follows = gap > 0 && (word.starts_with('-') || next.starts_with(['\'', '"']));
    follows.then_some(gap)
}

/// Puts the mark in the place of a value; gives what stands behind it.
fn hide_value<'a>(value: &'a str, whole_line: bool, out: &mut String) -> &'a str {
    let open = value.len() - value.trim_start_matches('\\').len();
    let quote = value.get(open..).and_then(|text| text.chars().next()).filter(|c| matches!(c, '"' | '\'' | '`'));
    if let Some(quote) = quote {
        // Within quotes of its own a value may have blanks; escaped quotes end where they are escaped as often.
        let (opening, text) = value.split_at(open + 1);
        out.push_str(opening);
        out.push_str(MARK);
        let mut from = 0;
        while let Some(at) = text.get(from..).and_then(|text| text.find(quote)).map(|at| from + at) {
            let before = text.get(..at).unwrap_or_default();
            let slashes = before.len() - before.trim_end_matches('\\').len();
            if slashes <= open {
                return text.get(at - slashes..).unwrap_or_default();
            }
            from = at + 1;
        }
        return "";
    }
    let closing = match value.chars().next() {
        Some('[') => Some(']'),
        Some('(') => Some(')'),
        Some('{') => Some('}'),
        _ => None,
    };
    if let Some(closing) = closing {
        out.extend(value.chars().next());
        out.push_str(MARK);
        return value.find(closing).and_then(|end| value.get(end..)).unwrap_or_default();
    }
    let first = value.find([' ', '\t']).and_then(|end| value.split_at_checked(end));
    if let Some((scheme, behind)) = first
        && SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
    {
        out.push_str(scheme);
        out.push(' ');
        return hide_value(behind.trim_start_matches([' ', '\t']), whole_line, out);
    }
    let ends = |(at, c): &(usize, char)| match whole_line {
        true => c.is_control() || matches!(c, '"' | '\'' | '}'),
        false => ends_value(*c, value.get(at + c.len_utf8()..).and_then(|text| text.chars().next())),
    };
    let end = value.char_indices().find(ends).map_or(value.len(), |(at, _)| at);
    if end > 0 {
        out.push_str(MARK);
    }
    value.get(end..).unwrap_or_default()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-.+/~".contains(c)
}

/// Whether a value without quotes ends before `c`. Punctuation can be within one.
fn ends_value(c: char, next: Option<char>) -> bool {
    let ends = |c: char| c.is_whitespace() || c.is_control() || "\"'`&<\\".contains(c);
    let closes = |c: char| ",;)}]".contains(c);
    ends(c) || (closes(c) && next.is_none_or(|next| ends(next) || closes(next)))
}

/// The begin of `text` that can be one address.
fn until(text: &str, chars_max: usize) -> &str {
    let ends = |c: char| c.is_whitespace() || c.is_control() || "\"'`<>".contains(c);
    let end = text.char_indices().enumerate().find(|(count, (_, c))| *count == chars_max || ends(*c));
    end.and_then(|(_, (at, _))| text.get(..at)).unwrap_or(text)
}

/// Copies `//user:***@` of a URL with a password, behind its `:`; false when there is none.
fn hides_password(rest: &mut &str, out: &mut String) -> bool {
    let Some(url) = rest.strip_prefix("//") else { return false };
    let url = until(url, URL_CHARS_MAX);
    let authority = url.get(..url.find('/').unwrap_or(url.len())).unwrap_or_default();
    let Some(user) = authority.rfind('@').and_then(|at| authority.get(..at)) else { return false };
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
    // A password with a slash in it is no URL, and is written all the same.
    let plain = url.get(..url.find('?').unwrap_or(url.len())).unwrap_or_default();
    let at = plain.rfind('@').unwrap_or(user.len()).max(user.len());
    *rest = rest.get(2 + at + 1..).unwrap_or_default();
    true
}

/// Copies `:***@` of `user:password@tcp(host)` or `user:password@host:5432`, behind its `:`; false when it is none.
fn hides_source_name(rest: &mut &str, out: &mut String) -> bool {
    let text = until(rest, SOURCE_NAME_CHARS_MAX);
    let Some((password, place)) = text.rsplit_once('@').filter(|(password, _)| !password.is_empty()) else {
        return false;
    };
    let host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let behind = place.trim_start_matches(host);
    let port = behind.strip_prefix(':').is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()));
    if behind.len() == place.len() || !(port || behind.starts_with(['(', '/'])) {
        return false;
    }
    out.push(':');
    out.push_str(MARK);
    out.push('@');
    *rest = rest.get(password.len() + 1..).unwrap_or_default();
    true
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
    let is_named =
        |part: &str| part.len() >= TOKEN_BYTES_MIN && TOKEN_PREFIXES.iter().any(|prefix| part.starts_with(prefix));
    is_aws_id(word) || is_jumble(word) || word.split('/').any(|part| is_named(part) || is_jumble(part))
}

fn is_jumble(part: &str) -> bool {
    part.len() >= JUMBLE_BYTES_MIN
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-+/".contains(&byte))
        && part.split(['_', '-', '/']).any(|run| {
            run.len() >= TOKEN_BYTES_MIN
                && run.bytes().any(|byte| byte.is_ascii_uppercase())
                && run.bytes().any(|byte| byte.is_ascii_lowercase())
                && run.bytes().filter(u8::is_ascii_digit).count() >= JUMBLE_DIGITS_MIN
        })
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
            ("{\\\"api_key\\\": \\\"abc\\\"}", "{\\\"api_key\\\": \\\"***\\\"}"),
            ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG+bPx", "AWS_SECRET_ACCESS_KEY=***"),
            ("using AKIAIOSFODNN7EXAMPLE for s3", "using *** for s3"),
            ("token ghp_0123456789abcdefghij refused", "token *** refused"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.abc ok", "jwt *** ok"),
            ("x -----BEGIN RSA PRIVATE KEY-----\\nMIIE\\n-----END RSA PRIVATE KEY----- y", "x *** y"),
            ("x -----BEGIN PRIVATE KEY----- MIIE", "x ***"),
            ("--key=abc --keyfile=/etc/x", "--key=*** --keyfile=/etc/x"),
            ("Set-Cookie: sid=abc; path=/", "Set-Cookie: ***"),
            ("Cookie: theme=dark; sid=abc", "Cookie: ***"),
            ("Authorization: Negotiate YIIabc", "Authorization: ***"),
            ("{\"Authorization\":\"Token abc\",\"n\":1}", "{\"Authorization\":\"***\",\"n\":1}"),
            ("password=\"my long phrase\" user=bob", "password=\"***\" user=bob"),
            ("{\"password\":\"hun\\\"ter2\",\"n\":1}", "{\"password\":\"***\",\"n\":1}"),
            ("mysql --password hunter2 -u root", "mysql --password *** -u root"),
            ("ALTER USER x WITH PASSWORD 'hunter2';", "ALTER USER x WITH PASSWORD '***';"),
            ("CREATE USER a IDENTIFIED BY 'hunter2'", "CREATE USER a IDENTIFIED BY '***'"),
            ("dial root:hunter2@tcp(127.0.0.1:3306)/db", "dial root:***@tcp(127.0.0.1:3306)/db"),
            ("amqp app:hunter2@mq:5672/v", "amqp app:***@mq:5672/v"),
            ("postgres://u:p@ss/word@h/db failed", "postgres://u:***@h/db failed"),
            ("{privateKey: abc, AccountKey=def==}", "{privateKey: ***, AccountKey=***}"),
            ("\"password\" => \"hunter2\"", "\"password\" => \"***\""),
            ("<password>hunter2</password>", "<password>***</password>"),
            ("token=[a, b] tokens: {\"x\":\"y\"} z", "token=[***] tokens: {***} z"),
            ("password=a,b;c retry", "password=*** retry"),
            ("GET /x/ghp_0123456789abcdefghij/y", "GET ***"),
            ("MIIEowIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gunVTLw7onL", "***"),
            (
                "commit 0123456789abcdef0123456789abcdef01234567 of it",
                "commit 0123456789abcdef0123456789abcdef01234567 of it",
            ),
            ("bob@example.org: to:bob@example.org password", "bob@example.org: to:bob@example.org password"),
            (
                "org/apache/hadoop/NameNode2Server/ProtocolTranslatorPB",
                "org/apache/hadoop/NameNode2Server/ProtocolTranslatorPB",
            ),
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
