//! One process of a node hands over to the next: nothing is lost, and what fails changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use http::Request;
use rustix::process::{Pid, Signal, kill_process};
use tests::app::App;
use tests::client::{H2, H2Response, Raw};
use tests::edge::{Builder, Edge, binary};
use tests::instance::Echo;
use tests::lab::Lab;
use tests::wait;

fn node(echo: &Echo) -> Builder {
    Edge::builder().app(App::new("hello").instance(echo.address()))
}

#[test]
fn a_node_is_replaced_and_says_which_generation_serves() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    let first = edge.pid();
    assert_eq!(edge.status()["generation"], 1);
    assert_eq!(edge.get("hello.test", "/").status, 200);

    let outcome = edge.upgrade();

    assert!(outcome.stdout.contains("it serves"), "{}", outcome.stdout);
    assert_ne!(edge.pid(), first);
    assert_eq!(edge.status()["generation"], 2);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    edge.predecessors_end();
    assert_eq!(edge.metrics().sum_with("ferrule_generation", &[("color", "green")]), 2.0);
    assert!(edge.path("admin.sock").exists());

    edge.upgrade();
    assert_eq!(edge.status()["generation"], 3);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    edge.stop();
}

#[tokio::test]
async fn what_had_begun_is_finished_by_the_process_that_began_it() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    let mut busy = [edge.connect(), edge.connect_tls("hello.test")];
    for client in &mut busy {
        client.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    }
    let mut client = H2::connect(edge.https(), &edge.tls("hello.test")).await;
    let request = Request::get("https://hello.test/gate").body(()).unwrap();
    let (response, _) = client.start(request, true).await.unwrap();
    echo.holds(3);

    edge.upgrade();

    let status = edge.status();
    assert_eq!(status["other"]["generation"], 1, "{status}");
    assert_eq!(edge.get("hello.test", "/").status, 200);
    let refused = edge.try_upgrade(&[]);
    assert_eq!(refused.code, 69);
    assert!(refused.stderr.contains("generation 1 (pid "), "{}", refused.stderr);
    echo.open(3);
    for client in &mut busy {
        assert_eq!(client.response().text(), "through the gate");
        assert!(client.closes_within(Duration::from_secs(5)));
    }
    assert_eq!(&H2Response::read(response).await.unwrap().body[..], b"through the gate");
    client.ended().await.unwrap();
    edge.predecessors_end();
}

#[test]
fn a_program_that_is_no_successor_changes_nothing() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    for (program, reason) in [
        ("/bin/true", "the successor ended before it said hello (exit status: 0)"),
        ("/nowhere", "/nowhere cannot be started: No such file or directory"),
        ("/bin/sh", "the successor ended before it said hello"),
    ] {
        let outcome = edge.try_upgrade(&["--binary", program]);
        assert_eq!(outcome.code, 69, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(reason), "{program}: {}", outcome.stderr);
        assert_eq!(edge.status()["generation"], 1);
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
}

#[test]
fn a_configuration_that_does_not_parse_is_refused_with_its_problem() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    let good = fs::read_to_string(edge.path("edge.toml")).unwrap();
    fs::write(edge.path("edge.toml"), format!("{good}\n[surprise]\n")).unwrap();
    let outcome = edge.try_upgrade(&[]);
    assert_eq!(outcome.code, 64, "{}", outcome.stderr);
    let expected = "edge.toml cannot be used: ";
    assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("surprise"), "{}", outcome.stderr);
    assert_eq!(edge.status()["generation"], 1);
    fs::write(edge.path("edge.toml"), good).unwrap();
    edge.upgrade();
    assert_eq!(edge.status()["generation"], 2);
}

#[test]
fn sigusr2_replaces_the_node_too() {
    let echo = Echo::http1();
    let mut edge = node(&echo).timeout("handoff_probation", "100ms").start();
    let traffic = Traffic::at(edge.http());
    edge.signal(Signal::USR2);
    wait::until("another process serves", || edge.status()["generation"] == 2);
    edge.follow();
    edge.predecessors_end();
    let (answered, failed) = traffic.end();
    assert!(answered > 0 && failed.is_empty(), "{answered} answered; {failed:?}");
}

#[test]
fn many_upgrades_lose_nothing_and_leave_nothing_behind() {
    let echo = Echo::http1();
    let mut edge = node(&echo).timeout("handoff_probation", "10ms").start();
    let traffic = Traffic::at(edge.http());
    edge.upgrade();
    edge.predecessors_end();
    let before = Left::by(&edge);
    for _ in 0..4 {
        edge.upgrade();
        edge.predecessors_end();
    }
    let (answered, failed) = traffic.end();
    assert!(failed.is_empty(), "{answered} answered; {failed:?}");
    assert_eq!(edge.status()["generation"], 6);
    edge.idle();
    Left::comes_back(&edge, &before);
}

