//! Asks a running node for one page over its socket, or tells it one thing to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Exit, Failure, chain};

/// Longest wait for a whole answer; a node that has a million instances needs a while.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an answer: a million instances and then some.
const ANSWER_BYTES_MAX: usize = 512 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("the command's runtime cannot start")]
    Runtime(#[source] io::Error),
    #[error("no node answers at {}; is it running, and is this its socket?", .0.display())]
    Nobody(PathBuf),
    #[error("you may not connect to {}; ask as the user that runs the node", .0.display())]
    Forbidden(PathBuf),
    #[error("cannot connect to {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the node at {} did not answer within {} s", .0.display(), TIMEOUT.as_secs())]
    Silent(PathBuf),
    #[error("the node broke off its answer")]
    Broken(#[source] hyper::Error),
    #[error("the node's answer cannot be read to its end")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the node answers {0}; is it another version?")]
    Refused(StatusCode),
    #[error("{sentence}")]
    Declined { status: StatusCode, sentence: String },
    #[error("the node's answer is not what this command expects; is it another version?")]
    Shape(#[source] serde_json::Error),
}

/// Longest wait for the next line of an answer that grows; the node's own bounds are shorter.
const LINE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Bytes of a line.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// One question to a node.
struct Question<'a> {
    method: Method,
    path: &'a str,
    json: bool,
    body: Bytes,
    /// Whether a refusal says why, in a sentence for whoever asked.
    is_command: bool,
}

/// The page as it came and as what it means.
pub(super) fn page<T: DeserializeOwned>(
    socket: &Path,
    page: &'static str,
) -> Result<(String, T), Failure> {
    block_on(ask(socket, page)).map_err(failure)
}

/// The same for those who can do without an answer.
pub(super) fn try_page<T: DeserializeOwned>(
    socket: &Path,
    page: &'static str,
) -> Result<(String, T), ClientError> {
    block_on(ask(socket, page))
}

/// Gives a command; its answer as it came and as what it means.
pub(super) fn command<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<(String, T), Failure> {
    let asked = block_on(async {
        let body = serde_json::to_vec(body).map_err(ClientError::Shape)?.into();
        let question = Question { method, path, json: true, body, is_command: true };
        understood(&exchange(socket, question).await?)
    });
    asked.map_err(failure)
}

/// Gives a command whose answer grows; each line as it came and as what it means.
pub(super) fn follow<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
    mut line: impl FnMut(&str, T),
) -> Result<(), Failure> {
    let followed = block_on(async {
        let body = serde_json::to_vec(body).map_err(ClientError::Shape)?.into();
        let question = Question { method: Method::POST, path, json: true, body, is_command: true };
        let mut buffer = Vec::new();
        put(socket, question, async |response| {
            let mut body = response.into_body();
            loop {
                let frame = timeout(LINE_TIMEOUT, body.frame()).await;
                let frame = frame.map_err(|_| ClientError::Silent(socket.to_owned()))?;
                let Some(frame) = frame else { return Ok(()) };
                let Ok(data) = frame.map_err(ClientError::Broken)?.into_data() else { continue };
                buffer.extend_from_slice(&data);
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let text: Vec<u8> = buffer.drain(..=end).collect();
                    let value = serde_json::from_slice(&text).map_err(ClientError::Shape)?;
                    line(&String::from_utf8_lossy(&text), value);
                }
                if buffer.len() > LINE_BYTES_MAX {
                    return Err(ClientError::Body("a line is too long".into()));
                }
            }
        })
        .await
    });
    followed.map_err(failure)
}

/// An answer for people, or as JSON, which is printed as it comes.
pub(super) fn text(socket: &Path, path: &str, json: bool) -> Result<String, Failure> {
    let asked = block_on(async {
        let (method, body) = (Method::GET, Bytes::new());
        let question = Question { method, path, json, body, is_command: true };
        let mut text = String::from_utf8_lossy(&exchange(socket, question).await?).into_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    });
    asked.map_err(failure)
}

fn failure(error: ClientError) -> Failure {
    Failure { exit: error.exit(), message: chain(&error) }
}

fn block_on<T>(asked: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ClientError::Runtime)?.block_on(asked)
}

/// The same for those who have a runtime.
pub(super) async fn ask<T: DeserializeOwned>(
    socket: &Path,
    page: &'static str,
) -> Result<(String, T), ClientError> {
    let (method, body) = (Method::GET, Bytes::new());
    let question = Question { method, path: page, json: true, body, is_command: false };
    understood(&exchange(socket, question).await?)
}

fn understood<T: DeserializeOwned>(bytes: &[u8]) -> Result<(String, T), ClientError> {
    let value = serde_json::from_slice(bytes).map_err(ClientError::Shape)?;
    Ok((String::from_utf8_lossy(bytes).into_owned() + "\n", value))
}

async fn exchange(socket: &Path, question: Question<'_>) -> Result<Bytes, ClientError> {
    let silent = |_| ClientError::Silent(socket.to_owned());
    let whole = async |response: Response<Incoming>| {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(body.map_err(ClientError::Body)?.to_bytes())
    };
    timeout(TIMEOUT, put(socket, question, whole)).await.map_err(silent)?
}

