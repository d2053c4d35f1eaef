//! Memory that runs out because clients do not read: what is given up, in which order, by whom.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use h2::client::Builder;
use http::Request;
use tests::app::App;
use tests::cgroup::MemoryCgroup;
use tests::client::{Raw, Tls};
use tests::edge::{self, Edge};
use tests::instance::Echo;
use tests::wait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

const MIB: u64 = 1 << 20;

const LIMIT: u64 = 192 * MIB;

/// What each slow stream can make the node hold: its send buffer.
const HELD: usize = 256 << 10;

/// Some more than that, and not much, for the rest waits in the kernel.
const BODY: usize = HELD + (64 << 10);

const STREAMS: usize = 100;

const LEVELS: [&str; 5] = ["trim", "close", "shed", "refuse", "reset"];

/// Clients of `flood.test` that ask for large bodies, first without room for them, then with, and
/// that read nothing any more from there on.
struct Attack {
    /// They end with the attack.
    _clients: JoinSet<()>,
    swell: watch::Sender<bool>,
}

impl Attack {
    async fn begin(address: SocketAddr, tls: &Tls, connections: usize) -> Self {
        let (swell, swells) = watch::channel(false);
        let mut clients = JoinSet::new();
        let (asked, mut ready) = tokio::sync::mpsc::channel(connections);
        for _ in 0..connections {
            let (tls, swells, asked) = (tls.clone(), swells.clone(), asked.clone());
            clients.spawn(async move {
                // That the node ends it is what some of them are there for.
                drop(Self::client(address, tls, swells, asked).await);
            });
        }
        drop(asked);
        for _ in 0..connections {
            ready.recv().await.expect("a client has asked");
        }
        Self { _clients: clients, swell }
    }

    async fn client(
        address: SocketAddr,
        tls: Tls,
        mut swells: watch::Receiver<bool>,
        asked: tokio::sync::mpsc::Sender<()>,
    ) -> Result<(), h2::Error> {
        let socket = TcpSocket::new_v4().expect("a socket");
        // What is not read should wait in the node, not here.
        socket.set_recv_buffer_size(16 << 10).expect("a socket");
        let stream = socket.connect(address).await.expect("somebody listens");
        let connector = TlsConnector::from(Arc::new(tls.clone().alpn(&["h2"]).config()));
        let stream = connector.connect(tls.name(), stream).await.expect("a handshake");
        let (send, mut connection) = Builder::new()
            .initial_window_size(0)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, Bytes>(stream)
            .await?;
        let mut responses = Vec::new();
        let ask = async {
            for _ in 0..STREAMS {
                let mut send = send.clone().ready().await?;
                let request = Request::get("https://flood.test/").body(()).expect("a request");
                responses.push(send.send_request(request, true)?.0);
            }
            for response in &mut responses {
                std::mem::forget(response.await?); // dropped it would be reset
            }
            Ok::<_, h2::Error>(())
        };
        tokio::select! {
            ended = &mut connection => return ended,
            done = ask => done?,
        }
        asked.send(()).await.expect("the test waits");
        tokio::select! {
            ended = &mut connection => return ended,
            swelled = swells.wait_for(|swell| *swell) => drop(swelled),
        }
        connection.set_initial_window_size(1 << 20)?;
        // Once more, for the SETTINGS to leave, and then never again.
        let flushed = tokio::time::timeout(Duration::from_millis(1), &mut connection).await;
        drop(flushed);
        std::future::pending().await
    }
}

