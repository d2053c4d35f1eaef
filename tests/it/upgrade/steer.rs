//! Upgrades of a node that is brought whole prefixes.

use std::net::{IpAddr, SocketAddr};

use tests::lab::Lab;
use tests::traffic::{Class, Http, Over, Stage, Target, Traffic};

use super::load::upgrades;
use super::{brisk, times, transfers, turn};

/// Shared addresses of the prefixes.
const ADDRESSES: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];

/// What is asked of the IPv4 address; of the other one, new connections only.
const CLASSES: [Class; 9] = [
    Class::Fresh(Over::Clear),
    Class::Fresh(Over::Resumed),
    Class::KeepAlive(Over::Clear),
    Class::Http2,
    Class::WebSocket,
    Class::Download(Http::One),
    Class::Grpc,
    Class::RawShort,
    Class::RawLong,
];

#[test]
fn many_upgrades_in_a_row_lose_nothing_of_what_is_steered() {
    let _turn = turn();
    let Some(lab) = Lab::new() else { return };
    let times = times(20);
    lab.edge().run(|| {
        let stage = Stage::new();
        let node = brisk(lab.node("steer", "xdp"))
            .set("listen", &format!("addresses = {ADDRESSES:?}"))
            .apps(stage.apps());
        let mut edge = node.start_until_ready();
        let status = edge.status();
        assert_eq!([&status["listen_mode"], &status["filter_mode"]], ["steer", "xdp"], "{status}");
        let [four, six] = ADDRESSES.map(|address| at(&Target::of(&edge), address));
        let start = |target: &Target, classes: &[Class]| {
            lab.client().run(|| Traffic::start_sized(target, classes, transfers()))
        };
        let (four, six) = (start(&four, &CLASSES), start(&six, &CLASSES[..2]));
        four.flows();
        for _ in 0..times {
            upgrades(&mut edge, &four, 1);
            six.flows();
        }
        for report in [four.stop(), six.stop()] {
            eprintln!("{report}");
            report.assert_nothing_lost();
        }
        assert_eq!(stage.web().duplicated(), 0, "nothing came twice");
        let status = edge.status();
        assert_eq!([&status["listen_mode"], &status["filter_mode"]], ["steer", "xdp"], "{status}");
        assert_eq!(edge.metric("ferrule_generation"), (times + 1) as f64);
    });
}

/// The same ports of another address.
fn at(target: &Target, address: &str) -> Target {
    let address: IpAddr = address.parse().unwrap();
    let [http, https, tcp] =
        [target.http, target.https, target.tcp].map(|place| SocketAddr::new(address, place.port()));
    Target { http, https, tcp, roots: target.roots.clone() }
}
