use std::net::TcpListener;
use std::os::fd::AsFd as _;

use serde_json::json;

use super::*;
use crate::handoff::Place;

const PATIENCE: Duration = Duration::from_secs(5);

fn counts() -> std::sync::Arc<Counts> {
    Counts::create(64).unwrap()
}

/// A claim, and the predecessor's end of its channel.
fn claim() -> (Claim, OwnedFd) {
    let (theirs, socket) = channel::pair().unwrap();
    (Claim { socket }, theirs)
}

/// What comes of a claim when the predecessor says this, in packets as they are, with a descriptor
/// beside each if so many are wanted.
async fn told(packets: &[(serde_json::Value, usize)]) -> Result<Inheritance, ClaimError> {
    let (claim, theirs) = claim();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for (packet, descriptors) in packets {
        let packet = serde_json::to_vec(packet).unwrap();
        channel::transmit(&theirs, &packet, &vec![listener.as_fd(); *descriptors]).unwrap();
    }
    let mine = counts();
    claim.assert(&mine, Duration::from_millis(200)).await
}

fn manifest(sockets: usize) -> serde_json::Value {
    json!({
        "say": "manifest", "manifest": MANIFEST, "version": "1", "pid": 7, "generation": 3,
        "sockets": sockets, "apps": 0,
    })
}

fn clients(port: u16) -> serde_json::Value {
    json!({ "for": "clients", "address": format!("127.0.0.1:{port}") })
}

fn sockets(places: &[serde_json::Value]) -> serde_json::Value {
    json!({ "say": "sockets", "places": places })
}

#[tokio::test]
async fn everything_that_was_promised_is_taken_over() {
    let packets = [
        (manifest(3), 0),
        (sockets(&[clients(80), clients(443)]), 2),
        (sockets(&[json!({ "for": "leash" })]), 1),
    ];
    let mut inheritance = told(&packets).await.ok().unwrap();
    assert_eq!(inheritance.predecessor.generation, 3);
    let address = "127.0.0.1:80".parse().unwrap();
    assert!(inheritance.sockets.tcp(&Place::Clients { address }, 10).is_some());
    assert!(inheritance.sockets.tcp(&Place::Peers { address }, 10).is_none());
    assert!(inheritance.sockets.leash().is_some());
    let address = "127.0.0.1:443".parse().unwrap();
    assert_eq!(inheritance.sockets.close(), [Place::Clients { address }]);
}

#[tokio::test]
async fn what_was_not_promised_is_refused() {
    let check = async |packets: &[(serde_json::Value, usize)], expected: &str| {
        let error = told(packets).await.err().expect("it cannot be believed");
        let error = telemetry::error::chain(&error);
        assert!(error.contains(expected), "{error}, not {expected}");
    };
    let newer = json!({ "say": "manifest", "manifest": 2, "version": "9.9.9", "shape": "other" });
    check(&[(newer, 0)], "(version 9.9.9) speaks manifest 2, this process manifest 1").await;
    check(&[(json!({ "say": "go" }), 0)], "says what it should not").await;
    check(&[(json!("oops"), 0)], "is none that this process knows").await;
    check(&[(manifest(1), 1)], "should have 0 descriptors and has 1").await;
    check(&[], "is silent").await;
    check(&[(manifest(1), 0)], "is silent").await;
    let two = sockets(&[clients(80), clients(443)]);
    check(&[(manifest(1), 0), (two.clone(), 2)], "promised 1 sockets").await;
    check(&[(manifest(2), 0), (two.clone(), 1)], "should have 2 descriptors and has 1").await;
    check(&[(manifest(2), 0), (sockets(&[]), 0)], "promised 2 sockets").await;
    let twice = sockets(&[clients(80), clients(80)]);
    check(&[(manifest(2), 0), (twice, 2)], "promised 2 sockets").await;
}

#[tokio::test]
async fn who_is_gone_before_all_was_given_leaves_nothing_and_later_everything() {
    let (claim, theirs) = claim();
    drop(theirs);
    assert!(claim.assert(&counts(), PATIENCE).await.is_err());

    let registry = Registry::new(1, 10);
    for says_go in [true, false] {
        let (own, theirs) = channel::pair().unwrap();
        let channel = Channel::new(own).unwrap();
        let predecessor = Predecessor { channel, pid: 7, generation: 1 };
        if says_go {
            channel::send_now(&theirs, &FromPredecessor::Go).unwrap();
        }
        drop(theirs);
        let expected = if says_go { Verdict::Go } else { Verdict::Gone };
        let verdict = predecessor.wait_for_go(&registry, PATIENCE).await.unwrap();
        assert_eq!(verdict, expected);
        predecessor.at(Step::Serving).await;
        assert!(!predecessor.follow(&registry, |_| {}).await, "it said no farewell");
    }
}

#[tokio::test]
async fn a_predecessor_that_says_nothing_keeps_the_node() {
    let (own, _theirs) = channel::pair().unwrap();
    let channel = Channel::new(own).unwrap();
    let predecessor = Predecessor { channel, pid: 7, generation: 1 };
    let registry = Registry::new(1, 10);
    let waited = predecessor.wait_for_go(&registry, Duration::from_millis(20)).await;
    assert!(matches!(waited, Err(ClaimError::Silent)));
}

#[tokio::test]
async fn a_refusal_is_said_even_if_its_reason_is_very_long() {
    let (claim, theirs) = claim();
    claim.refuse("ö".repeat(100_000), true);
    let (message, _) = Channel::new(theirs).unwrap().receive::<FromSuccessor>().await.unwrap();
    let FromSuccessor::Refused { reason, configuration: true, .. } = message else {
        panic!("it is a refusal: {message:?}");
    };
    assert_eq!(reason.len(), REASON_BYTES_MAX);
}
