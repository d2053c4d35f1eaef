//! Changes on disk until they are told to end: apps, instances and certificates a few at a time, and
//! now and then the whole inventory at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::node::Node;
use crate::node::config::{App, DOMAIN};

pub(super) struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Changes>>,
}

/// How much was changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub single: u64,
    pub reloads: u64,
}

/// Apps that come and go.
pub(super) const APPS: u64 = 50;

/// Names of each, beside its own.
const NAMES: u64 = 8;

const PAUSE: Duration = Duration::from_millis(500);

/// The app that comes and goes as number `number`.
pub(super) fn name(number: u64) -> String {
    format!("churn-{number}")
}

impl Churn {
    /// `apps` are always there: the first of them gets and loses an instance at `second`, and all of
    /// them are written anew each `period`.
    pub(super) fn start(
        node: &Arc<Node>,
        apps: Vec<App>,
        second: SocketAddr,
        period: Duration,
    ) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (stopped, node) = (stop.clone(), node.clone());
        let run = move || {
            let mut changes = Changes::default();
            let mut written = Instant::now();
            while !stopped.load(SeqCst) {
                one(&node, &apps[0], second, changes.single)?;
                changes.single += 1;
                if written.elapsed() >= period {
                    written = Instant::now();
                    changes.reloads += 1;
                    reload(&node, &apps, changes.reloads)?;
                }
                thread::sleep(PAUSE);
            }
            Ok(changes)
        };
        Self { stop, thread: thread::spawn(run) }
    }

    pub(super) fn end(self) -> Result<Changes> {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("churn does not panic")
    }
}

/// An app comes or goes; another gets or loses an instance, or the certificate is renewed.
fn one(node: &Node, app: &App, second: SocketAddr, round: u64) -> Result<()> {
    let name = name(round % APPS);
    match (round / APPS).is_multiple_of(2) {
        true => {
            let ports = node.ports();
            let first = (ports.ip, app.internal_port).into();
            let mut coming = App::web(&name, ports, first);
            coming.hosts.extend((0..NAMES).map(|n| format!("{n}.{name}.{round}.{DOMAIN}")));
            node.write_app(&coming)?;
        }
        false => node.remove_app(&name)?,
    }
    match round % 8 {
        2 => node.write_app(&app.clone().instance("second", "a", second.ip())),
        6 => node.write_app(app),
        7 => node.renew_certificate(),
        _ => Ok(()),
    }
}

/// Everything at once, each with something that is new.
fn reload(node: &Node, apps: &[App], round: u64) -> Result<()> {
    for app in apps {
        let mut app = app.clone();
        app.hard_limit += 2 * (round % 2) as u32;
        if !app.hosts.is_empty() {
            app.hosts.push(format!("{}-{round}.{DOMAIN}", app.name));
        }
        node.write_app(&app)?;
    }
    Ok(())
}
