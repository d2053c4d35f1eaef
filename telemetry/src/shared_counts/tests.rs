mod processes;

use std::sync::Barrier;
use std::thread;

use super::*;

const LIMIT: u32 = 50;

fn key(name: &str) -> Key {
    Key::of(&[name.as_bytes()])
}

fn file_of(counts: &Counts) -> OwnedFd {
    counts.file().try_clone_to_owned().unwrap()
}

/// Two processes' counts, in one.
fn two() -> [Arc<Counts>; 2] {
    [64, 1000].map(|rows| Counts::create(rows).unwrap())
}

fn join([a, b]: &[Arc<Counts>; 2]) {
    a.join(file_of(b)).unwrap();
    b.join(file_of(a)).unwrap();
}

type Try = fn(&Count, u32) -> bool;

const BOTH_WAYS: [Try; 2] = [Count::try_add, Count::try_add_exactly];

#[test]
fn one_process_has_all_places_and_two_have_as_many() {
    for try_add in BOTH_WAYS {
        let both = two();
        let [a, b] = [0, 1].map(|process: usize| both[process].count(key("x")));
        for _ in 0..LIMIT {
            assert!(try_add(&a, LIMIT));
        }
        assert!(!try_add(&a, LIMIT));
        assert!(try_add(&b, LIMIT), "not joined yet");
        b.sub();
        join(&both);
        assert!(!try_add(&b, LIMIT));
        assert_eq!((a.own(), a.total(), b.own(), b.total()), (50, 50, 0, 50));
        (0..20).for_each(|_| a.sub());
        for _ in 0..20 {
            assert!(try_add(&b, LIMIT));
        }
        assert!(!try_add(&a, LIMIT) && !try_add(&b, LIMIT));
        assert_eq!((a.own(), a.total(), b.own(), b.total()), (30, 50, 20, 50));
        // Another limit of the same count: it was lowered, or raised.
        assert!(!try_add(&a, LIMIT - 10) && try_add(&a, LIMIT + 1));
        (0..31).for_each(|_| a.sub());
        (0..20).for_each(|_| b.sub());
    }
}

#[test]
fn the_places_of_a_process_that_ended_come_back_when_its_file_is_left() {
    let both = two();
    let [a, b] = [0, 1].map(|process: usize| both[process].count(key("x")));
    join(&both);
    assert!((0..30).all(|_| a.try_add(LIMIT)) && (0..20).all(|_| b.try_add(LIMIT)));
    assert!(!a.try_add(LIMIT));
    both[0].leave();
    assert!(!both[0].is_joined());
    assert_eq!((a.total(), (0..21).filter(|_| a.try_add(LIMIT)).count()), (30, 20));
    // And the next generation's can be joined.
    let next = Counts::create(64).unwrap();
    both[0].join(file_of(&next)).unwrap();
    assert!(!a.try_add(LIMIT));
    (0..50).for_each(|_| a.sub());
    (0..20).for_each(|_| b.sub());
}

#[test]
fn one_other_process_is_joined_at_a_time_and_never_ourselves() {
    let both = two();
    assert!(matches!(both[0].join(file_of(&both[0])), Err(JoinError::Own)));
    assert!(!both[0].is_joined());
    join(&both);
    let third = Counts::create(8).unwrap();
    assert!(matches!(both[0].join(file_of(&third)), Err(JoinError::Joined)));
}

#[test]
fn one_key_is_one_row_until_the_last_who_counts_there_goes() {
    let both = two();
    let first = both[0].count(key("x"));
    let second = both[0].count(key("x"));
    first.add();
    assert_eq!((second.own(), both[0].rows()), (1, 1));
    second.sub();
    drop(first);
    assert_eq!(both[0].rows(), 1);
    drop(second);
    assert_eq!(both[0].rows(), 0);
    let other = both[0].count(key("y"));
    assert_eq!((other.own(), both[0].rows()), (0, 1));
}

