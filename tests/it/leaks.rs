//! Seven leaks on purpose, each of which must be named; and a busy node without one, which must not
//! be accused.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use proxy::admin::memory::Page;
use telemetry::heapwatch::State;
use telemetry::heapwatch::report::Frame;
use tests::app::App;
use tests::client::{Raw, WebSocket};
use tests::edge::Edge;
use tests::instance::{Echo, websocket_echo};

/// From the first request to the name.
const NAMED: Duration = Duration::from_secs(60);

/// Debug information of a debug build is large, seven processes read it at once, and the machine may
/// be busy.
const NAMES: Duration = Duration::from_secs(100);

/// The scales of the test profile end at 32 s, so what lasts longer than that would be accused.
const SOAK: Duration = Duration::from_secs(75);

/// How far the bytes per request may be off.
const TOLERANCE: f64 = 0.15;

/// Apps that fill the metrics' room for labels within the first seconds: what fills for longer is
/// accused on the scales of the test profile.
const SHELVES: usize = 30;

/// That room.
const LABELS_MAX: u64 = 20;

/// Rounds at which a crowd comes, and how long it stays. The load beside it is on two connections, so
/// it is tenfold.
const CROWDS: [u32; 2] = [15, 45];
const CROWDED: Duration = Duration::from_secs(8);
const CROWD: usize = 9;

struct Leak {
    seed: &'static str,
    function: &'static str,
    /// Asked for and kept by each request.
    bytes: f64,
}

/// One suspect of either kind.
struct Suspect {
    id: String,
    state: State,
    bytes: u64,
    bytes_per_request: Option<f64>,
    functions: Vec<String>,
}

const LEAKS: [Leak; 7] = [
    // Room for four fields of 40 B in a vector of their own.
    Leak { seed: "children", function: "children::", bytes: 160.0 },
    Leak { seed: "vec", function: "append_to_journal", bytes: 512.0 },
    Leak { seed: "map", function: "remember_session", bytes: 600.0 },
    Leak { seed: "channel", function: "send_to_nobody", bytes: 700.0 },
    // The runtime's cell around 900 B and the tracker's token.
    Leak { seed: "task", function: "spawn_forever", bytes: 1_024.0 },
    Leak { seed: "pin", function: "pin_buffer", bytes: 1_500.0 },
    Leak { seed: "histogram", function: "observe_latency", bytes: 512.0 },
];

fn page(edge: &Edge) -> Page {
    let page = edge.admin_get("/memory.json");
    serde_json::from_slice(&page.body).expect("it is JSON")
}

fn functions(frames: &[Frame]) -> Vec<String> {
    frames.iter().flat_map(|frame| &frame.calls).map(|call| call.function.clone()).collect()
}

/// The functions of a stack or container, whatever is thought of it now.
fn functions_of(page: &Page, id: &str) -> Vec<String> {
    let stacks = page.heap.stacks.iter().map(|stack| (&stack.id, &stack.frames));
    let containers = page.heap.containers.iter().map(|found| (&found.id, &found.frames));
    let mut both = stacks.chain(containers);
    both.find(|(own, _)| *own == id).map(|(_, frames)| functions(frames)).unwrap_or_default()
}

/// Whoever is accused, the largest first.
fn suspects(page: &Page) -> Vec<Suspect> {
    let stacks = page.heap.stacks.iter().map(|stack| Suspect {
        id: stack.id.clone(),
        state: stack.state,
        bytes: stack.bytes,
        bytes_per_request: stack.bytes_per_request,
        functions: functions(&stack.frames),
    });
    let containers = page.heap.containers.iter().map(|found| Suspect {
        id: found.id.clone(),
        state: found.state,
        bytes: found.bytes,
        bytes_per_request: found.bytes_per_request,
        functions: functions(&found.frames),
    });
    let mut suspects: Vec<_> =
        stacks.chain(containers).filter(|suspect| suspect.state >= State::Probable).collect();
    suspects.sort_by_key(|suspect| std::cmp::Reverse(suspect.bytes));
    suspects
}

/// Requests on two connections at a pace that seven nodes at once can keep, until `stop`; the
/// connections last until `end`.
fn load(address: SocketAddr, stop: &AtomicBool, end: &AtomicBool) {
    const PACE: Duration = Duration::from_millis(6);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = Raw::tcp(address);
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    for _ in 0..2 {
                        assert_eq!(client.get("hello.test", "/").status, 200);
                    }
                    std::thread::sleep(PACE.saturating_sub(begun.elapsed()));
                }
                while !end.load(Relaxed) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
    });
}

/// The first that is accused, and when; with its name, once that is known.
fn first_suspect(edge: &Edge) -> Option<(Suspect, Duration)> {
    let (stop, end) = (&AtomicBool::new(false), &AtomicBool::new(false));
    let begun = Instant::now();
    let address = edge.http();
    std::thread::scope(|scope| {
        scope.spawn(move || load(address, stop, end));
        let first = loop {
            std::thread::sleep(Duration::from_millis(500));
            let mut accused = suspects(&page(edge));
            if !accused.is_empty() {
                break Some((accused.remove(0), begun.elapsed()));
            }
            if begun.elapsed() > NAMED {
                break None;
            }
        };
        stop.store(true, Relaxed);
        let patience = Instant::now() + NAMES;
        let named = first.map(|(mut first, after)| {
            while Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(500));
                let told = page(edge);
                first.functions = functions_of(&told, &first.id);
                if told.heap.names_pending == 0 && !first.functions.is_empty() {
                    break;
                }
            }
            (first, after)
        });
        end.store(true, Relaxed);
        named
    })
}

