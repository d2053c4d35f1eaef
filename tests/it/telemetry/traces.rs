//! One request through two nodes is one trace, of exactly the spans that there should be.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tests::app::App;
use tests::collector::{Collector, Received, Rotel, Transport};
use tests::edge::{Builder, Edge};
use tests::instance::Echo;
use tests::port::loopback;
use tests::wait;

use super::{assert_attributes, hex, is_server, named, servers, value};

const CLIENTS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The spans of one node: the request, the choice of an instance, the attempt.
struct Part {
    server: Span,
    balance: Span,
    upstream: Span,
}

impl Part {
    /// The part of the node `id`, of a trace with one attempt per node.
    #[track_caller]
    fn of(accepted: &[Received], id: &str) -> Self {
        let node = |received: &&Received| {
            let resource = received.resource.as_ref().expect("spans have a resource");
            named(&resource.attributes)["service.instance.id"] == id
        };
        let spans: Vec<Span> =
            accepted.iter().filter(node).flat_map(|received| received.spans.clone()).collect();
        let [server, balance, upstream] = <[Span; 3]>::try_from(spans).unwrap();
        let names = [&server, &balance, &upstream].map(|span| &*span.name);
        assert_eq!(names, ["GET", "balance", "upstream"]);
        assert!(is_server(&server), "{server:?}");
        assert_eq!(balance.parent_span_id, server.span_id);
        assert_eq!(upstream.parent_span_id, server.span_id);
        Self { server, balance, upstream }
    }
}

/// Whether `inner` lies in `outer`; both clocks are one, set anew once a second.
#[track_caller]
fn assert_within(inner: &Span, outer: &Span) {
    const SLACK: u64 = 1_000_000;
    let [begin, end] = [inner.start_time_unix_nano, inner.end_time_unix_nano];
    let [earliest, latest] = [outer.start_time_unix_nano, outer.end_time_unix_nano];
    assert!(
        begin <= end && begin + SLACK >= earliest && end <= latest + SLACK,
        "{inner:?} {outer:?}"
    );
}