/// An instance that answers with [`BODY`] bytes, out of one buffer.
async fn large_bodies() -> SocketAddr {
    static ZEROS: [u8; BODY] = [0; BODY];
    let address = tests::port::free_address(1);
    let listener = TcpListener::bind(address).await.expect("a free port");
    // They end with the process, as the runtime that they are on.
    static CLIENTS: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);
    CLIENTS.spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            CLIENTS.spawn(async move {
                let mut head = [0; 4096];
                while let Ok(1..) = client.read(&mut head).await {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
                    if client.write_all(head.as_bytes()).await.is_err()
                        || client.write_all(&ZEROS).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Somebody else's client, who asks again and again on one connection.
struct Bystander {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<(), String>>,
}

impl Bystander {
    fn start(address: SocketAddr) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ends, counts) = (stop.clone(), served.clone());
        let thread = std::thread::spawn(move || {
            let mut client = Raw::tcp(address);
            while !ends.load(SeqCst) {
                client.send("GET /bytes/1000 HTTP/1.1\r\nhost: quiet.test\r\n\r\n");
                let response = client.try_response("GET").map_err(|error| format!("{error:?}"))?;
                if response.status != 200 {
                    return Err(response.status.to_string());
                }
                counts.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        Self { stop, served, thread }
    }

    /// Is served this often from now on.
    fn goes_on(&self, times: u64) {
        let before = self.served.load(SeqCst);
        wait::until("the bystander is served", || {
            self.thread.is_finished() || self.served.load(SeqCst) >= before + times
        });
        assert!(!self.thread.is_finished(), "the bystander has failed");
    }

    fn end(self) {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap().expect("all of the bystander's requests succeed");
    }
}

fn node(echo: &Echo, flood: SocketAddr) -> edge::Builder {
    let flood = App::new("flood").instance(flood).limits(100_000, 100_000);
    Edge::builder()
        .apps([flood, App::new("quiet").instance(echo.address())])
        .limit("h2_send_buffer_bytes", HELD as u64)
        .limit("h2_connection_send_buffer_bytes", 8 * (STREAMS * HELD) as u64)
        .timeout("response_write", "2m")
        .timeout("response_body", "2m")
}

/// Where the attack and its instance live, whatever the test waits for.
static BACKGROUND: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
});

/// The levels that the log tells of after these words, in order.
fn told(edge: &Edge, words: &str) -> Vec<String> {
    let log = edge.log();
    let words = format!("{words} level=");
    let lines = log.lines().filter(|line| line.contains(&words));
    let level = |line: &str| line.split("level=\"").nth(1)?.split('"').next().map(str::to_owned);
    lines.filter_map(level).collect()
}

/// Each level is entered from the one below and left to it.
#[track_caller]
fn assert_in_order(edge: &Edge) {
    let log = edge.log();
    let mut level = 0;
    for line in log.lines().filter(|line| line.contains("memory pressure")) {
        let name = line.split("level=\"").nth(1).unwrap().split('"').next().unwrap();
        let number = 1 + LEVELS.iter().position(|level| *level == name).unwrap();
        if line.contains("eases") {
            assert_eq!(number, level, "{line}");
            level -= 1;
        } else {
            assert_eq!(number, level + 1, "{line}");
            level = number;
        }
    }
    assert_eq!(level, 0, "all were left in the end");
}

fn level(edge: &Edge) -> f64 {
    edge.metric("ferrule_pressure_level")
}

fn actions(edge: &Edge, action: &str) -> f64 {
    edge.metrics().sum_with("ferrule_pressure_actions_total", &[("action", action)])
}

#[test]
fn slow_readers_drive_memory_up_every_step_and_cost_only_themselves() {
    let echo = Echo::http1();
    let flood = BACKGROUND.block_on(large_bodies());
    let mut edge = node(&echo, flood).set("memory", "limit = \"192MiB\"").start();
    assert_eq!(edge.metric("ferrule_memory_limit_bytes"), LIMIT as f64);
    everything_is_given_up_in_order(&mut edge);
}

#[test]
fn the_limit_of_a_real_cgroup_is_kept_and_nobody_is_killed() {
    let Some(cgroup) = MemoryCgroup::new(LIMIT) else { return };
    let echo = Echo::http1();
    let flood = BACKGROUND.block_on(large_bodies());
    let mut edge = node(&echo, flood).through(&cgroup.wrapper()).start();
    assert_eq!(edge.metric("ferrule_memory_limit_bytes"), LIMIT as f64);
    everything_is_given_up_in_order(&mut edge);
}

/// The control: what the ladder keeps the node from.
#[test]
fn without_the_ladder_the_same_readers_take_more_than_the_limit() {
    let echo = Echo::http1();
    let flood = BACKGROUND.block_on(large_bodies());
    let edge = node(&echo, flood)
        .set("memory", "limit = \"64GiB\"")
        .set("memory", "pressure_percent = [96, 97, 98, 99, 100]")
        .start();
    let attack = BACKGROUND.block_on(Attack::begin(edge.https(), &edge.tls("flood.test"), 10));
    attack.swell.send(true).unwrap();
    wait::until("they hold more than the limit", || {
        edge.metric("ferrule_memory_used_bytes") > LIMIT as f64
    });
    assert_eq!(told(&edge, "memory pressure"), [""; 0]);
    drop(attack);
}

#[test]
fn while_memory_is_short_the_flooded_app_is_shed_and_newcomers_wait() {
    let echo = Echo::http1();
    let flood = BACKGROUND.block_on(large_bodies());
    let edge = node(&echo, flood)
        .set("memory", "limit = \"512MiB\"")
        .timeout("request_head", "60s")
        .set("memory", "pressure_percent = [20, 21, 22, 23, 100]")
        .start();
    let bystander = Bystander::start(edge.http());
    let mut idle = [edge.connect(), edge.connect_tls("quiet.test")];
    for client in &mut idle {
        assert_eq!(client.get("quiet.test", "/bytes/1").status, 200);
    }
    let mut novice = edge.connect();
    let mut flooding = edge.connect();
    flooding.send("GET / HTTP/1.1\r\nhost: flood.test\r\n");
    let attack = BACKGROUND.block_on(Attack::begin(edge.https(), &edge.tls("flood.test"), 10));
    attack.swell.send(true).unwrap();
    wait::until("nobody is accepted", || level(&edge) == 4.0);
    let ready = edge.admin_get("/readyz");
    assert_eq!((ready.status, ready.text()), (503, "not ready: short of memory\n"));

    for client in idle.iter_mut().chain([&mut novice]) {
        assert!(client.closes_within(Duration::from_secs(20)), "idle connections are closed");
    }
    assert!(actions(&edge, "close") >= 3.0);
    flooding.send("\r\n");
    let shed = flooding.response();
    assert_eq!(shed.status, 503);
    assert!(shed.text().contains("PL06"), "{}", shed.text());
    assert!(edge.errors("PL06") >= 1.0 && actions(&edge, "shed") >= 1.0);
    bystander.goes_on(20);

    let mut newcomer = edge.connect(); // by the kernel
    newcomer.send("GET /bytes/1 HTTP/1.1\r\nhost: quiet.test\r\n\r\n");
    let asked = actions(&edge, "refuse");
    wait::until("it is put off", || actions(&edge, "refuse") > asked + 2.0);
    assert!(echo.seen().iter().all(|seen| !seen.line.starts_with("GET /bytes/1 ")));
    drop(attack);
    assert_eq!(newcomer.response().status, 200, "it was accepted in the end");
    wait::until("memory returns", || level(&edge) == 0.0);
    bystander.end();
    assert_in_order(&edge);
}

/// An attack on a node with a limit of [`LIMIT`].
fn everything_is_given_up_in_order(edge: &mut Edge) {
    let bystander = Bystander::start(edge.http());
    let attack = BACKGROUND.block_on(Attack::begin(edge.https(), &edge.tls("flood.test"), 10));
    assert_eq!(level(edge), 0.0, "so much is nothing yet");

    attack.swell.send(true).unwrap();
    let mut largest = 0.0_f64;
    wait::until("the largest are reset", || {
        largest = largest.max(edge.metric("ferrule_memory_used_bytes"));
        actions(edge, "reset") > 0.0
    });
    let mut entered = told(edge, "memory pressure");
    let mut seen = BTreeSet::new();
    entered.retain(|level| seen.insert(level.clone())); // they come back for as long as it swells
    assert_eq!(entered, LEVELS);
    bystander.goes_on(20);
    drop(attack);
    wait::until("memory returns", || level(edge) == 0.0);
    bystander.goes_on(20);
    wait::until("memory stays", || level(edge) == 0.0);
    assert_in_order(edge);
    for name in LEVELS {
        let metrics = edge.metrics();
        let times = |name_of| metrics.sum_with(name_of, &[("level", name)]);
        let entered = times("ferrule_pressure_entered_total");
        assert!(entered >= 1.0 && entered == times("ferrule_pressure_left_total"), "{name}");
    }
    bystander.end();
    assert!(largest < LIMIT as f64, "{largest}");
    assert_eq!(edge.get("flood.test", "/").status, 200, "everybody is served again");
    edge.signal(rustix::process::Signal::TERM);
    edge.stopped();
}
