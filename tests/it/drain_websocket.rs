//! WebSockets in a drain: told with 1001, between frames and never in one; both sides have time to
//! answer, and what a client says before it does is not lost.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::ext::Protocol;
use http::{Method, Request};
use rustix::process::Signal;
use tests::app::App;
use tests::client::{H2, WebSocket, accept_key};
use tests::edge::Edge;
use tests::instance::{Conversation, Scripted, websocket_echo};
use tests::wait;

const SOON: Duration = Duration::from_secs(5);
const TEXT: u8 = 1;
const CLOSE: u8 = 8;

const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

/// What an instance read: every frame, and whether it was masked as a client's must be.
type Seen = Arc<Mutex<Vec<(u8, Vec<u8>)>>>;

/// An instance that upgrades, does what `script` says, and then reads frames until a close, which it
/// answers.
fn instance(
    script: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
) -> (Scripted, Seen) {
    let seen = Seen::default();
    let of_instance = seen.clone();
    let scripted = Scripted::start(move |connection| {
        upgrade(connection)?;
        script(connection)?;
        loop {
            let (opcode, payload) = masked_frame(connection)?;
            of_instance.lock().unwrap().push((opcode, payload.clone()));
            if opcode == CLOSE {
                connection
                    .send([&[0x88, u8::try_from(payload.len()).unwrap()][..], &payload].concat())?;
                return connection.hang();
            }
        }
    });
    (scripted, seen)
}

fn upgrade(connection: &mut Conversation) -> io::Result<()> {
    let request = connection.request()?;
    let key = request.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then_some(value.trim())
    });
    let Some(key) = key else {
        connection.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")?;
        return Err(io::ErrorKind::InvalidData.into());
    };
    connection.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        accept_key(key)
    ))
}

fn masked_frame(connection: &mut Conversation) -> io::Result<(u8, Vec<u8>)> {
    let head = connection.exactly(2)?;
    assert_eq!(head[1] & 0x80, 0x80, "what goes to an instance is masked");
    let length = usize::from(head[1] & 0x7f);
    assert!(length < 126, "a small frame");
    let mask = connection.exactly(4)?;
    let payload = connection.exactly(length)?;
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok((head[0] & 0xf, payload))
}

