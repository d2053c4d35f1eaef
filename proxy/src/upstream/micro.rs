//! See `crate::micro`.

use std::net::{Ipv4Addr, TcpListener};

use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::connect::{Kinds, Stream, connect};
use super::pool::{Look, Pool};
use crate::config;

/// A connection that rests is taken out and put back. What the runtime knows of it is looked at, the
/// kernel is not asked.
pub fn checkout() -> Box<dyn FnMut()> {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let (limits, timeouts) = (config::Limits::default(), config::Timeouts::default());
    let pool = Pool::new(&limits, &timeouts, &ledger);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let kinds = Kinds::new(&registry);
    let stream = open(&runtime, address, &timeouts, &kinds);
    pool.put(address, stream, Instant::now());
    Box::new(move || {
        let (_guard, _listener) = (runtime.enter(), &listener);
        let now = Instant::now();
        let stream = pool.take(address, Look::Glance, now);
        pool.put(address, stream.expect("it rests there"), now);
    })
}

fn open(
    runtime: &Runtime,
    address: std::net::SocketAddr,
    timeouts: &config::Timeouts,
    kinds: &Kinds,
) -> Stream {
    let connected = runtime.block_on(connect(address, timeouts.connect, &kinds.http1));
    let Ok(stream) = connected else { unreachable!("the listener is there") };
    stream
}
