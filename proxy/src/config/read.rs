//! From `edge.toml` to a [`Config`]: every key asked for once, every problem listed with its place.
//!
//! Nothing is bound or opened here besides the file itself. A section per function; what is
//! understood but does nothing yet is in `inert.rs`.

mod bounds;
mod inert;
mod mesh;
mod values;

use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use control::document::{Document, Problem, Table};
use control::names;

use super::{Admin, Certificates, Config, Inventory, Listen, ListenMode, Node, Storage};

/// Nobody writes such a file by hand; a wrong path (a log, a device) ends here and not in memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The longest name that the kernel takes for a unix socket, without its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Reads and checks the file at `path`; warnings come with the configuration.
///
/// # Errors
///
/// Every problem of the file, warnings too, when one of them stands in the way.
pub fn read(path: &Path) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    match text(path) {
        Ok(text) => parse(path, &text),
        Err(error) => Err(vec![Problem::with_file(path, format!("cannot be read: {error}"))]),
    }
}

/// The folder of app files that a configuration names, as far as that can be read: what is wrong
/// elsewhere in the file need not hide what is wrong in there.
pub fn app_folder(path: &Path) -> Option<PathBuf> {
    let text = text(path).ok()?;
    let mut told_elsewhere = Vec::new();
    let document = Document::parse(path, &text, &mut told_elsewhere)?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    Some(inventory(document.root().table("inventory"), folder).directory)
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(text)
}

pub(crate) fn parse(path: &Path, text: &str) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    let mut problems = Vec::new();
    let config = Document::parse(path, text, &mut problems).and_then(|document| {
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        config(document.root(), folder)
    });
    match config {
        Some(config) if !Problem::any_error(&problems) => Ok((config, problems)),
        _ => Err(problems),
    }
}

/// Every section is read before any is given up, so that one run lists all problems.
fn config(mut root: Table<'_>, folder: &Path) -> Option<Config> {
    let node = node(root.table("node"));
    let storage = storage(root.table("storage"));
    let listen = listen(root.table("listen"));
    let inventory = inventory(root.table("inventory"), folder);
    let certificates = certificates(root.table("certificates"), folder);
    let own = node.as_ref().map(|node| &node.id);
    let mesh = root.optional_table("mesh").and_then(|section| mesh::read(section, own));
    let limits = bounds::limits(root.table("limits"));
    let timeouts = bounds::timeouts(root.table("timeouts"));
    let admin = admin(root.table("admin"));
    inert::filter(root.table("filter"));
    inert::memory(root.table("memory"));
    inert::telemetry(root.table("telemetry"));
    root.finish();
    let node = node?;
    Some(Config { node, storage, listen, inventory, certificates, mesh, limits, timeouts, admin })
}

fn node(mut section: Table<'_>) -> Option<Node> {
    let id = section.required_parsed("id", names::node);
    let region = section.required_parsed("region", names::region);
    let cores = available_parallelism().map_or(1, NonZero::get);
    let workers = section.integer("workers", 1..=1_024).unwrap_or(cores);
    section.finish();
    Some(Node { id: id?, region: region?, workers })
}

fn storage(mut section: Table<'_>) -> Storage {
    let Storage { directory } = Storage::default();
    let directory = section.path("directory").unwrap_or(directory);
    section.finish();
    Storage { directory }
}

fn listen(mut section: Table<'_>) -> Listen {
    let Listen { mode, addresses, backlog } = Listen::default();
    let modes =
        [("auto", Some(ListenMode::Auto)), ("bind", Some(ListenMode::Bind)), ("steer", None)];
    let mode = match section.choice("mode", &modes) {
        Some(Some(mode)) => mode,
        Some(None) => {
            section.error("mode", "\"steer\" is not available in this build; use \"auto\"");
            mode
        }
        None => mode,
    };
    let addresses = shared_addresses(&mut section).unwrap_or(addresses);
    let backlog = section.integer("backlog", 16..=65_535).unwrap_or(backlog);
    inert::prefixes(&mut section);
    section.finish();
    Listen { mode, addresses, backlog }
}

fn shared_addresses(section: &mut Table<'_>) -> Option<Vec<IpAddr>> {
    let items = section.list("addresses")?;
    if items.is_empty() {
        let lonely = "is empty: only apps with addresses of their own are served";
        section.warning("addresses", lonely);
    }
    let mut addresses = Vec::new();
    for item in &items {
        let Some(address) = values::listen_address(item) else { continue };
        if addresses.contains(&address) {
            item.error("is listed twice");
        }
        addresses.push(address);
    }
    Some(addresses)
}

fn inventory(mut section: Table<'_>, folder: &Path) -> Inventory {
    let Inventory { directory } = Inventory::default();
    if let Some(false) = section.choice("source", &[("directory", true), ("nats", false)]) {
        section.error("source", "\"nats\" is not available in this build; use \"directory\"");
    }
    let directory = directory_in(folder, section.path("directory"), directory);
    inert::nats(section.table("nats"));
    section.finish();
    Inventory { directory }
}

fn certificates(mut section: Table<'_>, folder: &Path) -> Certificates {
    let Certificates { directory } = Certificates::default();
    let directory = directory_in(folder, section.path("directory"), directory);
    section.finish();
    Certificates { directory }
}

fn admin(mut section: Table<'_>) -> Admin {
    let Admin { address, socket } = Admin::default();
    let address = section.socket_address("address").unwrap_or(address);
    if !address.ip().is_loopback() {
        let open = "is not a loopback address: whoever reaches it can read this node's pages";
        section.warning("address", open);
    }
    let socket = section.path("socket").unwrap_or(socket);
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let message = format!(
            "is {length} bytes long with its folder; a socket's path may have {SOCKET_PATH_BYTES_MAX}"
        );
        section.error("socket", message);
    }
    section.finish();
    Admin { address, socket }
}

/// What is written is resolved already; a default starts at the file's folder too.
fn directory_in(folder: &Path, written: Option<PathBuf>, default: PathBuf) -> PathBuf {
    written.unwrap_or_else(|| folder.join(default))
}

#[cfg(test)]
mod tests;
