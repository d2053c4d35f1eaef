use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Waker};
use std::thread;

use super::*;

fn board(lines: u32) -> (Arc<Board>, Desk) {
    let board = Board::new(1, lines);
    let desk = board.desk(0);
    (board, desk)
}

#[test]
fn a_line_says_what_it_waits_for_and_since_when() {
    let (board, desk) = board(8);
    let slot = desk.open(Kind::Request, State::Identify);
    slot.belongs_to(7);
    slot.traced(0xabc << 64 | 0xdef);
    board.set_clock(Duration::from_millis(300));
    slot.enter(State::Upstream);
    board.set_clock(Duration::from_millis(500));
    slot.polled();
    board.set_clock(Duration::from_millis(510));
    let [line] = board.lines(10).try_into().unwrap();
    let milliseconds = Duration::from_millis;
    assert_eq!(
        line,
        Line {
            worker: 0,
            kind: Kind::Request,
            state: State::Upstream,
            age: milliseconds(510),
            waiting: milliseconds(210),
            quiet: milliseconds(10),
            app: Some(7),
            trace: 0xabc << 64 | 0xdef,
        }
    );
    drop(slot);
    assert_eq!(board.lines(10), []);
}

#[test]
fn a_line_that_is_taken_again_starts_anew() {
    let (board, desk) = board(1);
    let first = desk.open(Kind::Request, State::Upstream);
    first.belongs_to(1);
    first.traced(5);
    drop(first);
    board.set_clock(Duration::from_secs(9));
    let _second = desk.open(Kind::Connection, State::Idle);
    let line = board.lines(1).remove(0);
    assert_eq!(
        (line.kind, line.state, line.app, line.trace),
        (Kind::Connection, State::Idle, None, 0)
    );
    assert_eq!(line.age, Duration::ZERO);
}

#[test]
fn each_poll_of_noted_work_is_on_its_line_and_on_no_other() {
    let (board, desk) = board(1);
    let slot = desk.open(Kind::Request, State::Upstream);
    let mut work = pin!(slot.beat().note(std::future::pending::<()>()));
    let mut quiet_after_poll = |seconds| {
        board.set_clock(Duration::from_secs(seconds));
        let before = board.lines(1).remove(0).quiet;
        assert!(work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        (before.as_secs(), board.lines(1).remove(0).quiet.as_secs())
    };
    assert_eq!(quiet_after_poll(3), (3, 0));
    assert_eq!(quiet_after_poll(5), (2, 0));
    drop(slot);
    let _next = desk.open(Kind::Request, State::Upstream);
    assert_eq!(quiet_after_poll(9), (4, 4), "the line is another request's by now");
}

#[test]
fn a_full_lane_counts_whom_it_cannot_list_and_serves_them_all_the_same() {
    let (board, desk) = board(2);
    let slots: Vec<_> = (0..5).map(|_| desk.open(Kind::Request, State::Permit)).collect();
    slots.iter().for_each(|slot| slot.enter(State::Response));
    assert_eq!((board.lines(10).len(), board.unlisted()), (2, 3));
    drop(slots);
    let _next = desk.open(Kind::Request, State::Permit);
    assert_eq!((board.lines(10).len(), board.unlisted()), (1, 3));
}

#[test]
fn the_longest_wait_comes_first() {
    let (board, desk) = board(8);
    let slots: Vec<_> = (0..4_u64)
        .map(|second| {
            board.set_clock(Duration::from_secs(second));
            desk.open(Kind::Request, State::Upstream)
        })
        .collect();
    let waiting: Vec<_> = board.lines(3).iter().map(|line| line.waiting.as_secs()).collect();
    assert_eq!(waiting, [3, 2, 1]);
    drop(slots);
}

#[test]
fn nothing_grows_however_often_lines_are_taken() {
    let (board, desk) = board(64);
    for _ in 0..100_000 {
        let slots: Vec<_> = (0..30).map(|_| desk.open(Kind::Request, State::Identify)).collect();
        drop(slots);
    }
    assert_eq!((board.bytes(), board.unlisted()), (size_of::<Chunk>(), 0));
}

/// A reader in the midst of writing sees whole lines: the app of one use never with the trace of
/// another.
#[test]
fn a_reader_never_sees_two_uses_of_a_line_as_one() {
    let board = Board::new(1, 1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let desk = board.desk(0);
            let mut use_ = 0_u32;
            while !stop.load(Relaxed) {
                let slot = desk.open(Kind::Request, State::Identify);
                slot.belongs_to(use_);
                slot.traced(u128::from(use_) + 1);
                use_ = use_.wrapping_add(1) % 1_000_000;
            }
        });
        let mut seen = 0;
        while seen < 10_000 && !writer.is_finished() {
            let Some(line) = board.lines(1).pop() else { continue };
            if let (Some(app), trace @ 1..) = (line.app, line.trace) {
                assert_eq!(u128::from(app) + 1, trace);
                seen += 1;
            }
        }
        stop.store(true, Relaxed);
        assert_eq!(seen, 10_000);
    });
}
