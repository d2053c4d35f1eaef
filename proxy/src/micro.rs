//! The steps that every request pays for, one at a time, for `benches/micro.rs`: timed, and counted
//! in instructions. Compiled with the feature `micro` only.

use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use control::snapshot::{
    App, AppName, Change, Compat, Concurrency, ConcurrencyKind, Handlers, Hostname, HttpOptions,
    Instance, InstanceId, NodeId, Port, Region, Service,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use telemetry::record::{self, Begin, Method, Protocol, Record, Recorder, ShortText};
use telemetry::shared_counts::Counts;
use telemetry::work::{Board, Kind, State};
use telemetry::{event, site};

use crate::balance::rng::Rng;
use crate::balance::{self, Origin, Tried};
use crate::config;
use crate::downstream::{self, Downstream, Transport};
use crate::http::forward;
use crate::identify::identify;
use crate::inventory::{Binding, Entry, Inventory};
use crate::nodes::Nodes;
use crate::upstream;

/// One step, ready to be done again and again.
pub struct Step {
    pub name: &'static str,
    pub run: Box<dyn FnMut()>,
}

/// So many apps are there; the one that is asked for is one of them.
const APPS: usize = 1_000;

/// Each with what it needs, made beforehand.
pub fn steps() -> Vec<Step> {
    let step = |name, run| Step { name, run };
    vec![
        step("recorder: 4 spans, 4 events", recorder()),
        step("identify: host among 1,000 apps", identification()),
        step("balance: 3 instances, permit", assignment()),
        step("permit: take and give back", permit()),
        step("headers: a request of 12 fields", request_fields()),
        step("headers: an answer of 8 fields", response_fields()),
        step("pool: take and put a connection", upstream::micro::checkout()),
        step("slot: a line of what is going on, 10 polls", slot()),
    ]
}

fn recorder() -> Box<dyn FnMut()> {
    let registry = Registry::new(1, 100);
    let ledger = Ledger::new(registry.clone());
    let config = record::Config { sample_percent: 0.0, ..record::Config::default() };
    let shared = record::Shared::new(config, 1, &registry, &ledger).expect("defaults are valid");
    shared.want_exports(true);
    let recorder = Recorder::new(&shared, 0);
    Box::new(move || {
        let record = begin(&recorder);
        let _identify = record.enter_span(site!("identify"));
        event!(record, "identified", dedicated = true);
        let _route = record.enter_span(site!("route"));
        event!(record, "picked", candidates = 3u64, how = "local");
        let _attempt = record.enter_span_with(site!("attempt", number), &[1u64.into()]);
        event!(record, "connection", reused = true);
        let _respond = record.enter_span(site!("respond"));
        event!(record, "head", status = 200u16);
        record.wide(|wide| wide.status = Some(200));
    })
}

fn begin(recorder: &Recorder) -> Record {
    recorder.begin(Begin {
        request_id: ShortText::new("01JD5W5S8H3E4Q9GXK2TQZ7M3B-ams"),
        protocol: Protocol::Http1,
        tls: true,
        method: Method::Get,
        parent: None,
        link: None,
        now: recorder.now(),
    })
}

fn identification() -> Box<dyn FnMut()> {
    let inventory = inventory();
    let handlers = Handlers { http: true, ..Handlers::default() };
    let downstream = Downstream::new(
        ([198, 51, 100, 9], 4711).into(),
        ([198, 51, 100, 1], 80).into(),
        Transport::Clear,
        downstream::From::Client(Binding::Shared { handlers }),
        downstream::unlisted(),
        std::rc::Rc::default(),
    );
    let request = Request::get("/path?query").header("host", "app-500.example");
    let (mut head, ()) = request.body(()).expect("it is a request").into_parts();
    Box::new(move || {
        let identity = identify(&downstream, &inventory, &mut head, 2);
        assert!(identity.is_ok(), "the app is there");
    })
}

fn assignment() -> Box<dyn FnMut()> {
    let (inventory, entry) = entry();
    let rng = Rng::seeded(7);
    Box::new(move || {
        let _alive = &inventory;
        let tried = Tried::default();
        let assigning =
            pin!(balance::assign(&entry, 0, &tried, Origin::Client, Duration::ZERO, &rng));
        let Poll::Ready(Ok(assignment)) = assigning.poll(&mut Context::from_waker(Waker::noop()))
        else {
            unreachable!("there is room")
        };
        assignment.answered(tokio::time::Instant::now());
    })
}

fn permit() -> Box<dyn FnMut()> {
    let (inventory, entry) = entry();
    let load = entry.candidates[0].load(0).expect("it has one service").clone();
    Box::new(move || {
        let _alive = &inventory;
        drop(load.try_acquire().expect("there is room"));
    })
}

/// As `ferrule requests` shows a request: on the list, traced, four states, polled by two who hold it
/// or its beat.
fn slot() -> Box<dyn FnMut()> {
    let board = Board::new(1, 1024);
    let desk = board.desk(0);
    Box::new(move || {
        let slot = desk.open(Kind::Request, State::Identify);
        slot.traced(7);
        slot.belongs_to(3);
        [State::Permit, State::Upstream, State::Response].map(|state| slot.enter(state));
        let mut left = 5;
        let work = std::future::poll_fn(move |_| {
            left -= 1;
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        let mut noted = pin!(slot.beat().note(work));
        while noted.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            slot.polled();
        }
        slot.polled();
    })
}

fn request_fields() -> Box<dyn FnMut()> {
    let identity = forward::Identity::new(&Region::new("ams"));
    let downstream = Downstream::new(
        ([198, 51, 100, 9], 4711).into(),
        ([198, 51, 100, 1], 443).into(),
        Transport::Tls { sni: None },
        downstream::From::Peer(NodeId::new("unused")),
        downstream::unlisted(),
        std::rc::Rc::default(),
    );
    let fields = fields(&[
        ("host", "app.example"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-language", "en-US,en;q=0.5"),
        ("accept-encoding", "gzip, deflate, br"),
        ("referer", "https://app.example/before"),
        ("cookie", "session=0123456789abcdef0123456789abcdef"),
        ("x-forwarded-for", "1.2.3.4"),
        ("via", "1.1 cdn"),
        ("connection", "keep-alive"),
        ("cache-control", "no-cache"),
        ("dnt", "1"),
    ]);
    Box::new(move || {
        let mut fields = fields.clone();
        let id = identity.request_id();
        let (version, compat) = (Version::HTTP_11, Compat::default());
        identity.rewrite_request(&mut fields, version, &downstream, compat, &id);
    })
}

fn response_fields() -> Box<dyn FnMut()> {
    let options = HttpOptions::default();
    let id = forward::Identity::new(&Region::new("ams")).request_id();
    let fields = fields(&[
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "1024"),
        ("date", "Fri, 20 Nov 2026 12:00:00 GMT"),
        ("server", "app"),
        ("cache-control", "max-age=60"),
        ("etag", "\"0123456789\""),
        ("connection", "keep-alive"),
        ("vary", "accept-encoding"),
    ]);
    Box::new(move || {
        let mut fields = fields.clone();
        let (version, compat) = (Version::HTTP_11, Compat::default());
        forward::rewrite_response(&mut fields, version, &options, compat, &id);
    })
}

fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    list.iter().map(field).collect()
}

fn inventory() -> Arc<Inventory> {
    let own = config::Node { id: NodeId::new("own"), region: Region::new("ams"), workers: 1 };
    let (listen, limits) = (config::Listen::default(), config::Limits::default());
    let nodes = Arc::new(Nodes::new(None));
    let registry = Registry::new(1, 2 * APPS);
    let counts = Counts::create(8 * APPS).expect("a file in memory");
    let inventory = Arc::new(Inventory::new(&own, &listen, nodes, &limits, counts, &registry));
    inventory.apply_all((0..APPS).map(|number| Change::Upsert(Arc::new(app(number)))));
    inventory
}

fn entry() -> (Arc<Inventory>, Arc<Entry>) {
    let inventory = inventory();
    let entry = inventory.by_name("app-500").expect("it is one of them");
    (inventory, entry)
}

fn app(number: usize) -> App {
    let instance = |id: &str| Instance {
        id: InstanceId::new(id),
        node: NodeId::new("own"),
        address: Ipv4Addr::LOCALHOST.into(),
        cordoned: false,
    };
    let handlers = Handlers { http: true, ..Handlers::default() };
    let (tls, http) = Default::default();
    App {
        name: AppName::new(format!("app-{number}")),
        revision: 1,
        hostnames: vec![Hostname::Exact(format!("app-{number}.example").as_str().into())],
        addresses: Vec::new(),
        services: vec![Service {
            internal_port: 8080,
            ports: vec![Port { range: 80..=80, handlers, force_https: false, tls, http }],
            concurrency: Concurrency {
                kind: ConcurrencyKind::Requests,
                soft_limit: 200,
                hard_limit: Some(250),
            },
            checks: Vec::new(),
        }],
        instances: ["one", "two", "three"].map(instance).into(),
        compat: Compat::default(),
    }
}
