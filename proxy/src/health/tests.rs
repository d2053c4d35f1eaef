use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::AtomicU16;

use control::snapshot::{App, Change, CheckKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::inventory::tests::{app, instances, inventory, limited};

const MS: Duration = Duration::from_millis(1);

fn check(kind: CheckKind) -> Check {
    Check { kind, grace_period: Duration::ZERO, interval: 100 * MS, timeout: 2_000 * MS }
}

fn http(path: &str) -> CheckKind {
    let headers = vec![("x-probe".into(), "yes".into())];
    CheckKind::Http { method: "GET".into(), path: path.into(), headers }
}

/// An instance that answers with a status the test sets, and remembers what it was asked.
struct Instance {
    port: u16,
    status: Arc<AtomicU16>,
    asked: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl Instance {
    async fn start(status: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (status, asked) = (Arc::new(AtomicU16::new(status)), Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(Self::serve(listener, status.clone(), Arc::clone(&asked)));
        Self { port, status, asked, tasks }
    }

    async fn serve(listener: TcpListener, status: Arc<AtomicU16>, asked: Arc<Mutex<Vec<String>>>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = async {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await? == 0 {
                        return Err(io::Error::from(ErrorKind::UnexpectedEof));
                    }
                }
                asked.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
                let status = status.load(Relaxed);
                let location = "location: /elsewhere\r\ncontent-length: 0\r\n";
                stream.write_all(format!("HTTP/1.1 {status} x\r\n{location}\r\n").as_bytes()).await
            };
            answer.await.ok(); // a TCP check says nothing
        }
    }

    /// Refuses connections from here on.
    async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }
}

fn checked(port: u16, check: Check) -> App {
    let mut service = limited(1, None);
    service.internal_port = port;
    service.checks = vec![check];
    app("a", vec![service], instances("x@own remote@near"))
}

/// Waits until the instance of this node is `healthy`.
async fn becomes(inventory: &Inventory, healthy: bool) {
    let wait = async {
        while inventory.by_name("a").unwrap().candidates[0].load(0).unwrap().is_healthy() != healthy
        {
            sleep(MS).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.expect("it becomes so");
}

/// Runs `scenario` beside the checks, then stops them.
async fn beside_checks(inventory: &Arc<Inventory>, scenario: impl Future<Output = ()>) {
    let stop = CancellationToken::new();
    let scenario = async {
        scenario.await;
        stop.cancel();
    };
    let both = async { tokio::join!(run(inventory.clone(), stop.clone()), scenario) };
    timeout(Duration::from_secs(60), both).await.expect("checks stop when asked");
}

#[tokio::test]
async fn any_2xx_is_a_success_and_a_redirect_is_none() {
    let instance = Instance::start(204).await;
    let check = check(http("/health?deep=1"));
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, instance.port));
    for (status, succeeds) in [(200, true), (204, true), (299, true), (301, false), (503, false)] {
        instance.status.store(status, Relaxed);
        assert_eq!(probe::attempt(&check, target).await.is_ok(), succeeds, "{status}");
    }
    let asked = instance.asked.lock().unwrap();
    assert_eq!(asked.len(), 5, "no redirect was followed: {asked:?}");
    let host = format!("host: {target}\r\n");
    assert!(asked[0].starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{}", asked[0]);
    assert!(asked[0].contains("x-probe: yes\r\n") && asked[0].contains(&host), "{}", asked[0]);
}

#[tokio::test]
async fn an_instance_that_accepts_and_says_nothing_fails_the_http_check_only() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = listener.local_addr().unwrap();
    let impatient = |kind| Check { timeout: 50 * MS, ..check(kind) };
    assert!(probe::attempt(&impatient(CheckKind::Tcp), target).await.is_ok());
    let error = probe::attempt(&impatient(http("/")), target).await.unwrap_err();
    assert!(matches!(error, probe::ProbeError::Timeout), "{error}");
}

#[tokio::test]
async fn health_follows_the_first_failure_and_the_first_success() {
    let instance = Instance::start(200).await;
    let inventory = inventory();
    inventory.apply(Change::Upsert(Arc::new(checked(instance.port, check(http("/"))))));
    beside_checks(&inventory, async {
        instance.status.store(500, Relaxed);
        becomes(&inventory, false).await;
        instance.status.store(200, Relaxed);
        becomes(&inventory, true).await;
    })
    .await;
    let remote = inventory.by_name("a").unwrap().candidates[1].load(0).unwrap().is_healthy();
    assert!(remote, "instances of other nodes are not checked");
}

#[tokio::test]
async fn a_tcp_check_sees_a_port_that_closes() {
    let mut instance = Instance::start(200).await;
    let inventory = inventory();
    beside_checks(&inventory, async {
        // Also after the checks have begun to run.
        inventory.apply(Change::Upsert(Arc::new(checked(instance.port, check(CheckKind::Tcp)))));
        instance.stop().await;
        becomes(&inventory, false).await;
    })
    .await;
}

#[tokio::test]
async fn an_instance_whose_check_is_removed_is_let_back_in() {
    let instance = Instance::start(500).await;
    let inventory = inventory();
    let mut app = checked(instance.port, check(http("/")));
    inventory.apply(Change::Upsert(Arc::new(app.clone())));
    beside_checks(&inventory, async {
        becomes(&inventory, false).await;
        app.services[0].checks.clear();
        inventory.apply(Change::Upsert(Arc::new(app)));
        becomes(&inventory, true).await;
    })
    .await;
}

#[tokio::test]
async fn an_unrelated_change_does_not_restart_a_check() {
    let instance = Instance::start(200).await;
    let inventory = inventory();
    let slow = Check { interval: Duration::from_secs(600), ..check(http("/")) };
    let mut app = checked(instance.port, slow);
    let asked = || instance.asked.lock().unwrap().len();
    inventory.apply(Change::Upsert(Arc::new(app.clone())));
    beside_checks(&inventory, async {
        while asked() == 0 {
            sleep(MS).await;
        }
        app.instances.push(instances("another@own").remove(0));
        inventory.apply(Change::Upsert(Arc::new(app)));
        // The new one is checked at once, the old one not again.
        while asked() < 2 {
            sleep(MS).await;
        }
    })
    .await;
    assert_eq!(asked(), 2);
}

#[test]
fn failures_count_after_grace_and_successes_always() {
    let now = Instant::now();
    let grace = Check { grace_period: 1_000 * MS, interval: 15_000 * MS, ..check(CheckKind::Tcp) };
    let course = Course::new(&grace, now);
    assert_eq!(course.verdict(false, now + 999 * MS), None);
    assert_eq!(course.verdict(true, now), Some(true));
    assert_eq!(course.verdict(false, now + 1_000 * MS), Some(false));
    // What failed within grace is asked again when grace ends.
    assert_eq!(course.pause(false, now + 400 * MS, 500), 600 * MS);
    assert_eq!(course.pause(false, now + 1_000 * MS, 500), 15_000 * MS);
    assert_eq!(course.pause(true, now, 500), 15_000 * MS);
}

#[test]
fn checks_spread_by_a_tenth_of_their_interval() {
    let now = Instant::now();
    let course = Course::new(&Check { interval: 10_000 * MS, ..check(CheckKind::Tcp) }, now);
    assert_eq!(course.pause(true, now, 0), 9_000 * MS);
    assert!(course.pause(true, now, 999) > 10_900 * MS);
    let hasty = Course::new(&Check { interval: Duration::ZERO, ..check(CheckKind::Tcp) }, now);
    assert!(hasty.pause(false, now, 0) >= 90 * MS);
}
