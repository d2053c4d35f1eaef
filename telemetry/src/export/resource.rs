//! Who says it: the resource every span, log and metric carries.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_semantic_conventions::{SCHEMA_URL, resource as convention};

/// What a node knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node's id from the configuration.
    pub node: String,
    pub region: String,
    /// The version of ferrule.
    pub version: &'static str,
    /// The name of the machine; absent when the kernel does not tell.
    pub host: Option<String>,
    pub process: u32,
}

// === impl Identity ===

impl Identity {
    /// Of this process.
    pub fn here(node: &str, region: &str, version: &'static str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let host = host.map(|host| host.trim_end().to_owned());
        let process = std::process::id();
        Self { node: node.to_owned(), region: region.to_owned(), version, host, process }
    }

    /// By the semantic conventions, with `environment` beneath: what the node knows wins over
    /// `OTEL_RESOURCE_ATTRIBUTES`, as the specification has it for what a program provides; the
    /// service's name is only a default, so the environment's wins.
    pub(super) fn resource(&self, environment: &[(String, String)]) -> Resource {
        let mut attributes = vec![KeyValue::new(convention::SERVICE_NAME, "ferrule")];
        attributes.extend(
            environment.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())),
        );
        attributes.extend([
            KeyValue::new(convention::SERVICE_VERSION, self.version),
            KeyValue::new(convention::SERVICE_INSTANCE_ID, self.node.clone()),
            KeyValue::new(convention::CLOUD_REGION, self.region.clone()),
            KeyValue::new(convention::PROCESS_PID, i64::from(self.process)),
        ]);
        let host = self.host.iter().map(|host| KeyValue::new(convention::HOST_NAME, host.clone()));
        attributes.extend(host);
        // Later values replace earlier ones of the same key.
        Resource::builder_empty().with_schema_url(attributes, SCHEMA_URL).build()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::Key;

    use super::*;

    #[test]
    fn the_node_knows_itself_better_than_the_environment() {
        let identity = Identity::here("ams-1", "ams", "1.2.3");
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let environment =
            [("service.name", "edge"), ("service.instance.id", "x"), ("team", "net")].map(own);
        let resource = identity.resource(&environment);
        let get = |key| resource.get(&Key::from_static_str(key)).map(|value| value.to_string());
        for (key, value) in [
            ("service.name", "edge"),
            ("service.instance.id", "ams-1"),
            ("service.version", "1.2.3"),
            ("cloud.region", "ams"),
            ("team", "net"),
        ] {
            assert_eq!(get(key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(get("process.pid"), Some(std::process::id().to_string()));
        assert_eq!(identity.resource(&[]).get(&Key::new("service.name")), Some("ferrule".into()));
    }
}
