//! A network of a test's own: an edge and a client, each in a namespace, with a cable between them.
//!
//! ```text
//!   edge's namespace                               client's namespace
//!   198.51.100.0/24, 2001:db8:1::/48 ─ e0 ══════ c0 ─ 198.51.100.254, 2001:db8:ffff::2
//!   (local: every address is the edge's)
//! ```
//!
//! Both whole prefixes lead to the edge, as they would by BGP. Nothing has a name on the machine:
//! namespaces, cable, routes and a BPF file system live in two child processes and go with them,
//! even if the test is killed. A test does its work inside a namespace with [`Namespace::run`];
//! sockets and child processes it makes there belong there.

pub mod anycast;
mod bird;
mod cgroup;
mod flood;
mod namespace;
mod probe;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use tempfile::TempDir;

use crate::edge::{Builder, Edge, binary};
use crate::need;
use crate::process::{Outcome, run};

pub use bird::Bird;
pub use cgroup::Cgroup;
pub use flood::syn_flood;
pub use namespace::Namespace;
pub use probe::{Attempt, attempt, attempt_all};

/// The two namespaces.
pub struct Lab {
    edge: Namespace,
    client: Namespace,
    /// Where the edge's processes see a BPF file system; for all others it is an empty folder.
    bpf: TempDir,
}

/// The prefixes that lead to the edge.
pub const PREFIXES: [&str; 2] = ["198.51.100.0/24", "2001:db8:1::/48"];

/// The edge's side of the cable.
pub const INTERFACE: &str = "e0";

/// The client's own address, the only one of the prefix that is not the edge's.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);

/// Addresses that lead to the client although it does not have them: the sources of a flood.
pub const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xf, 0, 0, 0, 0);

/// Neighbours are written down, so that no packet of a test waits for another to be answered.
const EDGE: &str = "\
link set lo up
link set e0 address 02:00:00:00:00:01 up
addr add 2001:db8:ffff::1/64 dev e0 nodad
route add local 198.51.100.0/24 dev lo
route add 198.51.100.254/32 dev e0 table local
neigh add 198.51.100.254 lladdr 02:00:00:00:00:02 dev e0 nud permanent
neigh add 2001:db8:ffff::2 lladdr 02:00:00:00:00:02 dev e0 nud permanent
-6 route add local 2001:db8:1::/48 dev lo
-6 route add 2001:db8:ffff:f::/64 via 2001:db8:ffff::2
";

const CLIENT: &str = "\
link set lo up
link set c0 address 02:00:00:00:00:02 up
addr add 198.51.100.254/32 dev c0
route add 198.51.100.253/32 dev c0
neigh add 198.51.100.253 lladdr 02:00:00:00:00:01 dev c0 nud permanent
route add 198.51.100.0/24 via 198.51.100.253 dev c0
addr add 2001:db8:ffff::2/64 dev c0 nodad
neigh add 2001:db8:ffff::1 lladdr 02:00:00:00:00:01 dev c0 nud permanent
-6 route add 2001:db8:1::/48 via 2001:db8:ffff::1
";

// === impl Lab ===

impl Lab {
    /// A lab, or `None` after noting that this machine does not let the test have one.
    ///
    /// # Panics
    /// With `CI=true` when it cannot be had, and when it can but does not come up.
    pub fn new() -> Option<Self> {
        for name in ["ip", "nsenter", "unshare", "setpriv"] {
            need::tool(name)?;
        }
        let bpf = TempDir::with_prefix("ferrule-bpf-").expect("a temporary folder");
        let spaces = Namespace::with_bpf(bpf.path()).and_then(|edge| Ok((edge, Namespace::new()?)));
        let (edge, client) = match spaces {
            Ok(spaces) => spaces,
            Err(error) => {
                need::skip(&format!("no network namespace with a BPF file system: {error}"));
                return None;
            }
        };
        let (e, c) = (edge.pid().to_string(), client.pid().to_string());
        let cable = format!("link add name e0 netns {e} type veth peer name c0 netns {c}");
        ip(&cable.split(' ').collect::<Vec<_>>());
        edge.run(|| ip_lines(EDGE));
        client.run(|| ip_lines(CLIENT));
        Some(Self { edge, client, bpf })
    }

    /// Where the edge runs.
    pub fn edge(&self) -> &Namespace {
        &self.edge
    }

