//! The files of the demo: what an operator of two small nodes would have written.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use control::snapshot::NodeId;

use super::plan::{ADMIN, APPS, App, HTTP, HTTPS, Kind, MESH, NODES, Place, TCP};
use crate::tls::{DevCa, TlsError};

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the certificates cannot be made")]
    Certificate(#[source] TlsError),
}

const TRUST_DOMAIN: &str = "ferrule";

/// Writes everything into `folder`.
pub(super) fn write(folder: &Path) -> Result<(), FilesError> {
    let ca = DevCa::new().map_err(FilesError::Certificate)?;
    file(&folder.join("ca.pem"), &ca.ca_pem())?;
    for app in &APPS {
        file(&folder.join("apps").join(app.name).with_extension("toml"), &app_file(app))?;
        let issued = ca.issue(&[&app.hostname()]).map_err(FilesError::Certificate)?;
        pair(&folder.join("certificates").join(app.name), &issued)?;
    }
    for place in &NODES {
        let folder = folder.join(place.node);
        file(&folder.join("edge.toml"), &node_file(place))?;
        let node = NodeId::new(place.node);
        let issued = ca.issue_node(TRUST_DOMAIN, &node).map_err(FilesError::Certificate)?;
        pair(&folder.join("mesh"), &issued)?;
    }
    Ok(())
}

fn app_file(app: &App) -> String {
    let App { name, kind, internal_port, .. } = app;
    let hostname = app.hostname();
    let ports = ports(*kind);
    let mut text = format!(
        r#"app = "{name}"
hostnames = ["{hostname}"]

[[services]]
internal_port = {internal_port}
{ports}
[services.concurrency]
type = "requests"
soft_limit = 20
hard_limit = 25
"#
    );
    for instance in app.instances() {
        text.push_str(&format!(
            r#"
[[instances]]
id = "{}"
node = "{}"
address = "{}"
"#,
            instance.id,
            instance.place.node,
            instance.address.ip()
        ));
    }
    text
}

/// Where clients find an app of this kind.
fn ports(kind: Kind) -> String {
    let web = |options: &str| {
        format!(
            r#"
[[services.ports]]
port = {HTTP}
handlers = ["http"]
{options}
[[services.ports]]
port = {HTTPS}
handlers = ["tls", "http"]
{options}"#
        )
    };
    match kind {
        Kind::Http | Kind::WebSocket => web(""),
        Kind::Grpc => web("http_options = { h2_backend = true }\n"),
        // Without a handler bytes are passed on as they come.
        Kind::Tcp => format!("\n[[services.ports]]\nport = {TCP}\n"),
    }
}

fn node_file(place: &Place) -> String {
    let Place { node, region, address, .. } = place;
    let mut text = format!(
        r#"[node]
id = "{node}"
region = "{region}"
workers = 1

[storage]
directory = "state"

[listen]
addresses = ["{address}"]

[inventory]
directory = "../apps"

[certificates]
directory = "../certificates"

[timeouts]
drain = "2s"

[admin]
address = "{address}:{ADMIN}"
socket = "admin.sock"

[mesh]
address = "{address}:{MESH}"
certificate = "mesh.pem"
key = "mesh.key"
ca = "../ca.pem"
"#
    );
    for Place { node, region, address, .. } in NODES.iter().filter(|other| other.node != *node) {
        text.push_str(&format!(
            r#"
[[mesh.peers]]
id = "{node}"
region = "{region}"
address = "{address}:{MESH}"
"#
        ));
    }
    text
}

/// A chain and its key as `NAME.pem` and `NAME.key`.
fn pair(name: &Path, (chain, key): &(String, String)) -> Result<(), FilesError> {
    file(&name.with_extension("pem"), chain)?;
    file(&name.with_extension("key"), key)
}

/// A new file for its owner alone, and the folder it is in.
fn file(path: &Path, text: &str) -> Result<(), FilesError> {
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| FilesError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check;

    #[test]
    fn the_files_pass_the_check() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path()).expect("the folder is ours");
        for place in &NODES {
            let file = folder.path().join(place.node).join("edge.toml");
            assert_eq!(check::problems(&file), [], "{}", place.node);
        }
    }
}
