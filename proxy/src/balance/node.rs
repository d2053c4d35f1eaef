//! What the whole node may have in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crossbeam_utils::CachePadded;
use telemetry::metrics::Registry;

use crate::config;
use crate::error::{Code, Failure};
use crate::metrics::catalogue;

/// Limits of the node that are not any app's. Cloning shares them.
#[derive(Clone)]
pub struct NodeLimits {
    requests_in_flight: Arc<CachePadded<AtomicU32>>,
    requests_in_flight_max: u32,
}

/// One request in flight on this node, until dropped.
pub struct RequestGuard {
    requests_in_flight: Arc<CachePadded<AtomicU32>>,
}

// === impl NodeLimits ===

impl NodeLimits {
    pub fn new(limits: &config::Limits, registry: &Registry) -> Self {
        let requests_in_flight = Arc::<CachePadded<AtomicU32>>::default();
        let read = requests_in_flight.clone();
        catalogue::REQUESTS_IN_FLIGHT
            .gauge_read_in(registry, &[], move || f64::from(read.load(Relaxed)));
        Self { requests_in_flight, requests_in_flight_max: limits.requests_in_flight_max }
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> u32 {
        self.requests_in_flight.load(Relaxed)
    }

    /// Admits one request.
    ///
    /// # Errors
    /// PL03 when the node has as many as it may.
    pub fn admit(&self) -> Result<RequestGuard, Failure> {
        // Added before it is compared, so that it is one instruction; what is too much is taken
        // back, and no two can both see the last place.
        let requests_in_flight = self.requests_in_flight.clone();
        let before = requests_in_flight.fetch_add(1, Relaxed);
        let guard = RequestGuard { requests_in_flight };
        if before >= self.requests_in_flight_max {
            return Err(Failure::new(Code::PL03));
        }
        Ok(guard)
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.requests_in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_takes_as_many_as_it_may_and_one_more_when_one_ends() {
        let registry = Registry::new(1, 10);
        let limits = config::Limits { requests_in_flight_max: 2, ..Default::default() };
        let node = NodeLimits::new(&limits, &registry);
        let (first, _second) = (node.admit().unwrap(), node.admit().unwrap());
        for _ in 0..3 {
            assert_eq!(node.admit().err().unwrap().code, Code::PL03);
        }
        assert!(registry.render().contains("ferrule_requests_in_flight 2\n"));
        drop(first);
        assert!(node.admit().is_ok());
    }
}
