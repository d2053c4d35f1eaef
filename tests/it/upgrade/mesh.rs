//! Upgrades of either end of a mesh: clients at one node, instances at the other.

use tests::edge::{Builder, Edge};
use tests::traffic::{Stage, Target, Traffic};

use super::{ALL, brisk, times, transfers, turn, upgrade};

#[test]
fn many_upgrades_of_both_nodes_lose_nothing_that_crosses_the_mesh() {
    let _turn = turn();
    let times = times(20) / 2; // of each
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
    report.assert_nothing_lost();
    assert_eq!(stage.web().duplicated(), 0, "nothing came twice");
    for edge in [&a, &b] {
        assert_eq!(edge.metric("ferrule_generation"), (times + 1) as f64);
    }
}
