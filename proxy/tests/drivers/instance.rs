//! The app's instance: a small HTTP/1 server whose answer is named by the path.
//!
//! It notes what happens to it, so that a test can wait for that.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::harness::PATIENCE;

pub(crate) struct Instance {
    port: u16,
    log: Arc<Log>,
    _tasks: TaskTracker,
}

/// What happened, in order.
#[derive(Default)]
struct Log {
    notes: Mutex<Vec<String>>,
    noted: Notify,
    gate: Notify,
}

struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    log: Arc<Log>,
    _token: TaskTrackerToken,
}

struct Request {
    method: String,
    target: String,
    fields: BTreeMap<String, String>,
}

impl Instance {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let tasks = TaskTracker::new();
        let log = Arc::<Log>::default();
        let (own, accepting) = (log.clone(), tasks.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let token = accepting.token();
                accepting.spawn(Connection::new(stream, own.clone(), token).serve());
            }
        });
        Self { port, log, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Waits until `note` was noted; says how often.
    pub(crate) async fn noted(&self, note: &str) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let noted = self.log.noted.notified();
            let count = self.count(note);
            if count > 0 {
                return count;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            timeout(left, noted).await.unwrap_or_else(|_| {
                panic!("not noted: {note}; but: {:?}", self.notes());
            });
        }
    }

    pub(crate) async fn noted_times(&self, note: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(note) < times {
            assert!(Instant::now() < deadline, "{note}: {} of {times}", self.count(note));
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn count(&self, note: &str) -> usize {
        self.log.notes.lock().unwrap().iter().filter(|noted| *noted == note).count()
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.log.notes.lock().unwrap().clone()
    }

    /// Lets whoever waits at the gate go on.
    pub(crate) fn open_gate(&self) {
        self.log.gate.notify_one();
    }
}

impl Log {
    fn note(&self, note: impl Into<String>) {
        self.notes.lock().unwrap().push(note.into());
        self.noted.notify_waiters();
    }
}

impl Connection {
    fn new(stream: TcpStream, log: Arc<Log>, token: TaskTrackerToken) -> Self {
        stream.set_nodelay(true).unwrap();
        let (read, write) = stream.into_split();
        Self { read: BufReader::new(read), write, log, _token: token }
    }

    async fn serve(mut self) {
        while let Some(request) = self.request().await {
            let breaks = request.target == "/ws-break";
            if self.answer(request).await.is_none() {
                if breaks {
                    // A reset and no FIN before it.
                    self.write.as_ref().set_zero_linger().unwrap();
                    self.write.forget();
                }
                break;
            }
        }
    }

    /// A head, or `None` at the end of the connection.
    async fn request(&mut self) -> Option<Request> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.read.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap().split(' ');
        let method = words.next().unwrap().to_owned();
        let target = words.next().unwrap().to_owned();
        let fields = lines.filter_map(|line| line.split_once(": "));
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Some(Request { method, target, fields })
    }

    /// A whole request body; `None` when it ended early.
    async fn body(&mut self, request: &Request) -> Option<Vec<u8>> {
        if request.fields.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            return self.chunks().await;
        }
        let length = request.fields.get("content-length").map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        self.read.read_exact(&mut body).await.ok()?;
        Some(body)
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line().await?, 16).unwrap();
            if size == 0 {
                break;
            }
            let mut chunk = vec![0; size + 2];
            self.read.read_exact(&mut chunk).await.ok()?;
            body.extend_from_slice(&chunk[..size]);
        }
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(body);
            }
            self.log.note(format!("trailer {line}"));
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(self.read.read_u8().await.ok()?);
        }
        line.truncate(line.len() - 2);
        Some(String::from_utf8(line).unwrap())
    }

    /// `None`: the connection is over.
    async fn answer(&mut self, request: Request) -> Option<()> {
        self.log.note(format!("{} {}", request.method, request.target));
        let path = request.target.clone();
        let mut parts = path[1..].split('/');
        let (what, number) = (parts.next().unwrap(), parts.next().and_then(|n| n.parse().ok()));
        let number: usize = number.unwrap_or(0);
        if matches!(what, "size" | "chunked" | "slow" | "broken" | "until-close") {
            self.body(&request).await?;
        }
        match what {
            "echo" => self.echo(&request).await,
            "fields" => {
                let mut body = String::new();
                for (name, value) in &request.fields {
                    body.push_str(&format!("{name}: {value}\n"));
                }
                self.whole(&request, body.as_bytes()).await
            }
            "size" => self.whole(&request, &pattern(number)).await,
            "chunked" => self.chunked(&request, number).await,
            "slow" => {
                sleep(Duration::from_millis(number as u64)).await;
                self.whole(&request, b"slow").await
            }
            "gate" => {
                self.log.gate.notified().await;
                self.whole(&request, b"gate").await
            }
            "status" => {
                self.say(&format!("HTTP/1.1 {number} x\r\nx-status: {number}\r\n\r\n")).await
            }
            "not-modified" => {
                self.say("HTTP/1.1 304 x\r\ncontent-length: 1234\r\netag: \"a\"\r\n\r\n").await
            }
            "hints" => {
                self.say("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await?;
                self.whole(&request, b"hints").await
            }
            "early" => {
                // The answer is complete; the request's body is never read.
                self.whole(&request, b"early").await?;
                self.until_closed(&path).await
            }
            "hang" => self.until_closed(&path).await,
            "stream" => {
                self.say("HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
                    .await?;
                self.until_closed(&path).await
            }
            "broken" => {
                self.say("HTTP/1.1 200 x\r\ncontent-length: 1000\r\n\r\nten bytes.").await?;
                None
            }
            "broken-chunk" => {
                let head = "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
                self.say(head).await?;
                self.log.gate.notified().await;
                None
            }
            "until-close" => {
                self.say("HTTP/1.1 200 x\r\nconnection: close\r\n\r\nuntil close").await?;
                None
            }
            "ws-break" => {
                self.say("HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\npart")
                    .await?;
                self.log.gate.notified().await;
                None
            }
            "ws" => self.websocket(&request, false).await,
            "ws-gate" => self.websocket(&request, true).await,
            "ws-no" => {
                let no = "HTTP/1.1 403 no\r\ncontent-length: 2\r\nx-why: no\r\n\r\nno";
                self.say(no).await
            }
            _ => panic!("no such path: {path}"),
        }
    }

    async fn echo(&mut self, request: &Request) -> Option<()> {
        let Some(body) = self.body(request).await else {
            self.log.note(format!("incomplete {}", request.target));
            return None;
        };
        let mut answer = format!("{} {} ", request.method, request.target).into_bytes();
        answer.extend(body);
        self.whole(request, &answer).await
    }

    async fn whole(&mut self, request: &Request, body: &[u8]) -> Option<()> {
        self.say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len())).await?;
        if request.method != "HEAD" {
            self.write.write_all(body).await.ok()?;
        }
        Some(())
    }

    /// `count` chunks of ten bytes, and a trailer.
    async fn chunked(&mut self, request: &Request, count: usize) -> Option<()> {
        let te = request.fields.get("te").cloned().unwrap_or_default();
        self.log.note(format!("te {te}"));
        let mut text =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n".to_owned();
        for index in 0..count {
            text.push_str(&format!("a\r\nchunk {index:04}\r\n"));
        }
        text.push_str("0\r\nx-sum: 7\r\n\r\n");
        self.say(&text).await
    }

    async fn until_closed(&mut self, path: &str) -> Option<()> {
        let mut scratch = [0; 4096];
        while matches!(self.read.read(&mut scratch).await, Ok(1..)) {}
        self.log.note(format!("closed {path}"));
        None
    }

    /// Says hello behind its 101, echoes, and says goodbye after the client's end.
    async fn websocket(&mut self, request: &Request, gated: bool) -> Option<()> {
        let field = |name| request.fields.get(name).map(String::as_str).unwrap_or_default();
        self.log.note(format!("upgrade {} {}", field("connection"), field("upgrade")));
        let key = field("sec-websocket-key");
        self.log.note(format!("key {key}"));
        if gated {
            // Nothing may come before the 101.
            tokio::select! {
                early = self.read.read_u8() => self.log.note(format!("early {early:?}")),
                () = self.log.gate.notified() => {}
            }
        }
        let accept = accept(key);
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\n\r\nhello"
        );
        self.say(&head).await?;
        let mut scratch = vec![0; 4096];
        loop {
            match self.read.read(&mut scratch).await {
                Ok(0) => break,
                Ok(read) => self.write.write_all(&scratch[..read]).await.ok()?,
                Err(_) => {
                    self.log.note("reset");
                    return None;
                }
            }
        }
        self.log.note("half-closed");
        self.say("bye").await?;
        None
    }

    async fn say(&mut self, text: &str) -> Option<()> {
        self.write.write_all(text.as_bytes()).await.ok()
    }
}

/// Bytes whose order shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let block: Vec<u8> = (0..251).collect();
    let mut bytes = block.repeat(length / block.len() + 1);
    bytes.truncate(length);
    bytes
}

/// RFC 6455, section 1.3.
fn accept(key: &str) -> String {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    use base64::Engine as _;
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD
        .encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}