    /// Where clients run.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// A folder of pins on the edge's own BPF file system.
    pub fn pins(&self) -> String {
        self.bpf.path().join("ferrule").display().to_string()
    }

    /// The command that brings a program before the edge's BPF file system.
    pub fn wrapper(&self) -> Vec<String> {
        let target = self.edge.pid().to_string();
        ["nsenter", "--target", &target, "--mount", "--"].map(str::to_owned).to_vec()
    }

    /// A node that listens by `listen` ("steer", "bind", "auto") on the lab's prefixes and filters
    /// by `filter`, to be started inside the edge's namespace. It has no cgroup unless told.
    pub fn node(&self, listen: &str, filter: &str) -> Builder {
        self.fit(Edge::builder(), listen, filter)
    }

    /// The same of a node that is described already.
    pub fn fit(&self, node: Builder, listen: &str, filter: &str) -> Builder {
        node.set("listen", &format!("mode = {listen:?}"))
            .set("listen", "addresses = [\"0.0.0.0\", \"::\"]")
            .set("listen", &format!("prefixes = {PREFIXES:?}"))
            .set("filter", &format!("mode = {filter:?}"))
            .set("filter", &format!("interfaces = [{INTERFACE:?}]"))
            .set("filter", &format!("pins = {:?}", self.pins()))
            .set("filter", "sample_drops_every = 1")
            .through(&self.wrapper())
    }

    /// Runs `ferrule <arguments>` inside the edge's namespace, to its end.
    pub fn command(&self, arguments: &[&str]) -> Outcome {
        let words = self.wrapper();
        self.edge.run(|| {
            let mut command = Command::new(&words[0]);
            run(command.args(&words[1..]).arg(binary()).args(arguments))
        })
    }
}

/// Every address of the lab's prefixes but the client's, from two random numbers.
pub fn any_address(v6: bool, random: u128) -> IpAddr {
    if v6 {
        let base = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0));
        Ipv6Addr::from(base | random >> 48).into()
    } else {
        let last = u8::try_from(random % 253 + 1).expect("at most 253");
        Ipv4Addr::new(198, 51, 100, last).into()
    }
}

/// Runs `ip` with every line.
fn ip_lines(lines: &str) {
    lines.lines().for_each(|line| ip(&line.split(' ').collect::<Vec<_>>()));
}

fn ip(arguments: &[&str]) {
    let tool = need::tool("ip").expect("looked for when the lab began");
    let outcome = run(Command::new(tool).args(arguments));
    assert_eq!(outcome.code, 0, "ip {arguments:?}: {}", outcome.stderr);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;

    use super::*;

    #[test]
    fn whole_prefixes_lead_to_the_edge_and_answers_lead_back() {
        let Some(lab) = Lab::new() else { return };
        for (bound, destination) in
            [("0.0.0.0:4000", "198.51.100.77:4000"), ("[::]:4001", "[2001:db8:1:2::3]:4001")]
        {
            let listener = lab.edge().run(|| TcpListener::bind(bound).expect("a free port"));
            let mut client =
                lab.client().run(|| TcpStream::connect(destination).expect("the edge answers"));
            let (server, _) = listener.accept().expect("a connection");
            assert_eq!(server.local_addr().expect("it is connected").to_string(), destination);
            drop(server);
            assert_eq!(client.read(&mut [0]).expect("the end"), 0);
        }
    }

    #[test]
    fn a_random_address_is_of_the_prefix_and_not_the_clients() {
        let (v4, v6) = (PREFIXES[0].parse::<ipnet::IpNet>(), PREFIXES[1].parse::<ipnet::IpNet>());
        let (v4, v6) = (v4.expect("a prefix"), v6.expect("a prefix"));
        for n in 0..1_000_u128 {
            let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            assert!(v4.contains(&any_address(false, random)));
            assert_ne!(any_address(false, random), IpAddr::from(CLIENT_V4));
            assert!(v6.contains(&any_address(true, random)));
        }
    }

    #[test]
    fn a_namespace_goes_with_its_lab_even_after_a_panic() {
        let Some(lab) = Lab::new() else { return };
        let pid = lab.edge().pid();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        std::thread::scope(|scope| {
            let failing = scope.spawn(|| {
                let _lab = lab;
                std::panic::resume_unwind(Box::new("a test failed"));
            });
            assert!(failing.join().is_err());
        });
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
