//! Traffic of every class that goes on until it is told to stop and counts exactly what clients saw.
//!
//! A [`Stage`] has the instances and the apps, a [`Target`] says where a node is reached, and
//! [`Traffic`] runs one driver per [`Class`], each on a thread of its own. Clients keep to what
//! their protocol lets them do, and to no more: one that is told that a connection ends makes
//! another, one that was not told does not send anything twice. What that costs is in the
//! [`Tally`], and whatever is lost stays lost.

mod tally;
mod stage;
mod origin;
mod pattern;
mod client;
mod link;
mod http1;
mod http2;
mod grpc;
mod websocket;
mod transfer;
mod raw;
mod scrape;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use tokio_util::sync::CancellationToken;

use crate::edge::Edge;
use crate::wait;
use client::Client;

pub use origin::Origin;
pub use scrape::{Scraped, Scraper};
pub use stage::Stage;
pub use tally::{Loss, Tally};

/// Where clients reach a node.
#[derive(Debug, Clone)]
pub struct Target {
    /// Cleartext HTTP.
    pub http: SocketAddr,
    /// HTTP over TLS.
    pub https: SocketAddr,
    /// Raw bytes.
    pub tcp: SocketAddr,
    /// Who signed the certificates.
    pub roots: Arc<RootCertStore>,
}

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A connection per request.
    Fresh(Over),
    /// Connections that are kept until an answer says `connection: close`; every other request is
    /// a POST that must not reach an instance twice.
    KeepAlive(Over),
    /// Two hundred clients at a time who wait for each other: cleartext, kept, all POSTs that take an
    /// instance some time and must not reach it twice.
    Crowd,
    /// Connections with a hundred streams each, all POSTs that must not reach an instance twice.
    Http2,
    /// Numbered messages that an echo repeats.
    WebSocket,
    /// Large downloads, checked byte for byte.
    Download(Http),
    /// Large uploads, checked byte for byte by the instance.
    Upload(Http),
    /// Calls whose two directions flow at once, with a status in the trailers.
    Grpc,
    /// Raw connections of one exchange, each direction ending on its own.
    RawShort,
    /// Raw connections of many exchanges.
    RawLong,
}

/// What HTTP/1.1 is spoken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// TCP.
    Clear,
    /// TLS, every handshake from the start.
    Tls,
    /// TLS, every handshake but a client's first with a ticket.
    Resumed,
}

/// Which HTTP a transfer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1 over TLS.
    One,
    /// HTTP/2 over TLS.
    Two,
}

/// How large a transfer is and how long it takes at least.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Bytes of one transfer.
    pub bytes: u64,
    /// It is sent, or read, no faster than in this time.
    pub within: Duration,
}

/// Drivers that run.
pub struct Traffic {
    drivers: Vec<Driver>,
    generation: Arc<AtomicU64>,
    started: Instant,
}

struct Driver {
    class: Class,
    tally: Arc<Mutex<Tally>>,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

/// What became of it.
#[derive(Debug)]
pub struct Report {
    /// By class.
    pub tallies: Vec<(Class, Tally)>,
    /// How long it went on.
    pub took: Duration,
}

// === impl Target ===

impl Target {
    /// A node of the harness, at its own address.
    pub fn of(edge: &Edge) -> Self {
        let roots = edge.certs().roots();
        Self { http: edge.http(), https: edge.https(), tcp: edge.tcp(), roots }
    }
}

// === impl Traffic ===

impl Traffic {
    /// Starts a driver per class and waits until each has something done.
    ///
    /// # Panics
    /// When one does not get anything done.
    #[track_caller]
    pub fn start(target: &Target, classes: &[Class]) -> Self {
        let traffic = Self::start_sized(target, classes, Size::default());
        traffic.flows();
        traffic
    }

    /// Starts a driver per class, with transfers of this size, and waits for nothing.
    pub fn start_sized(target: &Target, classes: &[Class], size: Size) -> Self {
        let generation = Arc::new(AtomicU64::new(0));
        let driver = |class: &Class| Driver::start(*class, target, size, &generation);
        let drivers = classes.iter().map(driver).collect();
        Self { drivers, generation, started: Instant::now() }
    }

    /// Says that the node is another one from here on.
    pub fn next_generation(&self) {
        self.generation.fetch_add(1, SeqCst);
    }

