//! Children of a run, and where programs and free ports are found.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A child that ends with its owner.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        let child = command.spawn();
        Ok(Self(child.with_context(|| command.get_program().display().to_string())?))
    }

    /// What it writes goes to `<home>/log`.
    pub(crate) fn logged(command: Command, home: &Path) -> Result<Self> {
        let mut command = mortal(&command);
        let log = fs::OpenOptions::new().create(true).append(true).open(home.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Self::spawn(command)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        signal_process(self.id(), signal)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    pub(crate) fn ends_within(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.0.try_wait()?;
            if status.is_some() || Instant::now() > deadline {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        // TERM first, so that a master process takes its workers along; CONT for who is stopped.
        let asked = self.signal(Signal::TERM).and_then(|()| self.signal(Signal::CONT));
        if asked.is_ok() && matches!(self.ends_within(Duration::from_secs(10)), Ok(Some(_))) {
            return;
        }
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            eprintln!("process {} could not be ended", self.0.id());
        }
    }
}

/// The same command, which ends with the thread that starts it: a run that is killed must not leave a
/// node behind. `setpriv` becomes the program, so its id is the program's.
fn mortal(command: &Command) -> Command {
    let Some(setpriv) = find("setpriv") else {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return with_environment(same, command);
    };
    let mut wrapped = Command::new(setpriv);
    wrapped.args(["--pdeathsig", "TERM", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    with_environment(wrapped, command)
}

fn with_environment(mut to: Command, from: &Command) -> Command {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
    to
}

/// As the kernel writes it: R, S, T, Z …; none when it is gone.
pub(crate) fn state(id: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether it has ended, be it that nobody has asked how.
pub(crate) fn is_gone(id: u32) -> bool {
    matches!(state(id), None | Some('Z'))
}

/// Sends it, and waits for a stop to have happened: until then a process may go on for a moment.
pub(crate) fn signal_process(id: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(id)?).context("process 0")?;
    kill_process(pid, signal)?;
    let stopped = || state(id) == Some('T');
    if signal == Signal::STOP && !wait_until(Duration::from_secs(2), stopped) {
        bail!("process {id} does not stop");
    }
    Ok(())
}

/// Where a program is installed; Debian keeps daemons outside a user's PATH.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = ["target/tools/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(own).map(|place| place.join(name)).find(|p| p.is_file())
}

/// Below the range that the kernel gives to outgoing connections, so that none of the many clients of
/// a run takes it before it is bound. Whether it is free is read and not tried: a child that is just
/// being started would hold a copy of the socket.
pub(crate) fn free() -> Result<SocketAddr> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(251);
    let taken = listening()?;
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset)?;
        if !taken.contains(&port) {
            return Ok((Ipv4Addr::LOCALHOST, port).into());
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// Ports on which anybody listens.
fn listening() -> Result<Vec<u16>> {
    const LISTEN: &str = "0A";
    let mut ports = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(table) = fs::File::open(table) else { continue };
        for line in BufReader::new(table).lines().skip(1) {
            let line = line?;
            let mut fields = line.split_whitespace().skip(1);
            let Some((_, port)) = fields.next().and_then(|place| place.split_once(':')) else {
                continue;
            };
            if fields.nth(1) == Some(LISTEN) {
                ports.push(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

/// Waits until `done` or so long.
pub(crate) fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
