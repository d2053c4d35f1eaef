use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::record::model::{
    Exposed, Method, Protocol, ShortText, SpanId, TraceId, Verbosity, Wide as Record,
};

struct Log {
    log: AccessLog,
    registry: Registry,
    ledger: Ledger,
}

fn open(target: Target, buffer_bytes: usize) -> Log {
    let registry = Registry::new(1, 10);
    let ledger = Ledger::new(registry.clone());
    let config = Config { target, buffer_bytes };
    let log = AccessLog::open(&config, &registry, &ledger).unwrap();
    Log { log, registry, ledger }
}

fn record(attempts: u32) -> Record {
    Record {
        trace: TraceId(0xfeed),
        span: SpanId(1),
        parent: None,
        link: None,
        began: Duration::from_micros(1_795_175_668_987_654),
        lasted: Duration::from_micros(12_345),
        head_after: Some(Duration::from_micros(9_007)),
        request_id: ShortText::new("01ARZ3NDEKTSV4RRFFQ69G5FAV-ams"),
        verbosity: Verbosity::Normal,
        app: Some(Arc::from("hello")),
        instance: Some(Arc::from("hello-1")),
        node: Some(Arc::from("ams-1")),
        method: Method::Get,
        protocol: Protocol::Http2,
        tls: true,
        status: Some(200),
        error: None,
        attempts,
        request_bytes: 0,
        response_bytes: 1024,
        exposed: None,
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("every line is whole")).collect()
}

fn lost(lines: &[Value]) -> u64 {
    lines.iter().filter_map(|line| line["lost"].as_u64()).sum()
}

fn requests(lines: &[Value]) -> u64 {
    lines.iter().filter(|line| line["request_id"].is_string()).count() as u64
}

#[test]
fn a_request_is_one_line_with_these_fields() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("access.log");
    let Log { mut log, .. } = open(Target::File(path.clone()), 64 * 1024);
    log.write(&record(1), Instant::now());
    log.flush(Instant::now());
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\"time\":\"2026-11-20T11:54:28.987Z\",\"request_id\":\"01ARZ3NDEKTSV4RRFFQ69G5FAV-ams\",\
         \"trace_id\":\"0000000000000000000000000000feed\",\"app\":\"hello\",\
         \"instance\":\"hello-1\",\"node\":\"ams-1\",\"method\":\"GET\",\"protocol\":\"http/2\",\
         \"tls\":true,\"status\":200,\"duration_ms\":12.345,\"head_ms\":9.007,\"attempts\":1,\
         \"request_bytes\":0,\"response_bytes\":1024}\n"
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn what_does_not_apply_is_left_out_and_what_is_exposed_is_there() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("access.log");
    let Log { mut log, .. } = open(Target::File(path.clone()), 64 * 1024);
    let exposed = Exposed {
        client: Some([198, 51, 100, 7].into()),
        host: Some("hello.example".into()),
        path: Some("/\"quoted\"\\\n".into()),
        query: None,
        user_agent: Some("ü".repeat(128).into()),
    };
    let record = Record {
        head_after: None,
        app: None,
        instance: None,
        node: None,
        method: Method::Other,
        status: None,
        error: Some("PR04"),
        exposed: Some(Box::new(exposed)),
        ..record(0)
    };
    log.write(&record, Instant::now());
    drop(log); // what waits is written
    let mut line = lines(&fs::read_to_string(&path).unwrap()).remove(0);
    let line = line.as_object_mut().unwrap();
    for field in ["time", "request_id", "trace_id", "duration_ms", "protocol", "tls"] {
        assert!(line.remove(field).is_some(), "{field}");
    }
    assert_eq!(
        Value::Object(line.clone()),
        json!({
            "method": "_OTHER", "error": "PR04", "attempts": 0,
            "request_bytes": 0, "response_bytes": 1024,
            "client.address": "198.51.100.7", "server.address": "hello.example",
            "url.path": "/\"quoted\"\\\n", "user_agent.original": "ü".repeat(128),
        })
    );
}

#[test]
fn the_longest_record_fits_the_bound_of_a_line() {
    let worst: Box<str> = "\u{1}".repeat(1000).into();
    let name: Arc<str> = worst.to_string().into();
    let exposed = Exposed {
        client: Some([0xffff; 8].into()),
        host: Some(worst.clone()),
        path: Some(worst.clone()),
        query: Some(worst.clone()),
        user_agent: Some(worst.clone()),
    };
    let record = Record {
        request_id: ShortText::new(&worst),
        app: Some(name.clone()),
        instance: Some(name.clone()),
        node: Some(name),
        lasted: Duration::MAX,
        head_after: Some(Duration::MAX),
        status: Some(u16::MAX),
        error: Some("PX01"),
        attempts: u32::MAX,
        request_bytes: u64::MAX,
        response_bytes: u64::MAX,
        exposed: Some(Box::new(exposed)),
        ..record(0)
    };
    let mut line = Vec::new();
    line::request(&mut line, &record);
    assert!(line.len() <= line::BYTES_MAX, "{}", line.len());
    assert!(line.len() > line::BYTES_MAX / 2, "the bound is far off: {}", line.len());
}