fn drain(edge: &Edge) {
    let outcome = edge.command(&["drain"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}

#[test]
fn a_close_waits_for_the_end_of_a_frame_and_not_for_that_of_a_message() {
    let go_on = Arc::new(AtomicBool::new(false));
    let gate = go_on.clone();
    let (chat, seen) = instance(move |connection| {
        // The first fragment of a message, cut in two.
        connection.send([&[0x01, 126, 0x03, 0xe8][..], &[b'a'; 500]].concat())?;
        while !gate.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        connection.send([b'b'; 500])
    });
    let edge = Edge::with([App::new("chat").instance(chat.address())]);
    for (round, raw) in [edge.connect(), edge.connect_tls("chat.test")].into_iter().enumerate() {
        go_on.store(false, SeqCst);
        let mut socket = WebSocket::upgrade(raw, "chat.test", "/");
        let first = socket.raw().reader().exactly(504).unwrap();
        assert_eq!(&first[..4], [0x01, 126, 0x03, 0xe8]);
        drain(&edge);
        assert!(socket.raw().stays_open_for(Duration::from_millis(400)), "not within a frame");
        go_on.store(true, SeqCst);
        assert_eq!(socket.raw().reader().exactly(500).unwrap(), [b'b'; 500]);
        assert_eq!(socket.receive(), (CLOSE, GOING_AWAY.to_vec()), "before the next fragment");
        socket.send(CLOSE, &GOING_AWAY);
        assert!(socket.raw().closes_within(SOON));
        wait::until("the instance is told", || seen.lock().unwrap().len() == round + 1);
        assert_eq!(seen.lock().unwrap()[round], (CLOSE, GOING_AWAY.to_vec()));
        assert_eq!(edge.command(&["undrain"]).code, 0);
    }
    edge.idle();
}

#[test]
fn a_client_that_says_nothing_is_spoken_for() {
    let (chat, seen) = instance(|_| Ok(()));
    let edge = Edge::with([App::new("chat").instance(chat.address())]);
    let mut socket = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    drain(&edge);
    let start = Instant::now();
    assert_eq!(socket.receive(), (CLOSE, GOING_AWAY.to_vec()));
    wait::until("the instance is told", || seen.lock().unwrap().len() == 1);
    assert_eq!(seen.lock().unwrap()[0], (CLOSE, GOING_AWAY.to_vec()));
    // It had its time for an answer.
    assert!(socket.raw().closes_within(Duration::from_secs(12)));
    let after = start.elapsed();
    assert!((2..10).contains(&after.as_secs()), "{after:?}");
    edge.idle();
}

#[test]
fn what_a_client_says_before_its_close_reaches_the_instance() {
    let (chat, seen) = instance(|_| Ok(()));
    let edge = Edge::with([App::new("chat").instance(chat.address())]);
    let mut socket = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    drain(&edge);
    assert_eq!(socket.receive(), (CLOSE, GOING_AWAY.to_vec()));
    socket.send(TEXT, b"on its way");
    socket.send(CLOSE, &GOING_AWAY);
    assert!(socket.raw().closes_within(SOON));
    wait::until("the instance is told", || seen.lock().unwrap().len() == 2);
    let wanted = vec![(TEXT, b"on its way".to_vec()), (CLOSE, GOING_AWAY.to_vec())];
    assert_eq!(*seen.lock().unwrap(), wanted);
}

#[test]
fn a_stream_of_frames_without_a_pause_is_closed_at_a_boundary() {
    let (chat, _) = instance(|connection| {
        // Whatever is read at once ends within a frame nearly always.
        let frame = [&[0x82, 126, 0x40, 0x07][..], &[b'f'; 0x4007]].concat();
        while connection.send(&frame).is_ok() {}
        Ok(())
    });
    let edge = Edge::with([App::new("chat").instance(chat.address())]);
    let mut socket = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    let mut frames = 0;
    let mut read = |socket: &mut WebSocket| {
        let (opcode, payload) = socket.receive();
        frames += 1;
        assert!(opcode == CLOSE || (opcode == 2 && payload == [b'f'; 0x4007]), "frame {frames}");
        (opcode, payload)
    };
    for _ in 0..50 {
        read(&mut socket);
    }
    drain(&edge);
    let closed = std::iter::repeat_with(|| read(&mut socket)).find(|(opcode, _)| *opcode == CLOSE);
    assert_eq!(closed, Some((CLOSE, GOING_AWAY.to_vec())));
    socket.send(CLOSE, &GOING_AWAY);
    assert!(socket.raw().closes_within(Duration::from_secs(10)), "and nothing comes behind it");
}

#[tokio::test]
async fn a_websocket_over_http2_is_told_as_well() {
    let (chat, seen) = instance(|_| Ok(()));
    let edge = Edge::with([App::new("chat").instance(chat.address())]);
    let mut client = H2::connect(edge.https(), &edge.tls("chat.test")).await;
    assert_eq!(client.get("chat.test", "/").await.status, 400);
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("https://chat.test/ws")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .body(())
        .unwrap();
    let (response, mut up) = client.start(request, false).await.unwrap();
    let mut down = response.await.unwrap().into_body();
    drain(&edge);
    assert_eq!(&down.data().await.unwrap().unwrap()[..], [0x88, 0x02, 0x03, 0xe9]);
    up.send_data(Bytes::from_static(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]), false).unwrap();
    assert!(down.data().await.is_none_or(|data| data.unwrap().is_empty()), "the end");
    drop((up, down));
    client.ended().await.unwrap();
    wait::until("the instance is told", || seen.lock().unwrap().len() == 1);
    assert_eq!(seen.lock().unwrap()[0], (CLOSE, GOING_AWAY.to_vec()));
    edge.idle();
}

#[test]
fn a_drain_that_is_taken_back_in_time_closes_nothing() {
    let chat = websocket_echo();
    let app = App::new("chat").instance(chat.address());
    let edge =
        Edge::builder().app(app).timeout("drain", "60s").timeout("drain_spread", "50s").start();
    let mut socket = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    drain(&edge);
    assert_eq!(edge.command(&["undrain"]).code, 0);
    for _ in 0..10 {
        socket.send(TEXT, b"still there?");
        assert_eq!(socket.receive(), (TEXT, b"still there?".to_vec()));
        std::thread::sleep(Duration::from_millis(50));
    }
    socket.send(CLOSE, &GOING_AWAY);
    assert_eq!(socket.receive().0, CLOSE);
}

#[test]
fn a_protocol_that_nobody_here_knows_is_left_alone_until_its_deadline() {
    let other = Scripted::start(|connection| {
        connection.request()?;
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat/7\r\n\r\n",
        )?;
        loop {
            let byte = connection.exactly(1)?;
            connection.send(byte)?;
        }
    });
    let app = App::new("chat").instance(other.address());
    let mut edge = Edge::builder().app(app).timeout("drain_websocket", "2s").start();
    let mut client = edge.connect();
    client.send(
        "GET / HTTP/1.1\r\nhost: chat.test\r\nconnection: upgrade\r\nupgrade: chat/7\r\n\r\n",
    );
    assert_eq!(client.response().status, 101);
    edge.signal(Signal::TERM);
    let start = Instant::now();
    assert!(client.stays_open_for(Duration::from_secs(1)), "not a byte that is not the instance's");
    client.send("x");
    assert_eq!(client.reader().exactly(1).unwrap(), b"x");
    assert!(client.closes_within(SOON));
    let after = start.elapsed();
    assert!((1_800..4_000).contains(&after.as_millis()), "{after:?}");
    edge.stopped();
    let log = edge.log();
    assert!(log.contains("cut=1 cut_requests=0 cut_websockets=1 cut_tcp=0"), "{log}");
}
