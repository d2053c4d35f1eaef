//! The same with two real processes: this test binary starts itself.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::*;

/// Tells the child that it is one, and where its parent's files are.
const PARENT: &str = "FERRULE_TEST_SHARED_COUNTS_OF";

const ROUNDS: usize = 100_000;

/// Another process, which does what it is told line by line.
struct Other {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

/// The same meter in every process that opens `path`.
fn meter_at(path: &Path) -> &'static Meter {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.unwrap();
    file.set_len(4096).unwrap();
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    #[allow(unsafe_code, reason = "two processes measure in one place")]
    // SAFETY: a fresh mapping of a page that the file has, which is never unmapped; a page of zeros
    // is a valid Meter, which is atomics only.
    unsafe {
        let page = mmap(ptr::null_mut(), 4096, protection, MapFlags::SHARED, file, 0).unwrap();
        &*page.cast::<Meter>()
    }
}

/// Four threads, each of which would hold a dozen; how many they hold in the end.
fn crowd(count: &Count, meter: &Meter) -> u32 {
    thread::scope(|scope| {
        let one = |seed| move || client(count, meter, Count::try_add_exactly, seed, ROUNDS);
        let threads = [0, 1, 2, 3].map(|seed| scope.spawn(one(seed)));
        threads.map(|thread| thread.join().unwrap()).iter().sum()
    })
}

fn open(process: u32, file: RawFd) -> OwnedFd {
    File::open(format!("/proc/{process}/fd/{file}")).unwrap().into()
}

impl Other {
    /// A child that has joined `counts`, which has joined it.
    fn start(counts: &Arc<Counts>) -> Self {
        let path = format!("{} {}", std::process::id(), counts.file().as_raw_fd());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "shared_counts::tests::processes::the_other_process"])
            .args(["--nocapture", "--test-threads=1"])
            .env(PARENT, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let say = child.stdin.take().unwrap();
        let hear = BufReader::new(child.stdout.take().unwrap());
        let mut other = Self { child, say, hear };
        let file = other.answer().parse().unwrap();
        counts.join(open(other.child.id(), file)).unwrap();
        other
    }

    fn say(&mut self, what: &str) {
        writeln!(self.say, "{what}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        while !line.starts_with("other: ") {
            line.clear();
            assert!(self.hear.read_line(&mut line).unwrap() > 0, "the other process has ended");
        }
        line["other: ".len()..].trim().to_owned()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// No test of its own: what [`Other`] runs.
#[test]
fn the_other_process() {
    let Ok(parent) = std::env::var(PARENT) else { return };
    let (process, file) = parent.split_once(' ').unwrap();
    let counts = Counts::create(64).unwrap();
    counts.join(open(process.parse().unwrap(), file.parse().unwrap())).unwrap();
    let count = counts.count(key("x"));
    println!("\nother: {}", counts.file().as_raw_fd());
    for line in io::stdin().lines() {
        let line = line.unwrap();
        let answer = match line.split_once(' ') {
            Some(("take", places)) => {
                let places = places.parse().unwrap();
                (0..places).filter(|_| count.try_add_exactly(LIMIT)).count().to_string()
            }
            Some(("leave", _)) => {
                counts.leave();
                "left".to_owned()
            }
            Some(("crowd", path)) => {
                let held = crowd(&count, meter_at(Path::new(path)));
                assert_eq!(count.own(), held);
                held.to_string()
            }
            _ => panic!("{line}"),
        };
        println!("\nother: {answer}");
    }
    std::process::exit(0);
}

#[test]
fn a_killed_process_has_its_places_until_it_is_left_and_then_they_are_back() {
    let counts = Counts::create(1000).unwrap();
    let count = counts.count(key("x"));
    for _ in 0..3 {
        let mut other = Other::start(&counts);
        other.say("take 30");
        assert_eq!(other.answer(), "30");
        assert_eq!(count.total(), 30);
        let taken = (0..LIMIT).filter(|_| count.try_add_exactly(LIMIT)).count();
        assert_eq!(taken, 20);
        other.say("take 1");
        assert_eq!(other.answer(), "0");
        other.kill();
        assert!(!count.try_add_exactly(LIMIT), "nobody has said that it is dead");
        counts.leave();
        let taken = (0..LIMIT).filter(|_| count.try_add_exactly(LIMIT)).count();
        assert_eq!(taken, 30);
        (0..LIMIT).for_each(|_| count.sub());
    }
}

/// Both run a crowd and hold what they have until both are done.
fn two_crowds(joined: bool) -> (u32, u32) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meter");
    let meter = meter_at(&path);
    let counts = Counts::create(1000).unwrap();
    let count = counts.count(key("x"));
    let mut other = Other::start(&counts);
    if !joined {
        counts.leave();
        other.say("leave it");
        assert_eq!(other.answer(), "left");
    }
    other.say(&format!("crowd {}", path.display()));
    let held = crowd(&count, meter);
    let theirs: u32 = other.answer().parse().unwrap();
    assert_eq!(held + theirs, meter.held.load(Relaxed));
    release(&count, meter, held);
    other.kill();
    (meter.highest.load(Relaxed), meter.granted.load(Relaxed))
}

#[test]
fn two_processes_never_exceed_the_limit_and_use_it() {
    let (highest, granted) = two_crowds(true);
    assert!((LIMIT / 2..=LIMIT).contains(&highest) && granted > 10_000, "{highest} {granted}");
}

#[test]
fn two_processes_that_have_not_joined_exceed_the_limit() {
    let (highest, _) = two_crowds(false);
    assert!(highest > LIMIT, "the meter does not see more than {highest}");
}
