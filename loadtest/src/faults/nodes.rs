//! Nodes that die, stop, and cannot be reached. Clients reach `a`; the app's instances are on `b` and
//! `c`, so every request passes the mesh.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::relay::Relay;
use super::{Bar, Fault, Phases, RATE};
use crate::authority::Authority;
use crate::beside::Beside;
use crate::node::Node;
use crate::node::config::{App, DOMAIN, Ports, Setup};
use crate::options::Common;
use crate::origin::Origin;
use crate::process::free;
use crate::suite::Part;
use crate::verdict::Check;

pub(super) const ALL: &[Fault] = &[
    Fault {
        name: "node-dies",
        in_short: true,
        run: dies,
        about: "A node with half of the instances is killed, and started again.",
    },
    Fault {
        name: "node-stops",
        in_short: false,
        run: stops,
        about: "The same node is stopped (SIGSTOP).",
    },
    Fault {
        name: "node-cut-off",
        in_short: true,
        run: |common, part| wire(common, part, true, true),
        about: "Nothing gets through between two nodes, in either direction; no connection is closed.",
    },
    Fault {
        name: "node-one-way",
        in_short: true,
        run: |common, part| wire(common, part, false, true),
        about: "Nothing gets through from the other node; what is sent to it does.",
    },
];

const BAR: Bar = Bar {
    errors_share_max: 0.02,
    errors_end: Some(10),
    why: "until it is noticed (a probe each second, 3 s of patience) requests are on their way there",
};

/// Three nodes; between `a` and each other is a wire that can be cut, so that both are equally far.
struct Edge {
    a: Node,
    /// `b` and `c`.
    others: [RefCell<Option<Node>>; 2],
    wires: [Relay; 2],
    setups: [Setup; 2],
    /// Of `b` and `c`.
    origins: [Origin; 2],
    /// Which of them breaks, and how many requests its instance had got until then.
    victim: Cell<usize>,
    before: Cell<u64>,
}

impl Edge {
    fn start(common: &Common) -> Result<Self> {
        let origin = Origin::start()?;
        let second = Origin::beside(&origin, 2)?;
        let authority = Authority::new()?;
        let meshes = [free()?, free()?, free()?];
        let wires = [Relay::to(meshes[1])?, Relay::to(meshes[2])?];
        let ports = Setup::new(&common.ferrule)?.ports;
        let mut setups = Vec::new();
        for (index, id) in ["a", "b", "c"].into_iter().enumerate() {
            let ip = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + index as u8));
            let place = Ports { ip, ..ports };
            let mut setup =
                Setup::at(&common.ferrule, place).set("node", "id", format!("\"{id}\""));
            if common.short {
                setup = setup.set("timeouts", "response_head", "\"2s\"");
            }
            setup.tail = mesh(id, &meshes, &wires);
            let (chain, key) = authority.node(id)?;
            setup.files = vec![
                ("mesh.pem".to_owned(), chain.into_bytes()),
                ("mesh.key".to_owned(), key.into_bytes()),
                ("mesh-ca.pem".to_owned(), authority.pem().into_bytes()),
            ];
            setups.push(setup);
        }
        let app = |setup: &Setup| {
            let mut app = App::web("web", &setup.ports, origin.address());
            app.instances = vec![
                ("web-1".to_owned(), "b".to_owned(), origin.address().ip()),
                ("web-2".to_owned(), "c".to_owned(), second.address().ip()),
            ];
            app
        };
        let mut started = Vec::new();
        for setup in setups {
            let app = app(&setup);
            let setup = setup.app(app);
            started.push((Node::start(&setup)?, setup));
        }
        let [(a, _), (b, of_b), (c, of_c)] = <[_; 3]>::try_from(started).ok().context("three")?;
        let edge = Self {
            a,
            others: [RefCell::new(Some(b)), RefCell::new(Some(c))],
            wires,
            setups: [of_b, of_c],
            origins: [origin, second],
            victim: Cell::default(),
            before: Cell::default(),
        };
        // Nodes find each other within the probes' interval.
        std::thread::sleep(Duration::from_secs(3));
        Ok(edge)
    }

    fn beside(&self) -> Result<Beside> {
        Beside::start(&self.a, &format!("web.{DOMAIN}"), "/", RATE)
    }

    /// The one that serves most is the one to break: a fault of a node that nobody is sent to would
    /// prove nothing.
    fn choose(&self) {
        let served = |index: usize| self.origins[index].seen().requests.load(SeqCst);
        let victim = usize::from(served(1) > served(0));
        self.victim.set(victim);
        self.before.set(served(victim));
    }

    fn served(&self, part: &mut Part) {
        let before = self.before.get();
        part.check(Check::that("control: it got requests before", "> 0", before, before > 0));
    }

    fn node(&self) -> &RefCell<Option<Node>> {
        &self.others[self.victim.get()]
    }

    fn wire(&self) -> &Relay {
        &self.wires[self.victim.get()]
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.node().borrow().as_ref().context("it lives")?.signal(signal)
    }
}

/// Of `a`, the addresses of the others are ends of wires.
fn mesh(id: &str, meshes: &[SocketAddr; 3], wires: &[Relay; 2]) -> String {
    let own = meshes[["a", "b", "c"].iter().position(|other| *other == id).unwrap_or_default()];
    let mut text = format!(
        "[mesh]\naddress = \"{own}\"\ncertificate = \"mesh.pem\"\nkey = \"mesh.key\"\nca = \"mesh-ca.pem\"\n"
    );
    for (other, address) in ["a", "b", "c"].into_iter().zip(meshes) {
        if other == id {
            continue;
        }
        let address = match (id, other) {
            ("a", "b") => wires[0].address(),
            ("a", "c") => wires[1].address(),
            _ => *address,
        };
        write!(
            text,
            "[[mesh.peers]]\nid = \"{other}\"\nregion = \"ams\"\naddress = \"{address}\"\n"
        )
        .expect("a String takes everything");
    }
    text
}

fn dies(common: &Common, part: &mut Part) -> Result<()> {
    let kill = |edge: &Edge| {
        edge.signal(Signal::KILL)?;
        drop(edge.node().borrow_mut().take());
        Ok(())
    };
    let start = |edge: &Edge| {
        let setup = &edge.setups[edge.victim.get()];
        *edge.node().borrow_mut() = Some(Node::start(setup)?);
        Ok(())
    };
    phases(common, part, kill, start)
}

fn stops(common: &Common, part: &mut Part) -> Result<()> {
    phases(common, part, |edge| edge.signal(Signal::STOP), |edge| edge.signal(Signal::CONT))
}

fn wire(common: &Common, part: &mut Part, forth: bool, back: bool) -> Result<()> {
    let cuts = |forth, back| {
        move |edge: &Edge| {
            edge.wire().cuts(forth, back);
            Ok(())
        }
    };
    phases(common, part, cuts(forth, back), cuts(false, false))
}

/// What clients see before the victim breaks, meanwhile, and when it is mended.
fn phases(
    common: &Common,
    part: &mut Part,
    breaks: impl FnOnce(&Edge) -> Result<()>,
    mends: impl FnOnce(&Edge) -> Result<()>,
) -> Result<()> {
    let edge = Edge::start(common)?;
    let begin = || {
        edge.choose();
        breaks(&edge)
    };
    Phases::of(common).run(part, &BAR, &|| edge.beside(), begin, || mends(&edge))?;
    edge.served(part);
    Ok(())
}
