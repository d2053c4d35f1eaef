//! Sends kept records, single logs and metrics to an OpenTelemetry collector.
//!
//! One thread of its own with one runtime; requests never wait for it. What waits is in one
//! queue, bounded in bytes, that drops its oldest and counts what it drops. A collector that is
//! down, slow, hanging or answering nonsense changes counters, not memory.
//!
//! ```text
//! outboxes ──pump──▶ queue ──▶ sender ──▶ SpanExporter, LogExporter ─┐
//!              └───▶ ring (ferrule trace show)                       ├─▶ transport
//! metrics registry ────────▶ reporter ──────────────────────────────┘
//! ```
//!
//! The exporters of `opentelemetry-otlp` encode and call our transport; its batch processors, which
//! are bounded in number and not in bytes, and its retries, which count nothing, are not used.

mod config;
mod environment;
mod list;
mod tls;
mod resource;
mod source;
mod queue;
mod drops;
mod ring;
mod shared;
mod convert;
mod attributes;
mod logs;
mod metrics;
mod transport;
mod grpc;
mod outcome;
mod backoff;
mod health;
mod sender;
mod reporter;
mod exporters;
mod pump;
mod thread;

pub use config::{Compression, Config, Headers, Protocol};
pub use drops::Reason;
pub use environment::{Lookup, Problem, Settings};
pub use logs::{LogRecord, Severity};
pub use queue::Signal;
pub use resource::Identity;
pub use source::{Exportable, Source};
pub use thread::{Exporter, Found, Handle, Held, Left, StartError};
pub use tls::TlsError;
