//! HTTP/1 requests: the screen, httparse and hyper must read the same messages.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::cut_in_many_ways;
use super::wire::{Reading, Wire, run};
use crate::config::Limits;
use crate::error::Code;
use crate::http::screen::{HeadLimits, Screen};

/// However the bytes are cut, the screen's verdict is the same and its memory is bounded; what it
/// lets pass is what httparse reads.
pub fn screen(bytes: &[u8]) {
    for limits in [tight(), HeadLimits::from(&Limits::default())] {
        let expected = Verdict::of(limits, &mut std::iter::once(bytes));
        cut_in_many_ways(bytes, |pieces| {
            let mut shown = Vec::new();
            let found = Verdict::of(limits, &mut pieces.inspect(|piece| shown.push(piece.len())));
            assert_eq!(found.heads, expected.heads, "heads in pieces of {shown:?}");
            assert_eq!(found.refusal, expected.refusal, "in pieces of {shown:?}");
            // What earlier pieces held cannot be taken back.
            let admitted = expected.admitted.max(found.last_piece);
            assert_eq!(found.admitted, admitted, "admitted in pieces of {shown:?}");
        });
        let messages = follow(bytes, limits);
        assert_eq!(messages.len() as u64, expected.heads);
    }
}

/// What passes the screen is what hyper serves: as many requests, and bodies of the same length.
pub fn smuggle(bytes: &[u8]) {
    let limits = HeadLimits::from(&Limits::default());
    let messages = follow(bytes, limits);
    for piece in [usize::MAX, 1, 5, 64] {
        let served = Served::by_hyper(bytes, piece, limits, Answer::AfterBody);
        served.check_bodies(&messages);
        served.check_requests(&messages);
        let hasty = Served::by_hyper(bytes, piece, limits, Answer::AtOnce);
        hasty.check_requests(&messages);
    }
}

fn tight() -> HeadLimits {
    HeadLimits { target_bytes_max: 64, field_bytes_max: 128, head_bytes_max: 512, fields_max: 8 }
}

/// What the screen says of an input.
struct Verdict {
    /// Bytes that were passed on.
    admitted: usize,
    refusal: Option<(Code, bool)>,
    heads: u64,
    /// Where the last piece began.
    last_piece: usize,
}

