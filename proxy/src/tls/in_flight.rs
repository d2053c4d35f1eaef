//! How many handshakes may be in flight: on this node, and from one client prefix.
//!
//! The memory is fixed: prefixes share a table of counters by a keyed hash. Two prefixes that meet
//! in one counter share its limit, which only makes it stricter, and nobody can choose whom to meet.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crossbeam_utils::CachePadded;

use crate::config;
use crate::error::{Code, Failure};

/// The counts, shared by all workers.
pub(super) struct InFlight {
    total: CachePadded<AtomicU32>,
    total_max: u32,
    prefixes: Box<[AtomicU32]>,
    prefix_max: u32,
    hasher: RandomState,
}

/// The right to one handshake, given back when dropped.
pub(super) struct Permit {
    in_flight: Arc<InFlight>,
    slot: usize,
}

/// Counters for prefixes; 64 KiB.
const SLOTS: usize = 16 * 1024;

// === impl InFlight ===

impl InFlight {
    pub(super) fn new(limits: &config::Limits) -> Self {
        Self {
            total: CachePadded::default(),
            total_max: limits.handshakes_in_flight_max,
            prefixes: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(),
            prefix_max: limits.handshakes_per_prefix_max,
            hasher: RandomState::new(),
        }
    }

    /// The prefix is asked first, so that one prefix meets its own limit before it fills the node.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Result<Permit, Failure> {
        let slot = self.slot(client);
        if !raise(&self.prefixes[slot], self.prefix_max) {
            return Err(Failure::new(Code::PT01));
        }
        if !raise(&self.total, self.total_max) {
            self.prefixes[slot].fetch_sub(1, Relaxed);
            return Err(Failure::new(Code::PT10));
        }
        Ok(Permit { in_flight: self.clone(), slot })
    }

    pub(super) fn total(&self) -> u32 {
        self.total.load(Relaxed)
    }

    fn slot(&self, client: IpAddr) -> usize {
        (self.hasher.hash_one(prefix(client)) % SLOTS as u64) as usize
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.total.fetch_sub(1, Relaxed);
        self.in_flight.prefixes[self.slot].fetch_sub(1, Relaxed);
    }
}

/// What is likely one client: an IPv4 /24 or an IPv6 /48.
fn prefix(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
        // The top bit keeps the two families apart.
        IpAddr::V6(address) => 1 << 63 | (address.to_bits() >> 80) as u64,
    }
}

fn raise(counter: &AtomicU32, max: u32) -> bool {
    counter.fetch_update(Relaxed, Relaxed, |count| (count < max).then_some(count + 1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(total_max: u32, prefix_max: u32) -> Arc<InFlight> {
        Arc::new(InFlight::new(&config::Limits {
            handshakes_in_flight_max: total_max,
            handshakes_per_prefix_max: prefix_max,
            ..config::Limits::default()
        }))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_is_a_slash_24_or_a_slash_48() {
        #[track_caller]
        fn check(same: bool, a: &str, b: &str) {
            assert_eq!(prefix(ip(a)) == prefix(ip(b)), same, "{a} and {b}");
        }
        check(true, "192.0.2.1", "192.0.2.254");
        check(false, "192.0.2.1", "192.0.3.1");
        check(true, "192.0.2.1", "::ffff:192.0.2.7");
        check(true, "2001:db8:1::1", "2001:db8:1:ffff::2");
        check(false, "2001:db8:1::1", "2001:db8:2::1");
        check(false, "0.0.0.1", "::2");
    }

    #[test]
    fn a_prefix_at_its_limit_is_refused_until_one_ends() {
        let in_flight = in_flight(10, 2);
        let first = in_flight.enter(ip("192.0.2.1")).ok().unwrap();
        let _second = in_flight.enter(ip("192.0.2.2")).ok().unwrap();
        assert_eq!(in_flight.enter(ip("192.0.2.3")).err().unwrap().code, Code::PT01);
        drop(first);
        assert!(in_flight.enter(ip("192.0.2.3")).is_ok());
    }

    #[test]
    fn a_full_node_refuses_and_leaves_no_trace_in_the_prefix() {
        let in_flight = in_flight(1, 1);
        let only = in_flight.enter(ip("192.0.2.1")).ok().unwrap();
        for _ in 0..3 {
            // Were the prefix counted, the second try would say PT01. One chance in 16,384 that
            // the two prefixes share a counter; try another then.
            let other = ["198.51.100.1", "203.0.113.1"]
                .map(ip)
                .into_iter()
                .find(|other| in_flight.slot(*other) != only.slot)
                .unwrap();
            assert_eq!(in_flight.enter(other).err().unwrap().code, Code::PT10);
        }
        drop(only);
        assert_eq!(in_flight.total(), 0);
        assert!(in_flight.enter(ip("198.51.100.1")).is_ok());
    }
}