fn one_trace_over(transport: Transport) {
    let collector = Collector::start(transport);
    let echo = Echo::http1();
    let app = App::new("hello").instance_on("b", echo.address());
    // The second node samples nothing of its own: it follows the first.
    let [a, b] = Builder::two_regions([app]).map(|node| node.exporting(&collector, transport));
    let [a, b] = Edge::joined([a.sampling(100), b.sampling(0)]);
    let mut client = a.connect();
    client.send(format!(
        "GET /bytes/5 HTTP/1.1\r\nhost: hello.test\r\ntraceparent: {CLIENTS}\r\n\
         tracestate: a=b\r\nbaggage: c=d\r\n\r\n"
    ));
    let response = client.response();
    assert_eq!((response.status, response.body.len()), (200, 5));
    let request_id = response.header("ferrule-request-id").unwrap_or_default();
    collector.wait_until("both parts have come", |collector| collector.spans().len() >= 6);
    let pids = [a.pid(), b.pid()];
    drop((a, b)); // whatever else there was would be sent now

    let accepted = collector.accepted();
    let (here, there) = (Part::of(&accepted, "a"), Part::of(&accepted, "b"));
    assert_eq!(collector.spans().len(), 6);

    // One trace, which is not the client's: that is linked.
    let trace = &here.server.trace_id;
    assert!(collector.spans().iter().all(|span| span.trace_id == *trace));
    assert_eq!(hex(&here.server.parent_span_id), "");
    let [link] = &here.server.links[..] else { panic!("{:?}", here.server) };
    let linked = format!("00-{}-{}-01", hex(&link.trace_id), hex(&link.span_id));
    assert_eq!(linked, CLIENTS);
    assert!(link.trace_id != *trace && there.server.links.is_empty());
    assert_eq!(there.server.parent_span_id, here.upstream.span_id);

    // The instance continues the last attempt.
    let seen = echo.seen();
    let [seen] = &seen[..] else { panic!("{seen:?}") };
    let told: Vec<_> = seen.headers.get_all("traceparent").iter().collect();
    let continued = format!("00-{}-{}-01", hex(trace), hex(&there.upstream.span_id));
    assert_eq!(told, [continued.as_str()]);
    for name in ["tracestate", "baggage"] {
        assert!(!seen.headers.contains_key(name), "{name}");
    }

    for part in [&here, &there] {
        assert_within(&part.balance, &part.server);
        assert_within(&part.upstream, &part.server);
    }
    // The attempt lasts until the head of the answer, the request on the other node to its end.
    let begun = there.server.start_time_unix_nano;
    assert!(begun + 1_000_000 >= here.upstream.start_time_unix_nano);
    assert!(begun <= here.upstream.end_time_unix_nano + 1_000_000);

    let request = |scheme, version| {
        [
            ("http.request.method", "GET"),
            ("url.scheme", scheme),
            ("network.protocol.version", version),
            ("http.response.status_code", "200"),
            ("http.request.body.size", "0"),
            ("http.response.body.size", "5"),
            ("ferrule.request_id", request_id),
            ("ferrule.app", "hello"),
            ("ferrule.instance", "hello-1"),
            ("ferrule.node", "b"),
            ("ferrule.attempts", "1"),
            ("ferrule.head_after_seconds", "*"),
            ("ferrule.keep", "sampled"),
            ("ferrule.verbosity", "normal"),
        ]
    };
    assert_attributes(&here.server.attributes, &request("http", "1.1"));
    assert_attributes(&there.server.attributes, &request("https", "2"));
    let work = [
        ("target", "*"),
        ("ferrule.busy_ns", "*"),
        ("ferrule.idle_ns", "*"),
        ("ferrule.polls", "*"),
    ];
    let attempt = [&work[..], &[("instance", "hello-1"), ("node", "b"), ("attempt", "1")]].concat();
    for part in [&here, &there] {
        assert_attributes(&part.balance.attributes, &work);
        assert_attributes(&part.upstream.attributes, &attempt);
        let [answered] = &part.upstream.events[..] else { panic!("{:?}", part.upstream) };
        assert_eq!(answered.name, "answered");
        let event = [("level", "DEBUG"), ("target", "*"), ("status", "200")];
        assert_attributes(&answered.attributes, &event);
    }

    for (id, region, pid) in [("a", "ams", pids[0]), ("b", "fra", pids[1])] {
        let mut resources = accepted.iter().filter_map(|received| received.resource.as_ref());
        let own = |attributes: &_| named(attributes)["service.instance.id"] == id;
        let resource = resources.find(|resource| own(&resource.attributes)).unwrap();
        let expected = [
            ("service.name", "ferrule"),
            ("service.version", "*"),
            ("service.instance.id", id),
            ("cloud.region", region),
            ("process.pid", &pid.to_string()),
            ("host.name", "*"),
        ];
        assert_attributes(&resource.attributes, &expected);
    }
}

#[test]
fn a_request_through_two_nodes_is_one_trace_over_http() {
    one_trace_over(Transport::Http);
}

#[test]
fn a_request_through_two_nodes_is_one_trace_over_grpc() {
    one_trace_over(Transport::Grpc);
}

#[test]
fn a_collector_that_nobody_here_wrote_understands_the_trace() {
    for transport in [Transport::Http, Transport::Grpc] {
        let Some(rotel) = Rotel::start("traces") else { return };
        let echo = Echo::http1();
        let app = App::new("hello").instance_on("b", echo.address());
        let [a, b] = Builder::two_regions([app])
            .map(|node| node.exporting_to(&rotel.endpoint(transport), transport));
        let [a, b] = Edge::joined([a.sampling(100), b.sampling(0)]);
        assert_eq!(a.get("hello.test", "/bytes/5").status, 200);
        let told = |label: &str| -> Vec<String> {
            let output = rotel.output();
            let lines = output.lines().filter_map(|line| line.trim().strip_prefix(label));
            let values = lines.filter_map(|rest| rest.split_once(':'));
            values.map(|(_, value)| value.trim().to_owned()).collect()
        };
        wait::until("rotel has printed both parts", || told("Name  ").len() >= 6);
        drop((a, b));
        let mut names = told("Name  ");
        names.sort();
        assert_eq!(names, ["GET", "GET", "balance", "balance", "upstream", "upstream"]);
        let [traces, ids, parents] = ["Trace ID ", "ID  ", "Parent ID "].map(told);
        assert!(traces.iter().all(|trace| *trace == traces[0]), "{traces:?}");
        let roots = parents.iter().filter(|parent| !ids.contains(parent)).count();
        assert_eq!(roots, 1, "{ids:?} {parents:?}");
    }
}

