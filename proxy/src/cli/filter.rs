//! `ferrule filter show|detach`: what is pinned in the kernel, and taking it away.
//!
//! What is pinned goes on without a node, so both work without one; a node that runs adds what only
//! it knows.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{self, ClientError};
use super::table::{columns, counted};
use super::{Exit, Failure, answer, chain};
use crate::admin::filter as page;
use crate::config;
use crate::filter::pins;

#[derive(Debug, Subcommand)]
pub(super) enum Filter {
    /// Show what is pinned, where it is attached, and what it counted.
    Show(Show),
    /// Remove what is pinned: nothing is steered or filtered any more.
    Detach(Detach),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    place: Place,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Detach {
    #[command(flatten)]
    place: Place,
    /// Even while a node runs. It goes on without steering: in steer mode nothing reaches it.
    #[arg(long)]
    force: bool,
}

/// Whose pins.
#[derive(Debug, Args)]
struct Place {
    /// Configuration of the node, which names its pins and its socket.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pins", "socket"])]
    config: Option<PathBuf>,
    /// Folder of pins [default: /sys/fs/bpf/ferrule]
    #[arg(long, value_name = "DIR")]
    pins: Option<PathBuf>,
    /// Admin socket of the node [default: /run/ferrule/admin.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

// === impl Filter ===

impl Filter {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        match self {
            Self::Show(show) => show.run(),
            Self::Detach(detach) => detach.run(),
        }
    }
}

// === impl Show ===

impl Show {
    fn run(self) -> Result<Exit, Failure> {
        let Self { place, json } = self;
        let (folder, socket) = place.find()?;
        let layouts = pins::show(&folder).map_err(failed)?;
        let pinned: Vec<Pinned> = layouts
            .into_iter()
            .flat_map(|(folder, pinned)| {
                pinned.into_iter().map(move |pinned| Pinned {
                    path: folder.join(&pinned.name),
                    kind: pinned.kind.as_str(),
                    detail: pinned.detail,
                })
            })
            .collect();
        // Only those of the node whose pins these are.
        let node = match client::try_page::<page::Filter>(&socket, "/filter") {
            Ok((_, node)) => Some(node),
            Err(ClientError::Nobody(_)) => None,
            Err(error) => {
                super::complain(&format!("ferrule: the node is left out: {}", chain(&error)));
                None
            }
        };
        if json {
            let pinned: Vec<_> = pinned
                .iter()
                .map(|Pinned { path, kind, detail }| json!({ "path": path, "kind": kind, "detail": detail }))
                .collect();
            return answer(json!({ "pinned": pinned, "node": node }).to_string() + "\n");
        }
        answer(text(&folder, &pinned, node.as_ref()))
    }
}

struct Pinned {
    path: PathBuf,
    kind: &'static str,
    detail: String,
}

fn text(folder: &std::path::Path, pinned: &[Pinned], node: Option<&page::Filter>) -> String {
    let mut text = String::new();
    if pinned.is_empty() {
        text.push_str(&format!("nothing is pinned in {}\n", folder.display()));
    } else {
        let row = |Pinned { path, kind, detail }: &Pinned| {
            [path.display().to_string(), (*kind).to_owned(), detail.clone()]
        };
        let rows: Vec<_> = pinned.iter().map(row).collect();
        text.push_str(&columns(["PINNED", "KIND", "DETAIL"], &rows));
    }
    match node {
        Some(node) => node_text(&mut text, node),
        None => text.push_str("\nno node answers; what it knows of drops and apps is left out\n"),
    }
    text
}

fn node_text(text: &mut String, node: &page::Filter) {
    let page::Filter { mode, reasons, interfaces, dry_run, behind, packets, apps, maps, drops } =
        node;
    let dry = if *dry_run { " (dry run: drops pass)" } else { "" };
    text.push_str(&format!("\nmode       {mode}{dry}\n"));
    for reason in reasons {
        text.push_str(&format!("           {reason}\n"));
    }
    for page::Interface { name, mode } in interfaces {
        text.push_str(&format!("interface  {name}: {mode}\n"));
    }
    if *behind > 0 {
        text.push_str(&format!("behind     {} not in the kernel yet\n", counted(*behind, "app")));
    }
    let mut list = |header: &[&'static str; 3], rows: &[[String; 3]]| {
        if !rows.is_empty() {
            text.push('\n');
            text.push_str(&columns(*header, rows));
        }
    };
    let counted: Vec<_> = packets
        .iter()
        .filter(|verdict| verdict.packets > 0)
        .map(|verdict| [verdict.verdict.clone(), verdict.packets.to_string(), String::new()])
        .collect();
    list(&["VERDICT", "PACKETS", ""], &counted);
    let apps: Vec<_> = apps
        .iter()
        .map(|app| [app.app.clone(), app.allowed.to_string(), app.dropped.to_string()])
        .collect();
    list(&["APP", "ALLOWED", "DROPPED"], &apps);
    let maps: Vec<_> = maps
        .iter()
        .map(|map| [map.name.clone(), map.entries.to_string(), map.capacity.to_string()])
        .collect();
    list(&["MAP", "ENTRIES", "CAPACITY"], &maps);
    if !drops.is_empty() {
        let rows: Vec<_> = drops.iter().rev().map(drop_row).collect();
        text.push('\n');
        let header = ["DROPPED", "DESTINATION", "REASON", "APP", "INTERFACE"];
        text.push_str(&columns(header, &rows));
    }
}

fn drop_row(drop: &page::Drop) -> [String; 5] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let destination = match (drop.destination, drop.port) {
        (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, _) => "-".to_owned(),
    };
    [
        format!("{} ago", super::table::span(drop.seconds_ago)),
        destination,
        drop.verdict.clone(),
        or_dash(&drop.app),
        or_dash(&drop.interface),
    ]
}

