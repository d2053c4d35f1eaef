//! What a node speaks to, on threads of this process: an origin that always answers, and a
//! collector that does or does not.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use anyhow::Result;

/// Answers every request with the same few bytes.
pub(crate) struct Origin(Server);

/// Says that it has taken everything, or nothing at all.
pub(crate) struct Collector(Server);

/// A thread that accepts, and one for each connection, which end when the node closes them.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

const ORIGINAL: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\n\r\nhello\n";

/// An empty message is what a collector sends when it has nothing to complain about.
const TAKEN: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

impl Origin {
    pub(crate) fn start() -> Result<Self> {
        Server::start(Some(ORIGINAL)).map(Self)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }
}

impl Collector {
    pub(crate) fn start(answers: bool) -> Result<Self> {
        Server::start(answers.then_some(TAKEN)).map(Self)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.0.address)
    }
}

impl Server {
    fn start(answer: Option<&'static [u8]>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let acceptor = thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                if stopped.load(SeqCst) {
                    return;
                }
                // Whatever goes wrong with it, the node sees and the client tells.
                thread::spawn(move || drop(serve(connection, answer)));
            }
        });
        Ok(Self { address, stop, acceptor: Some(acceptor) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        drop(TcpStream::connect(self.address)); // so that it looks
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

/// Reads requests, each with a body of known length or none, and gives each `answer`.
fn serve(connection: TcpStream, answer: Option<&[u8]>) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    let mut length: u64 = 0;
    loop {
        line.clear();
        if connection.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let text = line.trim_end().to_ascii_lowercase();
        if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if !text.is_empty() {
            continue;
        }
        let mut body = (&mut connection).take(std::mem::take(&mut length));
        std::io::copy(&mut body, &mut std::io::sink())?;
        if let Some(answer) = answer {
            connection.get_mut().write_all(answer)?;
        }
    }
}
