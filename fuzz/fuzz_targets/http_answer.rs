//! Fuzzes the agent's reader of HTTP answers, which is private to it and stands alone in one file.

#![no_main]

#[expect(dead_code, unreachable_pub, reason = "the agent uses what is not used here")]
#[path = "../../agent/src/senses/health/http.rs"]
mod http;

use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A server that says `left` in pieces of `piece` bytes, and closes.
struct Server<'a> {
    left: &'a [u8],
    piece: usize,
}

impl AsyncRead for Server<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let length = self.piece.min(self.left.len()).min(out.remaining());
        let (now, later) = self.left.split_at(length);
        out.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Server<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for piece in [1, 4096] {
        let mut server = Server { left: bytes, piece };
        if let Ok(answer) = runtime.block_on(http::ask(&mut server, b"GET / HTTP/1.1\r\n\r\n")) {
            assert!(answer.body.len() <= http::BODY_BYTES_MAX && answer.body.len() <= bytes.len());
        }
    }
});
