//! TLS handshakes, full or resumed, each with a request, by threads on the CPU of the load.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use super::peer::{LOAD_CPU, NAME, Peer};
use super::scenario::Load;
use crate::client::connect;
use crate::histogram::Histogram;

/// At a time.
const THREADS: usize = 16;

#[derive(Default)]
struct Tally {
    done: u64,
    /// Whose handshake was of the other kind.
    other: u64,
    histogram: Histogram,
}

pub(super) fn run(peer: &Peer, duration: Duration, resumed: bool) -> Result<Load> {
    let mut roots = RootCertStore::empty();
    roots.add(peer.certificate.clone())?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let began = Instant::now();
    let tallies: Vec<Result<Tally>> = thread::scope(|scope| {
        let work = || {
            let mut config = config.clone();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config.resumption =
                if resumed { Resumption::in_memory_sessions(16) } else { Resumption::disabled() };
            turn(peer, &Arc::new(config), began + duration, resumed)
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|one| one.join().expect("clients do not panic")).collect()
    });
    let mut all = Tally::default();
    for tally in tallies {
        let tally = tally?;
        all.done += tally.done;
        all.other += tally.other;
        all.histogram.merge(&tally.histogram);
    }
    ensure!(all.other * 20 <= all.done, "{} of {} were of the other kind", all.other, all.done);
    let seconds = began.elapsed().as_secs_f64();
    let latency = Some(all.histogram.quantiles());
    Ok(Load { units: all.done as f64, failed: 0, seconds, latency })
}

fn turn(peer: &Peer, config: &Arc<ClientConfig>, end: Instant, resumed: bool) -> Result<Tally> {
    let mut cpus = CpuSet::new();
    cpus.set(LOAD_CPU.parse()?);
    sched_setaffinity(None, &cpus)?;
    let mut tally = Tally::default();
    if resumed {
        once(peer, config)?; // for its ticket
    }
    while Instant::now() < end {
        let began = Instant::now();
        let kind = once(peer, config)?;
        tally.histogram.add(began.elapsed());
        tally.done += 1;
        tally.other += u64::from((kind == Some(HandshakeKind::Resumed)) != resumed);
    }
    Ok(tally)
}

fn once(peer: &Peer, config: &Arc<ClientConfig>) -> Result<Option<HandshakeKind>> {
    let session = ClientConnection::new(config.clone(), NAME.try_into()?)?;
    let mut stream = StreamOwned::new(session, connect(peer.https)?);
    write!(stream, "GET / HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::with_capacity(2_048);
    let read = stream.read_to_end(&mut answer);
    // Some leave without the farewell of TLS, which an answer of known length does not need.
    ensure!(read.is_ok() || answer.len() > 1_024, "closed in the middle of an answer");
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not a 200");
    Ok(stream.conn.handshake_kind())
}
