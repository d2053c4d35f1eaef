//! What the node can be told to do: commands, on the socket only.
//!
//! A command is a row in a table: method, path, what it is, and the function that reads its body,
//! calls [`Control`], and says what came of it. A new one is a method of the trait and a row in
//! `COMMANDS`, with its shapes in a file of its own as `trace.rs` has them. The last segment of a
//! path may be `{}`, which takes anything.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use telemetry::error::chain;
use telemetry::heapwatch::SnapshotError;
use telemetry::record::model::TraceId;
use telemetry::verbosity::{Issued, Listing, NewRule, NewToken, RuleError, TokenError};

use super::drain::{Answer, Stopping};
use super::upgrade::{self, Lines};
use super::{drain, memory, page, trace};

/// What the commands act on. Every method is called on the control thread and must not block it.
pub trait Control: Send + Sync + 'static {
    /// Makes a verbosity rule and says its id.
    ///
    /// # Errors
    ///
    /// When it is not bounded as it must be, or there are too many.
    fn trace_on(&self, rule: NewRule, caller: &Caller) -> Result<u64, RuleError>;

    /// Removes the verbosity rule `id`, or all; says how many that were.
    fn trace_off(&self, id: Option<u64>, caller: &Caller) -> usize;

    /// Verbosity rules, and what became of the last ones.
    fn trace_list(&self) -> Listing;

    /// Signs a verbosity token.
    ///
    /// # Errors
    ///
    /// When it asks for more than a token may say.
    fn trace_token(&self, token: &NewToken, caller: &Caller) -> Result<Issued, TokenError>;

    /// Starts to replace this process; what comes of it is in the lines.
    ///
    /// # Errors
    ///
    /// A sentence, when it cannot be done now.
    fn upgrade(&self, ask: &upgrade::Ask, caller: &Caller) -> Result<Lines, String>;

    /// The record of a request; `None` when the node does not have it (any more).
    fn trace_record(&self, id: TraceId, form: Form) -> Option<String>;

    /// Has new work sent elsewhere, until that is taken back.
    fn drain(&self, caller: &Caller) -> Answer;

    /// Takes that back.
    ///
    /// # Errors
    ///
    /// When the node ends.
    fn undrain(&self, caller: &Caller) -> Result<Answer, Stopping>;

    /// Writes down what is alive on the heap; says where.
    ///
    /// # Errors
    ///
    /// When the disk does not take it.
    fn memory_snapshot(&self) -> Result<PathBuf, SnapshotError>;
}

/// Who gave a command: whoever is at the other end of the socket, by the kernel's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub pid: Option<i32>,
}

/// How an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    Json,
}

/// One command as it came.
pub(super) struct Call {
    pub(super) caller: Caller,
    pub(super) form: Form,
    /// What stands where the path has `{}`.
    last: String,
    body: Bytes,
}

/// What a command has to say.
pub(super) enum Reply {
    Json(serde_json::Value),
    /// In the form that was asked for.
    Ready(Form, String),
    /// In JSON, one after the other as things happen.
    Lines(Lines),
}

/// Why a command did nothing.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) sentence: String,
}

/// A command may take its time; the connection's deadline is its own.
pub(super) type Running = Pin<Box<dyn Future<Output = Result<Reply, Refusal>> + Send>>;

struct Command {
    method: Method,
    path: &'static str,
    what: &'static str,
    run: fn(Arc<dyn Control>, Call) -> Running,
}

static COMMANDS: [Command; 10] = [
    Command {
        method: Method::POST,
        path: "/drain",
        what: "get no new work until undrained",
        run: |control, call| at_once(drain::drain(&*control, &call)),
    },
    Command {
        method: Method::POST,
        path: "/undrain",
        what: "get work again",
        run: |control, call| at_once(drain::undrain(&*control, &call)),
    },
    Command {
        method: Method::POST,
        path: "/trace",
        what: "make a verbosity rule",
        run: |control, call| at_once(trace::on(&*control, &call)),
    },
    Command {
        method: Method::GET,
        path: "/trace",
        what: "list verbosity rules",
        run: |control, _| at_once(trace::list(&*control)),
    },
    Command {
        method: Method::DELETE,
        path: "/trace",
        what: "remove every verbosity rule",
        run: |control, call| at_once(trace::all_off(&*control, &call)),
    },
    Command {
        method: Method::POST,
        path: "/trace/token",
        what: "sign a verbosity token",
        run: |control, call| at_once(trace::token(&*control, &call)),
    },
    Command {
        method: Method::GET,
        path: "/trace/{}",
        what: "the record of a request by its trace id",
        run: |control, call| at_once(trace::record(&*control, &call)),
    },
    Command {
        method: Method::DELETE,
        path: "/trace/{}",
        what: "remove a verbosity rule",
        run: |control, call| at_once(trace::off(&*control, &call)),
    },
    Command {
        method: Method::POST,
        path: "/upgrade",
        what: "replace this process by another",
        run: |control, call| at_once(upgrade::begin(&*control, &call)),
    },
    Command {
        method: Method::POST,
        path: "/memory/snapshot",
        what: "write down what is alive on the heap",
        run: |control, _| at_once(memory::snapshot(&*control)),
    },
];

/// Bytes of a command's body.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Whether a path is a command's, whatever the method.
pub(super) fn knows(path: &str) -> bool {
    COMMANDS.iter().any(|command| command.last_of(path).is_some())
}

