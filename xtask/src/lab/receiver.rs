//! A recording HTTP server in the place of a webhook and of PagerDuty: one thread, one request per connection.
//!
//! It believes nothing: what is not a well-formed POST is answered with 400 and not recorded.

use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Largest body that is read.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// One recorded call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// When it arrived.
    pub(crate) at: Instant,
    /// Path of the request: tells webhook and PagerDuty apart.
    pub(crate) path: String,
    /// The JSON body.
    pub(crate) body: Value,
}

impl Call {
    /// A string field of the body, by JSON pointer.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The server; it lives as long as the process.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Receiver {
    /// Starts to listen on a free loopback port.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for pages")?;
        let receiver = Self { address: listener.local_addr()?, calls: Arc::default() };
        let calls = Arc::clone(&receiver.calls);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let calls = Arc::clone(&calls);
                std::thread::spawn(move || drop(serve(&stream, &calls)));
            }
        });
        Ok(receiver)
    }

    /// What has arrived on `path` so far.
    pub(crate) fn calls(&self, path: &str) -> Vec<Call> {
        let calls = self.calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        calls.iter().filter(|call| call.path == path).cloned().collect()
    }
}

fn serve(stream: &TcpStream, calls: &Mutex<Vec<Call>>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let answer = match read_call(&mut reader) {
        Ok(call) if call.path == super::REFUSING_PATH => response("410 Gone", "nobody is here any more"),
        Ok(call) => {
            let body = format!(r#"{{"status":"success","dedup_key":{}}}"#, call.body["dedup_key"]);
            calls.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(call);
            response("202 Accepted", &body)
        }
        Err(error) => response("400 Bad Request", &format!("{error:#}")),
    };
    (&*stream).write_all(answer.as_bytes())?;
    Ok(())
}

fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn read_call(reader: &mut impl BufRead) -> Result<Call> {
    let mut line = String::new();
    reader.by_ref().take(8192).read_line(&mut line)?;
    let path = line.strip_prefix("POST ").and_then(|rest| rest.split(' ').next()).context("not a POST")?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.by_ref().take(8192).read_line(&mut header)?;
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>()?.min(BODY_BYTES_MAX);
        }
    }
    let mut body = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut body)?;
    Ok(Call { at: Instant::now(), path, body: serde_json::from_slice(&body).context("the body is not JSON")? })
}
