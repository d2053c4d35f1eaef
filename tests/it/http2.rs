//! HTTP/2 over TLS: streams side by side, flow control, trailers, resets, and what a client may not say.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use http::{HeaderMap, Method, Request};
use tests::app::App;
use tests::client::{H2, H2Response, H2load, Raw};
use tests::edge::Edge;
use tests::instance::{Echo, Nginx, Scripted};
use tests::wait::PATIENCE;

fn edge(echo: &Echo) -> Edge {
    Edge::with([App::new("hello").instance(echo.address())])
}

async fn connect(edge: &Edge) -> H2 {
    H2::connect(edge.https(), &edge.tls("hello.test")).await
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("https://hello.test{path}")).body(()).unwrap()
}

#[tokio::test]
async fn streams_of_one_connection_are_answered_side_by_side() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    let mut started = Vec::new();
    for n in 0..90 {
        let request = Request::get(format!("https://hello.test/bytes/{}", n * 100))
            .header("x-nonce", n.to_string());
        started.push(client.start(request.body(()).unwrap(), true).await.unwrap().0);
    }
    let responses = join_all(started.into_iter().map(H2Response::read)).await;
    for (n, response) in responses.into_iter().enumerate() {
        let response = response.unwrap();
        assert_eq!(response.header("x-nonce"), Some(n.to_string().as_str()));
        assert_eq!(response.body.len(), n * 100);
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_does_not_stop_the_others() {
    let Some(nginx) = Nginx::start() else { return };
    let edge = Edge::with([App::new("hello").instance(nginx.address())]);
    let mut client = connect(&edge).await;
    let request = Request::get("https://hello.test/big").body(()).unwrap();
    let (stuck, _) = client.start(request, true).await.unwrap();
    let stuck = stuck.await.unwrap(); // its body is not read: its window closes
    for _ in 0..20 {
        assert_eq!(client.get("hello.test", "/").await.body.len(), 1024);
    }
    let mut body = stuck.into_body();
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        length += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(length, Nginx::BIG);
}

#[tokio::test]
async fn an_upload_larger_than_the_window_is_echoed() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    let body: Vec<u8> = (0..1_000_000).map(|n| (n % 251) as u8).collect();
    let response = client.send(post("/echo"), body.clone()).await.unwrap();
    assert_eq!(response.body, body);
}

