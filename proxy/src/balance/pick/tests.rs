use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::balance::rng::Rng;
use crate::inventory::Entry;
use crate::inventory::tests::{app, instances, inventory, limited, upsert};
use crate::nodes::{Node, Word};

struct Scene {
    entry: Arc<Entry>,
    now: Instant,
    tried: Tried,
    rng: Rng,
}

impl Scene {
    /// Soft limit 2, hard limit 4.
    fn new(words: &str) -> Self {
        let app = app("a", vec![limited(2, Some(4))], instances(words));
        let entry = upsert(&inventory(), app);
        let now = Instant::now();
        let scene = Self { entry, now, tried: Tried::default(), rng: Rng::seeded(7) };
        for (node, milliseconds) in [("near", 1), ("near-2", 10), ("far", 80)] {
            if let Some(node) = scene.node(node) {
                node.observe_rtt(Duration::from_millis(milliseconds));
            }
        }
        scene
    }

    /// The node `id`, if it has an instance.
    fn node(&self, id: &str) -> Option<&Node> {
        self.entry.candidates.iter().find_map(|candidate| match &candidate.place {
            Place::Remote(node) if node.id.as_str() == id => Some(&**node),
            _ => None,
        })
    }

    fn load(&self, id: &str) -> &Arc<Load> {
        let is = |candidate: &&Arc<Candidate>| candidate.instance.id.as_str() == id;
        self.entry.candidates.iter().find(is).unwrap().load(0).unwrap()
    }

    /// `count` in flight until the test ends.
    fn busy(&self, id: &str, count: u32) {
        for _ in 0..count {
            std::mem::forget(self.load(id).try_acquire().unwrap());
        }
    }

    fn eject(&self, id: &str) {
        (0..super::super::load::FAILURES_MAX).for_each(|_| self.load(id).failed(self.now));
    }

    fn pick(&self) -> &str {
        let now = Millis::at(self.now);
        let circumstances = Circumstances { service: 0, tried: &self.tried, now, rng: &self.rng };
        match pick(self.entry.field(), &circumstances) {
            Choice::Chosen(candidate) => candidate.instance.id.as_str(),
            Choice::AtHard => "at hard",
            Choice::None => "none",
        }
    }
}

#[test]
fn soft_limits_spill_inside_the_region_and_hard_ones_beyond() {
    let scene = Scene::new("far@far near@near near-2@near-2 local@own");
    let picked: Vec<_> = (0..17)
        .map(|_| {
            let id = scene.pick();
            if id != "at hard" {
                scene.busy(id, 1);
            }
            id
        })
        .collect();
    // `local` and `near` are within 2 ms, so between soft and hard they are equals.
    assert_eq!(picked[..6], ["local", "local", "near", "near", "near-2", "near-2"]);
    let mut equals = picked[6..10].to_vec();
    equals.sort_unstable();
    assert_eq!(equals, ["local", "local", "near", "near"]);
    assert_eq!(picked[10..], ["near-2", "near-2", "far", "far", "far", "far", "at hard"]);
}

#[test]
fn of_nodes_about_as_near_the_cheaper_is_taken() {
    let scene = Scene::new("a@near b@near");
    scene.load("a").answered(Duration::from_millis(100), scene.now);
    scene.load("b").answered(Duration::from_millis(5), scene.now);
    assert!((0..100).all(|_| scene.pick() == "b"));
    scene.load("b").answered(Duration::from_millis(300), scene.now);
    assert!((0..100).all(|_| scene.pick() == "a"));
}

#[test]
fn of_many_equals_all_are_taken_about_equally_often() {
    for node in ["own", "near"] {
        let ids = ["a", "b", "c", "d", "e"];
        let scene = Scene::new(&ids.map(|id| format!("{id}@{node}")).join(" "));
        let mut counts = ids.map(|id| (id, 0));
        for _ in 0..10_000 {
            let id = scene.pick();
            counts.iter_mut().find(|(own, _)| *own == id).unwrap().1 += 1;
        }
        assert!(counts.iter().all(|(_, count)| (1_700..2_300).contains(count)), "{counts:?}");
    }
}

#[test]
fn an_ejected_instance_is_left_alone_unless_all_are() {
    let scene = Scene::new("a@own b@own");
    scene.eject("a");
    assert!((0..100).all(|_| scene.pick() == "b"));
    scene.eject("b");
    assert!(["a", "b"].contains(&scene.pick()));
    scene.load("a").set_healthy(false);
    scene.load("b").set_healthy(false);
    assert_eq!(scene.pick(), "none", "active checks are never ignored");
}

#[test]
fn who_is_at_hard_is_waited_for_even_when_all_others_are_ejected() {
    let scene = Scene::new("a@own b@own");
    scene.eject("a");
    scene.busy("b", 4);
    assert_eq!(scene.pick(), "at hard");
}

