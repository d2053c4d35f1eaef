//! Two generations of the process with the same app: their limits hold together.

use telemetry::metrics::Registry;
use telemetry::shared_counts::{Count, Counts, Key};

use super::node::NodeLimits;
use super::*;
use crate::config;
use crate::edge::Connections;
use crate::inventory::Inventory;
use crate::inventory::tests::{app, instances, inventory_of, limited, upsert};

const HARD: u32 = 50;

/// One process, with an app of one service on instances `words`.
struct Generation {
    counts: Arc<Counts>,
    inventory: Arc<Inventory>,
    entry: Arc<Entry>,
}

impl Generation {
    fn new(words: &str) -> Self {
        let counts = Counts::create(256).unwrap();
        let limits = config::Limits { app_connections_max: 10, ..Default::default() };
        let inventory = inventory_of(&limits, counts.clone(), &Registry::new(1, 10));
        let entry = Self::publish(&inventory, words);
        Self { counts, inventory, entry }
    }

    fn publish(inventory: &Inventory, words: &str) -> Arc<Entry> {
        upsert(inventory, app("a", vec![limited(HARD - 10, Some(HARD))], instances(words)))
    }

    fn join(&self, other: &Self) {
        self.counts.join(other.counts.file().try_clone_to_owned().unwrap()).unwrap();
        other.counts.join(self.counts.file().try_clone_to_owned().unwrap()).unwrap();
    }

    fn load(&self) -> &Arc<Load> {
        self.entry.candidates[0].load(0).unwrap()
    }

    /// As many permits as there are.
    fn take(&self, at_most: usize) -> Vec<Permit> {
        (0..at_most).map_while(|_| self.load().try_acquire()).collect()
    }

    async fn assign(&self) -> Result<Assignment, Failure> {
        let (tried, patience) = (Tried::default(), Duration::from_secs(60));
        assign(&self.entry, 0, &tried, Origin::Client, patience, &Rng::seeded(1)).await
    }
}

/// Two processes that have joined; the old one first.
fn two() -> [Generation; 2] {
    let both = [Generation::new("x@own"), Generation::new("x@own")];
    both[0].join(&both[1]);
    both
}

#[test]
fn a_hard_limit_holds_for_both_together_and_levels_see_both() {
    let [old, new] = two();
    let now = Millis::at(Instant::now());
    let held = old.take(35);
    assert_eq!(new.load().level(now), Level::UnderSoft);
    let more = new.take(5);
    assert_eq!(
        (old.load().level(now), new.load().level(now)),
        (Level::UnderHard, Level::UnderHard)
    );
    let rest = new.take(100);
    assert_eq!(held.len() + more.len() + rest.len(), HARD as usize);
    assert_eq!((old.load().level(now), new.load().level(now)), (Level::AtHard, Level::AtHard));
    assert!(old.load().try_acquire().is_none());
    // Each says of itself what it holds.
    assert_eq!((old.load().in_flight(), new.load().in_flight()), (35, 15));
    drop(held);
    assert_eq!(new.take(100).len(), 35);
}

#[test]
fn without_joining_two_would_have_twice_as_many() {
    let [old, new] = [Generation::new("x@own"), Generation::new("x@own")];
    assert_eq!(old.take(100).len() + new.take(100).len(), 2 * HARD as usize);
}

#[test]
fn the_limit_of_an_instance_elsewhere_is_kept_there() {
    let both = [Generation::new("x@near"), Generation::new("x@near")];
    both[0].join(&both[1]);
    assert_eq!(both[0].take(100).len() + both[1].take(100).len(), 2 * HARD as usize);
}

#[test]
fn an_instance_that_moves_here_is_counted_with_the_other_generation_from_then_on() {
    let old = Generation::new("x@own");
    let mut new = Generation::new("x@near");
    old.join(&new);
    let elsewhere = new.take(3);
    new.entry = Generation::publish(&new.inventory, "x@own");
    assert_eq!(old.take(30).len(), 30);
    let held = old.take(30);
    assert_eq!(new.take(100).len(), 50 - held.len());
    drop(elsewhere);
    assert_eq!(new.load().in_flight(), 0);
}

#[test]
fn services_of_one_port_are_told_apart_by_their_order() {
    let services = || vec![limited(1, Some(1)), limited(1, Some(1))];
    let both = [Generation::new(""), Generation::new("")];
    both[0].join(&both[1]);
    let entries = both
        .each_ref()
        .map(|process| upsert(&process.inventory, app("b", services(), instances("y@own"))));
    let take = |process: usize, service: usize| {
        entries[process].candidates[0].load(service).unwrap().try_acquire()
    };
    let [_first, _second] = [take(0, 0).unwrap(), take(1, 1).unwrap()];
    assert!(take(0, 1).is_none() && take(1, 0).is_none());
}