#[tokio::test]
async fn an_upload_is_passed_on_as_it_comes() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    let (response, mut upload) = client.start(post("/echo"), false).await.unwrap();
    upload.send_data(Bytes::from_static(b"first"), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "first");
    upload.send_data(Bytes::from_static(b"second"), true).unwrap();
    assert_eq!(body.data().await.unwrap().unwrap(), "second");
    while let Some(data) = body.data().await {
        assert!(data.unwrap().is_empty(), "only the end may follow");
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    let mut request = post("/echo");
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    let (response, mut upload) = client.start(request, false).await.unwrap();
    upload.send_data(Bytes::from_static(b"hi"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    upload.send_trailers(trailers).unwrap();
    let response = H2Response::read(response).await.unwrap();
    assert_eq!(&response.body[..], b"hi");
    assert_eq!(response.trailers.unwrap()["x-sum"], "42");
}

#[tokio::test]
async fn head_has_a_length_and_no_body() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    let request = Request::head("https://hello.test/bytes/1234").body(()).unwrap();
    let response = client.send(request, "").await.unwrap();
    assert_eq!((response.header("content-length"), response.body.len()), (Some("1234"), 0));
}

#[tokio::test]
async fn an_instance_hears_within_100_ms_that_a_stream_was_reset() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    for path in ["/hang", "/drip"] {
        let before = echo.cancelled().len();
        let request = Request::get(format!("https://hello.test{path}")).body(()).unwrap();
        let (response, mut stream) = client.start(request, true).await.unwrap();
        while echo.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        let left = Instant::now();
        stream.send_reset(Reason::CANCEL);
        drop(response);
        while echo.cancelled().len() == before {
            assert!(left.elapsed() < PATIENCE, "the instance never hears of it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = echo.cancelled()[before].duration_since(left);
        assert!(took < Duration::from_millis(100), "{path}: {took:?}");
    }
    assert_eq!(client.get("hello.test", "/bytes/3").await.body.len(), 3);
}

#[tokio::test]
async fn cookie_crumbs_are_one_field_again_for_http1() {
    //= https://www.rfc-editor.org/rfc/rfc9113#section-8.2.3
    //# these MUST be concatenated into a single octet string using the two-octet delimiter of 0x3b, 0x20
    let instance = Scripted::mirror();
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    let mut client = connect(&edge).await;
    let request =
        Request::get("https://hello.test/").header("cookie", "a=1").header("cookie", "b=2");
    let response = client.send(request.body(()).unwrap(), "").await.unwrap();
    let text = String::from_utf8_lossy(&response.body).to_lowercase();
    assert!(text.contains("\r\ncookie: a=1; b=2\r\n"), "{text}");
}

#[tokio::test]
async fn a_host_that_contradicts_the_authority_is_refused() {
    let echo = Echo::http1();
    let edge = Edge::with([
        App::new("hello").instance(echo.address()),
        App::new("other").instance(echo.address()),
    ]);
    let mut client = connect(&edge).await;
    let with_host =
        |host: &str| Request::get("https://hello.test/").header("host", host).body(()).unwrap();
    assert_eq!(client.send(with_host("hello.test"), "").await.unwrap().status, 200);
    let response = client.send(with_host("other.test"), "").await.unwrap();
    assert_eq!((response.status.as_u16(), response.error_code()), (400, Some("PP02")));
    assert_eq!(client.send(with_host("hello.test"), "").await.unwrap().status, 200);
    assert_eq!(echo.requests(), 2);
}

#[tokio::test]
async fn connect_and_trace_are_refused_and_the_connection_goes_on() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    for (method, uri) in
        [(Method::TRACE, "https://hello.test/"), (Method::CONNECT, "hello.test:443")]
    {
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        let response = client.send(request, "").await.unwrap();
        assert_eq!((response.status.as_u16(), response.error_code()), (405, Some("PP05")));
    }
    assert_eq!(client.get("hello.test", "/").await.status, 200);
    assert_eq!(echo.requests(), 1);
}

#[tokio::test]
async fn too_many_fields_are_refused_and_the_connection_goes_on() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = connect(&edge).await;
    let with_fields = |count: usize| {
        let mut request = Request::get("https://hello.test/").body(()).unwrap();
        for n in 0..count {
            request.headers_mut().append("x-many", n.to_string().parse().unwrap());
        }
        request
    };
    assert_eq!(client.send(with_fields(80), "").await.unwrap().status, 200);
    assert_eq!(client.send(with_fields(450), "").await.unwrap().status, 431);
    assert_eq!(client.send(with_fields(80), "").await.unwrap().status, 200);
    assert_eq!(echo.requests(), 2);
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_nobody_elses() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut good = connect(&edge).await;
    assert_eq!(good.get("hello.test", "/").await.status, 200);
    let mut bad = connect(&edge).await;
    let mut ended = false;
    for _ in 0..5_000 {
        let request = Request::get("https://hello.test/hang").body(()).unwrap();
        let Ok((_, mut stream)) = bad.start(request, true).await else {
            ended = true;
            break;
        };
        stream.send_reset(Reason::CANCEL);
        tokio::task::yield_now().await;
    }
    assert!(ended, "5,000 resets were taken");
    assert_eq!(good.get("hello.test", "/").await.status, 200);
}

#[test]
fn a_flood_of_control_frames_ends_the_connection() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\x0012345678";
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let edge = Edge::builder().app(app).limit("h2_control_frames_max", 200).start();
    let connect = || {
        let tls = edge.tls("hello.test").alpn(&["h2"]);
        let mut raw: Raw = tls.connect(edge.https()).unwrap();
        raw.send(PREFACE);
        raw
    };
    let answers = |raw: &mut Raw| {
        // Reads until there is nothing for a while (open) or the end (closed).
        raw.set_timeout(Duration::from_millis(500));
        loop {
            match raw.reader().some() {
                Ok(bytes) if bytes.is_empty() => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    };
    let mut modest = connect();
    modest.send(PING.repeat(50));
    assert!(answers(&mut modest), "50 PINGs are fine");
    let mut flood = connect();
    let sent = flood.try_send(PING.repeat(2_000));
    assert!(sent.is_err() || !answers(&mut flood), "2,000 PINGs are not");
    assert!(answers(&mut modest), "and concern nobody else");
}

#[test]
fn h2load_gets_an_answer_to_every_request() {
    let Some(nginx) = Nginx::start() else { return };
    let edge = Edge::with([App::new("hello").instance(nginx.address())]);
    let (uri, connect) =
        (format!("https://hello.test:{}/", edge.https().port()), edge.https().to_string());
    let connect = format!("--connect-to={connect}");
    let Some(load) = H2load::run(&["-n", "3000", "-c", "10", "-m", "10", &connect, &uri]) else {
        return;
    };
    assert_eq!((load.succeeded, load.failed), (3000, 0));
}
