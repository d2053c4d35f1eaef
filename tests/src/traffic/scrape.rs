//! A scraper, as a monitor is one: often, and suspicious of counters that go back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::Raw;
use crate::metrics::Metrics;

/// Findings that are kept.
const KEPT_MAX: usize = 10;

/// Scrapes a node until it is told to stop.
pub struct Scraper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Scraped>,
}

/// What it saw.
#[derive(Debug, Default)]
pub struct Scraped {
    /// Scrapes that were answered.
    pub scrapes: u64,
    /// Scrapes that were not, the first few of them.
    pub failed: Vec<String>,
    /// Counters that went back or went away, the first few of them.
    pub back: Vec<String>,
}

// === impl Scraper ===

impl Scraper {
    /// Scrapes the admin page at `address` every so often.
    pub fn start(address: SocketAddr, every: Duration) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut scraped = Scraped::default();
                let mut last = None;
                while !stop.load(SeqCst) {
                    scraped.once(address, &mut last);
                    std::thread::sleep(every);
                }
                scraped
            }
        });
        Self { stop, thread }
    }

    /// What it saw.
    pub fn stop(self) -> Scraped {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("a scraper does not panic")
    }
}

impl Scraped {
    fn once(&mut self, address: SocketAddr, last: &mut Option<Metrics>) {
        let response = Raw::try_tcp(address)
            .map_err(|error| error.to_string())
            .and_then(|mut raw| raw.try_get("/metrics").map_err(|error| error.to_string()));
        match response {
            Ok(response) if response.status == 200 => {
                self.scrapes += 1;
                let now = Metrics::parse(response.text());
                let back = last.iter().flat_map(|last| now.went_back_from(last));
                let room = KEPT_MAX.saturating_sub(self.back.len());
                self.back.extend(back.take(room));
                *last = Some(now);
            }
            Ok(response) => self.fails(format!("status {}", response.status)),
            Err(why) => self.fails(why),
        }
    }

    fn fails(&mut self, why: String) {
        if self.failed.len() < KEPT_MAX {
            self.failed.push(why);
        }
    }
}