#[tokio::test]
async fn who_waits_in_one_gets_what_the_other_gives_back_and_soon() {
    let [old, new] = two();
    let mut held = old.take(100);
    let began = Instant::now();
    let giving = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            held.pop();
        }
    };
    let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(new.assign())).collect();
    let served = async {
        let mut served = Vec::new();
        for assigning in &mut waiting {
            served.push(assigning.await.unwrap());
        }
        served
    };
    let ((), served) = tokio::join!(giving, served);
    assert_eq!(served.len(), 20);
    // Alone they would look every 200 ms, one after the other.
    assert!(began.elapsed() < 10 * queue::LOOK_AGAIN, "{:?}", began.elapsed());
}

#[tokio::test]
async fn handing_on_keeps_the_limit_and_a_lower_one_ends_it() {
    let [old, new] = two();
    let mut held = old.take(25);
    let theirs = new.take(100);
    assert_eq!(theirs.len(), 25);
    let mut waits = Box::pin(old.assign());
    tokio::select! {
        biased;
        _ = &mut waits => panic!("there is no place"),
        () = std::future::ready(()) => {}
    }
    held.pop();
    let handed = waits.await.unwrap();
    assert_eq!((old.load().in_flight(), new.load().in_flight()), (25, 25));
    assert!(new.load().try_acquire().is_none());
    // Now the limit is one below what both hold, so what comes back is not handed on.
    let lowered = limited(1, Some(HARD - 1));
    upsert(&old.inventory, app("a", vec![lowered], instances("x@own")));
    let mut waits = Box::pin(old.assign());
    tokio::select! {
        biased;
        _ = &mut waits => panic!("there is no place"),
        () = std::future::ready(()) => {}
    }
    drop(handed);
    assert_eq!(old.load().in_flight(), 24);
    drop(theirs);
    assert!(waits.await.is_ok());
}

#[tokio::test]
async fn who_waits_looks_when_told_that_the_other_process_is_gone() {
    let [old, new] = two();
    std::mem::forget(old.take(100)); // it is killed
    let mut waits = Box::pin(new.assign());
    let patience = Duration::from_millis(30);
    assert!(tokio::time::timeout(patience, &mut waits).await.is_err());
    new.counts.leave();
    new.inventory.look_again_everywhere();
    tokio::select! {
        biased;
        served = &mut waits => assert!(served.is_ok()),
        () = std::future::ready(()) => panic!("it was told"),
    }
}

#[test]
fn connections_and_requests_of_a_node_and_of_an_app_are_limited_together() {
    let [old, new] = two();
    let registry = Registry::new(1, 10);
    let counted = |of: &Generation, what: &[u8]| of.counts.count(Key::of(&[what]));
    let connections = [&old, &new].map(|of| Connections::new(3, counted(of, b"connections")));
    let limits = config::Limits { requests_in_flight_max: 3, ..Default::default() };
    let requests =
        [&old, &new].map(|of| NodeLimits::new(&limits, counted(of, b"requests"), &registry));
    let alone = Connections::new(3, Count::private());
    let admitted = |of: [usize; 5]| {
        let guards: Vec<_> = of.map(|of| connections[of].admit().ok()).into();
        guards.iter().flatten().count()
    };
    assert_eq!(admitted([0, 1, 0, 1, 0]), 3);
    assert_eq!(admitted([1; 5]), 3, "all were given back");
    let guards: Vec<_> = [0, 1, 1, 0, 1].map(|of| requests[of].admit().ok()).into();
    assert_eq!(guards.iter().flatten().count(), 3);
    assert_eq!((requests[0].in_flight(), requests[1].in_flight()), (1, 2));
    let guards: Vec<_> = (0..8).map(|_| alone.admit().ok()).collect();
    assert_eq!(guards.iter().flatten().count(), 3);

    let apps = [&old, &new].map(|of| of.entry.live.clone());
    let mut guards: Vec<_> = (0..30).map_while(|n| apps[n % 2].connect().ok()).collect();
    assert_eq!((guards.len(), apps[0].connections(), apps[1].connections()), (10, 5, 5));
    guards.clear();
    assert!((0..10).all(|_| apps[1].connect().map(|guard| guards.push(guard)).is_ok()));
    assert!(apps[0].connect().is_err());
}
