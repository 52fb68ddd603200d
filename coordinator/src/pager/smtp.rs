//! The least of SMTP that hands one mail to one's own mail server: EHLO, STARTTLS or TLS from the start, AUTH, DATA.
//!
//! One connection per mail. Never sends a password or a page in the clear to another host, never goes on in the clear
//! when STARTTLS is refused, never believes what was said before TLS, reads bounded answers only. No pipelining, no
//! queue: the pager retries.

use super::config::{MailConfig, MailTls, is_loopback};
use super::http_client::{Response, TransportError};
use super::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use muster_common::limits::clip;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of one answer with all its lines; real ones have a few hundred.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Bytes of an answer's text that are kept.
const TEXT_BYTES_MAX: usize = 1024;

/// One mail and the way to send it.
#[derive(Debug, Clone)]
pub struct Mail {
    /// Server, sender, recipients.
    pub config: MailConfig,
    /// Of the login.
    pub password: Option<Secret>,
    /// The whole message, lines ended by CRLF.
    pub message: String,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reply {
    code: u16,
    lines: Vec<String>,
}

impl Reply {
    fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    fn offers(&self, extension: &str) -> bool {
        self.lines.iter().skip(1).any(|line| line.eq_ignore_ascii_case(extension))
    }

    /// Ways to log in that the server offers.
    fn logins(&self) -> impl Iterator<Item = &str> {
        let lines = self.lines.iter().skip(1);
        let auth = lines.filter_map(|line| {
            let (word, rest) = line.split_once([' ', '='])?;
            word.eq_ignore_ascii_case("AUTH").then_some(rest)
        });
        auth.flat_map(str::split_whitespace)
    }
}

/// Why it went no further.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The connection, or an answer that is none.
    #[error("{0}")]
    Broken(String),
    /// Said no, and to what. To a login this may be mended on either side.
    #[error("{what} answered {code}: {text}")]
    Refused { what: &'static str, code: u16, text: String },
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(muster_common::chain::Chain(&error).to_string())
    }
}

/// Sends one mail. The status is SMTP's, the text of a success is who was left out; whatever may be mended elsewhere (TLS, the login) is no answer but an error.
pub(super) async fn send(mail: &Mail, tls: Arc<rustls::ClientConfig>) -> Result<Response, TransportError> {
    let MailConfig { host, port, .. } = &mail.config;
    let origin = || format!("smtp://{host}:{port}");
    match talk(mail, tls).await {
        Ok(text) => Ok(Response { status: 250, retry_after: None, text }),
        Err(Failure::Refused { what: "sender" | "recipients" | "message", code, text }) => {
            Ok(Response { status: code, retry_after: None, text })
        }
        Err(failure) => Err(TransportError { origin: origin(), why: failure.to_string() }),
    }
}

async fn talk(mail: &Mail, tls: Arc<rustls::ClientConfig>) -> Result<String, Failure> {
    let config = &mail.config;
    let stream = TcpStream::connect((config.host.as_str(), config.port)).await?;
    let own = stream.local_addr()?.ip();
    let own = if own.is_ipv6() { format!("[IPv6:{own}]") } else { format!("[{own}]") };
    let name = ServerName::try_from(config.host.clone());
    let name = name.map_err(|_| Failure::Broken(format!("{:?} is no name for a certificate", config.host)))?;
    let connector = TlsConnector::from(tls);
    match config.tls {
        MailTls::Implicit => {
            let mut session = Session::new(connector.connect(name, stream).await?);
            session.positive("greeting", None).await?;
            deliver(&mut session, mail, &own).await
        }
        MailTls::StartTls => {
            let mut plain = Session::new(stream);
            plain.positive("greeting", None).await?;
            let hello = plain.positive("EHLO", Some(&format!("EHLO {own}"))).await?;
            if !hello.offers("STARTTLS") {
                return Err(Failure::Broken("the server offers no STARTTLS, and no mail goes in the clear".to_owned()));
            }
            plain.positive("STARTTLS", Some("STARTTLS")).await?;
            // What came behind that answer was said by whoever is in between.
            if !plain.unread.is_empty() {
                return Err(Failure::Broken("the server went on talking in the clear after STARTTLS".to_owned()));
            }
            let mut session = Session::new(connector.connect(name, plain.stream).await?);
            deliver(&mut session, mail, &own).await
        }
        MailTls::None if is_loopback(&config.host) => {
            let mut session = Session::new(stream);
            session.positive("greeting", None).await?;
            deliver(&mut session, mail, &own).await
        }
        MailTls::None => Err(Failure::Broken("mail would go out in the clear".to_owned())),
    }
}

