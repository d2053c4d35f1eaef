//! What two generations share: a hard limit.

use tests::app::App;
use tests::edge::Edge;
use tests::traffic::{Class, Stage, Target, Traffic};
use tests::wait;

use super::{brisk, times, turn, upgrade};

const HARD: u32 = 50;

fn patient(apps: [App; 4]) -> tests::edge::Builder {
    brisk(Edge::builder()).timeout("queue", "60s").limit("queue_length_max", 1_000).apps(apps)
}

#[test]
fn two_generations_together_never_exceed_a_hard_limit() {
    let _turn = turn();
    let stage = Stage::new().hard_limit(HARD);
    let mut edge = patient(stage.apps()).start();
    let traffic = Traffic::start(&Target::of(&edge), &[Class::Crowd]);
    let full = || wait::until("the instance is full", || stage.web().in_flight() == HARD as usize);
    for _ in 0..times(5) {
        full();
        upgrade(&mut edge);
        traffic.next_generation();
        traffic.flows();
        full();
        edge.predecessors_end();
    }
    let report = traffic.stop();
    eprintln!("{report}");
    report.assert_nothing_lost();
    assert!(report.tally(Class::Crowd).spanning > 0, "requests outlive their generation: {report}");
    assert_eq!(stage.web().in_flight_max(), HARD as usize);
    assert_eq!(stage.web().duplicated(), 0);
}

#[test]
fn two_nodes_that_share_nothing_exceed_it_together() {
    let _turn = turn();
    let stage = Stage::new().hard_limit(HARD);
    let edges = [patient(stage.apps()).start(), patient(stage.apps()).start()];
    let traffic = edges.each_ref().map(|edge| Traffic::start(&Target::of(edge), &[Class::Crowd]));
    wait::until("each fills the limit", || stage.web().in_flight_max() == 2 * HARD as usize);
    for traffic in traffic {
        traffic.stop().assert_nothing_lost();
    }
}
