use std::net::{Ipv4Addr, SocketAddr};

use control::snapshot::{Concurrency, ConcurrencyKind, Hostname, Instance, InstanceId, Service};
use http::StatusCode;

use super::*;
use crate::error::Code;

/// A node `own` in region `here`, with `near` in the same region and `far` in another.
pub(crate) fn inventory() -> Arc<Inventory> {
    inventory_with(&config::Limits::default(), &Registry::new(1, 1000))
}

pub(crate) fn inventory_with(limits: &config::Limits, registry: &Registry) -> Arc<Inventory> {
    inventory_of(limits, Counts::create(256).unwrap(), registry)
}

/// One of a process that counts in `counts`.
pub(crate) fn inventory_of(
    limits: &config::Limits,
    counts: Arc<Counts>,
    registry: &Registry,
) -> Arc<Inventory> {
    let own = config::Node { id: NodeId::new("own"), region: Region::new("here"), workers: 1 };
    let peers = [("near", "here"), ("near-2", "here"), ("far", "there")];
    let peers = peers.map(|(id, region)| config::Peer {
        id: NodeId::new(id),
        region: Region::new(region),
        address: SocketAddr::from(([127, 0, 0, 1], 1)),
    });
    let mesh = config::Mesh {
        address: SocketAddr::from(([127, 0, 0, 1], 1)),
        certificate: "mesh.pem".into(),
        key: "mesh.key".into(),
        ca: "ca.pem".into(),
        trust_domain: "ferrule".into(),
        peers: peers.to_vec(),
    };
    let (listen, nodes) = (config::Listen::default(), Arc::new(Nodes::new(Some(&mesh))));
    Arc::new(Inventory::new(&own, &listen, nodes, limits, counts, registry))
}

/// `id@node`, one for each word.
pub(crate) fn instances(words: &str) -> Vec<Instance> {
    let instance = |word: &str| {
        let (id, node) = word.split_once('@').unwrap();
        Instance {
            id: InstanceId::new(id),
            node: NodeId::new(node),
            address: Ipv4Addr::LOCALHOST.into(),
            cordoned: false,
        }
    };
    words.split_whitespace().map(instance).collect()
}

pub(crate) fn limited(soft_limit: u32, hard_limit: Option<u32>) -> Service {
    let kind = ConcurrencyKind::Requests;
    Service {
        internal_port: 8080,
        ports: vec![port(80..=80, Handlers { http: true, ..Default::default() })],
        concurrency: Concurrency { kind, soft_limit, hard_limit },
        checks: Vec::new(),
    }
}

pub(crate) fn app(name: &str, services: Vec<Service>, instances: Vec<Instance>) -> App {
    App {
        name: AppName::new(name),
        revision: 1,
        hostnames: Vec::new(),
        addresses: Vec::new(),
        services,
        instances,
        compat: snapshot::Compat::default(),
    }
}

pub(crate) fn upsert(inventory: &Inventory, app: App) -> Arc<Entry> {
    let name = app.name.clone();
    inventory.apply(Change::Upsert(Arc::new(app)));
    inventory.by_name(name.as_str()).unwrap()
}

pub(super) fn port(range: std::ops::RangeInclusive<u16>, handlers: Handlers) -> Port {
    let (tls, http) = Default::default();
    Port { range, handlers, force_https: false, tls, http }
}

pub(super) const RAW: Handlers = Handlers { tls: false, http: false, proxy_protocol: None };
pub(super) const HTTPS: Handlers = Handlers { tls: true, http: true, proxy_protocol: None };

fn named(name: &str, hostnames: &[&str]) -> App {
    let hostname = |name: &&str| match name.strip_prefix("*.") {
        Some(parent) => Hostname::Wildcard(parent.into()),
        None => Hostname::Exact((*name).into()),
    };
    App {
        hostnames: hostnames.iter().map(hostname).collect(),
        ..app(name, vec![limited(20, None)], Vec::new())
    }
}

fn found(inventory: &Inventory, host: &str) -> Option<String> {
    inventory.by_hostname(host).map(|entry| entry.app.name.to_string())
}

fn ids(candidates: &[Arc<Candidate>]) -> Vec<&str> {
    candidates.iter().map(|candidate| candidate.instance.id.as_str()).collect()
}

#[test]
fn a_hostname_is_found_exactly_then_by_wildcard_for_one_label() {
    let inventory = inventory();
    upsert(&inventory, named("exact", &["hello.example", "a.hello.example"]));
    upsert(&inventory, named("wild", &["*.hello.example"]));
    for (host, app) in [
        ("hello.example", Some("exact")),
        ("a.hello.example", Some("exact")),
        ("b.hello.example", Some("wild")),
        ("c.b.hello.example", None),
        (".hello.example", None),
        ("hello", None),
        ("", None),
        (".", None),
    ] {
        assert_eq!(found(&inventory, host).as_deref(), app, "{host}");
    }
}

