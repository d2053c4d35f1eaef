//! A well-behaved client that keeps its rate while something else happens to the node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::client::h2::H2;
use crate::client::http1::Http1;
use crate::client::{Stream, tls};
use crate::histogram::{Histogram, Quantiles};
use crate::node::Node;
use crate::suite::Plot;

/// Three of them: HTTP/1.1 in TLS on one connection, HTTP/2, and a new connection for each request.
pub(crate) struct Beside {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

/// What they saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// By status, or by what went wrong.
    pub counts: BTreeMap<String, u64>,
    histogram: Histogram,
    /// Of each second.
    seconds: BTreeMap<u64, Histogram>,
    /// Seconds after the beginning.
    last_error: Option<u64>,
    began: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Http1,
    Http2,
    New,
}

struct Client {
    kind: Kind,
    address: std::net::SocketAddr,
    host: String,
    path: String,
    http1: tls::Config,
    http2: tls::Config,
    open: Option<Open>,
}

enum Open {
    Http1(Http1),
    Http2(H2, u32),
}

/// Requests of an HTTP/2 connection, of which a client too should not want too many.
const EACH: u32 = 1_000;

impl Beside {
    /// Requests for `path` of `host`, together `rate` per second.
    pub(crate) fn start(node: &Node, host: &str, path: &str, rate: u32) -> Result<Self> {
        Self::of(&[Kind::Http1, Kind::Http2, Kind::New], node, host, path, rate)
    }

    /// Only those that keep their connections.
    pub(crate) fn lasting(node: &Node, host: &str, path: &str, rate: u32) -> Result<Self> {
        Self::of(&[Kind::Http1, Kind::Http2], node, host, path, rate)
    }

    fn of(kinds: &[Kind], node: &Node, host: &str, path: &str, rate: u32) -> Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let began = Instant::now();
        let mut threads = Vec::new();
        for &kind in kinds {
            let client = Client {
                kind,
                address: node.https(),
                host: host.to_owned(),
                path: path.to_owned(),
                http1: node.tls(&["http/1.1"])?,
                http2: node.tls(&["h2"])?,
                open: None,
            };
            let stop = stop.clone();
            let pause = Duration::from_secs(kinds.len() as u64) / rate.max(1);
            threads.push(thread::spawn(move || client.keep(pause, began, &stop)));
        }
        Ok(Self { stop, threads })
    }

    pub(crate) fn end(self) -> Seen {
        self.stop.store(true, SeqCst);
        let mut all = Seen::default();
        for thread in self.threads {
            all.merge(thread.join().expect("clients do not panic"));
        }
        all
    }

    /// Only for so long.
    pub(crate) fn for_a_while(self, time: Duration) -> Seen {
        thread::sleep(time);
        self.end()
    }
}

impl Client {
    /// Latency is counted from the moment at which a request is due.
    fn keep(mut self, pause: Duration, began: Instant, stop: &AtomicBool) -> Seen {
        let mut seen = Seen { began: Some(began), ..Seen::default() };
        let mut due = Instant::now();
        while !stop.load(SeqCst) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            match self.once() {
                Ok(said) => seen.add(due, said),
                Err(error) => {
                    self.open = None;
                    seen.add(due, format!("{error:#}"));
                }
            }
            due += pause;
        }
        seen
    }

    /// The status, and the node's own code if it is its own answer.
    fn once(&mut self) -> Result<String> {
        let open = match self.open.take() {
            Some(open) => open,
            None => self.connect()?,
        };
        match open {
            Open::Http1(mut client) => {
                let answer = client.get(&self.host, &self.path)?;
                if !answer.closes() && !matches!(self.kind, Kind::New) {
                    self.open = Some(Open::Http1(client));
                }
                Ok(format!("{} {}", answer.status, answer.code()).trim_end().to_owned())
            }
            Open::Http2(mut client, before) => {
                let answer = client.get(&self.host, &self.path)?;
                ensure!(answer.reset.is_none(), "stream reset with {:?}", answer.reset);
                if before + 1 < EACH {
                    self.open = Some(Open::Http2(client, before + 1));
                }
                Ok(answer.status.to_string())
            }
        }
    }

    fn connect(&self) -> Result<Open> {
        Ok(match self.kind {
            Kind::Http2 => {
                let stream = Stream::tls(self.address, &self.host, &self.http2)?;
                Open::Http2(H2::start(stream, &[])?, 0)
            }
            Kind::Http1 | Kind::New => {
                Open::Http1(Http1::new(Stream::tls(self.address, &self.host, &self.http1)?))
            }
        })
    }
}

impl Seen {
    fn add(&mut self, due: Instant, what: String) {
        let latency = due.elapsed();
        if what != "200" {
            let since = self.began.map_or(0, |began| began.elapsed().as_secs());
            self.last_error = Some(since);
        }
        *self.counts.entry(what).or_default() += 1;
        self.histogram.add(latency);
        let second = self.began.map_or(0, |began| due.duration_since(began).as_secs());
        self.seconds.entry(second).or_default().add(latency);
    }

    fn merge(&mut self, other: Self) {
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.histogram.merge(&other.histogram);
        self.last_error = self.last_error.max(other.last_error);
        for (second, histogram) in other.seconds {
            self.seconds.entry(second).or_default().merge(&histogram);
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// What was not answered with 200.
    pub(crate) fn errors(&self) -> u64 {
        self.total() - self.counts.get("200").copied().unwrap_or_default()
    }

    /// When it was seen, in seconds after the beginning.
    pub(crate) fn last_error(&self) -> Option<u64> {
        self.last_error
    }

    /// Of those that took longer than so many milliseconds.
    pub(crate) fn share_above(&self, millis: f64) -> f64 {
        self.histogram.share_above(millis)
    }

    pub(crate) fn latency(&self) -> Quantiles {
        self.histogram.quantiles()
    }

    /// Counts by code, the most frequent first.
    pub(crate) fn said(&self) -> String {
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let shown = counts.iter().take(8).map(|(what, count)| format!("{count} × {what}"));
        shown.collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn plot(&self, title: &str) -> Plot {
        let line = |share: f64| -> Vec<(f64, f64)> {
            self.seconds.iter().map(|(second, of)| (*second as f64, of.at(share))).collect()
        };
        Plot::new(title, "s", "ms")
            .line("p50", line(0.5))
            .line("p99", line(0.99))
            .line("max", line(1.0))
    }
}
