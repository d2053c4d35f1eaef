//! Which page answers which path.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use telemetry::black_box::story;
use telemetry::metrics::Format;

use super::memory::{self, Answer};
use super::{Status, View, upgrade};

/// Every page with the sentence the index shows.
const PAGES: [(&str, &str); 16] = [
    ("/", "this page"),
    ("/livez", "the process answers"),
    ("/readyz", "traffic may be sent here, or why not"),
    ("/metrics", "for Prometheus"),
    ("/status", "the numbers of this page and more, as JSON"),
    ("/inventory", "apps and their instances, as JSON"),
    ("/requests", "connections and requests, and what each waits for, as JSON"),
    ("/filter", "what the kernel drops, as JSON"),
    ("/certificates", "certificates on offer, as JSON"),
    ("/memory", "what holds memory, since when, and what seems to leak"),
    ("/memory.json", "the same, as JSON"),
    ("/memory/flamegraph.svg", "old and alive blocks as a flame graph"),
    ("/memory/heap.pb.gz", "the same for pprof"),
    ("/memory/folded.txt", "the same as folded stacks"),
    ("/last-exit", "how the last process ended, as JSON"),
    ("/last-exit.txt", "the same as a story"),
];

/// The log says why.
const NOTHING_KEPT: &str = "this process keeps no black box";

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
pub(super) const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// On every answer: nothing is cached, nothing is guessed, and the index may only use its own style.
const HEADERS: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
];

/// Answers one request. HEAD is a GET whose body hyper leaves out.
pub(super) fn respond<B>(request: &Request<B>, view: &dyn View) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let sentence = "these pages can only be read; commands are taken on the admin socket\n";
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, sentence);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => answer(StatusCode::OK, HTML, index(&view.status())),
        "/livez" => answer(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => match view.ready() {
            Ok(()) => answer(StatusCode::OK, TEXT, "ready\n"),
            Err(reason) => {
                answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n"))
            }
        },
        "/metrics" => {
            let format = accepted(request);
            answer(StatusCode::OK, format.content_type(), view.metrics(format))
        }
        "/status" => json(&view.status()),
        "/inventory" => json(&view.inventory()),
        "/requests" => json(&view.requests()),
        "/filter" => json(&view.filter()),
        "/certificates" => json(&view.certificates()),
        "/last-exit" => match view.last_exit() {
            Some(report) => json(&*report),
            None => json(&serde_json::json!({ "verdict": null, "why": NOTHING_KEPT })),
        },
        "/last-exit.txt" => match view.last_exit() {
            Some(report) => answer(StatusCode::OK, TEXT, story(&report, &|_| None)),
            None => answer(StatusCode::OK, TEXT, format!("{NOTHING_KEPT}\n")),
        },
        path => match memory::respond(path, request.uri().query(), &view) {
            Some(Answer { status, content_type, body }) => answer(status, content_type, body),
            None => answer(StatusCode::NOT_FOUND, TEXT, listing()),
        },
    }
}

/// The format of a scrape that the client asks for.
fn accepted<B>(request: &Request<B>) -> Format {
    let fields = request.headers().get_all(header::ACCEPT).iter();
    let fields: Vec<&str> = fields.filter_map(|field| field.to_str().ok()).collect();
    Format::accepted(&fields.join(","))
}

pub(super) fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, JSON, body),
        Err(error) => {
            tracing::error!(%error, "an admin page cannot be written as JSON");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "this page cannot be written as JSON\n")
        }
    }
}

/// Lines of JSON, as they come.
pub(super) fn lines(lines: upgrade::Lines) -> Response<upgrade::Story> {
    let (head, _) = answer(StatusCode::OK, LINES, "").into_parts();
    Response::from_parts(head, upgrade::Story::new(lines))
}

pub(super) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn listing() -> String {
    let mut text = "no such page; there are:\n".to_owned();
    for (path, what) in PAGES {
        writeln!(text, "{path:<23} {what}").expect("a String takes everything");
    }
    text
}

fn index(status: &Status) -> String {
    let numbers = [
        ("state", status.state()),
        ("region", status.region.clone()),
        ("version", format!("{}, pid {}", status.version, status.pid)),
        ("apps", status.apps.to_string()),
        ("instances", status.instances.to_string()),
        ("connections", status.connections.to_string()),
        ("requests in flight", status.requests_in_flight.to_string()),
        ("memory", format!("{:.1} MiB resident", status.memory.resident as f64 / 1_048_576.0)),
        ("peers that answer", {
            let answering = status.peers.iter().filter(|peer| peer.reachable).count();
            format!("{answering} of {}", status.peers.len())
        }),
    ];
    let row = |(name, value): &(&str, String)| {
        format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(value))
    };
    let numbers: String = numbers.iter().map(row).collect();
    let links: String = PAGES[1..]
        .iter()
        .map(|(path, what)| format!("<li><a href=\"{path}\">{path}</a> {what}</li>\n"))
        .collect();
    include_str!("index.html")
        .replace("{node}", &escape(&status.node))
        .replace("{numbers}", &numbers)
        .replace("{links}", &links)
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return text.into();
    }
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.replace('"', "&quot;").replace('\'', "&#39;").into()
}
