use super::*;
use crate::inventory::tests::{app, instances, inventory, limited, upsert};

/// One instance's load, and a clock that the test moves.
fn load(hard: Option<u32>) -> (Arc<Load>, Instant) {
    let service = limited(2, hard);
    let entry = upsert(&inventory(), app("a", vec![service], instances("x@own")));
    (entry.candidates[0].load(0).unwrap().clone(), Instant::now())
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn load_has_three_values() {
    let (load, now) = load(Some(4));
    let now = Millis::at(now);
    let mut permits = Vec::new();
    let mut levels = vec![load.level(now)];
    while let Some(permit) = load.try_acquire() {
        permits.push(permit);
        levels.push(load.level(now));
    }
    use Level::{AtHard, UnderHard, UnderSoft};
    assert_eq!(levels, [UnderSoft, UnderSoft, UnderHard, UnderHard, AtHard]);
    permits.clear();
    assert_eq!(load.level(now), UnderSoft);
}

#[test]
fn without_a_hard_limit_there_is_always_one_more() {
    let (load, now) = load(None);
    let permits: Vec<_> = (0..1000).map(|_| load.try_acquire().unwrap()).collect();
    assert_eq!(load.level(Millis::at(now)), Level::UnderHard);
    drop(permits);
    assert_eq!(load.in_flight(), 0);
}

#[test]
fn the_third_failure_in_a_row_ejects_and_a_success_between_does_not() {
    let (load, now) = load(None);
    let is_ejected = || load.is_ejected(Millis::at(now));
    (0..2).for_each(|_| load.failed(now));
    load.answered(SECOND, now);
    (0..2).for_each(|_| load.failed(now));
    assert!(!is_ejected());
    load.failed(now);
    assert!(is_ejected());
}

#[test]
fn the_third_answer_in_a_row_that_is_broken_off_ejects_and_a_whole_one_between_does_not() {
    let (load, now) = load(None);
    let is_ejected = || load.is_ejected(Millis::at(now));
    let break_off = || load.broken_off(load.answered(SECOND, now), now);
    (0..2).for_each(|_| break_off());
    load.answered(SECOND, now);
    (0..2).for_each(|_| break_off());
    assert!(!is_ejected());
    break_off();
    assert!(is_ejected());
}

#[test]
fn answers_broken_off_side_by_side_count_one_by_one() {
    let (load, now) = load(None);
    let begun: Vec<_> = (0..3).map(|_| load.answered(SECOND, now)).collect();
    for (streak, ejects) in begun.into_iter().zip([false, false, true]) {
        load.broken_off(streak, now);
        assert_eq!(load.is_ejected(Millis::at(now)), ejects);
    }
}

#[test]
fn an_answer_broken_off_after_an_ejection_makes_the_next_one_longer() {
    let (load, now) = load(None);
    (0..3).for_each(|_| load.failed(now));
    let later = now + 6 * SECOND;
    assert!(!load.is_ejected(Millis::at(later)));
    load.broken_off(load.answered(SECOND, later), later);
    assert!(load.is_ejected(Millis::at(later + 9 * SECOND)));
    assert!(!load.is_ejected(Millis::at(later + 11 * SECOND)));
}

#[test]
fn what_breaks_answers_off_is_not_preferred_however_fast_its_heads_are() {
    let (load, now) = load(None);
    load.answered(SECOND / 100, now);
    let before = load.cost(Millis::at(now));
    (0..2).for_each(|_| load.broken_off(load.answered(SECOND / 1000, now), now));
    assert!(load.cost(Millis::at(now)) > before * 10.0);
}

#[test]
fn ejections_in_a_row_grow_to_a_minute_and_shrink_with_success() {
    let (load, mut now) = load(None);
    let mut ejection = |first: bool| {
        for _ in 0..if first { 3 } else { 1 } {
            load.failed(now);
        }
        let began = now;
        while load.is_ejected(Millis::at(now)) {
            now += SECOND / 2;
        }
        (now - began).as_secs()
    };
    let lengths: Vec<_> = (0..14).map(|index| ejection(index == 0)).collect();
    assert_eq!(lengths[..4], [5, 10, 15, 20]);
    assert_eq!(lengths[11..], [60, 60, 60]);

    load.answered(SECOND, now);
    assert!(!load.is_ejected(Millis::at(now)));
    (0..2).for_each(|_| load.failed(now));
    assert!(!load.is_ejected(Millis::at(now)), "a success makes it three failures again");
}

#[test]
fn what_fails_while_ejected_does_not_prolong_it() {
    let (load, now) = load(None);
    (0..100).for_each(|_| load.failed(now));
    assert!(load.is_ejected(Millis::at(now + 4 * SECOND)));
    assert!(!load.is_ejected(Millis::at(now + 6 * SECOND)));
}

#[test]
fn errors_in_answers_cost_preference_but_never_eject() {
    let (load, now) = load(None);
    load.answered(SECOND / 100, now);
    let before = load.cost(Millis::at(now));
    for _ in 0..100 {
        load.answered_with_error(SECOND / 1000, now);
    }
    assert!(!load.is_ejected(Millis::at(now)));
    assert!(load.cost(Millis::at(now)) > before * 100.0);
}

#[test]
fn what_a_peer_says_is_believed_for_a_while() {
    let (load, now) = load(None);
    let later = Millis::at(now + 10 * SECOND);
    load.full(now);
    assert_eq!(load.level(Millis::at(now)), Level::AtHard);
    assert_eq!(load.level(later), Level::UnderSoft);
    load.absent(now);
    assert!(!load.is_routable(Millis::at(now)));
    assert!(load.is_routable(later));
}

#[test]
fn a_lower_limit_holds_for_who_has_an_older_version_too() {
    let inventory = inventory();
    let apply = |hard| {
        let app = app("a", vec![limited(2, Some(hard))], instances("x@own"));
        upsert(&inventory, app).candidates[0].load(0).unwrap().clone()
    };
    let old = apply(4);
    let _permits: Vec<_> = (0..3).map(|_| old.try_acquire().unwrap()).collect();
    apply(2);
    assert!(old.try_acquire().is_none());
    assert_eq!(old.in_flight(), 3);
}

#[test]
fn a_load_is_one_cache_line() {
    assert_eq!(size_of::<Load>(), 64);
}
