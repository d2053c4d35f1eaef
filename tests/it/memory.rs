//! Memory that explains itself: pages, downloads, commands, snapshots.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proxy::admin::memory::Page;
use rustix::process::Signal;
use serde_json::Value;
use tests::app::App;
use tests::edge::{Edge, binary};
use tests::instance::Echo;
use tests::process::{Outcome, run};
use tests::wait;

/// Debug information of a debug build is large, and the machine may be busy.
const NAMES: Duration = Duration::from_secs(60);

fn edge(echo: &Echo) -> Edge {
    let app = App::new("hello").instance(echo.address());
    let edge = Edge::builder().app(app).heapwatch_for_tests().start();
    for _ in 0..20 {
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    edge
}

fn heap(edge: &Edge) -> Value {
    let page = edge.admin_get("/memory.json?all");
    let mut page: Value = serde_json::from_slice(&page.body).expect("it is JSON");
    page["heap"].take()
}

/// Every function on a stack of something that is alive.
fn functions(heap: &Value) -> Vec<String> {
    let stacks = heap["stacks"].as_array().into_iter().flatten();
    let frames = stacks.flat_map(|stack| stack["frames"].as_array().into_iter().flatten());
    let calls = frames.flat_map(|frame| frame["calls"].as_array().into_iter().flatten());
    calls.filter_map(|call| Some(call["function"].as_str()?.to_owned())).collect()
}

fn resident(edge: &Edge) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{}/statm", edge.pid())).expect("it runs");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

#[test]
fn what_is_alive_is_told_by_name_and_the_node_does_not_pay_for_the_names() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let before = resident(&edge);
    wait::within(NAMES, "names are found", || {
        let heap = heap(&edge);
        assert_eq!(heap["mode"], "hooks", "{}", edge.log());
        functions(&heap).iter().any(|function| function.starts_with("proxy::"))
    });
    let grown = resident(&edge).saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} B more: was debug information read in here?");

    let page = edge.admin_get("/memory?all");
    assert_eq!(page.status, 200);
    assert!(page.text().contains("Ledger") && page.text().contains("<svg"), "{}", page.text());
    let graph = edge.admin_get("/memory/flamegraph.svg?all&function=proxy::");
    assert!(graph.text().starts_with("<svg") && graph.text().contains("proxy::"));
    let folded = edge.admin_get("/memory/folded.txt?all");
    assert!(folded.text().lines().all(|line| {
        line.rsplit_once(' ').is_some_and(|(_, bytes)| bytes.parse::<u64>().is_ok())
    }));
    assert_eq!(&edge.admin_get("/memory/heap.pb.gz?all").body[..2], [0x1f, 0x8b]);
    assert_eq!(edge.admin_get("/memory?subsystem=nobody").status, 400);
    let metrics = edge.metrics();
    assert!(metrics.sum_with("ferrule_leak_suspects", &[("state", "leak")]) == 0.0);
    assert!(metrics.sum_with("ferrule_heap_samples", &[]) > 0.0);
}

#[test]
fn the_command_line_tells_memory_and_writes_files() {
    let echo = Echo::http1();
    let edge = edge(&echo);
    let said = edge.command(&["memory"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stdout.contains("LEDGER") && said.stdout.contains("heapwatch"), "{said:?}");
    for (command, start) in [("profile", &[0x1f, 0x8b][..]), ("flamegraph", b"<svg")] {
        let file = edge.path(command);
        let path = file.to_str().expect("a plain path");
        let said = edge.command(&["memory", command, "--all", "-o", path]);
        assert_eq!(said.code, 0, "{said:?}");
        assert!(fs::read(&file).expect("it was written").starts_with(start), "{command}");
    }
}

#[test]
fn snapshots_are_written_on_command_and_before_anything_is_dropped() {
    let echo = Echo::http1();
    let mut edge = edge(&echo);
    let first = edge.command(&["memory", "snapshot"]);
    assert_eq!(first.code, 0, "{first:?}");
    let first = first.stdout.trim().to_owned();
    assert!(Path::new(&first).is_file(), "{first}");

    edge.signal(Signal::TERM);
    edge.stopped();
    let folder = edge.path("storage/snapshots");
    let written = fs::read_dir(&folder).expect("it was made").map(|entry| entry.unwrap().path());
    let mut written: Vec<_> = written.map(|path| path.to_str().unwrap().to_owned()).collect();
    written.sort_unstable();
    assert_eq!(written.len(), 2, "{written:?}");
    assert_eq!(written[0], first);
    let Outcome { code, stdout, stderr } =
        run(Command::new(binary()).args(["memory", "diff", &first, &written[1]]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("CHANGE") || stdout.contains("nothing changed"), "{stdout}");
}

#[test]
fn samples_of_the_heap_name_the_app_that_they_are_held_for() {
    let echo = Echo::http1();
    let edge = Edge::builder()
        .app(App::new("hello").instance(echo.address()))
        .app(App::new("quiet").instance(echo.address()))
        .heapwatch_for_tests()
        .start();
    let mut clients: Vec<_> = (0..60).map(|_| edge.connect_tls("hello.test")).collect();
    for client in &mut clients {
        assert_eq!(client.get("hello.test", "/").status, 200);
    }
    wait::until("the app is named", || {
        // What is held only during a request is seen only during one.
        for client in &mut clients {
            assert_eq!(client.get("hello.test", "/").status, 200);
        }
        let page = edge.admin_get("/memory.json?all&stacks=1");
        let page: Page = serde_json::from_slice(&page.body).expect("it is JSON");
        let names: Vec<_> = page.heap.apps.iter().map(|share| page.heap.app(share.app)).collect();
        assert!(!names.contains(&"quiet".to_owned()), "nobody asked for it: {names:?}");
        names.contains(&"hello".to_owned())
    });
    let page = edge.admin_get("/memory").body;
    assert!(String::from_utf8_lossy(&page).contains("By app"), "it is on the page");
}