    /// Waits until every class has got something done from here on.
    ///
    /// # Panics
    /// When one does not for long; with what it saw.
    #[track_caller]
    pub fn flows(&self) {
        let done = |driver: &Driver| driver.tally().ok;
        let before: Vec<u64> = self.drivers.iter().map(done).collect();
        for (driver, before) in self.drivers.iter().zip(before) {
            let what = format!("{:?} flows", driver.class);
            wait::within(wait::PATIENCE * 2, &what, || driver.tally().ok > before);
        }
    }

    /// Waits until every class has lost something.
    ///
    /// # Panics
    /// When one does not lose anything for long.
    #[track_caller]
    pub fn loses(&self) {
        for driver in &self.drivers {
            wait::until(&format!("{:?} loses", driver.class), || driver.tally().lost() > 0);
        }
    }

    /// What a class saw so far.
    ///
    /// # Panics
    /// When there is no driver of it.
    pub fn tally(&self, class: Class) -> Tally {
        let driver = self.drivers.iter().find(|driver| driver.class == class);
        driver.expect("a driver of the class").tally()
    }

    /// Lets every client finish what it began, and counts.
    pub fn stop(self) -> Report {
        self.drivers.iter().for_each(|driver| driver.stop.cancel());
        let took = self.started.elapsed();
        let tallies = self.drivers.into_iter().map(|driver| {
            driver.thread.join().expect("a driver does not panic");
            let tally = driver.tally.lock().expect("no client panics").clone();
            (driver.class, tally)
        });
        Report { tallies: tallies.collect(), took }
    }
}

impl Driver {
    fn start(class: Class, target: &Target, size: Size, generation: &Arc<AtomicU64>) -> Self {
        let tally = Arc::<Mutex<Tally>>::default();
        let stop = CancellationToken::new();
        let template =
            Client::new(target.clone(), tally.clone(), stop.clone(), generation.clone(), size);
        let thread = std::thread::spawn(move || run(class, &template));
        Self { class, tally, stop, thread }
    }

    fn tally(&self) -> Tally {
        self.tally.lock().expect("no client panics").clone()
    }
}

/// The clients of one driver, on this thread, until they are told to stop.
///
/// How many and how fast is for two cores that also run the node and its instances, all of them
/// built without optimisation.
fn run(class: Class, template: &Client) {
    let ms = Duration::from_millis;
    match class {
        Class::Fresh(over) => {
            template.run(3, move |client| http1::fresh(client, over, ms(30)));
        }
        Class::KeepAlive(over) => {
            template.run(10, move |client| http1::kept(client, over, ms(40)));
        }
        Class::Crowd => template.run(200, |client| http1::crowd(client, ms(150))),
        Class::Http2 => template.run(2, |client| http2::streams(client, 100, ms(500))),
        Class::WebSocket => template.run(12, |client| websocket::echo(client, ms(40))),
        Class::Download(http) => template.run(1, move |client| transfer::downloads(client, http)),
        Class::Upload(http) => template.run(1, move |client| transfer::uploads(client, http)),
        Class::Grpc => template.run(2, |client| grpc::calls(client, 8, ms(30))),
        Class::RawShort => template.run(3, |client| raw::short(client, ms(30))),
        Class::RawLong => template.run(6, |client| raw::long(client, ms(900), ms(30))),
    }
}

// === impl Report ===

impl Report {
    /// # Panics
    /// When any class lost anything, or did nothing.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        for (class, tally) in &self.tallies {
            tally.assert_nothing_lost(&format!("{class:?}"));
        }
    }

    /// What a class saw.
    ///
    /// # Panics
    /// When there was no driver of it.
    pub fn tally(&self, class: Class) -> &Tally {
        let found = self.tallies.iter().find(|(held, _)| *held == class);
        &found.expect("a driver of the class").1
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        for (class, tally) in &self.tallies {
            let rate = tally.ok as f64 / seconds;
            let name = format!("{class:?}");
            writeln!(f, "{name:20} {rate:7.1}/s  {tally}")?;
        }
        Ok(())
    }
}

impl Default for Size {
    /// 10 MB in 1.5 s.
    fn default() -> Self {
        Self { bytes: 10_000_000, within: Duration::from_millis(1_500) }
    }
}
