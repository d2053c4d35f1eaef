//! A machine of a test's own, which a script sets up and takes down: `tests/systemd/boot` and
//! `tests/container/engine`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::process::{Outcome, children, run};
use crate::wait;

/// A script that runs until its standard input ends, as it does when this process goes, however it
/// goes. It starts `unshare`, whose child is the machine's process 1.
pub struct Machine {
    script: Child,
    process_1: u32,
    output: PathBuf,
    _folder: TempDir,
}

/// How requests went, each on a connection of its own.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answered with 200.
    pub answered: usize,
    /// Could not connect.
    pub refused: usize,
    /// Connected and got no answer, or another one; what was seen.
    pub failed: Vec<String>,
}

/// How long a machine may take to go; then it is killed.
const GO: Duration = Duration::from_secs(20);

// === impl Machine ===

impl Machine {
    /// Starts the script and waits for its process 1.
    ///
    /// # Panics
    /// When there is none.
    pub fn start(command: &mut Command) -> Self {
        let folder = TempDir::new().expect("a folder");
        let output = folder.path().join("output");
        let to = File::create(&output).expect("the folder is ours");
        let and = to.try_clone().expect("a descriptor");
        let mut script = command
            .stdin(Stdio::piped())
            .stdout(to)
            .stderr(and)
            .spawn()
            .expect("the script starts");
        let id = script.id();
        let mut process_1 = None;
        wait::until("the machine has a process 1", || {
            let ended = script.try_wait().expect("our own child").is_some();
            let said = || fs::read_to_string(&output).unwrap_or_default();
            assert!(!ended, "the machine ended at once: {}", said());
            let unshare = children(id).into_iter().find(|(pid, _)| is_unshare(*pid));
            process_1 = unshare.and_then(|(pid, _)| Some(children(pid).first()?.0));
            process_1.is_some()
        });
        let process_1 = process_1.expect("it was waited for");
        Self { script, process_1, output, _folder: folder }
    }

    /// What the script and its process 1 said.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// A file of the machine, as the test sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.process_1)).join(path.trim_start_matches('/'))
    }

    /// Runs a command inside to its end.
    pub fn run(&self, words: &[&str]) -> Outcome {
        let pid = self.process_1.to_string();
        let enter =
            ["--target", &pid, "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"];
        run(Command::new("nsenter").args(enter).args(words))
    }

    /// Does `work` in the machine's network, on a thread of its own. Threads it starts are there too.
    ///
    /// # Panics
    /// When `work` does, and when the network cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.process_1)).expect("it runs");
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(network.as_fd(), kind).expect("our own namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Asks `host` for `/`, again and again, each time on a new connection from inside, while `work`
    /// runs on this thread.
    pub fn while_asked<T>(
        &self,
        address: SocketAddr,
        host: &str,
        work: impl FnOnce() -> T,
    ) -> (T, Tally) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                self.inside(|| {
                    let mut tally = Tally::default();
                    while !over.load(SeqCst) {
                        tally.ask(address, host);
                    }
                    tally
                })
            });
            let over = OnDrop(&over);
            let done = work();
            drop(over);
            (done, asking.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }
}

/// Ends the asking even if the work panics.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn is_unshare(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "unshare")
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the machine said:\n{}---", self.output());
        }
        drop(self.script.stdin.take());
        let started = std::time::Instant::now();
        while self.script.try_wait().expect("our own child").is_none() {
            if started.elapsed() > GO {
                self.script.kill().expect("our own child");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

// === impl Tally ===

impl Tally {
    fn ask(&mut self, address: SocketAddr, host: &str) {
        let Ok(mut socket) = TcpStream::connect(address) else {
            self.refused += 1;
            thread::sleep(Duration::from_millis(5));
            return;
        };
        let mut answer = String::new();
        let asked = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let read = socket
            .set_read_timeout(Some(wait::PATIENCE))
            .and_then(|()| socket.write_all(asked.as_bytes()))
            .and_then(|()| socket.read_to_string(&mut answer));
        match read {
            Ok(_) if answer.starts_with("HTTP/1.1 200 ") => self.answered += 1,
            Ok(_) => self.failed.push(answer.lines().next().unwrap_or("nothing").to_owned()),
            Err(error) => self.failed.push(error.to_string()),
        }
    }
}
