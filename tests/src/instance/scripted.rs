//! An instance that does with each connection whatever a test's closure says: odd bytes, half
//! answers, resets, silence.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::port::free_address;
use crate::wait::{self, PATIENCE};

/// The listener; stops, with all its connections, when dropped.
pub struct Scripted {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

/// One connection in the hands of the script.
pub struct Conversation {
    stream: TcpStream,
    buffer: Vec<u8>,
    shared: Arc<Shared>,
    /// How many connections came before this one.
    pub index: usize,
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    connections: AtomicUsize,
    closed_by_edge: AtomicUsize,
    /// Every request's bytes: head and, with a content-length, its body.
    requests: Mutex<Vec<String>>,
}

// === impl Scripted ===

impl Scripted {
    /// Listens on a free port and runs `script` in a thread for every connection; an error of the
    /// script only ends its connection.
    pub fn start(
        script: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(free_address(1), script)
    }

    /// As [`Scripted::start`], on this address.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn start_at(
        address: SocketAddr,
        script: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared, &script)
        });
        Self { address, shared, listener: Some(thread) }
    }

    /// Answers every request with these bytes and keeps the connection.
    pub fn answering(response: impl Into<Vec<u8>>) -> Self {
        let response = response.into();
        Self::start(move |connection| {
            loop {
                connection.request()?;
                connection.send(&response)?;
            }
        })
    }

    /// Answers every request with 200 and its own bytes as the body.
    pub fn mirror() -> Self {
        Self::start(|connection| {
            loop {
                let request = connection.request()?;
                connection.ok(&request)?;
            }
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// Connections that the other side closed or reset while the script was reading.
    pub fn closed_by_edge(&self) -> usize {
        self.shared.closed_by_edge.load(SeqCst)
    }

    /// Every request so far, byte for byte.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("no script panics").clone()
    }

    /// Waits for the `count`th request and returns the last.
    #[track_caller]
    pub fn request(&self, count: usize) -> String {
        wait::until("the instance gets the request", || self.requests().len() >= count);
        self.requests().pop().unwrap_or_default()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.shared.stopping.store(true, SeqCst);
        drop(TcpStream::connect(self.address)); // wakes the listener
        if let Some(listener) = self.listener.take() {
            let ended = listener.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a script panicked");
        }
    }
}

fn accept(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    script: &(impl Fn(&mut Conversation) -> io::Result<()> + Sync),
) {
    std::thread::scope(|scope| {
        while let Ok((stream, _)) = listener.accept() {
            if shared.stopping.load(SeqCst) {
                return;
            }
            let index = shared.connections.fetch_add(1, SeqCst);
            // Short, so that a script that reads notices the end of the test.
            stream.set_read_timeout(Some(Duration::from_millis(20))).expect("above zero");
            stream.set_nodelay(true).expect("a TCP socket");
            let shared = shared.clone();
            scope.spawn(move || {
                let mut connection = Conversation { stream, buffer: Vec::new(), shared, index };
                // The edge may close whenever it likes: that only ends this conversation.
                script(&mut connection).unwrap_or_default();
            });
        }
    });
}

// === impl Conversation ===

impl Conversation {
    /// Reads one request: its head and, if it has a `content-length`, its body. A chunked body is
    /// left unread.
    ///
    /// # Errors
    /// When the connection ends, or the test does.
    pub fn request(&mut self) -> io::Result<String> {
        let head = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let body: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        let bytes = self.exactly(head + body)?;
        let request = String::from_utf8_lossy(&bytes).into_owned();
        self.shared.requests.lock().expect("no script panics").push(request.clone());
        Ok(request)
    }

    /// Reads exactly `count` bytes.
    ///
    /// # Errors
    /// When the connection ends before, or the test does.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.more()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads to the end of the other side's half.
    ///
    /// # Errors
    /// When the connection is reset, or the test ends.
    pub fn to_end(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.more() {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.buffer));
                }
                other => other?,
            }
        }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a 200 with this body.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn ok(&mut self, body: &str) -> io::Result<()> {
        let length = body.len();
        self.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"))
    }

    /// Ends this side's half.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Makes the end of this conversation a reset.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn reset(&mut self) -> io::Result<()> {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Says nothing until the other side closes or the test ends; what comes is thrown away.
    ///
    /// # Errors
    /// Always: that is how it ends.
    pub fn hang(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            self.more()?;
        }
    }

    /// The socket, with blocking reads of some seconds, for a script that speaks TLS.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) fn stream(&self) -> io::Result<TcpStream> {
        let stream = self.stream.try_clone()?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok(stream)
    }

    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let start = std::time::Instant::now();
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.shared.closed_by_edge.fetch_add(1, SeqCst);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let ended = self.shared.stopping.load(SeqCst);
                    if ended || start.elapsed() > PATIENCE * 6 {
                        return Err(error);
                    }
                }
                Err(error) => {
                    self.shared.closed_by_edge.fetch_add(1, SeqCst);
                    return Err(error);
                }
            }
        }
    }
}
