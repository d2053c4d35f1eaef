//! Process 1: what ends is reaped, signals reach the node, and the node may be replaced.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::app::App;
use tests::edge::Edge;
use tests::instance::Echo;
use tests::need;
use tests::process::{Process, children};
use tests::wait;

/// A pid namespace of the test's own, with a `/proc` of its own. It ends with `unshare`.
const NAMESPACE: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

fn supervise() -> String {
    PathBuf::from(env!("CARGO_BIN_EXE_supervise")).display().to_string()
}

/// A node that is a few lines of Python: `say` writes a line, `tell` tells the service manager.
fn node(lines: &str) -> Vec<String> {
    let program = format!(
        "import os, signal, socket, sys, time\n\
         def say(text): print(text, flush=True)\n\
         def tell(text):\n    \
             out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n    \
             out.sendto(text.encode(), os.environ['NOTIFY_SOCKET'])\n\
         {lines}"
    );
    vec!["python3".to_owned(), "-c".to_owned(), program]
}

fn start(words: &[String]) -> Process {
    let mut command = Command::new(NAMESPACE[0]);
    Process::start("process 1", command.args(&NAMESPACE[1..]).args(words))
}

fn supervised(node: &[String]) -> Process {
    start(&[&[supervise()], node].concat())
}

/// Process 1 of the namespace, as the test sees it.
fn process_1(outside: &Process) -> u32 {
    wait::until("process 1 runs", || !children(outside.pid()).is_empty());
    children(outside.pid())[0].0
}

fn signal(pid: u32, signal: Signal) {
    kill_process(i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap(), signal).unwrap();
}

fn says(process: &Process, line: &str) {
    wait::until(line, || process.output().lines().any(|said| said == line));
}

#[test]
fn the_exit_code_of_the_node_is_the_containers() {
    for (script, expected) in
        [("exit 0", 0), ("exit 64", 64), ("kill -9 $$", 137), ("kill $$", 143)]
    {
        let node = ["sh", "-c", script].map(str::to_owned);
        let status = supervised(&node).wait(wait::PATIENCE);
        assert_eq!(status.code(), Some(expected), "{script}");
    }
}

/// The second half is the control: a process 1 that does not reap.
#[test]
fn orphans_are_reaped() {
    let orphans =
        "for i in 1 2 3 4; do (sh -c 'sleep 0.2; exit 3' &); done; echo there; exec sleep 1000";
    let node = ["sh", "-c", orphans].map(str::to_owned);
    let process = supervised(&node);
    says(&process, "there");
    let supervisor = process_1(&process);
    wait::until(
        "only the node is left",
        || matches!(children(supervisor)[..], [(_, state)] if state != 'Z'),
    );
    let process = start(&node);
    says(&process, "there");
    let sleeping = process_1(&process);
    wait::until("zombies stay", || {
        children(sleeping).iter().filter(|(_, state)| *state == 'Z').count() == 4
    });
}

