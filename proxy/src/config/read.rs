//! From `edge.toml` to a [`Config`]: every key asked for once, every problem listed with its place.
//!
//! Nothing is bound or opened here besides the file itself. A section per function; what is
//! understood but does nothing yet is in `inert.rs`.

mod announce;
mod bounds;
mod filter;
mod inert;
mod listen;
mod mesh;
mod telemetry;
mod values;

use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use ::telemetry::heapwatch::Profile;
use ::telemetry::sampler::Limit;
use control::document::{Bare, Document, Problem, Table};
use control::names;

use super::{Admin, Certificates, Config, Inventory, Memory, Node, Storage};

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
    let (listen, prefixes) = listen::read(root.table("listen"));
    let filter = filter::read(root.table("filter"), &listen);
    let inventory = inventory(root.table("inventory"), folder);
    let certificates = certificates(root.table("certificates"), folder);
    let own = node.as_ref().map(|node| &node.id);
    let mesh = root.optional_table("mesh").and_then(|section| mesh::read(section, own));
    let limits = bounds::limits(root.table("limits"));
    let timeouts = bounds::timeouts(root.table("timeouts"));
    let memory = memory(root.table("memory"));
    let telemetry = telemetry::read(root.table("telemetry"), &storage);
    let admin = admin(root.table("admin"));
    let announce = root.optional_table("announce").map(announce::read);
    listen::keep_apart(&prefixes, &admin, mesh.as_ref());
    root.finish();
    let announce = match announce {
        Some(announce) => Some(announce?),
        None => None,
    };
    Some(Config {
        node: node?,
        storage,
        listen,
        filter,
        inventory,
        certificates,
        mesh,
        limits,
        timeouts,
        memory,
        telemetry,
        admin,
        announce,
    })
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

/// Less than this the process needs for itself.
const MEMORY_BYTES_MIN: u64 = 32 << 20;
const MEMORY_BYTES_MAX: u64 = 1 << 44;

fn memory(mut section: Table<'_>) -> Memory {
    let Memory { mut limit, mut pressure, mut watchdog, heapwatch, profile } = Memory::default();
    if let Some(item) = section.item("limit") {
        let is_auto = item.is_string() && item.string() == Some("auto");
        if !is_auto && let Some(bytes) = item.bytes(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX) {
            limit = Limit::Bytes(bytes);
        }
    }
    if let Some(percent) = section.list_of("pressure_percent", |item| item.integer(1..=100)) {
        match <[u8; 5]>::try_from(percent) {
            Ok(percent) if percent.is_sorted_by(|a, b| a < b) => pressure.percent = percent,
            _ => section.error("pressure_percent", "must be five rising shares of the limit"),
        }
    }
    let wait = Duration::from_millis(20)..=Duration::from_secs(3_600);
    watchdog.blocked = section.duration("blocked", wait.clone()).unwrap_or(watchdog.blocked);
    for (key, after) in
        [("blocked_drain", &mut watchdog.drain), ("blocked_abort", &mut watchdog.abort)]
    {
        let Some(item) = section.item(key) else { continue };
        if item.is_string() && item.string() == Some("never") {
            *after = None;
        } else if let Some(read) = item.duration(Bare::Refused, wait.clone()) {
            *after = Some(read);
        }
    }
    let heapwatch = section.bool("heapwatch").unwrap_or(heapwatch);
    let profiles = [Profile::Production, Profile::Test].map(|profile| (profile.name(), profile));
    let profile = section.choice("profile", &profiles).unwrap_or(profile);
    section.finish();
    Memory { limit, pressure, watchdog, heapwatch, profile }
}

fn admin(mut section: Table<'_>) -> Admin {
    let Admin { address, socket } = Admin::default();
    let address = section.socket_address("address").unwrap_or(address);
    if !address.ip().is_loopback() {
        let open = "is not a loopback address: whoever reaches it can read this node's pages";
        section.warning("address", open);
    }
    let socket = section.path("socket").unwrap_or(socket);
    fits_a_socket(&section, "socket", &socket);
    section.finish();
    Admin { address, socket }
}

fn fits_a_socket(section: &Table<'_>, key: &str, path: &Path) {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let message = format!(
            "is {length} bytes long with its folder; a socket's path may have {SOCKET_PATH_BYTES_MAX}"
        );
        section.error(key, message);
    }
}

/// What is written is resolved already; a default starts at the file's folder too.
fn directory_in(folder: &Path, written: Option<PathBuf>, default: PathBuf) -> PathBuf {
    written.unwrap_or_else(|| folder.join(default))
}

#[cfg(test)]
mod tests;
