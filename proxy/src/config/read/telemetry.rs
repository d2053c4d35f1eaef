//! `[telemetry]` and its parts.

use std::time::Duration;

use control::document::{Item, Table};
use http::{HeaderName, HeaderValue};
use telemetry::sensitive::Policy;
use telemetry::{access_log, export, record, verbosity};

use super::values;
use crate::config::{Storage, Telemetry};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: u64 = 1 << 30;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn read(mut section: Table<'_>, storage: &Storage) -> Telemetry {
    let Telemetry { expose, records, otlp, access_log: _, verbosity } =
        Telemetry::in_storage(storage);
    let telemetry = Telemetry {
        expose: exposed(&mut section).unwrap_or(expose),
        records: self::records(section.table("records"), records),
        verbosity: self::verbosity(section.table("verbosity"), verbosity),
        access_log: section.optional_table("access_log").and_then(access_log),
        otlp: self::otlp(section.table("otlp"), otlp),
    };
    section.finish();
    telemetry
}

/// Names that are no field are told one by one.
fn exposed(section: &mut Table<'_>) -> Option<Policy> {
    let names: Vec<&str> = section
        .list("expose")?
        .iter()
        .filter_map(|item| {
            let name = item.string()?;
            Policy::exposing([name])
                .map(|_| name)
                .map_err(|error| item.error(error.to_string()))
                .ok()
        })
        .collect();
    Policy::exposing(names).ok()
}

fn records(mut section: Table<'_>, default: record::Config) -> record::Config {
    let mut config = default;
    let of = &mut section;
    let record::Config {
        buffer_bytes,
        verbose_buffer_bytes,
        entries_max,
        segment_after,
        slow,
        slow_factor,
        sample_percent,
        exports_per_second_max,
        app_exports_per_second_max,
        anomaly_window,
        // What it may hold in all follows from memory.limit.
        budget_bytes: _,
        retained_buffers,
        access_log_waiting_max,
    } = &mut config;
    set(buffer_bytes, of.bytes("buffer_bytes", 512..=MIB));
    set(verbose_buffer_bytes, of.bytes("verbose_buffer_bytes", 512..=256 * KIB));
    set(entries_max, of.integer("entries_max", 1..=65_536));
    set(segment_after, of.duration("segment_after", SECOND..=DAY));
    set(slow, of.duration("slow", Duration::ZERO..=HOUR));
    set(slow_factor, of.integer("slow_factor", 1..=1_000));
    set(sample_percent, of.number("sample_percent", 0.0..=100.0));
    set(exports_per_second_max, of.integer("exports_per_second_max", 0..=1_000_000));
    set(app_exports_per_second_max, of.integer("app_exports_per_second_max", 0..=1_000_000));
    set(anomaly_window, of.duration("anomaly_window", Duration::ZERO..=DAY));
    set(retained_buffers, of.integer("retained_buffers", 0..=65_536));
    set(access_log_waiting_max, of.integer("access_log_waiting_max", 1..=1 << 20));
    for problem in config.problems() {
        section.error("buffer_bytes", problem.to_string());
    }
    section.finish();
    config
}

fn otlp(mut section: Table<'_>, default: export::Config) -> export::Config {
    let mut config = default;
    let of = &mut section;
    if let Some(endpoint) = of.item("endpoint")
        && values::url(&endpoint, &["http", "https"]).is_some()
    {
        config.endpoint = endpoint.string().map(str::to_owned);
    }
    let protocols =
        [("http/protobuf", export::Protocol::HttpProtobuf), ("grpc", export::Protocol::Grpc)];
    set(&mut config.protocol, of.choice("protocol", &protocols));
    let compressions = [("none", export::Compression::None), ("gzip", export::Compression::Gzip)];
    set(&mut config.compression, of.choice("compression", &compressions));
    if let Some(headers) = of.list("headers") {
        config.headers.0 = headers.iter().filter_map(header).collect();
    }
    set(&mut config.timeout, of.duration("timeout", Duration::from_millis(10)..=10 * 60 * SECOND));
    config.certificate = of.path("certificate");
    set(&mut config.queue_bytes, of.bytes("queue_bytes", 256 * KIB..=256 * MIB));
    set(&mut config.ring_bytes, of.bytes("ring_bytes", 128 * KIB..=256 * MIB));
    set(&mut config.schedule_delay, of.duration("schedule_delay", SECOND / 100..=HOUR));
    set(&mut config.give_up_after, of.duration("give_up_after", SECOND..=HOUR));
    set(&mut config.metric_interval, of.duration("metric_interval", SECOND / 10..=HOUR));
    section.finish();
    config
}

/// `NAME: VALUE`; a value may be a secret, so that no message repeats it.
fn header(item: &Item<'_>) -> Option<(String, String)> {
    let split = item.string()?.split_once(':');
    let header = split.and_then(|(name, value)| {
        let (name, value) = (name.trim(), value.trim());
        HeaderName::try_from(name).ok()?;
        HeaderValue::try_from(value).ok()?;
        Some((name.to_owned(), value.to_owned()))
    });
    header.or_else(|| item.wrong("a header field such as \"authorization: Bearer …\""))
}

fn access_log(mut section: Table<'_>) -> Option<access_log::Config> {
    let target = section.item("path").and_then(|item| {
        if item.string()? == "stdout" {
            Some(access_log::Target::Stdout)
        } else {
            item.path().map(access_log::Target::File)
        }
    });
    let default = access_log::Config { target: target.unwrap_or_default(), ..Default::default() };
    let buffer_bytes =
        section.bytes("buffer_bytes", 8 * KIB..=64 * MIB).unwrap_or(default.buffer_bytes);
    section.finish();
    Some(access_log::Config { buffer_bytes, ..default })
}

fn verbosity(mut section: Table<'_>, default: verbosity::Config) -> verbosity::Config {
    let verbosity::Config {
        key_file,
        tokens_per_second_max,
        requests_percent_max,
        bytes_per_second_max,
    } = default;
    let of = &mut section;
    let config = verbosity::Config {
        key_file: of.path("key_file").unwrap_or(key_file),
        tokens_per_second_max: of
            .integer("tokens_per_second_max", 1..=100_000)
            .unwrap_or(tokens_per_second_max),
        requests_percent_max: of
            .integer("requests_percent_max", 0..=100)
            .unwrap_or(requests_percent_max),
        bytes_per_second_max: of
            .bytes("bytes_per_second_max", 65_536..=GIB)
            .unwrap_or(bytes_per_second_max),
    };
    section.finish();
    config
}

fn set<T>(value: &mut T, read: Option<T>) {
    if let Some(read) = read {
        *value = read;
    }
}
