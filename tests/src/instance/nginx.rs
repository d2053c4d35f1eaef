//! Debian's nginx as an instance.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::client::Raw;
use crate::need;
use crate::port::free_address;
use crate::process::Process;
use crate::wait;

/// A running nginx: `/` answers 1 KiB, `/big` 10 MiB, `/headers` the forwarding headers it got,
/// `/slow` 1 MiB at 64 KiB a second.
pub struct Nginx {
    address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

impl Nginx {
    /// Bytes of `/big`.
    pub const BIG: usize = 10 * 1024 * 1024;

    /// Starts it, or `None` when it is not installed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Option<Self> {
        Self::start_at(free_address(1))
    }

    /// Starts it on this address, or `None` when it is not installed.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start_at(address: SocketAddr) -> Option<Self> {
        let nginx = need::tool("nginx")?;
        let directory = TempDir::with_prefix("ferrule-nginx-").expect("a temporary folder");
        let root = directory.path();
        fs::create_dir(root.join("html")).expect("the folder is ours");
        fs::write(root.join("html/index.html"), vec![b'k'; 1024]).expect("the folder is ours");
        fs::write(root.join("html/big"), vec![b'b'; Self::BIG]).expect("the folder is ours");
        fs::write(root.join("html/slow"), vec![b's'; 1024 * 1024]).expect("the folder is ours");
        fs::write(root.join("nginx.conf"), config(root, address)).expect("the folder is ours");
        let mut command = Command::new(nginx);
        command.arg("-p").arg(root).arg("-c").arg(root.join("nginx.conf")).args(["-e", "stderr"]);
        let process = Process::start("nginx", &mut command);
        wait::until("nginx listens", || Raw::try_tcp(address).is_ok());
        Some(Self { address, _process: process, _directory: directory })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// One process in the foreground, so that killing it by its id leaves nothing behind.
fn config(root: &Path, address: SocketAddr) -> String {
    let root = root.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    format!(
        r#"daemon off;
master_process off;
{user}
pid {root}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  default_type application/octet-stream;
  keepalive_requests 1000000;
  client_body_temp_path {root}/body;
  proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi;
  scgi_temp_path {root}/scgi;
  server {{
    listen {address};
    root {root}/html;
    location = /slow {{ limit_rate 64k; }}
    location = /headers {{
      return 200 "for=$http_x_forwarded_for proto=$http_x_forwarded_proto port=$http_x_forwarded_port ssl=$http_x_forwarded_ssl client=$http_ferrule_client_ip region=$http_ferrule_region host=$http_host via=$http_via\n";
    }}
  }}
}}
"#
    )
}
