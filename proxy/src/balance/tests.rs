use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use control::snapshot::{AppName, Change, ConcurrencyKind, InstanceId};
use telemetry::metrics::Registry;

use super::queue::LOOK_AGAIN;
use super::*;
use crate::config;
use crate::inventory::tests::{app, instances, inventory, inventory_with, limited, upsert};
use crate::inventory::{Inventory, Place};

const PATIENCE: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;

type Assigning<'a> = Pin<Box<dyn Future<Output = Result<Assignment, Failure>> + 'a>>;

/// One app with hard limit 1 on every instance.
fn narrow(words: &str) -> (Arc<Inventory>, Arc<Entry>) {
    let inventory = inventory();
    let entry = upsert(&inventory, app("a", vec![limited(1, Some(1))], instances(words)));
    (inventory, entry)
}

fn client(entry: &Arc<Entry>, tried: &Tried, patience: Duration) -> Assigning<'static> {
    let (entry, tried, rng) = (entry.clone(), tried.clone(), Rng::seeded(3));
    Box::pin(async move { assign(&entry, 0, &tried, Origin::Client, patience, &rng).await })
}

/// A client who waits already.
fn waiting(entry: &Arc<Entry>) -> Assigning<'static> {
    let mut assigning = client(entry, &Tried::default(), PATIENCE);
    assert!(poll(&mut assigning).is_pending());
    assigning
}