/// Asks, and has `read` take the answer unless it is a refusal.
async fn put<T>(
    socket: &Path,
    question: Question<'_>,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let Question { method, path, json, body, is_command } = question;
    let stream = UnixStream::connect(socket).await.map_err(|error| connect(socket, error))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(ClientError::Broken)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "ferrule")
        .header(header::ACCEPT, if json { "application/json" } else { "text/plain" })
        .body(Full::new(body))
        .expect("our own page names are valid targets");
    let answer = async {
        let response = sender.send_request(request).await.map_err(ClientError::Broken)?;
        let status = response.status();
        if status != StatusCode::OK && !is_command {
            return Err(ClientError::Refused(status));
        }
        if status == StatusCode::OK {
            return read(response).await;
        }
        let body = Limited::new(response.into_body(), LINE_BYTES_MAX).collect().await;
        Err(declined(status, &body.map_err(ClientError::Body)?.to_bytes()))
    };
    // The answer tells how the connection ended, too.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

/// The first line says why; what may follow is a list of what there is.
fn declined(status: StatusCode, body: &[u8]) -> ClientError {
    let text = String::from_utf8_lossy(body);
    match text.lines().next() {
        Some(sentence) if !sentence.is_empty() && status != StatusCode::METHOD_NOT_ALLOWED => {
            ClientError::Declined { status, sentence: sentence.to_owned() }
        }
        _ => ClientError::Refused(status),
    }
}

fn connect(socket: &Path, source: io::Error) -> ClientError {
    let path = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Nobody(path),
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(path),
        _ => ClientError::Connect { path, source },
    }
}

// === impl ClientError ===

impl ClientError {
    fn exit(&self) -> Exit {
        match self {
            Self::Nobody(_)
            | Self::Silent(_)
            | Self::Connect { .. }
            | Self::Broken(_)
            | Self::Body(_) => Exit::Unavailable,
            Self::Forbidden(_) => Exit::NoPermission,
            Self::Declined { status, .. } => match *status {
                StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Exit::Usage,
                StatusCode::FORBIDDEN => Exit::NoPermission,
                StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => {
                    Exit::Unavailable
                }
                _ => Exit::Internal,
            },
            Self::Runtime(_) | Self::Refused(_) | Self::Shape(_) => Exit::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use serde_json::{Value, json};

    use super::*;

    /// Asks somebody who answers `answer` whatever the question is.
    fn asked(answer: &'static str) -> Result<(String, Value), Failure> {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).expect("the folder is ours");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut question = [0; 1024];
                assert_ne!(stream.read(&mut question).expect("a question"), 0);
                stream.write_all(answer.as_bytes()).expect("the client waits");
            });
            page(&socket, "/status")
        })
    }

    fn failed(answer: &'static str) -> (Exit, String) {
        let Failure { exit, message } = asked(answer).expect_err("that is no answer");
        (exit, message)
    }

    #[test]
    fn an_answer_is_given_as_it_came_and_as_a_value() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{ \"pid\": 1 }";
        let (text, value) = asked(answer).expect("that is an answer");
        assert_eq!((text.as_str(), value), ("{ \"pid\": 1 }\n", json!({ "pid": 1 })));
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        let (exit, message) = failed("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(exit, Exit::Internal);
        assert_eq!(message, "the node answers 404 Not Found; is it another version?");
        let (exit, message) = failed("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\noops");
        assert_eq!(exit, Exit::Internal);
        assert!(message.contains("is not what this command expects"), "{message}");
        assert_eq!(failed("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\noops").0, Exit::Unavailable);
        assert_eq!(failed("").0, Exit::Unavailable);
    }

    #[test]
    fn a_command_that_is_declined_says_why_and_has_an_exit_code() {
        let check = |status: u16, body: &str, exit: Exit, message: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            let error = declined(status, body.as_bytes());
            assert_eq!((error.exit(), error.to_string().as_str()), (exit, message));
        };
        check(400, "ttl must be a number\n", Exit::Usage, "ttl must be a number");
        check(403, "not here\n", Exit::NoPermission, "not here");
        check(404, "there is no rule 7\n", Exit::Unavailable, "there is no rule 7");
        check(409, "full\n", Exit::Unavailable, "full");
        check(413, "too long\n", Exit::Usage, "too long");
        check(500, "a fault\nof ours\n", Exit::Internal, "a fault");
        let other = "the node answers 405 Method Not Allowed; is it another version?";
        check(405, "these pages can only be read\n", Exit::Internal, other);
        check(
            500,
            "",
            Exit::Internal,
            "the node answers 500 Internal Server Error; is it another version?",
        );
    }

    #[test]
    fn nobody_answers_at_a_socket_that_is_missing_or_stale() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("admin.sock");
        let expected = format!(
            "no node answers at {}; is it running, and is this its socket?",
            socket.display()
        );
        let check = || {
            let Failure { exit, message } =
                page::<Value>(&socket, "/status").expect_err("nobody is there");
            assert_eq!((exit, &message), (Exit::Unavailable, &expected));
        };
        check();
        drop(UnixListener::bind(&socket).expect("the folder is ours"));
        check();
    }

    #[test]
    fn a_forbidden_socket_has_an_exit_code_of_its_own() {
        let error = connect(Path::new("/run/x"), io::ErrorKind::PermissionDenied.into());
        assert_eq!(error.exit(), Exit::NoPermission);
    }
}
