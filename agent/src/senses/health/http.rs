//! One GET over HTTP/1.1 on a connection of its own: small, bounded, and without anything that a health check does not
//! need (no redirects, no proxy, no compression, no keep-alive).

use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a status line with its headers. Beyond it the answer is refused.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of an answer.
const HEADERS_MAX: usize = 64;
/// Bytes of a body that are read. What is longer is cut, and said to be.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;
/// What is read of the rest and thrown away: who closes on unread bytes resets the connection, and the service logs a
/// caller that broke off. Beyond these two it is left to.
const DRAINED_BYTES_MAX: usize = 1 << 20;
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// Interim answers (1xx) before the real one.
const INTERIM_MAX: u32 = 8;
/// Bytes of a line that tells the size of a chunk.
const CHUNK_LINE_BYTES_MAX: usize = 1024;
/// Read at a time.
const READ_BYTES: usize = 4096;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("{0}")]
    Io(String),
    #[error("the connection was closed before an answer")]
    NoAnswer,
    #[error("the connection was closed within the answer")]
    CutOff,
    #[error("its headers are longer than {HEAD_BYTES_MAX} bytes or more than {HEADERS_MAX}")]
    HeadTooLong,
    #[error("it does not speak HTTP/1 ({0})")]
    NotHttp(String),
}

impl From<io::Error> for HttpError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset => Self::Io("the connection was reset".to_owned()),
            // Many servers end TLS without a word.
            io::ErrorKind::UnexpectedEof => Self::CutOff,
            _ => Self::Io(error.to_string()),
        }
    }
}

/// One answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) location: Option<String>,
    pub(super) body: Vec<u8>,
    /// The body goes on beyond what was read.
    pub(super) cut: bool,
}

/// Where the body ends.
enum Length {
    Known(u64),
    Chunked,
    UntilClosed,
}

struct Head {
    status: u16,
    location: Option<String>,
    length: Length,
    bytes: usize,
}

/// Sends the request and reads the answer.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &[u8],
) -> Result<Response, HttpError> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    for _ in 0..INTERIM_MAX {
        let head = head(stream, &mut buffer).await?;
        buffer.drain(..head.bytes);
        if (100..200).contains(&head.status) && head.status != 101 {
            continue;
        }
        let none = matches!(head.status, 101 | 204 | 304);
        let (body, cut) = match head.length {
            _ if none => (Vec::new(), false),
            Length::Known(bytes) => known(stream, buffer, bytes).await?,
            Length::Chunked => chunked(stream, buffer).await?,
            Length::UntilClosed => until_closed(stream, buffer).await?,
        };
        return Ok(Response { status: head.status, location: head.location, body, cut });
    }
    Err(HttpError::NotHttp("only interim answers".to_owned()))
}

/// Reads the rest of an answer that is longer than what is kept of it, until `deadline` at most.
pub(super) async fn drain<S: AsyncRead + Unpin>(stream: &mut S, deadline: Instant) {
    let (mut buffer, mut drained) = (Vec::with_capacity(READ_BYTES), 0);
    let until = deadline.min(Instant::now() + DRAIN_MAX).into();
    while drained < DRAINED_BYTES_MAX {
        buffer.clear();
        match tokio::time::timeout_at(until, more(stream, &mut buffer)).await {
            Ok(Ok(read)) if read > 0 => drained += read,
            _ => return,
        }
    }
}

async fn head<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Result<Head, HttpError> {
    loop {
        if let Some(head) = parse(buffer)? {
            return Ok(head);
        }
        if buffer.len() >= HEAD_BYTES_MAX {
            return Err(HttpError::HeadTooLong);
        }
        if more(stream, buffer).await? == 0 {
            return Err(if buffer.is_empty() { HttpError::NoAnswer } else { HttpError::CutOff });
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Option<Head>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::HeadTooLong),
        // The phrase behind the status is for people, in whatever letters: the status counts.
        Err(httparse::Error::Status) => match plain_status_line(bytes) {
            Some(plain) => return parse(&plain),
            None => return Err(HttpError::NotHttp(httparse::Error::Status.to_string())),
        },
        Err(error) => return Err(HttpError::NotHttp(error.to_string())),
    };
    let find = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(|value| value.trim().to_owned())
    };
    let chunked = find("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked"));
    let known = find("content-length").and_then(|length| length.parse().ok());
    let body = match known {
        _ if chunked => Length::Chunked,
        Some(bytes) => Length::Known(bytes),
        None => Length::UntilClosed,
    };
    let Some(status) = response.code else { return Err(HttpError::NotHttp("no status".to_owned())) };
    Ok(Some(Head { status, location: find("location"), length: body, bytes: length }))
}

/// The head with the letters of its status line that are none of HTTP's replaced, byte by byte; `None` where there are none.
fn plain_status_line(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let odd = |byte: &u8| !byte.is_ascii() || (byte.is_ascii_control() && !matches!(byte, b'\r' | b'\n' | b'\t'));
    let mut plain = bytes.to_vec();
    let line = plain.get_mut(..end)?;
    line.iter().any(odd).then_some(())?;
    line.iter_mut().filter(|byte| odd(byte)).for_each(|byte| *byte = b'?');
    Some(plain)
}

