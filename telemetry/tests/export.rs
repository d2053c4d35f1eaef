//! What only a process of its own can show: all memory an export takes, whoever allocated it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use telemetry::export::{Config, Exportable, Exporter, Identity, Protocol, Source};
use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use telemetry::record::{Entry, Event, Keep, Span, SpanId, TraceId, Value, Wide};

/// The system's allocator, which counts what is live, and the most that was.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// The only way to count allocations is to be the allocator.
#[allow(unsafe_code, reason = "a global allocator is an unsafe trait")]
// SAFETY: every call goes to the system's allocator as it came; counting touches two atomics and
// neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(block, layout) }
    }
}

/// A request with four spans and four events.
struct Fed {
    wide: Wide,
    entries: Vec<Entry<'static>>,
}

impl Fed {
    fn new(id: u64) -> Self {
        let (name, target) = ("inner", "proxy");
        let fields =
            || vec![("instance", Value::Catalogued("hello-1")), ("n", Value::Unsigned(id))];
        let span = |number| Span {
            id: SpanId(number),
            parent: None,
            name,
            target,
            start: Duration::ZERO,
            end: Some(Duration::ZERO),
            busy: Duration::ZERO,
            idle: Duration::ZERO,
            polls: 1,
            failed: false,
            fields: fields(),
        };
        let event = |number| Event {
            span: Some(SpanId(number)),
            name,
            target,
            level: tracing::Level::DEBUG,
            at: Duration::ZERO,
            fields: fields(),
        };
        let spans = (1..5).map(|number| Entry::Span(span(number)));
        let events = (1..5).map(|number| Entry::Event(event(number)));
        Self { wide: Wide::new(TraceId(1), SpanId(9)), entries: spans.chain(events).collect() }
    }
}

impl Exportable for Fed {
    fn wide(&self) -> &Wide {
        &self.wide
    }

    fn keep(&self) -> Keep {
        Keep::Sampled
    }

    fn segment(&self) -> u16 {
        0
    }

    fn open(&self) -> bool {
        false
    }

    fn cut(&self) -> (u32, u32) {
        (0, 0)
    }

    fn bytes(&self) -> usize {
        let fields = 8 * 2 * size_of::<(&str, Value<'_>)>();
        size_of::<Self>() + self.entries.capacity() * size_of::<Entry<'_>>() + fields
    }

    fn visit(&self, each: &mut dyn FnMut(Entry<'_>)) {
        self.entries.iter().cloned().for_each(each);
    }
}

struct FromTest(mpsc::Receiver<Fed>);

impl Source for FromTest {
    fn next(&mut self) -> Option<Box<dyn Exportable>> {
        self.0.recv_timeout(Duration::ZERO).ok().map(|fed| Box::new(fed) as Box<dyn Exportable>)
    }
}

/// Reads what comes and never answers.
fn hangs() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        for mut stream in listener.incoming().flatten() {
            while matches!(stream.read(&mut buffer), Ok(1..)) {}
        }
    });
    format!("http://{address}")
}

#[test]
fn all_memory_of_an_export_that_hangs_is_the_queues_and_a_batchs() {
    const QUEUE: usize = 4 << 20;
    // A batch that is encoded and sent, connections, the runtime. What the ring has is in the queue.
    const BESIDE: usize = 2 << 20;
    for protocol in [Protocol::HttpProtobuf, Protocol::Grpc] {
        let config = Config {
            endpoint: Some(hangs()),
            protocol,
            timeout: Duration::from_millis(100),
            queue_bytes: QUEUE,
            poll: Duration::from_millis(1),
            retry_initial: Duration::from_millis(1),
            ..Config::default()
        };
        let registry = Registry::new(1, 100);
        let ledger = Ledger::new(registry.clone());
        let (worker, records) = mpsc::sync_channel(64);
        let settings = config.resolve(&|_| None).expect("sound").expect("an endpoint");
        let identity = Identity::here("ams-1", "ams", "1.2.3");
        let before = LIVE.load(Relaxed);
        MOST.store(before, Relaxed);
        let records = Box::new(FromTest(records));
        let handle = Exporter::start(settings, &identity, records, &ledger, &registry);
        let handle = handle.expect("a thread");
        let began = Instant::now();
        // Until there were some batches, and much more than the queue takes.
        for id in 0.. {
            worker.send(Fed::new(id)).expect("the thread lives");
            if id >= 20_000 && began.elapsed() > Duration::from_secs(1) {
                break;
            }
        }
        let most = MOST.load(Relaxed) - before;
        let held = handle.held().bytes;
        assert!(handle.shutdown(Duration::from_secs(2)).ended);
        assert!(held > QUEUE / 10 * 9, "the queue was never full: {held}");
        assert!(most <= QUEUE + BESIDE, "{protocol:?}: {most} bytes were live");
    }
}
