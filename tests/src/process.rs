//! A child process that cannot outlive its test and whose last words are shown when it fails.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid,
};

use crate::need::workspace;
use crate::wait;

/// Lines of output that are kept; older ones go.
const LINES_MAX: usize = 20_000;

/// A running child, with whatever took over from it. Dropping it kills all of them by their process
/// ids and, if the test is failing, prints the last lines they wrote.
pub struct Process {
    name: String,
    child: Child,
    /// In the order in which they took over; they write where the child writes.
    heirs: Vec<Heir>,
    lines: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
}

/// A process that the child has started to take its place. When the child is gone it is this
/// process's own, which is how its end is seen.
struct Heir {
    pid: Pid,
    ended: Option<ExitStatus>,
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
        // Else what outlives its parent would be nobody's that we know.
        set_child_subreaper(Some(getpid())).expect("the kernel has subreapers");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let readers = vec![collect(stdout, &lines), collect(stderr, &lines)];
        Self { name: name.to_owned(), child, heirs: Vec::new(), lines, readers }
    }

    /// The process id of the newest.
    pub fn pid(&self) -> u32 {
        self.heirs
            .last()
            .map_or_else(|| self.child.id(), |heir| heir.pid.as_raw_nonzero().get() as u32)
    }

    /// From now on the process `pid`, which took over, is the newest.
    pub fn follow(&mut self, pid: u32) {
        if pid != self.pid() {
            self.heirs.push(Heir { pid: raw(pid), ended: None });
        }
    }

    /// How many processes this has been.
    pub fn generations(&self) -> usize {
        1 + self.heirs.len()
    }

    /// Sends `signal` to the newest, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.has_ended().is_none() {
            // Not reaped yet, so the id is still its; it may be a zombie, which is fine.
            kill_process(raw(self.pid()), signal).expect("our own child");
        }
    }

    /// The exit status of the newest, once there is one.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        match self.heirs.last_mut() {
            Some(heir) => heir.has_ended(),
            None => self.child.try_wait().expect("a child can be waited for"),
        }
    }

    /// Those before the newest that have ended, each with its exit status.
    pub fn predecessors_ended(&mut self) -> Vec<ExitStatus> {
        if self.heirs.is_empty() {
            return Vec::new();
        }
        let first = self.child.try_wait().expect("a child can be waited for");
        let older = self.heirs.len() - 1;
        first
            .into_iter()
            .chain(self.heirs[..older].iter_mut().filter_map(Heir::has_ended))
            .collect()
    }

    /// Waits for the end of all of them and for everything they wrote; the newest's status.
    ///
    /// # Panics
    /// When one still runs after `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait::within(limit, &format!("{} ends", self.name), || {
            self.has_ended().is_some() && self.predecessors_ended().len() == self.heirs.len()
        });
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
        // The oldest first: the others are ours once it is gone.
        if self.child.try_wait().expect("a child can be waited for").is_none() {
            self.child.kill().expect("our own child");
            self.child.wait().expect("our own child");
        }
        for heir in &mut self.heirs {
            heir.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- {} wrote last:\n{}---", self.name, self.output());
        }
    }
}

impl Heir {
    /// While its parent lives nobody else can know.
    fn has_ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none()
            && let Ok(Some((_, status))) = waitpid(Some(self.pid), WaitOptions::NOHANG)
        {
            self.ended = Some(ExitStatus::from_raw(status.as_raw()));
        }
        self.ended
    }

    fn kill(&mut self) {
        if self.has_ended().is_none() && kill_process(self.pid, Signal::KILL).is_ok() {
            wait::until("a process that was killed ends", || self.has_ended().is_some());
        }
    }
}

fn raw(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the id of a process")
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

/// The children of a process, each with its state (`Z` is a zombie).
pub fn children(parent: u32) -> Vec<(u32, char)> {
    let processes = std::fs::read_dir("/proc").expect("it is mounted").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may have anything in it.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state: char = fields.next()?.parse().ok()?;
        let of: u32 = fields.next()?.parse().ok()?;
        (parent == of).then_some((pid, state))
    });
    processes.collect()
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