#[test]
fn what_is_cordoned_unhealthy_unreachable_unknown_or_tried_is_out() {
    type Exclude = fn(&mut Scene);
    let excludes: [(&str, Exclude); 6] = [
        ("cordoned", |scene| scene.load("a").set_cordoned(true)),
        ("unhealthy", |scene| assert!(scene.load("a").set_healthy(false))),
        ("unreachable", |scene| scene.node("near").unwrap().set_reachable(false)),
        ("gone", |scene| scene.load("a").set_gone()),
        ("absent", |scene| scene.load("a").absent(scene.now)),
        ("tried", |scene| scene.tried.loads.push(scene.load("a").clone())),
    ];
    for (why, exclude) in excludes {
        let mut scene = Scene::new("a@near");
        assert_eq!(scene.pick(), "a");
        exclude(&mut scene);
        assert_eq!(scene.pick(), "none", "{why}");
    }
    assert_eq!(Scene::new("a@nowhere").pick(), "none");
    assert_eq!(Scene::new("").pick(), "none");
}

/// One instance: where, how busy, and what is wrong with it.
#[derive(Debug, Clone)]
struct Given {
    node: &'static str,
    in_flight: u32,
    cordoned: bool,
    healthy: bool,
    ejected: bool,
    tried: bool,
}

fn given() -> impl Strategy<Value = Vec<Given>> {
    let node = proptest::sample::select(vec!["own", "near", "near-2", "far", "nowhere"]);
    let rarely = || proptest::bool::weighted(0.2);
    let one = (node, 0..=4_u32, rarely(), rarely(), rarely(), rarely());
    let one = one.prop_map(|(node, in_flight, cordoned, unhealthy, ejected, tried)| Given {
        node,
        in_flight,
        cordoned,
        healthy: !unhealthy,
        ejected,
        tried,
    });
    proptest::collection::vec(one, 0..8)
}

proptest! {
    #[test]
    fn the_choice_obeys_the_rules(all in given(), near in any::<bool>(), seed in any::<u64>()) {
        let words: Vec<_> =
            all.iter().enumerate().map(|(index, one)| format!("{index}@{}", one.node)).collect();
        let mut scene = Scene::new(&words.join(" "));
        if let Some(node) = scene.node("near") {
            node.set_reachable(near);
        }
        for (index, one) in all.iter().enumerate() {
            let id = index.to_string();
            scene.busy(&id, one.in_flight);
            if one.ejected {
                scene.eject(&id);
            }
            scene.load(&id).set_cordoned(one.cordoned);
            scene.load(&id).set_healthy(one.healthy);
            if one.tried {
                let load = scene.load(&id).clone();
                scene.tried.loads.push(load);
            }
        }
        scene.rng = Rng::seeded(seed);
        let picked = scene.pick().to_owned();
        scene.rng = Rng::seeded(seed);
        prop_assert_eq!(scene.pick(), &picked, "the same chance, the same choice");

        let fit = |one: &&Given| {
            let reachable = one.node != "nowhere" && (one.node != "near" || near);
            reachable && !one.cordoned && one.healthy && !one.tried
        };
        let sound: Vec<_> = all.iter().filter(fit).filter(|one| !one.ejected).collect();
        let left: Vec<_> =
            if sound.is_empty() { all.iter().filter(fit).collect() } else { sound };
        // Smaller is better; nearer within the region counts only under soft for `own`.
        let tier = |one: &Given| match (one.node, one.in_flight) {
            (_, 4..) => 5,
            ("own", 0..2) => 0,
            ("near" | "near-2", 0..2) => 1,
            ("own" | "near" | "near-2", _) => 2,
            (_, 0..2) => 3,
            _ => 4,
        };
        let best = left.iter().map(|one| tier(one)).min();
        match picked.parse::<usize>() {
            Ok(index) => {
                let one = &all[index];
                prop_assert!(left.iter().any(|left| std::ptr::eq(*left, one)), "excluded: {one:?}");
                prop_assert!(tier(one) < 5, "at hard: {one:?}");
                prop_assert_eq!(Some(tier(one)), best, "not the best tier: {:?}", one);
                let rtt = |node| if node == "near-2" { 10 } else { 0 };
                let nearest = left.iter().filter(|one| Some(tier(one)) == best)
                    .map(|one| rtt(one.node)).min();
                prop_assert_eq!(Some(rtt(one.node)), nearest, "not the nearest: {:?}", one);
            }
            Err(_) if picked == "at hard" => prop_assert_eq!(best, Some(5)),
            Err(_) => prop_assert_eq!(best, None),
        }
    }
}

#[test]
fn what_is_on_a_node_that_drains_comes_after_everything_else() {
    let scene = Scene::new("near@near far@far");
    let node = scene.node("near").unwrap();
    assert_eq!(scene.pick(), "near");
    node.hear(Word::Draining);
    assert!((0..100).all(|_| scene.pick() == "far"));
    scene.busy("far", 4);
    assert!((0..100).all(|_| scene.pick() == "near"), "nobody else can take it");
    scene.busy("near", 4);
    assert_eq!(scene.pick(), "at hard");
    node.hear(Word::Serving);
    assert_eq!(scene.pick(), "at hard");
}

#[test]
fn a_node_that_drains_is_better_than_instances_that_failed() {
    let scene = Scene::new("near@near far@far");
    scene.node("near").unwrap().hear(Word::Draining);
    scene.eject("far");
    assert!((0..100).all(|_| scene.pick() == "near"));
    scene.eject("near");
    assert!(["near", "far"].contains(&scene.pick()));
}
