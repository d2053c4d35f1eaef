//! Upgrades of either end of a mesh: clients at one node, instances at the other.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::app::App;
use tests::edge::{Builder, Edge};
use tests::instance::Echo;
use tests::traffic::{Stage, Target, Traffic};
use tests::wait;

use super::{ALL, brisk, times, transfers, turn, upgrade, write_down, write_down_once};

#[test]
fn many_upgrades_of_both_nodes_lose_nothing_that_crosses_the_mesh() {
    let _turn = turn();
    let times = times(10); // of each
    let stage = Stage::new();
    let [mut a, mut b] = Edge::joined(Builder::two_regions(stage.apps()).map(brisk));
    let traffic = Traffic::start_sized(&Target::of(&b), &ALL, transfers());
    traffic.flows();
    for n in 0..times {
        // The node of the instances, then the node of the clients, and from time to time both at once.
        upgrade(&mut a);
        if n % 4 != 3 {
            traffic.flows();
            a.predecessors_end();
        }
        upgrade(&mut b);
        traffic.next_generation();
        traffic.flows();
        a.predecessors_end();
        b.predecessors_end();
    }
    let report = traffic.stop();
    eprintln!("{times} upgrades of each node in {:.1} s\n{report}", report.took.as_secs_f64());
    for (name, edge) in [("a", &a), ("b", &b)] {
        let metrics = edge.metrics();
        let errors = metrics.series("ferrule_errors_total").collect::<Vec<_>>();
        eprintln!("errors of {name}, over all of its generations: {errors:?}");
    }
    write_down("mesh", 2 * times, &report);
    write_down_once("mesh", 2 * times, stage.web());
    report.assert_nothing_lost();
    assert_eq!(stage.web().duplicated(), 0, "nothing came twice");
    for edge in [&a, &b] {
        assert_eq!(edge.metric("ferrule_generation"), (times + 1) as f64);
    }
}

/// Workers of a node of these tests.
const WORKERS: f64 = 2.0;

/// Node `a` for clients, node `b` with the instance.
fn joined(echo: &Echo, a: impl FnOnce(Builder) -> Builder) -> [Edge; 2] {
    let [first, second] =
        Builder::two_regions([App::new("hello").instance_on("b", echo.address())]);
    Edge::joined([a(brisk(first)), second])
}

/// Requests over connections that are open at once, so that no worker is likely to get all.
fn ask(a: &Edge) {
    let mut clients: Vec<_> = (0..40).map(|_| a.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("hello.test", "/").status, 200);
    }
}

/// Connections that `a` has to other nodes for requests; each worker has one to each at most.
fn made(a: &Edge) -> f64 {
    a.metrics().sum_with("ferrule_upstream_connections", &[("kind", "mesh")])
}

/// Waits until `b` has that many connections of `a`, the one that measures among them.
#[track_caller]
fn settles(b: &Edge, requests: f64) {
    let what = format!("{requests} connections for requests, and one that measures");
    wait::until(&what, || b.metric("ferrule_mesh_connections") == requests + 1.0);
}

#[test]
fn a_successor_has_the_connections_that_its_predecessor_had_before_it_serves() {
    let _turn = turn();
    let echo = Echo::http1();
    let [mut a, b] = joined(&echo, |a| a);
    // To a node that nobody used there is no connection, neither before nor after.
    upgrade(&mut a);
    a.predecessors_end();
    settles(&b, 0.0);
    assert_eq!(made(&a), 0.0);

    ask(&a);
    settles(&b, made(&a));
    // Every worker has one, for requests may come to any; the next successor as well, though the
    // first one's connections carried nothing.
    for _ in 0..2 {
        upgrade(&mut a);
        a.predecessors_end();
        settles(&b, WORKERS);
        assert_eq!(made(&a), WORKERS);
    }
    let log = a.log();
    let connected = log.rfind("connected to the nodes").expect("it says so");
    let ready = log.rfind("step=\"ready\"").expect("it says when it is ready");
    assert!(connected < ready, "{log}");

    ask(&a);
    assert_eq!((b.metric("ferrule_mesh_connections"), made(&a)), (WORKERS + 1.0, WORKERS));
}

#[test]
fn a_node_without_a_predecessor_connects_when_it_has_to() {
    let _turn = turn();
    let echo = Echo::http1();
    let [mut a, b] = joined(&echo, |a| a);
    ask(&a);
    settles(&b, made(&a));
    a.kill();
    a.start_again();
    settles(&b, 0.0);
    assert_eq!(made(&a), 0.0);
    assert_eq!(a.get("hello.test", "/").status, 200);
    assert_eq!(made(&a), 1.0);
    settles(&b, 1.0);
}

#[test]
fn a_successor_that_is_told_not_to_connects_when_it_has_to() {
    let _turn = turn();
    let echo = Echo::http1();
    let [mut a, b] = joined(&echo, |a| a.timeout("handoff_warm", "0s"));
    ask(&a);
    settles(&b, made(&a));
    upgrade(&mut a);
    a.predecessors_end();
    settles(&b, 0.0);
    assert_eq!(a.get("hello.test", "/").status, 200);
    settles(&b, 1.0);
}

#[test]
fn a_node_that_does_not_answer_delays_an_upgrade_by_no_more_than_its_share() {
    let _turn = turn();
    let echo = Echo::http1();
    let [mut a, mut b] = joined(&echo, |a| a.timeout("handoff_warm", "700ms"));
    ask(&a);
    settles(&b, made(&a));
    // Its kernel goes on accepting; nobody answers.
    b.signal(Signal::STOP);
    let began = Instant::now();
    upgrade(&mut a);
    let took = began.elapsed();
    b.signal(Signal::CONT);
    assert!(a.log().contains("late=true"), "{}", a.log());
    assert!(took >= Duration::from_millis(700), "{took:?}");
    a.predecessors_end();
    wait::until("the node is reached again", || a.status()["peers"][0]["reachable"] == true);
    ask(&a);
}
