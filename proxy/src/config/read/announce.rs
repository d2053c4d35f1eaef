//! `[announce]`: what `ferrule announce` watches, how patient it is, and whom it tells.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use control::document::Table;
use http::StatusCode;
use http::uri::PathAndQuery;
use rustls_pki_types::DnsName;

use super::fits_a_socket;
use crate::announce::{Config, probe, speaker};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Two prefixes of each family and then some; each is asked for at every look.
const PROTOCOLS_MAX: usize = 16;
const ADDRESSES_MAX: usize = 16;

pub(super) fn read(mut section: Table<'_>) -> Option<Config> {
    let of = &mut section;
    let between = Duration::from_millis(100)..=60 * SECOND;
    let interval = of.duration("interval", between).unwrap_or(SECOND);
    // All waits of a look together must stay below the watchdog of the service.
    let timeout = of.duration("timeout", Duration::from_millis(10)..=5 * SECOND).unwrap_or(SECOND);
    let rise = of.duration("rise", Duration::ZERO..=HOUR).unwrap_or(10 * SECOND);
    let fall = of.integer("fall", 1..=1_000).unwrap_or(3);
    let settle = of.duration("settle", Duration::ZERO..=HOUR).unwrap_or(10 * SECOND);
    let drain_max = of.duration("drain_max", Duration::ZERO..=DAY).unwrap_or(300 * SECOND);
    if drain_max < settle {
        of.error("drain_max", "must not be below settle");
    }
    let inventory_age_max = of.duration("inventory_age_max", SECOND..=30 * DAY).unwrap_or(HOUR);
    let peers_min = of.integer("peers_min", 0..=10_000).unwrap_or(1);
    let socket = of.path("socket").unwrap_or_else(|| "/run/ferrule-announce/status.sock".into());
    fits_a_socket(of, "socket", &socket);
    let bird = bird(of);
    let speaker = match command(of) {
        Some(command) => speaker::Config::Command(command),
        None => speaker::Config::Bird(bird),
    };
    let probe = probe(section.table("probe"), timeout);
    section.finish();
    Some(Config {
        speaker,
        socket,
        interval,
        timeout,
        rise,
        fall,
        settle,
        drain_max,
        inventory_age_max,
        peers_min,
        probe: probe?,
    })
}

fn bird(section: &mut Table<'_>) -> speaker::BirdConfig {
    let path = |path: Option<PathBuf>, default: &str| path.unwrap_or_else(|| default.into());
    let socket = path(section.path("bird"), "/run/bird/bird.ctl");
    fits_a_socket(section, "bird", &socket);
    let include = path(section.path("bird_include"), "/run/ferrule-announce/bird.conf");
    let written = section.list("protocols");
    if written.as_ref().is_some_and(|items| !(1..=PROTOCOLS_MAX).contains(&items.len())) {
        section.error("protocols", format!("must be 1 to {PROTOCOLS_MAX} names"));
    }
    let protocols = match written {
        Some(items) => items.iter().filter_map(|item| item.parsed(symbol)).collect(),
        None => ["anycast4", "anycast6"].map(str::to_owned).to_vec(),
    };
    speaker::BirdConfig { socket, protocols, include }
}

/// A name as BIRD's configuration has them without quotes.
fn symbol(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = text.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if begins && text.len() <= 63 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a protocol of BIRD: letters, digits and _")
    }
}

fn command(section: &mut Table<'_>) -> Option<speaker::CommandConfig> {
    let within = Duration::from_millis(10)..=5 * SECOND;
    let timeout = section.duration("command_timeout", within).unwrap_or(5 * SECOND);
    let words = section.strings("command")?;
    if words.first().is_none_or(String::is_empty) {
        section.error("command", "must begin with a program");
        return None;
    }
    Some(speaker::CommandConfig { words, timeout })
}

fn probe(mut section: Table<'_>, timeout: Duration) -> Option<probe::Config> {
    let written = section.required("addresses").and_then(|item| item.list());
    if written.as_ref().is_some_and(|items| !(1..=ADDRESSES_MAX).contains(&items.len())) {
        section.error("addresses", format!("must be 1 to {ADDRESSES_MAX} addresses"));
    }
    let addresses: Option<Vec<SocketAddr>> =
        written.map(|items| items.iter().filter_map(|item| item.socket_address()).collect());
    let server_name = section.required_parsed("server_name", server_name);
    let path = section.parsed("path", path).unwrap_or_else(|| "/".to_owned());
    let status = section.integer("status", 200..=599).unwrap_or(200);
    let status = StatusCode::from_u16(status).expect("the range above");
    let ca = section.path("ca");
    section.finish();
    Some(probe::Config {
        addresses: addresses?,
        server_name: server_name?,
        path,
        status,
        ca,
        timeout,
    })
}

fn server_name(text: &str) -> Result<String, &'static str> {
    match DnsName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("must be a host name"),
    }
}

fn path(text: &str) -> Result<String, &'static str> {
    match text.parse::<PathAndQuery>() {
        Ok(_) if text.starts_with('/') => Ok(text.to_owned()),
        _ => Err("must be a path that begins with /"),
    }
}
