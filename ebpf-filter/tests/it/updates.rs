//! Maps that follow the inventory, and what the programs say of what they did.

use std::time::{Duration, Instant};

use ebpf_filter::{AppPolicy, Config, Counters, Filter, FilterError, Limits, Mode, Verdict};
use ipnet::{IpNet, Ipv4Net};

use crate::kernel::{Own, alone};
use crate::packet::{syn, udp};
use crate::run::Program;
use crate::table::{dedicated, shared};

const PASS: u32 = 2;
const DROP: u32 = 1;

fn open(own: &Own, config: Config) -> (Filter, Program) {
    let filter = Filter::open(&Config { mode: Mode::XdpGeneric, ..config }).unwrap();
    (filter, Program::pinned(&own.program("admit_xdp")))
}

fn app(name: &str, addresses: &[&str], tcp: &[u16]) -> AppPolicy {
    AppPolicy {
        app: name.to_owned(),
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        shared: false,
        tcp: tcp.iter().map(|port| *port..=*port).collect(),
        udp: vec![],
    }
}

#[test]
fn allow_deny_and_allow_again_take_effect_when_the_call_returns() {
    alone(|own| {
        let (mut filter, program) = open(own, own.config());
        filter.replace_all(dedicated().into_iter()).unwrap();
        let one = app("one", &["198.51.100.77/32", "2001:db8::77/128"], &[443]);
        let frames = ["198.51.100.77", "2001:db8::77"].map(|to| syn(to, 443).build());
        let answers = |expected| {
            for frame in &frames {
                assert_eq!(program.run(frame, 1).unwrap().0, expected);
            }
        };
        answers(DROP);
        let started = Instant::now();
        for _ in 0..100 {
            filter.apply(&one).unwrap();
            answers(PASS);
            filter.remove("one").unwrap();
            answers(DROP);
        }
        let each = started.elapsed() / 200;
        assert!(each < Duration::from_millis(10), "{each:?} for one change");
    });
}

#[test]
fn a_hundred_thousand_addresses_load_in_batches_and_are_all_there() {
    alone(|own| {
        // Twice: the second time everything is replaced.
        let prefixes = vec!["10.0.0.0/8".parse().unwrap()];
        let (mut filter, program) = open(own, Config { prefixes, ..own.config() });
        let first = u32::from_be_bytes([10, 0, 0, 0]);
        let apps = |port: u16| {
            (0..50_000_u32).map(move |number| AppPolicy {
                app: format!("app-{number}"),
                addresses: (0..2).map(|at| host(first + number * 2 + at)).collect(),
                tcp: vec![port..=port],
                udp: vec![],
                shared: false,
            })
        };
        for port in [80, 443] {
            filter.replace_all(apps(port)).unwrap();
            let exact = filter.occupancy()[0];
            assert_eq!(exact, ("EXACT_V4", 100_000, 1 << 20));
            for address in ["10.0.0.0", "10.1.134.159"] {
                assert_eq!(
                    program.run(&syn(address, port).build(), 1).unwrap().0,
                    PASS,
                    "{address}"
                );
                assert_eq!(program.run(&syn(address, 22).build(), 1).unwrap().0, DROP);
            }
            assert_eq!(program.run(&syn("10.1.134.160", port).build(), 1).unwrap().0, DROP);
        }
        filter.replace_all(apps(80).take(10)).unwrap();
        assert_eq!(filter.occupancy()[0].1, 20);
        let counters = filter.counters();
        assert_eq!(counters.apps.len(), 12, "ten apps, nobody, and all others");
    });
}

fn host(address: u32) -> IpNet {
    Ipv4Net::new(address.into(), 32).unwrap().into()
}

#[test]
fn a_change_that_does_not_fit_is_refused_as_a_whole() {
    alone(|own| {
        let limits = Limits { addresses_max: 4, ..Limits::default() };
        let (mut filter, program) = open(own, Config { limits, ..own.config() });
        let three = ["198.51.100.1/32", "198.51.100.2/32", "198.51.100.3/32"];
        filter.replace_all(std::iter::once(app("three", &three, &[80]))).unwrap();
        let more = ["198.51.100.1/32", "198.51.100.4/32", "198.51.100.5/32", "198.51.100.6/32"];
        let error = filter.apply(&app("three", &more, &[443])).unwrap_err();
        assert!(matches!(error, FilterError::Full { map: "EXACT_V4", capacity: 4 }), "{error}");
        for address in 1..=6 {
            let expected = if address <= 3 { PASS } else { DROP };
            let to = format!("198.51.100.{address}");
            assert_eq!(program.run(&syn(&to, 80).build(), 1).unwrap().0, expected, "{to}");
            assert_eq!(program.run(&syn(&to, 443).build(), 1).unwrap().0, DROP, "{to}");
        }
        assert_eq!(filter.occupancy()[0], ("EXACT_V4", 3, 4));
    });
}

