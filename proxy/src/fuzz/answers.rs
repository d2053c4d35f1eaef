//! An HTTP/1 instance's answers: what is passed on is as long as its head says.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::wire::{Asked, Wire, run};
use crate::config::Limits;
use crate::upstream::framing;

/// An answer that is not refused has one length, and its body is that long or ends in an error.
pub fn answer(bytes: &[u8]) {
    for method in [Method::GET, Method::HEAD] {
        let mut before: Option<Outcome> = None;
        for piece in [usize::MAX, 1, 13] {
            let outcome = ask(bytes, piece, &method);
            if let Some(Outcome::Passed { length, read: Ok(read), bodiless }) = &outcome {
                let expected = if *bodiless { Some(0) } else { *length };
                assert!(expected.is_none_or(|length| length == *read), "{length:?} but {read}");
            }
            if let (Some(before), Some(outcome)) = (&before, &outcome) {
                assert_eq!(before, outcome, "in pieces of {piece}");
            }
            before = outcome;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Passed {
        /// What the head says.
        length: Option<u64>,
        /// What came; an error when it was cut.
        read: Result<u64, ()>,
        /// Whatever the head says, there is none.
        bodiless: bool,
    },
}

/// `None` when hyper finds no answer in `bytes`.
fn ask(bytes: &[u8], piece: usize, method: &Method) -> Option<Outcome> {
    let limits = Limits::default();
    let exchange = async {
        let io = TokioIo::new(Wire::new(bytes, piece, Asked));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(64 * 1024).max_header_size(limits.head_bytes_max);
        let (mut sender, mut connection) = builder.handshake(io).await.ok()?;
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method.clone();
        let mut answer = std::pin::pin!(sender.send_request(request));
        let mut over = false;
        // hyper's answer is there before or after its connection is over.
        let mut drive = move |cx: &mut std::task::Context<'_>| {
            if !over {
                over = Pin::new(&mut connection).poll(cx).is_ready();
            }
        };
        let answer = poll_fn(|cx| {
            drive(cx);
            answer.as_mut().poll(cx)
        });
        let response = answer.await.ok()?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return None; // nobody asked; the bytes behind it are never read
        }
        Some(pass_on(response, method, &limits, drive).await)
    };
    run(exchange).flatten()
}

async fn pass_on(
    mut response: Response<Incoming>,
    method: &Method,
    limits: &Limits,
    mut drive: impl FnMut(&mut std::task::Context<'_>),
) -> Outcome {
    let headers = response.headers_mut();
    if framing::check(headers, limits.header_fields_max).is_err() {
        return Outcome::Refused;
    }
    let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
    let codings = headers.get_all(TRANSFER_ENCODING).iter().count();
    assert!(lengths.len() + codings <= 1, "framed in two ways: {headers:?}");
    let length = lengths.first().map(|length| {
        let text = length.to_str().expect("digits");
        text.parse::<u64>().expect("a number")
    });
    let again = framing::check(&mut headers.clone(), limits.header_fields_max);
    assert!(again.is_ok(), "refused the second time");
    let bodiless = *method == Method::HEAD
        || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut body = response.into_body();
    let mut read = 0;
    let ended = poll_fn(|cx| {
        drive(cx);
        while let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
            match frame {
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len) as u64,
                Some(Err(_)) => return Poll::Ready(Err(())),
                None => return Poll::Ready(Ok(())),
            }
            drive(cx);
        }
        Poll::Pending
    })
    .await;
    Outcome::Passed { length, read: ended.map(|()| read), bodiless }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rest: &str, expected: Outcome) {
        let bytes = format!("HTTP/1.1 200 OK\r\n{rest}");
        for piece in [usize::MAX, 1] {
            assert_eq!(ask(bytes.as_bytes(), piece, &Method::GET).as_ref(), Some(&expected));
        }
    }

    #[test]
    fn answers_are_read() {
        let passed = |length, read| Outcome::Passed { length, read, bodiless: false };
        check("content-length: 5\r\n\r\nhello", passed(Some(5), Ok(5)));
        check("content-length: 9\r\n\r\nhello", passed(Some(9), Err(())));
        check("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", passed(None, Ok(2)));
        check("\r\nuntil the end", passed(None, Ok(13)));
        check("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", Outcome::Refused);
    }
}
