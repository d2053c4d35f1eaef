//! What the collector answers, well or badly.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;

use super::{Mode, Transport};

/// A body that may break.
pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Frames = stream::BoxStream<'static, std::io::Result<Frame<Bytes>>>;

/// The answer to a request in `mode`; one in [`Mode::BlackHole`] has none.
pub(super) fn answer(transport: Transport, mode: Mode) -> Option<Response<Body>> {
    Some(match (transport, mode) {
        (_, Mode::BlackHole) => return None,
        (Transport::Http, Mode::Unavailable { retry_after }) => {
            let mut response = http(StatusCode::SERVICE_UNAVAILABLE, whole(Bytes::new()));
            response.headers_mut().insert(RETRY_AFTER, retry_after.into());
            response
        }
        (Transport::Grpc, Mode::Unavailable { retry_after }) => {
            grpc(vec![], status(14, Some(retry_after)))
        }
        (Transport::Http, Mode::BadRequest) => http(StatusCode::BAD_REQUEST, whole(Bytes::new())),
        (Transport::Grpc, Mode::BadRequest) => grpc(vec![], status(3, None)),
        (_, Mode::Good) => accepted(transport, message(0)),
        (_, Mode::PartialSuccess { rejected }) => accepted(transport, message(rejected)),
        (_, Mode::OneBytePerSecond) => {
            let bytes = stream::iter([0; 64]).then(|byte| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(Frame::data(Bytes::copy_from_slice(&[byte])))
            });
            streamed(transport, bytes.boxed())
        }
        (_, Mode::CloseMidResponse) => {
            let broken = Err(std::io::Error::other("closes in the middle"));
            let frames = [Ok(Frame::data(Bytes::from_static(b"\n"))), broken];
            // Apart, so that the first part is sent before the connection closes.
            let frames = stream::iter(frames).then(|frame| async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                frame
            });
            let mut response = streamed(transport, frames.boxed());
            if transport == Transport::Http {
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("64"));
            }
            response
        }
        (_, Mode::HugeResponse) => {
            let chunk = Bytes::from(vec![0; 16 * 1024]);
            streamed(transport, stream::repeat_with(move || Ok(Frame::data(chunk.clone()))).boxed())
        }
    })
}

fn accepted(transport: Transport, message: Vec<u8>) -> Response<Body> {
    match transport {
        Transport::Http => http(StatusCode::OK, whole(message.into())),
        Transport::Grpc => {
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.len()).expect("a short message").to_be_bytes());
            frame.extend(message);
            grpc(frame, status(0, None))
        }
    }
}

/// The answer of each of the three services has this shape.
fn message(rejected: i64) -> Vec<u8> {
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceResponse,
    };
    let partial_success = (rejected > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: rejected,
        error_message: "not all of it".to_owned(),
    });
    ExportTraceServiceResponse { partial_success }.encode_to_vec()
}

fn http(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/x-protobuf");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn grpc(frame: Vec<u8>, trailers: HeaderMap) -> Response<Body> {
    let data = (!frame.is_empty()).then(|| Ok(Frame::data(frame.into())));
    let frames = data.into_iter().chain([Ok(Frame::trailers(trailers))]);
    streamed(Transport::Grpc, stream::iter(frames).boxed())
}

fn streamed(transport: Transport, frames: Frames) -> Response<Body> {
    let mut response = http(StatusCode::OK, StreamBody::new(frames).boxed_unsync());
    if transport == Transport::Grpc {
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

fn whole(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn status(code: u16, retry_after: Option<u32>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    if let Some(seconds) = retry_after {
        let details = base64(&rpc_status(code, seconds));
        let details = HeaderValue::try_from(details).expect("base64 is ASCII");
        trailers.insert("grpc-status-details-bin", details);
    }
    trailers
}

/// `google.rpc.Status` with a `google.rpc.RetryInfo`, byte by byte: an oracle that does not share
/// the exporter's definitions.
fn rpc_status(code: u16, seconds: u32) -> Vec<u8> {
    let field = |tag: u8, content: &[u8]| {
        let len = u8::try_from(content.len()).expect("short contents");
        [&[tag << 3 | 2, len], content].concat()
    };
    let (code, seconds) = (u8::try_from(code), u8::try_from(seconds));
    let delay = [1 << 3, seconds.expect("less than 128 seconds")];
    let info = field(1, &delay);
    let url = field(1, b"type.googleapis.com/google.rpc.RetryInfo");
    let any = [url, field(2, &info)].concat();
    [vec![1 << 3, code.expect("codes are small")], field(3, &any)].concat()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = std::array::from_fn(|index| chunk.get(index).copied().unwrap_or_default());
        let bits = u32::from_be_bytes([0, a, b, c]);
        // gRPC sends it without padding.
        for digit in 0..=chunk.len() {
            let index = bits >> (18 - 6 * digit) & 63;
            text.push(char::from(DIGITS[index as usize]));
        }
    }
    text
}
