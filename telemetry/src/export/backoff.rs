//! How long to wait before sending again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::config::Config;

/// Exponential, with the upper half of each wait left to chance, so that nodes that lost the same
/// collector do not all come back at once; never shorter than the collector asks for.
pub(super) fn wait(
    config: &Config,
    failures: u32,
    asked: Option<Duration>,
    random: f64,
) -> Duration {
    let doubled = config.retry_initial.saturating_mul(1 << failures.min(16));
    let wait = doubled.min(config.retry_max).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
    wait.max(asked.unwrap_or_default())
}

/// From 0 to 1; good enough to spread nodes.
pub(super) fn random() -> f64 {
    let hash = RandomState::new().hash_one(0);
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_half_of_each_is_chance() {
        let config = Config::default();
        let seconds = |failures, random| wait(&config, failures, None, random).as_secs_f64();
        assert_eq!(
            [0, 1, 2, 4, 5, 60].map(|failures| seconds(failures, 1.0)),
            [1.0, 2.0, 4.0, 16.0, 30.0, 30.0]
        );
        assert_eq!(seconds(2, 0.0), 2.0);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random())));
    }

    #[test]
    fn a_wait_is_never_shorter_than_the_one_that_was_asked_for() {
        let asked = Some(Duration::from_secs(7));
        assert_eq!(wait(&Config::default(), 0, asked, 1.0), Duration::from_secs(7));
        assert_eq!(wait(&Config::default(), 9, asked, 1.0), Duration::from_secs(30));
    }
}