impl Verdict {
    fn of(limits: HeadLimits, pieces: &mut dyn Iterator<Item = &[u8]>) -> Self {
        let mut screen = Screen::new(limits);
        let HeadLimits { target_bytes_max, field_bytes_max, .. } = limits;
        // A vector may have room for twice what it was given.
        let held_max = 2 * (target_bytes_max.max(field_bytes_max) + 1024);
        let (mut admitted, mut last_piece) = (0, 0);
        for piece in pieces {
            last_piece = admitted;
            let step = screen.admit(piece);
            assert!(screen.held() <= held_max, "holds {}", screen.held());
            if let Err(violation) = step {
                assert!(violation.admitted <= piece.len());
                let after = screen.admit(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
                assert_eq!(after.map_err(|violation| violation.admitted), Err(0), "goes on");
                return Self {
                    admitted: admitted + violation.admitted,
                    refusal: Some((violation.code, violation.in_body)),
                    heads: screen.heads(),
                    last_piece,
                };
            }
            admitted += piece.len();
        }
        Self { admitted, refusal: None, heads: screen.heads(), last_piece }
    }
}

/// A message whose head the screen let pass, as httparse reads it.
#[derive(Debug)]
struct Message {
    method: String,
    target: String,
    /// It says that no other one follows, or may not follow.
    closes: bool,
    body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Body {
    bytes: u64,
    complete: bool,
}

/// The messages that a screen lets pass when it is shown one byte at a time.
fn follow(bytes: &[u8], limits: HeadLimits) -> Vec<Message> {
    /// Where a message is, as the screen has it.
    struct Place {
        start: usize,
        body: usize,
        end: Option<usize>,
    }
    let mut screen = Screen::new(limits);
    let mut places: Vec<Place> = Vec::new();
    let (mut start, mut admitted) = (0, 0);
    for byte in bytes.chunks(1) {
        if screen.admit(byte).is_err() {
            break;
        }
        admitted += 1;
        if screen.heads() > places.len() as u64 {
            assert!(!screen.in_head(), "a head that is over is not being read");
            places.push(Place { start, body: admitted, end: None });
        }
        if screen.at_boundary() {
            start = admitted;
            let message = places.last_mut().expect("a boundary is what a message ends at");
            message.end.get_or_insert(admitted);
        }
    }
    let read = |place: Place| {
        let head = &bytes[place.start..place.body];
        let (message, end) = Message::read(head, &bytes[place.body..admitted]);
        assert_eq!(end.map(|end| place.body + end), place.end, "the end of {message:?}");
        message
    };
    places.into_iter().map(read).collect()
}

impl Message {
    /// Reads a whole head and its body with httparse. Also says where the body ends.
    fn read(head: &[u8], body: &[u8]) -> (Self, Option<usize>) {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(head);
        assert_eq!(parsed, Ok(httparse::Status::Complete(head.len())), "httparse on a head");
        let values = |name: &str| {
            let named =
                request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            named.map(|field| field.value).collect::<Vec<_>>()
        };
        let (codings, lengths) = (values("transfer-encoding"), values("content-length"));
        assert!(codings.len() + lengths.len() <= 1, "framed in two ways");
        assert!(values("host").len() <= 1, "two hosts");
        let (read, end) = match (codings.first(), lengths.first()) {
            (Some(coding), _) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked"));
                read_chunks(body)
            }
            (None, Some(length)) => {
                let text = std::str::from_utf8(length).expect("digits");
                let length: u64 = text.parse().expect("a number");
                let there = length.min(body.len() as u64);
                let complete = there == length;
                (Body { bytes: there, complete }, complete.then_some(there as usize))
            }
            (None, None) => (Body { bytes: 0, complete: true }, Some(0)),
        };
        let closes = request.version == Some(0) || !values("connection").is_empty();
        let message = Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            closes,
            body: read,
        };
        (message, end)
    }
}

/// A chunked body, and where it ends.
fn read_chunks(body: &[u8]) -> (Body, Option<usize>) {
    use httparse::Status::{Complete, Partial};
    let (mut at, mut bytes) = (0, 0);
    let incomplete = |bytes| (Body { bytes, complete: false }, None);
    loop {
        let rest = &body[at..];
        // An unfinished line may be refused here before the screen has seen its end.
        let Ok(Complete((line, size))) = httparse::parse_chunk_size(rest) else {
            return incomplete(bytes);
        };
        at += line;
        if size == 0 {
            let mut fields = [httparse::EMPTY_HEADER; 256];
            return match httparse::parse_headers(&body[at..], &mut fields) {
                Ok(Complete((trailers, _))) => {
                    (Body { bytes, complete: true }, Some(at + trailers))
                }
                Ok(Partial) | Err(_) => incomplete(bytes),
            };
        }
        let there = size.min((body.len() - at) as u64);
        bytes += there;
        at += there as usize;
        match &body[at..] {
            [b'\r', b'\n', ..] => at += 2,
            rest => {
                let is_cut = there < size || rest.len() < 2;
                assert!(is_cut, "the screen let {rest:?} pass as the end of a chunk");
                return incomplete(bytes);
            }
        }
    }
}

/// What hyper makes of an input behind the screen.
struct Served {
    requests: Vec<Seen>,
    /// How it ended; `None` while it waits for more.
    ended: Option<hyper::Result<()>>,
}

struct Seen {
    method: String,
    target: String,
    body: Body,
}

/// When the service answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    AfterBody,
    AtOnce,
}

/// Passes on what comes before a violation, and fails where a body is broken.
struct Screened {
    screen: Screen,
    broken: bool,
}

impl Reading for Screened {
    fn admit(&mut self, bytes: &[u8]) -> usize {
        let Err(violation) = self.screen.admit(bytes) else { return bytes.len() };
        self.broken = violation.in_body;
        violation.admitted
    }

    fn poll_end(&self) -> Poll<io::Result<()>> {
        if self.broken {
            Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
        } else {
            Poll::Pending
        }
    }
}

