//! What is written down about a request while it runs, and handed on when it ends.
//!
//! One pooled, fixed-size buffer per request in flight; flat binary entries, no registry of spans, so
//! nothing can collect under something that never closes. A span knows its parent as a number, and
//! nobody knows its children.
//!
//! In the order of a request: a worker's [`Recorder`] begins a [`Record`]; the data plane notes the
//! [`Wide`] event, opens spans ([`span`]) and writes events ([`site`], [`crate::event!`]); code that
//! has no record at hand finds it through [`current()`]; the last clone that is dropped ends it, and
//! only then is decided whether anybody will read it (`decide.rs`). What is kept is copied out as a
//! [`Finished`] into the worker's outbox, which the telemetry thread empties ([`Outboxes`]).
//!
//! [`timeline`] and [`report`] make it readable.
//!
//! Everything else, the usual case, costs neither an allocation nor a lock.

pub mod model;
mod shared;
mod recorder;
mod slot;
mod handle;
pub mod span;
mod current;
pub mod site;
mod log;
mod pool;
mod decide;
mod typical;
mod random;
mod traceparent;
mod decode;
pub mod timeline;
pub mod report;
pub mod json;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use crate::outbox::Outboxes;
pub use current::{Entered, Scope, current, scope};
pub use handle::Record;
pub use model::{
    Entry, Event, Exposed, Finished, Keep, Method, Protocol, Remote, ShortText, Span, SpanId,
    TraceId, Value, Verbosity, Wide,
};
pub use recorder::{Begin, Moment, Recorder};
pub use shared::Shared;
pub use site::Site;
pub use span::{OpenSpan, SpanGuard, Spanned};
pub use traceparent::parse_traceparent;

#[doc(hidden)]
pub use tracing::Level;

/// Bounds and thresholds of the recorder; every one is a key of `[telemetry.records]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Bytes of entries per request. Default 4 KiB: about 80 spans and events.
    pub buffer_bytes: usize,
    /// Bytes of entries per verbose request. Default 64 KiB.
    pub verbose_buffer_bytes: usize,
    /// Entries per segment of a request. Default 256, and sixteen times that when verbose.
    pub entries_max: u32,
    /// A request open for longer is handed on in segments of this length. Default 300 s.
    pub segment_after: Duration,
    /// A request is slow when it took longer than this *and* longer than `slow_factor` times what
    /// is usual for its app, so that an app that always takes a second does not fill the export.
    /// Default 500 ms.
    pub slow: Duration,
    /// Default 4, times the app's median.
    pub slow_factor: u32,
    /// How many requests of a hundred are kept though nothing is special about them. Default 1.
    pub sample_percent: f64,
    /// Records kept per second and node, verbose ones and those another node asked for aside.
    /// Default 100.
    pub exports_per_second_max: u32,
    /// The same per app. Default 20.
    pub app_exports_per_second_max: u32,
    /// How long after something unusual every request is kept, within the caps. Default 60 s.
    pub anomaly_window: Duration,
    /// Memory for all buffers and outboxes of the node. Five eighths are for buffers, one eighth for
    /// verbose buffers, a quarter for the outboxes. Default 16 MiB.
    pub budget_bytes: usize,
    /// Free buffers a worker keeps for the next burst. Default 64.
    pub retained_buffers: usize,
    /// Ended requests per worker that wait for the access log. Default 1024, of about 400 bytes.
    pub access_log_waiting_max: usize,
}

/// Why the recorder cannot work as configured. The texts name the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("buffer_bytes is not between 512 and 1048576")]
    BufferBytes,
    #[error("verbose_buffer_bytes is not between buffer_bytes and 4194304")]
    VerboseBufferBytes,
    #[error("entries_max is not between 1 and 65536")]
    EntriesMax,
    #[error("segment_after is not between 1 s and 1 day")]
    SegmentAfter,
    #[error("slow_factor is not between 1 and 1000")]
    SlowFactor,
    #[error("sample_percent is not between 0 and 100")]
    SamplePercent,
    #[error("app_exports_per_second_max is above exports_per_second_max")]
    AppExports,
    #[error("anomaly_window is longer than 1 day")]
    AnomalyWindow,
    #[error("budget_bytes does not hold sixteen verbose buffers")]
    BudgetBytes,
    #[error("access_log_waiting_max is not between 1 and 1048576")]
    AccessLogWaiting,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            buffer_bytes: 4 << 10,
            verbose_buffer_bytes: 64 << 10,
            entries_max: 256,
            segment_after: Duration::from_secs(300),
            slow: Duration::from_millis(500),
            slow_factor: 4,
            sample_percent: 1.0,
            exports_per_second_max: 100,
            app_exports_per_second_max: 20,
            anomaly_window: Duration::from_secs(60),
            budget_bytes: 16 << 20,
            retained_buffers: 64,
            access_log_waiting_max: 1024,
        }
    }
}

impl Config {
    /// Every way in which this configuration contradicts itself.
    pub fn problems(&self) -> Vec<ConfigError> {
        const DAY: Duration = Duration::from_hours(24);
        let checks = [
            ((512..=1 << 20).contains(&self.buffer_bytes), ConfigError::BufferBytes),
            (
                (self.buffer_bytes..=4 << 20).contains(&self.verbose_buffer_bytes),
                ConfigError::VerboseBufferBytes,
            ),
            ((1..=1 << 16).contains(&self.entries_max), ConfigError::EntriesMax),
            (
                (Duration::from_secs(1)..=DAY).contains(&self.segment_after),
                ConfigError::SegmentAfter,
            ),
            ((1..=1000).contains(&self.slow_factor), ConfigError::SlowFactor),
            ((0.0..=100.0).contains(&self.sample_percent), ConfigError::SamplePercent),
            (
                self.app_exports_per_second_max <= self.exports_per_second_max,
                ConfigError::AppExports,
            ),
            (self.anomaly_window <= DAY, ConfigError::AnomalyWindow),
            (self.budget_bytes / 16 >= self.verbose_buffer_bytes, ConfigError::BudgetBytes),
            ((1..=1 << 20).contains(&self.access_log_waiting_max), ConfigError::AccessLogWaiting),
        ];
        checks.into_iter().filter_map(|(holds, error)| (!holds).then_some(error)).collect()
    }

    fn buffers_cap(&self) -> usize {
        self.budget_bytes / 8 * 5
    }

    fn verbose_buffers_cap(&self) -> usize {
        self.budget_bytes / 8
    }

    fn outboxes_cap(&self) -> usize {
        self.budget_bytes / 4
    }
}
