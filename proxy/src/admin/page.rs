//! Which page answers which path.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::{Status, View};

/// Every page with the sentence the index shows.
const PAGES: [(&str, &str); 8] = [
    ("/", "this page"),
    ("/livez", "the process answers"),
    ("/readyz", "traffic may be sent here, or why not"),
    ("/metrics", "for Prometheus"),
    ("/status", "the numbers of this page and more, as JSON"),
    ("/inventory", "apps and their instances, as JSON"),
    ("/certificates", "certificates on offer, as JSON"),
    ("/memory.json", "what holds memory, as JSON"),
];

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// On every answer: nothing is cached, nothing is guessed, and the index may only use its own style.
const HEADERS: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
];

/// Answers one request. HEAD is a GET whose body hyper leaves out.
pub(super) fn respond<B>(request: &Request<B>, view: &dyn View) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let sentence = "these pages can only be read\n";
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
        "/metrics" => answer(StatusCode::OK, METRICS, view.metrics()),
        "/status" => json(&view.status()),
        "/inventory" => json(&view.inventory()),
        "/certificates" => json(&view.certificates()),
        "/memory.json" => json(&view.memory()),
        _ => answer(StatusCode::NOT_FOUND, TEXT, listing()),
    }
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, JSON, body),
        Err(error) => {
            tracing::error!(%error, "an admin page cannot be written as JSON");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "this page cannot be written as JSON\n")
        }
    }
}

fn answer(
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
        writeln!(text, "{path:<14} {what}").expect("a String takes everything");
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