#[test]
fn counters_tell_verdicts_and_apps_apart() {
    alone(|own| {
        let (mut filter, program) = open(own, own.config());
        filter.replace_all(dedicated().into_iter().chain(shared())).unwrap();
        program.run(&syn("198.51.100.7", 443).build(), 5).unwrap();
        program.run(&syn("198.51.100.7", 22).build(), 3).unwrap();
        program.run(&udp("2001:db8::9", 53).build(), 2).unwrap();
        program.run(&syn("198.51.100.250", 5432).build(), 4).unwrap();
        let counters = filter.counters();
        assert_eq!(counters.of(Verdict::PassAllowed), 11);
        assert_eq!(counters.of(Verdict::DropPort), 3);
        let of = |counters: &Counters, name: &str| {
            let app = counters.apps.iter().find(|(app, _)| app == name).expect(name).1;
            (app.allowed, app.dropped)
        };
        assert_eq!(of(&counters, "web"), (5, 3));
        assert_eq!(of(&counters, "many"), (2, 0));
        assert_eq!(of(&counters, ""), (4, 0), "the shared addresses");
        // Another app that gets the number begins at nought.
        filter.remove("web").unwrap();
        filter.apply(&app("new", &["198.51.100.7/32"], &[443])).unwrap();
        assert_eq!(of(&filter.counters(), "new"), (0, 0));
    });
}

#[test]
fn sampled_drops_say_where_and_why_and_do_not_flood() {
    alone(|own| {
        let (mut filter, program) = open(own, own.config());
        filter.replace_all(dedicated().into_iter()).unwrap();
        program.run(&syn("2001:db8::7", 22).build(), 1).unwrap();
        program.run(&udp("198.51.100.250", 53).build(), 1).unwrap();
        let drops = filter.drops();
        let [port, address] = drops.as_slice() else { panic!("{drops:?}") };
        assert_eq!(port.verdict, Verdict::DropPort);
        assert_eq!(port.destination, Some("2001:db8::7".parse().unwrap()));
        assert_eq!((port.port, port.app.as_deref()), (Some(22), Some("web")));
        assert_eq!(address.verdict, Verdict::DropAddress);
        assert_eq!(address.destination, Some("198.51.100.250".parse().unwrap()));
        assert_eq!((address.port, address.app.as_deref()), (Some(53), None));
        assert!(port.at <= address.at);

        // Every drop may be reported, a hundred in a second are; a second may end meanwhile.
        program.run(&syn("198.51.100.250", 22).build(), 100_000).unwrap();
        let flood = filter.drops().len();
        assert!((100..=256).contains(&flood), "{flood} reports");
        assert_eq!(filter.counters().of(Verdict::DropAddress), 100_001);
    });
}

#[test]
fn one_drop_of_many_is_reported_and_the_first_one_always() {
    alone(|own| {
        let config = Config { sample_drops_every: 1000, ..own.config() };
        let (mut filter, program) = open(own, config);
        filter.replace_all(dedicated().into_iter()).unwrap();
        program.run(&syn("198.51.100.250", 22).build(), 1).unwrap();
        assert_eq!(filter.drops().len(), 1);
        program.run(&syn("198.51.100.250", 22).build(), 5000).unwrap();
        assert_eq!(filter.drops().len(), 6);
    });
}

#[test]
fn a_dry_run_counts_and_passes() {
    alone(|own| {
        let dry = Config { dry_run: true, ..own.config() };
        let (mut filter, program) = open(own, dry);
        filter.replace_all(dedicated().into_iter()).unwrap();
        let frame = syn("198.51.100.7", 22).build();
        assert_eq!(program.run(&frame, 1).unwrap().0, PASS);
        assert_eq!(filter.counters().of(Verdict::DropPort), 1);
        assert_eq!(filter.drops().len(), 1);
        // The switch is in the maps, so the next process turns it back for the program that runs.
        let (_filter, _replaced) = open(own, own.config());
        assert_eq!(program.run(&frame, 1).unwrap().0, DROP);
    });
}