fn poll(assigning: &mut Assigning<'_>) -> Poll<Result<Assignment, Failure>> {
    assigning.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

async fn code(assigning: Assigning<'_>) -> Code {
    assigning.await.err().expect("a failure").code
}

fn in_flight(entry: &Entry) -> u32 {
    entry.candidates.iter().map(|candidate| candidate.load(0).unwrap().in_flight()).sum()
}

#[tokio::test]
async fn an_assignment_holds_its_permit_until_it_or_its_permit_is_dropped() {
    let (_inventory, entry) = narrow("x@own");
    for take_out in [true, false] {
        let assignment = client(&entry, &Tried::default(), NOW).await.unwrap();
        assert_eq!(assignment.candidate.instance.id.as_str(), "x");
        assert_eq!(in_flight(&entry), 1);
        if take_out {
            assignment.answered(Instant::now());
            let permit = assignment.into_permit();
            assert_eq!(in_flight(&entry), 1);
            drop(permit);
        } else {
            drop(assignment);
        }
        assert_eq!(in_flight(&entry), 0);
    }
}

#[tokio::test]
async fn who_waits_is_served_in_order_and_nobody_who_comes_later_is_faster() {
    let (_inventory, entry) = narrow("x@own");
    let mut holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let mut line: Vec<_> = (0..5).map(|_| waiting(&entry)).collect();
    while !line.is_empty() {
        drop(holder);
        let late = code(client(&entry, &Tried::default(), NOW)).await;
        assert_eq!(late, Code::PR04, "the place is already given away");
        let first = line.remove(0);
        for other in &mut line {
            assert!(poll(other).is_pending());
        }
        holder = first.await.unwrap();
        assert_eq!(in_flight(&entry), 1);
    }
    drop(holder);
    assert_eq!((in_flight(&entry), entry.queue(0).unwrap().waiting()), (0, 0));
}

#[tokio::test]
async fn who_goes_away_leaves_the_line_and_a_permit_on_its_way_goes_to_the_next() {
    let (_inventory, entry) = narrow("x@own");
    let holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let [first, second, third, fourth] = [(); 4].map(|()| waiting(&entry));
    drop(second);
    assert_eq!(entry.queue(0).unwrap().waiting(), 3);
    drop(holder); // granted to the first, who never looks
    drop(first);
    let held = third.await.unwrap();
    drop(fourth);
    drop(held);
    assert_eq!((in_flight(&entry), entry.queue(0).unwrap().waiting()), (0, 0));
}

#[tokio::test]
async fn waiting_ends_with_patience() {
    let (_inventory, entry) = narrow("x@own");
    let _holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let began = Instant::now();
    let patience = Duration::from_millis(30);
    assert_eq!(code(client(&entry, &Tried::default(), patience)).await, Code::PR04);
    assert!(began.elapsed() >= patience);
    assert_eq!(entry.queue(0).unwrap().waiting(), 0);
}

#[tokio::test]
async fn as_many_requests_of_an_app_wait_as_may() {
    let registry = Registry::new(1, 10);
    let limits = config::Limits { queue_length_max: 2, ..Default::default() };
    let inventory = inventory_with(&limits, &registry);
    let other = control::snapshot::Service { internal_port: 1, ..limited(1, Some(0)) };
    let services = vec![limited(1, Some(0)), other];
    let entry = upsert(&inventory, app("a", services, instances("x@own")));
    let first = waiting(&entry);
    let second_entry = entry.clone();
    let (tried, rng) = (Tried::default(), Rng::seeded(3));
    let mut second: Assigning<'_> =
        Box::pin(assign(&second_entry, 1, &tried, Origin::Client, PATIENCE, &rng));
    assert!(poll(&mut second).is_pending());
    assert_eq!(code(client(&entry, &Tried::default(), PATIENCE)).await, Code::PR04);
    assert!(registry.render().contains("ferrule_queue_length 2\n"));
    drop(first);
    drop(waiting(&entry));
    drop(second);
    assert!(registry.render().contains("ferrule_queue_length 0\n"));
}

#[tokio::test]
async fn permits_in_use_are_counted_through_every_hand() {
    let registry = Registry::new(1, 10);
    let inventory = inventory_with(&config::Limits::default(), &registry);
    let entry = upsert(&inventory, app("a", vec![limited(1, Some(1))], instances("x@own")));
    let counted = |n: u32| {
        let text = registry.render();
        assert!(text.contains(&format!("ferrule_permits_in_use {n}\n")), "{n} not in\n{text}");
    };
    let holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let next = waiting(&entry);
    counted(1);
    drop(holder);
    counted(1);
    let next = next.await.unwrap();
    counted(1);
    drop(next);
    counted(0);
}

#[tokio::test]
async fn no_healthy_instance_fails_at_once_and_also_those_that_wait() {
    let (_inventory, entry) = narrow("x@own");
    let _holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let line = [(); 3].map(|()| waiting(&entry));
    entry.candidates[0].load(0).unwrap().set_healthy(false);
    for mut waits in line {
        let Poll::Ready(Err(failure)) = poll(&mut waits) else { panic!("it is told at once") };
        assert_eq!(failure.code, Code::PR01);
    }
    assert_eq!(code(client(&entry, &Tried::default(), PATIENCE)).await, Code::PR01);
}

#[tokio::test]
async fn what_nobody_announces_is_seen_by_all_who_wait_once_the_first_sees_it() {
    let (_inventory, entry) = narrow("x@near");
    let _holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let [a, b, c, d, e, f] = [(); 6].map(|()| waiting(&entry));
    let Place::Remote(node) = &entry.candidates[0].place else { panic!("it is on another node") };
    node.set_reachable(false);
    let began = Instant::now();
    // The first in line is polled last: each of the others has just seen that it is not first.
    tokio::join!(code(f), code(e), code(d), code(c), code(b), code(a));
    assert!(began.elapsed() < 5 * LOOK_AGAIN, "one after the other it would take six");
}

#[tokio::test]
async fn every_candidate_tried_is_said_as_such() {
    let (_inventory, entry) = narrow("x@own y@own");
    let mut tried = Tried::default();
    for count in 0..2 {
        assert_eq!(tried.count(), count);
        let assignment = client(&entry, &tried, NOW).await.unwrap();
        tried.add(&assignment);
        assignment.failed(Code::PC01, Instant::now());
    }
    assert_eq!(code(client(&entry, &tried, PATIENCE)).await, Code::PR03);
}

#[tokio::test]
async fn a_permit_goes_to_the_first_who_can_use_it() {
    let (_inventory, entry) = narrow("x@own y@own");
    let mut tried = Tried::default();
    let x = client(&entry, &tried, NOW).await.unwrap();
    let y = client(&entry, &tried, NOW).await.unwrap();
    tried.add(&x);
    let mut first = client(&entry, &tried, PATIENCE);
    assert!(poll(&mut first).is_pending());
    let second = waiting(&entry);
    let id = |assignment: &Assignment| assignment.candidate.instance.id.clone();
    let (x_id, y_id) = (id(&x), id(&y));
    drop(x);
    assert_eq!(id(&second.await.unwrap()), x_id);
    drop(y);
    assert_eq!(id(&first.await.unwrap()), y_id);
}

#[tokio::test]
async fn a_new_instance_serves_who_waits_in_their_order() {
    let (inventory, entry) = narrow("x@own");
    let _holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let mut line: Vec<_> = (0..3).map(|_| waiting(&entry)).collect();
    let more = instances("x@own y@own z@own");
    let newest = upsert(&inventory, app("a", vec![limited(1, Some(1))], more));
    // One who comes now is the first to see it; still those who came before get the places.
    assert_eq!(code(client(&newest, &Tried::default(), NOW)).await, Code::PR04);
    let mut served = Vec::new();
    for assigning in line.drain(..2) {
        served.push(assigning.await.unwrap());
    }
    let mut ids: Vec<_> = served.iter().map(|one| one.candidate.instance.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["y", "z"]);
    assert!(poll(&mut line[0]).is_pending());
}

#[tokio::test]
async fn a_raised_limit_serves_who_waits() {
    let (inventory, entry) = narrow("x@own");
    let _holder = client(&entry, &Tried::default(), NOW).await.unwrap();
    let waits = waiting(&entry);
    upsert(&inventory, app("a", vec![limited(1, Some(2))], instances("x@own")));
    assert!(waits.await.is_ok());
}

#[tokio::test]
async fn waiting_for_an_app_or_service_that_goes_ends() {
    let remove: fn(&Inventory) = |inventory| inventory.apply(Change::Remove(AppName::new("a")));
    let replace: fn(&Inventory) = |inventory| {
        let other = control::snapshot::Service { internal_port: 1, ..limited(1, None) };
        upsert(inventory, app("a", vec![other], instances("x@own")));
    };
    for change in [remove, replace] {
        let (inventory, entry) = narrow("x@own");
        let holder = client(&entry, &Tried::default(), NOW).await.unwrap();
        let waits = waiting(&entry);
        change(&inventory);
        assert_eq!(code(waits).await, Code::PR01);
        drop(holder);
        assert_eq!(in_flight(&entry), 0);
    }
}

#[tokio::test]
async fn a_permit_of_an_instance_that_went_is_not_passed_on() {
    let (inventory, entry) = narrow("x@own y@own");
    let holders = [(); 2].map(|()| client(&entry, &Tried::default(), NOW));
    let [x, y] = holders;
    let (x, y) = (x.await.unwrap(), y.await.unwrap());
    let (gone, stays) = if x.candidate.instance.id.as_str() == "x" { (x, y) } else { (y, x) };
    upsert(&inventory, app("a", vec![limited(1, Some(1))], instances("y@own")));
    let mut waits = waiting(&entry);
    drop(gone);
    assert!(poll(&mut waits).is_pending());
    drop(stays);
    assert_eq!(waits.await.unwrap().candidate.instance.id.as_str(), "y");
}

#[tokio::test]
async fn a_peer_that_said_full_is_asked_again_and_its_permit_not_passed_on_before() {
    let (_inventory, entry) = narrow("x@near");
    let mut assignment = client(&entry, &Tried::default(), NOW).await.unwrap();
    for code in [Code::PL01, Code::PL02] {
        let mut waits = waiting(&entry);
        assignment.refused_by_peer(code, Instant::now());
        let refused = Instant::now();
        drop(assignment);
        assert!(poll(&mut waits).is_pending());
        assert_eq!(in_flight(&entry), 0);
        assignment = waits.await.unwrap();
        assert!(refused.elapsed() >= Duration::from_millis(200), "{:?}", refused.elapsed());
    }
    assignment.refused_by_peer(Code::PR02, Instant::now());
    drop(assignment);
    assert_eq!(code(client(&entry, &Tried::default(), PATIENCE)).await, Code::PR01);
}

#[tokio::test]
async fn a_peer_gets_a_local_instance_now_or_a_reason_to_go_elsewhere() {
    let inventory = inventory();
    let mut service = limited(1, Some(1));
    let mut both = instances("x@own y@own remote@near cordoned@own");
    both[3].cordoned = true;
    let entry = upsert(&inventory, app("a", vec![service.clone()], both.clone()));
    let rng = Rng::seeded(3);
    let tried = Tried::default();
    let peer = async |entry: &Arc<Entry>, id: Option<&str>| {
        let id = id.map(InstanceId::new);
        assign(entry, 0, &tried, Origin::Peer(id.as_ref()), PATIENCE, &rng).await
    };
    for (id, code) in [("remote", Code::PR02), ("nobody", Code::PR02), ("cordoned", Code::PR02)] {
        assert_eq!(peer(&entry, Some(id)).await.err().unwrap().code, code, "{id}");
    }
    let x = peer(&entry, Some("x")).await.unwrap();
    assert_eq!(x.candidate.instance.id.as_str(), "x");
    assert_eq!(peer(&entry, Some("x")).await.err().unwrap().code, Code::PL02);
    let y = peer(&entry, None).await.unwrap();
    assert_eq!(y.candidate.instance.id.as_str(), "y");
    assert_eq!(peer(&entry, None).await.err().unwrap().code, Code::PL02);

    service.concurrency.kind = ConcurrencyKind::Connections;
    let entry = upsert(&inventory, app("a", vec![service], both));
    assert_eq!(peer(&entry, Some("x")).await.err().unwrap().code, Code::PL01);
    assert_eq!(peer(&entry, None).await.err().unwrap().code, Code::PL01);
}

#[tokio::test]
async fn an_attempt_given_up_teaches_how_long_it_took_at_least() {
    let (_inventory, entry) = narrow("x@own");
    let load = entry.candidates[0].load(0).unwrap();
    load.answered(Duration::from_micros(1), Instant::now());
    let cost = |load: &Load| load.cost(Millis::at(Instant::now()));
    let before = cost(load);
    let assignment = client(&entry, &Tried::default(), NOW).await.unwrap();
    let mut late = pin!(tokio::time::sleep(Duration::from_millis(20)));
    late.as_mut().await;
    drop(assignment);
    assert!(cost(load) > before * 1000.0);
}
