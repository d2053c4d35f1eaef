//! Seven memory leaks on purpose and a worker that hangs, compiled into `ferrule-seeded` and nowhere else.
//!
//! Each is one that was written in earnest somewhere, and what watches the heap must name it.
//! `FERRULE_SEED` says which; without it nothing leaks. A sampler sees a leak of `n` blocks per request
//! as well as one of any other shape, so the sizes are those of everyday code.
//!
//! | value | what stays with each request | where |
//! |---|---|---|
//! | `children` | its closed span, with its parent, which never closes | [`crate::leaky::children`] |
//! | `vec` | an entry of 512 B of one vector that only grows | [`Seeds::append_to_journal`] |
//! | `map` | an entry of 600 B of a map that nothing is removed from | [`Seeds::remember_session`] |
//! | `channel` | a message of 700 B to a receiver that is slow for ever | [`Seeds::send_to_nobody`] |
//! | `task` | a task that waits for what never comes, with 900 B | [`Seeds::spawn_forever`] |
//! | `pin` | its buffer of 1,500 B, which its connection keeps | [`Seeds::pin_buffer`] |
//! | `histogram` | 64 samples of 8 B of a histogram that nobody drains | [`Seeds::observe_latency`] |
//!
//! One value leaks nothing and is for what watches the workers: with `block`, a request for
//! [`BLOCKS`] holds its worker up for [`BLOCKED`] as soon as it waits for its instance.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tower::{Layer, Service};

use crate::http::Arrival;
use crate::leaky::children::Children;

/// Every request leaves something behind.
#[derive(Clone)]
pub struct SeededLayer {
    tasks: TaskTracker,
}

/// The service of one connection, and what the connection keeps.
#[derive(Clone)]
pub struct Seeded<S> {
    inner: S,
    tasks: TaskTracker,
    pinned: Rc<RefCell<Vec<Box<[u8]>>>>,
}

/// The leak of the process.
enum Seed {
    None,
    Children(Children),
    Vec,
    Map,
    Channel(mpsc::UnboundedSender<Box<[u8]>>),
    Task,
    Pin,
    Histogram,
    Block,
}

/// What the process never lets go.
struct Seeds {
    seed: Seed,
    journal: Mutex<Vec<[u64; 64]>>,
    sessions: Mutex<HashMap<u64, Box<[u8]>>>,
    latencies: Mutex<Vec<Box<[f64]>>>,
    /// Keeps the channel open.
    _receiver: Mutex<Option<mpsc::UnboundedReceiver<Box<[u8]>>>>,
}

static SEEDS: OnceLock<Seeds> = OnceLock::new();

/// The path of a request that holds its worker up.
const BLOCKS: &str = "/block";

/// For how long: several times what a worker may be away, and well below what drains a node.
const BLOCKED: Duration = Duration::from_millis(1_500);

const SESSION_BYTES: usize = 600;
const MESSAGE_BYTES: usize = 700;
const TASK_BYTES: usize = 900;
const BUFFER_BYTES: usize = 1_500;
const SAMPLES: usize = 64;

// === impl Seeds ===

impl Seeds {
    fn of_process() -> &'static Self {
        SEEDS.get_or_init(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let seed = match std::env::var("FERRULE_SEED").unwrap_or_default().as_str() {
                "children" => Seed::Children(Children::new()),
                "vec" => Seed::Vec,
                "map" => Seed::Map,
                "channel" => Seed::Channel(sender),
                "task" => Seed::Task,
                "pin" => Seed::Pin,
                "histogram" => Seed::Histogram,
                "block" => Seed::Block,
                _ => Seed::None,
            };
            Self {
                seed,
                journal: Mutex::default(),
                sessions: Mutex::default(),
                latencies: Mutex::default(),
                _receiver: Mutex::new(Some(receiver)),
            }
        })
    }

    #[inline(never)]
    fn append_to_journal(&self) {
        self.journal.lock().push(black_box([1; 64]));
    }

    #[inline(never)]
    fn remember_session(&self) {
        let session = black_box(vec![1; SESSION_BYTES].into_boxed_slice());
        let mut sessions = self.sessions.lock();
        let id = sessions.len() as u64;
        sessions.insert(id, session);
    }

    #[inline(never)]
    fn send_to_nobody(sender: &mpsc::UnboundedSender<Box<[u8]>>) {
        drop(sender.send(black_box(vec![1; MESSAGE_BYTES].into_boxed_slice())));
    }

    #[inline(never)]
    fn spawn_forever(tasks: &TaskTracker) {
        let held = black_box([1_u8; TASK_BYTES]);
        drop(tasks.spawn_local(async move {
            std::future::pending::<()>().await;
            black_box(&held);
        }));
    }

    #[inline(never)]
    fn pin_buffer(pinned: &RefCell<Vec<Box<[u8]>>>) {
        let buffer = black_box(vec![1; BUFFER_BYTES].into_boxed_slice());
        pinned.borrow_mut().push(buffer);
    }

    #[inline(never)]
    fn hold_the_worker_up() {
        std::thread::sleep(BLOCKED);
        black_box(()); // so that the sleep is no tail call
    }

    #[inline(never)]
    fn observe_latency(&self) {
        let samples = black_box(vec![1.0; SAMPLES].into_boxed_slice());
        self.latencies.lock().push(samples);
    }
}

// === impl SeededLayer ===

impl SeededLayer {
    /// `tasks` is where a connection's tasks go.
    pub fn new(tasks: &TaskTracker) -> Self {
        Self { tasks: tasks.clone() }
    }
}

impl<S> Layer<S> for SeededLayer {
    type Service = Seeded<S>;

    fn layer(&self, inner: S) -> Seeded<S> {
        Seeded { inner, tasks: self.tasks.clone(), pinned: Rc::default() }
    }
}

// === impl Seeded ===

impl<S> Service<Arrival> for Seeded<S>
where
    S: Service<Arrival>,
    S::Future: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = LocalBoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, arrival: Arrival) -> Self::Future {
        let seeds = Seeds::of_process();
        let (mut span, mut blocks) = (None, false);
        match &seeds.seed {
            Seed::None => {}
            Seed::Children(children) => {
                let (method, uri) = (arrival.request.method(), arrival.request.uri());
                span = Some((children, children.open(method, uri.path())));
            }
            Seed::Vec => seeds.append_to_journal(),
            Seed::Map => seeds.remember_session(),
            Seed::Channel(sender) => Seeds::send_to_nobody(sender),
            Seed::Task => Seeds::spawn_forever(&self.tasks),
            Seed::Pin => Seeds::pin_buffer(&self.pinned),
            Seed::Histogram => seeds.observe_latency(),
            Seed::Block => blocks = arrival.request.uri().path() == BLOCKS,
        }
        let answer = self.inner.call(arrival);
        Box::pin(async move {
            // In the order in which they are written: the request is on its way before it blocks.
            let held_up = async {
                if blocks {
                    Seeds::hold_the_worker_up()
                }
            };
            let (answered, ()) = join(answer, held_up).await;
            if let Some((children, span)) = span {
                children.close(span);
            }
            answered
        })
    }
}