fn is_named(leak: &Leak) {
    let Leak { seed, function, bytes } = *leak;
    let echo = Echo::http1();
    let app = App::new("hello").instance(echo.address());
    let mut edge = Edge::builder().app(app).heapwatch_for_tests().seeded(seed).start();
    let found = first_suspect(&edge);
    edge.kill(); // some leaks would keep it from a clean end
    let (suspect, after) = found.unwrap_or_else(|| panic!("{seed}: nobody is accused"));
    let told = suspect.bytes_per_request.unwrap_or_default();
    eprintln!("{seed}: {told:.1} B per request (of {bytes}) after {after:?}");
    let named = suspect.functions.iter().any(|name| name.contains(function));
    assert!(named, "{seed}: {function} is not on {:#?}", suspect.functions);
    assert!((told / bytes - 1.0).abs() <= TOLERANCE, "{seed}: {told} B per request, not {bytes}");
}

#[test]
fn each_seeded_leak_is_named_first_with_its_bytes_per_request() {
    std::thread::scope(|scope| {
        let runs = LEAKS.each_ref().map(|leak| scope.spawn(move || is_named(leak)));
        let failed: Vec<_> = runs
            .into_iter()
            .zip(&LEAKS)
            .filter_map(|(run, leak)| run.join().err().map(|_| leak.seed))
            .collect();
        assert!(failed.is_empty(), "not as they should be: {failed:?}");
    });
}

#[test]
fn a_busy_node_without_a_leak_is_not_accused() {
    let (echo, chat) = (Echo::http1(), websocket_echo());
    let hello = App::new("hello").instance(echo.address());
    let edge = Edge::builder()
        .app(hello.clone())
        .app(App::new("chat").instance(chat.address()))
        .limit("metric_labels_max", LABELS_MAX)
        .limit("upstream_idle_max", 8)
        .heapwatch_for_tests()
        .start();
    let (stop, leave) = (AtomicBool::new(false), [AtomicBool::new(false), AtomicBool::new(false)]);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // A failure must end them too, or the scope would wait for ever.
        let _told = Told([&stop, &leave[0], &leave[1]]);
        let (address, stopping) = (edge.http(), &stop);
        scope.spawn(move || load(address, stopping, stopping));
        let mut sockets = Vec::new();
        let mut shelves = 0;
        let mut crowds = CROWDS.iter().zip(&leave).peekable();
        let mut left: Option<(Instant, &AtomicBool)> = None;
        let mut round = 0;
        while begun.elapsed() < SOAK {
            round += 1;
            if sockets.len() < 20 {
                sockets.push(WebSocket::upgrade(edge.connect(), "chat.test", "/"));
            }
            for socket in &mut sockets {
                socket.send(1, b"still here");
                assert_eq!(socket.receive().1, b"still here");
            }
            // Caches fill to their bounds.
            while shelves < SHELVES.min(4 * round as usize) {
                edge.write_app(&App::new(&format!("shelf-{shelves}")).instance(echo.address()));
                shelves += 1;
            }
            for shelf in 0..shelves {
                let status = edge.connect().get(&format!("shelf-{shelf}.test"), "/").status;
                assert!(matches!(status, 200 | 404), "{status}"); // not read yet
            }
            // A crowd comes and goes.
            if let Some((_, leaves)) = crowds.next_if(|(at, _)| round >= **at) {
                let mut crowd: Vec<_> = (0..200).map(|_| edge.connect()).collect();
                for client in &mut crowd {
                    assert_eq!(client.get("hello.test", "/").status, 200);
                }
                for _ in 0..CROWD {
                    scope.spawn(move || load(address, leaves, leaves));
                }
                left = Some((Instant::now() + CROWDED, leaves));
            }
            if let Some((_, leaves)) = left.take_if(|(at, _)| *at <= Instant::now()) {
                leaves.store(true, Relaxed);
            }
            // The inventory is written anew.
            if round % 5 == 0 {
                edge.write_app(&hello.clone().hostname(&format!("round-{round}.test")));
            }
            let told = page(&edge);
            let accused = suspects(&told);
            let accused: Vec<_> =
                accused.iter().map(|suspect| (suspect.state, &suspect.functions)).collect();
            assert!(accused.is_empty(), "after {:?}: {accused:#?}", begun.elapsed());
            std::thread::sleep(Duration::from_secs(1));
        }
        assert!(crowds.next().is_none(), "only {round} rounds: a crowd did not come");
    });
    let beyond = edge.metric("ferrule_metrics_overflow_total");
    assert!(beyond > 0.0, "the room for labels was never full");
}

/// Tells all of them at the end, however that comes.
struct Told<'a>([&'a AtomicBool; 3]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|told| told.store(true, Relaxed));
    }
}
