//! Whole prefixes, every port: what somebody asked for reaches its app with the destination that
//! the client meant, and nothing else reaches anybody.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::edge::{Builder, Edge};
use tests::instance::Scripted;
use tests::lab::{Attempt, Cgroup, Lab, any_address, attempt, attempt_all};
use tests::wait;

/// What happens to a connection that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// Its first packet is dropped in the kernel.
    Dropped,
    /// It is accepted and closed.
    AcceptedAndClosed,
    /// Nothing listens there.
    Refused,
}

/// How long a SYN may be unanswered until it counts as dropped.
pub(crate) const UNANSWERED: Duration = Duration::from_millis(900);

/// How long a SYN that is to be answered may wait: a lost one is sent again after a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// Name, addresses, and first and last ports.
type App = (&'static str, &'static [&'static str], &'static [(u16, u16)]);

/// Every app of these tests with where it is, and the shared addresses.
pub(crate) const APPS: [App; 3] = [
    ("db", &["198.51.100.7", "2001:db8:1::7"], &[(22, 22), (5432, 5432)]),
    ("many", &["198.51.100.9", "198.51.100.200", "2001:db8:1:9::9"], &[(7000, 7100), (9900, 9900)]),
    ("shared", &["198.51.100.1", "2001:db8:1::1"], &[(443, 443)]),
];

/// The apps' files, beside instances that say what they were told.
pub(crate) struct Apps {
    instances: BTreeMap<&'static str, Scripted>,
}

impl Apps {
    /// Instances that answer with the PROXY protocol header they were sent, after the app's name.
    pub(crate) fn start() -> Self {
        let instance = |name: &'static str| {
            Scripted::start(move |connection| {
                let mut header = String::new();
                while !header.ends_with("\r\n") {
                    header.push(char::from(connection.exactly(1)?[0]));
                }
                connection.send(format!("{name} {header}"))
            })
        };
        Self { instances: APPS.iter().map(|(name, ..)| (*name, instance(name))).collect() }
    }

    /// The file of one app.
    pub(crate) fn file(&self, app: &str) -> String {
        let (name, addresses, ports) =
            APPS.iter().find(|(name, ..)| *name == app).expect("an app of these tests");
        let own =
            if *name == "shared" { String::new() } else { format!("addresses = {addresses:?}\n") };
        let internal = self.instances[name].address();
        let mut text = format!(
            "app = {name:?}\n{own}[[services]]\nprotocol = \"tcp\"\ninternal_port = {}\n",
            internal.port()
        );
        for (first, last) in *ports {
            text += &format!(
                "[[services.ports]]\nstart_port = {first}\nend_port = {last}\n\
                 handlers = [\"proxy_proto\"]\nproxy_proto_options = {{ version = \"v1\" }}\n"
            );
        }
        text + &format!(
            "[[instances]]\nid = \"{name}-1\"\nnode = \"a\"\naddress = \"{}\"\n",
            internal.ip()
        )
    }

    /// A node with all of them.
    pub(crate) fn on(&self, node: Builder) -> Builder {
        let node = node.set("listen", &format!("addresses = {:?}", APPS[2].1));
        APPS.iter().fold(node, |node, (name, ..)| node.app_file(name, &self.file(name)))
    }
}

/// Whose (address, port) it is.
fn owner(destination: SocketAddr) -> Option<&'static str> {
    let (ip, port) = (destination.ip().to_string(), destination.port());
    let wants = |(_, addresses, ports): &&App| {
        addresses.contains(&ip.as_str())
            && ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
    };
    APPS.iter().find(wants).map(|(name, ..)| *name)
}

/// Different numbers every time; failures name the destination they are about.
fn random() -> impl FnMut() -> u128 {
    let mut state = u64::from(std::process::id())
        ^ std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    move || {
        let mut next = || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            u128::from(z ^ (z >> 31))
        };
        next() << 64 | next()
    }
}

/// `wanted` pairs that somebody asked for and as many that nobody did: among those, ports of other
/// apps at an app's address, and any port of any address.
pub(crate) fn pairs(wanted: usize) -> Vec<SocketAddr> {
    let mut random = random();
    let below = |random: u128, n: usize| (random >> 64) as usize % n;
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    while ours.len() < wanted || others.len() < wanted {
        let (_, addresses, _) = APPS[below(random(), APPS.len())];
        let (_, _, ports) = APPS[below(random(), APPS.len())];
        let address: IpAddr = match random() % 3 {
            0 => any_address(random().is_multiple_of(2), random()),
            _ => addresses[below(random(), addresses.len())].parse().expect("an address"),
        };
        let port = match random() % 4 {
            0 => (random() % 65_535 + 1) as u16,
            _ => {
                let (first, last) = ports[below(random(), ports.len())];
                first + (random() % u128::from(last - first + 1)) as u16
            }
        };
        let destination = SocketAddr::new(address, port);
        let list = if owner(destination).is_some() { &mut ours } else { &mut others };
        if list.len() < wanted {
            list.push(destination);
        }
    }
    ours.into_iter().chain(others).collect()
}

