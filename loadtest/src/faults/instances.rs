//! Instances that die, stop, and talk nonsense.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::instance::Instance;
use super::{Bar, Fault, Phases, RATE};
use crate::beside::Beside;
use crate::client::Stream;
use crate::client::http1::Http1;
use crate::node::Node;
use crate::node::config::{App, DOMAIN, Setup};
use crate::options::Common;
use crate::process::{free, wait_until};
use crate::suite::Part;
use crate::verdict::Check;

pub(super) const ALL: &[Fault] = &[
    Fault {
        name: "instance-dies",
        in_short: true,
        run: dies,
        about: "One of three instances is killed, and started again.",
    },
    Fault {
        name: "instance-stops",
        in_short: true,
        run: stops,
        about: "One of three instances is stopped (SIGSTOP): its kernel takes connections, nobody answers.",
    },
    Fault {
        name: "sole-instance-stops",
        in_short: true,
        run: sole,
        about: "The only instance is stopped: nothing can be done but to say so in time.",
    },
    Fault {
        name: "instance-garbage",
        in_short: true,
        run: |common, part| odd(common, part, "garbage", &RETRIED),
        about: "One of three instances answers with bytes that are no HTTP.",
    },
    Fault {
        name: "instance-half",
        in_short: true,
        run: |common, part| odd(common, part, "half-body", &CUT),
        about: "One of three instances ends each answer in the middle of its body.",
    },
    Fault {
        name: "instance-closes",
        in_short: false,
        run: |common, part| odd(common, part, "closed", &RETRIED),
        about: "One of three instances closes each connection instead of answering.",
    },
    Fault {
        name: "instance-slow",
        in_short: true,
        run: slow,
        about: "One of three instances takes a second for each answer.",
    },
];

const RETRIED: Bar = Bar {
    errors_share_max: 0.01,
    errors_end: None,
    why: "a GET may be sent to another instance, within the retry budget",
};

const CUT: Bar = Bar {
    errors_share_max: 0.05,
    errors_end: None,
    why: "the head is through when it fails, so the client sees it until the instance is put aside",
};

/// A node and three instances, the second of which is the one that breaks.
struct Three {
    node: Node,
    instances: RefCell<Vec<Option<Instance>>>,
    port: u16,
}

const BROKEN: usize = 1;

/// Three connections that are refused while it starts again, and an instance is left alone for 5 s:
/// without waiting for that, nobody would see what it says.
const LEFT_ALONE: Duration = Duration::from_secs(6);

impl Three {
    fn start(common: &Common, count: usize) -> Result<Self> {
        let port = free()?.port();
        let mut setup = Setup::new(&common.ferrule)?;
        if common.short {
            setup = setup.set("timeouts", "response_head", "\"2s\"");
        }
        let mut app = App::web("web", &setup.ports, address(0, port));
        let start = |index| Ok(Some(Instance::start(address(index, port), &[])?));
        let instances: Vec<Option<Instance>> = (0..count).map(start).collect::<Result<_>>()?;
        for index in 1..count {
            app = app.instance(&format!("web-{}", index + 1), "a", address(index, port).ip());
        }
        let node = Node::start(&setup.app(app))?;
        Ok(Self { node, instances: RefCell::new(instances), port })
    }

    fn beside(&self) -> Result<Beside> {
        Beside::start(&self.node, &host(), "/", RATE)
    }

    fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        self.instances.borrow()[index].as_ref().context("it lives")?.signal(signal)
    }

    fn kill(&self, index: usize) -> Result<()> {
        let instance = self.instances.borrow_mut()[index].take();
        instance.context("it lives")?.kill()
    }

    fn revive(&self, index: usize, options: &[&str]) -> Result<()> {
        let instance = Instance::start(address(index, self.port), options)?;
        self.instances.borrow_mut()[index] = Some(instance);
        Ok(())
    }

    /// Whether it answers requests of clients again.
    fn serves_from(&self, index: usize, patience: Duration) -> bool {
        let wanted = address(index, self.port).ip().to_string();
        wait_until(patience, || {
            let stream = Stream::clear(self.node.http());
            let answer = stream.and_then(|stream| Http1::new(stream).get(&host(), "/who"));
            answer.is_ok_and(|answer| String::from_utf8_lossy(&answer.body) == wanted)
        })
    }
}