// === impl Detach ===

impl Detach {
    fn run(self) -> Result<Exit, Failure> {
        let Self { place, force } = self;
        let (folder, socket) = place.find()?;
        if !force && let Some(who) = somebody_answers(&socket) {
            let message =
                format!("{who} at {}; stop the node first, or say --force", socket.display());
            return Err(Failure { exit: Exit::Unavailable, message });
        }
        let removed = pins::detach(&folder).map_err(failed)?;
        answer(format!("{} removed from {}\n", counted(removed as u64, "pin"), folder.display()))
    }
}

/// Whether a node has the socket; a socket that cannot be asked may be a node's.
fn somebody_answers(socket: &std::path::Path) -> Option<String> {
    match UnixStream::connect(socket) {
        Ok(_) => Some("a node answers".to_owned()),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => None,
            _ => Some(format!("a node may answer ({error})")),
        },
    }
}

// === impl Place ===

impl Place {
    /// The folder of pins, and the socket of the node they belong to.
    fn find(self) -> Result<(PathBuf, PathBuf), Failure> {
        let Self { config, pins, socket } = self;
        if let Some(file) = config {
            let (config, _) = super::read(&file)?;
            return Ok((config.filter.pins, config.admin.socket));
        }
        let pins = pins.unwrap_or_else(|| config::Filter::default().pins);
        Ok((pins, socket.unwrap_or_else(|| config::Admin::default().socket)))
    }
}

fn failed(error: ebpf_filter::FilterError) -> Failure {
    Failure { exit: super::run::exit(&error), message: chain(&error) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn node() -> page::Filter {
        serde_json::from_value(json!({
            "mode": "xdp-generic",
            "reasons": ["xdp on eth0: the driver cannot"],
            "interfaces": [{ "name": "eth0", "mode": "xdp-generic" }],
            "dry_run": true,
            "behind": 1,
            "packets": [
                { "verdict": "pass_allowed", "packets": 12 },
                { "verdict": "drop_port", "packets": 3 },
                { "verdict": "drop_address", "packets": 0 },
            ],
            "apps": [{ "app": "database", "allowed": 12, "dropped": 3 }],
            "maps": [{ "name": "EXACT_V4", "entries": 2, "capacity": 1024 }],
            "drops": [
                {
                    "seconds_ago": 75.0, "verdict": "drop_malformed", "destination": null,
                    "port": null, "app": null, "interface": "eth0",
                },
                {
                    "seconds_ago": 1.25, "verdict": "drop_port", "destination": "2001:db8:1::7",
                    "port": 22, "app": "database", "interface": "eth0",
                },
            ],
        }))
        .expect("the shape of the page")
    }

    #[test]
    fn what_is_pinned_and_what_the_node_knows_reads_as_tables() {
        let pinned = [Pinned {
            path: "/sys/fs/bpf/ferrule/v1/link-xdp-eth0".into(),
            kind: "link",
            detail: "program 17 on interface 2".to_owned(),
        }];
        let expected = "\
PINNED                                KIND  DETAIL
/sys/fs/bpf/ferrule/v1/link-xdp-eth0  link  program 17 on interface 2

mode       xdp-generic (dry run: drops pass)
           xdp on eth0: the driver cannot
interface  eth0: xdp-generic
behind     1 app not in the kernel yet

VERDICT       PACKETS
pass_allowed  12
drop_port     3

APP       ALLOWED  DROPPED
database  12       3

MAP       ENTRIES  CAPACITY
EXACT_V4  2        1024

DROPPED         DESTINATION         REASON          APP       INTERFACE
1.2 s ago       [2001:db8:1::7]:22  drop_port       database  eth0
1 min 15 s ago  -                   drop_malformed  -         eth0
";
        assert_eq!(text(Path::new("/sys/fs/bpf/ferrule"), &pinned, Some(&node())), expected);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        let text = text(Path::new("/sys/fs/bpf/ferrule"), &[], None);
        assert_eq!(
            text,
            "nothing is pinned in /sys/fs/bpf/ferrule\n\n\
             no node answers; what it knows of drops and apps is left out\n"
        );
    }

    #[test]
    fn the_place_is_named_by_configuration_or_piece_by_piece() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("edge.toml");
        let text = "[node]\nid = \"a\"\nregion = \"b\"\n[admin]\nsocket = \"here.sock\"\n\
            [filter]\npins = \"/run/bpf\"\n";
        std::fs::write(&file, text).expect("the folder is ours");
        let find = |config, pins, socket| {
            Place { config, pins, socket }.find().expect("the configuration is right")
        };
        let default = ("/sys/fs/bpf/ferrule".into(), "/run/ferrule/admin.sock".into());
        assert_eq!(find(None, None, None), default);
        let here = folder.path().join("here.sock");
        assert_eq!(find(Some(file), None, None), ("/run/bpf".into(), here));
        let named = ("/bpf".into(), "/run/x".into());
        assert_eq!(find(None, Some("/bpf".into()), Some("/run/x".into())), named);
    }

    #[test]
    fn a_socket_that_is_gone_or_stale_answers_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("admin.sock");
        assert_eq!(somebody_answers(&socket), None);
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("the folder is ours");
        assert!(somebody_answers(&socket).is_some());
        drop(listener);
        assert_eq!(somebody_answers(&socket), None);
    }
}
