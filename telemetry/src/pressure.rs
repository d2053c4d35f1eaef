//! How close the process is to its memory limit, as steps that say what is to be given up.
//!
//! The [`Ladder`] is pure: it turns a share of the limit into the steps to enter and to leave, one
//! after the other, so that nothing is skipped on the way up and nothing forgotten on the way down.
//! [`Pressure`] is where the workers read the level: one relaxed load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::metrics::{Counter, Metric, Registry, catalogue};

/// What is given up, mildest first. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Nothing.
    Calm,
    /// Caches and pools are halved, verbosity is off, freed pages go back to the kernel.
    Trim,
    /// The heap is written down, and idle connections are closed.
    Close,
    /// New requests of the tenants that hold most are answered with 503.
    Shed,
    /// No connection is accepted, and the node asks not to be sent any.
    Refuse,
    /// What holds most is reset.
    Reset,
}

/// From which share of the limit each level holds, in percent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Of [`Level::Trim`] and those that follow, rising. Default: 70, 80, 88, 93, 96.
    pub percent: [u8; 5],
}

/// A level is left when the pressure is this far below where it began.
const HYSTERESIS_PERCENT: f64 = 5.0;

/// The level of the process. Cloning shares it.
#[derive(Clone)]
pub struct Pressure {
    level: Arc<AtomicU8>,
}

/// Climbs up and down as the pressure says.
pub struct Ladder {
    config: Config,
    level: Level,
    shared: Pressure,
    entered: [Counter; Level::ALL.len()],
    left: [Counter; Level::ALL.len()],
}

/// One step of a ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Enter(Level),
    Leave(Level),
}

// === impl Level ===

impl Level {
    pub const ALL: [Self; 6] =
        [Self::Calm, Self::Trim, Self::Close, Self::Shed, Self::Refuse, Self::Reset];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Trim => "trim",
            Self::Close => "close",
            Self::Shed => "shed",
            Self::Refuse => "refuse",
            Self::Reset => "reset",
        }
    }

    fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Reset)
    }
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { percent: [70, 80, 88, 93, 96] }
    }
}

impl Config {
    /// The share of the limit from which `level` holds.
    fn begins(&self, level: Level) -> f64 {
        match level {
            Level::Calm => f64::NEG_INFINITY,
            above => f64::from(self.percent[above as usize - 1]),
        }
    }
}

// === impl Pressure ===

impl Default for Pressure {
    fn default() -> Self {
        Self { level: Arc::new(AtomicU8::new(Level::Calm as u8)) }
    }
}

impl Pressure {
    pub fn level(&self) -> Level {
        Level::from_number(self.level.load(Relaxed))
    }

    /// Whether what `level` gives up is to be given up now.
    pub fn is_at(&self, level: Level) -> bool {
        self.level.load(Relaxed) >= level as u8
    }
}

// === impl Ladder ===

impl Ladder {
    /// A ladder that tells `shared` its level, and counts its steps.
    pub fn new(config: Config, shared: Pressure, registry: &Registry) -> Self {
        let read = shared.clone();
        catalogue::PRESSURE_LEVEL
            .gauge_read_in(registry, &[], move || f64::from(read.level() as u8));
        let counters = |metric: &Metric| {
            Level::ALL.map(|level| metric.counter_in(registry, &[level.as_str()]))
        };
        Self {
            config,
            level: Level::Calm,
            shared,
            entered: counters(&catalogue::PRESSURE_ENTERED),
            left: counters(&catalogue::PRESSURE_LEFT),
        }
    }

    /// The level that was entered last and not left.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The next step at `percent` of the limit, if there is one; call it until there is none.
    ///
    /// One at a time, so that the caller acts on each before the next.
    pub fn step(&mut self, percent: f64) -> Option<Step> {
        let above = Level::ALL.get(self.level as usize + 1).copied();
        let step = match above {
            Some(above) if percent >= self.config.begins(above) => {
                self.level = above;
                self.entered[above as usize].increment();
                Step::Enter(above)
            }
            _ if percent < self.config.begins(self.level) - HYSTERESIS_PERCENT => {
                let left = self.level;
                self.level = Level::from_number(left as u8 - 1);
                self.left[left as usize].increment();
                Step::Leave(left)
            }
            _ => return None,
        };
        self.shared.level.store(self.level as u8, Relaxed);
        Some(step)
    }
}

