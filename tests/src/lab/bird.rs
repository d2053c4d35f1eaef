//! BIRD as a process, with its control socket in a folder of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::need;
use crate::process::Process;
use crate::wait;

/// A routing daemon. Dropping it kills it.
pub struct Bird {
    name: String,
    words: Vec<String>,
    folder: TempDir,
    process: Process,
}

/// Longest wait for an answer on the control socket.
const ANSWER: Duration = Duration::from_secs(5);

// === impl Bird ===

impl Bird {
    /// Starts one with this configuration, through the command `wrapper`, and waits until it answers.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn start(name: &str, wrapper: &[String], configuration: &str) -> Self {
        let folder = TempDir::with_prefix("ferrule-bird-").expect("a temporary folder");
        let file = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(file("bird.conf"), configuration).expect("the folder is ours");
        let program = need::tool("bird").expect("looked for when the lab began");
        let mut words = wrapper.to_vec();
        words.extend([program.display().to_string(), "-f".to_owned()]);
        for (flag, name) in [("-c", "bird.conf"), ("-s", "bird.ctl"), ("-P", "bird.pid")] {
            words.extend([flag.to_owned(), file(name)]);
        }
        let process = Process::start(name, Command::new(&words[0]).args(&words[1..]));
        let mut bird = Self { name: name.to_owned(), words, folder, process };
        bird.comes_up();
        bird
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("bird.ctl")
    }

    /// Its configuration.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("bird.conf")
    }

    /// What it logged lately.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Says one thing on the control socket: the lines of the answer, without codes.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn ask(&self, command: &str) -> String {
        ask(&self.socket(), command).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Whether a protocol is up.
    #[track_caller]
    pub fn is_up(&self, protocol: &str) -> bool {
        let answer = self.ask(&format!("show protocols \"{protocol}\""));
        let line = answer.lines().find(|line| line.starts_with(protocol)).expect("the protocol");
        line.split_whitespace().nth(3) == Some("up")
    }

    /// What a constant of the configuration in force is.
    #[track_caller]
    pub fn constant(&self, name: &str) -> String {
        self.ask(&format!("eval {name}")).trim().to_owned()
    }

    /// The line of the best route to `prefix`, if there is one.
    #[track_caller]
    pub fn best(&self, prefix: &str) -> Option<String> {
        let answer = self.ask(&format!("show route for {prefix} primary"));
        answer.lines().find(|line| line.contains(" * ")).map(str::to_owned)
    }

    /// How often a neighbour has announced or withdrawn a route: received updates and withdraws.
    #[track_caller]
    pub fn heard_from(&self, neighbour: &str) -> [u64; 2] {
        let answer = self.ask(&format!("show protocols all {neighbour}"));
        ["Import updates:", "Import withdraws:"].map(|what| {
            let of_channel = |line: &str| line.trim().strip_prefix(what).map(str::to_owned);
            let counts = answer.lines().find_map(of_channel).expect("statistics");
            counts.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
        })
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it. Its folder stays.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(wait::PATIENCE);
    }

    /// Starts it again with the same configuration.
    pub fn start_again(&mut self) {
        let mut command = Command::new(&self.words[0]);
        self.process = Process::start(&self.name, command.args(&self.words[1..]));
        self.comes_up();
    }

    fn comes_up(&mut self) {
        wait::until(&format!("{} answers", self.name), || {
            assert!(self.process.has_ended().is_none(), "{}: {}", self.name, self.log());
            ask(&self.socket(), "show status").is_ok_and(|status| status.contains("up and running"))
        });
    }
}

/// One question to whoever listens at `socket`.
fn ask(socket: &Path, command: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut String::new())?; // the welcome
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut answer = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        // A code of four digits, then a minus if more follows; or a space: more of the same.
        let is_coded = line.len() > 4 && line.is_char_boundary(4) && !line.starts_with(' ');
        let is_last = is_coded && line.as_bytes()[4] == b' ';
        answer.push_str(if is_coded {
            &line[5..]
        } else {
            line.strip_prefix(' ').unwrap_or(&line)
        });
        if is_last {
            return Ok(answer);
        }
    }
}
