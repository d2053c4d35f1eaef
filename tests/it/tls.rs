//! TLS as clients meet it: names, versions, protocols, certificates that change on disk.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;
use tests::app::App;
use tests::client::{H2, Raw, Sclient};
use tests::edge::Edge;
use tests::instance::Echo;
use tests::wait;

fn two_apps(echo: &Echo) -> Edge {
    Edge::with([
        App::new("hello").hostname("*.hello.test").instance(echo.address()),
        App::new("other").instance(echo.address()),
    ])
}

#[test]
fn a_name_without_certificate_is_refused_and_counted() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
    let before = edge.errors("PT05");
    for name in ["nobody.test", "test", "hello.test.evil.test", "a.b.hello.test"] {
        assert!(edge.tls(name).connect(edge.https()).is_err(), "{name} has no certificate here");
    }
    wait::until("the refusals are counted", || edge.errors("PT05") == before + 4.0);
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
}

#[test]
fn a_wildcard_matches_exactly_one_label() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    for name in ["hello.test", "www.hello.test", "WWW.Hello.Test"] {
        assert_eq!(edge.connect_tls(name).get(name, "/").status, 200, "{name}");
    }
    assert_eq!(edge.get("www.hello.test", "/").status, 200);
    edge.get("a.www.hello.test", "/").assert_error(404, "PE01");
}

#[test]
fn each_name_gets_its_own_certificate() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    let hello = edge.connect_tls("hello.test").certificate();
    let other = edge.connect_tls("other.test").certificate();
    assert_ne!(hello, other);
    assert_eq!(hello, edge.connect_tls("hello.test").certificate());
}

#[test]
fn tls_1_2_and_1_3_are_served_and_older_versions_refused() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let Some(client) = Sclient::run(edge.https(), "hello.test", &[flag]) else { return };
        assert_eq!(client.version(), Some(version), "{}", client.text);
    }
    let arguments = ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    let Some(old) = Sclient::run(edge.https(), "hello.test", &arguments) else { return };
    assert_ne!(old.version(), Some("TLSv1.1"), "{}", old.text);
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
}

#[test]
fn the_protocol_is_chosen_by_alpn() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    for (offered, chosen) in [("h2,http/1.1", "h2"), ("http/1.1", "http/1.1")] {
        let client = Sclient::run(edge.https(), "hello.test", &["-alpn", offered]);
        let Some(client) = client else { return };
        assert_eq!(client.alpn(), Some(chosen));
    }
    let mut client = edge.tls("hello.test").alpn(&[]).connect(edge.https()).unwrap();
    assert_eq!(client.get("hello.test", "/").status, 200, "without ALPN it is HTTP/1.1");
}

#[test]
fn a_hello_may_come_one_byte_at_a_time() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    let tls = edge.tls("hello.test");
    let mut session = ClientConnection::new(Arc::new(tls.config()), tls.name()).unwrap();
    let mut socket = TcpStream::connect(edge.https()).unwrap();
    socket.set_nodelay(true).unwrap();
    let mut hello = Vec::new();
    session.write_tls(&mut hello).unwrap();
    for byte in hello {
        socket.write_all(&[byte]).unwrap();
    }
    session.complete_io(&mut socket).unwrap();
    assert!(!session.is_handshaking());
}

#[test]
fn bytes_that_are_not_tls_end_only_their_own_connection() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: hello.test\r\n\r\n"[..],
        &[0x16, 3, 1, 0xff, 0xff, 9],
        &[0; 600],
    ] {
        let mut client = Raw::tcp(edge.https());
        client.send(bytes);
        client.finish();
        client.set_timeout(Duration::from_secs(5));
        // An alert may come first; the end has to.
        while client.reader().some().is_ok_and(|bytes| !bytes.is_empty()) {}
        assert!(client.closes_within(Duration::from_secs(5)));
    }
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
}

#[test]
fn a_certificate_that_changes_on_disk_is_served_without_a_restart() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    let mut old = edge.connect_tls("hello.test");
    let first = old.certificate();
    let new = edge.certs().leaf(&["hello.test"]);
    edge.write_certificate("hello", &new);
    wait::until("the new certificate is served", || {
        edge.connect_tls("hello.test").certificate() == Some(new.der())
    });
    assert_ne!(first, Some(new.der()));
    assert_eq!(old.get("hello.test", "/").status, 200, "who is connected stays so");
}

#[test]
fn a_certificate_that_cannot_be_read_leaves_the_last_good_one() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    let first = edge.connect_tls("hello.test").certificate();
    tests::certs::write_whole(&edge.path("certificates/hello.pem"), "nonsense");
    // A good certificate written later is the sign that the bad one has been looked at.
    let later = edge.certs().leaf(&["other.test"]);
    edge.write_certificate("other", &later);
    wait::until("the later certificate is served", || {
        edge.connect_tls("other.test").certificate() == Some(later.der())
    });
    assert_eq!(edge.connect_tls("hello.test").certificate(), first);
}

#[test]
fn force_https_redirects_every_cleartext_request() {
    let echo = Echo::http1();
    let app = App::new("hello").http_port("force_https = true").instance(echo.address());
    let edge = Edge::with([app, App::new("plain").instance(echo.address())]);
    let mut client = edge.connect();
    for method in ["GET", "POST"] {
        client.send(format!(
            "{method} /a%2Fb/c?d=e&f HTTP/1.1\r\nhost: hello.test:8080\r\ncontent-length: 0\r\n\r\n"
        ));
        let response = client.response();
        assert_eq!(response.status, 301);
        let location = response.header("location").unwrap();
        assert!(location.starts_with("https://hello.test"), "{location}");
        assert!(location.ends_with("/a%2Fb/c?d=e&f"), "{location}");
        assert!(!location.contains("8080"), "{location}");
    }
    assert_eq!(client.get("plain.test", "/").status, 200, "the other app did not ask for it");
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
    assert_eq!(echo.requests(), 2);
}

#[test]
fn an_authority_of_another_app_is_misdirected_over_http1() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    let mut client = edge.connect_tls("hello.test");
    assert_eq!(client.get("hello.test", "/").status, 200);
    client.get("other.test", "/").assert_error(421, "PE02");
    assert_eq!(edge.connect_tls("hello.test").get("hello.test", "/").status, 200);
    assert_eq!(edge.connect_tls("other.test").get("other.test", "/").status, 200);
    assert_eq!(echo.requests(), 3);
}

#[tokio::test]
async fn an_authority_of_another_app_is_misdirected_over_http2() {
    let echo = Echo::http1();
    let edge = two_apps(&echo);
    let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    assert_eq!(client.get("hello.test", "/").await.status, 200);
    let response = client.get("other.test", "/").await;
    assert_eq!((response.status.as_u16(), response.error_code()), (421, Some("PE02")));
    assert_eq!(client.get("hello.test", "/").await.status, 200);
    assert_eq!(echo.requests(), 2);
}
