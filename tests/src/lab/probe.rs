//! A client that finds out what becomes of a connection.

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How an attempt to connect ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// Everything that was said to the client until the end of the connection.
    Answered(String),
    /// Accepted, then closed without a word.
    Closed,
    /// Nobody listens.
    Refused,
    /// No answer at all.
    Silent,
}

/// Connections that are attempted at a time.
const CONCURRENT: usize = 64;

/// Longest wait for the first byte, or the end, of a connection that was accepted.
const ANSWER: Duration = Duration::from_secs(10);

/// Connects and listens to what is said; gives up on an unanswered SYN after `patience`.
pub fn attempt(destination: SocketAddr, patience: Duration) -> Attempt {
    let mut stream = match TcpStream::connect_timeout(&destination, patience) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Attempt::Silent,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Attempt::Refused,
        Err(error) => panic!("connecting {destination}: {error}"),
    };
    stream.set_read_timeout(Some(ANSWER)).expect("a timeout above zero");
    let mut said = Vec::new();
    // A reset after the last byte says nothing about the bytes.
    let end = stream.read_to_end(&mut said);
    if said.is_empty() {
        let timed_out = end.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        assert!(!timed_out, "{destination} neither answers nor closes");
        return Attempt::Closed;
    }
    Attempt::Answered(String::from_utf8_lossy(&said).into_owned())
}

/// Attempts all destinations, many at a time; the results are in their order.
pub fn attempt_all(destinations: &[SocketAddr], patience: Duration) -> Vec<Attempt> {
    let mut attempts = Vec::with_capacity(destinations.len());
    for some in destinations.chunks(CONCURRENT) {
        std::thread::scope(|scope| {
            let started: Vec<_> = some
                .iter()
                .map(|destination| scope.spawn(move || attempt(*destination, patience)))
                .collect();
            attempts.extend(started.into_iter().map(|attempt| attempt.join().expect("an attempt")));
        });
    }
    attempts
}
