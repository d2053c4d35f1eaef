//! The last words to a client whose bytes are not read any further.

use std::future::poll_fn;
use std::io::Write as _;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::body::Body;
use crate::error::Failure;
use crate::http::date;
use crate::io::stream::{LINGER_BYTES_MAX, Stream};

/// How long a refused client is listened to, so that our answer is not lost to the reset that unread
/// bytes would cause.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// Answers with `failure` and closes.
pub(super) async fn refuse(mut stream: Stream, failure: &Failure) {
    let answer = encode(failure);
    let write = async {
        stream.write_all(&answer).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, write).await {
        linger(&stream, LINGER).await;
    }
}

/// Reads on for `patience` and throws away what comes. No buffer is held while nothing does: a drain
/// ends many connections at about the same time.
pub(super) async fn linger(stream: &Stream, patience: Duration) {
    let mut left = LINGER_BYTES_MAX;
    // Out of time is one of the ways to end here.
    drop(tokio::time::timeout(patience, poll_fn(|cx| stream.poll_discard(&mut left, cx))).await);
}

fn encode(failure: &Failure) -> Vec<u8> {
    let response = failure.response();
    let status = response.status();
    let mut bytes =
        format!("HTTP/1.1 {status}\r\nserver: ferrule\r\nconnection: close\r\n").into_bytes();
    bytes.extend_from_slice(b"date: ");
    bytes.extend_from_slice(date::now().as_bytes());
    bytes.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let body = match response.into_body() {
        Body::Full(Some(body)) => body,
        _ => bytes::Bytes::new(),
    };
    write!(bytes, "content-length: {}\r\n\r\n", body.len()).expect("a Vec takes everything");
    bytes.extend_from_slice(&body);
    bytes
}