#[test]
fn a_hostname_that_moves_is_found_whichever_change_comes_first() {
    for take_first in [true, false] {
        let inventory = inventory();
        upsert(&inventory, named("old", &["moving.example"]));
        let (take, give) = (named("new", &["moving.example"]), named("old", &[]));
        let order = if take_first { [take, give] } else { [give, take] };
        order.into_iter().for_each(|app| drop(upsert(&inventory, app)));
        assert_eq!(found(&inventory, "moving.example").as_deref(), Some("new"));
        inventory.apply(Change::Remove(AppName::new("new")));
        assert_eq!(found(&inventory, "moving.example"), None);
    }
}

#[test]
fn many_changes_at_once_are_the_same_as_one_after_the_other() {
    let inventory = inventory();
    let name = |index: u32| (format!("app-{index}"), format!("{index}.example"));
    let create = (0..5_000).map(|index| {
        let (app, host) = name(index);
        Change::Upsert(Arc::new(named(&app, &[&host])))
    });
    let remove = (0..5_000).step_by(2).map(|index| Change::Remove(AppName::new(name(index).0)));
    inventory.apply_all(create.chain(remove.clone()));
    let control = self::inventory();
    control.apply_all((0..5_000).filter(|index| index % 2 == 1).map(|index| {
        let (app, host) = name(index);
        Change::Upsert(Arc::new(named(&app, &[&host])))
    }));
    for index in 0..5_000 {
        let (app, host) = name(index);
        assert_eq!(found(&inventory, &host), (index % 2 == 1).then_some(app));
        assert_eq!(found(&inventory, &host), found(&control, &host));
    }
    assert_eq!(inventory.entries().len(), 2_500);
    inventory.apply_all(remove);
    assert_eq!(inventory.entries().len(), 2_500);
}

#[test]
fn a_dedicated_address_leads_to_its_app_and_to_no_other() {
    let inventory = inventory();
    let address: IpAddr = [198, 51, 100, 7].into();
    let dedicated = App { addresses: vec![address], ..named("own", &[]) };
    upsert(&inventory, dedicated);
    upsert(&inventory, {
        let mut shared = named("shared", &[]);
        shared.services[0].ports.push(port(443..=443, HTTPS));
        shared
    });
    let app = |address: IpAddr, port| match inventory.binding(address, port) {
        Some(Binding::Dedicated { entry, .. }) => Some(entry.app.name.to_string()),
        Some(Binding::Shared { handlers }) => Some(format!("shared, tls {}", handlers.tls)),
        None => None,
    };
    let mapped = Ipv4Addr::new(198, 51, 100, 7).to_ipv6_mapped().into();
    assert_eq!(app(address, 80).as_deref(), Some("own"));
    assert_eq!(app(mapped, 80).as_deref(), Some("own"));
    assert_eq!(app(address, 443), None);
    assert_eq!(app([192, 0, 2, 1].into(), 80).as_deref(), Some("shared, tls false"));
    assert_eq!(app([192, 0, 2, 1].into(), 443).as_deref(), Some("shared, tls true"));
    assert_eq!(app([192, 0, 2, 1].into(), 444), None);
}

#[test]
fn a_raw_port_on_shared_addresses_belongs_to_one_app_until_it_goes() {
    let inventory = inventory();
    let raw = |name| {
        let mut app = named(name, &[]);
        app.services[0].ports = vec![port(5000..=6000, RAW)];
        app
    };
    let owner = || match inventory.binding([192, 0, 2, 1].into(), 5432) {
        Some(Binding::Dedicated { entry, service: 0, port: 0 }) => Some(entry.app.name.to_string()),
        _ => None,
    };
    upsert(&inventory, raw("second"));
    upsert(&inventory, raw("first"));
    assert_eq!(owner().as_deref(), Some("first"));
    inventory.apply(Change::Remove(AppName::new("first")));
    assert_eq!(owner().as_deref(), Some("second"));
}

#[test]
fn who_listens_hears_of_ports_only_when_they_change() {
    let inventory = inventory();
    let mut ports = inventory.ports();
    let address: IpAddr = [198, 51, 100, 7].into();
    upsert(&inventory, named("shared", &[]));
    upsert(&inventory, App { addresses: vec![address], ..named("own", &[]) });
    let expected =
        PortsInUse { shared: vec![80..=80], dedicated: BTreeMap::from([(address, vec![80..=80])]) };
    assert_eq!(**ports.borrow_and_update(), expected);
    let instances = instances("a@own");
    upsert(&inventory, App { instances, ..named("shared", &["new.example"]) });
    assert!(!ports.has_changed().unwrap());
    inventory.apply(Change::Remove(AppName::new("own")));
    assert!(ports.has_changed().unwrap());
    assert!(ports.borrow_and_update().dedicated.is_empty());
}

#[test]
fn candidates_are_grouped_by_where_they_are() {
    let inventory = inventory();
    let instances = instances("a@far b@own c@nowhere d@near e@own");
    let entry = upsert(&inventory, app("a", vec![limited(1, None)], instances));
    let field = entry.field();
    assert_eq!(ids(field.local), ["b", "e"]);
    assert_eq!(ids(field.region), ["d"]);
    assert_eq!(ids(field.elsewhere), ["a"]);
    assert_eq!(ids(&entry.candidates[4..]), ["c"]);
}

