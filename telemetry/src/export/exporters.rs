//! The library's exporters, each on a transport of ours.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use opentelemetry_otlp::{
    LogExporter, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::LogExporter as _;
use opentelemetry_sdk::trace::SpanExporter as _;

use super::config::{Protocol, Target};
use super::thread::StartError;
use super::transport::{self, Transport};
use crate::ledger::{Ledger, Unit};

/// Builds them; connections are shared by what goes out the same way.
pub(super) struct Exporters<'a> {
    batch_bytes: usize,
    ledger: &'a Ledger,
    pools: HashMap<Way, transport::Pool>,
}

/// What a pool of connections depends on.
type Way = (Protocol, Option<PathBuf>, Option<PathBuf>, bool);

// === impl Exporters ===

impl<'a> Exporters<'a> {
    pub(super) fn new(batch_bytes: usize, ledger: &'a Ledger) -> Self {
        Self { batch_bytes, ledger, pools: HashMap::new() }
    }

    pub(super) fn spans(
        &mut self,
        target: Target,
        resource: &Resource,
    ) -> Result<(SpanExporter, Arc<Transport>), StartError> {
        let transport = self.transport(target)?;
        let builder = over(&transport, SpanExporter::builder().with_http());
        let mut exporter = builder.build().map_err(StartError::Build)?;
        exporter.set_resource(resource);
        Ok((exporter, transport))
    }

    pub(super) fn logs(
        &mut self,
        target: Target,
        resource: &Resource,
    ) -> Result<(LogExporter, Arc<Transport>), StartError> {
        let transport = self.transport(target)?;
        let builder = over(&transport, LogExporter::builder().with_http());
        let mut exporter = builder.build().map_err(StartError::Build)?;
        exporter.set_resource(resource);
        Ok((exporter, transport))
    }

    pub(super) fn transport(&mut self, target: Target) -> Result<Arc<Transport>, StartError> {
        let key = target.identity.as_ref().map(|(certificate, _)| certificate.clone());
        let tls = target.uri.scheme_str() == Some("https");
        let way = (target.protocol, target.certificate.clone(), key, tls);
        let pool = match self.pools.get(&way) {
            Some(pool) => pool.clone(),
            None => transport::pool(&target).map_err(StartError::Tls)?,
        };
        self.pools.insert(way, pool.clone());
        // The spans of a request, and its two encodings; metrics the same at the same time.
        let cap = 6 * self.batch_bytes;
        let account = self.ledger.open("telemetry_encoding", Unit::Bytes, cap as u64);
        Ok(Transport::new(pool, target, account))
    }
}

/// Sends through `transport`, which also decides what is tried again.
fn over<B: WithExportConfig + WithHttpConfig>(transport: &Arc<Transport>, builder: B) -> B {
    builder
        .with_shared_http_client(transport.clone())
        .with_endpoint(transport.target().uri.to_string())
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_retry_policy(RetryPolicy::disabled())
}
