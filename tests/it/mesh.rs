//! Two regions, one mesh: a request finds the region that has the app, nobody else gets in, and
//! views that disagree make no loop.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use http::Request;
use rustix::process::Signal;
use tests::app::App;
use tests::certs::{Certs, Pair, Validity};
use tests::client::{H2, Raw, mesh_greets};
use tests::edge::{Builder, Edge, MeshIdentity, binary};
use tests::instance::{Echo, MeshServer, Nghttpd, Scripted};
use tests::port::loopback;
use tests::process::run;
use tests::wait;

/// An app that runs in region `fra` only.
fn remote(echo: &Echo) -> App {
    App::new("hello").instance_on("b", echo.address())
}

#[test]
fn a_request_is_served_by_the_region_that_has_the_app() {
    let echo = Echo::http1();
    let [a, b] = Edge::two_regions([remote(&echo)]);
    for mut client in [a.connect(), a.connect_tls("hello.test"), b.connect()] {
        for size in [0, 1, 100_000] {
            assert_eq!(client.get("hello.test", &format!("/bytes/{size}")).body.len(), size);
        }
    }
    assert_eq!(echo.requests(), 9);
}

#[test]
fn the_instance_is_told_of_the_client_not_of_the_node_between() {
    let instance = Scripted::mirror();
    let [a, _b] = Edge::two_regions([App::new("hello").instance_on("b", instance.address())]);
    let mut client = a.connect();
    client.send("GET / HTTP/1.1\r\nhost: hello.test\r\nferrule-client-ip: 6.6.6.6\r\n\r\n");
    let seen = client.response().text().to_lowercase();
    for field in [
        "\r\nx-forwarded-for: 127.0.0.1\r\n",
        "\r\nferrule-client-ip: 127.0.0.1\r\n",
        "\r\nferrule-region: ams\r\n",
        "\r\nhost: hello.test\r\n",
        &format!("\r\nx-forwarded-port: {}\r\n", a.http().port()),
    ] {
        assert_eq!(seen.matches(field).count(), 1, "{field:?} in {seen}");
    }
    assert!(!seen.contains("6.6.6.6"), "{seen}");
}

#[test]
fn the_local_instance_is_preferred() {
    let near = Echo::http1();
    let far = Echo::http1_at((loopback(2), near.address().port()).into());
    let app = App::new("hello").instance_on("a", near.address()).instance_on("b", far.address());
    let [a, b] = Edge::two_regions([app]);
    for _ in 0..20 {
        assert_eq!(a.get("hello.test", "/").status, 200);
    }
    assert_eq!((near.requests(), far.requests()), (20, 0));
    assert_eq!(b.get("hello.test", "/").status, 200);
    assert_eq!((near.requests(), far.requests()), (20, 1));
}

#[test]
fn the_other_region_serves_when_the_local_instance_is_dead() {
    let far = Echo::http1();
    let dead: SocketAddr = (loopback(9), far.address().port()).into();
    let app = App::new("hello").instance_on("a", dead).instance_on("b", far.address());
    let [a, _b] = Edge::two_regions([app]);
    for _ in 0..20 {
        assert_eq!(a.get("hello.test", "/").status, 200);
    }
}

#[test]
fn the_other_region_serves_when_the_local_instance_is_at_its_hard_limit() {
    let near = Echo::http1();
    let far = Echo::http1_at((loopback(2), near.address().port()).into());
    let app = App::new("hello")
        .limits(1, 1)
        .instance_on("a", near.address())
        .instance_on("b", far.address());
    let [a, _b] = Edge::two_regions([app]);
    let mut held = a.connect();
    held.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    near.holds(1);
    assert_eq!(a.get("hello.test", "/").status, 200);
    assert_eq!((near.requests(), far.requests()), (1, 1));
    near.open(1);
    assert_eq!(held.response().status, 200);
}

