//! The counts can count: nothing is lost while nothing happens, and something of every class where
//! a node is replaced without care.

use std::time::Duration;

use rustix::process::Signal;
use tests::edge::Edge;
use tests::traffic::{Report, Size, Stage, Target, Traffic};

use super::{ALL, turn};

#[test]
fn a_node_that_is_left_alone_loses_nothing() {
    let _turn = turn();
    let stage = Stage::new();
    let edge = Edge::with(stage.apps());
    let traffic = Traffic::start(&Target::of(&edge), &ALL);
    std::thread::sleep(Duration::from_secs(5));
    let report = traffic.stop();
    eprintln!("{report}");
    report.assert_nothing_lost();
    for (class, tally) in &report.tallies {
        let surprises = (tally.again, tally.crossed, tally.unannounced, tally.spanning);
        assert_eq!(surprises, (0, 0, 0, 0), "{class:?}: {tally}");
    }
    assert_eq!(stage.web().duplicated(), 0);
}

/// Traffic of every class while `replace` does what it does to the node.
fn replaced(replace: impl FnOnce(&mut Edge)) -> Report {
    let stage = Stage::new();
    let mut edge = Edge::with(stage.apps());
    let size = Size { within: Duration::from_secs(4), ..Size::default() };
    let traffic = Traffic::start_sized(&Target::of(&edge), &ALL, size);
    traffic.flows();
    replace(&mut edge);
    traffic.next_generation();
    traffic.loses();
    traffic.flows();
    let report = traffic.stop();
    eprintln!("{report}");
    report
}

#[test]
fn a_naive_restart_loses_something_of_every_class() {
    let _turn = turn();
    replaced(|edge| {
        edge.signal(Signal::TERM);
        edge.stopped();
        edge.start_again();
    });
}

#[test]
fn a_kill_and_a_start_lose_something_of_every_class() {
    let _turn = turn();
    let report = replaced(|edge| {
        edge.kill();
        edge.start_again();
    });
    let reset = report.tallies.iter().filter(|(_, tally)| tally.reset > 0).count();
    assert!(reset > 3, "what was on its way is cut: {report}");
}
