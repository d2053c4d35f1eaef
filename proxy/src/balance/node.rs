//! What the whole node may have in flight.

use std::sync::Arc;

use telemetry::metrics::Registry;
use telemetry::shared_counts::Count;

use crate::config;
use crate::error::{Code, Failure};
use crate::metrics::catalogue;

/// Limits of the node that are not any app's. Cloning shares them.
#[derive(Clone)]
pub struct NodeLimits {
    requests_in_flight: Arc<Count>,
    requests_in_flight_max: u32,
}

/// One request in flight on this node, until dropped.
pub struct RequestGuard {
    requests_in_flight: Arc<Count>,
}

// === impl NodeLimits ===

impl NodeLimits {
    /// `requests_in_flight` counts them, with another generation of the process if it is shared.
    pub fn new(limits: &config::Limits, requests_in_flight: Count, registry: &Registry) -> Self {
        let requests_in_flight = Arc::new(requests_in_flight);
        let read = requests_in_flight.clone();
        catalogue::REQUESTS_IN_FLIGHT.gauge_read_in(registry, &[], move || f64::from(read.own()));
        Self { requests_in_flight, requests_in_flight_max: limits.requests_in_flight_max }
    }

    /// Requests of this process in flight now.
    pub fn in_flight(&self) -> u32 {
        self.requests_in_flight.own()
    }

    /// Admits one request.
    ///
    /// # Errors
    /// PL03 when the node has as many as it may.
    pub fn admit(&self) -> Result<RequestGuard, Failure> {
        // One add: nobody waits for a place here, so it need not be exact at the limit.
        if !self.requests_in_flight.try_add(self.requests_in_flight_max) {
            return Err(Failure::new(Code::PL03));
        }
        Ok(RequestGuard { requests_in_flight: self.requests_in_flight.clone() })
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.requests_in_flight.sub();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_takes_as_many_as_it_may_and_one_more_when_one_ends() {
        let registry = Registry::new(1, 10);
        let limits = config::Limits { requests_in_flight_max: 2, ..Default::default() };
        let node = NodeLimits::new(&limits, Count::private(), &registry);
        let (first, _second) = (node.admit().unwrap(), node.admit().unwrap());
        for _ in 0..3 {
            assert_eq!(node.admit().err().unwrap().code, Code::PL03);
        }
        assert!(registry.render().contains("ferrule_requests_in_flight 2\n"));
        drop(first);
        assert!(node.admit().is_ok());
    }
}
