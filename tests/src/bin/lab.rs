//! The anycast lab for a person to look at: brings it up, says what to try, and takes it down at
//! Ctrl-C.

#![allow(clippy::unwrap_used, reason = "a program of the tests")]
#![allow(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::process::ExitCode;

use tests::edge::binary;
use tests::lab::anycast::{ADDRESSES, Anycast, DELAYS_MS, HOST, Patience, Site};
use tests::need;

/// The announcers' own defaults, with a shorter rise and settle so that nobody has to wait long.
const PATIENCE: Patience =
    Patience { interval_ms: 1_000, rise_ms: 3_000, fall: 3, settle_ms: 5_000 };

fn main() -> ExitCode {
    println!("bringing up three regions: namespaces, routers, nodes, announcers …");
    let Some(lab) = Anycast::start(PATIENCE) else {
        println!(
            "not here: it takes root (namespaces, BPF) and what `make install-tools` installs"
        );
        return ExitCode::FAILURE;
    };
    introduce(&lab);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::signal::ctrl_c()).unwrap();
    println!("\ntaking it down …");
    drop(lab);
    ExitCode::SUCCESS
}

fn introduce(lab: &Anycast) {
    let [west, east] = DELAYS_MS;
    let [ams, fra, sin] = lab.sites() else { panic!("three regions") };
    println!(
        "
  client ── router ams ──── {west} ms ──── router fra ──── {east} ms ──── router sin ── client
                │                         │                          │
            node ams                  node fra                   node sin
     each announces 198.51.100.0/24 and 2001:db8:1::/48 to its router, while it serves

Which node does a client reach? The answer is the node's name."
    );
    for site in [ams, fra, sin] {
        println!("  # in {}\n  {}", site.region(), curl(lab, site, ADDRESSES[0]));
    }
    println!("  # in {}, IPv6\n  {}", ams.region(), curl(lab, ams, ADDRESSES[1]));
    println!("  # again and again\n  while sleep 0.2; do {}; done", curl(lab, ams, ADDRESSES[0]));
    let birdc =
        need::tool("birdc").map_or_else(|| "birdc".to_owned(), |path| path.display().to_string());
    println!("\nWhat do the routers know?");
    for site in [ams, fra, sin] {
        let socket = site.router_bird().socket();
        println!("  {birdc} -s {} show route for 198.51.100.0/24 all", socket.display());
    }
    println!("  {} ip route get 198.51.100.1", ams.at_router());
    let ferrule = binary().display().to_string();
    let config = |site: &Site| site.folder().join("edge.toml").display().to_string();
    println!(
        "
What does the gate see, and what is in force?
  {ferrule} announce status --config {ams}

Drain a node: its route becomes a last resort, its clients move, then it is withdrawn.
  {ferrule} drain --config {ams}
  {ferrule} undrain --config {ams}

Kill a node: it is withdrawn after three looks. The last one is not, and says so.
  kill -9 {pid}",
        ams = config(ams),
        pid = ams.node_pid(),
    );
    println!("\nCtrl-C takes everything down.");
}

fn curl(lab: &Anycast, site: &Site, address: &str) -> String {
    let ip = address.rsplit_once(':').map_or(address, |(ip, _)| ip);
    format!(
        "{} curl -s -m 3 --cacert {} --resolve {HOST}:443:{ip} https://{HOST}/ -w '\\n'",
        site.at_client(),
        lab.ca().display()
    )
}