#[test]
fn nodes_of_a_mesh_are_replaced_while_one_asks_the_other() {
    let echo = Echo::http1();
    let app = App::new("hello").instance_on("b", echo.address());
    let [mut a, mut b] = Edge::two_regions([app]);
    let traffic = Traffic::at(a.http());
    for node in [&mut b, &mut a] {
        node.upgrade();
        node.predecessors_end();
    }
    let (answered, failed) = traffic.end();
    assert!(answered > 0 && failed.is_empty(), "{answered} answered; {failed:?}");
}

#[test]
fn a_steered_node_is_replaced_by_as_many_workers_or_others() {
    let Some(lab) = Lab::new() else { return };
    lab.edge().run(|| {
        let echo = Echo::http1();
        let text = format!(
            "app = \"web\"\nhostnames = [\"hello.test\"]\naddresses = [\"198.51.100.7\"]\n\
             [[services]]\ninternal_port = {}\n[[services.ports]]\nport = 80\nhandlers = [\"http\"]\n\
             [[instances]]\nid = \"web-1\"\nnode = \"a\"\naddress = \"{}\"\n",
            echo.address().port(),
            echo.address().ip()
        );
        let node = lab.node("steer", "xdp").app_file("web", &text).workers(1);
        let mut edge = node.timeout("handoff_probation", "10ms").start_until_ready();
        let traffic = lab.client().run(|| Traffic::at("198.51.100.7:80".parse().unwrap()));
        let config = fs::read_to_string(edge.path("edge.toml")).unwrap();
        for workers in [1, 3, 2, 1] {
            let config = config.replace("workers = 1", &format!("workers = {workers}"));
            fs::write(edge.path("edge.toml"), config).unwrap();
            edge.upgrade();
            edge.predecessors_end();
            assert_eq!(edge.status()["listen_mode"], "steer");
        }
        let (answered, failed) = traffic.end();
        assert!(answered > 0 && failed.is_empty(), "{answered} answered; {failed:?}");
        // One that comes to nothing has touched the kernel by then.
        let traffic = lab.client().run(|| Traffic::at("198.51.100.7:80".parse().unwrap()));
        fails_at(&edge, "ready");
        edge.upgrade();
        edge.predecessors_end();
        traffic.loses_only_what_was_killed(1);
        edge.stop();
    });
}

/// Kills the successor when it says that it is `at`; the node goes on as it was.
#[track_caller]
fn fails_at(edge: &Edge, at: &str) {
    let generation = edge.status()["generation"].clone();
    let (pid, already) = (edge.pid(), edge.log().lines().count());
    let mut upgrade = edge.start_upgrade(&[]);
    let successor = successor_at(edge, already, at);
    kill(successor, Signal::KILL);
    let status = upgrade.wait(wait::PATIENCE);
    let said = upgrade.output();
    assert_eq!(status.code(), Some(69), "killed at {at}: {said}");
    assert!(said.contains("the successor ended") && said.contains("signal: 9"), "{at}: {said}");
    let now = edge.status();
    assert_eq!((&now["generation"], now["pid"].as_u64()), (&generation, Some(pid.into())));
    assert!(now["other"].is_null());
}

/// Waits until a successor has said that it is `at`, and finds out which process it is.
#[track_caller]
fn successor_at(edge: &Edge, already: usize, at: &str) -> u32 {
    let mut pid = None;
    wait::until(&format!("the successor is at {at}"), || {
        let log = edge.log();
        let mut new = log.lines().skip(already);
        let spawned = new.clone().find(|line| line.contains("step=\"spawned\""));
        pid = spawned
            .and_then(|line| line.split("pid=").nth(1)?.split_whitespace().next()?.parse().ok());
        let step = format!("taking over step=\"{at}\"");
        pid.is_some() && new.any(|line| line.contains(&step))
    });
    pid.expect("it was just found")
}

#[track_caller]
fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the id of a process");
    kill_process(pid, signal).expect("it is there");
}

