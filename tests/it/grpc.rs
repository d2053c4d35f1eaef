//! HTTP/2 all the way, as gRPC needs it: `h2_backend`, trailers, both directions at once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Version};
use tests::app::App;
use tests::client::{H2, H2Response, H2load};
use tests::edge::Edge;
use tests::instance::{Echo, Nghttpd, Scripted};
use tests::wait::PATIENCE;

fn call(path: &str) -> Request<()> {
    let request = Request::post(format!("https://hello.test{path}"));
    let request = request.header("te", "trailers").header("content-type", "application/grpc");
    request.body(()).unwrap()
}

async fn connect(edge: &Edge) -> H2 {
    H2::connect(edge.https(), &edge.tls("hello.test")).await
}

#[tokio::test]
async fn the_status_in_the_trailers_arrives() {
    let Some(nghttpd) = Nghttpd::start() else { return };
    let edge = Edge::with([App::new("hello").h2_backend().instance(nghttpd.address())]);
    let mut client = connect(&edge).await;
    for _ in 0..20 {
        let response = client.send(call("/"), "request").await.unwrap();
        assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"h2c\n"[..]));
        assert_eq!(response.trailers.unwrap()["grpc-status"], "0");
    }
}

#[tokio::test]
async fn both_directions_flow_at_once() {
    let echo = Echo::h2c();
    let edge = Edge::with([App::new("hello").h2_backend().instance(echo.address())]);
    let mut client = connect(&edge).await;
    let (response, mut up) = client.start(call("/echo"), false).await.unwrap();
    up.send_data(Bytes::from_static(b"0"), false).unwrap();
    let response = response.await.unwrap();
    let mut down = response.into_body();
    assert_eq!(down.data().await.unwrap().unwrap(), "0");
    for n in 1..50 {
        up.send_data(Bytes::from(n.to_string()), false).unwrap();
        assert_eq!(down.data().await.unwrap().unwrap(), n.to_string());
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "49".parse().unwrap());
    up.send_trailers(trailers).unwrap();
    assert!(down.data().await.is_none());
    assert_eq!(down.trailers().await.unwrap().unwrap()["x-sum"], "49");
    let seen = echo.seen().remove(0);
    assert_eq!(
        (seen.version, seen.headers.get("te").unwrap().as_bytes()),
        (Version::HTTP_2, &b"trailers"[..])
    );
}

#[tokio::test]
async fn calls_share_few_connections_to_the_instance() {
    let echo = Echo::h2c();
    let edge = Edge::with([App::new("hello").h2_backend().instance(echo.address())]);
    let mut client = connect(&edge).await;
    let mut started = Vec::new();
    for n in 0..90 {
        let mut request = call("/echo");
        request.headers_mut().insert("x-nonce", n.into());
        let (response, mut up) = client.start(request, false).await.unwrap();
        up.send_data(Bytes::from(vec![b'g'; n * 100]), true).unwrap();
        started.push(response);
    }
    for (n, response) in started.into_iter().enumerate() {
        let response = H2Response::read(response).await.unwrap();
        assert_eq!(response.header("x-nonce"), Some(n.to_string().as_str()));
        assert_eq!(response.body.len(), n * 100);
    }
    assert!(echo.connections() <= 4, "{} connections", echo.connections());
}

#[tokio::test]
async fn an_instance_hears_within_100_ms_that_a_call_was_cancelled() {
    let echo = Echo::h2c();
    let edge = Edge::with([App::new("hello").h2_backend().instance(echo.address())]);
    let mut client = connect(&edge).await;
    for path in ["/hang", "/drip"] {
        let before = echo.cancelled().len();
        let (response, mut up) = client.start(call(path), false).await.unwrap();
        while echo.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        let left = Instant::now();
        up.send_reset(Reason::CANCEL);
        drop(response);
        while echo.cancelled().len() == before {
            assert!(left.elapsed() < PATIENCE, "the instance never hears of it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = echo.cancelled()[before].duration_since(left);
        assert!(took < Duration::from_millis(100), "{path}: {took:?}");
    }
    // Others on the same upstream connection go on.
    assert_eq!(client.send(call("/echo"), "x").await.unwrap().body, "x");
}

#[tokio::test]
async fn an_instance_that_speaks_no_http2_is_a_bad_gateway() {
    let instance = Scripted::mirror();
    let edge = Edge::with([App::new("hello").h2_backend().instance(instance.address())]);
    let mut client = connect(&edge).await;
    let response = client.send(call("/"), "x").await.unwrap();
    assert_eq!((response.status.as_u16(), response.error_code()), (502, Some("PU01")));
}

#[test]
fn an_http1_client_is_served_by_an_http2_instance() {
    let echo = Echo::h2c();
    let edge = Edge::with([App::new("hello").h2_backend().instance(echo.address())]);
    let mut client = edge.connect();
    for size in [0, 1, 70_000] {
        assert_eq!(client.get("hello.test", &format!("/bytes/{size}")).body.len(), size);
    }
    client.send("GET /trailers HTTP/1.1\r\nhost: hello.test\r\nte: trailers\r\n\r\n");
    let response = client.response();
    assert_eq!(response.trailers, [("x-checksum".to_owned(), "7".to_owned())]);
}

#[test]
fn h2load_through_to_nghttpd_loses_nothing() {
    let Some(nghttpd) = Nghttpd::start() else { return };
    let edge = Edge::with([App::new("hello").h2_backend().instance(nghttpd.address())]);
    let connect = format!("--connect-to={}", edge.https());
    let uri = format!("https://hello.test:{}/", edge.https().port());
    let arguments = ["-n", "3000", "-c", "10", "-m", "10", "-H", "te: trailers", &connect, &uri];
    let Some(load) = H2load::run(&arguments) else { return };
    assert_eq!((load.succeeded, load.failed), (3000, 0));
    edge.idle();
}
