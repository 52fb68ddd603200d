//! Takes secrets out of a line before it leaves the host, and makes its control characters visible.
//!
//! Errs on the side of too much: a word lost from a sample costs a look at the log, a token in a page costs the token.

/// What stands in place of a secret.
const MARK: &str = "***";
/// A word that holds one of these names a secret when something is assigned to it.
const SECRET_NAMES: [&str; 25] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
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
    "authkey",
    "licensekey",
    "credential",
    "authorization",
    "cookie",
    "session",
];
/// Short names that count only as a whole word.
const SECRET_WORDS: [&str; 7] = ["key", "auth", "pass", "sig", "signature", "pw", "otp"];
/// Words that end as such a name does (`dbpass`) and name none.
const NO_SECRETS: [&str; 3] = ["bypass", "compass", "surpass"];
/// Headers whose whole line is the secret: nobody knows all schemes, and a cookie has many parts.
const SECRET_HEADERS: [&str; 2] = ["authorization", "cookie"];
/// Words before a secret that is the next word.
const SCHEMES: [&str; 3] = ["bearer", "basic", "digest"];
/// The same where a name has announced the secret already; elsewhere they are words as others.
const VALUE_SCHEMES: [&str; 5] = ["token", "apikey", "negotiate", "ntlm", "aws4-hmac-sha256"];
/// Programs that take a secret by an option of another name, and whether it may be the next word, too (`mysql -p NAME`
/// asks for it). With `*` any program whose name begins so.
const SECRET_OPTIONS: [(&str, &str, bool); 19] = [
    ("mysql*", "-p", false),
    ("mariadb*", "-p", false),
    ("sshpass", "-p", true),
    ("7z", "-p", false),
    ("7za", "-p", false),
    ("rar", "-p", false),
    ("unrar", "-p", false),
    ("zip", "-P", true),
    ("redis-cli", "-a", true),
    ("valkey-cli", "-a", true),
    ("ldap*", "-w", true),
    ("curl", "-u", true),
    ("curl", "--user", true),
    ("curl", "--proxy-user", true),
    ("mongo*", "-p", true),
    ("sqlcmd", "-P", true),
    ("docker login", "-p", true),
    ("podman login", "-p", true),
    ("smbclient", "-U", true),
];
/// What stands before a literal in the notation of some language: `b'…'`, `u"…"`.
const LITERALS: [&str; 8] = ["b", "u", "r", "f", "rb", "br", "L", "N"];
/// Addresses whose path is the secret.
const SECRET_PATHS: [&str; 3] = ["hooks.slack.com/services/", "/api/webhooks/", "office.com/webhook/"];
/// What assigns a value to a name. The longer ones first.
const ASSIGNS: [&str; 7] = ["=>", "->", ":=", "=", ":", ">", "%3D"];
/// How well-known tokens begin.
const TOKEN_PREFIXES: [&str; 24] = [
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
    "xapp-",
    "glrt-",
    "whsec_",
    "shpat_",
    "hf_",
    "SG.",
    "ya29.",
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
    let options = secret_options(line);
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
        if let Some(behind) = options.iter().find_map(|option| hide_option(rest, *option, &mut out)) {
            rest = behind;
            continue;
        }
        let (word, behind) = rest.split_at(length);
        rest = behind;
        if let Some(end) = SECRET_PATHS.iter().find_map(|path| Some(word.find(path)? + path.len())) {
            out.push_str(word.get(..end).unwrap_or_default());
            out.push_str(MARK);
            continue;
        }
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

/// The options of this line that take a secret, by the programs that are named in it.
fn secret_options(line: &str) -> Vec<(&'static str, bool)> {
    // Few lines have any option at all.
    if ![" -", "'-", "\"-"].iter().any(|begin| line.contains(begin)) {
        return Vec::new();
    }
    let of_a_name = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let named = |program: &str| {
        let begin = program.trim_end_matches('*');
        line.match_indices(begin).any(|(at, _)| {
            let (before, behind) =
                (line.get(..at).unwrap_or_default(), line.get(at + begin.len()..).unwrap_or_default());
            !before.ends_with(of_a_name) && (begin.len() < program.len() || !behind.starts_with(of_a_name))
        })
    };
    SECRET_OPTIONS.iter().filter(|(program, ..)| named(program)).map(|(_, option, next)| (*option, *next)).collect()
}

/// Copies `-p***`; gives what stands behind it. `None` where `rest` does not begin with such an option.
fn hide_option<'a>(rest: &'a str, (option, next): (&'static str, bool), out: &mut String) -> Option<&'a str> {
    let before = out.chars().next_back();
    let value = rest.strip_prefix(option).filter(|_| !before.is_some_and(is_word))?;
    let gap = match value.chars().next()? {
        ' ' | '\t' if next => value.len() - value.trim_start_matches([' ', '\t']).len(),
        '"' | '\'' | '\\' => beside(value).filter(|_| next).unwrap_or(0),
        ' ' | '\t' => return None,
        _ => 0,
    };
    let (gap, value) = value.split_at_checked(gap)?;
    // `['-p', …]` where the secret is no neighbour, `-p -u root`: the option stands alone.
    if value.starts_with('-') || (gap.is_empty() && closes_only(value)) {
        return None;
    }
    out.push_str(option);
    gap.chars().for_each(|c| escape(c, out));
    Some(hide_value(value, false, out))
}

/// Whether the quote that `text` begins with ends something, and begins nothing.
fn closes_only(text: &str) -> bool {
    let mut chars = text.trim_start_matches('\\').chars();
    chars.next().is_some_and(|c| matches!(c, '"' | '\''))
        && chars.next().is_none_or(|c| c.is_whitespace() || ",])}".contains(c))
}

/// Bytes to the value of the neighbour in a list, behind a name that ended with a quote:
/// `"--password", "hunter2"`, `"name": "DB_PASSWORD", "value": "hunter2"`, `key="password" value="hunter2"`.
fn beside(behind: &str) -> Option<usize> {
    const QUOTES: [char; 4] = ['"', '\'', '`', '\\'];
    let blanks = [' ', '\t'];
    let rest = behind.trim_start_matches(QUOTES);
    let next = rest.trim_start_matches(blanks);
    let (next, comma) = next.strip_prefix(',').map_or((next, false), |next| (next.trim_start_matches(blanks), true));
    let at = |tail: &str| behind.len() - tail.len();
    if rest.len() == behind.len() || next.len() == rest.len() {
        return None;
    }
    let name = next.trim_start_matches(QUOTES);
    if name.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("value")) {
        let sign = name.get(5..)?.trim_start_matches(QUOTES).trim_start_matches(blanks);
        let value = sign.strip_prefix([':', '=']);
        return value.map(|value| at(value.trim_start_matches(blanks)));
    }
    let literal =
        LITERALS.iter().filter_map(|literal| next.strip_prefix(literal)).find(|text| text.starts_with(QUOTES));
    let quoted = literal.unwrap_or(next);
    if !comma || !quoted.starts_with(QUOTES) {
        return None;
    }
    // `"password", "user": …`: the neighbour is a name of its own.
    let inner = quoted.trim_start_matches(QUOTES);
    let tail = inner.find(QUOTES).and_then(|end| inner.get(end..)).unwrap_or_default();
    let is_name = tail.trim_start_matches(QUOTES).trim_start_matches(blanks).starts_with([':', '=']);
    (!is_name).then(|| at(quoted))
}

/// Whether `key="password" value="…"`: the name of the secret, not the secret.
fn is_label(word: &str, behind: &str) -> bool {
    let name = behind.trim_start_matches(['=', ':', ' ', '"', '\'', '\\']);
    let (name, tail) = name.split_at_checked(name.find(|c| !is_word(c)).unwrap_or(name.len())).unwrap_or_default();
    word.eq_ignore_ascii_case("key") && names_secret(name) && beside(tail).is_some()
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
    if !names_secret(word) || is_label(word, behind) {
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
    if let Some(gap) = beside(behind).filter(|_| closed > 0) {
        return Some(gap);
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
        let opening = value.chars().next().unwrap_or(closing);
        out.push(opening);
        out.push_str(MARK);
        return behind_bracket(value, opening, closing);
    }
    let first = value.find([' ', '\t']).and_then(|end| value.split_at_checked(end));
    let is_scheme =
        |known: &[&str]| first.is_some_and(|(scheme, _)| known.iter().any(|known| scheme.eq_ignore_ascii_case(known)));
    if let Some((scheme, behind)) = first
        && (is_scheme(&SCHEMES) || (!whole_line && is_scheme(&VALUE_SCHEMES)))
    {
        out.push_str(scheme);
        out.push(' ');
        return hide_value(behind.trim_start_matches([' ', '\t']), whole_line, out);
    }
    let ends =
        |(at, c): &(usize, char)| ends_value(*c, value.get(at + c.len_utf8()..).and_then(|text| text.chars().next()));
    let end = match whole_line {
        true => end_of_header(value),
        false => value.char_indices().find(ends).map_or(value.len(), |(at, _)| at),
    };
    let (hidden, behind) = value.split_at_checked(end).unwrap_or((value, ""));
    // `Some("hunter2")`, `b'hunter2'`: the quotes belong to the value.
    let wrapped = hidden.ends_with(['(', '[', '{']) || LITERALS.contains(&hidden);
    if wrapped && !whole_line && behind.starts_with(['"', '\'', '\\']) {
        // What the type is called.
        let is_type = hidden.starts_with(|c: char| c.is_ascii_uppercase()) || LITERALS.contains(&hidden);
        out.push_str(if is_type { hidden } else { MARK });
        return hide_value(behind, false, out);
    }
    if end > 0 {
        out.push_str(MARK);
    }
    behind
}

/// Where a header ends that stands within quotes or braces of others. What it quotes itself (`response="…"`) is of it.
fn end_of_header(value: &str) -> usize {
    let (mut before, mut within) = (' ', None);
    for (at, c) in value.char_indices() {
        match within {
            Some(quote) if c == quote => within = None,
            None if matches!(c, '"' | '\'') && before == '=' => within = Some(c),
            None if c.is_control() || matches!(c, '"' | '\'' | '}') => return at,
            _ => {}
        }
        if c != '\\' {
            before = c;
        }
    }
    value.len()
}

/// From the bracket on that closes the first one; those between are of the value.
fn behind_bracket(value: &str, opening: char, closing: char) -> &str {
    let mut open = 0usize;
    let end = value.char_indices().find(|(_, c)| {
        open += usize::from(*c == opening);
        open -= usize::from(*c == closing && open > 0);
        open == 0
    });
    end.and_then(|(at, _)| value.get(at..)).unwrap_or_default()
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
    // JSON may escape its slashes.
    let escaped = rest.strip_prefix(r"\/\/").map(|url| (url, '\\'));
    let Some((url, slash)) = escaped.or_else(|| Some((rest.strip_prefix("//")?, '/'))) else { return false };
    let slashes = rest.len() - url.len();
    let url = until(url, URL_CHARS_MAX);
    let authority = url.get(..url.find(slash).unwrap_or(url.len())).unwrap_or_default();
    let Some(user) = authority.rfind('@').and_then(|at| authority.get(..at)) else { return false };
    let name = match user.split_once(':') {
        Some((name, _)) => name,
        // `https://TOKEN@host`: a name as long as that is none.
        None if user.len() >= TOKEN_BYTES_MIN => "",
        None => return false,
    };
    out.push_str(if slash == '/' { "://" } else { r":\/\/" });
    name.chars().for_each(|c| escape(c, out));
    if !name.is_empty() {
        out.push(':');
    }
    out.push_str(MARK);
    out.push('@');
    // A password with a slash in it is no URL, and is written all the same.
    let plain = url.get(..url.find('?').unwrap_or(url.len())).unwrap_or_default();
    let at = plain.rfind('@').unwrap_or(user.len()).max(user.len());
    *rest = rest.get(slashes + at + 1..).unwrap_or_default();
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
    let last = word.rsplit(['.', '/', '-', '_']).next().unwrap_or(word);
    // `authKey`, `dbpass`.
    let hump = last.rfind(|c: char| c.is_ascii_uppercase()).and_then(|at| last.get(at..)).unwrap_or_default();
    let (last, hump) = (last.to_ascii_lowercase(), hump.to_ascii_lowercase());
    SECRET_NAMES.iter().any(|name| whole.contains(name))
        || SECRET_WORDS.iter().any(|name| *name == last || *name == hump)
        || (last.ends_with("pass") && !NO_SECRETS.contains(&last.as_str()))
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
            ("ran mysqldump -uroot -phun!ter2 hub", "ran mysqldump -uroot -p*** hub"),
            ("mysql -h db -P 3306 -p hub", "mysql -h db -P 3306 -p hub"),
            ("argv: ['mysql', '-u', 'root', '-phunter2', 'hub']", "argv: ['mysql', '-u', 'root', '-p***', 'hub']"),
            ("ssh -p2222 host: nc -p 80", "ssh -p2222 host: nc -p 80"),
            ("scp -P 2222 a.zip host:", "scp -P 2222 a.zip host:"),
            ("sshpass -p hunter2 ssh -p 22 x", "sshpass -p *** ssh -p *** x"),
            ("sh -c \"redis-cli -a 'hun ter2' ping\"", "sh -c \"redis-cli -a '***' ping\""),
            ("curl -u bob:hunter2 https://h/", "curl -u *** https://h/"),
            ("curl -sS --user bob:hunter2 https://h/", "curl -sS --user *** https://h/"),
            ("argv: [\"pg\", \"--password\", \"hunter2\"]", "argv: [\"pg\", \"--password\", \"***\"]"),
            ("{'password': b'hunter2', 'n': 1}", "{'password': b'***', 'n': 1}"),
            ("Config { password: Some(\"hunter2\"), n: 1 }", "Config { password: Some(\"***\"), n: 1 }"),
            ("token: Secret(String(\"hunter2\"))", "token: Secret(String(\"***\"))"),
            (
                "{\"name\":\"DB_PASSWORD\",\"value\":\"hunter2\",\"n\":1}",
                "{\"name\":\"DB_PASSWORD\",\"value\":\"***\",\"n\":1}",
            ),
            ("<add key=\"password\" value=\"hunter2\"/>", "<add key=\"password\" value=\"***\"/>"),
            ("{\"k\":\"password\",\"user\":\"bob\"}", "{\"k\":\"password\",\"user\":\"bob\"}"),
            ("Authorization: Digest username=\"Mufasa\", response=\"6629fae4\"", "Authorization: Digest ***"),
            ("curl -H 'Authorization: Token token=\"abc\"' https://h/", "curl -H 'Authorization: ***' https://h/"),
            ("authorization=Token abc n=1", "authorization=Token *** n=1"),
            ("{\"tokens\":{\"a\":{\"x\":1},\"b\":\"hunter2\"},\"n\":1}", "{\"tokens\":{***},\"n\":1}"),
            ("\"url\":\"https:\\/\\/bob:hunter2@h\\/x\"", "\"url\":\"https:\\/\\/bob:***@h\\/x\""),
            ("dbpass=hunter2 bypass=1 authKey: abc", "dbpass=*** bypass=1 authKey: ***"),
            ("POST https://hooks.slack.com/services/T0/B0/abcDEF", "POST https://hooks.slack.com/services/***"),
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
