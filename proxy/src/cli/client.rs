//! Asks a running node for one page over its socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
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
    #[error("the node's answer is not what this command expects; is it another version?")]
    Shape(#[source] serde_json::Error),
}

/// The page as it came and as what it means.
pub(super) fn page<T: DeserializeOwned>(
    socket: &Path,
    page: &'static str,
) -> Result<(String, T), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime.map_err(ClientError::Runtime);
    let asked = asked.and_then(|runtime| runtime.block_on(ask(socket, page)));
    asked.map_err(|error| Failure { exit: error.exit(), message: chain(&error) })
}

/// The same for those who have a runtime.
pub(super) async fn ask<T: DeserializeOwned>(
    socket: &Path,
    page: &'static str,
) -> Result<(String, T), ClientError> {
    let silent = |_| ClientError::Silent(socket.to_owned());
    let bytes = timeout(TIMEOUT, exchange(socket, page)).await.map_err(silent)??;
    let value = serde_json::from_slice(&bytes).map_err(ClientError::Shape)?;
    Ok((String::from_utf8_lossy(&bytes).into_owned() + "\n", value))
}

async fn exchange(socket: &Path, page: &'static str) -> Result<Bytes, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| connect(socket, error))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(ClientError::Broken)?;
    let request = Request::get(page)
        .header(header::HOST, "ferrule")
        .body(Empty::<Bytes>::new())
        .expect("our own page names are valid targets");
    let answer = async {
        let response = sender.send_request(request).await.map_err(ClientError::Broken)?;
        if response.status() != StatusCode::OK {
            return Err(ClientError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(body.map_err(ClientError::Body)?.to_bytes())
    };
    // The answer tells how the connection ended, too.
    let (answer, _) = tokio::join!(answer, connection);
    answer
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