async fn more<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Result<usize, HttpError> {
    buffer.reserve(READ_BYTES);
    Ok((&mut *stream).take(READ_BYTES as u64).read_buf(buffer).await?)
}

async fn known<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut body: Vec<u8>,
    bytes: u64,
) -> Result<(Vec<u8>, bool), HttpError> {
    let wanted = usize::try_from(bytes).unwrap_or(usize::MAX);
    let room = wanted.min(BODY_BYTES_MAX);
    while body.len() < room {
        if more(stream, &mut body).await? == 0 {
            return Err(HttpError::CutOff);
        }
    }
    body.truncate(room);
    Ok((body, wanted > room))
}

async fn until_closed<S: AsyncRead + Unpin>(stream: &mut S, mut body: Vec<u8>) -> Result<(Vec<u8>, bool), HttpError> {
    while body.len() <= BODY_BYTES_MAX {
        match more(stream, &mut body).await {
            // Without a length the end of the connection is the end of the body, however it ends.
            Ok(0) | Err(HttpError::CutOff) => return Ok((body, false)),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    body.truncate(BODY_BYTES_MAX);
    Ok((body, true))
}

async fn chunked<S: AsyncRead + Unpin>(stream: &mut S, mut buffer: Vec<u8>) -> Result<(Vec<u8>, bool), HttpError> {
    let mut body = Vec::new();
    loop {
        let (line, size) = loop {
            match httparse::parse_chunk_size(&buffer) {
                Ok(httparse::Status::Complete(found)) => break found,
                Ok(httparse::Status::Partial) if buffer.len() < CHUNK_LINE_BYTES_MAX => {}
                _ => return Err(HttpError::NotHttp("a chunk without a size".to_owned())),
            }
            if more(stream, &mut buffer).await? == 0 {
                return Err(HttpError::CutOff);
            }
        };
        if size == 0 {
            return Ok((body, false));
        }
        buffer.drain(..line);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let room = BODY_BYTES_MAX - body.len();
        if size > room {
            while buffer.len() < room {
                if more(stream, &mut buffer).await? == 0 {
                    return Err(HttpError::CutOff);
                }
            }
            body.extend(buffer.drain(..room));
            return Ok((body, true));
        }
        // The chunk, and the line end behind it.
        while buffer.len() < size + 2 {
            if more(stream, &mut buffer).await? == 0 {
                return Err(HttpError::CutOff);
            }
        }
        body.extend(buffer.drain(..size));
        buffer.drain(..2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A server that says `answer`, in pieces of `piece` bytes, and closes.
    fn ask_one(answer: &[u8], piece: usize) -> Result<Response, HttpError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = answer.to_vec();
        runtime.block_on(async move {
            let (mut here, mut there) = tokio::io::duplex(piece.max(1));
            let serve = async move {
                let mut request = [0; 3];
                there.read_exact(&mut request).await.ok();
                there.write_all(&answer).await.ok();
            };
            let (answer, ()) = tokio::join!(
                async {
                    let answer = ask(&mut here, b"GET").await;
                    drop(here);
                    answer
                },
                serve
            );
            answer
        })
    }

    #[test]
    fn all_forms_of_a_body() {
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        for (answer, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, more", 200, "hello"),
            ("HTTP/1.0 503 no\r\n\r\nhello", 503, "hello"),
            ("HTTP/1.1 503 \u{fc}berlastet\u{1b}[2J\r\n\r\nhello", 503, "hello"),
            (chunks, 200, "hello"),
            ("HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 204 None\r\n\r\n", 204, ""),
        ] {
            for piece in [1, 7, 4096] {
                let response = ask_one(answer.as_bytes(), piece).unwrap();
                assert_eq!((response.status, response.body.as_slice()), (status, body.as_bytes()), "{answer} {piece}");
                assert!(!response.cut);
            }
        }
    }

    #[test]
    fn every_bound_holds() {
        let bomb = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        assert!(matches!(ask_one(bomb.as_bytes(), 4096), Err(HttpError::HeadTooLong)));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1));
        assert!(matches!(ask_one(many.as_bytes(), 4096), Err(HttpError::HeadTooLong)));
        for start in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        ] {
            let huge = [start.as_bytes(), &vec![b'x'; 3 * BODY_BYTES_MAX]].concat();
            let response = ask_one(&huge, 4096).unwrap();
            assert_eq!((response.body.len(), response.cut), (BODY_BYTES_MAX, true), "{start}");
        }
        assert!(matches!(ask_one(b"", 1), Err(HttpError::NoAnswer)));
        assert!(matches!(ask_one(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", 1), Err(HttpError::CutOff)));
        assert!(matches!(ask_one(b"SSH-2.0-OpenSSH_9.2\r\n", 1), Err(HttpError::NotHttp(_))));
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(20);
        assert!(matches!(ask_one(endless.as_bytes(), 99), Err(HttpError::NotHttp(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn never_panics(tail in "(HTTP/1.1 |200 OK|\r\n|Content-Length: |Transfer-Encoding: chunked|[0-9a-f]{1,17}|;|x){0,20}",
            bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            drop(ask_one(&[b"HTTP/1.1 200 OK\r\n", tail.as_bytes(), &bytes].concat(), 64));
            drop(ask_one(&bytes, 64));
        }
    }
}
