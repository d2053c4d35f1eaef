//! Upgrades of a node that is brought whole prefixes.

use std::net::{IpAddr, SocketAddr};

use tests::edge::{Builder, Edge};
use tests::lab::Lab;
use tests::traffic::{Class, Http, Over, Stage, Target, Traffic};
use tests::wait;

use super::load::{assert_handed_over, upgrades};
use super::{ALL, brisk, times, transfers, turn, write_down, write_down_once};

/// Shared addresses of the prefixes.
const ADDRESSES: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

/// What is asked of the IPv6 address: new connections, which the other socket's slot decides on.
const NEW: [Class; 3] = [Class::Fresh(Over::Clear), Class::Fresh(Over::Resumed), Class::RawShort];

/// What another node sends: connections that are shared, and what lasts.
const FROM_A_PEER: [Class; 5] = [
    Class::KeepAlive(Over::Resumed),
    Class::Http2,
    Class::WebSocket,
    Class::Upload(Http::One),
    Class::RawLong,
];

#[test]
fn many_upgrades_in_a_row_lose_nothing_of_what_is_steered() {
    let _turn = turn();
    let Some(lab) = Lab::new() else { return };
    let times = times(10);
    lab.edge().run(|| {
        let stage = Stage::new();
        let [node, peer] = Builder::two_regions(stage.apps());
        let node = brisk(lab.fit(node, "steer", "xdp"))
            .set("listen", &format!("addresses = {ADDRESSES:?}"));
        let (mut edge, peer) = (node.start_until_ready(), peer.start_until_ready());
        for edge in [&edge, &peer] {
            wait::until("the nodes reach each other", || {
                edge.status()["peers"][0]["reachable"] == true
            });
        }
        assert_steered(&edge);
        let [four, six] = ADDRESSES.map(|address| at(&Target::of(&edge), address));
        let start = |target: &Target, classes: &[Class]| {
            lab.client().run(|| Traffic::start_sized(target, classes, transfers()))
        };
        let (four, six) = (start(&four, &ALL), start(&six, &NEW));
        let mesh = Traffic::start_sized(&Target::of(&peer), &FROM_A_PEER, transfers());
        four.flows();
        for _ in 0..times {
            upgrades(&mut edge, &four, 1);
            six.flows();
            mesh.flows();
        }
        let reports = [("steer", four), ("steer, IPv6", six), ("steer, from a peer", mesh)];
        let reports = reports.map(|(mode, traffic)| (mode, traffic.stop()));
        for (mode, report) in &reports {
            eprintln!("{mode}: {times} upgrades in {:.1} s\n{report}", report.took.as_secs_f64());
            write_down(mode, times, report);
        }
        write_down_once("steer", times, stage.web());
        for (_, report) in &reports {
            report.assert_nothing_lost();
        }
        assert_handed_over(&reports[0].1, times);
        assert_eq!(stage.web().duplicated(), 0, "nothing came twice");
        assert_steered(&edge);
        assert_eq!(edge.metric("ferrule_generation"), (times + 1) as f64);
    });
}

#[track_caller]
fn assert_steered(edge: &Edge) {
    let status = edge.status();
    assert_eq!([&status["listen_mode"], &status["filter_mode"]], ["steer", "xdp"], "{status}");
}

/// The same ports of another address.
fn at(target: &Target, address: &str) -> Target {
    let address: IpAddr = address.parse().unwrap();
    let [http, https, tcp] =
        [target.http, target.https, target.tcp].map(|place| SocketAddr::new(address, place.port()));
    Target { http, https, tcp, roots: target.roots.clone() }
}