fn host() -> String {
    format!("web.{DOMAIN}")
}

fn address(index: usize, port: u16) -> SocketAddr {
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2 + index as u8)), port).into()
}

fn dies(common: &Common, part: &mut Part) -> Result<()> {
    let three = Three::start(common, 3)?;
    let bar = Bar { errors_share_max: 0.0, errors_end: None, why: RETRIED.why };
    Phases::of(common).run(
        part,
        &bar,
        &|| three.beside(),
        || three.kill(BROKEN),
        || three.revive(BROKEN, &[]),
    )?;
    returns(part, &three);
    Ok(())
}

fn stops(common: &Common, part: &mut Part) -> Result<()> {
    let three = Three::start(common, 3)?;
    Phases::of(common).run(
        part,
        &RETRIED,
        &|| three.beside(),
        || three.signal(BROKEN, Signal::STOP),
        || three.signal(BROKEN, Signal::CONT),
    )?;
    returns(part, &three);
    Ok(())
}

fn returns(part: &mut Part, three: &Three) {
    let began = Instant::now();
    let back = three.serves_from(BROKEN, Duration::from_secs(30));
    let measured =
        if back { format!("{:.1} s", began.elapsed().as_secs_f64()) } else { "never".into() };
    part.check(
        Check::that("it gets requests again", "≤ 30 s after the last phase", measured, back)
            .because("the longer it was broken, the longer it is left alone, up to 60 s"),
    );
}

fn sole(common: &Common, part: &mut Part) -> Result<()> {
    let three = Three::start(common, 1)?;
    let ask = || -> Result<(u16, f64)> {
        let began = Instant::now();
        let stream = Stream::clear(three.node.http())?;
        stream.set_patience(Duration::from_secs(30))?;
        let answer = Http1::new(stream).get(&host(), "/")?;
        Ok((answer.status, began.elapsed().as_secs_f64()))
    };
    let (status, _) = ask()?;
    part.check(Check::that("control: before", "200", status, status == 200));
    three.signal(0, Signal::STOP)?;
    let (status, seconds) = ask()?;
    part.check(Check::that("while it is stopped", "504", status, status == 504));
    let most = if common.short { 4.0 } else { 15.0 };
    part.check(Check::at_most("the client is told after", "s", most, seconds, 1));
    three.signal(0, Signal::CONT)?;
    let began = Instant::now();
    let back = wait_until(Duration::from_secs(10), || {
        thread::sleep(Duration::from_millis(50));
        matches!(ask(), Ok((200, _)))
    });
    let measured = format!("{:.1} s", began.elapsed().as_secs_f64());
    part.check(Check::that("it serves again after", "≤ 10 s", measured, back));
    Ok(())
}

fn odd(common: &Common, part: &mut Part, name: &str, bar: &Bar) -> Result<()> {
    let three = Three::start(common, 3)?;
    Phases::of(common).run(
        part,
        bar,
        &|| three.beside(),
        || {
            three.kill(BROKEN)?;
            three.revive(BROKEN, &["--odd", name])?;
            thread::sleep(LEFT_ALONE);
            Ok(())
        },
        || {
            three.kill(BROKEN)?;
            three.revive(BROKEN, &[])
        },
    )?;
    Ok(())
}

fn slow(common: &Common, part: &mut Part) -> Result<()> {
    let three = Three::start(common, 3)?;
    let bar = Bar { errors_share_max: 0.0, errors_end: None, why: "slow is no error" };
    let seen = Phases::of(common).run(
        part,
        &bar,
        &|| three.beside(),
        || {
            three.kill(BROKEN)?;
            three.revive(BROKEN, &["--wait", "1000"])
        },
        || {
            three.kill(BROKEN)?;
            three.revive(BROKEN, &[])
        },
    )?;
    let slow = seen.share_above(900.0);
    part.check(
        Check::at_most("answers that took a second", "%", 10.0, 100.0 * slow, 1)
            .because("a third of the instances is slow; the cheaper of two is chosen")
            .timed(),
    );
    Ok(())
}
