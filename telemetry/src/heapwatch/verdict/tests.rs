//! The verdict on simulated days: what leaks must be found in time, what only looks like it must not.
//!
//! Sampled blocks come at random (one per 512 KiB), under a load that swings by 60 % through the day;
//! a scenario says how fast its memory is allocated and how long a block lives.

use super::*;

const MB: f64 = 1e6;
const HOUR: f64 = 3_600.0;
const TICK: f64 = 30.0;
/// Bytes one sample stands for.
const SAMPLE: f64 = (1 << 19) as f64;

/// A small generator, so that a failure repeats.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    fn poisson(&mut self, mean: f64) -> usize {
        if mean > 50.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as usize;
        }
        let (limit, mut product, mut n) = ((-mean).exp(), self.unit(), 0);
        while product > limit {
            product *= self.unit();
            n += 1;
        }
        n
    }
}

/// Sampled blocks of one stack: born, dead.
struct Day {
    hours: f64,
    blocks: Vec<(f64, f64)>,
    random: Random,
}

/// When each state was first reached, in hours.
#[derive(Debug, Default)]
struct Found {
    growing: Option<f64>,
    probable: Option<f64>,
    leak: Option<f64>,
    bytes_per_request: Option<f64>,
}

const REQUESTS_PER_SECOND: f64 = 1_000.0;

fn load(at: f64) -> f64 {
    1.0 + 0.6 * (std::f64::consts::TAU * at / (24.0 * HOUR)).sin()
}

impl Day {
    fn new(hours: f64, seed: u64) -> Self {
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self { hours, blocks: Vec::new(), random }
    }

    /// Allocates `rate(at)` bytes per second, in blocks that live for what `life` draws.
    fn allocate(
        mut self,
        rate: impl Fn(f64) -> f64,
        life: impl Fn(&mut Random, f64) -> f64,
    ) -> Self {
        for tick in 0..(self.hours * HOUR / TICK) as usize {
            let at = tick as f64 * TICK;
            for _ in 0..self.random.poisson(rate(at) * TICK / SAMPLE) {
                let born = at + TICK * self.random.unit();
                let death = born + life(&mut self.random, born);
                self.blocks.push((born, death));
            }
        }
        self
    }

    fn judged(self, filling: bool) -> Found {
        let scales = Profile::Production.scales();
        let ticks = (self.hours * HOUR / TICK) as usize;
        let mut promoted = vec![[0_u64; SCALES]; ticks + 1];
        let mut exited = promoted.clone();
        for (born, death) in &self.blocks {
            for (index, scale) in scales.iter().enumerate() {
                let old = born + scale.age.as_secs_f64();
                if *death > old {
                    promoted[((old / TICK) as usize).min(ticks)][index] += 1;
                    exited[((death / TICK).min(ticks as f64)) as usize][index] += 1;
                }
            }
        }
        let mut track = Track::new(0);
        let (mut levels, mut requests) = ([Level::default(); SCALES], vec![0.0]);
        let mut found = Found::default();
        for tick in 0..ticks {
            let at = tick as f64 * TICK;
            requests.push(requests[tick] + REQUESTS_PER_SECOND * load(at) * TICK);
            for (index, level) in levels.iter_mut().enumerate() {
                level.exits += exited[tick][index];
                level.old_samples += promoted[tick][index];
                level.old_samples -= exited[tick][index];
                level.old_bytes = (level.old_samples as f64 * SAMPLE) as u64;
                level.old_requested = level.old_bytes;
                let age = (scales[index].age.as_secs_f64() / TICK) as usize;
                level.requests = requests[tick.saturating_sub(age)] as u64;
            }
            let verdict = *track.tick((at * 1000.0) as u64, Profile::Production, &levels, filling);
            let hours = at / HOUR;
            if verdict.state >= State::Growing {
                found.growing.get_or_insert(hours);
                found.bytes_per_request = verdict.bytes_per_request;
            }
            if verdict.state >= State::Probable {
                found.probable.get_or_insert(hours);
            }
            if verdict.state >= State::Leak {
                found.leak.get_or_insert(hours);
            }
        }
        found
    }
}

const RUNS: u64 = 8;

/// No run of a scenario without a leak is called probable, or leak.
fn innocent(day: impl Fn(u64) -> Day) {
    for seed in 1..=RUNS {
        let found = day(seed).judged(false);
        assert!(found.probable.is_none() && found.leak.is_none(), "seed {seed}: {found:?}");
    }
}

/// Every run is called a leak by `hours`.
fn guilty(hours: f64, day: impl Fn(u64) -> Day) -> Vec<Found> {
    (1..=RUNS)
        .map(|seed| {
            let found = day(seed).judged(false);
            assert!(found.leak.is_some_and(|at| at <= hours), "seed {seed}: {found:?}");
            found
        })
        .collect()
}

#[test]
fn requests_and_connections_of_all_lengths_are_no_leak() {
    let rate = |at| 20.0 * MB * load(at);
    innocent(|seed| Day::new(24.0, seed).allocate(rate, |random, _| random.exponential(0.3)));
    // Median one minute; one connection in a hundred lives for two hours.
    let rate = |at| 0.2 * MB * load(at);
    innocent(|seed| {
        Day::new(24.0, seed).allocate(rate, |random, _| 60.0 * (2.0 * random.normal()).exp())
    });
}

