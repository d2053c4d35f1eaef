use futures_util::FutureExt;
use http_body_util::{BodyExt, StreamBody};

use super::*;

fn record() -> Record {
    crate::trace::unread()
}

fn stream(frames: Vec<Result<Frame<Bytes>, Failure>>) -> Body {
    Body::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Failure> {
    Ok(Frame::data(text.into()))
}

fn read(body: Body) -> Result<(Bytes, Option<HeaderMap>), Failure> {
    let collected = body.collect().now_or_never().expect("everything is there")?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, Failure>> {
    body.frame().now_or_never().expect("a frame is there")
}

#[test]
fn a_body_is_sent_again_from_its_beginning() {
    let mut trailers = HeaderMap::new();
    trailers.insert("sum", "6".parse().unwrap());
    let frames = vec![data("one"), data("two"), Ok(Frame::trailers(trailers.clone()))];
    let replay = Replay::new(stream(frames), 6, record());

    let mut first = replay.attempt().unwrap();
    assert_eq!(next(&mut first).unwrap().unwrap().into_data().unwrap(), "one");
    drop(first);
    let second = read(replay.attempt().unwrap()).unwrap();
    assert_eq!(second, ("onetwo".into(), Some(trailers.clone())));
    let third = read(replay.attempt().unwrap()).unwrap();
    assert_eq!(third, ("onetwo".into(), Some(trailers)));
}

#[test]
fn a_body_that_is_too_large_is_sent_once_and_not_held() {
    let replay = Replay::new(stream(vec![data("one"), data("two")]), 5, record());
    let mut first = replay.attempt().unwrap();
    assert_eq!(next(&mut first).unwrap().unwrap().into_data().unwrap(), "one");
    assert!(replay.is_possible());
    assert_eq!(next(&mut first).unwrap().unwrap().into_data().unwrap(), "two");
    assert!(next(&mut first).is_none());
    assert!(!replay.is_possible());
    assert!(replay.attempt().is_none());
    let Kind::Stream(tape) = &replay.kind else { panic!("a stream") };
    assert_eq!(tape.borrow().kept.capacity(), 0);
}

#[test]
fn a_body_that_says_it_is_too_large_is_not_copied() {
    let replay = Replay::new(Body::full("ten bytes!"), 9, record());
    let first = replay.attempt().unwrap();
    assert_eq!(first.size_hint().exact(), Some(10));
    assert_eq!(read(first).unwrap().0, "ten bytes!");
    assert!(replay.attempt().is_none());
    // The control.
    let replay = Replay::new(Body::full("ten bytes!"), 10, record());
    for _ in 0..2 {
        assert_eq!(read(replay.attempt().unwrap()).unwrap().0, "ten bytes!");
    }
}

#[test]
fn only_the_last_attempt_reads() {
    let replay = Replay::new(stream(vec![data("one"), data("two")]), 100, record());
    let mut first = replay.attempt().unwrap();
    next(&mut first).unwrap().unwrap();
    let mut second = replay.attempt().unwrap();
    assert_eq!(next(&mut first).unwrap().err().unwrap().code, Code::PX01);
    assert_eq!(next(&mut second).unwrap().unwrap().into_data().unwrap(), "one");
    assert_eq!(next(&mut second).unwrap().unwrap().into_data().unwrap(), "two");
}

#[test]
fn a_client_that_failed_cannot_be_asked_again() {
    let replay =
        Replay::new(stream(vec![data("one"), Err(Failure::new(Code::PP09))]), 100, record());
    assert_eq!(read(replay.attempt().unwrap()).err().unwrap().code, Code::PP09);
    assert!(replay.attempt().is_none());
}

#[test]
fn no_body_is_always_possible() {
    let replay = Replay::new(Body::Empty, 0, record());
    assert!(replay.attempt().unwrap().is_end_stream());
    assert!(replay.is_possible());
}

#[test]
fn retries_are_a_share_of_the_requests_above_a_floor() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut budget = RetryBudget::new(20, 1, start);
    let withdraw =
        |budget: &mut RetryBudget, now| (0..10_000).take_while(|_| budget.withdraw(now)).count();
    assert_eq!(withdraw(&mut budget, start), 10, "the floor of the window");
    (0..1_000).for_each(|_| budget.deposit(start));
    assert_eq!(withdraw(&mut budget, at(1)), 200, "a fifth of the requests");
    assert_eq!(withdraw(&mut budget, at(9)), 0, "all of it is still in the window");
    assert_eq!(withdraw(&mut budget, at(10)), 0, "what second one took is not");
    assert_eq!(withdraw(&mut budget, at(11)), 10);
    assert_eq!(withdraw(&mut budget, at(1_000)), 10, "a long rest saves nothing up");
}
