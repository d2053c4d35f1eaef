//! The idle HTTP/1 connections of one worker: bare sockets, newest first, with a deadline each.
//!
//! Nothing polls an idle connection and no task or buffer belongs to it, so what happened to it
//! meanwhile shows only when it is taken out again ([`Pool::take`] looks). What is kept is bounded
//! per instance, in total and in time; a key without connections does not stay.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use foldhash::fast::RandomState;
use rustix::net::RecvFlags;
use telemetry::ledger::{Account, Ledger};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::config;

use super::connect::Stream;

pub(super) struct Pool {
    idle: RefCell<Idle>,
    per_instance_max: usize,
    total_max: usize,
    lifetime: Duration,
    account: Account,
}

#[derive(Default)]
struct Idle {
    /// Per instance from the oldest to the newest.
    by_address: HashMap<SocketAddr, VecDeque<Resting>, RandomState>,
    total: usize,
}

struct Resting {
    stream: Stream,
    deadline: Instant,
}

/// How sure a request must be that the connection still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// What the runtime knows: free, but blind to what arrived since the last turn.
    Glance,
    /// Ask the kernel: for a request that cannot be sent twice.
    Closely,
}

/// An idle connection in memory: its place here, and what the runtime keeps of a socket (tokio 1.54,
/// measured).
const IDLE_BYTES: usize = size_of::<Resting>() + 256;

// === impl Pool ===

impl Pool {
    pub(super) fn new(
        limits: &config::Limits,
        timeouts: &config::Timeouts,
        ledger: &Ledger,
    ) -> Self {
        // All workers book in one account, each for its own pool.
        let cap = limits.upstream_idle_max.saturating_mul(ledger.workers()) as u64;
        Self {
            idle: RefCell::default(),
            per_instance_max: limits.upstream_idle_per_instance_max,
            total_max: limits.upstream_idle_max,
            lifetime: timeouts.upstream_idle,
            account: ledger.open_entries("upstream_idle", cap, IDLE_BYTES),
        }
    }

    /// The newest connection to `address` that still stands.
    pub(super) fn take(&self, address: SocketAddr, look: Look, now: Instant) -> Option<Stream> {
        let mut idle = self.idle.borrow_mut();
        let resting = idle.by_address.get_mut(&address)?;
        let mut removed = 0;
        let found = loop {
            let Some(Resting { stream, deadline }) = resting.pop_back() else { break None };
            removed += 1;
            if now >= deadline {
                removed += resting.len();
                resting.clear(); // the others are older
                break None;
            }
            if is_quiet(&stream.tcp, look) {
                break Some(stream);
            }
        };
        if resting.is_empty() {
            idle.by_address.remove(&address);
        }
        idle.total -= removed;
        self.account.give_back(removed);
        found
    }

    /// Keeps `stream` for the next request to `address`.
    pub(super) fn put(&self, address: SocketAddr, stream: Stream, now: Instant) {
        if self.per_instance_max == 0 || self.total_max == 0 {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let resting = idle.by_address.entry(address).or_default();
        resting.push_back(Resting { stream, deadline: now + self.lifetime });
        self.account.take(1);
        if resting.len() > self.per_instance_max {
            resting.pop_front();
            self.evicted(1);
        } else {
            idle.total += 1;
        }
        if idle.total > self.total_max {
            let evicted = idle.evict(self.total_max / 16 + 1);
            self.evicted(evicted);
        }
    }

    /// Closes what has rested too long.
    pub(super) fn sweep(&self, now: Instant) {
        self.retain(|resting| now < resting.deadline);
    }

    /// Closes the half that has rested longest.
    pub(super) fn halve(&self) {
        let mut idle = self.idle.borrow_mut();
        let half = idle.total / 2;
        let evicted = if half > 0 { idle.evict(half) } else { 0 };
        self.account.give_back(evicted);
    }

    /// Closes all of them.
    pub(super) fn clear(&self) {
        self.retain(|_| false);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.idle.borrow().total
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.idle.borrow().by_address.len()
    }

    fn retain(&self, keep: impl Fn(&Resting) -> bool) {
        let mut idle = self.idle.borrow_mut();
        let before = idle.total;
        idle.retain(keep);
        self.account.give_back(before - idle.total);
    }

    fn evicted(&self, n: usize) {
        self.account.give_back(n);
        for _ in 0..n {
            self.account.drop_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
    }
}

// === impl Idle ===

impl Idle {
    /// Closes the `n` oldest. It looks at every connection, so callers evict several at once.
    fn evict(&mut self, n: usize) -> usize {
        let mut deadlines: Vec<Instant> =
            self.by_address.values().flatten().map(|resting| resting.deadline).collect();
        let before = self.total;
        let index = n.min(deadlines.len()).saturating_sub(1);
        if deadlines.is_empty() {
            return 0;
        }
        let (_, last, _) = deadlines.select_nth_unstable(index);
        let last = *last;
        // Of those that came in the same instant as the last one, no more go than were asked for.
        let mut left = n;
        self.retain(|resting| resting.deadline > last || !take_one(&mut left));
        before - self.total
    }

    fn retain(&mut self, mut keep: impl FnMut(&Resting) -> bool) {
        let mut total = 0;
        self.by_address.retain(|_, resting| {
            resting.retain(&mut keep);
            total += resting.len();
            !resting.is_empty()
        });
        self.total = total;
    }
}

fn take_one(left: &mut usize) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    true
}

/// Neither closed nor with bytes nobody asked for.
pub(super) fn is_quiet(tcp: &TcpStream, look: Look) -> bool {
    let read = match look {
        Look::Glance => tcp.try_read(&mut [0]),
        Look::Closely => rustix::net::recv(tcp, &mut [0u8], RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .map(|(read, _)| read)
            .map_err(io::Error::from),
    };
    matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use telemetry::metrics::Registry;

    use super::*;

    #[test]
    fn the_ledger_bounds_what_all_workers_keep_together() {
        let ledger = Ledger::new(Registry::new(3, 10));
        let limits = config::Limits { upstream_idle_max: 5, ..config::Limits::default() };
        let timeouts = config::Timeouts::default();
        let _pools: Vec<_> = (0..3).map(|_| Pool::new(&limits, &timeouts, &ledger)).collect();
        let lines = ledger.read();
        let line = lines.iter().find(|line| line.name == "upstream_idle");
        assert_eq!(line.map(|line| line.cap), Some(15));
    }
}