/// Attempts all pairs from the client's namespace and holds each to what is expected.
#[track_caller]
pub(crate) fn hold_to_account(lab: &Lab, pairs: &[SocketAddr], stranger: Stranger) {
    let (ours, others): (Vec<_>, Vec<_>) =
        pairs.iter().copied().partition(|destination| owner(*destination).is_some());
    let attempts = lab.client().run(|| {
        let answered = attempt_all(&ours, PATIENCE);
        answered.into_iter().chain(attempt_all(&others, UNANSWERED)).collect::<Vec<_>>()
    });
    for (destination, attempt) in ours.iter().chain(&others).zip(attempts) {
        match (owner(*destination), attempt) {
            (Some(app), Attempt::Answered(said)) => {
                // "db PROXY TCP4 198.51.100.254 198.51.100.7 41234 5432"
                let words: Vec<&str> = said.split_whitespace().collect();
                let (to, port) = (destination.ip().to_string(), destination.port().to_string());
                assert_eq!((words[0], words[4], words[6]), (app, &to[..], &port[..]), "{said}");
            }
            (None, Attempt::Silent) if stranger == Stranger::Dropped => {}
            (None, Attempt::Closed) if stranger == Stranger::AcceptedAndClosed => {}
            (None, Attempt::Refused) if stranger == Stranger::Refused => {}
            (owner, attempt) => panic!("{destination} of {owner:?}: {attempt:?}"),
        }
    }
}

/// 200 random pairs at a node that listens and filters like this.
fn judge_200_pairs(
    lab: &Lab,
    node: impl FnOnce() -> Builder + Send,
    modes: [&str; 2],
    stranger: Stranger,
) {
    lab.edge().run(|| {
        let apps = Apps::start();
        let edge = apps.on(node()).start_until_ready();
        let status = edge.status();
        assert_eq!([&status["listen_mode"], &status["filter_mode"]], modes, "{status}");
        let accepted = || edge.metric("ferrule_downstream_accepted_total");
        let before = accepted();
        hold_to_account(lab, &pairs(100), stranger);
        let expected = if stranger == Stranger::AcceptedAndClosed { 200.0 } else { 100.0 };
        assert_eq!(accepted() - before, expected, "connections that reached accept");
        assert_eq!(edge.errors("PE01"), expected - 100.0);
        edge.idle();
    });
}

fn judge_in_mode(filter: &str) {
    let Some(lab) = Lab::new() else { return };
    let node = || lab.node("steer", filter);
    judge_200_pairs(&lab, node, ["steer", filter], Stranger::Dropped);
}

#[test]
fn xdp_lets_in_what_was_asked_for() {
    judge_in_mode("xdp");
}

#[test]
fn generic_xdp_lets_in_what_was_asked_for() {
    judge_in_mode("xdp-generic");
}

#[test]
fn tcx_lets_in_what_was_asked_for() {
    judge_in_mode("tcx");
}

#[test]
fn a_cgroup_lets_in_what_was_asked_for() {
    let (Some(lab), Some(group)) = (Lab::new(), Cgroup::new()) else { return };
    let words: Vec<_> = lab.wrapper().into_iter().chain(group.wrapper()).collect();
    let node = || {
        lab.node("steer", "cgroup")
            .set("filter", &format!("cgroup = {:?}", group.path()))
            .through(&words)
    };
    judge_200_pairs(&lab, node, ["steer", "cgroup"], Stranger::Dropped);
}

#[test]
fn without_a_filter_the_node_judges_after_accept() {
    let Some(lab) = Lab::new() else { return };
    let node = || lab.node("steer", "off");
    judge_200_pairs(&lab, node, ["steer", "off"], Stranger::AcceptedAndClosed);
}

#[test]
fn a_dry_run_counts_and_lets_the_node_judge() {
    let Some(lab) = Lab::new() else { return };
    let node = || lab.node("steer", "xdp").set("filter", "dry_run = true");
    judge_200_pairs(&lab, node, ["steer", "xdp"], Stranger::AcceptedAndClosed);
}