#[test]
fn uploads_and_answers_stream_across_the_mesh() {
    let echo = Echo::http1();
    let [a, _b] = Edge::two_regions([remote(&echo)]);
    let mut client = a.connect();
    client.send("POST /echo HTTP/1.1\r\nhost: hello.test\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send("5\r\nfirst\r\n");
    assert_eq!(client.reader().head().unwrap().0, 200);
    assert_eq!(client.reader().exactly(10).unwrap(), b"5\r\nfirst\r\n");
    client.send("6\r\nsecond\r\n0\r\n\r\n");
    assert_eq!(client.reader().exactly(11).unwrap(), b"6\r\nsecond\r\n");
    assert_eq!(client.reader().exactly(5).unwrap(), b"0\r\n\r\n");
}

#[test]
fn the_instance_hears_across_the_mesh_that_the_client_left() {
    let echo = Echo::http1();
    let [a, b] = Edge::two_regions([remote(&echo)]);
    let mut client = a.connect();
    client.send("GET /hang HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    let left = Instant::now();
    drop(client);
    wait::until("the instance hears of it", || echo.cancelled().len() == 1);
    let took = echo.cancelled()[0].duration_since(left);
    assert!(took < Duration::from_millis(200), "{took:?}");
    for edge in [&a, &b] {
        wait::until("no permit is held", || edge.metric("ferrule_permits_in_use") == 0.0);
    }
}

#[tokio::test]
async fn trailers_cross_the_mesh() {
    let Some(nghttpd) = Nghttpd::start() else { return };
    let app = App::new("hello").h2_backend().instance_on("b", nghttpd.address());
    let [a, _b] = Edge::two_regions([app]);
    let mut client = H2::connect(a.https(), &a.tls("hello.test")).await;
    let request = Request::post("https://hello.test/").header("te", "trailers").body(()).unwrap();
    let response = client.send(request, "x").await.unwrap();
    assert_eq!(&response.body[..], b"h2c\n");
    assert_eq!(response.trailers.unwrap()["grpc-status"], "0");
}

#[test]
fn raw_bytes_cross_the_mesh_each_direction_ending_on_its_own() {
    let instance = Scripted::start(|connection| {
        let mut bytes = connection.to_end()?;
        bytes.reverse();
        connection.send(&bytes)
    });
    let app = App::raw("raw", "[]").instance_on("b", instance.address());
    let [a, b] = Edge::two_regions([app]);
    let mut client = Raw::tcp(a.tcp());
    let sent: Vec<u8> = (0..300_000).map(|n| (n % 251) as u8).collect();
    client.send(&sent);
    client.finish();
    let mut got = client.reader().to_end().unwrap();
    got.reverse();
    assert!(got == sent, "{} bytes came back", got.len());
    drop(client);
    for edge in [&a, &b] {
        wait::until("no permit is held", || edge.metric("ferrule_permits_in_use") == 0.0);
    }
}

#[test]
fn a_node_does_not_start_with_a_certificate_of_another() {
    let echo = Echo::http1();
    let [_, b] = Builder::two_regions([remote(&echo)]);
    let folder = tempfile::TempDir::new().unwrap();
    b.mesh_identity(MeshIdentity::AnotherNode).write(folder.path());
    let config = folder.path().join("edge.toml");
    let done = run(Command::new(binary()).args(["run", "--config"]).arg(config));
    assert_eq!(done.code, 64, "{done:?}");
}

/// Certificates that do not prove to be node `b`, by what is wrong with them.
fn impostors(certs: &Certs) -> [(&'static str, Pair); 4] {
    [
        ("names another node", certs.node("c", Validity::Valid)),
        ("is no longer valid", certs.node("b", Validity::Expired)),
        ("is signed by nobody we know", Certs::new().node("b", Validity::Valid)),
        ("is one of the public side", certs.leaf(&["hello.test"])),
    ]
}

#[test]
fn a_peer_that_is_not_who_it_should_be_is_sent_nothing() {
    let echo = Echo::http1();
    let [a, b] = Builder::two_regions([remote(&echo)]);
    let (certs, address) = (b.certs(), b.mesh_address());
    let a = a.start();
    let mut pairs = vec![("is sound", certs.node("b", Validity::Valid))];
    pairs.extend(impostors(&certs));
    pairs.push(("is sound", certs.node("b", Validity::Valid)));
    for (what, pair) in pairs {
        let peer = MeshServer::start(address, &certs, &pair);
        let before = peer.greetings();
        let _ = a.get("hello.test", "/").status;
        if what == "is sound" {
            wait::until("the control: who it should be is greeted", || peer.greetings() > before);
        } else {
            let response = a.get("hello.test", "/");
            assert!((500..600).contains(&response.status), "{what}: {response:?}");
            assert_eq!(peer.greetings(), before, "a certificate that {what} is enough");
        }
    }
    assert_eq!(echo.requests(), 0);
}

#[test]
fn a_stranger_gets_nothing_from_the_mesh_port() {
    let echo = Echo::http1();
    let [a, b] = Builder::two_regions([remote(&echo)]);
    let certs = b.certs();
    let a = a.start();
    let sound = certs.node("b", Validity::Valid);
    assert!(mesh_greets(a.mesh(), Some(&sound)), "the control: a node is let in");
    assert!(!mesh_greets(a.mesh(), None), "no certificate is enough");
    for (what, pair) in impostors(&certs) {
        // Any node of the edge may come, so another node's name is a sound one here.
        if what != "names another node" {
            assert!(!mesh_greets(a.mesh(), Some(&pair)), "a certificate that {what} is enough");
        }
    }
    let mut clear = Raw::tcp(a.mesh());
    clear.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let answer = clear.reader().to_end().unwrap_or_default();
    assert!(answer.is_empty() || answer[0] == 0x15, "only a TLS alert: {answer:?}");
    assert!(mesh_greets(a.mesh(), Some(&sound)), "the control: a node is let in");
}

#[test]
fn nodes_that_disagree_make_no_loop() {
    let echo = Echo::http1();
    let [a, b] = Edge::two_regions([remote(&echo)]);
    assert_eq!(a.get("hello.test", "/").status, 200);
    // Each node is told that the other one has it.
    b.write_app(&App::new("hello").instance_on("a", echo.address()));
    wait::until("they point at each other", || a.get("hello.test", "/").status != 200);
    let before = echo.requests();
    let start = Instant::now();
    for edge in [&a, &b] {
        let response = edge.get("hello.test", "/");
        assert!((500..600).contains(&response.status), "{response:?}");
        assert!(response.error_code().is_some(), "{response:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(echo.requests(), before);
    for edge in [&a, &b] {
        wait::until("no request is held", || edge.metric("ferrule_requests_in_flight") == 0.0);
    }
    b.write_app(&remote(&echo));
    wait::until("they agree again", || a.get("hello.test", "/").status == 200);
}

#[test]
fn a_peer_that_is_gone_is_a_bad_gateway_until_it_is_back() {
    let echo = Echo::http1();
    let [a, b] = Builder::two_regions([remote(&echo)]);
    let a = a.start();
    let start = Instant::now();
    let response = a.get("hello.test", "/");
    assert!(matches!(response.status, 502..=504), "{response:?}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let _b = b.start();
    wait::until("the peer is found", || a.get("hello.test", "/").status == 200);
}

#[test]
fn a_peer_that_drains_finishes_what_it_was_given() {
    let echo = Echo::http1();
    let [a, mut b] = Edge::two_regions([remote(&echo)]);
    let mut client = a.connect();
    client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    b.signal(Signal::TERM);
    let http = b.http();
    wait::until("it accepts nobody any more", || Raw::try_tcp(http).is_err());
    echo.open(1);
    assert_eq!(client.response().text(), "through the gate");
    b.stopped();
}
