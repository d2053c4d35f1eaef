//! How long a block must live, and be one of ever more, before something is said about its stack.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::stacks::SCALES;

/// The four scales of the verdict with the sampling they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// One sample in 512 KiB; a verdict after 36 min (growing), 4.7 h (probable), 8.6 h (leak).
    #[default]
    Production,
    /// One sample in 4 KiB and everything within a minute: for tests that leak on purpose. Costs
    /// percents of CPU, and calls every cache that fills for a minute a leak.
    Test,
}

/// One scale: blocks count from `age` on, and are watched for `window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    pub age: Duration,
    pub window: Duration,
    /// What is said when the rule holds on this scale.
    pub state: State,
}

/// What is thought of a stack or a container.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not growing, or not for long enough to tell.
    #[default]
    Steady,
    /// Growing under a cap that its owner declared.
    Filling,
    /// Old blocks become more. Long-lived connections and caches that fill look like this, too.
    Growing,
    /// For hours. A cache without a declared cap may still look like this for a while.
    Probable,
    /// Blocks of a great age become ever more and do not end.
    Leak,
}

// === impl Profile ===

impl Profile {
    pub const fn scales(self) -> [Scale; SCALES] {
        const fn scale(age: u64, window: u64, state: State) -> Scale {
            Scale { age: Duration::from_secs(age), window: Duration::from_secs(window), state }
        }
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        match self {
            Self::Production => [
                scale(3 * MINUTE, 24 * MINUTE, State::Growing),
                scale(10 * MINUTE, HOUR, State::Growing),
                scale(10 * MINUTE, 4 * HOUR, State::Probable),
                scale(4 * HOUR, 4 * HOUR, State::Leak),
            ],
            Self::Test => [
                scale(1, 8, State::Growing),
                scale(2, 12, State::Growing),
                scale(2, 20, State::Probable),
                scale(2, 30, State::Leak),
            ],
        }
    }

    /// Logarithm of the mean bytes between samples.
    pub const fn lg_interval(self) -> u32 {
        match self {
            Self::Production => 19,
            Self::Test => 12,
        }
    }

    /// Time between two looks at the tables.
    pub const fn tick(self) -> Duration {
        match self {
            Self::Production => Duration::from_secs(1),
            Self::Test => Duration::from_millis(250),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Test => "test",
        }
    }

    pub(super) fn ages_ms(self) -> [u64; SCALES] {
        self.scales().map(|scale| scale.age.as_millis() as u64)
    }
}

// === impl State ===

impl State {
    /// Those that are exported as suspects.
    pub const SUSPECT: [Self; 3] = [Self::Growing, Self::Probable, Self::Leak];

    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Filling => "filling",
            Self::Growing => "growing",
            Self::Probable => "probable",
            Self::Leak => "leak",
        }
    }
}