#[test]
fn without_capabilities_each_port_is_bound() {
    let Some(lab) = Lab::new() else { return };
    let mut words = lab.wrapper();
    words.extend(["setpriv", "--bounding-set=-bpf,-sys_admin,-perfmon", "--"].map(str::to_owned));
    lab.edge().run(|| {
        let apps = Apps::start();
        let edge = apps.on(lab.node("auto", "auto").through(&words)).start_until_ready();
        let status = edge.status();
        assert_eq!(
            [&status["listen_mode"], &status["filter_mode"]],
            ["bind", "userspace"],
            "{status}"
        );
        let reason = status["listen_reason"].as_str().expect("a reason");
        assert!(reason.contains("CAP_"), "{reason}");
        assert!(!status["filter_reasons"].as_array().expect("a list").is_empty(), "{status}");
        hold_to_account(&lab, &pairs(100), Stranger::Refused);
    });
}

#[test]
fn steering_without_prefixes_is_a_mistake_and_without_capabilities_no_start() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let node = lab.node("steer", "off").set("listen", "prefixes = []").gives_up();
        assert_eq!(node.code, 64, "{}", node.stderr);
        let mut words = lab.wrapper();
        words.extend(["setpriv", "--bounding-set=-bpf,-sys_admin", "--"].map(str::to_owned));
        let node = lab.node("steer", "off").through(&words).gives_up();
        assert_eq!(node.code, 77, "{}", node.stderr);
        assert!(node.stderr.contains("CAP_BPF"), "{}", node.stderr);
    });
}

#[test]
fn whoever_finds_the_groups_own_port_is_nobodys_client() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let apps = Apps::start();
        // Shared addresses everywhere, so that nothing but the destination speaks against it.
        let node =
            apps.on(lab.node("steer", "off")).set("listen", "addresses = [\"0.0.0.0\", \"::\"]");
        let edge = node.start_until_ready();
        let own = group_ports(&edge);
        assert_eq!(own.len(), 2, "one of each family: {own:?}");
        for address in &own {
            assert_eq!(attempt(*address, UNANSWERED), Attempt::Closed, "{address}");
        }
        assert_eq!(edge.errors("PE01"), 2.0);
        assert!(matches!(
            lab.client().run(|| attempt("198.51.100.77:443".parse().unwrap(), UNANSWERED)),
            Attempt::Answered(_)
        ));
    });
}

/// Loopback addresses on which the node listens and that are not its admin page.
fn group_ports(edge: &Edge) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for (table, host) in [("tcp", "127.0.0.1"), ("tcp6", "::1")] {
        let table = std::fs::read_to_string(format!("/proc/{}/net/{table}", edge.pid())).unwrap();
        let loopback = if host == "::1" { "00000000000000000000000001000000" } else { "0100007F" };
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (ip, port) = fields[1].split_once(':').unwrap();
            let address =
                SocketAddr::new(host.parse().unwrap(), u16::from_str_radix(port, 16).unwrap());
            let sockets = std::fs::read_dir(format!("/proc/{}/fd", edge.pid())).unwrap();
            let wanted = format!("socket:[{}]", fields[9]);
            let is_its = sockets.flatten().any(|fd| {
                std::fs::read_link(fd.path()).is_ok_and(|link| link.to_string_lossy() == wanted)
            });
            if fields[3] == "0A" && ip == loopback && is_its && address != edge.admin() {
                found.push(address);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn nothing_new_comes_in_once_the_node_drains() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let echo = tests::instance::Echo::http1();
        let text = format!(
            "app = \"web\"\nhostnames = [\"web.test\"]\naddresses = [\"198.51.100.7\"]\n\
             [[services]]\ninternal_port = {}\n[[services.ports]]\nport = 80\nhandlers = [\"http\"]\n\
             [[instances]]\nid = \"web-1\"\nnode = \"a\"\naddress = \"{}\"\n",
            echo.address().port(),
            echo.address().ip()
        );
        let mut edge = lab.node("steer", "xdp").app_file("web", &text).start_until_ready();
        let web: SocketAddr = "198.51.100.7:80".parse().unwrap();
        let mut busy = lab.client().run(|| tests::client::Raw::tcp(web));
        busy.send("GET /gate HTTP/1.1\r\nhost: web.test\r\n\r\n");
        echo.holds(1);
        edge.signal(rustix::process::Signal::TERM);
        wait::until("nobody is accepted any more", || {
            lab.client().run(|| tests::client::Raw::try_tcp(web)).is_err()
        });
        echo.open(1);
        assert_eq!(busy.response().text(), "through the gate");
        edge.stopped();
    });
}
