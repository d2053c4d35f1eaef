//! How fast something grows, by a line that a few strange points do not bend: Theil–Sen.

use std::fmt;

use serde::Serialize;

/// A slope and the interval that holds it with 99 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Slope {
    pub low: f64,
    pub estimate: f64,
    pub high: f64,
}

/// The two-sided 99 % quantile of the normal distribution.
const Z: f64 = 2.576;

/// The median of the slopes of all pairs of points, and Sen's interval around it: the ranks that
/// Kendall's statistic has by chance when nothing grows.
///
/// `None` with less than eight points, where the normal approximation of that statistic is poor, or
/// when all have the same x.
pub(crate) fn theil_sen(points: &[(f64, f64)]) -> Option<Slope> {
    const POINTS_MIN: usize = 8;
    if points.len() < POINTS_MIN {
        return None;
    }
    let pairs = points.iter().enumerate().flat_map(|(index, (x0, y0))| {
        points[index + 1..].iter().map(move |(x1, y1)| (x1 - x0, y1 - y0))
    });
    let mut slopes: Vec<f64> = pairs.filter(|(x, _)| *x != 0.0).map(|(x, y)| y / x).collect();
    slopes.sort_by(f64::total_cmp);
    let last = slopes.len().checked_sub(1)?;
    let n = points.len() as f64;
    let chance = Z * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
    let margin = (chance / 2.0).ceil() as usize;
    let middle = last / 2;
    Some(Slope {
        low: slopes[middle.saturating_sub(margin)],
        estimate: (slopes[middle] + slopes[last.div_ceil(2)]) / 2.0,
        high: slopes[(last.div_ceil(2) + margin).min(last)],
    })
}

impl fmt::Display for Slope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} B per request (99 %: {:.2} to {:.2})", self.estimate, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1 that look random and are the same in every run (SplitMix64).
    fn noise(seed: u64) -> impl Iterator<Item = f64> {
        (1..).map(move |n: u64| {
            let mut z = (seed << 32 | n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) as f64 / (u64::MAX as f64 / 2.0) - 1.0
        })
    }

    fn line(slope: f64, noisy: f64, seed: u64) -> Vec<(f64, f64)> {
        let points = noise(seed).take(40).enumerate();
        points.map(|(x, noise)| (x as f64, 1e6 + slope * x as f64 + noisy * noise)).collect()
    }

    #[test]
    fn a_line_has_its_slope() {
        let slope = theil_sen(&line(3.5, 0.0, 1)).unwrap();
        assert!((slope.estimate - 3.5).abs() < 1e-6 && (slope.high - slope.low) < 1e-6, "{slope}");
    }

    #[test]
    fn a_few_strange_points_do_not_bend_it() {
        let mut points = line(1.0, 0.1, 2);
        for strange in [3, 20, 39] {
            points[strange].1 += 1e5;
        }
        let slope = theil_sen(&points).unwrap();
        assert!((slope.estimate - 1.0).abs() < 0.05, "{slope}");
    }

    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let holds = |seed: &u64| {
            let slope = theil_sen(&line(2.0, 30.0, *seed)).unwrap();
            slope.low <= 2.0 && 2.0 <= slope.high
        };
        let held = (0..1_000).filter(holds).count();
        assert!((975..=1_000).contains(&held), "{held} of 1000");
        // It says something: a slope that is far from the truth is outside.
        let slope = theil_sen(&line(2.0, 30.0, 7)).unwrap();
        assert!(slope.low > 0.5 && slope.high < 3.5, "{slope}");
    }

    #[test]
    fn too_few_points_say_nothing() {
        assert_eq!(theil_sen(&line(1.0, 0.0, 1)[..7]), None);
        assert_eq!(theil_sen(&[(1.0, 1.0); 10]), None);
    }
}