#[test]
fn a_disk_that_is_full_costs_lines_and_nothing_else() {
    // Every write to it fails with ENOSPC (full(4)).
    let Log { mut log, registry, ledger } = open(Target::File("/dev/full".into()), 64 * 1024);
    for n in 0..10_000 {
        log.write(&record(n), Instant::now());
        log.flush(Instant::now());
    }
    assert!(log.buffer.len() <= 64 * 1024 && log.buffer.capacity() == 64 * 1024);
    let waiting = log.buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert!(waiting > 0);
    assert_eq!(log.dropped.value() + waiting, 10_000);
    assert_eq!(log.lost, log.dropped.value());
    assert!(log.errors.value() > 0);
    let text = registry.render();
    let dropped = format!("ferrule_access_log_dropped_total {}\n", 10_000 - waiting);
    assert!(text.contains(&dropped), "{text}");
    let held = |ledger: &Ledger| {
        let line = ledger.read().into_iter().find(|line| line.name == "access_log").unwrap();
        (line.current, line.cap)
    };
    assert_eq!(held(&ledger), (64 * 1024, 64 * 1024));
    drop(log);
    assert_eq!(held(&ledger), (0, 64 * 1024));
}

fn fifo(path: &Path) -> File {
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(nonblock).open(path).unwrap()
}

fn read(fifo: &mut File, into: &mut Vec<u8>) {
    match fifo.read_to_end(into) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
    }
}

#[test]
fn a_reader_that_stops_is_not_waited_for_and_the_log_says_what_it_missed() {
    const COUNT: u32 = 5_000;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pipe");
    let mut reader = fifo(&path);
    let Log { mut log, .. } = open(Target::File(path), 64 * 1024);
    let began = Instant::now();
    let mut read_back = Vec::new();
    for n in 0..COUNT {
        log.write(&record(n), Instant::now());
        if n == COUNT / 2 {
            assert!(log.dropped.value() > 0, "the pipe took everything");
            read(&mut reader, &mut read_back);
            log.flush(Instant::now());
        }
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    loop {
        let before = read_back.len();
        log.flush(Instant::now());
        read(&mut reader, &mut read_back);
        if read_back.len() == before {
            break;
        }
    }
    assert_eq!(log.backlog(), 0);
    let lines = lines(&String::from_utf8(read_back).unwrap());
    assert!(lines.iter().filter(|line| line["lost"].is_u64()).count() >= 2, "two gaps");
    assert_eq!(lost(&lines), log.dropped.value());
    assert_eq!(requests(&lines) + lost(&lines), u64::from(COUNT));
    // A gap is where the numbers leave off.
    let mut expected = 0;
    for line in &lines {
        match line["lost"].as_u64() {
            Some(lost) => expected += lost,
            None => {
                assert_eq!(line["attempts"], expected);
                expected += 1;
            }
        }
    }
}

#[test]
fn a_rotated_file_is_followed_without_losing_a_line() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("access.log");
    let Log { mut log, .. } = open(Target::File(path.clone()), 64 * 1024);
    let mut now = Instant::now();
    log.flush(now);
    log.write(&record(1), now);
    fs::rename(&path, folder.path().join("access.log.1")).unwrap();
    log.write(&record(2), now);
    log.flush(now); // looked a moment ago: still to the old one
    now += LOOK_EVERY;
    log.write(&record(3), now);
    log.flush(now);
    log.write(&record(4), now);
    log.flush(now);
    let attempts = |name: &str| -> Vec<u64> {
        let text = fs::read_to_string(folder.path().join(name)).unwrap();
        lines(&text).iter().map(|line| line["attempts"].as_u64().unwrap()).collect()
    };
    assert_eq!(attempts("access.log.1"), [1, 2, 3]);
    assert_eq!(attempts("access.log"), [4]);
    // By a signal, at once.
    fs::rename(&path, folder.path().join("access.log.2")).unwrap();
    log.reopen(now);
    log.write(&record(5), now);
    log.flush(now);
    assert_eq!(attempts("access.log"), [5]);
}

#[test]
fn a_line_that_was_torn_is_not_continued_elsewhere() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("access.log");
    let reader = fifo(&path);
    let Log { mut log, .. } = open(Target::File(path.clone()), 256 * 1024);
    let now = Instant::now();
    for n in 0..400 {
        log.write(&record(n), now);
    }
    log.flush(now);
    assert!(log.output.is_torn && log.backlog() > 0, "the pipe ends within a line");
    fs::remove_file(&path).unwrap();
    log.reopen(now);
    drop(reader);
    log.flush(now);
    let lines = lines(&fs::read_to_string(&path).unwrap());
    assert_eq!((lost(&lines), log.dropped.value()), (1, 1));
    assert_eq!(lines[lines.len() - 2]["attempts"], 399);
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let registry = Registry::new(1, 10);
    let ledger = Ledger::new(registry.clone());
    let target = Target::File("/nowhere/access.log".into());
    let config = Config { target, ..Config::default() };
    let error = AccessLog::open(&config, &registry, &ledger).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
