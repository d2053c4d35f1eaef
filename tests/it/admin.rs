//! The admin pages: what dashboards and probes rely on.

use tests::app::App;
use tests::client::Raw;
use tests::edge::Edge;
use tests::instance::Echo;
use tests::wait;

fn edge(echo: &Echo) -> Edge {
    Edge::with([App::new("hello").instance(echo.address())])
}

#[test]
fn the_probes_and_pages_answer() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    for page in ["/", "/livez", "/readyz", "/metrics", "/status", "/inventory", "/memory.json"] {
        let response = edge.admin_get(page);
        assert_eq!(response.status, 200, "{page}");
        assert!(!response.body.is_empty(), "{page}");
    }
    assert_eq!(edge.admin_get("/nothing-here").status, 404);
}

#[test]
fn a_node_that_says_it_is_ready_serves_its_apps() {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let edge = Edge::builder().app(app).start_until_ready();
    assert_eq!(edge.get("hello.test", "/").status, 200);
}

#[test]
fn the_address_is_read_only() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    for method in ["POST", "PUT", "DELETE"] {
        let mut client = Raw::tcp(edge.admin());
        client.send(format!("{method} /status HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"));
        assert_eq!(client.response().status, 405, "{method}");
    }
}

#[test]
fn the_named_metrics_exist_before_anything_happened() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let metrics = edge.metrics();
    for name in [
        "ferrule_downstream_connections",
        "ferrule_requests_in_flight",
        "ferrule_errors_total",
        "ferrule_permits_in_use",
        "ferrule_upstream_connections",
        "ferrule_memory_bytes",
        "ferrule_inventory_age_seconds",
        "ferrule_generation",
        "ferrule_tasks",
    ] {
        assert!(metrics.has(name), "{name}");
    }
    for kind in ["allocated", "active", "resident", "retained", "mapped", "metadata"] {
        assert!(
            metrics.sum_with("ferrule_memory_bytes", &[("kind", kind)]) > 0.0 || kind == "retained",
            "{kind}"
        );
    }
}

#[test]
fn requests_are_counted_by_app_and_class() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = edge.connect();
    for status in [200, 200, 404, 500] {
        assert_eq!(client.get("hello.test", &format!("/status/{status}")).status, status);
    }
    let count = |class: &str| {
        let labels = [("app", "hello"), ("class", class)];
        edge.metrics().sum_with("ferrule_requests_total", &labels)
    };
    wait::until("all are counted", || {
        (count("2xx"), count("4xx"), count("5xx")) == (2.0, 1.0, 1.0)
    });
    assert_eq!(edge.metric("ferrule_request_duration_seconds_count"), 4.0);
    assert_eq!(edge.metric("ferrule_downstream_connections"), 1.0);
    drop(client);
    edge.idle();
}

#[test]
fn what_is_in_flight_shows_while_it_is() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let mut client = edge.connect();
    client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    assert_eq!(edge.metric("ferrule_requests_in_flight"), 1.0);
    assert_eq!(edge.metric("ferrule_permits_in_use"), 1.0);
    assert_eq!(edge.status()["requests_in_flight"], 1);
    echo.open(1);
    assert_eq!(client.response().status, 200);
    wait::until("it is gone", || edge.metric("ferrule_permits_in_use") == 0.0);
}

#[test]
fn the_inventory_page_shows_apps_and_their_instances() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let page: serde_json::Value =
        serde_json::from_slice(&edge.admin_get("/inventory").body).unwrap();
    let app = &page["apps"][0];
    assert_eq!((&app["name"], &app["hostnames"][0]), (&"hello".into(), &"hello.test".into()));
    assert_eq!(app["instances"][0]["id"], "hello-1");
}
