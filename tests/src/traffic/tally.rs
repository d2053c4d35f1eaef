//! What clients saw, counted.

use std::fmt;
use std::time::Duration;

/// Reasons that are kept; the counts go on.
const REASONS_MAX: usize = 5;

/// What the clients of one driver saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests, messages or transfers that clients began.
    pub sent: u64,
    /// Those that were answered whole and right.
    pub ok: u64,
    /// Nobody listened.
    pub refused: u64,
    /// The connection or the stream was reset, or the connection ended in the middle of an answer.
    pub reset: u64,
    /// Any other end: another status, another content, no answer for long.
    pub failed: u64,
    /// Connections without a way to say goodbye (raw bytes) that ended before the client was done,
    /// though nothing was on its way.
    pub cut: u64,
    /// Requests that must not be sent twice and reached the instance more than once.
    pub duplicated: u64,
    /// Sent again because the server had said that it did not look at them: a stream above GOAWAY's
    /// last one or refused, a message that a WebSocket's close 1001 crossed.
    pub again: u64,
    /// Requests without side effects, sent again because the kept connection had ended before the
    /// first byte of an answer (RFC 9112, section 9.3.1).
    pub crossed: u64,
    /// Kept connections that ended while nothing was asked, without being announced: what
    /// `crossed` comes from when the client is less lucky.
    pub unannounced: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Of these, those whose TLS session was resumed.
    pub resumed: u64,
    /// Answers that began in one generation of the node and ended in another.
    pub spanning: u64,
    /// The longest time from asking, connecting included, to the last byte; for what streams, the
    /// longest silence.
    pub slowest: Duration,
    /// Why the first few were lost.
    pub reasons: Vec<String>,
}

/// How something a client began came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// Nobody listened.
    Refused,
    /// Reset, or ended in the middle.
    Reset(String),
    /// The connection ended before the first byte.
    Closed,
    /// Everything else.
    Failed(String),
}

// === impl Tally ===

impl Tally {
    /// All that was lost.
    pub fn lost(&self) -> u64 {
        self.refused + self.reset + self.failed + self.cut + self.duplicated
    }

    /// # Panics
    /// When anything was lost, or nothing was done.
    #[track_caller]
    pub fn assert_nothing_lost(&self, what: &str) {
        assert!(self.ok > 0, "{what}: nothing was done: {self}");
        assert_eq!(self.lost(), 0, "{what}: {self}");
        assert_eq!(self.sent, self.ok, "{what}: begun and never ended: {self}");
    }

    pub(super) fn lose(&mut self, loss: &Loss) {
        match loss {
            Loss::Refused => self.refused += 1,
            Loss::Reset(_) => self.reset += 1,
            Loss::Closed | Loss::Failed(_) => self.failed += 1,
        }
        self.reason(&loss.to_string());
    }

    pub(super) fn reason(&mut self, reason: &str) {
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(reason.to_owned());
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("refused", self.refused),
            ("reset", self.reset),
            ("failed", self.failed),
            ("cut", self.cut),
            ("duplicated", self.duplicated),
            ("again", self.again),
            ("crossed", self.crossed),
            ("unannounced", self.unannounced),
            ("spanning", self.spanning),
            ("connections", self.connections),
            ("resumed", self.resumed),
        ];
        write!(f, "{} of {} ok", self.ok, self.sent)?;
        for (name, count) in counts.iter().filter(|(_, count)| *count > 0) {
            write!(f, ", {count} {name}")?;
        }
        write!(f, ", slowest {} ms", self.slowest.as_millis())?;
        self.reasons.iter().try_for_each(|reason| write!(f, "\n    {reason}"))
    }
}

// === impl Loss ===

impl Loss {
    /// What an error of a socket or of TLS says.
    pub(super) fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
        match error.kind() {
            ConnectionRefused => Self::Refused,
            ConnectionReset | BrokenPipe | UnexpectedEof => Self::Reset(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }

    /// What an error of an HTTP/2 stream says, unless the stream may be sent again.
    pub(super) fn of_stream(error: &h2::Error) -> Self {
        match error.get_io() {
            Some(io) => Self::of(io),
            None if error.is_reset() && error.is_remote() => Self::Reset(error.to_string()),
            None => Self::Failed(error.to_string()),
        }
    }

    /// The same, with what the client was doing.
    pub(super) fn during(self, what: &str) -> Self {
        match self {
            Self::Reset(why) => Self::Reset(format!("{what}: {why}")),
            Self::Failed(why) => Self::Failed(format!("{what}: {why}")),
            other => other,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Reset(why) => write!(f, "reset: {why}"),
            Self::Closed => f.write_str("failed: closed before the first byte"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_counted_by_its_kind_and_the_first_reasons_are_kept() {
        let mut tally = Tally { sent: 9, ok: 1, ..Tally::default() };
        tally.lose(&Loss::Refused);
        tally.lose(&Loss::Reset("x".to_owned()));
        (0..6).for_each(|_| tally.lose(&Loss::Closed));
        assert_eq!((tally.refused, tally.reset, tally.failed, tally.lost()), (1, 1, 6, 8));
        assert_eq!(tally.reasons.len(), REASONS_MAX);
        assert!(std::panic::catch_unwind(|| tally.assert_nothing_lost("it")).is_err());
    }

    #[test]
    fn nothing_done_is_not_nothing_lost() {
        let tally = Tally::default();
        assert!(std::panic::catch_unwind(|| tally.assert_nothing_lost("it")).is_err());
        let tally = Tally { sent: 2, ok: 2, ..Tally::default() };
        tally.assert_nothing_lost("it");
    }
}
