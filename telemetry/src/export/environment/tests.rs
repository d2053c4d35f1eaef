use std::os::unix::ffi::OsStringExt as _;

use super::*;

fn resolve(config: &Config, variables: &[(&str, &str)]) -> Result<Option<Settings>, Vec<Problem>> {
    config.resolve(&|name| {
        let found = variables.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).into())
    })
}

fn settings(config: &Config, variables: &[(&str, &str)]) -> Settings {
    resolve(config, variables).expect("sound values").expect("something to export")
}

fn problems(variables: &[(&str, &str)]) -> Vec<String> {
    let problems = resolve(&to_localhost(), variables).expect_err("a value that cannot be used");
    problems.iter().map(ToString::to_string).collect()
}

fn to_localhost() -> Config {
    Config { endpoint: Some("http://127.0.0.1:4318".to_owned()), ..Config::default() }
}

fn uri(target: Option<Target>) -> String {
    target.expect("the signal is exported").uri.to_string()
}

#[test]
fn without_an_endpoint_nothing_is_exported() {
    assert!(resolve(&Config::default(), &[]).expect("sound").is_none());
    let empty = [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_SERVICE_NAME", "edge")];
    assert!(resolve(&Config::default(), &empty).expect("sound").is_none());
}

#[test]
fn the_sdk_can_be_disabled() {
    assert!(resolve(&to_localhost(), &[("OTEL_SDK_DISABLED", "true")]).expect("sound").is_none());
    assert!(resolve(&to_localhost(), &[("OTEL_SDK_DISABLED", "False")]).expect("sound").is_some());
    let wrong = problems(&[("OTEL_SDK_DISABLED", "yes")]);
    assert_eq!(wrong, ["OTEL_SDK_DISABLED: \"yes\" is neither true nor false"]);
}

#[test]
fn a_signal_can_be_left_out() {
    let settings = settings(&to_localhost(), &[("OTEL_TRACES_EXPORTER", "none")]);
    assert!(settings.traces.is_none() && settings.logs.is_some() && settings.metrics.is_some());
    assert_eq!(problems(&[("OTEL_LOGS_EXPORTER", "console")]).len(), 1);
}

#[test]
fn a_base_gets_the_signals_path_and_a_signals_own_url_is_used_as_it_is() {
    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let of = |variables: &[(&str, &str)]| {
        let Settings { traces, logs, .. } = settings(&to_localhost(), variables);
        (uri(traces), uri(logs))
    };
    let check = |variables, traces: &str, logs: &str| {
        assert_eq!(of(variables), (traces.to_owned(), logs.to_owned()));
    };
    check(&[], "http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/logs");
    check(&[(ENDPOINT, "https://c/otlp/")], "https://c/otlp/v1/traces", "https://c/otlp/v1/logs");
    check(
        &[(ENDPOINT, "http://c:1"), (TRACES, "http://t:2/in?x=1")],
        "http://t:2/in?x=1",
        "http://c:1/v1/logs",
    );
    check(&[(TRACES, "http://t:2")], "http://t:2/", "http://127.0.0.1:4318/v1/logs");
}

#[test]
fn grpc_has_paths_of_its_own_and_may_go_without_a_scheme() {
    const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let of = |endpoint, insecure| {
        let variables = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_EXPORTER_OTLP_INSECURE", insecure),
        ];
        uri(settings(&Config::default(), &variables).traces)
    };
    assert_eq!(of("http://c:4317", ""), format!("http://c:4317{PATH}"));
    assert_eq!(of("http://c:4317/ignored", ""), format!("http://c:4317{PATH}"));
    assert_eq!(of("c:4317", ""), format!("https://c:4317{PATH}"));
    assert_eq!(of("c:4317", "true"), format!("http://c:4317{PATH}"));
}

#[test]
fn the_signals_variable_wins_over_the_common_one_and_both_over_the_file() {
    let config = Config {
        timeout: Duration::from_secs(1),
        headers: Headers(vec![("x-from".to_owned(), "file".to_owned())]),
        ..to_localhost()
    };
    let variables = [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "3000"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-from=logs"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
    ];
    let Settings { traces, logs, metrics, .. } = settings(&config, &variables);
    let [traces, logs, metrics] = [traces, logs, metrics].map(|target| target.expect("exported"));
    assert_eq!([&traces, &logs, &metrics].map(|target| target.timeout.as_secs()), [3, 2, 2]);
    assert_eq!([&traces, &logs].map(|target| target.headers["x-from"].clone()), ["file", "logs"]);
    assert_eq!((logs.compression, metrics.compression), (Compression::None, Compression::Gzip));
}

#[test]
fn the_batch_processors_variables_are_the_queues_bounds() {
    let variables = [
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "7"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "70"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "30000"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
    ];
    let config = settings(&to_localhost(), &variables).config;
    let Config { schedule_delay, batch_spans, queue_units, .. } = config;
    assert_eq!((schedule_delay.as_millis(), batch_spans, queue_units), (100, 7, Some(70)));
    assert_eq!((config.give_up_after.as_secs(), config.metric_interval.as_secs()), (30, 1));
}

#[test]
fn every_value_that_cannot_be_used_is_named_once() {
    let problems = problems(&[
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "ftp://c"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
    ]);
    assert_eq!(
        problems,
        [
            "OTEL_EXPORTER_OTLP_PROTOCOL: \"http/json\" is neither http/protobuf nor grpc",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: \"10s\" is not a number of milliseconds above 0",
            "OTEL_EXPORTER_OTLP_COMPRESSION: \"zstd\" is neither none nor gzip",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT: \"ftp://c\" is not a URL with http or https and a host",
            "OTEL_RESOURCE_ATTRIBUTES: \"a\" is not a list of key=value",
            "OTEL_BSP_MAX_QUEUE_SIZE: \"0\" is not a number above 0",
        ]
    );
}

#[test]
fn what_may_be_a_secret_is_never_shown() {
    const SECRET: &str = "hunter2";
    let shown = |variables: &[(&str, &str)]| {
        let problems =
            resolve(&to_localhost(), variables).expect_err("a value that cannot be used");
        format!("{problems:?} {}", problems.iter().map(ToString::to_string).collect::<String>())
    };
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x y=hunter2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hunter2@c"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://c?key=hunter2"),
    ] {
        let shown = shown(&[(name, value)]);
        assert!(shown.contains(name) && !shown.contains(SECRET), "{shown}");
    }
    let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "x-key=hunter2")];
    let config = Config {
        headers: Headers(vec![("x-key".to_owned(), SECRET.to_owned())]),
        ..to_localhost()
    };
    let shown = format!("{:?}", settings(&config, &headers));
    assert!(shown.contains("127.0.0.1") && !shown.contains(SECRET), "{shown}");
}

#[test]
fn a_value_that_is_no_text_is_an_error() {
    let problems = to_localhost()
        .resolve(&|name| (name == "OTEL_SERVICE_NAME").then(|| OsString::from_vec(vec![0xff])));
    let problems = problems.expect_err("a value that cannot be used");
    assert_eq!(problems[0].to_string(), "OTEL_SERVICE_NAME: is not UTF-8");
}

#[test]
fn the_file_is_checked_too() {
    let config = Config { batch_spans: 0, poll: Duration::ZERO, ..to_localhost() };
    let problems = resolve(&config, &[]).expect_err("values that cannot be used");
    let names: Vec<_> = problems.iter().map(|problem| problem.name.as_str()).collect();
    assert_eq!(names, ["telemetry.otlp.poll", "telemetry.otlp.batch_spans"]);
}
