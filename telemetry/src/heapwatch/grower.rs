//! Containers without a bound: one block that doubles as requests are served.

use super::containers::Container;
use super::graph::Graph;
use super::profile::{Profile, State};

/// One large block through its growth.
#[derive(Debug)]
pub(super) struct Grower {
    pub(super) container: Container,
    pub(super) graph: Graph,
    pub(super) state: State,
    /// The exponent `b` in `size ~ requests^b`; none before it has grown in three steps.
    pub(super) exponent: Option<f64>,
    pub(super) since_ms: u64,
    /// The tick that saw it last.
    pub(super) seen: u64,
    /// When it was seen to have doubled once more: doublings, requests, and time.
    marks: Vec<Mark>,
    seen_at_ms: u64,
    /// Requests at the last tick.
    last_requests: u64,
    /// The first and the last time that it was seen to grow.
    full: Option<(Full, Full)>,
}

/// A block that grows was full: only then are its bytes the content's and not its capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Full {
    bytes: u64,
    requests: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    doublings: f64,
    requests: f64,
    at_ms: u64,
}

/// Below this a block may double as it likes.
const BYTES_MIN: u64 = 1 << 20;
const DOUBLINGS_MIN: u32 = 3;
const EXPONENT_MIN: f64 = 0.8;
/// A block of 256 KiB has doubled so often at 4 EiB.
const MARKS_MAX: usize = 44;

pub(super) const GROWER_BYTES: usize =
    size_of::<Grower>() + super::graph::GRAPH_BYTES + MARKS_MAX * size_of::<Mark>();

// === impl Grower ===

impl Grower {
    pub(super) fn new(container: &Container, now_ms: u64, requests: u64, step_ms: u64) -> Self {
        Self {
            container: *container,
            graph: Graph::new(step_ms),
            state: State::Steady,
            exponent: None,
            since_ms: now_ms,
            seen: 0,
            marks: Vec::new(),
            seen_at_ms: now_ms,
            last_requests: requests,
            full: None,
        }
    }

    /// Whole doublings since it was first seen.
    pub(super) fn doublings(&self) -> u32 {
        doublings(&self.container) as u32
    }

    /// Bytes per request between the first and the last time that it was full.
    pub(super) fn bytes_per_request(&self) -> Option<f64> {
        let (first, last) = self.full?;
        let grown = last.bytes.checked_sub(first.bytes).filter(|grown| *grown > 0)?;
        let served = last.requests - first.requests;
        (served > 0.0).then(|| grown as f64 / served)
    }

    pub(super) fn tick(
        &mut self,
        container: &Container,
        now_ms: u64,
        requests: u64,
        profile: Profile,
        filling: bool,
    ) {
        if container.bytes > self.container.bytes {
            self.mark(doublings(container), now_ms, requests);
            // It grew somewhere between two ticks.
            let requests = f64::midpoint(self.last_requests as f64, requests as f64);
            let full = Full { bytes: self.container.bytes, requests };
            self.full = Some((self.full.map_or(full, |(first, _)| first), full));
        }
        self.last_requests = requests;
        self.container = *container;
        self.graph.tick(now_ms, container.bytes);
        self.exponent = self.growth(now_ms, requests);
        let state = self.judge(now_ms, profile, filling);
        if state != self.state {
            (self.state, self.since_ms) = (state, now_ms);
        }
    }

    fn judge(&self, now_ms: u64, profile: Profile, filling: bool) -> State {
        let grows = self.container.bytes >= BYTES_MIN
            && self.doublings() >= DOUBLINGS_MIN
            && self.exponent.is_some_and(|exponent| exponent > EXPONENT_MIN);
        if !grows {
            return State::Steady;
        }
        if filling {
            return State::Filling;
        }
        // A buffer of one long request grows as well; what goes on for as long as a leak is one.
        let age = now_ms.saturating_sub(self.container.born_ms);
        let scales = profile.scales().map(|scale| {
            let needed = (scale.age + scale.window).as_millis() as u64;
            (
                if scale.state == State::Growing { scale.age.as_millis() as u64 } else { needed },
                scale.state,
            )
        });
        let reached =
            scales.into_iter().filter(|(needed, _)| age >= *needed).map(|(_, state)| state);
        reached.max().unwrap_or_default()
    }

    fn mark(&mut self, doublings: f64, now_ms: u64, requests: u64) {
        let grown = self.marks.last().map_or(0.0, |mark| mark.doublings);
        if doublings - grown < 0.5 || self.marks.len() == MARKS_MAX {
            return;
        }
        // Without requests time is the measure.
        self.marks.push(Mark { doublings, requests: requests as f64, at_ms: now_ms });
    }

