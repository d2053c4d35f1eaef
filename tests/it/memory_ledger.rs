//! What the ledger says is held, against what the allocator says is allocated.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use proxy::admin::memory::Page;
use tests::app::App;
use tests::client::Raw;
use tests::edge::Edge;
use tests::instance::Echo;
use tests::wait;

/// What must be explained; above the upper bound something would be counted twice.
const EXPLAINED: std::ops::Range<f64> = 80.0..110.0;

/// The workers say once a second what they hold.
const SETTLED: Duration = Duration::from_secs(20);

fn page(edge: &Edge) -> Page {
    let page = edge.admin_get("/memory.json?stacks=1");
    serde_json::from_slice(&page.body).expect("it is JSON")
}

fn held(page: &Page, owner: &str) -> i64 {
    let line = page.ledger.iter().find(|line| line.owner == owner);
    line.unwrap_or_else(|| panic!("nobody is called {owner}: {:?}", page.ledger)).current
}

#[track_caller]
fn is_explained(edge: &Edge, when: &str) -> Page {
    let mut last = None;
    wait::within(SETTLED, &format!("memory is explained {when}"), || {
        let page = page(edge);
        let explained = EXPLAINED.contains(&page.explained().percent);
        if !explained && last.as_ref().is_none_or(|last: &Page| last.ledger != page.ledger) {
            eprintln!("{when}: {:?} of {} B", page.explained(), page.memory.allocated);
        }
        last = Some(page);
        explained
    });
    last.expect("it was looked at")
}

fn apps(echo: &Echo) -> Vec<App> {
    let many = (0..500).map(|n| {
        let app = App::new(&format!("app-{n}"));
        (1..=4).fold(app, |app, _| app.instance(echo.address()))
    });
    [App::new("hello").instance(echo.address())].into_iter().chain(many).collect()
}

#[test]
fn memory_is_explained_idle_under_load_and_afterwards() {
    let echo = Echo::http1();
    let [hello, many @ ..] = &apps(&echo)[..] else { panic!("there are apps") };
    let edge = many.iter().fold(Edge::builder().app(hello.clone()), |builder, app| {
        let file = app.file(builder.ports());
        builder.app_file(app.name(), &file)
    });
    let edge = edge.start();
    wait::until("the inventory is there", || edge.status()["apps"] == 501);
    let idle = is_explained(&edge, "idle");
    assert!(held(&idle, "inventory") > 500 * 1_000, "{:?}", idle.ledger);

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let stop = &stop;
            let mut client = if n < 2 { edge.connect() } else { edge.connect_tls("hello.test") };
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    assert_eq!(client.get("hello.test", "/").status, 200);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2)); // what is asserted is a state, not an event
        for _ in 0..3 {
            is_explained(&edge, "under load");
        }
        stop.store(true, Relaxed);
    });

    // The control: what connections hold is theirs, and is given back when they go.
    let before = held(&page(&edge), "connections");
    let open: Vec<Raw> = (0..300)
        .map(|n| {
            let mut client =
                if n % 2 == 0 { edge.connect() } else { edge.connect_tls("hello.test") };
            assert_eq!(client.get("hello.test", "/").status, 200);
            client
        })
        .collect();
    wait::within(SETTLED, "connections are booked", || {
        held(&page(&edge), "connections") > before + 300 * 1_000
    });
    is_explained(&edge, "with open connections");
    drop(open);
    edge.idle();
    wait::within(SETTLED, "connections are given back", || {
        held(&page(&edge), "connections") < before + 300 * 1_000
    });
    is_explained(&edge, "afterwards");

    let said = edge.command(&["memory"]);
    assert!(said.stdout.contains("explained "), "{said:?}");
}
