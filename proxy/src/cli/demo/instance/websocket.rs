//! WebSocket (RFC 6455): every message goes back as it came.

mod frame;

use std::convert::Infallible;
use std::io;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use self::frame::{Frame, Malformed, Opcode};
use super::About;
use crate::http::websocket::accept;

pub(super) async fn serve(stream: TcpStream, about: &About) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(respond(&request, about))
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Ends with the handshake, or at the end of the stream, where there is nothing to echo.
    if let Ok(parts) = connection.without_shutdown().await {
        drop(echo(parts.io.into_inner(), parts.read_buf.into()).await);
    }
}

/// The handshake, or how to ask for it.
fn respond<B>(request: &Request<B>, about: &About) -> Response<Full<Bytes>> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let accepted = key.and_then(|key| HeaderValue::try_from(accept(key)).ok());
    let mut response = Response::new(Full::default());
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert("instance", about.header());
    if let Some(accepted) = accepted {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    } else {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        *response.body_mut() = Full::from("this instance speaks WebSocket only\n");
    }
    response
}

/// Frames back and forth until one of them closes.
async fn echo(mut stream: TcpStream, mut received: BytesMut) -> io::Result<()> {
    loop {
        let (answer, ended) = answer(&mut received);
        stream.write_all(&answer).await?;
        if ended || stream.read_buf(&mut received).await? == 0 {
            return stream.shutdown().await;
        }
    }
}

/// Answers every whole frame in `received`, and says whether that was the last.
fn answer(received: &mut BytesMut) -> (Vec<u8>, bool) {
    let mut answer = Vec::new();
    loop {
        match frame::take(received) {
            Ok(None) => return (answer, false),
            Ok(Some(Frame { opcode: Opcode::PONG, .. })) => {}
            Ok(Some(frame)) if frame.opcode == Opcode::PING => frame.into_pong().put(&mut answer),
            Ok(Some(frame)) => {
                frame.put(&mut answer);
                if frame.opcode == Opcode::CLOSE {
                    return (answer, true);
                }
            }
            Err(malformed) => {
                let code = match malformed {
                    Malformed::Unmasked => 1002_u16,
                    Malformed::TooLong => 1009,
                };
                Frame::close(code).put(&mut answer);
                return (answer, true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_needs_a_key() {
        let request = Request::get("/").header(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==");
        let response = respond(&request.body(()).expect("valid"), &About::example());
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let response = respond(&Request::new(()), &About::example());
        assert_eq!(response.status(), StatusCode::UPGRADE_REQUIRED);
    }

    #[test]
    fn messages_come_back_until_one_side_closes() {
        let check = |received: &[u8], expected: &[u8], ended: bool| {
            let answered = answer(&mut BytesMut::from(received));
            assert_eq!(answered, (expected.to_vec(), ended), "{received:?}");
        };
        check(b"", b"", false);
        check(b"\x81\x82\0\0\0\0hi\x81\x82\0\0", b"\x81\x02hi", false);
        check(b"\x89\x81\0\0\0\0!\x8a\x80\0\0\0\0", b"\x8a\x01!", false);
        check(b"\x88\x82\0\0\0\0\x03\xe8", b"\x88\x02\x03\xe8", true);
        check(b"\x81\x02hi", b"\x88\x02\x03\xea", true);
        check(b"\x82\xff\0\0\0\0\0\x01\0\x01", b"\x88\x02\x03\xf1", true);
    }
}
