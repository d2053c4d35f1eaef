//! The last words to a client whose bytes are not read any further.

use std::io::Write as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::body::Body;
use crate::error::Failure;
use crate::http::date;
use crate::io::stream::Stream;

/// How long, and for how many bytes, a refused client is listened to, so that our answer is not
/// lost to the reset that unread bytes would cause.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Answers with `failure` and closes.
pub(super) async fn refuse(mut stream: Stream, failure: &Failure) {
    let answer = encode(failure);
    let write = async {
        stream.write_all(&answer).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, write).await {
        linger(stream).await;
    }
}

/// Reads on for a moment and throws away what comes.
pub(super) async fn linger(mut stream: Stream) {
    let read = async {
        let mut left = LINGER_BYTES_MAX;
        let mut scratch = Box::new([0; 16 * 1024]);
        while left > 0 {
            match stream.read(&mut scratch[..]).await {
                Ok(0) | Err(_) => break,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    };
    // Out of time is one of the three ways to end here.
    drop(tokio::time::timeout(LINGER, read).await);
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
