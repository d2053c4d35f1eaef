//! The framing of a unary gRPC call.
//!
//! The message is the same as that of OTLP over HTTP, with five bytes in front, and the answer's
//! status is in its trailers. That is all the protocol needs here, so it runs over the same client:
//! one connection, one bound on answers, and the collector's partial successes and waits are seen,
//! which the library's own gRPC exporters keep to themselves.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::queue::Signal;

const PREFIX: usize = 5;

/// The path of the method that takes `signal`.
pub(super) fn path(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    }
}

/// `message` as the one frame of a call.
pub(super) fn frame(message: &[u8], compressed: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(compressed.into());
    // A batch is a few MiB at most.
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// The one message of an answer; none when there is another number of them or it is compressed,
/// which was not offered.
pub(super) fn message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_first_chunk::<PREFIX>()?;
    let [0, a, b, c, d] = *prefix else { return None };
    let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    (message.len() == len).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back_and_nothing_else_is() {
        let framed = frame(b"hello", false);
        assert_eq!(&framed[..5], [0, 0, 0, 0, 5]);
        assert_eq!(message(&framed), Some(&b"hello"[..]));
        assert_eq!(message(&frame(b"", false)), Some(&b""[..]));
        let two = [&framed[..], &framed[..]].concat();
        for wrong in [&two[..], &framed[..9], &framed[..4], &frame(b"hello", true)] {
            assert_eq!(message(wrong), None);
        }
    }
}
