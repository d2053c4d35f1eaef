//! Whether a request is worth keeping, decided when it ends.

use std::time::Duration;

use super::Config;
use super::model::{Keep, Protocol, Wide};

/// What the decision rests on beside the wide event.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    pub(super) verbose: bool,
    pub(super) sampled: bool,
    pub(super) near_anomaly: bool,
    /// The median of the app, once it is known.
    pub(super) typical: Option<Duration>,
}

/// The first reason that holds, in the order in which they tell most; none is the usual case.
pub(super) fn decide(config: &Config, wide: &Wide, facts: Facts) -> Option<Keep> {
    let failed = wide.error.is_some() || wide.status.is_some_and(|status| status >= 500);
    let reasons = [
        (facts.verbose, Keep::Verbose),
        (failed, Keep::Error),
        (is_slow(config, wide, facts.typical), Keep::Slow),
        (wide.attempts > 1, Keep::Retried),
        (facts.sampled, Keep::Sampled),
        (facts.near_anomaly, Keep::NearAnomaly),
    ];
    reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason))
}

/// What speed is judged by: the whole of a request, but of a tunnel, which lasts as long as its two
/// ends like, only the way to it.
pub(super) fn judged(wide: &Wide) -> Duration {
    match wide.protocol {
        Protocol::Tcp | Protocol::WebSocket => wide.head_after.unwrap_or_default(),
        Protocol::Http1 | Protocol::Http2 | Protocol::Mesh => wide.lasted,
    }
}

fn is_slow(config: &Config, wide: &Wide, typical: Option<Duration>) -> bool {
    let judged = judged(wide);
    judged > config.slow
        && typical.is_none_or(|typical| judged > typical.saturating_mul(config.slow_factor))
}