#[test]
fn websockets_that_live_for_hours_are_no_leak() {
    // 10,000 connections of 50 kB.
    let rate = |at| 500.0 * MB / (4.0 * HOUR) * load(at);
    innocent(|seed| {
        Day::new(48.0, seed).allocate(rate, |random, _| random.exponential(4.0 * HOUR))
    });
}

#[test]
fn a_step_and_a_table_that_doubles_are_no_leak() {
    let step = |at| if (6.0 * HOUR..6.0 * HOUR + 60.0).contains(&at) { MB } else { 0.0 };
    innocent(|seed| Day::new(24.0, seed).allocate(step, |_, _| f64::INFINITY));
    // Doubles every four hours: the old table ends when the new one is there.
    let period = 4.0 * HOUR;
    let double = |at: f64| {
        let generation = (at / period).floor();
        if at - generation * period < TICK { 10.0 * MB * generation.exp2() / TICK } else { 0.0 }
    };
    innocent(|seed| Day::new(24.0, seed).allocate(double, |_, born| period - born % period));
}

#[test]
fn a_crowd_that_comes_and_goes_is_no_leak() {
    let crowd = |at| {
        let tenfold = if (8.0 * HOUR..9.0 * HOUR).contains(&at) { 10.0 } else { 1.0 };
        0.1 * MB * load(at) * tenfold
    };
    innocent(|seed| Day::new(24.0, seed).allocate(crowd, |random, _| random.exponential(900.0)));
}

#[test]
fn an_inventory_reloaded_every_hour_is_no_leak() {
    let reload = |at: f64| if at % HOUR < 60.0 { 50.0 * MB / 60.0 } else { 0.0 };
    innocent(|seed| {
        Day::new(24.0, seed)
            .allocate(reload, |random, born| HOUR - born % HOUR + 60.0 * random.unit())
    });
}

#[test]
fn a_cache_that_fills_for_three_hours_is_neither_probable_nor_a_leak() {
    // 1 GB, first in first out.
    let rate = 1_000.0 * MB / (3.0 * HOUR);
    let day = |seed| Day::new(24.0, seed).allocate(|_| rate, |_, _| 3.0 * HOUR);
    innocent(day);
    // It is said to grow while it fills, unless its owner has declared it.
    assert!(day(1).judged(false).growing.is_some());
    assert!(day(1).judged(true).growing.is_none());
}

#[test]
fn two_kilobytes_per_request_are_found_on_every_scale() {
    let rate = |at| 2_000.0 * REQUESTS_PER_SECOND * load(at);
    let day = |seed| Day::new(12.0, seed).allocate(rate, |_, _| f64::INFINITY);
    for found in guilty(9.0, day) {
        assert!(found.growing.is_some_and(|at| at < 0.7), "{found:?}");
        assert!(found.probable.is_some_and(|at| at < 5.0), "{found:?}");
        let bytes = found.bytes_per_request.expect("it grows with the requests");
        assert!((bytes / 2_000.0 - 1.0).abs() < 0.05, "{found:?}");
    }
}

#[test]
fn sixty_four_bytes_per_request_are_found_within_nine_hours() {
    let rate = |at| 64.0 * REQUESTS_PER_SECOND * load(at);
    for found in guilty(9.0, |seed| Day::new(12.0, seed).allocate(rate, |_, _| f64::INFINITY)) {
        let bytes = found.bytes_per_request.expect("it grows with the requests");
        assert!((bytes / 64.0 - 1.0).abs() < 0.15, "{found:?}");
    }
}

#[test]
fn four_kilobytes_per_second_are_found_within_nine_hours() {
    // 200 B per request at 20 requests a second.
    let rate = |_| 4_000.0;
    guilty(10.0, |seed| Day::new(24.0, seed).allocate(rate, |_, _| f64::INFINITY));
}

#[test]
fn one_percent_of_a_busy_stack_is_found() {
    let rate = |at| 5.0 * MB * load(at);
    guilty(9.0, |seed| {
        Day::new(12.0, seed).allocate(rate, |random, _| {
            if random.unit() < 0.01 { f64::INFINITY } else { random.exponential(1.0) }
        })
    });
}

#[test]
fn a_tenth_of_a_stack_whose_blocks_live_for_an_hour_is_found() {
    let rate = |at| 0.1 * MB * load(at);
    guilty(30.0, |seed| {
        Day::new(30.0, seed).allocate(rate, |random, _| {
            if random.unit() < 0.1 { f64::INFINITY } else { random.exponential(HOUR) }
        })
    });
}

#[test]
fn a_leak_that_is_mended_is_forgotten() {
    let mended = |at| if at < 10.0 * HOUR { 0.5 * MB } else { 0.0 };
    let mut track = Track::new(0);
    let mut level = Level::default();
    for tick in 0..(24.0 * HOUR / TICK) as u64 {
        level.old_samples += (mended(tick as f64 * TICK) * TICK / SAMPLE) as u64;
        level.old_bytes = level.old_samples * SAMPLE as u64;
        track.tick(tick * 30_000, Profile::Production, &[level; SCALES], false);
        if tick == (9.5 * HOUR / TICK) as u64 {
            assert_eq!(track.verdict().state, State::Leak);
        }
    }
    assert_eq!(track.verdict().state, State::Steady);
}

#[test]
fn slopes_survive_outliers() {
    let line = (0..25).map(|x| (f64::from(x), if x % 5 == 0 { 1e9 } else { f64::from(3 * x) }));
    assert_eq!(slope(line), Some(3.0));
    assert_eq!(slope([(1.0, 2.0), (1.0, 5.0)].into_iter()), None);
}