#[test]
fn live_state_is_carried_by_instance_and_service_and_forgotten_with_them() {
    let inventory = inventory();
    let service = |internal_port| Service { internal_port, ..limited(1, None) };
    let old = upsert(&inventory, app("a", vec![service(1), service(2)], instances("x@own y@own")));
    let permit = old.candidates[0].load(1).unwrap().try_acquire().unwrap();

    let new = upsert(&inventory, app("a", vec![service(2), service(3)], instances("z@own x@own")));
    assert_eq!(ids(&new.candidates), ["z", "x"]);
    let carried = new.candidates[1].load(0).unwrap();
    assert!(Arc::ptr_eq(carried, permit.load()));
    assert!(Arc::ptr_eq(new.queue(0).unwrap(), old.queue(1).unwrap()));
    assert!(Arc::ptr_eq(&new.live, &old.live));
    assert_eq!(carried.in_flight(), 1);
    assert_eq!(new.candidates[1].load(1).unwrap().in_flight(), 0);

    let now = crate::balance::load::Millis::at(tokio::time::Instant::now());
    let gone = old.candidates[1].load(0).unwrap();
    assert!(!gone.is_routable(now) && carried.is_routable(now));
    let weak = Arc::downgrade(gone);
    drop(old);
    assert!(weak.upgrade().is_none());
}

#[test]
fn an_unchanged_instance_is_the_same_candidate_in_the_next_version() {
    let inventory = inventory();
    let old = upsert(&inventory, app("a", vec![limited(1, None)], instances("x@own y@own")));
    let mut changed = instances("x@own y@own");
    changed[1].cordoned = true;
    let new = upsert(&inventory, app("a", vec![limited(1, None)], changed));
    assert!(Arc::ptr_eq(&old.candidates[0], &new.candidates[0]));
    assert!(!Arc::ptr_eq(&old.candidates[1], &new.candidates[1]));
}

#[test]
fn a_removed_app_holds_nothing_once_its_requests_ended() {
    let inventory = inventory();
    let entry = upsert(&inventory, named("a", &["a.example"]));
    let live = Arc::downgrade(&entry.live);
    inventory.apply(Change::Remove(AppName::new("a")));
    assert!(inventory.by_name("a").is_none() && inventory.by_hostname("a.example").is_none());
    assert!(entry.live.newest().is_none());
    drop(entry);
    assert!(live.upgrade().is_none());
}

#[test]
fn an_app_has_as_many_connections_as_it_may_and_one_more_when_one_ends() {
    let limits = config::Limits { app_connections_max: 2, ..Default::default() };
    let inventory = inventory_with(&limits, &Registry::new(1, 10));
    let entry = upsert(&inventory, named("a", &[]));
    let (first, _second) = (entry.live.connect().unwrap(), entry.live.connect().unwrap());
    assert_eq!(entry.live.connect().err().unwrap().code, Code::PL04);
    assert_eq!(entry.live.connections(), 2);
    drop(first);
    assert!(entry.live.connect().is_ok());
}

#[test]
fn metrics_of_an_app_come_with_its_first_request_and_go_with_it() {
    let registry = Registry::new(1, 10);
    let inventory = inventory_with(&config::Limits::default(), &registry);
    let entry = upsert(&inventory, named("a", &[]));
    assert!(!registry.render().contains("app=\"a\""));
    let took = std::time::Duration::from_millis(1);
    entry.live.request_ended(Some(StatusCode::NOT_FOUND), took, None);
    entry.live.request_ended(None, took, None);
    let text = registry.render();
    assert!(text.contains("ferrule_requests_total{app=\"a\",class=\"4xx\"} 1"), "{text}");
    assert!(text.contains("ferrule_requests_total{app=\"a\",class=\"none\"} 1"), "{text}");
    inventory.apply(Change::Remove(AppName::new("a")));
    entry.live.request_ended(Some(StatusCode::OK), took, None);
    assert!(!registry.render().contains("app=\"a\""));
}

#[test]
fn instances_are_counted_by_state() {
    let registry = Registry::new(1, 10);
    let inventory = inventory_with(&config::Limits::default(), &registry);
    let mut three = instances("a@own b@own c@far");
    three[2].cordoned = true;
    let entry = upsert(&inventory, app("a", vec![limited(1, None)], three));
    entry.candidates[0].load(0).unwrap().set_healthy(false);
    inventory.health_changed(&entry.app.name);
    let counted = |state: &str| {
        let text = registry.render();
        let name = format!("ferrule_instances{{state=\"{state}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&*name)).map(str::to_owned).unwrap()
    };
    assert_eq!(["routable", "cordoned", "unhealthy"].map(counted), ["1", "1", "1"]);
    inventory.apply(Change::Remove(AppName::new("a")));
    assert_eq!(["routable", "cordoned", "unhealthy"].map(counted), ["0", "0", "0"]);
}
