use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::ring::ROTATION;
use super::*;

const SESSION: &[u8] = b"a session";

/// What a successor reads of a predecessor's keys.
fn handed(from: &Tickets) -> TicketKeys {
    let text = serde_json::to_string(&from.export()).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A process at this second.
fn at<const NOW: u64>() -> Tickets {
    Tickets::with_clock(|| NOW).unwrap()
}

fn seal(by: &Tickets) -> Vec<u8> {
    by.ticketer.encrypt(SESSION).unwrap()
}

#[track_caller]
fn opens(at: &Tickets, ticket: &[u8], expected: bool) {
    let opened = at.ticketer.decrypt(ticket);
    assert_eq!(opened.as_deref(), expected.then_some(SESSION));
}

#[test]
fn what_was_sealed_before_a_hand_over_opens_after_it_after_one_rotation_and_not_after_two() {
    const START: u64 = 1000;
    let before = at::<START>();
    let ticket = seal(&before);
    let keys = handed(&before);
    let after = [at::<START>(), at::<{ START + ROTATION }>(), at::<{ START + 2 * ROTATION }>()];
    for (rotations, after) in after.iter().enumerate() {
        opens(after, &ticket, false); // the control: not by itself
        after.import(&keys);
        opens(after, &ticket, rotations < 2);
        opens(after, &seal(after), true);
    }
}

#[test]
fn the_previous_key_is_handed_over_and_the_schedule_goes_on() {
    static NOW: AtomicU64 = AtomicU64::new(500);
    let before = Tickets::with_clock(|| NOW.load(Relaxed)).unwrap();
    let old = seal(&before);
    NOW.store(500 + ROTATION, Relaxed);
    let new = seal(&before);
    assert_ne!(old[..16], new[..16], "another key");
    let after = Tickets::with_clock(|| NOW.load(Relaxed)).unwrap();
    NOW.store(500 + 2 * ROTATION - 1, Relaxed);
    after.import(&handed(&before));
    opens(&after, &old, true);
    assert_eq!(seal(&after)[..16], new[..16], "the same key still");
    // The moment at which the process before would have rotated.
    NOW.store(500 + 2 * ROTATION, Relaxed);
    opens(&after, &old, false);
    opens(&after, &new, true);
    assert_ne!(seal(&after)[..16], new[..16]);
    // And on to the next generation.
    let next = Tickets::with_clock(|| NOW.load(Relaxed)).unwrap();
    next.import(&handed(&after));
    opens(&next, &new, true);
}

#[test]
fn keys_that_say_they_begin_later_live_no_longer() {
    let (before, after) = (at::<9_000_000>(), at::<50>());
    after.import(&handed(&before));
    assert_eq!(after.export().began_seconds, 50);
}

#[test]
fn a_key_shows_itself_in_what_is_handed_over_and_nowhere_else() {
    let tickets = at::<0>();
    let keys = tickets.export();
    assert_eq!(format!("{keys:?} {:?}", tickets.producer()), "TicketKeys Ticketer");
    let text = serde_json::to_string(&keys).unwrap();
    let secret = text.split('"').find(|part| part.len() == 64).unwrap().to_owned();
    for wrong in ["", "AAAA", "not base64 at all!", &secret[1..]] {
        let error = serde_json::from_str::<TicketKeys>(&text.replace(&secret, wrong));
        let error = error.expect_err(wrong).to_string();
        assert!(error.starts_with("not a ticket key"), "{error}");
        assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
    }
    for wrong in ["3", "null", "[1,2]"] {
        let text = text.replace(&format!("\"{secret}\""), wrong);
        let error = serde_json::from_str::<TicketKeys>(&text).expect_err(wrong).to_string();
        assert!(error.starts_with("not a ticket key"), "{error}");
    }
}

#[test]
fn workers_that_rotate_at_once_agree_on_one_key() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    let tickets = Tickets::with_clock(|| NOW.load(Relaxed)).unwrap();
    for rotation in 1..50 {
        NOW.store(rotation * ROTATION, Relaxed);
        let names: Vec<_> = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(|| seal(&tickets)[..16].to_vec()));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        assert!(names.iter().all(|name| *name == names[0]));
    }
}

#[test]
fn the_clock_is_one_that_another_process_reads_alike() {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    assert!((seconds() as f64 - uptime).abs() < 5.0, "{} {uptime}", seconds());
}