#[test]
fn signals_reach_the_node() {
    let node = node(
        "for one in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT):\n    \
             signal.signal(one, lambda number, _: say(signal.Signals(number).name))\n\
         signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n\
         say('ready')\n\
         while True: time.sleep(100)",
    );
    let mut process = supervised(&node);
    says(&process, "ready");
    let supervisor = process_1(&process);
    for (number, name) in [
        (Signal::HUP, "SIGHUP"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
    ] {
        signal(supervisor, number);
        says(&process, name);
    }
    signal(supervisor, Signal::TERM);
    assert_eq!(process.wait(wait::PATIENCE).code(), Some(5));
}

/// A node that starts a successor, which names itself. `predecessor` and `successor` is what each does
/// then.
fn upgraded(predecessor: &str, successor: &str) -> Vec<String> {
    node(&format!(
        "successor = os.fork()\n\
         if successor == 0:\n    \
             signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n    \
             tell('MAINPID=%d\\nREADY=1\\nSTATUS=successor' % os.getpid())\n    \
             say('successor ready')\n    \
             {successor}\n\
         signal.signal(signal.SIGTERM, lambda *_: say('predecessor told'))\n\
         {predecessor}"
    ))
}

#[test]
fn the_successor_is_followed() {
    let node = upgraded("time.sleep(0.5)\nsys.exit(0)", "while True: time.sleep(100)");
    let mut process = supervised(&node);
    says(&process, "successor ready");
    let supervisor = process_1(&process);
    let predecessor = children(supervisor)[0].0;
    wait::until(
        "the supervisor has adopted it",
        || matches!(children(supervisor)[..], [(child, _)] if child != predecessor),
    );
    signal(supervisor, Signal::TERM);
    assert_eq!(process.wait(wait::PATIENCE).code(), Some(9), "the successor's");
    assert!(!process.output().contains("predecessor told"));
}

#[test]
fn a_predecessor_may_take_over_again() {
    let again = "os.waitpid(successor, 0)\n\
                 tell('MAINPID=%d' % os.getpid())\n\
                 say('again')\n\
                 signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\n\
                 say('ready')\n\
                 while True: time.sleep(100)";
    let mut process = supervised(&upgraded(again, "time.sleep(0.3)\n    os._exit(1)"));
    says(&process, "ready");
    let supervisor = process_1(&process);
    let followed =
        |process: &Process| process.output().matches("another process is the node").count();
    wait::until("it is followed again", || followed(&process) == 2);
    signal(supervisor, Signal::TERM);
    assert_eq!(process.wait(wait::PATIENCE).code(), Some(4));
}

/// What drains serves nobody: the container has to be started again.
#[test]
fn when_the_successor_fails_and_nobody_takes_over_the_container_ends() {
    let drains = "os.waitpid(successor, 0)\nsay('drains')\ntime.sleep(1000)";
    let mut process = supervised(&upgraded(drains, "time.sleep(0.3)\n    os._exit(1)"));
    says(&process, "drains");
    assert_eq!(process.wait(wait::PATIENCE).code(), Some(70), "nobody here knows how it ended");
}

#[test]
fn a_manager_outside_hears_of_the_service_and_not_of_processes_it_does_not_know() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let outside = UnixDatagram::bind(&path).unwrap();
    outside.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let node = node("tell('MAINPID=%d\\nREADY=1\\nSTATUS=serves' % os.getpid())");
    let environment = ["env".to_owned(), format!("NOTIFY_SOCKET={}", path.display())];
    let mut process = start(&[&environment[..], &[supervise()], &node].concat());
    let mut buffer = [0; 4096];
    let length = outside.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serves\n");
    assert_eq!(process.wait(wait::PATIENCE).code(), Some(0));
}

#[test]
fn a_supervisor_that_is_not_process_1_adopts_what_its_node_leaves() {
    let node = upgraded("time.sleep(0.1)\nsys.exit(0)", "time.sleep(0.5)\n    sys.exit(3)");
    let directory = TempDir::new().unwrap();
    let mut command = Command::new(supervise());
    let command = command.args(node).env("TMPDIR", directory.path());
    let mut process = Process::start("a supervisor", command);
    assert_eq!(process.wait(wait::PATIENCE).code(), Some(3));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "its socket went with it");
}

#[test]
fn ferrule_as_process_1_serves_through_a_child_and_stops_as_it_would_itself() {
    if rustix::process::geteuid().as_raw() != 0 {
        return need::skip("a pid namespace needs root");
    }
    let echo = Echo::http1();
    let mut edge =
        Edge::builder().app(App::new("hello").instance(echo.address())).through(&NAMESPACE).start();
    let [(process_1, _)] = children(edge.pid())[..] else { panic!("one process 1") };
    let [(node, _)] = children(process_1)[..] else { panic!("one node") };
    let status = fs::read_to_string(format!("/proc/{node}/status")).unwrap();
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    let inside: u32 = inside.split_whitespace().last().unwrap().parse().unwrap();
    assert_eq!(edge.status()["pid"], inside, "in its namespace");
    let name = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(name(process_1), name(node));
    assert_eq!(edge.get("hello.test", "/").status, 200);
    let held = fs::read_to_string(format!("/proc/{process_1}/status")).unwrap();
    println!("{}", held.lines().find(|line| line.starts_with("VmRSS")).unwrap());
    signal(process_1, Signal::TERM);
    edge.stopped();
    // Its configuration is refused with the node's own code.
    let mut command = Command::new(NAMESPACE[0]);
    command.args(&NAMESPACE[1..]).arg(tests::edge::binary()).args([
        "run",
        "--config",
        "/nonexistent",
    ]);
    let status = Process::start("process 1", &mut command).wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(64));
}