#[test]
fn a_count_without_room_is_private_and_counted() {
    let registry = Registry::new(1, 10);
    let both = [Counts::create(8).unwrap(), Counts::create(8).unwrap()];
    both[0].export(&registry, &Ledger::new(registry.clone()));
    join(&both);
    let counts: Vec<_> = (0..9).map(|n| both[0].count(key(&n.to_string()))).collect();
    let here = both[1].count(key("8"));
    assert!((0..2).all(|_| here.try_add(2)));
    assert_eq!((both[0].rows(), both[0].without_room()), (8, 1));
    assert!(counts[8].try_add(2) && counts[8].total() == 1, "it knows of itself only");
    assert!(registry.render().contains("ferrule_shared_counts_full_total 1\n"));
    counts[8].sub();
    drop(counts);
    assert!(!both[0].count(key("8")).try_add(2), "there is room now, so it is shared");
    (0..2).for_each(|_| here.sub());
}

#[test]
fn what_is_private_counts_alone() {
    let count = Count::private();
    assert!(count.try_add(2) && count.try_add_exactly(2) && !count.try_add(2));
    assert_eq!((count.own(), count.total()), (2, 2));
    count.sub();
    assert!(count.try_add_exactly(2) && !count.try_add_exactly(2));
}

/// What threads of one side hold in truth.
#[derive(Default)]
#[repr(C)]
struct Meter {
    held: AtomicU32,
    highest: AtomicU32,
    granted: AtomicU32,
}

/// One client: takes and gives back, up to a dozen at a time, so that the limit is met all the
/// time; how many it holds at the end.
fn client(count: &Count, meter: &Meter, try_add: Try, seed: usize, rounds: usize) -> u32 {
    let mut mine = 0;
    for round in 0..rounds {
        if mine < 12 && try_add(count, LIMIT) {
            let held = meter.held.fetch_add(1, SeqCst) + 1;
            meter.highest.fetch_max(held, Relaxed);
            meter.granted.fetch_add(1, Relaxed);
            mine += 1;
        }
        if (round * 7 + seed).is_multiple_of(3) && mine > 0 {
            release(count, meter, 1);
            mine -= 1;
        }
    }
    mine
}

fn release(count: &Count, meter: &Meter, places: u32) {
    for _ in 0..places {
        meter.held.fetch_sub(1, SeqCst);
        count.sub();
    }
}

/// Four threads on each side, each of which would hold a dozen: 96 want the 50 places. They hold
/// what they have until all are done, however few cores there are.
fn stress(both: &[Arc<Counts>; 2], try_add: Try, rounds: usize) -> Meter {
    let meter = Meter::default();
    let counts = [0, 1].map(|process: usize| both[process].count(key("x")));
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        for seed in 0..8 {
            let (count, meter, barrier) = (&counts[seed % 2], &meter, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let held = client(count, meter, try_add, seed, rounds);
                barrier.wait();
                release(count, meter, held);
            });
        }
    });
    assert_eq!(counts.map(|count| count.own()), [0, 0]);
    meter
}

#[test]
fn two_mappings_and_many_threads_never_exceed_the_limit() {
    for try_add in BOTH_WAYS {
        let both = two();
        join(&both);
        let meter = stress(&both, try_add, 100_000);
        let highest = meter.highest.load(Relaxed);
        assert!(highest <= LIMIT, "{highest} were held");
        assert!(highest > LIMIT / 2 && meter.granted.load(Relaxed) > 10_000, "{highest}");
    }
}

#[test]
fn the_count_can_count_without_joining_the_limit_is_exceeded() {
    let highest = stress(&two(), Count::try_add, 1_000).highest.load(Relaxed);
    assert!(highest > LIMIT, "two processes that do not know of each other held {highest}");
}

#[test]
fn joining_and_leaving_under_the_writers_exceeds_nothing_that_is_joined() {
    let both = two();
    let counts = [0, 1].map(|process: usize| both[process].count(key("x")));
    let meter = Meter::default();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 0..5 {
            let (count, meter, stop) = (&counts[0], &meter, &stop);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    let held = client(count, meter, Count::try_add_exactly, seed, 100);
                    thread::yield_now();
                    release(count, meter, held);
                }
            });
        }
        // The successor: it counts between the join of both and its own end only.
        for round in 0..300 {
            both[0].join(file_of(&both[1])).unwrap();
            both[1].join(file_of(&both[0])).unwrap();
            let held = client(&counts[1], &meter, Count::try_add_exactly, round, 500);
            release(&counts[1], &meter, held);
            both[0].leave();
            both[1].leave();
        }
        stop.store(true, Relaxed);
    });
    let highest = meter.highest.load(Relaxed);
    assert!((LIMIT / 2..=LIMIT).contains(&highest), "{highest} were held");
}
