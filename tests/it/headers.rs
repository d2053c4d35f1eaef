//! What the instance is told about the client, and the client about who served it: nothing a
//! client can forge, nothing that ends at this hop.

use std::collections::BTreeSet;

use http::Request;
use tests::app::App;
use tests::client::H2;
use tests::edge::Edge;
use tests::instance::Scripted;

fn mirror(app: impl FnOnce(App) -> App) -> (Scripted, Edge) {
    let instance = Scripted::mirror();
    let edge = Edge::with([app(App::new("hello").instance(instance.address()))]);
    (instance, edge)
}

/// The fields of a mirrored request, names in lower case, in order.
fn fields(request: &str) -> Vec<(String, String)> {
    let lines = request.split("\r\n").skip(1).take_while(|line| !line.is_empty());
    let pairs = lines.map(|line| line.split_once(':').expect("a field"));
    pairs.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect()
}

fn all<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let matching = fields.iter().filter(|(held, _)| held == name);
    matching.map(|(_, value)| value.as_str()).collect()
}

#[test]
fn the_instance_is_told_exactly_this_of_a_client() {
    let (_instance, edge) = mirror(|app| app);
    for secure in [false, true] {
        let mut client = if secure { edge.connect_tls("hello.test") } else { edge.connect() };
        client.send("GET / HTTP/1.1\r\nhost: hello.test\r\nuser-agent: x\r\n\r\n");
        let fields = fields(client.response().text());
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        let set: BTreeSet<&str> =
            names.iter().copied().filter(|name| *name != "traceparent").collect();
        let wanted = BTreeSet::from([
            "host",
            "user-agent",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-port",
            "x-forwarded-ssl",
            "ferrule-client-ip",
            "ferrule-region",
            "ferrule-request-id",
            "x-request-start",
            "via",
        ]);
        assert_eq!(set, wanted);
        assert_eq!(
            names.len(),
            names.iter().collect::<BTreeSet<_>>().len(),
            "each once: {names:?}"
        );
        let port = if secure { edge.https() } else { edge.http() }.port().to_string();
        let (proto, ssl) = if secure { ("https", "on") } else { ("http", "off") };
        for (name, value) in [
            ("host", "hello.test"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", proto),
            ("x-forwarded-port", &port),
            ("x-forwarded-ssl", ssl),
            ("ferrule-client-ip", "127.0.0.1"),
            ("ferrule-region", "ams"),
            ("via", "1.1 ferrule"),
        ] {
            assert_eq!(all(&fields, name), [value], "{name}");
        }
        let id = all(&fields, "ferrule-request-id")[0];
        assert!(id.len() == 30 && id.ends_with("-ams"), "{id}");
        let start = all(&fields, "x-request-start")[0];
        assert!(start.starts_with("t=") && start[2..].parse::<u64>().is_ok(), "{start}");
    }
}

#[test]
fn no_forged_word_about_the_client_gets_through() {
    let (_instance, edge) = mirror(|app| app.top("compat = \"fly\""));
    let forged = "6.6.6.6";
    let mut client = edge.connect();
    for lines in [
        "x-forwarded-for: 6.6.6.6\r\nx-forwarded-for: 6.6.6.6\r\n",
        "X-FORWARDED-FOR: 6.6.6.6\r\nFerrule-Client-IP: 6.6.6.6\r\nFly-Client-IP: 6.6.6.6\r\n",
        "ferrule-client-ip: 6.6.6.6\r\nconnection: ferrule-client-ip\r\n",
        "connection: x-forwarded-for, ferrule-client-ip, ferrule-region, via, host\r\n",
        "ferrule_client_ip: 6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\nX_Forwarded-For: 6.6.6.6\r\n",
        "forwarded: for=6.6.6.6\r\nx-real-ip: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\n",
        "ferrule-region: 6.6.6.6\r\nferrule-request-id: 6.6.6.6\r\nx-request-start: 6.6.6.6\r\n",
        "x-forwarded-proto: 6.6.6.6\r\nx-forwarded-port: 6.6.6.6\r\nx-forwarded-ssl: 6.6.6.6\r\n",
        "fly-region: 6.6.6.6\r\nfly-request-id: 6.6.6.6\r\nfly_client_ip: 6.6.6.6\r\n",
    ] {
        client.send(format!("GET / HTTP/1.1\r\nhost: hello.test\r\n{lines}\r\n"));
        let response = client.response();
        let fields = fields(response.text());
        for (name, value) in [
            ("host", "hello.test"),
            ("x-forwarded-for", "127.0.0.1"),
            ("ferrule-client-ip", "127.0.0.1"),
            ("fly-client-ip", "127.0.0.1"),
            ("ferrule-region", "ams"),
            ("x-forwarded-proto", "http"),
        ] {
            assert_eq!(all(&fields, name), [value], "{name} after {lines:?}");
        }
        assert!(!response.text().contains(forged), "{lines:?} became {}", response.text());
    }
}

#[tokio::test]
async fn no_forged_word_about_the_client_gets_through_over_http2() {
    let (_instance, edge) = mirror(|app| app);
    let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let mut request = Request::get("https://hello.test/").body(()).unwrap();
    for name in
        ["x-forwarded-for", "ferrule-client-ip", "ferrule_client_ip", "forwarded", "x-real-ip"]
    {
        request.headers_mut().append(name, "6.6.6.6".parse().unwrap());
        request.headers_mut().append(name, "6.6.6.6".parse().unwrap());
    }
    let response = client.send(request, "").await.unwrap();
    let text = String::from_utf8_lossy(&response.body);
    assert!(!text.contains("6.6.6.6"), "{text}");
    assert_eq!(all(&fields(&text), "ferrule-client-ip"), ["127.0.0.1"]);
    assert_eq!(all(&fields(&text), "via"), ["2 ferrule"]);
    assert_eq!(all(&fields(&text), "host"), ["hello.test"]);
}

#[test]
fn what_ends_at_this_hop_does_not_reach_the_instance() {
    let (_instance, edge) = mirror(|app| app);
    let mut client = edge.connect();
    client.send(
        "GET / HTTP/1.1\r\nhost: hello.test\r\nconnection: x-secret, keep-alive\r\n\
         x-secret: 1\r\nx-kept: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n\
         proxy-authorization: Basic eA==\r\nte: gzip\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    );
    let response = client.response();
    let fields = fields(response.text());
    for name in [
        "x-secret",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "http2-settings",
        "upgrade",
        "transfer-encoding",
    ] {
        assert_eq!(all(&fields, name), [""; 0], "{name} in {}", response.text());
    }
    assert_eq!(all(&fields, "x-kept"), ["1"]);
}

#[test]
fn what_ends_at_this_hop_does_not_reach_the_client() {
    let instance = Scripted::answering(
        "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-secret\r\nx-secret: 1\r\nx-kept: 1\r\n\
         keep-alive: timeout=5\r\nproxy-authenticate: Basic\r\nproxy-connection: x\r\n\
         upgrade: h2c\r\ncontent-length: 2\r\n\r\nok",
    );
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    let response = edge.get("hello.test", "/");
    assert_eq!((response.status, response.header("x-kept")), (200, Some("1")));
    for name in ["x-secret", "keep-alive", "proxy-authenticate", "proxy-connection", "upgrade"] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert!(response.header_all("connection").is_empty(), "{response:?}");
}

#[test]
fn repeated_fields_keep_their_order() {
    let instance = Scripted::answering(
        "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nset-cookie: a=3\r\n\
         content-length: 0\r\n\r\n",
    );
    let edge = Edge::with([App::new("hello").instance(instance.address())]);
    let mut client = edge.connect();
    client.send("GET / HTTP/1.1\r\nhost: hello.test\r\nx-a: 3\r\nx-a: 1\r\nx-a: 2\r\n\r\n");
    assert_eq!(client.response().header_all("set-cookie"), ["a=1", "b=2", "a=3"]);
    assert_eq!(all(&fields(&instance.request(1)), "x-a"), ["3", "1", "2"]);
}

#[test]
fn the_client_is_told_who_served_it_unless_the_app_says_pristine() {
    let instance =
        Scripted::answering("HTTP/1.1 200 OK\r\nserver: own\r\ncontent-length: 0\r\n\r\n");
    let edge = Edge::with([
        App::new("hello").instance(instance.address()),
        App::new("pure").port("http_options.response.pristine = true").instance(instance.address()),
    ]);
    let signed = edge.get("hello.test", "/");
    assert_eq!(signed.header("server"), Some("ferrule"));
    assert_eq!(signed.header("via"), Some("1.1 ferrule"));
    assert!(signed.header("ferrule-request-id").unwrap().ends_with("-ams"));
    let pure = edge.get("pure.test", "/");
    assert_eq!(pure.header("server"), Some("own"));
    assert_eq!((pure.header("via"), pure.header("ferrule-request-id")), (None, None));
}

#[test]
fn the_app_sets_and_removes_response_fields() {
    let instance = Scripted::answering(
        "HTTP/1.1 200 OK\r\nx-powered-by: php\r\nx-set: old\r\ncontent-length: 0\r\n\r\n",
    );
    let app = App::new("hello")
        .port("http_options.response.headers = { x-powered-by = false, x-set = \"new\" }")
        .instance(instance.address());
    let edge = Edge::with([app]);
    let response = edge.get("hello.test", "/");
    assert_eq!((response.header("x-powered-by"), response.header("x-set")), (None, Some("new")));
}

#[test]
fn each_request_has_an_id_of_its_own_and_the_same_on_both_sides() {
    let (instance, edge) = mirror(|app| app);
    let mut client = edge.connect();
    let mut ids = BTreeSet::new();
    for n in 1..=20 {
        let response = client.get("hello.test", "/");
        let told = response.header("ferrule-request-id").unwrap().to_owned();
        assert_eq!(all(&fields(&instance.request(n)), "ferrule-request-id"), [told.as_str()]);
        ids.insert(told);
    }
    assert_eq!(ids.len(), 20);
}
