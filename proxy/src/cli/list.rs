//! `ferrule app|instance|cert list`: what a running node knows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;

use super::table::{columns, joined, span};
use super::{Exit, Failure, Node, answer, client};
use crate::admin::inventory::{self, Certificates, Inventory, Place};

#[derive(Debug, Subcommand)]
pub(super) enum App {
    /// List apps.
    List(Node),
}

#[derive(Debug, Subcommand)]
pub(super) enum Instance {
    /// List instances.
    List(Node),
}

#[derive(Debug, Subcommand)]
pub(super) enum Cert {
    /// List certificates.
    List(Node),
}

pub(super) fn apps(node: &Node) -> Result<Exit, Failure> {
    let (json, inventory) = client::page(&node.socket()?, "/inventory")?;
    if node.json { answer(&json) } else { answer(apps_text(&inventory)) }
}

pub(super) fn instances(node: &Node) -> Result<Exit, Failure> {
    let (json, inventory) = client::page(&node.socket()?, "/inventory")?;
    if node.json { answer(&json) } else { answer(instances_text(&inventory)) }
}

pub(super) fn certificates(node: &Node) -> Result<Exit, Failure> {
    let (json, certificates) = client::page(&node.socket()?, "/certificates")?;
    // A clock before 1970 makes everything valid, which is no worse than the clock.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if node.json { answer(&json) } else { answer(certificates_text(&certificates, now)) }
}

fn apps_text(inventory: &Inventory) -> String {
    let row = |app: &inventory::App| {
        let ports: Vec<_> = app.services.iter().flat_map(|service| &service.ports).collect();
        let in_flight: u64 = app.instances.iter().map(|instance| instance.in_flight).sum();
        [
            app.name.clone(),
            joined(&app.hostnames),
            joined(&app.addresses),
            joined(&ports),
            app.instances.len().to_string(),
            in_flight.to_string(),
        ]
    };
    let rows: Vec<_> = inventory.apps.iter().map(row).collect();
    columns(["APP", "HOSTNAMES", "ADDRESSES", "PORTS", "INSTANCES", "IN FLIGHT"], &rows)
}

fn instances_text(inventory: &Inventory) -> String {
    let row = |app: &inventory::App, instance: &inventory::Instance| {
        [
            instance.id.clone(),
            app.name.clone(),
            instance.node.clone(),
            instance.address.to_string(),
            place(instance.place).to_owned(),
            state(instance).to_owned(),
            instance.in_flight.to_string(),
        ]
    };
    let rows: Vec<_> = inventory
        .apps
        .iter()
        .flat_map(|app| app.instances.iter().map(move |instance| row(app, instance)))
        .collect();
    columns(["INSTANCE", "APP", "NODE", "ADDRESS", "PLACE", "STATE", "IN FLIGHT"], &rows)
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Local => "local",
        Place::Remote => "remote",
        Place::Unknown => "unknown",
    }
}

fn state(instance: &inventory::Instance) -> &'static str {
    match (instance.cordoned, instance.healthy) {
        (true, _) => "cordoned",
        (false, Some(true)) => "healthy",
        (false, Some(false)) => "unhealthy",
        (false, None) => "-",
    }
}

fn certificates_text(certificates: &Certificates, now: Duration) -> String {
    let row = |certificate: &inventory::Certificate| {
        let inventory::Certificate { name, hostnames, not_after_unix_seconds, problem } =
            certificate;
        let validity = match not_after_unix_seconds.map(|end| end.checked_sub(now.as_secs())) {
            Some(Some(left)) => span(left as f64),
            Some(None) => "expired".to_owned(),
            None => "-".to_owned(),
        };
        let problem = problem.clone().unwrap_or_else(|| "-".to_owned());
        [name.clone(), joined(hostnames), validity, problem]
    };
    let rows: Vec<_> = certificates.certificates.iter().map(row).collect();
    columns(["CERTIFICATE", "HOSTNAMES", "VALID FOR", "PROBLEM"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inventory() -> Inventory {
        let instance = |id: &str, place: &str, healthy: Option<bool>| {
            json!({
                "id": id, "node": "ams-1", "address": "10.0.0.1", "place": place,
                "healthy": healthy, "cordoned": id == "hello-3", "in_flight": 2,
            })
        };
        serde_json::from_value(json!({ "apps": [{
            "name": "hello",
            "revision": 7,
            "hostnames": ["hello.example", "*.hello.example"],
            "addresses": [],
            "services": [
                { "internal_port": 8080, "ports": ["80", "443"], "soft_limit": 20, "hard_limit": null },
                { "internal_port": 5432, "ports": ["9000-9010"], "soft_limit": 20, "hard_limit": 25 },
            ],
            "instances": [
                instance("hello-1", "local", Some(true)),
                instance("hello-2", "remote", None),
                instance("hello-3", "unknown", Some(false)),
            ],
        }]}))
        .expect("the shape of the page")
    }

    #[test]
    fn apps_are_listed() {
        let expected = "\
APP    HOSTNAMES                      ADDRESSES  PORTS             INSTANCES  IN FLIGHT
hello  hello.example,*.hello.example  -          80,443,9000-9010  3          6
";
        assert_eq!(apps_text(&inventory()), expected);
    }

    #[test]
    fn instances_are_listed() {
        let expected = "\
INSTANCE  APP    NODE   ADDRESS   PLACE    STATE     IN FLIGHT
hello-1   hello  ams-1  10.0.0.1  local    healthy   2
hello-2   hello  ams-1  10.0.0.1  remote   -         2
hello-3   hello  ams-1  10.0.0.1  unknown  cordoned  2
";
        assert_eq!(instances_text(&inventory()), expected);
    }

    #[test]
    fn certificates_are_listed() {
        let certificate = |name: &str, end, problem: Option<&str>| inventory::Certificate {
            name: name.to_owned(),
            hostnames: vec!["hello.example".to_owned()],
            not_after_unix_seconds: end,
            problem: problem.map(str::to_owned),
        };
        let certificates = Certificates {
            certificates: vec![
                certificate("good", Some(1_000_000 + 30 * 86_400), None),
                certificate("old", Some(999_999), None),
                certificate("broken", None, Some("the key file cannot be read")),
            ],
        };
        let expected = "\
CERTIFICATE  HOSTNAMES      VALID FOR  PROBLEM
good         hello.example  30 d 0 h   -
old          hello.example  expired    -
broken       hello.example  -          the key file cannot be read
";
        assert_eq!(certificates_text(&certificates, Duration::from_secs(1_000_000)), expected);
    }
}