/// Whether a tenant that holds `own` of `all` that `tenants` hold together may get more while not
/// everybody can.
///
/// It may while it holds no more than its equal share, and always while it holds less than `least`:
/// one tenant's flood takes from that tenant, whatever the others do. Who alone holds anything is
/// above its share, for half of it is kept free for whoever comes next.
pub fn may_have_more(own: u64, all: u64, tenants: u64, least: u64) -> bool {
    own < least || u128::from(own) * u128::from(tenants.max(2)) <= u128::from(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ladder() -> (Ladder, Pressure, Registry) {
        let (registry, pressure) = (Registry::new(1, 100), Pressure::default());
        (Ladder::new(Config::default(), pressure.clone(), &registry), pressure, registry)
    }

    fn steps(ladder: &mut Ladder, percent: f64) -> Vec<Step> {
        std::iter::from_fn(|| ladder.step(percent)).collect()
    }

    use Level::{Close, Refuse, Reset, Shed, Trim};
    use Step::{Enter, Leave};

    #[test]
    fn a_jump_enters_every_level_in_order_and_a_fall_leaves_them_in_reverse() {
        let (mut ladder, pressure, registry) = ladder();
        let all = [Trim, Close, Shed, Refuse, Reset];
        assert_eq!(steps(&mut ladder, 99.0), all.map(Enter));
        assert_eq!(pressure.level(), Reset);
        let mut reverse = all.map(Leave);
        reverse.reverse();
        assert_eq!(steps(&mut ladder, 10.0), reverse);
        assert_eq!(pressure.level(), Level::Calm);
        let text = registry.render();
        assert!(text.contains("ferrule_pressure_entered_total{level=\"shed\"} 1"), "{text}");
        assert!(text.contains("ferrule_pressure_left_total{level=\"shed\"} 1"), "{text}");
    }

    #[test]
    fn a_level_is_left_five_points_below_where_it_began() {
        let (mut ladder, ..) = ladder();
        assert_eq!(steps(&mut ladder, 69.9), []);
        assert_eq!(steps(&mut ladder, 70.0), [Enter(Trim)]);
        assert_eq!(steps(&mut ladder, 65.0), []);
        assert_eq!(steps(&mut ladder, 64.9), [Leave(Trim)]);
        assert_eq!(steps(&mut ladder, 89.0), [Enter(Trim), Enter(Close), Enter(Shed)]);
        assert_eq!(steps(&mut ladder, 84.0), []);
        assert_eq!(steps(&mut ladder, 82.0), [Leave(Shed)]);
    }

    #[test]
    fn a_flood_of_one_tenant_takes_from_that_tenant() {
        let (flood, quiet, least) = (90_000, 10, 1_000);
        let all = flood + 9 * quiet;
        assert!(!may_have_more(flood, all, 10, least));
        assert!(may_have_more(quiet, all, 10, least));
        assert!(may_have_more(0, 0, 0, 0));
    }

    #[test]
    fn who_alone_holds_anything_holds_too_much() {
        assert!(!may_have_more(90_000, 90_000, 1, 1_000));
        assert!(may_have_more(999, 999, 1, 1_000));
    }

    proptest! {
        #[test]
        fn the_level_is_always_the_one_that_the_pressure_means(
            percents in prop::collection::vec(0.0..120.0, 1..50)
        ) {
            let (mut ladder, pressure, _) = ladder();
            for percent in percents {
                let taken = steps(&mut ladder, percent);
                prop_assert!(taken.len() <= 5);
                let level = pressure.level();
                let begins = Config::default();
                prop_assert!(percent >= begins.begins(level) - HYSTERESIS_PERCENT);
                let above = Level::ALL.get(level as usize + 1);
                prop_assert!(above.is_none_or(|above| percent < begins.begins(*above)));
            }
        }

        /// Somebody can always go on, or shedding by fairness would stop everybody.
        #[test]
        fn not_every_tenant_is_above_its_share(held in prop::collection::vec(0_u64..1 << 40, 2..20)) {
            let (all, tenants) = (held.iter().sum(), held.len() as u64);
            prop_assert!(held.iter().any(|own| may_have_more(*own, all, tenants, 0)));
        }
    }
}
