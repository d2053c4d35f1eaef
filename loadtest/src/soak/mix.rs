//! All kinds of work side by side, and twice a crowd that does ten times as much.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::fill::Fill;
use crate::flat::{
    Bodies, Errors, Grpc, Load, Records, Resets, SlowReader, Target, Tcp, Team, WebSockets, Window,
};
use crate::histogram::Histogram;

/// One window of it lasts for a time.
pub(super) struct Mix {
    teams: Vec<Turns>,
    crowd: Vec<Turns>,
    /// Windows with the crowd.
    crowded: [Range<u32>; 2],
    time: Duration,
    window: u32,
}

/// A team that looks at the clock between two turns.
struct Turns {
    name: &'static str,
    team: Box<dyn Load + Send>,
    /// Units of a turn.
    units: u64,
}

/// Windows of a run.
pub(super) const WINDOWS: u32 = 60;

/// A crowd stays for a tenth of the time, but no longer.
const CROWD_MAX: Duration = Duration::from_secs(60);

/// The first crowd comes in the warm-up, where what grows with the number of clients and stays may
/// grow; the second must find all of that there.
const CROWDS_AT: [u32; 2] = [3, 30];

/// How many times as many clients there are with the crowd.
const TIMES: usize = 10;

impl Mix {
    pub(super) fn new(target: &Target, time: Duration) -> Self {
        let target = || target.clone();
        let of = |name: &'static str, team: Box<dyn Load + Send>, size: usize| Turns {
            name,
            team,
            units: 4.max(size as u64),
        };
        let more = TIMES - 1;
        let long = crowd_windows(time);
        Self {
            teams: vec![
                of("requests", Box::new(Team::new(4, |_| Records::new(target(), 100))), 4),
                of("WebSockets", Box::new(Team::new(2, |_| WebSockets::new(target()))), 2),
                of("raw TCP", Box::new(Team::new(2, |_| Tcp::new(target()))), 2),
                of("gRPC", Box::new(Team::new(2, |_| Grpc::new(target()))), 2),
                of("bodies", Box::new(Team::new(1, |_| Bodies::new(target()))), 1),
                of("slow readers", Box::new(Team::new(4, |_| SlowReader::new(target()))), 4),
                of("resets", Box::new(Team::new(2, |_| Resets::new(target()))), 2),
                of("errors", Box::new(Team::new(2, |_| Errors::new(target()))), 2),
                of("filling", Box::new(Team::new(8, |_| Fill::new(target()))), 8),
            ],
            crowd: vec![
                of(
                    "crowd of requests",
                    Box::new(Team::new(4 * more, |_| Records::new(target(), 100))),
                    16 * more,
                ),
                of(
                    "crowd of WebSockets",
                    Box::new(Team::new(2 * more, |_| WebSockets::new(target()))),
                    8 * more,
                ),
                of(
                    "crowd of raw TCP",
                    Box::new(Team::new(2 * more, |_| Tcp::new(target()))),
                    8 * more,
                ),
                of(
                    "crowd of gRPC",
                    Box::new(Team::new(2 * more, |_| Grpc::new(target()))),
                    8 * more,
                ),
            ],
            crowded: CROWDS_AT.map(|first| first..first + long),
            time: time / WINDOWS,
            window: 0,
        }
    }

    /// Windows in which the crowd was there.
    pub(super) fn crowded(&self) -> usize {
        self.crowded.iter().cloned().flatten().filter(|window| *window < self.window).count()
    }
}

/// How many windows one crowd is there for: at least one, which in a very long run is longer.
fn crowd_windows(time: Duration) -> u32 {
    let windows = (time / 10).min(CROWD_MAX).as_secs_f64() / (time / WINDOWS).as_secs_f64();
    (windows.round() as u32).max(1)
}

impl Load for Mix {
    fn window(&mut self, _: u64) -> Result<Window> {
        let began = Instant::now();
        let is_crowded = self.crowded.iter().any(|crowded| crowded.contains(&self.window));
        let crowd = self.crowd.iter_mut().filter(|_| is_crowded);
        let (done, time) = (AtomicU64::new(0), self.time);
        let ended: Vec<Result<Histogram>> = thread::scope(|scope| {
            let done = &done;
            let run = |Turns { team, units, .. }: &mut Turns| -> Result<Histogram> {
                let mut histogram = Histogram::default();
                while began.elapsed() < time {
                    let window = team.window(*units)?;
                    done.fetch_add(window.done, SeqCst);
                    histogram.add(Duration::from_secs_f64(window.latency.p50 / 1e3));
                }
                Ok(histogram)
            };
            let teams = self.teams.iter_mut().chain(crowd);
            let threads: Vec<_> = teams.map(|team| scope.spawn(move || run(team))).collect();
            threads.into_iter().map(|one| one.join().expect("teams do not panic")).collect()
        });
        self.window += 1;
        if is_crowded {
            self.crowd.iter_mut().for_each(|turns| turns.team.rest()); // a crowd leaves
        }
        let mut latency = Histogram::default();
        for histogram in ended {
            latency.merge(&histogram?);
        }
        let seconds = began.elapsed().as_secs_f64();
        Ok(Window { done: done.load(SeqCst), seconds, latency: latency.quantiles() })
    }

    fn rest(&mut self) {
        self.teams.iter_mut().chain(&mut self.crowd).for_each(|turns| turns.team.rest());
    }

    fn wrong(&self) -> Vec<(String, u64)> {
        let of = |turns: &Turns| {
            let name = turns.name;
            let named = |(what, count)| (format!("{name}: {what}"), count);
            turns.team.wrong().into_iter().map(named).collect::<Vec<_>>()
        };
        self.teams.iter().chain(&self.crowd).flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_stays_for_a_tenth_of_the_time_up_to_a_minute_and_for_a_window_at_least() {
        let seconds = |minutes: u64| {
            let time = Duration::from_secs(60 * minutes);
            (time / WINDOWS * crowd_windows(time)).as_secs()
        };
        assert_eq!([seconds(1), seconds(10), seconds(60), seconds(600)], [6, 60, 60, 600]);
    }
}
