//! Raw TCP: bytes both ways, each direction ending on its own.

use std::time::Duration;

use tests::app::App;
use tests::edge::Edge;
use tests::instance::Scripted;
use tests::port::free_address;
use tests::wait;

/// Answers what it read once the client has ended its half.
fn reverse_echo() -> Scripted {
    Scripted::start(|connection| {
        let mut bytes = connection.to_end()?;
        bytes.reverse();
        connection.send(&bytes)
    })
}

#[test]
fn bytes_are_copied_both_ways_as_they_come() {
    let instance = Scripted::start(|connection| {
        connection.send("hello\n")?; // the server speaks first
        loop {
            let byte = connection.exactly(1)?;
            connection.send(byte)?;
        }
    });
    let edge = Edge::with([App::raw("raw", "[]").instance(instance.address())]);
    let mut client = tests::client::Raw::tcp(edge.tcp());
    assert_eq!(client.reader().exactly(6).unwrap(), b"hello\n");
    for byte in 0..=255 {
        client.send([byte]);
        assert_eq!(client.reader().exactly(1).unwrap(), [byte]);
    }
}

#[test]
fn the_end_of_one_direction_leaves_the_other_open() {
    let instance = reverse_echo();
    let edge = Edge::with([App::raw("raw", "[]").instance(instance.address())]);
    let mut client = tests::client::Raw::tcp(edge.tcp());
    let sent: Vec<u8> = (0..300_000).map(|n| (n % 251) as u8).collect();
    client.send(&sent);
    client.finish();
    let mut got = client.reader().to_end().unwrap();
    got.reverse();
    assert!(got == sent, "{} bytes came back", got.len());
}

#[test]
fn tls_is_taken_off_for_an_app_that_wants_bytes() {
    let instance = reverse_echo();
    let edge = Edge::with([App::raw("raw", "[\"tls\"]").instance(instance.address())]);
    let mut client = edge.tls("raw.test").alpn(&[]).connect(edge.tcp()).unwrap();
    client.send("abc");
    client.finish();
    assert_eq!(client.reader().to_end().unwrap(), b"cba");
}

#[test]
fn the_proxy_header_says_who_the_client_is() {
    let instance = Scripted::start(|connection| {
        let bytes = connection.to_end()?;
        connection.send(&bytes)
    });
    let edge = Edge::with([App::raw("raw", "[\"proxy_proto\"]")
        .http_port("proxy_proto_options.version = \"v1\"")
        .instance(instance.address())]);
    let mut client = tests::client::Raw::tcp(edge.tcp());
    let source = client.local_address().port();
    client.send("after the header");
    client.finish();
    let got = String::from_utf8(client.reader().to_end().unwrap()).unwrap();
    let port = edge.tcp().port();
    assert_eq!(got, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {source} {port}\r\nafter the header"));
}

#[test]
fn the_binary_proxy_header_says_the_same() {
    let instance = Scripted::start(|connection| {
        let bytes = connection.to_end()?;
        connection.send(&bytes)
    });
    let edge = Edge::with([App::raw("raw", "[\"proxy_proto\"]")
        .http_port("proxy_proto_options.version = \"v2\"")
        .instance(instance.address())]);
    let mut client = tests::client::Raw::tcp(edge.tcp());
    let source = client.local_address().port();
    client.send("x");
    client.finish();
    let got = client.reader().to_end().unwrap();
    let mut wanted = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    wanted.extend([0, 12, 127, 0, 0, 1, 127, 0, 0, 1]);
    wanted.extend(source.to_be_bytes());
    wanted.extend(edge.tcp().port().to_be_bytes());
    // Additional fields (TLVs) may follow; their length is in the header.
    assert_eq!(got[..14], wanted[..14]);
    assert_eq!(got[16..28], wanted[16..28]);
    let length = usize::from(u16::from_be_bytes([got[14], got[15]]));
    assert_eq!(&got[16 + length..], b"x");
}

#[test]
fn an_instance_that_refuses_or_resets_ends_the_clients_connection() {
    let nobody = free_address(1);
    let edge = Edge::with([App::raw("raw", "[]").instance(nobody)]);
    let mut client = tests::client::Raw::tcp(edge.tcp());
    assert!(client.closes_within(Duration::from_secs(10)));
    drop(edge);
    let resets = Scripted::start(|connection| {
        connection.exactly(1)?;
        connection.reset()
    });
    let edge = Edge::with([App::raw("raw", "[]").instance(resets.address())]);
    let mut client = tests::client::Raw::tcp(edge.tcp());
    client.send("x");
    assert!(client.closes_within(Duration::from_secs(10)));
}

#[test]
fn a_client_that_leaves_ends_the_instances_connection() {
    let instance = Scripted::start(tests::instance::Conversation::hang);
    let edge = Edge::with([App::raw("raw", "[]").instance(instance.address())]);
    let mut client = tests::client::Raw::tcp(edge.tcp());
    client.send("x");
    wait::until("the instance is connected", || instance.connections() == 1);
    client.reset_on_drop();
    drop(client);
    wait::until("the instance is told", || instance.closed_by_edge() == 1);
    edge.idle();
}

#[test]
fn connections_of_a_raw_app_count_against_its_hard_limit() {
    let instance = Scripted::start(|connection| {
        connection.send("!")?;
        connection.hang()
    });
    let app = App::raw("raw", "[]").concurrency("hard_limit = 2").instance(instance.address());
    let edge = Edge::builder().app(app).timeout("queue", "300ms").start();
    let connect = || tests::client::Raw::tcp(edge.tcp());
    let mut held = [connect(), connect()];
    for client in &mut held {
        assert_eq!(client.reader().exactly(1).unwrap(), b"!");
    }
    assert!(connect().closes_within(Duration::from_secs(10)));
    assert_eq!(instance.connections(), 2);
    drop(held);
    wait::until("there is room again", || connect().reader().exactly(1).is_ok());
}