/// Runs the command that was asked for; gives the request back when it is none.
pub(super) async fn respond<B>(
    request: Request<B>,
    control: Arc<dyn Control>,
    caller: Caller,
) -> Result<Response<super::Body>, Request<B>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path();
    let mut methods = Vec::new();
    // An exact path is found before one that takes anything, which stands below it.
    let found = COMMANDS.iter().find_map(|command| {
        let last = command.last_of(path)?;
        methods.push(command.method.as_str());
        (command.method == *request.method()).then(|| (command, last.to_owned()))
    });
    let Some((command, last)) = found else {
        let is_page = matches!(*request.method(), Method::GET | Method::HEAD);
        return match (methods.is_empty(), is_page) {
            (true, true) => Err(request),
            (true, false) => Ok(refuse(&Refusal::not_found(listing())).map(Either::Left)),
            (false, _) => Ok(wrong_method(&methods).map(Either::Left)),
        };
    };
    let form = form(&request);
    let body = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok(refuse(&Refusal::of_body(&*error)).map(Either::Left)),
    };
    let call = Call { caller, form, last, body };
    let whole = match (command.run)(control, call).await {
        Ok(Reply::Lines(lines)) => return Ok(page::lines(lines).map(Either::Right)),
        Ok(Reply::Json(value)) => page::json(&value),
        Ok(Reply::Ready(Form::Json, text)) => page::answer(StatusCode::OK, page::JSON, text),
        Ok(Reply::Ready(Form::Text, text)) => page::answer(StatusCode::OK, page::TEXT, text),
        Err(refusal) => refuse(&refusal),
    };
    Ok(whole.map(Either::Left))
}

/// What whoever asks the TCP address for a command is told.
pub(super) fn only_on_the_socket() -> Response<Full<Bytes>> {
    let sentence = "this is answered on the admin socket only; ask there, as `ferrule` does\n";
    page::answer(StatusCode::FORBIDDEN, page::TEXT, sentence)
}

fn form<B>(request: &Request<B>) -> Form {
    let accept = request.headers().get(header::ACCEPT).map(HeaderValue::as_bytes);
    if accept.is_some_and(|accept| accept.starts_with(b"application/json")) {
        Form::Json
    } else {
        Form::Text
    }
}

fn wrong_method(methods: &[&str]) -> Response<Full<Bytes>> {
    let methods = methods.join(", ");
    let sentence = format!("this command is asked for by {methods}\n");
    let mut response = page::answer(StatusCode::METHOD_NOT_ALLOWED, page::TEXT, sentence);
    let allow = HeaderValue::from_str(&methods).expect("methods are visible ASCII");
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

fn refuse(refusal: &Refusal) -> Response<Full<Bytes>> {
    let Refusal { status, sentence } = refusal;
    page::answer(*status, page::TEXT, format!("{}\n", sentence.trim_end()))
}

fn listing() -> String {
    let rows = COMMANDS.iter().map(|Command { method, path, what, .. }| {
        let command = format!("{method} {path}");
        format!("{command:<20} {what}\n")
    });
    std::iter::once("no such command; there are:\n".to_owned()).chain(rows).collect()
}

fn at_once(result: Result<Reply, Refusal>) -> Running {
    Box::pin(std::future::ready(result))
}

// === impl Command ===

impl Command {
    /// What stands where the path has `{}`, if it is this command's; nothing where it has none.
    fn last_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.path.strip_suffix("{}") {
            Some(start) => {
                path.strip_prefix(start).filter(|last| !last.is_empty() && !last.contains('/'))
            }
            None => (path == self.path).then_some(""),
        }
    }
}

// === impl Call ===

impl Call {
    /// The body as JSON; none at all is an empty object.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let body = if self.body.is_empty() { b"{}" } else { &self.body[..] };
        serde_json::from_slice(body).map_err(|error| {
            Refusal::bad(format!("the body is not what this command takes: {error}"))
        })
    }

    /// What stands where the path has `{}`.
    pub(super) fn last(&self) -> &str {
        &self.last
    }
}

// === impl Reply ===

impl Reply {
    pub(super) fn json(value: impl Serialize) -> Result<Self, Refusal> {
        serde_json::to_value(value).map(Self::Json).map_err(|error| {
            tracing::error!(%error, "the answer to a command cannot be written as JSON");
            let sentence = "the answer cannot be written as JSON".to_owned();
            Refusal { status: StatusCode::INTERNAL_SERVER_ERROR, sentence }
        })
    }
}

// === impl Refusal ===

impl Refusal {
    /// What was asked makes no sense.
    pub(super) fn bad(sentence: impl fmt::Display) -> Self {
        Self { status: StatusCode::BAD_REQUEST, sentence: sentence.to_string() }
    }

    /// What was meant is not there.
    pub(super) fn not_found(sentence: impl fmt::Display) -> Self {
        Self { status: StatusCode::NOT_FOUND, sentence: sentence.to_string() }
    }

    /// It makes sense, and cannot be done as things are.
    pub(super) fn conflict(sentence: impl fmt::Display) -> Self {
        Self { status: StatusCode::CONFLICT, sentence: sentence.to_string() }
    }

    /// It makes sense, and something that it needs is not to be had.
    pub(super) fn unavailable(error: &(dyn std::error::Error + 'static)) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, sentence: chain(error) }
    }

    fn of_body(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Self {
        if error.is::<LengthLimitError>() {
            let sentence = format!("a command has at most {BODY_BYTES_MAX} bytes");
            return Self { status: StatusCode::PAYLOAD_TOO_LARGE, sentence };
        }
        Self::bad(format!("the body cannot be read: {error}"))
    }
}

// === impl Caller ===

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, pid } = self;
        write!(f, "uid {uid}")?;
        pid.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
    }
}
