use super::*;

struct Fixed;

impl Source for Fixed {
    fn node(&self) -> String {
        "ams-<1>".to_owned()
    }

    fn memory(&self) -> Value {
        let line = Line {
            owner: "pool <of> buffers".to_owned(),
            unit: "bytes".to_owned(),
            current: 8 << 20,
            bytes: 8 << 20,
            high: 9 << 20,
            cap: 16 << 20,
            drops: 3,
            place: "heap".to_owned(),
        };
        let memory = Memory { allocated: 10 << 20, active: 11 << 20, ..Memory::default() };
        serde_json::json!({ "ledger": [line], "memory": memory, "later": "added" })
    }

    fn heap(&self, query: &Query) -> Report {
        example(query)
    }
}

/// A leak and a container, as heapwatch tells them.
pub(crate) fn example(query: &Query) -> Report {
    let graph = serde_json::json!({ "step_ms": 1000, "bytes": [1, 2, 3, 4] });
    let frames = serde_json::json!([
        { "offset": "0x10", "calls": [{ "function": "_rjem_malloc" }] },
        { "offset": "0x20", "calls": [
            { "function": "alloc::vec::Vec<T>::push", "place": "alloc/src/vec/mod.rs:9" },
            { "function": "proxy::trace::<Layer as Honeycomb>::on_close", "place": "proxy/src/trace.rs:42" },
        ]},
        { "offset": "0x9", "module": "libc.so.6" },
    ]);
    let mut report = serde_json::to_value(Report::off()).expect("plain");
    report["mode"] = "hooks".into();
    report["suspects"] = serde_json::json!({ "growing": 0, "probable": 0, "leak": 2 });
    report["tables"]["bytes"] = (7 << 20).into();
    report["requests"] = 1_000.into();
    report["stacks"] = serde_json::json!([{
        "id": "00ab", "state": "leak", "state_for_ms": 60_000, "samples": 12, "bytes": 6 << 20,
        "old_bytes": 6 << 20, "live_bytes": 7 << 20, "subsystem": "http2", "app": 7, "owner": null,
        "bytes_per_request": 200.25, "bytes_per_hour": 1048576.0, "limit_in_ms": 7_200_000,
        "graph": graph, "frames": frames,
    }]);
    report["containers"] = serde_json::json!([{
        "id": "c1", "state": "growing", "state_for_ms": 0, "bytes": 4 << 20, "doublings": 4,
        "age_ms": 90_000, "exponent": 1.02, "bytes_per_request": 27.0, "subsystem": "other",
        "app": 0, "owner": null, "graph": graph, "frames": frames,
    }]);
    report["subsystems"] = serde_json::json!([{ "subsystem": "http2", "bytes": 7 << 20 }]);
    let mut report: Report = serde_json::from_value(report).expect("its own shape");
    report.stacks.truncate(query.stacks_max);
    report
}

fn asked(path: &str, query: &str) -> (StatusCode, &'static str, String) {
    let Answer { status, content_type, body } =
        respond(path, Some(query), &Fixed).unwrap_or_else(|| panic!("{path} is a page"));
    (status, content_type, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn the_page_names_what_leaks_and_escapes_what_it_is_told() {
    let (status, content_type, page) = asked("/memory", "function=Honey%3Cb%3E&older=1m");
    assert_eq!((status, content_type), (StatusCode::OK, "text/html; charset=utf-8"));
    for expected in [
        "proxy::trace::&lt;Layer as Honeycomb&gt;::on_close",
        "200.2 B per request",
        "at the limit in 2 h 0 min",
        "Unbounded containers",
        "requests<sup>1.02</sup>",
        "of ams-&lt;1&gt;",
        "pool &lt;of&gt; buffers",
        "8.0 MiB booked: explained 80 % of what is allocated",
        "Older than 1m, through Honey&lt;b&gt;",
        "/memory/heap.pb.gz?function=Honey%3Cb%3E&amp;older=1m",
        "value=\"Honey&lt;b&gt;\"",
        "class=\"own\"",
    ] {
        assert!(page.contains(expected), "{expected} is missing in\n{page}");
    }
    assert!(!page.contains("_rjem_malloc") && !page.contains("{node}"), "{page}");
}

#[test]
fn every_download_has_its_type() {
    for (path, expected) in [
        ("/memory.json", "application/json"),
        ("/memory/heap.pb.gz", "application/octet-stream"),
        ("/memory/flamegraph.svg", "image/svg+xml"),
        ("/memory/folded.txt", "text/plain; charset=utf-8"),
    ] {
        let (status, content_type, body) = asked(path, "all");
        assert_eq!((status, content_type), (StatusCode::OK, expected), "{path}");
        assert!(!body.is_empty());
    }
    let (_, _, json) = asked("/memory.json", "");
    let page: Page = serde_json::from_str(&json).expect("its own shape");
    assert_eq!((page.ledger[0].drops, page.heap.stacks.len()), (3, 1));
    assert!(json.contains("\"later\":\"added\""), "what others add stays: {json}");
    assert!(respond("/memory/other", None, &Fixed).is_none());
    assert!(respond("/memories", None, &Fixed).is_none());
}

#[test]
fn filters_are_understood_or_refused() {
    type Expected<'a> = (Option<Ages>, Option<&'a str>, Option<Subsystem>);
    let check = |text: &str, expected: Result<Expected<'_>, ()>| {
        let got = wish(text).map(|wish| wish.query);
        let got = got.as_ref().map(|q| (q.ages, q.function.as_deref(), q.subsystem));
        assert_eq!(got.map_err(|_| ()), expected, "{text}");
    };
    let ages = |older, younger| {
        Some(Ages {
            older_than: Duration::from_secs(older),
            younger_than: if younger == 0 { Duration::MAX } else { Duration::from_secs(younger) },
        })
    };
    check("", Ok((None, None, None)));
    check("function=&subsystem=&older=&younger=", Ok((None, None, None)));
    check("function=a%3A%3Ab+c&subsystem=tls", Ok((None, Some("a::b c"), Some(Subsystem::Tls))));
    check("older=10m&younger=2h", Ok((ages(600, 7200), None, None)));
    check("older=90", Ok((ages(90, 0), None, None)));
    check("all", Ok((Some(Ages::ALL), None, None)));
    for refused in ["subsystem=x", "older=x", "older=1y", "stacks=0", "stacks=9999", "what=1"] {
        check(refused, Err(()));
    }
    check(&"x".repeat(3_000), Err(()));
    assert_eq!(asked("/memory", "older=never").0, StatusCode::BAD_REQUEST);
}

#[test]
fn forms_are_decoded_as_far_as_they_can_be() {
    for (text, expected) in
        [("a%41+b", "aA b"), ("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%é", "%é")]
    {
        assert_eq!(decode(text), expected);
    }
    assert_eq!(decode("%ff"), "\u{fffd}");
}

#[test]
fn ages_are_written_as_they_are_read() {
    for text in ["0s", "90s", "10m", "2h", "3d"] {
        assert_eq!(span(parse_span(text).expect("an age")), text);
    }
    assert_eq!(parse_span("é"), None);
    assert_eq!(parse_span("99999999999999999999d"), None);
}