#[test]
fn a_client_does_not_decide_what_is_sampled() {
    let collector = Collector::start(Transport::Http);
    let echo = Echo::http1();
    let edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .exporting(&collector, Transport::Http)
        .sampling(0)
        .start();
    let mut client = edge.connect();
    for _ in 0..20 {
        client
            .send(format!("GET / HTTP/1.1\r\nhost: hello.test\r\ntraceparent: {CLIENTS}\r\n\r\n"));
        assert_eq!(client.response().status, 200);
    }
    drop(client);
    edge.idle();
    // The control: what is special does arrive, and alone.
    assert_eq!(edge.get("hello.test", "/status/500").status, 500);
    collector.wait_until("the failure has come", |collector| !servers(collector).is_empty());
    drop(edge);
    assert_eq!(servers(&collector).len(), 1);
    let told =
        |seen: &tests::instance::Seen| seen.headers["traceparent"].to_str().unwrap().to_owned();
    assert!(echo.seen().iter().map(told).all(|told| told.ends_with("-00") && told.len() == 55));
}

#[test]
fn a_second_attempt_is_a_second_span() {
    let collector = Collector::start(Transport::Http);
    let echo = Echo::http1();
    let dead = (loopback(9), echo.address().port()).into();
    let edge = Edge::builder()
        .app(App::new("hello").instance(dead).instance(echo.address()))
        .exporting(&collector, Transport::Http)
        .sampling(0)
        .start();
    // The more the living one has to do, the better the dead one looks.
    let mut clients = Vec::new();
    wait::until("the dead one is tried", || {
        let mut client = edge.connect();
        client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
        clients.push(client);
        echo.holds(clients.len());
        edge.metric("ferrule_retries_total") > 0.0
    });
    echo.open(clients.len());
    assert!(clients.iter_mut().all(|client| client.response().status == 200));
    drop(clients);
    wait::until("it has come", || !servers(&collector).is_empty());
    drop(edge);
    let server = servers(&collector).remove(0);
    assert_eq!(
        (&*value(&server, "ferrule.keep"), &*value(&server, "ferrule.attempts")),
        ("retried", "2")
    );
    let spans = collector.spans();
    let attempts: Vec<&Span> = spans
        .iter()
        .filter(|span| span.name == "upstream" && span.trace_id == server.trace_id)
        .collect();
    let [first, second] = attempts[..] else { panic!("{attempts:?}") };
    let code = |span: &Span| span.status.clone().unwrap_or_default().code();
    assert_eq!((code(first), code(second)), (StatusCode::Error, StatusCode::Unset));
    assert_eq!((&*value(first, "instance"), &*value(second, "instance")), ("hello-1", "hello-2"));
    let [failed] = &first.events[..] else { panic!("{first:?}") };
    assert_attributes(&failed.attributes, &[("level", "WARN"), ("target", "*"), ("code", "PC01")]);
    let [retry] = &server.events[..] else { panic!("{server:?}") };
    assert_eq!(retry.name, "retry");
    assert_within(second, &server);
    let seen = echo.seen();
    let told = seen.iter().map(|seen| seen.headers["traceparent"].to_str().unwrap());
    let trace = hex(&server.trace_id);
    let told: Vec<&str> = told.filter(|told| told.contains(&trace)).collect();
    assert_eq!(told, [format!("00-{trace}-{}-00", hex(&second.span_id))]);
}
