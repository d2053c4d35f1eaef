//! Which requests are kept, and that there is an end to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::app::App;
use tests::collector::{Collector, Transport};
use tests::edge::{Builder, Edge};
use tests::instance::{Echo, Scripted};
use tests::port::free_address;
use tests::wait;

use super::{dropped, kept, servers, value};

fn node(collector: &Collector, echo: &Echo) -> Builder {
    Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .exporting(collector, Transport::Http)
        .sampling(0)
}

#[test]
fn what_went_wrong_and_what_was_slow_is_kept_and_nothing_else() {
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let slow = Scripted::start(|connection| {
        loop {
            connection.request()?;
            std::thread::sleep(Duration::from_millis(400));
            connection.ok("late")?;
        }
    });
    let edge = node(&collector, &echo)
        .app(App::new("slow").instance(slow.address()))
        .app(App::new("gone").instance(free_address(1)))
        .telemetry("telemetry.records", "slow = \"300ms\"")
        .start();
    for _ in 0..50 {
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    assert_eq!(edge.get("hello.test", "/status/404").status, 404);
    edge.get("nobody.test", "/").assert_error(404, "PE01");
    assert_eq!(edge.get("slow.test", "/").text(), "late");
    edge.get("gone.test", "/").assert_error(502, "PC01");
    assert_eq!(edge.get("hello.test", "/status/503").status, 503);
    collector.wait_until("they have come", |collector| servers(collector).len() >= 4);
    edge.stop();

    let told = servers(&collector);
    let told: BTreeMap<(String, String), String> = told
        .iter()
        .map(|span| {
            let why = (value(span, "ferrule.app"), value(span, "http.response.status_code"));
            (why, value(span, "ferrule.keep") + " " + &value(span, "error.type"))
        })
        .collect();
    let expected = [
        // Nobody's, but an error with a code of our own.
        (("", "404"), "error PE01"),
        (("gone", "502"), "error PC01"),
        (("hello", "503"), "error 503"),
        (("slow", "200"), "slow "),
    ];
    let expected = expected.map(|((app, status), why)| ((app.into(), status.into()), why.into()));
    assert_eq!(told, BTreeMap::from(expected));
    assert_eq!(servers(&collector).len(), 4);
}

#[test]
fn a_sample_is_all_or_nothing_at_its_ends() {
    for (percent, expected) in [(100, 20_u8), (0, 0)] {
        let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
        let edge = node(&collector, &echo).sampling(percent).start();
        let mut client = edge.connect();
        for _ in 0..20 {
            assert_eq!(client.get("hello.test", "/").status, 200);
        }
        drop(client);
        edge.idle();
        assert_eq!(kept(&edge, "sampled"), f64::from(expected));
        edge.stop();
        assert_eq!(servers(&collector).len(), usize::from(expected), "{percent} %");
    }
}

#[test]
fn what_ends_near_an_anomaly_is_kept() {
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let edge = node(&collector, &echo).limit("requests_in_flight_max", 1).start();
    assert_eq!(edge.get("hello.test", "/").status, 200);
    let mut first = edge.connect();
    first.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    assert_eq!(kept(&edge, "near_anomaly"), 0.0, "nothing has happened yet");
    edge.get("hello.test", "/").assert_error(503, "PL03");
    echo.open(1);
    assert_eq!(first.response().status, 200);
    wait::until("it is kept", || kept(&edge, "near_anomaly") == 1.0);
    assert_eq!(kept(&edge, "error"), 1.0);
}

#[test]
fn what_ends_in_a_drain_is_kept() {
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let mut edge = node(&collector, &echo).start();
    let mut client = edge.connect();
    client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    edge.signal(Signal::TERM);
    wait::until("it drains", || edge.log().contains("draining"));
    wait::until("nobody is accepted any more", || {
        tests::client::Raw::try_tcp(edge.http()).is_err()
    });
    echo.open(1);
    assert_eq!(client.response().status, 200);
    edge.stopped();
    let told = servers(&collector);
    let [server] = &told[..] else { panic!("{told:?}") };
    assert_eq!(value(server, "ferrule.keep"), "near_anomaly");
}

#[test]
fn a_second_has_room_for_so_many_and_the_others_are_counted() {
    const REQUESTS: u32 = 300;
    const NODE_MAX: u32 = 4;
    const APP_MAX: u32 = 3;
    let (collector, echo) = (Collector::start(Transport::Http), Echo::http1());
    let edge = node(&collector, &echo)
        .app(App::new("other").instance(echo.address()))
        .sampling(100)
        .telemetry("telemetry.records", &format!("exports_per_second_max = {NODE_MAX}"))
        .telemetry("telemetry.records", &format!("app_exports_per_second_max = {APP_MAX}"))
        .start();
    let mut client = edge.connect();
    let start = Instant::now();
    for request in 0..REQUESTS {
        let host = if request % 2 == 0 { "hello.test" } else { "other.test" };
        assert_eq!(client.get(host, "/").status, 200);
    }
    // One more than have passed, because they need not begin together.
    let seconds = start.elapsed().as_secs_f64().ceil() + 1.0;
    drop(client);
    edge.idle();
    let (node, app) = (dropped(&edge, "cap"), dropped(&edge, "app_cap"));
    let kept = kept(&edge, "sampled");
    assert_eq!(kept + node + app, f64::from(REQUESTS));
    assert!((f64::from(NODE_MAX)..=f64::from(NODE_MAX) * seconds).contains(&kept), "{kept}");
    assert!(node > 0.0 && app > 0.0, "{node} {app}");
    edge.stop();
    assert_eq!(servers(&collector).len() as f64, kept);
}
