//! The ledger's line of an exporter at work: what it holds, not what it has held.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use telemetry::export::{Config, Exportable, Exporter, Handle, Identity, Protocol, Source};
use telemetry::heapwatch;
use telemetry::ledger::Ledger;
use telemetry::ledger::scope::TELEMETRY;
use telemetry::metrics::{Registry, Value};
use telemetry::record::{Entry, Keep, SpanId, TraceId, Wide};

#[global_allocator]
static ALLOCATOR: heapwatch::Allocator = heapwatch::Allocator;

/// As many records as it is told, made on the thread that takes them.
struct Told {
    wanted: Arc<AtomicU64>,
    given: u64,
}

struct Plain(Wide);

impl Source for Told {
    fn next(&mut self) -> Option<Box<dyn Exportable>> {
        (self.given < self.wanted.load(Relaxed)).then(|| {
            self.given += 1;
            Box::new(Plain(Wide::new(TraceId(1), SpanId(self.given)))) as Box<dyn Exportable>
        })
    }
}

impl Exportable for Plain {
    fn wide(&self) -> &Wide {
        &self.0
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
        size_of::<Self>()
    }

    fn visit(&self, _: &mut dyn FnMut(Entry<'_>)) {}
}

/// Takes every request, and answers it with nothing.
fn takes(bytes: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let bytes = bytes.clone();
            std::thread::spawn(move || while take_one(&stream, &bytes).is_some() {});
        }
    });
    format!("http://{address}")
}

/// The head ends with an empty line, and names the body's length.
fn take_one(mut stream: &TcpStream, bytes: &AtomicU64) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().expect("a number");
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    bytes.fetch_add(length as u64, Relaxed);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
}

/// What the collector has accepted.
fn sent(registry: &Registry) -> f64 {
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_f64(),
        Value::Distribution(_) => 0.0,
    };
    let families = registry.snapshot().families;
    let sent = families.iter().filter(|family| family.name == "ferrule_telemetry_sent_total");
    sent.flat_map(|family| &family.points).map(|point| number(&point.value)).sum()
}

/// Has `count` more records made, and waits until the collector has them all.
fn export(handle: &Handle, sent: &dyn Fn() -> f64, wanted: &AtomicU64, count: u64) {
    let goal = wanted.fetch_add(count, Relaxed) + count;
    let began = Instant::now();
    while sent() < goal as f64 || handle.held().units > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "{} of {goal} arrived", sent());
        std::thread::yield_now();
    }
}

#[test]
fn what_was_sent_is_no_longer_in_the_ledger() {
    let received = Arc::new(AtomicU64::new(0));
    let config = Config {
        endpoint: Some(takes(received.clone())),
        protocol: Protocol::HttpProtobuf,
        poll: Duration::from_millis(1),
        schedule_delay: Duration::from_millis(1),
        ring_bytes: 64 * 1024,
        ..Config::default()
    };
    let registry = Registry::new(1, 100);
    let ledger = Ledger::of_process(registry.clone());
    let wanted = Arc::new(AtomicU64::new(0));
    let source = Box::new(Told { wanted: wanted.clone(), given: 0 });
    let settings = config.resolve(&|_| None).expect("sound").expect("an endpoint");
    let identity = Identity::here("ams-1", "ams", "1.2.3");
    let handle = Exporter::start(settings, &identity, source, &ledger, &registry);
    let handle = handle.expect("a thread");

    let sent = || sent(&registry);
    export(&handle, &sent, &wanted, 2_000); // connections, buffers, the ring
    let (held, before) = (TELEMETRY.bytes(), received.load(Relaxed));
    export(&handle, &sent, &wanted, 10_000);
    let (grown, written) = (TELEMETRY.bytes() - held, received.load(Relaxed) - before);
    assert!(handle.shutdown(Duration::from_secs(2)).ended);
    assert!(written > 1 << 20, "{written} bytes arrived");
    assert!(grown < 256 * 1024, "{grown} bytes more are booked after {written} were sent");
}