#[test]
fn a_successor_that_dies_at_any_step_changes_nothing() {
    let echo = Echo::http1();
    let edge = node(&echo).timeout("handoff_probation", "5s").start();
    let traffic = Traffic::at(edge.http());
    let before = Left::by(&edge);
    for step in ["started", "hello", "adopted", "loaded", "ready", "serving"] {
        fails_at(&edge, step);
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    traffic.loses_only_what_was_killed(3); // from "loaded" on it may have accepted one
    edge.idle();
    Left::comes_back(&edge, &before);
    assert_eq!(edge.command(&["status"]).code, 0, "the socket has its file");
}

#[test]
fn a_successor_that_hangs_is_ended_when_its_time_is_up() {
    let echo = Echo::http1();
    let mut edge = node(&echo).timeout("handoff", "1s").start();
    for place in ["kill -STOP $$", "sleep 60"] {
        let script = wrapper(&edge, place);
        let outcome = edge.try_upgrade(&["--binary", &script]);
        assert_eq!(outcome.code, 69, "{}", outcome.stderr);
        let reason = "the successor came no further than \"started\" within 1 s";
        assert!(outcome.stderr.contains(reason), "{}", outcome.stderr);
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    let already = edge.log().lines().count();
    let mut upgrade = edge.start_upgrade(&[]);
    kill(successor_at(&edge, already, "hello"), Signal::STOP);
    assert_eq!(upgrade.wait(wait::PATIENCE).code(), Some(69));
    assert!(upgrade.output().contains("within 1 s"), "{}", upgrade.output());
    assert_eq!(edge.status()["generation"], 1);
}

/// A program that does this before it becomes the successor; children of it would outlive it.
fn wrapper(edge: &Edge, first: &str) -> String {
    let path = edge.path("wrapper");
    let first = first.replace("sleep", "exec sleep");
    let text = format!("#!/bin/sh\n{first}\nexec {} \"$@\"\n", binary().display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_predecessor_that_dies_once_it_has_given_everything_is_succeeded() {
    let echo = Echo::http1();
    for at in ["adopted", "ready", "serving"] {
        let mut edge = node(&echo).timeout("handoff_probation", "5s").start();
        let first = edge.pid();
        let mut upgrade = edge.start_upgrade(&[]);
        let successor = successor_at(&edge, 0, at);
        kill(first, Signal::KILL);
        // New connections wait in the queues of sockets that were never closed.
        assert_eq!(edge.get("hello.test", "/").status, 200, "killed at {at}");
        assert_eq!(upgrade.wait(wait::PATIENCE).code(), Some(0), "{}", upgrade.output());
        let end = format!("pid {successor} is generation 2; the old one died");
        assert!(upgrade.output().contains(&end), "{}", upgrade.output());
        wait::until("the successor answers for the node", || {
            let outcome = edge.command(&["status", "--json"]);
            outcome.code == 0 && outcome.stdout.contains(&format!("\"pid\":{successor},"))
        });
        assert_eq!(edge.follow(), 2);
        edge.stop();
    }
}

#[test]
fn a_predecessor_that_dies_before_it_has_given_anything_leaves_no_successor() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    let first = edge.pid();
    // The successor runs once nobody is there any more.
    let script = wrapper(&edge, &format!("kill -KILL {first}"));
    let mut upgrade = edge.start_upgrade(&["--binary", &script]);
    assert_eq!(upgrade.wait(wait::PATIENCE).code(), Some(69));
    wait::until("no process is left", || {
        edge.log().contains("nothing can be taken over: the channel to the predecessor breaks off")
    });
    edge.kill();
    edge.start_again();
    assert_eq!(edge.get("hello.test", "/").status, 200);
    assert_eq!(edge.status()["generation"], 1);
}

#[test]
fn a_node_that_is_told_to_stop_while_it_hands_over_stops() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    let script = wrapper(&edge, "sleep 60");
    let mut upgrade = edge.start_upgrade(&["--binary", &script]);
    wait::until("a successor was started", || edge.log().contains("step=\"spawned\""));
    edge.signal(Signal::TERM);
    edge.stopped();
    assert_eq!(upgrade.wait(wait::PATIENCE).code(), Some(69));
    assert!(upgrade.output().contains("the node was told to end"), "{}", upgrade.output());
}

#[test]
fn a_successor_that_speaks_otherwise_is_refused_by_name() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    for (says, reason) in [
        (
            r#"{"say":"hello","manifest":2,"version":"9.9.9"}"#,
            "the successor (version 9.9.9) speaks manifest 2, this process manifest 1",
        ),
        (r#"{"say":"farewell"}"#, "the successor says what it should not before it said hello"),
        ("oops", "a message is none that this process knows"),
    ] {
        let script = wrapper(&edge, &format!("printf '{says}' >&0; sleep 60"));
        let outcome = edge.try_upgrade(&["--binary", &script]);
        assert_eq!(outcome.code, 69, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(reason), "{}", outcome.stderr);
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
}

#[test]
fn what_only_memory_knows_goes_along() {
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let mut edge = Edge::builder().app(app).timeout("handoff_probation", "10ms").start();
    let rule = ["trace", "on", "--app", "hello", "--why", "a test"];
    assert_eq!(edge.command(&rule).code, 0);
    for _ in 0..3 {
        assert_eq!(edge.get("hello.test", "/").status, 200);
    }
    let requests = edge.metric("ferrule_requests_total");
    assert!(requests >= 3.0);
    edge.upgrade();
    let both = edge.metrics();
    assert!(both.sum("ferrule_requests_total") >= requests, "a counter never goes back");
    edge.predecessors_end();
    assert!(edge.metric("ferrule_requests_total") >= requests);
    let rules = edge.command(&["trace", "list"]).stdout;
    assert!(rules.contains("hello") && rules.contains("a test"), "{rules}");
}

#[test]
fn of_several_upgrades_at_once_one_is_carried_out() {
    let echo = Echo::http1();
    let mut edge = node(&echo).timeout("handoff", "1s").start();
    let script = wrapper(&edge, "sleep 60");
    let mut first = edge.start_upgrade(&["--binary", &script]);
    wait::until("a successor was started", || edge.log().contains("step=\"spawned\""));
    let second = edge.try_upgrade(&[]);
    assert_eq!(second.code, 69);
    assert!(second.stderr.contains("another upgrade is under way"), "{}", second.stderr);
    assert_eq!(first.wait(wait::PATIENCE).code(), Some(69));
    edge.upgrade();
}

#[test]
fn a_catalog_of_another_version_is_left_to_who_can_read_it() {
    let echo = Echo::http1();
    let mut edge = node(&echo).start();
    let catalog = edge.path("storage/inventory.db");
    let set_version = |version: u32| {
        let catalog = rusqlite::Connection::open(&catalog).expect("it is there");
        let before = catalog.pragma_query_value(None, "user_version", |row| row.get(0));
        catalog.pragma_update(None, "user_version", version).expect("it can be written");
        before.expect("it has a version")
    };
    // As a newer version would have left it.
    let before = set_version(99);
    let files = listing(&edge.path("storage"));
    let outcome = edge.try_upgrade(&[]);
    assert_eq!(outcome.code, 69, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("its schema version is 99"), "{}", outcome.stderr);
    assert_eq!(listing(&edge.path("storage")), files);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    set_version(before);
    edge.upgrade();
}

/// What a node holds that it might forget to let go.
struct Left {
    descriptors: usize,
    children: usize,
    files: BTreeSet<String>,
}

impl Left {
    fn by(edge: &Edge) -> Self {
        let pid = edge.pid();
        let children = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
        let children = children.map(|task| {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.split_whitespace().count()
        });
        Self {
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count(),
            children: children.sum(),
            files: listing(&edge.path("")),
        }
    }

    /// Earlier black boxes and snapshots are kept, so many of each.
    #[track_caller]
    fn is_as(&self, before: &Self) {
        let kept = |file: &&String| !file.contains("blackbox.") && !file.contains("snapshots/");
        let files = |left: &Self| left.files.iter().filter(kept).cloned().collect::<Vec<_>>();
        assert_eq!(files(self), files(before));
        assert_eq!(self.children, before.children, "children");
    }

    /// The same in descriptors, once idle connections to instances are closed. Pages that are just
    /// being asked for have some too.
    #[track_caller]
    fn comes_back(edge: &Edge, before: &Self) {
        wait::until("it holds as many descriptors as before", || {
            Self::by(edge).descriptors <= before.descriptors + 1
        });
        Self::by(edge).is_as(before);
    }
}

/// Every file below a folder, by its path there.
fn listing(folder: &std::path::Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("it is there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).expect("below").display().to_string());
            }
        }
    }
    found
}

/// Connects anew for every request until it is dropped; nothing may go wrong.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(usize, Vec<String>)>>,
}

