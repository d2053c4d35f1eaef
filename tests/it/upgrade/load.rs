//! Many upgrades in a row, every class of traffic at once.

use tests::edge::Edge;
use tests::traffic::{Class, Http, Over, Report, Stage, Target, Traffic};

use super::{ALL, brisk, times, transfers, turn, upgrade, write_down, write_down_once};

/// Upgrades `edge` so many times in a row; every class is served by every generation.
pub(super) fn upgrades(edge: &mut Edge, traffic: &Traffic, times: u64) {
    for _ in 0..times {
        upgrade(edge);
        traffic.next_generation();
        traffic.flows();
        edge.predecessors_end();
    }
}

/// Classes of which something is always on its way, so that each generation leaves some to the next.
const LASTING: [Class; 7] = [
    Class::Http2,
    Class::Download(Http::One),
    Class::Download(Http::Two),
    Class::Upload(Http::One),
    Class::Upload(Http::Two),
    Class::Grpc,
    Class::RawLong,
];

/// The drivers saw that the node was another: what lasts has outlived generations, and sessions of
/// one were resumed by the next.
pub(super) fn assert_handed_over(report: &Report, times: u64) {
    for class in LASTING {
        let tally = report.tally(class);
        assert!(tally.spanning * 2 >= times, "{class:?} outlives generations: {tally}");
    }
    for (class, clients) in
        [(Class::Fresh(Over::Resumed), 3), (Class::KeepAlive(Over::Resumed), 10)]
    {
        let tally = report.tally(class);
        let from_the_start = tally.connections - tally.resumed;
        assert!(from_the_start <= clients, "{class:?} resumes its sessions: {tally}");
    }
}

#[test]
fn many_upgrades_in_a_row_lose_nothing_of_any_class() {
    let _turn = turn();
    let times = times(20);
    let stage = Stage::new();
    let mut edge = brisk(Edge::builder()).apps(stage.apps()).start();
    let traffic = Traffic::start_sized(&Target::of(&edge), &ALL, transfers());
    traffic.flows();
    upgrades(&mut edge, &traffic, times);
    let report = traffic.stop();
    eprintln!("{times} upgrades in {:.1} s\n{report}", report.took.as_secs_f64());
    write_down("bind", times, &report);
    write_down_once("bind", times, stage.web());
    report.assert_nothing_lost();
    assert_eq!(stage.web().duplicated(), 0, "nothing came twice");
    assert_handed_over(&report, times);
    let metrics = edge.metrics();
    assert_eq!(metrics.sum("ferrule_generation"), (times + 1) as f64);
    // PP09: a client that was told to go may leave as it likes.
    let errors = metrics.series("ferrule_errors_total");
    let errors: Vec<String> = errors.filter(|series| !series.contains("PP09")).collect();
    assert!(errors.is_empty(), "{errors:?}");
}
