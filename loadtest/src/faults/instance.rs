//! An instance as a process of its own, so that it can be killed and stopped.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::origin::{Origin, Server, http1};
use crate::process::{Running, wait_until};

/// Serves until it is ended.
#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    address: SocketAddr,
    /// Every answer is this odd one.
    #[arg(long)]
    odd: Option<String>,
    /// Every answer takes so many milliseconds.
    #[arg(long)]
    wait: Option<u64>,
}

impl Serve {
    pub(crate) fn run(&self) -> Result<()> {
        let _server = match (&self.odd, self.wait) {
            (Some(name), _) => {
                let name = name.clone();
                Some(Server::at(self.address, move |mut stream| {
                    http1::skip_head(&mut stream)?;
                    http1::odd(&mut stream, &name)
                })?)
            }
            (None, Some(millis)) => Some(Server::at(self.address, move |stream| {
                http1::serve_slowly(stream, Duration::from_millis(millis))
            })?),
            (None, None) => None,
        };
        let _origin = match _server {
            Some(_) => None,
            None => Some(Origin::at(self.address)?),
        };
        loop {
            thread::park();
        }
    }
}

/// One of them.
pub(super) struct Instance {
    process: Running,
    _home: TempDir,
}

impl Instance {
    pub(super) fn start(address: SocketAddr, options: &[&str]) -> Result<Self> {
        let home = TempDir::with_prefix("ferrule-instance-")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("instance").arg(address.to_string()).args(options);
        let process = Running::logged(command, home.path())?;
        let listens = || std::net::TcpStream::connect(address).is_ok();
        ensure!(wait_until(Duration::from_secs(10), listens), "{address} does not listen");
        Ok(Self { process, _home: home })
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Without a farewell.
    pub(super) fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.ends_within(Duration::from_secs(5))?;
        Ok(())
    }
}
