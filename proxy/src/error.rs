//! The closed set of failures: whose fault, may it be retried, what the client is told.
//!
//! A [`Failure`] carries one [`Code`]. The code is the only part of an error that becomes a label,
//! a header or a body; the source is for the log. Turning a failure into a response happens in one
//! place, [`Failure::response`].

use std::fmt;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderName, Response, StatusCode};

use crate::body::Body;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Downstream,
    Upstream,
    Edge,
}

/// What a second attempt may assume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Not one byte of the request reached an application: any method may go elsewhere.
    Unsent,
    /// It may have been processed: only idempotent requests may go elsewhere.
    Idempotent,
    /// A second attempt would do no good.
    Never,
}

/// One failure on the way of a connection or request.
pub struct Failure {
    pub code: Code,
    pub retry: Retry,
    /// Though its code names the instance, something else was the cause.
    is_excused: bool,
    source: Option<BoxError>,
}

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The header that carries the code to the client.
pub const FERRULE_ERROR: HeaderName = HeaderName::from_static("ferrule-error");

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident $side:ident $status:ident $body:literal;)*) => {
        /// What can go wrong, in the classes of fly-proxy: PC connect, PT TLS, PU upstream, PR
        /// route, PL limits, PP protocol, PE identity; PX is ourselves.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $code,)*
        }

        impl Code {
            /// Every code, for metrics that exist before the first failure.
            pub const ALL: &[Self] = &[$(Self::$code),*];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$code => stringify!($code),)*
                }
            }

            pub const fn side(self) -> Side {
                match self {
                    $(Self::$code => Side::$side,)*
                }
            }

            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$code => StatusCode::$status,)*
                }
            }

            /// One sentence: what happened and what the app's owner or the client can do. It never
            /// holds the client's own bytes.
            const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$code => concat!(stringify!($code), ": ", $body, "\n"),)*
                }
            }
        }
    };
}

codes! {
    /// The instance refused the connection.
    PC01 Upstream BAD_GATEWAY "The app's instance refused the connection: check that it listens on its internal port on 0.0.0.0.";
    /// The instance reset the connection.
    PC03 Upstream BAD_GATEWAY "The app's instance reset the connection: look for a crash in its logs.";
    /// Connecting to the instance timed out.
    PC05 Upstream GATEWAY_TIMEOUT "The app's instance did not accept the connection in time: check that it runs and is not overloaded.";
    /// Connecting to the instance failed for another reason.
    PC06 Upstream BAD_GATEWAY "The app's instance could not be connected to: check its address.";
    /// Too many handshakes from the client's address prefix.
    PT01 Downstream TOO_MANY_REQUESTS "Too many TLS handshakes from this network: try again later.";
    /// The client ended the handshake.
    PT03 Downstream BAD_REQUEST "The TLS handshake was ended by the client.";
    /// The handshake failed.
    PT04 Downstream BAD_REQUEST "The TLS handshake failed: check the client's TLS versions and ciphers.";
    /// No certificate for the SNI.
    PT05 Downstream MISDIRECTED_REQUEST "There is no certificate for this name: add one for the app.";
    /// I/O error in the handshake.
    PT07 Downstream BAD_REQUEST "The connection broke during the TLS handshake.";
    /// The handshake timed out.
    PT08 Downstream REQUEST_TIMEOUT "The TLS handshake took too long.";
    /// Too many handshakes in flight on this node.
    PT10 Edge SERVICE_UNAVAILABLE "This node has too many TLS handshakes in progress: try again.";
    /// HTTP/2 handshake with the instance failed.
    PU01 Upstream BAD_GATEWAY "The app's instance did not speak HTTP/2: h2_backend needs prior knowledge (h2c).";
    /// The request could not be completed at the instance.
    PU02 Upstream BAD_GATEWAY "The app's instance closed the connection before it answered: look for a crash or a timeout in its logs.";
    /// The node that has the instance cannot be reached.
    PU03 Edge BAD_GATEWAY "The node that runs the app could not be reached: try again.";
    /// The body could not be read from the instance to its end.
    PU05 Upstream BAD_GATEWAY "The app's instance ended its answer before it was complete.";
    /// The instance did not answer in time.
    PU06 Upstream GATEWAY_TIMEOUT "The app's instance did not answer in time: look for blocked work in it.";
    /// The instance's answer broke the protocol.
    PU07 Upstream BAD_GATEWAY "The app's instance sent an answer that is not valid HTTP.";
    /// No healthy instance.
    PR01 Upstream SERVICE_UNAVAILABLE "The app has no healthy instance: start one or look at its health checks.";
    /// The instance is not on this node (told to peers only).
    PR02 Edge SERVICE_UNAVAILABLE "The app's instance is not on this node any more.";
    /// No candidate left after retries.
    PR03 Upstream BAD_GATEWAY "No instance of the app could be reached after several attempts: look at their logs.";
    /// Every instance is at its hard limit and the queue is full or too slow.
    PR04 Upstream SERVICE_UNAVAILABLE "Every instance of the app is at its hard limit: raise it or start more instances.";
    /// Too many hops between nodes.
    PR06 Edge LOOP_DETECTED "The request passed too many nodes: their views of the app disagree, try again.";
    /// Connection limit of the instance reached on its node (told to peers only).
    PL01 Edge SERVICE_UNAVAILABLE "The app's instance is at its connection limit.";
    /// Request limit of the instance reached on its node (told to peers only).
    PL02 Edge SERVICE_UNAVAILABLE "The app's instance is at its request limit.";
    /// The node is full.
    PL03 Edge SERVICE_UNAVAILABLE "This node is at its limit: try again.";
    /// The app has too many connections on this node.
    PL04 Upstream SERVICE_UNAVAILABLE "The app has too many connections on this node: spread them or raise the limit.";
    /// The node is draining.
    PL05 Edge SERVICE_UNAVAILABLE "This node is shutting down: connect again.";
    /// Memory is short, and the app holds more of it than its share.
    PL06 Edge SERVICE_UNAVAILABLE "This node is short of memory, and the app's clients hold more than their share: try again.";
    /// The request is malformed or ambiguous.
    PP02 Downstream BAD_REQUEST "The request is malformed or ambiguous: check the client.";
    /// The request target is too long.
    PP03 Downstream URI_TOO_LONG "The request target is too long: move data into the body.";
    /// The head is too large or has too many fields.
    PP04 Downstream REQUEST_HEADER_FIELDS_TOO_LARGE "The request's header is too large: send fewer or shorter fields.";
    /// The method is not allowed here.
    PP05 Downstream METHOD_NOT_ALLOWED "CONNECT and TRACE are not served here.";
    /// The client was too slow.
    PP06 Downstream REQUEST_TIMEOUT "The request came too slowly.";
    /// The upgrade cannot be done.
    PP07 Downstream NOT_IMPLEMENTED "The upgrade cannot be done: an upgrade request has no body and one known protocol.";
    /// The expectation cannot be met.
    PP08 Downstream EXPECTATION_FAILED "Only the expectation 100-continue is understood.";
    /// The client went away.
    PP09 Downstream BAD_REQUEST "The client closed the connection before the request was complete.";
    /// No app answers to the name.
    PE01 Downstream NOT_FOUND "No app answers to this name: check the app's hostnames.";
    /// The authority does not belong to the connection.
    PE02 Downstream MISDIRECTED_REQUEST "The name in the request does not belong to this connection: open one for it.";
    /// A fault of our own.
    PX01 Edge INTERNAL_SERVER_ERROR "The edge failed: this is a defect, please report it.";
}

