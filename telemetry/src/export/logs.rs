//! Single log records, such as the verdict on the last exit.

use std::time::{Duration, SystemTime};

use opentelemetry::InstrumentationScope;
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _};
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLogger, SdkLoggerProvider};

/// A log record. The text in it is ours or the operator's, never a client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub severity: Severity,
    /// Since the Unix epoch.
    pub at: Duration,
    pub body: String,
    pub attributes: Vec<(&'static str, String)>,
}

/// How much a log record matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Info,
    Warn,
    Error,
    Fatal,
}

/// Makes records of the SDK's type, which only a logger of the SDK can.
pub(super) struct Maker {
    logger: SdkLogger,
    scope: InstrumentationScope,
}

// === impl LogRecord ===

impl LogRecord {
    /// Bytes of memory this record holds, itself included.
    pub(super) fn bytes(&self) -> usize {
        let slots = self.attributes.capacity() * size_of::<(&str, String)>();
        let text: usize = self.attributes.iter().map(|(_, value)| value.capacity()).sum();
        size_of::<Self>() + 2 * size_of::<usize>() + self.body.capacity() + slots + text
    }
}

// === impl Maker ===

impl Maker {
    pub(super) fn new(scope: InstrumentationScope) -> Self {
        // Without a processor: nothing is emitted through it.
        let provider = SdkLoggerProvider::builder().build();
        Self { logger: provider.logger_with_scope(scope.clone()), scope }
    }

    pub(super) fn scope(&self) -> &InstrumentationScope {
        &self.scope
    }

    pub(super) fn make(&self, log: &LogRecord) -> SdkLogRecord {
        use opentelemetry::logs::Severity as Number;
        let mut record = self.logger.create_log_record();
        let at = SystemTime::UNIX_EPOCH.checked_add(log.at).unwrap_or(SystemTime::UNIX_EPOCH);
        record.set_timestamp(at);
        record.set_observed_timestamp(at);
        let (number, text) = match log.severity {
            Severity::Info => (Number::Info, "INFO"),
            Severity::Warn => (Number::Warn, "WARN"),
            Severity::Error => (Number::Error, "ERROR"),
            Severity::Fatal => (Number::Fatal, "FATAL"),
        };
        record.set_severity_number(number);
        record.set_severity_text(text);
        record.set_body(AnyValue::from(log.body.clone()));
        record.add_attributes(log.attributes.iter().map(|(key, value)| (*key, value.clone())));
        record
    }
}
