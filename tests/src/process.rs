//! A child process that cannot outlive its test and whose last words are shown when it fails.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::need::workspace;
use crate::wait;

/// Lines of output that are kept; older ones go.
const LINES_MAX: usize = 2_000;

/// A running child. Dropping it kills it by its process id and, if the test is failing, prints
/// the last lines it wrote.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// What a command did that ran to its end.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command`; `name` is what failures call it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let readers = vec![collect(stdout, &lines), collect(stderr, &lines)];
        Self { name: name.to_owned(), child, lines, readers }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`, if the process still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.has_ended().is_none() {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            // Not reaped yet, so the id is still this child's; it may be a zombie, which is fine.
            kill_process(pid.expect("a child has an id"), signal).expect("our own child");
        }
    }

    /// The exit status, once there is one.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for the end and for everything it wrote.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait::within(limit, &format!("{} ends", self.name), || self.has_ended().is_some());
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
        self.has_ended().expect("it has ended")
    }

    /// The last lines it wrote, standard output and error together, without colours.
    pub fn output(&self) -> String {
        let lines = self.lines.lock().expect("no reader panics");
        lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.has_ended().is_none() {
            self.child.kill().expect("our own child");
            self.child.wait().expect("our own child");
        }
        if std::thread::panicking() {
            eprintln!("--- {} wrote last:\n{}---", self.name, self.output());
        }
    }
}

/// Runs a command to its end, from the root of the workspace.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Outcome {
    let output = command.current_dir(workspace()).output().expect("the command starts");
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn collect(
    stream: impl Read + Send + 'static,
    lines: &Arc<Mutex<VecDeque<String>>>,
) -> JoinHandle<()> {
    let lines = lines.clone();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
            let text = without_colours(String::from_utf8_lossy(&line).trim_end());
            line.clear();
            let mut lines = lines.lock().expect("no reader panics");
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(text);
        }
    })
}

fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_collected_without_colours() {
        let mut command = Command::new("printf");
        let mut process = Process::start("printf", command.arg("a\\033[1mb\\033[0m c\\n"));
        assert!(process.wait(Duration::from_secs(5)).success());
        assert_eq!(process.output(), "ab c\n");
    }
}
