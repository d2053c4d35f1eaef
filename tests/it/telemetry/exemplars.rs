//! From a bucket of a histogram to the request that fell into it.

use std::collections::BTreeSet;

use tests::app::App;
use tests::client::Raw;
use tests::collector::{Collector, Transport};
use tests::edge::Edge;
use tests::instance::Echo;
use tests::wait;

use super::{hex, servers};

fn exemplars(edge: &Edge) -> BTreeSet<String> {
    let accept = "application/openmetrics-text;version=1.0.0";
    let mut client = Raw::tcp(edge.admin());
    client.send(format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n"));
    let scrape = client.response();
    let ids = scrape.text().split("# {trace_id=\"").skip(1);
    ids.map(|rest| rest.split('"').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn an_exemplar_leads_to_a_kept_trace() {
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .exporting(&collector, Transport::Http)
        .sampling(100)
        .start();
    for _ in 0..20 {
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    wait::until("there are exemplars", || !exemplars(&edge).is_empty());
    let ids = exemplars(&edge);
    for id in &ids {
        wait::until("its record is there", || edge.command(&["trace", "show", id]).code == 0);
    }
    drop(edge);
    let known: BTreeSet<String> =
        servers(&collector).iter().map(|span| hex(&span.trace_id)).collect();
    assert!(ids.is_subset(&known), "{ids:?} {known:?}");
}

#[test]
fn what_is_not_kept_is_no_exemplar() {
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .exporting(&collector, Transport::Http)
        .sampling(0)
        .start();
    for _ in 0..20 {
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    edge.idle();
    assert_eq!(exemplars(&edge), BTreeSet::new());
}