async fn deliver<S: AsyncRead + AsyncWrite + Unpin>(
    session: &mut Session<S>,
    mail: &Mail,
    own: &str,
) -> Result<String, Failure> {
    let hello = session.positive("EHLO", Some(&format!("EHLO {own}"))).await?;
    if let (Some((user, _)), Some(password)) = (&mail.config.login, &mail.password) {
        log_in(session, &hello, user, password).await?;
    }
    session.positive("sender", Some(&format!("MAIL FROM:<{}>", mail.config.from))).await?;
    let mut refused = Vec::new();
    let mut taken = 0;
    for to in &mail.config.to {
        match session.positive("recipients", Some(&format!("RCPT TO:<{to}>"))).await {
            Ok(_) => taken += 1,
            // One address that is gone must not keep the page from the others.
            Err(failure @ Failure::Refused { .. }) => {
                tracing::warn!(server = mail.config.host, recipient = to, "a recipient was refused: {failure}");
                refused.push((to, failure));
            }
            Err(failure) => return Err(failure),
        }
    }
    let remark = remark(&refused, mail.config.to.len());
    if taken == 0
        && let Some((_, failure)) = refused.pop()
    {
        return Err(failure);
    }
    session.positive("message", Some("DATA")).await?;
    session.positive("message", Some(&format!("{}\r\n.", stuffed(&mail.message)))).await?;
    // The mail is theirs now; how they say goodbye changes nothing.
    session.command("QUIT").await.ok();
    Ok(remark)
}

/// Who gets nothing although the mail was accepted; empty when everybody gets it.
fn remark(refused: &[(&String, Failure)], n_recipients: usize) -> String {
    match refused.first() {
        None => String::new(),
        Some((to, failure)) => {
            let others = if refused.len() > 1 { "; the others are in the log" } else { "" };
            let text = format!("{} of {n_recipients} recipients get no mail: {to}: {failure}{others}", refused.len());
            clip(&text.escape_debug().to_string(), TEXT_BYTES_MAX)
        }
    }
}