    /// The exponent from the last three steps, whatever the count of requests began at; none when the
    /// next step is so late that it has stopped.
    fn growth(&self, now_ms: u64, requests: u64) -> Option<f64> {
        let [.., first, middle, last] = self.marks[..] else { return None };
        let by_requests = (last.requests - middle.requests, middle.requests - first.requests);
        let by_time = ((last.at_ms - middle.at_ms) as f64, (middle.at_ms - first.at_ms) as f64);
        let ((later, earlier), since) = if by_requests.0 > 0.0 && by_requests.1 > 0.0 {
            (by_requests, requests as f64 - last.requests)
        } else {
            (by_time, now_ms.saturating_sub(last.at_ms) as f64)
        };
        // At a constant rate each doubling takes twice as long as the one before.
        if earlier <= 0.0 || since > 4.0 * later {
            return None;
        }
        Some(exponent(later / earlier, [first, middle, last].map(|mark| mark.doublings)))
    }

    pub(super) fn age_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.container.born_ms.min(self.seen_at_ms))
    }
}

fn doublings(container: &Container) -> f64 {
    (container.bytes as f64 / container.first_bytes.max(1) as f64).log2().max(0.0)
}

/// Finds `b` such that a block which grows as `x^b` takes `ratio` times as long for its later step
/// as for its earlier one.
fn exponent(ratio: f64, [first, middle, last]: [f64; 3]) -> f64 {
    let x = |doublings: f64, b: f64| (doublings / b).exp2();
    let ratio_of = |b| (x(last, b) - x(middle, b)) / (x(middle, b) - x(first, b));
    let (mut low, mut high) = (0.05, 8.0);
    // The faster it grows, the less the later step takes.
    for _ in 0..40 {
        let b = f64::midpoint(low, high);
        if ratio_of(b) > ratio { low = b } else { high = b }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::super::containers::Containers;
    use super::*;

    /// A container that grows by doubling, holding what `needs` says after so many requests.
    fn grown(seconds: u64, begun_at: u64, filling: bool, needs: impl Fn(f64) -> f64) -> Grower {
        static CONTAINERS: Containers<1> = Containers::new();
        let mut container = CONTAINERS.begin(0, 256 << 10, 0);
        let mut grower = Grower::new(&container, 0, begun_at * 1_000, 1_000);
        for second in 0..seconds {
            while needs(second as f64 * 1_000.0) > container.bytes as f64 {
                container = container.grown(container.bytes * 2, 0, |_| 0);
            }
            let requests = (begun_at + second) * 1_000;
            grower.tick(&container, second * 1_000, requests, Profile::Production, filling);
        }
        grower
    }

    #[test]
    fn a_vector_that_nobody_bounds_is_named_ever_louder() {
        let linear = |requests: f64| requests * 100.0;
        for begun_at in [0, 1_000_000] {
            let grower = grown(300, begun_at, false, linear);
            assert_eq!(grower.state, State::Growing, "{grower:?}");
            let exponent = grower.exponent.expect("it grew");
            assert!((0.85..1.15).contains(&exponent), "{exponent}");
            let bytes = grower.bytes_per_request().expect("it grew");
            assert!((90.0..110.0).contains(&bytes), "{bytes}");
        }
        assert_eq!(grown(5 * 3_600, 0, false, linear).state, State::Probable);
        assert_eq!(grown(9 * 3_600, 0, false, linear).state, State::Leak);
    }

    #[test]
    fn distinct_names_that_become_rarer_and_declared_owners_are_not_named() {
        let grower = grown(30_000, 0, false, |requests| 10_000.0 * requests.sqrt());
        assert!(grower.exponent.is_some_and(|exponent| exponent < 0.6), "{grower:?}");
        assert_eq!(grower.state, State::Steady);
        assert_eq!(grown(300, 0, true, |requests| requests * 100.0).state, State::Filling);
    }

    #[test]
    fn a_small_block_and_a_young_one_are_not_named() {
        let small = grown(3_600, 0, false, |requests| (requests * 100.0).min(900_000.0));
        assert_eq!(small.state, State::Steady);
        let young = grown(100, 0, false, |requests| requests * 1_000.0);
        assert_eq!((young.state, young.doublings() >= 3), (State::Steady, true));
    }

    #[test]
    fn a_container_that_has_found_its_size_is_no_longer_named() {
        let full = |requests: f64| (requests * 100.0).min(16e6);
        assert_eq!(grown(240, 0, false, full).state, State::Growing);
        assert_eq!(grown(300, 0, false, full).state, State::Steady);
    }

    #[test]
    fn exponents_are_found_from_three_steps() {
        for b in [0.5, 0.8, 1.0, 2.0] {
            let at = |doublings: f64| (doublings / b).exp2();
            let steps = [2.0, 3.0, 4.5];
            let ratio = (at(4.5) - at(3.0)) / (at(3.0) - at(2.0));
            assert!((exponent(ratio, steps) - b).abs() < 0.001, "{b}");
        }
        assert!(exponent(0.5, [1.0, 2.0, 3.0]) > 2.0, "ever faster");
    }
}