impl Served {
    fn by_hyper(bytes: &[u8], piece: usize, limits: HeadLimits, answer: Answer) -> Self {
        let requests = Rc::new(RefCell::new(Vec::new()));
        let screened = Screened { screen: Screen::new(limits), broken: false };
        let service = service_fn({
            let requests = requests.clone();
            move |request| Box::pin(serve(request, requests.clone(), answer))
        });
        let ended = {
            let mut builder = http1::Builder::new();
            builder.half_close(false).max_buf_size(limits.head_bytes_max).header_read_timeout(None);
            let io = TokioIo::new(Wire::new(bytes, piece, screened));
            let mut connection = builder.serve_connection(io, service);
            run(poll_fn(|cx| connection.poll_without_shutdown(cx)))
        };
        Self { requests: requests.take(), ended }
    }

    /// The requests are the messages, from the first on; a missing one has a reason.
    fn check_requests(&self, messages: &[Message]) {
        for (seen, message) in self.requests.iter().zip(messages) {
            assert_eq!(seen.method, message.method);
            // The http crate leaves out a fragment.
            let target = message.target.split('#').next().unwrap_or_default();
            assert!(!target.starts_with('/') || seen.target == target, "{}", seen.target);
        }
        let served = self.requests.len();
        assert!(served <= messages.len(), "hyper has served what the screen has not seen");
        if served == messages.len() {
            return;
        }
        match &self.ended {
            None => panic!("hyper waits before {:?}", messages[served]),
            // hyper is stricter: the connection ends there.
            Some(Err(_)) => {}
            Some(Ok(())) => {
                let last = served.checked_sub(1).map(|last| &messages[last]);
                let closes = last.is_some_and(|last| last.closes || last.body.bytes > 0);
                assert!(closes, "hyper ended after {last:?}");
            }
        }
    }

    fn check_bodies(&self, messages: &[Message]) {
        for (seen, message) in self.requests.iter().zip(messages) {
            assert_eq!(seen.body.complete, message.body.complete, "{message:?}");
            // An error may come before the bytes that precede it.
            let same = seen.body.bytes == message.body.bytes;
            assert!(same || !message.body.complete && seen.body.bytes < message.body.bytes);
        }
    }
}

async fn serve(
    request: Request<Incoming>,
    requests: Rc<RefCell<Vec<Seen>>>,
    answer: Answer,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let at = requests.borrow().len();
    requests.borrow_mut().push(Seen {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        body: Body { bytes: 0, complete: false },
    });
    if answer == Answer::AfterBody {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let seen = &mut requests.borrow_mut()[at].body;
            match frame {
                Some(Ok(frame)) => seen.bytes += frame.data_ref().map_or(0, Bytes::len) as u64,
                Some(Err(_)) => break,
                None => {
                    seen.complete = true;
                    break;
                }
            }
        }
    }
    let mut response = Response::new(Empty::new());
    if head.method == Method::CONNECT {
        // As ours is refused; accepted it would end HTTP on this connection.
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok";

    /// Whether a screen that has seen `followed` and hyper that has served `served` agree.
    fn agree(followed: &str, served: &str) -> bool {
        let limits = HeadLimits::from(&Limits::default());
        let messages = follow(followed.as_bytes(), limits);
        let served = Served::by_hyper(served.as_bytes(), 7, limits, Answer::AfterBody);
        let check = || {
            served.check_bodies(&messages);
            served.check_requests(&messages);
        };
        catch_unwind(AssertUnwindSafe(check)).is_ok()
    }

    #[test]
    fn a_difference_between_screen_and_hyper_is_noticed() {
        let (two, shorter) = (format!("{POST}{POST}"), POST.replace(": 2", ": 1"));
        assert!(agree(POST, POST) && agree(&two, &two));
        assert!(!agree(POST, &two), "one request more");
        assert!(!agree(&two, POST), "one request less");
        assert!(!agree(POST, &shorter), "another length");
        assert!(!agree(POST, &POST.replace("/ ", "/x ")), "another target");
    }

    #[test]
    fn a_difference_between_screen_and_httparse_is_noticed() {
        let both = "POST / HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(catch_unwind(|| Message::read(both.as_bytes(), b"ok")).is_err());
    }
}