/// A line that begins with a dot would end the message.
fn stuffed(message: &str) -> String {
    let lines = message.trim_end_matches("\r\n").split("\r\n");
    let lines = lines.map(|line| if line.starts_with('.') { format!(".{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\r\n")
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    session: &mut Session<S>,
    hello: &Reply,
    user: &str,
    password: &Secret,
) -> Result<(), Failure> {
    let offers = |way: &str| hello.logins().any(|offered| offered.eq_ignore_ascii_case(way));
    if offers("PLAIN") {
        let secret = STANDARD.encode(format!("\0{user}\0{}", password.expose()));
        session.positive("login", Some(&format!("AUTH PLAIN {secret}"))).await?;
    } else if offers("LOGIN") {
        session.positive("login", Some("AUTH LOGIN")).await?;
        session.positive("login", Some(&STANDARD.encode(user))).await?;
        session.positive("login", Some(&STANDARD.encode(password.expose()))).await?;
    } else {
        return Err(Failure::Broken("the server offers no way to log in that we know (PLAIN, LOGIN)".to_owned()));
    }
    Ok(())
}

/// A connection on which one asks and the other answers.
struct Session<S> {
    stream: S,
    unread: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn new(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    /// The answer to `command` (or to nothing: the greeting), when it is a yes.
    async fn positive(&mut self, what: &'static str, command: Option<&str>) -> Result<Reply, Failure> {
        if let Some(command) = command {
            self.command(command).await?;
        }
        let reply = self.reply().await?;
        if reply.is_positive() {
            return Ok(reply);
        }
        let mut text = reply.lines.join(" ");
        // Some repeat what they do not take; of a login that is the password in a form that nobody would recognize.
        if let Some(secret) = command.filter(|_| what == "login").and_then(|command| command.rsplit(' ').next())
            && secret != "LOGIN"
        {
            text = text.replace(secret, "…");
        }
        let text = clip(&text, TEXT_BYTES_MAX);
        Err(Failure::Refused { what, code: reply.code, text })
    }

    async fn command(&mut self, command: &str) -> Result<(), Failure> {
        self.stream.write_all(command.as_bytes()).await?;
        self.stream.write_all(b"\r\n").await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn reply(&mut self) -> Result<Reply, Failure> {
        let mut buffer = [0u8; 2048];
        loop {
            match parse_reply(&self.unread) {
                Parsed::Whole(reply, length) => {
                    self.unread.drain(..length);
                    return Ok(reply);
                }
                Parsed::Wrong => return Err(Failure::Broken("what answers there is no mail server".to_owned())),
                Parsed::Partial if self.unread.len() >= ANSWER_BYTES_MAX => {
                    return Err(Failure::Broken("an answer without end".to_owned()));
                }
                Parsed::Partial => {}
            }
            let n = self.stream.read(&mut buffer).await?;
            if n == 0 {
                return Err(Failure::Broken("the server closed the connection".to_owned()));
            }
            self.unread.extend(buffer.iter().take(n));
        }
    }
}

enum Parsed {
    Whole(Reply, usize),
    Partial,
    Wrong,
}

/// `250-first`, `250-second`, `250 last`, each ended by a line feed. PURE.
fn parse_reply(bytes: &[u8]) -> Parsed {
    let mut lines = Vec::new();
    let mut length = 0;
    let mut code = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else { return Parsed::Partial };
        length += line.len();
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let (digits, rest) = text.split_at(text.len().min(3));
        let number = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = number.and_then(|text| text.parse::<u16>().ok()).filter(|number| (200..600).contains(number));
        let Some(number) = number.filter(|number| code.is_none_or(|code| code == *number)) else {
            return Parsed::Wrong;
        };
        code = Some(number);
        let (last, text) = match rest {
            [] => (true, rest),
            [b' ', text @ ..] => (true, text),
            [b'-', text @ ..] => (false, text),
            _ => return Parsed::Wrong,
        };
        lines.push(String::from_utf8_lossy(text).into_owned());
        if last {
            return Parsed::Whole(Reply { code: number, lines }, length);
        }
    }
    Parsed::Partial
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Option<(Reply, usize)> {
        match parse_reply(text.as_bytes()) {
            Parsed::Whole(reply, length) => Some((reply, length)),
            _ => None,
        }
    }

    #[test]
    fn answers_are_read_line_by_line() {
        let text = "250-mx.example\r\n250-STARTTLS\r\n250-AUTH=LOGIN PLAIN\r\n250 SIZE 1\r\n354 go";
        let (reply, length) = parsed(text).unwrap();
        assert_eq!((reply.code, reply.lines.len(), &text[length..]), (250, 4, "354 go"));
        assert!(reply.offers("starttls") && !reply.offers("mx.example"));
        assert_eq!(reply.logins().collect::<Vec<_>>(), ["LOGIN", "PLAIN"]);
        assert_eq!(parsed("220\r\n").unwrap().0, Reply { code: 220, lines: vec![String::new()] });
        assert!(matches!(parse_reply(b"250-a\r\n25"), Parsed::Partial));
        for wrong in ["HTTP/1.1 200 OK\r\n", "250-a\r\n251 b\r\n", "2x0 a\r\n", "999 a\r\n", "250_a\r\n", "\r\n"] {
            assert!(matches!(parse_reply(wrong.as_bytes()), Parsed::Wrong), "{wrong}");
        }
    }

    #[test]
    fn a_line_of_a_dot_does_not_end_the_message() {
        assert_eq!(stuffed("a\r\n.\r\n..b\r\n"), "a\r\n..\r\n...b");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Parsed::Whole(reply, length) = parse_reply(&bytes) {
                prop_assert!(length <= bytes.len() && (200..600).contains(&reply.code));
            }
        }

        #[test]
        fn any_reply_in_pieces_is_the_same(code in 200u16..600, lines in proptest::collection::vec("[a-z ]{0,20}", 1..6), cut in 0usize..200) {
            let last = lines.len() - 1;
            let text: String = lines.iter().enumerate().map(|(n, line)| format!("{code}{}{line}\r\n", if n == last { ' ' } else { '-' })).collect();
            let (reply, length) = parsed(&text).unwrap();
            prop_assert_eq!((reply.code, &reply.lines, length), (code, &lines, text.len()));
            let part = &text.as_bytes()[..cut.min(text.len() - 1)];
            prop_assert!(matches!(parse_reply(part), Parsed::Partial));
        }
    }
}
