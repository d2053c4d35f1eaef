//! What systemd is told (sd_notify(3)): that the node serves, what it does, that it lives, that it
//! ends. Where nobody listens (`NOTIFY_SOCKET` is not set) nothing is said.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

/// Tells that the process lives, while it does.
#[derive(Debug)]
pub struct Heartbeat {
    /// Without a sign of life for so long the process is killed and started again; `WatchdogSec=`.
    period: Option<Duration>,
    last: Option<Instant>,
}

/// The node serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It does not any more, and will end.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// What `systemctl status` shows.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd does not listen");
    }
}

// === impl Heartbeat ===

impl Heartbeat {
    /// As the environment asks for (`WATCHDOG_USEC`).
    pub fn of_environment() -> Self {
        Self { period: sd_notify::watchdog_enabled(), last: None }
    }

    /// Gives a sign of life twice in a period, unless something has hung for the whole of one.
    pub fn beat(&mut self, hangs_for: Duration, now: Instant) {
        if self.is_due(hangs_for, now) {
            tell(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, hangs_for: Duration, now: Instant) -> bool {
        let Some(period) = self.period else { return false };
        // Half a period before the kill, so that who is silent has hung for a whole one by then.
        let is_due = self.last.is_none_or(|last| now - last >= period / 2);
        let is_well = hangs_for < period / 2;
        if is_due && is_well {
            self.last = Some(now);
        }
        is_due && is_well
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heart_beats_twice_in_a_period_while_nothing_hangs() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut heartbeat = Heartbeat { period: Some(30 * second), last: None };
        let beats = (0..120)
            .filter(|seconds| {
                let hangs_for =
                    if *seconds < 60 { Duration::ZERO } else { (*seconds - 60) * second };
                heartbeat.is_due(hangs_for, start + *seconds * second)
            })
            .collect::<Vec<_>>();
        assert_eq!(beats, [0, 15, 30, 45, 60]);
    }

    #[test]
    fn without_a_watchdog_there_is_no_beat() {
        let mut heartbeat = Heartbeat { period: None, last: None };
        assert!(!heartbeat.is_due(Duration::ZERO, Instant::now()));
    }
}