impl Traffic {
    fn at(address: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let ended = stop.clone();
        let ask = move || {
            let mut raw = Raw::try_tcp(address).map_err(|error| format!("connect: {error}"))?;
            raw.set_timeout(wait::PATIENCE);
            let head = "GET / HTTP/1.1\r\nhost: hello.test\r\nconnection: close\r\n\r\n";
            raw.try_send(head).map_err(|error| format!("send: {error}"))?;
            match raw.try_response("GET") {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(format!("status {}", response.status)),
                Err(error) => Err(format!("response: {error:?}")),
            }
        };
        let thread = std::thread::spawn(move || {
            let (mut answered, mut failed) = (0, Vec::new());
            while !ended.load(Relaxed) {
                match ask() {
                    Ok(()) => answered += 1,
                    Err(error) => failed.push(error),
                }
            }
            (answered, failed)
        });
        Self { stop, thread: Some(thread) }
    }

    /// How many requests were answered; what went wrong otherwise.
    fn end(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Relaxed);
        self.thread.take().expect("it ends once").join().expect("it does not panic")
    }

    /// Nobody was refused; a connection that a process had accepted goes with it if it is killed.
    #[track_caller]
    fn loses_only_what_was_killed(self, kills: usize) {
        let (answered, failed) = self.end();
        let lost = failed.iter().filter(|error| !error.starts_with("connect")).count();
        assert!(answered > 0 && lost == failed.len() && lost <= kills, "{answered}, {failed:?}");
    }
}