// === impl Code ===

impl Code {
    /// Whether another node should look elsewhere instead of passing this on.
    pub const fn is_for_peers(self) -> bool {
        matches!(
            self,
            Self::PR01
                | Self::PR02
                | Self::PR06
                | Self::PL01
                | Self::PL02
                | Self::PL03
                | Self::PL05
                | Self::PL06
        )
    }

    /// Whether it says something about the instance or the way to it: all of PC and PU do.
    pub const fn blames_instance(self) -> bool {
        use Code::{PC01, PC03, PC05, PC06, PU01, PU02, PU03, PU05, PU06, PU07};
        matches!(self, PC01 | PC03 | PC05 | PC06 | PU01 | PU02 | PU03 | PU05 | PU06 | PU07)
    }

    /// Whether it says that something is wrong with this node, or on its way to others, rather than
    /// with one client or app: requests nearby may show what.
    ///
    /// What peers tell each other is not among them: it is how views that disagree are settled.
    /// Neither is the end of a drain, which is noted when it begins.
    pub const fn is_anomaly(self) -> bool {
        matches!(self, Self::PT10 | Self::PU03 | Self::PL03 | Self::PL06 | Self::PX01)
    }

    /// The code written as `name`.
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str().as_bytes() == name)
    }
}

// === impl Failure ===

impl Failure {
    pub fn new(code: Code) -> Self {
        Self { code, retry: Retry::Never, is_excused: false, source: None }
    }

    pub fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The instance is not to be blamed for it, whatever the code says.
    pub fn excused(mut self) -> Self {
        self.is_excused = true;
        self
    }

    /// Whether the instance, or the way to it, is to blame.
    pub fn blames_instance(&self) -> bool {
        !self.is_excused && self.code.blames_instance()
    }

    /// The answer to the client: status, `ferrule-error`, one sentence.
    pub fn response(&self) -> Response<Body> {
        let mut response =
            Response::new(Body::full(Bytes::from_static(self.code.sentence().as_bytes())));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(FERRULE_ERROR, HeaderValue::from_static(self.code.as_str()));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::new(code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.as_str())
    }
}

/// The chain of `Display`s: no backtrace is ever captured or symbolised for an error of ours.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_code_and_nothing_of_the_client() {
        let failure = Failure::new(Code::PP02).because("GET /secret");
        let response = failure.response();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.headers()[FERRULE_ERROR], "PP02");
        let Body::Full(Some(body)) = response.into_body() else { panic!("a short body") };
        assert!(body.starts_with(b"PP02: ") && !body.windows(6).any(|bytes| bytes == b"secret"));
    }

    #[test]
    fn the_debug_form_is_the_chain_of_displays() {
        let inner = Failure::new(Code::PC01).because("connection refused");
        let outer = Failure::new(Code::PR03).because(inner);
        assert_eq!(format!("{outer:?}"), "PR03: PC01: connection refused");
    }
}
