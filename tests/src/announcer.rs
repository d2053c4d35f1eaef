//! `ferrule announce` as a process, and a node that is as well or ill as a test wants.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::certs::Certs;
use crate::edge::binary;
use crate::port::free_address;
use crate::process::{Outcome, Process, run};
use crate::wait;

/// A running announcer. Dropping it kills it.
pub struct Announcer {
    name: String,
    words: Vec<String>,
    config: PathBuf,
    process: Process,
}

/// A node's admin socket and one port of its clients, with nothing behind them.
pub struct FakeNode {
    socket: PathBuf,
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// What `/status` says; nobody listens on the socket while there is nothing.
    status: Option<Value>,
    /// What a client's request is answered with; it is not, while there is nothing.
    answer: Option<u16>,
    stopping: bool,
}

// === impl Announcer ===

impl Announcer {
    /// Starts one for the node of this configuration, through the command `wrapper`. Its socket is
    /// `announce.sock` beside the configuration.
    pub fn start(name: &str, wrapper: &[String], config: &Path) -> Self {
        let mut words = wrapper.to_vec();
        words.extend([binary().display().to_string(), "announce".to_owned()]);
        words.extend(["--config".to_owned(), config.display().to_string()]);
        let process = Process::start(name, Command::new(&words[0]).args(&words[1..]));
        Self { name: name.to_owned(), words, config: config.to_owned(), process }
    }

    /// What it says of itself, once it says something.
    #[track_caller]
    pub fn status(&self) -> Value {
        let mut said = Value::Null;
        wait::until(&format!("{} says how it is", self.name), || {
            said = self.said();
            said["totals"]["looks"].as_u64().is_some_and(|looks| looks > 0)
        });
        said
    }

    /// The process of the node that it saw last, if it says anything.
    pub fn node_pid(&self) -> Option<u32> {
        u32::try_from(self.said()["node"]["pid"].as_u64()?).ok()
    }

    /// Not by a command, which takes longer than a test has between two looks.
    fn said(&self) -> Value {
        let answer = UnixStream::connect(self.config.with_file_name("announce.sock"));
        let answer = answer.and_then(io::read_to_string).unwrap_or_default();
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    /// Runs `ferrule announce status <arguments>` about it.
    pub fn command(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(binary());
        run(command.args(["announce", "status", "--config"]).arg(&self.config).args(arguments))
    }

    /// Waits until this is in force.
    #[track_caller]
    pub fn comes_to(&self, state: &str) -> Duration {
        let what = format!("{} comes to {state}", self.name);
        wait::within(wait::PATIENCE, &what, || {
            let status = self.status();
            status["state"] == state && status["speaker"]["in_force"] == state
        })
    }

    /// Waits for so many more looks at the node.
    #[track_caller]
    pub fn looks(&self, count: u64) {
        let looks = || self.status()["totals"]["looks"].as_u64().expect("a number");
        let before = looks();
        wait::until("it looks again", || looks() >= before + count);
    }

    /// What it logged lately.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(wait::PATIENCE);
    }

    /// Asks it to end, and expects that it does, with success.
    #[track_caller]
    pub fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait(wait::PATIENCE);
        assert_eq!(status.code(), Some(0), "the exit code after SIGTERM ({status})");
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        let mut command = Command::new(&self.words[0]);
        self.process = Process::start(&self.name, command.args(&self.words[1..]));
    }
}

// === impl FakeNode ===

impl FakeNode {
    /// A node in good health with two peers, whose certificate is for `health.test`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(socket: &Path, certs: &Certs) -> Self {
        let shared = Shared { status: Some(Self::well()), answer: Some(200), stopping: false };
        let shared = Arc::new(Mutex::new(shared));
        let address = free_address(1);
        let listener = TcpListener::bind(address).expect("a free port");
        listener.set_nonblocking(true).expect("a listener can be told");
        let pair = certs.leaf(&["health.test"]);
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![pair.der()], pair.key_der())
            .expect("a sound pair");
        let config = Arc::new(config);
        let threads = vec![
            std::thread::spawn({
                let (shared, socket) = (shared.clone(), socket.to_owned());
                move || serve_status(&shared, &socket)
            }),
            std::thread::spawn({
                let shared = shared.clone();
                move || serve_clients(&shared, &listener, &config)
            }),
        ];
        Self { socket: socket.to_owned(), address, shared, threads }
    }

    /// What a node in good health says.
    pub fn well() -> Value {
        let peer =
            |id: &str| json!({ "id": id, "region": "fra", "rtt_ms": 1.0, "reachable": true });
        json!({
            "pid": 4711, "generation": 1, "ready": true, "not_ready_reason": null,
            "draining": false, "inventory_age_seconds": 0.5, "connections": 7,
            "hangs_for_seconds": 0.0, "peers": [peer("b"), peer("c")],
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says this from now on instead of what a healthy node would, key by key.
    pub fn says(&self, difference: Value) {
        let mut status = Self::well();
        for (key, value) in difference.as_object().expect("an object") {
            status[key] = value.clone();
        }
        self.shared.lock().expect("nobody panics with it").status = Some(status);
        wait::until("it listens", || self.socket.exists());
    }

    /// Nobody listens on its socket from now on, as between two processes.
    pub fn refuses(&self) {
        self.shared.lock().expect("nobody panics with it").status = None;
        wait::until("its socket is gone", || !self.socket.exists());
    }

    /// Answers clients with this status from now on, or with none at all.
    pub fn answers(&self, status: Option<u16>) {
        self.shared.lock().expect("nobody panics with it").answer = status;
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        if let Ok(mut shared) = self.shared.lock() {
            shared.stopping = true;
        }
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a fake node panicked");
        }
    }
}

/// Between two looks for a client.
const PAUSE: Duration = Duration::from_millis(2);

/// How long a client may take.
const CLIENT: Duration = Duration::from_secs(2);

fn serve_status(shared: &Mutex<Shared>, socket: &Path) {
    let mut listener: Option<UnixListener> = None;
    loop {
        let status = {
            let shared = shared.lock().expect("nobody panics with it");
            if shared.stopping {
                return drop(std::fs::remove_file(socket));
            }
            shared.status.clone()
        };
        let Some(status) = status else {
            if listener.take().is_some() {
                std::fs::remove_file(socket).expect("the folder is ours");
            }
            std::thread::sleep(PAUSE);
            continue;
        };
        let listener = listener.get_or_insert_with(|| {
            let listener = UnixListener::bind(socket).expect("the folder is ours");
            listener.set_nonblocking(true).expect("a listener can be told");
            listener
        });
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a socket can be told");
                stream.set_read_timeout(Some(CLIENT)).expect("above zero");
                // Whoever asked may be gone.
                drop(answer(stream, 200, &status.to_string()));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn serve_clients(shared: &Mutex<Shared>, listener: &TcpListener, config: &Arc<ServerConfig>) {
    loop {
        let status = {
            let shared = shared.lock().expect("nobody panics with it");
            if shared.stopping {
                return;
            }
            shared.answer
        };
        match listener.accept() {
            Ok((stream, _)) => drop(serve_client(stream, status, config)),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn serve_client(
    stream: TcpStream,
    status: Option<u16>,
    config: &Arc<ServerConfig>,
) -> io::Result<()> {
    let Some(status) = status else { return Ok(()) };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CLIENT))?;
    let session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
    answer(StreamOwned::new(session, stream), status, "")
}

fn answer(mut stream: impl io::Read + io::Write, status: u16, body: &str) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} Some\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )?;
    stream.write_all(body.as_bytes())?;
    stream.flush()
}
