//! The access log: one JSON object for each request that ended, on a line of its own.
//!
//! It is off unless configured, and lossy rather than slow: lines wait in a buffer of fixed size
//! and leave in large writes; what finds no room is counted, and a line in the log says how many
//! are missing where. Nothing here waits for a reader: a pipe is only written to when it takes the
//! bytes. (A regular file can make any writer wait for its disk, so only the telemetry thread is
//! here.) A disk that is full costs the lines that do not fit, and a warning once a minute.
//!
//! # Fields
//!
//! What does not apply is left out. Names are stable; new ones may be added.
//!
//! | field | what |
//! |---|---|
//! | `time` | when the request began: RFC 3339, UTC, milliseconds |
//! | `request_id` | as sent to both sides |
//! | `trace_id` | 32 hexadecimal digits |
//! | `app`, `instance`, `node` | which was meant, which was chosen, and where that is |
//! | `method` | of the nine that are registered, or `_OTHER`; raw TCP has none |
//! | `protocol` | what the client spoke: `http/1.1`, `http/2`, `mesh`, `tcp`, `websocket` |
//! | `tls` | whether it spoke it encrypted |
//! | `status` | absent when the client went before it was answered |
//! | `error` | the code of the failure |
//! | `duration_ms` | to the last byte, with microseconds as decimals |
//! | `head_ms` | to the head of the answer |
//! | `attempts` | instances that were tried |
//! | `request_bytes`, `response_bytes` | of bodies; of a tunnel what each side sent |
//! | `client.address`, `server.address`, `url.path`, `url.query`, `user_agent.original` | client text, each only if `telemetry.expose` names it |
//!
//! A line with `time` and `lost` stands where so many lines are missing.

mod line;
mod output;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::ledger::{Account, Ledger, Unit};
use crate::metrics::{Counter, Registry, catalogue};
use crate::record::model::Wide;

use output::Output;

/// Where the log goes, and how much of it may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub target: Target,
    /// Bytes that may wait to be written. Default: 256 KiB, some 600 lines.
    pub buffer_bytes: usize,
}

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    #[default]
    Stdout,
    /// Created with mode 0640 and appended to. A path that leads elsewhere than before (it was
    /// renamed or removed) is opened again within a second.
    File(PathBuf),
}

/// The open log. One thread owns it.
pub struct AccessLog {
    output: Output,
    buffer: Vec<u8>,
    buffer_bytes: usize,
    /// Lines that no line in the log speaks of yet.
    lost: u64,
    dropped: Counter,
    errors: Counter,
    account: Account,
    /// Not everything was taken: not tried again before the next flush.
    is_stuck: bool,
    /// When the file was last looked for under its name.
    looked: Option<Instant>,
    warned: Option<Instant>,
}

/// A batch: so much is collected before it is written without being asked to.
const BATCH: usize = 64 * 1024;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const WARN_EVERY: Duration = Duration::from_secs(60);

// === impl AccessLog ===

impl AccessLog {
    /// Opens the log.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened for appending.
    pub fn open(config: &Config, registry: &Registry, ledger: &Ledger) -> io::Result<Self> {
        let Config { target, buffer_bytes } = config;
        let output = Output::open(target)?;
        let account = ledger.open("access_log", Unit::Bytes, *buffer_bytes as u64);
        let buffer = Vec::with_capacity(*buffer_bytes);
        account.take(*buffer_bytes);
        Ok(Self {
            output,
            buffer,
            buffer_bytes: *buffer_bytes,
            lost: 0,
            dropped: catalogue::ACCESS_LOG_DROPPED.counter_in(registry, &[]),
            errors: catalogue::ACCESS_LOG_ERRORS.counter_in(registry, &[]),
            account,
            is_stuck: false,
            looked: None,
            warned: None,
        })
    }

    /// Adds a line; writes when a batch is together.
    pub fn write(&mut self, wide: &Wide, now: Instant) {
        if !self.says_what_is_lost() || !self.add(|buffer| line::request(buffer, wide)) {
            self.lost += 1;
            self.dropped.increment();
        }
        if !self.is_stuck && self.buffer.len() >= BATCH.min(self.buffer_bytes / 2) {
            self.drain(now);
        }
    }

    /// Writes what waits, as far as it is taken. To be called a few times a second.
    pub fn flush(&mut self, now: Instant) {
        if self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK_EVERY) {
            self.looked = Some(now);
            if self.output.is_elsewhere() {
                self.reopen(now);
            }
        }
        self.drain(now);
        if self.lost > 0 && self.says_what_is_lost() {
            self.drain(now);
        }
    }

    /// Opens the file by its name again, after it was rotated. What waits goes to the old one as
    /// far as it takes it, and to the new one from the next line on.
    pub fn reopen(&mut self, now: Instant) {
        self.drain(now);
        match self.output.reopen() {
            Ok(()) => self.end_torn_line(),
            Err(error) => self.failed(&error, now),
        }
    }

    /// Bytes that wait.
    pub fn backlog(&self) -> usize {
        self.buffer.len()
    }

    fn drain(&mut self, now: Instant) {
        let (written, result) = self.output.write(&self.buffer);
        if written > 0 {
            self.output.is_torn = self.buffer[written - 1] != b'\n';
            self.buffer.drain(..written);
        }
        self.is_stuck = !self.buffer.is_empty();
        if let Err(error) = result {
            self.failed(&error, now);
        }
    }

    /// The rest of a line whose beginning is in another file is of no use.
    fn end_torn_line(&mut self) {
        if !std::mem::take(&mut self.output.is_torn) {
            return;
        }
        let end = self.buffer.iter().position(|byte| *byte == b'\n');
        self.buffer.drain(..end.map_or(self.buffer.len(), |end| end + 1));
        self.lost += 1;
        self.dropped.increment();
    }

    /// Makes room for what is to follow a gap: the line that tells of it.
    fn says_what_is_lost(&mut self) -> bool {
        if self.lost == 0 {
            return true;
        }
        let (lost, now) = (self.lost, SystemTime::now());
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let said = self.add(|buffer| line::lost(buffer, lost, now));
        if said {
            self.lost = 0;
        }
        said
    }

    /// Adds a line if there is room for it.
    fn add(&mut self, line: impl FnOnce(&mut Vec<u8>)) -> bool {
        let before = self.buffer.len();
        if before + line::BYTES_MAX > self.buffer_bytes {
            return false; // so the buffer never grows
        }
        line(&mut self.buffer);
        debug_assert!(self.buffer.len() - before <= line::BYTES_MAX, "a line is bounded");
        true
    }

    fn failed(&mut self, error: &io::Error, now: Instant) {
        self.errors.increment();
        if self.warned.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY) {
            self.warned = Some(now);
            let (waiting, dropped) = (self.buffer.len(), self.dropped.value());
            tracing::warn!(%error, waiting, dropped, "the access log cannot be written");
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush(Instant::now());
        self.account.give_back(self.buffer_bytes);
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { target: Target::default(), buffer_bytes: 256 * 1024 }
    }
}

#[cfg(test)]
mod tests;
