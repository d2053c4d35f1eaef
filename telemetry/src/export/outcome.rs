//! What an answer of a collector means: done, again, or never.
//!
//! Source: OpenTelemetry Protocol specification 1.x, "OTLP/gRPC Response", "OTLP/HTTP Response".

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use prost::Message;

/// Longest wait a collector may ask for. Longer ones are cut: the queue keeps filling meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How an attempt to send ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The collector has it, all but so many units that it refuses for good.
    Delivered { rejected: u64 },
    /// It may be sent again; not before `after`, if the collector says so.
    Again { failure: Failure, after: Option<Duration> },
    /// It will never be accepted.
    Never { failure: Failure },
}

/// What went wrong, without a word of the collector's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection, or it broke.
    Connection,
    Timeout,
    /// The answer was longer than [`super::transport::RESPONSE_BYTES_MAX`].
    AnswerTooLong,
    Status(u16),
    Grpc(u16),
    /// The answer is not what the protocol says it is.
    Protocol,
    /// The library did not encode it.
    Encoding,
}

/// The answer to any of the three signals; they have the same shape.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
}

/// `google.rpc.Status`, as far as it is read.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<RpcDuration>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RpcDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

// === impl Outcome ===

impl Outcome {
    /// What a complete HTTP answer means.
    pub(super) fn of_http(
        status: StatusCode,
        headers: &HeaderMap,
        body: &Bytes,
        now: SystemTime,
    ) -> Self {
        let failure = Failure::Status(status.as_u16());
        match status.as_u16() {
            200..=299 => Self::of_message(body),
            429 | 502 | 503 | 504 => Self::Again { failure, after: retry_after(headers, now) },
            _ => Self::Never { failure },
        }
    }

    /// What the end of a gRPC call means; `trailers` may be the head of an answer without a body.
    pub(super) fn of_grpc(status: StatusCode, trailers: &HeaderMap, body: &[u8]) -> Self {
        let code =
            trailers.get("grpc-status").map(|code| code.to_str().unwrap_or_default().parse());
        let code = match code {
            Some(Ok(code)) => code,
            Some(Err(_)) => return Self::Never { failure: Failure::Protocol },
            // A proxy between: the mapping of gRPC's http-grpc-status-mapping.md.
            None if matches!(status.as_u16(), 429 | 502 | 503 | 504) => {
                let failure = Failure::Status(status.as_u16());
                return Self::Again { failure, after: retry_after(trailers, SystemTime::now()) };
            }
            None if status != StatusCode::OK => {
                return Self::Never { failure: Failure::Status(status.as_u16()) };
            }
            None => return Self::Again { failure: Failure::Protocol, after: None },
        };
        let (failure, after) = (Failure::Grpc(code), retry_info(trailers));
        match code {
            0 => match super::grpc::message(body) {
                Some(message) => Self::of_message(message),
                None => Self::Never { failure: Failure::Protocol },
            },
            // Cancelled, deadline exceeded, aborted, out of range, unavailable, data loss.
            1 | 4 | 10 | 11 | 14 | 15 => Self::Again { failure, after },
            // Resource exhausted: only when the collector says that it will recover.
            8 if after.is_some() => Self::Again { failure, after },
            _ => Self::Never { failure },
        }
    }

    fn of_message(message: &[u8]) -> Self {
        // A success is a success, even when its details are not understood.
        let answer = Answer::decode(message).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected);
        Self::Delivered { rejected: u64::try_from(rejected).unwrap_or_default() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection => f.write_str("no connection, or it broke"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::AnswerTooLong => f.write_str("the answer is too long"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Grpc(code) => write!(f, "grpc status {code}"),
            Self::Protocol => f.write_str("the answer is not of the protocol"),
            Self::Encoding => f.write_str("not encodable"),
        }
    }
}

/// Seconds or a date, RFC 9110 section 10.2.3.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(WAIT_MAX))
}

fn retry_info(trailers: &HeaderMap) -> Option<Duration> {
    let details = trailers.get("grpc-status-details-bin")?.to_str().ok()?;
    let details = STANDARD_NO_PAD.decode(details.trim_end_matches('=')).ok()?;
    let status = RpcStatus::decode(details.as_slice()).ok()?;
    let info = status.details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.delay?;
    let (seconds, nanos) = (u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?);
    Some(
        Duration::from_secs(seconds)
            .saturating_add(Duration::from_nanos(nanos.into()))
            .min(WAIT_MAX),
    )
}

#[cfg(test)]
mod tests;
